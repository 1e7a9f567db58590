//! What travels between the parts: readings, alarms, states, questions and the end.

use kdbus_core::client::{Topic, TopicError};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use super::channel::{CHANNELS_MAX, Channel};

/// The priority of a reading on the bus.
pub const READING_PRIORITY: i64 = 0;

/// The priority of a state and of the question for one: both overtake readings.
pub const STATE_PRIORITY: i64 = -5;

/// The priority of an alarm, which overtakes everything.
pub const ALARM_PRIORITY: i64 = -10;

/// Payload type of a [`Reading`] as the sensor gave it.
pub const RAW_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 raw");

/// Payload type of a [`Reading`] that is smoothed.
pub const SMOOTH_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 smo");

/// Payload type of an [`Alarm`].
pub const ALARM_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 alm");

/// Payload type of a [`State`].
pub const STATE_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 sta");

/// Payload type of the question for a state, which is empty.
pub const QUESTION_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 ask");

/// Payload type of the message behind the last one, which is empty.
pub const END_PAYLOAD: u64 = u64::from_be_bytes(*b"kSP1 end");

/// Topics of raw readings, one element short.
pub const RAW_TOPIC: &str = "org.kdbus.sensor.raw";

/// Topics of smoothed readings, one element short.
pub const SMOOTH_TOPIC: &str = "org.kdbus.sensor.smooth";

/// Topics of alarms, one element short.
pub const ALARM_TOPIC: &str = "org.kdbus.sensor.alarm";

/// The topic of states.
pub const STATE_TOPIC: Topic<'static> = match Topic::parse("org.kdbus.sensor.state") {
    Ok(topic) => topic,
    Err(_) => panic!("a constant is not a topic"),
};

/// The names of the topics below `prefix`, one for each channel.
pub fn topic_names(prefix: &str, channels: &[Channel]) -> Vec<String> {
    channels.iter().map(|channel| format!("{prefix}.{}", channel.name)).collect()
}

/// The topics with these names.
///
/// # Errors
///
/// One of them is none.
pub fn topics(names: &[String]) -> Result<Vec<Topic<'_>>, TopicError> {
    names.iter().map(|name| Topic::parse(name)).collect()
}

/// One value of one channel. Times are nanoseconds on the monotonic clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Reading {
    /// Index of the channel in the plan.
    pub channel: u64,
    /// Number of the reading in its channel, from 0.
    pub sequence: u64,
    /// When it was to be taken.
    pub due_at: u64,
    /// When it was taken, at the source.
    pub taken_at: u64,
    /// When it was sent this time.
    pub sent_at: u64,
    /// What the sensor gave, in millionths.
    pub raw: i64,
    /// The smoothed value; the raw one before that.
    pub value: i64,
}

/// A channel that begins or ceases to alarm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Alarm {
    /// Index of the channel in the plan.
    pub channel: u64,
    /// Number of the alarm, from 0.
    pub sequence: u64,
    /// 1 if it begins, 0 if it ceases.
    pub is_raised: u64,
    /// When the reading was taken that caused it.
    pub taken_at: u64,
    /// When it was sent.
    pub sent_at: u64,
    /// The median that caused it, in millionths.
    pub value: i64,
    /// What it was compared to.
    pub limit: i64,
}

/// What is known of one channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Entry {
    /// The last smoothed value, in millionths.
    pub value: i64,
    /// When it was taken; 0 if there is none.
    pub taken_at: u64,
    /// How many readings there were.
    pub count: u64,
    /// 1 while the channel alarms.
    pub is_alarming: u64,
}

/// What is known of all channels at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct State {
    /// Number of the state, from 0; the next one's if it is an answer.
    pub sequence: u64,
    /// When it was put together.
    pub fused_at: u64,
    /// Readings that were received or lost until then, which are no longer in the queue.
    pub taken_in: u64,
    /// Number of channels.
    pub len: u64,
    entries: [Entry; CHANNELS_MAX],
}

/// Bytes before the entries.
const HEAD: usize = 4 * size_of::<u64>();

impl State {
    /// Nothing known of `len` channels, at most [`CHANNELS_MAX`].
    pub fn new(len: usize) -> Self {
        Self { len: len.min(CHANNELS_MAX) as u64, ..Self::new_zeroed() }
    }

    /// The channels, in the order of the plan.
    pub fn entries(&self) -> &[Entry] {
        &self.entries[..self.len()]
    }

    /// The channel with this index, if there is one.
    pub fn entry_mut(&mut self, channel: u64) -> Option<&mut Entry> {
        let len = self.len();
        self.entries[..len].get_mut(usize::try_from(channel).ok()?)
    }

    /// The bytes that travel: only as many entries as there are channels.
    pub fn payload(&self) -> &[u8] {
        &self.as_bytes()[..HEAD + self.len() * size_of::<Entry>()]
    }

    /// Reads a payload; `None` if it is none.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut state = Self::new_zeroed();
        state.as_mut_bytes().get_mut(..payload.len())?.copy_from_slice(payload);
        (state.len <= CHANNELS_MAX as u64 && state.payload().len() == payload.len()).then_some(state)
    }

    fn len(&self) -> usize {
        self.len as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_as_long_as_its_channels() {
        let mut state = State::new(3);
        state.entry_mut(2).unwrap().value = -7;
        assert!(state.entry_mut(3).is_none());
        assert_eq!(state.payload().len(), 32 + 3 * 32);
        assert_eq!(State::parse(state.payload()), Some(state));
    }

    #[test]
    fn foreign_bytes_are_no_state() {
        let full = State::new(CHANNELS_MAX);
        let mut long = full.payload().to_vec();
        assert!(State::parse(&long).is_some());
        long.push(0);
        assert_eq!(State::parse(&long), None);
        assert_eq!(State::parse(&[]), None);
        assert_eq!(State::parse(&[255; 64]), None);
        assert_eq!(State::parse(&State::new(2).payload()[..64]), None);
    }
}
