//! Sizes, flags and items of commands, and which handle takes which command.

use kdbus_core::abi::{AttachFlags, CMD_MAX_SIZE, CmdInfo, Command, Errno, HelloFlags, ItemType, NameFlags};

use crate::bench::{Bench, Outcome, info_arg, name_arg, send_arg};
use crate::build::{Arg, Hello, Item, Message, bus_make};
use crate::world::{BadAddress, World};

const NAME: &str = "com.example.name";

/// Commands other than SEND that a connection takes.
fn connected() -> impl Iterator<Item = Command> {
    let other =
        [Command::BusMake, Command::EndpointMake, Command::EndpointUpdate, Command::Hello, Command::Send];
    Command::ALL.iter().copied().filter(move |command| !other.contains(command))
}

/// Bytes of an item, header included, whose size need not be right.
fn item(size: u64, kind: ItemType, payload: &[u8]) -> Vec<u8> {
    let mut bytes = size.to_ne_bytes().to_vec();
    bytes.extend(kind.0.to_ne_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn an_unaligned_argument_is_a_fault<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    let arg = Hello::default().arg();
    let request = Command::Hello.request();
    assert_eq!(t.world.ioctl_at(&handle, request, &arg.bytes, BadAddress::Unaligned)?, Err(Errno::EFAULT));
    Ok(())
}

pub(crate) fn a_size_of_one_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    assert_eq!(t.run_on(&handle, &mut Hello::default().arg().claim(1)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_size_below_the_record_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for command in connected() {
        let size = command.shape().size as u64 - 1;
        assert_eq!(t.run(&a, &mut Arg::new(command).claim(size)), Err(Errno::EINVAL), "{command:?}");
    }
    let size = Command::Send.shape().size as u64 - 1;
    let mut arg = send_arg(kdbus_core::abi::SendFlags::empty()).claim(size);
    assert_eq!(t.send_with(&a, &mut arg, &mut Message::to(a.id)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_size_above_32_kib_is_too_large<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for command in connected() {
        let behind = vec![0; CMD_MAX_SIZE + 1 - command.shape().size];
        assert_eq!(t.run(&a, &mut Arg::new(command).raw(&behind)), Err(Errno::EMSGSIZE), "{command:?}");
    }
    Ok(())
}

pub(crate) fn the_largest_argument_is_looked_at<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let garbage = vec![0xee; CMD_MAX_SIZE - 24];
    assert_eq!(t.run(&a, &mut Arg::new(Command::NameAcquire).raw(&garbage)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn no_argument_is_a_fault<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let arg = Arg::new(Command::Recv);
    let request = Command::Recv.request();
    assert_eq!(t.world.ioctl_at(&a.handle, request, &arg.bytes, BadAddress::Null)?, Err(Errno::EFAULT));
    Ok(())
}

pub(crate) fn unknown_hello_flags_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    assert_eq!(t.run_on(&handle, &mut Hello::default().arg().flags(1 << 32)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn unknown_flags_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    assert_eq!(t.run(&b, &mut Arg::new(Command::Recv).flags(8)), Err(Errno::EINVAL));
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn an_unknown_request_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, fresh) = (t.connect(), t.fresh());
    let control = t.world.open_control(t.owner).unwrap();
    for handle in [&a.handle, &fresh, &control, t.control.as_ref().unwrap()] {
        assert_eq!(t.world.ioctl(handle, 0x4018_957f, &mut [0; 24]), Err(Errno::ENOTTY));
    }
    Ok(())
}

pub(crate) fn all_bits_of_the_request_count<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let request = Command::Recv.request();
    for other in [request ^ 1 << 19, request ^ 1 << 30] {
        let mut arg = Arg::new(Command::Recv);
        assert_eq!(t.world.ioctl(&a.handle, other, &mut arg.bytes), Err(Errno::ENOTTY), "{other:#x}");
    }
    Ok(())
}

pub(crate) fn a_fresh_endpoint_receives_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    assert_eq!(t.run_on(&handle, &mut Arg::new(Command::Recv)), Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn hello_is_for_endpoints<W: World>(t: &mut Bench<W>) -> Outcome {
    let control = t.world.open_control(t.owner).unwrap();
    assert_eq!(t.run_on(&control, &mut Hello::default().arg()), Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn bus_make_is_for_the_control_file<W: World>(t: &mut Bench<W>) -> Outcome {
    let (handle, name) = (t.fresh(), t.node_name("other"));
    assert_eq!(t.run_on(&handle, &mut bus_make(&name)), Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn hello_is_said_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.run(&a, &mut Hello::default().arg()), Err(Errno::EBADFD));
    t.send(&a, &Message::to(a.id)).unwrap();
    Ok(())
}

pub(crate) fn a_bus_owner_sends_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let control = t.control.take().unwrap();
    let mut arg = send_arg(kdbus_core::abi::SendFlags::empty());
    assert_eq!(t.world.send(&control, &mut arg.bytes, None), Err(Errno::EBADFD));
    t.control = Some(control);
    Ok(())
}

pub(crate) fn a_connection_has_no_endpoint_policy<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.run(&a, &mut Arg::new(Command::EndpointUpdate)), Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn an_endpoint_owner_receives_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (handle, name) = (t.fresh(), t.node_name("endpoint"));
    t.run_on(&handle, &mut Arg::new(Command::EndpointMake).item(&Item::text(ItemType::MAKE_NAME, &name)))
        .unwrap();
    assert_eq!(t.run_on(&handle, &mut Arg::new(Command::Recv)), Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn an_item_holds_its_own_header<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::NameAcquire).raw(&item(15, ItemType::NAME, b"a.b\0\0\0\0\0"));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn an_item_ends_within_the_command<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for size in [25, 32, u64::MAX, u64::MAX - 23] {
        let mut arg = Arg::new(Command::NameAcquire).raw(&item(size, ItemType::NAME, b"a.b\0\0\0\0\0"));
        assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL), "{size}");
    }
    Ok(())
}

pub(crate) fn a_string_ends_with_nul<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = info_arg(Command::ConnInfo, 0, 0).raw(&item(17, ItemType::NAME, b"x"));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_string_has_one_nul<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::NameAcquire).item(&Item::bytes(ItemType::NAME, b"a.b\0c\0"));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn the_last_padding_may_be_left_out<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = name_arg(Command::NameAcquire, NAME);
    assert_ne!(arg.bytes.len() % 8, 0);
    assert_eq!(t.run(&a, &mut arg), Ok(()));
    Ok(())
}

pub(crate) fn the_last_padding_may_be_included<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let arg = name_arg(Command::NameAcquire, NAME);
    let padding = vec![0; arg.bytes.len().next_multiple_of(8) - arg.bytes.len()];
    assert_eq!(t.run(&a, &mut arg.raw(&padding)), Ok(()));
    Ok(())
}

