//! The module's system calls, answered by the engine in this process.
//!
//! Everything is as real as without a module it can be: request numbers, arguments at addresses of this process'
//! memory, descriptors, pools in memory that the client maps for reading, calls that block their thread.
//! Descriptors of nodes are ends of socket pairs: readable while messages wait, hung up once a connection is gone.
//! Who the caller is comes from the thread, which may [assume](Loopback::assume) anybody.
#![allow(unsafe_code)]

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kdbus_core::Instant;
use kdbus_core::abi::{CMD_MAX_SIZE, CmdRecv, CmdSend, Command, Errno, MsgInfo, RecvFlags};
use kdbus_core::engine::{
    Allocate, Arrival, Clock, Config, ConfigError, Credentials, Domain, Effect, HandleId, Outcome, Request,
    Storage,
};
use kdbus_linux::kernel::{Ready, Seam};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::{AddressFamily, Shutdown, SocketFlags, SocketType, socketpair};
use zerocopy::FromBytes;

use crate::descriptors::{duplicate, errno, hide};
use crate::machine::{LoopHost, Machine, NodeFile};
use crate::memory;

/// Where the nodes of a loop-back seem to be.
pub const ROOT: &str = "/loopback";

/// The memory of a domain, kept until the program ends.
struct Leaked;

impl Allocate for Leaked {
    fn slice<T: Default + 'static>(&mut self, len: usize) -> &'static mut [T] {
        Box::leak((0..len).map(|_| T::default()).collect())
    }
}

thread_local! {
    static ASSUMED: RefCell<Option<Credentials>> = const { RefCell::new(None) };
}

/// What names a node's file, by any descriptor of it.
type FileKey = (u64, u64);

/// An open node.
#[derive(Debug)]
struct Open {
    handle: HandleId,
    /// The end that the client does not have.
    end: OwnedFd,
    /// A byte lies in the client's end.
    rung: bool,
    was_connected: bool,
}

/// A call that waits.
#[derive(Debug)]
struct Waiting {
    caller: HandleId,
    cancel: Option<OwnedFd>,
    /// Written to when there is an answer.
    done: Arc<OwnedFd>,
}

struct State {
    domain: Domain<'static>,
    machine: Machine,
    open: HashMap<FileKey, Open>,
    keys: HashMap<HandleId, FileKey>,
    waiting: HashMap<u64, Waiting>,
    answers: HashMap<u64, Result<MsgInfo, Errno>>,
    last_token: u64,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Written to when the servant has to look again.
    poke: OwnedFd,
}

struct Servant {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// A bus domain of the engine behind the seam of the module. Clones are the same domain.
///
/// The memory of a domain is never given back, so make few. A node has to be closed through the seam; one whose
/// descriptor is merely dropped is gone for the bus with the domain only.
#[derive(Clone)]
pub struct Loopback(Arc<Servant>);

impl fmt::Debug for Loopback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loopback").finish_non_exhaustive()
    }
}

impl Loopback {
    /// A domain with the capacities of `config`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if they make no domain.
    ///
    /// # Panics
    ///
    /// If the system has no descriptors or threads left.
    pub fn new(config: &Config) -> Result<Self, ConfigError> {
        config.check()?;
        let storage = Storage::allocate(config, &mut Leaked);
        let state = State {
            domain: Domain::new(config, storage)?,
            machine: Machine::default(),
            open: HashMap::new(),
            keys: HashMap::new(),
            waiting: HashMap::new(),
            answers: HashMap::new(),
            last_token: 0,
            stop: false,
        };
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let poke = hide(eventfd(0, flags).expect("a descriptor is left"));
        let shared = Arc::new(Shared { state: Mutex::new(state), poke });
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("loopback".to_owned()).spawn(move || served.serve());
        let thread = Some(thread.expect("a thread is left"));
        Ok(Self(Arc::new(Servant { shared, thread })))
    }

    /// Lets the calling thread be somebody else, as far as loop-backs are concerned, and returns who it was.
    /// With `None` it is itself.
    pub fn assume(who: Option<Credentials>) -> Option<Credentials> {
        ASSUMED.replace(who)
    }

    /// Lets at most `spare` more descriptors be installed.
    pub fn leave_spare_fds(&self, spare: usize) {
        self.lock().machine.spare = Some(spare);
    }

    /// Files that messages hold; for tests that look for leaks.
    #[must_use]
    pub fn held_files(&self) -> usize {
        self.lock().machine.held_files()
    }

