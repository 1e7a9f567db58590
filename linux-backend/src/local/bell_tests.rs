//! The descriptor of a connection is readable when it has to be, and waits end.

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use super::*;

fn pair() -> (OwnedFd, OwnedFd) {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
}

fn readable(bell: &Bell) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(bell.watch(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

#[test]
fn the_set_is_readable_from_the_ring_until_it_is_silenced() {
    let (socket, _peer) = pair();
    let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.attach(read).unwrap();
    assert!(!readable(&bell));
    rustix::io::write(&write, b"!").unwrap();
    assert!(readable(&bell));
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::Early));
    assert!(bell.silence(&mut |_, _| {}));
    assert!(!readable(&bell));
    bell.ring_own();
    bell.ring_own();
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::Early));
    assert!(bell.silence(&mut |_, _| {}));
    assert!(!readable(&bell));
}

#[test]
fn an_answer_alone_does_not_make_the_set_readable() {
    let (socket, peer) = pair();
    let bell = Bell::new(socket.as_fd()).unwrap();
    rustix::io::write(&peer, b"answer").unwrap();
    assert!(!readable(&bell));
    drop(peer);
    assert!(readable(&bell));
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::HungUp));
}

#[test]
fn a_closed_bell_is_an_end() {
    let (socket, _peer) = pair();
    let (read, write) = pipe_with(PipeFlags::empty()).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.attach(read).unwrap();
    drop(write);
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::HungUp));
    assert!(!bell.silence(&mut |_, _| {}));
}

#[test]
fn each_ring_wakes_though_the_bell_is_emptied_now_and_then_only() {
    let (socket, _peer) = pair();
    let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.attach(read).unwrap();
    let lying = || rustix::io::ioctl_fionread(bell.pipe.get().unwrap()).unwrap();
    let mut most = 0;
    for _ in 0..100_000 {
        rustix::io::write(&write, b"!").unwrap();
        assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::Early));
        assert!(bell.silence(&mut |_, _| {}));
        most = lying().max(most);
    }
    assert!(most < 256);
    assert_eq!(most > 0, bell.by_edge.get());
    // Who polls the set finds it silent all the same.
    rustix::io::write(&write, b"!").unwrap();
    assert!(readable(&bell));
    assert!(bell.silence(&mut |_, _| {}));
    assert!(!readable(&bell));
    assert_eq!(lying(), 0);
}

#[test]
fn what_is_taken_in_passing_still_wakes() {
    let (socket, _peer) = pair();
    let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.attach(read).unwrap();
    rustix::io::write(&write, b"!").unwrap();
    bell.take_rings(1, &mut |_, _| {});
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::Early));
    assert!(bell.silence(&mut |_, _| {}));
    rustix::io::write(&write, b"!").unwrap();
    bell.take_rings(1, &mut |_, _| {});
    let (silent, _canceler) = pipe_with(PipeFlags::empty()).unwrap();
    let (late, cancel) = (now().after(Duration::from_secs(9)), Some(silent.as_fd()));
    assert_eq!(bell.wait_or_cancel(socket.as_fd(), Some(late), cancel, &mut |_, _| {}), Ok(Woken::Early));
    assert!(now() < late, "it was not slept over");
    assert!(bell.silence(&mut |_, _| {}));
    drop(write);
    bell.take_rings(1, &mut |_, _| {});
    assert_eq!(bell.wait(socket.as_fd(), None, &mut |_, _| {}), Ok(Woken::HungUp));
    assert!(!bell.silence(&mut |_, _| {}));
}

#[test]
fn a_wait_ends_at_its_deadline_and_not_before() {
    let (socket, _peer) = pair();
    let bell = Bell::new(socket.as_fd()).unwrap();
    let deadline = now().after(Duration::from_micros(300));
    assert_eq!(bell.wait(socket.as_fd(), Some(deadline), &mut |_, _| {}), Ok(Woken::Early));
    assert!(now() >= deadline);
    assert_eq!(bell.wait(socket.as_fd(), Some(Instant::ZERO), &mut |_, _| {}), Ok(Woken::Early));
}

#[test]
fn the_timer_of_a_wait_ends_later_ones_once_and_none_that_is_polled() {
    let (socket, _peer) = pair();
    let (read, write) = pipe_with(PipeFlags::NONBLOCK).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.attach(read).unwrap();
    let wait = |deadline| bell.wait(socket.as_fd(), deadline, &mut |_, _| {}).unwrap();
    let ring = || rustix::io::write(&write, b"!").unwrap();
    let slept_until = |deadline| {
        ring();
        wait(Some(deadline));
        bell.silence(&mut |_, _| {});
        bell.goes_off.get()
    };
    let first = now().after(FAR_AWAY + Duration::from_millis(50));
    if gate().is_none() {
        return;
    }
    assert_eq!(slept_until(first), first);
    assert_eq!(slept_until(first.after(FAR_AWAY)), first, "it stays as it is");
    // Something near has a timeout of its own.
    let near = now().after(Duration::from_micros(300));
    wait(Some(near));
    assert!(now() >= near && now() < first);
    // It goes off once.
    wait(None);
    assert!(now() >= first);
    let then = now().after(Duration::from_millis(20));
    wait(Some(then));
    assert!(now() >= then);
    // Who polls is not told of the end of a wait.
    let last = now().after(FAR_AWAY + Duration::from_millis(50));
    assert_eq!(slept_until(last), last);
    let _ = bell.watch();
    assert!(bell.silence(&mut |_, _| {}));
    assert!(!readable(&bell));
    std::thread::sleep(2 * FAR_AWAY);
    assert!(!readable(&bell));
}

#[test]
fn who_is_rung_for_on_and_on_can_be_canceled() {
    let (socket, _peer) = pair();
    let (cancel, canceler) = pipe_with(PipeFlags::empty()).unwrap();
    let bell = Bell::new(socket.as_fd()).unwrap();
    bell.ring_own();
    let wait =
        || bell.wait_or_cancel(socket.as_fd(), Some(Instant::FAR), Some(cancel.as_fd()), &mut |_, _| {});
    assert_eq!(wait(), Ok(Woken::Early));
    rustix::io::write(&canceler, b"!").unwrap();
    assert_eq!(wait(), Ok(Woken::Canceled));
}
