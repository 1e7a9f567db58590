//! The sensor pipeline as people start it: real processes over a bus of their own, and the real sensors of this machine.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{Place, report, stderr};
use rustix::process::{Pid, Signal, kill_process};

const PIPELINE: &str = env!("CARGO_BIN_EXE_sensor-pipeline");

fn hop<'r>(report: &'r serde_json::Value, name: &str) -> &'r serde_json::Value {
    report["hops"].as_array().unwrap().iter().find(|hop| hop["name"] == name).unwrap()
}

/// The lines of a record by their kind.
fn record(path: &Path) -> BTreeMap<String, Vec<csv::StringRecord>> {
    let mut lines = BTreeMap::<_, Vec<_>>::new();
    for line in csv::Reader::from_path(path).unwrap().records() {
        let line = line.unwrap();
        lines.entry(line[0].to_owned()).or_default().push(line);
    }
    lines
}

fn number(field: &str) -> f64 {
    field.parse().unwrap()
}

#[test]
fn everything_that_was_measured_is_recorded_and_alarms_overtake_it() {
    let place = Place::new(PIPELINE);
    let csv = place.path("record.csv");
    // Some memory is always used, and some time passes between two switches.
    let run = place
        .pipeline()
        .args(["--seconds", "3", "--rate", "20", "--json", "--alarm", "memory:0.001", "--alarm", "cpu:200"])
        .args(["--alarm", "switches:0.001", "--csv"])
        .arg(&csv)
        .output()
        .unwrap();
    let report = report(&run);
    let count = |name: &str| report["counts"][name].as_u64().unwrap();

    // Nothing was lost on any way.
    for lost in ["lost", "shed", "unreadable"] {
        assert_eq!(count(lost), 0, "{lost}: {}", report["counts"]);
    }
    let sampled = count("sampled");
    assert!(sampled >= 3 * 20, "{sampled}");
    for stage in ["smoothed", "published", "fused", "recorded_readings"] {
        assert_eq!(count(stage), sampled, "{stage}");
    }
    let alarms = count("raised") + count("cleared");
    for stage in ["heeded", "recorded_alarms", "seen_alarms"] {
        assert_eq!(count(stage), alarms, "{stage}");
    }
    assert_eq!((count("recorded_states"), count("seen_states")), (count("states"), count("states")));
    assert!(count("asked") > 0);
    assert_eq!(count("asked"), count("answered") + count("unanswered"), "{}", report["counts"]);

    // The record has the lines that the report says, and each channel its readings, from the first to the last.
    let lines = record(&csv);
    let of = |kind: &str| lines.get(kind).map_or(&[][..], |lines| lines);
    assert_eq!(lines.values().map(Vec::len).sum::<usize>() as u64, count("rows"));
    assert_eq!(of("reading").len() as u64, sampled);
    assert_eq!((of("alarm").len() + of("clear").len()) as u64, alarms);
    assert_eq!(of("state").len() as u64, count("states"));
    for channel in report["channels"].as_array().unwrap() {
        let name = channel["name"].as_str().unwrap();
        let own: Vec<_> = of("reading").iter().filter(|line| &line[1] == name).collect();
        assert_eq!(own.len() as u64, channel["readings"].as_u64().unwrap(), "{name}");
        let sequence: Vec<_> = own.iter().map(|line| line[3].parse::<usize>().unwrap()).collect();
        assert!(sequence.iter().copied().eq(0..own.len()), "{name}: {sequence:?}");
        assert!(own.is_sorted_by_key(|line| line[4].parse::<u64>().unwrap()), "{name}");
    }

    // These are values of this machine.
    let memory = of("reading").iter().filter(|line| &line[1] == "memory");
    assert!(memory.clone().all(|line| number(&line[6]) > 0.0 && number(&line[6]) < 100.0));
    assert!(of("reading").iter().any(|line| &line[1] == "switches" && number(&line[6]) > 0.0));

    // Each alarm came to fusion before readings that had been sent to it earlier.
    assert_eq!(of("alarm").iter().filter(|line| &line[1] == "memory").count(), 1);
    assert!(!of("alarm").iter().any(|line| &line[1] == "cpu"), "no CPU is busy twice");
    let hop = hop(&report, "alarm → fusion");
    assert_eq!(hop["messages"].as_u64(), Some(alarms));
    assert!(hop["readings_overtaken"]["max"].as_u64().unwrap() > 0, "{hop}");
    let histogram = hop["histogram"].as_array().unwrap();
    let counted: u64 = histogram.iter().map(|bucket| bucket["messages"].as_u64().unwrap()).sum();
    assert_eq!(counted, alarms);
    let text = stderr(&run);
    assert!(text.contains("alarm: memory is"), "{text}");
    assert!(text.contains("no bus is running: started one") && !place.path("bus/control").exists(), "{text}");
}

#[test]
fn an_interrupt_ends_in_order_and_what_was_measured_is_there() {
    let place = Place::new(PIPELINE);
    let csv = place.path("record.csv");
    let mut pipeline = place
        .pipeline()
        .args(["--rate", "50", "--channel", "memory,cpu*", "--csv"])
        .arg(&csv)
        .spawn()
        .unwrap();
    // The recorder has made its file when all parts are on their way; the signal is heard before and after that.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let mut said = std::io::BufReader::new(pipeline.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("panel") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "it ended before it began");
        assert!(std::time::Instant::now() < until);
    }
    kill_process(Pid::from_raw(pipeline.id() as i32).unwrap(), Signal::INT).unwrap();
    let output = pipeline.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("nothing was lost"), "{text}");
    assert!(
        record(&csv)
            .values()
            .flatten()
            .all(|line| ["cpu", "memory", ""].iter().any(|name| line[1].starts_with(name)))
    );
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_starts() {
    let place = Place::new(PIPELINE);
    let refused = |arguments: &[&str]| {
        let output = place.pipeline().args(["--seconds", "1"]).args(arguments).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty());
        assert!(!place.path("bus").exists());
        stderr(&output)
    };
    let text = refused(&["--root", place.path("nowhere").to_str().unwrap()]);
    assert!(text.contains("no sensors found in") && text.contains("nowhere/proc/stat"), "{text}");
    assert!(text.contains("--root"), "{text}");
    let text = refused(&["--alarm", "warmth:30"]);
    assert!(text.contains("no channel is called 'warmth'; there are") && text.contains("memory"), "{text}");
    let text = refused(&["--alarm", "memory"]);
    assert!(text.contains("CHANNEL:LIMIT"), "{text}");
    let text = refused(&["--channel", "x*"]);
    assert!(text.contains("'x*'"), "{text}");
}

#[test]
fn a_record_that_cannot_be_written_is_the_recorders_error() {
    let place = Place::new(PIPELINE);
    let run = place.pipeline().args(["--seconds", "1", "--csv", "/proc/no/record.csv"]).output().unwrap();
    assert_eq!(run.status.code(), Some(1));
    let text = stderr(&run);
    assert!(text.contains("sensor-pipeline: the recorder: cannot write '/proc/no/record.csv'"), "{text}");
    assert!(!place.path("bus/control").exists());
}
