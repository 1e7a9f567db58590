//! `recv`: messages as they come, without an answer.

use clap::Args;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::Hello;
use serde_json::json;

use crate::bus::{self, Id, Name};
use crate::failure::{Context, Failure};
use crate::follow::Follow;
use crate::{Global, output, payload};

/// Arguments of `recv`. Calls are shown and not answered; `own` answers.
#[derive(Debug, Args)]
pub(crate) struct Recv {
    /// Own this well-known name while receiving [default: receive under the unique id that is printed]
    #[arg(value_name = "NAME")]
    name: Option<Name>,
    #[command(flatten)]
    follow: Follow,
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
        let mut left = self.follow.count;
        while left != Some(0) {
            let message = bus.recv_blocking(self.follow.deadline()).during("messages")?;
            if message.notification().is_some() {
                continue;
            }
            output::line(payload::message(global.json, &message, &payload::of(&message)?, self.follow.hex))?;
            left = left.map(|left| left - 1);
        }
        Ok(())
    }
}
