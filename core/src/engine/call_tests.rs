//! Sequences of commands: calls, their replies and everything that can come in between.

extern crate std;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{Errno, HelloFlags, ItemType, MsgFlags, NameFlags, RecvFlags};

const LATER: u64 = 10_000_000;

fn pair() -> (Bed, Peer, Peer) {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    (bed, a, b)
}

/// The notifications about calls that a connection has, with the cookies they are about.
fn ends(bed: &mut Bed, peer: Peer) -> Vec<(ItemType, u64)> {
    let all = bed.drain(peer);
    all.iter().map(|message| (message.kinds()[0], message.header.timeout_or_reply)).collect()
}

#[test]
fn a_reply_answers_the_newest_call_with_its_cookie_once() {
    let (mut bed, a, b) = pair();
    let c = bed.connect();
    bed.send(a, &message(b.id, 1).call(LATER)).unwrap();
    bed.send(a, &message(b.id, 1).call(LATER + 1)).unwrap();
    assert_eq!(bed.send(c, &message(a.id, 9).reply_to(1)), Err(Errno::EBADSLT));
    assert_eq!(bed.send(b, &message(a.id, 9).reply_to(2)), Err(Errno::EBADSLT));
    bed.drain(b);
    bed.send(b, &message(a.id, 9).reply_to(1)).unwrap();
    assert_eq!(bed.domain.poll_timeout().map(crate::Instant::as_nanos), Some(LATER), "the older one is left");
    bed.send(b, &message(a.id, 10).reply_to(1)).unwrap();
    assert_eq!(bed.send(b, &message(a.id, 11).reply_to(1)), Err(Errno::EBADSLT));
    assert_eq!(bed.cookies(a), [9, 10]);
    assert_eq!(bed.domain.usage().trackers, 0);
}

#[test]
fn a_called_peer_may_answer_whatever_the_policy_says() {
    let mut bed = Bed::new();
    let (owner, user) = (bed.connect(), bed.connect_as(2000));
    bed.send(owner, &message(user.id, 1).call(LATER)).unwrap();
    assert_eq!(bed.send(user, &message(owner.id, 2)), Err(Errno::EPERM));
    assert_eq!(bed.send(user, &message(owner.id, 2).reply_to(1)), Ok(()));
}

#[test]
fn each_deadline_is_reported_on_its_own() {
    let (mut bed, a, b) = pair();
    for (cookie, deadline) in [(1, LATER + 1500), (2, LATER + 100), (3, LATER + 300)] {
        bed.send(a, &message(b.id, cookie).call(deadline)).unwrap();
    }
    bed.timeout(LATER + 100);
    assert_eq!(ends(&mut bed, a), [(ItemType::REPLY_TIMEOUT, 2)]);
    assert_eq!(bed.send(b, &message(a.id, 9).reply_to(2)), Err(Errno::EBADSLT));
    bed.timeout(LATER + 2000);
    assert_eq!(ends(&mut bed, a), [(ItemType::REPLY_TIMEOUT, 3), (ItemType::REPLY_TIMEOUT, 1)]);
    assert_eq!(bed.domain.poll_timeout(), None);
}

#[test]
fn a_deadline_in_the_past_is_delivered_and_reported_at_once() {
    let (mut bed, a, b) = pair();
    bed.send(a, &message(b.id, 1).call(1)).unwrap();
    assert_eq!(bed.cookies(b), [1]);
    let report = bed.recv(a).unwrap();
    assert_eq!((report.header.src_id, report.header.dst_id, report.header.flags), (0, a.id, 0));
    assert_eq!(report.kinds(), [ItemType::REPLY_TIMEOUT, ItemType::TIMESTAMP]);
    assert_eq!((report.header.size, report.header.timeout_or_reply), (120, 1));
}

#[test]
fn death_of_the_callee_is_reported_once_received_or_not() {
    for receive in [false, true] {
        let (mut bed, a, b) = pair();
        bed.send(a, &message(b.id, 5).call(LATER)).unwrap();
        if receive {
            bed.recv(b).unwrap();
        }
        bed.close(b.handle);
        assert_eq!(ends(&mut bed, a), [(ItemType::REPLY_DEAD, 5)]);
        assert_eq!(bed.domain.usage().trackers, 0);
    }
}

