//! Activators, and handing messages over to and from services.

use kdbus_core::abi::{
    AttachFlags, Errno, HelloFlags, ItemType, ListFlags, MATCH_ID_ANY, NameFlags, RecvFlags,
};

use crate::bench::{Bench, Outcome};
use crate::build::{Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.service";
const NONE: NameFlags = NameFlags::empty();

/// The cookies of all messages that wait at `conn`, in order.
fn cookies<W: World>(t: &mut Bench<W>, conn: &crate::bench::Conn<W>) -> Vec<u64> {
    std::iter::from_fn(|| t.recv(conn).ok()).map(|received| received.msg.cookie).collect()
}

pub(crate) fn an_activator_owns_its_name_at_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_ADD, NAME)]).unwrap();
    let activator = t.hello(&Hello::activator(NAME));
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_ADD), (0, activator.id, NAME.to_owned()));
    assert_eq!(received.name_change_flags(), (NONE, NameFlags::ACTIVATOR | NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn a_message_to_its_name_wakes_it<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator(NAME)));
    assert!(!t.world.poll(&activator.handle).readable);
    t.send(&a, &Message::named(NAME)).unwrap();
    assert!(t.world.poll(&activator.handle).readable);
    Ok(())
}

pub(crate) fn a_service_takes_over_what_waits<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, activator) = (t.connect(), t.connect(), t.hello(&Hello::activator(NAME)));
    t.send(&a, &Message::named(NAME).cookie(1).vec(b"wake up")).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_CHANGE, NAME)]).unwrap();
    assert_eq!(t.acquire(&b, NAME, NONE), Ok(NameFlags::PRIMARY | NameFlags::ACQUIRED));
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_CHANGE), (activator.id, b.id, NAME.to_owned()));
    let old = NameFlags::ACTIVATOR | NameFlags::PRIMARY;
    assert_eq!(received.name_change_flags(), (old, NameFlags::PRIMARY));
    let first = t.recv(&b).unwrap();
    assert_eq!((first.msg.cookie, first.payload()), (1, b"wake up".to_vec()));
    assert_eq!(cookies(t, &b), [2]);
    t.assert_empty(&activator, 0);
    Ok(())
}

pub(crate) fn behind_a_service_it_waits_in_the_list<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, activator) = (t.connect(), t.connect(), t.hello(&Hello::activator(NAME)));
    t.acquire(&b, NAME, NONE).unwrap();
    let listed = t.list(&a, ListFlags::ACTIVATORS);
    let flags = NameFlags::ACTIVATOR | NameFlags::IN_QUEUE;
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id, &listed[0].name), (activator.id, &Some((flags, NAME.to_owned()))));
    Ok(())
}

pub(crate) fn a_leaving_service_gives_back_what_waits<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, activator) = (t.connect(), t.connect(), t.hello(&Hello::activator(NAME)));
    t.acquire(&b, NAME, NONE).unwrap();
    t.send(&a, &Message::named(NAME).cookie(1)).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    t.recv(&b).unwrap();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_CHANGE, NAME)]).unwrap();
    t.release(&b, NAME).unwrap();
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_CHANGE), (b.id, activator.id, NAME.to_owned()));
    let new = NameFlags::ACTIVATOR | NameFlags::PRIMARY;
    assert_eq!(received.name_change_flags(), (NameFlags::PRIMARY, new));
    t.assert_empty(&b, 0);
    assert_eq!(cookies(t, &activator), [2]);
    Ok(())
}

pub(crate) fn messages_by_id_stay_with_the_service<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, activator) = (t.connect(), t.connect(), t.hello(&Hello::activator(NAME)));
    t.acquire(&b, NAME, NONE).unwrap();
    t.send(&a, &Message::to(b.id).cookie(1)).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    t.release(&b, NAME).unwrap();
    assert_eq!(cookies(t, &b), [1]);
    assert_eq!(cookies(t, &activator), [2]);
    Ok(())
}

/// Queues `at_service` messages at a new service and `at_activator` at the activator, lets the service take
/// the name, and returns how many named messages it received and how many it lost.
fn take_over<W: World>(t: &mut Bench<W>, at_service: usize, at_activator: usize) -> (usize, u64) {
    let a = t.connect();
    let hello = Hello::default().asks(AttachFlags::empty());
    let b = t.hello(&hello);
    let _activator = t.hello(&Hello::activator(NAME).asks(AttachFlags::empty()));
    for _ in 0..at_service {
        t.send(&a, &Message::to(b.id)).unwrap();
    }
    for cookie in 1..=at_activator {
        t.send(&a, &Message::named(NAME).cookie(cookie as u64)).unwrap();
    }
    t.acquire(&b, NAME, NONE).unwrap();
    let (result, command) = t.recv_raw(&b, RecvFlags::PEEK, 0);
    assert_eq!(result, Ok(()));
    let arrived: Vec<u64> = cookies(t, &b).into_iter().filter(|cookie| *cookie != 0).collect();
    assert!(arrived.iter().copied().eq(1..=arrived.len() as u64), "the oldest move first: {arrived:?}");
    (arrived.len(), command.dropped_msgs)
}

