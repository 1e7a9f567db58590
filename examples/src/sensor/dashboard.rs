//! What is measured, live on a terminal.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use ratatui::crossterm::event::{self, Event, KeyCode, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, List, Row, Table};
use ratatui::{DefaultTerminal, Frame};

use super::panel::View;
use super::plan::Plan;
use crate::report::duration;

/// Views that the plot goes back: a minute.
const KEPT: usize = 600;

/// Draws views until it is dropped, which restores the terminal.
#[derive(Debug)]
pub struct Dashboard {
    terminal: DefaultTerminal,
    picture: Picture,
}

impl Dashboard {
    /// Takes the terminal that standard output is.
    ///
    /// # Errors
    ///
    /// What the terminal said.
    pub fn new(plan: &Plan) -> io::Result<Self> {
        Ok(Self { terminal: ratatui::try_init()?, picture: Picture::new(plan) })
    }

    /// Draws what is to be seen now.
    ///
    /// # Errors
    ///
    /// What the terminal said.
    pub fn show(&mut self, view: &View) -> io::Result<()> {
        self.picture.push(view);
        self.terminal.draw(|frame| self.picture.draw(frame)).map(drop)
    }

    /// Looks at the keys that were pressed; true if the user wants to end.
    ///
    /// # Errors
    ///
    /// What the terminal said.
    pub fn is_to_end(&mut self) -> io::Result<bool> {
        let mut is_to_end = false;
        while event::poll(Duration::ZERO)? {
            let Event::Key(key) = event::read()? else { continue };
            let is_interrupt =
                key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
            match key.code {
                KeyCode::Down => self.picture.choose(1),
                KeyCode::Up => self.picture.choose(self.picture.plan.channels.len().saturating_sub(1)),
                KeyCode::Char('q') | KeyCode::Esc => is_to_end = true,
                _ => is_to_end |= is_interrupt,
            }
        }
        Ok(is_to_end)
    }
}

impl Drop for Dashboard {
    fn drop(&mut self) {
        let _ = ratatui::try_restore();
    }
}

/// What is on the terminal: a table of channels, the plot of one, and what happened last.
#[derive(Clone, Debug)]
struct Picture {
    plan: Plan,
    view: View,
    /// Time in seconds and value of each channel.
    history: Vec<VecDeque<(f64, f64)>>,
    /// Time and readings of each channel a while ago, for the rate.
    before: VecDeque<(u64, Vec<u64>)>,
    chosen: usize,
}

impl Picture {
    fn new(plan: &Plan) -> Self {
        let history = vec![VecDeque::with_capacity(KEPT); plan.channels.len()];
        Self { plan: plan.clone(), view: View::default(), history, before: VecDeque::new(), chosen: 0 }
    }

    fn choose(&mut self, step: usize) {
        self.chosen = (self.chosen + step) % self.plan.channels.len().max(1);
    }

    fn push(&mut self, view: &View) {
        self.view.clone_from(view);
        for (seen, history) in view.channels.iter().zip(&mut self.history) {
            if history.len() == KEPT {
                history.pop_front();
            }
            history.push_back((view.at_ns as f64 / 1e9, seen.value.0 as f64 / 1e6));
        }
        // Two seconds back, however often views come.
        while self.before.front().is_some_and(|(at, _)| view.at_ns.saturating_sub(*at) > 2_000_000_000) {
            self.before.pop_front();
        }
        self.before.push_back((view.at_ns, view.channels.iter().map(|seen| seen.count).collect()));
    }

    fn rate(&self, channel: usize) -> f64 {
        let (Some((then, counts)), Some(seen)) = (self.before.front(), self.view.channels.get(channel))
        else {
            return 0.0;
        };
        let seconds = self.view.at_ns.saturating_sub(*then) as f64 / 1e9;
        let readings = seen.count.saturating_sub(counts.get(channel).copied().unwrap_or(0));
        if seconds > 0.0 { readings as f64 / seconds } else { 0.0 }
    }

    fn draw(&self, frame: &mut Frame<'_>) {
        let rows = self.plan.channels.len() as u16 + 2;
        let [head, table, plot, foot] = Layout::vertical([
            Constraint::Length(2),
            Constraint::Length(rows),
            Constraint::Min(6),
            Constraint::Length(5),
        ])
        .areas(frame.area());
        let view = &self.view;
        let (answers, alarms) = (view.answer_ns, view.alarm_ns);
        let times = format!(
            "answer p50 {}, max {}, late {}   alarm p50 {}, max {}   lost {}",
            duration(answers.0),
            duration(answers.1),
            view.unanswered,
            duration(alarms.0),
            duration(alarms.1),
            view.lost
        );
        let title = format!("{:.1} s   ↑ ↓ choose, q ends", view.at_ns as f64 / 1e9);
        frame.render_widget(
            ratatui::text::Text::from(vec![Line::from(title).bold(), Line::from(times)]),
            head,
        );
        frame.render_widget(self.table(), table);
        self.draw_plot(frame, plot);
        let alarms = view.alarms.iter().rev().map(|alarm| {
            let channel = usize::try_from(alarm.channel).ok().and_then(|at| self.plan.channels.get(at));
            let (name, unit) = channel.map_or(("", ""), |channel| (&channel.name, &channel.unit));
            let word = if alarm.is_raised { "alarm" } else { "clear" };
            let at = alarm.at_ns as f64 / 1e9;
            let line = Line::from(format!("{at:8.3} s  {word}  {name}  {} {unit}", alarm.value));
            if alarm.is_raised { line.red() } else { line }
        });
        frame.render_widget(List::new(alarms).block(Block::bordered().title("alarms")), foot);
    }

