//! Messages that clients send past a real daemon: applications notice nothing.

mod common;

use std::os::fd::BorrowedFd;
use std::time::Duration;

use common::Client;
use common::calls::{after, bus, carried, hello, meanwhile, name, pair};
use kdbus_core::NodeName;
use kdbus_core::abi::{AttachFlags, ITEM_HEADER, ItemType, Items, Msg, NameFlags, RecvFlags, Timestamp};
use kdbus_core::client::{Hello, Message, Part, Transport};

type Plain<'a> = Message<'a, BorrowedFd<'a>>;

/// A received message to the last byte, its times aside.
fn received(client: &Client) -> Vec<u8> {
    let transport = client.transport();
    let info = transport.recv(RecvFlags::empty(), 0).unwrap().message.expect("it was sent").info;
    let mut bytes = transport.slice(info.offset, info.msg_size).unwrap().to_vec();
    transport.free(info.offset);
    let size = u64::from_ne_bytes(*bytes.first_chunk().unwrap()) as usize;
    let mut times = 0;
    for item in Items::new(&bytes.clone()[Msg::SIZE..size]).map(Result::unwrap) {
        if item.kind == ItemType::TIMESTAMP {
            let stamp: Timestamp = item.record().unwrap();
            assert!(stamp.seqnum > 0 && stamp.realtime_ns > stamp.monotonic_ns);
            let at = Msg::SIZE + item.at + ITEM_HEADER;
            bytes[at..at + size_of::<Timestamp>()].fill(0);
            times += 1;
        }
    }
    assert_eq!(times, 1);
    bytes
}

#[test]
fn a_message_is_the_same_either_way() {
    let bus = bus();
    let kinds = AttachFlags::TIMESTAMP
        | AttachFlags::CREDS
        | AttachFlags::PIDS
        | AttachFlags::AUXGROUPS
        | AttachFlags::CONN_DESCRIPTION;
    let with = Hello::new().ask_metadata(kinds);
    let (a, b) = (
        hello(&bus, 4, &Hello::new().description(NodeName::parse("sender").unwrap())),
        hello(&bus, 4, &with),
    );
    b.acquire(name(), NameFlags::empty()).unwrap();
    let (head, tail) = ([7; 13], vec![9; 1000]);
    let parts = [Part::Bytes(&tail[..]), Part::Bytes(&head[..])];
    let messages: [Plain<'_>; 6] = [
        Message::to(b.id()),
        Message::to(b.id()).payload(&head).cookie(5).priority(-3),
        Message::to_name(name()).payload(&tail).parts(&parts),
        Message::to_name(name()).parts(&parts).payload_type(1),
        Message::to(b.id()).payload(&tail),
        Message::to_name(name()).payload(&head),
    ];
    let exchange = || {
        messages.map(|message| {
            let message = message.cookie(11);
            a.send(&message).unwrap();
            received(&b)
        })
    };
    let by_daemon = exchange();
    a.transport().open_lane_to_name(name()).unwrap();
    let before = carried(&b);
    assert_eq!(exchange(), by_daemon);
    assert_eq!(carried(&b), before, "none of them went through the daemon");
}

#[test]
fn a_lane_is_opened_by_sending() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    for _ in 0..40 {
        a.send(&Message::to(b.id()).payload(b"x")).unwrap();
        b.try_recv().unwrap().unwrap();
    }
    assert!(carried(&b) < 20);
}

#[test]
fn what_finds_no_room_in_a_lane_is_received_in_its_place() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new().pool_size(4 << 20)));
    a.transport().open_lane(b.id()).unwrap();
    // Larger than the lane, every now and then.
    let large = vec![1; 100_000];
    for number in 0..40_u64 {
        let payload = if number % 7 == 3 { &large[..] } else { b"small" };
        a.send(&Message::to(b.id()).payload(payload).cookie(number + 1)).unwrap();
    }
    let through = carried(&b);
    assert!((1..40).contains(&through), "both ways were used: {through}");
    for number in 0..40_u64 {
        assert_eq!(b.try_recv().unwrap().unwrap().cookie(), number + 1);
    }
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn a_stream_of_a_sender_that_waits_for_room_comes_whole_and_in_order() {
    const LONG: Duration = Duration::from_secs(60);
    let bus = bus();
    let (a, b) = pair(&bus);
    let to = b.id();
    let receiving = meanwhile(b, |b| {
        for cookie in 1..=3000 {
            // Fast for a while, then slower than its sender cares to wait.
            let pause = if cookie % 1000 == 999 { 7 } else { 0 };
            std::thread::sleep(Duration::from_millis(pause));
            assert_eq!(b.recv_blocking(LONG).unwrap().cookie(), cookie);
        }
    });
    for cookie in 1..=3000 {
        let message = Message::to(to).payload(&[7; 64]).cookie(cookie);
        a.send_when_room_blocking(&message, LONG).unwrap();
    }
    let (b, ()) = receiving.join().unwrap();
    assert!(carried(&b) < 3000, "most of them went by lane");
}

#[test]
fn what_another_sender_sends_later_comes_later_however_many_wait() {
    what_is_sent_later_comes_later(&Hello::new());
}

