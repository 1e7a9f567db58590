//! The first stage: sends the piece to the equaliser, block by block.

use std::sync::atomic::{AtomicBool, Ordering};

use kdbus_core::client::{Connection, Message, Transport};
use zerocopy::IntoBytes;

use crate::block::Block;
use crate::piece::Piece;
use crate::stage::{AUDIO_PAYLOAD, AUDIO_PRIORITY, Pace, SILENCE, Stage, StageError, WINDOW, await_answer};

/// The stage that makes sound.
///
/// In time, it sends each block at its place on the clock; without room at the equaliser, the block is dropped and
/// counted. Otherwise it waits for room, and for the answer to every [`WINDOW`]th block.
pub struct Source<'c, T: Transport> {
    bus: &'c Connection<T>,
    piece: Piece,
    pace: Pace,
    stop: &'c AtomicBool,
    block: Block,
    is_asking: bool,
    dropped: u64,
}

impl<'c, T: Transport> Source<'c, T> {
    /// Makes a source that plays `piece`, at most until `stop` is set.
    pub const fn new(bus: &'c Connection<T>, piece: Piece, pace: Pace, stop: &'c AtomicBool) -> Self {
        Self { bus, piece, pace, stop, block: Block::new(0), is_asking: false, dropped: 0 }
    }

    /// Plays to the end and returns how many blocks were dropped. Nothing is allocated.
    ///
    /// A piece that is stopped ends with the block at hand, and the stages after this one end as after any piece.
    ///
    /// # Errors
    ///
    /// [`StageError`] if the piece cannot be read on or the equaliser is gone.
    pub async fn run(&mut self) -> Result<u64, StageError> {
        while self.piece.next_block(&mut self.block)? {
            if let Pace::Realtime(timeline) = self.pace {
                let at = timeline.source_at(self.block.index());
                self.bus.sleep(at).await?;
                self.block.set_source_at(at.as_nanos());
            }
            if self.is_stopped() {
                self.block.set_last(self.block.len());
            }
            self.send().await?;
            if self.block.is_last() {
                break;
            }
        }
        if self.is_asking {
            await_answer(self.bus, Stage::Equaliser).await?;
        }
        Ok(self.dropped)
    }

    async fn send(&mut self) -> Result<(), StageError> {
        let is_fast = self.pace == Pace::Fast;
        let asks = is_fast && self.block.index().is_multiple_of(WINDOW);
        if asks && self.is_asking {
            await_answer(self.bus, Stage::Equaliser).await?;
        }
        let now = self.bus.now();
        if is_fast {
            self.block.set_source_at(now.as_nanos());
        }
        self.block.set_sent_at(now.as_nanos());
        let mut message = Message::to_name(Stage::Equaliser.name())
            .priority(AUDIO_PRIORITY)
            .payload_type(AUDIO_PAYLOAD)
            .payload(self.block.as_bytes());
        if asks {
            message = message.expect_reply(now.after(2 * SILENCE));
            self.is_asking = true;
        }
        // The last block ends the stages after this one, so it is not dropped.
        let sent = if is_fast || self.block.is_last() {
            self.bus.send_when_room(&message, SILENCE).await
        } else {
            self.bus.send(&message)
        };
        match sent {
            Ok(_) => Ok(()),
            Err(error) if error.is_full() => {
                self.dropped += 1;
                Ok(())
            }
            Err(error) => Err(StageError::sending_to(Stage::Equaliser, error)),
        }
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}
