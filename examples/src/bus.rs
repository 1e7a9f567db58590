//! The bus that a pipeline runs over: one that is there, or one of its own.

use std::fmt;
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use kdbus_linux::local::{ConnectError, Environment, LocalTransport, PlaceError};
use kdbus_linux::rt;
use kdbusd::Daemon;
use kdbusd::config::{Config, LogLevel};

/// Priority of an own daemon in `SCHED_FIFO`: above all stages, for each of them waits for it at some time.
const URGENCY: u32 = 45;

/// How long an own daemon has to end, and to remove what it made.
const PATIENCE: Duration = Duration::from_secs(2);

/// What an own daemon says when clients can connect; anything else is its last word.
const READY: &str = "ready";

/// A bus, and the daemon behind it if it was started for the pipeline.
#[derive(Debug)]
pub struct Bus {
    path: String,
    own: Option<Own>,
}

/// A daemon that was started for the pipeline.
#[derive(Debug)]
struct Own {
    process: Child,
    /// Its end is the order to stop.
    order: Option<ChildStdin>,
    root: PathBuf,
    /// A directory of its own, to be removed with everything in it.
    is_private: bool,
}

impl Bus {
    /// Finds the bus that a client without further words would use, or starts a daemon where it would be.
    ///
    /// Where no user's buses can be, it gets a private directory. `program` is run with the words of
    /// [`DaemonArguments::to_command_line`] behind it.
    ///
    /// # Errors
    ///
    /// [`BusError`] if a bus is there but not for this user, or none can be started.
    pub fn find_or_start(program: &Path, subcommand: &str, in_time: bool) -> Result<Self, BusError> {
        match LocalTransport::connect_default() {
            Ok(transport) => return Ok(Self { path: transport.handle().path().to_string(), own: None }),
            // Whoever names a bus means that one.
            Err(error) if std::env::var_os("KDBUS_BUS").is_some_and(|bus| !bus.is_empty()) => {
                return Err(BusError::Connect(error));
            }
            Err(
                ConnectError::Missing(_) | ConnectError::Dead(_) | ConnectError::Place(PlaceError::NoRoot),
            ) => {}
            Err(error) => return Err(BusError::Connect(error)),
        }
        let start = |root: PathBuf, is_private| Own::start(program, subcommand, root, is_private, in_time);
        let is_named = std::env::var_os("KDBUS_ROOT").is_some_and(|root| !root.is_empty());
        let own = match Environment::current().root() {
            Ok(root) => match start(PathBuf::from(root.to_string()), false) {
                Err(error) if is_named => return Err(error),
                started => started.ok(),
            },
            Err(_) => None,
        };
        let own = match own {
            Some(own) => own,
            None => {
                let root = tempfile::Builder::new().prefix("kdbus-").tempdir().map_err(BusError::Private)?;
                start(root.keep(), true)?
            }
        };
        let environment = Environment::current().with_root(own.root.as_os_str().as_encoded_bytes());
        let uid = rustix::process::geteuid().as_raw();
        let name = Config::new(uid, own.root.clone()).bus.first().map(|bus| format!("{uid}-{}", bus.name));
        let path = environment
            .and_then(|environment| environment.node(&name.unwrap_or_default()))
            .map_err(|error| BusError::Connect(error.into()))?;
        Ok(Self { path: path.to_string(), own: Some(own) })
    }

    /// The path of its endpoint.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The directory of the daemon that was started, and whether it is private, so that others have to be told of it;
    /// `None` if the bus was there.
    pub fn started(&self) -> Option<(&Path, bool)> {
        self.own.as_ref().map(|own| (own.root.as_path(), own.is_private))
    }
}

impl Bus {
    /// Tells people on standard error which bus it is, for a program that is `doing` something over it.
    pub fn introduce(&self, doing: &str) {
        match self.started() {
            None => eprintln!("{doing} over {}", self.path()),
            Some((root, false)) => {
                eprintln!("no bus is running: started one at {} for this run", root.display());
            }
            Some((root, true)) => {
                eprintln!("no bus is running: started a private one for this run; to look at it, run");
                eprintln!("    KDBUS_ROOT={} kdbusctl list", root.display());
            }
        }
    }
}

