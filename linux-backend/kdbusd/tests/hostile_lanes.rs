//! Senders that write what they like into their lane. Each hurts its own lane only.

mod common;

use std::time::Duration;

use common::attacker::{Attacker, claim, message, now, reply};
use common::{Bus, Client, exchange};
use kdbus_core::abi::{AttachFlags, Errno, ItemType, Msg, MsgFlags, SendFlags};
use kdbus_core::channel::terms::VERDICT_AT;
use kdbus_core::channel::{CALL_WORDS, CallName, CallWord, LaneHead, Verdict, Words};
use kdbus_core::client::{Connection, Failure, Hello, Message, Monitor};
use kdbus_linux::local::wire::{Header, Kind};
use kdbusd::config::Bytes;
use rustix::process::Gid;
use rustix::thread::set_thread_groups;

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

fn client(bus: &Bus) -> Client {
    Connection::with_capacities(bus.options().lanes(4).connect(&bus.name()).unwrap(), &Hello::new()).unwrap()
}

/// That a lane of an honest sender works, and brings nothing but what it sent.
fn unharmed(bus: &Bus, victim: &Client) {
    let honest = client(bus);
    honest.transport().open_lane(victim.id()).unwrap();
    for cookie in 1..=5 {
        honest.send(&Message::to(victim.id()).payload(b"honest").cookie(cookie)).unwrap();
        let message = victim.recv_blocking(Duration::from_secs(5)).unwrap();
        assert_eq!((message.sender(), message.cookie()), (honest.id(), cookie));
    }
    drop(honest);
    // Before it sleeps, it puts new lanes in the place of those that nothing more comes by. A short wait that begins too late does
    // not sleep.
    let slept = victim.transport().waits().slept;
    while victim.transport().waits().slept == slept {
        assert!(victim.recv_blocking(Duration::from_millis(2)).is_err());
    }
}

#[test]
fn messages_that_the_bus_would_refuse_are_not_received() {
    type Change = fn(&mut Msg, &mut Vec<(ItemType, Vec<u8>)>);
    let changes: [Change; 14] = [
        |header, _| header.dst_id += 1,
        |header, _| header.dst_id = 0,
        |header, _| header.dst_id = u64::MAX,
        |header, _| header.src_id = 1 << 40,
        |header, _| header.payload_type = 0,
        |header, _| header.flags = 1 << 40,
        |header, _| header.flags = 1,
        |header, _| header.flags = MsgFlags::SIGNAL.bits(),
        |header, _| header.size = 9000,
        |header, _| header.size = 8,
        |_, items| items.push((ItemType::DST_NAME, b"not.mine\0".to_vec())),
        |_, items| items.push((ItemType::FDS, vec![0; 4])),
        |_, items| items[0].1[..8].copy_from_slice(&9_u64.to_ne_bytes()),
        |_, items| items[0].1[8..].fill(0),
    ];
    let bus = bus();
    for (number, change) in changes.into_iter().enumerate() {
        let victim = client(&bus);
        let mut attacker = Attacker::new(&bus, &victim);
        attacker.send(now(), 0, &message(victim.id(), |_, _| {}), b"harmless");
        assert_eq!(victim.recv_blocking(Duration::from_secs(5)).unwrap().payload(), b"harmless");
        attacker.send(now(), 0, &message(victim.id(), change), b"malicious"[..8].into());
        assert!(victim.try_recv().unwrap().is_none(), "change {number}");
        unharmed(&bus, &victim);
        // Given up for good, and there is no other one: each would cost the receiver time.
        let again = attacker.client.transport().handle().open_lane(victim.id(), &[]);
        assert_eq!(again.err(), Some(Failure::Refused(Errno::EOPNOTSUPP)));
        assert!(attacker.writer.reserve(LaneHead::default()).is_err());
    }
}

