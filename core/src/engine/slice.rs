//! Items on their way into a slice of a pool.

use crate::abi::{ITEM_HEADER, ItemType, align8};

use super::host::{HandleId, Host};

/// Takes items one by one: once to learn how long they are, once to write them.
pub(super) trait ItemSink {
    /// Takes an item whose payload is `parts` one after another.
    fn item(&mut self, kind: ItemType, parts: &[&[u8]]);
}

/// Takes bytes one after another, and so items too.
pub(super) trait ByteSink {
    /// Takes bytes that are no item.
    fn bytes(&mut self, bytes: &[u8]);

    /// Takes zeros for what is missing to the next multiple of 8.
    fn pad(&mut self);
}

impl<S: ByteSink> ItemSink for S {
    fn item(&mut self, kind: ItemType, parts: &[&[u8]]) {
        self.pad();
        let payload: usize = parts.iter().map(|part| part.len()).sum();
        let mut header = [0; ITEM_HEADER];
        header[..8].copy_from_slice(&((ITEM_HEADER + payload) as u64).to_ne_bytes());
        header[8..].copy_from_slice(&kind.0.to_ne_bytes());
        self.bytes(&header);
        for part in parts {
            self.bytes(part);
        }
    }
}

/// Counts the bytes of items.
#[derive(Debug, Default)]
pub(super) struct Measure {
    end: u64,
}

impl Measure {
    /// Bytes up to the unpadded end of the last item.
    pub(super) const fn len(&self) -> u64 {
        self.end
    }
}

impl ByteSink for Measure {
    fn bytes(&mut self, bytes: &[u8]) {
        self.end += bytes.len() as u64;
    }

    fn pad(&mut self) {
        self.end = align8(self.end);
    }
}

/// Writes bytes and items into a slice, padding zeroed.
pub(super) struct SliceWriter<'h> {
    host: &'h mut dyn Host,
    owner: HandleId,
    at: u64,
}

impl<'h> SliceWriter<'h> {
    /// A writer that starts at `offset` of a pool.
    pub(super) fn new(host: &'h mut dyn Host, owner: HandleId, offset: u64) -> Self {
        Self { host, owner, at: offset }
    }

    /// Where the next byte goes.
    pub(super) const fn at(&self) -> u64 {
        self.at
    }
}

impl ByteSink for SliceWriter<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.host.pool_write(self.owner, self.at, bytes);
            self.at += bytes.len() as u64;
        }
    }

    fn pad(&mut self) {
        let end = align8(self.at);
        if end > self.at {
            self.host.pool_write(self.owner, self.at, &[0; 8][..(end - self.at) as usize]);
            self.at = end;
        }
    }
}
