//! Programs that show kdbus at work: an audio pipeline in four processes.
//!
//! A source, an equaliser and a sink exchange blocks of sound in real time, while a controller sends changes that
//! overtake them. The modules here are what that pipeline needs apart from the bus:
//!
//! - what travels: [`block`], [`control`];
//! - where sound comes from and goes to: [`piece`], [`synth`], [`wav`];
//! - what is done to it: [`equaliser`], [`limiter`];
//! - what is told about the journey: [`hop`], [`report`], [`plot`], [`progress`].
//!
//! A stage allocates when it starts, and never again per block.

pub mod block;
pub mod control;
pub mod equaliser;
pub mod hop;
pub mod limiter;
pub mod piece;
pub mod plot;
pub mod progress;
pub mod report;
pub mod synth;
pub mod wav;
