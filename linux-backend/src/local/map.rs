//! Memory that processes share.
//!
//! [`create`] makes the file, [`WriteMap`], [`ReadMap`] and [`WordMap`] map it, [`seal`] closes it for further
//! writers.
#![allow(unsafe_code)]

use core::fmt;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};

use kdbus_core::channel::Words;
use kdbus_core::hint::{cold, likely};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::mm::{MapFlags, ProtFlags};

use super::copy;

/// What a file is closed for, for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seal {
    /// Any change of size: no mapping of it can fault for lack of a page.
    Size,
    /// Any change of size for now, and more seals can follow.
    SizeFirst,
    /// Any change of size, and any writer but the mappings that exist now.
    SizeAndWriters,
}

/// Makes a memory file of `len` bytes, all zero, that can still be mapped and sealed.
///
/// # Errors
///
/// What `memfd_create` and `ftruncate` report.
pub fn create(name: &core::ffi::CStr, len: u64) -> Result<OwnedFd, Errno> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Kernels before 6.3 do not know the flag; hardened ones insist on it.
    let file = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags)?,
        other => other?,
    };
    retry_on_intr(|| rustix::fs::ftruncate(&file, len))?;
    Ok(file)
}

/// Closes a memory file for what `seal` names.
///
/// # Errors
///
/// What `fcntl` reports; `EINVAL` for [`Seal::SizeAndWriters`] before Linux 5.1.
pub fn seal(file: impl AsFd, seal: Seal) -> Result<(), Errno> {
    let size = SealFlags::SHRINK | SealFlags::GROW;
    rustix::fs::fcntl_add_seals(
        file,
        match seal {
            Seal::Size => size | SealFlags::SEAL,
            Seal::SizeFirst => size,
            Seal::SizeAndWriters => size | SealFlags::SEAL | SealFlags::FUTURE_WRITE,
        },
    )
}

/// Whether `file` has at least `len` bytes and can never have fewer.
///
/// # Errors
///
/// What `fstat` reports.
pub fn holds(file: impl AsFd, len: u64) -> Result<bool, Errno> {
    let size = rustix::fs::fstat(&file)?.st_size;
    let seals = rustix::fs::fcntl_get_seals(&file).unwrap_or(SealFlags::empty());
    Ok(size as u64 >= len && seals.contains(SealFlags::SHRINK))
}

/// A range of pages, unmapped on drop.
pub(super) struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: pages belong to the process, not to a thread; the types below say who may touch them.
unsafe impl Send for Pages {}
// SAFETY: as above; a shared `Pages` hands out nothing but its address and length.
unsafe impl Sync for Pages {}

impl Pages {
    fn of_file(file: impl AsFd, len: u64, protection: ProtFlags, prefault: bool) -> Result<Self, Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::NOMEM)?;
        let flags = if prefault { MapFlags::SHARED | MapFlags::POPULATE } else { MapFlags::SHARED };
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe { rustix::mm::mmap(core::ptr::null_mut(), len, protection, flags, file, 0)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    pub(super) fn fresh(len: usize) -> Result<Self, Errno> {
        let (protection, flags) =
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::POPULATE);
        // SAFETY: the kernel chooses an address where nothing is mapped.
        let start = unsafe { rustix::mm::mmap_anonymous(core::ptr::null_mut(), len, protection, flags)? };
        Ok(Self { start: NonNull::new(start.cast()).ok_or(Errno::NOMEM)?, len })
    }

    /// Where `len` bytes at `offset` start, if they lie inside.
    pub(super) fn range(&self, offset: u64, len: u64) -> Option<Range<usize>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len as u64)?;
        Some(offset as usize..end as usize)
    }

    pub(super) fn at(&self, offset: usize) -> *mut u8 {
        // Never beyond the mapping for offsets out of `range`, so it does not wrap.
        self.start.as_ptr().wrapping_add(offset)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the pages were mapped by `self` alone, and whoever borrowed from them has borrowed `self`.
        // A failure would leave them mapped, which harms nobody.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes at {:p}", self.len, self.start)
    }
}

