//! Tasks: the async functions of applications, run on the cores of the simulated machine.

use core::pin::Pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use hdrhistogram::Histogram;
use kdbus_core::Instant;
use kdbus_core::client::Wait;
use kdbus_core::engine::HandleId;

use crate::burst::Burst;
use crate::cores::{Cores, Policy, State, TaskId, Thread, Woken};
use crate::cost::Board;
use crate::machine::{ProcessId, Random};
use crate::world::World;

/// What a task runs.
pub(crate) type Job = Pin<Box<dyn Future<Output = ()>>>;

/// Tasks that were woken by a waker.
type WakeList = Arc<Mutex<VecDeque<TaskId>>>;

/// The waker of one task.
struct TaskWaker {
    task: TaskId,
    list: WakeList,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.task);
    }
}

/// A task apart from its thread.
struct Task {
    process: ProcessId,
    name: String,
    /// Taken out while it runs; gone once it has ended.
    job: Option<Job>,
    waker: Waker,
    /// What it waits for since its last turn.
    waits: Vec<(HandleId, Wait)>,
    /// Counts its waits, so that the timer of an old one is told from that of the last.
    wait: u64,
    /// Woken during its turn.
    is_notified: bool,
    stop_ns: Option<u64>,
    delay_ns: Option<u64>,
    is_finished: bool,
    /// Since when it could run, and how long that took each time.
    ready_at: Instant,
    latency: Histogram<u64>,
}

/// What happens at a time.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The task could run now.
    Ready(TaskId),
    /// The task's wait with this number has come to its time.
    Timer(TaskId, u64),
    Continue(TaskId),
}

/// What the executor wants next.
pub(crate) enum Next {
    /// This task is to be polled.
    Poll(TaskId, Job, Waker),
    /// These have to be dropped: their tasks are over.
    Drop(Vec<Job>),
    /// Something happened; ask again.
    Again,
    /// Nothing happens before this time, or before something comes in.
    Idle(Option<Instant>),
}

/// Where and how a task runs. Default: under the normal policy, on any core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// How it competes for cores.
    pub policy: Policy,
    /// The only core that it may run on, if there is one.
    pub core: Option<usize>,
}

impl Default for Placement {
    fn default() -> Self {
        Self { policy: Policy::Normal(0), core: None }
    }
}

impl From<Policy> for Placement {
    fn from(policy: Policy) -> Self {
        Self { policy, core: None }
    }
}

/// All tasks, and the machine that they run on.
pub(crate) struct Executor {
    pub(crate) board: Rc<Board>,
    tasks: Vec<Task>,
    cores: Cores,
    events: BTreeMap<(Instant, u64), Event>,
    sequence: u64,
    list: WakeList,
    stalled_until: Instant,
    /// How much later a wake-up may come, by chance.
    pub(crate) jitter_ns: u64,
    random: Random,
    /// Turns that tasks have taken.
    pub(crate) turns: u64,
}

impl Executor {
    pub(crate) fn new(board: Board, seed: u64) -> Self {
        Self {
            cores: Cores::new(board.cores),
            board: Rc::new(board),
            tasks: Vec::new(),
            events: BTreeMap::new(),
            sequence: 0,
            list: WakeList::default(),
            stalled_until: Instant::ZERO,
            jitter_ns: 0,
            random: Random::new(seed ^ 0x7461_736b_7300),
            turns: 0,
        }
    }

