//! An open node of the bus, as an application would see a descriptor of kdbusfs.

use core::cell::{Cell, OnceCell, RefCell};

use kdbus_core::abi::{CMD_MAX_SIZE, CmdHello, CmdSend, Command, Errno, MsgInfo, SendFlags};
use kdbus_core::client::Failure;
use kdbus_core::hint::cold;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

use super::block::Block;
use super::cancel;
use super::error::{ConnectError, EPROTO, errno};
use super::map::{self, ReadMap, WordMap};
use super::pairs::Pair;
use super::place::NodePath;
use super::point::{self, Point};
use super::socket::{self, Arrived, Descriptors, PARTS_MAX, Wait};
use super::staging::Staging;
use super::stats::{Report, STATS_BYTES};
use super::wire::{self, FDS_MAX, HELLO_FDS, Header, INLINE_MAX, Kind, PACKET_MAX, Packet};

/// Payload bytes up to which a packet is not slower than the staging file: from there to twice as many the two
/// are level, above it the file's one copy less shows.
const INLINE_LIMIT: u64 = 1 << 14;

const _: () = assert!(INLINE_LIMIT <= INLINE_MAX as u64);

/// Bytes of the longest answer.
const ANSWER_MAX: usize = size_of::<Header>() + 2 * CMD_MAX_SIZE;

/// What goes with a command.
#[derive(Clone, Copy, Debug, Default)]
pub struct Attachments<'a> {
    /// Bytes of the `PAYLOAD_VEC` items with a non-zero address, in item order.
    pub payload: &'a [&'a [u8]],
    /// Descriptors; items mention them by index.
    pub fds: &'a [BorrowedFd<'a>],
    /// Ends the wait for a synchronous call as soon as it is readable.
    pub cancel: Option<BorrowedFd<'a>>,
}

/// What a SEND has to do with lanes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Beside {
    /// So many calls by lane are open.
    Calls(u32),
    /// It answers a call that came by lane.
    Claim {
        /// kdbusd's number of the lane.
        lane: u32,
        /// What names the call.
        call: u64,
    },
}

/// How a command ended.
#[derive(Debug)]
pub struct Answer {
    /// Descriptors that came with what was received, in item order; items hold indices into them.
    pub fds: Descriptors,
    /// Some descriptors are missing, because this process has no room for them.
    pub fds_lost: bool,
    /// Number of the lane that it is about.
    pub(super) lane: u32,
    /// Id of the connection that the lane leads to.
    pub(super) receiver: u64,
}

impl Answer {
    /// Room for one.
    pub(super) const fn new() -> Self {
        Self { fds: Descriptors::new(), fds_lost: false, lane: 0, receiver: 0 }
    }
}

/// What every answer tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// Number of the lane that it is about; of a SEND, calls that are open through kdbusd.
    pub(super) lane: u32,
    /// Id of the connection that the lane leads to.
    receiver: u64,
}

/// The shared queue of a connection, for whoever receives from it.
#[derive(Debug)]
pub(super) struct Queue {
    pub(super) posted: WordMap,
    pub(super) shared: WordMap,
    pub(super) bell: OwnedFd,
}

/// An open node: `control`, or an endpoint, and after HELLO a connection.
///
/// It carries commands and nothing else, just as they are given: nothing is checked or completed before
/// kdbusd sees it, so this is also what malformed input is tried with. Applications use
/// [`LocalTransport`](super::LocalTransport), which is built on it.
///
/// Dropping it closes the node.
#[derive(Debug)]
pub struct Handle {
    socket: OwnedFd,
    path: NodePath,
    serial: Cell<u64>,
    /// The code of everything from now on.
    broken: Cell<Option<Errno>>,
    answer: RefCell<Block<u8>>,
    staging: RefCell<Option<Staging>>,
    pool: OnceCell<ReadMap>,
    queue: RefCell<Option<Queue>>,
    prefault: bool,
}

impl Handle {
    /// Opens the node at `path`.
    ///
    /// `staging` bytes are set aside for large payloads at once, none for 0; more are when a message needs
    /// them. With `prefault`, all pages of the pool are mapped by HELLO.
    ///
    /// # Errors
    ///
    /// [`ConnectError`].
    pub fn open(path: NodePath, staging: u64, prefault: bool) -> Result<Self, ConnectError> {
        let socket = socket::connect(path.as_bytes()).map_err(|error| ConnectError::new(path, error));
        let socket = socket.inspect_err(|error| kdbus_core::event!(debug, "not connected: {:?}", error))?;
        kdbus_core::event!(debug, "connected to {:?}", path);
        Self::over(socket, path, staging, prefault)
    }

