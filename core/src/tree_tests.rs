extern crate std;
use super::*;
use std::vec::Vec;

/// Keys of at most 64 records, all of them in the index or not.
struct Fixture {
    root: Root,
    links: Vec<Link>,
    keys: Vec<u32>,
}

impl Fixture {
    fn new(keys: &[u32]) -> Self {
        let links = keys.iter().map(|_| Link::new()).collect();
        let mut fixture = Self { root: Root::new(), links, keys: keys.to_vec() };
        for slot in 0..keys.len() as u32 {
            fixture.insert(slot).unwrap();
            fixture.check();
        }
        fixture
    }

    fn insert(&mut self, slot: u32) -> Result<(), TreeError> {
        let Self { root, links, keys } = self;
        let key = keys.get(slot as usize).copied().unwrap_or(0);
        root.insert(links, slot, |other, _| key.cmp(&keys[other as usize]))
    }

    fn remove(&mut self, slot: u32) -> Result<(), TreeError> {
        self.root.remove(&mut self.links, slot)
    }

    fn in_order(&self) -> Vec<u32> {
        let mut slots = Vec::new();
        let mut at = self.root.first();
        while let Some(slot) = at {
            slots.push(slot);
            at = self.root.next(&self.links, slot);
        }
        slots
    }

    /// Height below `slot`, having checked order of links and balance.
    fn height(&self, slot: u32, parent: u32) -> i32 {
        if slot == NONE {
            return 0;
        }
        let link = &self.links[slot as usize];
        assert!(link.linked);
        assert_eq!(link.parent, parent);
        let left = self.height(link.children[LEFT], slot);
        let right = self.height(link.children[RIGHT], slot);
        assert_eq!(i32::from(link.balance), right - left);
        assert!((-1..=1).contains(&link.balance));
        1 + left.max(right)
    }

    fn check(&self) {
        self.height(self.root.root, NONE);
        let slots = self.in_order();
        assert_eq!(slots.len(), self.root.len());
        assert!(slots.is_sorted_by_key(|&slot| self.keys[slot as usize]));
        assert_eq!(self.root.last(&self.links), slots.last().copied());
        let mut backwards = Vec::new();
        let mut at = self.root.last(&self.links);
        while let Some(slot) = at {
            backwards.push(slot);
            at = self.root.prev(&self.links, slot);
        }
        backwards.reverse();
        assert_eq!(backwards, slots);
    }
}

#[test]
fn stays_balanced_for_every_order_of_seven() {
    // Every order of insertion, by counting in the factorial number system.
    for code in 0..5040_usize {
        let (mut code, mut left) = (code, Vec::from([1, 2, 3, 4, 5, 6, 7]));
        let mut keys = Vec::new();
        for base in (1..=7).rev() {
            keys.push(left.remove(code % base));
            code /= base;
        }
        let mut fixture = Fixture::new(&keys);
        for slot in [3, 0, 6, 2, 5, 1, 4] {
            fixture.remove(slot).unwrap();
            fixture.check();
        }
        assert!(fixture.root.is_empty());
    }
}

#[test]
fn ascending_keys_and_removal_from_the_front_stay_balanced() {
    let keys: Vec<u32> = (0..200).collect();
    let mut fixture = Fixture::new(&keys);
    for slot in 0..200 {
        assert_eq!(fixture.root.first(), Some(slot));
        fixture.remove(slot).unwrap();
        fixture.check();
    }
    assert_eq!(fixture.root.first(), None);
}

#[test]
fn equal_keys_keep_their_order_of_insertion() {
    let fixture = Fixture::new(&[5, 5, 1, 5, 1]);
    assert_eq!(fixture.in_order(), [2, 4, 0, 1, 3]);
}

#[test]
fn a_first_record_needs_no_comparison() {
    let mut fixture = Fixture::new(&[9, 8]);
    for key in (0..8).rev() {
        fixture.keys.push(key);
        fixture.links.push(Link::new());
        let slot = fixture.keys.len() as u32 - 1;
        fixture.root.insert_first(&mut fixture.links, slot).unwrap();
        fixture.check();
    }
    assert_eq!(fixture.root.len(), 10);
}

#[test]
fn searches_find_the_key_or_the_next_greater_one() {
    let fixture = Fixture::new(&[40, 10, 30, 20]);
    let find = |key| fixture.root.find(&fixture.links, |slot, _| fixture.keys[slot as usize].cmp(&key));
    let bound =
        |key| fixture.root.lower_bound(&fixture.links, |slot, _| fixture.keys[slot as usize].cmp(&key));
    assert_eq!(find(30), Some(2));
    assert_eq!(find(31), None);
    assert_eq!(bound(20), Some(3));
    assert_eq!(bound(31), Some(0));
    assert_eq!(bound(41), None);
}

#[test]
fn misplaced_slots_are_errors() {
    let mut fixture = Fixture::new(&[1, 2, 3]);
    assert_eq!(fixture.insert(1), Err(TreeError::Linked));
    assert_eq!(fixture.insert(3), Err(TreeError::OutOfRange));
    assert_eq!(fixture.remove(3), Err(TreeError::OutOfRange));
    fixture.remove(1).unwrap();
    assert_eq!(fixture.remove(1), Err(TreeError::NotLinked));
    assert_eq!(fixture.root.next(&fixture.links, 1), None);
    // Linked, but in a tree that this root knows nothing of.
    let mut other: Root = Root::new();
    other.insert(&mut fixture.links, 1, |_, _| Ordering::Less).unwrap();
    assert_eq!(fixture.remove(1), Err(TreeError::NotLinked));
    fixture.check();
}

#[test]
fn a_circle_of_links_ends_every_walk() {
    let mut fixture = Fixture::new(&[1, 2, 3]);
    for link in &mut fixture.links {
        link.children = [0, 0];
        link.parent = 0;
        link.balance = 0;
    }
    assert_eq!(fixture.root.find(&fixture.links, |_, _| Ordering::Less), None);
    assert!(fixture.root.lower_bound(&fixture.links, |_, _| Ordering::Greater).is_some());
    assert!(fixture.root.last(&fixture.links).is_some());
    fixture.links.push(Link::new());
    fixture.keys.push(9);
    assert_eq!(fixture.insert(3), Err(TreeError::Corrupt));
    let mut at = fixture.root.first();
    for _ in 0..10 {
        at = at.and_then(|slot| fixture.root.next(&fixture.links, slot));
    }
    for slot in 0..3 {
        let _ = fixture.remove(slot);
    }
}
