//! Policy: who may see, talk to and own which names.
//!
//! One table holds the entries of all buses and all custom endpoints, ordered by database and name.

use crate::abi::{Errno, Item, ItemType, PolicyAccess};
use crate::tree::{Link, Linked, Root};
use crate::{PolicyName, WELL_KNOWN_NAME_MAX};

use super::Credentials;
use super::table::{AccessIx, Blank, BusIx, EndpointIx, Place, PolicyIx, Record, Table};

/// What a record grants; each level includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    See,
    Talk,
    Own,
}

impl Level {
    const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            0 => Some(Self::See),
            1 => Some(Self::Talk),
            2 => Some(Self::Own),
            _ => None,
        }
    }
}

/// A set of entries that is asked together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Database {
    /// Entries that are not valid yet.
    Staging,
    Bus(BusIx),
    Endpoint(EndpointIx),
}

/// Who sets entries, and may replace them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Keeper {
    /// A connection, an activator or a policy holder. It has one entry.
    Connection,
    /// The bus itself. It has any number, beside those of connections.
    Bus,
    /// A custom endpoint. It has any number, and nobody else has any in its database.
    Endpoint,
}

/// Whom a record covers.
#[derive(Clone, Copy, Debug)]
enum Covers {
    User(u32),
    Group(u32),
    World,
}

/// One name in a policy.
#[derive(Debug)]
pub(super) struct PolicyEntry {
    link: Link,
    database: Database,
    keeper: Keeper,
    stem: heapless::String<WELL_KNOWN_NAME_MAX>,
    wildcard: bool,
    records: Option<AccessIx>,
    /// The next entry of the same owner.
    next_own: Option<PolicyIx>,
}

/// One access record of a name.
#[derive(Clone, Copy, Debug)]
pub(super) struct PolicyRecord {
    covers: Covers,
    grants: Level,
    next: Option<AccessIx>,
}

impl Blank for PolicyRecord {
    const BLANK: Self = Self { covers: Covers::World, grants: Level::See, next: None };
}

impl Blank for PolicyEntry {
    const BLANK: Self = Self {
        link: Link::new(),
        database: Database::Staging,
        keeper: Keeper::Connection,
        stem: heapless::String::new(),
        wildcard: false,
        records: None,
        next_own: None,
    };
}

impl Linked for PolicyEntry {
    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}

/// The entries of one owner: a connection, a bus or an endpoint.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnPolicy {
    first: Option<PolicyIx>,
}

impl OwnPolicy {
    /// No entries.
    pub(super) const NONE: Self = Self { first: None };
}

/// The policies of a domain.
#[derive(Debug)]
pub(super) struct Policy<'s> {
    root: Root,
    entries: Table<'s, PolicyIx, PolicyEntry>,
    records: Table<'s, AccessIx, PolicyRecord>,
}

impl<'s> Policy<'s> {
    pub(super) fn new(
        entries: &'s mut [Record<PolicyEntry>],
        records: &'s mut [Record<PolicyRecord>],
    ) -> Self {
        Self { root: Root::new(), entries: Table::new(entries), records: Table::new(records) }
    }

