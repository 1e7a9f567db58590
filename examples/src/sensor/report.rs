//! What came of a run, as tables for people and as JSON for programs.

use std::fmt::Write as _;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Cell, CellAlignment, Table};
use serde::Serialize;

use super::channel::Value;
use super::plan::Plan;
use super::tally::{Counts, Range, Tally};
use crate::hop::HopRecorder;
use crate::report::duration;

/// The hops of a run, in the order of a report.
const HOPS: [&str; 9] = [
    "due → taken",
    "sampler → smoother",
    "smoother → fusion",
    "alarm → fusion",
    "alarm → panel",
    "taken → alarm",
    "taken → state",
    "smoother → recorder",
    "question → answer",
];

/// The measurements of a run.
#[derive(Clone, Debug)]
pub struct Report {
    title: String,
    plan: Plan,
    counts: Counts,
    hops: Vec<HopRecorder>,
    ranges: Vec<Range>,
}

impl Report {
    /// A report of nothing yet.
    pub fn new(title: String, plan: Plan) -> Self {
        Self { title, plan, counts: Counts::default(), hops: Vec::new(), ranges: Vec::new() }
    }

    /// Adds what a part measured.
    pub fn add(&mut self, tally: Tally) {
        self.counts.add(&tally.counts);
        for mut hop in tally.hops {
            hop.finish();
            self.hops.push(hop);
        }
        let place = |hop: &HopRecorder| HOPS.iter().position(|name| *name == hop.name());
        self.hops.sort_by_key(place);
        if !tally.ranges.is_empty() {
            self.ranges = tally.ranges;
        }
    }

    /// What all parts counted.
    pub const fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The hop with this name.
    pub fn hop(&self, name: &str) -> Option<&HopRecorder> {
        self.hops.iter().find(|hop| hop.name() == name)
    }

