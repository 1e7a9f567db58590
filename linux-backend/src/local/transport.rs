//! The transport over kdbusd.

use core::cell::{Cell, OnceCell, RefCell, RefMut};

use kdbus_core::abi::{
    Cmd, CmdFree, CmdHello, Command, Errno, FLAG_NEGOTIATE, Frame, HelloFlags, Msg, RecvFlags, SendFlags,
};
use kdbus_core::channel::InboxReader;
use kdbus_core::client::{Deadline, Failure, Found, Incoming, Outgoing, Transport};
use kdbus_core::hint::{likely, unlikely};
use kdbus_core::{Instant, WellKnownName};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

use super::arena::Arena;
use super::bell::{self, Bell, Woken};
use super::block::Block;
use super::detour::Detour;
use super::error::{ConnectError, EPROTO, errno};
use super::gate;
use super::handle::{Answer, Beside, Handle};
use super::in_lanes::InLanes;
use super::incoming::Taken;
use super::map::WordMap;
use super::options::{LANE_AFTER, Options};
use super::outward::{OutLanes, Way};
use super::receive::Receiver;
use super::spin::Spin;

/// Messages by lane, and looks that found nothing, between two looks whether kdbusd is still there.
const QUIET: u32 = 1024;
/// Bytes between the pool and the arena, in offsets.
const GAP: u64 = 4096;

/// A client's way to a bus of kdbusd.
///
/// ```no_run
/// use kdbus_linux::local::LocalTransport;
/// let transport = LocalTransport::connect_default()?;
/// # Ok::<(), kdbus_linux::local::ConnectError>(())
/// ```
#[derive(Debug)]
pub struct LocalTransport {
    pub(super) handle: Handle,
    pub(super) bell: Bell,
    pub(super) receiver: RefCell<Option<Receiver<WordMap, WordMap>>>,
    /// Lanes that are to be brought, and messages before one is asked for.
    pub(super) wanted: (usize, u32),
    /// Which messages do not take them.
    pub(super) detour: Detour,
    /// How long to look before a wait sleeps.
    pub(super) spin: Cell<Option<Spin>>,
    /// Where messages lie that came by lane.
    arena: OnceCell<Arena>,
    /// Lanes by which this connection sends.
    pub(super) outward: RefCell<Option<OutLanes>>,
    /// The connection has ended, though kdbusd has not.
    ended: Cell<bool>,
    /// What was done since kdbusd was last seen alive, without a word to it.
    quiet: Cell<u32>,
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

    /// A transport over an open node. It brings no lanes.
    ///
    /// # Errors
    ///
    /// [`ConnectError::System`] if there are no descriptors left to wait on.
    pub fn over(handle: Handle) -> Result<Self, ConnectError> {
        let bell =
            Bell::new(handle.socket()).map_err(|error| ConnectError::System(handle.path(), errno(error)))?;
        Ok(Self {
            handle,
            bell,
            receiver: RefCell::new(None),
            wanted: (0, LANE_AFTER),
            detour: Detour::NONE,
            spin: Cell::new(None),
            arena: OnceCell::new(),
            outward: RefCell::new(None),
            ended: Cell::new(false),
            quiet: Cell::new(0),
        })
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
        if unlikely(self.ended.get()) { Err(Failure::Broken(Errno::ECONNRESET)) } else { Ok(()) }
    }

    /// Looks every now and then whether kdbusd is still there: who neither sleeps nor asks it anything would not
    /// notice. Costs a system call once in [`QUIET`] times.
    pub(super) fn beat(&self) -> Result<(), Failure> {
        let quiet = self.quiet.get() + 1;
        if likely(quiet < QUIET) {
            self.quiet.set(quiet);
            return Ok(());
        }
        self.quiet.set(0);
        if bell::is_hung_up(self.handle.socket()) { Err(self.end()) } else { Ok(()) }
    }

    /// What a refusal means: once the connection has ended, each one is its end.
    fn refused(&self, failure: Failure) -> Failure {
        let ended = self.receiver.borrow().as_ref().is_some_and(|receiver| !receiver.is_alive());
        if ended { self.end() } else { failure }
    }

