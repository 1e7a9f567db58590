//! A block of sound, which is its own wire form.
//!
//! [`Block`] is a record of little-endian fields without alignment or padding, so a stage writes samples straight
//! into the message it will send and reads them straight out of its receive pool: encoding is [`Block::as_bytes`],
//! decoding is one check, [`Block::parse`], and neither copies.

use core::fmt;
use core::mem::{offset_of, size_of};

use zerocopy::little_endian::{F32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Frames in a block.
pub const FRAMES: usize = 64;

/// Samples in a frame: left, right.
pub const CHANNELS: usize = 2;

/// Frames per second, everywhere in the pipeline.
pub const SAMPLE_RATE: u32 = 48_000;

/// How long one block sounds, in nanoseconds (4/3 ms, rounded down).
pub const BLOCK_NS: u64 = FRAMES as u64 * 1_000_000_000 / SAMPLE_RATE as u64;

const MAGIC: [u8; 4] = *b"kAB1";
const LAST: u32 = 1 << 0;

/// One instant of stereo sound; full scale is ±1.0.
#[derive(Clone, Copy, Default, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Frame {
    left: F32,
    right: F32,
}

impl Frame {
    /// Makes a frame of its two samples.
    pub const fn new(left: f32, right: f32) -> Self {
        Self { left: F32::from_bytes(left.to_le_bytes()), right: F32::from_bytes(right.to_le_bytes()) }
    }

    /// The left sample.
    pub const fn left(self) -> f32 {
        self.left.get()
    }

    /// The right sample.
    pub const fn right(self) -> f32 {
        self.right.get()
    }

    /// Whether neither sample is infinite or NaN.
    pub const fn is_finite(self) -> bool {
        self.left.get().is_finite() && self.right.get().is_finite()
    }
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({}, {})", self.left(), self.right())
    }
}

/// 64 frames of stereo sound at 48 kHz with their place in the piece and the times of their journey.
///
/// The last block of a piece may hold fewer frames that count; the others are silence.
#[derive(Clone, Debug, PartialEq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Block {
    magic: [u8; 4],
    flags: U32,
    index: U64,
    source_at: U64,
    sent_at: U64,
    len: U32,
    reserved: U32,
    frames: [Frame; FRAMES],
}

const _: () = assert!(size_of::<Block>() == 552 && offset_of!(Block, frames) == 40);

impl Block {
    /// Size of a block in bytes, in memory and in a message.
    pub const BYTES: usize = size_of::<Self>();

    /// Makes a full block of silence with the number `index`.
    pub const fn new(index: u64) -> Self {
        Self {
            magic: MAGIC,
            flags: U32::ZERO,
            index: U64::new(index),
            source_at: U64::ZERO,
            sent_at: U64::ZERO,
            len: U32::new(FRAMES as u32),
            reserved: U32::ZERO,
            frames: [Frame::new(0.0, 0.0); FRAMES],
        }
    }

