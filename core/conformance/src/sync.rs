//! Calls that wait for their reply.

use kdbus_core::abi::{Errno, ItemType, MsgFlags, SendFlags};

use crate::bench::{Bench, MS, Outcome, send_arg};
use crate::build::{Arg, Hello, Item, Message};
use crate::world::World;

fn cancellable(fd: i32) -> Arg {
    send_arg(SendFlags::SYNC_REPLY).item(&Item::record(ItemType::CANCEL_FD, &fd))
}

pub(crate) fn only_calls_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let mut arg = send_arg(SendFlags::SYNC_REPLY);
    assert_eq!(t.send_with(&a, &mut arg, &mut Message::to(b.id)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn the_reply_passes_by_the_queue<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far).vec(b"question"));
    let received = t.wait_recv(&b);
    assert_eq!((received.msg.cookie, received.payload()), (7, b"question".to_vec()));
    assert!(t.world.is_waiting(&call));
    t.send(&b, &Message::reply(a.id, 7).vec(b"answer")).unwrap();
    let info = t.finish(call).unwrap();
    t.assert_empty(&a, 0);
    let reply = t.take(&a, info);
    assert_eq!((reply.msg.src_id, reply.msg.timeout_or_reply), (b.id, 7));
    assert_eq!(reply.payload(), b"answer");
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_wrong_reply_does_not_end_the_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    assert_eq!(t.send(&b, &Message::reply(a.id, 8)), Err(Errno::EBADSLT));
    assert!(t.world.is_waiting(&call));
    t.send(&b, &Message::reply(a.id, 7)).unwrap();
    assert!(t.finish(call).is_ok());
    Ok(())
}

pub(crate) fn the_wait_ends_at_the_deadline<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let deadline = t.world.now() + 100 * MS;
    let call = t.start(&a, &Message::call(b.id, 7, deadline));
    assert_eq!(t.finish(call), Err(Errno::ETIMEDOUT));
    assert!(t.world.now() >= deadline);
    t.wait_recv(&b);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_passed_deadline_delivers_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let call = t.start(&a, &Message::call(b.id, 7, 1));
    assert_eq!(t.finish(call), Err(Errno::ETIMEDOUT));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn an_interrupted_wait_resumes<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let deadline = t.world.now() + 300 * MS;
    let mut call = t.start(&a, &Message::call(b.id, 7, deadline));
    t.wait_recv(&b);
    t.world.interrupt(&mut call, true)?;
    assert_eq!(t.finish(call), Err(Errno::ETIMEDOUT));
    assert!(t.world.now() >= deadline);
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn an_interrupted_wait_may_end<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let mut call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.world.interrupt(&mut call, false)?;
    assert_eq!(t.finish(call), Err(Errno::EINTR));
    Ok(())
}

pub(crate) fn a_callee_that_closes_breaks_the_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_readable(&b);
    t.close(b);
    assert_eq!(t.finish(call), Err(Errno::EPIPE));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_callee_that_leaves_breaks_the_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.byebye(&b).unwrap();
    assert_eq!(t.finish(call), Err(Errno::EPIPE));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_caller_that_leaves_ends_its_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.byebye(&a).unwrap();
    assert_eq!(t.finish(call), Err(Errno::ECONNRESET));
    Ok(())
}

pub(crate) fn a_cancel_descriptor_ends_the_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let fd = t.world.event(t.owner);
    let call = t.start_with(&a, cancellable(fd), &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    assert!(t.world.is_waiting(&call));
    t.world.write_fd(t.owner, fd, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(t.finish(call), Err(Errno::ECANCELED));
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_quiet_cancel_descriptor_changes_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let fd = t.world.event(t.owner);
    let call = t.start_with(&a, cancellable(fd), &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.send(&b, &Message::reply(a.id, 7)).unwrap();
    let info = t.finish(call).unwrap();
    assert_eq!(t.take(&a, info).msg.src_id, b.id);
    Ok(())
}

pub(crate) fn a_cancel_descriptor_can_be_waited_for<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let closed = t.world.event(t.owner);
    t.world.close_fd(t.owner, closed).unwrap();
    let call = t.start_with(&a, cancellable(closed), &Message::call(b.id, 7, far));
    assert_eq!(t.finish(call), Err(Errno::EBADF));
    let file = t.world.regular_file(t.owner);
    let call = t.start_with(&a, cancellable(file), &Message::call(b.id, 7, far));
    assert_eq!(t.finish(call), Err(Errno::EINVAL));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_reply_with_descriptors_needs_a_caller_that_takes_them<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.hello(&Hello::without_fds()), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    let fd = t.world.event(t.owner);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7).fds(&[fd])), Err(Errno::ECOMM));
    assert_eq!(t.finish(call), Err(Errno::EREMOTEIO));
    Ok(())
}

