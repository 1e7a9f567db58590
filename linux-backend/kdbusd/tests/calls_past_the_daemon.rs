//! Calls that clients make past a real daemon, and their ends.

mod common;

use std::os::fd::AsFd;
use std::time::Duration;

use common::calls::{LONG, after, bus, call, called, carried, ends, hello, meanwhile, pair, reply};
use kdbus_core::abi::{Errno, ItemType, RecvFlags};
use kdbus_core::channel::CALLS_MAX;
use kdbus_core::client::{CallError, Hello, Message, ReplyTo, Transport};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

#[test]
fn calls_and_replies_go_past_the_daemon() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = (carried(&a), carried(&b));
    for cookie in 1..2000 {
        call(&a, &b, cookie, 10_000);
        reply(&b, called(&b), b"answer").unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (cookie, &b"answer"[..]));
    }
    assert_eq!((carried(&a), carried(&b)), before);
}

#[test]
fn a_reply_takes_the_other_way_where_it_has_to() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let large = vec![5; 100_000];
    for cookie in 1..20 {
        call(&a, &b, cookie, 10_000);
        let to = called(&b);
        reply(&b, to, &large).unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (cookie, &large[..]));
        drop(answer);
        assert_eq!(
            reply(&b, to, b"again"),
            reply(&b, ReplyTo { cookie: 999, ..to }, b"never"),
            "one is enough"
        );
        assert!(ends(&a).is_empty());
    }
    assert!(carried(&a) >= 19);
}

#[test]
fn a_call_by_lane_is_answered_with_descriptors() {
    let bus = bus();
    let (a, b) = (hello(&bus, 4, &Hello::new().accept_fds()), hello(&bus, 4, &Hello::new()));
    for round in 0..20_u64 {
        call(&a, &b, 1 + round, 10_000);
        let file = tempfile::tempfile().unwrap();
        let (to, fds) = (called(&b), [file.as_fd()]);
        let with_file = |to| b.send(&Message::reply(to).payload(b"answer").fds(&fds)).map(drop);
        with_file(to).unwrap();
        let answer = a.try_recv().unwrap().unwrap();
        assert_eq!((answer.cookie_reply(), answer.payload()), (1 + round, &b"answer"[..]));
        assert_eq!(answer.fd_count(), 1);
        assert!(with_file(to).is_err(), "one is enough");
    }
    assert_eq!(carried(&a), 20);
}

#[test]
fn calls_whose_replies_the_daemon_has_brought_leave_their_places_to_others() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let (file, before) = (tempfile::tempfile().unwrap(), carried(&b));
    let with_file = |to| b.send(&Message::reply(to).fds(&[file.as_fd()])).map(drop);
    let large = vec![5; 100_000];
    let mut kept = None;
    for cookie in 1..400 {
        call(&a, &b, cookie, 600_000);
        let to = called(&b);
        // As often, one that has no way to its caller, and uses its call up all the same.
        if cookie % 2 == 0 {
            reply(&b, to, &large).unwrap();
            assert_eq!(ends(&a), [(b.id(), cookie, ItemType::PAYLOAD_OFF)]);
        } else {
            with_file(to).unwrap_err();
        }
        let first = *kept.get_or_insert(to);
        assert!(reply(&b, first, b"again").is_err() && with_file(first).is_err(), "one is enough");
    }
    assert_eq!(carried(&b), before, "all calls went by lane");
    // Those that have not ended keep their places.
    let all = CALLS_MAX as u64 - 1;
    for cookie in 1..=all {
        call(&a, &b, cookie, 600_000);
    }
    call(&a, &b, all + 1, 600_000);
    for cookie in 1..=all + 1 {
        let to = called(&b);
        assert_eq!(to.cookie, cookie);
        reply(&b, to, b"answer").unwrap();
        assert_eq!(ends(&a), [(b.id(), cookie, ItemType::PAYLOAD_OFF)]);
    }
    assert_eq!(carried(&b), before + 1);
}

