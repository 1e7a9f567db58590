//! The engine with the tools of its tests.

pub use kdbus_core::engine::*;

#[allow(dead_code, reason = "tests use more of it")]
#[path = "../../core/src/engine/chaos.rs"]
mod chaos;
#[allow(dead_code, reason = "tests use more of it")]
#[path = "../../core/src/engine/testbed.rs"]
mod testbed;
#[allow(dead_code, reason = "tests use more of it")]
#[path = "../../core/src/engine/testbed_messages.rs"]
mod testbed_messages;

/// Memory that is small enough to run full.
type Memory = StaticStorage<9, 12, 14>;

/// Lets happen what `bytes` say to an engine, and looks at everything after each step.
pub fn run(bytes: &[u8]) {
    let mut memory = Box::new(Memory::new());
    let domain = Domain::new(&Memory::CONFIG, memory.storage()).expect("the configuration is its own");
    chaos::Chaos::new(chaos::Dice::Given(bytes), domain).run(4096);
}

/// Gives commands as they stand in `bytes` to handles of every kind.
pub fn command(bytes: &[u8]) {
    let mut memory = Box::new(Memory::new());
    let domain = Domain::new(&Memory::CONFIG, memory.storage()).expect("the configuration is its own");
    chaos::Chaos::new(chaos::Dice::Given(&[]), domain).commands(bytes);
}
