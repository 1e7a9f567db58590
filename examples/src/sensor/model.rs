//! Sensors of no machine: the same values for the same seed, in integers only.

use std::io;

use kdbus_core::Instant;

use super::channel::{Channel, Value};
use super::sampler::Sensors;

/// Ticks of the excursion that an alarm is made of.
const EXCURSION: u64 = 40;

/// How much an excursion adds, in millionths: beyond everything else that a channel does.
const EXCURSION_HEIGHT: i64 = 60_000_000;

/// One outlier in so many readings.
const OUTLIERS: u64 = 200;

/// The channels of the model, with the middle, the swing and the period in ticks of each.
const CHANNELS: [(&str, &str, u64, i64, i64, u64); 6] = [
    ("vibration", "m/s²", 1, 0, 4_000_000, 12),
    ("pressure", "kPa", 1, 101_000_000, 900_000, 700),
    ("current", "A", 1, 2_000_000, 1_500_000, 90),
    ("level", "%", 1, 20_000_000, 10_000_000, 2_000),
    ("temperature", "°C", 5, 45_000_000, 6_000_000, 5_000),
    ("voltage", "V", 5, 12_000_000, 200_000, 1_500),
];

/// The channel that goes beyond its bounds.
pub const WATCHED: &str = "level";

/// A model of six sensors: a triangle each, with noise and outliers, and excursions of the channel [`WATCHED`].
#[derive(Clone, Debug)]
pub struct Model {
    seed: u64,
    /// From one excursion to the next, in ticks.
    every: u64,
    /// The first one.
    first: u64,
    /// One more, if there is one.
    also_at: Option<u64>,
}

impl Model {
    /// A model whose excursions come at every `every`th tick, from one on that the seed decides, and at `also_at`.
    pub fn new(seed: u64, every: u64, also_at: Option<u64>) -> Self {
        let every = every.max(2 * EXCURSION);
        Self { seed, every, first: mix(seed) % every, also_at }
    }

    /// What it measures.
    pub fn channels() -> Vec<Channel> {
        CHANNELS.iter().map(|(name, unit, every, ..)| Channel::new(name, unit, *every)).collect()
    }

    /// The value of a channel at a tick.
    pub fn value(&self, channel: usize, tick: u64) -> Value {
        let Some(&(name, _, _, middle, swing, period)) = CHANNELS.get(channel) else { return Value(0) };
        let phase = tick % period;
        let half = period / 2;
        let up = if phase < half { phase } else { period - phase };
        let triangle = 2 * swing * up as i64 / half.max(1) as i64 - swing;
        let chance = mix(self.seed ^ mix(tick ^ (channel as u64) << 56));
        let noise = (chance % 2_001) as i64 * (swing / 20) / 1_000 - swing / 20;
        let outlier = if (chance >> 32).is_multiple_of(OUTLIERS) { 10 * swing } else { 0 };
        let is_out = name == WATCHED && self.is_out(tick);
        Value(middle + triangle + noise + outlier + if is_out { EXCURSION_HEIGHT } else { 0 })
    }
}

impl Model {
    fn is_out(&self, tick: u64) -> bool {
        match self.also_at {
            // Others are left out around this one, so that it is one of its own.
            Some(at) if tick + 2 * EXCURSION >= at && tick < at + 3 * EXCURSION => {
                (at..at + EXCURSION).contains(&tick)
            }
            _ => tick >= self.first && (tick - self.first) % self.every < EXCURSION,
        }
    }
}

impl Sensors for Model {
    fn read(&mut self, channel: usize, tick: u64, now: &dyn Fn() -> Instant) -> io::Result<(Value, Instant)> {
        Ok((self.value(channel, tick), now()))
    }
}

/// A number that looks like chance, always the same one for the same number (splitmix64).
fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_every_value() {
        let values = |seed| {
            let model = Model::new(seed, 1_000, None);
            (0..6)
                .flat_map(|channel| (0..500).map(move |tick| (channel, tick)))
                .map(|(channel, tick)| model.value(channel, tick))
                .collect::<Vec<_>>()
        };
        assert_eq!(values(7), values(7));
        assert_ne!(values(7), values(8));
    }

    #[test]
    fn only_excursions_are_beyond_the_bounds() {
        let model = Model::new(3, 1_000, Some(5_000));
        let level = Model::channels().iter().position(|channel| channel.name == WATCHED).unwrap();
        let out = (0..10_000).filter(|tick| {
            let mut last: Vec<_> = (*tick..tick + 5).map(|tick| model.value(level, tick)).collect();
            last.sort_unstable();
            last[2] > Value(60_000_000)
        });
        let out = out.count() as u64;
        assert!((9 * EXCURSION..=12 * EXCURSION).contains(&out), "{out}");
    }
}
