//! What stands above the stages: starts them as processes, watches them, and ends them.

use std::fmt;
use std::io::{self, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::bus::{Bus, BusError};
use crate::interrupts::Interrupts;
use crate::piece::Piece;
use crate::process::{Controls, StageArguments};
use crate::progress::Progress;
use crate::record::{Counts, Record};
use crate::report::{Report, duration};
use crate::stage::{APPEARANCE, Stage};
use crate::timeline::{FEWEST_AHEAD, MOST_AHEAD, Timeline, sounding};
use crate::wav::{WavError, refuse_same_file};

/// Between the order to start and the first block, so that all stages have heard it.
const LEAD: Duration = Duration::from_millis(20);

/// How long others may take to tell their reasons after one stage failed, so that the first reason is found among them.
const GRACE: Duration = Duration::from_millis(300);

/// How long the stages may take to end in order after an interrupt.
const PATIENCE: Duration = Duration::from_secs(3);

/// What to play and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// WAV file to play; without one, the built-in piece.
    pub input: Option<PathBuf>,
    /// WAV file to write; without one, what arrives is counted and forgotten.
    pub output: Option<PathBuf>,
    /// Sound card to play on; without one, nothing is to be heard.
    pub device: Option<String>,
    /// CPU that all stages stay on, in a run with deadlines.
    pub cpu: Option<usize>,
    /// Blocks that the source is ahead of the sink; without a number, as fast as it goes.
    pub blocks_ahead: Option<u64>,
    /// What the controller says.
    pub controls: Controls,
    /// The words that make this program a stage and a daemon.
    pub subcommands: Subcommands,
}

/// The words that make the program a stage and a daemon.
#[derive(Clone, Copy, Debug)]
pub struct Subcommands {
    /// Before [`StageArguments::to_command_line`].
    pub stage: &'static str,
    /// Before [`DaemonArguments::to_command_line`](crate::bus::DaemonArguments::to_command_line).
    pub daemon: &'static str,
}

/// What came of a run that ended in order.
#[derive(Debug)]
pub struct Outcome {
    /// The measurements.
    pub report: Report,
    /// Whether it was interrupted before the piece was at its end.
    pub is_interrupted: bool,
}

/// Plays, and returns when every process is gone. Tells people on standard error what it does.
///
/// # Errors
///
/// [`RunError`]; nothing is left running then, and no incomplete output file is left behind.
pub fn run(options: &Options) -> Result<Outcome, RunError> {
    let piece = Piece::open(options.input.as_deref())?;
    if let (Some(input), Some(output)) = (&options.input, &options.output) {
        refuse_same_file(input, output)?;
    }
    let program = std::env::current_exe().map_err(RunError::Program)?;
    let (events, arrivals) = channel();
    let signals = Interrupts::watch(events.clone(), || Event::Interrupt).map_err(RunError::Program)?;
    let bus = Bus::find_or_start(&program, options.subcommands.daemon, options.blocks_ahead.is_some())?;
    bus.introduce("playing");
    let output = options.output.as_deref().map(Output::new);
    let arguments = |stage| StageArguments {
        stage,
        bus: bus.path().to_owned(),
        input: options.input.clone(),
        output: output.as_ref().filter(|_| stage == Stage::Sink).map(|output| output.written.clone()),
        device: options.device.clone().filter(|_| stage == Stage::Sink),
        cpu: options.cpu,
        blocks_ahead: options.blocks_ahead,
        controls: options.controls,
    };
    let mut players = Vec::with_capacity(Stage::ALL.len());
    for stage in Stage::ALL {
        players.push(Player::start(&program, options.subcommands.stage, &arguments(stage), events.clone())?);
    }
    let mut run = Run { players, arrivals, progress: None, interrupts: 0, give_up_at: None };
    run.await_ready(options.blocks_ahead.is_some())?;
    let progress = Progress::new(piece.blocks());
    run.progress = Some(if options.blocks_ahead.is_some() { progress } else { progress.without_deadlines() });
    let started = Instant::now();
    run.start()?;
    let played = run.watch();
    if let Some(progress) = run.progress.take() {
        progress.finish();
    }
    played?;
    if let Some(output) = output {
        output.complete()?;
    }
    let mut report = run.report(title(options, &piece, started.elapsed()));
    if let Some(blocks) = options.blocks_ahead {
        report.set_queued(sounding(Timeline::new(Default::default(), blocks).queued()).as_nanos() as u64);
    }
    let is_interrupted = run.interrupts > 0;
    drop(run);
    drop(bus);
    drop(signals);
    Ok(Outcome { report, is_interrupted })
}

