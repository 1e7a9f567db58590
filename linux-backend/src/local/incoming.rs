//! Messages on their way from the queue or kdbusd to whoever receives.

use kdbus_core::abi::{CmdRecv, Command, Errno, MsgInfo, RecvFlags, RecvReturnFlags};
use kdbus_core::channel::Arrived;
use kdbus_core::client::{Failure, Incoming};
use kdbus_core::hint::unlikely;
use rustix::fd::OwnedFd;
use zerocopy::IntoBytes;

use super::handle::Answer;
use super::map::WordMap;
use super::point::{self, Point};
use super::receive::{KDBUSD, Lanes, Only, Receiver};
use super::transport::LocalTransport;

/// What a look at the queue has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// There was nothing.
    Nothing,
    /// A message was dropped.
    Dropped,
    /// A message was received.
    Message,
}

impl LocalTransport {
    /// Puts the message that a command has received into `message`. False if it only dropped one.
    pub(super) fn received(
        &self,
        info: MsgInfo,
        answer: &mut Answer,
        message: &mut Incoming<OwnedFd>,
    ) -> bool {
        let pool_size = self.handle.pool().map_or(0, super::map::ReadMap::len);
        if info.offset == pool_size {
            return false;
        }
        message.info = info;
        let mut lost = answer.fds_lost;
        // Mostly there are none, and room for them is not moved.
        if unlikely(!answer.fds.is_empty()) {
            for fd in core::mem::take(&mut answer.fds) {
                lost |= message.fds.push(fd).is_err();
            }
        }
        if lost {
            message.info.return_flags |= RecvReturnFlags::INCOMPLETE_FDS.bits();
        }
        true
    }

    /// Receives by command: `entry`, or what kdbusd chooses. False if it was only dropped.
    pub(super) fn receive_by_command(
        &self,
        entry: Option<&Arrived>,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<bool, Failure> {
        let mut command = CmdRecv {
            size: size_of::<CmdRecv>() as u64,
            flags: flags.bits(),
            priority,
            ..CmdRecv::default()
        };
        let arg = command.as_mut_bytes();
        let mut answer = match entry {
            Some(entry) => self.handle.receive_entry(entry.slot, entry.key, arg)?,
            None => self.handle.command(Command::Recv.request(), arg)?,
        };
        let received = self.received(command.msg, &mut answer, message);
        if flags.contains(RecvFlags::PEEK) {
            // Whoever receives the message has its descriptors.
            message.fds.clear();
        }
        Ok(received)
    }

    /// Puts one message out of the lanes into `message`.
    pub(super) fn next(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<Taken, Failure> {
        let arena = self.arena();
        let mut outward = self.outward.borrow_mut();
        let (pool, bell) = (self.handle.pool(), &self.bell);
        let mut lanes =
            arena.zip(outward.as_mut()).map(|(arena, outward)| Lanes { arena, pool, bell, outward });
        if let (true, Some(lanes)) = (flags.is_empty(), &mut lanes) {
            match receiver.take_only(lanes) {
                Only::Message(held) => {
                    let offset = self.arena_base() + held.offset;
                    message.info = MsgInfo { offset, msg_size: held.size, return_flags: 0 };
                    return Ok(Taken::Message);
                }
                Only::Nothing => return Ok(Taken::Nothing),
                Only::Unsure => {}
            }
        }
        if flags.is_empty()
            && let Some((offset, msg_size, report)) = receiver.take_shown()
        {
            if report {
                self.handle.report_returns();
            }
            message.info = MsgInfo { offset, msg_size, return_flags: 0 };
            return Ok(Taken::Message);
        }
        // Each round returns or removes an entry.
        while let Some(entry) = receiver.next(flags, priority, lanes.as_mut()) {
            if let (Some(arena), true) = (arena, entry.lane != KDBUSD) {
                if let Some(lane) = receiver.take_from_lane(&entry, flags, arena) {
                    point::pass(Point::CallDropped);
                    self.handle.call_dropped(lane)?;
                }
                if flags.contains(RecvFlags::DROP) {
                    return Ok(Taken::Dropped);
                }
                let offset = self.arena_base() + entry.offset;
                message.info = MsgInfo { offset, msg_size: entry.size, return_flags: 0 };
                return Ok(Taken::Message);
            }
            let taken = self.take_entry(receiver, &entry, flags, priority, message)?;
            if taken != Taken::Nothing {
                return Ok(taken);
            }
        }
        Ok(Taken::Nothing)
    }

    /// Receives an entry that kdbusd shows, as `flags` ask for it; nothing if it is gone.
    pub(super) fn take_entry(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        entry: &Arrived,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<Taken, Failure> {
        let plain = !flags.intersects(RecvFlags::PEEK | RecvFlags::DROP);
        if plain && !entry.with_files {
            match receiver.take(entry) {
                Ok(None) => return Ok(Taken::Nothing),
                Ok(Some(report)) => {
                    if report {
                        self.handle.report_returns();
                    }
                    message.info = MsgInfo { offset: entry.offset, msg_size: entry.size, return_flags: 0 };
                    return Ok(Taken::Message);
                }
                // kdbusd empties the ring before the command below.
                Err(_) => {}
            }
        }
        match self.receive_by_command(Some(entry), flags, priority, message) {
            Ok(received) => {
                if !flags.contains(RecvFlags::PEEK) || !received {
                    receiver.forget(entry);
                }
                Ok(if received { Taken::Message } else { Taken::Dropped })
            }
            Err(Failure::Refused(Errno::EAGAIN)) => {
                receiver.forget(entry);
                Ok(Taken::Nothing)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Receives a message as `flags` and `priority` ask for it, by lane, out of kdbusd's queue or by command.
    ///
    /// If there is none, a connection that is polled from outside silences and asks for its bells; what came in between is
    /// received, and the descriptor stays readable for whatever is behind it. Others ask only before they sleep, and look
    /// every now and then whether kdbusd is still there.
    ///
    /// # Errors
    ///
    /// [`Failure`] of a command, or the end of the connection.
    pub(super) fn receive(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<Taken, Failure> {
        let mut taken = self.next(receiver, flags, priority, message)?;
        if taken == Taken::Nothing && unlikely(self.bell.is_watched()) {
            if self.arm(receiver)? {
                // It came before the bell was asked for, so nobody else rings for it.
                self.bell.ring_own();
                taken = self.next(receiver, flags, priority, message)?;
            }
        } else if unlikely(!receiver.is_alive()) {
            return Err(self.end());
        } else if taken == Taken::Nothing {
            self.beat()?;
        } else {
            self.ring_for_silenced(receiver);
        }
        Ok(taken)
    }

    /// Leaves a descriptor that is polled from outside readable, where a sender was told of room: a ring for a message may be
    /// gone with that, and nobody else rings for it.
    #[inline]
    pub(super) fn ring_for_silenced(&self, receiver: &mut Receiver<WordMap, WordMap>) {
        if unlikely(self.bell.is_watched())
            && let Some(lanes) = receiver.lanes()
            && lanes.takes_silenced()
        {
            self.bell.ring_own();
        }
    }
}
