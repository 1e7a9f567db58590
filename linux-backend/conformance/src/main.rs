//! Runs the conformance suite and reports case by case.
#![deny(unsafe_code)]

mod init;
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
    /// Mount the module's file system first. Process 1 mounts /proc, /sys, /dev and /tmp in any case.
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
    /// Power the machine off at the end, also when this is not process 1, which always does.
    #[arg(long)]
    poweroff: bool,
}

fn main() -> ExitCode {
    let first = init::is_first();
    let (code, power_off) = match Arguments::try_parse() {
        Ok(arguments) => {
            if first {
                init::mount_what_is_missing();
            }
            (run(&arguments), arguments.poweroff)
        }
        Err(error) => {
            // A first process must not end before the machine does, whatever its arguments are.
            let _ = error.print();
            (u8::try_from(error.exit_code()).unwrap_or(2), false)
        }
    };
    if first || power_off {
        init::power_off();
    }
    ExitCode::from(code)
}

/// The exit status: 1 if a case failed, 2 if none could be run.
fn run(arguments: &Arguments) -> u8 {
    match conform(arguments) {
        Ok(true) => 0,
        Ok(false) => 1,
        Err(what) => {
            eprintln!("kdbus-conformance: {what}");
            2
        }
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
            init::mount_domain(root)?;
        }
        let control = format!("{root}/control");
        if let Err(error) = std::fs::metadata(&control) {
            return Err(format!(
                "{control}: {error}; is the kdbus module loaded and mounted there? --mount mounts it"
            ));
        }
    }
    let root = arguments.root.as_deref();
    run::all(&chosen, run::Target { transport, root, client: arguments.client }, &mut report);
    Ok(report.close())
}

/// What one case with a thousand connections takes, each with its pool and the far end of a loop-back or a daemon.
const DESCRIPTORS: u64 = 16_384;

/// Raises the limit of descriptors as far as that takes. Where it stays low, that case says so.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < DESCRIPTORS) {
        // Only root may: what the kernel gives to the first process is 4096.
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) });
    }
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}
