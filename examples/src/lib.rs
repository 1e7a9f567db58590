//! Programs that show kdbus at work: an audio pipeline in four processes.

pub mod block;
pub mod control;
pub mod equaliser;
pub mod hop;
pub mod limiter;
pub mod piece;
pub mod progress;
pub mod report;
pub mod synth;
pub mod wav;
