//! Runs the conformance suite and reports case by case.
#![deny(unsafe_code)]

#[path = "../../kdbusd/tests/conformance/world/mod.rs"]
mod local;
mod report;
mod run;
#[path = "../../../sim-backend/tests/world/mod.rs"]
mod sim;

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use kdbus_linux::kernel;

/// What lies under the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Transport {
    /// The simulator.
    Sim,
    /// A kdbusd of its own for each case, or with --root the one that serves that tree.
    Local,
    /// The engine behind the system calls of the module, in this process.
    Loopback,
    /// The kdbus module of the running kernel.
    Kernel,
}

/// Runs the conformance suite of kdbus and prints one line a case. Fails if a case does.
#[derive(Debug, Parser)]
#[command(name = "kdbus-conformance", version)]
struct Arguments {
    /// What to run it over. Default: the module if --root or --mount is given, else the loop-back.
    #[arg(long)]
    transport: Option<Transport>,
    /// Where the module's file system is mounted, or the tree of a running kdbusd. Default: /sys/fs/kdbus.
    #[arg(long)]
    root: Option<String>,
    /// Go through the transport that clients use, instead of command by command.
    #[arg(long)]
    client: bool,
    /// Mount the module's file system first, and /sys where there is none.
    #[arg(long)]
    mount: bool,
    /// Run these cases only, by number.
    #[arg(long = "case", value_name = "N")]
    cases: Vec<u16>,
    /// List the cases and run none.
    #[arg(long)]
    list: bool,
    /// Print each line as a JSON object.
    #[arg(long)]
    json: bool,
    /// Power the machine off at the end, as process 1.
    #[arg(long)]
    poweroff: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let ended = conform(&arguments);
    if let Err(what) = &ended {
        eprintln!("kdbus-conformance: {what}");
    }
    if arguments.poweroff && std::process::id() == 1 {
        rustix::fs::sync();
        // Where it fails, the kernel ends with its process 1.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    }
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(_) => ExitCode::from(2),
    }
}

/// Whether no case failed.
fn conform(arguments: &Arguments) -> Result<bool, String> {
    let chosen = run::choose(&arguments.cases)?;
    let mut report = report::Report::new(arguments.json);
    if arguments.list {
        chosen.iter().for_each(|case| report.list(*case));
        return Ok(true);
    }
    let on_module = arguments.root.is_some() || arguments.mount;
    let default = if on_module { Transport::Kernel } else { Transport::Loopback };
    let root = arguments.root.as_deref().unwrap_or(kernel::ROOT);
    raise_descriptor_limit();
    let transport = arguments.transport.unwrap_or(default);
    if transport == Transport::Kernel {
        if arguments.mount {
            mount(root)?;
        }
        let control = format!("{root}/control");
        if let Err(error) = std::fs::metadata(&control) {
            return Err(format!("{control}: {error}; is kdbus mounted there? --mount mounts it"));
        }
    }
    let root = arguments.root.as_deref();
    run::all(&chosen, run::Target { transport, root, client: arguments.client }, &mut report);
    Ok(report.close())
}

/// Mounts a domain of its own at `root`, and before that what it needs of /sys and /proc.
fn mount(root: &str) -> Result<(), String> {
    for (kind, target, sign) in [("sysfs", "/sys", "/sys/fs"), ("proc", "/proc", "/proc/self")] {
        if std::fs::metadata(sign).is_err() {
            // The mount below says what is still missing; without /proc nothing but names of programs is.
            let _ = std::fs::create_dir(target);
            let _ = rustix::mount::mount(kind, target, kind, rustix::mount::MountFlags::empty(), None);
        }
    }
    kernel::mount(root).map_err(|errno| format!("mounting kdbusfs at {root}: {errno}"))
}

/// One case opens a thousand connections. Where the limit stays low, that case says so.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
