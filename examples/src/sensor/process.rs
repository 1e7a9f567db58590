//! A part as a process of its own, started by the coordinator.

use std::fs::File;
use std::io::{self, BufRead, BufWriter, StdinLock, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;
use kdbus_core::Instant;
use kdbus_linux::local::LocalTransport;
use kdbus_linux::rt::{Memory, RealTime};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::fusion::Fusion;
use super::panel::{Panel, View};
use super::part::{Part, PartError, run_on};
use super::plan::Plan;
use super::probe::Machine;
use super::recorder::Recorder;
use super::sampler::Sampler;
use super::smoother::Smoother;
use super::tally::{Counts, Range, Tally};
use crate::hop::HopRecorder;

/// Between two views that the panel tells of.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// The command line of a part, which only the coordinator writes. What is to be done follows on standard input.
#[derive(Clone, Copy, Debug, Args)]
pub struct PartArguments {
    /// Which one it is
    pub part: Part,
}

/// What the coordinator tells a part first: a line of JSON. The second line is the time to start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// What is measured.
    pub plan: Plan,
    /// Path of the endpoint to connect to.
    pub bus: String,
    /// Below this directory are the sensors.
    pub root: PathBuf,
    /// Where the record goes to.
    pub csv: Option<PathBuf>,
    /// The CPU to stay on.
    pub cpu: Option<usize>,
    /// Whether somebody looks at views.
    pub is_shown: bool,
}

/// What a part tells the coordinator: a line of JSON each.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Told {
    /// It knows all the parts that it needs and can start; with what the system granted it.
    Ready(String),
    /// What is to be seen.
    View(View),
    /// All that it measured.
    Tally {
        /// What it counted.
        counts: Counts,
        /// Its hops, as [`HopRecorder::to_bytes`] writes them.
        hops: Vec<Vec<u8>>,
        /// The channels.
        ranges: Vec<Range>,
    },
    /// It has failed, and why.
    Failed {
        /// Whether another part is to blame.
        is_consequence: bool,
        /// The reason.
        text: String,
    },
}

impl Told {
    /// What a part measured, for another process.
    pub fn tally(mut tally: Tally) -> Self {
        tally.hops.iter_mut().for_each(HopRecorder::finish);
        let hops = tally.hops.iter().map(HopRecorder::to_bytes).collect();
        Self::Tally { counts: tally.counts, hops, ranges: tally.ranges }
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut line = serde_json::to_vec(self)?;
        line.push(b'\n');
        to.write_all(&line)
    }
}

/// Runs a part: reads its order, joins the bus, tells the coordinator on standard output, waits on standard input for the
/// time to start, works, and hands its measurements over.
///
/// Returns whether it came to its end; the coordinator has heard why if not.
pub fn run_part(arguments: &PartArguments) -> bool {
    // The coordinator may be killed without a chance to end its parts.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let Ok(mut told) = io::stdout().as_fd().try_clone_to_owned().map(File::from) else { return false };
    let mut heard = io::stdin().lock();
    let last = match run(arguments.part, &mut heard, &mut told) {
        Ok(tally) => Told::tally(tally),
        Err(End::Part(error)) => {
            Told::Failed { is_consequence: error.is_consequence(), text: error.to_string() }
        }
        Err(End::Other(text)) => Told::Failed { is_consequence: false, text },
        // Nobody is there to be told.
        Err(End::Coordinator) => return false,
    };
    last.write(&mut told).is_ok() && matches!(last, Told::Tally { .. })
}

/// Why a part does not come to its end.
enum End {
    Part(PartError),
    Other(String),
    Coordinator,
}

impl From<PartError> for End {
    fn from(error: PartError) -> Self {
        Self::Part(error)
    }
}

fn run(part: Part, heard: &mut StdinLock<'_>, told: &mut File) -> Result<Tally, End> {
    let order: Order = line(heard)?;
    let plan = &order.plan;
    let stop = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))
        .map_err(|error| End::Other(format!("cannot wait for the order to stop: {error}")))?;
    let transport = LocalTransport::connect(&order.bus).map_err(|error| End::Other(error.to_string()))?;
    // Opened before anybody waits for the name of this part.
    let machine = match part {
        Part::Sampler => Some(sensors(&order)?),
        _ => None,
    };
    let record = match (part, &order.csv) {
        (Part::Recorder, Some(path)) => {
            let failed = |error| End::Other(format!("cannot write '{}': {error}", path.display()));
            Some(BufWriter::new(File::create(path).map_err(failed)?))
        }
        _ => None,
    };
    let bus = part.join(transport)?;
    let peers = run_on(&bus, part.meet(&bus))?;
    match part {
        Part::Sampler => {
            let sampler = Sampler::new(&bus, plan, machine.unwrap_or_default(), &stop);
            let start = begin(part, &order, heard, told)?;
            Ok(run_on(&bus, sampler.run(start))?)
        }
        Part::Smoother => {
            let smoother = Smoother::new(&bus, plan, peers);
            begin(part, &order, heard, told)?;
            Ok(run_on(&bus, smoother.run())?)
        }
        Part::Fusion => {
            let fusion = Fusion::new(&bus, plan, peers);
            let start = begin(part, &order, heard, told)?;
            Ok(run_on(&bus, fusion.run(start))?)
        }
        Part::Recorder => {
            let recorder = Recorder::new(&bus, plan, peers, record);
            begin(part, &order, heard, told)?;
            Ok(run_on(&bus, recorder.run())?)
        }
        Part::Panel => {
            let panel = Panel::new(&bus, plan, peers);
            let start = begin(part, &order, heard, told)?;
            let mut shown_at = 0;
            let show = |view: &View| {
                if order.is_shown && view.at_ns.saturating_sub(shown_at) >= SHOWN_EVERY.as_nanos() as u64 {
                    shown_at = view.at_ns;
                    // A display that fails is no reason to stop measuring.
                    let _ = Told::View(view.clone()).write(told);
                }
            };
            Ok(run_on(&bus, panel.run(start, show))?)
        }
    }
}

/// Tells the coordinator that the part is ready, and waits for the time to start.
fn begin(part: Part, order: &Order, heard: &mut StdinLock<'_>, told: &mut File) -> Result<Instant, End> {
    // Only the memory that is there by now: growth is not limited by what may be locked.
    let mut wanted = RealTime::new().fifo(part.urgency()).lock_memory(Memory::Now).prefault_stack();
    if let Some(cpu) = order.cpu {
        wanted = wanted.cpu(cpu);
    }
    let granted = wanted.ask().to_string();
    Told::Ready(granted).write(told).map_err(|_| End::Coordinator)?;
    line(heard).map(Instant::from_nanos)
}

/// The sensors of the plan, which the coordinator has found before.
fn sensors(order: &Order) -> Result<Machine, End> {
    let names: Vec<_> = order.plan.channels.iter().map(|channel| channel.name.clone()).collect();
    let machine = Machine::find(&order.root, &names).map_err(|error| End::Other(error.to_string()))?;
    if machine.channels().eq(&order.plan.channels) {
        Ok(machine)
    } else {
        Err(End::Other("the sensors have changed since they were looked for; start again".to_owned()))
    }
}

fn line<R: serde::de::DeserializeOwned>(heard: &mut StdinLock<'_>) -> Result<R, End> {
    let mut line = String::new();
    heard.read_line(&mut line).map_err(|_| End::Coordinator)?;
    serde_json::from_str(&line).map_err(|_| End::Coordinator)
}
