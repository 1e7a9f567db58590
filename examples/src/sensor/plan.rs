//! What all parts know of a run before it begins.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::channel::{Channel, Threshold};

/// The longest cycle of fusion.
const CYCLE_MAX: Duration = Duration::from_millis(100);

/// Readings that wait for fusion in a cycle, at most, if nothing is late.
const PER_CYCLE: u64 = 128;

/// Readings that may be under way to fusion. A receiver holds 256 messages of one user, so an alarm finds room behind them.
pub const CREDIT: u64 = 192;

/// Readings beyond the plan, as of a sensor that chatters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    /// At this tick.
    pub tick: u64,
    /// So many, all of the first channel.
    pub readings: u64,
}

/// What is measured, how often, and for how long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// The channels, at most [`CHANNELS_MAX`](super::channel::CHANNELS_MAX).
    pub channels: Vec<Channel>,
    /// What is alarming.
    pub thresholds: Vec<Threshold>,
    /// Ticks of the sampler in a second.
    pub rate: u64,
    /// Ticks of the whole run.
    pub ticks: u64,
    /// How long an answer to the question for the state may take, in nanoseconds.
    pub answer_ns: u64,
    /// A burst of readings, if there is one.
    pub burst: Option<Burst>,
}

impl Plan {
    /// From one tick to the next.
    pub fn period(&self) -> Duration {
        Duration::from_nanos(1_000_000_000 / self.rate.max(1))
    }

    /// From one state to the next: the longest time in which no more readings come than wait well in a queue.
    pub fn cycle(&self) -> Duration {
        let mut cycle = CYCLE_MAX;
        let per_second: f64 =
            self.channels.iter().map(|channel| self.rate as f64 / channel.every.max(1) as f64).sum();
        if per_second > 0.0 {
            cycle = cycle.min(Duration::from_secs_f64(PER_CYCLE as f64 / per_second));
        }
        // Whole periods, so that a cycle ends between two ticks, wherever it begins.
        let periods = (cycle.as_nanos() / self.period().as_nanos().max(1)).max(1);
        self.period() * u32::try_from(periods).unwrap_or(1)
    }

    /// After which time without a reading a channel is stale: three of its periods and a cycle.
    pub fn stale_ns(&self, channel: usize) -> u64 {
        let every = self.channels.get(channel).map_or(1, |channel| channel.every);
        let period = self.period().as_nanos() as u64;
        period.saturating_mul(every).saturating_mul(3).saturating_add(self.cycle().as_nanos() as u64)
    }

    /// How long the run takes.
    pub fn span(&self) -> Duration {
        Duration::from_nanos((self.period().as_nanos() as u64).saturating_mul(self.ticks))
    }

    /// The first threshold without a channel, if there is one.
    pub fn unknown_threshold(&self) -> Option<&Threshold> {
        self.thresholds.iter().find(|threshold| self.index(&threshold.channel).is_none())
    }

    /// The index of the channel called `name`.
    pub fn index(&self, name: &str) -> Option<usize> {
        self.channels.iter().position(|channel| channel.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(channels: usize, rate: u64) -> Plan {
        Plan {
            channels: (0..channels).map(|at| Channel::new(&format!("c{at}"), "", 1)).collect(),
            thresholds: Vec::new(),
            rate,
            ticks: 10,
            answer_ns: 1,
            burst: None,
        }
    }

    #[test]
    fn what_waits_for_fusion_leaves_room_for_alarms() {
        for (channels, rate) in [(1, 1), (8, 50), (10, 100), (32, 1_000), (11, 333)] {
            let plan = plan(channels, rate);
            let ticks = plan.cycle().as_nanos() / plan.period().as_nanos();
            assert_eq!(plan.cycle().as_nanos() % plan.period().as_nanos(), 0);
            let waiting = ticks as u64 * channels as u64;
            assert!(waiting <= PER_CYCLE && PER_CYCLE < CREDIT, "{channels} at {rate}: {waiting}");
        }
    }

    #[test]
    fn a_threshold_has_a_channel() {
        let mut plan = plan(2, 10);
        plan.thresholds = vec!["c1:5".parse().unwrap()];
        assert_eq!(plan.unknown_threshold(), None);
        plan.thresholds.push("c2:5".parse().unwrap());
        assert_eq!(plan.unknown_threshold().unwrap().channel, "c2");
    }
}
