//! Tasks that wait for something other than the answer to a call.

use core::cell::Cell;
use core::task::Waker;

use crate::Instant;

/// Tasks that can wait at a time on one connection for messages, names or room. Pending calls have places of
/// their own.
pub const TASKS_MAX: usize = 8;

/// What a task waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    Message,
    Name,
    Room,
    /// Nothing but its time.
    Time,
}

#[derive(Clone, Copy, Debug)]
struct State {
    want: Want,
    until: Instant,
}

/// A place for one task. Cells, because a waker may run anything, this connection included.
#[derive(Default)]
struct Place {
    state: Cell<Option<State>>,
    waker: Cell<Option<Waker>>,
}

/// The places of a connection.
#[derive(Default)]
pub(super) struct Waiters {
    places: [Place; TASKS_MAX],
    /// Places that are taken: mostly none, and then nobody has to look at them.
    taken: Cell<u8>,
}

/// One task's place, given back when the task no longer waits.
pub(super) struct Seat<'c> {
    place: &'c Place,
    taken: &'c Cell<u8>,
}

impl Waiters {
    /// A place for a task that wants `want`, or `None` if all are taken.
    pub(super) fn seat(&self, want: Want) -> Option<Seat<'_>> {
        let place = self.places.iter().find(|place| place.state.get().is_none())?;
        place.state.set(Some(State { want, until: Instant::FAR }));
        self.taken.set(self.taken.get() + 1);
        Some(Seat { place, taken: &self.taken })
    }

    /// Whether nobody waits.
    pub(super) const fn is_empty(&self) -> bool {
        self.taken.get() == 0
    }

    /// Whether anybody wants `want`.
    pub(super) fn any(&self, want: Want) -> bool {
        self.states().any(|state| state.want == want)
    }

    /// Whether some task waits, and every one for its time alone.
    pub(super) fn all_sleep(&self) -> bool {
        self.any(Want::Time) && self.states().all(|state| state.want == Want::Time)
    }

    /// The earliest time at which a task wants to be woken.
    pub(super) fn next(&self) -> Option<Instant> {
        self.states().map(|state| state.until).filter(|until| *until != Instant::FAR).min()
    }

    /// Wakes everybody who wants `want`.
    pub(super) fn wake(&self, want: Want) {
        self.wake_if(|state| state.want == want);
    }

    /// Wakes everybody whose time has come, once.
    pub(super) fn wake_due(&self, now: Instant) {
        for place in self.places() {
            if let Some(state) = place.state.get().filter(|state| state.until <= now) {
                place.state.set(Some(State { until: Instant::FAR, ..state }));
                if let Some(waker) = place.waker.take() {
                    waker.wake();
                }
            }
        }
    }

    /// Wakes everybody.
    pub(super) fn wake_all(&self) {
        self.wake_if(|_| true);
    }

    fn wake_if(&self, woken: impl Fn(State) -> bool) {
        for place in self.places() {
            if place.state.get().is_some_and(&woken)
                && let Some(waker) = place.waker.take()
            {
                waker.wake();
            }
        }
    }

    fn states(&self) -> impl Iterator<Item = State> {
        self.places().iter().filter_map(|place| place.state.get())
    }

    /// Those that may be taken.
    fn places(&self) -> &[Place] {
        if self.is_empty() { &[] } else { &self.places }
    }
}

impl Seat<'_> {
    /// Has the task woken when something it wants comes in, or at `until`.
    pub(super) fn park(&self, waker: &Waker, until: Instant) {
        let state = self.place.state.get();
        self.place.state.set(state.map(|state| State { until, ..state }));
        self.place.waker.set(Some(waker.clone()));
    }
}

impl Drop for Seat<'_> {
    fn drop(&mut self) {
        self.place.state.set(None);
        self.place.waker.set(None);
        self.taken.set(self.taken.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::Wake;
    use std::vec::Vec;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn tasks_are_woken_for_what_they_want_and_at_their_time() {
        let waiters = Waiters::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let woken = || count.0.load(Ordering::Relaxed);
        let seat = waiters.seat(Want::Room).unwrap();
        seat.park(&waker, Instant::from_nanos(50));
        waiters.wake(Want::Message);
        waiters.wake_due(Instant::from_nanos(49));
        assert_eq!((woken(), waiters.next()), (0, Some(Instant::from_nanos(50))));
        waiters.wake_due(Instant::from_nanos(50));
        assert_eq!((woken(), waiters.next()), (1, None), "its time is over until it parks again");
        waiters.wake(Want::Room);
        assert_eq!(woken(), 1, "a task that was woken has to park again");
        seat.park(&waker, Instant::FAR);
        waiters.wake(Want::Room);
        assert_eq!(woken(), 2);
    }

    #[test]
    fn places_come_back_and_never_grow() {
        let waiters = Waiters::default();
        let seats: Vec<_> = (0..TASKS_MAX).map(|_| waiters.seat(Want::Message).unwrap()).collect();
        assert!(waiters.seat(Want::Message).is_none());
        drop(seats);
        assert!(!waiters.any(Want::Message));
        assert!(waiters.seat(Want::Name).is_some());
    }
}
