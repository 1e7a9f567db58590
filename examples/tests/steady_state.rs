//! A stage that has started allocates nothing per block.

use std::time::Duration;

use assert_no_alloc::{AllocDisabler, assert_no_alloc, violation_count};
use kdbus_examples::block::Block;
use kdbus_examples::control::{Control, ControlQueue, Schedule};
use kdbus_examples::equaliser::Equaliser;
use kdbus_examples::hop::HopRecorder;
use kdbus_examples::piece::Piece;
use kdbus_examples::wav::{Depth, Format, WavWriter};

#[global_allocator]
static ALLOCATOR: AllocDisabler = AllocDisabler;

#[test]
fn blocks_pass_all_stages_without_an_allocation() {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (directory.path().join("in.wav"), directory.path().join("out.wav"));
    let format = Format { depth: Depth::Pcm24, channels: 2 };
    let mut piece = Piece::open(None).unwrap();
    let mut writer = WavWriter::create(&input, format).unwrap();
    let mut block = Block::new(0);
    assert_no_alloc(|| {
        while piece.next_block(&mut block).unwrap() {
            writer.write(&block).unwrap();
        }
    });
    writer.finish().unwrap();

    let mut piece = Piece::open(Some(&input)).unwrap();
    let mut schedule = Schedule::demo(piece.blocks());
    let mut queue = ControlQueue::new(64);
    let mut equaliser = Equaliser::default();
    let mut hop = HopRecorder::new("hop", Duration::from_nanos(1));
    let mut writer = WavWriter::create(&output, format).unwrap();
    assert_no_alloc(|| {
        while piece.next_block(&mut block).unwrap() {
            while let Some(control) = schedule.next_through(block.index() + 100) {
                queue.push(Control::parse(&control.to_bytes()).unwrap()).unwrap();
                hop.control_arrived(control.block);
            }
            hop.record(block.index());
            hop.block_arrived(block.index());
            equaliser.run(&mut block, &mut queue);
            writer.write(&block).unwrap();
        }
    });
    assert_eq!(writer.finish().unwrap(), piece.frames());
    assert!(queue.is_empty() && hop.controls() > 80);
    assert_eq!(violation_count(), 0);
}
