//! The equaliser of the pipeline: five bands, a gain, a mute and the limiter, on one block at a time.
//!
//! Nothing here allocates, waits or reads a clock, and the path per sample uses only additions, multiplications,
//! divisions and comparisons, which IEEE 754 defines to the last bit. Trigonometry and powers are computed when a
//! control changes something.

use core::f64::consts::TAU;

use crate::block::{Block, FRAMES, Frame, SAMPLE_RATE};
use crate::control::{BANDS, Change, ControlQueue, Curve, Decibels, Ramp};
use crate::limiter::Limiter;

/// The curves of [`Equaliser::default`]: a little warmth and air.
const DEFAULT_CURVES: [(f32, f32, f32); BANDS] =
    [(110.0, 2.0, 0.7), (280.0, -1.5, 0.9), (1_000.0, 0.0, 1.0), (3_200.0, 1.0, 0.8), (9_000.0, 1.5, 0.7)];

/// Below this a filter's memory is silence; left alone, it would decay into slow subnormal numbers.
const SILENCE: f64 = 1e-30;

/// What a band does to the spectrum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    LowShelf,
    Peak,
    HighShelf,
}

const SHAPES: [Shape; BANDS] = [Shape::LowShelf, Shape::Peak, Shape::Peak, Shape::Peak, Shape::HighShelf];

/// The five numbers of a second-order filter, divided by a0.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Coefficients {
    b0: f64,
    b1: f64,
    b2: f64,
    a1: f64,
    a2: f64,
}

impl Coefficients {
    /// The audio equaliser filters of Robert Bristow-Johnson, by the bilinear transform.
    fn new(shape: Shape, curve: Curve) -> Self {
        let amplitude = 10f64.powf(f64::from(curve.gain().get()) / 40.0);
        let (sin, cos) = (TAU * f64::from(curve.frequency_hz()) / f64::from(SAMPLE_RATE)).sin_cos();
        let alpha = sin / (2.0 * f64::from(curve.q()));
        let (b, a) = match shape {
            Shape::Peak => (
                [1.0 + alpha * amplitude, -2.0 * cos, 1.0 - alpha * amplitude],
                [1.0 + alpha / amplitude, -2.0 * cos, 1.0 - alpha / amplitude],
            ),
            // A high shelf is a low shelf with its spectrum turned round: cos changes sign, and so do b1 and a1.
            Shape::LowShelf | Shape::HighShelf => {
                let side = if shape == Shape::LowShelf { 1.0 } else { -1.0 };
                let (cos, slope) = (cos * side, 2.0 * amplitude.sqrt() * alpha);
                let (above, below) = (amplitude + 1.0, amplitude - 1.0);
                (
                    [
                        amplitude * (above - below * cos + slope),
                        2.0 * side * amplitude * (below - above * cos),
                        amplitude * (above - below * cos - slope),
                    ],
                    [
                        above + below * cos + slope,
                        -2.0 * side * (below + above * cos),
                        above + below * cos - slope,
                    ],
                )
            }
        };
        Self { b0: b[0] / a[0], b1: b[1] / a[0], b2: b[2] / a[0], a1: a[1] / a[0], a2: a[2] / a[0] }
    }

    fn between(self, other: Self, part: f64) -> Self {
        let mix = |from: f64, to: f64| from + (to - from) * part;
        Self {
            b0: mix(self.b0, other.b0),
            b1: mix(self.b1, other.b1),
            b2: mix(self.b2, other.b2),
            a1: mix(self.a1, other.a1),
            a2: mix(self.a2, other.a2),
        }
    }
}

/// One band: a filter in transposed direct form II, with a memory for each channel.
///
/// The memory is f64. A band at 20 Hz has its poles within 0.003 of the unit circle, where the rounding of f32 would
/// come back amplified as audible noise; and no finite f32 input can overflow it.
#[derive(Clone, Debug)]
struct Band {
    shape: Shape,
    now: Coefficients,
    target: Coefficients,
    memory: [[f64; 2]; 2],
}

impl Band {
    fn new(shape: Shape, curve: Curve) -> Self {
        let now = Coefficients::new(shape, curve);
        Self { shape, now, target: now, memory: [[0.0; 2]; 2] }
    }

    fn glide_to(&mut self, curve: Curve) {
        self.target = Coefficients::new(self.shape, curve);
    }

