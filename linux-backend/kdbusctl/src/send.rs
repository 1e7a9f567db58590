//! `send`: one message, no reply.

use clap::Args;
use kdbus_core::client::Hello;
use serde_json::json;

use crate::bus::{self, Peer};
use crate::failure::{Context, Failure};
use crate::{Global, output, payload};

/// Arguments of `send`.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Well-known name, or unique id (7 or :1.7)
    #[arg(value_name = "NAME|ID")]
    peer: Peer,
    /// Payload as text; - reads standard input
    payload: Option<String>,
    /// How urgent the message is; the lowest value is the most urgent
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i64,
    /// The payload is hex digits
    #[arg(long)]
    hex: bool,
}

impl Send {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bytes = payload::from_argument(self.payload.as_deref(), self.hex)?;
        let bus = bus::open(global, &Hello::new())?;
        let message = self.peer.message()?.payload(&bytes).priority(self.priority);
        let cookie = bus.send(&message).during(format_args!("message to {}", self.peer))?;
        if global.json { output::line(json!({ "id": bus.id(), "cookie": cookie })) } else { Ok(()) }
    }
}
