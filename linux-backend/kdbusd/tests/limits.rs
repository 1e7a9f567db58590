//! Everything full at once: each refusal names its limit, and the memory is what it was configured to be.

mod common;

use common::Bus;
use kdbus_core::WellKnownName;
use kdbus_core::abi::{Errno, NameFlags};
use kdbus_core::client::{Connection, Hello, Message};
use kdbus_linux::local::LocalTransport;
use kdbusd::config::Bytes;

const CONNECTIONS: u32 = 1000;
const NAMES: usize = 4096;
const POOL: u64 = 16 << 10;

type Small = Connection<LocalTransport, 1, 1>;

fn connect(bus: &Bus) -> Option<Small> {
    let transport = bus.options().staging(0).lanes(0).connect(&bus.name()).ok()?;
    Connection::with_capacities(transport, &Hello::new().pool_size(POOL)).ok()
}

/// Bytes of this process, the daemon in it among them, that are really there.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn a_thousand_connections_all_names_and_full_queues_at_once() {
    // Two sockets, and what a client maps, for each connection.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.maximum.is_some_and(|most| most < 16_000) {
        println!("skipped: this needs 16000 descriptors, the limit is {:?}", limit.maximum);
        return;
    }
    let most = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most).unwrap();
    let bus = Bus::with(|config| {
        let capacity = &mut config.capacity;
        (capacity.clients, capacity.clients_per_user, capacity.connections) =
            (CONNECTIONS + 8, CONNECTIONS + 8, CONNECTIONS);
        (capacity.names, capacity.name_records) = (NAMES as u32, NAMES as u32);
        config.memory.pools = Bytes(POOL * u64::from(CONNECTIONS));
        config.memory.pools_per_user = config.memory.pools;
        config.memory.largest_pool = Bytes(POOL);
    });
    let clients: Vec<Small> = std::iter::from_fn(|| connect(&bus)).collect();
    assert_eq!(clients.len(), CONNECTIONS as usize);
    let one_more = bus.options().staging(0).lanes(0).connect(&bus.name()).unwrap();
    let refused = Small::with_capacities(one_more, &Hello::new().pool_size(POOL)).unwrap_err();
    assert_eq!(refused.errno(), Errno::EMFILE, "{refused}");

    // 256 names each, until there are no more in the table.
    let mut owned = 0;
    let refused = 'names: loop {
        for client in &clients {
            for _ in 0..256 {
                let name = format!("org.example.name{owned}");
                let name = WellKnownName::parse(&name).unwrap();
                match client.acquire(name, NameFlags::empty()) {
                    Ok(_) => owned += 1,
                    Err(error) => break 'names error,
                }
            }
        }
    };
    assert_eq!((owned, refused.errno()), (NAMES, Errno::ENOMEM), "{refused}");

    // Every queue up to what one user may have there.
    let senders = &clients[..2];
    let before = resident();
    let mut queued = 0_u64;
    for receiver in &clients {
        for sender in senders {
            let refused = loop {
                match sender.send(&Message::to(receiver.id()).payload(&[1; 64])) {
                    Ok(_) => queued += 1,
                    Err(error) => break error,
                }
            };
            assert_eq!(refused.errno(), Errno::ENOBUFS, "{refused}");
        }
    }
    assert!(queued > 10_000, "{queued}");
    // Who fills whose queue is said by the daemon.
    let asker = clients[0].transport().handle();
    let report = asker.stats(clients[7].id()).unwrap();
    let held: u64 = report.holders.iter().map(|holder| holder.messages).sum();
    assert_eq!((held, report.stats.queued), (queued / u64::from(CONNECTIONS), held));
    assert_eq!(report.holders.len(), 1, "all of it is one user's");
    // Pools are the clients' memory; what they hold may become resident, and nothing else does.
    let pools = POOL * u64::from(CONNECTIONS);
    let grown = resident().saturating_sub(before);
    assert!(grown <= 2 * pools + (8 << 20), "{grown} bytes more, of {pools} in pools");

    // All of it is still of use.
    for client in &clients {
        let mut received = 0;
        while client.try_recv().unwrap().is_some() {
            received += 1;
        }
        assert_eq!(received, queued / u64::from(CONNECTIONS));
    }
    drop(clients);
    let name = WellKnownName::parse("org.example.name0").unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let fresh = loop {
        match connect(&bus) {
            Some(fresh) => break fresh,
            None => assert!(std::time::Instant::now() < until, "there is room again"),
        }
    };
    while fresh.acquire(name, NameFlags::empty()).is_err() {
        assert!(std::time::Instant::now() < until, "its name comes back");
    }
}
