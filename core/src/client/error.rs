//! What can go wrong, by operation.
//!
//! Each error tells a refusal, after which nothing has changed and the connection goes on, from
//! [`Broken`]: the connection is gone and only a new one helps.

use core::fmt;

use super::error_reply::ErrorReply;
use super::transport::Failure;
use crate::abi::Errno;

/// The connection to the bus is gone. Nothing done over it succeeds again: reconnect or drop it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Broken(Errno);

impl Broken {
    pub(super) const fn new(errno: Errno) -> Self {
        Self(errno)
    }

    /// The code that the transport reported, usually `ECONNRESET`.
    #[must_use]
    pub const fn errno(self) -> Errno {
        self.0
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the connection to the bus is gone ({:?}); connect again", self.0)
    }
}

impl core::error::Error for Broken {}

/// Declares the error of one operation: the refusals it can tell apart, each with its code and text, and
/// those that the connection itself comes to, which no code of the bus stands for.
macro_rules! refusals {
    (
        $(#[$meta:meta])* $name:ident { $($variant:ident = $errno:ident, $text:literal;)* }
        $(own { $($own:ident = $own_errno:ident, $own_text:literal;)* })?
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        #[non_exhaustive]
        pub enum $name {
            $(#[doc = concat!("`", stringify!($errno), "`: ", $text, ".")] $variant,)*
            $($(#[doc = concat!("`", stringify!($own_errno), "`: ", $own_text, ".")] $own,)*)?
            /// Refused with another code; nothing changed.
            Refused(Errno),
            /// The connection is gone.
            Broken(Broken),
        }

        impl $name {
            /// The code that every transport reports for this.
            #[must_use]
            pub const fn errno(self) -> Errno {
                match self {
                    $(Self::$variant => Errno::$errno,)*
                    $($(Self::$own => Errno::$own_errno,)*)?
                    Self::Refused(errno) => errno,
                    Self::Broken(broken) => broken.errno(),
                }
            }

            /// Whether the connection is gone, so that retrying is useless.
            #[must_use]
            pub const fn is_broken(self) -> bool {
                matches!(self, Self::Broken(_))
            }
        }

        impl From<Failure> for $name {
            fn from(failure: Failure) -> Self {
                match failure {
                    $(Failure::Refused(Errno::$errno) => Self::$variant,)*
                    Failure::Refused(errno) => Self::Refused(errno),
                    Failure::Broken(errno) => Self::Broken(Broken(errno)),
                }
            }
        }

        impl From<Broken> for $name {
            fn from(broken: Broken) -> Self {
                Self::Broken(broken)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $(Self::$variant => f.write_str($text),)*
                    $($(Self::$own => f.write_str($own_text),)*)?
                    Self::Refused(errno) => write!(f, "the bus refused: {errno}"),
                    Self::Broken(broken) => broken.fmt(f),
                }
            }
        }

        impl core::error::Error for $name {}
    };
}

refusals! {
    /// Why HELLO gave no connection.
    HelloError {
        Denied = EPERM, "only the owner of the bus may connect as activator, policy holder or monitor, or fake credentials";
        TooManyConnections = EMFILE, "this user has as many connections as the bus allows; close some";
        NotFresh = EBADFD, "the transport has been used for something else; open the endpoint anew";
        ActivatorExists = EEXIST, "the name has an activator or policy holder already";
        TooLarge = EMSGSIZE, "the policy given with HELLO is too long";
        Unsupported = EOPNOTSUPP, "custom endpoints have no monitors";
        Invalid = EINVAL, "pool size, flags, name or policy are not valid; the pool size is a multiple of the page size";
        Malformed = EIO, "the bus answered HELLO with parameters that make no sense";
    }
}

refusals! {
    /// Why a message was not sent.
    SendError {
        NoSuchName = ESRCH, "nobody owns the name; wait for it or start the service";
        NoSuchConnection = ENXIO, "there is no connection with this id that takes messages";
        ReceiverGone = ECONNRESET, "the receiver disconnected meanwhile";
        OwnerChanged = EREMCHG, "the name belongs to another connection now; look it up again";
        NotStarted = EADDRNOTAVAIL, "only an activator owns the name; allow starting the service";
        Denied = EPERM, "policy does not let this connection talk to the receiver";
        QuotaUsed = ENOBUFS, "the receiver holds as many unread messages of this user as it may; wait for room";
        PoolFull = EXFULL, "the receiver's pool has no free slice that large; wait for room";
        DescriptorQuotaUsed = EMFILE, "the receiver holds as many unread descriptors of this user as it may; wait for room";
        NoDescriptors = ECOMM, "the receiver takes no descriptors; send bytes or a memfd";
        TooManyCalls = EMLINK, "as many calls are pending as a connection may have; await some first";
        NotAwaited = EBADSLT, "the receiver does not wait for this reply, or no longer";
        TooLarge = EMSGSIZE, "the message has more parts or items than fit";
        TooManyMemfds = E2BIG, "the message has more memfds than one may carry";
        NotSealed = ETXTBSY, "the memfd is not sealed against shrinking, growing, writing and sealing";
        BadDescriptor = EBADF, "a descriptor of the message is not open";
        BloomSize = EDOM, "the filter has another size than the bus' filters";
        Unsupported = EOPNOTSUPP, "this connection cannot send, or a descriptor cannot be passed on";
        Invalid = EINVAL, "the message contradicts itself";
    }
    own {
        TimedOut = ETIMEDOUT, "the receiver had no room until the deadline";
        TooManyTasks = EBUSY, "as many tasks wait on this connection as it has places for";
        InboxFull = ENOBUFS, "the inbox is full of messages that arrived first; receive some";
    }
}

impl SendError {
    /// Whether the receiver has no room now but may have later; then
    /// [`send_when_room`](super::Connection::send_when_room) helps.
    #[must_use]
    pub const fn is_full(self) -> bool {
        matches!(self, Self::QuotaUsed | Self::PoolFull | Self::DescriptorQuotaUsed)
    }
}

refusals! {
    /// Why nothing was received.
    RecvError {
        Unsupported = EOPNOTSUPP, "this connection does not receive, or its transport cannot wait";
    }
    own {
        TimedOut = ETIMEDOUT, "no message came until the deadline";
        TooManyTasks = EBUSY, "as many tasks wait on this connection as it has places for";
    }
}

refusals! {
    /// Why waiting for something ended without it.
    WaitError {
        Unsupported = EOPNOTSUPP, "the transport cannot wait; drive the connection from an event loop";
    }
    own {
        TimedOut = ETIMEDOUT, "it did not come about until the deadline";
        TooManyTasks = EBUSY, "as many tasks wait on this connection as it has places for";
        InboxFull = ENOBUFS, "the inbox is full of messages that arrived first; receive some";
    }
}

refusals! {
    /// Why a name was not acquired.
    AcquireError {
        Denied = EPERM, "policy does not let this connection own the name";
        Taken = EEXIST, "another connection owns the name; queue for it, or replace an owner that allows it";
        TooMany = E2BIG, "this connection has as many names as it may; release some";
        Unsupported = EOPNOTSUPP, "only ordinary connections own names";
        Invalid = EINVAL, "name or flags are not valid";
    }
}

refusals! {
    /// Why a name was not released.
    ReleaseError {
        NoSuchName = ESRCH, "nobody owns the name";
        NotOwner = EADDRINUSE, "the name belongs to others, this connection does not even wait for it";
        Unsupported = EOPNOTSUPP, "only ordinary connections own names";
    }
}

refusals! {
    /// Why a query had no answer.
    QueryError {
        NoSuchName = ESRCH, "nobody owns the name, or it may not be seen from here";
        NoSuchConnection = ENXIO, "there is no connection with this id, or it may not be seen from here";
        PoolFull = EXFULL, "the own pool has no room for the answer; drop messages that are still held";
        Invalid = EINVAL, "the metadata asked for is unknown";
        Malformed = EIO, "the answer does not hold together";
    }
}

refusals! {
    /// Why a match was not added or removed.
    MatchError {
        BloomSize = EDOM, "a mask has another size than the bus' filters";
        TooMany = EMFILE, "this connection has as many matches as it may; remove some";
        NoSuchMatch = EBADSLT, "no match has this cookie";
        TooLarge = EMSGSIZE, "the rules are longer than one command";
        Unsupported = EOPNOTSUPP, "only ordinary connections have matches";
        Invalid = EINVAL, "a name in the rules is not valid";
    }
}

refusals! {
    /// Why metadata masks or a policy stayed as they were.
    UpdateError {
        Unsupported = EOPNOTSUPP, "this kind of connection has no such mask or policy";
        Exists = EEXIST, "another connection holds a policy for the name";
        TooLarge = EMSGSIZE, "the policy is longer than one command";
        Invalid = EINVAL, "mask, name or policy are not valid";
    }
}

refusals! {
    /// Why an orderly goodbye was refused.
    ByebyeError {
        Busy = EBUSY, "messages wait to be received; receive or drop them first";
        Unsupported = EOPNOTSUPP, "only ordinary connections say goodbye; drop this one";
    }
}

/// Why a call has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum CallError {
    /// The call was not sent.
    NotSent(SendError),
    /// The deadline passed. The callee may still carry the call out.
    TimedOut,
    /// The callee disconnected, or dropped the call unread.
    PeerDied,
    /// The wait was ended through the cancel descriptor. The callee may still carry the call out.
    Canceled,
    /// A signal handler ended the wait. The callee may still carry the call out.
    Interrupted,
    /// The answer could not be delivered: it was too large, or had descriptors that this connection does not take.
    Undeliverable(Errno),
    /// As many messages as the inbox takes stand before the answer. Receive some, or make the inbox larger.
    InboxFull,
    /// The transport can neither call nor wait; use the async form and an event loop.
    Unsupported,
    /// The callee answered with an error.
    Remote(ErrorReply),
    /// The connection is gone.
    Broken(Broken),
}

impl CallError {
    /// The code that every transport reports for this; `EREMOTEIO` for an error of the callee's.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NotSent(error) => error.errno(),
            Self::TimedOut => Errno::ETIMEDOUT,
            Self::PeerDied => Errno::EPIPE,
            Self::Canceled => Errno::ECANCELED,
            Self::Interrupted => Errno::EINTR,
            Self::Undeliverable(errno) => errno,
            Self::InboxFull => Errno::ENOBUFS,
            Self::Unsupported => Errno::EOPNOTSUPP,
            Self::Remote(_) => Errno::EREMOTEIO,
            Self::Broken(broken) => broken.errno(),
        }
    }

    /// Whether the connection is gone, so that retrying is useless.
    #[must_use]
    pub const fn is_broken(self) -> bool {
        matches!(self, Self::Broken(_))
    }
}

