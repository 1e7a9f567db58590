//! Topics: what a signal is about, and how subscribers find it.
//!
//! kdbus leaves open how the bits of a bloom filter come about. Here they come from the *topic*, a dotted
//! text such as `org.example.Mixer.level`, in one way that all programs on a bus have to share:
//!
//! 1. The elements of a topic are the topic itself and each of its prefixes up to and including a dot:
//!    `org.example.Mixer.level`, `org.`, `org.example.`, `org.example.Mixer.`.
//! 2. The hash of an element is its 64-bit FNV-1a (start `0xcbf29ce484222325`, prime `0x100000001b3`), then
//!    mixed: `z ^= z >> 30; z *= 0xbf58476d1ce4e5b9; z ^= z >> 27; z *= 0x94d049bb133111eb; z ^= z >> 31`,
//!    all modulo 2^64.
//! 3. With the bus' filter of `size` bytes and `n_hash` hash functions, at most 32, an element sets the bits
//!    `(low + i * high) mod (8 * size)` for `i` from 0 to `n_hash - 1`, where `low` is the lower half of the
//!    hash and `high` its upper half with the lowest bit set. Bit `b` is bit `b mod 8` of byte `b / 8`.
//! 4. A filter has the bits of all elements, generation 0. The mask of a subscription has those of one
//!    element: the topic, or the prefix with its dot. The mask for everything is all zero.
//! 5. The cookie of the signal is the hash of the topic.
//!
//! A filter lets a foreign signal pass now and then. The payload is untouched by all this, so a receiver
//! that must know compares the cookie: [`Delivery::is_about`](super::Delivery::is_about), which is wrong
//! once in 2^64 times and costs one comparison.

use core::fmt;

use crate::abi::{BloomParameter, Errno};

/// Bytes of the longest topic.
pub const TOPIC_MAX: usize = 255;

/// Elements between dots that a topic has at most.
pub const TOPIC_ELEMENTS_MAX: usize = 16;

/// Hash functions that count; a bus may ask for more.
const HASHES_MAX: u64 = 32;

/// Why a text is not a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum TopicError {
    /// It is empty or longer than [`TOPIC_MAX`].
    Length,
    /// It has more than [`TOPIC_ELEMENTS_MAX`] elements.
    Elements,
    /// Two dots follow each other, or it starts or ends with one.
    EmptyElement,
    /// The byte at this position is not one of `A-Z a-z 0-9 _ -`.
    Character(usize),
}

impl TopicError {
    /// The code for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl fmt::Display for TopicError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => write!(f, "topic is empty or longer than {TOPIC_MAX} bytes"),
            Self::Elements => write!(f, "topic has more than {TOPIC_ELEMENTS_MAX} elements"),
            Self::EmptyElement => f.write_str("topic has an empty element"),
            Self::Character(at) => write!(f, "byte {at} of the topic is not allowed there"),
        }
    }
}

impl core::error::Error for TopicError {}

/// What a signal is about: one or more elements of `A-Z a-z 0-9 _ -`, separated by single dots.
///
/// ```
/// use kdbus_core::client::Topic;
/// const LEVEL: Topic<'_> = match Topic::parse("org.example.Mixer.level") {
///     Ok(topic) => topic,
///     Err(_) => panic!(),
/// };
/// assert_eq!(LEVEL.hash(), 0x2d3b_030b_932b_531c);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Topic<'a> {
    text: &'a str,
    hash: u64,
}

impl<'a> Topic<'a> {
    /// Checks and hashes `text`, in one pass each; at compile time if that is where it stands.
    ///
    /// # Errors
    ///
    /// [`TopicError`] says which rule the text breaks.
    pub const fn parse(text: &'a str) -> Result<Self, TopicError> {
        match check(text.as_bytes()) {
            Ok(()) => Ok(Self { text, hash: hash(text.as_bytes()) }),
            Err(error) => Err(error),
        }
    }

