//! What went wrong: a number for the program, a text for people.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::cell::RefCell;
use core::ffi::{c_char, c_int};
use core::fmt::{self, Write};

use kdbus_core::NameError;
use kdbus_core::abi::Errno;
use kdbus_core::client::{
    AcquireError, ByebyeError, CallError, HelloError, MatchError, QueryError, RecvError, ReleaseError,
    SendError, TopicError, WaitError,
};
use kdbus_linux::local::ConnectError;

use crate::bus::Bus;

/// `ENODATA`, which the bus itself does not use.
pub(crate) const ENODATA: Errno = match Errno::from_raw(61) {
    Some(errno) => errno,
    None => Errno::EIO,
};

/// An argument that cannot be right.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refusal {
    pub(crate) errno: Errno,
    pub(crate) what: &'static str,
    pub(crate) why: &'static str,
}

impl Refusal {
    pub(crate) const fn invalid(what: &'static str, why: &'static str) -> Self {
        Self { errno: Errno::EINVAL, what, why }
    }

    pub(crate) const fn null(what: &'static str) -> Self {
        Self::invalid(what, "is NULL")
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.what, self.why)
    }
}

/// An error as C gets to know it.
pub(crate) trait Failed: fmt::Display {
    fn errno(&self) -> Errno;
}

macro_rules! failed {
    ($($name:ident)*) => {
        $(impl Failed for $name {
            fn errno(&self) -> Errno {
                (*self).errno()
            }
        })*
    };
}

failed! {
    AcquireError ByebyeError CallError ConnectError HelloError MatchError NameError QueryError RecvError
    ReleaseError SendError TopicError WaitError
}

impl Failed for Refusal {
    fn errno(&self) -> Errno {
        self.errno
    }
}

/// Any failure of a function, for those that can fail in several ways.
pub(crate) struct Error {
    errno: Errno,
    text: heapless::String<TEXT_MAX>,
}

impl Error {
    /// A failure with the name of the argument that it is about.
    pub(crate) fn about(what: &str, failed: &dyn Failed) -> Self {
        Self { errno: failed.errno(), text: cut(format_args!("{what}: {failed}")) }
    }
}

impl<F: Failed> From<F> for Error {
    fn from(failed: F) -> Self {
        Self { errno: failed.errno(), text: cut(format_args!("{failed}")) }
    }
}

/// Bytes of the longest text, its NUL not counted.
const TEXT_MAX: usize = 383;

/// The text of the last failure, always with a NUL behind it.
pub(crate) struct Text {
    bytes: [u8; TEXT_MAX + 1],
}

impl Text {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; TEXT_MAX + 1] }
    }

    fn set(&mut self, error: &Error) {
        let len = error.text.len();
        self.bytes[..len].copy_from_slice(error.text.as_bytes());
        self.bytes[len] = 0;
    }
}

std::thread_local! {
    /// What failed in this thread without a handle.
    static UNHANDLED: RefCell<Text> = const { RefCell::new(Text::new()) };
}

/// Keeps the text of `error` in `place`, or in the thread's own; the negative number to return.
pub(crate) fn keep(place: Option<&RefCell<Text>>, error: &Error) -> c_int {
    match place {
        Some(place) => place.borrow_mut().set(error),
        None => UNHANDLED.with_borrow_mut(|place| place.set(error)),
    }
    -error.errno.raw()
}

/// As much of `text` as fits, cut at a character.
fn cut(text: fmt::Arguments<'_>) -> heapless::String<TEXT_MAX> {
    struct Cut(heapless::String<TEXT_MAX>);
    impl Write for Cut {
        fn write_str(&mut self, part: &str) -> fmt::Result {
            part.chars().try_for_each(|character| self.0.push(character).map_err(|_| fmt::Error))
        }
    }
    let mut cut = Cut(heapless::String::new());
    // What does not fit is left out.
    let _ = cut.write_fmt(text);
    cut.0
}

/// What the last function that failed on this handle had to say: what happened, to what, what to do. After
/// success the text stays as it was. With NULL: of the last function that failed in the calling thread without
/// a handle, such as kdbus_rt_connect.
///
/// Never NULL, never freed. It may change with the next function on the handle (or in the thread), and goes
/// with the handle.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_error(bus: Option<&Bus>) -> *const c_char {
    match bus {
        Some(bus) => bus.shared().error.as_ptr().cast_const().cast(),
        None => UNHANDLED.with(|place| place.as_ptr().cast_const().cast()),
    }
}

/// The code of the error with which a callee answered the last call that ended with -EREMOTEIO on this handle:
/// 0 to 6 are the common ones (KDBUS_RT_ERROR_...), the others are the service's. Its text is part of
/// kdbus_rt_error. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_remote_code(bus: Option<&Bus>) -> u32 {
    bus.map_or(0, |bus| bus.shared().remote.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_are_cut_at_a_character_and_end_with_a_nul() {
        struct Long;
        impl fmt::Display for Long {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&"ä".repeat(300))
            }
        }
        impl Failed for Long {
            fn errno(&self) -> Errno {
                Errno::EIO
            }
        }
        let place = RefCell::new(Text::new());
        assert_eq!(keep(Some(&place), &Error::from(Long)), -5);
        let text = place.borrow();
        let text = core::ffi::CStr::from_bytes_until_nul(&text.bytes).unwrap();
        assert_eq!(text.to_str().unwrap(), "ä".repeat(191));
    }
}