    /// A node that is open already: `socket` is connected to it.
    ///
    /// # Errors
    ///
    /// [`ConnectError::System`] if there is no memory for it.
    pub fn over(socket: OwnedFd, path: NodePath, staging: u64, prefault: bool) -> Result<Self, ConnectError> {
        let failed = |error| ConnectError::System(path, errno(error));
        // The kernel doubles the value for its own needs; at its limit it takes less, which is enough too.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, PACKET_MAX);
        let staging = if staging == 0 { None } else { Some(Staging::new(staging).map_err(failed)?) };
        Ok(Self {
            socket,
            path,
            serial: Cell::new(0),
            broken: Cell::new(None),
            answer: RefCell::new(Block::new(ANSWER_MAX, || 0).map_err(failed)?),
            staging: RefCell::new(staging),
            pool: OnceCell::new(),
            queue: RefCell::new(None),
            prefault,
        })
    }

    /// Carries out a command without attachments: the request number as it is, and everything that is
    /// readable of its argument. Outputs are written back, after a refusal too.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code.
    pub fn command(&self, request: u32, arg: &mut [u8]) -> Result<Answer, Failure> {
        let header = Header { number: request, ..Header::new(Kind::Command, self.next_serial()) };
        let answer = self.transact(header, arg, None, Attachments::default())?;
        if request == Command::Hello.request() { self.attach(arg, answer) } else { Ok(answer) }
    }

    /// Carries out a SEND. `message` is what `msg_address` stands for, `None` for address 0; it is written
    /// back too.
    ///
    /// A CANCEL_FD item in `arg` goes to kdbusd as it is; to cancel, use [`Attachments::cancel`].
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code; `EBADF` for a descriptor that is not open.
    pub fn send(
        &self,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
        with: Attachments<'_>,
    ) -> Result<Answer, Failure> {
        let mut header = Header::new(Kind::Command, self.next_serial());
        header.number = Command::Send.request();
        header.flags = if message.is_some() { wire::FLAG_RETURN_MESSAGE } else { 0 };
        self.transact(header, arg, message, with)
    }

    /// Sends `message` and does not want it back; the answer's record is returned. `reply` takes the descriptors that come
    /// with a synchronous call's end; nothing else brings any.
    pub(super) fn send_message(
        &self,
        message: &mut [u8],
        flags: SendFlags,
        with: Attachments<'_>,
        beside: Beside,
        reply: Option<&mut Answer>,
    ) -> Result<(CmdSend, Ended), Failure> {
        let (header, mut command) = self.message_packet(flags, beside);
        let ended = self.transact_into(header, command.as_mut_bytes(), Some(message), with, reply)?;
        Ok((command, ended))
    }

    /// Sends `message` and returns the number of the command, whose end kdbusd tells in the shared queue.
    pub(super) fn post_message(
        &self,
        message: &[u8],
        flags: SendFlags,
        with: Attachments<'_>,
        beside: Beside,
    ) -> Result<u64, Failure> {
        self.check()?;
        let (mut header, command) = self.message_packet(flags, beside);
        let message = head(message);
        header.flags |= wire::FLAG_MESSAGE | wire::FLAG_POSTED;
        header.arg_size = size_of::<CmdSend>() as u32;
        header.message_size = message.len() as u32;
        self.submit(header, command.as_bytes(), message, with)?;
        point::pass(Point::CommandSent);
        Ok(header.serial)
    }

    /// Waits for the packet that tells of the end of [such a command](Self::post_message).
    pub(super) fn await_packet(
        &self,
        serial: u64,
        reply: Option<&mut Answer>,
    ) -> Result<(MsgInfo, Ended), Failure> {
        let mut command = CmdSend::default();
        let ended = self.await_answer(serial, command.as_mut_bytes(), None, None, reply)?;
        Ok((command.reply, ended))
    }

    /// Header and argument of a SEND.
    fn message_packet(&self, flags: SendFlags, beside: Beside) -> (Header, CmdSend) {
        let command = CmdSend {
            size: size_of::<CmdSend>() as u64,
            flags: flags.bits(),
            msg_address: 1,
            ..CmdSend::default()
        };
        let mut header = Header::new(Kind::Command, self.next_serial());
        header.number = Command::Send.request();
        match beside {
            Beside::Calls(count) => header.slot = count,
            Beside::Claim { lane, call } => {
                header.flags |= wire::FLAG_CLAIM;
                (header.slot, header.key) = (lane, call);
            }
        }
        (header, command)
    }

