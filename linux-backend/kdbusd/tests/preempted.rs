//! A caller that the others take its processor away from, the moment that they have something to do.

mod common;

use std::time::{Duration, Instant};

use common::calls::{bus, pair};
use kdbus_core::abi::RecvFlags;
use kdbus_core::client::{CallError, Message, Transport};
use kdbus_linux::rt::{Class, run_on, schedule};

const LONG: Duration = Duration::from_secs(10);

#[test]
fn a_call_that_is_dropped_before_its_caller_goes_on_ends_at_once() {
    let all = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..rustix::thread::CpuSet::MAX_CPU).find(|cpu| all.is_set(*cpu)).unwrap();
    if let Err(errno) = run_on(cpu).and_then(|()| schedule(Class::Fifo, 10)) {
        return println!("skipped: a call that is dropped at once: no real-time priority: {errno:?}");
    }
    // The daemon and the callee are as urgent as this thread is here.
    let bus = bus();
    let (caller, callee) = pair(&bus);
    let to = callee.id();
    let calls = 20;
    let dropping = std::thread::spawn(move || {
        for call in 0..calls {
            callee.transport().wait(None).unwrap();
            if call % 2 == 0 {
                // It sleeps by then. Whoever was woken asks for no ring before it sleeps again.
                std::thread::sleep(Duration::from_millis(20));
            }
            assert!(callee.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
        }
        callee
    });
    schedule(Class::Other, 0).unwrap();
    for call in 0..calls {
        let deadline = Instant::now() + LONG;
        let ended = caller.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ());
        assert_eq!(ended, Err(CallError::PeerDied));
        assert!(Instant::now() < deadline, "call {call} was slept over until its deadline");
    }
    dropping.join().unwrap();
}
