//! Memory that two processes of the simulated machine share, and in which either can be stopped or killed at every access.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use kdbus_core::channel::Words;

/// What happens at an access.
type Interruption = Box<dyn FnOnce()>;

/// With what a peer that is killed leaves.
struct Killed;

/// Words that several peers map, one after another in one thread: every access is seen by all at once. (Weaker memory is for a
/// model checker.)
#[derive(Clone)]
pub struct SharedMemory(Rc<[Cell<u64>]>);

impl SharedMemory {
    /// `count` words of zero.
    #[must_use]
    pub fn new(count: usize) -> Self {
        Self((0..count).map(|_| Cell::new(0)).collect())
    }

    /// The memory as one peer sees it.
    #[must_use]
    pub fn map(&self, peer: &Peer) -> Mapping {
        Mapping { memory: self.clone(), peer: peer.clone() }
    }
}

impl fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedMemory").field("words", &self.0.len()).finish()
    }
}

/// A peer whose accesses to shared memory are counted, over all that it maps.
#[derive(Clone, Default)]
pub struct Peer(Rc<State>);

#[derive(Default)]
struct State {
    accesses: Cell<u64>,
    /// The access before which something happens.
    at: Cell<Option<u64>>,
    what: RefCell<Option<Interruption>>,
}

impl Peer {
    /// A peer that has done nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many accesses it has made.
    #[must_use]
    pub fn accesses(&self) -> u64 {
        self.0.accesses.get()
    }

    /// Stops the peer before the access that is the `nth` from now, the next one being 1, lets `others` do what they like, and
    /// lets it go on.
    pub fn stop_at(&self, nth: u64, others: impl FnOnce() + 'static) {
        self.0.at.set(Some(self.accesses() + nth));
        *self.0.what.borrow_mut() = Some(Box::new(others));
    }

    /// Kills the peer before the access that is the `nth` from now: [`live`](Self::live) ends there.
    pub fn kill_at(&self, nth: u64) {
        self.stop_at(nth, || panic::resume_unwind(Box::new(Killed)));
    }

    /// Runs a part of the peer's life; `None` if it was killed in it.
    ///
    /// # Panics
    ///
    /// As `life` does.
    pub fn live<R>(&self, life: impl FnOnce() -> R) -> Option<R> {
        match panic::catch_unwind(AssertUnwindSafe(life)) {
            Ok(result) => Some(result),
            Err(reason) if reason.is::<Killed>() => None,
            Err(panic) => panic::resume_unwind(panic),
        }
    }

    fn access(&self) {
        let count = self.accesses() + 1;
        self.0.accesses.set(count);
        if self.0.at.get() == Some(count) {
            self.0.at.set(None);
            // Taken out first: it may plan the next one.
            let what = self.0.what.borrow_mut().take();
            if let Some(what) = what {
                what();
            }
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("accesses", &self.accesses()).finish_non_exhaustive()
    }
}

/// Shared memory as one peer maps it.
#[derive(Clone, Debug)]
pub struct Mapping {
    memory: SharedMemory,
    peer: Peer,
}

impl Mapping {
    /// The word at `index` after what comes before the access, if there is one.
    fn word(&self, index: usize) -> Option<&Cell<u64>> {
        self.peer.access();
        self.memory.0.get(index)
    }
}

impl Words for Mapping {
    fn count(&self) -> usize {
        self.memory.0.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.word(index).map_or(0, Cell::get)
    }

    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.word(index) {
            word.set(value);
        }
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        self.word(index).map_or(0, |word| word.replace(value))
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.word(index).map_or(0, |word| word.replace(word.get() | bits))
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.word(index).is_some_and(|word| {
            let is_there = word.get() == expected;
            if is_there {
                word.set(new);
            }
            is_there
        })
    }

    fn fence(&self) {
        self.peer.access();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_stopped_before_the_access_and_goes_on_behind_it() {
        let memory = SharedMemory::new(2);
        let (one, other) = (Peer::new(), Peer::new());
        let (mine, theirs) = (memory.map(&one), memory.map(&other));
        one.stop_at(2, move || theirs.store(0, 7));
        mine.store(0, 1);
        assert_eq!((mine.load(0), one.accesses(), other.accesses()), (7, 2, 1));
    }

    #[test]
    fn a_killed_peer_does_nothing_more_and_others_go_on() {
        let memory = SharedMemory::new(2);
        let (one, other) = (Peer::new(), Peer::new());
        let mine = memory.map(&one);
        one.kill_at(2);
        let lived = one.live(|| {
            mine.store(0, 1);
            mine.store(1, 1);
        });
        let theirs = memory.map(&other);
        assert_eq!((lived, theirs.load(0), theirs.load(1)), (None, 1, 0));
        assert_eq!(one.live(|| mine.swap(1, 5)), Some(0));
    }

    #[test]
    fn words_beyond_the_end_read_as_zero_and_take_nothing() {
        let peer = Peer::new();
        let mapping = SharedMemory::new(1).map(&peer);
        mapping.store(1, 9);
        mapping.set_bits(usize::MAX, 9);
        assert_eq!((mapping.load(1), mapping.swap(1, 9), mapping.replace(1, 0, 9)), (0, 0, false));
        assert_eq!((mapping.count(), mapping.load(0)), (1, 0));
    }
}
