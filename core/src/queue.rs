//! A stable priority queue over memory of its user.
//!
//! The lowest priority value is the most urgent one, and equal priorities leave in the order they
//! came. A queue is a small [`Head`] and a slice of [`Node`]s; [`PriorityQueue`] borrows both for as
//! long as it is worked with, so that a table can hold many heads beside one block of nodes.
//! [`StaticQueue`] holds head and nodes together, fit for a `static`.
//!
//! Up to eight priorities at a time have a lane of their own, a list in order of arrival. Entries of
//! further priorities share one such list and are found by urgency through an index over the digits of
//! their priority. An entry never changes between the two, so no single operation pays for a
//! rearrangement. In a lane, push and pop take three comparisons; in the index, at most sixteen steps
//! there and back whatever is queued, and about a third of the binary logarithm of the number of
//! priorities if these are spread evenly. Nothing walks the entries.
//!
//! The index takes 104 bytes of each node.
//!
//! ```
//! use kdbus_core::queue::StaticQueue;
//!
//! let mut storage = StaticQueue::<&str, 4>::new();
//! let mut queue = storage.view();
//! queue.push(0, "telemetry").unwrap();
//! let alarm = queue.push(-20, "alarm").unwrap();
//! queue.push(0, "log").unwrap();
//!
//! assert_eq!(queue.remove(alarm), Some("alarm"));
//! assert_eq!(queue.pop(), Some("telemetry"));
//! assert_eq!(queue.pop_at_most(-1), None);
//! ```

mod head;
mod iter;

use core::fmt;

use crate::radix::{CAPACITY_MAX, Cell, Indexed};

use head::{ALL_LANES, LANES, SPILL};

pub use head::Head;
pub use iter::{Cursor, Drain, Iter};

const NONE: u32 = u32::MAX;

/// One entry of a queue, or room for one.
#[derive(Debug)]
pub struct Node<T> {
    priority: i64,
    arrival: u64,
    /// The neighbour in the entry's list; stale in the last one.
    next: u32,
    /// The neighbour in the entry's list; stale in the first one.
    previous: u32,
    /// In the index, unless the entry stands in a lane.
    cell: Cell,
    generation: u32,
    item: Option<T>,
}

/// A queue to work with: a head and its nodes.
///
/// Costs are in terms of [`capacity`](Self::capacity). An operation on nodes that are not those the
/// head was used with finds nothing or something else of the queue, and does not panic.
#[derive(Debug)]
pub struct PriorityQueue<'a, T> {
    head: &'a mut Head,
    nodes: &'a mut [Node<T>],
}

/// A queue that holds its `N` entries itself.
#[derive(Debug)]
pub struct StaticQueue<T, const N: usize> {
    head: Head,
    nodes: [Node<T>; N],
}

/// Names one entry of a queue until it leaves; of no effect after that.
///
/// A node is told apart from its earlier uses by a count of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Handle {
    slot: u32,
    generation: u32,
}

impl Handle {
    /// The entry's place among the nodes, less than the capacity.
    #[must_use]
    pub const fn index(self) -> u32 {
        self.slot
    }
}

/// An entry that is still queued.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry<'a, T> {
    /// Names the entry.
    pub handle: Handle,
    /// Its priority; the lowest value is the most urgent.
    pub priority: i64,
    /// What is queued.
    pub item: &'a T,
}

impl<T> Clone for Entry<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Entry<'_, T> {}

/// The queue has no room; the item comes back.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Full<T>(pub T);

impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Full(..)")
    }
}

impl<T> fmt::Display for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the queue is full")
    }
}

impl<T> core::error::Error for Full<T> {}

impl<T> Node<T> {
    /// Room for one entry.
    pub const fn new() -> Self {
        Self {
            priority: 0,
            arrival: 0,
            next: NONE,
            previous: NONE,
            cell: Cell::new(),
            generation: 0,
            item: None,
        }
    }
}

impl<T> Indexed for Node<T> {
    fn cell(&self) -> &Cell {
        &self.cell
    }

