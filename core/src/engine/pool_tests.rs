extern crate std;
use super::*;
use std::vec::Vec;

struct Fixture {
    head: PoolHead,
    records: Vec<SliceRecord>,
}

impl Fixture {
    fn new(size: u64, records: usize) -> Self {
        let mut fixture =
            Self { head: PoolHead::new(), records: (0..records).map(|_| SliceRecord::new()).collect() };
        Pool::create(&mut fixture.head, &mut fixture.records, size).unwrap();
        fixture
    }

    fn pool(&mut self) -> Pool<'_> {
        Pool::new(&mut self.head, &mut self.records)
    }
}

#[test]
fn slices_are_cut_from_the_front_and_rounded_up() {
    let mut fixture = Fixture::new(4096, 8);
    let mut pool = fixture.pool();
    let first = pool.allocate(1, true).unwrap();
    let second = pool.allocate(16, true).unwrap();
    assert_eq!((first.offset, first.size), (0, 8));
    assert_eq!((second.offset, second.size), (8, 16));
    assert_eq!(pool.accounted_size(), 24);
    assert_eq!(pool.find(8), Some(second));
    assert_eq!(pool.find(16), None);
}

#[test]
fn the_smallest_free_slice_that_fits_is_taken() {
    let mut fixture = Fixture::new(1024, 16);
    let mut pool = fixture.pool();
    // Holes of 128, 32 and 64 bytes, kept apart by slices of 8.
    let holes: Vec<Slice> = [128, 32, 64]
        .into_iter()
        .map(|size| {
            let hole = pool.allocate(size, false).unwrap();
            pool.allocate(8, false).unwrap();
            hole
        })
        .collect();
    for hole in &holes {
        pool.release(hole.id).unwrap();
    }
    assert_eq!(pool.allocate(40, false).unwrap().offset, holes[2].offset);
    assert_eq!(pool.allocate(32, false).unwrap().offset, holes[1].offset);
    assert_eq!(pool.allocate(24, false).unwrap().offset, holes[2].offset + 40);
    assert_eq!(pool.allocate(24, false).unwrap().offset, holes[0].offset);
}

#[test]
fn neighbours_merge_in_any_order() {
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let mut fixture = Fixture::new(4096, 5);
        let mut pool = fixture.pool();
        let slices = [8, 16, 24].map(|size| pool.allocate(size, true).unwrap());
        let wall = pool.allocate(8, true).unwrap();
        for at in order {
            pool.release(slices[at].id).unwrap();
        }
        assert_eq!(pool.allocate(48, true).unwrap().offset, 0);
        pool.release(pool.find(0).unwrap().id).unwrap();
        pool.release(wall.id).unwrap();
        assert_eq!(pool.largest_free(), 4096);
        assert_eq!(pool.accounted_size(), 0);
        assert!(pool.is_empty());
    }
}

#[test]
fn a_slice_is_free_when_neither_bus_nor_user_holds_it() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    let message = pool.allocate(64, true).unwrap();
    assert_eq!(pool.free(0), Err(PoolError::NotPublished), "queued, not published");
    pool.publish(message.id).unwrap();
    pool.release(message.id).unwrap();
    assert_eq!(pool.accounted_size(), 0, "a received message does not count");
    assert_eq!(pool.find(0), Some(message));
    pool.free(0).unwrap();
    assert_eq!(pool.free(0), Err(PoolError::NotPublished), "freed twice");
    assert_eq!(pool.publish(message.id), Err(PoolError::Stale));
    assert_eq!(pool.largest_free(), 4096);
}

#[test]
fn a_peeked_slice_can_be_freed_and_published_again() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    let message = pool.allocate(64, true).unwrap();
    pool.publish(message.id).unwrap();
    pool.free(0).unwrap();
    assert_eq!(pool.accounted_size(), 64);
    pool.publish(message.id).unwrap();
    pool.release(message.id).unwrap();
    assert_eq!(pool.release(message.id), Err(PoolError::Stale));
    pool.free(0).unwrap();
    assert!(pool.is_empty());
}

#[test]
fn a_slice_that_is_given_up_is_free_at_once() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    for peeked in [false, true] {
        let message = pool.allocate(64, true).unwrap();
        if peeked {
            pool.publish(message.id).unwrap();
        }
        pool.give_up(message.id).unwrap();
        assert_eq!((pool.accounted_size(), pool.largest_free()), (0, 4096));
        assert_eq!(pool.give_up(message.id), Err(PoolError::Stale));
    }
    let received = pool.allocate(64, true).unwrap();
    pool.hand_over(received.id).unwrap();
    assert_eq!(pool.give_up(received.id), Err(PoolError::Stale));
    assert_eq!(pool.free(received.offset), Ok(()), "the user still holds it");
}

