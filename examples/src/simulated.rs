//! The pipeline on a simulated machine: the same stages as tasks, in virtual time.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use std::{fmt, fs};

use hdrhistogram::Histogram;
use kdbus_core::Instant;
use kdbus_core::client::Transport;
use kdbus_core::engine::Config;
use kdbus_sim::{Board, Fault, Policy, Sim, Trace, Work};

use crate::controller::Controller;
use crate::equalise::Equalise;
use crate::equaliser::Equaliser;
use crate::hop::HopRecorder;
use crate::piece::Piece;
use crate::process::Controls;
use crate::record::Counts;
use crate::report::{Report, duration};
use crate::sink::Sink;
use crate::source::Source;
use crate::stage::{Pace, Stage, StageError, leave};
use crate::timeline::{Timeline, sounding};

/// Virtual time in which stages join before the first block is due.
const LEAD: Duration = Duration::from_millis(300);

/// Virtual time that a run may take beyond its piece.
const GRACE: Duration = Duration::from_secs(120);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Decides everything that is left to chance.
    pub seed: u64,
    /// Blocks to play.
    pub blocks: u64,
    /// Blocks that the source is ahead of the sink.
    pub blocks_ahead: u64,
    /// What the controller says.
    pub controls: Controls,
    /// The machine.
    pub board: Board,
    /// How much later than usual wake-ups and timers may come, by chance.
    pub jitter: Duration,
    /// The policy of each stage, in the order of [`Stage::ALL`].
    pub policies: [Policy; 4],
    /// What each of them computes for a message.
    pub work: [Work; 4],
    /// A task beside the pipeline, if there is one.
    pub load: Option<Load>,
    /// What goes wrong. The stages are processes 1 to 4.
    pub faults: Vec<Fault>,
    /// Whether to write down what happens.
    pub trace: bool,
}

/// A task that computes for some time again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Its policy.
    pub policy: Policy,
    /// From one beginning to the next.
    pub every: Duration,
    /// Time of the processor that it takes each time.
    pub work: Duration,
}

impl Setup {
    /// The pipeline as it is started on a real machine, playing for `span`, on `board`.
    ///
    /// What the stages compute for a block are estimates, the same for every board; set
    /// them to what your own machine takes.
    pub fn new(seed: u64, span: Duration, board: Board) -> Self {
        let blocks = u64::try_from(span.as_nanos() / u128::from(crate::block::BLOCK_NS)).unwrap_or(u64::MAX);
        Self {
            seed,
            blocks: blocks.max(1),
            blocks_ahead: 24,
            controls: Controls::Demo,
            board,
            jitter: Duration::ZERO,
            policies: Stage::ALL.map(|stage| Policy::Fifo(stage.urgency() as u8)),
            work: [
                Work { sent_ns: 3_000, received_ns: 0 },
                Work { sent_ns: 0, received_ns: 4_000 },
                Work { sent_ns: 0, received_ns: 500 },
                Work::default(),
            ],
            load: None,
            faults: Vec::new(),
            trace: false,
        }
    }
}

/// What came of a simulated run.
#[derive(Debug)]
pub struct Simulated {
    /// The measurements of the stages, as of a real run.
    pub report: Report,
    /// How long each task waited for a core when it could have run, by name.
    pub scheduling: Vec<(String, Histogram<u64>)>,
    /// Stages that did not come to their end, and why.
    pub failures: Vec<(Stage, String)>,
    /// Virtual time that passed.
    pub passed: Duration,
    /// Turns that the tasks took.
    pub turns: u64,
    /// What happened, if it was written down.
    pub trace: Option<Trace>,
}

/// What the stages hand over.
#[derive(Debug, Default)]
struct Heard {
    hops: Vec<HopRecorder>,
    counts: Counts,
    failures: Vec<(Stage, String)>,
}

/// The machine called `name`: a preset, or else a file.
///
/// # Errors
///
/// If it is neither, or the file is no board.
pub fn board(name: &str) -> Result<Board, SimulationError> {
    if let Some(board) = Board::preset(name) {
        return Ok(board);
    }
    if !Path::new(name).exists() {
        let presets = Board::PRESETS.join(", ");
        return Err(SimulationError(format!("{name} is neither a preset ({presets}) nor a file")));
    }
    let text = fs::read_to_string(name)
        .map_err(|error| SimulationError(format!("cannot read the board '{name}': {error}")))?;
    Board::from_toml(&text).map_err(|error| SimulationError(format!("'{name}' is {error}")))
}

/// Writes `bytes`, which came of a run, into the file at `path`.
///
/// # Errors
///
/// If it cannot be written.
pub fn write(path: &Path, bytes: impl AsRef<[u8]>) -> Result<(), SimulationError> {
    fs::write(path, bytes)
        .map_err(|error| SimulationError(format!("cannot write '{}': {error}", path.display())))
}