fn title(options: &Options, piece: &Piece, took: Duration) -> String {
    let what = match &options.input {
        Some(path) => path.display().to_string(),
        None => "built-in piece".to_owned(),
    };
    let seconds = sounding(piece.blocks()).as_secs_f64();
    match options.blocks_ahead {
        Some(blocks) => {
            let blocks = blocks.clamp(FEWEST_AHEAD, MOST_AHEAD);
            let ahead = duration(sounding(blocks).as_nanos() as u64);
            format!("{what}: {seconds:.1} s of sound in real time, {blocks} blocks ({ahead}) ahead")
        }
        None => format!("{what}: {seconds:.1} s of sound in {:.2} s", took.as_secs_f64()),
    }
}

/// A file that appears under its name only when it is complete.
struct Output {
    wanted: PathBuf,
    written: PathBuf,
}

impl Output {
    fn new(path: &Path) -> Self {
        // What is there and no ordinary file, such as /dev/null, is written to and stays what it is.
        let is_special = path.metadata().is_ok_and(|metadata| !metadata.is_file());
        let mut written = path.to_owned();
        if !is_special {
            let mut name = path.file_name().unwrap_or_default().to_owned();
            name.push(".part");
            written.set_file_name(name);
        }
        Self { wanted: path.to_owned(), written }
    }

    fn complete(self) -> Result<(), RunError> {
        if self.written == self.wanted {
            return Ok(());
        }
        std::fs::rename(&self.written, &self.wanted)
            .map_err(|error| RunError::Output { path: self.wanted.clone(), error })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.written != self.wanted {
            // There is none if it was completed.
            let _ = std::fs::remove_file(&self.written);
        }
    }
}

/// What the coordinator hears.
enum Event {
    /// A stage says something.
    Said(Stage, Record),
    /// A stage says nothing more: it has ended, or what it says makes no sense.
    Silent(Stage),
    /// The user, or the system, wants the run to end.
    Interrupt,
}

/// A stage that was started. It is killed when this is dropped.
struct Player {
    stage: Stage,
    process: Child,
    order: Option<ChildStdin>,
    ready: Option<String>,
    hops: Vec<crate::hop::HopRecorder>,
    counts: Counts,
    failure: Option<(bool, String)>,
    has_left: bool,
    has_ended: bool,
}

impl Player {
    fn start(
        program: &Path,
        subcommand: &str,
        arguments: &StageArguments,
        events: Sender<Event>,
    ) -> Result<Self, RunError> {
        let stage = arguments.stage;
        let mut process = Command::new(program)
            .arg(subcommand)
            .args(arguments.to_command_line())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for the coordinator, which ends the others in order.
            .process_group(0)
            .spawn()
            .map_err(RunError::Program)?;
        let order = process.stdin.take();
        let said = process.stdout.take();
        thread::spawn(move || {
            if let Some(mut said) = said {
                while let Ok(Some(record)) = Record::read(&mut said) {
                    if events.send(Event::Said(stage, record)).is_err() {
                        return;
                    }
                }
            }
            // Nobody listens any more if the run is over.
            let _ = events.send(Event::Silent(stage));
        });
        Ok(Self {
            stage,
            process,
            order,
            ready: None,
            hops: Vec::new(),
            counts: Counts::default(),
            failure: None,
            has_left: false,
            has_ended: false,
        })
    }

    /// Takes note that nothing more is heard of the process, and of why.
    fn end(&mut self) {
        self.has_ended = true;
        // It may have closed its end and live on.
        let _ = self.process.kill();
        let status = self.process.wait();
        if self.has_left || self.failure.is_some() {
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

pub(crate) fn died(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => format!("was killed by {name}"),
            None => format!("was killed by signal {signal}"),
        },
        (None, Some(0)) => "ended before its time".to_owned(),
        (None, code) => format!("ended with status {}", code.unwrap_or(-1)),
    }
}

/// A run under way.
struct Run {
    players: Vec<Player>,
    arrivals: Receiver<Event>,
    progress: Option<Progress>,
    interrupts: u32,
    /// When everything is ended that has not ended by itself.
    give_up_at: Option<Instant>,
}

impl Run {
    /// Waits until all stages know each other.
    fn await_ready(&mut self, in_time: bool) -> Result<(), RunError> {
        // Stages give up waiting for each other before this, and have a better reason.
        self.give_up_at = Some(Instant::now() + APPEARANCE + GRACE);
        while self.players.iter().any(|player| player.ready.is_none()) {
            self.hear()?;
            if self.interrupts > 0 {
                return Err(RunError::Interrupted);
            }
        }
        self.give_up_at = None;
        if in_time {
            for player in &self.players {
                eprintln!("{:10} {}", player.stage.word(), player.ready.as_deref().unwrap_or_default());
            }
        }
        Ok(())
    }

    /// Tells all stages when to start.
    fn start(&mut self) -> Result<(), RunError> {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
        let start_at = u64::try_from((now + LEAD).as_nanos()).unwrap_or(u64::MAX).to_le_bytes();
        for player in &mut self.players {
            if let Some(order) = &mut player.order {
                // A stage that does not hear it has ended, which is heard.
                let _ = order.write_all(&start_at);
            }
        }
        Ok(())
    }