    pub(crate) fn node(&self, bus: &str, endpoint: &str) -> Option<NodeFile> {
        self.lock().machine.tree.get(bus)?.get(endpoint).copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.shared.lock()
    }

    fn caller() -> Credentials {
        ASSUMED.with_borrow(Clone::clone).unwrap_or_else(own_credentials)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A case that failed has left the state as it was between two commands.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn poke(&self) {
        // A counter that is full is readable already.
        let _ = rustix::io::write(&self.poke, &1_u64.to_ne_bytes());
    }

    /// Lets deadlines pass and cancels calls.
    fn serve(&self) {
        loop {
            let (timeout, cancels) = {
                let mut state = self.lock();
                if state.stop {
                    return;
                }
                state.pass_time();
                let wait = state.domain.poll_timeout().map(|at| at.since(clock().monotonic));
                let files = state.waiting.iter().filter_map(|(token, waiting)| {
                    let file = duplicate(waiting.cancel.as_ref()?.as_raw_fd()).ok()?;
                    Some((*token, file))
                });
                (wait, files.collect::<Vec<_>>())
            };
            let timeout = timeout
                .map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
            let mut fds = vec![PollFd::new(&self.poke, PollFlags::IN)];
            fds.extend(cancels.iter().map(|(_, file)| PollFd::new(file, PollFlags::IN)));
            let _ = poll(&mut fds, timeout.as_ref());
            let ready: Vec<u64> = fds[1..]
                .iter()
                .zip(&cancels)
                .filter(|(fd, _)| fd.revents().contains(PollFlags::IN))
                .map(|(_, (token, _))| *token)
                .collect();
            let _ = rustix::io::read(&self.poke, &mut [0; 8]);
            let mut state = self.lock();
            for token in ready {
                state.cancel(token, Errno::ECANCELED);
            }
        }
    }
}

impl Drop for Servant {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.poke();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn pass_time(&mut self) {
        let at = clock();
        if self.domain.poll_timeout().is_some_and(|due| due <= at.monotonic) {
            self.domain.handle_timeout(&mut LoopHost::new(&mut self.machine), at);
        }
        self.settle();
    }

    fn adopt(&mut self, handle: HandleId) -> Result<OwnedFd, Errno> {
        let opened = socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
            None,
        );
        let opened = opened.map_err(errno).and_then(|(client, end)| {
            let key = file_key(client.as_fd())?;
            Ok((client, hide(end), key))
        });
        match opened {
            Ok((client, end, key)) => {
                self.open.insert(key, Open { handle, end, rung: false, was_connected: false });
                self.keys.insert(handle, key);
                Ok(client)
            }
            Err(errno) => {
                self.domain.close(&mut LoopHost::new(&mut self.machine), clock(), handle);
                Err(errno)
            }
        }
    }

    fn handle(&self, node: BorrowedFd<'_>) -> Result<(FileKey, HandleId), Errno> {
        let key = file_key(node)?;
        self.open.get(&key).map(|open| (key, open.handle)).ok_or(Errno::ENOTTY)
    }

    fn cancel(&mut self, token: u64, reason: Errno) {
        let Some(waiting) = self.waiting.get(&token) else { return };
        let caller = waiting.caller;
        self.domain.cancel(&mut LoopHost::new(&mut self.machine), clock(), caller, token, reason);
        self.settle();
    }

    /// Carries out what the engine asks for.
    fn settle(&mut self) {
        while let Some(effect) = self.domain.poll_effect() {
            match effect {
                Effect::Wake(handle) | Effect::Room(handle) => self.ring(handle),
                Effect::Answer { token, result, .. } => {
                    self.answers.insert(token, result);
                    if let Some(waiting) = self.waiting.remove(&token) {
                        let _ = rustix::io::write(&*waiting.done, &1_u64.to_ne_bytes());
                    }
                }
                _ => {}
            }
        }
    }

    /// Lets a node's descriptor show that something waits, or that its connection is gone.
    fn ring(&mut self, handle: HandleId) {
        let readiness = self.domain.readiness(handle);
        let Some(open) = self.keys.get(&handle).and_then(|key| self.open.get_mut(key)) else { return };
        if readiness.readable && !open.rung {
            open.rung = rustix::io::write(&open.end, &[0]).is_ok();
        }
        if readiness.hung_up && open.was_connected {
            let _ = rustix::net::shutdown(&open.end, Shutdown::Both);
        }
    }

