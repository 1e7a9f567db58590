//! Messages that clients send past a real daemon: applications notice nothing.

mod common;

use std::os::fd::{AsFd, BorrowedFd};
use std::thread::JoinHandle;
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::abi::{
    AttachFlags, CmdRecv, Command, Errno, ITEM_HEADER, ItemType, ItemWriter, Items, Msg, MsgFlags, NameFlags,
    RecvFlags, Timestamp, Vec as PayloadVec,
};
use kdbus_core::client::{
    CallError, Connection, Failure, Hello, Message, Outgoing, Part, ReplyTo, Rule, Transport,
};
use kdbus_core::{Instant, NodeName, WellKnownName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::{FromBytes, IntoBytes};

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

fn hello(bus: &Bus, lanes: usize, hello: &Hello<'_>) -> Client {
    let transport = bus.options().lanes(lanes).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, hello).unwrap()
}

/// Messages that kdbusd has carried to a connection.
fn carried(client: &Client) -> u64 {
    client.transport().handle().stats(client.id()).unwrap().stats.received
}

fn name() -> WellKnownName<'static> {
    WellKnownName::parse("org.example.Service").unwrap()
}

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
fn what_another_sender_sends_later_comes_later_however_many_wait() {
    let bus = bus();
    let (first, second, to) =
        (hello(&bus, 4, &Hello::new()), hello(&bus, 4, &Hello::new()), hello(&bus, 4, &Hello::new()));
    first.transport().open_lane(to.id()).unwrap();
    second.transport().open_lane(to.id()).unwrap();
    // As many as a lane has room for.
    for cookie in 1..=600 {
        first.send(&Message::to(to.id()).cookie(cookie)).unwrap();
    }
    second.send(&Message::to(to.id()).cookie(601)).unwrap();
    assert_eq!(carried(&to), 0, "all of it goes by lane");
    let held: Vec<_> = (0..601).map(|_| to.try_recv().unwrap().unwrap()).collect();
    assert!(held.iter().map(|message| message.cookie()).eq(1..=601));
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

/// Two connections with open lanes both ways.
fn pair(bus: &Bus) -> (Client, Client) {
    let hello = |lanes| hello(bus, lanes, &Hello::new().pool_size(4 << 20));
    let (a, b) = (hello(2), hello(2));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    (a, b)
}

fn after(millis: u64) -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    Instant::from_nanos((now + Duration::from_millis(millis)).as_nanos() as u64)
}

fn call(from: &Client, to: &Client, cookie: u64, millis: u64) {
    let message = Message::to(to.id()).payload(b"question").cookie(cookie).expect_reply(after(millis));
    from.send(&message).unwrap();
}

fn reply(from: &Client, to: ReplyTo, payload: &[u8]) -> Result<(), String> {
    from.send(&Message::reply(to).payload(payload)).map(|_| ()).map_err(|error| format!("{error:?}"))
}

/// Receives a call, and whom to answer.
fn called(by: &Client) -> ReplyTo {
    by.try_recv().unwrap().expect("it was called").reply_to()
}

/// The raw messages that wait: sender, cookie of the call that it is about, kind of the first item.
fn ends(client: &Client) -> Vec<(u64, u64, ItemType)> {
    let transport = client.transport();
    let next = || {
        let info = transport.recv(RecvFlags::empty(), 0).unwrap().message?.info;
        let bytes = transport.slice(info.offset, info.msg_size).unwrap();
        let header = Msg::read_from_prefix(bytes).unwrap().0;
        let items = &bytes[Msg::SIZE..header.size as usize];
        let kind = Items::new(items).next().unwrap().unwrap().kind;
        transport.free(info.offset);
        Some((header.src_id, header.cookie_reply(), kind))
    };
    std::iter::from_fn(next).collect()
}

#[test]
fn calls_and_replies_go_past_the_daemon() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = (carried(&a), carried(&b));
    for cookie in 1..2000 {
        call(&a, &b, cookie, 10_000);
        reply(&b, called(&b), b"answer").unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (cookie, &b"answer"[..]));
    }
    assert_eq!((carried(&a), carried(&b)), before);
}

#[test]
fn a_reply_takes_the_other_way_where_it_has_to() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let large = vec![5; 100_000];
    for cookie in 1..20 {
        call(&a, &b, cookie, 10_000);
        let to = called(&b);
        reply(&b, to, &large).unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (cookie, &large[..]));
        drop(answer);
        assert_eq!(
            reply(&b, to, b"again"),
            reply(&b, ReplyTo { cookie: 999, ..to }, b"never"),
            "one is enough"
        );
        assert!(ends(&a).is_empty());
    }
    assert!(carried(&a) >= 19);
}

