//! Who has broken the rules of a lane to whom.

use kdbus_core::engine::HandleId;

const BITS: usize = u64::BITS as usize;

/// A bit for each pair of handles, so that no pair's misdeeds depend on how many others there were.
#[derive(Debug)]
pub(crate) struct Bans {
    /// A row for each receiver.
    words: Box<[u64]>,
    row: usize,
    count: usize,
}

impl Bans {
    /// Room for all pairs of handles below `handles`.
    pub(crate) fn new(handles: usize) -> Self {
        let row = handles.div_ceil(BITS);
        Self { words: vec![0; row * handles].into(), row, count: 0 }
    }

    /// Bans a sender from lanes to a receiver until [one of them ends](Self::forget).
    pub(crate) fn add(&mut self, sender: HandleId, receiver: HandleId) {
        if let Some((at, bit)) = self.place(sender.index, receiver.index)
            && let Some(word) = self.words.get_mut(at)
        {
            self.count += usize::from(*word & bit == 0);
            *word |= bit;
        }
    }

    /// Whether a sender is banned from lanes to a receiver.
    pub(crate) fn has(&self, sender: HandleId, receiver: HandleId) -> bool {
        let place = self.place(sender.index, receiver.index);
        place.is_some_and(|(at, bit)| self.words.get(at).is_some_and(|word| word & bit != 0))
    }

    /// A connection has ended. Cost: a look at all pairs that it can be one of, and nothing while nobody is banned.
    pub(crate) fn forget(&mut self, end: HandleId) {
        if self.count == 0 || self.row == 0 {
            return;
        }
        for other in 0..(self.words.len() / self.row) as u32 {
            for (sender, receiver) in [(end.index, other), (other, end.index)] {
                if let Some((at, bit)) = self.place(sender, receiver)
                    && let Some(word) = self.words.get_mut(at)
                {
                    self.count -= usize::from(*word & bit != 0);
                    *word &= !bit;
                }
            }
        }
    }

    fn place(&self, sender: u32, receiver: u32) -> Option<(usize, u64)> {
        let (sender, receiver) = (sender as usize, receiver as usize);
        (sender / BITS < self.row).then_some((receiver * self.row + sender / BITS, 1 << (sender % BITS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn handle(index: u32) -> HandleId {
        HandleId { index, generation: 0 }
    }

    #[test]
    fn each_pair_is_remembered_whatever_the_others_do_and_forgotten_with_either_end() {
        const HANDLES: u32 = 70;
        let mut bans = Bans::new(HANDLES as usize);
        let pairs = || (0..HANDLES).flat_map(|a| (0..HANDLES).map(move |b| (handle(a), handle(b))));
        for (a, b) in pairs() {
            assert!(!bans.has(a, b));
            bans.add(a, b);
            bans.add(a, b);
        }
        bans.add(handle(9), handle(HANDLES));
        assert!(!bans.has(handle(9), handle(HANDLES)) && !bans.has(handle(200), handle(3)));
        bans.forget(handle(65));
        for (a, b) in pairs() {
            assert_eq!(bans.has(a, b), a.index != 65 && b.index != 65);
        }
        for end in 0..HANDLES {
            bans.forget(handle(end));
        }
        assert_eq!(bans.count, 0);
    }
}
