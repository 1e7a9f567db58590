//! What the simulator foretells of calls.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::mpsc;

use kdbus_core::abi::{Errno, NameFlags};
use kdbus_core::client::{CALL_TIMEOUT, Connection, Hello, Message, Transport};
use kdbus_core::engine::Config;
use kdbus_sim::{Board, Placement, Policy, Sim};

use super::ns;
use super::processes::service;

/// The median of `calls` calls on `board`: the same messages between the same two processes.
///
/// # Errors
///
/// What the simulated bus says.
pub fn simulated_call(board: &Board, size: usize, calls: usize) -> Result<u64, Errno> {
    let sim = Sim::on(board.clone(), &Config::SMALL, 1).map_err(|_| Errno::EINVAL)?;
    let keeper = sim.world_mut().spawn_user("bus", 1000, 1000);
    sim.make_bus(keeper, "bench")?;
    let (results, samples) = mpsc::channel();
    let failed = Rc::new(RefCell::new(None));
    for name in ["service", "client"] {
        let process = sim.world_mut().spawn_user(name, 1000, 1000);
        let transport = sim.open(process, "1000-bench", "bus")?;
        let (results, failed, is_client) = (results.clone(), Rc::clone(&failed), name == "client");
        sim.spawn(process, Placement::from(Policy::Normal(0)), async move {
            let done =
                if is_client { call(transport, size, calls, &results).await } else { serve(transport).await };
            if let Err(errno) = done {
                *failed.borrow_mut() = Some(errno);
            }
        });
    }
    // The service waits for ever, which ends the run.
    let _ = sim.run(None);
    if let Some(errno) = failed.take() {
        return Err(errno);
    }
    drop(results);
    let _ = sim.end();
    let mut samples: Vec<u64> = samples.try_iter().collect();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().ok_or(Errno::ETIMEDOUT)
}

async fn serve<T: Transport>(transport: T) -> Result<(), Errno> {
    let bus = Connection::hello(transport, &Hello::new()).map_err(|error| error.errno())?;
    bus.acquire(service()?, NameFlags::empty()).map_err(|error| error.errno())?;
    bus.serve(async |request| request.reply(request.payload())).await.map_err(|error| error.errno())
}

async fn call<T: Transport>(
    transport: T,
    size: usize,
    calls: usize,
    results: &mpsc::Sender<u64>,
) -> Result<(), Errno> {
    let bus = Connection::hello(transport, &Hello::new()).map_err(|error| error.errno())?;
    let (service, payload) = (service()?, vec![0x5a; size]);
    bus.wait_for_name(service, CALL_TIMEOUT).await.map_err(|error| error.errno())?;
    for _ in 0..calls {
        let begun = bus.now();
        let reply = bus.call(&Message::to_name(service).payload(&payload), CALL_TIMEOUT).await;
        let took = bus.now().since(begun);
        reply.map_err(|error| error.errno())?;
        let _ = results.send(ns(took));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kdbus_sim::Path;

    use super::*;

    #[test]
    fn a_simulated_call_costs_what_its_parts_cost() {
        let board = Board { path: Path::Module, command_ns: 0, syscall_ns: 1_000, ..Board::ideal(1) };
        // The client sends, sleeps, and receives twice, for it looks before it sleeps; the service receives, sends, gives
        // back, looks and sleeps; and the two of them need not wait for each other.
        let simple = simulated_call(&board, 64, 20).unwrap();
        assert!((6_000..12_000).contains(&simple), "{simple}");
        let switching = Board { switch_ns: 50_000, ..board.clone() };
        let switched = simulated_call(&switching, 64, 20).unwrap();
        assert_eq!(switched - simple, 100_000, "there and back");
        let copying = Board { copy_ps: 1_000, ..board };
        assert_eq!(simulated_call(&copying, 4_096, 20).unwrap() - simple, 2 * 4_096);
    }
}
