//! Which process runs on which CPU, and how often it was switched.

use std::io;

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use crate::contender::{Contender, Part};

/// Where the processes of a contender run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Placement {
    /// All on this CPU.
    One(usize),
    /// The client, and what stands in the middle, on the first; the server on the second.
    Two(usize, usize),
}

impl Placement {
    /// The placements that this machine has CPUs for.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn available() -> io::Result<Vec<Self>> {
        let allowed = sched_getaffinity(None)?;
        let mut cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let Some(first) = cpus.next() else { return Ok(Vec::new()) };
        let mut placements = vec![Self::One(first)];
        placements.extend(cpus.next_back().map(|last| Self::Two(first, last)));
        Ok(placements)
    }

    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::One(_) => "one CPU",
            Self::Two(..) => "two CPUs",
        }
    }

    /// Moves this process and those of `contender` to their CPUs.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn apply(self, contender: &Contender) -> io::Result<()> {
        let (client, server) = match self {
            Self::One(cpu) => (cpu, cpu),
            Self::Two(client, server) => (client, server),
        };
        pin(None, client)?;
        for (part, pid) in contender.processes() {
            pin(Some(pid), if part == Part::Server { server } else { client })?;
        }
        Ok(())
    }
}

fn pin(pid: Option<Pid>, cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu);
    Ok(sched_setaffinity(pid, &cpus)?)
}

/// Context switches of a process since it was started, those it asked for and those it did not.
///
/// # Errors
///
/// If `/proc` does not tell.
pub fn switches(pid: Option<Pid>) -> io::Result<u64> {
    let path = pid.map_or_else(
        || "/proc/self/status".to_owned(),
        |pid| format!("/proc/{}/status", pid.as_raw_nonzero()),
    );
    Ok(switches_in(&std::fs::read_to_string(path)?))
}

fn switches_in(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(switches_in(status), 157);
    }
}
