//! Looking for a while before sleeping, where that pays.
//!
//! A receiver that sleeps costs its sender a ring and itself a wake-up; one that looks costs a processor. So a wait begins
//! with looking only while looking mostly found something lately: an estimate of how often moves with each look. While it
//! says less than every other time, one wait in [`PROBE_MIN`] looks all the same, and fewer as long as that finds nothing.
//! How long a sleep took says nothing: where two share a processor, the shortest one ends because it was a sleep.

use core::time::Duration;

use kdbus_core::Instant;

use super::receive::Receiver;
use super::transport::LocalTransport;
use super::{bell, gate};

/// Nanoseconds that a wait looks for unless an application says otherwise, where there is a second processor: about what
/// sleeping and waking takes.
const DEFAULT: u32 = 20_000;
/// Nanoseconds that a wait looks for at most.
const MOST: u32 = 1_000_000_000;
/// While looking finds nothing, one wait in so many looks, and fewer after each time.
const PROBE_MIN: u32 = 32;
const PROBE_MAX: u32 = 512;
/// The estimate where each look found something.
const ALWAYS: u32 = 1 << 16;
/// Looks between two at the clock and at what else may have happened, which take as long as one.
const LOOKS: u32 = 4;
/// One wait in so many goes through all that comes before sleeping, though nothing sleeps.
const PAUSE: u32 = 256;

/// How the waits of one connection have ended; see [`LocalTransport::waits`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waits {
    /// Something came while it looked, so that it did not have to sleep.
    pub spun: u64,
    /// It looked for nothing, and slept then.
    pub missed: u64,
    /// Times it slept, those among them.
    pub slept: u64,
}

/// What is remembered from one wait to the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spin {
    /// Nanoseconds that a wait looks for at most; 0 for not at all.
    limit: u32,
    /// How many of [`ALWAYS`] looks found something.
    estimate: u32,
    /// Waits since one has looked, and after how many the next one does although it hardly pays.
    unlooked: u32,
    probe: u32,
    /// Waits since one has gone the whole way.
    unpaused: u32,
    waits: Waits,
}

impl Spin {
    /// Looks for at most `span` in each wait; `None`: where this thread may use more than one processor, for as long as
    /// is worth it.
    pub(super) fn new(span: Option<Duration>) -> Self {
        let span = span.map(|span| u32::try_from(span.as_nanos()).unwrap_or(MOST).min(MOST));
        let limit = span.unwrap_or_else(|| if processors() > 1 { DEFAULT } else { 0 });
        Self { limit, estimate: ALWAYS, unlooked: 0, probe: PROBE_MIN, unpaused: 0, waits: Waits::default() }
    }

    /// How long the next wait looks, if it is to look at all.
    pub(super) fn next(&mut self) -> Option<Duration> {
        if self.limit == 0 {
            return None;
        }
        self.unpaused += 1;
        if self.unpaused >= PAUSE {
            self.unpaused = 0;
            return None;
        }
        self.unlooked += 1;
        if self.estimate < ALWAYS / 2 && self.unlooked < self.probe {
            return None;
        }
        self.unlooked = 0;
        Some(Duration::from_nanos(self.limit.into()))
    }

    /// Something came while a wait looked for it.
    pub(super) fn found(&mut self) {
        self.waits.spun += 1;
        self.probe = PROBE_MIN;
        // Whatever was before, the next wait looks too.
        self.estimate = (self.estimate - self.estimate / 8 + ALWAYS / 8).max(ALWAYS / 2);
    }

    /// A wait is to sleep now, after it has `looked` or at once.
    pub(super) fn slept(&mut self, looked: bool) {
        self.waits.slept += 1;
        if looked {
            self.waits.missed += 1;
            if self.estimate < ALWAYS / 2 {
                self.probe = (2 * self.probe).min(PROBE_MAX);
            }
            self.estimate -= self.estimate / 8;
        }
    }

    /// What was counted.
    pub(super) const fn waits(&self) -> Waits {
        self.waits
    }
}

impl LocalTransport {
    /// How the waits of this connection have ended, to see whether [`Options::spin`](super::Options::spin) pays.
    #[must_use]
    pub fn waits(&self) -> Waits {
        self.spin.get().map(|spin| spin.waits()).unwrap_or_default()
    }

