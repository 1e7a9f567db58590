//! A kdbus in one process and virtual time.
//!
//! A [`World`] is a simulated machine around the same engine that every other transport drives: processes,
//! descriptors, files, the bus' tree of nodes, and clocks that move when they are told to. A [`Sim`] shares
//! one world between clients, each over a [`SimTransport`].
//!
//! - Applications are tasks: [`Sim::spawn`] runs async functions on the cores of a [`Board`], under a [`Policy`]
//!   each, and [`Sim::run`] runs them to their end. Blocking clients and [services](Sim::serve) run beside them.
//! - [`Fault`]s come by seed ([`FaultPlan`]) or by script ([`Sim::inject`]).
//! - [`Explore`] runs a scenario under many seeds and leaves of a failing one what matters.
//! - A [`Trace`] has the timeline, the log of messages and the latencies of a run.
//!
//! One seed and one sequence of calls give one outcome, to the byte: nothing here asks the real machine for
//! the time, for randomness or for the order of a hash table. `docs/simulator.md` is the guide, and says what is not
//! as on a machine.
#![forbid(unsafe_code)]

/// The examples of the guide, compiled and run.
#[cfg(doctest)]
#[doc = include_str!("../../docs/simulator.md")]
struct Guide;

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
mod memory;
mod sim;
mod stage;
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
pub use memory::{Mapping, Peer, SharedMemory};
pub use sim::{Sim, Turn};
pub use stage::{Actor, Mishaps, Play, Region, Shown, Stage};
pub use trace::{Message, Trace};
pub use transport::{SimBorrowedFd, SimFd, SimSlice, SimTransport};
pub use world::{Body, Progress, Token, World};
