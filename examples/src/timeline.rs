//! When each block is due where, in a run that keeps time.

use kdbus_core::Instant;
use std::time::Duration;

use crate::block::{FRAMES, SAMPLE_RATE};

/// The fewest blocks that the source can be ahead: one each for the queue, the equaliser and the sink, and one between.
pub const FEWEST_AHEAD: u64 = 4;

/// The most blocks that the source can be ahead. The bus holds 256 messages of a user at a receiver, controls included.
pub const MOST_AHEAD: u64 = 128;

/// Blocks between the sending of a control and the block that it names.
const CONTROL_LEAD: u64 = 2;

/// The plan of a run: the same in all four processes, because all of them read the same clock.
///
/// The source sends block *k* at its place on the clock. Half of the blocks ahead wait in the equaliser's queue until the
/// equaliser takes them, the other half is the slack of the sink, which plays block *k* all of them later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeline {
    start_at: Instant,
    blocks_ahead: u64,
}

impl Timeline {
    /// A plan that begins at `start_at` and plays `blocks_ahead` blocks later, which is held within [`FEWEST_AHEAD`] and
    /// [`MOST_AHEAD`].
    pub const fn new(start_at: Instant, blocks_ahead: u64) -> Self {
        let blocks_ahead = if blocks_ahead < FEWEST_AHEAD {
            FEWEST_AHEAD
        } else if blocks_ahead > MOST_AHEAD {
            MOST_AHEAD
        } else {
            blocks_ahead
        };
        Self { start_at, blocks_ahead }
    }

    /// When the source sends `block`.
    pub const fn source_at(&self, block: u64) -> Instant {
        self.start_at.after(sounding(block))
    }

    /// When the equaliser takes `block` out of its queue.
    pub const fn equaliser_at(&self, block: u64) -> Instant {
        self.source_at(block.saturating_add(self.queued()))
    }

    /// When the sink has to have `block`.
    pub const fn playout_at(&self, block: u64) -> Instant {
        self.source_at(block.saturating_add(self.blocks_ahead))
    }

    /// When the controller sends a control that names `block`: shortly before the equaliser takes that block, when most
    /// of those before it are queued already.
    pub const fn control_at(&self, block: u64) -> Instant {
        self.source_at(block.saturating_add(self.queued()).saturating_sub(CONTROL_LEAD))
    }

    /// How many blocks wait for the equaliser.
    pub const fn queued(&self) -> u64 {
        self.blocks_ahead / 2
    }

    /// After which time from its sending a block comes too late to the equaliser: when half of the slack behind its turn is
    /// used up.
    pub const fn equaliser_deadline(&self) -> Duration {
        sounding(self.queued() + self.slack() / 2)
    }

    /// After which time from its sending a block comes too late to the sink, if it left the equaliser in time.
    pub const fn sink_deadline(&self) -> Duration {
        sounding(self.slack() - self.slack() / 2)
    }

    /// Blocks between the turn of a block at the equaliser and its playout.
    const fn slack(&self) -> u64 {
        self.blocks_ahead - self.queued()
    }

    /// After which time from its place at the source a block comes too late to be played.
    pub const fn playout_deadline(&self) -> Duration {
        sounding(self.blocks_ahead)
    }

    /// After which time from its sending a control comes too late for the block that it names.
    pub const fn control_deadline(&self) -> Duration {
        sounding(CONTROL_LEAD)
    }
}

/// How long `blocks` blocks sound, rounded down once, so that blocks do not drift from the clock.
pub const fn sounding(blocks: u64) -> Duration {
    let ns = blocks as u128 * FRAMES as u128 * 1_000_000_000 / SAMPLE_RATE as u128;
    Duration::from_nanos(if ns > u64::MAX as u128 { u64::MAX } else { ns as u64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Timeline {
        Timeline::new(Instant::from_nanos(1_000), 16)
    }

    #[test]
    fn blocks_do_not_drift_from_the_clock() {
        // 750 blocks are 48 000 frames.
        assert_eq!(sounding(750), Duration::from_secs(1));
        assert_eq!(sounding(1), Duration::from_nanos(1_333_333));
        assert_eq!(plan().source_at(750 * 3_600).as_nanos(), 3_600_000_001_000);
    }

    #[test]
    fn each_station_follows_the_one_before_it() {
        for ahead in [0, FEWEST_AHEAD, 7, 16, MOST_AHEAD, u64::MAX] {
            let plan = Timeline::new(Instant::from_nanos(5), ahead);
            assert!(plan.source_at(9) < plan.control_at(9) || plan.queued() <= CONTROL_LEAD);
            assert!(plan.control_at(9) < plan.equaliser_at(9), "{ahead}");
            assert!(plan.equaliser_at(9) < plan.playout_at(9));
        }
    }

    #[test]
    fn deadlines_of_the_hops_add_up_to_the_playout() {
        for ahead in FEWEST_AHEAD..=MOST_AHEAD {
            let plan = Timeline::new(Instant::ZERO, ahead);
            let sum = plan.equaliser_deadline() + plan.sink_deadline();
            assert!(plan.playout_deadline() - sum < Duration::from_nanos(3), "{ahead}");
            assert!(plan.sink_deadline() >= sounding(1));
        }
    }

    #[test]
    fn times_beyond_the_clock_stay_there() {
        assert_eq!(plan().playout_at(u64::MAX), Instant::FAR);
    }
}
