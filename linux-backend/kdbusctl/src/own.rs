//! `own`: a name held from the command line.

use clap::Args;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{ErrorReply, Hello, Kind, NameRule, Notification, Request, Rule, Standing};
use kdbus_linux::local::LocalTransport;
use serde_json::json;

use crate::bus::{self, Bus, Id, Name};
use crate::failure::{Context, Failure};
use crate::{Global, output, payload};

/// Cookie of the matches for changes of the name.
const NAME_CHANGES: u64 = 1;

/// Arguments of `own`.
#[derive(Debug, Args)]
pub(crate) struct Own {
    /// Well-known name
    name: Name,
    /// Wait for the name if it is taken
    #[arg(long)]
    queue: bool,
    /// Take the name over if its owner allows that
    #[arg(long)]
    replace: bool,
    /// Let others take the name over
    #[arg(long)]
    allow_replacement: bool,
    /// Answer each call with its own payload
    #[arg(long, conflicts_with = "answer")]
    echo: bool,
    /// Answer each call with this text [default: an empty answer]
    #[arg(long, value_name = "TEXT")]
    answer: Option<String>,
    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Show payloads as hex digits
    #[arg(long)]
    hex: bool,
}

impl Own {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(16 << 20))?;
        let mut owner = self.acquire(global, &bus)?;
        let mut left = self.count;
        let mut failed = None;
        let served = bus.serve_blocking(|request| {
            let result = self.handle(global, request, &mut owner);
            if request.kind() != Kind::Notification {
                left = left.map(|left| left.saturating_sub(1));
            }
            if let Err(failure) = result {
                failed = Some(failure);
            }
            if left == Some(0) || failed.is_some() {
                request.stop();
            }
            Ok(())
        });
        match failed {
            Some(failure) => Err(failure),
            None => served.during(format_args!("messages to {}", self.name)),
        }
    }

    /// Asks for the name and tells what came of it; the owner, if that is known from here.
    fn acquire(&self, global: &Global, bus: &Bus) -> Result<Option<u64>, Failure> {
        let name = self.name.get()?;
        let rule = NameRule { name: Some(name), old: None, new: None };
        for rule in [Rule::NameAdd(rule), Rule::NameChange(rule), Rule::NameRemove(rule)] {
            bus.add_match(NAME_CHANGES, &[rule]).during(format_args!("watching {}", self.name))?;
        }
        let chosen = [
            (self.queue, NameFlags::QUEUE),
            (self.replace, NameFlags::REPLACE_EXISTING),
            (self.allow_replacement, NameFlags::ALLOW_REPLACEMENT),
        ];
        let flags = chosen
            .iter()
            .filter(|(wanted, _)| *wanted)
            .fold(NameFlags::empty(), |all, (_, flag)| all | *flag);
        let acquired = bus.acquire(name, flags).during(&self.name)?;
        let queued = acquired.standing == Standing::Queued;
        let id = Id(bus.id());
        if global.json {
            let state = if queued { "queued" } else { "owner" };
            output::line(json!({ "name": self.name.to_string(), "id": bus.id(), "state": state }))?;
        } else if queued {
            output::line(format_args!("{} is taken: waiting for it as {id}", self.name))?;
        } else {
            output::line(format_args!("{} is owned by {id}", self.name))?;
        }
        Ok((!queued).then_some(bus.id()))
    }

    fn handle(
        &self,
        global: &Global,
        request: &mut Request<'_, LocalTransport>,
        owner: &mut Option<u64>,
    ) -> Result<(), Failure> {
        if let Some(notification) = request.notification() {
            return self.tell_change(global, &notification, owner);
        }
        let bytes = payload::of(request)?;
        // Answered before it is shown: the caller does not wait for a terminal.
        let answered = if self.echo {
            request.reply(&bytes)
        } else {
            request.reply(self.answer.as_deref().unwrap_or_default().as_bytes())
        };
        self.show(global, request, &bytes, answered)
    }

    fn show(
        &self,
        global: &Global,
        request: &Request<'_, LocalTransport>,
        bytes: &[u8],
        answered: Result<(), ErrorReply>,
    ) -> Result<(), Failure> {
        let unanswered = answered.err().map(|error| error.text().to_owned());
        if global.json {
            return output::line(json!({
                "kind": payload::kind(request.kind()),
                "sender": request.sender(),
                "cookie": request.cookie(),
                "priority": request.priority(),
                "payload": payload::value(bytes),
                "unanswered": unanswered,
            }));
        }
        output::line(payload::message(false, request, bytes, self.hex))?;
        match unanswered {
            Some(error) => output::line(format_args!("no answer to {}: {error}", Id(request.sender()))),
            None => Ok(()),
        }
    }

    /// Tells of a change of owner, unless that one was told of already.
    fn tell_change(
        &self,
        global: &Global,
        notification: &Notification<'_>,
        told: &mut Option<u64>,
    ) -> Result<(), Failure> {
        let owner = match notification {
            Notification::NameAdd { owner, .. } => Some(*owner),
            Notification::NameChange { new, .. } => Some(*new),
            Notification::NameRemove { .. } => None,
            _ => return Ok(()),
        };
        if std::mem::replace(told, owner) == owner {
            return Ok(());
        }
        if global.json {
            return output::line(json!({ "name": self.name.to_string(), "owner": owner }));
        }
        match owner {
            Some(owner) => output::line(format_args!("{} is owned by {}", self.name, Id(owner))),
            None => output::line(format_args!("{} is owned by nobody", self.name)),
        }
    }
}
