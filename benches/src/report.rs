//! What was measured, as a table and as JSON.

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::contender::Kind;
use crate::rounds::Measured;

/// One line of a report. Times are of the round with the lowest median.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// The contender.
    pub contender: Kind,
    /// Median, in nanoseconds.
    pub p50_ns: u64,
    /// 99 of 100 were at most this, in nanoseconds.
    pub p99_ns: u64,
    /// 999 of 1,000 were at most this, in nanoseconds.
    pub p999_ns: u64,
    /// The longest of all rounds, in nanoseconds.
    pub max_ns: u64,
    /// Context switches for a round trip.
    pub switches: f64,
    /// The median of this one divided by that of the reference.
    pub ratio: Option<f64>,
}

/// One placement and size.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// Where the processes ran.
    pub placement: &'static str,
    /// Bytes of the message, each way.
    pub bytes: usize,
    /// Round trips a round, and rounds.
    pub trips: u32,
    /// Rounds.
    pub rounds: u32,
    /// The contender whose ratio is 1.
    pub reference: Option<Kind>,
    /// One line for each contender.
    pub lines: Vec<Line>,
}

impl Section {
    /// Sums up what was measured in one placement with one size; `None` if nothing was.
    #[must_use]
    pub fn of(measured: &[Measured]) -> Option<Self> {
        let first = measured.first()?;
        let reference = measured.iter().find(|one| one.kind == Kind::Kdbusd);
        let lines = measured.iter().filter_map(|one| {
            let best = one.best()?;
            Some(Line {
                contender: one.kind,
                p50_ns: best.value_at_quantile(0.5),
                p99_ns: best.value_at_quantile(0.99),
                p999_ns: best.value_at_quantile(0.999),
                max_ns: one.rounds.iter().map(hdrhistogram::Histogram::max).max()?,
                switches: one.switches,
                ratio: reference.map(|other| one.median() as f64 / other.median().max(1) as f64),
            })
        });
        Some(Self {
            placement: first.placement.name(),
            bytes: first.size,
            trips: first.rounds.first().map_or(0, |round| round.len() as u32),
            rounds: first.rounds.len() as u32,
            reference: reference.map(|one| one.kind),
            lines: lines.collect(),
        })
    }

    /// The section for people.
    #[must_use]
    pub fn text(&self) -> String {
        let title = format!(
            "{} bytes there and back, {} (µs; {} rounds of {})",
            self.bytes, self.placement, self.rounds, self.trips
        );
        let rows = self.lines.iter().map(|line| {
            [
                line.contender.name().to_owned(),
                micros(line.p50_ns),
                micros(line.p99_ns),
                micros(line.p999_ns),
                micros(line.max_ns),
                format!("{:.1}", line.switches),
                line.ratio.map_or_else(|| "-".into(), |ratio| format!("{ratio:.2}")),
            ]
        });
        format!("{title}\n{}", table(["", "p50", "p99", "p99.9", "max", "switches", "p50 : kdbusd"], rows))
    }
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

fn micros(ns: u64) -> String {
    format!("{:.1}", ns as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::placement::Placement;

    fn measured(kind: Kind, medians: &[u64]) -> Measured {
        let round = |ns: &u64| {
            let mut round = Histogram::new(3).unwrap();
            round.record(*ns).unwrap();
            round
        };
        let rounds = medians.iter().map(round).collect();
        Measured { kind, placement: Placement::One(0), size: 64, rounds, switches: 2.0 }
    }

    #[test]
    fn the_least_disturbed_round_counts_and_the_worst_case_is_of_all() {
        let section =
            Section::of(&[measured(Kind::Kdbusd, &[900, 500]), measured(Kind::Pipe, &[250, 300])]).unwrap();
        assert_eq!((section.lines[0].p50_ns, section.lines[1].p50_ns), (500, 250));
        assert!(section.lines[0].max_ns >= 900);
        assert_eq!(section.lines[1].ratio, Some(0.5));
        assert!(section.text().contains("pipes"));
    }

    #[test]
    fn without_the_reference_there_are_no_ratios() {
        let section = Section::of(&[measured(Kind::Pipe, &[250])]).unwrap();
        assert_eq!((section.reference, section.lines[0].ratio), (None, None));
        assert!(Section::of(&[]).is_none());
    }
}
