//! `match`: what a match lets through, as it comes.

use clap::{Args, ValueEnum};
use kdbus_core::client::{Delivery, Hello, Kind, NameRule, Notification, Rule, TopicPattern};
use kdbus_linux::local::LocalTransport;
use serde_json::{Value, json};

use crate::bus::{self, Id, Name, Peer};
use crate::failure::{Context, Failure};
use crate::follow::{self, Follow};
use crate::{Global, output, payload};

/// What `--help` says at its end.
const TOGETHER: &str = "\
Without any rule everything passes that is sent to all. --topic and --from narrow each other down; --names and --ids, for what the \
bus announces, stand alone.";

/// Arguments of `match`.
#[derive(Debug, Args)]
#[command(after_help = TOGETHER)]
pub(crate) struct Match {
    /// Signals about this topic, or all below one (org.example.Mixer.*)
    #[arg(long, value_name = "TOPIC|PREFIX.*")]
    topic: Option<String>,
    /// Signals of this connection, or of whoever owns this name
    #[arg(long, value_name = "NAME|ID")]
    from: Option<Peer>,
    /// Announcements that names get, lose or change their owner
    #[arg(long, value_enum, conflicts_with_all = ["topic", "from"])]
    names: Option<Change>,
    /// Only this name, with --names
    #[arg(long, requires = "names")]
    name: Option<Name>,
    /// Announcements that connections come or go
    #[arg(long, value_enum, conflicts_with_all = ["topic", "from", "names"])]
    ids: Option<Presence>,
    /// Only this connection (7 or :1.7), with --ids
    #[arg(long, requires = "ids", value_parser = id)]
    id: Option<u64>,
    #[command(flatten)]
    follow: Follow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Change {
    Added,
    Removed,
    Changed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Presence {
    Added,
    Removed,
}

impl Match {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let mut rules = Vec::new();
        if let Some(topic) = &self.topic {
            let pattern =
                TopicPattern::parse(topic).map_err(|error| Failure::usage(format!("{topic}: {error}")))?;
            rules.push(Rule::Topic(pattern));
        }
        match &self.from {
            Some(Peer::Id(id)) => rules.push(Rule::Sender(*id)),
            Some(Peer::Name(name)) => rules.push(Rule::SenderName(name.get()?)),
            None => {}
        }
        let name = NameRule { name: self.name.as_ref().map(Name::get).transpose()?, ..NameRule::default() };
        rules.extend(self.names.map(|change| match change {
            Change::Added => Rule::NameAdd(name),
            Change::Removed => Rule::NameRemove(name),
            Change::Changed => Rule::NameChange(name),
        }));
        rules.extend(self.ids.map(|presence| match presence {
            Presence::Added => Rule::IdAdd(self.id),
            Presence::Removed => Rule::IdRemove(self.id),
        }));
        let bus = bus::open(global, &Hello::new().pool_size(4 << 20))?;
        bus.add_match(1, &rules).during("the match")?;
        let count = rules.len();
        if global.json {
            output::line(json!({ "matching": count, "id": bus.id() }))?;
        } else {
            output::line(format_args!("a match of {count} rules is set as {}", Id(bus.id())))?;
        }
        let mut left = self.follow.count;
        while left != Some(0) {
            let message = bus.recv_blocking(self.follow.deadline()).during("what matches")?;
            follow::tell_lost(global, "messages", bus.take_lost())?;
            // What is sent to this connection alone has passed no match.
            if !matches!(message.kind(), Kind::Signal | Kind::Notification) {
                continue;
            }
            self.show(global, &message)?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }

    fn show(&self, global: &Global, message: &Delivery<'_, LocalTransport>) -> Result<(), Failure> {
        if let Some(notification) = message.notification() {
            let (what, name, old, new) = parts(&notification);
            if global.json {
                return output::line(json!({ "announced": what, "name": name, "old": old, "new": new }));
            }
            let id = |id: Option<u64>| id.map_or_else(|| "nobody".to_owned(), |id| Id(id).to_string());
            let name = name.map_or_else(String::new, |name| format!(" {name}"));
            return output::line(format_args!("{what}{name}: {} -> {}", id(old), id(new)));
        }
        let bytes = payload::of(message)?;
        if global.json {
            let payload: Value = payload::value(&bytes);
            return output::line(json!({ "kind": "signal", "sender": message.sender(), "payload": payload }));
        }
        let text = payload::text(&bytes, self.follow.hex);
        output::line(format_args!("{} {}", Id(message.sender()), text.trim_end()))
    }
}

fn id(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(Peer::Id(id)) => Ok(id),
        _ => Err("give an id such as 7 or :1.7".into()),
    }
}

/// What is announced: its word, the name, who was there and who is now.
fn parts<'a>(notification: &Notification<'a>) -> (&'static str, Option<&'a str>, Option<u64>, Option<u64>) {
    match *notification {
        Notification::NameAdd { name, owner, .. } => ("name added", Some(name), None, Some(owner)),
        Notification::NameRemove { name, owner, .. } => ("name removed", Some(name), Some(owner), None),
        Notification::NameChange { name, old, new, .. } => ("name changed", Some(name), Some(old), Some(new)),
        Notification::IdAdd { id, .. } => ("connection added", None, None, Some(id)),
        Notification::IdRemove { id, .. } => ("connection removed", None, Some(id), None),
        _ => ("call ended", None, None, None),
    }
}
