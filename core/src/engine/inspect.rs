//! Looking into a domain: for tools, and for checks of what must always hold.

use crate::abi::Errno;

use super::Domain;
use super::host::{HandleId, Host};
use super::quota;
use super::reply::CALLS_MAX;
use super::table::ConnIx;
use super::user::Identity;

/// How much of each table is in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Usage {
    /// Open handles.
    pub handles: usize,
    /// Buses.
    pub buses: usize,
    /// Endpoints.
    pub endpoints: usize,
    /// Accounting users, the bus itself among them.
    pub users: usize,
    /// Connections.
    pub connections: usize,
    /// Well-known names.
    pub names: usize,
    /// Matches.
    pub matches: usize,
    /// Awaited replies, those of which the message still waits among them.
    pub trackers: usize,
    /// Synchronous calls, and ends of them that were not told yet.
    pub calls: usize,
    /// Files in flight.
    pub files: usize,
    /// Names in policies.
    pub policy_entries: usize,
    /// Watches for room.
    pub watches: usize,
}

/// What a connection did since its HELLO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Counters {
    /// Messages it sent that the bus took.
    pub sent: u64,
    /// Messages that were queued for it. A synchronous reply passes by the queue.
    pub queued: u64,
    /// Messages to it that were refused because it had no room.
    pub refused: u64,
}

impl Counters {
    pub(super) const ZERO: Self = Self { sent: 0, queued: 0, refused: 0 };
}

/// One connection, as a tool shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ConnectionView {
    /// Its handle.
    pub handle: HandleId,
    /// Its id.
    pub id: u64,
    /// Id of its bus.
    pub bus: u64,
    /// Messages that wait.
    pub queued: usize,
    /// Messages that can wait.
    pub queue_depth: usize,
    /// Broadcasts lost since its last RECV.
    pub lost: u64,
    /// Broadcasts lost since its HELLO.
    pub lost_ever: u64,
    /// What else it did since then.
    pub counters: Counters,
    /// Bytes of its pool.
    pub pool_size: u64,
    /// Bytes of messages that wait.
    pub accounted_size: u64,
    /// Slices that it or the bus holds.
    pub slices: usize,
    /// Bytes of the largest free slice.
    pub largest_free: u64,
    /// Calls of it that count.
    pub calls: usize,
}

/// What one user occupies at a receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Holder {
    /// Real user; none for the bus itself and for custom endpoints.
    pub uid: Option<u32>,
    /// Whether it is the bus itself.
    pub kernel: bool,
    /// Bytes, messages and descriptors.
    pub charge: quota::Charge,
}

/// A rule of the engine that does not hold; only a defect of the engine brings it about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Violation {
    /// What should be so.
    pub rule: &'static str,
    /// Id of the connection at which it is not.
    pub connection: u64,
}

impl core::fmt::Display for Violation {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "at connection {}: {}", self.connection, self.rule)
    }
}

impl core::error::Error for Violation {}

