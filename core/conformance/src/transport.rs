//! The suite through a client's transport: the same cases, as far as a well-behaved client can express them.

use std::cell::{Cell, Ref, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::thread::JoinHandle;

use kdbus_core::Instant;
use kdbus_core::abi::{
    Cmd, CmdFree, CmdHello, CmdRecv, CmdSend, Command, Errno, ITEM_HEADER, ItemType, Items, Msg, MsgInfo,
    RecvFlags, RecvReturnFlags, SendFlags,
};
use kdbus_core::client::{Failure, Incoming, Outgoing, Transport};
use zerocopy::{FromBytes, IntoBytes};

use crate::suite::skip;
use crate::world::{BadAddress, Body, Ended, Node, Payload, Poll, Skip, Who, World};

/// A world on whose buses clients can connect by a [`Transport`].
pub trait Transported: World {
    /// What the clients use.
    type Transport: Transport;

    /// Opens an endpoint.
    ///
    /// # Errors
    ///
    /// What `open` reports.
    fn connect(&mut self, user: Self::User, bus: &str, endpoint: &str) -> Result<Self::Transport, Errno>;

    /// The descriptor of this number, to send it; `None` if it is not open.
    fn borrow<'a>(
        &'a self,
        user: Self::User,
        number: i32,
    ) -> Option<<Self::Transport as Transport>::BorrowedFd<'a>>
    where
        Self::Transport: 'a;

    /// Keeps a received descriptor and returns its number in the process of `user`.
    fn keep(&mut self, user: Self::User, fd: <Self::Transport as Transport>::Fd) -> i32;

    /// Lets a call wait in a thread of its own.
    ///
    /// # Errors
    ///
    /// The transport, if it cannot leave its thread.
    fn wait_apart(
        &mut self,
        user: Self::User,
        transport: Self::Transport,
        call: CallApart,
    ) -> Result<Apart<Self::Transport>, Self::Transport> {
        let _ = (user, call);
        Err(transport)
    }
}

/// A thread in which a call waits, and which hands the transport back.
pub type Apart<T> = JoinHandle<(T, Result<Incoming<<T as Transport>::Fd>, Failure>)>;

/// A call for a thread of its own.
#[derive(Debug)]
pub struct CallApart {
    message: Vec<u8>,
    payload: Vec<Vec<u8>>,
    /// Number of the descriptor that cancels it.
    pub cancel: Option<i32>,
}

impl CallApart {
    /// Makes the call, which `cancel` ends.
    ///
    /// # Errors
    ///
    /// [`Failure`], as [`Transport::call`].
    pub fn make<T: Transport>(
        mut self,
        transport: &T,
        cancel: Option<T::BorrowedFd<'_>>,
    ) -> Result<Incoming<T::Fd>, Failure> {
        let payload: Vec<_> = self.payload.iter().map(Vec::as_slice).collect();
        let mut outgoing = Outgoing { message: &mut self.message, payload: &payload, fds: &[], begun: None };
        transport.call(&mut outgoing, cancel)
    }
}

/// A call that waits, or has ended.
pub struct TransportCall<W: Transported> {
    client: Rc<Client<W>>,
    command: Vec<u8>,
    thread: Apart<W::Transport>,
}

/// A world whose endpoints are opened by a [`Transport`], and all commands on them go through it.
///
/// What a transport cannot be asked for is skipped: malformed SEND and RECV, unknown request numbers, memory
/// that cannot be read, and what else a client does while it waits for a call. Calls wait in threads of their own, where
/// the transport [can](Transported::wait_apart).
#[derive(Debug)]
pub struct OverTransport<W>(pub W);

/// An open control file, or a client.
pub enum TransportHandle<W: Transported> {
    /// Not through the transport: clients only open endpoints.
    Control(W::Handle),
    /// A client.
    Client(Rc<Client<W>>),
}

