//! An index by a number of 64 bits that keeps equal numbers in the order they came.
//!
//! It is a tree over the hexadecimal digits of the keys, with a branch only where keys differ: the way
//! to a key looks at no more digits than it takes to tell it from the others, sixteen at worst, and
//! nothing is ever rebalanced. Entries of equal keys form a ring behind the oldest.
//!
//! As in [`tree`](crate::tree), the parts of the index lie in the records of its user. Each record has
//! room for a branch, which serves whatever keys need one: there are fewer branches than keys.

const NONE: u32 = u32::MAX;

/// Marks a child that is a record; without it the child is a branch.
const LEAF: u32 = 1 << 31;

/// Records that an index can have.
pub(crate) const CAPACITY_MAX: usize = (LEAF - 1) as usize;

/// The index itself. A new one over records that were used before is empty.
#[derive(Debug)]
pub(crate) struct Radix {
    root: u32,
    /// The oldest record of the lowest key, and that key.
    first: u32,
    first_key: u64,
    /// Branches that were used before, linked by their parents.
    free: u32,
    /// The first record whose branch was never used.
    fresh: u32,
}

/// The part of a record that belongs to the index.
#[derive(Debug)]
pub(crate) struct Cell {
    key: u64,
    /// The branch above; stale in records that are not the oldest of their key.
    parent: u32,
    /// Neighbours in the ring of equal keys.
    next: u32,
    previous: u32,
    state: State,
    branch: Branch,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// In no index.
    Out,
    /// A child of a branch: the oldest record of its key.
    Oldest,
    /// In the ring behind the oldest.
    Behind,
}

#[derive(Debug)]
struct Branch {
    /// Any key below; all are the same in the digits above `shift`.
    key: u64,
    children: [u32; 16],
    parent: u32,
    /// Bit `n`: there is a child of digit `n`.
    present: u16,
    /// Where the digit is that this branch tells apart, in bits from the right.
    shift: u8,
}

/// A record with a [`Cell`].
pub(crate) trait Indexed {
    /// The cell of this record.
    fn cell(&self) -> &Cell;

    /// The cell of this record, to change.
    fn cell_mut(&mut self) -> &mut Cell;
}

// Whoever sizes a queue pays this for each of its nodes.
const _: () = assert!(size_of::<Cell>() == 104);

impl Cell {
    /// The cell of a record that is in no index.
    pub(crate) const fn new() -> Self {
        let branch = Branch { key: 0, children: [NONE; 16], parent: NONE, present: 0, shift: 0 };
        Self { key: 0, parent: NONE, next: NONE, previous: NONE, state: State::Out, branch }
    }

    /// Whether the record is in an index.
    #[inline]
    pub(crate) const fn is_indexed(&self) -> bool {
        !matches!(self.state, State::Out)
    }

    /// Takes the record for one that is in no index, whatever it was in before.
    #[inline]
    pub(crate) const fn forget(&mut self) {
        self.state = State::Out;
    }
}

impl Branch {
    const fn digit(&self, key: u64) -> usize {
        (key >> (self.shift & 63) & 15) as usize
    }
}

impl Radix {
    /// An empty index.
    pub(crate) const fn new() -> Self {
        Self { root: NONE, first: NONE, first_key: 0, free: NONE, fresh: 0 }
    }

    /// The oldest record of the lowest key.
    #[inline]
    pub(crate) const fn first(&self) -> Option<u32> {
        if self.first == NONE { None } else { Some(self.first) }
    }

    /// The key of [`first`](Self::first), meaningless if there is none.
    #[inline]
    pub(crate) const fn first_key(&self) -> u64 {
        self.first_key
    }