    /// Borrows the block that `bytes` are, in one pass over the samples and without a copy.
    ///
    /// What is parsed must not change meanwhile: give it a slice of a receive pool, which the sender cannot reach.
    ///
    /// # Errors
    ///
    /// [`BlockError`] says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<&Self, BlockError> {
        let block = Self::ref_from_bytes(bytes).map_err(|_| BlockError::Size(bytes.len()))?;
        block.check()?;
        Ok(block)
    }

    /// Turns `bytes` into an empty block numbered `index` and borrows it, to be filled in place.
    ///
    /// # Errors
    ///
    /// [`BlockError::Size`] unless there are exactly [`Block::BYTES`]; the bytes are unchanged then.
    pub fn emplace(bytes: &mut [u8], index: u64) -> Result<&mut Self, BlockError> {
        let size = bytes.len();
        let block = Self::mut_from_bytes(bytes).map_err(|_| BlockError::Size(size))?;
        *block = Self::new(index);
        Ok(block)
    }

    /// Sets when the source made the block, in nanoseconds of the monotonic clock. Default 0, unknown.
    pub fn set_source_at(&mut self, ns: u64) {
        self.source_at = U64::new(ns);
    }

    /// Sets when the stage before this hop sent the block, in nanoseconds of the monotonic clock. Default 0, unknown.
    pub fn set_sent_at(&mut self, ns: u64) {
        self.sent_at = U64::new(ns);
    }

    /// Marks the block as the last of its piece, with `len` frames that count, at most [`FRAMES`], and silence after
    /// them.
    pub fn set_last(&mut self, len: usize) {
        let len = len.min(FRAMES);
        self.flags = U32::new(LAST);
        self.len = U32::new(len as u32);
        self.frames[len..].fill(Frame::default());
    }

    /// Silences the block, makes it full and not the last, and gives it the number `index`.
    pub fn reset(&mut self, index: u64) {
        *self = Self::new(index);
    }

    /// All frames, to be written.
    pub fn frames_mut(&mut self) -> &mut [Frame; FRAMES] {
        &mut self.frames
    }

    /// All frames, the silence after the end of the piece included.
    pub fn frames(&self) -> &[Frame; FRAMES] {
        &self.frames
    }

    /// The frames that belong to the piece.
    pub fn sounding(&self) -> &[Frame] {
        &self.frames[..self.len()]
    }

    /// How many frames belong to the piece; [`FRAMES`] but for the last block.
    #[allow(clippy::len_without_is_empty, reason = "an empty block is only ever an empty piece")]
    pub fn len(&self) -> usize {
        (self.len.get() as usize).min(FRAMES)
    }

    /// Place in the piece; the first block is 0.
    pub fn index(&self) -> u64 {
        self.index.get()
    }

    /// When the source made the block, in nanoseconds of the monotonic clock; 0 when not set.
    pub fn source_at(&self) -> u64 {
        self.source_at.get()
    }

    /// When the stage before this hop sent the block, in nanoseconds of the monotonic clock; 0 when not set.
    pub fn sent_at(&self) -> u64 {
        self.sent_at.get()
    }

    /// Whether no block follows.
    pub fn is_last(&self) -> bool {
        self.flags.get() & LAST != 0
    }

    fn check(&self) -> Result<(), BlockError> {
        if self.magic != MAGIC {
            return Err(BlockError::Magic);
        }
        // An unknown flag asks for something that this stage would not do.
        if self.flags.get() & !LAST != 0 || self.reserved.get() != 0 {
            return Err(BlockError::Flags);
        }
        let len = self.len.get();
        if len > FRAMES as u32 || (len < FRAMES as u32 && !self.is_last()) {
            return Err(BlockError::Len(len));
        }
        // One NaN would stay in a filter for good.
        match self.frames.iter().position(|frame| !frame.is_finite()) {
            Some(frame) => Err(BlockError::NotFinite { frame: frame as u32 }),
            None => Ok(()),
        }
    }
}

/// Why bytes are not a block.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockError {
    /// There are this many bytes instead of [`Block::BYTES`].
    Size(usize),
    /// They do not begin as a block does.
    Magic,
    /// A flag is set that this version does not know.
    Flags,
    /// The block claims this many frames: too many, or too few for a block that is not the last.
    Len(u32),
    /// A sample of this frame is infinite or not a number.
    NotFinite {
        /// The first frame that has one.
        frame: u32,
    },
}

impl fmt::Display for BlockError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => write!(f, "{bytes} bytes are not an audio block of {} bytes", Block::BYTES),
            Self::Magic => f.write_str("the message is not an audio block"),
            Self::Flags => f.write_str("the audio block has unknown flags"),
            Self::Len(len) => write!(f, "the audio block cannot have {len} frames"),
            Self::NotFinite { frame } => write!(f, "frame {frame} of the audio block is not finite"),
        }
    }
}