/// A range of bytes does not lie in its mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutOfRange;

impl fmt::Display for OutOfRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the range does not lie in its mapping")
    }
}

impl core::error::Error for OutOfRange {}

/// Bytes that only this process writes, and others may read: a pool at kdbusd, staged payload at a client.
#[derive(Debug)]
pub struct WriteMap {
    pages: Pages,
}

impl WriteMap {
    /// Maps the first `len` bytes of `file`, with all pages in place if `prefault`.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub fn new(file: impl AsFd, len: u64, prefault: bool) -> Result<Self, Errno> {
        let pages = Pages::of_file(file, len, ProtFlags::READ | ProtFlags::WRITE, prefault)?;
        Ok(Self { pages })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.pages.len as u64
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages.len == 0
    }

    /// The `len` bytes at `offset`, to be filled in place; `None` if they are not all in the mapping.
    #[must_use]
    pub fn bytes_mut(&mut self, offset: u64, len: u64) -> Option<&mut [u8]> {
        let range = self.pages.range(offset, len)?;
        // SAFETY: the range lies in the mapping, which is writable, initialised (a file's pages are) and exclusively
        // borrowed; the file is sealed against shrinking and new writers, so other processes read it at most.
        Some(unsafe { core::slice::from_raw_parts_mut(self.pages.at(range.start), range.len()) })
    }

    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let range = self.pages.range(offset, bytes.len() as u64).ok_or(OutOfRange)?;
        // SAFETY: the range lies in the mapping, which is writable and exclusively borrowed.
        unsafe { copy::into_shared(self.pages.at(range.start), bytes) };
        Ok(())
    }

    /// Writes `len` zero bytes at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is written.
    pub fn zero(&mut self, offset: u64, len: u64) -> Result<(), OutOfRange> {
        let range = self.pages.range(offset, len).ok_or(OutOfRange)?;
        // SAFETY: the range lies in the mapping, which is writable and exclusively borrowed.
        unsafe { copy::zero_shared(self.pages.at(range.start), range.len()) };
        Ok(())
    }

    /// Writes `len` bytes that start at `from_offset` of `from` at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is written.
    pub fn copy_from(
        &mut self,
        offset: u64,
        from: &Self,
        from_offset: u64,
        len: u64,
    ) -> Result<(), OutOfRange> {
        let to = self.pages.range(offset, len).ok_or(OutOfRange)?;
        let source = from.pages.range(from_offset, len).ok_or(OutOfRange)?;
        // SAFETY: both ranges lie in their mappings, and whoever borrowed bytes of one has borrowed it.
        unsafe {
            copy::between_shared(from.pages.at(source.start), self.pages.at(to.start), source.len());
        };
        Ok(())
    }

    /// Copies `len` bytes within the mapping.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is written.
    pub fn copy_within(&mut self, from_offset: u64, offset: u64, len: u64) -> Result<(), OutOfRange> {
        let to = self.pages.range(offset, len).ok_or(OutOfRange)?;
        let source = self.pages.range(from_offset, len).ok_or(OutOfRange)?;
        // SAFETY: both ranges lie in the mapping, which is writable and exclusively borrowed.
        unsafe {
            copy::between_shared(self.pages.at(source.start), self.pages.at(to.start), source.len());
        };
        Ok(())
    }

    /// Reads `len` bytes that start at `at` of `file` to `offset`, with one copy and without mapping the file.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the range is not in the mapping, or if the file ends before; what `pread` reports. What was
    /// read until then stays.
    pub fn fill_from(&mut self, offset: u64, file: impl AsFd, at: u64, len: u64) -> Result<(), Errno> {
        let range = self.pages.range(offset, len).ok_or(Errno::FAULT)?;
        // SAFETY: the range lies in the mapping, which is initialised (a file's pages are) and exclusively
        // borrowed; no other process maps it writable.
        let mut place = unsafe { core::slice::from_raw_parts_mut(self.pages.at(range.start), range.len()) };
        let mut at = at;
        while !place.is_empty() {
            let read = retry_on_intr(|| rustix::io::pread(&file, &mut *place, at))?;
            if read == 0 {
                return Err(Errno::FAULT);
            }
            place = &mut place[read..];
            at = at.checked_add(read as u64).ok_or(Errno::FAULT)?;
        }
        Ok(())
    }
}

