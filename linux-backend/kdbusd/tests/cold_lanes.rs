//! Receivers with so many lanes that most are cold: nobody notices.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::{Bus, Client, exchange};
use kdbus_core::Instant;
use kdbus_core::client::{Connection, Hello, Message, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// More than are looked at all the time.
const LANES: usize = 16;

fn bus() -> Bus {
    Bus::with(|config| {
        (config.capacity.clients, config.capacity.connections) = (32, 32);
        (config.capacity.lanes, config.capacity.lanes_per_user) = (256, 256);
        config.capacity.lanes_per_connection = 16;
        config.memory.lane = kdbusd::config::Bytes(4096);
    })
}

fn client(bus: &Bus, lanes: usize) -> Client {
    let transport = bus.options().lanes(lanes).spin(Duration::ZERO).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, &Hello::new()).unwrap()
}

/// A receiver, and senders that have lanes to it.
fn around(bus: &Bus, count: usize) -> (Client, Vec<Client>) {
    let receiver = client(bus, LANES);
    let senders: Vec<_> = (0..count).map(|_| client(bus, 1)).collect();
    for sender in &senders {
        sender.transport().open_lane(receiver.id()).unwrap();
    }
    (receiver, senders)
}

/// Whether somebody who polls the connection from outside finds it readable by then.
fn is_readable(client: &Client, seconds: i64) -> bool {
    let timeout = Timespec { tv_sec: seconds, tv_nsec: 0 };
    poll(&mut [PollFd::new(client.transport(), PollFlags::IN)], Some(&timeout)).unwrap() == 1
}

fn carried(client: &Client) -> u64 {
    client.transport().handle().stats(client.id()).unwrap().stats.received
}

#[test]
fn what_was_sent_is_received_in_its_order_whether_lanes_are_cold_or_hot() {
    let bus = bus();
    let (receiver, senders) = around(&bus, LANES);
    let mut random = 5_u64;
    let mut cookie = 0;
    for round in 0..2000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let burst = (random >> 33) % 6;
        let first = cookie + 1;
        for number in 0..burst {
            cookie += 1;
            let sender = &senders[(random >> (36 + number)) as usize % LANES];
            sender.send(&Message::to(receiver.id()).cookie(cookie)).unwrap();
        }
        if round % 3 == 0 {
            // It asks for all bells, whether something waits or not.
            receiver.transport().wait(Some(Instant::ZERO)).unwrap();
        }
        for expected in first..=cookie {
            assert_eq!(receiver.try_recv().unwrap().expect("it was sent").cookie(), expected);
        }
        assert!(receiver.try_recv().unwrap().is_none());
    }
    assert_eq!(carried(&receiver), 0);
}

#[test]
fn a_receiver_that_never_sleeps_hears_of_lanes_that_were_idle_for_long() {
    let bus = bus();
    let (receiver, senders) = around(&bus, LANES);
    for (number, sender) in (1..).zip(&senders) {
        sender.send(&Message::to(receiver.id()).cookie(number)).unwrap();
        assert_eq!(receiver.try_recv().unwrap().unwrap().cookie(), number);
    }
    for number in 0..5000 {
        senders[0].send(&Message::to(receiver.id()).cookie(100 + number)).unwrap();
        assert_eq!(receiver.try_recv().unwrap().unwrap().cookie(), 100 + number);
    }
    for (number, sender) in (1..).zip(&senders) {
        sender.send(&Message::to(receiver.id()).cookie(number)).unwrap();
        assert_eq!(receiver.try_recv().unwrap().unwrap().cookie(), number);
    }
    assert_eq!(carried(&receiver), 0);
}

#[test]
fn who_polls_from_outside_finds_the_descriptor_readable_while_anything_waits() {
    let bus = bus();
    let (receiver, senders) = around(&bus, LANES);
    let readable = || is_readable(&receiver, 0);
    assert!(!readable());
    for round in 0..50 {
        for number in 0..3 {
            let sender = &senders[(round * 7 + number * 5) as usize % LANES];
            sender.send(&Message::to(receiver.id()).cookie(number + 1)).unwrap();
        }
        for number in 0..3 {
            assert!(readable(), "{number} of round {round}");
            assert_eq!(receiver.try_recv().unwrap().unwrap().cookie(), number + 1);
        }
        assert!(receiver.try_recv().unwrap().is_none());
        assert!(!readable(), "round {round}");
    }
}

