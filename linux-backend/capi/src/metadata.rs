//! What the bus tells about the sender of a message.
#![allow(unsafe_code, reason = "exports names; there is no unsafe block")]

use core::ffi::{c_char, c_int};
use core::mem::MaybeUninit;

use kdbus_core::abi::AttachFlags;

use crate::error::{Error, Refusal};
use crate::held::Message;
use crate::message::{ask, missing};
use crate::pointer;

/// Metadata: times and the number of the message on its bus.
pub const KDBUS_RT_ATTACH_TIMESTAMP: u64 = 0x1;
/// Metadata: user and group ids.
pub const KDBUS_RT_ATTACH_CREDS: u64 = 0x2;
/// Metadata: process, thread and parent ids.
pub const KDBUS_RT_ATTACH_PIDS: u64 = 0x4;
/// Metadata: supplementary groups.
pub const KDBUS_RT_ATTACH_AUXGROUPS: u64 = 0x8;
/// Metadata: names held.
pub const KDBUS_RT_ATTACH_NAMES: u64 = 0x10;
/// Metadata: name of the thread.
pub const KDBUS_RT_ATTACH_TID_COMM: u64 = 0x20;
/// Metadata: name of the process.
pub const KDBUS_RT_ATTACH_PID_COMM: u64 = 0x40;
/// Metadata: path of the executable.
pub const KDBUS_RT_ATTACH_EXE: u64 = 0x80;
/// Metadata: command line.
pub const KDBUS_RT_ATTACH_CMDLINE: u64 = 0x100;
/// Metadata: control group.
pub const KDBUS_RT_ATTACH_CGROUP: u64 = 0x200;
/// Metadata: capability sets.
pub const KDBUS_RT_ATTACH_CAPS: u64 = 0x400;
/// Metadata: security label.
pub const KDBUS_RT_ATTACH_SECLABEL: u64 = 0x800;
/// Metadata: audit session and login user.
pub const KDBUS_RT_ATTACH_AUDIT: u64 = 0x1000;
/// Metadata: what the connection called itself.
pub const KDBUS_RT_ATTACH_DESCRIPTION: u64 = 0x2000;

/// Text: name of the thread.
pub const KDBUS_RT_TEXT_THREAD: u32 = 0;
/// Text: name of the process.
pub const KDBUS_RT_TEXT_PROCESS: u32 = 1;
/// Text: path of the executable.
pub const KDBUS_RT_TEXT_EXE: u32 = 2;
/// Text: first argument of the command line.
pub const KDBUS_RT_TEXT_CMDLINE: u32 = 3;
/// Text: control group.
pub const KDBUS_RT_TEXT_CGROUP: u32 = 4;
/// Text: security label.
pub const KDBUS_RT_TEXT_SECLABEL: u32 = 5;
/// Text: what the connection called itself.
pub const KDBUS_RT_TEXT_DESCRIPTION: u32 = 6;
/// Text: the name that the message was sent to. It is there without being asked for.
pub const KDBUS_RT_TEXT_DESTINATION: u32 = 7;

/// When a message was sent.
#[repr(C)]
#[derive(Debug)]
pub struct Timestamp {
    /// Number of the message on its bus; the same for every receiver.
    pub seqnum: u64,
    /// Nanoseconds of CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// Nanoseconds of CLOCK_REALTIME.
    pub realtime_ns: u64,
}

/// User and group ids of a sender.
#[repr(C)]
#[derive(Debug)]
pub struct Creds {
    /// Real user.
    pub uid: u64,
    /// Effective user.
    pub euid: u64,
    /// Saved user.
    pub suid: u64,
    /// File system user.
    pub fsuid: u64,
    /// Real group.
    pub gid: u64,
    /// Effective group.
    pub egid: u64,
    /// Saved group.
    pub sgid: u64,
    /// File system group.
    pub fsgid: u64,
}

/// Process ids of a sender; 0 for one that cannot be seen from here.
#[repr(C)]
#[derive(Debug)]
pub struct Pids {
    /// Process.
    pub pid: u64,
    /// Thread.
    pub tid: u64,
    /// Parent process.
    pub ppid: u64,
}

fn not_given() -> Error {
    missing("the message", "has no such metadata; ask for it with attach_recv")
}

/// When the message was sent. Needs KDBUS_RT_ATTACH_TIMESTAMP.
///
/// Returns 0, -ENODATA if the message has it not, or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_timestamp(
    message: Option<&Message>,
    timestamp: Option<&mut MaybeUninit<Timestamp>>,
) -> c_int {
    ask(message, |message| {
        let place = timestamp.ok_or(Refusal::null("timestamp"))?;
        let of = message.metadata().timestamp().ok_or_else(not_given)?;
        place.write(Timestamp {
            seqnum: of.seqnum,
            monotonic_ns: of.monotonic_ns,
            realtime_ns: of.realtime_ns,
        });
        Ok(())
    })
}