    fn table(&self) -> Table<'_> {
        let rows = self.plan.channels.iter().enumerate().map(|(at, channel)| {
            let seen = self.view.channels.get(at).copied().unwrap_or_default();
            let value = if seen.count == 0 { "–".to_owned() } else { seen.value.to_string() };
            let mark = if at == self.chosen { "▸" } else { "" };
            let style = match (seen.is_alarming, seen.is_stale) {
                (true, _) => Style::new().red().bold(),
                (false, true) => Style::new().dim(),
                (false, false) => Style::new(),
            };
            let age = if seen.count == 0 { "–".to_owned() } else { duration(seen.age_ns) };
            let state = match (seen.is_alarming, seen.is_stale) {
                (true, _) => "ALARM",
                (false, true) => "stale",
                (false, false) => "",
            };
            Row::new([
                mark.to_owned(),
                channel.name.clone(),
                format!("{value:>12}"),
                channel.unit.clone(),
                format!("{:>7.1}", self.rate(at)),
                format!("{age:>8}"),
                state.to_owned(),
            ])
            .style(style)
        });
        let widths = [1, 24, 12, 6, 7, 8, 6].map(Constraint::Length);
        let header = ["", "channel", "       value", "unit", "   1/s", "     age", ""];
        Table::new(rows, widths).header(Row::new(header).underlined())
    }

    fn draw_plot(&self, frame: &mut Frame<'_>, area: ratatui::layout::Rect) {
        let (Some(channel), Some(history)) =
            (self.plan.channels.get(self.chosen), self.history.get(self.chosen))
        else {
            return;
        };
        let points: Vec<_> = history.iter().copied().collect();
        let (Some(first), Some(last)) = (points.first(), points.last()) else { return };
        let (mut low, mut high) =
            points.iter().fold((f64::MAX, f64::MIN), |(low, high), (_, y)| (low.min(*y), high.max(*y)));
        // A value that stays the same is a line in the middle.
        if high - low < 1e-3 {
            (low, high) = (low - 0.5, high + 0.5);
        }
        let limits = self.plan.thresholds.iter().filter(|threshold| threshold.channel == channel.name);
        let limits: Vec<_> = limits
            .map(|threshold| {
                let limit = threshold.limit.0 as f64 / 1e6;
                [(first.0, limit), (last.0, limit)]
            })
            .collect();
        let line = |data| Dataset::default().marker(Marker::Braille).graph_type(GraphType::Line).data(data);
        let mut sets = vec![line(&points).cyan()];
        sets.extend(limits.iter().map(|limit| line(limit).red()));
        let times = [format!("{:.0} s", first.0), format!("{:.0} s", last.0)];
        let values = [format!("{low:.1}"), format!("{high:.1}")];
        let title = format!("{} [{}]", channel.name, channel.unit);
        let chart = Chart::new(sets)
            .block(Block::bordered().title(title))
            .x_axis(Axis::default().bounds([first.0, last.0.max(first.0 + 0.1)]).labels(times))
            .y_axis(Axis::default().bounds([low, high]).labels(values));
        frame.render_widget(chart, area);
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::super::channel::{Channel, Value};
    use super::super::panel::{Seen, SeenAlarm};
    use super::*;

    #[test]
    fn values_rates_ages_and_alarms_are_on_the_terminal() {
        let plan = Plan {
            channels: vec![Channel::new("warmth", "°C", 1), Channel::new("load", "%", 1)],
            thresholds: vec!["warmth:30".parse().unwrap()],
            rate: 10,
            ticks: 100,
            answer_ns: 1,
            burst: None,
        };
        let mut picture = Picture::new(&plan);
        for second in 1..=3_u64 {
            let seen =
                Seen { value: Value(21_500_000), age_ns: 7_000_000, count: 10 * second, ..Seen::default() };
            let alarm = SeenAlarm { is_raised: true, value: Value(31_000_000), ..SeenAlarm::default() };
            picture.push(&View {
                at_ns: second * 1_000_000_000,
                channels: vec![seen, Seen { is_alarming: true, ..seen }],
                alarms: vec![alarm],
                answer_ns: (50_000, 90_000),
                ..View::default()
            });
        }
        let mut terminal = Terminal::new(TestBackend::new(80, 30)).unwrap();
        terminal.draw(|frame| picture.draw(frame)).unwrap();
        let text = terminal.backend().to_string();
        for part in
            ["warmth", "21.500", "10.0", "7.00 ms", "ALARM", "31.000", "answer p50 50.0 µs", "load", "3 s"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        picture.choose(1);
        terminal.draw(|frame| picture.draw(frame)).unwrap();
        assert!(terminal.backend().to_string().contains("load [%]"));
        picture.choose(1);
        assert_eq!(picture.chosen, 0);
    }
}
