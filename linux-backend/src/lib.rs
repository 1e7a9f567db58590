//! kdbus transports for Linux.
//!
//! - [`local`]: over kdbusd, on any stock kernel.
//! - [`kernel`]: over the kdbus module, where the kernel has it.
//! - [`rt`]: what a thread asks of the system before it keeps time.
//!
//! The crate needs neither `std` nor libc nor an allocator. Feature `std` (default) adds error conversions.
#![no_std]
#![deny(unsafe_code)]

#[cfg(any(feature = "std", test))]
extern crate std;

mod clock;
pub mod kernel;
pub mod local;
pub mod rt;

/// The examples of the README, compiled.
#[cfg(all(doctest, feature = "std"))]
#[doc = include_str!("../../README.md")]
struct Readme;