    fn process(&mut self, frames: &mut [[f64; 2]; FRAMES]) {
        if self.now == self.target {
            for frame in &mut *frames {
                self.step(self.now, frame);
            }
        } else {
            // All filters on the way are stable, since the stable (a1, a2) form a triangle, which is convex.
            for (at, frame) in frames.iter_mut().enumerate() {
                self.step(self.now.between(self.target, part(at)), frame);
            }
            self.now = self.target;
        }
        for value in self.memory.as_flattened_mut() {
            if value.abs() < SILENCE {
                *value = 0.0;
            }
        }
    }

    #[inline]
    fn step(&mut self, c: Coefficients, frame: &mut [f64; 2]) {
        for (sample, [first, second]) in frame.iter_mut().zip(&mut self.memory) {
            let input = *sample;
            let output = c.b0 * input + *first;
            *first = c.b1 * input - c.a1 * output + *second;
            *second = c.b2 * input - c.a2 * output;
            *sample = output;
        }
    }
}

/// A factor that moves in a straight line over the frames of one block.
#[derive(Clone, Copy, Debug)]
struct Level {
    now: f64,
    target: f64,
}

impl Level {
    const fn new(level: f64) -> Self {
        Self { now: level, target: level }
    }

    fn at(self, frame: usize) -> f64 {
        self.now + (self.target - self.now) * part(frame)
    }
}

/// How much of a block's way is done at its frame `at`: a 64th at the first, all at the last.
fn part(at: usize) -> f64 {
    (at + 1) as f64 / FRAMES as f64
}

/// Low shelf, three peaks, high shelf; then gain, mute and limiter.
///
/// The same blocks and controls give the same bits, each time and whatever else the machine does.
#[derive(Clone, Debug)]
pub struct Equaliser {
    bands: [Band; BANDS],
    gain: Level,
    mute: Level,
    limiter: Limiter,
}

impl Equaliser {
    /// Makes an equaliser with these curves, no gain, and this limiter.
    pub fn new(curves: [Curve; BANDS], limiter: Limiter) -> Self {
        Self {
            bands: core::array::from_fn(|at| Band::new(SHAPES[at], curves[at])),
            gain: Level::new(1.0),
            mute: Level::new(1.0),
            limiter,
        }
    }

    /// Makes what `change` says take effect from the first frame of the next block; a band that does not exist is left
    /// alone.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Gain(gain, Ramp::Smoothed) => self.gain.target = gain.factor(),
            Change::Gain(gain, Ramp::Stepped) => self.gain = Level::new(gain.factor()),
            Change::Mute => self.mute.target = 0.0,
            Change::Unmute => self.mute.target = 1.0,
            Change::Band(band, curve) => {
                if let Some(band) = self.bands.get_mut(usize::from(band)) {
                    band.glide_to(curve);
                }
            }
        }
    }

    /// Works on one block in place; its cost is the same for any content.
    pub fn process(&mut self, block: &mut Block) {
        let mut frames = block.frames().map(|frame| {
            // Blocks from outside are finite; one made in this process may not be, and must not stay in a filter.
            if frame.is_finite() { [f64::from(frame.left()), f64::from(frame.right())] } else { [0.0; 2] }
        });
        for band in &mut self.bands {
            band.process(&mut frames);
        }
        for (at, [left, right]) in frames.iter_mut().enumerate() {
            let level = self.gain.at(at) * self.mute.at(at);
            *left *= level;
            *right *= level;
        }
        self.gain = Level::new(self.gain.target);
        self.mute = Level::new(self.mute.target);
        self.limiter.process(&mut frames);
        for (frame, [left, right]) in block.frames_mut().iter_mut().zip(frames) {
            *frame = Frame::new(left as f32, right as f32);
        }
        // What sounds on behind the end of the piece is not part of it.
        if block.is_last() {
            block.set_last(block.len());
        }
    }

    /// Obeys the controls that are due at `block`, then works on it; says how many there were.
    pub fn run(&mut self, block: &mut Block, controls: &mut ControlQueue) -> usize {
        let mut applied = 0;
        while let Some(due) = controls.pop_due(block.index()) {
            self.apply(due.control.change);
            applied += 1;
        }
        self.process(block);
        applied
    }

    /// The limiter, to read its meter.
    pub const fn limiter(&self) -> &Limiter {
        &self.limiter
    }
}

