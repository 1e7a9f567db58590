//! A client's way to the simulated bus: a function call.

use core::ops::Deref;

use kdbus_core::Instant;
use kdbus_core::abi::{
    CmdFree, CmdRecv, CmdSend, Command, Errno, ITEM_HEADER, ItemType, ItemWriter, Items, Msg, MsgInfo,
    RecvFlags, SendFlags,
};
use kdbus_core::client::{Failure, Found, Incoming, Outgoing, Transport, Wait};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::machine::ProcessId;
use crate::sim::Sim;
use crate::world::{Body, Progress, World};

/// A descriptor of a simulated process, closed on drop.
#[derive(Debug)]
pub struct SimFd {
    sim: Sim,
    process: ProcessId,
    number: i32,
}

impl SimFd {
    /// Takes over descriptor `number` of `process`.
    #[must_use]
    pub const fn new(sim: Sim, process: ProcessId, number: i32) -> Self {
        Self { sim, process, number }
    }

    /// Its number in its process.
    #[must_use]
    pub const fn number(&self) -> i32 {
        self.number
    }

    /// Leaves the descriptor open in its process and returns its number.
    #[must_use]
    pub fn into_number(mut self) -> i32 {
        core::mem::replace(&mut self.number, -1)
    }

    /// The descriptor, to send it.
    #[must_use]
    pub const fn borrow(&self) -> SimBorrowedFd {
        SimBorrowedFd(self.number)
    }

    /// Reads at most `len` bytes.
    ///
    /// # Errors
    ///
    /// As [`World::read`].
    pub fn read(&self, len: usize) -> Result<Vec<u8>, Errno> {
        self.sim.world_mut().read(self.process, self.number, len)
    }

    /// Writes `bytes`.
    ///
    /// # Errors
    ///
    /// As [`World::write`].
    pub fn write(&self, bytes: &[u8]) -> Result<(), Errno> {
        self.sim.world_mut().write(self.process, self.number, bytes)
    }
}

impl Drop for SimFd {
    fn drop(&mut self) {
        let _ = self.sim.world_mut().close(self.process, self.number);
    }
}

/// A descriptor number of the sending process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SimBorrowedFd(pub i32);

/// The bytes of a slice, copied out of the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimSlice(Vec<u8>);

impl Deref for SimSlice {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

/// An open endpoint of a simulated bus, and after HELLO a connection.
///
/// Commands happen at once, one microsecond of virtual time apart. Where it has to wait, the services of
/// its [`Sim`] run and virtual time jumps to the next deadline. If nothing would ever happen any more,
/// waiting fails with `EDEADLK`, so that a test ends.
#[derive(Debug)]
pub struct SimTransport {
    sim: Sim,
    process: ProcessId,
    fd: i32,
}

impl SimTransport {
    /// Takes over descriptor `fd` of `process`, an open endpoint.
    #[must_use]
    pub const fn new(sim: Sim, process: ProcessId, fd: i32) -> Self {
        Self { sim, process, fd }
    }

    /// The simulation that this transport is part of.
    #[must_use]
    pub const fn sim(&self) -> &Sim {
        &self.sim
    }

    /// The process that opened it.
    #[must_use]
    pub const fn process(&self) -> ProcessId {
        self.process
    }

    fn ioctl(&self, command: Command, arg: &mut [u8], body: Option<Body<'_>>) -> Result<Progress, Failure> {
        let progress = self.sim.world_mut().command(self.process, self.fd, command.request(), arg, body);
        match progress {
            Progress::Done(Err(errno)) => Err(self.failure(errno)),
            progress => Ok(progress),
        }
    }

    /// Whether a code means that this connection is gone, or only that a command was refused.
    fn failure(&self, errno: Errno) -> Failure {
        match errno {
            // The receiver of a message may be gone as well.
            Errno::ECONNRESET if !self.is_active() => Failure::Broken(errno),
            // kdbus: what a dead bus reports before HELLO.
            Errno::ESHUTDOWN => Failure::Broken(errno),
            _ => Failure::Refused(errno),
        }
    }

    fn is_active(&self) -> bool {
        self.sim.world().readiness(self.process, self.fd).is_ok_and(|readiness| readiness.writable)
    }

    fn record<T: IntoBytes + FromBytes + Immutable>(
        &self,
        command: Command,
        record: &mut T,
    ) -> Result<(), Failure> {
        self.ioctl(command, record.as_mut_bytes(), None).map(|_| ())
    }

