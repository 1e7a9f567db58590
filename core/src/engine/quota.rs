//! How much of a receiver one sending user may occupy.
//!
//! Each receiver keeps, for every user with messages in its queue, what these take. Half of the pool is
//! never available to incoming messages, and a user gets a third of what the others left of the other
//! half; so one user can not starve the next. The bus itself is a user with a record of its own.

use core::fmt;

use crate::abi::Errno;
use crate::slots::{FreeList, Slot, Slotted};
use crate::tree::{Link, Linked, Root};

/// Messages that one user may have queued at one receiver.
pub const MESSAGES_MAX: u32 = 256;

/// Descriptors that one user may have queued at one receiver; memfds do not count.
pub const FDS_MAX: u32 = 16;

/// Bytes that one user may have queued at one receiver, however large its pool is.
pub const SIZE_MAX: u64 = u32::MAX as u64;

/// An accounting user of a domain, as the domain numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct UserIndex(pub u32);

impl UserIndex {
    /// The bus itself, as the sender of notifications.
    pub const KERNEL: Self = Self(0);
}

/// What messages take of a receiver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Charge {
    /// Bytes of their slices.
    pub size: u64,
    /// How many there are.
    pub messages: u32,
    /// Descriptors that they carry, memfds not counted.
    pub fds: u32,
}

/// The state of the receiver's pool that a charge is measured against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PoolUse {
    /// Bytes of the whole pool.
    pub size: u64,
    /// Bytes of all accounted slices, see [`Pool::accounted_size`](super::pool::Pool::accounted_size).
    pub accounted_size: u64,
}

/// The fixed part of a receiver's quota. It belongs to one slice of records.
#[derive(Debug)]
pub struct QuotaHead {
    kernel: Charge,
    slots: FreeList,
    by_user: Root,
    /// The record of the user that was charged last, the only one that may hold nothing: mostly the same user comes
    /// again, and finds it without a search.
    recent: u32,
}

/// No record.
const NONE: u32 = u32::MAX;

/// What one user occupies, or room to say so.
#[derive(Debug)]
pub struct UserRecord {
    slot: Slot,
    link: Link,
    user: UserIndex,
    charge: Charge,
}

/// The quota of one receiver to work with.
///
/// Costs are in terms of `n`, the number of records: users that can have messages queued at a time.
#[derive(Debug)]
pub struct Quota<'a> {
    head: &'a mut QuotaHead,
    records: &'a mut [UserRecord],
}

/// Why a message was not charged; nothing has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum QuotaError {
    /// The user would occupy more than its share of the pool.
    Size,
    /// The user has [`MESSAGES_MAX`] messages queued.
    Messages,
    /// The user would have more than [`FDS_MAX`] descriptors queued.
    Fds,
    /// Too many other users have messages queued.
    Users,
}

impl QuotaError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Size | Self::Messages | Self::Users => Errno::ENOBUFS,
            Self::Fds => Errno::EMFILE,
        }
    }
}

impl fmt::Display for QuotaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Size => "user's share of the pool is used up",
            Self::Messages => "user has too many messages queued",
            Self::Fds => "user has too many descriptors queued",
            Self::Users => "too many users have messages queued",
        })
    }
}

impl core::error::Error for QuotaError {}

impl Charge {
    /// The charge of one message.
    #[must_use]
    pub const fn message(size: u64, fds: u32) -> Self {
        Self { size, messages: 1, fds }
    }

    const fn is_empty(self) -> bool {
        self.size == 0 && self.messages == 0 && self.fds == 0
    }

    /// What this and `more` take together, if one user may.
    fn with(self, more: Self, pool: PoolUse) -> Result<Self, QuotaError> {
        if self.room(pool).is_none_or(|room| room < more.size) {
            return Err(QuotaError::Size);
        }
        let size = self.size.checked_add(more.size).ok_or(QuotaError::Size)?;
        if size > SIZE_MAX {
            return Err(QuotaError::Size);
        }
        let messages = self.messages.checked_add(more.messages).ok_or(QuotaError::Messages)?;
        if messages > MESSAGES_MAX {
            return Err(QuotaError::Messages);
        }
        let fds = self.fds.checked_add(more.fds).ok_or(QuotaError::Fds)?;
        if fds > FDS_MAX {
            return Err(QuotaError::Fds);
        }
        Ok(Self { size, messages, fds })
    }

