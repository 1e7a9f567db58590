//! The second part: filters readings, publishes them anew, and raises alarms.

use std::time::Duration;

use kdbus_core::client::{Connection, Message, Topic, Transport};
use zerocopy::{FromBytes, IntoBytes};

use super::channel::Value;
use super::filter::{Filter, Smoothed};
use super::message::{
    ALARM_PAYLOAD, ALARM_PRIORITY, ALARM_TOPIC, Alarm, END_PAYLOAD, RAW_PAYLOAD, READING_PRIORITY, Reading,
    SMOOTH_PAYLOAD, SMOOTH_TOPIC, STATE_PAYLOAD, State, topic_names, topics,
};
use super::part::{Part, PartError, next_from, tell_end};
use super::plan::{CREDIT, Plan};
use super::tally::Tally;
use crate::hop::HopRecorder;

/// The part between sampler and fusion.
///
/// An alarm has to find room at fusion, however many readings come. So the smoother has no more than [`CREDIT`] readings
/// under way there: each state says how many fusion has taken in, and what goes beyond is filtered but not published.
pub struct Smoother<'a, T: Transport> {
    bus: &'a Connection<T>,
    plan: &'a Plan,
    peers: [u64; 5],
    filters: Vec<Filter>,
    /// For each threshold its channel, and whether it alarms.
    watched: Vec<(usize, bool)>,
    taken_in: u64,
    tally: Tally,
}

impl<'a, T: Transport> Smoother<'a, T> {
    /// Makes a smoother between `peers`, as [`Part::meet`] found them. Thresholds without a channel are left out.
    pub fn new(bus: &'a Connection<T>, plan: &'a Plan, peers: [u64; 5]) -> Self {
        let hops = vec![HopRecorder::new("sampler → smoother", Duration::MAX)];
        let nowhere = usize::MAX;
        let channel = |name: &str| plan.index(name).unwrap_or(nowhere);
        Self {
            bus,
            plan,
            peers,
            filters: vec![Filter::default(); plan.channels.len()],
            watched: plan.thresholds.iter().map(|threshold| (channel(&threshold.channel), false)).collect(),
            taken_in: 0,
            tally: Tally { hops, ..Tally::default() },
        }
    }

    /// Smooths until the sampler's end and returns what it counted.
    ///
    /// # Errors
    ///
    /// [`PartError`] if the bus or another part is gone.
    pub async fn run(mut self) -> Result<Tally, PartError> {
        let bus = self.bus;
        let names = [SMOOTH_TOPIC, ALARM_TOPIC].map(|prefix| topic_names(prefix, &self.plan.channels));
        let smooth = topics(&names[0]).map_err(|_| PartError::Channels)?;
        let alarm = topics(&names[1]).map_err(|_| PartError::Channels)?;
        let [sampler, _, fusion, ..] = self.peers;
        loop {
            let message = next_from(bus, Part::Sampler).await?;
            match (message.payload_type(), message.sender()) {
                (RAW_PAYLOAD, from) if from == sampler => match Reading::read_from_bytes(message.payload()) {
                    Ok(reading) if reading.channel < self.filters.len() as u64 => {
                        self.take(reading, &smooth, &alarm)?;
                    }
                    _ => self.tally.counts.ignored += 1,
                },
                (STATE_PAYLOAD, from) if from == fusion => {
                    if let Some(state) = State::parse(message.payload()) {
                        self.taken_in = state.taken_in;
                    }
                }
                (END_PAYLOAD, from) if from == sampler => break,
                _ => self.tally.counts.ignored += 1,
            }
        }
        tell_end(bus, Part::Fusion).await?;
        self.tally.counts.lost += bus.take_lost();
        Ok(self.tally)
    }

    /// Filters a reading, whose channel there is, and sends what follows; the alarm behind the reading that caused it.
    fn take(
        &mut self,
        mut reading: Reading,
        smooth: &[Topic<'_>],
        alarm: &[Topic<'_>],
    ) -> Result<(), PartError> {
        let now = self.bus.now().as_nanos();
        let channel = reading.channel as usize;
        self.tally.hops[0].record(now.saturating_sub(reading.sent_at));
        self.tally.counts.smoothed += 1;
        let smoothed = self.filters[channel].push(Value(reading.raw));
        reading.value = smoothed.value.0;
        if self.tally.counts.published.saturating_sub(self.taken_in) < CREDIT {
            reading.sent_at = now;
            let message = Message::signal(smooth[channel])
                .priority(READING_PRIORITY)
                .payload_type(SMOOTH_PAYLOAD)
                .payload(reading.as_bytes());
            self.bus.send(&message)?;
            self.tally.counts.published += 1;
        } else {
            self.tally.counts.shed += 1;
        }
        self.watch(&reading, smoothed, alarm[channel])
    }

    fn watch(&mut self, reading: &Reading, smoothed: Smoothed, topic: Topic<'_>) -> Result<(), PartError> {
        if !smoothed.is_settled {
            return Ok(());
        }
        for (threshold, (channel, was)) in self.plan.thresholds.iter().zip(&mut self.watched) {
            let is_alarming = threshold.is_alarming(smoothed.median, *was);
            if *channel as u64 != reading.channel || is_alarming == *was {
                continue;
            }
            *was = is_alarming;
            let counts = &mut self.tally.counts;
            let alarm = Alarm {
                channel: reading.channel,
                sequence: counts.raised + counts.cleared,
                is_raised: u64::from(is_alarming),
                taken_at: reading.taken_at,
                sent_at: self.bus.now().as_nanos(),
                value: smoothed.median.0,
                limit: if is_alarming { threshold.limit.0 } else { threshold.back.0 },
            };
            if is_alarming {
                counts.raised += 1;
            } else {
                counts.cleared += 1;
            }
            let message = Message::signal(topic)
                .priority(ALARM_PRIORITY)
                .payload_type(ALARM_PAYLOAD)
                .payload(alarm.as_bytes());
            self.bus.send(&message)?;
        }
        Ok(())
    }
}
