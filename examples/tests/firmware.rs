//! The firmware example, built as it goes to a device, against a bus.
//!
//! `KDBUS_FIRMWARE` is one that was built already, for whatever machine, and `KDBUS_TEST_RUNNER` what runs it here.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kdbus_core::WellKnownName;
use kdbus_core::client::{CallError, Connection, ErrorReply, Hello, Message, TopicPattern};
use kdbus_linux::local::LocalTransport;
use kdbusd::Running;
use kdbusd::config::Config;
use object::{Object, ObjectSegment, ObjectSymbol};

const NAME: &str = "org.kdbus.Firmware";
const RUNNER: &str = "KDBUS_TEST_RUNNER";
const LIMIT: u64 = 64 << 10;
/// A deadline that only a failure reaches.
const LONG: Duration = Duration::from_secs(60);

/// A line that is seen whether or not tests are captured.
fn skip(why: &str) {
    if let Ok(mut terminal) = OpenOptions::new().write(true).open("/dev/stderr") {
        let _ = writeln!(terminal, "skipped: firmware: {why}");
    }
}

/// Builds it, and returns the program and its stripped copy; `None`, with a line that says why, where that cannot be.
fn build() -> Option<[PathBuf; 2]> {
    if let Some(program) = std::env::var_os("KDBUS_FIRMWARE").map(PathBuf::from) {
        let stripped = program.with_extension("stripped");
        return Some([program, stripped]);
    }
    if !cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        skip("it is for x86_64 and aarch64");
        return None;
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("firmware");
    let clean = |program: &str| {
        let mut command = Command::new(program);
        command.current_dir(&folder).env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
        command
    };
    // It has a lock file of its own, with crates that this workspace does not need.
    if !clean(env!("CARGO")).args(["fetch", "--quiet"]).status().is_ok_and(|status| status.success()) {
        skip("its crates cannot be fetched");
        return None;
    }
    let output = clean("./build").stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stdout).unwrap();
    let mut paths = text.lines().rev().take(2).map(PathBuf::from);
    let (stripped, program) = (paths.next().unwrap(), paths.next().unwrap());
    Some([program, stripped])
}

