//! The picture of a run: where the latencies of each hop lie, as SVG.
//!
//! Above, one row for each hop with its percentiles; below, on the same logarithmic axis of time, how many messages took
//! how long, logarithmic too, since what matters to a real-time system are the few in the tail. Text is text in the
//! file, so no font of this machine is in it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use plotters::coord::Shift;
use plotters::coord::combinators::IntoLogRange;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::hop::HopRecorder;
use crate::report::{Report, duration};

const WIDTH: u32 = 1_040;
const TITLE: u32 = 76;
const ROW: u32 = 46;
const CHART: u32 = 430;

/// Room on the left and right of both charts, so that their axes of time lie above each other.
const LEFT: i32 = 190;
const RIGHT: i32 = 36;

/// Columns of the histogram in each decade of time.
const COLUMNS: f64 = 24.0;

/// The base of the logarithmic count, below one message so that a single one is seen.
const BASE: f64 = 0.6;

/// Colours that people who see fewer of them tell apart as well (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(225, 225, 225);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), DrawingAreaErrorKind<io::Error>>;

/// Draws `report` and returns the SVG.
///
/// # Errors
///
/// [`PlotError`] when the drawing library fails, which it does not for text in memory.
pub fn svg(report: &Report) -> Result<String, PlotError> {
    let mut text = String::new();
    let rows = report.hops().len().max(1) as u32 * ROW;
    {
        let root = SVGBackend::with_string(&mut text, (WIDTH, TITLE + rows + CHART)).into_drawing_area();
        let (title, below) = root.split_vertically(TITLE);
        let (percentiles, histogram) = below.split_vertically(rows);
        let span = Span::of(report.hops());
        root.fill(&WHITE)
            .and_then(|()| draw_title(&title, report))
            .and_then(|()| draw_percentiles(&percentiles, report.hops(), span))
            .and_then(|()| draw_histogram(&histogram, report.hops(), span))
            .and_then(|()| root.present())
            .map_err(|error| PlotError { path: None, why: error.to_string() })?;
    }
    Ok(text)
}

/// Looks for the directory of a picture that is drawn later at `path`.
///
/// # Errors
///
/// [`PlotError`] when there is none.
pub fn find_place(path: &Path) -> Result<(), PlotError> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    if directory.is_none_or(Path::is_dir) {
        return Ok(());
    }
    Err(PlotError { path: Some(path.to_owned()), why: "there is no such directory".to_owned() })
}

/// Draws `report` into the file at `path`, which is made or replaced.
///
/// # Errors
///
/// [`PlotError`] when the file cannot be written.
pub fn write_svg(report: &Report, path: &Path) -> Result<(), PlotError> {
    std::fs::write(path, svg(report)?)
        .map_err(|error| PlotError { path: Some(path.to_owned()), why: error.to_string() })
}

/// Why there is no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlotError {
    path: Option<PathBuf>,
    why: String,
}

impl fmt::Display for PlotError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => write!(f, "cannot write the picture to '{}': {}", path.display(), self.why),
            None => write!(f, "cannot draw the picture: {}", self.why),
        }
    }
}

impl std::error::Error for PlotError {}

/// The times that the picture shows, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: f64,
    to: f64,
}

impl Span {
    /// From a little before the shortest latency to a little after the longest or the last deadline that is near.
    fn of(hops: &[HopRecorder]) -> Self {
        let heard = || hops.iter().filter(|hop| hop.messages() > 0);
        let shortest = heard().map(|hop| hop.min_ns().max(1)).min().unwrap_or(1_000) as f64;
        let longest = heard().map(HopRecorder::max_ns).max().unwrap_or(1_000_000) as f64;
        let deadline = hops.iter().map(HopRecorder::deadline_ns).max().unwrap_or(0) as f64;
        // A deadline more than two decades away would squeeze what was measured into a corner.
        let to = if deadline <= longest * 100.0 { longest.max(deadline) } else { longest };
        // At least a decade, so that the axis has marks.
        Self { from: shortest / 1.5, to: (to * 1.5).max(shortest * 10.0) }
    }

    fn columns(self) -> i64 {
        ((self.to / self.from).log10() * COLUMNS).ceil() as i64
    }

