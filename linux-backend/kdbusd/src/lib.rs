//! The kdbus message bus in user space, for any stock Linux kernel.
#![deny(unsafe_code)]

mod budget;
pub mod config;
mod files;
pub mod identity;
mod log;
mod poller;
pub mod process;
mod raw;
mod ready;
mod tree;

pub use ready::notify;
pub use tree::TreeError;
