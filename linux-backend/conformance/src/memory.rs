//! Memory of this process by address, as a kernel reads and writes it: a bad address is an error value.
#![allow(unsafe_code)]

use std::ptr::null_mut;
use std::sync::OnceLock;

use kdbus_core::abi::Errno;

/// Bytes of the page that nobody may read.
const GUARD: usize = 4096;

/// Reads `len` bytes at `address`.
///
/// # Errors
///
/// `EFAULT` if not all of them can be read.
pub(crate) fn read(address: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0_u8; len];
    if len == 0 {
        return Ok(bytes);
    }
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: len };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: len };
    let count =
        // SAFETY: the kernel writes to `bytes` only, at most its length, and checks the remote range itself.
        unsafe { libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(count) == Ok(len) { Ok(bytes) } else { Err(Errno::EFAULT) }
}

/// Writes `bytes` to `address`.
///
/// # Errors
///
/// `EFAULT` if not all of them can be written.
///
/// # Safety
///
/// As far as it is mapped, the range is borrowed by nobody but the caller, who gave it away for this.
pub(crate) unsafe fn write(address: u64, bytes: &[u8]) -> Result<(), Errno> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut _, iov_len: bytes.len() };
    let count =
        // SAFETY: `bytes` is only read; the remote range is checked by the kernel and the caller's to change.
        unsafe { libc::process_vm_writev(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    if usize::try_from(count) == Ok(bytes.len()) { Ok(()) } else { Err(Errno::EFAULT) }
}

/// An address from which nothing can be read, however long the program runs.
pub(crate) fn unmapped() -> u64 {
    static PAGE: OnceLock<u64> = OnceLock::new();
    *PAGE.get_or_init(|| {
        let flags = rustix::mm::MapFlags::PRIVATE;
        let page =
            // SAFETY: the kernel chooses an address where nothing is mapped; the page stays for good.
            unsafe { rustix::mm::mmap_anonymous(null_mut(), GUARD, rustix::mm::ProtFlags::empty(), flags) };
        page.map_or(0, |page| page as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_or_written_is_a_fault() {
        assert_eq!(read(unmapped(), 1), Err(Errno::EFAULT));
        assert_eq!(read(0, 8), Err(Errno::EFAULT));
        assert_eq!(read(0xffff_8000_0000_0000, 8), Err(Errno::EFAULT));
        // SAFETY: nobody borrows that page.
        assert_eq!(unsafe { write(unmapped(), &[1]) }, Err(Errno::EFAULT));
    }

    #[test]
    fn own_memory_is_read_and_written() {
        let mut bytes = *b"abcdef";
        assert_eq!(read(bytes.as_ptr() as u64 + 2, 3), Ok(b"cde".to_vec()));
        // SAFETY: the array is exclusively borrowed for this.
        unsafe { write(bytes.as_mut_ptr() as u64, b"xy") }.unwrap();
        assert_eq!(&bytes, b"xycdef");
    }
}
