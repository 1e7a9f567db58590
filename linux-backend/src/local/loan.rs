//! Large payloads that are lent instead of copied, for streams of large buffers.
//!
//! The sender allocates a slab of buffers once ([`Lender`]); the receiver maps it once, read only, with all of its pages
//! in place ([`Borrower`]). From there on an ordinary message names a buffer, and the buffer goes back to the sender when
//! the receiver drops the [`Loan`], by one atomic operation on a word that both share. In the steady state the buffer
//! itself costs no system call, no page fault and no copy, whatever its size.
//!
//! | payload | cost | can the sender change it later? |
//! |---|---|---|
//! | inline | copied by the bus, once | no |
//! | [`SealedMemfd`](super::SealedMemfd), fresh | pages allocated, zeroed, mapped and faulted in for each message | no |
//! | `SealedMemfd`, sent again | a descriptor passed and mapped for each message | no |
//! | loan | nothing but the message that names it | **yes** |
//!
//! The last column is why a [`Loan`] hands out no `&[u8]`: a hostile sender can write into a buffer while it is read. Safe
//! code copies out what it looks at, once ([`Loan::read`], [`Loan::word`]), and checks the copy; [`Loan::as_slice`] is for
//! a receiver that trusts its sender as itself.
//!
//! What else the other side can do: neither can make memory of the other vanish (both files are sealed against shrinking,
//! which the borrower checks), the borrower cannot write into the slab (it is sealed against new writers), a buffer that
//! is returned twice or was never lent changes nothing at the lender, and a record that names no buffer, or one that is
//! held already, is an error at the borrower. A borrower that never returns anything leaves its lender without free
//! buffers, and nobody else; a slab has one borrower.
//!
//! ```
//! use kdbus_linux::local::{Borrower, Lender};
//!
//! let lender = Lender::new(4, 1 << 16)?;
//! // At first: the slab's record and descriptors, in a message with `.payload(..)` and `.fds(..)`.
//! let (record, fds) = lender.introduction();
//! # let fds: Vec<_> = fds.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
//! # let Ok([slab, returns]) = <[_; 2]>::try_from(fds) else { unreachable!() };
//! // At the receiver, which takes the descriptors out of that message and says how much it will map:
//! let borrower = Borrower::new(&record, slab, returns, 1 << 20)?;
//!
//! // Then for each message:
//! let mut buffer = lender.take().expect("all buffers are lent");
//! buffer.write(0, b"sound")?;
//! let mut sent = Vec::new();
//! buffer.lend(5, |record| { sent.extend_from_slice(record); Ok::<_, ()>(()) }).unwrap();
//!
//! let loan = borrower.borrow(&sent)?;
//! let mut bytes = [0; 5];
//! loan.read(0, &mut bytes)?;
//! assert_eq!(&bytes, b"sound");
//! drop(loan);
//! assert_eq!(lender.lent(), 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use core::cell::{Cell, RefCell};
use core::fmt;

use kdbus_core::channel::{BUFFERS_MAX, Ledger, LoanRecord, RETURN_WORDS, SlabRecord, give_back};
use kdbus_core::client::Delivery;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::Errno;

use super::LocalTransport;
use super::map::{self, OutOfRange, RacingMap, Seal, WordMap, WriteMap};

/// Bytes of the record that introduces a slab, and of one that names a buffer.
pub const RECORD: usize = size_of::<LoanRecord>();

/// A slab of buffers at its owner, who lends them to one receiver.
#[derive(Debug)]
pub struct Lender {
    slab: OwnedFd,
    returns: OwnedFd,
    map: RefCell<WriteMap>,
    returned: WordMap,
    record: SlabRecord,
    ledger: Cell<Ledger>,
}

/// A buffer to be filled. Dropping it frees it again.
#[derive(Debug)]
pub struct Buffer<'l> {
    lender: &'l Lender,
    index: u32,
}

