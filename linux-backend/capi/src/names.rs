//! Well-known names, and who is on the bus.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::{c_char, c_int};
use core::mem::MaybeUninit;

use kdbus_core::Instant;
use kdbus_core::abi::{AttachFlags, ListFlags, NameFlags};
use kdbus_core::client::QueryError;

use crate::bus::{Bus, with};
use crate::error::{Error, Refusal};
use crate::pointer;
use crate::send::well_known;

/// Name flag: take the name over if its owner allows that (given).
pub const KDBUS_RT_NAME_REPLACE: u64 = 0x1;
/// Name flag: others may take the name over (given, reported).
pub const KDBUS_RT_NAME_ALLOW_REPLACEMENT: u64 = 0x2;
/// Name flag: wait if the name is taken (given, reported).
pub const KDBUS_RT_NAME_QUEUE: u64 = 0x4;
/// Name flag: waits for the name (reported).
pub const KDBUS_RT_NAME_IN_QUEUE: u64 = 0x8;
/// Name flag: an activator holds the name (reported).
pub const KDBUS_RT_NAME_ACTIVATOR: u64 = 0x10;
/// Name flag: owns the name (reported).
pub const KDBUS_RT_NAME_PRIMARY: u64 = 0x20;
/// Name flag: this very request acquired the name or a place in its queue (reported).
pub const KDBUS_RT_NAME_ACQUIRED: u64 = 0x40;

/// List flag: connections of which no name is listed.
pub const KDBUS_RT_LIST_UNIQUE: u64 = 0x1;
/// List flag: names that an ordinary connection owns.
pub const KDBUS_RT_LIST_NAMES: u64 = 0x2;
/// List flag: names that an activator holds.
pub const KDBUS_RT_LIST_ACTIVATORS: u64 = 0x4;
/// List flag: connections that wait for a name.
pub const KDBUS_RT_LIST_QUEUED: u64 = 0x8;

/// Bytes of the longest well-known name with its NUL.
pub const KDBUS_RT_NAME_SIZE: usize = 256;

/// One line of a list: a connection with one of its names.
#[repr(C)]
#[derive(Debug)]
pub struct Peer {
    /// The connection.
    pub id: u64,
    /// What it was made with: 1 accepts descriptors, 2 is an activator, 4 a policy holder, 8 a monitor.
    pub flags: u64,
    /// How it stands to the name (KDBUS_RT_NAME_...); 0 without one.
    pub name_flags: u64,
    /// The name with a NUL; empty without one.
    pub name: [c_char; KDBUS_RT_NAME_SIZE],
}

/// `text` with a NUL, cut if it is too long. No name is.
pub(crate) fn name_field(text: &str) -> [c_char; KDBUS_RT_NAME_SIZE] {
    let mut field = [0; KDBUS_RT_NAME_SIZE];
    for (place, byte) in field.iter_mut().take(KDBUS_RT_NAME_SIZE - 1).zip(text.bytes()) {
        *place = byte as c_char;
    }
    field
}

fn required<'a>(name: *const c_char) -> Result<&'a str, Error> {
    Ok(pointer::text(name, "name")?.ok_or(Refusal::null("name"))?)
}

/// Asks for a name. `flags` may have KDBUS_RT_NAME_REPLACE, KDBUS_RT_NAME_ALLOW_REPLACEMENT and
/// KDBUS_RT_NAME_QUEUE. How the connection stands to the name then is written to `standing` unless that is NULL:
/// with KDBUS_RT_NAME_PRIMARY it owns the name, with KDBUS_RT_NAME_IN_QUEUE it waits.
///
/// Returns 0, also if it waits; -EEXIST if another owns the name, -EPERM if policy denies it, -E2BIG with too many
/// names, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_name_acquire(
    bus: Option<&mut Bus>,
    name: *const c_char,
    flags: u64,
    standing: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let name = well_known(required(name)?)?;
        let acquired = bus.client().acquire(name, NameFlags::from_bits_retain(flags))?;
        if let Some(standing) = standing {
            standing.write(acquired.flags.bits());
        }
        Ok(())
    })
}