    /// Replaces indices into `fds` by the numbers behind them; an index out of range stays unopened.
    fn translate_fds(message: &mut [u8], fds: &[SimBorrowedFd]) {
        let number =
            |index: i32| usize::try_from(index).ok().and_then(|index| fds.get(index)).map_or(-1, |fd| fd.0);
        let Some(area) = message.get(Msg::SIZE..) else { return };
        let places: Vec<usize> = Items::new(area)
            .map_while(Result::ok)
            .flat_map(|item| {
                let at = Msg::SIZE + item.at + ITEM_HEADER;
                match item.kind {
                    ItemType::FDS => (at..at + item.payload.len() / 4 * 4).step_by(4),
                    ItemType::PAYLOAD_MEMFD if item.payload.len() == 24 => (at + 16..at + 20).step_by(4),
                    _ => (0..0).step_by(4),
                }
            })
            .collect();
        for at in places {
            if let Some(place) = message[at..].first_chunk_mut() {
                *place = number(i32::from_ne_bytes(*place)).to_ne_bytes();
            }
        }
    }

    /// The descriptors that were installed for a message, in the order of [`Incoming::fds`].
    fn incoming(&self, info: MsgInfo) -> Incoming<SimFd> {
        let mut passed = heapless::Vec::new();
        let mut memfds: heapless::Vec<i32, 16> = heapless::Vec::new();
        if let Some(slice) = self.slice(info.offset, info.msg_size)
            && let Ok((header, _)) = Msg::read_from_prefix(&slice)
            && let Some(area) = slice.get(Msg::SIZE..header.size as usize)
        {
            let own = |number| SimFd::new(self.sim.clone(), self.process, number);
            for item in Items::new(area).map_while(Result::ok) {
                match item.kind {
                    ItemType::FDS => passed.extend(item.fds().filter(|fd| *fd >= 0).take(16).map(own)),
                    ItemType::PAYLOAD_MEMFD => {
                        let memfd = item.record::<kdbus_core::abi::Memfd>().filter(|memfd| memfd.fd >= 0);
                        let _ = memfd.map(|memfd| memfds.push(memfd.fd));
                    }
                    _ => {}
                }
            }
            passed.extend(memfds.iter().map(|number| own(*number)));
        }
        Incoming { info, fds: passed }
    }

    fn send_command(message: &Outgoing<'_, SimBorrowedFd>, flags: SendFlags) -> CmdSend {
        CmdSend {
            size: size_of::<CmdSend>() as u64,
            flags: flags.bits(),
            msg_address: message.message.as_ptr().addr() as u64,
            ..CmdSend::default()
        }
    }
}

impl Drop for SimTransport {
    fn drop(&mut self) {
        let _ = self.sim.world_mut().close(self.process, self.fd);
    }
}

impl Transport for SimTransport {
    type Fd = SimFd;
    type BorrowedFd<'a> = SimBorrowedFd;
    type Slice<'a> = SimSlice;

    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure> {
        self.ioctl(command, arg, None).map(|_| ())
    }

    fn send(&self, message: &mut Outgoing<'_, SimBorrowedFd>) -> Result<(), Failure> {
        Self::translate_fds(message.message, message.fds);
        let mut command = Self::send_command(message, SendFlags::empty());
        let body = Body { message: message.message, payload: message.payload };
        self.ioctl(Command::Send, command.as_mut_bytes(), Some(body)).map(|_| ())
    }

    fn call_into(
        &self,
        message: &mut Outgoing<'_, SimBorrowedFd>,
        cancel: Option<SimBorrowedFd>,
        place: &mut Incoming<SimFd>,
    ) -> Result<(), Failure> {
        if self.sim.world().burst.is_some() {
            return Err(Failure::Refused(Errno::EOPNOTSUPP));
        }
        Self::translate_fds(message.message, message.fds);
        let mut arg = [0; size_of::<CmdSend>() + 24];
        let mut items = ItemWriter::behind(&mut arg, size_of::<CmdSend>())
            .map_err(|error| Failure::Refused(error.errno()))?;
        if let Some(cancel) = cancel {
            items.record(ItemType::CANCEL_FD, &cancel.0).map_err(|error| Failure::Refused(error.errno()))?;
        }
        let size = items.len();
        let mut head = Self::send_command(message, SendFlags::SYNC_REPLY);
        head.size = size as u64;
        arg[..size_of::<CmdSend>()].copy_from_slice(head.as_bytes());
        let body = Body { message: message.message, payload: message.payload };
        let reply = match self.ioctl(Command::Send, &mut arg[..size], Some(body))? {
            Progress::Done(_) => {
                let (command, _) =
                    CmdSend::read_from_prefix(&arg).map_err(|_| Failure::Refused(Errno::EIO))?;
                command.reply
            }
            Progress::Waiting(token) => self
                .sim
                .run_until(None, |world| world.take_answer(token))
                .map_err(|errno| {
                    self.sim.world_mut().cancel(token, Errno::EINTR);
                    Failure::Refused(errno)
                })?
                .unwrap_or(Err(Errno::EIO))
                .map_err(|errno| self.failure(errno))?,
        };
        *place = self.incoming(reply);
        Ok(())
    }

