//! Items: the typed, length-prefixed records behind every command and message.

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Errno;
use super::msg::{Creds, IdChange, Memfd, Pids, PolicyAccess, Timestamp, Vec};
use crate::name::{NODE_NAME_MAX, NodeName};

/// Bytes of an item's size and type words.
pub const ITEM_HEADER: usize = 16;

/// `size` rounded up to the next multiple of 8, where the next item starts.
#[must_use]
pub const fn align8(size: u64) -> u64 {
    size.wrapping_add(7) & !7
}

/// What an item holds (`kdbus_item_type`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ItemType(pub u64);

macro_rules! item_types {
    ($($(#[$doc:meta])* $name:ident = $value:literal;)*) => {
        impl ItemType {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// Every item type of the UAPI, with its name.
            pub const ALL: &'static [(Self, &'static str)] = &[$((Self::$name, stringify!($name)),)*];
        }
    };
}

item_types! {
    /// Item types to probe: an array of `u64`.
    NEGOTIATE = 0x1;
    /// Memory of the sender to copy (sent only).
    PAYLOAD_VEC = 0x2;
    /// Payload inside the receiver's slice (received only).
    PAYLOAD_OFF = 0x3;
    /// Payload in a sealed memfd.
    PAYLOAD_MEMFD = 0x4;
    /// Passed descriptors: an array of `i32`.
    FDS = 0x5;
    /// A descriptor that cancels a synchronous call when readable.
    CANCEL_FD = 0x6;
    /// Size and hash count of the bus' bloom filters.
    BLOOM_PARAMETER = 0x7;
    /// The filter of a signal: generation and bits.
    BLOOM_FILTER = 0x8;
    /// The mask or masks of a match rule.
    BLOOM_MASK = 0x9;
    /// Well-known name that a message goes to.
    DST_NAME = 0xa;
    /// Name of a new bus or endpoint.
    MAKE_NAME = 0xb;
    /// Metadata that the sender gives out: a `u64` mask.
    ATTACH_FLAGS_SEND = 0xc;
    /// Metadata that the receiver asks for: a `u64` mask.
    ATTACH_FLAGS_RECV = 0xd;
    /// A connection id; in a match, the sender.
    ID = 0xe;
    /// A plain name.
    NAME = 0xf;
    /// A connection id; in a match, the destination.
    DST_ID = 0x10;
    /// Times and sequence number.
    TIMESTAMP = 0x1000;
    /// User and group ids.
    CREDS = 0x1001;
    /// Process, thread and parent ids.
    PIDS = 0x1002;
    /// Supplementary groups: an array of `u64`.
    AUXGROUPS = 0x1003;
    /// A held name with its flags.
    OWNED_NAME = 0x1004;
    /// Name of the thread.
    TID_COMM = 0x1005;
    /// Name of the process.
    PID_COMM = 0x1006;
    /// Path of the executable.
    EXE = 0x1007;
    /// Command line.
    CMDLINE = 0x1008;
    /// Control group path.
    CGROUP = 0x1009;
    /// Capability sets.
    CAPS = 0x100a;
    /// Security label.
    SECLABEL = 0x100b;
    /// Audit session and login uid.
    AUDIT = 0x100c;
    /// Description given at HELLO.
    CONN_DESCRIPTION = 0x100d;
    /// One access rule of a policy.
    POLICY_ACCESS = 0x2000;
    /// A name got its first owner.
    NAME_ADD = 0x8000;
    /// A name lost its last owner.
    NAME_REMOVE = 0x8001;
    /// A name moved to another connection.
    NAME_CHANGE = 0x8002;
    /// A connection appeared.
    ID_ADD = 0x8003;
    /// A connection vanished.
    ID_REMOVE = 0x8004;
    /// An awaited reply did not come in time.
    REPLY_TIMEOUT = 0x8005;
    /// An awaited reply can never come.
    REPLY_DEAD = 0x8006;
}

impl fmt::Debug for ItemType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::ALL.iter().find(|(kind, _)| kind == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "item type {:#x}", self.0),
        }
    }
}

