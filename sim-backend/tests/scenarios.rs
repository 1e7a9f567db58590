//! Tasks on a simulated machine: application code in virtual time, on cores, with faults.

mod tasks;

use core::cell::{Cell, RefCell};
use core::time::Duration;
use std::rc::Rc;

use kdbus_core::abi::NameFlags;
use kdbus_core::client::{CallError, Connection, Kind, Message, RecvError, Topic, TopicPattern};
use kdbus_sim::{Board, COMPACT, Explore, Fault, FaultKind, FaultPlan, Policy, Sim};
use tasks::{Bus, NAME, echo_service, ping_client};

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_service_and_its_client_run_as_plain_async_functions() {
    let bus = Bus::new(1);
    bus.start("service", Policy::Fifo(20), echo_service);
    let answers = Rc::new(Cell::new(0));
    let counted = Rc::clone(&answers);
    let client = bus.start("client", Policy::Fifo(10), async move |connection| {
        counted.set(ping_client(&connection, 10).await);
    });
    // The service waits for ever; so it ends when nothing can happen any more.
    assert!(bus.sim.run(None).is_err());
    assert!(bus.sim.is_finished(client));
    assert_eq!(answers.get(), 10);
    assert_eq!(bus.sim.unfinished(), ["service"]);
}

#[test]
fn an_hour_of_ticks_passes_without_drift_in_virtual_time() {
    let bus = Bus::new(1);
    let begin = bus.sim.now();
    let last = Rc::new(Cell::new(begin));
    let seen = Rc::clone(&last);
    bus.start("ticker", Policy::Fifo(10), async move |connection| {
        let mut ticks = connection.ticks(begin.after(100 * MS), 100 * MS);
        for _ in 0..36_000 {
            seen.set(ticks.tick().await.unwrap());
        }
    });
    assert_eq!(bus.sim.run(None), Ok(true));
    assert_eq!(last.get().since(begin), Duration::from_secs(3600));
    assert!(bus.sim.now().since(begin) < Duration::from_secs(3601));
}

#[test]
fn sleeping_is_not_disturbed_by_messages_and_receiving_ends_at_its_deadline() {
    let bus = Bus::new(1);
    let slept = Rc::new(Cell::new(Duration::ZERO));
    let (times, turns) = (Rc::clone(&slept), Rc::new(Cell::new(0)));
    bus.start("sleeper", Policy::Fifo(20), async move |connection| {
        connection.acquire(NAME, NameFlags::empty()).unwrap();
        let begin = connection.now();
        connection.sleep(50 * MS).await.unwrap();
        times.set(connection.now().since(begin));
        for _ in 0..5 {
            connection.recv().await.unwrap();
        }
        let begin = connection.now();
        assert!(matches!(connection.recv_until(7 * MS).await, Err(RecvError::TimedOut)));
        let waited = connection.now().since(begin);
        assert!((7 * MS..8 * MS).contains(&waited), "{waited:?}");
    });
    let count = Rc::clone(&turns);
    let sim = bus.sim.clone();
    bus.start("sender", Policy::Fifo(10), async move |connection| {
        connection.wait_for_name(NAME, 5 * MS).await.unwrap();
        let before = sim.turns();
        for _ in 0..5 {
            connection.sleep(MS).await.unwrap();
            connection.send(&Message::to_name(NAME).payload(b"x")).unwrap();
        }
        count.set(sim.turns() - before);
    });
    assert_eq!(bus.sim.run(None), Ok(true));
    assert!((50 * MS..51 * MS).contains(&slept.get()), "{:?}", slept.get());
    // Its own turns, and none of the sleeper's.
    assert!(turns.get() <= 6, "{}", turns.get());
}

#[test]
fn an_urgent_receiver_takes_the_core_from_a_sender_that_computes() {
    let took = |sender: Policy, receiver: Policy| {
        let bus = Bus::on(Board { switch_ns: 2_000, ..Board::ideal(1) }, 1);
        let latency = Rc::new(Cell::new(Duration::ZERO));
        let seen = Rc::clone(&latency);
        bus.start("receiver", receiver, async move |connection| {
            connection.acquire(NAME, NameFlags::empty()).unwrap();
            let message = connection.recv().await.unwrap();
            let sent_at = u64::from_ne_bytes(message.payload().try_into().unwrap());
            seen.set(Duration::from_nanos(connection.now().as_nanos() - sent_at));
        });
        let sim = bus.sim.clone();
        bus.start("sender", sender, async move |connection| {
            connection.wait_for_name(NAME, 50 * MS).await.unwrap();
            let now = connection.now().as_nanos().to_ne_bytes();
            connection.send(&Message::to_name(NAME).payload(&now)).unwrap();
            sim.work(20 * MS).await;
        });
        assert_eq!(bus.sim.run(None), Ok(true));
        latency.get()
    };
    assert!(took(Policy::Fifo(10), Policy::Fifo(20)) < MS / 10);
    let inverted = took(Policy::Fifo(20), Policy::Fifo(10));
    assert!((20 * MS..21 * MS).contains(&inverted), "{inverted:?}");
    let shared = took(Policy::Normal(0), Policy::Fifo(10));
    assert!(shared < MS / 10, "{shared:?}");
}

