//! What a daemon asks of its own process: memory that stays, a scheduling class, descriptors.

use std::fmt;
use std::os::fd::OwnedFd;

use kdbus_linux::rt;
use rustix::io::Errno;
use rustix::mm::MlockAllFlags;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::{Policy, Schedule};
use crate::raw;

/// Something that the process may not do, and what would permit it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProcessError {
    /// The scheduling class or priority.
    Schedule {
        /// What was asked for.
        policy: Policy,
        /// Its priority.
        priority: u32,
        /// The error.
        error: Errno,
    },
    /// Locking memory.
    Lock(Errno),
    /// The limit of descriptors.
    Descriptors(Errno),
    /// The descriptor named on the command line.
    Inherited {
        /// Its number.
        fd: i32,
        /// The error.
        error: Errno,
    },
}

/// Gives the calling thread its scheduling class.
///
/// # Errors
///
/// [`ProcessError::Schedule`].
pub fn schedule(schedule: &Schedule) -> Result<(), ProcessError> {
    let Schedule { policy, priority } = *schedule;
    let class = match policy {
        Policy::Inherit => return Ok(()),
        Policy::Other => rt::Class::Other,
        Policy::Fifo => rt::Class::Fifo,
        Policy::Rr => rt::Class::RoundRobin,
    };
    rt::schedule(class, priority).map_err(|error| ProcessError::Schedule { policy, priority, error })
}

/// Keeps all memory of the process resident, now and later.
///
/// # Errors
///
/// [`ProcessError::Lock`].
pub fn lock_memory() -> Result<(), ProcessError> {
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).map_err(ProcessError::Lock)
}

/// Lets the process open as many descriptors as its hard limit allows.
///
/// # Errors
///
/// [`ProcessError::Descriptors`].
pub fn raise_descriptor_limit() -> Result<(), ProcessError> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).map_err(ProcessError::Descriptors)
}

/// How many descriptors the process may open; `None` if as many as it likes.
#[must_use]
pub fn descriptor_limit() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// Takes over a descriptor that the process was started with. To be called before anything else is opened.
///
/// # Errors
///
/// [`ProcessError::Inherited`] if it is not open, or is one of the three standard ones.
pub fn inherited(fd: i32) -> Result<OwnedFd, ProcessError> {
    raw::inherited(fd).map_err(|error| ProcessError::Inherited { fd, error })
}

impl fmt::Display for ProcessError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Schedule { policy, priority, error: Errno::PERM } => {
                write!(f, "scheduling class {policy:?} with priority {priority} is not permitted; grant ")?;
                write!(f, "CAP_SYS_NICE, raise RLIMIT_RTPRIO (LimitRTPRIO={priority} in a unit), or set ")?;
                f.write_str("schedule.policy to \"inherit\"")
            }
            Self::Schedule { policy, priority, error } => {
                write!(f, "scheduling class {policy:?} with priority {priority}: {error}")
            }
            Self::Lock(Errno::PERM | Errno::NOMEM | Errno::AGAIN) => {
                f.write_str("locking memory is not permitted, or not this much; grant CAP_IPC_LOCK, raise ")?;
                f.write_str("RLIMIT_MEMLOCK (LimitMEMLOCK=infinity in a unit), or set memory.lock to false")
            }
            Self::Lock(error) => write!(f, "locking memory: {error}"),
            Self::Descriptors(error) => write!(f, "raising the limit of descriptors: {error}"),
            Self::Inherited { fd, error } => {
                write!(f, "descriptor {fd} given with --ready-fd: {error}; open it when starting kdbusd")
            }
        }
    }
}

impl std::error::Error for ProcessError {}
