extern crate std;

use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;
use std::{thread, vec};

use super::entry::{Answer, Entry, Return};
use super::*;
use crate::abi::MsgInfo;

/// Both parts of a queue in plain memory.
struct Memory {
    layout: InboxLayout,
    posted: Vec<AtomicU64>,
    shared: Vec<AtomicU64>,
}

type Writer<'a> = InboxWriter<&'a [AtomicU64], &'a [AtomicU64]>;
type Reader<'a> = InboxReader<&'a [AtomicU64], &'a [AtomicU64]>;

impl Memory {
    fn new(depth: u32) -> Self {
        let layout = InboxLayout::new(depth).unwrap();
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self { layout, posted: words(layout.posted_words()), shared: words(layout.shared_words()) }
    }

    fn writer(&self) -> Writer<'_> {
        Writer::new(&self.posted[..], &self.shared[..], self.layout).unwrap()
    }

    fn reader(&self) -> Reader<'_> {
        Reader::attach(&self.posted[..], &self.shared[..]).unwrap()
    }
}

fn entry(slot: u32, key: u64) -> Entry {
    Entry { slot, key, priority: -7, offset: 8 * key, size: 64 + key, with_files: key & 1 != 0 }
}

fn fresh(reader: &Reader<'_>) -> Vec<Entry> {
    let mut all = vec![];
    reader.fresh(|entry| {
        all.push(entry);
        true
    });
    all
}

/// Numbers without any pattern that matters, the same in each run.
fn scramble(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn entries_come_out_as_they_were_shown() {
    let memory = Memory::new(100);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    let _ = writer.publish(&entry(99, 3));
    let _ = writer.publish(&entry(0, 4));
    assert_eq!(fresh(&reader), [entry(0, 4), entry(99, 3)]);
    assert_eq!(fresh(&reader), []);
}

#[test]
fn an_entry_is_either_taken_or_retracted() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    let _ = writer.publish(&entry(1, 3));
    assert!(reader.take(1, 3));
    assert!(!writer.retract(&entry(1, 3)));
    let _ = writer.publish(&entry(1, 5));
    assert!(writer.retract(&entry(1, 5)));
    assert!(!reader.take(1, 5));
    assert_eq!(fresh(&reader), []);
}

#[test]
fn a_slot_that_was_used_again_is_not_taken_under_its_old_key() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    let _ = writer.publish(&entry(2, 3));
    assert_eq!(fresh(&reader), [entry(2, 3)]);
    assert!(writer.retract(&entry(2, 3)));
    let _ = writer.publish(&entry(2, 6));
    assert!(!reader.take(2, 3));
    assert!(reader.take(2, 6));
}

#[test]
fn a_refused_entry_is_handed_out_again() {
    let memory = Memory::new(70);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    let _ = writer.publish(&entry(65, 3));
    let _ = writer.publish(&entry(66, 4));
    reader.fresh(|entry| entry.key == 3);
    assert!(reader.has_fresh());
    assert_eq!(fresh(&reader), [entry(66, 4)]);
    assert!(!reader.has_fresh());
}

#[test]
fn an_entry_alone_comes_out_at_once_and_several_in_their_order() {
    let memory = Memory::new(70);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    assert_eq!(reader.take_only_fresh(), None);
    let _ = writer.publish(&entry(69, 4));
    assert_eq!(reader.take_only_fresh(), Some(entry(69, 4)));
    assert_eq!((reader.take_only_fresh(), reader.has_fresh()), (None, false));
    let _ = writer.publish(&entry(2, 6));
    let _ = writer.publish(&entry(1, 8));
    assert_eq!(reader.take_only_fresh(), None, "two");
    assert_eq!(fresh(&reader), [entry(1, 8), entry(2, 6)]);
    let _ = writer.publish(&entry(3, 9));
    assert_eq!(reader.take_only_fresh(), None, "with descriptors");
    assert_eq!(fresh(&reader), [entry(3, 9)]);
    let _ = writer.publish(&entry(4, 10));
    assert!(writer.retract(&entry(4, 10)));
    assert_eq!(reader.take_only_fresh(), None, "taken back");
    let _ = writer.publish(&entry(5, 12));
    assert_eq!(reader.take_only_fresh(), None, "the bit of the former is still there");
    assert_eq!(fresh(&reader), [entry(5, 12)]);
    reader.fresh(|_| false);
    let _ = writer.publish(&entry(6, 14));
    reader.fresh(|_| false);
    let _ = writer.publish(&entry(7, 16));
    assert_eq!(reader.take_only_fresh(), None, "an older one was left");
    assert_eq!(fresh(&reader), [entry(6, 14), entry(7, 16)]);
}