#[test]
fn tasks_cannot_wait_in_their_transport() {
    let bus = Bus::new(1);
    bus.start("client", Policy::Fifo(1), async move |connection| {
        let blocked = connection.recv_blocking(MS);
        assert!(matches!(blocked, Err(RecvError::Unsupported)), "{:?}", blocked.err());
        let call = connection.call_blocking(&Message::to(connection.id()), MS);
        assert!(matches!(call, Err(CallError::Unsupported)), "{:?}", call.err());
    });
    assert_eq!(bus.sim.run(None), Ok(true));
}

/// The log of a run in which a publisher, two subscribers and a caller meet, with jitter and faults.
fn eventful(seed: u64) -> String {
    let bus = Bus::on(Board::preset("a53").unwrap(), seed);
    bus.sim.set_jitter(Duration::from_micros(300));
    bus.sim.start_trace();
    bus.sim.inject(FaultPlan { processes: 5, ..FaultPlan::default() }.of(seed));
    meet(&bus);
    let _ = bus.sim.run(Some(bus.sim.now().after(Duration::from_secs(5))));
    let trace = bus.sim.take_trace().unwrap();
    format!("{}{}", trace.log(), trace.timeline())
}

fn meet(bus: &Bus) {
    bus.start("service", Policy::Fifo(30), echo_service);
    for policy in [Policy::Normal(0), Policy::RoundRobin(5)] {
        bus.start("subscriber", policy, async |connection| {
            let _ = connection.subscribe(TopicPattern::parse("org.example.Level.*").unwrap());
            while let Ok(message) = connection.recv_until(200 * MS).await {
                // Others send as well.
                assert!(message.kind() != Kind::Signal || message.payload().len() == 100);
            }
        });
    }
    bus.start("publisher", Policy::Normal(5), async |connection| {
        for _ in 0..20 {
            let _ = connection.signal(Topic::parse("org.example.Level.left").unwrap(), &[7; 100]);
            let _ = connection.sleep(MS).await;
        }
    });
    bus.start("client", Policy::Normal(0), async |connection| {
        ping_client(&connection, 10).await;
    });
}

#[test]
fn equal_seeds_give_equal_runs_to_the_byte_and_others_do_not() {
    let first = eventful(7);
    assert!(first.lines().count() > 40);
    assert!(first == eventful(7), "the same seed gave another run");
    assert!(first != eventful(8));
}

#[test]
fn a_caller_survives_the_death_of_its_service_at_every_step() {
    let mut fates = [0; 3];
    for step in 1..40 {
        let bus = Bus::new(step);
        bus.sim.inject([Fault { process: 1, step, kind: FaultKind::Kill }]);
        bus.sim.invariant(|_| Ok(()));
        bus.start("service", Policy::Fifo(20), echo_service);
        let result = Rc::new(RefCell::new(Vec::new()));
        let seen = Rc::clone(&result);
        bus.start("client", Policy::Fifo(10), async move |connection| {
            let Ok(service) = connection.wait_for_name(NAME, 50 * MS).await else { return };
            for _ in 0..4 {
                let call = connection.call(&Message::to(service).payload(b"?"), 50 * MS).await;
                seen.borrow_mut().push(call.map(|reply| reply.payload().len()));
            }
        });
        let _ = bus.sim.run(None);
        for call in result.borrow().iter() {
            match call {
                Ok(len) => {
                    assert_eq!(*len, 1);
                    fates[0] += 1;
                }
                Err(CallError::PeerDied) => fates[1] += 1,
                Err(CallError::NotSent(_)) => fates[2] += 1,
                Err(error) => panic!("step {step}: {error}"),
            }
        }
        assert_eq!(bus.sim.end(), Ok(()), "step {step}");
    }
    assert!(fates.iter().all(|count| *count > 0), "{fates:?}");
}

