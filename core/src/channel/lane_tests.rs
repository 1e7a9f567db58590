extern crate std;

use core::cell::{Cell, RefCell};
use core::sync::atomic::{AtomicU64, Ordering};
use std::vec::Vec;
use std::{thread, vec};

use zerocopy::IntoBytes;

use super::*;
use crate::abi::{Msg, MsgFlags};

/// The three parts of a lane in plain memory; the verdict stands at 2.
struct Memory {
    layout: LaneLayout,
    lane: Vec<AtomicU64>,
    back: Vec<AtomicU64>,
    verdicts: Vec<AtomicU64>,
}

const AT: usize = 2;
/// Where the ring of a lane begins.
const RING: usize = 16;

type Reader<'a> = LaneReader<&'a [AtomicU64], &'a [AtomicU64], &'a [AtomicU64]>;
type Writer<'a> = LaneWriter<&'a [AtomicU64], &'a [AtomicU64], &'a [AtomicU64]>;
type Gate<'a> = LaneGate<&'a [AtomicU64], &'a [AtomicU64]>;

impl Memory {
    fn new(ring: u32) -> Self {
        let layout = LaneLayout::new(ring).unwrap();
        let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect();
        Self {
            layout,
            lane: words(layout.lane_words()),
            back: words(LaneLayout::BACK_WORDS),
            verdicts: words(3),
        }
    }

    fn gate(&self) -> Gate<'_> {
        LaneGate::new(&self.lane[..], &self.verdicts[..], AT)
    }

    fn writer(&self) -> Writer<'_> {
        LaneWriter::new(&self.lane[..], &self.back[..], &self.verdicts[..], AT, self.layout).unwrap()
    }

    fn reader(&self) -> Reader<'_> {
        LaneReader::new(&self.lane[..], &self.back[..], &self.verdicts[..], AT, self.layout).unwrap()
    }
}

/// Message `number`: of a length, and with bytes, that follow from it.
fn message(number: u64) -> Vec<u8> {
    (0..number * 5 % 61).map(|at| (number * 7 + at) as u8).collect()
}

fn send<L: Words, B: Words, V: Words>(
    writer: &mut LaneWriter<L, B, V>,
    number: u64,
) -> Result<bool, NotByLane> {
    let bytes = message(number);
    let (first, second) = bytes.split_at(bytes.len() / 3);
    let head =
        LaneHead { first: first.len() as u64, second: second.len() as u64, key: number, call: !number };
    let mut reserved = writer.reserve(head)?;
    reserved.put(first);
    reserved.next_part();
    // In pieces that end anywhere.
    second.chunks(1 + number as usize % 11).for_each(|piece| reserved.put(piece));
    reserved.commit()
}

/// The number of the next message, which is whole.
fn receive<L: Words, B: Words, V: Words>(reader: &mut LaneReader<L, B, V>) -> Option<u64> {
    let head = reader.peek().unwrap()?;
    let (mut first, mut second) = ([0; 8], [0; 8]);
    let taken = reader.copy_out(&mut first, &mut second).unwrap();
    reader.give_back(taken);
    let bytes = |words: &[u64], len| -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).take(len as usize).collect()
    };
    let received = [bytes(&first, head.first), bytes(&second, head.second)].concat();
    assert_eq!((received, head.call), (message(head.key), !head.key));
    Some(head.key)
}

fn scramble(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn messages_come_out_whole_and_in_order() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    assert_eq!(send(&mut writer, 1), Err(NotByLane::Closed), "never opened");
    assert!(gate.open() && !gate.open());
    for number in 0..500 {
        assert_eq!(send(&mut writer, number), Ok(number == 0), "only the first one rings");
        assert_eq!(receive(&mut reader), Some(number));
    }
    assert_eq!(receive(&mut reader), None);
}

