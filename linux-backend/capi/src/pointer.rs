//! What C passes as texts and arrays, read as Rust's types. Nothing else here looks behind a raw pointer.
//!
//! INVARIANT of this file: a pointer that is not NULL leads to what the header says of it, a text with its
//! NUL or as many elements as the count beside it, which stay as they are until the function returns. That is
//! the caller's part of the contract; NULL, counts that no memory has and negative descriptors are refused here.
#![allow(unsafe_code)]

use core::ffi::{CStr, c_char, c_int, c_void};

use kdbus_core::abi::Errno;
use rustix::fd::BorrowedFd;

use crate::error::Refusal;

/// A text, or `None` for NULL. `'a` ends before the exported function returns.
///
/// # Errors
///
/// `EINVAL` if it is not UTF-8; no name, topic or description may have anything but ASCII.
pub(crate) fn text<'a>(text: *const c_char, what: &'static str) -> Result<Option<&'a str>, Refusal> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: by the invariant of this file, a text with its NUL that stays as it is.
    let text = unsafe { CStr::from_ptr(text) };
    match text.to_str() {
        Ok(text) => Ok(Some(text)),
        Err(_) => Err(Refusal { errno: Errno::EINVAL, what, why: "has bytes that are no text" }),
    }
}

/// An array; NULL is one without elements.
///
/// # Errors
///
/// `EINVAL` for NULL with a count other than 0, for one that is not aligned, and for more than memory holds.
pub(crate) fn array<'a, T>(first: *const T, count: usize, what: &'static str) -> Result<&'a [T], Refusal> {
    if count == 0 {
        return Ok(&[]);
    }
    let refused = |why| Err(Refusal { errno: Errno::EINVAL, what, why });
    if first.is_null() || !first.is_aligned() {
        return refused("is NULL or not aligned, but its count is not 0");
    }
    if count.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return refused("is longer than any memory");
    }
    // SAFETY: by the invariant of this file, `count` elements that stay as they are. Not NULL, aligned, and
    // not longer than `isize::MAX` was checked above.
    Ok(unsafe { core::slice::from_raw_parts(first, count) })
}

/// Bytes; NULL is none.
///
/// # Errors
///
/// As [`array`].
pub(crate) fn bytes<'a>(first: *const c_void, len: usize, what: &'static str) -> Result<&'a [u8], Refusal> {
    array(first.cast::<u8>(), len, what)
}

/// Room for results, which need not be initialised; NULL is none.
///
/// # Errors
///
/// As [`array`].
pub(crate) fn room<'a, T>(
    first: *mut T,
    count: usize,
    what: &'static str,
) -> Result<&'a mut [core::mem::MaybeUninit<T>], Refusal> {
    array(first.cast_const(), count, what)?;
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: by the invariant of this file, room for `count` elements that nobody else uses meanwhile; what
    // `array` checks holds.
    Ok(unsafe { core::slice::from_raw_parts_mut(first.cast(), count) })
}

/// A descriptor that stays open until the exported function returns.
///
/// # Errors
///
/// `EBADF` for a negative number.
pub(crate) fn descriptor<'a>(fd: c_int, what: &'static str) -> Result<BorrowedFd<'a>, Refusal> {
    if fd < 0 {
        return Err(Refusal { errno: Errno::EBADF, what, why: "is negative" });
    }
    // SAFETY: not -1; by the invariant of this file nobody closes it meanwhile. A number that is not open is
    // refused by the kernel when it is used.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_seen_to_be_wrong_is_refused() {
        assert_eq!(text(core::ptr::null(), "name").unwrap(), None);
        assert_eq!(text(c"a.b".as_ptr(), "name").unwrap(), Some("a.b"));
        assert_eq!(text(c"\xff".as_ptr(), "name").unwrap_err().errno, Errno::EINVAL);
        assert_eq!(bytes(core::ptr::null(), 0, "payload").unwrap(), b"");
        assert_eq!(bytes(core::ptr::null(), 1, "payload").unwrap_err().errno, Errno::EINVAL);
        let words = [1_u64, 2];
        assert_eq!(array(words.as_ptr(), 2, "words").unwrap(), words);
        assert!(array(words.as_ptr(), usize::MAX / 8, "words").is_err());
        assert!(array(words.as_ptr().wrapping_byte_add(1), 1, "words").is_err());
        assert_eq!(descriptor(-1, "fd").unwrap_err().errno, Errno::EBADF);
    }
}
