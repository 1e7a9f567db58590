//! What the bus tells about a sender or a peer.

use core::fmt;

use crate::abi::{Audit, Creds, Item, ItemType, Items, NameFlags, Pids, Timestamp};
use zerocopy::FromBytes;

/// What the bus itself says about the sender of a message, or about a peer that was asked about.
///
/// Each value is there if it was asked for (at HELLO or in the query), if the other side gives it out, and
/// if it exists. Looking one up costs a pass over the items. Strings that come from the file system or from
/// processes are bytes, because nothing makes them UTF-8.
#[derive(Clone)]
pub struct Metadata<'a> {
    items: Items<'a>,
}

impl<'a> Metadata<'a> {
    pub(super) const fn new(items: &'a [u8]) -> Self {
        Self { items: Items::new(items) }
    }

    /// When the message was sent, and its number on the bus.
    #[must_use]
    pub fn timestamp(&self) -> Option<Timestamp> {
        self.record(ItemType::TIMESTAMP)
    }

    /// User and group ids.
    #[must_use]
    pub fn creds(&self) -> Option<Creds> {
        self.record(ItemType::CREDS)
    }

    /// Process, thread and parent ids; 0 for one that cannot be seen from here.
    #[must_use]
    pub fn pids(&self) -> Option<Pids> {
        self.record(ItemType::PIDS)
    }

    /// Supplementary groups.
    #[must_use]
    pub fn groups(&self) -> Option<impl ExactSizeIterator<Item = u64> + use<'a>> {
        Some(self.item(ItemType::AUXGROUPS)?.words())
    }

    /// Well-known names, in the order they were acquired.
    pub fn names(&self) -> impl Iterator<Item = (NameFlags, &'a str)> + use<'a> {
        self.items().filter(|item| item.kind == ItemType::OWNED_NAME).filter_map(|item| item.owned_name())
    }

    /// Name of the thread, at most 15 bytes.
    #[must_use]
    pub fn thread_name(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::TID_COMM)
    }

    /// Name of the process, at most 15 bytes.
    #[must_use]
    pub fn process_name(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::PID_COMM)
    }

    /// Path of the executable.
    #[must_use]
    pub fn executable(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::EXE)
    }

    /// First argument of the command line.
    #[must_use]
    pub fn command_line(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::CMDLINE)
    }

    /// Control group path.
    #[must_use]
    pub fn cgroup(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::CGROUP)
    }

    /// Capability sets.
    #[must_use]
    pub fn capabilities(&self) -> Option<Capabilities> {
        Capabilities::parse(self.item(ItemType::CAPS)?.payload)
    }

    /// Label that the security module gives the process.
    #[must_use]
    pub fn security_label(&self) -> Option<&'a [u8]> {
        self.c_str(ItemType::SECLABEL)
    }

    /// Audit session and login user.
    #[must_use]
    pub fn audit(&self) -> Option<Audit> {
        self.record(ItemType::AUDIT)
    }

    /// What the connection called itself at HELLO.
    #[must_use]
    pub fn description(&self) -> Option<&'a str> {
        self.item(ItemType::CONN_DESCRIPTION)?.text()
    }

    /// Name of the bus; only in what [`creator_info`](super::Connection::creator_info) returns.
    #[must_use]
    pub fn bus_name(&self) -> Option<&'a str> {
        self.item(ItemType::MAKE_NAME)?.text()
    }

    /// Every item as the bus wrote it, up to the first that does not hold together.
    pub fn items(&self) -> impl Iterator<Item = Item<'a>> + use<'a> {
        self.items.clone().map_while(Result::ok)
    }

    fn item(&self, kind: ItemType) -> Option<Item<'a>> {
        self.items().find(|item| item.kind == kind)
    }

    fn record<R: FromBytes>(&self, kind: ItemType) -> Option<R> {
        self.item(kind)?.record()
    }

    fn c_str(&self, kind: ItemType) -> Option<&'a [u8]> {
        self.item(kind)?.c_str()
    }
}

impl fmt::Debug for Metadata<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.items().map(|item| item.kind)).finish()
    }
}

/// The four capability sets of a process, one bit a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Capabilities {
    /// Highest capability that the system knows.
    pub last: u32,
    /// Kept across a new program image.
    pub inheritable: u64,
    /// May be made effective.
    pub permitted: u64,
    /// In force.
    pub effective: u64,
    /// Can ever be gained.
    pub bounding: u64,
}

impl Capabilities {
    fn parse(payload: &[u8]) -> Option<Self> {
        let (last, sets) = payload.split_first_chunk()?;
        let (sets, []) = sets.as_chunks::<8>() else { return None };
        let set = |bytes: &[u8; 8]| {
            // Two words, the lower capabilities first, whatever the byte order of the machine.
            let [low, high] = zerocopy::transmute!(*bytes);
            let (low, high): (u32, u32) = (low, high);
            u64::from(low) | u64::from(high) << 32
        };
        let [inheritable, permitted, effective, bounding] = sets else { return None };
        Some(Self {
            last: u32::from_ne_bytes(*last),
            inheritable: set(inheritable),
            permitted: set(permitted),
            effective: set(effective),
            bounding: set(bounding),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ItemWriter;

    #[test]
    fn values_are_found_wherever_they_stand() {
        let mut buffer = [0; 512];
        let mut items = ItemWriter::new(&mut buffer);
        items.bytes(ItemType::AUXGROUPS, &[]).unwrap();
        items.parts(ItemType::OWNED_NAME, &[&0x20_u64.to_ne_bytes(), b"a.b\0"]).unwrap();
        items.bytes(ItemType::EXE, b"/bin/\xff\0").unwrap();
        items.record(ItemType::PIDS, &Pids { pid: 3, tid: 4, ppid: 1 }).unwrap();
        let metadata = Metadata::new(items.as_bytes());
        assert_eq!(metadata.pids().map(|pids| pids.tid), Some(4));
        assert_eq!(metadata.groups().map(|groups| groups.len()), Some(0));
        assert_eq!(metadata.executable(), Some(&b"/bin/\xff"[..]));
        assert!(metadata.names().eq([(NameFlags::PRIMARY, "a.b")]));
        assert!(metadata.creds().is_none());
    }

    #[test]
    fn capabilities_need_all_four_sets() {
        let mut payload = [0; 36];
        payload[0] = 40;
        payload[4 + 16] = 0b101;
        payload[4 + 20] = 1;
        let caps = Capabilities::parse(&payload).unwrap();
        assert_eq!((caps.last, caps.effective, caps.permitted), (40, 0b101 | 1 << 32, 0));
        assert_eq!(Capabilities::parse(&payload[..35]), None);
        assert_eq!(Capabilities::parse(&payload[..28]), None);
    }

    #[test]
    fn nothing_behind_a_broken_item_is_believed() {
        let mut buffer = [0; 64];
        let mut items = ItemWriter::new(&mut buffer);
        items.bytes(ItemType::EXE, b"/x\0").unwrap();
        items.record(ItemType::PIDS, &Pids::default()).unwrap();
        let end = items.len();
        buffer[0] = 15;
        assert!(Metadata::new(&buffer[..end]).pids().is_none());
    }
}
