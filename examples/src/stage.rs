//! The four processes of the pipeline, and what they have in common on the bus.

use std::fmt;
use std::time::Duration;

use kdbus_core::abi::NameFlags;
use kdbus_core::client::{
    AcquireError, ByebyeError, Connection, Delivery, Failure, Hello, HelloError, Kind, NotLeft, RecvError,
    SendError, Transport, WaitError, block_on,
};
use kdbus_core::{Instant, NodeName, WellKnownName};

use crate::timeline::Timeline;
use crate::wav::WavError;

/// The priority of a block of sound on the bus.
pub const AUDIO_PRIORITY: i64 = 0;

/// The priority of a control: more urgent, so that it overtakes the blocks that wait.
pub const CONTROL_PRIORITY: i64 = -10;

/// Payload type of a message that is a [`Block`](crate::block::Block).
pub const AUDIO_PAYLOAD: u64 = u64::from_be_bytes(*b"kAB1 blk");

/// Payload type of a message that is a [`Control`](crate::control::Control).
pub const CONTROL_PAYLOAD: u64 = u64::from_be_bytes(*b"kAC1 ctl");

/// Blocks of a run without deadlines between two that the source wants answered. It sends the second one only after the
/// first one is answered, so fewer than twice as many are on their way, and controls always find room behind them.
pub const WINDOW: u64 = 64;

/// Controls of a run without deadlines that the controller has unanswered at most. More than name one block, or the
/// equaliser would wait for the next one while the controller waits for the equaliser.
pub const CONTROL_WINDOW: usize = 8;

/// How long a stage, or a part of the sensor pipeline, waits for another one to appear.
pub const APPEARANCE: Duration = Duration::from_secs(10);

/// After which silence a stage or a part gives up. The coordinator knows of a dead one long before.
pub const SILENCE: Duration = Duration::from_secs(30);

/// Bytes of a receive pool. One user can have a sixth of it waiting: enough for the 256 messages that the bus allows.
const POOL: u64 = 2 << 20;

/// Messages of others that a leaving stage drops before it leaves without asking.
const LEFTOVERS: usize = 1_024;

/// One of the four processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Stage {
    /// Makes blocks of sound.
    Source,
    /// Works on them, as the controller says.
    Equaliser,
    /// Plays them: takes them in time and writes them down.
    Sink,
    /// Sends controls to the equaliser.
    Controller,
}

