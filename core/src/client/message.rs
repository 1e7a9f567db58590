//! A message to send.

use super::deadline::timeout_ns;
use super::delivery::Delivery;
use super::topic::Topic;
use super::transport::Transport;
use crate::abi::{DST_ID_BROADCAST, DST_ID_NAME, MsgFlags};
use crate::{Instant, WellKnownName};

/// `payload_type` of a message that does not say otherwise: the ASCII bytes `kdbusraw` as a big-endian number.
pub const PAYLOAD_RAW: u64 = u64::from_be_bytes(*b"kdbusraw");

/// Bytes of header and items that a message may have: the longest name, the longest filter, 16 memfds and
/// 16 descriptors fit, with as many runs of bytes as [`PAYLOAD_PARTS_MAX`].
pub const MESSAGE_SIZE: usize = 8192;

/// Runs of bytes that a message may have; one of more than 2 MiB counts once for each 2 MiB begun.
pub const PAYLOAD_PARTS_MAX: usize = 64;

/// Cookies from here on are the connection's own, for its calls and its own matches.
pub(super) const OWN_COOKIES: u64 = 1 << 63;

/// One part of a payload. `F` is the transport's borrowed descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part<'a, F> {
    /// Bytes, copied once.
    Bytes(&'a [u8]),
    /// This many zeros, which take no room.
    Zeros(u64),
    /// A range of a memfd, passed without a copy. It has to be sealed against shrinking, growing, writing
    /// and sealing.
    Memfd {
        /// The memfd.
        fd: F,
        /// First byte of the range.
        start: u64,
        /// Bytes of the range, not 0.
        size: u64,
    },
}

/// Whom to answer: what a later reply needs to know of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ReplyTo {
    /// The caller.
    pub id: u64,
    /// Cookie of the call.
    pub cookie: u64,
    /// Priority of the call, which the reply takes over.
    pub priority: i64,
}

