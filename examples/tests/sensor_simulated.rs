//! The sensor pipeline on simulated machines.

use std::process::Command;
use std::time::Duration;

use kdbus_examples::sensor::simulated::{Setup, Simulated, simulate};
use kdbus_sim::{Board, Fault, FaultKind};

fn setup(seed: u64, board: &str) -> Setup {
    Setup::new(seed, Duration::from_secs(5), 100, Board::preset(board).unwrap())
}

/// Alarms that were raised and ended, each of which reached everybody.
fn alarms(run: &Simulated) -> u64 {
    let counts = run.report.counts();
    let alarms = counts.raised + counts.cleared;
    assert_eq!(
        (counts.heeded, counts.recorded_alarms, counts.seen_alarms),
        (alarms, alarms, alarms),
        "{run}"
    );
    alarms
}

/// Whether an alarm was raised while the first channel chattered.
fn has_alarm_in_burst(run: &Simulated) -> bool {
    let lines: Vec<_> =
        csv::Reader::from_reader(&run.record[..]).into_records().map(Result::unwrap).collect();
    let recorded_at = |line: &csv::StringRecord| line[5].parse::<u64>().unwrap();
    lines.iter().filter(|line| &line[0] == "alarm").any(|alarm| {
        let near = |line: &&csv::StringRecord| recorded_at(line).abs_diff(recorded_at(alarm)) < 30_000_000;
        lines.iter().filter(|line| &line[1] == "vibration").filter(near).count() > 100
    })
}

#[test]
fn nothing_is_lost_and_nothing_late_on_an_idle_machine() {
    for board in Board::PRESETS {
        let run = simulate(&setup(7, board)).unwrap();
        assert_eq!(run.failures, [], "{board}");
        let counts = run.report.counts();
        assert_eq!((counts.lost, counts.shed, counts.unanswered), (0, 0, 0), "{board}: {run}");
        assert_eq!(counts.sampled, 4 * 500 + 2 * 100);
        let arrived = [counts.smoothed, counts.published, counts.fused, counts.recorded_readings];
        assert_eq!(arrived, [counts.sampled; 4], "{board}");
        assert!(alarms(&run) >= 3);
        for name in ["due → taken", "smoother → fusion", "alarm → fusion", "question → answer"] {
            assert_eq!(run.report.hop(name).unwrap().missed(), 0, "{board}: {name}");
        }
        // Readings wait for the end of a cycle, and alarms do not.
        assert!(run.report.hop("smoother → fusion").unwrap().latency_ns(0.5) > 40_000_000);
        assert!(run.report.hop("alarm → fusion").unwrap().overtaken(0.0) > 0, "{board}: {run}");
        let lines = run.record.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        assert_eq!(lines as u64, 1 + counts.rows);
    }
}

#[test]
fn an_alarm_comes_in_its_bound_however_many_readings_come() {
    for (seed, board) in (1..=2).flat_map(|seed| ["ideal", "vm", "a72", "a53"].map(|board| (seed, board))) {
        let mut setup = setup(seed, board);
        setup.burst(300, 3_000);
        let run = simulate(&setup).unwrap();
        assert_eq!(run.failures, [], "{board}");
        let counts = run.report.counts();
        // More came than there was room for,
        assert!(counts.lost > 1_000 && counts.shed > 0, "{board}: {run}");
        // but no alarm was lost, and none came later to fusion than the next tick.
        assert!(alarms(&run) >= 3 && has_alarm_in_burst(&run), "{board}: {run}");
        let hop = run.report.hop("alarm → fusion").unwrap();
        assert_eq!(hop.missed(), 0, "{board}, seed {seed}: {run}");
        assert!(hop.max_ns() < setup.plan.period().as_nanos() as u64);
    }
}

#[test]
fn a_fusion_that_stands_still_loses_no_alarm() {
    let mut setup = setup(3, "vm");
    // Its state is not asked for meanwhile in vain: questions have a deadline.
    setup.faults = vec![Fault { process: 3, step: 300, kind: FaultKind::Stop(900_000_000) }];
    let run = simulate(&setup).unwrap();
    assert_eq!(run.failures, []);
    let counts = run.report.counts();
    assert!(counts.shed > 0 && counts.unanswered > 0, "{run}");
    assert_eq!(counts.lost, 0, "{run}");
    assert_eq!(counts.published, counts.fused);
    assert_eq!(counts.smoothed, counts.published + counts.shed);
    assert!(alarms(&run) > 0);
}

#[test]
fn a_part_that_dies_is_noticed_by_the_others() {
    let mut setup = setup(3, "vm");
    setup.faults = vec![Fault { process: 3, step: 300, kind: FaultKind::Kill }];
    let run = simulate(&setup).unwrap();
    let failed: Vec<_> = run.failures.iter().map(|(part, _)| part.word()).collect();
    assert!(failed.contains(&"smoother") && failed.contains(&"recorder"), "{failed:?}");
}

#[test]
fn equal_seeds_give_equal_reports_and_records_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let run = |seed: &str, name: &str| {
        let csv = directory.path().join(name);
        let output = Command::new(env!("CARGO_BIN_EXE_sim-sensor"))
            .args([
                "--seed",
                seed,
                "--seconds",
                "10",
                "--jitter-us",
                "50",
                "--json",
                "--burst",
                "300:1000",
                "--csv",
            ])
            .arg(&csv)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (output.stdout, std::fs::read(csv).unwrap())
    };
    let first = run("7", "one");
    assert!(first == run("7", "other"), "the same seed gave another run");
    let other = run("8", "third");
    assert!(first.0 != other.0 && first.1 != other.1, "another seed gave the same run");
}

#[test]
fn a_channel_that_is_not_there_is_named() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_sim-sensor")).args(["--alarm", "warmth:30"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && text.contains("no channel is called 'warmth'"), "{text}");
}
