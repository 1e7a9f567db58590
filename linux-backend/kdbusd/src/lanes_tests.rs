//! Who is given a lane, and what opens and closes it.

use kdbus_core::channel::terms::PAGE_WORDS;
use kdbus_core::channel::{LaneHead, LaneReader, LaneWriter};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_get_seals};

use super::*;

const A: HandleId = HandleId { index: 1, generation: 0 };
const B: HandleId = HandleId { index: 2, generation: 0 };
const C: HandleId = HandleId { index: 3, generation: 0 };

const TERMS: Terms<'static> = Terms { sender: 1, attach: AttachFlags::empty(), name: b"", metadata: b"" };

fn table() -> LaneTable {
    LaneTable::new(3, 4, 2, 3, LaneLayout::new(512))
}

fn grant(from: HandleId, to: HandleId) -> LaneGrant {
    LaneGrant { from, from_id: 1, to, to_id: 2, bus: 7, attach: AttachFlags::empty() }
}

fn is_open(table: &LaneTable, number: u32) -> bool {
    table.lanes[number as usize].as_ref().unwrap().gate.verdict().is_open()
}

#[test]
fn who_has_not_mapped_its_lane_has_broken_no_rule() {
    let mut table = table();
    let (number, _received) = table.bring(A, 0).unwrap();
    assert!(table.mapped(number, A));
    table.give(grant(B, A), &TERMS, true).unwrap();
    assert!(table.drop_one(number, A) && !table.is_banned(B, A));
    let (number, _received) = table.bring(A, 0).unwrap();
    assert!(table.mapped(number, A));
    table.give(grant(B, A), &TERMS, true).unwrap();
    assert!(table.mapped(number, B) && table.drop_one(number, A) && table.is_banned(B, A));
}

#[test]
fn a_lane_opens_once_both_ends_have_mapped_it_and_nobody_else_can_write() {
    let mut table = table();
    let (number, received) = table.bring(A, 0).unwrap();
    assert_eq!(table.give(grant(B, A), &TERMS, true), Err(NoLane::Full), "its receiver is not ready");
    assert!(!table.mapped(number, B) && !table.mapped(9, A));
    assert!(table.mapped(number, A));
    table.give(grant(B, A), &TERMS, true).unwrap();
    assert!(!is_open(&table, number));
    let sent = table.given_files.take().unwrap();
    assert!(table.mapped(number, B) && is_open(&table, number));
    let closed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL;
    for file in received[..4].iter().chain(&sent[..4]) {
        assert!(fcntl_get_seals(file).unwrap().contains(closed));
        assert!(WordMap::writable(file, 1).is_err());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fallocate(file, punch, 0, 4096).is_err(), "no holes either");
    }
}

#[test]
fn a_lane_serves_one_sender_only() {
    let mut table = table();
    for _ in 0..2 {
        let (number, _received) = table.bring(A, 0).unwrap();
        assert!(table.mapped(number, A));
    }
    assert_eq!(table.bring(A, 0).err(), Some(io::Errno::NOBUFS), "as many as one may have");
    assert_eq!(table.give(grant(B, A), &TERMS, false), Err(NoLane::NoPlace), "it has none and takes none");
    table.give(grant(B, A), &TERMS, true).unwrap();
    let first = table.given;
    for takes in [true, false] {
        table.give(grant(B, A), &TERMS, takes).unwrap();
        assert_eq!((table.given, table.given_files.is_some()), (first, false), "it has one");
    }
    table.close(Lanes::Of(B), |_| {});
    table.give(grant(C, A), &TERMS, true).unwrap();
    assert_ne!(table.given, first);
    let late = HandleId { generation: 1, ..B };
    assert_eq!(table.give(grant(late, A), &TERMS, true), Err(NoLane::Full));
    table.remove(A);
    assert!(table.lanes.iter().all(Option::is_none));
}

#[test]
fn what_closes_a_lane_between_its_grant_and_its_mapping_keeps_it_closed() {
    for which in [Lanes::Into(A), Lanes::Of(B), Lanes::Bus(7)] {
        let mut table = table();
        let (number, _received) = table.bring(A, 0).unwrap();
        assert!(table.mapped(number, A));
        table.give(grant(B, A), &TERMS, true).unwrap();
        table.close(which, |_| panic!("it was not open"));
        assert!(table.mapped(number, B) && !is_open(&table, number), "{which:?}");
        table.give(grant(B, A), &TERMS, true).unwrap();
        assert!(is_open(&table, number));
        for other in [Lanes::Into(B), Lanes::Of(C), Lanes::Bus(8)] {
            table.close(other, |_| panic!("another one is meant"));
        }
        let mut woken = vec![];
        table.close(which, |receiver| woken.push(receiver));
        assert_eq!((woken, is_open(&table, number)), (vec![A], false));
    }
}

#[test]
fn a_lane_that_holds_messages_stays_as_it_is_until_they_are_received() {
    const OTHERS: Terms<'static> = Terms { attach: AttachFlags::TIMESTAMP, ..TERMS };
    let layout = LaneLayout::new(512).unwrap();
    let words = |file: &OwnedFd, count| WordMap::writable(file, count).unwrap();
    let mut table = table();
    let (number, received) = table.bring(A, 0).unwrap();
    let back = words(&received[1], LaneLayout::BACK_WORDS);
    assert!(table.mapped(number, A));
    table.give(grant(B, A), &TERMS, true).unwrap();
    let sent = table.given_files.take().unwrap();
    let lane = words(&sent[0], layout.lane_words());
    assert!(table.mapped(number, B));
    let page = WordMap::read_only(&sent[2], PAGE_WORDS).unwrap();
    let mut writer = LaneWriter::new(&lane, &back, &page, VERDICT_AT, layout).unwrap();
    let mut reader = LaneReader::new(&lane, &back, &page, VERDICT_AT, layout).unwrap();
    let verdict = |table: &LaneTable| table.lanes[number as usize].as_ref().unwrap().gate.verdict();

    let _ = writer.reserve(LaneHead::default()).unwrap().commit().unwrap();
    let before = verdict(&table);
    assert_eq!(table.give(grant(B, A), &OTHERS, true), Err(NoLane::Terms));
    assert_eq!(verdict(&table), before, "it was not even closed");

    reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [], &mut []).unwrap();
    reader.give_back(words);
    table.give(grant(B, A), &OTHERS, true).unwrap();
    assert!(is_open(&table, number) && verdict(&table) != before);
    assert!(writer.reserve(LaneHead::default()).unwrap().commit().is_ok());
}

#[test]
fn a_receiver_that_seals_its_lane_otherwise_gets_nothing_from_it() {
    let mut table = table();
    let (number, received) = table.bring(A, 0).unwrap();
    fs::fcntl_add_seals(&received[3], SealFlags::SEAL).unwrap();
    assert!(table.mapped(number, A));
    table.give(grant(B, A), &TERMS, true).unwrap();
    assert!(table.mapped(number, B) && !is_open(&table, number));
    let _ = table.give(grant(B, A), &TERMS, true);
    assert!(!is_open(&table, number));
}

#[test]
fn without_a_budget_there_are_no_lanes() {
    let mut table = LaneTable::new(0, 4, 8, 8, LaneLayout::new(512));
    assert_eq!(table.bring(A, 0).err(), Some(io::Errno::OPNOTSUPP));
    assert_eq!(table.give(grant(B, A), &TERMS, true), Err(NoLane::Off));
}
