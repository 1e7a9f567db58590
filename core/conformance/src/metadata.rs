//! Metadata of messages, CONN_INFO and LIST.

use kdbus_core::abi::{AttachFlags, Command, Creds, Errno, HelloFlags, ItemType, ListFlags, NameFlags, Pids};

use crate::bench::{Bench, Conn, Outcome, Queried, info_arg, owned_name};
use crate::build::{Arg, Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.name";
const OTHER: &str = "com.example.other";

pub(crate) fn nothing_asked_is_nothing_told<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let info = t.conn_info(&a, a.id, AttachFlags::empty()).unwrap();
    assert_eq!((info.info.size, info.info.id, info.items.len()), (24, a.id, 0));
    assert_eq!(info.info.flags, HelloFlags::ACCEPT_FD.bits());
    Ok(())
}

pub(crate) fn identity_is_that_of_hello<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, who) = (t.connect(), t.world.who(t.owner));
    let stranger = t.world.user(1).map(|user| t.hello_as(user, &Hello::default()));
    let sibling = t.world.sibling(t.owner).map(|user| t.hello_as(user, &Hello::default()));
    for asker in [&a].into_iter().chain(&stranger).chain(&sibling) {
        let info = t.conn_info(asker, a.id, AttachFlags::CREDS | AttachFlags::PIDS).unwrap();
        let creds: Creds = info.record(ItemType::CREDS).unwrap();
        assert_eq!((creds.uid, creds.euid), (u64::from(who.uid), u64::from(who.uid)));
        assert_eq!((creds.gid, creds.egid), (u64::from(who.gid), u64::from(who.gid)));
        let pids: Pids = info.record(ItemType::PIDS).unwrap();
        assert_eq!(pids.pid, u64::from(who.pid));
    }
    Ok(())
}

pub(crate) fn capabilities_are_told_when_asked<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let without = AttachFlags::all() - AttachFlags::CAPS;
    assert!(t.conn_info(&a, a.id, without).unwrap().all(ItemType::CAPS).is_empty());
    let with = t.conn_info(&a, a.id, AttachFlags::all()).unwrap();
    assert_eq!(with.all(ItemType::CAPS).iter().map(|caps| caps.len()).collect::<Vec<_>>(), [36]);
    Ok(())
}

pub(crate) fn held_names_are_told_one_by_one<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.hello(&Hello::default().asks(AttachFlags::all())), t.connect());
    assert!(t.conn_info(&a, b.id, AttachFlags::NAMES).unwrap().items.is_empty());
    t.own(&b, NAME);
    t.own(&b, OTHER);
    t.own(&a, "com.example.mine");
    t.acquire(&b, "com.example.mine", NameFlags::QUEUE).unwrap();
    let info = t.conn_info(&a, b.id, AttachFlags::NAMES).unwrap();
    let names: Vec<_> = info.all(ItemType::OWNED_NAME).into_iter().map(owned_name).collect();
    assert_eq!(names, [(NameFlags::PRIMARY, NAME.to_owned()), (NameFlags::PRIMARY, OTHER.to_owned())]);
    t.send(&b, &Message::to(a.id)).unwrap();
    let received = t.recv(&a).unwrap();
    let names: Vec<_> = received.all(ItemType::OWNED_NAME).into_iter().map(owned_name).collect();
    assert_eq!(names, [(NameFlags::PRIMARY, NAME.to_owned()), (NameFlags::PRIMARY, OTHER.to_owned())]);
    Ok(())
}

pub(crate) fn a_name_leads_to_its_owner<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, NAME);
    assert_eq!(t.name_info(&a, NAME).unwrap().info.id, b.id);
    assert_eq!(t.name_info(&a, OTHER).map(|_| ()), Err(Errno::ESRCH));
    assert_eq!(t.conn_info(&a, b.id + 1000, AttachFlags::empty()).map(|_| ()), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn name_and_id_of_a_query_agree<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.own(&b, NAME);
    let both = |id| info_arg(Command::ConnInfo, id, 0).item(&Item::text(ItemType::NAME, NAME));
    assert_eq!(t.query(&a, both(c.id)).map(|_| ()), Err(Errno::ESRCH));
    assert_eq!(t.query(&a, both(b.id)).unwrap().info.id, b.id);
    Ok(())
}

