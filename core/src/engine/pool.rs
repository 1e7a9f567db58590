//! The receive pool of a connection: which parts of it are taken, and by whom.
//!
//! A pool is covered without gaps by slices, each free or busy. A busy slice is held by the bus, for a
//! message that waits or a query that is answered, by the user, to whom its offset was reported, or by
//! both; when nobody holds it, it is free again and merges with free neighbours. Nothing here touches
//! the pool's memory.
//!
//! The [`PoolHead`] of a connection and a slice of [`SliceRecord`]s make a [`Pool`] to work with.
//! Free slices are indexed by size, all slices by offset, so every operation costs `O(log n)` in the
//! number of records. A pool of `n` records has at most `n` slices, the free ones counted.

use core::fmt;

use crate::abi::Errno;
use crate::slots::{FreeList, Slot, SlotId, Slotted};
use crate::tree::{Link, Linked, Root, TreeError};

/// Offsets and sizes of slices are multiples of this many bytes.
pub const GRANULE: u64 = 8;

const BY_OFFSET: usize = 0;
const BY_SIZE: usize = 1;

/// The fixed part of a pool. It belongs to one slice of records from [`Pool::create`] on.
#[derive(Debug)]
pub struct PoolHead {
    size: u64,
    accounted_size: u64,
    busy: u32,
    slots: FreeList,
    by_offset: Root<BY_OFFSET>,
    by_size: Root<BY_SIZE>,
    /// A free slice that was not merged with the one behind it yet, which is the only other free one: what comes next
    /// is cut from the front of both, as it would be from the merged one, without touching an index.
    front: u32,
}

/// No record.
const NONE: u32 = u32::MAX;

/// One slice of a pool, or room to describe one.
#[derive(Debug)]
pub struct SliceRecord {
    slot: Slot,
    /// Among all slices.
    by_offset: Link,
    /// Among the free ones; not linked while the slice is busy.
    by_size: Link,
    offset: u64,
    size: u64,
    /// Held by the bus.
    internal: bool,
    /// Held by the user.
    user: bool,
    accounted: bool,
}

/// A pool to work with: its head and its records.
#[derive(Debug)]
pub struct Pool<'a> {
    head: &'a mut PoolHead,
    records: &'a mut [SliceRecord],
}

/// Names one busy slice until nobody holds it; of no effect after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct SliceId(SlotId);

/// A busy slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Slice {
    /// Names the slice.
    pub id: SliceId,
    /// Bytes from the start of the pool, a multiple of [`GRANULE`].
    pub offset: u64,
    /// Bytes, a multiple of [`GRANULE`].
    pub size: u64,
}

/// Why a slice was not made, published or given back; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum PoolError {
    /// No free slice is that large, or the records of the pool are used up.
    Exhausted,
    /// A slice of no bytes, or a pool whose size is 0 or not a multiple of [`GRANULE`].
    Size,
    /// No slice starts there that the user holds.
    NotPublished,
    /// The slice is free already.
    Stale,
    /// The records are not those that the pool was made with.
    Corrupt,
}

impl PoolError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Exhausted => Errno::EXFULL,
            Self::Size => Errno::EINVAL,
            Self::NotPublished | Self::Stale => Errno::ENXIO,
            Self::Corrupt => Errno::EIO,
        }
    }
}

impl fmt::Display for PoolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Exhausted => "pool has no room for the slice",
            Self::Size => "size of the slice or pool is not usable",
            Self::NotPublished => "no published slice starts at that offset",
            Self::Stale => "slice is free already",
            Self::Corrupt => "records are not those of the pool",
        })
    }
}

impl core::error::Error for PoolError {}

impl From<TreeError> for PoolError {
    fn from(_: TreeError) -> Self {
        Self::Corrupt
    }
}

impl PoolHead {
    /// The head of no pool: nothing can be allocated.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            size: 0,
            accounted_size: 0,
            busy: 0,
            slots: FreeList::new(),
            by_offset: Root::new(),
            by_size: Root::new(),
            front: NONE,
        }
    }

    /// Bytes of the whole pool.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of the accounted slices that the bus still holds: messages not yet received.
    #[must_use]
    pub const fn accounted_size(&self) -> u64 {
        self.accounted_size
    }
}

