//! Rounds: the contenders take turns, so that what disturbs the machine disturbs all of them.

use std::io;

use hdrhistogram::Histogram;

use crate::contender::{Contender, Kind};
use crate::placement::{Placement, switches};

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Rounds; in each one every contender has its turn.
    pub rounds: u32,
    /// Measured round trips of a turn.
    pub trips: u32,
    /// Round trips before these that do not count.
    pub warm_up: u32,
}

/// What was measured of one contender in one placement with one size.
pub struct Measured {
    /// The contender.
    pub kind: Kind,
    /// Where its processes ran.
    pub placement: Placement,
    /// Bytes of the message.
    pub size: usize,
    /// The latencies of each round, in nanoseconds.
    pub rounds: Vec<Histogram<u64>>,
    /// Context switches of all of its processes for a round trip, in the round with the fewest.
    pub switches: f64,
}

impl Measured {
    /// The round with the lowest median: the one that the rest of the machine disturbed least.
    #[must_use]
    pub fn best(&self) -> Option<&Histogram<u64>> {
        self.rounds.iter().min_by_key(|round| round.value_at_quantile(0.5))
    }

    /// The median of the best round, in nanoseconds; 0 without rounds.
    #[must_use]
    pub fn median(&self) -> u64 {
        self.best().map_or(0, |round| round.value_at_quantile(0.5))
    }
}

/// Measures `kinds` with messages of `size` bytes.
///
/// `progress` is told of each turn before it begins.
///
/// # Errors
///
/// What failed.
pub fn measure(
    kinds: &[Kind],
    placement: Placement,
    size: usize,
    extent: Extent,
    mut progress: impl FnMut(u32, Kind),
) -> io::Result<Vec<Measured>> {
    let mut all = Vec::new();
    for kind in kinds {
        let contender = Contender::start(*kind, size)?;
        let measured = Measured { kind: *kind, placement, size, rounds: Vec::new(), switches: f64::INFINITY };
        all.push((contender, measured));
    }
    for round in 0..extent.rounds {
        // Whoever comes first is another one each time.
        let first = round as usize % all.len().max(1);
        all.rotate_left(first);
        for (contender, measured) in &mut all {
            progress(round, measured.kind);
            placement.apply(contender)?;
            turn(contender, measured, extent)?;
        }
        all.rotate_right(first);
    }
    Ok(all.into_iter().map(|(_, measured)| measured).collect())
}

fn turn(contender: &mut Contender, measured: &mut Measured, extent: Extent) -> io::Result<()> {
    for _ in 0..extent.warm_up {
        contender.round_trip()?;
    }
    // Up to ten seconds; three digits cost a fixed, small table.
    let mut latencies = Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other)?;
    let before = all_switches(contender)?;
    for _ in 0..extent.trips {
        let took = contender.round_trip()?;
        latencies.saturating_record(took.as_nanos() as u64);
    }
    let switched = all_switches(contender)?.saturating_sub(before);
    measured.switches = measured.switches.min(switched as f64 / f64::from(extent.trips.max(1)));
    measured.rounds.push(latencies);
    Ok(())
}

fn all_switches(contender: &Contender) -> io::Result<u64> {
    let mut sum = switches(None)?;
    for (_, pid) in contender.processes() {
        sum += switches(Some(pid))?;
    }
    Ok(sum)
}
