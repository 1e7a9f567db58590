//! Match rules: which signals and notifications a connection wants.
//!
//! Each match is listed once, under the key of its most selective rule: the sender's id, a bit of its
//! bloom mask, or the notified id or name. A signal asks only the matches listed under its sender, under
//! the bits of its filter, and those without such a rule: it costs its candidates, not all matches. In
//! the worst case every match of the domain shares one bucket and is looked at once.

use crate::WellKnownName;
use crate::abi::{CmdMatch, Command, Errno, Frame, FrameError, Item, ItemType, MATCH_ID_ANY, MatchFlags};

use super::connection::record;
use super::limits::MATCHES_PER_CONNECTION;
use super::notify::Notice;
use super::rules::{Block, Bytes, Rule, Rules, Subject, Test, hash, mix};
use super::table::{Blank, BusIx, ConnIx, MatchIx, Place, Record, RuleIx, Table};

/// Bits of a mask that are weighed when a bucket is chosen.
const BITS_WEIGHED: usize = 64;

/// The matches of one connection, newest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnMatches {
    first: Option<MatchIx>,
    len: u32,
}

/// One match of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Match {
    cookie: u64,
    conn: Option<ConnIx>,
    rules: Option<RuleIx>,
    next_own: Option<MatchIx>,
    /// Bucket it is listed in; none if it can never pass a broadcast.
    bucket: Option<u32>,
    next: Option<MatchIx>,
    prev: Option<MatchIx>,
}

impl OwnMatches {
    /// No matches.
    pub(super) const NONE: Self = Self { first: None, len: 0 };
}

impl Blank for Match {
    const BLANK: Self =
        Self { cookie: 0, conn: None, rules: None, next_own: None, bucket: None, next: None, prev: None };
}

impl Bucket {
    /// A bucket without matches.
    pub(super) const EMPTY: Self = Self { first: None, len: 0, walked: 0 };
}

/// The matches that share one key, or keys of the same hash.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bucket {
    first: Option<MatchIx>,
    len: u32,
    /// The walk that came by last.
    walked: u64,
}

/// What a match is listed under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    AllSignals,
    Sender(u64),
    Bit(u32),
    AllNotices,
    Kind(ItemType),
    KindId(ItemType, u64),
    KindName(ItemType, u64),
}

/// All matches of a domain.
#[derive(Debug)]
pub(super) struct Matches<'s> {
    matches: Table<'s, MatchIx, Match>,
    rules: Rules<'s>,
    buckets: &'s mut [Bucket],
    walks: u64,
}

/// A walk over the matches that a broadcast may concern.
#[derive(Debug)]
pub(super) struct Walk {
    serial: u64,
    stage: u32,
    at: Option<MatchIx>,
}

impl Walk {
    /// A number that no other walk has.
    pub(super) const fn serial(&self) -> u64 {
        self.serial
    }
}

impl<'s> Matches<'s> {
    pub(super) fn new(
        matches: &'s mut [Record<Match>],
        rules: &'s mut [Record<Rule>],
        blocks: &'s mut [Record<Block>],
        buckets: &'s mut [Bucket],
    ) -> Self {
        Self { matches: Table::new(matches), rules: Rules::new(rules, blocks), buckets, walks: 0 }
    }

