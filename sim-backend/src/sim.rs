//! The one thread that a simulated machine and everything on it share.

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;
use std::cell::{Ref, RefCell, RefMut};
use std::fmt;
use std::rc::Rc;

use hdrhistogram::Histogram;
use kdbus_core::Instant;
use kdbus_core::abi::{Cmd, Command, Errno, ItemType, ItemWriter, MakeFlags};
use kdbus_core::engine::{Config, ConfigError};
use zerocopy::IntoBytes;

use crate::cores::{Policy, TaskId};
use crate::cost::Board;
use crate::executor::{self, Executor, Next, Placement};
use crate::fault::{Fault, FaultKind};
use crate::flood;
use crate::machine::ProcessId;
use crate::trace::Trace;
use crate::transport::SimTransport;
use crate::world::{BROKEN_RULE, Progress, World};

/// What a service did in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something: everybody may have a further turn at this same moment.
    Worked,
    /// Nothing, and there is nothing to do before something comes in.
    Idle,
    /// Nothing, but it wants a turn at this time.
    Until(Instant),
}

type Service = Box<dyn FnMut() -> Turn>;

type Invariant = Box<dyn FnMut(&mut World) -> Result<(), String>>;

/// Turns that services may take at one moment before the simulation is taken for a livelock.
const TURNS_MAX: usize = 1_000_000;

/// Steps of the executor between two looks of whoever waits outside.
const STEPS: usize = 64;

/// Priority of a load that a fault brings.
const LOAD_PRIORITY: u8 = 98;

/// `EDEADLK`: everybody waits for somebody else, and no deadline will end it.
pub(crate) const DEADLOCK: Errno = match Errno::from_raw(35) {
    Some(errno) => errno,
    None => Errno::EIO,
};

/// A shared [`World`] and the services that run on it while a client waits.
///
/// Cloning gives another handle to the same simulation. There is one thread: a client that waits, in
/// [`Transport::wait`](kdbus_core::client::Transport::wait) or in a call, lets the services take turns in
/// the order they were registered; when all are idle, time jumps to the next deadline of anybody. A service
/// may wait too; the others run meanwhile.
#[derive(Clone)]
pub struct Sim {
    world: Rc<RefCell<World>>,
    /// A running service is taken out of its place.
    services: Rc<RefCell<Vec<Option<Service>>>>,
    executor: Rc<RefCell<Executor>>,
    /// What is checked after each turn of a task.
    invariants: Rc<RefCell<Vec<Invariant>>>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("world", &self.world).finish_non_exhaustive()
    }
}

impl Sim {
    /// A new machine with two cores on which only commands take time; see [`World::new`].
    ///
    /// # Errors
    ///
    /// As [`World::new`].
    pub fn new(config: &Config, seed: u64) -> Result<Self, ConfigError> {
        Self::on(Board::ideal(2), config, seed)
    }

    /// A new machine of this kind, for [tasks](Self::spawn).
    ///
    /// # Errors
    ///
    /// As [`World::new`].
    pub fn on(board: Board, config: &Config, seed: u64) -> Result<Self, ConfigError> {
        let world = World::new(config, seed)?;
        Ok(Self {
            world: Rc::new(RefCell::new(world)),
            services: Rc::default(),
            executor: Rc::new(RefCell::new(Executor::new(board, seed))),
            invariants: Rc::default(),
        })
    }