    fn cell_mut(&mut self) -> &mut Cell {
        &mut self.cell
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const N: usize> StaticQueue<T, N> {
    /// An empty queue for `N` entries.
    pub const fn new() -> Self {
        Self { head: Head::new(), nodes: [const { Node::new() }; N] }
    }

    /// The queue to work with.
    pub const fn view(&mut self) -> PriorityQueue<'_, T> {
        PriorityQueue { head: &mut self.head, nodes: &mut self.nodes }
    }

    /// Entries in the queue, in `O(1)`.
    pub const fn len(&self) -> usize {
        self.head.len()
    }

    /// Entries that fit at the same time.
    pub const fn capacity(&self) -> usize {
        N
    }

    /// Whether nothing is queued, in `O(1)`.
    pub const fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Whether the next push fails, in `O(1)`.
    pub const fn is_full(&self) -> bool {
        self.head.len() >= N
    }
}

impl<T, const N: usize> Default for StaticQueue<T, N> {
    fn default() -> Self {
        Self::new()
    }
}

impl Handle {
    /// The position of the entry among the nodes, below the capacity.
    pub const fn slot(self) -> u32 {
        self.slot
    }
}

impl<'a, T> PriorityQueue<'a, T> {
    /// The queue of `head` over `nodes`, which must be those it was used with so far.
    ///
    /// As many entries fit as there are nodes, and never more than 2^31 - 1.
    pub const fn new(head: &'a mut Head, nodes: &'a mut [Node<T>]) -> Self {
        let most = CAPACITY_MAX;
        let (nodes, _) = nodes.split_at_mut(if nodes.len() < most { nodes.len() } else { most });
        Self { head, nodes }
    }

    /// Adds `item` behind every queued item of the same priority, in at most sixteen steps.
    ///
    /// For a priority with a lane it is one, see the [module](self).
    ///
    /// # Errors
    ///
    /// [`Full`] hands `item` back; the queue is unchanged.
    #[inline(always)]
    pub fn push(&mut self, priority: i64, item: T) -> Result<Handle, Full<T>> {
        let lane = self.head.nearest_lane(priority);
        if self.head.priorities[lane] == priority {
            enqueue(self.head, self.nodes, lane, priority, item)
        } else {
            push_unfamiliar(self.head, self.nodes, priority, item)
        }
    }

    /// Removes the most urgent item, the oldest of several, in at most sixteen steps.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        self.pop_at_most(i64::MAX)
    }

    /// Removes the most urgent item if its priority is `limit` or a lower value, in at
    /// most sixteen steps.
    #[inline(always)]
    pub fn pop_at_most(&mut self, limit: i64) -> Option<T> {
        if self.head.index.first().is_some() {
            pop_either(self.head, self.nodes, limit)
        } else {
            pop_lane(self.head, self.nodes, limit)
        }
    }

    /// Removes the item that is queued longest, whatever its priority, in at most sixteen
    /// steps.
    pub fn pop_front(&mut self) -> Option<T> {
        let slot = self.oldest()?;
        take(self.head, self.nodes, slot)
    }

    /// Removes the entry that `handle` names, in at most sixteen steps; `None` if it has left.
    pub fn remove(&mut self, handle: Handle) -> Option<T> {
        self.node(handle)?;
        take(self.head, self.nodes, handle.slot)
    }

    /// Removes items from the most urgent one on, up to and including priority `limit`.
    ///
    /// Each step is a [`pop_at_most`](Self::pop_at_most). There are at most as many steps as there
    /// are entries now; what is not taken stays queued.
    pub const fn drain_up_to(&mut self, limit: i64) -> Drain<'_, 'a, T> {
        let left = self.head.len();
        Drain { queue: self, limit, left }
    }

    /// Removes items from the most urgent one on that are more urgent than `priority`.
    ///
    /// As [`drain_up_to`](Self::drain_up_to), without the entries of that very priority.
    pub const fn drain_more_urgent_than(&mut self, priority: i64) -> Drain<'_, 'a, T> {
        match priority.checked_sub(1) {
            Some(limit) => self.drain_up_to(limit),
            None => Drain { queue: self, limit: i64::MIN, left: 0 },
        }
    }

    /// The item that `handle` names, in `O(1)`, for a change in place; `None` if it has left.
    pub fn get_mut(&mut self, handle: Handle) -> Option<&mut T> {
        self.node(handle)?;
        self.nodes.get_mut(handle.slot as usize)?.item.as_mut()
    }

    /// The item that `handle` names, in `O(1)`; `None` if it has left.
    pub fn get(&self, handle: Handle) -> Option<&T> {
        self.node(handle)?.item.as_ref()
    }

    /// The handle of the entry at `index` of the nodes, in `O(1)`; `None` if there is none.
    pub fn handle_at(&self, index: u32) -> Option<Handle> {
        let handle = Handle { slot: index, generation: self.nodes.get(index as usize)?.generation };
        self.node(handle).map(|_| handle)
    }

