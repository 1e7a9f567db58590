//! The daemon dies: whoever talks, waits or only spins hears of it, and finds the next one.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Bus, Client};
use kdbus_core::WellKnownName;
use kdbus_core::abi::{Errno, NameFlags};
use kdbus_core::client::{CallError, Connection, Hello, Message};

/// Far beyond what anything here takes.
const STUCK: Duration = Duration::from_secs(20);

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

fn client(bus: &Bus) -> Client {
    Connection::with_capacities(bus.options().lanes(4).connect(&bus.name()).unwrap(), &Hello::new()).unwrap()
}

/// Two clients with lanes both ways that were used.
fn pair(bus: &Bus) -> (Client, Client) {
    let (a, b) = (client(bus), client(bus));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    for (from, to) in [(&a, &b), (&b, &a)] {
        from.send(&Message::to(to.id()).payload(b"x")).unwrap();
        assert_eq!(to.try_recv().unwrap().unwrap().payload(), b"x");
    }
    assert_eq!((a.transport().open_lanes(), b.transport().open_lanes()), (1, 1));
    (a, b)
}

#[test]
fn who_waits_for_a_lane_or_a_call_by_lane_hears_of_it() {
    let mut bus = bus();
    let (a, b) = pair(&bus);
    let (ready, begun) = std::sync::mpsc::channel();
    let id = b.id();
    let calling = thread::spawn(move || {
        let call = a.call(&Message::to(id).payload(b"held"), STUCK);
        ready.send(()).unwrap();
        call.wait().map(|_| ()).unwrap_err()
    });
    begun.recv().unwrap();
    let waiting = thread::spawn(move || {
        let _call = b.recv_blocking(STUCK).unwrap();
        b.recv_blocking(STUCK).map(|_| ()).unwrap_err()
    });
    // The call is under way, and nobody will answer it.
    thread::sleep(Duration::from_millis(20));
    bus.stop();
    assert!(matches!(calling.join().unwrap(), CallError::Broken(_)));
    assert_eq!(waiting.join().unwrap().errno(), Errno::ECONNRESET);
}

#[test]
fn who_only_sends_by_lane_or_only_looks_notices_too() {
    let mut bus = bus();
    let (a, b) = pair(&bus);
    let id = b.id();
    bus.stop();
    let began = Instant::now();
    let refused = loop {
        match a.send(&Message::to(id).payload(b"into the void")) {
            Ok(_) => assert!(began.elapsed() < STUCK),
            Err(error) => break error,
        }
    };
    assert!(refused.is_broken());
    let ended = loop {
        match b.try_recv() {
            Ok(_) => assert!(began.elapsed() < STUCK),
            Err(error) => break error,
        }
    };
    assert_eq!(ended.errno(), Errno::ECONNRESET);
    // And ever after.
    assert!(a.send(&Message::to(id)).unwrap_err().is_broken() && b.try_recv().is_err());
}

#[test]
fn names_and_lanes_are_there_again_after_a_restart() {
    let mut bus = bus();
    let (mut a, mut b) = pair(&bus);
    let name = WellKnownName::parse("org.example.Service").unwrap();
    b.acquire(name, NameFlags::empty()).unwrap();
    bus.restart();
    for client in [&mut a, &mut b] {
        assert!(client.try_recv().is_err() || client.recv_blocking(STUCK).is_err());
        let transport = bus.options().lanes(4).connect(&bus.name()).unwrap();
        client.reconnect(transport, |refused| panic!("{refused:?}")).unwrap();
    }
    a.transport().open_lane_to_name(name).unwrap();
    a.send(&Message::to_name(name).payload(b"again")).unwrap();
    assert_eq!(b.recv_blocking(STUCK).unwrap().payload(), b"again");
    assert_eq!(a.transport().open_lanes(), 1);
}
