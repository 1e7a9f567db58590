//! What a worker sends, and what it asks the bus for.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use kdbus_core::Instant;
use kdbus_core::abi::{ListFlags, NameFlags};
use kdbus_core::client::{CallError, Failure, Message, NameRule, Part, Rule, SendError, Standing};
use kdbus_linux::local::SealedMemfd;
use zerocopy::IntoBytes;

use crate::client::{ACTIVATED, Arrival, Bus, ClientArguments, NAMES, Outcome, TOPICS, name, topic};
use crate::payload::{self, Stamp};
use crate::point::Point;
use crate::record::{End, How, Kind, MessageId, Record, Sort, now};
use crate::worker::{Plan, Session, To};

/// The one match that lets name notifications pass.
const NAME_MATCH: u64 = 100;

/// A payload, in its parts.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    bytes: Vec<u8>,
    file: Option<SealedMemfd>,
    zeros: u64,
    descriptors: Vec<OwnedFd>,
    /// Bytes of a buffer that it lends.
    lent: u64,
    /// How urgent it is, if that matters: what lends comes behind what introduces.
    priority: Option<i64>,
}

impl Payload {
    /// What introduces a slab, or lends so many bytes of it.
    pub(crate) fn of_slab(bytes: Vec<u8>, descriptors: Vec<OwnedFd>, lent: u64) -> Self {
        Self { bytes, descriptors, lent, priority: Some(0), ..Self::default() }
    }
}

