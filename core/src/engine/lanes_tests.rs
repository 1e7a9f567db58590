//! Sequences of commands: who gets a lane, and what takes it away.

extern crate std;
use std::vec;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{AttachFlags, Cmd, Command, Creds, Errno, HelloFlags, ItemType, NameFlags};
use zerocopy::IntoBytes;

/// A record of a policy for everybody.
const WORLD: u64 = 3;
const TALK: u64 = 1;

fn grant(bed: &mut Bed, from: Peer, to: Peer) -> Result<(), NoLane> {
    bed.domain.open_lane(&mut bed.host, from.handle, LaneTo::Id(to.id))
}

/// What was closed since the last time.
fn closed(bed: &mut Bed) -> Vec<Lanes> {
    core::mem::take(&mut bed.host.lanes_closed).into_iter().map(|(lanes, _)| lanes).collect()
}

fn bus(bed: &Bed, from: Peer, to: Peer) -> Lanes {
    Lanes::Bus(bed.domain.lane_grant(from.handle, to.id).unwrap().bus)
}

#[test]
fn a_lane_is_for_whoever_may_send() {
    let mut bed = Bed::new();
    let (a, b, stranger) = (bed.connect(), bed.connect(), bed.connect_as(2000));
    grant(&mut bed, a, b).unwrap();
    let opened = bed.host.lanes_opened.pop().unwrap();
    assert_eq!((opened.from, opened.from_id, opened.to), (a.handle, a.id, b.handle));
    assert_eq!(opened.attach, AttachFlags::TIMESTAMP);
    assert_eq!(grant(&mut bed, stranger, b), Err(NoLane::Denied));
    assert_eq!(grant(&mut bed, a, stranger), Ok(()), "the owner of the bus may talk to everybody");
    assert_eq!(grant(&mut bed, a, a), Err(NoLane::Itself));
    assert_eq!(grant(&mut bed, a, Peer { id: 999, ..b }), Err(NoLane::Gone));
    let control = bed.control(OWNER);
    assert_eq!(bed.domain.open_lane(&mut bed.host, control, LaneTo::Id(b.id)), Err(NoLane::Gone));
    bed.byebye(b).unwrap();
    assert_eq!(grant(&mut bed, a, b), Err(NoLane::Gone));
}

#[test]
fn a_name_that_grants_talk_grants_a_lane() {
    let mut bed = Bed::new();
    let (service, stranger) = (bed.connect(), bed.connect_as(2000));
    bed.policy_holder("a.b", &[(WORLD, TALK, 0)]);
    assert_eq!(grant(&mut bed, stranger, service), Err(NoLane::Denied));
    bed.acquire(service, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(grant(&mut bed, stranger, service), Ok(()));
    closed(&mut bed);
    bed.release(service, "a.b").unwrap();
    assert_eq!(closed(&mut bed), [Lanes::Into(service.handle)]);
    assert_eq!(grant(&mut bed, stranger, service), Err(NoLane::Denied));
}

#[test]
fn what_the_bus_has_to_see_or_collect_has_no_lane() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    for kind in [AttachFlags::NAMES, AttachFlags::PID_COMM, AttachFlags::CMDLINE, AttachFlags::AUDIT] {
        bed.set_recv_mask(b, kind | AttachFlags::CREDS);
        assert_eq!(grant(&mut bed, a, b), Err(NoLane::Metadata), "{kind:?}");
    }
    let pinned = AttachFlags::CREDS
        | AttachFlags::PIDS
        | AttachFlags::AUXGROUPS
        | AttachFlags::SECLABEL
        | AttachFlags::CONN_DESCRIPTION;
    bed.set_recv_mask(b, pinned);
    assert_eq!(grant(&mut bed, a, b), Ok(()));
    let handle = bed.open(OWNER);
    let creds = Creds::default();
    let creds = [(ItemType::CREDS, creds.as_bytes())];
    let faked = bed.hello(handle, HelloFlags::empty(), 4096, &creds).unwrap();
    assert_eq!(grant(&mut bed, faked, b), Err(NoLane::Faked));
    let activator = bed.activator("a.b");
    assert_eq!(grant(&mut bed, a, activator), Err(NoLane::Special));
    let owner = bed.control(OWNER);
    assert_eq!(bed.domain.open_lane(&mut bed.host, owner, LaneTo::Id(b.id)), Err(NoLane::Gone));
    let endpoint = bed.open(OWNER);
    bed.make_endpoint(endpoint, "1000-guests").unwrap();
    let guest = bed.connect_on("1000-guests", OWNER);
    assert_eq!(grant(&mut bed, guest, b), Err(NoLane::Endpoint));
    assert_eq!(grant(&mut bed, a, guest), Err(NoLane::Endpoint));
    let monitor = bed.open(OWNER);
    let monitor = bed.hello(monitor, HelloFlags::MONITOR, 4096, &[]).unwrap();
    assert_eq!(grant(&mut bed, a, b), Err(NoLane::Monitored));
    bed.close(monitor.handle);
    assert_eq!(grant(&mut bed, a, b), Ok(()));
}

