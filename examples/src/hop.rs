//! What one hop of the pipeline measures: latencies, missed deadlines, and how much sound each control overtook.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told apart, in nanoseconds: one minute. Longer ones count as this.
const LONGEST_NS: u64 = 60_000_000_000;

/// Controls that may have overtaken a block that is still on its way; more than any queue of controls holds.
const OPEN_CONTROLS: usize = 256;

/// More messages than any run has; a count beyond it is not believed, so that no sum of counts overflows.
const MOST: u64 = 1 << 48;

/// Longest name of a hop, in bytes.
const LONGEST_NAME: usize = 255;

const MAGIC: [u8; 4] = *b"kHR1";

/// The measurements of one hop, in up to 250 KiB that are taken when it is made.
///
/// Latencies keep three significant digits.
#[derive(Clone, Debug)]
pub struct HopRecorder {
    name: String,
    deadline_ns: u64,
    latency: Histogram<u64>,
    missed: u64,
    overtaken: Histogram<u64>,
    /// When the controls that still overtake were sent, and how many blocks they have passed.
    open: Vec<(u64, u64)>,
}

impl HopRecorder {
    /// Makes an empty recorder for the hop called `name`, of which the first 255 bytes are kept, where a message is
    /// late after `deadline`; with [`Duration::MAX`], never.
    pub fn new(name: &str, deadline: Duration) -> Self {
        let end = (0..=name.len().min(LONGEST_NAME)).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
        Self {
            name: name[..end].to_owned(),
            deadline_ns: nanoseconds(deadline),
            latency: histogram(LONGEST_NS),
            missed: 0,
            overtaken: histogram(1_000_000),
            open: Vec::with_capacity(OPEN_CONTROLS),
        }
    }

    /// Makes messages late after `deadline` from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline_ns = nanoseconds(deadline);
    }

    /// Counts a message that took `latency_ns` from its sender's send to its receiver's hands, and whether it missed
    /// the deadline; in constant time.
    pub fn record(&mut self, latency_ns: u64) {
        self.latency.saturating_record(latency_ns);
        self.missed += u64::from(latency_ns > self.deadline_ns);
    }

    /// Counts a deadline that was missed for another reason than a late message, such as one that never came.
    pub fn record_missed(&mut self) {
        self.missed += 1;
    }

    /// Notes that a control arrived which was sent at `sent_at` on the monotonic clock.
    pub fn control_arrived(&mut self, sent_at: u64) {
        if self.open.len() == OPEN_CONTROLS {
            let (_, passed) = self.open.remove(0);
            self.overtaken.saturating_record(passed);
        }
        self.open.push((sent_at, 0));
    }

    /// Notes that a block arrived which was sent at `sent_at` on the monotonic clock.
    ///
    /// Controls that arrived before it although they were sent after it have overtaken it. Looks at the controls that
    /// may still do so, at most 256 and mostly none or one.
    pub fn block_arrived(&mut self, sent_at: u64) {
        let overtaken = &mut self.overtaken;
        self.open.retain_mut(|(control_sent_at, passed)| {
            let still = sent_at < *control_sent_at;
            if still {
                *passed += 1;
            } else {
                // Blocks come in the order they were sent, so nothing older follows.
                overtaken.saturating_record(*passed);
            }
            still
        });
    }

    /// Notes that no block follows: what controls have overtaken so far is all.
    pub fn finish(&mut self) {
        for (_, passed) in self.open.drain(..) {
            self.overtaken.saturating_record(passed);
        }
    }

    /// Adds what `other` measured on the same hop; the name and the deadline stay.
    pub fn merge(&mut self, other: &Self) {
        add(&mut self.latency, &other.latency);
        add(&mut self.overtaken, &other.overtaken);
        self.missed = self.missed.saturating_add(other.missed);
        for (_, passed) in &other.open {
            self.overtaken.saturating_record(*passed);
        }
    }

    /// What the hop is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// After how many nanoseconds a message is late; `u64::MAX` for never.
    pub const fn deadline_ns(&self) -> u64 {
        self.deadline_ns
    }

    /// How many messages were recorded.
    pub fn messages(&self) -> u64 {
        self.latency.len()
    }

    /// The latency in nanoseconds that this part of the messages did not exceed, from 0.0 to 1.0; 0 without messages.
    pub fn latency_ns(&self, quantile: f64) -> u64 {
        self.latency.value_at_quantile(quantile)
    }

    /// The shortest latency, in nanoseconds; 0 without messages.
    pub fn min_ns(&self) -> u64 {
        self.latency.min()
    }

    /// The longest latency, in nanoseconds; 0 without messages.
    pub fn max_ns(&self) -> u64 {
        self.latency.max()
    }

    /// The mean latency, in nanoseconds; 0 without messages.
    pub fn mean_ns(&self) -> f64 {
        self.latency.mean()
    }

    /// Each latency that occurred, in nanoseconds and ascending, and how often.
    pub fn latencies(&self) -> impl Iterator<Item = (u64, u64)> {
        self.latency.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value()))
    }

    /// How many deadlines were missed.
    pub const fn missed(&self) -> u64 {
        self.missed
    }

    /// How many controls arrived.
    pub fn controls(&self) -> u64 {
        self.overtaken.len() + self.open.len() as u64
    }

    /// How many blocks this part of the controls did not exceed in overtaking, from 0.0 to 1.0; of those that can
    /// overtake no more.
    pub fn overtaken(&self, quantile: f64) -> u64 {
        self.overtaken.value_at_quantile(quantile)
    }

    /// The most blocks that one control overtook; of those that can overtake no more.
    pub fn most_overtaken(&self) -> u64 {
        self.overtaken.max()
    }

    /// The measurements as bytes for another process, about four for each latency that occurred. [`HopRecorder::finish`]
    /// comes first; controls that could still overtake are left out.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        put(&mut bytes, self.name.len() as u64);
        bytes.extend_from_slice(self.name.as_bytes());
        put(&mut bytes, self.deadline_ns);
        put(&mut bytes, self.missed);
        for histogram in [&self.latency, &self.overtaken] {
            put(&mut bytes, histogram.iter_recorded().count() as u64);
            let mut before = 0;
            for step in histogram.iter_recorded() {
                put(&mut bytes, step.value_iterated_to() - before);
                put(&mut bytes, step.count_at_value());
                before = step.value_iterated_to();
            }
        }
        bytes
    }

    /// Reads the measurements that another process made, in time and memory bounded by the length of `bytes`.
    ///
    /// # Errors
    ///
    /// [`HopError`] when the bytes end early, go on, or are none of [`HopRecorder::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, HopError> {
        let mut rest = bytes.strip_prefix(&MAGIC).ok_or(HopError::Foreign)?;
        let name_len = usize::try_from(take(&mut rest)?).map_err(|_| HopError::Foreign)?;
        if name_len > LONGEST_NAME {
            return Err(HopError::Foreign);
        }
        let (name, after) = rest.split_at_checked(name_len).ok_or(HopError::Short)?;
        rest = after;
        let name = str::from_utf8(name).map_err(|_| HopError::Foreign)?;
        let mut hop = Self::new(name, Duration::from_nanos(take(&mut rest)?));
        hop.missed = take(&mut rest)?;
        let mut total = hop.missed;
        if total > MOST {
            return Err(HopError::Foreign);
        }
        for histogram in [&mut hop.latency, &mut hop.overtaken] {
            let mut value = 0u64;
            for _ in 0..take(&mut rest)? {
                value = value.checked_add(take(&mut rest)?).ok_or(HopError::Foreign)?;
                let count = take(&mut rest)?;
                total = total.saturating_add(count);
                if total > MOST {
                    return Err(HopError::Foreign);
                }
                histogram.saturating_record_n(value, count);
            }
        }
        if rest.is_empty() { Ok(hop) } else { Err(HopError::Long) }
    }
}

