//! A transport for tests that says what it is told to.

extern crate std;

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::connection::Connection;
use super::hello::Hello;
use super::transport::{Failure, Found, Incoming, Outgoing, Transport};
use crate::Instant;
use crate::abi::{
    BloomParameter, Cmd, CmdHello, Command, Errno, ItemType, ItemWriter, Items, Msg, MsgInfo, NameFlags,
    RecvFlags, align8,
};

pub(super) const OWN_ID: u64 = 7;

/// A message as it lies in the pool, with its descriptors.
#[derive(Clone, Debug)]
pub(super) struct Bytes {
    pub(super) bytes: Vec<u8>,
    pub(super) fds: Vec<u32>,
}

/// A message that was sent: header, items and payload.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    pub(super) header: Msg,
    pub(super) payload: Vec<u8>,
}

type Step = Box<dyn FnOnce(&Script)>;
type Answer = Box<dyn FnMut(Command, &mut [u8]) -> Result<(), Failure>>;

/// What the test and the transport share.
#[derive(Default)]
pub(super) struct Script {
    pub(super) queue: RefCell<VecDeque<Bytes>>,
    pub(super) published: RefCell<BTreeMap<u64, Vec<u8>>>,
    pub(super) sent: RefCell<Vec<Sent>>,
    pub(super) commands: RefCell<Vec<(Command, Vec<u8>)>>,
    /// Results of the next sends; after them all succeed.
    pub(super) refusals: RefCell<VecDeque<Failure>>,
    /// Answers commands other than HELLO.
    pub(super) answer: RefCell<Option<Answer>>,
    /// What waiting brings, one step for each wait that is not over at once.
    pub(super) steps: RefCell<VecDeque<Step>>,
    pub(super) broken: Cell<bool>,
    /// What every receive is refused with.
    pub(super) unreceivable: Cell<Option<Errno>>,
    pub(super) lost: Cell<u64>,
    pub(super) now: Cell<u64>,
    pub(super) watches_room: Cell<bool>,
    /// Filters of the bus other than 64 bytes and 8 hashes.
    pub(super) bloom: Cell<Option<BloomParameter>>,
    next: Cell<u64>,
}

#[derive(Clone, Default)]
pub(super) struct Fake(pub(super) Rc<Script>);

impl Script {
    /// Queues a message.
    pub(super) fn queue(&self, message: Bytes) {
        self.queue.borrow_mut().push_back(message);
    }

    /// Offsets of slices that nobody has freed.
    pub(super) fn held(&self) -> usize {
        self.published.borrow().len()
    }

    /// Cookies of the messages sent so far.
    pub(super) fn cookies(&self) -> Vec<u64> {
        self.sent.borrow().iter().map(|sent| sent.header.cookie).collect()
    }

    /// How often `command` was given.
    pub(super) fn count(&self, command: Command) -> usize {
        self.commands.borrow().iter().filter(|(given, _)| *given == command).count()
    }

    fn publish(&self, bytes: Vec<u8>) -> (u64, u64) {
        let (offset, size) = (self.next.get(), bytes.len() as u64);
        self.next.set(offset + align8(size).max(8));
        self.published.borrow_mut().insert(offset, bytes);
        (offset, size)
    }

    fn check(&self) -> Result<(), Failure> {
        if self.broken.get() { Err(Failure::Broken(Errno::ECONNRESET)) } else { Ok(()) }
    }
}

impl Transport for Fake {
    type Fd = u32;
    type BorrowedFd<'a> = u32;
    type Slice<'a> = Vec<u8>;

    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure> {
        self.0.check()?;
        self.0.commands.borrow_mut().push((command, arg.to_vec()));
        if command == Command::Hello {
            let mut slice = [0; 32];
            let bloom = self.0.bloom.get().unwrap_or(BloomParameter { size: 64, n_hash: 8 });
            ItemWriter::new(&mut slice).record(ItemType::BLOOM_PARAMETER, &bloom).unwrap();
            let (hello, _) = CmdHello::mut_from_prefix(arg).unwrap();
            (hello.offset, hello.items_size) = self.0.publish(slice.to_vec());
            hello.id = OWN_ID;
            return Ok(());
        }
        if let Some(answer) = self.0.answer.borrow_mut().as_mut() {
            return answer(command, arg);
        }
        if command == Command::NameAcquire {
            let (head, _) = Cmd::mut_from_prefix(arg).unwrap();
            head.return_flags = (NameFlags::PRIMARY | NameFlags::ACQUIRED).bits();
        }
        Ok(())
    }

    fn send(&self, message: &mut Outgoing<'_, u32>) -> Result<(), Failure> {
        self.0.check()?;
        if let Some(failure) = self.0.refusals.borrow_mut().pop_front() {
            return Err(failure);
        }
        let header = Msg::read_from_prefix(message.message).unwrap().0;
        self.0.sent.borrow_mut().push(Sent { header, payload: message.payload.concat() });
        Ok(())
    }

    fn call_into(
        &self,
        _: &mut Outgoing<'_, u32>,
        _: Option<u32>,
        _: &mut Incoming<u32>,
    ) -> Result<(), Failure> {
        Err(Failure::Refused(Errno::EOPNOTSUPP))
    }

