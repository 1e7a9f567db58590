//! Calls past a real daemon of those who have no room left, who poll from outside, or who use a cookie twice.

mod common;

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use common::calls::{
    LONG, after, bus, call, called, carried, ends, hello, is_readable, meanwhile, name, pair, reply,
};
use common::{Bus, Client};
use kdbus_core::NodeName;
use kdbus_core::abi::{
    AttachFlags, Cmd, CmdRecv, Command, Errno, FLAG_NEGOTIATE, ITEM_HEADER, ItemType, ItemWriter, Msg,
    MsgFlags, NameFlags, RecvFlags, Vec as PayloadVec,
};
use kdbus_core::client::{CallError, Failure, Hello, Message, Outgoing, ReplyTo, Rule, Transport};
use zerocopy::IntoBytes;

#[test]
fn who_polls_from_outside_hears_of_what_came_while_a_call_was_waited_for() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let readable = || is_readable(&a);
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
    let (a, b) = (verbose(&bus, 2), verbose(&bus, 2));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    let (to, before) = (b.id(), carried(&a));
    let held = hold_all(&b, &a);
    let count = held.len() as u64;
    let serving = meanwhile(b, move |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        for number in 0..20 {
            b.send(&Message::to(caller.id).payload(&SHORTEST).cookie(count + 2 + number)).unwrap();
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
fn a_reply_wakes_its_caller_whatever_came_by_the_same_lane_before_it_slept() {
    let bus = Bus::with(|config| {
        (config.capacity.lanes, config.capacity.lanes_per_user) = (64, 64);
        config.capacity.lanes_per_connection = 16;
    });
    // Few lanes, and so many that most are cold.
    for lanes in [2, 16] {
        let (a, b, c) = (verbose(&bus, lanes), verbose(&bus, 2), verbose(&bus, 2));
        a.transport().open_lane(b.id()).unwrap();
        for other in [&b, &c] {
            other.transport().open_lane(a.id()).unwrap();
        }
        hold_all(&c, &a);
        b.send(&Message::to(a.id()).payload(b"before").cookie(1)).unwrap();
        let to = b.id();
        let serving = meanwhile(b, |b| {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            // It sleeps by then.
            std::thread::sleep(Duration::from_millis(100));
            reply(b, caller, b"answer").unwrap();
            b.recv_blocking(LONG).expect("nobody has rung for the reply");
        });
        let answer = a.call_blocking(&Message::to(to).payload(b"question"), 6 * LONG).unwrap();
        assert_eq!(answer.payload(), b"answer");
        a.send(&Message::to(to)).unwrap();
        serving.join().unwrap();
    }
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
    let readable = || is_readable(&a);
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
    let (a, b) = (verbose(&bus, 1), verbose(&bus, 1));
    a.transport().open_lane(b.id()).unwrap();
    let _transport = b.transport();
    let readable = || is_readable(&b);
    assert!(!readable());
    let held = hold_all(&a, &b);
    assert!(!readable(), "there is no room for the rest");
    give_back(&b, &held);
    assert!(readable());
    assert_eq!(ends(&b).len(), 1);
    assert!(!readable());
}

/// Bytes of payload in the shortest messages: as many as clients get into a lane take all places that its receiver has.
const SHORTEST: [u8; 8] = [7; 8];

/// A client that says much of itself, and asks as much of others: messages from one to another take more room than in a lane,
/// so that who holds all of a lane has no room for the next.
fn verbose(bus: &Bus, lanes: usize) -> Client {
    let shows =
        AttachFlags::TIMESTAMP | AttachFlags::CREDS | AttachFlags::PIDS | AttachFlags::CONN_DESCRIPTION;
    let description = NodeName::parse("a.client.that.has.quite.a.lot.to.say.of.what.it.is.and.does").unwrap();
    hello(bus, lanes, &Hello::new().description(description).ask_metadata(shows))
}

/// Sends by lane, and holds what comes, until what was sent last finds no room. Returns what is held.
fn hold_all(from: &Client, to: &Client) -> Vec<u64> {
    let mut held = vec![];
    loop {
        let cookie = held.len() as u64 + 1;
        from.send(&Message::to(to.id()).payload(&SHORTEST).cookie(cookie)).unwrap();
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
    let (a, b) = (verbose(bus, 1), verbose(bus, 1));
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
                // Nobody answers word of a dropped call; kdbusd has it before the next command of the same client.
                b.transport().handle().stats(a.id()).unwrap();
            }
            // It sees that here, and has no place for it before it receives one of the others.
            look(&a);
            let all: Vec<_> = ends(&a).into_iter().filter(|(from, ..)| *from == 0).collect();
            assert_eq!(all, [(0, 7, kind)], "callee dies: {dies}, messages: {counts:?}");
        }
    }
}

/// Leaves, by a command with these flags.
fn byebye(client: &Client, flags: u64) -> Result<(), Failure> {
    let mut command = Cmd { size: size_of::<Cmd>() as u64, flags, ..Cmd::default() };
    client.transport().command(Command::Byebye, command.as_mut_bytes())
}

