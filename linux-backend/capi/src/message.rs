//! What is in a received message.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::{c_char, c_int, c_void};
use core::mem::MaybeUninit;
use std::boxed::Box;

use kdbus_core::client::{Delivery, Notification as Core, ReceivedPart, Topic};
use kdbus_linux::local::LocalTransport;
use rustix::fd::{AsRawFd, IntoRawFd};

use crate::error::{Error, Refusal, keep};
use crate::held::Message;
use crate::names::{KDBUS_RT_NAME_SIZE, name_field};
use crate::pointer;
use crate::recv::kind;
use crate::send::{KDBUS_RT_PART_BYTES, KDBUS_RT_PART_MEMFD, KDBUS_RT_PART_ZEROS, Part};

/// Announcement: a name got its first owner.
pub const KDBUS_RT_NOTE_NAME_ADD: u32 = 1;
/// Announcement: a name lost its last owner.
pub const KDBUS_RT_NOTE_NAME_REMOVE: u32 = 2;
/// Announcement: a name moved to another connection.
pub const KDBUS_RT_NOTE_NAME_CHANGE: u32 = 3;
/// Announcement: a connection appeared.
pub const KDBUS_RT_NOTE_ID_ADD: u32 = 4;
/// Announcement: a connection vanished.
pub const KDBUS_RT_NOTE_ID_REMOVE: u32 = 5;
/// Announcement: an awaited reply did not come in time.
pub const KDBUS_RT_NOTE_REPLY_TIMEOUT: u32 = 6;
/// Announcement: an awaited reply can never come.
pub const KDBUS_RT_NOTE_REPLY_DEAD: u32 = 7;

/// What the bus announces.
#[repr(C)]
#[derive(Debug)]
pub struct Notification {
    /// KDBUS_RT_NOTE_...
    pub kind: u32,
    /// 0.
    pub reserved: u32,
    /// The connection of an id; the former owner of a name, 0 if there was none.
    pub old_id: u64,
    /// What the connection was made with, or how it held the name.
    pub old_flags: u64,
    /// The new owner of a name, 0 if there is none; the connection that appeared.
    pub new_id: u64,
    /// What the connection was made with, or how it holds the name.
    pub new_flags: u64,
    /// Cookie of the call whose reply does not come.
    pub cookie: u64,
    /// The name with a NUL; empty without one.
    pub name: [c_char; KDBUS_RT_NAME_SIZE],
}

type Received<'m> = &'m Delivery<'static, LocalTransport>;

fn delivery(message: Option<&Message>) -> Option<Received<'_>> {
    message?.delivery()
}

/// Runs a question to a message; the number to return.
pub(crate) fn ask(message: Option<&Message>, run: impl FnOnce(Received<'_>) -> Result<(), Error>) -> c_int {
    match message.and_then(|message| Some((message.bus()?, message.delivery()?))) {
        Some((bus, delivery)) => bus.finish(run(delivery)),
        None => keep(None, &Refusal::null("message").into()),
    }
}

/// Gives a message back: its bytes to the pool, its descriptors to the system, its place to the handle. Nothing
/// that it gave out may be used any more, but descriptors that were taken. NULL does nothing.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_free(message: Option<Box<Message>>) {
    if let Some(message) = message {
        message.free();
    }
}

/// What the message is: KDBUS_RT_KIND_... KDBUS_RT_KIND_PLAIN for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_kind(message: Option<&Message>) -> u32 {
    delivery(message).map_or(0, |message| kind(message.kind()))
}

/// The sending connection; 0 is the bus itself, or NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_sender(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::sender)
}

/// Where it was sent: a connection, 0 for a name alone, KDBUS_RT_ANY for everybody. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_destination(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::destination)
}

/// The sender's number for the message; of a signal, the hash of its topic. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_cookie(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::cookie)
}

/// The cookie that it answers; 0 if it is no reply, or for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_cookie_reply(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::cookie_reply)
}

/// Until when the caller waits; 0 if it is no call, or for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_deadline(message: Option<&Message>) -> u64 {
    delivery(message).and_then(Delivery::deadline).map_or(0, |at| at.as_nanos())
}

/// How urgent it is: the lowest value is the most urgent. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_priority(message: Option<&Message>) -> i64 {
    delivery(message).map_or(0, Delivery::priority)
}

/// What kind of payload it has, by the sender's choice; 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_payload_type(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::payload_type)
}

/// Whether it is a signal about `topic`: 1 or 0. 0 too for NULL and for what is no topic.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_is_about(message: Option<&Message>, topic: *const c_char) -> c_int {
    let topic = pointer::text(topic, "topic").ok().flatten().and_then(|topic| Topic::parse(topic).ok());
    match (delivery(message), topic) {
        (Some(message), Some(topic)) => message.is_about(topic).into(),
        _ => 0,
    }
}

/// The payload, if the sender gave it as bytes only; else the first run of bytes among its parts. Its length is
/// written to `len`, which may be NULL. The bytes belong to the message and are only to be read; they are aligned
/// to 8.
///
/// Returns NULL without bytes, and for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_payload(
    message: Option<&Message>,
    len: Option<&mut MaybeUninit<usize>>,
) -> *const c_void {
    let bytes = delivery(message).map_or(&[][..], Delivery::payload);
    if let Some(len) = len {
        len.write(bytes.len());
    }
    if bytes.is_empty() { core::ptr::null() } else { bytes.as_ptr().cast() }
}

