//! What stands above the parts: starts them as processes, watches them, shows what they see, and ends them.

use std::fmt;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::channel::Threshold;
use super::dashboard::Dashboard;
use super::panel::View;
use super::part::{APPEARANCE, Part};
use super::plan::Plan;
use super::probe::{FindError, Machine};
use super::process::{Order, Told};
use super::report::Report;
use super::tally::Tally;
use crate::bus::{Bus, BusError};
use crate::coordinator::{Subcommands, died};
use crate::hop::HopRecorder;
use crate::interrupts::Interrupts;

/// Between the order to start and the first reading, so that all parts have heard it.
const LEAD: Duration = Duration::from_millis(20);

/// How long others may take to tell their reasons after one part failed, so that the first reason is found among them.
const GRACE: Duration = Duration::from_millis(300);

/// How long the parts may take to end in order after an interrupt.
const PATIENCE: Duration = Duration::from_secs(5);

/// How often keys are looked at.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// What to measure and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// Below this directory are the sensors.
    pub root: PathBuf,
    /// Names of channels, or their beginnings with a star; none for all.
    pub patterns: Vec<String>,
    /// What is alarming.
    pub thresholds: Vec<Threshold>,
    /// Ticks in a second.
    pub rate: u64,
    /// How long; without it, until somebody ends it.
    pub span: Option<Duration>,
    /// How long an answer may take.
    pub answer: Duration,
    /// Where the record goes to.
    pub csv: Option<PathBuf>,
    /// The CPU that all parts stay on.
    pub cpu: Option<usize>,
    /// Whether standard output is a terminal to draw on.
    pub draws: bool,
    /// The words that make this program a part and a daemon.
    pub subcommands: Subcommands,
}

/// What came of a run that ended in order.
#[derive(Debug)]
pub struct Outcome {
    /// The measurements.
    pub report: Report,
    /// Whether it was ended before its time.
    pub is_interrupted: bool,
}

/// Measures, and returns when every process is gone. Tells people on standard error what it does.
///
/// # Errors
///
/// [`RunError`]; nothing is left running then. What was recorded until then stays.
pub fn run(options: &Options) -> Result<Outcome, RunError> {
    let machine = Machine::find(&options.root, &options.patterns)?;
    let plan = plan(options, &machine)?;
    let program = std::env::current_exe().map_err(RunError::Program)?;
    let (events, arrivals) = channel();
    let signals = Interrupts::watch(events.clone(), || Event::Interrupt).map_err(RunError::Program)?;
    let bus = Bus::find_or_start(&program, options.subcommands.daemon, true)?;
    bus.introduce("measuring");
    let order = Order {
        plan: plan.clone(),
        bus: bus.path().to_owned(),
        root: options.root.clone(),
        csv: options.csv.clone(),
        cpu: options.cpu,
        is_shown: true,
    };
    let mut players = Vec::with_capacity(Part::ALL.len());
    for part in Part::ALL {
        players.push(Player::start(&program, options.subcommands.stage, part, &order, events.clone())?);
    }
    let mut run =
        Run { players, arrivals, interrupts: 0, give_up_at: None, shown: None, told: 0, plan: plan.clone() };
    run.await_ready()?;
    if options.draws {
        run.shown = Some(Dashboard::new(&plan).map_err(RunError::Terminal)?);
    }
    run.start()?;
    let watched = run.watch();
    // The terminal is as it was before anything is printed.
    run.shown = None;
    watched?;
    let title = format!(
        "{} channels at up to {} Hz{}",
        plan.channels.len(),
        plan.rate,
        options.span.map_or_else(String::new, |span| format!(" for {} s", span.as_secs_f64()))
    );
    let mut report = Report::new(title, plan);
    for player in &mut run.players {
        report.add(std::mem::take(&mut player.tally));
    }
    let is_interrupted = run.interrupts > 0;
    drop(run);
    drop(bus);
    drop(signals);
    Ok(Outcome { report, is_interrupted })
}

fn plan(options: &Options, machine: &Machine) -> Result<Plan, RunError> {
    let rate = options.rate.max(1);
    let ticks = options.span.map_or(u64::MAX, |span| {
        u64::try_from(span.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX).max(1)
    });
    let plan = Plan {
        channels: machine.channels().cloned().collect(),
        thresholds: options.thresholds.clone(),
        rate,
        ticks,
        answer_ns: options.answer.as_nanos() as u64,
        burst: None,
    };
    match plan.unknown_threshold() {
        None => Ok(plan),
        Some(threshold) => Err(RunError::Find(FindError::NoSuch {
            pattern: threshold.channel.clone(),
            found: plan.channels.iter().map(|channel| channel.name.clone()).collect(),
        })),
    }
}

