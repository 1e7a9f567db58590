//! Runs the sensor pipeline on a simulated machine, in virtual time.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use kdbus_examples::sensor::channel::Threshold;
use kdbus_examples::sensor::simulated::{Setup, simulate};
use kdbus_examples::simulated::{board, write};
use kdbus_sim::Fault;

/// Runs the sensor pipeline on a simulated machine, in virtual time
///
/// The parts are those of sensor-pipeline; the sensors are a model of six. Equal arguments give equal reports and records, to
/// the byte.
#[derive(Debug, Parser)]
#[command(name = "sim-sensor", version)]
struct Arguments {
    /// Decides all values, and everything that is left to chance
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds to measure
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    seconds: u64,
    /// Readings of a fast channel in a second
    #[arg(long, value_name = "HZ", default_value_t = 100)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1000))]
    rate: u64,
    /// Machine: ideal, vm, a8, a53, a72, or a TOML file that the program calibrate has written
    #[arg(long, default_value = "vm")]
    board: String,
    /// Alarm when a channel comes to LIMIT, until it is back beyond BACK [default: level:60:50]
    #[arg(long, value_name = "CHANNEL:LIMIT[:BACK]")]
    alarm: Vec<Threshold>,
    /// Have the first channel chatter: so many readings more at this tick, in which an alarm is due too
    #[arg(long, value_name = "TICK:READINGS", value_parser = burst)]
    burst: Option<(u64, u64)>,
    /// How much later than usual wake-ups and timers may come by chance, in microseconds
    #[arg(long, default_value_t = 0)]
    jitter_us: u64,
    /// What goes wrong, such as stop:3@500=20000000: fusion (parts are 1 to 5) stands still for 20 ms at step 500
    #[arg(long, default_value = "")]
    faults: String,
    /// Record readings, alarms and states into this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Print JSON in place of tables
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(is_whole) => ExitCode::from(u8::from(!is_whole)),
        Err(error) => {
            eprintln!("sim-sensor: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool, Box<dyn std::error::Error>> {
    let span = Duration::from_secs(arguments.seconds);
    let mut setup = Setup::new(arguments.seed, span, arguments.rate, board(&arguments.board)?);
    setup.jitter = Duration::from_micros(arguments.jitter_us);
    setup.faults = Fault::parse_all(&arguments.faults)?;
    if !arguments.alarm.is_empty() {
        setup.plan.thresholds.clone_from(&arguments.alarm);
    }
    if let Some(threshold) = setup.plan.unknown_threshold() {
        let names: Vec<_> = setup.plan.channels.iter().map(|channel| channel.name.as_str()).collect();
        return Err(
            format!("no channel is called '{}'; there are {}", threshold.channel, names.join(", ")).into()
        );
    }
    if let Some((tick, readings)) = arguments.burst {
        if tick >= setup.plan.ticks {
            return Err(format!(
                "no burst at tick {tick}: the last one of this run is {}",
                setup.plan.ticks - 1
            )
            .into());
        }
        setup.burst(tick, readings);
    }
    let simulated = simulate(&setup)?;
    if let Some(path) = &arguments.csv {
        write(path, &simulated.record)?;
    }
    if arguments.json {
        println!("{}", simulated.report.json());
    } else {
        print!("{simulated}");
    }
    Ok(simulated.failures.is_empty())
}

fn burst(text: &str) -> Result<(u64, u64), String> {
    let parts =
        text.split_once(':').and_then(|(tick, readings)| Some((tick.parse().ok()?, readings.parse().ok()?)));
    parts.ok_or_else(|| format!("'{text}' is no burst; an example of one is 500:2000"))
}
