//! Well-known names: who owns them, who waits for them, and which activator stands behind them.
//!
//! A name has an entry from its first owner to its last. The connection at the front of its queue is the
//! primary, the others wait; without a primary the name belongs to its activator, if it has one. Every
//! claim of a connection to a name is one record, and a connection has at most [`RECORDS_MAX`].
//!
//! All buses of a domain share one set of entries and records; each bus has a [`BusNames`] with the index
//! over its names. Changes are returned, not announced: see [`OwnerChange`].

use core::cmp::Ordering;

use crate::WellKnownName;
use crate::abi::NameFlags;

use crate::tree::Link;

pub use super::name_entry::{BusNames, ClaimedNames, NameArena, NameEntry, OwnerRecord};
pub use super::owner::{
    AcquireError, Acquired, Claim, ConnectionIndex, HandOver, NameId, NameText, Owner, OwnerChange,
    ReleaseError, Released, stored_flags,
};

use super::name_entry::NONE;

/// Records that one connection may have; waiting ones and those of activators count.
pub const RECORDS_MAX: u32 = 256;

/// The names of a domain to work with.
#[derive(Debug)]
pub struct NameTable<'a> {
    arena: &'a mut NameArena,
    names: &'a mut [NameEntry],
    records: &'a mut [OwnerRecord],
    claims: &'a mut [ClaimedNames],
}

impl<'a> NameTable<'a> {
    /// The names of `arena` over its entries, its records and the claims of every connection, which must
    /// be the same each time. The connection of index `n` has its claims at place `n`.
    pub const fn new(
        arena: &'a mut NameArena,
        names: &'a mut [NameEntry],
        records: &'a mut [OwnerRecord],
        claims: &'a mut [ClaimedNames],
    ) -> Self {
        Self { arena, names, records, claims }
    }

    /// Requests `name` for an ordinary connection, in `O(log n)` of all names and records.
    ///
    /// Of `request`, `REPLACE_EXISTING`, `ALLOW_REPLACEMENT` and `QUEUE` count.
    ///
    /// # Errors
    ///
    /// [`AcquireError`]; if the name is taken, [`stored_flags`] are still reported.
    pub fn acquire(
        &mut self,
        bus: &mut BusNames,
        connection: ConnectionIndex,
        name: WellKnownName<'_>,
        request: NameFlags,
    ) -> Result<Acquired, AcquireError> {
        let stored = stored_flags(request);
        let entry = self.index_of(bus, name.as_str().as_bytes());
        let own = entry.and_then(|entry| self.claim_of(connection, entry));
        self.check_claims(connection, own)?;
        let Some(entry) = entry else {
            let (name, record) = self.create(bus, connection, name)?;
            let owner = self.promote(name, record, stored);
            let change = self.change(name, None, owner);
            return Ok(Acquired { return_flags: stored | NameFlags::PRIMARY | NameFlags::ACQUIRED, change });
        };
        let primary = self.names.get(entry as usize).map_or(NONE, |entry| entry.first);
        let Some(holder) = self.records.get(primary as usize).map(OwnerRecord::owner) else {
            return self.take_from_activator(entry, connection, own, stored);
        };
        if holder.connection == connection {
            self.set_flags(primary, stored | NameFlags::PRIMARY);
            return Ok(Acquired { return_flags: stored | NameFlags::PRIMARY, change: None });
        }
        if holder.flags.contains(NameFlags::ALLOW_REPLACEMENT)
            && request.contains(NameFlags::REPLACE_EXISTING)
        {
            let record = match own {
                Some(record) => {
                    self.leave_queue(record);
                    record
                }
                None => self.add_record(entry, connection)?,
            };
            if holder.flags.contains(NameFlags::QUEUE) {
                // It waits again, ahead of everybody but the new owner.
                self.set_flags(primary, stored_flags(holder.flags) | NameFlags::IN_QUEUE);
            } else {
                self.leave_queue(primary);
                self.remove_record(primary);
            }
            let owner = self.promote(entry, record, stored);
            let change = self.change(entry, Some(holder), owner);
            return Ok(Acquired { return_flags: stored | NameFlags::PRIMARY | NameFlags::ACQUIRED, change });
        }
        match (request.contains(NameFlags::QUEUE), own) {
            (true, None) => {
                let record = self.add_record(entry, connection)?;
                self.set_flags(record, stored | NameFlags::IN_QUEUE);
                self.join_queue(entry, record);
                let return_flags = stored | NameFlags::IN_QUEUE | NameFlags::ACQUIRED;
                Ok(Acquired { return_flags, change: None })
            }
            (true, Some(record)) => {
                self.set_flags(record, stored | NameFlags::IN_QUEUE);
                Ok(Acquired { return_flags: stored | NameFlags::IN_QUEUE, change: None })
            }
            (false, Some(record)) => {
                self.leave_queue(record);
                self.remove_record(record);
                Ok(Acquired { return_flags: stored, change: None })
            }
            (false, None) => Err(AcquireError::Taken),
        }
    }

