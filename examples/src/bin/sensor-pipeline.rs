//! Measures the machine that it runs on, in five processes over the bus.

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kdbus_examples::bus::{DaemonArguments, run_daemon};
use kdbus_examples::coordinator::Subcommands;
use kdbus_examples::sensor::channel::Threshold;
use kdbus_examples::sensor::coordinator::{Options, run};
use kdbus_examples::sensor::probe::{FindError, Machine};
use kdbus_examples::sensor::process::{PartArguments, run_part};

/// Exit status after an interrupt, as shells have it.
const INTERRUPTED: u8 = 130;

/// Measures the machine that it runs on, in five processes over the bus
///
/// Reads industrial I/O devices, temperatures, hardware monitors, load, memory and pressure at fixed rates; smooths the
/// readings, raises alarms that overtake them, fuses everything into one state, and records it. On a terminal it draws what
/// it sees. Without a bus, one is started for this run. Ends with the latencies of each hop.
#[derive(Debug, Parser)]
#[command(name = "sensor-pipeline", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    /// How long to measure [default: until it is ended]
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Readings of a fast channel in a second; slow ones, such as temperatures, are read at every fifth time
    #[arg(short, long, value_name = "HZ", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
    /// Record readings, alarms and states into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Alarm when a channel comes to LIMIT, until it is back beyond BACK [default: a twentieth below]; with BACK above
    /// LIMIT, when it falls to LIMIT
    #[arg(long, value_name = "CHANNEL:LIMIT[:BACK]")]
    alarm: Vec<Threshold>,
    /// Only these channels; a star at the end stands for anything
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    channel: Vec<String>,
    /// Show which channels there are, where they come from, and end
    #[arg(long)]
    list: bool,
    /// How long an answer to the question for the state may take
    #[arg(long, value_name = "MS", default_value_t = 50)]
    answer_ms: u64,
    /// Stay on this CPU
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,
    /// Look for /proc and /sys below this directory
    #[arg(long, value_name = "DIRECTORY", default_value = "/")]
    root: PathBuf,
    /// Draw nothing while it runs
    #[arg(long)]
    quiet: bool,
    /// Print JSON in place of tables, and draw nothing
    #[arg(long)]
    json: bool,
}

/// What this program is started as by itself.
#[derive(Debug, Subcommand)]
enum Part {
    #[command(hide = true, name = "as-part")]
    Part(PartArguments),
    #[command(hide = true, name = "as-bus")]
    Daemon(DaemonArguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match &arguments.part {
        Some(Part::Part(part)) => ExitCode::from(u8::from(!run_part(part))),
        Some(Part::Daemon(daemon)) => ExitCode::from(u8::from(!run_daemon(daemon))),
        None if arguments.list => match list(&arguments) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        None => coordinate(&arguments),
    }
}

fn coordinate(arguments: &Arguments) -> ExitCode {
    let options = Options {
        root: arguments.root.clone(),
        patterns: arguments.channel.clone(),
        thresholds: arguments.alarm.clone(),
        rate: arguments.rate,
        span: arguments.seconds.map(Duration::from_secs),
        answer: Duration::from_millis(arguments.answer_ms.max(1)),
        csv: arguments.csv.clone(),
        cpu: arguments.cpu,
        draws: !arguments.json && !arguments.quiet && io::stdout().is_terminal(),
        subcommands: Subcommands { stage: "as-part", daemon: "as-bus" },
    };
    match run(&options) {
        Ok(outcome) => {
            println!("{}", if arguments.json { outcome.report.json() } else { outcome.report.table() });
            // To end what has no end is no interruption.
            let is_early = outcome.is_interrupted && arguments.seconds.is_some();
            if is_early { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
        }
        Err(error) => failed(&error),
    }
}

fn list(arguments: &Arguments) -> Result<(), FindError> {
    let machine = Machine::find(&arguments.root, &arguments.channel)?;
    for (at, channel) in machine.channels().enumerate() {
        let path = machine.path(at).map(|path| path.display().to_string()).unwrap_or_default();
        println!("{:24} {:6} {path}", channel.name, channel.unit);
    }
    Ok(())
}

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("sensor-pipeline: {error}");
    ExitCode::FAILURE
}