#[test]
fn dropping_a_call_ends_it() {
    let (mut bed, a, b) = pair();
    bed.send(a, &message(b.id, 5).call(LATER)).unwrap();
    assert_eq!(bed.recv_cmd(b, RecvFlags::DROP, 0).0, Ok(()));
    assert_eq!(ends(&mut bed, a), [(ItemType::REPLY_DEAD, 5)]);
    let token = bed.start(a, &message(b.id, 6).sync(LATER));
    assert_eq!(bed.recv_cmd(b, RecvFlags::DROP, 0).0, Ok(()));
    assert_eq!(bed.answers(), [(token, Err(Errno::EPIPE))]);
    assert_eq!(ends(&mut bed, a), []);
}

#[test]
fn a_call_received_in_shared_memory_counts_no_longer_once_it_is_answered() {
    let (mut bed, a, b) = pair();
    for cookie in 1..=128 {
        bed.send(a, &message(b.id, cookie).call(LATER)).unwrap();
    }
    let Entry { slot, key, .. } = bed.host.published[&b.handle][0];
    bed.host.returns.insert(b.handle, [Return::Taken { slot, key }].into());
    bed.send(b, &message(a.id, 0).reply_to(1)).unwrap();
    assert_eq!(bed.send(a, &message(a.id, 200).call(LATER)), Ok(()));
    assert_eq!(bed.send(a, &message(a.id, 201).call(LATER)), Err(Errno::EMLINK));
}

#[test]
fn a_caller_has_128_calls_open_until_their_messages_are_gone() {
    let (mut bed, a, b) = pair();
    for cookie in 0..128 {
        bed.send(a, &message(b.id, cookie).call(LATER + cookie)).unwrap();
    }
    assert_eq!(bed.send(a, &message(b.id, 200).call(LATER)), Err(Errno::EMLINK));
    bed.timeout(LATER);
    assert_eq!(bed.send(a, &message(b.id, 200).call(LATER)), Err(Errno::EMLINK), "its message still waits");
    bed.recv(b).unwrap();
    assert_eq!(bed.send(a, &message(b.id, 200).call(LATER * 2)), Ok(()));
    assert_eq!(bed.send(b, &message(a.id, 0).reply_to(200)), Ok(()));
}

#[test]
fn a_synchronous_call_gets_its_reply_past_the_queue() {
    let (mut bed, a, b) = pair();
    let token = bed.start(a, &message(b.id, 3).sync(LATER));
    let received = bed.recv(b).unwrap();
    assert_eq!(received.header.flags, MsgFlags::EXPECT_REPLY.bits());
    assert_eq!(bed.send(b, &message(a.id, 8).reply_to(4)), Err(Errno::EBADSLT));
    assert_eq!(bed.answers(), []);
    bed.send(b, &message(a.id, 8).reply_to(3).vec(b"result")).unwrap();
    let answers = bed.answers();
    let &[(to, Ok(info))] = answers.as_slice() else {
        panic!("{answers:?}");
    };
    assert_eq!((to, bed.read(a, info).header.cookie), (token, 8));
    assert_eq!(bed.cookies(a), []);
    assert_eq!(bed.free(a, info.offset), Ok(()));
    let usage = bed.domain.usage();
    assert_eq!((usage.trackers, usage.calls), (0, 0));
    assert_eq!(bed.domain.connection(a.handle).unwrap().accounted_size, 0);
}

#[test]
fn a_synchronous_call_ends_for_every_reason() {
    let (mut bed, a, b) = pair();
    assert_eq!(bed.send(a, &message(b.id, 1).sync(1)), Err(Errno::ETIMEDOUT));
    assert_eq!(bed.send(a, &message(b.id, 1).sync(1 << 63)), Err(Errno::ETIMEDOUT));
    assert_eq!(bed.cookies(b), []);
    let mut no_call = message(b.id, 1);
    no_call.sync = true;
    assert_eq!(bed.send(a, &no_call), Err(Errno::EINVAL));

    let token = bed.start(a, &message(b.id, 1).sync(LATER));
    bed.timeout(LATER);
    assert_eq!(bed.answers(), [(token, Err(Errno::ETIMEDOUT))]);
    assert_eq!(ends(&mut bed, a), []);

    let token = bed.start(a, &message(b.id, 2).sync(LATER * 2));
    let at = bed.at();
    bed.domain.cancel(&mut bed.host, at, a.handle, token, Errno::ECANCELED);
    bed.collect();
    assert_eq!(bed.answers(), [(token, Err(Errno::ECANCELED))]);
    assert_eq!(bed.send(b, &message(a.id, 1).reply_to(2)), Err(Errno::EBADSLT));

    let token = bed.start(a, &message(b.id, 3).sync(LATER * 2));
    bed.close(b.handle);
    assert_eq!(bed.answers(), [(token, Err(Errno::EPIPE))]);

    let c = bed.connect();
    let token = bed.start(a, &message(c.id, 4).sync(LATER * 2));
    assert_eq!(bed.byebye(a), Ok(()));
    assert_eq!(bed.answers(), [(token, Err(Errno::ECONNRESET))]);
    assert_eq!(bed.send(c, &message(a.id, 1).reply_to(4)), Err(Errno::ENXIO));
    bed.recv(c).unwrap();
    let usage = bed.domain.usage();
    assert_eq!((usage.trackers, usage.calls), (0, 0));
}

