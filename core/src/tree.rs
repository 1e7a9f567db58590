//! An ordered index over records of its user: a balanced binary tree whose links lie in the records.
//!
//! A [`Root`] and the [`Link`] of every record of one slice form the index; keys stay in the user's
//! tables and are compared by closures. Records are named by their position in the slice. The tree is
//! an AVL tree with links to the parents, so nothing recurses, and no path is longer than
//! `1.44 log2(n)` records.
//!
//! Slots that are not what they should be (outside the slice, of another tree, linked into a circle)
//! give an error or `None` after a bounded number of steps.
//!
//! ```
//! use kdbus_core::tree::{Link, Root};
//!
//! let keys = [30, 10, 20];
//! let mut links = [const { Link::new() }; 3];
//! let mut index: Root = Root::new();
//! for slot in 0..3 {
//!     index.insert(&mut links, slot, |other, _| keys[slot as usize].cmp(&keys[other as usize]))?;
//! }
//! let smallest = index.first().unwrap();
//! assert_eq!(keys[smallest as usize], 10);
//! assert_eq!(index.lower_bound(&links, |slot, _| keys[slot as usize].cmp(&15)), Some(2));
//! # Ok::<(), kdbus_core::tree::TreeError>(())
//! ```

use core::cmp::Ordering;
use core::fmt;

const NONE: u32 = u32::MAX;

/// More than any path of 2^32 records, `1.44 * 32`.
const MAX_HEIGHT: u32 = 48;

const LEFT: usize = 0;
const RIGHT: usize = 1;

/// The index itself; the links of its records are beside the records.
///
/// `INDEX` tells the indices of one record apart, see [`Linked`]. Every method takes the slice of
/// records, which must be the same each time.
#[derive(Debug)]
pub struct Root<const INDEX: usize = 0> {
    root: u32,
    first: u32,
    len: u32,
}

/// The place of one record in an index.
#[derive(Debug)]
pub struct Link {
    parent: u32,
    children: [u32; 2],
    /// Height of the right child less that of the left one.
    balance: i8,
    linked: bool,
}

/// A record with a [`Link`] for the index of number `INDEX`.
///
/// An implementation returns the same field of the record from both methods, and different ones for
/// different numbers.
pub trait Linked<const INDEX: usize = 0> {
    /// The link of this record.
    fn link(&self) -> &Link;

    /// The link of this record, to change.
    fn link_mut(&mut self) -> &mut Link;
}

/// Why an index was not changed, or not completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TreeError {
    /// The slot is outside the slice.
    OutOfRange,
    /// The record is in an index already.
    Linked,
    /// The record is not in this index.
    NotLinked,
    /// The links do not form a tree: they were changed by something else.
    Corrupt,
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfRange => "slot outside the slice",
            Self::Linked => "record is in an index already",
            Self::NotLinked => "record is not in this index",
            Self::Corrupt => "links do not form a tree",
        })
    }
}

impl core::error::Error for TreeError {}

impl Link {
    /// The link of a record that is in no index.
    pub const fn new() -> Self {
        Self { parent: NONE, children: [NONE; 2], balance: 0, linked: false }
    }

    /// Whether the record is in an index.
    pub const fn is_linked(&self) -> bool {
        self.linked
    }
}

impl Default for Link {
    fn default() -> Self {
        Self::new()
    }
}

impl Linked for Link {
    fn link(&self) -> &Link {
        self
    }

    fn link_mut(&mut self) -> &mut Link {
        self
    }
}

impl<const INDEX: usize> Root<INDEX> {
    /// An empty index.
    ///
    /// Records that were in another one take part once their link is [`Link::new`] again.
    pub const fn new() -> Self {
        Self { root: NONE, first: NONE, len: 0 }
    }

    /// Adds the record `slot` behind those that compare equal, in `O(log n)`.
    ///
    /// `compare(other, record)` orders the new record against the one at `other`.
    ///
    /// # Errors
    ///
    /// [`TreeError::OutOfRange`] and [`TreeError::Linked`], the index is unchanged;
    /// [`TreeError::Corrupt`].
    #[inline]
    pub fn insert<N: Linked<INDEX>>(
        &mut self,
        nodes: &mut [N],
        slot: u32,
        mut compare: impl FnMut(u32, &N) -> Ordering,
    ) -> Result<(), TreeError> {
        let mut parent = NONE;
        let mut side = LEFT;
        let mut next = self.root;
        let mut steps = 0;
        while let Some(node) = nodes.get(next as usize) {
            side = if compare(next, node) == Ordering::Less { LEFT } else { RIGHT };
            parent = next;
            next = node.link().children[side];
            steps += 1;
            if steps > MAX_HEIGHT {
                return Err(TreeError::Corrupt);
            }
        }
        self.attach(nodes, slot, parent, side)
    }

