//! A stage as a process of its own, started by the coordinator.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::{Args, ValueEnum};
use kdbus_core::Instant;
use kdbus_core::client::Connection;
use kdbus_linux::local::LocalTransport;
use kdbus_linux::rt::{Memory, RealTime};
use rustix::process::{Signal, set_parent_process_death_signal};

use crate::control::Schedule;
use crate::controller::Controller;
use crate::equalise::Equalise;
use crate::equaliser::Equaliser;
use crate::piece::Piece;
use crate::played::Played;
use crate::record::{Counts, Record};
use crate::sink::Sink;
use crate::sound_card::SoundCard;
use crate::source::Source;
use crate::stage::{Pace, Stage, StageError, leave, run_on};
use crate::timeline::Timeline;
use crate::wav::WavWriter;

/// What the controller says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Controls {
    /// The script of the demonstration: gains, mutes and curves, about nine every two seconds
    #[default]
    Demo,
    /// Nothing but that the gain is 0 dB at the beginning
    None,
}

impl Controls {
    /// The controls for a piece of `blocks` blocks.
    pub const fn schedule(self, blocks: u64) -> Schedule {
        match self {
            Self::Demo => Schedule::demo(blocks),
            Self::None => Schedule::demo(1),
        }
    }
}

/// The command line of a stage, which only the coordinator writes.
#[derive(Clone, Debug, Args)]
pub struct StageArguments {
    /// Which one it is
    pub stage: Stage,
    /// Path of the endpoint to connect to
    #[arg(long)]
    pub bus: String,
    /// WAV file to play
    #[arg(long)]
    pub input: Option<PathBuf>,
    /// WAV file to write
    #[arg(long)]
    pub output: Option<PathBuf>,
    /// Sound card to play on
    #[arg(long)]
    pub device: Option<String>,
    /// CPU to stay on
    #[arg(long)]
    pub cpu: Option<usize>,
    /// Blocks that the source is ahead; without it, as fast as it goes
    #[arg(long)]
    pub blocks_ahead: Option<u64>,
    /// What the controller says
    #[arg(long, value_enum, default_value_t)]
    pub controls: Controls,
}

impl StageArguments {
    /// The arguments behind the name of the subcommand.
    pub fn to_command_line(&self) -> Vec<OsString> {
        let mut line: Vec<OsString> = vec![self.stage.word().into(), format!("--bus={}", self.bus).into()];
        for (option, path) in [("--input=", &self.input), ("--output=", &self.output)] {
            if let Some(path) = path {
                // In one word, for a path may begin with a hyphen.
                let mut word = OsString::from(option);
                word.push(path);
                line.push(word);
            }
        }
        if let Some(device) = &self.device {
            line.push(format!("--device={device}").into());
        }
        if let Some(cpu) = self.cpu {
            line.push(format!("--cpu={cpu}").into());
        }
        if let Some(blocks) = self.blocks_ahead {
            line.push(format!("--blocks-ahead={blocks}").into());
        }
        if self.controls == Controls::None {
            line.push("--controls=none".into());
        }
        line
    }
}

/// Runs a stage: joins the bus, tells the coordinator on standard output, waits on standard input for the time to start,
/// plays, leaves the bus, and hands its measurements over.
///
/// Returns whether it came to its end; the coordinator has heard why if not.
pub fn run_stage(arguments: &StageArguments) -> bool {
    // The coordinator may be killed without a chance to end its stages.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    let Ok(mut told) = io::stdout().as_fd().try_clone_to_owned().map(File::from) else { return false };
    let result = Run { arguments, told: &mut told }.run();
    let record = match result {
        Ok(()) => Record::Left,
        Err(Fault::Stage(error)) => {
            Record::Failed { is_consequence: error.is_consequence(), text: error.to_string() }
        }
        Err(Fault::Connect(text)) => Record::Failed { is_consequence: false, text },
        // Nobody is there to be told.
        Err(Fault::Coordinator) => return false,
    };
    record.write(&mut told).is_ok() && matches!(record, Record::Left)
}

/// Why a stage does not come to its end.
enum Fault {
    Stage(StageError),
    Connect(String),
    Coordinator,
}

impl<E: Into<StageError>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Stage(error.into())
    }
}

struct Run<'a> {
    arguments: &'a StageArguments,
    told: &'a mut File,
}