impl From<SendError> for CallError {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Broken(broken) => Self::Broken(broken),
            error => Self::NotSent(error),
        }
    }
}

/// The codes of a synchronous call, which is sent and answered in one command.
impl From<Failure> for CallError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Refused(Errno::ETIMEDOUT) => Self::TimedOut,
            Failure::Refused(Errno::EPIPE) => Self::PeerDied,
            Failure::Refused(Errno::ECANCELED) => Self::Canceled,
            Failure::Refused(Errno::EINTR) => Self::Interrupted,
            Failure::Refused(Errno::EREMOTEIO) => Self::Undeliverable(Errno::EREMOTEIO),
            failure => SendError::from(failure).into(),
        }
    }
}

impl From<Broken> for CallError {
    fn from(broken: Broken) -> Self {
        Self::Broken(broken)
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSent(error) => write!(f, "call was not sent: {error}"),
            Self::TimedOut => f.write_str("no answer came until the deadline"),
            Self::PeerDied => f.write_str("the callee disconnected or dropped the call"),
            Self::Canceled => f.write_str("waiting for the answer was cancelled"),
            Self::Interrupted => f.write_str("waiting for the answer was interrupted by a signal"),
            Self::Undeliverable(errno) => write!(f, "the answer could not be delivered: {errno}"),
            Self::InboxFull => f.write_str("the inbox is full of messages that arrived first; receive some"),
            Self::Unsupported => f.write_str("the transport cannot wait; await the call from an event loop"),
            Self::Remote(error) => write!(f, "the callee answered with an error: {error}"),
            Self::Broken(broken) => broken.fmt(f),
        }
    }
}

