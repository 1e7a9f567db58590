//! Passed descriptors and memfds.

use kdbus_core::abi::{Errno, HelloFlags, RecvReturnFlags};

use crate::bench::{Bench, Outcome};
use crate::build::{Hello, Message};
use crate::world::World;

/// `count` descriptors that may be passed.
fn pipes<W: World>(t: &mut Bench<W>, count: usize) -> Vec<i32> {
    (0..count).map(|_| t.world.event(t.owner)).collect()
}

fn memfds<W: World>(t: &mut Bench<W>, count: usize) -> Vec<i32> {
    (0..count).map(|i| t.world.memfd(t.owner, &[i as u8; 8], true)).collect()
}

fn with_memfds(message: Message, memfds: &[i32]) -> Message {
    memfds.iter().fold(message, |message, fd| message.memfd(*fd, 0, 8))
}

pub(crate) fn bus_handles_are_not_passed_on<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fd = t.world.handle_fd(&b.handle);
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&[fd])), Err(Errno::EOPNOTSUPP));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn unix_sockets_are_not_passed_on<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fd = t.world.unix_socket(t.owner);
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&[fd])), Err(Errno::EOPNOTSUPP));
    Ok(())
}

pub(crate) fn a_closed_descriptor_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fd = t.world.event(t.owner);
    t.world.close_fd(t.owner, fd).unwrap();
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&[fd])), Err(Errno::EBADF));
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&[-1])), Err(Errno::EBADF));
    Ok(())
}

pub(crate) fn a_path_descriptor_is_passed<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fd = t.world.path_only(t.owner);
    t.send(&a, &Message::to(b.id).fds(&[fd])).unwrap();
    let fds = t.recv(&b).unwrap().fds();
    assert_eq!(fds.len(), 1);
    t.world.close_fd(t.owner, fds[0]).unwrap();
    Ok(())
}

pub(crate) fn one_message_carries_up_to_16_descriptors<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fds = pipes(t, 17);
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&fds)), Err(Errno::EMFILE));
    t.send(&a, &Message::to(b.id).fds(&fds[..16])).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!((received.fds().len(), received.info.return_flags), (16, 0));
    for fd in received.fds() {
        t.world.close_fd(t.owner, fd).unwrap();
    }
    Ok(())
}

pub(crate) fn one_user_has_up_to_16_descriptors_in_flight<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    let fds = pipes(t, 16);
    t.send(&a, &Message::to(b.id).fds(&fds)).unwrap();
    assert_eq!(t.send(&c, &Message::to(b.id).fds(&fds[..1])), Err(Errno::EMFILE));
    t.recv(&b).unwrap();
    t.send(&c, &Message::to(b.id).fds(&fds[..1])).unwrap();
    Ok(())
}

pub(crate) fn a_receiver_has_to_accept_descriptors<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::without_fds()));
    let fds = pipes(t, 1);
    assert_eq!(t.send(&a, &Message::to(b.id).fds(&fds)), Err(Errno::ECOMM));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_memfd_needs_no_acceptance<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::without_fds()));
    let fd = t.world.memfd(t.owner, b"sealed content", true);
    t.send(&a, &Message::to(b.id).memfd(fd, 0, 14)).unwrap();
    let memfds = t.recv(&b).unwrap().memfds();
    assert_eq!(memfds.len(), 1);
    assert_eq!(t.world.read_fd(t.owner, memfds[0], 100), Ok(b"sealed content".to_vec()));
    Ok(())
}

pub(crate) fn a_passed_descriptor_outlives_the_senders<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let (reader, writer) = t.world.pipe(t.owner);
    t.world.write_fd(t.owner, writer, b"through the pipe").unwrap();
    t.send(&a, &Message::to(b.id).fds(&[reader])).unwrap();
    t.world.close_fd(t.owner, reader).unwrap();
    let fds = t.recv(&b).unwrap().fds();
    assert_eq!(t.world.read_fd(t.owner, fds[0], 100), Ok(b"through the pipe".to_vec()));
    Ok(())
}

pub(crate) fn broadcasts_carry_no_descriptors<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let fds = pipes(t, 1);
    assert_eq!(t.send(&a, &Message::broadcast().fds(&fds)), Err(Errno::ENOTUNIQ));
    Ok(())
}

pub(crate) fn broadcasts_carry_memfds<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    for conn in [&b, &c] {
        t.add_match(conn, 1, &[]).unwrap();
    }
    let fd = t.world.memfd(t.owner, b"for all", true);
    t.send(&a, &Message::broadcast().memfd(fd, 0, 7)).unwrap();
    for conn in [&b, &c] {
        let memfds = t.recv(conn).unwrap().memfds();
        assert_eq!(t.world.read_fd(t.owner, memfds[0], 100), Ok(b"for all".to_vec()));
    }
    Ok(())
}

