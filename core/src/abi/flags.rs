//! The flag sets of commands, messages, names and metadata.

use bitflags::bitflags;

/// The bit that turns any command, and a message, into a question about the flags it knows.
pub const FLAG_NEGOTIATE: u64 = 1 << 63;

/// Defines one flag set of the UAPI; with `defmt` it is logged as its raw bits.
macro_rules! flag_set {
    ($(#[doc = $about:literal])* $name:ident { $($(#[doc = $doc:literal])* $flag:ident = $value:literal;)* }) => {
        bitflags! {
            $(#[doc = $about])*
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
            pub struct $name: u64 { $($(#[doc = $doc])* const $flag = $value;)* }
        }

        #[cfg(feature = "defmt")]
        impl defmt::Format for $name {
            fn format(&self, f: defmt::Formatter<'_>) {
                defmt::write!(f, "{=u64:#x}", self.bits());
            }
        }
    };
}

flag_set! {
    /// What a connection is, given at HELLO (`kdbus_hello_flags`).
    HelloFlags {
        /// The connection takes passed descriptors.
        ACCEPT_FD = 0x1;
        /// The connection holds a name in place of a service that is not running yet.
        ACTIVATOR = 0x2;
        /// The connection only carries policy.
        POLICY_HOLDER = 0x4;
        /// The connection receives a copy of all traffic.
        MONITOR = 0x8;
    }
}

flag_set! {
    /// What a message is (`kdbus_msg_flags`).
    MsgFlags {
        /// A method call: a reply is awaited until the deadline.
        EXPECT_REPLY = 0x1;
        /// Fail with `EADDRNOTAVAIL` instead of queueing at an activator.
        NO_AUTO_START = 0x2;
        /// A signal: delivered only through matches.
        SIGNAL = 0x4;
    }
}

flag_set! {
    /// How to send (`kdbus_send_flags`).
    SendFlags {
        /// Wait for the reply.
        SYNC_REPLY = 0x1;
    }
}

flag_set! {
    /// Which message to receive, and how (`kdbus_recv_flags`).
    RecvFlags {
        /// Return the message but keep it queued.
        PEEK = 0x1;
        /// Discard the message.
        DROP = 0x2;
        /// Take the most urgent message if it is at least as urgent as the given priority.
        USE_PRIORITY = 0x4;
    }
}

flag_set! {
    /// What RECV and a received message report (`kdbus_recv_return_flags`).
    RecvReturnFlags {
        /// At least one descriptor could not be installed (in [`MsgInfo`](super::MsgInfo)).
        INCOMPLETE_FDS = 0x1;
        /// Broadcasts were lost since the last receive (in [`CmdRecv`](super::CmdRecv)).
        DROPPED_MSGS = 0x2;
    }
}

flag_set! {
    /// What LIST returns (`kdbus_list_flags`).
    ListFlags {
        /// Connections of which no name is listed.
        UNIQUE = 0x1;
        /// Names that an ordinary connection holds.
        NAMES = 0x2;
        /// Names held through an activator.
        ACTIVATORS = 0x4;
        /// Owners that wait for a name.
        QUEUED = 0x8;
    }
}

flag_set! {
    /// How MATCH_ADD treats earlier matches (`kdbus_cmd_match_flags`).
    MatchFlags {
        /// Remove all own matches with the same cookie first.
        REPLACE = 0x1;
    }
}

flag_set! {
    /// Who may open a new bus or endpoint besides its creator (`kdbus_make_flags`).
    MakeFlags {
        /// The creator's group.
        ACCESS_GROUP = 0x1;
        /// Everybody.
        ACCESS_WORLD = 0x2;
    }
}

flag_set! {
    /// How a name is acquired, and how it is held (`kdbus_name_flags`).
    NameFlags {
        /// Take the name over if its owner allows that (input only).
        REPLACE_EXISTING = 0x1;
        /// Others may take the name over.
        ALLOW_REPLACEMENT = 0x2;
        /// Wait if the name is taken; fall back to waiting when replaced.
        QUEUE = 0x4;
        /// The owner waits for the name.
        IN_QUEUE = 0x8;
        /// The owner is an activator.
        ACTIVATOR = 0x10;
        /// The owner holds the name.
        PRIMARY = 0x20;
        /// This very call acquired the name or a place in its queue (output only).
        ACQUIRED = 0x40;
    }
}

flag_set! {
    /// Metadata items, by bit (`kdbus_attach_flags`): bit *n* selects item type `0x1000 + n`.
    AttachFlags {
        /// Times and sequence number.
        TIMESTAMP = 0x1;
        /// User and group ids.
        CREDS = 0x2;
        /// Process, thread and parent ids.
        PIDS = 0x4;
        /// Supplementary groups.
        AUXGROUPS = 0x8;
        /// Names held.
        NAMES = 0x10;
        /// Name of the thread.
        TID_COMM = 0x20;
        /// Name of the process.
        PID_COMM = 0x40;
        /// Path of the executable.
        EXE = 0x80;
        /// Command line.
        CMDLINE = 0x100;
        /// Control group.
        CGROUP = 0x200;
        /// Capability sets.
        CAPS = 0x400;
        /// Security label.
        SECLABEL = 0x800;
        /// Audit session and login uid.
        AUDIT = 0x1000;
        /// Description given at HELLO.
        CONN_DESCRIPTION = 0x2000;
    }
}

impl AttachFlags {
    /// The mask in a command: `!0` counts as everything.
    ///
    /// # Errors
    ///
    /// [`Errno::EINVAL`](super::Errno::EINVAL) if another unknown bit is set.
    pub const fn from_command(bits: u64) -> Result<Self, super::Errno> {
        if bits == u64::MAX {
            return Ok(Self::all());
        }
        match Self::from_bits(bits) {
            Some(flags) => Ok(flags),
            None => Err(super::Errno::EINVAL),
        }
    }
}
