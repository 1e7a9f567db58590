//! Custom endpoints and their policy.

use kdbus_core::abi::{AttachFlags, Command, Errno, ItemType, ListFlags, MATCH_ID_ANY, MakeFlags, NameFlags};

use crate::bench::{Bench, Conn, Outcome};
use crate::build::{Arg, Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.name";
const WORLD: u64 = 3;
const SEE: u64 = 0;
const TALK: u64 = 1;
const OWN: u64 = 2;

fn endpoint_make(name: &str) -> Arg {
    Arg::new(Command::EndpointMake)
        .flags(MakeFlags::ACCESS_WORLD.bits())
        .item(&Item::text(ItemType::MAKE_NAME, name))
}

/// ENDPOINT_MAKE on a handle of its own, which then keeps the endpoint alive.
fn make<W: World>(t: &mut Bench<W>, mut arg: Arg) -> Result<W::Handle, Errno> {
    let handle = t.fresh();
    match t.run_on(&handle, &mut arg) {
        Ok(()) => Ok(handle),
        Err(errno) => {
            t.world.close(handle);
            Err(errno)
        }
    }
}

/// A custom endpoint for everybody, and a connection of the bus' owner on it.
fn endpoint<W: World>(t: &mut Bench<W>) -> (W::Handle, Conn<W>) {
    let name = t.node_name("custom");
    let handle = make(t, endpoint_make(&name)).unwrap();
    let conn = t.hello(&Hello::default().on(&name));
    (handle, conn)
}

/// ENDPOINT_UPDATE to this access to [`NAME`].
fn grant<W: World>(t: &mut Bench<W>, endpoint: &W::Handle, access: u64) {
    let mut arg = Arg::new(Command::EndpointUpdate)
        .item(&Item::text(ItemType::NAME, NAME))
        .item(&Item::access(WORLD, access, 0));
    t.run_on(endpoint, &mut arg).unwrap();
}

pub(crate) fn an_endpoint_name_has_at_most_63_characters<W: World>(t: &mut Bench<W>) -> Outcome {
    let mut name = t.node_name("x");
    name.extend(std::iter::repeat_n('x', 64 - name.len()));
    assert_eq!(make(t, endpoint_make(&name)).map(|_| ()), Err(Errno::ENAMETOOLONG));
    Ok(())
}

pub(crate) fn an_endpoint_name_has_the_makers_uid<W: World>(t: &mut Bench<W>) -> Outcome {
    let uid = t.world.who(t.owner).uid;
    assert_eq!(make(t, endpoint_make(&format!("{}-foobar", uid + 1))).map(|_| ()), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn an_endpoint_appears_beside_the_default_one<W: World>(t: &mut Bench<W>) -> Outcome {
    let (bus, name) = (t.bus.clone(), t.node_name("foo"));
    let _handle = make(t, endpoint_make(&name)).unwrap();
    assert_eq!(t.world.node(&bus, Some(&name)).map(|node| node.mode), Some(0o666));
    assert!(t.world.node(&bus, Some("bus")).is_some());
    Ok(())
}

pub(crate) fn an_endpoint_name_is_taken_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("foo");
    let _handle = make(t, endpoint_make(&name)).unwrap();
    assert_eq!(make(t, endpoint_make(&name)).map(|_| ()), Err(Errno::EEXIST));
    Ok(())
}

pub(crate) fn strangers_make_no_endpoints<W: World>(t: &mut Bench<W>) -> Outcome {
    let (user, bus) = (t.world.user(1)?, t.bus.clone());
    let name = format!("{}-foo", t.world.who(user).uid);
    let handle = t.world.open(user, &bus, "bus").unwrap();
    assert_eq!(t.run_on(&handle, &mut endpoint_make(&name)), Err(Errno::EPERM));
    let mut garbage = Arg::new(Command::EndpointMake).raw(&[0xee; 32]).flags(u64::MAX).word(16, 0xff);
    assert_eq!(t.run_on(&handle, &mut garbage), Err(Errno::EPERM));
    assert_eq!(garbage.get(16), 0xff);
    Ok(())
}

pub(crate) fn a_custom_endpoint_makes_no_endpoints<W: World>(t: &mut Bench<W>) -> Outcome {
    let (bus, name, other) = (t.bus.clone(), t.node_name("foo"), t.node_name("other"));
    let _handle = make(t, endpoint_make(&name)).unwrap();
    let handle = t.world.open(t.owner, &bus, &name).unwrap();
    assert_eq!(t.run_on(&handle, &mut endpoint_make(&other)), Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn an_endpoint_is_made_without_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("foo");
    let arg = endpoint_make(&name).item(&Item::access(WORLD, TALK, 0));
    assert_eq!(make(t, arg).map(|_| ()), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn access_flags_decide_who_opens<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let (closed, open) = (t.node_name("closed"), t.node_name("open"));
    let _closed = make(t, endpoint_make(&closed).flags(0)).unwrap();
    let _open = make(t, endpoint_make(&open)).unwrap();
    assert_eq!(t.try_hello_as(user, &Hello::default().on(&closed)).map(|_| ()), Err(Errno::EACCES));
    assert!(t.try_hello_as(user, &Hello::default().on(&open)).is_ok());
    Ok(())
}

pub(crate) fn a_custom_endpoint_has_ordinary_connections_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let (_handle, _) = endpoint(t);
    let name = t.node_name("custom");
    for (hello, expected) in [
        (Hello::monitor(), Errno::EOPNOTSUPP),
        (Hello::activator(NAME), Errno::EPERM),
        (Hello::policy_holder(NAME, &[]), Errno::EPERM),
    ] {
        assert_eq!(t.try_hello(&hello.on(&name)).map(|_| ()), Err(expected));
    }
    Ok(())
}

pub(crate) fn ids_are_not_filtered<W: World>(t: &mut Bench<W>) -> Outcome {
    let (_handle, e) = endpoint(t);
    t.add_match(&e, 1, &[Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)]).unwrap();
    let name = t.node_name("custom");
    let other = t.hello(&Hello::default().on(&name));
    assert_eq!(t.recv(&e).unwrap().id_change(ItemType::ID_ADD), other.id);
    Ok(())
}

pub(crate) fn names_show_as_far_as_policy_says<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.add_match(&e, 1, &[Item::any_change(ItemType::NAME_ADD, "")]).unwrap();
    t.add_match(&e, 2, &[Item::any_change(ItemType::NAME_REMOVE, "")]).unwrap();
    t.own(&a, NAME);
    t.assert_empty(&e, 0);
    assert_eq!(t.name_info(&e, NAME).map(|_| ()), Err(Errno::ESRCH));
    assert_eq!(t.name_info(&e, "com.example.unknown").map(|_| ()), Err(Errno::ESRCH));
    assert_eq!(t.conn_info(&e, a.id, AttachFlags::empty()).map(|_| ()), Err(Errno::ENXIO));
    assert_eq!(t.conn_info(&e, a.id + 1000, AttachFlags::empty()).map(|_| ()), Err(Errno::ENXIO));
    t.release(&a, NAME).unwrap();
    t.assert_empty(&e, 0);
    grant(t, &handle, SEE);
    t.own(&a, NAME);
    let received = t.recv(&e).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_ADD), (0, a.id, NAME.to_owned()));
    assert_eq!(t.name_info(&e, NAME).unwrap().info.id, a.id);
    assert_eq!(t.conn_info(&e, a.id, AttachFlags::empty()).unwrap().info.id, a.id);
    Ok(())
}