    /// Adds the record `slot` behind all of equal key; `None` if records and index do not fit together.
    #[inline]
    pub(crate) fn insert<N: Indexed>(&mut self, nodes: &mut [N], slot: u32, key: u64) -> Option<()> {
        let (mut parent, mut child) = (NONE, self.root);
        let mut shift = 64;
        while child & LEAF == 0 {
            let branch = &nodes.get(child as usize)?.cell().branch;
            // Shifts fall from branch to branch, so this ends.
            if branch.shift >= shift {
                return None;
            }
            shift = branch.shift;
            parent = child;
            child = branch.children[branch.digit(key)];
        }
        // The way down looked at some digits only; what it led to tells whether the others fit too.
        let other = if child != NONE {
            let oldest = child & !LEAF;
            let cell = nodes.get(oldest as usize)?.cell();
            if cell.key == key {
                return join(nodes, slot, key, oldest);
            }
            cell.key
        } else if parent != NONE {
            nodes.get(parent as usize)?.cell().branch.key
        } else {
            key
        };
        let mut above = parent;
        let difference = key ^ other;
        if child != NONE || difference >> (shift & 63) > 15 {
            let fork = difference.checked_ilog2()? as u8 & !3;
            let mut passed = 0;
            while let Some(node) = nodes.get(above as usize) {
                let branch = &node.cell().branch;
                if branch.shift >= fork {
                    break;
                }
                // Shifts rise on the way back, so this ends too.
                if branch.shift < passed {
                    return None;
                }
                passed = branch.shift + 1;
                child = above;
                above = branch.parent;
            }
            parent = self.fork(nodes, fork, (key, slot | LEAF), (other, child))?;
            nodes.get_mut(parent as usize)?.cell_mut().branch.parent = above;
            set_parent(nodes, child, parent)?;
            child = parent;
        } else {
            child = slot | LEAF;
        }
        let cell = nodes.get_mut(slot as usize)?.cell_mut();
        (cell.key, cell.parent, cell.next, cell.previous) = (key, parent, slot, slot);
        cell.state = State::Oldest;
        match nodes.get_mut(above as usize) {
            Some(node) => {
                let branch = &mut node.cell_mut().branch;
                let digit = branch.digit(key);
                branch.children[digit] = child;
                branch.present |= 1 << digit;
            }
            None => self.root = child,
        }
        if self.first == NONE || key < self.first_key {
            (self.first, self.first_key) = (slot, key);
        }
        Some(())
    }

    /// Takes the record `slot` out, which is in the index; `None` if it is not.
    #[inline]
    pub(crate) fn remove<N: Indexed>(&mut self, nodes: &mut [N], slot: u32) -> Option<()> {
        let cell = nodes.get_mut(slot as usize)?.cell_mut();
        let (key, parent, next, previous) = (cell.key, cell.parent, cell.next, cell.previous);
        let state = core::mem::replace(&mut cell.state, State::Out);
        if state == State::Out {
            return None;
        }
        if next != slot {
            nodes.get_mut(next as usize)?.cell_mut().previous = previous;
            nodes.get_mut(previous as usize)?.cell_mut().next = next;
            if state == State::Oldest {
                let cell = nodes.get_mut(next as usize)?.cell_mut();
                (cell.parent, cell.state) = (parent, State::Oldest);
                self.set_child(nodes, parent, key, next | LEAF)?;
                if self.first == slot {
                    self.first = next;
                }
            }
            return Some(());
        }
        let Some(node) = nodes.get_mut(parent as usize) else {
            (self.root, self.first) = (NONE, NONE);
            return Some(());
        };
        let branch = &mut node.cell_mut().branch;
        let digit = branch.digit(key);
        branch.children[digit] = NONE;
        branch.present &= !(1 << digit);
        let left = branch.present;
        let mut child = branch.children[left.trailing_zeros() as usize & 15];
        if left & left.wrapping_sub(1) == 0 {
            // A branch to one child is none.
            let (key, above) = (branch.key, branch.parent);
            branch.parent = self.free;
            self.free = parent;
            self.set_child(nodes, above, key, child)?;
            set_parent(nodes, child, above)?;
        }
        if self.first == slot {
            // The lowest one had the lowest digit everywhere, so the next one is in the same branch.
            let mut shift = 64;
            while child & LEAF == 0 {
                let branch = &nodes.get(child as usize)?.cell().branch;
                if branch.shift >= shift {
                    return None;
                }
                shift = branch.shift;
                child = branch.children[branch.present.trailing_zeros() as usize & 15];
            }
            self.first = child & !LEAF;
            self.first_key = nodes.get(self.first as usize)?.cell().key;
        }
        Some(())
    }

