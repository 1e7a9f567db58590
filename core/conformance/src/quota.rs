//! How much one user may keep waiting at one receiver.

use kdbus_core::abi::{AttachFlags, Errno, ItemType, MATCH_ID_ANY, RecvFlags};

use crate::bench::{Bench, Conn, MS, Outcome};
use crate::build::{Hello, Item, Message, POOL};
use crate::world::{Payload, World};

const NAME: &str = "com.example.name";

/// Bytes of header and one vector item.
const OVERHEAD: u64 = 64 + 32;

/// A receiver whose messages carry no metadata, so that sizes are simple.
fn plain<W: World>(t: &mut Bench<W>, pool: u64) -> Conn<W> {
    t.hello(&Hello::default().asks(AttachFlags::empty()).pool(pool))
}

/// A message that takes `size` bytes at a plain receiver, a multiple of 8.
fn sized(to: u64, size: u64) -> Message {
    const MOST: u64 = 2 << 20;
    let mut message = Message::to(to);
    let mut left = size - 64;
    while left > 0 {
        let part = (left - 32).min(MOST);
        message = message.vec(&vec![1; part as usize]);
        left -= part + 32;
    }
    message
}

/// How many messages `a` can still queue at `b`, and what the next one says.
fn fill<W: World>(t: &mut Bench<W>, a: &Conn<W>, b: &Conn<W>) -> (usize, Errno) {
    for count in 0.. {
        if let Err(errno) = t.send(a, &Message::to(b.id)) {
            return (count, errno);
        }
    }
    unreachable!("the queue is never full")
}

pub(crate) fn a_user_queues_up_to_256_messages<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), plain(t, POOL), t.connect());
    assert_eq!(fill(t, &a, &b), (256, Errno::ENOBUFS));
    assert_eq!(t.send(&c, &Message::to(b.id)), Err(Errno::ENOBUFS), "c is the same user");
    for _ in 0..256 {
        t.recv_keep(&b).unwrap();
    }
    assert_eq!(fill(t, &a, &b), (256, Errno::ENOBUFS));
    Ok(())
}

pub(crate) fn large_messages_leave_room_for_small_ones<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), plain(t, 16 << 20), t.connect());
    let large = Message::to(b.id).vec(&vec![1; 2 << 20]);
    t.send(&a, &large).unwrap();
    assert_eq!(t.send(&a, &large), Err(Errno::ENOBUFS));
    t.send(&c, &Message::to(b.id)).unwrap();
    Ok(())
}

pub(crate) fn a_message_takes_up_to_a_sixth_of_the_pool<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, 16 << 20));
    assert_eq!(t.send(&a, &sized(b.id, 2_796_208)), Err(Errno::ENOBUFS));
    t.send(&a, &sized(b.id, 2_796_200)).unwrap();
    assert_eq!(t.recv(&b).unwrap().info.msg_size, 2_796_200);
    let small = plain(t, 4096);
    assert_eq!(t.send(&a, &Message::to(small.id).vec(&[1; 592])), Err(Errno::ENOBUFS));
    t.send(&a, &Message::to(small.id).vec(&[1; 584])).unwrap();
    Ok(())
}

pub(crate) fn a_second_user_gets_a_third_of_the_rest<W: World>(t: &mut Bench<W>) -> Outcome {
    let (first, second) = (t.world.user(1)?, t.world.user(2)?);
    let b = plain(t, 16 << 20);
    let holder = t.hello(&Hello::policy_holder(NAME, &[Item::access(3, 1, 0)]));
    t.own(&b, NAME);
    let (u, v) = (t.hello_as(first, &Hello::default()), t.hello_as(second, &Hello::default()));
    t.send(&u, &sized(b.id, 2_097_248)).unwrap();
    assert_eq!(t.send(&v, &sized(b.id, 2_097_128)), Err(Errno::ENOBUFS));
    t.send(&v, &sized(b.id, 2_097_120)).unwrap();
    t.close(holder);
    Ok(())
}

