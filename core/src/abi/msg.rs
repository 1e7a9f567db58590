//! The message header and the records that items hold.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `src_id` of messages that the bus itself sends.
pub const SRC_ID_KERNEL: u64 = 0;
/// `dst_id` of messages that go to the name in their `DST_NAME` item.
pub const DST_ID_NAME: u64 = 0;
/// `dst_id` of broadcasts.
pub const DST_ID_BROADCAST: u64 = u64::MAX;
/// The id in a match rule that stands for every connection.
pub const MATCH_ID_ANY: u64 = u64::MAX;
/// `payload_type` of notifications; refused from senders.
pub const PAYLOAD_KERNEL: u64 = 0;
/// `payload_type` of D-Bus messages.
pub const PAYLOAD_DBUS: u64 = 0x4442_7573_4442_7573;
/// Offset that a received run of zeros carries: there are no bytes for it in the slice.
pub const OFFSET_ZEROS: u64 = u64::MAX;

/// Declares records of the UAPI with their size and the offset of every field checked.
macro_rules! records {
    ($($(#[$meta:meta])* $name:ident($size:literal) { $($(#[$doc:meta])* $field:ident: $type:ty = $at:literal,)* })*) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[cfg_attr(feature = "defmt", derive(defmt::Format))]
            #[repr(C)]
            pub struct $name { $($(#[$doc])* pub $field: $type,)* }

            const _: () = assert!(size_of::<$name>() == $size $(&& offset_of!($name, $field) == $at)*);
        )*
    };
}
pub(super) use records;

records! {
    /// The header of every message (`kdbus_msg`); items follow.
    Msg(64) {
        /// Bytes of header and items; when received also of the metadata, never of copied payload.
        size: u64 = 0,
        /// [`MsgFlags`](super::MsgFlags).
        flags: u64 = 8,
        /// The lowest value is the most urgent.
        priority: i64 = 16,
        /// Receiving connection, [`DST_ID_NAME`] or [`DST_ID_BROADCAST`].
        dst_id: u64 = 24,
        /// Sending connection; 0 or the own id when sent.
        src_id: u64 = 32,
        /// Kind of payload; anything but [`PAYLOAD_KERNEL`] is the sender's choice.
        payload_type: u64 = 40,
        /// The sender's number for this message.
        cookie: u64 = 48,
        /// Of a call: the deadline, nanoseconds of `CLOCK_MONOTONIC`. Of a reply: the cookie it answers.
        timeout_or_reply: u64 = 56,
    }

    /// Where a received message lies in the pool (`kdbus_msg_info`).
    MsgInfo(24) {
        /// Offset of the slice, or the pool's size if there is none.
        offset: u64 = 0,
        /// Bytes of the slice: message, metadata and copied payload.
        msg_size: u64 = 8,
        /// [`RecvReturnFlags`](super::RecvReturnFlags).
        return_flags: u64 = 16,
    }

    /// One record of LIST, CONN_INFO or BUS_CREATOR_INFO (`kdbus_info`); items follow.
    Info(24) {
        /// Bytes of this record, its items and padding.
        size: u64 = 0,
        /// Connection or bus id.
        id: u64 = 8,
        /// Connection or bus flags.
        flags: u64 = 16,
    }

    /// An id and flags in a notification or match rule (`kdbus_notify_id_change`).
    IdChange(16) {
        /// Connection id.
        id: u64 = 0,
        /// HELLO flags in `ID_*`, name flags in `NAME_*`.
        flags: u64 = 8,
    }

    /// User and group ids (`kdbus_creds`).
    Creds(64) {
        /// Real user.
        uid: u64 = 0,
        /// Effective user.
        euid: u64 = 8,
        /// Saved user.
        suid: u64 = 16,
        /// File system user.
        fsuid: u64 = 24,
        /// Real group.
        gid: u64 = 32,
        /// Effective group.
        egid: u64 = 40,
        /// Saved group.
        sgid: u64 = 48,
        /// File system group.
        fsgid: u64 = 56,
    }

    /// Process ids (`kdbus_pids`).
    Pids(24) {
        /// Process.
        pid: u64 = 0,
        /// Thread.
        tid: u64 = 8,
        /// Parent process.
        ppid: u64 = 16,
    }

    /// The fixed part of capability sets (`kdbus_caps`); four sets of `u32` words follow.
    Caps(4) {
        /// Highest capability that the kernel knows.
        last_cap: u32 = 0,
    }

    /// Audit session (`kdbus_audit`).
    Audit(8) {
        /// Session.
        sessionid: u32 = 0,
        /// Login user.
        loginuid: u32 = 4,
    }

    /// When a message was sent (`kdbus_timestamp`).
    Timestamp(24) {
        /// Number of the message on its bus; the same for every receiver.
        seqnum: u64 = 0,
        /// Nanoseconds of `CLOCK_MONOTONIC`.
        monotonic_ns: u64 = 8,
        /// Nanoseconds of `CLOCK_REALTIME`.
        realtime_ns: u64 = 16,
    }

    /// A run of payload (`kdbus_vec`).
    Vec(16) {
        /// Bytes.
        size: u64 = 0,
        /// Sent: address of the bytes, 0 for a run of zeros. Received: offset from the message's start.
        address: u64 = 8,
    }

    /// Parameters of a bus' bloom filters (`kdbus_bloom_parameter`).
    BloomParameter(16) {
        /// Bytes of a filter, a multiple of 8.
        size: u64 = 0,
        /// Number of hash functions, at least 1; the bus does not use it itself.
        n_hash: u64 = 8,
    }

    /// A range of a sealed memfd (`kdbus_memfd`).
    Memfd(24) {
        /// First byte.
        start: u64 = 0,
        /// Bytes.
        size: u64 = 8,
        /// Descriptor.
        fd: i32 = 16,
        /// Unused.
        pad: u32 = 20,
    }

    /// One access rule (`kdbus_policy_access`).
    PolicyAccess(24) {
        /// Whom it covers: 1 a user, 2 a group, 3 everybody.
        kind: u64 = 0,
        /// What it grants: 0 see, 1 talk, 2 own.
        access: u64 = 8,
        /// The uid or gid.
        id: u64 = 16,
    }
}

impl Msg {
    /// Bytes of the header.
    pub const SIZE: usize = size_of::<Self>();

    /// Whether a deadline and a reply belong to this message.
    #[must_use]
    pub const fn expects_reply(&self) -> bool {
        self.flags & super::MsgFlags::EXPECT_REPLY.bits() != 0
    }

    /// The cookie that this message answers, or 0 if it is no reply.
    #[must_use]
    pub const fn cookie_reply(&self) -> u64 {
        if self.expects_reply() { 0 } else { self.timeout_or_reply }
    }

    /// The deadline of a call, nanoseconds of `CLOCK_MONOTONIC`, or 0 if it is no call.
    #[must_use]
    pub const fn timeout_ns(&self) -> u64 {
        if self.expects_reply() { self.timeout_or_reply } else { 0 }
    }
}
