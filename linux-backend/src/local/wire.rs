//! The packets between a client and kdbusd; `docs/local-protocol.md` describes them.
//!
//! A packet is a [`Header`], then the command's argument, then the message of a SEND, then payload bytes. The
//! numbers in it are native-endian: both ends run on one kernel.

use core::fmt;
use core::mem::offset_of;

use kdbus_core::abi::{CMD_MAX_SIZE, Errno};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The first word of every packet: "kdbs".
pub const MAGIC: u32 = 0x6b64_6273;
/// Version of packets and shared memory. Both ends must have the same.
pub const VERSION: u16 = 1;
/// Payload bytes that a packet can carry; more of them go through the staging file.
pub const INLINE_MAX: usize = 1 << 16;
/// Bytes of the longest packet.
pub const PACKET_MAX: usize = size_of::<Header>() + 2 * CMD_MAX_SIZE + INLINE_MAX;
/// Descriptors that one packet can carry.
pub const FDS_MAX: usize = 64;

/// Descriptors in the answer to HELLO: pool, posted part, shared part, bell.
pub const HELLO_FDS: usize = 4;
/// Descriptors that come with a lane: its lane part, its way back, its page of the bus, its calls, and an end of its
/// bell.
pub const LANE_FDS: usize = 5;
/// Those that come with one to its sender: the same, the record of its calls, and a reading end of the bell.
pub const LANE_OUT_FDS: usize = LANE_FDS + 2;

/// What a packet is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
#[non_exhaustive]
pub enum Kind {
    /// To kdbusd: a command of the kdbus ABI. `number` is the request.
    Command = 1,
    /// To kdbusd: a RECV of one entry of the shared queue, named by `slot` and `key`.
    ReceiveEntry = 2,
    /// To kdbusd: wake this client once when connection `key` has room again.
    WatchRoom = 3,
    /// To kdbusd: end the synchronous call with serial `key`, if it still waits. Has no answer of its own.
    Cancel = 4,
    /// To kdbusd: something stands in the return ring. Has no answer.
    Returns = 5,
    /// To kdbusd: show connection `key` in numbers, see [`stats`](super::stats).
    Stats = 6,
    /// To kdbusd: a lane for messages to this client. The answer brings its descriptors, and its number in `slot`.
    BringLane = 7,
    /// To kdbusd: a lane to connection `key`, or, if that is 0, to the owner of the name that is the argument; the
    /// one there is is opened again, and nothing else with [`FLAG_OWN_LANE`]. The answer brings descriptors the first
    /// time, the lane's number in `slot`, and the id of its receiver in `key`.
    OpenLane = 8,
    /// To kdbusd: this client has mapped lane `slot` and needs no more of its descriptors. Has no answer.
    LaneMapped = 9,
    /// To kdbusd: this client does not receive by lane `slot` any more. Has no answer.
    DropLane = 10,
    /// To kdbusd: this client has dropped a call that came by lane `slot`; its sender is to look. Has no answer.
    CallDropped = 11,
    /// To kdbusd: which way messages to connection `key` take, from each sender that the argument names; see
    /// [`pairs`](super::pairs).
    Pairs = 12,
    /// To the client: the end of the command with this `serial`. `number` is the errno, 0 for success.
    Answer = 0x80,
}

impl Kind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Command,
            2 => Self::ReceiveEntry,
            3 => Self::WatchRoom,
            4 => Self::Cancel,
            5 => Self::Returns,
            6 => Self::Stats,
            7 => Self::BringLane,
            8 => Self::OpenLane,
            9 => Self::LaneMapped,
            10 => Self::DropLane,
            11 => Self::CallDropped,
            12 => Self::Pairs,
            0x80 => Self::Answer,
            _ => return None,
        })
    }

    /// Whether kdbusd answers a packet of this kind.
    #[must_use]
    pub const fn is_answered(self) -> bool {
        matches!(
            self,
            Self::Command
                | Self::ReceiveEntry
                | Self::WatchRoom
                | Self::Stats
                | Self::BringLane
                | Self::OpenLane
                | Self::Pairs
        )
    }
}