    /// The tables that end a run, without a line break behind them.
    pub fn table(&self) -> String {
        let right = |text: String| Cell::new(text).set_alignment(CellAlignment::Right);
        let mut channels = table(&["channel", "unit", "every", "readings", "min", "max", "last", "alarms"]);
        for (channel, range) in self.plan.channels.iter().zip(&self.ranges) {
            let value = |value: Value| if range.readings == 0 { "–".to_owned() } else { value.to_string() };
            let every = self.plan.period().as_nanos() as u64 * channel.every;
            let mut row = vec![Cell::new(&channel.name), Cell::new(&channel.unit)];
            row.extend(
                [
                    duration(every),
                    range.readings.to_string(),
                    value(range.min),
                    value(range.max),
                    value(range.last),
                    range.alarms.to_string(),
                ]
                .map(right),
            );
            channels.add_row(row);
        }
        let mut hops =
            table(&["hop", "messages", "p50", "p99", "p99.9", "max", "deadline", "missed", "overtaken"]);
        for hop in self.hops.iter().map(Hop::new) {
            let time = |ns: u64| if hop.messages == 0 { "–".to_owned() } else { duration(ns) };
            let mut row = vec![Cell::new(hop.name)];
            row.extend(
                [
                    hop.messages.to_string(),
                    time(hop.latency_ns.p50),
                    time(hop.latency_ns.p99),
                    time(hop.latency_ns.p99_9),
                    time(hop.latency_ns.max),
                    hop.deadline_ns.map_or_else(|| "–".to_owned(), duration),
                    hop.deadline_ns.map_or_else(|| "–".to_owned(), |_| hop.missed_deadlines.to_string()),
                    hop.readings_overtaken.map_or_else(
                        || "–".to_owned(),
                        |overtaken| format!("{} / {} / {}", overtaken.min, overtaken.p50, overtaken.max),
                    ),
                ]
                .map(right),
            );
            hops.add_row(row);
        }
        let mut text = format!("{}\n{channels}\n{hops}\n", self.title);
        for remark in self.remarks() {
            // A string takes whatever is written.
            let _ = writeln!(text, "{remark}");
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// The same as one JSON object, indented; times are in nanoseconds, values in their unit.
    pub fn json(&self) -> String {
        let channels = self.plan.channels.iter().zip(&self.ranges);
        let run = Run {
            title: &self.title,
            rate: self.plan.rate,
            cycle_ns: self.plan.cycle().as_nanos() as u64,
            counts: &self.counts,
            channels: channels
                .map(|(channel, range)| ChannelReport {
                    name: &channel.name,
                    unit: &channel.unit,
                    readings: range.readings,
                    alarms: range.alarms,
                    min: number(range.min),
                    max: number(range.max),
                    last: number(range.last),
                })
                .collect(),
            hops: self.hops.iter().map(Hop::new).collect(),
        };
        // Only maps with keys that are not text, and writers that fail, make this an error; there is neither.
        serde_json::to_string_pretty(&run).unwrap_or_default()
    }

    /// What the numbers of the tables do not say.
    fn remarks(&self) -> Vec<String> {
        let counts = &self.counts;
        let mut remarks = vec![format!(
            "each reading waits for the end of a cycle of {}, where alarms and questions overtake it; overtaken: \
             readings by each alarm (min / p50 / max)",
            duration(self.plan.cycle().as_nanos() as u64)
        )];
        remarks.push(format!("{} states, {} questions answered", counts.states, counts.answered));
        let mut say = |count: u64, text: &str| {
            if count > 0 {
                remarks.push(format!("{count} {text}"));
            }
        };
        say(counts.raised, "alarms raised");
        say(counts.rows, "lines recorded");
        say(counts.unreadable, "readings that a sensor did not give");
        say(counts.shed, "readings kept back, for fusion had too many to take in");
        say(counts.lost, "messages lost for want of room");
        say(counts.unanswered, "questions not answered in time");
        say(counts.ignored, "signals ignored that passed a bloom filter by chance, or messages of others");
        if counts.lost == 0 && counts.shed == 0 {
            remarks.push("nothing was lost".to_owned());
        }
        remarks
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.iter().copied());
    table
}

fn number(value: Value) -> f64 {
    value.0 as f64 / 1e6
}

#[derive(Serialize)]
struct Run<'r> {
    title: &'r str,
    rate: u64,
    cycle_ns: u64,
    counts: &'r Counts,
    channels: Vec<ChannelReport<'r>>,
    hops: Vec<Hop<'r>>,
}

#[derive(Serialize)]
struct ChannelReport<'r> {
    name: &'r str,
    unit: &'r str,
    readings: u64,
    alarms: u64,
    min: f64,
    max: f64,
    last: f64,
}

#[derive(Serialize)]
struct Hop<'r> {
    name: &'r str,
    messages: u64,
    latency_ns: Quantiles,
    deadline_ns: Option<u64>,
    missed_deadlines: u64,
    readings_overtaken: Option<Overtaken>,
    histogram: Vec<Bucket>,
}

#[derive(Clone, Copy, Serialize)]
struct Quantiles {
    min: u64,
    p50: u64,
    p90: u64,
    p99: u64,
    p99_9: u64,
    max: u64,
}

#[derive(Clone, Copy, Serialize)]
struct Overtaken {
    min: u64,
    p50: u64,
    max: u64,
}

/// How many messages took at most so long, and longer than the bucket before.
#[derive(Serialize)]
struct Bucket {
    up_to_ns: u64,
    messages: u64,
}

impl<'r> Hop<'r> {
    fn new(hop: &'r HopRecorder) -> Self {
        let at = |quantile| hop.latency_ns(quantile);
        let overtaken =
            Overtaken { min: hop.overtaken(0.0), p50: hop.overtaken(0.5), max: hop.most_overtaken() };
        Self {
            name: hop.name(),
            messages: hop.messages(),
            latency_ns: Quantiles {
                min: hop.min_ns(),
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p99_9: at(0.999),
                max: hop.max_ns(),
            },
            deadline_ns: (hop.deadline_ns() != u64::MAX).then_some(hop.deadline_ns()),
            missed_deadlines: hop.missed(),
            readings_overtaken: (hop.controls() > 0).then_some(overtaken),
            histogram: buckets(hop),
        }
    }
}

