//! Counting system calls: a case is run once more, shortly, in processes that are all traced (`ptrace`). Anybody may
//! trace his own children, so this needs no privilege and no tool.

use std::collections::HashMap;
use std::io;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getpid};
use tempfile::TempDir;

use crate::case::{Case, Kind};
use crate::contender::Cpus;
use crate::job::{Job, Role};

/// Round trips that are counted.
const TRIPS: usize = 200;

/// How long a count may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The signal that marks the beginning and the end of what is counted. It never arrives.
const MARK: Signal = Signal::SIGUSR1;

/// A mark in a traced process' life.
#[derive(Clone, Copy, Debug)]
pub struct Mark(Pid);

impl Mark {
    /// The mark of this process.
    #[must_use]
    pub fn new() -> Self {
        Self(getpid())
    }

    /// Sets it, with one system call.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn set(self) -> io::Result<()> {
        Ok(kill(self.0, MARK)?)
    }
}

impl Default for Mark {
    fn default() -> Self {
        Self::new()
    }
}

/// Has this process' parent trace it, and waits until it does.
///
/// # Errors
///
/// If that is not permitted.
pub fn follow_me() -> io::Result<()> {
    ptrace::traceme()?;
    Ok(raise(Signal::SIGSTOP)?)
}

/// System calls of all processes of a case for one round trip. `None` for what is not a round trip.
///
/// This process must have no other children meanwhile.
///
/// # Errors
///
/// What failed.
pub fn syscalls(case: &Case, cpus: &Cpus) -> io::Result<Option<f64>> {
    if !matches!(case.kind, Kind::Call | Kind::CallSpin) {
        return Ok(None);
    }
    let dir = TempDir::new()?;
    let job = Job { role: Role::Counted, case: *case, dir: dir.path().into(), cpus: *cpus, count: TRIPS };
    let child = job.start(None)?;
    let pid = Pid::from_raw(child.id() as i32);
    let (done, watch) = mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            // Those that it started end with it.
            let _ = kill(pid, Signal::SIGKILL);
        }
    });
    let counted = trace(pid);
    drop(done);
    let _ = watchdog.join();
    // The one behind the last round trip is the mark.
    Ok(Some((counted?.saturating_sub(1)) as f64 / TRIPS as f64))
}

/// Follows a process and all that it starts to their ends.
fn trace(client: Pid) -> io::Result<u64> {
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    let mut inside: HashMap<Pid, bool> = HashMap::new();
    let (mut count, mut marks) = (0, 0);
    loop {
        let status = match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(status) => status,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECHILD) => break,
            Err(error) => return Err(error.into()),
        };
        let (pid, signal) = match status {
            WaitStatus::PtraceSyscall(pid) => {
                let inside = inside.entry(pid).or_default();
                *inside = !*inside;
                count += u64::from(*inside && marks == 1);
                (pid, None)
            }
            // It goes to the process, and the system picks one of its threads.
            WaitStatus::Stopped(pid, MARK) => {
                marks += 1;
                (pid, None)
            }
            WaitStatus::Stopped(pid, Signal::SIGSTOP) => {
                // The first stop of each.
                if inside.insert(pid, false).is_none() && pid == client {
                    ptrace::setoptions(pid, options)?;
                }
                (pid, None)
            }
            WaitStatus::Stopped(pid, signal) => (pid, Some(signal)),
            WaitStatus::PtraceEvent(pid, ..) => (pid, None),
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) => {
                inside.remove(&pid);
                continue;
            }
            _ => continue,
        };
        // One that was killed meanwhile is waited for all the same.
        match ptrace::syscall(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if marks == 2 { Ok(count) } else { Err(io::Error::other("the traced client did not come to its end")) }
}
