//! Core's priority queue beside `heapless::BinaryHeap`: one push and one pop, up to a depth of 1,024.
//!
//! Two loads: *fill* pushes 1,024 entries and then pops them all, so that each one finds its place among the others;
//! *full* pushes and pops by turns with 1,023 entries waiting. In a full queue what stays is what is least urgent, so
//! most of what comes leaves at once.
//!
//! Core's queue is stable: of equal priorities, the first to come leaves first. The heap is measured as it is, and
//! with the number of arrival in each entry, which makes it stable too.

use std::cmp::Ordering;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::Instant;

use clap::{Args, ValueEnum};
use heapless::BinaryHeap;
use heapless::binary_heap::Min;
use kdbus_core::queue::StaticQueue;
use serde::Serialize;

use crate::callgrind;
use crate::report::table;

/// Entries that are queued while a push and a pop are measured.
const DEPTH: usize = 1_024;

/// Push and pop pairs under callgrind, which takes its time.
const COUNTED_PAIRS: u32 = 20 * DEPTH as u32;

/// The function that callgrind counts in.
const COUNTED: &str = "*measured_pairs*";

/// Measures core's priority queue beside heapless' binary heap, by instructions and by time.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Rounds; in each one every queue has its turn
    #[arg(long, default_value_t = 30)]
    rounds: u32,
    /// Push and pop pairs of a turn
    #[arg(long, default_value_t = 204_800)]
    pairs: u32,
    /// Show the result as JSON
    #[arg(long)]
    json: bool,
    /// Run one queue only and show nothing, for callgrind
    #[arg(long, hide = true, requires = "priorities")]
    only: Option<Kind>,
    /// Priorities of that queue
    #[arg(long, hide = true, requires = "load")]
    priorities: Option<Priorities>,
    /// Load of that queue
    #[arg(long, hide = true)]
    load: Option<Load>,
}

/// A queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    /// Core's.
    Core,
    /// The heap with the number of arrival.
    StableHeap,
    /// The heap as it is.
    Heap,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Core, Self::StableHeap, Self::Heap];

    const fn name(self) -> &'static str {
        match self {
            Self::Core => "core::queue",
            Self::StableHeap => "BinaryHeap, made stable",
            Self::Heap => "BinaryHeap",
        }
    }
}

/// Where the priorities come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Priorities {
    /// Any 64-bit number.
    Random,
    /// Eight different ones.
    Eight,
}

impl Priorities {
    const ALL: [Self; 2] = [Self::Random, Self::Eight];

    const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Eight => "eight",
        }
    }
}

/// How pushes and pops follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Load {
    /// All pushes first, up to the depth, then all pops.
    Fill,
    /// By turns, with one entry less than the depth waiting.
    Full,
}

impl Load {
    const ALL: [Self; 2] = [Self::Fill, Self::Full];

    const fn name(self) -> &'static str {
        match self {
            Self::Fill => "fill",
            Self::Full => "full",
        }
    }
}

/// What is measured: an item leaves for each that comes.
trait Queue {
    fn push(&mut self, priority: i64, item: u64);
    fn pop(&mut self) -> Option<u64>;
}

struct Core(Box<StaticQueue<u64, DEPTH>>);

impl Queue for Core {
    fn push(&mut self, priority: i64, item: u64) {
        // There is room: one entry has left for each that comes.
        let _ = self.0.view().push(priority, item);
    }

    fn pop(&mut self) -> Option<u64> {
        self.0.view().pop()
    }
}

/// An entry of the stable heap, ordered by priority and arrival; the lowest leaves first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Stable {
    key: (i64, u64),
    item: u64,
}

struct StableHeap {
    heap: Box<BinaryHeap<Stable, Min, DEPTH>>,
    arrivals: u64,
}

impl Queue for StableHeap {
    fn push(&mut self, priority: i64, item: u64) {
        self.arrivals += 1;
        let _ = self.heap.push(Stable { key: (priority, self.arrivals), item });
    }

    fn pop(&mut self) -> Option<u64> {
        self.heap.pop().map(|entry| entry.item)
    }
}

/// What a program would write that needs no order of arrival: a smaller entry, and no count.
struct Heap(Box<BinaryHeap<Small, Min, DEPTH>>);

