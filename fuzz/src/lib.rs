//! What fuzz targets share.

// The engine's own tests do the work; they find here what they find in their crate.
pub use kdbus_core::{Instant, abi, channel};

pub mod engine;
