//! Instructions that core's priority queue executes for pushes and pops, beside the binary heaps. They are the same in
//! every run.
//!
//! Counted by callgrind through `gungraun`, whose runner is a program of its own.

use std::io::{self, Write};
use std::process::{Command, Stdio};

use kdbus_benches::callgrind;

/// The runner has to be of the version of the library.
const RUNNER: &str = "0.20.0";

/// What the runner calls this program with, under callgrind.
const COUNTED: &str = "--gungraun-run";

#[allow(unused_qualifications, missing_docs, reason = "what the macros of gungraun write")]
mod queue {
    use std::hint::black_box;

    use gungraun::{library_benchmark, library_benchmark_group};
    use kdbus_benches::queue::{DEPTH, Kind, Load, Priorities, Runs, turn};

    /// 20 pushes and pops for each place in the queue.
    fn ready(kind: Kind, load: Load, priorities: Priorities) -> Box<dyn Runs> {
        turn(kind, load, priorities, 20 * DEPTH as u32)
    }

    #[library_benchmark(setup = ready)]
    #[benches::core(
        (Kind::Core, Load::Fill, Priorities::Random),
        (Kind::Core, Load::Fill, Priorities::Eight),
        (Kind::Core, Load::Full, Priorities::Random),
        (Kind::Core, Load::Full, Priorities::Eight),
    )]
    #[benches::heapless(
        (Kind::Heap, Load::Fill, Priorities::Random),
        (Kind::Heap, Load::Fill, Priorities::Eight),
        (Kind::Heap, Load::Full, Priorities::Random),
        (Kind::Heap, Load::Full, Priorities::Eight),
    )]
    #[benches::heapless_made_stable(
        (Kind::StableHeap, Load::Fill, Priorities::Random),
        (Kind::StableHeap, Load::Fill, Priorities::Eight),
        (Kind::StableHeap, Load::Full, Priorities::Random),
        (Kind::StableHeap, Load::Full, Priorities::Eight),
    )]
    #[benches::std_heap(
        (Kind::StdHeap, Load::Fill, Priorities::Random),
        (Kind::StdHeap, Load::Fill, Priorities::Eight),
        (Kind::StdHeap, Load::Full, Priorities::Random),
        (Kind::StdHeap, Load::Full, Priorities::Eight),
    )]
    fn pairs_20480(mut turn: Box<dyn Runs>) -> u64 {
        black_box(turn.run())
    }

    library_benchmark_group!(name = queue, benchmarks = pairs_20480);
    gungraun::main!(library_benchmark_groups = queue);

    pub(super) fn run() {
        main();
    }
}

fn main() {
    // Programs that were started here would be counted too.
    let counted = std::env::args().nth(1).is_some_and(|first| first == COUNTED);
    let skipped = if counted {
        None
    } else if !callgrind::is_available() {
        Some("there is no valgrind (apt install valgrind)".into())
    } else if !is_runner_available() {
        Some(format!("there is no gungraun-runner (cargo install --version {RUNNER} gungraun-runner)"))
    } else {
        None
    };
    match skipped {
        // Nobody is left to tell if this fails.
        Some(reason) => drop(writeln!(io::stderr(), "skipped: instruction counts, because {reason}")),
        None => queue::run(),
    }
}

/// Whether the runner is on the path, or named in the environment.
fn is_runner_available() -> bool {
    let runner = std::env::var_os("GUNGRAUN_RUNNER").unwrap_or_else(|| "gungraun-runner".into());
    // Without an order it fails, which tells that it is there.
    let mut command = Command::new(runner);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}