#[test]
fn misdeeds_of_many_pairs_let_no_other_pair_through() {
    let bus = bus();
    // More pairs than there are lanes, each with a receiver that says that its sender broke the rules.
    let accomplices: Vec<Client> = (0..6).map(|_| bus.connect_without_lanes()).collect();
    let mut pairs = 0;
    for to in &accomplices {
        for from in accomplices.iter().filter(|from| from.id() != to.id()) {
            let (to, from) = (to.transport().handle(), (from.transport().handle(), to.id()));
            let lane = to.bring_lane().unwrap();
            // Its answer comes when the lane is ready.
            let _ = to.command(0, &mut [0; 8]);
            from.0.open_lane(from.1, &[]).unwrap();
            to.drop_lane(lane).unwrap();
            pairs += 1;
        }
    }
    assert!(pairs > 16);
    let victim = client(&bus);
    for _ in 0..2 {
        let mut attacker = Attacker::new(&bus, &victim);
        attacker.send(u64::MAX, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
        unharmed(&bus, &victim);
        let again = attacker.client.transport().handle().open_lane(victim.id(), &[]);
        assert_eq!(again.err(), Some(Failure::Refused(Errno::EOPNOTSUPP)));
    }
}

#[test]
fn what_others_send_leaves_room_for_the_awaited_reply() {
    const LONG: Duration = Duration::from_secs(5);
    let bus = Bus::with(|config| {
        config.capacity.lanes = 16;
        config.memory.lane = Bytes(4096);
    });
    let transport = bus.options().lanes(4).connect(&bus.name()).unwrap();
    let hello = Hello::new().ask_metadata(AttachFlags::AUXGROUPS);
    let victim: Client = Connection::with_capacities(transport, &hello).unwrap();
    let callee = client(&bus);
    victim.transport().open_lane(callee.id()).unwrap();
    callee.transport().open_lane(victim.id()).unwrap();
    // Each message takes far more at its receiver than in its lane: groups count for the thread that connects.
    let many: Vec<Gid> = (5000..5064).map(Gid::from_raw).collect();
    if !std::thread::scope(|scope| scope.spawn(|| set_thread_groups(&many).is_ok()).join().unwrap()) {
        return println!("skipped: needs root for a client of many groups");
    }
    let connect = || {
        set_thread_groups(&many).unwrap();
        bus.connect_without_lanes()
    };
    let flooding: Vec<Attacker> = (0..3)
        .map(|_| {
            let flooder = std::thread::scope(|scope| scope.spawn(connect).join().unwrap());
            let mut attacker = Attacker::by(flooder, victim.id());
            let first = message(victim.id(), |_, _| {});
            let head = LaneHead { first: first.len() as u64, second: 8, key: now(), call: 0 };
            while attacker.writer.reserve(head).is_ok() {
                attacker.send(now(), 0, &first, &[0; 8]);
            }
            attacker
        })
        .collect();
    let id = callee.id();
    let serving = std::thread::spawn(move || {
        let question = callee.recv_blocking(LONG).unwrap().reply_to();
        callee.send(&Message::reply(question).payload(&[7; 3000])).unwrap();
        assert_eq!(callee.transport().handle().stats(callee.id()).unwrap().stats.sent, 0, "by lane");
        callee
    });
    let answer = victim.call_blocking(&Message::to(id).payload(b"question"), LONG).unwrap();
    assert_eq!((answer.sender(), answer.payload().len()), (id, 3000));
    drop(answer);
    let _callee = serving.join().unwrap();
    // None of the others was lost.
    let mut received = 0;
    while let Some(message) = victim.try_recv().unwrap() {
        assert!(flooding.iter().any(|attacker| attacker.client.id() == message.sender()));
        received += 1;
    }
    assert!(received > 3 * 20, "{received}");
}

#[test]
fn whoever_keeps_sending_does_not_hide_the_death_of_a_callee() {
    let bus = bus();
    let victim = client(&bus);
    let (first, second) = (client(&bus), client(&bus));
    let callees = [first.id(), second.id()];
    for (callee, cookie) in callees.into_iter().zip(1..) {
        victim.transport().open_lane(callee).unwrap();
        let question = Message::to(callee).payload(b"question").cookie(cookie);
        victim.send(&question.expect_reply(victim.now().after(Duration::from_secs(3600)))).unwrap();
    }
    let mut attacker = Attacker::new(&bus, &victim);
    drop((first, second));
    let first_part = message(victim.id(), |_, _| {});
    let mut dead = Vec::new();
    let give_up = now() + 20_000_000_000;
    while dead.len() < 2 && now() < give_up {
        // There is always something that came after the victim has begun to look.
        if attacker.writer.reserve(LaneHead { first: 512, ..LaneHead::default() }).is_ok() {
            attacker.send(now() + 900_000, 0, &first_part, &[0; 8]);
        }
        if let Some(message) = victim.try_recv().unwrap()
            && message.sender() == 0
        {
            dead.push(message.cookie_reply());
        }
    }
    dead.sort_unstable();
    assert_eq!(dead, [1, 2]);
}

#[test]
fn the_name_of_another_is_no_address() {
    let bus = bus();
    let victim = client(&bus);
    let mut attacker = Attacker::new(&bus, &victim);
    let to_name = |header: &mut Msg, items: &mut Vec<(ItemType, Vec<u8>)>| {
        header.dst_id = 0;
        items.push((ItemType::DST_NAME, b"some.name\0".to_vec()));
    };
    attacker.send(now(), 0, &message(victim.id(), to_name), &[0; 8]);
    assert!(victim.try_recv().unwrap().is_none());
    unharmed(&bus, &victim);
}

#[test]
fn keys_at_will_hold_up_their_own_lane_only() {
    let bus = bus();
    let victim = client(&bus);
    let mut attacker = Attacker::new(&bus, &victim);
    for key in [0, 1, now() / 2] {
        attacker.send(key, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
        assert_eq!(victim.try_recv().unwrap().unwrap().cookie(), 77);
    }
    attacker.send(u64::MAX, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
    assert!(victim.try_recv().unwrap().is_none(), "it says that it was not sent yet");
    unharmed(&bus, &victim);
}

#[test]
fn whoever_claims_to_be_older_on_and_on_does_not_hold_back_what_the_bus_shows() {
    let bus = bus();
    let (victim, honest) = (client(&bus), bus.connect_without_lanes());
    for steps in [0, 1] {
        let mut attacker = Attacker::new(&bus, &victim);
        let places = attacker.lane.count() / 12;
        let early = now();
        std::thread::sleep(Duration::from_millis(5));
        honest.send(&Message::to(victim.id()).payload(b"honest")).unwrap();
        let mut passed = 0;
        loop {
            // There is always one that says that it was sent before.
            attacker.send(early + steps * passed, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
            if victim.try_recv().unwrap().unwrap().sender() == honest.id() {
                break;
            }
            passed += 1;
            assert!(passed <= 2 * places as u64, "it never comes");
        }
        while victim.try_recv().unwrap().is_some() {}
    }
    unharmed(&bus, &victim);
}

#[test]
fn a_key_that_has_not_come_does_not_keep_its_receiver_awake() {
    let bus = bus();
    let victim = client(&bus);
    for far in [u64::MAX, now() + 60_000_000_000] {
        let mut attacker = Attacker::new(&bus, &victim);
        attacker.send(far, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
        let before = victim.transport().waits();
        let waited = victim.recv_blocking(Duration::from_millis(20));
        assert!(waited.is_err(), "it says that it was not sent yet");
        assert!(victim.transport().waits().slept > before.slept, "it sleeps");
        unharmed(&bus, &victim);
    }
}

#[test]
fn a_key_that_has_not_come_does_not_keep_who_waits_for_a_reply_awake() {
    let bus = bus();
    let (victim, silent) = (client(&bus), client(&bus));
    victim.transport().open_lane(silent.id()).unwrap();
    let mut attacker = Attacker::new(&bus, &victim);
    attacker.send(u64::MAX, 0, &message(victim.id(), |_, _| {}), &[0; 8]);
    let before = victim.transport().waits();
    let question = Message::to(silent.id()).payload(b"question");
    assert!(victim.call_blocking(&question, Duration::from_millis(20)).is_err(), "nobody answers");
    assert!(victim.transport().waits().slept > before.slept, "it sleeps");
    unharmed(&bus, &victim);
}

#[test]
fn a_lane_that_was_closed_stays_closed_whatever_its_sender_writes() {
    let bus = bus();
    let victim = client(&bus);
    let mut attacker = Attacker::new(&bus, &victim);
    attacker.send(now(), 0, &message(victim.id(), |_, _| {}), &[0; 8]);
    let open = attacker.lane.load(0);
    let monitor = Monitor::hello(bus.open(), &Hello::new()).unwrap();
    let first = message(victim.id(), |header, _| header.cookie = 78);
    assert!(attacker.writer.reserve(LaneHead::default()).is_err());
    // As its writer would: the message, then the control word, open and further on.
    let at = Verdict::from_word(open).tail;
    for (place, word) in [first.len() as u64, 8, now(), 0].into_iter().enumerate() {
        attacker.lane.store(16 + at as usize + place, word);
    }
    let further = Verdict { tail: at + 40, ..Verdict::from_word(open) };
    attacker.lane.store(0, further.word());
    attacker.ring();
    assert_eq!(victim.try_recv().unwrap().unwrap().cookie(), 77, "sent before");
    assert!(victim.try_recv().unwrap().is_none());
    assert!(!Verdict::from_word(attacker.page.load(VERDICT_AT)).is_open());
    drop(monitor);
    unharmed(&bus, &victim);
}

#[test]
fn replies_that_nobody_asked_for_are_not_received() {
    let bus = bus();
    let victim = client(&bus);
    let mut attacker = Attacker::new(&bus, &victim);
    let reply = |header: &mut Msg, _: &mut Vec<(ItemType, Vec<u8>)>| header.timeout_or_reply = 5;
    for call in [0, 1, 257, CallName { index: 3, number: 9 }.word(), u64::MAX] {
        attacker.send(now(), call, &message(victim.id(), reply), &[0; 8]);
        assert!(victim.try_recv().unwrap().is_none(), "{call:#x}");
    }
    // Words of calls at will: there are none that it could answer.
    for index in 0..CALL_WORDS {
        attacker.calls.store(index, u64::MAX);
        let _ = CallWord::new(&attacker.calls, index).end(9, kdbus_core::channel::CallState::Answered);
    }
    unharmed(&bus, &victim);
}

#[test]
fn whatever_stands_in_a_lane_while_it_is_read_the_receiver_goes_on() {
    let bus = bus();
    let victim = client(&bus);
    let mut seed = 0x1234_5678_9abc_def1_u64;
    for round in 0..40 {
        let mut attacker = Attacker::new(&bus, &victim);
        for number in 0..20 {
            attacker.send(now(), 0, &message(victim.id(), |header, _| header.cookie = number), &[7; 8]);
        }
        std::thread::scope(|scope| {
            let (lane, bell) = (&attacker.lane, &attacker.bell);
            let mut scramble = move || {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed
            };
            let scribbler = scope.spawn(move || {
                for _ in 0..2000 {
                    let at = if scramble() % 8 == 0 { 0 } else { scramble() as usize % lane.count() };
                    let open = Verdict { tail: scramble() % 512, ..Verdict::from_word(lane.load(0)) };
                    lane.store(at, if at == 0 { open.word() } else { scramble() >> (scramble() % 64) });
                    let _ = rustix::io::write(bell, &[1]);
                }
                seed
            });
            while !scribbler.is_finished() {
                while let Some(message) = victim.try_recv().unwrap() {
                    assert_eq!(message.sender(), attacker.client.id(), "round {round}");
                }
            }
            seed = scribbler.join().unwrap().wrapping_add(1);
        });
        while victim.try_recv().unwrap().is_some() {}
        drop(attacker);
        unharmed(&bus, &victim);
    }
}

#[test]
fn a_receiver_that_never_reads_does_not_hold_its_sender_up() {
    let bus = bus();
    let (lazy, honest) = (client(&bus), client(&bus));
    honest.transport().open_lane(lazy.id()).unwrap();
    let refused = (0..100_000).find_map(|_| honest.send(&Message::to(lazy.id()).payload(&[0; 64])).err());
    assert!(refused.is_some(), "its lane and its queue are bounded");
    unharmed(&bus, &honest);
}

#[test]
fn who_was_called_by_lane_answers_that_call_and_no_other() {
    let bus = bus();
    // A callee that says to kdbusd what it likes of the call that came to it. Its lane is kdbusd's first one, number 0.
    let callee = bus.connect_without_lanes();
    let handle = callee.transport().handle();
    let mut lane = handle.bring_lane().unwrap();
    let (caller, other) = (client(&bus), client(&bus));
    let _ = handle.command(0, &mut [0; 8]);
    caller.transport().open_lane(callee.id()).unwrap();
    let later = kdbus_core::Instant::from_nanos(now() + 60_000_000_000);
    for (to, cookie) in [(callee.id(), 5), (other.id(), 9)] {
        caller.send(&Message::to(to).payload(b"question").cookie(cookie).expect_reply(later)).unwrap();
    }
    let call = lane.peek().unwrap().expect("it came by lane").call;
    let answer = |cookie| claim(&callee, 0, call, &reply(caller.id(), cookie), SendFlags::empty());
    assert_eq!(answer(9), Err(Errno::EBADSLT), "that one was asked of somebody else");
    assert!(caller.try_recv().unwrap().is_none());
    assert_eq!(answer(5), Ok(()), "its own is still open");
    let reply = caller.try_recv().unwrap().unwrap();
    assert_eq!((reply.sender(), reply.cookie_reply()), (callee.id(), 5));
    assert_eq!(answer(5), Err(Errno::EBADSLT), "and ends once");
}

#[test]
fn numbers_that_a_lane_claims_are_shown_and_hurt_nobody() {
    use kdbus_linux::local::pairs::{Pair, Route};
    let bus = bus();
    let victim = client(&bus);
    let mut attacker = Attacker::new(&bus, &victim);
    let ask = |sender: u64| {
        let mut pairs = [Pair { sender, ..Pair::default() }];
        victim.transport().handle().pairs(victim.id(), &mut pairs).unwrap();
        pairs[0]
    };
    attacker.send(now(), 0, &message(victim.id(), |_, _| {}), b"harmless");
    let id = attacker.client.id();
    let seen = ask(id);
    assert_eq!((seen.route, seen.messages, seen.received), (Route::Lane as u64, 1, 0));
    assert_eq!(victim.try_recv().unwrap().unwrap().payload(), b"harmless");
    assert_eq!(ask(id).received, seen.sent);
    for word in [u64::MAX, 1 << 63, 1 << 52, 0, 7] {
        // Word by word, control word and count among them, what stands before the cookies.
        for index in 0..16 {
            attacker.lane.store(index, word);
        }
        let seen = ask(id);
        assert_eq!((seen.messages, seen.route), (word, Route::Lane as u64));
        assert!(seen.sent <= 1 << 55 && seen.received <= seen.sent, "{seen:?}");
    }
    attacker.ring();
    assert!(victim.try_recv().unwrap().is_none());
    assert_eq!(ask(id).route, Route::BrokeRules as u64, "as its receiver says");
    unharmed(&bus, &victim);
    assert_eq!(
        ask(id),
        Pair { sender: id, route: Route::BrokeRules as u64, ..Pair::default() },
        "as kdbusd knows"
    );
    assert_eq!(ask(1 << 40).route, Route::Gone as u64);
}

#[test]
fn questions_about_lanes_that_are_none_are_refused() {
    use kdbus_linux::local::pairs::{PAIRS_MAX, Pair};
    let bus = bus();
    let (a, b) = (client(&bus), client(&bus));
    let handle = a.transport().handle();
    handle.pairs(b.id(), &mut []).unwrap();
    handle.pairs(b.id(), &mut [Pair::default(); PAIRS_MAX]).unwrap();
    let refused = |errno| Err(Failure::Refused(errno));
    assert_eq!(handle.pairs(b.id(), &mut [Pair::default(); PAIRS_MAX + 1]), refused(Errno::EINVAL));
    assert_eq!(handle.pairs(1 << 40, &mut [Pair::default()]), refused(Errno::ENXIO));
    for len in [1, 47, 49] {
        let header = Header { key: b.id(), arg_size: len, ..Header::new(Kind::Pairs, 1 << 40) };
        let bytes = [0xff; 64];
        let (answer, _) = exchange(&a, &header, &[&bytes[..len as usize]]);
        assert_eq!(answer.result(), Err(Errno::EINVAL));
    }
}