/// What is wrong with an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ItemError {
    /// The bytes left do not hold an item's header, or the item's size is below the header's.
    Header,
    /// The item reaches beyond the area.
    Overrun,
    /// The type is not one that belongs here.
    Unexpected(ItemType),
    /// The type may stand here only once.
    Duplicate(ItemType),
    /// A type that is needed is missing.
    Missing(ItemType),
    /// The payload has the wrong size or content for its type.
    Payload(ItemType),
    /// The name in the payload is too long.
    NameTooLong(ItemType),
    /// A descriptor number is negative.
    Descriptor(ItemType),
}

impl ItemError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::NameTooLong(_) => Errno::ENAMETOOLONG,
            Self::Descriptor(_) => Errno::EBADF,
            _ => Errno::EINVAL,
        }
    }
}

impl fmt::Display for ItemError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("bytes behind the last item are not an item"),
            Self::Overrun => f.write_str("item reaches beyond its command"),
            Self::Unexpected(kind) => write!(f, "{kind:?} does not belong here"),
            Self::Duplicate(kind) => write!(f, "{kind:?} may be given only once"),
            Self::Missing(kind) => write!(f, "{kind:?} is missing"),
            Self::Payload(kind) => write!(f, "payload of {kind:?} is malformed"),
            Self::NameTooLong(kind) => write!(f, "name in {kind:?} is too long"),
            Self::Descriptor(kind) => write!(f, "descriptor in {kind:?} is negative"),
        }
    }
}

impl core::error::Error for ItemError {}

/// One item: its type and payload, still as the sender wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// What the payload is.
    pub kind: ItemType,
    /// Payload bytes, without header and padding.
    pub payload: &'a [u8],
    /// Offset of the item's header from the start of the items, in bytes; a multiple of 8.
    pub at: usize,
}

impl<'a> Item<'a> {
    /// The payload as one record, or `None` if it has another size.
    #[must_use]
    pub fn record<T: FromBytes>(&self) -> Option<T> {
        T::read_from_bytes(self.payload).ok()
    }

    /// The payload as one `u64`.
    #[must_use]
    pub fn u64(&self) -> Option<u64> {
        Some(u64::from_ne_bytes(self.payload.try_into().ok()?))
    }

