//! The piece that plays when no file is given: eight bars of music, made block by block.
//!
//! Pads, a bass, a bell-like arpeggio with echoes and soft percussion go round four chords. Everything is computed
//! from additions, multiplications and tables in this file, no function of a maths library, so that every machine
//! makes the same bits.

use core::f64::consts::{FRAC_PI_2, SQRT_2};

use crate::block::{Block, FRAMES, Frame, SAMPLE_RATE};

/// Beats per minute; at 80, one beat is 36 000 frames and no event falls between two frames.
const TEMPO: u32 = 80;
const BEAT: u32 = SAMPLE_RATE * 60 / TEMPO;
const EIGHTH: u32 = BEAT / 2;
const BAR: u32 = BEAT * 4;
const BARS: u32 = 8;

/// Frames in the piece: eight bars and two seconds for the sound to die away.
const LENGTH: u32 = BAR * BARS + 2 * SAMPLE_RATE;

/// Twelfth roots of two, from 2^(0/12) to 2^(11/12).
const SEMITONES: [f64; 12] = [
    1.0,
    1.059_463_094_359_295_3,
    1.122_462_048_309_373,
    1.189_207_115_002_721,
    1.259_921_049_894_873_2,
    1.334_839_854_170_034_4,
    SQRT_2,
    1.498_307_076_876_681_5,
    1.587_401_051_968_199_4,
    1.681_792_830_507_429,
    1.781_797_436_280_678_5,
    1.887_748_625_363_387,
];

/// One chord: its bass, the notes the pads hold, and those the arpeggio climbs, as MIDI numbers (60 is middle C).
struct Chord {
    bass: u8,
    pad: [u8; 4],
    bells: [u8; 4],
}

/// A minor with its ninth, F major with its seventh, C major with its ninth, G with a suspended fourth that resolves by
/// going round.
const CHORDS: [Chord; 4] = [
    Chord { bass: 33, pad: [57, 60, 64, 71], bells: [69, 72, 76, 83] },
    Chord { bass: 29, pad: [53, 60, 64, 69], bells: [69, 72, 77, 84] },
    Chord { bass: 36, pad: [55, 60, 64, 74], bells: [67, 72, 76, 86] },
    Chord { bass: 31, pad: [55, 60, 62, 69], bells: [67, 74, 79, 84] },
];

/// Which bell sounds on each eighth of a bar; `None` is a rest.
const PATTERNS: [[Option<usize>; 8]; 2] = [
    [Some(0), Some(1), Some(2), Some(3), Some(2), Some(1), None, Some(2)],
    [Some(0), Some(2), Some(1), Some(3), None, Some(2), Some(3), Some(1)],
];

/// Cycles per frame of a MIDI note in equal temperament, A4 at 440 Hz.
fn pitch(note: u8) -> f64 {
    // 440 Hz · 2^((note − 69) / 12), counted from note 9, the A five octaves below, at 13.75 Hz.
    let above = u32::from(note) + 3;
    let octave = f64::from(1u32 << (above / 12));
    13.75 / 2.0 * octave * SEMITONES[(above % 12) as usize] / f64::from(SAMPLE_RATE)
}

/// The sine of `turns` whole circles, within 0.00001.
fn sine(turns: f64) -> f64 {
    // The odd polynomial of degree 7 that has the slope of the sine at 0, and its value, slope and curvature at 1.
    let turns = turns - turns.floor();
    let quarter = match turns {
        t if t < 0.25 => 4.0 * t,
        t if t < 0.75 => 2.0 - 4.0 * t,
        t => 4.0 * t - 4.0,
    };
    let square = quarter * quarter;
    let inner = -0.6458141179187321 + square * (0.07923925545277455 + square * -0.004221464328938995);
    quarter * (FRAC_PI_2 + square * inner)
}

/// A tone generator that knows where it is in its cycle.
#[derive(Clone, Copy, Debug, Default)]
struct Tone {
    phase: f64,
    step: f64,
}

impl Tone {
    fn tune(&mut self, step: f64) {
        self.step = step;
    }

    fn advance(&mut self) -> f64 {
        self.phase += self.step;
        if self.phase >= 1.0 {
            self.phase -= 1.0;
        }
        self.phase
    }
}

