//! What the application asked of the bus, to ask for it again after a reconnect.

use core::ops::Range;

/// Bytes that a connection keeps to restore itself: 16 for each name or match, and what was given with it,
/// rounded up to 8. HELLO takes 96 and its items.
pub const REGISTRY_SIZE: usize = 2048;

/// What a record restores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordKind {
    Hello,
    Name,
    Match,
}

/// One thing asked for: its kind, a number (flags of a name, cookie of a match) and its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: RecordKind,
    pub(super) key: u64,
    pub(super) body: &'a [u8],
}

/// Records one after another: length of the body and kind in one word, the key, the body padded to 8.
pub(super) struct Registry {
    bytes: heapless::Vec<u8, REGISTRY_SIZE>,
    forgotten: u32,
}

const HEADER: usize = 16;

impl Registry {
    pub(super) const fn new() -> Self {
        Self { bytes: heapless::Vec::new(), forgotten: 0 }
    }

    /// Appends a record. Without room it is counted as forgotten.
    pub(super) fn add(&mut self, kind: RecordKind, key: u64, body: &[u8]) {
        let padding = body.len().next_multiple_of(8) - body.len();
        if HEADER + body.len() + padding > self.bytes.capacity() - self.bytes.len() {
            self.forgotten = self.forgotten.saturating_add(1);
            return;
        }
        let head = (body.len() as u64) << 8 | kind as u64;
        for part in [&head.to_ne_bytes(), &key.to_ne_bytes(), body, &[0; 8][..padding]] {
            // Room for the whole record was found above.
            let _ = self.bytes.extend_from_slice(part);
        }
    }

    /// Removes every record that `gone` picks. Cost: the bytes of the registry for each one removed.
    pub(super) fn remove(&mut self, gone: impl Fn(Record<'_>) -> bool) {
        let mut at = 0;
        while let Some((record, range)) = self.get(at) {
            if gone(record) {
                let len = self.bytes.len();
                self.bytes.copy_within(range.end.., range.start);
                self.bytes.truncate(len - range.len());
            } else {
                at = range.end;
            }
        }
    }

    /// The record at `at`, where the first is at 0, and the bytes it takes; the next one begins at their end.
    pub(super) fn get(&self, at: usize) -> Option<(Record<'_>, Range<usize>)> {
        let (head, rest) = self.bytes.get(at..)?.split_first_chunk()?;
        let (key, rest) = rest.split_first_chunk()?;
        let head = u64::from_ne_bytes(*head);
        let kind = match head as u8 {
            0 => RecordKind::Hello,
            1 => RecordKind::Name,
            _ => RecordKind::Match,
        };
        let len = (head >> 8) as usize;
        let record = Record { kind, key: u64::from_ne_bytes(*key), body: rest.get(..len)? };
        Some((record, at..at + HEADER + len.next_multiple_of(8)))
    }

    /// The bytes of the first record of `kind`, to change them.
    pub(super) fn body_mut(&mut self, kind: RecordKind) -> Option<&mut [u8]> {
        let mut at = 0;
        loop {
            let (record, range) = self.get(at)?;
            if record.kind == kind {
                let len = record.body.len();
                return self.bytes.get_mut(range.start + HEADER..range.start + HEADER + len);
            }
            at = range.end;
        }
    }

    /// Things asked for that found no room here since the connection was made.
    pub(super) const fn forgotten(&self) -> u32 {
        self.forgotten
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::*;

    fn keys(registry: &Registry) -> Vec<u64> {
        let mut at = 0;
        core::iter::from_fn(|| {
            let (record, range) = registry.get(at)?;
            at = range.end;
            Some(record.key)
        })
        .collect()
    }

    #[test]
    fn removed_records_close_ranks() {
        let mut registry = Registry::new();
        registry.add(RecordKind::Hello, 1, b"hello");
        registry.add(RecordKind::Name, 2, b"a.b");
        registry.add(RecordKind::Match, 3, b"12345678");
        registry.add(RecordKind::Name, 4, b"");
        registry.remove(|record| record.body == b"a.b");
        assert_eq!(keys(&registry), [1, 3, 4]);
        registry.remove(|record| record.kind != RecordKind::Match);
        assert_eq!(keys(&registry), [3]);
        assert_eq!(registry.get(0).unwrap().0.body, b"12345678");
    }

    #[test]
    fn what_has_no_room_is_counted() {
        let mut registry = Registry::new();
        registry.add(RecordKind::Match, 1, &[0; REGISTRY_SIZE - 16]);
        registry.add(RecordKind::Match, 2, &[]);
        assert_eq!((keys(&registry), registry.forgotten()), (Vec::from([1]), 1));
        registry.remove(|_| true);
        registry.add(RecordKind::Match, 3, &[0; REGISTRY_SIZE - 15]);
        assert_eq!((keys(&registry), registry.forgotten()), (Vec::new(), 2));
    }

    #[test]
    fn a_record_can_be_changed_in_place() {
        let mut registry = Registry::new();
        registry.add(RecordKind::Name, 1, b"abc");
        registry.add(RecordKind::Hello, 2, b"xyz");
        registry.body_mut(RecordKind::Hello).unwrap()[0] = b'X';
        assert_eq!(registry.get(24).unwrap().0.body, b"Xyz");
        assert!(registry.body_mut(RecordKind::Match).is_none());
    }
}
