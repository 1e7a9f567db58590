//! What kdbusd counts for a connection, and who occupies it: the answer to [`Kind::Stats`](super::wire::Kind).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Users that one answer names at most.
pub const HOLDERS_MAX: usize = 64;

/// One connection in numbers. Counters run from its HELLO and never go back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stats {
    /// Its id.
    pub id: u64,
    /// Messages that wait for it.
    pub queued: u64,
    /// Messages that can wait.
    pub queue_depth: u64,
    /// Bytes of its pool.
    pub pool_size: u64,
    /// Bytes of the pool that messages take which wait.
    pub pool_used: u64,
    /// Slices of the pool that it or the bus holds.
    pub slices: u64,
    /// Calls of it that wait for a reply.
    pub calls: u64,
    /// Messages it has sent.
    pub sent: u64,
    /// Messages that were queued for it. A synchronous reply passes by the queue.
    pub received: u64,
    /// Broadcasts it has lost for want of room.
    pub lost: u64,
    /// Messages to it that were refused for want of room.
    pub refused: u64,
    /// Holders that follow in the answer.
    pub holders: u64,
}

/// What one user occupies at a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Holder {
    /// Its uid, [`Holder::BUS`] for the bus itself or [`Holder::ENDPOINT`] for all of a custom endpoint.
    pub uid: u64,
    /// Bytes of its messages that wait.
    pub size: u64,
    /// How many of them there are.
    pub messages: u64,
    /// Descriptors they carry, memfds not counted.
    pub fds: u64,
}

const _: () = assert!(size_of::<Stats>() == 96 && size_of::<Holder>() == 32);

impl Holder {
    /// Stands for the bus itself, the sender of notifications.
    pub const BUS: u64 = u64::MAX;
    /// Stands for everybody on a custom endpoint, who share one account.
    pub const ENDPOINT: u64 = u64::MAX - 1;
}

/// Bytes of the longest answer.
pub const STATS_BYTES: usize = size_of::<Stats>() + HOLDERS_MAX * size_of::<Holder>();

/// A connection in numbers, and who occupies it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The numbers.
    pub stats: Stats,
    /// Whose messages wait there.
    pub holders: heapless::Vec<Holder, HOLDERS_MAX>,
}

impl Report {
    /// Reads an answer; `None` if it is shorter than it says.
    #[must_use]
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let (stats, rest) = Stats::read_from_prefix(bytes).ok()?;
        let mut holders = heapless::Vec::new();
        for holder in rest.chunks_exact(size_of::<Holder>()).take(usize::try_from(stats.holders).ok()?) {
            holders.push(Holder::read_from_bytes(holder).ok()?).ok()?;
        }
        (holders.len() as u64 == stats.holders).then_some(Self { stats, holders })
    }

    /// Writes an answer. Holders that find no room are left out and not counted.
    pub fn write(&self, bytes: &mut [u8]) {
        let Some((head, rest)) = bytes.split_at_mut_checked(size_of::<Stats>()) else { return };
        let mut stats = self.stats;
        stats.holders = 0;
        for (place, holder) in rest.chunks_exact_mut(size_of::<Holder>()).zip(&self.holders) {
            place.copy_from_slice(holder.as_bytes());
            stats.holders += 1;
        }
        head.copy_from_slice(stats.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let mut holders = heapless::Vec::new();
        holders.push(Holder { uid: 7, size: 128, messages: 2, fds: 0 }).unwrap();
        holders.push(Holder { uid: Holder::BUS, size: 64, messages: 1, fds: 0 }).unwrap();
        Report { stats: Stats { id: 3, queued: 3, holders: 2, ..Stats::default() }, holders }
    }

    #[test]
    fn what_was_written_is_read() {
        let mut bytes = [0; STATS_BYTES];
        report().write(&mut bytes);
        assert_eq!(Report::read(&bytes), Some(report()));
    }

    #[test]
    fn holders_beyond_the_answer_are_not_counted() {
        let mut bytes = [0; size_of::<Stats>() + size_of::<Holder>() + 5];
        report().write(&mut bytes);
        assert_eq!(Report::read(&bytes).unwrap().holders.len(), 1);
    }

    #[test]
    fn an_answer_shorter_than_it_says_is_refused() {
        let mut bytes = [0; STATS_BYTES];
        report().write(&mut bytes);
        assert_eq!(Report::read(&bytes[..size_of::<Stats>() + 40]), None);
        assert_eq!(Report::read(&bytes[..90]), None);
        let many = Stats { holders: u64::MAX, ..Stats::default() };
        assert_eq!(Report::read(many.as_bytes()), None);
    }
}
