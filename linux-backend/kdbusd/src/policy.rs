//! Policy files: applied when a bus is made, and again when the daemon is told to read them anew.
//!
//! Reading them is the one thing after start-up that allocates, and a thread of its own does it: the loop that serves
//! clients waits for no disk and for no look-up of a user.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};

use kdbus_core::engine::{HandleId, PolicyRefused};
use kdbus_linux::rt;
use kdbus_policy::{Policy, PolicyError};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};

use crate::config::LogLevel;
use crate::daemon::Daemon;
use crate::host::Turn;

/// Bytes of the reading thread's stack: look-ups of users need more than a loop.
const STACK: usize = 512 << 10;

/// A bus with a policy file.
#[derive(Debug)]
pub(crate) struct FromFile {
    owner: HandleId,
    bus: String,
    path: PathBuf,
}

/// Why a policy file was not applied. The policy is what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApplyError {
    /// The file is wrong.
    File(PolicyError),
    /// The bus does not take it.
    Refused {
        /// The file.
        path: PathBuf,
        /// The bus, the uid in front.
        bus: String,
        /// Why, and what to do.
        why: String,
    },
}

/// What a thread has read: for each bus with a policy file, in their order, its items or what is wrong.
type Files = Vec<Result<Vec<u8>, PolicyError>>;

/// Files that are read again on demand, where no client waits for it.
#[derive(Debug)]
pub(crate) struct Reload {
    /// Rung by the thread.
    bell: OwnedFd,
    read: Receiver<Files>,
    /// What the thread starts with.
    start: Option<Start>,
}

#[derive(Debug)]
struct Start {
    order: OwnedFd,
    bell: OwnedFd,
    tell: Sender<Files>,
}

impl Daemon {
    /// Applies a policy file to a bus that `owner` has made, and remembers it for [`reload_on`](Self::reload_on).
    pub(crate) fn apply_policy(&mut self, owner: HandleId, bus: &str, path: &Path) -> Result<(), ApplyError> {
        let file = FromFile { owner, bus: bus.to_owned(), path: path.to_owned() };
        self.apply_items(&file, read(path))?;
        self.policies.push(file);
        Ok(())
    }

    /// Has all policy files read again whenever something comes out of `order`.
    ///
    /// Each file is checked as a whole and then takes the place of the former policy; one that is wrong changes
    /// nothing, and the log says why. A thread of its own does the reading, which may take as long as disks and
    /// look-ups of users take: [`run`](Self::run) or [`start_threads`](Self::start_threads) starts it, and it ends with
    /// `order`. The loop applies what is right, in `O(items · log of all policy entries)` for each bus.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn reload_on(&mut self, order: impl AsFd) -> io::Result<()> {
        let order = io::fcntl_dupfd_cloexec(order, 0)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        self.state.poller.reload_on(&bell)?;
        let (tell, read) = channel();
        let start = Start { order, bell: io::fcntl_dupfd_cloexec(&bell, 0)?, tell };
        self.reload = Some(Reload { bell, read, start: Some(start) });
        Ok(())
    }

    /// Starts the thread that reads, once, if there is something to read and an order to do so can come.
    pub(crate) fn start_reading(&mut self) -> std::io::Result<()> {
        let paths: Vec<PathBuf> = self.policies.iter().map(|file| file.path.clone()).collect();
        let start = self.reload.as_mut().filter(|_| !paths.is_empty()).and_then(|reload| reload.start.take());
        if let Some(start) = start {
            let thread = std::thread::Builder::new().name("kdbusd-policy".into()).stack_size(STACK);
            thread.spawn(move || start.read(&paths))?;
        }
        Ok(())
    }

    /// The thread has read the files.
    pub(crate) fn take_policies(&mut self) {
        let Some(reload) = &self.reload else {
            return;
        };
        // Never empty here, and if it were, there would be nothing to take.
        let _ = io::read(&reload.bell, &mut [0; 8]);
        // What was read earlier is out of date.
        let Some(latest) = reload.read.try_iter().last() else {
            return;
        };
        let files = std::mem::take(&mut self.policies);
        for (file, items) in files.iter().zip(latest) {
            match self.apply_items(file, items) {
                Ok(()) => self
                    .state
                    .log
                    .line(LogLevel::Info, format_args!("bus {}: its policy was read again", file.bus)),
                Err(error) => self.state.log.line(
                    LogLevel::Error,
                    format_args!("bus {}: its policy stays as it was: {error}", file.bus),
                ),
            }
        }
        self.policies = files;
    }

    fn apply_items(
        &mut self,
        file: &FromFile,
        items: Result<Vec<u8>, PolicyError>,
    ) -> Result<(), ApplyError> {
        let items = items.map_err(ApplyError::File)?;
        let mut turn = Turn::idle(&mut self.state);
        self.domain.set_bus_policy(&mut turn, file.owner, &items).map_err(|refused| file.refused(refused))?;
        self.settle();
        Ok(())
    }
}

impl Start {
    /// Reads all files for each order, until none can come or nobody wants to know.
    fn read(self, paths: &[PathBuf]) {
        // The loop's class is inherited, and reading is not urgent. Going down is always permitted.
        let _ = rt::schedule(rt::Class::Other, 0);
        loop {
            let mut order = [PollFd::new(&self.order, PollFlags::IN)];
            match poll(&mut order, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            // Orders that came together are one.
            match io::read(&self.order, &mut [0; 64]) {
                Ok(1..) => {}
                Err(Errno::INTR | Errno::AGAIN) => continue,
                Ok(0) | Err(_) => return,
            }
            if self.tell.send(paths.iter().map(|path| read(path)).collect()).is_err() {
                return;
            }
            // Full only if it was rung for ages and nobody looked.
            let _ = io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, PolicyError> {
    Policy::load(path).map(|policy| policy.items())
}

impl FromFile {
    fn refused(&self, refused: PolicyRefused<'_>) -> ApplyError {
        let fix = match refused {
            PolicyRefused::Held(_) => "leave the name to one of the two",
            PolicyRefused::Full => "raise capacity.policy-entries and capacity.policy-records",
            _ => "check it with kdbusctl policy check",
        };
        ApplyError::Refused {
            path: self.path.clone(),
            bus: self.bus.clone(),
            why: format!("{refused}; {fix}"),
        }
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Refused { path, bus, why } => {
                write!(f, "{}: bus {bus} does not take it: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for ApplyError {}
