//! Sending, calling and answering.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::{c_char, c_int, c_void};
use core::mem::MaybeUninit;
use std::boxed::Box;

use kdbus_core::abi::Errno;
use kdbus_core::client::{
    CallError, ErrorReply, MESSAGE_FDS_MAX, Message as Core, PAYLOAD_PARTS_MAX, Part as CorePart, ReplyTo,
    SendError, Topic,
};
use kdbus_core::{Instant, WellKnownName};
use kdbus_linux::local::SealedMemfd;
use rustix::fd::{BorrowedFd, IntoRawFd, OwnedFd};

use crate::bus::{Bus, KDBUS_RT_FOREVER, with};
use crate::error::{Error, Refusal, keep};
use crate::held::Message;
use crate::pointer;

/// Part of a payload: bytes, copied once.
pub const KDBUS_RT_PART_BYTES: u32 = 0;
/// Part of a payload: zeros, which take no room.
pub const KDBUS_RT_PART_ZEROS: u32 = 1;
/// Part of a payload: a range of a memfd, passed without a copy. It has to be sealed against shrinking, growing,
/// writing and sealing.
pub const KDBUS_RT_PART_MEMFD: u32 = 2;

/// Message flag: the receiver's reply comes as a message of its own, or a notification says that it will not,
/// until `reply_until`. kdbus_rt_call sets this by itself.
pub const KDBUS_RT_EXPECT_REPLY: u64 = 1;
/// Message flag: does not start a service. With only an activator behind the name, sending is -EADDRNOTAVAIL.
pub const KDBUS_RT_NO_AUTO_START: u64 = 2;

/// Error code of an answer: the call failed for a reason that has no code of its own.
pub const KDBUS_RT_ERROR_FAILED: u32 = 0;
/// Error code of an answer: the service has no such method.
pub const KDBUS_RT_ERROR_UNKNOWN_METHOD: u32 = 1;
/// Error code of an answer: the payload is not what the method takes.
pub const KDBUS_RT_ERROR_INVALID: u32 = 2;
/// Error code of an answer: what the call is about does not exist.
pub const KDBUS_RT_ERROR_NOT_FOUND: u32 = 3;
/// Error code of an answer: the caller may not do that.
pub const KDBUS_RT_ERROR_DENIED: u32 = 4;
/// Error code of an answer: not now; trying again later may work.
pub const KDBUS_RT_ERROR_BUSY: u32 = 5;
/// Error code of an answer: the service dropped the call unread.
pub const KDBUS_RT_ERROR_DROPPED: u32 = 6;

/// A part of a payload, to send or received.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// KDBUS_RT_PART_BYTES, KDBUS_RT_PART_ZEROS or KDBUS_RT_PART_MEMFD.
    pub kind: u32,
    /// The memfd. Received: it belongs to the message, or is -1 if it was taken or could not be installed.
    pub fd: c_int,
    /// The bytes. Received: they belong to the message.
    pub data: *const c_void,
    /// First byte of the memfd's range.
    pub start: u64,
    /// Bytes of the part; of a memfd not 0.
    pub size: u64,
}

/// A message to send. All zero but for one destination is valid. Whatever it points to has to stay as it is until
/// the function returns, and is not needed any more after that.
///
/// The destination is one of these: `name`; `id`; `name` and `id`, which sends only while that connection owns
/// the name; `topic`, a signal to all who subscribed to it; `topic` and `id`, to that subscriber alone.
#[repr(C)]
#[derive(Debug)]
pub struct Outgoing {
    /// Well-known name of the receiver, or NULL.
    pub name: *const c_char,
    /// What a signal is about: "org.example.Mixer.level"; NULL for other messages.
    pub topic: *const c_char,
    /// Unique id of the receiver, or 0.
    pub id: u64,
    /// How urgent it is: the lowest value is the most urgent.
    pub priority: i64,
    /// The sender's number for the message, below 2^63. 0: the next one of the connection. A signal has the hash
    /// of its topic, and a call a number of its own.
    pub cookie: u64,
    /// Cookie of the message that this one answers, 0 for none. `id` is who asked.
    pub cookie_reply: u64,
    /// What kind of payload this is, by the sender's choice. 0: raw bytes.
    pub payload_type: u64,
    /// Any of KDBUS_RT_EXPECT_REPLY and KDBUS_RT_NO_AUTO_START.
    pub flags: u64,
    /// With KDBUS_RT_EXPECT_REPLY, the deadline of the reply.
    pub reply_until: u64,
    /// The payload, or its first bytes if there are parts too.
    pub payload: *const c_void,
    /// Bytes at `payload`.
    pub payload_len: usize,
    /// Further parts of the payload: at most 64 runs of bytes, a run of more than 2 MiB counts for each 2 MiB,
    /// and 16 memfds.
    pub parts: *const Part,
    /// Parts at `parts`.
    pub part_count: usize,
    /// Descriptors to pass, at most 16; not in signals to all, and only to receivers that accept them. They stay
    /// the caller's.
    pub fds: *const c_int,
    /// Descriptors at `fds`.
    pub fd_count: usize,
    /// 0.
    pub reserved: [u64; 4],
}

