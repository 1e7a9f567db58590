//! The conformance suite over kdbusd, one daemon for each case.
//!
//! Handles are driven at the level of packets, so that malformed commands reach the daemon as they are, and
//! so that several commands of one handle can be under way in one thread. Users other than the one who runs
//! the tests need root, as nodes have to be opened with their ids.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command as Program, Stdio};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use kdbus_conformance::{BadAddress, Body, CaseInfo, Ended, Needs, Node, Payload, Poll, Skip, Who, World};
use kdbus_core::abi::{
    CMD_MAX_SIZE, CmdFree, CmdHello, CmdRecv, CmdSend, Command, Errno, Frame, ITEM_HEADER, ItemType, Items,
    Msg, MsgInfo,
};
use kdbus_core::channel::InboxReader;
use kdbus_linux::local::map::{ReadMap, WordMap};
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{self, FDS_MAX, HELLO_FDS, Header, INLINE_MAX, Kind, Packet};
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::Resource;
use rustix::thread::{Gid, Uid};
use zerocopy::FromBytes;

/// Where `msg_address` stands in the argument of SEND.
const MSG_ADDRESS: usize = std::mem::offset_of!(CmdSend, msg_address);

/// Uid and gid of the first user who is not the owner.
const FIRST_USER: u32 = 54_321;

/// How long nothing may happen at all before a case is given up.
const PATIENCE: Duration = Duration::from_secs(60);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error().unsigned_abs()).unwrap_or(Errno::EIO)
}