    /// Whether `items` can become a match at all.
    ///
    /// # Errors
    ///
    /// `EDOM` for a mask that is not made of whole filters, `EINVAL` for a malformed name.
    pub(super) fn check<'m>(items: impl Iterator<Item = Item<'m>>, bloom_size: u64) -> Result<(), Errno> {
        for item in items {
            match item.kind {
                ItemType::BLOOM_MASK => {
                    let len = item.payload.len() as u64;
                    if len == 0 || !len.is_multiple_of(bloom_size) {
                        return Err(Errno::EDOM);
                    }
                }
                ItemType::NAME => {
                    let name = item.c_str().ok_or(Errno::EINVAL)?;
                    WellKnownName::from_bytes(name).map_err(|error| error.errno())?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds one match with a rule for each item that [`check`](Self::check) let pass.
    ///
    /// Cost: one copy of the items, and for a bloom rule a look at its masks' words until 64 common bits are
    /// found, each `O(bytes of the rule / 64)`.
    ///
    /// # Errors
    ///
    /// `EMFILE` beyond [`MATCHES_PER_CONNECTION`]; `ENOMEM` if a table is full. Nothing is added.
    pub(super) fn add<'m>(
        &mut self,
        own: &mut OwnMatches,
        conn: ConnIx,
        bus: BusIx,
        cookie: u64,
        items: impl Iterator<Item = Item<'m>>,
        bloom_size: u64,
    ) -> Result<(), Errno> {
        if own.len >= MATCHES_PER_CONNECTION {
            return Err(Errno::EMFILE);
        }
        let new = Match { cookie, conn: Some(conn), next_own: own.first, ..Match::BLANK };
        let place = self.matches.insert(new).ok_or(Errno::ENOMEM)?;
        for item in items.filter(is_rule) {
            if !self.rules.add(&mut self.matches[place].rules, &item, bloom_size) {
                self.free(place);
                return Err(Errno::ENOMEM);
            }
        }
        own.first = Some(place);
        own.len += 1;
        if let Some(key) = self.key(place, bloom_size, bus) {
            self.list(place, self.bucket(bus, key));
        }
        Ok(())
    }

    /// As [`add`](Self::add), in the place of every own match with that cookie. `O(own matches)` besides.
    ///
    /// # Errors
    ///
    /// As [`add`](Self::add); nothing is added and nothing removed.
    pub(super) fn replace<'m>(
        &mut self,
        own: &mut OwnMatches,
        conn: ConnIx,
        bus: BusIx,
        cookie: u64,
        items: impl Iterator<Item = Item<'m>> + Clone,
        bloom_size: u64,
    ) -> Result<(), Errno> {
        let former = || self.own(own).filter(|old| old.cookie == cookie).map(|old| old.rules);
        let count = former().count();
        if own.len - count as u32 >= MATCHES_PER_CONNECTION {
            return Err(Errno::EMFILE);
        }
        let rules = items.clone().filter(is_rule);
        if self.matches.room() + count == 0 || !self.rules.have_room(rules, former()) {
            return Err(Errno::ENOMEM);
        }
        self.remove(own, cookie);
        self.add(own, conn, bus, cookie, items, bloom_size)
    }

    /// Removes every own match with that cookie and says how many there were. `O(own matches)`.
    pub(super) fn remove(&mut self, own: &mut OwnMatches, cookie: u64) -> usize {
        let mut removed = 0;
        let mut before: Option<MatchIx> = None;
        let mut at = own.first;
        while let Some(place) = at {
            at = self.matches[place].next_own;
            if self.matches[place].cookie != cookie {
                before = Some(place);
                continue;
            }
            match before {
                Some(before) => self.matches[before].next_own = at,
                None => own.first = at,
            }
            own.len -= 1;
            removed += 1;
            self.free(place);
        }
        removed
    }

    /// Removes the newest own match; false if there is none.
    pub(super) fn remove_one(&mut self, own: &mut OwnMatches) -> bool {
        let Some(place) = own.first else {
            return false;
        };
        own.first = self.matches[place].next_own;
        own.len -= 1;
        self.free(place);
        true
    }

    /// Whether any match of a connection passes `subject`, in `O(own matches)`.
    pub(super) fn any(&self, own: &OwnMatches, subject: &Subject<'_>) -> bool {
        self.own(own).any(|listed| self.rules.pass(listed.rules, subject))
    }

    /// Starts a walk over the matches that may pass a broadcast.
    pub(super) const fn walk(&mut self) -> Walk {
        self.walks += 1;
        Walk { serial: self.walks, stage: 0, at: None }
    }

    /// The connection of the next match that passes; a connection can come several times.
    ///
    /// Matches of other buses are passed over by the caller, who knows the bus of each connection.
    pub(super) fn next(&mut self, walk: &mut Walk, bus: BusIx, subject: &Subject<'_>) -> Option<ConnIx> {
        loop {
            while let Some(place) = walk.at {
                let listed = &self.matches[place];
                walk.at = listed.next;
                if self.rules.pass(listed.rules, subject) {
                    return listed.conn;
                }
            }
            let key = match subject {
                Subject::Signal { sender, filter, .. } => signal_key(&mut walk.stage, *sender, filter)?,
                Subject::Notice(notice) => notice_key(&mut walk.stage, notice)?,
            };
            let bucket = self.bucket(bus, key) as usize;
            if let Some(bucket) = self.buckets.get_mut(bucket)
                && bucket.walked != walk.serial
            {
                bucket.walked = walk.serial;
                walk.at = bucket.first;
            }
        }
    }

    /// Matches of all connections.
    pub(super) const fn len(&self) -> usize {
        self.matches.len()
    }

    /// The matches of a connection, newest first.
    fn own(&self, own: &OwnMatches) -> impl Iterator<Item = &Match> {
        let mut at = own.first;
        core::iter::from_fn(move || {
            let listed = &self.matches[at?];
            at = listed.next_own;
            Some(listed)
        })
    }

    fn free(&mut self, place: MatchIx) {
        self.unlist(place);
        self.rules.remove(self.matches[place].rules);
        self.matches.remove(place);
    }

    fn list(&mut self, place: MatchIx, bucket: u32) {
        let Some(head) = self.buckets.get_mut(bucket as usize) else {
            return;
        };
        let next = head.first.replace(place);
        head.len += 1;
        if let Some(next) = next {
            self.matches[next].prev = Some(place);
        }
        let listed = &mut self.matches[place];
        (listed.bucket, listed.next, listed.prev) = (Some(bucket), next, None);
    }

    fn unlist(&mut self, place: MatchIx) {
        let Match { bucket: Some(bucket), next, prev, .. } = self.matches[place] else {
            return;
        };
        match prev {
            Some(prev) => self.matches[prev].next = next,
            None => self.buckets[bucket as usize].first = next,
        }
        if let Some(next) = next {
            self.matches[next].prev = prev;
        }
        self.buckets[bucket as usize].len -= 1;
    }

    /// The most selective key of a match; none if no broadcast can ever pass it.
    fn key(&self, place: MatchIx, bloom_size: u64, bus: BusIx) -> Option<Key> {
        let first = self.matches[place].rules;
        if first.is_none() {
            return Some(Key::AllSignals);
        }
        let (mut signal, mut notice) = (None, None);
        for test in self.rules.tests(first) {
            let better = match test {
                Test::Never => return None,
                // A broadcast goes to nobody in particular.
                Test::Destination(id) if id != MATCH_ID_ANY => return None,
                Test::Sender(id) if id != MATCH_ID_ANY => Some(Key::Sender(id)),
                Test::Bloom { bits, masks } => self.rare_bit(bits, masks, bloom_size, bus).map(Key::Bit),
                Test::Sender(_) | Test::Destination(_) | Test::Name(_) => None,
                Test::IdChange { kind, id } => {
                    notice = Some(if id == MATCH_ID_ANY { Key::Kind(kind) } else { Key::KindId(kind, id) });
                    continue;
                }
                Test::NameChange { kind, name, .. } => {
                    let named = name.map(|name| Key::KindName(kind, self.rules.hash(name)));
                    notice = Some(named.unwrap_or(Key::Kind(kind)));
                    continue;
                }
            };
            if !matches!(signal, Some(Key::Sender(_))) {
                signal = better.or(signal).or(Some(Key::AllSignals));
            }
        }
        match (signal, notice) {
            // Rules for signals and rules for notifications together pass neither.
            (Some(_), Some(_)) => None,
            (signal, notice) => signal.or(notice),
        }
    }

    /// The bit that all masks of a rule have, of the fewest matches; none if they have no bit in common.
    fn rare_bit(&self, bits: Bytes, masks: u32, bloom_size: u64, bus: BusIx) -> Option<u32> {
        let mut best: Option<(u32, u32)> = None;
        let mut weighed = 0;
        for word in 0..bloom_size / 8 {
            let mut common = u64::MAX;
            for mask in 0..u64::from(masks) {
                common &= self.rules.word(bits, mask * bloom_size + word * 8);
            }
            while common != 0 && weighed < BITS_WEIGHED {
                let bit = word as u32 * 64 + common.trailing_zeros();
                common &= common - 1;
                weighed += 1;
                let len = self.buckets[self.bucket(bus, Key::Bit(bit)) as usize].len;
                if best.is_none_or(|(_, least)| len < least) {
                    best = Some((bit, len));
                }
            }
            if weighed >= BITS_WEIGHED {
                break;
            }
        }
        best.map(|(bit, _)| bit)
    }

    fn bucket(&self, bus: BusIx, key: Key) -> u32 {
        let (class, value) = match key {
            Key::AllSignals => (1, 0),
            Key::Sender(id) => (2, id),
            Key::Bit(bit) => (3, u64::from(bit)),
            Key::AllNotices => (1, 0),
            Key::Kind(kind) => (kind.0, 0),
            Key::KindId(kind, id) => (kind.0 | 1 << 32, id),
            Key::KindName(kind, hash) => (kind.0 | 2 << 32, hash),
        };
        let mixed = mix(mix(u64::from(bus.index()) + 1, class), value);
        (mixed % (self.buckets.len() as u64).max(1)) as u32
    }
}

/// Whether an item of a match is a rule. One that probes for item types is none.
fn is_rule(item: &Item<'_>) -> bool {
    item.kind != ItemType::NEGOTIATE
}

/// The keys under which a match that passes a signal is listed, one at each stage.
fn signal_key(stage: &mut u32, sender: u64, filter: &[u8]) -> Option<Key> {
    let at = *stage;
    if at < 2 {
        *stage += 1;
        return Some(if at == 0 { Key::AllSignals } else { Key::Sender(sender) });
    }
    // Behind the first two stages come the bits of the filter.
    let mut bit = at - 2;
    while let Some(word) = filter.get(bit as usize / 64 * 8..).and_then(|rest| rest.first_chunk()) {
        let left = u64::from_ne_bytes(*word) >> (bit % 64);
        if left == 0 {
            bit = (bit / 64 + 1) * 64;
            continue;
        }
        bit += left.trailing_zeros();
        *stage = bit + 3;
        return Some(Key::Bit(bit));
    }
    None
}

/// The keys under which a match that passes a notification is listed, one at each stage.
fn notice_key(stage: &mut u32, notice: &Notice<'_>) -> Option<Key> {
    *stage += 1;
    match (*stage, notice) {
        (1, _) => Some(Key::AllNotices),
        (2, _) => Some(Key::Kind(notice.kind())),
        (3, Notice::Id { change, .. }) => Some(Key::KindId(notice.kind(), change.id)),
        (3, Notice::Name { name, .. }) => Some(Key::KindName(notice.kind(), hash(name.as_bytes()))),
        _ => None,
    }
}

impl super::Domain<'_> {
    /// MATCH_ADD. Cost: one copy of the items, a choice of bucket that looks at the masks of bloom rules, and
    /// `O(own matches)` to replace some.
    pub(super) fn match_add(&mut self, conn: ConnIx, arg: &mut [u8]) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::MatchAdd.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let cmd: CmdMatch = record(frame.bytes);
        let bus = self.conns[conn].bus;
        let bloom_size = self.buses[bus].bloom.size;
        Matches::check(frame.items(), bloom_size)?;
        let own = &mut self.conns[conn].matches;
        if MatchFlags::from_bits_truncate(frame.flags).contains(MatchFlags::REPLACE) {
            return self.matches.replace(own, conn, bus, cmd.cookie, frame.items(), bloom_size);
        }
        self.matches.add(own, conn, bus, cmd.cookie, frame.items(), bloom_size)
    }

    /// MATCH_REMOVE. Cost: `O(own matches)`.
    pub(super) fn match_remove(&mut self, conn: ConnIx, arg: &mut [u8]) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::MatchRemove.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let cmd: CmdMatch = record(frame.bytes);
        match self.matches.remove(&mut self.conns[conn].matches, cmd.cookie) {
            0 => Err(Errno::EBADSLT),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
#[path = "matches_tests.rs"]
mod tests;
