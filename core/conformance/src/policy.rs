//! Who may see, talk to and own.

use kdbus_core::abi::{Command, Errno, ItemType, NameFlags};

use crate::bench::{Bench, Conn, Outcome};
use crate::build::{Arg, Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.name";
const NONE: NameFlags = NameFlags::empty();

const USER: u64 = 1;
const GROUP: u64 = 2;
const WORLD: u64 = 3;

const SEE: u64 = 0;
const TALK: u64 = 1;
const OWN: u64 = 2;

/// Whether `u` may acquire [`NAME`] under this policy; nothing is left of the try.
fn may_own<W: World>(t: &mut Bench<W>, holder: &Conn<W>, u: &Conn<W>, access: &[Item]) -> bool {
    update(t, holder, NAME, access).unwrap();
    match t.acquire(u, NAME, NONE) {
        Ok(_) => {
            t.release(u, NAME).unwrap();
            true
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EPERM);
            false
        }
    }
}

/// Whether `u` may talk to `a`.
fn may_talk<W: World>(t: &mut Bench<W>, u: &Conn<W>, a: &Conn<W>) -> bool {
    match t.send(u, &Message::to(a.id)) {
        Ok(()) => {
            t.recv(a).unwrap();
            true
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EPERM);
            false
        }
    }
}

/// UPDATE of a policy holder.
fn update<W: World>(t: &mut Bench<W>, holder: &Conn<W>, name: &str, access: &[Item]) -> Result<(), Errno> {
    t.run(holder, &mut Arg::new(Command::Update).item(&Item::text(ItemType::NAME, name)).items(access))
}

/// A connection of unprivileged user `number`.
fn stranger<W: World>(t: &mut Bench<W>, number: usize) -> Result<Conn<W>, crate::world::Skip> {
    let user = t.world.user(number)?;
    Ok(t.hello_as(user, &Hello::default()))
}

pub(crate) fn strangers_do_not_talk_to_owners<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    assert!(!may_talk(t, &u, &a));
    assert!(may_talk(t, &a, &u));
    Ok(())
}

pub(crate) fn connections_of_one_user_talk<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let sibling = t.world.sibling(user)?;
    let (one, other) = (t.hello_as(user, &Hello::default()), t.hello_as(sibling, &Hello::default()));
    assert!(may_talk(t, &one, &other));
    assert!(may_talk(t, &other, &one));
    Ok(())
}

pub(crate) fn broadcasts_go_down_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    for conn in [&u, &a] {
        t.add_match(conn, 1, &[Item::u64(ItemType::ID, u.id)]).unwrap();
        t.add_match(conn, 2, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    }
    t.send(&a, &Message::broadcast()).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, a.id);
    t.assert_empty(&u, 0);
    t.send(&u, &Message::broadcast()).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, u.id);
    Ok(())
}

pub(crate) fn strangers_do_not_hear_each_other<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, v) = (stranger(t, 1)?, stranger(t, 2)?);
    t.add_match(&u, 1, &[Item::u64(ItemType::ID, v.id)]).unwrap();
    t.add_match(&v, 1, &[Item::u64(ItemType::ID, u.id)]).unwrap();
    for conn in [&u, &v] {
        t.send(conn, &Message::broadcast()).unwrap();
    }
    t.assert_empty(&u, 0);
    t.assert_empty(&v, 0);
    Ok(())
}

pub(crate) fn everybody_may_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    assert!(may_own(t, &holder, &u, &[Item::access(WORLD, OWN, 0)]));
    Ok(())
}

pub(crate) fn a_group_may_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let gid = t.world.who(u.user).gid;
    assert!(may_own(t, &holder, &u, &[Item::access(GROUP, OWN, gid)]));
    assert!(!may_own(t, &holder, &u, &[Item::access(GROUP, OWN, gid + 1)]));
    Ok(())
}

pub(crate) fn a_user_may_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let uid = t.world.who(u.user).uid;
    assert!(may_own(t, &holder, &u, &[Item::access(USER, OWN, uid)]));
    assert!(!may_own(t, &holder, &u, &[Item::access(USER, OWN, uid + 1)]));
    Ok(())
}

