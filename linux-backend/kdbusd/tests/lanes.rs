//! Lanes between clients of a real daemon: who gets one, what goes through it, and what closes it.

mod common;

use common::{Bus, Client, exchange};
use kdbus_core::WellKnownName;
use kdbus_core::abi::{Cmd, Command, Errno, NameFlags};
use kdbus_core::channel::NotByLane;
use kdbus_core::client::{Failure, Hello, Monitor, Transport};
use kdbus_linux::local::{InLane, OutLane};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 4)
}

/// A lane from `a` to `b`.
fn lane(a: &Client, b: &Client) -> (OutLane, InLane) {
    let inward = b.transport().handle().bring_lane().unwrap();
    // Packets of one client are read in their order, so what follows an answer of kdbusd to `b` is ready.
    settle(b);
    let outward = a.transport().handle().open_lane(b.id(), &[]).unwrap().1.expect("a new one");
    settle(a);
    (outward, inward)
}

/// Returns when kdbusd has read everything that a client has sent.
fn settle(client: &Client) {
    let mut bad = [0; 8];
    let _ = client.transport().handle().command(0, &mut bad);
}

fn receive(lane: &mut InLane) -> Option<Vec<u8>> {
    let head = lane.peek().unwrap()?;
    let mut parts = [head.first, head.second].map(|bytes| vec![0; bytes.div_ceil(8) as usize]);
    let [first, second] = &mut parts;
    let words = lane.copy_out(first, second).unwrap();
    lane.give_back(words);
    let bytes = |part: &[u64], len| part.as_bytes()[..len as usize].to_vec();
    Some([bytes(first, head.first), bytes(second, head.second)].concat())
}

fn rung(lane: &InLane) -> bool {
    let mut fds = [PollFd::new(lane, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn messages_go_past_the_daemon_and_ring_once() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let (mut out, mut inward) = lane(&a, &b);
    assert!(out.is_open() && !rung(&inward));
    out.send(1, 0, b"hel", &[b"lo"]).unwrap();
    assert!(rung(&inward));
    inward.silence();
    inward.ask_bell();
    assert_eq!(receive(&mut inward).as_deref(), Some(&b"hello"[..]));
    out.send(2, 0, b"again", &[b""]).unwrap();
    assert!(rung(&inward), "it was asked for again");
    assert_eq!(receive(&mut inward).as_deref(), Some(&b"again"[..]));
    assert_eq!(receive(&mut inward), None);
}

#[test]
fn a_bell_is_full_as_long_as_it_rings() {
    let bus = bus();
    let (_out, inward) = lane(&bus.connect_without_lanes(), &bus.connect_without_lanes());
    // A sender that waits for room sleeps until it can write to it.
    assert_eq!(rustix::pipe::fcntl_getpipe_size(&inward).unwrap(), rustix::param::page_size());
}

#[test]
fn there_are_none_unless_the_daemon_is_told_so() {
    let bus = Bus::with(|config| config.capacity.lanes = 0);
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let refused = Failure::Refused(Errno::EOPNOTSUPP);
    assert_eq!(b.transport().handle().bring_lane().err(), Some(refused));
    assert_eq!(a.transport().handle().open_lane(b.id(), &[]).err(), Some(refused));
}

#[test]
fn a_lost_name_closes_the_lanes_into_its_owner_and_a_request_opens_them_again() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let name = WellKnownName::parse("a.b").unwrap();
    b.acquire(name, NameFlags::empty()).unwrap();
    let (mut out, mut inward) = lane(&a, &b);
    out.send(1, 0, b"before", &[b""]).unwrap();
    b.release(name).unwrap();
    assert_eq!(out.send(2, 0, b"after", &[b""]), Err(NotByLane::Closed));
    assert_eq!(receive(&mut inward).as_deref(), Some(&b"before"[..]));
    assert!(receive(&mut inward).is_none() && inward.is_drained());
    assert!(a.transport().handle().open_lane(b.id(), &[]).unwrap().1.is_none(), "the one there is");
    out.send(3, 0, b"anew", &[b""]).unwrap();
    assert_eq!(receive(&mut inward).as_deref(), Some(&b"anew"[..]));
}

#[test]
fn a_monitor_closes_all_lanes_for_as_long_as_it_is_there() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let (mut out, _inward) = lane(&a, &b);
    let monitor = Monitor::hello(bus.open(), &Hello::new()).unwrap();
    assert_eq!(out.send(1, 0, b"unseen", &[b""]), Err(NotByLane::Closed));
    let again = || a.transport().handle().open_lane(b.id(), &[]);
    assert_eq!(again().err(), Some(Failure::Refused(Errno::EOPNOTSUPP)));
    drop(monitor);
    // kdbusd serves hang-ups before the next command.
    assert!(again().unwrap().1.is_none());
    out.send(2, 0, b"seen by nobody else", &[b""]).unwrap();
}

