//! The kdbus message bus in user space, for any stock Linux kernel.

use std::error::Error;
use std::ffi::OsStr;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use kdbus_linux::local::Environment;
use kdbusd::config::{Arguments, Config};
use kdbusd::{Daemon, Watchdog, activation, confine, notify, process};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "kdbusd: error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    // First, while no descriptor of our own can have that number.
    let ready = arguments.ready_fd.map(process::inherited).transpose()?;
    let listeners = activation::listeners()?;
    // Where clients started from here look for their buses.
    let root = Environment::current().root().ok();
    let root = root.map(|root| PathBuf::from(OsStr::from_bytes(root.as_bytes())));
    let config = Config::load(arguments, rustix::process::geteuid().as_raw(), root)?;
    if arguments.print_config {
        print!("{}", config.to_toml());
        return Ok(());
    }
    if arguments.check {
        for policy in config.bus.iter().filter_map(|bus| bus.policy.as_ref()) {
            kdbus_policy::Policy::load(policy)?;
        }
        return Ok(());
    }

    // Before anything listens: an early signal ends the daemon as an orderly stop does.
    let (signal, stop) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, signal.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, signal)?;
    let (hang_up, reload) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGHUP, hang_up)?;

    process::raise_descriptor_limit()?;
    // Again in `run`, for whoever embeds a daemon; here, so that it fails before anybody is told that all is well.
    process::schedule(&config.schedule)?;
    let mut daemon = Daemon::bind_with(&config, listeners)?;
    daemon.reload_on(&reload)?;
    let manager = std::env::var_os("NOTIFY_SOCKET");
    let tell = |state: &str| manager.as_ref().map_or(Ok(()), |socket| notify(socket, state));
    if let Some(socket) = &manager {
        let [usec, pid] = ["WATCHDOG_USEC", "WATCHDOG_PID"].map(|name| std::env::var(name).ok());
        if let Some(limit) = Watchdog::limit(usec.as_deref(), pid.as_deref(), std::process::id()) {
            daemon.watch(Watchdog::new(socket, limit)?);
        }
    }
    // Nobody has been served, and there is one thread: what it gives up, those that it starts do not have either.
    confine::apply(&config)?;
    daemon.start_threads()?;
    tell("READY=1\n")?;
    if let Some(ready) = ready {
        announce(ready)?;
    }
    daemon.run(&stop)?;
    tell("STOPPING=1\n")?;
    Ok(())
}

fn announce(ready: OwnedFd) -> std::io::Result<()> {
    std::fs::File::from(ready).write_all(b"ready\n")
}