/// One transport, and what a case may ask of it later.
pub struct Client<W: Transported> {
    /// Away while a call waits in it.
    transport: RefCell<Option<W::Transport>>,
    user: W::User,
    pool_size: Cell<u64>,
    /// Offsets of messages that were received or shown, and not given back.
    received: RefCell<BTreeSet<u64>>,
    /// Numbers of the descriptors of received messages, in the order of [`Incoming::fds`].
    installed: RefCell<BTreeMap<u64, Vec<i32>>>,
    /// Lost broadcasts that a look at the queue brought to light.
    lost: Cell<u64>,
}

impl<W: Transported> Client<W> {
    fn transport(&self) -> Ref<'_, W::Transport> {
        Ref::map(self.transport.borrow(), |transport| match transport {
            Some(transport) => transport,
            None => skip("a client that waits for a call does nothing else"),
        })
    }
}

impl<W: Transported> OverTransport<W> {
    fn received(
        &mut self,
        client: &Client<W>,
        incoming: Incoming<<W::Transport as Transport>::Fd>,
    ) -> MsgInfo {
        let numbers = incoming.fds.into_iter().map(|fd| self.0.keep(client.user, fd)).collect();
        client.installed.borrow_mut().insert(incoming.info.offset, numbers);
        client.received.borrow_mut().insert(incoming.info.offset);
        incoming.info
    }

    fn recv(&mut self, client: &Client<W>, arg: &mut [u8]) -> Result<(), Errno> {
        let Ok((mut command, [])) = CmdRecv::read_from_prefix(arg) else {
            skip("a transport's RECV has no items");
        };
        let Some(flags) = RecvFlags::from_bits(command.flags).filter(|_| command.size == arg.len() as u64)
        else {
            skip("a transport's RECV is well formed");
        };
        command.msg = MsgInfo { offset: client.pool_size.get(), ..MsgInfo::default() };
        let result = client.transport().recv(flags, command.priority);
        let result = result.map_err(Failure::errno).and_then(|received| {
            command.dropped_msgs = received.dropped + client.lost.take();
            command.return_flags =
                if command.dropped_msgs == 0 { 0 } else { RecvReturnFlags::DROPPED_MSGS.bits() };
            match received.message {
                Some(incoming) if flags.contains(RecvFlags::PEEK) => {
                    client.received.borrow_mut().insert(incoming.info.offset);
                    command.msg = incoming.info;
                }
                Some(incoming) => command.msg = self.received(client, incoming),
                // A transport does not tell whether there was something to drop.
                None if flags.contains(RecvFlags::DROP) => {}
                None => return Err(Errno::EAGAIN),
            }
            Ok(())
        });
        arg.copy_from_slice(command.as_bytes());
        result
    }

    fn free(client: &Client<W>, arg: &mut [u8]) -> Result<(), Errno> {
        let offset = match CmdFree::read_from_prefix(arg) {
            Ok((command, [])) if (command.size, command.flags) == (arg.len() as u64, 0) => command.offset,
            _ => u64::MAX,
        };
        client.installed.borrow_mut().remove(&offset);
        if client.received.borrow_mut().remove(&offset) {
            client.transport().free(offset);
            return Ok(());
        }
        client.transport().command(Command::Free, arg).map_err(Failure::errno)
    }

    fn send_through(&self, client: &Client<W>, command: &[u8], body: Option<Body<'_>>) -> Result<(), Errno> {
        let plain = matches!(
            CmdSend::read_from_prefix(command),
            Ok((command, [])) if (command.size, command.flags) == (size_of::<CmdSend>() as u64, 0)
        );
        let Some(body) = body.filter(|_| plain) else {
            skip("a transport's SEND is well formed");
        };
        if body.message.get(15).is_some_and(|byte| byte & 0x80 != 0) {
            skip("a transport does not ask about messages");
        }
        let mut message = body.message.to_vec();
        let mut fds = Vec::new();
        for at in fd_places(&message) {
            let number = self.0.borrow(client.user, fd_at(&message, at));
            let place = number.map_or(-1, |fd| {
                fds.push(fd);
                fds.len() as i32 - 1
            });
            message[at..at + 4].copy_from_slice(&place.to_ne_bytes());
        }
        let mut payload = Vec::new();
        for memory in body.payload {
            match memory {
                Payload::Bytes(bytes) => payload.push(&bytes[..]),
                Payload::Unmapped | Payload::Kernel => skip("a transport's payload can be read"),
            }
        }
        let mut outgoing = Outgoing { message: &mut message, payload: &payload, fds: &fds, begun: None };
        client.transport().send(&mut outgoing).map_err(Failure::errno)
    }
}