/// User and group ids of the sender. Needs KDBUS_RT_ATTACH_CREDS.
///
/// Returns as kdbus_rt_message_timestamp.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_creds(
    message: Option<&Message>,
    creds: Option<&mut MaybeUninit<Creds>>,
) -> c_int {
    ask(message, |message| {
        let place = creds.ok_or(Refusal::null("creds"))?;
        let of = message.metadata().creds().ok_or_else(not_given)?;
        place.write(Creds {
            uid: of.uid,
            euid: of.euid,
            suid: of.suid,
            fsuid: of.fsuid,
            gid: of.gid,
            egid: of.egid,
            sgid: of.sgid,
            fsgid: of.fsgid,
        });
        Ok(())
    })
}

/// Process ids of the sender. Needs KDBUS_RT_ATTACH_PIDS.
///
/// Returns as kdbus_rt_message_timestamp.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_pids(
    message: Option<&Message>,
    pids: Option<&mut MaybeUninit<Pids>>,
) -> c_int {
    ask(message, |message| {
        let place = pids.ok_or(Refusal::null("pids"))?;
        let of = message.metadata().pids().ok_or_else(not_given)?;
        place.write(Pids { pid: of.pid, tid: of.tid, ppid: of.ppid });
        Ok(())
    })
}

/// Copies a text about the sender (KDBUS_RT_TEXT_...) into `buffer` of `size` bytes, cut if it does not fit, with a
/// NUL unless `size` is 0; `buffer` may be NULL then. Texts come from programs and file names: nothing makes them
/// UTF-8.
///
/// Returns the bytes of the whole text without its NUL, like snprintf; -ENODATA if the message has it not, or
/// -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn kdbus_rt_message_text(
    message: Option<&Message>,
    text: u32,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    let mut len = 0;
    let code = ask(message, |message| {
        let buffer = pointer::room(buffer, size, "buffer")?;
        let metadata = message.metadata();
        let bytes = match text {
            KDBUS_RT_TEXT_THREAD => metadata.thread_name(),
            KDBUS_RT_TEXT_PROCESS => metadata.process_name(),
            KDBUS_RT_TEXT_EXE => metadata.executable(),
            KDBUS_RT_TEXT_CMDLINE => metadata.command_line(),
            KDBUS_RT_TEXT_CGROUP => metadata.cgroup(),
            KDBUS_RT_TEXT_SECLABEL => metadata.security_label(),
            KDBUS_RT_TEXT_DESCRIPTION => metadata.description().map(str::as_bytes),
            KDBUS_RT_TEXT_DESTINATION => message.destination_name().map(str::as_bytes),
            _ => return Err(Refusal::invalid("text", "is of an unknown kind").into()),
        };
        let bytes = bytes.ok_or_else(not_given)?;
        len = c_int::try_from(bytes.len()).unwrap_or(c_int::MAX);
        if let Some((end, places)) = buffer.split_last_mut() {
            let mut rest = bytes.iter();
            for (place, byte) in places.iter_mut().zip(rest.by_ref()) {
                place.write(*byte as c_char);
            }
            if let Some(place) = places.get_mut(bytes.len()) {
                place.write(0);
            }
            end.write(0);
        }
        Ok(())
    });
    if code < 0 { code } else { len }
}

const _: () = assert!(
    KDBUS_RT_ATTACH_TIMESTAMP == AttachFlags::TIMESTAMP.bits()
        && KDBUS_RT_ATTACH_CREDS == AttachFlags::CREDS.bits()
        && KDBUS_RT_ATTACH_PIDS == AttachFlags::PIDS.bits()
        && KDBUS_RT_ATTACH_AUXGROUPS == AttachFlags::AUXGROUPS.bits()
        && KDBUS_RT_ATTACH_NAMES == AttachFlags::NAMES.bits()
        && KDBUS_RT_ATTACH_TID_COMM == AttachFlags::TID_COMM.bits()
        && KDBUS_RT_ATTACH_PID_COMM == AttachFlags::PID_COMM.bits()
        && KDBUS_RT_ATTACH_EXE == AttachFlags::EXE.bits()
        && KDBUS_RT_ATTACH_CMDLINE == AttachFlags::CMDLINE.bits()
        && KDBUS_RT_ATTACH_CGROUP == AttachFlags::CGROUP.bits()
        && KDBUS_RT_ATTACH_CAPS == AttachFlags::CAPS.bits()
        && KDBUS_RT_ATTACH_SECLABEL == AttachFlags::SECLABEL.bits()
        && KDBUS_RT_ATTACH_AUDIT == AttachFlags::AUDIT.bits()
        && KDBUS_RT_ATTACH_DESCRIPTION == AttachFlags::CONN_DESCRIPTION.bits()
);
