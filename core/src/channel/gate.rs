//! The bus' side of a lane: what lets a sender send by it, and stops it.

use super::lane::{ABANDONED, CONTROL_AT, COUNT_AT, RETURNED_AT};
use super::verdict::{CLOSED, Verdict};
use super::words::Words;

/// What a lane has carried, by the words of its two ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LaneTraffic {
    /// Messages that were sent, as the sender says.
    pub messages: u64,
    /// Bytes of them in the lane, as the sender says: at most 2^55.
    pub sent: u64,
    /// Bytes of those that were received, as the receiver says: at most those that were sent.
    pub received: u64,
    /// The receiver says that its sender broke a rule, and receives nothing more.
    pub given_up: bool,
}

/// The bus' side of a lane: opens and closes it.
///
/// What the sender writes can neither stop it nor keep a lane open.
#[derive(Debug)]
pub struct LaneGate<L, V> {
    lane: L,
    verdicts: V,
    at: usize,
    verdict: Verdict,
}

impl<L: Words, V: Words> LaneGate<L, V> {
    /// The gate of a lane that was never opened; its verdict stands at `at`. All words are zero.
    pub const fn new(lane: L, verdicts: V, at: usize) -> Self {
        Self { lane, verdicts, at, verdict: Verdict::NEVER }
    }

    /// Opens the lane, with the next epoch. False if it is open. Only for its sender, or if it was closed just now and what the
    /// sender may do did not change: see [`Verdict::reopened`].
    pub fn open(&mut self) -> bool {
        let Some(verdict) = self.verdict.reopened() else { return false };
        self.verdict = verdict;
        // A sender goes by the verdict, so the control word comes first.
        self.lane.store(CONTROL_AT, verdict.word());
        self.verdicts.store(self.at, verdict.word());
        true
    }

    /// Closes the lane. On return nothing more is sent by it, and what was is delivered.
    pub fn close(&mut self) {
        if !self.verdict.is_open() {
            return;
        }
        let last = Verdict::from_word(self.lane.set_bits(CONTROL_AT, CLOSED));
        // A sender that wrote another epoch, or moved its tail back, has sent nothing in this one.
        let tail = if last.epoch == self.verdict.epoch {
            last.tail.max(self.verdict.tail)
        } else {
            self.verdict.tail
        };
        self.verdict = Verdict { closed: true, tail, ..self.verdict };
        self.verdicts.store(self.at, self.verdict.word());
    }

    /// Whether the lane holds messages that were not received, by the receiver's own word, who may hold room for longer than
    /// that. Of a lane that is open, by its sender's word too.
    pub fn holds_messages(&self, back: &impl Words) -> bool {
        let returned = back.load(RETURNED_AT);
        returned != self.sent() && returned != ABANDONED
    }

    /// How far the lane was written, by its sender's word as long as it is open.
    fn sent(&self) -> u64 {
        if self.verdict.is_open() {
            Verdict::from_word(self.lane.load(CONTROL_AT)).tail
        } else {
            self.verdict.tail
        }
    }

    /// What the lane has carried, as its two ends say: to look at, and nothing to decide by.
    pub fn traffic(&self, back: &impl Words) -> LaneTraffic {
        let tail = self.sent();
        let returned = back.load(RETURNED_AT);
        let given_up = returned == ABANDONED;
        let received = if given_up { 0 } else { returned.min(tail) };
        // A tail has no more than 52 bits.
        LaneTraffic { messages: self.lane.load(COUNT_AT), sent: 8 * tail, received: 8 * received, given_up }
    }

    /// What the lane's word of verdicts says.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Where the verdict stands.
    #[must_use]
    pub const fn page(&self) -> &V {
        &self.verdicts
    }
}