impl Default for Equaliser {
    /// The demonstration's sound: gentle curves under a ceiling of −1 dB.
    fn default() -> Self {
        let curve = |(hz, gain, q): (f32, f32, f32)| Curve::new(hz, Decibels::new(gain)?, q);
        // The numbers above are within their ranges, which a test holds them to; flat is what remains otherwise.
        let curves = DEFAULT_CURVES.map(|numbers| curve(numbers).unwrap_or(Curve::FLAT));
        Self::new(curves, Limiter::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Control, Schedule};

    fn flat() -> Equaliser {
        Equaliser::new([Curve::FLAT; BANDS], Limiter::default())
    }

    fn db(decibels: f32) -> Decibels {
        Decibels::new(decibels).unwrap()
    }

    /// A block of a sine of `hz` with this amplitude.
    fn sine(index: u64, hz: f64, amplitude: f64) -> Block {
        let mut block = Block::new(index);
        for (at, frame) in block.frames_mut().iter_mut().enumerate() {
            let seconds = (index as f64 * FRAMES as f64 + at as f64) / f64::from(SAMPLE_RATE);
            let sample = (amplitude * (TAU * hz * seconds).sin()) as f32;
            *frame = Frame::new(sample, 0.5 * sample);
        }
        block
    }

    fn loudest(block: &Block) -> f32 {
        block.frames().iter().fold(0.0, |peak, frame| peak.max(frame.left().abs()))
    }

    /// Gain in decibels that a settled equaliser gives a sine of `hz`.
    fn response(equaliser: &mut Equaliser, hz: f64) -> f64 {
        let mut peak = 0.0f32;
        for index in 0..600 {
            let mut block = sine(index, hz, 0.01);
            equaliser.process(&mut block);
            if index > 300 {
                peak = peak.max(loudest(&block));
            }
        }
        20.0 * f64::from(peak / 0.01).log10()
    }

    #[test]
    fn flat_curves_pass_every_bit() {
        let mut equaliser = flat();
        for index in 0..50 {
            let mut block = sine(index, 997.0, 0.8);
            equaliser.process(&mut block);
            assert_eq!(block, sine(index, 997.0, 0.8));
        }
    }

    #[test]
    fn peak_lifts_its_centre_and_spares_the_rest() {
        let mut equaliser = flat();
        equaliser.apply(Change::Band(2, Curve::new(1_000.0, db(6.0), 1.0).unwrap()));
        assert!((response(&mut equaliser, 1_000.0) - 6.0).abs() < 0.05);
        assert!(response(&mut equaliser, 60.0).abs() < 0.1);
        assert!(response(&mut equaliser, 15_000.0).abs() < 0.3);
    }

    #[test]
    fn shelves_lift_their_side_only() {
        let mut low = flat();
        low.apply(Change::Band(0, Curve::new(200.0, db(6.0), 0.7).unwrap()));
        assert!((response(&mut low, 30.0) - 6.0).abs() < 0.2);
        assert!((response(&mut low, 200.0) - 3.0).abs() < 0.2);
        assert!(response(&mut low, 5_000.0).abs() < 0.1);
        let mut high = flat();
        high.apply(Change::Band(4, Curve::new(5_000.0, db(-6.0), 0.7).unwrap()));
        assert!((response(&mut high, 18_000.0) + 6.0).abs() < 0.3);
        assert!((response(&mut high, 5_000.0) + 3.0).abs() < 0.2);
        assert!(response(&mut high, 100.0).abs() < 0.1);
    }

    #[test]
    fn default_curves_are_within_their_ranges() {
        for (hz, gain, q) in DEFAULT_CURVES {
            assert!(Curve::new(hz, db(gain), q).is_ok());
        }
        assert!(response(&mut Equaliser::default(), 30.0) > 1.0);
    }

    #[test]
    fn smoothed_gain_and_mute_make_no_step() {
        let mut equaliser = flat();
        let mut last: Option<f32> = None;
        for index in 0..16 {
            match index {
                3 => equaliser.apply(Change::Gain(db(-12.0), Ramp::Smoothed)),
                6 => equaliser.apply(Change::Gain(db(0.0), Ramp::Smoothed)),
                9 => equaliser.apply(Change::Mute),
                12 => equaliser.apply(Change::Unmute),
                _ => {}
            }
            let mut block = Block::new(index);
            block.frames_mut().fill(Frame::new(0.5, 0.5));
            equaliser.process(&mut block);
            for frame in block.frames() {
                let step = (frame.left() - last.unwrap_or(0.5)).abs();
                assert!(step <= 0.5 / FRAMES as f32 + 1e-6, "step of {step} in block {index}");
                last = Some(frame.left());
            }
            if index == 10 {
                assert_eq!(block.frames(), &[Frame::default(); FRAMES]);
            }
        }
        assert_eq!(last, Some(0.5));
    }

    #[test]
    fn stepped_gain_is_there_from_the_first_frame() {
        let mut equaliser = flat();
        let mut block = Block::new(0);
        block.frames_mut().fill(Frame::new(0.5, 0.5));
        equaliser.apply(Change::Gain(db(-20.0), Ramp::Stepped));
        equaliser.process(&mut block);
        assert_eq!(block.frames(), &[Frame::new(0.05, 0.05); FRAMES]);
    }

    #[test]
    fn band_changes_glide() {
        let mut equaliser = flat();
        let mut last = sine(0, 100.0, 0.2).frames()[0].left();
        for index in 0..400 {
            let gain = if index % 4 < 2 { 12.0 } else { -12.0 };
            if index % 2 == 1 {
                equaliser.apply(Change::Band(3, Curve::new(8_000.0, db(gain), 2.0).unwrap()));
            }
            let mut block = sine(index, 100.0, 0.2);
            equaliser.process(&mut block);
            for frame in block.frames() {
                // A sine of 100 Hz moves by at most 0.2 · 2π · 100 / 48 000 = 0.0026 per frame by itself;
                // filters exchanged at once would make it jump by several times that.
                let step = (frame.left() - last).abs();
                assert!(step < 0.006, "step of {step} in block {index}");
                last = frame.left();
            }
        }
    }

    #[test]
    fn loudest_input_stays_under_the_ceiling() {
        let mut equaliser = Equaliser::default();
        equaliser.apply(Change::Gain(db(24.0), Ramp::Stepped));
        for index in 0..200 {
            let mut block = sine(index, 80.0 + index as f64 * 50.0, f64::from(f32::MAX) / 2.0);
            equaliser.process(&mut block);
            assert!(loudest(&block) <= equaliser.limiter().ceiling());
            assert!(loudest(&block) > 0.0);
        }
    }

    #[test]
    fn same_blocks_and_controls_give_the_same_bits_however_early_controls_arrive() {
        let run = |lead: u64| {
            let (mut equaliser, mut queue) = (Equaliser::default(), ControlQueue::new(64));
            let mut schedule = Schedule::demo(2_000);
            let mut blocks = Vec::new();
            for index in 0..2_000 {
                while let Some(control) = schedule.next_through(index + lead) {
                    queue.push(control).unwrap();
                }
                let mut block = sine(index, 300.0, 0.9);
                equaliser.run(&mut block, &mut queue);
                blocks.push(block);
            }
            assert_eq!(queue.late(), 0);
            blocks
        };
        let (together, ahead) = (run(0), run(700));
        assert!(together == ahead);
        assert!(together.iter().any(|block| *block != sine(block.index(), 300.0, 0.9)));
    }

    #[test]
    fn late_controls_act_on_the_block_at_hand() {
        let (mut equaliser, mut queue) = (flat(), ControlQueue::new(4));
        queue
            .push(Control {
                number: 0,
                block: 3,
                next_block: None,
                sent_at: 0,
                change: Change::Gain(db(-20.0), Ramp::Stepped),
            })
            .unwrap();
        let mut block = Block::new(9);
        block.frames_mut().fill(Frame::new(0.5, 0.5));
        assert_eq!(equaliser.run(&mut block, &mut queue), 1);
        assert_eq!((block.frames()[0], queue.late()), (Frame::new(0.05, 0.05), 1));
    }

    #[test]
    fn what_is_not_finite_is_forgotten_by_the_next_block() {
        let mut equaliser = flat();
        let mut block = Block::new(0);
        block.frames_mut()[5] = Frame::new(f32::NAN, f32::INFINITY);
        equaliser.process(&mut block);
        assert!(Block::parse(zerocopy::IntoBytes::as_bytes(&block)).is_ok());
        let mut block = sine(1, 997.0, 0.8);
        equaliser.process(&mut block);
        assert_eq!(block, sine(1, 997.0, 0.8));
    }

    #[test]
    fn silence_behind_the_end_stays_silent() {
        let mut equaliser = Equaliser::default();
        let mut block = sine(0, 200.0, 0.8);
        block.set_last(20);
        equaliser.process(&mut block);
        assert_eq!(block.len(), 20);
        assert!(block.frames()[20..].iter().all(|frame| *frame == Frame::default()));
        assert!(loudest(&block) > 0.0);
    }
}
