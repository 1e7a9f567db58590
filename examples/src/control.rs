//! What the controller says to the equaliser, and the order in which the equaliser obeys.
//!
//! A [`Control`] overtakes queued sound on the bus, so when it arrives says nothing about when it is meant to act:
//! it names the block at whose first frame it takes effect, and waits in a [`ControlQueue`] until then. It also
//! names the block of the control after it, so the equaliser knows how far it may run without hearing more
//! ([`ControlQueue::is_settled`]), and a run without deadlines comes out the same, to the bit, each time.

use core::fmt;
use core::mem::size_of;

use zerocopy::little_endian::{F32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bands of the equaliser.
pub const BANDS: usize = 5;

/// A gain in decibels that is finite and within −96 to +24.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Decibels(f32);

impl Decibels {
    /// No change.
    pub const ZERO: Self = Self(0.0);

    /// Makes a gain of `decibels`.
    ///
    /// # Errors
    ///
    /// [`ControlError::Gain`] when it is out of range or not a number.
    pub const fn new(decibels: f32) -> Result<Self, ControlError> {
        if decibels >= -96.0 && decibels <= 24.0 { Ok(Self(decibels)) } else { Err(ControlError::Gain) }
    }

    /// The number of decibels.
    pub const fn get(self) -> f32 {
        self.0
    }

    /// The factor that amplitudes are multiplied by.
    pub fn factor(self) -> f64 {
        10f64.powf(f64::from(self.0) / 20.0)
    }
}

/// Where one band of the equaliser works, how much, and how widely.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Curve {
    frequency_hz: f32,
    gain: Decibels,
    q: f32,
}

impl Curve {
    /// A curve that changes nothing, around 1 kHz.
    pub const FLAT: Self = Self { frequency_hz: 1_000.0, gain: Decibels::ZERO, q: 1.0 };

    /// Makes a curve around (for a shelf: with its midpoint at) `frequency_hz`, 20 to 20 000, with a quality of `q`,
    /// 0.1 to 10.
    ///
    /// # Errors
    ///
    /// [`ControlError::Curve`] when a number is out of its range or none.
    pub const fn new(frequency_hz: f32, gain: Decibels, q: f32) -> Result<Self, ControlError> {
        if frequency_hz >= 20.0 && frequency_hz <= 20_000.0 && q >= 0.1 && q <= 10.0 {
            Ok(Self { frequency_hz, gain, q })
        } else {
            Err(ControlError::Curve)
        }
    }

    /// Centre of a peak or midpoint of a shelf, in hertz.
    pub const fn frequency_hz(self) -> f32 {
        self.frequency_hz
    }

    /// Gain at the centre of a peak, or beyond a shelf.
    pub const fn gain(self) -> Decibels {
        self.gain
    }

    /// Quality: the higher, the narrower the peak or the steeper the shelf.
    pub const fn q(self) -> f32 {
        self.q
    }
}

/// How a new gain is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ramp {
    /// In full force from the first frame of its block; audible as a click when the step is large.
    Stepped,
    /// In a straight line over the frames of its block, reached at the last one.
    Smoothed,
}

/// What a control changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// The gain ahead of the limiter becomes this one.
    Gain(Decibels, Ramp),
    /// Sound fades out within the block.
    Mute,
    /// Sound fades in within the block.
    Unmute,
    /// The band with this number, less than [`BANDS`], glides to another curve within the block.
    Band(u8, Curve),
}

/// One order of the controller.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Control {
    /// Its number, counted from 0 without gaps by the controller.
    pub number: u32,
    /// The block at whose first frame it takes effect.
    pub block: u64,
    /// The block of the next control, not before `block`; `None` when this is the last one.
    pub next_block: Option<u64>,
    /// When it was sent, in nanoseconds of the monotonic clock; 0 when not set.
    pub sent_at: u64,
    /// What it changes.
    pub change: Change,
}

const MAGIC: [u8; 4] = *b"kAC1";
const NO_BLOCK: u64 = u64::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    magic: [u8; 4],
    kind: u8,
    band: u8,
    ramp: u8,
    reserved: u8,
    number: U32,
    values: [F32; 3],
    block: U64,
    next_block: U64,
    sent_at: U64,
}

