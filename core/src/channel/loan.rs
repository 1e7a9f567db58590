//! Buffers that are lent and come back: who has which, as far as each side can know.
//!
//! A slab has at most [`BUFFERS_MAX`] buffers. The lender keeps a [`Ledger`]; the borrower says what came back in one
//! shared word, a bit for each buffer ([`give_back`]), and the lender takes it from there. A bit that is set for a buffer
//! that was not lent, or was set before, changes nothing.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Words;

/// Buffers of one slab, a bit of one word each.
pub const BUFFERS_MAX: u32 = 64;

/// What begins a lender's introduction, and each message that names a buffer.
const MAGIC: u32 = u32::from_le_bytes(*b"loan");

/// The shared word of what came back.
const RETURNED: usize = 0;

/// Words that lender and borrower share.
pub const RETURN_WORDS: usize = 1;

/// What a lender says of its slab; the descriptors go with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SlabRecord {
    magic: u32,
    /// Buffers.
    pub count: u32,
    /// Bytes of each.
    pub size: u64,
    /// The lender's number of the slab.
    pub slab: u64,
}

/// What a message says that lends a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct LoanRecord {
    magic: u32,
    /// Which buffer.
    pub index: u32,
    /// Bytes of it that matter.
    pub len: u64,
    /// The lender's number of the slab.
    pub slab: u64,
}

const _: () = assert!(size_of::<SlabRecord>() == 24 && size_of::<LoanRecord>() == 24);

impl SlabRecord {
    /// The record of a slab.
    #[must_use]
    pub const fn new(slab: u64, count: u32, size: u64) -> Self {
        Self { magic: MAGIC, count, size, slab }
    }

    /// The record in a payload, if it is one that can be true: 1 to [`BUFFERS_MAX`] buffers that have an end.
    #[must_use]
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let record = Self::read_from_bytes(payload).ok()?;
        let fits = record.bytes().is_some_and(|bytes| bytes > 0) && record.count <= BUFFERS_MAX;
        (record.magic == MAGIC && fits).then_some(record)
    }

    /// Bytes of the whole slab; `None` if there are more than can be counted.
    #[must_use]
    pub const fn bytes(&self) -> Option<u64> {
        self.size.checked_mul(self.count as u64)
    }
}

impl LoanRecord {
    /// The record of a loan.
    #[must_use]
    pub const fn new(slab: u64, index: u32, len: u64) -> Self {
        Self { magic: MAGIC, index, len, slab }
    }

    /// The record at the beginning of a payload, if it is one of `of` and names a buffer that is there.
    #[must_use]
    pub fn parse(payload: &[u8], of: &SlabRecord) -> Option<Self> {
        let (record, _) = Self::read_from_prefix(payload).ok()?;
        let fits = record.slab == of.slab && record.index < of.count && record.len <= of.size;
        (record.magic == MAGIC && fits).then_some(record)
    }
}

/// What a lender knows of its buffers: each is free, taken or lent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ledger {
    free: u64,
    lent: u64,
    all: u64,
}

impl Ledger {
    /// All of `count` buffers are free; at most [`BUFFERS_MAX`].
    #[must_use]
    pub const fn new(count: u32) -> Self {
        let all = if count >= BUFFERS_MAX { u64::MAX } else { (1 << count) - 1 };
        Self { free: all, lent: 0, all }
    }

    /// Takes a free buffer, in `O(1)`.
    pub const fn take(&mut self) -> Option<u32> {
        if self.free == 0 {
            return None;
        }
        let index = self.free.trailing_zeros();
        self.free &= self.free - 1;
        Some(index)
    }

    /// Gives a taken buffer away; false if it is not taken.
    #[must_use]
    pub const fn lend(&mut self, index: u32) -> bool {
        let taken = self.is_taken(index);
        if taken {
            self.lent |= bit(index);
        }
        taken
    }

    /// Frees a buffer that was taken and not lent, or lent in a message that was refused.
    pub const fn free(&mut self, index: u32) {
        self.lent &= !bit(index);
        self.free |= bit(index) & self.all;
    }

    /// Takes back what the borrower has returned; how many buffers that are. Reads the shared word once.
    pub fn collect(&mut self, words: &(impl Words + ?Sized)) -> u32 {
        // Looking costs less than swapping, and mostly there is nothing.
        if words.load(RETURNED) == 0 {
            return 0;
        }
        let back = words.swap(RETURNED, 0) & self.lent;
        self.lent &= !back;
        self.free |= back;
        back.count_ones()
    }