impl Default for PoolHead {
    fn default() -> Self {
        Self::new()
    }
}

impl SliceRecord {
    /// Room to describe one slice.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slot: Slot::new(),
            by_offset: Link::new(),
            by_size: Link::new(),
            offset: 0,
            size: 0,
            internal: false,
            user: false,
            accounted: false,
        }
    }

    const fn is_free(&self) -> bool {
        !self.internal && !self.user
    }
}

impl Default for SliceRecord {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for SliceRecord {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Linked<BY_OFFSET> for SliceRecord {
    fn link(&self) -> &Link {
        &self.by_offset
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.by_offset
    }
}

impl Linked<BY_SIZE> for SliceRecord {
    fn link(&self) -> &Link {
        &self.by_size
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.by_size
    }
}

impl<'a> Pool<'a> {
    /// Makes a pool of `size` bytes, all free, whatever head and records were used for before. `O(1)`.
    ///
    /// # Errors
    ///
    /// [`PoolError::Size`]; [`PoolError::Exhausted`] if there is no record at all.
    pub fn create(
        head: &'a mut PoolHead,
        records: &'a mut [SliceRecord],
        size: u64,
    ) -> Result<Self, PoolError> {
        if size == 0 || !size.is_multiple_of(GRANULE) {
            return Err(PoolError::Size);
        }
        if records.is_empty() {
            return Err(PoolError::Exhausted);
        }
        *head = PoolHead { size, ..PoolHead::new() };
        let mut pool = Self { head, records };
        let id = pool.head.slots.allocate(pool.records).ok_or(PoolError::Exhausted)?;
        pool.add(id, 0)?;
        let record = pool.record_mut(id)?;
        (record.size, record.internal, record.user, record.accounted) = (size, false, false, false);
        pool.head.by_size.insert(pool.records, id.index(), |_, other| size.cmp(&other.size))?;
        Ok(pool)
    }

    /// The pool of `head` over `records`, which must be those it was created with.
    pub const fn new(head: &'a mut PoolHead, records: &'a mut [SliceRecord]) -> Self {
        Self { head, records }
    }

    /// Takes `size` bytes, rounded up to [`GRANULE`], for the bus: the front of the smallest free slice
    /// that is large enough. `O(log n)`.
    ///
    /// `accounted` slices count in [`accounted_size`](Self::accounted_size) until the bus releases them:
    /// those of messages do, those of query results do not.
    ///
    /// # Errors
    ///
    /// [`PoolError::Exhausted`], also if a record is missing for the rest of the free slice;
    /// [`PoolError::Size`] if `size` is 0.
    pub fn allocate(&mut self, size: u64, accounted: bool) -> Result<Slice, PoolError> {
        if size == 0 {
            return Err(PoolError::Size);
        }
        let size = size.checked_next_multiple_of(GRANULE).ok_or(PoolError::Exhausted)?;
        let (id, offset) = match self.cut_front(size)? {
            Some(cut) => cut,
            None => self.cut(size)?,
        };
        let record = self.record_mut(id)?;
        (record.size, record.internal, record.user, record.accounted) = (size, true, false, accounted);
        self.head.busy = self.head.busy.saturating_add(1);
        if accounted {
            self.head.accounted_size = self.head.accounted_size.saturating_add(size);
        }
        Ok(Slice { id: SliceId(id), offset, size })
    }

