//! Free records of a slice: which slots are taken, and handles that know when theirs was given back.
//!
//! A [`FreeList`] and the [`Slot`] of every record of one slice form the list. Allocating and freeing
//! take constant time; records that were never used need no preparation.
//!
//! ```
//! use kdbus_core::slots::{FreeList, Slot};
//!
//! let mut slots = [const { Slot::new() }; 2];
//! let mut list = FreeList::new();
//! let first = list.allocate(&mut slots).unwrap();
//! assert!(list.free(&mut slots, first));
//! let second = list.allocate(&mut slots).unwrap();
//! assert_eq!(second.index(), first.index());
//! assert!(!list.free(&mut slots, first), "the slot has a new user");
//! ```

use core::fmt;

const NONE: u32 = u32::MAX;

/// Which records of one slice are free.
///
/// Every method takes the slice of records, which must be the same each time. A new list over
/// records that were used before has them all free, and old handles stay without effect.
#[derive(Debug)]
pub struct FreeList {
    free: u32,
    /// The first record that this list never gave out.
    fresh: u32,
    len: u32,
}

/// The part of a record that the list needs.
#[derive(Debug)]
pub struct Slot {
    /// Odd while the record is taken; one use is told from another by it.
    generation: u32,
    next: u32,
}

/// A record with a [`Slot`].
pub trait Slotted {
    /// The slot of this record.
    fn slot(&self) -> &Slot;

    /// The slot of this record, to change.
    fn slot_mut(&mut self) -> &mut Slot;
}

/// Names one record from its allocation until it is freed; of no effect after that.
///
/// Uses of one record are told apart by a count of 31 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    /// The position of the record in its slice.
    pub const fn index(self) -> u32 {
        self.index
    }

    /// Which use of the record this is, to send along with the index.
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Debug for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.index, self.generation)
    }
}

impl Slot {
    /// The slot of a free record.
    pub const fn new() -> Self {
        Self { generation: 0, next: NONE }
    }

    /// Whether the record is taken.
    pub const fn is_taken(&self) -> bool {
        self.generation & 1 == 1
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for Slot {
    fn slot(&self) -> &Slot {
        self
    }

    fn slot_mut(&mut self) -> &mut Slot {
        self
    }
}

impl FreeList {
    /// A list that has all records free.
    pub const fn new() -> Self {
        Self { free: NONE, fresh: 0, len: 0 }
    }

    /// Takes a free record, in `O(1)`; `None` if there is none.
    pub fn allocate<N: Slotted>(&mut self, nodes: &mut [N]) -> Option<SlotId> {
        let reused = self.free != NONE;
        let index = if reused { self.free } else { self.fresh };
        if index == NONE {
            return None;
        }
        let slot = nodes.get_mut(index as usize)?.slot_mut();
        if reused {
            self.free = slot.next;
        } else {
            self.fresh = index + 1;
        }
        // Odd, and another one than before even if an earlier list never got the record back.
        slot.generation = slot.generation.wrapping_add(1) | 1;
        self.len = self.len.wrapping_add(1);
        Some(SlotId { index, generation: slot.generation })
    }

    /// Gives the record `id` back, in `O(1)`; whether it was still taken.
    pub fn free<N: Slotted>(&mut self, nodes: &mut [N], id: SlotId) -> bool {
        let Some(node) = self.get_mut(nodes, id) else {
            return false;
        };
        let slot = node.slot_mut();
        slot.generation = slot.generation.wrapping_add(1);
        slot.next = self.free;
        self.free = id.index;
        self.len = self.len.wrapping_sub(1);
        true
    }

    /// Keeps the record `id` taken under another handle, in `O(1)`; `None` if it was freed.
    pub fn renew<N: Slotted>(&mut self, nodes: &mut [N], id: SlotId) -> Option<SlotId> {
        let slot = self.get_mut(nodes, id)?.slot_mut();
        slot.generation = slot.generation.wrapping_add(2);
        Some(SlotId { index: id.index, generation: slot.generation })
    }

    /// The record `id`, in `O(1)`; `None` once it was freed.
    #[inline]
    pub fn get<'n, N: Slotted>(&self, nodes: &'n [N], id: SlotId) -> Option<&'n N> {
        nodes.get(id.index as usize).filter(|node| self.is_live(id, node.slot()))
    }

