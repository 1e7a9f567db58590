//! WAV files as blocks, one block in memory at a time.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader, BufWriter};
use std::path::{Path, PathBuf};

use hound::{SampleFormat, WavSpec};

use crate::block::{Block, FRAMES, Frame, SAMPLE_RATE};

/// How samples are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Integers of 8 bits.
    Pcm8,
    /// Integers of 16 bits.
    Pcm16,
    /// Integers of 24 bits.
    Pcm24,
    /// Integers of 32 bits; the lowest eight are lost on the way through a block.
    Pcm32,
    /// Floating point of 32 bits; blocks are kept to the bit.
    Float32,
}

impl Depth {
    /// Bits of one sample.
    pub const fn bits(self) -> u16 {
        match self {
            Self::Pcm8 => 8,
            Self::Pcm16 => 16,
            Self::Pcm24 => 24,
            Self::Pcm32 | Self::Float32 => 32,
        }
    }

    fn format(self) -> SampleFormat {
        if self == Self::Float32 { SampleFormat::Float } else { SampleFormat::Int }
    }

    /// The integer of full scale, which is one more than the largest that can be stored.
    fn full_scale(self) -> f64 {
        (1u64 << (self.bits() - 1)) as f64
    }

    fn of(spec: WavSpec) -> Option<Self> {
        [Self::Pcm8, Self::Pcm16, Self::Pcm24, Self::Pcm32, Self::Float32]
            .into_iter()
            .find(|depth| (depth.bits(), depth.format()) == (spec.bits_per_sample, spec.sample_format))
    }
}

/// What a WAV file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// How each sample is stored.
    pub depth: Depth,
    /// Samples in a frame: 1 or 2.
    pub channels: u16,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let channels = if self.channels == 1 { "mono" } else { "stereo" };
        let kind = if self.depth == Depth::Float32 { "float" } else { "PCM" };
        write!(f, "{channels}, {}-bit {kind}, {SAMPLE_RATE} Hz", self.depth.bits())
    }
}

/// A WAV file that is read block by block.
pub struct WavReader {
    path: PathBuf,
    file: hound::WavReader<BufReader<File>>,
    format: Format,
    frames: u64,
    read: u64,
    index: u64,
}

impl WavReader {
    /// Opens the file at `path` and reads its header.
    ///
    /// # Errors
    ///
    /// [`WavError`] when it cannot be read, is not a WAV file, or holds what the pipeline does not play; nothing is
    /// resampled or mixed down.
    pub fn open(path: &Path) -> Result<Self, WavError> {
        let fail = |fault| WavError { path: path.to_owned(), fault };
        let file = hound::WavReader::open(path).map_err(|error| fail(Fault::on_open(error)))?;
        let spec = file.spec();
        let Some(depth) = Depth::of(spec) else {
            return Err(fail(Fault::Depth { bits: spec.bits_per_sample }));
        };
        if !(1..=2).contains(&spec.channels) {
            return Err(fail(Fault::Channels(spec.channels)));
        }
        if spec.sample_rate != SAMPLE_RATE {
            return Err(fail(Fault::Rate(spec.sample_rate)));
        }
        let format = Format { depth, channels: spec.channels };
        let frames = u64::from(file.duration());
        Ok(Self { path: path.to_owned(), file, format, frames, read: 0, index: 0 })
    }

    /// Fills `block` with the next frames, numbers it, and says whether there was one.
    ///
    /// Mono sounds on both sides. The last block is marked and knows how many of its frames count; an empty file is
    /// one last block of none.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the file ends before its header says, cannot be read, or has a sample that is not a number.
    pub fn next_block(&mut self, block: &mut Block) -> Result<bool, WavError> {
        if self.index > 0 && self.read == self.frames {
            return Ok(false);
        }
        block.reset(self.index);
        let len = (self.frames - self.read).min(FRAMES as u64) as usize;
        for frame in &mut block.frames_mut()[..len] {
            let left = self.next_sample()?;
            let right = if self.format.channels == 2 { self.next_sample()? } else { left };
            *frame = Frame::new(left, right);
            self.read += 1;
        }
        if self.read == self.frames {
            block.set_last(len);
        }
        self.index += 1;
        Ok(true)
    }

    /// How many frames the file holds.
    pub const fn frames(&self) -> u64 {
        self.frames
    }

    /// How the samples are stored.
    pub const fn format(&self) -> Format {
        self.format
    }