/// Somebody else's slab, mapped for reading.
#[derive(Debug)]
pub struct Borrower {
    map: RacingMap,
    returned: WordMap,
    record: SlabRecord,
    /// Buffers that are held here, a bit for each.
    held: Cell<u64>,
}

/// A buffer that is lent to this process. Dropping it returns it.
///
/// Its bytes may change at any time, if the sender wants that.
#[derive(Debug)]
pub struct Loan<'b> {
    borrower: &'b Borrower,
    index: u32,
    len: u64,
}

/// Why a slab or a loan is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LoanError {
    /// The payload is no record of a slab, or none that names a buffer of this one.
    NotALoan,
    /// A descriptor of the introduction is missing.
    NoDescriptor,
    /// The slab is larger than the receiver will map.
    TooLarge,
    /// A file of the slab can be made shorter or written by more processes, or is shorter than it should be.
    Unsealed,
    /// The buffer is held here already.
    Held,
    /// The slab cannot be mapped.
    System(Errno),
}

impl Lender {
    /// A slab of `count` buffers (at most [`BUFFERS_MAX`]) of `size` bytes each, with all of its pages in place.
    ///
    /// # Errors
    ///
    /// `EINVAL` for no or too many buffers, or for none with bytes; what the system calls report that make, map and seal
    /// it.
    pub fn new(count: u32, size: u64) -> Result<Self, Errno> {
        // A word is read anywhere in a buffer, so each begins aligned for one.
        let size = size.checked_next_multiple_of(64).ok_or(Errno::INVAL)?;
        // Told apart by the clock: the introduction and the records that follow it are of one lender.
        let record = SlabRecord::new(super::bell::now().as_nanos(), count, size);
        let bytes = record.bytes().filter(|bytes| *bytes > 0 && count <= BUFFERS_MAX).ok_or(Errno::INVAL)?;
        let slab = map::create(c"kdbus-slab", bytes)?;
        let map = WriteMap::new(&slab, bytes, true)?;
        map::seal(&slab, Seal::SizeAndWriters)?;
        let returns = map::create(c"kdbus-returns", (RETURN_WORDS * size_of::<u64>()) as u64)?;
        let returned = WordMap::writable(&returns, RETURN_WORDS)?;
        map::seal(&returns, Seal::Size)?;
        let ledger = Cell::new(Ledger::new(count));
        Ok(Self { slab, returns, map: RefCell::new(map), returned, record, ledger })
    }

    /// What the receiver needs once: the payload and the descriptors of a message, in this order.
    #[must_use]
    pub fn introduction(&self) -> ([u8; RECORD], [BorrowedFd<'_>; 2]) {
        (zerocopy::transmute!(self.record), [self.slab.as_fd(), self.returns.as_fd()])
    }

    /// A free buffer, one that came back if there is no other; `None` while all are lent or taken. `O(1)`.
    pub fn take(&self) -> Option<Buffer<'_>> {
        self.collect();
        let index = self.update(Ledger::take)?;
        Some(Buffer { lender: self, index })
    }

    /// Buffers that are lent and did not come back. `O(1)`.
    #[must_use]
    pub fn lent(&self) -> u32 {
        self.collect();
        self.ledger.get().lent()
    }

    /// Takes everything back: the borrower has ended. Returns how many buffers that were.
    ///
    /// One that has not ended only sees its buffers change.
    pub fn borrower_gone(&self) -> u32 {
        self.update(Ledger::collect_all)
    }

    /// Buffers of the slab.
    #[must_use]
    pub const fn count(&self) -> u32 {
        self.record.count
    }

    /// Bytes of each: what was asked for, and up to 63 more.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.record.size
    }

    fn collect(&self) {
        self.update(|ledger| ledger.collect(&self.returned));
    }

    fn update<R>(&self, change: impl FnOnce(&mut Ledger) -> R) -> R {
        let mut ledger = self.ledger.get();
        let result = change(&mut ledger);
        self.ledger.set(ledger);
        result
    }
}