impl Own {
    fn start(
        program: &Path,
        subcommand: &str,
        root: PathBuf,
        is_private: bool,
        in_time: bool,
    ) -> Result<Self, BusError> {
        let arguments = DaemonArguments { root: root.clone(), is_private, in_time };
        let mut process = Command::new(program)
            .arg(subcommand)
            .args(arguments.to_command_line())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for the coordinator, which ends the others in order.
            .process_group(0)
            .spawn()
            .map_err(BusError::Spawn)?;
        let order = process.stdin.take();
        let answer = process.stdout.take();
        let own = Self { process, order, root, is_private };
        let mut said = String::new();
        let answer = answer.ok_or_else(|| BusError::Spawn(io::ErrorKind::BrokenPipe.into()))?;
        match BufReader::new(answer).read_line(&mut said).map_err(BusError::Spawn)? {
            0 => Err(BusError::Daemon("it ended without a word".into())),
            _ if said.trim() == READY => Ok(own),
            _ => Err(BusError::Daemon(said.trim().into())),
        }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.order = None;
        let until = Instant::now() + PATIENCE;
        while !matches!(self.process.try_wait(), Ok(Some(_)) | Err(_)) {
            if Instant::now() > until {
                let _ = self.process.kill();
                let _ = self.process.wait();
                break;
            }
            sleep(Duration::from_millis(1));
        }
        if self.is_private {
            // The daemon has removed it; unless it was killed.
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// The command line of an own daemon, which only the coordinator writes.
#[derive(Clone, Debug, clap::Args)]
pub struct DaemonArguments {
    /// Directory of the bus tree
    #[arg(long)]
    root: PathBuf,
    /// Remove the directory at the end
    #[arg(long)]
    is_private: bool,
    /// Ask for a real-time class
    #[arg(long)]
    in_time: bool,
}

impl DaemonArguments {
    /// The arguments behind the name of the subcommand.
    pub fn to_command_line(&self) -> Vec<std::ffi::OsString> {
        let mut root = std::ffi::OsString::from("--root=");
        root.push(&self.root);
        let flags = [("--is-private", self.is_private), ("--in-time", self.in_time)];
        let flags = flags.into_iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag.into());
        std::iter::once(root).chain(flags).collect()
    }
}

/// Runs a daemon until standard input ends, which it does in any case when the coordinator does.
///
/// Returns whether it came to its end in an orderly way; the coordinator has heard why if it could not start.
pub fn run_daemon(arguments: &DaemonArguments) -> bool {
    let uid = rustix::process::geteuid().as_raw();
    let mut config = Config::new(uid, arguments.root.clone());
    config.log = LogLevel::Warn;
    let bound = Daemon::bind(&config);
    if arguments.in_time {
        // Without it the daemon serves as it is.
        let _ = rt::schedule(rt::Class::Fifo, URGENCY);
    }
    let mut daemon = match bound {
        Ok(daemon) => daemon,
        Err(error) => {
            println!("{error}");
            return false;
        }
    };
    println!("{READY}");
    let result = daemon.run(io::stdin().as_fd());
    drop(daemon);
    if arguments.is_private {
        let _ = std::fs::remove_dir_all(&arguments.root);
    }
    if let Err(error) = &result {
        eprintln!("{}: the bus: {error}", env!("CARGO_PKG_NAME"));
    }
    result.is_ok()
}

/// Why there is no bus to play over.
#[non_exhaustive]
#[derive(Debug)]
pub enum BusError {
    /// The bus that was asked for, or is there, cannot be used.
    Connect(ConnectError),
    /// No private directory can be made.
    Private(io::Error),
    /// No process can be started.
    Spawn(io::Error),
    /// The daemon did not start; the text is its own.
    Daemon(String),
}

impl fmt::Display for BusError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => error.fmt(f),
            Self::Private(error) => write!(f, "cannot make a directory for a bus: {error}; set KDBUS_ROOT"),
            Self::Spawn(error) => write!(f, "cannot start a process for a bus: {error}"),
            Self::Daemon(text) => write!(f, "cannot start a bus: {text}"),
        }
    }
}

impl std::error::Error for BusError {}