/// Bytes that only a trusted process writes: a pool at its client.
#[derive(Debug)]
pub struct ReadMap {
    pages: Pages,
}

impl ReadMap {
    /// Maps the first `len` bytes of `file`, with all pages in place if `prefault`.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub fn new(file: impl AsFd, len: u64, prefault: bool) -> Result<Self, Errno> {
        Ok(Self { pages: Pages::of_file(file, len, ProtFlags::READ, prefault)? })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.pages.len as u64
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.pages.len == 0
    }

    /// Copies the bytes from `offset` on into `bytes`: of a slice that its writer may take back meanwhile, old or new ones.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is read.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let range = self.pages.range(offset, bytes.len() as u64).ok_or(OutOfRange)?;
        // SAFETY: the range lies in the mapping, and its file is sealed against shrinking, so its pages are there.
        unsafe { copy::out_of_shared(self.pages.at(range.start), bytes) };
        Ok(())
    }

    /// The `len` bytes at `offset`, or `None` if they are not all in the mapping.
    ///
    /// Meant for ranges that the writer has published and leaves alone until they are given back.
    #[must_use]
    pub fn bytes(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let range = self.pages.range(offset, len)?;
        // SAFETY: the range lies in the mapping, and the file is sealed against shrinking, so its pages are
        // there. Only kdbusd can write them, which is to this process what a kernel is: it does not touch a
        // slice that it has published and not got back.
        Some(unsafe { core::slice::from_raw_parts(self.pages.at(range.start), range.len()) })
    }
}

/// Bytes that another process may write while they are read here: a slab at its borrower.
#[derive(Debug)]
pub struct RacingMap {
    pages: Pages,
}

impl RacingMap {
    /// Maps the first `len` bytes of `file` for reading, with all pages in place.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub fn new(file: impl AsFd, len: u64) -> Result<Self, Errno> {
        Ok(Self { pages: Pages::of_file(file, len, ProtFlags::READ, true)? })
    }

    /// Copies the bytes from `offset` on into `bytes`: each is read once, and may be old or new.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`]; nothing is read.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let range = self.pages.range(offset, bytes.len() as u64).ok_or(OutOfRange)?;
        // SAFETY: the range lies in the mapping, and its file is sealed against shrinking, so its pages are there.
        unsafe { copy::out_of_shared(self.pages.at(range.start), bytes) };
        Ok(())
    }

    /// The word at `offset`, in native byte order, read once.
    #[must_use]
    pub fn word(&self, offset: u64) -> Option<u64> {
        let range = self.pages.range(offset, size_of::<u64>() as u64)?;
        // SAFETY: the range lies in the mapping, and its file is sealed against shrinking, so its pages are there.
        Some(unsafe { copy::word(self.pages.at(range.start)) })
    }

    /// The `len` bytes at `offset`, where they lie.
    ///
    /// # Safety
    ///
    /// Nobody writes them while the slice is borrowed: the caller trusts the writing process as it trusts itself.
    #[must_use]
    pub unsafe fn as_slice(&self, offset: u64, len: u64) -> Option<&[u8]> {
        let range = self.pages.range(offset, len)?;
        // SAFETY: the range lies in the mapping, and its file is sealed against shrinking, so its pages are there; that
        // nobody writes them is the caller's promise.
        Some(unsafe { core::slice::from_raw_parts(self.pages.at(range.start), range.len()) })
    }
}

/// Words that several processes share.
#[derive(Debug)]
pub struct WordMap {
    pages: Pages,
    writable: bool,
}