/// A level that goes to its target exponentially.
#[derive(Clone, Copy, Debug, Default)]
struct Follower {
    level: f64,
    target: f64,
    rate: f64,
}

impl Follower {
    /// Goes to `target`, two thirds of the way in `seconds`.
    fn aim(&mut self, target: f64, seconds: f64) {
        self.target = target;
        self.rate = 1.0 / (seconds * f64::from(SAMPLE_RATE));
    }

    fn advance(&mut self) -> f64 {
        self.level += (self.target - self.level) * self.rate;
        self.level
    }
}

/// A note of the pads: two tones a little apart, one on each side, rich at first and darker as they are held.
#[derive(Clone, Copy, Debug, Default)]
struct Pad {
    left: Tone,
    right: Tone,
    level: Follower,
}

impl Pad {
    fn play(&mut self, note: u8) {
        let step = pitch(note);
        self.left.tune(step * 0.9985);
        self.right.tune(step * 1.0015);
        self.level.aim(1.0, 0.35);
    }

    fn advance(&mut self) -> [f64; 2] {
        let level = self.level.advance();
        [&mut self.left, &mut self.right].map(|tone| {
            let phase = tone.advance();
            let bright = 0.32 * level;
            let body = sine(phase)
                + bright * sine(2.0 * phase)
                + bright * 0.6 * sine(3.0 * phase)
                + bright * 0.25 * sine(5.0 * phase);
            body * level
        })
    }
}

/// A bell: one tone bends the phase of another, less and less.
#[derive(Clone, Copy, Debug, Default)]
struct Bell {
    carrier: Tone,
    modulator: Tone,
    level: Follower,
    bend: Follower,
    right: f64,
}

impl Bell {
    fn strike(&mut self, note: u8, force: f64, right: f64) {
        let step = pitch(note);
        self.carrier = Tone { phase: 0.0, step };
        self.modulator = Tone { phase: 0.0, step: step * 3.0 };
        self.level.level = force;
        self.level.aim(0.0, 0.32);
        self.bend.level = 0.22 * force;
        self.bend.aim(0.0, 0.11);
        self.right = right;
    }

    fn advance(&mut self) -> [f64; 2] {
        let bend = self.bend.advance() * sine(self.modulator.advance());
        let sound = sine(self.carrier.advance() + bend) * self.level.advance();
        [sound * (1.0 - self.right), sound * self.right]
    }
}

/// Echo that throws each repeat to the other side.
#[derive(Clone, Debug)]
struct Echo {
    line: Vec<[f64; 2]>,
    at: usize,
}

impl Echo {
    fn new() -> Self {
        Self { line: vec![[0.0; 2]; (EIGHTH + EIGHTH / 2) as usize], at: 0 }
    }

    fn advance(&mut self, [left, right]: [f64; 2]) -> [f64; 2] {
        let place = &mut self.line[self.at];
        let heard = *place;
        *place = [right + heard[1] * 0.42, left + heard[0] * 0.42];
        self.at = (self.at + 1) % self.line.len();
        heard
    }
}

/// The built-in piece; about 26 seconds, the same each time.
///
/// Its memory, mostly the echo, is taken once by [`Synth::new`].
#[derive(Clone, Debug)]
pub struct Synth {
    frame: u32,
    pads: [Pad; 4],
    bass: Tone,
    bass_level: Follower,
    bells: [Bell; 4],
    next_bell: usize,
    echo: Echo,
    kick: Tone,
    kick_fall: Follower,
    kick_level: Follower,
    brush_level: Follower,
    noise: u32,
    noise_before: [f64; 2],
}

impl Synth {
    /// Starts the piece from its beginning.
    pub fn new() -> Self {
        Self {
            frame: 0,
            pads: [Pad::default(); 4],
            bass: Tone::default(),
            bass_level: Follower::default(),
            bells: [Bell::default(); 4],
            next_bell: 0,
            echo: Echo::new(),
            kick: Tone::default(),
            kick_fall: Follower::default(),
            kick_level: Follower::default(),
            brush_level: Follower::default(),
            noise: 0x2545_f491,
            noise_before: [0.0; 2],
        }
    }

