//! What was measured, as tables and as JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::case::{Case, Kind, System};
use crate::machine::Machine;
use crate::rounds::{Absent, Measured};
use crate::scale::Step;

/// All that one run has found out.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The machine.
    pub machine: Machine,
    /// One entry for each case.
    pub cases: Vec<Line>,
    /// How cost grows with numbers.
    pub scaling: Vec<Step>,
    /// What was not measured, and why.
    pub absent: Vec<Absent>,
}

/// What came out for one case. Times are in nanoseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The case.
    #[serde(flatten)]
    pub case: Case,
    /// Median of all rounds.
    pub p50_ns: u64,
    /// Median of the round where it was lowest.
    pub p50_ns_lowest_round: u64,
    /// 99 of 100 were at most this.
    pub p99_ns: u64,
    /// 999 of 1,000 were at most this.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
    /// Messages a second, in the round with most.
    pub per_second: f64,
    /// System calls of all processes for a round trip, if they were counted.
    pub syscalls: Option<f64>,
    /// Context switches of all processes for a message.
    pub switches: f64,
    /// What ratios are made of: the median of the lowest round, of a stream the time between two messages.
    #[serde(skip)]
    cost_ns: f64,
}

impl Line {
    /// Sums up what was measured; `None` if nothing was.
    #[must_use]
    pub fn of(measured: &Measured) -> Option<Self> {
        let all = measured.all().filter(|all| !all.is_empty())?;
        Some(Self {
            case: measured.case,
            p50_ns: all.value_at_quantile(0.5),
            p50_ns_lowest_round: measured.lowest_median(),
            p99_ns: all.value_at_quantile(0.99),
            p999_ns: all.value_at_quantile(0.999),
            max_ns: all.max(),
            per_second: measured.per_second,
            syscalls: measured.syscalls,
            switches: measured.switches,
            cost_ns: measured.cost_ns(),
        })
    }

    fn is_beside(&self, other: &Self) -> bool {
        let of = |case: &Case| (case.kind, case.bytes, case.place);
        of(&self.case) == of(&other.case)
    }
}

impl Report {
    /// The line that others of the same kind, size and place are compared with as kdbus-rt's: the channel if there is
    /// one, else the slow path.
    #[must_use]
    pub fn ours(&self, line: &Line) -> Option<&Line> {
        [System::Channel, System::SlowPath].iter().find_map(|system| self.beside(line, *system))
    }

    /// The line of `system` with the same kind, size and place.
    #[must_use]
    pub fn beside(&self, line: &Line, system: System) -> Option<&Line> {
        self.cases.iter().find(|other| other.case.system == system && other.is_beside(line))
    }

    /// The tables, which are Markdown. `with_page` adds what a page has besides.
    #[must_use]
    pub fn text(&self, with_page: bool) -> String {
        let mut text = String::new();
        if with_page {
            text.push_str(&format!("Machine: {}.\n\n", self.machine));
        }
        for kind in Kind::ALL {
            let rows: Vec<_> = self.cases.iter().filter(|line| line.case.kind == kind).collect();
            if !rows.is_empty() {
                let title =
                    if with_page { format!("### {}\n\n", heading(kind)) } else { heading(kind) + "\n" };
                text.push_str(&format!("{title}{}\n\n", self.table(&rows)));
            }
        }
        if !self.scaling.is_empty() {
            let title = "How cost grows (µs)";
            text.push_str(&if with_page { format!("### {title}\n\n") } else { format!("{title}\n") });
            let rows = self.scaling.iter().map(|step| {
                [
                    step.what.name().to_owned(),
                    step.count.to_string(),
                    micros(step.p50_ns),
                    self.scaling
                        .iter()
                        .find(|first| first.what == step.what)
                        .map_or_else(String::new, |first| ratio(step.p50_ns as f64, first.p50_ns as f64)),
                ]
            });
            text.push_str(&table(["what", "number", "p50", ": fewest"], rows));
            text.push_str("\n\n");
        }
        for Absent { system, reason } in &self.absent {
            let bullet = if with_page { "- " } else { "" };
            text.push_str(&format!("{bullet}absent: {}: {reason}\n", system.name()));
        }
        text
    }