/// The latencies in buckets whose ends are 1, 2 and 5 times a power of ten; empty ones are left out.
fn buckets(hop: &HopRecorder) -> Vec<Bucket> {
    let mut buckets: Vec<Bucket> = Vec::new();
    for (ns, messages) in hop.latencies() {
        let ends = (0..).flat_map(|power| [1, 2, 5].map(|digit| digit * 10_u64.pow(power)));
        // The longest latency that is told apart is a minute, far below the last power.
        let Some(up_to_ns) = ends.take(54).find(|end| ns <= *end) else { continue };
        match buckets.last_mut() {
            Some(last) if last.up_to_ns == up_to_ns => last.messages += messages,
            _ => buckets.push(Bucket { up_to_ns, messages }),
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::channel::Channel;
    use super::*;

    fn report() -> Report {
        let plan = Plan {
            channels: vec![Channel::new("warmth", "°C", 5)],
            thresholds: Vec::new(),
            rate: 10,
            ticks: 100,
            answer_ns: 1,
            burst: None,
        };
        let mut report = Report::new("a run".to_owned(), plan);
        let mut alarms = HopRecorder::new("alarm → fusion", Duration::from_millis(1));
        [900_000, 1_100_000, 1_900_000].into_iter().for_each(|ns| alarms.record(ns));
        alarms.control_arrived(10);
        [7, 8, 11].into_iter().for_each(|sent_at| alarms.block_arrived(sent_at));
        let mut range = Range::default();
        range.push(Value(21_500_000));
        let counts = Counts { raised: 1, rows: 4, ..Counts::default() };
        report.add(Tally { counts, hops: vec![alarms], ranges: vec![range] });
        let hops = vec![HopRecorder::new("due → taken", Duration::MAX)];
        report.add(Tally {
            counts: Counts { rows: 3, lost: 2, ..Counts::default() },
            hops,
            ..Tally::default()
        });
        report
    }

    #[test]
    fn tables_show_channels_hops_and_what_went_wrong() {
        let table = report().table();
        let row = |name: &str| {
            let line = table.lines().find(|line| line.contains(name)).unwrap();
            line.split(['│', '┆']).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(row("warmth")[1..7], ["warmth", "°C", "500 ms", "1", "21.500", "21.500"]);
        assert_eq!(row("alarm → fusion")[2], "3");
        assert_eq!(row("alarm → fusion")[7..10], ["1.00 ms", "2", "2 / 2 / 2"]);
        assert!(table.find("due → taken") < table.find("alarm → fusion"));
        assert!(table.contains("2 messages lost") && !table.contains("nothing was lost"), "{table}");
    }

    #[test]
    fn json_has_the_same_numbers_and_the_histogram() {
        let json: serde_json::Value = serde_json::from_str(&report().json()).unwrap();
        assert_eq!(
            (json["counts"]["rows"].as_u64(), json["channels"][0]["last"].as_f64()),
            (Some(7), Some(21.5))
        );
        let hop = &json["hops"][1];
        let buckets: Vec<_> = hop["histogram"].as_array().unwrap().iter().collect();
        let bucket = |at: usize| (buckets[at]["up_to_ns"].as_u64(), buckets[at]["messages"].as_u64());
        assert_eq!((bucket(0), bucket(1)), ((Some(1_000_000), Some(1)), (Some(2_000_000), Some(2))));
        assert_eq!(hop["readings_overtaken"]["max"], 2);
        assert!(json["hops"][0]["readings_overtaken"].is_null());
    }
}