#[test]
fn a_lane_is_opened_as_often_as_a_name_is_lost() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let name = WellKnownName::parse("a.b").unwrap();
    let (mut out, mut inward) = lane(&a, &b);
    // An epoch has eleven bits.
    for round in 0..2100_u64 {
        out.send(round + 1, 0, b"whatever comes", &[b""]).unwrap();
        assert_eq!(receive(&mut inward).as_deref(), Some(&b"whatever comes"[..]), "{round}");
        b.acquire(name, NameFlags::empty()).unwrap();
        b.release(name).unwrap();
        assert_eq!(out.send(round + 1, 0, b"nothing", &[b""]), Err(NotByLane::Closed));
        assert!(a.transport().handle().open_lane(b.id(), &[]).unwrap().1.is_none());
    }
    assert_eq!(receive(&mut inward), None);
}

#[test]
fn what_the_dead_have_sent_is_delivered() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let (mut out, mut inward) = lane(&a, &b);
    out.send(1, 0, b"last words", &[b""]).unwrap();
    drop(a);
    settle(&b);
    assert_eq!(out.send(2, 0, b"from beyond", &[b""]), Err(NotByLane::Closed));
    assert_eq!(receive(&mut inward).as_deref(), Some(&b"last words"[..]));
    assert!(inward.is_drained());
}

#[test]
fn nobody_says_goodbye_with_a_message_in_a_lane() {
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let (mut out, mut inward) = lane(&a, &b);
    out.send(1, 0, b"wait", &[b""]).unwrap();
    let byebye = || {
        let mut command = Cmd { size: size_of::<Cmd>() as u64, ..Cmd::default() };
        b.transport().handle().command(Command::Byebye.request(), command.as_mut_bytes()).map(|_| ())
    };
    assert_eq!(byebye(), Err(Failure::Refused(Errno::EBUSY)));
    out.send(2, 0, b"it is open again", &[b""]).unwrap();
    assert!(receive(&mut inward).is_some() && receive(&mut inward).is_some());
    byebye().unwrap();
    assert_eq!(out.send(3, 0, b"too late", &[b""]), Err(NotByLane::Closed));
}

#[test]
fn a_sender_whose_receiver_ends_before_the_lane_is_mapped_goes_on() {
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind};
    let bus = bus();
    let (a, b) = (bus.connect_without_lanes(), bus.connect_without_lanes());
    let _inward = b.transport().handle().bring_lane().unwrap();
    let kdbusd = a.transport().handle().socket();
    let ask = Header { key: b.id(), ..Header::new(Kind::OpenLane, 1 << 40) };
    let (answer, _lane) = exchange(&a, &ask, &[]);
    answer.result().unwrap();
    drop(b);
    // The daemon has seen that end when it answers.
    assert!(a.transport().handle().stats(1 << 40).is_err());
    let mapped = Header { slot: answer.slot, ..Header::new(Kind::LaneMapped, 0) };
    socket::send(kdbusd, &mapped, &[], &[], Wait::Yes).unwrap();
    assert!(a.transport().handle().stats(a.id()).is_ok(), "it was cut off for what another did");
    // Once is enough: nobody else's lane can be claimed under that number.
    socket::send(kdbusd, &mapped, &[], &[], Wait::Yes).unwrap();
    assert!(a.transport().handle().stats(a.id()).is_err());
}

#[test]
fn a_client_that_claims_the_lane_of_another_is_cut_off() {
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind};
    let bus = bus();
    let (a, b, c) = (bus.connect_without_lanes(), bus.connect_without_lanes(), bus.connect_without_lanes());
    let (mut out, mut inward) = lane(&a, &b);
    let claim = Header::new(Kind::LaneMapped, 0);
    socket::send(c.transport().handle().socket(), &claim, &[], &[], Wait::Yes).unwrap();
    let end = c.transport().command(Command::Byebye, &mut [0; 24]);
    assert!(matches!(end, Err(Failure::Broken(_))), "{end:?}");
    out.send(1, 0, b"unharmed", &[b""]).unwrap();
    assert!(receive(&mut inward).is_some());
}