    /// Fills `block` with the next 64 frames, numbers it, and says whether there were any.
    pub fn next_block(&mut self, block: &mut Block) -> bool {
        if self.frame >= LENGTH {
            return false;
        }
        block.reset(u64::from(self.frame) / FRAMES as u64);
        let len = FRAMES.min((LENGTH - self.frame) as usize);
        for frame in &mut block.frames_mut()[..len] {
            let [left, right] = self.next_frame();
            *frame = Frame::new(left as f32, right as f32);
        }
        if self.frame >= LENGTH {
            block.set_last(len);
        }
        true
    }

    /// How many frames the piece has.
    pub const fn frames(&self) -> u64 {
        LENGTH as u64
    }

    fn next_frame(&mut self) -> [f64; 2] {
        if self.frame.is_multiple_of(EIGHTH) {
            self.start_notes(self.frame / EIGHTH);
        }
        self.frame += 1;

        let mut dry = [0.0; 2];
        for pad in &mut self.pads {
            add(&mut dry, pad.advance(), 0.055);
        }
        let phase = self.bass.advance();
        let bass =
            (sine(phase) + 0.35 * sine(2.0 * phase) + 0.1 * sine(3.0 * phase)) * self.bass_level.advance();
        add(&mut dry, [bass; 2], 0.2);

        let mut bells = [0.0; 2];
        for bell in &mut self.bells {
            add(&mut bells, bell.advance(), 0.24);
        }
        let echo = self.echo.advance(bells);
        add(&mut dry, bells, 1.0);
        add(&mut dry, echo, 0.45);

        self.kick.tune((45.0 + 110.0 * self.kick_fall.advance()) / f64::from(SAMPLE_RATE));
        let kick = sine(self.kick.advance()) * self.kick_level.advance();
        add(&mut dry, [kick; 2], 0.38);
        let brush = self.brush();
        add(&mut dry, brush, 0.035);
        dry
    }

    /// Two channels of noise with its low end taken away.
    fn brush(&mut self) -> [f64; 2] {
        let level = self.brush_level.advance();
        let mut out = [0.0; 2];
        for (sample, before) in out.iter_mut().zip(&mut self.noise_before) {
            // Marsaglia's xorshift.
            self.noise ^= self.noise << 13;
            self.noise ^= self.noise >> 17;
            self.noise ^= self.noise << 5;
            let noise = f64::from(self.noise as i32) / 2_147_483_648.0;
            *sample = (noise - *before) * level;
            *before = noise;
        }
        out
    }

    fn start_notes(&mut self, eighth: u32) {
        let (bar, in_bar) = (eighth / 8, eighth % 8);
        if bar >= BARS {
            self.end_notes();
            return;
        }
        let chord = &CHORDS[(bar % 4) as usize];
        if in_bar == 0 {
            for (pad, note) in self.pads.iter_mut().zip(chord.pad) {
                pad.play(note);
            }
        }
        // The bass enters after a bar, plays on one and on the upbeat to three, and breathes before each.
        match in_bar {
            0 | 3 if bar > 0 => {
                self.bass.tune(pitch(chord.bass));
                self.bass_level.aim(1.0, 0.02);
            }
            1 | 5 => self.bass_level.aim(0.45, 0.4),
            7 => self.bass_level.aim(0.0, 0.04),
            _ => {}
        }
        if let Some(step) = PATTERNS[(bar % 2) as usize][in_bar as usize] {
            let force = if in_bar.is_multiple_of(4) { 1.0 } else { 0.7 };
            let right = if eighth.is_multiple_of(2) { 0.35 } else { 0.65 };
            self.bells[self.next_bell].strike(chord.bells[step], force, right);
            self.next_bell = (self.next_bell + 1) % self.bells.len();
        }
        // Percussion joins in the third bar: kicks on one and three, brushes between, stronger on two and four.
        if bar >= 2 {
            if in_bar.is_multiple_of(4) {
                self.kick.phase = 0.0;
                self.kick_fall.level = 1.0;
                self.kick_fall.aim(0.0, 0.03);
                self.kick_level.level = 1.0;
                self.kick_level.aim(0.0, 0.13);
            }
            self.brush_level.level = [0.25, 0.4, 1.0, 0.4][(in_bar % 4) as usize];
            self.brush_level.aim(0.0, if in_bar % 4 == 2 { 0.07 } else { 0.025 });
        }
    }

