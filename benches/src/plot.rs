//! Pictures: how latencies are distributed, and how cost grows with payload and with numbers.

use std::io;
use std::path::Path;

use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::case::{Kind, Place, System};
use crate::report::{Report, size};
use crate::rounds::Measured;

/// Colours that people who see fewer of them tell apart as well (Okabe and Ito), for ours and for others.
const COLOURS: [RGBColor; System::ALL.len()] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(0, 60, 110),
    RGBColor(120, 140, 230),
    RGBColor(0, 0, 0),
    RGBColor(70, 70, 70),
    RGBColor(130, 130, 130),
    RGBColor(0, 158, 115),
    RGBColor(120, 200, 160),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(150, 70, 20),
    RGBColor(204, 121, 167),
    RGBColor(230, 180, 210),
];

/// The pictures of a run, and what they show.
pub const FILES: [(&str, &str); 3] = [
    ("latency.svg", "distribution of latencies"),
    ("payload.svg", "cost by size of the payload"),
    ("scaling.svg", "cost by number"),
];

/// Size of one chart.
const CHART: (u32, u32) = (560, 380);
/// Columns of a picture.
const COLUMNS: usize = 2;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type DrawError = DrawingAreaErrorKind<io::Error>;

/// A chart: lines over two logarithmic axes.
struct Chart {
    title: String,
    x: &'static str,
    y: &'static str,
    x_label: fn(&f64) -> String,
    lines: Vec<Named>,
}

/// A line with its name and colour.
type Named = (String, RGBColor, Vec<(f64, f64)>);

/// Writes all pictures of a run into `dir`: `latency.svg`, `payload.svg`, `scaling.svg`.
///
/// # Errors
///
/// If they cannot be written.
pub fn write(groups: &[Vec<Measured>], report: &Report, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    let latency: Vec<_> = groups.iter().filter_map(|group| latencies(group)).collect();
    draw(&latency, &dir.join(FILES[0].0))?;
    let both = [Place::OneCpu, Place::TwoCpus];
    let payload: Vec<_> = Kind::ALL
        .iter()
        .flat_map(|kind| both.map(|place| (*kind, place)))
        .filter_map(|(kind, place)| costs(groups, kind, place))
        .collect();
    draw(&payload, &dir.join(FILES[1].0))?;
    draw(&growth(report), &dir.join(FILES[2].0))
}

/// How many of the messages of a group took longer than how long.
fn latencies(group: &[Measured]) -> Option<Chart> {
    let case = group.first()?.case;
    let lines = group.iter().filter_map(|one| Some(line(one.case.system, curve(one)?)));
    Some(Chart {
        title: format!("{}, {}, {}", case.kind.name(), size(case.bytes), case.place.name()),
        x: "latency, µs",
        y: "part that took longer",
        x_label: |x| format!("{x}"),
        lines: lines.collect(),
    })
}

/// Points of the curve of the best round: microseconds, and the part of messages that took longer.
fn curve(one: &Measured) -> Option<Vec<(f64, f64)>> {
    let best = one.best()?;
    let total = best.len() as f64;
    let mut left = total;
    let mut points = Vec::new();
    for step in best.iter_recorded() {
        points.push((step.value_iterated_to() as f64 / 1e3, left / total));
        left -= step.count_at_value() as f64;
    }
    Some(points)
}

/// What a message costs by its size.
fn costs(groups: &[Vec<Measured>], kind: Kind, place: Place) -> Option<Chart> {
    let of_this = |one: &&Measured| one.case.kind == kind && one.case.place == place;
    let all: Vec<_> = groups.iter().flatten().filter(of_this).collect();
    let lines: Vec<_> = System::ALL
        .into_iter()
        .map(|system| {
            let mine = all.iter().filter(|one| one.case.system == system);
            line(system, mine.map(|one| (one.case.bytes as f64, one.cost_ns() / 1e3)).collect())
        })
        .filter(|(.., points)| !points.is_empty())
        .collect();
    (!lines.is_empty()).then(|| Chart {
        title: format!("{}, {}", kind.name(), place.name()),
        x: "bytes of a message",
        y: "cost of a message, µs",
        x_label: |x| size(*x as usize),
        lines,
    })
}

