//! How the cost of a message grows with what else there is: connections, names, subscribers.

use std::io;
use std::time::Duration;

use hdrhistogram::Histogram;
use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{CALL_TIMEOUT, Message};
use rustix::process::{Resource, getrlimit, setrlimit};
use serde::Serialize;

use crate::bus::{self, Bus};
use crate::case::{Case, Kind, Place, System};
use crate::contender::{Contender, Cpus, Length};
use crate::rounds::Extent;

/// What there is more and more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Peers of the receiver that have called it, and are silent since: a round trip of 64 bytes.
    IdlePeers,
    /// Peers of the receiver that have called it by a lane, and are silent since: a round trip of 64 bytes, on a bus with a
    /// thousand connections and 4096 names.
    IdleLanes,
    /// Well-known names on the bus: a round trip of 64 bytes to one of them.
    Names,
    /// Subscribers of a signal of 64 bytes: until the sender can go on.
    Subscribers,
    /// The same: until the last of them has it.
    LastSubscriber,
}

/// One step of a series.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What there is so much of.
    pub what: What,
    /// How many.
    pub count: usize,
    /// Which of kdbus-rt's ways the messages took.
    pub system: System,
    /// Median in nanoseconds, of the round where it was lowest.
    pub p50_ns: u64,
}

impl What {
    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::IdlePeers => "idle peers of the receiver, round trip",
            Self::IdleLanes => "idle lanes to the receiver, round trip",
            Self::Names => "names, round trip",
            Self::Subscribers => "subscribers, until the sender goes on",
            Self::LastSubscriber => "subscribers, until the last has it",
        }
    }
}

/// The numbers that are tried.
const PEERS: [usize; 6] = [1, 2, 8, 32, 128, 512];
/// Peers with lanes, the client of the case among them.
const LANES: [usize; 6] = [2, 8, 9, 32, 128, 512];
/// Connections beside those, and names, while lanes are counted.
const OTHERS: usize = 1000 - 512;
const NAMES: [usize; 5] = [1, 16, 256, 1024, 4096];
const SUBSCRIBERS: [usize; 7] = [1, 2, 4, 8, 16, 32, 64];

/// Rounds of one pass.
const ROUNDS: u32 = 3;

/// Names that one connection may own.
const NAMES_EACH: usize = 256;

/// The smallest pool that is worth having.
const SMALL_POOL: u64 = 64 << 10;

/// Measures all series over `system`: round trips on one CPU, subscribers on another than the sender. The rounds of `extent` are
/// shared out over passes through all series, since what slows the machine down for seconds would show as the cost of one
/// number otherwise.
///
/// # Errors
///
/// What failed.
pub fn measure(
    system: System,
    cpus: &Cpus,
    extent: Extent,
    mut progress: impl FnMut(What, usize),
) -> io::Result<Vec<Step>> {
    allow_many_files()?;
    let in_one = Extent { rounds: extent.rounds.min(ROUNDS), ..extent };
    let mut steps = pass(system, cpus, in_one, &mut progress)?;
    for _ in 1..extent.rounds.div_ceil(ROUNDS) {
        for (step, again) in steps.iter_mut().zip(pass(system, cpus, in_one, &mut progress)?) {
            step.p50_ns = step.p50_ns.min(again.p50_ns);
        }
    }
    Ok(steps)
}