#[test]
fn room_comes_back_when_a_message_is_received_and_not_before() {
    let memory = Memory::new(16);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    let head = LaneHead { first: 32, ..LaneHead::default() };
    for _ in 0..2 {
        writer.reserve(head).unwrap().commit().unwrap();
    }
    assert_eq!(writer.reserve(LaneHead::default()).err(), Some(NotByLane::Full));
    reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [0; 4], &mut []).unwrap();
    assert_eq!(writer.reserve(LaneHead::default()).err(), Some(NotByLane::Full), "drained is not received");
    reader.give_back(words);
    assert!(writer.reserve(head).is_ok());
    for too_much in [97, u64::MAX] {
        let head = LaneHead { first: 8, second: too_much, ..LaneHead::default() };
        assert_eq!(writer.reserve(head).err(), Some(NotByLane::Full));
    }
}

/// A message that takes a quarter of a ring of 32 words.
const QUARTER: LaneHead = LaneHead { first: 32, second: 0, key: 0, call: 0 };

/// Sends as many of them as there is room for.
fn fill(writer: &mut Writer<'_>) {
    while let Ok(reserved) = writer.reserve(QUARTER) {
        let _ = reserved.commit().unwrap();
    }
}

/// Receives one, and gives its room back.
fn take(reader: &mut Reader<'_>) {
    reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [0; 4], &mut []).unwrap();
    reader.give_back(words);
}

#[test]
fn a_sender_that_asked_for_room_is_told_once_when_half_of_the_lane_is_free() {
    let memory = Memory::new(32);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    fill(&mut writer);
    assert!(reader.peek().unwrap().is_some() && !reader.owes_room(), "nobody has asked");
    writer.ask_room();
    assert!(!writer.look_for_room(8) && !reader.owes_room());
    take(&mut reader);
    assert!(!reader.owes_room(), "a quarter");
    assert!(writer.look_for_room(8) && !writer.look_for_room(9));
    take(&mut reader);
    assert!(reader.owes_room() && !reader.owes_room(), "once");
    assert!(writer.look_for_room(16));
    writer.ask_room();
    assert!(!reader.owes_room(), "it has no more than it was told of");
    take(&mut reader);
    assert!(reader.owes_room(), "once for each time that it asks");
}

#[test]
fn a_sender_that_waits_is_told_though_there_is_more_to_receive() {
    let memory = Memory::new(32);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    let take = |reader: &mut Reader<'_>| {
        take(reader);
        reader.owes_room_already()
    };
    // Wherever in the ring it begins.
    for round in 0..8 {
        for _ in 0..round % 4 {
            let _ = writer.reserve(QUARTER).unwrap().commit().unwrap();
            assert!(!take(&mut reader), "nobody has asked");
        }
        fill(&mut writer);
        writer.ask_room();
        assert_eq!([(); 4].map(|()| take(&mut reader)), [false, true, false, false], "round {round}");
        assert!(!reader.owes_room());
    }
}

#[test]
fn a_lane_that_was_given_up_stays_so_whatever_comes_back_later() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    send(&mut writer, 1).unwrap();
    reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [0; 8], &mut [0; 8]).unwrap();
    reader.reject();
    reader.give_back(words);
    assert!(gate.traffic(&&memory.back[..]).given_up && !gate.holds_messages(&&memory.back[..]));
}

#[test]
fn what_a_lane_holds_is_known_before_it_is_closed() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    assert!(!gate.holds_messages(&&memory.back[..]));
    send(&mut writer, 1).unwrap();
    assert!(gate.holds_messages(&&memory.back[..]));
    reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [0; 8], &mut [0; 8]).unwrap();
    assert!(gate.holds_messages(&&memory.back[..]));
    reader.give_back(words);
    assert!(!gate.holds_messages(&&memory.back[..]));
    gate.close();
    assert!(!gate.holds_messages(&&memory.back[..]));
}

#[test]
fn what_was_sent_before_a_close_is_delivered_and_nothing_after_it() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    send(&mut writer, 1).unwrap();
    let reserved = writer.reserve(LaneHead { key: 2, ..LaneHead::default() }).unwrap();
    gate.close();
    assert_eq!(reserved.commit(), Err(NotByLane::Closed), "a reserved message is nothing");
    assert_eq!(send(&mut writer, 3), Err(NotByLane::Closed));
    assert!(!reader.is_drained());
    assert_eq!((receive(&mut reader), receive(&mut reader)), (Some(1), None));
    assert!(reader.is_drained());
    assert!(gate.open());
    assert_eq!(gate.verdict().epoch, 2);
    send(&mut writer, 4).unwrap();
    assert!(!reader.is_drained());
    assert_eq!((receive(&mut reader), receive(&mut reader)), (Some(4), None));
}

