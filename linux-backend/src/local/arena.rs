//! Where messages lie that came by lane, until the application gives them back.
//!
//! Memory of this process' own: blocks of one size for the small messages, taken and given back in constant time, and
//! a pool for each lane for the others. What comes by one lane thus never takes the room of what comes by another.
#![allow(unsafe_code)]

use core::cell::RefCell;

use kdbus_core::engine::pool::{Pool, PoolHead, SliceId, SliceRecord};
use rustix::io::Errno;

use super::block::Block;
use super::map::Pages;
use super::{Gate, gate};

/// Bytes of a block.
pub(super) const BLOCK: u64 = 512;
/// How often a pool holds what its lane does.
pub(super) const LANES: u64 = 2;

/// A range that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes from the arena's start, a multiple of 8.
    pub(super) offset: u64,
    /// Bytes, a multiple of 8.
    pub(super) size: u64,
    /// In a pool; `None` for a block.
    slice: Option<SliceId>,
}

impl Held {
    /// Whether it takes room of its lane's pool.
    pub(super) const fn is_in_pool(&self) -> bool {
        self.slice.is_some()
    }
}

/// Who holds a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Holders {
    queue: bool,
    user: bool,
}

/// The memory and who has which part of it.
#[derive(Debug)]
pub(super) struct Arena {
    pages: Pages,
    books: RefCell<Books>,
    _gate: Gate,
}

#[derive(Debug)]
struct Books {
    /// Blocks that nobody holds, the one given back last on top.
    free: Block<u32>,
    free_len: usize,
    blocks: Block<Holders>,
    /// Of each lane's pool.
    heads: Block<PoolHead>,
    /// As many for each pool.
    records: Block<SliceRecord>,
    /// Bytes of a pool.
    each: u64,
}

impl Arena {
    /// `blocks` small messages, and for the others `bytes` for each of so many `lanes`, `records` of them at most.
    pub(super) fn new(blocks: usize, lanes: usize, bytes: u64, records: usize) -> Result<Self, Errno> {
        let small = blocks as u64 * BLOCK;
        let large = bytes.saturating_mul(lanes as u64);
        let all = usize::try_from(small.saturating_add(large)).map_err(|_| Errno::NOMEM)?;
        let mut number = 0;
        let free = Block::new(blocks, || {
            number += 1;
            number - 1
        })?;
        let mut books = Books {
            free,
            free_len: blocks,
            blocks: Block::new(blocks, Holders::default)?,
            heads: Block::new(lanes, PoolHead::new)?,
            records: Block::new(records * lanes, SliceRecord::new)?,
            each: bytes,
        };
        for (head, records) in books.heads.iter_mut().zip(books.records.chunks_exact_mut(records)) {
            Pool::create(head, records, bytes).map_err(|_| Errno::INVAL)?;
        }
        let _gate = gate().ok_or(Errno::OPNOTSUPP)?;
        Ok(Self { pages: Pages::fresh(all)?, books: RefCell::new(books), _gate })
    }

    /// Takes `size` bytes, a multiple of 8, of what `lane` may have, and lets `fill` write them; without one, of any
    /// room. The queue holds them if it succeeds, and nobody otherwise. `None` if there is no room.
    pub(super) fn fill<R, E>(
        &self,
        lane: Option<usize>,
        size: u64,
        fill: impl FnOnce(&mut [u64]) -> Result<R, E>,
    ) -> Option<Result<(Held, R), E>> {
        let held = self.books.borrow_mut().take(lane, size)?;
        let range = self.pages.range(held.offset, size)?;
        // SAFETY: the range lies in the pages, which are aligned for words and initialised, and begins at a multiple of
        // 8. The books have just given it to nobody but this call: no other is given any part of it, and `bytes` does
        // not show it, before `fill` has returned.
        let words = unsafe {
            core::slice::from_raw_parts_mut(self.pages.at(range.start).cast::<u64>(), range.len() / 8)
        };
        let filled = fill(words);
        if filled.is_err() {
            self.books.borrow_mut().release(held);
        }
        Some(filled.map(|made| (held, made)))
    }