    /// Silences a node's descriptor if nothing waits any more; what else changed shows too.
    fn silence(&mut self, node: BorrowedFd<'_>, key: FileKey, handle: HandleId) {
        let readiness = self.domain.readiness(handle);
        if let Some(open) = self.open.get_mut(&key) {
            open.was_connected |= readiness.writable;
            if open.rung && !readiness.readable {
                let _ = rustix::io::read(node, &mut [0]);
                open.rung = false;
            }
        }
        self.ring(handle);
    }
}

// SAFETY: pools are memory files of the loop-back's own, and what it writes to them is what the engine does, which
// leaves published slices alone. Of the caller's memory it touches the argument and the message, by system calls
// that check the range. Numbers of descriptors are those of fresh duplicates.
unsafe impl Seam for Loopback {
    fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        const ENOENT: Errno = match Errno::from_raw(2) {
            Some(errno) => errno,
            None => Errno::ESRCH,
        };
        let who = Self::caller();
        let path = path.strip_prefix(ROOT).and_then(|path| path.strip_prefix('/')).ok_or(ENOENT)?;
        let mut state = self.lock();
        let handle = match path.split_once('/') {
            None if path == "control" => state.domain.open_control(&who)?,
            None => return Err(ENOENT),
            Some((bus, endpoint)) => {
                let id = state.machine.lookup(bus, endpoint, &who)?;
                state.domain.open(id, &who)?
            }
        };
        if who.spaces.users != 0 {
            state.machine.apart.insert(handle, (who.uid, who.gid));
        }
        state.adopt(handle)
    }

    unsafe fn ioctl(&self, node: BorrowedFd<'_>, request: u32, arg: *mut c_void) -> Result<(), Errno> {
        let caller = Self::caller();
        let mut arg = Argument::read(arg.expose_provenance() as u64);
        let mut message = None;
        if request == Command::Send.request()
            && let Ok((command, _)) = CmdSend::read_from_prefix(&arg.bytes)
        {
            message = Some(Argument::read(command.msg_address)).filter(|message| !message.bytes.is_empty());
        }
        let mut state = self.lock();
        let (key, handle) = state.handle(node)?;
        state.pass_time();
        state.last_token += 1;
        let token = state.last_token;
        let bytes = message.as_mut().map(|message| &mut message.bytes[..]);
        let arrival = Arrival {
            at: clock(),
            from: handle,
            caller: Some(&caller),
            request: Request { number: request, arg: &mut arg.bytes, message: bytes, token },
        };
        let State { domain, machine, .. } = &mut *state;
        let mut host = LoopHost::new(machine);
        let outcome = domain.handle(&mut host, arrival);
        let cancel = host.cancel;
        if outcome == Outcome::Done(Ok(())) && request == Command::Recv.request() {
            hide_peeked(&mut state.machine, handle, &arg.bytes);
        }
        if let Some(message) = &message {
            message.write_back();
        }
        let result = match outcome {
            Outcome::Done(result) => result,
            Outcome::Pending => {
                let done = Arc::new(hide(eventfd(0, EventfdFlags::CLOEXEC).map_err(errno)?));
                state.waiting.insert(token, Waiting { caller: handle, cancel, done: Arc::clone(&done) });
                state.settle();
                drop(state);
                self.0.shared.poke();
                // A signal whose handler restarts lets the read go on, as it does a command of the module.
                let interrupted = rustix::io::read(&*done, &mut [0; 8]).is_err();
                state = self.lock();
                if interrupted {
                    state.cancel(token, Errno::EINTR);
                }
                state.waiting.remove(&token);
                let answer = state.answers.remove(&token).unwrap_or(Err(Errno::EINTR));
                answer.map(|reply| arg.reply(reply))
            }
        };
        state.settle();
        state.silence(node, key, handle);
        let due = state.domain.poll_timeout().is_some();
        drop(state);
        if due {
            self.0.shared.poke();
        }
        // kdbus: a fault turns the result around, what was done stays.
        if arg.write_back() { result } else { Err(Errno::EFAULT) }
    }

    fn mmap(&self, node: BorrowedFd<'_>, len: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let state = self.lock();
        let (_, handle) = state.handle(node)?;
        let (file, size) = state.machine.pool(handle).ok_or(Errno::EBADFD)?;
        if writable {
            return Err(Errno::EPERM);
        }
        if len as u64 > size {
            return Err(Errno::EFAULT);
        }
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe { rustix::mm::mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        NonNull::new(start.map_err(errno)?.cast()).ok_or(Errno::ENOMEM)
    }

    fn poll(&self, node: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Ready, Errno> {
        loop {
            {
                let mut state = self.lock();
                let (key, handle) = state.handle(node)?;
                state.pass_time();
                state.silence(node, key, handle);
                let now = state.domain.readiness(handle);
                let late = deadline.is_some_and(|deadline| clock().monotonic >= deadline);
                if now.readable || now.hung_up || late {
                    let (readable, writable) = (now.readable, now.writable);
                    return Ok(Ready { readable, writable, hung_up: now.hung_up });
                }
            }
            let timeout = deadline.map(|deadline| {
                let left = deadline.since(clock().monotonic);
                Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
            });
            let mut fds = [PollFd::from_borrowed_fd(node, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(errno(error)),
            }
        }
    }

    fn close(&self, node: OwnedFd) {
        let key = file_key(node.as_fd());
        drop(node);
        let mut state = self.lock();
        let Some((key, open)) = key.ok().and_then(|key| Some((key, state.open.get(&key)?))) else { return };
        let mut fds = [PollFd::new(&open.end, PollFlags::empty())];
        let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        // Another descriptor of the same file keeps the handle. After a shutdown that cannot be told; then there
        // is no connection that closing would end.
        if !fds[0].revents().contains(PollFlags::HUP) {
            return;
        }
        let Some(Open { handle, .. }) = state.open.remove(&key) else { return };
        state.keys.remove(&handle);
        let State { domain, machine, .. } = &mut *state;
        domain.close(&mut LoopHost::new(machine), clock(), handle);
        state.settle();
        state.machine.forget(handle);
    }
}

/// An argument or a message, as it was when it was read.
#[derive(Debug)]
struct Argument {
    address: u64,
    bytes: Vec<u8>,
    former: Vec<u8>,
}

impl Argument {
    /// Reads as much as the first word says. Of what cannot be read there are no bytes, or the first word only.
    fn read(address: u64) -> Self {
        let read = |len| if address.is_multiple_of(8) { memory::read(address, len).ok() } else { None };
        let first = read(8).unwrap_or_default();
        let size = first.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word));
        let bytes = match size {
            8.. if size <= CMD_MAX_SIZE as u64 => read(size as usize).unwrap_or(first),
            _ => first,
        };
        // What the first word says may have changed meanwhile; the copy is what counts.
        let former = bytes.clone();
        Self { address, bytes, former }
    }

    fn reply(&mut self, reply: MsgInfo) {
        if let Ok((command, _)) = CmdSend::mut_from_prefix(&mut self.bytes) {
            command.reply = reply;
        }
    }

    /// Writes the words that have changed. False if they cannot be written.
    fn write_back(&self) -> bool {
        let words = self.bytes.chunks(8).zip(self.former.chunks(8)).enumerate();
        words.filter(|(_, (new, old))| new != old).all(|(at, (new, _))| {
            // SAFETY: the caller of the command has given its argument and message away until it returns.
            unsafe { memory::write(self.address + 8 * at as u64, new) }.is_ok()
        })
    }
}