#[test]
fn stops_delays_and_stalls_take_their_time_and_lose_nothing() {
    let took = |kind: Option<FaultKind>| {
        let bus = Bus::new(3);
        bus.sim.inject(kind.map(|kind| Fault { process: 1, step: 8, kind }));
        bus.start("service", Policy::Fifo(20), echo_service);
        let answers = Rc::new(Cell::new(0));
        let seen = Rc::clone(&answers);
        let client = bus.start("client", Policy::Fifo(10), async move |connection| {
            seen.set(ping_client(&connection, 10).await);
        });
        let begin = bus.sim.now();
        let _ = bus.sim.run(None);
        assert!(bus.sim.is_finished(client));
        assert_eq!(answers.get(), 10, "{kind:?}");
        bus.sim.now().since(begin)
    };
    let plain = took(None);
    for kind in [FaultKind::Stop(30_000_000), FaultKind::Delay(30_000_000), FaultKind::Stall(30_000_000)] {
        let late = took(Some(kind));
        assert!((plain + 25 * MS..plain + 40 * MS).contains(&late), "{kind:?}: {plain:?} and {late:?}");
    }
    for kind in [FaultKind::Spurious, FaultKind::Clock(-5_000_000_000)] {
        assert!(took(Some(kind)) < plain + MS, "{kind:?}");
    }
}

#[test]
fn a_flood_fills_the_queue_and_another_user_keeps_its_share() {
    let bus = Bus::new(1);
    bus.sim.inject([Fault { process: 1, step: 2, kind: FaultKind::Flood(1_000) }]);
    let got = Rc::new(Cell::new((0, 0)));
    let seen = Rc::clone(&got);
    bus.start("victim", Policy::Fifo(20), async move |connection| {
        connection.acquire(NAME, NameFlags::empty()).unwrap();
        connection.sleep(20 * MS).await.unwrap();
        while let Ok(message) = connection.recv_until(MS).await {
            let (flood, friends) = seen.get();
            let is_friend = message.payload() == b"friend";
            seen.set((flood + usize::from(!is_friend), friends + usize::from(is_friend)));
        }
    });
    bus.start("friend", Policy::Fifo(10), async |connection| {
        connection.sleep(10 * MS).await.unwrap();
        connection.send(&Message::to_name(NAME).payload(b"friend")).unwrap();
    });
    assert_eq!(bus.sim.run(None), Ok(true));
    let (flood, friends) = got.get();
    assert!((5..COMPACT.queue_depth).contains(&flood), "{flood}");
    assert_eq!(friends, 1);
}

#[test]
fn a_thousand_seeds_of_faults_break_no_rule() {
    let plan = FaultPlan { most: 8, processes: 5, ..FaultPlan::default() };
    Explore::new(0..1_000).plan(plan).limit(Duration::from_secs(5)).run(|sim| meet(&Bus::of(sim)));
}

/// A pipeline with a mistake: it takes for granted that its sink takes everything.
fn hasty(sim: &Sim) {
    let bus = Bus::of(sim);
    bus.start("sink", Policy::Fifo(20), async |connection: Connection<_>| {
        let Ok(_) = connection.acquire(NAME, NameFlags::empty()) else { return };
        while connection.recv_until(100 * MS).await.is_ok() {}
    });
    bus.start("source", Policy::Fifo(10), async |connection: Connection<_>| {
        let Ok(_) = connection.wait_for_name(NAME, 100 * MS).await else { return };
        for _ in 0..40 {
            connection.send(&Message::to_name(NAME).payload(&[1; 200])).expect("there is always room");
            if connection.sleep(MS).await.is_err() {
                return;
            }
        }
    });
}

#[test]
fn exploring_finds_a_mistake_and_leaves_only_the_fault_that_shows_it() {
    let plan = FaultPlan { processes: 2, ..FaultPlan::default() };
    let explore = Explore::new(0..400).plan(plan).limit(Duration::from_secs(5));
    let found = explore.find(hasty).expect("one of the seeds shows it");
    assert_eq!(found.faults.len(), 1, "{found:?}");
    assert!(found.reason.contains("there is always room"), "{found:?}");
    let report = found.report();
    assert!(report.contains(&format!("KDBUS_SIM_SEED={} KDBUS_SIM_FAULTS='", found.seed)), "{report}");
    assert!(report.contains("cargo test -p kdbus-sim --test scenarios exploring_finds"), "{report}");
    // The same seeds show the same.
    assert_eq!(explore.threads(1).find(hasty), Some(found));
}
