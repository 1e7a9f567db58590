//! A call to another process and back: over kdbusd, over sockets with and without a process in the middle, and
//! over pipes.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kdbus_benches::contender::Kind;
use kdbus_benches::peers::{MESSAGE_MAX, Role};
use kdbus_benches::placement::Placement;
use kdbus_benches::plot;
use kdbus_benches::report::Section;
use kdbus_benches::rounds::{Extent, measure};

/// Measures round trips between two processes over kdbusd and over what a program would use instead.
///
/// All contenders take their turn in each round. Shown are the percentiles of the round with the lowest median.
#[derive(Debug, Parser)]
#[command(name = "round-trip")]
struct Arguments {
    /// Contenders to measure [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<Kind>,
    /// Bytes of the message, each way; at least 16
    #[arg(long, value_delimiter = ',', default_values_t = [64, 65_536])]
    size: Vec<usize>,
    /// Rounds
    #[arg(long, default_value_t = 10)]
    rounds: u32,
    /// Round trips a round
    #[arg(long, default_value_t = 5_000)]
    trips: u32,
    /// Round trips before each turn that do not count
    #[arg(long, default_value_t = 200)]
    warm_up: u32,
    /// Only all processes on one CPU
    #[arg(long)]
    one_cpu: bool,
    /// Show the result as JSON
    #[arg(long)]
    json: bool,
    /// Draw the latencies into this file
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Role::of_this_process() {
        Some(role) => role.play(),
        None => run(&Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "round-trip: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> io::Result<()> {
    if let Some(size) = arguments.size.iter().find(|size| !(16..=MESSAGE_MAX).contains(*size)) {
        return Err(io::Error::other(format!("--size {size}: give 16 to {MESSAGE_MAX} bytes")));
    }
    let kinds = if arguments.only.is_empty() { &Kind::ALL[..] } else { &arguments.only };
    let extent = Extent { rounds: arguments.rounds, trips: arguments.trips, warm_up: arguments.warm_up };
    let mut placements = Placement::available()?;
    if placements.len() < 2 {
        writeln!(io::stderr(), "skipped: two CPUs, because this process may use only one")?;
    }
    placements.truncate(if arguments.one_cpu { 1 } else { 2 });
    let mut sections = Vec::new();
    for placement in placements {
        for size in &arguments.size {
            sections.push(measure(kinds, placement, *size, extent, |round, kind| {
                // Progress is for people who watch.
                let _ = write!(
                    io::stderr(),
                    "\r\x1b[K{size} bytes, {}, round {}: {}",
                    placement.name(),
                    round + 1,
                    kind.name()
                );
            })?);
            write!(io::stderr(), "\r\x1b[K")?;
            if !arguments.json
                && let Some(section) = sections.last().and_then(|measured| Section::of(measured))
            {
                writeln!(io::stdout(), "{}\n", section.text())?;
            }
        }
    }
    if arguments.json {
        let sections: Vec<_> = sections.iter().filter_map(|measured| Section::of(measured)).collect();
        writeln!(io::stdout(), "{}", serde_json::json!({ "round_trips": sections }))?;
    }
    match &arguments.plot {
        Some(path) => plot::write(&sections, path),
        None => Ok(()),
    }
}
