//! SEND: from the argument to the queue of every receiver.

use core::mem::offset_of;

use crate::Instant;
use crate::WellKnownName;
use crate::abi::{
    CmdSend, Command, DST_ID_NAME, Errno, Frame, FrameError, ItemType, MESSAGE, Msg, MsgFlags, MsgInfo,
    SendFlags,
};
use crate::examine::{Examined, Route, look_over};

use super::Domain;
use super::call::{Return, index};
use super::connection::{put_record, record};
use super::deliver::Parcel;
use super::domain::Progress;
use super::host::{Clock, Credentials, Host};
use super::matches::Walk;
use super::metadata::Gathered;
use super::registry::place;
use super::reply::{CALLS_MAX, Call, CallError, CallMode};
use super::rules::Subject;
use super::table::{BusIx, ConnIx};

/// Synchronous deadlines from here on have passed already: they are compared as signed numbers.
const DEADLINE_END: u64 = 1 << 63;

/// Listeners to a broadcast that are looked for before they are served.
const LISTENERS: usize = 8;

/// Everything about one SEND but the domain it happens in.
#[derive(Clone, Copy)]
struct Sending<'m> {
    conn: ConnIx,
    bus: BusIx,
    message: &'m Examined<'m>,
    parcel: &'m Parcel<'m>,
    /// The host's number of the command if it waits for the reply.
    sync: Option<u64>,
}

