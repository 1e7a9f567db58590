//! Making buses, their nodes, and what outlives them.

use kdbus_core::abi::{AttachFlags, Command, Errno, ItemType, MakeFlags};

use crate::bench::{Bench, Outcome, info_arg};
use crate::build::{Arg, BLOOM, Hello, Item, Message, bloom_parameter, bus_make};
use crate::world::{Poll, World};

/// What a failing BUS_MAKE says.
fn refusal<W: World>(t: &mut Bench<W>, mut arg: Arg) -> Option<Errno> {
    t.make_bus(&mut arg).map(|control| t.world.close(control)).err()
}

fn named(name: &str) -> Item {
    Item::text(ItemType::MAKE_NAME, name)
}

pub(crate) fn a_bus_name_starts_with_the_uid<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(refusal(t, bus_make("foo")), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_name_has_name_characters<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("blah@123");
    assert_eq!(refusal(t, bus_make(&name)), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_name_does_not_end_in_a_hyphen<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("blah-");
    assert_eq!(refusal(t, bus_make(&name)), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_name_has_the_makers_uid<W: World>(t: &mut Bench<W>) -> Outcome {
    let uid = t.world.who(t.owner).uid;
    assert_eq!(refusal(t, bus_make(&format!("{}-x", uid + 1))), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_name_has_at_most_63_characters<W: World>(t: &mut Bench<W>) -> Outcome {
    let mut name = t.node_name("x");
    name.extend(std::iter::repeat_n('x', 63 - name.len()));
    assert_eq!(refusal(t, bus_make(&name)), None);
    name.push('x');
    assert_eq!(refusal(t, bus_make(&name)), Some(Errno::ENAMETOOLONG));
    Ok(())
}

pub(crate) fn a_bus_appears_under_its_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("x");
    assert!(t.world.node(&name, Some("bus")).is_none());
    let _control = t.make_bus(&mut bus_make(&name)).unwrap();
    let uid = t.world.who(t.owner).uid;
    assert_eq!(t.world.node(&name, None).map(|node| node.uid), Some(uid));
    assert_eq!(t.world.node(&name, Some("bus")).map(|node| node.uid), Some(uid));
    Ok(())
}

pub(crate) fn a_bus_name_is_taken_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.bus.clone();
    let control = t.world.open_control(t.owner).unwrap();
    assert_eq!(t.run_on(&control, &mut bus_make(&name)), Err(Errno::EEXIST));
    let other = t.node_name("other");
    assert_eq!(t.run_on(&control, &mut bus_make(&other)), Ok(()));
    Ok(())
}

pub(crate) fn a_handle_makes_one_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let (control, name) = (t.control.take().unwrap(), t.node_name("other"));
    assert_eq!(t.run_on(&control, &mut bus_make(&name)), Err(Errno::EBADFD));
    assert!(t.world.node(&name, None).is_none());
    t.control = Some(control);
    Ok(())
}

pub(crate) fn filters_have_a_sane_size<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("bloom");
    for (size, expected) in [
        (0, Some(Errno::EINVAL)),
        (4, Some(Errno::EINVAL)),
        (12, Some(Errno::EINVAL)),
        (4104, Some(Errno::EINVAL)),
        (8, None),
        (4096, None),
    ] {
        let arg = Arg::new(Command::BusMake).item(&named(&name)).item(&bloom_parameter(size, 1));
        assert_eq!(refusal(t, arg), expected, "{size}");
        while t.world.node(&name, None).is_some() {}
    }
    Ok(())
}

pub(crate) fn filters_have_a_hash<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("bloom");
    let arg = Arg::new(Command::BusMake).item(&named(&name)).item(&bloom_parameter(64, 0));
    assert_eq!(refusal(t, arg), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_needs_name_and_filter<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("x");
    assert_eq!(refusal(t, Arg::new(Command::BusMake).item(&named(&name))), Some(Errno::EINVAL));
    let unnamed = Arg::new(Command::BusMake).item(&bloom_parameter(64, 1));
    assert_eq!(refusal(t, unnamed), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_requires_no_metadata<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("x");
    let arg = bus_make(&name).item(&Item::u64(ItemType::ATTACH_FLAGS_RECV, 0));
    assert_eq!(refusal(t, arg), Some(Errno::EINVAL));
    Ok(())
}

pub(crate) fn the_owners_mask_is_checked<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("x");
    let with = |mask| bus_make(&name).item(&Item::u64(ItemType::ATTACH_FLAGS_SEND, mask));
    assert_eq!(refusal(t, with(1 << 14)), Some(Errno::EINVAL));
    assert_eq!(refusal(t, with(u64::MAX)), None);
    Ok(())
}

pub(crate) fn a_user_has_at_most_16_buses<W: World>(t: &mut Bench<W>) -> Outcome {
    // The bench's own bus is the first.
    let mut controls = Vec::new();
    for i in 1..16 {
        let name = t.node_name(&format!("b{i}"));
        controls.push(t.make_bus(&mut bus_make(&name)).unwrap());
    }
    let name = t.node_name("more");
    assert_eq!(refusal(t, bus_make(&name)), Some(Errno::EMFILE));
    let taken = t.bus.clone();
    assert_eq!(refusal(t, bus_make(&taken)), Some(Errno::EEXIST));
    Ok(())
}

pub(crate) fn access_flags_show_in_the_modes<W: World>(t: &mut Bench<W>) -> Outcome {
    for (flags, directory, endpoint) in [
        (MakeFlags::empty(), 0o500, 0o600),
        (MakeFlags::ACCESS_GROUP, 0o550, 0o660),
        (MakeFlags::ACCESS_WORLD, 0o555, 0o666),
    ] {
        let name = t.node_name(&format!("m{}", flags.bits()));
        let _control = t.make_bus(&mut bus_make(&name).flags(flags.bits())).unwrap();
        let modes = (t.world.node(&name, None), t.world.node(&name, Some("bus")));
        assert_eq!((modes.0.unwrap().mode, modes.1.unwrap().mode), (directory, endpoint), "{flags:?}");
    }
    Ok(())
}

pub(crate) fn a_bus_dies_with_its_handle<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let bus = t.bus.clone();
    let control = t.control.take().unwrap();
    t.world.close(control);
    t.wait_hung_up(&a.handle);
    assert_eq!(t.world.poll(&a.handle), Poll { readable: false, writable: false, hung_up: true });
    assert_eq!(t.recv(&a).map(|_| ()), Err(Errno::ECONNRESET));
    assert_eq!(t.send(&a, &Message::to(a.id)), Err(Errno::ECONNRESET));
    assert_eq!(t.world.node(&bus, None), None);
    t.control = Some(t.make_bus(&mut bus_make(&bus)).unwrap());
    t.connect();
    Ok(())
}