    fn table(&self, lines: &[&Line]) -> String {
        let rows = lines.iter().map(|line| {
            let floor = self.beside(line, System::floor(line.case.kind));
            [
                line.case.system.name().to_owned(),
                size(line.case.bytes),
                line.case.place.name().to_owned(),
                micros(line.p50_ns_lowest_round),
                micros(line.p50_ns),
                micros(line.p99_ns),
                micros(line.p999_ns),
                micros(line.max_ns),
                thousands(line.per_second),
                line.syscalls.map_or_else(|| "-".into(), |count| format!("{count:.1}")),
                format!("{:.1}", line.switches),
                floor.map_or_else(|| "-".into(), |floor| ratio(line.cost_ns, floor.cost_ns)),
                self.ours(line).map_or_else(|| "-".into(), |ours| ratio(line.cost_ns, ours.cost_ns)),
            ]
        });
        let header = [
            "system",
            "bytes",
            "place",
            "lowest p50",
            "p50",
            "p99",
            "p99.9",
            "max",
            "1000/s",
            "syscalls",
            "switches",
            ": floor",
            ": kdbus-rt",
        ];
        table(header, rows)
    }
}

fn heading(kind: Kind) -> String {
    match kind {
        Kind::Call => "Call: a message there and back, both ends asleep meanwhile (µs)",
        Kind::CallSpin => "Call-spin: the same, both ends looking (µs)",
        Kind::Stream => "Stream: one way; latency of one message (µs), rate of many",
        Kind::Broadcast => "Broadcast-8: until the last of eight subscribers has it (µs)",
    }
    .into()
}

/// A table whose first column is text and whose others are numbers.
#[must_use]
pub fn table<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> String {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header);
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

/// A number of bytes for people.
#[must_use]
pub fn size(bytes: usize) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_multiple_of(1 << 20) => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_multiple_of(1 << 10) => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

fn micros(ns: u64) -> String {
    if ns < 10_000 { format!("{:.2}", ns as f64 / 1e3) } else { format!("{:.1}", ns as f64 / 1e3) }
}

fn thousands(per_second: f64) -> String {
    let thousands = per_second / 1e3;
    if thousands < 10.0 { format!("{thousands:.2}") } else { format!("{thousands:.0}") }
}

fn ratio(one: f64, other: f64) -> String {
    if other > 0.0 { format!("{:.2}", one / other) } else { "-".into() }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::case::Place;

    fn line(system: System, kind: Kind, medians: &[u64]) -> Line {
        let round = |ns: &u64| {
            let mut round = Histogram::new_with_bounds(1, 1_000_000, 3).unwrap();
            round.record(*ns).unwrap();
            round
        };
        let case = Case { system, kind, bytes: 64, place: Place::OneCpu };
        let rounds = medians.iter().map(round).collect();
        Line::of(&Measured { case, rounds, per_second: 1e6, syscalls: Some(4.0), switches: 2.0 }).unwrap()
    }

    fn report(cases: Vec<Line>) -> Report {
        Report { machine: Machine::current(), cases, scaling: Vec::new(), absent: Vec::new() }
    }

    #[test]
    fn the_least_disturbed_round_counts_and_the_worst_case_is_of_all() {
        let line = line(System::SlowPath, Kind::Call, &[900, 500, 700]);
        assert_eq!((line.p50_ns_lowest_round, line.p50_ns), (500, 700));
        assert!(line.max_ns >= 900);
    }

    #[test]
    fn ratios_are_to_the_floor_and_to_the_better_of_ours() {
        let slow = line(System::SlowPath, Kind::Call, &[1_000]);
        let floor = line(System::ShmFutex, Kind::Call, &[250]);
        let report = report(vec![slow.clone(), floor]);
        assert_eq!(report.ours(&slow).unwrap().case.system, System::SlowPath);
        let text = report.text(true);
        let row = text.lines().find(|row| row.contains("shm+futex")).unwrap();
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        assert_eq!(cells[cells.len() - 3..], ["1.00", "0.25", ""]);
    }

    #[test]
    fn a_case_has_the_fields_that_are_documented() {
        let json = serde_json::to_value(report(vec![line(System::ShmFutex, Kind::Stream, &[5])])).unwrap();
        let case = json["cases"][0].as_object().unwrap();
        let fields: Vec<_> = case.keys().map(String::as_str).collect();
        let mut expected = [
            "system",
            "kind",
            "bytes",
            "place",
            "p50_ns",
            "p50_ns_lowest_round",
            "p99_ns",
            "p999_ns",
            "max_ns",
            "per_second",
            "syscalls",
            "switches",
        ];
        expected.sort_unstable();
        assert_eq!(fields, expected);
        assert_eq!((&case["system"], &case["kind"]), (&"shm+futex".into(), &"stream".into()));
        assert!(json["machine"]["kernel"].is_string());
    }
}
