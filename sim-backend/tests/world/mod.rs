//! The suite's world over the simulator.

use kdbus_conformance::{
    BadAddress, Body, CaseInfo, Ended, Needs, Node, Payload, Poll, Skip, Transported, Who,
};
use kdbus_core::Instant;
use kdbus_core::abi::{CmdSend, Command, Errno, ITEM_HEADER, ItemType, Items, Msg};
use kdbus_core::engine::{Config, Spaces};
use kdbus_sim::{File, ProcessId, Progress, Sim, SimBorrowedFd, SimFd, SimTransport, Token, World};

/// Where `msg_address` stands in the argument of SEND.
const MSG_ADDRESS: usize = std::mem::offset_of!(CmdSend, msg_address);

/// An address beyond every user's.
const KERNEL_ADDRESS: u64 = 0xffff_8000_0000_0000;

/// Uid and gid of the bus' owner; users follow behind.
const OWNER: u32 = 1000;

/// Security label of every process.
const LABEL: &str = "simulated";

/// A simulated machine for one case.
pub(crate) struct SimWorld {
    sim: Sim,
    owner: ProcessId,
    users: Vec<ProcessId>,
}

/// An open handle: the process and its descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handle(ProcessId, i32);

/// A SEND that ended or waits.
pub(crate) struct Call {
    handle: Handle,
    command: Vec<u8>,
    message: Vec<u8>,
    payload: Vec<Payload>,
    state: State,
}

enum State {
    Ended(Result<(), Errno>),
    Waiting(Token),
}

impl From<Progress> for State {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Done(result) => Self::Ended(result),
            Progress::Waiting(token) => Self::Waiting(token),
        }
    }
}

impl SimWorld {
    pub(crate) fn new(case: &CaseInfo) -> Self {
        let sim = Sim::new(&config(case.needs()), 1).unwrap();
        let owner = spawn(&mut sim.world_mut(), OWNER);
        sim.world_mut().leave_spare_fds(owner, 2048);
        Self { sim, owner, users: Vec::new() }
    }

    /// The simulation that the world is part of.
    #[allow(dead_code, reason = "not every test that uses this world looks at it")]
    pub(crate) const fn sim(&self) -> &Sim {
        &self.sim
    }

    fn issue(
        &mut self,
        handle: Handle,
        command: &mut [u8],
        message: &mut [u8],
        payload: &[Payload],
    ) -> Progress {
        put(command, MSG_ADDRESS, 1);
        // Unreadable memory is memory that the simulated process does not have.
        let readable: Vec<&[u8]> = payload
            .iter()
            .map_while(|memory| match memory {
                Payload::Bytes(bytes) => Some(&bytes[..]),
                Payload::Unmapped | Payload::Kernel => None,
            })
            .collect();
        let places = vector_addresses(message);
        let former: Vec<u64> = places.iter().map(|at| get(message, *at)).collect();
        for (at, memory) in places.iter().zip(payload) {
            if *memory == Payload::Kernel {
                put(message, *at, KERNEL_ADDRESS);
            }
        }
        let body = kdbus_sim::Body { message: &mut *message, payload: &readable };
        let request = Command::Send.request();
        let progress = self.sim.world_mut().command(handle.0, handle.1, request, command, Some(body));
        for (at, address) in places.into_iter().zip(former) {
            put(message, at, address);
        }
        progress
    }

    /// Passes time until a call has ended.
    fn wait_for(&mut self, call: &mut Call) {
        while let State::Waiting(token) = call.state {
            if let Some(result) = self.sim.world_mut().take_answer(token) {
                call.state = State::Ended(result.map(|reply| World::write_reply(&mut call.command, reply)));
                return;
            }
            let next = self.sim.world_mut().next_event().expect("a call waits for nothing");
            self.sim.world_mut().advance_to(next);
        }
    }
}

/// A process whose ids are all `id`, with two groups more.
fn spawn(world: &mut World, id: u32) -> ProcessId {
    let process = world.spawn_user("case", id, id);
    let mut credentials = world.credentials(process).clone();
    credentials.groups.extend([id + 5000, id + 5001]);
    credentials.label.extend(LABEL.bytes());
    world.set_credentials(process, credentials);
    process
}

/// A domain is never given back, so it gets no more room than its case needs.
fn config(needs: Needs) -> Config {
    Config {
        handles: needs.connections + needs.buses + 16,
        buses: needs.buses,
        endpoints: needs.buses + 8,
        connections: needs.connections,
        queue_depth: needs.messages,
        pool_slices: needs.slices,
        names: needs.names,
        name_records: needs.names + 8,
        matches: needs.matches,
        match_rules: needs.matches + 8,
        match_buckets: needs.matches,
        trackers: needs.calls,
        ..Config::SMALL
    }
}

