//! Sequences of commands: names, who hears of them, and what custom endpoints see.

extern crate std;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{Cmd, CmdInfo, Command, Errno, HelloFlags, ItemType, NameFlags};

const ANY: u64 = u64::MAX;

/// A rule about a change of names.
fn rule(old: u64, new: u64, name: &str) -> Vec<u8> {
    let mut bytes = [old, 0, new, 0].map(u64::to_ne_bytes).concat();
    if !name.is_empty() {
        bytes.extend(c_str(name));
    }
    bytes
}

/// A connection that hears of every change of names and ids.
fn listener(bed: &mut Bed) -> Peer {
    let peer = bed.connect();
    listen(bed, peer);
    peer
}

fn listen(bed: &mut Bed, peer: Peer) {
    for kind in [ItemType::NAME_ADD, ItemType::NAME_REMOVE, ItemType::NAME_CHANGE] {
        bed.add_match(peer, 1, &[(kind, &rule(ANY, ANY, ""))]).unwrap();
    }
    for kind in [ItemType::ID_ADD, ItemType::ID_REMOVE] {
        bed.add_match(peer, 1, &[(kind, &[ANY, 0].map(u64::to_ne_bytes).concat())]).unwrap();
    }
}

/// Kind, old id, old flags, new id, new flags.
fn changes(bed: &mut Bed, peer: Peer) -> Vec<(ItemType, Vec<u64>)> {
    bed.notices(peer).into_iter().map(|(kind, words)| (kind, words[..words.len().min(4)].to_vec())).collect()
}

#[test]
fn requests_are_checked_in_order() {
    let mut bed = Bed::new();
    let (a, stranger) = (bed.connect(), bed.connect_as(2000));
    for bad in [".bla.blaz", "foo", "foo.bla.bl.*", "foo.1bar", "foo..b"] {
        assert_eq!(bed.acquire(a, bad, NameFlags::empty()), Err(Errno::EINVAL), "{bad}");
        assert_eq!(bed.release(a, bad), Err(Errno::ESRCH), "{bad}");
    }
    assert_eq!(bed.acquire(stranger, "foo", NameFlags::empty()), Err(Errno::EINVAL));
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.acquire(stranger, "a.b", NameFlags::empty()), Err(Errno::EPERM));
    assert_eq!(bed.release(stranger, "a.b"), Err(Errno::EADDRINUSE));
    let monitor = bed.open(OWNER);
    let monitor = bed.hello(monitor, HelloFlags::MONITOR, 4096, &[]).unwrap();
    assert_eq!(bed.acquire(monitor, "a.c", NameFlags::empty()), Err(Errno::EOPNOTSUPP));
}

#[test]
fn a_taken_name_reports_the_flags_that_would_be_stored() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    let flags = NameFlags::ALLOW_REPLACEMENT | NameFlags::REPLACE_EXISTING;
    let mut cmd =
        arg(Cmd { flags: flags.bits(), return_flags: 0xff, ..Cmd::default() }, &[(ItemType::NAME, b"a.b\0")]);
    assert_eq!(bed.run(b.handle, Command::NameAcquire, &mut cmd), Err(Errno::EEXIST));
    assert_eq!(cmd[16..24], NameFlags::ALLOW_REPLACEMENT.bits().to_ne_bytes());
}

#[test]
fn every_change_of_owner_is_announced_in_order() {
    let mut bed = Bed::new();
    let listener = listener(&mut bed);
    let (a, b) = (bed.connect(), bed.connect());
    bed.drain(listener);
    let (primary, queue) = (NameFlags::PRIMARY.bits(), NameFlags::QUEUE.bits());
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    bed.acquire(b, "a.b", NameFlags::QUEUE).unwrap();
    bed.release(a, "a.b").unwrap();
    assert_eq!(
        changes(&mut bed, listener),
        [
            (ItemType::NAME_ADD, [0, 0, a.id, primary].into()),
            (ItemType::NAME_CHANGE, [a.id, primary, b.id, primary | queue].into()),
        ]
    );
    bed.close(b.handle);
    assert_eq!(
        changes(&mut bed, listener),
        [
            (ItemType::NAME_REMOVE, [b.id, primary | queue, 0, 0].into()),
            (ItemType::ID_REMOVE, [b.id, HelloFlags::ACCEPT_FD.bits()].into()),
        ]
    );
}