/// The payload is in the staging file, from its first byte on, and not in the packet.
pub const FLAG_STAGED: u32 = 1;
/// The last descriptor is the client's staging file from now on; no item mentions it.
pub const FLAG_STAGING_FD: u32 = 2;
/// There is a message, though it may be empty: `msg_address` was not 0.
pub const FLAG_MESSAGE: u32 = 4;
/// To kdbusd: the client wants the message back as the command left it. In an answer: it is there.
pub const FLAG_RETURN_MESSAGE: u32 = 8;

/// To kdbusd: the SEND is the reply to call `key`, which came by lane `slot`.
pub const FLAG_CLAIM: u32 = 16;

/// To kdbusd: an OPEN_LANE opens the lane that this client has, and gives it no other one, for which it has no place.
pub const FLAG_OWN_LANE: u32 = 32;

/// To kdbusd: the client waits for the end of this SEND at its shared queue, where kdbusd tells it.
pub const FLAG_POSTED: u32 = 64;

const FLAGS: u32 = FLAG_STAGED
    | FLAG_STAGING_FD
    | FLAG_MESSAGE
    | FLAG_RETURN_MESSAGE
    | FLAG_CLAIM
    | FLAG_OWN_LANE
    | FLAG_POSTED;

/// The start of every packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: u32,
    /// [`VERSION`].
    pub version: u16,
    /// A [`Kind`].
    pub kind: u16,
    /// The client's number of this command, which its answer repeats.
    pub serial: u64,
    /// Request number of a command; errno of an answer.
    pub number: u32,
    /// `FLAG_*`.
    pub flags: u32,
    /// Bytes of the argument, at most [`CMD_MAX_SIZE`].
    pub arg_size: u32,
    /// Bytes of the message, at most [`CMD_MAX_SIZE`].
    pub message_size: u32,
    /// Bytes of payload, in the packet or, with [`FLAG_STAGED`], in the staging file.
    pub payload_size: u64,
    /// Descriptors that go with the packet.
    pub fds: u32,
    /// Slot of [`Kind::ReceiveEntry`]; number of a lane, also with [`FLAG_CLAIM`]; of another SEND, how many
    /// calls by lane are open; in its answer, how many through kdbusd.
    pub slot: u32,
    /// Key of [`Kind::ReceiveEntry`], connection of [`Kind::WatchRoom`], [`Kind::Stats`] and [`Kind::OpenLane`],
    /// receiver of a lane, call of [`FLAG_CLAIM`], serial of [`Kind::Cancel`].
    pub key: u64,
}

const _: () = assert!(
    size_of::<Header>() == 56
        && offset_of!(Header, serial) == 8
        && offset_of!(Header, number) == 16
        && offset_of!(Header, arg_size) == 24
        && offset_of!(Header, payload_size) == 32
        && offset_of!(Header, fds) == 40
        && offset_of!(Header, key) == 48
);

impl Header {
    /// A header of this kind, all else 0.
    #[must_use]
    pub const fn new(kind: Kind, serial: u64) -> Self {
        Self {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u16,
            serial,
            number: 0,
            flags: 0,
            arg_size: 0,
            message_size: 0,
            payload_size: 0,
            fds: 0,
            slot: 0,
            key: 0,
        }
    }

    /// The answer to command `serial`; fill in sizes and descriptors.
    #[must_use]
    pub const fn answer(serial: u64, result: Result<(), Errno>) -> Self {
        let mut header = Self::new(Kind::Answer, serial);
        if let Err(errno) = result {
            header.number = errno.raw() as u32;
        }
        header
    }

    /// The result that an answer carries.
    ///
    /// # Errors
    ///
    /// The errno in it; `EIO` for a number that is none.
    pub fn result(&self) -> Result<(), Errno> {
        match self.number {
            0 => Ok(()),
            raw => Err(Errno::from_raw(raw).unwrap_or(Errno::EIO)),
        }
    }
}