    /// Carries out a RECV of one entry of the shared queue.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code; `EAGAIN` if the entry is gone.
    pub fn receive_entry(&self, slot: u32, key: u64, arg: &mut [u8]) -> Result<Answer, Failure> {
        let mut header = Header::new(Kind::ReceiveEntry, self.next_serial());
        (header.number, header.slot, header.key) = (Command::Recv.request(), slot, key);
        self.transact(header, arg, None, Attachments::default())
    }

    /// Asks for one notice when `receiver` has room again.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code: `ENXIO` if there is no such connection.
    pub fn watch_room(&self, receiver: u64) -> Result<(), Failure> {
        let header = Header { key: receiver, ..Header::new(Kind::WatchRoom, self.next_serial()) };
        self.transact(header, &mut [], None, Attachments::default())?;
        Ok(())
    }

    /// Asks for connection `id` in numbers, and for who occupies it. A process may ask for itself and for those of
    /// its own user; the owner of the bus and root may ask for everybody.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code: `ENXIO` if there is no such connection, `EPERM` if it is another user's.
    pub fn stats(&self, id: u64) -> Result<Report, Failure> {
        let header = Header { key: id, ..Header::new(Kind::Stats, self.next_serial()) };
        let mut bytes = [0; STATS_BYTES];
        self.transact(header, &mut bytes, None, Attachments::default())?;
        Report::read(&bytes).ok_or_else(|| self.fail(EPROTO))
    }

    /// Asks which way messages to connection `receiver` take, from each sender that `pairs` names, and fills in the
    /// rest. Who may ask is as for [`stats`](Self::stats); about a sender of another user nothing is told.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code: `ENXIO` if there is no such receiver, `EPERM` if it is another user's, `EINVAL` for
    /// more than [`PAIRS_MAX`](super::pairs::PAIRS_MAX).
    pub fn pairs(&self, receiver: u64, pairs: &mut [Pair]) -> Result<(), Failure> {
        let header = Header { key: receiver, ..Header::new(Kind::Pairs, self.next_serial()) };
        self.transact(header, pairs.as_mut_bytes(), None, Attachments::default())?;
        Ok(())
    }

    /// Tells kdbusd that something stands in the return ring, without waiting for anything.
    pub(super) fn report_returns(&self) {
        // A full socket holds packets that kdbusd reads later, one of these among them: while there is no
        // command under way, nothing else fills it. A dead one is found by whoever waits or asks next.
        let _ = socket::send(&self.socket, &Header::new(Kind::Returns, 0), &[], &[], Wait::No);
    }

    /// Makes room for `len` bytes of large payload now, so that no send has to.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for it.
    pub fn prepare(&self, len: u64) -> Result<(), Failure> {
        stage(&mut self.staging.borrow_mut(), len, &[]).map_err(|error| Failure::Refused(errno(error)))
    }

    /// The pool, after HELLO.
    #[must_use]
    pub fn pool(&self) -> Option<&ReadMap> {
        self.pool.get()
    }

    /// The path that was opened.
    #[must_use]
    pub const fn path(&self) -> NodePath {
        self.path
    }

    /// The socket to kdbusd.
    #[must_use]
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    pub(super) fn take_queue(&self) -> Option<Queue> {
        self.queue.borrow_mut().take()
    }

    /// Fails if the bus is gone.
    pub(super) const fn check(&self) -> Result<(), Failure> {
        match self.broken.get() {
            Some(errno) => {
                cold();
                Err(Failure::Broken(errno))
            }
            None => Ok(()),
        }
    }

    /// Ends this handle: everything fails with `errno` from now on.
    pub(super) fn fail(&self, errno: Errno) -> Failure {
        let first = self.broken.get().unwrap_or(errno);
        if self.broken.replace(Some(first)).is_none() {
            // kdbusd learns now, not when the handle is dropped.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
            kdbus_core::event!(error, "the bus at {:?} is gone: {:?}", self.path, first);
        }
        Failure::Broken(first)
    }

    pub(super) fn next_serial(&self) -> u64 {
        let serial = self.serial.get().wrapping_add(1);
        self.serial.set(serial);
        serial
    }

