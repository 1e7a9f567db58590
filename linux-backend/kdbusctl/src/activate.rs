//! `activate`: a name held for a service that starts with its first message.

use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::Args;
use kdbus_core::client::{Hello, Transport};
use serde_json::json;

use crate::bus::{self, Id, Name};
use crate::failure::{Context, Exit, Failure};
use crate::{Global, output};

/// A command that ends sooner than this with messages waiting has failed to serve them.
const SOON: Duration = Duration::from_secs(1);
/// How often in a row that may happen.
const TRIES: u32 = 5;

/// Arguments of `activate`.
///
/// Messages to the name wait until the command owns it, which it finds out nothing of: it just acquires the name. When it
/// ends, the name and what still waits come back, and the next message starts it again.
#[derive(Debug, Args)]
pub(crate) struct Activate {
    /// Well-known name
    name: Name,
    /// The service, which acquires the name; KDBUS_ROOT and KDBUS_BUS lead it to the bus
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    /// Stop when the command has ended this often
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

impl Activate {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new().pool_size(16 << 20).activator(self.name.get()?))?;
        let id = Id(bus.id());
        if global.json {
            output::line(json!({ "activator": self.name.to_string(), "id": bus.id() }))?;
        } else {
            output::line(format_args!("{} is held by {id} until {} serves it", self.name, self.command[0]))?;
        }
        let (mut left, mut failed) = (self.count, 0);
        while left != Some(0) {
            while bus.peek().during("messages")?.is_none() {
                bus.transport().wait(None).map_err(|error| {
                    Failure::new(Exit::NoBus, format!("waiting for a message to {}: {error}", self.name))
                })?;
            }
            let began = Instant::now();
            let status = self.start(global)?;
            self.tell(global, status)?;
            let unserved = began.elapsed() < SOON && bus.peek().during("messages")?.is_some();
            failed = if unserved { failed + 1 } else { 0 };
            if failed == TRIES {
                let text = format!(
                    "{} ended {TRIES} times at once without serving {}; see why it does not acquire the name",
                    self.command[0], self.name
                );
                return Err(Failure::new(Exit::Failed, text));
            }
            left = left.map(|left| left - 1);
        }
        Ok(())
    }

    /// Runs the service to its end.
    fn start(&self, global: &Global) -> Result<ExitStatus, Failure> {
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err(Failure::usage("a command after --"));
        };
        let mut command = Command::new(program);
        command.args(arguments);
        if let Some(root) = &global.root {
            command.env("KDBUS_ROOT", root);
        }
        if let Some(bus) = &global.bus {
            command.env("KDBUS_BUS", bus);
        }
        command.status().map_err(|error| {
            Failure::new(Exit::Failed, format!("starting {program}: {error}; give a program after --"))
        })
    }

    fn tell(&self, global: &Global, status: ExitStatus) -> Result<(), Failure> {
        if global.json {
            output::line(json!({ "name": self.name.to_string(), "ended": status.code() }))
        } else {
            output::line(format_args!("{} ended: {status}", self.command[0]))
        }
    }
}
