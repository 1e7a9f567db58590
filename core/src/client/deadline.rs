//! Until when to wait.

use core::time::Duration;

use crate::Instant;

/// How long to wait for the answer of a call where nothing speaks for another span.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(25);

/// Until when to wait: a span from now, a point on the bus' clock, or without end.
///
/// Made from a [`Duration`] or an [`Instant`]; the default is [`CALL_TIMEOUT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Deadline {
    /// This long from the moment the operation begins.
    After(Duration),
    /// Up to this point.
    At(Instant),
    /// For as long as it takes.
    Never,
}

impl Deadline {
    /// The point in time that this deadline means at `now`.
    #[must_use]
    pub const fn at(self, now: Instant) -> Instant {
        match self {
            Self::After(span) => now.after(span),
            Self::At(at) => at,
            Self::Never => Instant::FAR,
        }
    }
}

impl Default for Deadline {
    fn default() -> Self {
        Self::After(CALL_TIMEOUT)
    }
}

impl From<Duration> for Deadline {
    fn from(span: Duration) -> Self {
        Self::After(span)
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Self::At(at)
    }
}

/// The deadline that a call carries: nanoseconds that every transport takes for a time to come.
///
/// kdbus: 0 is no deadline, and a synchronous call takes anything from 2^63 on for long past.
pub(super) const fn timeout_ns(at: Instant) -> u64 {
    match at.as_nanos() {
        0 => 1,
        ns if ns > i64::MAX as u64 => i64::MAX as u64,
        ns => ns,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_count_from_now_and_points_stand() {
        let now = Instant::from_nanos(100);
        assert_eq!(Deadline::from(Duration::from_nanos(5)).at(now), Instant::from_nanos(105));
        assert_eq!(Deadline::from(Instant::from_nanos(7)).at(now), Instant::from_nanos(7));
        assert_eq!(Deadline::Never.at(now), Instant::FAR);
    }

    #[test]
    fn calls_never_carry_a_deadline_that_means_something_else() {
        assert_eq!(timeout_ns(Instant::ZERO), 1);
        assert_eq!(timeout_ns(Instant::FAR), i64::MAX as u64);
        assert_eq!(timeout_ns(Instant::from_nanos(5)), 5);
    }
}