#[test]
fn a_call_by_lane_is_answered_with_descriptors() {
    let bus = bus();
    let (a, b) = (hello(&bus, 4, &Hello::new().accept_fds()), hello(&bus, 4, &Hello::new()));
    for round in 0..20_u64 {
        call(&a, &b, 1 + round, 10_000);
        let file = tempfile::tempfile().unwrap();
        let (to, fds) = (called(&b), [file.as_fd()]);
        let with_file = |to| b.send(&Message::reply(to).payload(b"answer").fds(&fds)).map(drop);
        with_file(to).unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (1 + round, &b"answer"[..]));
        assert_eq!(answer.fd_count(), 1);
        assert!(with_file(to).is_err(), "one is enough");
    }
    assert_eq!(carried(&a), 20);
}

#[test]
fn a_call_by_lane_times_out_once_and_its_reply_comes_too_late() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let kernel = 0;
    call(&a, &b, 7, 20);
    call(&a, &b, 8, 60_000);
    let to = called(&b);
    assert!(ends(&a).is_empty());
    let told = loop {
        a.transport().wait(None).unwrap();
        let told = ends(&a);
        if !told.is_empty() {
            break told;
        }
    };
    assert_eq!(told, [(kernel, 7, ItemType::REPLY_TIMEOUT)]);
    assert!(reply(&b, to, b"late").is_err());
    reply(&b, called(&b), b"in time").unwrap();
    assert_eq!(ends(&a), [(b.id(), 8, ItemType::PAYLOAD_OFF)]);
    // A deadline that has passed is told at once.
    call(&a, &b, 9, 0);
    assert_eq!(ends(&a), [(kernel, 9, ItemType::REPLY_TIMEOUT)]);
}

#[test]
fn who_polls_from_outside_hears_of_the_time_out() {
    let bus = bus();
    let (a, b) = pair(&bus);
    assert!(ends(&a).is_empty());
    let readable = |timeout: Option<&Timespec>| {
        poll(&mut [PollFd::new(a.transport(), PollFlags::IN)], timeout).unwrap() == 1
    };
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert!(!readable(Some(&now)));
    call(&a, &b, 7, 20);
    assert!(readable(None));
    let told = loop {
        let ends = ends(&a);
        if !ends.is_empty() {
            break ends;
        }
        assert!(readable(None));
    };
    assert_eq!(told, [(0, 7, ItemType::REPLY_TIMEOUT)]);
    assert!(!readable(Some(&now)));
}

#[test]
fn the_calls_of_the_dead_end_once_and_after_what_they_have_answered() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let id = b.id();
    for cookie in 1..=3 {
        call(&a, &b, cookie, 60_000);
    }
    reply(&b, called(&b), b"first").unwrap();
    let _received = called(&b);
    drop(b);
    a.transport().wait(Some(after(5000))).unwrap();
    let told = loop {
        let told = ends(&a);
        if !told.is_empty() {
            break told;
        }
        a.transport().wait(Some(after(5000))).unwrap();
    };
    let mut rest = told.clone();
    while rest.len() < 3 {
        a.transport().wait(Some(after(5000))).unwrap();
        rest.extend(ends(&a));
    }
    rest[1..].sort_by_key(|(_, cookie, _)| *cookie);
    let dead = |cookie| (0, cookie, ItemType::REPLY_DEAD);
    assert_eq!(rest, [(id, 1, ItemType::PAYLOAD_OFF), dead(2), dead(3)]);
    assert!(ends(&a).is_empty());
}

#[test]
fn a_dropped_call_ends_at_once_and_is_answered_by_nobody() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = carried(&b);
    call(&a, &b, 7, 60_000);
    call(&a, &b, 8, 60_000);
    assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    assert_eq!(carried(&b), before, "it came by lane");
    a.transport().wait(Some(after(5000))).unwrap();
    assert_eq!(ends(&a), [(0, 7, ItemType::REPLY_DEAD)]);
    assert!(reply(&b, ReplyTo { id: a.id(), cookie: 7, priority: 0 }, b"never").is_err());
    reply(&b, called(&b), b"the other").unwrap();
    assert_eq!(ends(&a), [(b.id(), 8, ItemType::PAYLOAD_OFF)]);
}

/// What `b` does in a thread of its own, while the caller waits.
fn meanwhile<R: Send + 'static>(
    b: Client,
    act: impl FnOnce(&Client) -> R + Send + 'static,
) -> JoinHandle<(Client, R)> {
    std::thread::spawn(move || {
        let made = act(&b);
        (b, made)
    })
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn calls_that_are_waited_for_go_past_the_daemon_and_the_queue() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = (carried(&a), carried(&b));
    let (to, rounds) = (b.id(), 500_u64);
    let serving = meanwhile(b, move |b| {
        for round in 0..rounds {
            let call = b.recv_blocking(LONG).unwrap();
            let caller = call.reply_to();
            if round < 20 {
                b.send(&Message::to(caller.id).payload(b"besides").cookie(round + 1)).unwrap();
            }
            reply(b, caller, call.payload()).unwrap();
        }
    });
    for round in 0..rounds {
        let question = round.to_ne_bytes();
        let answer = a.call_blocking(&Message::to(to).payload(&question), LONG).unwrap();
        assert_eq!(answer.payload(), &question[..]);
    }
    let (b, ()) = serving.join().unwrap();
    assert_eq!((carried(&a), carried(&b)), before, "none of them went through the daemon");
    for round in 0..20 {
        assert_eq!(a.try_recv().unwrap().unwrap().cookie(), round + 1);
    }
    assert!(a.try_recv().unwrap().is_none());
}

