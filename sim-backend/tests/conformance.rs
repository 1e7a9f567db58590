//! The conformance suite over the simulator.

mod world;

use kdbus_conformance::OverTransport;
use world::SimWorld;

/// Command by command, as a program without a library would.
mod commands {
    use super::*;

    kdbus_conformance::conformance_tests!(SimWorld::new);
}

/// Through the transport that clients use.
mod transport {
    use super::*;

    kdbus_conformance::conformance_tests!(|case| OverTransport(SimWorld::new(case)));
}
