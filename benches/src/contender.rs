//! One case with its processes, ready to go.

use std::io;
use std::path::Path;
use std::process::Child;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{CpuSet, sched_getaffinity};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::bus::{BusClient, BusServer};
use crate::case::{Case, Kind, Place, SUBSCRIBERS, System};
use crate::control::{AREA, Control, now_ns};
use crate::count::Mark;
use crate::dbus::{self, DbusClient, DbusServer};
use crate::end::{Client, PacketEnd, Server};
#[cfg(feature = "peers")]
use crate::iceoryx::IceoryxEnd;
use crate::job::{self, Job, Role};
use crate::shared::{PAGE, Shared};
use crate::socket::{self, FanOut, Node, Socket};
#[cfg(feature = "peers")]
use crate::zbus_end::{ZbusClient, ZbusServer};
use crate::{floor, switches};

/// A pause before a message whose one-way latency is taken, so that everybody sleeps when it comes.
const PAUSE: Duration = Duration::from_micros(20);

/// How long a process may take to end when it is told to.
const OBEDIENCE: Duration = Duration::from_secs(5);

/// The CPUs that places are on.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Cpus {
    /// Of the client, and of everybody on one CPU.
    pub first: usize,
    /// Of the server on two, if there are two.
    pub second: Option<usize>,
}

/// A case with its processes.
pub struct Contender {
    case: Case,
    cpu: usize,
    // In the order in which they go: the client's end first, shared memory and directory last.
    client: Box<dyn Client>,
    /// Ended when the contender is dropped.
    processes: Vec<Child>,
    buffer: Vec<u8>,
    trips: u64,
    subscribers: usize,
    shared: Rc<Shared>,
    dir: TempDir,
}

/// What one turn of a contender came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turn {
    /// Messages that were measured.
    pub messages: u64,
    /// How long they took together, in nanoseconds.
    pub took_ns: u64,
    /// Messages besides these: of a stream, those that were sent one at a time.
    pub apart: u64,
}

/// How long a turn goes on.
#[derive(Clone, Copy, Debug)]
pub struct Length {
    /// At most this long.
    pub time: Duration,
    /// At most so many messages.
    pub messages: u64,
}

impl Cpus {
    /// The first and the last CPU that this process may use.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn available() -> io::Result<Self> {
        let allowed = sched_getaffinity(None)?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = cpus.next().ok_or_else(|| io::Error::other("this process may use no CPU"))?;
        Ok(Self { first, second: cpus.next_back() })
    }

    /// The CPU of the server.
    #[must_use]
    pub const fn server(&self, place: Place) -> Option<usize> {
        match place {
            Place::OneCpu => Some(self.first),
            Place::TwoCpus => self.second,
        }
    }
}

/// Why a system cannot be measured here, if it cannot.
///
/// # Errors
///
/// What is missing, and how to get it.
pub fn available(system: System) -> Result<(), String> {
    const PEERS: &str =
        "it is not built in (cargo run --release -p kdbus-benches --features peers -- compare)";
    match system {
        System::DbusBroker | System::DbusDaemon => dbus::available(system),
        System::Zbus if cfg!(feature = "peers") => dbus::available(system),
        System::IceoryxEvents | System::IceoryxPolling if cfg!(feature = "peers") => Ok(()),
        System::Zbus | System::IceoryxEvents | System::IceoryxPolling => Err(PEERS.into()),
        _ => Ok(()),
    }
}

