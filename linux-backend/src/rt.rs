//! What a thread asks of the system before it keeps time: a real-time class, memory that stays, pages that are there, a
//! CPU of its own.
//!
//! Each of these may be refused, and a program mostly works without it, with more deadlines missed. So nothing here ends
//! it: [`RealTime::ask`] says what was granted, and of the rest what would permit it.
//!
//! ```
//! use kdbus_linux::rt::{Memory, RealTime};
//!
//! // When everything is allocated and connected, before the first deadline:
//! let granted = RealTime::new().fifo(40).lock_memory(Memory::Now).prefault_stack().ask();
//! println!("{granted}");
//! ```

use core::fmt;
use core::num::NonZeroU64;

use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::thread::{CpuSet, sched_setaffinity, set_current_timer_slack};

use crate::local::raw;

/// Bytes of stack that [`prefault_stack`] puts in place: more than kdbus-core and its transports ever use, and a part of
/// what any thread has.
pub const STACK: usize = 128 << 10;

/// Bytes of the smallest page of any machine.
const PAGE: usize = 4096;

/// A scheduling class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `SCHED_OTHER`, for everybody. Its priority is 0.
    Other,
    /// `SCHED_FIFO`: runs until it sleeps, or something with a higher priority wants to.
    Fifo,
    /// `SCHED_RR`: the same, and takes turns with others of its priority.
    RoundRobin,
}

/// What memory stays resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// What is there now. What comes later is not limited by how much may be locked.
    Now,
    /// And all that comes later, which then fails where it exceeds the limit.
    NowAndLater,
}

/// What a thread wants. Nothing by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "nothing happens before `ask`"]
pub struct RealTime {
    fifo: Option<u32>,
    memory: Option<Memory>,
    stack: bool,
    cpu: Option<usize>,
}

/// What a thread was granted; prints as a line for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Its priority in `SCHED_FIFO`, if it asked for one.
    pub fifo: Option<Result<u32, Errno>>,
    /// Whether the memory of its process stays resident, if it asked for that.
    pub memory: Option<Result<(), Errno>>,
    /// The CPU that it stays on, if it asked for one.
    pub cpu: Option<Result<usize, Errno>>,
}

impl RealTime {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self { fifo: None, memory: None, stack: false, cpu: None }
    }

    /// `SCHED_FIFO` with `priority`, 1 (least urgent) to 99, for the calling thread.
    pub const fn fifo(mut self, priority: u32) -> Self {
        self.fifo = Some(priority);
        self
    }

    /// Memory of the whole process that stays resident.
    pub const fn lock_memory(mut self, memory: Memory) -> Self {
        self.memory = Some(memory);
        self
    }

    /// [`STACK`] bytes of the calling thread's stack in place.
    pub const fn prefault_stack(mut self) -> Self {
        self.stack = true;
        self
    }

    /// The calling thread on this CPU and no other.
    pub const fn cpu(mut self, cpu: usize) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Asks for all of it, in an order in which one helps the other: the stack is there before memory is locked, and the
    /// thread is where it stays before it is urgent.
    #[must_use = "what was refused is worth a line in the log"]
    pub fn ask(&self) -> Granted {
        if self.stack {
            prefault_stack();
        }
        let granted = Granted {
            memory: self.memory.map(lock_memory),
            cpu: self.cpu.map(|cpu| run_on(cpu).map(|()| cpu)),
            fifo: self.fifo.map(|priority| schedule(Class::Fifo, priority).map(|()| priority)),
        };
        if matches!(granted.fifo, Some(Err(_))) {
            // Without a real-time class, the kernel may put timers off by 50 µs to save wake-ups.
            let _ = set_current_timer_slack(NonZeroU64::new(1));
        }
        granted
    }
}

impl Granted {
    /// Whether all that was asked for was granted.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !matches!(self.fifo, Some(Err(_)))
            && !matches!(self.memory, Some(Err(_)))
            && !matches!(self.cpu, Some(Err(_)))
    }
}

impl fmt::Display for Granted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fifo {
            None => f.write_str("normal scheduling")?,
            Some(Ok(priority)) => write!(f, "SCHED_FIFO {priority}")?,
            Some(Err(Errno::PERM)) => {
                f.write_str("normal scheduling (SCHED_FIFO needs CAP_SYS_NICE or RLIMIT_RTPRIO)")?;
            }
            Some(Err(error)) => write!(f, "normal scheduling (SCHED_FIFO: {error})")?,
        }
        match self.memory {
            None => {}
            Some(Ok(())) => f.write_str(", memory locked")?,
            Some(Err(Errno::PERM | Errno::NOMEM | Errno::AGAIN)) => {
                f.write_str(", memory not locked (needs CAP_IPC_LOCK or RLIMIT_MEMLOCK)")?;
            }
            Some(Err(error)) => write!(f, ", memory not locked ({error})")?,
        }
        match self.cpu {
            None => Ok(()),
            Some(Ok(cpu)) => write!(f, ", on CPU {cpu}"),
            Some(Err(Errno::INVAL)) => {
                f.write_str(", on any CPU (the one asked for is not this process' to use)")
            }
            Some(Err(error)) => write!(f, ", on any CPU ({error})"),
        }
    }
}

