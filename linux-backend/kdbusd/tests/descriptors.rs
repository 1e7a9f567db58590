//! Descriptors of a whole process, which is why this test has one to itself.

mod common;

use std::os::fd::AsFd;

use common::Bus;
use kdbus_core::client::{Hello, Message};

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn no_descriptor_stays_behind() {
    let bus = Bus::start();
    drop(bus.connect());
    let counted = || {
        // Answered after every hang-up that came before it.
        drop(bus.connect());
        let probe = bus.connect();
        probe.send(&Message::to(probe.id())).unwrap();
        open_descriptors()
    };
    // What is closed apart from the loop is closed a little later.
    let settled = || {
        let counts = (0..50).map(|_| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            counted()
        });
        counts.min().unwrap()
    };
    let before = settled();
    for round in 0..20 {
        let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let fds = [reader.as_fd(), writer.as_fd()];
        a.send(&Message::to(b.id()).fds(&fds)).unwrap();
        a.send(&Message::to(b.id()).fds(&fds)).unwrap();
        if round % 2 == 0 {
            drop(b.try_recv().unwrap().unwrap());
        }
        a.send(&Message::to(b.id()).payload(&vec![1; 100_000])).unwrap();
        assert!(a.send(&Message::to(9_999_999).fds(&fds)).is_err());
    }
    assert_eq!(settled(), before);
}