impl Domain<'_> {
    /// Checks what holds between any two commands, in `O(connections · quota_users)` steps. For tests and simulators.
    ///
    /// # Errors
    ///
    /// The first [`Violation`] that is found.
    pub fn audit(&mut self) -> Result<(), Violation> {
        for index in 0..self.conns.capacity() {
            let Some(place) = self.conns.at(index) else { continue };
            let view = self.view(place);
            let (mut size, mut messages) = (0, 0);
            for (_, charge) in self.quota(place).holders() {
                size += charge.size;
                messages += charge.messages as usize;
            }
            let readiness = self.readiness(view.handle);
            let rules = [
                (size == view.accounted_size, "the charges of all users are the bytes that wait"),
                (messages >= view.queued, "each message that waits is charged"),
                (
                    messages <= view.queued + CALLS_MAX as usize,
                    "what is charged waits, or is a reply's reservation",
                ),
                (view.queued <= self.config.queue_depth, "the queue keeps to its depth"),
                (view.accounted_size <= view.pool_size, "what waits fits in the pool"),
                (view.largest_free <= view.pool_size, "no free slice is larger than the pool"),
                (view.calls <= CALLS_MAX as usize, "a caller awaits no more replies than it may"),
                (
                    readiness.readable == (view.queued > 0 || view.lost > 0),
                    "readable means that something waits",
                ),
                (readiness.writable && !readiness.hung_up, "a connection in the table is active"),
            ];
            if let Some((_, rule)) = rules.into_iter().find(|(holds, _)| !holds) {
                return Err(Violation { rule, connection: view.id });
            }
        }
        Ok(())
    }

    /// How much of each table is in use, in `O(1)`.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        Usage {
            handles: self.handles.len(),
            buses: self.buses.len(),
            endpoints: self.endpoints.len(),
            users: self.users.len(),
            connections: self.conns.len(),
            names: self.names.len(),
            matches: self.matches.len(),
            trackers: self.replies.len(),
            calls: self.calls.len(),
            files: self.files.len(),
            policy_entries: self.policy.len(),
            watches: self.watches.len(),
        }
    }

    /// Calls `each` with every connection, in `O(connections)` steps of `O(log)` of its slices.
    pub fn each_connection(&mut self, mut each: impl FnMut(ConnectionView)) {
        for index in 0..self.conns.capacity() {
            if let Some(place) = self.conns.at(index) {
                each(self.view(place));
            }
        }
    }

    /// One connection, if the handle is one that is active.
    #[must_use]
    pub fn connection(&mut self, handle: HandleId) -> Option<ConnectionView> {
        let conn = self.connected(handle).ok()?;
        Some(self.view(conn))
    }

    /// Connection `id` on the bus of `from`, as its owner sees it now.
    ///
    /// Those see it who could also end its process: its own user, the owner of the bus and privileged users.
    /// It is looked into its shared queue first, so what it received is not counted as waiting.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is no such connection, or none that `from` may see; `EPERM` if it belongs to another user.
    pub fn peer(&mut self, host: &mut dyn Host, from: HandleId, id: u64) -> Result<ConnectionView, Errno> {
        let asking = self.connected(from)?;
        let of = self.find_connection(self.conns[asking].bus, id).ok_or(Errno::ENXIO)?;
        let creds = self.conn_creds(asking);
        if of != asking && !self.sees_connection(asking, creds, of) {
            return Err(Errno::ENXIO);
        }
        if !self.conns[asking].owner && creds.euid != self.conn_creds(of).uid {
            return Err(Errno::EPERM);
        }
        self.drain(host, of);
        Ok(self.view(of))
    }

    /// Calls `each` with everybody whose messages wait at a connection.
    pub fn each_holder(&mut self, handle: HandleId, mut each: impl FnMut(Holder)) {
        let Ok(conn) = self.connected(handle) else {
            return;
        };
        let users = core::mem::take(&mut self.users.records);
        for (user, charge) in self.quota(conn).holders() {
            let identity = users.get(user.0 as usize).map(|record| record.item.identity);
            let uid = match identity {
                Some(Identity::Uid(uid)) => Some(uid),
                _ => None,
            };
            each(Holder { uid, kernel: user == quota::UserIndex::KERNEL, charge });
        }
        self.users.records = users;
    }

    fn view(&mut self, conn: ConnIx) -> ConnectionView {
        let record = &self.conns[conn];
        let mut view = ConnectionView {
            handle: record.known_as,
            id: record.id,
            bus: self.buses[record.bus].id,
            queued: record.queue.len(),
            queue_depth: self.config.queue_depth,
            lost: record.lost,
            lost_ever: record.lost_ever,
            counters: record.counters,
            pool_size: record.pool.size(),
            accounted_size: record.pool.accounted_size(),
            slices: 0,
            largest_free: 0,
            calls: self.replies.count(super::call::index(conn)),
        };
        let pool = self.pool(conn);
        (view.slices, view.largest_free) = (pool.len(), pool.largest_free());
        view
    }
}
