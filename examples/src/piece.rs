//! What is played, whether it comes from a file or from the synthesiser, and a run of it without any bus.

use std::path::Path;

use crate::block::{Block, FRAMES};
use crate::control::Control;
use crate::equaliser::Equaliser;
use crate::synth::Synth;
use crate::wav::{Depth, Format, WavError, WavReader};

/// A source of blocks with a known length.
#[derive(Debug)]
pub enum Piece {
    /// A WAV file.
    File(Box<WavReader>),
    /// The built-in piece.
    BuiltIn(Box<Synth>),
    /// The built-in piece again and again.
    Repeated(Box<Repeat>),
}

/// The built-in piece, made once and played again and again.
#[derive(Debug)]
pub struct Repeat {
    made: Vec<Block>,
    blocks: u64,
    next: u64,
}

impl Repeat {
    fn next_block(&mut self, block: &mut Block) -> bool {
        if self.next == self.blocks {
            return false;
        }
        let at = self.next % self.made.len() as u64;
        block.reset(self.next);
        *block.frames_mut() = *self.made[at as usize].frames();
        self.next += 1;
        if self.next == self.blocks {
            block.set_last(FRAMES);
        }
        true
    }
}

impl Piece {
    /// Opens the file at `path`, or the built-in piece without one.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the file cannot be played.
    pub fn open(path: Option<&Path>) -> Result<Self, WavError> {
        Ok(match path {
            Some(path) => Self::File(Box::new(WavReader::open(path)?)),
            None => Self::BuiltIn(Box::default()),
        })
    }

    /// The built-in piece again and again, for `blocks` blocks but at least one; made beforehand, in up to 11 MB.
    pub fn repeated(blocks: u64) -> Self {
        let (mut synth, mut block, mut made) = (Synth::default(), Block::new(0), Vec::new());
        while (made.len() as u64) < blocks.max(1) && synth.next_block(&mut block) {
            made.push(block.clone());
        }
        Self::Repeated(Box::new(Repeat { made, blocks: blocks.max(1), next: 0 }))
    }

    /// Fills `block` with the next frames, numbers it, and says whether there was one.
    ///
    /// # Errors
    ///
    /// [`WavError`] when the file cannot be read on.
    pub fn next_block(&mut self, block: &mut Block) -> Result<bool, WavError> {
        match self {
            Self::File(reader) => reader.next_block(block),
            Self::BuiltIn(synth) => Ok(synth.next_block(block)),
            Self::Repeated(repeat) => Ok(repeat.next_block(block)),
        }
    }

    /// How many frames the whole piece has.
    pub fn frames(&self) -> u64 {
        match self {
            Self::File(reader) => reader.frames(),
            Self::BuiltIn(synth) => synth.frames(),
            Self::Repeated(repeat) => repeat.blocks * FRAMES as u64,
        }
    }

    /// How many blocks the whole piece has, at least one: an empty piece is an empty last block.
    pub fn blocks(&self) -> u64 {
        self.frames().div_ceil(FRAMES as u64).max(1)
    }

    /// How the piece is stored; float stereo for the built-in one.
    pub fn format(&self) -> Format {
        match self {
            Self::File(reader) => reader.format(),
            Self::BuiltIn(_) | Self::Repeated(_) => Format { depth: Depth::Float32, channels: 2 },
        }
    }
}

/// Plays `piece` through `equaliser` under `controls`, which come in the order of their blocks, in this thread, and
/// hands each block to `sink`.
///
/// This is what a run over the bus must equal, bit for bit, when no control comes late.
///
/// # Errors
///
/// The first error of the piece or of `sink`; nothing is played after it.
pub fn play_without_bus(
    piece: &mut Piece,
    equaliser: &mut Equaliser,
    controls: impl IntoIterator<Item = Control>,
    mut sink: impl FnMut(&Block) -> Result<(), WavError>,
) -> Result<(), WavError> {
    let mut controls = controls.into_iter().peekable();
    let mut block = Block::new(0);
    while piece.next_block(&mut block)? {
        while let Some(control) = controls.next_if(|control| control.block <= block.index()) {
            equaliser.apply(control.change);
        }
        equaliser.process(&mut block);
        sink(&block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{ControlQueue, Schedule};
    use crate::wav::WavWriter;

    #[test]
    fn file_of_the_built_in_piece_plays_as_the_piece() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("piece.wav");
        let mut piece = Piece::open(None).unwrap();
        let mut writer = WavWriter::create(&path, piece.format()).unwrap();
        let mut block = Block::new(0);
        while piece.next_block(&mut block).unwrap() {
            writer.write(&block).unwrap();
        }
        assert_eq!(writer.finish().unwrap(), piece.frames());

        let (mut file, mut piece) = (Piece::open(Some(&path)).unwrap(), Piece::open(None).unwrap());
        assert_eq!((file.frames(), file.blocks()), (piece.frames(), piece.blocks()));
        let (mut a, mut b) = (Block::new(0), Block::new(0));
        for _ in 0..piece.blocks() {
            assert!(file.next_block(&mut a).unwrap() && piece.next_block(&mut b).unwrap());
            assert!(
                a.frames()
                    .iter()
                    .zip(b.frames())
                    .all(|(a, b)| (a.left(), a.right()) == (b.left(), b.right()))
            );
            assert_eq!((a.index(), a.is_last()), (b.index(), b.is_last()));
        }
        assert!(!file.next_block(&mut a).unwrap() && !piece.next_block(&mut b).unwrap());
    }

    #[test]
    fn a_repeated_piece_goes_on_where_it_would_end() {
        let (mut once, mut block, mut first) = (Piece::open(None).unwrap(), Block::new(0), Block::new(0));
        let blocks = once.blocks();
        assert!(once.next_block(&mut first).unwrap());
        let mut repeated = Piece::repeated(blocks + 1);
        assert_eq!(repeated.blocks(), blocks + 1);
        for at in 0..=blocks {
            assert!(repeated.next_block(&mut block).unwrap());
            assert_eq!((block.index(), block.is_last()), (at, at == blocks));
        }
        assert_eq!(block.frames(), first.frames());
        assert!(!repeated.next_block(&mut block).unwrap());
    }

    #[test]
    fn run_without_bus_equals_a_queue_that_is_told_ahead() {
        let mut played = Vec::new();
        let mut piece = Piece::open(None).unwrap();
        let schedule = Schedule::demo(piece.blocks());
        play_without_bus(&mut piece, &mut Equaliser::default(), schedule.clone(), |block| {
            played.push(block.clone());
            Ok(())
        })
        .unwrap();

        let (mut piece, mut equaliser) = (Piece::open(None).unwrap(), Equaliser::default());
        let mut queue = ControlQueue::new(256);
        schedule.for_each(|control| queue.push(control).unwrap());
        let mut block = Block::new(0);
        for expected in &played {
            assert!(piece.next_block(&mut block).unwrap());
            equaliser.run(&mut block, &mut queue);
            assert!(block == *expected, "block {}", block.index());
        }
        assert!(!piece.next_block(&mut block).unwrap() && queue.is_empty());
        let ceiling = equaliser.limiter().ceiling();
        assert!(
            played.iter().flat_map(|b| b.frames()).all(|f| f.left().abs().max(f.right().abs()) <= ceiling)
        );
    }
}
