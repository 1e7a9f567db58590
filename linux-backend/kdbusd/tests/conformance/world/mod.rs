//! The suite's world over kdbusd.
//!
//! Handles are driven at the level of packets, so that malformed commands reach the daemon as they are, and
//! so that several commands of one handle can be under way in one thread. Users other than the one who runs
//! the tests need root, as nodes have to be opened with their ids.

mod client;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use kdbus_conformance::{
    Apart, BadAddress, Body, CallApart, Ended, Needs, Node, Payload, Poll, Skip, Transported, Who, World,
};
use kdbus_core::abi::{
    CmdFree, CmdRecv, CmdSend, Command, Errno, Frame, ITEM_HEADER, ItemType, Items, Msg, MsgInfo,
};
use kdbus_linux::local::map::{ReadMap, WordMap};
use kdbus_linux::local::socket::{self, Wait};
use kdbus_linux::local::wire::{FDS_MAX, Header, Kind};
use kdbus_linux::local::{self, LocalTransport, NodePath, Options};
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::Resource;
use rustix::thread::{Gid, Uid};
use zerocopy::FromBytes;

use client::{Answer, Client};

/// Where `msg_address` stands in the argument of SEND.
const MSG_ADDRESS: usize = std::mem::offset_of!(CmdSend, msg_address);

/// Held while a child exists that has not become another program yet: it has a copy of every descriptor of the cases
/// that run beside it, so what they close then is not closed.
pub(crate) static FORKS: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// Uid and gid of the first user who is not the owner.
const FIRST_USER: u32 = 54_321;

/// How long nothing may happen at all before a case is given up.
const PATIENCE: Duration = Duration::from_secs(60);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error().unsigned_abs()).unwrap_or(Errno::EIO)
}

pub(crate) type Handle = Rc<RefCell<Client>>;

/// A SEND that ended or waits.
pub(crate) struct Call {
    handle: Handle,
    command: Vec<u8>,
    state: State,
    /// Descriptor that ends the wait.
    cancel: Option<i32>,
}

enum State {
    Ended(Result<(), Errno>),
    Waiting(u64),
}

/// A daemon's tree for one case.
pub(crate) struct DaemonWorld<D> {
    tree: PathBuf,
    /// Lanes that each client brings through a transport; with any, each message that can goes by one.
    lanes: usize,
    /// Says which of those go through the daemon all the same; the next client has the next one.
    seed: Option<u64>,
    /// Ends with the case.
    _daemon: D,
    /// Every descriptor that a case knows, by its number; those of handles too.
    fds: BTreeMap<i32, Rc<OwnedFd>>,
}

