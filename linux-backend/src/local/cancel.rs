//! Descriptors that end the wait for a synchronous call.

use kdbus_core::abi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;

use super::bell::Woken;
use super::error::errno;

/// Whether `cancel` can be polled. kdbus: a cancel descriptor that is not open is `EBADF`, one of a file that
/// is always ready is `EINVAL`.
pub(super) fn check(cancel: BorrowedFd<'_>) -> Result<(), Errno> {
    use rustix::fs::FileType;
    let mode = rustix::fs::fstat(cancel).map_err(errno)?.st_mode;
    match FileType::from_raw_mode(mode) {
        FileType::RegularFile | FileType::Directory | FileType::BlockDevice => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

/// Waits until `socket` has a packet or its end, or until `cancel` is readable. True for the socket.
pub(super) fn wait_answer(socket: BorrowedFd<'_>, cancel: BorrowedFd<'_>) -> Result<bool, Errno> {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(cancel, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(errno(error)),
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

/// Whether a descriptor cancels, without waiting for it.
pub(super) fn look_at(cancel: BorrowedFd<'_>) -> Woken {
    let mut fds = [PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
    match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
        Ok(1..) => canceled(fds[0].revents()),
        _ => Woken::Early,
    }
}

/// What the events of a descriptor that cancels say.
pub(super) const fn canceled(events: PollFlags) -> Woken {
    if events.contains(PollFlags::IN) {
        Woken::Canceled
    } else if events.is_empty() {
        Woken::Early
    } else {
        Woken::NeverCanceled
    }
}

#[cfg(test)]
mod tests {
    use rustix::fd::AsFd;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    #[test]
    fn an_answer_wins_over_a_cancellation() {
        let (socket, peer) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let (cancel, canceler) = pipe_with(PipeFlags::empty()).unwrap();
        rustix::io::write(&canceler, b"!").unwrap();
        assert_eq!(wait_answer(socket.as_fd(), cancel.as_fd()), Ok(false));
        rustix::io::write(&peer, b"answer").unwrap();
        assert_eq!(wait_answer(socket.as_fd(), cancel.as_fd()), Ok(true));
    }
}