pub(crate) fn talking_is_not_owning<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let uid = t.world.who(u.user).uid;
    let access =
        [Item::access(USER, TALK, uid), Item::access(WORLD, SEE, 0), Item::access(USER, OWN, uid + 1)];
    assert!(!may_own(t, &holder, &u, &access));
    Ok(())
}

pub(crate) fn one_matching_record_is_enough<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let who = t.world.who(u.user);
    let access = [
        Item::access(USER, OWN, who.uid + 1),
        Item::access(GROUP, TALK, who.gid),
        Item::access(USER, OWN, who.uid),
        Item::access(WORLD, SEE, 0),
        Item::access(GROUP, OWN, who.gid + 1),
    ];
    assert!(may_own(t, &holder, &u, &access));
    Ok(())
}

pub(crate) fn policy_lets_strangers_talk<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let who = t.world.who(u.user);
    let holder = t.hello(&Hello::policy_holder(NAME, &[]));
    assert!(!may_talk(t, &u, &a));
    for (kind, id) in [(USER, who.uid), (GROUP, who.gid), (WORLD, 0)] {
        update(t, &holder, NAME, &[Item::access(kind, TALK, id)]).unwrap();
        assert!(may_talk(t, &u, &a), "{kind}");
    }
    Ok(())
}

pub(crate) fn seeing_is_not_talking<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let uid = t.world.who(u.user).uid;
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(USER, SEE, uid)]));
    assert!(!may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn owning_includes_talking<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, OWN, 0)]));
    assert!(may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn access_taken_back_counts_at_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    assert!(may_talk(t, &u, &a));
    update(t, &holder, NAME, &[]).unwrap();
    assert!(!may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn access_goes_with_its_holder<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    assert!(may_talk(t, &u, &a));
    t.add_match(&a, 1, &[Item::id_change(ItemType::ID_REMOVE, holder.id)]).unwrap();
    t.close(holder);
    t.wait_recv(&a);
    assert!(!may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn a_policy_name_is_held_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let _holder = t.hello(&Hello::policy_holder(NAME, &[]));
    let again = t.try_hello(&Hello::policy_holder(NAME, &[])).map(|_| ());
    assert_eq!(again, Err(Errno::EEXIST));
    assert!(t.try_hello(&Hello::policy_holder("com.example.*", &[])).is_ok());
    Ok(())
}

pub(crate) fn a_failed_update_keeps_the_former_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, NAME);
    let holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    let _other = t.hello(&Hello::policy_holder("com.example.other", &[]));
    assert_eq!(update(t, &holder, "com.example.other", &[]), Err(Errno::EEXIST));
    assert!(may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn access_to_one_name_reaches_its_holder<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.own(&a, "x.a");
    t.own(&a, "x.b");
    let _holder = t.hello(&Hello::policy_holder("x.b", &[Item::access(WORLD, TALK, 0)]));
    t.send(&u, &Message::named("x.a")).unwrap();
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn a_wildcard_covers_one_element<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let _holder = t.hello(&Hello::policy_holder("x.y.*", &[Item::access(WORLD, OWN, 0)]));
    t.own(&u, "x.y.z");
    assert_eq!(t.acquire(&u, "x.y.z.w", NONE), Err(Errno::EPERM));
    assert_eq!(t.acquire(&u, "x.y", NONE), Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn an_exact_entry_hides_the_wildcard<W: World>(t: &mut Bench<W>) -> Outcome {
    let u = stranger(t, 1)?;
    let _exact = t.hello(&Hello::policy_holder("x.y.z", &[]));
    let _wildcard = t.hello(&Hello::policy_holder("x.y.*", &[Item::access(WORLD, OWN, 0)]));
    assert_eq!(t.acquire(&u, "x.y.z", NONE), Err(Errno::EPERM));
    t.own(&u, "x.y.other");
    Ok(())
}

pub(crate) fn unknown_access_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    for (kind, access) in [(0, OWN), (4, OWN), (WORLD, 3)] {
        let hello = Hello::policy_holder(NAME, &[Item::access(kind, access, 0)]);
        assert_eq!(t.try_hello(&hello).map(|_| ()), Err(Errno::EINVAL), "{kind} {access}");
    }
    Ok(())
}

pub(crate) fn rights_are_those_of_opening<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.sibling(t.owner)?;
    let bus = t.bus.clone();
    let handle = t.world.open(user, &bus, "bus").unwrap();
    t.world.become_user(user, 1)?;
    let mut arg = Hello::monitor().arg();
    assert_eq!(t.run_on(&handle, &mut arg), Ok(()));
    Ok(())
}

pub(crate) fn a_waiting_name_grants_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a, b) = (stranger(t, 1)?, t.connect(), t.connect());
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    t.own(&b, NAME);
    t.acquire(&a, NAME, NameFlags::QUEUE).unwrap();
    assert!(!may_talk(t, &u, &a));
    assert!(may_talk(t, &u, &b));
    t.release(&b, NAME).unwrap();
    assert!(may_talk(t, &u, &a));
    Ok(())
}

