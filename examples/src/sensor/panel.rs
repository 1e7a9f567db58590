//! The part that watches: hears states and alarms, and asks for the state with a deadline.

use std::time::Duration;

use kdbus_core::Instant;
use kdbus_core::client::{CallError, Connection, Message, Transport};
use serde::{Deserialize, Serialize};
use zerocopy::FromBytes;

use super::channel::Value;
use super::message::{
    ALARM_PAYLOAD, Alarm, END_PAYLOAD, QUESTION_PAYLOAD, STATE_PAYLOAD, STATE_PRIORITY, State,
};
use super::part::{Part, PartError, next_urgent};
use super::plan::Plan;
use super::tally::Tally;
use crate::hop::HopRecorder;
use crate::stage::SILENCE;

/// From one question to the next.
const EVERY: Duration = Duration::from_millis(250);

/// Alarms that are shown.
const SHOWN: usize = 8;

/// What is to be seen now.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// When the state was put together, in nanoseconds from the start.
    pub at_ns: u64,
    /// The channels, in the order of the plan.
    pub channels: Vec<Seen>,
    /// The last alarms, oldest first.
    pub alarms: Vec<SeenAlarm>,
    /// Median and longest time of the answers so far, in nanoseconds.
    pub answer_ns: (u64, u64),
    /// Median and longest time of alarms from the smoother to here.
    pub alarm_ns: (u64, u64),
    /// Questions that were not answered in time.
    pub unanswered: u64,
    /// Messages for which this part had no room.
    pub lost: u64,
}

/// A channel as it is seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The last smoothed value.
    pub value: Value,
    /// How old it is, in nanoseconds.
    pub age_ns: u64,
    /// Readings so far; 0 if the value is none.
    pub count: u64,
    /// Whether it is older than it should be.
    pub is_stale: bool,
    /// Whether it alarms.
    pub is_alarming: bool,
}

/// An alarm that was heard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenAlarm {
    /// When the reading was taken, in nanoseconds from the start.
    pub at_ns: u64,
    /// Index of the channel.
    pub channel: u64,
    /// Whether it began.
    pub is_raised: bool,
    /// The value.
    pub value: Value,
    /// The limit.
    pub limit: Value,
}

/// The part that looks on.
pub struct Panel<'a, T: Transport> {
    bus: &'a Connection<T>,
    plan: &'a Plan,
    peers: [u64; 5],
    start: Instant,
    view: View,
    tally: Tally,
}

impl<'a, T: Transport> Panel<'a, T> {
    /// Makes a panel that watches `peers`, as [`Part::meet`] found them.
    pub fn new(bus: &'a Connection<T>, plan: &'a Plan, peers: [u64; 5]) -> Self {
        let hops = vec![
            HopRecorder::new("question → answer", Duration::from_nanos(plan.answer_ns)),
            HopRecorder::new("alarm → panel", Duration::MAX),
        ];
        let tally = Tally { hops, ..Tally::default() };
        Self { bus, plan, peers, start: Instant::ZERO, view: View::default(), tally }
    }

    /// Watches until the end of fusion and returns what it counted; `show` sees what every state changes.
    ///
    /// # Errors
    ///
    /// [`PartError`] if the bus or another part is gone.
    pub async fn run(mut self, start: Instant, mut show: impl FnMut(&View)) -> Result<Tally, PartError> {
        let [_, smoother, fusion, ..] = self.peers;
        self.start = start;
        let mut next = start.after(EVERY);
        let mut heard_at = start;
        loop {
            let Some(message) = next_urgent(self.bus, i64::MAX, next).await? else {
                let now = self.bus.now();
                if now.since(heard_at.max(start)) > SILENCE {
                    return Err(PartError::Silent(Part::Fusion));
                }
                self.ask().await?;
                next = next.after(EVERY).max(self.bus.now());
                continue;
            };
            heard_at = self.bus.now();
            match (message.payload_type(), message.sender()) {
                (STATE_PAYLOAD, from) if from == fusion => match State::parse(message.payload()) {
                    Some(state) => {
                        self.tally.counts.seen_states += 1;
                        self.see(&state);
                        show(&self.view);
                    }
                    None => self.tally.counts.ignored += 1,
                },
                (ALARM_PAYLOAD, from) if from == smoother => {
                    match Alarm::read_from_bytes(message.payload()) {
                        Ok(alarm) => self.hear(alarm),
                        Err(_) => self.tally.counts.ignored += 1,
                    }
                }
                (END_PAYLOAD, from) if from == fusion => {
                    let sent = self.bus.send(&Message::reply(message.reply_to()));
                    sent.map_err(|error| PartError::sending_to(Part::Fusion, error))?;
                    self.tally.counts.lost += self.bus.take_lost();
                    return Ok(self.tally);
                }
                _ => self.tally.counts.ignored += 1,
            }
        }
    }

    /// Asks for the state, and waits for the answer until its deadline.
    async fn ask(&mut self) -> Result<(), PartError> {
        let asked_at = self.bus.now();
        let question =
            Message::to_name(Part::Fusion.name()).priority(STATE_PRIORITY).payload_type(QUESTION_PAYLOAD);
        self.tally.counts.asked += 1;
        match self.bus.call(&question, Duration::from_nanos(self.plan.answer_ns)).await {
            Ok(answer) => {
                let took = self.bus.now().since(asked_at).as_nanos() as u64;
                self.tally.hops[0].record(took);
                if let Some(state) = State::parse(answer.payload()) {
                    self.see(&state);
                } else {
                    self.tally.counts.ignored += 1;
                }
                Ok(())
            }
            Err(CallError::TimedOut) => {
                self.tally.counts.unanswered += 1;
                self.tally.hops[0].record_missed();
                Ok(())
            }
            Err(CallError::NotSent(error)) => Err(PartError::sending_to(Part::Fusion, error)),
            Err(CallError::PeerDied | CallError::Broken(_)) => Err(PartError::Gone(Part::Fusion)),
            Err(_) => Err(PartError::Gone(Part::Fusion)),
        }
    }

    fn see(&mut self, state: &State) {
        let hops = &self.tally.hops;
        let of = |hop: &HopRecorder| (hop.latency_ns(0.5), hop.max_ns());
        self.view.at_ns = state.fused_at.saturating_sub(self.start.as_nanos());
        (self.view.answer_ns, self.view.alarm_ns) = (of(&hops[0]), of(&hops[1]));
        self.view.unanswered = self.tally.counts.unanswered;
        let lost = self.bus.take_lost();
        self.tally.counts.lost += lost;
        self.view.lost += lost;
        self.view.channels.clear();
        self.view.channels.extend(state.entries().iter().enumerate().map(|(channel, entry)| {
            let age_ns = state.fused_at.saturating_sub(entry.taken_at);
            Seen {
                value: Value(entry.value),
                age_ns,
                count: entry.count,
                is_stale: age_ns > self.plan.stale_ns(channel),
                is_alarming: entry.is_alarming == 1,
            }
        }));
    }

    fn hear(&mut self, alarm: Alarm) {
        self.tally.counts.seen_alarms += 1;
        self.tally.hops[1].record(self.bus.now().as_nanos().saturating_sub(alarm.sent_at));
        if self.view.alarms.len() == SHOWN {
            self.view.alarms.remove(0);
        }
        self.view.alarms.push(SeenAlarm {
            at_ns: alarm.taken_at.saturating_sub(self.start.as_nanos()),
            channel: alarm.channel,
            is_raised: alarm.is_raised == 1,
            value: Value(alarm.value),
            limit: Value(alarm.limit),
        });
    }
}