#[test]
fn who_waits_for_a_reply_keeps_the_calls_of_others_that_do_the_same() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let c = hello(&bus, 4, &Hello::new());
    c.transport().open_lane(a.id()).unwrap();
    let (to, caller, before) = (b.id(), a.id(), (carried(&a), carried(&b)));
    let serving = meanwhile(b, move |b| {
        let call = b.recv_blocking(LONG).unwrap();
        // Meanwhile, the first call that `c` waits for comes to the one who waits for its own first one.
        let calling = meanwhile(c, move |c| {
            let answer = c.call_blocking(&Message::to(caller).payload(b"besides"), LONG / 4).unwrap();
            assert_eq!(answer.payload(), b"answer");
        });
        std::thread::sleep(Duration::from_millis(200));
        reply(b, call.reply_to(), b"done").unwrap();
        calling
    });
    let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
    assert_eq!(answer.payload(), b"done");
    let call = a.try_recv().unwrap().expect("it came meanwhile");
    assert_eq!(call.payload(), b"besides");
    reply(&a, call.reply_to(), b"answer").unwrap();
    let (b, calling) = serving.join().unwrap();
    calling.join().unwrap();
    assert_eq!((carried(&a), carried(&b)), before, "none of them went through the daemon");
}

#[test]
fn a_call_that_is_waited_for_takes_its_reply_from_the_daemon_if_it_has_to() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let (to, before) = (b.id(), carried(&b));
    let serving = meanwhile(b, |b| {
        for _ in 0..20 {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            // Through the daemon both: the one stays queued, and the other passes it.
            b.send(&Message::to(caller.id).payload(&vec![1; 100_000]).cookie(9)).unwrap();
            reply(b, caller, &vec![5; 100_000]).unwrap();
            assert!(reply(b, caller, b"again").is_err());
        }
    });
    for _ in 0..20 {
        let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
        assert_eq!(answer.payload(), &vec![5; 100_000]);
        drop(answer);
        assert_eq!(a.try_recv().unwrap().unwrap().cookie(), 9);
        assert!(a.try_recv().unwrap().is_none());
    }
    let (b, ()) = serving.join().unwrap();
    assert_eq!(carried(&b), before, "the calls went by lane");
    assert!(carried(&a) >= 40);
}

#[test]
fn a_call_that_is_waited_for_times_out_once_and_its_reply_comes_too_late() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = carried(&b);
    for _ in 0..3 {
        let deadline = after(20);
        let error = a.call_blocking(&Message::to(b.id()).payload(b"question"), deadline).unwrap_err();
        assert_eq!(error, CallError::TimedOut);
        assert!(a.now() >= deadline);
        assert!(reply(&b, called(&b), b"late").is_err());
    }
    assert!(ends(&a).is_empty());
    assert_eq!(carried(&b), before, "it went by lane");
    // One whose deadline has passed is not made.
    let error = a.call_blocking(&Message::to(b.id()).payload(b"question"), a.now()).unwrap_err();
    assert_eq!(error, CallError::TimedOut);
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn a_call_that_is_waited_for_ends_with_its_callee() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let call = |to| a.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ()).unwrap_err();
    let to = b.id();
    let serving = meanwhile(b, |b| {
        b.transport().wait(None).unwrap();
        assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    });
    assert_eq!(call(to), CallError::PeerDied);
    let (b, ()) = serving.join().unwrap();
    let leaving = std::thread::spawn(move || {
        drop(b.recv_blocking(LONG).unwrap());
        drop(b);
    });
    assert_eq!(call(to), CallError::PeerDied);
    leaving.join().unwrap();
    assert!(ends(&a).is_empty());
}

#[test]
fn who_answers_and_dies_has_answered_who_waits() {
    let bus = bus();
    for _ in 0..50 {
        let (a, b) = pair(&bus);
        let to = b.id();
        let serving = std::thread::spawn(move || {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            reply(&b, caller, b"last").unwrap();
        });
        let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
        assert_eq!(answer.payload(), b"last");
        serving.join().unwrap();
    }
}