impl Buffer<'_> {
    /// Writes `bytes` at `offset`.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if they do not fit; nothing is written.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), OutOfRange> {
        let end = offset.checked_add(bytes.len() as u64).filter(|end| *end <= self.lender.record.size);
        end.ok_or(OutOfRange)?;
        self.with_map(|map, start| map.write(start + offset, bytes))?
    }

    /// Fills the buffer in place. It holds what it held when it was lent last.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] from within another buffer's `fill`.
    pub fn fill<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> R) -> Result<R, OutOfRange> {
        let size = self.lender.record.size;
        self.with_map(|map, start| map.bytes_mut(start, size).map(fill).ok_or(OutOfRange))?
    }

    /// Lends the buffer, of which the first `len` bytes matter: `send` puts the record at the beginning of a message's
    /// payload and sends it. If it fails, the buffer is free again.
    ///
    /// # Errors
    ///
    /// That of `send`.
    pub fn lend<R, E>(self, len: u64, send: impl FnOnce(&[u8; RECORD]) -> Result<R, E>) -> Result<R, E> {
        let SlabRecord { slab, size, .. } = self.lender.record;
        let record = LoanRecord::new(slab, self.index, len.min(size));
        let index = self.index;
        // Lent before it is sent: it may be back before `send` returns.
        let _ = self.lender.update(|ledger| ledger.lend(index));
        let sent = send(&zerocopy::transmute!(record))?;
        core::mem::forget(self);
        Ok(sent)
    }

    fn with_map<R>(&self, work: impl FnOnce(&mut WriteMap, u64) -> R) -> Result<R, OutOfRange> {
        let mut map = self.lender.map.try_borrow_mut().map_err(|_| OutOfRange)?;
        Ok(work(&mut map, u64::from(self.index) * self.lender.record.size))
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.lender.update(|ledger| ledger.free(self.index));
    }
}

impl Borrower {
    /// Maps the slab that `introduction` describes, if it has at most `bytes_max` bytes.
    ///
    /// # Errors
    ///
    /// [`LoanError`]; nothing stays mapped.
    pub fn new(
        introduction: &[u8],
        slab: impl AsFd,
        returns: impl AsFd,
        bytes_max: u64,
    ) -> Result<Self, LoanError> {
        let record = SlabRecord::parse(introduction).ok_or(LoanError::NotALoan)?;
        let bytes = record.bytes().ok_or(LoanError::NotALoan)?;
        if bytes > bytes_max {
            return Err(LoanError::TooLarge);
        }
        // In this order: a file that is sealed stays as it is when it is measured.
        let closed = |file: BorrowedFd<'_>, seals, len| {
            let has = rustix::fs::fcntl_get_seals(file).unwrap_or(SealFlags::empty());
            if !has.contains(seals) || !map::holds(file, len).map_err(LoanError::System)? {
                return Err(LoanError::Unsealed);
            }
            Ok(())
        };
        let size = SealFlags::SHRINK | SealFlags::GROW;
        closed(slab.as_fd(), size | SealFlags::FUTURE_WRITE, bytes)?;
        closed(returns.as_fd(), size, (RETURN_WORDS * size_of::<u64>()) as u64)?;
        Ok(Self {
            map: RacingMap::new(slab, bytes).map_err(LoanError::System)?,
            returned: WordMap::writable(returns, RETURN_WORDS).map_err(LoanError::System)?,
            record,
            held: Cell::new(0),
        })
    }

    /// The same out of the message that brings it, whose first two descriptors are taken.
    ///
    /// # Errors
    ///
    /// [`LoanError`].
    pub fn accept(
        introduction: &mut Delivery<'_, LocalTransport>,
        bytes_max: u64,
    ) -> Result<Self, LoanError> {
        let slab = introduction.take_fd(0).ok_or(LoanError::NoDescriptor)?;
        let returns = introduction.take_fd(1).ok_or(LoanError::NoDescriptor)?;
        Self::new(introduction.payload(), slab, returns, bytes_max)
    }

    /// The buffer that the record at the beginning of `payload` names. `O(1)`, no system call.
    ///
    /// A message that is dropped without this leaves its buffer lent.
    ///
    /// # Errors
    ///
    /// [`LoanError::NotALoan`], [`LoanError::Held`].
    pub fn borrow(&self, payload: &[u8]) -> Result<Loan<'_>, LoanError> {
        let LoanRecord { index, len, .. } =
            LoanRecord::parse(payload, &self.record).ok_or(LoanError::NotALoan)?;
        // The index is below the count, which is at most the bits of a word.
        let bit = 1 << index;
        let held = self.held.get();
        if held & bit != 0 {
            return Err(LoanError::Held);
        }
        self.held.set(held | bit);
        Ok(Loan { borrower: self, index, len })
    }
}

