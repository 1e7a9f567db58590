//! A message as its receiver finds it: put together first, and then written into a pool, in one go if it is short.

use core::mem::offset_of;

use zerocopy::IntoBytes;

use crate::abi::{Errno, ITEM_HEADER, ItemType, Items, Memfd, Msg, OFFSET_ZEROS, Vec, align8};
use crate::examine::received_len;

use super::Domain;
use super::deliver::{Parcel, Shown};
use super::host::{HandleId, Host};
use super::pool::Slice;
use super::slice::{ByteSink, ItemSink, Measure, SliceWriter};

/// Bytes up to which header, items and metadata of a message are put together before they go into a pool.
const DRAFT_MAX: usize = 512;

/// Bytes and items that are put together here, padding zeroed, to be written at once.
///
/// A full one stands for one that was too small: it takes no flag, and so costs nothing to make.
#[derive(Debug)]
pub(super) struct Draft(heapless::Vec<u8, DRAFT_MAX>);

impl Draft {
    /// Nothing yet.
    pub(super) fn new() -> Self {
        Self(heapless::Vec::new())
    }

    /// Overwrites a word.
    fn put_word(&mut self, at: usize, word: u64) {
        if let Some(place) = self.0.get_mut(at..at + 8) {
            place.copy_from_slice(&word.to_ne_bytes());
        }
    }

    /// All of it; `None` if it may be that something had no room.
    fn whole(&self) -> Option<&[u8]> {
        (!self.0.is_full()).then_some(self.0.as_slice())
    }
}

impl ByteSink for Draft {
    fn bytes(&mut self, bytes: &[u8]) {
        if self.0.extend_from_slice(bytes).is_err() {
            // Cannot fail: it is as large as that.
            let _ = self.0.resize(DRAFT_MAX, 0);
        }
    }

    fn pad(&mut self) {
        let end = self.0.len();
        self.bytes(&[0; 8][..end.next_multiple_of(8) - end]);
    }
}

impl Domain<'_> {
    /// Puts header, items and metadata of a message together in `draft`, if they fit there; says how many bytes they are, and
    /// how many its slice has.
    pub(super) fn put_together(
        &mut self,
        host: &mut dyn Host,
        parcel: &Parcel<'_>,
        shown: &Shown,
        draft: &mut Draft,
    ) -> (u64, u64) {
        self.gather(host, parcel, shown.attach);
        // Its size is known when all of it is there.
        draft.bytes(self.received_header(parcel, 0).as_bytes());
        draft.bytes(parcel.items);
        self.emit_metadata(parcel, shown, draft);
        let len = draft.0.len() as u64;
        draft.pad();
        let size = match draft.whole() {
            Some(_) => len,
            None => {
                let mut measure = Measure::default();
                self.emit_metadata(parcel, shown, &mut measure);
                received_len((Msg::SIZE + parcel.items.len()) as u64, measure.len())
            }
        };
        draft.put_word(offset_of!(Msg, size), size);
        (size, align8(size) + align8(parcel.payload))
    }

    /// The header of a message as its receivers see it.
    fn received_header(&self, parcel: &Parcel<'_>, size: u64) -> Msg {
        let src_id = parcel.from.map_or(0, |from| self.conns[from].id);
        Msg { size, src_id, ..*parcel.header }
    }

    /// Writes a message into its slice: as it was put together, or, where it had no room for that, piece by piece.
    ///
    /// # Errors
    ///
    /// `EFAULT` and what else the host says of its payload.
    #[expect(clippy::too_many_arguments, reason = "a message and where it goes")]
    pub(super) fn write_message(
        &mut self,
        host: &mut dyn Host,
        owner: HandleId,
        parcel: &Parcel<'_>,
        shown: &Shown,
        draft: &mut Draft,
        slice: Slice,
        size: u64,
    ) -> Result<(), Errno> {
        if draft.whole().is_some() {
            return write_draft(host, owner, parcel, draft, slice.offset);
        }
        let base = align8(size);
        let header = self.received_header(parcel, size);
        let mut writer = SliceWriter::new(host, owner, slice.offset);
        writer.bytes(header.as_bytes());
        let mut payload = base;
        let mut written = 0;
        for item in Items::new(parcel.items).filter_map(Result::ok) {
            match item.kind {
                ItemType::PAYLOAD_VEC => {
                    let vec: Vec = item.record().unwrap_or_default();
                    writer.bytes(&parcel.items[written..item.at]);
                    written = item.at + ITEM_HEADER + item.payload.len();
                    let (address, len) = match vec.address {
                        0 => (OFFSET_ZEROS, vec.size % 8),
                        _ => (payload, vec.size),
                    };
                    writer.item(ItemType::PAYLOAD_OFF, &[Vec { size: vec.size, address }.as_bytes()]);
                    payload += len;
                }
                ItemType::PAYLOAD_MEMFD => {
                    payload += item.record::<Memfd>().map_or(0, |memfd| memfd.size % 8);
                }
                _ => {}
            }
        }
        writer.bytes(&parcel.items[written..]);
        self.emit_metadata(parcel, shown, &mut writer);
        writer.pad();
        debug_assert_eq!(writer.at(), slice.offset + base, "metadata is as long as it was measured");
        if parcel.payload > 0 {
            write_payload(host, owner, parcel, slice.offset + base)?;
        }
        Ok(())
    }
}