    /// Waits until all stages have left, or one of them has failed.
    fn watch(&mut self) -> Result<(), RunError> {
        while self.players.iter().any(|player| !player.has_ended) {
            self.hear()?;
            let sink_left = self.players.iter().any(|player| player.stage == Stage::Sink && player.has_left);
            if self.interrupts > 0 && sink_left {
                // What it still has to say is about blocks that nobody plays.
                self.player(Stage::Controller).signal(Signal::KILL);
                self.player(Stage::Controller).has_left = true;
            }
        }
        Ok(())
    }

    /// Takes in one event.
    fn hear(&mut self) -> Result<(), RunError> {
        let event = match self.give_up_at {
            None => self.arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self.arrivals.recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match event {
            Ok(Event::Said(stage, record)) => self.hear_of(stage, record),
            Ok(Event::Silent(stage)) => self.player(stage).end(),
            Ok(Event::Interrupt) => {
                self.interrupts += 1;
                if self.interrupts > 1 {
                    return Err(RunError::Interrupted);
                }
                self.give_up_at = Some(Instant::now() + PATIENCE);
                // The source ends the piece, and with it everybody in order.
                self.player(Stage::Source).signal(Signal::TERM);
            }
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

    fn hear_of(&mut self, stage: Stage, record: Record) {
        let player = self.player(stage);
        match record {
            Record::Ready(granted) => player.ready = Some(granted),
            Record::Hop(hop) => player.hops.push(*hop),
            Record::Counts(counts) => player.counts = counts,
            Record::Failed { is_consequence, text } => player.failure = Some((is_consequence, text)),
            Record::Left => player.has_left = true,
            Record::Progress { done, missed } => {
                if let Some(progress) = &mut self.progress {
                    progress.update(done, missed);
                }
            }
        }
    }

    /// The reason that is none of another one's.
    fn failure(&self) -> Option<RunError> {
        let failures = || {
            self.players.iter().filter_map(|player| {
                player.failure.as_ref().map(|(is_consequence, why)| (player.stage, *is_consequence, why))
            })
        };
        let (stage, _, why) = failures().min_by_key(|(_, is_consequence, _)| *is_consequence)?;
        Some(RunError::Stage { stage, why: why.clone() })
    }

    fn player(&mut self, stage: Stage) -> &mut Player {
        // Players are started in the order of `Stage::ALL`, which is that of its variants.
        &mut self.players[stage as usize]
    }

    fn report(&self, title: String) -> Report {
        let mut report = Report::new(&title);
        let mut counts = Counts::default();
        for player in &self.players {
            counts.add(player.counts);
            player.hops.iter().for_each(|hop| report.push(hop.clone()));
        }
        report.set_counts(counts);
        report
    }
}

/// Why a run did not come to its end.
#[non_exhaustive]
#[derive(Debug)]
pub enum RunError {
    /// The input cannot be played, or the output would destroy it.
    Wav(WavError),
    /// There is no bus.
    Bus(BusError),
    /// A process cannot be started or watched.
    Program(io::Error),
    /// The output is complete, but cannot get its name.
    Output {
        /// The name.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// A stage failed.
    Stage {
        /// Which one.
        stage: Stage,
        /// Its own words, or how it ended.
        why: String,
    },
    /// It was interrupted, and ended without a result.
    Interrupted,
}

impl From<WavError> for RunError {
    fn from(error: WavError) -> Self {
        Self::Wav(error)
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
            Self::Wav(error) => error.fmt(f),
            Self::Bus(error) => error.fmt(f),
            Self::Program(error) => write!(f, "cannot start the stages: {error}"),
            Self::Output { path, error } => write!(f, "cannot name the output '{}': {error}", path.display()),
            Self::Stage { stage, why } => write!(f, "the {stage}: {why}"),
            Self::Interrupted => f.write_str("interrupted"),
        }
    }
}

impl std::error::Error for RunError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_has_its_name_only_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.wav");
        std::fs::write(&path, "before").unwrap();
        let incomplete = Output::new(&path);
        std::fs::write(&incomplete.written, "half").unwrap();
        drop(incomplete);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "before");
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);

        let complete = Output::new(&path);
        std::fs::write(&complete.written, "whole").unwrap();
        complete.complete().unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole");
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_ordinary_file_stays_what_it_is() {
        let output = Output::new(Path::new("/dev/null"));
        assert_eq!(output.written, output.wanted);
        output.complete().unwrap();
    }

    #[test]
    fn a_killed_process_is_told_from_one_that_ended() {
        assert_eq!(died(ExitStatus::from_raw(9)), "was killed by SIGKILL");
        assert_eq!(died(ExitStatus::from_raw(3 << 8)), "ended with status 3");
        assert_eq!(died(ExitStatus::from_raw(0)), "ended before its time");
    }

    #[test]
    fn stages_are_found_by_their_place() {
        for (at, stage) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, at);
        }
    }
}