#[test]
fn a_lane_is_opened_as_often_as_anybody_likes() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    let mut last = None;
    for round in 0..5000_u64 {
        assert!(gate.open() && !gate.open());
        assert_ne!(last.replace(gate.verdict().epoch), Some(gate.verdict().epoch));
        // Now and then it was idle for longer than epochs take to come again.
        if round < 10 || round > 2100 && round % 3 == 0 {
            send(&mut writer, round).unwrap();
            assert_eq!((receive(&mut reader), receive(&mut reader)), (Some(round), None));
        }
        let reserved = writer.reserve(LaneHead { key: round, ..LaneHead::default() }).unwrap();
        gate.close();
        assert_eq!(reserved.commit(), Err(NotByLane::Closed));
        assert!(reader.is_drained());
    }
}

#[test]
fn a_bell_is_rung_once_for_each_wish() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    assert_eq!((send(&mut writer, 1), send(&mut writer, 2)), (Ok(true), Ok(false)));
    reader.ask_bell();
    assert_eq!((send(&mut writer, 3), send(&mut writer, 4)), (Ok(true), Ok(false)));
}

#[test]
fn a_sender_that_reopens_its_lane_reaches_nobody() {
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    send(&mut writer, 1).unwrap();
    gate.close();
    let last = gate.verdict();
    memory.lane[0].store(Verdict { closed: false, tail: last.tail + 4, ..last }.word(), Ordering::Relaxed);
    assert_eq!((receive(&mut reader), receive(&mut reader)), (Some(1), None));
}

#[test]
fn a_receiver_that_reopens_a_lane_gets_nothing_that_counts_as_sent() {
    let memory = Memory::new(64);
    let (mut gate, mut writer) = (memory.gate(), memory.writer());
    gate.open();
    send(&mut writer, 1).unwrap();
    let open = memory.lane[0].load(Ordering::Relaxed);
    let reserved = writer.reserve(LaneHead::default()).unwrap();
    gate.close();
    memory.lane[0].store(open, Ordering::Relaxed);
    assert_eq!(reserved.commit(), Err(NotByLane::Closed));
}

#[test]
fn tails_and_lengths_that_cannot_be_end_the_lane() {
    for (tail, first, second) in
        [(17, 0, 0), (3, 0, 0), (4, 1, 0), (16, 97, 0), (16, u64::MAX, 2), (16, 0, u64::MAX)]
    {
        let memory = Memory::new(16);
        let (mut gate, mut reader) = (memory.gate(), memory.reader());
        gate.open();
        memory.lane[RING].store(first, Ordering::Relaxed);
        memory.lane[RING + 1].store(second, Ordering::Relaxed);
        memory.lane[0].store(Verdict { tail, ..gate.verdict() }.word(), Ordering::Relaxed);
        assert_eq!(reader.peek(), Err(Violation), "{tail} {first} {second}");
        memory.lane[0].store(gate.verdict().word(), Ordering::Relaxed);
        assert_eq!(reader.peek(), Err(Violation), "for good");
        gate.close();
        assert!(reader.is_drained());
    }
}