    /// The point on the clock that tasks see.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.world().now()
    }

    /// The machine, to look at.
    ///
    /// # Panics
    ///
    /// If the machine is borrowed to be changed.
    #[must_use]
    pub fn world(&self) -> Ref<'_, World> {
        self.world.borrow()
    }

    /// The machine, to change. Give it back before the next use of any transport on it.
    ///
    /// # Panics
    ///
    /// If the machine is borrowed.
    #[must_use]
    pub fn world_mut(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// Registers a service: it gets its turns whenever somebody waits.
    pub fn serve(&self, service: impl FnMut() -> Turn + 'static) {
        self.services.borrow_mut().push(Some(Box::new(service)));
    }

    /// Starts a task of `process`: an async function that competes for the cores of the machine.
    ///
    /// The function is written as for any transport. What it awaits on a [`Connection`] over a [`SimTransport`]
    /// happens in virtual time, and so do its commands; what it computes takes no time but what it [works](Self::work).
    /// It must not wait in a transport: `*_blocking` functions fail with `EOPNOTSUPP` in it.
    ///
    /// Tasks run when the simulation does: in [`run`](Self::run) and while a client outside of them waits.
    ///
    /// [`Connection`]: kdbus_core::client::Connection
    pub fn spawn(
        &self,
        process: ProcessId,
        placement: impl Into<Placement>,
        task: impl Future<Output = ()> + 'static,
    ) -> TaskId {
        let mut world = self.world.borrow_mut();
        world.has_tasks = true;
        let (now, name) = (world.now(), world.name(process).to_owned());
        self.executor.borrow_mut().spawn(now, process, &name, placement.into(), Box::pin(task))
    }

    /// Computes for `span` of the processor's time, which takes longer if others have the core meanwhile. Outside of
    /// a task it takes no time.
    pub async fn work(&self, span: Duration) {
        let mut has_worked = false;
        poll_fn(|cx| {
            let mut world = self.world.borrow_mut();
            if has_worked {
                return Poll::Ready(());
            }
            has_worked = true;
            let Some(burst) = &mut world.burst else { return Poll::Ready(()) };
            burst.spend(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 2));
            cx.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Sleeps until `until`, for tasks that have no connection to sleep on. Outside of a task it returns at once.
    pub async fn sleep(&self, until: Instant) {
        poll_fn(|_| {
            let mut world = self.world.borrow_mut();
            let now = world.now();
            match &mut world.burst {
                Some(burst) if now < until => {
                    burst.wake_at = Some(burst.wake_at.map_or(until, |at| at.min(until)));
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Lets everybody run until all tasks have ended, or until `deadline`. True if all have ended.
    ///
    /// # Errors
    ///
    /// `EDEADLK` if nothing will happen any more, `ELOOP` if something goes on for ever at one moment.
    pub fn run(&self, deadline: Option<Instant>) -> Result<bool, Errno> {
        let executor = Rc::clone(&self.executor);
        let done = |world: &mut World| {
            (executor.borrow().all_finished() && world.due.is_empty() && world.killed.is_empty())
                .then_some(())
        };
        Ok(self.run_until(deadline, done)?.is_some())
    }

    /// Whether a task has ended, by itself or with its process.
    #[must_use]
    pub fn is_finished(&self, task: TaskId) -> bool {
        self.executor.borrow().is_finished(task)
    }

    /// Names of the tasks that have not ended.
    #[must_use]
    pub fn unfinished(&self) -> Vec<String> {
        self.executor.borrow().unfinished()
    }

    /// How long each task waited for a core each time it could run, in nanoseconds, by name, in the order in which
    /// the tasks were started.
    #[must_use]
    pub fn scheduling_latencies(&self) -> Vec<(String, Histogram<u64>)> {
        self.executor.borrow().latencies().map(|(name, latency)| (name.to_owned(), latency.clone())).collect()
    }

    /// Turns that tasks have taken so far.
    #[must_use]
    pub fn turns(&self) -> u64 {
        self.executor.borrow().turns
    }

    /// Lets each wake-up and timer come up to `span` late, by chance of the seed. Default: not at all.
    pub fn set_jitter(&self, span: Duration) {
        self.executor.borrow_mut().jitter_ns = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX / 2);
    }

    /// Lets these faults happen, each at its step.
    pub fn inject(&self, faults: impl IntoIterator<Item = Fault>) {
        self.world.borrow_mut().faults.extend(faults);
    }

    /// Has `check` look at the world after each turn of a task, and the engine's own rules looked after as well.
    ///
    /// The simulation panics with what it says.
    pub fn invariant(&self, check: impl FnMut(&mut World) -> Result<(), String> + 'static) {
        self.invariants.borrow_mut().push(Box::new(check));
    }

    /// Writes down what happens from now on, for [`take_trace`](Self::take_trace).
    pub fn start_trace(&self) {
        self.world.borrow_mut().trace = Some(Box::default());
    }

    /// What happened since the trace was started, which ends with this; `None` if none was started.
    #[must_use]
    pub fn take_trace(&self) -> Option<Trace> {
        self.world.borrow_mut().trace.take().map(|trace| *trace)
    }

    /// Ends all tasks and processes, so that everything is given back, and says what is not.
    ///
    /// # Errors
    ///
    /// What is left, which is a defect of the engine or the simulator.
    pub fn end(&self) -> Result<(), String> {
        let jobs = self.executor.borrow_mut().clear();
        drop(jobs);
        self.services.borrow_mut().clear();
        let mut world = self.world.borrow_mut();
        world.end_all()
    }

    /// One step of the tasks: whether anything happened, and when something does next.
    fn task_turn(&self) -> (bool, Option<Instant>) {
        self.carry_out_faults();
        let (steps, next) = {
            let (mut executor, mut world) = (self.executor.borrow_mut(), self.world.borrow_mut());
            // Up to what has to be done outside; whoever waits there looks now and then.
            let mut steps = (0..STEPS).map(|_| executor.next(&mut world)).enumerate();
            steps.find(|(_, next)| !matches!(next, Next::Again)).unwrap_or((STEPS, Next::Again))
        };
        match next {
            Next::Idle(at) => (steps > 0, at),
            Next::Again => (true, None),
            Next::Drop(jobs) => {
                drop(jobs);
                (true, None)
            }
            Next::Poll(task, mut job, waker) => {
                let poll = executor::poll(&mut job, &waker);
                // What it holds is given back while its time still counts.
                let job = poll.is_pending().then_some(job);
                self.executor.borrow_mut().polled(&mut self.world.borrow_mut(), task, job);
                self.check();
                (true, None)
            }
        }
    }

    fn check(&self) {
        let mut invariants = self.invariants.borrow_mut();
        if invariants.is_empty() {
            return;
        }
        let mut world = self.world.borrow_mut();
        if let Err(violation) = world.audit() {
            panic!("{BROKEN_RULE} {violation}");
        }
        for invariant in invariants.iter_mut() {
            if let Err(text) = invariant(&mut world) {
                panic!("an invariant does not hold: {text}");
            }
        }
    }

    fn carry_out_faults(&self) {
        let due = self.world.borrow_mut().due.pop_front();
        let Some(fault) = due else { return };
        let now = self.world().now();
        match fault.kind {
            FaultKind::Spurious => self.executor.borrow_mut().wake_process(now, fault.process),
            FaultKind::Stall(ns) => self.executor.borrow_mut().stall(now, ns),
            FaultKind::Load { ns } => {
                let process = self.world.borrow_mut().spawn_user("load", 0, 0);
                let sim = self.clone();
                self.spawn(process, Policy::Fifo(LOAD_PRIORITY), async move {
                    sim.work(Duration::from_nanos(ns)).await;
                });
            }
            FaultKind::Flood(count) => flood::flood(&mut self.world.borrow_mut(), fault.process, count),
            _ => {}
        }
    }

    /// Makes a bus of `process` that everybody may use, with filters of 64 bytes and one hash, and returns
    /// the descriptor that keeps it alive. Its full name is the uid, a hyphen and `name`.
    ///
    /// # Errors
    ///
    /// As BUS_MAKE.
    pub fn make_bus(&self, process: ProcessId, name: &str) -> Result<i32, Errno> {
        let mut world = self.world_mut();
        let fd = world.open_control(process)?;
        let mut arg = [0; 256];
        let mut items = ItemWriter::behind(&mut arg, size_of::<Cmd>()).map_err(|error| error.errno())?;
        let name = format!("{}-{name}", world.credentials(process).euid);
        items.c_str(ItemType::MAKE_NAME, &name).map_err(|error| error.errno())?;
        let parameter = kdbus_core::abi::BloomParameter { size: 64, n_hash: 1 };
        items.record(ItemType::BLOOM_PARAMETER, &parameter).map_err(|error| error.errno())?;
        let head = Cmd { size: items.len() as u64, flags: MakeFlags::ACCESS_WORLD.bits(), return_flags: 0 };
        arg[..size_of::<Cmd>()].copy_from_slice(head.as_bytes());
        let Progress::Done(result) = world.command(process, fd, Command::BusMake.request(), &mut arg, None)
        else {
            return Err(Errno::EIO);
        };
        result.map(|()| fd)
    }

    /// Opens an endpoint as a transport of `process`; HELLO is for the client to say.
    ///
    /// # Errors
    ///
    /// As [`World::open`].
    pub fn open(&self, process: ProcessId, bus: &str, endpoint: &str) -> Result<SimTransport, Errno> {
        let fd = self.world_mut().open(process, bus, endpoint)?;
        Ok(SimTransport::new(self.clone(), process, fd))
    }

    /// Runs services and passes time until `done` gives something, or until `deadline`, then `None`.
    ///
    /// # Errors
    ///
    /// `EDEADLK` if nothing would ever happen any more; `ELOOP` if services keep working at one moment.
    pub fn run_until<T>(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut World) -> Option<T>,
    ) -> Result<Option<T>, Errno> {
        let mut turns = 0;
        loop {
            if self.world().burst.is_some() {
                // A task that waits here would keep the core that others need to end its wait.
                return Err(Errno::EOPNOTSUPP);
            }
            if let Some(result) = done(&mut self.world_mut()) {
                return Ok(Some(result));
            }
            let now = self.world().now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(None);
            }
            let (worked, wanted) = self.turn();
            if worked {
                turns += 1;
                if turns > TURNS_MAX {
                    return Err(Errno::from_raw(40).unwrap_or(Errno::EIO));
                }
                continue;
            }
            let event = self.world().next_event();
            let next = [deadline, wanted, event].into_iter().flatten().min().ok_or(DEADLOCK)?;
            // Somebody who asks for a turn at a time that has passed gets it after everybody else.
            self.world_mut().advance_to(next);
            turns = if next > now { 0 } else { turns + 1 };
            if turns > TURNS_MAX {
                return Err(Errno::from_raw(40).unwrap_or(Errno::EIO));
            }
        }
    }

    /// Lets services and time run up to `at`.
    ///
    /// # Errors
    ///
    /// `ELOOP` if services keep working at one moment.
    pub fn run_to(&self, at: Instant) -> Result<(), Errno> {
        self.run_until(Some(at), |_| None::<()>).map(|_| ())
    }

    /// One turn of each service that is not running: whether any worked, and when one wants the next.
    fn turn(&self) -> (bool, Option<Instant>) {
        let mut worked = false;
        let mut wanted: Option<Instant> = None;
        let count = self.services.borrow().len();
        for index in 0..count {
            let Some(mut service) = self.services.borrow_mut()[index].take() else { continue };
            match service() {
                Turn::Worked => worked = true,
                Turn::Idle => {}
                Turn::Until(at) => wanted = Some(wanted.map_or(at, |other| other.min(at))),
            }
            self.services.borrow_mut()[index] = Some(service);
        }
        if self.world().has_tasks {
            let (ran, next) = self.task_turn();
            worked |= ran;
            wanted = [wanted, next].into_iter().flatten().min();
        }
        (worked, wanted)
    }
}