#[test]
fn who_waits_learns_that_the_reply_does_not_fit() {
    let bus = bus();
    let (a, b) = (hello(&bus, 2, &Hello::new().pool_size(4096)), hello(&bus, 2, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let (to, before) = (b.id(), carried(&b));
    let serving = meanwhile(b, |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        (reply(b, caller, &[0; 4000]).is_err(), reply(b, caller, b"small").is_err())
    });
    let error = a.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ()).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOBUFS);
    let (b, refused) = serving.join().unwrap();
    assert_eq!((refused, carried(&b)), ((true, true), before));
}

#[test]
fn a_call_by_lane_can_be_canceled() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let (to, before) = (b.id(), carried(&b));
    let (cancel, canceler) = rustix::pipe::pipe().unwrap();
    let question = Message::to(to).payload(b"question");
    let serving = meanwhile(b, move |b| {
        let first = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, first, b"in time").unwrap();
        let second = b.recv_blocking(LONG).unwrap().reply_to();
        rustix::io::write(&canceler, b"!").unwrap();
        (second, canceler)
    });
    let answer = a.call_cancelable(&question, LONG, cancel.as_fd()).unwrap();
    assert_eq!(answer.payload(), b"in time");
    drop(answer);
    let error = a.call_cancelable(&question, LONG, cancel.as_fd()).map(|_| ()).unwrap_err();
    assert_eq!(error, CallError::Canceled);
    let (b, (second, canceler)) = serving.join().unwrap();
    assert!(reply(&b, second, b"late").is_err());
    rustix::io::read(&cancel, &mut [0; 8]).unwrap();
    // Nobody can cancel any more: the call goes on.
    drop(canceler);
    let serving = meanwhile(b, |b| reply(b, b.recv_blocking(LONG).unwrap().reply_to(), b"anyway"));
    let answer = a.call_cancelable(&question, LONG, cancel.as_fd()).unwrap();
    assert_eq!(answer.payload(), b"anyway");
    assert_eq!(carried(&serving.join().unwrap().0), before, "all of them went by lane");
    assert!(ends(&a).is_empty());
}