impl WordMap {
    /// Maps the first `count` words of `file` for reading and writing, with all pages in place.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub fn writable(file: impl AsFd, count: usize) -> Result<Self, Errno> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let pages = Pages::of_file(file, (count * size_of::<u64>()) as u64, protection, true)?;
        Ok(Self { pages, writable: true })
    }

    /// Maps the first `count` words of `file` for reading, with all pages in place. Stores do nothing.
    ///
    /// # Errors
    ///
    /// What `mmap` reports.
    pub fn read_only(file: impl AsFd, count: usize) -> Result<Self, Errno> {
        let pages = Pages::of_file(file, (count * size_of::<u64>()) as u64, ProtFlags::READ, true)?;
        Ok(Self { pages, writable: false })
    }

    #[inline]
    fn words(&self) -> &[AtomicU64] {
        // SAFETY: pages are aligned for any word and initialised; both sides seal the file against shrinking
        // before it is mapped. Whoever writes them in another process does it a word at a time, and here
        // they are only ever reached through atomics.
        unsafe {
            core::slice::from_raw_parts(self.pages.start.as_ptr().cast(), self.pages.len / size_of::<u64>())
        }
    }

    /// The words for an access that writes: none in a read-only mapping, where it would be a fault.
    #[inline]
    fn for_writing(&self) -> &[AtomicU64] {
        if likely(self.writable) { self.words() } else { &[] }
    }
}

/// Whether there is such a word, as there mostly is: said here, so that what happens otherwise lies out of the way.
#[inline(always)]
const fn is_inside(words: &[AtomicU64], index: usize) -> bool {
    likely(index < words.len())
}

impl Words for WordMap {
    #[inline]
    fn count(&self) -> usize {
        self.words().len()
    }

    #[inline]
    fn load(&self, index: usize) -> u64 {
        let words = self.words();
        if is_inside(words, index) { words.load(index) } else { 0 }
    }

    #[inline]
    fn store(&self, index: usize, value: u64) {
        let words = self.for_writing();
        if is_inside(words, index) {
            words.store(index, value);
        }
    }

    #[inline]
    fn store_all<const N: usize>(&self, index: usize, words: [u64; N]) {
        let Some(places) = self.for_writing().get(index..).and_then(<[_]>::first_chunk::<N>) else {
            cold();
            return;
        };
        for (place, word) in places.iter().zip(words) {
            place.store(word, Ordering::Release);
        }
    }

    #[inline]
    fn store_run(&self, index: usize, words: &[[u8; 8]]) {
        let Some(place) = self.for_writing().get(index..) else { return };
        let words = words.get(..place.len()).unwrap_or(words);
        // SAFETY: the words lie in the mapping, which is writable. They are reached by address alone, through atomics
        // or as here; whoever reads them meanwhile sees old or new bytes, and uses none before a later store says so.
        unsafe { copy::into_shared(place.as_ptr().cast_mut().cast(), words.as_flattened()) };
    }

    #[inline]
    fn load_run(&self, index: usize, words: &mut [u64]) {
        use zerocopy::IntoBytes;
        let Some(place) = self.words().get(index..) else { return };
        let count = words.len().min(place.len());
        let Some(words) = words.get_mut(..count) else { return };
        // SAFETY: the words lie in the mapping; each byte is read once, whatever another process writes there.
        unsafe { copy::out_of_shared(place.as_ptr().cast(), words.as_mut_bytes()) };
    }

    #[inline]
    fn prefetch(&self, index: usize, count: usize) {
        let words = self.words().get(index..).and_then(|words| words.get(..count)).unwrap_or_default();
        words.chunks(copy::LINE).for_each(copy::prefetch);
    }

    #[inline]
    fn prefetch_to_store(&self, index: usize, count: usize) {
        let words = self.for_writing().get(index..).and_then(|words| words.get(..count)).unwrap_or_default();
        words.chunks(copy::LINE).for_each(copy::prefetch_to_store);
    }

    #[inline]
    fn swap(&self, index: usize, value: u64) -> u64 {
        self.for_writing().swap(index, value)
    }