const _: () = assert!(size_of::<Record>() == 48);

impl Control {
    /// Size of a control in a message, in bytes.
    pub const BYTES: usize = size_of::<Record>();

    /// Reads a control out of a message.
    ///
    /// # Errors
    ///
    /// [`ControlError`] says what is wrong with the bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self, ControlError> {
        let record = Record::read_from_bytes(bytes).map_err(|_| ControlError::Size(bytes.len()))?;
        if record.magic != MAGIC {
            return Err(ControlError::Magic);
        }
        let [first, second, third] = record.values.map(F32::get);
        let change = match (record.kind, record.band, record.ramp) {
            (0, 0, 0) => Change::Gain(Decibels::new(first)?, Ramp::Stepped),
            (0, 0, 1) => Change::Gain(Decibels::new(first)?, Ramp::Smoothed),
            (1, 0, 0) => Change::Mute,
            (2, 0, 0) => Change::Unmute,
            (3, band, 0) if usize::from(band) < BANDS => {
                Change::Band(band, Curve::new(first, Decibels::new(second)?, third)?)
            }
            (3, band, 0) => return Err(ControlError::Band(band)),
            _ => return Err(ControlError::Kind(record.kind)),
        };
        let block = record.block.get();
        let next_block = match record.next_block.get() {
            NO_BLOCK => None,
            next if next < block => return Err(ControlError::Order),
            next => Some(next),
        };
        Ok(Self { number: record.number.get(), block, next_block, sent_at: record.sent_at.get(), change })
    }

    /// The control as a message carries it.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let (kind, band, ramp, values) = match self.change {
            Change::Gain(gain, Ramp::Stepped) => (0, 0, 0, [gain.0, 0.0, 0.0]),
            Change::Gain(gain, Ramp::Smoothed) => (0, 0, 1, [gain.0, 0.0, 0.0]),
            Change::Mute => (1, 0, 0, [0.0; 3]),
            Change::Unmute => (2, 0, 0, [0.0; 3]),
            Change::Band(band, curve) => (3, band, 0, [curve.frequency_hz, curve.gain.0, curve.q]),
        };
        let record = Record {
            magic: MAGIC,
            kind,
            band,
            ramp,
            reserved: 0,
            number: U32::new(self.number),
            values: values.map(F32::new),
            block: U64::new(self.block),
            next_block: U64::new(self.next_block.unwrap_or(NO_BLOCK)),
            sent_at: U64::new(self.sent_at),
        };
        zerocopy::transmute!(record)
    }
}

/// Why bytes are not a control, or numbers make none.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// There are this many bytes instead of [`Control::BYTES`].
    Size(usize),
    /// They do not begin as a control does.
    Magic,
    /// There is no such kind of change, or it has fields set that it does not know.
    Kind(u8),
    /// The equaliser has no band of this number.
    Band(u8),
    /// A gain is not within −96 to +24 dB.
    Gain,
    /// A frequency is not within 20 Hz to 20 kHz, or a quality not within 0.1 to 10.
    Curve,
    /// The next control would take effect before this one.
    Order,
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(bytes) => write!(f, "{bytes} bytes are not a control of {} bytes", Control::BYTES),
            Self::Magic => f.write_str("the message is not a control"),
            Self::Kind(kind) => write!(f, "the control has the unknown kind {kind}"),
            Self::Band(band) => write!(f, "there is no band {band}, only 0 to {}", BANDS - 1),
            Self::Gain => f.write_str("the gain is not within -96 to +24 dB"),
            Self::Curve => f.write_str("the curve is not within 20 Hz to 20 kHz and a quality of 0.1 to 10"),
            Self::Order => f.write_str("the next control would take effect before this one"),
        }
    }
}

impl core::error::Error for ControlError {}

const fn gain(decibels: f32, ramp: Ramp) -> Change {
    Change::Gain(Decibels(decibels), ramp)
}

const fn band(number: u8, frequency_hz: f32, decibels: f32, q: f32) -> Change {
    Change::Band(number, Curve { frequency_hz, gain: Decibels(decibels), q })
}

