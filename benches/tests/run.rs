//! The benches run, and what they say is complete.

use std::process::Command;

use serde_json::Value;

#[test]
fn every_contender_brings_its_message_back() {
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("latency.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_round-trip"))
        .args(["--rounds", "2", "--trips", "20", "--warm-up", "1", "--one-cpu", "--json", "--plot"])
        .arg(&plot)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let sections = result["round_trips"].as_array().unwrap();
    assert_eq!(
        sections.iter().map(|section| section["bytes"].as_u64().unwrap()).collect::<Vec<_>>(),
        [64, 65_536]
    );
    for section in sections {
        let lines = section["lines"].as_array().unwrap();
        assert_eq!(lines.len(), 6, "{section}");
        assert!(lines.iter().all(|line| line["p50_ns"].as_u64() > Some(0)), "{section}");
        assert_eq!(lines[0]["ratio"], 1.0);
    }
    assert!(std::fs::read_to_string(plot).unwrap().contains("65536 bytes"));
}

#[test]
fn every_queue_is_timed() {
    let output = Command::new(env!("CARGO_BIN_EXE_queue"))
        .args(["--rounds", "1", "--pairs", "1024", "--json"])
        // Without valgrind on the path, what is left out is said.
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("skipped: instruction counts"));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = result["queues"].as_array().unwrap();
    assert_eq!(lines.len(), 12);
    assert!(
        lines.iter().all(|line| line["instructions"].is_null() && line["shortest_ns"].as_f64() > Some(0.0))
    );
}

#[test]
fn a_calibration_is_a_board_and_is_compared_with_what_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("here.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_calibrate"))
        .args(["--one-cpu", "--times", "10", "--rounds", "1", "--compare", "--size", "64", "--output"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let board = kdbus_sim::Board::from_toml(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!((board.name.as_str(), board.cores), ("here", 1));
    assert!(board.syscall_ns > 0 && board.daemon_ns > 0 && board.copy_ps > 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("#     64 B") && line.ends_with('%')), "{text}");
}
