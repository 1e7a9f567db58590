//! The copies into and between mappings that other processes see.
//!
//! A mapping is never borrowed as `&[u8]` or `&mut [u8]` while another process may write it; bytes are moved by
//! address, and what they mean is looked at in the copy only. Every byte range is checked by the mapping.
#![allow(unsafe_code)]

use core::sync::atomic::AtomicU64;

/// Copies `bytes` to `to`.
///
/// # Safety
///
/// `to` is the start of `bytes.len()` writable bytes of a mapping, of which nothing in this process is borrowed.
pub(super) unsafe fn into_shared(to: *mut u8, bytes: &[u8]) {
    // SAFETY: the caller's promise; `bytes` is borrowed, so it is no part of the mapping. Other processes that
    // read the range meanwhile see old or new bytes, which is theirs to expect.
    unsafe { to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) }
}

/// Copies the bytes from `from` on into `bytes`, while another process may write them: each byte is read once, and any
/// mixture of old and new ones may come out.
///
/// # Safety
///
/// `from` is the start of `bytes.len()` readable bytes of a mapping.
pub(super) unsafe fn out_of_shared(from: *const u8, bytes: &mut [u8]) {
    // SAFETY: the caller's promise; `bytes` is borrowed, so it is no part of the mapping.
    unsafe { from.copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len()) }
}

/// The word at `from`, read once, whatever another process writes there.
///
/// # Safety
///
/// `from` is the start of eight readable bytes of a mapping.
pub(super) unsafe fn word(from: *const u8) -> u64 {
    // SAFETY: the caller's promise; bytes of any alignment are read, and all values are valid.
    u64::from_ne_bytes(unsafe { from.cast::<[u8; 8]>().read_volatile() })
}

/// Fills `len` bytes from `to` on with zeros.
///
/// # Safety
///
/// `to` is the start of `len` writable bytes of a mapping, of which nothing in this process is borrowed.
pub(super) unsafe fn zero_shared(to: *mut u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { to.write_bytes(0, len) }
}

/// Copies `len` bytes from one mapping to another, or within one.
///
/// # Safety
///
/// `from` is the start of `len` readable bytes of a mapping, `to` of as many writable ones; nothing of either
/// is borrowed in this process.
pub(super) unsafe fn between_shared(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller's promise; the ranges may overlap.
    unsafe { to.copy_from(from, len) }
}

/// Words of a cache line, as they mostly are.
pub(super) const LINE: usize = 8;

/// Gives the processor a hint about the cache line of some words, by the instruction of its kind; nothing where there is none.
macro_rules! hint {
    ($words:expr, $x86_64:literal, $aarch64:literal) => {
        let word = $words.as_ptr().addr();
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint reads and writes nothing, whatever the address is; a processor that does not know it goes on.
        unsafe {
            core::arch::asm!($x86_64, in(reg) word, options(nomem, nostack, preserves_flags));
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            core::arch::asm!($aarch64, in(reg) word, options(nomem, nostack, preserves_flags));
        }
        let _ = word;
    };
}

/// Has the processor fetch the cache line of these words, which are loaded soon.
#[inline(always)]
pub(super) fn prefetch(words: &[AtomicU64]) {
    hint!(words, "prefetcht0 [{}]", "prfm pldl1keep, [{}]");
}

/// As [`prefetch`], of words that are stored to soon.
#[inline(always)]
pub(super) fn prefetch_to_store(words: &[AtomicU64]) {
    hint!(words, "prefetchw [{}]", "prfm pstl1keep, [{}]");
}
