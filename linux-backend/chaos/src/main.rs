//! `kdbus-chaos`: clients of a real kdbusd that are killed and stopped, and a check of everything they saw.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, Subcommand};
use kdbus_chaos::client::{self, ClientArguments, Outcome};
use kdbus_chaos::run::{self, CLIENTS_MAX, CLIENTS_MIN, Settings};
use signal_hook::consts::{SIGINT, SIGTERM};

/// Lets clients of a kdbusd of its own do seeded random things, kills and stops them, and checks everything they saw
#[derive(Debug, Parser)]
#[command(name = "kdbus-chaos", version, args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Hidden>,
    /// What everything random follows from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long to go on, also as a fraction
    #[arg(long, default_value_t = 1.0, value_parser = minutes)]
    minutes: f64,
    /// Clients at a time
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(i64::from(CLIENTS_MIN)..=i64::from(CLIENTS_MAX)))]
    clients: u32,
    /// Write the counts and findings to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write what everybody did in a round in which something is found to this folder, as text
    #[arg(long, value_name = "DIR")]
    histories: Option<PathBuf>,
    /// The daemon's program [default: kdbusd beside this program]
    #[arg(long, value_name = "PATH")]
    kdbusd: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
enum Hidden {
    /// A client process, started by the conductor
    #[command(hide = true)]
    Client(ClientArguments),
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes < 1e6 => Ok(minutes),
        _ => Err("not a number of minutes above 0".into()),
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = match &arguments.command {
        Some(Hidden::Client(client)) => client::run(client).map(|()| true),
        None => conduct(&arguments),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kdbus-chaos: error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether nothing was found.
fn conduct(arguments: &Arguments) -> Outcome<bool> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    let kdbusd = match &arguments.kdbusd {
        Some(path) => path.clone(),
        None => std::env::current_exe()?.with_file_name("kdbusd"),
    };
    if !kdbusd.is_file() {
        let path = kdbusd.display();
        return Err(format!("there is no {path}; build kdbusd, or name it after --kdbusd").into());
    }
    let settings = Settings {
        seed: arguments.seed,
        span: Duration::from_secs_f64(60.0 * arguments.minutes),
        clients: arguments.clients,
        kdbusd,
        histories: arguments.histories.clone(),
        progress: true,
    };
    let report = run::run(&settings, &stop)?;
    println!("{}", report.table());
    if let Some(path) = &arguments.json {
        std::fs::write(path, format!("{:#}\n", report.json()))
            .map_err(|error| format!("{} cannot be written: {error}", path.display()))?;
    }
    eprint!("{}", report.failure());
    Ok(report.is_clean())
}
