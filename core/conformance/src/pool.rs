//! The receive pool: publishing slices, giving them back, mapping them.

use kdbus_core::abi::{
    AttachFlags, CmdInfo, CmdList, Command, Errno, ITEM_HEADER, Info, ItemType, Items, ListFlags, Msg,
};

use crate::bench::{Bench, Conn, Outcome, info_arg};
use crate::build::{Arg, Hello, Item, Message, POOL};
use crate::world::World;

/// Bytes of the messages whose slices are put together again.
const SLICE: usize = 576;

/// A receiver whose messages carry no metadata, so that sizes are simple.
fn plain<W: World>(t: &mut Bench<W>, pool: u64) -> Conn<W> {
    t.hello(&Hello::default().asks(AttachFlags::empty()).pool(pool))
}

pub(crate) fn nothing_published_cannot_be_freed<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.free(&a, 0), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn beyond_the_pool_nothing_can_be_freed<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.free(&a, a.pool + 1), Err(Errno::ENXIO));
    assert_eq!(t.free(&a, u64::MAX), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn the_empty_value_can_be_freed<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.free(&a, a.pool), Ok(()));
    assert_eq!(t.free(&a, a.pool), Ok(()));
    Ok(())
}

pub(crate) fn a_slice_is_freed_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let offset = t.recv_keep(&b).unwrap().info.offset;
    assert_eq!(t.free(&b, offset), Ok(()));
    assert_eq!(t.free(&b, offset), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn the_inside_of_a_slice_cannot_be_freed<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let offset = t.recv_keep(&b).unwrap().info.offset;
    assert_eq!(t.free(&b, offset + 8), Err(Errno::ENXIO));
    assert_eq!(t.free(&b, offset + 1), Err(Errno::ENXIO));
    assert_eq!(t.free(&b, offset), Ok(()));
    Ok(())
}

pub(crate) fn a_queued_message_cannot_be_freed<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, POOL));
    t.send(&a, &Message::to(b.id)).unwrap();
    // The pool is empty but for this message, which therefore lies at its start.
    assert_eq!(t.free(&b, 0), Err(Errno::ENXIO));
    assert_eq!(t.recv(&b).unwrap().info.offset, 0);
    Ok(())
}

pub(crate) fn a_peeked_and_freed_message_is_received_where_it_was<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).cookie(4)).unwrap();
    let offset = t.peek(&b).unwrap().offset;
    assert_eq!(t.free(&b, offset), Ok(()));
    assert_eq!(t.free(&b, offset), Err(Errno::ENXIO));
    let received = t.recv_keep(&b).unwrap();
    assert_eq!((received.info.offset, received.msg.cookie), (offset, 4));
    assert_eq!(t.free(&b, offset), Ok(()));
    Ok(())
}

pub(crate) fn a_peeked_slice_outlives_its_dropped_message<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    let offset = t.peek(&b).unwrap().offset;
    t.drop_first(&b).unwrap();
    assert_eq!(t.free(&b, offset), Ok(()));
    assert_eq!(t.free(&b, offset), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn queries_take_slices_of_their_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let mut offsets = [0; 2];
    for offset in &mut offsets {
        let mut arg = Arg::new(Command::List).flags(ListFlags::UNIQUE.bits());
        t.run(&a, &mut arg).unwrap();
        *offset = arg.read::<CmdList>().offset;
    }
    assert_ne!(offsets[0], offsets[1]);
    for offset in offsets {
        assert_eq!(t.free(&a, offset), Ok(()));
    }
    Ok(())
}

pub(crate) fn a_pool_is_mapped_for_reading_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.world.map(&a.handle, a.pool, true)?, Err(Errno::EPERM));
    assert_eq!(t.world.map(&a.handle, a.pool, false)?, Ok(()));
    assert!(t.world.make_mapping_writable(&a.handle)?.is_err());
    Ok(())
}

pub(crate) fn a_mapping_stays_within_the_pool<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.world.map(&a.handle, a.pool + 4096, false)?, Err(Errno::EFAULT));
    let fresh = t.fresh();
    assert_eq!(t.world.map(&fresh, 4096, false)?, Err(Errno::EBADFD));
    Ok(())
}

