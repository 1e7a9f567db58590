//! Finds a priority inversion in the audio pipeline before any board is there, and shows two ways out.
//!
//! The mistake: whoever set the pipeline up forgot the equaliser. It runs under the normal policy, while the sink, which
//! waits for it, has the most urgent priority of all. A recorder of priority 10 that is no part of the sound, and is less
//! urgent than the sink, takes the core from the equaliser; so the sink waits for the recorder.
//!
//! ```text
//! cargo run --release --bin sim-inversion
//! ```

use std::process::ExitCode;
use std::time::Duration;

use kdbus_examples::report::duration;
use kdbus_examples::simulated::{Load, Setup, Simulated, SimulationError, simulate};
use kdbus_examples::stage::Stage;
use kdbus_sim::{Board, Policy};

/// Runs of each kind, each with other jitter.
const SEEDS: std::ops::Range<u64> = 1..5;

/// How long each one plays.
const SPAN: Duration = Duration::from_secs(1);

/// The most blocks ahead that are tried.
const MOST_AHEAD: u64 = 64;

/// The pipeline on a board with one core, with a recorder beside it that computes for 7 ms in every 40.
fn setup(seed: u64, equaliser: Policy, blocks_ahead: u64) -> Setup {
    let mut setup = Setup::new(seed, SPAN, Board::preset("a8").unwrap_or_else(|| Board::ideal(1)));
    setup.blocks_ahead = blocks_ahead;
    setup.jitter = Duration::from_micros(50);
    setup.policies[Stage::Equaliser as usize] = equaliser;
    setup.load = Some(Load {
        policy: Policy::Fifo(10),
        every: Duration::from_millis(40),
        work: Duration::from_millis(7),
    });
    setup
}

/// The first seed whose run plays a block too late, and that run.
fn first_miss(equaliser: Policy, blocks_ahead: u64) -> Result<Option<(u64, Simulated)>, SimulationError> {
    for seed in SEEDS {
        let run = simulate(&setup(seed, equaliser, blocks_ahead))?;
        if misses(&run) > 0 || !run.failures.is_empty() {
            return Ok(Some((seed, run)));
        }
    }
    Ok(None)
}

/// Blocks that came too late to be played.
fn misses(run: &Simulated) -> u64 {
    run.report.hops().iter().find(|hop| hop.name() == "source → sink").map_or(0, |hop| hop.missed())
}

/// In nanoseconds.
fn longest_wait(run: &Simulated, task: &str) -> u64 {
    run.scheduling.iter().find(|(name, _)| name == task).map_or(0, |(_, wait)| wait.max())
}

fn run() -> Result<bool, SimulationError> {
    let (forgotten, urgent) = (Policy::Normal(0), Policy::Fifo(Stage::Equaliser.urgency() as u8));
    let blocks_ahead = 8;
    println!("the pipeline as it was set up, {blocks_ahead} blocks ahead, on a board with one core:");
    let Some((seed, found)) = first_miss(forgotten, blocks_ahead)? else {
        println!("  no block is late; there is nothing to find");
        return Ok(false);
    };
    println!("  seed {seed}: {} blocks come too late to be played", misses(&found));
    println!("  the longest that each task waited for the core when it could have run:");
    for task in ["sink", "equaliser", "source"] {
        println!("    {task:10} {}", duration(longest_wait(&found, task)));
    }
    println!(
        "  the equaliser waits for somebody less urgent than the sink, and the sink waits for the equaliser"
    );

    println!("a priority for the equaliser, above the recorder's:");
    let Some((seed, _)) = first_miss(urgent, blocks_ahead)? else {
        println!("  no block is late under any of {} seeds", SEEDS.end - SEEDS.start);
        return larger_buffer(forgotten, blocks_ahead);
    };
    println!("  seed {seed} still has late blocks");
    Ok(false)
}

/// The other way out: as much slack as the recorder takes, which everybody hears as delay.
fn larger_buffer(equaliser: Policy, too_few: u64) -> Result<bool, SimulationError> {
    println!("or more blocks ahead, with the equaliser as it was:");
    for blocks_ahead in (too_few + 2..=MOST_AHEAD).step_by(2) {
        if first_miss(equaliser, blocks_ahead)?.is_none() {
            println!("  {blocks_ahead} blocks are the fewest without a late one");
            return Ok(true);
        }
    }
    println!("  {MOST_AHEAD} blocks are not enough");
    Ok(false)
}

fn main() -> ExitCode {
    match run() {
        Ok(is_fixed) => ExitCode::from(u8::from(!is_fixed)),
        Err(error) => {
            eprintln!("sim-inversion: {error}");
            ExitCode::FAILURE
        }
    }
}
