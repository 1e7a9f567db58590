//! Whether a lane is open, in one word.
//!
//! Two words have this form: the *control* word of a lane, which its sender moves by compare-and-swap, and the
//! *verdict* about it, which only the bus writes and everybody obeys.

/// Words that can go through a lane before it is worn out: 2^52, which takes 41 days at 10 GB a second.
const TAIL_BITS: u32 = 52;
const TAIL_MASK: u64 = (1 << TAIL_BITS) - 1;
const EPOCH_MASK: u64 = 0x7ff;
/// The bit that closes.
pub(super) const CLOSED: u64 = 1 << 63;

/// What a control word or a verdict says. All zero: never opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Verdict {
    /// Nothing is committed any more; the tail is final.
    pub closed: bool,
    /// Which opening this is: 0 before the first one, and 1 again after 2,047 of them.
    pub epoch: u16,
    /// In a control word and in the verdict on a closed lane, the words committed so far, from the lane's
    /// beginning; in the verdict on an open one, those of the epochs before.
    pub tail: u64,
}

impl Verdict {
    /// On a lane that was never opened.
    pub const NEVER: Self = Self { closed: false, epoch: 0, tail: 0 };

    /// Takes a word apart.
    #[must_use]
    pub const fn from_word(word: u64) -> Self {
        let epoch = (word >> TAIL_BITS & EPOCH_MASK) as u16;
        Self { closed: word & CLOSED != 0, epoch, tail: word & TAIL_MASK }
    }

    /// The word.
    #[must_use]
    pub const fn word(self) -> u64 {
        let closed = if self.closed { CLOSED } else { 0 };
        closed | (self.epoch as u64 & EPOCH_MASK) << TAIL_BITS | self.tail & TAIL_MASK
    }

    /// Whether messages can be committed.
    #[must_use]
    pub const fn is_open(self) -> bool {
        !self.closed && self.epoch != 0
    }

    /// The verdict that opens a closed lane, or one that was never open. `None` if it is open.
    ///
    /// Epochs go round. A sender could take one for another only between [`reserve`](super::LaneWriter::reserve) and
    /// [`commit`](super::Reserved::commit), while it asks for nothing: so the lane has to be opened by nobody else than its
    /// sender, but for what changes nothing of what the sender may do.
    #[must_use]
    pub const fn reopened(self) -> Option<Self> {
        if self.is_open() {
            return None;
        }
        let epoch = if self.epoch as u64 == EPOCH_MASK { 1 } else { self.epoch + 1 };
        Some(Self { closed: false, epoch, tail: self.tail })
    }
}

/// Whether a word says that messages can be committed.
pub(super) const fn is_open(word: u64) -> bool {
    let epoch = word >> TAIL_BITS;
    epoch != 0 && epoch <= EPOCH_MASK
}

/// Whether two words say the same but for their tails.
pub(super) const fn is_same_epoch(word: u64, other: u64) -> bool {
    (word ^ other) >> TAIL_BITS == 0
}

/// The tail that a word says.
pub(super) const fn tail(word: u64) -> u64 {
    word & TAIL_MASK
}

/// What a word says of the same lane, `words` further. `None` if it is worn out.
pub(super) const fn advanced(word: u64, words: u64) -> Option<u64> {
    if words > TAIL_MASK - tail(word) { None } else { Some(word + words) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_says_what_was_put_into_it() {
        for verdict in [
            Verdict::NEVER,
            Verdict { closed: true, epoch: 0x7ff, tail: TAIL_MASK },
            Verdict { closed: false, epoch: 5, tail: 77 },
        ] {
            assert_eq!(Verdict::from_word(verdict.word()), verdict);
        }
        assert_eq!(Verdict::from_word(0), Verdict::NEVER);
    }

    #[test]
    fn a_lane_reopens_with_another_epoch_where_it_was_closed() {
        let open = Verdict::NEVER.reopened().unwrap();
        assert!(open.is_open() && !Verdict::NEVER.is_open());
        assert_eq!(open.reopened(), None, "it is open");
        let closed = Verdict { closed: true, tail: 9, ..open };
        assert_eq!(closed.reopened(), Some(Verdict { closed: false, epoch: 2, tail: 9 }));
        assert_eq!(
            Verdict { epoch: 0x7ff, ..closed }.reopened(),
            Some(Verdict { closed: false, epoch: 1, tail: 9 })
        );
        assert_eq!(advanced(Verdict { tail: TAIL_MASK, ..open }.word(), 1), None);
        assert_eq!(advanced(open.word(), 7), Some(Verdict { tail: 7, ..open }.word()));
        assert_eq!(advanced(open.word(), u64::MAX), None);
    }

    #[test]
    fn a_word_says_the_same_without_being_taken_apart() {
        let (never, open) = (Verdict::NEVER, Verdict { closed: false, epoch: 5, tail: 77 });
        let closed = Verdict { closed: true, ..open };
        let all = [never, open, closed, Verdict { epoch: 0x7ff, ..open }, Verdict { epoch: 0x7ff, ..closed }];
        for verdict in all {
            let word = verdict.word();
            assert_eq!((is_open(word), tail(word)), (verdict.is_open(), verdict.tail));
            for other in all.map(|other| Verdict { tail: 9, ..other }) {
                let is_same = (verdict.closed, verdict.epoch) == (other.closed, other.epoch);
                assert_eq!(is_same_epoch(word, other.word()), is_same);
            }
        }
    }
}
