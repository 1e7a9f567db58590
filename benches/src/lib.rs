//! Latency and throughput of kdbus beside its peers.
//!
//! - `queue`: core's priority queue beside a binary heap, by instructions and by time.
//! - `round-trip`: a call to another process and back, over kdbusd and over what a program would use instead.
//!
//! Nothing is special-cased: every contender carries the same bytes between the same processes, checks them, and
//! takes its turn in each round. `docs/performance.md` has the figures and what they consist of.

pub mod callgrind;
pub mod contender;
pub mod peers;
pub mod placement;
pub mod plot;
pub mod report;
pub mod rounds;
