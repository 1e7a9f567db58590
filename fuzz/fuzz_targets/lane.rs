//! The reader of a lane whose sender writes what it likes, and what becomes of the messages in it.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use kdbus_core::abi::{AttachFlags, ItemType, ItemWriter, Items, Msg, Timestamp};
use kdbus_core::channel::terms::{HeldTerms, PAGE_WORDS, Terms, VERDICT_AT};
use kdbus_core::channel::{LaneGate, LaneLayout, LaneReader, Place, Verdict, settle};
use libfuzzer_sys::fuzz_target;

const RING: u32 = 64;
const RECEIVER: u64 = 7;

#[derive(Arbitrary, Debug)]
enum Op {
    /// The sender writes a word somewhere.
    Scribble { at: u8, value: u64 },
    /// The sender writes bytes one after another, from a word on.
    Fill { at: u8, bytes: Vec<u8> },
    /// The sender says how far it has sent.
    Tail(u8),
    /// The receiver looks, and takes what is there.
    Receive,
    /// The bus closes the lane, or opens it again.
    Close,
    Open,
}

fuzz_target!(|ops: Vec<Op>| {
    let layout = LaneLayout::new(RING).unwrap();
    let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (lane, back, page) =
        (words(layout.lane_words()), words(LaneLayout::BACK_WORDS), words(PAGE_WORDS));
    let (lane, back, page) = (&lane[..], &back[..], &page[..]);
    let mut gate = LaneGate::new(lane, page, VERDICT_AT);
    let attach = AttachFlags::TIMESTAMP | AttachFlags::CREDS;
    let mut metadata = [0; 32];
    ItemWriter::new(&mut metadata).bytes(ItemType::CREDS, &[9; 16]).unwrap();
    let terms = Terms { sender: 3, attach, name: b"a.b", metadata: &metadata };
    assert!(terms.write(&page, 1));
    gate.open();
    let mut reader = LaneReader::new(lane, back, page, VERDICT_AT, layout).unwrap();
    let mut held = HeldTerms::new();
    for op in ops {
        match op {
            Op::Scribble { at, value } => lane[at as usize % lane.len()].store(value, Ordering::Relaxed),
            Op::Fill { at, bytes } => {
                for (place, chunk) in bytes.chunks(8).enumerate() {
                    let mut word = [0; 8];
                    word[..chunk.len()].copy_from_slice(chunk);
                    let at = (at as usize + place) % lane.len();
                    lane[at].store(u64::from_ne_bytes(word), Ordering::Relaxed);
                }
            }
            Op::Tail(tail) => {
                let verdict = Verdict { tail: u64::from(tail), ..gate.verdict() };
                lane[0].store(verdict.word(), Ordering::Relaxed);
            }
            Op::Close => gate.close(),
            Op::Open => {
                gate.open();
            }
            Op::Receive => receive(&mut reader, &mut held, &page),
        }
    }
});

type Part<'a> = &'a [AtomicU64];

fn receive(reader: &mut LaneReader<Part<'_>, Part<'_>, Part<'_>>, held: &mut HeldTerms, page: &Part<'_>) {
    let Ok(Some(head)) = reader.peek() else {
        let _ = reader.owes_room();
        return;
    };
    held.refresh(page);
    let Some(place) = Place::of(&head, held) else { return reader.reject() };
    let mut slice = vec![0_u64; (place.size() / 8) as usize];
    let (first, second) = place.parts(&mut slice).expect("the slice is as long as it says");
    let words = reader.copy_out(first, second).expect("and holds the message");
    reader.give_back(words);
    let mut bytes: Vec<u8> = slice.iter().flat_map(|word| word.to_ne_bytes()).collect();
    match settle(&mut bytes, &place, held, RECEIVER, Timestamp::default()) {
        Err(_) => reader.reject(),
        Ok(settled) => {
            // What is received is framed as anything from the bus, and says who sent it.
            let header: Msg = zerocopy::FromBytes::read_from_prefix(&bytes).unwrap().0;
            assert_eq!((header.src_id, header.priority, header.cookie), (3, settled.priority, settled.cookie));
            assert!(header.size <= bytes.len() as u64);
            assert!(Items::new(&bytes[Msg::SIZE..header.size as usize]).all(|item| item.is_ok()));
        }
    }
}
