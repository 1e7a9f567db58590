//! Starting and ending a daemon.

use std::fmt;
use std::io;
use std::thread::JoinHandle;

use kdbus_core::abi::{AttachFlags, Cmd, Command, Errno, ItemType, ItemWriter, MakeFlags};
use kdbus_core::channel::{InboxLayout, LaneLayout};
use kdbus_core::engine::{self, Allocate, Arrival, Credentials, Domain, HandleId, Outcome, Request, Storage};
use kdbus_linux::local::wire::{FDS_MAX, LANE_OUT_FDS, PACKET_MAX};
use rustix::fd::OwnedFd;
use zerocopy::IntoBytes;

use crate::activation::Listener;
use crate::budget::Budget;
use crate::clients::{Clients, Pending};
use crate::closer;
use crate::config::{Access, BusConfig, Config, LogLevel, Schedule};
use crate::files::Files;
use crate::host::{State, Turn};
use crate::identity::Proc;
use crate::lanes::LaneTable;
use crate::log::Log;
use crate::policy::{ApplyError, FromFile, Reload};
use crate::poller::{Poller, Source, clock};
use crate::process::{self, ProcessError};
use crate::raw::Foreign;
use crate::ready::Watchdog;
use crate::serve::ServeError;
use crate::tree::{Tree, TreeError};

/// Descriptors of the daemon besides those for clients: standard ones, tree, sets, timer, a packet's worth.
const OWN_DESCRIPTORS: u64 = 128;
/// Descriptors for one client: socket, process, bell, staging file.
const CLIENT_DESCRIPTORS: u64 = 4;
/// Descriptors that may be on their way to one client whatever the limit is: those of HELLO or a lane.
const UNREAD_LEAST: usize = 8;

/// Why a daemon cannot start.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The tree of nodes.
    Tree(TreeError),
    /// A right or limit of the process.
    Process(ProcessError),
    /// The capacities.
    Capacity(engine::ConfigError),
    /// A bus of the configuration.
    Bus {
        /// Its name, the uid in front.
        name: String,
        /// Why it cannot be made.
        error: Errno,
    },
    /// The policy file of a bus.
    Policy(ApplyError),
    /// A system call failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The error.
        error: io::Error,
    },
}

/// A bus daemon that is ready to serve: its nodes are there, and clients can connect.
///
/// Its tables are allocated by [`bind`](Self::bind), never again, and are not given back: a process is
/// meant to make one daemon, or a few.
pub struct Daemon {
    pub(crate) domain: Domain<'static>,
    pub(crate) state: State,
    pub(crate) packet: Box<[u8]>,
    pub(crate) schedule: Schedule,
    /// Given up for a moment to turn a client away when no descriptor is left.
    pub(crate) reserve: Option<OwnedFd>,
    pub(crate) paused_until: Option<kdbus_core::Instant>,
    pub(crate) watchdog: Option<Watchdog>,
    /// When the last packet of this turn was taken up.
    pub(crate) taken_up: Option<engine::Clock>,
    /// Buses with a policy file.
    pub(crate) policies: Vec<FromFile>,
    /// How they are read again.
    pub(crate) reload: Option<Reload>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Daemon").field("tree", &self.state.tree.path()).finish_non_exhaustive()
    }
}

impl Daemon {
    /// Makes the tree of nodes and the buses of the configuration.
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left behind.
    pub fn bind(config: &Config) -> Result<Self, StartError> {
        Self::bind_with(config, Vec::new())
    }

