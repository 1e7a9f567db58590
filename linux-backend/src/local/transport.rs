//! The transport over kdbusd.

use core::cell::{Cell, RefCell};

use kdbus_core::Instant;
use kdbus_core::abi::{
    CmdFree, CmdHello, CmdRecv, Command, Errno, HelloFlags, MsgInfo, RecvFlags, RecvReturnFlags, SendFlags,
};
use kdbus_core::channel::{Arrived, InboxReader};
use kdbus_core::client::{Failure, Incoming, Outgoing, Received, Transport};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

use super::bell::{self, Bell, Woken};
use super::error::{ConnectError, EPROTO, errno};
use super::handle::{Answer, Attachments, Handle};
use super::map::WordMap;
use super::place::Environment;
use super::receive::Receiver;

/// How a [`LocalTransport`] is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    environment: Environment,
    staging: u64,
    prefault: bool,
}

impl Options {
    /// What this process' environment says, and the defaults below.
    #[must_use]
    pub fn new() -> Self {
        Self { environment: Environment::current(), staging: 1 << 20, prefault: true }
    }

    /// Looks for buses where `environment` says. Default: [`Environment::current`].
    #[must_use]
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Sets memory aside at connect for payloads too large for a packet, in bytes. A larger message makes it
    /// grow when it is sent, or [`LocalTransport::prepare`] beforehand. Default: 1 MiB; 0 sets none aside.
    #[must_use]
    pub const fn staging(mut self, bytes: u64) -> Self {
        self.staging = bytes;
        self
    }

    /// Maps all pages of the pool at HELLO, so that no receive takes a page fault. The cost is the pool's
    /// size, in memory that is really there. Default: yes.
    #[must_use]
    pub const fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Opens a bus, endpoint or `control` by its name, or any node by its absolute path.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which says what to do.
    pub fn connect(&self, name: &str) -> Result<LocalTransport, ConnectError> {
        let handle = Handle::open(self.environment.node(name)?, self.staging, self.prefault)?;
        LocalTransport::over(handle)
    }