#[test]
fn a_reply_that_was_there_first_wins() {
    let (mut bed, a, b) = pair();
    let token = bed.start(a, &message(b.id, 1).sync(LATER));
    let at = bed.at();
    let mut reply = message(a.id, 2).reply_to(1).bytes();
    let mut cmd = arg(crate::abi::CmdSend { msg_address: 8, ..Default::default() }, &[]);
    let request = Request {
        number: crate::abi::Command::Send.request(),
        arg: &mut cmd,
        message: Some(&mut reply),
        token: 77,
    };
    let arrival = Arrival { at, from: b.handle, caller: None, request };
    assert_eq!(bed.domain.handle(&mut bed.host, arrival), Outcome::Done(Ok(())));
    bed.domain.cancel(&mut bed.host, at, a.handle, token, Errno::ECANCELED);
    bed.collect();
    assert!(matches!(bed.answers().as_slice(), [(_, Ok(_))]));
}

#[test]
fn an_interrupted_call_goes_on_when_its_caller_comes_back() {
    let (mut bed, a, b) = pair();
    let call = message(b.id, 1).sync(LATER);
    let interrupt = |bed: &mut Bed, token| {
        let at = bed.at();
        bed.domain.cancel(&mut bed.host, at, a.handle, token, Errno::EINTR);
        bed.collect();
        assert_eq!(bed.answers(), [(token, Err(Errno::EINTR))]);
    };
    let token = bed.start(a, &call);
    interrupt(&mut bed, token);
    let token = bed.start(a, &call);
    assert_eq!(bed.cookies(b), [1], "nothing is sent again");
    interrupt(&mut bed, token);
    bed.send(b, &message(a.id, 9).reply_to(1)).unwrap();
    assert_eq!(bed.answers(), []);
    let (outcome, info) = bed.send_any(a, &call);
    assert_eq!((outcome, bed.read(a, info).header.cookie), (Outcome::Done(Ok(())), 9));
    assert_eq!(bed.free(a, info.offset), Ok(()));
    assert_eq!(bed.domain.usage().trackers, 0);
}

#[test]
fn who_comes_back_to_an_interrupted_call_learns_how_it_ended() {
    for ended in [Errno::EPIPE, Errno::ENOBUFS, Errno::ETIMEDOUT] {
        let (mut bed, a, b) = pair();
        let small = bed.open(OWNER);
        let caller = bed.hello(small, HelloFlags::empty(), 4096, &[]).unwrap();
        let call = message(b.id, 1).sync(LATER);
        let token = bed.start(caller, &call);
        let at = bed.at();
        bed.domain.cancel(&mut bed.host, at, caller.handle, token, Errno::EINTR);
        bed.collect();
        assert_eq!(bed.answers(), [(token, Err(Errno::EINTR))]);
        match ended {
            Errno::EPIPE => bed.close(b.handle),
            Errno::ENOBUFS => {
                let large = message(caller.id, 2).reply_to(1).vec(&[0; 3000]);
                assert_eq!(bed.send(b, &large), Err(Errno::ENOBUFS));
            }
            _ => bed.timeout(LATER),
        }
        assert_eq!(bed.send_any(caller, &call).0, Outcome::Done(Err(ended)));
        assert_eq!((bed.answers(), bed.cookies(caller)), (Vec::new(), Vec::new()));
        // The call is over: the next one with its cookie is sent.
        let again = message(a.id, 1).sync(2 * LATER);
        bed.start(caller, &again);
        assert_eq!(bed.cookies(a), [1]);
        bed.close(caller.handle);
        bed.close(b.handle);
        assert_eq!((bed.domain.usage().calls, bed.domain.usage().trackers), (0, 0));
    }
}

#[test]
fn an_answer_that_nobody_fetches_leaves_nothing_behind() {
    let (mut bed, a, b) = pair();
    for round in 1..200 {
        let deadline = bed.now + 100;
        let token = bed.start(a, &message(b.id, round).sync(deadline));
        let at = bed.at();
        bed.domain.cancel(&mut bed.host, at, a.handle, token, Errno::EINTR);
        bed.recv(b).unwrap();
        bed.send(b, &message(a.id, 9).reply_to(round).vec(&[0; 1000])).unwrap();
        bed.timeout(deadline);
    }
    let view = bed.domain.connection(a.handle).unwrap();
    assert_eq!((view.accounted_size, view.slices, view.calls), (0, 0, 0));
    assert_eq!((bed.domain.usage().calls, bed.domain.usage().trackers), (0, 0));
}

