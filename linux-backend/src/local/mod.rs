//! The bus of kdbusd, in user space on any stock kernel.
//!
//! Commands go to kdbusd as packets over a Unix socket ([`wire`], [`socket`]); messages are received out of
//! shared memory ([`map`], [`kdbus_core::channel`]) without a system call. What kdbusd itself builds on stands
//! here too. `docs/local-protocol.md` describes both sides.

mod copy;
pub mod map;
pub mod raw;
pub mod socket;
pub mod wire;