#[test]
fn a_notification_has_exactly_its_item_and_a_timestamp() {
    let mut bed = Bed::new();
    let a = bed.connect();
    bed.add_match(a, 1, &[(ItemType::NAME_ADD, &rule(ANY, ANY, "a.b"))]).unwrap();
    bed.set_recv_mask(a, crate::abi::AttachFlags::empty());
    bed.acquire(a, "a.c", NameFlags::empty()).unwrap();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    let all = bed.drain(a);
    assert_eq!(all.len(), 1);
    let notice = &all[0];
    assert_eq!(notice.kinds(), [ItemType::NAME_ADD, ItemType::TIMESTAMP]);
    assert_eq!((notice.header.src_id, notice.header.dst_id, notice.header.payload_type), (0, u64::MAX, 0));
    assert_eq!((notice.header.size, notice.header.flags), (64 + 56 + 40, 4));
    assert_eq!(notice.items()[0].1[32..], *b"a.b\0");
}

#[test]
fn rules_on_notifications_choose_by_id_and_name() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    bed.add_match(a, 1, &[(ItemType::NAME_ADD, &rule(0, 0, ""))]).unwrap();
    bed.add_match(a, 2, &[(ItemType::NAME_ADD, &rule(ANY, b.id, ""))]).unwrap();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.notices(a), []);
    bed.acquire(b, "a.c", NameFlags::empty()).unwrap();
    assert_eq!(bed.notices(a).len(), 1);
    bed.remove_match(a, 2).unwrap();
    let id = [b.id, 0].map(u64::to_ne_bytes).concat();
    bed.add_match(a, 3, &[(ItemType::ID_REMOVE, &id)]).unwrap();
    bed.add_match(a, 4, &[(ItemType::ID_REMOVE, &id), (ItemType::BLOOM_MASK, &[0; BLOOM])]).unwrap();
    let c = bed.connect();
    bed.close(c.handle);
    assert_eq!(bed.notices(a), []);
    bed.close(b.handle);
    assert_eq!(bed.notices(a).len(), 1);
}

#[test]
fn activators_come_and_go_behind_a_name() {
    let mut bed = Bed::new();
    let listener = listener(&mut bed);
    let service = bed.connect();
    bed.drain(listener);
    let activator = bed.activator("a.b");
    let (primary, active) = (NameFlags::PRIMARY.bits(), NameFlags::ACTIVATOR.bits());
    let hello = HelloFlags::ACTIVATOR.bits();
    assert_eq!(
        changes(&mut bed, listener),
        [
            (ItemType::ID_ADD, [activator.id, hello].into()),
            (ItemType::NAME_ADD, [0, 0, activator.id, active | primary].into()),
        ]
    );
    bed.acquire(service, "a.b", NameFlags::empty()).unwrap();
    let queued = (NameFlags::ACTIVATOR | NameFlags::IN_QUEUE).bits();
    assert_eq!(bed.list(service, 4), [(activator.id, Some((queued, "a.b".into())))]);
    bed.release(service, "a.b").unwrap();
    assert_eq!(
        changes(&mut bed, listener),
        [
            (ItemType::NAME_CHANGE, [activator.id, active | primary, service.id, primary].into()),
            (ItemType::NAME_CHANGE, [service.id, primary, activator.id, active | primary].into()),
        ]
    );
    bed.acquire(service, "a.b", NameFlags::empty()).unwrap();
    bed.drain(listener);
    bed.close(activator.handle);
    assert_eq!(changes(&mut bed, listener), [(ItemType::ID_REMOVE, [activator.id, hello].into())]);
}

#[test]
fn messages_to_a_name_stay_with_an_owner_who_is_replaced() {
    let mut bed = Bed::new();
    let (a, b, c) = (bed.connect(), bed.connect(), bed.connect());
    bed.acquire(a, "a.b", NameFlags::ALLOW_REPLACEMENT).unwrap();
    bed.send(c, &to_name("a.b", 1)).unwrap();
    let flags = bed.acquire(b, "a.b", NameFlags::REPLACE_EXISTING).unwrap();
    assert_eq!(flags, NameFlags::PRIMARY | NameFlags::ACQUIRED);
    bed.send(c, &to_name("a.b", 2)).unwrap();
    assert_eq!((bed.cookies(a), bed.cookies(b)), ([1].into(), [2].into()));
}

