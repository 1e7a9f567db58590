//! The kdbus protocol, client and bus engine.
#![no_std]
#![forbid(unsafe_code)]

pub mod queue;
pub mod slots;
pub mod tree;