    /// Cuts `size` bytes from the smallest free slice that is large enough.
    fn cut(&mut self, size: u64) -> Result<(SlotId, u64), PoolError> {
        let index = self
            .head
            .by_size
            .lower_bound(self.records, |_, record| record.size.cmp(&size))
            .ok_or(PoolError::Exhausted)?;
        let free = self.records.get(index as usize).ok_or(PoolError::Corrupt)?;
        let (offset, rest) = (free.offset, free.size.checked_sub(size).ok_or(PoolError::Corrupt)?);
        let id = if rest > 0 {
            // What can fail comes first. The free slice stays where it is among all slices, and often by size too.
            let id = self.head.slots.allocate(self.records).ok_or(PoolError::Exhausted)?;
            let free = self.records.get_mut(index as usize).ok_or(PoolError::Corrupt)?;
            free.offset = offset.saturating_add(size);
            self.resize(index, rest)?;
            self.add(id, offset)?;
            id
        } else {
            self.head.by_size.remove(self.records, index)?;
            self.head.slots.id_at(self.records, index).ok_or(PoolError::Corrupt)?
        };
        Ok((id, offset))
    }

    /// Cuts `size` bytes from the front of the only two free slices, if they stand side by side and not merged yet, and
    /// something is left behind. Otherwise they are merged.
    fn cut_front(&mut self, size: u64) -> Result<Option<(SlotId, u64)>, PoolError> {
        let index = self.head.front;
        if index == NONE {
            return Ok(None);
        }
        let behind = self.head.by_size.first().ok_or(PoolError::Corrupt)?;
        let both = self.records.get_disjoint_mut([index as usize, behind as usize]);
        let [front, behind] = both.map_err(|_| PoolError::Corrupt)?;
        let offset = front.offset;
        let rest = front.size.saturating_add(behind.size).checked_sub(size).filter(|rest| *rest > 0);
        let Some(rest) = rest else {
            self.merge_front()?;
            return Ok(None);
        };
        (behind.offset, behind.size) = (offset.saturating_add(size), rest);
        self.head.front = NONE;
        let id = self.head.slots.id_at(self.records, index).ok_or(PoolError::Corrupt)?;
        Ok(Some((id, offset)))
    }

    /// Merges the front with the free slice behind it.
    fn merge_front(&mut self) -> Result<(), PoolError> {
        let index = core::mem::replace(&mut self.head.front, NONE);
        let Some(id) = self.head.slots.id_at(self.records, index) else {
            return Ok(());
        };
        let front = self.record(id)?;
        let (offset, size) = (front.offset, front.size);
        self.remove(id)?;
        let behind = self.head.by_size.first().ok_or(PoolError::Corrupt)?;
        // It is the only one, so no order by size can be wrong.
        let behind = self.records.get_mut(behind as usize).ok_or(PoolError::Corrupt)?;
        (behind.offset, behind.size) = (offset, behind.size.saturating_add(size));
        Ok(())
    }

    /// Gives the slice to the user as well, who may [`free`](Self::free) it from then on. `O(1)`.
    ///
    /// A slice can be published again after the user freed it, while the bus holds it.
    ///
    /// # Errors
    ///
    /// [`PoolError::Stale`].
    pub fn publish(&mut self, id: SliceId) -> Result<(), PoolError> {
        self.busy_mut(id)?.user = true;
        Ok(())
    }

    /// Leaves the slice to the user alone: [`publish`](Self::publish) and [`release`](Self::release) in one, in `O(1)`.
    ///
    /// # Errors
    ///
    /// [`PoolError::Stale`], also if the bus has released the slice before.
    pub fn hand_over(&mut self, id: SliceId) -> Result<(), PoolError> {
        self.leave(id, true)
    }

    /// Makes a slice free that the bus holds, and perhaps the user: [`hand_over`](Self::hand_over) and [`free`](Self::free) in
    /// one. `O(log n)`.
    ///
    /// # Errors
    ///
    /// [`PoolError::Stale`], also if the bus has released the slice before.
    pub fn give_up(&mut self, id: SliceId) -> Result<(), PoolError> {
        self.leave(id, false)?;
        self.reclaim(id.0)
    }

    /// The bus, which holds the slice, holds it no longer; whether the user does is told anew.
    #[inline]
    fn leave(&mut self, id: SliceId, user: bool) -> Result<(), PoolError> {
        let record = self.busy_mut(id)?;
        if !record.internal {
            return Err(PoolError::Stale);
        }
        (record.internal, record.user) = (false, user);
        let (size, accounted) = (record.size, record.accounted);
        self.settle(size, accounted);
        Ok(())
    }

