//! Rules: what a match asks of a signal or a notification.
//!
//! Masks and names are kept in blocks of 64 bytes, so that rules of any length come and go without
//! fragmentation.

use crate::WELL_KNOWN_NAME_MAX;
use crate::abi::{IdChange, Item, ItemType, MATCH_ID_ANY};

use super::notify::Notice;
use super::table::{Blank, BlockIx, Record, RuleIx, Table};

/// Bytes of rule payload in one block: the usual bloom mask fits into one.
pub(super) const BLOCK_BYTES: usize = 64;

/// One rule of a match.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    test: Test,
    next: Option<RuleIx>,
}

/// What one rule asks.
#[derive(Clone, Copy, Debug)]
pub(super) enum Test {
    Never,
    /// Masks of the bus' size, one after another.
    Bloom {
        bits: Bytes,
        masks: u32,
    },
    Sender(u64),
    Destination(u64),
    /// The sender holds this name.
    Name(Bytes),
    IdChange {
        kind: ItemType,
        id: u64,
    },
    NameChange {
        kind: ItemType,
        old: u64,
        new: u64,
        name: Option<Bytes>,
    },
}

impl Test {
    /// The bytes it keeps.
    const fn bytes(self) -> Option<Bytes> {
        match self {
            Self::Bloom { bits, .. } => Some(bits),
            Self::Name(name) => Some(name),
            Self::NameChange { name, .. } => name,
            Self::Never | Self::Sender(_) | Self::Destination(_) | Self::IdChange { .. } => None,
        }
    }
}

/// Bytes in a chain of blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bytes {
    first: Option<BlockIx>,
    len: u32,
}

/// A part of the bytes of one rule.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    bytes: [u8; BLOCK_BYTES],
    next: Option<BlockIx>,
}

impl Blank for Rule {
    const BLANK: Self = Self { test: Test::Never, next: None };
}

impl Blank for Block {
    const BLANK: Self = Self { bytes: [0; BLOCK_BYTES], next: None };
}

/// What matches are asked about.
#[derive(Clone, Copy)]
pub(super) enum Subject<'m> {
    /// A signal of a connection; `holds` says whether that connection holds a name.
    Signal {
        sender: u64,
        destination: u64,
        generation: u64,
        filter: &'m [u8],
        holds: &'m dyn Fn(&str) -> bool,
    },
    /// A message of the bus itself.
    Notice(&'m Notice<'m>),
}

/// The rules of all matches of a domain.
#[derive(Debug)]
pub(super) struct Rules<'s> {
    rules: Table<'s, RuleIx, Rule>,
    blocks: Table<'s, BlockIx, Block>,
}

impl<'s> Rules<'s> {
    pub(super) const fn new(rules: &'s mut [Record<Rule>], blocks: &'s mut [Record<Block>]) -> Self {
        Self { rules: Table::new(rules), blocks: Table::new(blocks) }
    }

    /// Adds the rule of an item before `first`; false if a table is full.
    pub(super) fn add(&mut self, first: &mut Option<RuleIx>, item: &Item<'_>, bloom_size: u64) -> bool {
        let test = match item.kind {
            ItemType::BLOOM_MASK => {
                let masks = item.payload.len() as u64 / bloom_size.max(1);
                self.store(item.payload).map(|bits| Test::Bloom { bits, masks: masks as u32 })
            }
            ItemType::NAME => item.c_str().and_then(|name| self.store(name)).map(Test::Name),
            ItemType::ID => item.u64().map(Test::Sender),
            ItemType::DST_ID => item.u64().map(Test::Destination),
            ItemType::ID_ADD | ItemType::ID_REMOVE => {
                item.record::<IdChange>().map(|change| Test::IdChange { kind: item.kind, id: change.id })
            }
            ItemType::NAME_ADD | ItemType::NAME_REMOVE | ItemType::NAME_CHANGE => {
                let Some((old, new, name)) = item.name_change() else {
                    return false;
                };
                let given = item.payload.len() > 2 * size_of::<IdChange>();
                let stored = match name.len() {
                    0 if !given => None,
                    // No name that can change is empty or that long.
                    len if len == 0 || len > WELL_KNOWN_NAME_MAX => return self.push(first, Test::Never),
                    _ => match self.store(name) {
                        Some(name) => Some(name),
                        None => return false,
                    },
                };
                Some(Test::NameChange { kind: item.kind, old: old.id, new: new.id, name: stored })
            }
            _ => Some(Test::Never),
        };
        test.is_some_and(|test| self.push(first, test))
    }

