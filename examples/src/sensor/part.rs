//! The five processes of the pipeline, and what they have in common on the bus.

use std::fmt;

use kdbus_core::abi::{AttachFlags, NameFlags};
use kdbus_core::client::{
    AcquireError, Connection, Delivery, Hello, HelloError, MatchError, Message, RecvError, SendError,
    TopicPattern, Transport, WaitError, block_on,
};
use kdbus_core::{Instant, NodeName, WellKnownName};

use super::message::{END_PAYLOAD, READING_PRIORITY, STATE_TOPIC};
use crate::stage::{APPEARANCE, SILENCE, node, well_known};

/// Bytes of a receive pool. One user can have a sixth of it waiting: more than the 256 messages that the bus allows.
const POOL: u64 = 1 << 20;

/// One of the five processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Reads sensors.
    Sampler,
    /// Filters readings and raises alarms.
    Smoother,
    /// Keeps the state of all channels.
    Fusion,
    /// Writes everything down.
    Recorder,
    /// Watches, and asks for the state.
    Panel,
}

impl Part {
    /// All of them, in the order that readings take.
    pub const ALL: [Self; 5] = [Self::Sampler, Self::Smoother, Self::Fusion, Self::Recorder, Self::Panel];

    /// What people call it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Sampler => "sampler",
            Self::Smoother => "smoother",
            Self::Fusion => "fusion",
            Self::Recorder => "recorder",
            Self::Panel => "panel",
        }
    }

    /// The well-known name that it owns.
    pub const fn name(self) -> WellKnownName<'static> {
        const NAMES: [WellKnownName<'static>; 5] = [
            well_known("org.kdbus.sensor.Sampler"),
            well_known("org.kdbus.sensor.Smoother"),
            well_known("org.kdbus.sensor.Fusion"),
            well_known("org.kdbus.sensor.Recorder"),
            well_known("org.kdbus.sensor.Panel"),
        ];
        NAMES[self as usize]
    }

    /// What its connection calls itself.
    pub const fn description(self) -> NodeName<'static> {
        const NODES: [NodeName<'static>; 5] = [
            node("sensor-sampler"),
            node("sensor-smoother"),
            node("sensor-fusion"),
            node("sensor-recorder"),
            node("sensor-panel"),
        ];
        NODES[self as usize]
    }

    /// Its priority in `SCHED_FIFO`: whoever keeps time is the most urgent, whoever only looks the least.
    pub const fn urgency(self) -> u32 {
        match self {
            Self::Sampler => 43,
            Self::Smoother => 42,
            Self::Fusion => 41,
            Self::Recorder => 40,
            Self::Panel => 39,
        }
    }

    /// The signals that it hears.
    const fn hears(self) -> &'static [&'static str] {
        const RAW: &str = "org.kdbus.sensor.raw.*";
        const SMOOTH: &str = "org.kdbus.sensor.smooth.*";
        const ALARM: &str = "org.kdbus.sensor.alarm.*";
        const STATE: &str = STATE_TOPIC.as_str();
        match self {
            Self::Sampler => &[],
            Self::Smoother => &[RAW, STATE],
            Self::Fusion => &[SMOOTH, ALARM],
            Self::Recorder => &[SMOOTH, ALARM, STATE],
            Self::Panel => &[ALARM, STATE],
        }
    }

    /// The parts that this one has to do with.
    const fn peers(self) -> &'static [Self] {
        match self {
            Self::Sampler => &[Self::Smoother],
            Self::Smoother => &[Self::Sampler, Self::Fusion, Self::Recorder, Self::Panel],
            Self::Fusion => &[Self::Smoother, Self::Recorder, Self::Panel],
            Self::Recorder | Self::Panel => &[Self::Smoother, Self::Fusion],
        }
    }

    /// Introduces this part to the bus, subscribes, and takes its name; so whoever sees the name is heard.
    ///
    /// # Errors
    ///
    /// [`PartError::Taken`] if another pipeline runs on this bus, otherwise what the bus said.
    pub fn join<T: Transport>(self, transport: T) -> Result<Connection<T>, PartError> {
        let hello =
            Hello::new().description(self.description()).pool_size(POOL).ask_metadata(AttachFlags::empty());
        let bus = Connection::hello(transport, &hello)?;
        for topic in self.hears() {
            bus.subscribe(TopicPattern::parse(topic).map_err(|_| PartError::Channels)?)?;
        }
        match bus.acquire(self.name(), NameFlags::empty()) {
            Ok(_) => Ok(bus),
            Err(AcquireError::Taken) => Err(PartError::Taken(self)),
            Err(error) => Err(PartError::Acquire(error)),
        }
    }

    /// Waits for the parts that this one has to do with, and returns their unique ids in the order of [`Part::ALL`]; 0 for
    /// any other.
    ///
    /// # Errors
    ///
    /// [`PartError::Missing`] after [`APPEARANCE`], otherwise what the bus said.
    pub async fn meet<T: Transport>(self, bus: &Connection<T>) -> Result<[u64; 5], PartError> {
        let mut ids = [0; 5];
        for peer in self.peers() {
            ids[*peer as usize] = match bus.wait_for_name(peer.name(), APPEARANCE).await {
                Ok(id) => id,
                Err(WaitError::TimedOut) => return Err(PartError::Missing(*peer)),
                Err(error) => return Err(error.into()),
            };
        }
        Ok(ids)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Waits until `until` for the most urgent message that is at least as urgent as `limit`; `None` if none came.
pub(crate) async fn next_urgent<T: Transport>(
    bus: &Connection<T>,
    limit: i64,
    until: Instant,
) -> Result<Option<Delivery<'_, T>>, PartError> {
    match bus.recv_priority_until(limit, until).await {
        Ok(message) => Ok(Some(message)),
        Err(RecvError::TimedOut) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The most urgent message of any priority, of which one has to come from `from` in [`SILENCE`].
pub(crate) async fn next_from<T: Transport>(
    bus: &Connection<T>,
    from: Part,
) -> Result<Delivery<'_, T>, PartError> {
    next_urgent(bus, i64::MAX, bus.now().after(SILENCE)).await?.ok_or(PartError::Silent(from))
}

/// Tells `part` that nothing follows, behind everything that was sent to it; waits for room if there is none.
pub(crate) async fn tell_end<T: Transport>(bus: &Connection<T>, part: Part) -> Result<(), PartError> {
    let end = Message::to_name(part.name()).priority(READING_PRIORITY).payload_type(END_PAYLOAD);
    bus.send_when_room(&end, SILENCE).await.map(drop).map_err(|error| PartError::sending_to(part, error))
}

/// Runs something of a part in a process of its own: waits in the transport of `bus` for what it awaits.
///
/// # Errors
///
/// Those of the part, and [`PartError::Wait`] if the transport cannot wait.
pub fn run_on<T: Transport, R>(
    bus: &Connection<T>,
    part: impl Future<Output = Result<R, PartError>>,
) -> Result<R, PartError> {
    block_on(bus, part)?
}

/// Why a part did not come to its end.
#[non_exhaustive]
#[derive(Debug)]
pub enum PartError {
    /// The bus did not let it in.
    Hello(HelloError),
    /// It cannot hear what it has to.
    Subscribe(MatchError),
    /// Its name belongs to somebody else.
    Taken(Part),
    /// Its name could not be acquired for another reason.
    Acquire(AcquireError),
    /// This part did not appear.
    Missing(Part),
    /// This part appeared and went away.
    Gone(Part),
    /// This part has said nothing for [`SILENCE`].
    Silent(Part),
    /// The channels of the plan cannot be topics, or are too many.
    Channels,
    /// Waiting failed.
    Wait(WaitError),
    /// A message was not sent.
    Send(SendError),
    /// Nothing can be received.
    Recv(RecvError),
    /// The record cannot be written.
    Record(String),
}

impl PartError {
    /// Whether the reason is that another part is gone, which then has a better one.
    pub const fn is_consequence(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Gone(_) | Self::Silent(_))
    }

    /// What a failed send to `part` means.
    pub(crate) const fn sending_to(part: Part, error: SendError) -> Self {
        match error {
            SendError::NoSuchName | SendError::NoSuchConnection | SendError::ReceiverGone => Self::Gone(part),
            SendError::TimedOut => Self::Silent(part),
            error => Self::Send(error),
        }
    }
}

