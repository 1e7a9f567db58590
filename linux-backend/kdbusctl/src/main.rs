//! Looks at and talks to a kdbus from the command line.
//!
//! One file per subcommand; what they share is how a bus is opened ([`bus`]), how a result is shown ([`output`])
//! and how a failure ends the program ([`failure`]).

mod activate;
mod bus;
mod bus_info;
mod call;
mod complete;
mod endpoint;
mod failure;
mod follow;
mod info;
mod list;
mod listen;
mod matching;
mod monitor;
mod output;
mod own;
mod pairs;
mod payload;
mod policy;
mod quota;
mod recv;
mod send;
mod signal;
mod stats;
mod text;
mod top;
mod wait;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Looks at and talks to a kdbus.
#[derive(Debug, Parser)]
#[command(name = "kdbusctl", version, after_help = failure::EXIT_CODES)]
struct Arguments {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Debug, Args)]
struct Global {
    /// Directory of the bus tree [default: $KDBUS_ROOT, /run/kdbus or $XDG_RUNTIME_DIR/kdbus]
    #[arg(long, global = true, value_name = "DIR")]
    root: Option<std::path::PathBuf>,
    /// Bus or endpoint, UID-BUS, UID-BUS/ENDPOINT or an absolute path [default: $KDBUS_BUS, else your own bus,
    /// else the system's]
    #[arg(long, global = true, value_name = "NAME")]
    bus: Option<String>,
    /// Show results as JSON, one object a line; errors too, on standard error
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List connections: who they are, and which names they own or wait for
    List(list::List),
    /// Show everything that a connection gives out about itself
    #[command(visible_alias = "status")]
    Info(info::Info),
    /// Show the bus itself: who made it, its id, its bloom filters
    Bus(bus_info::BusInfo),
    /// Call a service and print its reply
    Call(call::Call),
    /// Send a message that wants no reply
    Send(send::Send),
    /// Tell everybody who subscribed to a topic
    Signal(signal::Signal),
    /// Print signals as they come
    Listen(listen::Listen),
    /// Add a match, and print what it lets through
    Match(matching::Match),
    /// Print messages as they come, without answering them
    Recv(recv::Recv),
    /// Show connections in numbers: queue, pool, losses, rates
    Stats(stats::StatsOf),
    /// Watch connections in numbers, the busiest first
    Top(top::Top),
    /// Show whose messages wait at whom, and how much they take
    Quota(quota::Quota),
    /// Print all traffic of the bus as it passes, or capture it
    Monitor(monitor::MonitorAll),
    /// Wait until somebody owns a name, and print who
    Wait(wait::Wait),
    /// Own a name, and print and answer what is sent to it
    Own(own::Own),
    /// Hold a name and start its service with the first message
    Activate(activate::Activate),
    /// Open another door to the bus, with a policy of its own
    Endpoint(endpoint::Endpoint),
    /// Check a policy file of kdbusd, or show what it grants
    Policy(policy::PolicyOf),
    /// Print a script that completes this program's command line in a shell
    Completions(complete::Complete),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let global = &arguments.global;
    let done = match &arguments.command {
        Command::List(list) => list.run(global),
        Command::Info(info) => info.run(global),
        Command::Bus(bus) => bus.run(global),
        Command::Call(call) => call.run(global),
        Command::Send(send) => send.run(global),
        Command::Signal(signal) => signal.run(global),
        Command::Listen(listen) => listen.run(global),
        Command::Match(matching) => matching.run(global),
        Command::Policy(policy) => policy.run(global),
        Command::Wait(wait) => wait.run(global),
        Command::Own(own) => own.run(global),
        Command::Recv(recv) => recv.run(global),
        Command::Stats(stats) => stats.run(global),
        Command::Quota(quota) => quota.run(global),
        Command::Activate(activate) => activate.run(global),
        Command::Monitor(monitor) => monitor.run(global),
        Command::Top(top) => top.run(global),
        Command::Endpoint(endpoint) => endpoint.run(global),
        Command::Completions(complete) => complete.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(global.json),
    }
}
