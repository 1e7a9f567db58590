//! Property test of the reader of a lane: whatever stands in the shared words, and whatever becomes of them between any two
//! looks, it stays inside, ends, and either has a message that is what it seems or refuses the lane for good.

use std::cell::RefCell;

use kdbus_core::abi::{
    AttachFlags, ItemType, ItemWriter, Items, Msg, MsgFlags, Timestamp, Vec as PayloadVec,
};
use kdbus_core::channel::terms::{HeldTerms, PAGE_WORDS, Terms, VERDICT_AT};
use kdbus_core::channel::{LaneGate, LaneHead, LaneLayout, LaneReader, Place, Verdict, Words, settle};
use proptest::collection::vec;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

const RING: u32 = 64;
const SENDER: u64 = 3;
const RECEIVER: u64 = 7;
/// Accesses in which each look has to end: every word of the ring twice, and a few beside it.
const ENOUGH: usize = 2 * RING as usize + 32;

/// A word that somebody else writes after so many more loads.
#[derive(Clone, Copy, Debug)]
struct Change {
    after: usize,
    at: usize,
    value: u64,
}

#[derive(Debug)]
struct Memory {
    words: Vec<u64>,
    changes: Vec<Change>,
    accesses: usize,
}

/// Shared words that change while they are read. An access outside is a mistake of the reader.
#[derive(Debug)]
struct Hostile(RefCell<Memory>);

impl Hostile {
    fn new(count: usize) -> Self {
        Self(RefCell::new(Memory { words: vec![0; count], changes: vec![], accesses: 0 }))
    }

    /// Accesses since the last time that this was asked.
    fn accesses(&self) -> usize {
        std::mem::take(&mut self.0.borrow_mut().accesses)
    }

    fn change(&self, changes: &[Change]) {
        self.0.borrow_mut().changes.extend(changes.iter().rev());
    }

    fn access<R>(&self, index: usize, act: impl FnOnce(&mut u64) -> R) -> R {
        let mut memory = self.0.borrow_mut();
        memory.accesses += 1;
        assert!(memory.accesses <= 20 * ENOUGH, "this does not end");
        while let Some(change) = memory.changes.last_mut() {
            if change.after > 0 {
                change.after -= 1;
                break;
            }
            let Change { at, value, .. } = *change;
            memory.changes.pop();
            let at = at % memory.words.len();
            memory.words[at] = value;
        }
        assert!(index < memory.words.len(), "word {index} of {}", memory.words.len());
        act(&mut memory.words[index])
    }
}

impl Words for Hostile {
    fn count(&self) -> usize {
        self.0.borrow().words.len()
    }

    fn load(&self, index: usize) -> u64 {
        self.access(index, |word| *word)
    }

    fn store(&self, index: usize, value: u64) {
        self.access(index, |word| *word = value);
    }

    fn swap(&self, index: usize, value: u64) -> u64 {
        self.access(index, |word| std::mem::replace(word, value))
    }

    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.access(index, |word| std::mem::replace(word, *word | bits))
    }

    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.access(index, |word| {
            let same = *word == expected;
            if same {
                *word = new;
            }
            same
        })
    }
}

#[derive(Clone, Debug)]
enum Op {
    /// The sender writes words, now and while the reader looks.
    Scribble(Vec<Change>),
    /// The sender writes what may be a message where the next one is looked for, and says that it is sent.
    Send {
        head: [u64; 4],
        header: Box<Msg>,
        change: Option<(usize, u64)>,
    },
    /// The sender says how far it has sent.
    Tail(u64),
    /// The bus closes the lane, or opens it.
    Close,
    Open,
    Peek,
    Receive,
    /// The receiver copies to places that are too small, or too large.
    ReceiveInto(usize, usize),
    /// It looks for one call ahead, from anywhere on.
    FindAhead {
        from: u64,
        call: u64,
    },
    EachCallAhead(u64),
    GiveBack(u64),
    AskBell,
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..100_u64,
        // Bytes of what is nearly as long as the ring, and longer.
        2 => 300..2000_u64,
        2 => (any::<u64>(), 0..64_u32).prop_map(|(value, by)| value >> by),
        1 => Just(u64::MAX),
    ]
}

/// What names a call: few, so that they are found.
fn call() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 0..3_u64, 1 => value()]
}