    pub(crate) fn spawn(
        &mut self,
        now: Instant,
        process: ProcessId,
        name: &str,
        placement: Placement,
        job: Job,
    ) -> TaskId {
        let task = TaskId(self.tasks.len());
        let waker = Waker::from(Arc::new(TaskWaker { task, list: Arc::clone(&self.list) }));
        let core = placement.core.filter(|core| *core < self.board.cores);
        self.cores.threads.push(Thread::new(placement.policy, core));
        self.tasks.push(Task {
            process,
            name: name.to_owned(),
            job: Some(job),
            waker,
            waits: Vec::new(),
            wait: 0,
            is_notified: false,
            stop_ns: None,
            delay_ns: None,
            is_finished: false,
            ready_at: now,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3)
                .expect("three digits between 1 and a constant"),
        });
        self.cores.make_ready(task, &self.board);
        task
    }

    pub(crate) fn is_finished(&self, task: TaskId) -> bool {
        self.cores.thread(task).state == State::Ended
    }

    pub(crate) fn all_finished(&self) -> bool {
        self.cores.threads.iter().all(|thread| thread.state == State::Ended)
    }

    /// Names of the tasks that have not ended, with what each is doing.
    pub(crate) fn unfinished(&self) -> Vec<String> {
        let open = |(at, _): &(usize, &Task)| self.cores.threads[*at].state != State::Ended;
        self.tasks.iter().enumerate().filter(open).map(|(_, task)| task.name.clone()).collect()
    }

    pub(crate) fn latencies(&self) -> impl Iterator<Item = (&str, &Histogram<u64>)> {
        self.tasks.iter().map(|task| (task.name.as_str(), &task.latency))
    }

    /// All that tasks still hold, to be dropped outside.
    pub(crate) fn clear(&mut self) -> Vec<Job> {
        (0..self.tasks.len()).filter_map(|at| self.end(TaskId(at))).collect()
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    /// Does what is due, up to something that has to be done outside.
    pub(crate) fn next(&mut self, world: &mut World) -> Next {
        let now = world.now();
        if let Some(process) = world.killed.pop_front() {
            let ended = |at: &usize| self.tasks[*at].process == process;
            let all: Vec<_> = (0..self.tasks.len()).filter(ended).collect();
            return Next::Drop(all.into_iter().filter_map(|at| self.end(TaskId(at))).collect());
        }
        let board = Rc::clone(&self.board);
        let mut woken: Vec<Woken> = Vec::new();
        while let Some((_, handle)) = world.wakes.pop_front() {
            woken.push(Woken::Handle(handle));
        }
        while let Some(task) = self.list.lock().unwrap_or_else(PoisonError::into_inner).pop_front() {
            woken.push(Woken::Task(task));
        }
        if now >= self.stalled_until {
            self.cores.pass(now, |target| woken.push(target));
        }
        for target in woken {
            self.wake(now, target);
        }
        if now < self.stalled_until {
            return Next::Idle(Some(self.stalled_until));
        }
        while let Some(entry) = self.events.first_entry().filter(|entry| entry.key().0 <= now) {
            let event = entry.remove();
            self.happen(now, event);
        }
        if let Some(task) = self.cores.next_turn() {
            if self.cores.thread(task).is_due {
                if let Some(job) = self.begin_turn(now, task, world) {
                    return Next::Poll(task, job, self.tasks[task.0].waker.clone());
                }
            } else {
                self.end_turn(now, task);
            }
            self.cores.assign(now, &board);
            self.write_down(now, world);
            return Next::Again;
        }
        let changed = self.cores.assign(now, &board);
        self.write_down(now, world);
        if changed {
            return Next::Again;
        }
        let event = self.events.first_key_value().map(|((at, _), _)| *at);
        Next::Idle([event, self.cores.next()].into_iter().flatten().min())
    }

    fn write_down(&mut self, now: Instant, world: &mut World) {
        for stretch in self.cores.stretches.drain(..) {
            if let Some(trace) = &mut world.trace {
                trace.ran(stretch.core, &self.tasks[stretch.task.0].name, stretch.begun, now);
            }
        }
    }

    fn begin_turn(&mut self, now: Instant, task: TaskId, world: &mut World) -> Option<Job> {
        let record = &mut self.tasks[task.0];
        self.turns += 1;
        record.latency.saturating_record(now.since(record.ready_at).as_nanos() as u64);
        record.waits.clear();
        record.wait += 1;
        let thread = self.cores.thread_mut(task);
        (thread.is_due, thread.length_ns, thread.done_ns) = (false, 0, 0);
        thread.wakes.clear();
        world.burst = Some(Burst::new(Rc::clone(&self.board)));
        record.job.take()
    }

    /// Takes over what came of a poll.
    ///
    /// `job` is what is still to be done, if anything is.
    pub(crate) fn polled(&mut self, world: &mut World, task: TaskId, job: Option<Job>) {
        let Some(mut burst) = world.burst.take() else { return };
        let now = world.now();
        let record = &mut self.tasks[task.0];
        record.is_finished = job.is_none();
        record.job = job;
        record.stop_ns = burst.stop_ns;
        record.delay_ns = burst.delay_ns.or(record.delay_ns);
        if !record.is_finished && !burst.waits.is_empty() {
            burst.spend(self.board.wait_ns);
        }
        record.waits = burst.waits.clone();
        let length_ns = burst.spent().as_nanos() as u64;
        let mut wakes: VecDeque<(u64, Woken)> = world
            .wakes
            .drain(..)
            .map(|(at, handle)| ((at.since(now).as_nanos() as u64).min(length_ns), Woken::Handle(handle)))
            .collect();
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        for woken in list.drain(..) {
            if woken == task {
                record.is_notified = true;
            } else {
                wakes.push_back((length_ns, Woken::Task(woken)));
            }
        }
        drop(list);
        wakes.make_contiguous().sort_by_key(|(at, _)| *at);
        let thread = self.cores.thread_mut(task);
        (thread.length_ns, thread.done_ns, thread.wakes) = (length_ns, 0, wakes);
        let until = burst.waits.iter().map(|(_, wait)| match wait {
            Wait::Input(at) | Wait::Sleep(at) => *at,
        });
        let until = until.chain(burst.wake_at).min();
        if let Some(until) = until.filter(|until| *until != Instant::FAR) {
            let is_normal = self.cores.thread(task).policy.priority().is_none();
            let slack = if is_normal { self.board.timer_slack_ns } else { 0 };
            let late = Duration::from_nanos(self.board.timer_latency_ns + slack + self.jitter());
            let wait = self.tasks[task.0].wait;
            self.at(until.max(now).after(late), Event::Timer(task, wait));
        }
    }

    fn jitter(&mut self) -> u64 {
        if self.jitter_ns == 0 { 0 } else { self.random.below(self.jitter_ns + 1) }
    }

    /// The turn has taken all of its time.
    fn end_turn(&mut self, now: Instant, task: TaskId) {
        let record = &mut self.tasks[task.0];
        if record.is_finished {
            self.cores.set_aside(task, State::Ended);
            return;
        }
        if let Some(ns) = record.stop_ns.take() {
            self.stop(now, task, ns);
        } else if record.is_notified {
            record.is_notified = false;
            record.ready_at = now;
            self.cores.thread_mut(task).is_due = true;
        } else {
            self.cores.set_aside(task, State::Asleep);
        }
    }

    /// Keeps a task from running for `ns`; what wakes it meanwhile is not lost.
    fn stop(&mut self, now: Instant, task: TaskId, ns: u64) {
        self.cores.set_aside(task, State::Stopped);
        self.at(now.after(Duration::from_nanos(ns)), Event::Continue(task));
    }

    fn end(&mut self, task: TaskId) -> Option<Job> {
        self.cores.set_aside(task, State::Ended);
        self.cores.thread_mut(task).wakes.clear();
        self.tasks[task.0].job.take()
    }

    fn wake(&mut self, now: Instant, target: Woken) {
        match target {
            Woken::Task(task) => self.notify(now, task),
            Woken::Handle(handle) => {
                let waits_here = |task: &Task| {
                    task.waits.iter().any(|(at, wait)| *at == handle && matches!(wait, Wait::Input(_)))
                };
                let all: Vec<_> = (0..self.tasks.len()).filter(|at| waits_here(&self.tasks[*at])).collect();
                for at in all {
                    self.notify(now, TaskId(at));
                }
            }
        }
    }

    /// Wakes a task, once.
    fn notify(&mut self, now: Instant, task: TaskId) {
        match self.cores.thread(task).state {
            State::Asleep => {
                let delay = self.tasks[task.0].delay_ns.take().unwrap_or(0);
                let late = Duration::from_nanos(self.board.wake_latency_ns + delay + self.jitter());
                self.at(now.after(late), Event::Ready(task));
            }
            State::Running(_) | State::Stopped => self.tasks[task.0].is_notified = true,
            State::Ready => {
                if !self.cores.thread(task).is_due {
                    self.tasks[task.0].is_notified = true;
                }
            }
            State::Ended => {}
        }
    }

    fn happen(&mut self, now: Instant, event: Event) {
        match event {
            Event::Ready(task) => self.ready(now, task),
            Event::Timer(task, wait) if self.tasks[task.0].wait == wait => {
                match self.cores.thread(task).state {
                    State::Asleep => self.ready(now, task),
                    State::Ended => {}
                    _ => self.tasks[task.0].is_notified = true,
                }
            }
            Event::Timer(..) => {}
            Event::Continue(task) => {
                if self.cores.thread(task).state == State::Stopped {
                    self.cores.thread_mut(task).state = State::Asleep;
                    // It may have missed its timer and looks for itself.
                    self.ready(now, task);
                }
            }
        }
    }

    fn ready(&mut self, now: Instant, task: TaskId) {
        if self.cores.thread(task).state != State::Asleep {
            self.tasks[task.0].is_notified |= self.cores.thread(task).state != State::Ended;
            return;
        }
        let record = &mut self.tasks[task.0];
        record.is_notified = false;
        record.ready_at = now;
        self.cores.thread_mut(task).is_due = true;
        self.cores.make_ready(task, &self.board);
    }

    /// Wakes all tasks of a process for nothing.
    pub(crate) fn wake_process(&mut self, now: Instant, process: usize) {
        let of = |at: &usize| self.tasks[*at].process.0 == process;
        for at in (0..self.tasks.len()).filter(of).collect::<Vec<_>>() {
            self.notify(now, TaskId(at));
        }
    }

    /// Lets the machine stand still.
    pub(crate) fn stall(&mut self, now: Instant, ns: u64) {
        let until = now.after(Duration::from_nanos(ns));
        self.stalled_until = self.stalled_until.max(until);
        self.cores.stall(self.stalled_until);
    }
}

/// Runs `job` once.
pub(crate) fn poll(job: &mut Job, waker: &Waker) -> Poll<()> {
    job.as_mut().poll(&mut Context::from_waker(waker))
}
