//! The system calls that have no safe wrapper elsewhere.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::mem::{self, ManuallyDrop, MaybeUninit};

use kdbus_linux::local::socket::{Arrived, Descriptors};
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

/// Receives one packet, as [`socket::recv`](kdbus_linux::local::socket::recv) does without waiting. That one has the kernel tell
/// the name of the other end too, with each packet.
pub(crate) fn recv(socket: BorrowedFd<'_>, buffer: &mut [u8], fds: &mut Descriptors) -> io::Result<Arrived> {
    fds.clear();
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut control = Control([MaybeUninit::uninit(); CONTROL_MAX]);
    // SAFETY: all of it may be zero.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_MAX as _);
    let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
    let len = loop {
        // Not `libc::recvmsg`: around it, glibc lets the thread be cancelled and ends that again, each with an atomic exchange.
        let (number, socket) = (libc::SYS_recvmsg, socket.as_raw_fd());
        // SAFETY: the message has room for as many bytes and control bytes as it says, which nobody else reaches.
        let received = unsafe { libc::syscall(number, socket, &raw mut message, flags) };
        match usize::try_from(received) {
            Ok(len) => break len,
            Err(_) => match last_error() {
                Errno::INTR => {}
                error => return Err(error),
            },
        }
    };
    let mut fds_lost = message.msg_flags & libc::MSG_CTRUNC != 0;
    // SAFETY: the kernel has filled in the control bytes up to the length that it has put into the message.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !next.is_null() {
        // SAFETY: what is not null lies in the control bytes, whole and aligned.
        let head = unsafe { next.read() };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: these two compute numbers and addresses alone.
            let (empty, data) = unsafe { (libc::CMSG_LEN(0), libc::CMSG_DATA(next)) };
            let count = (head.cmsg_len as usize).saturating_sub(empty as usize) / size_of::<c_int>();
            for at in 0..count {
                // SAFETY: so many descriptors lie there, which the kernel has installed for this process alone.
                let fd = unsafe { OwnedFd::from_raw_fd(data.cast::<c_int>().add(at).read_unaligned()) };
                fds_lost |= fds.push(fd).is_err();
            }
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(&raw const message, next) };
    }
    if message.msg_flags & libc::MSG_TRUNC != 0 {
        return Err(Errno::MSGSIZE);
    }
    Ok(Arrived { len, fds_lost })
}

/// Bytes for all descriptors that the kernel lets one packet carry.
// SAFETY: it computes a number.
const CONTROL_MAX: usize = unsafe { libc::CMSG_SPACE(RIGHTS_MAX * size_of::<c_int>() as u32) } as usize;

/// Descriptors that the kernel lets one packet carry.
const RIGHTS_MAX: u32 = 253;

/// Control bytes, aligned as their heads have to be.
#[repr(align(8))]
struct Control([MaybeUninit<u8>; CONTROL_MAX]);

const _: () = assert!(align_of::<Control>() >= align_of::<libc::cmsghdr>());

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
    Err(last_error())
}

fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
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
    fn packets_come_with_their_descriptors() {
        use kdbus_linux::local::socket::{self, Wait};
        use kdbus_linux::local::wire::{Header, Kind};
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let flags = SocketFlags::CLOEXEC;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let (mut buffer, mut fds) = ([0; 100], Descriptors::new());
        let mut receive = |buffer: &mut [u8]| recv(b.as_fd(), buffer, &mut fds).map(|it| (it, fds.len()));
        assert_eq!(receive(&mut buffer), Err(Errno::AGAIN));
        let header = Header::new(Kind::Command, 1);
        let whole = |len| Arrived { len, fds_lost: false };
        for count in [0, 1, 64] {
            socket::send(&a, &header, &[b"abc"], &vec![a.as_fd(); count], Wait::Yes).unwrap();
            assert_eq!(receive(&mut buffer), Ok((whole(59), count)));
        }
        socket::send(&a, &header, &[b"abc"], &[a.as_fd()], Wait::Yes).unwrap();
        assert_eq!(receive(&mut buffer[..58]), Err(Errno::MSGSIZE));
        drop(a);
        assert_eq!(receive(&mut buffer), Ok((whole(0), 0)));
    }

    #[test]
    fn a_socket_without_a_peer_has_no_ids() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(peer_ids(file.as_fd()), Err(Errno::NOTSOCK));
    }
}