/// A message to send, put together from borrowed parts.
///
/// Nothing is copied before [`send`](super::Connection::send). `F` is the transport's borrowed descriptor,
/// and is inferred.
///
/// ```
/// use kdbus_core::client::{Message, Part};
/// let header = [1, 2, 3];
/// let parts = [Part::Bytes(&header), Part::Zeros(64)];
/// let message = Message::<()>::to(42).parts(&parts).priority(-5);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Message<'a, F> {
    pub(super) id: u64,
    pub(super) name: Option<WellKnownName<'a>>,
    pub(super) flags: MsgFlags,
    pub(super) priority: i64,
    pub(super) payload_type: u64,
    pub(super) cookie: Option<u64>,
    pub(super) timeout_or_reply: u64,
    pub(super) filter: Filter<'a>,
    pub(super) payload: &'a [u8],
    pub(super) parts: &'a [Part<'a, F>],
    pub(super) fds: &'a [F],
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Filter<'a> {
    None,
    Topic(Topic<'a>),
    Bits { generation: u64, bits: &'a [u8] },
}

impl<'a, F> Message<'a, F> {
    const fn new(id: u64, name: Option<WellKnownName<'a>>) -> Self {
        Self {
            id,
            name,
            flags: MsgFlags::empty(),
            priority: 0,
            payload_type: PAYLOAD_RAW,
            cookie: None,
            timeout_or_reply: 0,
            filter: Filter::None,
            payload: &[],
            parts: &[],
            fds: &[],
        }
    }

    /// A message to the connection with this unique id.
    #[must_use]
    pub const fn to(id: u64) -> Self {
        Self::new(id, None)
    }

    /// A message to the owner of a well-known name, or to its activator, which starts the service.
    #[must_use]
    pub const fn to_name(name: WellKnownName<'a>) -> Self {
        Self::new(DST_ID_NAME, Some(name))
    }

    /// A signal to all who subscribed to its topic, unless [`only_to`](Self::only_to) one.
    #[must_use]
    pub const fn signal(topic: Topic<'a>) -> Self {
        let mut message = Self::new(DST_ID_BROADCAST, None);
        message.flags = MsgFlags::SIGNAL;
        message.filter = Filter::Topic(topic);
        message.cookie = Some(topic.hash());
        message
    }

    /// A signal with a filter of the caller's own making, as long as the bus' filters are.
    #[must_use]
    pub const fn signal_with_filter(generation: u64, bits: &'a [u8]) -> Self {
        let mut message = Self::new(DST_ID_BROADCAST, None);
        message.flags = MsgFlags::SIGNAL;
        message.filter = Filter::Bits { generation, bits };
        message
    }

    /// The answer to a call.
    #[must_use]
    pub const fn reply(to: ReplyTo) -> Self {
        let mut message = Self::new(to.id, None);
        message.priority = to.priority;
        message.timeout_or_reply = to.cookie;
        message
    }

    /// Sends only to this connection: a signal to it alone, or to a name only while this one owns it.
    #[must_use]
    pub const fn only_to(mut self, id: u64) -> Self {
        self.id = id;
        self
    }

    /// The payload, or its first bytes if there are [`parts`](Self::parts) too. Default: none.
    #[must_use]
    pub const fn payload(mut self, bytes: &'a [u8]) -> Self {
        self.payload = bytes;
        self
    }

    /// Further parts of the payload, behind [`payload`](Self::payload). Empty ones are left out.
    #[must_use]
    pub const fn parts(mut self, parts: &'a [Part<'a, F>]) -> Self {
        self.parts = parts;
        self
    }

    /// Descriptors to pass, at most 16; not in broadcasts, and only to receivers that accept them.
    #[must_use]
    pub const fn fds(mut self, fds: &'a [F]) -> Self {
        self.fds = fds;
        self
    }

    /// The sender's number for this message, below 2^63. Default: the next one of the connection; of a
    /// signal, the hash of its topic.
    #[must_use]
    pub const fn cookie(mut self, cookie: u64) -> Self {
        self.cookie = Some(cookie);
        self
    }

    /// How urgent the message is, to receivers that ask: the lowest value is the most urgent. Default: 0, for
    /// a reply that of its call.
    #[must_use]
    pub const fn priority(mut self, priority: i64) -> Self {
        self.priority = priority;
        self
    }

    /// What kind of payload this is; anything but 0 is the application's choice. Default: [`PAYLOAD_RAW`].
    #[must_use]
    pub const fn payload_type(mut self, payload_type: u64) -> Self {
        self.payload_type = payload_type;
        self
    }

    /// Asks for a reply until `at`, which then comes as a message of its own.
    /// [`call`](super::Connection::call) does this by itself.
    #[must_use]
    pub const fn expect_reply(mut self, at: Instant) -> Self {
        self.flags = self.flags.union(MsgFlags::EXPECT_REPLY);
        self.timeout_or_reply = timeout_ns(at);
        self
    }

    /// Does not start the service: with only an activator behind the name, sending fails with `EADDRNOTAVAIL`.
    #[must_use]
    pub const fn no_auto_start(mut self) -> Self {
        self.flags = self.flags.union(MsgFlags::NO_AUTO_START);
        self
    }

    /// The connection that the message goes to, if it does not go to a name or to everybody.
    pub(super) const fn receiver(&self) -> Result<u64, Option<WellKnownName<'a>>> {
        match (self.id, self.name) {
            (DST_ID_NAME, name) => Err(name),
            (DST_ID_BROADCAST, _) => Err(None),
            (id, _) => Ok(id),
        }
    }

    /// With this cookie unless it has one.
    pub(super) fn or_cookie(&self, cookie: impl FnOnce() -> u64) -> Self
    where
        F: Copy,
    {
        Self { cookie: Some(self.cookie.unwrap_or_else(cookie)), ..*self }
    }

    /// Whether the caller gave a call a cookie that is the connection's own to give.
    pub(super) const fn takes_own_cookie(&self) -> bool {
        self.flags.contains(MsgFlags::EXPECT_REPLY) && matches!(self.cookie, Some(OWN_COOKIES..))
    }
}

impl<T: Transport> Delivery<'_, T> {
    /// What a reply to this call needs to know, to answer it later.
    #[must_use]
    pub fn reply_to(&self) -> ReplyTo {
        ReplyTo { id: self.sender(), cookie: self.cookie(), priority: self.priority() }
    }
}
