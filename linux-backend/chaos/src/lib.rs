//! Clients of a real `kdbusd` that do seeded random things and are killed and stopped meanwhile, and a check
//! from outside of everything they saw.
//!
//! A run goes in rounds. In each round the clients work ([`worker`], [`special`], [`raw`]) and write down
//! what they do ([`record`]), while the [conductor](run) kills, stops, continues and replaces them. Then all
//! come to rest, empty their queues, and the histories are [checked](check) against each other, and `kdbusd`'s
//! own numbers against the histories ([`audit`]). Now and then everybody leaves, and the daemon has to have
//! no more descriptors, mappings and memory than in the beginning.
//!
//! What is random comes from one seed: who does what, who is killed, stopped and where. How processes
//! interleave does not, so a seed makes a failure likely to come again, not certain.

pub mod audit;
mod calls;
pub mod check;
pub mod client;
pub mod daemon;
pub mod fleet;
pub mod history;
#[cfg(feature = "points")]
mod inside;
mod loans;
mod loss;
mod order;
pub mod payload;
pub mod point;
pub mod raw;
pub mod record;
pub mod report;
pub mod run;
pub mod special;
mod traffic;
pub mod worker;