    /// The payload as `u64` words; a rest that is no whole word is left out.
    pub fn words(&self) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        self.payload.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word))
    }

    /// The payload as descriptor numbers; a rest that is no whole number is left out.
    pub fn fds(&self) -> impl ExactSizeIterator<Item = i32> + use<'a> {
        self.payload.as_chunks().0.iter().map(|fd| i32::from_ne_bytes(*fd))
    }

    /// The payload as a C string without its NUL: not empty, one NUL, at the end.
    #[must_use]
    pub fn c_str(&self) -> Option<&'a [u8]> {
        c_str(self.payload)
    }

    /// The payload as a string, for items that hold text.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        core::str::from_utf8(self.c_str()?).ok()
    }

    /// Flags and name of an [`OWNED_NAME`](ItemType::OWNED_NAME).
    #[must_use]
    pub fn owned_name(&self) -> Option<(super::NameFlags, &'a str)> {
        let (flags, name) = self.payload.split_first_chunk()?;
        let flags = super::NameFlags::from_bits_retain(u64::from_ne_bytes(*flags));
        Some((flags, core::str::from_utf8(c_str(name)?).ok()?))
    }

    /// Old owner, new owner and name of a `NAME_*` notification or match rule; no name is an empty one.
    #[must_use]
    pub fn name_change(&self) -> Option<(IdChange, IdChange, &'a [u8])> {
        let (old, rest) = IdChange::read_from_prefix(self.payload).ok()?;
        let (new, name) = IdChange::read_from_prefix(rest).ok()?;
        Some((old, new, if name.is_empty() { name } else { c_str(name)? }))
    }

    /// Generation and bits of a [`BLOOM_FILTER`](ItemType::BLOOM_FILTER).
    #[must_use]
    pub fn bloom_filter(&self) -> Option<(u64, &'a [u8])> {
        let (generation, bits) = self.payload.split_first_chunk()?;
        Some((u64::from_ne_bytes(*generation), bits))
    }

    /// Checks the payload by the rule of its type, as for every command that accepts the type.
    ///
    /// # Errors
    ///
    /// [`ItemError`] for types that no command accepts, and for payloads that break the type's rule.
    pub fn check(&self) -> Result<(), ItemError> {
        let n = self.payload.len();
        let malformed = ItemError::Payload(self.kind);
        let need = |valid: bool| if valid { Ok(()) } else { Err(malformed) };
        match self.kind {
            ItemType::NEGOTIATE => need(n.is_multiple_of(8)),
            ItemType::PAYLOAD_VEC => need(self.record::<Vec>().is_some_and(|vec| vec.size != 0)),
            ItemType::PAYLOAD_MEMFD => {
                let memfd = self.record::<Memfd>().filter(|memfd| memfd.size != 0).ok_or(malformed)?;
                if memfd.fd < 0 { Err(ItemError::Descriptor(self.kind)) } else { Ok(()) }
            }
            ItemType::FDS => need(n.is_multiple_of(4)),
            ItemType::CANCEL_FD => need(n == 4),
            ItemType::BLOOM_PARAMETER => need(n == 16),
            ItemType::BLOOM_FILTER => need(n >= 8),
            ItemType::BLOOM_MASK => Ok(()),
            ItemType::MAKE_NAME | ItemType::CONN_DESCRIPTION => {
                need(n >= 2)?;
                if n > NODE_NAME_MAX + 1 {
                    return Err(ItemError::NameTooLong(self.kind));
                }
                need(self.c_str().is_some_and(|name| NodeName::from_bytes(name).is_ok()))
            }
            ItemType::ATTACH_FLAGS_SEND | ItemType::ATTACH_FLAGS_RECV | ItemType::ID | ItemType::DST_ID => {
                need(n == 8)
            }
            ItemType::CREDS => need(n == size_of::<Creds>()),
            ItemType::PIDS => need(n == size_of::<Pids>()),
            ItemType::NAME | ItemType::DST_NAME | ItemType::SECLABEL => need(self.c_str().is_some()),
            ItemType::POLICY_ACCESS => need(n == size_of::<PolicyAccess>()),
            ItemType::NAME_ADD | ItemType::NAME_REMOVE | ItemType::NAME_CHANGE => {
                need(self.name_change().is_some())
            }
            ItemType::ID_ADD | ItemType::ID_REMOVE => need(n == size_of::<IdChange>()),
            ItemType::TIMESTAMP => need(n == size_of::<Timestamp>()),
            _ => Err(ItemError::Unexpected(self.kind)),
        }
    }
}

fn c_str(bytes: &[u8]) -> Option<&[u8]> {
    let (last, text) = bytes.split_last()?;
    (*last == 0 && !text.contains(&0)).then_some(text)
}

/// Reads the items of an area one by one and refuses every malformed sequence.
///
/// An item's size covers header and payload; the next one starts at the next multiple of 8. The padding
/// of the last item may be missing. After the first error the reader ends.
///
/// ```
/// use kdbus_core::abi::{ItemType, ItemWriter, Items};
/// let mut buffer = [0; 64];
/// let mut writer = ItemWriter::new(&mut buffer);
/// writer.c_str(ItemType::NAME, "org.example.Mixer").unwrap();
/// let end = writer.len();
/// let item = Items::new(&buffer[..end]).next().unwrap().unwrap();
/// assert_eq!(item.text(), Some("org.example.Mixer"));
/// ```
#[derive(Clone, Debug)]
pub struct Items<'a> {
    area: &'a [u8],
    at: usize,
}

impl<'a> Items<'a> {
    /// A reader of `area`, which starts with an item's header or is empty.
    #[must_use]
    pub const fn new(area: &'a [u8]) -> Self {
        Self { area, at: 0 }
    }

