//! What the clients' messages carry: who they are, and bytes that follow from that.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use kdbus_linux::local::LOAN_RECORD as RECORD;

use crate::record::MessageId;

/// First bytes of each payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stamp {
    magic: u64,
    /// The message.
    pub id: MessageId,
    /// The call that it answers.
    pub answers: MessageId,
    /// Bytes behind the stamp and what follows it of a slab, in whatever parts.
    pub filler: u64,
    /// The message that introduces the slab which this one is about; 0 if it is about none.
    pub slab: u64,
    /// Bytes of a buffer of it that this message lends; 0 for the introduction.
    pub lent: u64,
}

/// Bytes of a stamp.
pub const STAMP: usize = size_of::<Stamp>();

const MAGIC: u64 = u64::from_be_bytes(*b"chaos-02");

impl Stamp {
    /// The stamp of a message with `filler` bytes behind it.
    #[must_use]
    pub const fn new(id: MessageId, answers: MessageId, filler: u64) -> Self {
        Self { magic: MAGIC, id, answers, filler, slab: 0, lent: 0 }
    }

    /// The stamp of a message of nothing else that introduces `slab`, or lends so many bytes of it.
    #[must_use]
    pub const fn of_slab(id: MessageId, slab: u64, lent: u64) -> Self {
        Self { slab, lent, ..Self::new(id, MessageId { client: 0, incarnation: 0, serial: 0 }, 0) }
    }

    /// Bytes behind the stamp that say which slab or buffer it is about.
    #[must_use]
    pub const fn record(&self) -> usize {
        if self.slab == 0 { 0 } else { RECORD }
    }

    /// The stamp in front of `payload`, if there is one.
    #[must_use]
    pub fn read(payload: &[u8]) -> Option<Self> {
        let (stamp, _) = Self::read_from_prefix(payload).ok()?;
        (stamp.magic == MAGIC).then_some(stamp)
    }
}

/// Byte `at` of what follows the stamp of `id`.
const fn byte(id: MessageId, at: u64) -> u8 {
    let word =
        id.serial.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ ((id.client as u64) << 32 | id.incarnation as u64);
    let mixed = (word ^ (at / 8)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed.to_le_bytes()[(at % 8) as usize]
}

/// Fills `bytes`, which stand `from` bytes behind the stamp of `id`.
pub fn fill(id: MessageId, from: u64, bytes: &mut [u8]) {
    for (at, place) in bytes.iter_mut().enumerate() {
        *place = byte(id, from + at as u64);
    }
}

/// Whether `bytes`, which stand `from` bytes behind the stamp of `id`, are what was sent.
#[must_use]
pub fn is_intact(id: MessageId, from: u64, bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(at, found)| *found == byte(id, from + at as u64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_another_message_or_place_are_not_intact() {
        let id = MessageId { client: 3, incarnation: 1, serial: 77 };
        let mut bytes = [0; 100];
        fill(id, 40, &mut bytes);
        assert!(is_intact(id, 40, &bytes));
        assert!(!is_intact(id, 41, &bytes));
        assert!(!is_intact(MessageId { serial: 78, ..id }, 40, &bytes));
        bytes[99] ^= 1;
        assert!(!is_intact(id, 40, &bytes));
        let stamp = Stamp::new(id, MessageId::default(), 100);
        assert_eq!(Stamp::read(stamp.as_bytes()), Some(stamp));
        assert_eq!(Stamp::read(&[7; STAMP]), None);
    }
}
