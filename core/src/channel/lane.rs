//! A lane: messages from one sender to one receiver, past the bus.
//!
//! It lies in three runs of words. The sender writes the *lane* part, of which the bus writes the control word
//! too; the receiver and everybody else map it read-only:
//!
//! | word | what |
//! |---|---|
//! | 0 | control: closed, epoch and tail, as a [`Verdict`] |
//! | 1 | counts how often the sender asked to be told of room |
//! | 8 | messages sent, for whoever looks on; nobody relies on it |
//! | 16 … | ring of R words, a power of two |
//!
//! The receiver alone writes the *way back*, and the bus alone a word of *verdicts*:
//!
//! | word | what |
//! |---|---|
//! | 0 | words of the messages that were received, all in all: room that came back; all ones: given up |
//! | 8 | counts how often the receiver asked for its bell |
//!
//! A message is four words (bytes of its first and its second part, key, call), then the bytes of both parts, each
//! up to the next word. It goes round the end of the ring. A message is sent once the control word's tail lies
//! behind it, and not before: whatever stands in the ring beyond the tail is nothing.
//!
//! *Closing* sets a bit of the control word; the tail that was there at that moment is final, because a sender
//! moves the tail by compare-and-swap against an open word. The verdict repeats it for those who do not trust the
//! sender: a receiver reads to the tail of the verdict once it is closed, whatever the control word says.
//!
//! *Waking.* The sender writes the tail, then a fence, then looks at the count of bells asked for, and rings if
//! that has changed since it last rang. The receiver counts up, then a fence, then looks at the tail once more before
//! it sleeps. As long as it does not ask again, it is *hot*, and nobody rings. No word is written by both.
//!
//! *Room.* A sender that sleeps until there is room counts up, then a fence, then looks at what came back once more. The
//! receiver looks at the count where it finds nothing more to receive, once more after it has asked for its bell. Nobody relies
//! on its look where half of the lane came back; but for that, a sender would sleep until the last message is received.

use core::fmt;
use core::mem::offset_of;

use crate::abi::{Msg, MsgFlags};
use crate::hint::{cold, likely, unlikely};

use super::verdict::Verdict;
use super::words::Words;

/// Words that a ring has at least.
pub const RING_MIN: u32 = 16;
/// Words that a ring has at most: 8 MiB.
pub const RING_MAX: u32 = 1 << 20;

pub(super) const CONTROL_AT: usize = 0;
// Beside the control word: the receiver has just looked at that when it looks here.
pub(super) const ROOM_WISH_AT: usize = 1;
// Not beside the control word, which the receiver looks at.
pub(super) const COUNT_AT: usize = 8;
const RING_AT: usize = 16;

pub(super) const RETURNED_AT: usize = 0;
pub(super) const WISH_AT: usize = 8;

/// In place of the words that were received: nothing more ever is.
pub(super) const ABANDONED: u64 = u64::MAX;

/// Words of a message whose cache lines are fetched before they are needed: small ones have no more.
pub(super) const PREFETCHED: usize = 32;

/// Words before the bytes of a message.
pub(super) const HEAD: u64 = 4;

/// How large a lane is, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneLayout {
    ring: u32,
}

impl LaneLayout {
    /// Words of the way back.
    pub const BACK_WORDS: usize = 16;

    /// A ring of `ring` words. `None` unless that is a power of two from [`RING_MIN`] to [`RING_MAX`].
    #[must_use]
    pub const fn new(ring: u32) -> Option<Self> {
        if ring.is_power_of_two() && ring >= RING_MIN && ring <= RING_MAX {
            Some(Self { ring })
        } else {
            None
        }
    }

    /// Words of the part that the sender writes.
    #[must_use]
    pub const fn lane_words(self) -> usize {
        RING_AT + self.ring as usize
    }

    /// Words that a message of these parts takes, its head included.
    #[must_use]
    pub const fn message_words(first: u64, second: u64) -> u64 {
        HEAD + first.div_ceil(8) + second.div_ceil(8)
    }

    /// The layout of a lane part of this many words. `None` if there is none.
    #[must_use]
    pub fn of_words(words: usize) -> Option<Self> {
        Self::new(u32::try_from(words.checked_sub(RING_AT)?).ok()?)
    }

    /// Words of the ring.
    #[must_use]
    pub const fn ring(self) -> u64 {
        self.ring as u64
    }

    /// Words from `position` to the end of the ring.
    pub(super) const fn to_end(self, position: u64) -> usize {
        self.ring as usize - (position & (self.ring as u64 - 1)) as usize
    }

