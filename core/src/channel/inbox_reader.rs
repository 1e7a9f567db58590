//! A client's side of its [queue](super::inbox).

use core::cell::Cell;
use core::fmt;

use super::entry::{Answer, Entry, Return};
use super::inbox::{
    ALIVE_AT, ARMED, ARMED_AT, ARMED_FOR_ANSWER, DEPTH_AT, ELSEWHERE, ENDED_AT, FIXED, HEAD_AT, InboxLayout,
    KEY_MAX, KIND_FREED, KIND_TAKEN, LOST_AT, MAGIC, MAGIC_AT, NOTICES_AT, Phase, REPLY_AT, RETURNS_AT,
    SERIAL_AT, SHOWN_AT, TAIL_AT, WANTED_AT, WITH_FILES, state,
};
use super::words::Words;
use crate::abi::MsgInfo;

/// Why a client cannot use a shared queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum AttachError {
    /// The words are no queue, or one of another version.
    Version,
    /// The words do not hold the queue that they describe.
    Size,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Version => "the shared queue has another version than this client",
            Self::Size => "the shared queue is larger than its memory",
        })
    }
}

impl core::error::Error for AttachError {}

/// The return ring has no room; the bus has to be told by command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReturnsFull;

impl fmt::Display for ReturnsFull {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the return ring is full")
    }
}

impl core::error::Error for ReturnsFull {}

/// A client's side of its queue.
#[derive(Debug)]
pub struct InboxReader<P, S> {
    posted: P,
    shared: S,
    layout: InboxLayout,
    /// Where states and return ring begin, which each entry and each return asks for.
    states: usize,
    ring: usize,
    /// Returns written so far.
    tail: u64,
    /// Returns that the bus had read when it was last looked at.
    head: u64,
    /// Entries that had been shown when the fresh bits were last looked at.
    seen: Cell<u64>,
    /// Some of those were not taken.
    left: Cell<bool>,
}

impl<P: Words, S: Words> InboxReader<P, S> {
    /// Opens the queue that lies in `posted` and `shared`.
    ///
    /// # Errors
    ///
    /// [`AttachError`] if there is none that this code knows.
    pub fn attach(posted: P, shared: S) -> Result<Self, AttachError> {
        if posted.load(MAGIC_AT) != MAGIC {
            return Err(AttachError::Version);
        }
        let (depth, returns) = (posted.load(DEPTH_AT), posted.load(RETURNS_AT));
        let layout = u32::try_from(depth)
            .ok()
            .and_then(|depth| InboxLayout::new(depth).ok())
            .filter(|layout| u64::from(layout.returns()) == returns)
            .ok_or(AttachError::Size)?;
        if posted.count() < layout.posted_words() || shared.count() < layout.shared_words() {
            return Err(AttachError::Size);
        }
        let tail = shared.load(TAIL_AT);
        let head = posted.load(HEAD_AT);
        let (states, ring) = (layout.states_at(), layout.ring_at());
        let (seen, left) = (Cell::new(0), Cell::new(false));
        Ok(Self { posted, shared, layout, states, ring, tail, head, seen, left })
    }

    /// Entries, and the bound of every slot number.
    #[must_use]
    pub const fn layout(&self) -> InboxLayout {
        self.layout
    }

    /// Whether anything may have been shown since [`fresh`](Self::fresh) last took it, in constant time.
    #[must_use]
    #[inline]
    pub fn has_fresh(&self) -> bool {
        self.left.get() || self.posted.load(SHOWN_AT) != self.seen.get()
    }