/// Offsets of the descriptor numbers in a message: those of FDS first, then the memfds.
fn fd_places(message: &[u8]) -> Vec<usize> {
    let area = message.get(Msg::SIZE..).unwrap_or_default();
    let items = || Items::new(area).map_while(Result::ok);
    let start = |at: usize| Msg::SIZE + at + ITEM_HEADER;
    let passed = items().filter(|item| item.kind == ItemType::FDS);
    let passed = passed.flat_map(|item| (0..item.payload.len() / 4).map(move |i| start(item.at) + 4 * i));
    let memfds = items().filter(|item| item.kind == ItemType::PAYLOAD_MEMFD && item.payload.len() == 24);
    passed.chain(memfds.map(|item| start(item.at) + 16)).collect()
}

fn fd_at(message: &[u8], at: usize) -> i32 {
    message[at..].first_chunk().map_or(-1, |number| i32::from_ne_bytes(*number))
}

impl<W: Transported> World for OverTransport<W> {
    type User = W::User;
    type Handle = TransportHandle<W>;
    type Call = TransportCall<W>;

    fn owner(&mut self) -> W::User {
        self.0.owner()
    }

    fn user(&mut self, number: usize) -> Result<W::User, Skip> {
        self.0.user(number)
    }

    fn sibling(&mut self, of: W::User) -> Result<W::User, Skip> {
        self.0.sibling(of)
    }

    fn apart(&mut self, of: W::User) -> Result<W::User, Skip> {
        self.0.apart(of)
    }

    fn who(&mut self, user: W::User) -> Who {
        self.0.who(user)
    }

    fn become_user(&mut self, user: W::User, number: usize) -> Result<(), Skip> {
        self.0.become_user(user, number)
    }

    fn open_control(&mut self, user: W::User) -> Result<Self::Handle, Errno> {
        self.0.open_control(user).map(TransportHandle::Control)
    }

    fn open(&mut self, user: W::User, bus: &str, endpoint: &str) -> Result<Self::Handle, Errno> {
        let client = Client {
            transport: RefCell::new(Some(self.0.connect(user, bus, endpoint)?)),
            user,
            pool_size: Cell::new(0),
            received: RefCell::default(),
            installed: RefCell::default(),
            lost: Cell::new(0),
        };
        Ok(TransportHandle::Client(Rc::new(client)))
    }