pub(crate) fn a_query_is_about_somebody<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.conn_info(&a, 0, AttachFlags::empty()).map(|_| ()), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn who_gives_nothing_is_told_nothing_about<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let b = t.hello(
        &Hello::default()
            .gives(AttachFlags::empty())
            .item(Item::text(ItemType::CONN_DESCRIPTION, "described")),
    );
    t.own(&b, NAME);
    assert!(t.conn_info(&a, b.id, AttachFlags::all()).unwrap().items.is_empty());
    Ok(())
}

pub(crate) fn messages_carry_what_receivers_ask<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.hello(&Hello::default().gives(AttachFlags::empty()));
    let b = t.hello(&Hello::default().asks(AttachFlags::all()));
    let who = t.world.who(t.owner);
    t.send(&a, &Message::to(b.id)).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!(received.record::<Creds>(ItemType::CREDS).unwrap().euid, u64::from(who.uid));
    assert_eq!(received.record::<Pids>(ItemType::PIDS).unwrap().pid, u64::from(who.pid));
    assert!(received.has(ItemType::PID_COMM));
    let kinds: Vec<u64> = received.items.iter().map(|(kind, _)| kind.0).collect();
    assert!(kinds.contains(&ItemType::TIMESTAMP.0));
    Ok(())
}

pub(crate) fn who_asks_nothing_gets_no_metadata<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    t.send(&a, &Message::to(b.id)).unwrap();
    assert!(t.recv(&b).unwrap().items.is_empty());
    t.add_match(&b, 1, &[Item::any_change(ItemType::NAME_ADD, NAME)]).unwrap();
    t.own(&a, NAME);
    let kinds: Vec<_> = t.recv(&b).unwrap().items.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ItemType::NAME_ADD, ItemType::TIMESTAMP]);
    Ok(())
}

pub(crate) fn faked_identity_does_not_travel<W: World>(t: &mut Bench<W>) -> Outcome {
    let faked = Creds { uid: 0xffff_ffff, euid: 0xffff_ffff, ..Creds::default() };
    let hello = Hello::default()
        .item(Item::record(ItemType::CREDS, &faked))
        .item(Item::text(ItemType::CONN_DESCRIPTION, "faked"));
    let (a, b) = (t.hello(&hello), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let kinds: Vec<_> = t.recv(&b).unwrap().items.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ItemType::CONN_DESCRIPTION, ItemType::TIMESTAMP]);
    let info = t.conn_info(&b, a.id, AttachFlags::all()).unwrap();
    assert_eq!(info.record::<Creds>(ItemType::CREDS), Some(faked));
    assert!(info.all(ItemType::PIDS).is_empty());
    Ok(())
}

/// Two connections of one user, the second in namespaces of its own.
fn parted<W: World>(t: &mut Bench<W>) -> Result<(Conn<W>, Conn<W>), crate::world::Skip> {
    let user = t.world.user(1)?;
    let apart = t.world.apart(user)?;
    Ok((t.hello_as(user, &Hello::default()), t.hello_as(apart, &Hello::default())))
}

pub(crate) fn users_have_no_name_in_other_namespaces<W: World>(t: &mut Bench<W>) -> Outcome {
    let (user, apart) = parted(t)?;
    let (owner, who) = (t.connect(), t.world.who(t.owner));
    t.send(&owner, &Message::to(apart.id)).unwrap();
    let received = t.recv(&apart).unwrap();
    let creds: Creds = received.record(ItemType::CREDS).unwrap();
    assert_eq!([creds.uid, creds.euid, creds.suid, creds.fsuid], [65534; 4]);
    assert_eq!([creds.gid, creds.egid, creds.sgid, creds.fsgid], [65534; 4]);
    let groups: Vec<u8> =
        vec![65534_u64; who.groups.len()].iter().flat_map(|gid| gid.to_ne_bytes()).collect();
    assert_eq!(received.all(ItemType::AUXGROUPS), [&groups[..]]);
    assert!(received.all(ItemType::AUDIT).is_empty());
    // Who has a name there is known by it, and the other way round nothing is hidden.
    t.send(&user, &Message::to(apart.id)).unwrap();
    let creds: Creds = t.recv(&apart).unwrap().record(ItemType::CREDS).unwrap();
    assert_eq!((creds.uid, creds.gid), (0, 0));
    t.send(&apart, &Message::to(user.id)).unwrap();
    let creds: Creds = t.recv(&user).unwrap().record(ItemType::CREDS).unwrap();
    let who = t.world.who(user.user);
    assert_eq!((creds.uid, creds.gid), (u64::from(who.uid), u64::from(who.gid)));
    Ok(())
}

