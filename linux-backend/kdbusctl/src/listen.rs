//! `listen`: signals as they come.

use clap::Args;
use kdbus_core::client::{Delivery, Hello, Kind, Topic, TopicPattern};
use kdbus_linux::local::LocalTransport;
use serde_json::json;

use crate::bus::{self, Id};
use crate::failure::{Context, Failure};
use crate::follow::{self, Follow};
use crate::{Global, output, payload};

/// Arguments of `listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Topic (org.example.Mixer.level), all topics below one (org.example.Mixer.*), or * for every signal
    #[arg(value_name = "TOPIC|PREFIX.*")]
    topic: String,
    #[command(flatten)]
    follow: Follow,
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
        let mut left = self.follow.count;
        while left != Some(0) {
            let signal = bus
                .recv_blocking(self.follow.deadline())
                .during(format_args!("signals about {}", self.topic))?;
            follow::tell_lost(global, "signals", bus.take_lost())?;
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
        output::line(format_args!(
            "{} {}",
            Id(signal.sender()),
            payload::text(&bytes, self.follow.hex).trim_end()
        ))
    }
}