fn change() -> impl Strategy<Value = Change> {
    // The control word and the words of the ring; the ring begins behind 16 others.
    let at = prop_oneof![1 => Just(0_usize), 4 => 16..16 + RING as usize];
    let control = (0..80_u64).prop_map(|tail| Verdict { epoch: 1, closed: false, tail }.word());
    let value = prop_oneof![3 => value(), 1 => control];
    (0..12_usize, at, value).prop_map(|(after, at, value)| Change { after, at, value })
}

fn message() -> impl Strategy<Value = Op> {
    let first = prop_oneof![3 => Just(Msg::SIZE as u64 + 32), 2 => Just(Msg::SIZE as u64), 1 => value()];
    let second = prop_oneof![3 => Just(8_u64), 1 => value()];
    let head =
        (first, second, value(), call()).prop_map(|(first, second, key, call)| [first, second, key, call]);
    let flags = prop_oneof![3 => Just(0), 2 => Just(MsgFlags::EXPECT_REPLY.bits()), 1 => value()];
    let header = (flags, value(), value()).prop_map(|(flags, cookie, timeout_or_reply)| Msg {
        size: Msg::SIZE as u64 + 32,
        dst_id: RECEIVER,
        payload_type: 1,
        flags,
        cookie,
        timeout_or_reply,
        ..Msg::default()
    });
    // Some of the lengths, or of the rest.
    let at = prop_oneof![0..2_usize, 0..24_usize];
    let change = proptest::option::weighted(0.3, (at, value()));
    (head, header, change).prop_map(|(head, header, change)| Op::Send {
        head,
        header: Box::new(header),
        change,
    })
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => vec(change(), 1..12).prop_map(Op::Scribble),
        8 => message(),
        2 => value().prop_map(Op::Tail),
        1 => Just(Op::Close),
        2 => Just(Op::Open),
        3 => Just(Op::Peek),
        8 => Just(Op::Receive),
        1 => (0..24_usize, 0..24_usize).prop_map(|(first, second)| Op::ReceiveInto(first, second)),
        3 => (value(), call()).prop_map(|(from, call)| Op::FindAhead { from, call }),
        3 => value().prop_map(Op::EachCallAhead),
        2 => value().prop_map(Op::GiveBack),
        1 => Just(Op::AskBell),
    ]
}

type Reader<'a> = LaneReader<&'a Hostile, &'a Hostile, &'a Hostile>;

/// Puts words that may be a message at `tail`, and returns where it would end.
fn put(lane: &Hostile, tail: u64, head: [u64; 4], header: &Msg, change: Option<(usize, u64)>) -> u64 {
    let mut items = [0; Msg::SIZE + 32];
    let mut writer = ItemWriter::behind(&mut items, Msg::SIZE).unwrap();
    writer.bytes(ItemType::PAYLOAD_VEC, PayloadVec { size: 8, address: 64 }.as_bytes()).unwrap();
    items[..Msg::SIZE].copy_from_slice(header.as_bytes());
    let mut words = head.to_vec();
    words.extend(items.chunks_exact(8).map(|chunk| u64::from_ne_bytes(chunk.try_into().unwrap())));
    words.push(u64::from_ne_bytes(*b"question"));
    if let Some((at, value)) = change {
        let at = at % words.len();
        words[at] = value;
    }
    for (at, word) in (0..).zip(&words) {
        lane.store(16 + ((tail + at) % u64::from(RING)) as usize, *word);
    }
    // What was changed does not fit to what is said to be sent.
    tail + LaneHead { first: head[0], second: head[1], key: 0, call: 0 }.words().unwrap_or(1)
}

/// Receives the next message as a client does, and checks what comes of it.
fn receive(reader: &mut Reader<'_>, held: &mut HeldTerms, page: &Hostile) -> Result<(), TestCaseError> {
    let Ok(Some(head)) = reader.peek() else { return Ok(()) };
    prop_assert_eq!(reader.peek(), Ok(Some(head)), "what was looked at stays as it was");
    let words = head.words().expect("it fits into a ring");
    prop_assert!(words <= u64::from(RING));
    held.refresh(&page);
    let Some(place) = Place::of(&head, held) else {
        reader.reject();
        return Ok(());
    };
    let mut slice = vec![0_u64; (place.size() / 8) as usize];
    let (first, second) = place.parts(&mut slice).expect("the slice is as long as it says");
    prop_assert_eq!(reader.copy_out(first, second), Some(words));
    reader.give_back(words);
    match settle(slice.as_mut_bytes(), &place, held, RECEIVER, Timestamp::default()) {
        Err(_) => reader.reject(),
        Ok(settled) => {
            let bytes = slice.as_bytes();
            let header = Msg::read_from_prefix(bytes).unwrap().0;
            let (src_id, cookie) = (header.src_id, header.cookie);
            prop_assert_eq!((src_id, cookie), (SENDER, settled.cookie));
            prop_assert!(header.size <= bytes.len() as u64);
            prop_assert!(Items::new(&bytes[Msg::SIZE..header.size as usize]).all(|item| item.is_ok()));
        }
    }
    Ok(())
}

