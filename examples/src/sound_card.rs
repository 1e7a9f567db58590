//! A sound card that plays blocks as they come.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cpal::traits::{DeviceTrait, HostTrait, StreamTrait};
use cpal::{FromSample, SampleFormat, SizedSample, Stream, StreamConfig};
use kdbus_linux::rt::{self, Class};
use rtrb::{Consumer, Producer, RingBuffer};

use crate::block::{Block, SAMPLE_RATE};
use crate::played::Played;
use crate::stage::Stage;

/// Channels of a card.
const CHANNELS: u16 = 2;

/// Samples that wait for the card at most: a sixth of a second.
const WAITING: usize = 16_384;

/// How far a device may be ahead of the clock. One that takes more has no clock of its own, and would take everything at once.
const AHEAD: Duration = Duration::from_millis(500);

/// How long the card has to play what still waits at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// A card that is open and plays. Blocks go through a queue without locks, which is the time that a card may take at once.
///
/// The card keeps its own time, which is not the one of the bus: when it is faster, samples are missing now and then, and when
/// it is slower, some are dropped. Both are counted.
pub struct SoundCard {
    stream: Stream,
    queue: Producer<f32>,
    shared: Arc<Shared>,
    dropped: u64,
}

#[derive(Debug, Default)]
struct Shared {
    played: AtomicU64,
    missing: AtomicU64,
    is_broken: AtomicBool,
}

impl SoundCard {
    /// Opens the card called `name`, which is one of [`names`](Self::names).
    ///
    /// # Errors
    ///
    /// [`SoundError`] says which cards there are, or why this one does not play.
    pub fn open(name: &str) -> Result<Self, SoundError> {
        let device = output_devices()?.into_iter().find(|device| id(device) == name);
        let Some(device) = device else {
            let names: Vec<_> = Self::names()?.into_iter().map(|(name, _)| name).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            return Err(SoundError(format!("no sound card is called '{name}'; there are: {there}")));
        };
        let failed = |error: &dyn fmt::Display| SoundError(format!("cannot play on '{name}': {error}"));
        let formats = device.supported_output_configs().map_err(|error| failed(&error))?;
        let mut formats: Vec<_> = formats
            .filter(|range| {
                (range.min_sample_rate()..=range.max_sample_rate()).contains(&SAMPLE_RATE)
                    && range.channels() == CHANNELS
            })
            .map(|range| range.sample_format())
            .filter(|format| [SampleFormat::F32, SampleFormat::I32, SampleFormat::I16].contains(format))
            .collect();
        formats.sort_by_key(|format| *format != SampleFormat::F32);
        let format = *formats.first().ok_or_else(|| {
            failed(&format_args!("it does not take {CHANNELS} channels at {SAMPLE_RATE} Hz; try plug:{name}"))
        })?;
        let (queue, waiting) = RingBuffer::new(WAITING);
        let shared = Arc::new(Shared::default());
        let feeder =
            Feeder { waiting, shared: Arc::clone(&shared), is_sounding: false, started: None, given: 0 };
        let stream = match format {
            SampleFormat::F32 => stream::<f32>(&device, feeder),
            SampleFormat::I32 => stream::<i32>(&device, feeder),
            _ => stream::<i16>(&device, feeder),
        };
        let stream = stream.map_err(|error| failed(&error))?;
        stream.play().map_err(|error| failed(&error))?;
        Ok(Self { stream, queue, shared, dropped: 0 })
    }

    /// The names of all cards that play, and what they are.
    ///
    /// # Errors
    ///
    /// [`SoundError`] if the system cannot tell.
    pub fn names() -> Result<Vec<(String, String)>, SoundError> {
        let describe = |device: &cpal::Device| {
            device.description().map_or_else(|_| String::new(), |description| description.name().to_owned())
        };
        Ok(output_devices()?.iter().map(|device| (id(device), describe(device))).collect())
    }