    /// Bytes that fit beside this; `None` if there is less than nothing.
    fn room(self, pool: PoolUse) -> Option<u64> {
        // Own bytes count as free for oneself, but only for the third that one may have.
        let unclaimed = (pool.size / 2).checked_sub(pool.accounted_size)?;
        let share = unclaimed.saturating_add(self.size) / 3;
        share.checked_sub(self.size)
    }

    const fn without(self, less: Self) -> Self {
        Self {
            size: self.size.saturating_sub(less.size),
            messages: self.messages.saturating_sub(less.messages),
            fds: self.fds.saturating_sub(less.fds),
        }
    }
}

impl QuotaHead {
    /// A receiver without messages, whatever its records were used for before.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            kernel: Charge { size: 0, messages: 0, fds: 0 },
            slots: FreeList::new(),
            by_user: Root::new(),
            recent: NONE,
        }
    }
}

impl Default for QuotaHead {
    fn default() -> Self {
        Self::new()
    }
}

impl UserRecord {
    /// Room for what one user occupies.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slot: Slot::new(),
            link: Link::new(),
            user: UserIndex::KERNEL,
            charge: Charge { size: 0, messages: 0, fds: 0 },
        }
    }
}

impl Default for UserRecord {
    fn default() -> Self {
        Self::new()
    }
}

impl Slotted for UserRecord {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl Linked for UserRecord {
    fn link(&self) -> &Link {
        &self.link
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.link
    }
}

impl<'a> Quota<'a> {
    /// The quota of `head` over `records`, which must be those it was used with so far.
    pub const fn new(head: &'a mut QuotaHead, records: &'a mut [UserRecord]) -> Self {
        Self { head, records }
    }

    /// Charges `user` for what is about to be queued, in `O(log n)`.
    ///
    /// `pool` is the state before the slice is allocated. If that fails then, the caller
    /// [releases](Self::release) the charge.
    ///
    /// # Errors
    ///
    /// [`QuotaError`], the first of its cases that applies.
    pub fn charge(&mut self, user: UserIndex, charge: Charge, pool: PoolUse) -> Result<(), QuotaError> {
        if user == UserIndex::KERNEL {
            self.head.kernel = self.head.kernel.with(charge, pool)?;
            return Ok(());
        }
        if let Some(index) = self.index_of(user) {
            if let Some(record) = self.records.get_mut(index as usize) {
                record.charge = record.charge.with(charge, pool)?;
            }
            self.remember(index);
            return Ok(());
        }
        let total = Charge::default().with(charge, pool)?;
        if total.is_empty() {
            return Ok(());
        }
        // Who has nothing here takes nobody's place.
        self.remember(NONE);
        let id = self.head.slots.allocate(self.records).ok_or(QuotaError::Users)?;
        if let Some(record) = self.head.slots.get_mut(self.records, id) {
            record.link = Link::new();
            (record.user, record.charge) = (user, total);
        }
        let inserted = self.head.by_user.insert(self.records, id.index(), |_, other| user.cmp(&other.user));
        if inserted.is_err() {
            self.head.slots.free(self.records, id);
            return Err(QuotaError::Users);
        }
        self.head.recent = id.index();
        Ok(())
    }

    /// Whether [`charge`](Self::charge) would let `user` have this, in `O(log n)`.
    ///
    /// # Errors
    ///
    /// What that would report.
    pub fn check(&self, user: UserIndex, charge: Charge, pool: PoolUse) -> Result<(), QuotaError> {
        let index = if user == UserIndex::KERNEL { None } else { self.index_of(user) };
        let held = match index.and_then(|index| self.records.get(index as usize)) {
            Some(record) => record.charge,
            None if user == UserIndex::KERNEL => self.head.kernel,
            None => Charge::default(),
        };
        let total = held.with(charge, pool)?;
        let needs_record = user != UserIndex::KERNEL && index.is_none() && !total.is_empty();
        if needs_record && self.len() >= self.capacity() { Err(QuotaError::Users) } else { Ok(()) }
    }

