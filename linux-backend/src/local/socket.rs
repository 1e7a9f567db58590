//! Packets with descriptors over `SOCK_SEQPACKET` sockets.

use core::mem::MaybeUninit;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::{Errno, IoSlice, IoSliceMut, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use zerocopy::IntoBytes;

use super::wire::{FDS_MAX, Header};

/// Parts that one packet can be gathered from, besides its header.
pub const PARTS_MAX: usize = 64;

/// Bytes up to which a packet without descriptors is put together here, which costs less than to have the kernel gather it.
const GATHERED_MAX: usize = 512;

/// Descriptors that the kernel lets one packet carry, whatever the protocol permits.
const RIGHTS_MAX: usize = 253;

/// Descriptors that came with a packet, closed on drop.
///
/// There is room for all that may come: what had none would be closed in the midst of receiving, and closing may
/// wait for whoever made the file.
pub type Descriptors = heapless::Vec<OwnedFd, RIGHTS_MAX>;

/// Whether an operation may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as it takes.
    Yes,
    /// Fail with `EAGAIN` instead.
    No,
}

/// What a receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// Bytes of the packet; 0 when the other end is gone.
    pub len: usize,
    /// Descriptors are missing, because this process has no room for them.
    pub fds_lost: bool,
}

/// Opens a packet socket.
///
/// # Errors
///
/// What `socket` reports.
pub fn open() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Opens a packet socket to the node at `path`.
///
/// # Errors
///
/// What `socket` and `connect` report; `ENAMETOOLONG` for a path beyond what a Unix address holds.
pub fn connect(path: &[u8]) -> Result<OwnedFd, Errno> {
    let address = SocketAddrUnix::new(path)?;
    let socket = open()?;
    retry_on_intr(|| rustix::net::connect(&socket, &address))?;
    Ok(socket)
}

/// Sends one packet: `header`, then `parts` one after another, with `fds`.
///
/// The caller sets the sizes in the header; `fds` in it is set here. Restarts after signals.
///
/// # Errors
///
/// What `sendmsg` reports: `EPIPE` and `ECONNRESET` when the other end is gone, `EAGAIN`, `EBADF` for a
/// descriptor that is not open. `EMSGSIZE` for more than [`PARTS_MAX`] parts or [`FDS_MAX`] descriptors.
pub fn send(
    socket: impl AsFd,
    header: &Header,
    parts: &[&[u8]],
    fds: &[BorrowedFd<'_>],
    wait: Wait,
) -> Result<(), Errno> {
    let flags = match wait {
        Wait::Yes => SendFlags::NOSIGNAL,
        Wait::No => SendFlags::NOSIGNAL | SendFlags::DONTWAIT,
    };
    if fds.is_empty() && header.fds == 0 && parts.len() <= PARTS_MAX {
        let mut packet: heapless::Vec<u8, GATHERED_MAX> = heapless::Vec::new();
        let mut whole = packet.extend_from_slice(header.as_bytes()).is_ok();
        for part in parts {
            whole = whole && (part.is_empty() || packet.extend_from_slice(part).is_ok());
        }
        if whole {
            retry_on_intr(|| rustix::net::send(&socket, &packet, flags))?;
            return Ok(());
        }
    }
    let header = Header { fds: u32::try_from(fds.len()).map_err(|_| Errno::MSGSIZE)?, ..*header };
    let mut slices: heapless::Vec<IoSlice<'_>, { PARTS_MAX + 1 }> = heapless::Vec::new();
    let all = core::iter::once(header.as_bytes()).chain(parts.iter().copied());
    for part in all.filter(|part| !part.is_empty()) {
        slices.push(IoSlice::new(part)).map_err(|_| Errno::MSGSIZE)?;
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::MSGSIZE);
    }
    retry_on_intr(|| rustix::net::sendmsg(&socket, &slices, &mut control, flags))?;
    Ok(())
}

/// Receives one packet into `buffer`, its descriptors into `fds`, close-on-exec. Restarts after signals.
///
/// `fds` is emptied first.
///
/// # Errors
///
/// What `recvmsg` reports: `EAGAIN`, `ECONNRESET`; `EMSGSIZE` for a packet longer than `buffer`.
pub fn recv(
    socket: impl AsFd,
    buffer: &mut [u8],
    fds: &mut Descriptors,
    wait: Wait,
) -> Result<Arrived, Errno> {
    fds.clear();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = match wait {
        Wait::Yes => RecvFlags::CMSG_CLOEXEC,
        Wait::No => RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    };
    let received =
        retry_on_intr(|| rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags))?;
    let mut fds_lost = received.flags.contains(ReturnFlags::CTRUNC);
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            for fd in rights {
                fds_lost |= fds.push(fd).is_err();
            }
        }
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok(Arrived { len: received.bytes, fds_lost })
}

