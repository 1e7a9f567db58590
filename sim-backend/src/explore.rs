//! Many seeds of one scenario: in parallel, with faults, until one fails; then as little of it as still does.

use core::ops::Range;
use core::time::Duration;
use std::cell::Cell;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};
use std::thread;

use kdbus_core::engine::Config;

use crate::cost::Board;
use crate::fault::{Fault, FaultPlan};
use crate::sim::Sim;
use crate::stage::Play;

/// Capacities for a scenario of a few processes: small, because the memory of each simulated bus is kept until the
/// program ends, and because small tables fill.
pub const COMPACT: Config = Config {
    handles: 24,
    buses: 2,
    endpoints: 4,
    users: 12,
    connections: 12,
    queue_depth: 64,
    pool_slices: 96,
    quota_users: 6,
    names: 12,
    name_records: 24,
    matches: 48,
    match_rules: 96,
    match_rule_bytes: 4096,
    match_buckets: 32,
    trackers: 64,
    calls: 16,
    files: 32,
    policy_entries: 8,
    policy_records: 16,
    watches: 16,
    metadata_bytes: 256,
    info_bytes: 64,
    ..Config::SMALL
};

/// Environment variable with the only seed to run.
const SEED: &str = "KDBUS_SIM_SEED";

/// Environment variable with the faults of that seed.
const FAULTS: &str = "KDBUS_SIM_FAULTS";

thread_local! {
    /// A panic of this thread is for us to report.
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// How a scenario is explored.
#[derive(Clone, Debug)]
pub struct Explore {
    seeds: Range<u64>,
    threads: usize,
    plan: FaultPlan,
    config: Config,
    board: Board,
    jitter: Duration,
    limit: Duration,
    all_end: bool,
}

/// A seed that fails, and the least of its faults with which it still does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counterexample {
    /// The seed.
    pub seed: u64,
    /// Its faults, as far as they matter.
    pub faults: Vec<Fault>,
    /// What went wrong.
    pub reason: String,
}

impl Explore {
    /// Explores these seeds with default faults, on two cores with a compact bus, for up to ten virtual minutes each.
    #[must_use]
    pub fn new(seeds: Range<u64>) -> Self {
        Self {
            seeds,
            threads: thread::available_parallelism().map_or(1, usize::from),
            plan: FaultPlan::default(),
            config: COMPACT,
            board: Board::ideal(2),
            jitter: Duration::from_micros(20),
            limit: Duration::from_secs(600),
            all_end: false,
        }
    }

    /// Sets which faults seeds bring.
    #[must_use]
    pub const fn plan(mut self, plan: FaultPlan) -> Self {
        self.plan = plan;
        self
    }

    /// Sets the capacities of the bus. Default: [`COMPACT`].
    #[must_use]
    pub const fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Sets the machine. Default: two cores on which a command takes a microsecond, and nothing else takes time.
    #[must_use]
    pub fn board(mut self, board: Board) -> Self {
        self.board = board;
        self
    }

    /// Sets how many threads explore. Default: one for each processor.
    #[must_use]
    pub const fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Sets after which virtual time a run is over. Default: ten minutes.
    #[must_use]
    pub const fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Has a run fail if a task has not ended by then. Default: it may go on.
    #[must_use]
    pub const fn all_end(mut self) -> Self {
        self.all_end = true;
        self
    }

    /// Runs `scenario` with each seed: it starts processes and tasks and says what holds, and they run to their end.
    ///
    /// With `KDBUS_SIM_SEED` in the environment only that seed is run, with the faults of `KDBUS_SIM_FAULTS`.
    ///
    /// # Panics
    ///
    /// If a run fails: with the seed, the faults that it takes, and the command that replays it. A run fails if
    /// anything in it panics, an invariant of the scenario or of the engine does not hold after a turn of a task, or
    /// the bus does not give everything back in the end.
    pub fn run(&self, scenario: impl Fn(&Sim) + Sync) {
        let replay = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
        if let Some(seed) = replay {
            let faults = match std::env::var(FAULTS) {
                Ok(text) => Fault::parse_all(&text).unwrap_or_else(|error| panic!("{FAULTS}: {error}")),
                Err(_) => self.plan.of(seed),
            };
            self.run_one(seed, &faults, &scenario);
            return;
        }
        if let Some(found) = self.find(&scenario) {
            panic!("{}", found.report());
        }
    }

