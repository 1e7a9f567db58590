//! The last stage: has each block in time, and writes it down.

use std::time::Duration;

use kdbus_core::client::{Connection, RecvError, Transport};

use crate::block::Block;
use crate::hop::HopRecorder;
use crate::played::Played;
use crate::sound_card::SoundCard;
use crate::stage::{AUDIO_PAYLOAD, Pace, SILENCE, Stage, StageError};
use crate::wav::WavWriter;

/// Blocks between two reports of progress, about an eighth of a second.
const REPORT: u64 = 94;

/// What the stage measured and counted.
#[derive(Clone, Debug)]
pub struct Sunk {
    /// The hop from the equaliser.
    pub hop: HopRecorder,
    /// The whole way from the source, whose deadline is the time to be played.
    pub whole: HopRecorder,
    /// Blocks that never came, for which silence was written.
    pub lost: u64,
    /// Messages of others, and such that are none of a pipeline.
    pub ignored: u64,
}

/// The stage that plays: into a file, on a sound card, or as far as that can be told without either.
pub struct Sink<'c, T: Transport> {
    bus: &'c Connection<T>,
    equaliser: u64,
    writer: Option<WavWriter>,
    card: Option<SoundCard>,
    blocks: u64,
    silence: Block,
    expected: u64,
    measured: Sunk,
}

impl<'c, T: Transport> Sink<'c, T> {
    /// Makes a sink for a piece of `blocks` blocks that come from `equaliser`, a unique id, and go to `writer`, if there is
    /// one.
    pub fn new(bus: &'c Connection<T>, equaliser: u64, blocks: u64, writer: Option<WavWriter>) -> Self {
        Self {
            bus,
            equaliser,
            writer,
            card: None,
            blocks,
            silence: Block::new(0),
            expected: 0,
            measured: Sunk {
                hop: HopRecorder::new("equaliser → sink", Duration::MAX),
                whole: HopRecorder::new("source → sink", Duration::MAX),
                lost: 0,
                ignored: 0,
            },
        }
    }

    /// Has `card` play what comes. Default: none.
    #[must_use]
    pub fn with_card(mut self, card: Option<SoundCard>) -> Self {
        self.card = card;
        self
    }

    /// Plays at `pace` until the last block, and tells `progress` now and then how many blocks are done and how many missed their
    /// deadline. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// [`StageError`] if the equaliser is gone or the file cannot be written.
    pub async fn run(&mut self, pace: Pace, mut progress: impl FnMut(u64, u64)) -> Result<(), StageError> {
        if let Pace::Realtime(timeline) = pace {
            self.measured.hop.set_deadline(timeline.sink_deadline());
            self.measured.whole.set_deadline(timeline.playout_deadline());
        }
        loop {
            let message = match self.bus.recv_until(SILENCE).await {
                Ok(message) => message,
                Err(RecvError::TimedOut) => return Err(StageError::Silent(Stage::Equaliser)),
                Err(error) => return Err(error.into()),
            };
            let now = self.bus.now().as_nanos();
            let is_ours = message.sender() == self.equaliser && message.payload_type() == AUDIO_PAYLOAD;
            let block = match Block::parse(message.payload()) {
                Ok(block) if is_ours && (self.expected..self.blocks).contains(&block.index()) => block,
                _ => {
                    self.measured.ignored += 1;
                    continue;
                }
            };
            self.measured.hop.record(now.saturating_sub(block.sent_at()));
            self.measured.whole.record(now.saturating_sub(block.source_at()));
            while self.expected < block.index() {
                // A block that was dropped on the way still takes its time.
                self.measured.lost += 1;
                self.measured.whole.record_missed();
                self.expected += 1;
                self.output(None)?;
            }
            self.output(Some(block))?;
            self.expected += 1;
            let is_last = block.is_last();
            if is_last || self.expected.is_multiple_of(REPORT) {
                progress(self.expected, self.measured.whole.missed());
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// Plays and writes a block, or silence.
    fn output(&mut self, block: Option<&Block>) -> Result<(), StageError> {
        let block = block.unwrap_or(&self.silence);
        if let Some(card) = &mut self.card {
            card.play(block);
        }
        if let Some(writer) = &mut self.writer {
            writer.write(block)?;
        }
        Ok(())
    }

    /// What was measured.
    pub const fn measured(&self) -> &Sunk {
        &self.measured
    }

    /// Completes the file, and waits for the card to play what it has, if there is one.
    ///
    /// # Errors
    ///
    /// [`StageError::Wav`] if the rest cannot be written.
    pub fn finish(self) -> Result<Option<Played>, StageError> {
        if let Some(writer) = self.writer {
            writer.finish()?;
        }
        Ok(self.card.map(SoundCard::finish))
    }
}
