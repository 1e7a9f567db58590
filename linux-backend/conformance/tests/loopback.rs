//! The conformance suite over the loop-back of the module.

use kdbus_conformance::{CaseInfo, OverTransport};
use kdbus_conformance_cli::{LoopbackPlatform, SeamWorld};

fn world(case: &CaseInfo) -> SeamWorld<LoopbackPlatform> {
    SeamWorld::new(|| {
        // One case opens a thousand connections.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        LoopbackPlatform::new(&case.needs())
    })
}

/// System call by system call, as a program without a library would.
mod commands {
    use super::*;

    kdbus_conformance::conformance_tests!(world);
}

/// Through the transport that clients use.
mod transport {
    use super::*;

    kdbus_conformance::conformance_tests!(|case| OverTransport(world(case)));
}
