//! The conformance suite over kdbusd, one daemon for each case.

mod daemon;
mod world;

use daemon::Daemon;
use kdbus_conformance::OverTransport;

/// Packet by packet, so that malformed commands reach the daemon too.
mod packets {
    use super::*;

    kdbus_conformance::conformance_tests!(Daemon::world);
}

/// Through the transport that clients use.
mod transport {
    use super::*;

    kdbus_conformance::conformance_tests!(|case| OverTransport(Daemon::world(case)));
}

/// The same, where each message that can goes by a lane.
mod lanes {
    use super::*;

    kdbus_conformance::conformance_tests!(|case| OverTransport(Daemon::world_with_lanes(case)));
}

/// The same, where a seed chooses for each of these messages whether it goes by lane or through the daemon.
mod either {
    use super::*;

    kdbus_conformance::conformance_tests!(|case| OverTransport(Daemon::world_with_detours(case)));
}
