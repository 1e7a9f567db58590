//! kdbus-rt beside the floor and its peers, in one run.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;

use crate::case::{Case, Kind, Place, System};
use crate::contender::Cpus;
use crate::machine::Machine;
use crate::plot;
use crate::report::{Line, Report};
use crate::rounds::{Absent, Extent, measure};
use crate::scale;

/// Measures kdbus-rt, the floor under it and its peers, each in its turn in every round.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Shorter and fewer rounds: less than two minutes for everything
    #[arg(long)]
    quick: bool,
    /// Write the result into this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw pictures into this directory
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
    /// Print a part of a Markdown page instead of plain tables
    #[arg(long)]
    markdown: bool,
    /// Systems to measure [default: all]
    #[arg(long, value_delimiter = ',')]
    only: Vec<System>,
    /// Kinds of messages [default: all]
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<Kind>,
    /// Bytes of a message, at least 16
    #[arg(long, value_delimiter = ',', default_values_t = [64, 1 << 10, 64 << 10, 1 << 20])]
    bytes: Vec<usize>,
    /// Places [default: all]
    #[arg(long, value_delimiter = ',')]
    places: Vec<Place>,
    /// Leave out how cost grows with connections, names and subscribers
    #[arg(long)]
    no_scaling: bool,
}

/// Bytes of the longest message.
const BYTES_MAX: usize = 1 << 20;

/// Measures, prints, and writes what it was asked for.
///
/// # Errors
///
/// What failed.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    if let Some(bytes) = arguments.bytes.iter().find(|bytes| !(16..=BYTES_MAX).contains(*bytes)) {
        return Err(io::Error::other(format!("--bytes {bytes}: give 16 to {BYTES_MAX}")));
    }
    let or_all = |given: &[System]| if given.is_empty() { System::ALL.to_vec() } else { given.to_vec() };
    let systems = or_all(&arguments.only);
    let kinds = if arguments.kinds.is_empty() { &Kind::ALL[..] } else { &arguments.kinds };
    let both = [Place::OneCpu, Place::TwoCpus];
    let mut places = if arguments.places.is_empty() { both.to_vec() } else { arguments.places.clone() };
    let cpus = Cpus::available()?;
    if cpus.second.is_none() && places.contains(&Place::TwoCpus) {
        writeln!(io::stderr(), "skipped: two CPUs, because this process may use only one")?;
        places.retain(|place| *place == Place::OneCpu);
    }
    let extent = if arguments.quick { Extent::QUICK } else { Extent::FULL };
    let mut report =
        Report { machine: Machine::current(), cases: Vec::new(), scaling: Vec::new(), absent: Vec::new() };
    let mut measured = Vec::new();
    for kind in kinds {
        for place in &places {
            for bytes in &arguments.bytes {
                let progress = |case: &Case, what: &str| show(&format!("{case}: {what}"));
                let group = (*kind, *bytes, *place);
                let group = measure(&systems, group, &cpus, extent, &mut report.absent, progress)?;
                report.cases.extend(group.iter().filter_map(Line::of));
                measured.push(group);
            }
        }
    }
    if !arguments.no_scaling {
        scaling(&mut report, &systems, &cpus, extent);
    }
    show("");
    write!(io::stdout(), "{}", report.text(arguments.markdown))?;
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&report)? + "\n")?;
    }
    match &arguments.svg {
        Some(dir) => plot::write(&measured, &report, dir),
        None => Ok(()),
    }
}

/// Measures how cost grows, over the fastest of kdbus-rt's ways that was measured.
fn scaling(report: &mut Report, systems: &[System], cpus: &Cpus, extent: Extent) {
    let was_measured = |system: &System| report.cases.iter().any(|line| line.case.system == *system);
    let ours = [System::Channel, System::SlowPath].into_iter();
    let Some(system) =
        ours.clone().find(was_measured).or_else(|| ours.clone().find(|one| systems.contains(one)))
    else {
        return;
    };
    let progress = |what: scale::What, count: usize| show(&format!("{}: {count}", what.name()));
    match scale::measure(system, cpus, scale::short(extent), progress) {
        Ok(steps) => report.scaling = steps,
        Err(error) => report.absent.push(Absent { system, reason: format!("its scaling: {error}") }),
    }
}

/// Progress, for people who watch.
fn show(line: &str) {
    use std::io::IsTerminal;
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }
}
