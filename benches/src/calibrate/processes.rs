//! The processes that a calibration measures with: this program again, in other roles.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use kdbus_core::WellKnownName;
use kdbus_core::abi::{Errno, NameFlags};
use kdbus_core::client::{CALL_TIMEOUT, Connection, Hello};
use kdbus_linux::local::{Environment, LocalTransport, Options};
use kdbusd::Daemon;
use kdbusd::config::{Config, LogLevel};
use rustix::thread::CpuSet;

/// Environment variable that says which part this process plays for another one.
const ROLE: &str = "KDBUS_CALIBRATE_ROLE";

/// Plays the part that this process was started for; `None` if it was started by a person.
#[must_use]
pub fn part() -> Option<io::Result<()>> {
    let role = std::env::var(ROLE).ok()?;
    Some(match role.as_str() {
        "echo" => echo(),
        "daemon" => daemon(),
        _ => service_process(),
    })
}

fn echo() -> io::Result<()> {
    let (mut input, mut output, mut bytes) = (io::stdin().lock(), io::stdout().lock(), [0; 16]);
    while input.read_exact(&mut bytes).is_ok() {
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}

fn root() -> io::Result<PathBuf> {
    std::env::var_os("KDBUS_ROOT").map(Into::into).ok_or_else(|| io::Error::other("there is no root"))
}

/// Until standard input ends.
fn daemon() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let config = Config { log: LogLevel::Warn, ..Config::new(uid, root()?) };
    let mut daemon = Daemon::bind(&config).map_err(io::Error::other)?;
    daemon.run(io::stdin()).map_err(io::Error::other)
}

fn service_process() -> io::Result<()> {
    let bus = connect(&root()?)?;
    bus.acquire(service().map_err(io::Error::other)?, NameFlags::empty()).map_err(io::Error::other)?;
    let _ = bus.serve_blocking(|request| request.reply(request.payload()));
    Ok(())
}

/// The name of the service, parsed.
pub(super) fn service() -> Result<WellKnownName<'static>, Errno> {
    WellKnownName::parse("org.kdbus.bench.Calibrate").map_err(|_| Errno::EINVAL)
}

/// Connects as soon as the daemon lets anybody in.
fn connect(root: &Path) -> io::Result<Connection<LocalTransport>> {
    let uid = rustix::process::geteuid().as_raw();
    let name = Config::new(uid, root.into()).bus.first().map(|bus| format!("{uid}-{}", bus.name));
    let environment =
        Environment::current().with_root(root.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        // What is foretold is a call over kdbusd.
        let options = Options::new().environment(environment).lanes(0);
        match options.connect(name.as_deref().unwrap_or_default()) {
            Ok(transport) => return Connection::hello(transport, &Hello::new()).map_err(io::Error::other),
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A daemon and a service as processes of their own, ended when dropped.
pub(super) struct Bus {
    dir: tempfile::TempDir,
    /// The service before the daemon, which ends in an orderly way when its input does.
    processes: Vec<Child>,
}

impl Bus {
    pub(super) fn start() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("kdbus-calibrate-").tempdir()?;
        let daemon = start("daemon", dir.path())?;
        let mut bus = Self { dir, processes: vec![daemon] };
        let connection = bus.connect()?;
        bus.processes.push(start("service", bus.dir.path())?);
        let name = service().map_err(io::Error::other)?;
        connection.wait_for_name_blocking(name, CALL_TIMEOUT).map_err(io::Error::other)?;
        Ok(bus)
    }

    pub(super) fn connect(&self) -> io::Result<Connection<LocalTransport>> {
        connect(self.dir.path())
    }

    /// Nanoseconds that the daemon has been on a CPU, if the system tells.
    pub(super) fn on_cpu(&self) -> Option<u64> {
        let text =
            std::fs::read_to_string(format!("/proc/{}/schedstat", self.processes.first()?.id())).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        while let Some(mut process) = self.processes.pop() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// A process at the other end of two pipes, which ends when they do.
pub(super) struct Echo {
    process: Child,
    /// Until it is dropped.
    pipes: Option<(ChildStdin, ChildStdout)>,
}

impl Echo {
    pub(super) fn start() -> io::Result<Self> {
        let mut process = start("echo", Path::new("/"))?;
        let pipes = process.stdin.take().zip(process.stdout.take());
        Ok(Self { process, pipes })
    }

    /// There and back.
    pub(super) fn round_trip(&mut self) -> io::Result<()> {
        let (to, from) = self.pipes.as_mut().ok_or_else(|| io::Error::other("a process without pipes"))?;
        let mut bytes = [0; 16];
        to.write_all(&bytes)?;
        from.read_exact(&mut bytes)
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        drop(self.pipes.take());
        let _ = self.process.wait();
    }
}

/// Starts this program again in another role. It runs on the CPUs that this process may use now.
fn start(role: &str, root: &Path) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env(ROLE, role)
        .env("KDBUS_ROOT", root)
        .stdin(Stdio::piped())
        .stdout(if role == "echo" { Stdio::piped() } else { Stdio::null() })
        .spawn()
}

/// Keeps this process, and those that it starts from now on, on the first CPU that it may use.
///
/// # Errors
///
/// What the system says.
pub fn pin_to_one_cpu() -> io::Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or(0));
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}
