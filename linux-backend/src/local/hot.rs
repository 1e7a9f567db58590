//! Which lanes a receiver looks at in memory.
//!
//! A few lanes are all *hot*: looked at each time. Of many lanes, those are that have rung and that something came by since. The
//! others are *cold*: their bells were asked for, and a look after that found nothing; so whatever comes by one of them
//! rings, and before each look the rings are taken. Who dies between sending and ringing has kdbusd give a notice, and a
//! notice makes all lanes hot once. `core/tests/loom.rs` has the interleavings.

use rustix::io::Errno;

use super::block::Block;

/// Lanes that are all hot.
const FEW: usize = 8;
/// Looks after which a lane is cold by which nothing came, for a receiver that never sleeps.
const IDLE: u32 = 256;
/// Lanes that are looked at for wear each time, of many.
const WORN: usize = 8;

/// The numbers of the hot lanes.
#[derive(Debug)]
pub(super) struct HotSet {
    numbers: Block<u32>,
    len: usize,
    /// Place of each lane in `numbers`, where it is hot.
    places: Block<Option<u32>>,
    looks: u32,
    /// All lanes may be worn out.
    any_worn: bool,
    /// Where to look for wear next.
    next_worn: usize,
}

impl HotSet {
    /// Of `count` lanes, all of which are hot if they are few. New lanes ring with their first message.
    pub(super) fn new(count: usize) -> Result<Self, Errno> {
        let numbers = Block::new(count, || 0)?;
        let places = Block::new(count, || None)?;
        let mut set = Self { numbers, len: 0, places, looks: 0, any_worn: false, next_worn: 0 };
        if !set.is_choosy() {
            set.add_all();
        }
        Ok(set)
    }

    /// Whether lanes are cold now and then.
    pub(super) fn is_choosy(&self) -> bool {
        self.places.len() > FEW
    }

    /// Hot lanes.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The number of the hot lane at this place.
    pub(super) fn get(&self, place: usize) -> Option<usize> {
        self.numbers.get(place).filter(|_| place < self.len).map(|number| *number as usize)
    }

    /// Makes a lane hot.
    pub(super) fn add(&mut self, number: usize) {
        if let Some(place @ None) = self.places.get_mut(number)
            && let Some(free) = self.numbers.get_mut(self.len)
        {
            (*free, *place) = (number as u32, Some(self.len as u32));
            self.len += 1;
        }
    }

    /// Makes all lanes hot, until they are asked for their bells.
    pub(super) fn add_all(&mut self) {
        self.any_worn = true;
        for number in 0..self.places.len() {
            self.add(number);
        }
    }

    /// Makes the lane at this place cold; another one stands there then. Of few lanes none is.
    pub(super) fn remove(&mut self, place: usize) {
        let Some(number) = self.get(place).filter(|_| self.is_choosy()) else { return };
        let Some(last) = self.get(self.len - 1) else { return };
        self.len -= 1;
        if let Some(moved) = self.numbers.get_mut(place) {
            *moved = last as u32;
        }
        if let Some(moved) = self.places.get_mut(last) {
            *moved = Some(place as u32);
        }
        if let Some(removed) = self.places.get_mut(number) {
            *removed = None;
        }
    }

    /// Counts a look. True if lanes by which nothing came are to be cold now.
    pub(super) fn count_look(&mut self) -> bool {
        self.looks = if self.looks + 1 < IDLE { self.looks + 1 } else { 0 };
        self.looks == 0 && self.is_choosy()
    }

    /// A lane may be worn out.
    pub(super) const fn worn(&mut self) {
        self.any_worn = true;
    }

    /// The first lane for which `is_worn` holds, of those that may be. Of many lanes a few are tried each time besides.
    pub(super) fn find_worn(&mut self, mut is_worn: impl FnMut(usize) -> bool) -> Option<usize> {
        let count = self.places.len();
        if self.any_worn || !self.is_choosy() {
            let found = (0..count).find(|number| is_worn(*number));
            self.any_worn = found.is_some();
            return found;
        }
        let start = self.next_worn;
        self.next_worn = (start + WORN) % count;
        (start..start + WORN).map(|number| number % count).find(|number| is_worn(*number))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::vec::Vec;

    use super::*;

    fn numbers(set: &HotSet) -> BTreeSet<usize> {
        let numbers: Vec<_> = (0..set.len()).map(|place| set.get(place).unwrap()).collect();
        assert_eq!((numbers.iter().collect::<BTreeSet<_>>().len(), set.get(set.len())), (set.len(), None));
        numbers.into_iter().collect()
    }

    #[test]
    fn few_lanes_are_always_hot() {
        let mut set = HotSet::new(FEW).unwrap();
        assert_eq!(numbers(&set), (0..FEW).collect());
        set.remove(3);
        set.add(3);
        assert!(numbers(&set).len() == FEW && (0..1000).all(|_| !set.count_look()));
    }

    #[test]
    fn of_many_lanes_those_are_hot_that_were_added_last() {
        let mut set = HotSet::new(512).unwrap();
        assert!(numbers(&set).is_empty());
        let mut model = BTreeSet::new();
        let mut random = 7_u64;
        for step in 0..10_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = (random >> 40) as usize;
            if step % 2000 == 1999 {
                set.add_all();
                model.extend(0..512);
            } else if !number.is_multiple_of(3) && set.len() > 0 {
                let place = number % set.len();
                assert!(model.remove(&set.get(place).unwrap()));
                set.remove(place);
            } else {
                set.add(number % 600);
                model.extend(Some(number % 600).filter(|number| *number < 512));
            }
            assert_eq!(numbers(&set), model, "step {step}");
        }
    }

    #[test]
    fn wear_is_found_at_once_after_a_notice_and_in_its_turn_otherwise() {
        let mut set = HotSet::new(512).unwrap();
        let tries = (0..).take_while(|_| set.find_worn(|number| number == 500).is_none()).count();
        assert_eq!(tries, 500 / WORN);
        set.worn();
        assert_eq!(set.find_worn(|number| number == 17), Some(17));
        assert_eq!(set.find_worn(|_| false), None);
        let mut tried = 0;
        let none = set.find_worn(|_| {
            tried += 1;
            false
        });
        assert_eq!((none, tried), (None, WORN));
    }
}
