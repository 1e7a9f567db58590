//! What is compared: which system carries which messages where.

use std::fmt;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// What carries a message to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
pub enum System {
    /// A lane between two peers of kdbus-rt, past kdbusd.
    #[serde(rename = "kdbus-rt channel")]
    #[value(name = "channel")]
    Channel,
    /// kdbus-rt through kdbusd.
    #[serde(rename = "kdbus-rt slow path")]
    #[value(name = "slow-path")]
    SlowPath,
    /// The same with the payload in a fresh sealed memfd each time.
    #[serde(rename = "kdbus-rt memfd")]
    #[value(name = "memfd")]
    Memfd,
    /// The same with the payload in a buffer that is lent and comes back.
    #[serde(rename = "kdbus-rt loan")]
    #[value(name = "loan")]
    Loan,
    /// Shared memory, and a futex to wait on: what nothing between two processes that sleep can beat.
    #[serde(rename = "shm+futex")]
    #[value(name = "shm-futex")]
    ShmFutex,
    /// Shared memory, and a byte in a pipe that an edge-triggered epoll set tells of: the wake-up of our channel, and nothing
    /// else of it.
    #[serde(rename = "shm+pipe")]
    #[value(name = "shm-pipe")]
    ShmPipe,
    /// Shared memory that both look at all the time.
    #[serde(rename = "shm spin")]
    #[value(name = "shm-spin")]
    ShmSpin,
    /// A `SOCK_SEQPACKET` socket pair.
    #[serde(rename = "seqpacket")]
    #[value(name = "seqpacket")]
    Seqpacket,
    /// Two of them with a process in the middle that passes packets on: what no daemon in the middle can beat.
    #[serde(rename = "seqpacket relay")]
    #[value(name = "seqpacket-relay")]
    SeqpacketRelay,
    /// dbus-broker, and a client that puts its messages together once and only changes serials.
    #[serde(rename = "dbus-broker raw")]
    #[value(name = "dbus-broker")]
    DbusBroker,
    /// dbus-daemon with the same client.
    #[serde(rename = "dbus-daemon raw")]
    #[value(name = "dbus-daemon")]
    DbusDaemon,
    /// dbus-broker, and zbus as the client.
    #[serde(rename = "zbus dbus-broker")]
    #[value(name = "zbus")]
    Zbus,
    /// iceoryx2, woken by its events.
    #[serde(rename = "iceoryx2 events")]
    #[value(name = "iceoryx2-events")]
    IceoryxEvents,
    /// iceoryx2 that is looked at all the time.
    #[serde(rename = "iceoryx2 polling")]
    #[value(name = "iceoryx2-polling")]
    IceoryxPolling,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A message there and the same bytes back; who waits, sleeps.
    Call,
    /// The same; who waits, looks again and again.
    CallSpin,
    /// Messages one way: the latency of one when nothing else is under way, and how many go through in a second.
    Stream,
    /// One message to eight subscribers, until the last of them has it.
    #[serde(rename = "broadcast-8")]
    #[value(name = "broadcast-8")]
    Broadcast,
}

/// Where the processes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// All on one CPU.
    OneCpu,
    /// The client, and what stands in the middle, on one; the server on another.
    TwoCpus,
}

/// Subscribers of a broadcast.
pub const SUBSCRIBERS: usize = 8;

/// One thing to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Case {
    /// What carries the message.
    pub system: System,
    /// What is measured.
    pub kind: Kind,
    /// Bytes of the message, each way.
    pub bytes: usize,
    /// Where.
    pub place: Place,
}

impl System {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 14] = [
        Self::Channel,
        Self::SlowPath,
        Self::Memfd,
        Self::Loan,
        Self::ShmFutex,
        Self::ShmPipe,
        Self::ShmSpin,
        Self::Seqpacket,
        Self::SeqpacketRelay,
        Self::DbusBroker,
        Self::DbusDaemon,
        Self::Zbus,
        Self::IceoryxEvents,
        Self::IceoryxPolling,
    ];

    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Channel => "kdbus-rt channel",
            Self::SlowPath => "kdbus-rt slow path",
            Self::Memfd => "kdbus-rt memfd",
            Self::Loan => "kdbus-rt loan",
            Self::ShmFutex => "shm+futex",
            Self::ShmPipe => "shm+pipe",
            Self::ShmSpin => "shm spin",
            Self::Seqpacket => "seqpacket",
            Self::SeqpacketRelay => "seqpacket relay",
            Self::DbusBroker => "dbus-broker raw",
            Self::DbusDaemon => "dbus-daemon raw",
            Self::Zbus => "zbus dbus-broker",
            Self::IceoryxEvents => "iceoryx2 events",
            Self::IceoryxPolling => "iceoryx2 polling",
        }
    }

    /// Whether it is kdbus-rt.
    #[must_use]
    pub const fn is_ours(self) -> bool {
        matches!(self, Self::Channel | Self::SlowPath | Self::Memfd | Self::Loan)
    }

    /// What `kind` is measured against: the least that any system could do.
    #[must_use]
    pub const fn floor(kind: Kind) -> Self {
        match kind {
            Kind::CallSpin => Self::ShmSpin,
            Kind::Call | Kind::Stream | Kind::Broadcast => Self::ShmFutex,
        }
    }

    /// Whether it only ever waits by looking.
    const fn only_spins(self) -> bool {
        matches!(self, Self::ShmSpin | Self::IceoryxPolling)
    }

    /// Whether it can wait by looking.
    const fn can_spin(self) -> bool {
        self.only_spins() || matches!(self, Self::Channel)
    }
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 4] = [Self::Call, Self::CallSpin, Self::Stream, Self::Broadcast];

    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::CallSpin => "call-spin",
            Self::Stream => "stream",
            Self::Broadcast => "broadcast-8",
        }
    }
}

impl Place {
    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::OneCpu => "one-cpu",
            Self::TwoCpus => "two-cpus",
        }
    }
}

impl Case {
    /// Whether the system can do this at all: spinning takes two CPUs, one that only spins is no use with eight
    /// receivers, and these get copies; a pipe wakes one.
    #[must_use]
    pub fn is_possible(&self) -> bool {
        match self.kind {
            Kind::Call => !self.system.only_spins(),
            Kind::CallSpin => self.system.can_spin() && self.place == Place::TwoCpus,
            Kind::Stream => !self.system.only_spins() || self.place == Place::TwoCpus,
            Kind::Broadcast => {
                let is_copied = !matches!(self.system, System::Memfd | System::Loan | System::ShmPipe);
                is_copied && !self.system.only_spins() && self.bytes <= 65_536
            }
        }
    }

    /// Whether the processes look instead of sleeping.
    #[must_use]
    pub fn spins(&self) -> bool {
        self.kind == Kind::CallSpin || self.system.only_spins()
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { system, kind, bytes, place } = self;
        write!(f, "{}, {}, {bytes} bytes, {}", system.name(), kind.name(), place.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_everything_as_it_is_written_in_json() {
        for system in System::ALL {
            assert_eq!(serde_json::to_value(system).unwrap(), system.name());
        }
        for kind in Kind::ALL {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
        for place in [Place::OneCpu, Place::TwoCpus] {
            assert_eq!(serde_json::to_value(place).unwrap(), place.name());
        }
        assert_eq!(System::ALL.len(), System::value_variants().len());
    }

    #[test]
    fn nobody_spins_on_one_cpu() {
        for system in System::ALL {
            for kind in Kind::ALL {
                let case = Case { system, kind, bytes: 64, place: Place::OneCpu };
                assert!(!case.is_possible() || !case.spins(), "{case}");
            }
        }
    }
}
