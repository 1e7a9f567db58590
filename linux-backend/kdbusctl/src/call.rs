//! `call`: one call, one reply.

use std::time::Duration;

use clap::Args;
use kdbus_core::client::{CallError, Hello};
use serde_json::json;

use crate::bus::{self, Peer, span};
use crate::failure::{Context, Failure};
use crate::{Global, output, payload};

/// Arguments of `call`.
#[derive(Debug, Args)]
pub(crate) struct Call {
    /// Well-known name, or unique id (7 or :1.7)
    #[arg(value_name = "NAME|ID")]
    peer: Peer,
    /// Payload as text; - reads standard input
    payload: Option<String>,
    /// How long to wait for the reply, such as 2s or 500ms
    #[arg(long, default_value = "25s", value_parser = span)]
    timeout: Duration,
    /// The payload is hex digits, and so is the reply
    #[arg(long)]
    hex: bool,
    /// How urgent the call is; the lowest value is the most urgent
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i64,
}

impl Call {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bytes = payload::from_argument(self.payload.as_deref(), self.hex)?;
        let bus = bus::open(global, &Hello::new().pool_size(16 << 20))?;
        let message = self.peer.message()?.payload(&bytes).priority(self.priority);
        let answered = bus.call_blocking(&message, self.timeout);
        if global.json
            && let Err(CallError::Remote(error)) = &answered
        {
            output::line(json!({ "error": { "code": error.code(), "text": error.text() } }))?;
        }
        let reply = answered.during(format_args!("call to {}", self.peer))?;
        let bytes = payload::of(&reply)?;
        if global.json {
            return output::line(json!({ "sender": reply.sender(), "payload": payload::value(&bytes) }));
        }
        output::block(&payload::text(&bytes, self.hex))
    }
}