impl Run<'_> {
    fn run(&mut self) -> Result<(), Fault> {
        match self.arguments.stage {
            Stage::Source => self.source(),
            Stage::Equaliser => self.equaliser(),
            Stage::Sink => self.sink(),
            Stage::Controller => self.controller(),
        }
    }

    fn source(&mut self) -> Result<(), Fault> {
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))
            .map_err(|error| Fault::Connect(format!("cannot wait for the order to stop: {error}")))?;
        let piece = self.piece()?;
        let bus = self.join()?;
        run_on(&bus, Stage::Source.meet(&bus))?;
        let pace = self.begin()?;
        let dropped = run_on(&bus, Source::new(&bus, piece, pace, &stop).run())?;
        leave(bus)?;
        self.tell(&Record::Counts(Counts { dropped, ..Counts::default() }))
    }

    fn equaliser(&mut self) -> Result<(), Fault> {
        let bus = self.join()?;
        let [source, _, _, controller] = run_on(&bus, Stage::Equaliser.meet(&bus))?;
        // Made before the start, when there is time: its memory is touched by then, and can be locked.
        let mut stage = Equalise::new(&bus, source, controller, Equaliser::default());
        let pace = self.begin()?;
        run_on(&bus, stage.run(pace))?;
        let measured = stage.measured().clone();
        leave(bus)?;
        self.tell(&Record::Hop(Box::new(measured.audio)))?;
        self.tell(&Record::Hop(Box::new(measured.controls)))?;
        self.tell(&Record::Counts(Counts {
            dropped: measured.dropped,
            late_controls: measured.late_controls,
            missing_controls: measured.missing_controls,
            ignored: measured.ignored,
            lost: 0,
        }))
    }

    fn sink(&mut self) -> Result<(), Fault> {
        let piece = self.piece()?;
        let writer = self.arguments.output.as_deref().map(|path| WavWriter::create(path, piece.format()));
        let writer = writer.transpose().map_err(StageError::Wav)?;
        let card = self.arguments.device.as_deref().map(SoundCard::open).transpose();
        let card = card.map_err(|error| Fault::Connect(error.to_string()))?;
        let bus = self.join()?;
        let [_, equaliser, ..] = run_on(&bus, Stage::Sink.meet(&bus))?;
        let mut stage = Sink::new(&bus, equaliser, piece.blocks(), writer).with_card(card);
        let pace = self.begin()?;
        let progress = |done, missed| {
            // A display that fails is no reason to stop the sound.
            let _ = Record::Progress { done, missed }.write(self.told);
        };
        run_on(&bus, stage.run(pace, progress))?;
        let measured = stage.measured().clone();
        if let Some(Played { frames, missing, dropped, is_broken }) = stage.finish()? {
            eprintln!("the card played {frames} frames; {missing} were missing, {dropped} had no room");
            if is_broken {
                eprintln!("the card failed on the way; it may have been unplugged");
            }
        }
        leave(bus)?;
        self.tell(&Record::Hop(Box::new(measured.hop)))?;
        self.tell(&Record::Hop(Box::new(measured.whole)))?;
        let counts = Counts { lost: measured.lost, ignored: measured.ignored, ..Counts::default() };
        self.tell(&Record::Counts(counts))
    }

    fn controller(&mut self) -> Result<(), Fault> {
        let schedule = self.arguments.controls.schedule(self.piece()?.blocks());
        let bus = self.join()?;
        run_on(&bus, Stage::Controller.meet(&bus))?;
        let pace = self.begin()?;
        let dropped = run_on(&bus, Controller::new(&bus, schedule, pace).run())?;
        leave(bus)?;
        self.tell(&Record::Counts(Counts { dropped, ..Counts::default() }))
    }

    fn piece(&self) -> Result<Piece, Fault> {
        Ok(Piece::open(self.arguments.input.as_deref()).map_err(StageError::Wav)?)
    }

    fn join(&self) -> Result<Connection<LocalTransport>, Fault> {
        let transport = LocalTransport::connect(&self.arguments.bus)
            .map_err(|error| Fault::Connect(error.to_string()))?;
        Ok(self.arguments.stage.join(transport)?)
    }

    /// Tells the coordinator that the stage is ready, and waits for the time to start.
    fn begin(&mut self) -> Result<Pace, Fault> {
        let granted = match self.arguments.blocks_ahead {
            // Only the memory that is there by now: growth is not limited by what may be locked.
            Some(_) => {
                let urgency = self.arguments.stage.urgency();
                let wanted = RealTime::new().fifo(urgency).lock_memory(Memory::Now).prefault_stack();
                self.arguments.cpu.map_or(wanted, |cpu| wanted.cpu(cpu)).ask().to_string()
            }
            None => String::new(),
        };
        self.tell(&Record::Ready(granted))?;
        let mut start_at = [0; 8];
        io::stdin().lock().read_exact(&mut start_at).map_err(|_| Fault::Coordinator)?;
        let start_at = Instant::from_nanos(u64::from_le_bytes(start_at));
        Ok(match self.arguments.blocks_ahead {
            Some(blocks) => Pace::Realtime(Timeline::new(start_at, blocks)),
            None => Pace::Fast,
        })
    }

    fn tell(&mut self, record: &Record) -> Result<(), Fault> {
        record.write(self.told).map_err(|_| Fault::Coordinator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        stage: StageArguments,
    }

    #[test]
    fn a_stage_reads_what_the_coordinator_writes() {
        for stage in Stage::ALL {
            let written = StageArguments {
                stage,
                bus: "/run/x/0-system/bus".into(),
                input: Some("-in put.wav".into()),
                output: None,
                device: Some("hw:1".into()),
                cpu: Some(1),
                blocks_ahead: Some(7),
                controls: Controls::None,
            };
            let line = std::iter::once("stage".into()).chain(written.to_command_line());
            let read = Line::try_parse_from(line).unwrap().stage;
            assert_eq!(format!("{read:?}"), format!("{written:?}"));
        }
    }
}