    fn column(self, ns: f64) -> i64 {
        ((ns / self.from).log10() * COLUMNS).floor() as i64
    }

    fn start(self, column: i64) -> f64 {
        self.from * 10f64.powf(column as f64 / COLUMNS)
    }
}

fn colour(hop: usize) -> RGBColor {
    COLOURS[hop % COLOURS.len()]
}

fn text(size: i32, colour: RGBColor, from: HPos) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour).pos(Pos::new(from, VPos::Center))
}

fn draw_title(area: &Area<'_>, report: &Report) -> Drawn {
    let right = WIDTH as i32 - RIGHT;
    area.draw(&Text::new(report.title().to_owned(), (24, 26), text(20, INK, HPos::Left)))?;
    let what = "latency from send to receive";
    area.draw(&Text::new(what, (24, 54), text(14, INK, HPos::Left)))?;
    // The key of the marks in the rows.
    for (at, mark) in MARKS.iter().enumerate() {
        let x = right - (MARKS.len() - at) as i32 * 84;
        draw_mark(area, mark, (x, 54), INK)?;
        area.draw(&Text::new(mark.name, (x + 12, 54), text(14, INK, HPos::Left)))?;
    }
    Ok(())
}

/// One percentile of a row.
struct Mark {
    name: &'static str,
    quantile: f64,
    shape: Shape,
}

enum Shape {
    Disc,
    Square,
    Diamond,
    Bar,
}

const MARKS: [Mark; 4] = [
    Mark { name: "p50", quantile: 0.5, shape: Shape::Disc },
    Mark { name: "p99", quantile: 0.99, shape: Shape::Square },
    Mark { name: "p99.9", quantile: 0.999, shape: Shape::Diamond },
    Mark { name: "max", quantile: 1.0, shape: Shape::Bar },
];

fn draw_mark(area: &Area<'_>, mark: &Mark, (x, y): (i32, i32), colour: RGBColor) -> Drawn {
    match mark.shape {
        Shape::Disc => area.draw(&Circle::new((x, y), 5, colour.filled())),
        Shape::Square => area.draw(&Rectangle::new([(x - 4, y - 4), (x + 4, y + 4)], colour.filled())),
        Shape::Diamond => {
            area.draw(&Polygon::new(vec![(x, y - 6), (x + 6, y), (x, y + 6), (x - 6, y)], colour.filled()))
        }
        Shape::Bar => area.draw(&PathElement::new(vec![(x, y - 7), (x, y + 7)], colour.stroke_width(2))),
    }
}

/// As much of a name as there is room for beside its row.
fn short(name: &str) -> String {
    const ROOM: usize = 22;
    if name.chars().count() <= ROOM {
        return name.to_owned();
    }
    name.chars().take(ROOM - 1).chain(['…']).collect()
}

fn draw_percentiles(area: &Area<'_>, hops: &[HopRecorder], span: Span) -> Drawn {
    let (left, right) = (LEFT, WIDTH as i32 - RIGHT);
    let place = |ns: u64| {
        let part = (ns.max(1) as f64 / span.from).log10() / (span.to / span.from).log10();
        left + (part.clamp(0.0, 1.0) * f64::from(right - left)) as i32
    };
    for (at, hop) in hops.iter().enumerate() {
        let (top, colour) = (at as i32 * ROW as i32, colour(at));
        let (middle, line) = (top + 22, top + 32);
        area.draw(&Rectangle::new([(24, middle - 6), (36, middle + 6)], colour.filled()))?;
        area.draw(&Text::new(short(hop.name()), (44, middle), text(14, INK, HPos::Left)))?;
        let values = if hop.messages() == 0 {
            "no messages".to_owned()
        } else {
            let marks =
                MARKS.map(|mark| format!("{} {}", mark.name, duration(hop.latency_ns(mark.quantile))));
            format!("{} · {} messages, {} missed", marks.join(" · "), hop.messages(), hop.missed())
        };
        area.draw(&Text::new(values, (left, top + 12), text(13, INK, HPos::Left)))?;
        area.draw(&PathElement::new(vec![(left, line), (right, line)], FAINT))?;
        if hop.messages() > 0 {
            let ends = vec![(place(hop.min_ns()), line), (place(hop.max_ns()), line)];
            area.draw(&PathElement::new(ends, colour.stroke_width(2)))?;
            for mark in &MARKS {
                draw_mark(area, mark, (place(hop.latency_ns(mark.quantile)), line), colour)?;
            }
        }
    }
    Ok(())
}

