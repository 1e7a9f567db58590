//! Where messages lie that came by lane, until the application gives them back.
//!
//! Memory of this process' own, in two parts: blocks of one size for the small messages, taken and given back in
//! constant time, and a pool for the others.
#![allow(unsafe_code)]

use core::cell::RefCell;

use kdbus_core::engine::pool::{Pool, PoolHead, SliceId, SliceRecord};
use rustix::io::Errno;

use super::map::{Block, Pages};
use super::{Gate, gate};

/// Bytes of a block.
const BLOCK: u64 = 512;

/// A range that somebody holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Bytes from the arena's start, a multiple of 8.
    pub(super) offset: u64,
    /// Bytes, a multiple of 8.
    pub(super) size: u64,
    /// In the pool; `None` for a block.
    slice: Option<SliceId>,
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
    head: PoolHead,
    records: Block<SliceRecord>,
}

impl Arena {
    /// `blocks` small messages, and `bytes` for the others, `records` of them at most.
    pub(super) fn new(blocks: usize, bytes: u64, records: usize) -> Result<Self, Errno> {
        let small = blocks as u64 * BLOCK;
        let all = usize::try_from(small.saturating_add(bytes)).map_err(|_| Errno::NOMEM)?;
        let mut number = 0;
        let free = Block::new(blocks, || {
            number += 1;
            number - 1
        })?;
        let mut records = Block::new(records, SliceRecord::new)?;
        let mut head = PoolHead::new();
        Pool::create(&mut head, &mut records, bytes).map_err(|_| Errno::INVAL)?;
        let books =
            Books { free, free_len: blocks, blocks: Block::new(blocks, Holders::default)?, head, records };
        let _gate = gate().ok_or(Errno::OPNOTSUPP)?;
        Ok(Self { pages: Pages::fresh(all)?, books: RefCell::new(books), _gate })
    }

    /// Takes `size` bytes, a multiple of 8, and lets `fill` write them. The queue holds them if it succeeds, and
    /// nobody otherwise. `None` if there is no room.
    pub(super) fn fill<R, E>(
        &self,
        size: u64,
        fill: impl FnOnce(&mut [u64]) -> Result<R, E>,
    ) -> Option<Result<(Held, R), E>> {
        let held = self.books.borrow_mut().take(size)?;
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
        books.show(held);
        books.release(held);
    }

    /// The queue holds a range no longer.
    pub(super) fn release(&self, held: Held) {
        self.books.borrow_mut().release(held);
    }

    /// The user gives back what starts at `offset`. Of no effect for anything else.
    pub(super) fn free(&self, offset: u64) {
        self.books.borrow_mut().free(offset);
    }
}

impl Books {
    fn small(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK
    }

    fn take(&mut self, size: u64) -> Option<Held> {
        if size <= BLOCK
            && let Some(last) = self.free_len.checked_sub(1)
        {
            let index = *self.free.get(last)?;
            self.free_len = last;
            *self.blocks.get_mut(index as usize)? = Holders { queue: true, user: false };
            return Some(Held { offset: u64::from(index) * BLOCK, size, slice: None });
        }
        let slice = Pool::new(&mut self.head, &mut self.records).allocate(size, false).ok()?;
        Some(Held { offset: self.small() + slice.offset, size: slice.size, slice: Some(slice.id) })
    }

    fn show(&mut self, held: Held) {
        match held.slice {
            Some(slice) => {
                let _ = Pool::new(&mut self.head, &mut self.records).publish(slice);
            }
            None => self.block(held.offset, |holders| holders.user = true),
        }
    }

    fn release(&mut self, held: Held) {
        match held.slice {
            Some(slice) => {
                let _ = Pool::new(&mut self.head, &mut self.records).release(slice);
            }
            None => self.block(held.offset, |holders| holders.queue = false),
        }
    }

    fn free(&mut self, offset: u64) {
        match offset.checked_sub(self.small()) {
            Some(offset) => {
                let _ = Pool::new(&mut self.head, &mut self.records).free(offset);
            }
            None if offset.is_multiple_of(BLOCK) => self.block(offset, |holders| holders.user = false),
            None => {}
        }
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
        match offset.checked_sub(self.small()) {
            Some(offset) => {
                let pool = Pool::new(&mut self.head, &mut self.records);
                pool.published(offset).is_some_and(|slice| len <= slice.size)
            }
            None => {
                let block = self.blocks.get((offset / BLOCK) as usize);
                block.is_some_and(|holders| holders.user) && offset % BLOCK + len <= BLOCK
            }
        }
    }
}