    fn close(&mut self, handle: Self::Handle) {
        match handle {
            TransportHandle::Control(handle) => self.0.close(handle),
            TransportHandle::Client(client) => drop(client),
        }
    }

    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        self.0.node(bus, endpoint)
    }

    fn ioctl(&mut self, handle: &Self::Handle, request: u32, arg: &mut [u8]) -> Result<(), Errno> {
        let client = match handle {
            TransportHandle::Control(handle) => return self.0.ioctl(handle, request, arg),
            TransportHandle::Client(client) => Rc::clone(client),
        };
        match Command::from_request(request) {
            None => skip("a transport knows its commands"),
            Some(Command::Send) => skip("a transport's SEND is well formed"),
            Some(Command::Recv) => self.recv(&client, arg),
            Some(Command::Free) => Self::free(&client, arg),
            Some(command) => {
                if let Err(failure) = client.transport().command(command, arg) {
                    let setup = [Command::BusMake, Command::EndpointMake, Command::Hello].contains(&command);
                    let malformed = Cmd::read_from_prefix(arg).is_ok_and(|(cmd, _)| cmd.flags != 0);
                    if (setup || malformed) && failure == Failure::Broken(Errno::ECONNRESET) {
                        skip("a broken transport says so to everything");
                    }
                    return Err(failure.errno());
                }
                if command == Command::Hello
                    && let Ok((hello, _)) = CmdHello::read_from_prefix(arg)
                {
                    client.pool_size.set(hello.pool_size);
                }
                Ok(())
            }
        }
    }

    fn ioctl_at(
        &mut self,
        _: &Self::Handle,
        _: u32,
        _: &[u8],
        _: BadAddress,
    ) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("a transport's arguments can be read"))
    }

    fn send(
        &mut self,
        handle: &Self::Handle,
        command: &mut [u8],
        body: Option<Body<'_>>,
    ) -> Result<(), Errno> {
        match handle {
            TransportHandle::Control(handle) => self.0.send(handle, command, body),
            TransportHandle::Client(client) => self.send_through(client, command, body),
        }
    }

    fn start(
        &mut self,
        handle: &Self::Handle,
        command: Vec<u8>,
        message: Vec<u8>,
        payload: Vec<Payload>,
    ) -> Self::Call {
        let TransportHandle::Client(client) = handle else { skip("only clients call through a transport") };
        let Ok((head, items)) = CmdSend::read_from_prefix(&command) else {
            skip("a transport's SEND is well formed");
        };
        let cancel = match Items::new(items).collect::<Result<Vec<_>, _>>().as_deref() {
            Ok([]) => None,
            Ok([item]) if item.kind == ItemType::CANCEL_FD => Some(fd_at(item.payload, 0)),
            _ => skip("a transport's SEND is well formed"),
        };
        if (head.size, head.flags) != (command.len() as u64, SendFlags::SYNC_REPLY.bits()) {
            skip("a transport's SEND is well formed");
        }
        if !fd_places(&message).is_empty() {
            skip("a call in a thread of its own has no descriptors");
        }
        let bytes = |memory: Payload| match memory {
            Payload::Bytes(bytes) => bytes,
            Payload::Unmapped | Payload::Kernel => skip("a transport's payload can be read"),
        };
        let call = CallApart { message, payload: payload.into_iter().map(bytes).collect(), cancel };
        drop(client.transport());
        let Some(transport) = client.transport.take() else { unreachable!("it was there just now") };
        match self.0.wait_apart(client.user, transport, call) {
            Ok(thread) => TransportCall { client: Rc::clone(client), command, thread },
            Err(transport) => {
                client.transport.replace(Some(transport));
                skip("this call through a transport cannot wait in a thread of its own")
            }
        }
    }

    fn finish(&mut self, call: Self::Call) -> Ended {
        let TransportCall { client, mut command, thread } = call;
        let (transport, result) = thread.join().expect("a call does not panic");
        client.transport.replace(Some(transport));
        let result = result.map_err(Failure::errno).map(|incoming| {
            let info = self.received(&client, incoming);
            if let Ok((head, _)) = CmdSend::mut_from_prefix(&mut command) {
                head.reply = info;
            }
        });
        Ended { result, command }
    }

    fn is_waiting(&mut self, call: &Self::Call) -> bool {
        !call.thread.is_finished()
    }

    fn interrupt(&mut self, _: &mut Self::Call, _: bool) -> Result<(), Skip> {
        Err(Skip::because("a call through a transport goes on after a signal"))
    }

    fn poll(&mut self, handle: &Self::Handle) -> Poll {
        let hung_up = Poll { readable: false, writable: false, hung_up: true };
        let client = match handle {
            TransportHandle::Control(handle) => return self.0.poll(handle),
            TransportHandle::Client(client) => client,
        };
        match client.transport().recv(RecvFlags::PEEK, 0) {
            Ok(received) => {
                client.lost.update(|lost| lost + received.dropped);
                let waits = received.message.inspect(|message| client.transport().free(message.info.offset));
                Poll { readable: waits.is_some() || client.lost.get() > 0, writable: true, hung_up: false }
            }
            Err(Failure::Refused(Errno::EOPNOTSUPP)) => {
                Poll { readable: false, writable: true, hung_up: false }
            }
            Err(_) => hung_up,
        }
    }

    fn wait(&mut self, handle: &Self::Handle, until: u64) -> Poll {
        loop {
            let poll = self.poll(handle);
            if poll.readable || poll.hung_up || self.now() >= until {
                return poll;
            }
            match handle {
                TransportHandle::Control(handle) => return self.0.wait(handle, until),
                // It may return early, and tells of a broken bus by every other operation too.
                TransportHandle::Client(client) => {
                    let _ = client.transport().wait(Some(Instant::from_nanos(until)));
                }
            }
        }
    }

    fn pool(&mut self, handle: &Self::Handle, offset: u64, len: u64) -> Option<Vec<u8>> {
        let TransportHandle::Client(client) = handle else { return None };
        let mut bytes = client.transport().slice(offset, len)?.to_vec();
        let installed = client.installed.borrow();
        if let Some(numbers) = installed.get(&offset)
            && let Ok((header, _)) = Msg::read_from_prefix(&bytes)
            && let Some(message) = bytes.get(..header.size as usize)
        {
            let mut numbers = numbers.iter();
            for at in fd_places(message) {
                // kdbus: -1 stands for a descriptor that could not be installed.
                if fd_at(&bytes, at) >= 0 {
                    let number = numbers.next().copied().unwrap_or(-1);
                    bytes[at..at + 4].copy_from_slice(&number.to_ne_bytes());
                }
            }
        }
        Some(bytes)
    }

    fn map(&mut self, _: &Self::Handle, _: u64, _: bool) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("a transport maps the pool itself"))
    }

    fn make_mapping_writable(&mut self, _: &Self::Handle) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("a transport maps the pool itself"))
    }

    fn now(&mut self) -> u64 {
        self.0.now()
    }

    fn sleep_until(&mut self, at: u64) {
        self.0.sleep_until(at);
    }

    fn memfd(&mut self, user: W::User, content: &[u8], sealed: bool) -> i32 {
        self.0.memfd(user, content, sealed)
    }

    fn pipe(&mut self, user: W::User) -> (i32, i32) {
        self.0.pipe(user)
    }

    fn event(&mut self, user: W::User) -> i32 {
        self.0.event(user)
    }

    fn regular_file(&mut self, user: W::User) -> i32 {
        self.0.regular_file(user)
    }

    fn unix_socket(&mut self, user: W::User) -> i32 {
        self.0.unix_socket(user)
    }

    fn path_only(&mut self, user: W::User) -> i32 {
        self.0.path_only(user)
    }

    fn handle_fd(&mut self, handle: &Self::Handle) -> i32 {
        match handle {
            TransportHandle::Control(handle) => self.0.handle_fd(handle),
            TransportHandle::Client(_) => skip("a transport's descriptor is its own"),
        }
    }

    fn read_fd(&mut self, user: W::User, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        self.0.read_fd(user, fd, len)
    }

    fn write_fd(&mut self, user: W::User, fd: i32, bytes: &[u8]) -> Result<(), Errno> {
        self.0.write_fd(user, fd, bytes)
    }

    fn close_fd(&mut self, user: W::User, fd: i32) -> Result<(), Errno> {
        self.0.close_fd(user, fd)
    }

    fn is_close_on_exec(&mut self, user: W::User, fd: i32) -> Result<bool, Errno> {
        self.0.is_close_on_exec(user, fd)
    }

    fn leave_spare_fds(&mut self, user: W::User, spare: usize) -> Result<(), Skip> {
        self.0.leave_spare_fds(user, spare)
    }
}