pub(crate) fn talking_needs_more_than_seeing<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    grant(t, &handle, SEE);
    assert_eq!(t.send(&e, &Message::to(a.id)), Err(Errno::EPERM));
    grant(t, &handle, TALK);
    assert_eq!(t.send(&e, &Message::to(a.id)), Ok(()));
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn endpoint_policy_does_not_replace_that_of_the_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let ((handle, _), a, name) = (endpoint(t), t.connect(), t.node_name("custom"));
    t.own(&a, NAME);
    grant(t, &handle, TALK);
    let u = t.hello_as(user, &Hello::default().on(&name));
    assert_eq!(t.send(&u, &Message::to(a.id)), Err(Errno::EPERM));
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, TALK, 0)]));
    assert_eq!(t.send(&u, &Message::to(a.id)), Ok(()));
    Ok(())
}

pub(crate) fn owning_needs_the_bus_policy_too<W: World>(t: &mut Bench<W>) -> Outcome {
    let (handle, e) = endpoint(t);
    grant(t, &handle, OWN);
    assert_eq!(t.acquire(&e, NAME, NameFlags::empty()), Err(Errno::EPERM));
    let _holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(WORLD, OWN, 0)]));
    grant(t, &handle, TALK);
    assert_eq!(t.acquire(&e, NAME, NameFlags::empty()), Err(Errno::EPERM));
    grant(t, &handle, OWN);
    t.own(&e, NAME);
    Ok(())
}

