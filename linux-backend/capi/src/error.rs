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

    pub(crate) const fn errno(&self) -> Errno {
        self.errno
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

/// Declares [`Error`] as one of the errors there are.
macro_rules! errors {
    ($($name:ident)*) => {
        /// Any failure of a function.
        #[derive(Clone, Copy, Debug)]
        pub(crate) enum Error {
            /// A name or topic that breaks a rule, and what it was given as.
            Text(&'static str, TextError),
            $($name($name),)*
        }

        $(impl From<$name> for Error {
            fn from(error: $name) -> Self {
                Self::$name(error)
            }
        })*

        impl Error {
            /// The number that C gets, as a negative one.
            pub(crate) const fn errno(&self) -> Errno {
                match self {
                    Self::Text(..) => Errno::EINVAL,
                    $(Self::$name(error) => error.errno(),)*
                }
            }
        }

        impl fmt::Display for Error {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Text(what, error) => write!(f, "{what}: {error}"),
                    $(Self::$name(error) => error.fmt(f),)*
                }
            }
        }
    };
}

errors! {
    AcquireError ByebyeError CallError ConnectError HelloError MatchError QueryError RecvError Refusal ReleaseError
    SendError WaitError
}

/// Why a text is no name or topic.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TextError {
    Name(NameError),
    Topic(TopicError),
}

impl From<NameError> for TextError {
    fn from(error: NameError) -> Self {
        Self::Name(error)
    }
}

impl From<TopicError> for TextError {
    fn from(error: TopicError) -> Self {
        Self::Topic(error)
    }
}

impl fmt::Display for TextError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(error) => error.fmt(f),
            Self::Topic(error) => error.fmt(f),
        }
    }
}

impl Error {
    /// For `map_err` on the parsing of an argument.
    pub(crate) fn about<E: Into<TextError>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Text(what, error.into())
    }
}

/// Bytes of the longest text, its NUL not counted.
const TEXT_MAX: usize = 383;

/// The text of the last failure, always with a NUL behind it.
#[repr(transparent)]
pub(crate) struct Text {
    bytes: [u8; TEXT_MAX + 1],
}

impl Text {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; TEXT_MAX + 1] }
    }

    /// As much of `text` as fits, cut at a character.
    fn set(&mut self, text: &dyn fmt::Display) {
        let mut cut = Cut { bytes: &mut self.bytes, len: 0 };
        // What does not fit is left out.
        let _ = write!(cut, "{text}");
        let end = cut.len;
        self.bytes[end] = 0;
    }
}

struct Cut<'a> {
    bytes: &'a mut [u8; TEXT_MAX + 1],
    len: usize,
}

impl Write for Cut<'_> {
    fn write_str(&mut self, part: &str) -> fmt::Result {
        let mut end = part.len().min(TEXT_MAX - self.len);
        while !part.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes[self.len..self.len + end].copy_from_slice(&part.as_bytes()[..end]);
        self.len += end;
        if end == part.len() { Ok(()) } else { Err(fmt::Error) }
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
    -error.errno().raw()
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
        let mut text = Text::new();
        text.set(&"ä".repeat(300));
        let cut = core::ffi::CStr::from_bytes_until_nul(&text.bytes).unwrap();
        assert_eq!(cut.to_str().unwrap(), "ä".repeat(191));
        text.set(&"short");
        assert_eq!(core::ffi::CStr::from_bytes_until_nul(&text.bytes).unwrap(), c"short");
    }

    #[test]
    fn errors_keep_their_number_and_name_their_argument() {
        let place = RefCell::new(Text::new());
        let error = Error::about("topic")(TopicError::EmptyElement);
        assert_eq!(error.to_string(), "topic: topic has an empty element");
        assert_eq!(keep(Some(&place), &error), -22);
        assert_eq!(keep(Some(&place), &Refusal::null("bus").into()), -22);
        assert!(place.borrow().bytes.starts_with(b"bus is NULL\0"));
        assert_eq!(keep(None, &SendError::NoSuchName.into()), -3);
    }
}