    /// The record `id` to change, in `O(1)`; `None` once it was freed.
    #[inline]
    pub fn get_mut<'n, N: Slotted>(&self, nodes: &'n mut [N], id: SlotId) -> Option<&'n mut N> {
        nodes.get_mut(id.index as usize).filter(|node| self.is_live(id, node.slot()))
    }

    /// The handle of the record at `index` if it is taken, in `O(1)`.
    #[inline]
    pub fn id_at<N: Slotted>(&self, nodes: &[N], index: u32) -> Option<SlotId> {
        let slot = nodes.get(index as usize)?.slot();
        let id = SlotId { index, generation: slot.generation };
        self.is_live(id, slot).then_some(id)
    }

    /// Whether `slot`, at the index of `id`, is taken under that handle.
    #[inline]
    const fn is_live(&self, id: SlotId, slot: &Slot) -> bool {
        id.index < self.fresh && id.generation & 1 == 1 && slot.generation == id.generation
    }

    /// Records that are taken, in `O(1)`.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether no record is taken, in `O(1)`.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Default for FreeList {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    #[test]
    fn every_record_is_given_out_once() {
        let mut slots = [const { Slot::new() }; 5];
        let mut list = FreeList::new();
        let ids: Vec<SlotId> = core::iter::from_fn(|| list.allocate(&mut slots)).collect();
        let mut indices: Vec<u32> = ids.iter().map(|id| id.index()).collect();
        indices.sort_unstable();
        assert_eq!(indices, [0, 1, 2, 3, 4]);
        assert_eq!(list.len(), 5);
        assert!(list.free(&mut slots, ids[2]));
        assert!(list.free(&mut slots, ids[0]));
        let mut again =
            [list.allocate(&mut slots).unwrap().index(), list.allocate(&mut slots).unwrap().index()];
        again.sort_unstable();
        assert_eq!(again, [ids[0].index(), ids[2].index()]);
        assert_eq!(list.allocate(&mut slots), None);
    }

    #[test]
    fn a_freed_handle_is_of_no_effect() {
        let mut slots = [const { Slot::new() }; 1];
        let mut list = FreeList::new();
        let old = list.allocate(&mut slots).unwrap();
        assert!(list.free(&mut slots, old));
        assert!(!list.free(&mut slots, old));
        assert!(list.get(&slots, old).is_none());
        assert_eq!(list.id_at(&slots, 0), None);
        let new = list.allocate(&mut slots).unwrap();
        assert!(!list.free(&mut slots, old));
        assert_eq!(list.id_at(&slots, 0), Some(new));
        assert_eq!(list.id_at(&slots, 1), None);
    }

    #[test]
    fn a_renewed_record_has_one_handle_only() {
        let mut slots = [const { Slot::new() }; 1];
        let mut list = FreeList::new();
        let old = list.allocate(&mut slots).unwrap();
        let new = list.renew(&mut slots, old).unwrap();
        assert!(list.get(&slots, old).is_none());
        assert_eq!(list.renew(&mut slots, old), None);
        assert!(list.free(&mut slots, new));
    }

    #[test]
    fn a_new_list_does_not_know_the_handles_of_the_old_one() {
        let mut slots = [const { Slot::new() }; 2];
        let mut list = FreeList::new();
        let old = [list.allocate(&mut slots).unwrap(), list.allocate(&mut slots).unwrap()];
        assert!(list.free(&mut slots, old[1]));
        let mut list = FreeList::new();
        assert!(list.get(&slots, old[0]).is_none());
        let new = [list.allocate(&mut slots).unwrap(), list.allocate(&mut slots).unwrap()];
        assert!(old.iter().all(|&id| list.get(&slots, id).is_none()));
        assert!(new.iter().all(|&id| list.get(&slots, id).is_some()));
    }
}
