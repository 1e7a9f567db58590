//! `quota`: who occupies how much of whom.

use clap::Args;
use kdbus_core::client::Hello;
use kdbus_linux::local::stats::{Holder, Report};
use serde_json::{Value, json};

use crate::bus::{self, Id, Peer};
use crate::failure::Failure;
use crate::list::POOL;
use crate::text::user;
use crate::{Global, output, stats};

/// Arguments of `quota`.
#[derive(Debug, Args)]
pub(crate) struct Quota {
    /// Well-known names or unique ids [default: everybody whom you may look at]
    #[arg(value_name = "NAME|ID")]
    peers: Vec<Peer>,
}

impl Quota {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(POOL))?;
        let reports = stats::reports(&bus, &stats::chosen(&bus, &self.peers)?)?;
        if global.json {
            let rows: Vec<_> = reports.iter().map(|(title, report)| value(title, report)).collect();
            return output::line(json!({ "connections": rows }));
        }
        let header = ["ID", "WHO", "HELD BY", "MESSAGES", "BYTES", "DESCRIPTORS"];
        output::line(output::table(header, reports.iter().flat_map(|(title, report)| rows(title, report))))
    }
}

/// A row for each user whose messages wait, or one that says that nothing does.
fn rows(title: &str, report: &Report) -> Vec<[String; 6]> {
    let row = |by: String, messages: u64, size: u64, fds: u64| {
        let (messages, size, fds) = (messages.to_string(), size.to_string(), fds.to_string());
        [Id(report.stats.id).to_string(), title.to_owned(), by, messages, size, fds]
    };
    if report.holders.is_empty() {
        return vec![row("nobody".into(), 0, 0, 0)];
    }
    report.holders.iter().map(|held| row(name(held), held.messages, held.size, held.fds)).collect()
}

fn value(title: &str, report: &Report) -> Value {
    let holders: Vec<_> = report
        .holders
        .iter()
        .map(|held| {
            let uid = (held.uid < Holder::ENDPOINT).then_some(held.uid);
            json!({ "by": name(held), "uid": uid, "messages": held.messages, "bytes": held.size, "fds": held.fds })
        })
        .collect();
    json!({ "id": report.stats.id, "who": title, "pool_size": report.stats.pool_size, "holders": holders })
}

fn name(holder: &Holder) -> String {
    match holder.uid {
        Holder::BUS => "the bus".into(),
        Holder::ENDPOINT => "a custom endpoint".into(),
        uid => user(uid),
    }
}
