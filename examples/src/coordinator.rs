//! What stands above the stages: starts them as processes, watches them, and ends them.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::bus::{Bus, BusError};
use crate::crew::{Crew, Ended, Says, Word};
use crate::hop::HopRecorder;
use crate::piece::Piece;
use crate::process::{Controls, StageArguments};
use crate::progress::Progress;
use crate::record::{Counts, Record};
use crate::report::{Report, duration};
use crate::stage::Stage;
use crate::timeline::{FEWEST_AHEAD, MOST_AHEAD, Timeline, sounding};
use crate::wav::{WavError, refuse_same_file};

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
    let crew = Crew::new(Stage::Source, PATIENCE);
    let signals = crew.watch().map_err(RunError::Program)?;
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
    let mut run = Run { crew, hops: Vec::new(), counts: Counts::default(), progress: None };
    for stage in Stage::ALL {
        let words = [options.subcommands.stage.into()].into_iter().chain(arguments(stage).to_command_line());
        let read = |said: &mut _| Record::read(said).ok().flatten();
        run.crew.start(stage, &program, words, read).map_err(RunError::Program)?;
    }
    run.crew.await_ready()?;
    if options.blocks_ahead.is_some() {
        run.crew.introduce();
    }
    let progress = Progress::new(piece.blocks());
    run.progress = Some(if options.blocks_ahead.is_some() { progress } else { progress.without_deadlines() });
    let started = Instant::now();
    run.crew.begin(|at| at.to_le_bytes().to_vec());
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
    let is_interrupted = run.crew.is_interrupted();
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

impl Says for Record {
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
    crew: Crew<Stage, Record>,
    hops: Vec<(Stage, HopRecorder)>,
    counts: Counts,
    progress: Option<Progress>,
}

impl Run {
    /// Waits until all stages have left, or one of them has failed.
    fn watch(&mut self) -> Result<(), RunError> {
        while self.crew.runs() {
            let heard = self.crew.hear(None)?;
            match heard {
                Some((stage, Record::Hop(hop))) => self.hops.push((stage, *hop)),
                Some((_, Record::Counts(counts))) => self.counts.add(counts),
                Some((stage, Record::Left)) => self.crew.member(stage).has_left = true,
                Some((_, Record::Progress { done, missed })) => {
                    if let Some(progress) = &mut self.progress {
                        progress.update(done, missed);
                    }
                }
                _ => {}
            }
            if self.crew.is_interrupted() && self.crew.member(Stage::Sink).has_left {
                // What it still has to say is about blocks that nobody plays.
                let controller = self.crew.member(Stage::Controller);
                controller.signal(Signal::KILL);
                controller.has_left = true;
            }
        }
        Ok(())
    }

    fn report(&mut self, title: String) -> Report {
        let mut report = Report::new(&title);
        // In the order of the stages, whoever told first.
        self.hops.sort_by_key(|(stage, _)| *stage as usize);
        self.hops.drain(..).for_each(|(_, hop)| report.push(hop));
        report.set_counts(self.counts);
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

impl From<Ended<Stage>> for RunError {
    fn from(ended: Ended<Stage>) -> Self {
        match ended {
            Ended::Interrupted => Self::Interrupted,
            Ended::Failed { who, why } => Self::Stage { stage: who, why },
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
}