/// As [`recv`], of a packet that brings no descriptors and may wait, and returns its bytes; 0 when the other end is gone.
/// Descriptors that it has all the same are closed.
///
/// # Errors
///
/// As [`recv`].
pub(super) fn recv_bytes(socket: impl AsFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (_, len) = retry_on_intr(|| rustix::net::recv(&socket, &mut *buffer, RecvFlags::TRUNC))?;
    if len > buffer.len() { Err(Errno::MSGSIZE) } else { Ok(len) }
}

/// Whether `error` means that the other end is gone.
#[must_use]
pub fn is_hang_up(error: Errno) -> bool {
    matches!(error, Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN | Errno::SHUTDOWN)
}

#[cfg(test)]
mod tests {
    use rustix::net::socketpair;

    use super::*;
    use crate::local::wire::{Kind, Packet};

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    fn inode(fd: impl AsFd) -> u64 {
        rustix::fs::fstat(fd).unwrap().st_ino
    }

    #[test]
    fn parts_and_descriptors_arrive_in_order() {
        let (a, b) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut header = Header::new(Kind::Command, 1);
        header.arg_size = 5;
        let memfd = crate::local::map::create(c"kdbus-test", 0).unwrap();
        let fds = [memfd.as_fd(), reader.as_fd(), memfd.as_fd()];
        send(&a, &header, &[b"ab", b"", b"cde"], &fds, Wait::Yes).unwrap();
        let (mut buffer, mut fds) = ([0; 100], Descriptors::new());
        let arrived = recv(&b, &mut buffer, &mut fds, Wait::Yes).unwrap();
        assert_eq!(arrived, Arrived { len: size_of::<Header>() + 5, fds_lost: false });
        assert_eq!(Packet::parse(&mut buffer[..arrived.len], fds.len()).unwrap().arg, b"abcde");
        let inodes: std::vec::Vec<u64> = fds.iter().map(inode).collect();
        assert_eq!(inodes, [inode(&memfd), inode(&reader), inode(&memfd)]);
        drop(writer);
    }

    #[test]
    fn a_packet_longer_than_the_buffer_is_refused_and_its_descriptors_closed() {
        let (a, b) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a, &Header::new(Kind::Command, 1), &[], &[writer.as_fd()], Wait::Yes).unwrap();
        drop(writer);
        let mut fds = Descriptors::new();
        assert_eq!(recv(&b, &mut [0; 55], &mut fds, Wait::Yes), Err(Errno::MSGSIZE));
        drop(fds);
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0), "the last write end is closed");
    }

    #[test]
    fn a_packet_of_any_length_arrives_whole_and_a_longer_one_than_the_buffer_not_at_all() {
        let (a, b) = pair();
        let header = Header::new(Kind::Command, 1);
        let part: std::vec::Vec<u8> = (0..2 * GATHERED_MAX).map(|at| at as u8).collect();
        let mut buffer = [0; 3 * GATHERED_MAX];
        let room = GATHERED_MAX - size_of::<Header>();
        for len in [0, 1, room - 1, room, room + 1, part.len()] {
            for parts in [[&part[..len], &[]], [&part[..len / 2], &part[len / 2..len]]] {
                send(&a, &header, &parts, &[], Wait::Yes).unwrap();
                let arrived = recv_bytes(&b, &mut buffer).unwrap();
                assert_eq!(buffer[size_of::<Header>()..arrived], part[..len], "{len} bytes");
            }
        }
        send(&a, &header, &[&part], &[], Wait::Yes).unwrap();
        assert_eq!(recv_bytes(&b, &mut buffer[..part.len()]), Err(Errno::MSGSIZE));
        drop(a);
        assert_eq!(recv_bytes(&b, &mut buffer), Ok(0));
    }

    #[test]
    fn a_closed_end_reads_as_nothing_and_takes_nothing() {
        let (a, b) = pair();
        drop(a);
        let (mut buffer, mut fds) = ([0; 100], Descriptors::new());
        assert_eq!(recv(&b, &mut buffer, &mut fds, Wait::Yes), Ok(Arrived { len: 0, fds_lost: false }));
        let error = send(&b, &Header::new(Kind::Command, 1), &[], &[], Wait::Yes).unwrap_err();
        assert!(is_hang_up(error), "{error}");
    }

    #[test]
    fn nothing_waits_if_told_not_to() {
        let (a, b) = pair();
        let (mut buffer, mut fds) = ([0; 100], Descriptors::new());
        assert_eq!(recv(&b, &mut buffer, &mut fds, Wait::No), Err(Errno::AGAIN));
        let header = Header::new(Kind::Returns, 0);
        let full = (0..100_000).find_map(|_| send(&a, &header, &[], &[], Wait::No).err());
        assert_eq!(full, Some(Errno::AGAIN));
    }
}
