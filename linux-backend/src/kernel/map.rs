//! The pool of a connection, mapped for reading, and the descriptors that the module installed with a message.
#![allow(unsafe_code)]

use core::fmt;
use core::ptr::NonNull;

use kdbus_core::abi::{Errno, ItemType, Items, Memfd, Msg, MsgInfo, RecvReturnFlags};
use kdbus_core::client::MESSAGE_FDS_MAX;
use rustix::fd::{BorrowedFd, FromRawFd, OwnedFd};
use zerocopy::FromBytes;

use super::seam::Seam;

/// A mapped pool.
pub(super) struct Pool {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the pages belong to the process, not to a thread.
unsafe impl Send for Pool {}
// SAFETY: as above; a shared `Pool` only reads.
unsafe impl Sync for Pool {}

impl Pool {
    /// Maps the pool of a connection, `len` bytes.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub(super) fn new<S: Seam>(seam: &S, node: BorrowedFd<'_>, len: u64) -> Result<Self, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { start: seam.mmap(node, len, false)?, len })
    }

    /// Bytes of the pool.
    pub(super) const fn len(&self) -> u64 {
        self.len as u64
    }

    /// `size` bytes at `offset`, or `None` if they are not all inside.
    pub(super) fn bytes(&self, offset: u64, size: u64) -> Option<&[u8]> {
        let end = offset.checked_add(size).filter(|end| *end <= self.len())?;
        let len = (end - offset) as usize;
        // SAFETY: the range lies in pages that are mapped as long as `self` is; what a published slice holds
        // does not change before it is given back.
        Some(unsafe { core::slice::from_raw_parts(self.start.as_ptr().add(offset as usize), len) })
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // SAFETY: the pages are this value's own, and whoever borrowed from them has borrowed it. A failure
        // would leave them mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("len", &self.len).finish_non_exhaustive()
    }
}

/// Takes over the descriptors of a message that the module has just handed out: the passed ones, then the
/// memfds. `O(items)`.
///
/// To be called once for each time the module wrote its numbers, and only then.
pub(super) fn take_fds(slice: &[u8], info: &MsgInfo) -> heapless::Vec<OwnedFd, MESSAGE_FDS_MAX> {
    let mut numbers = heapless::Vec::<i32, MESSAGE_FDS_MAX>::new();
    let mut keep = |fd: i32| {
        if fd >= 0 && !numbers.contains(&fd) {
            // Full only behind a message with more descriptors than the bus lets pass.
            let _ = numbers.push(fd);
        }
    };
    installed(slice).filter_map(Part::passed).for_each(|fds| fds.for_each(&mut keep));
    // The module leaves wrong numbers with memfds once it could not install one of the descriptors. Whatever
    // they name may be this program's own, so they are left alone.
    if info.return_flags & RecvReturnFlags::INCOMPLETE_FDS.bits() == 0 {
        installed(slice).filter_map(Part::memfd).for_each(&mut keep);
    }
    // SAFETY: the module has installed these descriptors for whoever received the message, which is done once.
    numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect()
}

/// An item of a received message.
struct Part<'a>(kdbus_core::abi::Item<'a>);

impl<'a> Part<'a> {
    fn passed(self) -> Option<impl Iterator<Item = i32> + use<'a>> {
        (self.0.kind == ItemType::FDS).then(|| {
            let words = self.0.payload.as_chunks().0;
            words.iter().map(|word| i32::from_ne_bytes(*word))
        })
    }

    fn memfd(self) -> Option<i32> {
        let memfd = (self.0.kind == ItemType::PAYLOAD_MEMFD).then(|| self.0.record::<Memfd>());
        memfd.flatten().map(|memfd| memfd.fd)
    }
}

fn installed(slice: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let size = Msg::read_from_prefix(slice).map_or(0, |(header, _)| header.size);
    let end = usize::try_from(size).unwrap_or(usize::MAX).min(slice.len());
    Items::new(slice.get(Msg::SIZE..end).unwrap_or_default()).map_while(Result::ok).map(Part)
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use kdbus_core::abi::ItemWriter;
    use rustix::fd::{AsRawFd, IntoRawFd};
    use zerocopy::IntoBytes;

    use super::*;

    fn pair() -> (i32, i32) {
        let (one, other) = rustix::pipe::pipe().unwrap();
        (one.into_raw_fd(), other.into_raw_fd())
    }

    fn message(fds: &[i32], memfds: &[i32]) -> Vec<u8> {
        let mut bytes = vec![0; 512];
        let mut items = ItemWriter::behind(&mut bytes, Msg::SIZE).unwrap();
        for fd in memfds {
            items.record(ItemType::PAYLOAD_MEMFD, &Memfd { start: 0, size: 1, fd: *fd, pad: 0 }).unwrap();
        }
        items.bytes(ItemType::FDS, fds.as_bytes()).unwrap();
        let size = items.len() as u64;
        bytes[..Msg::SIZE].copy_from_slice(Msg { size, ..Msg::default() }.as_bytes());
        bytes
    }

    fn numbers(fds: &[OwnedFd]) -> Vec<i32> {
        fds.iter().map(AsRawFd::as_raw_fd).collect()
    }

    #[test]
    fn passed_descriptors_come_before_memfds_and_missing_ones_not_at_all() {
        let (passed, memfd) = pair();
        let taken = take_fds(&message(&[-1, passed], &[memfd, -1]), &MsgInfo::default());
        assert_eq!(numbers(&taken), [passed, memfd]);
    }

    #[test]
    fn memfds_of_an_incomplete_message_are_left_alone() {
        let (passed, other) = pair();
        let info = MsgInfo { return_flags: RecvReturnFlags::INCOMPLETE_FDS.bits(), ..MsgInfo::default() };
        let taken = take_fds(&message(&[passed], &[other]), &info);
        assert_eq!(numbers(&taken), [passed]);
        // SAFETY: the number is still this test's own.
        drop(unsafe { OwnedFd::from_raw_fd(other) });
    }

    #[test]
    fn a_slice_too_short_for_a_message_has_no_descriptors() {
        assert!(take_fds(&[0xff; 40], &MsgInfo::default()).is_empty());
    }
}