/// Words of a reader that the bus gets ahead of before each of its steps.
struct Interrupted<'a> {
    words: &'a [AtomicU64],
    bus: &'a dyn Fn(),
}

impl Words for Interrupted<'_> {
    fn count(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        (self.bus)();
        Words::load(self.words, index)
    }

    fn store(&self, index: usize, value: u64) {
        (self.bus)();
        Words::store(self.words, index, value);
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        (self.bus)();
        Words::swap(self.words, index, value)
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        (self.bus)();
        Words::set_bits(self.words, index, bits)
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        (self.bus)();
        Words::replace(self.words, index, expected, new)
    }
}

#[test]
fn an_entry_alone_hides_none_that_takes_its_place() {
    let (first, other, second) = (entry(65, 4), entry(1, 6), entry(65, 8));
    for (step, between) in (0..40).flat_map(|step| [(step, false), (step, true)]) {
        let memory = Memory::new(70);
        let (writer, steps) = (RefCell::new(memory.writer()), Cell::new(i32::MIN));
        let bus = || {
            if steps.replace(steps.get() + 1) == step && writer.borrow_mut().retract(&first) {
                for entry in [Some(&other).filter(|_| between), Some(&second)].into_iter().flatten() {
                    let _ = writer.borrow_mut().publish(entry);
                }
            }
        };
        let words = |words| Interrupted { words, bus: &bus };
        let reader = InboxReader::attach(words(&memory.posted[..]), words(&memory.shared[..])).unwrap();
        let _ = writer.borrow_mut().publish(&first);
        steps.set(0);
        let alone = reader.take_only_fresh().filter(|entry| reader.take(entry.slot, entry.key));
        let mut received: Vec<u64> = alone.iter().map(|entry| entry.key).collect();
        let mut rest = vec![];
        reader.fresh(|entry| {
            rest.push(entry.key);
            true
        });
        rest.sort_unstable();
        received.append(&mut rest);
        let meant: &[u64] = match received.first() {
            Some(4) => &[4],
            _ if between => &[6, 8],
            _ => &[8],
        };
        assert_eq!(received, meant, "the bus came before step {step}");
    }
}

#[test]
fn slots_and_keys_outside_the_queue_do_nothing() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    assert!(!writer.publish(&entry(4, 3)));
    assert!(!writer.retract(&entry(u32::MAX, 3)));
    assert!(!reader.take(4, 3));
    assert!(!reader.take(0, u64::MAX));
    assert_eq!(fresh(&reader), []);
}

#[test]
fn the_bell_rings_once_for_each_arming() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    assert!(writer.publish(&entry(0, 1)), "armed from the start");
    assert!(!writer.publish(&entry(1, 2)));
    reader.arm();
    assert!(writer.lost(1));
    assert!(!writer.notice());
    reader.arm();
    assert!(writer.end());
    assert_eq!((reader.lost(), reader.notices(), reader.is_alive()), (1, 1, false));
}

#[test]
fn the_end_of_a_command_is_found_by_its_serial() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    assert_eq!(reader.answer(7), None);
    let reply = MsgInfo { offset: 8, msg_size: 64, return_flags: 1 };
    let answer = Answer::Whole { code: 25, calls: 3, reply };
    let _ = writer.answer(7, answer);
    assert_eq!((reader.answer(7), reader.answer(8)), (Some(answer), None));
    let _ = writer.answer(8, Answer::Elsewhere);
    assert_eq!((reader.answer(7), reader.answer(8)), (None, Some(Answer::Elsewhere)));
}

