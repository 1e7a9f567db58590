//! The commands: their records, request numbers, flags and items.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::item::ItemType;
use super::msg::{Msg, MsgInfo, records};
use super::{HelloFlags, ListFlags, MakeFlags, MatchFlags, MsgFlags, NameFlags, RecvFlags, SendFlags};

/// Bytes of the longest command, and of the longest message without its payload.
pub const CMD_MAX_SIZE: usize = 32768;

records! {
    /// Argument of commands that have only items (`kdbus_cmd`).
    Cmd(24) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// Flags of the command.
        flags: u64 = 8,
        /// Flags reported back: [`NameFlags`] for NAME_ACQUIRE, else 0.
        return_flags: u64 = 16,
    }

    /// Argument of HELLO (`kdbus_cmd_hello`).
    CmdHello(96) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// [`HelloFlags`].
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// Metadata that this connection gives out.
        attach_flags_send: u64 = 24,
        /// Metadata that this connection asks for.
        attach_flags_recv: u64 = 32,
        /// Reported: flags that the bus was made with.
        bus_flags: u64 = 40,
        /// Reported: the connection's id.
        id: u64 = 48,
        /// Bytes of the pool, a multiple of the page size.
        pool_size: u64 = 56,
        /// Reported: slice with the bus' parameters.
        offset: u64 = 64,
        /// Reported: bytes of that slice.
        items_size: u64 = 72,
        /// Reported: UUID of the bus.
        id128: [u8; 16] = 80,
    }

    /// Argument of SEND (`kdbus_cmd_send`).
    CmdSend(56) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// [`SendFlags`].
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// Address of the message.
        msg_address: u64 = 24,
        /// Reported: the reply to a synchronous call.
        reply: MsgInfo = 32,
    }

    /// Argument of RECV (`kdbus_cmd_recv`).
    CmdRecv(64) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// [`RecvFlags`].
        flags: u64 = 8,
        /// Reported: [`RecvReturnFlags::DROPPED_MSGS`](super::RecvReturnFlags::DROPPED_MSGS) or 0.
        return_flags: u64 = 16,
        /// Least urgent priority to take, with [`RecvFlags::USE_PRIORITY`].
        priority: i64 = 24,
        /// Reported: broadcasts lost since the last receive.
        dropped_msgs: u64 = 32,
        /// Reported: the message.
        msg: MsgInfo = 40,
    }

    /// Argument of FREE (`kdbus_cmd_free`).
    CmdFree(32) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// None.
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// Offset of the slice.
        offset: u64 = 24,
    }

    /// Argument of CONN_INFO and BUS_CREATOR_INFO (`kdbus_cmd_info`).
    CmdInfo(56) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// None.
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// Connection, or 0 to look a name up.
        id: u64 = 24,
        /// Metadata wanted.
        attach_flags: u64 = 32,
        /// Reported: slice with the answer.
        offset: u64 = 40,
        /// Reported: bytes of that slice.
        info_size: u64 = 48,
    }

    /// Argument of LIST (`kdbus_cmd_list`).
    CmdList(40) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// [`ListFlags`].
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// Reported: slice with the answer.
        offset: u64 = 24,
        /// Reported: bytes of that slice.
        list_size: u64 = 32,
    }

    /// Argument of MATCH_ADD and MATCH_REMOVE (`kdbus_cmd_match`).
    CmdMatch(32) {
        /// Bytes of record and items.
        size: u64 = 0,
        /// [`MatchFlags`].
        flags: u64 = 8,
        /// Always 0.
        return_flags: u64 = 16,
        /// The caller's number for the match; need not be unique.
        cookie: u64 = 24,
    }
}

/// How often an item may stand in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// Once or not at all.
    Optional,
    /// Exactly once.
    Mandatory,
    /// Any number of times.
    Repeated,
}

/// What a command or message may look like: the size of its record, its flags and its items.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Bytes of the fixed record.
    pub size: usize,
    /// Flags it may carry, [`FLAG_NEGOTIATE`](super::FLAG_NEGOTIATE) aside.
    pub flags: u64,
    /// Whether the third word is `return_flags`, as in every command.
    pub returns_flags: bool,
    /// Items it may carry, [`ItemType::NEGOTIATE`] aside.
    pub items: &'static [(ItemType, Arity)],
    /// Those that have to be there, by their places in `items`.
    mandatory: u32,
}

impl Shape {
    const fn new(size: usize, flags: u64, returns_flags: bool, items: &'static [(ItemType, Arity)]) -> Self {
        let (mut mandatory, mut at) = (0, 0);
        while at < items.len() {
            if matches!(items[at].1, Arity::Mandatory) {
                mandatory |= 1 << at;
            }
            at += 1;
        }
        Self { size, flags, returns_flags, items, mandatory }
    }

    /// An item that has to be there and is not, if those at the places `seen` are.
    pub(super) fn missing(&self, seen: u32) -> Option<ItemType> {
        let missed = self.mandatory & !seen;
        let first = (missed != 0).then(|| self.items.get(missed.trailing_zeros() as usize));
        first.flatten().map(|(kind, _)| *kind)
    }