#[test]
fn who_polls_from_outside_hears_of_what_came_while_a_call_was_waited_for() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let readable =
        || poll(&mut [PollFd::new(a.transport(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1;
    assert!(!readable());
    let to = b.id();
    let serving = meanwhile(b, |b| {
        for besides in [false, true] {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            if besides {
                b.send(&Message::to(caller.id).payload(b"besides").cookie(1)).unwrap();
            }
            reply(b, caller, b"answer").unwrap();
        }
    });
    for besides in [false, true] {
        drop(a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap());
        assert_eq!(readable(), besides);
    }
    assert_eq!(a.try_recv().unwrap().unwrap().cookie(), 1);
    assert!(a.try_recv().unwrap().is_none() && !readable());
    serving.join().unwrap();
}

#[test]
fn the_reply_that_is_waited_for_passes_by_messages_without_room() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    let (to, before) = (b.id(), carried(&a));
    let held = hold_all(&b, &a);
    let count = held.len() as u64;
    let serving = meanwhile(b, move |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        for number in 0..20 {
            b.send(&Message::to(caller.id).payload(&BESIDES).cookie(count + 2 + number)).unwrap();
        }
        reply(b, caller, b"answer").unwrap();
    });
    let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
    assert_eq!(answer.payload(), b"answer");
    assert!(a.try_recv().unwrap().is_none(), "nothing else has room");
    give_back(&a, &held);
    for number in 0..21 {
        assert_eq!(a.try_recv().unwrap().unwrap().cookie(), count + 1 + number);
    }
    assert!(a.try_recv().unwrap().is_none(), "the reply is not received once more");
    serving.join().unwrap();
    assert_eq!(carried(&a), before, "all of it went by lane");
}

#[test]
fn a_reply_may_bring_descriptors_to_a_call_by_lane() {
    let bus = bus();
    let taking = Hello::new().accept_fds();
    let (a, b) = (hello(&bus, 2, &taking), hello(&bus, 2, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let (to, before) = (b.id(), carried(&b));
    let serving = meanwhile(b, |b| {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        for _ in 0..2 {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            b.send(&Message::reply(caller).payload(b"with one").fds(&[reader.as_fd()])).unwrap();
        }
        // To a caller that takes none.
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        b.send(&Message::reply(caller).fds(&[reader.as_fd()])).is_err()
    });
    let mut answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
    assert!(answer.take_fd(0).is_some());
    assert_eq!(answer.payload(), b"with one");
    let mut answer = a.call(&Message::to(to).payload(b"question"), LONG).wait().unwrap();
    assert!(answer.take_fd(0).is_some());
    assert_eq!(answer.payload(), b"with one");
    let c = hello(&bus, 2, &Hello::new());
    c.transport().open_lane(to).unwrap();
    let error = c.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ()).unwrap_err();
    assert_eq!(error.errno(), Errno::EREMOTEIO);
    let (b, refused) = serving.join().unwrap();
    assert!(refused);
    assert_eq!(carried(&b), before, "the calls went by lane");
}

#[test]
fn who_is_polled_from_outside_can_cancel_a_call_while_another_one_times_out() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let readable =
        || poll(&mut [PollFd::new(a.transport(), PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1;
    assert!(!readable());
    let (cancel, canceler) = rustix::pipe::pipe().unwrap();
    call(&a, &b, 7, 20);
    let to = b.id();
    let serving = meanwhile(b, move |b| {
        for _ in 0..2 {
            let _received = b.recv_blocking(LONG).unwrap();
        }
        // The time of the first one is over by then.
        std::thread::sleep(Duration::from_millis(100));
        rustix::io::write(&canceler, b"!").unwrap();
        canceler
    });
    let question = Message::to(to).payload(b"question");
    let before = a.transport().waits().slept;
    let error = a.call_cancelable(&question, Duration::from_secs(5), cancel.as_fd()).map(|_| ()).unwrap_err();
    assert_eq!(error, CallError::Canceled);
    let slept = a.transport().waits().slept - before;
    assert!(slept < 50, "it slept {slept} times, which is not sleeping");
    assert_eq!(ends(&a), [(0, 7, ItemType::REPLY_TIMEOUT)]);
    serving.join().unwrap();
}

#[test]
fn who_polls_from_outside_hears_of_what_finds_room_when_something_is_given_back() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let transport = b.transport();
    let readable =
        || poll(&mut [PollFd::new(transport, PollFlags::IN)], Some(&Timespec::default())).unwrap() == 1;
    assert!(!readable());
    let held = hold_all(&a, &b);
    assert!(!readable(), "there is no room for the rest");
    give_back(&b, &held);
    assert!(readable());
    assert_eq!(ends(&b).len(), 1);
    assert!(!readable());
}

/// Of these, a receiver has room for fewer than for small messages.
const BESIDES: [u8; 1000] = [7; 1000];

/// Sends by lane, and holds what comes, until what was sent last finds no room. Returns what is held.
fn hold_all(from: &Client, to: &Client) -> Vec<u64> {
    let mut held = vec![];
    loop {
        let cookie = held.len() as u64 + 1;
        from.send(&Message::to(to.id()).payload(&BESIDES).cookie(cookie)).unwrap();
        match to.transport().recv(RecvFlags::empty(), 0).unwrap().message {
            Some(message) => held.push(message.info.offset),
            None => return held,
        }
    }
}

fn give_back(to: &Client, held: &[u64]) {
    for offset in held {
        to.transport().free(*offset);
    }
}

/// A caller that has no room for what comes before the reply to its call 7, which is sent, and what it holds.
fn full_before_the_reply(bus: &Bus, millis: u64) -> (Client, Client, Vec<u64>) {
    let (a, b) = (hello(bus, 1, &Hello::new()), hello(bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    call(&a, &b, 7, millis);
    let to = called(&b);
    let before = carried(&a);
    let held = hold_all(&b, &a);
    reply(&b, to, b"answer").unwrap();
    assert_eq!(carried(&a), before, "all of it went by lane");
    (a, b, held)
}

#[test]
fn who_answers_and_dies_has_answered_whoever_has_no_room() {
    let bus = bus();
    let (a, b, held) = full_before_the_reply(&bus, 60_000);
    let id = b.id();
    drop(b);
    assert!(ends(&a).is_empty());
    give_back(&a, &held);
    let told = ends(&a);
    assert_eq!(told.len(), 2);
    assert_eq!(told[1], (id, 7, ItemType::PAYLOAD_OFF));
}

#[test]
fn a_reply_in_time_stays_one_while_its_caller_has_no_room() {
    let bus = bus();
    let (a, b, held) = full_before_the_reply(&bus, 100);
    let end = after(1500);
    while after(0) < end {
        let flags = RecvFlags::USE_PRIORITY | RecvFlags::PEEK;
        assert!(a.transport().recv(flags, i64::MAX).unwrap().message.is_none());
        std::thread::sleep(Duration::from_millis(5));
    }
    give_back(&a, &held);
    let told = ends(&a);
    assert_eq!(told.len(), 2);
    assert_eq!(told[1], (b.id(), 7, ItemType::PAYLOAD_OFF));
}

/// Bytes of payload in the shortest messages: as many as clients get into a lane take all places that its receiver has.
const SHORTEST: [u8; 8] = [7; 8];

/// Fills a lane into `to`, which receives nothing of it. Returns how many messages came by it.
fn take_all_places(from: &Client, to: &Client) -> usize {
    let before = carried(to);
    let mut count = 0;
    loop {
        from.send(&Message::to(to.id()).payload(&SHORTEST).cookie(count as u64 + 1)).unwrap();
        if carried(to) > before {
            return count;
        }
        count += 1;
    }
}

/// Looks at what came in, and receives nothing.
fn look(client: &Client) {
    let by_urgency = RecvFlags::PEEK | RecvFlags::USE_PRIORITY;
    let found = client.transport().recv(by_urgency, i64::MIN).unwrap();
    assert!(found.message.is_none());
}

#[test]
fn who_has_no_room_to_hear_of_an_end_hears_of_it_once_there_is() {
    // Its time is over, or it is dropped, or its callee is gone.
    for kind in [ItemType::REPLY_TIMEOUT, ItemType::REPLY_DEAD] {
        for dies in [false, true] {
            let (timed_out, bus) = (kind == ItemType::REPLY_TIMEOUT, bus());
            if timed_out && dies {
                continue;
            }
            let ((a, b), c) = (pair(&bus), hello(&bus, 1, &Hello::new()));
            call(&a, &b, 7, if timed_out { 20 } else { 60_000 });
            b.transport().open_lane(a.id()).unwrap();
            c.transport().open_lane(a.id()).unwrap();
            let counts = [&b, &c].map(|from| take_all_places(from, &a));
            look(&a);
            if timed_out {
                std::thread::sleep(Duration::from_millis(40));
            } else if dies {
                drop(b);
                while c.transport().handle().stats(a.id()).is_err() {}
            } else {
                assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
            }
            // It sees that here, and has no place for it before it receives one of the others.
            look(&a);
            let all: Vec<_> = ends(&a).into_iter().filter(|(from, ..)| *from == 0).collect();
            assert_eq!(all, [(0, 7, kind)], "callee dies: {dies}, messages: {counts:?}");
        }
    }
}

/// Too large for a lane: it goes through the daemon.
static LARGE: [u8; 100_000] = [5; 100_000];

fn call_by_bus(from: &Client, to: &Client, cookie: u64) {
    let before = carried(to);
    let message = Message::to(to.id()).payload(&LARGE).cookie(cookie).expect_reply(after(60_000));
    from.send(&message).unwrap();
    assert_eq!(carried(to), before + 1);
}

/// Calls to `callee`, who has received all, that a connection has open at the daemon.
fn open_by_bus(client: &Client, callee: &Client) -> u64 {
    // Before it says that there is nothing, the daemon looks at what was received.
    let mut command = CmdRecv { size: size_of::<CmdRecv>() as u64, ..CmdRecv::default() };
    let nothing = callee.transport().handle().command(Command::Recv.request(), command.as_mut_bytes());
    assert_eq!(nothing.map(|_| ()), Err(Failure::Refused(Errno::EAGAIN)));
    client.transport().handle().stats(client.id()).unwrap().stats.calls
}

#[test]
fn a_reply_answers_the_newest_call_with_its_cookie_whichever_way_each_one_went() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let other = hello(&bus, 1, &Hello::new());
    let at_bus = || open_by_bus(&a, &b);
    // By lane, by the daemon, by lane, by the daemon; and a call of somebody else that has nothing to do with it.
    for round in 0..2 {
        call(&a, &b, 7, 60_000);
        call_by_bus(&a, &b, 7);
        if round == 1 {
            // This one is there before the newest is known.
            assert_eq!(called(&b).cookie, 7);
        }
        call(&a, &b, 7, 60_000);
        call_by_bus(&other, &b, 7);
        call_by_bus(&a, &b, 7);
        while b.try_recv().unwrap().is_some() {}
        let to = ReplyTo { id: a.id(), cookie: 7, priority: 0 };
        for left in [1, 1, 0, 0] {
            reply(&b, to, b"answer").unwrap();
            assert_eq!(at_bus(), left, "round {round}");
        }
        assert!(reply(&b, to, b"one too many").is_err());
        let all = ends(&a);
        assert_eq!(all, [(b.id(), 7, ItemType::PAYLOAD_OFF); 4]);
        reply(&b, ReplyTo { id: other.id(), ..to }, b"answer").unwrap();
    }
}

#[test]
fn a_reply_answers_the_newest_call_though_nobody_has_looked_at_it() {
    let bus = bus();
    let (a, b) = pair(&bus);
    call(&a, &b, 7, 60_000);
    let to = called(&b);
    call(&a, &b, 8, 60_000);
    look(&b);
    call_by_bus(&a, &b, 7);
    reply(&b, to, b"answer").unwrap();
    assert_eq!(ends(&a), [(b.id(), 7, ItemType::PAYLOAD_OFF)]);
    // The older one still waits, and the newer one does not.
    assert_eq!(b.try_recv().unwrap().unwrap().cookie(), 8);
    assert_eq!((b.try_recv().unwrap().unwrap().cookie(), open_by_bus(&a, &b)), (7, 0));
    reply(&b, to, b"answer").unwrap();
    assert!(reply(&b, to, b"one too many").is_err());
}

/// Calls with a cookie that the client keeps for calls of its own.
fn raw_call(from: &Client, to: &Client, cookie: u64, millis: u64) {
    let vec = PayloadVec { size: 8, address: 64 };
    let header = Msg {
        size: (Msg::SIZE + ITEM_HEADER + size_of::<PayloadVec>()) as u64,
        flags: MsgFlags::EXPECT_REPLY.bits(),
        dst_id: to.id(),
        payload_type: 1,
        cookie,
        timeout_or_reply: after(millis).as_nanos(),
        ..Msg::default()
    };
    let mut message = vec![0; header.size as usize];
    let mut writer = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
    writer.bytes(ItemType::PAYLOAD_VEC, vec.as_bytes()).unwrap();
    message[..Msg::SIZE].copy_from_slice(header.as_bytes());
    from.transport().send(&mut Outgoing { message: &mut message, payload: &[&SHORTEST], fds: &[] }).unwrap();
}

#[test]
fn the_reply_to_an_older_call_with_the_same_cookie_is_not_taken_for_that_of_one_that_is_waited_for() {
    // Whether the older one is over by then.
    for (millis, by_lane) in [(20, true), (60_000, false)] {
        let bus = bus();
        let (a, b) = pair(&bus);
        let to = b.id();
        let serve = |b: Client, payload: &'static [u8]| {
            meanwhile(b, move |b| {
                let caller = b.recv_blocking(LONG).unwrap().reply_to();
                reply(b, caller, payload).unwrap();
                caller.cookie
            })
        };
        let question = Message::to(to).payload(b"question");
        let serving = serve(b, b"answer");
        drop(a.call_blocking(&question, LONG).unwrap());
        let (b, cookie) = serving.join().unwrap();
        // That of the next one.
        let cookie = cookie + 1;
        raw_call(&a, &b, cookie, millis);
        reply(&b, called(&b), &LARGE).unwrap();
        std::thread::sleep(Duration::from_millis(40));
        look(&a);
        let before = carried(&b);
        let serving = serve(b, &[6; 100_000]);
        let answer = a.call_blocking(&question, LONG).unwrap();
        assert_eq!(answer.payload()[0], 6, "that is the reply to the older one");
        drop(answer);
        let (b, same) = serving.join().unwrap();
        assert_eq!((same, carried(&b) == before), (cookie, by_lane));
        assert_eq!(ends(&a), [(b.id(), cookie, ItemType::PAYLOAD_OFF)]);
    }
}

#[test]
fn who_holds_all_the_room_there_is_learns_that_the_reply_found_none() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    let (to, before) = (b.id(), carried(&a));
    let held = hold_all(&b, &a);
    let serving = meanwhile(b, move |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, caller, &BESIDES).unwrap();
        let next = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, next, &BESIDES).unwrap();
        caller
    });
    let question = Message::to(to).payload(b"question");
    let error = a.call_blocking(&question, LONG).map(|_| ()).unwrap_err();
    assert_eq!(error.errno(), Errno::EXFULL);
    give_back(&a, &held);
    assert_eq!(a.call_blocking(&question, LONG).unwrap().payload(), BESIDES);
    let (b, caller) = serving.join().unwrap();
    assert!(reply(&b, caller, b"again").is_err(), "one is enough");
    assert_eq!(ends(&a), [(b.id(), 0, ItemType::PAYLOAD_OFF)], "what was sent before, and no reply");
    assert_eq!(carried(&a), before, "all of it went by lane");
}

