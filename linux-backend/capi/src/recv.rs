//! Receiving.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::c_int;
use core::mem::MaybeUninit;
use std::boxed::Box;

use kdbus_core::Instant;
use kdbus_core::abi::Errno;
use kdbus_core::client::{Kind, block_on};

use crate::bus::{Bus, with};
use crate::error::{Error, Refusal};
use crate::held::Message;

/// Receive flag: the most urgent message whose priority is at most `priority`, of equal ones the first. Without
/// it, the message that arrived first, and `priority` does not count.
pub const KDBUS_RT_RECV_PRIORITY: u64 = 4;

/// Kind of a message: it wants nothing back.
pub const KDBUS_RT_KIND_PLAIN: u32 = 0;
/// Kind of a message: a call, whose sender waits for kdbus_rt_reply.
pub const KDBUS_RT_KIND_CALL: u32 = 1;
/// Kind of a message: the reply to one that was sent with KDBUS_RT_EXPECT_REPLY.
pub const KDBUS_RT_KIND_REPLY: u32 = 2;
/// Kind of a message: a signal.
pub const KDBUS_RT_KIND_SIGNAL: u32 = 3;
/// Kind of a message: an announcement of the bus itself; see kdbus_rt_message_notification.
pub const KDBUS_RT_KIND_NOTIFICATION: u32 = 4;

/// The fixed part of a message that waits.
#[repr(C)]
#[derive(Debug)]
pub struct Head {
    /// The sending connection; 0 is the bus itself.
    pub sender: u64,
    /// The sender's number for the message.
    pub cookie: u64,
    /// How urgent it is: the lowest value is the most urgent.
    pub priority: i64,
    /// KDBUS_RT_KIND_...
    pub kind: u32,
    /// 0.
    pub reserved: u32,
}

/// The kind of a message as C knows it.
pub(crate) const fn kind(kind: Kind) -> u32 {
    match kind {
        Kind::Plain => KDBUS_RT_KIND_PLAIN,
        Kind::Call => KDBUS_RT_KIND_CALL,
        Kind::Reply => KDBUS_RT_KIND_REPLY,
        Kind::Signal => KDBUS_RT_KIND_SIGNAL,
        Kind::Notification => KDBUS_RT_KIND_NOTIFICATION,
    }
}

const EMPTY: Refusal = Refusal { errno: Errno::EAGAIN, what: "no message", why: "waits" };

/// Receives a message, and waits for one until `deadline`; 0 does not wait. `flags` are 0 or
/// KDBUS_RT_RECV_PRIORITY. Taking a message that waits and has no descriptors is no system call.
///
/// On success `*message` is the message, to be given to kdbus_rt_message_free; on failure it is NULL.
///
/// Returns 0; -EAGAIN if there is none and `deadline` is 0; -ETIMEDOUT, -EINTR after a signal, -ENOBUFS if every
/// place for a message is held, -ECONNRESET if the bus is gone, -EOPNOTSUPP, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_recv(
    bus: Option<&mut Bus>,
    flags: u64,
    priority: i64,
    deadline: u64,
    message: Option<&mut MaybeUninit<*mut Message>>,
) -> c_int {
    let mut received = core::ptr::null_mut();
    let wanted = message.is_some();
    let code = with(bus, |bus| {
        if !wanted {
            return Err(Refusal::null("message").into());
        }
        let until = Instant::from_nanos(deadline);
        let taken = Message::receive(bus.shared(), |client| {
            let result = match flags {
                0 if deadline == 0 => return client.try_recv()?.ok_or_else(|| EMPTY.into()),
                KDBUS_RT_RECV_PRIORITY if deadline == 0 => {
                    return client.try_recv_priority(priority)?.ok_or_else(|| EMPTY.into());
                }
                0 => client.recv_blocking(until),
                KDBUS_RT_RECV_PRIORITY => match client.try_recv_priority(priority)? {
                    Some(message) => Ok(message),
                    None => block_on(client, client.recv_priority_until(priority, until))?,
                },
                _ => return Err(Refusal::invalid("flags", "have an unknown bit").into()),
            };
            result.map_err(Error::from)
        })?;
        received = Box::into_raw(taken);
        Ok(())
    });
    if let Some(message) = message {
        message.write(received);
    }
    code
}

/// What the message at the front is, which stays there.
///
/// Returns 0, -EAGAIN if none waits, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_peek(bus: Option<&mut Bus>, head: Option<&mut MaybeUninit<Head>>) -> c_int {
    with(bus, |bus| {
        let place = head.ok_or(Refusal::null("head"))?;
        let head = bus.client().peek()?.ok_or(EMPTY)?;
        place.write(Head {
            sender: head.sender(),
            cookie: head.cookie(),
            priority: head.priority(),
            kind: kind(head.kind()),
            reserved: 0,
        });
        Ok(())
    })
}

/// Drops the message at the front unread. Who waits for its answer learns that there will be none.
///
/// Returns as kdbus_rt_peek.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_drop(bus: Option<&mut Bus>) -> c_int {
    with(bus, |bus| if bus.client().drop_next()? { Ok(()) } else { Err(EMPTY.into()) })
}

const _: () = assert!(KDBUS_RT_RECV_PRIORITY == kdbus_core::abi::RecvFlags::USE_PRIORITY.bits());