    /// Changes what is remembered of waits.
    pub(super) fn with_spin<R>(&self, change: impl FnOnce(&mut Spin) -> R) -> Option<R> {
        gate()?;
        let mut spin = self.spin.get()?;
        let result = change(&mut spin);
        self.spin.set(Some(spin));
        Some(result)
    }

    /// Looks for a message for a while, but not beyond `deadline`. True if there is one; else whether it looked is in
    /// `looked`.
    pub(super) fn find(&self, deadline: Option<Instant>, looked: &mut bool) -> bool {
        let Some(receiver) = &mut *self.receiver.borrow_mut() else { return false };
        let outward = &mut *self.outward.borrow_mut();
        self.look(deadline.unwrap_or(Instant::FAR), looked, receiver, Receiver::has_message, |receiver| {
            receiver.has_other_news(None, outward.as_mut())
        })
    }

    /// Asks `is_there` for a while, but not beyond `deadline`, until it says so. Now and then, `is_over` may end the look.
    pub(super) fn look<R>(
        &self,
        deadline: Instant,
        looked: &mut bool,
        receiver: &mut R,
        is_there: impl Fn(&mut R) -> bool,
        mut is_over: impl FnMut(&mut R) -> bool,
    ) -> bool {
        if self.bell.is_watched() {
            return false;
        }
        let Some(span) = self.with_spin(Spin::next).flatten() else { return false };
        let end = deadline.min(bell::now().after(span));
        *looked = true;
        loop {
            for _ in 0..LOOKS {
                if is_there(receiver) {
                    self.with_spin(Spin::found);
                    return true;
                }
                core::hint::spin_loop();
            }
            if is_over(receiver) || bell::now() >= end {
                return false;
            }
        }
    }
}

/// Processors that this thread may use, of those that are on.
fn processors() -> u32 {
    rustix::thread::sched_getaffinity(None).map_or(1, |cpus| cpus.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_micros(20);

    /// Waits, and says whether that looked; if it did, something `comes` in time.
    fn wait(spin: &mut Spin, comes: bool) -> bool {
        let looks = spin.next().is_some();
        if looks && comes {
            spin.found();
        } else {
            spin.slept(looks);
        }
        looks
    }

    #[test]
    fn who_finds_something_each_time_does_not_sleep() {
        let mut spin = Spin::new(Some(LIMIT));
        let looked = (0..1000).filter(|_| wait(&mut spin, true)).count() as u64;
        assert_eq!(spin.waits(), Waits { spun: looked, missed: 0, slept: 1000 - looked });
        assert_eq!(looked, 1000 - 1000 / u64::from(PAUSE), "the others go the whole way");
    }

    #[test]
    fn who_finds_nothing_stops_looking_soon_and_tries_more_and_more_rarely() {
        let mut spin = Spin::new(Some(LIMIT));
        let looks: std::vec::Vec<_> = (0..4000).map(|_| wait(&mut spin, false)).collect();
        let count = |looks: &[bool]| looks.iter().filter(|looked| **looked).count() as u32;
        assert_eq!(count(&looks[..16]), 6);
        assert!(count(&looks[16..2000]) <= 7 && (1..=4).contains(&count(&looks[2000..])));
        assert_eq!(spin.waits().missed, u64::from(count(&looks)));
    }

    #[test]
    fn a_miss_among_finds_changes_nothing() {
        let mut spin = Spin::new(Some(LIMIT));
        for round in 0..200 {
            assert!(wait(&mut spin, round % 4 != 0), "round {round}");
        }
    }

    #[test]
    fn looking_comes_back_when_it_finds_something_again() {
        let mut spin = Spin::new(Some(LIMIT));
        for _ in 0..100 {
            wait(&mut spin, false);
        }
        let slept = (0..).take_while(|_| !wait(&mut spin, true)).count() as u32;
        assert!(slept < PROBE_MAX);
        assert!((0..20).all(|_| wait(&mut spin, true)));
    }

    #[test]
    fn none_looks_where_it_is_off() {
        let mut spin = Spin::new(Some(Duration::ZERO));
        assert!((0..100).all(|_| spin.next().is_none()));
        assert_eq!(Spin::new(Some(Duration::MAX)).limit, MOST);
        assert_eq!(Spin::new(None).limit != 0, processors() > 1);
    }
}
