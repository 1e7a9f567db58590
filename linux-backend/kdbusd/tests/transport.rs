//! The local transport over a real daemon: sizes, orders and waits at their limits.

mod common;

use std::thread;
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::abi::Errno;
use kdbus_core::client::{
    CALL_TIMEOUT, CallError, Connection, Deadline, Failure, Hello, Message, RecvError, Request, Transport,
    block_on,
};
use kdbus_linux::local::{ConnectError, LocalTransport, SealedMemfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a pool that takes a message of a megabyte.
const LARGE: u64 = 8 << 20;

/// A client in a thread of its own that answers with what it was sent, until told to stop.
fn echo(bus: &Bus, last: &'static [u8]) -> (u64, thread::JoinHandle<()>) {
    let client = bus.hello(&Hello::new().pool_size(LARGE));
    let id = client.id();
    let answer = move |request: &mut Request<'_, LocalTransport>| {
        if request.payload() == last {
            request.stop();
        }
        let echo = request.payload().to_vec();
        request.reply(&echo)
    };
    (id, thread::spawn(move || client.serve_blocking(answer).unwrap()))
}

fn readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

/// Bytes that are different at each place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn to(client: &Client) -> Message<'_, BorrowedFd<'_>> {
    Message::to(client.id())
}

#[test]
fn payloads_of_every_size_come_back_as_they_were_sent() {
    let bus = Bus::start();
    let (id, service) = echo(&bus, b"");
    let client = bus.hello(&Hello::new().pool_size(LARGE));
    // Around the places where packets, pages and the staging file have their ends.
    for len in [1, 7, 8, 4095, 4096, 16_383, 16_384, 16_385, 65_536, 65_537, 1_000_000, 5, 120_000] {
        let sent = pattern(len);
        let answer = client.call_blocking(&Message::to(id).payload(&sent), CALL_TIMEOUT).unwrap();
        assert!(answer.payload() == sent, "{len}");
    }
    assert_eq!(client.call_blocking(&Message::to(id), CALL_TIMEOUT).unwrap().payload(), b"");
    service.join().unwrap();
}

#[test]
fn calls_without_waiting_in_the_transport_are_answered_too() {
    let bus = Bus::start();
    let (id, service) = echo(&bus, b"stop");
    let client = bus.connect();
    block_on(&client, async {
        let first = client.call(&Message::to(id).payload(b"first"), CALL_TIMEOUT);
        let second = client.call(&Message::to(id).payload(b"stop"), CALL_TIMEOUT);
        assert_eq!(second.await.unwrap().payload(), b"stop");
        assert_eq!(first.await.unwrap().payload(), b"first");
    })
    .unwrap();
    service.join().unwrap();
}

#[test]
fn many_more_messages_than_fit_the_pool_pass_through_it() {
    let bus = Bus::start();
    let sender = bus.connect();
    let receiver = bus.hello(&Hello::new().pool_size(1 << 16));
    let mut next = 0_u32;
    for number in 0..5_000_u32 {
        sender.send(&to(&receiver).payload(&number.to_ne_bytes())).unwrap();
        // Some wait, so that slots and slices are given back in another order than they were used.
        if number % 3 != 0 {
            for _ in 0..2 {
                let Some(message) = receiver.try_recv().unwrap() else { break };
                assert_eq!(message.payload(), next.to_ne_bytes());
                next += 1;
            }
        }
    }
    assert!(next > 4_900, "{next}");
}

#[test]
fn a_thread_that_waits_misses_nothing() {
    let bus = Bus::start();
    receive_in_order(&bus, bus.connect());
}

#[test]
fn messages_that_find_no_room_by_lane_are_not_overtaken_by_those_that_take_the_other_way() {
    // One lane has more messages than may wait at its receiver.
    let bus = Bus::start();
    let transport = bus.options().lanes(1).connect(&bus.name()).unwrap();
    receive_in_order(&bus, Connection::with_capacities(transport, &Hello::new()).unwrap());
}

/// Receives as many messages from a thread as that one sends, in their order.
fn receive_in_order(bus: &Bus, receiver: Client) {
    const MESSAGES: u32 = 5_000;
    let id = receiver.id();
    let sender = bus.connect();
    let sender = thread::spawn(move || {
        for number in 0..MESSAGES {
            let bytes = number.to_ne_bytes();
            // Here too a wake-up must not be missed: without one it would wait for ever.
            sender.send_when_room_blocking(&Message::to(id).payload(&bytes), Deadline::Never).unwrap();
        }
    });
    for number in 0..MESSAGES {
        let message = receiver.recv_blocking(PATIENCE).unwrap();
        assert_eq!(message.payload(), number.to_ne_bytes());
    }
    sender.join().unwrap();
    assert!(receiver.try_recv().unwrap().is_none());
}