    /// The priority of the entry that `handle` names, in `O(1)`; `None` if it has left.
    pub fn priority(&self, handle: Handle) -> Option<i64> {
        Some(self.node(handle)?.priority)
    }

    /// The entry that [`pop`](Self::pop) would remove, in `O(1)`.
    pub fn peek(&self) -> Option<Entry<'_, T>> {
        let lane = self.head.first_lane();
        match self.head.index.first() {
            Some(slot) if precedes_lane(self.head, self.nodes, slot) => self.entry(slot),
            _ if lane < LANES => self.entry(self.head.ends[lane].first),
            _ => None,
        }
    }

    /// The entry that [`pop_front`](Self::pop_front) would remove, in `O(1)`.
    pub fn peek_front(&self) -> Option<Entry<'_, T>> {
        self.entry(self.oldest()?)
    }

    /// The entry in that slot if one is queued there, in `O(1)`.
    pub fn at_slot(&self, slot: u32) -> Option<Entry<'_, T>> {
        let handle = Handle { slot, generation: self.nodes.get(slot as usize)?.generation };
        self.node(handle)?;
        self.entry(slot)
    }

    /// All entries in order of arrival, each in `O(1)`.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter { head: self.head, nodes: self.nodes, cursor: self.cursor() }
    }

    /// A cursor before the oldest entry, for a walk that removes what it finds. `O(1)`.
    pub fn cursor(&self) -> Cursor {
        let mut lists = [NONE; LANES + 1];
        for (list, slot) in lists.iter_mut().enumerate() {
            if self.head.has_entries(list) {
                *slot = self.head.ends[list].first;
            }
        }
        Cursor { lists, left: self.head.len() }
    }

    /// The entry behind `cursor`, which moves on, in `O(1)`.
    pub fn advance(&self, cursor: &mut Cursor) -> Option<Entry<'_, T>> {
        cursor.advance(self.head, self.nodes)
    }

    /// Entries in the queue, in `O(1)`.
    pub const fn len(&self) -> usize {
        self.head.len()
    }

    /// Entries that fit at the same time, in `O(1)`.
    pub const fn capacity(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing is queued, in `O(1)`.
    pub const fn is_empty(&self) -> bool {
        self.head.is_empty()
    }

    /// Whether the next push fails, in `O(1)`.
    pub const fn is_full(&self) -> bool {
        self.len() >= self.capacity()
    }

    fn node(&self, handle: Handle) -> Option<&Node<T>> {
        let node = self.nodes.get(handle.slot as usize)?;
        // Nodes from `fresh` on may hold what an earlier head left behind.
        let named = handle.slot < self.head.fresh && handle.generation == node.generation;
        if named && node.item.is_some() { Some(node) } else { None }
    }

    fn entry(&self, slot: u32) -> Option<Entry<'_, T>> {
        entry(self.nodes, slot)
    }

    /// The slot of the entry that waits longest: the oldest of the fronts of all lists.
    fn oldest(&self) -> Option<u32> {
        let mut oldest = None;
        let mut arrival = u64::MAX;
        let mut lists = self.head.waiting;
        while lists != 0 {
            let list = lists.trailing_zeros() as usize;
            lists &= lists - 1;
            let slot = self.head.ends[list].first;
            let node = self.nodes.get(slot as usize)?;
            if node.arrival < arrival {
                arrival = node.arrival;
                oldest = Some(slot);
            }
        }
        oldest
    }
}

// Free functions over the two parts: the fast paths above need no view in memory to call them.

/// Adds an entry behind those of a list.
#[inline(always)]
fn enqueue<T>(
    head: &mut Head,
    nodes: &mut [Node<T>],
    list: usize,
    priority: i64,
    item: T,
) -> Result<Handle, Full<T>> {
    let reused = head.free != NONE;
    let slot = if reused { head.free } else { head.fresh };
    let Some(node) = nodes.get_mut(slot as usize) else {
        return Err(Full(item));
    };
    if reused {
        head.free = node.next;
    } else {
        head.fresh = slot + 1;
        node.cell.forget();
    }
    let last = head.ends[list].last;
    node.priority = priority;
    node.arrival = head.arrivals;
    node.previous = last;
    node.generation = node.generation.wrapping_add(1);
    node.item = Some(item);
    let handle = Handle { slot, generation: node.generation };
    head.arrivals = head.arrivals.wrapping_add(1);
    head.len = head.len.wrapping_add(1);
    head.ends[list].last = slot;
    if let Some(last) = nodes.get_mut(last as usize) {
        last.next = slot;
    } else {
        head.ends[list].first = slot;
        head.waiting |= 1 << list;
    }
    Ok(handle)
}