    /// Adds the record `slot` before all others, in `O(log n)` and constant time on average.
    ///
    /// # Errors
    ///
    /// As [`insert`](Self::insert).
    #[inline]
    pub fn insert_first<N: Linked<INDEX>>(&mut self, nodes: &mut [N], slot: u32) -> Result<(), TreeError> {
        self.attach(nodes, slot, self.first, LEFT)
    }

    /// Takes the record `slot` out, in `O(log n)`, without a comparison.
    ///
    /// # Errors
    ///
    /// [`TreeError::OutOfRange`] and [`TreeError::NotLinked`], the index is unchanged;
    /// [`TreeError::Corrupt`].
    pub fn remove<N: Linked<INDEX>>(&mut self, nodes: &mut [N], slot: u32) -> Result<(), TreeError> {
        let link = nodes.get(slot as usize).ok_or(TreeError::OutOfRange)?.link();
        let (parent, [left, right], balance) = (link.parent, link.children, link.balance);
        if !link.linked || !self.holds(nodes, slot, parent) {
            return Err(TreeError::NotLinked);
        }
        if slot == self.first {
            // The smallest one has no left child.
            self.first = if right == NONE { parent } else { descend(nodes, right, LEFT) };
        }
        let gap;
        if left == NONE || right == NONE {
            let child = if left == NONE { right } else { left };
            gap = self.replace(nodes, parent, slot, child)?;
        } else {
            // The successor has no left child and takes the place of the record.
            let successor = descend(nodes, right, LEFT);
            let link = get(nodes, successor)?;
            let (above, below) = (link.parent, link.children[RIGHT]);
            if above == slot {
                gap = (successor, RIGHT);
            } else {
                gap = self.replace(nodes, above, successor, below)?;
                get_mut(nodes, successor)?.children[RIGHT] = right;
                get_mut(nodes, right)?.parent = successor;
            }
            self.replace(nodes, parent, slot, successor)?;
            let link = get_mut(nodes, successor)?;
            link.children[LEFT] = left;
            link.balance = balance;
            get_mut(nodes, left)?.parent = successor;
        }
        *get_mut(nodes, slot)? = Link::new();
        self.len = self.len.saturating_sub(1);
        self.shrunk(nodes, gap)
    }

    /// A record for which `compare` says equal, in `O(log n)`.
    ///
    /// `compare(slot, record)` orders the record against what is looked for. Of several equal ones
    /// the one nearest to the root is found.
    #[inline]
    pub fn find<N: Linked<INDEX>>(
        &self,
        nodes: &[N],
        mut compare: impl FnMut(u32, &N) -> Ordering,
    ) -> Option<u32> {
        let mut slot = self.root;
        for _ in 0..MAX_HEIGHT {
            let node = nodes.get(slot as usize)?;
            match compare(slot, node) {
                Ordering::Equal => return Some(slot),
                Ordering::Less => slot = node.link().children[RIGHT],
                Ordering::Greater => slot = node.link().children[LEFT],
            }
        }
        None
    }

    /// The first record that is not less than what `compare` looks for, in `O(log n)`.
    ///
    /// `compare(slot, record)` orders the record against what is looked for.
    #[inline]
    pub fn lower_bound<N: Linked<INDEX>>(
        &self,
        nodes: &[N],
        mut compare: impl FnMut(u32, &N) -> Ordering,
    ) -> Option<u32> {
        let mut slot = self.root;
        let mut found = None;
        for _ in 0..MAX_HEIGHT {
            let Some(node) = nodes.get(slot as usize) else {
                break;
            };
            if compare(slot, node) == Ordering::Less {
                slot = node.link().children[RIGHT];
            } else {
                found = Some(slot);
                slot = node.link().children[LEFT];
            }
        }
        found
    }

    /// The smallest record, in `O(1)`.
    #[inline]
    pub const fn first(&self) -> Option<u32> {
        if self.first == NONE { None } else { Some(self.first) }
    }