impl<D> DaemonWorld<D> {
    /// A world on the tree at `tree`, which `daemon` keeps there.
    pub(crate) fn new(tree: PathBuf, daemon: D) -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
        let _ = rustix::process::setrlimit(Resource::Nofile, most);
        Self { tree, lanes: 0, seed: None, _daemon: daemon, fds: BTreeMap::new() }
    }

    /// The same with lanes.
    #[allow(dead_code, reason = "not every program has lanes")]
    pub(crate) fn with_lanes(self, lanes: usize) -> Self {
        Self { lanes, ..self }
    }

    /// The same where `seed` chooses for each message that can go by lane whether it does.
    #[allow(dead_code, reason = "not every program has lanes")]
    pub(crate) fn with_detours(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    fn keep(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.fds.insert(number, Rc::new(fd));
        number
    }

    fn fd(&self, number: i32) -> Result<&OwnedFd, Errno> {
        self.fds.get(&number).map(|fd| &**fd).ok_or(Errno::EBADF)
    }

    fn socket(&self, user: User, node: &str) -> Result<OwnedFd, Errno> {
        let path = self.tree.join(node);
        as_user(user, move || socket::connect(path.as_os_str().as_encoded_bytes()))
    }

    fn open_node(&mut self, user: User, node: &str) -> Result<Handle, Errno> {
        let socket = Rc::new(self.socket(user, node)?);
        self.fds.insert(socket.as_raw_fd(), Rc::clone(&socket));
        Ok(Rc::new(RefCell::new(Client::new(socket))))
    }

    /// Sends a SEND: its descriptors become places in the packet, its vectors bytes.
    fn submit_send(
        &mut self,
        handle: &Handle,
        command: &[u8],
        message: &[u8],
        payload: &[Payload],
    ) -> Result<u64, Errno> {
        // Unreadable memory is payload that ends early.
        let readable = payload.iter().map_while(|memory| match memory {
            Payload::Bytes(bytes) => Some(&bytes[..]),
            Payload::Unmapped | Payload::Kernel => None,
        });
        let payload: Vec<u8> = readable.flatten().copied().collect();
        let mut translated = message.to_vec();
        let mut files: Vec<Rc<OwnedFd>> = Vec::new();
        for at in fd_places(message) {
            let number = i32::from_ne_bytes(*message[at..].first_chunk().unwrap());
            let place = match self.fds.get(&number) {
                Some(file) if files.len() < FDS_MAX - 1 => {
                    files.push(Rc::clone(file));
                    files.len() as i32 - 1
                }
                _ => -1,
            };
            translated[at..at + 4].copy_from_slice(&place.to_ne_bytes());
        }
        let fds: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        let body = Some((&translated[..], &payload[..]));
        let mut command = command.to_vec();
        if let Some(address) = command.get_mut(MSG_ADDRESS..MSG_ADDRESS + 8) {
            // Any but 0: there is a message.
            address.fill(1);
        }
        handle.borrow_mut().submit(Command::Send.request(), &command, body, &fds)
    }

    /// Writes back what a SEND brought and keeps its reply's descriptors.
    fn sent(&mut self, handle: &Handle, answer: Answer, command: &mut [u8]) -> Result<(), Errno> {
        // The address is the case's own.
        let address = command.get(MSG_ADDRESS..MSG_ADDRESS + 8).map(<[u8]>::to_vec);
        write_back(command, &answer.arg);
        if let Some(address) = address {
            command[MSG_ADDRESS..MSG_ADDRESS + 8].copy_from_slice(&address);
        }
        if answer.result.is_ok()
            && let Ok((record, _)) = CmdSend::read_from_prefix(command)
        {
            self.install(handle, record.reply, answer.fds);
        }
        answer.result
    }

    /// Keeps the descriptors of a received message.
    fn install(&mut self, handle: &Handle, info: MsgInfo, fds: Vec<OwnedFd>) {
        let numbers: Vec<i32> = fds.into_iter().map(|fd| self.keep(fd)).collect();
        if let Some(connection) = &mut handle.borrow_mut().connection
            && info.msg_size != 0
        {
            connection.installed.insert(info.offset, numbers);
        }
    }

    /// Waits until a call has ended.
    fn wait_for(&mut self, call: &mut Call) {
        while let State::Waiting(serial) = call.state {
            {
                let mut client = call.handle.borrow_mut();
                while client.read(Wait::No) {}
                if !client.answers.contains_key(&serial) && !client.gone {
                    let socket = Rc::clone(&client.socket);
                    let timeout = PATIENCE.try_into().unwrap();
                    let cancel = call.cancel.and_then(|number| self.fds.get(&number));
                    let mut ready = vec![PollFd::new(&*socket, PollFlags::IN)];
                    ready.extend(cancel.map(|fd| PollFd::new(&**fd, PollFlags::IN)));
                    assert_ne!(poll(&mut ready, Some(&timeout)).unwrap(), 0, "a call does not end");
                    if ready.get(1).is_some_and(|fd| fd.revents().contains(PollFlags::IN)) {
                        let header = Header { key: serial, ..Header::new(Kind::Cancel, 0) };
                        let _ = socket::send(&client.socket, &header, &[], &[], Wait::Yes);
                        call.cancel = None;
                    }
                    continue;
                }
            }
            let answer = call.handle.borrow_mut().answer(serial);
            let handle = Rc::clone(&call.handle);
            let result = answer.and_then(|answer| self.sent(&handle, answer, &mut call.command));
            call.state = State::Ended(result);
        }
    }

    /// The descriptor in a CANCEL_FD item. The item stays with the client, which checks it as a kernel would.
    fn cancel_fd(&self, command: &[u8]) -> Result<Option<i32>, Errno> {
        let mut copy = command.to_vec();
        let Ok(frame) = Frame::check(&mut copy, Command::Send.shape(), false) else { return Ok(None) };
        let Some(number) = frame.item(ItemType::CANCEL_FD).and_then(|item| item.fds().next()) else {
            return Ok(None);
        };
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(errno)?;
        let data = epoll::EventData::new_u64(0);
        match epoll::add(&set, self.fd(number)?, data, epoll::EventFlags::IN) {
            Ok(()) => Ok(Some(number)),
            Err(_) => Err(Errno::EINVAL),
        }
    }
}

