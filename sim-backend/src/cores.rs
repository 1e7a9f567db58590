//! The cores of the simulated machine: who runs, who waits for a core, and for how long.

use std::collections::VecDeque;

use kdbus_core::Instant;
use kdbus_core::engine::HandleId;

use crate::cost::Board;

/// How a task competes for cores, as Linux has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// `SCHED_FIFO` with a priority of 1 to 99: runs until it waits, or until a more urgent task is there.
    Fifo(u8),
    /// `SCHED_RR`: the same, and equals take turns.
    RoundRobin(u8),
    /// `SCHED_OTHER` with a nice value of -20 to 19: shares what the others leave.
    Normal(i8),
}

impl Policy {
    /// The real-time priority, if it has one.
    pub(crate) const fn priority(self) -> Option<u8> {
        match self {
            Self::Fifo(priority) | Self::RoundRobin(priority) => Some(priority),
            Self::Normal(_) => None,
        }
    }

    /// The share of a normal task: a quarter more for each step of nice.
    fn weight(self) -> u64 {
        let Self::Normal(nice) = self else { return 1024 };
        let steps = u32::from(nice.unsigned_abs()).min(20);
        let (five, four) = (5_u128.pow(steps), 4_u128.pow(steps));
        let weight = if nice < 0 { 1024 * five / four } else { 1024 * four / five };
        weight.max(1) as u64
    }
}

/// Number of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(pub(crate) usize);

/// Where a task stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Waits for something.
    Asleep,
    /// Could run if there were a core.
    Ready,
    /// Has this core.
    Running(usize),
    /// Does nothing until it is let go on.
    Stopped,
    /// Has ended.
    Ended,
}

/// Who is woken when a task has come so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// Whoever waits at this handle.
    Handle(HandleId),
    /// This task.
    Task(TaskId),
}

/// A task as far as cores are concerned.
#[derive(Debug)]
pub(crate) struct Thread {
    pub(crate) policy: Policy,
    /// The only core that it may run on.
    pub(crate) pinned: Option<usize>,
    pub(crate) state: State,
    /// Time that the turn at hand takes, and how much of it has passed.
    pub(crate) length_ns: u64,
    pub(crate) done_ns: u64,
    /// Who is woken after how much of it; ascending.
    pub(crate) wakes: VecDeque<(u64, Woken)>,
    /// The turn at hand has not begun: the task is to be polled.
    pub(crate) is_due: bool,
    /// Place among equals.
    order: u64,
    /// Weighted time that a normal task has had.
    runtime_ns: u64,
    last_core: Option<usize>,
}

/// How urgent a task is: less comes first.
type Urgency = (u8, u64, u64);

impl Thread {
    pub(crate) const fn new(policy: Policy, pinned: Option<usize>) -> Self {
        Self {
            policy,
            pinned,
            state: State::Asleep,
            length_ns: 0,
            done_ns: 0,
            wakes: VecDeque::new(),
            is_due: true,
            order: 0,
            runtime_ns: 0,
            last_core: None,
        }
    }

    const fn urgency(&self) -> Urgency {
        match self.policy.priority() {
            Some(priority) => (0, 255 - priority as u64, self.order),
            None => (1, self.runtime_ns, self.order),
        }
    }

    fn may_run_on(&self, core: usize) -> bool {
        self.pinned.is_none_or(|pinned| pinned == core)
    }

    /// Whether it takes a core away from `other`.
    fn preempts(&self, other: &Self, board: &Board) -> bool {
        match (self.policy.priority(), other.policy.priority()) {
            (Some(one), Some(other)) => one > other,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            // A lead of a third of a slice, lest they take turns all the time.
            (None, None) => self.runtime_ns.saturating_add(board.slice_ns / 3) < other.runtime_ns,
        }
    }

    /// Time until somebody is to be woken, or the turn is over.
    fn left_ns(&self) -> u64 {
        let next = self.wakes.front().map_or(self.length_ns, |(at, _)| *at);
        next.saturating_sub(self.done_ns)
    }
}

/// One core.
#[derive(Debug)]
struct Core {
    running: Option<TaskId>,
    /// What is left of the switch to that task.
    switch_ns: u64,
    /// What is left of its time slice.
    slice_ns: u64,
    /// Up to when its time is accounted for.
    since: Instant,
    /// Since when that task has it.
    begun: Instant,
    last: Option<TaskId>,
}

/// A stretch of time in which a task had a core.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stretch {
    pub(crate) core: usize,
    pub(crate) task: TaskId,
    pub(crate) begun: Instant,
}