impl fmt::Display for PartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(error) => write!(f, "cannot join the bus: {error}"),
            Self::Subscribe(error) => write!(f, "cannot subscribe: {error}"),
            Self::Taken(part) => {
                write!(f, "{} belongs to another pipeline on this bus; end that one first", part.name())
            }
            Self::Acquire(error) => write!(f, "cannot take its name: {error}"),
            Self::Missing(part) => write!(f, "the {part} did not appear on the bus"),
            Self::Gone(part) => write!(f, "the {part} is gone from the bus"),
            Self::Silent(part) => write!(f, "the {part} has been silent for {} s", SILENCE.as_secs()),
            Self::Channels => f.write_str("the channels are too many, or have names that are no topics"),
            Self::Wait(error) => write!(f, "cannot wait: {error}"),
            Self::Send(error) => write!(f, "cannot send: {error}"),
            Self::Recv(error) => write!(f, "cannot receive: {error}"),
            Self::Record(text) => write!(f, "cannot write the record: {text}"),
        }
    }
}

impl std::error::Error for PartError {}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {
        $(impl From<$error> for PartError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from!(HelloError => Hello, MatchError => Subscribe, WaitError => Wait, SendError => Send, RecvError => Recv);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_apart_and_found_by_their_place() {
        for (at, part) in Part::ALL.into_iter().enumerate() {
            assert_eq!(part as usize, at);
            assert!(part.name().as_str().to_lowercase().ends_with(part.word()));
            assert!(part.description().as_str().ends_with(part.word()));
        }
    }

    #[test]
    fn a_lost_peer_is_a_consequence_and_a_full_disk_is_not() {
        assert!(PartError::sending_to(Part::Fusion, SendError::NoSuchName).is_consequence());
        assert!(!PartError::sending_to(Part::Fusion, SendError::Denied).is_consequence());
        assert!(!PartError::Record("no space".into()).is_consequence());
    }
}
