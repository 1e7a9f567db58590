//! The bus of the kdbus module, where the kernel has it.
//!
//! [`KernelTransport`] is what clients use: commands are ioctls on the nodes of a kdbusfs, received messages
//! lie in a pool that the module fills and the client maps for reading. [`make_bus`] and [`make_endpoint`]
//! make nodes, [`mount`] mounts the file system. All system calls go through one trait, [`Seam`], behind which
//! tests put a bus of their own; [`Module`] is the real one. Nothing newer than Linux 4.1 is needed.

mod ioctl;
mod make;
mod map;
mod seam;
mod transport;

pub use make::{Access, Owner, make_bus, make_bus_over, make_endpoint, make_endpoint_over, mount};
pub use seam::{Module, Ready, Seam};
pub use transport::KernelTransport;

/// Where the module's file system usually is.
pub const ROOT: &str = "/sys/fs/kdbus";