    /// The same with sockets that a service manager has bound to nodes of this tree, see [`activation`](crate::activation).
    ///
    /// # Errors
    ///
    /// [`StartError`]; nothing is left behind. A socket for a node that this daemon does not make is one.
    pub fn bind_with(config: &Config, listeners: Vec<Listener>) -> Result<Self, StartError> {
        let log = Log::new(config.log);
        let capacity = config.capacity.engine(config.bus.len());
        let layout = InboxLayout::new(config.capacity.queue_depth)
            .map_err(|_| engine::ConfigError::Zero("queue_depth"));
        let layout = layout.map_err(StartError::Capacity)?;
        let mut memory = Leak { failed: false };
        let storage = Storage::allocate(&capacity, &mut memory);
        if memory.failed {
            return Err(start("allocating what [capacity] asks for", rustix::io::Errno::NOMEM));
        }
        let domain = Domain::new(&capacity, storage).map_err(StartError::Capacity)?;

        let uid = rustix::process::geteuid().as_raw();
        let mut tree = Tree::open(&config.root, listeners).map_err(StartError::Tree)?;
        let control = tree.make_control().map_err(StartError::Tree)?;
        let sources = capacity.handles + capacity.endpoints + 1;
        let poller = Poller::new(sources).map_err(|error| start("making an epoll set", error))?;
        poller
            .add_listener(&control, Source::Control)
            .map_err(|error| start("waiting for clients", error))?;
        let proc = Proc::open();
        if let Err(error) = &proc {
            log.line(LogLevel::Warn, format_args!("no metadata of processes: /proc: {error}"));
        }
        let needed = OWN_DESCRIPTORS
            + CLIENT_DESCRIPTORS * u64::from(config.capacity.clients)
            + u64::from(config.capacity.files)
            + u64::from(config.capacity.endpoints);
        let limit = process::descriptor_limit();
        if let Some(limit) = limit.filter(|limit| *limit < needed) {
            log.line(
                LogLevel::Warn,
                format_args!("all clients together need {needed} descriptors, the limit is {limit}; raise RLIMIT_NOFILE"),
            );
        }
        // Lanes never take what clients need.
        let spare = limit.map_or(u64::MAX, |limit| limit.saturating_sub(needed)) / LANE_OUT_FDS as u64;
        let lanes = u64::from(config.capacity.lanes).min(spare);
        if lanes < u64::from(config.capacity.lanes) {
            log.line(
                LogLevel::Info,
                format_args!("there are descriptors for {lanes} lanes of {}", config.capacity.lanes),
            );
        }
        let ring = config.memory.lane.0 / 8;
        let lanes = LaneTable::new(
            lanes as usize,
            capacity.handles,
            config.capacity.lanes_per_connection as usize,
            config.capacity.lanes_per_user as usize,
            u32::try_from(ring).ok().and_then(LaneLayout::new),
        );
        let state = State {
            tree,
            control: Foreign::new(control, uid),
            listeners: (0..capacity.endpoints).map(|_| None).collect(),
            clients: Clients::new(capacity.handles),
            lingering: Vec::with_capacity(capacity.handles),
            unread_most: unread_most(limit, config.capacity.clients),
            pending: Pending::new(capacity.calls + 1),
            files: Files::new(config.capacity.files),
            budget: Budget::new(&config.capacity, &config.memory, uid),
            poller,
            proc: proc.ok(),
            log,
            layout,
            lanes,
            largest_pool: config.memory.largest_pool.0,
            to_ring: Vec::with_capacity(capacity.handles),
            to_drain: Vec::with_capacity(capacity.handles),
            doomed: Vec::with_capacity(capacity.handles),
        };
        let mut daemon = Self {
            domain,
            state,
            packet: vec![0; PACKET_MAX + 1].into_boxed_slice(),
            schedule: config.schedule.clone(),
            reserve: reserve(),
            paused_until: None,
            watchdog: None,
            taken_up: None,
            policies: Vec::new(),
            reload: None,
        };
        if config.memory.lock {
            // Behind all allocations, so that a limit shows here and not as a failure of one of them.
            process::lock_memory().map_err(StartError::Process)?;
        }
        for bus in &config.bus {
            let owner = daemon.make_bus(uid, bus)?;
            if let Some(policy) = &bus.policy {
                let name = format!("{uid}-{}", bus.name);
                daemon.apply_policy(owner, &name, policy).map_err(StartError::Policy)?;
            }
        }
        daemon.state.tree.check_adopted().map_err(StartError::Tree)?;
        Ok(daemon)
    }