/// What is wrong with a packet. The connection ends: the ends do not speak the same protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum WireError {
    /// It is shorter than a header, or has another magic.
    NotAPacket,
    /// It has this version.
    Version(u16),
    /// It has this kind, which is none.
    Kind(u16),
    /// It has flags that are none, or that contradict each other.
    Flags(u32),
    /// Its parts do not add up to its length, or one of them is too long.
    Size,
    /// It does not carry as many descriptors as it says.
    Descriptors,
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAPacket => f.write_str("what came in is no packet of this protocol"),
            Self::Version(version) => {
                write!(f, "the other end speaks version {version} of the protocol, this one {VERSION}")
            }
            Self::Kind(kind) => write!(f, "packet kind {kind:#x} is unknown"),
            Self::Flags(flags) => write!(f, "packet flags {flags:#x} are wrong"),
            Self::Size => f.write_str("the parts of a packet do not fit its length"),
            Self::Descriptors => f.write_str("a packet brought another number of descriptors than it says"),
        }
    }
}

impl core::error::Error for WireError {}

/// Where the payload of a SEND is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload<'a> {
    /// In the packet.
    Inline(&'a [u8]),
    /// In the staging file: this many bytes from its start, if they are really there.
    Staged(u64),
}

/// A packet that passed its checks.
#[derive(Debug)]
pub struct Packet<'a> {
    /// Its kind.
    pub kind: Kind,
    /// Its header; the sizes in it are those of the parts.
    pub header: Header,
    /// The command's argument.
    pub arg: &'a mut [u8],
    /// The message, if there is one.
    pub message: Option<&'a mut [u8]>,
    /// The payload.
    pub payload: Payload<'a>,
}