    /// Opens the bus that the environment names in `KDBUS_BUS`; without that, the first one that exists of
    /// the user's own bus (`<uid>-user`) and the system's (`0-system`).
    ///
    /// # Errors
    ///
    /// [`ConnectError`] for the last bus that was tried.
    pub fn connect_default(&self) -> Result<LocalTransport, ConnectError> {
        let mut last = None;
        for path in self.environment.defaults().into_iter().flatten() {
            let opened = path
                .map_err(ConnectError::from)
                .and_then(|path| Handle::open(path, self.staging, self.prefault));
            match opened {
                Ok(handle) => return LocalTransport::over(handle),
                Err(error) if error.is_absence() => last = last.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(ConnectError::Place(super::PlaceError::NoRoot)))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// A client's way to a bus of kdbusd.
///
/// ```no_run
/// use kdbus_linux::local::LocalTransport;
/// let transport = LocalTransport::connect_default()?;
/// # Ok::<(), kdbus_linux::local::ConnectError>(())
/// ```
#[derive(Debug)]
pub struct LocalTransport {
    handle: Handle,
    bell: Bell,
    receiver: RefCell<Option<Receiver<WordMap, WordMap>>>,
    /// The connection has ended, though kdbusd has not.
    ended: Cell<bool>,
}

impl LocalTransport {
    /// Opens a bus, endpoint or `control` by its name, or any node by its absolute path.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which says what to do.
    pub fn connect(name: &str) -> Result<Self, ConnectError> {
        Options::new().connect(name)
    }

    /// Opens the bus of `KDBUS_BUS`, or the first one that exists of `<uid>-user` and `0-system`.
    ///
    /// # Errors
    ///
    /// [`ConnectError`] for the last bus that was tried.
    pub fn connect_default() -> Result<Self, ConnectError> {
        Options::new().connect_default()
    }

    /// A transport over an open node.
    ///
    /// # Errors
    ///
    /// [`ConnectError::System`] if there are no descriptors left to wait on.
    pub fn over(handle: Handle) -> Result<Self, ConnectError> {
        let bell =
            Bell::new(handle.socket()).map_err(|error| ConnectError::System(handle.path(), errno(error)))?;
        Ok(Self { handle, bell, receiver: RefCell::new(None), ended: Cell::new(false) })
    }

    /// Makes room for `bytes` of payload too large for a packet now, so that no send has to.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for it.
    pub fn prepare(&self, bytes: u64) -> Result<(), Failure> {
        self.handle.prepare(bytes)
    }

    /// The open node, for commands in any form.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Fails if the bus or the connection is gone.
    fn check(&self) -> Result<(), Failure> {
        self.handle.check()?;
        if self.ended.get() { Err(Failure::Broken(Errno::ECONNRESET)) } else { Ok(()) }
    }

    /// What a refusal means: once the connection has ended, each one is its end.
    fn refused(&self, failure: Failure) -> Failure {
        let ended = self.receiver.borrow().as_ref().is_some_and(|receiver| !receiver.is_alive());
        if ended { self.end() } else { failure }
    }

    /// Ends the connection: from here on the descriptor is readable for ever.
    fn end(&self) -> Failure {
        self.ended.set(true);
        self.bell.ring_own();
        self.handle.check().err().unwrap_or(Failure::Broken(Errno::ECONNRESET))
    }

    /// Takes over what a successful HELLO has left.
    fn attach(&self, flags: u64) -> Result<(), Failure> {
        let Some(queue) = self.handle.take_queue() else { return Ok(()) };
        let inbox = InboxReader::attach(queue.posted, queue.shared).map_err(|_| self.handle.fail(EPROTO))?;
        let system = |error| self.handle.fail(errno(error));
        self.bell.attach(queue.bell).map_err(system)?;
        // kdbus: a policy holder receives nothing, which kdbusd tells it.
        if HelloFlags::from_bits_retain(flags).contains(HelloFlags::POLICY_HOLDER) {
            return Ok(());
        }
        *self.receiver.borrow_mut() = Some(Receiver::new(inbox).map_err(system)?);
        Ok(())
    }

    /// The message that a command has received, or `None` if it only dropped one.
    fn received(&self, info: MsgInfo, mut answer: Answer) -> Option<Incoming<OwnedFd>> {
        let pool_size = self.handle.pool().map_or(0, super::map::ReadMap::len);
        if info.offset == pool_size {
            return None;
        }
        let mut incoming = Incoming { info, fds: heapless::Vec::new() };
        let mut lost = answer.fds_lost;
        for fd in core::mem::take(&mut answer.fds) {
            lost |= incoming.fds.push(fd).is_err();
        }
        if lost {
            incoming.info.return_flags |= RecvReturnFlags::INCOMPLETE_FDS.bits();
        }
        Some(incoming)
    }

    /// Receives by command: `entry`, or what kdbusd chooses.
    fn receive_by_command(
        &self,
        entry: Option<&Arrived>,
        flags: RecvFlags,
        priority: i64,
    ) -> Result<Option<Incoming<OwnedFd>>, Failure> {
        let mut command = CmdRecv {
            size: size_of::<CmdRecv>() as u64,
            flags: flags.bits(),
            priority,
            ..CmdRecv::default()
        };
        let arg = command.as_mut_bytes();
        let answer = match entry {
            Some(entry) => self.handle.receive_entry(entry.slot, entry.key, arg)?,
            None => self.handle.command(Command::Recv.request(), arg)?,
        };
        let mut message = self.received(command.msg, answer);
        if flags.contains(RecvFlags::PEEK)
            && let Some(message) = &mut message
        {
            // Whoever receives the message has its descriptors.
            message.fds.clear();
        }
        Ok(message)
    }

    /// One message out of the lanes, if any waits.
    fn next(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        flags: RecvFlags,
        priority: i64,
    ) -> Result<Option<Option<Incoming<OwnedFd>>>, Failure> {
        let plain = !flags.intersects(RecvFlags::PEEK | RecvFlags::DROP);
        // Each round returns or removes an entry.
        while let Some(entry) = receiver.next(flags, priority) {
            if plain && !entry.with_files {
                match receiver.take(&entry) {
                    Ok(None) => continue,
                    Ok(Some(report)) => {
                        if report {
                            self.handle.report_returns();
                        }
                        let info = MsgInfo { offset: entry.offset, msg_size: entry.size, return_flags: 0 };
                        return Ok(Some(Some(Incoming { info, fds: heapless::Vec::new() })));
                    }
                    // kdbusd empties the ring before the command below.
                    Err(_) => {}
                }
            }
            match self.receive_by_command(Some(&entry), flags, priority) {
                Ok(message) => {
                    if !flags.contains(RecvFlags::PEEK) || message.is_none() {
                        receiver.forget(&entry);
                    }
                    return Ok(Some(message));
                }
                Err(Failure::Refused(Errno::EAGAIN)) => receiver.forget(&entry),
                Err(failure) => return Err(failure),
            }
        }
        Ok(None)
    }

    fn receive(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        flags: RecvFlags,
        priority: i64,
    ) -> Result<Received<OwnedFd>, Failure> {
        let mut taken = self.next(receiver, flags, priority)?;
        if taken.is_none() {
            if !self.bell.silence() || !receiver.is_alive() {
                return Err(self.end());
            }
            if receiver.arm() {
                // It came before the bell was asked for, so nobody else rings for it.
                self.bell.ring_own();
                taken = self.next(receiver, flags, priority)?;
            }
            if !receiver.is_alive() {
                return Err(self.end());
            }
        }
        Ok(Received { message: taken.flatten(), dropped: receiver.dropped() })
    }
}

impl AsFd for LocalTransport {
    /// The descriptor that is readable while anything waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.set()
    }
}

impl Transport for LocalTransport {
    type Fd = OwnedFd;
    type BorrowedFd<'a> = BorrowedFd<'a>;
    type Slice<'a> = &'a [u8];

    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure> {
        self.check()?;
        self.handle.command(command.request(), arg).map_err(|failure| self.refused(failure))?;
        if command == Command::Hello {
            let flags = CmdHello::read_from_prefix(arg).map_or(0, |(hello, _)| hello.flags);
            self.attach(flags)?;
        }
        Ok(())
    }

    fn send(&self, message: &mut Outgoing<'_, BorrowedFd<'_>>) -> Result<(), Failure> {
        self.check()?;
        let with = Attachments { payload: message.payload, fds: message.fds, cancel: None };
        self.handle
            .send_message(message.message, SendFlags::empty(), with)
            .map_err(|failure| self.refused(failure))?;
        Ok(())
    }

    fn call(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        cancel: Option<BorrowedFd<'_>>,
    ) -> Result<Incoming<OwnedFd>, Failure> {
        self.check()?;
        let with = Attachments { payload: message.payload, fds: message.fds, cancel };
        let (command, answer) = self
            .handle
            .send_message(message.message, SendFlags::SYNC_REPLY, with)
            .map_err(|failure| self.refused(failure))?;
        self.received(command.reply, answer).ok_or_else(|| self.handle.fail(EPROTO))
    }

    fn recv(&self, flags: RecvFlags, priority: i64) -> Result<Received<OwnedFd>, Failure> {
        self.check()?;
        let mut receiver = self.receiver.borrow_mut();
        let malformed =
            flags.contains(RecvFlags::DROP | RecvFlags::USE_PRIORITY) || !RecvFlags::all().contains(flags);
        match receiver.as_mut() {
            Some(receiver) if !malformed => {
                if !receiver.is_alive() {
                    return Err(self.end());
                }
                let received = self.receive(receiver, flags, priority);
                // Once the connection has ended, each refusal is its end.
                received.map_err(|failure| if receiver.is_alive() { failure } else { self.end() })
            }
            // kdbusd knows what is wrong.
            _ => {
                self.receive_by_command(None, flags, priority).map(|message| Received { message, dropped: 0 })
            }
        }
    }

    fn slice(&self, offset: u64, size: u64) -> Option<&[u8]> {
        self.handle.pool()?.bytes(offset, size)
    }

    fn free(&self, offset: u64) {
        let Some(pool) = self.handle.pool() else { return };
        if offset >= pool.len() || self.check().is_err() {
            return;
        }
        let returned = self.receiver.borrow_mut().as_mut().map(|receiver| receiver.free(offset));
        match returned {
            Some(Ok(false)) => {}
            Some(Ok(true)) => self.handle.report_returns(),
            None | Some(Err(_)) => {
                let mut command = CmdFree { size: size_of::<CmdFree>() as u64, offset, ..CmdFree::default() };
                // What kdbusd refuses here is no slice; a bus that is gone shows with the next command.
                let _ = self.handle.command(Command::Free.request(), command.as_mut_bytes());
            }
        }
    }

    fn now(&self) -> Instant {
        bell::now()
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Failure> {
        self.check()?;
        match self.bell.wait(self.handle.socket(), deadline) {
            Ok(Woken::Early) => Ok(()),
            Ok(Woken::HungUp) => Err(self.end()),
            Err(error) => Err(Failure::Refused(errno(error))),
        }
    }

    fn sleep(&self, until: Instant) -> Result<(), Failure> {
        crate::clock::sleep(until)
    }

    fn fd(&self) -> Option<i32> {
        Some(self.bell.set().as_raw_fd())
    }

    fn watch_room(&self, receiver: u64) -> Result<bool, Failure> {
        self.check()?;
        self.handle.watch_room(receiver).map(|()| true).map_err(|failure| self.refused(failure))
    }
}
