//! The fixed part of a queue, and the lanes of its priorities.

use super::NONE;
use crate::radix::Radix;

/// How many priorities have a list of their own; a search takes three comparisons.
pub(super) const LANES: usize = 8;

/// The bits of all lanes in [`Head::waiting`].
pub(super) const ALL_LANES: u32 = (1 << LANES) - 1;

/// The list of the entries that are in the index, counted behind the lanes.
pub(super) const SPILL: usize = LANES;

/// The fixed part of a queue: what is waiting where, without the entries themselves.
///
/// It belongs to one slice of nodes for as long as anything is queued. A new head over nodes that
/// were used before is an empty queue, which makes forgetting a queue `O(1)`; items left in the
/// nodes are dropped when their node is used again.
#[derive(Debug)]
pub struct Head {
    /// Priorities of the lanes in ascending order. Of equal ones only the first may be in use.
    pub(super) priorities: [i64; LANES],
    /// First and last entry of each lane and of the spill list; an empty one has no last.
    pub(super) ends: [Ends; LANES + 1],
    pub(super) arrivals: u64,
    /// Bit `n`: lane `n` has entries, or the spill list.
    pub(super) waiting: u32,
    /// The entries of the spill list by priority and arrival.
    pub(super) index: Radix,
    /// Nodes that were used before, linked by `next`.
    pub(super) free: u32,
    /// The first node that never was used.
    pub(super) fresh: u32,
    pub(super) len: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Ends {
    pub(super) first: u32,
    pub(super) last: u32,
}

impl Head {
    /// The head of an empty queue.
    pub const fn new() -> Self {
        Self {
            // Lanes that were never used sort behind all others.
            priorities: [i64::MAX; LANES],
            ends: [Ends { first: NONE, last: NONE }; LANES + 1],
            arrivals: 0,
            waiting: 0,
            index: Radix::new(),
            free: NONE,
            fresh: 0,
            len: 0,
        }
    }

    /// Entries in the queue, in `O(1)`.
    pub const fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether nothing is queued, in `O(1)`.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The lane of `priority` if there is one, else the last lane of a lower value or its successor.
    pub(super) fn nearest_lane(&self, priority: i64) -> usize {
        let mut lane = if self.priorities[3] < priority { 4 } else { 0 };
        lane += if self.priorities[lane + 1] < priority { 2 } else { 0 };
        lane + usize::from(self.priorities[lane] < priority)
    }

    /// Gives `priority` a lane in the place of one that is empty, in at most [`LANES`] moves.
    #[cold]
    pub(super) fn new_lane(&mut self, priority: i64) -> Option<usize> {
        // The empty lane of the highest value: unused ones first, then the least urgent.
        let empty = !self.waiting & ALL_LANES;
        let mut lane = empty.checked_ilog2()? as usize;
        while lane > 0 && self.priorities[lane - 1] > priority {
            self.move_lane(lane - 1, lane);
            lane -= 1;
        }
        while lane + 1 < LANES && self.priorities[lane + 1] < priority {
            self.move_lane(lane + 1, lane);
            lane += 1;
        }
        self.priorities[lane] = priority;
        self.waiting &= !(1 << lane);
        self.ends[lane].last = NONE;
        Some(lane)
    }

    fn move_lane(&mut self, from: usize, to: usize) {
        self.priorities[to] = self.priorities[from];
        self.ends[to] = self.ends[from];
        let waits = self.waiting >> from & 1;
        self.waiting = self.waiting & !(1 << to) | waits << to;
    }

    /// The lane of the most urgent priority; [`LANES`] or more if none waits.
    pub(super) fn first_lane(&self) -> usize {
        self.waiting.trailing_zeros() as usize
    }

    pub(super) fn has_entries(&self, list: usize) -> bool {
        self.waiting >> list & 1 == 1
    }
}

impl Default for Head {
    fn default() -> Self {
        Self::new()
    }
}
