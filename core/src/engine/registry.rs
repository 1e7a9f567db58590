//! Names: NAME_ACQUIRE, NAME_RELEASE, and what follows when a name passes to another connection.

use crate::WellKnownName;
use crate::abi::{Cmd, Command, Errno, Frame, FrameError, IdChange, ItemType, NameFlags};

use super::Domain;
use super::call::index;
use super::connection::{put_record, record};
use super::deliver::{Deposit, Message};
use super::host::{Clock, Credentials, Host};
use super::names::{AcquireError, ConnectionIndex, HandOver, Owner, OwnerChange, stored_flags};
use super::notify::Notice;
use super::table::{BusIx, ConnIx, Place};

impl Domain<'_> {
    /// NAME_ACQUIRE. Cost: `O(log)` of all names and records, an announcement, and a hand-over if the name
    /// had an activator.
    pub(super) fn name_acquire(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::NameAcquire.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let name = frame.item(ItemType::NAME).and_then(|item| item.c_str()).ok_or(Errno::EINVAL)?;
        let name = WellKnownName::from_bytes(name).map_err(|error| error.errno())?;
        let creds = caller.unwrap_or_else(|| self.conn_creds(conn));
        // kdbus: whether one may own the name comes before whether it is free.
        if !self.may_own(conn, creds, name.as_str()) {
            return Err(Errno::EPERM);
        }
        let bus = self.conns[conn].bus;
        let request = NameFlags::from_bits_truncate(frame.flags);
        let acquired = self.names.acquire(&mut self.buses[bus].names, index(conn), name, request);
        let (flags, result) = match acquired {
            Ok(acquired) => {
                if let Some(change) = acquired.change {
                    self.name_changed(host, at, bus, &change);
                }
                (acquired.return_flags, Ok(()))
            }
            Err(AcquireError::Taken) => (stored_flags(request), Err(Errno::EEXIST)),
            Err(error) => (NameFlags::empty(), Err(error.errno())),
        };
        let cmd: Cmd = record(frame.bytes);
        put_record(frame.bytes, &Cmd { return_flags: flags.bits(), ..cmd });
        result
    }

    /// NAME_RELEASE. Cost: as NAME_ACQUIRE.
    pub(super) fn name_release(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::NameRelease.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let name = frame.item(ItemType::NAME).and_then(|item| item.c_str()).ok_or(Errno::EINVAL)?;
        let bus = self.conns[conn].bus;
        let released = self.names.release(&mut self.buses[bus].names, index(conn), name);
        if let Some(change) = released.map_err(|error| error.errno())?.change {
            self.name_changed(host, at, bus, &change);
        }
        Ok(())
    }

    /// Moves what was sent to a name to its new owner, if an activator is concerned, and announces it.
    pub(super) fn name_changed(&mut self, host: &mut dyn Host, at: Clock, bus: BusIx, change: &OwnerChange) {
        // Before the notification takes its key, so that it follows the last message to the old owner.
        if let Some(old) = change.old {
            self.close_lanes_into(host, place(old.connection));
        }
        if let Some(hand_over) = change.hand_over() {
            self.hand_over(host, at, hand_over);
        }
        let side = |owner: Option<Owner>| {
            owner.map_or(IdChange::default(), |owner| IdChange {
                id: self.conns[place(owner.connection)].id,
                flags: owner.flags.bits(),
            })
        };
        let (old, new) = (side(change.old), side(change.new));
        crate::event!(debug, "name {:?} goes from {} to {}", change.name.as_str(), old.id, new.id);
        self.announce(host, at, bus, &Notice::Name { old, new, name: change.name.as_str() });
    }

    /// Calls `each` with every name that a connection holds, in the order of its claims.
    pub(super) fn each_held_name(&self, conn: ConnIx, each: &mut dyn FnMut(&str, NameFlags)) {
        for claim in self.names.held(index(conn)) {
            each(claim.name, claim.flags);
        }
    }

    /// Moves messages and awaited replies of a name from its old owner to its new one.
    ///
    /// Cost: a step for each tracker of the old owner and each message that waits there; one copy for each
    /// message of the name.
    fn hand_over(&mut self, host: &mut dyn Host, at: Clock, hand_over: HandOver) {
        self.replies.redirect(hand_over);
        let (from, to) = (place(hand_over.from), place(hand_over.to));
        self.drain(host, from);
        self.drain(host, to);
        let mut cursor = self.queue(from).cursor();
        let mut moved = false;
        while let Some(entry) = self.queue(from).advance(&mut cursor).map(|entry| entry.handle) {
            let queued = self.queued(from, entry).filter(|(_, message)| message.name == hand_over.sequence);
            let Some((priority, message)) = queued else {
                continue;
            };
            if !self.retract(host, from, entry) {
                // Its client took it from shared memory first.
                self.take_shared(host, from, entry);
                continue;
            }
            self.remove_entry(from, entry);
            self.move_message(host, at, from, to, priority, message);
            moved = true;
        }
        if moved {
            self.made_room(host, from);
            self.wake(self.conns[to].handle);
        }
    }

    fn move_message(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        from: ConnIx,
        to: ConnIx,
        priority: i64,
        message: Message,
    ) {
        let Message { slice, charge, files, name, tracker, .. } = message;
        let old = Deposit { slice, charge, files };
        let refused = charge.fds > 0 && !self.conns[to].accepts_fds();
        let copied = if refused { None } else { self.copy_deposit(host, from, to, old) };
        self.discard(host, from, old);
        let queued =
            copied.is_some_and(|new| self.enqueue(host, at, to, new, priority, name, tracker).is_ok());
        if !queued {
            // kdbus: the call of a lost message stays open until its deadline.
            self.unqueue_tracker(tracker);
            self.lose(host, to);
        }
    }

    /// Charges and copies a waiting message at another connection.
    fn copy_deposit(
        &mut self,
        host: &mut dyn Host,
        from: ConnIx,
        to: ConnIx,
        old: Deposit,
    ) -> Option<Deposit> {
        let size = old.slice.size;
        let charge = self.charge(to, old.charge.user, size, old.charge.fds).ok()?;
        let Ok(slice) = self.pool(to).allocate(size, true) else {
            self.discharge(to, charge);
            return None;
        };
        let (source, target) = (self.conns[from].handle, self.conns[to].handle);
        let (source, target) = (self.handle_id(source), self.handle_id(target));
        host.pool_copy(source, old.slice.offset, target, slice.offset, size);
        Some(Deposit { slice, charge, files: self.files.share(old.files) })
    }
}

/// The place of a connection that the tables name by number.
pub(super) fn place(index: ConnectionIndex) -> ConnIx {
    ConnIx::new(index.0)
}

#[cfg(test)]
#[path = "registry_tests.rs"]
mod tests;
