//! Points in time on the bus' clock.

use core::time::Duration;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC`, or of the simulator's clock.
///
/// Deadlines of messages are such points, never spans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Instant(u64);

impl Instant {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);
    /// Later than anything that happens.
    pub const FAR: Self = Self(u64::MAX);

    /// The point `ns` nanoseconds after the clock's origin.
    #[must_use]
    pub const fn from_nanos(ns: u64) -> Self {
        Self(ns)
    }

    /// Nanoseconds since the clock's origin.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// The point `span` later, or [`FAR`](Self::FAR) if that is beyond the clock.
    #[must_use]
    pub const fn after(self, span: Duration) -> Self {
        let ns = span.as_nanos();
        if ns > u64::MAX as u128 { Self::FAR } else { Self(self.0.saturating_add(ns as u64)) }
    }

    /// The time from `earlier` to this point, or zero if `earlier` is later.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_saturate_at_the_far_end() {
        assert_eq!(Instant::from_nanos(5).after(Duration::from_nanos(7)).as_nanos(), 12);
        assert_eq!(Instant::from_nanos(5).after(Duration::MAX), Instant::FAR);
        assert_eq!(Instant::from_nanos(5).since(Instant::from_nanos(9)), Duration::ZERO);
    }
}