    /// The bus holds the slice no longer; it is free unless the user holds it. `O(log n)`.
    ///
    /// # Errors
    ///
    /// [`PoolError::Stale`], also if the bus has released the slice before.
    pub fn release(&mut self, id: SliceId) -> Result<(), PoolError> {
        let record = self.busy_mut(id)?;
        if !record.internal {
            return Err(PoolError::Stale);
        }
        record.internal = false;
        let (size, accounted) = (record.size, record.accounted);
        self.settle(size, accounted);
        self.reclaim(id.0)
    }

    /// The user gives back what starts at `offset`; it is free unless the bus holds it. `O(log n)`.
    ///
    /// The end of the pool stands for no slice: giving that back has no effect.
    ///
    /// # Errors
    ///
    /// [`PoolError::NotPublished`] for anything but the start of a slice that the user holds.
    pub fn free(&mut self, offset: u64) -> Result<(), PoolError> {
        if offset == self.head.size {
            return Ok(());
        }
        let id = self.starting_at(offset).ok_or(PoolError::NotPublished)?;
        let record = self.record_mut(id)?;
        if !record.user {
            return Err(PoolError::NotPublished);
        }
        record.user = false;
        self.reclaim(id)
    }

    /// The busy slice that starts at `offset`, in `O(log n)`.
    #[must_use]
    pub fn find(&self, offset: u64) -> Option<Slice> {
        self.get(SliceId(self.starting_at(offset)?))
    }

    /// The slice that starts at `offset`, if the user holds it. `O(log n)`.
    #[must_use]
    pub fn published(&self, offset: u64) -> Option<Slice> {
        let id = self.starting_at(offset)?;
        self.record(id).ok().filter(|record| record.user).and_then(|_| self.get(SliceId(id)))
    }

    /// The slice `id`, in `O(1)`; `None` once it is free.
    #[must_use]
    pub fn get(&self, id: SliceId) -> Option<Slice> {
        let record = self.head.slots.get(self.records, id.0)?;
        if record.is_free() {
            return None;
        }
        Some(Slice { id, offset: record.offset, size: record.size })
    }

    /// Bytes of the whole pool.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.head.size
    }

    /// Bytes of the accounted slices that the bus still holds: messages not yet received. `O(1)`.
    #[must_use]
    pub const fn accounted_size(&self) -> u64 {
        self.head.accounted_size
    }

    /// Bytes of the largest free slice, in `O(log n)`.
    #[must_use]
    pub fn largest_free(&self) -> u64 {
        let front = self.records.get(self.head.front as usize).map_or(0, |record| record.size);
        front.saturating_add(self.largest_indexed())
    }

    /// Slices that somebody holds, in `O(1)`.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.head.busy as usize
    }

