//! Messages that go through kdbusd though a lane leads to their receiver, so that tests can mix both ways.

use kdbus_core::hint::likely;

/// Decides for each message by a seed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Detour {
    /// 0 for never.
    state: u64,
}

impl Detour {
    /// No message takes one.
    pub(super) const NONE: Self = Self { state: 0 };

    /// Every other message takes one on average, the same ones for the same seed.
    pub(super) const fn by_seed(seed: u64) -> Self {
        // Seeds next to each other begin alike otherwise; no seed is never.
        let state = (seed ^ (seed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self { state: if state == 0 { 1 } else { state } }
    }

    /// Whether the next message takes one.
    pub(super) const fn next(&mut self) -> bool {
        if likely(self.state == 0) {
            return false;
        }
        // xorshift64: never becomes 0.
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state >> 63 == 1
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_seed_fixes_which_messages_take_one() {
        let choices = |seed| {
            let mut detour = Detour::by_seed(seed);
            (0..64).map(|_| detour.next()).collect::<Vec<_>>()
        };
        assert_eq!(choices(7), choices(7));
        assert_ne!(choices(7), choices(8));
        for seed in [0, 1, 7, u64::MAX] {
            let taken = choices(seed).iter().filter(|taken| **taken).count();
            assert!((16..48).contains(&taken), "{taken} of 64 by seed {seed}");
        }
        let mut none = Detour::NONE;
        assert!((0..64).all(|_| !none.next()));
    }
}
