//! The kdbus message bus in user space, for any stock Linux kernel.
#![deny(unsafe_code)]

pub mod config;
pub mod identity;
mod raw;
mod tree;
pub use tree::*;