/// Blocks since the step before, and what changes then. Steps without distance share a block.
const SCRIPT: [(u64, Change); 16] = [
    (187, gain(-6.0, Ramp::Smoothed)),
    (150, band(1, 280.0, 4.0, 0.9)),
    (0, band(3, 3_200.0, -3.0, 0.8)),
    (225, gain(0.0, Ramp::Smoothed)),
    (281, Change::Mute),
    (0, gain(-3.0, Ramp::Stepped)),
    (94, Change::Unmute),
    (130, gain(0.0, Ramp::Smoothed)),
    (75, band(4, 9_000.0, 4.0, 0.7)),
    (56, band(0, 120.0, 5.0, 0.7)),
    (190, gain(9.0, Ramp::Smoothed)),
    (94, gain(2.0, Ramp::Smoothed)),
    (0, band(2, 1_000.0, -2.0, 1.2)),
    (1, band(2, 1_400.0, -1.0, 1.2)),
    (1, band(2, 1_000.0, 0.0, 1.0)),
    (151, gain(0.0, Ramp::Stepped)),
];

/// What the demonstration's controller says over a piece of a given length: always the same.
///
/// There is a control for block 0, and about nine every two seconds after it: gains, a short mute, bands, several for
/// one block and some for blocks next to each other. [`Control::sent_at`] is left to whoever sends.
#[derive(Clone, Debug)]
pub struct Schedule {
    blocks: u64,
    number: u32,
    upcoming: Option<(u64, Change)>,
}

impl Schedule {
    /// The script for a piece of `blocks` blocks.
    pub const fn demo(blocks: u64) -> Self {
        Self { blocks, number: 0, upcoming: Some((0, gain(0.0, Ramp::Stepped))) }
    }

    /// The next control if it takes effect at block `through` or before, so that a controller can keep a fixed
    /// distance ahead of the sound.
    pub fn next_through(&mut self, through: u64) -> Option<Control> {
        self.upcoming.filter(|(block, _)| *block <= through)?;
        self.next()
    }
}

impl Iterator for Schedule {
    type Item = Control;

    fn next(&mut self) -> Option<Control> {
        let (block, change) = self.upcoming?;
        let number = self.number;
        let (distance, following) = SCRIPT[number as usize % SCRIPT.len()];
        self.upcoming =
            block.checked_add(distance).filter(|next| *next < self.blocks).map(|next| (next, following));
        self.number = number.wrapping_add(1);
        Some(Control { number, block, next_block: self.upcoming.map(|(next, _)| next), sent_at: 0, change })
    }
}

/// A control whose time has come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Due {
    /// What to apply.
    pub control: Control,
    /// How many blocks ago it was meant to take effect; 0 when it is in time.
    pub late_blocks: u64,
}

/// Controls that have arrived and wait for their block, in the order of block and number.
///
/// Its memory is taken once, by [`ControlQueue::new`].
#[derive(Debug)]
pub struct ControlQueue {
    /// The latest first, so that the next one is at the end.
    waiting: Vec<Control>,
    capacity: usize,
    settled_before: u64,
    next_number: u32,
    late: u64,
    missing: u64,
}

impl ControlQueue {
    /// Makes an empty queue for up to `capacity` controls.
    pub fn new(capacity: usize) -> Self {
        Self {
            waiting: Vec::with_capacity(capacity),
            capacity,
            settled_before: 0,
            next_number: 0,
            late: 0,
            missing: 0,
        }
    }

    /// Takes in a control that has arrived, in up to `capacity` moves.
    ///
    /// Numbers that were skipped are counted ([`ControlQueue::missing`]) and not waited for.
    ///
    /// # Errors
    ///
    /// [`PushError`]; the queue is unchanged then.
    pub fn push(&mut self, control: Control) -> Result<(), PushError> {
        if self.waiting.len() == self.capacity {
            return Err(PushError::Full);
        }
        let Some(skipped) = control.number.checked_sub(self.next_number) else {
            return Err(PushError::Repeated(control.number));
        };
        let key = (control.block, control.number);
        let place = self.waiting.partition_point(|other| (other.block, other.number) > key);
        self.waiting.insert(place, control);
        self.missing += u64::from(skipped);
        self.next_number = control.number.saturating_add(1);
        self.settled_before = control.next_block.unwrap_or(u64::MAX);
        Ok(())
    }