    /// Sends one packet and waits for its answer.
    pub(super) fn transact(
        &self,
        header: Header,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
        with: Attachments<'_>,
    ) -> Result<Answer, Failure> {
        let mut answer = Answer::new();
        let ended = self.transact_into(header, arg, message, with, Some(&mut answer))?;
        (answer.lane, answer.receiver) = (ended.lane, ended.receiver);
        Ok(answer)
    }

    /// As [`transact`](Self::transact), with descriptors into `into`; without, the answer brings none.
    fn transact_into(
        &self,
        mut header: Header,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
        with: Attachments<'_>,
        into: Option<&mut Answer>,
    ) -> Result<Ended, Failure> {
        self.check()?;
        if let Some(cancel) = with.cancel {
            cancel::check(cancel).map_err(Failure::Refused)?;
        }
        {
            let arg = head(arg);
            let message = message.as_deref().map(head);
            header.arg_size = arg.len() as u32;
            if let Some(message) = message {
                header.flags |= wire::FLAG_MESSAGE;
                header.message_size = message.len() as u32;
            }
            self.submit(header, arg, message.unwrap_or(&[]), with)?;
        }
        point::pass(Point::CommandSent);
        let (number, serial) = (header.number, header.serial);
        let ended = self.await_answer(serial, arg, message, with.cancel, into);
        kdbus_core::event!(trace, "command {:#x}, the {}th: {:?}", number, serial, ended.as_ref().err());
        ended
    }

    fn submit(
        &self,
        mut header: Header,
        arg: &[u8],
        message: &[u8],
        with: Attachments<'_>,
    ) -> Result<(), Failure> {
        let mut staging = self.staging.borrow_mut();
        let mut parts: heapless::Vec<&[u8], PARTS_MAX> = heapless::Vec::new();
        let mut fds: heapless::Vec<BorrowedFd<'_>, FDS_MAX> = heapless::Vec::new();
        parts.extend([arg, message]);
        // A message is refused for mentioning more descriptors than this, whatever the rest are.
        fds.extend(with.fds.iter().take(FDS_MAX - 1).copied());
        let payload = if header.flags & wire::FLAG_MESSAGE != 0 { with.payload } else { &[] };
        header.payload_size = payload.iter().fold(0, |sum: u64, part| sum.saturating_add(part.len() as u64));
        if header.payload_size <= INLINE_LIMIT && payload.len() <= PARTS_MAX - parts.len() {
            parts.extend(payload.iter().copied());
        } else {
            header.flags |= wire::FLAG_STAGED;
            stage(&mut staging, header.payload_size, payload)
                .map_err(|error| Failure::Refused(errno(error)))?;
            if let Some(file) = staging.as_ref().and_then(Staging::unknown) {
                header.flags |= wire::FLAG_STAGING_FD;
                fds.extend([file]);
            }
        }
        socket::send(&self.socket, &header, &parts, &fds, Wait::Yes).map_err(|error| self.sent(error))?;
        if let Some(staging) = staging.as_ref()
            && header.flags & wire::FLAG_STAGING_FD != 0
        {
            staging.set_known();
        }
        Ok(())
    }

    /// What an error of `sendmsg` means: the packet did not get to kdbusd.
    pub(super) fn sent(&self, error: rustix::io::Errno) -> Failure {
        use rustix::io::Errno as E;
        match error {
            _ if socket::is_hang_up(error) => self.fail(Errno::ECONNRESET),
            E::TOOMANYREFS => Failure::Refused(Errno::EMFILE),
            E::NOBUFS | E::NOMEM => Failure::Refused(Errno::ENOMEM),
            other => Failure::Refused(errno(other)),
        }
    }