#[test]
fn whoever_counts_users_processes_or_time_otherwise_has_no_lane() {
    let mut bed = Bed::new();
    let a = bed.connect();
    let endpoint = bed.domain.endpoint("1000-test", "bus").unwrap();
    for (spaces, expected) in [
        (Spaces { root: 7, pid: 3, ..Spaces::HOST }, Ok(())),
        (Spaces { users: 7, ..Spaces::HOST }, Err(NoLane::Namespaces)),
        (Spaces { pids: 7, ..Spaces::HOST }, Err(NoLane::Namespaces)),
        (Spaces { times: 7, ..Spaces::HOST }, Err(NoLane::Namespaces)),
    ] {
        let handle = bed.domain.open(endpoint, &Credentials { spaces, ..user(OWNER) }).unwrap();
        let other = bed.hello(handle, HelloFlags::empty(), 4096, &[]).unwrap();
        assert_eq!((grant(&mut bed, a, other), grant(&mut bed, other, a)), (expected, expected));
    }
}

#[test]
fn a_monitor_closes_every_lane_of_its_bus_before_it_is_there() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    let all = bus(&bed, a, b);
    closed(&mut bed);
    let handle = bed.open(OWNER);
    bed.hello(handle, HelloFlags::MONITOR, 4096, &[]).unwrap();
    assert_eq!(closed(&mut bed), [all]);
}

#[test]
fn policy_closes_every_lane_of_its_bus_if_it_changes() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    let all = bus(&bed, a, b);
    closed(&mut bed);
    let holder = bed.policy_holder("a.b", &[(WORLD, TALK, 0)]);
    assert_eq!(closed(&mut bed), [all]);
    let name = c_str("a.c");
    bed.run(holder.handle, Command::Update, &mut arg(Cmd::default(), &[(ItemType::NAME, &name)])).unwrap();
    assert_eq!(closed(&mut bed), [all]);
    let bad = c_str("..");
    let refused =
        bed.run(holder.handle, Command::Update, &mut arg(Cmd::default(), &[(ItemType::NAME, &bad)]));
    assert!(refused.is_err());
    assert_eq!(closed(&mut bed), [], "nothing has changed");
    bed.close(holder.handle);
    assert_eq!(closed(&mut bed), [Lanes::Of(holder.handle), all]);
}

#[test]
fn whoever_loses_a_name_loses_its_lanes_before_anybody_hears_of_it() {
    let mut bed = Bed::new();
    let (a, b, listener) = (bed.connect(), bed.connect(), bed.connect());
    let any = [u64::MAX, 0, u64::MAX, 0].map(u64::to_ne_bytes).concat();
    for kind in [ItemType::NAME_ADD, ItemType::NAME_REMOVE, ItemType::NAME_CHANGE] {
        bed.add_match(listener, 1, &[(kind, &any)]).unwrap();
    }
    closed(&mut bed);
    bed.acquire(a, "a.b", NameFlags::ALLOW_REPLACEMENT).unwrap();
    assert_eq!(closed(&mut bed), [], "nobody has lost it");
    assert_eq!(bed.host.published[&listener.handle].len(), 1);
    bed.acquire(b, "a.b", NameFlags::REPLACE_EXISTING).unwrap();
    assert_eq!(bed.host.lanes_closed, vec![(Lanes::Into(a.handle), 1)]);
    assert_eq!(bed.host.published[&listener.handle].len(), 2);
}