/// All cores and all threads.
#[derive(Debug)]
pub(crate) struct Cores {
    pub(crate) threads: Vec<Thread>,
    cores: Vec<Core>,
    orders: u64,
    /// Stretches that ended and that nobody has asked for.
    pub(crate) stretches: Vec<Stretch>,
    /// Threads that are ready.
    ready: usize,
}

impl Cores {
    pub(crate) fn new(count: usize) -> Self {
        let core = || Core {
            running: None,
            switch_ns: 0,
            slice_ns: 0,
            since: Instant::ZERO,
            begun: Instant::ZERO,
            last: None,
        };
        Self {
            threads: Vec::new(),
            cores: (0..count).map(|_| core()).collect(),
            orders: 0,
            stretches: Vec::new(),
            ready: 0,
        }
    }

    pub(crate) fn thread(&self, task: TaskId) -> &Thread {
        &self.threads[task.0]
    }

    pub(crate) fn thread_mut(&mut self, task: TaskId) -> &mut Thread {
        &mut self.threads[task.0]
    }

    /// Lets a task that slept compete for a core.
    pub(crate) fn make_ready(&mut self, task: TaskId, board: &Board) {
        self.orders += 1;
        let order = self.orders;
        let floor = self.floor();
        let thread = &mut self.threads[task.0];
        if thread.state != State::Ready {
            self.ready += 1;
        }
        thread.state = State::Ready;
        thread.order = order;
        // Who slept does not get all the time back that it let pass.
        thread.runtime_ns = thread.runtime_ns.max(floor.saturating_sub(board.slice_ns / 2));
    }

    /// The least time that a normal task which runs or is ready has had.
    fn floor(&self) -> u64 {
        let active = |thread: &&Thread| {
            thread.policy.priority().is_none() && matches!(thread.state, State::Ready | State::Running(_))
        };
        self.threads.iter().filter(active).map(|thread| thread.runtime_ns).min().unwrap_or(0)
    }

    /// Takes a task's core, or its place in the queue for one, away.
    pub(crate) fn set_aside(&mut self, task: TaskId, state: State) {
        match self.threads[task.0].state {
            State::Running(core) => self.vacate(core),
            State::Ready => self.ready -= 1,
            _ => {}
        }
        self.threads[task.0].state = state;
    }

    fn vacate(&mut self, core: usize) {
        let begun = self.cores[core].begun;
        if let Some(task) = self.cores[core].running.take() {
            self.stretches.push(Stretch { core, task, begun });
        }
    }

    /// Lets a stretch of time up to `now` pass on all cores; `woken` hears who is woken by then.
    pub(crate) fn pass(&mut self, now: Instant, mut woken: impl FnMut(Woken)) {
        for core in &mut self.cores {
            let mut span = now.since(core.since).as_nanos() as u64;
            core.since = core.since.max(now);
            let Some(task) = core.running else { continue };
            core.slice_ns = core.slice_ns.saturating_sub(span);
            let switch = span.min(core.switch_ns);
            core.switch_ns -= switch;
            span -= switch;
            let thread = &mut self.threads[task.0];
            thread.runtime_ns += span * 1024 / thread.policy.weight();
            thread.done_ns = (thread.done_ns + span).min(thread.length_ns);
            while core.switch_ns == 0
                && let Some((at, target)) = thread.wakes.front().copied()
                && at <= thread.done_ns
            {
                thread.wakes.pop_front();
                woken(target);
            }
        }
    }

    /// Lets the machine stand still for `ns`: time passes, and nothing gets on.
    pub(crate) fn stall(&mut self, until: Instant) {
        for core in &mut self.cores {
            core.since = core.since.max(until);
        }
    }

    /// A task whose turn begins now, or is over; in the order of the cores.
    pub(crate) fn next_turn(&self) -> Option<TaskId> {
        self.cores.iter().find_map(|core| {
            let task = core.running.filter(|_| core.switch_ns == 0)?;
            let thread = self.thread(task);
            (thread.is_due || thread.done_ns == thread.length_ns).then_some(task)
        })
    }

    /// When something happens on a core next, if nothing comes in between.
    pub(crate) fn next(&self) -> Option<Instant> {
        let of = |core: &Core| {
            let task = core.running?;
            let thread = self.thread(task);
            let mut left = core.switch_ns + if thread.is_due { 0 } else { thread.left_ns() };
            if self.ready > 0 && !matches!(thread.policy, Policy::Fifo(_)) {
                left = left.min(core.slice_ns);
            }
            Some(core.since.after(core::time::Duration::from_nanos(left)))
        };
        self.cores.iter().filter_map(of).min()
    }

