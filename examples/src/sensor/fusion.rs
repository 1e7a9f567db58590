//! The third part: keeps one state of all channels, publishes it in a cycle, and answers who asks for it.

use std::time::Duration;

use kdbus_core::Instant;
use kdbus_core::client::{Connection, Delivery, Kind, Message, SendError, Transport};
use zerocopy::FromBytes;

use super::channel::Value;
use super::message::{
    ALARM_PAYLOAD, Alarm, END_PAYLOAD, QUESTION_PAYLOAD, READING_PRIORITY, Reading, SMOOTH_PAYLOAD,
    STATE_PAYLOAD, STATE_PRIORITY, STATE_TOPIC, State,
};
use super::part::{Part, PartError, next_urgent, tell_end};
use super::plan::Plan;
use super::tally::{Range, Tally};
use crate::hop::HopRecorder;
use crate::stage::SILENCE;

/// The hop of readings, in the order of the tally.
const READINGS: usize = 0;
/// The hop of alarms.
const ALARMS: usize = 1;
/// From the sensor to the state.
const WHOLE: usize = 2;
/// From the sensor to the alarm's receipt.
const ALARM_WHOLE: usize = 3;

/// The part that knows everything.
///
/// Readings wait in its queue until the end of a cycle. Alarms and questions are more urgent, so they are received at once,
/// past everything that waits.
pub struct Fusion<'a, T: Transport> {
    bus: &'a Connection<T>,
    plan: &'a Plan,
    peers: [u64; 5],
    state: State,
    /// Whether the smoother has nothing more to say.
    has_ended: bool,
    tally: Tally,
}

impl<'a, T: Transport> Fusion<'a, T> {
    /// Makes fusion between `peers`, as [`Part::meet`] found them.
    pub fn new(bus: &'a Connection<T>, plan: &'a Plan, peers: [u64; 5]) -> Self {
        let late = plan.cycle() + plan.period();
        let hops = vec![
            HopRecorder::new("smoother → fusion", late),
            HopRecorder::new("alarm → fusion", plan.period()),
            HopRecorder::new("taken → state", Duration::MAX),
            HopRecorder::new("taken → alarm", Duration::MAX),
        ];
        let ranges = vec![Range::default(); plan.channels.len()];
        let tally = Tally { hops, ranges, ..Tally::default() };
        Self { bus, plan, peers, state: State::new(plan.channels.len()), has_ended: false, tally }
    }

    /// Fuses until the smoother's end and returns what it counted. Cycles end in the middle between two ticks.
    ///
    /// # Errors
    ///
    /// [`PartError`] if the bus or another part is gone.
    pub async fn run(mut self, start: Instant) -> Result<Tally, PartError> {
        let cycle = self.plan.cycle();
        let mut end = start.after(cycle + self.plan.period() / 2);
        let mut heard_at = start;
        while !self.has_ended {
            while let Some(message) = next_urgent(self.bus, STATE_PRIORITY, end).await? {
                self.take(&message)?;
            }
            let before = self.state.taken_in;
            while let Some(message) = self.bus.try_recv_priority(i64::MAX)? {
                self.take(&message)?;
                if self.bus.now() >= end.after(cycle) {
                    // Whatever comes is taken in cycle by cycle; states are published in between.
                    break;
                }
            }
            let lost = self.bus.take_lost();
            self.tally.counts.lost += lost;
            self.state.taken_in += lost;
            self.publish()?;
            let now = self.bus.now();
            if self.state.taken_in != before {
                heard_at = now;
            } else if now.since(heard_at.max(start)) > SILENCE {
                return Err(PartError::Silent(Part::Smoother));
            }
            end = end.after(cycle);
            if end < now {
                // A cycle that was missed is not made up for.
                end = now.after(cycle);
            }
        }
        tell_end(self.bus, Part::Recorder).await?;
        self.dismiss_panel().await?;
        Ok(self.tally)
    }