    fn read(&mut self) -> Result<Item<'a>, ItemError> {
        let rest = &self.area[self.at..];
        let (size, tail) = rest.split_first_chunk().ok_or(ItemError::Header)?;
        let (kind, _) = tail.split_first_chunk().ok_or(ItemError::Header)?;
        let size = u64::from_ne_bytes(*size);
        if size < ITEM_HEADER as u64 {
            return Err(ItemError::Header);
        }
        if size > rest.len() as u64 {
            return Err(ItemError::Overrun);
        }
        let size = size as usize;
        let item = Item {
            kind: ItemType(u64::from_ne_bytes(*kind)),
            payload: &rest[ITEM_HEADER..size],
            at: self.at,
        };
        // The last item's padding may reach beyond the area, never beyond the area's own padding.
        self.at = (self.at + align8(size as u64) as usize).min(self.area.len());
        Ok(item)
    }
}

impl<'a> Iterator for Items<'a> {
    type Item = Result<Item<'a>, ItemError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.area.len() {
            return None;
        }
        let item = self.read();
        if item.is_err() {
            self.at = self.area.len();
        }
        Some(item)
    }
}

impl core::iter::FusedIterator for Items<'_> {}

/// The buffer has no room for the item; nothing of it was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NoRoom;

impl NoRoom {
    /// The code that a transport reports when a command outgrows its buffer.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EMSGSIZE
    }
}

impl fmt::Display for NoRoom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the buffer has no room for the item")
    }
}

impl core::error::Error for NoRoom {}

/// Writes items into a caller's buffer, padding in between zeroed.
#[derive(Debug)]
pub struct ItemWriter<'a> {
    buffer: &'a mut [u8],
    end: usize,
}

