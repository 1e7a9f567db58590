//! RECV, and what clients take from queues in shared memory.

use crate::abi::{CmdRecv, Command, Errno, Frame, FrameError, MsgInfo, RecvFlags, RecvReturnFlags};
use crate::queue;

use super::connection::{put_record, record};
use super::deliver::{Charge, Deposit, Message};
use super::domain::chunk;
use super::host::{Clock, Host};
use super::quota::{self, PoolUse, Quota, QuotaHead, UserIndex};
use super::table::{ConnIx, Place, UserIx};
use super::user::Counted;
use super::{Domain, Entry, Return};

/// What a client did in shared memory is asked for in portions of this many: mostly it is the receipt of one message and its
/// release.
const RETURNS: usize = 4;

impl Domain<'_> {
    /// RECV, of the entry that `chosen` names or of the one that the flags select.
    ///
    /// Cost: `O(log)` of the queue and the pool, and the message's descriptors.
    pub(super) fn receive(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        chosen: Option<(u32, u64, RecvFlags)>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        if self.conns[conn].is_policy_holder() {
            return Err(Errno::EOPNOTSUPP);
        }
        let frame = Frame::check(arg, Command::Recv.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let mut cmd: CmdRecv = record(frame.bytes);
        let flags = chosen.map_or(RecvFlags::from_bits_truncate(frame.flags), |(_, _, flags)| flags);
        let by_priority = flags.contains(RecvFlags::USE_PRIORITY) && chosen.is_none();
        if by_priority && flags.contains(RecvFlags::DROP) {
            return Err(Errno::EINVAL);
        }
        self.drain(host, conn);
        let limit = by_priority.then_some(cmd.priority);
        let entry = chosen.map(|(slot, key, _)| (slot, key));
        let received = self.receive_one(host, at, conn, entry, limit, flags);
        let empty = MsgInfo { offset: self.conns[conn].pool.size(), ..MsgInfo::default() };
        cmd.msg = received.unwrap_or(Some(empty)).unwrap_or(empty);
        cmd.dropped_msgs = core::mem::take(&mut self.conns[conn].lost);
        let lost = cmd.dropped_msgs > 0;
        let reported = if lost { RecvReturnFlags::DROPPED_MSGS } else { RecvReturnFlags::empty() };
        cmd.return_flags = reported.bits();
        put_record(frame.bytes, &cmd);
        received.map(|_| ())
    }

    /// Takes, shows or drops one message; `None` for one that was dropped.
    fn receive_one(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        chosen: Option<(u32, u64)>,
        limit: Option<i64>,
        flags: RecvFlags,
    ) -> Result<Option<MsgInfo>, Errno> {
        // Each turn either ends the loop or takes a message out of the queue.
        while let Some(entry) = self.select(conn, chosen, limit) {
            let Some((_, message)) = self.queued(conn, entry) else {
                break;
            };
            let deposit = message.deposit();
            if flags.contains(RecvFlags::PEEK) && !flags.contains(RecvFlags::DROP) {
                self.show_slice(conn, deposit.slice.id);
                let (offset, msg_size) = (deposit.slice.offset, deposit.slice.size);
                return Ok(Some(MsgInfo { offset, msg_size, return_flags: 0 }));
            }
            if !self.retract(host, conn, entry) {
                self.take_shared(host, conn, entry);
                continue;
            }
            self.remove_entry(conn, entry);
            let received = if flags.contains(RecvFlags::DROP) {
                self.discard(host, conn, deposit);
                self.call_dropped(host, at, message.tracker);
                None
            } else {
                self.unqueue_tracker(message.tracker);
                Some(self.hand_out(host, conn, deposit))
            };
            self.made_room(host, conn);
            return Ok(received);
        }
        Err(Errno::EAGAIN)
    }

    /// The entry that RECV is about: the chosen one, the most urgent one within the limit, or the oldest.
    fn select(
        &mut self,
        conn: ConnIx,
        chosen: Option<(u32, u64)>,
        limit: Option<i64>,
    ) -> Option<queue::Handle> {
        let queue = self.queue(conn);
        match (chosen, limit) {
            (Some((slot, key)), _) => {
                queue.at_slot(slot).filter(|entry| entry.item.key == key).map(|entry| entry.handle)
            }
            (None, Some(limit)) => {
                queue.peek().filter(|entry| entry.priority <= limit).map(|entry| entry.handle)
            }
            (None, None) => queue.peek_front().map(|entry| entry.handle),
        }
    }

    /// Applies everything a client did to its queue and pool in shared memory.
    ///
    /// Cost: a step of `O(log)` for each; at most as many as its queue and pool have places.
    pub(super) fn drain(&mut self, host: &mut dyn Host, conn: ConnIx) {
        let handle = self.conns[conn].known_as;
        let mut left = self.config.queue_depth + self.config.pool_slices;
        while left > 0 {
            let mut returns = [Return::Freed(0); RETURNS];
            let room = left.min(RETURNS);
            let count = host.poll_returns(handle, &mut returns[..room]);
            let mut rest = returns.get(..count).unwrap_or_default();
            while let [done, behind @ ..] = rest {
                rest = match *done {
                    Return::Taken { slot, key } => self.taken(host, conn, slot, key, behind),
                    Return::Freed(offset) => {
                        if self.pool(conn).free(offset).is_ok() {
                            self.made_room(host, conn);
                        }
                        behind
                    }
                };
            }
            if count < room {
                return;
            }
            left -= room;
        }
    }

    /// Applies the receipt of an entry. What its client did after that is `behind`, of which the rest is returned: the release of
    /// the same message, which mostly comes next, is applied at once.
    fn taken<'r>(
        &mut self,
        host: &mut dyn Host,
        conn: ConnIx,
        slot: u32,
        key: u64,
        behind: &'r [Return],
    ) -> &'r [Return] {
        let mut queue = self.queue(conn);
        // Only the engine can hand descriptors out, so such a message was not received.
        let taken = queue.at_slot(slot).filter(|at| at.item.key == key && at.item.files.is_none());
        let Some(message) = taken.map(|at| at.handle).and_then(|entry| queue.remove(entry)) else {
            return behind;
        };
        if let [Return::Freed(offset), rest @ ..] = behind
            && *offset == message.slice.offset
        {
            self.unqueue_tracker(message.tracker);
            let gone = self.pool(conn).give_up(message.slice.id);
            debug_assert!(gone.is_ok(), "the bus holds the slice");
            self.discharge(conn, message.charge);
            self.made_room(host, conn);
            return rest;
        }
        self.received(host, conn, &message);
        behind
    }

    /// Treats an entry that a client took from shared memory as received.
    pub(super) fn take_shared(&mut self, host: &mut dyn Host, conn: ConnIx, entry: queue::Handle) {
        if let Some(message) = self.remove_entry(conn, entry) {
            self.received(host, conn, &message);
        }
    }

    /// Lets go of a message that left the queue because a client took it from shared memory.
    fn received(&mut self, host: &mut dyn Host, conn: ConnIx, message: &Message) {
        self.unqueue_tracker(message.tracker);
        self.let_go(host, conn, message.deposit());
        self.made_room(host, conn);
    }

    /// Takes an entry back from shared memory; false if the client was faster.
    pub(super) fn retract(&mut self, host: &mut dyn Host, conn: ConnIx, entry: queue::Handle) -> bool {
        let Some((priority, message)) = self.queued(conn, entry) else {
            return true;
        };
        let shown = Entry {
            slot: entry.slot(),
            key: message.key,
            priority,
            offset: message.slice.offset,
            size: message.slice.size,
            with_files: message.files.is_some(),
        };
        host.retract(self.conns[conn].known_as, shown) || message.files.is_some()
    }

    /// Priority and content of an entry that is still queued.
    pub(super) fn queued(&mut self, conn: ConnIx, entry: queue::Handle) -> Option<(i64, Message)> {
        let queue = self.queue(conn);
        Some((queue.priority(entry)?, *queue.get(entry)?))
    }

    pub(super) fn remove_entry(&mut self, conn: ConnIx, entry: queue::Handle) -> Option<Message> {
        self.queue(conn).remove(entry)
    }

    /// Charges a message of a user to a receiver.
    ///
    /// # Errors
    ///
    /// `ENOBUFS`, `EMFILE`.
    pub(super) fn charge(&mut self, to: ConnIx, user: UserIx, size: u64, fds: u32) -> Result<Charge, Errno> {
        let (more, pool) = (quota::Charge::message(size, fds), self.pool_use(to));
        self.quota(to).charge(number(user), more, pool).map_err(|error| error.errno())?;
        // Nothing else limits how many messages wait altogether.
        let _ = self.count(user, Counted::Message);
        Ok(Charge { user, size, fds })
    }

    /// Whether a receiver has room for a message of a user, which leaves its queue as soon as it is there.
    ///
    /// # Errors
    ///
    /// As [`charge`](Self::charge).
    pub(super) fn check_charge(
        &mut self,
        to: ConnIx,
        user: UserIx,
        size: u64,
        fds: u32,
    ) -> Result<(), Errno> {
        let (more, pool) = (quota::Charge::message(size, fds), self.pool_use(to));
        self.quota(to).check(number(user), more, pool).map_err(|error| error.errno())
    }

    fn pool_use(&self, of: ConnIx) -> PoolUse {
        let pool = &self.conns[of].pool;
        PoolUse { size: pool.size(), accounted_size: pool.accounted_size() }
    }

    /// Takes a charge back.
    pub(super) fn discharge(&mut self, to: ConnIx, charge: Charge) {
        let Charge { user, size, fds } = charge;
        self.quota(to).release(number(user), quota::Charge::message(size, fds));
        self.discount(user, Counted::Message);
    }

    /// The quota of a connection.
    pub(super) fn quota(&mut self, conn: ConnIx) -> Quota<'_> {
        let records = chunk(self.user_records, conn, self.config.quota_users);
        Quota::new(&mut self.conns[conn].quota, records)
    }

    /// Starts the quota of a new connection.
    pub(super) fn reset_quota(&mut self, conn: ConnIx) {
        self.conns[conn].quota = QuotaHead::new();
    }
}

/// How quotas name a user.
pub(super) fn number(user: UserIx) -> UserIndex {
    UserIndex(user.index())
}

impl Message {
    pub(super) const fn deposit(&self) -> Deposit {
        Deposit { slice: self.slice, charge: self.charge, files: self.files }
    }
}
