//! Buffers that a worker lends, and those that are lent to it.
//!
//! A slab has one borrower, to whom a message with descriptors introduces it; each message after that lends a buffer, whose bytes
//! follow from the message as all others do. They are looked at when it comes, and once more when it is given back: whoever
//! lends it to somebody again before is found out.

use std::cell::OnceCell;
use std::os::fd::OwnedFd;
use std::time::Duration;

use kdbus_linux::local::{Borrower, LOAN_RECORD as RECORD, Lender, Loan, LoanError};
use zerocopy::IntoBytes;

use crate::client::{Arrival, Outcome};
use crate::payload::{self, STAMP, Stamp};
use crate::point::Point;
use crate::record::{Kind, MessageId, Record, Sort};
use crate::traffic::Payload;
use crate::worker::{HELD_MAX, Plan, Session, To};

/// Slabs that one connection maps at most: they stay until it ends.
const SLABS_MAX: usize = 64;
/// Slabs that one connection lends of at a time.
const LENDERS_MAX: usize = 8;
/// Bytes of the largest slab that is mapped.
const BYTES_MAX: u64 = 1 << 20;

/// A slab of somebody else.
#[derive(Debug)]
struct Slab {
    /// The message that introduced it.
    introduction: MessageId,
    borrower: Borrower,
}

/// Slabs of others that one connection has mapped.
#[derive(Debug)]
pub(crate) struct Slabs([OnceCell<Slab>; SLABS_MAX]);

/// A buffer in hand, and the message that lent it.
pub(crate) type Borrowed<'c> = (Stamp, Loan<'c>);

/// A slab of one's own.
#[derive(Debug)]
pub(crate) struct OwnSlab {
    /// Number of the message that introduced it.
    introduction: u64,
    lender: Lender,
}

impl Default for Slabs {
    fn default() -> Self {
        Self([const { OnceCell::new() }; SLABS_MAX])
    }
}

impl Slabs {
    fn add(&self, slab: Slab) {
        if let Some(place) = self.0.iter().find(|place| place.get().is_none()) {
            let _ = place.set(slab);
        }
    }

    /// The slab that a message lends of, if it was ever introduced here.
    fn of(&self, stamp: &Stamp) -> Option<&Borrower> {
        let introduction = MessageId { serial: stamp.slab, ..stamp.id };
        let slabs = self.0.iter().map_while(OnceCell::get);
        slabs.filter(|slab| slab.introduction == introduction).map(|slab| &slab.borrower).next()
    }
}

impl Session<'_> {
    /// Lends a buffer to somebody, or introduces a slab to whom there is none for.
    pub(crate) fn lend(&mut self) -> Outcome<()> {
        let Some(peer) = self.peer() else { return Ok(()) };
        let Some(slab) = self.lenders.remove(&peer) else { return self.introduce(peer) };
        let stays = match slab.lender.take() {
            // All are out: they come back, unless whoever has them never met the slab, or has gone.
            None => !self.context.once_in(4),
            Some(mut buffer) => {
                let id = self.context.next_id();
                let len = self.context.random.u64(1..=slab.lender.size());
                buffer.fill(|bytes| payload::fill(id, 0, &mut bytes[..len as usize]))?;
                let sent = buffer.lend(len, |record| {
                    self.context.reach(Point::Lending, self.bus.id()).map_err(Some)?;
                    let stamp = Stamp::of_slab(id, slab.introduction, len);
                    match self.send_of_slab(peer, id, &stamp, record, vec![]) {
                        Ok(true) => Ok(()),
                        Ok(false) => Err(None),
                        Err(error) => Err(Some(error)),
                    }
                });
                match sent {
                    Ok(()) => true,
                    // It is gone, or has no room.
                    Err(None) => self.context.random.bool(),
                    Err(Some(error)) => return Err(error),
                }
            }
        };
        if stays {
            self.lenders.insert(peer, slab);
        }
        Ok(())
    }

    fn introduce(&mut self, peer: u64) -> Outcome<()> {
        let (count, size) = (self.context.random.u32(1..=4), self.context.random.u64(1..20_000));
        let lender = Lender::new(count, size)?;
        let id = self.context.next_id();
        let (record, fds) = lender.introduction();
        let mut descriptors = Vec::new();
        for fd in fds {
            descriptors.push(fd.try_clone_to_owned()?);
        }
        let stamp = Stamp::of_slab(id, id.serial, 0);
        let accepted = self.send_of_slab(peer, id, &stamp, &record, descriptors)?;
        // Not everybody takes descriptors.
        if accepted {
            if self.lenders.len() == LENDERS_MAX {
                self.lenders.clear();
            }
            self.lenders.insert(peer, OwnSlab { introduction: id.serial, lender });
        }
        Ok(())
    }

    fn send_of_slab(
        &mut self,
        peer: u64,
        id: MessageId,
        stamp: &Stamp,
        record: &[u8; RECORD],
        descriptors: Vec<OwnedFd>,
    ) -> Outcome<bool> {
        let payload = Payload::of_slab([stamp.as_bytes(), record].concat(), descriptors, stamp.lent);
        let plan = Plan {
            sort: Sort::Plain,
            to: To::Id(peer),
            answers: MessageId::default(),
            timeout: Duration::ZERO,
        };
        self.send_payload(plan, id, &payload)
    }
}