impl core::error::Error for CallError {}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn refusals_keep_their_code_and_broken_stays_apart() {
        for (errno, _) in Errno::ALL {
            assert_eq!(SendError::from(Failure::Refused(*errno)).errno(), *errno);
            assert!(!SendError::from(Failure::Refused(*errno)).is_broken());
            assert!(SendError::from(Failure::Broken(*errno)).is_broken());
            assert_eq!(CallError::from(Failure::Refused(*errno)).errno(), *errno);
        }
        assert!(CallError::from(Failure::Broken(Errno::ECONNRESET)).is_broken());
    }

    #[test]
    fn texts_say_what_happened_and_what_to_do() {
        assert_eq!(
            SendError::NoSuchName.to_string(),
            "nobody owns the name; wait for it or start the service"
        );
        assert_eq!(
            CallError::NotSent(SendError::Refused(Errno::EFAULT)).to_string(),
            "call was not sent: the bus refused: \
             EFAULT: unreadable address, unaligned address or range outside the file"
        );
    }

    #[test]
    fn only_lack_of_room_is_worth_waiting_for() {
        assert!(SendError::from(Failure::Refused(Errno::EXFULL)).is_full());
        assert!(!SendError::from(Failure::Refused(Errno::EPERM)).is_full());
    }
}
