//! The kdbus message bus in user space, for any stock Linux kernel.
//!
//! A [`Daemon`] is the trusted party that the kernel module was: it alone decides who may talk to whom. It
//! drives [`kdbus_core::engine`] from one thread and decides nothing itself; `docs/local-protocol.md` describes
//! what goes between it and its clients.
//!
//! ```no_run
//! use kdbusd::{Running, config::Config};
//! let config = Config::new(1000, "/tmp/kdbus".into());
//! let bus = Running::start(&config)?;
//! // … connect to /tmp/kdbus/1000-user/bus …
//! bus.stop()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(unsafe_code)]

mod accounts;
pub mod activation;
mod answers;
mod bans;
mod budget;
mod bytes;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod calls;
mod capacity;
mod clients;
mod closer;
pub mod config;
pub mod confine;
mod daemon;
mod files;
mod host;
pub mod identity;
mod lane_packets;
mod lanes;
mod log;
mod packets;
mod pairs;
mod policy;
mod poller;
pub mod process;
mod raw;
mod ready;
mod serve;
mod spaces;
mod tree;

pub use daemon::{Daemon, Running, StartError};
pub use policy::ApplyError;
pub use ready::{Watchdog, notify};
pub use serve::ServeError;
pub use tree::TreeError;
