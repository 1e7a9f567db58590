//! A short run of the real program against a real kdbusd, and what it says when something is wrong.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The daemon's program, which lies beside this package's if the workspace was built.
fn kdbusd() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_kdbus-chaos")).with_file_name("kdbusd");
    if !path.is_file() {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "-p", "kdbusd", "--manifest-path"]);
        build.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../kdbusd/Cargo.toml"));
        assert!(build.status().unwrap().success());
    }
    path
}

fn chaos() -> Command {
    Command::new(env!("CARGO_BIN_EXE_kdbus-chaos"))
}

fn sum(object: &Value) -> u64 {
    object.as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum()
}

#[test]
fn a_short_run_ends_clean_and_every_check_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let output = chaos()
        .args(["--minutes", "0.17", "--seed", "5", "--clients", "8", "--json"])
        .arg(&json)
        .arg("--kdbusd")
        .arg(kdbusd())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert_eq!(report["findings"], Value::Array(Vec::new()), "{said}");
    for (check, made) in report["checks"].as_object().unwrap() {
        assert!(made.as_u64().unwrap() > 0, "never checked: {check}\n{said}");
    }
    assert!(sum(&report["kills"]) > 0, "nobody was killed");
    assert!(report["pauses"].as_u64().unwrap() > 0, "nobody was stopped");
    for end in ["reply", "time-out"] {
        assert!(report["calls"][end].as_u64().unwrap_or(0) > 0, "no call ended by {end}");
    }
    // Lines on the way, and a table at the end.
    assert!(said.contains("round 1"), "{said}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("check: nothing twice"));
}

#[test]
fn an_interrupt_ends_a_run_in_an_orderly_way_and_still_checks() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let child = chaos()
        .args(["--minutes", "60", "--seed", "6", "--clients", "5", "--json"])
        .arg(&json)
        .arg("--kdbusd")
        .arg(kdbusd())
        .stderr(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    // After the first line there are clients, histories and a round to end.
    let mut child = child;
    let mut lines = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut lines, &mut line).unwrap();
    assert!(line.contains("round 1"), "{line}");
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    std::io::Read::read_to_string(&mut lines, &mut line).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}");
    let report: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
    assert!(report["rounds"].as_u64().unwrap() >= 2, "{report}");
    assert!(sum(&report["checks"]) > 0);
}

#[test]
fn a_program_that_is_no_daemon_is_named() {
    let output = chaos().args(["--kdbusd", "/bin/true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("/bin/true serves nobody"), "{said}");
    let output = chaos().args(["--kdbusd", "/nowhere/kdbusd"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no /nowhere/kdbusd"));
}
