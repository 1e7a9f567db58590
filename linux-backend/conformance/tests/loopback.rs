//! The conformance suite over the loop-back of the module.

use kdbus_conformance::CaseInfo;
use kdbus_conformance_cli::{LoopbackPlatform, SeamWorld};

fn world(case: &CaseInfo) -> SeamWorld<LoopbackPlatform> {
    // One case opens a thousand connections, in a process that it may share with others.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    SeamWorld::new(LoopbackPlatform::new(&case.needs()))
}

kdbus_conformance::conformance_tests!(world);
