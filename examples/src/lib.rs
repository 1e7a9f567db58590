//! Programs that show kdbus at work: an audio pipeline in four processes, and a sensor pipeline in five.
//!
//! A source, an equaliser and a sink exchange blocks of sound in real time, while a controller sends changes that
//! overtake them. The stages are [`source`], [`equalise`], [`sink`] and [`controller`], with [`stage`] for what they have in
//! common on the bus; [`coordinator`] starts them as processes and ends them. What they need apart from the bus:
//!
//! - what travels: [`block`], [`control`];
//! - where sound comes from and goes to: [`piece`], [`synth`], [`wav`], [`sound_card`];
//! - what is done to it, and when: [`equaliser`], [`limiter`], [`timeline`];
//! - what is told about the journey: [`hop`], [`report`], [`plot`], [`progress`].
//!
//! [`simulated`] plays the same stages in virtual time on a simulated machine.
//!
//! The [`sensor`] pipeline measures the machine that it runs on. What both have in common is [`bus`], [`hop`],
//! [`interrupts`], and the watch over processes (`crew`).
//!
//! A stage allocates when it starts, and never again per block.

pub mod block;
pub mod bus;
pub mod control;
pub mod controller;
pub mod coordinator;
mod crew;
pub mod equalise;
pub mod equaliser;
pub mod hop;
pub mod interrupts;
pub mod limiter;
pub mod piece;
pub mod played;
pub mod plot;
pub mod process;
pub mod progress;
pub mod record;
pub mod report;
pub mod sensor;
pub mod simulated;
pub mod sink;
#[cfg_attr(not(feature = "sound-card"), path = "no_sound_card.rs")]
pub mod sound_card;
pub mod source;
pub mod stage;
pub mod synth;
pub mod timeline;
pub mod wav;