    /// The topic as text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.text
    }

    /// The hash of the topic, which is the cookie of its signals.
    #[must_use]
    pub const fn hash(self) -> u64 {
        self.hash
    }

    /// Sets the bits of every element in `filter`, which is as long as the bus says. Cost: one pass over the
    /// topic, and `n_hash` bits an element.
    pub fn fill(self, filter: &mut [u8], n_hash: u64) {
        set_bits(filter, n_hash, self.hash);
        let mut state = FNV_START;
        for byte in self.text.bytes() {
            state = fnv(state, byte);
            if byte == b'.' {
                set_bits(filter, n_hash, mix(state));
            }
        }
    }
}

impl fmt::Display for Topic<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text)
    }
}

/// Which topics a subscriber wants: one, all below a prefix, or all.
///
/// Written as the topic, as `org.example.Mixer.*` or as `*`. The prefix covers topics of any number of
/// further elements, not the prefix itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct TopicPattern<'a>(&'a str);

impl<'a> TopicPattern<'a> {
    /// Every topic.
    pub const ALL: TopicPattern<'static> = TopicPattern("*");

    /// Checks `text`.
    ///
    /// # Errors
    ///
    /// [`TopicError`] says which rule the text breaks.
    pub const fn parse(text: &'a str) -> Result<Self, TopicError> {
        let checked = match text.as_bytes() {
            [b'*'] => Ok(()),
            [prefix @ .., b'.', b'*'] => check(prefix),
            topic => check(topic),
        };
        match checked {
            Ok(()) => Ok(Self(text)),
            Err(error) => Err(error),
        }
    }

    /// The pattern as text.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }

    /// Whether the pattern covers `topic`.
    #[must_use]
    pub fn covers(self, topic: Topic<'_>) -> bool {
        match self.0.strip_suffix('*') {
            Some(prefix) => topic.text.starts_with(prefix),
            None => topic.text == self.0,
        }
    }

    /// Sets the bits in `mask` that a filter needs to pass.
    pub fn fill(self, mask: &mut [u8], n_hash: u64) {
        match self.0.strip_suffix('*') {
            Some("") => {}
            Some(prefix) => set_bits(mask, n_hash, hash(prefix.as_bytes())),
            None => set_bits(mask, n_hash, hash(self.0.as_bytes())),
        }
    }
}

impl<'a> From<Topic<'a>> for TopicPattern<'a> {
    fn from(topic: Topic<'a>) -> Self {
        Self(topic.text)
    }
}

impl fmt::Display for TopicPattern<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The longest filter that a bus can have, in bytes.
pub(super) const FILTER_MAX: usize = 4096;

/// Whether a bus can have such filters: whole words, and at most [`FILTER_MAX`].
pub(super) const fn is_valid(bloom: &BloomParameter) -> bool {
    bloom.size >= 8 && bloom.size <= FILTER_MAX as u64 && bloom.size.is_multiple_of(8) && bloom.n_hash >= 1
}

