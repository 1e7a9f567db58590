//! The middle stage: works on blocks of sound, as controls say that overtake them.

use std::collections::VecDeque;
use std::time::Duration;

use kdbus_core::client::{Connection, Delivery, Kind, Message, ReplyTo, Transport};
use zerocopy::IntoBytes;

use crate::block::Block;
use crate::control::{Control, ControlQueue};
use crate::equaliser::Equaliser;
use crate::hop::HopRecorder;
use crate::stage::{
    AUDIO_PAYLOAD, AUDIO_PRIORITY, CONTROL_PAYLOAD, Pace, SILENCE, Stage, StageError, WINDOW, next_urgent,
};

/// Controls that can wait for their block.
const CONTROLS: usize = 64;

/// Blocks that can wait for a control: as many as the source can have sent beyond the one that it wants answered.
const HELD: usize = 2 * WINDOW as usize;

/// A block that was received, and what belongs to it.
#[derive(Clone, Debug)]
struct Held {
    block: Block,
    sequence: u64,
    asks: Option<ReplyTo>,
}

/// What the stage measured and counted.
#[derive(Clone, Debug)]
pub struct Equalised {
    /// The hop of the blocks that came in.
    pub audio: HopRecorder,
    /// The hop of the controls, and what they overtook.
    pub controls: HopRecorder,
    /// Blocks that were dropped because the sink had no room.
    pub dropped: u64,
    /// Controls that came after their block had begun.
    pub late_controls: u64,
    /// Controls that never came.
    pub missing_controls: u64,
    /// Messages of others, and such that are none of a pipeline.
    pub ignored: u64,
}

/// The stage between source and sink.
///
/// It receives the most urgent message first, so that a control that is sent while blocks wait is there before them. In
/// time, it takes each block when its turn comes and leaves the others in the queue of the bus. Otherwise it holds blocks
/// until it knows that all controls for them have arrived.
pub struct Equalise<'c, T: Transport> {
    bus: &'c Connection<T>,
    source: u64,
    controller: u64,
    pace: Pace,
    equaliser: Equaliser,
    queue: ControlQueue,
    /// Whom to tell of controls in the queue that they have taken effect, in the order in which they do.
    askers: VecDeque<ReplyTo>,
    held: VecDeque<Held>,
    out: Block,
    measured: Equalised,
}

impl<'c, T: Transport> Equalise<'c, T> {
    /// Makes the stage; blocks come from `source`, controls from `controller`, both unique ids, and no others are obeyed.
    pub fn new(bus: &'c Connection<T>, source: u64, controller: u64, equaliser: Equaliser) -> Self {
        Self {
            bus,
            source,
            controller,
            pace: Pace::Fast,
            equaliser,
            queue: ControlQueue::new(CONTROLS),
            askers: VecDeque::with_capacity(CONTROLS),
            held: VecDeque::with_capacity(HELD),
            out: Block::new(0),
            measured: Equalised {
                audio: HopRecorder::new("source → equaliser", Duration::MAX),
                controls: HopRecorder::new("controller → equaliser", Duration::MAX),
                dropped: 0,
                late_controls: 0,
                missing_controls: 0,
                ignored: 0,
            },
        }
    }

    /// Works at `pace` until the last block has gone on to the sink. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// [`StageError`] if another stage is gone, or the source does not keep to its [`WINDOW`].
    pub async fn run(&mut self, pace: Pace) -> Result<(), StageError> {
        self.pace = pace;
        if let Pace::Realtime(timeline) = pace {
            self.measured.audio.set_deadline(timeline.equaliser_deadline());
            self.measured.controls.set_deadline(timeline.control_deadline());
        }
        let mut expected = 0;
        loop {
            let held = match self.pace {
                Pace::Fast => self.next_settled().await?,
                Pace::Realtime(timeline) => {
                    self.bus.sleep(timeline.equaliser_at(expected)).await?;
                    self.next_in_time().await?
                }
            };
            expected = held.block.index().saturating_add(1);
            if self.process(held).await? {
                self.measured.controls.finish();
                self.measured.late_controls = self.queue.late();
                self.measured.missing_controls = self.queue.missing();
                return Ok(());
            }
        }
    }

    /// What was measured.
    pub const fn measured(&self) -> &Equalised {
        &self.measured
    }