/// Offsets of all descriptor numbers in a message.
fn fd_places(message: &[u8]) -> Vec<usize> {
    let area = message.get(Msg::SIZE..).unwrap_or_default();
    Items::new(area)
        .map_while(Result::ok)
        .flat_map(|item| {
            let at = Msg::SIZE + item.at + ITEM_HEADER;
            match item.kind {
                ItemType::FDS => (at..at + item.payload.len() / 4 * 4).step_by(4),
                ItemType::PAYLOAD_MEMFD if item.payload.len() == 24 => (at + 16..at + 20).step_by(4),
                _ => (0..0).step_by(4),
            }
        })
        .collect()
}

fn write_back(to: &mut [u8], from: &[u8]) {
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
}

/// A memfd that holds `content`.
fn memfd(content: &[u8]) -> OwnedFd {
    let file = rustix::fs::memfd_create("case", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    let mut written = 0;
    while written < content.len() {
        written += rustix::io::pwrite(&file, &content[written..], written as u64).unwrap();
    }
    file
}

/// A user: the one who runs the tests, or one with this uid and gid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct User(Option<u32>);

/// Runs `task` as `user`, in a thread of its own whose ids are changed and which ends with it.
fn as_user<T: Send + 'static>(
    user: User,
    task: impl FnOnce() -> Result<T, rustix::io::Errno> + Send + 'static,
) -> Result<T, Errno> {
    let Some(id) = user.0 else { return task().map_err(errno) };
    let task = move || {
        let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
        rustix::thread::set_thread_groups(&[])?;
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        task()
    };
    thread::spawn(task).join().unwrap().map_err(errno)
}

fn stat(path: &Path) -> Option<Node> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Node { uid: metadata.uid(), gid: metadata.gid(), mode: metadata.mode() & 0o777 })
}

impl<D> World for DaemonWorld<D> {
    type User = User;
    type Handle = Handle;
    type Call = Call;

    fn owner(&mut self) -> User {
        User(None)
    }

    fn user(&mut self, number: usize) -> Result<User, Skip> {
        if rustix::process::geteuid().is_root() {
            Ok(User(Some(FIRST_USER + 10 * (number as u32 - 1))))
        } else {
            Err(Skip::because("needs a second user, and only root can be several"))
        }
    }

    fn sibling(&mut self, of: User) -> Result<User, Skip> {
        Ok(of)
    }

    fn who(&mut self, user: User) -> Who {
        let pid = rustix::process::getpid().as_raw_nonzero().get().unsigned_abs();
        match user.0 {
            Some(id) => Who { uid: id, gid: id, groups: Vec::new(), pid, label: None, apart: false },
            None => Who {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                groups: rustix::process::getgroups().unwrap().into_iter().map(Gid::as_raw).collect(),
                pid,
                label: None,
                apart: false,
            },
        }
    }