#[test]
fn who_polls_from_outside_finds_it_readable_whatever_senders_are_told_of_room() {
    const COUNT: u64 = 20_000;
    let bus = bus();
    for lanes in [1, LANES] {
        let receiver = client(&bus, lanes);
        assert!(!is_readable(&receiver, 0));
        let (id, sent) = (receiver.id(), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let sender = client(&bus, 1);
                sender.transport().open_lane(id).unwrap();
                for cookie in 1..=COUNT {
                    let message = Message::to(id).cookie(cookie);
                    sender.send_when_room_blocking(&message, Duration::from_secs(60)).unwrap();
                    sent.store(cookie, Ordering::Release);
                }
            });
            let mut received = 0;
            while received < COUNT {
                // What has been sent is there already; for what has not, it waits.
                let patience = if sent.load(Ordering::Acquire) > received { 0 } else { 60 };
                assert!(is_readable(&receiver, patience), "after {received} of {lanes} lanes");
                if let Some(message) = receiver.try_recv().unwrap() {
                    received += 1;
                    assert_eq!(message.cookie(), received);
                }
            }
        });
    }
}

#[test]
fn what_the_dead_have_sent_and_not_rung_for_is_received() {
    use kdbus_core::channel::terms::{PAGE_WORDS, VERDICT_AT};
    use kdbus_core::channel::{LaneHead, LaneLayout, LaneWriter, Words};
    use kdbus_linux::local::map::WordMap;
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind, LANE_OUT_FDS};
    use zerocopy::IntoBytes;

    let bus = bus();
    let (receiver, _senders) = around(&bus, 9);
    let victim = bus.connect_without_lanes();
    let ask = Header { key: receiver.id(), ..Header::new(Kind::OpenLane, 1 << 40) };
    let (answer, fds) = exchange(&victim, &ask, &[]);
    let [lane, back, page, _calls, bell, _record, _heard] = fds.into_array::<LANE_OUT_FDS>().unwrap();
    let words = rustix::fs::fstat(&lane).unwrap().st_size as usize / 8;
    let lane = WordMap::writable(&lane, words).unwrap();
    let back = WordMap::read_only(&back, LaneLayout::BACK_WORDS).unwrap();
    let page = WordMap::read_only(&page, PAGE_WORDS).unwrap();
    let layout = LaneLayout::of_words(words).unwrap();
    let mut writer = LaneWriter::new(&lane, &back, &page, VERDICT_AT, layout).unwrap();
    let mapped = Header { slot: answer.slot, ..Header::new(Kind::LaneMapped, 0) };
    socket::send(victim.transport().handle().socket(), &mapped, &[], &[], Wait::Yes).unwrap();
    let _ = victim.transport().handle().command(0, &mut [0; 8]);
    assert!(lane.count() > 0 && receiver.try_recv().unwrap().is_none());

    let mut header =
        kdbus_core::abi::Msg { dst_id: receiver.id(), payload_type: 1, cookie: 77, ..Default::default() };
    header.size = size_of_val(&header) as u64;
    let first = header.as_bytes();
    let key = receiver.now().as_nanos();
    let mut reserved =
        writer.reserve(LaneHead { first: first.len() as u64, second: 0, key, call: 0 }).unwrap();
    reserved.put(first);
    assert!(reserved.commit().unwrap(), "it would have to ring");
    assert!(receiver.try_recv().unwrap().is_none(), "it has not");
    drop((victim, bell));
    assert_eq!(receiver.recv_blocking(Duration::from_secs(60)).unwrap().cookie(), 77);
}

#[test]
fn the_lanes_of_the_dead_make_place_for_the_next_senders() {
    let bus = bus();
    let receiver = client(&bus, LANES);
    for round in 0..60_u64 {
        let sender = client(&bus, 1);
        while sender.transport().open_lane(receiver.id()).is_err() {
            // It notices the end of those before when it sleeps.
            receiver.transport().wait(Some(Instant::ZERO)).unwrap();
            assert!(receiver.try_recv().unwrap().is_none());
        }
        sender.send(&Message::to(receiver.id()).cookie(round + 1)).unwrap();
        if round % 2 == 0 {
            drop(sender);
        }
        assert_eq!(receiver.recv_blocking(Duration::from_secs(60)).unwrap().cookie(), round + 1);
    }
}
