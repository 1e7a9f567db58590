//! What the bus says of a lane: who sends, and what each message shows of the sender.
//!
//! The terms lie in the page of the lane's [verdict](super::Verdict), which the bus alone writes:
//!
//! | word | what |
//! |---|---|
//! | 0 | the verdict |
//! | 1 | not 0 once an end of the lane is gone |
//! | 2 | number of these terms |
//! | 3 | id of the sender |
//! | 4 | kinds of metadata that each message shows (`AttachFlags`) |
//! | 5 | bytes of the name that messages may be addressed to, 0 for none |
//! | 6 | bytes of metadata items |
//! | 8 … | the name |
//! | 40 … | the items, ready to be received |
//!
//! They change while the lane is closed and holds no message that was not received, so those that stand there
//! when a message is seen are the ones it was sent under.

use crate::abi::AttachFlags;
use crate::hint::unlikely;

use super::words::Words;

/// Words of the page.
pub const PAGE_WORDS: usize = 512;
/// Bytes of metadata items that terms hold.
pub const TERMS_METADATA_MAX: usize = 8 * METADATA_WORDS;

/// Where the verdict stands.
pub const VERDICT_AT: usize = 0;
const ENDED_AT: usize = 1;
const NUMBER_AT: usize = 2;
const SENDER_AT: usize = 3;
const ATTACH_AT: usize = 4;
const NAME_BYTES_AT: usize = 5;
const METADATA_BYTES_AT: usize = 6;
const NAME_AT: usize = 8;
const METADATA_AT: usize = 40;

const NAME_WORDS: usize = METADATA_AT - NAME_AT;
const METADATA_WORDS: usize = PAGE_WORDS - METADATA_AT;

/// The terms of a lane, as the bus makes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms<'a> {
    /// Id of the sender, for `src_id`.
    pub sender: u64,
    /// Metadata that each message shows.
    pub attach: AttachFlags,
    /// The name that messages may be addressed to; empty for none.
    pub name: &'a [u8],
    /// Items of what was pinned, to the unpadded end of the last one.
    pub metadata: &'a [u8],
}

/// What a name or metadata has to be written in one word at a time.
fn put(page: &impl Words, at: usize, bytes: &[u8]) {
    for (index, chunk) in bytes.chunks(8).enumerate() {
        let mut word = [0; 8];
        for (place, byte) in word.iter_mut().zip(chunk) {
            *place = *byte;
        }
        page.store(at + index, u64::from_ne_bytes(word));
    }
}

impl Terms<'_> {
    /// Whether a page holds terms of this size.
    #[must_use]
    pub const fn fit(&self) -> bool {
        self.name.len() <= 8 * NAME_WORDS && self.metadata.len() <= TERMS_METADATA_MAX
    }

    /// Writes the terms, as number `number`, into the page of a lane that is closed and empty. False if they do
    /// not [fit](Self::fit): nothing was written.
    #[must_use]
    pub fn write(&self, page: &impl Words, number: u64) -> bool {
        if !self.fit() {
            return false;
        }
        page.store(SENDER_AT, self.sender);
        page.store(ATTACH_AT, self.attach.bits());
        page.store(NAME_BYTES_AT, self.name.len() as u64);
        page.store(METADATA_BYTES_AT, self.metadata.len() as u64);
        put(page, NAME_AT, self.name);
        put(page, METADATA_AT, self.metadata);
        page.store(NUMBER_AT, number);
        true
    }
}

/// Says that an end of the lane is gone for good.
pub fn end(page: &impl Words) {
    page.store(ENDED_AT, 1);
}

/// Whether an end of the lane is gone for good.
#[must_use]
pub fn has_ended(page: &impl Words) -> bool {
    page.load(ENDED_AT) != 0
}

/// Whether the terms in a page let messages be addressed to `name`, by the sender's own look.
#[must_use]
pub fn are_for(page: &impl Words, name: &[u8]) -> bool {
    let is_there = |(index, chunk): (usize, &[u8])| {
        let mut word = [0; 8];
        for (place, byte) in word.iter_mut().zip(chunk) {
            *place = *byte;
        }
        page.load(NAME_AT + index) == u64::from_ne_bytes(word)
    };
    page.load(NAME_BYTES_AT) == name.len() as u64 && name.chunks(8).enumerate().all(is_there)
}