#[test]
fn a_message_keeps_the_lengths_that_it_was_looked_at_with() {
    let memory = Memory::new(16);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    gate.open();
    let mut reserved = writer.reserve(LaneHead { first: 8, ..LaneHead::default() }).unwrap();
    reserved.put(&[1; 8]);
    reserved.commit().unwrap();
    let head = reader.peek().unwrap();
    memory.lane[RING].store(64, Ordering::Relaxed);
    assert_eq!(reader.peek().unwrap(), head);
    let mut words = [0; 8];
    assert_eq!(reader.copy_out(&mut words, &mut []), Some(5));
    assert_eq!(words, [0x0101_0101_0101_0101, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn calls_ahead_are_looked_at_once_each_though_others_leave_the_lane_meanwhile() {
    let memory = Memory::new(256);
    memory.gate().open();
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    let mut send = |cookie: u64| {
        let flags = MsgFlags::EXPECT_REPLY.bits();
        let header = Msg { flags: flags * (cookie % 2), cookie, ..Msg::default() };
        let head = LaneHead { first: Msg::SIZE as u64, second: 0, key: cookie, call: 10 * cookie };
        let mut reserved = writer.reserve(head).unwrap();
        reserved.put(header.as_bytes());
        let _ = reserved.commit().unwrap();
    };
    let look = |reader: &Reader<'_>, from| {
        let mut calls = vec![];
        let next = reader.each_call_ahead(from, |call, cookie| calls.push((call, cookie)));
        (next, calls)
    };
    (1..=5).for_each(&mut send);
    let (seen, calls) = look(&reader, 0);
    assert_eq!(calls, [(10, 1), (30, 3), (50, 5)]);
    assert_eq!(look(&reader, seen), (seen, vec![]));
    (6..=7).for_each(&mut send);
    assert_eq!(receive_words(&mut reader), 1);
    let (more, calls) = look(&reader, seen);
    assert_eq!((more > seen, calls), (true, vec![(70, 7)]));
    (2..=7).for_each(|number| assert_eq!(receive_words(&mut reader), number));
    send(9);
    // Those that were not looked at in time have left the lane.
    assert_eq!(look(&reader, 0).1, [(90, 9)]);
}

/// The key of the next message, of any length.
fn receive_words(reader: &mut Reader<'_>) -> u64 {
    let head = reader.peek().unwrap().unwrap();
    let words = reader.copy_out(&mut [0; 64], &mut [0; 64]).unwrap();
    reader.give_back(words);
    head.key
}

#[test]
fn words_that_do_not_hold_a_lane_are_refused() {
    let memory = Memory::new(16);
    let (lane, back, verdicts) = (&memory.lane[..], &memory.back[..], &memory.verdicts[..]);
    assert!(LaneWriter::new(&lane[1..], back, verdicts, AT, memory.layout).is_none());
    assert!(LaneReader::new(lane, &back[1..], verdicts, AT, memory.layout).is_none());
    assert!(LaneReader::new(lane, back, verdicts, 3, memory.layout).is_none());
    for ring in [0, 8, 17, RING_MAX * 2] {
        assert_eq!(LaneLayout::new(ring), None);
    }
}

#[test]
fn a_sender_that_scribbles_neither_stops_the_receiver_nor_leads_it_outside() {
    let memory = Memory::new(32);
    let mut seed = 0x1234_5678_9abc_def1;
    for _ in 0..300 {
        let (mut gate, mut reader) = (memory.gate(), memory.reader());
        gate.open();
        for _ in 0..200 {
            // The control word and the first message are what matters most.
            let at = if scramble(&mut seed) & 1 == 0 {
                0
            } else {
                scramble(&mut seed) as usize % memory.lane.len()
            };
            let value = scramble(&mut seed) >> (scramble(&mut seed) % 64);
            let open = Verdict { tail: value & 0x3f, ..gate.verdict() }.word();
            memory.lane[at].store(if at == 0 && value & 3 != 0 { open } else { value }, Ordering::Relaxed);
            if let Ok(Some(head)) = reader.peek() {
                assert!(head.first + head.second <= 8 * 28);
                if let Some(words) = reader.copy_out(&mut [0; 28], &mut [0; 28]) {
                    reader.give_back(words);
                }
            }
            if value.is_multiple_of(17) {
                gate.close();
                gate.open();
            }
        }
    }
}

#[test]
fn a_receiver_that_scribbles_does_not_lead_the_sender_outside() {
    let memory = Memory::new(32);
    let (mut gate, mut writer) = (memory.gate(), memory.writer());
    gate.open();
    let mut seed = 0x9876_5432_1fed_cba1;
    for number in 0..20_000 {
        let value = scramble(&mut seed) >> (scramble(&mut seed) % 64);
        memory.back[scramble(&mut seed) as usize % 2 * 8].store(value, Ordering::Relaxed);
        let _ = send(&mut writer, number % 12);
        writer.ask_room();
        let _ = writer.look_for_room(number % 40);
    }
}

/// Words at which something happens before each access of their user: a peer stops there, or vanishes.
struct Hooked<'a, 'h> {
    words: &'a [AtomicU64],
    hook: &'a Hook<'h>,
}

struct Hook<'h> {
    before: RefCell<&'h mut dyn FnMut()>,
    /// Accesses that are left until the user is gone: nothing it writes from there on gets through.
    left: Cell<u32>,
}

impl Hook<'_> {
    fn alive(&self) -> bool {
        (self.before.borrow_mut())();
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        left != 0
    }
}

