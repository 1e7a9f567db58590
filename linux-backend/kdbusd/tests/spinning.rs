//! Receivers that look before they sleep. What they did is counted; nothing here depends on how long it took.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::Instant;
use kdbus_core::client::{Connection, Hello, Message, Transport};
use kdbus_linux::local::Waits;

const SECOND: Duration = Duration::from_secs(1);

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

fn client(bus: &Bus, lanes: usize, spin: Duration) -> Client {
    let transport = bus.options().lanes(lanes).spin(spin).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, &Hello::new()).unwrap()
}

/// Sends `messages` to a thread that waits for each of them.
fn converse(bus: &Bus, lanes: usize, spin: Duration, messages: u64) -> Waits {
    let sender = client(bus, lanes, Duration::ZERO);
    let waiting = AtomicU64::new(0);
    let id = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let receiver = client(bus, lanes, spin);
            id.store(receiver.id(), Ordering::Release);
            for number in 1..=messages {
                waiting.store(number, Ordering::Release);
                assert_eq!(receiver.recv_blocking(60 * SECOND).unwrap().cookie(), number);
            }
            receiver.transport().waits()
        });
        for number in 1..=messages {
            while waiting.load(Ordering::Acquire) < number {
                std::thread::yield_now();
            }
            sender.send(&Message::to(id.load(Ordering::Acquire)).cookie(number)).unwrap();
        }
        receiver.join().unwrap()
    })
}

#[test]
fn who_looks_for_a_message_that_comes_does_not_sleep() {
    let bus = bus();
    for lanes in [0, 2] {
        let waits = converse(&bus, lanes, SECOND, 200);
        assert!(waits.spun > 0 && waits.slept == 0, "{lanes} lanes: {waits:?}");
    }
}

#[test]
fn who_is_told_not_to_look_sleeps_each_time() {
    let bus = bus();
    let waits = converse(&bus, 2, Duration::ZERO, 200);
    assert_eq!((waits.spun, waits.missed), (0, 0));
    let idle = client(&bus, 2, Duration::ZERO);
    for _ in 0..50 {
        idle.transport().wait(Some(Instant::ZERO)).unwrap();
    }
    assert_eq!(idle.transport().waits(), Waits { spun: 0, missed: 0, slept: 50 });
}

#[test]
fn who_waits_for_long_stops_looking() {
    let bus = bus();
    let idle = client(&bus, 2, Duration::from_micros(50));
    for _ in 0..64 {
        let deadline = idle.now().after(Duration::from_millis(1));
        idle.transport().wait(Some(deadline)).unwrap();
    }
    let waits = idle.transport().waits();
    assert_eq!((waits.spun, waits.slept), (0, 64));
    assert!((1..=8).contains(&waits.missed), "{waits:?}");
}

#[test]
fn who_looks_notices_the_end_of_the_daemon() {
    let mut bus = bus();
    let client = client(&bus, 2, SECOND);
    bus.stop();
    assert!(client.transport().wait(None).is_err());
}

#[test]
fn who_looks_is_not_kept_from_what_is_no_message() {
    let bus = bus();
    let (caller, callee) = (client(&bus, 2, SECOND), client(&bus, 2, Duration::ZERO));
    caller.transport().open_lane(callee.id()).unwrap();
    // It ends at its deadline, and at the death of its callee, by the caller's own doing.
    let soon = caller.now().after(Duration::from_millis(5));
    caller.send(&Message::to(callee.id()).cookie(1).expect_reply(soon)).unwrap();
    assert_eq!(caller.recv_blocking(60 * SECOND).unwrap().cookie_reply(), 1);
    let late = caller.now().after(60 * SECOND);
    caller.send(&Message::to(callee.id()).cookie(2).expect_reply(late)).unwrap();
    drop(callee);
    assert_eq!(caller.recv_blocking(60 * SECOND).unwrap().cookie_reply(), 2);
}

#[test]
fn who_looks_for_the_reply_to_a_blocking_call_does_not_sleep() {
    let bus = bus();
    let caller = client(&bus, 2, SECOND);
    let id = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let callee = client(&bus, 2, SECOND);
            id.store(callee.id(), Ordering::Release);
            for _ in 0..100 {
                let call = callee.recv_blocking(60 * SECOND).unwrap();
                callee.reply(call.reply_to(), call.payload()).unwrap();
            }
            assert_eq!(callee.transport().waits().slept, 0);
        });
        while id.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let id = id.load(Ordering::Acquire);
        caller.transport().open_lane(id).unwrap();
        for _ in 0..100 {
            let reply = caller.call_blocking(&Message::to(id).payload(b"echo"), 60 * SECOND).unwrap();
            assert_eq!(reply.payload(), b"echo");
        }
        let waits = caller.transport().waits();
        assert!(waits.spun > 0 && waits.slept == 0, "{waits:?}");
    });
}
