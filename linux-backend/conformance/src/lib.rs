//! The conformance suite over the seam of the kernel transport.
//!
//! [`SeamWorld`] runs every case at the level of ioctls, descriptors and mapped memory, over a [`Platform`]: the
//! module of the running kernel, or a [`Loopback`], in which the engine answers the same system calls in this
//! process. The program `kdbus-conformance` runs the suite over these, over kdbusd and over the simulator, and
//! reports case by case.
#![deny(unsafe_code)]

mod argument;
mod call;
mod danger;
mod descriptors;
mod loopback;
mod machine;
mod memory;
mod platform;
mod signal;
mod world;

pub use call::Call;
pub use loopback::{Loopback, ROOT};
pub use platform::{LoopbackPlatform, ModulePlatform, Platform};
pub use world::{Handle, SeamWorld, User, UserSeam};
