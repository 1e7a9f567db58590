//! The behaviour that every kdbus transport shows, case by case.
//!
//! A transport that implements [`World`] runs all cases by one line in a test:
//!
//! ```text
//! kdbus_conformance::conformance_tests!(|case| MyWorld::with_room_for(&case.needs()));
//! ```
//!
//! Cases work at the level of commands, as bytes of a record and its items, so that wrong ones can be
//! expressed and the same cases run over real ioctls. Each case carries its numbers in the table of
//! `docs/conformance.md`. A case that a world cannot express says so in one line, `skipped: ...`.

mod bench;
mod build;
mod list;
mod record;
mod suite;
mod transport;
mod world;

mod activators;
mod buses;
mod calls;
mod endpoints;
mod fds;
mod framing;
mod hello;
mod matches;
mod message;
mod metadata;
mod monitors;
mod names;
mod negotiation;
mod policy;
mod pool;
mod quota;
mod recv;
mod sync;

pub use record::{Recorded, record};
pub use suite::{CaseInfo, NOT_EXPRESSED, Needs, cases, report_not_expressed, run, table, try_run};
pub use transport::{Apart, CallApart, Client, OverTransport, TransportCall, TransportHandle, Transported};
pub use world::{BadAddress, Body, Ended, Node, Payload, Poll, Skip, Who, World};