/// Who looks at a message finds no descriptors in it, not even their numbers at the sender's.
fn hide_peeked(machine: &mut Machine, of: HandleId, arg: &[u8]) {
    let Ok((command, _)) = CmdRecv::read_from_prefix(arg) else { return };
    let flags = RecvFlags::from_bits_retain(command.flags);
    if flags.contains(RecvFlags::PEEK) && !flags.contains(RecvFlags::DROP) {
        machine.hide_numbers(of, command.msg.offset, command.msg.msg_size);
    }
}

fn file_key(fd: BorrowedFd<'_>) -> Result<FileKey, Errno> {
    let stat = rustix::fs::fstat(fd).map_err(errno)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn clock() -> Clock {
    let ns = |id| {
        let now = rustix::time::clock_gettime(id);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    Clock {
        monotonic: Instant::from_nanos(ns(rustix::time::ClockId::Monotonic)),
        realtime_ns: ns(rustix::time::ClockId::Realtime),
    }
}

/// Who this process is.
fn own_credentials() -> Credentials {
    let (mut uids, mut gids) = ([0; 3], [0; 3]);
    let [uid, euid, suid] = &mut uids;
    // SAFETY: three places of the right type are written.
    unsafe { libc::getresuid(uid, euid, suid) };
    let [gid, egid, sgid] = &mut gids;
    // SAFETY: as above.
    unsafe { libc::getresgid(gid, egid, sgid) };
    let pid = std::process::id();
    Credentials {
        uid: uids[0],
        euid: uids[1],
        suid: uids[2],
        fsuid: uids[1],
        gid: gids[0],
        egid: gids[1],
        sgid: gids[2],
        fsgid: gids[1],
        pid,
        tid: pid,
        privileged: uids[1] == 0,
        ..Credentials::default()
    }
}