const fn check(text: &[u8]) -> Result<(), TopicError> {
    if text.is_empty() || text.len() > TOPIC_MAX {
        return Err(TopicError::Length);
    }
    let mut elements = 1;
    let mut at_start = true;
    let mut i = 0;
    while i < text.len() {
        match text[i] {
            b'.' if at_start => return Err(TopicError::EmptyElement),
            b'.' => {
                elements += 1;
                at_start = true;
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' => at_start = false,
            _ => return Err(TopicError::Character(i)),
        }
        i += 1;
    }
    if at_start {
        return Err(TopicError::EmptyElement);
    }
    if elements > TOPIC_ELEMENTS_MAX { Err(TopicError::Elements) } else { Ok(()) }
}

const FNV_START: u64 = 0xcbf2_9ce4_8422_2325;

const fn fnv(state: u64, byte: u8) -> u64 {
    (state ^ byte as u64).wrapping_mul(0x0100_0000_01b3)
}

const fn mix(mut z: u64) -> u64 {
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

const fn hash(element: &[u8]) -> u64 {
    let mut state = FNV_START;
    let mut i = 0;
    while i < element.len() {
        state = fnv(state, element[i]);
        i += 1;
    }
    mix(state)
}

fn set_bits(filter: &mut [u8], n_hash: u64, hash: u64) {
    let bits = 8 * filter.len() as u64;
    if bits == 0 {
        return;
    }
    let (low, high) = (hash & 0xffff_ffff, hash >> 32 | 1);
    for i in 0..n_hash.min(HASHES_MAX) {
        let bit = (low + i * high) % bits;
        filter[(bit / 8) as usize] |= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topic(text: &str) -> Topic<'_> {
        Topic::parse(text).unwrap()
    }

    fn filter(text: &str) -> [u8; 64] {
        let mut bits = [0; 64];
        topic(text).fill(&mut bits, 8);
        bits
    }

    fn passes(pattern: &str, filter: &[u8; 64]) -> bool {
        let mut mask = [0; 64];
        TopicPattern::parse(pattern).unwrap().fill(&mut mask, 8);
        mask.iter().zip(filter).all(|(mask, filter)| mask & filter == *mask)
    }

    // The numbers below were computed from the description at the top of this file by another program.
    #[test]
    fn hashes_are_those_of_the_description() {
        for (element, expected) in [
            ("org.example.Mixer.level", 0x2d3b_030b_932b_531c),
            ("org.", 0x8316_ae70_f2b7_2243),
            ("org.example.", 0x734e_67ef_38e7_2234),
            ("org.example.Mixer.", 0x3a4b_aaca_d60d_c097),
        ] {
            assert_eq!(hash(element.as_bytes()), expected, "{element}");
        }
    }

    #[test]
    fn bits_are_those_of_the_description() {
        let mut expected = [0; 64];
        for bit in [284, 39, 306, 61, 328, 83, 350, 105] {
            expected[bit / 8] |= 1_u8 << (bit % 8);
        }
        let mut mask = [0; 64];
        TopicPattern::from(topic("org.example.Mixer.level")).fill(&mut mask, 8);
        assert_eq!(mask, expected);
        let mut small = [0; 8];
        topic("org.example.Mixer.level").fill(&mut small, 2);
        assert_eq!(small, [0x08, 0x00, 0x80, 0x10, 0x8c, 0x00, 0x10, 0x00]);
    }

    #[test]
    fn a_signal_passes_exact_and_prefix_subscriptions() {
        let level = filter("org.example.Mixer.level");
        for pattern in ["org.example.Mixer.level", "org.example.Mixer.*", "org.*", "*"] {
            assert!(passes(pattern, &level), "{pattern}");
            assert!(TopicPattern::parse(pattern).unwrap().covers(topic("org.example.Mixer.level")));
        }
        for pattern in ["org.example.Mixer", "org.example.Mixer.level.*", "org.example.Mix.*", "com.*"] {
            assert!(!passes(pattern, &level), "{pattern}");
            assert!(!TopicPattern::parse(pattern).unwrap().covers(topic("org.example.Mixer.level")));
        }
    }

    #[test]
    fn texts_that_are_no_topics_are_refused() {
        for (text, why) in [
            ("", TopicError::Length),
            ("a..b", TopicError::EmptyElement),
            (".a", TopicError::EmptyElement),
            ("a.", TopicError::EmptyElement),
            ("a b", TopicError::Character(1)),
            ("a.*", TopicError::Character(2)),
            ("a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a.a", TopicError::Elements),
        ] {
            assert_eq!(Topic::parse(text), Err(why), "{text}");
        }
        assert!(Topic::parse(&"x".repeat(TOPIC_MAX + 1)).is_err());
        assert!(TopicPattern::parse("a*").is_err());
        assert!(TopicPattern::parse(".*").is_err());
    }

    #[test]
    fn absurd_bloom_parameters_do_no_harm() {
        topic("a.b").fill(&mut [], u64::MAX);
        let mut one = [0; 8];
        topic("a.b").fill(&mut one, u64::MAX);
        assert!(!is_valid(&BloomParameter { size: 12, n_hash: 1 }));
        assert!(!is_valid(&BloomParameter { size: 8192, n_hash: 1 }));
        assert!(is_valid(&BloomParameter { size: 4096, n_hash: 1 }));
    }

    extern crate std;
}
