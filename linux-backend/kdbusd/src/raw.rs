//! The system calls that have no safe wrapper elsewhere.
#![allow(unsafe_code)]

use std::ffi::c_int;

use rustix::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{self, Errno};

use crate::config::Policy;

/// `SO_PEERPIDFD`, since Linux 6.5.
const SO_PEERPIDFD: c_int = 77;

/// Process, effective user and effective group of a peer, by the kernel's word. The process is 0 if it has no
/// number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerIds {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// `SO_PEERCRED`.
pub(crate) fn peer_ids(socket: BorrowedFd<'_>) -> io::Result<PeerIds> {
    let mut words = [0; 3];
    match option(socket, libc::SO_PEERCRED, &mut words)? {
        12 => Ok(PeerIds { pid: words[0], uid: words[1], gid: words[2] }),
        _ => Err(Errno::INVAL),
    }
}

/// `SO_PEERGROUPS`: how many there are, or `ERANGE` if there are more than places.
pub(crate) fn peer_groups(socket: BorrowedFd<'_>, groups: &mut [u32]) -> io::Result<usize> {
    Ok(option(socket, libc::SO_PEERGROUPS, groups)? / size_of::<u32>())
}

/// `SO_PEERSEC`: bytes of the label, perhaps with a NUL behind it.
pub(crate) fn peer_label(socket: BorrowedFd<'_>, label: &mut [u8]) -> io::Result<usize> {
    option(socket, libc::SO_PEERSEC, label)
}

/// `SO_PEERPIDFD`.
pub(crate) fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut fd = [-1_i32];
    match option(socket, SO_PEERPIDFD, &mut fd)? {
        // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
        4 if fd[0] >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd[0]) }),
        _ => Err(Errno::INVAL),
    }
}

/// Gives the calling thread a scheduling class and priority.
pub(crate) fn schedule(policy: Policy, priority: u32) -> io::Result<()> {
    let class = match policy {
        Policy::Inherit => return Ok(()),
        Policy::Other => libc::SCHED_OTHER,
        Policy::Fifo => libc::SCHED_FIFO,
        Policy::Rr => libc::SCHED_RR,
    };
    let priority = c_int::try_from(priority).map_err(|_| Errno::INVAL)?;
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: thread 0 is the calling one, and `parameters` outlives the call, which only reads it.
    check(unsafe { libc::sched_setscheduler(0, class, &raw const parameters) })
}

/// Takes over a descriptor that the process was started with.
pub(crate) fn inherited(fd: c_int) -> io::Result<OwnedFd> {
    // The standard ones are not ours to close.
    if fd <= libc::STDERR_FILENO {
        return Err(Errno::BADF);
    }
    // SAFETY: F_SETFD touches no memory, and any number may be asked about.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and whoever started the process gave it to us; by contract nothing here has opened
    // or taken anything yet.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A value that any bytes are a valid instance of, so that the kernel may fill it.
trait Plain: Copy {}

impl Plain for u8 {}
impl Plain for u32 {}
impl Plain for i32 {}

/// Reads a `SOL_SOCKET` option into `value` and returns its length in bytes.
fn option<T: Plain>(socket: BorrowedFd<'_>, name: c_int, value: &mut [T]) -> io::Result<usize> {
    let mut length = libc::socklen_t::try_from(size_of_val(value)).map_err(|_| Errno::INVAL)?;
    let place = value.as_mut_ptr().cast();
    // SAFETY: `place` is writable for `length` bytes, the kernel writes no more than that, and `Plain` says
    // that what it writes is valid.
    check(unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, place, &raw mut length) })?;
    Ok(length as usize)
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::AsFd;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    #[test]
    fn options_that_do_not_fit_are_refused() {
        let flags = SocketFlags::CLOEXEC;
        let (socket, _other) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        assert_eq!(peer_ids(socket.as_fd()).unwrap().pid, std::process::id());
        let groups = rustix::process::getgroups().unwrap().len();
        let expected = if groups == 0 { Ok(0) } else { Err(Errno::RANGE) };
        assert_eq!(peer_groups(socket.as_fd(), &mut []), expected);
    }

    #[test]
    fn an_impossible_priority_is_refused() {
        assert_eq!(schedule(Policy::Fifo, 1000), Err(Errno::INVAL));
        assert_eq!(schedule(Policy::Inherit, 0), Ok(()));
    }
}