#[test]
fn who_is_told_of_a_lost_name_or_a_death_has_what_was_sent_until_then() {
    let mut bed = Bed::new();
    let (a, b, listener) = (bed.connect(), bed.connect(), bed.connect());
    grant(&mut bed, b, a).unwrap();
    let any = [u64::MAX, 0, u64::MAX, 0].map(u64::to_ne_bytes).concat();
    bed.add_match(listener, 1, &[(ItemType::NAME_REMOVE, &any)]).unwrap();
    bed.add_match(listener, 2, &[(ItemType::ID_REMOVE, &any[..16])]).unwrap();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    let last = |bed: &Bed| bed.host.published[&listener.handle].last().unwrap().key;
    // A command begins, a message goes by lane, and the lane is closed.
    let mut sent_at = bed.at().monotonic.after(core::time::Duration::from_secs(9)).as_nanos();
    bed.host.lanes_closed_at = crate::Instant::from_nanos(sent_at);
    bed.release(a, "a.b").unwrap();
    assert!(last(&bed) > sent_at, "behind the last message to the name");
    sent_at += 1_000;
    bed.host.lanes_closed_at = crate::Instant::from_nanos(sent_at);
    bed.close(a.handle);
    assert!(last(&bed) > sent_at);
    let seqnum = |notice: &Received| {
        let timestamp = notice.item(ItemType::TIMESTAMP).unwrap();
        u64::from_ne_bytes(timestamp[..8].try_into().unwrap())
    };
    let seqnums: Vec<u64> = bed.drain(listener).iter().map(seqnum).collect();
    assert!(seqnums.is_sorted() && seqnums.last().is_some_and(|seqnum| *seqnum > sent_at));
}

#[test]
fn an_activator_behind_an_owner_closes_its_lanes() {
    let mut bed = Bed::new();
    let a = bed.connect();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    closed(&mut bed);
    bed.activator("a.b");
    assert_eq!(closed(&mut bed)[0], Lanes::Into(a.handle));
}

#[test]
fn another_mask_closes_the_lanes_in() {
    let mut bed = Bed::new();
    let a = bed.connect();
    closed(&mut bed);
    bed.set_recv_mask(a, AttachFlags::TIMESTAMP);
    assert_eq!(closed(&mut bed), [], "it is the same");
    bed.set_recv_mask(a, AttachFlags::CREDS);
    assert_eq!(closed(&mut bed), [Lanes::Into(a.handle)]);
}

#[test]
fn the_dead_lose_their_lanes_both_ways_before_anybody_hears_of_it() {
    let mut bed = Bed::new();
    let (a, listener) = (bed.connect(), bed.connect());
    let any = [u64::MAX, 0].map(u64::to_ne_bytes).concat();
    bed.add_match(listener, 1, &[(ItemType::ID_REMOVE, &any)]).unwrap();
    closed(&mut bed);
    bed.close(a.handle);
    assert_eq!(bed.host.lanes_closed, vec![(Lanes::Of(a.handle), 0)]);
    assert_eq!(bed.host.published[&listener.handle].len(), 1);
}

#[test]
fn who_says_goodbye_has_received_everything() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    bed.send(a, &message(b.id, 1)).unwrap();
    assert_eq!(bed.byebye(b), Err(Errno::EBUSY));
    assert_eq!(bed.host.retired, [], "what waits here is known without closing anything");
    bed.recv(b).unwrap();
    bed.host.lane_waits = true;
    assert_eq!(bed.byebye(b), Err(Errno::EBUSY));
    assert_eq!(bed.host.retired, [b.handle]);
    bed.host.lane_waits = false;
    bed.byebye(b).unwrap();
}
