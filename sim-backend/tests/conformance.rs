//! The conformance suite over the simulator.

mod world;

use world::SimWorld;

kdbus_conformance::conformance_tests!(SimWorld::new);