struct Small {
    priority: i64,
    item: u64,
}

impl Ord for Small {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority.cmp(&other.priority)
    }
}

impl PartialOrd for Small {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Small {
    fn eq(&self, other: &Self) -> bool {
        self.priority == other.priority
    }
}

impl Eq for Small {}

impl Queue for Heap {
    fn push(&mut self, priority: i64, item: u64) {
        let _ = self.0.push(Small { priority, item });
    }

    fn pop(&mut self) -> Option<u64> {
        self.0.pop().map(|entry| entry.item)
    }
}

/// Priorities from a fixed seed, the same for every queue.
struct Source {
    priorities: Priorities,
    state: u64,
}

impl Source {
    const fn new(priorities: Priorities) -> Self {
        Self { priorities, state: 0x9e37_79b9_7f4a_7c15 }
    }

    const fn next(&mut self) -> i64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        match self.priorities {
            Priorities::Random => self.state as i64,
            Priorities::Eight => (self.state >> 61) as i64 - 4,
        }
    }
}

/// One queue, and priorities made before the clock starts.
struct Turn<Q> {
    queue: Q,
    load: Load,
    priorities: Vec<i64>,
}

impl<Q: Queue> Turn<Q> {
    fn new(mut queue: Q, load: Load, priorities: Priorities, pairs: u32) -> Self {
        let mut source = Source::new(priorities);
        if load == Load::Full {
            for item in 1..DEPTH as u64 {
                queue.push(source.next(), item);
            }
        }
        Self { queue, load, priorities: (0..pairs).map(|_| source.next()).collect() }
    }

    fn run(&mut self) -> u64 {
        let chunk = match self.load {
            Load::Fill => DEPTH,
            Load::Full => 1,
        };
        measured_pairs(&mut self.queue, &self.priorities, chunk)
    }
}

/// A push and a pop for each priority, `chunk` pushes at a time, and nothing else. Callgrind counts what
/// happens in here.
#[inline(never)]
fn measured_pairs<Q: Queue>(queue: &mut Q, priorities: &[i64], chunk: usize) -> u64 {
    let mut sum = 0_u64;
    for chunk in priorities.chunks(chunk) {
        for priority in chunk {
            queue.push(*priority, *priority as u64);
        }
        for _ in chunk {
            sum = sum.rotate_left(1) ^ queue.pop().unwrap_or_default();
        }
    }
    sum
}

trait Runs {
    fn run(&mut self) -> u64;
}

impl<Q: Queue> Runs for Turn<Q> {
    fn run(&mut self) -> u64 {
        Self::run(self)
    }
}

fn turn(kind: Kind, load: Load, priorities: Priorities, pairs: u32) -> Box<dyn Runs> {
    match kind {
        Kind::Core => Box::new(Turn::new(Core(Box::new(StaticQueue::new())), load, priorities, pairs)),
        Kind::StableHeap => {
            let queue = StableHeap { heap: Box::new(BinaryHeap::new()), arrivals: 0 };
            Box::new(Turn::new(queue, load, priorities, pairs))
        }
        Kind::Heap => Box::new(Turn::new(Heap(Box::new(BinaryHeap::new())), load, priorities, pairs)),
    }
}

/// What was measured of one queue with one kind of priorities.
#[derive(Clone, Debug, Serialize)]
struct Line {
    queue: Kind,
    priorities: Priorities,
    load: Load,
    /// Instructions for a push and a pop, if valgrind is there.
    instructions: Option<f64>,
    /// Nanoseconds for a push and a pop in the shortest round.
    shortest_ns: f64,
    /// Median over the rounds of the time divided by that of core's queue in the same round.
    ratio: f64,
}

