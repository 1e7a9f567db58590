//! What can go wrong, and when: faults by seed, and as a script that people can read and shorten.

use core::fmt;
use core::str::FromStr;

use crate::machine::Random;

/// One thing that goes wrong: at which step of which process, and what.
///
/// A step is a command to the bus; a process' first one is 1. Written as `kill:2@17`: process 2 (the third one that
/// was started) is killed in place of its command 17. Several faults are separated by commas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which process, in the order in which they were started.
    pub process: usize,
    /// At which of its commands.
    pub step: u64,
    /// What happens.
    pub kind: FaultKind,
}

/// What goes wrong. Times are in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FaultKind {
    /// `kill`: the process ends before the command.
    Kill,
    /// `stop`: the process does nothing for this long once it waits next.
    Stop(u64),
    /// `delay`: the next wake-up of the process comes this late. (None is ever lost: neither kdbusd nor the module
    /// loses one, and no client has to bear it.)
    Delay(u64),
    /// `spurious`: the process is woken for nothing.
    Spurious,
    /// `refuse`: the command is refused, as for a lack of room or memory, and nothing changes.
    Refuse,
    /// `nofds`: the process can open no descriptor any more.
    NoDescriptors,
    /// `flood`: somebody else sends this many messages to the process' connections, or as many as the bus takes.
    Flood(u64),
    /// `load`: something computes for this long at a real-time priority of 98 on any core.
    Load {
        /// For how long.
        ns: u64,
    },
    /// `stall`: the whole machine stands still for this long, but not its clocks.
    Stall(u64),
    /// `clock`: the real-time clock is set by so much.
    Clock(i64),
}

impl FaultKind {
    const fn name(self) -> &'static str {
        match self {
            Self::Kill => "kill",
            Self::Stop(_) => "stop",
            Self::Delay(_) => "delay",
            Self::Spurious => "spurious",
            Self::Refuse => "refuse",
            Self::NoDescriptors => "nofds",
            Self::Flood(_) => "flood",
            Self::Load { .. } => "load",
            Self::Stall(_) => "stall",
            Self::Clock(_) => "clock",
        }
    }

    const fn amount(self) -> Option<i64> {
        match self {
            Self::Stop(n) | Self::Delay(n) | Self::Flood(n) | Self::Load { ns: n } | Self::Stall(n) => {
                Some(n as i64)
            }
            Self::Clock(n) => Some(n),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}@{}", self.kind.name(), self.process, self.step)?;
        self.kind.amount().map_or(Ok(()), |amount| write!(f, "={amount}"))
    }
}

/// A text is no fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultError(String);

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no fault; an example of one is stop:2@17=5000000", self.0)
    }
}

impl std::error::Error for FaultError {}

impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        Self::parse(text).ok_or_else(|| FaultError(text.to_owned()))
    }
}

impl Fault {
    fn parse(text: &str) -> Option<Self> {
        let (name, place) = text.split_once(':')?;
        let (place, amount) = match place.split_once('=') {
            Some((place, amount)) => (place, Some(amount.parse::<i64>().ok()?)),
            None => (place, None),
        };
        let (process, step) = place.split_once('@')?;
        let positive = || u64::try_from(amount?).ok();
        let kind = match name {
            "kill" => FaultKind::Kill,
            "spurious" => FaultKind::Spurious,
            "refuse" => FaultKind::Refuse,
            "nofds" => FaultKind::NoDescriptors,
            "stop" => FaultKind::Stop(positive()?),
            "delay" => FaultKind::Delay(positive()?),
            "flood" => FaultKind::Flood(positive()?),
            "load" => FaultKind::Load { ns: positive()? },
            "stall" => FaultKind::Stall(positive()?),
            "clock" => FaultKind::Clock(amount?),
            _ => return None,
        };
        if kind.amount().is_some() != amount.is_some() {
            return None;
        }
        Some(Self { process: process.parse().ok()?, step: step.parse().ok()?, kind })
    }

    /// Reads faults separated by commas; an empty text has none.
    ///
    /// # Errors
    ///
    /// [`FaultError`] for the first one that is none.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, FaultError> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::parse).collect()
    }
}

/// Which faults a seed brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPlan {
    /// Faults of one run, at most. Default 6.
    pub most: u64,
    /// Processes that they happen to, in the order in which these were started; the first one that is spared, as it
    /// keeps the bus alive, is process 0. Default 8.
    pub processes: u64,
    /// Steps of a process among which they happen. Default 60.
    pub steps: u64,
    /// The longest time that anything stands still, in nanoseconds. Default 50 ms.
    pub longest_ns: u64,
}

impl Default for FaultPlan {
    fn default() -> Self {
        Self { most: 6, processes: 8, steps: 60, longest_ns: 50_000_000 }
    }
}

impl FaultPlan {
    /// The faults of `seed`.
    #[must_use]
    pub fn of(&self, seed: u64) -> Vec<Fault> {
        let mut random = Random::new(seed ^ 0x6661_756c_7473);
        let count = random.below(self.most.saturating_add(1));
        (0..count)
            .map(|_| {
                let process = 1 + random.below(self.processes.max(1)) as usize;
                let step = 1 + random.below(self.steps.max(1));
                let ns = 1 + random.below(self.longest_ns.max(1));
                let kind = match random.below(12) {
                    0 | 1 => FaultKind::Kill,
                    2 => FaultKind::Stop(ns),
                    3 => FaultKind::Delay(ns),
                    4 => FaultKind::Spurious,
                    5 | 6 => FaultKind::Refuse,
                    7 => FaultKind::NoDescriptors,
                    8 => FaultKind::Flood(1 + random.below(100)),
                    9 => FaultKind::Load { ns },
                    10 => FaultKind::Stall(ns),
                    _ => FaultKind::Clock(ns as i64 * 1000 - self.longest_ns as i64 * 500),
                };
                Fault { process, step, kind }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_read_back_from_what_they_are_written_as() {
        for seed in 0..500 {
            let faults = FaultPlan::default().of(seed);
            let text = faults.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            assert_eq!(Fault::parse_all(&text), Ok(faults), "{text}");
        }
    }

    #[test]
    fn what_is_no_fault_is_refused() {
        for text in
            ["kill", "kill:1", "kill:1@", "kill:1@2=3", "stop:1@2", "stop:1@2=-3", "die:1@2", "kill:x@2"]
        {
            assert_eq!(text.parse::<Fault>(), Err(FaultError(text.to_owned())), "{text}");
        }
        assert_eq!(Fault::parse_all(" ,"), Ok(Vec::new()));
    }

    #[test]
    fn seeds_bring_every_kind_of_fault() {
        let mut names: Vec<_> =
            (0..500).flat_map(|seed| FaultPlan::default().of(seed)).map(|fault| fault.kind.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), 10, "{names:?}");
    }
}