    /// Most slices that the pool can have, free ones counted.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody holds any slice, in `O(1)`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.head.busy == 0
    }

    /// Bytes of the largest slice in the index of free ones.
    fn largest_indexed(&self) -> u64 {
        let largest = self.head.by_size.last(self.records);
        largest.and_then(|index| self.records.get(index as usize)).map_or(0, |record| record.size)
    }

    fn starting_at(&self, offset: u64) -> Option<SlotId> {
        let index = self.head.by_offset.find(self.records, |_, record| record.offset.cmp(&offset))?;
        self.head.slots.id_at(self.records, index)
    }

    fn record(&self, id: SlotId) -> Result<&SliceRecord, PoolError> {
        self.head.slots.get(self.records, id).ok_or(PoolError::Corrupt)
    }

    fn record_mut(&mut self, id: SlotId) -> Result<&mut SliceRecord, PoolError> {
        self.head.slots.get_mut(self.records, id).ok_or(PoolError::Corrupt)
    }

    fn busy_mut(&mut self, id: SliceId) -> Result<&mut SliceRecord, PoolError> {
        let record = self.head.slots.get_mut(self.records, id.0).ok_or(PoolError::Stale)?;
        if record.is_free() { Err(PoolError::Stale) } else { Ok(record) }
    }

    /// Counts a slice no longer that the bus has released.
    const fn settle(&mut self, size: u64, accounted: bool) {
        if accounted {
            self.head.accounted_size = self.head.accounted_size.saturating_sub(size);
        }
    }

    /// Places a record that was just taken among all slices.
    fn add(&mut self, id: SlotId, offset: u64) -> Result<(), PoolError> {
        let record = self.record_mut(id)?;
        record.offset = offset;
        (record.by_offset, record.by_size) = (Link::new(), Link::new());
        self.head.by_offset.insert(self.records, id.index(), |_, other| offset.cmp(&other.offset))?;
        Ok(())
    }

    /// Makes a slice free that nobody holds, and one with its free neighbours.
    fn reclaim(&mut self, id: SlotId) -> Result<(), PoolError> {
        let record = self.record(id)?;
        if !record.is_free() {
            return Ok(());
        }
        let (offset, size) = (record.offset, record.size);
        self.head.busy = self.head.busy.saturating_sub(1);
        if self.head.front != NONE {
            self.merge_front()?;
        }
        let right = self.head.by_offset.next(self.records, id.index());
        let right = right.and_then(|index| self.free_at(index));
        if right.is_some() && self.head.by_size.len() == 1 {
            self.head.front = id.index();
            // It keeps its record but not the handle that its users had.
            return self.head.slots.renew(self.records, id).map(|_| ()).ok_or(PoolError::Corrupt);
        }
        let left = self.head.by_offset.prev(self.records, id.index());
        let left = left.and_then(|index| self.free_at(index));
        match (left, right) {
            (Some((left, before)), Some((right, behind))) => {
                self.head.by_size.remove(self.records, right.index())?;
                self.remove(right)?;
                self.remove(id)?;
                self.resize(left.index(), before.saturating_add(size).saturating_add(behind))
            }
            (Some((left, before)), None) => {
                self.remove(id)?;
                self.resize(left.index(), before.saturating_add(size))
            }
            (None, Some((right, behind))) => {
                self.remove(id)?;
                self.record_mut(right)?.offset = offset;
                self.resize(right.index(), size.saturating_add(behind))
            }
            (None, None) => {
                self.head.by_size.insert(self.records, id.index(), |_, other| size.cmp(&other.size))?;
                // The free slice keeps its record but not the handle that its users had.
                self.head.slots.renew(self.records, id).map(|_| ()).ok_or(PoolError::Corrupt)
            }
        }
    }

    /// Gives a free slice another size. It moves among the others only if their order asks for it.
    fn resize(&mut self, index: u32, size: u64) -> Result<(), PoolError> {
        let record = self.records.get_mut(index as usize).ok_or(PoolError::Corrupt)?;
        let grows = size > record.size;
        record.size = size;
        let by_size = &mut self.head.by_size;
        let beside =
            if grows { by_size.next(self.records, index) } else { by_size.prev(self.records, index) };
        let beside = beside.and_then(|beside| self.records.get(beside as usize));
        if beside.is_some_and(|beside| if grows { beside.size <= size } else { size < beside.size }) {
            by_size.remove(self.records, index)?;
            by_size.insert(self.records, index, |_, other| size.cmp(&other.size))?;
        }
        Ok(())
    }

    /// The slice at `index` and its size, if it is free.
    fn free_at(&self, index: u32) -> Option<(SlotId, u64)> {
        let id = self.head.slots.id_at(self.records, index)?;
        let record = self.head.slots.get(self.records, id)?;
        if record.is_free() { Some((id, record.size)) } else { None }
    }

    /// Removes the record of a slice that is not among the free ones.
    fn remove(&mut self, id: SlotId) -> Result<(), PoolError> {
        self.head.by_offset.remove(self.records, id.index())?;
        self.head.slots.free(self.records, id);
        Ok(())
    }
}

#[cfg(test)]
#[path = "pool_tests.rs"]
mod tests;
