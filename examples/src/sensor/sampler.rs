//! The first part: reads sensors in time and publishes what they give.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use kdbus_core::Instant;
use kdbus_core::client::{Connection, Message, Topic, Transport};
use zerocopy::IntoBytes;

use super::channel::Value;
use super::message::{RAW_PAYLOAD, RAW_TOPIC, READING_PRIORITY, Reading, topic_names, topics};
use super::part::{Part, PartError, tell_end};
use super::plan::Plan;
use super::tally::Tally;
use crate::hop::HopRecorder;

/// What can be measured: the sensors of a machine, or a model of some.
pub trait Sensors {
    /// Reads the channel with this index at a tick. `now` is the clock; what was read and when is returned.
    ///
    /// # Errors
    ///
    /// The sensor gives nothing now; it may again.
    fn read(&mut self, channel: usize, tick: u64, now: &dyn Fn() -> Instant) -> io::Result<(Value, Instant)>;
}

/// The part that keeps time.
pub struct Sampler<'a, T: Transport, S> {
    bus: &'a Connection<T>,
    plan: &'a Plan,
    sensors: S,
    stop: &'a AtomicBool,
    sequences: Vec<u64>,
    tally: Tally,
}

impl<'a, T: Transport, S: Sensors> Sampler<'a, T, S> {
    /// Makes a sampler of `sensors`, which runs as planned, at most until `stop` is set.
    pub fn new(bus: &'a Connection<T>, plan: &'a Plan, sensors: S, stop: &'a AtomicBool) -> Self {
        let hops = vec![HopRecorder::new("due → taken", plan.period())];
        let sequences = vec![0; plan.channels.len()];
        Self { bus, plan, sensors, stop, sequences, tally: Tally { hops, ..Tally::default() } }
    }

    /// Samples to the end and returns what it counted.
    ///
    /// # Errors
    ///
    /// [`PartError`] if the bus or the smoother is gone.
    pub async fn run(mut self, start: Instant) -> Result<Tally, PartError> {
        let names = topic_names(RAW_TOPIC, &self.plan.channels);
        let topics = topics(&names).map_err(|_| PartError::Channels)?;
        let mut ticks = self.bus.ticks(start, self.plan.period());
        for tick in 0..self.plan.ticks {
            let due = ticks.tick().await?;
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            if let (Some(burst), Some(topic)) = (self.plan.burst, topics.first())
                && burst.tick == tick
            {
                (0..burst.readings).try_for_each(|_| self.publish(0, *topic, tick, due))?;
            }
            for (channel, topic) in topics.iter().enumerate() {
                if tick.is_multiple_of(self.plan.channels[channel].every) {
                    self.publish(channel, *topic, tick, due)?;
                }
            }
        }
        tell_end(self.bus, Part::Smoother).await?;
        self.tally.counts.lost += self.bus.take_lost();
        Ok(self.tally)
    }

    fn publish(
        &mut self,
        channel: usize,
        topic: Topic<'_>,
        tick: u64,
        due: Instant,
    ) -> Result<(), PartError> {
        let bus = self.bus;
        let Ok((value, taken_at)) = self.sensors.read(channel, tick, &|| bus.now()) else {
            self.tally.counts.unreadable += 1;
            return Ok(());
        };
        let sequence = &mut self.sequences[channel];
        let reading = Reading {
            channel: channel as u64,
            sequence: *sequence,
            due_at: due.as_nanos(),
            taken_at: taken_at.as_nanos(),
            sent_at: bus.now().as_nanos(),
            raw: value.0,
            value: value.0,
        };
        *sequence += 1;
        self.tally.hops[0].record(taken_at.since(due).as_nanos() as u64);
        let message = Message::signal(topic)
            .priority(READING_PRIORITY)
            .payload_type(RAW_PAYLOAD)
            .payload(reading.as_bytes());
        bus.send(&message)?;
        self.tally.counts.sampled += 1;
        Ok(())
    }
}