impl Domain<'_> {
    /// SEND. Cost: one pass over the message and one copy for each receiver and monitor; besides, a
    /// unicast costs its policy check and `O(log)` of names, connections, trackers and the receiver's
    /// slices, a broadcast its candidates and their policy checks.
    #[expect(clippy::too_many_arguments, reason = "a command and its message")]
    pub(super) fn send(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
        token: u64,
    ) -> Result<Progress, Errno> {
        let frame =
            Frame::check_known(arg, const { Command::Send.shape() }, true).map_err(FrameError::errno)?;
        if frame.negotiate && record::<CmdSend>(frame.bytes).msg_address == 0 {
            return Ok(Progress::Done);
        }
        let message = message.ok_or(Errno::EFAULT)?;
        let sent = Frame::check_known(message, &MESSAGE, false).map_err(FrameError::errno)?;
        if sent.negotiate && !frame.negotiate {
            return Err(Errno::EINVAL);
        }
        if frame.negotiate {
            return Ok(Progress::Done);
        }
        let flags = SendFlags::from_bits_truncate(frame.flags);
        if !frame.is_bare()
            && let Some(fd) = frame.item(ItemType::CANCEL_FD).and_then(|item| item.fds().next())
        {
            host.check_cancel(self.conns[conn].known_as, fd)?;
        }
        match self.send_message(host, at, conn, caller, sent.bytes, flags, token)? {
            Sent::Waiting => Ok(Progress::Pending),
            Sent::Done(reply) => {
                let empty = MsgInfo { offset: self.conns[conn].pool.size(), ..MsgInfo::default() };
                // What else the record has stays; the check of the frame left no flags in it.
                if let Some(place) = frame.bytes.get_mut(offset_of!(CmdSend, reply)..) {
                    put_record(place, &reply.unwrap_or(empty));
                }
                Ok(Progress::Done)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a command and its message")]
    fn send_message(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        caller: Option<&Credentials>,
        bytes: &[u8],
        flags: SendFlags,
        token: u64,
    ) -> Result<Sent, Errno> {
        let sender = &self.conns[conn];
        let (bus, id, user, known_as) = (sender.bus, sender.id, sender.user, sender.known_as);
        let mut message = Examined::of(record(bytes));
        if message.header.src_id != 0 && message.header.src_id != id {
            return Err(Errno::EINVAL);
        }
        let area = bytes.get(Msg::SIZE..).unwrap_or_default();
        look_over(&mut message, area, flags, self.buses[bus].bloom.size)?;
        let stamp = self.stamp(at, bus);
        self.gathered = Gathered::NOTHING;
        let has_files = message.fds + message.memfds > 0;
        let files = if has_files { self.files.import(host, known_as, &message)? } else { None };
        let parcel = Parcel {
            header: &message.header,
            items: message.items,
            payload: message.payload,
            from: Some(conn),
            caller,
            user,
            stamp,
            files,
            fds: message.fds as u32,
            attach: None,
        };
        let sync = flags.contains(SendFlags::SYNC_REPLY).then_some(token);
        let sending = Sending { conn, bus, message: &message, parcel: &parcel, sync };
        let sent = match message.route {
            Route::Broadcast => {
                self.broadcast(host, at, &sending);
                Ok(Sent::Done(None))
            }
            Route::Signal => self.signal(host, at, &sending),
            Route::Call => self.call(host, at, &sending),
            Route::Plain => self.unicast(host, at, &sending),
            Route::Reply(cookie) => self.reply(host, at, &sending, cookie),
        };
        self.files.release(host, files);
        if sent.is_ok() {
            self.conns[conn].counters.sent += 1;
        }
        sent
    }

    fn broadcast(&mut self, host: &mut dyn Host, at: Clock, sending: &Sending<'_>) {
        let &Sending { conn, bus, parcel, .. } = sending;
        self.copy_to_monitors(host, at, bus, parcel);
        let mut walk = self.matches.walk();
        let serial = walk.serial();
        let mut model = None;
        loop {
            // What matches say does not change meanwhile.
            let mut listeners = [conn; LISTENERS];
            let count = self.next_listeners(&mut walk, sending, &mut listeners);
            for &to in listeners.iter().take(count) {
                if self.takes_broadcast(to, bus, serial)
                    && self.may_talk(to, self.conn_creds(to), conn)
                    && self.deliver_like(host, at, to, parcel, 0, None, &mut model).is_err()
                {
                    self.lose(host, to);
                }
            }
            if count < LISTENERS {
                return;
            }
        }
    }

    /// The next connections with a match that takes a broadcast. Fewer than have room mean that there are no more.
    fn next_listeners(&mut self, walk: &mut Walk, sending: &Sending<'_>, listeners: &mut [ConnIx]) -> usize {
        let &Sending { conn, bus, .. } = sending;
        let holds = |name: &str| names_holds(&self.names, &self.buses[bus].names, conn, name);
        let subject = subject(sending, self.conns[conn].id, &holds);
        for (at, place) in listeners.iter_mut().enumerate() {
            match self.matches.next(walk, bus, &subject) {
                Some(to) => *place = to,
                None => return at,
            }
        }
        listeners.len()
    }

    /// A signal to one connection: like a broadcast, it is only for those who want it.
    fn signal(&mut self, host: &mut dyn Host, at: Clock, sending: &Sending<'_>) -> Result<Sent, Errno> {
        let &Sending { conn, bus, parcel, .. } = sending;
        let (to, name) = self.destination(sending)?;
        self.copy_to_monitors(host, at, bus, parcel);
        let holds = |name: &str| names_holds(&self.names, &self.buses[bus].names, conn, name);
        let subject = subject(sending, self.conns[conn].id, &holds);
        let wanted = self.matches.any(&self.conns[to].matches, &subject);
        if wanted && self.may_talk(to, self.conn_creds(to), conn) {
            // kdbus: a signal to one connection that finds no room is gone without a trace.
            let _ = self.deliver(host, at, to, parcel, name, None);
        }
        Ok(Sent::Done(None))
    }

    fn unicast(&mut self, host: &mut dyn Host, at: Clock, sending: &Sending<'_>) -> Result<Sent, Errno> {
        let &Sending { conn, bus, parcel, .. } = sending;
        let (to, name) = self.destination(sending)?;
        self.demand_talk(sending, to)?;
        self.copy_to_monitors(host, at, bus, parcel);
        let delivered = self.deliver(host, at, to, parcel, name, None);
        self.note_refusal(conn, to, delivered)?;
        Ok(Sent::Done(None))
    }

    /// Checks that a connection may have one more call open, in `O(1)`; at the limit, at the cost of looking
    /// into the shared queue of each connection where a message of an ended call may wait.
    fn demand_call(&mut self, host: &mut dyn Host, conn: ConnIx) -> Result<(), Errno> {
        if self.check_call(conn) == Err(CallError::TooMany) {
            // It may have been received there without the bus knowing yet.
            let calls = self.replies.lingering(index(conn)).take(CALLS_MAX as usize);
            let callees: heapless::Vec<_, { CALLS_MAX as usize }> = calls.collect();
            for callee in callees {
                self.drain(host, place(callee));
            }
        }
        self.check_call(conn).map_err(|error| error.errno())
    }

    /// Whether a connection may have one more call open. One that counts too few of those by lane harms nobody: they
    /// take nothing here.
    fn check_call(&self, conn: ConnIx) -> Result<(), CallError> {
        self.replies.check(index(conn))?;
        let open = self.replies.open_calls(index(conn)).saturating_add(self.beside.calls);
        if open < CALLS_MAX { Ok(()) } else { Err(CallError::TooMany) }
    }

    fn call(&mut self, host: &mut dyn Host, at: Clock, sending: &Sending<'_>) -> Result<Sent, Errno> {
        let &Sending { conn, bus, message, parcel, sync } = sending;
        let (cookie, timeout_ns) = (message.header.cookie, message.header.timeout_ns());
        if let Some(token) = sync {
            match self.resume(host, conn, cookie, token) {
                Return::New => {}
                Return::Waiting => return Ok(Sent::Waiting),
                Return::Answered(info) => return Ok(Sent::Done(Some(info))),
                Return::Failed(reason) => return Err(reason),
            }
            if timeout_ns >= DEADLINE_END || timeout_ns <= at.monotonic.as_nanos() {
                return Err(Errno::ETIMEDOUT);
            }
        }
        let (to, name) = self.destination(sending)?;
        self.demand_talk(sending, to)?;
        self.demand_call(host, conn)?;
        let waiting = match sync {
            Some(token) => Some(self.prepare_call(conn, cookie, token)?),
            None => None,
        };
        let mode = waiting.map_or(CallMode::Asynchronous, |place| CallMode::Synchronous {
            token: Self::call_number(place),
        });
        let deadline = Instant::from_nanos(timeout_ns);
        let call = Call { caller: index(conn), replier: index(to), cookie, deadline, sequence: name, mode };
        let opened = self.replies.open_at(call, at.monotonic).map_err(|error| error.errno());
        let delivered = opened.and_then(|tracker| {
            self.copy_to_monitors(host, at, bus, parcel);
            let delivered = self.deliver(host, at, to, parcel, name, Some(tracker));
            if delivered.is_err() {
                self.end_tracker(Some(tracker));
            }
            self.note_refusal(conn, to, delivered).map(|()| tracker)
        });
        match (waiting, delivered) {
            (Some(place), Ok(tracker)) => {
                self.wait_for(place, tracker);
                Ok(Sent::Waiting)
            }
            (None, Ok(_)) => {
                // kdbus: a call whose deadline has passed is delivered, and reported at once.
                self.handle_timeout(host, at);
                Ok(Sent::Done(None))
            }
            (Some(place), Err(error)) => {
                self.forget_call(place);
                Err(error)
            }
            (None, Err(error)) => Err(error),
        }
    }

    fn reply(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        sending: &Sending<'_>,
        cookie: u64,
    ) -> Result<Sent, Errno> {
        let &Sending { conn, bus, parcel, .. } = sending;
        let (to, name) = self.destination(sending)?;
        let tracker = self.replies.find(index(to), index(conn), cookie);
        if let Some(past) = self.beside.answers {
            if (past.caller, past.cookie) != (self.conns[to].known_as, cookie) {
                return Err(Errno::EBADSLT);
            }
            // kdbus: the newest call with that cookie is answered, whichever way it took.
            let is_newest = tracker.is_none_or(|other| !self.replies.is_made_after(other, past.made_at));
            if is_newest && host.end_past_call() {
                self.copy_to_monitors(host, at, bus, parcel);
                let delivered = self.deliver(host, at, to, parcel, name, None);
                self.note_refusal(conn, to, delivered)?;
                return Ok(Sent::Done(None));
            }
        }
        let tracker = tracker.ok_or(Errno::EBADSLT)?;
        let mode = self.replies.get(tracker).map(|call| call.mode).ok_or(Errno::EBADSLT)?;
        match mode {
            CallMode::Asynchronous => {
                // kdbus: the reply uses the call up, even if it does not get through.
                self.end_tracker(Some(tracker));
                self.copy_to_monitors(host, at, bus, parcel);
                let delivered = self.deliver(host, at, to, parcel, name, None);
                self.note_refusal(conn, to, delivered)?;
            }
            CallMode::Synchronous { token } => {
                self.copy_to_monitors(host, at, bus, parcel);
                self.answer(host, tracker, token, parcel)?;
            }
        }
        Ok(Sent::Done(None))
    }

    /// Whom a message goes to, and the number of the name it is addressed to, 0 without one.
    fn destination(&self, sending: &Sending<'_>) -> Result<(ConnIx, u64), Errno> {
        let &Sending { bus, message, .. } = sending;
        let dst_id = message.header.dst_id;
        let Some(name) = message.name else {
            let to = self.find_connection(bus, dst_id).ok_or(Errno::ENXIO)?;
            return if self.conns[to].is_ordinary() { Ok((to, 0)) } else { Err(Errno::ENXIO) };
        };
        let (to, sequence) = self.owner_of(bus, name).ok_or(Errno::ESRCH)?;
        if dst_id != DST_ID_NAME && dst_id != self.conns[to].id {
            return Err(Errno::EREMCHG);
        }
        let no_start = message.header.flags & MsgFlags::NO_AUTO_START.bits() != 0;
        if no_start && self.conns[to].is_activator() {
            return Err(Errno::EADDRNOTAVAIL);
        }
        Ok((to, sequence))
    }

    fn owner_of(&self, bus: BusIx, name: WellKnownName<'_>) -> Option<(ConnIx, u64)> {
        let entry = self.names.find(&self.buses[bus].names, name.as_str().as_bytes())?;
        let owner = self.names.owner(entry)?;
        Some((place(owner.connection), self.names.sequence(entry)?))
    }

    fn demand_talk(&self, sending: &Sending<'_>, to: ConnIx) -> Result<(), Errno> {
        let creds = sending.parcel.caller.unwrap_or_else(|| self.conn_creds(sending.conn));
        if self.may_talk(sending.conn, creds, to) { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// Remembers for [`watch_room`](Self::watch_room) that a receiver had no room.
    fn note_refusal(&mut self, from: ConnIx, to: ConnIx, result: Result<(), Errno>) -> Result<(), Errno> {
        if let Err(Errno::ENOBUFS | Errno::EMFILE | Errno::EXFULL) = result {
            self.refused(from, to);
            self.conns[to].counters.refused += 1;
        }
        result
    }
}

/// How a SEND goes on.
enum Sent {
    Done(Option<MsgInfo>),
    Waiting,
}

fn subject<'m>(sending: &'m Sending<'_>, sender: u64, holds: &'m dyn Fn(&str) -> bool) -> Subject<'m> {
    let (generation, filter) = sending.message.filter.unwrap_or((0, &[]));
    Subject::Signal { sender, destination: sending.message.header.dst_id, generation, filter, holds }
}

/// Whether a connection holds a name now.
fn names_holds(
    names: &super::names::NameTable<'_>,
    bus: &super::names::BusNames,
    conn: ConnIx,
    name: &str,
) -> bool {
    let owner = names.find(bus, name.as_bytes()).and_then(|entry| names.owner(entry));
    owner.is_some_and(|owner| owner.connection == index(conn))
}

#[cfg(test)]
#[path = "send_tests.rs"]
mod tests;
