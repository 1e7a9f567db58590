//! The queue in which a bus shows messages to a client, and the way back.
//!
//! It lies in two runs of words. Only the bus writes the *posted* part; clients map it read-only:
//!
//! | word | what |
//! |---|---|
//! | 0 | magic and version |
//! | 1, 2 | depth D, places of the return ring R (a power of two) |
//! | 3 | 1 while the connection lives, 0 after it ended |
//! | 4 | broadcasts lost so far, all in all |
//! | 5 | counts what the client asked to be woken for besides messages |
//! | 6 | 1 while returns have to be reported at once |
//! | 7 | returns that the bus has read so far |
//! | 8 | entries shown so far: unchanged, it saves the look at all fresh bits |
//! | 9 | serial of the command that ended last of those whose end is told here |
//! | 10 | its errno, and in the upper half how many calls are open through the bus; -1: its end was told elsewhere |
//! | 11, 12, 13 | offset, size and flags of its reply |
//! | 16 + 8 n | entry n: key, priority, offset, size, flags (1: with descriptors) |
//!
//! Both write the *shared* part:
//!
//! | word | what |
//! |---|---|
//! | 0 | 1 while the client wants its bell rung: *armed*; 2 while it does for the end of a command alone |
//! | 8 | returns that the client has written so far |
//! | 16 … | one bit for each entry that was shown since the client last looked: *fresh* |
//! | then D words | state of each entry: key × 4 + phase |
//! | then 2 R words | return ring: kind (1 taken, 2 freed) and slot in the upper half; key or offset |
//!
//! Fresh bits take the place of a ring of slots: a ring can be lapped by entries that come and are taken back
//! while the client does not look, bits cannot. Bits and states start at multiples of eight words.

use core::fmt;

use super::entry::{Answer, Entry, Return};
use super::words::Words;

/// Entries that a queue can have at most.
pub const DEPTH_MAX: u32 = 1 << 16;
/// Places that a return ring can have at most.
pub const RETURNS_MAX: u32 = 1 << 17;

/// "kdbus" and the version of this layout.
pub(super) const MAGIC: u64 = 0x6b64_6275_7300_0003;

pub(super) const MAGIC_AT: usize = 0;
pub(super) const DEPTH_AT: usize = 1;
pub(super) const RETURNS_AT: usize = 2;
pub(super) const ALIVE_AT: usize = 3;
pub(super) const LOST_AT: usize = 4;
pub(super) const NOTICES_AT: usize = 5;
pub(super) const WANTED_AT: usize = 6;
pub(super) const HEAD_AT: usize = 7;
pub(super) const SHOWN_AT: usize = 8;
pub(super) const SERIAL_AT: usize = 9;
pub(super) const ENDED_AT: usize = 10;
pub(super) const REPLY_AT: usize = 11;

pub(super) const ARMED_AT: usize = 0;
pub(super) const TAIL_AT: usize = 8;

/// What *armed* says: nothing is to ring, everything is, or the end of a command alone.
const SILENT: u64 = 0;
pub(super) const ARMED: u64 = 1;
pub(super) const ARMED_FOR_ANSWER: u64 = 2;

/// In the place of errno and calls: the end of that command was told elsewhere.
pub(super) const ELSEWHERE: u64 = u64::MAX;

/// Words before the entries, and before the fresh bits.
pub(super) const FIXED: usize = 16;
const ENTRY: usize = 8;

pub(super) const WITH_FILES: u64 = 1;

pub(super) const KIND_TAKEN: u64 = 1;
pub(super) const KIND_FREED: u64 = 2;

/// Keys that do not fit beside the phase are 146 years away.
pub(super) const KEY_MAX: u64 = u64::MAX >> 2;

/// What a state word says of its entry.
#[derive(Clone, Copy)]
#[repr(u64)]
pub(super) enum Phase {
    Queued = 1,
    Taken = 2,
    Retracted = 3,
}

pub(super) const fn state(key: u64, phase: Phase) -> u64 {
    key << 2 | phase as u64
}

/// How many entries a queue has, and what follows from that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InboxLayout {
    depth: u32,
    returns: u32,
}

impl InboxLayout {
    /// A queue of `depth` entries, with a return ring that holds one receipt and one release of each.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if `depth` is 0 or above [`DEPTH_MAX`].
    pub const fn new(depth: u32) -> Result<Self, LayoutError> {
        if depth == 0 || depth > DEPTH_MAX {
            return Err(LayoutError);
        }
        Ok(Self { depth, returns: (2 * depth).next_power_of_two() })
    }

    /// Entries, and the bound of every slot number.
    #[must_use]
    pub const fn depth(self) -> u32 {
        self.depth
    }

    /// Places of the return ring.
    #[must_use]
    pub const fn returns(self) -> u32 {
        self.returns
    }