    /// The first block in the queue, behind the controls that are there.
    async fn next_in_time(&mut self) -> Result<Held, StageError> {
        loop {
            if let Some(held) = self.take_next().await? {
                return Ok(held);
            }
        }
    }

    /// The next block of which is known that it has all its controls.
    async fn next_settled(&mut self) -> Result<Held, StageError> {
        loop {
            let is_settled = self.held.front().is_some_and(|held| self.queue.is_settled(held.block.index()));
            if is_settled && let Some(held) = self.held.pop_front() {
                return Ok(held);
            }
            match self.take_next().await? {
                Some(_) if self.held.len() == HELD => return Err(StageError::Flooded),
                Some(held) => self.held.push_back(held),
                None => {}
            }
        }
    }

    /// Receives the most urgent message, and returns it if it is a block; a control is kept for its block.
    async fn take_next(&mut self) -> Result<Option<Held>, StageError> {
        let until = self.bus.now().after(SILENCE);
        let Some(message) = next_urgent(self.bus, until).await? else {
            // Without a block at hand it is the source that is late, otherwise the controller.
            let silent = if self.held.is_empty() { Stage::Source } else { Stage::Controller };
            return Err(StageError::Silent(silent));
        };
        let now = self.bus.now();
        let asks = (message.kind() == Kind::Call).then(|| message.reply_to());
        if message.sender() == self.source && message.payload_type() == AUDIO_PAYLOAD {
            if let Ok(block) = Block::parse(message.payload()) {
                self.measured.audio.record(now.as_nanos().saturating_sub(block.sent_at()));
                let sequence = sequence(&message, block.sent_at());
                return Ok(Some(Held { block: block.clone(), sequence, asks }));
            }
        } else if message.sender() == self.controller
            && message.payload_type() == CONTROL_PAYLOAD
            && let Ok(control) = Control::parse(message.payload())
            && self.keep(control, asks)
        {
            self.measured.controls.record(now.as_nanos().saturating_sub(control.sent_at));
            self.measured.controls.control_arrived(sequence(&message, control.sent_at));
            return Ok(None);
        }
        // What somebody else sends does not stop the sound.
        self.measured.ignored += 1;
        Ok(None)
    }

    /// Queues a control; false if it cannot be.
    fn keep(&mut self, control: Control, asks: Option<ReplyTo>) -> bool {
        if self.queue.push(control).is_err() {
            return false;
        }
        if let Some(asks) = asks
            && self.askers.len() < CONTROLS
        {
            self.askers.push_back(asks);
        }
        true
    }

    /// Works on a block and sends it on; true if it was the last one.
    async fn process(&mut self, held: Held) -> Result<bool, StageError> {
        let Held { block, sequence, asks } = held;
        self.out = block;
        self.measured.controls.block_arrived(sequence);
        let applied = self.equaliser.run(&mut self.out, &mut self.queue);
        self.send().await?;
        for _ in 0..applied {
            if let Some(asker) = self.askers.pop_front() {
                self.answer(asker, Stage::Controller)?;
            }
        }
        if let Some(asker) = asks {
            self.answer(asker, Stage::Source)?;
        }
        Ok(self.out.is_last())
    }

    async fn send(&mut self) -> Result<(), StageError> {
        self.out.set_sent_at(self.bus.now().as_nanos());
        let message = Message::to_name(Stage::Sink.name())
            .priority(AUDIO_PRIORITY)
            .payload_type(AUDIO_PAYLOAD)
            .payload(self.out.as_bytes());
        let sent = if self.pace == Pace::Fast || self.out.is_last() {
            self.bus.send_when_room(&message, SILENCE).await
        } else {
            self.bus.send(&message)
        };
        match sent {
            Ok(_) => Ok(()),
            Err(error) if error.is_full() => {
                self.measured.dropped += 1;
                Ok(())
            }
            Err(error) => Err(StageError::sending_to(Stage::Sink, error)),
        }
    }

    fn answer(&self, asker: ReplyTo, stage: Stage) -> Result<(), StageError> {
        self.bus.reply(asker, &[]).map_err(|error| StageError::sending_to(stage, error))
    }
}

/// The number of a message on the bus, which tells what came before it; without one, the sender's time serves.
fn sequence<T: Transport>(message: &Delivery<'_, T>, sent_at: u64) -> u64 {
    message.metadata().timestamp().map_or(sent_at, |timestamp| timestamp.seqnum)
}
