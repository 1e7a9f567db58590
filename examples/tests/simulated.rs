//! The pipeline on simulated machines.

use std::process::Command;
use std::time::Duration;

use kdbus_examples::simulated::{Load, Setup, Simulated, simulate};
use kdbus_sim::{Board, Fault, FaultKind, Policy};

fn setup(seed: u64, board: &str) -> Setup {
    Setup::new(seed, Duration::from_secs(1), Board::preset(board).unwrap())
}

fn hop<'r>(run: &'r Simulated, name: &str) -> &'r kdbus_examples::hop::HopRecorder {
    run.report.hops().iter().find(|hop| hop.name() == name).unwrap()
}

#[test]
fn every_block_and_control_arrives_in_time_on_an_idle_machine() {
    for board in Board::PRESETS {
        let run = simulate(&setup(7, board)).unwrap();
        assert_eq!(run.failures, [], "{board}");
        for name in ["source → equaliser", "equaliser → sink", "source → sink"] {
            assert_eq!((hop(&run, name).messages(), hop(&run, name).missed()), (750, 0), "{board}: {name}");
        }
        let controls = hop(&run, "controller → equaliser");
        assert!(controls.controls() > 2 && controls.most_overtaken() >= 10, "{board}");
        // Half of the 24 blocks ahead wait in the equaliser's queue.
        let queued = hop(&run, "source → equaliser").latency_ns(0.5);
        assert!((15_700_000..16_300_000).contains(&queued), "{board}: {queued}");
    }
}

#[test]
fn equal_setups_give_equal_reports_to_the_byte() {
    let run = |seed| {
        let mut setup = setup(seed, "a53");
        setup.jitter = Duration::from_micros(200);
        setup.load = Some(Load {
            policy: Policy::RoundRobin(41),
            every: Duration::from_millis(5),
            work: Duration::from_millis(3),
        });
        setup.trace = true;
        let run = simulate(&setup).unwrap();
        let trace = run.trace.as_ref().unwrap();
        format!("{run}{}{}{}", run.report.json(), trace.log(), trace.timeline())
    };
    let first = run(7);
    assert!(first == run(7), "the same seed gave another run");
    assert!(first != run(8), "another seed gave the same run");
}

#[test]
fn slower_boards_take_longer() {
    let hop_ns = |board| hop(&simulate(&setup(1, board)).unwrap(), "equaliser → sink").latency_ns(0.5);
    let all = ["ideal", "a72", "a53", "a8"].map(hop_ns);
    assert!(all.is_sorted(), "{all:?}");
}

#[test]
fn a_stage_that_dies_is_noticed_by_the_others() {
    let mut setup = setup(3, "vm");
    setup.faults = vec![Fault { process: 2, step: 1_000, kind: FaultKind::Kill }];
    let run = simulate(&setup).unwrap();
    let failed: Vec<_> = run.failures.iter().map(|(stage, _)| stage.word()).collect();
    assert!(failed.contains(&"source") && failed.contains(&"sink"), "{failed:?}");
}

#[test]
fn a_stage_that_stands_still_makes_blocks_late_and_catches_up() {
    let mut setup = setup(3, "vm");
    setup.faults = vec![Fault { process: 2, step: 1_000, kind: FaultKind::Stop(60_000_000) }];
    let run = simulate(&setup).unwrap();
    assert_eq!(run.failures, []);
    let whole = hop(&run, "source → sink");
    assert!(whole.missed() > 5 && whole.missed() < 100, "{}", whole.missed());
    assert!(whole.max_ns() > 60_000_000);
}

#[test]
fn sim_audio_plays_the_same_twice_and_writes_a_timeline() {
    let dir = tempfile::tempdir().unwrap();
    let play = |trace: &str| {
        let output = Command::new(env!("CARGO_BIN_EXE_sim-audio"))
            .args(["--seed", "7", "--seconds", "1", "--board", "a72", "--jitter-us", "30", "--trace"])
            .arg(dir.path().join(trace))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(play("one.json"), play("other.json"));
    let read = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
    assert!(read("one.json") == read("other.json"));
    let timeline: serde_json::Value = serde_json::from_str(&read("one.json")).unwrap();
    let events = timeline["traceEvents"].as_array().unwrap();
    for phase in ["X", "C", "b", "e"] {
        assert!(events.iter().any(|event| event["ph"] == phase), "{phase}");
    }
}

#[test]
fn the_inversion_is_found_and_both_ways_out_work() {
    let output = Command::new(env!("CARGO_BIN_EXE_sim-inversion")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("blocks come too late") && text.contains("no block is late"), "{text}");
}
