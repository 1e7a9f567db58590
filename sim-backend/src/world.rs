//! A simulated machine with a bus on it.

use core::fmt;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use kdbus_core::Instant;
use kdbus_core::abi::{CmdRecv, CmdSend, Command, Errno, MsgInfo, RecvFlags};
use kdbus_core::engine::{
    Allocate, Arrival, Clock, Config, ConfigError, ConnectionView, Credentials, Domain, Effect, FileId,
    HandleId, Outcome, Readiness, Request, Storage, Usage, Violation,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::burst::{Burst, Done, Sent};
use crate::clock::VirtualClock;
use crate::fault::Fault;
use crate::fd::{FdTable, File};
use crate::machine::{Machine, NodeFile, Process, ProcessId, SimHost, Work};
use crate::trace::Trace;

/// Virtual time that a command takes, so that no two of them happen at once.
const COMMAND_COST: Duration = Duration::from_micros(1);

/// How a panic begins that a defect of the engine causes.
pub(crate) const BROKEN_RULE: &str = "the engine breaks a rule of its own";

/// Flags of a RECV that takes no message out.
const KEEPS: u64 = RecvFlags::PEEK.bits() | RecvFlags::DROP.bits();

/// The memory of a [`Domain`], kept until the program ends.
struct Leaked;

impl Allocate for Leaked {
    fn slice<T: Default + 'static>(&mut self, len: usize) -> &'static mut [T] {
        Box::leak((0..len).map(|_| T::default()).collect())
    }
}

/// The number of a command that waits: a synchronous call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Token(u64);

/// How far a command came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a waiting command ends later"]
pub enum Progress {
    /// It ended.
    Done(Result<(), Errno>),
    /// It waits; [`World::take_answer`] has its end.
    Waiting(Token),
}

/// What SEND points to.
#[derive(Debug)]
pub struct Body<'a> {
    /// Header and items; descriptor numbers are those of the sending process.
    pub message: &'a mut [u8],
    /// The bytes of each `PAYLOAD_VEC` with a non-zero address, in item order. What is missing or too
    /// short is memory that cannot be read.
    pub payload: &'a [&'a [u8]],
}

/// A call that waits for its reply.
#[derive(Debug)]
struct Waiting {
    caller: HandleId,
    /// The descriptor that ends the wait when it is readable, held while the call waits.
    cancel: Option<FileId>,
}

/// A simulated machine with one bus domain: processes with descriptor tables, files, the bus' tree of
/// nodes, two clocks and a seeded source of randomness.
///
/// Everything happens in the calling thread, and only in its methods: one seed and one sequence of calls
/// give one outcome, to the byte. The memory of the domain is never given back, so make few worlds.
pub struct World {
    pub(crate) domain: Domain<'static>,
    pub(crate) machine: Machine,
    pub(crate) clock: VirtualClock,
    waiting: BTreeMap<Token, Waiting>,
    answers: BTreeMap<Token, Result<MsgInfo, Errno>>,
    /// Handles at which something came in since they were last asked about.
    woken: BTreeSet<HandleId>,
    /// The same with the time at which it happened, for the executor.
    pub(crate) wakes: VecDeque<(Instant, HandleId)>,
    /// Whether there is an executor that takes them.
    pub(crate) has_tasks: bool,
    /// What the task that runs has done since it was polled.
    pub(crate) burst: Option<Burst>,
    /// Until when the daemon is busy with what others asked of it.
    pub(crate) daemon_until: Instant,
    /// Since when each connection has what came in last.
    pub(crate) seen_at: BTreeMap<HandleId, Instant>,
    pub(crate) faults: Vec<Fault>,
    /// What came due outside a process: for the executor to carry out.
    pub(crate) due: VecDeque<Fault>,
    /// Processes that ended and whose tasks have not.
    pub(crate) killed: VecDeque<ProcessId>,
    pub(crate) trace: Option<Box<Trace>>,
    audits: bool,
    last_token: u64,
    last_pid: u32,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").field("now", &self.now()).finish_non_exhaustive()
    }
}

