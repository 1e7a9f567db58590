//! The cases of the conformance suite while things go wrong: whatever becomes of the case, the engine keeps its rules and
//! gives everything back.

mod world;

use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;

use kdbus_conformance::{cases, try_run};
use kdbus_sim::{Fault, FaultKind, FaultPlan, Sim};
use world::SimWorld;

/// Seeds; each runs one case, so every case is run with several sets of faults.
const SEEDS: u64 = 1_000;

/// Runs the case of `seed` with `faults`, and says what is wrong with the engine, if anything is.
///
/// That the case itself fails is no wonder.
fn run(seed: u64, faults: &[Fault]) -> Result<(), String> {
    let case = &cases()[seed as usize % cases().len()];
    let kept: Rc<RefCell<Option<Sim>>> = Rc::default();
    let outcome = panic::catch_unwind(AssertUnwindSafe(|| {
        let _ = try_run(case.chapter, case.name, |case| {
            let world = SimWorld::new(case);
            world.sim().world_mut().audit_each_command();
            world.sim().inject(faults.iter().copied());
            *kept.borrow_mut() = Some(world.sim().clone());
            world
        });
    }));
    let said = outcome.err().and_then(|panic| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
    if said.starts_with("the engine breaks")
        || said.contains("index out of bounds")
        || said.contains("overflow")
    {
        return Err(format!("{}::{}: {said}", case.chapter, case.name));
    }
    let sim = kept.borrow_mut().take();
    sim.map_or(Ok(()), |sim| sim.end()).map_err(|text| format!("{}::{}: {text}", case.chapter, case.name))
}

/// The faults of a seed: those that can happen between two commands of one thread. The first process is the bus' owner.
fn faults(seed: u64) -> Vec<Fault> {
    let plan = FaultPlan { most: 6, processes: 3, steps: 30, ..FaultPlan::default() };
    let mut faults = plan.of(seed);
    faults.iter_mut().for_each(|fault| fault.process -= 1);
    faults.retain(|fault| {
        use FaultKind::{Clock, Kill, NoDescriptors, Refuse};
        matches!(fault.kind, Kill | Refuse | NoDescriptors | Clock(_))
    });
    faults
}

#[test]
fn a_thousand_seeds_of_faults_over_the_conformance_cases_break_no_rule_of_the_engine() {
    let former = panic::take_hook();
    panic::set_hook(Box::new(|_| {}));
    let mut injected = 0;
    let found = (0..SEEDS).find_map(|seed| {
        let mut faults = faults(seed);
        injected += faults.len();
        let mut reason = run(seed, &faults).err()?;
        let mut at = 0;
        while at < faults.len() {
            let mut fewer = faults.clone();
            fewer.remove(at);
            match run(seed, &fewer) {
                Err(text) => (faults, reason) = (fewer, text),
                Ok(()) => at += 1,
            }
        }
        let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
        Some(format!("seed {seed} with {}: {reason}", faults.join(",")))
    });
    panic::set_hook(former);
    assert_eq!(found, None);
    assert!(injected as u64 > SEEDS / 2, "{injected}");
}
