//! What a process asks of the system before it keeps time, and what it was granted.

use std::fmt;
use std::num::NonZeroU64;

use kdbusd::config::{Policy, Schedule};
use kdbusd::process;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::set_current_timer_slack;

/// What a process was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its priority in `SCHED_FIFO`; `None` if it stays in the class that it was started in.
    pub fifo: Option<u32>,
    /// Whether its memory, as it was then, stays resident.
    pub is_locked: bool,
}

impl Granted {
    /// Asks for `SCHED_FIFO` with `priority` for the calling thread, and for the memory of the process to stay where it is.
    ///
    /// To be called when everything is allocated. What is refused is not fatal: sound plays without it, with more
    /// deadlines missed.
    pub fn ask(priority: u32) -> Self {
        // Only what is there now: growth is not limited by what may be locked.
        let is_locked = mlockall(MlockAllFlags::CURRENT).is_ok();
        let fifo =
            process::schedule(&Schedule { policy: Policy::Fifo, priority }).is_ok().then_some(priority);
        if fifo.is_none() {
            // Without a real-time class, the kernel may put timers off by 50 µs to save wake-ups.
            let _ = set_current_timer_slack(NonZeroU64::new(1));
        }
        Self { fifo, is_locked }
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fifo {
            Some(priority) => write!(f, "SCHED_FIFO {priority}")?,
            None => f.write_str("normal scheduling (SCHED_FIFO needs CAP_SYS_NICE or RLIMIT_RTPRIO)")?,
        }
        f.write_str(if self.is_locked {
            ", memory locked"
        } else {
            ", memory not locked (needs CAP_IPC_LOCK or RLIMIT_MEMLOCK)"
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_refused_says_what_would_permit_it() {
        let granted = |fifo, is_locked| Granted { fifo, is_locked }.to_string();
        assert_eq!(granted(Some(42), true), "SCHED_FIFO 42, memory locked");
        assert!(granted(None, true).contains("CAP_SYS_NICE"));
        assert!(granted(Some(42), false).contains("RLIMIT_MEMLOCK"));
    }
}
