//! What a run comes to, for people and for programs.

use std::collections::BTreeMap;
use std::fmt::Write;

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};

use crate::check::{Check, Finding, Tally};
use crate::daemon::Gauges;
use crate::point::Point;
use crate::run::{MEMORY_SLACK, Settings};

/// What a run comes to.
#[derive(Clone, Debug)]
pub struct Report {
    seed: u64,
    clients: u32,
    /// Rounds that were played.
    pub rounds: u64,
    /// How long that took.
    pub seconds: f64,
    /// Client processes that were started.
    pub processes: u64,
    /// Clients that were stopped at random and continued.
    pub pauses: u64,
    /// Points: how many clients were to stop there, and how many did.
    pub points: BTreeMap<Point, [u64; 2]>,
    /// Clients that were killed, by where.
    pub kills: BTreeMap<Option<Point>, u64>,
    /// What the histories count up to.
    pub tally: Tally,
    /// Messages past the daemon, of those who came to rest.
    pub by_lane: u64,
    /// What the daemon had before anybody came, the first time that everybody had left, and the last time.
    pub gauges: [Gauges; 3],
    /// What must not be.
    pub findings: Vec<Finding>,
    /// What those did last who are involved in a finding.
    pub steps: Vec<String>,
}

impl Report {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            seed: settings.seed,
            clients: settings.clients,
            rounds: 0,
            seconds: 0.0,
            processes: 0,
            pauses: 0,
            points: BTreeMap::new(),
            kills: BTreeMap::new(),
            tally: Tally::default(),
            by_lane: 0,
            gauges: [Gauges { descriptors: 0, mappings: 0, memory: 0 }; 3],
            findings: Vec::new(),
            steps: Vec::new(),
        }
    }

    /// Adds what one round counts.
    pub(crate) fn add(&mut self, round: &Tally) {
        let tally = &mut self.tally;
        tally.operations += round.operations;
        tally.received += round.received;
        tally.copies += round.copies;
        tally.dropped += round.dropped;
        tally.lost += round.lost;
        tally.lanes += round.lanes;
        for (sort, [accepted, refused]) in &round.sent {
            let sum = tally.sent.entry(*sort).or_default();
            sum[0] += accepted;
            sum[1] += refused;
        }
        for (end, count) in &round.calls {
            *tally.calls.entry(*end).or_default() += count;
        }
        for (check, count) in &round.checks {
            *tally.checks.entry(*check).or_default() += count;
        }
    }

    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    fn killed(&self) -> u64 {
        self.kills.values().sum()
    }

    fn sent(&self) -> [u64; 2] {
        self.tally.sent.values().fold([0; 2], |sum, [a, b]| [sum[0] + a, sum[1] + b])
    }

    /// One line on how it goes.
    #[must_use]
    pub fn line(&self) -> String {
        let [sent, _] = self.sent();
        format!(
            "{:>4.0} s, round {}: {} operations, {sent} messages, {} killed, {} found",
            self.seconds,
            self.rounds,
            self.tally.operations,
            self.killed(),
            self.findings.len()
        )
    }

    /// The closing table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        for (what, count) in self.rows() {
            table.add_row([what, count]);
        }
        if let Some(first) = table.column_mut(0) {
            first.set_padding((0, 1));
        }
        table.trim_fmt()
    }

    fn rows(&self) -> Vec<(String, String)> {
        let tally = &self.tally;
        let [sent, refused] = self.sent();
        let mut rows = vec![
            ("seed".into(), self.seed.to_string()),
            ("clients at a time".into(), self.clients.to_string()),
            ("seconds".into(), format!("{:.0}", self.seconds)),
            ("rounds".into(), self.rounds.to_string()),
            ("processes".into(), self.processes.to_string()),
            ("operations".into(), tally.operations.to_string()),
            ("messages sent".into(), sent.to_string()),
            ("of them by lane, of those who came to rest".into(), self.by_lane.to_string()),
            ("lanes open at rest, over all rounds".into(), tally.lanes.to_string()),
            ("messages refused".into(), refused.to_string()),
            ("messages received".into(), tally.received.to_string()),
            ("messages dropped unread".into(), tally.dropped.to_string()),
            ("monitors' copies".into(), tally.copies.to_string()),
            ("losses reported".into(), tally.lost.to_string()),
            ("stopped and continued".into(), self.pauses.to_string()),
        ];
        for (end, count) in &tally.calls {
            rows.push((format!("call: {}", end.text()), count.to_string()));
        }
        for (point, count) in &self.kills {
            rows.push((format!("killed: {}", killed_where(*point)), count.to_string()));
        }
        for (point, [planned, reached]) in &self.points {
            rows.push((format!("point: {}", point.text()), format!("{reached} of {planned} came there")));
        }
        for check in Check::ALL {
            let count = tally.checks.get(check).copied().unwrap_or(0);
            let found = self.findings.iter().filter(|finding| finding.check == *check).count();
            let found = if found == 0 { String::new() } else { format!(", {found} found") };
            rows.push((format!("check: {}", check.text()), format!("{count}{found}")));
        }
        let [base, steady, last] = self.gauges;
        rows.push((
            "kdbusd's descriptors".into(),
            format!("{} before, {} after", base.descriptors, last.descriptors),
        ));
        rows.push((
            "kdbusd's mapped memory files".into(),
            format!("{} before, {} after", base.mappings, last.mappings),
        ));
        rows.push((
            "kdbusd's memory".into(),
            format!("{} KiB after the first round, {} KiB after the last", steady.memory, last.memory),
        ));
        rows
    }

    /// What was found, with the seed and the last steps of those involved; empty if nothing was.
    #[must_use]
    pub fn failure(&self) -> String {
        let mut text = String::new();
        for finding in &self.findings {
            let _ = writeln!(text, "seed {}: {}: {}", self.seed, finding.check.text(), finding.text);
        }
        for line in &self.steps {
            let _ = writeln!(text, "{line}");
        }
        text
    }

    /// The same for programs.
    #[must_use]
    pub fn json(&self) -> Value {
        let tally = &self.tally;
        let [base, steady, last] = self.gauges.map(|gauges| {
            json!({ "descriptors": gauges.descriptors, "mappings": gauges.mappings, "memory_kib": gauges.memory })
        });
        let sent: BTreeMap<_, _> = tally
            .sent
            .iter()
            .map(|(sort, [sent, refused])| (sort.text(), json!({ "sent": sent, "refused": refused })))
            .collect();
        let calls: BTreeMap<_, _> = tally.calls.iter().map(|(end, count)| (end.text(), count)).collect();
        let kills: BTreeMap<_, _> =
            self.kills.iter().map(|(point, count)| (killed_where(*point), count)).collect();
        let points: BTreeMap<_, _> = self
            .points
            .iter()
            .map(|(point, [planned, reached])| {
                (point.text(), json!({ "planned": planned, "reached": reached }))
            })
            .collect();
        let checks: BTreeMap<_, _> = Check::ALL
            .iter()
            .map(|check| (check.text(), tally.checks.get(check).copied().unwrap_or(0)))
            .collect();
        let findings: Vec<_> = self
            .findings
            .iter()
            .map(|finding| json!({ "check": finding.check.text(), "text": finding.text }))
            .collect();
        json!({
            "seed": self.seed, "clients": self.clients, "seconds": self.seconds, "rounds": self.rounds,
            "processes": self.processes, "operations": tally.operations, "messages": sent,
            "received": tally.received, "dropped": tally.dropped, "by_lane": self.by_lane, "lanes": tally.lanes, "copies": tally.copies, "lost": tally.lost,
            "pauses": self.pauses, "calls": calls, "points": points, "kills": kills, "checks": checks,
            "kdbusd": { "before": base, "after_first_round": steady, "after": last, "memory_slack_kib": MEMORY_SLACK },
            "findings": findings, "steps": self.steps,
        })
    }
}

fn killed_where(point: Option<Point>) -> &'static str {
    point.map_or("at random", Point::text)
}
