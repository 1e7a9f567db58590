//! Rounds: the contenders take turns, so that what disturbs the machine disturbs all of them.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::case::{Case, Kind, Place, System};
use crate::contender::{Contender, Cpus, Length, available};
use crate::count;

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds; in each one every contender has its turn.
    pub rounds: u32,
    /// A turn.
    pub turn: Length,
    /// What goes before it and does not count.
    pub warm_up: Length,
}

/// What was measured of one case.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The case.
    pub case: Case,
    /// The latencies of each round, in nanoseconds.
    pub rounds: Vec<Histogram<u64>>,
    /// Messages a second, in the round with most.
    pub per_second: f64,
    /// System calls of all processes for a round trip, if they were counted.
    pub syscalls: Option<f64>,
    /// Context switches of all processes for a message, in the round with the fewest.
    pub switches: f64,
}

/// A system that is not measured, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The system.
    pub system: System,
    /// Why, and what to do about it.
    pub reason: String,
}

impl Extent {
    /// What takes less than two minutes for everything.
    pub const QUICK: Self = Self::new(3, 40, 8);
    /// What figures are taken with.
    pub const FULL: Self = Self::new(10, 150, 20);

    const fn new(rounds: u32, turn_ms: u64, warm_up_ms: u64) -> Self {
        Self {
            rounds,
            turn: Length { time: Duration::from_millis(turn_ms), messages: u64::MAX },
            warm_up: Length { time: Duration::from_millis(warm_up_ms), messages: u64::MAX },
        }
    }
}

impl Measured {
    /// The round with the lowest median: the one that the rest of the machine disturbed least.
    #[must_use]
    pub fn best(&self) -> Option<&Histogram<u64>> {
        self.rounds.iter().filter(|round| !round.is_empty()).min_by_key(|round| round.value_at_quantile(0.5))
    }

    /// The median of that round, in nanoseconds; 0 without rounds.
    #[must_use]
    pub fn lowest_median(&self) -> u64 {
        self.best().map_or(0, |round| round.value_at_quantile(0.5))
    }

    /// The latencies of all rounds.
    #[must_use]
    pub fn all(&self) -> Option<Histogram<u64>> {
        let (first, rest) = self.rounds.split_first()?;
        let mut all = first.clone();
        for round in rest {
            all.add(round).ok()?;
        }
        Some(all)
    }

    /// What ratios are made of: nanoseconds for a message, of a stream the time between two.
    #[must_use]
    pub fn cost_ns(&self) -> f64 {
        if self.case.kind == Kind::Stream {
            1e9 / self.per_second.max(f64::MIN_POSITIVE)
        } else {
            self.lowest_median() as f64
        }
    }
}

/// Measures `systems` with one kind of messages in one place, and says of each that is left out why.
///
/// `progress` is told of each turn before it begins.
///
/// # Errors
///
/// What failed besides the systems.
pub fn measure(
    systems: &[System],
    (kind, bytes, place): (Kind, usize, Place),
    cpus: &Cpus,
    extent: Extent,
    absent: &mut Vec<Absent>,
    mut progress: impl FnMut(&Case, &str),
) -> io::Result<Vec<Measured>> {
    let mut all = Vec::new();
    let mut leave_out = |system: System, reason: String| {
        if !absent.iter().any(|one| one.system == system && one.reason == reason) {
            absent.push(Absent { system, reason });
        }
    };
    for system in systems {
        let case = Case { system: *system, kind, bytes, place };
        if !case.is_possible() {
            continue;
        }
        if let Err(reason) = available(*system) {
            leave_out(*system, reason);
            continue;
        }
        progress(&case, "starting");
        let ready = Contender::start(&case, cpus).and_then(|mut contender| {
            contender.turn(extent.warm_up, |_| ())?;
            Ok(contender)
        });
        match ready {
            Ok(contender) => {
                let (rounds, switches) = (Vec::new(), f64::INFINITY);
                all.push((contender, Measured { case, rounds, per_second: 0.0, syscalls: None, switches }));
            }
            Err(error) => leave_out(*system, error.to_string()),
        }
    }
    for round in 0..extent.rounds {
        // Whoever comes first is another one each time.
        let first = round as usize % all.len().max(1);
        all.rotate_left(first);
        let mut failed = Vec::new();
        for (at, (contender, measured)) in all.iter_mut().enumerate() {
            progress(&measured.case, &format!("round {}", round + 1));
            if let Err(error) = turn(contender, measured, extent) {
                leave_out(measured.case.system, error.to_string());
                failed.push(at);
            }
        }
        for at in failed.into_iter().rev() {
            all.remove(at);
        }
        let first = first.min(all.len());
        all.rotate_right(first);
    }
    // Nobody else runs while somebody is traced.
    let mut all: Vec<_> = all.into_iter().map(|(_, measured)| measured).collect();
    for measured in &mut all {
        progress(&measured.case, "counting");
        match count::syscalls(&measured.case, cpus) {
            Ok(syscalls) => measured.syscalls = syscalls,
            Err(error) => {
                leave_out(measured.case.system, format!("its system calls cannot be counted: {error}"))
            }
        }
    }
    Ok(all)
}

fn turn(contender: &mut Contender, measured: &mut Measured, extent: Extent) -> io::Result<()> {
    contender.turn(extent.warm_up, |_| ())?;
    // Up to ten seconds; three digits cost a fixed, small table.
    let mut latencies = Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other)?;
    let before = contender.switches()?;
    let turn = contender.turn(extent.turn, |took| latencies.saturating_record(took))?;
    let switched = contender.switches()?.saturating_sub(before);
    let messages = turn.messages.max(1) as f64;
    measured.switches = measured.switches.min(switched as f64 / (messages + turn.apart as f64));
    measured.per_second = measured.per_second.max(1e9 * messages / turn.took_ns.max(1) as f64);
    measured.rounds.push(latencies);
    Ok(())
}