    pub(super) const fn at(self, position: u64) -> usize {
        // The ring is a power of two.
        RING_AT + (position & (self.ring as u64 - 1)) as usize
    }
}

/// What a lane tells of a message besides its bytes. A receiver believes none of it without a check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneHead {
    /// Bytes of the first part.
    pub first: u64,
    /// Bytes of the second part.
    pub second: u64,
    /// The time at which it was sent.
    pub key: u64,
    /// What names the call that it is, 0 for a message that is none.
    pub call: u64,
}

impl LaneHead {
    /// Words that the message takes in its lane; `None` if no ring is that large.
    #[must_use]
    pub fn words(&self) -> Option<u64> {
        let words = LaneLayout::message_words(self.first, self.second);
        (words <= RING_MAX as u64).then_some(words)
    }
}

/// Why a message does not go by lane. The bus has to carry it, and knows what is wrong, if anything is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum NotByLane {
    /// The lane is closed, or was never opened.
    Closed,
    /// It has no room for the message now, or is too small for it.
    Full,
}

impl fmt::Display for NotByLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Closed => "the lane is closed",
            Self::Full => "the lane has no room for the message",
        })
    }
}

impl core::error::Error for NotByLane {}

/// The sender broke a rule of its lane: nothing more is read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Violation;

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the sender broke a rule of its lane")
    }
}

impl core::error::Error for Violation {}

/// The receiver's side of a lane.
///
/// Whatever the sender writes, reading stays inside the ring, ends, and gives bytes that do not change any
/// more; what they mean is for the receiver to check.
#[derive(Debug)]
pub struct LaneReader<L, B, V> {
    lane: L,
    back: B,
    verdicts: V,
    at: usize,
    layout: LaneLayout,
    /// Words that were copied out.
    head: u64,
    /// Words that were sent when it was last looked at: the sender's cache line is left alone while there are more.
    known: u64,
    /// The words that said so.
    seen: (u64, u64),
    /// The message at the head, as it was looked at first.
    peeked: Option<LaneHead>,
    /// Words of messages that were received.
    returned: u64,
    wishes: u64,
    /// The sender's wish for room that was fulfilled last, and what had come back then.
    relieved: u64,
    relieved_at: u64,
    /// Words of messages received from which on that wish is looked at though there is more to receive.
    mark: u64,
    violated: bool,
}

impl<L: Words, B: Words, V: Words> LaneReader<L, B, V> {
    /// The receiver of a new lane whose verdict stands at `at`. `None` if the words do not hold it. The
    /// first message rings.
    pub fn new(lane: L, back: B, verdicts: V, at: usize, layout: LaneLayout) -> Option<Self> {
        let holds = lane.count() >= layout.lane_words()
            && back.count() >= LaneLayout::BACK_WORDS
            && verdicts.count() > at;
        back.store(WISH_AT, 1);
        holds.then_some(Self {
            lane,
            back,
            verdicts,
            at,
            layout,
            head: 0,
            known: 0,
            seen: (0, 0),
            peeked: None,
            returned: 0,
            wishes: 1,
            relieved: 0,
            relieved_at: 0,
            mark: layout.ring() / 4,
            violated: false,
        })
    }