    /// Gives the cores to the most urgent tasks. Returns whether anything changed.
    pub(crate) fn assign(&mut self, now: Instant, board: &Board) -> bool {
        let mut changed = self.end_slices(board);
        while self.ready > 0 {
            let Some((task, core)) = self.best_move(board) else { return changed };
            if let Some(loser) = self.cores[core].running {
                self.vacate(core);
                self.threads[loser.0].state = State::Ready;
                self.ready += 1;
            }
            self.ready -= 1;
            let slice_ns =
                if task_is_round_robin(self.thread(task)) { board.round_robin_ns } else { board.slice_ns };
            let place = &mut self.cores[core];
            place.switch_ns = if place.last == Some(task) { 0 } else { board.switch_ns };
            place.running = Some(task);
            place.last = Some(task);
            place.slice_ns = slice_ns;
            (place.since, place.begun) = (place.since.max(now), now);
            let thread = &mut self.threads[task.0];
            thread.state = State::Running(core);
            thread.last_core = Some(core);
            changed = true;
        }
        changed
    }

    /// Puts those whose slice is over behind their equals.
    fn end_slices(&mut self, board: &Board) -> bool {
        let mut changed = false;
        for core in 0..self.cores.len() {
            let Some(task) = self.cores[core].running.filter(|_| self.cores[core].slice_ns == 0) else {
                continue;
            };
            let thread = self.thread(task);
            let round_robin = task_is_round_robin(thread);
            let competes = |other: &Thread| {
                other.state == State::Ready
                    && other.may_run_on(core)
                    && other.policy.priority() == thread.policy.priority()
                    && (round_robin || other.runtime_ns <= thread.runtime_ns)
            };
            let fifo = matches!(thread.policy, Policy::Fifo(_));
            if !fifo && self.threads.iter().any(competes) {
                self.vacate(core);
                self.orders += 1;
                let order = self.orders;
                let thread = &mut self.threads[task.0];
                (thread.state, thread.order) = (State::Ready, order);
                self.ready += 1;
                changed = true;
            } else {
                self.cores[core].slice_ns = if round_robin { board.round_robin_ns } else { board.slice_ns };
            }
        }
        changed
    }

    /// The most urgent task that can have a core, and which one.
    fn best_move(&self, board: &Board) -> Option<(TaskId, usize)> {
        let mut ready: Vec<(Urgency, TaskId)> = self
            .threads
            .iter()
            .enumerate()
            .filter(|(_, thread)| thread.state == State::Ready)
            .map(|(at, thread)| (thread.urgency(), TaskId(at)))
            .collect();
        ready.sort_unstable();
        ready.into_iter().find_map(|(_, task)| self.core_for(task, board).map(|core| (task, core)))
    }

    fn core_for(&self, task: TaskId, board: &Board) -> Option<usize> {
        let thread = self.thread(task);
        let idle = |core: &usize| thread.may_run_on(*core) && self.cores[*core].running.is_none();
        if let Some(last) = thread.last_core.filter(idle) {
            return Some(last);
        }
        if let Some(core) = (0..self.cores.len()).find(idle) {
            return Some(core);
        }
        let losing = |core: &usize| {
            thread.may_run_on(*core)
                && self.cores[*core].running.is_some_and(|other| thread.preempts(self.thread(other), board))
        };
        let urgency = |core: &usize| self.cores[*core].running.map(|other| self.thread(other).urgency());
        (0..self.cores.len()).filter(losing).max_by_key(urgency)
    }
}

