//! Monitors: a copy of everything, seen by nobody.

use kdbus_core::abi::{AttachFlags, Errno, HelloFlags, ItemType, ListFlags, MATCH_ID_ANY, RecvFlags};

use crate::bench::{Bench, Conn, Outcome};
use crate::build::{Hello, Item, Message, POOL};
use crate::world::World;

/// Receives until a message of `sender` with this cookie has come; false if none is there.
fn sees<W: World>(t: &mut Bench<W>, monitor: &Conn<W>, sender: u64, cookie: u64) -> bool {
    std::iter::from_fn(|| t.recv(monitor).ok())
        .any(|received| (received.msg.src_id, received.msg.cookie) == (sender, cookie))
}

pub(crate) fn nobody_hears_of_a_monitor<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)]).unwrap();
    t.add_match(&a, 2, &[Item::id_change(ItemType::ID_REMOVE, MATCH_ID_ANY)]).unwrap();
    let monitor = t.hello(&Hello::monitor());
    t.close(monitor);
    let b = t.connect();
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_ADD), b.id);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn unicasts_are_copied<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, monitor) = (t.connect(), t.connect(), t.hello(&Hello::monitor()));
    t.send(&a, &Message::to(b.id).cookie(3).vec(b"overheard")).unwrap();
    let (copy, original) = (t.recv(&monitor).unwrap(), t.recv(&b).unwrap());
    for received in [&copy, &original] {
        assert_eq!((received.msg.src_id, received.msg.dst_id, received.msg.cookie), (a.id, b.id, 3));
        assert_eq!(received.payload(), b"overheard");
    }
    assert_eq!(copy.timestamp(), original.timestamp());
    Ok(())
}

pub(crate) fn broadcasts_are_copied_without_a_match<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, monitor) = (t.connect(), t.hello(&Hello::monitor()));
    t.send(&a, &Message::broadcast().cookie(3)).unwrap();
    assert_eq!(t.recv(&monitor).unwrap().msg.cookie, 3);
    t.assert_empty(&monitor, 0);
    Ok(())
}

pub(crate) fn a_denied_message_is_not_copied<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let (a, u) = (t.connect(), t.hello_as(user, &Hello::default()));
    let monitor = t.hello(&Hello::monitor());
    assert_eq!(t.send(&u, &Message::to(a.id).cookie(3)), Err(Errno::EPERM));
    t.assert_empty(&monitor, 0);
    Ok(())
}

pub(crate) fn a_message_that_did_not_fit_is_copied<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().pool(4096)));
    let monitor = t.hello(&Hello::monitor());
    assert_eq!(t.send(&a, &Message::to(b.id).cookie(3).vec(&[0; 4000])), Err(Errno::ENOBUFS));
    assert!(sees(t, &monitor, a.id, 3));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_monitor_has_its_own_mask<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let blind = t.hello(&Hello::monitor().asks(AttachFlags::empty()));
    let curious = t.hello(&Hello::monitor().asks(AttachFlags::TIMESTAMP | AttachFlags::CREDS));
    t.send(&a, &Message::to(b.id)).unwrap();
    let (less, more) = (t.recv(&blind).unwrap(), t.recv(&curious).unwrap());
    assert!(less.items.is_empty());
    let kinds: Vec<_> = more.items.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [ItemType::CREDS, ItemType::TIMESTAMP]);
    Ok(())
}

pub(crate) fn descriptors_stay_away_from_who_takes_none<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let monitor = t.hello(&Hello::default().flags(HelloFlags::MONITOR));
    let fd = t.world.event(t.owner);
    t.send(&a, &Message::to(b.id).fds(&[fd])).unwrap();
    assert_eq!(t.recv(&monitor).unwrap().fds(), [-1]);
    assert!(t.recv(&b).unwrap().fds()[0] >= 0);
    Ok(())
}

pub(crate) fn a_full_monitor_loses_alone<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty()).pool(POOL)));
    let monitor = t.hello(&Hello::monitor().pool(4096));
    t.send(&a, &Message::to(b.id).vec(&[0; 4000])).unwrap();
    assert_eq!(t.recv(&b).unwrap().payload().len(), 4000);
    let (result, command) = t.recv_raw(&monitor, RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs), (Err(Errno::EAGAIN), 1));
    Ok(())
}

pub(crate) fn a_monitor_is_found_by_id_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, monitor) = (t.connect(), t.hello(&Hello::monitor()));
    let listed = t.list(&a, ListFlags::all());
    assert!(listed.iter().all(|record| record.id != monitor.id));
    assert_eq!(t.conn_info(&a, monitor.id, AttachFlags::empty()).unwrap().info.id, monitor.id);
    Ok(())
}

pub(crate) fn replies_and_notifications_are_copied<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let monitor = t.hello(&Hello::monitor());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.send(&b, &Message::reply(a.id, 7).cookie(8)).unwrap();
    assert_eq!(t.recv(&monitor).unwrap().msg.cookie, 7);
    assert_eq!(t.recv(&monitor).unwrap().msg.cookie, 8);
    t.own(&a, "com.example.name");
    let name = "com.example.name".to_owned();
    assert_eq!(t.recv(&monitor).unwrap().name_change(ItemType::NAME_ADD), (0, a.id, name));
    t.send(&a, &Message::call(b.id, 9, 1)).unwrap();
    assert_eq!(t.recv(&monitor).unwrap().msg.cookie, 9);
    let late = t.wait_recv(&monitor);
    assert_eq!((late.kind(), late.msg.dst_id), (Some(ItemType::REPLY_TIMEOUT), a.id));
    Ok(())
}