    /// Whether the rules of `items` find room once those from each of `freed` on are gone.
    pub(super) fn have_room<'m>(
        &self,
        items: impl Iterator<Item = Item<'m>>,
        freed: impl Iterator<Item = Option<RuleIx>>,
    ) -> bool {
        let (mut rules, mut blocks) = (self.rules.room(), self.blocks.room());
        for test in freed.flat_map(|first| self.tests(first)) {
            rules += 1;
            blocks += test.bytes().map_or(0, |bytes| (bytes.len as usize).div_ceil(BLOCK_BYTES));
        }
        for item in items {
            let bytes = match item.kind {
                ItemType::BLOOM_MASK => item.payload.len(),
                ItemType::NAME => item.c_str().map_or(0, <[u8]>::len),
                ItemType::NAME_ADD | ItemType::NAME_REMOVE | ItemType::NAME_CHANGE => {
                    let len = item.name_change().map_or(0, |(_, _, name)| name.len());
                    if len > WELL_KNOWN_NAME_MAX { 0 } else { len }
                }
                _ => 0,
            };
            let needed = bytes.div_ceil(BLOCK_BYTES);
            if rules == 0 || blocks < needed {
                return false;
            }
            (rules, blocks) = (rules - 1, blocks - needed);
        }
        true
    }

    /// Removes the rules from `first` on.
    pub(super) fn remove(&mut self, first: Option<RuleIx>) {
        let mut at = first;
        while let Some(rule) = at {
            let rule = self.rules.remove(rule).unwrap_or(Rule::BLANK);
            self.drop_bytes(rule.test);
            at = rule.next;
        }
    }

    /// Whether `subject` passes all rules from `first` on.
    pub(super) fn pass(&self, first: Option<RuleIx>, subject: &Subject<'_>) -> bool {
        let mut at = first;
        while let Some(rule) = at {
            let Rule { test, next } = self.rules[rule];
            let passes = match *subject {
                Subject::Signal { sender, destination, generation, filter, holds } => match test {
                    Test::Bloom { bits, masks } => self.mask_passes(bits, masks, generation, filter),
                    Test::Sender(id) => id == MATCH_ID_ANY || id == sender,
                    Test::Destination(id) => id == MATCH_ID_ANY || id == destination,
                    Test::Name(name) => self.with_name(name, holds),
                    Test::Never | Test::IdChange { .. } | Test::NameChange { .. } => false,
                },
                Subject::Notice(notice) => self.notice_passes(test, notice),
            };
            if !passes {
                return false;
            }
            at = next;
        }
        true
    }

    /// What the rules from `first` on ask, one after another.
    pub(super) fn tests(&self, first: Option<RuleIx>) -> impl Iterator<Item = Test> {
        let mut at = first;
        core::iter::from_fn(move || {
            let Rule { test, next } = self.rules[at?];
            at = next;
            Some(test)
        })
    }

    /// The word at a position in stored bytes.
    pub(super) fn word(&self, stored: Bytes, at: u64) -> u64 {
        let mut block = stored.first;
        for _ in 0..at as usize / BLOCK_BYTES {
            block = block.and_then(|block| self.blocks[block].next);
        }
        let bytes =
            block.and_then(|block| self.blocks[block].bytes[at as usize % BLOCK_BYTES..].first_chunk());
        bytes.map_or(0, |word| u64::from_ne_bytes(*word))
    }

    /// The hash of a stored name, as [`hash`] of its bytes.
    pub(super) fn hash(&self, stored: Bytes) -> u64 {
        let mut buffer = [0; WELL_KNOWN_NAME_MAX];
        let Some(place) = buffer.get_mut(..stored.len as usize) else {
            return 0;
        };
        self.read(stored, place);
        hash(place)
    }

    fn notice_passes(&self, test: Test, notice: &Notice<'_>) -> bool {
        match (test, notice) {
            (Test::IdChange { kind, id }, Notice::Id { change, .. }) => {
                kind == notice.kind() && (id == MATCH_ID_ANY || id == change.id)
            }
            (
                Test::NameChange { kind, old, new, name },
                Notice::Name { old: from, new: to, name: changed },
            ) => {
                kind == notice.kind()
                    && (old == MATCH_ID_ANY || old == from.id)
                    && (new == MATCH_ID_ANY || new == to.id)
                    && name.is_none_or(|name| self.equal(name, changed.as_bytes()))
            }
            _ => false,
        }
    }

    fn mask_passes(&self, bits: Bytes, masks: u32, generation: u64, filter: &[u8]) -> bool {
        let mask = generation.min(u64::from(masks.max(1) - 1)) as usize;
        let skip = mask * filter.len();
        let mut at = bits.first;
        for _ in 0..skip / BLOCK_BYTES {
            at = at.and_then(|block| self.blocks[block].next);
        }
        // Mask and filter are both made of words, so no word lies across two blocks.
        let mut offset = skip % BLOCK_BYTES;
        let mut rest = filter;
        while let Some(block) = at {
            let block = &self.blocks[block];
            let part = &block.bytes[offset..];
            let len = part.len().min(rest.len());
            if !covers(&rest[..len], &part[..len]) {
                return false;
            }
            rest = &rest[len..];
            if rest.is_empty() {
                return true;
            }
            offset = 0;
            at = block.next;
        }
        false
    }

    fn with_name(&self, name: Bytes, holds: &dyn Fn(&str) -> bool) -> bool {
        let mut buffer = [0; WELL_KNOWN_NAME_MAX];
        let Some(place) = buffer.get_mut(..name.len as usize) else {
            return false;
        };
        self.read(name, place);
        core::str::from_utf8(place).is_ok_and(holds)
    }

    fn equal(&self, stored: Bytes, bytes: &[u8]) -> bool {
        if stored.len as usize != bytes.len() {
            return false;
        }
        let mut at = stored.first;
        for part in bytes.chunks(BLOCK_BYTES) {
            let Some(block) = at else {
                return false;
            };
            if self.blocks[block].bytes[..part.len()] != *part {
                return false;
            }
            at = self.blocks[block].next;
        }
        true
    }

    fn read(&self, stored: Bytes, into: &mut [u8]) {
        let mut at = stored.first;
        for part in into.chunks_mut(BLOCK_BYTES) {
            let Some(block) = at else {
                return;
            };
            part.copy_from_slice(&self.blocks[block].bytes[..part.len()]);
            at = self.blocks[block].next;
        }
    }

    fn push(&mut self, first: &mut Option<RuleIx>, test: Test) -> bool {
        match self.rules.insert(Rule { test, next: *first }) {
            Some(rule) => {
                *first = Some(rule);
                true
            }
            None => {
                self.drop_bytes(test);
                false
            }
        }
    }

    fn store(&mut self, bytes: &[u8]) -> Option<Bytes> {
        if self.blocks.room() < bytes.len().div_ceil(BLOCK_BYTES) {
            return None;
        }
        // From the end on, so that each block knows the next one.
        let mut first = None;
        for part in bytes.chunks(BLOCK_BYTES).rev() {
            let mut block = Block { bytes: [0; BLOCK_BYTES], next: first };
            block.bytes[..part.len()].copy_from_slice(part);
            first = self.blocks.insert(block);
        }
        Some(Bytes { first, len: bytes.len() as u32 })
    }

    fn drop_bytes(&mut self, test: Test) {
        let mut at = test.bytes().and_then(|bytes| bytes.first);
        while let Some(block) = at {
            at = self.blocks.remove(block).and_then(|block| block.next);
        }
    }
}

/// Whether the filter has every bit of the mask. Both are made of words.
fn covers(filter: &[u8], mask: &[u8]) -> bool {
    let words = filter.as_chunks::<8>().0.iter().zip(mask.as_chunks::<8>().0);
    // All of them, which costs less than to ask after each.
    let missing = words.fold(0, |missing, (filter, mask)| {
        missing | u64::from_ne_bytes(*mask) & !u64::from_ne_bytes(*filter)
    });
    missing == 0
}

/// A number that names of the same bytes share.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |hash, byte| mix(hash, u64::from(*byte)))
}

/// A number that depends on every bit of both.
pub(super) const fn mix(state: u64, value: u64) -> u64 {
    let product = (state ^ value).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    product ^ product >> 31
}