    /// Words of the part that only the bus writes.
    #[must_use]
    pub const fn posted_words(self) -> usize {
        FIXED + ENTRY * self.depth as usize
    }

    /// Words of the part that both sides write.
    #[must_use]
    pub const fn shared_words(self) -> usize {
        self.ring_at() + 2 * self.returns as usize
    }

    /// Words of fresh bits.
    #[must_use]
    pub const fn fresh_words(self) -> usize {
        self.depth.div_ceil(64) as usize
    }

    pub(super) const fn states_at(self) -> usize {
        FIXED + self.fresh_words().next_multiple_of(8)
    }

    pub(super) const fn ring_at(self) -> usize {
        self.states_at() + (self.depth as usize).next_multiple_of(8)
    }

    pub(super) const fn entry_at(self, slot: u32) -> usize {
        FIXED + ENTRY * slot as usize
    }

    /// Words of the return ring before the place of the return with this number.
    pub(super) const fn place(self, count: u64) -> usize {
        // `returns` is a power of two.
        2 * (count & (self.returns as u64 - 1)) as usize
    }
}

/// A queue cannot have that depth, or the words do not hold it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LayoutError;

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a shared queue has 1 to {DEPTH_MAX} entries, and words for all of them")
    }
}

impl core::error::Error for LayoutError {}

/// The bus' side of one client's queue.
///
/// Nothing a client does to the shared part can make these methods panic, loop or look outside their words.
/// The worst it can do is to lie about what it has received, which is its own loss.
#[derive(Debug)]
pub struct InboxWriter<P, S> {
    posted: P,
    shared: S,
    layout: InboxLayout,
    /// Where states and return ring begin, which each entry and each return asks for.
    states: usize,
    ring: usize,
    /// Returns read so far.
    head: u64,
    /// Where the series of reads that is under way ends.
    series: Option<u64>,
    notices: u64,
    /// Entries shown so far.
    shown: u64,
    violated: bool,
}

impl<P: Words, S: Words> InboxWriter<P, S> {
    /// Starts an empty queue over words that are all zero. The first entry rings.
    ///
    /// # Errors
    ///
    /// [`LayoutError`] if either part has fewer words than `layout` needs.
    pub fn new(posted: P, shared: S, layout: InboxLayout) -> Result<Self, LayoutError> {
        if posted.count() < layout.posted_words() || shared.count() < layout.shared_words() {
            return Err(LayoutError);
        }
        posted.store(DEPTH_AT, u64::from(layout.depth));
        posted.store(RETURNS_AT, u64::from(layout.returns));
        posted.store(ALIVE_AT, 1);
        posted.store(MAGIC_AT, MAGIC);
        shared.store(ARMED_AT, ARMED);
        let (states, ring) = (layout.states_at(), layout.ring_at());
        Ok(Self {
            posted,
            shared,
            layout,
            states,
            ring,
            head: 0,
            series: None,
            notices: 0,
            shown: 0,
            violated: false,
        })
    }

    /// Shows `entry`, in constant time. True if the bell has to be rung now.
    ///
    /// The slot must not be in use; one outside the layout is left out.
    #[must_use = "a client that sleeps has to be woken"]
    pub fn publish(&mut self, entry: &Entry) -> bool {
        if entry.slot >= self.layout.depth {
            return false;
        }
        let key = entry.key & KEY_MAX;
        let at = self.layout.entry_at(entry.slot);
        // The state word frames the entry: it says `Queued` with this key only after all of these stores, and
        // each of them releases that it no longer says so of an earlier entry (see `InboxReader::entry`).
        let flags = if entry.with_files { WITH_FILES } else { 0 };
        self.posted.store_all(at, [key, entry.priority as u64, entry.offset, entry.size, flags]);
        self.shared.store(self.states + entry.slot as usize, state(key, Phase::Queued));
        self.shared.set_bits(FIXED + (entry.slot / 64) as usize, 1 << (entry.slot % 64));
        // Whoever sees this count finds the bit.
        self.shown = self.shown.wrapping_add(1);
        self.posted.store(SHOWN_AT, self.shown);
        self.wake()
    }

    /// Takes a shown entry back, in constant time. False if the client took it first.
    #[must_use = "an entry that the client took counts as received"]
    pub fn retract(&mut self, entry: &Entry) -> bool {
        if entry.slot >= self.layout.depth {
            return false;
        }
        let key = entry.key & KEY_MAX;
        let at = self.states + entry.slot as usize;
        self.shared.replace(at, state(key, Phase::Queued), state(key, Phase::Retracted))
    }

    /// The next thing the client did. `None` at the end of a series, which is at most
    /// [`returns`](InboxLayout::returns) long; what came meanwhile is for the next one.
    pub fn poll_return(&mut self) -> Option<Return> {
        let mut found = [Return::Freed(0)];
        (self.poll_returns(&mut found) == 1).then_some(found[0])
    }