/// Looks ahead for what `call` names, and copies and reads each message that is found.
fn find_ahead(reader: &Reader<'_>, back: &Hostile, mut from: u64, call: u64) -> Result<(), TestCaseError> {
    // A look begins where the one before has ended, and a message has four words at least.
    for _ in 0..=RING / 4 {
        let Some((at, head)) = reader.find_ahead(from, call) else { return Ok(()) };
        prop_assert!(at >= from && head.call == call);
        let words = head.words().expect("it fits into a ring");
        prop_assert!(at + words <= back.load(0) + u64::from(RING), "it lies in the ring");
        let _ = reader.is_reply_ahead(at, &head, call);
        let parts = [head.first, head.second].map(|bytes| vec![0; bytes.div_ceil(8) as usize]);
        let [mut first, mut second] = parts;
        prop_assert!(reader.copy_ahead(at, &head, &mut first, &mut second).is_some());
        from = at + words;
    }
    prop_assert!(false, "there are not so many messages");
    Ok(())
}

fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let layout = LaneLayout::new(RING).unwrap();
    let lane = Hostile::new(layout.lane_words());
    let (back, page) = (Hostile::new(LaneLayout::BACK_WORDS), Hostile::new(PAGE_WORDS));
    let attach = AttachFlags::TIMESTAMP | AttachFlags::CREDS;
    let mut metadata = [0; 32];
    ItemWriter::new(&mut metadata).bytes(ItemType::CREDS, &[9; 16]).unwrap();
    let terms = Terms { sender: SENDER, attach, name: b"a.b", metadata: &metadata };
    prop_assert!(terms.write(&&page, 1));
    let mut gate = LaneGate::new(&lane, &page, VERDICT_AT);
    gate.open();
    let mut reader = LaneReader::new(&lane, &back, &page, VERDICT_AT, layout).unwrap();
    let mut held = HeldTerms::new();
    let mut refused = false;
    for op in ops {
        let _ = lane.accesses();
        match op {
            Op::Scribble(changes) => lane.change(&changes),
            Op::Send { head, header, change } => {
                let tail = Verdict::from_word(lane.load(0)).tail;
                let end = put(&lane, tail, head, &header, change);
                lane.store(0, Verdict { tail: end, ..gate.verdict() }.word());
            }
            Op::Tail(tail) => lane.store(0, Verdict { tail, ..gate.verdict() }.word()),
            Op::Close => gate.close(),
            Op::Open => {
                gate.open();
            }
            Op::Peek => {
                refused |= reader.peek().is_err();
                prop_assert!(lane.accesses() <= 6);
            }
            Op::Receive => receive(&mut reader, &mut held, &page)?,
            Op::ReceiveInto(first, second) => {
                let _ = reader.peek();
                let (mut first, mut second) = (vec![0; first], vec![0; second]);
                if let Some(words) = reader.copy_out(&mut first, &mut second) {
                    reader.give_back(words);
                }
            }
            Op::FindAhead { from, call } => {
                let first = reader.find_ahead(from, call);
                prop_assert!(lane.accesses() <= ENOUGH);
                if first.is_some() {
                    find_ahead(&reader, &back, from, call)?;
                    let _ = lane.accesses();
                }
            }
            Op::EachCallAhead(from) => {
                let mut calls = 0;
                let next = reader.each_call_ahead(from, |_, _| calls += 1);
                prop_assert!(next >= from && calls <= RING as usize / 4);
            }
            Op::GiveBack(words) => reader.give_back(words),
            Op::AskBell => reader.ask_bell(),
        }
        prop_assert!(lane.accesses() <= ENOUGH);
        refused |= reader.is_rejected();
        prop_assert!(
            !refused || reader.peek().is_err() && reader.is_rejected(),
            "a lane is refused for good"
        );
        let _ = reader.is_drained();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_stands_in_a_lane_its_reader_stays_inside_and_ends(ops in vec(op(), 1..60)) {
        run(ops)?;
    }
}