pub(crate) fn what_does_not_fit_a_service_is_lost<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(take_over(t, 250, 10), (6, 4));
    Ok(())
}

pub(crate) fn a_full_service_loses_everything<W: World>(t: &mut Bench<W>) -> Outcome {
    assert_eq!(take_over(t, 256, 10), (0, 10));
    Ok(())
}

pub(crate) fn descriptors_do_not_move_to_who_takes_none<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().flags(HelloFlags::empty())));
    let _activator = t.hello(&Hello::activator(NAME));
    let fd = t.world.event(t.owner);
    t.send(&a, &Message::named(NAME).fds(&[fd])).unwrap();
    t.acquire(&b, NAME, NONE).unwrap();
    t.assert_empty(&b, 1);
    Ok(())
}

pub(crate) fn a_call_is_answered_by_the_service<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let _activator = t.hello(&Hello::activator(NAME));
    t.send(&a, &Message::named(NAME).expecting(7, far)).unwrap();
    t.acquire(&b, NAME, NONE).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 7);
    t.send(&b, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.timeout_or_reply, 7);
    Ok(())
}

pub(crate) fn who_gave_the_name_away_answers_no_more<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let _activator = t.hello(&Hello::activator(NAME));
    t.acquire(&b, NAME, NONE).unwrap();
    t.send(&a, &Message::named(NAME).expecting(7, far)).unwrap();
    t.recv(&b).unwrap();
    t.release(&b, NAME).unwrap();
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn the_next_service_may_answer<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c, far) = (t.connect(), t.connect(), t.connect(), t.far());
    let activator = t.hello(&Hello::activator(NAME));
    t.acquire(&b, NAME, NONE).unwrap();
    t.send(&a, &Message::named(NAME).expecting(7, far)).unwrap();
    t.close(b);
    t.wait_readable(&activator);
    t.acquire(&c, NAME, NONE).unwrap();
    assert_eq!(t.recv(&c).unwrap().msg.cookie, 7);
    t.assert_empty(&a, 0);
    t.send(&c, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, c.id);
    Ok(())
}

pub(crate) fn a_dying_activator_takes_its_name_along<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator, far) = (t.connect(), t.hello(&Hello::activator(NAME)), t.far());
    t.send(&a, &Message::named(NAME).expecting(7, far)).unwrap();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_REMOVE, NAME)]).unwrap();
    let id = activator.id;
    t.close(activator);
    assert_eq!(t.wait_recv(&a).name_change(ItemType::NAME_REMOVE), (id, 0, NAME.to_owned()));
    let dead = t.wait_recv(&a);
    assert_eq!((dead.kind(), dead.msg.timeout_or_reply), (Some(ItemType::REPLY_DEAD), 7));
    t.assert_empty(&a, 0);
    assert_eq!(t.send(&a, &Message::named(NAME)), Err(Errno::ESRCH));
    Ok(())
}

pub(crate) fn behind_a_service_it_dies_quietly<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, activator) = (t.connect(), t.connect(), t.hello(&Hello::activator(NAME)));
    t.acquire(&b, NAME, NONE).unwrap();
    for (cookie, kind) in [(1, ItemType::NAME_REMOVE), (2, ItemType::NAME_CHANGE), (3, ItemType::NAME_ADD)] {
        t.add_match(&a, cookie, &[Item::any_change(kind, NAME)]).unwrap();
    }
    t.add_match(&a, 4, &[Item::id_change(ItemType::ID_REMOVE, MATCH_ID_ANY)]).unwrap();
    let id = activator.id;
    t.close(activator);
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_REMOVE), id);
    t.assert_empty(&a, 0);
    t.send(&a, &Message::named(NAME)).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn strangers_do_not_wake_it<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let (activator, u) = (t.hello(&Hello::activator(NAME)), t.hello_as(user, &Hello::default()));
    assert_eq!(t.send(&u, &Message::named(NAME)), Err(Errno::EPERM));
    assert!(!t.world.poll(&activator.handle).readable);
    Ok(())
}

pub(crate) fn broadcasts_do_not_reach_it<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator(NAME)));
    t.send(&a, &Message::broadcast()).unwrap();
    t.assert_empty(&activator, 0);
    Ok(())
}

