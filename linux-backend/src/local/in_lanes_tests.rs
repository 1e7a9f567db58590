//! What becomes of the room of lanes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::vec;
use std::vec::Vec;

use kdbus_core::abi::{AttachFlags, Msg};
use kdbus_core::channel::{LaneHead, LaneWriter, Order};
use proptest::prelude::*;
use proptest::sample::Index;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::super::detour::Detour;
use super::super::handle::Answer;
use super::super::map::WordMap;
use super::super::testbed::{Lane, message_of, short_message};
use super::*;

const SENDER: u64 = 7;
const RECEIVER: u64 = 9;

/// A reply to a call with cookie 5, which nobody has made.
fn reply() -> [u8; Msg::SIZE + 32] {
    short_message(Msg { dst_id: RECEIVER, timeout_or_reply: 5, ..Msg::default() })
}

/// The lanes of a receiver that has this one.
fn lanes_into(lane: &Lane) -> (InLanes, Arena) {
    let fds = lane.fds().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let answer = Answer { fds, fds_lost: false, lane: 0, receiver: 0 };
    InLanes::new([InLane::map(answer).unwrap()], 1, RECEIVER, 16).unwrap()
}

#[test]
fn a_look_ends_though_its_sender_fills_the_room_that_it_has_back() {
    let lane = Lane::new(SENDER);
    let (mut inward, arena) = lanes_into(&lane);
    let writer = Rc::new(RefCell::new(lane.writer));
    let send = move || {
        let reply = reply();
        let head = LaneHead { first: reply.len() as u64, second: 8, key: 1, call: 0 };
        let mut writer = writer.borrow_mut();
        let mut reserved = writer.reserve(head).unwrap();
        reserved.put(&reply);
        reserved.next_part();
        reserved.put(b"an answr");
        let _ = reserved.commit().unwrap();
    };
    send();
    let ignored = Rc::new(RefCell::new(0));
    let count = Rc::clone(&ignored);
    point::set_own_hook(move |place| {
        assert_eq!(place, Point::Ignored);
        *count.borrow_mut() += 1;
        assert!(*count.borrow() < 1000, "this does not end");
        send();
    });
    let mut outward = OutLanes::new((1, 1), Detour::NONE, RECEIVER).unwrap();
    let mut room = [Arrived::default(); 4];
    let mut order = Order::new();
    let mut batch = order.batch(bell::now(), &mut room);
    inward.drain(&mut batch, &arena, &mut outward);
    assert!(*ignored.borrow() > 0 && inward.has_fresh(), "the next look goes on");
    assert!(batch.sorted().is_empty());
}

/// What happens to a lane and to what came by it.
#[derive(Clone, Debug)]
enum Step {
    /// A message of so many bytes is sent, if the lane has room.
    Send(usize),
    /// What came is looked at.
    Look,
    /// The oldest is received.
    Receive,
    /// One of those that the application holds is given back.
    GiveBack(Index),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1_usize..3800).prop_map(Step::Send),
        2 => Just(Step::Look),
        3 => Just(Step::Receive),
        2 => any::<Index>().prop_map(Step::GiveBack),
    ]
}

/// Both ends of a lane, and the application.
struct World {
    writer: LaneWriter<WordMap, WordMap, WordMap>,
    ringer: OwnedFd,
    inward: InLanes,
    arena: Arena,
    order: Order,
    sent: u64,
    queued: VecDeque<Arrived>,
    held: Vec<u64>,
}

impl World {
    fn new(shows: usize) -> Self {
        let attach = if shows > 0 { AttachFlags::TIMESTAMP } else { AttachFlags::empty() };
        let lane = Lane::showing(SENDER, attach, &vec![0; 8 * shows]);
        let (inward, arena) = lanes_into(&lane);
        let (order, sent) = (Order::new(), 0);
        let ringer = lane.out_fds().into_iter().nth(4).unwrap();
        Self {
            writer: lane.writer,
            ringer,
            inward,
            arena,
            order,
            sent,
            queued: VecDeque::new(),
            held: vec![],
        }
    }

    /// Sends a message, if there is room. Whether there was.
    fn send(&mut self, bytes: usize) -> bool {
        let header = Msg { dst_id: RECEIVER, cookie: self.sent + 1, ..Msg::default() };
        let message = message_of(bytes as u64, header);
        let head =
            LaneHead { first: message.len() as u64, second: bytes as u64, key: self.sent + 1, call: 0 };
        let Ok(mut reserved) = self.writer.reserve(head) else { return false };
        reserved.put(&message);
        reserved.next_part();
        reserved.put(&vec![7; bytes]);
        let _ = reserved.commit().unwrap();
        self.sent += 1;
        true
    }

    fn look(&mut self) {
        let mut room = [Arrived::default(); 64];
        let mut batch = self.order.batch(bell::now(), &mut room);
        let mut outward = OutLanes::new((1, 1), Detour::NONE, RECEIVER).unwrap();
        self.inward.drain(&mut batch, &self.arena, &mut outward);
        self.queued.extend(batch.sorted());
    }

    fn receive(&mut self) {
        let Some(arrived) = self.queued.pop_front() else { return };
        self.inward.show(arrived.slot, &self.arena);
        self.inward.take(arrived.slot, &self.arena);
        self.held.push(arrived.offset);
    }

    fn give_back(&mut self, at: usize) {
        if let Some(lane) = self.arena.free(self.held.swap_remove(at)) {
            self.inward.gave_back(lane, &self.arena);
        }
    }
}

#[test]
fn a_sender_that_waits_for_what_is_withheld_is_told_when_it_is_given_back() {
    let mut world = World::new(0);
    while world.send(2000) {
        world.look();
        world.receive();
    }
    assert!(world.held.len() > 2, "more than the lane holds");
    let is_empty = |ringer: &OwnedFd| {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(ringer, PollFlags::OUT)], Some(&now)) == Ok(1)
    };
    assert_eq!(rustix::io::write(&world.ringer, &[1]), Ok(1));
    assert!(!is_empty(&world.ringer));
    world.writer.ask_room();
    while !world.held.is_empty() {
        world.give_back(0);
    }
    assert!(is_empty(&world.ringer));
    assert!(world.send(2000));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_lane_never_holds_what_finds_no_room(
        shows in 0_usize..24,
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut world = World::new(shows);
        for step in steps {
            match step {
                Step::Send(bytes) => { world.send(bytes); }
                Step::Look => world.look(),
                Step::Receive => world.receive(),
                Step::GiveBack(index) if !world.held.is_empty() => {
                    let at = index.index(world.held.len());
                    world.give_back(at);
                }
                Step::GiveBack(_) => {}
            }
            prop_assert!(!world.inward.is_stuck());
        }
        // All room is back once all is given back.
        world.look();
        while !world.queued.is_empty() {
            world.receive();
        }
        while !world.held.is_empty() {
            world.give_back(0);
        }
        prop_assert!(world.send(3800));
    }
}