pub(crate) fn stray_bytes_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg =
        Arg::new(Command::NameAcquire).item(&Item::bytes(ItemType::NAME, b"a.bcdef\0")).raw(&[0; 8]);
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn foreign_items_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::Recv).item(&Item::text(ItemType::MAKE_NAME, "0-x"));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_single_item_is_given_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = name_arg(Command::NameAcquire, NAME).item(&Item::text(ItemType::NAME, NAME));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_mandatory_item_is_given<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.run(&a, &mut Arg::new(Command::NameAcquire)), Err(Errno::EINVAL));
    assert_eq!(t.run(&a, &mut Arg::new(Command::NameRelease)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_failing_command_clears_its_return_flags<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = name_arg(Command::NameAcquire, "foo").word(16, 0xff);
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    assert_eq!(arg.get(16), 0);
    let record = CmdInfo { return_flags: 0xff, id: u64::MAX - 1, ..CmdInfo::default() };
    let mut arg = Arg::of(Command::ConnInfo, &record);
    assert_eq!(t.run(&a, &mut arg), Err(Errno::ENXIO));
    assert_eq!(arg.get(16), 0);
    Ok(())
}

pub(crate) fn the_kind_of_connection_is_checked_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let monitor = t.hello(&Hello::monitor());
    let mut garbage = vec![0xee; 56];
    assert_eq!(t.world.send(&monitor.handle, &mut garbage, None), Err(Errno::EOPNOTSUPP));
    // Where `msg_address` stands nobody looks.
    assert_eq!(garbage[..24], [0xee; 24]);
    assert_eq!(garbage[32..], [0xee; 24]);
    let mut arg = name_arg(Command::NameAcquire, NAME)
        .flags(NameFlags::all().bits() | AttachFlags::all().bits() | HelloFlags::all().bits())
        .word(16, 0xff);
    assert_eq!(t.run(&monitor, &mut arg), Err(Errno::EOPNOTSUPP));
    assert_eq!(arg.get(16), 0xff);
    Ok(())
}