/// Gives the calling thread a scheduling class and a priority in it.
///
/// # Errors
///
/// `EPERM` without `CAP_SYS_NICE` if `RLIMIT_RTPRIO` is below the priority; `EINVAL` for one that the class does not have.
pub fn schedule(class: Class, priority: u32) -> Result<(), Errno> {
    let class = match class {
        Class::Other => 0,
        Class::Fifo => 1,
        Class::RoundRobin => 2,
    };
    raw::set_scheduler(class, priority)
}

/// Keeps memory of the process resident.
///
/// # Errors
///
/// `EPERM` without `CAP_IPC_LOCK` if `RLIMIT_MEMLOCK` is 0, `ENOMEM` if it is below what there is to lock.
pub fn lock_memory(memory: Memory) -> Result<(), Errno> {
    mlockall(match memory {
        Memory::Now => MlockAllFlags::CURRENT,
        Memory::NowAndLater => MlockAllFlags::CURRENT | MlockAllFlags::FUTURE,
    })
}

/// Has the calling thread run on `cpu` and no other.
///
/// # Errors
///
/// `EINVAL` if this process may not use that one, or there is none.
pub fn run_on(cpu: usize) -> Result<(), Errno> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(Errno::INVAL);
    }
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    sched_setaffinity(None, &cpus)
}

/// Puts [`STACK`] bytes of the calling thread's stack in place, so that no later call takes a page fault for it.
#[inline(never)]
pub fn prefault_stack() {
    let mut stack = [0_u8; STACK];
    prefault(&mut stack);
}

/// Puts all pages of `memory` in place. Its bytes stay as they are.
pub fn prefault(memory: &mut [u8]) {
    for page in memory.chunks_mut(PAGE) {
        if let Some(byte) = page.first_mut() {
            // The compiler may not know that this writes what is there already.
            *core::hint::black_box(&mut *byte) = core::hint::black_box(*byte);
        }
    }
    core::hint::black_box(memory);
}

#[cfg(test)]
mod tests {
    use std::string::ToString;
    use std::vec;

    use super::*;

    #[test]
    fn what_was_refused_says_what_would_permit_it() {
        let granted =
            |fifo, memory| Granted { fifo: Some(fifo), memory: Some(memory), cpu: None }.to_string();
        assert_eq!(granted(Ok(42), Ok(())), "SCHED_FIFO 42, memory locked");
        assert!(granted(Err(Errno::PERM), Ok(())).contains("CAP_SYS_NICE"));
        assert!(granted(Ok(42), Err(Errno::NOMEM)).contains("RLIMIT_MEMLOCK"));
        assert!(granted(Err(Errno::INVAL), Ok(())).contains("Invalid argument"));
    }

    #[test]
    fn what_was_not_asked_for_is_not_complained_about() {
        let granted = RealTime::new().ask();
        assert!(granted.is_complete());
        assert_eq!(granted.to_string(), "normal scheduling");
    }

    #[test]
    fn an_impossible_priority_or_cpu_is_refused() {
        assert_eq!(schedule(Class::Fifo, 1000), Err(Errno::INVAL));
        assert_eq!(schedule(Class::Other, u32::MAX), Err(Errno::INVAL));
        assert_eq!(schedule(Class::Other, 0), Ok(()));
        assert_eq!(run_on(usize::MAX), Err(Errno::INVAL));
        let granted = RealTime::new().cpu(CpuSet::MAX_CPU - 1).ask();
        assert!(!granted.is_complete() && granted.to_string().contains("any CPU"), "{granted}");
    }

    #[test]
    fn a_thread_stays_on_its_cpu() {
        std::thread::spawn(|| {
            let allowed = rustix::thread::sched_getaffinity(None).unwrap();
            let cpu = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu)).unwrap();
            assert_eq!(RealTime::new().cpu(cpu).ask().cpu, Some(Ok(cpu)));
            assert_eq!(rustix::thread::sched_getaffinity(None).unwrap().count(), 1);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn pages_that_are_in_place_take_no_fault() {
        let faults = || {
            let status = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, fields) = status.rsplit_once(") ").unwrap();
            fields.split(' ').nth(7).unwrap().parse::<u64>().unwrap()
        };
        let mut memory = vec![0_u8; 64 * PAGE];
        memory[5] = 7;
        prefault(&mut memory);
        let before = faults();
        for byte in memory.iter_mut().step_by(PAGE) {
            *byte = byte.wrapping_add(1);
        }
        assert!(faults() - before < 8, "the kernel may take a few for its own reasons");
        assert_eq!(memory[5], 7);
        prefault_stack();
    }
}
