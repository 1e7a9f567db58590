//! The other processes of a contender: the program itself, started again with a job of its own.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;

use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::case::{Case, Kind};
use crate::contender::{self, Cpus};
use crate::control::Control;
use crate::shared::Shared;
use crate::{bus, count, dbus, instructions, socket};

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Answers calls, or receives.
    Server,
    /// Passes packets on between the other two.
    Relay,
    /// kdbusd, as anybody would run it.
    Kdbusd,
    /// dbus-daemon, with a configuration of its own.
    DbusDaemon,
    /// dbus-broker and who controls it.
    DbusBroker,
    /// dbus-broker as such.
    DbusBrokerItself,
    /// The client of a case, for its system calls to be counted.
    Counted,
}

/// The job of a process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Job {
    /// What it does.
    pub role: Role,
    /// In which case.
    pub case: Case,
    /// Where the sockets of the case are.
    pub dir: PathBuf,
    /// On which CPUs.
    pub cpus: Cpus,
    /// Subscribers of a broadcast; round trips of the counted client; [`bus::MANY`] for a daemon with room for many.
    pub count: usize,
}

/// The environment variable that has the job.
const VARIABLE: &str = "KDBUS_BENCH_JOB";

impl Job {
    /// The job that this process was started with, if it was started with one.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        serde_json::from_str(&std::env::var(VARIABLE).ok()?).ok()
    }

    /// The command that starts a process with this job.
    ///
    /// # Errors
    ///
    /// If this program cannot be found any more.
    pub fn command(&self, shared: Option<&Shared>) -> io::Result<Command> {
        let mut command = instructions::command(self.role)?;
        command.env(VARIABLE, serde_json::to_string(self)?);
        match shared {
            Some(shared) => command.stdin(Stdio::from(shared.as_fd().try_clone_to_owned()?)),
            None => command.stdin(Stdio::null()),
        };
        Ok(command)
    }

    /// Starts a process with this job.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn start(&self, shared: Option<&Shared>) -> io::Result<Child> {
        self.command(shared)?.spawn()
    }

    /// Does the job until somebody ends it, mostly its parent.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn run(&self) -> io::Result<()> {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        let cpu = if self.role == Role::Server { self.cpus.server(self.case.place) } else { None };
        pin(cpu.unwrap_or(self.cpus.first))?;
        let done = match self.role {
            Role::Server => self.serve(),
            Role::Relay => socket::relay(self),
            Role::Kdbusd => bus::daemon(self),
            Role::DbusDaemon => dbus::daemon(&self.dir),
            Role::DbusBroker => dbus::broker(self),
            Role::DbusBrokerItself => dbus::broker_itself(),
            Role::Counted => {
                count::follow_me()?;
                contender::run_counted(self)
            }
        };
        match done {
            // The client has gone: there is nothing more to do, and nothing to say.
            Err(error) if self.role != Role::Counted && error.kind() == io::ErrorKind::UnexpectedEof => {
                Ok(())
            }
            done => done,
        }
    }

    fn serve(&self) -> io::Result<()> {
        let stdin = io::stdin();
        let shared = Rc::new(Shared::open(stdin.as_fd())?);
        let control = Control(&shared);
        let mut end = contender::server(self, &shared)?;
        control.ready();
        let spins = self.case.spins();
        loop {
            // Whoever looks rests between its turns, for others' turns.
            while spins && !control.goes() {
                control.rest();
            }
            match self.case.kind {
                Kind::Call | Kind::CallSpin => end.answer()?,
                Kind::Stream => {
                    if let Some(sent_at) = end.receive()? {
                        control.received(sent_at);
                    }
                }
                Kind::Broadcast => {
                    end.receive()?;
                    control.heard(self.count);
                }
            }
        }
    }
}

/// Has this process run on one CPU.
///
/// # Errors
///
/// What the system says.
pub fn pin(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    Ok(sched_setaffinity(None, &cpus)?)
}
