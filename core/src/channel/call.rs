//! How a call ends: once.
//!
//! Each call by lane has a word that caller, callee and bus can write. It names the call by a number that is
//! not used twice while anybody may remember it, and says how the call stands. Whoever moves it away from
//! *pending* has ended the call; all others learn that they came too late.

use super::words::Words;

/// Numbers that a call word can hold.
pub const CALL_MAX: u64 = u64::MAX >> 2;

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
    /// The callee is gone.
    Dead,
}

impl CallState {
    const fn bits(self) -> u64 {
        match self {
            Self::Pending => 0,
            Self::Answered => 1,
            Self::Expired => 2,
            Self::Dead => 3,
        }
    }

    const fn from_bits(word: u64) -> Self {
        match word & 3 {
            0 => Self::Pending,
            1 => Self::Answered,
            2 => Self::Expired,
            _ => Self::Dead,
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

    /// Ends call `number` as `how` says. False if it has ended already, or is another call by now: then
    /// nothing happened. `how` is not [`Pending`](CallState::Pending).
    #[must_use = "whoever comes too late must not act as if the call had ended this way"]
    pub fn end(&self, number: u64, how: CallState) -> bool {
        how != CallState::Pending
            && number != 0
            && number <= CALL_MAX
            && self.words.replace(self.at, word(number, CallState::Pending), word(number, how))
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
        assert!(!call.end(7, CallState::Answered) && !call.end(7, CallState::Dead));
        assert_eq!(call.state(7), Some(CallState::Expired));
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
        assert!(!call.end(7, CallState::Answered) && !call.end(0, CallState::Dead));
        assert_eq!((call.state(7), call.state(0)), (None, None));
    }
}