pub(crate) fn processes_have_no_number_in_other_namespaces<W: World>(t: &mut Bench<W>) -> Outcome {
    let (user, apart) = parted(t)?;
    t.send(&user, &Message::to(apart.id)).unwrap();
    let pids: Pids = t.recv(&apart).unwrap().record(ItemType::PIDS).unwrap();
    assert_eq!((pids.pid, pids.tid, pids.ppid), (0, 0, 0));
    t.send(&apart, &Message::to(user.id)).unwrap();
    let pids: Pids = t.recv(&user).unwrap().record(ItemType::PIDS).unwrap();
    assert_eq!(pids.pid, u64::from(t.world.who(apart.user).pid));
    t.send(&apart, &Message::to(apart.id)).unwrap();
    let pids: Pids = t.recv(&apart).unwrap().record(ItemType::PIDS).unwrap();
    assert_eq!((pids.pid, pids.ppid), (1, 0));
    Ok(())
}

pub(crate) fn who_is_out_of_sight_says_what_it_gives_out<W: World>(t: &mut Bench<W>) -> Outcome {
    let (one, other) = parted(t)?;
    let [giving, apart] =
        [one, other].map(|usual| t.hello_as(usual.user, &Hello::default().asks(AttachFlags::all())));
    let quiet = t.hello_as(giving.user, &Hello::default().gives(AttachFlags::empty()));
    t.send(&giving, &Message::to(apart.id)).unwrap();
    assert!(t.recv(&apart).unwrap().has(ItemType::PID_COMM));
    t.send(&quiet, &Message::to(apart.id)).unwrap();
    let received = t.recv(&apart).unwrap();
    let told = [ItemType::TID_COMM, ItemType::PID_COMM, ItemType::EXE, ItemType::CMDLINE, ItemType::SECLABEL];
    assert!(told.iter().all(|kind| !received.has(*kind)));
    assert!(received.has(ItemType::CREDS) && received.has(ItemType::TIMESTAMP));
    // Who sees the process gets what it asks for, given out or not.
    t.send(&quiet, &Message::to(giving.id)).unwrap();
    assert!(t.recv(&giving).unwrap().has(ItemType::PID_COMM));
    Ok(())
}

pub(crate) fn queries_answer_in_numbers_of_the_asker<W: World>(t: &mut Bench<W>) -> Outcome {
    let (user, apart) = parted(t)?;
    let mask = AttachFlags::CREDS | AttachFlags::PIDS;
    let told = |info: Queried| {
        let (creds, pids): (Creds, Pids) =
            (info.record(ItemType::CREDS).unwrap(), info.record(ItemType::PIDS).unwrap());
        (creds.uid, creds.gid, pids.pid)
    };
    assert_eq!(told(t.conn_info(&apart, user.id, mask).unwrap()), (0, 0, 0));
    assert_eq!(told(t.conn_info(&apart, apart.id, mask).unwrap()), (0, 0, 1));
    let who = t.world.who(apart.user);
    let expected = (u64::from(who.uid), u64::from(who.gid), u64::from(who.pid));
    assert_eq!(told(t.conn_info(&user, apart.id, mask).unwrap()), expected);
    Ok(())
}

pub(crate) fn foreign_numbers_make_no_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let apart = t.world.apart(t.owner)?;
    let hello = |access| Hello::policy_holder(NAME, &[access]);
    // Users and groups have other numbers there, and what they would be here is not for anybody in there to say.
    for kind in [1, 2] {
        let refused = t.try_hello_as(apart, &hello(Item::access(kind, 1, 7)));
        assert_eq!(refused.map(|_| ()), Err(Errno::EINVAL));
    }
    assert!(t.try_hello_as(apart, &hello(Item::access(3, 1, 0))).is_ok());
    Ok(())
}

pub(crate) fn receivers_of_a_broadcast_see_one_message<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    for conn in [&b, &c] {
        t.add_match(conn, 1, &[]).unwrap();
    }
    t.send(&a, &Message::broadcast()).unwrap();
    let (one, other) = (t.recv(&b).unwrap().timestamp(), t.recv(&c).unwrap().timestamp());
    assert_eq!(one, other);
    assert!(one.seqnum > 0 && one.monotonic_ns > 0 && one.realtime_ns > 0);
    Ok(())
}