pub(crate) fn one_message_carries_up_to_16_memfds<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fds = memfds(t, 17);
    assert_eq!(t.send(&a, &with_memfds(Message::to(b.id), &fds)), Err(Errno::E2BIG));
    t.send(&a, &with_memfds(Message::to(b.id), &fds[..16])).unwrap();
    let received = t.recv(&b).unwrap().memfds();
    assert_eq!(received.len(), 16);
    for (i, fd) in received.into_iter().enumerate() {
        assert_eq!(t.world.read_fd(t.owner, fd, 8), Ok(vec![i as u8; 8]));
    }
    Ok(())
}

pub(crate) fn descriptors_and_memfds_have_their_own_limits<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let (fds, memfds) = (pipes(t, 17), memfds(t, 16));
    assert_eq!(t.send(&a, &with_memfds(Message::to(b.id).fds(&fds), &memfds[..10])), Err(Errno::EMFILE));
    t.send(&a, &with_memfds(Message::to(b.id).fds(&fds[..16]), &memfds)).unwrap();
    let received = t.recv(&b).unwrap();
    let mut all: Vec<i32> = received.fds().into_iter().chain(received.memfds()).collect();
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), all[0] >= 0), (32, true));
    Ok(())
}

pub(crate) fn memfds_in_flight_are_not_counted<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let (fds, memfds) = (pipes(t, 16), memfds(t, 16));
    t.send(&a, &Message::to(b.id).fds(&fds)).unwrap();
    t.send(&a, &with_memfds(Message::to(b.id), &memfds)).unwrap();
    Ok(())
}

pub(crate) fn only_sealed_memfds_are_payload<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let unsealed = t.world.memfd(t.owner, b"may change", false);
    assert_eq!(t.send(&a, &Message::to(b.id).memfd(unsealed, 0, 10)), Err(Errno::ETXTBSY));
    let (reader, _) = t.world.pipe(t.owner);
    assert_eq!(t.send(&a, &Message::to(b.id).memfd(reader, 0, 10)), Err(Errno::EMEDIUMTYPE));
    Ok(())
}

pub(crate) fn a_memfd_range_lies_in_its_file<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fd = t.world.memfd(t.owner, b"0123456789", true);
    for (fd, start, size, expected) in [
        (fd, 0, 10, Ok(())),
        (fd, 4, 6, Ok(())),
        (fd, 4, 7, Err(Errno::EFAULT)),
        (fd, 11, 1, Err(Errno::EFAULT)),
        (fd, u64::MAX, 2, Err(Errno::EMSGSIZE)),
        (fd, 0, 0, Err(Errno::EINVAL)),
        (-1, 0, 10, Err(Errno::EBADF)),
    ] {
        assert_eq!(t.send(&a, &Message::to(b.id).memfd(fd, start, size)), expected, "{fd} {start} {size}");
    }
    Ok(())
}

pub(crate) fn an_empty_list_of_descriptors_is_no_list<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::without_fds()));
    t.send(&a, &Message::to(b.id).fds(&[])).unwrap();
    assert_eq!(t.recv(&b).unwrap().fds(), []);
    Ok(())
}

pub(crate) fn installed_descriptors_close_on_exec<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let (fds, memfds) = (pipes(t, 1), memfds(t, 1));
    t.send(&a, &with_memfds(Message::to(b.id).fds(&fds), &memfds)).unwrap();
    let received = t.recv(&b).unwrap();
    for fd in [received.fds()[0], received.memfds()[0]] {
        assert_eq!(t.world.is_close_on_exec(t.owner, fd), Ok(true));
    }
    Ok(())
}

pub(crate) fn a_receiver_at_its_limit_gets_the_rest<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let fds = pipes(t, 4);
    t.send(&a, &Message::to(b.id).fds(&fds).cookie(5)).unwrap();
    t.world.leave_spare_fds(t.owner, 1)?;
    let received = t.recv(&b).unwrap();
    assert_eq!((received.msg.cookie, received.fds().len()), (5, 4));
    assert_eq!(received.fds()[1..], [-1; 3]);
    assert!(received.fds()[0] >= 0);
    assert_eq!(received.info.return_flags, RecvReturnFlags::INCOMPLETE_FDS.bits());
    Ok(())
}

pub(crate) fn peeking_installs_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let (reader, writer) = t.world.pipe(t.owner);
    t.send(&a, &Message::to(b.id).fds(&[writer])).unwrap();
    t.world.close_fd(t.owner, writer).unwrap();
    t.peek(&b).unwrap();
    assert_eq!(t.world.read_fd(t.owner, reader, 1), Err(Errno::EAGAIN));
    t.drop_first(&b).unwrap();
    // The pipe has ended, so the message held its last writing end.
    assert_eq!(t.world.read_fd(t.owner, reader, 1), Ok(Vec::new()));
    Ok(())
}

pub(crate) fn a_signal_with_descriptors_vanishes_if_not_accepted<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().flags(HelloFlags::empty())));
    t.add_match(&b, 1, &[]).unwrap();
    let fds = pipes(t, 1);
    t.send(&a, &Message::signal_to(b.id).fds(&fds)).unwrap();
    t.assert_empty(&b, 0);
    t.send(&a, &Message::signal_to(b.id)).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}