/// Writes a message that was put together, its payload behind it.
fn write_draft(
    host: &mut dyn Host,
    owner: HandleId,
    parcel: &Parcel<'_>,
    draft: &mut Draft,
    start: u64,
) -> Result<(), Errno> {
    let base = draft.whole().map_or(0, |bytes| bytes.len() as u64);
    let (mut payload, mut skip) = (base, 0);
    for item in Items::new(parcel.items).filter_map(Result::ok) {
        match item.kind {
            ItemType::PAYLOAD_VEC => {
                let vec: Vec = item.record().unwrap_or_default();
                let address = if vec.address == 0 {
                    zero(host, owner, start + payload, vec.size % 8);
                    payload += vec.size % 8;
                    OFFSET_ZEROS
                } else {
                    host.payload(owner, start + payload, vec.address, skip, vec.size)?;
                    skip += vec.size;
                    payload += vec.size;
                    payload - vec.size
                };
                // The record has the same size and the same fields, of another meaning.
                let at = Msg::SIZE + item.at;
                draft.put_word(at + size_of::<u64>(), ItemType::PAYLOAD_OFF.0);
                draft.put_word(at + ITEM_HEADER + offset_of!(Vec, address), address);
            }
            ItemType::PAYLOAD_MEMFD => {
                let rest = item.record::<Memfd>().map_or(0, |memfd| memfd.size % 8);
                zero(host, owner, start + payload, rest);
                payload += rest;
            }
            _ => {}
        }
    }
    zero(host, owner, start + payload, base + align8(parcel.payload) - payload);
    host.pool_write(owner, start, draft.whole().unwrap_or_default());
    Ok(())
}

/// Copies the payload of a message behind its items.
fn write_payload(host: &mut dyn Host, owner: HandleId, parcel: &Parcel<'_>, start: u64) -> Result<(), Errno> {
    let (mut at, mut skip) = (start, 0);
    for item in Items::new(parcel.items).filter_map(Result::ok) {
        match item.kind {
            ItemType::PAYLOAD_VEC => {
                let vec: Vec = item.record().unwrap_or_default();
                if vec.address == 0 {
                    at = zero(host, owner, at, vec.size % 8);
                } else {
                    host.payload(owner, at, vec.address, skip, vec.size)?;
                    at += vec.size;
                    skip += vec.size;
                }
            }
            ItemType::PAYLOAD_MEMFD => {
                let rest = item.record::<Memfd>().map_or(0, |memfd| memfd.size % 8);
                at = zero(host, owner, at, rest);
            }
            _ => {}
        }
    }
    let end = start + align8(parcel.payload);
    zero(host, owner, at, end - at);
    Ok(())
}

fn zero(host: &mut dyn Host, owner: HandleId, at: u64, len: u64) -> u64 {
    if len > 0 {
        host.pool_zero(owner, at, len);
    }
    at + len
}

#[cfg(test)]
#[path = "draft_tests.rs"]
mod tests;
