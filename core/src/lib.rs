//! The kdbus protocol, client and bus engine.
//!
//! - [`abi`]: the commands and items of the kdbus UAPI, parsed and emitted without unsafe code.
//! - [`channel`]: what two processes share in memory, over slices of atomic words.
//! - [`client`]: what applications use, over any [`client::Transport`].
//! - [`examine`]: what a message has to be for any bus to carry it.
//! - [`engine`]: the bus itself, driven by any [`engine::Host`].
#![no_std]
#![forbid(unsafe_code)]

mod fmt;

pub mod abi;
pub mod channel;
pub mod client;
pub mod engine;
pub mod examine;
pub mod hint;
mod name;
pub mod queue;
mod radix;
pub mod slots;
mod time;
pub mod tree;

pub use name::{NODE_NAME_MAX, NameError, NodeName, PolicyName, WELL_KNOWN_NAME_MAX, WellKnownName};
pub use time::Instant;
