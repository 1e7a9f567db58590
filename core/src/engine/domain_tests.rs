//! Sequences of commands: what is made, unmade, listed and refused.

extern crate std;
use std::vec::Vec;

use zerocopy::FromBytes;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{
    AttachFlags, Cmd, CmdHello, CmdInfo, CmdRecv, Command, Errno, HelloFlags, ItemType, NameFlags,
};

#[test]
fn a_handle_takes_only_the_commands_of_its_state() {
    let mut bed = Bed::new();
    let control = bed.control(OWNER);
    let fresh = bed.open(OWNER);
    let mut cmd = arg(Cmd::default(), &[]);
    assert_eq!(bed.request(fresh, 0x4018_95ff, &mut cmd, None), Outcome::Done(Err(Errno::ENOTTY)));
    assert_eq!(bed.run(control, Command::Hello, &mut cmd), Err(Errno::EBADFD));
    assert_eq!(bed.run(fresh, Command::BusMake, &mut cmd), Err(Errno::EBADFD));
    assert_eq!(bed.run(fresh, Command::Recv, &mut arg(CmdRecv::default(), &[])), Err(Errno::EBADFD));
    let owner = bed.bus;
    assert_eq!(bed.run(owner, Command::BusMake, &mut cmd), Err(Errno::EBADFD));
    assert_eq!(bed.run(owner, Command::List, &mut cmd), Err(Errno::EBADFD));
    let peer = bed.connect();
    assert_eq!(bed.run(peer.handle, Command::Hello, &mut cmd), Err(Errno::EBADFD));
    assert_eq!(bed.run(peer.handle, Command::EndpointUpdate, &mut cmd), Err(Errno::EBADFD));
    bed.byebye(peer).unwrap();
    assert_eq!(bed.byebye(peer), Err(Errno::ECONNRESET));
    assert!(bed.domain.readiness(peer.handle).hung_up);
}

#[test]
fn bus_names_are_unique_and_carry_their_creator() {
    let mut bed = Bed::new();
    assert_eq!(bed.make_bus(OWNER, "foo"), Err(Errno::EINVAL));
    assert_eq!(bed.make_bus(OWNER, "1001-x"), Err(Errno::EINVAL));
    let second = bed.control(OWNER);
    assert_eq!(bed.make_bus_on(second, "1000-test"), Err(Errno::EEXIST));
    assert_eq!(bed.make_bus_on(second, "1000-other"), Ok(()));
    assert_eq!(bed.host.nodes.len(), 2);
    bed.close(second);
    assert_eq!(bed.host.nodes.len(), 1);
    assert_eq!(bed.make_bus(OWNER, "1000-other").map(|_| ()), Ok(()));
}

#[test]
fn closing_the_bus_disconnects_everybody() {
    let mut bed = Bed::new();
    let before = bed.domain.usage();
    let (a, fresh) = (bed.connect(), bed.open(OWNER));
    let bus = bed.bus;
    bed.close(bus);
    assert!(bed.woken().contains(&a.handle));
    assert!(bed.domain.readiness(a.handle).hung_up);
    assert_eq!(bed.byebye(a), Err(Errno::ECONNRESET));
    assert_eq!(bed.hello(fresh, HelloFlags::empty(), 4096, &[]), Err(Errno::ESHUTDOWN));
    assert!(bed.host.nodes.is_empty() && bed.host.pools.is_empty());
    bed.close(a.handle);
    bed.close(fresh);
    let usage = bed.domain.usage();
    assert_eq!((usage.handles, usage.buses, usage.endpoints, usage.users), (0, 0, 0, 1));
    assert_eq!(before.buses, 1);
}

