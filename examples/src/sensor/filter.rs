//! The filter of one channel: a median against outliers, and a low pass behind it. Integers only.

use super::channel::Value;

/// Readings that the median looks at.
const WINDOW: usize = 5;

/// The low pass goes this part of the way, as a power of two, with each reading.
const SHIFT: u32 = 2;

/// Bits behind the point that the low pass keeps.
const FRACTION: u32 = 8;

/// What has come of a reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smoothed {
    /// The median of the last readings.
    pub median: Value,
    /// The low pass of the medians.
    pub value: Value,
    /// Whether enough readings have come that one of them alone decides nothing.
    pub is_settled: bool,
}

/// A median of five and a low pass of first order. An outlier of up to two readings leaves no trace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Filter {
    window: [i64; WINDOW],
    count: usize,
    next: usize,
    /// In parts of 2^-FRACTION.
    low: i128,
}

impl Filter {
    /// Takes a reading in; constant time.
    pub fn push(&mut self, raw: Value) -> Smoothed {
        self.window[self.next] = raw.0;
        self.next = (self.next + 1) % WINDOW;
        self.count = (self.count + 1).min(WINDOW);
        let mut sorted = self.window;
        let sorted = &mut sorted[..self.count];
        sorted.sort_unstable();
        let median = sorted[self.count / 2];
        let is_settled = self.count == WINDOW;
        let target = i128::from(median) << FRACTION;
        if is_settled {
            self.low += (target - self.low) >> SHIFT;
        } else {
            self.low = target;
        }
        let rounded = (self.low + (1 << (FRACTION - 1))) >> FRACTION;
        // Between medians, which are of this width.
        let value = i64::try_from(rounded).unwrap_or(median);
        Smoothed { median: Value(median), value: Value(value), is_settled }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outlier_leaves_no_trace() {
        let mut filter = Filter::default();
        for raw in [10, 10, 10, 10, 10, 9_000, -9_000, 10, 10] {
            assert_eq!(filter.push(Value(raw)).value, Value(10));
        }
    }

    #[test]
    fn a_step_is_followed_and_reached() {
        let mut filter = Filter::default();
        for _ in 0..9 {
            filter.push(Value(0));
        }
        let steps: Vec<_> = (0..60).map(|_| filter.push(Value(1_000)).value.0).collect();
        assert_eq!(steps[..2], [0, 0], "two readings may be outliers");
        assert!(steps.is_sorted() && steps[2] == 250, "{steps:?}");
        assert!((995..=1_000).contains(&steps[59]), "{steps:?}");
    }

    #[test]
    fn the_extremes_do_not_overflow() {
        let mut filter = Filter::default();
        for raw in [i64::MAX, i64::MIN].into_iter().cycle().take(50) {
            filter.push(Value(raw));
        }
        for _ in 0..200 {
            filter.push(Value(i64::MIN));
        }
        assert!(filter.push(Value(i64::MIN)).value.0 < i64::MIN / 2);
    }

    #[test]
    fn it_is_settled_when_no_single_reading_decides() {
        let mut filter = Filter::default();
        let settled: Vec<_> = (0..6).map(|raw| filter.push(Value(raw)).is_settled).collect();
        assert_eq!(settled, [false, false, false, false, true, true]);
    }
}