    #[inline]
    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.for_writing().set_bits(index, bits)
    }

    #[inline]
    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        let words = self.for_writing();
        is_inside(words, index) && words.replace(index, expected, new)
    }

    #[inline]
    fn load_after_replace(&self, index: usize) -> u64 {
        let words = self.words();
        if is_inside(words, index) { words.load_after_replace(index) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writers_write_readers_read_and_nobody_else_does() {
        let file = create(c"kdbus-test", 8192).unwrap();
        let mut pool = WriteMap::new(&file, 8192, false).unwrap();
        seal(&file, Seal::SizeAndWriters).unwrap();
        let reader = ReadMap::new(&file, 8192, true).unwrap();
        pool.write(4095, b"abc").unwrap();
        pool.copy_within(4095, 0, 3).unwrap();
        pool.zero(4096, 1).unwrap();
        assert_eq!((reader.bytes(4095, 3), reader.bytes(0, 3)), (Some(&b"a\0c"[..]), Some(&b"abc"[..])));
        assert_eq!(WriteMap::new(&file, 8192, false).err(), Some(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&file, 0), Err(Errno::PERM));
        assert_eq!(rustix::io::pwrite(&file, b"x", 0), Err(Errno::PERM));
        assert_eq!(holds(&file, 8192), Ok(true));
        assert_eq!(holds(&file, 8193), Ok(false));
    }

    #[test]
    fn a_hint_changes_nothing_wherever_it_points() {
        let file = create(c"kdbus-test", 4096).unwrap();
        let (writer, reader) =
            (WordMap::writable(&file, 512).unwrap(), WordMap::read_only(&file, 512).unwrap());
        writer.store(0, 7);
        for words in [&writer, &reader] {
            for (index, count) in [(0, 32), (504, 32), (511, 1), (512, 1), (usize::MAX, usize::MAX)] {
                words.prefetch(index, count);
                words.prefetch_to_store(index, count);
            }
            assert_eq!(
                (words.load(0), words.load_after_replace(0), words.load_after_replace(512)),
                (7, 7, 0)
            );
        }
    }

    #[test]
    fn ranges_outside_are_refused() {
        let file = create(c"kdbus-test", 4096).unwrap();
        let mut map = WriteMap::new(&file, 4096, false).unwrap();
        assert_eq!(map.write(4095, b"ab"), Err(OutOfRange));
        assert_eq!(map.zero(u64::MAX, 2), Err(OutOfRange));
        assert_eq!(map.copy_within(4090, 0, 7), Err(OutOfRange));
        assert_eq!(map.fill_from(4096, &file, 0, 1), Err(Errno::FAULT));
        let reader = ReadMap::new(&file, 4096, false).unwrap();
        assert_eq!(reader.bytes(u64::MAX, 1), None);
        assert_eq!(reader.bytes(4096, 0), Some(&[][..]));
    }

    #[test]
    fn a_file_that_ends_early_is_a_fault() {
        let file = create(c"kdbus-test", 4096).unwrap();
        let mut map = WriteMap::new(&file, 4096, false).unwrap();
        let source = create(c"kdbus-source", 10).unwrap();
        rustix::io::pwrite(&source, b"0123456789", 0).unwrap();
        map.fill_from(8, &source, 2, 8).unwrap();
        assert_eq!(ReadMap::new(&file, 4096, false).unwrap().bytes(8, 8), Some(&b"23456789"[..]));
        assert_eq!(map.fill_from(8, &source, 2, 9), Err(Errno::FAULT));
        assert_eq!(map.fill_from(8, &source, u64::MAX - 1, 9), Err(Errno::INVAL));
    }

    #[test]
    fn words_are_shared_and_read_only_ones_take_nothing() {
        let file = create(c"kdbus-test", 4096).unwrap();
        let (writer, reader) = (WordMap::writable(&file, 9).unwrap(), WordMap::read_only(&file, 9).unwrap());
        writer.store(8, 5);
        reader.store(8, 6);
        assert_eq!((reader.load(8), reader.swap(8, 7), reader.count()), (5, 0, 9));
        assert_eq!(reader.load(9), 0);
    }
}