#[test]
fn a_call_is_answered_before_it_is_received() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let to = ReplyTo { id: a.id(), cookie: 7, priority: 0 };
    let before = carried(&a);
    call(&a, &b, 7, 60_000);
    reply(&b, to, b"answer").unwrap();
    assert_eq!((ends(&a), carried(&a)), (vec![(b.id(), 7, ItemType::PAYLOAD_OFF)], before));
    assert!(reply(&b, to, b"again").is_err());
    assert_eq!(called(&b), to, "it is received all the same");
    assert!(reply(&b, to, b"again").is_err());
    // The newest one is answered, though an older one was received.
    call(&a, &b, 7, 60_000);
    assert_eq!(called(&b), to);
    call(&a, &b, 8, 60_000);
    call(&a, &b, 7, 60_000);
    reply(&b, to, b"answer").unwrap();
    assert_eq!(ends(&a), [(b.id(), 7, ItemType::PAYLOAD_OFF)]);
    assert_eq!(called(&b).cookie, 8);
    assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    look(&a);
    assert_eq!(ends(&a), [], "the one that was dropped is answered");
    reply(&b, to, b"answer").unwrap();
    assert_eq!(ends(&a), [(b.id(), 7, ItemType::PAYLOAD_OFF)]);
    // One by the daemon is newer.
    call(&a, &b, 7, 60_000);
    call_by_bus(&a, &b, 7);
    reply(&b, to, b"answer").unwrap();
    while b.try_recv().unwrap().is_some() {}
    assert_eq!(open_by_bus(&a, &b), 0);
    reply(&b, to, b"answer").unwrap();
    assert_eq!(ends(&a), [(b.id(), 7, ItemType::PAYLOAD_OFF); 2]);
}

