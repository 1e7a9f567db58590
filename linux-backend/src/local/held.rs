//! Entries that kdbusd shows and that wait for older messages of their sender, which found no room when they came by lane.

use rustix::io::Errno;

use super::map::Block;

/// The key of what is held back in each slot of the shared queue.
#[derive(Debug)]
pub(super) struct HeldBack {
    /// 0 where there is nothing.
    keys: Block<u64>,
    any: bool,
}

impl HeldBack {
    /// Nothing, in a queue of `depth` slots.
    pub(super) fn new(depth: usize) -> Result<Self, Errno> {
        Ok(Self { keys: Block::new(depth, || 0)?, any: false })
    }

    /// Whether there may be something.
    pub(super) const fn is_any(&self) -> bool {
        self.any
    }

    /// Holds an entry back.
    pub(super) fn add(&mut self, slot: u32, key: u64) {
        if let Some(place) = self.keys.get_mut(slot as usize) {
            *place = key;
            self.any = true;
        }
    }

    /// Whether an entry is held back.
    pub(super) fn has(&self, slot: u32, key: u64) -> bool {
        self.any && self.keys.get(slot as usize) == Some(&key)
    }

    /// Holds nothing back any more. Cost: `O(depth)` if there was something.
    pub(super) fn clear(&mut self) {
        if core::mem::take(&mut self.any) {
            self.keys.fill(0);
        }
    }
}
