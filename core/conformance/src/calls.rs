//! Calls whose replies come as messages.

use kdbus_core::abi::{Errno, ItemType, MsgFlags, PAYLOAD_KERNEL, SRC_ID_KERNEL};

use crate::bench::{Bench, Conn, MS, Outcome};
use crate::build::{Hello, Message};
use crate::world::World;

/// The next thing at `conn` is news that the call with this cookie will not be answered.
fn assert_news<W: World>(t: &mut Bench<W>, conn: &Conn<W>, kind: ItemType, cookie: u64) {
    let received = t.wait_recv(conn);
    assert_eq!(received.kind(), Some(kind));
    assert_eq!(received.all(kind), [&[][..]]);
    assert_eq!((received.msg.src_id, received.msg.dst_id), (SRC_ID_KERNEL, conn.id));
    assert_eq!((received.msg.payload_type, received.msg.flags), (PAYLOAD_KERNEL, 0));
    assert_eq!(received.msg.timeout_or_reply, cookie);
}

pub(crate) fn a_call_needs_a_deadline<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert_eq!(t.send(&a, &Message::call(b.id, 1, 0)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_signal_is_no_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let message = Message::signal_to(b.id).expecting(1, far);
    assert_eq!(t.send(&a, &message), Err(Errno::ENOTUNIQ));
    Ok(())
}

pub(crate) fn a_call_needs_no_cookie<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 0, far)).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!((received.msg.cookie, received.msg.timeout_or_reply), (0, far));
    Ok(())
}

pub(crate) fn a_reply_that_nobody_awaits_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert_eq!(t.send(&b, &Message::reply(a.id, 77)), Err(Errno::EBADSLT));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn only_the_callee_may_reply<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c, far) = (t.connect(), t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    assert_eq!(t.send(&c, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    t.send(&b, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, b.id);
    Ok(())
}

pub(crate) fn a_call_is_answered_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 7);
    let reply = Message::reply(a.id, 7).cookie(8).vec(b"answer");
    t.send(&b, &reply).unwrap();
    assert_eq!(t.send(&b, &reply), Err(Errno::EBADSLT));
    let received = t.recv(&a).unwrap();
    assert_eq!((received.msg.timeout_or_reply, received.msg.cookie), (7, 8));
    assert_eq!(received.payload(), b"answer");
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_callee_may_answer_whom_it_may_not_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let (a, u, far) = (t.connect(), t.hello_as(user, &Hello::default()), t.far());
    assert_eq!(t.send(&u, &Message::to(a.id)), Err(Errno::EPERM));
    t.send(&a, &Message::call(u.id, 7, far)).unwrap();
    t.send(&u, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, u.id);
    Ok(())
}

pub(crate) fn of_equal_cookies_the_newest_is_answered_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let now = t.world.now();
    let far = t.far();
    t.send(&a, &Message::call(b.id, 7, now + 300 * MS)).unwrap();
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.send(&b, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.src_id, b.id);
    // The older one is still there and ends by its deadline.
    assert_news(t, &a, ItemType::REPLY_TIMEOUT, 7);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_signal_is_no_reply<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let message = Message::signal_to(b.id).word(56, 7);
    assert_eq!(t.send(&a, &message), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn each_deadline_is_reported_in_its_turn<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let start = t.world.now();
    for cookie in [4, 2, 1, 3] {
        t.send(&a, &Message::call(b.id, cookie, start + cookie * 100 * MS)).unwrap();
    }
    for cookie in 1..=4 {
        assert_news(t, &a, ItemType::REPLY_TIMEOUT, cookie);
        assert!(t.world.now() >= start + cookie * 100 * MS);
    }
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_call_too_late_is_delivered_and_reported<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::call(b.id, 7, 1)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 7);
    assert_news(t, &a, ItemType::REPLY_TIMEOUT, 7);
    Ok(())
}