/// How cost grows with numbers.
fn growth(report: &Report) -> Vec<Chart> {
    let mut charts: Vec<Chart> = Vec::new();
    for step in &report.scaling {
        let title = step.what.name();
        let point = (step.count as f64, step.p50_ns as f64 / 1e3);
        match charts.last_mut().filter(|chart| chart.title == title) {
            Some(chart) => chart.lines.iter_mut().for_each(|(.., points)| points.push(point)),
            None => charts.push(Chart {
                title: title.into(),
                x: "number",
                y: "µs",
                x_label: |x| format!("{x}"),
                lines: vec![line(step.system, vec![point])],
            }),
        }
    }
    charts
}

fn line(system: System, points: Vec<(f64, f64)>) -> Named {
    let at = System::ALL.iter().position(|other| *other == system).unwrap_or(0);
    (system.name().into(), COLOURS[at], points)
}

fn draw(charts: &[Chart], path: &Path) -> io::Result<()> {
    if charts.is_empty() {
        return Ok(());
    }
    let rows = charts.len().div_ceil(COLUMNS);
    let mut text = String::new();
    {
        let size = (CHART.0 * COLUMNS as u32, CHART.1 * rows as u32);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(io::Error::other)?;
        for (area, chart) in root.split_evenly((rows, COLUMNS)).iter().zip(charts) {
            chart.draw(area).map_err(io::Error::other)?;
        }
        root.present().map_err(io::Error::other)?;
    }
    std::fs::write(path, text)
}

impl Chart {
    fn draw(&self, area: &Area<'_>) -> Result<(), DrawError> {
        let points = || self.lines.iter().flat_map(|(.., points)| points);
        let bounds = |of: fn(&(f64, f64)) -> f64| {
            let least = points().map(of).fold(f64::INFINITY, f64::min);
            let most = points().map(of).fold(0.0, f64::max);
            // One that is flat gets room too.
            (least / 1.3)..(most * 1.3).max(least * 2.0)
        };
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 16))
            .margin(12)
            .x_label_area_size(36)
            .y_label_area_size(58)
            .build_cartesian_2d(bounds(|point| point.0).log_scale(), bounds(|point| point.1).log_scale())?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .y_desc(self.y)
            .x_label_formatter(&self.x_label)
            .y_label_formatter(&|y| format!("{y}"))
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (name, colour, points) in &self.lines {
            let style = colour.stroke_width(2);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(name)
                .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], style));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.85))
            .draw()
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::case::Case;
    use crate::machine::Machine;
    use crate::scale::{Step, What};

    fn measured(bytes: usize) -> Measured {
        let mut round = Histogram::<u64>::new(3).unwrap();
        for ns in [1_000, 1_000, 2_000, 4_000] {
            round.record(ns).unwrap();
        }
        let case = Case { system: System::ShmFutex, kind: Kind::Call, bytes, place: Place::OneCpu };
        Measured { case, rounds: vec![round], per_second: 1e6, syscalls: None, switches: 0.0 }
    }

    #[test]
    fn a_curve_falls_from_all_messages_to_the_last_one() {
        let parts: Vec<_> = curve(&measured(64)).unwrap().iter().map(|(_, part)| *part).collect();
        assert_eq!(parts, [1.0, 0.5, 0.25]);
    }

    #[test]
    fn every_picture_shows_what_was_measured() {
        let step = |count| Step { what: What::Names, count, system: System::SlowPath, p50_ns: 5_000 };
        let report = Report {
            machine: Machine::current(),
            cases: Vec::new(),
            scaling: vec![step(1), step(4096)],
            absent: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        write(&[vec![measured(64)], vec![measured(1024)]], &report, dir.path()).unwrap();
        let picture = |name| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(picture("latency.svg").contains("call, 1 KiB, one-cpu"));
        assert!(picture("payload.svg").contains("shm+futex"));
        assert!(picture("scaling.svg").contains("names, round trip"));
    }
}
