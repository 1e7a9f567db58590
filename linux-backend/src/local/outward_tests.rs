//! Lanes to others that are opened, and calls that end, while something else happens.

use std::thread;

use kdbus_core::abi::{AttachFlags, Errno, MsgFlags};
use kdbus_core::channel::terms::{PAGE_WORDS, Terms, VERDICT_AT};
use kdbus_core::channel::{CALL_WORDS, LaneGate, LaneLayout, RECORD_WORDS};
use rustix::fd::{AsFd, OwnedFd};
use rustix::pipe::{PipeFlags, pipe_with};

use super::super::detour::Detour;
use super::super::handle::Answer;
use super::super::map::{Seal, create, seal};
use super::super::socket::{self, Wait};
use super::super::testbed::{Lane, handle, pair, short_message};
use super::super::wire::{Header, Kind};
use super::*;

const NAME: &[u8] = b"org.example.Wanders";
const RECEIVER: u64 = 9;

/// Opens a lane to the owner of a name at a bus where its terms say `name` by the time that it is open. How that went,
/// and whether it leads to the name and to the receiver.
fn open_while_name_becomes(name: &'static [u8]) -> (Result<(), Failure>, bool, bool) {
    let (mut bus, client) = pair();
    let bus = thread::spawn(move || {
        let layout = LaneLayout::new(512).unwrap();
        let [lane, back, page, calls, record] =
            [layout.lane_words(), LaneLayout::BACK_WORDS, PAGE_WORDS, CALL_WORDS, RECORD_WORDS].map(
                |words| {
                    let file = create(c"part", 8 * words as u64).unwrap();
                    let map = WordMap::writable(&file, words).unwrap();
                    seal(&file, Seal::Size).unwrap();
                    (file, map)
                },
            );
        let terms = Terms { sender: 7, attach: AttachFlags::empty(), name: NAME, metadata: b"" };
        let mut gate = LaneGate::new(&lane.1, &page.1, VERDICT_AT);
        let (heard, ringer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let fds = [&lane.0, &back.0, &page.0, &calls.0, &ringer, &record.0, &heard].map(AsFd::as_fd);
        assert!(terms.write(&page.1, 1));
        let serial = bus.next(|packet, _| (packet.arg == NAME).then_some(packet.header.serial));
        let answer = |serial| Header { slot: 3, key: RECEIVER, ..Header::answer(serial, Ok(())) };
        socket::send(&bus.socket, &answer(serial.unwrap().unwrap()), &[], &fds, Wait::Yes).unwrap();
        assert_eq!(bus.next(|packet, _| packet.kind), Some(Kind::LaneMapped));
        if name != NAME {
            assert!(Terms { name, ..terms }.write(&page.1, 2));
        }
        gate.open();
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        socket::send(&bus.socket, &answer(serial), &[], &[], Wait::Yes).unwrap();
    });
    let handle = handle(client);
    let mut outward = OutLanes::new((1, 1), Detour::NONE, 7).unwrap();
    let opened = outward.open(&handle, 0, NAME);
    bus.join().unwrap();
    assert_eq!(outward.open_lanes(), 1);
    (opened, outward.find(To::Name(NAME)).is_some(), outward.find(To::Id(RECEIVER)).is_some())
}

/// A call of eight bytes.
fn call() -> [u8; Msg::SIZE + 32] {
    short_message(Msg {
        flags: MsgFlags::EXPECT_REPLY.bits(),
        dst_id: RECEIVER,
        cookie: 5,
        timeout_or_reply: WAIT_MAX.as_nanos(),
        ..Msg::default()
    })
}

#[test]
fn a_call_whose_reply_is_brought_before_it_is_sent_goes_no_other_way() {
    let (_bus, client) = pair();
    let handle = handle(client);
    for (waits, brought) in [(false, false), (false, true), (true, false), (true, true)] {
        let lane = Lane::new(7);
        let answer = Answer { fds: lane.out_fds(), lane: 3, receiver: RECEIVER, ..Answer::new() };
        let mut outward = OutLanes::new((1, 1), Detour::NONE, 7).unwrap();
        outward.lanes[0] = Some(Outward { lane: OutLane::map(answer).unwrap(), name: Name::new() });
        let record = WordMap::writable(&lane.record, RECORD_WORDS).unwrap();
        let (index, mut gate) = (if waits { CALLS_MAX - 1 } else { 1 }, lane.gate);
        point::set_own_hook(move |place| {
            if place == Point::Written {
                // Its callee sees its word by then, and claims it of kdbusd; then the lane closes.
                let name = CallName { index, number: 1 };
                assert!(!brought || CallRecord::new(&record, name).end(CallState::Relayed));
                gate.close();
            }
        });
        let fds: &[OwnedFd] = &[];
        let mut outgoing = Outgoing { message: &mut call(), payload: &[b"question"], fds, begun: None };
        let sent = outward.send(&handle, &mut outgoing, waits, None);
        assert_eq!(sent, brought, "else there were two replies, or none: {waits}");
        let open = outward.calls.waited().or_else(|| outward.calls.iter().next());
        let state = open.and_then(|call| outward.state(call));
        assert_eq!(state, brought.then_some(CallState::Relayed), "{waits}");
    }
}

#[test]
fn a_lane_is_not_for_a_name_that_passes_on_while_it_is_opened() {
    assert_eq!(open_while_name_becomes(NAME), (Ok(()), true, true));
    let refused = Err(Failure::Refused(Errno::EAGAIN));
    assert_eq!(open_while_name_becomes(b""), (refused, false, true));
    assert_eq!(open_while_name_becomes(b"org.example.Another"), (refused, false, true));
}