    /// Ends the connection: from here on the descriptor is readable for ever.
    pub(super) fn end(&self) -> Failure {
        self.ended.set(true);
        self.bell.ring_own();
        self.handle.check().err().unwrap_or(Failure::Broken(Errno::ECONNRESET))
    }

    /// Takes over what a successful HELLO has left.
    fn attach(&self, hello: &CmdHello) -> Result<(), Failure> {
        let flags = HelloFlags::from_bits_retain(hello.flags);
        let Some(queue) = self.handle.take_queue() else { return Ok(()) };
        let inbox = InboxReader::attach(queue.posted, queue.shared).map_err(|_| self.handle.fail(EPROTO))?;
        let system = |error| self.handle.fail(errno(error));
        self.bell.attach(queue.bell).map_err(system)?;
        // kdbus: a policy holder receives nothing, which kdbusd tells it.
        if flags.contains(HelloFlags::POLICY_HOLDER) {
            return Ok(());
        }
        let mut receiver = Receiver::new(inbox).map_err(system)?;
        // The others take part in no exchange of two.
        if gate().is_some()
            && self.wanted.0 > 0
            && !flags.intersects(HelloFlags::ACTIVATOR | HelloFlags::MONITOR)
        {
            self.bring_lanes(&mut receiver, hello.id)?;
        }
        *self.receiver.borrow_mut() = Some(receiver);
        Ok(())
    }

    /// Brings as many lanes as wanted, or as kdbusd has.
    fn bring_lanes(&self, receiver: &mut Receiver<WordMap, WordMap>, id: u64) -> Result<(), Failure> {
        let system = |error| self.handle.fail(errno(error));
        let mut lanes = Block::new(self.wanted.0, || None).map_err(system)?;
        let mut count = 0;
        for place in &mut *lanes {
            match self.handle.bring_lane() {
                Ok(lane) => *place = Some(lane),
                Err(Failure::Refused(_)) => break,
                Err(broken) => return Err(broken),
            }
            count += 1;
        }
        if count == 0 {
            return Ok(());
        }
        let brought = lanes.iter_mut().filter_map(Option::take);
        let (inward, arena) = InLanes::new(brought, count, id, receiver.depth()).map_err(system)?;
        for (at, bell) in inward.bells() {
            self.bell.add_lane(at, bell).map_err(system)?;
        }
        receiver.add_lanes(inward).map_err(system)?;
        // There is one HELLO at most.
        let _ = self.arena.set(arena);
        *self.outward.borrow_mut() = Some(OutLanes::new(self.wanted, self.detour, id).map_err(system)?);
        Ok(())
    }

    /// Whether the end of a call by lane was not received yet.
    fn owes_ends(&self) -> bool {
        match (&mut *self.receiver.borrow_mut(), &mut *self.outward.borrow_mut()) {
            (Some(receiver), Some(outward)) => receiver.is_alive() && receiver.has_ends(outward),
            _ => false,
        }
    }

    /// Opens a lane to the connection with this id now, so that no message to it has to wait for one.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code, as [`Handle::open_lane`]. Messages go through kdbusd then.
    pub fn open_lane(&self, receiver: u64) -> Result<(), Failure> {
        self.open_lane_to(receiver, &[])
    }

    /// Opens a lane to the owner of a name now, so that no message to it has to wait for one.
    ///
    /// # Errors
    ///
    /// As [`open_lane`](Self::open_lane); `EAGAIN` if the name passed on meanwhile.
    pub fn open_lane_to_name(&self, name: WellKnownName<'_>) -> Result<(), Failure> {
        self.open_lane_to(0, name.as_str().as_bytes())
    }

    /// Lanes that lead from this connection to others now. Messages to other receivers go through kdbusd.
    #[must_use]
    pub fn open_lanes(&self) -> usize {
        self.outward.borrow().as_ref().map_or(0, OutLanes::open_lanes)
    }

