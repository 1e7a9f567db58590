//! Commands as ioctls: sizes checked before the kernel follows them, addresses and descriptors filled in.
#![allow(unsafe_code)]

use core::mem::offset_of;

use kdbus_core::abi::{
    CMD_MAX_SIZE, CmdSend, Command, Errno, ITEM_HEADER, ItemType, ItemWriter, Items, Memfd, Msg, SendFlags,
    Vec,
};
use kdbus_core::client::{MESSAGE_FDS_MAX, Outgoing};
use rustix::fd::{AsRawFd, BorrowedFd};
use zerocopy::{FromBytes, IntoBytes};

use super::seam::Seam;

/// Bytes that a SEND with its one possible item takes, padded.
const SEND_SIZE: usize = size_of::<CmdSend>() + ITEM_HEADER + 8;

/// Bytes as commands have to lie.
#[repr(align(8))]
struct Aligned<const N: usize>([u8; N]);

/// Runs a command whose argument is `arg`. `O(1)` besides the command; an argument that is not aligned is
/// copied there and back.
///
/// # Errors
///
/// The bus' code; `EFAULT` if `arg` is shorter than it says.
pub(super) fn run<S: Seam>(
    seam: &S,
    node: BorrowedFd<'_>,
    command: Command,
    arg: &mut [u8],
) -> Result<(), Errno> {
    // Addresses in a SEND would be anybody's; RECV leaves descriptors that somebody has to own.
    if matches!(command, Command::Send | Command::Recv) {
        return Err(Errno::EINVAL);
    }
    run_any(seam, node, command, arg)
}

/// As [`run`], for RECV too.
pub(super) fn run_any<S: Seam>(
    seam: &S,
    node: BorrowedFd<'_>,
    command: Command,
    arg: &mut [u8],
) -> Result<(), Errno> {
    holds(arg)?;
    if command == Command::Send {
        return Err(Errno::EINVAL);
    }
    if !arg.as_ptr().cast::<u64>().is_aligned() {
        return run_copied(seam, node, command, arg);
    }
    // SAFETY: `arg` is exclusively borrowed, aligned and as long as it says; no command but SEND names other
    // memory.
    unsafe { seam.ioctl(node, command.request(), arg.as_mut_ptr().cast()) }
}

#[cold]
fn run_copied<S: Seam>(
    seam: &S,
    node: BorrowedFd<'_>,
    command: Command,
    arg: &mut [u8],
) -> Result<(), Errno> {
    let mut copy = Aligned([0; CMD_MAX_SIZE]);
    let place = copy.0.get_mut(..arg.len()).ok_or(Errno::EMSGSIZE)?;
    place.copy_from_slice(arg);
    // SAFETY: as in `run_any`; `place` is aligned.
    let result = unsafe { seam.ioctl(node, command.request(), place.as_mut_ptr().cast()) };
    arg.copy_from_slice(place);
    result
}