    /// The `len` bytes at `offset`, if they were shown to the user and not given back.
    ///
    /// Whoever [frees](Self::free) them does not look at them any more, as with a slice of the pool.
    pub(super) fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        self.books.borrow_mut().shows(offset, len).then_some(())?;
        let range = self.pages.range(offset, len)?;
        // SAFETY: the range lies in the pages. It was filled, and the books give it to nobody else while the user holds
        // it; a borrower that lets the range be freed gives up its bytes, which is the contract of `Transport::free`.
        Some(unsafe { core::slice::from_raw_parts(self.pages.at(range.start), range.len()) })
    }

    /// Shows a range to the user, who may free it from now on.
    pub(super) fn show(&self, held: Held) {
        self.books.borrow_mut().show(held);
    }

    /// Shows a range to the user, who alone holds it from now on.
    pub(super) fn hand_over(&self, held: Held) {
        let mut books = self.books.borrow_mut();
        if held.slice.is_none() {
            books.block(held.offset, |holders| *holders = Holders { queue: false, user: true });
            return;
        }
        books.show(held);
        books.release(held);
    }

    /// The queue holds a range no longer.
    pub(super) fn release(&self, held: Held) {
        self.books.borrow_mut().release(held);
    }

    /// The user gives back what starts at `offset`. Returns the lane in whose pool that is. Of no effect for anything else.
    pub(super) fn free(&self, offset: u64) -> Option<usize> {
        self.books.borrow_mut().free(offset)
    }

    /// The largest message that the pool of a lane has room for, in bytes.
    pub(super) fn largest_free(&self, lane: usize) -> u64 {
        self.books.borrow_mut().pool(lane).map_or(0, |pool| pool.largest_free())
    }

    /// Whether the pool of a lane has room for all that a new lane can hold.
    pub(super) fn has_room_for_lane(&self, lane: usize) -> bool {
        let each = self.books.borrow().each;
        self.largest_free(lane) >= each / LANES
    }
}

impl Books {
    fn small(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    fn take(&mut self, lane: Option<usize>, size: u64) -> Option<Held> {
        if size <= BLOCK
            && let Some(last) = self.free_len.checked_sub(1)
        {
            let index = *self.free.get(last)?;
            self.free_len = last;
            *self.blocks.get_mut(index as usize)? = Holders { queue: true, user: false };
            return Some(Held { offset: u64::from(index) * BLOCK, size, slice: None });
        }
        self.take_slice(lane, size)
    }

    /// The same out of a pool.
    #[inline(never)]
    fn take_slice(&mut self, lane: Option<usize>, size: u64) -> Option<Held> {
        let lanes = lane.map_or(0..self.heads.len(), |lane| lane..lane + 1);
        lanes.into_iter().find_map(|lane| {
            let slice = self.pool(lane)?.allocate(size, false).ok()?;
            let offset = self.small() + lane as u64 * self.each + slice.offset;
            Some(Held { offset, size: slice.size, slice: Some(slice.id) })
        })
    }

    /// The pool of a lane.
    fn pool(&mut self, lane: usize) -> Option<Pool<'_>> {
        let each = self.records.len().checked_div(self.heads.len())?;
        let records = self.records.get_mut(lane * each..(lane + 1) * each)?;
        Some(Pool::new(self.heads.get_mut(lane)?, records))
    }