/// Offsets of the addresses of all vectors that name memory.
fn vector_addresses(message: &[u8]) -> Vec<usize> {
    let area = message.get(Msg::SIZE..).unwrap_or_default();
    let vectors = Items::new(area)
        .map_while(Result::ok)
        .filter(|item| item.kind == ItemType::PAYLOAD_VEC && item.payload.len() == 16);
    vectors.map(|item| Msg::SIZE + item.at + ITEM_HEADER + 8).filter(|at| get(message, *at) != 0).collect()
}

fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
}

fn put(bytes: &mut [u8], at: usize, word: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}

impl kdbus_conformance::World for SimWorld {
    type User = ProcessId;
    type Handle = Handle;
    type Call = Call;

    fn owner(&mut self) -> ProcessId {
        self.owner
    }

    fn user(&mut self, number: usize) -> Result<ProcessId, Skip> {
        while self.users.len() < number {
            let id = OWNER + 10 * (self.users.len() as u32 + 1);
            self.users.push(spawn(&mut self.sim.world_mut(), id));
        }
        Ok(self.users[number - 1])
    }

    fn sibling(&mut self, of: ProcessId) -> Result<ProcessId, Skip> {
        let credentials = self.sim.world_mut().credentials(of).clone();
        Ok(self.sim.world_mut().spawn("sibling", &credentials))
    }

    fn apart(&mut self, of: ProcessId) -> Result<ProcessId, Skip> {
        let mut world = self.sim.world_mut();
        let mut credentials = world.credentials(of).clone();
        let space = u64::from(credentials.uid);
        credentials.spaces = Spaces { users: space, pids: space, pid: 1, ..Spaces::HOST };
        Ok(world.spawn("apart", &credentials))
    }

    fn who(&mut self, user: ProcessId) -> Who {
        let world = self.sim.world();
        let credentials = world.credentials(user);
        Who {
            uid: credentials.euid,
            gid: credentials.egid,
            groups: credentials.groups.to_vec(),
            pid: credentials.pid,
            label: Some(LABEL.to_owned()),
            apart: credentials.spaces != Spaces::HOST,
        }
    }

    fn become_user(&mut self, user: ProcessId, number: usize) -> Result<(), Skip> {
        let other = self.user(number)?;
        let pid = self.sim.world_mut().credentials(user).pid;
        let mut credentials = self.sim.world_mut().credentials(other).clone();
        (credentials.pid, credentials.tid) = (pid, pid);
        self.sim.world_mut().set_credentials(user, credentials);
        Ok(())
    }

    fn open_control(&mut self, user: ProcessId) -> Result<Handle, Errno> {
        self.sim.world_mut().open_control(user).map(|fd| Handle(user, fd))
    }

    fn open(&mut self, user: ProcessId, bus: &str, endpoint: &str) -> Result<Handle, Errno> {
        self.sim.world_mut().open(user, bus, endpoint).map(|fd| Handle(user, fd))
    }

