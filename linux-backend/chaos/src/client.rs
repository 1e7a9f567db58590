//! A client process: how it is told what to do, and what all kinds of them share.

use std::error::Error;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kdbus_core::WellKnownName;
use kdbus_core::client::{Connection, Delivery, PAYLOAD_ERROR, ReceivedPart, Topic};
use kdbus_linux::local::{LocalTransport, Options};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};

#[cfg(feature = "points")]
use crate::inside;
use crate::payload::{self, STAMP, Stamp};
use crate::point::Point;
use crate::record::{How, Kind, Log, Record, now};

/// A client's connection.
pub type Bus = Connection<LocalTransport>;
/// What arrives there.
pub type Arrival<'c> = Delivery<'c, LocalTransport>;
/// What a client program returns: it ends with the first thing that must not happen.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// Names that clients own. Those from [`ACTIVATED`] on have activators now and then.
pub const NAMES: [&str; 5] = [
    "org.example.Chaos.Plain0",
    "org.example.Chaos.Plain1",
    "org.example.Chaos.Plain2",
    "org.example.Chaos.Activated0",
    "org.example.Chaos.Activated1",
];
/// Index of the first name that has an activator now and then.
pub const ACTIVATED: usize = 3;
/// What signals are about.
pub const TOPICS: [&str; 3] = ["org.example.chaos.red", "org.example.chaos.green", "org.example.chaos.blue"];

/// What kind of client a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Role {
    /// Does everything that an ordinary connection can.
    Worker,
    /// Holds an activatable name.
    Activator,
    /// Sees everything.
    Monitor,
    /// Works on the shared queue itself, and always dies over it.
    Raw,
}

/// Arguments of a client process.
#[derive(Clone, Debug, Args)]
pub struct ClientArguments {
    /// Node of the bus
    #[arg(long)]
    pub node: PathBuf,
    /// Number of the client
    #[arg(long)]
    pub number: u32,
    /// How many processes there were before under this number
    #[arg(long)]
    pub incarnation: u32,
    /// What its choices follow from
    #[arg(long)]
    pub seed: u64,
    /// What it does
    #[arg(long)]
    pub role: Role,
    /// Number of the point at which it stops itself
    #[arg(long)]
    pub point: Option<u32>,
    /// How often it passes that point before
    #[arg(long, default_value_t = 0)]
    pub passes: u32,
}

/// What the conductor has told a client to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing, until the next round.
    Idle,
    /// Whatever it likes.
    Run,
    /// Only to receive, to answer and to await what it has begun.
    Quiet,
    /// To empty its queue and to let go of everything.
    Drain,
    /// To leave.
    Leave,
}

/// A client process, whatever it does.
#[derive(Debug)]
pub struct Context {
    /// What it was started with.
    pub arguments: ClientArguments,
    /// Its choices.
    pub random: fastrand::Rng,
    /// What it is to do.
    pub phase: Phase,
    /// Lanes that it brings and sends by, chosen once: other clients reach it past the daemon then.
    pub lanes: usize,
    /// Lanes by which it sends at rest.
    pub open_lanes: u64,
    /// Whether its state has to be written into a new history.
    pub is_new_round: bool,
    log: Option<Log>,
    input: Vec<u8>,
    serial: u64,
    passes: u32,
}

/// The name with this index.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn name(index: usize) -> WellKnownName<'static> {
    WellKnownName::parse(NAMES[index]).expect("the names are valid")
}

/// The topic with this index.
///
/// # Panics
///
/// If there is none.
#[must_use]
pub fn topic(index: usize) -> Topic<'static> {
    Topic::parse(TOPICS[index]).expect("the topics are valid")
}

/// The program of a client process.
///
/// # Errors
///
/// What must not happen to a client, whatever happens to the others.
pub fn run(arguments: &ClientArguments) -> Outcome<()> {
    // Whoever conducts may be killed too; nobody is left then.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut context = Context::new(arguments.clone());
    while context.phase == Phase::Idle {
        context.listen(1000)?;
    }
    match arguments.role {
        Role::Worker => crate::worker::run(&mut context),
        Role::Activator => crate::special::activator(&mut context),
        Role::Monitor => crate::special::monitor(&mut context),
        Role::Raw => crate::raw::run(&mut context),
    }
}

impl Context {
    fn new(arguments: ClientArguments) -> Self {
        let mut random = fastrand::Rng::with_seed(arguments.seed);
        let point = arguments.point.and_then(Point::from_code);
        let is_of_lanes = point.is_some_and(Point::is_of_lanes);
        #[cfg(feature = "points")]
        if let Some(point) = point.filter(|point| point.place().is_some() && *point != Point::Claiming) {
            inside::plan(point, arguments.passes);
        }
        let lanes = match arguments.role {
            Role::Worker if is_of_lanes => 8,
            Role::Worker => random.choice([0, 2, 8, 8, 8, 8]).unwrap_or(0),
            Role::Activator | Role::Monitor | Role::Raw => 0,
        };
        Self {
            random,
            lanes,
            open_lanes: 0,
            phase: Phase::Idle,
            is_new_round: false,
            log: None,
            input: Vec::new(),
            serial: 0,
            passes: arguments.passes,
            arguments,
        }
    }

