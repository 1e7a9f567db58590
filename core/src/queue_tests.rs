//! Tests of the priority queue.

extern crate std;
use super::*;
use std::vec::Vec;

fn items(queue: &PriorityQueue<'_, u32>) -> Vec<u32> {
    queue.iter().map(|entry| *entry.item).collect()
}

fn drained(queue: &mut PriorityQueue<'_, u32>) -> Vec<u32> {
    core::iter::from_fn(|| queue.pop()).collect()
}

#[test]
fn lowest_value_leaves_first() {
    let mut storage = StaticQueue::<i64, 16>::new();
    let mut queue = storage.view();
    for priority in [25, -600, 10, -35, -100, 20, -15, -800, -150, 11, -801, -10] {
        queue.push(priority, priority).unwrap();
    }
    assert_eq!(queue.pop_at_most(-200), Some(-801));
    assert_eq!(queue.pop_at_most(-100), Some(-800));
    assert_eq!(queue.pop_at_most(-400), Some(-600));
    assert_eq!(queue.pop_at_most(-400), None);
    assert_eq!(queue.pop_at_most(10), Some(-150));
    assert_eq!(queue.pop_at_most(10), Some(-100));
    assert_eq!(queue.pop_front(), Some(25));
    assert_eq!(queue.pop_front(), Some(10));
}

#[test]
fn equal_priorities_leave_in_arrival_order() {
    let mut storage = StaticQueue::<u32, 64>::new();
    let mut queue = storage.view();
    for item in 0..60 {
        queue.push(i64::from(item % 12), item).unwrap();
    }
    let mut expected: Vec<u32> = (0..60).collect();
    expected.sort_by_key(|item| item % 12);
    assert_eq!(drained(&mut queue), expected);
}

#[test]
fn a_priority_that_got_a_lane_late_keeps_its_order() {
    let mut storage = StaticQueue::<u32, 32>::new();
    let mut queue = storage.view();
    for item in 0..8 {
        queue.push(i64::from(item), item).unwrap();
    }
    // All lanes are taken, so these are ordered otherwise; then a lane falls free.
    queue.push(100, 8).unwrap();
    queue.push(-5, 9).unwrap();
    assert_eq!(queue.pop(), Some(9));
    assert_eq!(queue.pop(), Some(0));
    queue.push(100, 10).unwrap();
    queue.push(-5, 11).unwrap();
    assert_eq!(items(&queue), [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]);
    assert_eq!(drained(&mut queue), [11, 1, 2, 3, 4, 5, 6, 7, 8, 10]);
}

#[test]
fn arrival_order_ignores_priorities() {
    let mut storage = StaticQueue::<u32, 40>::new();
    let mut queue = storage.view();
    for item in 0..40 {
        queue.push(i64::from(item * 7919 % 23) - 11, item).unwrap();
    }
    assert_eq!(items(&queue), (0..40).collect::<Vec<_>>());
    for item in 0..40 {
        assert_eq!(queue.peek_front().map(|entry| *entry.item), Some(item));
        assert_eq!(queue.pop_front(), Some(item));
    }
    assert!(queue.is_empty());
}

#[test]
fn a_full_queue_hands_the_item_back() {
    let mut storage = StaticQueue::<u32, 2>::new();
    let mut queue = storage.view();
    queue.push(0, 1).unwrap();
    queue.push(i64::MAX, 2).unwrap();
    assert!(queue.is_full());
    assert_eq!(queue.push(-1, 3), Err(Full(3)));
    assert_eq!(queue.push(0, 3), Err(Full(3)));
    assert_eq!(drained(&mut queue), [1, 2]);
    assert_eq!(StaticQueue::<u32, 0>::new().view().push(0, 1), Err(Full(1)));
}

#[test]
fn a_handle_of_an_entry_that_left_is_of_no_effect() {
    let mut storage = StaticQueue::<u32, 4>::new();
    let mut queue = storage.view();
    let first = queue.push(3, 1).unwrap();
    assert_eq!(queue.priority(first), Some(3));
    assert_eq!(queue.remove(first), Some(1));
    let second = queue.push(4, 2).unwrap();
    assert_eq!(queue.remove(first), None);
    assert_eq!(queue.get(first), None);
    *queue.get_mut(second).unwrap() += 1;
    assert_eq!(queue.get(second), Some(&3));
    assert_eq!(queue.handle_at(second.index()), Some(second));
    assert_eq!(queue.handle_at(second.index() + 1), None);
    assert_eq!(queue.pop(), Some(3));
    assert_eq!(queue.remove(second), None);
}

#[test]
fn any_entry_can_be_removed() {
    // With few priorities all stand in lanes, with many most are in the index.
    for distinct in [1, 3, 8, 9, 50] {
        for removed in 0..50_u32 {
            let mut storage = StaticQueue::<u32, 50>::new();
            let mut queue = storage.view();
            let handles: Vec<Handle> =
                (0..50).map(|item| queue.push(i64::from(item * 31 % distinct), item).unwrap()).collect();
            assert_eq!(queue.remove(handles[removed as usize]), Some(removed));
            let mut expected: Vec<u32> = (0..50).filter(|&item| item != removed).collect();
            assert_eq!(items(&queue), expected);
            expected.sort_by_key(|item| item * 31 % distinct);
            assert_eq!(drained(&mut queue), expected);
            assert_eq!(queue.len(), 0);
        }
    }
}

#[test]
fn drains_end_at_their_priority() {
    let mut storage = StaticQueue::<u32, 8>::new();
    let mut queue = storage.view();
    for (item, priority) in [4, i64::MIN, 2, 4, 9].into_iter().enumerate() {
        queue.push(priority, item as u32).unwrap();
    }
    assert_eq!(queue.drain_more_urgent_than(i64::MIN).count(), 0);
    assert_eq!(queue.drain_more_urgent_than(4).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(queue.drain_up_to(4).next(), Some(0));
    assert_eq!(queue.drain_up_to(4).collect::<Vec<_>>(), [3]);
    assert_eq!(items(&queue), [4]);
}

#[test]
fn a_new_head_forgets_what_its_nodes_held() {
    let mut nodes = [const { Node::new() }; 12];
    let mut head = Head::new();
    let mut handles = Vec::new();
    for item in 0..12_u32 {
        let mut queue = PriorityQueue::new(&mut head, &mut nodes);
        handles.push(queue.push(i64::from(item), item).unwrap());
    }
    let mut head = Head::new();
    let mut queue = PriorityQueue::new(&mut head, &mut nodes);
    assert_eq!(queue.remove(handles[3]), None);
    for item in 20..32_u32 {
        queue.push(i64::from(50 - item), item).unwrap();
    }
    assert!(handles.iter().all(|&handle| queue.get(handle).is_none()));
    assert_eq!(drained(&mut queue), (20..32).rev().collect::<Vec<_>>());
}

#[test]
fn nodes_of_another_queue_end_in_nothing_worse_than_a_wrong_answer() {
    let mut head = Head::new();
    let mut nodes = [const { Node::new() }; 12];
    for item in 0..12_u32 {
        PriorityQueue::new(&mut head, &mut nodes).push(i64::from(item), item).unwrap();
    }
    for mut nodes in [Vec::new(), Vec::from([Node::new()]), (0..12).map(|_| Node::new()).collect()] {
        let mut queue = PriorityQueue::new(&mut head, &mut nodes);
        let _ = queue.peek().is_some();
        let _ = queue.peek_front().is_some();
        assert!(queue.iter().count() <= 12);
        for _ in 0..4 {
            let _ = queue.push(40, 1);
            let _ = queue.pop();
            let _ = queue.pop_front();
        }
    }
}