/// All series once, by what there is more of and how many.
fn pass(
    system: System,
    cpus: &Cpus,
    extent: Extent,
    progress: &mut impl FnMut(What, usize),
) -> io::Result<Vec<Step>> {
    let mut steps = Vec::new();
    for (what, counts) in [(What::IdlePeers, &PEERS[..]), (What::Names, &NAMES[..])] {
        let case = Case { system, kind: Kind::Call, bytes: 64, place: Place::OneCpu };
        let mut contender = Contender::start_with(&case, cpus, bus::MANY)?;
        let mut more = More { peers: Vec::new(), names: 1 };
        for count in counts {
            progress(what, *count);
            match what {
                What::IdlePeers => more.peers(&contender, *count, 0)?,
                _ => more.names(&contender, *count)?,
            }
            steps.push(Step { what, count: *count, system, p50_ns: lowest(&mut contender, extent)? });
        }
    }
    if system == System::Channel {
        let case = Case { system, kind: Kind::Call, bytes: 64, place: Place::OneCpu };
        let mut contender = Contender::start_with(&case, cpus, bus::MANY_LANES)?;
        let mut more = More { peers: Vec::new(), names: 1 };
        more.peers(&contender, OTHERS, 0)?;
        more.names(&contender, 4096)?;
        let mut idle = More { peers: Vec::new(), names: 1 };
        for count in LANES {
            progress(What::IdleLanes, count);
            idle.peers(&contender, count, 1)?;
            let p50_ns = lowest(&mut contender, extent)?;
            steps.push(Step { what: What::IdleLanes, count, system, p50_ns });
        }
    }
    for count in SUBSCRIBERS {
        progress(What::Subscribers, count);
        // Subscribers elsewhere if possible: on the sender's CPU they would have their turns before it goes on.
        let place = if cpus.second.is_some() { Place::TwoCpus } else { Place::OneCpu };
        let case = Case { system, kind: Kind::Broadcast, bytes: 64, place };
        let mut contender = Contender::start_with(&case, cpus, count)?;
        let mut publishing = u64::MAX;
        let mut last = u64::MAX;
        for _ in 0..extent.rounds {
            let mut costs = histogram()?;
            let mut arrivals = histogram()?;
            contender.broadcasts(extent.warm_up, &mut |_, _| ())?;
            contender.broadcasts(extent.turn, &mut |cost, arrival| {
                costs.saturating_record(cost);
                arrivals.saturating_record(arrival);
            })?;
            publishing = publishing.min(costs.value_at_quantile(0.5));
            last = last.min(arrivals.value_at_quantile(0.5));
        }
        steps.push(Step { what: What::Subscribers, count, system, p50_ns: publishing });
        steps.push(Step { what: What::LastSubscriber, count, system, p50_ns: last });
    }
    steps.sort_by_key(|step| (step.what as u8, step.count));
    Ok(steps)
}

/// What comes on top of a contender's own connections and name.
struct More {
    peers: Vec<Bus>,
    names: usize,
}

impl More {
    /// Connects until the receiver has `count` peers, each of which has called it; by a lane, if it has `lanes`.
    fn peers(&mut self, contender: &Contender, count: usize, lanes: usize) -> io::Result<()> {
        while self.peers.len() + 1 < count {
            let peer = bus::connect(contender.dir(), SMALL_POOL, false, lanes)?;
            if lanes > 0 {
                peer.transport().open_lane_to_name(bus::service()?).map_err(io::Error::other)?;
            }
            let call = Message::to_name(bus::service()?).payload(&[0; 64]);
            peer.call(&call, CALL_TIMEOUT).wait().map_err(io::Error::other)?;
            self.peers.push(peer);
        }
        Ok(())
    }

    /// Acquires names until there are `count`.
    fn names(&mut self, contender: &Contender, count: usize) -> io::Result<()> {
        while self.names < count {
            if self.names.is_multiple_of(NAMES_EACH) || self.peers.is_empty() {
                self.peers.push(bus::connect(contender.dir(), SMALL_POOL, false, 0)?);
            }
            let name = format!("org.example.Number.n{}", self.names);
            let name = WellKnownName::parse(&name).map_err(io::Error::other)?;
            if let Some(owner) = self.peers.last() {
                owner.acquire(name, NameFlags::empty()).map_err(io::Error::other)?;
            }
            self.names += 1;
        }
        Ok(())
    }
}

fn lowest(contender: &mut Contender, extent: Extent) -> io::Result<u64> {
    let mut lowest = u64::MAX;
    for _ in 0..extent.rounds {
        contender.turn(extent.warm_up, |_| ())?;
        let mut round = histogram()?;
        contender.turn(extent.turn, |took| round.saturating_record(took))?;
        lowest = lowest.min(round.value_at_quantile(0.5));
    }
    Ok(lowest)
}

fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 10_000_000_000, 3).map_err(io::Error::other)
}

/// Each connection takes a handful of descriptors here and at the daemon, which inherits the limit.
fn allow_many_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    Ok(setrlimit(Resource::Nofile, most)?)
}

/// A turn that is short enough for a series.
#[must_use]
pub fn short(extent: Extent) -> Extent {
    let turn = Length { time: extent.turn.time.min(Duration::from_millis(60)), ..extent.turn };
    Extent { turn, ..extent }
}
