//! The merge of several lanes by time.
//!
//! Each message has a key, the time at which it was queued. A receiver reads the clock (the *cut*), then looks
//! at its lanes one after another, and takes what was queued up to the cut. What came later in one lane
//! waits for the next batch, because something older may have come into a lane that was looked at before.

use crate::Instant;

/// A message that came in on a lane and was not received yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrived {
    /// Time of queueing, nanoseconds; increasing within a lane.
    pub key: u64,
    /// Priority of the message; the lowest value is the most urgent.
    pub priority: i64,
    /// The receiver's number of the lane.
    pub lane: u32,
    /// Place of the message in its lane.
    pub slot: u32,
    /// Offset of its slice.
    pub offset: u64,
    /// Bytes of its slice.
    pub size: u64,
    /// Whether descriptors go with it.
    pub with_files: bool,
}

/// How far a receiver has merged its lanes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Order {
    cut: u64,
}

/// One look at all lanes.
#[derive(Debug)]
pub struct Batch<'a> {
    floor: u64,
    cut: u64,
    room: &'a mut [Arrived],
    len: usize,
}

impl Order {
    /// A receiver that has merged nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { cut: 0 }
    }

    /// Starts a look at all lanes, for as many messages as `room` holds. `now` is read before any lane is.
    pub fn batch<'a>(&mut self, now: Instant, room: &'a mut [Arrived]) -> Batch<'a> {
        let floor = self.cut;
        self.cut = floor.max(now.as_nanos());
        Batch { floor, cut: self.cut, room, len: 0 }
    }

    /// What a message with this key counts as old as that is received past others: they keep their times. `now` is read before
    /// any lane is. `None` if it was queued after that, and has to wait for the next look.
    #[must_use]
    pub fn time_beside(&self, now: Instant, key: u64) -> Option<u64> {
        (key <= self.cut.max(now.as_nanos())).then_some(self.time_of(key))
    }

    /// The same of a message whose time is nothing to those that are received later.
    #[must_use]
    pub const fn time_of(&self, key: u64) -> u64 {
        if key < self.cut { self.cut } else { key }
    }

    /// The message that counts as old as `time` was the oldest of all lanes, and is received: nothing that is received later
    /// counts as older.
    pub const fn took(&mut self, time: u64) {
        self.cut = time;
    }
}

impl<'a> Batch<'a> {
    /// Whether a message with this key would be [admitted](Self::admit).
    #[must_use]
    pub const fn takes(&self, key: u64) -> bool {
        key <= self.cut && self.len < self.room.len()
    }

    /// What an admitted message counts as old as: its key, or the end of the look before.
    #[must_use]
    pub const fn time_of(&self, key: u64) -> u64 {
        if key < self.floor { self.floor } else { key }
    }

    /// Lets a message with this key be as old as it says: the look before has [left](Self::leave) it in its lane.
    pub fn reach_back(&mut self, key: u64) {
        self.floor = self.floor.min(key);
    }

    /// What to [reach back](Self::reach_back) to at the next look, because a message with this key finds no room at this one.
    #[must_use]
    pub const fn leave(&self, key: u64) -> u64 {
        self.time_of(key)
    }

    /// Takes a message in. False if it has to stay in its lane until the next look: it was queued after this
    /// one began, or there is no room.
    #[must_use = "a message that stays in its lane has to be looked at again"]
    pub fn admit(&mut self, arrived: Arrived) -> bool {
        if arrived.key > self.cut {
            return false;
        }
        let Some(place) = self.room.get_mut(self.len) else { return false };
        *place = arrived;
        self.len += 1;
        true
    }

    /// The messages of this look in the order in which they are to be queued, in `O(n log n)`.
    ///
    /// One that claims to be older than the look before is as old as the oldest of this one: a lane that
    /// gives wrong times gains one batch.
    #[must_use]
    pub fn sorted(self) -> &'a [Arrived] {
        let Self { floor, room, len, .. } = self;
        let batch = &mut room[..len];
        sort(batch, |arrived| (arrived.key.max(floor), arrived.lane, arrived.key));
        batch
    }
}

/// Values behind a sorted run that are moved into it one by one.
const FEW: usize = 8;

/// Sorts in place: by heap, or by moving what comes last, as a lane is in order and what the bus shows mostly little. Firmware
/// links it, and the library's sort is as large as all of the receive path; that one is faster on long batches in disorder,
/// which a lane alone never makes.
fn sort<T, K: Ord>(values: &mut [T], key: impl Fn(&T) -> K) {
    let run = values.windows(2).take_while(|pair| key(&pair[0]) <= key(&pair[1])).count() + 1;
    if values.len().saturating_sub(run) <= FEW {
        for at in run..values.len() {
            let place = values[..at].partition_point(|before| key(before) <= key(&values[at]));
            values[place..=at].rotate_right(1);
        }
        return;
    }
    for top in (0..values.len() / 2).rev() {
        sift(values, top, &key);
    }
    for len in (1..values.len()).rev() {
        values.swap(0, len);
        sift(&mut values[..len], 0, &key);
    }
}

