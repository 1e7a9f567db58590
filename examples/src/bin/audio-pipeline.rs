//! Plays a piece through an equaliser and a limiter, in four processes over the bus.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgGroup, Parser, Subcommand};
use kdbus_examples::bus::{DaemonArguments, run_daemon};
use kdbus_examples::coordinator::{Options, Subcommands, run};
use kdbus_examples::plot::{find_place, write_svg};
use kdbus_examples::process::{Controls, StageArguments, run_stage};
use kdbus_examples::sound_card::SoundCard;

/// Blocks that the source is ahead of the sink without another word: 32 ms.
const BLOCKS_AHEAD: u64 = 24;

/// Exit status after an interrupt, as shells have it.
const INTERRUPTED: u8 = 130;

/// Plays a piece through an equaliser and a limiter, in four processes over the bus
///
/// A source, an equaliser and a sink exchange blocks of 64 frames at 48 kHz; a controller changes gains and curves by
/// more urgent messages, which overtake the blocks that wait. Without a bus, one is started for this run. Ends with the
/// latencies of each hop.
#[derive(Debug, Parser)]
#[command(name = "audio-pipeline", version, args_conflicts_with_subcommands = true)]
#[command(group = ArgGroup::new("pace").args(["realtime", "fast"]))]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// WAV file to play (48 kHz, mono or stereo) [default: a built-in piece of 26 s]
    #[arg(short, long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// WAV file to write, in the format of the input [default: none]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Sound card to play on, beside the file if there is one [default: none]
    #[arg(long, value_name = "NAME", conflicts_with = "fast")]
    device: Option<String>,
    /// Show the names of the sound cards, and end
    #[arg(long)]
    list_devices: bool,
    /// Have all stages stay on this CPU
    #[arg(long, value_name = "N", conflicts_with = "fast")]
    cpu: Option<usize>,
    /// Keep time, as without a word: nobody waits, late blocks are counted
    #[arg(long)]
    realtime: bool,
    /// As fast as it goes: senders wait for room, the output is the same to the bit each time
    #[arg(long)]
    fast: bool,
    /// Blocks of 1.33 ms that the source is ahead of the sink, half of them queued before the equaliser
    #[arg(long, value_name = "N", default_value_t = BLOCKS_AHEAD, conflicts_with = "fast")]
    #[arg(value_parser = clap::value_parser!(u64).range(4..=128))]
    blocks_ahead: u64,
    /// What the controller says
    #[arg(long, value_enum, default_value_t)]
    controls: Controls,
    /// Draw the latencies into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

/// What this program is started as by itself.
#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true, name = "as-stage")]
    Stage(StageArguments),
    #[command(hide = true, name = "as-bus")]
    Daemon(DaemonArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Stage(stage)) => ExitCode::from(u8::from(!run_stage(stage))),
        Some(Part::Daemon(daemon)) => ExitCode::from(u8::from(!run_daemon(daemon))),
        None if arguments.list_devices => list_devices(),
        None => coordinate(&arguments),
    }
}

fn list_devices() -> ExitCode {
    match SoundCard::names() {
        Ok(names) if names.is_empty() => println!("there is no sound card"),
        Ok(names) => names.iter().for_each(|(name, what)| println!("{name:32} {what}")),
        Err(error) => return failed(&error),
    }
    ExitCode::SUCCESS
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("audio-pipeline: {error}");
    ExitCode::FAILURE
}

fn coordinate(arguments: &Arguments) -> ExitCode {
    // What cannot be had at all is said before anything starts.
    if let Some(Err(error)) = arguments.device.as_ref().map(|_| SoundCard::names()) {
        return failed(&error);
    }
    if let Some(Err(error)) = arguments.plot.as_deref().map(find_place) {
        return failed(&error);
    }
    let options = Options {
        input: arguments.input.clone(),
        output: arguments.output.clone(),
        device: arguments.device.clone(),
        cpu: arguments.cpu,
        blocks_ahead: (!arguments.fast).then_some(arguments.blocks_ahead),
        controls: arguments.controls,
        subcommands: Subcommands { stage: "as-stage", daemon: "as-bus" },
    };
    let outcome = match run(&options) {
        Ok(outcome) => outcome,
        Err(error) => return failed(&error),
    };
    println!("{}", if arguments.json { outcome.report.json() } else { outcome.report.table() });
    if let Some(path) = &arguments.plot
        && let Err(error) = write_svg(&outcome.report, path)
    {
        return failed(&error);
    }
    if outcome.is_interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
}