/// Adds an entry of a priority without a lane: in a new lane, else in the index.
#[inline(never)]
fn push_unfamiliar<T>(
    head: &mut Head,
    nodes: &mut [Node<T>],
    priority: i64,
    item: T,
) -> Result<Handle, Full<T>> {
    if head.waiting & ALL_LANES != ALL_LANES
        && let Some(lane) = head.new_lane(priority)
    {
        return enqueue(head, nodes, lane, priority, item);
    }
    let handle = enqueue(head, nodes, SPILL, priority, item)?;
    // This fails only for nodes of another queue; the list keeps the entry then.
    let _ = head.index.insert(nodes, handle.slot, key(priority));
    Ok(handle)
}

/// Removes the most urgent entry of those in lanes.
#[inline(always)]
fn pop_lane<T>(head: &mut Head, nodes: &mut [Node<T>], limit: i64) -> Option<T> {
    let lane = head.first_lane();
    if *head.priorities.get(lane)? > limit {
        return None;
    }
    let ends = head.ends.get_mut(lane)?;
    let slot = ends.first;
    let node = nodes.get_mut(slot as usize)?;
    if slot == ends.last {
        ends.last = NONE;
        head.waiting &= head.waiting - 1;
    } else {
        ends.first = node.next;
    }
    vacate(head, node, slot)
}

/// Removes the most urgent entry while there are entries in the index.
#[inline(never)]
fn pop_either<T>(head: &mut Head, nodes: &mut [Node<T>], limit: i64) -> Option<T> {
    let slot = head.index.first()?;
    if !precedes_lane(head, nodes, slot) {
        return pop_lane(head, nodes, limit);
    }
    if head.index.first_key() > key(limit) {
        return None;
    }
    take(head, nodes, slot)
}

/// Whether the first entry of the index comes before the first of all lanes, if there is one.
#[inline]
fn precedes_lane<T>(head: &Head, nodes: &[Node<T>], slot: u32) -> bool {
    let lane = head.first_lane();
    let (Some(&priority), Some(ends)) = (head.priorities.get(lane), head.ends.get(lane)) else {
        return true;
    };
    if head.index.first_key() == key(priority) {
        came_before(nodes, slot, ends.first)
    } else {
        head.index.first_key() < key(priority)
    }
}

fn came_before<T>(nodes: &[Node<T>], a: u32, b: u32) -> bool {
    match (nodes.get(a as usize), nodes.get(b as usize)) {
        (Some(a), Some(b)) => a.arrival < b.arrival,
        _ => false,
    }
}

/// Removes a queued entry from its list and from the index.
#[inline]
fn take<T>(head: &mut Head, nodes: &mut [Node<T>], slot: u32) -> Option<T> {
    let node = nodes.get(slot as usize)?;
    let (next, previous, spilled) = (node.next, node.previous, node.cell.is_indexed());
    let list = if spilled { SPILL } else { head.nearest_lane(node.priority) };
    let ends = &mut head.ends[list];
    if slot == ends.first {
        if slot == ends.last {
            ends.last = NONE;
            head.waiting &= !(1 << list);
        } else {
            ends.first = next;
        }
    } else {
        nodes.get_mut(previous as usize)?.next = next;
        if slot == ends.last {
            ends.last = previous;
        } else {
            nodes.get_mut(next as usize)?.previous = previous;
        }
    }
    if spilled {
        head.index.remove(nodes, slot)?;
    }
    vacate(head, nodes.get_mut(slot as usize)?, slot)
}

/// Gives the node of an entry back that is in no list any more.
#[inline(always)]
fn vacate<T>(head: &mut Head, node: &mut Node<T>, slot: u32) -> Option<T> {
    node.next = head.free;
    head.free = slot;
    head.len = head.len.wrapping_sub(1);
    node.item.take()
}

/// A number of the order of `priority`.
const fn key(priority: i64) -> u64 {
    priority as u64 ^ 1 << 63
}

fn entry<T>(nodes: &[Node<T>], slot: u32) -> Option<Entry<'_, T>> {
    let node = nodes.get(slot as usize)?;
    let handle = Handle { slot, generation: node.generation };
    Some(Entry { handle, priority: node.priority, item: node.item.as_ref()? })
}

#[cfg(test)]
#[path = "queue_tests.rs"]
mod tests;