/// Moves the value at `top` down until none below it is greater.
fn sift<T, K: Ord>(heap: &mut [T], mut top: usize, key: impl Fn(&T) -> K) {
    loop {
        let below = 2 * top + 1;
        let Some(greatest) = (below..heap.len().min(below + 2)).max_by_key(|child| key(&heap[*child])) else {
            return;
        };
        if key(&heap[greatest]) <= key(&heap[top]) {
            return;
        }
        heap.swap(top, greatest);
        top = greatest;
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    fn arrived(lane: u32, key: u64) -> Arrived {
        Arrived { key, lane, slot: key as u32, ..Arrived::default() }
    }

    fn merge<const N: usize>(order: &mut Order, now: u64, lanes: [Arrived; N]) -> ([u64; N], usize) {
        let mut room = [Arrived::default(); N];
        let mut batch = order.batch(Instant::from_nanos(now), &mut room);
        let held_back = lanes.into_iter().filter(|arrived| !batch.admit(*arrived)).count();
        let mut keys = [0; N];
        for (key, arrived) in keys.iter_mut().zip(batch.sorted()) {
            *key = arrived.key;
        }
        (keys, held_back)
    }

    #[test]
    fn lanes_merge_by_time_up_to_the_cut() {
        let mut order = Order::new();
        let lanes = [arrived(0, 10), arrived(0, 31), arrived(1, 5), arrived(1, 30)];
        assert_eq!(merge(&mut order, 30, lanes), ([5, 10, 30, 0], 1));
    }

    #[test]
    fn a_lane_that_predates_its_messages_does_not_overtake_the_batch_before() {
        let mut order = Order::new();
        assert_eq!(merge(&mut order, 20, [arrived(0, 20)]), ([20], 0));
        // Lane 1 says 1, which is before the last cut: as old as the cut itself, and behind lane 0's equal.
        assert_eq!(merge(&mut order, 40, [arrived(1, 1), arrived(0, 20), arrived(0, 39)]), ([20, 1, 39], 0));
    }

    #[test]
    fn messages_that_are_taken_one_by_one_keep_their_times() {
        let mut order = Order::new();
        let now = Instant::from_nanos(50);
        let mut take = |key| order.time_beside(now, key).inspect(|time| order.took(*time));
        assert_eq!([10, 20, 60].map(&mut take), [Some(10), Some(20), None]);
        assert_eq!((order.time_beside(now, 40), order.time_beside(now, 5)), (Some(40), Some(20)));
        // What comes later is no older than what was taken.
        assert_eq!(merge(&mut order, 90, [arrived(1, 15), arrived(0, 30)]), ([15, 30], 0));
        assert_eq!(order.time_beside(now, 89), Some(90));
    }

    #[test]
    fn a_clock_that_jumps_back_keeps_the_cut() {
        let mut order = Order::new();
        assert_eq!(merge(&mut order, 50, [arrived(0, 50)]), ([50], 0));
        assert_eq!(merge(&mut order, 10, [arrived(0, 45)]), ([45], 0));
    }

    #[test]
    fn what_found_no_room_keeps_its_time_and_its_place() {
        let mut order = Order::new();
        let mut room = [Arrived::default(); 3];
        let batch = order.batch(Instant::from_nanos(20), &mut room);
        let left = batch.leave(15).min(batch.leave(18));
        let mut batch = order.batch(Instant::from_nanos(40), &mut room);
        batch.reach_back(left);
        assert_eq!([3, 15, 17].map(|key| batch.time_of(key)), [15, 15, 17]);
        assert!([(1, 18), (0, 17), (1, 15)].into_iter().all(|(lane, key)| batch.admit(arrived(lane, key))));
        // What claims to be older than the look before reaches no further back for being left.
        assert_eq!(batch.leave(3), 15);
        assert_eq!(batch.sorted(), [arrived(1, 15), arrived(0, 17), arrived(1, 18)]);
    }

    #[test]
    fn any_disorder_is_sorted() {
        let mut seed = 1_u32;
        for len in 0..40_u32 {
            let mut values: std::vec::Vec<u32> = (0..len)
                .map(|_| {
                    seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    seed >> 28
                })
                .collect();
            let mut expected = values.clone();
            expected.sort_unstable();
            // In disorder, and with some behind a run in order.
            for behind in 0..len.min(12) as usize {
                let mut values = values.clone();
                let run = values.len() - behind;
                values[..run].sort_unstable();
                sort(&mut values, |value| *value);
                assert_eq!(values, expected);
            }
            sort(&mut values, |value| *value);
            assert_eq!(values, expected);
        }
    }

    #[test]
    fn what_finds_no_room_stays_in_its_lane() {
        let mut order = Order::new();
        let mut room = [Arrived::default(); 1];
        let mut batch = order.batch(Instant::from_nanos(9), &mut room);
        assert!(batch.admit(arrived(0, 1)));
        assert!(!batch.admit(arrived(0, 2)));
        assert_eq!(batch.sorted(), [arrived(0, 1)]);
    }
}
