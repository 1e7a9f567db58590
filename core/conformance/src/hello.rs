//! HELLO, UPDATE and BYEBYE.

use kdbus_core::abi::{
    AttachFlags, Cmd, CmdHello, Command, Creds, Errno, FLAG_NEGOTIATE, HelloFlags, ItemType, Items, Pids,
};

use crate::bench::{Bench, Outcome};
use crate::build::{Arg, BLOOM, Hello, Item, Message};
use crate::world::{Poll, World};

const NAME: &str = "com.example.name";

/// What a failing HELLO says.
fn refusal<W: World>(t: &mut Bench<W>, hello: &Hello) -> Option<Errno> {
    t.try_hello(hello).map(|conn| t.close(conn)).err()
}

fn refusal_as<W: World>(t: &mut Bench<W>, user: W::User, hello: &Hello) -> Option<Errno> {
    t.try_hello_as(user, hello).map(|conn| t.close(conn)).err()
}

fn creds(id: u64) -> Item {
    let creds = Creds { uid: id, euid: id, suid: id, fsuid: id, gid: id, egid: id, sgid: id, fsgid: id };
    Item::record(ItemType::CREDS, &creds)
}

fn mask_item(kind: ItemType, mask: u64) -> Item {
    Item::u64(kind, mask)
}

fn update(items: &[Item]) -> Arg {
    Arg::new(Command::Update).items(items)
}

pub(crate) fn a_pool_is_whole_pages<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(refusal(t, &Hello::default().pool(0)), Some(Errno::EINVAL));
    assert_eq!(refusal(t, &Hello::default().pool(4097)), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn hello_reports_the_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    let mut arg = Hello::default().arg();
    t.run_on(&handle, &mut arg).unwrap();
    let reported: CmdHello = arg.read();
    assert_eq!((reported.offset, reported.items_size), (0, 32));
    assert_eq!(reported.bus_flags, kdbus_core::abi::MakeFlags::ACCESS_WORLD.bits());
    assert_ne!(reported.id, 0);
    assert_ne!(reported.id128, [0; 16]);
    let bytes = t.world.pool(&handle, 0, 32).unwrap();
    let item = Items::new(&bytes).next().unwrap().unwrap();
    assert_eq!(item.kind, ItemType::BLOOM_PARAMETER);
    assert_eq!(item.words().collect::<Vec<_>>(), [BLOOM as u64, 1]);
    let mut free = Arg::new(Command::Free);
    assert_eq!(t.run_on(&handle, &mut free), Ok(()));
    Ok(())
}

pub(crate) fn hello_overwrites_the_offset<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    let mut hello = Hello::default();
    hello.record.offset = u64::MAX;
    let mut arg = hello.arg();
    t.run_on(&handle, &mut arg).unwrap();
    assert_eq!(arg.read::<CmdHello>().offset, 0);
    Ok(())
}

pub(crate) fn activators_and_policy_holders_need_a_name<W: World>(t: &mut Bench<W>) -> Outcome {
    for kind in [HelloFlags::ACTIVATOR, HelloFlags::POLICY_HOLDER] {
        assert_eq!(refusal(t, &Hello::default().flags(kind)), Some(Errno::EINVAL));
    }
    Ok(())
}

pub(crate) fn an_ordinary_connection_brings_no_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let hello = Hello::default().item(Item::text(ItemType::NAME, NAME));
    assert_eq!(refusal(t, &hello), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_connection_is_of_one_kind<W: World>(t: &mut Bench<W>) -> Outcome {
    let kinds = [HelloFlags::MONITOR, HelloFlags::ACTIVATOR, HelloFlags::POLICY_HOLDER];
    for (first, second) in [(0, 1), (0, 2), (1, 2)] {
        let hello = Hello::activator(NAME).flags(kinds[first] | kinds[second]);
        assert_eq!(refusal(t, &hello), Some(Errno::EINVAL));
    }
    Ok(())
}

pub(crate) fn strangers_do_not_monitor<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    assert_eq!(refusal_as(t, user, &Hello::monitor()), Some(Errno::EPERM));
    Ok(())
}

pub(crate) fn strangers_hold_no_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    assert_eq!(refusal_as(t, user, &Hello::policy_holder(NAME, &[])), Some(Errno::EPERM));
    Ok(())
}

pub(crate) fn strangers_do_not_activate<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    assert_eq!(refusal_as(t, user, &Hello::activator(NAME)), Some(Errno::EPERM));
    Ok(())
}

pub(crate) fn a_policy_name_is_checked<W: World>(t: &mut Bench<W>) -> Outcome {
    for name in [".example.a", "example"] {
        assert_eq!(refusal(t, &Hello::policy_holder(name, &[])), Some(Errno::EINVAL), "{name}");
    }
    Ok(())
}

pub(crate) fn a_name_has_one_activator<W: World>(t: &mut Bench<W>) -> Outcome {
    let _first = t.hello(&Hello::activator(NAME));
    assert_eq!(refusal(t, &Hello::activator(NAME)), Some(Errno::EEXIST));
    Ok(())
}