impl core::error::Error for BlockError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(index: u64) -> Block {
        let mut block = Block::new(index);
        for (at, frame) in block.frames_mut().iter_mut().enumerate() {
            *frame = Frame::new(at as f32 / 64.0, -(at as f32) / 128.0);
        }
        block.set_source_at(17);
        block.set_sent_at(u64::MAX);
        block
    }

    #[test]
    fn bytes_parse_back_to_the_same_block() {
        let mut block = ramp(7);
        assert_eq!(Block::parse(block.as_bytes()), Ok(&block));
        block.set_last(10);
        let parsed = Block::parse(block.as_bytes()).unwrap();
        assert_eq!((parsed.len(), parsed.is_last(), parsed.index()), (10, true, 7));
        assert_eq!((parsed.source_at(), parsed.sent_at()), (17, u64::MAX));
        assert_eq!(parsed.sounding().len(), 10);
    }

    #[test]
    fn parses_at_any_alignment() {
        let block = ramp(1);
        let mut bytes = vec![0; Block::BYTES + 8];
        for shift in 0..8 {
            bytes[shift..][..Block::BYTES].copy_from_slice(block.as_bytes());
            assert_eq!(Block::parse(&bytes[shift..][..Block::BYTES]), Ok(&block));
        }
    }

    #[test]
    fn fields_are_little_endian() {
        let mut block = Block::new(0x0102);
        block.frames_mut()[0] = Frame::new(1.0, -2.0);
        let bytes = block.as_bytes();
        assert_eq!(bytes[8..16], [2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..48], [0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0]);
    }

    #[test]
    fn wrong_sizes_are_refused() {
        let bytes = vec![0; 2 * Block::BYTES];
        for size in [0, 1, 40, Block::BYTES - 1, Block::BYTES + 1, 2 * Block::BYTES] {
            assert_eq!(Block::parse(&bytes[..size]), Err(BlockError::Size(size)));
        }
    }

    #[test]
    fn foreign_headers_are_refused() {
        let good = ramp(3);
        let with = |at: usize, byte: u8| {
            let mut bytes = good.as_bytes().to_vec();
            bytes[at] = byte;
            Block::parse(&bytes).err()
        };
        assert_eq!(with(0, b'K'), Some(BlockError::Magic));
        assert_eq!(with(4, 2), Some(BlockError::Flags));
        assert_eq!(with(36, 1), Some(BlockError::Flags));
        assert_eq!(with(32, 65), Some(BlockError::Len(65)));
        assert_eq!(with(32, 63), Some(BlockError::Len(63)));
    }

    #[test]
    fn samples_that_are_not_finite_are_refused() {
        let mut block = ramp(3);
        block.frames_mut()[40] = Frame::new(0.0, f32::NAN);
        block.frames_mut()[41] = Frame::new(f32::INFINITY, 0.0);
        assert_eq!(Block::parse(block.as_bytes()), Err(BlockError::NotFinite { frame: 40 }));
    }

    #[test]
    fn emplaced_block_is_valid_whatever_was_there() {
        let mut bytes = vec![0xff; Block::BYTES];
        Block::emplace(&mut bytes, 5).unwrap().frames_mut()[2] = Frame::new(0.5, 0.25);
        let block = Block::parse(&bytes).unwrap();
        assert_eq!((block.index(), block.len(), block.frames()[2]), (5, 64, Frame::new(0.5, 0.25)));
        assert_eq!(Block::emplace(&mut bytes[1..], 5).err(), Some(BlockError::Size(Block::BYTES - 1)));
    }

    #[test]
    fn end_of_the_piece_is_followed_by_silence() {
        let mut block = ramp(3);
        block.set_last(2);
        assert_eq!(block.sounding(), &ramp(3).frames()[..2]);
        assert!(block.frames()[2..].iter().all(|frame| *frame == Frame::default()));
    }
}