#[test]
fn hello_reports_the_bus_and_refuses_in_order() {
    let mut bed = Bed::new();
    let handle = bed.open(2000);
    let name = c_str("a.b");
    for (flags, pool, items, error) in [
        (HelloFlags::empty(), 0, [].as_slice(), Errno::EINVAL),
        (HelloFlags::empty(), 4097, &[], Errno::EINVAL),
        (HelloFlags::MONITOR | HelloFlags::ACTIVATOR, 4096, &[], Errno::EINVAL),
        (HelloFlags::empty(), 4096, &[(ItemType::NAME, name.as_slice())], Errno::EINVAL),
        (HelloFlags::ACTIVATOR, 4096, &[], Errno::EINVAL),
        (HelloFlags::ACTIVATOR, 4096, &[(ItemType::NAME, name.as_slice())], Errno::EPERM),
        (HelloFlags::MONITOR, 4096, &[], Errno::EPERM),
        (HelloFlags::empty(), 4096, &[(ItemType::CREDS, &[0; 64])], Errno::EPERM),
    ] {
        assert_eq!(bed.hello(handle, flags, pool, items), Err(error), "{flags:?}");
    }
    let peer = bed.hello(handle, HelloFlags::empty(), 4096, &[]).unwrap();
    let bloom = &bed.host.pools[&peer.handle][..32];
    assert_eq!(bloom[16..24], 64_u64.to_ne_bytes());
    assert_eq!(bed.free(peer, 4096), Ok(()), "the end of the pool stands for no slice");
    assert_eq!(bed.free(peer, 0), Err(Errno::ENXIO));
}

#[test]
fn connections_that_fail_late_come_and_go_in_public() {
    let mut bed = Bed::new();
    let watcher = bed.connect();
    let any = [u64::MAX.to_ne_bytes(), [0; 8]].concat();
    bed.add_match(watcher, 1, &[(ItemType::ID_ADD, &any)]).unwrap();
    bed.add_match(watcher, 2, &[(ItemType::ID_REMOVE, &any)]).unwrap();
    bed.activator("a.b");
    assert_eq!(bed.notices(watcher).len(), 1);
    let handle = bed.open(OWNER);
    let name = c_str("a.b");
    let second = bed.hello(handle, HelloFlags::ACTIVATOR, 4096, &[(ItemType::NAME, &name)]);
    assert_eq!(second, Err(Errno::EEXIST));
    let kinds: Vec<_> = bed.notices(watcher).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ItemType::ID_ADD, ItemType::ID_REMOVE]);
    assert!(bed.hello(handle, HelloFlags::empty(), 4096, &[]).is_ok(), "the handle is as new");
}

#[test]
fn users_are_limited_one_by_one() {
    let mut bed = Bed::with(&Config { buses: 40, endpoints: 40, handles: 64, ..Config::SMALL });
    for index in 0..15 {
        bed.make_bus(OWNER, &std::format!("1000-b{index}")).unwrap();
    }
    assert_eq!(bed.make_bus(OWNER, "1000-test"), Err(Errno::EEXIST));
    assert_eq!(bed.make_bus(OWNER, "1000-last"), Err(Errno::EMFILE));
    assert!(bed.make_bus(1001, "1001-first").is_ok());
}

#[test]
fn list_reports_claims_by_kind() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    let activator = bed.activator("x.y");
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    bed.acquire(b, "a.b", NameFlags::QUEUE).unwrap();
    assert_eq!(bed.list(a, 0), []);
    let bare: Vec<_> = [a, b, activator].map(|peer| (peer.id, None)).into();
    assert_eq!(bed.list(a, 1), bare);
    let primary = NameFlags::PRIMARY.bits();
    assert_eq!(bed.list(a, 2), [(a.id, Some((primary, "a.b".into())))]);
    assert_eq!(bed.list(a, 3), [(a.id, Some((primary, "a.b".into()))), (b.id, None), (activator.id, None)]);
    let flags = (NameFlags::ACTIVATOR | NameFlags::PRIMARY).bits();
    assert_eq!(bed.list(a, 4), [(activator.id, Some((flags, "x.y".into())))]);
    let flags = (NameFlags::QUEUE | NameFlags::IN_QUEUE).bits();
    assert_eq!(bed.list(a, 8), [(b.id, Some((flags, "a.b".into())))]);
}