/// Bytes of the whole payload: runs of bytes, zeros and memfd ranges. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_payload_len(message: Option<&Message>) -> u64 {
    delivery(message).map_or(0, Delivery::payload_len)
}

/// The part of the payload at `index`, as it was sent. Costs a pass over the parts before it.
///
/// Returns 0, -ENODATA behind the last one, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_part(
    message: Option<&Message>,
    index: usize,
    part: Option<&mut MaybeUninit<Part>>,
) -> c_int {
    ask(message, |message| {
        let place = part.ok_or(Refusal::null("part"))?;
        let none = Part { kind: 0, fd: -1, data: core::ptr::null(), start: 0, size: 0 };
        let part = match message.parts().nth(index) {
            Some(ReceivedPart::Bytes(bytes)) => Part {
                kind: KDBUS_RT_PART_BYTES,
                data: bytes.as_ptr().cast(),
                size: bytes.len() as u64,
                ..none
            },
            Some(ReceivedPart::Zeros(size)) => Part { kind: KDBUS_RT_PART_ZEROS, size, ..none },
            Some(ReceivedPart::Memfd { fd, start, size }) => Part {
                kind: KDBUS_RT_PART_MEMFD,
                fd: fd.map_or(-1, |fd| fd.as_raw_fd()),
                start,
                size,
                ..none
            },
            None => return Err(missing("the message", "has no such part")),
        };
        place.write(part);
        Ok(())
    })
}

/// How many descriptors were passed, whether or not they could be installed. 0 for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_fd_count(message: Option<&Message>) -> usize {
    delivery(message).map_or(0, Delivery::fd_count)
}

/// Takes the passed descriptor at `index` out of the message.
///
/// Returns the descriptor, which is the caller's to close; -ENODATA if there is none, if it was taken, or if it
/// could not be installed here; or -EINVAL for NULL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_take_fd(message: Option<&mut Message>, index: usize) -> c_int {
    take(message, false, index)
}

/// Takes the memfd at `index` among the memfds of the payload out of the message.
///
/// Returns as kdbus_rt_message_take_fd.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_take_memfd(message: Option<&mut Message>, index: usize) -> c_int {
    take(message, true, index)
}

fn take(message: Option<&mut Message>, memfd: bool, index: usize) -> c_int {
    let Some(message) = message else { return keep(None, &Refusal::null("message").into()) };
    match message.take(memfd, index) {
        Some(fd) => fd.into_raw_fd(),
        None => ask(Some(message), |_| Err(missing("the message", "has no such descriptor"))),
    }
}

/// What the bus announces, if the message is KDBUS_RT_KIND_NOTIFICATION.
///
/// Returns 0, -ENODATA if it is none, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_notification(
    message: Option<&Message>,
    notification: Option<&mut MaybeUninit<Notification>>,
) -> c_int {
    ask(message, |message| {
        let place = notification.ok_or(Refusal::null("notification"))?;
        let none = Notification {
            kind: 0,
            reserved: 0,
            old_id: 0,
            old_flags: 0,
            new_id: 0,
            new_flags: 0,
            cookie: 0,
            name: [0; KDBUS_RT_NAME_SIZE],
        };
        let notification = match message.notification() {
            Some(Core::NameAdd { name, owner, flags }) => Notification {
                kind: KDBUS_RT_NOTE_NAME_ADD,
                name: name_field(name),
                new_id: owner,
                new_flags: flags.bits(),
                ..none
            },
            Some(Core::NameRemove { name, owner, flags }) => Notification {
                kind: KDBUS_RT_NOTE_NAME_REMOVE,
                name: name_field(name),
                old_id: owner,
                old_flags: flags.bits(),
                ..none
            },
            Some(Core::NameChange { name, old, old_flags, new, new_flags }) => Notification {
                kind: KDBUS_RT_NOTE_NAME_CHANGE,
                name: name_field(name),
                old_id: old,
                old_flags: old_flags.bits(),
                new_id: new,
                new_flags: new_flags.bits(),
                ..none
            },
            Some(Core::IdAdd { id, flags }) => {
                Notification { kind: KDBUS_RT_NOTE_ID_ADD, new_id: id, new_flags: flags.bits(), ..none }
            }
            Some(Core::IdRemove { id, flags }) => {
                Notification { kind: KDBUS_RT_NOTE_ID_REMOVE, old_id: id, old_flags: flags.bits(), ..none }
            }
            Some(Core::ReplyTimeout { cookie }) => {
                Notification { kind: KDBUS_RT_NOTE_REPLY_TIMEOUT, cookie, ..none }
            }
            Some(Core::ReplyDead { cookie }) => {
                Notification { kind: KDBUS_RT_NOTE_REPLY_DEAD, cookie, ..none }
            }
            _ => return Err(missing("the message", "announces nothing that is known here")),
        };
        place.write(notification);
        Ok(())
    })
}

pub(crate) fn missing(what: &'static str, why: &'static str) -> Error {
    Refusal { errno: crate::error::ENODATA, what, why }.into()
}