impl Words for Hooked<'_, '_> {
    fn count(&self) -> usize {
        self.words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.hook.alive();
        self.words.load(index)
    }

    fn store(&self, index: usize, value: u64) {
        if self.hook.alive() {
            Words::store(self.words, index, value);
        }
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        if self.hook.alive() { Words::swap(self.words, index, value) } else { 0 }
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        if self.hook.alive() { self.words.set_bits(index, bits) } else { 0 }
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.hook.alive() && self.words.replace(index, expected, new)
    }
}

#[test]
fn a_sender_that_asks_on_and_on_is_looked_at_a_few_times_in_each_round_of_the_ring() {
    const EACH: usize = 4;
    const ROUND: usize = 1024 / EACH;
    let accesses = Cell::new(0);
    // More than is left where there is room to tell of, as much, and next to nothing.
    for backlog in [ROUND / 2 + 1, ROUND / 2, 1] {
        let memory = Memory::new(1024);
        let mut count = || accesses.set(accesses.get() + 1);
        let hook = Hook { before: RefCell::new(&mut count), left: Cell::new(u32::MAX) };
        let [lane, back, verdicts] =
            [&memory.lane, &memory.back, &memory.verdicts].map(|words| Hooked { words, hook: &hook });
        let mut reader = LaneReader::new(lane, back, verdicts, AT, memory.layout).unwrap();
        let (mut gate, mut writer) = (memory.gate(), memory.writer());
        gate.open();
        let mut send = || {
            let _ = writer.reserve(LaneHead::default()).unwrap().commit().unwrap();
            writer.ask_room();
        };
        (0..backlog).for_each(|_| send());
        let (mut looks, mut told) = (0, 0);
        for _ in 0..ROUND {
            send();
            reader.peek().unwrap().unwrap();
            let words = reader.copy_out(&mut [], &mut []).unwrap();
            reader.give_back(words);
            let before = accesses.get();
            told += u32::from(reader.owes_room_already());
            looks += u32::from(accesses.get() != before);
        }
        assert!(looks <= 16 && told <= 4, "of {backlog}: {looks} looks, told {told} times");
    }
}

/// Lets a sender send up to ten messages over `hook`. Returns how many of them it has sent, and whether it
/// was gone before it knew of more.
fn send_until_gone(memory: &Memory, hook: &Hook<'_>) -> (u64, bool) {
    let mut writer = LaneWriter::new(
        Hooked { words: &memory.lane, hook },
        Hooked { words: &memory.back, hook },
        Hooked { words: &memory.verdicts, hook },
        AT,
        memory.layout,
    )
    .unwrap();
    for number in 1..=10 {
        let sent = send(&mut writer, number);
        if hook.left.get() == 0 {
            return (number - 1, true);
        }
        if sent.is_err() {
            return (number - 1, false);
        }
    }
    (10, false)
}