pub(crate) fn a_reply_too_late_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let deadline = t.world.now() + 50 * MS;
    t.send(&a, &Message::call(b.id, 7, deadline)).unwrap();
    assert_news(t, &a, ItemType::REPLY_TIMEOUT, 7);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_callee_that_dies_is_reported<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.recv(&b).unwrap();
    t.close(b);
    assert_news(t, &a, ItemType::REPLY_DEAD, 7);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_callee_that_dies_unheard_is_reported_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.close(b);
    assert_news(t, &a, ItemType::REPLY_DEAD, 7);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_dropped_call_is_reported<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.drop_first(&b).unwrap();
    assert_news(t, &a, ItemType::REPLY_DEAD, 7);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_caller_that_left_cannot_be_answered<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    let id = a.id;
    t.byebye(&a).unwrap();
    t.recv(&b).unwrap();
    assert_eq!(t.send(&b, &Message::reply(id, 7)), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn a_reply_that_failed_cannot_be_repeated<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.recv(&b).unwrap();
    let fill = Message::to(a.id).flags(MsgFlags::empty());
    for _ in 0..256 {
        t.send(&b, &fill).unwrap();
    }
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::ENOBUFS));
    t.drop_first(&a).unwrap();
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_late_deadline_does_not_hold_up_an_early_one<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let start = t.world.now();
    t.send(&a, &Message::call(b.id, 1, start + 3600 * 1000 * MS)).unwrap();
    t.send(&a, &Message::call(b.id, 2, start + 50 * MS)).unwrap();
    assert_news(t, &a, ItemType::REPLY_TIMEOUT, 2);
    assert_eq!(t.send(&b, &Message::reply(a.id, 2)), Err(Errno::EBADSLT));
    t.send(&b, &Message::reply(a.id, 1)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.timeout_or_reply, 1);
    Ok(())
}

pub(crate) fn a_deadline_beyond_all_time_never_comes<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::call(b.id, 1, u64::MAX)).unwrap();
    let later = t.world.now() + 30 * MS;
    t.world.sleep_until(later);
    t.assert_empty(&a, 0);
    t.send(&b, &Message::reply(a.id, 1)).unwrap();
    t.recv(&a).unwrap();
    Ok(())
}

pub(crate) fn a_callee_may_be_the_caller<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, far) = (t.connect(), t.far());
    t.send(&a, &Message::call(a.id, 7, far)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.cookie, 7);
    t.send(&a, &Message::reply(a.id, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.timeout_or_reply, 7);
    assert_eq!(t.send(&a, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_call_that_was_not_delivered_awaits_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().pool(4096)));
    let soon = t.world.now() + 30 * MS;
    assert_eq!(t.send(&a, &Message::call(b.id, 7, soon).vec(&[0; 4000])), Err(Errno::ENOBUFS));
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    t.world.sleep_until(soon + 10 * MS);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_reply_may_go_to_a_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.own(&a, "com.example.caller");
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.send(&b, &Message::named("com.example.caller").word(56, 7)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.timeout_or_reply, 7);
    Ok(())
}

pub(crate) fn everybody_who_waits_hears_of_a_death<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c, callee, far) = (t.connect(), t.connect(), t.connect(), t.connect(), t.far());
    // This one is received, and those after it are not.
    let waiting = t.start(&c, &Message::call(callee.id, 4, far));
    assert_eq!(t.wait_recv(&callee).msg.cookie, 4);
    t.send(&a, &Message::call(callee.id, 1, far)).unwrap();
    t.send(&a, &Message::call(callee.id, 2, far)).unwrap();
    t.send(&b, &Message::call(callee.id, 3, far)).unwrap();
    t.close(callee);
    let mut news: Vec<u64> = (0..2).map(|_| t.wait_recv(&a).msg.timeout_or_reply).collect();
    news.sort_unstable();
    assert_eq!(news, [1, 2]);
    assert_news(t, &b, ItemType::REPLY_DEAD, 3);
    assert_eq!(t.finish(waiting), Err(Errno::EPIPE));
    for conn in [&a, &b, &c] {
        t.assert_empty(conn, 0);
    }
    Ok(())
}
