//! The sender's side of a [lane](super::lane).

use super::lane::{
    ABANDONED, CONTROL_AT, COUNT_AT, HEAD, LaneHead, LaneLayout, NotByLane, PREFETCHED, RETURNED_AT,
    ROOM_WISH_AT, WISH_AT,
};
use super::verdict;
use super::words::Words;
use crate::hint::{cold, likely, unlikely};

/// The sender's side of a lane.
///
/// A receiver that lies about its room gets messages overwritten that it has not read: its loss.
#[derive(Debug)]
pub struct LaneWriter<L, B, V> {
    lane: L,
    back: B,
    verdicts: V,
    at: usize,
    layout: LaneLayout,
    /// The control word as it has to be for the next commit.
    control: u64,
    /// Words that were received when it was last looked at: the receiver's cache line is left alone while that suffices.
    returned: u64,
    /// The wish for a bell that was fulfilled last.
    rung: u64,
    /// How often this sender asked to be told of room.
    wishes: u64,
    /// Messages sent.
    count: u64,
}

impl<L: Words, B: Words, V: Words> LaneWriter<L, B, V> {
    /// The sender of a lane whose verdict stands at `at`. `None` if the words do not hold it.
    pub fn new(lane: L, back: B, verdicts: V, at: usize, layout: LaneLayout) -> Option<Self> {
        let holds = lane.count() >= layout.lane_words()
            && back.count() >= LaneLayout::BACK_WORDS
            && verdicts.count() > at;
        holds.then_some(Self {
            lane,
            back,
            verdicts,
            at,
            layout,
            // As on a lane that was never opened.
            control: 0,
            returned: 0,
            rung: 0,
            wishes: 0,
            count: 0,
        })
    }

    /// Whether messages can be sent now.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        verdict::is_open(self.verdicts.load(self.at))
    }

    /// Where the verdict stands.
    #[must_use]
    pub const fn page(&self) -> &V {
        &self.verdicts
    }

    /// Starts a message of `head.first` and `head.second` bytes. Until [`Reserved::commit`] it is nothing.
    ///
    /// # Errors
    ///
    /// [`NotByLane`].
    #[inline(always)]
    pub fn reserve(&mut self, head: LaneHead) -> Result<Reserved<'_, L, B, V>, NotByLane> {
        let verdict = self.verdicts.load(self.at);
        if unlikely(!verdict::is_open(verdict)) {
            return Err(NotByLane::Closed);
        }
        if unlikely(!verdict::is_same_epoch(verdict, self.control)) {
            // Opened anew, where the bus says.
            self.control = verdict;
        }
        let words = head.words().ok_or(NotByLane::Full)?;
        let next = verdict::advanced(self.control, words).ok_or(NotByLane::Full)?;
        let start = verdict::tail(self.control);
        if unlikely(!self.has_room(start, words)) {
            self.returned = self.back.load(RETURNED_AT);
            if self.returned == ABANDONED {
                return Err(NotByLane::Closed);
            }
            if !self.has_room(start, words) {
                return Err(NotByLane::Full);
            }
        }
        let told = [head.first, head.second, head.key, head.call];
        if likely(self.layout.to_end(start) >= told.len()) {
            self.lane.store_all(self.layout.at(start), told);
        } else {
            for (at, word) in (start..).zip(told) {
                self.lane.store(self.layout.at(at), word);
            }
        }
        let (at, left) = (self.layout.at(start + HEAD), (words - HEAD) as usize);
        Ok(Reserved { writer: self, next, at, left, partial: [0; 8], filled: 0 })
    }

    /// Asks the receiver to tell of room. The caller then looks once more, and sleeps only if there is none.
    pub fn ask_room(&mut self) {
        self.wishes = self.wishes.wrapping_add(1);
        self.lane.store(ROOM_WISH_AT, self.wishes);
        // Against the fence in `LaneReader::ask_bell`.
        self.lane.fence();
    }

    /// Looks whether a message of `words` has room, and a quarter of the lane with it, so that it is not full again at once.
    pub fn look_for_room(&mut self, words: u64) -> bool {
        self.returned = self.back.load(RETURNED_AT);
        let wanted = words.max(self.layout.ring() / 4);
        self.has_room(verdict::tail(self.control), wanted)
    }

    /// How large the lane is.
    #[must_use]
    pub const fn layout(&self) -> LaneLayout {
        self.layout
    }

    /// Whether `words` fit behind `start`, as far as is known of what was received.
    const fn has_room(&self, start: u64, words: u64) -> bool {
        let used = start.wrapping_sub(self.returned);
        self.returned != ABANDONED && used <= self.layout.ring() && words <= self.layout.ring() - used
    }
}