#[test]
fn messages_do_not_wake_a_client_that_waits_for_the_end_of_a_command() {
    let memory = Memory::new(4);
    let (mut writer, reader) = (memory.writer(), memory.reader());
    reader.arm_for_answer();
    assert!(!writer.publish(&entry(0, 1)) && !writer.lost(1) && !writer.notice());
    assert!(writer.answer(1, Answer::Elsewhere));
    assert!(!writer.answer(2, Answer::Elsewhere), "it rang");
    reader.arm_for_answer();
    assert!(writer.end(), "no answer follows");
    reader.arm_for_answer();
    reader.arm();
    assert!(writer.publish(&entry(1, 2)), "the wait for everything comes after the other one");
    reader.arm();
    assert!(writer.answer(3, Answer::Elsewhere), "whoever waits for everything waits for answers");
}

#[test]
fn returns_reach_the_bus_in_order() {
    let memory = Memory::new(2);
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    let all = [Return::Taken { slot: 1, key: 9 }, Return::Freed(72), Return::Freed(0)];
    for done in all {
        assert_eq!(reader.push_return(done), Ok(false));
    }
    for done in all {
        assert_eq!(writer.poll_return(), Some(done));
    }
    assert_eq!(writer.poll_return(), None);
}

#[test]
fn a_full_ring_refuses_until_it_is_read() {
    let memory = Memory::new(2);
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    let places = u64::from(memory.layout.returns());
    for offset in 0..places {
        assert_eq!(reader.push_return(Return::Freed(offset)), Ok(false));
    }
    assert_eq!(reader.push_return(Return::Freed(99)), Err(ReturnsFull));
    assert_eq!(writer.poll_return(), Some(Return::Freed(0)));
    assert_eq!(reader.push_return(Return::Freed(99)), Ok(false));
    let rest: Vec<_> = core::iter::from_fn(|| writer.poll_return()).collect();
    assert_eq!(rest.len() as u64, places - 1, "a series ends where the ring ended when it began");
    assert_eq!(writer.poll_return(), Some(Return::Freed(99)));
}

#[test]
fn watched_returns_are_reported() {
    let memory = Memory::new(2);
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    assert!(!writer.watch_returns(true));
    assert_eq!(reader.push_return(Return::Freed(8)), Ok(true));
    assert!(writer.watch_returns(true), "one that came before the request");
    assert!(!writer.watch_returns(false));
    assert_eq!(reader.push_return(Return::Freed(8)), Ok(false));
}

#[test]
fn another_layout_or_too_little_memory_is_refused() {
    let memory = Memory::new(8);
    let empty = memory.posted.as_slice();
    assert_eq!(Reader::attach(empty, &memory.shared[..]).err(), Some(AttachError::Version));
    memory.writer();
    assert_eq!(Reader::attach(&memory.posted[..], &memory.shared[1..]).err(), Some(AttachError::Size));
    for (at, value) in [(1, 0), (1, u64::MAX), (1, 9), (2, 8), (2, 1 << 32)] {
        let was = memory.posted[at].swap(value, Ordering::Relaxed);
        assert_eq!(Reader::attach(&memory.posted[..], &memory.shared[..]).err(), Some(AttachError::Size));
        memory.posted[at].store(was, Ordering::Relaxed);
    }
    memory.reader();
    assert_eq!(InboxLayout::new(0), Err(LayoutError));
    assert_eq!(InboxLayout::new(DEPTH_MAX + 1), Err(LayoutError));
    let short = Memory::new(4);
    assert!(Writer::new(&short.posted[..], &short.shared[..], memory.layout).is_err());
}

#[test]
fn a_ring_that_claims_more_than_it_holds_is_read_no_more() {
    let memory = Memory::new(2);
    let mut writer = memory.writer();
    memory.shared[8].store(u64::from(memory.layout.returns()) + 1, Ordering::Relaxed);
    assert_eq!(writer.poll_return(), None);
    assert!(writer.is_violated());
    memory.shared[8].store(1, Ordering::Relaxed);
    assert_eq!(writer.poll_return(), None);
}

