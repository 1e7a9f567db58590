//! What stands above the parts: starts them as processes, watches them, shows what they see, and ends them.

use std::fmt;
use std::io::{self, BufRead};
use std::path::PathBuf;
use std::time::Duration;

use super::channel::Threshold;
use super::dashboard::Dashboard;
use super::panel::View;
use super::part::Part;
use super::plan::Plan;
use super::probe::{FindError, Machine};
use super::process::{Order, Told};
use super::report::Report;
use super::tally::Tally;
use crate::bus::{Bus, BusError};
use crate::coordinator::Subcommands;
use crate::crew::{Crew, Ended, Says, Word};
use crate::hop::HopRecorder;

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
    let crew = Crew::new(Part::Sampler, PATIENCE);
    let signals = crew.watch().map_err(RunError::Program)?;
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
    let order = serde_json::to_string(&order).map_err(|error| RunError::Program(error.into()))? + "\n";
    let mut run = Run { crew, tallies: Vec::new(), shown: None, told: 0, plan: plan.clone() };
    for part in Part::ALL {
        let words = [options.subcommands.stage, part.word()];
        let member = run.crew.start(part, &program, words, next_line).map_err(RunError::Program)?;
        member.tell(order.as_bytes());
    }
    run.crew.await_ready()?;
    run.crew.introduce();
    if options.draws {
        run.shown = Some(Dashboard::new(&plan).map_err(RunError::Terminal)?);
    }
    run.crew.begin(|at| format!("{at}\n").into_bytes());
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
    // In the order of the parts, whoever told first.
    run.tallies.sort_by_key(|(part, _)| *part as usize);
    run.tallies.drain(..).for_each(|(_, tally)| report.add(tally));
    let is_interrupted = run.crew.is_interrupted();
    drop(run);
    drop(bus);
    drop(signals);
    Ok(Outcome { report, is_interrupted })
}

/// What a part says next; `None` if it ends, or what it says makes no sense.
fn next_line(said: &mut impl BufRead) -> Option<Told> {
    let mut line = String::new();
    said.read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
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

impl Says for Told {
    fn sort(self) -> Result<Word, Self> {
        match self {
            Self::Ready(granted) => Ok(Word::Ready(granted)),
            Self::Failed { is_consequence, text } => Ok(Word::Failed { is_consequence, text }),
            said => Err(said),
        }
    }
}

/// A run under way.
struct Run {
    crew: Crew<Part, Told>,
    tallies: Vec<(Part, Tally)>,
    shown: Option<Dashboard>,
    /// Alarms that were told of, up to this time.
    told: u64,
    plan: Plan,
}

impl Run {
    /// Waits until all parts have ended, or one of them has failed.
    fn watch(&mut self) -> Result<(), RunError> {
        while self.crew.runs() {
            let keys = self.shown.as_ref().map(|_| KEYS_EVERY);
            match self.crew.hear(keys)? {
                Some((_, Told::View(view))) => self.show(&view)?,
                Some((part, Told::Tally { counts, hops, ranges })) => {
                    let hops = hops.iter().filter_map(|bytes| HopRecorder::from_bytes(bytes).ok()).collect();
                    self.tallies.push((part, Tally { counts, hops, ranges }));
                    self.crew.member(part).has_left = true;
                }
                _ => {}
            }
            if let Some(dashboard) = &mut self.shown
                && dashboard.is_to_end().map_err(RunError::Terminal)?
            {
                self.crew.interrupt()?;
            }
        }
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

impl From<Ended<Part>> for RunError {
    fn from(ended: Ended<Part>) -> Self {
        match ended {
            Ended::Interrupted => Self::Interrupted,
            Ended::Failed { who, why } => Self::Part { part: who, why },
        }
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