/// Parts that a message can have: runs of bytes or zeros, and memfds.
const PARTS_MAX: usize = PAYLOAD_PARTS_MAX + 16;
/// kdbus.message: descriptors of a message.
const FDS_MAX: usize = MESSAGE_FDS_MAX / 2;

impl Outgoing {
    /// As C's `{0}` makes it.
    #[must_use]
    pub const fn zeroed() -> Self {
        Self {
            name: core::ptr::null(),
            topic: core::ptr::null(),
            id: 0,
            priority: 0,
            cookie: 0,
            cookie_reply: 0,
            payload_type: 0,
            flags: 0,
            reply_until: 0,
            payload: core::ptr::null(),
            payload_len: 0,
            parts: core::ptr::null(),
            part_count: 0,
            fds: core::ptr::null(),
            fd_count: 0,
            reserved: [0; 4],
        }
    }

    /// Puts the message together and hands it to `send`.
    fn build<R>(&self, send: impl FnOnce(&Core<'_, BorrowedFd<'_>>) -> Result<R, Error>) -> Result<R, Error> {
        let invalid = |why| Error::from(Refusal::invalid("message", why));
        if self.reserved != [0; 4] || self.flags & !(KDBUS_RT_EXPECT_REPLY | KDBUS_RT_NO_AUTO_START) != 0 {
            return Err(invalid("has an unknown flag or a reserved field"));
        }
        let name = pointer::text(self.name, "name")?.map(well_known).transpose()?;
        let topic = pointer::text(self.topic, "topic")?.map(parse_topic).transpose()?;
        let mut message = match (name, topic) {
            (Some(_), Some(_)) => {
                return Err(invalid("has a name and a topic; a signal goes to nobody by name"));
            }
            (_, Some(_)) if self.cookie_reply != 0 => return Err(invalid("is a signal and a reply")),
            (Some(_), _) if self.cookie_reply != 0 => {
                return Err(invalid("is a reply and has a name; give the id"));
            }
            (None, None) if self.id == 0 => {
                return Err(Refusal {
                    errno: Errno::EDESTADDRREQ,
                    what: "message",
                    why: "has no destination",
                }
                .into());
            }
            (Some(name), None) => Core::to_name(name),
            (None, Some(topic)) => Core::signal(topic),
            (None, None) if self.cookie_reply != 0 => {
                Core::reply(ReplyTo { id: self.id, cookie: self.cookie_reply, priority: self.priority })
            }
            (None, None) => Core::to(self.id),
        };
        if self.id != 0 {
            message = message.only_to(self.id);
        }
        message = message.priority(self.priority);
        if self.cookie != 0 {
            message = message.cookie(self.cookie);
        }
        if self.payload_type != 0 {
            message = message.payload_type(self.payload_type);
        }
        if self.flags & KDBUS_RT_NO_AUTO_START != 0 {
            message = message.no_auto_start();
        }
        if self.flags & KDBUS_RT_EXPECT_REPLY != 0 {
            if self.cookie_reply != 0 {
                return Err(invalid("is a reply and expects one"));
            }
            message = message.expect_reply(Instant::from_nanos(self.reply_until));
        }
        let mut parts = heapless::Vec::<_, PARTS_MAX>::new();
        for part in pointer::array(self.parts, self.part_count, "parts")? {
            parts.push(part.get()?).map_err(|_| Error::from(SendError::TooLarge))?;
        }
        let mut fds = heapless::Vec::<_, FDS_MAX>::new();
        for fd in pointer::array(self.fds, self.fd_count, "fds")? {
            let fd = pointer::descriptor(*fd, "a descriptor of the message")?;
            fds.push(fd).map_err(|_| {
                Error::from(Refusal {
                    errno: Errno::EMFILE,
                    what: "message",
                    why: "has more than 16 descriptors",
                })
            })?;
        }
        let payload = pointer::bytes(self.payload, self.payload_len, "payload")?;
        send(&message.payload(payload).parts(&parts).fds(&fds))
    }
}