    /// Does something to the slice at an offset behind the blocks: out of the way of those that have a block. Returns the lane in
    /// whose pool that is.
    #[inline(never)]
    fn of_slice(&mut self, offset: u64, change: impl FnOnce(Pool<'_>, u64)) -> Option<usize> {
        let behind = offset.checked_sub(self.small())?;
        let lane = usize::try_from(behind.checked_div(self.each)?).ok()?;
        let at = behind % self.each;
        change(self.pool(lane)?, at);
        Some(lane)
    }

    fn show(&mut self, held: Held) {
        match held.slice {
            Some(slice) => {
                self.of_slice(held.offset, |mut pool, _| {
                    let _ = pool.publish(slice);
                });
            }
            None => self.block(held.offset, |holders| holders.user = true),
        }
    }

    fn release(&mut self, held: Held) {
        match held.slice {
            Some(slice) => {
                self.of_slice(held.offset, |mut pool, _| {
                    let _ = pool.release(slice);
                });
            }
            None => self.block(held.offset, |holders| holders.queue = false),
        }
    }

    fn free(&mut self, offset: u64) -> Option<usize> {
        if offset < self.small() {
            if offset.is_multiple_of(BLOCK) {
                self.block(offset, |holders| holders.user = false);
            }
            return None;
        }
        self.of_slice(offset, |mut pool, at| {
            let _ = pool.free(at);
        })
    }

    /// Changes who holds a block, and takes it back from the last one.
    fn block(&mut self, offset: u64, change: impl FnOnce(&mut Holders)) {
        let index = (offset / BLOCK) as usize;
        let Some(holders) = self.blocks.get_mut(index) else { return };
        let before = *holders;
        change(holders);
        if before != Holders::default()
            && *holders == Holders::default()
            && let Some(place) = self.free.get_mut(self.free_len)
        {
            *place = index as u32;
            self.free_len += 1;
        }
    }

    fn shows(&mut self, offset: u64, len: u64) -> bool {
        if offset >= self.small() {
            let mut shows = false;
            self.of_slice(offset, |pool, at| {
                shows = pool.published(at).is_some_and(|slice| len <= slice.size)
            });
            shows
        } else {
            let block = self.blocks.get((offset / BLOCK) as usize);
            block.is_some_and(|holders| holders.user) && offset % BLOCK + len <= BLOCK
        }
    }
}

#[cfg(all(test, feature = "lanes"))]
mod tests {
    use core::convert::Infallible;

    use super::*;

    /// Fills `size` bytes with a number, and shows them. Where they lie.
    fn put(arena: &Arena, lane: Option<usize>, size: u64, value: u64) -> Option<Held> {
        let filled = arena.fill(lane, size, |words| {
            words.fill(value);
            Ok::<_, Infallible>(())
        });
        let Ok((held, ())) = filled?;
        arena.show(held);
        Some(held)
    }

    #[test]
    fn a_lane_takes_no_room_of_another() {
        let arena = Arena::new(1, 3, 4096, 8).unwrap();
        let block = put(&arena, Some(1), 8, 1).unwrap();
        let first = put(&arena, Some(1), 4096, 2).unwrap();
        assert!(put(&arena, Some(1), 8, 3).is_none(), "it has no more");
        let small = [0, 2].map(|lane| put(&arena, Some(lane), 8, lane as u64).unwrap());
        let rest = put(&arena, None, 4080, 4).unwrap();
        assert!(put(&arena, None, 4096, 5).is_none() && put(&arena, Some(3), 8, 5).is_none());
        for (held, value) in [(block, 1), (first, 2), (small[0], 0), (small[1], 2), (rest, 4)] {
            let bytes = arena.bytes(held.offset, held.size).unwrap();
            assert!(bytes.as_chunks::<8>().0.iter().all(|word| u64::from_ne_bytes(*word) == value));
            assert!(arena.bytes(held.offset, held.size + 4096).is_none());
        }
        arena.release(first);
        assert!(put(&arena, Some(1), 4096, 6).is_none(), "the application has it");
        arena.free(first.offset);
        assert!(arena.bytes(first.offset, 8).is_none());
        assert_eq!(put(&arena, Some(1), 4096, 6).map(|held| held.offset), Some(first.offset));
        for offset in [520, 3 * 4096 + 512, u64::MAX] {
            arena.free(offset);
            assert!(arena.bytes(offset, 8).is_none());
        }
        arena.free(1);
        assert!(arena.bytes(block.offset, 8).is_some(), "that is no start");
    }
}