    /// Starts the threads that close descriptors, which are this process's, and the one that reads policy files again, each
    /// once. [`run`](Self::run) does so too; called before, this tells whether they can be started before anybody is told that all is well.
    ///
    /// # Errors
    ///
    /// [`StartError::Io`].
    pub fn start_threads(&mut self) -> Result<(), StartError> {
        let started = closer::start().and_then(|()| self.start_reading());
        started.map_err(|error| StartError::Io { doing: "starting a thread", error })
    }

    /// Has the loop of [`run`](Self::run) tell a service manager that it turns.
    pub fn watch(&mut self, watchdog: Watchdog) {
        self.watchdog = Some(watchdog);
    }

    /// Where the tree of nodes stands.
    #[must_use]
    pub fn root(&self) -> &std::path::Path {
        self.state.tree.path()
    }

    /// Makes a bus of the daemon's own, which lives as long as the daemon.
    fn make_bus(&mut self, uid: u32, bus: &BusConfig) -> Result<HandleId, StartError> {
        let name = format!("{uid}-{}", bus.name);
        let gid = rustix::process::getegid().as_raw();
        let own = Credentials {
            uid,
            euid: uid,
            suid: uid,
            fsuid: uid,
            gid,
            egid: gid,
            sgid: gid,
            fsgid: gid,
            pid: std::process::id(),
            tid: std::process::id(),
            privileged: uid == 0,
            ..Credentials::default()
        };
        let failed = |error| StartError::Bus { name: name.clone(), error };
        let mut arg = [0; 256];
        let size = bus_make(&mut arg, &name, bus).map_err(|error| failed(error.errno()))?;
        let from = self.domain.open_control(&own).map_err(failed)?;
        let request =
            Request { number: Command::BusMake.request(), arg: &mut arg[..size], message: None, token: 0 };
        let arrival = Arrival { at: clock(), from, caller: None, request };
        match self.domain.handle(&mut Turn::idle(&mut self.state), arrival) {
            Outcome::Done(Ok(())) => Ok(from),
            Outcome::Done(Err(error)) => Err(failed(error)),
            Outcome::Pending => Err(failed(Errno::EIO)),
        }
    }
}

/// A daemon in a thread of this process; it ends, and its nodes go, when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: Option<OwnedFd>,
    thread: Option<JoinHandle<Result<(), ServeError>>>,
    root: std::path::PathBuf,
}

