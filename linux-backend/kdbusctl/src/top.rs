//! `top`: connections in numbers, again and again, in a terminal of its own.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use clap::Args;
use kdbus_core::client::Hello;
use kdbus_linux::local::stats::Stats;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Row, Table};

use crate::Global;
use crate::bus::{self, Bus, span};
use crate::failure::Failure;
use crate::list::{self, POOL};
use crate::stats::{self, HEADER, Sample};

/// Arguments of `top`.
#[derive(Debug, Args)]
pub(crate) struct Top {
    /// Time between two looks, such as 500ms
    #[arg(long, value_parser = span, default_value = "1s")]
    interval: Duration,
}

/// What was seen last, and when.
struct View {
    samples: Vec<Sample>,
    seen: Vec<Stats>,
    at: Instant,
}

impl Top {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        if !io::stdout().is_terminal() || global.json {
            let text = "top draws on a terminal; use stats for a table or, with --json, for programs";
            return Err(Failure::usage(text));
        }
        let bus = bus::open(global, &Hello::new().pool_size(POOL))?;
        // Restored by the library when the program ends, however it does.
        let mut terminal = ratatui::try_init()?;
        let shown = self.show(&bus, &mut terminal);
        ratatui::try_restore()?;
        shown
    }

    fn show(&self, bus: &Bus, terminal: &mut DefaultTerminal) -> Result<(), Failure> {
        let path = bus.transport().handle().path().to_string();
        let mut view = View { samples: Vec::new(), seen: Vec::new(), at: Instant::now() };
        loop {
            view.look(bus)?;
            terminal.draw(|frame| {
                let [head, body] =
                    Layout::vertical([Constraint::Length(1), Constraint::Min(0)]).areas(frame.area());
                let title = format!("{path}: {} connections, busiest first; q ends", view.samples.len());
                frame.render_widget(Line::from(title).bold(), head);
                let widths = [7, 36, 11, 9, 6, 12, 12, 8, 8, 10, 11].map(Constraint::Length);
                let rows = view.samples.iter().map(|sample| Row::new(sample.row()).style(style(sample)));
                frame.render_widget(Table::new(rows, widths).header(Row::new(HEADER).underlined()), body);
            })?;
            if self.ended()? {
                return Ok(());
            }
        }
    }

    /// Waits for the next look; true if the user has seen enough.
    fn ended(&self) -> io::Result<bool> {
        let until = Instant::now() + self.interval;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if !event::poll(left)? {
                return Ok(false);
            }
            if let Event::Key(key) = event::read()? {
                let interrupt =
                    key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(true);
                }
            }
        }
    }
}

impl View {
    fn look(&mut self, bus: &Bus) -> Result<(), Failure> {
        let reports = stats::reports(bus, &list::titles(bus)?)?;
        let (now, then) = (Instant::now(), self.at);
        let before =
            |id: u64| self.seen.iter().find(|stats| stats.id == id).map(|stats| (*stats, now - then));
        let mut samples: Vec<_> = reports
            .iter()
            .map(|(title, report)| Sample {
                title: title.clone(),
                now: report.stats,
                before: before(report.stats.id),
            })
            .collect();
        let busy = |sample: &Sample| sample.rates().map_or(0, |(sent, received)| (sent + received) as u64);
        samples.sort_by_key(|sample| (std::cmp::Reverse(busy(sample)), sample.now.id));
        *self = Self { samples, seen: reports.iter().map(|(_, report)| report.stats).collect(), at: now };
        Ok(())
    }
}

/// Who has lost or refused something, or is nearly full, stands out.
fn style(sample: &Sample) -> Style {
    let Stats { queued, queue_depth, lost, refused, .. } = sample.now;
    if lost > 0 || refused > 0 {
        Style::new().red()
    } else if 2 * queued > queue_depth {
        Style::new().yellow()
    } else {
        Style::new()
    }
}
