//! A kdbus in one process and virtual time.
//!
//! A [`World`] is a simulated machine around the same engine that every other transport drives: processes,
//! descriptors, files, the bus' tree of nodes, and clocks that move when they are told to. A [`Sim`] shares
//! one world between clients, each over a [`SimTransport`], and services that run while a client waits.
//!
//! One seed and one sequence of calls give one outcome, to the byte: nothing here asks the real machine for
//! the time, for randomness or for the order of a hash table.
#![forbid(unsafe_code)]

mod burst;
mod clock;
mod cores;
mod cost;
mod executor;
mod explore;
mod fault;
mod fd;
mod flood;
mod machine;
mod sim;
mod trace;
mod transport;
mod world;

pub use clock::VirtualClock;
pub use cores::{Policy, TaskId};
pub use cost::{Board, BoardError, Path};
pub use executor::Placement;
pub use explore::{COMPACT, Counterexample, Explore};
pub use fault::{Fault, FaultError, FaultKind, FaultPlan};
pub use fd::{FD_LIMIT, File, PipeEnd};
pub use machine::{NodeFile, ProcessId, Random, Work};
pub use sim::{Sim, Turn};
pub use trace::{Message, Trace};
pub use transport::{SimBorrowedFd, SimFd, SimSlice, SimTransport};
pub use world::{Body, Progress, Token, World};
