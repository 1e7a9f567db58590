//! Asking which flags and items are known.

use kdbus_core::abi::{Command, Errno, FLAG_NEGOTIATE, ItemType, NameFlags, SendFlags};
use zerocopy::IntoBytes;

use crate::bench::{Bench, Outcome, name_arg, send_arg};
use crate::build::{Arg, Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.name";

fn probe() -> Item {
    Item::bytes(ItemType::NEGOTIATE, [ItemType::NAME.0, 0x7777].as_bytes())
}

pub(crate) fn hello_can_be_asked_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let handle = t.fresh();
    let mut arg = Hello::default().arg().flags(FLAG_NEGOTIATE);
    assert_eq!(t.run_on(&handle, &mut arg), Ok(()));
    assert_eq!(arg.get(8), 0xf);
    assert_eq!(t.run_on(&handle, &mut Hello::default().arg()), Ok(()));
    Ok(())
}

pub(crate) fn bus_make_can_be_asked_without_items<W: World>(t: &mut Bench<W>) -> Outcome {
    let control = t.world.open_control(t.owner).unwrap();
    let mut arg = Arg::new(Command::BusMake).flags(FLAG_NEGOTIATE);
    assert_eq!(t.run_on(&control, &mut arg), Ok(()));
    assert_eq!(arg.get(8), 3);
    let name = t.node_name("other");
    assert_eq!(t.world.node(&name, None), None);
    assert_eq!(t.run_on(&control, &mut crate::build::bus_make(&name)), Ok(()));
    Ok(())
}

pub(crate) fn asking_byebye_disconnects_nobody<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::Byebye).flags(FLAG_NEGOTIATE);
    assert_eq!(t.run(&a, &mut arg), Ok(()));
    assert_eq!(arg.get(8), 0);
    t.send(&a, &Message::to(a.id)).unwrap();
    Ok(())
}

pub(crate) fn asking_recv_takes_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.send(&a, &Message::to(a.id)).unwrap();
    let mut arg = Arg::new(Command::Recv).flags(FLAG_NEGOTIATE);
    assert_eq!(t.run(&a, &mut arg), Ok(()));
    assert_eq!(arg.get(8), 7);
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn every_command_tells_its_flags<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for (command, flags) in [
        (Command::List, 0xf),
        (Command::NameAcquire, 7),
        (Command::NameRelease, 0),
        (Command::MatchAdd, 1),
        (Command::MatchRemove, 0),
        (Command::Free, 0),
        (Command::ConnInfo, 0),
        (Command::BusCreatorInfo, 0),
        (Command::Update, 0),
    ] {
        let mut arg = Arg::new(command).flags(FLAG_NEGOTIATE);
        assert_eq!((t.run(&a, &mut arg), arg.get(8)), (Ok(()), flags), "{command:?}");
    }
    Ok(())
}

pub(crate) fn an_unknown_flag_is_refused_even_then<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::Recv).flags(FLAG_NEGOTIATE | 1 << 40);
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn unknown_item_types_are_cleared<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::NameAcquire).flags(FLAG_NEGOTIATE).item(&probe());
    assert_eq!(t.run(&a, &mut arg), Ok(()));
    assert_eq!((arg.get(40), arg.get(48)), (ItemType::NAME.0, 0));
    Ok(())
}

pub(crate) fn items_can_be_asked_about_while_working<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = Arg::new(Command::NameAcquire).item(&probe()).item(&Item::text(ItemType::NAME, NAME));
    assert_eq!(t.run(&a, &mut arg), Ok(()));
    assert_eq!((arg.get(40), arg.get(48)), (ItemType::NAME.0, 0));
    assert_eq!(t.name_flags(&a, a.id, NAME), Some(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn a_probe_is_whole_words<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = name_arg(Command::NameAcquire, NAME).item(&Item::bytes(ItemType::NEGOTIATE, &[0; 12]));
    assert_eq!(t.run(&a, &mut arg), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn send_can_be_asked_without_a_message<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = send_arg(SendFlags::empty()).flags(FLAG_NEGOTIATE);
    assert_eq!(t.world.send(&a.handle, &mut arg.bytes, None), Ok(()));
    assert_eq!(arg.get(8), 1);
    Ok(())
}

pub(crate) fn send_can_be_asked_about_messages<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = send_arg(SendFlags::empty()).flags(FLAG_NEGOTIATE);
    let mut message = Message::to(a.id).raw_flags(FLAG_NEGOTIATE);
    assert_eq!(t.send_with(&a, &mut arg, &mut message), Ok(()));
    assert_eq!((arg.get(8), message.get(8)), (1, 7));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_message_alone_is_not_asked<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut arg = send_arg(SendFlags::empty());
    let mut message = Message::to(a.id).raw_flags(FLAG_NEGOTIATE);
    assert_eq!(t.send_with(&a, &mut arg, &mut message), Err(Errno::EINVAL));
    assert_eq!(message.get(8), 7);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_probe_inside_a_message_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::to(a.id).item(&probe())), Err(Errno::EINVAL));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn only_send_clears_its_return_flags_when_asked<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for command in [Command::Recv, Command::List, Command::NameAcquire, Command::Free] {
        let mut arg = Arg::new(command).flags(FLAG_NEGOTIATE).word(16, 0xff);
        assert_eq!((t.run(&a, &mut arg), arg.get(16)), (Ok(()), 0xff), "{command:?}");
    }
    let mut arg = send_arg(SendFlags::empty()).flags(FLAG_NEGOTIATE).word(16, 0xff);
    assert_eq!(t.world.send(&a.handle, &mut arg.bytes, None), Ok(()));
    assert_eq!(arg.get(16), 0);
    Ok(())
}