    /// Takes a charge back, in `O(log n)`: the messages were received, dropped, moved, or never queued.
    ///
    /// Never takes more than the user was charged.
    pub fn release(&mut self, user: UserIndex, charge: Charge) {
        if user == UserIndex::KERNEL {
            self.head.kernel = self.head.kernel.without(charge);
            return;
        }
        let Some(index) = self.index_of(user) else {
            return;
        };
        let Some(record) = self.records.get_mut(index as usize) else {
            return;
        };
        record.charge = record.charge.without(charge);
        if index != self.head.recent {
            self.forget_empty(index);
        }
    }

    /// What `user` occupies now, in `O(log n)`.
    #[must_use]
    pub fn held_by(&self, user: UserIndex) -> Charge {
        if user == UserIndex::KERNEL {
            return self.head.kernel;
        }
        let record = self.index_of(user).and_then(|index| self.records.get(index as usize));
        record.map_or(Charge::default(), |record| record.charge)
    }

    /// Bytes that `user` may still queue, messages and descriptors aside, in `O(log n)`.
    #[must_use]
    pub fn room_for(&self, user: UserIndex, pool: PoolUse) -> u64 {
        let held = self.held_by(user);
        held.room(pool).map_or(0, |room| room.min(SIZE_MAX.saturating_sub(held.size)))
    }

    /// Every user with something queued and what that is, the bus first if it has; each in `O(1)` on
    /// average.
    pub fn holders(&self) -> impl Iterator<Item = (UserIndex, Charge)> {
        let kernel = Some((UserIndex::KERNEL, self.head.kernel)).filter(|(_, charge)| !charge.is_empty());
        let mut next = self.head.by_user.first();
        let users = core::iter::from_fn(move || {
            let index = next?;
            next = self.head.by_user.next(self.records, index);
            self.records.get(index as usize).map(|record| (record.user, record.charge))
        });
        let users = users.take(self.head.by_user.len()).filter(|(_, charge)| !charge.is_empty());
        kernel.into_iter().chain(users)
    }

    /// Users with something queued, the bus not counted, in `O(1)`.
    #[must_use]
    pub fn len(&self) -> usize {
        let recent = self.records.get(self.head.recent as usize);
        let idle = recent.is_some_and(|record| record.charge.is_empty());
        self.head.slots.len() - usize::from(idle)
    }

    /// Users that can have something queued at a time, the bus not counted.
    #[must_use]
    pub const fn capacity(&self) -> usize {
        self.records.len()
    }

    /// Whether nobody has anything queued, in `O(1)`.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.head.kernel.is_empty()
    }

    fn index_of(&self, user: UserIndex) -> Option<u32> {
        let recent = self.head.recent;
        if self.records.get(recent as usize).is_some_and(|record| record.user == user) {
            return Some(recent);
        }
        self.head.by_user.find(self.records, |_, record| record.user.cmp(&user))
    }

    /// Notes who was charged last. The one before is forgotten if it has nothing any more.
    fn remember(&mut self, index: u32) {
        if index != self.head.recent {
            let former = core::mem::replace(&mut self.head.recent, index);
            self.forget_empty(former);
        }
    }