pub(crate) fn notifications_have_a_quota_of_their_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, POOL));
    t.add_match(&b, 1, &[Item::any_change(ItemType::NAME_ADD, "")]).unwrap();
    t.add_match(&b, 2, &[Item::any_change(ItemType::NAME_REMOVE, "")]).unwrap();
    t.add_match(&b, 3, &[Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)]).unwrap();
    for _ in 0..128 {
        t.own(&a, NAME);
        t.release(&a, NAME).unwrap();
    }
    t.send(&a, &Message::to(b.id).cookie(9)).unwrap();
    for _ in 0..3 {
        t.connect();
    }
    let (result, command) = t.recv_raw(&b, RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs), (Ok(()), 3));
    for _ in 1..256 {
        assert_eq!(t.recv(&b).unwrap().msg.src_id, 0);
    }
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 9);
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_full_pool_charges_nobody<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, 4096));
    let message = sized(b.id, 480);
    let mut kept = Vec::new();
    while t.send(&a, &message).is_ok() {
        kept.push(t.recv_keep(&b).unwrap().info.offset);
    }
    for _ in 0..300 {
        assert_eq!(t.send(&a, &message), Err(Errno::EXFULL));
    }
    for offset in kept {
        t.free(&b, offset).unwrap();
    }
    t.send(&a, &sized(b.id, 4096 / 6 / 8 * 8)).unwrap();
    Ok(())
}

pub(crate) fn a_caller_has_at_most_128_calls_open<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, far) = (t.connect(), t.far());
    let peers: Vec<_> = (0..8).map(|_| plain(t, POOL)).collect();
    for cookie in 1..=128 {
        t.send(&a, &Message::call(peers[cookie % 8].id, cookie as u64, far)).unwrap();
    }
    for peer in &peers {
        assert_eq!(t.send(&a, &Message::call(peer.id, 500, far)), Err(Errno::EMLINK));
        t.send(&a, &Message::to(peer.id)).unwrap();
    }
    assert_eq!(t.recv(&peers[0]).unwrap().msg.cookie, 8);
    t.send(&peers[0], &Message::reply(a.id, 8)).unwrap();
    t.send(&a, &Message::call(peers[1].id, 500, far)).unwrap();
    Ok(())
}

pub(crate) fn an_unheard_call_counts_beyond_its_deadline<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), plain(t, POOL), t.far());
    let soon = t.world.now() + 50 * MS;
    t.send(&a, &Message::call(b.id, 0, soon)).unwrap();
    for cookie in 1..128 {
        t.send(&a, &Message::call(b.id, cookie, far)).unwrap();
    }
    assert_eq!(t.wait_recv(&a).kind(), Some(ItemType::REPLY_TIMEOUT));
    assert_eq!(t.send(&a, &Message::call(b.id, 200, far)), Err(Errno::EMLINK));
    t.recv(&b).unwrap();
    t.send(&a, &Message::call(b.id, 200, far)).unwrap();
    Ok(())
}

pub(crate) fn an_activators_queue_is_limited_too<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, c) = (t.connect(), t.connect());
    let activator = t.hello(&Hello::activator(NAME).asks(AttachFlags::empty()));
    for _ in 0..256 {
        t.send(&a, &Message::named(NAME)).unwrap();
    }
    for sender in [&a, &c] {
        assert_eq!(t.send(sender, &Message::named(NAME)), Err(Errno::ENOBUFS));
    }
    t.drop_first(&activator).unwrap();
    t.send(&c, &Message::named(NAME)).unwrap();
    Ok(())
}

pub(crate) fn a_refused_message_leaves_the_quota_alone<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), plain(t, POOL));
    let most = POOL / 6 / 8 * 8;
    for _ in 0..3 {
        assert_eq!(t.send(&a, &sized(b.id, most + 8)), Err(Errno::ENOBUFS));
        let unreadable = Message::to(b.id).vec_at(most - OVERHEAD, Payload::Unmapped);
        assert_eq!(t.send(&a, &unreadable), Err(Errno::EFAULT));
    }
    t.send(&a, &sized(b.id, most)).unwrap();
    Ok(())
}
