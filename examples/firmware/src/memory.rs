//! The functions on memory that the compiler calls, and that the C library has otherwise.
//!
//! A loop over bytes is what each of them is, so the compiler would see a call of the function in its own body. The
//! empty assembly in each turn is what it cannot see through.
#![allow(unsafe_code)]

use core::arch::asm;
use core::ffi::c_int;

/// Keeps the loop around it from being taken for a call.
#[inline(always)]
fn opaque() {
    // SAFETY: there is no instruction in it.
    unsafe { asm!("", options(nomem, nostack, preserves_flags)) };
}

/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes, and they do not overlap.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller answers for both ranges; the direction flag is clear between functions.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
            options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller answers for both ranges.
    unsafe {
        forwards(to, from, len);
    }
    to
}

/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
    if to.addr().wrapping_sub(from.addr()) >= len {
        // SAFETY: the caller answers for both ranges; no byte is overwritten before it is read.
        unsafe { forwards(to, from, len) };
        return to;
    }
    for index in (0..len).rev() {
        // SAFETY: `index` is below `len`.
        unsafe { *to.add(index) = *from.add(index) };
        opaque();
    }
    to
}

/// # Safety
///
/// `to` is writable for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, byte: c_int, len: usize) -> *mut u8 {
    for index in 0..len {
        // SAFETY: `index` is below `len`.
        unsafe { *to.add(index) = byte as u8 };
        opaque();
    }
    to
}

/// # Safety
///
/// Both are readable for `len` bytes.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    for index in 0..len {
        // SAFETY: `index` is below `len`.
        let (left, right) = unsafe { (*left.add(index), *right.add(index)) };
        if left != right {
            return c_int::from(left) - c_int::from(right);
        }
        opaque();
    }
    0
}

/// # Safety
///
/// As for [`memcmp`].
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, len: usize) -> c_int {
    // SAFETY: the caller promises the same.
    unsafe { memcmp(left, right, len) }
}

/// # Safety
///
/// `text` is readable up to a NUL.
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut len = 0;
    // SAFETY: no byte before this one was the NUL.
    while unsafe { *text.add(len) } != 0 {
        len += 1;
        opaque();
    }
    len
}

/// Copies from the first byte to the last, eight at a time.
///
/// # Safety
///
/// `from` is readable and `to` writable for `len` bytes, and `to` does not start within what is still to be read.
unsafe fn forwards(to: *mut u8, from: *const u8, len: usize) {
    let mut done = 0;
    while len - done >= 8 {
        // SAFETY: eight bytes from `done` on are below `len`; they are read before any of them is written.
        unsafe {
            let word = from.add(done).cast::<u64>().read_unaligned();
            to.add(done).cast::<u64>().write_unaligned(word);
        }
        done += 8;
        opaque();
    }
    while done < len {
        // SAFETY: `done` is below `len`.
        unsafe { *to.add(done) = *from.add(done) };
        done += 1;
        opaque();
    }
}
