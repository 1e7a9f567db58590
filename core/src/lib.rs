//! The kdbus protocol, client and bus engine.
//!
//! - [`abi`]: the commands and items of the kdbus UAPI, parsed and emitted without unsafe code.
#![no_std]
#![forbid(unsafe_code)]

pub mod abi;
mod name;
mod time;

pub use name::{NODE_NAME_MAX, NameError, NodeName, PolicyName, WELL_KNOWN_NAME_MAX, WellKnownName};
pub use time::Instant;