const fn task_is_round_robin(thread: &Thread) -> bool {
    matches!(thread.policy, Policy::RoundRobin(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Instant = Instant::from_nanos(1_000);

    /// A machine on which each of `policies` has `length` ns to compute from the start.
    fn machine(cores: usize, policies: &[Policy], length: u64) -> (Cores, Board) {
        let board = Board { switch_ns: 10, ..Board::ideal(cores) };
        let mut all = Cores::new(cores);
        for (at, policy) in policies.iter().enumerate() {
            let thread = Thread { length_ns: length, is_due: false, ..Thread::new(*policy, None) };
            all.threads.push(thread);
            all.make_ready(TaskId(at), &board);
        }
        (all, board)
    }

    /// Runs until nobody is left, and returns when each was done.
    fn run(all: &mut Cores, board: &Board) -> Vec<(usize, u64)> {
        let (mut now, mut ended) = (START, Vec::new());
        loop {
            all.pass(now, |_| {});
            while let Some(task) = all.next_turn() {
                ended.push((task.0, now.since(START).as_nanos() as u64));
                all.set_aside(task, State::Ended);
            }
            all.assign(now, board);
            let Some(next) = all.next() else { return ended };
            now = next;
        }
    }

    #[test]
    fn the_more_urgent_runs_first_and_equals_in_their_order() {
        let (mut all, board) =
            machine(1, &[Policy::Normal(0), Policy::Fifo(10), Policy::Fifo(20), Policy::Fifo(10)], 100);
        assert_eq!(run(&mut all, &board), [(2, 110), (1, 220), (3, 330), (0, 440)]);
    }

    #[test]
    fn a_core_more_takes_the_next_urgent_one() {
        let (mut all, board) = machine(2, &[Policy::Fifo(1), Policy::Fifo(2), Policy::Fifo(3)], 100);
        assert_eq!(run(&mut all, &board), [(2, 110), (1, 110), (0, 220)]);
    }

    #[test]
    fn an_urgent_task_takes_the_core_and_the_other_goes_on_where_it_was() {
        let (mut all, board) = machine(1, &[Policy::Fifo(1)], 100);
        all.assign(START, &board);
        let later = Instant::from_nanos(1_060);
        all.pass(later, |_| {});
        all.threads.push(Thread { length_ns: 30, is_due: false, ..Thread::new(Policy::Fifo(2), None) });
        all.make_ready(TaskId(1), &board);
        all.assign(later, &board);
        assert_eq!(all.thread(TaskId(0)).state, State::Ready);
        assert_eq!(all.thread(TaskId(0)).done_ns, 50);
        // 60 so far, a switch and 30, a switch back and the other 50.
        assert_eq!(run_from(&mut all, &board, later), [(1, 100), (0, 160)]);
    }

    fn run_from(all: &mut Cores, board: &Board, mut now: Instant) -> Vec<(usize, u64)> {
        let mut ended = Vec::new();
        while let Some(next) = all.next() {
            now = now.max(next);
            all.pass(now, |_| {});
            while let Some(task) = all.next_turn() {
                ended.push((task.0, now.since(START).as_nanos() as u64));
                all.set_aside(task, State::Ended);
            }
            all.assign(now, board);
        }
        ended
    }

    #[test]
    fn round_robin_equals_take_turns_and_fifo_equals_do_not() {
        let long = 250_000_000;
        let (mut all, board) = machine(1, &[Policy::RoundRobin(5), Policy::RoundRobin(5)], long);
        let ended = run(&mut all, &board);
        assert!(ended[0].0 == 0 && ended[0].1 > 400_000_000, "{ended:?}");
        let (mut all, board) = machine(1, &[Policy::Fifo(5), Policy::Fifo(5)], long);
        assert_eq!(run(&mut all, &board)[0], (0, long + 10));
    }

    #[test]
    fn normal_tasks_share_by_their_weight() {
        let long = 300_000_000;
        let (mut all, board) = machine(1, &[Policy::Normal(5), Policy::Normal(0)], long);
        let ended = run(&mut all, &board);
        assert_eq!(ended[0].0, 1, "the nicer one is done later");
        // 1024 to 335: when the other has had all of its time, the nicer one has had about a third of that.
        assert!((370_000_000..430_000_000).contains(&ended[0].1), "{ended:?}");
    }

    #[test]
    fn a_pinned_task_waits_for_its_core() {
        let (mut all, board) = machine(2, &[Policy::Fifo(9), Policy::Fifo(8)], 100);
        all.threads[0].pinned = Some(1);
        all.threads[1].pinned = Some(1);
        assert_eq!(run(&mut all, &board), [(0, 110), (1, 220)]);
    }

    #[test]
    fn others_are_woken_when_as_much_of_the_turn_has_passed() {
        let (mut all, board) = machine(1, &[Policy::Fifo(9)], 100);
        all.threads[0].wakes.push_back((40, Woken::Task(TaskId(0))));
        all.assign(START, &board);
        let mut woken = 0;
        all.pass(Instant::from_nanos(1_049), |_| woken += 1);
        assert_eq!((woken, all.next()), (0, Some(Instant::from_nanos(1_050))));
        all.pass(Instant::from_nanos(1_050), |_| woken += 1);
        assert_eq!((woken, all.next()), (1, Some(Instant::from_nanos(1_110))));
    }
}