#[test]
fn who_holds_all_the_room_there_is_may_leave() {
    let bus = bus();
    let (a, b) = (hello(&bus, 1, &Hello::new()), hello(&bus, 1, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let payload = [7; 20_000];
    let send = || a.send(&Message::to(b.id()).payload(&payload).cookie(1)).unwrap();
    let receive = || assert!(b.transport().recv(RecvFlags::empty(), 0).unwrap().message.is_some());
    for _ in 0..4 {
        send();
        receive();
    }
    send();
    assert_eq!(byebye(&b, 0), Err(Failure::Refused(Errno::EBUSY)), "one waits");
    receive();
    assert_eq!(carried(&b), 0, "all came by lane");
    assert_eq!(byebye(&b, 0), Ok(()));
}

#[test]
fn nobody_leaves_before_the_ends_of_all_calls_are_received() {
    for timed_out in [true, false] {
        for looks in [false, true] {
            let bus = bus();
            let (a, b) = pair(&bus);
            call(&a, &b, 7, if timed_out { 20 } else { 60_000 });
            if timed_out {
                std::thread::sleep(Duration::from_millis(40));
            } else {
                assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
            }
            if looks {
                look(&a);
            }
            assert_eq!(byebye(&a, 0), Err(Failure::Refused(Errno::EBUSY)), "{timed_out} {looks}");
            assert_eq!(byebye(&a, 1), Err(Failure::Refused(Errno::EINVAL)));
            assert_eq!(byebye(&a, FLAG_NEGOTIATE), Ok(()));
            let kind = if timed_out { ItemType::REPLY_TIMEOUT } else { ItemType::REPLY_DEAD };
            assert_eq!(ends(&a), [(0, 7, kind)]);
            assert_eq!(byebye(&a, 0), Ok(()));
            assert_eq!(byebye(&a, 0), Err(Failure::Broken(Errno::ECONNRESET)));
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
    from.transport()
        .send(&mut Outgoing { message: &mut message, payload: &[&SHORTEST], fds: &[], begun: None })
        .unwrap();
}

#[test]
fn the_reply_to_an_older_call_with_the_same_cookie_is_not_taken_for_that_of_one_that_is_waited_for() {
    // Its time is over by then, or kdbusd has brought its reply, or it waits: then there may be two replies at kdbusd.
    for (millis, is_answered) in [(20, true), (60_000, true), (60_000, false)] {
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
        let older = called(&b);
        if is_answered {
            reply(&b, older, &LARGE).unwrap();
        }
        std::thread::sleep(Duration::from_millis(40));
        look(&a);
        let before = carried(&b);
        let serving = serve(b, &[6; 100_000]);
        let answer = a.call_blocking(&question, LONG).unwrap();
        assert_eq!(answer.payload()[0], 6, "that is the reply to the older one");
        drop(answer);
        let (b, same) = serving.join().unwrap();
        assert_eq!((same, carried(&b) == before), (cookie, is_answered));
        if !is_answered {
            reply(&b, older, &LARGE).unwrap();
        }
        assert_eq!(ends(&a), [(b.id(), cookie, ItemType::PAYLOAD_OFF)]);
    }
}

#[test]
fn who_holds_all_the_room_there_is_learns_that_the_reply_found_none() {
    let bus = bus();
    let (a, b) = (verbose(&bus, 1), verbose(&bus, 1));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    let (to, before) = (b.id(), carried(&a));
    let held = hold_all(&b, &a);
    let serving = meanwhile(b, move |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, caller, &SHORTEST).unwrap();
        let next = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, next, &SHORTEST).unwrap();
        caller
    });
    let question = Message::to(to).payload(b"question");
    let error = a.call_blocking(&question, LONG).map(|_| ()).unwrap_err();
    assert_eq!(error.errno(), Errno::EXFULL);
    give_back(&a, &held);
    assert_eq!(a.call_blocking(&question, LONG).unwrap().payload(), SHORTEST);
    let (b, caller) = serving.join().unwrap();
    assert!(reply(&b, caller, b"again").is_err(), "one is enough");
    assert_eq!(ends(&a), [(b.id(), 0, ItemType::PAYLOAD_OFF)], "what was sent before, and no reply");
    assert_eq!(carried(&a), before, "all of it went by lane");
}

#[test]
fn a_call_of_the_callee_that_finds_no_room_is_not_taken_for_its_reply() {
    let bus = bus();
    let (a, b) = (verbose(&bus, 2), verbose(&bus, 2));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    let (to, before) = (b.id(), carried(&a));
    let _held = hold_all(&b, &a);
    let serving = meanwhile(b, |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        // The first call that it waits for itself: both name it alike.
        let question = Message::to(caller.id).payload(&SHORTEST);
        let error = b.call_blocking(&question, Duration::from_millis(100)).map(|_| ()).unwrap_err();
        assert_eq!(error, CallError::TimedOut);
        reply(b, caller, b"answer").unwrap();
    });
    let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
    assert_eq!(answer.payload(), b"answer");
    serving.join().unwrap();
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
    from.transport().send(&mut Outgoing { message: &mut message, payload: &[&SHORTEST], fds, begun: None })
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
        let [a, b, c] = [(); 3].map(|()| verbose(&bus, 2));
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
