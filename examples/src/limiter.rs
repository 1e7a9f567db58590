//! A peak limiter that adds no delay and never lets a sample beyond its ceiling.

use core::time::Duration;

use crate::block::{FRAMES, SAMPLE_RATE};
use crate::control::Decibels;

/// Half a decibel: how much the gain may fall from one frame to the next ahead of a peak.
const ATTACK: f64 = 1.059_253_725_177_288_8;

/// Holds both channels under a ceiling with one gain, so that the stereo image stays in place.
///
/// A block arrives whole, so the frames ahead of a peak in the same block are known before it: there the gain falls
/// half a decibel per frame until it is low enough. A peak at the beginning of a block finds less time or none and
/// pulls the gain down at once; the sample is held in any case. Afterwards the gain returns exponentially.
#[derive(Clone, Debug)]
pub struct Limiter {
    ceiling: f64,
    release: f64,
    gain: f64,
}

impl Limiter {
    /// Makes a limiter with a `ceiling` relative to full scale that closes 63 % of the way back to no reduction in
    /// every `release`.
    pub fn new(ceiling: Decibels, release: Duration) -> Self {
        let release_frames = release.as_secs_f64() * f64::from(SAMPLE_RATE);
        // Rounded to a sample that f32 can hold, so that rounding the output cannot lift it over the ceiling.
        let ceiling = f64::from(ceiling.factor() as f32);
        let release = if release_frames > 0.0 { 1.0 - (-1.0 / release_frames).exp() } else { 1.0 };
        Self { ceiling, release, gain: 1.0 }
    }

    /// Limits one block in place, in two passes; every sample is within the ceiling afterwards, exactly, and silence
    /// stands where one was not a number.
    pub fn process(&mut self, frames: &mut [[f64; 2]; FRAMES]) {
        let mut gains = frames.map(|[left, right]| {
            let peak = left.abs().max(right.abs());
            if peak > self.ceiling { self.ceiling / peak } else { 1.0 }
        });
        for at in (0..FRAMES - 1).rev() {
            gains[at] = gains[at].min(gains[at + 1] * ATTACK);
        }
        for (frame, allowed) in frames.iter_mut().zip(gains) {
            self.gain = allowed.min(self.gain + (1.0 - self.gain) * self.release);
            for sample in frame {
                let held = (*sample * self.gain).clamp(-self.ceiling, self.ceiling);
                *sample = if held.is_nan() { 0.0 } else { held };
            }
        }
    }

    /// The largest absolute value that leaves the limiter; full scale is 1.0.
    pub const fn ceiling(&self) -> f32 {
        self.ceiling as f32
    }

    /// The factor now applied, 1.0 when there is nothing to hold back.
    pub const fn gain(&self) -> f64 {
        self.gain
    }
}

impl Default for Limiter {
    /// A ceiling of −1 dB and a release of 80 ms.
    fn default() -> Self {
        Self::new(Decibels::new(-1.0).unwrap_or(Decibels::ZERO), Duration::from_millis(80))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Noise between −1 and 1 from a 64-bit linear congruential generator.
    fn noise(state: &mut u64) -> f64 {
        *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        f64::from((*state >> 32) as u32 as i32) / f64::from(i32::MAX)
    }

    #[test]
    fn nothing_exceeds_the_ceiling_after_rounding() {
        let mut state = 1;
        for decibels in [0.0, -0.1, -1.0, -3.3, -20.0] {
            let mut limiter = Limiter::new(Decibels::new(decibels).unwrap(), Duration::from_millis(5));
            for block in 0..400 {
                // Level swings from far below the ceiling to far above it, with lone peaks in between.
                let level = if block % 7 == 0 { 1_000.0 } else { f64::from(block % 50) / 10.0 };
                let mut frames = [[0.0; 2]; FRAMES];
                frames.iter_mut().flatten().for_each(|sample| *sample = noise(&mut state) * level);
                limiter.process(&mut frames);
                for sample in frames.as_flattened() {
                    assert!((*sample as f32).abs() <= limiter.ceiling(), "{sample} at {decibels} dB");
                }
            }
        }
    }

    #[test]
    fn sound_below_the_ceiling_passes_untouched() {
        let mut limiter = Limiter::default();
        let mut state = 2;
        let mut frames = [[0.0; 2]; FRAMES];
        frames.iter_mut().flatten().for_each(|sample| *sample = noise(&mut state) * 0.89);
        let before = frames;
        limiter.process(&mut frames);
        assert_eq!(frames, before);
    }

    #[test]
    fn both_channels_keep_their_ratio() {
        let mut limiter = Limiter::default();
        let mut frames = [[3.0, 1.5]; FRAMES];
        limiter.process(&mut frames);
        for [left, right] in frames {
            assert!((left / right - 2.0).abs() < 1e-12);
        }
    }

    #[test]
    fn gain_falls_ahead_of_a_peak_in_the_block_and_returns_after_it() {
        let mut limiter = Limiter::default();
        let mut frames = [[0.5, 0.5]; FRAMES];
        frames[50] = [4.0, 4.0];
        limiter.process(&mut frames);
        assert_eq!(frames[10], [0.5, 0.5]);
        assert!(frames[45][0] < 0.3 && frames[45][0] > frames[49][0]);
        assert_eq!(frames[50][0] as f32, limiter.ceiling());
        let reduced = limiter.gain();
        for _ in 0..2_000 {
            limiter.process(&mut [[0.1, 0.1]; FRAMES]);
        }
        assert!(reduced < 0.3 && limiter.gain() > 0.999);
    }

    #[test]
    fn what_is_not_finite_does_no_lasting_harm() {
        let mut limiter = Limiter::default();
        limiter.process(&mut [[f64::NAN, f64::INFINITY]; FRAMES]);
        let mut frames = [[0.5, f64::NAN]; FRAMES];
        for _ in 0..2_000 {
            frames = [[0.5, f64::NAN]; FRAMES];
            limiter.process(&mut frames);
        }
        assert_eq!(frames[63][1], 0.0);
        assert!((frames[63][0] - 0.5).abs() < 1e-3);
    }
}