    /// As many of the next things the client did as `returns` has places; fewer at the end of a series.
    pub fn poll_returns(&mut self, returns: &mut [Return]) -> usize {
        let Some(end) = self.series() else { return 0 };
        let (before, layout, ring) = (self.head, self.layout, self.ring);
        let mut head = before;
        for place in returns.iter_mut() {
            if head == end {
                break;
            }
            let at = ring + layout.place(head);
            let (kind, value) = (self.shared.load(at), self.shared.load(at + 1));
            *place = match kind & 0xffff_ffff {
                KIND_TAKEN => Return::Taken { slot: (kind >> 32) as u32, key: value },
                KIND_FREED => Return::Freed(value),
                _ => {
                    self.violated = true;
                    break;
                }
            };
            head = head.wrapping_add(1);
        }
        let count = head.wrapping_sub(before) as usize;
        if count < returns.len() {
            self.series = None;
        }
        if count > 0 {
            self.head = head;
            // Releases the loads above: the client may use the places again from here on.
            self.posted.store(HEAD_AT, head);
        }
        count
    }

    /// Where the series of reads that is under way ends; without one, a new one starts.
    fn series(&mut self) -> Option<u64> {
        if self.violated || self.series.is_some() {
            return self.series;
        }
        let tail = self.shared.load(TAIL_AT);
        if tail.wrapping_sub(self.head) > u64::from(self.layout.returns) {
            // A client never writes more than the ring holds.
            self.violated = true;
            return None;
        }
        self.series = Some(tail);
        self.series
    }

    /// Asks the client to report returns at once, or ends that. True if there are some already.
    #[must_use = "returns from before the request are not reported"]
    pub fn watch_returns(&mut self, watch: bool) -> bool {
        self.posted.store(WANTED_AT, u64::from(watch));
        // Against the fence in `InboxReader::push_return`: either the client sees the request, or its
        // return is seen here.
        self.shared.fence();
        watch && self.shared.load(TAIL_AT) != self.head
    }

    /// Shows how many broadcasts were lost so far. True if the bell has to be rung now.
    #[must_use = "a client that sleeps has to be woken"]
    pub fn lost(&mut self, total: u64) -> bool {
        self.posted.store(LOST_AT, total);
        self.wake()
    }

    /// Tells the client that something it waits for has come, such as room at a receiver. True if the bell
    /// has to be rung now.
    #[must_use = "a client that sleeps has to be woken"]
    pub fn notice(&mut self) -> bool {
        self.notices = self.notices.wrapping_add(1);
        self.posted.store(NOTICES_AT, self.notices);
        self.wake()
    }

    /// Tells the client how command `serial` has ended. True if the bell has to be rung now.
    #[must_use = "a client that sleeps has to be woken"]
    pub fn answer(&mut self, serial: u64, answer: Answer) -> bool {
        let ended = match answer {
            Answer::Whole { code, calls, reply } => {
                self.posted.store(REPLY_AT, reply.offset);
                self.posted.store(REPLY_AT + 1, reply.msg_size);
                self.posted.store(REPLY_AT + 2, reply.return_flags);
                u64::from(calls) << 32 | u64::from(code)
            }
            Answer::Elsewhere => ELSEWHERE,
        };
        self.posted.store(ENDED_AT, ended);
        // Whoever sees the serial finds the rest.
        self.posted.store(SERIAL_AT, serial);
        self.wake_from_all()
    }

    /// Tells the client that its connection has ended. True if the bell has to be rung now.
    #[must_use = "a client that sleeps has to be woken"]
    pub fn end(&mut self) -> bool {
        self.posted.store(ALIVE_AT, 0);
        self.wake_from_all()
    }

    /// Whether the client broke a rule of the return ring: nothing is read from it any more.
    #[must_use]
    pub const fn is_violated(&self) -> bool {
        self.violated
    }

    /// Entries, and the bound of every slot number.
    #[must_use]
    pub const fn layout(&self) -> InboxLayout {
        self.layout
    }

    /// Disarms a client that is armed for everything. True if it was, and its bell has to be rung.
    fn wake(&self) -> bool {
        // Against the fence in `InboxReader::arm`: either the client sees what was written before this, or
        // its arming is seen here.
        self.shared.fence();
        self.shared.load(ARMED_AT) == ARMED && self.shared.replace(ARMED_AT, ARMED, SILENT)
    }

    /// The same for one that is armed for anything.
    fn wake_from_all(&self) -> bool {
        // As in `wake`.
        self.shared.fence();
        self.shared.load(ARMED_AT) != SILENT && self.shared.swap(ARMED_AT, SILENT) != SILENT
    }
}