    fn next_sample(&mut self) -> Result<f32, WavError> {
        let sample = match self.format.depth {
            Depth::Float32 => self.file.samples::<f32>().next().transpose(),
            depth => self
                .file
                .samples::<i32>()
                .next()
                .transpose()
                // Exact up to 24 bits; f32 keeps the upper 24 of 32.
                .map(|sample| sample.map(|sample| (f64::from(sample) / depth.full_scale()) as f32)),
        };
        let fault = match sample {
            Ok(Some(sample)) if sample.is_finite() => return Ok(sample),
            Ok(Some(_)) => Fault::NotFinite { frame: self.read },
            Ok(None) => Fault::Short { has: self.read, claims: self.frames },
            Err(error) => Fault::on_read(error, self.read, self.frames),
        };
        Err(WavError { path: self.path.clone(), fault })
    }
}

impl fmt::Debug for WavReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WavReader")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("frames", &self.frames)
            .field("read", &self.read)
            .finish_non_exhaustive()
    }
}

/// A WAV file that is written block by block.
///
/// [`WavWriter::finish`] completes its header. A writer that is dropped instead leaves a file of what it got so far,
/// as far as that can be done without an error.
pub struct WavWriter {
    path: PathBuf,
    file: hound::WavWriter<BufWriter<File>>,
    format: Format,
    frames: u64,
}

impl WavWriter {
    /// Makes the file at `path`, or empties it, for sound at 48 kHz.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the file cannot be made, or `format` has neither one nor two channels.
    pub fn create(path: &Path, format: Format) -> Result<Self, WavError> {
        let fail = |fault| WavError { path: path.to_owned(), fault };
        if !(1..=2).contains(&format.channels) {
            return Err(fail(Fault::Channels(format.channels)));
        }
        let spec = WavSpec {
            channels: format.channels,
            sample_rate: SAMPLE_RATE,
            bits_per_sample: format.depth.bits(),
            sample_format: format.depth.format(),
        };
        let file = hound::WavWriter::create(path, spec).map_err(|error| fail(Fault::on_write(error)))?;
        Ok(Self { path: path.to_owned(), file, format, frames: 0 })
    }

    /// Appends the frames of `block` that count; a mono file gets the left side.
    ///
    /// Integers are rounded to the nearest, without dither so that equal input gives equal files, and held at full
    /// scale.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the file cannot be written, or would pass the 4 GiB that a WAV file can have.
    pub fn write(&mut self, block: &Block) -> Result<(), WavError> {
        let frame_bytes = u64::from(self.format.channels) * u64::from(self.format.depth.bits() / 8);
        // The header takes less than 128 bytes, and its length fields have 32 bits.
        if (self.frames + FRAMES as u64) * frame_bytes > u64::from(u32::MAX) - 128 {
            return Err(WavError { path: self.path.clone(), fault: Fault::TooLong });
        }
        for frame in block.sounding() {
            let both = [frame.left(), frame.right()];
            for sample in &both[..usize::from(self.format.channels)] {
                let written = match self.format.depth {
                    Depth::Float32 => self.file.write_sample(*sample),
                    depth => self.file.write_sample(to_integer(*sample, depth)),
                };
                written
                    .map_err(|error| WavError { path: self.path.clone(), fault: Fault::on_write(error) })?;
            }
            self.frames += 1;
        }
        Ok(())
    }

    /// Completes the header and the file, and says how many frames it holds.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the rest cannot be written.
    pub fn finish(self) -> Result<u64, WavError> {
        let (path, frames) = (self.path, self.frames);
        match self.file.finalize() {
            Ok(()) => Ok(frames),
            Err(error) => Err(WavError { path, fault: Fault::on_write(error) }),
        }
    }

    /// How many frames were written.
    pub const fn frames(&self) -> u64 {
        self.frames
    }
}

impl fmt::Debug for WavWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WavWriter")
            .field("path", &self.path)
            .field("format", &self.format)
            .field("frames", &self.frames)
            .finish_non_exhaustive()
    }
}

fn to_integer(sample: f32, depth: Depth) -> i32 {
    let scale = depth.full_scale();
    (f64::from(sample) * scale).round().clamp(-scale, scale - 1.0) as i32
}

/// Refuses an output that is the input itself, which writing would empty before it is read.
///
/// # Errors
///
/// [`WavError`] when both paths lead to the same file.
pub fn refuse_same_file(input: &Path, output: &Path) -> Result<(), WavError> {
    match (input.canonicalize(), output.canonicalize()) {
        (Ok(source), Ok(target)) if source == target => {
            Err(WavError { path: output.to_owned(), fault: Fault::SameFile })
        }
        _ => Ok(()),
    }
}