impl Running {
    /// Starts a daemon. When this returns, clients can connect.
    ///
    /// # Errors
    ///
    /// [`StartError`].
    pub fn start(config: &Config) -> Result<Self, StartError> {
        let mut daemon = Daemon::bind(config)?;
        daemon.start_threads()?;
        let root = daemon.root().to_path_buf();
        let (stop, order) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|error| start("making a pipe", error))?;
        let (tell, told) = std::sync::mpsc::channel();
        let serve = move || {
            let scheduled = process::schedule(&daemon.schedule);
            // Whoever started this waits for it.
            let _ = tell.send(scheduled);
            scheduled.map_err(ServeError::Process)?;
            daemon.run(&stop)
        };
        let thread = std::thread::Builder::new()
            .name("kdbusd".into())
            .spawn(serve)
            .map_err(|error| StartError::Io { doing: "starting a thread", error })?;
        let running = Self { stop: Some(order), thread: Some(thread), root };
        told.recv().unwrap_or(Ok(())).map_err(StartError::Process)?;
        Ok(running)
    }

    /// Where the tree of nodes stands.
    #[must_use]
    pub fn root(&self) -> &std::path::Path {
        &self.root
    }

    /// Ends the daemon and says how it went.
    ///
    /// # Errors
    ///
    /// [`ServeError`], if it ended before it was told to.
    pub fn stop(mut self) -> Result<(), ServeError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), ServeError> {
        // The other end reads this as the order to stop.
        self.stop = None;
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => Ok(()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // Whoever wants to know how it went calls `stop`.
            let _ = thread.join();
        }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tree(error) => error.fmt(f),
            Self::Process(error) => error.fmt(f),
            Self::Capacity(error) => write!(f, "capacity: {error}"),
            Self::Bus { name, error } => write!(f, "bus {name} cannot be made: {error}"),
            Self::Policy(error) => error.fmt(f),
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Memory that is never given back.
struct Leak {
    failed: bool,
}

impl Allocate for Leak {
    fn slice<T: Default + 'static>(&mut self, len: usize) -> &'static mut [T] {
        let mut values = Vec::new();
        if values.try_reserve_exact(len).is_err() {
            self.failed = true;
            return &mut [];
        }
        values.extend((0..len).map(|_| T::default()));
        values.leak()
    }
}

fn start(doing: &'static str, error: rustix::io::Errno) -> StartError {
    StartError::Io { doing, error: error.into() }
}

/// Descriptors that may be on their way to each client, so that half of what the kernel lets one user have there is enough for
/// `clients` that read none.
fn unread_most(limit: Option<u64>, clients: u32) -> usize {
    let each = limit.map_or(u64::MAX, |limit| limit / 2 / u64::from(clients.max(1)));
    usize::try_from(each).unwrap_or(FDS_MAX).clamp(UNREAD_LEAST, FDS_MAX)
}

/// A descriptor to give up when there is no other.
pub(crate) fn reserve() -> Option<OwnedFd> {
    let flags = rustix::event::EventfdFlags::CLOEXEC;
    rustix::event::eventfd(0, flags).ok()
}

/// Writes the argument of a BUS_MAKE and returns its length.
fn bus_make(arg: &mut [u8], name: &str, bus: &BusConfig) -> Result<usize, kdbus_core::abi::NoRoom> {
    let mut items = ItemWriter::behind(arg, size_of::<Cmd>())?;
    items.c_str(ItemType::MAKE_NAME, name)?;
    let bloom = [bus.bloom_bytes, bus.bloom_hashes];
    items.bytes(ItemType::BLOOM_PARAMETER, bloom.as_bytes())?;
    let shown = AttachFlags::CREDS | AttachFlags::PIDS;
    items.record(ItemType::ATTACH_FLAGS_SEND, &shown.bits())?;
    let size = items.len();
    let flags = match bus.access {
        Access::Owner => MakeFlags::empty(),
        Access::Group => MakeFlags::ACCESS_GROUP,
        Access::World => MakeFlags::ACCESS_WORLD,
    };
    let head = Cmd { size: size as u64, flags: flags.bits(), return_flags: 0 };
    let place = arg.get_mut(..size_of::<Cmd>()).ok_or(kdbus_core::abi::NoRoom)?;
    place.copy_from_slice(head.as_bytes());
    Ok(size)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Policy;

    fn config(dir: &std::path::Path) -> Config {
        let mut config = Config::new(rustix::process::geteuid().as_raw(), dir.join("kdbus"));
        config.log = LogLevel::Error;
        config.capacity.connections = 4;
        config
    }

    #[test]
    fn what_the_system_cannot_hold_is_an_error_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        // Little of anything else, but slices beyond any address space.
        config.capacity.connections = 16_384;
        config.capacity.queue_depth = 1;
        config.capacity.quota_users = 1;
        config.capacity.pool_slices = u32::MAX;
        let refused = Daemon::bind(&config).unwrap_err();
        assert!(refused.to_string().starts_with("allocating what [capacity] asks for"), "{refused}");
        assert!(!config.root.exists());
    }

    #[test]
    fn a_thread_that_may_not_be_scheduled_so_does_not_start() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.schedule = Schedule { policy: Policy::Fifo, priority: 1000 };
        let refused = Running::start(&config).unwrap_err();
        assert!(matches!(refused, StartError::Process(ProcessError::Schedule { .. })), "{refused}");
        assert!(!config.root.exists(), "its thread has ended and left nothing");
    }

    #[test]
    fn a_bus_that_cannot_be_made_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = config(dir.path());
        config.bus.push(config.bus[0].clone());
        let refused = Daemon::bind(&config).unwrap_err();
        let name = format!("{}-{}", rustix::process::geteuid().as_raw(), config.bus[0].name);
        assert!(matches!(&refused, StartError::Bus { name: named, error: Errno::EEXIST } if *named == name));
        assert!(!config.root.exists());
    }
}