#[test]
fn nobody_wakes_at_the_deadline_of_a_call_whose_reply_the_daemon_has_brought() {
    let bus = bus();
    let (a, b) = pair(&bus);
    call(&a, &b, 7, 500);
    reply(&b, called(&b), &[5; 100_000]).unwrap();
    assert_eq!(ends(&a), [(b.id(), 7, ItemType::PAYLOAD_OFF)]);
    // The bell that told of the reply still rings.
    a.transport().wait(Some(after(20))).unwrap();
    let until = after(600);
    a.transport().wait(Some(until)).unwrap();
    assert!(a.now() >= until, "there was nothing to wake for");
}

#[test]
fn a_call_by_lane_times_out_once_and_its_reply_comes_too_late() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let kernel = 0;
    call(&a, &b, 7, 20);
    call(&a, &b, 8, 60_000);
    let to = called(&b);
    assert!(ends(&a).is_empty());
    let told = loop {
        a.transport().wait(None).unwrap();
        let told = ends(&a);
        if !told.is_empty() {
            break told;
        }
    };
    assert_eq!(told, [(kernel, 7, ItemType::REPLY_TIMEOUT)]);
    assert!(reply(&b, to, b"late").is_err());
    reply(&b, called(&b), b"in time").unwrap();
    assert_eq!(ends(&a), [(b.id(), 8, ItemType::PAYLOAD_OFF)]);
    // A deadline that has passed is told at once.
    call(&a, &b, 9, 0);
    assert_eq!(ends(&a), [(kernel, 9, ItemType::REPLY_TIMEOUT)]);
}

#[test]
fn who_polls_from_outside_hears_of_the_time_out() {
    let bus = bus();
    let (a, b) = pair(&bus);
    assert!(ends(&a).is_empty());
    let readable = |timeout: Option<&Timespec>| {
        poll(&mut [PollFd::new(a.transport(), PollFlags::IN)], timeout).unwrap() == 1
    };
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert!(!readable(Some(&now)));
    call(&a, &b, 7, 20);
    assert!(readable(None));
    let told = loop {
        let ends = ends(&a);
        if !ends.is_empty() {
            break ends;
        }
        assert!(readable(None));
    };
    assert_eq!(told, [(0, 7, ItemType::REPLY_TIMEOUT)]);
    assert!(!readable(Some(&now)));
}

#[test]
fn the_calls_of_the_dead_end_once_and_after_what_they_have_answered() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let id = b.id();
    for cookie in 1..=3 {
        call(&a, &b, cookie, 60_000);
    }
    reply(&b, called(&b), b"first").unwrap();
    let _received = called(&b);
    drop(b);
    a.transport().wait(Some(after(5000))).unwrap();
    let told = loop {
        let told = ends(&a);
        if !told.is_empty() {
            break told;
        }
        a.transport().wait(Some(after(5000))).unwrap();
    };
    let mut rest = told.clone();
    while rest.len() < 3 {
        a.transport().wait(Some(after(5000))).unwrap();
        rest.extend(ends(&a));
    }
    rest[1..].sort_by_key(|(_, cookie, _)| *cookie);
    let dead = |cookie| (0, cookie, ItemType::REPLY_DEAD);
    assert_eq!(rest, [(id, 1, ItemType::PAYLOAD_OFF), dead(2), dead(3)]);
    assert!(ends(&a).is_empty());
}

#[test]
fn a_dropped_call_ends_at_once_and_is_answered_by_nobody() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = carried(&b);
    call(&a, &b, 7, 60_000);
    call(&a, &b, 8, 60_000);
    assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    assert_eq!(carried(&b), before, "it came by lane");
    a.transport().wait(Some(after(5000))).unwrap();
    assert_eq!(ends(&a), [(0, 7, ItemType::REPLY_DEAD)]);
    assert!(reply(&b, ReplyTo { id: a.id(), cookie: 7, priority: 0 }, b"never").is_err());
    reply(&b, called(&b), b"the other").unwrap();
    assert_eq!(ends(&a), [(b.id(), 8, ItemType::PAYLOAD_OFF)]);
}