pub(crate) fn a_call_with_descriptors_needs_a_callee_that_takes_them<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.hello(&Hello::without_fds()), t.far());
    let fd = t.world.event(t.owner);
    let call = t.start(&a, &Message::call(b.id, 7, far).fds(&[fd]));
    assert_eq!(t.finish(call), Err(Errno::ECOMM));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_malformed_reply_does_not_end_the_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    let fd = t.world.handle_fd(&b.handle);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7).fds(&[fd])), Err(Errno::EOPNOTSUPP));
    assert!(t.world.is_waiting(&call));
    t.send(&b, &Message::reply(a.id, 7).flags(MsgFlags::empty())).unwrap();
    assert!(t.finish(call).is_ok());
    Ok(())
}

pub(crate) fn a_callee_that_drops_breaks_the_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_readable(&b);
    t.drop_first(&b).unwrap();
    assert_eq!(t.finish(call), Err(Errno::EPIPE));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_reply_may_come_while_interrupted<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.hello(&Hello::default().pool(65536)), t.far());
    for round in 1..=80 {
        let mut call = t.start(&a, &Message::call(b.id, round, far));
        t.wait_recv(&b);
        t.world.interrupt(&mut call, false)?;
        assert_eq!(t.finish(call), Err(Errno::EINTR));
        t.send(&b, &Message::reply(a.id, round).vec(&[7; 2000])).unwrap();
        // Who comes back finds the reply; nothing is sent again and nothing stays behind.
        let call = t.start(&a, &Message::call(b.id, round, far));
        let info = t.finish(call).unwrap();
        assert_eq!(t.take(&a, info).payload().len(), 2000);
        t.assert_empty(&b, 0);
    }
    Ok(())
}

pub(crate) fn who_comes_back_learns_that_the_callee_is_gone<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, far) = (t.connect(), t.far());
    for round in 1..=3 {
        let b = t.connect();
        let to = b.id;
        let mut call = t.start(&a, &Message::call(to, round, far));
        t.wait_readable(&b);
        t.world.interrupt(&mut call, false)?;
        assert_eq!(t.finish(call), Err(Errno::EINTR));
        match round {
            1 => t.close(b),
            2 => t.drop_first(&b).unwrap(),
            _ => {
                t.recv(&b).unwrap();
                t.byebye(&b).unwrap();
            }
        }
        let call = t.start(&a, &Message::call(to, round, far));
        assert_eq!(t.finish(call), Err(Errno::EPIPE));
        // That was told; the next one with this cookie is a new call.
        if round == 1 {
            let call = t.start(&a, &Message::call(to, round, far));
            assert_eq!(t.finish(call), Err(Errno::ENXIO));
        }
    }
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn who_comes_back_learns_that_the_reply_did_not_fit<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.hello(&Hello::default().pool(4096)), t.connect(), t.far());
    let mut call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.world.interrupt(&mut call, false)?;
    assert_eq!(t.finish(call), Err(Errno::EINTR));
    assert_eq!(t.send(&b, &Message::reply(a.id, 7).vec(&[0; 4000])), Err(Errno::ENOBUFS));
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    let call = t.start(&a, &Message::call(b.id, 7, far));
    assert_eq!(t.finish(call), Err(Errno::ENOBUFS));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_reply_to_an_interrupted_call_leaks_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.hello(&Hello::default().pool(65536)), t.connect());
    // As much as the pool holds, if it were kept.
    for round in 1..=32 {
        let deadline = t.world.now() + 80 * MS;
        let mut call = t.start(&a, &Message::call(b.id, round, deadline));
        t.world.wait(&b.handle, deadline);
        t.world.interrupt(&mut call, false)?;
        let ended = t.finish(call);
        // On a busy machine the deadline may come first, even before the call was made; then nothing arrives.
        assert!(matches!(ended, Err(Errno::EINTR | Errno::ETIMEDOUT)), "{ended:?}");
        let _ = t.recv(&b);
        // A bus may also refuse it, as nobody waits at this moment.
        let _ = t.send(&b, &Message::reply(a.id, round).vec(&[7; 2000]));
        t.world.sleep_until(deadline + MS);
    }
    let (result, _) = t.recv_raw(&a, kdbus_core::abi::RecvFlags::empty(), 0);
    assert_eq!(result, Err(Errno::EAGAIN));
    t.send(&b, &Message::to(a.id).vec(&[7; 8000])).unwrap();
    Ok(())
}