#[test]
fn a_reply_that_the_caller_cannot_take_ends_the_call() {
    let mut bed = Bed::new();
    let b = bed.connect();
    let handle = bed.open(OWNER);
    let plain = bed.hello(handle, HelloFlags::empty(), 4096, &[]).unwrap();
    bed.host.fds.insert(2, TestFile(FileKind::Other));
    let token = bed.start(plain, &message(b.id, 1).sync(LATER));
    let with_fd = message(plain.id, 2).reply_to(1).item(ItemType::FDS, &2_i32.to_ne_bytes());
    assert_eq!(bed.send(b, &with_fd), Err(Errno::ECOMM));
    assert_eq!(bed.answers(), [(token, Err(Errno::EREMOTEIO))]);
    assert_eq!(bed.send(b, &with_fd), Err(Errno::EBADSLT));
    let token = bed.start(plain, &message(b.id, 1).sync(LATER));
    let large = message(plain.id, 2).reply_to(1).vec(&[0; 2000]);
    assert_eq!(bed.send(b, &large), Err(Errno::ENOBUFS));
    assert_eq!(bed.answers(), [(token, Err(Errno::ENOBUFS))]);
    assert!(bed.host.pinned.is_empty());
}

#[test]
fn a_call_that_cannot_be_delivered_leaves_no_tracker() {
    let (mut bed, a, b) = pair();
    while bed.send(a, &message(b.id, 1)).is_ok() {}
    assert_eq!(bed.send(a, &message(b.id, 1).call(LATER)), Err(Errno::ENOBUFS));
    assert_eq!(bed.send_any(a, &message(b.id, 1).sync(LATER)).0, Outcome::Done(Err(Errno::ENOBUFS)));
    let usage = bed.domain.usage();
    assert_eq!((usage.trackers, usage.calls, bed.domain.poll_timeout()), (0, 0, None));
}

#[test]
fn a_new_owner_answers_calls_that_were_made_to_the_name() {
    let mut bed = Bed::new();
    let (caller, service) = (bed.connect(), bed.connect());
    let activator = bed.activator("a.b");
    bed.send(caller, &to_name("a.b", 1).call(LATER)).unwrap();
    let token = bed.start(caller, &to_name("a.b", 2).sync(LATER));
    bed.send(caller, &to_name("a.b", 3)).unwrap();
    assert_eq!(bed.send(activator, &message(caller.id, 1).reply_to(1)), Err(Errno::EOPNOTSUPP));
    bed.acquire(service, "a.b", NameFlags::empty()).unwrap();
    assert!(bed.woken().contains(&service.handle));
    assert!(!bed.domain.readiness(activator.handle).readable);
    bed.send(caller, &message(service.id, 4)).unwrap();
    assert_eq!(bed.recv(service).unwrap().header.cookie, 1);
    bed.send(service, &message(caller.id, 10).reply_to(1)).unwrap();
    assert_eq!(bed.cookies(caller), [10]);
    // The service goes without an answer to the second call: the activator has it again.
    bed.release(service, "a.b").unwrap();
    assert_eq!(bed.cookies(service), [4], "what was sent by id stays");
    assert_eq!(bed.send(service, &message(caller.id, 11).reply_to(2)), Err(Errno::EBADSLT));
    bed.close(service.handle);
    assert_eq!(bed.answers(), []);
    let next = bed.connect();
    bed.acquire(next, "a.b", NameFlags::empty()).unwrap();
    assert_eq!(bed.cookies(next), [2, 3]);
    bed.send(next, &message(caller.id, 12).reply_to(2)).unwrap();
    assert!(matches!(bed.answers().as_slice(), [(other, Ok(_))] if *other == token));
    bed.close(activator.handle);
    assert_eq!(bed.list(caller, 4), []);
}

#[test]
fn an_activator_that_dies_alone_takes_its_calls_with_it() {
    let mut bed = Bed::new();
    let caller = bed.connect();
    let activator = bed.activator("a.b");
    bed.send(caller, &to_name("a.b", 1).call(LATER)).unwrap();
    bed.close(activator.handle);
    assert_eq!(ends(&mut bed, caller), [(ItemType::REPLY_DEAD, 1)]);
}