/// What the coordinator hears.
enum Event {
    /// A part says something.
    Said(Part, Box<Told>),
    /// A part says nothing more: it has ended, or what it says makes no sense.
    Silent(Part),
    /// The user, or the system, wants the run to end.
    Interrupt,
}

/// A part that was started. It is killed when this is dropped.
struct Player {
    part: Part,
    process: Child,
    order: Option<ChildStdin>,
    ready: Option<String>,
    tally: Tally,
    failure: Option<(bool, String)>,
    has_tally: bool,
    has_ended: bool,
}

impl Player {
    fn start(
        program: &Path,
        subcommand: &str,
        part: Part,
        order: &Order,
        events: Sender<Event>,
    ) -> Result<Self, RunError> {
        let mut process = Command::new(program)
            .args([subcommand, part.word()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for the coordinator, which ends the others in order.
            .process_group(0)
            .spawn()
            .map_err(RunError::Program)?;
        let said = process.stdout.take();
        thread::spawn(move || {
            for line in said.into_iter().flat_map(|said| BufReader::new(said).lines()) {
                let told = line.ok().and_then(|line| serde_json::from_str(&line).ok());
                let Some(told) = told else { break };
                if events.send(Event::Said(part, Box::new(told))).is_err() {
                    return;
                }
            }
            // Nobody listens any more if the run is over.
            let _ = events.send(Event::Silent(part));
        });
        let mut player = Self {
            part,
            order: process.stdin.take(),
            process,
            ready: None,
            tally: Tally::default(),
            failure: None,
            has_tally: false,
            has_ended: false,
        };
        player.tell(&serde_json::to_string(order).map_err(|error| RunError::Program(error.into()))?);
        Ok(player)
    }

    /// Tells the part a line. A part that does not hear it has ended, which is heard.
    fn tell(&mut self, line: &str) {
        if let Some(order) = &mut self.order {
            let _ = writeln!(order, "{line}");
        }
    }

    fn hear(&mut self, told: Told) {
        match told {
            Told::Ready(granted) => self.ready = Some(granted),
            Told::Tally { counts, hops, ranges } => {
                let hops = hops.iter().filter_map(|bytes| HopRecorder::from_bytes(bytes).ok()).collect();
                self.tally = Tally { counts, hops, ranges };
                self.has_tally = true;
            }
            Told::Failed { is_consequence, text } => self.failure = Some((is_consequence, text)),
            Told::View(_) => {}
        }
    }

    /// Takes note that nothing more is heard of the process, and of why.
    fn end(&mut self) {
        self.has_ended = true;
        if !self.has_tally && self.failure.is_none() {
            // It may have closed its end and live on.
            let _ = self.process.kill();
        }
        let status = self.process.wait();
        if self.has_tally || self.failure.is_some() {
            return;
        }
        self.failure = Some((false, status.map_or_else(|error| error.to_string(), died)));
    }

    fn signal(&self, signal: Signal) {
        // The number belongs to the process until it is waited for.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw)
            && !self.has_ended
        {
            let _ = kill_process(pid, signal);
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// A run under way.
struct Run {
    players: Vec<Player>,
    arrivals: Receiver<Event>,
    interrupts: u32,
    /// When everything is ended that has not ended by itself.
    give_up_at: Option<Instant>,
    shown: Option<Dashboard>,
    /// Alarms that were told of, up to this time.
    told: u64,
    plan: Plan,
}

impl Run {
    /// Waits until all parts know each other.
    fn await_ready(&mut self) -> Result<(), RunError> {
        // Parts give up waiting for each other before this, and have a better reason.
        self.give_up_at = Some(Instant::now() + APPEARANCE + GRACE);
        while self.players.iter().any(|player| player.ready.is_none()) {
            self.hear()?;
            if self.interrupts > 0 {
                return Err(RunError::Interrupted);
            }
        }
        self.give_up_at = None;
        for player in &self.players {
            eprintln!("{:9} {}", player.part.word(), player.ready.as_deref().unwrap_or_default());
        }
        Ok(())
    }

    /// Tells all parts when to start.
    fn start(&mut self) -> Result<(), RunError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
        let start_at = (now + LEAD).as_nanos().to_string();
        self.players.iter_mut().for_each(|player| player.tell(&start_at));
        Ok(())
    }

    /// Waits until all parts have ended, or one of them has failed.
    fn watch(&mut self) -> Result<(), RunError> {
        while self.players.iter().any(|player| !player.has_ended) {
            self.hear()?;
            if let Some(dashboard) = &mut self.shown
                && dashboard.is_to_end().map_err(RunError::Terminal)?
            {
                self.interrupt()?;
            }
        }
        Ok(())
    }

    /// Takes in one event, or none for a while.
    fn hear(&mut self) -> Result<(), RunError> {
        let left = self.give_up_at.map(|at| at.saturating_duration_since(Instant::now()));
        let event = match (left, &self.shown) {
            (None, None) => self.arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected),
            (Some(left), None) => self.arrivals.recv_timeout(left),
            (_, Some(_)) => self.arrivals.recv_timeout(KEYS_EVERY),
        };
        match event {
            Ok(Event::Said(part, told)) => match *told {
                Told::View(view) => self.show(&view)?,
                told => self.player(part).hear(told),
            },
            Ok(Event::Silent(part)) => self.player(part).end(),
            Ok(Event::Interrupt) => self.interrupt()?,
            Err(RecvTimeoutError::Timeout) if self.shown.is_some() && left != Some(Duration::ZERO) => {}
            Err(_) => return Err(self.failure().unwrap_or(RunError::Interrupted)),
        }
        let has_failed = self.players.iter().any(|player| player.failure.is_some());
        let is_clear =
            self.players.iter().any(|player| matches!(player.failure, Some((false, _))) && player.has_ended);
        if is_clear {
            return Err(self.failure().unwrap_or(RunError::Interrupted));
        }
        if has_failed && self.give_up_at.is_none() {
            self.give_up_at = Some(Instant::now() + GRACE);
        }
        Ok(())
    }

    /// Ends the run in order; at the second time, at once.
    fn interrupt(&mut self) -> Result<(), RunError> {
        self.interrupts += 1;
        if self.interrupts > 1 {
            return Err(RunError::Interrupted);
        }
        self.give_up_at = Some(Instant::now() + PATIENCE);
        // The sampler says that nothing follows, and with it everybody ends in order.
        self.player(Part::Sampler).signal(Signal::TERM);
        Ok(())
    }

    fn show(&mut self, view: &View) -> Result<(), RunError> {
        if let Some(dashboard) = &mut self.shown {
            return dashboard.show(view).map_err(RunError::Terminal);
        }
        // Without a terminal, alarms alone are worth a line.
        for alarm in view.alarms.iter().filter(|alarm| alarm.at_ns > self.told) {
            let Some(channel) = usize::try_from(alarm.channel).ok().and_then(|at| self.plan.channels.get(at))
            else {
                continue;
            };
            let (name, unit) = (&channel.name, &channel.unit);
            let word = if alarm.is_raised { "alarm" } else { "clear" };
            let at = alarm.at_ns as f64 / 1e9;
            eprintln!(
                "{at:9.3} s  {word}: {name} is {} {unit}, the limit is {} {unit}",
                alarm.value, alarm.limit
            );
        }
        self.told = view.alarms.iter().map(|alarm| alarm.at_ns).max().unwrap_or(0).max(self.told);
        Ok(())
    }

    /// The reason that is none of another one's.
    fn failure(&self) -> Option<RunError> {
        let failures = || {
            self.players.iter().filter_map(|player| {
                player.failure.as_ref().map(|(is_consequence, why)| (player.part, *is_consequence, why))
            })
        };
        let (part, _, why) = failures().min_by_key(|(_, is_consequence, _)| *is_consequence)?;
        Some(RunError::Part { part, why: why.clone() })
    }

    fn player(&mut self, part: Part) -> &mut Player {
        // Players are started in the order of `Part::ALL`, which is that of its variants.
        &mut self.players[part as usize]
    }
}

/// Why a run did not come to its end.
#[non_exhaustive]
#[derive(Debug)]
pub enum RunError {
    /// There is nothing to measure, or to alarm about.
    Find(FindError),
    /// There is no bus.
    Bus(BusError),
    /// A process cannot be started or watched.
    Program(io::Error),
    /// The terminal cannot be drawn on.
    Terminal(io::Error),
    /// A part failed.
    Part {
        /// Which one.
        part: Part,
        /// Its own words, or how it ended.
        why: String,
    },
    /// It was interrupted, and ended without a result.
    Interrupted,
}

impl From<FindError> for RunError {
    fn from(error: FindError) -> Self {
        Self::Find(error)
    }
}

impl From<BusError> for RunError {
    fn from(error: BusError) -> Self {
        Self::Bus(error)
    }
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Find(error) => error.fmt(f),
            Self::Bus(error) => error.fmt(f),
            Self::Program(error) => write!(f, "cannot start the parts: {error}"),
            Self::Terminal(error) => write!(f, "cannot draw on the terminal: {error}; --json draws nothing"),
            Self::Part { part, why } => write!(f, "the {part}: {why}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for RunError {}