pub(crate) fn sequence_numbers_increase<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let mut last = 0;
    for _ in 0..3 {
        t.send(&a, &Message::to(b.id)).unwrap();
        let seqnum = t.recv(&b).unwrap().timestamp().seqnum;
        assert!(seqnum > last);
        last = seqnum;
    }
    Ok(())
}

pub(crate) fn a_failed_import_leaves_a_gap<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let unsealed = t.world.memfd(t.owner, b"x", false);
    t.send(&a, &Message::to(b.id)).unwrap();
    assert_eq!(t.send(&a, &Message::to(b.id).memfd(unsealed, 0, 1)), Err(Errno::ETXTBSY));
    t.send(&a, &Message::to(b.id)).unwrap();
    let (first, second) = (t.recv(&b).unwrap().timestamp().seqnum, t.recv(&b).unwrap().timestamp().seqnum);
    assert_eq!(second - first, 2);
    Ok(())
}

pub(crate) fn groups_are_told_as_words<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, who) = (t.connect(), t.connect(), t.world.who(t.owner));
    t.send(&a, &Message::to(b.id)).unwrap();
    let received = t.recv(&b).unwrap();
    let groups: Vec<u64> = received.all(ItemType::AUXGROUPS)[0]
        .as_chunks()
        .0
        .iter()
        .map(|group| u64::from_ne_bytes(*group))
        .collect();
    assert_eq!(received.all(ItemType::AUXGROUPS)[0].len(), 8 * who.groups.len());
    assert_eq!(groups, who.groups.iter().map(|group| u64::from(*group)).collect::<Vec<_>>());
    Ok(())
}

pub(crate) fn a_list_of_nothing_is_empty<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.list(&a, ListFlags::empty()), []);
    Ok(())
}

pub(crate) fn connections_are_listed_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let _monitor = t.hello(&Hello::monitor());
    let holder = t.hello(&Hello::policy_holder("com.example.p", &[]));
    t.own(&b, NAME);
    let mut listed = t.list(&a, ListFlags::UNIQUE);
    listed.sort_by_key(|record| record.id);
    assert_eq!(listed.iter().map(|record| record.id).collect::<Vec<_>>(), [a.id, b.id, holder.id]);
    assert!(listed.iter().all(|record| record.size == 24 && record.name.is_none()));
    Ok(())
}

pub(crate) fn a_listed_name_stands_for_its_connection<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, NAME);
    t.own(&b, OTHER);
    let listed = t.list(&a, ListFlags::NAMES | ListFlags::UNIQUE);
    let of_b: Vec<_> =
        listed.iter().filter(|record| record.id == b.id).map(|record| record.name.clone()).collect();
    let primary = |name: &str| Some((NameFlags::PRIMARY, name.to_owned()));
    assert_eq!(of_b, [primary(NAME), primary(OTHER)]);
    assert!(listed.iter().any(|record| record.id == a.id && record.name.is_none()));
    assert!(listed.iter().all(|record| record.size % 8 == 0));
    Ok(())
}

pub(crate) fn activators_are_listed_when_asked<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator(NAME)));
    assert_eq!(t.list(&a, ListFlags::NAMES), []);
    let listed = t.list(&a, ListFlags::ACTIVATORS);
    let flags = NameFlags::ACTIVATOR | NameFlags::PRIMARY;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, &listed[0].name), (activator.id, &Some((flags, NAME.to_owned()))));
    assert_ne!(listed[0].flags & HelloFlags::ACTIVATOR.bits(), 0);
    Ok(())
}

pub(crate) fn unknown_list_flags_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.run(&a, &mut Arg::new(Command::List).flags(0x10)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn metadata_comes_in_a_fixed_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.hello(&Hello::default().item(Item::text(ItemType::CONN_DESCRIPTION, "described")));
    let b = t.hello(&Hello::default().asks(AttachFlags::all()));
    t.own(&a, NAME);
    t.send(&a, &Message::to(b.id)).unwrap();
    let kinds: Vec<u64> = t.recv(&b).unwrap().items.into_iter().map(|(kind, _)| kind.0).collect();
    let order = [
        ItemType::CREDS,
        ItemType::PIDS,
        ItemType::AUXGROUPS,
        ItemType::TID_COMM,
        ItemType::PID_COMM,
        ItemType::EXE,
        ItemType::CMDLINE,
        ItemType::CGROUP,
        ItemType::CAPS,
        ItemType::SECLABEL,
        ItemType::AUDIT,
        ItemType::OWNED_NAME,
        ItemType::CONN_DESCRIPTION,
        ItemType::TIMESTAMP,
    ];
    let place = |kind: &u64| order.iter().position(|other| other.0 == *kind).unwrap();
    assert!(kinds.iter().map(place).is_sorted(), "{kinds:x?}");
    for needed in [ItemType::CREDS, ItemType::PIDS, ItemType::OWNED_NAME, ItemType::TIMESTAMP] {
        assert!(kinds.contains(&needed.0), "{needed:?}");
    }
    Ok(())
}