pub(crate) fn a_waiting_call_follows_the_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let _activator = t.hello(&Hello::activator(NAME));
    let call = t.start(&a, &Message::named(NAME).expecting(7, far));
    t.acquire(&b, NAME, NONE).unwrap();
    assert_eq!(t.wait_recv(&b).msg.cookie, 7);
    assert!(t.world.is_waiting(&call));
    t.send(&b, &Message::reply(a.id, 7).vec(b"at last")).unwrap();
    let info = t.finish(call).unwrap();
    assert_eq!(t.take(&a, info).payload(), b"at last");
    Ok(())
}

pub(crate) fn moved_messages_line_up_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let _activator = t.hello(&Hello::activator(NAME));
    t.send(&a, &Message::named(NAME).cookie(1).priority(-5)).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    t.send(&a, &Message::to(b.id).cookie(3)).unwrap();
    t.acquire(&b, NAME, NONE).unwrap();
    t.send(&a, &Message::named(NAME).cookie(4)).unwrap();
    assert_eq!(t.recv_urgent(&b, -5).unwrap().msg.cookie, 1, "the priority moved along");
    assert_eq!(cookies(t, &b), [3, 2, 4]);
    Ok(())
}

pub(crate) fn a_moved_descriptor_still_works<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let _activator = t.hello(&Hello::activator(NAME));
    let (reader, writer) = t.world.pipe(t.owner);
    t.world.write_fd(t.owner, writer, b"moved").unwrap();
    let memfd = t.world.memfd(t.owner, b"sealed", true);
    t.send(&a, &Message::named(NAME).fds(&[reader]).memfd(memfd, 0, 6).vec(b"text")).unwrap();
    t.acquire(&b, NAME, NONE).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!(received.payload(), b"text");
    assert_eq!(t.world.read_fd(t.owner, received.fds()[0], 100), Ok(b"moved".to_vec()));
    assert_eq!(t.world.read_fd(t.owner, received.memfds()[0], 100), Ok(b"sealed".to_vec()));
    Ok(())
}

pub(crate) fn a_moved_message_frees_its_room<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let activator = t.hello(&Hello::activator(NAME).pool(4096).asks(AttachFlags::empty()));
    for _ in 0..4 {
        let message = Message::named(NAME).vec(&[0; 100]);
        for _ in 0..2 {
            t.send(&a, &message).unwrap();
        }
        assert_eq!(t.send(&a, &message), Err(Errno::ENOBUFS));
        t.acquire(&b, NAME, NONE).unwrap();
        assert_eq!(cookies(t, &b).len(), 2);
        t.release(&b, NAME).unwrap();
    }
    t.assert_empty(&activator, 0);
    Ok(())
}

pub(crate) fn an_activator_may_come_after_the_service<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, NAME);
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_CHANGE, NAME)]).unwrap();
    t.add_match(&a, 2, &[Item::any_change(ItemType::NAME_ADD, NAME)]).unwrap();
    let activator = t.hello(&Hello::activator(NAME));
    t.assert_empty(&a, 0);
    t.send(&a, &Message::named(NAME).cookie(1)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 1);
    t.release(&b, NAME).unwrap();
    assert_eq!(t.recv(&a).unwrap().name_change(ItemType::NAME_CHANGE), (b.id, activator.id, NAME.to_owned()));
    Ok(())
}

pub(crate) fn a_waiter_comes_before_the_activator<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    let activator = t.hello(&Hello::activator(NAME));
    t.acquire(&b, NAME, NONE).unwrap();
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    t.send(&a, &Message::named(NAME).cookie(1)).unwrap();
    t.release(&b, NAME).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    assert_eq!(cookies(t, &b), [1], "nothing moves to a waiter");
    assert_eq!(cookies(t, &c), [2]);
    t.assert_empty(&activator, 0);
    Ok(())
}

pub(crate) fn a_message_lost_on_its_way_is_charged_to_nobody<W: World>(t: &mut Bench<W>) -> Outcome {
    let plain = Hello::default().asks(AttachFlags::empty()).pool(4096);
    let (a, b) = (t.connect(), t.hello(&plain));
    let _activator = t.hello(&Hello::activator(NAME).asks(AttachFlags::empty()));
    let mut kept = Vec::new();
    while t.send(&a, &Message::to(b.id).vec(&[0; 400])).is_ok() {
        kept.push(t.recv_keep(&b).unwrap().info.offset);
    }
    for _ in 0..3 {
        t.send(&a, &Message::named(NAME).vec(&[0; 500])).unwrap();
        t.acquire(&b, NAME, NONE).unwrap();
        t.assert_empty(&b, 1);
        t.release(&b, NAME).unwrap();
    }
    for offset in kept {
        t.free(&b, offset).unwrap();
    }
    // A sixth of the pool is still free for this user.
    t.send(&a, &Message::to(b.id).vec(&[0; 584])).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}
