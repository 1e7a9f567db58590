//! `list`: who is on the bus.

use std::collections::BTreeMap;

use clap::Args;
use kdbus_core::abi::{AttachFlags, HelloFlags, ListFlags, NameFlags};
use kdbus_core::client::Hello;
use serde::Serialize;
use serde_json::json;

use crate::bus::{self, Bus, Id};
use crate::failure::{Context, Failure};
use crate::text::{shown, user};
use crate::{Global, output};

/// Bytes of the pool: a listing of a thousand connections with long names fits.
pub(crate) const POOL: u64 = 4 << 20;

/// Arguments of `list`. Without a filter, everything is listed; this program's own connection never is.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only connections without names
    #[arg(long)]
    unique: bool,
    /// Only connections that own names
    #[arg(long)]
    names: bool,
    /// Only activators
    #[arg(long)]
    activators: bool,
    /// Only connections that wait for names
    #[arg(long)]
    queued: bool,
}

/// One connection with all of its names.
#[derive(Clone, Debug, Serialize)]
struct Entry {
    id: u64,
    kind: &'static str,
    pid: Option<u64>,
    process: Option<String>,
    uid: Option<u64>,
    user: Option<String>,
    description: Option<String>,
    names: Vec<Claim>,
}

/// One name of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Claim {
    name: String,
    state: &'static str,
    allow_replacement: bool,
}

impl List {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(POOL))?;
        let entries = self.collect(&bus)?;
        if global.json {
            return output::line(json!({ "connections": entries }));
        }
        let header = ["ID", "PID", "PROCESS", "USER", "DESCRIPTION", "NAMES"];
        output::line(output::table(header, entries.iter().map(Entry::row)))
    }

    fn flags(&self) -> ListFlags {
        let chosen = [
            (self.unique, ListFlags::UNIQUE),
            (self.names, ListFlags::NAMES),
            (self.activators, ListFlags::ACTIVATORS),
            (self.queued, ListFlags::QUEUED),
        ];
        let flags = chosen
            .iter()
            .filter(|(wanted, _)| *wanted)
            .fold(ListFlags::empty(), |all, (_, flag)| all | *flag);
        if flags.is_empty() { ListFlags::all() } else { flags }
    }

    fn collect(&self, bus: &Bus) -> Result<Vec<Entry>, Failure> {
        let flags = self.flags();
        let mut entries = BTreeMap::<u64, Entry>::new();
        // Chosen here and not by the bus, so that a connection is listed with all of its names or not at all.
        for peer in bus.list(ListFlags::all()).during("list")?.iter() {
            if peer.id == bus.id() {
                continue;
            }
            let entry = entries.entry(peer.id).or_insert_with(|| Entry::new(peer.id, peer.flags));
            entry.names.extend(peer.metadata.names().map(|(flags, name)| Claim::new(flags, name)));
        }
        let mut entries: Vec<_> = entries.into_values().filter(|entry| entry.passes(flags)).collect();
        for entry in &mut entries {
            entry.names.sort();
            entry.look_up(bus);
        }
        Ok(entries)
    }
}

/// Everybody but this program: their ids, and what people call them.
pub(crate) fn titles(bus: &Bus) -> Result<Vec<(u64, String)>, Failure> {
    let everybody = List { unique: false, names: false, activators: false, queued: false };
    Ok(everybody.collect(bus)?.iter().map(|entry| (entry.id, entry.title())).collect())
}

impl Entry {
    /// What people call it: a name, else its description, else its process.
    fn title(&self) -> String {
        let owned = self.names.iter().find(|claim| claim.state != "queued").map(|claim| &claim.name);
        let title = owned.or(self.description.as_ref()).or(self.process.as_ref());
        title.cloned().unwrap_or_else(|| format!("({})", self.kind))
    }

    const fn new(id: u64, flags: HelloFlags) -> Self {
        Self {
            id,
            kind: kind(flags),
            pid: None,
            process: None,
            uid: None,
            user: None,
            description: None,
            names: Vec::new(),
        }
    }