#[test]
fn a_sender_that_dies_at_any_access_leaves_what_it_has_sent_and_nothing_else() {
    let mut deaths = 0;
    for left in 1.. {
        let memory = Memory::new(128);
        let (mut gate, mut reader) = (memory.gate(), memory.reader());
        gate.open();
        let mut nothing = || {};
        let hook = Hook { before: RefCell::new(&mut nothing), left: Cell::new(left) };
        let (sent, died) = send_until_gone(&memory, &hook);
        gate.close();
        let received: Vec<u64> = core::iter::from_fn(|| receive(&mut reader)).collect();
        // The message at which it died was sent or not, but never in part.
        let count = received.len() as u64;
        assert!(count == sent || died && count == sent + 1, "{left}: {sent} sent, {received:?}");
        assert!(received.into_iter().eq(1..=count));
        assert!(reader.is_drained());
        if !died {
            break;
        }
        deaths += 1;
    }
    assert!(deaths > 100, "there are that many accesses");
}

#[test]
fn a_close_at_any_access_of_a_sender_delivers_exactly_what_it_has_sent() {
    let mut closed_early = 0;
    for close_at in 0.. {
        let memory = Memory::new(128);
        let (mut gate, mut reader) = (memory.gate(), memory.reader());
        gate.open();
        let mut accesses = 0;
        let mut close = || {
            if accesses == close_at {
                gate.close();
            }
            accesses += 1;
        };
        let hook = Hook { before: RefCell::new(&mut close), left: Cell::new(u32::MAX) };
        let (sent, _) = send_until_gone(&memory, &hook);
        gate.close();
        let received: Vec<u64> = core::iter::from_fn(|| receive(&mut reader)).collect();
        assert_eq!(received, (1..=sent).collect::<Vec<_>>(), "closed at access {close_at}");
        if sent == 10 {
            break;
        }
        closed_early += 1;
    }
    assert!(closed_early > 100, "there are that many accesses");
}

#[test]
fn a_receiver_that_looks_at_any_access_of_a_sender_sees_whole_messages_only() {
    let memory = Memory::new(128);
    let (mut gate, mut reader) = (memory.gate(), memory.reader());
    gate.open();
    let mut received = vec![];
    let mut look = || received.extend(core::iter::from_fn(|| receive(&mut reader)));
    let hook = Hook { before: RefCell::new(&mut look), left: Cell::new(u32::MAX) };
    assert_eq!(send_until_gone(&memory, &hook), (10, false));
    assert_eq!(received, (1..=10).collect::<Vec<_>>());
}

/// A sender, a receiver and a bus in three threads.
#[test]
#[cfg_attr(
    miri,
    ignore = "threads that wait for each other take hours there; tests/loom.rs has their interleavings"
)]
fn three_threads_lose_tear_and_reorder_nothing() {
    const MESSAGES: u64 = 20_000;
    let memory = Memory::new(64);
    let (mut gate, mut writer, mut reader) = (memory.gate(), memory.writer(), memory.reader());
    let done = AtomicU64::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while done.load(Ordering::Acquire) == 0 {
                gate.open();
                thread::yield_now();
                gate.close();
            }
            gate.open();
        });
        scope.spawn(|| {
            for number in 0..MESSAGES {
                while send(&mut writer, number).is_err() {
                    thread::yield_now();
                }
            }
        });
        for number in 0..MESSAGES {
            let key = loop {
                match receive(&mut reader) {
                    Some(key) => break key,
                    None => thread::yield_now(),
                }
            };
            assert_eq!(key, number);
        }
        done.store(1, Ordering::Release);
    });
}

#[test]
fn once_it_is_seen_that_its_receiver_gave_a_lane_up_nothing_more_is_sent() {
    let memory = Memory::new(RING_MIN);
    let mut gate = memory.gate();
    gate.open();
    let (mut writer, mut reader) = (memory.writer(), memory.reader());
    reader.reject();
    let small = LaneHead { first: 8, ..LaneHead::default() };
    let _ = writer.reserve(small).unwrap().commit().unwrap();
    // It finds no room, so it looks at what was received; the small one would find some.
    let large = LaneHead { first: 80, ..small };
    assert_eq!(writer.reserve(large).err(), Some(NotByLane::Closed));
    assert_eq!(writer.reserve(small).err(), Some(NotByLane::Closed));
}