pub(crate) const fn well_known(name: &'static str) -> WellKnownName<'static> {
    match WellKnownName::parse(name) {
        Ok(name) => name,
        Err(_) => panic!("a constant is not a well-known name"),
    }
}

pub(crate) const fn node(name: &'static str) -> NodeName<'static> {
    match NodeName::parse(name) {
        Ok(name) => name,
        Err(_) => panic!("a constant is not a node name"),
    }
}

impl Stage {
    /// All of them, in the order that sound takes.
    pub const ALL: [Self; 4] = [Self::Source, Self::Equaliser, Self::Sink, Self::Controller];

    /// What people call it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Equaliser => "equaliser",
            Self::Sink => "sink",
            Self::Controller => "controller",
        }
    }

    /// The well-known name that it owns.
    pub const fn name(self) -> WellKnownName<'static> {
        const SOURCE: WellKnownName<'static> = well_known("org.kdbus.audio.Source");
        const EQUALISER: WellKnownName<'static> = well_known("org.kdbus.audio.Equaliser");
        const SINK: WellKnownName<'static> = well_known("org.kdbus.audio.Sink");
        const CONTROLLER: WellKnownName<'static> = well_known("org.kdbus.audio.Controller");
        match self {
            Self::Source => SOURCE,
            Self::Equaliser => EQUALISER,
            Self::Sink => SINK,
            Self::Controller => CONTROLLER,
        }
    }

    /// What its connection calls itself.
    pub const fn description(self) -> NodeName<'static> {
        const SOURCE: NodeName<'static> = node("audio-source");
        const EQUALISER: NodeName<'static> = node("audio-equaliser");
        const SINK: NodeName<'static> = node("audio-sink");
        const CONTROLLER: NodeName<'static> = node("audio-controller");
        match self {
            Self::Source => SOURCE,
            Self::Equaliser => EQUALISER,
            Self::Sink => SINK,
            Self::Controller => CONTROLLER,
        }
    }

    /// Its priority in `SCHED_FIFO`: the nearer to the loudspeaker, the more urgent.
    pub const fn urgency(self) -> u32 {
        match self {
            Self::Sink => 43,
            Self::Equaliser => 42,
            Self::Source => 41,
            Self::Controller => 40,
        }
    }

    /// Introduces this stage to the bus and takes its name.
    ///
    /// # Errors
    ///
    /// [`StageError::Taken`] if another pipeline plays on this bus, otherwise what the bus said.
    pub fn join<T: Transport>(self, transport: T) -> Result<Connection<T>, StageError> {
        // The sequence number of a message, which tells what it overtook, is part of its timestamp.
        let hello = Hello::new()
            .description(self.description())
            .pool_size(POOL)
            .ask_metadata(kdbus_core::abi::AttachFlags::TIMESTAMP);
        let bus = Connection::hello(transport, &hello)?;
        match bus.acquire(self.name(), NameFlags::empty()) {
            Ok(_) => Ok(bus),
            Err(AcquireError::Taken) => Err(StageError::Taken(self)),
            Err(error) => Err(StageError::Acquire(error)),
        }
    }

    /// The stages that this one has to do with.
    const fn peers(self) -> &'static [Self] {
        match self {
            Self::Source | Self::Sink | Self::Controller => &[Self::Equaliser],
            Self::Equaliser => &[Self::Source, Self::Controller, Self::Sink],
        }
    }

    /// Waits for the stages that this one has to do with, and returns their unique ids in the order of [`Stage::ALL`];
    /// 0 for any other.
    ///
    /// # Errors
    ///
    /// As [`Stage::await_on`].
    pub async fn meet<T: Transport>(self, bus: &Connection<T>) -> Result<[u64; 4], StageError> {
        let mut ids = [0; 4];
        for peer in self.peers() {
            ids[*peer as usize] = peer.await_on(bus).await?;
        }
        Ok(ids)
    }

    /// Waits for this stage to appear on `bus` and returns its unique id.
    ///
    /// # Errors
    ///
    /// [`StageError::Missing`] after [`APPEARANCE`], otherwise what the bus said.
    pub async fn await_on<T: Transport>(self, bus: &Connection<T>) -> Result<u64, StageError> {
        match bus.wait_for_name(self.name(), APPEARANCE).await {
            Ok(id) => Ok(id),
            Err(WaitError::TimedOut) => Err(StageError::Missing(self)),
            Err(error) => Err(StageError::Wait(error)),
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How a run is paced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As fast as it goes: senders wait for room, and the outcome is the same each time, to the bit.
    Fast,
    /// In time: nobody waits for anybody, and what comes late is counted.
    Realtime(Timeline),
}

/// Receives the most urgent message that waits; without one, waits for it until `until`, and then returns `None`.
pub(crate) async fn next_urgent<T: Transport>(
    bus: &Connection<T>,
    until: Instant,
) -> Result<Option<Delivery<'_, T>>, StageError> {
    match bus.recv_priority_until(i64::MAX, until).await {
        Ok(message) => Ok(Some(message)),
        Err(RecvError::TimedOut) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Waits until the message that `sender` was asked to answer has been answered; others are dropped.
pub(crate) async fn await_answer<T: Transport>(bus: &Connection<T>, stage: Stage) -> Result<(), StageError> {
    loop {
        match bus.recv_until(SILENCE).await {
            Ok(message) if message.kind() == Kind::Reply => return Ok(()),
            // The bus announces that there will be no answer.
            Ok(message) if message.kind() == Kind::Notification => return Err(StageError::Gone(stage)),
            Ok(_) => {}
            Err(RecvError::TimedOut) => return Err(StageError::Silent(stage)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Runs a part of a stage in a process of its own: waits in the transport of `bus` for what the part awaits.
///
/// In the simulator the parts run as they are.
///
/// # Errors
///
/// Those of the part, and [`StageError::Wait`] if the transport cannot wait.
pub fn run_on<T: Transport, R>(
    bus: &Connection<T>,
    part: impl Future<Output = Result<R, StageError>>,
) -> Result<R, StageError> {
    block_on(bus, part)?
}

/// Leaves the bus in an orderly way; messages that are still there are dropped, and their number is returned.
///
/// # Errors
///
/// [`StageError::Byebye`] if the bus is gone.
pub fn leave<T: Transport>(mut bus: Connection<T>) -> Result<usize, StageError> {
    let mut dropped = 0;
    loop {
        match bus.byebye() {
            Ok(()) => return Ok(dropped),
            Err(NotLeft { connection, error: ByebyeError::Busy }) if dropped < LEFTOVERS => {
                bus = connection;
                while dropped < LEFTOVERS && bus.drop_next()? {
                    dropped += 1;
                }
            }
            // Somebody keeps sending; dropping the connection leaves in any case.
            Err(NotLeft { error: ByebyeError::Busy, .. }) => return Ok(dropped),
            Err(NotLeft { error, .. }) => return Err(StageError::Byebye(error)),
        }
    }
}

/// Why a stage did not play to the end.
#[non_exhaustive]
#[derive(Debug)]
pub enum StageError {
    /// The bus did not let it in.
    Hello(HelloError),
    /// Its name belongs to somebody else.
    Taken(Stage),
    /// Its name could not be acquired for another reason.
    Acquire(AcquireError),
    /// This stage did not appear.
    Missing(Stage),
    /// This stage appeared and went away.
    Gone(Stage),
    /// This stage has said nothing for [`SILENCE`].
    Silent(Stage),
    /// The source is further ahead than was agreed.
    Flooded,
    /// Waiting for a name failed.
    Wait(WaitError),
    /// A message was not sent.
    Send(SendError),
    /// Nothing can be received.
    Recv(RecvError),
    /// The bus is gone at the end.
    Byebye(ByebyeError),
    /// A file failed.
    Wav(WavError),
}

impl StageError {
    /// Whether the reason is that another stage is gone, which then has a better one.
    pub const fn is_consequence(&self) -> bool {
        matches!(
            self,
            Self::Missing(_)
                | Self::Gone(_)
                | Self::Silent(_)
                | Self::Send(
                    SendError::NoSuchName
                        | SendError::NoSuchConnection
                        | SendError::ReceiverGone
                        | SendError::NotAwaited
                        | SendError::TimedOut
                )
        )
    }

    /// What a failed send to `stage` means.
    pub(crate) const fn sending_to(stage: Stage, error: SendError) -> Self {
        match error {
            SendError::NoSuchName | SendError::NoSuchConnection | SendError::ReceiverGone => {
                Self::Gone(stage)
            }
            SendError::TimedOut => Self::Silent(stage),
            error => Self::Send(error),
        }
    }
}

impl fmt::Display for StageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hello(error) => write!(f, "cannot join the bus: {error}"),
            Self::Taken(stage) => {
                write!(f, "{} belongs to another pipeline on this bus; end that one first", stage.name())
            }
            Self::Acquire(error) => write!(f, "cannot take its name: {error}"),
            Self::Missing(stage) => write!(f, "the {stage} did not appear on the bus"),
            Self::Gone(stage) => write!(f, "the {stage} is gone from the bus"),
            Self::Silent(stage) => write!(f, "the {stage} has been silent for {} s", SILENCE.as_secs()),
            Self::Flooded => f.write_str("the source is further ahead than was agreed"),
            Self::Wait(error) => write!(f, "cannot wait for another stage: {error}"),
            Self::Send(error) => write!(f, "cannot send: {error}"),
            Self::Recv(error) => write!(f, "cannot receive: {error}"),
            Self::Byebye(error) => write!(f, "cannot leave the bus: {error}"),
            Self::Wav(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StageError {}

macro_rules! from {
    ($($error:ty => $variant:ident),*) => {
        $(impl From<$error> for StageError {
            fn from(error: $error) -> Self {
                Self::$variant(error)
            }
        })*
    };
}

from!(HelloError => Hello, WaitError => Wait, SendError => Send, RecvError => Recv, WavError => Wav);

impl From<Failure> for StageError {
    fn from(failure: Failure) -> Self {
        Self::Recv(RecvError::from(failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_descriptions_are_told_apart() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            for other in &Stage::ALL[at + 1..] {
                assert_ne!(stage.name(), other.name());
                assert_ne!(stage.description().as_str(), other.description().as_str());
            }
            assert!(stage.name().as_str().to_lowercase().ends_with(stage.word()));
        }
    }

    #[test]
    fn a_lost_peer_is_a_consequence_and_a_bad_file_is_not() {
        let gone = StageError::sending_to(Stage::Sink, SendError::NoSuchName);
        assert!(gone.is_consequence());
        assert_eq!(gone.to_string(), "the sink is gone from the bus");
        assert!(!StageError::sending_to(Stage::Sink, SendError::Denied).is_consequence());
        assert!(!StageError::Taken(Stage::Source).is_consequence());
    }

    #[test]
    fn more_controls_are_under_way_than_name_one_block() {
        use crate::control::Schedule;
        let controls: Vec<_> = Schedule::demo(18_000).collect();
        for control in &controls {
            let same = controls.iter().filter(|other| other.block == control.block).count();
            assert!(same < CONTROL_WINDOW, "{same} controls name block {}", control.block);
        }
    }
}
