//! How a call ends: once.
//!
//! Each call by lane has a word that caller, callee and bus can write. It names the call by a number that is
//! not used twice while anybody may remember it, and says how the call stands. Whoever moves it away from
//! *pending* has ended the call; all others learn that they came too late. A callee can change it at will, so caller
//! and bus go by their own [record](super::CallRecord) where it is about more than what the callee itself does.

use super::words::Words;

/// Numbers that a call word can hold.
pub const CALL_MAX: u64 = u64::MAX >> 2;

/// Calls by one lane that can be open at a time.
pub const CALLS_MAX: usize = 128;

/// Words that hold them: a page, of which each call has one.
pub const CALL_WORDS: usize = 512;

/// A call, as the head of its message names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallName {
    /// Which word it has, below [`CALLS_MAX`].
    pub index: usize,
    /// Its number.
    pub number: u64,
}

impl CallName {
    const INDEX_BITS: u32 = 8;

    /// The value of a head; never 0.
    #[must_use]
    pub const fn word(self) -> u64 {
        self.number << Self::INDEX_BITS | self.index as u64
    }

    /// What the value of a head names; `None` for 0 and for what no caller makes.
    #[must_use]
    pub const fn from_word(word: u64) -> Option<Self> {
        let name =
            Self { index: (word & ((1 << Self::INDEX_BITS) - 1)) as usize, number: word >> Self::INDEX_BITS };
        if name.number == 0 || name.index >= CALLS_MAX { None } else { Some(name) }
    }
}

/// How a call stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CallState {
    /// It waits for its end.
    Pending,
    /// A reply was sent.
    Answered,
    /// Its time is over, or its caller waits no longer.
    Expired,
    /// The bus took the reply over, and brings it if it can be brought.
    Relayed,
}

impl CallState {
    const fn bits(self) -> u64 {
        match self {
            Self::Pending => 0,
            Self::Answered => 1,
            Self::Expired => 2,
            Self::Relayed => 3,
        }
    }

    const fn from_bits(word: u64) -> Self {
        match word & 3 {
            0 => Self::Pending,
            1 => Self::Answered,
            2 => Self::Expired,
            _ => Self::Relayed,
        }
    }
}

/// The word of one call, somewhere in shared memory.
#[derive(Clone, Copy, Debug)]
pub struct CallWord<W> {
    words: W,
    at: usize,
}

impl<W: Words> CallWord<W> {
    /// The word at `at`.
    pub const fn new(words: W, at: usize) -> Self {
        Self { words, at }
    }

    /// Makes call `number` pending, whatever stood here before. Only the caller does this, before anybody hears of
    /// the call. Numbers are above 0 and at most [`CALL_MAX`].
    pub fn begin(&self, number: u64) {
        self.words.store(self.at, word(number, CallState::Pending));
    }

    /// A hint that a call begins or ends here soon.
    pub fn prefetch(&self) {
        self.words.prefetch_to_store(self.at, 1);
    }

    /// Ends call `number` as `how` says. False if it has ended already, or is another call by now: then
    /// nothing happened. `how` is not [`Pending`](CallState::Pending).
    #[must_use = "whoever comes too late must not act as if the call had ended this way"]
    pub fn end(&self, number: u64, how: CallState) -> bool {
        how != CallState::Pending
            && number != 0
            && number <= CALL_MAX
            && self.words.replace(self.at, word(number, CallState::Pending), word(number, how))
    }

    /// Undoes an end as `how`, because the reply was not sent after all. False if the call has not ended that way.
    pub fn reopen(&self, number: u64, how: CallState) -> bool {
        number <= CALL_MAX && self.words.replace(self.at, word(number, how), word(number, CallState::Pending))
    }

    /// How call `number` stands; `None` if this is another call's word.
    #[must_use]
    pub fn state(&self, number: u64) -> Option<CallState> {
        let word = self.words.load(self.at);
        (number != 0 && word >> 2 == number).then_some(CallState::from_bits(word))
    }
}

const fn word(number: u64, state: CallState) -> u64 {
    number << 2 | state.bits()
}

#[cfg(all(test, target_has_atomic = "64"))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_call_ends_once_and_as_the_first_one_says() {
        let words = [const { AtomicU64::new(0) }; 2];
        let call = CallWord::new(&words[..], 1);
        assert!(!call.end(7, CallState::Answered), "it has not begun");
        call.begin(7);
        assert_eq!(call.state(7), Some(CallState::Pending));
        assert!(!call.end(7, CallState::Pending));
        assert!(call.end(7, CallState::Expired));
        assert!(!call.end(7, CallState::Answered) && !call.end(7, CallState::Relayed));
        assert_eq!(call.state(7), Some(CallState::Expired));
    }

    #[test]
    fn a_name_is_what_a_head_says() {
        for name in [CallName { index: 0, number: 1 }, CallName { index: 127, number: CALL_MAX >> 8 }] {
            assert_eq!(CallName::from_word(name.word()), Some(name));
        }
        for word in [0, 5, 1 << 8 | 128, u64::from(u8::MAX)] {
            assert_eq!(CallName::from_word(word), None);
        }
    }

    #[test]
    fn a_reply_that_was_not_sent_leaves_the_call_open() {
        let words = [const { AtomicU64::new(0) }; 1];
        let call = CallWord::new(&words[..], 0);
        call.begin(7);
        let answered = CallState::Answered;
        assert!(!call.reopen(7, answered) && call.end(7, answered));
        assert!(!call.reopen(6, answered) && !call.reopen(7, CallState::Relayed) && call.reopen(7, answered));
        assert!(call.end(7, CallState::Expired) && !call.reopen(7, answered));
    }

    #[test]
    fn a_late_end_does_not_hit_the_next_call() {
        let words = [const { AtomicU64::new(0) }; 1];
        let call = CallWord::new(&words[..], 0);
        call.begin(7);
        call.begin(8);
        assert!(!call.end(7, CallState::Answered));
        assert_eq!((call.state(7), call.state(8)), (None, Some(CallState::Pending)));
        assert!(call.end(8, CallState::Answered));
    }

    #[test]
    fn words_that_are_not_there_hold_no_call() {
        let words = [const { AtomicU64::new(0) }; 1];
        let call = CallWord::new(&words[..], 1);
        call.begin(7);
        assert!(!call.end(7, CallState::Answered) && !call.end(0, CallState::Relayed));
        assert_eq!((call.state(7), call.state(0)), (None, None));
    }
}
