//! What the coordinator tells at the end of a run: a table for people, JSON for programs.
//!
//! The picture of the same measurements is in [`crate::plot`].

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;

use crate::hop::HopRecorder;
use crate::record::Counts;

/// The measurements of a whole run, hop by hop.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    hops: Vec<HopRecorder>,
    counts: Counts,
    queued_ns: u64,
}

/// What JSON has for a run.
#[derive(Debug, Serialize)]
struct Run<'a> {
    title: &'a str,
    dropped_messages: u64,
    lost_blocks: u64,
    late_controls: u64,
    missing_controls: u64,
    ignored_messages: u64,
    queued_by_plan_ns: u64,
    hops: Vec<Hop<'a>>,
}

#[derive(Debug, Serialize)]
struct Hop<'a> {
    name: &'a str,
    messages: u64,
    latency_ns: Latency,
    /// Nothing where there is none.
    deadline_ns: Option<u64>,
    missed_deadlines: u64,
    controls: u64,
    blocks_overtaken: Overtaken,
}

#[derive(Debug, Serialize)]
struct Latency {
    min: u64,
    mean: f64,
    p50: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
}

#[derive(Debug, Serialize)]
struct Overtaken {
    min: u64,
    p50: u64,
    max: u64,
}

impl<'a> Hop<'a> {
    fn new(hop: &'a HopRecorder) -> Self {
        Self {
            name: hop.name(),
            messages: hop.messages(),
            latency_ns: Latency {
                min: hop.min_ns(),
                mean: hop.mean_ns(),
                p50: hop.latency_ns(0.5),
                p99: hop.latency_ns(0.99),
                p99_9: hop.latency_ns(0.999),
                max: hop.max_ns(),
            },
            deadline_ns: Some(hop.deadline_ns()).filter(|ns| *ns != u64::MAX),
            missed_deadlines: hop.missed(),
            controls: hop.controls(),
            blocks_overtaken: Overtaken {
                min: hop.overtaken(0.0),
                p50: hop.overtaken(0.5),
                max: hop.most_overtaken(),
            },
        }
    }
}

impl Report {
    /// Makes a report without hops that is headed by `title`, one line about what ran and how.
    pub fn new(title: &str) -> Self {
        Self { title: title.to_owned(), hops: Vec::new(), counts: Counts::default(), queued_ns: 0 }
    }

    /// Adds the measurements of a hop behind those that are there, or to those of a hop that has the same name.
    pub fn push(&mut self, mut hop: HopRecorder) {
        hop.finish();
        match self.hops.iter_mut().find(|other| other.name() == hop.name()) {
            Some(other) => other.merge(&hop),
            None => self.hops.push(hop),
        }
    }

    /// Sets what all stages together counted. Default: nothing.
    pub fn set_counts(&mut self, counts: Counts) {
        self.counts = counts;
    }

    /// Sets how long each block waits for its turn at the equaliser by plan, in nanoseconds. Default 0: not at all.
    pub fn set_queued(&mut self, ns: u64) {
        self.queued_ns = ns;
    }

    /// What ran and how.
    pub fn title(&self) -> &str {
        &self.title
    }

    /// The hops in the order they were added.
    pub fn hops(&self) -> &[HopRecorder] {
        &self.hops
    }

    /// The table that ends a run, without a line break behind it.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header([
            "hop",
            "messages",
            "p50",
            "p99",
            "p99.9",
            "max",
            "deadline",
            "missed",
            "controls",
            "blocks overtaken\nby each (min/p50/max)",
        ]);
        for hop in self.hops.iter().map(Hop::new) {
            // A hop without messages has no latency, which is not a latency of nothing.
            let time = |ns: u64| if hop.messages == 0 { "–".to_owned() } else { duration(ns) };
            let latency = &hop.latency_ns;
            let overtaken = &hop.blocks_overtaken;
            let mut row = vec![Cell::new(hop.name)];
            row.extend(
                [
                    hop.messages.to_string(),
                    time(latency.p50),
                    time(latency.p99),
                    time(latency.p99_9),
                    time(latency.max),
                    hop.deadline_ns.map_or_else(|| "–".to_owned(), duration),
                    hop.missed_deadlines.to_string(),
                    hop.controls.to_string(),
                    if hop.controls == 0 {
                        "–".to_owned()
                    } else {
                        format!("{} / {} / {}", overtaken.min, overtaken.p50, overtaken.max)
                    },
                ]
                .map(|text| Cell::new(text).set_alignment(CellAlignment::Right)),
            );
            table.add_row(row);
        }
        format!("{}\n{table}\n{}", self.title, self.remarks().join("\n"))
    }

    /// The same as one JSON object, indented; times are in nanoseconds.
    pub fn json(&self) -> String {
        let run = Run {
            title: &self.title,
            dropped_messages: self.counts.dropped,
            lost_blocks: self.counts.lost,
            late_controls: self.counts.late_controls,
            missing_controls: self.counts.missing_controls,
            ignored_messages: self.counts.ignored,
            queued_by_plan_ns: self.queued_ns,
            hops: self.hops.iter().map(Hop::new).collect(),
        };
        // Only maps with keys that are not text, and writers that fail, make this an error; there is neither.
        serde_json::to_string_pretty(&run).unwrap_or_default()
    }
}