    /// Waits for the answer to `serial` and writes back what it brings.
    fn await_answer(
        &self,
        serial: u64,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
        mut cancel: Option<BorrowedFd<'_>>,
        mut into: Option<&mut Answer>,
    ) -> Result<Ended, Failure> {
        let mut buffer = self.answer.borrow_mut();
        loop {
            if let Some(fd) = cancel
                && !cancel::wait_answer(self.socket(), fd).map_err(|error| self.fail(error))?
            {
                let header = Header { key: serial, ..Header::new(Kind::Cancel, 0) };
                socket::send(&self.socket, &header, &[], &[], Wait::Yes)
                    .map_err(|_| self.fail(Errno::ECONNRESET))?;
                // The call's one answer follows in any case.
                cancel = None;
            }
            let received = match into.as_deref_mut() {
                Some(answer) => socket::recv(&self.socket, &mut buffer, &mut answer.fds, Wait::Yes),
                None => {
                    socket::recv_bytes(&self.socket, &mut buffer).map(|len| Arrived { len, fds_lost: false })
                }
            };
            let arrived = match received {
                Ok(arrived) if arrived.len != 0 => arrived,
                Err(rustix::io::Errno::MSGSIZE) => return Err(self.fail(EPROTO)),
                Ok(_) | Err(_) => return Err(self.fail(Errno::ECONNRESET)),
            };
            let bytes = buffer.get_mut(..arrived.len).unwrap_or_default();
            let counted = match into.as_deref_mut() {
                Some(answer) => {
                    answer.fds_lost = arrived.fds_lost;
                    if arrived.fds_lost { claimed_fds(bytes) } else { answer.fds.len() }
                }
                None => 0,
            };
            let packet = match Packet::parse(bytes, counted) {
                Ok(packet) if packet.kind == Kind::Answer => packet,
                Ok(_) | Err(_) => return Err(self.fail(EPROTO)),
            };
            if packet.header.serial != serial {
                continue;
            }
            let ended = Ended { lane: packet.header.slot, receiver: packet.header.key };
            write_back(arg, packet.arg);
            if let (Some(message), Some(returned)) = (message, packet.message) {
                write_back(message, returned);
            }
            return packet.header.result().map(|()| ended).map_err(|errno| {
                // The last word of a kdbusd that does not speak this version.
                if errno == EPROTO { self.fail(EPROTO) } else { Failure::Refused(errno) }
            });
        }
    }

    /// Maps what HELLO brought. A connection that this process has no room for is of no use to anybody.
    fn attach(&self, arg: &[u8], mut answer: Answer) -> Result<Answer, Failure> {
        if answer.fds.is_empty() && !answer.fds_lost {
            // It only asked which flags there are.
            return Ok(answer);
        }
        if answer.fds_lost {
            return Err(self.fail(Errno::EMFILE));
        }
        let hello = CmdHello::read_from_prefix(arg).map_err(|_| self.fail(EPROTO))?.0;
        let fds = core::mem::take(&mut answer.fds);
        let Ok([pool, posted, shared, bell]) = fds.into_array::<HELLO_FDS>() else {
            return Err(self.fail(EPROTO));
        };
        let mapped = (|| {
            let whole = |fd: &OwnedFd| Ok(rustix::fs::fstat(fd)?.st_size as u64);
            let (posted_len, shared_len) = (whole(&posted)?, whole(&shared)?);
            for (file, len) in [(&pool, hello.pool_size), (&posted, posted_len), (&shared, shared_len)] {
                if !map::holds(file, len)? {
                    return Err(rustix::io::Errno::PROTO);
                }
            }
            let words = |len: u64| (len / size_of::<u64>() as u64) as usize;
            Ok((
                ReadMap::new(&pool, hello.pool_size, self.prefault)?,
                WordMap::read_only(&posted, words(posted_len))?,
                WordMap::writable(&shared, words(shared_len))?,
            ))
        })();
        let (pool, posted, shared) = mapped.map_err(|error| self.fail(errno(error)))?;
        // A second HELLO is refused by kdbusd.
        self.pool.set(pool).map_err(|_| self.fail(EPROTO))?;
        *self.queue.borrow_mut() = Some(Queue { posted, shared, bell });
        kdbus_core::event!(debug, "a pool of {} bytes is mapped", hello.pool_size);
        Ok(answer)
    }
}

/// Puts `payload` into a staging file that holds `len` bytes: the one there is, or a new one in its place.
fn stage(place: &mut Option<Staging>, len: u64, payload: &[&[u8]]) -> Result<(), rustix::io::Errno> {
    if let Some(staging) = place.as_mut().filter(|staging| staging.len() >= len) {
        return staging.fill(payload);
    }
    place.insert(Staging::new(len)?).fill(payload)
}

/// As much of an argument as any command looks at.
fn head(bytes: &[u8]) -> &[u8] {
    bytes.get(..CMD_MAX_SIZE).unwrap_or(bytes)
}

fn write_back(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// How many descriptors a packet says it has, for one whose descriptors were cut off.
fn claimed_fds(bytes: &[u8]) -> usize {
    Header::read_from_prefix(bytes).map_or(0, |(header, _)| header.fds as usize)
}
