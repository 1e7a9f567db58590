//! The latencies of all contenders as a picture: how many of the round trips took longer than how long.

use std::io;
use std::path::Path;

use plotters::chart::SeriesLabelPosition;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::contender::Kind;
use crate::rounds::Measured;

/// Colours that people who see fewer of them tell apart as well (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(86, 180, 233),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
];

/// Size of one chart.
const CHART: (u32, u32) = (560, 380);
/// Columns of the picture.
const COLUMNS: usize = 2;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws each section, one placement and size, as a chart and writes them into one SVG file.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write(sections: &[Vec<Measured>], path: &Path) -> io::Result<()> {
    let rows = sections.len().div_ceil(COLUMNS).max(1);
    let mut text = String::new();
    {
        let size = (CHART.0 * COLUMNS as u32, CHART.1 * rows as u32);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE).map_err(io::Error::other)?;
        for (area, section) in root.split_evenly((rows, COLUMNS)).iter().zip(sections) {
            chart(area, section).map_err(io::Error::other)?;
        }
        root.present().map_err(io::Error::other)?;
    }
    std::fs::write(path, text)
}

fn chart(area: &Area<'_>, section: &[Measured]) -> Result<(), DrawingAreaErrorKind<io::Error>> {
    let Some(first) = section.first() else { return Ok(()) };
    let curves: Vec<_> = section.iter().filter_map(|one| Some((one.kind, curve(one)?))).collect();
    let times = || curves.iter().flat_map(|(_, points)| points.iter().map(|(us, _)| *us));
    let from = times().fold(f64::INFINITY, f64::min) / 1.3;
    let to = times().fold(0.0, f64::max) * 1.3;
    let least =
        curves.iter().flat_map(|(_, points)| points.iter().map(|(_, part)| *part)).fold(1.0, f64::min);
    let title = format!("{} bytes there and back, {}", first.size, first.placement.name());
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(58)
        .build_cartesian_2d((from..to.max(from * 2.0)).log_scale(), (least..1.0).log_scale())?;
    chart
        .configure_mesh()
        .x_desc("round trip, µs")
        .y_desc("part that took longer")
        .x_label_formatter(&|us| format!("{us}"))
        .y_label_formatter(&|part| format!("{part}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (kind, points) in curves {
        let colour = Kind::ALL.iter().position(|other| *other == kind).map_or(BLACK, |at| COLOURS[at]);
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(kind.name())
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .draw()
}

/// Points of the curve of the best round: microseconds, and the part of round trips that took longer.
fn curve(one: &Measured) -> Option<Vec<(f64, f64)>> {
    let best = one.best().filter(|best| !best.is_empty())?;
    let total = best.len() as f64;
    let mut left = best.len();
    let mut points = Vec::new();
    for value in best.iter_recorded() {
        points.push((value.value_iterated_to() as f64 / 1e3, left as f64 / total));
        left -= value.count_since_last_iteration();
    }
    Some(points)
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;
    use crate::placement::Placement;

    #[test]
    fn a_curve_falls_from_all_round_trips_to_the_last_one() {
        let mut round = Histogram::<u64>::new(3).unwrap();
        for ns in [1_000, 1_000, 2_000, 4_000] {
            round.record(ns).unwrap();
        }
        let one = Measured {
            kind: Kind::Pipe,
            placement: Placement::One(0),
            size: 64,
            rounds: vec![round],
            switches: 0.0,
        };
        let parts: Vec<_> = curve(&one).unwrap().iter().map(|(_, part)| *part).collect();
        assert_eq!(parts, [1.0, 0.5, 0.25]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.svg");
        write(&[vec![one]], &path).unwrap();
        assert!(std::fs::read_to_string(path).unwrap().contains("pipes"));
    }
}
