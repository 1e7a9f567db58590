//! The queue that kdbusd and a client share, each against another side that writes what it likes.
#![no_main]

use std::sync::atomic::{AtomicU64, Ordering};

use kdbus_core::channel::{Entry, InboxLayout, InboxReader, InboxWriter, Return};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// One step of one side, or of whoever has the memory mapped.
#[derive(Arbitrary, Debug)]
enum Op {
    Publish {
        slot: u32,
        key: u64,
        priority: i64,
        offset: u64,
        size: u64,
        with_files: bool,
    },
    Retract {
        nth: u8,
    },
    PollReturns,
    Watch(bool),
    Lost(u64),
    Fresh {
        limit: u8,
    },
    Take {
        slot: u32,
        key: u64,
    },
    Free(u64),
    Arm,
    /// A hostile client writes into the part that both may write.
    Scribble {
        at: u16,
        value: u64,
    },
    /// Not even kdbusd's own part can make a client misbehave.
    Forge {
        at: u16,
        value: u64,
    },
}

fuzz_target!(|data: (u16, Vec<Op>)| {
    let (depth, ops) = data;
    let Ok(layout) = InboxLayout::new(u32::from(depth % 200)) else { return };
    let words = |count| (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
    let (posted, shared) = (words(layout.posted_words()), words(layout.shared_words()));
    let Ok(mut writer) = InboxWriter::new(&posted[..], &shared[..], layout) else { return };
    let mut reader = InboxReader::attach(&posted[..], &shared[..]).expect("nobody has touched it");
    let (mut shown, mut honest) = (Vec::<Entry>::new(), true);
    for op in ops {
        match op {
            Op::Publish { slot, key, priority, offset, size, with_files } => {
                let entry =
                    Entry { slot: slot % (layout.depth() + 2), key, priority, offset, size, with_files };
                if shown.iter().all(|other| other.slot != entry.slot) {
                    let _ = writer.publish(&entry);
                    shown.push(entry);
                }
            }
            Op::Retract { nth } => {
                if !shown.is_empty() {
                    let entry = shown.swap_remove(usize::from(nth) % shown.len());
                    let _ = writer.retract(&entry);
                }
            }
            Op::PollReturns => {
                let mut count = 0;
                while let Some(done) = writer.poll_return() {
                    count += 1;
                    assert!(count <= layout.returns(), "a series ends");
                    if let Return::Taken { slot, key } = done {
                        shown.retain(|entry| (entry.slot, entry.key) != (slot, key));
                    }
                }
                assert!(!honest || !writer.is_violated());
            }
            Op::Watch(watch) => {
                let _ = writer.watch_returns(watch);
            }
            Op::Lost(total) => {
                let _ = writer.lost(total);
                assert!(!honest || reader.lost() == total);
            }
            Op::Fresh { limit } => {
                let mut seen = 0;
                reader.fresh(|entry| {
                    assert!(entry.slot < layout.depth(), "entries lie in the queue");
                    seen += 1;
                    seen < u32::from(limit)
                });
                assert!(seen <= layout.depth().max(1));
            }
            Op::Take { slot, key } => {
                if reader.take(slot, key) {
                    let _ = reader.push_return(Return::Taken { slot, key });
                }
            }
            Op::Free(offset) => {
                let _ = reader.push_return(Return::Freed(offset));
            }
            Op::Arm => {
                reader.arm();
                let _ = (reader.has_fresh(), reader.notices(), reader.is_alive(), reader.has_return_room());
            }
            Op::Scribble { at, value } => {
                honest = false;
                shared[usize::from(at) % shared.len()].store(value, Ordering::Relaxed);
            }
            Op::Forge { at, value } => {
                honest = false;
                posted[usize::from(at) % posted.len()].store(value, Ordering::Relaxed);
            }
        }
    }
    // A client that comes late has the same view of it, whatever is there.
    if let Ok(late) = InboxReader::attach(&posted[..], &shared[..]) {
        late.fresh(|entry| {
            assert!(entry.slot < late.layout().depth());
            true
        });
    }
});
