//! The system calls that have no safe wrapper elsewhere.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::ManuallyDrop;

use rustix::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::{self, Errno};

use crate::closer;

/// A descriptor that a client had a hand in. Dropping it does not wait (see [`closer`]).
#[derive(Debug)]
pub(crate) struct Foreign {
    file: ManuallyDrop<OwnedFd>,
    /// The user whom its close may wait for.
    uid: u32,
    is_client: bool,
}

impl Foreign {
    /// What a client of the user `uid` brought, or can fill.
    pub(crate) const fn new(file: OwnedFd, uid: u32) -> Self {
        Self { file: ManuallyDrop::new(file), uid, is_client: false }
    }

    /// The socket of a client of the user `uid`. Dropping it shuts it down.
    pub(crate) const fn client(socket: OwnedFd, uid: u32) -> Self {
        Self { file: ManuallyDrop::new(socket), uid, is_client: true }
    }
}

impl AsFd for Foreign {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Foreign {
    fn drop(&mut self) {
        // SAFETY: a value is dropped once, and nothing sees the place afterwards.
        let file = unsafe { ManuallyDrop::take(&mut self.file) };
        if self.is_client {
            closer::hang_up(file, self.uid);
        } else {
            closer::close(file, self.uid);
        }
    }
}

/// Process, effective user and effective group of a peer, by the kernel's word. The process is 0 if it has no
/// number here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PeerIds {
    pub(crate) pid: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// `SO_PEERCRED`. (That of rustix cannot say that a process has no number.)
pub(crate) fn peer_ids(socket: BorrowedFd<'_>) -> io::Result<PeerIds> {
    let mut ids = libc::ucred { pid: 0, uid: u32::MAX, gid: u32::MAX };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut ids).cast();
    // SAFETY: `place` is writable for `length` bytes, the kernel writes no more than that, and any numbers are
    // a valid `ucred`.
    check(unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length)
    })?;
    Ok(PeerIds { pid: u32::try_from(ids.pid).unwrap_or(0), uid: ids.uid, gid: ids.gid })
}

/// Whether the peer of a Unix socket has read everything, or is gone: `SO_MEMINFO`, which rustix does not have. Without an
/// answer, as from an emulator, it has: nobody is cut off for what cannot be known.
pub(crate) fn is_read(socket: BorrowedFd<'_>) -> bool {
    let mut numbers = [u32::MAX; 9];
    let mut length = size_of_val(&numbers) as libc::socklen_t;
    let place = (&raw mut numbers).cast();
    // SAFETY: `place` is writable for `length` bytes, and the kernel writes no more than that.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_MEMINFO, place, &raw mut length)
    };
    /// `SK_MEMINFO_WMEM_ALLOC`: what was sent and lies in the peer's queue.
    const SENT: usize = 2;
    // An emulator may know of the first number alone.
    let is_told = check(result).is_ok() && length as usize > SENT * size_of::<u32>();
    !is_told || numbers[SENT] == 0
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

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_in_the_queue_of_the_peer_is_not_read() {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        for closes in [false, true] {
            let kind = SocketType::SEQPACKET;
            let (a, b) = socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None).unwrap();
            assert!(is_read(a.as_fd()));
            io::write(&a, b"packet").unwrap();
            assert!(!is_read(a.as_fd()));
            if closes {
                drop(b);
            } else {
                io::read(&b, &mut [0; 8]).unwrap();
            }
            assert!(is_read(a.as_fd()));
        }
    }

    #[test]
    fn a_socket_without_a_peer_has_no_ids() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(peer_ids(file.as_fd()), Err(Errno::NOTSOCK));
    }
}