    /// The greatest record, in `O(log n)`.
    pub fn last<N: Linked<INDEX>>(&self, nodes: &[N]) -> Option<u32> {
        nodes.get(self.root as usize)?;
        Some(descend(nodes, self.root, RIGHT))
    }

    /// The record behind `slot`, in `O(log n)`; from the first to the last one, `O(n)` in all.
    pub fn next<N: Linked<INDEX>>(&self, nodes: &[N], slot: u32) -> Option<u32> {
        neighbour(nodes, slot, RIGHT)
    }

    /// The record before `slot`, in `O(log n)`.
    pub fn prev<N: Linked<INDEX>>(&self, nodes: &[N], slot: u32) -> Option<u32> {
        neighbour(nodes, slot, LEFT)
    }

    /// Records in the index, in `O(1)`.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether the index has no record, in `O(1)`.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Hangs a record below `parent`, where there is no child on that side.
    #[inline]
    fn attach<N: Linked<INDEX>>(
        &mut self,
        nodes: &mut [N],
        slot: u32,
        parent: u32,
        side: usize,
    ) -> Result<(), TreeError> {
        if slot == NONE {
            return Err(TreeError::OutOfRange);
        }
        let link = nodes.get_mut(slot as usize).ok_or(TreeError::OutOfRange)?.link_mut();
        if link.linked {
            return Err(TreeError::Linked);
        }
        *link = Link { parent, children: [NONE; 2], balance: 0, linked: true };
        self.len = self.len.saturating_add(1);
        if self.first == parent && side == LEFT {
            self.first = slot;
        }
        match nodes.get_mut(parent as usize) {
            Some(above) => above.link_mut().children[side] = slot,
            None => self.root = slot,
        }
        self.grown(nodes, (parent, side))
    }

    /// Restores the balance after the child on that side of a record grew by one.
    #[inline]
    fn grown<N: Linked<INDEX>>(&mut self, nodes: &mut [N], mut at: (u32, usize)) -> Result<(), TreeError> {
        for _ in 0..MAX_HEIGHT {
            let (slot, side) = at;
            let Some(node) = nodes.get_mut(slot as usize) else {
                return Ok(());
            };
            let link = node.link_mut();
            if link.balance == 0 {
                link.balance = lean(side);
                let parent = link.parent;
                at = (parent, side_of(nodes, parent, slot));
            } else if link.balance == lean(side) {
                return self.rotate(nodes, slot, side).map(|_| ());
            } else {
                link.balance = 0;
                return Ok(());
            }
        }
        Err(TreeError::Corrupt)
    }

    /// Restores the balance after the child on that side of a record shrank by one.
    fn shrunk<N: Linked<INDEX>>(&mut self, nodes: &mut [N], mut at: (u32, usize)) -> Result<(), TreeError> {
        for _ in 0..MAX_HEIGHT {
            let (slot, side) = at;
            let Some(node) = nodes.get_mut(slot as usize) else {
                return Ok(());
            };
            let link = node.link_mut();
            let mut top = slot;
            if link.balance == 0 {
                link.balance = lean(1 - side);
                return Ok(());
            } else if link.balance == lean(side) {
                link.balance = 0;
            } else {
                let lower;
                (top, lower) = self.rotate(nodes, slot, 1 - side)?;
                if !lower {
                    return Ok(());
                }
            }
            let parent = get(nodes, top)?.parent;
            at = (parent, side_of(nodes, parent, top));
        }
        Err(TreeError::Corrupt)
    }