fn draw_histogram(area: &Area<'_>, hops: &[HopRecorder], span: Span) -> Drawn {
    let columns: Vec<Vec<u64>> = hops.iter().map(|hop| counts(hop, span)).collect();
    let most = columns.iter().flatten().max().copied().unwrap_or(0).max(10) as f64;
    let mut chart = ChartBuilder::on(area)
        .margin_top(14)
        .margin_right(RIGHT)
        .margin_bottom(10)
        .margin_left(LEFT - 70)
        .y_label_area_size(70)
        .x_label_area_size(50)
        .build_cartesian_2d((span.from..span.to).log_scale(), (BASE..most * 1.6).log_scale())?;
    chart
        .configure_mesh()
        .bold_line_style(FAINT)
        .light_line_style(TRANSPARENT)
        .axis_style(INK)
        .x_desc("latency, unit at each mark (logarithmic)")
        .y_desc("messages in a column (logarithmic)")
        .axis_desc_style(("sans-serif", 14).into_font().color(&INK))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .x_label_formatter(&|ns| axis_time(*ns))
        .y_label_formatter(&|count| format!("{count:.0}"))
        .draw()?;
    let outlines: Vec<_> = columns.iter().map(|counts| outlines(counts, span)).collect();
    // All areas first, so that none dims the outline of another.
    for (at, outline) in
        outlines.iter().enumerate().flat_map(|(at, all)| all.iter().map(move |one| (at, one)))
    {
        chart.draw_series([Polygon::new(outline.clone(), colour(at).mix(0.22))])?;
    }
    for (at, outline) in
        outlines.iter().enumerate().flat_map(|(at, all)| all.iter().map(move |one| (at, one)))
    {
        chart.draw_series([PathElement::new(outline.clone(), colour(at).stroke_width(2))])?;
    }
    let mut drawn = Vec::new();
    for (hop, deadline) in hops.iter().map(HopRecorder::deadline_ns).enumerate() {
        let at = deadline as f64;
        if at < span.from || at > span.to || drawn.contains(&deadline) {
            continue;
        }
        drawn.push(deadline);
        let line = [(at, BASE), (at, most * 1.6)];
        chart.draw_series(DashedLineSeries::new(line, 6, 4, colour(hop).stroke_width(2)))?;
        let label = format!("deadline {}", duration(deadline));
        // On the side where there is room.
        let (side, from) =
            if at > (span.from * span.to).sqrt() { (0.97, HPos::Right) } else { (1.03, HPos::Left) };
        // Each a line lower than the one before it, for deadlines may be close to each other.
        let height = BASE * (most * 1.6 / BASE).powf(1.0 - 0.05 * drawn.len() as f64);
        chart.draw_series([Text::new(label, (at * side, height), text(13, colour(hop), from))])?;
    }
    Ok(())
}

fn axis_time(ns: f64) -> String {
    let (value, unit) = match ns {
        n if n < 1e3 => (n, "ns"),
        n if n < 1e6 => (n / 1e3, "µs"),
        n if n < 1e9 => (n / 1e6, "ms"),
        n => (n / 1e9, "s"),
    };
    format!("{value:.0} {unit}")
}

/// How many messages of `hop` fall into each column of the span.
fn counts(hop: &HopRecorder, span: Span) -> Vec<u64> {
    let mut counts = vec![0u64; span.columns().max(1) as usize];
    let last = counts.len() as i64 - 1;
    for (ns, count) in hop.latencies() {
        counts[span.column(ns as f64).clamp(0, last) as usize] += count;
    }
    counts
}

