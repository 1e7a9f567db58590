//! The error numbers that the bus reports.

use core::fmt;

/// An error number as the kernel's `errno`, by its Linux value.
///
/// Every refusal of the bus is one of the constants below; a transport may carry others (a failing
/// system call). The number is never zero.
///
/// ```
/// use kdbus_core::abi::Errno;
/// assert_eq!(Errno::EXFULL.raw(), 54);
/// assert_eq!(Errno::EXFULL.to_string(), "EXFULL: pool has no free slice that large");
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Errno(u16);

macro_rules! errnos {
    ($($name:ident = $value:literal, $meaning:literal;)*) => {
        impl Errno {
            $(#[doc = concat!($meaning, ".")] pub const $name: Self = Self($value);)*

            /// Every error number that the bus itself reports, with its name.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name)),)*];

            /// The symbolic name, or `None` for a number that the bus does not use itself.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// What the number means on a bus, or an empty string for a number that the bus does not use.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self.0 {
                    $($value => $meaning,)*
                    _ => "",
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "denied by policy or for lack of privilege";
    ESRCH = 3, "name not found";
    EINTR = 4, "wait interrupted by a signal";
    EIO = 5, "internal error";
    ENXIO = 6, "no such connection or no such slice";
    E2BIG = 7, "too many memfds, names or policy names";
    EBADF = 9, "not an open descriptor";
    EAGAIN = 11, "no message to receive";
    ENOMEM = 12, "a table of the bus is full";
    EACCES = 13, "node permissions deny access";
    EFAULT = 14, "unreadable address, unaligned address or range outside the file";
    EBUSY = 16, "messages are still queued";
    EEXIST = 17, "exists already";
    EINVAL = 22, "invalid argument";
    EMFILE = 24, "too many descriptors, matches, buses or connections";
    ENOTTY = 25, "unknown command";
    ETXTBSY = 26, "memfd is not sealed";
    EMLINK = 31, "too many pending calls";
    EPIPE = 32, "peer died during a call";
    EDOM = 33, "bloom filter size differs from the bus";
    ENAMETOOLONG = 36, "node name or description too long";
    EXFULL = 54, "pool has no free slice that large";
    EBADSLT = 57, "no such match cookie or no such awaited reply";
    ECOMM = 70, "receiver takes no descriptors";
    EBADMSG = 74, "signal, bloom filter and destination do not fit together";
    ENOTUNIQ = 76, "broadcast or signal with features of a single peer";
    EBADFD = 77, "handle is in the wrong state";
    EREMCHG = 78, "the name belongs to another connection";
    EDESTADDRREQ = 89, "no destination";
    EMSGSIZE = 90, "command, message or payload too large";
    EOPNOTSUPP = 95, "not possible for this kind of connection or descriptor";
    EADDRINUSE = 98, "the name belongs to others";
    EADDRNOTAVAIL = 99, "only an activator owns the name";
    ECONNRESET = 104, "connection is gone";
    ENOBUFS = 105, "receiver quota is used up";
    ESHUTDOWN = 108, "bus or endpoint is gone";
    ETIMEDOUT = 110, "deadline passed";
    EALREADY = 114, "done already";
    EUCLEAN = 117, "activator acquires its own name";
    EREMOTEIO = 121, "the reply carried descriptors that the caller does not take";
    EMEDIUMTYPE = 124, "not a memfd";
    ECANCELED = 125, "canceled";
}

impl Errno {
    /// The error with Linux' number `raw`, or `None` if no `errno` can have that value (0, or above 4095).
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match raw {
            1..=4095 => Some(Self(raw as u16)),
            _ => None,
        }
    }

    /// Linux' number of this error.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0 as i32
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}: {}", self.meaning()),
            None => write!(f, "error number {}", self.0),
        }
    }
}

impl core::error::Error for Errno {}