    fn recv_into(
        &self,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<u32>,
    ) -> Result<Found, Failure> {
        self.0.check()?;
        if let Some(errno) = self.0.unreceivable.get() {
            return Err(Failure::Refused(errno));
        }
        let dropped = self.0.lost.replace(0);
        let mut queue = self.0.queue.borrow_mut();
        let urgency = |bytes: &Bytes| Msg::read_from_prefix(&bytes.bytes).map_or(0, |(msg, _)| msg.priority);
        let at = if flags.contains(RecvFlags::USE_PRIORITY) {
            let best = queue.iter().map(urgency).filter(|best| *best <= priority).min();
            best.and_then(|best| queue.iter().position(|bytes| urgency(bytes) == best))
        } else if queue.is_empty() {
            None
        } else {
            Some(0)
        };
        let Some(at) = at else { return Ok(Found { message: false, dropped }) };
        if flags.contains(RecvFlags::PEEK) {
            let (offset, msg_size) = self.0.publish(queue[at].bytes.clone());
            message.info = MsgInfo { offset, msg_size, return_flags: 0 };
            return Ok(Found { message: true, dropped });
        }
        let Bytes { bytes, fds } = queue.remove(at).unwrap();
        if flags.contains(RecvFlags::DROP) {
            return Ok(Found { message: false, dropped });
        }
        let (offset, msg_size) = self.0.publish(bytes);
        message.info = MsgInfo { offset, msg_size, return_flags: 0 };
        message.fds.extend(fds);
        Ok(Found { message: true, dropped })
    }

    fn slice(&self, offset: u64, size: u64) -> Option<Vec<u8>> {
        let published = self.0.published.borrow();
        published.get(&offset).filter(|bytes| bytes.len() as u64 == size).cloned()
    }

    fn free(&self, offset: u64) {
        assert!(self.0.published.borrow_mut().remove(&offset).is_some(), "slice {offset} is not held");
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.0.now.get())
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Failure> {
        self.0.check()?;
        if !self.0.queue.borrow().is_empty() {
            return Ok(());
        }
        let step = self.0.steps.borrow_mut().pop_front();
        match (step, deadline) {
            (Some(step), _) => step(&self.0),
            (None, Some(deadline)) => self.0.now.set(self.0.now.get().max(deadline.as_nanos())),
            (None, None) => return Err(Failure::Refused(Errno::EIO)),
        }
        self.0.check()
    }

    fn fd(&self) -> Option<i32> {
        None
    }

    fn watch_room(&self, _: u64) -> Result<bool, Failure> {
        Ok(self.0.watches_room.get())
    }
}

/// A connection over a fake transport, and the script to direct it with.
pub(super) fn connect<const CALLS: usize, const INBOX: usize>() -> (Connection<Fake, CALLS, INBOX>, Rc<Script>)
{
    let fake = Fake::default();
    let script = Rc::clone(&fake.0);
    (Connection::with_capacities(fake, &Hello::new()).unwrap(), script)
}

/// A message with items and payload as a bus would put it into the pool.
pub(super) fn message(header: Msg, items: &[(ItemType, &[u8])], payload: &[u8]) -> Bytes {
    let mut buffer = [0; 1024];
    let mut writer = ItemWriter::behind(&mut buffer, Msg::SIZE).unwrap();
    let base = |end: usize| align8(end as u64);
    if !payload.is_empty() {
        let item = 32;
        let rest: u64 = items.iter().map(|(_, payload)| align8(16 + payload.len() as u64)).sum();
        let offset = base(Msg::SIZE + item + rest as usize);
        let vec = crate::abi::Vec { size: payload.len() as u64, address: offset };
        writer.record(ItemType::PAYLOAD_OFF, &vec).unwrap();
    }
    for (kind, payload) in items {
        writer.bytes(*kind, payload).unwrap();
    }
    let size = writer.len();
    let header = Msg { size: size as u64, dst_id: OWN_ID, ..header };
    buffer[..Msg::SIZE].copy_from_slice(header.as_bytes());
    let mut bytes = buffer[..base(size) as usize].to_vec();
    bytes.extend_from_slice(payload);
    bytes.resize(base(bytes.len()) as usize, 0);
    assert!(Items::new(&bytes[Msg::SIZE..size]).all(|item| item.is_ok()));
    Bytes { bytes, fds: Vec::new() }
}

/// A plain message from connection 3.
pub(super) fn plain(cookie: u64, priority: i64) -> Bytes {
    message(Msg { src_id: 3, cookie, priority, payload_type: 1, ..Msg::default() }, &[], b"plain")
}

/// A reply from connection 3.
pub(super) fn reply(to: u64, payload: &[u8]) -> Bytes {
    message(Msg { src_id: 3, timeout_or_reply: to, payload_type: 1, ..Msg::default() }, &[], payload)
}

/// A notification of the bus.
pub(super) fn notification(kind: ItemType, payload: &[u8], cookie: u64) -> Bytes {
    message(Msg { timeout_or_reply: cookie, ..Msg::default() }, &[(kind, payload)], b"")
}