impl Report {
    /// What the numbers of the table do not say.
    fn remarks(&self) -> Vec<String> {
        let Counts { dropped, late_controls, missing_controls, lost, ignored } = self.counts;
        let count = |number: u64, one: &str, many: &str| match number {
            1 => format!("1 {one}"),
            number => format!("{number} {many}"),
        };
        let mut remarks = Vec::new();
        if self.queued_ns > 0 {
            let queued = duration(self.queued_ns);
            remarks.push(format!(
                "each block waits {queued} for its turn at the equaliser, where controls overtake it"
            ));
        }
        remarks.push(match late_controls {
            0 => "every control took effect at its block".to_owned(),
            late => count(
                late,
                "control came late and took effect at once",
                "controls came late and took effect at once",
            ),
        });
        let room = "dropped for want of room";
        remarks.push(match dropped {
            0 => "no message was dropped".to_owned(),
            dropped => format!("{} {room}", count(dropped, "message was", "messages were")),
        });
        if lost > 0 {
            remarks.push(format!(
                "silence stands for {}",
                count(lost, "block that never came", "blocks that never came")
            ));
        }
        if missing_controls > 0 {
            remarks.push(count(missing_controls, "control never came", "controls never came"));
        }
        if ignored > 0 {
            remarks.push(format!("{} of others ignored", count(ignored, "message", "messages")));
        }
        remarks
    }
}

/// A time in the unit that suits it, to three significant digits.
pub fn duration(ns: u64) -> String {
    let (unit, name) = match ns {
        0..1_000 => return format!("{ns} ns"),
        1_000..999_500 => (1e3, "µs"),
        999_500..999_500_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let value = ns as f64 / unit;
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report() -> Report {
        let mut report = Report::new("test piece, fast");
        let mut first = HopRecorder::new("source → equaliser", Duration::from_nanos(1_333_333));
        (0..1_000u64).for_each(|at| first.record(if at == 500 { 2_000_000 } else { 10_000 + at }));
        first.control_arrived(100);
        (90..101).for_each(|at| first.block_arrived(at));
        report.push(first);
        report.push(HopRecorder::new("equaliser → sink", Duration::from_nanos(1_333_333)));
        report
    }

    #[test]
    fn table_has_a_row_for_each_hop() {
        let table = report().table();
        let row = |name: &str| {
            let line = table.lines().find(|line| line.contains(name)).unwrap();
            line.split(['│', '┆']).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        let cells = row("source → equaliser");
        assert_eq!(cells[2], "1000");
        assert_eq!(cells[6..11], ["2.00 ms", "1.33 ms", "1", "1", "10 / 10 / 10"], "{table}");
        assert_eq!(row("equaliser → sink")[2..7], ["0", "–", "–", "–", "–"]);
        assert!(table.ends_with("every control took effect at its block\nno message was dropped"));
    }

    #[test]
    fn json_has_the_same_numbers() {
        let mut report = report();
        report.set_counts(Counts { late_controls: 3, dropped: 4, ..Counts::default() });
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        let hop = &json["hops"][0];
        assert_eq!((hop["messages"].as_u64(), hop["missed_deadlines"].as_u64()), (Some(1_000), Some(1)));
        assert_eq!(hop["latency_ns"]["max"].as_u64(), Some(report.hops()[0].max_ns()));
        assert_eq!(hop["blocks_overtaken"]["max"].as_u64(), Some(10));
        assert_eq!((json["late_controls"].as_u64(), json["dropped_messages"].as_u64()), (Some(3), Some(4)));
        assert_eq!(json["hops"][1]["latency_ns"]["p50"].as_u64(), Some(0));
    }

    #[test]
    fn what_went_wrong_is_said_below_the_table() {
        let mut report = report();
        report.set_queued(16_000_000);
        report.set_counts(Counts { dropped: 1, late_controls: 2, missing_controls: 1, lost: 3, ignored: 9 });
        let table = report.table();
        let below: Vec<_> = table.lines().rev().take(6).collect();
        assert_eq!(
            below,
            [
                "9 messages of others ignored",
                "1 control never came",
                "silence stands for 3 blocks that never came",
                "1 message was dropped for want of room",
                "2 controls came late and took effect at once",
                "each block waits 16.0 ms for its turn at the equaliser, where controls overtake it",
            ]
        );
    }

    #[test]
    fn a_hop_without_a_deadline_has_none() {
        let mut report = Report::new("fast");
        report.push(HopRecorder::new("a hop", Duration::MAX));
        assert!(!report.table().contains(" s "), "{}", report.table());
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert!(json["hops"][0]["deadline_ns"].is_null());
    }

    #[test]
    fn parts_of_a_hop_add_up() {
        let mut report = report();
        let part = report.hops()[0].clone();
        report.push(part);
        assert_eq!((report.hops().len(), report.hops()[0].messages()), (2, 2_000));
    }

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0 ns"),
            (999, "999 ns"),
            (1_000, "1.00 µs"),
            (9_994, "9.99 µs"),
            (9_996, "10.0 µs"),
            (99_960, "100 µs"),
            (999_499, "999 µs"),
            (999_600, "1.00 ms"),
            (1_333_333, "1.33 ms"),
            (59_000_000_000, "59.0 s"),
        ];
        for (ns, text) in cases {
            assert_eq!(duration(ns), text);
        }
    }
}
