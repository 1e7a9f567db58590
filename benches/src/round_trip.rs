//! One case alone, for a look at it under `perf`, `strace` or a debugger.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use hdrhistogram::Histogram;

use crate::case::{Case, Kind, Place, System};
use crate::contender::{Contender, Cpus, Length, available};
use crate::instructions;

/// Measures one case alone, for a look at it under another tool.
#[derive(Debug, Args)]
pub struct Arguments {
    /// What carries the message
    system: System,
    /// What is measured
    #[arg(long, default_value = "call")]
    kind: Kind,
    /// Bytes of the message, at least 16
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Where the processes run
    #[arg(long, default_value = "one-cpu")]
    place: Place,
    /// Messages
    #[arg(long, default_value_t = 100_000)]
    messages: u64,
    /// Messages before these that do not count
    #[arg(long, default_value_t = 1_000)]
    warm_up: u64,
    /// Count instructions of a message in each process, in user space, and nothing else (valgrind)
    #[arg(long)]
    instructions: bool,
    /// Where to leave what callgrind wrote
    #[arg(long, requires = "instructions")]
    keep: Option<PathBuf>,
}

/// Runs the case and prints its percentiles.
///
/// # Errors
///
/// What failed.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    let Arguments { system, kind, bytes, place, messages, warm_up, .. } = *arguments;
    let case = Case { system, kind, bytes, place };
    available(system).map_err(io::Error::other)?;
    if !case.is_possible() || bytes < 16 {
        return Err(io::Error::other(format!("{case}: there is no such thing")));
    }
    if arguments.instructions {
        let name = |value: Option<PossibleValue>| value.map(|value| value.get_name().to_owned());
        let named =
            [system.to_possible_value(), kind.to_possible_value(), place.to_possible_value()].map(name);
        let [Some(system), Some(kind), Some(place)] = named else {
            return Err(io::Error::other(format!("{case}: it has no name")));
        };
        let (bytes, warm_up) = (bytes.to_string(), warm_up.to_string());
        let alike = [&system, "--kind", &kind, "--bytes", &bytes, "--place", &place, "--warm-up", &warm_up];
        return instructions::run(&alike, messages, arguments.keep.as_deref());
    }
    let length = |messages| Length { time: Duration::MAX, messages };
    let mut contender = Contender::start(&case, &Cpus::available()?)?;
    contender.turn(length(warm_up), |_| ())?;
    let mut latencies = Histogram::<u64>::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other)?;
    let turn = contender.turn(length(messages), |took| latencies.saturating_record(took))?;
    let at = |quantile| latencies.value_at_quantile(quantile) as f64 / 1e3;
    writeln!(
        io::stdout(),
        "{case}: p50 {:.2} µs, p99 {:.2}, p99.9 {:.2}, max {:.2}; {:.0} a second",
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0),
        1e9 * turn.messages as f64 / turn.took_ns.max(1) as f64
    )
}
