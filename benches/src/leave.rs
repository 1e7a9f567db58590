//! What the end of a connection costs: it is one turn of the bus, however much the connection has.

use std::fmt::Debug;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Duration;

use clap::{Args, ValueEnum};
use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Connection, Hello, Message};
use kdbus_core::engine::Config;
use kdbus_sim::{ProcessId, Sim, SimTransport};
use serde::Serialize;

use crate::callgrind;
use crate::report::table;

/// The function that callgrind counts in.
const COUNTED: &str = "*measured_leave*";

/// Counts the instructions of the engine and the simulator for the end of a connection that has much.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Show the result as JSON
    #[arg(long)]
    json: bool,
    /// End one connection only and show nothing, for callgrind
    #[arg(long, hide = true, requires = "count")]
    only: Option<Kind>,
    /// How many of it that connection has
    #[arg(long, hide = true)]
    count: Option<u64>,
}

/// A client that keeps count of as many calls as one can have open.
type Client = Connection<SimTransport, 128, 8>;

/// What a connection has that its end has to clear away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Well-known names; one other connection hears of each.
    Names,
    /// Messages that it has not received.
    Messages,
    /// Calls that it has received and not answered; each caller is told.
    Calls,
    /// Matches without rules.
    Matches,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Names, Self::Messages, Self::Calls, Self::Matches];

    /// As many as one user can bring about at one connection: the limits of kdbus.
    const fn most(self) -> u64 {
        match self {
            Self::Names | Self::Messages => 256,
            Self::Calls => 128,
            Self::Matches => 4096,
        }
    }
}

#[derive(Debug, Serialize)]
struct Line {
    kind: Kind,
    count: u64,
    /// Instructions for the whole end.
    instructions: u64,
    /// Those beyond what a bare connection takes, for each of the things.
    each: u64,
}

/// Counts and prints.
///
/// # Errors
///
/// What failed.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    if let (Some(kind), Some(count)) = (arguments.only, arguments.count) {
        let (sim, process) = loaded(kind, count).map_err(io::Error::other)?;
        measured_leave(&sim, process);
        return Ok(());
    }
    if !callgrind::is_available() {
        return writeln!(io::stderr(), "skipped: there is no valgrind (apt install valgrind)");
    }
    let mut lines = Vec::new();
    for kind in Kind::ALL {
        let bare = count(kind, 0)?;
        let whole = count(kind, kind.most())?;
        let each = whole.saturating_sub(bare) / kind.most();
        lines.push(Line { kind, count: kind.most(), instructions: whole, each });
    }
    if arguments.json {
        return writeln!(io::stdout(), "{}", serde_json::json!({ "leave": lines }));
    }
    let rows = lines.iter().map(|line| {
        [
            format!("{:?}", line.kind).to_lowercase(),
            line.count.to_string(),
            line.instructions.to_string(),
            line.each.to_string(),
        ]
    });
    writeln!(io::stdout(), "{}", table(["end of a connection with", "of them", "instructions", "each"], rows))
}

fn count(kind: Kind, count: u64) -> io::Result<u64> {
    let kind = format!("{kind:?}").to_lowercase();
    callgrind::instructions(COUNTED, &["leave", "--only", &kind, "--count", &count.to_string()])
}

/// The end of everything that a process has, which is one connection.
#[inline(never)]
fn measured_leave(sim: &Sim, process: ProcessId) {
    sim.world_mut().kill(black_box(process));
}

/// A bus, and the process of a connection on it that has `count` things of a kind.
fn loaded(kind: Kind, count: u64) -> Result<(Sim, ProcessId), String> {
    let config = Config {
        names: 512,
        name_records: 512,
        matches: 4200,
        match_rules: 4200,
        match_buckets: 4096,
        ..Config::SMALL
    };
    let sim = Sim::new(&config, 1).map_err(said)?;
    let (owner, leaving, other) = {
        let mut world = sim.world_mut();
        (world.spawn_user("owner", 0, 0), world.spawn_user("leaving", 0, 0), world.spawn_user("other", 0, 0))
    };
    sim.make_bus(owner, "bus").map_err(said)?;
    let connect = |process| -> Result<Client, String> {
        let hello = Hello::new().pool_size(1 << 20);
        let transport = sim.open(process, "0-bus", "bus").map_err(said)?;
        Connection::with_capacities(transport, &hello).map_err(said)
    };
    let (client, hearer) = (connect(leaving)?, connect(other)?);
    hearer.add_match(1, &[]).map_err(said)?;
    for at in 0..count {
        match kind {
            Kind::Names => {
                let name = format!("org.example.n{at}");
                let name = WellKnownName::parse(&name).map_err(said)?;
                client.acquire(name, NameFlags::empty()).map_err(said)?;
            }
            Kind::Messages => drop(hearer.send(&Message::to(client.id()).payload(b"x")).map_err(said)?),
            Kind::Calls => {
                // Nobody waits for the answer, but the bus does.
                drop(hearer.call(&Message::to(client.id()), Duration::from_secs(60)));
                client.try_recv().map_err(said)?.ok_or("the call did not come")?;
            }
            Kind::Matches => client.add_match(at, &[]).map_err(said)?,
        }
        // What the names announced; the end is announced again.
        while hearer.try_recv().map_err(said)?.is_some() {}
    }
    // The end of the process closes it.
    std::mem::forget(client);
    std::mem::forget(hearer);
    Ok((sim, leaving))
}

fn said(error: impl Debug) -> String {
    format!("{error:?}")
}
