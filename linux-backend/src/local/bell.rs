//! What a client waits on: the bell that kdbusd rings, and the socket's end.

use core::cell::{Cell, OnceCell};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use kdbus_core::Instant;

use super::error;

/// Why a client stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Something may have come in, or the deadline has passed.
    Early,
    /// The bus is gone.
    HungUp,
}

/// The descriptors that wake a client, in one set that can be polled from outside.
#[derive(Debug)]
pub(super) struct Bell {
    set: OwnedFd,
    /// The read end of kdbusd's pipe, once there is a connection.
    pipe: OnceCell<OwnedFd>,
    /// Rung by the client itself, for what it found after it had asked for the bell.
    own: OwnedFd,
    own_rung: Cell<bool>,
}

impl Bell {
    /// A set that tells of `socket`'s end.
    pub(super) fn new(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let data = epoll::EventData::new_u64(0);
        // Answers on the socket are waited for by whoever asked.
        epoll::add(&set, socket, data, epoll::EventFlags::RDHUP)?;
        epoll::add(&set, &own, data, epoll::EventFlags::IN)?;
        Ok(Self { set, pipe: OnceCell::new(), own, own_rung: Cell::new(false) })
    }

    /// Adds the bell of a new connection.
    pub(super) fn attach(&self, pipe: OwnedFd) -> Result<(), Errno> {
        // kdbusd has its own description of the other end, so this changes nothing for it.
        let flags = rustix::fs::fcntl_getfl(&pipe)? | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&pipe, flags)?;
        epoll::add(&self.set, &pipe, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        // There is one HELLO at most.
        self.pipe.set(pipe).map_err(|_| Errno::EXIST)
    }

    /// The set: readable while anything waits.
    pub(super) fn set(&self) -> BorrowedFd<'_> {
        self.set.as_fd()
    }

    /// Silences the bell. False if kdbusd's end of it is closed.
    pub(super) fn silence(&self) -> bool {
        if self.own_rung.replace(false) {
            let _ = rustix::io::read(&self.own, &mut [0; 8]);
        }
        let Some(pipe) = self.pipe.get() else { return true };
        // kdbusd rings once for each time it is asked to, so there is at most one byte; more of them would
        // only make the next look come early.
        match rustix::io::retry_on_intr(|| rustix::io::read(pipe, &mut [0; 64])) {
            Ok(0) => false,
            Ok(_) | Err(_) => true,
        }
    }

    /// Makes the set readable until the bell is silenced.
    pub(super) fn ring_own(&self) {
        if !self.own_rung.replace(true) {
            // The counter is 0 here and cannot overflow.
            let _ = rustix::io::write(&self.own, &1_u64.to_ne_bytes());
        }
    }

    /// Waits for the bell, for `socket`'s end or until `deadline`. Restarts after signals.
    pub(super) fn wait(&self, socket: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Woken, Errno> {
        let (pipe, pipe_events) = match self.pipe.get() {
            Some(pipe) => (pipe.as_fd(), PollFlags::IN),
            None => (socket, PollFlags::RDHUP),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(pipe, pipe_events),
            PollFd::from_borrowed_fd(socket, PollFlags::RDHUP),
            PollFd::new(&self.own, PollFlags::IN),
        ];
        loop {
            let timeout = deadline.map(|deadline| timespec(deadline.since(now())));
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        let ended = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL;
        let hung_up = fds[..2].iter().any(|fd| fd.revents().intersects(ended));
        Ok(if hung_up { Woken::HungUp } else { Woken::Early })
    }
}

/// Waits until `socket` has a packet or its end, or until `cancel` is readable. True for the socket.
pub(super) fn wait_answer(
    socket: BorrowedFd<'_>,
    cancel: BorrowedFd<'_>,
) -> Result<bool, kdbus_core::abi::Errno> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error::errno(error)),
            Ok(_) => {}
        }
        // An answer that is there wins over the cancellation.
        if !fds[0].revents().is_empty() {
            return Ok(true);
        }
        if fds[1].revents().contains(PollFlags::IN) {
            return Ok(false);
        }
        if !fds[1].revents().is_empty() {
            // It can never become readable, so from here on only the socket counts.
            return Ok(true);
        }
    }
}

/// Time on the bus' clock.
pub(super) fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot: neither part is negative, and the sum lasts for centuries.
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

fn timespec(span: core::time::Duration) -> Timespec {
    Timespec { tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: span.subsec_nanos().into() }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn readable(bell: &Bell) -> bool {
        let mut fds = [PollFd::new(&bell.set, PollFlags::IN)];
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
        assert_eq!(bell.wait(socket.as_fd(), None), Ok(Woken::Early));
        assert!(bell.silence());
        assert!(!readable(&bell));
        bell.ring_own();
        bell.ring_own();
        assert_eq!(bell.wait(socket.as_fd(), None), Ok(Woken::Early));
        assert!(bell.silence());
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
        assert_eq!(bell.wait(socket.as_fd(), None), Ok(Woken::HungUp));
    }

    #[test]
    fn a_closed_bell_is_an_end() {
        let (socket, _peer) = pair();
        let (read, write) = pipe_with(PipeFlags::empty()).unwrap();
        let bell = Bell::new(socket.as_fd()).unwrap();
        bell.attach(read).unwrap();
        drop(write);
        assert_eq!(bell.wait(socket.as_fd(), None), Ok(Woken::HungUp));
        assert!(!bell.silence());
    }

    #[test]
    fn a_wait_ends_at_its_deadline_and_not_before() {
        let (socket, _peer) = pair();
        let bell = Bell::new(socket.as_fd()).unwrap();
        let deadline = now().after(core::time::Duration::from_micros(300));
        assert_eq!(bell.wait(socket.as_fd(), Some(deadline)), Ok(Woken::Early));
        assert!(now() >= deadline);
        assert_eq!(bell.wait(socket.as_fd(), Some(Instant::ZERO)), Ok(Woken::Early));
    }

    #[test]
    fn an_answer_wins_over_a_cancellation() {
        let (socket, peer) = pair();
        let (cancel, canceler) = pipe_with(PipeFlags::empty()).unwrap();
        rustix::io::write(&canceler, b"!").unwrap();
        assert_eq!(wait_answer(socket.as_fd(), cancel.as_fd()), Ok(false));
        rustix::io::write(&peer, b"answer").unwrap();
        assert_eq!(wait_answer(socket.as_fd(), cancel.as_fd()), Ok(true));
    }
}
