//! The bus itself, as a state machine without input or output.
//!
//! A [`Host`] brings commands, time, credentials and memory; the engine keeps every rule of the bus, writes
//! answers in place and leaves [`Effect`]s for the host to carry out.

mod host;
pub mod names;
pub mod pool;
pub mod quota;
pub mod reply;

pub use host::{
    Arrival, Clock, Credentials, Effect, EndpointId, Entry, FileId, FileKind, GROUPS_MAX, HandleId, Host,
    LABEL_MAX, Node, Outcome, Readiness, Request, Return,
};