    fn close(&mut self, handle: Handle) {
        self.sim.world_mut().close(handle.0, handle.1).unwrap();
    }

    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        let file = self.sim.world_mut().node(bus, endpoint.unwrap_or("bus"))?;
        let mode = if endpoint.is_some() { file.mode } else { file.directory_mode() };
        Some(Node { uid: file.uid, gid: file.gid, mode })
    }

    fn ioctl(&mut self, handle: &Handle, request: u32, arg: &mut [u8]) -> Result<(), Errno> {
        match self.sim.world_mut().command(handle.0, handle.1, request, arg, None) {
            Progress::Done(result) => result,
            Progress::Waiting(_) => panic!("only SEND waits"),
        }
    }

    fn ioctl_at(&mut self, _: &Handle, _: u32, _: &[u8], _: BadAddress) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("arguments have no addresses in the simulator"))
    }

    fn send(&mut self, handle: &Handle, command: &mut [u8], body: Option<Body<'_>>) -> Result<(), Errno> {
        let progress = match body {
            Some(body) => self.issue(*handle, command, body.message, body.payload),
            None => {
                put(command, MSG_ADDRESS, 0);
                self.sim.world_mut().command(handle.0, handle.1, Command::Send.request(), command, None)
            }
        };
        match progress {
            Progress::Done(result) => result,
            Progress::Waiting(_) => panic!("this SEND was not to wait"),
        }
    }

    fn start(
        &mut self,
        handle: &Handle,
        mut command: Vec<u8>,
        mut message: Vec<u8>,
        payload: Vec<Payload>,
    ) -> Call {
        let state = self.issue(*handle, &mut command, &mut message, &payload).into();
        Call { handle: *handle, command, message, payload, state }
    }

    fn finish(&mut self, mut call: Call) -> Ended {
        self.wait_for(&mut call);
        match call.state {
            State::Ended(result) => Ended { result, command: call.command },
            State::Waiting(_) => unreachable!("it was waited for"),
        }
    }

    fn is_waiting(&mut self, call: &Call) -> bool {
        match call.state {
            State::Waiting(token) => self.sim.world_mut().is_waiting(token),
            State::Ended(_) => false,
        }
    }

    fn interrupt(&mut self, call: &mut Call, restart: bool) -> Result<(), Skip> {
        let State::Waiting(token) = call.state else { return Ok(()) };
        self.sim.world_mut().cancel(token, Errno::EINTR);
        self.wait_for(call);
        if restart {
            // The kernel issues the same command again.
            let progress = self.issue(call.handle, &mut call.command, &mut call.message, &call.payload);
            call.state = progress.into();
        }
        Ok(())
    }

    fn poll(&mut self, handle: &Handle) -> Poll {
        let readiness = self.sim.world_mut().readiness(handle.0, handle.1).unwrap();
        Poll { readable: readiness.readable, writable: readiness.writable, hung_up: readiness.hung_up }
    }

    fn wait(&mut self, handle: &Handle, until: u64) -> Poll {
        let until = Instant::from_nanos(until);
        loop {
            let poll = self.poll(handle);
            let now = self.sim.world_mut().now();
            if poll.readable || poll.hung_up || now >= until {
                return poll;
            }
            let next = self.sim.world_mut().next_event().map_or(until, |event| event.min(until));
            self.sim.world_mut().advance_to(next.max(now));
        }
    }

    fn pool(&mut self, handle: &Handle, offset: u64, len: u64) -> Option<Vec<u8>> {
        self.sim.world_mut().pool(handle.0, handle.1, offset, len).map(<[u8]>::to_vec)
    }

    fn map(&mut self, _: &Handle, _: u64, _: bool) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("the simulator has no mappings"))
    }

    fn make_mapping_writable(&mut self, _: &Handle) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("the simulator has no mappings"))
    }

    fn now(&mut self) -> u64 {
        self.sim.world_mut().now().as_nanos()
    }

    fn sleep_until(&mut self, at: u64) {
        self.sim.world_mut().advance_to(Instant::from_nanos(at));
    }

    fn memfd(&mut self, user: ProcessId, content: &[u8], sealed: bool) -> i32 {
        self.sim.world_mut().open_file(user, File::Memfd { content: content.to_vec(), sealed }).unwrap()
    }

    fn pipe(&mut self, user: ProcessId) -> (i32, i32) {
        let (reader, writer) = File::pipe();
        let mut world = self.sim.world_mut();
        (world.open_file(user, reader).unwrap(), world.open_file(user, writer).unwrap())
    }

    fn event(&mut self, user: ProcessId) -> i32 {
        self.sim.world_mut().open_file(user, File::Event(0)).unwrap()
    }

    fn regular_file(&mut self, user: ProcessId) -> i32 {
        self.sim.world_mut().open_file(user, File::Regular(Vec::new())).unwrap()
    }

    fn unix_socket(&mut self, user: ProcessId) -> i32 {
        self.sim.world_mut().open_file(user, File::UnixSocket).unwrap()
    }

    fn path_only(&mut self, user: ProcessId) -> i32 {
        self.sim.world_mut().open_file(user, File::Path).unwrap()
    }

    fn handle_fd(&mut self, handle: &Handle) -> i32 {
        handle.1
    }

    fn read_fd(&mut self, user: ProcessId, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        self.sim.world_mut().read(user, fd, len)
    }

    fn write_fd(&mut self, user: ProcessId, fd: i32, bytes: &[u8]) -> Result<(), Errno> {
        self.sim.world_mut().write(user, fd, bytes)
    }

    fn close_fd(&mut self, user: ProcessId, fd: i32) -> Result<(), Errno> {
        self.sim.world_mut().close(user, fd)
    }

    fn is_close_on_exec(&mut self, user: ProcessId, fd: i32) -> Result<bool, Errno> {
        self.sim.world_mut().is_close_on_exec(user, fd)
    }

    fn leave_spare_fds(&mut self, user: ProcessId, spare: usize) -> Result<(), Skip> {
        self.sim.world_mut().leave_spare_fds(user, spare);
        Ok(())
    }
}

impl Transported for SimWorld {
    type Transport = SimTransport;

    fn connect(&mut self, user: ProcessId, bus: &str, endpoint: &str) -> Result<SimTransport, Errno> {
        self.sim.open(user, bus, endpoint)
    }

    fn borrow<'a>(&'a self, user: ProcessId, number: i32) -> Option<SimBorrowedFd>
    where
        SimTransport: 'a,
    {
        self.sim.world().file(user, number).is_ok().then_some(SimBorrowedFd(number))
    }

    fn keep(&mut self, _: ProcessId, fd: SimFd) -> i32 {
        fd.into_number()
    }
}