    /// After the last bar: the first chord once more as a bell, the rest fades.
    fn end_notes(&mut self) {
        if self.pads[0].level.target > 0.0 {
            for (bell, note) in self.bells.iter_mut().zip(CHORDS[0].bells) {
                bell.strike(note, 0.6, 0.5);
            }
        }
        for pad in &mut self.pads {
            pad.level.aim(0.0, 0.3);
        }
        self.bass_level.aim(0.0, 0.2);
    }
}

impl Default for Synth {
    fn default() -> Self {
        Self::new()
    }
}

fn add(sum: &mut [f64; 2], sound: [f64; 2], level: f64) {
    sum[0] += sound[0] * level;
    sum[1] += sound[1] * level;
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::OnceLock;

    fn piece() -> &'static [Block] {
        static PIECE: OnceLock<Vec<Block>> = OnceLock::new();
        PIECE.get_or_init(|| {
            let mut synth = Synth::new();
            let mut blocks = Vec::new();
            let mut block = Block::new(0);
            while synth.next_block(&mut block) {
                blocks.push(block.clone());
            }
            blocks
        })
    }

    fn level(blocks: &[Block]) -> f64 {
        let sum: f64 = blocks.iter().flat_map(|b| b.frames()).map(|f| f64::from(f.left()).powi(2)).sum();
        (sum / (blocks.len() * FRAMES) as f64).sqrt()
    }

    #[test]
    fn blocks_are_numbered_and_hold_every_frame() {
        let frames: usize = piece().iter().map(Block::len).sum();
        assert_eq!(frames as u64, Synth::new().frames());
        for (at, block) in piece().iter().enumerate() {
            assert_eq!((block.index(), block.is_last()), (at as u64, at + 1 == piece().len()));
        }
        assert!((20..=30).contains(&(frames / SAMPLE_RATE as usize)));
    }

    #[test]
    fn nothing_clips_and_nothing_is_missing() {
        let peak = piece().iter().flat_map(|b| b.frames()).fold(0.0f32, |peak, frame| {
            assert!(frame.is_finite());
            peak.max(frame.left().abs()).max(frame.right().abs())
        });
        assert!((0.4..1.0).contains(&peak), "peak of {peak}");
        let bar = (BAR / FRAMES as u32) as usize;
        for at in 0..BARS as usize {
            assert!(level(&piece()[at * bar..][..bar]) > 0.05, "bar {at} is silent");
        }
    }

    #[test]
    fn sides_differ_but_weigh_the_same() {
        let (mut left, mut right, mut side) = (0.0, 0.0, 0.0);
        for frame in piece().iter().flat_map(|block| block.frames()) {
            left += f64::from(frame.left()).powi(2);
            right += f64::from(frame.right()).powi(2);
            side += f64::from(frame.left() - frame.right()).powi(2);
        }
        assert!((0.8..1.25).contains(&(left / right)), "{left} to {right}");
        assert!(side / (left + right) > 0.01 && side / (left + right) < 1.0);
    }

    #[test]
    fn piece_ends_in_silence_and_has_no_offset() {
        let last = piece().last().unwrap();
        assert!(last.sounding().iter().all(|frame| frame.left().abs() < 0.02));
        let mean: f64 = piece().iter().flat_map(|b| b.frames()).map(|f| f64::from(f.left())).sum();
        assert!((mean / (piece().len() * FRAMES) as f64).abs() < 1e-3);
    }

    #[test]
    fn every_run_makes_the_same_bits() {
        let mut synth = Synth::new();
        let mut block = Block::new(0);
        for expected in &piece()[..4_000] {
            assert!(synth.next_block(&mut block));
            assert!(block == *expected);
        }
    }

    #[test]
    fn notes_are_in_tune() {
        assert!((pitch(69) * f64::from(SAMPLE_RATE) - 440.0).abs() < 1e-9);
        assert!((pitch(60) * f64::from(SAMPLE_RATE) - 261.625_565_3).abs() < 1e-6);
        assert!((pitch(33) * f64::from(SAMPLE_RATE) - 55.0).abs() < 1e-9);
    }

    #[test]
    fn sine_is_close_to_the_sine() {
        for step in -4_000..4_000 {
            let turns = f64::from(step) / 1_000.0;
            assert!((sine(turns) - (turns * core::f64::consts::TAU).sin()).abs() < 1e-5, "{turns}");
        }
    }
}
