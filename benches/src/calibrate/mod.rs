//! What things cost on this machine, measured one by one, and what the simulator foretells from it.

mod costs;
mod foretold;
mod processes;

use std::io;
use std::time::{Duration, Instant};

use kdbus_core::client::{CALL_TIMEOUT, Connection, Message};
use kdbus_linux::local::LocalTransport;
use kdbus_sim::Board;

pub use costs::Costs;
pub use foretold::simulated_call;
pub use processes::{part, pin_to_one_cpu};

use costs::Probes;
use processes::{Bus, service};

/// How often each thing is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Times that each thing is done in a round.
    pub times: usize,
    /// Rounds; the one with the lowest median counts, as the one that was disturbed least.
    pub rounds: usize,
}

/// What was measured in the same rounds, with the same daemon.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What things cost.
    pub costs: Costs,
    /// Nanoseconds that a call with messages of each size takes, there and back.
    pub calls: Vec<u64>,
}

/// Measures this machine with the CPUs that this process may use, all or one: in each round what things cost, and calls
/// with messages of `sizes` bytes over kdbusd.
///
/// # Errors
///
/// What failed, as the system or the bus says it.
pub fn measure(sizes: &[usize], effort: Effort) -> io::Result<Measured> {
    let bus = Bus::start()?;
    let connection = bus.connect()?;
    let mut probes = Probes::new(&bus, &connection)?;
    let mut calls = vec![u64::MAX; sizes.len()];
    for _ in 0..effort.rounds.max(1) {
        probes.round(effort.times)?;
        for (lowest, size) in calls.iter_mut().zip(sizes) {
            *lowest = call(&connection, *size, effort.times)?.min(*lowest);
        }
    }
    Ok(Measured { costs: probes.costs(), calls })
}

fn call(connection: &Connection<LocalTransport>, size: usize, times: usize) -> io::Result<u64> {
    let (service, payload) = (service().map_err(io::Error::other)?, vec![0x5a; size]);
    median(times, || {
        let begun = Instant::now();
        let reply = connection.call(&Message::to_name(service).payload(&payload), CALL_TIMEOUT).wait();
        // What the caller does with the reply is no part of the call.
        let took = ns(begun.elapsed());
        if reply.map_err(io::Error::other)?.payload() == payload {
            Ok(took)
        } else {
            Err(io::Error::other("other bytes came back than were sent"))
        }
    })
}

/// The median of what `once` says when it is asked so many times.
fn median(times: usize, once: impl FnMut() -> io::Result<u64>) -> io::Result<u64> {
    let samples: io::Result<Vec<u64>> = std::iter::repeat_with(once).take(times.max(1)).collect();
    let mut samples = samples?;
    samples.sort_unstable();
    Ok(samples[samples.len() / 2])
}

const fn ns(span: Duration) -> u64 {
    span.as_nanos() as u64
}

/// A round trip as it was measured and as it was foretold, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// What was measured.
    pub measured_ns: u64,
    /// The median of the simulation.
    pub simulated_ns: u64,
}

impl Comparison {
    /// Beside the calls with messages of `size` bytes that were measured, the same calls on `board`.
    ///
    /// # Errors
    ///
    /// What the simulated bus says.
    pub fn of(measured_ns: u64, size: usize, board: &Board) -> io::Result<Self> {
        Ok(Self { measured_ns, simulated_ns: simulated_call(board, size, 500).map_err(io::Error::other)? })
    }

    /// By how many thousandths the simulation is off.
    #[must_use]
    pub const fn error_permille(&self) -> i64 {
        let difference = self.simulated_ns as i64 - self.measured_ns as i64;
        difference * 1000 / if self.measured_ns == 0 { 1 } else { self.measured_ns as i64 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_a_sign() {
        let comparison = |simulated_ns| Comparison { measured_ns: 10_000, simulated_ns };
        assert_eq!(comparison(12_000).error_permille(), 200);
        assert_eq!(comparison(9_000).error_permille(), -100);
    }
}