    /// Puts an activator behind `name`: it owns the name whenever no ordinary connection does.
    /// `O(log n)` of all names and records.
    ///
    /// # Errors
    ///
    /// [`AcquireError`]; `Taken` if the name has an activator.
    pub fn add_activator(
        &mut self,
        bus: &mut BusNames,
        connection: ConnectionIndex,
        name: WellKnownName<'_>,
    ) -> Result<Acquired, AcquireError> {
        let entry = self.index_of(bus, name.as_str().as_bytes());
        let own = entry.and_then(|entry| self.claim_of(connection, entry));
        self.check_claims(connection, own)?;
        let Some(index) = entry else {
            let (name, record) = self.create(bus, connection, name)?;
            let owner = self.seat_activator(name, record, NameFlags::PRIMARY);
            let change = self.change(name, None, owner);
            return Ok(Acquired { return_flags: NameFlags::ACTIVATOR | NameFlags::PRIMARY, change });
        };
        // Without an activator an entry has a primary, or it would not exist.
        if own.is_some() || self.names.get(index as usize).is_none_or(|entry| entry.activator != NONE) {
            return Err(AcquireError::Taken);
        }
        let record = self.add_record(index, connection)?;
        self.seat_activator(index, record, NameFlags::IN_QUEUE);
        Ok(Acquired { return_flags: NameFlags::ACTIVATOR | NameFlags::IN_QUEUE, change: None })
    }

    /// Gives up the claim of a connection to `name`, which need not be a valid one. `O(log n)` of all
    /// names and records.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`].
    pub fn release(
        &mut self,
        bus: &mut BusNames,
        connection: ConnectionIndex,
        name: &[u8],
    ) -> Result<Released, ReleaseError> {
        let entry = self.index_of(bus, name).ok_or(ReleaseError::Unknown)?;
        let record = self.claim_of(connection, entry).ok_or(ReleaseError::NotYours)?;
        Ok(self.release_record(bus, record))
    }

    /// Gives up the oldest claim of a connection, in `O(log n)` of all names and records; `None` once
    /// there is none left.
    ///
    /// A connection that goes calls for this until `None`, at most [`RECORDS_MAX`] times.
    pub fn release_next(&mut self, bus: &mut BusNames, connection: ConnectionIndex) -> Option<Released> {
        let record = self.claims.get(connection.0 as usize)?.first;
        self.records.get(record as usize)?;
        Some(self.release_record(bus, record))
    }

    /// The entry of `name`, which need not be a valid one. `O(log n)` of the names of the bus.
    #[must_use]
    pub fn find(&self, bus: &BusNames, name: &[u8]) -> Option<NameId> {
        let index = self.index_of(bus, name)?;
        self.arena.names.id_at(self.names, index).map(NameId)
    }

    /// Who owns the name: its primary, else its activator. `O(1)`.
    #[must_use]
    pub fn owner(&self, name: NameId) -> Option<Owner> {
        let entry = self.arena.names.get(self.names, name.0)?;
        let record = if entry.first == NONE { entry.activator } else { entry.first };
        self.records.get(record as usize).map(OwnerRecord::owner)
    }

    /// The activator of the name, whether or not it owns it. `O(1)`.
    #[must_use]
    pub fn activator(&self, name: NameId) -> Option<Owner> {
        let entry = self.arena.names.get(self.names, name.0)?;
        self.records.get(entry.activator as usize).map(OwnerRecord::owner)
    }