impl Part {
    /// The part as the client takes it.
    fn get<'a>(&self) -> Result<CorePart<'a, BorrowedFd<'a>>, Error> {
        Ok(match self.kind {
            KDBUS_RT_PART_BYTES => {
                let size = usize::try_from(self.size)
                    .map_err(|_| Refusal::invalid("a part", "is longer than any memory"))?;
                CorePart::Bytes(pointer::bytes(self.data, size, "a part")?)
            }
            KDBUS_RT_PART_ZEROS => CorePart::Zeros(self.size),
            KDBUS_RT_PART_MEMFD => CorePart::Memfd {
                fd: pointer::descriptor(self.fd, "a memfd of the message")?,
                start: self.start,
                size: self.size,
            },
            _ => return Err(Refusal::invalid("a part", "is of an unknown kind").into()),
        })
    }
}

/// A well-known name out of a text.
pub(crate) fn well_known(name: &str) -> Result<WellKnownName<'_>, Error> {
    WellKnownName::parse(name).map_err(Error::about("name"))
}

fn parse_topic(topic: &str) -> Result<Topic<'_>, Error> {
    Topic::parse(topic).map_err(Error::about("topic"))
}

/// Sends a message. Never waits: when it returns, the message is queued at its receiver, or at all of them. The
/// payload is copied once. Its cookie is written to `cookie` unless that is NULL.
///
/// Returns 0, also for a signal that nobody hears; -ESRCH if nobody owns the name, -ENXIO if there is no such
/// connection, -ENOBUFS or -EXFULL if the receiver has no room now, -EPERM if policy denies it, -ECOMM if the
/// receiver takes no descriptors, -EMSGSIZE, -EMFILE or -E2BIG if it has too many parts, descriptors or memfds,
/// -ETXTBSY if a memfd is not sealed, -EBADF, -EDESTADDRREQ, -EINVAL, -EBADSLT if the reply is not awaited, or
/// -ECONNRESET if the bus or the receiver is gone.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_send(
    bus: Option<&mut Bus>,
    message: Option<&Outgoing>,
    cookie: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let message = message.ok_or(Refusal::null("message"))?;
        let sent = message.build(|message| Ok(bus.client().send(message)?))?;
        if let Some(cookie) = cookie {
            cookie.write(sent);
        }
        Ok(())
    })
}

/// As kdbus_rt_send, and waits for room at the receiver if there is none. Messages that arrive meanwhile are kept
/// for later receives.
///
/// Returns as kdbus_rt_send; -ETIMEDOUT if there was no room until `deadline`, -ENOBUFS if more messages arrived
/// than are kept: receive some.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_send_when_room(
    bus: Option<&mut Bus>,
    message: Option<&Outgoing>,
    deadline: u64,
    cookie: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let message = message.ok_or(Refusal::null("message"))?;
        let until = Instant::from_nanos(deadline);
        let sent = message.build(|message| Ok(bus.client().send_when_room_blocking(message, until)?))?;
        if let Some(cookie) = cookie {
            cookie.write(sent);
        }
        Ok(())
    })
}

/// Sends a call and waits for its answer, which passes all queued messages by. `cancel_fd` ends the wait as soon
/// as it is readable; negative is none.
///
/// On success `*reply` is the answer, to be given to kdbus_rt_message_free; on failure it is NULL. `reply` may be
/// NULL, which frees the answer at once.
///
/// Returns 0; -EREMOTEIO if the callee answered with an error: kdbus_rt_remote_code is its code and
/// kdbus_rt_error its text; -ETIMEDOUT at the deadline, -ECANCELED through `cancel_fd`, -EINTR after a signal: in
/// these three the callee may still carry the call out; -EPIPE if the callee is gone or dropped the call; -ENOBUFS
/// if every place for a message is held; or as kdbus_rt_send.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_call(
    bus: Option<&mut Bus>,
    message: Option<&Outgoing>,
    deadline: u64,
    cancel_fd: c_int,
    reply: Option<&mut MaybeUninit<*mut Message>>,
) -> c_int {
    let mut answer = core::ptr::null_mut();
    let wanted = reply.is_some();
    let code = with(bus, |bus| {
        let message = message.ok_or(Refusal::null("message"))?;
        if message.cookie_reply != 0 || !message.topic.is_null() {
            return Err(Refusal::invalid("message", "is a signal or a reply, which nobody answers").into());
        }
        let cancel = (cancel_fd >= 0).then(|| pointer::descriptor(cancel_fd, "cancel_fd")).transpose()?;
        let until = Instant::from_nanos(deadline);
        let received = Message::receive(bus.shared(), |client| {
            message.build(|message| {
                let answered = match cancel {
                    Some(cancel) => client.call_cancelable(message, until, cancel),
                    None => client.call_blocking(message, until),
                };
                if let Err(CallError::Remote(error)) = &answered {
                    bus.shared().remote.set(error.code());
                }
                Ok(answered?)
            })
        })?;
        if wanted {
            answer = Box::into_raw(received);
        } else {
            received.free();
        }
        Ok(())
    });
    if let Some(reply) = reply {
        reply.write(answer);
    }
    code
}