    fn recv_into(
        &self,
        flags: RecvFlags,
        priority: i64,
        place: &mut Incoming<SimFd>,
    ) -> Result<Found, Failure> {
        let size = size_of::<CmdRecv>() as u64;
        let mut command = CmdRecv { size, flags: flags.bits(), priority, ..CmdRecv::default() };
        let message = match self.record(Command::Recv, &mut command) {
            Ok(()) if flags.contains(RecvFlags::DROP) => false,
            Ok(()) if flags.contains(RecvFlags::PEEK) => {
                place.info = command.msg;
                true
            }
            Ok(()) => {
                *place = self.incoming(command.msg);
                true
            }
            Err(Failure::Refused(Errno::EAGAIN)) => false,
            Err(failure) => return Err(failure),
        };
        Ok(Found { message, dropped: command.dropped_msgs })
    }

    fn slice(&self, offset: u64, size: u64) -> Option<SimSlice> {
        self.sim.world().pool(self.process, self.fd, offset, size).map(|bytes| SimSlice(bytes.to_vec()))
    }

    fn free(&self, offset: u64) {
        let mut command = CmdFree { size: size_of::<CmdFree>() as u64, offset, ..CmdFree::default() };
        let _ = self.record(Command::Free, &mut command);
    }

    fn now(&self) -> Instant {
        self.sim.world().now()
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Failure> {
        let ready = |world: &mut World| {
            let readiness = world.readiness(self.process, self.fd).unwrap_or_default();
            let woken = world.take_woken(self.process, self.fd);
            (readiness.readable || woken || !readiness.writable).then_some(readiness)
        };
        match self.sim.run_until(deadline, ready) {
            Ok(Some(readiness)) if readiness.hung_up => Err(Failure::Broken(Errno::ECONNRESET)),
            Ok(_) => Ok(()),
            Err(errno) => Err(Failure::Refused(errno)),
        }
    }

    fn sleep(&self, until: Instant) -> Result<(), Failure> {
        self.sim.run_to(until).map_err(Failure::Refused)
    }

    fn park(&self, wait: Wait) {
        self.sim.world_mut().park(self.process, self.fd, wait);
    }

    fn fd(&self) -> Option<i32> {
        None
    }

    fn watch_room(&self, receiver: u64) -> Result<bool, Failure> {
        let watched = self.sim.world_mut().watch_room(self.process, self.fd, receiver);
        watched.map(|()| true).map_err(|errno| self.failure(errno))
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use kdbus_core::abi::{CmdHello, Memfd, MsgFlags, PAYLOAD_DBUS, Vec as PayloadVec};
    use kdbus_core::engine::Config;

    use super::*;
    use crate::fd::File;
    use crate::sim::Turn;

    struct Bus {
        sim: Sim,
        process: ProcessId,
        control: i32,
    }

    impl Bus {
        fn new() -> Self {
            let sim = Sim::new(&Config::SMALL, 7).unwrap();
            let process = sim.world_mut().spawn_user("test", 1000, 1000);
            let control = sim.make_bus(process, "test").unwrap();
            Self { sim, process, control }
        }

        fn connect(&self) -> (SimTransport, u64) {
            let transport = self.sim.open(self.process, "1000-test", "bus").unwrap();
            let size = size_of::<CmdHello>() as u64;
            let mut hello = CmdHello { size, flags: 1, pool_size: 65536, ..CmdHello::default() };
            transport.record(Command::Hello, &mut hello).unwrap();
            transport.free(hello.offset);
            (transport, hello.id)
        }
    }

    fn header(dst_id: u64) -> Msg {
        Msg { size: 64, dst_id, payload_type: PAYLOAD_DBUS, ..Msg::default() }
    }

    fn call(dst_id: u64, cookie: u64, deadline: Instant) -> Msg {
        let flags = MsgFlags::EXPECT_REPLY.bits();
        Msg { flags, cookie, timeout_or_reply: deadline.as_nanos(), ..header(dst_id) }
    }

    /// Sends a header with one vector of payload.
    fn send(transport: &SimTransport, mut msg: Msg, payload: &[u8]) -> Result<(), Failure> {
        let mut message = [0; 96];
        let mut items = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
        let vec = PayloadVec { size: payload.len() as u64, address: 1 };
        items.record(ItemType::PAYLOAD_VEC, &vec).unwrap();
        msg.size = items.len() as u64;
        message[..Msg::SIZE].copy_from_slice(msg.as_bytes());
        transport.send(&mut Outgoing { message: &mut message, payload: &[payload], fds: &[], begun: None })
    }

    fn bare<'a>(message: &'a mut [u8; 64], msg: &Msg) -> Outgoing<'a, SimBorrowedFd> {
        message.copy_from_slice(msg.as_bytes());
        Outgoing { message, payload: &[], fds: &[], begun: None }
    }

