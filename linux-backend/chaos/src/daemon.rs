//! The daemon under test, and what it has of the machine.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use std::os::unix::process::CommandExt;

use kdbus_linux::local::{ConnectError, LocalTransport, Options};
use rustix::process::{Pid, Signal, kill_process};

use crate::client::Outcome;

/// The bus that clients use, without the uid in front.
const BUS: &str = "chaos";
/// How long the daemon may take to start or end.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running `kdbusd`, killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    node: PathBuf,
    log: PathBuf,
}

/// What a process has of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauges {
    /// Open descriptors.
    pub descriptors: usize,
    /// Memory files that it maps: pools, queues and lanes are such.
    pub mappings: usize,
    /// KiB of memory of its own that is resident.
    pub memory: u64,
}

impl Daemon {
    /// Starts the `program` on a tree of its own in `dir`, with room for `clients`, and connects to it.
    ///
    /// # Errors
    ///
    /// If it cannot be started or nobody can connect.
    pub fn start(program: &Path, dir: &Path, clients: u32) -> Outcome<(Self, LocalTransport)> {
        let root = dir.join("kdbus");
        let uid = rustix::process::geteuid().as_raw();
        let mut command = Command::new(program);
        command.arg("--root").arg(&root).args(["--bus", BUS, "--set", "log=warn"]);
        // The dead may be replaced before the daemon has seen their end, and there are the conductor's own.
        for capacity in ["clients", "clients-per-user", "connections"] {
            command.arg("--set").arg(format!("capacity.{capacity}={}", (2 * clients + 16).max(64)));
        }
        // A signal from the keyboard is for the conductor.
        let log = dir.join("kdbusd.log");
        let file = fs::File::create(&log)?;
        let spawned = command.stdin(Stdio::null()).stderr(file).process_group(0).spawn();
        let child = spawned.map_err(|error| format!("{} cannot be started: {error}", program.display()))?;
        let mut daemon = Self { child, node: root.join(format!("{uid}-{BUS}")).join("bus"), log };
        let began = Instant::now();
        loop {
            match daemon.connect() {
                Ok(first) => return Ok((daemon, first)),
                Err(error) if daemon.ended()?.is_some() || began.elapsed() > PATIENCE => {
                    return Err(format!("{} serves nobody: {error}", program.display()).into());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// A way to the bus that brings no lanes.
    fn connect(&self) -> Result<LocalTransport, ConnectError> {
        let path = self.node.to_string_lossy();
        Options::new().staging(0).prefault(false).lanes(0).connect(&path)
    }

    /// The last things that it has logged.
    #[must_use]
    pub fn last_words(&self) -> Vec<String> {
        const LAST: usize = 12;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LAST)..].iter().map(|line| (*line).to_owned()).collect()
    }

    /// Node of the bus.
    #[must_use]
    pub fn node(&self) -> &Path {
        &self.node
    }

    /// Its end, if it has ended.
    ///
    /// # Errors
    ///
    /// What waiting reports.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// What it has of the machine now.
    ///
    /// # Errors
    ///
    /// If `/proc` cannot be read.
    pub fn gauges(&self) -> io::Result<Gauges> {
        let proc = PathBuf::from(format!("/proc/{}", self.child.id()));
        let status = fs::read_to_string(proc.join("status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let memory = line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
        Ok(Gauges {
            descriptors: fs::read_dir(proc.join("fd"))?.count(),
            mappings: fs::read_to_string(proc.join("maps"))?
                .lines()
                .filter(|line| line.contains("/memfd:"))
                .count(),
            memory: memory.ok_or_else(|| io::Error::other("/proc tells no RssAnon"))?,
        })
    }

    /// Ends it in an orderly way.
    ///
    /// # Errors
    ///
    /// If it does not end, or not well.
    pub fn stop(mut self) -> Outcome<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM)?;
        let began = Instant::now();
        loop {
            match self.ended()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(format!("kdbusd ended with {status}").into()),
                None if began.elapsed() > PATIENCE => return Err("kdbusd does not end at SIGTERM".into()),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