/// The outline of each run of columns that are not empty, from the base up, along the columns, and back.
fn outlines(counts: &[u64], span: Span) -> Vec<Vec<(f64, f64)>> {
    let mut outlines = Vec::new();
    let mut outline: Vec<(f64, f64)> = Vec::new();
    for (column, count) in counts.iter().copied().chain([0]).enumerate() {
        let (from, to) = (span.start(column as i64), span.start(column as i64 + 1).min(span.to));
        if count > 0 {
            if outline.is_empty() {
                outline.push((from, BASE));
            }
            outline.extend([(from, count as f64), (to, count as f64)]);
        } else if let Some((end, _)) = outline.last().copied() {
            outline.push((end, BASE));
            outlines.push(core::mem::take(&mut outline));
        }
    }
    outlines
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Latencies with a long tail around `centre`, the same each time.
    fn hop(name: &str, centre: u64, messages: u64) -> HopRecorder {
        let mut hop = HopRecorder::new(name, Duration::from_nanos(1_333_333));
        let mut state = centre;
        for _ in 0..messages {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let unit = (state >> 40) as f64 / (1u64 << 24) as f64;
            hop.record((centre as f64 * (1.0 + 0.15 / (1.0001 - unit).powf(0.6))) as u64);
        }
        hop
    }

    fn report() -> Report {
        let mut report = Report::new("built-in piece, 19 500 blocks, real time");
        report.push(hop("source → equaliser", 9_000, 19_500));
        report.push(hop("equaliser → sink", 14_000, 19_500));
        report.push(hop("controller → equaliser", 7_000, 110));
        report
    }

    #[test]
    fn picture_names_hops_axes_and_percentiles() {
        let svg = svg(&report()).unwrap();
        for text in [
            "source → equaliser",
            "equaliser → sink",
            "latency, unit at each mark (logarithmic)",
            "messages in a column (logarithmic)",
            "10 µs",
            "p99.9",
            "deadline 1.33 ms",
            "19500 messages",
        ] {
            assert!(svg.contains(text), "no '{text}'");
        }
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn text_of_others_is_escaped() {
        let mut report = Report::new("a < b & c");
        report.push(hop("<script>", 9_000, 10));
        let svg = svg(&report).unwrap();
        assert!(svg.contains("a &lt; b &amp; c") && !svg.contains("<script>"));
    }

    #[test]
    fn long_names_are_cut_to_their_room() {
        assert_eq!(short("controller → equaliser"), "controller → equaliser");
        assert_eq!(short("controller → equaliser 2"), "controller → equalise…");
    }

    #[test]
    fn extremes_are_drawn_without_nonsense() {
        let extremes: [&[u64]; 5] = [&[], &[0], &[1], &[u64::MAX], &[0, u64::MAX]];
        for latencies in extremes {
            let mut report = Report::new("extreme");
            let mut hop = HopRecorder::new("hop", Duration::ZERO);
            latencies.iter().for_each(|latency| hop.record(*latency));
            report.push(hop);
            let svg = svg(&report).unwrap();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{latencies:?}");
        }
        assert!(svg(&Report::new("nothing")).is_ok());
    }

    #[test]
    fn every_message_is_in_a_column() {
        for (centre, messages) in [(9_000, 19_500), (3, 100), (40_000_000_000, 50)] {
            let hops = [hop("hop", centre, messages)];
            let span = Span::of(&hops);
            assert_eq!(counts(&hops[0], span).iter().sum::<u64>(), messages);
        }
    }

    #[test]
    fn gaps_part_the_outline() {
        let span = Span { from: 1_000.0, to: 10_000.0 };
        let found = outlines(&[0, 3, 4, 0, 0, 7], span);
        assert_eq!(found.len(), 2);
        assert_eq!(
            found[0].iter().map(|point| point.1).collect::<Vec<_>>(),
            [BASE, 3.0, 3.0, 4.0, 4.0, BASE]
        );
        assert_eq!(found[1].iter().map(|point| point.1).collect::<Vec<_>>(), [BASE, 7.0, 7.0, BASE]);
    }

    #[test]
    fn a_place_that_cannot_be_written_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let (there, nowhere) = (directory.path().join("plot.svg"), directory.path().join("none/plot.svg"));
        find_place(&there).and_then(|()| write_svg(&report(), &there)).unwrap();
        for error in [find_place(&nowhere), write_svg(&report(), &nowhere)] {
            assert!(error.unwrap_err().to_string().contains("plot.svg'"));
        }
        find_place(Path::new("plot.svg")).unwrap();
    }
}