#[test]
fn calls_that_are_waited_for_go_past_the_daemon_and_the_queue() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = (carried(&a), carried(&b));
    let (to, rounds) = (b.id(), 500_u64);
    let serving = meanwhile(b, move |b| {
        for round in 0..rounds {
            let call = b.recv_blocking(LONG).unwrap();
            let caller = call.reply_to();
            if round < 20 {
                b.send(&Message::to(caller.id).payload(b"besides").cookie(round + 1)).unwrap();
            }
            reply(b, caller, call.payload()).unwrap();
        }
    });
    for round in 0..rounds {
        let question = round.to_ne_bytes();
        let answer = a.call_blocking(&Message::to(to).payload(&question), LONG).unwrap();
        assert_eq!(answer.payload(), &question[..]);
    }
    let (b, ()) = serving.join().unwrap();
    assert_eq!((carried(&a), carried(&b)), before, "none of them went through the daemon");
    for round in 0..20 {
        assert_eq!(a.try_recv().unwrap().unwrap().cookie(), round + 1);
    }
    assert!(a.try_recv().unwrap().is_none());
}

#[test]
fn who_waits_for_a_reply_keeps_the_calls_of_others_that_do_the_same() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let c = hello(&bus, 4, &Hello::new());
    c.transport().open_lane(a.id()).unwrap();
    let (to, caller, before) = (b.id(), a.id(), (carried(&a), carried(&b)));
    let serving = meanwhile(b, move |b| {
        let call = b.recv_blocking(LONG).unwrap();
        // Meanwhile, the first call that `c` waits for comes to the one who waits for its own first one.
        let calling = meanwhile(c, move |c| {
            let answer = c.call_blocking(&Message::to(caller).payload(b"besides"), LONG / 4).unwrap();
            assert_eq!(answer.payload(), b"answer");
        });
        std::thread::sleep(Duration::from_millis(200));
        reply(b, call.reply_to(), b"done").unwrap();
        calling
    });
    let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
    assert_eq!(answer.payload(), b"done");
    let call = a.try_recv().unwrap().expect("it came meanwhile");
    assert_eq!(call.payload(), b"besides");
    reply(&a, call.reply_to(), b"answer").unwrap();
    let (b, calling) = serving.join().unwrap();
    calling.join().unwrap();
    assert_eq!((carried(&a), carried(&b)), before, "none of them went through the daemon");
}

#[test]
fn a_call_that_is_waited_for_takes_its_reply_from_the_daemon_if_it_has_to() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let (to, before) = (b.id(), carried(&b));
    let serving = meanwhile(b, |b| {
        for _ in 0..20 {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            // Through the daemon both: the one stays queued, and the other passes it.
            b.send(&Message::to(caller.id).payload(&vec![1; 100_000]).cookie(9)).unwrap();
            reply(b, caller, &vec![5; 100_000]).unwrap();
            assert!(reply(b, caller, b"again").is_err());
        }
    });
    for _ in 0..20 {
        let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
        assert_eq!(answer.payload(), &vec![5; 100_000]);
        drop(answer);
        assert_eq!(a.try_recv().unwrap().unwrap().cookie(), 9);
        assert!(a.try_recv().unwrap().is_none());
    }
    let (b, ()) = serving.join().unwrap();
    assert_eq!(carried(&b), before, "the calls went by lane");
    assert!(carried(&a) >= 40);
}