    /// As [`has_fresh`](Self::has_fresh), for entries that are `wanted`; looks at each entry at most once besides.
    #[must_use]
    pub fn has_fresh_that(&self, mut wanted: impl FnMut(&Entry) -> bool) -> bool {
        (0..self.layout.fresh_words()).any(|word| {
            let mut bits = self.shared.load(FIXED + word);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                if self.entry(word as u32 * 64 + bit).is_some_and(|entry| wanted(&entry)) {
                    return true;
                }
            }
            false
        })
    }

    /// Hands each entry that was shown since the last time to `each`, in order of slots, not of keys.
    ///
    /// Entries that were taken back meanwhile are left out. One for which `each` says false is handed out
    /// again the next time. Looks at each entry once, and at `depth / 64` words if there are any.
    pub fn fresh(&self, mut each: impl FnMut(Entry) -> bool) {
        if !self.has_fresh() {
            return;
        }
        // Before the bits: one that is set later is counted later.
        self.seen.set(self.posted.load(SHOWN_AT));
        self.left.set(false);
        for word in 0..self.layout.fresh_words() {
            let at = FIXED + word;
            if self.shared.load(at) == 0 {
                continue;
            }
            let mut bits = self.shared.swap(at, 0);
            let mut later = 0;
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let refused = self.entry(word as u32 * 64 + bit).is_some_and(|entry| !each(entry));
                later |= u64::from(refused) << bit;
            }
            if later != 0 {
                self.left.set(true);
                self.shared.set_bits(at, later);
            }
        }
    }

    /// The entry that alone was shown since the last time, if it has no descriptors: it will not be handed out again. `None` if there is
    /// none, more than that, or [`fresh`](Self::fresh) has to find out. Looks at `depth / 64` words if there is one.
    pub fn take_only_fresh(&self) -> Option<Entry> {
        // Before the bits: what is shown later is younger, and would be found besides.
        let shown = self.seen.get().wrapping_add(1);
        if self.left.get() || self.posted.load(SHOWN_AT) != shown {
            return None;
        }
        let mut found = None;
        for word in 0..self.layout.fresh_words() {
            let bits = self.shared.load(FIXED + word);
            if bits != 0 {
                if found.is_some() || !bits.is_power_of_two() {
                    return None;
                }
                found = Some((word, bits));
            }
        }
        let (word, bit) = found?;
        // Before the entry: one that takes its place later sets the bit later.
        let later = self.shared.swap(FIXED + word, 0) & !bit;
        let entry = self.entry(word as u32 * 64 + bit.trailing_zeros());
        // Had this one taken the place of another, all that was shown before it would have been counted.
        let is_oldest = self.posted.load(SHOWN_AT) == shown;
        let alone = entry.filter(|entry| !entry.with_files && is_oldest);
        let left = if entry.is_some() && alone.is_none() { later | bit } else { later };
        if left != 0 {
            self.shared.set_bits(FIXED + word, left);
        }
        if alone.is_some() {
            self.seen.set(shown);
        }
        alone
    }

    /// Receives the entry in `slot` if it is still shown with `key`. False if the bus took it back.
    #[must_use = "an entry that was taken back is not received"]
    pub fn take(&self, slot: u32, key: u64) -> bool {
        if slot >= self.layout.depth() || key > KEY_MAX {
            return false;
        }
        let at = self.states + slot as usize;
        self.shared.replace(at, state(key, Phase::Queued), state(key, Phase::Taken))
    }

    /// Whether the next [`push_return`](Self::push_return) has a place.
    pub fn has_return_room(&mut self) -> bool {
        let places = u64::from(self.layout.returns());
        if self.tail.wrapping_sub(self.head) >= places {
            self.head = self.posted.load(HEAD_AT);
        }
        self.tail.wrapping_sub(self.head) < places
    }

    /// Tells the bus what was done, in constant time. True if the bus wants to be woken for it.
    ///
    /// # Errors
    ///
    /// [`ReturnsFull`] if the bus has not read the ring for long; nothing was told.
    pub fn push_return(&mut self, done: Return) -> Result<bool, ReturnsFull> {
        if !self.has_return_room() {
            return Err(ReturnsFull);
        }
        let (kind, value) = match done {
            Return::Taken { slot, key } => (u64::from(slot) << 32 | KIND_TAKEN, key),
            Return::Freed(offset) => (KIND_FREED, offset),
        };
        let at = self.ring + self.layout.place(self.tail);
        self.shared.store(at, kind);
        self.shared.store(at + 1, value);
        self.tail = self.tail.wrapping_add(1);
        self.shared.store(TAIL_AT, self.tail);
        // Against the fence in `InboxWriter::watch_returns`.
        self.shared.fence();
        Ok(self.posted.load(WANTED_AT) != 0)
    }

    /// Asks for the bell. The caller then looks once more at everything, and sleeps only if nothing is there.
    pub fn arm(&self) {
        if self.shared.load(ARMED_AT) == ARMED {
            // Whoever disarms it from here on rings, whatever this side sees of what was written.
            return;
        }
        self.shared.store(ARMED_AT, ARMED);
        // Against the fence in `InboxWriter::wake`.
        self.shared.fence();
    }

    /// Asks for the bell for the end of a command and of the connection alone. The caller looks once more at both before it
    /// sleeps; what else comes in meanwhile is found by whoever [arms](Self::arm) next.
    pub fn arm_for_answer(&self) {
        self.shared.store(ARMED_AT, ARMED_FOR_ANSWER);
        // Against the fence in `InboxWriter::wake_from_all`.
        self.shared.fence();
    }

    /// How command `serial` has ended, if the bus has told it here and no later one's end since.
    #[must_use]
    pub fn answer(&self, serial: u64) -> Option<Answer> {
        if self.posted.load(SERIAL_AT) != serial {
            return None;
        }
        let ended = self.posted.load(ENDED_AT);
        if ended == ELSEWHERE {
            return Some(Answer::Elsewhere);
        }
        let word = |at| self.posted.load(REPLY_AT + at);
        let reply = MsgInfo { offset: word(0), msg_size: word(1), return_flags: word(2) };
        Some(Answer::Whole { code: ended as u32, calls: (ended >> 32) as u32, reply })
    }

    /// Broadcasts lost so far.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.posted.load(LOST_AT)
    }

    /// How often the bus told of something besides messages; any change is news.
    #[must_use]
    pub fn notices(&self) -> u64 {
        self.posted.load(NOTICES_AT)
    }

    /// Whether the connection still lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.posted.load(ALIVE_AT) != 0
    }

    /// A copy of the entry in `slot` if it is shown.
    fn entry(&self, slot: u32) -> Option<Entry> {
        if slot >= self.layout.depth() {
            return None;
        }
        // Acquires every word of the entry that it names.
        let framed = self.shared.load(self.states + slot as usize);
        let key = framed >> 2;
        if framed != state(key, Phase::Queued) {
            return None;
        }
        let at = self.layout.entry_at(slot);
        let entry = Entry {
            slot,
            key: self.posted.load(at),
            priority: self.posted.load(at + 1) as i64,
            offset: self.posted.load(at + 2),
            size: self.posted.load(at + 3),
            with_files: self.posted.load(at + 4) & WITH_FILES != 0,
        };
        // Had one of these loads read a word of a later entry, it would have acquired that the state word
        // had changed before, which shows here and in `take`.
        (entry.key == key && self.shared.load(self.states + slot as usize) == framed).then_some(entry)
    }
}
