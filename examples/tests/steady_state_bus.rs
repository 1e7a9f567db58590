//! The loops of the stages allocate nothing, the connection to the bus included.

use std::sync::atomic::AtomicBool;

use assert_no_alloc::{AllocDisabler, assert_no_alloc, violation_count};
use kdbus_core::Instant;
use kdbus_core::client::Connection;
use kdbus_examples::control::Schedule;
use kdbus_examples::controller::Controller;
use kdbus_examples::equalise::Equalise;
use kdbus_examples::equaliser::Equaliser;
use kdbus_examples::piece::Piece;
use kdbus_examples::sink::Sink;
use kdbus_examples::source::Source;
use kdbus_examples::stage::{Pace, Stage, leave, run_on};
use kdbus_examples::timeline::Timeline;
use kdbus_examples::wav::WavWriter;
use kdbus_linux::local::LocalTransport;
use kdbusd::Running;
use kdbusd::config::Config;

#[global_allocator]
static ALLOCATOR: AllocDisabler = AllocDisabler;

/// Allocations of the calling thread while `run` runs, which aborts nothing.
fn allocations(run: impl FnOnce()) -> u32 {
    assert_no_alloc(run);
    violation_count()
}

/// Plays a piece of 640 blocks with each stage in a thread of its own, and says how often each allocated.
fn play(path: &str, directory: &std::path::Path, is_fast: bool) -> [u32; 4] {
    let input = directory.join("in.wav");
    let mut piece = Piece::open(None).unwrap();
    let mut writer = WavWriter::create(&input, piece.format()).unwrap();
    let mut block = kdbus_examples::block::Block::new(0);
    for _ in 0..640 {
        piece.next_block(&mut block).unwrap();
        writer.write(&block).unwrap();
    }
    writer.finish().unwrap();
    let join = |stage: Stage| -> Connection<LocalTransport> {
        stage.join(LocalTransport::connect(path).unwrap()).unwrap()
    };
    // All names are there before the first message goes to one of them.
    let [source, equaliser, sink, controller] = Stage::ALL.map(join);
    let ids = (source.id(), controller.id(), equaliser.id());
    let piece = Piece::open(Some(&input)).unwrap();
    let writer = WavWriter::create(&directory.join("out.wav"), piece.format()).unwrap();
    let schedule = Schedule::demo(piece.blocks());
    let blocks = piece.blocks();
    let pace = match is_fast {
        true => Pace::Fast,
        false => {
            Pace::Realtime(Timeline::new(Instant::from_nanos(source.now().as_nanos() + 20_000_000), 100))
        }
    };
    std::thread::scope(|scope| {
        let threads = [
            scope.spawn(move || {
                let stop = AtomicBool::new(false);
                let mut stage = Source::new(&source, piece, pace, &stop);
                let count = allocations(|| {
                    run_on(&source, stage.run()).unwrap();
                });
                drop(stage);
                leave(source).unwrap();
                count
            }),
            scope.spawn(move || {
                let mut stage = Equalise::new(&equaliser, ids.0, ids.1, Equaliser::default());
                let count = allocations(|| run_on(&equaliser, stage.run(pace)).unwrap());
                drop(stage);
                leave(equaliser).unwrap();
                count
            }),
            scope.spawn(move || {
                let mut stage = Sink::new(&sink, ids.2, blocks, Some(writer));
                let mut reports = 0;
                let count = allocations(|| run_on(&sink, stage.run(pace, |_, _| reports += 1)).unwrap());
                assert!(reports > 1);
                stage.finish().unwrap();
                leave(sink).unwrap();
                count
            }),
            scope.spawn(move || {
                let mut stage = Controller::new(&controller, schedule, pace);
                let count = allocations(|| {
                    run_on(&controller, stage.run()).unwrap();
                });
                leave(controller).unwrap();
                count
            }),
        ];
        threads.map(|thread| thread.join().unwrap())
    })
}

#[test]
fn no_stage_allocates_between_its_first_and_its_last_block() {
    let directory = tempfile::tempdir().unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let config = Config::new(uid, directory.path().join("bus"));
    let name = format!("{uid}-{}", config.bus[0].name);
    let daemon = Running::start(&config).unwrap();
    let path = daemon.root().join(name).join("bus");
    for is_fast in [true, false] {
        let counts = play(path.to_str().unwrap(), directory.path(), is_fast);
        assert_eq!(counts, [0; 4], "source, equaliser, sink, controller; fast: {is_fast}");
    }
    // The counter counts.
    assert!(allocations(|| drop(std::hint::black_box(Box::new(1)))) > 0);
    daemon.stop().unwrap();
}