/// A message that is being written.
#[derive(Debug)]
pub struct Reserved<'a, L, B, V> {
    writer: &'a mut LaneWriter<L, B, V>,
    /// The control word once it is sent.
    next: u64,
    /// Where the next word goes, and how many may follow.
    at: usize,
    left: usize,
    partial: [u8; 8],
    filled: usize,
}

impl<L: Words, B: Words, V: Words> Reserved<'_, L, B, V> {
    /// Appends bytes to the part that is being written. Those beyond what was reserved are left out.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        match bytes.as_chunks::<8>() {
            (words, []) if self.filled == 0 => self.run(words),
            _ => self.put_bytes(bytes),
        }
    }

    /// The same for bytes that do not start or end with a word.
    #[inline(never)]
    fn put_bytes(&mut self, mut bytes: &[u8]) {
        if self.filled != 0 {
            let (head, rest) = bytes.split_at(bytes.len().min(8 - self.filled));
            for (place, byte) in self.partial.iter_mut().skip(self.filled).zip(head) {
                *place = *byte;
            }
            self.filled += head.len();
            bytes = rest;
            if self.filled < 8 {
                return;
            }
            self.word(u64::from_ne_bytes(self.partial));
            self.filled = 0;
        }
        let (words, rest) = bytes.as_chunks::<8>();
        self.run(words);
        self.partial = [0; 8];
        for (place, byte) in self.partial.iter_mut().zip(rest) {
            *place = *byte;
        }
        self.filled = rest.len();
    }

    /// Ends the first part: the next byte starts a word.
    #[inline]
    pub fn next_part(&mut self) {
        if unlikely(self.filled != 0) {
            self.word(u64::from_ne_bytes(self.partial));
            self.filled = 0;
        }
    }

    /// Sends the message. True if the receiver's bell has to be rung. Bytes that were not put are whatever
    /// stood in the ring before.
    ///
    /// # Errors
    ///
    /// [`NotByLane::Closed`] if the lane was closed before: nothing was sent.
    #[must_use = "a receiver that sleeps has to be woken"]
    #[inline(always)]
    pub fn commit(self) -> Result<bool, NotByLane> {
        let Self { writer, next, at, left, partial, filled } = self;
        if unlikely(filled != 0) {
            Reserved { writer, next, at, left, partial, filled }.next_part();
        }
        if unlikely(!writer.lane.replace(CONTROL_AT, writer.control, next)) {
            return Err(NotByLane::Closed);
        }
        // The control word is for the bus to close; somebody else may have opened it since. The verdict decides.
        // One that has moved on to another epoch has the final tail of this one in its own.
        let verdict = writer.verdicts.load(writer.at);
        // The next word is that of an open lane.
        let still_open = verdict::is_same_epoch(verdict, next);
        if unlikely(!still_open) && verdict::tail(verdict) < verdict::tail(next) {
            return Err(NotByLane::Closed);
        }
        writer.control = next;
        writer.count += 1;
        writer.lane.store(COUNT_AT, writer.count);
        // Against the fence in `LaneReader::ask_bell`.
        let wish = writer.back.load_after_replace(WISH_AT);
        // The receiver read last where the next message goes. That is fetched while somebody else works.
        writer.lane.prefetch_to_store(writer.layout.at(verdict::tail(next)), PREFETCHED);
        Ok(core::mem::replace(&mut writer.rung, wish) != wish)
    }

    /// Appends whole words, in one go up to the end of the ring.
    #[inline]
    fn run(&mut self, words: &[[u8; 8]]) {
        let words = words.get(..self.left).unwrap_or(words);
        self.left -= words.len();
        let LaneWriter { lane, layout, .. } = &*self.writer;
        match words.split_at_checked(layout.lane_words() - self.at) {
            None => {
                lane.store_run(self.at, words);
                self.at += words.len();
            }
            Some((head, tail)) => {
                cold();
                lane.store_run(self.at, head);
                lane.store_run(layout.at(0), tail);
                self.at = layout.at(0) + tail.len();
            }
        }
    }

    fn word(&mut self, word: u64) {
        self.run(&[word.to_ne_bytes()]);
    }
}
