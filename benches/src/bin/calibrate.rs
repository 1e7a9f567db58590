//! Measures what things cost on this machine and writes it down as a board for the simulator.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use kdbus_benches::calibrate::{Comparison, Effort, measure, part, pin_to_one_cpu};
use kdbus_sim::Board;

/// Bytes of a message at most.
const MESSAGE_MAX: usize = 1 << 20;

/// Measures what things cost on this machine and writes it down as a board for the simulator.
///
/// System calls, context switches, wake-ups, timers, copies, page faults and commands over kdbusd, each by itself, in many
/// short rounds. The less the machine does beside it, the better.
#[derive(Debug, Parser)]
#[command(name = "calibrate")]
struct Arguments {
    /// What to call the machine
    #[arg(long, default_value = "here")]
    name: String,
    /// The TOML file to write [default: standard output]
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Keep all processes on one CPU, and describe a machine with one core
    #[arg(long)]
    one_cpu: bool,
    /// Measure calls over kdbusd as well, and show them beside what the simulator foretells
    #[arg(long)]
    compare: bool,
    /// Compare with the board in this file and not with the one that is measured
    #[arg(long, value_name = "FILE", requires = "compare")]
    board: Option<PathBuf>,
    /// Bytes of the messages to compare with
    #[arg(long, value_delimiter = ',', default_values_t = [64, 4_096, 16_384])]
    size: Vec<usize>,
    /// Times that each thing is done in a round
    #[arg(long, default_value_t = 300)]
    times: usize,
    /// Rounds; the one with the lowest median counts
    #[arg(long, default_value_t = 60)]
    rounds: usize,
}

fn main() -> ExitCode {
    match part().unwrap_or_else(|| run(&Arguments::parse())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "calibrate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    if let Some(size) = arguments.size.iter().find(|size| !(16..=MESSAGE_MAX).contains(*size)) {
        return Err(io::Error::other(format!("--size {size}: give 16 to {MESSAGE_MAX} bytes")));
    }
    let effort = Effort { times: arguments.times, rounds: arguments.rounds };
    if arguments.one_cpu {
        pin_to_one_cpu()?;
    }
    let sizes = if arguments.compare { &arguments.size[..] } else { &[] };
    let given = match &arguments.board {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| named(path, &error))?;
            Some(Board::from_toml(&text).map_err(|error| named(path, &error))?)
        }
        None => None,
    };
    let measured = measure(sizes, effort)?;
    let board = match given {
        Some(board) => board,
        None => measured.costs.board(&arguments.name)?,
    };
    match &arguments.output {
        Some(path) => std::fs::write(path, board.to_toml()).map_err(|error| named(path, &error))?,
        None if arguments.board.is_none() => write!(io::stdout(), "{}", board.to_toml())?,
        None => {}
    }
    if arguments.compare {
        writeln!(io::stdout(), "# a call over kdbusd and back, median in ns: measured, simulated, error")?;
    }
    for (size, measured_ns) in sizes.iter().zip(measured.calls) {
        let result = Comparison::of(measured_ns, *size, &board)?;
        let error = result.error_permille();
        writeln!(
            io::stdout(),
            "# {size:6} B {:8} {:8} {}{}.{} %",
            result.measured_ns,
            result.simulated_ns,
            if error < 0 { "-" } else { "+" },
            error.abs() / 10,
            error.abs() % 10
        )?;
    }
    Ok(())
}

/// An error with the file that it is about.
fn named(path: &Path, error: &dyn fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
