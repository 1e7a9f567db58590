//! All interleavings of what two peers and the bus do to a lane, and a client and the bus to its queue, by the loom model
//! checker.
//!
//! Built only with `RUSTFLAGS="--cfg loom"`; `.ci/run` has the command.
#![cfg(loom)]

use std::sync::Arc;

use kdbus_core::abi::MsgInfo;
use kdbus_core::channel::{
    Answer, CallState, CallWord, Entry, InboxLayout, InboxReader, InboxWriter, LaneGate, LaneHead,
    LaneLayout, LaneReader, LaneWriter, Words,
};
use loom::sync::atomic::{AtomicU64, Ordering, fence};
use loom::thread;

/// Words of the model.
#[derive(Clone)]
struct Model(Arc<Vec<AtomicU64>>);

impl Model {
    fn new(count: usize) -> Self {
        Self(Arc::new((0..count).map(|_| AtomicU64::new(0)).collect()))
    }
}

impl Words for Model {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.0[index].load(Ordering::Acquire)
    }

    fn store(&self, index: usize, value: u64) {
        self.0[index].store(value, Ordering::Release);
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        self.0[index].swap(value, Ordering::AcqRel)
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.0[index].fetch_or(bits, Ordering::AcqRel)
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.0[index].compare_exchange(expected, new, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

struct Lane {
    layout: LaneLayout,
    lane: Model,
    back: Model,
    verdicts: Model,
}

type Gate = LaneGate<Model, Model>;
type Writer = LaneWriter<Model, Model, Model>;
type Reader = LaneReader<Model, Model, Model>;

impl Lane {
    fn new() -> Self {
        let layout = LaneLayout::new(16).unwrap();
        Self {
            layout,
            lane: Model::new(layout.lane_words()),
            back: Model::new(LaneLayout::BACK_WORDS),
            verdicts: Model::new(1),
        }
    }

    fn gate(&self) -> Gate {
        LaneGate::new(self.lane.clone(), self.verdicts.clone(), 0)
    }

    fn writer(&self) -> Writer {
        LaneWriter::new(self.lane.clone(), self.back.clone(), self.verdicts.clone(), 0, self.layout).unwrap()
    }

    fn reader(&self) -> Reader {
        LaneReader::new(self.lane.clone(), self.back.clone(), self.verdicts.clone(), 0, self.layout).unwrap()
    }
}

fn send(writer: &mut Writer, key: u64) -> Option<bool> {
    let mut reserved = writer.reserve(LaneHead { first: 8, key, ..LaneHead::default() }).ok()?;
    reserved.put(&key.to_ne_bytes());
    reserved.commit().ok()
}

fn receive(reader: &mut Reader) -> Option<u64> {
    let key = reader.peek().unwrap()?.key;
    let mut word = [0];
    let taken = reader.copy_out(&mut word, &mut []).unwrap();
    reader.give_back(taken);
    assert_eq!(word, [key]);
    Some(key)
}

#[test]
fn a_message_is_sent_before_a_close_or_not_at_all() {
    loom::model(|| {
        let lane = Lane::new();
        let mut gate = lane.gate();
        let mut reader = lane.reader();
        gate.open();
        let mut writer = lane.writer();
        let sender = thread::spawn(move || send(&mut writer, 7).is_some());
        gate.close();
        let after_close = receive(&mut reader);
        let sent = sender.join().unwrap();
        assert_eq!(after_close.is_some(), sent, "what was sent is final when the close returns");
        assert_eq!(receive(&mut reader), None);
    });
}

#[test]
fn a_receiver_never_reads_beyond_a_close_that_it_has_seen() {
    loom::model(|| {
        let lane = Lane::new();
        let mut gate = lane.gate();
        gate.open();
        let mut reader = lane.reader();
        let receiver = thread::spawn(move || {
            let early = receive(&mut reader).is_some();
            (early, receive(&mut reader).is_some())
        });
        let sent = send(&mut lane.writer(), 7).is_some();
        gate.close();
        let (early, late) = receiver.join().unwrap();
        assert!(sent && !(early && late));
        gate.open();
        assert_eq!(gate.verdict().tail, 5);
    });
}

#[test]
fn a_receiver_that_sleeps_is_rung() {
    loom::model(|| {
        let lane = Lane::new();
        let (mut gate, mut reader, mut writer) = (lane.gate(), lane.reader(), lane.writer());
        gate.open();
        assert_eq!(send(&mut writer, 1), Some(true));
        assert_eq!(receive(&mut reader), Some(1));
        // The lane is hot now.
        let receiver = thread::spawn(move || {
            // Cold, then one more look.
            reader.ask_bell();
            receive(&mut reader).is_some()
        });
        let rung = send(&mut writer, 2).unwrap();
        let seen = receiver.join().unwrap();
        assert!(seen || rung, "it sleeps, and nobody rings");
    });
}

#[test]
fn a_call_ends_once() {
    loom::model(|| {
        let words = Model::new(1);
        CallWord::new(&words, 0).begin(9);
        let ends: Vec<_> = [CallState::Answered, CallState::Relayed]
            .into_iter()
            .map(|how| {
                let words = words.clone();
                thread::spawn(move || CallWord::new(&words, 0).end(9, how))
            })
            .collect();
        let call = CallWord::new(&words, 0);
        let expired = call.end(9, CallState::Expired);
        let ended = ends.into_iter().map(|end| end.join().unwrap());
        assert_eq!(ended.filter(|ended| *ended).count() + usize::from(expired), 1);
        assert_ne!(call.state(9), Some(CallState::Pending));
    });
}

/// The pipe of a bell: what was written before it is seen by whoever finds it rung.
fn ring(bell: &Model) {
    // One operation like the other: a system call on a pipe.
    bell.swap(0, 1);
}

fn take_ring(bell: &Model) -> bool {
    bell.swap(0, 0) == 1
}

#[test]
fn a_sender_that_sleeps_until_there_is_room_is_woken() {
    loom::model(|| {
        let lane = Lane::new();
        let (mut gate, mut reader, mut writer) = (lane.gate(), lane.reader(), lane.writer());
        let bell = Model::new(1);
        gate.open();
        for key in 1..=3 {
            send(&mut writer, key).unwrap();
        }
        assert_eq!(send(&mut writer, 4), None, "it is full");
        let pipe = bell.clone();
        let sender = thread::spawn(move || {
            ring(&pipe);
            writer.ask_room();
            writer.look_for_room(5)
        });
        for key in 1..=3 {
            assert_eq!(receive(&mut reader), Some(key));
            if reader.owes_room_already() {
                take_ring(&bell);
            }
        }
        let tell = |reader: &mut Reader| {
            if receive(reader).is_none() && reader.owes_room() {
                take_ring(&bell);
            }
        };
        tell(&mut reader);
        reader.ask_bell();
        tell(&mut reader);
        // It sleeps as long as the pipe is full.
        assert!(sender.join().unwrap() || !take_ring(&bell), "both sleep");
    });
}

#[test]
fn a_lane_that_went_cold_is_looked_at_once_it_rings() {
    loom::model(|| {
        let lane = Lane::new();
        let (mut gate, mut reader, mut writer) = (lane.gate(), lane.reader(), lane.writer());
        let bell = Model::new(1);
        gate.open();
        assert_eq!(send(&mut writer, 1), Some(true));
        assert_eq!(receive(&mut reader), Some(1));
        let rung = bell.clone();
        let receiver = thread::spawn(move || {
            // It stays awake: a message that it finds after it has asked leaves the lane hot.
            reader.ask_bell();
            let mut seen = u64::from(receive(&mut reader).is_some());
            // The lane is cold if that was none: from here on only a ring makes it look.
            if seen == 0 && take_ring(&rung) {
                seen += u64::from(receive(&mut reader).is_some());
                assert_eq!(seen, 1, "nobody rings for nothing");
            }
            (reader, seen)
        });
        if send(&mut writer, 2).unwrap() {
            ring(&bell);
        }
        let (mut reader, seen) = receiver.join().unwrap();
        // What was sent by now is found at the next look, if not before.
        let late = if seen == 0 && take_ring(&bell) { receive(&mut reader) } else { None };
        assert_eq!(seen + u64::from(late.is_some()), 1);
    });
}

#[test]
fn what_came_before_by_a_cold_lane_is_seen_before_what_comes_after_by_a_hot_one() {
    loom::model(|| {
        let (cold, hot) = (Lane::new(), Lane::new());
        let bell = Model::new(1);
        let (mut first_gate, mut second_gate) = (cold.gate(), hot.gate());
        first_gate.open();
        second_gate.open();
        let (mut cold_reader, mut hot_reader) = (cold.reader(), hot.reader());
        let (mut first, mut second) = (cold.writer(), hot.writer());
        let rung = bell.clone();
        let senders = thread::spawn(move || {
            // The second message is sent by somebody who knows that the first one was.
            if send(&mut first, 1).unwrap() {
                ring(&rung);
            }
            send(&mut second, 2).unwrap();
        });
        // A look at the hot lane that finds the second message stands for a cut after both: the rings are taken after it.
        let after = hot_reader.peek().unwrap().is_some();
        let before = take_ring(&bell) && receive(&mut cold_reader) == Some(1);
        assert!(!after || before);
        senders.join().unwrap();
    });
}

type Inbox = (InboxWriter<Model, Model>, InboxReader<Model, Model>);

fn inbox() -> Inbox {
    let layout = InboxLayout::new(1).unwrap();
    let [posted, shared] = [layout.posted_words(), layout.shared_words()].map(Model::new);
    let writer = InboxWriter::new(posted.clone(), shared.clone(), layout).unwrap();
    (writer, InboxReader::attach(posted, shared).unwrap())
}

fn entry(key: u64) -> Entry {
    Entry { slot: 0, key, priority: 0, offset: 8 * key, size: 64, with_files: false }
}

fn some_of_all(interleavings: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(interleavings);
}

#[test]
fn a_client_that_sleeps_until_a_command_has_ended_is_rung_and_then_for_what_came_meanwhile() {
    some_of_all(|| {
        let (mut writer, reader) = inbox();
        let bell = Model::new(1);
        let rung = bell.clone();
        let client = thread::spawn(move || {
            take_ring(&rung);
            reader.arm_for_answer();
            let told = reader.answer(7);
            if told.is_none() {
                return (told, false);
            }
            take_ring(&rung);
            reader.arm();
            (told, reader.has_fresh())
        });
        let answer =
            Answer::Whole { code: 5, calls: 6, reply: MsgInfo { offset: 8, msg_size: 64, return_flags: 1 } };
        if writer.answer(7, answer) {
            ring(&bell);
        }
        if writer.publish(&entry(1)) {
            ring(&bell);
        }
        let (told, fresh) = client.join().unwrap();
        assert!(told.is_none_or(|told| told == answer), "torn");
        assert!(told.is_some() && fresh || take_ring(&bell), "it sleeps, and nobody rings");
    });
}

#[test]
fn each_entry_is_received_or_taken_back() {
    some_of_all(|| {
        let (mut writer, reader) = inbox();
        let client = thread::spawn(move || {
            let alone = reader.take_only_fresh();
            let taken = alone.filter(|shown| reader.take(shown.slot, shown.key));
            (reader, taken)
        });
        let _ = writer.publish(&entry(1));
        let retracted = writer.retract(&entry(1));
        if retracted {
            let _ = writer.publish(&entry(2));
        }
        let (reader, taken) = client.join().unwrap();
        assert!(taken.is_none_or(|shown| shown == entry(shown.key)), "torn");
        let mut rest = Vec::new();
        reader.fresh(|shown| {
            rest.push(shown.key);
            true
        });
        rest.extend(taken.map(|shown| shown.key));
        assert_eq!(rest, [1 + u64::from(retracted)]);
    });
}