impl<'c> Session<'c> {
    /// Maps the slab that a message introduces, or borrows the buffer that it lends.
    pub(crate) fn meet_slab(&mut self, stamp: &Stamp, message: &mut Arrival<'c>) -> Outcome<()> {
        let own = self.bus.id();
        let record = message.payload().get(STAMP..STAMP + RECORD).map(<[u8; RECORD]>::try_from);
        let Some(Ok(record)) = record.filter(|_| stamp.slab != 0) else { return Ok(()) };
        if stamp.lent == 0 {
            // Whoever has no descriptors left does without.
            let (Some(slab), Some(returns)) = (message.take_fd(0), message.take_fd(1)) else {
                return Ok(());
            };
            return match Borrower::new(&record, slab, returns, BYTES_MAX) {
                Ok(borrower) => {
                    self.slabs.add(Slab { introduction: stamp.id, borrower });
                    Ok(())
                }
                Err(LoanError::System(error)) => Err(error.into()),
                Err(_) => self.context.trouble(own, stamp.id, "a slab that is none"),
            };
        }
        // It may have been dropped with the message that introduces it, or by a former connection.
        let slabs: &'c Slabs = self.slabs;
        let Some(borrower) = slabs.of(stamp) else { return Ok(()) };
        let Ok(loan) = borrower.borrow(&record) else {
            return self.context.trouble(own, stamp.id, "a loan that is none");
        };
        self.read(stamp, &loan)?;
        let (peer, bytes) = (message.sender(), loan.len());
        self.context.note(Kind::Borrowed, Record { own, peer, id: stamp.id, bytes, ..Record::default() })?;
        self.context.reach(Point::Borrowing, own)?;
        if self.borrowed.len() < HELD_MAX && self.context.once_in(3) {
            self.borrowed.push((*stamp, loan));
        }
        Ok(())
    }

    /// Looks at each byte of a buffer.
    fn read(&mut self, stamp: &Stamp, loan: &Loan<'_>) -> Outcome<()> {
        let mut bytes = vec![0; loan.len() as usize];
        loan.read(0, &mut bytes)?;
        if loan.len() == stamp.lent && payload::is_intact(stamp.id, 0, &bytes) {
            return Ok(());
        }
        self.context.trouble(self.bus.id(), stamp.id, "the bytes of a loan")
    }

    /// Gives buffers back until `left` are in hand, after another look at each.
    pub(crate) fn give_back(&mut self, left: usize) -> Outcome<()> {
        while self.borrowed.len() > left {
            let (stamp, loan) = self.borrowed.swap_remove(0);
            self.read(&stamp, &loan)?;
        }
        Ok(())
    }
}