/// A receiver's copy of the terms of a lane.
#[derive(Clone, Debug)]
pub struct HeldTerms {
    number: u64,
    sender: u64,
    attach: AttachFlags,
    name_bytes: usize,
    metadata_bytes: usize,
    name: [u64; NAME_WORDS],
    metadata: [u64; METADATA_WORDS],
}

impl HeldTerms {
    /// Of a lane whose page was not looked at yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            number: 0,
            sender: 0,
            attach: AttachFlags::empty(),
            name_bytes: 0,
            metadata_bytes: 0,
            name: [0; NAME_WORDS],
            metadata: [0; METADATA_WORDS],
        }
    }

    /// Copies the terms if they are others than before. To be called once a message was seen, in `O(1)` while
    /// they stay the same.
    pub fn refresh(&mut self, page: &impl Words) {
        let number = page.load(NUMBER_AT);
        if unlikely(number != self.number) {
            self.copy(page, number);
        }
    }

    #[cold]
    fn copy(&mut self, page: &impl Words, number: u64) {
        self.number = number;
        self.sender = page.load(SENDER_AT);
        self.attach = AttachFlags::from_bits_truncate(page.load(ATTACH_AT));
        let bytes = |at, most: usize| usize::try_from(page.load(at)).map_or(0, |bytes| bytes.min(most));
        self.name_bytes = bytes(NAME_BYTES_AT, 8 * NAME_WORDS);
        self.metadata_bytes = bytes(METADATA_BYTES_AT, TERMS_METADATA_MAX);
        page.load_run(NAME_AT, &mut self.name);
        page.load_run(METADATA_AT, &mut self.metadata);
    }

    /// Id of the sender.
    #[must_use]
    pub const fn sender(&self) -> u64 {
        self.sender
    }

    /// Metadata that each message shows.
    #[must_use]
    pub const fn attach(&self) -> AttachFlags {
        self.attach
    }

    /// The name that messages may be addressed to; empty for none.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        use zerocopy::IntoBytes;
        self.name.as_bytes().get(..self.name_bytes).unwrap_or_default()
    }

    /// Items of what was pinned, to the unpadded end of the last one.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        use zerocopy::IntoBytes;
        self.metadata.as_bytes().get(..self.metadata_bytes).unwrap_or_default()
    }
}

impl Default for HeldTerms {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(all(test, target_has_atomic = "64"))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn a_receiver_reads_what_the_bus_wrote() {
        let page = [const { AtomicU64::new(0) }; PAGE_WORDS];
        let page = &page[..];
        let mut held = HeldTerms::new();
        held.refresh(&page);
        assert_eq!((held.sender(), held.name(), held.metadata()), (0, &[][..], &[][..]));
        let metadata = [7; 40];
        let terms =
            Terms { sender: 9, attach: AttachFlags::CREDS, name: b"a.bcdefghij", metadata: &metadata };
        assert!(terms.write(&page, 1));
        held.refresh(&page);
        assert_eq!((held.sender(), held.attach()), (9, AttachFlags::CREDS));
        assert_eq!((held.name(), held.metadata()), (&b"a.bcdefghij"[..], &metadata[..]));
        assert!(are_for(&page, b"a.bcdefghij"));
        for other in
            [&b"a.bcdefghi"[..], b"a.bcdefghik", b"a.bcdefg", b"x.bcdefghij", b"", &[b'a'; 8 * PAGE_WORDS]]
        {
            assert!(!are_for(&page, other));
        }
        assert!(Terms { sender: 10, name: b"", ..terms }.write(&page, 2));
        held.refresh(&page);
        assert_eq!((held.sender(), held.name()), (10, &[][..]));
        assert!(!has_ended(&page));
        end(&page);
        assert!(has_ended(&page));
    }

    #[test]
    fn terms_that_do_not_fit_are_not_written() {
        let page = [const { AtomicU64::new(0) }; PAGE_WORDS];
        let page = &page[..];
        let long = [1; TERMS_METADATA_MAX + 1];
        let terms = Terms { sender: 9, attach: AttachFlags::empty(), name: b"", metadata: &long };
        assert!(!terms.write(&page, 1) && page.load(SENDER_AT) == 0);
        assert!(Terms { metadata: &long[1..], ..terms }.write(&page, 1));
        let name = [b'a'; 257];
        assert!(!Terms { name: &name, metadata: b"", ..terms }.write(&page, 2));
        assert!(Terms { name: &name[1..], metadata: b"", ..terms }.write(&page, 2));
    }
}