/// A running daemon with a tree of its own, ended on drop.
struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start(needs: Needs) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to get at the nodes.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("kdbusd.toml");
        std::fs::write(&file, configuration(needs)).unwrap();
        // A shell, because the daemon tells on a descriptor of its own that it is ready.
        let mut process = Program::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" --ready-fd 3 3>&1", env!("CARGO_BIN_EXE_kdbusd"), "--config"])
            .arg(&file)
            .arg("--root")
            .arg(directory.path().join("tree"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "kdbusd did not start: {:?}", process.wait());
        Self { process, directory }
    }

    fn path(&self, node: &str) -> std::path::PathBuf {
        self.directory.path().join("tree").join(node)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(needs: Needs) -> String {
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

/// What a command brought.
struct Answer {
    result: Result<(), Errno>,
    arg: Vec<u8>,
    message: Option<Vec<u8>>,
    fds: Vec<OwnedFd>,
}

/// What HELLO brought.
struct Connection {
    pool_file: OwnedFd,
    pool: ReadMap,
    inbox: InboxReader<WordMap, WordMap>,
    /// Lost broadcasts that a receive has told of.
    told: u64,
    /// Descriptors that were installed for the message in the slice at this offset.
    installed: BTreeMap<u64, Vec<i32>>,
}

/// An open node, at the level of packets.
struct Client {
    socket: Rc<OwnedFd>,
    serial: u64,
    answers: BTreeMap<u64, Answer>,
    /// kdbusd has hung up.
    gone: bool,
    connection: Option<Connection>,
}

impl Client {
    fn new(socket: Rc<OwnedFd>) -> Self {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, wire::PACKET_MAX);
        Self { socket, serial: 0, answers: BTreeMap::new(), gone: false, connection: None }
    }

    /// Sends a command and returns its serial.
    fn submit(
        &mut self,
        number: u32,
        arg: &[u8],
        body: Option<(&[u8], &[u8])>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, Errno> {
        self.serial += 1;
        let mut header = Header { number, ..Header::new(Kind::Command, self.serial) };
        let arg = &arg[..arg.len().min(CMD_MAX_SIZE)];
        let (message, payload) = body.unwrap_or((&[], &[]));
        let message = &message[..message.len().min(CMD_MAX_SIZE)];
        (header.arg_size, header.message_size) = (arg.len() as u32, message.len() as u32);
        header.payload_size = payload.len() as u64;
        if body.is_some() {
            header.flags = wire::FLAG_MESSAGE | wire::FLAG_RETURN_MESSAGE;
        }
        let mut parts = vec![arg, message, payload];
        let mut fds = fds.to_vec();
        let staging;
        if payload.len() > INLINE_MAX {
            staging = memfd(payload);
            header.flags |= wire::FLAG_STAGED | wire::FLAG_STAGING_FD;
            parts.pop();
            fds.push(staging.as_fd());
        }
        match socket::send(&self.socket, &header, &parts, &fds, Wait::Yes) {
            Ok(()) => Ok(self.serial),
            Err(error) if socket::is_hang_up(error) => {
                self.gone = true;
                Err(Errno::ECONNRESET)
            }
            Err(error) => Err(errno(error)),
        }
    }

    /// Reads one answer, if there is one or `wait` says so.
    fn read(&mut self, wait: Wait) -> bool {
        let mut bytes = vec![0; wire::PACKET_MAX];
        let mut fds = Descriptors::new();
        let len = match socket::recv(&self.socket, &mut bytes, &mut fds, wait) {
            Ok(arrived) => arrived.len,
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => 0,
        };
        if len == 0 {
            self.gone = true;
            return false;
        }
        let packet = Packet::parse(&mut bytes[..len], fds.len()).unwrap();
        assert_eq!(packet.kind, Kind::Answer);
        let answer = Answer {
            result: packet.header.result(),
            arg: packet.arg.to_vec(),
            message: packet.message.map(|message| message.to_vec()),
            fds: fds.into_iter().collect(),
        };
        self.answers.insert(packet.header.serial, answer);
        true
    }

    /// The answer to a command, waited for.
    fn answer(&mut self, serial: u64) -> Result<Answer, Errno> {
        loop {
            if let Some(answer) = self.answers.remove(&serial) {
                return Ok(answer);
            }
            if self.gone {
                return Err(Errno::ECONNRESET);
            }
            let timeout = PATIENCE.try_into().unwrap();
            let ready = poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_ne!(ready, 0, "kdbusd does not answer");
            self.read(Wait::Yes);
        }
    }

    /// Takes over what a HELLO brought.
    fn attach(&mut self, arg: &[u8], fds: Vec<OwnedFd>) {
        let Ok([pool_file, posted, shared, _bell]) = <[OwnedFd; HELLO_FDS]>::try_from(fds) else {
            return;
        };
        let hello = CmdHello::read_from_prefix(arg).unwrap().0;
        let words = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_size as usize / 8;
        let posted = WordMap::read_only(&posted, words(&posted)).unwrap();
        let shared = WordMap::writable(&shared, words(&shared)).unwrap();
        self.connection = Some(Connection {
            pool: ReadMap::new(&pool_file, hello.pool_size, false).unwrap(),
            pool_file,
            inbox: InboxReader::attach(posted, shared).unwrap(),
            told: 0,
            installed: BTreeMap::new(),
        });
    }

    fn poll(&mut self) -> Poll {
        while self.read(Wait::No) {}
        let hung_up = Poll { readable: false, writable: false, hung_up: true };
        let Some(connection) = &self.connection else { return hung_up };
        if self.gone || !connection.inbox.is_alive() {
            return hung_up;
        }
        let mut waiting = false;
        connection.inbox.fresh(|_| {
            waiting = true;
            // It is received by command, so it has to be handed out the next time too.
            false
        });
        let readable = waiting || connection.inbox.lost() > connection.told;
        Poll { readable, writable: true, hung_up: false }
    }
}

type Handle = Rc<RefCell<Client>>;

/// A SEND that ended or waits.
struct Call {
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

struct DaemonWorld {
    daemon: Daemon,
    /// Every descriptor that a case knows, by its number; those of handles too.
    fds: BTreeMap<i32, Rc<OwnedFd>>,
}

impl DaemonWorld {
    fn new(case: &CaseInfo) -> Self {
        let limit = rustix::process::getrlimit(Resource::Nofile);
        let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
        let _ = rustix::process::setrlimit(Resource::Nofile, most);
        Self { daemon: Daemon::start(case.needs()), fds: BTreeMap::new() }
    }

    fn keep(&mut self, fd: OwnedFd) -> i32 {
        let number = fd.as_raw_fd();
        self.fds.insert(number, Rc::new(fd));
        number
    }

    fn fd(&self, number: i32) -> Result<&OwnedFd, Errno> {
        self.fds.get(&number).map(|fd| &**fd).ok_or(Errno::EBADF)
    }

    fn open_node(&mut self, user: User, node: &str) -> Result<Handle, Errno> {
        let path = self.daemon.path(node);
        let socket = as_user(user, move || socket::connect(path.as_os_str().as_encoded_bytes()))?;
        let socket = Rc::new(socket);
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
struct User(Option<u32>);

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

impl World for DaemonWorld {
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
            Some(id) => Who { uid: id, gid: id, groups: Vec::new(), pid, label: None },
            None => Who {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
                groups: rustix::process::getgroups().unwrap().into_iter().map(Gid::as_raw).collect(),
                pid,
                label: None,
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
        let number = handle.borrow().socket.as_raw_fd();
        self.fds.remove(&number);
    }

    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        let directory = self.daemon.path(bus);
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
        let path = self.daemon.path("../kdbusd.toml");
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

kdbus_conformance::conformance_tests!(DaemonWorld::new);