    /// The next control that `block` has to obey, the earliest first; call it until there is none, before each block.
    pub fn pop_due(&mut self, block: u64) -> Option<Due> {
        let late_blocks = block.checked_sub(self.waiting.last()?.block)?;
        self.late += u64::from(late_blocks > 0);
        self.waiting.pop().map(|control| Due { control, late_blocks })
    }

    /// Whether everything that the controller has to say about `block` has arrived.
    ///
    /// A stage that must come out the same each time asks this before each block, and waits for controls while it
    /// does not hold.
    pub const fn is_settled(&self, block: u64) -> bool {
        block < self.settled_before
    }

    /// How many controls came after their block had begun.
    pub const fn late(&self) -> u64 {
        self.late
    }

    /// How many numbers were skipped: controls that were lost.
    pub const fn missing(&self) -> u64 {
        self.missing
    }

    /// How many controls wait.
    pub const fn len(&self) -> usize {
        self.waiting.len()
    }

    /// How many controls can wait.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether none waits.
    pub const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether no further one can wait.
    pub const fn is_full(&self) -> bool {
        self.waiting.len() == self.capacity
    }
}

/// Why a queue did not take a control.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushError {
    /// As many wait as can; after some blocks there is room again.
    Full,
    /// The control with this number, or one after it, came before.
    Repeated(u32),
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("too many controls wait for their block"),
            Self::Repeated(number) => write!(f, "control {number} came twice or out of order"),
        }
    }
}