/// Why bytes are not the measurements of a hop.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HopError {
    /// They end early.
    Short,
    /// Something follows the end.
    Long,
    /// They hold something else.
    Foreign,
}

impl fmt::Display for HopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Short => "the measurements of the stage end early; it may have been killed",
            Self::Long => "something follows the measurements of the stage",
            Self::Foreign => "the bytes are not the measurements of a stage",
        })
    }
}

impl std::error::Error for HopError {}

/// `span` in nanoseconds, or `u64::MAX` if it is longer than that.
fn nanoseconds(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// Three significant digits up to `high`.
fn histogram(high: u64) -> Histogram<u64> {
    Histogram::new_with_bounds(1, high, 3).expect("three digits between 1 and a constant")
}

fn add(sum: &mut Histogram<u64>, part: &Histogram<u64>) {
    for step in part.iter_recorded() {
        sum.saturating_record_n(step.value_iterated_to(), step.count_at_value());
    }
}

/// Seven bits a byte, lowest first; the eighth says that more follow.
fn put(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

fn take(bytes: &mut &[u8]) -> Result<u64, HopError> {
    let mut value = 0;
    for place in 0..10 {
        let (byte, rest) = bytes.split_first().ok_or(HopError::Short)?;
        *bytes = rest;
        let bits = u64::from(byte & 0x7f);
        if place == 9 && bits > 1 {
            return Err(HopError::Foreign);
        }
        value |= bits << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(HopError::Foreign)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hop(latencies: impl IntoIterator<Item = u64>) -> HopRecorder {
        let mut hop = HopRecorder::new("source → equaliser", Duration::from_micros(100));
        latencies.into_iter().for_each(|latency| hop.record(latency));
        hop
    }

    fn facts(hop: &HopRecorder) -> (Vec<(u64, u64)>, u64, u64, u64, u64) {
        (hop.latencies().collect(), hop.missed(), hop.controls(), hop.most_overtaken(), hop.max_ns())
    }

    #[test]
    fn quantiles_are_exact_to_three_digits() {
        let hop = hop(1..=100_000);
        for (quantile, exact) in [(0.5, 50_000.0), (0.99, 99_000.0), (0.999, 99_900.0), (1.0, 100_000.0)] {
            assert!((hop.latency_ns(quantile) as f64 / exact - 1.0).abs() < 1e-3);
        }
        assert_eq!((hop.messages(), hop.min_ns()), (100_000, 1));
    }

    #[test]
    fn deadline_is_missed_only_after_it() {
        let mut hop = hop([99_999, 100_000, 100_001, u64::MAX]);
        assert_eq!(hop.missed(), 2);
        hop.record_missed();
        assert_eq!(hop.missed(), 3);
        assert!(hop.max_ns() >= LONGEST_NS && hop.max_ns() < 2 * LONGEST_NS);
    }

    #[test]
    fn empty_hop_has_zeroes() {
        let hop = hop([]);
        assert_eq!((hop.messages(), hop.latency_ns(0.99), hop.min_ns(), hop.max_ns()), (0, 0, 0, 0));
        assert_eq!((hop.controls(), hop.overtaken(0.5), hop.most_overtaken()), (0, 0, 0));
    }

    #[test]
    fn control_overtakes_the_blocks_sent_before_it_that_come_after_it() {
        let mut hop = hop([]);
        hop.block_arrived(10);
        hop.control_arrived(50);
        for sent_at in [20, 30, 40] {
            hop.block_arrived(sent_at);
        }
        hop.control_arrived(55);
        hop.block_arrived(50);
        hop.block_arrived(60);
        assert_eq!((hop.controls(), hop.overtaken(0.0), hop.most_overtaken()), (2, 1, 3));
    }

    #[test]
    fn controls_open_at_the_end_count_once_finished() {
        let mut hop = hop([]);
        hop.control_arrived(50);
        hop.block_arrived(49);
        assert_eq!((hop.controls(), hop.most_overtaken()), (1, 0));
        hop.finish();
        assert_eq!((hop.controls(), hop.most_overtaken()), (1, 1));
    }

    #[test]
    fn a_flood_of_controls_takes_no_more_memory() {
        let mut hop = hop([]);
        for at in 0..2_000 {
            hop.control_arrived(at);
        }
        assert_eq!(
            (hop.open.len(), hop.open.capacity(), hop.controls()),
            (OPEN_CONTROLS, OPEN_CONTROLS, 2_000)
        );
    }

    #[test]
    fn bytes_read_back_to_the_same_measurements() {
        let mut hop = hop((0..40).map(|at| 3u64.saturating_pow(at)));
        hop.record_missed();
        hop.control_arrived(8);
        hop.block_arrived(7);
        hop.finish();
        let back = HopRecorder::from_bytes(&hop.to_bytes()).unwrap();
        assert_eq!(facts(&back), facts(&hop));
        assert_eq!((back.name(), back.deadline_ns()), (hop.name(), hop.deadline_ns()));
        assert_eq!(back.to_bytes(), hop.to_bytes());
    }

    #[test]
    fn merging_equals_recording_together() {
        let (evens, odds) = ((0..50_000).map(|n| 2 * n), (0..50_000).map(|n| 2 * n + 1));
        let mut merged = hop(evens);
        merged.merge(&HopRecorder::from_bytes(&hop(odds).to_bytes()).unwrap());
        assert_eq!(facts(&merged), facts(&hop(0..100_000)));
    }

    #[test]
    fn cut_extended_and_foreign_bytes_are_refused() {
        let bytes = hop([5, 500, 50_000]).to_bytes();
        for len in 4..bytes.len() {
            assert_eq!(HopRecorder::from_bytes(&bytes[..len]).err(), Some(HopError::Short), "{len}");
        }
        assert_eq!(HopRecorder::from_bytes(b"kHR").err(), Some(HopError::Foreign));
        assert_eq!(HopRecorder::from_bytes(&[&bytes[..], &[0]].concat()).err(), Some(HopError::Long));
        assert_eq!(
            HopRecorder::from_bytes(b"kHR1\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02").err(),
            Some(HopError::Foreign)
        );
        assert_eq!(HopRecorder::from_bytes(b"kHR1\x01\xff\0\0\0\0").err(), Some(HopError::Foreign));
    }

    #[test]
    fn counts_that_cannot_be_are_refused() {
        let whole = |missed: u64, counts: [u64; 2]| {
            let mut bytes = MAGIC.to_vec();
            [0, 100, missed, 2, 1, counts[0], 1, counts[1], 0]
                .into_iter()
                .for_each(|value| put(&mut bytes, value));
            HopRecorder::from_bytes(&bytes).map(|hop| hop.messages())
        };
        assert_eq!(whole(0, [MOST - 1, 1]), Ok(MOST));
        assert_eq!(whole(0, [MOST, 1]), Err(HopError::Foreign));
        assert_eq!(whole(0, [u64::MAX, u64::MAX]), Err(HopError::Foreign));
        assert_eq!(whole(MOST + 1, [1, 1]), Err(HopError::Foreign));
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        let hop = HopRecorder::new(&"ä".repeat(200), Duration::ZERO);
        assert_eq!(hop.name().len(), 254);
        assert_eq!(HopRecorder::from_bytes(&hop.to_bytes()).unwrap().name(), hop.name());
    }
}