pub(crate) fn a_signal_needs_a_receiver_that_may_talk_back<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    for conn in [&u, &a] {
        t.add_match(conn, 1, &[Item::u64(ItemType::ID, u.id)]).unwrap();
        t.add_match(conn, 2, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    }
    t.send(&a, &Message::signal_to(u.id)).unwrap();
    t.assert_empty(&u, 0);
    t.send(&u, &Message::signal_to(a.id)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, u.id);
    t.own(&a, NAME);
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    t.send(&a, &Message::signal_to(u.id)).unwrap();
    assert_eq!(t.recv(&u).unwrap().msg.src_id, a.id);
    Ok(())
}

pub(crate) fn broadcasts_follow_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    t.add_match(&u, 1, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    t.own(&a, NAME);
    let holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, SEE, 0)]));
    t.send(&a, &Message::broadcast()).unwrap();
    t.assert_empty(&u, 0);
    update(t, &holder, NAME, &[Item::access(WORLD, TALK, 0)]).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    t.recv(&u).unwrap();
    t.release(&a, NAME).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    t.assert_empty(&u, 0);
    Ok(())
}

pub(crate) fn calls_follow_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a, far) = (stranger(t, 1)?, t.connect(), t.far());
    assert_eq!(t.send(&u, &Message::call(a.id, 7, far)), Err(Errno::EPERM));
    let call = t.start(&u, &Message::call(a.id, 7, far));
    assert_eq!(t.finish(call), Err(Errno::EPERM));
    assert_eq!(t.send(&a, &Message::reply(u.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_denied_name_is_still_known<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    assert_eq!(t.send(&u, &Message::named(NAME)), Err(Errno::ESRCH));
    t.own(&a, NAME);
    assert_eq!(t.send(&u, &Message::named(NAME)), Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn an_activator_brings_its_own_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let (u, a) = (stranger(t, 1)?, t.connect());
    let hello = Hello::activator(NAME).item(Item::access(WORLD, TALK, 0));
    let activator = t.hello(&hello);
    t.send(&u, &Message::named(NAME)).unwrap();
    assert!(t.world.poll(&activator.handle).readable);
    t.acquire(&a, NAME, NONE).unwrap();
    t.recv(&a).unwrap();
    assert!(may_talk(t, &u, &a));
    assert_eq!(t.acquire(&u, NAME, NONE), Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn policies_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let _other = t.hello(&Hello::policy_holder("com.example.other", &[]));
    let access: Vec<Item> = (0..20).map(|uid| Item::access(USER, TALK, uid)).collect();
    let holder = t.hello(&Hello::policy_holder(NAME, &access));
    for _ in 0..150 {
        update(t, &holder, NAME, &access).unwrap();
        assert_eq!(update(t, &holder, "com.example.other", &access), Err(Errno::EEXIST));
        let refused = t.try_hello(&Hello::policy_holder("com.example.other", &access));
        assert_eq!(refused.map(|_| ()), Err(Errno::EEXIST));
    }
    Ok(())
}

pub(crate) fn an_activator_has_no_wildcard<W: World>(t: &mut Bench<W>) -> Outcome {
    let refused = t.try_hello(&Hello::activator("com.example.*")).map(|_| ());
    assert_eq!(refused, Err(Errno::EINVAL));
    Ok(())
}