    /// The next message that was not copied out yet; the same until it is.
    ///
    /// # Errors
    ///
    /// [`Violation`], from here on always.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<LaneHead>, Violation> {
        if self.has_next()? { Ok(self.peeked) } else { Ok(None) }
    }

    /// Whether [`peek`](Self::peek) has a message to return, which is not copied for that.
    ///
    /// # Errors
    ///
    /// As there.
    #[inline]
    pub fn has_next(&mut self) -> Result<bool, Violation> {
        if self.peeked.is_some() {
            return Ok(true);
        }
        if unlikely(self.violated) {
            return Err(Violation);
        }
        if likely(self.head == self.known) {
            let words = self.tail_words();
            // The same words as before say the same.
            if words == self.seen {
                return Ok(false);
            }
            self.seen = words;
            self.known = tail(words);
        }
        self.look()
    }

    /// Looks at the message at the head, if anything was sent.
    #[inline(never)]
    fn look(&mut self) -> Result<bool, Violation> {
        if unlikely(self.head == self.known) {
            return Ok(false);
        }
        self.lane.prefetch(self.layout.at(self.head), PREFETCHED);
        let ahead = self.known.checked_sub(self.head).ok_or_else(|| self.violation())?;
        let unreturned = self.head.wrapping_sub(self.returned);
        if ahead < HEAD || ahead.saturating_add(unreturned) > self.layout.ring() {
            return Err(self.violation());
        }
        let head = self.head_at(self.head);
        if head.words().is_none_or(|words| words > ahead) {
            return Err(self.violation());
        }
        self.peeked = Some(head);
        Ok(true)
    }

    /// Copies the two parts of the message that [`peek`](Self::peek) has returned, each once, and goes on to the
    /// next. Returns the words that it takes in the lane until they are [given back](Self::give_back); `None`
    /// if `first` or `second` has too few words, or if there is no message.
    pub fn copy_out(&mut self, first: &mut [u64], second: &mut [u64]) -> Option<u64> {
        self.copy_head(first, second)?;
        self.advance()
    }

    /// As [`copy_out`](Self::copy_out), and stays at the message. `None` if it cannot be copied.
    pub fn copy_head(&self, first: &mut [u64], second: &mut [u64]) -> Option<()> {
        self.copy_ahead(self.head, &self.peeked?, first, second)
    }

    /// Goes on to the next message, after [`copy_head`](Self::copy_head). Returns the words of the one before.
    pub fn advance(&mut self) -> Option<u64> {
        let words = self.peeked.take()?.words()?;
        self.head += words;
        Some(words)
    }

    /// The first message from `from` on whose head names `call`, and where it stands: for who cannot wait for its turn.
    /// `from` is 0, or the end of the one that was found before. Cost: a look at each message that was not copied out.
    #[must_use]
    pub fn find_ahead(&self, from: u64, call: u64) -> Option<(u64, LaneHead)> {
        let end = tail(self.tail_words());
        if self.violated || end.wrapping_sub(self.returned) > self.layout.ring() {
            return None;
        }
        let mut at = self.head.max(from);
        // Ends: a message takes some words.
        while at < end {
            let head = self.head_at(at);
            let words = head.words().filter(|words| *words <= end - at)?;
            if head.call == call {
                return Some((at, head));
            }
            at += words;
        }
        None
    }

    /// Hands what names each call from `from` on that was not copied out, and its cookie, to `each`, in their order: for who
    /// answers one before its turn. Returns where to go on, so that nobody has to look at a message twice; the first time,
    /// that is 0. Cost: a look at each of these messages.
    pub fn each_call_ahead(&self, from: u64, mut each: impl FnMut(u64, u64)) -> u64 {
        let end = tail(self.tail_words());
        let mut at = self.head.max(from);
        if self.violated || end.wrapping_sub(self.returned) > self.layout.ring() {
            return at;
        }
        // Ends: a message takes some words.
        while at < end {
            let head = self.head_at(at);
            let Some(words) = head.words().filter(|words| *words <= end - at) else { return at };
            let header = |byte| self.header_at(at, &head, byte);
            if head.call != 0
                && header(offset_of!(Msg, flags)).is_some_and(expects_reply)
                && let Some(cookie) = header(offset_of!(Msg, cookie))
            {
                each(head.call, cookie);
            }
            at += words;
        }
        at
    }

    /// Whether a message that [`find_ahead`](Self::find_ahead) has found at `at` says that it is a reply to the call with this
    /// cookie.
    #[must_use]
    pub fn is_reply_ahead(&self, at: u64, head: &LaneHead, cookie: u64) -> bool {
        let header = |byte| self.header_at(at, head, byte);
        header(offset_of!(Msg, flags)).is_some_and(|flags| !expects_reply(flags))
            && header(offset_of!(Msg, timeout_or_reply)) == Some(cookie)
    }

    /// The word at this byte of the header of the message at `at`, if it has one.
    fn header_at(&self, at: u64, head: &LaneHead, byte: usize) -> Option<u64> {
        let has_header = head.first >= Msg::SIZE as u64;
        has_header.then(|| self.lane.load(self.layout.at(at + HEAD + byte as u64 / 8)))
    }

    /// Copies the two parts of a message that [`find_ahead`](Self::find_ahead) has found at `at`. It stays in the lane,
    /// and is copied out once more in its turn. `None` if `first` or `second` has too few words.
    pub fn copy_ahead(&self, at: u64, head: &LaneHead, first: &mut [u64], second: &mut [u64]) -> Option<()> {
        let first = first.get_mut(..head.first.div_ceil(8) as usize)?;
        let second = second.get_mut(..head.second.div_ceil(8) as usize)?;
        let mut at = at + HEAD;
        for part in [first, second] {
            let start = at;
            at += part.len() as u64;
            match part.split_at_mut_checked(self.layout.to_end(start)) {
                Some((head, tail)) => {
                    cold();
                    self.lane.load_run(self.layout.at(start), head);
                    self.lane.load_run(self.layout.at(0), tail);
                }
                None => self.lane.load_run(self.layout.at(start), part),
            }
        }
        Some(())
    }

    fn head_at(&self, at: u64) -> LaneHead {
        let word = |offset| self.lane.load(self.layout.at(at + offset));
        LaneHead { first: word(0), second: word(1), key: word(2), call: word(3) }
    }

    /// Gives room back of messages that were copied out, not more than they took.
    pub fn give_back(&mut self, words: u64) {
        self.returned = self.returned.saturating_add(words).min(self.head);
        if !self.violated {
            // Releases the loads of the copy: the sender may use the room again from here on.
            self.back.store(RETURNED_AT, self.returned);
        }
    }

    /// Asks for the bell. The caller then looks once more at everything, and sleeps only if nothing is there.
    pub fn ask_bell(&mut self) {
        self.wishes = self.wishes.wrapping_add(1);
        self.back.store(WISH_AT, self.wishes);
        // Against the fence in `Reserved::commit`.
        self.back.fence();
    }

    /// Whether the sender has asked to be told of room since it last was, and half of the lane is free: it has to be woken.
    /// To be asked where nothing more is there to receive.
    #[must_use = "a sender that sleeps has to be woken"]
    #[inline]
    pub fn owes_room(&mut self) -> bool {
        let wish = self.lane.load(ROOM_WISH_AT);
        wish != self.relieved && self.relieve(wish)
    }

    /// The same where there is more to receive, so that both ends work at the same time. Cost: a comparison, but for a few times
    /// in each round of the ring.
    #[must_use = "a sender that sleeps has to be woken"]
    #[inline]
    pub fn owes_room_already(&mut self) -> bool {
        unlikely(self.returned >= self.mark) && self.pass_mark()
    }

    #[cold]
    fn pass_mark(&mut self) -> bool {
        let quarter = self.layout.ring() / 4;
        let wish = self.lane.load(ROOM_WISH_AT);
        let waits = wish != self.relieved;
        let owes = waits && self.relieve(wish);
        // A sender that waits is told once half of the lane is free, or little more: one that keeps it as full is not looked at
        // with each message.
        let missing = self.unreturned().saturating_sub(2 * quarter);
        let step = if waits && !owes { missing.clamp(quarter / 4, quarter) } else { quarter };
        self.mark = self.returned + step;
        owes
    }

    /// Words that were sent and did not come back.
    fn unreturned(&self) -> u64 {
        tail(self.tail_words()).wrapping_sub(self.returned)
    }

    #[cold]
    fn relieve(&mut self, wish: u64) -> bool {
        // Without something that came back since, there is nothing to tell, however often it asks.
        let has_room = self.returned != self.relieved_at && self.unreturned() <= self.layout.ring() / 2;
        if has_room {
            (self.relieved, self.relieved_at) = (wish, self.returned);
        }
        has_room
    }

    /// Whether the lane is closed and everything in it was copied out.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        let verdict = Verdict::from_word(self.verdicts.load(self.at));
        !verdict.is_open() && (self.violated || self.head >= verdict.tail)
    }

    /// Where the verdict stands.
    #[must_use]
    pub const fn page(&self) -> &V {
        &self.verdicts
    }

    /// How large the lane is.
    #[must_use]
    pub const fn layout(&self) -> LaneLayout {
        self.layout
    }

    /// Reads nothing more from the lane, because what a message says breaks the rules: from here on
    /// [`peek`](Self::peek) is a [`Violation`].
    pub fn reject(&mut self) {
        let _ = self.violation();
    }

    /// Whether the sender broke a rule.
    #[must_use]
    pub const fn is_rejected(&self) -> bool {
        self.violated
    }

    /// The control word and the verdict, which say how far messages are sent.
    #[inline]
    fn tail_words(&self) -> (u64, u64) {
        // The control word first: if the lane is open after that, it was open then.
        let control = self.lane.load(CONTROL_AT);
        (control, self.verdicts.load(self.at))
    }

    #[cold]
    fn violation(&mut self) -> Violation {
        self.violated = true;
        self.peeked = None;
        self.back.store(RETURNED_AT, ABANDONED);
        Violation
    }
}

/// What the flags of a header say.
const fn expects_reply(flags: u64) -> bool {
    flags & MsgFlags::EXPECT_REPLY.bits() != 0
}

/// How far messages are sent by what these words say.
#[inline]
const fn tail((control, verdict): (u64, u64)) -> u64 {
    let (control, verdict) = (Verdict::from_word(control), Verdict::from_word(verdict));
    // Between two epochs the words differ, and the verdict has the final tail of the one before.
    if verdict.is_open() && control.epoch == verdict.epoch { control.tail } else { verdict.tail }
}