fn run(program: &Path, arguments: &[&str]) -> Child {
    let mut command = match std::env::var_os(RUNNER) {
        Some(runner) => {
            let mut command = Command::new(runner);
            command.arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

/// The address space of a process in KiB; `None` once it has ended.
fn memory(child: &Child) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmSize:"))?;
    line.split_whitespace().next().unwrap().parse().ok()
}

struct Reading {
    at_ns: u64,
    value: i64,
    sequence: u32,
    kind: u32,
}

fn reading(bytes: &[u8]) -> Reading {
    assert_eq!(bytes.len(), 24);
    Reading {
        at_ns: u64::from_ne_bytes(bytes[..8].try_into().unwrap()),
        value: i64::from_ne_bytes(bytes[8..16].try_into().unwrap()),
        sequence: u32::from_ne_bytes(bytes[16..20].try_into().unwrap()),
        kind: u32::from_ne_bytes(bytes[20..].try_into().unwrap()),
    }
}

/// What `defmt-print` makes of log frames; `None`, with a line that says so, where it is not installed.
fn decode(program: &Path, frames: &[u8]) -> Option<String> {
    let spawned = Command::new("defmt-print")
        .arg("-e")
        .arg(program)
        .arg("stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut decoder) = spawned else {
        skip("logs are not decoded: no defmt-print; cargo install --locked defmt-print");
        return None;
    };
    decoder.stdin.take().unwrap().write_all(frames).unwrap();
    let output = decoder.wait_with_output().unwrap();
    assert!(output.status.success());
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn firmware_is_small_stands_alone_and_serves() {
    let Some([program, stripped]) = build() else { return };
    stands_alone(&program, &stripped);
    serves(&program, &stripped);
}

fn stands_alone(program: &Path, stripped: &Path) {
    assert!(stripped.metadata().unwrap().len() <= LIMIT);
    let bytes = std::fs::read(program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    assert!(file.dynamic_symbols().next().is_none() && file.imports().unwrap().is_empty(), "it is static");
    assert!(file.segments().all(|segment| segment.size() < 1 << 20));
    let names: Vec<&str> = file.symbols().filter_map(|symbol| symbol.name().ok()).collect();
    assert!(names.contains(&"_start"), "the symbols are there to be looked at");
    let heap = |name: &&&str| {
        let whole = ["malloc", "calloc", "realloc", "free", "brk", "sbrk", "aligned_alloc", "posix_memalign"];
        let parts = ["__rust_alloc", "__rust_realloc", "__rdl_", "__rg_", "5alloc", "alloc::"];
        whole.contains(*name) || parts.iter().any(|part| name.contains(part))
    };
    assert_eq!(names.iter().find(heap), None, "it has no heap");
    assert_eq!(names.iter().find(|name| name.contains("3std")), None, "it has no std");
}

fn serves(program: &Path, stripped: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let config = Config::new(rustix::process::geteuid().as_raw(), dir.path().join("kdbus"));
    let daemon = Running::start(&config).unwrap();
    let node =
        daemon.root().join(format!("{}-{}/bus", rustix::process::geteuid().as_raw(), config.bus[0].name));
    let node = node.to_str().unwrap();
    let bus = Connection::hello(LocalTransport::connect(node).unwrap(), &Hello::new()).unwrap();
    bus.subscribe(TopicPattern::parse("org.kdbus.Firmware.*").unwrap()).unwrap();

    let mut firmware = run(stripped, &["--bus", node, "--period-ms", "5", "--readings", "400"]);
    let signal = |after: Option<u32>| {
        let signal = bus.recv_blocking(LONG).unwrap();
        let reading = reading(signal.payload());
        assert!(after.is_none_or(|after| reading.sequence > after), "readings count up");
        assert!(reading.at_ns <= bus.now().as_nanos(), "a reading is older than its arrival");
        reading
    };
    let first = signal(None);
    let at_first = memory(&firmware);

    // Calls are answered between readings.
    let name = WellKnownName::parse(NAME).unwrap();
    let call = |payload: &[u8]| {
        let answer = bus.call_blocking(&Message::to_name(name).payload(payload), LONG)?;
        Ok::<_, CallError>(answer.payload().to_vec())
    };
    let last = reading(&call(b"").unwrap());
    assert!(last.sequence >= first.sequence && last.kind == first.kind);
    let history = call(b"history").unwrap();
    let history: Vec<Reading> = history.chunks(24).map(reading).collect();
    assert!((1..=32).contains(&history.len()));
    assert!(history.is_sorted_by(|a, b| a.sequence < b.sequence && a.at_ns <= b.at_ns));
    let kind = String::from_utf8(call(b"kind").unwrap()).unwrap();
    assert_eq!(kind, ["", "temperature", "pressure", "uptime"][first.kind as usize]);
    // No board is hotter than the sun, and pressure is a share.
    let range = match first.kind {
        1 => -273_150..5_000_000,
        2 => 0..100_001,
        _ => 0..i64::MAX,
    };
    assert!(range.contains(&first.value), "{}", first.value);
    let refused = call(b"nonsense").unwrap_err();
    assert!(matches!(&refused, CallError::Remote(error) if error.code() == ErrorReply::UNKNOWN_METHOD));

    let mut sequence = first.sequence;
    while sequence < 200 {
        sequence = signal(Some(sequence)).sequence;
    }
    // An emulator has memory of its own; and on a machine that is busy elsewhere, this may come too late.
    let later = memory(&firmware).filter(|_| std::env::var_os(RUNNER).is_none());
    assert!(later.is_none_or(|later| Some(later) == at_first), "it takes no more memory than at the start");
    while sequence < 399 {
        sequence = signal(Some(sequence)).sequence;
    }
    let mut frames = Vec::new();
    std::io::Read::read_to_end(&mut firmware.stdout.take().unwrap(), &mut frames).unwrap();
    assert!(firmware.wait().unwrap().success());
    assert!(frames.contains(&0), "frames end with a zero byte");
    if let Some(text) = decode(program, &frames) {
        for line in ["connected as", NAME, "400 readings published"] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
    let mut refused = run(stripped, &["--bus", "/nowhere/bus"]);
    assert_eq!(refused.wait().unwrap().code(), Some(1));
}
