//! What the parts count and measure.

use serde::{Deserialize, Serialize};

use super::channel::Value;
use crate::hop::HopRecorder;

/// How often things happened. Each part fills in its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// Readings that the sampler published.
    pub sampled: u64,
    /// Readings that a sensor did not give.
    pub unreadable: u64,
    /// Readings that the smoother received.
    pub smoothed: u64,
    /// Readings that it published.
    pub published: u64,
    /// Readings that it kept back because fusion had too many to take in.
    pub shed: u64,
    /// Alarms that it raised.
    pub raised: u64,
    /// Alarms that it ended.
    pub cleared: u64,
    /// Readings that fusion received.
    pub fused: u64,
    /// Beginnings and ends of alarms that it received.
    pub heeded: u64,
    /// States that it published.
    pub states: u64,
    /// Questions that it answered.
    pub answered: u64,
    /// Readings that the recorder received.
    pub recorded_readings: u64,
    /// Beginnings and ends of alarms that it received.
    pub recorded_alarms: u64,
    /// States that it received.
    pub recorded_states: u64,
    /// Lines that it wrote, without the header.
    pub rows: u64,
    /// States that the panel received.
    pub seen_states: u64,
    /// Beginnings and ends of alarms that it received.
    pub seen_alarms: u64,
    /// Questions that it asked.
    pub asked: u64,
    /// Questions that were not answered in time.
    pub unanswered: u64,
    /// Messages that a part had no room for.
    pub lost: u64,
    /// Messages that nobody meant for it: bloom filters let some signals pass that are about something else.
    pub ignored: u64,
}

impl Counts {
    /// Adds what another part counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            sampled,
            unreadable,
            smoothed,
            published,
            shed,
            raised,
            cleared,
            fused,
            heeded,
            states,
            answered,
            recorded_readings,
            recorded_alarms,
            recorded_states,
            rows,
            seen_states,
            seen_alarms,
            asked,
            unanswered,
            lost,
            ignored,
        } = self;
        for (mine, others) in [
            (sampled, other.sampled),
            (unreadable, other.unreadable),
            (smoothed, other.smoothed),
            (published, other.published),
            (shed, other.shed),
            (raised, other.raised),
            (cleared, other.cleared),
            (fused, other.fused),
            (heeded, other.heeded),
            (states, other.states),
            (answered, other.answered),
            (recorded_readings, other.recorded_readings),
            (recorded_alarms, other.recorded_alarms),
            (recorded_states, other.recorded_states),
            (rows, other.rows),
            (seen_states, other.seen_states),
            (seen_alarms, other.seen_alarms),
            (asked, other.asked),
            (unanswered, other.unanswered),
            (lost, other.lost),
            (ignored, other.ignored),
        ] {
            *mine = mine.saturating_add(others);
        }
    }
}

/// What fusion knows of a channel in the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Range {
    /// Readings.
    pub readings: u64,
    /// The lowest smoothed value.
    pub min: Value,
    /// The highest one.
    pub max: Value,
    /// The last one.
    pub last: Value,
    /// Alarms.
    pub alarms: u64,
}

impl Range {
    /// Takes a value in.
    pub fn push(&mut self, value: Value) {
        (self.min, self.max) =
            if self.readings == 0 { (value, value) } else { (self.min.min(value), self.max.max(value)) };
        self.last = value;
        self.readings += 1;
    }
}

/// All that a part measured.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// What it counted.
    pub counts: Counts,
    /// Its hops.
    pub hops: Vec<HopRecorder>,
    /// The channels, in the order of the plan, from the part that knows them.
    pub ranges: Vec<Range>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_several_parts_add_up() {
        let text = |counts: &Counts| serde_json::to_value(counts).unwrap();
        let mut ones = text(&Counts::default());
        ones.as_object_mut().unwrap().values_mut().for_each(|value| *value = 1.into());
        let ones: Counts = serde_json::from_value(ones).unwrap();
        let mut sum = ones;
        sum.add(&ones);
        assert!(text(&sum).as_object().unwrap().values().all(|value| *value == 2), "{sum:?}");
    }

    #[test]
    fn a_range_begins_with_its_first_value() {
        let mut range = Range::default();
        [7, 9, 5].into_iter().for_each(|value| range.push(Value(value)));
        assert_eq!((range.min, range.max, range.last, range.readings), (Value(5), Value(9), Value(5), 3));
    }
}
