//! Memory that the processes of a contender share, and the words in it that they count and wait on.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of one area of the file, as large as the pages of most machines.
pub const PAGE: usize = 4096;

/// A mapping of a file that others map too.
#[derive(Debug)]
pub struct Shared {
    file: OwnedFd,
    start: NonNull<u8>,
    len: usize,
}

impl Shared {
    /// A file of `len` zeros, mapped with all its pages in place.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn create(len: usize) -> io::Result<Self> {
        let len = len.next_multiple_of(PAGE);
        let file = rustix::fs::memfd_create("kdbus-bench", MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        Self::map(file, len)
    }

    /// The mapping of a file that another process created.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn open(file: BorrowedFd<'_>) -> io::Result<Self> {
        let len = rustix::fs::fstat(file)?.st_size as usize;
        Self::map(file.try_clone_to_owned()?, len)
    }

    fn map(file: OwnedFd, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: the kernel chooses the place, so nothing that exists is replaced.
        let start = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, flags, &file, 0) }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { file, start, len })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The 32-bit word at byte `at`.
    ///
    /// # Panics
    ///
    /// If it does not lie in the mapping, or is not aligned.
    #[must_use]
    pub fn word(&self, at: usize) -> &AtomicU32 {
        assert!(at.is_multiple_of(size_of::<u32>()) && at + size_of::<u32>() <= self.len);
        // SAFETY: in bounds and aligned as just checked; the memory is initialised and lives as long as `self`; every
        // process reaches this place through an atomic of this width.
        unsafe { AtomicU32::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// The 64-bit word at byte `at`.
    ///
    /// # Panics
    ///
    /// If it does not lie in the mapping, or is not aligned.
    #[must_use]
    pub fn long(&self, at: usize) -> &AtomicU64 {
        assert!(at.is_multiple_of(size_of::<u64>()) && at + size_of::<u64>() <= self.len);
        // SAFETY: in bounds and aligned as just checked; the memory is initialised and lives as long as `self`; every
        // process reaches this place through an atomic of this width.
        unsafe { AtomicU64::from_ptr(self.start.as_ptr().add(at).cast()) }
    }

    /// Copies `bytes` to byte `at`. Whose turn it is to write there is for the caller to know.
    ///
    /// # Panics
    ///
    /// If they do not fit in the mapping.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds as just checked, and never borrowed. A process that reads at the same time would be a
        // mistake of the protocol, and would see a mixture of bytes, all of them initialised.
        unsafe { self.start.as_ptr().add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
    }

    /// Copies the bytes from byte `at` on into `bytes`.
    ///
    /// # Panics
    ///
    /// If there are fewer in the mapping.
    pub fn read(&self, at: usize, bytes: &mut [u8]) {
        assert!(at.checked_add(bytes.len()).is_some_and(|end| end <= self.len));
        // SAFETY: in bounds as just checked, and `bytes` is borrowed, so it is no part of the mapping.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(self.start.as_ptr().add(at), bytes.len()) }
    }
}

impl AsFd for Shared {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: mapped by `self` alone, and whoever borrowed from it has borrowed `self`. A failure would leave it
        // mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn two_mappings_see_the_same_bytes() {
        let one = Shared::create(100).unwrap();
        let other = Shared::open(one.as_fd()).unwrap();
        one.write(64, b"abc");
        one.word(0).store(7, Relaxed);
        let mut read = [0; 3];
        other.read(64, &mut read);
        assert_eq!((&read, other.word(0).load(Relaxed), other.len()), (b"abc", 7, PAGE));
    }
}