/// The server's end of a job.
///
/// # Errors
///
/// What failed.
pub fn server(job: &Job, shared: &Rc<Shared>) -> io::Result<Box<dyn Server>> {
    let case = &job.case;
    Ok(match case.system {
        System::Channel | System::SlowPath | System::Memfd | System::Loan => Box::new(BusServer::new(job)?),
        System::ShmFutex | System::ShmPipe | System::ShmSpin => {
            Box::new(PacketEnd::new(floor::end(shared, case, &job.dir, false)?, case.bytes))
        }
        System::Seqpacket => Box::new(PacketEnd::new(Socket::connect(&job.dir, socket::CLIENT)?, case.bytes)),
        System::SeqpacketRelay => {
            Box::new(PacketEnd::new(Socket::connect(&job.dir, socket::SERVERS)?, case.bytes))
        }
        System::DbusBroker | System::DbusDaemon => Box::new(DbusServer::new(job)?),
        #[cfg(feature = "peers")]
        System::Zbus => Box::new(ZbusServer::new(job)?),
        #[cfg(feature = "peers")]
        System::IceoryxEvents | System::IceoryxPolling => Box::new(IceoryxEnd::server(job)?),
        #[cfg(not(feature = "peers"))]
        system => return Err(io::Error::other(available(system).err().unwrap_or_default())),
    })
}

/// The client's end.
fn client(
    case: &Case,
    dir: &Path,
    shared: &Rc<Shared>,
    node: Option<Node>,
    servers: usize,
) -> io::Result<Box<dyn Client>> {
    Ok(match (case.system, node) {
        (System::Channel | System::SlowPath | System::Memfd | System::Loan, _) => {
            Box::new(BusClient::new(dir, case)?)
        }
        (System::ShmFutex | System::ShmPipe | System::ShmSpin, _) => {
            Box::new(PacketEnd::new(floor::end(shared, case, dir, true)?, 0))
        }
        (System::Seqpacket, Some(node)) if case.kind == Kind::Broadcast => {
            let sockets = (0..servers).map(|_| node.accept()).collect::<io::Result<_>>()?;
            Box::new(PacketEnd::new(FanOut(sockets), 0))
        }
        (System::Seqpacket | System::SeqpacketRelay, Some(node)) => {
            Box::new(PacketEnd::new(node.accept()?, 0))
        }
        (System::DbusBroker | System::DbusDaemon, _) => Box::new(DbusClient::new(dir, case, shared)?),
        #[cfg(feature = "peers")]
        (System::Zbus, _) => Box::new(ZbusClient::new(dir, case, shared)?),
        #[cfg(feature = "peers")]
        (System::IceoryxEvents | System::IceoryxPolling, _) => Box::new(IceoryxEnd::client(dir, case)?),
        (system, _) => return Err(io::Error::other(available(system).err().unwrap_or_default())),
    })
}

impl Contender {
    /// Starts the processes of a case and waits until all are ready.
    ///
    /// # Errors
    ///
    /// What failed, as the system or the bus says it.
    pub fn start(case: &Case, cpus: &Cpus) -> io::Result<Self> {
        Self::start_with(case, cpus, SUBSCRIBERS)
    }

    /// The same with another number of subscribers, if it is a broadcast.
    ///
    /// # Errors
    ///
    /// What failed, as the system or the bus says it.
    pub fn start_with(case: &Case, cpus: &Cpus, subscribers: usize) -> io::Result<Self> {
        cpus.server(case.place).ok_or_else(|| io::Error::other("there is one CPU only"))?;
        let dir = tempfile::Builder::new().prefix("kdbus-bench-").tempdir()?;
        let shared = Rc::new(Shared::create(AREA + area(case))?);
        let job = |role| Job { role, case: *case, dir: dir.path().into(), cpus: *cpus, count: subscribers };
        let mut processes = Processes(Vec::new());
        let servers = if case.kind == Kind::Broadcast { subscribers } else { 1 };
        let mut node = None;
        let middle = match case.system {
            System::Channel | System::SlowPath | System::Memfd | System::Loan => Some(Role::Kdbusd),
            System::DbusDaemon => Some(Role::DbusDaemon),
            System::DbusBroker | System::Zbus => Some(Role::DbusBroker),
            System::SeqpacketRelay => Some(Role::Relay),
            System::Seqpacket | System::ShmFutex | System::ShmPipe | System::ShmSpin => None,
            System::IceoryxEvents | System::IceoryxPolling => None,
        };
        if matches!(case.system, System::Seqpacket | System::SeqpacketRelay) {
            node = Some(Node::new(dir.path(), socket::CLIENT)?);
        }
        if let Some(role) = middle {
            processes.0.push(job(role).start(Some(&shared))?);
        }
        for _ in 0..servers {
            processes.0.push(job(Role::Server).start(Some(&shared))?);
        }
        job::pin(cpus.first)?;
        let client = client(case, dir.path(), &shared, node, servers)?;
        let ready = servers + usize::from(middle == Some(Role::Relay));
        Control(&shared).wait_ready(ready, || processes.check(case))?;
        Ok(Self {
            case: *case,
            cpu: cpus.first,
            client,
            processes: std::mem::take(&mut processes.0),
            buffer: (0..case.bytes).map(|at| at as u8).collect(),
            trips: 0,
            subscribers,
            shared,
            dir,
        })
    }

