//! What commands share that show messages as they come.

use std::time::Duration;

use clap::Args;
use kdbus_core::client::Deadline;
use serde_json::json;

use crate::bus::span;
use crate::failure::Failure;
use crate::{Global, output};

/// How long to go on, and how to show payloads.
#[derive(Debug, Args)]
pub(crate) struct Follow {
    /// Stop after this many
    #[arg(long, value_name = "N")]
    pub(crate) count: Option<u64>,
    /// Give up after this time without any, such as 2s or 500ms [default: never]
    #[arg(long, value_parser = span)]
    timeout: Option<Duration>,
    /// Show payloads as hex digits
    #[arg(long)]
    pub(crate) hex: bool,
}

impl Follow {
    /// Until when to wait for the next one.
    pub(crate) fn deadline(&self) -> Deadline {
        self.timeout.map_or(Deadline::Never, Deadline::After)
    }
}

/// Losses are part of the result: whoever counts or looks for something has to know.
pub(crate) fn tell_lost(global: &Global, what: &str, lost: u64) -> Result<(), Failure> {
    match (lost, global.json) {
        (0, _) => Ok(()),
        (_, true) => output::line(json!({ "lost": lost })),
        (_, false) => {
            output::line(format_args!("{lost} {what} lost: they came faster than they could be shown"))
        }
    }
}