    /// The way to the bus, as the seed chooses it.
    ///
    /// # Errors
    ///
    /// What connecting reports.
    pub fn transport(&mut self) -> Outcome<LocalTransport> {
        let staging = self.random.choice([0, 1 << 16]).unwrap_or(0);
        let after = self.random.choice([1, 4]).unwrap_or(1);
        let options = Options::new().staging(staging).prefault(false).lanes(self.lanes).lane_after(after);
        let node = &self.arguments.node;
        let text = node.to_str().ok_or_else(|| format!("{} is no text", node.display()))?;
        Ok(options.connect(text)?)
    }

    /// Bytes of the node's path.
    #[must_use]
    pub fn node(&self) -> &[u8] {
        self.arguments.node.as_os_str().as_bytes()
    }

    /// A new message's number.
    pub fn next_id(&mut self) -> crate::record::MessageId {
        self.serial += 1;
        let ClientArguments { number, incarnation, .. } = self.arguments;
        crate::record::MessageId { client: number, incarnation, serial: self.serial }
    }

    /// True once in `chances`.
    pub fn once_in(&mut self, chances: u32) -> bool {
        self.random.u32(0..chances) == 0
    }

    /// Writes `record` down. Its time is now unless it has one.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub fn note(&mut self, kind: Kind, record: Record) -> Outcome<()> {
        let at = if record.at == 0 { now() } else { record.at };
        let Some(log) = &mut self.log else { return Ok(()) };
        Ok(log.add(&Record { kind: kind.code(), at, ..record })?)
    }

    /// Says `line` to the conductor.
    ///
    /// # Errors
    ///
    /// If nobody listens any more.
    pub fn say(&self, line: &str) -> Outcome<()> {
        let mut out = io::stdout().lock();
        out.write_all(format!("{line}\n").as_bytes())?;
        Ok(out.flush()?)
    }

    /// Passes by `point`: if this process is to end there, it stops and waits for its end, or to be continued.
    ///
    /// # Errors
    ///
    /// If the conductor cannot be told.
    pub fn reach(&mut self, point: Point, own: u64) -> Outcome<()> {
        if self.arguments.point != Some(point.code()) || self.phase != Phase::Run {
            return Ok(());
        }
        if self.passes > 0 {
            self.passes -= 1;
            return Ok(());
        }
        self.arguments.point = None;
        self.note(Kind::At, Record { detail: point.code(), own, ..Record::default() })?;
        self.say(&format!("at {}", point.code()))?;
        if point.stops() {
            kill_process(getpid(), Signal::STOP)?;
        }
        Ok(())
    }

    /// Runs `command`, inside of which the process stops if it was started for that point.
    pub fn inside<R>(&mut self, point: Point, command: impl FnOnce() -> R) -> R {
        let is_meant = self.arguments.point == Some(point.code()) && self.phase == Phase::Run;
        if !is_meant || self.passes > 0 {
            self.passes -= u32::from(is_meant);
            return command();
        }
        #[cfg(feature = "points")]
        inside::plan(point, 0);
        let result = command();
        #[cfg(feature = "points")]
        inside::forget_plan();
        self.arguments.point = None;
        result
    }

    /// Takes in what the conductor says, for which it waits `ms` milliseconds at most.
    ///
    /// # Errors
    ///
    /// If the conductor is gone or cannot be understood.
    pub fn listen(&mut self, ms: u32) -> Outcome<()> {
        let stdin = rustix::stdio::stdin();
        let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
        let span = Timespec { tv_sec: i64::from(ms / 1000), tv_nsec: i64::from(ms % 1000) * 1_000_000 };
        match poll(&mut fds, Some(&span)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        let mut bytes = [0; 1024];
        let count = rustix::io::read(stdin, &mut bytes)?;
        if count == 0 {
            return Err("the conductor is gone".into());
        }
        self.input.extend_from_slice(&bytes[..count]);
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let line = String::from_utf8(line)?;
            self.obey(line.trim_end())?;
        }
        Ok(())
    }

    fn obey(&mut self, line: &str) -> Outcome<()> {
        self.phase = match line.split_once(' ') {
            Some(("run", path)) => {
                let log = Log::create(Path::new(path))?;
                #[cfg(feature = "points")]
                inside::set_log(log.try_clone()?);
                self.log = Some(log);
                self.is_new_round = true;
                Phase::Run
            }
            None if line == "quiet" => Phase::Quiet,
            None if line == "drain" => Phase::Drain,
            None if line == "leave" => Phase::Leave,
            _ => return Err(format!("the conductor says {line:?}").into()),
        };
        #[cfg(feature = "points")]
        inside::set_live(self.phase == Phase::Run);
        Ok(())
    }

    /// Tells that nothing more is begun.
    ///
    /// # Errors
    ///
    /// If nobody listens any more.
    pub fn is_quiet(&mut self, own: u64) -> Outcome<()> {
        self.note(Kind::Quiet, Record { own, ..Record::default() })?;
        self.say("quiet")
    }

    /// Tells that nothing waits and nothing is held, and waits for the next round.
    ///
    /// # Errors
    ///
    /// If nobody listens any more.
    pub fn is_drained(&mut self, own: u64) -> Outcome<()> {
        self.note(Kind::Drained, Record { own, bytes: self.open_lanes, ..Record::default() })?;
        self.log = None;
        self.phase = Phase::Idle;
        self.say(&format!("drained {own}"))?;
        while self.phase == Phase::Idle {
            self.listen(1000)?;
        }
        Ok(())
    }

    /// Writes down losses that the bus reported.
    ///
    /// # Errors
    ///
    /// If they cannot be written.
    pub fn note_lost(&mut self, own: u64, lost: u64) -> Outcome<()> {
        if lost == 0 {
            return Ok(());
        }
        self.note(Kind::Lost, Record { own, bytes: lost, ..Record::default() })
    }

    /// Writes down that `message` was received as `how`, and looks at each of its bytes.
    ///
    /// # Errors
    ///
    /// If they are not those that were sent.
    pub fn note_received(&mut self, own: u64, how: How, message: &Arrival<'_>) -> Outcome<Stamp> {
        let stamp = Stamp::read(message.payload()).unwrap_or(Stamp::new(<_>::default(), <_>::default(), 0));
        let name = message.destination_name().and_then(|name| NAMES.iter().position(|known| *known == name));
        let record = Record {
            detail: how.code(),
            name: name.map_or(0, |index| index as u32 + 1),
            own,
            peer: message.sender(),
            id: stamp.id,
            answers: stamp.answers,
            cookie: message.cookie(),
            priority: message.priority(),
            sequence: message.metadata().timestamp().map_or(0, |stamp| stamp.seqnum),
            bytes: message.payload_len(),
            ..Record::default()
        };
        self.note(Kind::Received, record)?;
        // The library itself answers calls that are dropped after it took them in.
        if message.notification().is_none() && message.payload_type() != PAYLOAD_ERROR {
            self.verify(own, &stamp, message)?;
        }
        Ok(stamp)
    }

    /// Looks at each byte of a message once more.
    ///
    /// # Errors
    ///
    /// If they are not those that were sent.
    pub fn verify(&mut self, own: u64, stamp: &Stamp, message: &Arrival<'_>) -> Outcome<()> {
        let mut at = 0;
        let mut intact = stamp.id.serial != 0;
        for part in message.parts() {
            match part {
                // The stamp stands at the front, in bytes.
                ReceivedPart::Bytes(bytes) if at == 0 && bytes.len() >= STAMP + stamp.record() => {
                    let filler = &bytes[STAMP + stamp.record()..];
                    intact &= payload::is_intact(stamp.id, 0, filler);
                    at += filler.len() as u64;
                }
                ReceivedPart::Bytes(bytes) => {
                    intact &= payload::is_intact(stamp.id, at, bytes);
                    at += bytes.len() as u64;
                }
                ReceivedPart::Memfd { fd: Some(fd), start, size } => {
                    let mut bytes = vec![0; size as usize];
                    let count = rustix::io::pread(fd, &mut bytes[..], start)?;
                    intact &= count == bytes.len() && payload::is_intact(stamp.id, at, &bytes);
                    at += size;
                }
                // Whoever has no descriptors left is told so.
                ReceivedPart::Memfd { fd: None, size, .. } => {
                    intact &= message.has_incomplete_fds();
                    at += size;
                }
                ReceivedPart::Zeros(_) => {}
            }
        }
        if intact && at == stamp.filler {
            return Ok(());
        }
        self.trouble(own, stamp.id, "the bytes of a message")
    }

    /// Ends the client because of what it saw.
    ///
    /// # Errors
    ///
    /// Always.
    pub fn trouble(&mut self, own: u64, id: crate::record::MessageId, what: &str) -> Outcome<()> {
        self.note(Kind::Trouble, Record { own, id, ..Record::default() })?;
        Err(format!("connection {own}: {what}, in {id:?}").into())
    }
}