#[test]
fn a_client_that_scribbles_neither_stops_nor_misleads_the_bus() {
    let memory = Memory::new(33);
    let mut seed = 0x1234_5678_9abc_def1;
    for _ in 0..200 {
        let mut writer = memory.writer();
        for round in 0..300 {
            let at = scramble(&mut seed) as usize % memory.shared.len();
            // Small numbers get further than others.
            let value = scramble(&mut seed) >> (scramble(&mut seed) % 64);
            memory.shared[at].store(value, Ordering::Relaxed);
            let entry = entry(scramble(&mut seed) as u32 % 40, round);
            let _ = writer.publish(&entry);
            let _ = writer.retract(&entry);
            let series = core::iter::from_fn(|| writer.poll_return()).take(1000).count();
            assert!(series <= memory.layout.returns() as usize);
        }
    }
}

#[test]
fn a_reader_of_scribbled_memory_stays_inside() {
    let memory = Memory::new(33);
    let mut seed = 0x9876_5432_1fed_cba1;
    for _ in 0..200 {
        memory.writer();
        let mut reader = memory.reader();
        for _ in 0..300 {
            let part = if scramble(&mut seed) & 1 == 0 { &memory.shared } else { &memory.posted };
            let at = scramble(&mut seed) as usize % part.len();
            part[at].store(scramble(&mut seed) >> (scramble(&mut seed) % 64), Ordering::Relaxed);
            reader.fresh(|entry| {
                assert!(entry.slot < 33);
                let _ = reader.take(entry.slot, entry.key);
                entry.key & 1 == 0
            });
            assert!(reader.take_only_fresh().is_none_or(|entry| entry.slot < 33));
            let _ = reader.push_return(Return::Freed(1));
        }
    }
}

/// A bus and a client in two threads: each entry is received or retracted exactly once, whole, and no
/// sleep outlasts a publication.
#[test]
fn two_threads_lose_and_tear_nothing() {
    const ENTRIES: u64 = 20_000;
    let memory = Memory::new(8);
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    let bell = AtomicU64::new(0);
    let (taken, retracted) = thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut taken = 0_u64;
            let mut last = 0;
            while reader.is_alive() || reader.has_fresh() {
                let mut all = vec![];
                match reader.take_only_fresh() {
                    Some(shown) => all.push(shown),
                    None => all = fresh(&reader),
                }
                if let [only] = all[..] {
                    assert!(only.key > last, "what comes alone is younger than all before");
                }
                last = all.iter().map(|shown| shown.key).fold(last, u64::max);
                for shown in all {
                    assert_eq!(shown, entry(shown.slot, shown.key));
                    if reader.take(shown.slot, shown.key) {
                        taken += 1;
                        while reader.push_return(Return::Taken { slot: shown.slot, key: shown.key }).is_err()
                        {
                            thread::yield_now();
                        }
                    }
                }
                reader.arm();
                while !reader.has_fresh() && reader.is_alive() && bell.swap(0, Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
            }
            taken
        });
        let mut keys = [0_u64; 8];
        let mut next = 1;
        let (mut taken, mut retracted) = (0_u64, 0_u64);
        while next <= ENTRIES || keys.iter().any(|key| *key != 0) {
            for slot in 0..8_u32 {
                let key = &mut keys[slot as usize];
                if *key == 0 && next <= ENTRIES {
                    *key = next;
                    next += 1;
                    if writer.publish(&entry(slot, *key)) {
                        bell.store(1, Ordering::Release);
                    }
                } else if *key % 3 == 0 && *key != 0 && writer.retract(&entry(slot, *key)) {
                    *key = 0;
                    retracted += 1;
                }
            }
            while let Some(done) = writer.poll_return() {
                let Return::Taken { slot, key } = done else { panic!("{done:?}") };
                assert_eq!(keys[slot as usize], key);
                keys[slot as usize] = 0;
                taken += 1;
            }
            thread::yield_now();
        }
        let _ = writer.end();
        assert_eq!(client.join().unwrap(), taken);
        (taken, retracted)
    });
    assert_eq!(taken + retracted, ENTRIES);
    assert!(taken > 0);
}