    /// Which case it is.
    #[must_use]
    pub const fn case(&self) -> &Case {
        &self.case
    }

    /// Where its sockets are.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Context switches of all of its processes so far.
    ///
    /// # Errors
    ///
    /// If `/proc` does not tell.
    pub fn switches(&self) -> io::Result<u64> {
        let own = switches::of_this_process()?;
        let others = self.processes.iter().map(|child| switches::of_tree(child.id()));
        Ok(own + others.sum::<u64>())
    }

    /// Has its turn: each latency goes to `record`, in nanoseconds.
    ///
    /// # Errors
    ///
    /// What failed, or that other bytes came back than were sent.
    pub fn turn(&mut self, length: Length, mut record: impl FnMut(u64)) -> io::Result<Turn> {
        job::pin(self.cpu)?;
        if self.case.spins() {
            Control(&self.shared).go(true);
        }
        let done = match self.case.kind {
            Kind::Call | Kind::CallSpin => self.calls(length, &mut record),
            Kind::Stream => self.stream(length, &mut record),
            Kind::Broadcast => self.broadcasts(length, &mut |_, took| record(took)),
        };
        if self.case.spins() {
            Control(&self.shared).go(false);
        }
        done.and_then(|turn| self.client.check().map(|()| turn))
    }

    fn calls(&mut self, length: Length, record: &mut impl FnMut(u64)) -> io::Result<Turn> {
        let begun = Instant::now();
        let mut turn = Turn::default();
        while turn.messages < length.messages && begun.elapsed() < length.time {
            let took = self.trip()?.as_nanos() as u64;
            record(took);
            turn.messages += 1;
            turn.took_ns += took;
        }
        Ok(turn)
    }

    /// One call: sends the message, waits for the same bytes, and looks at both ends of them.
    fn trip(&mut self) -> io::Result<Duration> {
        self.trips += 1;
        let stamp = self.trips.to_ne_bytes();
        let (head, tail) = (stamp.len(), self.buffer.len() - stamp.len());
        self.buffer[..head].copy_from_slice(&stamp);
        self.buffer[tail..].copy_from_slice(&stamp);
        let begun = Instant::now();
        self.client.call(&mut self.buffer)?;
        let took = begun.elapsed();
        if self.buffer[..head] == stamp && self.buffer[tail..] == stamp {
            return Ok(took);
        }
        Err(io::Error::other(format!("{}: other bytes came back than were sent", self.case)))
    }

    fn stream(&mut self, length: Length, record: &mut impl FnMut(u64)) -> io::Result<Turn> {
        let shared = self.shared.clone();
        let control = Control(&shared);
        // First messages that find everybody asleep, each with the time that it was sent at.
        let begun = Instant::now();
        let mut sent = control.so_far().0;
        let mut paced = 0;
        while paced <= length.messages / 10 && begun.elapsed() < length.time / 3 {
            if !self.case.spins() {
                std::thread::sleep(PAUSE);
            }
            self.buffer[..8].copy_from_slice(&now_ns().to_ne_bytes());
            self.client.send(&self.buffer)?;
            sent += 1;
            paced += 1;
            self.wait_received(sent)?;
            record(control.so_far().1);
        }
        // Then as many as go through.
        self.buffer[..8].fill(0);
        let begun = Instant::now();
        let mut messages = 0;
        while messages < length.messages && begun.elapsed() < length.time / 3 * 2 {
            // The clock is looked at now and then only: it takes as long as a short message.
            for _ in 0..16 {
                self.client.send(&self.buffer)?;
            }
            messages += 16;
        }
        self.wait_received(sent + messages)?;
        Ok(Turn { messages, took_ns: begun.elapsed().as_nanos() as u64, apart: paced })
    }