pub(crate) fn a_handle_may_outlive_its_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    let control = t.control.take().unwrap();
    t.world.close(control);
    assert_eq!(t.run_on(&handle, &mut Hello::default().arg()), Err(Errno::ESHUTDOWN));
    Ok(())
}

pub(crate) fn a_bus_tells_its_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, bus) = (t.connect(), t.bus.clone());
    let all = AttachFlags::all().bits();
    let info = t.query(&a, info_arg(Command::BusCreatorInfo, 0, all)).unwrap();
    assert_eq!(info.all(ItemType::MAKE_NAME), [format!("{bus}\0").as_bytes()]);
    assert_eq!(info.info.flags, MakeFlags::ACCESS_WORLD.bits());
    // It was made without a mask, so nothing about its maker is told.
    assert_eq!(info.items.len(), 1);
    Ok(())
}

pub(crate) fn a_bus_answers_known_masks_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let arg = info_arg(Command::BusCreatorInfo, 0, 1 << 14);
    assert_eq!(t.query(&a, arg).map(|_| ()), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_bus_tells_about_its_makers_process<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("told");
    let mask = Item::u64(ItemType::ATTACH_FLAGS_SEND, u64::MAX);
    let _control = t.make_bus(&mut bus_make(&name).item(&mask)).unwrap();
    let former = std::mem::replace(&mut t.bus, name);
    let a = t.hello(&Hello::default().item(Item::text(ItemType::CONN_DESCRIPTION, "described")));
    t.own(&a, "com.example.name");
    let info = t.query(&a, info_arg(Command::BusCreatorInfo, 0, u64::MAX)).unwrap();
    let creds: kdbus_core::abi::Creds = info.record(ItemType::CREDS).unwrap();
    assert_eq!(creds.uid, u64::from(t.world.who(t.owner).uid));
    for kind in [ItemType::OWNED_NAME, ItemType::CONN_DESCRIPTION, ItemType::TIMESTAMP] {
        assert!(info.all(kind).is_empty(), "{kind:?}");
    }
    t.bus = former;
    Ok(())
}

pub(crate) fn filters_follow_their_own_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("narrow");
    let mut arg = Arg::new(Command::BusMake).item(&named(&name)).item(&bloom_parameter(8, 3));
    let _control = t.make_bus(&mut arg).unwrap();
    t.bus = name;
    let a = t.connect();
    t.add_match(&a, 1, &[]).unwrap();
    assert_eq!(t.send(&a, &Message::broadcast_of(0, &[0; BLOOM])), Err(Errno::EDOM));
    t.send(&a, &Message::broadcast_of(0, &[0; 8])).unwrap();
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn buses_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let name = t.node_name("brief");
    for _ in 0..40 {
        let control = t.make_bus(&mut bus_make(&name)).unwrap();
        let former = std::mem::replace(&mut t.bus, name.clone());
        let (a, b, far) = (t.connect(), t.connect(), t.far());
        t.bus = former;
        t.own(&a, "com.example.name");
        t.add_match(&b, 1, &[]).unwrap();
        t.send(&b, &Message::call(a.id, 1, far)).unwrap();
        t.world.close(control);
        for conn in [a, b] {
            t.wait_hung_up(&conn.handle);
            t.close(conn);
        }
        while t.world.node(&name, None).is_some() {}
    }
    Ok(())
}