pub(crate) fn a_pool_full_of_unfreed_slices_is_full<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, 4096));
    let mut kept = Vec::new();
    let failure = loop {
        match t.send(&a, &Message::to(b.id).vec(&[0; 192])) {
            Ok(()) => kept.push(t.recv_keep(&b).unwrap().info.offset),
            Err(errno) => break errno,
        }
    };
    assert_eq!(failure, Errno::EXFULL);
    t.assert_empty(&b, 0);
    t.free(&b, kept[3]).unwrap();
    t.send(&a, &Message::to(b.id).vec(&[0; 192])).unwrap();
    assert_eq!(t.recv_keep(&b).unwrap().info.offset, kept[3]);
    Ok(())
}

pub(crate) fn adjacent_free_slices_become_one<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    // Connections whose list takes exactly three of the slices below.
    let others: Vec<_> = (0..3 * SLICE / 24 - 2).map(|_| t.connect()).collect();
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let b = plain(t, 4096);
        let mut kept = Vec::new();
        for _ in 0..4 {
            t.send(&a, &Message::to(b.id).vec(&[1; SLICE - 64 - 32])).unwrap();
            kept.push(t.recv_keep(&b).unwrap().info);
        }
        assert!(kept.iter().all(|info| info.msg_size == SLICE as u64), "{kept:?}");
        // The fourth slice keeps the three from the rest of the pool, which is free and a little larger.
        assert!(kept.windows(2).all(|pair| pair[0].offset + SLICE as u64 == pair[1].offset), "{kept:?}");
        for i in order {
            t.free(&b, kept[i].offset).unwrap();
        }
        let mut arg = Arg::new(Command::List).flags(ListFlags::UNIQUE.bits());
        t.run(&b, &mut arg).unwrap();
        let list: CmdList = arg.read();
        assert_eq!((list.offset, list.list_size), (kept[0].offset, 3 * SLICE as u64), "{order:?}");
        t.close(b);
        // A handle may be closed a little later than it says.
        while t.list(&a, ListFlags::UNIQUE).len() > others.len() + 1 {}
    }
    Ok(())
}

pub(crate) fn slices_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, 4096));
    for round in 0..300 {
        let kept: Vec<u64> = (0..3)
            .map(|i| {
                t.send(&a, &Message::to(b.id).vec(&[1; 40][..8 * (i + 1)])).unwrap();
                t.recv_keep(&b).unwrap().info.offset
            })
            .collect();
        for i in 0..3 {
            t.free(&b, kept[(i + round) % 3]).unwrap();
        }
    }
    Ok(())
}

/// The bytes between the items of `area` and behind the last one.
fn padding(area: &[u8]) -> Vec<u8> {
    let items = Items::new(area).map(|item| item.unwrap());
    let ends = items.map(|item| item.at + ITEM_HEADER + item.payload.len());
    ends.flat_map(|end| area[end..].iter().copied().take(end.next_multiple_of(8) - end)).collect()
}

pub(crate) fn padding_shows_nothing_of_what_was_there<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let hello = Hello::default().item(Item::text(ItemType::CONN_DESCRIPTION, "odd"));
    let b = t.hello(&hello.pool(65536));
    t.own(&b, "com.example.padded");
    for kind in ["message", "connection", "bus", "list"] {
        t.send(&a, &Message::to(b.id).vec(&[0xff; 4000])).unwrap();
        t.recv(&b).unwrap();
        let all = AttachFlags::all().bits();
        let (offset, size, header) = match kind {
            "message" => {
                t.send(&b, &Message::named("com.example.padded")).unwrap();
                let received = t.recv_keep(&b).unwrap();
                (received.info.offset, received.msg.size, Msg::SIZE)
            }
            "list" => {
                let mut arg = Arg::new(Command::List).flags(ListFlags::NAMES.bits());
                t.run(&b, &mut arg).unwrap();
                let list: CmdList = arg.read();
                (list.offset, list.list_size, size_of::<Info>())
            }
            _ => {
                let command = if kind == "bus" { Command::BusCreatorInfo } else { Command::ConnInfo };
                let mut arg = info_arg(command, b.id, all);
                t.run(&b, &mut arg).unwrap();
                let info: CmdInfo = arg.read();
                (info.offset, info.info_size, size_of::<Info>())
            }
        };
        let bytes = t.world.pool(&b.handle, offset, size).unwrap();
        let padding = padding(&bytes[header..]);
        assert!(!padding.is_empty(), "{kind} has none");
        assert!(padding.iter().all(|byte| *byte == 0), "{kind}: {padding:?}");
        t.free(&b, offset).unwrap();
    }
    Ok(())
}