/// Replies to the owner of the name.
fn reply_by_name(from: &Client, cookie: u64, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
    let mut message = vec![0; 512];
    let mut writer = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
    writer.bytes(ItemType::DST_NAME, format!("{}\0", name()).as_bytes()).unwrap();
    let vec = PayloadVec { size: 8, address: 64 };
    writer.bytes(ItemType::PAYLOAD_VEC, vec.as_bytes()).unwrap();
    if !fds.is_empty() {
        writer.bytes(ItemType::FDS, 0_i32.as_bytes()).unwrap();
    }
    let size = writer.len();
    let header = Msg { size: size as u64, payload_type: 1, timeout_or_reply: cookie, ..Msg::default() };
    message[..Msg::SIZE].copy_from_slice(header.as_bytes());
    message.truncate(size);
    from.transport().send(&mut Outgoing { message: &mut message, payload: &[&SHORTEST], fds })
}

#[test]
fn a_reply_to_a_call_by_lane_may_be_addressed_to_the_name_of_its_caller() {
    let bus = bus();
    let with_files = Hello::new().accept_fds();
    let (other, a, b) =
        (hello(&bus, 2, &Hello::new()), hello(&bus, 2, &with_files), hello(&bus, 2, &Hello::new()));
    a.acquire(name(), NameFlags::empty()).unwrap();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    for from in [&other, &a] {
        from.transport().open_lane(b.id()).unwrap();
        b.transport().open_lane(from.id()).unwrap();
    }
    for fds in [&[][..], &[reader.as_fd()]] {
        // Somebody else has called with that cookie, before and after.
        call(&other, &b, 7, 60_000);
        call(&a, &b, 7, 60_000);
        let all = [called(&b), called(&b)];
        assert_eq!(all.map(|to| to.id), [other.id(), a.id()]);
        reply_by_name(&b, 7, fds).unwrap();
        assert_eq!(ends(&a), [(b.id(), 7, ItemType::DST_NAME)]);
        assert_eq!(reply_by_name(&b, 7, fds), Err(Failure::Refused(Errno::EBADSLT)));
        assert_eq!(ends(&other), []);
        reply(&b, all[0], b"answer").unwrap();
        assert_eq!(ends(&other), [(b.id(), 7, ItemType::PAYLOAD_OFF)]);
        // One by the daemon.
        call_by_bus(&a, &b, 7);
        reply_by_name(&b, 7, fds).unwrap();
        assert_eq!(ends(&a), [(b.id(), 7, ItemType::DST_NAME)]);
        assert_eq!(b.try_recv().unwrap().unwrap().cookie(), 7);
    }
}

