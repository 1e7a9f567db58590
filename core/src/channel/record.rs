//! What caller and bus say of a call where no callee reads or writes it.
//!
//! The [word](CallWord) of a call tells its callee how it stands, and the callee can write there what it likes. So
//! caller and bus keep a second one: whoever moves that one away from *pending* has ended the call for both of them,
//! the caller by taking a reply out of a lane or by waiting no longer, the bus by bringing a reply. Beside it stand
//! the cookie that a reply has to name, and when the call was made. Each call thus has one reply at most, and one that
//! its caller asked for.

use super::call::{CALLS_MAX, CallName, CallState, CallWord};
use super::words::Words;
use crate::Instant;

/// Words that hold the records of all calls by one lane, a page.
pub const RECORD_WORDS: usize = 512;

const COOKIES_AT: usize = CALLS_MAX;
/// Where the bus says why it could not bring a reply.
const FAILURES_AT: usize = 2 * CALLS_MAX;
const TIMES_AT: usize = 3 * CALLS_MAX;

/// The record of one call.
#[derive(Clone, Copy, Debug)]
pub struct CallRecord<W> {
    words: W,
    name: CallName,
}

impl<W: Words> CallRecord<W> {
    /// The record of a call, in words of which [`RECORD_WORDS`] are there.
    pub const fn new(words: W, name: CallName) -> Self {
        Self { words, name }
    }

    fn word(&self) -> CallWord<&W> {
        CallWord::new(&self.words, self.name.index)
    }

    /// Makes the call pending, from `now` on. Only the caller does this, before anybody hears of the call.
    pub fn begin(&self, cookie: u64, now: Instant) {
        self.words.store(TIMES_AT + self.name.index, now.as_nanos());
        self.words.store(COOKIES_AT + self.name.index, cookie);
        self.word().begin(self.name.number);
    }

    /// Ends the call as `how` says. False if it has ended already.
    #[must_use = "whoever comes too late must not act as if the call had ended this way"]
    pub fn end(&self, how: CallState) -> bool {
        self.word().end(self.name.number, how)
    }

    /// Ends the call because nobody waits for it any more, here and in the `word` that its callee sees. False if the callee
    /// has announced a reply, or if the bus brings one.
    #[must_use = "a call that goes on has to be looked at again"]
    pub fn expire<V: Words>(&self, word: &CallWord<V>) -> bool {
        // Twice: a callee may take back just now what it has announced.
        let _ = (0..2).any(|_| word.end(self.name.number, CallState::Expired));
        self.stands(word.state(self.name.number)) != Some(CallState::Answered) && self.end(CallState::Expired)
    }

    /// How the call stands; `None` if another one has its place.
    #[must_use]
    pub fn state(&self) -> Option<CallState> {
        self.word().state(self.name.number)
    }

    /// What its reply has to name, by the caller's word.
    #[must_use]
    pub fn cookie(&self) -> u64 {
        self.words.load(COOKIES_AT + self.name.index)
    }

    /// When it was made, by the caller's word.
    #[must_use]
    pub fn made_at(&self) -> Instant {
        Instant::from_nanos(self.words.load(TIMES_AT + self.name.index))
    }

    /// Says why the reply that the bus has [taken over](CallState::Relayed) will not come: a code from 1 to 255.
    pub fn fail(&self, code: u8) {
        self.words.store(FAILURES_AT + self.name.index, self.name.number << u8::BITS | u64::from(code));
    }

    /// Why the reply will not come, if the bus has said so.
    #[must_use]
    pub fn failure(&self) -> Option<u8> {
        let word = self.words.load(FAILURES_AT + self.name.index);
        (word >> u8::BITS == self.name.number && word as u8 != 0).then_some(word as u8)
    }

    /// How the call stands for its caller, whose callee says `word`: what the bus does, it says here alone, and
    /// what a callee does counts only as long as the call has not ended here.
    #[must_use]
    pub fn stands(&self, word: Option<CallState>) -> Option<CallState> {
        match (self.state()?, word) {
            (CallState::Pending, Some(CallState::Answered | CallState::Expired)) => word,
            (state, _) => Some(state),
        }
    }
}

#[cfg(all(test, target_has_atomic = "64"))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    const CALL: CallName = CallName { index: 5, number: 7 };
    const NEXT: CallName = CallName { index: 5, number: 8 };
    const OTHER: CallName = CallName { index: 6, number: 9 };

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn a_call_has_one_end_and_the_cookie_that_its_caller_gave_it() {
        let words = [const { AtomicU64::new(0) }; RECORD_WORDS];
        let record = |name| CallRecord::new(&words[..], name);
        assert!(!record(CALL).end(CallState::Relayed), "it has not begun");
        record(CALL).begin(50, at(5));
        record(OTHER).begin(60, at(6));
        assert_eq!([CALL, OTHER].map(|name| record(name).cookie()), [50, 60]);
        assert_eq!([CALL, OTHER].map(|name| record(name).made_at()), [at(5), at(6)]);
        assert!(record(CALL).end(CallState::Relayed));
        assert!(!record(CALL).end(CallState::Answered) && !record(CALL).end(CallState::Relayed));
        record(NEXT).begin(70, at(7));
        assert!(!record(CALL).end(CallState::Relayed) && record(NEXT).end(CallState::Relayed));
        // What the bus says late of the first one, in whose place the next one stands, is about the first one.
        record(CALL).fail(5);
        assert_eq!((record(CALL).state(), record(NEXT).failure()), (None, None));
    }

    #[test]
    fn a_callee_says_what_it_does_and_nothing_else() {
        let words = [const { AtomicU64::new(0) }; RECORD_WORDS];
        let record = CallRecord::new(&words[..], CALL);
        let stand = |word| record.stands(word);
        record.begin(50, at(5));
        let (pending, relayed) = (Some(CallState::Pending), Some(CallState::Relayed));
        for word in [pending, relayed, None] {
            assert_eq!(stand(word), pending);
        }
        for word in [Some(CallState::Answered), Some(CallState::Expired)] {
            assert_eq!(stand(word), word);
        }
        assert!(record.end(CallState::Relayed));
        for word in [pending, relayed, None, Some(CallState::Answered), Some(CallState::Expired)] {
            assert_eq!(stand(word), relayed);
        }
    }

    #[test]
    fn a_call_expires_unless_its_reply_is_on_its_way() {
        let (words, callee) = ([const { AtomicU64::new(0) }; RECORD_WORDS], [const { AtomicU64::new(0) }; 6]);
        let (record, word) = (CallRecord::new(&words[..], CALL), CallWord::new(&callee[..], CALL.index));
        let begin = || {
            record.begin(50, at(5));
            word.begin(CALL.number);
        };
        begin();
        assert!(word.end(CALL.number, CallState::Answered) && !record.expire(&word), "announced");
        assert!(word.reopen(CALL.number, CallState::Answered) && record.expire(&word));
        assert_eq!([record.state(), word.state(CALL.number)], [Some(CallState::Expired); 2]);
        assert!(!record.expire(&word));
        begin();
        assert!(record.end(CallState::Relayed) && !record.expire(&word), "the bus brings it");
    }

    #[test]
    fn a_reply_that_cannot_be_brought_leaves_its_reason_for_that_call_alone() {
        let words = [const { AtomicU64::new(0) }; RECORD_WORDS];
        let record = |name| CallRecord::new(&words[..], name);
        assert_eq!(record(CALL).failure(), None);
        record(CALL).fail(105);
        assert_eq!([CALL, NEXT, OTHER].map(|name| record(name).failure()), [Some(105), None, None]);
    }
}