    /// The failing run with the lowest seed among those that were tried, with as few faults as still make it fail, or
    /// `None` if all seeds pass.
    pub fn find(&self, scenario: impl Fn(&Sim) + Sync) -> Option<Counterexample> {
        let next = AtomicU64::new(self.seeds.start);
        let first: Mutex<Option<Counterexample>> = Mutex::new(None);
        let first_seed = || {
            first.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map_or(u64::MAX, |found| found.seed)
        };
        thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= self.seeds.end || seed > first_seed() {
                            return;
                        }
                        let faults = self.plan.of(seed);
                        if let Err(reason) = self.attempt(seed, &faults, &scenario) {
                            let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
                            if first.as_ref().is_none_or(|found| seed < found.seed) {
                                *first = Some(Counterexample { seed, faults, reason });
                            }
                        }
                    }
                });
            }
        });
        let found = first.into_inner().unwrap_or_else(PoisonError::into_inner)?;
        Some(self.shrink(found, &scenario))
    }

    /// Leaves out each fault without which the run still fails.
    fn shrink(&self, mut found: Counterexample, scenario: &(impl Fn(&Sim) + Sync)) -> Counterexample {
        let mut at = 0;
        while at < found.faults.len() {
            let mut fewer = found.faults.clone();
            fewer.remove(at);
            match self.attempt(found.seed, &fewer, scenario) {
                Err(reason) => {
                    // What stood before may be needless now.
                    found = Counterexample { seed: found.seed, faults: fewer, reason };
                    at = 0;
                }
                Ok(()) => at += 1,
            }
        }
        found
    }

    /// Runs one seed and catches what goes wrong.
    fn attempt(&self, seed: u64, faults: &[Fault], scenario: &(impl Fn(&Sim) + Sync)) -> Result<(), String> {
        hush();
        QUIET.set(true);
        let result = panic::catch_unwind(AssertUnwindSafe(|| self.run_one(seed, faults, scenario)));
        QUIET.set(false);
        result.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
                .unwrap_or_else(|| "a panic without a text".to_owned())
        })
    }

    fn run_one(&self, seed: u64, faults: &[Fault], scenario: &(impl Fn(&Sim) + Sync)) {
        let sim = Sim::on(self.board.clone(), &self.config, seed)
            .unwrap_or_else(|error| panic!("the capacities make no bus: {error}"));
        sim.set_jitter(self.jitter);
        sim.inject(faults.iter().copied());
        // The engine's own rules hold whatever the scenario says.
        sim.invariant(|_| Ok(()));
        scenario(&sim);
        let limit = sim.world().now().after(self.limit);
        let ended = sim.run(Some(limit));
        if self.all_end && ended != Ok(true) {
            panic!("tasks that have not ended: {}", sim.unfinished().join(", "));
        }
        if let Err(text) = sim.end() {
            panic!("{text}");
        }
    }
}

impl Counterexample {
    /// What to tell a person: what is wrong, with which faults, and how to see it again.
    #[must_use]
    pub fn report(&self) -> String {
        let Self { seed, reason, .. } = self;
        let faults: Vec<_> = self.faults.iter().map(ToString::to_string).collect();
        let list = if faults.is_empty() { "no faults at all".to_owned() } else { faults.join(", ") };
        let faults = faults.join(",");
        format!(
            "seed {seed} fails with {list}: {reason}\nto replay it: {SEED}={seed} {FAULTS}='{faults}' {}",
            command()
        )
    }
}

impl Sim {
    /// Explores `scenario` under these seeds with the defaults of [`Explore`].
    ///
    /// # Panics
    ///
    /// As [`Explore::run`].
    pub fn explore(seeds: Range<u64>, scenario: impl Fn(&Self) + Sync) {
        Explore::new(seeds).run(scenario);
    }
}

impl Play {
    /// Plays under each of these seeds, in as many threads as there are processors, and returns how the plays went. With
    /// `KDBUS_SIM_SEED` in the environment, only that seed is played.
    ///
    /// # Panics
    ///
    /// If a play fails: with the lowest seed that does among those that were tried, and the command that replays it.
    pub fn explore(seeds: Range<u64>, play: impl Fn(u64) -> Result<Self, String> + Sync) -> Vec<Self> {
        let replay = std::env::var(SEED).ok().and_then(|seed| seed.parse().ok());
        let seeds = replay.map_or(seeds, |seed: u64| seed..seed + 1);
        let next = AtomicU64::new(seeds.start);
        let plays = Mutex::new(Vec::new());
        let failed: Mutex<Option<(u64, String)>> = Mutex::new(None);
        let first_seed =
            || failed.lock().map_or(u64::MAX, |failed| failed.as_ref().map_or(u64::MAX, |(seed, _)| *seed));
        thread::scope(|scope| {
            for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Ordering::Relaxed);
                        if seed >= seeds.end || seed > first_seed() {
                            return;
                        }
                        match play(seed) {
                            Ok(play) => plays.lock().unwrap_or_else(PoisonError::into_inner).push(play),
                            Err(reason) => {
                                let mut failed = failed.lock().unwrap_or_else(PoisonError::into_inner);
                                if failed.as_ref().is_none_or(|(first, _)| seed < *first) {
                                    *failed = Some((seed, reason));
                                }
                            }
                        }
                    }
                });
            }
        });
        if let Some((seed, reason)) = failed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            panic!("seed {seed} fails: {reason}\nto replay it: {SEED}={seed} {}", command());
        }
        plays.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The command that runs this program, or this test alone.
fn command() -> String {
    let program = std::env::current_exe().ok();
    let stem = program.as_deref().and_then(|path| path.file_stem()?.to_str()).unwrap_or("the program");
    let (Ok(package), Some(test)) =
        (std::env::var("CARGO_PKG_NAME"), thread::current().name().map(str::to_owned))
    else {
        return program.as_deref().map_or_else(|| stem.to_owned(), |path| path.display().to_string());
    };
    // cargo puts a hyphen and a hash behind the name of a test target.
    let target = stem.rsplit_once('-').map_or(stem, |(target, _)| target);
    let target =
        if target == package.replace('-', "_") { "--lib".to_owned() } else { format!("--test {target}") };
    format!("cargo test -p {package} {target} {test} -- --exact --nocapture")
}

/// Keeps the panics of explored runs from standard error; each failing run is reported once, in the end.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let former = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                former(info);
            }
        }));
    });
}