#[test]
fn a_call_that_is_waited_for_times_out_once_and_its_reply_comes_too_late() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let before = carried(&b);
    for _ in 0..3 {
        let deadline = after(20);
        let error = a.call_blocking(&Message::to(b.id()).payload(b"question"), deadline).unwrap_err();
        assert_eq!(error, CallError::TimedOut);
        assert!(a.now() >= deadline);
        assert!(reply(&b, called(&b), b"late").is_err());
    }
    assert!(ends(&a).is_empty());
    assert_eq!(carried(&b), before, "it went by lane");
    // One whose deadline has passed is not made.
    let error = a.call_blocking(&Message::to(b.id()).payload(b"question"), a.now()).unwrap_err();
    assert_eq!(error, CallError::TimedOut);
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn a_call_that_is_waited_for_ends_with_its_callee() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let call = |to| a.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ()).unwrap_err();
    let to = b.id();
    let serving = meanwhile(b, |b| {
        b.transport().wait(None).unwrap();
        assert!(b.transport().recv(RecvFlags::DROP, 0).unwrap().message.is_none());
    });
    assert_eq!(call(to), CallError::PeerDied);
    let (b, ()) = serving.join().unwrap();
    let leaving = std::thread::spawn(move || {
        drop(b.recv_blocking(LONG).unwrap());
        drop(b);
    });
    assert_eq!(call(to), CallError::PeerDied);
    leaving.join().unwrap();
    assert!(ends(&a).is_empty());
}

#[test]
fn who_answers_and_dies_has_answered_who_waits() {
    let bus = bus();
    for _ in 0..50 {
        let (a, b) = pair(&bus);
        let to = b.id();
        let serving = std::thread::spawn(move || {
            let caller = b.recv_blocking(LONG).unwrap().reply_to();
            reply(&b, caller, b"last").unwrap();
        });
        let answer = a.call_blocking(&Message::to(to).payload(b"question"), LONG).unwrap();
        assert_eq!(answer.payload(), b"last");
        serving.join().unwrap();
    }
}

#[test]
fn who_waits_learns_that_the_reply_does_not_fit() {
    let bus = bus();
    let (a, b) = (hello(&bus, 2, &Hello::new().pool_size(4096)), hello(&bus, 2, &Hello::new()));
    a.transport().open_lane(b.id()).unwrap();
    let (to, before) = (b.id(), carried(&b));
    let serving = meanwhile(b, |b| {
        let caller = b.recv_blocking(LONG).unwrap().reply_to();
        (reply(b, caller, &[0; 4000]).is_err(), reply(b, caller, b"small").is_err())
    });
    let error = a.call_blocking(&Message::to(to).payload(b"question"), LONG).map(|_| ()).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOBUFS);
    let (b, refused) = serving.join().unwrap();
    assert_eq!((refused, carried(&b)), ((true, true), before));
}

#[test]
fn a_call_by_lane_can_be_canceled() {
    let bus = bus();
    let (a, b) = pair(&bus);
    let (to, before) = (b.id(), carried(&b));
    let (cancel, canceler) = rustix::pipe::pipe().unwrap();
    let question = Message::to(to).payload(b"question");
    let serving = meanwhile(b, move |b| {
        let first = b.recv_blocking(LONG).unwrap().reply_to();
        reply(b, first, b"in time").unwrap();
        let second = b.recv_blocking(LONG).unwrap().reply_to();
        rustix::io::write(&canceler, b"!").unwrap();
        (second, canceler)
    });
    let answer = a.call_cancelable(&question, LONG, cancel.as_fd()).unwrap();
    assert_eq!(answer.payload(), b"in time");
    drop(answer);
    let error = a.call_cancelable(&question, LONG, cancel.as_fd()).map(|_| ()).unwrap_err();
    assert_eq!(error, CallError::Canceled);
    let (b, (second, canceler)) = serving.join().unwrap();
    assert!(reply(&b, second, b"late").is_err());
    rustix::io::read(&cancel, &mut [0; 8]).unwrap();
    // Nobody can cancel any more: the call goes on.
    drop(canceler);
    let serving = meanwhile(b, |b| reply(b, b.recv_blocking(LONG).unwrap().reply_to(), b"anyway"));
    let answer = a.call_cancelable(&question, LONG, cancel.as_fd()).unwrap();
    assert_eq!(answer.payload(), b"anyway");
    assert_eq!(carried(&serving.join().unwrap().0), before, "all of them went by lane");
    assert!(ends(&a).is_empty());
}