    /// Has a block played behind those that wait. Never waits, and allocates nothing.
    pub fn play(&mut self, block: &Block) {
        for frame in block.sounding() {
            if self.queue.slots() < usize::from(CHANNELS) {
                self.dropped += 1;
                continue;
            }
            // There is room, and nobody else takes any.
            let _ = self.queue.push(frame.left());
            let _ = self.queue.push(frame.right());
        }
    }

    /// Waits until everything is played, at most for two seconds, and closes the card.
    pub fn finish(self) -> Played {
        let until = Instant::now() + PATIENCE;
        while self.queue.slots() < WAITING && !self.is_broken() && Instant::now() < until {
            sleep(Duration::from_millis(5));
        }
        let is_broken = self.is_broken();
        drop(self.stream);
        Played {
            frames: self.shared.played.load(Ordering::Relaxed),
            missing: self.shared.missing.load(Ordering::Relaxed),
            dropped: self.dropped,
            is_broken,
        }
    }

    fn is_broken(&self) -> bool {
        self.shared.is_broken.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for SoundCard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SoundCard").field("shared", &self.shared).finish_non_exhaustive()
    }
}

fn output_devices() -> Result<Vec<cpal::Device>, SoundError> {
    let devices = cpal::default_host().output_devices();
    devices
        .map(Iterator::collect)
        .map_err(|error| SoundError(format!("cannot look for sound cards: {error}")))
}

/// What the system calls a device.
fn id(device: &cpal::Device) -> String {
    device.id().map_or_else(|_| String::new(), |id| id.1)
}

fn stream<S: SizedSample + FromSample<f32>>(
    device: &cpal::Device,
    mut feeder: Feeder,
) -> Result<Stream, cpal::BuildStreamError> {
    let config =
        StreamConfig { channels: CHANNELS, sample_rate: SAMPLE_RATE, buffer_size: cpal::BufferSize::Default };
    let shared = Arc::clone(&feeder.shared);
    let broken = move |error| {
        // A buffer that ran empty is counted as missing frames.
        if !matches!(error, cpal::StreamError::BufferUnderrun) {
            shared.is_broken.store(true, Ordering::Relaxed);
        }
    };
    device.build_output_stream(&config, move |out: &mut [S], _: &_| feeder.feed(out), broken, None)
}

/// What the thread of the card does.
struct Feeder {
    waiting: Consumer<f32>,
    shared: Arc<Shared>,
    is_sounding: bool,
    started: Option<Instant>,
    given: u64,
}

impl Feeder {
    /// Fills `out` with what waits. It begins when there is twice as much as the card takes at once, and again after some was
    /// missing.
    fn feed<S: SizedSample + FromSample<f32>>(&mut self, out: &mut [S]) {
        let started = *self.started.get_or_insert_with(|| {
            // Refused without the right to it; then the card is served when there is time.
            let _ = rt::schedule(Class::Fifo, Stage::Sink.urgency() + 1);
            Instant::now()
        });
        let there = self.waiting.slots();
        self.is_sounding |=
            there >= (2 * out.len()).min(WAITING / 2) || there > 0 && self.waiting.is_abandoned();
        let samples = if self.is_sounding { there.min(out.len()) } else { 0 };
        let (sounding, silent) = out.split_at_mut(samples);
        for sample in sounding {
            *sample = S::from_sample(self.waiting.pop().unwrap_or(0.0));
        }
        silent.fill(S::EQUILIBRIUM);
        let frames = |samples: usize| samples as u64 / u64::from(CHANNELS);
        self.shared.played.fetch_add(frames(samples), Ordering::Relaxed);
        if self.is_sounding && !silent.is_empty() {
            self.shared.missing.fetch_add(frames(silent.len()), Ordering::Relaxed);
            self.is_sounding = false;
        }
        self.given += frames(out.len());
        let ahead = Duration::from_secs_f64(self.given as f64 / f64::from(SAMPLE_RATE));
        if let Some(excess) = ahead.checked_sub(started.elapsed() + AHEAD) {
            sleep(excess);
        }
    }
}

/// Why nothing is to be heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SoundError(String);

impl fmt::Display for SoundError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SoundError {}