#[test]
fn the_most_urgent_message_leaves_first_when_asked_for() {
    let bus = Bus::start();
    let (sender, receiver) = (bus.connect(), bus.connect());
    for (number, priority) in [3_i64, -7, 3, -7, 0].into_iter().enumerate() {
        sender.send(&to(&receiver).payload(&[number as u8]).priority(priority)).unwrap();
    }
    let urgent = |limit| receiver.try_recv_priority(limit).unwrap().map(|message| message.payload()[0]);
    assert_eq!((urgent(-8), urgent(0), urgent(0), urgent(0)), (None, Some(1), Some(3), Some(4)));
    let oldest = || receiver.try_recv().unwrap().map(|message| message.payload()[0]);
    assert_eq!((urgent(2), oldest(), oldest(), oldest()), (None, Some(0), Some(2), None));
}

#[test]
fn peeked_messages_stay_and_dropped_calls_end() {
    let bus = Bus::start();
    let (caller, receiver) = (bus.connect(), bus.connect());
    block_on(&caller, async {
        let call = caller.call(&to(&receiver).payload(b"x"), CALL_TIMEOUT);
        assert_eq!(receiver.peek().unwrap().unwrap().sender(), caller.id());
        assert_eq!(receiver.peek().unwrap().unwrap().sender(), caller.id());
        assert!(receiver.drop_next().unwrap());
        assert!(!receiver.drop_next().unwrap());
        assert_eq!(call.await.unwrap_err(), CallError::PeerDied);
    })
    .unwrap();
}

#[test]
fn messages_with_and_without_descriptors_keep_their_order() {
    let bus = Bus::start();
    let sender = bus.connect();
    let receiver = bus.hello(&Hello::new().accept_fds());
    let memfd = SealedMemfd::new(b"x").unwrap();
    for number in 0..12_u8 {
        let fds = [memfd.as_fd()];
        let fds = if number % 3 == 0 { &fds[..] } else { &[] };
        sender.send(&to(&receiver).payload(&[number]).fds(fds)).unwrap();
    }
    for number in 0..12 {
        let message = receiver.recv_blocking(PATIENCE).unwrap();
        assert_eq!((message.payload(), message.fd_count()), (&[number][..], usize::from(number % 3 == 0)));
    }
}

#[test]
fn the_descriptor_is_readable_while_something_waits() {
    let bus = Bus::start();
    let (sender, receiver) = (bus.connect(), bus.connect());
    assert!(!readable(receiver.transport()));
    sender.send(&to(&receiver).payload(b"1")).unwrap();
    sender.send(&to(&receiver).payload(b"2")).unwrap();
    assert!(readable(receiver.transport()));
    assert_eq!(receiver.try_recv().unwrap().unwrap().payload(), b"1");
    assert!(readable(receiver.transport()));
    assert_eq!(receiver.try_recv().unwrap().unwrap().payload(), b"2");
    assert!(receiver.try_recv().unwrap().is_none());
    assert!(!readable(receiver.transport()));
    assert_eq!(receiver.recv_blocking(Duration::from_millis(1)).unwrap_err(), RecvError::TimedOut);
}

#[test]
fn the_end_of_the_daemon_ends_everything() {
    let mut bus = Bus::start();
    let (idle, busy, waiting, calling) = (bus.connect(), bus.connect(), bus.connect(), bus.connect());
    let silent = bus.connect();
    let id = silent.id();
    assert!(!readable(idle.transport()));
    let waiting = thread::spawn(move || waiting.recv_blocking(Deadline::Never).map(|_| ()).unwrap_err());
    let calling = thread::spawn(move || {
        calling.call_blocking(&Message::to(id).payload(b"held"), CALL_TIMEOUT).map(|_| ()).unwrap_err()
    });
    // Once the call is there, its caller waits.
    let held = silent.recv_blocking(PATIENCE).unwrap();
    bus.stop();
    assert_eq!(waiting.join().unwrap().errno(), Errno::ECONNRESET);
    assert_eq!(calling.join().unwrap().errno(), Errno::ECONNRESET);
    assert!(readable(idle.transport()));
    let gone = Failure::Broken(Errno::ECONNRESET);
    for _ in 0..2 {
        assert_eq!(idle.transport().wait(None), Err(gone));
        assert_eq!(idle.try_recv().unwrap_err().errno(), Errno::ECONNRESET);
        assert!(busy.send(&to(&idle)).unwrap_err().is_broken());
    }
    assert_eq!(held.payload(), b"held", "what was received stays");
    assert!(matches!(bus.try_open(), Err(ConnectError::Missing(_))));
}

#[test]
fn without_a_bus_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0-system/bus");
    let error = LocalTransport::connect(path.to_str().unwrap()).unwrap_err();
    let expected = format!("no bus at {}: is kdbusd running? start it with `kdbusd`", path.display());
    assert_eq!(error.to_string(), expected);
}
