//! The kdbus-rt client for C.
//!
//! `include/kdbus_rt.h` is made from this crate, and `docs/c-api.md` shows how to use it. A handle
//! ([`bus::Bus`]) owns a [`Connection`](kdbus_core::client::Connection) over a
//! [`LocalTransport`](kdbus_linux::local::LocalTransport); a message ([`held::Message`]) keeps it alive.
//!
//! # Contract
//!
//! - Functions return 0 or more on success and a negative error number on failure. What a pointer has to
//!   lead to stands at each function. A NULL where one is not allowed is `-EINVAL`.
//! - A panic never unwinds into C: functions of the C ABI end the process instead. One would be a defect of
//!   this library.
//! - After `kdbus_rt_connect` nothing allocates: messages are taken out of places that the handle has made
//!   beforehand.
//!
//! # Unsafe
//!
//! Handles and structures come as references that may be absent, which is what the header promises of its
//! pointers. What Rust cannot say that way, texts and arrays, is read in `pointer.rs`; the one borrow that
//! Rust cannot follow lies in `held.rs`. Other files only say `unsafe` to export their names.
#![deny(unsafe_code)]

pub mod bus;
pub mod error;
pub mod held;
pub mod matches;
pub mod message;
pub mod metadata;
pub mod names;
mod pointer;
pub mod recv;
pub mod send;
pub mod version;

/// The client under a handle. Calls from C wait in the transport, so one place for an answer is enough.
type Client = kdbus_core::client::Connection<kdbus_linux::local::LocalTransport, 1, 32>;
