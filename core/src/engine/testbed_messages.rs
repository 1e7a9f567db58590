//! Messages as tests make them, and as they find them.

extern crate std;

use std::vec;
use std::vec::Vec;

use zerocopy::IntoBytes;

use super::testbed::BLOOM;
use crate::abi::{ITEM_HEADER, Item, ItemType, ItemWriter, Items, Msg, MsgFlags, MsgInfo, align8};

/// Type and payload of an item.
pub(super) type OwnedItem = (ItemType, Vec<u8>);

/// A message as its receiver finds it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    pub(super) header: Msg,
    pub(super) slice: Vec<u8>,
    pub(super) info: MsgInfo,
}

impl Received {
    pub(super) fn items(&self) -> Vec<OwnedItem> {
        let area = &self.slice[Msg::SIZE..self.header.size as usize];
        let items = Items::new(area).map(Result::unwrap);
        items.map(|item: Item<'_>| (item.kind, item.payload.to_vec())).collect()
    }

    pub(super) fn item(&self, kind: ItemType) -> Option<Vec<u8>> {
        self.items().into_iter().find(|(other, _)| *other == kind).map(|(_, payload)| payload)
    }

    pub(super) fn kinds(&self) -> Vec<ItemType> {
        self.items().into_iter().map(|(kind, _)| kind).collect()
    }

    /// The first item and its payload as words.
    pub(super) fn notice(&self) -> (ItemType, Vec<u64>) {
        let (kind, payload) = self.items().remove(0);
        let words = payload.as_chunks::<8>().0.iter().map(|word| u64::from_ne_bytes(*word)).collect();
        (kind, words)
    }
}

/// A message to send.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    pub(super) header: Msg,
    pub(super) items: Vec<(ItemType, Vec<u8>)>,
    pub(super) payload: Vec<u8>,
    pub(super) sync: bool,
}

pub(super) fn message(to: u64, cookie: u64) -> Outgoing {
    let header = Msg { dst_id: to, cookie, payload_type: crate::abi::PAYLOAD_DBUS, ..Msg::default() };
    Outgoing { header, items: Vec::new(), payload: Vec::new(), sync: false }
}

pub(super) fn to_name(name: &str, cookie: u64) -> Outgoing {
    message(0, cookie).item(ItemType::DST_NAME, &c_str(name))
}

pub(super) fn signal(to: u64, filter: [u8; BLOOM]) -> Outgoing {
    let mut signal = message(to, 0);
    signal.header.flags = MsgFlags::SIGNAL.bits();
    let mut payload = vec![0; 8];
    payload.extend_from_slice(&filter);
    signal.item(ItemType::BLOOM_FILTER, &payload)
}

pub(super) fn broadcast() -> Outgoing {
    signal(u64::MAX, [0; BLOOM])
}

pub(super) fn c_str(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

impl Outgoing {
    pub(super) fn item(mut self, kind: ItemType, payload: &[u8]) -> Self {
        self.items.push((kind, payload.to_vec()));
        self
    }

    pub(super) fn vec(mut self, bytes: &[u8]) -> Self {
        self.payload.extend_from_slice(bytes);
        self.item(ItemType::PAYLOAD_VEC, crate::abi::Vec { size: bytes.len() as u64, address: 64 }.as_bytes())
    }

    pub(super) fn call(mut self, deadline: u64) -> Self {
        self.header.flags |= MsgFlags::EXPECT_REPLY.bits();
        self.header.timeout_or_reply = deadline;
        self
    }

    pub(super) fn sync(mut self, deadline: u64) -> Self {
        self.sync = true;
        self.call(deadline)
    }

    pub(super) fn reply_to(mut self, cookie: u64) -> Self {
        self.header.timeout_or_reply = cookie;
        self
    }

    pub(super) fn priority(mut self, priority: i64) -> Self {
        self.header.priority = priority;
        self
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let room = self.items.iter().map(|(_, payload)| ITEM_HEADER + payload.len() + 8).sum::<usize>();
        let mut buffer = vec![0; Msg::SIZE + room];
        let mut writer = ItemWriter::behind(&mut buffer, Msg::SIZE).unwrap();
        for (kind, payload) in &self.items {
            writer.bytes(*kind, payload).unwrap();
        }
        let end = writer.len();
        let header = Msg { size: end as u64, ..self.header };
        buffer[..Msg::SIZE].copy_from_slice(header.as_bytes());
        buffer.truncate(end);
        buffer
    }
}

/// A record and items as a command's argument.
pub(super) fn arg<T: IntoBytes + zerocopy::Immutable>(record: T, items: &[(ItemType, &[u8])]) -> Vec<u8> {
    let room = items.iter().map(|(_, payload)| ITEM_HEADER + payload.len() + 8).sum::<usize>();
    let mut buffer = vec![0; size_of::<T>() + room];
    let mut writer = ItemWriter::behind(&mut buffer, size_of::<T>()).unwrap();
    for (kind, payload) in items {
        writer.bytes(*kind, payload).unwrap();
    }
    let end = writer.len();
    buffer.truncate(end);
    buffer[..size_of::<T>()].copy_from_slice(record.as_bytes());
    buffer[..8].copy_from_slice(&(end as u64).to_ne_bytes());
    buffer
}

/// Bytes of a message with such items in its receiver's pool, when it asks for a timestamp only.
pub(super) fn slice_size(items: usize, payload: usize) -> u64 {
    let with_items = align8((Msg::SIZE + items) as u64);
    with_items + (ITEM_HEADER + 24) as u64 + align8(payload as u64)
}
