//! The stage beside the others: says what the equaliser does.

use kdbus_core::client::{Connection, Message, Transport};

use crate::control::{Control, Schedule};
use crate::stage::{
    CONTROL_PAYLOAD, CONTROL_PRIORITY, CONTROL_WINDOW, Pace, SILENCE, Stage, StageError, await_answer,
};

/// The stage that sends controls, more urgent than the sound they are about.
///
/// In time, it sends each shortly before its block has its turn. Otherwise it sends as many as [`CONTROL_WINDOW`] ahead of
/// the last one that has taken effect, which the equaliser tells in its answer.
pub struct Controller<'c, T: Transport> {
    bus: &'c Connection<T>,
    schedule: Schedule,
    pace: Pace,
    unanswered: usize,
    dropped: u64,
}

impl<'c, T: Transport> Controller<'c, T> {
    /// Makes a controller that says what `schedule` says.
    pub const fn new(bus: &'c Connection<T>, schedule: Schedule, pace: Pace) -> Self {
        Self { bus, schedule, pace, unanswered: 0, dropped: 0 }
    }

    /// Says everything and returns how many controls were dropped. Nothing is allocated.
    ///
    /// # Errors
    ///
    /// [`StageError`] if the equaliser is gone.
    pub async fn run(&mut self) -> Result<u64, StageError> {
        while let Some(control) = self.schedule.next() {
            match self.pace {
                Pace::Realtime(timeline) => self.bus.sleep(timeline.control_at(control.block)).await?,
                Pace::Fast if self.unanswered == CONTROL_WINDOW => self.await_one().await?,
                Pace::Fast => {}
            }
            self.send(control).await?;
        }
        while self.unanswered > 0 {
            self.await_one().await?;
        }
        Ok(self.dropped)
    }

    async fn send(&mut self, mut control: Control) -> Result<(), StageError> {
        let now = self.bus.now();
        control.sent_at = now.as_nanos();
        let bytes = control.to_bytes();
        let message = Message::to_name(Stage::Equaliser.name())
            .priority(CONTROL_PRIORITY)
            .payload_type(CONTROL_PAYLOAD)
            .payload(&bytes);
        let sent = match self.pace {
            Pace::Fast => {
                self.unanswered += 1;
                self.bus.send_when_room(&message.expect_reply(now.after(2 * SILENCE)), SILENCE).await
            }
            Pace::Realtime(_) => self.bus.send(&message),
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

    async fn await_one(&mut self) -> Result<(), StageError> {
        await_answer(self.bus, Stage::Equaliser).await?;
        self.unanswered -= 1;
        Ok(())
    }
}