    /// How often items of `kind` may stand there, or `None` if not at all.
    #[must_use]
    pub fn arity(&self, kind: ItemType) -> Option<Arity> {
        self.entry(kind).map(|(_, arity)| arity)
    }

    /// The same, and which entry says so; NEGOTIATE, which every shape takes, is the one behind the last.
    #[inline]
    pub(super) fn entry(&self, kind: ItemType) -> Option<(usize, Arity)> {
        let entry = self.items.iter().position(|(item, _)| *item == kind);
        match entry {
            Some(index) => self.items.get(index).map(|(_, arity)| (index, *arity)),
            None => (kind == ItemType::NEGOTIATE).then_some((self.items.len(), Arity::Optional)),
        }
    }
}

/// The shape of the message that SEND points to.
pub const MESSAGE: Shape = Shape::new(
    Msg::SIZE,
    MsgFlags::all().bits(),
    false,
    &[
        (ItemType::PAYLOAD_VEC, Arity::Repeated),
        (ItemType::PAYLOAD_MEMFD, Arity::Repeated),
        (ItemType::FDS, Arity::Optional),
        (ItemType::BLOOM_FILTER, Arity::Optional),
        (ItemType::DST_NAME, Arity::Optional),
    ],
);

/// Declares the commands with request number, argument record, flags and items.
macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $request:literal, $arg:ty, $flags:expr, [$($item:ident $arity:ident),*];)*) => {
        /// A command, by the name of its request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[cfg_attr(feature = "defmt", derive(defmt::Format))]
        pub enum Command { $($(#[$doc])* $name,)* }

        impl Command {
            /// Every command.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The command with this request number; all 32 bits must agree.
            #[must_use]
            pub const fn from_request(request: u32) -> Option<Self> {
                match request {
                    $($request => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The request number.
            #[must_use]
            pub const fn request(self) -> u32 {
                match self { $(Self::$name => $request,)* }
            }

            /// What the argument may look like.
            #[must_use]
            pub const fn shape(self) -> &'static Shape {
                match self {
                    $(Self::$name => const {
                        &Shape::new(
                            size_of::<$arg>(),
                            $flags,
                            true,
                            &[$((ItemType::$item, Arity::$arity)),*],
                        )
                    },)*
                }
            }
        }
    };
}

commands! {
    /// Create a bus.
    BusMake = 0x4018_9500, Cmd, MakeFlags::all().bits(),
        [MAKE_NAME Mandatory, BLOOM_PARAMETER Mandatory, ATTACH_FLAGS_SEND Optional];
    /// Create a custom endpoint.
    EndpointMake = 0x4018_9510, Cmd, MakeFlags::all().bits(), [MAKE_NAME Mandatory];
    /// Replace the policy of a custom endpoint.
    EndpointUpdate = 0x4018_9511, Cmd, 0, [NAME Repeated, POLICY_ACCESS Repeated];
    /// Become a connection.
    Hello = 0xc060_9580, CmdHello, HelloFlags::all().bits(),
        [NAME Optional, CREDS Optional, PIDS Optional, SECLABEL Optional, CONN_DESCRIPTION Optional,
         POLICY_ACCESS Repeated];
    /// Change metadata masks or policy.
    Update = 0x4018_9581, Cmd, 0,
        [ATTACH_FLAGS_SEND Optional, ATTACH_FLAGS_RECV Optional, NAME Repeated, POLICY_ACCESS Repeated];
    /// Disconnect in an orderly way.
    Byebye = 0x4018_9582, Cmd, 0, [];
    /// Give a slice back.
    Free = 0x4020_9583, CmdFree, 0, [];
    /// Ask about a connection.
    ConnInfo = 0x8038_9584, CmdInfo, 0, [NAME Optional];
    /// Ask about the creator of the bus.
    BusCreatorInfo = 0x8038_9585, CmdInfo, 0, [];
    /// List connections and names.
    List = 0x8028_9586, CmdList, ListFlags::all().bits(), [];
    /// Send a message.
    Send = 0x4038_9590, CmdSend, SendFlags::all().bits(), [CANCEL_FD Optional];
    /// Receive a message.
    Recv = 0x8040_9591, CmdRecv, RecvFlags::all().bits(), [];
    /// Acquire a name.
    NameAcquire = 0x4018_95a0, Cmd,
        NameFlags::REPLACE_EXISTING.bits() | NameFlags::ALLOW_REPLACEMENT.bits() | NameFlags::QUEUE.bits(),
        [NAME Mandatory];
    /// Release a name.
    NameRelease = 0x4018_95a1, Cmd, 0, [NAME Mandatory];
    /// Add a match.
    MatchAdd = 0x4020_95b0, CmdMatch, MatchFlags::all().bits(),
        [BLOOM_MASK Repeated, NAME Repeated, ID Repeated, DST_ID Repeated, NAME_ADD Repeated,
         NAME_REMOVE Repeated, NAME_CHANGE Repeated, ID_ADD Repeated, ID_REMOVE Repeated];
    /// Remove the matches of a cookie.
    MatchRemove = 0x4020_95b1, CmdMatch, 0, [];
}
