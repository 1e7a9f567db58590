//! A sensor pipeline in five processes: what a machine measures, smoothed, fused and watched.
//!
//! A sampler reads sensors at fixed rates and publishes each reading under a topic of its own. A smoother filters the
//! readings and raises alarms, which overtake the readings that wait. Fusion keeps one state of all channels, publishes it
//! in a cycle and answers whoever asks for it with a deadline. A recorder writes everything down, a panel watches.
//!
//! - what is measured: [`channel`], [`probe`] on this machine, [`model`] in the simulator;
//! - what travels: [`message`];
//! - the parts: [`sampler`], [`smoother`] with its [`filter`], [`fusion`], [`recorder`], [`panel`], with [`part`] for what
//!   they have in common on the bus, and [`plan`] for what they all know;
//! - what came of it: [`tally`], [`report`], [`dashboard`].
//!
//! [`coordinator`] starts the parts as processes ([`process`]); [`simulated`] runs them in virtual time. The parts know
//! neither: they are async functions over any transport.

pub mod channel;
pub mod coordinator;
pub mod dashboard;
pub mod filter;
pub mod fusion;
pub mod message;
pub mod model;
pub mod panel;
pub mod part;
pub mod plan;
pub mod probe;
pub mod process;
pub mod recorder;
pub mod report;
pub mod sampler;
pub mod simulated;
pub mod smoother;
pub mod tally;