/// Measures and prints.
///
/// # Errors
///
/// What failed.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    if let (Some(kind), Some(load), Some(priorities)) = (arguments.only, arguments.load, arguments.priorities)
    {
        black_box(turn(kind, load, priorities, arguments.pairs).run());
        return Ok(());
    }
    let counted = callgrind::is_available();
    if !counted {
        writeln!(
            io::stderr(),
            "skipped: instruction counts, because there is no valgrind (apt install valgrind)"
        )?;
    }
    let mut lines = Vec::new();
    for (load, priorities) in Load::ALL.into_iter().flat_map(|load| Priorities::ALL.map(|one| (load, one))) {
        let timed = time(load, priorities, arguments);
        for (kind, (shortest_ns, ratio)) in Kind::ALL.into_iter().zip(timed) {
            let instructions = if counted { Some(count(kind, load, priorities)?) } else { None };
            lines.push(Line { queue: kind, priorities, load, instructions, shortest_ns, ratio });
        }
    }
    if arguments.json {
        return writeln!(io::stdout(), "{}", serde_json::json!({ "depth": DEPTH, "queues": lines }));
    }
    let rows = lines.iter().map(|line| {
        [
            line.queue.name().to_owned(),
            line.load.name().to_owned(),
            line.priorities.name().to_owned(),
            line.instructions.map_or_else(|| "-".into(), |count| format!("{count:.0}")),
            format!("{:.1}", line.shortest_ns),
            format!("{:.2}", line.ratio),
        ]
    });
    let header = ["push and pop, depth 1024", "load", "priorities", "instructions", "ns", "time : core"];
    writeln!(io::stdout(), "{}", table(header, rows))
}

/// Shortest time for a pair in nanoseconds, and median ratio to core's, of each queue.
fn time(load: Load, priorities: Priorities, arguments: &Arguments) -> [(f64, f64); Kind::ALL.len()] {
    let mut turns = Kind::ALL.map(|kind| turn(kind, load, priorities, arguments.pairs));
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds.max(1) as usize {
        let mut took = [0.0; Kind::ALL.len()];
        for at in 0..turns.len() {
            // Whoever comes first is another one each time.
            let at = (at + round) % turns.len();
            let begun = Instant::now();
            black_box(turns[at].run());
            took[at] = begun.elapsed().as_nanos() as f64 / f64::from(arguments.pairs.max(1));
        }
        rounds.push(took);
    }
    std::array::from_fn(|at| {
        let shortest = rounds.iter().map(|took| took[at]).fold(f64::INFINITY, f64::min);
        let mut ratios: Vec<_> = rounds.iter().map(|took| took[at] / took[0]).collect();
        ratios.sort_by(f64::total_cmp);
        (shortest, ratios[ratios.len() / 2])
    })
}

/// Instructions for a push and a pop.
fn count(kind: Kind, load: Load, priorities: Priorities) -> io::Result<f64> {
    let pairs = COUNTED_PAIRS.to_string();
    let (kind, load, priorities) = (value(kind)?, value(load)?, value(priorities)?);
    let arguments =
        ["queue", "--only", &kind, "--load", &load, "--priorities", &priorities, "--pairs", &pairs];
    Ok(callgrind::instructions(COUNTED, &arguments)? as f64 / f64::from(COUNTED_PAIRS))
}

/// How a choice is written on the command line.
fn value(choice: impl ValueEnum) -> io::Result<String> {
    let value = choice.to_possible_value().ok_or_else(|| io::Error::other("a choice without a name"))?;
    Ok(value.get_name().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What leaves in which order: the checksum of a turn, and everything that is left.
    fn order(queue: impl Queue, load: Load, priorities: Priorities) -> (u64, Vec<u64>) {
        let mut turn = Turn::new(queue, load, priorities, 5_000);
        (turn.run(), std::iter::from_fn(|| turn.queue.pop()).collect())
    }

    #[test]
    fn stable_queues_do_the_same_work() {
        for load in Load::ALL {
            for priorities in Priorities::ALL {
                let core = order(Core(Box::new(StaticQueue::new())), load, priorities);
                let heap = StableHeap { heap: Box::new(BinaryHeap::new()), arrivals: 0 };
                assert_eq!(core.1.len(), if load == Load::Full { DEPTH - 1 } else { 0 });
                assert_eq!(core, order(heap, load, priorities));
            }
        }
    }

    #[test]
    fn the_heap_as_it_is_does_the_same_work_where_no_priorities_are_equal() {
        for load in Load::ALL {
            let core = order(Core(Box::new(StaticQueue::new())), load, Priorities::Random);
            assert_eq!(core, order(Heap(Box::new(BinaryHeap::new())), load, Priorities::Random));
        }
    }
}