#[test]
fn messages_that_do_not_fit_are_lost_in_a_hand_over() {
    let mut bed = Bed::new();
    let caller = bed.connect();
    let _activator = bed.activator("a.b");
    bed.host.fds.insert(2, TestFile(FileKind::Other));
    bed.send(caller, &to_name("a.b", 1).call(LATER)).unwrap();
    let handle = bed.open(OWNER);
    let service = bed.hello(handle, HelloFlags::empty(), 4096, &[]).unwrap();
    for _ in 0..8 {
        bed.send(caller, &to_name("a.b", 2).vec(&[0; 100])).unwrap();
    }
    let with_fd = to_name("a.b", 3).item(ItemType::FDS, &2_i32.to_ne_bytes());
    assert_eq!(bed.send(caller, &with_fd), Err(Errno::ECOMM), "the activator takes no descriptors");
    bed.acquire(service, "a.b", NameFlags::empty()).unwrap();
    let (_, cmd) = bed.recv_cmd(service, RecvFlags::PEEK, 0);
    let moved = bed.cookies(service);
    assert_eq!(moved[..2], [1, 2], "the oldest move first");
    assert_eq!((moved.len() as u64 + cmd.dropped_msgs, cmd.dropped_msgs > 0), (9, true));
    bed.timeout(LATER);
    assert_eq!(ends(&mut bed, caller), [(ItemType::REPLY_TIMEOUT, 1)]);
    assert!(bed.host.pinned.is_empty());
}

#[test]
fn an_ended_call_is_looked_for_where_its_message_waits_now() {
    let mut bed = Bed::new();
    let (activator, a) = (bed.activator("a.b"), bed.connect());
    for cookie in 1..=128 {
        bed.send(a, &to_name("a.b", cookie).call(LATER)).unwrap();
    }
    bed.timeout(LATER);
    let owner = bed.connect();
    bed.acquire(owner, "a.b", NameFlags::empty()).unwrap();
    bed.close(activator.handle);
    // The new owner has received one of them, which the bus does not know yet.
    let Entry { slot, key, .. } = bed.host.published[&owner.handle][0];
    bed.host.returns.insert(owner.handle, [Return::Taken { slot, key }].into());
    assert_eq!(bed.send(a, &message(a.id, 200).call(LATER * 2)), Ok(()));
    assert_eq!(bed.send(a, &message(a.id, 201).call(LATER * 2)), Err(Errno::EMLINK));
}

#[test]
fn a_call_dies_with_the_queue_that_it_waits_in() {
    let mut bed = Bed::new();
    let (activator, a) = (bed.activator("a.b"), bed.connect());
    bed.acquire(a, "a.b", NameFlags::empty()).unwrap();
    bed.send(a, &to_name("a.b", 7).call(LATER)).unwrap();
    bed.release(a, "a.b").unwrap();
    assert_eq!(ends(&mut bed, a), [], "the message has moved to the activator");
    bed.close(activator.handle);
    assert_eq!(ends(&mut bed, a), [(ItemType::REPLY_DEAD, 7)]);
    assert_eq!(bed.domain.usage().trackers, 0);
}

#[test]
fn calls_that_wait_unread_are_dead_before_those_that_were_received() {
    let (mut bed, a, b) = pair();
    for cookie in 1..=3 {
        bed.send(a, &message(b.id, cookie).call(LATER)).unwrap();
    }
    bed.recv(b).unwrap();
    bed.close(b.handle);
    let dead = |cookie| (ItemType::REPLY_DEAD, cookie);
    assert_eq!(ends(&mut bed, a), [dead(2), dead(3), dead(1)]);
}

#[test]
fn an_answer_that_is_fetched_or_expires_makes_room() {
    for fetched in [true, false] {
        let (mut bed, a, b) = pair();
        let c = bed.connect();
        let call = message(b.id, 1).sync(LATER);
        let token = bed.start(a, &call);
        let at = bed.at();
        bed.domain.cancel(&mut bed.host, at, a.handle, token, Errno::EINTR);
        bed.send(b, &message(a.id, 9).reply_to(1).vec(&[0; 100_000])).unwrap();
        assert_eq!(bed.send(c, &message(a.id, 2).vec(&[0; 100_000])), Err(Errno::ENOBUFS));
        bed.domain.watch_room(&mut bed.host, c.handle, a.id).unwrap();
        bed.collect();
        assert!(!bed.effects.contains(&Effect::Room(c.handle)));
        if fetched {
            assert_eq!(bed.send_any(a, &call).0, Outcome::Done(Ok(())));
        } else {
            bed.timeout(LATER);
        }
        assert!(bed.effects.contains(&Effect::Room(c.handle)));
    }
}
