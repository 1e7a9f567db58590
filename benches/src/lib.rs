//! Latency and throughput of kdbus beside its peers.
//!
//! - `queue`: core's priority queue beside a binary heap, by instructions and by time.
//! - `round-trip`: a call to another process and back, over kdbusd and over what a program would use instead.
//! - `calibrate`: what things cost on this machine, as a board for the simulator, and how well it foretells.
//!
//! Nothing is special-cased: every contender carries the same bytes between the same processes, checks them, and
//! takes its turn in each round. `docs/performance.md` has the figures and what they consist of.

pub mod calibrate;
pub mod callgrind;
pub mod contender;
pub mod peers;
pub mod placement;
pub mod plot;
pub mod report;
pub mod rounds;