impl Loan<'_> {
    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes from `offset` on into `bytes`. What the sender writes meanwhile may be among them.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] if there are fewer; nothing is copied.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), OutOfRange> {
        let at = self.place(offset, bytes.len() as u64).ok_or(OutOfRange)?;
        self.borrower.map.read(at, bytes)
    }

    /// The eight bytes at `offset` as a number in native byte order, read once. `None` if there are fewer.
    #[must_use]
    pub fn word(&self, offset: u64) -> Option<u64> {
        self.borrower.map.word(self.place(offset, size_of::<u64>() as u64)?)
    }

    /// The bytes where they lie.
    ///
    /// # Safety
    ///
    /// The sender does not write into the buffer before it is returned. A [`Lender`] does not; another program may.
    #[must_use]
    #[allow(unsafe_code)]
    pub unsafe fn as_slice(&self) -> &[u8] {
        let at = self.place(0, self.len);
        // SAFETY: the caller's promise, for bytes of this buffer alone.
        at.and_then(|at| unsafe { self.borrower.map.as_slice(at, self.len) }).unwrap_or_default()
    }

    /// Where `len` bytes at `offset` of the buffer lie in the slab.
    fn place(&self, offset: u64, len: u64) -> Option<u64> {
        offset.checked_add(len).filter(|end| *end <= self.len)?;
        Some(u64::from(self.index) * self.borrower.record.size + offset)
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let held = &self.borrower.held;
        held.set(held.get() & !(1 << self.index));
        give_back(&self.borrower.returned, self.index);
    }
}

impl fmt::Display for LoanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotALoan => f.write_str("the message lends nothing out of this slab"),
            Self::NoDescriptor => f.write_str("the introduction of a slab came without its descriptors"),
            Self::TooLarge => f.write_str("the slab is larger than what may be mapped"),
            Self::Unsealed => f.write_str("a file of the slab is not sealed, or too short"),
            Self::Held => f.write_str("the buffer is held already"),
            Self::System(error) => write!(f, "the slab cannot be mapped: {error}"),
        }
    }
}

