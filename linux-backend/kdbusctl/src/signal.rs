//! `signal`: one broadcast.

use clap::Args;
use kdbus_core::client::{Hello, Topic};
use serde_json::json;

use crate::failure::{Context, Failure};
use crate::{Global, bus, output, payload};

/// Arguments of `signal`.
#[derive(Debug, Args)]
pub(crate) struct Signal {
    /// What the signal is about, such as org.example.Mixer.level
    topic: String,
    /// Payload as text; - reads standard input
    payload: Option<String>,
    /// The payload is hex digits
    #[arg(long)]
    hex: bool,
}

impl Signal {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let topic =
            Topic::parse(&self.topic).map_err(|error| Failure::usage(format!("{}: {error}", self.topic)))?;
        let bytes = payload::from_argument(self.payload.as_deref(), self.hex)?;
        let bus = bus::open(global, &Hello::new())?;
        bus.signal(topic, &bytes).during(format_args!("signal {topic}"))?;
        if global.json { output::line(json!({ "id": bus.id(), "topic": self.topic })) } else { Ok(()) }
    }
}
