//! `stats`: connections in numbers, out of kdbusd's counters.

use std::time::{Duration, Instant};

use clap::Args;
use kdbus_core::client::Hello;
use kdbus_linux::local::stats::{Report, Stats};
use serde_json::{Value, json};

use crate::bus::{self, Bus, Id, Peer, span};
use crate::failure::Failure;
use crate::list::{self, POOL};
use crate::{Global, output, pairs};

/// Arguments of `stats`. Nobody is listened to: kdbusd counts anyway. What goes by lane goes past kdbusd, and is in no
/// number here but those of `--lanes`.
#[derive(Debug, Args)]
pub(crate) struct StatsOf {
    /// Well-known names or unique ids [default: everybody whom you may look at]
    #[arg(value_name = "NAME|ID")]
    peers: Vec<Peer>,
    /// Span over which rates are measured, such as 500ms; 0 shows counters only
    #[arg(long, value_parser = span, default_value = "1s")]
    interval: Duration,
    /// Show which way messages take instead, for each pair of peers that one of those is part of: by a lane past kdbusd, or
    /// through kdbusd, and why. What a lane has carried is by the word of its two ends, since it was given to the sender
    #[arg(long)]
    lanes: bool,
}

/// Heads of the columns of [`Sample::row`].
pub(crate) const HEADER: [&str; 11] =
    ["ID", "WHO", "QUEUE", "POOL", "CALLS", "SENT", "RECEIVED", "LOST", "REFUSED", "SENT/S", "RECEIVED/S"];

/// One connection at two times.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// Who it is.
    pub(crate) title: String,
    /// What it counts now.
    pub(crate) now: Stats,
    /// What it counted before, and how long ago that was.
    pub(crate) before: Option<(Stats, Duration)>,
}

impl StatsOf {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(POOL))?;
        let chosen = chosen(&bus, &self.peers)?;
        if self.lanes {
            let everybody = if self.peers.is_empty() { chosen.clone() } else { list::titles(&bus)? };
            return pairs::run(&bus, global.json, &everybody, &chosen);
        }
        let first = reports(&bus, &chosen)?;
        let began = Instant::now();
        let second = if self.interval.is_zero() {
            None
        } else {
            std::thread::sleep(self.interval);
            Some(reports(&bus, &chosen)?)
        };
        let span = began.elapsed();
        let samples: Vec<_> = match second {
            None => {
                first.into_iter().map(|(title, now)| Sample { title, now: now.stats, before: None }).collect()
            }
            Some(second) => second
                .into_iter()
                .map(|(title, now)| {
                    let before = first.iter().find(|(_, report)| report.stats.id == now.stats.id);
                    let before = before.map(|(_, report)| (report.stats, span));
                    Sample { title, now: now.stats, before }
                })
                .collect(),
        };
        if global.json {
            let rows: Vec<_> = samples.iter().map(Sample::value).collect();
            return output::line(json!({ "connections": rows }));
        }
        output::line(table(&samples))
    }
}

/// Those asked for, or everybody: their ids and titles.
pub(crate) fn chosen(bus: &Bus, peers: &[Peer]) -> Result<Vec<(u64, String)>, Failure> {
    if peers.is_empty() {
        return list::titles(bus);
    }
    let mut chosen = Vec::new();
    for peer in peers {
        let info = peer.info(bus, kdbus_core::abi::AttachFlags::empty())?;
        chosen.push((info.id(), peer.to_string()));
    }
    Ok(chosen)
}

/// What kdbusd counts for each of them. One that left meanwhile is left out, as is one of another user unless
/// it is the only one.
pub(crate) fn reports(bus: &Bus, chosen: &[(u64, String)]) -> Result<Vec<(String, Report)>, Failure> {
    use kdbus_core::abi::Errno;
    use kdbus_core::client::Failure as Refusal;

    use crate::failure::Exit;

    let handle = bus.transport().handle();
    let mut reports = Vec::new();
    for (id, title) in chosen {
        match handle.stats(*id) {
            Ok(report) => reports.push((title.clone(), report)),
            Err(Refusal::Refused(Errno::EPERM)) if chosen.len() == 1 => {
                let text = format!(
                    "{title} belongs to another user: ask as that user, as the owner of the bus or as root"
                );
                return Err(Failure::new(Exit::Refused, text));
            }
            Err(Refusal::Refused(Errno::ENXIO)) if chosen.len() == 1 => {
                return Err(Failure::new(Exit::NobodyThere, format!("{title} has left the bus")));
            }
            Err(Refusal::Refused(Errno::EPERM | Errno::ENXIO)) => {}
            Err(error) => return Err(Failure::new(Exit::NoBus, format!("numbers of {title}: {error}"))),
        }
    }
    Ok(reports)
}

/// Samples as a table; rates where there are two of them.
pub(crate) fn table(samples: &[Sample]) -> String {
    output::table(HEADER, samples.iter().map(Sample::row))
}

impl Sample {
    /// Messages it sent and received in a second, where that was measured.
    pub(crate) fn rates(&self) -> Option<(f64, f64)> {
        let (before, span) = self.before.as_ref()?;
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / span.as_secs_f64();
        Some((rate(self.now.sent, before.sent), rate(self.now.received, before.received)))
    }

    pub(crate) fn row(&self) -> [String; 11] {
        let Self { title, now, .. } = self;
        let rates = self.rates();
        let rate = |rate: Option<f64>| rate.map_or_else(|| "-".into(), |rate| format!("{rate:.0}"));
        [
            Id(now.id).to_string(),
            title.clone(),
            format!("{}/{}", now.queued, now.queue_depth),
            format!("{:.1} %", 100.0 * now.pool_used as f64 / now.pool_size.max(1) as f64),
            now.calls.to_string(),
            now.sent.to_string(),
            now.received.to_string(),
            now.lost.to_string(),
            now.refused.to_string(),
            rate(rates.map(|(sent, _)| sent)),
            rate(rates.map(|(_, received)| received)),
        ]
    }

    fn value(&self) -> Value {
        let Self { title, now, .. } = self;
        let rates = self.rates();
        json!({
            "id": now.id, "who": title,
            "queued": now.queued, "queue_depth": now.queue_depth,
            "pool_size": now.pool_size, "pool_used": now.pool_used, "slices": now.slices,
            "calls": now.calls, "sent": now.sent, "received": now.received,
            "lost": now.lost, "refused": now.refused,
            "sent_per_second": rates.map(|(sent, _)| sent),
            "received_per_second": rates.map(|(_, received)| received),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_differences_over_time() {
        let before = Stats { id: 3, sent: 10, received: 4, ..Stats::default() };
        let now = Stats { sent: 30, received: 4, queued: 2, queue_depth: 64, ..before };
        let mut sample =
            Sample { title: "a.b".into(), now, before: Some((before, Duration::from_millis(500))) };
        assert_eq!(sample.rates(), Some((40.0, 0.0)));
        sample.before = None;
        assert_eq!((sample.rates(), sample.row()[9].as_str()), (None, "-"));
        assert_eq!((sample.row()[2].as_str(), sample.row()[3].as_str()), ("2/64", "0.0 %"));
    }
}