pub(crate) fn each_receiver_gets_what_it_asks_for<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let masks = [AttachFlags::CREDS, AttachFlags::PIDS, AttachFlags::TIMESTAMP, AttachFlags::empty()];
    let conns = masks.map(|mask| t.hello(&Hello::default().asks(mask)));
    for conn in &conns {
        t.add_match(conn, 1, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    }
    t.send(&a, &Message::broadcast()).unwrap();
    let expected = [Some(ItemType::CREDS), Some(ItemType::PIDS), Some(ItemType::TIMESTAMP), None];
    for (conn, kind) in conns.iter().zip(expected) {
        let kinds: Vec<_> = t.recv(conn).unwrap().items.into_iter().skip(1).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, kind.into_iter().collect::<Vec<_>>());
    }
    Ok(())
}

pub(crate) fn waiters_are_listed_when_asked<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    let listed = t.list(&a, ListFlags::QUEUED);
    let flags = NameFlags::QUEUE | NameFlags::IN_QUEUE;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, &listed[0].name), (b.id, &Some((flags, NAME.to_owned()))));
    assert_eq!(t.list(&a, ListFlags::NAMES).len(), 1);
    Ok(())
}

pub(crate) fn a_query_that_does_not_fit_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.hello(&Hello::default().pool(4096));
    let mut offsets = Vec::new();
    let refusal = loop {
        let mut arg = Arg::new(Command::List).flags(ListFlags::UNIQUE.bits());
        match t.run(&a, &mut arg) {
            Ok(()) => offsets.push(arg.read::<kdbus_core::abi::CmdList>().offset),
            Err(errno) => break errno,
        }
    };
    assert_eq!(refusal, Errno::EXFULL);
    t.free(&a, offsets[0]).unwrap();
    assert_eq!(t.conn_info(&a, a.id, AttachFlags::empty()).unwrap().info.id, a.id);
    Ok(())
}

pub(crate) fn ids_are_never_used_twice<W: World>(t: &mut Bench<W>) -> Outcome {
    let mut last = 0;
    for _ in 0..20 {
        let conn = t.connect();
        assert!(conn.id > last);
        last = conn.id;
        t.close(conn);
    }
    Ok(())
}

pub(crate) fn a_faked_label_is_shown_and_does_not_travel<W: World>(t: &mut Bench<W>) -> Outcome {
    let hello = Hello::default().item(Item::text(ItemType::SECLABEL, "faked"));
    let (a, b) = (t.hello(&hello), t.connect());
    let info = t.conn_info(&b, a.id, AttachFlags::all()).unwrap();
    assert_eq!(info.all(ItemType::SECLABEL), [&b"faked\0"[..]]);
    assert!(info.all(ItemType::CREDS).is_empty());
    t.send(&a, &Message::to(b.id)).unwrap();
    let kinds: Vec<_> = t.recv(&b).unwrap().items.into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, [ItemType::TIMESTAMP]);
    Ok(())
}

pub(crate) fn faked_process_ids_are_shown<W: World>(t: &mut Bench<W>) -> Outcome {
    let pids = Pids { pid: 1, tid: 0, ppid: 0 };
    let hello = Hello::default().item(Item::record(ItemType::PIDS, &pids));
    let (a, b) = (t.hello(&hello), t.connect());
    let info = t.conn_info(&b, a.id, AttachFlags::all()).unwrap();
    assert_eq!(info.record::<Pids>(ItemType::PIDS), Some(pids));
    Ok(())
}

pub(crate) fn a_label_travels_as_it_is<W: World>(t: &mut Bench<W>) -> Outcome {
    let Some(label) = t.world.who(t.owner).label else {
        return Err(crate::world::Skip::because("labels are not known here"));
    };
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let mut expected = label.into_bytes();
    expected.push(0);
    assert_eq!(t.recv(&b).unwrap().all(ItemType::SECLABEL), [&expected[..]]);
    Ok(())
}