/// Sends a message and returns what the command reports. `O(items)` besides the command.
///
/// The message gets addresses and descriptor numbers for the call, and its own numbers back after it.
///
/// # Errors
///
/// The bus' code; `EFAULT` if the message or its payload is shorter than it says, `EBADF` if it names a
/// descriptor that was not given, `EINVAL` if its items do not hold together.
pub(super) fn send<S: Seam>(
    seam: &S,
    node: BorrowedFd<'_>,
    flags: SendFlags,
    outgoing: &mut Outgoing<'_, BorrowedFd<'_>>,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<CmdSend, Errno> {
    holds(outgoing.message)?;
    if !outgoing.message.as_ptr().cast::<u64>().is_aligned() {
        let mut copy = Aligned([0; CMD_MAX_SIZE]);
        let place = copy.0.get_mut(..outgoing.message.len()).ok_or(Errno::EMSGSIZE)?;
        place.copy_from_slice(outgoing.message);
        let mut aligned =
            Outgoing { message: place, payload: outgoing.payload, fds: outgoing.fds, begun: outgoing.begun };
        return send_aligned(seam, node, flags, &mut aligned, cancel);
    }
    send_aligned(seam, node, flags, outgoing, cancel)
}

fn send_aligned<S: Seam>(
    seam: &S,
    node: BorrowedFd<'_>,
    flags: SendFlags,
    outgoing: &mut Outgoing<'_, BorrowedFd<'_>>,
    cancel: Option<BorrowedFd<'_>>,
) -> Result<CmdSend, Errno> {
    let mut arg = Aligned([0; SEND_SIZE]);
    let mut size = size_of::<CmdSend>();
    if let Some(cancel) = cancel {
        let mut items = ItemWriter::behind(&mut arg.0, size).map_err(|_| Errno::EMSGSIZE)?;
        items.record(ItemType::CANCEL_FD, &cancel.as_raw_fd()).map_err(|_| Errno::EMSGSIZE)?;
        size = items.len();
    }
    let patch = Patch::apply(outgoing)?;
    let command = CmdSend {
        size: size as u64,
        flags: flags.bits(),
        msg_address: outgoing.message.as_mut_ptr().expose_provenance() as u64,
        ..CmdSend::default()
    };
    arg.0[..size_of::<CmdSend>()].copy_from_slice(command.as_bytes());
    // SAFETY: the command is as long as it says. It names the message, which is exclusively borrowed, aligned
    // and checked to be as long as it says; `Patch::apply` has put an address into each of its payload vectors
    // from which on as many bytes are borrowed as the vector says, and has refused every other message.
    let result = unsafe { seam.ioctl(node, Command::Send.request(), arg.0.as_mut_ptr().cast()) };
    patch.undo(outgoing.message);
    result?;
    CmdSend::read_from_prefix(&arg.0).map(|(command, _)| command).map_err(|_| Errno::EIO)
}

/// Fails unless at least as many bytes are there as the first word says.
fn holds(record: &[u8]) -> Result<(), Errno> {
    let (claimed, _) = u64::read_from_prefix(record).map_err(|_| Errno::EFAULT)?;
    if claimed > record.len() as u64 { Err(Errno::EFAULT) } else { Ok(()) }
}

/// The descriptor numbers that a message had before real ones took their places.
#[derive(Debug)]
struct Patch {
    former: heapless::Vec<(usize, i32), MESSAGE_FDS_MAX>,
}

impl Patch {
    /// Fills in addresses and descriptors.
    fn apply(outgoing: &mut Outgoing<'_, BorrowedFd<'_>>) -> Result<Self, Errno> {
        let (header, _) = Msg::read_from_prefix(outgoing.message).map_err(|_| Errno::EINVAL)?;
        let mut patch = Self { former: heapless::Vec::new() };
        let mut payload = outgoing.payload.iter();
        let mut at = Msg::SIZE;
        let end = usize::try_from(header.size).map_err(|_| Errno::EMSGSIZE)?;
        let done = loop {
            // The items are read anew each time round, because the loop writes into them.
            let area = match outgoing.message.get(at..end) {
                Some([]) | None => break Ok(()),
                Some(area) => area,
            };
            let Some(Ok(item)) = Items::new(area).next() else { break Err(Errno::EINVAL) };
            let (kind, len, start) = (item.kind, item.payload.len(), at + ITEM_HEADER);
            if let Err(errno) = patch.item(outgoing.message, outgoing.fds, &mut payload, kind, start, len) {
                break Err(errno);
            }
            at = (start + len).next_multiple_of(8);
        };
        if let Err(errno) = done {
            patch.undo(outgoing.message);
            return Err(errno);
        }
        Ok(patch)
    }

    fn item<'p>(
        &mut self,
        message: &mut [u8],
        fds: &[BorrowedFd<'_>],
        payload: &mut impl Iterator<Item = &'p &'p [u8]>,
        kind: ItemType,
        start: usize,
        len: usize,
    ) -> Result<(), Errno> {
        match kind {
            ItemType::PAYLOAD_VEC => {
                let place = message.get_mut(start..start + len).unwrap_or_default();
                let vec = Vec::read_from_bytes(place).map_err(|_| Errno::EINVAL)?;
                if vec.address != 0 {
                    let bytes = payload.next().ok_or(Errno::EFAULT)?;
                    if (bytes.len() as u64) < vec.size {
                        return Err(Errno::EFAULT);
                    }
                    let address = bytes.as_ptr().expose_provenance() as u64;
                    place.copy_from_slice(Vec { address, ..vec }.as_bytes());
                }
            }
            ItemType::PAYLOAD_MEMFD => self.descriptor(message, fds, start + offset_of!(Memfd, fd))?,
            ItemType::FDS => {
                for at in (start..start + len).step_by(size_of::<i32>()) {
                    self.descriptor(message, fds, at)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn descriptor(&mut self, message: &mut [u8], fds: &[BorrowedFd<'_>], at: usize) -> Result<(), Errno> {
        let place = message.get_mut(at..at + size_of::<i32>()).ok_or(Errno::EINVAL)?;
        let index = i32::read_from_bytes(place).map_err(|_| Errno::EINVAL)?;
        let fd = usize::try_from(index).ok().and_then(|index| fds.get(index)).ok_or(Errno::EBADF)?;
        // kdbus: a message has at most 16 descriptors and 16 memfds.
        self.former.push((at, index)).map_err(|_| Errno::EMFILE)?;
        place.copy_from_slice(fd.as_raw_fd().as_bytes());
        Ok(())
    }

    /// Puts the former numbers back.
    fn undo(&self, message: &mut [u8]) {
        for (at, index) in &self.former {
            if let Some(place) = message.get_mut(*at..*at + size_of::<i32>()) {
                place.copy_from_slice(index.as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec as StdVec;

    use rustix::fd::AsFd;

    use super::*;

    fn message(write: impl FnOnce(&mut ItemWriter<'_>)) -> StdVec<u8> {
        let mut bytes = vec![0; 512];
        let mut items = ItemWriter::behind(&mut bytes, Msg::SIZE).unwrap();
        write(&mut items);
        let size = items.len();
        let header = Msg { size: size as u64, ..Msg::default() };
        bytes[..Msg::SIZE].copy_from_slice(header.as_bytes());
        bytes.truncate(size.next_multiple_of(8));
        bytes
    }

    fn vec_item(items: &mut ItemWriter<'_>, size: u64, address: u64) {
        items.record(ItemType::PAYLOAD_VEC, &Vec { size, address }).unwrap();
    }

    #[test]
    fn vectors_get_the_addresses_of_their_bytes_and_zeros_none() {
        let mut bytes = message(|items| {
            vec_item(items, 3, 1);
            vec_item(items, 9, 0);
            vec_item(items, 4, 1);
        });
        let payload: [&[u8]; 2] = [b"abc", b"defg"];
        let mut outgoing = Outgoing { message: &mut bytes, payload: &payload, fds: &[], begun: None };
        Patch::apply(&mut outgoing).unwrap();
        let addresses: StdVec<u64> = Items::new(&bytes[Msg::SIZE..])
            .map(|item| Vec::read_from_bytes(item.unwrap().payload).unwrap().address)
            .collect();
        assert_eq!(addresses, [payload[0].as_ptr() as u64, 0, payload[1].as_ptr() as u64]);
    }

    #[test]
    fn payload_shorter_than_its_vector_never_reaches_the_kernel() {
        for payload in [&[b"ab".as_slice()][..], &[]] {
            let mut bytes = message(|items| vec_item(items, 3, 1));
            let mut outgoing = Outgoing { message: &mut bytes, payload, fds: &[], begun: None };
            assert_eq!(Patch::apply(&mut outgoing).err(), Some(Errno::EFAULT));
        }
    }

    #[test]
    fn descriptors_take_the_place_of_their_indices_and_go_again() {
        let (one, other) = rustix::pipe::pipe().unwrap();
        let mut bytes = message(|items| {
            items.bytes(ItemType::FDS, [1_i32, 0].as_bytes()).unwrap();
            items.record(ItemType::PAYLOAD_MEMFD, &Memfd { start: 0, size: 1, fd: 1, pad: 0 }).unwrap();
        });
        let former = bytes.clone();
        let fds = [one.as_fd(), other.as_fd()];
        let mut outgoing = Outgoing { message: &mut bytes, payload: &[], fds: &fds, begun: None };
        let patch = Patch::apply(&mut outgoing).unwrap();
        let items: StdVec<_> = Items::new(&bytes[Msg::SIZE..]).map(Result::unwrap).collect();
        assert!(items[0].fds().eq([other.as_raw_fd(), one.as_raw_fd()]));
        assert_eq!(items[1].record::<Memfd>().unwrap().fd, other.as_raw_fd());
        patch.undo(&mut bytes);
        assert_eq!(bytes, former);
    }

    #[test]
    fn descriptors_that_were_not_given_are_refused_and_nothing_changes() {
        let (one, _other) = rustix::pipe::pipe().unwrap();
        for index in [1, -1] {
            let mut bytes = message(|items| items.bytes(ItemType::FDS, [0_i32, index].as_bytes()).unwrap());
            let former = bytes.clone();
            let fds = [one.as_fd()];
            let mut outgoing = Outgoing { message: &mut bytes, payload: &[], fds: &fds, begun: None };
            assert_eq!(Patch::apply(&mut outgoing).err(), Some(Errno::EBADF));
            assert_eq!(bytes, former);
        }
    }

    #[test]
    fn items_that_do_not_hold_together_are_refused() {
        let mut bytes = message(|items| vec_item(items, 3, 1));
        bytes[Msg::SIZE..][..8].copy_from_slice(&15_u64.to_ne_bytes());
        let mut outgoing = Outgoing { message: &mut bytes, payload: &[b"abc"], fds: &[], begun: None };
        assert_eq!(Patch::apply(&mut outgoing).err(), Some(Errno::EINVAL));
    }

    #[test]
    fn an_argument_is_as_long_as_it_says() {
        assert_eq!(holds(&[0; 7]), Err(Errno::EFAULT));
        assert_eq!(holds(25_u64.to_ne_bytes().as_slice()), Err(Errno::EFAULT));
        assert_eq!(holds(8_u64.to_ne_bytes().as_slice()), Ok(()));
    }
}