    fn become_user(&mut self, _: User, _: usize) -> Result<(), Skip> {
        Err(Skip::because("who a client is, is pinned when it opens a node"))
    }

    fn open_control(&mut self, user: User) -> Result<Handle, Errno> {
        self.open_node(user, "control")
    }

    fn open(&mut self, user: User, bus: &str, endpoint: &str) -> Result<Handle, Errno> {
        self.open_node(user, &format!("{bus}/{endpoint}"))
    }

    fn close(&mut self, handle: Handle) {
        let _no_child = FORKS.read();
        let number = handle.borrow().socket.as_raw_fd();
        self.fds.remove(&number);
        drop(handle);
    }

    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        let directory = self.tree.join(bus);
        stat(&endpoint.map_or_else(|| directory.clone(), |endpoint| directory.join(endpoint)))
    }

    fn ioctl(&mut self, handle: &Handle, request: u32, arg: &mut [u8]) -> Result<(), Errno> {
        let answer = {
            let mut client = handle.borrow_mut();
            let serial = client.submit(request, arg, None, &[])?;
            client.answer(serial)?
        };
        write_back(arg, &answer.arg);
        match Command::from_request(request) {
            Some(Command::Hello) if answer.result.is_ok() => handle.borrow_mut().attach(arg, answer.fds),
            Some(Command::Recv) if matches!(answer.result, Ok(()) | Err(Errno::EAGAIN)) => {
                if let Ok((record, _)) = CmdRecv::read_from_prefix(arg) {
                    if let Some(connection) = &mut handle.borrow_mut().connection {
                        connection.told += record.dropped_msgs;
                    }
                    self.install(handle, record.msg, answer.fds);
                }
            }
            Some(Command::Free) if answer.result.is_ok() => {
                let record = CmdFree::read_from_prefix(arg).unwrap().0;
                if let Some(connection) = &mut handle.borrow_mut().connection {
                    connection.installed.remove(&record.offset);
                }
            }
            _ => {}
        }
        answer.result
    }

    fn ioctl_at(&mut self, _: &Handle, _: u32, _: &[u8], _: BadAddress) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("arguments travel in packets and have no addresses"))
    }

    fn send(&mut self, handle: &Handle, command: &mut [u8], body: Option<Body<'_>>) -> Result<(), Errno> {
        let (serial, message) = match body {
            None => (handle.borrow_mut().submit(Command::Send.request(), command, None, &[])?, None),
            Some(body) => {
                let serial = self.submit_send(handle, command, body.message, body.payload)?;
                (serial, Some(body.message))
            }
        };
        let answer = handle.borrow_mut().answer(serial)?;
        if let (Some(message), Some(returned)) = (message, &answer.message) {
            let kept: Vec<(usize, [u8; 4])> = fd_places(message)
                .into_iter()
                .map(|at| (at, *message[at..].first_chunk().unwrap()))
                .collect();
            write_back(message, returned);
            for (at, number) in kept {
                message[at..at + 4].copy_from_slice(&number);
            }
        }
        self.sent(handle, answer, command)
    }

    fn start(&mut self, handle: &Handle, command: Vec<u8>, message: Vec<u8>, payload: Vec<Payload>) -> Call {
        let started = self.cancel_fd(&command).and_then(|cancel| {
            let mut record = command.clone();
            if cancel.is_some() {
                // The item stays here, and with it all items there can be.
                record.truncate(size_of::<CmdSend>());
                record[..8].copy_from_slice(&(size_of::<CmdSend>() as u64).to_ne_bytes());
            }
            Ok((cancel, self.submit_send(handle, &record, &message, &payload)?))
        });
        let (cancel, state) = match started {
            Ok((cancel, serial)) => (cancel, State::Waiting(serial)),
            Err(errno) => (None, State::Ended(Err(errno))),
        };
        Call { handle: Rc::clone(handle), command, state, cancel }
    }

    fn finish(&mut self, mut call: Call) -> Ended {
        self.wait_for(&mut call);
        match call.state {
            State::Ended(result) => Ended { result, command: call.command },
            State::Waiting(_) => unreachable!("it was waited for"),
        }
    }

    fn is_waiting(&mut self, call: &Call) -> bool {
        let mut client = call.handle.borrow_mut();
        while client.read(Wait::No) {}
        match call.state {
            State::Waiting(serial) => !client.answers.contains_key(&serial) && !client.gone,
            State::Ended(_) => false,
        }
    }

    fn interrupt(&mut self, _: &mut Call, _: bool) -> Result<(), Skip> {
        Err(Skip::because("a wait at a socket is resumed by the client, kdbusd knows of no signals"))
    }

    fn poll(&mut self, handle: &Handle) -> Poll {
        handle.borrow_mut().poll()
    }

    fn wait(&mut self, handle: &Handle, until: u64) -> Poll {
        loop {
            let poll = self.poll(handle);
            if poll.readable || poll.hung_up || self.now() >= until {
                return poll;
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn pool(&mut self, handle: &Handle, offset: u64, len: u64) -> Option<Vec<u8>> {
        let client = handle.borrow();
        let connection = client.connection.as_ref()?;
        let mut bytes = connection.pool.bytes(offset, len)?.to_vec();
        // Descriptors stand there as places in the answer.
        if let Some(numbers) = connection.installed.get(&offset)
            && let Ok((header, _)) = Msg::read_from_prefix(&bytes)
            && let Some(message) = bytes.get(..header.size as usize)
        {
            for at in fd_places(message) {
                let place = i32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
                let number = usize::try_from(place).ok().and_then(|place| numbers.get(place)).copied();
                bytes[at..at + 4].copy_from_slice(&number.unwrap_or(-1).to_ne_bytes());
            }
        }
        Some(bytes)
    }

    fn map(&mut self, handle: &Handle, len: u64, writable: bool) -> Result<Result<(), Errno>, Skip> {
        let client = handle.borrow();
        let connection =
            client.connection.as_ref().ok_or_else(|| Skip::because("only HELLO brings a pool"))?;
        if len > connection.pool.len() {
            return Err(Skip::because("a client maps the pool's file itself, and its length bounds nothing"));
        }
        let words = (len / size_of::<u64>() as u64) as usize;
        Ok(if writable {
            WordMap::writable(&connection.pool_file, words).map(|_| ()).map_err(errno)
        } else {
            ReadMap::new(&connection.pool_file, len, false).map(|_| ()).map_err(errno)
        })
    }

    fn make_mapping_writable(&mut self, _: &Handle) -> Result<Result<(), Errno>, Skip> {
        Err(Skip::because("changing a mapping's protection needs unsafe code"))
    }

    fn now(&mut self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    }

    fn sleep_until(&mut self, at: u64) {
        while let Some(left) = at.checked_sub(self.now()).filter(|left| *left > 0) {
            thread::sleep(Duration::from_nanos(left));
        }
    }

    fn memfd(&mut self, _: User, content: &[u8], sealed: bool) -> i32 {
        let file = memfd(content);
        if sealed {
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        }
        self.keep(file)
    }

    fn pipe(&mut self, _: User) -> (i32, i32) {
        use rustix::pipe::PipeFlags;
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        (self.keep(reader), self.keep(writer))
    }

    fn event(&mut self, _: User) -> i32 {
        use rustix::event::EventfdFlags;
        self.keep(rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
    }

    fn regular_file(&mut self, _: User) -> i32 {
        let path = std::env::current_exe().unwrap();
        self.keep(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap())
    }

    fn unix_socket(&mut self, _: User) -> i32 {
        self.keep(socket::open().unwrap())
    }

    fn path_only(&mut self, _: User) -> i32 {
        self.keep(rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap())
    }

    fn handle_fd(&mut self, handle: &Handle) -> i32 {
        handle.borrow().socket.as_raw_fd()
    }

    fn read_fd(&mut self, _: User, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        let fd = self.fd(fd)?;
        let mut bytes = vec![0; len];
        let read = match rustix::io::pread(fd, &mut bytes[..], 0) {
            Err(rustix::io::Errno::SPIPE) => rustix::io::read(fd, &mut bytes[..]),
            read => read,
        };
        bytes.truncate(read.map_err(errno)?);
        Ok(bytes)
    }

    fn write_fd(&mut self, _: User, fd: i32, bytes: &[u8]) -> Result<(), Errno> {
        rustix::io::write(self.fd(fd)?, bytes).map(|_| ()).map_err(errno)
    }

    fn close_fd(&mut self, _: User, fd: i32) -> Result<(), Errno> {
        self.fds.remove(&fd).map(|_| ()).ok_or(Errno::EBADF)
    }

    fn is_close_on_exec(&mut self, _: User, fd: i32) -> Result<bool, Errno> {
        let flags = rustix::io::fcntl_getfd(self.fd(fd)?).map_err(errno)?;
        Ok(flags.contains(rustix::io::FdFlags::CLOEXEC))
    }

    fn leave_spare_fds(&mut self, _: User, _: usize) -> Result<(), Skip> {
        Err(Skip::because("other cases run in the same process"))
    }
}

impl<D> Transported for DaemonWorld<D> {
    type Transport = LocalTransport;

    fn connect(&mut self, user: User, bus: &str, endpoint: &str) -> Result<LocalTransport, Errno> {
        let node = format!("{bus}/{endpoint}");
        let socket = self.socket(user, &node)?;
        let path = NodePath::new(self.tree.join(&node).as_os_str().as_encoded_bytes()).unwrap();
        let handle = local::Handle::over(socket, path, 0, false).unwrap();
        let mut options = Options::new().lanes(self.lanes).lane_after(0);
        if let Some(seed) = &mut self.seed {
            options = options.detours(*seed);
            *seed = seed.wrapping_add(1);
        }
        Ok(options.over(handle).unwrap())
    }

    fn borrow<'a>(&'a self, _: User, number: i32) -> Option<BorrowedFd<'a>>
    where
        LocalTransport: 'a,
    {
        self.fds.get(&number).map(|fd| fd.as_fd())
    }

    fn keep(&mut self, _: User, fd: OwnedFd) -> i32 {
        Self::keep(self, fd)
    }

    fn wait_apart(
        &mut self,
        user: User,
        transport: LocalTransport,
        call: CallApart,
    ) -> Result<Apart<LocalTransport>, LocalTransport> {
        let cancel = match call.cancel {
            None => None,
            Some(number) => match self.borrow(user, number).map(|fd| fd.try_clone_to_owned()) {
                Some(Ok(fd)) => Some(fd),
                _ => return Err(transport),
            },
        };
        Ok(thread::spawn(move || {
            let ended = call.make(&transport, cancel.as_ref().map(AsFd::as_fd));
            (transport, ended)
        }))
    }
}

/// A daemon's configuration with room for a case.
pub(crate) fn configuration(needs: Needs) -> String {
    format!(
        "bus = []\nlog = \"error\"\n\
         [capacity]\nclients = {clients}\nclients-per-user = {clients}\nbuses = {buses}\nendpoints = {endpoints}\n\
         connections = {connections}\nqueue-depth = {messages}\npool-slices = {slices}\nnames = {names}\n\
         name-records = {records}\nmatches = {matches}\nmatch-rules = {rules}\ntrackers = {calls}\n\
         [memory]\npools = \"1 GiB\"\nlargest-pool = \"32 MiB\"\npools-per-user = \"1 GiB\"\n",
        clients = needs.connections + needs.buses + 16,
        buses = needs.buses,
        endpoints = needs.buses + 8,
        connections = needs.connections,
        messages = needs.messages,
        slices = needs.slices,
        names = needs.names,
        records = needs.names + 8,
        matches = needs.matches,
        rules = needs.matches + 8,
        calls = needs.calls,
    )
}