    /// Lifts the child on the heavy `side` above `slot`, or that child's inner child if it is heavier.
    ///
    /// Returns what stands in the place of `slot` now, and whether it is lower than `slot` was.
    fn rotate<N: Linked<INDEX>>(
        &mut self,
        nodes: &mut [N],
        slot: u32,
        side: usize,
    ) -> Result<(u32, bool), TreeError> {
        let other = 1 - side;
        let (parent, child) = {
            let link = get(nodes, slot)?;
            (link.parent, link.children[side])
        };
        let (tilt, inner) = {
            let link = get(nodes, child)?;
            (link.balance, link.children[other])
        };
        if tilt == lean(other) {
            let (tilt, below) = {
                let link = get(nodes, inner)?;
                (link.balance, link.children)
            };
            adopt(nodes, child, other, below[side])?;
            adopt(nodes, slot, side, below[other])?;
            adopt(nodes, inner, side, child)?;
            adopt(nodes, inner, other, slot)?;
            get_mut(nodes, child)?.balance = if tilt == lean(other) { lean(side) } else { 0 };
            get_mut(nodes, slot)?.balance = if tilt == lean(side) { lean(other) } else { 0 };
            get_mut(nodes, inner)?.balance = 0;
            self.replace(nodes, parent, slot, inner)?;
            return Ok((inner, true));
        }
        adopt(nodes, slot, side, inner)?;
        adopt(nodes, child, other, slot)?;
        let lower = tilt != 0;
        get_mut(nodes, slot)?.balance = if lower { 0 } else { lean(side) };
        get_mut(nodes, child)?.balance = if lower { 0 } else { lean(other) };
        self.replace(nodes, parent, slot, child)?;
        Ok((child, lower))
    }

    /// Puts `child` (or nothing) below `parent` (or at the root) in the place of `slot`; says where.
    fn replace<N: Linked<INDEX>>(
        &mut self,
        nodes: &mut [N],
        parent: u32,
        slot: u32,
        child: u32,
    ) -> Result<(u32, usize), TreeError> {
        let side = if parent == NONE {
            self.root = child;
            LEFT
        } else {
            let above = get_mut(nodes, parent)?;
            // A rotated record may hang below its own child by now; the parent still names it.
            let side = usize::from(above.children[LEFT] != slot);
            above.children[side] = child;
            side
        };
        if child != NONE {
            get_mut(nodes, child)?.parent = parent;
        }
        Ok((parent, side))
    }

    /// Whether what should be above `slot` knows it.
    fn holds<N: Linked<INDEX>>(&self, nodes: &[N], slot: u32, parent: u32) -> bool {
        match nodes.get(parent as usize) {
            Some(above) => above.link().children.contains(&slot),
            None => self.root == slot,
        }
    }
}

impl<const INDEX: usize> Default for Root<INDEX> {
    fn default() -> Self {
        Self::new()
    }
}

/// The balance of a record that is higher by one on `side`.
const fn lean(side: usize) -> i8 {
    if side == LEFT { -1 } else { 1 }
}

fn get<N: Linked<INDEX>, const INDEX: usize>(nodes: &[N], slot: u32) -> Result<&Link, TreeError> {
    nodes.get(slot as usize).map(N::link).ok_or(TreeError::Corrupt)
}

fn get_mut<N: Linked<INDEX>, const INDEX: usize>(nodes: &mut [N], slot: u32) -> Result<&mut Link, TreeError> {
    nodes.get_mut(slot as usize).map(N::link_mut).ok_or(TreeError::Corrupt)
}

fn side_of<N: Linked<INDEX>, const INDEX: usize>(nodes: &[N], parent: u32, slot: u32) -> usize {
    nodes.get(parent as usize).map_or(LEFT, |above| usize::from(above.link().children[LEFT] != slot))
}

fn adopt<N: Linked<INDEX>, const INDEX: usize>(
    nodes: &mut [N],
    parent: u32,
    side: usize,
    child: u32,
) -> Result<(), TreeError> {
    get_mut(nodes, parent)?.children[side] = child;
    if child != NONE {
        get_mut(nodes, child)?.parent = parent;
    }
    Ok(())
}

/// The outermost record below `slot` on that side.
fn descend<N: Linked<INDEX>, const INDEX: usize>(nodes: &[N], mut slot: u32, side: usize) -> u32 {
    for _ in 0..MAX_HEIGHT {
        match nodes.get(slot as usize).map(|node| node.link().children[side]) {
            Some(next) if next != NONE => slot = next,
            _ => break,
        }
    }
    slot
}

fn neighbour<N: Linked<INDEX>, const INDEX: usize>(nodes: &[N], mut slot: u32, side: usize) -> Option<u32> {
    let link = nodes.get(slot as usize)?.link();
    if !link.linked {
        return None;
    }
    if link.children[side] != NONE {
        return Some(descend(nodes, link.children[side], 1 - side));
    }
    for _ in 0..MAX_HEIGHT {
        let parent = nodes.get(slot as usize)?.link().parent;
        let above = nodes.get(parent as usize)?.link();
        if above.children[side] != slot {
            return Some(parent);
        }
        slot = parent;
    }
    None
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