const _: () = assert!(KDBUS_RT_FOREVER == Instant::FAR.as_nanos());

/// Runs an answer to `request`; the number to return.
fn answer(
    request: Option<&Message>,
    run: impl FnOnce(&crate::Client, ReplyTo) -> Result<(), Error>,
) -> c_int {
    let parts = request.and_then(|request| Some((request.bus()?, request.delivery()?.reply_to())));
    match parts {
        Some((bus, to)) => bus.finish(run(&bus.client, to)),
        None => keep(None, &Refusal::null("request").into()),
    }
}

/// Answers a call, with the call's priority. `request` is still to be freed.
///
/// Returns 0; -EBADSLT if the caller does not wait any more; or as kdbus_rt_send. kdbus_rt_error of the handle
/// that received the request says more.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_reply(
    request: Option<&Message>,
    payload: *const c_void,
    payload_len: usize,
) -> c_int {
    answer(request, |client, to| Ok(client.reply(to, pointer::bytes(payload, payload_len, "payload")?)?))
}

/// Answers a call with what `reply` says of payload, parts, descriptors and payload type; its destination,
/// cookie_reply and priority are taken from the request.
///
/// Returns as kdbus_rt_reply; -EINVAL if `reply` has a destination.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_reply_with(request: Option<&Message>, reply: Option<&Outgoing>) -> c_int {
    answer(request, |client, to| {
        let reply = reply.ok_or(Refusal::null("reply"))?;
        if !reply.name.is_null() || !reply.topic.is_null() || reply.id != 0 || reply.cookie_reply != 0 {
            return Err(Refusal::invalid("reply", "has a destination of its own").into());
        }
        let reply = Outgoing { id: to.id, cookie_reply: to.cookie, priority: to.priority, ..*reply };
        reply.build(|message| Ok(client.send(message).map(|_| ())?))
    })
}

/// Answers a call with an error: `code` for programs (KDBUS_RT_ERROR_..., or from 256 on the service's own), and
/// `text` for people, of which at most 91 bytes are carried; NULL is none.
///
/// Returns as kdbus_rt_reply.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_reply_error(request: Option<&Message>, code: u32, text: *const c_char) -> c_int {
    answer(request, |client, to| {
        let text = pointer::text(text, "text")?.unwrap_or_default();
        Ok(client.reply_error(to, &ErrorReply::new(code, text))?)
    })
}

/// Makes a sealed memfd of `len` bytes, with one copy, to be sent as a part.
///
/// Returns the descriptor, which is the caller's to close, or a negative error: -EINVAL for no bytes, or the
/// system's; kdbus_rt_error(NULL) says more.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_memfd(bytes: *const c_void, len: usize) -> c_int {
    let made = pointer::bytes(bytes, len, "bytes").and_then(|bytes| {
        if bytes.is_empty() {
            return Err(Refusal::invalid("bytes", "are none, and a memfd without bytes cannot be sent"));
        }
        SealedMemfd::new(bytes).map_err(|error| Refusal {
            errno: u32::try_from(error.raw_os_error()).ok().and_then(Errno::from_raw).unwrap_or(Errno::EIO),
            what: "a memfd",
            why: "could not be made",
        })
    });
    match made {
        Ok(memfd) => OwnedFd::from(memfd).into_raw_fd(),
        Err(error) => keep(None, &error.into()),
    }
}

const _: () = assert!(
    KDBUS_RT_ERROR_UNKNOWN_METHOD == ErrorReply::UNKNOWN_METHOD
        && KDBUS_RT_ERROR_FAILED == ErrorReply::FAILED
        && KDBUS_RT_ERROR_INVALID == ErrorReply::INVALID
        && KDBUS_RT_ERROR_NOT_FOUND == ErrorReply::NOT_FOUND
        && KDBUS_RT_ERROR_DENIED == ErrorReply::DENIED
        && KDBUS_RT_ERROR_BUSY == ErrorReply::BUSY
        && KDBUS_RT_ERROR_DROPPED == ErrorReply::DROPPED
);