    /// The calls by lane, for kdbusd to count.
    fn open_calls(&self) -> Beside {
        Beside::Calls(self.outward.borrow().as_ref().map_or(0, OutLanes::waiting_calls))
    }

    fn open_lane_to(&self, id: u64, name: &[u8]) -> Result<(), Failure> {
        self.check()?;
        match &mut *self.outward.borrow_mut() {
            Some(outward) => outward.open(&self.handle, id, name),
            None => Err(Failure::Refused(Errno::EOPNOTSUPP)),
        }
    }

    /// Puts new lanes in the place of those that nothing more comes by.
    fn replace_lanes(&self, receiver: &mut Receiver<WordMap, WordMap>) -> Result<(), Failure> {
        let Some(lanes) = receiver.lanes() else { return Ok(()) };
        while let Some(lane) = lanes.worn_out() {
            self.handle.drop_lane(lane)?;
        }
        // Ends: each round fills a place, or begins a pause.
        while let Some(at) = lanes.empty_place(self.arena()) {
            match self.handle.bring_lane() {
                Ok(lane) if self.bell.add_lane(at, lane.as_fd()).is_ok() => lanes.replace(at, lane),
                Ok(lane) => {
                    self.handle.drop_lane(lane)?;
                    lanes.refused();
                }
                Err(Failure::Refused(_)) => lanes.refused(),
                Err(broken) => return Err(broken),
            }
        }
        Ok(())
    }

    /// Sends a message. If it may wait for room in a lane that is full, `room_until` says how long.
    fn send_until(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        room_until: Option<Deadline>,
    ) -> Result<(), Failure> {
        self.check()?;
        let mut receiver = self.receiver.borrow_mut();
        let way = match &mut *self.outward.borrow_mut() {
            Some(outward) if gate().is_some() => {
                let way = if is_reply(message.message) {
                    let mut receiver = receiver.as_mut();
                    if let Some(receiver) = &mut receiver {
                        receiver.look_at_calls(self.handle.pool());
                    }
                    outward.reply(&self.handle, receiver.and_then(Receiver::lanes), message)
                } else if outward.send(&self.handle, message, false, room_until) {
                    Way::Lane
                } else {
                    Way::Bus
                };
                if unlikely(self.bell.is_watched()) && !outward.calls().is_empty() {
                    self.bell.set_timer(outward.calls().next());
                }
                way
            }
            _ => Way::Bus,
        };
        match way {
            Way::Lane => self.beat(),
            way => self.send_by_bus(message, way, receiver),
        }
    }

    /// Sends a message through kdbusd, as what `way` says.
    #[inline(never)]
    fn send_by_bus(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        way: Way,
        mut receiver: RefMut<'_, Option<Receiver<WordMap, WordMap>>>,
    ) -> Result<(), Failure> {
        let mut inward = receiver.as_mut().and_then(Receiver::lanes);
        let (mut owed, by_name) = match way {
            Way::Lane | Way::Bus => (None, None),
            Way::Claim(owed) => (Some(owed), None),
            Way::ClaimByName(cookie) => {
                (inward.as_mut().and_then(|inward| inward.owed_to_any(None, cookie)), Some(cookie))
            }
        };
        // Ends: each round is about another lane, or the last one.
        let sent = loop {
            let lane = owed.and_then(|owed| inward.as_ref()?.number(&owed));
            let beside = match owed.zip(lane) {
                Some((owed, lane)) => Beside::Claim { lane, call: owed.name.word() },
                None => self.open_calls(),
            };
            let sent = self.send_to_bus(receiver.as_mut(), message, SendFlags::empty(), None, beside, None);
            inward = receiver.as_mut().and_then(Receiver::lanes);
            let next = (by_name, inward.as_mut(), owed);
            if let (Err(Failure::Refused(Errno::EBADSLT)), (Some(cookie), Some(inward), Some(last))) =
                (&sent, next)
            {
                // It was another one who called, or it has ended.
                owed = inward.owed_to_any(Some(&last), cookie);
                continue;
            }
            break sent;
        };
        if let (Ok(sent), Some(outward)) = (&sent, &mut *self.outward.borrow_mut()) {
            outward.set_by_bus(sent.calls);
        }
        if let (Ok(_), Some(owed), Some(inward)) = (&sent, owed, inward) {
            inward.forget_ended(&owed);
        }
        drop(receiver);
        sent.map(|_| ()).map_err(|failure| self.refused(failure))
    }