/// What went wrong with a WAV file; its text says which file, why, and what helps.
#[derive(Debug)]
pub struct WavError {
    path: PathBuf,
    fault: Fault,
}

impl WavError {
    /// The file it is about.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is wrong with the file.
    pub const fn fault(&self) -> &Fault {
        &self.fault
    }
}

/// What can be wrong with a WAV file.
#[non_exhaustive]
#[derive(Debug)]
pub enum Fault {
    /// There is no such file.
    Missing,
    /// The system refused to open or read it.
    Read(io::Error),
    /// The system refused to make or write it.
    Write(io::Error),
    /// It is not a WAV file, or a broken one; the text is the reader's.
    NotWav(&'static str),
    /// Its samples are compressed or coded in a way that is not read.
    Coding,
    /// Its samples have this many bits, in a combination that is not read.
    Depth {
        /// Bits of a sample.
        bits: u16,
    },
    /// It has this many channels.
    Channels(u16),
    /// It has this many frames per second.
    Rate(u32),
    /// It ends before its header says.
    Short {
        /// Frames that are there.
        has: u64,
        /// Frames of which the header speaks.
        claims: u64,
    },
    /// A sample in this frame is infinite or not a number.
    NotFinite {
        /// The frame, counted from 0.
        frame: u64,
    },
    /// It would grow beyond what a WAV file can hold.
    TooLong,
    /// It is the input as well.
    SameFile,
}

impl Fault {
    fn on_open(error: hound::Error) -> Self {
        match error {
            hound::Error::IoError(error) if error.kind() == io::ErrorKind::NotFound => Self::Missing,
            // hound reports an early end as `Other` without a code of the system.
            hound::Error::IoError(error) if error.raw_os_error().is_none() => {
                Self::NotWav("it ends within its header")
            }
            hound::Error::IoError(error) => Self::Read(error),
            hound::Error::FormatError(what) => Self::NotWav(what),
            _ => Self::Coding,
        }
    }

    fn on_read(error: hound::Error, has: u64, claims: u64) -> Self {
        match error {
            hound::Error::IoError(error) if error.raw_os_error().is_none() => Self::Short { has, claims },
            hound::Error::IoError(error) => Self::Read(error),
            hound::Error::FormatError(what) => Self::NotWav(what),
            _ => Self::Coding,
        }
    }

    fn on_write(error: hound::Error) -> Self {
        match error {
            hound::Error::IoError(error) => Self::Write(error),
            other => Self::Write(io::Error::other(other)),
        }
    }
}

impl fmt::Display for WavError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = Shown(&self.path);
        match &self.fault {
            Fault::Missing => write!(f, "there is no file {path}; check the path given to --input"),
            Fault::Read(error) => write!(f, "cannot read {path}: {error}"),
            Fault::Write(error) => write!(f, "cannot write {path}: {error}"),
            Fault::NotWav(what) => {
                write!(
                    f,
                    "{path} is not a WAV file that can be read ({what}); make one of it with {}",
                    Convert(&self.path)
                )
            }
            Fault::Coding => write!(
                f,
                "{path} is coded in a way that is not read here, only PCM and float are; decode it with {}",
                Convert(&self.path)
            ),
            Fault::Depth { bits } => write!(
                f,
                "{path} has samples of {bits} bits; PCM of 8, 16, 24 and 32 bits and float of 32 bits are read; \
                 convert it with {}",
                Convert(&self.path)
            ),
            Fault::Channels(channels) => write!(
                f,
                "{path} has {channels} channels, but the pipeline plays mono or stereo; mix it down with {}",
                Convert(&self.path)
            ),
            Fault::Rate(rate) => write!(
                f,
                "{path} has {rate} frames per second, but the pipeline runs at {SAMPLE_RATE} and does not resample; \
                 convert it with {}",
                Convert(&self.path)
            ),
            Fault::Short { has, claims } => write!(
                f,
                "{path} ends after {has} of the {claims} frames that its header promises; copy it again, or keep what \
                 is there with {}",
                Convert(&self.path)
            ),
            Fault::NotFinite { frame } => {
                write!(
                    f,
                    "{path} has an infinite sample, or one that is not a number, in frame {frame}; export it again"
                )
            }
            Fault::TooLong => {
                write!(f, "{path} would pass the 4 GiB that a WAV file can have; play a shorter piece")
            }
            Fault::SameFile => {
                write!(f, "{path} is the input, which writing would empty; give --output another name")
            }
        }
    }
}

impl std::error::Error for WavError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.fault {
            Fault::Read(error) | Fault::Write(error) => Some(error),
            _ => None,
        }
    }
}

