//! The simulated machine's two clocks.

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::engine::Clock;

/// Real time at the origin of the monotonic clock: 2020-01-01, so that the two are never confused.
const REALTIME_ORIGIN_NS: u64 = 1_577_836_800_000_000_000;

/// Both clocks of the simulated machine, in whole nanoseconds. They move only when they are told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualClock {
    monotonic: Instant,
    realtime_origin_ns: u64,
}

impl Default for VirtualClock {
    /// One second after start-up: a deadline of 1 ns is then as far in the past as on a real machine.
    fn default() -> Self {
        Self { monotonic: Instant::from_nanos(1_000_000_000), realtime_origin_ns: REALTIME_ORIGIN_NS }
    }
}

impl VirtualClock {
    /// Moves to `at`. The monotonic clock never goes back: an earlier point changes nothing.
    pub fn advance_to(&mut self, at: Instant) {
        self.monotonic = self.monotonic.max(at);
    }

    /// Moves `span` ahead.
    pub fn advance(&mut self, span: Duration) {
        self.monotonic = self.monotonic.after(span);
    }

    /// Sets the real-time clock by `ns` forward or back, as an administrator does; deadlines do not care.
    pub fn set_realtime_by(&mut self, ns: i64) {
        self.realtime_origin_ns = self.realtime_origin_ns.saturating_add_signed(ns);
    }

    /// The point on the monotonic clock.
    #[must_use]
    pub const fn monotonic(&self) -> Instant {
        self.monotonic
    }

    /// Both clocks, as an engine takes them.
    #[must_use]
    pub const fn now(&self) -> Clock {
        let realtime_ns = self.realtime_origin_ns.saturating_add(self.monotonic.as_nanos());
        Clock { monotonic: self.monotonic, realtime_ns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_monotonic_clock_never_goes_back() {
        let mut clock = VirtualClock::default();
        let start = clock.monotonic();
        clock.advance(Duration::from_nanos(5));
        clock.advance_to(start);
        assert_eq!(clock.monotonic().since(start), Duration::from_nanos(5));
    }

    #[test]
    fn setting_the_real_time_leaves_the_monotonic_clock_alone() {
        let mut clock = VirtualClock::default();
        let before = clock.now();
        clock.set_realtime_by(-7);
        assert_eq!(clock.now().monotonic, before.monotonic);
        assert_eq!(clock.now().realtime_ns, before.realtime_ns - 7);
    }
}