pub(crate) fn a_held_policy_keeps_activators_out<W: World>(t: &mut Bench<W>) -> Outcome {
    let _holder = t.hello(&Hello::policy_holder(NAME, &[]));
    assert_eq!(refusal(t, &Hello::activator(NAME)), Some(Errno::EEXIST));
    // Nothing is left of the failed one.
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::named(NAME)), Err(Errno::ESRCH));
    Ok(())
}

pub(crate) fn only_owners_pass_for_others<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(refusal(t, &Hello::default().item(creds(0))), None);
    let user = t.world.user(1)?;
    assert_eq!(refusal_as(t, user, &Hello::default().item(creds(0))), Some(Errno::EPERM));
    Ok(())
}

pub(crate) fn unset_credentials_stay_unset<W: World>(t: &mut Bench<W>) -> Outcome {
    const UNSET: u64 = 0xffff_ffff;
    let a = t.connect();
    let faked = t.hello(&Hello::default().item(creds(UNSET)));
    let info = t.conn_info(&a, faked.id, AttachFlags::CREDS).unwrap();
    let shown: Creds = info.record(ItemType::CREDS).unwrap();
    assert_eq!((shown.uid, shown.euid, shown.gid, shown.fsgid), (UNSET, UNSET, UNSET, UNSET));
    Ok(())
}

pub(crate) fn faked_processes_have_to_exist<W: World>(t: &mut Bench<W>) -> Outcome {
    let pids = |pid| Item::record(ItemType::PIDS, &Pids { pid, tid: pid, ppid: pid });
    assert_eq!(refusal(t, &Hello::default().item(pids(0))), None);
    // Larger than any process id that Linux gives.
    assert_eq!(refusal(t, &Hello::default().item(pids(1 << 23))), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn metadata_masks_are_checked<W: World>(t: &mut Bench<W>) -> Outcome {
    for (mask, expected) in [(1 << 14, Some(Errno::EINVAL)), (u64::MAX, None), (0, None)] {
        let mut hello = Hello::default();
        hello.record.attach_flags_send = mask;
        assert_eq!(refusal(t, &hello), expected, "send {mask:#x}");
        let mut hello = Hello::default();
        hello.record.attach_flags_recv = mask;
        assert_eq!(refusal(t, &hello), expected, "receive {mask:#x}");
    }
    Ok(())
}

pub(crate) fn a_user_has_at_most_1024_connections<W: World>(t: &mut Bench<W>) -> Outcome {
    let hello = Hello::default().pool(4096);
    let conns: Vec<_> = (0..1024).map(|_| t.hello(&hello)).collect();
    assert_eq!(refusal(t, &hello), Some(Errno::EMFILE));
    t.byebye(&conns[0]).unwrap();
    assert_eq!(refusal(t, &hello), None);
    Ok(())
}

pub(crate) fn a_description_is_checked<W: World>(t: &mut Bench<W>) -> Outcome {
    let described = |text: &str| Hello::default().item(Item::text(ItemType::CONN_DESCRIPTION, text));
    assert_eq!(refusal(t, &described(&"d".repeat(64))), Some(Errno::ENAMETOOLONG));
    assert_eq!(refusal(t, &described(".dot")), Some(Errno::EINVAL));
    let (a, longest) = (t.connect(), "d".repeat(63));
    let b = t.hello(&described(&longest));
    let info = t.conn_info(&a, b.id, AttachFlags::CONN_DESCRIPTION).unwrap();
    assert_eq!(info.all(ItemType::CONN_DESCRIPTION), [format!("{longest}\0").as_bytes()]);
    Ok(())
}

pub(crate) fn policy_of_an_ordinary_connection_is_ignored<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(refusal(t, &Hello::default().item(Item::access(3, 2, 0))), None);
    Ok(())
}

pub(crate) fn a_new_receive_mask_counts_from_the_next_message<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let mask = AttachFlags::all() - AttachFlags::TIMESTAMP;
    t.run(&b, &mut update(&[mask_item(ItemType::ATTACH_FLAGS_RECV, mask.bits())])).unwrap();
    t.send(&a, &Message::to(b.id)).unwrap();
    assert!(t.recv(&b).unwrap().has(ItemType::TIMESTAMP));
    let received = t.recv(&b).unwrap();
    assert!(!received.has(ItemType::TIMESTAMP));
    assert!(received.has(ItemType::CREDS));
    Ok(())
}

pub(crate) fn an_unknown_mask_changes_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let items = [
        mask_item(ItemType::ATTACH_FLAGS_RECV, 0),
        mask_item(ItemType::ATTACH_FLAGS_SEND, AttachFlags::all().bits() + 1),
    ];
    assert_eq!(t.run(&b, &mut update(&items)), Err(Errno::EINVAL));
    t.send(&a, &Message::to(b.id)).unwrap();
    assert!(t.recv(&b).unwrap().has(ItemType::TIMESTAMP));
    assert!(!t.conn_info(&a, b.id, AttachFlags::CREDS).unwrap().items.is_empty());
    Ok(())
}