impl<'a> Packet<'a> {
    /// Takes a received packet apart, in constant time. `fds` descriptors came with it.
    ///
    /// # Errors
    ///
    /// [`WireError`], for the first check that fails.
    #[inline(always)]
    pub fn parse(bytes: &'a mut [u8], fds: usize) -> Result<Self, WireError> {
        let (header, rest) = Header::read_from_prefix(&*bytes).map_err(|_| WireError::NotAPacket)?;
        let length = rest.len();
        if header.magic != MAGIC {
            return Err(WireError::NotAPacket);
        }
        if header.version != VERSION {
            return Err(WireError::Version(header.version));
        }
        let kind = Kind::from_number(header.kind).ok_or(WireError::Kind(header.kind))?;
        let has = |flag| header.flags & flag != 0;
        let contradicts = has(FLAG_STAGING_FD) && header.fds == 0
            || (has(FLAG_STAGED) || header.payload_size != 0) && !has(FLAG_MESSAGE)
            || header.message_size != 0 && !has(FLAG_MESSAGE) && !has(FLAG_RETURN_MESSAGE);
        if header.flags & !FLAGS != 0 || contradicts {
            return Err(WireError::Flags(header.flags));
        }
        if header.fds as usize != fds || fds > FDS_MAX {
            return Err(WireError::Descriptors);
        }
        let (arg, message) = (header.arg_size as usize, header.message_size as usize);
        let inline = if has(FLAG_STAGED) { 0 } else { header.payload_size };
        if arg > CMD_MAX_SIZE
            || message > CMD_MAX_SIZE
            || inline > INLINE_MAX as u64
            || arg + message + inline as usize != length
        {
            return Err(WireError::Size);
        }
        let (_, rest) = bytes.split_at_mut(size_of::<Header>());
        let (arg, rest) = rest.split_at_mut(arg);
        let (message, payload) = rest.split_at_mut(message);
        Ok(Self {
            kind,
            header,
            arg,
            message: has(FLAG_MESSAGE | FLAG_RETURN_MESSAGE).then_some(message),
            payload: if has(FLAG_STAGED) {
                Payload::Staged(header.payload_size)
            } else {
                Payload::Inline(payload)
            },
        })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn packet(change: impl FnOnce(&mut Header), parts: usize) -> Vec<u8> {
        let mut header = Header::new(Kind::Command, 7);
        header.number = 0x4038_9590;
        change(&mut header);
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend((0..parts).map(|at| at as u8));
        bytes
    }

    fn refusal(change: impl FnOnce(&mut Header), parts: usize) -> WireError {
        Packet::parse(&mut packet(change, parts), 0).unwrap_err()
    }

    #[test]
    fn parts_come_apart_where_the_header_says() {
        let mut bytes = packet(
            |header| {
                header.flags = FLAG_MESSAGE;
                (header.arg_size, header.message_size, header.payload_size) = (3, 2, 4);
            },
            9,
        );
        let packet = Packet::parse(&mut bytes, 0).unwrap();
        assert_eq!((packet.kind, packet.header.serial), (Kind::Command, 7));
        assert_eq!((&*packet.arg, &*packet.message.unwrap()), (&[0, 1, 2][..], &[3, 4][..]));
        assert_eq!(packet.payload, Payload::Inline(&[5, 6, 7, 8]));
    }

    #[test]
    fn staged_bytes_are_not_in_the_packet() {
        let staged = |header: &mut Header| {
            header.flags = FLAG_MESSAGE | FLAG_STAGED;
            header.payload_size = u64::MAX;
        };
        let mut bytes = packet(staged, 0);
        assert_eq!(Packet::parse(&mut bytes, 0).unwrap().payload, Payload::Staged(u64::MAX));
        assert_eq!(refusal(staged, 1), WireError::Size);
    }

    #[test]
    fn an_empty_message_is_not_no_message() {
        let mut bytes = packet(|header| header.flags = FLAG_MESSAGE, 0);
        assert_eq!(Packet::parse(&mut bytes, 0).unwrap().message.unwrap(), &[]);
        let mut bytes = packet(|_| {}, 0);
        assert!(Packet::parse(&mut bytes, 0).unwrap().message.is_none());
    }

    #[test]
    fn foreign_short_and_contradictory_packets_are_refused() {
        assert_eq!(Packet::parse(&mut [0; 55], 0).unwrap_err(), WireError::NotAPacket);
        assert_eq!(refusal(|header| header.magic = 0, 0), WireError::NotAPacket);
        assert_eq!(refusal(|header| header.version = 2, 0), WireError::Version(2));
        assert_eq!(refusal(|header| header.kind = 0x7f, 0), WireError::Kind(0x7f));
        assert_eq!(refusal(|header| header.flags = 1 << 31, 0), WireError::Flags(1 << 31));
        assert_eq!(refusal(|header| header.flags = FLAG_STAGED, 0), WireError::Flags(FLAG_STAGED));
        assert_eq!(refusal(|header| header.flags = FLAG_STAGING_FD, 0), WireError::Flags(FLAG_STAGING_FD));
        assert_eq!(refusal(|header| header.payload_size = 1, 1), WireError::Flags(0));
        assert_eq!(refusal(|header| header.message_size = 1, 1), WireError::Flags(0));
        assert_eq!(refusal(|header| header.fds = 1, 0), WireError::Descriptors);
        assert_eq!(refusal(|header| header.arg_size = 1, 0), WireError::Size);
        assert_eq!(refusal(|_| {}, 1), WireError::Size);
        assert_eq!(refusal(|header| header.arg_size = u32::MAX, 0), WireError::Size);
        let long = |header: &mut Header| {
            header.flags = FLAG_MESSAGE;
            header.payload_size = INLINE_MAX as u64 + 1;
        };
        assert_eq!(refusal(long, INLINE_MAX + 1), WireError::Size);
    }

    #[test]
    fn answers_carry_their_errno() {
        assert_eq!(Header::answer(1, Ok(())).result(), Ok(()));
        assert_eq!(Header::answer(1, Err(Errno::EXFULL)).result(), Err(Errno::EXFULL));
        let mut odd = Header::answer(1, Ok(()));
        odd.number = 4096;
        assert_eq!(odd.result(), Err(Errno::EIO));
    }
}
