//! The kdbus message bus in user space, for any stock Linux kernel.
#![deny(unsafe_code)]

pub mod config;
mod files;
pub mod identity;
mod log;
mod poller;
mod raw;
mod ready;
mod tree;
pub use tree::*;