    fn take(&mut self, message: &Delivery<'_, T>) -> Result<(), PartError> {
        let now = self.bus.now().as_nanos();
        let is_smoother = message.sender() == self.peers[Part::Smoother as usize];
        match message.payload_type() {
            SMOOTH_PAYLOAD if is_smoother => {
                let Ok(reading) = Reading::read_from_bytes(message.payload()) else { return self.ignore() };
                self.state.taken_in += 1;
                self.tally.counts.fused += 1;
                self.tally.hops[READINGS].record(now.saturating_sub(reading.sent_at));
                self.tally.hops[ALARMS].block_arrived(reading.sent_at);
                let Some(entry) = self.state.entry_mut(reading.channel) else { return self.ignore() };
                entry.value = reading.value;
                entry.taken_at = reading.taken_at;
                entry.count += 1;
                if let Some(range) = self.tally.ranges.get_mut(reading.channel as usize) {
                    range.push(Value(reading.value));
                }
            }
            ALARM_PAYLOAD if is_smoother => {
                let Ok(alarm) = Alarm::read_from_bytes(message.payload()) else { return self.ignore() };
                let Some(entry) = self.state.entry_mut(alarm.channel) else { return self.ignore() };
                entry.is_alarming = alarm.is_raised;
                self.tally.counts.heeded += 1;
                if let Some(range) = self.tally.ranges.get_mut(alarm.channel as usize) {
                    range.alarms += alarm.is_raised;
                }
                self.tally.hops[ALARMS].record(now.saturating_sub(alarm.sent_at));
                self.tally.hops[ALARMS].control_arrived(alarm.sent_at);
                self.tally.hops[ALARM_WHOLE].record(now.saturating_sub(alarm.taken_at));
            }
            QUESTION_PAYLOAD if message.kind() == Kind::Call => {
                self.state.fused_at = now;
                let reply = Message::reply(message.reply_to())
                    .priority(STATE_PRIORITY)
                    .payload_type(STATE_PAYLOAD)
                    .payload(self.state.payload());
                match self.bus.send(&reply) {
                    Ok(_) => self.tally.counts.answered += 1,
                    // Who asked has given up, or has no room; that is counted there.
                    Err(SendError::Broken(error)) => return Err(SendError::Broken(error).into()),
                    Err(_) => {}
                }
            }
            END_PAYLOAD if is_smoother => self.has_ended = true,
            _ => return self.ignore(),
        }
        Ok(())
    }

    fn ignore(&mut self) -> Result<(), PartError> {
        self.tally.counts.ignored += 1;
        Ok(())
    }

    fn publish(&mut self) -> Result<(), PartError> {
        let now = self.bus.now().as_nanos();
        self.state.fused_at = now;
        for entry in self.state.entries().iter().filter(|entry| entry.count > 0) {
            self.tally.hops[WHOLE].record(now.saturating_sub(entry.taken_at));
        }
        let message = Message::signal(STATE_TOPIC)
            .priority(STATE_PRIORITY)
            .payload_type(STATE_PAYLOAD)
            .payload(self.state.payload());
        self.bus.send(&message)?;
        self.state.sequence += 1;
        self.tally.counts.states += 1;
        Ok(())
    }

    /// Tells the panel that nothing follows, and answers it until it has no question any more.
    async fn dismiss_panel(&mut self) -> Result<(), PartError> {
        let until = self.bus.now().after(SILENCE);
        let end = Message::to_name(Part::Panel.name())
            .priority(READING_PRIORITY)
            .payload_type(END_PAYLOAD)
            .expect_reply(until);
        let sent = self.bus.send_when_room(&end, SILENCE).await;
        sent.map_err(|error| PartError::sending_to(Part::Panel, error))?;
        loop {
            let Some(message) = next_urgent(self.bus, i64::MAX, until).await? else {
                return Err(PartError::Silent(Part::Panel));
            };
            match message.kind() {
                Kind::Reply => return Ok(()),
                // The bus announces that there will be no answer.
                Kind::Notification => return Err(PartError::Gone(Part::Panel)),
                _ => self.take(&message)?,
            }
        }
    }
}