#[test]
fn only_starts_of_published_slices_can_be_freed() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    assert_eq!(pool.free(0), Err(PoolError::NotPublished));
    let slice = pool.allocate(64, false).unwrap();
    pool.publish(slice.id).unwrap();
    for offset in [1, 8, 64, 4088, 4097, u64::MAX] {
        assert_eq!(pool.free(offset), Err(PoolError::NotPublished), "{offset}");
    }
    assert_eq!(pool.free(4096), Ok(()), "the end stands for no slice");
    assert_eq!(pool.find(0), Some(slice));
}

#[test]
fn query_results_are_not_accounted() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    let slice = pool.allocate(24, false).unwrap();
    assert_eq!(pool.accounted_size(), 0);
    pool.release(slice.id).unwrap();
    assert_eq!(pool.accounted_size(), 0);
}

#[test]
fn refusals_change_nothing() {
    let mut fixture = Fixture::new(64, 3);
    let mut pool = fixture.pool();
    assert_eq!(pool.allocate(0, true), Err(PoolError::Size));
    assert_eq!(pool.allocate(65, true), Err(PoolError::Exhausted));
    assert_eq!(pool.allocate(u64::MAX, true), Err(PoolError::Exhausted));
    pool.allocate(8, true).unwrap();
    pool.allocate(8, true).unwrap();
    // The third record describes the rest, so that can only be taken as a whole.
    assert_eq!(pool.allocate(8, true), Err(PoolError::Exhausted));
    assert_eq!(pool.accounted_size(), 16);
    assert_eq!(pool.largest_free(), 48);
    assert_eq!(pool.allocate(48, true).unwrap().offset, 16);
    assert_eq!(pool.largest_free(), 0);
    assert_eq!(PoolError::Exhausted.errno(), Errno::EXFULL);
}

#[test]
fn sizes_and_records_of_a_pool_are_checked() {
    let mut head = PoolHead::new();
    for size in [0, 4, 4097] {
        let mut records = [SliceRecord::new()];
        assert_eq!(Pool::create(&mut head, &mut records, size).err(), Some(PoolError::Size));
    }
    assert_eq!(Pool::create(&mut head, &mut [], 4096).err(), Some(PoolError::Exhausted));
    assert_eq!(Pool::new(&mut head, &mut []).allocate(8, true), Err(PoolError::Exhausted));
}

#[test]
fn a_pool_made_anew_is_free_and_knows_no_old_slices() {
    let mut fixture = Fixture::new(4096, 4);
    let old = fixture.pool().allocate(64, true).unwrap();
    let mut pool = Pool::create(&mut fixture.head, &mut fixture.records, 8192).unwrap();
    assert_eq!(pool.get(old.id), None);
    assert_eq!(pool.release(old.id), Err(PoolError::Stale));
    assert_eq!(pool.largest_free(), 8192);
}

#[test]
fn a_slice_handed_over_is_the_users_alone() {
    let mut fixture = Fixture::new(4096, 4);
    let mut pool = fixture.pool();
    let slice = pool.allocate(64, true).unwrap();
    pool.hand_over(slice.id).unwrap();
    assert_eq!((pool.accounted_size(), pool.published(0)), (0, Some(slice)));
    assert_eq!(pool.hand_over(slice.id), Err(PoolError::Stale));
    assert_eq!(pool.release(slice.id), Err(PoolError::Stale));
    pool.free(0).unwrap();
    assert_eq!((pool.get(slice.id), pool.largest_free()), (None, 4096));
}

#[test]
fn slices_stay_ordered_by_size_as_they_shrink_and_grow() {
    let mut fixture = Fixture::new(1024, 16);
    let mut pool = fixture.pool();
    let hole = pool.allocate(128, false).unwrap();
    pool.allocate(8, false).unwrap();
    let other = pool.allocate(64, false).unwrap();
    pool.allocate(8, false).unwrap();
    pool.release(hole.id).unwrap();
    pool.release(other.id).unwrap();
    // 32 bytes are left of the larger one, which is the smaller one then, and all 128 of it again.
    let front = pool.allocate(96, false).unwrap();
    assert_eq!(front.offset, hole.offset);
    let rest = pool.allocate(32, false).unwrap();
    assert_eq!(rest.offset, hole.offset + 96);
    pool.release(rest.id).unwrap();
    pool.release(front.id).unwrap();
    assert_eq!(pool.allocate(48, false).unwrap().offset, other.offset);
}
