//! Plays the audio pipeline on a simulated machine, in virtual time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kdbus_examples::process::Controls;
use kdbus_examples::simulated::{Load, Setup, board, simulate, write};
use kdbus_sim::{Fault, Policy};

/// Plays the audio pipeline on a simulated machine, in virtual time
///
/// The stages are those of audio-pipeline. Equal arguments give equal reports, to the byte.
#[derive(Debug, Parser)]
#[command(name = "sim-audio", version)]
struct Arguments {
    /// Decides everything that is left to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hours to play
    #[arg(long, default_value_t = 0)]
    hours: u64,
    /// Seconds to play, beside the hours [default: 26, or 0 with --hours]
    #[arg(long)]
    seconds: Option<u64>,
    /// Machine: ideal, vm, a8, a53, a72, or a TOML file that the program calibrate has written
    #[arg(long, default_value = "vm")]
    board: String,
    /// Blocks of 1.33 ms that the source is ahead of the sink
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(4..=128))]
    blocks_ahead: u64,
    /// What the controller says
    #[arg(long, value_enum, default_value_t)]
    controls: Controls,
    /// How much later than usual wake-ups and timers may come by chance, in microseconds
    #[arg(long, default_value_t = 0)]
    jitter_us: u64,
    /// Run the stages under the normal policy instead of a real-time one
    #[arg(long)]
    normal: bool,
    /// A task beside the pipeline: its real-time priority (0 for the normal policy), its period and its work in microseconds
    #[arg(long, value_name = "PRIORITY:PERIOD:WORK")]
    load: Option<String>,
    /// What goes wrong, such as stop:2@500=20000000: the equaliser (stages are 1 to 4) stands still for 20 ms at step 500
    #[arg(long, default_value = "")]
    faults: String,
    /// Write a timeline for Perfetto or chrome://tracing into this file
    #[arg(long, value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Write a line for each message into this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Print JSON in place of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(is_whole) => ExitCode::from(u8::from(!is_whole)),
        Err(error) => {
            eprintln!("sim-audio: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let seconds = arguments.seconds.unwrap_or(if arguments.hours == 0 { 26 } else { 0 });
    let span = Duration::from_secs(arguments.hours.saturating_mul(3600).saturating_add(seconds));
    let mut setup = Setup::new(arguments.seed, span, board(&arguments.board)?);
    setup.blocks_ahead = arguments.blocks_ahead;
    setup.controls = arguments.controls;
    setup.jitter = Duration::from_micros(arguments.jitter_us);
    setup.faults = Fault::parse_all(&arguments.faults)?;
    setup.load = arguments.load.as_deref().map(load).transpose()?;
    setup.trace = arguments.trace.is_some() || arguments.log.is_some();
    if arguments.normal {
        setup.policies = [Policy::Normal(0); 4];
    }
    let simulated = simulate(&setup)?;
    if let Some(trace) = &simulated.trace {
        if let Some(path) = &arguments.trace {
            write(path, trace.timeline())?;
        }
        if let Some(path) = &arguments.log {
            write(path, trace.log())?;
        }
    }
    if arguments.json {
        println!("{}", simulated.report.json());
    } else {
        print!("{simulated}");
    }
    Ok(simulated.failures.is_empty())
}

fn load(text: &str) -> Result<Load, String> {
    let parts: Option<Vec<u64>> = text.split(':').map(|part| part.parse().ok()).collect();
    let Some(&[priority @ 0..=99, every, work]) = parts.as_deref() else {
        return Err(format!("{text} is no load; an example of one is 42:5000:2000"));
    };
    if every == 0 {
        return Err("a load has to begin at some distance".to_owned());
    }
    let policy = if priority == 0 { Policy::Normal(0) } else { Policy::Fifo(priority as u8) };
    Ok(Load { policy, every: Duration::from_micros(every), work: Duration::from_micros(work) })
}