impl Session<'_> {
    pub(crate) fn send_plain(&mut self) -> Outcome<()> {
        let Some(to) = self.choose() else { return Ok(()) };
        self.send(Plan { sort: Sort::Plain, to, answers: MessageId::default(), timeout: Duration::ZERO })?;
        self.context.reach(Point::BetweenSendAndReceive, self.bus.id())
    }

    pub(crate) fn send_when_room(&mut self) -> Outcome<()> {
        let Some(to) = self.choose() else { return Ok(()) };
        let timeout = Duration::from_millis(self.context.random.u64(0..30));
        self.send(Plan { sort: Sort::WhenRoom, to, answers: MessageId::default(), timeout })
    }

    pub(crate) fn call_and_go_on(&mut self) -> Outcome<()> {
        if self.state.pending.len() >= 100 {
            return Ok(());
        }
        self.call(Sort::Call, 1..300)
    }

    pub(crate) fn call_inside_send(&mut self) -> Outcome<()> {
        self.call(Sort::SyncCall, 1..60)
    }

    pub(crate) fn call_and_wait(&mut self) -> Outcome<()> {
        self.call(Sort::AwaitedCall, 1..60)
    }

    fn call(&mut self, sort: Sort, ms: std::ops::Range<u64>) -> Outcome<()> {
        let Some(to) = self.choose() else { return Ok(()) };
        let timeout = Duration::from_millis(self.context.random.u64(ms));
        self.send(Plan { sort, to, answers: MessageId::default(), timeout })?;
        if sort == Sort::Call { self.context.reach(Point::InsideCall, self.bus.id()) } else { Ok(()) }
    }

    pub(crate) fn signal(&mut self) -> Outcome<()> {
        let about = self.context.random.usize(0..TOPICS.len());
        let one = if self.context.once_in(4) { self.peer() } else { None };
        let sort = if one.is_some() { Sort::Signal } else { Sort::Broadcast };
        let to = To::Topic(about, one);
        self.send(Plan { sort, to, answers: MessageId::default(), timeout: Duration::ZERO })
    }

    pub(crate) fn peer(&mut self) -> Option<u64> {
        if self.peers.is_empty() {
            return None;
        }
        Some(self.peers[self.context.random.usize(0..self.peers.len())])
    }

    fn choose(&mut self) -> Option<To> {
        if self.favourite.is_some() && self.context.random.u32(0..100) < 40 {
            return self.favourite;
        }
        if self.context.random.u32(0..100) < 60 {
            return self.peer().map(To::Id);
        }
        Some(To::Name(self.context.random.usize(0..NAMES.len())))
    }

    fn payload(&mut self, sort: Sort, id: MessageId, answers: MessageId) -> Outcome<Payload> {
        let ClientArguments { number, incarnation, .. } = self.context.arguments;
        // Some clients send so much that lanes have no room for it beside what their receivers hold.
        let is_heavy = (number + incarnation).is_multiple_of(4);
        let (short, medium, long) = if is_heavy { (40, 60, 85) } else { (70, 95, 99) };
        let random = &mut self.context.random;
        let inline = match random.u32(0..100) {
            lot if lot < short => random.usize(0..200),
            lot if lot < medium => random.usize(0..4000),
            lot if lot < long => random.usize(4000..20_000),
            _ => random.usize(20_000..80_000),
        };
        let in_file = if random.u32(0..100) < 5 { random.usize(1..30_000) } else { 0 };
        let zeros = if random.u32(0..100) < 3 { random.u64(1..10_000) } else { 0 };
        let mut descriptors = Vec::new();
        if !sort.is_signal() && random.u32(0..100) < 4 {
            let file =
                if random.bool() { File::open("/dev/null")?.into() } else { UnixStream::pair()?.0.into() };
            descriptors.push(file);
        }
        let stamp = Stamp::new(id, answers, (inline + in_file) as u64);
        let mut bytes = stamp.as_bytes().to_vec();
        bytes.resize(payload::STAMP + inline, 0);
        payload::fill(id, 0, &mut bytes[payload::STAMP..]);
        let file = if in_file == 0 {
            None
        } else {
            let mut rest = vec![0; in_file];
            payload::fill(id, inline as u64, &mut rest);
            Some(SealedMemfd::new(&rest)?)
        };
        Ok(Payload { bytes, file, zeros, descriptors, ..Payload::default() })
    }

    /// Sends what `plan` says, and for calls that wait, awaits the answer. Both are written down: that it begins,
    /// and how it went.
    pub(crate) fn send(&mut self, plan: Plan) -> Outcome<()> {
        let id = self.context.next_id();
        let payload = self.payload(plan.sort, id, plan.answers)?;
        self.send_payload(plan, id, &payload).map(drop)
    }

    /// The same with this payload. False if the bus has refused it.
    pub(crate) fn send_payload(&mut self, plan: Plan, id: MessageId, payload: &Payload) -> Outcome<bool> {
        let Plan { sort, to, answers, timeout } = plan;
        let mut parts: Vec<Part<'_, BorrowedFd<'_>>> = Vec::new();
        let in_file = payload.file.as_ref().map_or(0, SealedMemfd::len);
        if let Some(file) = &payload.file {
            parts.push(Part::Memfd { fd: file.as_fd(), start: 0, size: in_file });
        }
        if payload.zeros > 0 {
            parts.push(Part::Zeros(payload.zeros));
        }
        let priority = match to {
            To::Reply(to) => to.priority,
            _ => payload.priority.unwrap_or_else(|| self.context.random.i64(-4..=4)),
        };
        let (peer, name_number) = match to {
            To::Id(peer) => (peer, 0),
            To::Name(index) => (0, index as u32 + 1),
            To::Topic(index, one) => (one.unwrap_or(0), index as u32 + 1),
            To::Reply(to) => (to.id, 0),
        };
        let message = match to {
            To::Id(peer) => Message::to(peer),
            To::Name(index) => Message::to_name(name(index)),
            To::Topic(index, one) => {
                let signal = Message::signal(topic(index));
                one.map_or(signal, |peer| signal.only_to(peer))
            }
            To::Reply(to) => Message::reply(to),
        };
        let descriptors: Vec<_> = payload.descriptors.iter().map(AsFd::as_fd).collect();
        let message = message.payload(&payload.bytes).parts(&parts).fds(&descriptors).priority(priority);
        // A signal's cookie is the hash of its topic; a call that waits has one of the connection's own.
        let message = if sort.is_signal() || matches!(sort, Sort::SyncCall | Sort::AwaitedCall) {
            message
        } else {
            message.cookie(id.serial)
        };
        let own = self.bus.id();
        if sort == Sort::SyncCall {
            self.context.reach(Point::InsideSyncCall, own)?;
        }
        let began_at = now();
        let deadline = Instant::from_nanos(began_at).after(timeout);
        let record = Record {
            detail: sort.code(),
            name: name_number,
            began_at,
            own,
            peer,
            id,
            answers,
            cookie: id.serial,
            priority,
            sequence: payload.lent,
            bytes: payload.bytes.len() as u64 + in_file + payload.zeros,
            deadline: if sort.is_call() { deadline.as_nanos() } else { 0 },
            ..Record::default()
        };
        self.context.note(Kind::Sending, record)?;
        let sent = match sort {
            Sort::SyncCall => {
                let ended = self.bus.call_blocking(&message, deadline);
                return self.end_call(record, ended).map(|()| true);
            }
            Sort::AwaitedCall => {
                let ended = self.bus.call(&message, deadline).wait();
                return self.end_call(record, ended).map(|()| true);
            }
            Sort::Call => {
                self.state.pending.insert(id.serial, (id, record.deadline));
                self.bus.send(&message.expect_reply(deadline))
            }
            Sort::WhenRoom => self.bus.send_when_room_blocking(&message, deadline),
            _ => self.bus.send(&message),
        };
        if sent.is_err() {
            self.state.pending.remove(&id.serial);
        }
        let accepted = sent.is_ok();
        self.note_sent(record, sent.err())?;
        Ok(accepted)
    }

    fn note_sent(&mut self, record: Record, error: Option<SendError>) -> Outcome<()> {
        if let Some(error) = error.filter(|error| error.is_broken()) {
            return Err(format!("sending failed: {error}").into());
        }
        let result = error.map_or(0, |error| error.errno().raw().unsigned_abs());
        self.context.note(Kind::Sent, Record { result, at: 0, ..record })
    }

    /// Writes down how a call ended that waited.
    fn end_call(&mut self, record: Record, ended: Result<Arrival<'_>, CallError>) -> Outcome<()> {
        let (end, result) = match &ended {
            Ok(_) | Err(CallError::Remote(_)) => (End::Reply, 0),
            Err(CallError::TimedOut) => (End::TimedOut, 0),
            Err(CallError::PeerDied) => (End::Dead, 0),
            Err(CallError::Interrupted) => (End::Interrupted, 0),
            Err(CallError::InboxFull | CallError::Undeliverable(_)) => (End::Abandoned, 0),
            Err(CallError::NotSent(error)) => (End::NotSent, error.errno().raw().unsigned_abs()),
            Err(error) => return Err(format!("a call failed: {error}").into()),
        };
        let mut answers = MessageId::default();
        if let Ok(answer) = &ended {
            answers = self.context.note_received(record.own, How::Answer, answer)?.id;
        }
        drop(ended);
        // `priority` of this record is not needed; `sequence` says how it ended, `answers` by what.
        let record = Record { result, sequence: u64::from(end.code()), answers, at: 0, ..record };
        self.context.note(Kind::Sent, record)
    }

    pub(crate) fn change_names(&mut self) -> Outcome<()> {
        let index = self.context.random.usize(0..NAMES.len());
        let own = self.bus.id();
        let record = Record { own, name: index as u32 + 1, began_at: now(), ..Record::default() };
        if self.state.names[index] && self.context.once_in(3) {
            let released = self.bus.release(name(index));
            if let Err(error) = released
                && error.is_broken()
            {
                return Err(error.into());
            }
            self.state.names[index] = false;
            return self.context.note(Kind::NotOwner, Record { at: now(), ..record });
        }
        // With waiters and replacement, messages stay where they are; a name that is handed over has neither,
        // so that its messages come in one order.
        let mut flags = NameFlags::empty();
        if index < ACTIVATED {
            for flag in [NameFlags::QUEUE, NameFlags::ALLOW_REPLACEMENT, NameFlags::REPLACE_EXISTING] {
                if self.context.random.bool() {
                    flags |= flag;
                }
            }
        }
        self.context.note(Kind::Acquiring, record)?;
        let (bus, acquire) = (self.bus, |bus: &Bus| bus.acquire(name(index), flags));
        let acquired = match index {
            ACTIVATED.. => self.context.inside(Point::Claiming, || acquire(bus)),
            _ => acquire(bus),
        };
        match acquired {
            Ok(acquired) if acquired.standing != Standing::LeftQueue => {
                self.state.names[index] = true;
                self.context.note(Kind::Acquired, Record { at: now(), ..record })?;
                if acquired.standing == Standing::Primary && index >= ACTIVATED {
                    self.context.reach(Point::AfterHandOver, own)?;
                }
                if self.state.names.iter().filter(|owned| **owned).count() > 1 {
                    self.context.reach(Point::OwningNames, own)?;
                }
                Ok(())
            }
            Err(error) if error.is_broken() => Err(error.into()),
            _ => {
                self.state.names[index] = false;
                self.context.note(Kind::NotOwner, Record { at: now(), ..record })
            }
        }
    }

    pub(crate) fn change_matches(&mut self) -> Outcome<()> {
        let own = self.bus.id();
        let index = self.context.random.usize(0..TOPICS.len() + 1);
        if index == TOPICS.len() {
            // Notifications of names, on and off. Nothing follows from them but that they are received.
            let any = NameRule::default();
            return match self.bus.remove_match(NAME_MATCH) {
                Err(error) if !error.is_broken() => {
                    Ok(self.bus.add_match(NAME_MATCH, &[Rule::NameChange(any)])?)
                }
                other => Ok(other?),
            };
        }
        let record = Record { own, name: index as u32 + 1, ..Record::default() };
        let cookie = index as u64 + 1;
        if self.state.topics[index] {
            self.context.note(Kind::Unmatching, record)?;
            self.bus.remove_match(cookie)?;
            self.state.topics[index] = false;
            return Ok(());
        }
        self.bus.add_match(cookie, &[Rule::Topic(topic(index).into())])?;
        self.state.topics[index] = true;
        self.context.note(Kind::Matched, record)
    }

    /// Opens a lane to somebody, if the daemon gives one. After long refusals, such as while a monitor was there, the
    /// library would not ask for a while.
    pub(crate) fn open_lane(&mut self) -> Outcome<()> {
        let transport = self.bus.transport();
        let to = self.choose();
        let opened = match to {
            Some(To::Id(peer)) => transport.open_lane(peer),
            Some(To::Name(index)) => transport.open_lane_to_name(name(index)),
            _ => return Ok(()),
        };
        if opened.is_ok() {
            self.favourite = to;
        }
        match opened {
            Err(Failure::Broken(errno)) => Err(format!("asking for a lane failed: {errno}").into()),
            _ => Ok(()),
        }
    }

    pub(crate) fn look_around(&mut self) -> Outcome<()> {
        let listing = match self.bus.list(ListFlags::UNIQUE) {
            Ok(listing) => listing,
            // No room for the answer beside what is held.
            Err(error) if !error.is_broken() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        self.peers = listing.iter().map(|peer| peer.id).collect();
        drop(listing);
        // Now and then somebody who is long gone, or oneself.
        self.peers.push(self.context.random.u64(1..self.bus.id() + 1));
        Ok(())
    }
}