    /// Takes a record back that holds nothing; it serves the next user.
    fn forget_empty(&mut self, index: u32) {
        if self.records.get(index as usize).is_some_and(|record| record.charge.is_empty())
            && self.head.by_user.remove(self.records, index).is_ok()
            && let Some(id) = self.head.slots.id_at(self.records, index)
        {
            self.head.slots.free(self.records, id);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    const MIB_16: u64 = 16 << 20;

    struct Fixture {
        head: QuotaHead,
        records: Vec<UserRecord>,
        pool: PoolUse,
    }

    impl Fixture {
        fn new(pool: u64, users: usize) -> Self {
            Self {
                head: QuotaHead::new(),
                records: (0..users).map(|_| UserRecord::new()).collect(),
                pool: PoolUse { size: pool, accounted_size: 0 },
            }
        }

        fn quota(&mut self) -> Quota<'_> {
            Quota::new(&mut self.head, &mut self.records)
        }

        /// Charges a message and allocates its slice.
        fn send(&mut self, user: u32, size: u64, fds: u32) -> Result<(), QuotaError> {
            let pool = self.pool;
            let foretold = self.quota().check(UserIndex(user), Charge::message(size, fds), pool);
            let charged = self.quota().charge(UserIndex(user), Charge::message(size, fds), pool);
            assert_eq!(charged, foretold);
            charged?;
            self.pool.accounted_size += size;
            Ok(())
        }

        fn receive(&mut self, user: u32, size: u64, fds: u32) {
            self.quota().release(UserIndex(user), Charge::message(size, fds));
            self.pool.accounted_size -= size;
        }
    }

    #[test]
    fn a_lone_user_gets_a_third_of_half_the_pool() {
        let mut fixture = Fixture::new(MIB_16, 4);
        assert_eq!(fixture.send(1, 2_796_208, 0), Err(QuotaError::Size));
        assert_eq!(fixture.send(1, 2_796_200, 0), Ok(()));
        assert_eq!(fixture.send(1, 8, 0), Err(QuotaError::Size));
        // The largest first slice in pools of 4 KiB and 1 MiB, and one granule more.
        for (pool, fits) in [(4096, 680), (1 << 20, 174_760)] {
            assert_eq!(Fixture::new(pool, 1).send(1, fits, 0), Ok(()));
            assert_eq!(Fixture::new(pool, 1).send(1, fits + 8, 0), Err(QuotaError::Size));
        }
    }

    #[test]
    fn own_bytes_count_as_free_for_oneself_only() {
        let mut fixture = Fixture::new(MIB_16, 4);
        fixture.send(1, 2_097_248, 0).unwrap();
        let pool = fixture.pool;
        assert_eq!(fixture.quota().room_for(UserIndex(1), pool), 698_954);
        assert_eq!(fixture.quota().room_for(UserIndex(2), pool), 2_097_120);
        assert_eq!(fixture.send(2, 2_097_128, 0), Err(QuotaError::Size));
        assert_eq!(fixture.send(2, 2_097_120, 0), Ok(()));
    }

    #[test]
    fn more_than_half_a_pool_in_use_leaves_nothing() {
        let mut fixture = Fixture::new(4096, 4);
        fixture.pool.accounted_size = 2048;
        assert_eq!(fixture.send(1, 8, 0), Err(QuotaError::Size));
        fixture.pool.accounted_size = 2056;
        assert_eq!(fixture.send(1, 0, 0), Err(QuotaError::Size));
        let pool = fixture.pool;
        assert_eq!(fixture.quota().room_for(UserIndex(1), pool), 0);
    }

    #[test]
    fn others_can_leave_a_user_less_than_it_holds() {
        let mut fixture = Fixture::new(MIB_16, 4);
        fixture.send(1, 2_796_200, 0).unwrap();
        for user in 2..5 {
            fixture.send(user, 1_000_000, 0).unwrap();
        }
        let pool = fixture.pool;
        assert_eq!(fixture.quota().room_for(UserIndex(1), pool), 0);
        assert_eq!(fixture.send(1, 0, 0), Err(QuotaError::Size));
    }

    #[test]
    fn messages_of_a_user_are_counted_at_each_receiver() {
        let mut fixture = Fixture::new(MIB_16, 4);
        for _ in 0..MESSAGES_MAX {
            fixture.send(1, 64, 0).unwrap();
        }
        assert_eq!(fixture.send(1, 64, 0), Err(QuotaError::Messages));
        assert_eq!(fixture.send(2, 64, 0), Ok(()));
        assert_eq!(fixture.send(0, 64, 0), Ok(()));
        fixture.receive(1, 64, 0);
        assert_eq!(fixture.send(1, 64, 0), Ok(()));
    }

    #[test]
    fn descriptors_of_a_user_are_counted() {
        let mut fixture = Fixture::new(MIB_16, 4);
        fixture.send(1, 64, 10).unwrap();
        assert_eq!(fixture.send(1, 64, 7), Err(QuotaError::Fds));
        assert_eq!(fixture.send(1, 64, 6), Ok(()));
        assert_eq!(fixture.send(1, 64, 1), Err(QuotaError::Fds));
        assert_eq!(fixture.send(1, 64, 0), Ok(()));
        assert_eq!(QuotaError::Fds.errno(), Errno::EMFILE);
    }

    #[test]
    fn the_bus_has_a_record_of_its_own() {
        let mut fixture = Fixture::new(MIB_16, 1);
        fixture.send(1, 64, 0).unwrap();
        for _ in 0..MESSAGES_MAX {
            fixture.send(0, 136, 0).unwrap();
        }
        assert_eq!(fixture.send(0, 136, 0), Err(QuotaError::Messages));
        let held = fixture.quota().held_by(UserIndex::KERNEL);
        assert_eq!(held, Charge { size: 136 * 256, messages: 256, fds: 0 });
        fixture.receive(0, 136, 0);
        assert_eq!(fixture.send(0, 136, 0), Ok(()));
    }

    #[test]
    fn a_record_serves_another_user_once_all_is_released() {
        let mut fixture = Fixture::new(MIB_16, 2);
        fixture.send(1, 64, 0).unwrap();
        fixture.send(7, 72, 2).unwrap();
        assert_eq!(fixture.send(3, 64, 0), Err(QuotaError::Users));
        assert_eq!(fixture.quota().held_by(UserIndex(3)), Charge::default());
        fixture.receive(1, 64, 0);
        fixture.send(3, 80, 0).unwrap();
        let holders: Vec<_> = fixture.quota().holders().collect();
        assert_eq!(holders, [(UserIndex(3), Charge::message(80, 0)), (UserIndex(7), Charge::message(72, 2))]);
        fixture.receive(3, 80, 0);
        fixture.receive(7, 72, 2);
        assert!(fixture.quota().is_empty());
    }

    #[test]
    fn who_has_nothing_any_more_takes_no_place() {
        let mut fixture = Fixture::new(MIB_16, 2);
        fixture.send(1, 64, 0).unwrap();
        fixture.receive(1, 64, 0);
        assert_eq!((fixture.quota().len(), fixture.quota().holders().count()), (0, 0));
        fixture.send(2, 64, 0).unwrap();
        fixture.send(3, 64, 0).unwrap();
        assert_eq!(fixture.send(4, 64, 0), Err(QuotaError::Users));
        assert_eq!(fixture.quota().len(), 2);
        // Two users that come by turns have one record each for as long as both have something.
        fixture.receive(3, 64, 0);
        fixture.send(2, 64, 0).unwrap();
        fixture.send(4, 64, 0).unwrap();
        for (user, bytes) in [(2, 128), (3, 0), (4, 64)] {
            assert_eq!(fixture.quota().held_by(UserIndex(user)).size, bytes);
        }
        fixture.receive(2, 64, 0);
        fixture.receive(2, 64, 0);
        assert_eq!(fixture.quota().holders().map(|(user, _)| user).collect::<Vec<_>>(), [UserIndex(4)]);
        fixture.receive(4, 64, 0);
        assert!(fixture.quota().is_empty());
    }

    #[test]
    fn bytes_are_bounded_in_the_largest_pools() {
        let mut fixture = Fixture::new(1 << 40, 2);
        let size = SIZE_MAX - 7;
        fixture.send(1, size, 0).unwrap();
        let pool = fixture.pool;
        assert_eq!(fixture.quota().room_for(UserIndex(1), pool), 7);
        assert_eq!(fixture.send(1, 8, 0), Err(QuotaError::Size));
    }

    #[test]
    fn several_places_can_be_charged_at_once() {
        let mut fixture = Fixture::new(MIB_16, 2);
        let pool = fixture.pool;
        let lane = Charge { size: 0, messages: 200, fds: 0 };
        fixture.quota().charge(UserIndex(1), lane, pool).unwrap();
        assert_eq!(fixture.quota().charge(UserIndex(1), lane, pool), Err(QuotaError::Messages));
        fixture.quota().release(UserIndex(1), lane);
        assert!(fixture.quota().is_empty());
    }
}