impl World {
    /// A machine whose bus has the capacities of `config`, without processes yet.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the capacities make no domain.
    pub fn new(config: &Config, seed: u64) -> Result<Self, ConfigError> {
        config.check()?;
        let storage = Storage::allocate(config, &mut Leaked);
        Ok(Self {
            domain: Domain::new(config, storage)?,
            machine: Machine::new(seed),
            clock: VirtualClock::default(),
            waiting: BTreeMap::new(),
            answers: BTreeMap::new(),
            woken: BTreeSet::new(),
            wakes: VecDeque::new(),
            has_tasks: false,
            burst: None,
            daemon_until: Instant::ZERO,
            seen_at: BTreeMap::new(),
            faults: Vec::new(),
            due: VecDeque::new(),
            killed: VecDeque::new(),
            trace: None,
            audits: false,
            last_token: 0,
            last_pid: 100,
        })
    }

    /// Starts a process with these credentials and a program name; its process ids are new ones.
    pub fn spawn(&mut self, name: &str, credentials: &Credentials) -> ProcessId {
        self.last_pid += 1;
        let credentials =
            Credentials { pid: self.last_pid, tid: self.last_pid, ppid: 1, ..credentials.clone() };
        self.machine.processes.push(Process {
            credentials,
            fds: FdTable::default(),
            name: name.to_owned(),
            steps: 0,
            is_dead: false,
            work: Work::default(),
        });
        ProcessId(self.machine.processes.len() - 1)
    }

    /// Starts a process whose ids are all `uid` and `gid`; uid 0 is privileged.
    pub fn spawn_user(&mut self, name: &str, uid: u32, gid: u32) -> ProcessId {
        self.spawn(
            name,
            &Credentials {
                uid,
                euid: uid,
                suid: uid,
                fsuid: uid,
                gid,
                egid: gid,
                sgid: gid,
                fsgid: gid,
                privileged: uid == 0,
                ..Credentials::default()
            },
        )
    }

    /// Ends a process: all its descriptors are closed, lowest number first, and its tasks do nothing any more.
    pub fn kill(&mut self, process: ProcessId) {
        self.machine.process_mut(process).is_dead = true;
        self.killed.push_back(process);
        let open: Vec<i32> = self.machine.process(process).fds.numbers().collect();
        for fd in open {
            let _ = self.close(process, fd);
        }
    }

    /// Sets what a process computes for its messages. Default: nothing.
    ///
    /// On a real machine an application's own work takes the time that it takes; here somebody has to say it.
    pub fn set_work(&mut self, process: ProcessId, work: Work) {
        self.machine.process_mut(process).work = work;
    }

    /// Whether a process has been ended.
    #[must_use]
    pub fn is_dead(&self, process: ProcessId) -> bool {
        self.machine.process(process).is_dead
    }

    /// What a process is called.
    #[must_use]
    pub fn name(&self, process: ProcessId) -> &str {
        &self.machine.process(process).name
    }

    /// Commands that a process has given: its steps, at which faults come.
    #[must_use]
    pub fn steps(&self, process: ProcessId) -> u64 {
        self.machine.process(process).steps
    }