    /// Whether the entry is one of those asked for.
    fn passes(&self, flags: ListFlags) -> bool {
        let states = self.names.iter().map(|claim| match claim.state {
            "queued" => ListFlags::QUEUED,
            "activator" => ListFlags::ACTIVATORS,
            _ => ListFlags::NAMES,
        });
        let has = states.fold(ListFlags::empty(), |all, flag| all | flag);
        flags.intersects(if has.is_empty() { ListFlags::UNIQUE } else { has })
    }

    /// Fills in what the connection gives out about itself; one that left meanwhile stays as it was listed.
    fn look_up(&mut self, bus: &Bus) {
        let wanted =
            AttachFlags::CREDS | AttachFlags::PIDS | AttachFlags::PID_COMM | AttachFlags::CONN_DESCRIPTION;
        let Ok(info) = bus.conn_info(self.id, wanted) else { return };
        let metadata = info.metadata();
        self.pid = metadata.pids().map(|pids| pids.pid);
        self.process = metadata.process_name().map(shown);
        self.uid = metadata.creds().map(|creds| creds.uid);
        self.user = self.uid.map(user);
        self.description = metadata.description().map(|text| shown(text.as_bytes()));
    }

    fn row(&self) -> [String; 6] {
        let or_dash = |text: Option<&str>| text.unwrap_or("-").to_owned();
        let names: Vec<_> = self.names.iter().map(Claim::text).collect();
        let names = match (self.kind, names.is_empty()) {
            ("ordinary" | "activator", false) => names.join(", "),
            ("ordinary", true) => "-".into(),
            (kind, true) => format!("({kind})"),
            (kind, false) => format!("{} ({kind})", names.join(", ")),
        };
        [
            Id(self.id).to_string(),
            or_dash(self.pid.map(|pid| pid.to_string()).as_deref()),
            or_dash(self.process.as_deref()),
            or_dash(self.user.as_deref()),
            or_dash(self.description.as_deref()),
            names,
        ]
    }
}

impl Claim {
    fn new(flags: NameFlags, name: &str) -> Self {
        let state = if flags.contains(NameFlags::IN_QUEUE) {
            "queued"
        } else if flags.contains(NameFlags::ACTIVATOR) {
            "activator"
        } else {
            "owner"
        };
        Self { name: name.into(), state, allow_replacement: flags.contains(NameFlags::ALLOW_REPLACEMENT) }
    }

    fn text(&self) -> String {
        let replaceable = if self.allow_replacement { ", replaceable" } else { "" };
        format!("{} ({}{replaceable})", self.name, self.state)
    }
}

/// What a connection is, in the words of kdbus.
pub(crate) const fn kind(flags: HelloFlags) -> &'static str {
    if flags.contains(HelloFlags::ACTIVATOR) {
        "activator"
    } else if flags.contains(HelloFlags::POLICY_HOLDER) {
        "policy holder"
    } else if flags.contains(HelloFlags::MONITOR) {
        "monitor"
    } else {
        "ordinary"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(names: &[(NameFlags, &str)]) -> Entry {
        let mut entry = Entry::new(3, HelloFlags::empty());
        entry.names = names.iter().map(|(flags, name)| Claim::new(*flags, name)).collect();
        entry
    }

    #[test]
    fn filters_choose_connections_by_how_they_hold_names() {
        let owner = entry(&[(NameFlags::PRIMARY, "a.b"), (NameFlags::IN_QUEUE, "c.d")]);
        assert!(owner.passes(ListFlags::NAMES) && owner.passes(ListFlags::QUEUED));
        assert!(!owner.passes(ListFlags::UNIQUE) && !owner.passes(ListFlags::ACTIVATORS));
        assert!(entry(&[]).passes(ListFlags::UNIQUE) && !entry(&[]).passes(ListFlags::NAMES));
    }

    #[test]
    fn a_row_shows_each_name_with_its_state() {
        let replaceable = NameFlags::PRIMARY | NameFlags::ALLOW_REPLACEMENT;
        let row = entry(&[(replaceable, "a.b"), (NameFlags::IN_QUEUE, "c.d")]).row();
        assert_eq!(row, [":1.3", "-", "-", "-", "-", "a.b (owner, replaceable), c.d (queued)"]);
        assert_eq!(Entry::new(4, HelloFlags::MONITOR).row()[5], "(monitor)");
    }
}