/// A path for a person to read, and to paste into a shell.
struct Shown<'a>(&'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}'", self.0.display().to_string().replace('\'', "'\\''"))
    }
}

/// The commands that make a file the pipeline plays of the one at this path.
struct Convert<'a>(&'a Path);

impl fmt::Display for Convert<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = self.0.file_stem().unwrap_or_default().to_owned();
        name.push("-48k.wav");
        let target = self.0.with_file_name(name);
        let (from, to) = (Shown(self.0), Shown(&target));
        write!(
            f,
            "`sox {from} -b 24 -e signed -c 2 -r 48000 {to}` or `ffmpeg -i {from} -c:a pcm_s24le -ac 2 -ar 48000 {to}`"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const ALL: [Depth; 5] = [Depth::Pcm8, Depth::Pcm16, Depth::Pcm24, Depth::Pcm32, Depth::Float32];

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir().unwrap()
    }

    /// A piece of `frames` frames whose samples every depth can hold.
    fn piece(frames: usize) -> Vec<Block> {
        let blocks = frames.div_ceil(FRAMES).max(1);
        let mut count = 0i32;
        (0..blocks)
            .map(|index| {
                let mut block = Block::new(index as u64);
                for frame in block.frames_mut() {
                    *frame = Frame::new((count % 128) as f32 / 128.0, -((count * 7) % 128) as f32 / 128.0);
                    count += 1;
                }
                if index + 1 == blocks {
                    block.set_last(frames - index * FRAMES);
                }
                block
            })
            .collect()
    }

    fn write(path: &Path, format: Format, blocks: &[Block]) -> u64 {
        let mut writer = WavWriter::create(path, format).unwrap();
        blocks.iter().for_each(|block| writer.write(block).unwrap());
        writer.finish().unwrap()
    }

    fn read(path: &Path) -> Vec<Block> {
        let mut reader = WavReader::open(path).unwrap();
        let mut blocks = Vec::new();
        let mut block = Block::new(0);
        while reader.next_block(&mut block).unwrap() {
            blocks.push(block.clone());
        }
        assert!(!reader.next_block(&mut block).unwrap());
        blocks
    }

    fn refusal(path: &Path) -> String {
        WavReader::open(path).unwrap_err().to_string()
    }

    fn spec(channels: u16, sample_rate: u32) -> WavSpec {
        WavSpec { channels, sample_rate, bits_per_sample: 16, sample_format: SampleFormat::Int }
    }

    #[test]
    fn every_depth_and_length_comes_back_as_it_was() {
        let directory = directory();
        let path = directory.path().join("piece.wav");
        for depth in ALL {
            for frames in [0, 1, 63, 64, 65, 128, 1_000] {
                let piece = piece(frames);
                assert_eq!(write(&path, Format { depth, channels: 2 }, &piece), frames as u64);
                assert_eq!(WavReader::open(&path).unwrap().frames(), frames as u64);
                assert_eq!(WavReader::open(&path).unwrap().format(), Format { depth, channels: 2 });
                let back = read(&path);
                assert_eq!(back.len(), piece.len());
                for (back, block) in back.iter().zip(&piece) {
                    assert_eq!(
                        (back.index(), back.len(), back.is_last()),
                        (block.index(), block.len(), block.is_last())
                    );
                    for (a, b) in back.frames().iter().zip(block.frames()) {
                        assert_eq!((a.left(), a.right()), (b.left(), b.right()), "{depth:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn mono_sounds_on_both_sides_and_is_written_from_the_left() {
        let directory = directory();
        let path = directory.path().join("mono.wav");
        let piece = piece(100);
        write(&path, Format { depth: Depth::Pcm16, channels: 1 }, &piece);
        let back = read(&path);
        assert_eq!(back[1].len(), 36);
        for (back, block) in back.iter().zip(&piece) {
            for (a, b) in back.sounding().iter().zip(block.sounding()) {
                assert_eq!((a.left(), a.right()), (b.left(), b.left()));
            }
        }
    }

    #[test]
    fn integers_are_rounded_and_held_at_full_scale() {
        assert_eq!(to_integer(1.0, Depth::Pcm16), 32_767);
        assert_eq!(to_integer(-1.0, Depth::Pcm16), -32_768);
        assert_eq!(to_integer(9.0, Depth::Pcm24), 8_388_607);
        assert_eq!(to_integer(-9.0, Depth::Pcm8), -128);
        assert_eq!(to_integer(1.0, Depth::Pcm32), i32::MAX);
        assert_eq!(to_integer(0.6 / 32_768.0, Depth::Pcm16), 1);
        assert_eq!(to_integer(-0.4 / 32_768.0, Depth::Pcm16), 0);
    }

    #[test]
    fn another_rate_is_refused_with_the_command_that_helps() {
        let directory = directory();
        let path = directory.path().join("it's.wav");
        hound::WavWriter::create(&path, spec(2, 44_100)).unwrap().finalize().unwrap();
        let text = refusal(&path);
        assert!(text.contains("44100 frames per second") && text.contains("does not resample"), "{text}");
        assert!(text.contains("-r 48000") && text.contains("-ar 48000"), "{text}");
        assert!(text.contains(r"it'\''s-48k.wav'"), "{text}");
    }

    #[test]
    fn more_than_two_channels_are_refused() {
        let directory = directory();
        let path = directory.path().join("surround.wav");
        hound::WavWriter::create(&path, spec(6, 48_000)).unwrap().finalize().unwrap();
        assert!(refusal(&path).contains("6 channels, but the pipeline plays mono or stereo"));
        let format = Format { depth: Depth::Pcm16, channels: 3 };
        assert!(matches!(WavWriter::create(&path, format).unwrap_err().fault(), Fault::Channels(3)));
    }

    #[test]
    fn what_is_no_wav_file_is_named() {
        let directory = directory();
        let path = directory.path().join("notes.wav");
        assert!(matches!(WavReader::open(&path).unwrap_err().fault(), Fault::Missing));
        fs::write(&path, "These are words, not sound, but long enough to be a header of a file.").unwrap();
        assert!(refusal(&path).contains("not a WAV file that can be read (no RIFF tag found)"));
        fs::write(&path, b"RIFF").unwrap();
        assert!(refusal(&path).contains("it ends within its header"));
        assert!(matches!(WavReader::open(directory.path()).unwrap_err().fault(), Fault::Read(_)));
    }

    #[test]
    fn a_file_that_was_cut_off_says_where() {
        let directory = directory();
        let path = directory.path().join("cut.wav");
        write(&path, Format { depth: Depth::Pcm16, channels: 2 }, &piece(640));
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 4 * 100]).unwrap();
        let mut reader = WavReader::open(&path).unwrap();
        let mut block = Block::new(0);
        let error = loop {
            match reader.next_block(&mut block) {
                Ok(more) => assert!(more),
                Err(error) => break error,
            }
        };
        assert!(matches!(error.fault(), Fault::Short { has: 540, claims: 640 }), "{error:?}");
    }

    #[test]
    fn samples_that_are_not_finite_are_refused_with_their_place() {
        let directory = directory();
        let path = directory.path().join("nan.wav");
        let mut blocks = piece(64);
        blocks[0].frames_mut()[9] = Frame::new(0.0, f32::NAN);
        write(&path, Format { depth: Depth::Float32, channels: 2 }, &blocks);
        let error = WavReader::open(&path).unwrap().next_block(&mut Block::new(0)).unwrap_err();
        assert!(matches!(error.fault(), Fault::NotFinite { frame: 9 }));
    }

    #[test]
    fn no_header_of_any_bytes_makes_the_reader_panic() {
        let directory = directory();
        let path = directory.path().join("fuzz.wav");
        write(&path, Format { depth: Depth::Pcm24, channels: 2 }, &piece(70));
        let good = fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..good.len().min(80) {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bytes = good.clone();
                bytes[at] = value;
                fs::write(&path, bytes).unwrap();
                let mut block = Block::new(0);
                let whole = WavReader::open(&path).and_then(|mut reader| {
                    while reader.next_block(&mut block)? {}
                    Ok(())
                });
                refused += usize::from(whole.is_err());
            }
        }
        assert!(refused > 40);
    }

    #[test]
    fn output_over_the_input_is_refused() {
        let directory = directory();
        let path = directory.path().join("a.wav");
        assert!(refuse_same_file(&path, &path).is_ok());
        fs::write(&path, "x").unwrap();
        let detour = directory.path().join(".").join("a.wav");
        assert!(matches!(refuse_same_file(&path, &detour).unwrap_err().fault(), Fault::SameFile));
        assert!(refuse_same_file(&path, &directory.path().join("b.wav")).is_ok());
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_of_the_system() {
        let directory = directory();
        let path = directory.path().join("none").join("a.wav");
        let error = WavWriter::create(&path, Format { depth: Depth::Float32, channels: 2 }).unwrap_err();
        assert!(matches!(error.fault(), Fault::Write(_)));
        assert!(error.to_string().starts_with("cannot write"));
    }
}
