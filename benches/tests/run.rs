//! The benches run, and what they say is complete.

use std::process::{Command, Output};

use serde_json::Value;

const OURS_AND_FLOOR: [&str; 6] =
    ["kdbus-rt slow path", "kdbus-rt memfd", "kdbus-rt loan", "shm+futex", "seqpacket", "seqpacket relay"];
/// What is handed over is no broadcast's.
const COPIED_ONLY: [&str; 2] = ["kdbus-rt memfd", "kdbus-rt loan"];

fn run(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_kdbus-benches")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn every_system_that_is_here_brings_its_messages_through() {
    let dir = tempfile::tempdir().unwrap();
    let (json, svg) = (dir.path().join("x.json"), dir.path().join("svg"));
    let output = run(&[
        "compare",
        "--quick",
        "--no-scaling",
        "--markdown",
        "--bytes=64,1048576",
        "--only=slow-path,memfd,loan,shm-futex,shm-spin,seqpacket,seqpacket-relay,dbus-broker,dbus-daemon",
        "--places=one-cpu",
        "--json",
        json.to_str().unwrap(),
        "--svg",
        svg.to_str().unwrap(),
    ]);
    let text = String::from_utf8(output.stdout).unwrap();
    let result: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    let is_here = |system: &str, kind: &str, bytes: u64| {
        result["cases"].as_array().unwrap().iter().any(|case| {
            case["system"] == system
                && case["kind"] == kind
                && case["bytes"] == bytes
                && case["p50_ns_lowest_round"].as_u64() > Some(0)
                && case["per_second"].as_f64() > Some(0.0)
        })
    };
    for system in OURS_AND_FLOOR {
        for bytes in [64, 1 << 20] {
            assert!(is_here(system, "call", bytes) && is_here(system, "stream", bytes), "{system}\n{text}");
        }
        assert!(COPIED_ONLY.contains(&system) || is_here(system, "broadcast-8", 64), "{system}\n{text}");
    }
    for system in ["dbus-broker raw", "dbus-daemon raw"] {
        // Where it is not installed, that is said.
        let absent = text.contains(&format!("absent: {system}: there is no "));
        assert!(is_here(system, "call", 64) != absent, "{system}\n{text}");
    }
    let picture = std::fs::read_to_string(svg.join("latency.svg")).unwrap();
    assert!(picture.contains("call, 1 MiB, one-cpu") && svg.join("payload.svg").exists());
}

#[test]
fn one_case_runs_alone() {
    let output = run(&["round-trip", "slow-path", "--messages", "50", "--warm-up", "5"]);
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(line.starts_with("kdbus-rt slow path, call, 64 bytes, one-cpu: p50 "), "{line}");
}

#[test]
fn instructions_are_counted_in_each_process_or_it_is_said_why_not() {
    let arguments = ["round-trip", "slow-path", "--instructions", "--warm-up=50", "--messages=2000"];
    if kdbus_benches::callgrind::is_available() {
        let text = String::from_utf8(run(&arguments).stdout).unwrap();
        let count = |line: &str| -> u64 { line.split(' ').nth(1).unwrap().parse().unwrap() };
        let lines: Vec<_> = text.lines().collect();
        let [client, kdbusd, server] = lines[..] else { panic!("{text}") };
        assert!(client.starts_with("client: ") && kdbusd.starts_with("kdbusd: "), "{text}");
        assert!(server.starts_with("server: "), "{text}");
        assert!([client, kdbusd, server].iter().all(|line| count(line) > 1000), "{text}");
    }
    let mut without = Command::new(env!("CARGO_BIN_EXE_kdbus-benches"));
    let output = without.args(arguments).env("PATH", "/nowhere").output().unwrap();
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "kdbus-benches: there is no valgrind\n");
    assert!(!output.status.success());
}

#[test]
fn every_queue_is_timed() {
    let output = Command::new(env!("CARGO_BIN_EXE_kdbus-benches"))
        .args(["queue", "--rounds", "1", "--pairs", "1024", "--json"])
        // Without valgrind on the path, what is left out is said.
        .env("PATH", "/nowhere")
        .output()
        .unwrap();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().starts_with("skipped: instruction counts"));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let lines = result["queues"].as_array().unwrap();
    assert_eq!(lines.len(), 16);
    assert!(
        lines.iter().all(|line| line["instructions"].is_null() && line["shortest_ns"].as_f64() > Some(0.0))
    );
}

#[test]
fn a_calibration_is_a_board_and_is_compared_with_what_is_measured() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("here.toml");
    let output = Command::new(env!("CARGO_BIN_EXE_calibrate"))
        .args(["--one-cpu", "--times", "10", "--rounds", "9", "--compare", "--size", "64", "--output"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let board = kdbus_sim::Board::from_toml(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!((board.name.as_str(), board.cores), ("here", 1));
    // What is a difference of two times may be anything on a busy machine.
    assert!(board.syscall_ns > 0 && board.daemon_ns > 0);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().any(|line| line.starts_with("#     64 B") && line.ends_with('%')), "{text}");
}
