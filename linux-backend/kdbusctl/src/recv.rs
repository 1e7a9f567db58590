//! `recv`: messages as they come, without an answer.

use std::time::Duration;

use clap::Args;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Deadline, Hello};
use serde_json::json;

use crate::bus::{self, Id, Name, span};
use crate::failure::{Context, Failure};
use crate::{Global, output, payload};

/// Arguments of `recv`. Calls are shown and not answered; `own` answers.
#[derive(Debug, Args)]
pub(crate) struct Recv {
    /// Own this well-known name while receiving [default: receive under the unique id that is printed]
    #[arg(value_name = "NAME")]
    name: Option<Name>,
    /// Stop after this many messages
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Give up after this time without a message, such as 2s or 500ms [default: never]
    #[arg(long, value_parser = span)]
    timeout: Option<Duration>,
    /// Show payloads as hex digits
    #[arg(long)]
    hex: bool,
}

impl Recv {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(16 << 20))?;
        if let Some(name) = &self.name {
            bus.acquire(name.get()?, NameFlags::empty()).during(name)?;
        }
        if global.json {
            output::line(json!({ "receiving": self.name.as_ref().map(Name::to_string), "id": bus.id() }))?;
        } else {
            output::line(format_args!("receiving as {}", Id(bus.id())))?;
        }
        let mut left = self.count;
        while left != Some(0) {
            let deadline = self.timeout.map_or(Deadline::Never, Deadline::After);
            let message = bus.recv_blocking(deadline).during("messages")?;
            if message.notification().is_some() {
                continue;
            }
            output::line(payload::message(global.json, &message, &payload::of(&message)?, self.hex))?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}
