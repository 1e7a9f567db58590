//! `wait`: until a name has an owner.

use std::time::Duration;

use clap::Args;
use kdbus_core::client::{Deadline, Hello};
use serde_json::json;

use crate::bus::{self, Id, Name, span};
use crate::failure::{Context, Failure};
use crate::{Global, output};

/// Arguments of `wait`.
#[derive(Debug, Args)]
pub(crate) struct Wait {
    /// Well-known name
    name: Name,
    /// How long to wait, such as 2s or 500ms [default: for as long as it takes]
    #[arg(long, value_parser = span)]
    timeout: Option<Duration>,
}

impl Wait {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new())?;
        let deadline = self.timeout.map_or(Deadline::Never, Deadline::After);
        let owner = bus
            .wait_for_name_blocking(self.name.get()?, deadline)
            .during(format_args!("waiting for {}", self.name))?;
        if global.json {
            output::line(json!({ "name": self.name.to_string(), "owner": owner }))
        } else {
            output::line(Id(owner))
        }
    }
}