#[test]
fn a_custom_endpoint_shows_only_what_its_policy_grants() {
    let mut bed = Bed::new();
    let a = bed.connect();
    let endpoint = bed.open(OWNER);
    bed.make_endpoint(endpoint, "1000-ep").unwrap();
    let e = bed.connect_on("1000-ep", OWNER);
    listen(&mut bed, e);
    let by_name = |bed: &mut Bed, name: &str| {
        let cmd = CmdInfo::default();
        bed.info(e, Command::ConnInfo, cmd, &[(ItemType::NAME, &c_str(name))]).map(|_| ())
    };
    let by_id = |bed: &mut Bed, id| {
        bed.info(e, Command::ConnInfo, CmdInfo { id, ..CmdInfo::default() }, &[]).map(|_| ())
    };
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.notices(e), []);
    assert_eq!((by_name(&mut bed, "a.b"), by_id(&mut bed, a.id)), (Err(Errno::ESRCH), Err(Errno::ENXIO)));
    assert_eq!(bed.list(e, 3), [(a.id, None), (e.id, None)], "ids are not hidden");
    bed.release(a, "a.b").unwrap();
    bed.set_policy(endpoint, &[("a.b", (3, 0, 0))]).unwrap();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.notices(e).len(), 1);
    assert_eq!((by_name(&mut bed, "a.b"), by_id(&mut bed, a.id)), (Ok(()), Ok(())));
    assert_eq!(bed.send(e, &message(a.id, 1)), Err(Errno::EPERM));
    bed.set_policy(endpoint, &[("a.b", (3, 1, 0))]).unwrap();
    assert_eq!(bed.send(e, &message(a.id, 1)), Ok(()), "the same user");
    let other = bed.connect_on("1000-ep", 2000);
    assert_eq!(bed.send(other, &message(a.id, 1)), Err(Errno::EPERM), "the bus has to grant it too");
    bed.set_policy(endpoint, &[("a.c", (3, 2, 0))]).unwrap();
    assert_eq!(bed.acquire(e, "a.c", NameFlags::empty()), Err(Errno::EPERM));
    assert_eq!(bed.set_policy(endpoint, &[("x.y", (3, 0, 0)), ("x.y", (3, 0, 0))]), Err(Errno::EEXIST));
    bed.close(endpoint);
    assert!(bed.domain.readiness(e.handle).hung_up && bed.domain.readiness(a.handle).writable);
    assert!(bed.domain.endpoint("1000-test", "1000-ep").is_none());
}

#[test]
fn nobody_on_a_custom_endpoint_has_rights_of_the_owner() {
    let mut bed = Bed::new();
    let endpoint = bed.open(OWNER);
    assert_eq!(bed.make_endpoint(endpoint, "2000-ep"), Err(Errno::EINVAL));
    assert_eq!(bed.make_endpoint(endpoint, "1000-ep"), Ok(()));
    let stranger = bed.open(2000);
    let mut garbage = [0; 8];
    assert_eq!(bed.run(stranger, Command::EndpointMake, &mut garbage), Err(Errno::EPERM));
    let id = bed.domain.endpoint("1000-test", "1000-ep").unwrap();
    let fresh = bed.domain.open(id, &user(OWNER)).unwrap();
    assert_eq!(bed.make_endpoint(fresh, "1000-ep2"), Err(Errno::EPERM));
    let name = c_str("a.b");
    let name = [(ItemType::NAME, name.as_slice())];
    assert_eq!(bed.hello(fresh, HelloFlags::MONITOR, 4096, &[]), Err(Errno::EOPNOTSUPP));
    assert_eq!(bed.hello(fresh, HelloFlags::ACTIVATOR, 4096, &name), Err(Errno::EPERM));
    let second = bed.open(OWNER);
    assert_eq!(bed.make_endpoint(second, "1000-ep"), Err(Errno::EEXIST));
    assert_eq!(bed.run(endpoint, Command::List, &mut garbage), Err(Errno::EBADFD));
}