    #[test]
    fn a_message_arrives_with_its_payload() {
        let bus = Bus::new();
        let ((a, _), (b, id)) = (bus.connect(), bus.connect());
        send(&a, header(id), b"hello").unwrap();
        b.wait(None).unwrap();
        let received = b.recv(RecvFlags::empty(), 0).unwrap().message.unwrap();
        let slice = b.slice(received.info.offset, received.info.msg_size).unwrap();
        assert!(slice.windows(5).any(|bytes| bytes == b"hello"));
        b.free(received.info.offset);
        assert!(b.recv(RecvFlags::empty(), 0).unwrap().message.is_none());
    }

    #[test]
    fn a_service_answers_while_its_caller_waits() {
        let bus = Bus::new();
        let ((a, caller), (b, id)) = (bus.connect(), bus.connect());
        bus.sim.serve(move || match b.recv(RecvFlags::empty(), 0).unwrap().message {
            None => Turn::Idle,
            Some(received) => {
                b.free(received.info.offset);
                send(&b, Msg { timeout_or_reply: 7, ..header(caller) }, b"answer").unwrap();
                Turn::Worked
            }
        });
        let deadline = a.now().after(Duration::from_secs(1));
        let reply = a.call(&mut bare(&mut [0; 64], &call(id, 7, deadline)), None).unwrap();
        assert_eq!(a.slice(reply.info.offset, 64).unwrap()[32..40], id.to_ne_bytes());
        assert!(a.now() < deadline);
    }

    #[test]
    fn a_call_without_a_service_ends_at_its_deadline() {
        let bus = Bus::new();
        let ((a, _), (_b, id)) = (bus.connect(), bus.connect());
        let deadline = a.now().after(Duration::from_secs(3600));
        let failure = a.call(&mut bare(&mut [0; 64], &call(id, 7, deadline)), None).err();
        assert_eq!(failure, Some(Failure::Refused(Errno::ETIMEDOUT)));
        assert_eq!(a.now(), deadline);
    }

    #[test]
    fn waiting_for_nothing_at_all_is_an_error() {
        let bus = Bus::new();
        let (a, _) = bus.connect();
        let deadline = a.now().after(Duration::from_millis(5));
        a.wait(Some(deadline)).unwrap();
        assert_eq!(a.now(), deadline);
        assert_eq!(a.wait(None), Err(Failure::Refused(crate::sim::DEADLOCK)));
    }

    #[test]
    fn descriptors_are_named_by_their_place() {
        let bus = Bus::new();
        let ((a, _), (b, id)) = (bus.connect(), bus.connect());
        let fd = |file| {
            SimFd::new(
                bus.sim.clone(),
                bus.process,
                bus.sim.world_mut().open_file(bus.process, file).unwrap(),
            )
        };
        let memfd = fd(File::Memfd { content: b"sealed".to_vec(), sealed: true });
        let event = fd(File::Event(3));
        let mut message = [0; 256];
        let mut items = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
        items.record(ItemType::PAYLOAD_MEMFD, &Memfd { start: 0, size: 6, fd: 0, pad: 0 }).unwrap();
        items.record(ItemType::FDS, &1_i32).unwrap();
        let size = items.len();
        message[..64].copy_from_slice(Msg { size: size as u64, ..header(id) }.as_bytes());
        let fds = [memfd.borrow(), event.borrow()];
        a.send(&mut Outgoing { message: &mut message[..size], payload: &[], fds: &fds, begun: None })
            .unwrap();
        let before = bus.sim.world().open_files();
        drop((memfd, event));
        assert_eq!(bus.sim.world().open_files(), before, "the message holds them");
        let received = b.recv(RecvFlags::empty(), 0).unwrap().message.unwrap();
        assert_eq!(received.fds[0].read(8), Ok(3_u64.to_ne_bytes().to_vec()));
        assert_eq!(received.fds[1].read(8), Ok(b"sealed".to_vec()));
        drop(received);
        assert_eq!(bus.sim.world().open_files(), before - 2);
    }

    #[test]
    fn a_dead_bus_breaks_its_connections_for_good() {
        let bus = Bus::new();
        let (a, id) = bus.connect();
        let fresh = bus.sim.open(bus.process, "1000-test", "bus").unwrap();
        bus.sim.world_mut().close(bus.process, bus.control).unwrap();
        let broken = Failure::Broken(Errno::ECONNRESET);
        assert_eq!(a.wait(None), Err(broken));
        assert_eq!(send(&a, header(id), b"x"), Err(broken));
        let mut hello = CmdHello { size: 96, pool_size: 4096, ..CmdHello::default() };
        let shut_down = Failure::Broken(Errno::ESHUTDOWN);
        assert_eq!(fresh.record(Command::Hello, &mut hello), Err(shut_down));
    }
}