pub(crate) fn a_reply_brings_descriptors<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    let (reader, writer) = t.world.pipe(t.owner);
    t.world.write_fd(t.owner, writer, b"in the reply").unwrap();
    let memfd = t.world.memfd(t.owner, b"sealed", true);
    t.send(&b, &Message::reply(a.id, 7).fds(&[reader]).memfd(memfd, 0, 6)).unwrap();
    t.world.close_fd(t.owner, reader).unwrap();
    t.world.close_fd(t.owner, memfd).unwrap();
    let info = t.finish(call).unwrap();
    let reply = t.take(&a, info);
    assert_eq!(t.world.read_fd(t.owner, reply.fds()[0], 100), Ok(b"in the reply".to_vec()));
    assert_eq!(t.world.read_fd(t.owner, reply.memfds()[0], 100), Ok(b"sealed".to_vec()));
    Ok(())
}

pub(crate) fn a_reply_that_does_not_fit_ends_the_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.hello(&Hello::default().pool(4096)), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    assert_eq!(t.send(&b, &Message::reply(a.id, 7).vec(&[0; 4000])), Err(Errno::ENOBUFS));
    assert_eq!(t.finish(call), Err(Errno::ENOBUFS));
    assert_eq!(t.send(&b, &Message::reply(a.id, 7)), Err(Errno::EBADSLT));
    Ok(())
}

pub(crate) fn a_readable_cancel_descriptor_ends_the_wait_at_once<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let fd = t.world.event(t.owner);
    t.world.write_fd(t.owner, fd, &1_u64.to_ne_bytes()).unwrap();
    let call = t.start_with(&a, cancellable(fd), &Message::call(b.id, 7, far));
    assert_eq!(t.finish(call), Err(Errno::ECANCELED));
    Ok(())
}

pub(crate) fn a_waiting_caller_goes_on_receiving<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    t.send(&b, &Message::to(a.id).cookie(1)).unwrap();
    t.send(&b, &Message::reply(a.id, 7).cookie(2)).unwrap();
    assert_eq!(t.recv(&a).unwrap().msg.cookie, 1);
    let info = t.finish(call).unwrap();
    assert_eq!(t.take(&a, info).msg.cookie, 2);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_bus_that_dies_ends_the_wait<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let call = t.start(&a, &Message::call(b.id, 7, far));
    t.wait_recv(&b);
    let control = t.control.take().unwrap();
    t.world.close(control);
    let ended = t.finish(call);
    // The peer and the caller die together; either may be seen first.
    assert!(matches!(ended, Err(Errno::ECONNRESET | Errno::EPIPE)), "{ended:?}");
    Ok(())
}

pub(crate) fn one_connection_waits_for_several_replies<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let fd = t.world.event(t.owner);
    // Each has come before the next one is made, so that their order is certain.
    let first = t.start(&a, &Message::call(b.id, 1, far));
    assert_eq!(t.wait_recv(&b).msg.cookie, 1);
    let second = t.start_with(&a, cancellable(fd), &Message::call(b.id, 2, far));
    assert_eq!(t.wait_recv(&b).msg.cookie, 2);
    let third = t.start(&a, &Message::call(b.id, 3, far));
    assert_eq!(t.wait_recv(&b).msg.cookie, 3);
    let fourth = t.start(&a, &Message::call(b.id, 4, far));
    assert_eq!(t.wait_recv(&b).msg.cookie, 4);
    t.send(&b, &Message::reply(a.id, 3).cookie(33)).unwrap();
    t.world.write_fd(t.owner, fd, &1_u64.to_ne_bytes()).unwrap();
    assert_eq!(t.finish(second), Err(Errno::ECANCELED));
    t.send(&b, &Message::reply(a.id, 1).cookie(11)).unwrap();
    t.send(&b, &Message::reply(a.id, 4).cookie(44)).unwrap();
    for (call, cookie) in [(first, 11), (third, 33), (fourth, 44)] {
        let info = t.finish(call).unwrap();
        assert_eq!(t.take(&a, info).msg.cookie, cookie);
    }
    assert_eq!(t.send(&b, &Message::reply(a.id, 2)), Err(Errno::EBADSLT));
    Ok(())
}