/// Plays `setup` to its end.
///
/// # Errors
///
/// What keeps the simulated machine from starting, or from coming to an end.
pub fn simulate(setup: &Setup) -> Result<Simulated, SimulationError> {
    let error = SimulationError::new;
    let sim = Sim::on(setup.board.clone(), &Config::SMALL, setup.seed).map_err(|e| error(&e))?;
    sim.set_jitter(setup.jitter);
    sim.inject(setup.faults.iter().copied());
    if setup.trace {
        sim.start_trace();
    }
    let keeper = sim.world_mut().spawn_user("bus", 1000, 1000);
    sim.make_bus(keeper, "audio").map_err(|e| error(&e))?;
    let begin = sim.now();
    let pace = Pace::Realtime(Timeline::new(begin.after(LEAD), setup.blocks_ahead));
    let heard = Rc::new(RefCell::new(Heard::default()));
    for stage in Stage::ALL {
        let process = sim.world_mut().spawn_user(stage.word(), 1000, 1000);
        sim.world_mut().set_work(process, setup.work[stage as usize]);
        let transport = sim.open(process, "1000-audio", "bus").map_err(|e| error(&e))?;
        let (blocks, controls, heard) = (setup.blocks, setup.controls, Rc::clone(&heard));
        sim.spawn(process, setup.policies[stage as usize], async move {
            if let Err(error) = play(stage, transport, blocks, controls, pace, &heard).await {
                heard.borrow_mut().failures.push((stage, error.to_string()));
            }
        });
    }
    let end = begin.after(LEAD).after(sounding(setup.blocks)).after(GRACE);
    if let Some(load) = setup.load {
        spawn_load(&sim, load, begin.after(LEAD).after(sounding(setup.blocks)));
    }
    let ended = sim.run(Some(end)).map_err(|e| error(&e))?;
    if !ended {
        return Err(SimulationError(format!("still playing: {}", sim.unfinished().join(", "))));
    }
    let mut heard = heard.take();
    let title = format!(
        "{:.1} s of sound in virtual time on \"{}\", {} blocks ahead, seed {}",
        sounding(setup.blocks).as_secs_f64(),
        setup.board.name,
        setup.blocks_ahead,
        setup.seed
    );
    let mut report = Report::new(&title);
    // In the order of the hops, whichever stage was done first.
    for name in ["source → equaliser", "controller → equaliser", "equaliser → sink", "source → sink"]
    {
        heard.hops.extract(name).into_iter().for_each(|hop| report.push(hop));
    }
    report.set_counts(heard.counts);
    report.set_queued(sounding(Timeline::new(Instant::ZERO, setup.blocks_ahead).queued()).as_nanos() as u64);
    Ok(Simulated {
        report,
        scheduling: sim.scheduling_latencies(),
        failures: heard.failures,
        passed: sim.now().since(begin),
        turns: sim.turns(),
        trace: sim.take_trace(),
    })
}

/// Takes hops by their name.
trait Extract {
    fn extract(&mut self, name: &str) -> Vec<HopRecorder>;
}

impl Extract for Vec<HopRecorder> {
    fn extract(&mut self, name: &str) -> Vec<HopRecorder> {
        let (these, others) = std::mem::take(self).into_iter().partition(|hop| hop.name() == name);
        *self = others;
        these
    }
}

/// The whole life of a stage over any transport.
async fn play<T: Transport>(
    stage: Stage,
    transport: T,
    blocks: u64,
    controls: Controls,
    pace: Pace,
    heard: &RefCell<Heard>,
) -> Result<(), StageError> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let bus = stage.join(transport)?;
    let [source, equaliser, _, controller] = stage.meet(&bus).await?;
    let (mut hops, mut counts) = (Vec::new(), Counts::default());
    match stage {
        Stage::Source => {
            counts.dropped = Source::new(&bus, Piece::repeated(blocks), pace, &NEVER).run().await?
        }
        Stage::Equaliser => {
            let mut stage = Equalise::new(&bus, source, controller, Equaliser::default());
            stage.run(pace).await?;
            let measured = stage.measured().clone();
            hops.extend([measured.audio, measured.controls]);
            counts = Counts {
                dropped: measured.dropped,
                late_controls: measured.late_controls,
                missing_controls: measured.missing_controls,
                ignored: measured.ignored,
                lost: 0,
            };
        }
        Stage::Sink => {
            let mut stage = Sink::new(&bus, equaliser, blocks, None);
            stage.run(pace, |_, _| {}).await?;
            let measured = stage.measured().clone();
            hops.extend([measured.hop, measured.whole]);
            counts = Counts { lost: measured.lost, ignored: measured.ignored, ..Counts::default() };
        }
        Stage::Controller => {
            counts.dropped = Controller::new(&bus, controls.schedule(blocks), pace).run().await?;
        }
    }
    leave(bus)?;
    let mut heard = heard.borrow_mut();
    heard.hops.extend(hops);
    heard.counts.add(counts);
    Ok(())
}

fn spawn_load(sim: &Sim, load: Load, until: Instant) {
    let process = sim.world_mut().spawn_user("load", 1001, 1001);
    let at = sim.clone();
    sim.spawn(process, load.policy, async move {
        let mut next = at.now();
        while next < until {
            at.sleep(next).await;
            at.work(load.work).await;
            next = next.after(load.every);
        }
    });
}

/// Why nothing was simulated to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimulationError(String);

impl SimulationError {
    pub(crate) fn new(what: &dyn fmt::Display) -> Self {
        Self(what.to_string())
    }
}

impl fmt::Display for SimulationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SimulationError {}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.report.table())?;
        writeln!(f, "{} turns of tasks in {:.3} s of virtual time", self.turns, self.passed.as_secs_f64())?;
        writeln!(f, "from being able to run until running, the time of the switch not counted:")?;
        for (name, latency) in &self.scheduling {
            let at = |quantile| duration(latency.value_at_quantile(quantile));
            writeln!(f, "  {name:10} p50 {}, p99 {}, max {}", at(0.5), at(0.99), duration(latency.max()))?;
        }
        self.failures.iter().try_for_each(|(stage, why)| writeln!(f, "the {stage} failed: {why}"))
    }
}
