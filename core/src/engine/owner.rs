//! Owners of names, and what follows when one takes the place of another.

use core::fmt;

use crate::WellKnownName;
use crate::abi::{Errno, NameFlags};
use crate::name::WELL_KNOWN_NAME_MAX;
use crate::slots::SlotId;

/// The flags of a request that stay with its record.
const STORED: NameFlags = NameFlags::ALLOW_REPLACEMENT.union(NameFlags::QUEUE);

/// The place of a connection in the tables of its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ConnectionIndex(pub u32);

/// Names one entry until it dies; of no effect after that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NameId(pub(super) SlotId);

/// A copy of a well-known name.
#[derive(Clone, Copy)]
pub struct NameText {
    len: u8,
    bytes: [u8; WELL_KNOWN_NAME_MAX],
}

/// A connection and its claim to a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Owner {
    /// Who.
    pub connection: ConnectionIndex,
    /// How, as LIST reports it: `PRIMARY` or `IN_QUEUE`, `ACTIVATOR`, and what the last request stored.
    pub flags: NameFlags,
}

/// Who owned a name before and after a change, for the caller to announce.
///
/// Flags are those before the change on the old side and those after it on the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "subscribers learn of the change only if it is announced"]
pub struct OwnerChange {
    /// The name.
    pub name: NameText,
    /// Its sequence number.
    pub sequence: u64,
    /// Who owned it; `None`: the name is new.
    pub old: Option<Owner>,
    /// Who owns it now; `None`: the name is gone.
    pub new: Option<Owner>,
}

/// Messages and awaited replies that have to pass from one owner to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "what was sent to the name stays with an owner who has lost it"]
pub struct HandOver {
    /// Sequence number of the name they were addressed to.
    pub sequence: u64,
    /// Who lost the name.
    pub from: ConnectionIndex,
    /// Who has it now.
    pub to: ConnectionIndex,
}

/// What an accepted request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "subscribers learn of the change only if it is announced"]
pub struct Acquired {
    /// What NAME_ACQUIRE reports.
    pub return_flags: NameFlags,
    /// Whether another connection owns the name now.
    pub change: Option<OwnerChange>,
}

/// One claim that was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "subscribers learn of the change only if it is announced"]
pub struct Released {
    /// Whether another connection owns the name now, or nobody.
    pub change: Option<OwnerChange>,
}

/// A claim of a connection, as [`NameTable::claims`](super::names::NameTable::claims) lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// The name.
    pub name: &'a str,
    /// The entry of the name.
    pub id: NameId,
    /// How it is held.
    pub flags: NameFlags,
}

/// Why a name was not acquired; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum AcquireError {
    /// The connection has [`RECORDS_MAX`](super::names::RECORDS_MAX) records.
    TooMany,
    /// The connection is the activator of the name.
    OwnActivator,
    /// The name is taken, and neither replacement nor waiting was possible or asked for; for an
    /// activator: the name has one.
    Taken,
    /// All entries or records of the domain are in use.
    Full,
    /// There is no such connection.
    NoConnection,
}

impl AcquireError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::TooMany => Errno::E2BIG,
            Self::OwnActivator => Errno::EUCLEAN,
            Self::Taken => Errno::EEXIST,
            Self::Full => Errno::ENOMEM,
            Self::NoConnection => Errno::ECONNRESET,
        }
    }
}

impl fmt::Display for AcquireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TooMany => "connection has too many names",
            Self::OwnActivator => "connection is the activator of the name",
            Self::Taken => "name is taken",
            Self::Full => "no room for another name",
            Self::NoConnection => "no such connection",
        })
    }
}

impl core::error::Error for AcquireError {}

/// Why a name was not released; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ReleaseError {
    /// Nobody claims that name.
    Unknown,
    /// Only others claim the name.
    NotYours,
}

impl ReleaseError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Unknown => Errno::ESRCH,
            Self::NotYours => Errno::EADDRINUSE,
        }
    }
}

impl fmt::Display for ReleaseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "nobody claims the name",
            Self::NotYours => "only others claim the name",
        })
    }
}

impl core::error::Error for ReleaseError {}

/// The flags of a NAME_ACQUIRE that stay with the claim; also reported when the name is
/// [taken](AcquireError::Taken).
#[must_use]
pub const fn stored_flags(request: NameFlags) -> NameFlags {
    request.intersection(STORED)
}

impl NameText {
    /// No name.
    pub(super) const EMPTY: Self = Self { len: 0, bytes: [0; WELL_KNOWN_NAME_MAX] };

    pub(super) fn new(name: WellKnownName<'_>) -> Self {
        let mut text = Self::EMPTY;
        for (to, from) in text.bytes.iter_mut().zip(name.as_str().bytes()) {
            *to = from;
            text.len += 1;
        }
        text
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&self.bytes)
    }

    /// The name as a string.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl PartialEq for NameText {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for NameText {}

impl fmt::Debug for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for NameText {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=str}", self.as_str());
    }
}

impl OwnerChange {
    /// The hand-over that this change calls for: when the name passes from or to its activator.
    pub fn hand_over(&self) -> Option<HandOver> {
        let (old, new) = (self.old?, self.new?);
        if !(old.flags | new.flags).contains(NameFlags::ACTIVATOR) {
            return None;
        }
        Some(HandOver { sequence: self.sequence, from: old.connection, to: new.connection })
    }
}