impl core::error::Error for PushError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(number: u32, block: u64, next_block: Option<u64>) -> Control {
        Control { number, block, next_block, sent_at: 5, change: gain(-1.5, Ramp::Smoothed) }
    }

    #[test]
    fn every_change_parses_back_to_itself() {
        let changes = SCRIPT.map(|(_, change)| change);
        for change in changes.into_iter().chain([gain(24.0, Ramp::Stepped), Change::Mute, Change::Unmute]) {
            for next_block in [None, Some(9), Some(u64::MAX - 1)] {
                let control = Control { change, ..control(3, 9, next_block) };
                assert_eq!(Control::parse(&control.to_bytes()), Ok(control));
            }
        }
    }

    #[test]
    fn the_script_keeps_to_the_ranges() {
        for (_, change) in SCRIPT {
            match change {
                Change::Gain(gain, _) => assert_eq!(Decibels::new(gain.get()), Ok(gain)),
                Change::Band(band, curve) => {
                    assert!(usize::from(band) < BANDS);
                    assert!(Decibels::new(curve.gain().get()).is_ok());
                    assert_eq!(Curve::new(curve.frequency_hz(), curve.gain(), curve.q()), Ok(curve));
                }
                Change::Mute | Change::Unmute => {}
            }
        }
    }

    #[test]
    fn foreign_bytes_are_refused() {
        let base = Control { change: band(4, 440.0, 3.0, 1.0), ..control(1, 9, Some(12)) };
        let with = |at: usize, bytes: &[u8]| {
            let mut whole = base.to_bytes();
            whole[at..][..bytes.len()].copy_from_slice(bytes);
            Control::parse(&whole).err()
        };
        assert_eq!(Control::parse(&base.to_bytes()[1..]), Err(ControlError::Size(47)));
        assert_eq!(Control::parse(&[]), Err(ControlError::Size(0)));
        assert_eq!(with(0, b"kAB1"), Some(ControlError::Magic));
        assert_eq!(with(4, &[4]), Some(ControlError::Kind(4)));
        assert_eq!(with(4, &[1]), Some(ControlError::Kind(1)));
        assert_eq!(with(5, &[5]), Some(ControlError::Band(5)));
        assert_eq!(with(12, &f32::NAN.to_le_bytes()), Some(ControlError::Curve));
        assert_eq!(with(16, &24.5f32.to_le_bytes()), Some(ControlError::Gain));
        assert_eq!(with(20, &0f32.to_le_bytes()), Some(ControlError::Curve));
        assert_eq!(with(32, &[8]), Some(ControlError::Order));
    }

    #[test]
    fn early_controls_wait_for_their_block() {
        let mut queue = ControlQueue::new(4);
        queue.push(control(0, 7, Some(8))).unwrap();
        assert_eq!(queue.pop_due(6), None);
        assert_eq!(queue.pop_due(7).unwrap().late_blocks, 0);
        assert_eq!((queue.late(), queue.len()), (0, 0));
    }

    #[test]
    fn late_controls_are_counted_and_apply_at_once() {
        let mut queue = ControlQueue::new(4);
        queue.push(control(0, 7, None)).unwrap();
        assert_eq!(queue.pop_due(10).unwrap().late_blocks, 3);
        assert_eq!(queue.late(), 1);
    }

    #[test]
    fn due_controls_leave_by_block_and_number() {
        let mut queue = ControlQueue::new(4);
        for (number, block) in [(0, 9), (1, 4), (2, 9), (3, 4)] {
            queue.push(control(number, block, None)).unwrap();
        }
        let mut left = Vec::new();
        while let Some(due) = queue.pop_due(9) {
            left.push(due.control.number);
        }
        assert_eq!(left, [1, 3, 0, 2]);
    }

    #[test]
    fn full_queue_refuses_and_stays_as_it_was() {
        let mut queue = ControlQueue::new(1);
        queue.push(control(0, 7, Some(8))).unwrap();
        assert_eq!(queue.push(control(1, 8, None)), Err(PushError::Full));
        assert!(queue.is_full() && !queue.is_settled(8));
        queue.pop_due(7).unwrap();
        queue.push(control(1, 8, None)).unwrap();
        assert_eq!(queue.missing(), 0);
    }

    #[test]
    fn repeated_controls_are_refused_and_lost_ones_counted() {
        let mut queue = ControlQueue::new(4);
        queue.push(control(0, 7, Some(8))).unwrap();
        assert_eq!(queue.push(control(0, 7, Some(8))), Err(PushError::Repeated(0)));
        queue.push(control(3, 9, None)).unwrap();
        assert_eq!((queue.missing(), queue.len()), (2, 2));
    }

    #[test]
    fn a_block_is_settled_once_the_next_control_is_known_to_be_later() {
        let mut queue = ControlQueue::new(4);
        assert!(!queue.is_settled(0));
        queue.push(control(0, 0, Some(5))).unwrap();
        assert!(queue.is_settled(4) && !queue.is_settled(5));
        queue.push(control(1, 5, Some(5))).unwrap();
        assert!(!queue.is_settled(5));
        queue.push(control(2, 5, None)).unwrap();
        assert!(queue.is_settled(u64::MAX - 1));
    }

    #[test]
    fn schedule_names_each_following_block_and_ends_with_the_piece() {
        let blocks = 18_000;
        let controls: Vec<Control> = Schedule::demo(blocks).collect();
        assert!(controls.len() > 80);
        for (at, pair) in controls.windows(2).enumerate() {
            assert_eq!(pair[0].number as usize, at);
            assert_eq!(pair[0].next_block, Some(pair[1].block));
        }
        assert_eq!(controls[0].block, 0);
        assert!(controls.iter().all(|control| control.block < blocks));
        assert_eq!(controls.last().unwrap().next_block, None);
    }

    #[test]
    fn schedule_of_any_length_settles_every_block() {
        for blocks in 0..400 {
            let mut queue = ControlQueue::new(16);
            Schedule::demo(blocks).for_each(|control| queue.push(control).unwrap());
            assert!(queue.is_settled(blocks));
        }
    }

    #[test]
    fn schedule_is_told_no_further_than_asked() {
        let mut schedule = Schedule::demo(1_000);
        assert_eq!(schedule.next_through(0).unwrap().block, 0);
        assert_eq!(schedule.next_through(186), None);
        assert_eq!(schedule.next_through(187).unwrap().block, 187);
    }
}