    /// Checks a sequence of NAME and POLICY_ACCESS items; others are passed over. One pass.
    ///
    /// # Errors
    ///
    /// `E2BIG` beyond `names_max` names; `EINVAL` for malformed names and records, for a record before the
    /// first name, for a wildcard where none is allowed, and for users and groups of a caller whose numbers are
    /// `foreign`.
    pub(super) fn check<'m>(
        items: impl Iterator<Item = Item<'m>>,
        names_max: usize,
        wildcards: bool,
        foreign: bool,
    ) -> Result<(), Errno> {
        let mut names = 0;
        for item in items {
            match item.kind {
                ItemType::NAME => {
                    names += 1;
                    if names > names_max {
                        return Err(Errno::E2BIG);
                    }
                    let name = parse(&item)?;
                    if name.wildcard && !wildcards {
                        return Err(Errno::EINVAL);
                    }
                }
                ItemType::POLICY_ACCESS => {
                    if names == 0 {
                        return Err(Errno::EINVAL);
                    }
                    let (covers, _) = record(&item)?;
                    if foreign && !matches!(covers, Covers::World) {
                        return Err(Errno::EINVAL);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Puts checked items in the place of everything that `own` had in `database`.
    ///
    /// All or nothing: old and new entries are held at the same time. Cost: `O(items · log entries)`.
    ///
    /// # Errors
    ///
    /// `EEXIST` if a name is taken by another owner or comes twice, `ENOMEM` if a table is full; the old
    /// entries stay.
    pub(super) fn replace<'m>(
        &mut self,
        own: &mut OwnPolicy,
        keeper: Keeper,
        database: Database,
        items: impl Iterator<Item = Item<'m>>,
    ) -> Result<(), Errno> {
        let mut staged = OwnPolicy::NONE;
        let ready = self.stage(&mut staged, keeper, items);
        if let Err(error) = ready.and_then(|()| self.clash(staged, own, database)) {
            self.clear(&mut staged);
            return Err(error);
        }
        self.clear(own);
        let mut at = staged.first;
        while let Some(place) = at {
            at = self.entries[place].next_own;
            self.unlink(place);
            self.entries[place].database = database;
            self.insert(place);
        }
        *own = staged;
        Ok(())
    }

    /// Removes all entries of an owner, in `O(entries · log all)`.
    pub(super) fn clear(&mut self, own: &mut OwnPolicy) {
        while self.remove_one(own) {}
    }

    /// The highest level that `name` grants in `database`, in `O(log entries + records of the name)`.
    ///
    /// An exact entry hides the wildcard entry of its stem, even if it grants nothing.
    pub(super) fn level(&self, database: Database, who: &Credentials, name: &str) -> Option<Level> {
        let stem = name.rsplit_once('.').map_or("", |(stem, _)| stem);
        let entry = self.find(database, name, false).or_else(|| self.find(database, stem, true))?;
        let mut best = None;
        let mut at = self.entries[entry].records;
        while let Some(place) = at {
            let PolicyRecord { covers, grants, next } = self.records[place];
            let covered = match covers {
                Covers::User(uid) => who.euid == uid,
                Covers::Group(gid) => who.egid == gid || who.groups.contains(&gid),
                Covers::World => true,
            };
            if covered {
                best = best.max(Some(grants));
            }
            at = next;
        }
        best
    }

    /// Whether a connection has an entry for this name in `database`, in `O(log entries)`.
    pub(super) fn is_of_connection(&self, database: Database, name: PolicyName<'_>) -> bool {
        let entry = self.find(database, name.stem, name.wildcard);
        entry.is_some_and(|entry| self.entries[entry].keeper == Keeper::Connection)
    }

    /// Names in all policies.
    pub(super) const fn len(&self) -> usize {
        self.entries.len()
    }

    /// Removes one entry of an owner; false if there is none.
    fn remove_one(&mut self, own: &mut OwnPolicy) -> bool {
        let Some(place) = own.first else {
            return false;
        };
        self.unlink(place);
        let Some(entry) = self.entries.remove(place) else {
            own.first = None;
            return false;
        };
        own.first = entry.next_own;
        let mut at = entry.records;
        while let Some(place) = at {
            at = self.records.remove(place).and_then(|record| record.next);
        }
        true
    }

    fn stage<'m>(
        &mut self,
        staged: &mut OwnPolicy,
        keeper: Keeper,
        items: impl Iterator<Item = Item<'m>>,
    ) -> Result<(), Errno> {
        for item in items {
            match item.kind {
                ItemType::NAME => {
                    let name = parse(&item)?;
                    if self.find(Database::Staging, name.stem, name.wildcard).is_some() {
                        return Err(Errno::EEXIST);
                    }
                    let stem = heapless::String::try_from(name.stem).map_err(|_| Errno::EINVAL)?;
                    let entry = PolicyEntry {
                        stem,
                        keeper,
                        wildcard: name.wildcard,
                        next_own: staged.first,
                        ..PolicyEntry::BLANK
                    };
                    let place = self.entries.insert(entry).ok_or(Errno::ENOMEM)?;
                    staged.first = Some(place);
                    self.insert(place);
                }
                ItemType::POLICY_ACCESS => {
                    let place = staged.first.ok_or(Errno::EINVAL)?;
                    let (covers, grants) = record(&item)?;
                    let next = self.entries[place].records;
                    let record = PolicyRecord { covers, grants, next };
                    let record = self.records.insert(record).ok_or(Errno::ENOMEM)?;
                    self.entries[place].records = Some(record);
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Fails if another owner has one of the staged names in `database`.
    fn clash(&self, staged: OwnPolicy, own: &OwnPolicy, database: Database) -> Result<(), Errno> {
        let mut at = staged.first;
        while let Some(place) = at {
            let entry = &self.entries[place];
            let other = self.find(database, &entry.stem, entry.wildcard);
            if other.is_some_and(|other| !self.owns(own, entry.keeper, other)) {
                return Err(Errno::EEXIST);
            }
            at = entry.next_own;
        }
        Ok(())
    }

    /// Whether an entry of a database that `keeper` may set is one of its own.
    fn owns(&self, own: &OwnPolicy, keeper: Keeper, entry: PolicyIx) -> bool {
        match keeper {
            Keeper::Connection => own.first == Some(entry),
            Keeper::Bus | Keeper::Endpoint => self.entries[entry].keeper == keeper,
        }
    }

    fn find(&self, database: Database, stem: &str, wildcard: bool) -> Option<PolicyIx> {
        let wanted = (database, wildcard, stem);
        self.root.find(self.entries.records, |_, record| key(&record.item).cmp(&wanted)).map(PolicyIx::new)
    }

    fn insert(&mut self, place: PolicyIx) {
        let entry = &self.entries[place];
        let (database, wildcard, stem) = (entry.database, entry.wildcard, entry.stem.clone());
        let new = (database, wildcard, stem.as_str());
        let inserted =
            self.root.insert(self.entries.records, place.index(), |_, other| new.cmp(&key(&other.item)));
        debug_assert!(inserted.is_ok(), "a new entry is in no index");
    }

    fn unlink(&mut self, place: PolicyIx) {
        let removed = self.root.remove(self.entries.records, place.index());
        debug_assert!(removed.is_ok(), "every entry is in the index");
    }
}

fn key(entry: &PolicyEntry) -> (Database, bool, &str) {
    (entry.database, entry.wildcard, &entry.stem)
}

fn parse<'m>(item: &Item<'m>) -> Result<PolicyName<'m>, Errno> {
    let name = item.c_str().ok_or(Errno::EINVAL)?;
    PolicyName::from_bytes(name).map_err(|error| error.errno())
}

fn record(item: &Item<'_>) -> Result<(Covers, Level), Errno> {
    let access: PolicyAccess = item.record().ok_or(Errno::EINVAL)?;
    let grants = Level::from_raw(access.access).ok_or(Errno::EINVAL)?;
    // kdbus: the id has to be one that a user or group can have.
    let id = u32::try_from(access.id).ok().filter(|id| *id != u32::MAX).ok_or(Errno::EINVAL);
    let covers = match access.kind {
        1 => Covers::User(id?),
        2 => Covers::Group(id?),
        3 => Covers::World,
        _ => return Err(Errno::EINVAL),
    };
    Ok((covers, grants))
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
