//! Measures kdbus-rt and what one would use in its place.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use kdbus_benches::job::Job;
use kdbus_benches::{compare, leave, path, queue, round_trip};

/// Latency and throughput of kdbus-rt beside its peers.
#[derive(Debug, Parser)]
#[command(name = "kdbus-benches")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compare(compare::Arguments),
    RoundTrip(round_trip::Arguments),
    Queue(queue::Arguments),
    Leave(leave::Arguments),
    Path(path::Arguments),
}

fn main() -> ExitCode {
    let done = match Job::of_this_process() {
        Some(job) => job.run(),
        None => match Arguments::parse().command {
            Command::Compare(arguments) => compare::run(&arguments),
            Command::RoundTrip(arguments) => round_trip::run(&arguments),
            Command::Queue(arguments) => queue::run(&arguments),
            Command::Leave(arguments) => leave::run(&arguments),
            Command::Path(arguments) => path::run(&arguments),
        },
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to tell if this fails.
            let _ = writeln!(io::stderr(), "kdbus-benches: {error}");
            ExitCode::FAILURE
        }
    }
}
