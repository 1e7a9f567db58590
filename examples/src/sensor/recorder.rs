//! The part that writes down what the others publish.

use std::fmt::Write as _;
use std::io;
use std::time::Duration;

use kdbus_core::client::{Connection, Delivery, Transport};
use zerocopy::FromBytes;

use super::channel::Value;
use super::message::{ALARM_PAYLOAD, Alarm, END_PAYLOAD, Reading, SMOOTH_PAYLOAD, STATE_PAYLOAD, State};
use super::part::{Part, PartError, next_from};
use super::plan::Plan;
use super::tally::Tally;
use crate::hop::HopRecorder;

/// The first line of a record.
const HEADER: [&str; 8] = ["kind", "channel", "unit", "sequence", "taken_ns", "recorded_ns", "raw", "value"];

/// The part that writes a line for each reading, alarm and state, as comma-separated values.
///
/// `value` is the smoothed value of a reading, the limit that an alarm crossed, and the number of channels of a state that
/// are fresh.
pub struct Recorder<'a, T: Transport, W: io::Write> {
    bus: &'a Connection<T>,
    plan: &'a Plan,
    peers: [u64; 5],
    writer: Option<csv::Writer<W>>,
    field: String,
    tally: Tally,
}

impl<'a, T: Transport, W: io::Write> Recorder<'a, T, W> {
    /// Makes a recorder that writes to `to`; without it, it counts only.
    pub fn new(bus: &'a Connection<T>, plan: &'a Plan, peers: [u64; 5], to: Option<W>) -> Self {
        let hops = vec![HopRecorder::new("smoother → recorder", Duration::MAX)];
        let writer = to.map(csv::Writer::from_writer);
        Self { bus, plan, peers, writer, field: String::new(), tally: Tally { hops, ..Tally::default() } }
    }

    /// Records until the end of fusion and returns what it counted.
    ///
    /// # Errors
    ///
    /// [`PartError`] if the bus or another part is gone, or the record cannot be written.
    pub async fn run(mut self) -> Result<Tally, PartError> {
        if let Some(writer) = &mut self.writer {
            writer.write_record(HEADER).map_err(failed)?;
        }
        loop {
            let message = next_from(self.bus, Part::Fusion).await?;
            if !self.take(&message)? {
                break;
            }
        }
        if let Some(writer) = &mut self.writer {
            writer.flush().map_err(|error| PartError::Record(error.to_string()))?;
        }
        self.tally.counts.lost += self.bus.take_lost();
        Ok(self.tally)
    }

    /// Takes a message in; false if it is the last one.
    fn take(&mut self, message: &Delivery<'_, T>) -> Result<bool, PartError> {
        let now = self.bus.now().as_nanos();
        let [_, smoother, fusion, ..] = self.peers;
        match (message.payload_type(), message.sender()) {
            (SMOOTH_PAYLOAD, from) if from == smoother => {
                let Ok(reading) = Reading::read_from_bytes(message.payload()) else { return self.ignore() };
                self.tally.counts.recorded_readings += 1;
                self.tally.hops[0].record(now.saturating_sub(reading.sent_at));
                let numbers = [reading.sequence, reading.taken_at, now];
                self.write(
                    "reading",
                    Some(reading.channel),
                    numbers,
                    Some(reading.raw),
                    &Value(reading.value),
                )?;
            }
            (ALARM_PAYLOAD, from) if from == smoother => {
                let Ok(alarm) = Alarm::read_from_bytes(message.payload()) else { return self.ignore() };
                self.tally.counts.recorded_alarms += 1;
                let kind = if alarm.is_raised == 1 { "alarm" } else { "clear" };
                let numbers = [alarm.sequence, alarm.taken_at, now];
                self.write(kind, Some(alarm.channel), numbers, Some(alarm.value), &Value(alarm.limit))?;
            }
            (STATE_PAYLOAD, from) if from == fusion => {
                let Some(state) = State::parse(message.payload()) else { return self.ignore() };
                self.tally.counts.recorded_states += 1;
                let fresh = state.entries().iter().enumerate().filter(|(channel, entry)| {
                    let age = state.fused_at.saturating_sub(entry.taken_at);
                    entry.count > 0 && age <= self.plan.stale_ns(*channel)
                });
                let fresh = fresh.count();
                self.write("state", None, [state.sequence, state.fused_at, now], None, &fresh)?;
            }
            (END_PAYLOAD, from) if from == fusion => return Ok(false),
            _ => return self.ignore(),
        }
        Ok(true)
    }

    fn ignore(&mut self) -> Result<bool, PartError> {
        self.tally.counts.ignored += 1;
        Ok(true)
    }

    fn write(
        &mut self,
        kind: &str,
        channel: Option<u64>,
        numbers: [u64; 3],
        raw: Option<i64>,
        value: &dyn std::fmt::Display,
    ) -> Result<(), PartError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let channel = channel.and_then(|channel| self.plan.channels.get(usize::try_from(channel).ok()?));
        let (name, unit) = channel.map_or(("", ""), |channel| (&channel.name, &channel.unit));
        [kind, name, unit].iter().try_for_each(|field| writer.write_field(field)).map_err(failed)?;
        let mut field = |text: &dyn std::fmt::Display| {
            self.field.clear();
            // A string takes whatever is written.
            let _ = write!(self.field, "{text}");
            writer.write_field(&self.field)
        };
        numbers.iter().try_for_each(|number| field(number)).map_err(failed)?;
        match raw {
            Some(raw) => field(&Value(raw)),
            None => field(&""),
        }
        .map_err(failed)?;
        field(value).map_err(failed)?;
        writer.write_record(None::<&[u8]>).map_err(failed)?;
        self.tally.counts.rows += 1;
        Ok(())
    }
}

fn failed(error: csv::Error) -> PartError {
    PartError::Record(error.to_string())
}
