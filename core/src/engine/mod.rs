//! The bus itself, as a state machine without input or output.
//!
//! A [`Host`] brings commands, time, credentials and memory to a [`Domain`]; the engine keeps every rule of
//! the bus, writes answers in place and leaves [`Effect`]s for the host to carry out.
//!
//! - [`domain`](Domain): handles, which command goes where; [`Config`] and [`Storage`]: how much of it there
//!   is, and whose memory that is.
//! - `bus`, `bus_policy`, `endpoint`, `connection`, `user`: what is made and unmade.
//! - `send`, `deliver`, `receive`, `call`, `registry`, `list`: the commands.
//! - `lanes`: who may exchange messages past the bus, and until when.
//! - [`names`], [`pool`], [`quota`], [`reply`], `matches`, `rules`, `policy`, `files`: tables that change their own
//!   state and return what follows.

mod access;
mod bus;
mod bus_policy;
mod call;
#[cfg(test)]
mod chaos;
mod config;
mod connection;
mod deliver;
mod domain;
mod draft;
mod effect;
mod endpoint;
mod files;
mod host;
mod inspect;
mod lanes;
mod leave;
pub mod limits;
mod list;
mod matches;
mod metadata;
mod name_entry;
pub mod names;
mod notify;
mod owner;
mod policy;
pub mod pool;
pub mod quota;
mod receive;
mod registry;
pub mod reply;
mod rules;
mod send;
mod slice;
mod storage;
mod table;
#[cfg(test)]
mod testbed;
#[cfg(test)]
mod testbed_messages;
mod tracker;
mod user;
mod watch;

pub use crate::channel::{Entry, Return};
pub use bus_policy::PolicyRefused;
pub use config::{Config, ConfigError};
pub use domain::Domain;
pub use host::{
    Arrival, Clock, Credentials, Effect, EndpointId, FileId, FileKind, GROUPS_MAX, HandleId, Host, Id,
    LABEL_MAX, Node, Outcome, Readiness, Request, Spaces,
};
pub use inspect::{ConnectionView, Counters, Holder, Usage, Violation};
pub use lanes::{BesideLanes, LaneGrant, LaneTo, Lanes, NoLane, PastCall};
pub use storage::{Allocate, StaticStorage, Storage};