    /// The sequence number of the name; a name that comes back has a new one. `O(1)`.
    #[must_use]
    pub fn sequence(&self, name: NameId) -> Option<u64> {
        Some(self.arena.names.get(self.names, name.0)?.sequence)
    }

    /// The name as a string, in `O(1)`.
    #[must_use]
    pub fn text(&self, name: NameId) -> Option<&str> {
        Some(self.arena.names.get(self.names, name.0)?.text.as_str())
    }

    /// How a connection claims the name, in `O(log n)` of all records.
    #[must_use]
    pub fn claim(&self, connection: ConnectionIndex, name: NameId) -> Option<Owner> {
        self.arena.names.get(self.names, name.0)?;
        let record = self.claim_of(connection, name.0.index())?;
        self.records.get(record as usize).map(OwnerRecord::owner)
    }

    /// The claims of a connection in the order they were made, each in `O(1)`.
    ///
    /// The names that it *holds* are those with `PRIMARY`; for an activator that is not the owner and
    /// for a waiting connection, `IN_QUEUE` is set instead.
    pub fn claims(&self, connection: ConnectionIndex) -> impl Iterator<Item = Claim<'_>> {
        let claims = self.claims.get(connection.0 as usize);
        let mut next = claims.map_or(NONE, |claims| claims.first);
        let count = claims.map_or(0, ClaimedNames::len);
        let walk = core::iter::from_fn(move || {
            let record = self.records.get(next as usize)?;
            next = record.newer;
            let entry = self.names.get(record.name as usize)?;
            let id = NameId(self.arena.names.id_at(self.names, record.name)?);
            Some(Claim { name: entry.text.as_str(), id, flags: record.flags })
        });
        walk.take(count)
    }

    /// The names that a connection holds, in the order of its claims, each claim in `O(1)`.
    pub fn held(&self, connection: ConnectionIndex) -> impl Iterator<Item = Claim<'_>> {
        self.claims(connection).filter(|claim| claim.flags.contains(NameFlags::PRIMARY))
    }

    /// The connections with a place in the queue of a name, the primary first, each in `O(1)`.
    pub fn queue(&self, name: NameId) -> impl Iterator<Item = Owner> {
        let mut next = self.arena.names.get(self.names, name.0).map_or(NONE, |entry| entry.first);
        let walk = core::iter::from_fn(move || {
            let record = self.records.get(next as usize)?;
            next = record.behind;
            Some(record.owner())
        });
        walk.take(self.arena.records.len())
    }

    /// The names of a bus, each in `O(log n)` at worst and `O(1)` on average.
    pub fn names(&self, bus: &BusNames) -> impl Iterator<Item = NameId> {
        let mut next = bus.by_name.first();
        let walk = core::iter::from_fn(move || {
            let index = next?;
            next = bus.by_name.next(self.names, index);
            self.arena.names.id_at(self.names, index).map(NameId)
        });
        walk.take(bus.by_name.len())
    }

    /// How many names the domain has, in `O(1)`.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.arena.names.len()
    }

    /// Whether the domain has no names, in `O(1)`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.arena.names.is_empty()
    }

    fn index_of(&self, bus: &BusNames, name: &[u8]) -> Option<u32> {
        bus.by_name.find(self.names, |_, entry| compare(entry.text.as_bytes(), name))
    }

    fn claim_of(&self, connection: ConnectionIndex, name: u32) -> Option<u32> {
        self.arena
            .by_claim
            .find(self.records, |_, record| (record.connection, record.name).cmp(&(connection, name)))
    }

    /// The checks of a request that come before its effect.
    fn check_claims(&self, connection: ConnectionIndex, own: Option<u32>) -> Result<(), AcquireError> {
        let claims = self.claims.get(connection.0 as usize).ok_or(AcquireError::NoConnection)?;
        match own.and_then(|record| self.records.get(record as usize)) {
            None if claims.count >= RECORDS_MAX => Err(AcquireError::TooMany),
            Some(record) if record.flags.contains(NameFlags::ACTIVATOR) => Err(AcquireError::OwnActivator),
            _ => Ok(()),
        }
    }

    /// Makes an ordinary connection the owner of a name that only its activator claims.
    fn take_from_activator(
        &mut self,
        entry: u32,
        connection: ConnectionIndex,
        own: Option<u32>,
        stored: NameFlags,
    ) -> Result<Acquired, AcquireError> {
        let record = match own {
            Some(record) => record,
            None => self.add_record(entry, connection)?,
        };
        let activator = self.names.get(entry as usize).map_or(NONE, |entry| entry.activator);
        let old = self.records.get(activator as usize).map(OwnerRecord::owner);
        self.set_flags(activator, NameFlags::ACTIVATOR | NameFlags::IN_QUEUE);
        let owner = self.promote(entry, record, stored);
        let change = self.change(entry, old, owner);
        Ok(Acquired { return_flags: stored | NameFlags::PRIMARY | NameFlags::ACQUIRED, change })
    }

    /// Puts a record without a place in the queue at its front, as the primary.
    fn promote(&mut self, name: u32, record: u32, stored: NameFlags) -> Option<Owner> {
        let entry = self.names.get_mut(name as usize)?;
        let next = entry.first;
        entry.first = record;
        match self.records.get_mut(next as usize) {
            Some(next) => next.ahead = record,
            None => entry.last = record,
        }
        let new = self.records.get_mut(record as usize)?;
        (new.ahead, new.behind) = (NONE, next);
        new.flags = stored | NameFlags::PRIMARY;
        Some(new.owner())
    }

    fn seat_activator(&mut self, name: u32, record: u32, state: NameFlags) -> Option<Owner> {
        self.names.get_mut(name as usize)?.activator = record;
        self.set_flags(record, NameFlags::ACTIVATOR | state);
        self.records.get(record as usize).map(OwnerRecord::owner)
    }

    fn set_flags(&mut self, record: u32, flags: NameFlags) {
        if let Some(record) = self.records.get_mut(record as usize) {
            record.flags = flags;
        }
    }

    fn change(&self, name: u32, old: Option<Owner>, new: Option<Owner>) -> Option<OwnerChange> {
        let entry = self.names.get(name as usize)?;
        Some(OwnerChange { name: entry.text, sequence: entry.sequence, old, new })
    }

    /// Puts a record at the end of the queue.
    fn join_queue(&mut self, name: u32, record: u32) {
        let Some(entry) = self.names.get_mut(name as usize) else {
            return;
        };
        let last = entry.last;
        entry.last = record;
        match self.records.get_mut(last as usize) {
            Some(last) => last.behind = record,
            None => entry.first = record,
        }
        if let Some(new) = self.records.get_mut(record as usize) {
            (new.ahead, new.behind) = (last, NONE);
        }
    }

    /// Takes a record out of the queue of its name.
    fn leave_queue(&mut self, record: u32) {
        let Some(left) = self.records.get_mut(record as usize) else {
            return;
        };
        let (name, ahead, behind) = (left.name, left.ahead, left.behind);
        (left.ahead, left.behind) = (NONE, NONE);
        match self.records.get_mut(ahead as usize) {
            Some(ahead) => ahead.behind = behind,
            None => {
                if let Some(entry) = self.names.get_mut(name as usize) {
                    entry.first = behind;
                }
            }
        }
        match self.records.get_mut(behind as usize) {
            Some(behind) => behind.ahead = ahead,
            None => {
                if let Some(entry) = self.names.get_mut(name as usize) {
                    entry.last = ahead;
                }
            }
        }
    }

    /// Gives up one claim.
    fn release_record(&mut self, bus: &mut BusNames, record: u32) -> Released {
        Released { change: self.drop_claim(bus, record) }
    }

    fn drop_claim(&mut self, bus: &mut BusNames, record: u32) -> Option<OwnerChange> {
        let released = self.records.get(record as usize)?;
        let (old, name, successor) = (released.owner(), released.name, released.behind);
        let entry = self.names.get_mut(name as usize)?;
        if entry.activator == record {
            entry.activator = NONE;
        } else {
            self.leave_queue(record);
        }
        self.remove_record(record);
        let entry = self.names.get(name as usize)?;
        let (first, activator) = (entry.first, entry.activator);
        if first == NONE && activator == NONE {
            let change = self.change(name, Some(old), None);
            self.destroy(bus, name);
            return change;
        }
        if !old.flags.contains(NameFlags::PRIMARY) {
            return None;
        }
        // The next in the queue becomes primary, else the activator.
        let heir = if successor == NONE { activator } else { successor };
        let new = self.records.get_mut(heir as usize)?;
        new.flags = (new.flags - NameFlags::IN_QUEUE) | NameFlags::PRIMARY;
        let new = new.owner();
        self.change(name, Some(old), Some(new))
    }

    /// Makes an entry for a new name and the first record of it.
    fn create(
        &mut self,
        bus: &mut BusNames,
        connection: ConnectionIndex,
        name: WellKnownName<'_>,
    ) -> Result<(u32, u32), AcquireError> {
        let id = self.arena.names.allocate(self.names).ok_or(AcquireError::Full)?;
        let index = id.index();
        let record = match self.add_record(index, connection) {
            Ok(record) => record,
            Err(error) => {
                self.arena.names.free(self.names, id);
                return Err(error);
            }
        };
        // 0 stands for calls and messages that are addressed by id.
        bus.sequence = bus.sequence.wrapping_add(1).max(1);
        if let Some(entry) = self.names.get_mut(index as usize) {
            entry.link = Link::new();
            entry.text = NameText::new(name);
            entry.sequence = bus.sequence;
            (entry.first, entry.last, entry.activator) = (NONE, NONE, NONE);
        }
        let bytes = name.as_str().as_bytes();
        let inserted =
            bus.by_name.insert(self.names, index, |_, other| compare(bytes, other.text.as_bytes()));
        if inserted.is_err() {
            self.remove_record(record);
            self.arena.names.free(self.names, id);
            return Err(AcquireError::Full);
        }
        Ok((index, record))
    }

    fn destroy(&mut self, bus: &mut BusNames, name: u32) {
        // An entry of another bus is not in this index; it stays where it can be found.
        if bus.by_name.remove(self.names, name).is_ok()
            && let Some(id) = self.arena.names.id_at(self.names, name)
        {
            self.arena.names.free(self.names, id);
        }
    }

    /// Makes a record without a place in the queue, the newest one of its connection.
    fn add_record(&mut self, name: u32, connection: ConnectionIndex) -> Result<u32, AcquireError> {
        let claims = self.claims.get_mut(connection.0 as usize).ok_or(AcquireError::NoConnection)?;
        let id = self.arena.records.allocate(self.records).ok_or(AcquireError::Full)?;
        let index = id.index();
        let older = claims.last;
        if let Some(record) = self.records.get_mut(index as usize) {
            record.link = Link::new();
            (record.connection, record.name, record.flags) = (connection, name, NameFlags::empty());
            (record.ahead, record.behind) = (NONE, NONE);
            (record.older, record.newer) = (older, NONE);
        }
        let inserted = self
            .arena
            .by_claim
            .insert(self.records, index, |_, other| (connection, name).cmp(&(other.connection, other.name)));
        if inserted.is_err() {
            self.arena.records.free(self.records, id);
            return Err(AcquireError::Full);
        }
        claims.last = index;
        claims.count += 1;
        match self.records.get_mut(older as usize) {
            Some(older) => older.newer = index,
            None => claims.first = index,
        }
        Ok(index)
    }

    /// Removes a record that has no place in the queue any more.
    fn remove_record(&mut self, index: u32) {
        let Some(record) = self.records.get(index as usize) else {
            return;
        };
        let (connection, older, newer) = (record.connection, record.older, record.newer);
        let Some(claims) = self.claims.get_mut(connection.0 as usize) else {
            return;
        };
        match self.records.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => claims.first = newer,
        }
        match self.records.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => claims.last = older,
        }
        claims.count = claims.count.saturating_sub(1);
        if self.arena.by_claim.remove(self.records, index).is_ok()
            && let Some(id) = self.arena.records.id_at(self.records, index)
        {
            self.arena.records.free(self.records, id);
        }
    }
}

/// Any total order serves; lengths tell most names apart without a look at them.
fn compare(a: &[u8], b: &[u8]) -> Ordering {
    a.len().cmp(&b.len()).then_with(|| a.cmp(b))
}

#[cfg(test)]
#[path = "names_tests.rs"]
mod tests;
