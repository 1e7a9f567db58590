//! RECV: peeking, dropping, priorities, and lost broadcasts.

use kdbus_core::abi::{Errno, RecvFlags, RecvReturnFlags};

use crate::bench::{Bench, Outcome};
use crate::build::{Hello, Message};
use crate::world::{Poll, World};

const PRIORITIES: [i64; 12] = [25, -600, 10, -35, -100, 20, -15, -800, -150, 10, -800, -10];

pub(crate) fn an_empty_queue_says_try_again<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let (result, command) = t.recv_raw(&a, RecvFlags::empty(), 0);
    assert_eq!(result, Err(Errno::EAGAIN));
    assert_eq!((command.msg.offset, command.msg.msg_size, command.dropped_msgs), (a.pool, 0, 0));
    Ok(())
}

pub(crate) fn the_most_urgent_message_comes_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    for (cookie, priority) in (0..).zip(PRIORITIES) {
        t.send(&a, &Message::to(b.id).priority(priority).cookie(cookie)).unwrap();
    }
    let steps = [
        (-200, Ok((-800, 7))),
        (-100, Ok((-800, 10))),
        (-400, Ok((-600, 1))),
        (-400, Err(Errno::EAGAIN)),
        (10, Ok((-150, 8))),
        (10, Ok((-100, 4))),
    ];
    for (least, expected) in steps {
        let received = t.recv_urgent(&b, least);
        assert_eq!(received.map(|received| (received.msg.priority, received.msg.cookie)), expected);
    }
    assert_eq!(t.recv(&b).unwrap().msg.priority, 25);
    Ok(())
}

pub(crate) fn equal_priorities_leave_in_order_of_sending<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    for (cookie, priority) in [(1, 5), (2, -3), (3, 5), (4, -3), (5, -3)] {
        t.send(&a, &Message::to(b.id).priority(priority).cookie(cookie)).unwrap();
    }
    let order: Vec<u64> = (0..5).map(|_| t.recv_urgent(&b, i64::MAX).unwrap().msg.cookie).collect();
    assert_eq!(order, [2, 4, 5, 1, 3]);
    Ok(())
}

pub(crate) fn dropping_by_priority_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    assert_eq!(t.recv_raw(&b, RecvFlags::DROP | RecvFlags::USE_PRIORITY, 0).0, Err(Errno::EINVAL));
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn a_dropped_message_is_gone<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).cookie(1)).unwrap();
    t.send(&a, &Message::to(b.id).cookie(2)).unwrap();
    let (result, command) = t.recv_raw(&b, RecvFlags::DROP, 0);
    assert_eq!((result, command.msg.offset, command.msg.msg_size), (Ok(()), b.pool, 0));
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 2);
    Ok(())
}

pub(crate) fn dropping_wins_over_peeking<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id)).unwrap();
    assert_eq!(t.recv_raw(&b, RecvFlags::PEEK | RecvFlags::DROP, 0).0, Ok(()));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_peeked_message_stays_where_it_is<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).cookie(3)).unwrap();
    let first = t.peek(&b).unwrap();
    assert_eq!(t.look(&b, first).msg.cookie, 3);
    assert_eq!(t.peek(&b), Ok(first));
    assert_eq!(t.recv(&b).unwrap().info.offset, first.offset);
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_policy_holder_receives_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let holder = t.hello(&Hello::policy_holder("com.example.p", &[]));
    assert_eq!(t.recv_raw(&holder, RecvFlags::empty(), 0).0, Err(Errno::EOPNOTSUPP));
    Ok(())
}

/// A receiver of broadcasts whose pool is too small for one with 4000 bytes.
fn small_receiver<W: World>(t: &mut Bench<W>) -> crate::bench::Conn<W> {
    let conn = t.hello(&Hello::default().pool(4096).asks(kdbus_core::abi::AttachFlags::empty()));
    t.add_match(&conn, 1, &[]).unwrap();
    conn
}

pub(crate) fn polling_tells_of_messages_and_losses<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), small_receiver(t));
    let idle = Poll { readable: false, writable: true, hung_up: false };
    assert_eq!(t.world.poll(&b.handle), idle);
    t.send(&a, &Message::to(b.id)).unwrap();
    assert_eq!(t.world.poll(&b.handle), Poll { readable: true, ..idle });
    t.recv(&b).unwrap();
    assert_eq!(t.world.poll(&b.handle), idle);
    t.send(&a, &Message::broadcast().vec(&[0; 4000])).unwrap();
    assert_eq!(t.world.poll(&b.handle), Poll { readable: true, ..idle });
    Ok(())
}

pub(crate) fn a_lost_broadcast_is_reported_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), small_receiver(t));
    t.send(&a, &Message::broadcast().vec(&[0; 4000])).unwrap();
    let (result, command) = t.recv_raw(&b, RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs), (Err(Errno::EAGAIN), 1));
    assert_eq!(command.return_flags, RecvReturnFlags::DROPPED_MSGS.bits());
    let (result, command) = t.recv_raw(&b, RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs, command.return_flags), (Err(Errno::EAGAIN), 0, 0));
    Ok(())
}

pub(crate) fn peeking_reports_losses_too<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), small_receiver(t));
    t.send(&a, &Message::to(b.id)).unwrap();
    t.send(&a, &Message::broadcast().vec(&[0; 4000])).unwrap();
    let (result, command) = t.recv_raw(&b, RecvFlags::PEEK, 0);
    assert_eq!((result, command.dropped_msgs), (Ok(()), 1));
    assert_eq!(command.return_flags, RecvReturnFlags::DROPPED_MSGS.bits());
    let (result, command) = t.recv_raw(&b, RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs), (Ok(()), 0));
    Ok(())
}

pub(crate) fn peeking_by_priority_shows_the_most_urgent<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    for (cookie, priority) in [(1, 5), (2, -5), (3, 0)] {
        t.send(&a, &Message::to(b.id).priority(priority).cookie(cookie)).unwrap();
    }
    let (result, command) = t.recv_raw(&b, RecvFlags::PEEK | RecvFlags::USE_PRIORITY, 0);
    assert_eq!(result, Ok(()));
    assert_eq!(t.look(&b, command.msg).msg.cookie, 2);
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 1, "arrival does not ask for priority");
    assert_eq!(t.recv_urgent(&b, 0).unwrap().msg.cookie, 2);
    Ok(())
}

pub(crate) fn the_whole_range_of_priorities_is_in_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let priorities = [0, i64::MAX, i64::MIN, -1, 1];
    for priority in priorities {
        t.send(&a, &Message::to(b.id).priority(priority)).unwrap();
    }
    assert_eq!(t.recv_urgent(&b, i64::MIN).unwrap().msg.priority, i64::MIN);
    let rest: Vec<i64> = (0..4).map(|_| t.recv_urgent(&b, i64::MAX).unwrap().msg.priority).collect();
    assert_eq!(rest, [-1, 0, 1, i64::MAX]);
    Ok(())
}

pub(crate) fn a_long_queue_keeps_its_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    for cookie in 0..24 {
        let sender = if cookie % 3 == 0 { &c } else { &a };
        t.send(sender, &Message::to(b.id).cookie(cookie).priority(-(cookie as i64))).unwrap();
    }
    for cookie in 0..24 {
        assert_eq!(t.recv(&b).unwrap().msg.cookie, cookie);
    }
    Ok(())
}