    /// Makes a branch that tells two keys apart at a digit.
    #[inline]
    fn fork<N: Indexed>(
        &mut self,
        nodes: &mut [N],
        shift: u8,
        (a_key, a): (u64, u32),
        (b_key, b): (u64, u32),
    ) -> Option<u32> {
        let reused = self.free != NONE;
        let new = if reused { self.free } else { self.fresh };
        let branch = &mut nodes.get_mut(new as usize)?.cell_mut().branch;
        if reused {
            self.free = branch.parent;
        } else {
            self.fresh = new + 1;
        }
        branch.key = a_key;
        branch.shift = shift;
        branch.children = [NONE; 16];
        let (a_digit, b_digit) = (branch.digit(a_key), branch.digit(b_key));
        branch.children[a_digit] = a;
        branch.children[b_digit] = b;
        branch.present = 1 << a_digit | 1 << b_digit;
        Some(new)
    }

    /// Sets what is below `parent` (or at the root) for `key`.
    #[inline]
    fn set_child<N: Indexed>(&mut self, nodes: &mut [N], parent: u32, key: u64, child: u32) -> Option<()> {
        if parent == NONE {
            self.root = child;
            return Some(());
        }
        let branch = &mut nodes.get_mut(parent as usize)?.cell_mut().branch;
        let digit = branch.digit(key);
        branch.children[digit] = child;
        branch.present |= 1 << digit;
        Some(())
    }
}

/// Puts a record into the ring behind the oldest of its key.
#[inline(never)]
fn join<N: Indexed>(nodes: &mut [N], slot: u32, key: u64, oldest: u32) -> Option<()> {
    let last = nodes.get(oldest as usize)?.cell().previous;
    let cell = nodes.get_mut(slot as usize)?.cell_mut();
    (cell.key, cell.next, cell.previous, cell.state) = (key, oldest, last, State::Behind);
    nodes.get_mut(last as usize)?.cell_mut().next = slot;
    nodes.get_mut(oldest as usize)?.cell_mut().previous = slot;
    Some(())
}

