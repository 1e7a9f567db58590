//! `listen`: signals as they come.

use std::time::Duration;

use clap::Args;
use kdbus_core::client::{Deadline, Delivery, Hello, Kind, Topic, TopicPattern};
use kdbus_linux::local::LocalTransport;
use serde_json::json;

use crate::bus::{self, Id, span};
use crate::failure::{Context, Failure};
use crate::{Global, output, payload};

/// Arguments of `listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Topic (org.example.Mixer.level), all topics below one (org.example.Mixer.*), or * for every signal
    #[arg(value_name = "TOPIC|PREFIX.*")]
    topic: String,
    /// Stop after this many signals
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Give up after this time without a signal, such as 2s or 500ms [default: never]
    #[arg(long, value_parser = span)]
    timeout: Option<Duration>,
    /// Show payloads as hex digits
    #[arg(long)]
    hex: bool,
}

impl Listen {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let pattern = TopicPattern::parse(&self.topic)
            .map_err(|error| Failure::usage(format!("{}: {error}", self.topic)))?;
        let bus = bus::open(global, &Hello::new().pool_size(4 << 20))?;
        bus.subscribe(pattern).during(format_args!("subscription to {}", self.topic))?;
        if global.json {
            output::line(json!({ "listening": self.topic, "id": bus.id() }))?;
        } else {
            output::line(format_args!("listening to {} as {}", self.topic, Id(bus.id())))?;
        }
        // A filter lets a foreign signal pass now and then; with the whole topic at hand that is seen.
        let exact = Topic::parse(&self.topic).ok();
        let mut left = self.count;
        while left != Some(0) {
            let deadline = self.timeout.map_or(Deadline::Never, Deadline::After);
            let signal = bus.recv_blocking(deadline).during(format_args!("signals about {}", self.topic))?;
            let lost = bus.take_lost();
            if lost > 0 {
                tell_lost(global, lost)?;
            }
            if signal.kind() == Kind::Signal && exact.is_none_or(|topic| signal.is_about(topic)) {
                self.show(global, &signal)?;
                left = left.map(|left| left - 1);
            }
        }
        Ok(())
    }

    fn show(&self, global: &Global, signal: &Delivery<'_, LocalTransport>) -> Result<(), Failure> {
        let bytes = payload::of(signal)?;
        if global.json {
            return output::line(json!({
                "sender": signal.sender(),
                "hash": format!("{:016x}", signal.cookie()),
                "priority": signal.priority(),
                "payload": payload::value(&bytes),
            }));
        }
        output::line(format_args!("{} {}", Id(signal.sender()), payload::text(&bytes, self.hex).trim_end()))
    }
}

/// Losses are part of the result: whoever counts signals has to know.
fn tell_lost(global: &Global, lost: u64) -> Result<(), Failure> {
    if global.json {
        output::line(json!({ "lost": lost }))
    } else {
        output::line(format_args!("{lost} signals lost: they came faster than they could be shown"))
    }
}
