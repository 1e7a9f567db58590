//! What a domain keeps of names: entries, and the claims of connections to them.

use crate::abi::NameFlags;
use crate::slots::{FreeList, Slot, Slotted};
use crate::tree::{Link, Linked, Root};

use super::owner::{ConnectionIndex, NameText, Owner};

/// No entry and no record.
pub(super) const NONE: u32 = u32::MAX;

/// The names of one bus: an index over the entries of the domain.
#[derive(Debug)]
pub struct BusNames {
    pub(super) by_name: Root,
    pub(super) sequence: u64,
}

/// The names that one connection claims, in the order the claims were made.
#[derive(Debug)]
pub struct ClaimedNames {
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) count: u32,
}

/// Which entries and records of a domain are in use.
#[derive(Debug)]
pub struct NameArena {
    pub(super) names: FreeList,
    pub(super) records: FreeList,
    pub(super) by_claim: Root,
}

/// One name that somebody claims, or room for one.
#[derive(Debug)]
pub struct NameEntry {
    pub(super) slot: Slot,
    pub(super) link: Link,
    pub(super) text: NameText,
    pub(super) sequence: u64,
    /// The queue of records: the primary, then those that wait.
    pub(super) first: u32,
    pub(super) last: u32,
    pub(super) activator: u32,
}

/// One claim of a connection to a name, or room for one.
#[derive(Debug)]
pub struct OwnerRecord {
    pub(super) slot: Slot,
    /// Among all records, by connection and name.
    pub(super) link: Link,
    pub(super) connection: ConnectionIndex,
    pub(super) name: u32,
    pub(super) flags: NameFlags,
    /// Neighbours in the queue of the name.
    pub(super) ahead: u32,
    pub(super) behind: u32,
    /// Neighbours among the claims of the connection.
    pub(super) older: u32,
    pub(super) newer: u32,
}

impl BusNames {
    /// No names; the first one gets sequence number 1.
    #[must_use]
    pub const fn new() -> Self {
        Self { by_name: Root::new(), sequence: 0 }
    }
}

impl Default for BusNames {
    fn default() -> Self {
        Self::new()
    }
}

impl ClaimedNames {
    /// No claims.
    #[must_use]
    pub const fn new() -> Self {
        Self { first: NONE, last: NONE, count: 0 }
    }

    /// Claims of the connection, in `O(1)`.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether the connection claims no name, in `O(1)`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Default for ClaimedNames {
    fn default() -> Self {
        Self::new()
    }
}

impl NameArena {
    /// All entries and records free.
    #[must_use]
    pub const fn new() -> Self {
        Self { names: FreeList::new(), records: FreeList::new(), by_claim: Root::new() }
    }
}

impl Default for NameArena {
    fn default() -> Self {
        Self::new()
    }
}

impl NameEntry {
    /// Room for one name.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slot: Slot::new(),
            link: Link::new(),
            text: NameText::EMPTY,
            sequence: 0,
            first: NONE,
            last: NONE,
            activator: NONE,
        }
    }
}

impl Default for NameEntry {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for NameEntry {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Linked for NameEntry {
    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl OwnerRecord {
    /// Room for one claim.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slot: Slot::new(),
            link: Link::new(),
            connection: ConnectionIndex(NONE),
            name: NONE,
            flags: NameFlags::empty(),
            ahead: NONE,
            behind: NONE,
            older: NONE,
            newer: NONE,
        }
    }

    pub(super) const fn owner(&self) -> Owner {
        Owner { connection: self.connection, flags: self.flags }
    }
}

impl Default for OwnerRecord {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for OwnerRecord {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Linked for OwnerRecord {
    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}