    /// How many processes were started.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.machine.processes.len()
    }

    /// Sets the real-time clock by `ns` forward or back.
    pub fn set_realtime_by(&mut self, ns: i64) {
        self.clock.set_realtime_by(ns);
    }

    /// Checks what always holds in the engine.
    ///
    /// # Errors
    ///
    /// The first [`Violation`], which is a defect of the engine.
    pub fn audit(&mut self) -> Result<(), Violation> {
        self.domain.audit()
    }

    /// Checks after each command from now on what always holds in the engine, and panics if it does not.
    pub const fn audit_each_command(&mut self) {
        self.audits = true;
    }

    /// One connection, if `fd` is one that is active.
    #[must_use]
    pub fn connection(&mut self, process: ProcessId, fd: i32) -> Option<ConnectionView> {
        self.domain.connection(self.machine.handle(process, fd).ok()?)
    }

    /// How much of each table of the bus is in use.
    #[must_use]
    pub const fn usage(&self) -> Usage {
        self.domain.usage()
    }

    /// Ends all processes, and says what is left then.
    pub(crate) fn end_all(&mut self) -> Result<(), String> {
        for process in (0..self.machine.processes.len()).rev() {
            self.kill(ProcessId(process));
        }
        self.killed.clear();
        let (usage, files) = (self.usage(), self.open_files());
        // The bus itself is the one user that stays.
        if usage == (Usage { users: 1, ..Usage::default() }) && files == 0 {
            return Ok(());
        }
        Err(format!("something is left when everybody is gone: {usage:?}, {files} files"))
    }

    /// Who a process is.
    #[must_use]
    pub fn credentials(&self, process: ProcessId) -> &Credentials {
        &self.machine.process(process).credentials
    }

    /// Changes who a process is; its open handles keep what they were opened with.
    pub fn set_credentials(&mut self, process: ProcessId, credentials: Credentials) {
        self.machine.process_mut(process).credentials = credentials;
    }

    /// Opens the control file.
    ///
    /// # Errors
    ///
    /// `EMFILE` at the process' limit of descriptors or at the domain's of handles.
    pub fn open_control(&mut self, process: ProcessId) -> Result<i32, Errno> {
        let handle = self.domain.open_control(&self.machine.process(process).credentials)?;
        self.adopt(process, handle)
    }

    /// Opens an endpoint file.
    ///
    /// # Errors
    ///
    /// `ENOENT` if there is none, `EACCES` if its mode or its directory's denies it, else as
    /// [`open_control`](Self::open_control).
    pub fn open(&mut self, process: ProcessId, bus: &str, endpoint: &str) -> Result<i32, Errno> {
        let id = self.machine.lookup(process, bus, endpoint)?;
        let handle = self.domain.open(id, &self.machine.process(process).credentials)?;
        self.adopt(process, handle)
    }

    fn adopt(&mut self, process: ProcessId, handle: HandleId) -> Result<i32, Errno> {
        self.machine.owners.insert(handle, process);
        let opened = self.machine.open(process, File::Bus(handle));
        self.settle();
        opened
    }

    /// The node of an endpoint, or `None` if there is none.
    #[must_use]
    pub fn node(&self, bus: &str, endpoint: &str) -> Option<NodeFile> {
        self.machine.tree.get(bus)?.get(endpoint).copied()
    }

    /// Carries out a command of `process` on its descriptor `fd`, as `ioctl` does. `body` belongs to SEND.
    ///
    /// It takes one microsecond of virtual time. Outputs stand in `arg` when it is done.
    pub fn command(
        &mut self,
        process: ProcessId,
        fd: i32,
        request: u32,
        arg: &mut [u8],
        body: Option<Body<'_>>,
    ) -> Progress {
        if self.burst.is_none() {
            self.advance_to(self.now().after(COMMAND_COST));
        }
        if let Err(errno) = self.next_step(process, request) {
            return Progress::Done(Err(errno));
        }
        let handle = match self.machine.handle(process, fd) {
            Ok(handle) => handle,
            Err(errno) => return Progress::Done(Err(errno)),
        };
        let kind = Command::from_request(request);
        let sent = body.as_ref().and_then(Sent::of);
        let wakes = self.wakes.len();
        self.last_token += 1;
        let token = Token(self.last_token);
        let caller = self.machine.process(process).credentials.clone();
        let (message, payload) = match body {
            Some(body) => (Some(body.message), body.payload),
            None => (None, &[][..]),
        };
        let at = self.clock.now();
        let request = Request { number: request, arg: &mut *arg, message, token: token.0 };
        let arrival = Arrival { at, from: handle, caller: Some(&caller), request };
        let mut host = SimHost::new(&mut self.machine, Some(process), payload);
        let outcome = self.domain.handle(&mut host, arrival);
        let received = (outcome == Outcome::Done(Ok(())) && kind == Some(Command::Recv))
            .then(|| CmdRecv::read_from_prefix(arg).ok())
            .flatten()
            .filter(|(command, _)| command.flags & KEEPS == 0)
            .map(|(command, _)| command.msg);
        let cancel = host.cancel;
        if outcome == Outcome::Pending {
            if let Some(file) = cancel {
                self.machine.files.hold(file);
            }
            self.waiting.insert(token, Waiting { caller: handle, cancel });
        }
        self.settle();
        self.account(process, handle, Done { kind, outcome, sent, received, wakes });
        if self.audits
            && let Err(violation) = self.audit()
        {
            panic!("{BROKEN_RULE} {violation}");
        }
        match outcome {
            Outcome::Done(result) => Progress::Done(result),
            Outcome::Pending => {
                self.check_cancels();
                Progress::Waiting(token)
            }
        }
    }

    /// How a waiting command ended, once, or `None` while it still waits.
    pub fn take_answer(&mut self, token: Token) -> Option<Result<MsgInfo, Errno>> {
        self.answers.remove(&token)
    }

    /// Whether a command still waits.
    #[must_use]
    pub fn is_waiting(&self, token: Token) -> bool {
        self.waiting.contains_key(&token)
    }

    /// Writes a reply's place into the argument of the SEND that waited for it.
    pub fn write_reply(arg: &mut [u8], reply: MsgInfo) {
        if let Ok((mut command, _)) = CmdSend::read_from_prefix(arg) {
            command.reply = reply;
            arg[..size_of::<CmdSend>()].copy_from_slice(command.as_bytes());
        }
    }

    /// Ends the wait of a command with `reason`: `EINTR` as a signal does, `ECANCELED` as its cancel
    /// descriptor does. Does nothing once the command has ended.
    pub fn cancel(&mut self, token: Token, reason: Errno) {
        let Some(waiting) = self.waiting.get(&token) else { return };
        let mut host = SimHost::new(&mut self.machine, None, &[]);
        self.domain.cancel(&mut host, self.clock.now(), waiting.caller, token.0, reason);
        self.settle();
    }

    /// What `poll` reports for the handle behind `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if `fd` is not open, `ENOTTY` if it is no handle of the bus.
    pub fn readiness(&self, process: ProcessId, fd: i32) -> Result<Readiness, Errno> {
        Ok(self.domain.readiness(self.machine.handle(process, fd)?))
    }

    /// Whether something came in or changed at this handle since this was last asked.
    pub fn take_woken(&mut self, process: ProcessId, fd: i32) -> bool {
        self.machine.handle(process, fd).is_ok_and(|handle| self.woken.remove(&handle))
    }

    /// Asks to be woken once when connection `receiver` has room again.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is no such connection.
    pub fn watch_room(&mut self, process: ProcessId, fd: i32, receiver: u64) -> Result<(), Errno> {
        let handle = self.machine.handle(process, fd)?;
        let mut host = SimHost::new(&mut self.machine, Some(process), &[]);
        let watched = self.domain.watch_room(&mut host, handle, receiver);
        self.settle();
        watched
    }

    /// `len` bytes at `offset` of the pool behind `fd`, or `None` if that range is not in it.
    #[must_use]
    pub fn pool(&self, process: ProcessId, fd: i32, offset: u64, len: u64) -> Option<&[u8]> {
        self.machine.pool(self.machine.handle(process, fd).ok()?, offset, len)
    }

    /// Opens a new file in a process.
    ///
    /// # Errors
    ///
    /// `EMFILE` at the process' limit.
    pub fn open_file(&mut self, process: ProcessId, file: File) -> Result<i32, Errno> {
        self.machine.open(process, file)
    }

    /// The file behind a descriptor.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not open.
    pub fn file(&self, process: ProcessId, fd: i32) -> Result<&File, Errno> {
        self.machine.file(process, fd)
    }

    /// Reads at most `len` bytes from a descriptor.
    ///
    /// # Errors
    ///
    /// As [`File::read`], and `EBADF` if it is not open.
    pub fn read(&mut self, process: ProcessId, fd: i32, len: usize) -> Result<Vec<u8>, Errno> {
        let file = self.machine.process(process).fds.get(fd)?.file;
        self.machine.files.get_mut(file)?.read(len)
    }

    /// Writes to a descriptor; a call that this cancels ends at once.
    ///
    /// # Errors
    ///
    /// As [`File::write`], and `EBADF` if it is not open.
    pub fn write(&mut self, process: ProcessId, fd: i32, bytes: &[u8]) -> Result<(), Errno> {
        let file = self.machine.process(process).fds.get(fd)?.file;
        self.machine.files.get_mut(file)?.write(bytes)?;
        self.check_cancels();
        Ok(())
    }

    /// Closes a descriptor; with the last one of a handle the bus is told.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not open.
    pub fn close(&mut self, process: ProcessId, fd: i32) -> Result<(), Errno> {
        self.machine.close(process, fd)?;
        self.check_cancels();
        self.settle();
        Ok(())
    }

    /// Whether a descriptor would be closed by a new program image.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not open.
    pub fn is_close_on_exec(&self, process: ProcessId, fd: i32) -> Result<bool, Errno> {
        Ok(self.machine.process(process).fds.get(fd)?.close_on_exec)
    }

    /// Lets a process open at most `spare` more descriptors.
    pub fn leave_spare_fds(&mut self, process: ProcessId, spare: usize) {
        self.machine.process_mut(process).fds.leave_spare(spare);
    }

    /// Files that a descriptor or a message holds; for tests that look for leaks.
    #[must_use]
    pub fn open_files(&self) -> usize {
        self.machine.files.len()
    }

    /// Both clocks.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.clock.now()
    }

    /// The point on the bus' clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.clock.monotonic().after(self.burst.as_ref().map_or(Duration::ZERO, Burst::spent))
    }

    /// When the bus does something next on its own account.
    #[must_use]
    pub fn next_event(&self) -> Option<Instant> {
        self.domain.poll_timeout()
    }

    /// Moves time to `at`, letting every deadline up to it pass at its own time.
    pub fn advance_to(&mut self, at: Instant) {
        while let Some(due) = self.next_event().filter(|due| *due <= at) {
            self.clock.advance_to(due);
            self.run_timers();
        }
        self.clock.advance_to(at);
    }

    /// Lets what is due now happen.
    fn run_timers(&mut self) {
        let mut host = SimHost::new(&mut self.machine, None, &[]);
        self.domain.handle_timeout(&mut host, self.clock.now());
        self.settle();
    }

    /// Ends the calls whose cancel descriptor is readable.
    fn check_cancels(&mut self) {
        let readable = |file| self.machine.files.get(file).is_ok_and(File::is_readable);
        let cancelled: Vec<Token> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.cancel.is_some_and(readable))
            .map(|(token, _)| *token)
            .collect();
        for token in cancelled {
            self.cancel(token, Errno::ECANCELED);
        }
    }

    /// Carries out what the engine asks for, and tells it of handles that nobody holds any more.
    fn settle(&mut self) {
        loop {
            while let Some(effect) = self.domain.poll_effect() {
                self.apply(effect);
            }
            let Some(handle) = self.machine.closed.pop() else { return };
            let mut host = SimHost::new(&mut self.machine, None, &[]);
            self.domain.close(&mut host, self.clock.now(), handle);
            self.machine.forget(handle);
            self.woken.remove(&handle);
            self.seen_at.remove(&handle);
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Wake(handle) | Effect::Room(handle) => {
                self.woken.insert(handle);
                if self.has_tasks {
                    self.wakes.push_back((self.now(), handle));
                }
            }
            Effect::Answer { token, result, .. } => {
                let token = Token(token);
                if let Some(file) = self.waiting.remove(&token).and_then(|waiting| waiting.cancel) {
                    self.machine.let_go(file);
                }
                self.answers.insert(token, result);
            }
            _ => {}
        }
    }
}
