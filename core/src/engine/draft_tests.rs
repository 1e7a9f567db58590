//! Messages around the size up to which they are put together before they are written.

extern crate std;
use std::vec::Vec;

use super::super::testbed::*;
use super::*;
use crate::abi::NameFlags;
use zerocopy::FromBytes;

/// What a receiver finds of a message: of each item its kind and payload, of each run of payload its bytes.
fn look(received: &Received) -> (Vec<ItemType>, Vec<Vec<u8>>) {
    let mut runs = Vec::new();
    for (kind, payload) in received.items() {
        match kind {
            ItemType::PAYLOAD_OFF => {
                let vec = crate::abi::Vec::read_from_bytes(&payload).unwrap();
                let (at, size) = (vec.address as usize, vec.size as usize);
                let zeros = vec.address == OFFSET_ZEROS;
                runs.push(if zeros { std::vec![0; size] } else { received.slice[at..at + size].to_vec() });
            }
            ItemType::DST_NAME => runs.push(payload.clone()),
            _ => {}
        }
    }
    (received.kinds(), runs)
}

#[test]
fn messages_of_any_length_are_received_alike() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    let mut longest = 0;
    for rest in 1..=8 {
        let name = std::format!("org.{}", "n".repeat(rest));
        bed.acquire(b, &name, NameFlags::empty()).unwrap();
        for runs in 0..24 {
            let mut sent = to_name(&name, 7);
            let mut expected = std::vec![c_str(&name)];
            for run in 0..runs {
                if run % 3 == 2 {
                    let zeros = crate::abi::Vec { size: 13, address: 0 };
                    sent = sent.item(ItemType::PAYLOAD_VEC, zeros.as_bytes());
                    expected.push(std::vec![0; 13]);
                } else {
                    let bytes = std::vec![run as u8 + 1; run + rest];
                    sent = sent.vec(&bytes);
                    expected.push(bytes);
                }
            }
            bed.send(a, &sent).unwrap();
            let received = bed.recv(b).unwrap();
            let (kinds, found) = look(&received);
            let mut all = std::vec![ItemType::DST_NAME];
            all.extend((0..runs).map(|_| ItemType::PAYLOAD_OFF));
            all.push(ItemType::TIMESTAMP);
            assert_eq!((kinds, found), (all, expected), "{name} with {runs} runs");
            // Header, name, runs and time.
            let size =
                Msg::SIZE as u64 + align8((ITEM_HEADER + name.len() + 1) as u64) + 32 * runs as u64 + 40;
            assert_eq!(received.header.size, size);
            longest = longest.max(size);
        }
        bed.release(b, &name).unwrap();
    }
    assert!(longest > DRAFT_MAX as u64 + 256, "both ways were taken");
}

#[test]
fn what_stood_in_a_pool_before_is_in_no_message() {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    let pool = bed.host.pools.get_mut(&b.handle).unwrap();
    pool.fill(0xff);
    let zeros = crate::abi::Vec { size: 13, address: 0 };
    let sent = message(b.id, 1).vec(b"abc").item(ItemType::PAYLOAD_VEC, zeros.as_bytes());
    bed.send(a, &sent).unwrap();
    let received = bed.recv(b).unwrap();
    let size = align8(received.header.size) as usize;
    assert_eq!(received.slice[size..], *b"abc\0\0\0\0\0");
    assert!(received.slice[..size].iter().filter(|byte| **byte == 0xff).count() < 32, "ids and flags aside");
}