#[test]
fn policy_holders_grant_names_and_update_them() {
    let mut bed = Bed::new();
    let stranger = bed.connect_as(2000);
    let holder = bed.policy_holder("x.y.*", &[(1, 2, 2000)]);
    assert!(bed.acquire(stranger, "x.y.z", NameFlags::empty()).is_ok());
    assert_eq!(bed.acquire(stranger, "x.y.z.w", NameFlags::empty()), Err(Errno::EPERM));
    let exact = bed.policy_holder("x.y.v", &[]);
    assert_eq!(bed.acquire(stranger, "x.y.v", NameFlags::empty()), Err(Errno::EPERM));
    let update = |bed: &mut Bed, peer: Peer, items: &[(ItemType, &[u8])]| {
        bed.run(peer.handle, Command::Update, &mut arg(Cmd::default(), items))
    };
    let name = c_str("x.y.v");
    assert_eq!(update(&mut bed, holder, &[(ItemType::NAME, &name)]), Err(Errno::EEXIST));
    assert!(bed.acquire(stranger, "x.y.u", NameFlags::empty()).is_ok(), "the old policy stays");
    let two = [(ItemType::NAME, name.as_slice()), (ItemType::NAME, &name)];
    assert_eq!(update(&mut bed, exact, &two), Err(Errno::E2BIG));
    assert_eq!(update(&mut bed, stranger, &two), Err(Errno::EOPNOTSUPP));
    let mask = 1_u64.to_ne_bytes();
    assert_eq!(update(&mut bed, exact, &[(ItemType::ATTACH_FLAGS_RECV, &mask)]), Err(Errno::EOPNOTSUPP));
    assert_eq!(update(&mut bed, exact, &[]), Ok(()));
    let other = bed.activator("b.c");
    assert_eq!(update(&mut bed, other, &[(ItemType::ATTACH_FLAGS_SEND, &mask)]), Err(Errno::EOPNOTSUPP));
    assert_eq!(update(&mut bed, other, &[(ItemType::ATTACH_FLAGS_RECV, &mask)]), Ok(()));
    let bad = (1_u64 << 14).to_ne_bytes();
    assert_eq!(update(&mut bed, stranger, &[(ItemType::ATTACH_FLAGS_SEND, &bad)]), Err(Errno::EINVAL));
    let taken = bed.open(OWNER);
    let hello = bed.hello(taken, HelloFlags::POLICY_HOLDER, 4096, &[(ItemType::NAME, b"b.c\0")]);
    assert_eq!(hello, Err(Errno::EEXIST), "an activator's name has its policy");
}

#[test]
fn tables_that_are_full_are_errors() {
    let config = Config {
        names: 2,
        matches: 2,
        match_rule_bytes: 64,
        trackers: 1,
        calls: 1,
        policy_entries: 1,
        queue_depth: 3,
        pool_slices: 16,
        connections: 4,
        ..Config::SMALL
    };
    let mut bed = Bed::with(&config);
    let (a, b) = (bed.connect(), bed.connect());
    bed.acquire(a, "a.a", NameFlags::empty()).unwrap();
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.acquire(a, "a.c", NameFlags::empty()), Err(Errno::ENOMEM));
    let mask = [0; 2 * BLOOM];
    assert_eq!(bed.add_match(a, 1, &[(ItemType::BLOOM_MASK, &mask)]), Err(Errno::ENOMEM));
    assert_eq!(bed.add_match(a, 1, &[(ItemType::BLOOM_MASK, &mask[..BLOOM])]), Ok(()));
    assert_eq!(bed.add_match(a, 1, &[]), Ok(()));
    assert_eq!(bed.add_match(a, 1, &[]), Err(Errno::ENOMEM));
    bed.send(a, &message(b.id, 1).call(1 << 40)).unwrap();
    assert_eq!(bed.send(a, &message(b.id, 1).call(1 << 40)), Err(Errno::ENOMEM));
    bed.send(a, &message(b.id, 2)).unwrap();
    bed.send(a, &message(b.id, 3)).unwrap();
    assert_eq!(bed.send(a, &message(b.id, 4)), Err(Errno::ENOBUFS));
    assert_eq!(bed.cookies(b), [1, 2, 3]);
    let view = bed.domain.connection(b.handle).unwrap();
    assert_eq!((view.slices, view.accounted_size), (0, 0));
    bed.policy_holder("a.b", &[]);
    let handle = bed.open(OWNER);
    let full = bed.hello(handle, HelloFlags::POLICY_HOLDER, 4096, &[(ItemType::NAME, b"a.d\0")]);
    assert_eq!(full, Err(Errno::ENOMEM));
    bed.connect();
    let handle = bed.open(OWNER);
    assert_eq!(bed.hello(handle, HelloFlags::empty(), 4096, &[]), Err(Errno::EMFILE));
}