impl<'a> ItemWriter<'a> {
    /// A writer that starts at the buffer's first byte.
    #[must_use]
    pub const fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, end: 0 }
    }

    /// A writer that starts behind a header of `header` bytes, a multiple of 8 that is already there.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if the buffer is shorter than the header.
    pub const fn behind(buffer: &'a mut [u8], header: usize) -> Result<Self, NoRoom> {
        if buffer.len() < header { Err(NoRoom) } else { Ok(Self { buffer, end: header }) }
    }

    /// Appends an item whose payload is `parts` one after another.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] leaves the buffer as it was.
    pub fn parts(&mut self, kind: ItemType, parts: &[&[u8]]) -> Result<(), NoRoom> {
        let mut rest = self.place(kind, parts.iter().map(|part| part.len()).sum())?;
        for part in parts {
            let (place, behind) = rest.split_at_mut(part.len());
            place.copy_from_slice(part);
            rest = behind;
        }
        Ok(())
    }

    /// Appends an item whose payload is `len` zero bytes.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] leaves the buffer as it was.
    pub fn zeros(&mut self, kind: ItemType, len: usize) -> Result<(), NoRoom> {
        self.place(kind, len)?.fill(0);
        Ok(())
    }

    /// Appends the header of an item with `payload` bytes, and gives those out.
    fn place(&mut self, kind: ItemType, payload: usize) -> Result<&mut [u8], NoRoom> {
        let start = align8(self.end as u64) as usize;
        let size = ITEM_HEADER + payload;
        let area = self.buffer.get_mut(self.end..).ok_or(NoRoom)?;
        let padding = start - self.end;
        if area.len() < padding + size {
            return Err(NoRoom);
        }
        let (before, item) = area[..padding + size].split_at_mut(padding);
        before.fill(0);
        let (header, place) = item.split_at_mut(ITEM_HEADER);
        header[..8].copy_from_slice(&(size as u64).to_ne_bytes());
        header[8..].copy_from_slice(&kind.0.to_ne_bytes());
        self.end = start + size;
        Ok(place)
    }

    /// Appends an item with `payload`.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] leaves the buffer as it was.
    pub fn bytes(&mut self, kind: ItemType, payload: &[u8]) -> Result<(), NoRoom> {
        self.parts(kind, &[payload])
    }

    /// Appends an item that holds one record.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] leaves the buffer as it was.
    pub fn record<T: IntoBytes + Immutable>(&mut self, kind: ItemType, record: &T) -> Result<(), NoRoom> {
        self.parts(kind, &[record.as_bytes()])
    }

    /// Appends an item that holds `text` and a NUL.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] leaves the buffer as it was.
    pub fn c_str(&mut self, kind: ItemType, text: &str) -> Result<(), NoRoom> {
        self.parts(kind, &[text.as_bytes(), &[0]])
    }

    /// Bytes written so far, up to the unpadded end of the last item.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.end
    }

    /// Whether nothing stands in the buffer yet.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.end == 0
    }

    /// What has been written so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.buffer[..self.end]
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;

    use super::*;

    fn item(size: u64, kind: ItemType, payload: &[u8]) -> vec::Vec<u8> {
        let mut bytes = vec::Vec::new();
        bytes.extend_from_slice(&size.to_ne_bytes());
        bytes.extend_from_slice(&kind.0.to_ne_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    fn read(area: &[u8]) -> Result<usize, ItemError> {
        Items::new(area).try_fold(0, |count, item| item.map(|_| count + 1))
    }

    #[test]
    fn last_padding_may_be_left_out_or_included() {
        let mut area = item(18, ItemType::NAME, b"x\0");
        assert_eq!(read(&area), Ok(1));
        area.resize(24, 0);
        assert_eq!(read(&area), Ok(1));
    }

    #[test]
    fn stray_bytes_behind_the_last_item_are_refused() {
        let mut area = item(24, ItemType::ID, &[0; 8]);
        area.resize(32, 0);
        assert_eq!(read(&area), Err(ItemError::Header));
    }

    #[test]
    fn short_and_overlong_items_are_refused() {
        assert_eq!(read(&item(15, ItemType::ID, &[0; 8])), Err(ItemError::Header));
        assert_eq!(read(&item(25, ItemType::ID, &[0; 8])), Err(ItemError::Overrun));
        assert_eq!(read(&item(u64::MAX, ItemType::ID, &[0; 8])), Err(ItemError::Overrun));
        assert_eq!(read(&[0; 12]), Err(ItemError::Header));
    }

    #[test]
    fn written_items_read_back_with_zeroed_padding() {
        let mut buffer = [0xff; 80];
        let mut writer = ItemWriter::new(&mut buffer);
        writer.c_str(ItemType::NAME, "a.b").unwrap();
        writer.record(ItemType::ID, &7_u64).unwrap();
        let end = writer.len();
        assert_eq!(buffer[20..24], [0; 4]);
        let items: vec::Vec<_> = Items::new(&buffer[..end]).map(Result::unwrap).collect();
        assert_eq!((items[0].text(), items[1].u64(), items[1].at), (Some("a.b"), Some(7), 24));
    }

    #[test]
    fn an_item_without_room_leaves_the_buffer_alone() {
        let mut buffer = [0xff; 23];
        let mut writer = ItemWriter::new(&mut buffer);
        assert_eq!(writer.record(ItemType::ID, &7_u64), Err(NoRoom));
        assert!(writer.is_empty());
        assert_eq!(buffer, [0xff; 23]);
    }

    #[test]
    fn payload_rules_name_the_fault() {
        let check = |kind, payload| Item { kind, payload, at: 0 }.check().map_err(ItemError::errno);
        assert_eq!(check(ItemType::NAME, b"a\0b\0"), Err(Errno::EINVAL));
        assert_eq!(check(ItemType::NAME, b""), Err(Errno::EINVAL));
        assert_eq!(check(ItemType::MAKE_NAME, &[b'x'; 65]), Err(Errno::ENAMETOOLONG));
        assert_eq!(check(ItemType::MAKE_NAME, b"0-x\0"), Ok(()));
        assert_eq!(check(ItemType::NEGOTIATE, &[0; 12]), Err(Errno::EINVAL));
        assert_eq!(check(ItemType::PAYLOAD_OFF, &[1; 16]), Err(Errno::EINVAL));
        let memfd = Memfd { start: 0, size: 1, fd: -1, pad: 0 };
        assert_eq!(check(ItemType::PAYLOAD_MEMFD, memfd.as_bytes()), Err(Errno::EBADF));
        assert_eq!(check(ItemType::NAME_ADD, &[0; 32]), Ok(()));
        assert_eq!(check(ItemType::NAME_ADD, &[0; 34]), Err(Errno::EINVAL));
    }
}