/// Whether the endpoint's policy still lets `e` see [`NAME`], which `a` owns.
fn still_sees<W: World>(t: &mut Bench<W>, e: &Conn<W>) -> bool {
    t.name_info(e, NAME).is_ok()
}

pub(crate) fn access_without_a_name_changes_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    grant(t, &handle, SEE);
    let mut arg = Arg::new(Command::EndpointUpdate)
        .item(&Item::access(WORLD, SEE, 0))
        .item(&Item::text(ItemType::NAME, "com.example.other"));
    assert_eq!(t.run_on(&handle, &mut arg), Err(Errno::EINVAL));
    assert!(still_sees(t, &e));
    Ok(())
}

pub(crate) fn a_name_given_twice_changes_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    grant(t, &handle, SEE);
    let other = Item::text(ItemType::NAME, "com.example.other");
    let mut arg = Arg::new(Command::EndpointUpdate).items(&[other.clone(), other]);
    assert_eq!(t.run_on(&handle, &mut arg), Err(Errno::EEXIST));
    assert!(still_sees(t, &e));
    Ok(())
}

pub(crate) fn an_empty_update_empties_the_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    grant(t, &handle, SEE);
    assert!(still_sees(t, &e));
    assert_eq!(t.run_on(&handle, &mut Arg::new(Command::EndpointUpdate)), Ok(()));
    assert!(!still_sees(t, &e));
    Ok(())
}

pub(crate) fn an_endpoint_dies_with_its_handle<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    let (bus, name) = (t.bus.clone(), t.node_name("custom"));
    t.world.close(handle);
    t.wait_hung_up(&e.handle);
    assert_eq!(t.recv(&e).map(|_| ()), Err(Errno::ECONNRESET));
    assert_eq!(t.world.node(&bus, Some(&name)), None);
    t.send(&a, &Message::to(a.id)).unwrap();
    Ok(())
}

pub(crate) fn ids_are_listed_and_names_are_not<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    let ids =
        |listed: Vec<crate::bench::Listed>| listed.into_iter().map(|record| record.id).collect::<Vec<_>>();
    assert_eq!(t.list(&e, ListFlags::NAMES), []);
    let mut unique = ids(t.list(&e, ListFlags::UNIQUE | ListFlags::NAMES));
    unique.sort_unstable();
    assert_eq!(unique, [e.id, a.id], "who has no name to be seen is listed without it");
    grant(t, &handle, SEE);
    assert_eq!(ids(t.list(&e, ListFlags::NAMES)), [a.id]);
    Ok(())
}

pub(crate) fn broadcasts_need_endpoint_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((handle, e), a) = (endpoint(t), t.connect());
    t.own(&a, NAME);
    t.add_match(&e, 1, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    t.assert_empty(&e, 0);
    grant(t, &handle, TALK);
    t.send(&a, &Message::broadcast()).unwrap();
    t.recv(&e).unwrap();
    Ok(())
}

pub(crate) fn others_talk_to_a_custom_endpoint_as_ever<W: World>(t: &mut Bench<W>) -> Outcome {
    let ((_handle, e), a, far) = (endpoint(t), t.connect(), t.far());
    t.send(&a, &Message::call(e.id, 7, far)).unwrap();
    assert_eq!(t.recv(&e).unwrap().msg.src_id, a.id);
    assert_eq!(t.send(&e, &Message::to(a.id)), Err(Errno::EPERM));
    t.send(&e, &Message::reply(a.id, 7)).unwrap();
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn a_custom_endpoint_has_no_faked_identity<W: World>(t: &mut Bench<W>) -> Outcome {
    let (_handle, _) = endpoint(t);
    let name = t.node_name("custom");
    let creds = Item::record(ItemType::CREDS, &kdbus_core::abi::Creds::default());
    let refused = t.try_hello(&Hello::default().on(&name).item(creds)).map(|_| ());
    assert_eq!(refused, Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn endpoints_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let (bus, name) = (t.bus.clone(), t.node_name("brief"));
    for _ in 0..150 {
        let handle = make(t, endpoint_make(&name)).unwrap();
        for access in [SEE, TALK] {
            grant(t, &handle, access);
        }
        let conn = t.hello(&Hello::default().on(&name));
        t.world.close(handle);
        t.wait_hung_up(&conn.handle);
        t.close(conn);
        while t.world.node(&bus, Some(&name)).is_some() {}
    }
    Ok(())
}