    fn wait_received(&self, count: u64) -> io::Result<()> {
        let until = Instant::now() + crate::control::PATIENCE;
        while Control(&self.shared).so_far().0 < count {
            if self.case.spins() {
                std::hint::spin_loop();
            } else {
                rustix::thread::sched_yield();
            }
            if Instant::now() > until {
                return Err(io::Error::other(format!("{}: a message was lost on its way", self.case)));
            }
        }
        Ok(())
    }

    /// Broadcasts; `record` gets the nanoseconds until the sender could go on, and until the last subscriber had it.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn broadcasts(&mut self, length: Length, record: &mut impl FnMut(u64, u64)) -> io::Result<Turn> {
        let begun = Instant::now();
        let mut turn = Turn::default();
        while turn.messages < length.messages && begun.elapsed() < length.time {
            let sent_at = now_ns();
            self.client.send(&self.buffer)?;
            let sent = now_ns().saturating_sub(sent_at);
            let took = Control(&self.shared).wait_heard(self.subscribers)?.saturating_sub(sent_at);
            record(sent, took);
            turn.messages += 1;
            turn.took_ns += took;
        }
        Ok(turn)
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        drop(Processes(std::mem::take(&mut self.processes)));
    }
}

/// Children that are ended when they are dropped.
struct Processes(Vec<Child>);

impl Processes {
    fn check(&mut self, case: &Case) -> io::Result<()> {
        for child in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                return Err(io::Error::other(format!("{case}: one of its processes ended with {status}")));
            }
        }
        Ok(())
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        // The servers first, so that none complains of what stands in the middle.
        for child in self.0.iter_mut().rev() {
            end(child);
        }
    }
}

/// Ends a process as a service manager does: with an order that it can obey, and by force where it does not. Who is killed
/// at once under a tool that counts leaves no count.
fn end(child: &mut Child) {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    // One that has ended by itself, and was waited for, has no number any more.
    if !matches!(child.try_wait(), Ok(None)) {
        return;
    }
    let ordered = pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok());
    let until = Instant::now() + OBEDIENCE;
    while ordered && Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// Bytes of shared memory besides the control page.
const fn area(case: &Case) -> usize {
    match (case.system, case.kind) {
        (System::ShmFutex | System::ShmSpin, Kind::Broadcast) => PAGE + case.bytes,
        (System::ShmFutex | System::ShmPipe | System::ShmSpin, _) => floor::area(case),
        _ => 0,
    }
}

/// The client of a case whose system calls its parent counts: warm-up, a mark, messages, a mark.
///
/// # Errors
///
/// What failed.
pub fn run_counted(job: &Job) -> io::Result<()> {
    let mut contender = Contender::start(&job.case, &job.cpus)?;
    contender.turn(Length { time: Duration::from_secs(10), messages: 50 }, |_| ())?;
    if job.case.spins() {
        Control(&contender.shared).go(true);
    }
    let mark = Mark::new();
    mark.set()?;
    for _ in 0..job.count {
        contender.trip()?;
    }
    mark.set()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    /// The signal that a process ends by, once it has set its traps.
    fn ended_by(traps: &str) -> Option<i32> {
        let script = format!("{traps} echo ready; exec sleep 60");
        let mut child = Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn().unwrap();
        io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 6]).unwrap();
        end(&mut child);
        child.wait().unwrap().signal()
    }

    #[test]
    fn a_process_is_told_to_end_before_it_is_made_to() {
        assert_eq!(ended_by(""), Some(Signal::TERM.as_raw()));
        assert_eq!(ended_by("trap '' TERM;"), Some(Signal::KILL.as_raw()));
    }
}