#[test]
fn connections_are_described_by_id_and_name() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect_as(2000));
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    let all = CmdInfo { attach_flags: u64::MAX, ..CmdInfo::default() };
    let by_id = CmdInfo { id: a.id, ..all };
    let (info, items) = bed.info(b, Command::ConnInfo, by_id, &[]).unwrap();
    assert_eq!((info.id, info.flags), (a.id, HelloFlags::ACCEPT_FD.bits()));
    let kinds: Vec<_> = items.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(
        kinds,
        [
            ItemType::CREDS,
            ItemType::PIDS,
            ItemType::AUXGROUPS,
            ItemType::TID_COMM,
            ItemType::PID_COMM,
            ItemType::OWNED_NAME
        ]
    );
    assert_eq!(items[0].1[..8], u64::from(OWNER).to_ne_bytes());
    let name = c_str("a.b");
    let by_name = [(ItemType::NAME, name.as_slice())];
    assert_eq!(bed.info(b, Command::ConnInfo, all, &by_name).unwrap().0.id, a.id);
    let other = CmdInfo { id: b.id, ..all };
    assert_eq!(bed.info(b, Command::ConnInfo, other, &by_name), Err(Errno::ESRCH));
    assert_eq!(bed.info(b, Command::ConnInfo, all, &[]), Err(Errno::EINVAL));
    let gone = CmdInfo { id: 999, ..all };
    assert_eq!(bed.info(b, Command::ConnInfo, gone, &[]), Err(Errno::ENXIO));
    let none = CmdInfo { attach_flags: 0, ..by_id };
    assert_eq!(bed.info(b, Command::ConnInfo, none, &[]).unwrap().0.size, 24);
    let (_, items) = bed.info(b, Command::BusCreatorInfo, all, &[]).unwrap();
    assert_eq!(items, [(ItemType::MAKE_NAME, c_str("1000-test"))]);
}

#[test]
fn faked_credentials_show_in_queries_and_never_in_messages() {
    let mut bed = Bed::new();
    let handle = bed.open(OWNER);
    let creds = [7_u64.to_ne_bytes(); 8].concat();
    let fake = bed.hello(handle, HelloFlags::empty(), 1 << 16, &[(ItemType::CREDS, &creds)]).unwrap();
    let peer = bed.connect();
    let all = CmdInfo { id: fake.id, attach_flags: u64::MAX, ..CmdInfo::default() };
    let (_, items) = bed.info(peer, Command::ConnInfo, all, &[]).unwrap();
    assert_eq!(items, [(ItemType::CREDS, creds)]);
    bed.set_recv_mask(peer, AttachFlags::all());
    bed.send(fake, &message(peer.id, 1)).unwrap();
    assert_eq!(bed.recv(peer).unwrap().kinds(), [ItemType::TIMESTAMP]);
}

#[test]
fn a_queue_that_is_not_empty_forbids_byebye() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    bed.send(a, &message(b.id, 1)).unwrap();
    assert_eq!(bed.byebye(b), Err(Errno::EBUSY));
    let received = bed.recv_keep(b).unwrap();
    assert_eq!(received.header.cookie, 1);
    assert_eq!(bed.byebye(b), Ok(()), "a slice that was not freed does not matter");
    assert_eq!(bed.send(a, &message(b.id, 1)), Err(Errno::ENXIO));
}

#[test]
fn a_connection_can_show_later_what_it_was_at_hello() {
    let mut bed = Bed::new();
    let handle = bed.open(OWNER);
    let mut hello = Bed::hello_arg(HelloFlags::empty(), 4096, &[]);
    let at = core::mem::offset_of!(CmdHello, attach_flags_send);
    hello[at..at + 8].fill(0);
    bed.run(handle, Command::Hello, &mut hello).unwrap();
    let (a, b) = (CmdHello::read_from_prefix(&hello).unwrap().0.id, bed.connect());
    let ask = CmdInfo { id: a, attach_flags: AttachFlags::TID_COMM.bits(), ..CmdInfo::default() };
    assert_eq!(bed.info(b, Command::ConnInfo, ask, &[]).unwrap().1, []);
    let mask = AttachFlags::TID_COMM.bits().to_ne_bytes();
    let mut update = arg(Cmd::default(), &[(ItemType::ATTACH_FLAGS_SEND, &mask)]);
    bed.run(handle, Command::Update, &mut update).unwrap();
    let (_, items) = bed.info(b, Command::ConnInfo, ask, &[]).unwrap();
    assert_eq!(items, [(ItemType::TID_COMM, b"thread\0".to_vec())]);
}

#[test]
fn numbers_of_a_connection_are_for_its_user_and_the_owner_of_the_bus() {
    let mut bed = Bed::new();
    let (owner, mine, other) = (bed.connect(), bed.connect_as(2001), bed.connect_as(2002));
    let mut ask = |from: Peer, of: u64| bed.domain.peer(&mut bed.host, from.handle, of);
    assert_eq!(ask(mine, mine.id).map(|view| view.id), Ok(mine.id));
    assert_eq!(ask(owner, mine.id).map(|view| view.id), Ok(mine.id));
    assert_eq!(ask(other, mine.id), Err(Errno::EPERM));
    assert_eq!(ask(mine, 99), Err(Errno::ENXIO));
}