pub(crate) fn an_ordinary_connection_has_no_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let items = [Item::text(ItemType::NAME, NAME), Item::access(3, 2, 0)];
    assert_eq!(t.run(&a, &mut update(&items)), Err(Errno::EOPNOTSUPP));
    assert_eq!(t.run(&a, &mut update(&items[1..])), Err(Errno::EOPNOTSUPP));
    Ok(())
}

pub(crate) fn an_activator_changes_its_receive_mask_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let activator = t.hello(&Hello::activator(NAME));
    let send = mask_item(ItemType::ATTACH_FLAGS_SEND, 0);
    assert_eq!(t.run(&activator, &mut update(&[send])), Err(Errno::EOPNOTSUPP));
    let recv = mask_item(ItemType::ATTACH_FLAGS_RECV, 0);
    assert_eq!(t.run(&activator, &mut update(&[recv])), Ok(()));
    Ok(())
}

pub(crate) fn a_policy_holder_changes_no_mask<W: World>(t: &mut Bench<W>) -> Outcome {
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    for kind in [ItemType::ATTACH_FLAGS_SEND, ItemType::ATTACH_FLAGS_RECV] {
        assert_eq!(t.run(&holder, &mut update(&[mask_item(kind, 0)])), Err(Errno::EOPNOTSUPP));
    }
    Ok(())
}

pub(crate) fn a_policy_holder_has_one_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let names = [Item::text(ItemType::NAME, "com.example.a"), Item::text(ItemType::NAME, "com.example.b")];
    assert_eq!(t.run(&holder, &mut update(&names)), Err(Errno::E2BIG));
    Ok(())
}

pub(crate) fn an_empty_update_succeeds<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, holder) = (t.connect(), t.hello(&Hello::policy_holder(NAME, &[])));
    assert_eq!(t.run(&a, &mut update(&[])), Ok(()));
    assert_eq!(t.run(&holder, &mut update(&[])), Ok(()));
    Ok(())
}

pub(crate) fn a_queued_message_keeps_one_from_leaving<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[]).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    assert_eq!(t.byebye(&b), Err(Errno::EBUSY));
    t.recv(&b).unwrap();
    assert_eq!(t.byebye(&b), Ok(()));
    Ok(())
}

pub(crate) fn one_leaves_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    t.recv(&b).unwrap();
    assert_eq!(t.byebye(&b), Ok(()));
    assert_eq!(t.byebye(&b), Err(Errno::ECONNRESET));
    assert_eq!(t.send(&a, &Message::to(b.id)), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn an_unfreed_slice_keeps_nobody<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).vec(b"kept")).unwrap();
    let received = t.recv_keep(&b).unwrap();
    assert_eq!(t.byebye(&b), Ok(()));
    assert_eq!(t.look(&b, received.info).payload(), b"kept");
    Ok(())
}

pub(crate) fn only_ordinary_connections_leave<W: World>(t: &mut Bench<W>) -> Outcome {
    for hello in [Hello::monitor(), Hello::activator(NAME), Hello::policy_holder("com.example.p", &[])] {
        let conn = t.hello(&hello);
        assert_eq!(t.byebye(&conn), Err(Errno::EOPNOTSUPP));
    }
    Ok(())
}

pub(crate) fn who_left_is_gone_for_every_command<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.byebye(&a).unwrap();
    let setup = [Command::BusMake, Command::EndpointMake, Command::Hello];
    for command in Command::ALL.iter().filter(|command| !setup.contains(command)) {
        let result = match command {
            Command::Send => t.send(&a, &Message::to(b.id)),
            _ => t.run(&a, &mut Arg::new(*command)),
        };
        assert_eq!(result, Err(Errno::ECONNRESET), "{command:?}");
    }
    assert_eq!(t.world.poll(&a.handle), Poll { readable: false, writable: false, hung_up: true });
    for command in setup {
        assert_eq!(t.run(&a, &mut Arg::new(command)), Err(Errno::EBADFD), "{command:?}");
    }
    Ok(())
}

pub(crate) fn leaving_again_is_looked_at_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, monitor) = (t.connect(), t.hello(&Hello::monitor()));
    t.byebye(&a).unwrap();
    let unknown = Arg::new(Command::Byebye).flags(1);
    assert_eq!(t.run(&a, &mut unknown.clone()), Err(Errno::EINVAL));
    let mut asked = Arg::new(Command::Byebye).flags(FLAG_NEGOTIATE);
    assert_eq!((t.run(&a, &mut asked), asked.read::<Cmd>().flags), (Ok(()), 0));
    assert_eq!(t.byebye(&a), Err(Errno::ECONNRESET));
    let control = t.control.take().unwrap();
    t.world.close(control);
    t.wait_hung_up(&monitor.handle);
    assert_eq!(t.byebye(&monitor), Err(Errno::EOPNOTSUPP));
    Ok(())
}

pub(crate) fn users_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for number in 1..=120 {
        let user = t.world.user(number)?;
        let conn = t.hello_as(user, &Hello::default().pool(4096));
        t.send(&a, &Message::to(conn.id)).unwrap();
        t.recv(&conn).unwrap();
        t.byebye(&conn).unwrap();
        t.close(conn);
    }
    Ok(())
}