/// Gives a name up, or the place in its queue.
///
/// Returns 0; -ESRCH if nobody owns it, -EADDRINUSE if others do, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_name_release(bus: Option<&mut Bus>, name: *const c_char) -> c_int {
    with(bus, |bus| Ok(bus.client().release(well_known(required(name)?)?)?))
}

/// Who owns a name, or holds it as an activator; the id is written to `owner` unless that is NULL.
///
/// Returns 0; -ESRCH if nobody does, -EXFULL if the pool has no room for the answer, -ECONNRESET if the bus is
/// gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_name_owner(
    bus: Option<&mut Bus>,
    name: *const c_char,
    owner: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let info = bus.client().name_info(well_known(required(name)?)?, AttachFlags::empty())?;
        if let Some(owner) = owner {
            owner.write(info.id());
        }
        Ok(())
    })
}

/// Waits until somebody owns `name`, or holds it as an activator; the id is written to `owner` unless that is
/// NULL. Messages that arrive meanwhile are kept for later receives.
///
/// Returns 0; -ETIMEDOUT at the deadline, -EINTR after a signal, -ENOBUFS if more messages arrived than are kept,
/// -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_name_wait(
    bus: Option<&mut Bus>,
    name: *const c_char,
    deadline: u64,
    owner: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    with(bus, |bus| {
        let name = well_known(required(name)?)?;
        let id = bus.client().wait_for_name_blocking(name, Instant::from_nanos(deadline))?;
        if let Some(owner) = owner {
            owner.write(id);
        }
        Ok(())
    })
}

/// Lists connections and names as they are at this moment, in no order. `peers` has room for `capacity` lines and
/// may be NULL with 0.
///
/// Returns how many lines there are, of which the first `capacity` are written; -EXFULL if the pool has no room
/// for the answer, -ECONNRESET if the bus is gone, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_list(
    bus: Option<&mut Bus>,
    flags: u64,
    peers: *mut Peer,
    capacity: usize,
) -> c_int {
    let mut count = 0;
    let code = with(bus, |bus| {
        let peers = pointer::room(peers, capacity, "peers")?;
        let flags = ListFlags::from_bits(flags).ok_or(QueryError::Invalid)?;
        let listing = bus.client().list(flags)?;
        for (index, peer) in listing.iter().enumerate() {
            if let Some(place) = peers.get_mut(index) {
                let (name_flags, name) = peer.metadata.names().next().unwrap_or((NameFlags::empty(), ""));
                place.write(Peer {
                    id: peer.id,
                    flags: peer.flags.bits(),
                    name_flags: name_flags.bits(),
                    name: name_field(name),
                });
            }
            count = c_int::try_from(index + 1).unwrap_or(c_int::MAX);
        }
        Ok(())
    });
    if code < 0 { code } else { count }
}

const _: () = assert!(
    KDBUS_RT_NAME_REPLACE == NameFlags::REPLACE_EXISTING.bits()
        && KDBUS_RT_NAME_ALLOW_REPLACEMENT == NameFlags::ALLOW_REPLACEMENT.bits()
        && KDBUS_RT_NAME_QUEUE == NameFlags::QUEUE.bits()
        && KDBUS_RT_NAME_IN_QUEUE == NameFlags::IN_QUEUE.bits()
        && KDBUS_RT_NAME_ACTIVATOR == NameFlags::ACTIVATOR.bits()
        && KDBUS_RT_NAME_PRIMARY == NameFlags::PRIMARY.bits()
        && KDBUS_RT_NAME_ACQUIRED == NameFlags::ACQUIRED.bits()
        && KDBUS_RT_LIST_UNIQUE == ListFlags::UNIQUE.bits()
        && KDBUS_RT_LIST_NAMES == ListFlags::NAMES.bits()
        && KDBUS_RT_LIST_ACTIVATORS == ListFlags::ACTIVATORS.bits()
        && KDBUS_RT_LIST_QUEUED == ListFlags::QUEUED.bits()
        && KDBUS_RT_NAME_SIZE == kdbus_core::WELL_KNOWN_NAME_MAX + 1
);