#[inline]
fn set_parent<N: Indexed>(nodes: &mut [N], child: u32, parent: u32) -> Option<()> {
    let cell = nodes.get_mut((child & !LEAF) as usize)?.cell_mut();
    if child & LEAF == 0 {
        cell.branch.parent = parent;
    } else {
        cell.parent = parent;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    impl Indexed for Cell {
        fn cell(&self) -> &Cell {
            self
        }

        fn cell_mut(&mut self) -> &mut Cell {
            self
        }
    }

    struct Fixture {
        index: Radix,
        cells: Vec<Cell>,
    }

    impl Fixture {
        fn new(keys: &[u64]) -> Self {
            let mut fixture = Self { index: Radix::new(), cells: keys.iter().map(|_| Cell::new()).collect() };
            for (slot, &key) in keys.iter().enumerate() {
                fixture.insert(slot as u32, key).unwrap();
            }
            fixture
        }

        fn insert(&mut self, slot: u32, key: u64) -> Option<()> {
            self.index.insert(&mut self.cells, slot, key)
        }

        fn remove(&mut self, slot: u32) -> Option<()> {
            self.index.remove(&mut self.cells, slot)
        }

        /// Slots in order of key and age, which empties the index.
        fn drained(&mut self) -> Vec<u32> {
            let mut slots = Vec::new();
            while let Some(slot) = self.index.first() {
                assert_eq!(self.index.first_key(), self.cells[slot as usize].key);
                self.remove(slot).unwrap();
                slots.push(slot);
            }
            slots
        }
    }

    fn sorted(keys: &[u64]) -> Vec<u32> {
        let mut slots: Vec<u32> = (0..keys.len() as u32).collect();
        slots.sort_by_key(|&slot| keys[slot as usize]);
        slots
    }

    #[test]
    fn keys_come_out_in_order() {
        for keys in [
            &[][..],
            &[5],
            &[0, u64::MAX],
            &[0x10, 0x1f, 0x20, 0, 0x11],
            &[1 << 63, (1 << 63) - 1, 1 << 60, 1, 0x8000_0000_0000_0001],
            // One more branch for each key.
            &[0, 1, 0x10, 0x100, 0x1000, 0x10000, 1 << 20, 1 << 24, 1 << 28, 1 << 32, 1 << 60],
        ] {
            assert_eq!(Fixture::new(keys).drained(), sorted(keys));
            let backwards: Vec<u64> = keys.iter().rev().copied().collect();
            assert_eq!(Fixture::new(&backwards).drained(), sorted(&backwards));
        }
    }

    #[test]
    fn equal_keys_come_out_in_order_of_age() {
        let keys = [7, 3, 7, 7, 3, 0x700, 7];
        assert_eq!(Fixture::new(&keys).drained(), [1, 4, 0, 2, 3, 6, 5]);
        for removed in 0..7 {
            let mut fixture = Fixture::new(&keys);
            fixture.remove(removed).unwrap();
            assert_eq!(fixture.remove(removed), None);
            let mut expected = sorted(&keys);
            expected.retain(|&slot| slot != removed);
            assert_eq!(fixture.drained(), expected);
        }
    }

    #[test]
    fn any_record_can_leave_and_come_back() {
        // Keys that differ in high, low and middle digits, from a multiplicative sequence.
        let keys: Vec<u64> =
            (1..200_u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (n % 4 * 20)).collect();
        let mut fixture = Fixture::new(&keys);
        for step in 0..2000_u64 {
            let slot = step * 73 % keys.len() as u64;
            fixture.remove(slot as u32).unwrap();
            assert!(!fixture.cells[slot as usize].is_indexed());
            let lowest = (0..keys.len()).filter(|&other| other as u64 != slot).map(|other| keys[other]).min();
            assert_eq!(fixture.index.first().map(|_| fixture.index.first_key()), lowest);
            fixture.insert(slot as u32, keys[slot as usize]).unwrap();
        }
        let in_order: Vec<u64> = fixture.drained().iter().map(|&slot| keys[slot as usize]).collect();
        assert!(in_order.is_sorted());
        assert_eq!(in_order.len(), keys.len());
    }

    #[test]
    fn branches_are_used_again() {
        let mut fixture = Fixture::new(&[1, 2]);
        for key in 0..1000_u64 {
            fixture.remove(1).unwrap();
            assert_eq!(fixture.insert(1, key << 12 | 2), Some(()));
        }
        assert_eq!(fixture.drained(), [0, 1]);
    }

    #[test]
    fn a_circle_of_branches_ends_every_walk() {
        let keys = [0, 1, 0x10, 0x100, 0x1000];
        let mut downwards = Fixture::new(&keys);
        let mut upwards = Fixture::new(&keys);
        for (down, up) in downwards.cells.iter_mut().zip(&mut upwards.cells) {
            down.branch.children = [0; 16];
            up.branch.parent = 0;
        }
        for mut fixture in [downwards, upwards] {
            fixture.cells.push(Cell::new());
            assert_eq!(fixture.insert(5, 1 << 40), None);
            for slot in 0..5 {
                let _ = fixture.remove(slot);
            }
        }
    }
}