    /// Where messages lie that came by lane.
    pub(super) fn arena(&self) -> Option<&Arena> {
        gate()?;
        self.arena.get()
    }

    /// Where offsets of the arena begin: behind the pool, and behind the offset that stands for no message.
    pub(super) fn arena_base(&self) -> u64 {
        self.handle.pool().map_or(0, super::map::ReadMap::len) + GAP
    }

    /// The descriptor, for somebody else to poll.
    fn watch(&self) -> BorrowedFd<'_> {
        if !self.bell.is_watched() {
            let set = self.bell.watch();
            if let Some(receiver) = &mut *self.receiver.borrow_mut()
                && (self.arm(receiver) == Ok(true) || receiver.has_losses())
            {
                self.bell.ring_own();
            }
            return set;
        }
        self.bell.watch()
    }

    /// Silences the bell and asks for it. True if something is there that nobody rings for.
    pub(super) fn arm(&self, receiver: &mut Receiver<WordMap, WordMap>) -> Result<bool, Failure> {
        let mut rung = |at, stale| {
            if let Some(lanes) = receiver.lanes() {
                lanes.rang(at, stale);
            }
        };
        if unlikely(!self.bell.silence(&mut rung) || !receiver.is_alive()) {
            return Err(self.end());
        }
        self.replace_lanes(receiver)?;
        let mut outward = self.outward.borrow_mut();
        if gate().is_some()
            && let (Some(outward), true) = (&mut *outward, unlikely(self.bell.is_watched()))
        {
            self.bell.set_timer(outward.calls().next());
        }
        let fresh = receiver.arm(outward.as_mut());
        if likely(receiver.is_alive()) { Ok(fresh) } else { Err(self.end()) }
    }
}

/// Whether a message answers a call.
fn is_reply(message: &[u8]) -> bool {
    Msg::read_from_prefix(message).is_ok_and(|(header, _)| header.cookie_reply() != 0)
}

/// Whether a BYEBYE is in order, and no question which flags there are.
fn leaves(arg: &mut [u8]) -> bool {
    let asks = Cmd::read_from_prefix(arg).is_ok_and(|(command, _)| command.flags & FLAG_NEGOTIATE != 0);
    // A question is answered in its own place.
    !asks && Frame::check(arg, Command::Byebye.shape(), false).is_ok()
}

impl AsFd for LocalTransport {
    /// The descriptor that is readable while anything waits.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch()
    }
}

impl Transport for LocalTransport {
    type Fd = OwnedFd;
    type BorrowedFd<'a> = BorrowedFd<'a>;
    type Slice<'a> = &'a [u8];

    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure> {
        self.check()?;
        if gate().is_some() && command == Command::Byebye && leaves(arg) {
            if self.owes_ends() {
                // Only this end knows of them.
                return Err(Failure::Refused(Errno::EBUSY));
            }
            if let Some(receiver) = &mut *self.receiver.borrow_mut() {
                receiver.before_byebye();
                // Whoever may not leave goes on polling.
                self.ring_for_silenced(receiver);
            }
        }
        self.handle.command(command.request(), arg).map_err(|failure| self.refused(failure))?;
        if command == Command::Hello {
            let hello =
                CmdHello::read_from_prefix(arg).map_or_else(|_| CmdHello::default(), |(hello, _)| hello);
            self.attach(&hello)?;
        }
        Ok(())
    }

    fn send(&self, message: &mut Outgoing<'_, BorrowedFd<'_>>) -> Result<(), Failure> {
        self.send_until(message, None)
    }

    fn send_patiently(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        until: Deadline,
    ) -> Result<(), Failure> {
        self.send_until(message, Some(until))
    }