impl core::error::Error for LoanError {}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    const SIZE: u64 = 8192;

    fn borrower(lender: &Lender) -> Borrower {
        let (record, [slab, returns]) = lender.introduction();
        Borrower::new(&record, slab, returns, 1 << 20).unwrap()
    }

    fn lend(buffer: Buffer<'_>, len: u64) -> Vec<u8> {
        buffer.lend(len, |record| Ok::<_, ()>(record.to_vec())).unwrap()
    }

    #[test]
    fn a_buffer_goes_there_and_comes_back() {
        let lender = Lender::new(2, SIZE).unwrap();
        let borrower = borrower(&lender);
        let mut buffer = lender.take().unwrap();
        buffer.fill(|bytes| bytes[SIZE as usize - 1] = 9).unwrap();
        buffer.write(0, b"head").unwrap();
        assert_eq!(buffer.write(SIZE - 1, b"ab"), Err(OutOfRange));
        let record = lend(buffer, SIZE);
        let loan = borrower.borrow(&record).unwrap();
        let (mut head, mut tail) = ([0; 4], [0]);
        loan.read(0, &mut head).unwrap();
        loan.read(SIZE - 1, &mut tail).unwrap();
        assert_eq!((&head, tail), (b"head", [9]));
        assert_eq!(loan.word(0).map(|word| word as u32), Some(u32::from_ne_bytes(*b"head")));
        assert_eq!((loan.word(SIZE - 7), loan.read(u64::MAX, &mut tail)), (None, Err(OutOfRange)));
        assert_eq!(lender.lent(), 1);
        drop(loan);
        assert_eq!(lender.lent(), 0);
    }

    #[test]
    fn a_refused_or_forgotten_buffer_is_free_again() {
        let lender = Lender::new(1, SIZE).unwrap();
        drop(lender.take().unwrap());
        let refused = lender.take().unwrap().lend(1, |_| Err::<(), _>("no"));
        assert_eq!((refused, lender.lent()), (Err("no"), 0));
        let record = lend(lender.take().unwrap(), 1);
        assert!(lender.take().is_none());
        let borrower = borrower(&lender);
        drop(borrower.borrow(&record).unwrap());
        assert!(lender.take().is_some());
    }

    #[test]
    fn a_buffer_that_is_held_is_not_lent_again() {
        let lender = Lender::new(2, SIZE).unwrap();
        let borrower = borrower(&lender);
        let record = lend(lender.take().unwrap(), 1);
        let loan = borrower.borrow(&record).unwrap();
        assert_eq!(borrower.borrow(&record).err(), Some(LoanError::Held));
        drop(loan);
        assert!(borrower.borrow(&record).is_ok());
    }

    #[test]
    fn a_borrower_writes_nothing() {
        let lender = Lender::new(1, SIZE).unwrap();
        let (_, [slab, _]) = lender.introduction();
        assert_eq!(WriteMap::new(slab, SIZE, false).err(), Some(Errno::PERM));
        assert_eq!(rustix::io::pwrite(slab, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(slab, 0), Err(Errno::PERM));
        let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert_eq!(rustix::fs::fallocate(slab, punch, 0, SIZE), Err(Errno::PERM));
    }

    #[test]
    fn a_slab_that_could_vanish_is_not_mapped() {
        let lender = Lender::new(2, SIZE).unwrap();
        let (record, [slab, returns]) = lender.introduction();
        let file = |len, seals| {
            let file = map::create(c"kdbus-test", len).unwrap();
            rustix::fs::fcntl_add_seals(&file, seals).unwrap();
            file
        };
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE;
        for wrong in [
            file(2 * SIZE, SealFlags::empty()),
            file(2 * SIZE, SealFlags::GROW | SealFlags::FUTURE_WRITE),
            file(2 * SIZE, SealFlags::SHRINK | SealFlags::GROW),
            file(2 * SIZE - 1, all),
        ] {
            assert_eq!(Borrower::new(&record, &wrong, returns, 1 << 20).err(), Some(LoanError::Unsealed));
        }
        assert!(Borrower::new(&record, file(2 * SIZE, all), returns, 1 << 20).is_ok());
        for wrong in [file(8, SealFlags::empty()), file(7, all)] {
            assert_eq!(Borrower::new(&record, slab, &wrong, 1 << 20).err(), Some(LoanError::Unsealed));
        }
        let pipe = rustix::pipe::pipe().unwrap().0;
        assert_eq!(Borrower::new(&record, &pipe, returns, 1 << 20).err(), Some(LoanError::Unsealed));
        assert_eq!(Borrower::new(&record, slab, returns, SIZE).err(), Some(LoanError::TooLarge));
        assert_eq!(Borrower::new(b"hello", slab, returns, SIZE).err(), Some(LoanError::NotALoan));
    }

    #[test]
    fn a_slab_without_buffers_is_none() {
        for (count, size) in [(0, 64), (1, 0), (65, 64), (64, u64::MAX / 2)] {
            assert_eq!(Lender::new(count, size).err(), Some(Errno::INVAL));
        }
    }
}
