//! The pipeline on a simulated machine: the same parts as tasks, in virtual time, over a model of sensors.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use kdbus_core::Instant;
use kdbus_core::client::Transport;
use kdbus_core::engine::Config;
use kdbus_sim::{Board, Fault, Policy, Sim, Work};

use super::fusion::Fusion;
use super::model::{Model, WATCHED};
use super::panel::Panel;
use super::part::{Part, PartError};
use super::plan::{Burst, Plan};
use super::recorder::Recorder;
use super::report::Report;
use super::sampler::Sampler;
use super::smoother::Smoother;
use super::tally::Tally;
use crate::simulated::SimulationError;

/// Virtual time in which the parts join before the first reading is due.
const LEAD: Duration = Duration::from_millis(300);

/// Virtual time that a run may take beyond its readings.
const GRACE: Duration = Duration::from_secs(120);

/// Ticks by which the excursion precedes a burst: with those, the median crosses its limit in the tick of the burst.
const AHEAD: u64 = 2;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct Setup {
    /// Decides everything that is left to chance, and all values.
    pub seed: u64,
    /// Channels, thresholds, rate and length.
    pub plan: Plan,
    /// The machine.
    pub board: Board,
    /// How much later than usual wake-ups and timers may come, by chance.
    pub jitter: Duration,
    /// The policy of each part, in the order of [`Part::ALL`].
    pub policies: [Policy; 5],
    /// What each of them computes for a message.
    pub work: [Work; 5],
    /// What goes wrong. The parts are processes 1 to 5.
    pub faults: Vec<Fault>,
}

impl Setup {
    /// The pipeline as it is started on a real machine, for `span`, over the sensors of the model.
    ///
    /// What the parts compute for a message are estimates, the same for every board.
    pub fn new(seed: u64, span: Duration, rate: u64, board: Board) -> Self {
        let rate = rate.max(1);
        let ticks = u64::try_from(span.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap_or(u64::MAX);
        let plan = Plan {
            channels: Model::channels(),
            thresholds: vec![super::channel::Threshold {
                channel: WATCHED.to_owned(),
                limit: super::channel::Value(60_000_000),
                back: super::channel::Value(50_000_000),
            }],
            rate,
            ticks: ticks.max(1),
            answer_ns: 50_000_000,
            burst: None,
        };
        Self {
            seed,
            plan,
            board,
            jitter: Duration::ZERO,
            policies: Part::ALL.map(|part| Policy::Fifo(part.urgency() as u8)),
            work: [
                Work { sent_ns: 3_000, received_ns: 0 },
                Work { sent_ns: 0, received_ns: 2_000 },
                Work { sent_ns: 0, received_ns: 1_000 },
                Work { sent_ns: 0, received_ns: 3_000 },
                Work { sent_ns: 0, received_ns: 10_000 },
            ],
            faults: Vec::new(),
        }
    }

    /// Has the first channel chatter: `readings` more at a tick in which an alarm is due too.
    pub fn burst(&mut self, tick: u64, readings: u64) {
        self.plan.burst = Some(Burst { tick, readings });
    }

    fn model(&self) -> Model {
        let also_at = self.plan.burst.map(|burst| burst.tick.saturating_sub(AHEAD));
        Model::new(self.seed, self.plan.rate.saturating_mul(2), also_at)
    }
}

/// What came of a simulated run.
#[derive(Debug)]
pub struct Simulated {
    /// The measurements of the parts, as of a real run.
    pub report: Report,
    /// What the recorder wrote.
    pub record: Vec<u8>,
    /// Parts that did not come to their end, and why.
    pub failures: Vec<(Part, String)>,
    /// Virtual time that passed.
    pub passed: Duration,
    /// Turns that the tasks took.
    pub turns: u64,
}

/// What the parts hand over.
#[derive(Debug, Default)]
struct Heard {
    tallies: Vec<(Part, Tally)>,
    record: Vec<u8>,
    failures: Vec<(Part, String)>,
}

/// Runs `setup` to its end.
///
/// # Errors
///
/// What keeps the simulated machine from starting, or from coming to an end.
pub fn simulate(setup: &Setup) -> Result<Simulated, SimulationError> {
    let error = SimulationError::new;
    let sim = Sim::on(setup.board.clone(), &Config::SMALL, setup.seed).map_err(|e| error(&e))?;
    sim.set_jitter(setup.jitter);
    sim.inject(setup.faults.iter().copied());
    let keeper = sim.world_mut().spawn_user("bus", 1000, 1000);
    sim.make_bus(keeper, "sensor").map_err(|e| error(&e))?;
    let begin = sim.now();
    let start = begin.after(LEAD);
    let heard = Rc::new(RefCell::new(Heard::default()));
    let shared = Rc::new((setup.plan.clone(), setup.model()));
    for part in Part::ALL {
        let process = sim.world_mut().spawn_user(part.word(), 1000, 1000);
        sim.world_mut().set_work(process, setup.work[part as usize]);
        let transport = sim.open(process, "1000-sensor", "bus").map_err(|e| error(&e))?;
        let (shared, heard) = (Rc::clone(&shared), Rc::clone(&heard));
        sim.spawn(process, setup.policies[part as usize], async move {
            let mut record = Vec::new();
            let (plan, model) = &*shared;
            match run(part, transport, plan, model, start, &mut record).await {
                Ok(tally) => heard.borrow_mut().tallies.push((part, tally)),
                Err(error) => heard.borrow_mut().failures.push((part, error.to_string())),
            }
            if part == Part::Recorder {
                heard.borrow_mut().record = record;
            }
        });
    }
    let ended = sim.run(Some(start.after(setup.plan.span()).after(GRACE))).map_err(|e| error(&e))?;
    if !ended {
        return Err(error(&format_args!("still running: {}", sim.unfinished().join(", "))));
    }
    let mut heard = heard.take();
    let title = format!(
        "{:.1} s in virtual time on \"{}\", {} channels at up to {} Hz, seed {}",
        setup.plan.span().as_secs_f64(),
        setup.board.name,
        setup.plan.channels.len(),
        setup.plan.rate,
        setup.seed
    );
    let mut report = Report::new(title, setup.plan.clone());
    heard.tallies.sort_by_key(|(part, _)| *part as usize);
    heard.tallies.into_iter().for_each(|(_, tally)| report.add(tally));
    Ok(Simulated {
        report,
        record: heard.record,
        failures: heard.failures,
        passed: sim.now().since(begin),
        turns: sim.turns(),
    })
}

/// The whole life of a part over any transport.
async fn run<T: Transport>(
    part: Part,
    transport: T,
    plan: &Plan,
    model: &Model,
    start: Instant,
    record: &mut Vec<u8>,
) -> Result<Tally, PartError> {
    static NEVER: AtomicBool = AtomicBool::new(false);
    let bus = part.join(transport)?;
    let peers = part.meet(&bus).await?;
    match part {
        Part::Sampler => Sampler::new(&bus, plan, model.clone(), &NEVER).run(start).await,
        Part::Smoother => Smoother::new(&bus, plan, peers).run().await,
        Part::Fusion => Fusion::new(&bus, plan, peers).run(start).await,
        Part::Recorder => Recorder::new(&bus, plan, peers, Some(record)).run().await,
        Part::Panel => Panel::new(&bus, plan, peers).run(start, |_| {}).await,
    }
}

impl fmt::Display for Simulated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.report.table())?;
        writeln!(f, "{} turns of tasks in {:.3} s of virtual time", self.turns, self.passed.as_secs_f64())?;
        self.failures.iter().try_for_each(|(part, why)| writeln!(f, "the {part} failed: {why}"))
    }
}
