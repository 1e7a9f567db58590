//! One awaited reply: the call that it answers, and what becomes of it.

use core::fmt;

use super::names::ConnectionIndex;
use crate::Instant;
use crate::abi::{Errno, MsgInfo};
use crate::queue;
use crate::slots::{Slot, SlotId, Slotted};
use crate::tree::{Link, Linked};

pub(super) const BY_COOKIE: usize = 0;
pub(super) const BY_REPLIER: usize = 1;
pub(super) const BY_DEADLINE: usize = 2;

/// One awaited reply, or room for one.
#[derive(Debug)]
pub struct Tracker {
    pub(super) slot: Slot,
    pub(super) links: [Link; 3],
    /// `None` once the caller is gone.
    pub(super) caller: Option<ConnectionIndex>,
    pub(super) replier: ConnectionIndex,
    pub(super) cookie: u64,
    pub(super) deadline: Instant,
    pub(super) sequence: u64,
    pub(super) mode: CallMode,
    pub(super) state: State,
    pub(super) interrupted: bool,
    /// The queue entry of the call's message, and whose queue that is.
    pub(super) carrier: Option<(ConnectionIndex, queue::Handle)>,
    pub(super) serial: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Pending,
    /// Ended while the caller was interrupted, who will come back for the result.
    Settled(Result<MsgInfo, Errno>),
    Closed,
}

/// Names one tracker until it leaves the table; of no effect after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TrackerId(pub(super) SlotId);

/// Whether the caller waits inside its SEND.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum CallMode {
    /// No: the reply, or a notification of the bus, comes as a message.
    Asynchronous,
    /// Yes: the reply is the result of the command with this token.
    Synchronous {
        /// The host's number of the command.
        token: u64,
    },
}

/// A call as it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Call {
    /// Who called.
    pub caller: ConnectionIndex,
    /// Who is expected to reply.
    pub replier: ConnectionIndex,
    /// Cookie of the call; replies carry it.
    pub cookie: u64,
    /// When the call expires.
    pub deadline: Instant,
    /// Sequence number of the name that was called, 0 if the call was addressed by id.
    pub sequence: u64,
    /// Whether the caller waits inside its SEND.
    pub mode: CallMode,
}

/// A call that has ended, for the caller to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the caller waits until it is told"]
pub struct EndedCall {
    /// The call, with the replier as it was last.
    pub call: Call,
    /// Whether the caller is away and was not to be woken: it comes back, or its deadline passes.
    pub interrupted: bool,
    /// What had been [settled](super::reply::ReplyTable::settle) and not been fetched; its slice is nobody's now.
    pub unclaimed: Option<Result<MsgInfo, Errno>>,
}

/// An interrupted synchronous call whose caller came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumed {
    /// It waits again.
    Waiting(TrackerId),
    /// It had ended meanwhile; the tracker is closed.
    Ended(Result<MsgInfo, Errno>),
}

/// Why a call was not opened; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum CallError {
    /// The caller has [`CALLS_MAX`](super::reply::CALLS_MAX) calls open.
    TooMany,
    /// All trackers of the domain are in use.
    Full,
    /// There is no such caller.
    NoConnection,
}

impl CallError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::TooMany => Errno::EMLINK,
            Self::Full => Errno::ENOMEM,
            Self::NoConnection => Errno::ECONNRESET,
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "caller has too many calls open",
            Self::Full => "no room for another call",
            Self::NoConnection => "no such connection",
        })
    }
}

impl core::error::Error for CallError {}

impl Tracker {
    /// Room for one awaited reply.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slot: Slot::new(),
            links: [const { Link::new() }; 3],
            caller: None,
            replier: ConnectionIndex(0),
            cookie: 0,
            deadline: Instant::ZERO,
            sequence: 0,
            mode: CallMode::Asynchronous,
            state: State::Closed,
            interrupted: false,
            carrier: None,
            serial: 0,
        }
    }

    pub(super) fn cookie_key(&self) -> (Option<ConnectionIndex>, u64, u64) {
        (self.caller, self.cookie, self.serial)
    }

    pub(super) const fn replier_key(&self) -> (ConnectionIndex, u64, u64) {
        (self.replier, self.sequence, self.serial)
    }

    pub(super) const fn deadline_key(&self) -> (Instant, u64) {
        (self.deadline, self.serial)
    }

    pub(super) fn call(&self) -> Option<Call> {
        Some(Call {
            caller: self.caller?,
            replier: self.replier,
            cookie: self.cookie,
            deadline: self.deadline,
            sequence: self.sequence,
            mode: self.mode,
        })
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for Tracker {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

/// The index of that number has the link of that number.
macro_rules! linked {
    ($($index:ident),*) => {$(
        impl Linked<$index> for Tracker {
            fn link(&self) -> &Link {
                &self.links[$index]
            }

            fn link_mut(&mut self) -> &mut Link {
                &mut self.links[$index]
            }
        }
    )*};
}

linked!(BY_COOKIE, BY_REPLIER, BY_DEADLINE);
