//! Latency and throughput of kdbus beside its peers.
//!
//! - [`compare`]: kdbus-rt, the floor under it and its peers, in one run.
//! - [`round_trip`]: one of these cases alone, for a look at it under another tool.
//! - [`calibrate`]: what things cost on this machine, as a board for the simulator, and how well it foretells.
//! - [`path`]: instructions of a message by lane.
//! - [`queue`]: core's priority queue beside a binary heap, by instructions and by time.
//!
//! Nothing is special-cased: every contender carries the same bytes between the same processes, looks at both ends of
//! them, and takes its turn in each round. `docs/performance.md` has the figures and what they consist of.
#![deny(unsafe_code)]

pub mod bus;
pub mod calibrate;
pub mod callgrind;
pub mod case;
pub mod compare;
pub mod contender;
pub mod control;
pub mod count;
pub mod dbus;
pub mod end;
pub mod floor;
#[cfg(feature = "peers")]
pub mod iceoryx;
pub mod instructions;
pub mod job;
pub mod leave;
pub mod machine;
pub mod marshal;
pub mod path;
pub mod plot;
pub mod queue;
pub mod report;
pub mod round_trip;
pub mod rounds;
pub mod scale;
pub mod shared;
pub mod socket;
pub mod switches;
#[cfg(feature = "peers")]
pub mod zbus_end;