    /// Takes everything back that is lent: the borrower is gone.
    pub const fn collect_all(&mut self) -> u32 {
        let back = self.lent;
        self.lent = 0;
        self.free |= back;
        back.count_ones()
    }

    /// Buffers that are lent.
    #[must_use]
    pub const fn lent(&self) -> u32 {
        self.lent.count_ones()
    }

    const fn is_taken(&self, index: u32) -> bool {
        bit(index) & self.all & !self.free & !self.lent != 0
    }
}

/// Returns a buffer to its lender, with one atomic operation.
pub fn give_back(words: &(impl Words + ?Sized), index: u32) {
    words.set_bits(RETURNED, bit(index));
}

/// The bit of a buffer; none for one that no slab has.
const fn bit(index: u32) -> u64 {
    if index < BUFFERS_MAX { 1 << index } else { 0 }
}

#[cfg(all(test, target_has_atomic = "64"))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_buffer_goes_round() {
        let words = [AtomicU64::new(0)];
        let mut ledger = Ledger::new(2);
        let (a, b) = (ledger.take().unwrap(), ledger.take().unwrap());
        assert_eq!(ledger.take(), None);
        assert!(ledger.lend(a) && ledger.lend(b) && !ledger.lend(a));
        assert_eq!(ledger.collect(&words[..]), 0);
        give_back(&words[..], a);
        assert_eq!((ledger.collect(&words[..]), ledger.lent()), (1, 1));
        assert_eq!(ledger.take(), Some(a));
    }

    #[test]
    fn what_was_not_lent_does_not_come_back() {
        let words = [AtomicU64::new(u64::MAX)];
        let mut ledger = Ledger::new(3);
        let taken = ledger.take().unwrap();
        assert_eq!(ledger.collect(&words[..]), 0, "nothing is lent, whatever the borrower says");
        assert!(ledger.lend(taken));
        give_back(&words[..], taken);
        give_back(&words[..], taken);
        assert_eq!(ledger.collect(&words[..]), 1);
        give_back(&words[..], taken);
        assert_eq!(ledger.take(), Some(taken));
        assert_eq!(ledger.collect(&words[..]), 0, "it was returned twice, and is somebody else's by now");
        assert_eq!((ledger.take().is_some(), ledger.take().is_some(), ledger.take()), (true, true, None));
    }

    #[test]
    fn a_borrower_that_is_gone_returns_everything() {
        let mut ledger = Ledger::new(BUFFERS_MAX);
        for _ in 0..BUFFERS_MAX {
            let index = ledger.take().unwrap();
            assert!(ledger.lend(index));
        }
        assert_eq!((ledger.take(), ledger.collect_all()), (None, BUFFERS_MAX));
        assert!(ledger.take().is_some());
        assert!(!ledger.lend(BUFFERS_MAX) && !ledger.lend(u32::MAX));
    }

    #[test]
    fn records_that_cannot_be_true_are_none() {
        let slab = SlabRecord::new(7, 4, 4096);
        assert_eq!(SlabRecord::parse(slab.as_bytes()), Some(slab));
        for wrong in [
            SlabRecord::new(7, 0, 4096),
            SlabRecord::new(7, 65, 4096),
            SlabRecord::new(7, 4, 0),
            SlabRecord::new(7, 4, u64::MAX / 2),
            SlabRecord { magic: 0, ..slab },
        ] {
            assert_eq!(SlabRecord::parse(wrong.as_bytes()), None, "{wrong:?}");
        }
        let loan = LoanRecord::new(7, 3, 4096);
        assert_eq!(LoanRecord::parse(loan.as_bytes(), &slab), Some(loan));
        for wrong in [
            LoanRecord::new(8, 3, 1),
            LoanRecord::new(7, 4, 1),
            LoanRecord::new(7, u32::MAX, 1),
            LoanRecord::new(7, 3, 4097),
            LoanRecord { magic: 1, ..loan },
        ] {
            assert_eq!(LoanRecord::parse(wrong.as_bytes(), &slab), None, "{wrong:?}");
        }
        assert_eq!(LoanRecord::parse(&[0; 23], &slab), None);
    }
}