#[test]
fn so_it_does_where_each_message_shows_more_than_it_brings() {
    let shows = AttachFlags::TIMESTAMP
        | AttachFlags::CREDS
        | AttachFlags::PIDS
        | AttachFlags::AUXGROUPS
        | AttachFlags::CONN_DESCRIPTION;
    what_is_sent_later_comes_later(&Hello::new().ask_metadata(shows));
}

/// With as many messages as a lane has room for.
fn what_is_sent_later_comes_later(receives: &Hello<'_>) {
    let bus = bus();
    let sends = Hello::new().description(NodeName::parse("a.sender.with.quite.a.long.description").unwrap());
    let (first, second, to) = (hello(&bus, 4, &sends), hello(&bus, 4, &sends), hello(&bus, 4, receives));
    first.transport().open_lane(to.id()).unwrap();
    second.transport().open_lane(to.id()).unwrap();
    for cookie in 1..=600 {
        first.send(&Message::to(to.id()).cookie(cookie)).unwrap();
    }
    second.send(&Message::to(to.id()).cookie(601)).unwrap();
    assert_eq!(carried(&to), 0, "all of it goes by lane");
    let held: Vec<_> = (0..601).map(|_| to.try_recv().unwrap().unwrap()).collect();
    assert!(held.iter().map(|message| message.cookie()).eq(1..=601));
}

#[test]
fn so_it_does_whatever_the_receiver_holds() {
    let bus = bus();
    let [first, second, to] = [(); 3].map(|()| hello(&bus, 2, &Hello::new()));
    first.transport().open_lane(to.id()).unwrap();
    second.transport().open_lane(to.id()).unwrap();
    let large = [7; 20_000];
    let mut held = vec![];
    for cookie in 1..=10 {
        first.send(&Message::to(to.id()).payload(&large).cookie(cookie)).unwrap();
        second.send(&Message::to(to.id()).payload(b"later").cookie(100 + cookie)).unwrap();
        for expected in [cookie, 100 + cookie] {
            let message = to.try_recv().unwrap().unwrap();
            assert_eq!(message.cookie(), expected);
            held.push(message);
        }
    }
    assert!((1..10).contains(&carried(&to)), "the lane was used, and had no room for all");
    assert!(held.iter().step_by(2).all(|message| message.payload() == large));
    let before = carried(&to);
    held.clear();
    for cookie in 1..=10 {
        first.send(&Message::to(to.id()).payload(&large).cookie(cookie)).unwrap();
        assert_eq!(to.try_recv().unwrap().unwrap().cookie(), cookie);
    }
    assert_eq!(carried(&to), before, "it has room again");
}

#[test]
fn a_full_lane_and_a_full_queue_refuse_as_ever() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let mut sent = 0;
    let refusal = loop {
        match a.send(&Message::to(b.id()).payload(&[0; 4000]).cookie(sent + 1)) {
            Ok(_) => sent += 1,
            Err(error) => break error,
        }
        assert!(sent < 10_000);
    };
    assert!(format!("{refusal}").contains("room") || sent > 16, "{refusal}");
    for number in 0..sent {
        assert_eq!(b.try_recv().unwrap().unwrap().cookie(), number + 1);
    }
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn priority_peek_and_drop_work_on_lanes() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    for (cookie, priority) in [(1, 5), (2, -1), (3, 0)] {
        a.send(&Message::to(b.id()).payload(b"p").cookie(cookie).priority(priority)).unwrap();
    }
    let transport = b.transport();
    let peeked = transport.recv(RecvFlags::PEEK | RecvFlags::USE_PRIORITY, 0).unwrap().message.unwrap().info;
    let cookie = |bytes: &[u8]| u64::from_ne_bytes(bytes[48..56].try_into().unwrap());
    let first = transport.slice(peeked.offset, peeked.msg_size).unwrap();
    assert_eq!(cookie(first), 2);
    transport.free(peeked.offset);
    assert!(transport.slice(peeked.offset, peeked.msg_size).is_none(), "it was given back");
    assert!(transport.recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    let rest: Vec<u64> =
        std::iter::from_fn(|| b.try_recv().unwrap().map(|message| message.cookie())).collect();
    assert_eq!(rest, [2, 3], "the first in the queue was dropped");
    a.send(&Message::to(b.id()).payload(b"p").cookie(4)).unwrap();
    assert!(transport.recv(RecvFlags::DROP | RecvFlags::PEEK, 0).unwrap().message.is_none());
    assert!(b.try_recv().unwrap().is_none(), "dropping wins over peeking");
}

#[test]
fn a_lane_of_the_dead_makes_place_for_the_next_sender() {
    let bus = bus();
    let b = hello(&bus, 1, &Hello::new());
    for round in 0..20_u64 {
        let a = hello(&bus, 1, &Hello::new());
        let patience = after(5000);
        while let Err(error) = a.transport().open_lane(b.id()) {
            assert!(a.now() < patience, "round {round}: {error}");
            // It notices the end of the one before when it sleeps the next time.
            assert!(b.recv_blocking(Duration::from_millis(1)).is_err());
        }
        a.send(&Message::to(b.id()).payload(b"x").cookie(round + 1)).unwrap();
        drop(a);
        assert_eq!(b.recv_blocking(Duration::from_secs(5)).unwrap().cookie(), round + 1);
    }
}