#[test]
fn that_a_call_has_no_reply_is_told_before_its_callee_is_said_to_be_gone() {
    // With room for that, without, and with messages of the dead that find none.
    for full in [None, Some(true), Some(false)] {
        let bus = bus();
        let (a, b, c) =
            (hello(&bus, 2, &Hello::new()), hello(&bus, 2, &Hello::new()), hello(&bus, 2, &Hello::new()));
        for from in [&b, &c] {
            from.transport().open_lane(a.id()).unwrap();
        }
        a.transport().open_lane(b.id()).unwrap();
        a.add_match(1, &[Rule::IdRemove(None)]).unwrap();
        let id = b.id();
        call(&a, &b, 7, 60_000);
        let held = match full {
            None => vec![],
            Some(true) => {
                for from in [&b, &c] {
                    take_all_places(from, &a);
                }
                look(&a);
                vec![]
            }
            Some(false) => hold_all(&b, &a),
        };
        drop(b);
        // kdbusd has served that when it answers.
        assert!(c.transport().handle().stats(id).is_err());
        look(&a);
        if !held.is_empty() {
            assert_eq!(ends(&a), []);
            give_back(&a, &held);
        }
        let all = ends(&a);
        let told: Vec<_> = all.iter().filter(|(from, ..)| *from == 0).copied().collect();
        assert_eq!(told, [(0, 7, ItemType::REPLY_DEAD), (0, 0, ItemType::ID_REMOVE)], "{full:?}");
        let last = all.iter().rposition(|(from, ..)| *from == id);
        let dead = all.iter().position(|(from, ..)| *from == 0);
        assert!(last < dead, "what it has sent comes first: {full:?}");
        assert_eq!(ends(&a), []);
    }
}
