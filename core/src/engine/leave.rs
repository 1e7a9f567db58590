//! How a connection ends: BYEBYE, and the way out of whoever leaves or dies.

use crate::abi::{Command, Errno, Frame, FrameError, HelloFlags};

use super::Domain;
use super::call::index;
use super::deliver::Deposit;
use super::domain::HandleState;
use super::host::{Clock, Host};
use super::lanes::Lanes;
use super::notify::Notice;
use super::table::{ConnIx, Place};
use super::user::Counted;

/// How far a connection is on its way out; each stage is left once there is nothing to do in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Active,
    /// Names are released one by one.
    Names,
    /// Messages that wait are freed one by one.
    Queue,
    /// Calls of its own are forgotten one by one.
    Calls,
    /// Those who await a reply are told one by one.
    Awaited,
    /// Matches are removed one by one.
    Matches,
    Gone,
}

impl Domain<'_> {
    /// BYEBYE. Cost: that of a disconnect.
    pub(super) fn byebye(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::Byebye.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        self.drain(host, conn);
        if !self.conns[conn].queue.is_empty() {
            return Err(Errno::EBUSY);
        }
        if !host.lanes_retire(self.conns[conn].known_as) {
            return Err(Errno::EBUSY);
        }
        self.disconnect(host, at, conn);
        Ok(())
    }

    /// BYEBYE of who has left, or was thrown out.
    pub(super) fn byebye_again(ordinary: bool, arg: &mut [u8]) -> Result<(), Errno> {
        if !ordinary {
            return Err(Errno::EOPNOTSUPP);
        }
        let frame = Frame::check(arg, Command::Byebye.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate { Ok(()) } else { Err(Errno::ECONNRESET) }
    }

    /// Ends a connection, step by step; the handle stays, as one that was a connection.
    ///
    /// Cost: a step for each name, waiting message, own call, awaited reply and match of it; each step
    /// announces at most one change.
    pub(super) fn disconnect(&mut self, host: &mut dyn Host, at: Clock, conn: ConnIx) {
        self.begin_leave(host, conn);
        while self.leave_step(host, at, conn) {}
    }

    /// Takes a connection out of every place where others find it.
    fn begin_leave(&mut self, host: &mut dyn Host, conn: ConnIx) {
        let record = &mut self.conns[conn];
        record.stage = Stage::Names;
        let (handle, bus, monitor) = (record.handle, record.bus, record.is_monitor());
        let (next, prev) = (record.next, record.prev);
        if let HandleState::Connected(_) = self.handles[handle].state {
            self.wake(handle);
        }
        self.close_lanes(host, bus, Lanes::Of(self.handle_id(handle)));
        self.end_calls(host, conn, Errno::ECONNRESET);
        self.end_watches(host, conn);
        if self.conns[conn].flags.intersects(HelloFlags::ACTIVATOR | HelloFlags::POLICY_HOLDER) {
            self.close_lanes_on(host, bus);
        }
        self.policy.clear(&mut self.conns[conn].policy);
        let _ = self.ids.remove(self.conns.records, conn.index());
        match prev {
            Some(prev) => self.conns[prev].next = next,
            None => self.members(bus, monitor).first = next,
        }
        match next {
            Some(next) => self.conns[next].prev = prev,
            None => self.members(bus, monitor).last = prev,
        }
    }

    /// Does one piece of a disconnect; false after the last one.
    fn leave_step(&mut self, host: &mut dyn Host, at: Clock, conn: ConnIx) -> bool {
        let (bus, stage) = (self.conns[conn].bus, self.conns[conn].stage);
        let next = match stage {
            Stage::Active | Stage::Names => {
                match self.names.release_next(&mut self.buses[bus].names, index(conn)) {
                    Some(released) => {
                        if let Some(change) = released.change {
                            self.name_changed(host, at, bus, &change);
                        }
                        return true;
                    }
                    None => Stage::Queue,
                }
            }
            Stage::Queue => match self.queue(conn).pop_front() {
                Some(message) => {
                    let (slice, charge, files) = (message.slice, message.charge, message.files);
                    self.discard(host, conn, Deposit { slice, charge, files });
                    if message
                        .tracker
                        .and_then(|call| self.replies.get(call))
                        .is_some_and(|call| call.caller == index(conn))
                    {
                        // It is a call of its own, which nobody is told of.
                        self.unqueue_tracker(message.tracker);
                    } else {
                        self.call_dropped(host, at, message.tracker);
                    }
                    return true;
                }
                None => Stage::Calls,
            },
            Stage::Calls => {
                if self.forget_own_call(conn) {
                    return true;
                }
                Stage::Awaited
            }
            Stage::Awaited => {
                if self.fail_awaited(host, at, conn) {
                    return true;
                }
                Stage::Matches
            }
            Stage::Matches => {
                if self.matches.remove_one(&mut self.conns[conn].matches) {
                    return true;
                }
                Stage::Gone
            }
            Stage::Gone => return false,
        };
        self.conns[conn].stage = next;
        if next == Stage::Gone {
            self.finish_leave(host, at, conn);
            return false;
        }
        true
    }

    /// Announces the end of a connection and forgets it.
    fn finish_leave(&mut self, host: &mut dyn Host, at: Clock, conn: ConnIx) {
        let record = &self.conns[conn];
        let (bus, handle, user, change) = (record.bus, record.handle, record.user, record.change());
        let ordinary = record.is_ordinary();
        crate::event!(info, "connection {} is gone", record.id);
        if !record.is_monitor() {
            self.announce(host, at, bus, &Notice::Id { added: false, change });
        }
        host.pool_destroy(self.handle_id(handle));
        if let HandleState::Connected(_) = self.handles[handle].state {
            self.handles[handle].state = HandleState::Disconnected { ordinary };
        }
        self.conns.remove(conn);
        self.discount(user, Counted::Connection);
    }
}

#[cfg(test)]
#[path = "leave_tests.rs"]
mod tests;