    fn call_into(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        cancel: Option<BorrowedFd<'_>>,
        reply: &mut Incoming<OwnedFd>,
    ) -> Result<(), Failure> {
        self.check()?;
        if let Some(ended) = self.call_by_lane(message, cancel, reply) {
            return ended;
        }
        let mut answer = Answer::new();
        let calls = self.open_calls();
        let sent = {
            let mut receiver = self.receiver.borrow_mut();
            let receiver = receiver.as_mut();
            self.send_to_bus(receiver, message, SendFlags::SYNC_REPLY, cancel, calls, Some(&mut answer))
        };
        let sent = sent.map_err(|failure| self.refused(failure))?;
        if self.received(sent.reply, &mut answer, reply) { Ok(()) } else { Err(self.handle.fail(EPROTO)) }
    }

    fn recv_into(
        &self,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<Found, Failure> {
        self.check()?;
        let mut receiver = self.receiver.borrow_mut();
        let malformed =
            flags.contains(RecvFlags::DROP | RecvFlags::USE_PRIORITY) || !RecvFlags::all().contains(flags);
        match receiver.as_mut() {
            Some(receiver) if likely(!malformed) => {
                if unlikely(!receiver.is_alive()) {
                    return Err(self.end());
                }
                match self.receive(receiver, flags, priority, message) {
                    Ok(taken) => Ok(Found { message: taken == Taken::Message, dropped: receiver.dropped() }),
                    // Once the connection has ended, each refusal is its end.
                    Err(failure) => Err(if receiver.is_alive() { failure } else { self.end() }),
                }
            }
            // kdbusd knows what is wrong.
            _ => {
                let message = self.receive_by_command(None, flags, priority, message)?;
                Ok(Found { message, dropped: 0 })
            }
        }
    }

    fn slice(&self, offset: u64, size: u64) -> Option<&[u8]> {
        match (offset.checked_sub(self.arena_base()), self.arena()) {
            (Some(offset), Some(arena)) => arena.bytes(offset, size),
            _ => self.handle.pool()?.bytes(offset, size),
        }
    }

    fn free(&self, offset: u64) {
        if let (Some(offset), Some(arena)) = (offset.checked_sub(self.arena_base()), self.arena()) {
            let lane = arena.free(offset);
            let mut receiver = self.receiver.borrow_mut();
            let Some(lanes) = receiver.as_mut().and_then(Receiver::lanes) else { return };
            let told = lane.is_some_and(|lane| lanes.gave_back(lane, arena));
            if unlikely(lanes.relieve() || told) && self.bell.is_watched() {
                // Nobody else rings for what waited for this room, or nobody does any more.
                self.bell.ring_own();
            }
            return;
        }
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
        let mut looked = false;
        if self.find(deadline, &mut looked) {
            return Ok(());
        }
        if !self.bell.is_watched()
            && let Some(receiver) = &mut *self.receiver.borrow_mut()
            && (self.arm(receiver)? || receiver.has_losses())
        {
            return Ok(());
        }
        let mut rung = |at, stale| {
            if let Some(receiver) = &mut *self.receiver.borrow_mut()
                && let Some(lanes) = receiver.lanes()
            {
                lanes.rang(at, stale);
            }
        };
        let calls = self.outward.borrow_mut().as_mut().map(|outward| outward.calls().next());
        let deadline = deadline.into_iter().chain(calls.filter(|next| *next != Instant::FAR)).min();
        self.with_spin(|spin| spin.slept(looked));
        match self.bell.wait(self.handle.socket(), deadline, &mut rung) {
            Ok(Woken::HungUp) => Err(self.end()),
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Refused(errno(error))),
        }
    }

    fn sleep(&self, until: Instant) -> Result<(), Failure> {
        crate::clock::sleep(until)
    }

    fn fd(&self) -> Option<i32> {
        Some(self.watch().as_raw_fd())
    }

    fn watch_room(&self, receiver: u64) -> Result<bool, Failure> {
        self.check()?;
        self.handle.watch_room(receiver).map(|()| true).map_err(|failure| self.refused(failure))
    }
}
