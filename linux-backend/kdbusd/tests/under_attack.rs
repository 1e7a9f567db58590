//! A paced pipeline beside attackers of every kind: it loses no block, and no wrong byte passes.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Bus, Client};
use kdbus_core::WellKnownName;
use kdbus_core::abi::{Command, NameFlags};
use kdbus_core::client::{Connection, Hello, Message, Topic, TopicPattern};
use kdbus_linux::local::Handle;
use kdbus_linux::local::socket::{self, Wait};
use kdbus_linux::local::wire::{Header, Kind};
use rustix::fd::AsFd;
use zerocopy::IntoBytes;

const BLOCKS: u64 = 600;
const BLOCK: usize = 1024;
const PERIOD: Duration = Duration::from_millis(4);
const STUCK: Duration = Duration::from_secs(60);
const SINK: &str = "org.example.Sink";

fn sink() -> WellKnownName<'static> {
    WellKnownName::parse(SINK).unwrap()
}

/// The bytes of a block follow from its number.
fn block(number: u64) -> Vec<u8> {
    (0..BLOCK as u64).map(|at| (number.wrapping_mul(31) + at * 7) as u8).collect()
}

/// What attackers share.
struct Attack<'a> {
    bus: &'a Bus,
    over: &'a AtomicBool,
    blows: &'a AtomicU64,
}

impl Attack<'_> {
    /// Whether to go on; one more was tried.
    fn goes_on(&self) -> bool {
        self.blows.fetch_add(1, Ordering::Relaxed);
        !self.over.load(Ordering::Relaxed)
    }

    fn connect(&self) -> Option<Client> {
        let transport = self.bus.options().staging(0).lanes(1).connect(&self.bus.name()).ok()?;
        Connection::with_capacities(transport, &Hello::new().pool_size(64 << 10)).ok()
    }

    /// Packets that no library writes.
    fn malformed(&self) {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        while self.goes_on() {
            let Ok(transport) = self.bus.try_open() else { continue };
            let handle: &Handle = transport.handle();
            let mut bytes = Header::new(Kind::Command, 1).as_bytes().to_vec();
            for _ in 0..4 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (seed >> 33) as usize % bytes.len();
                bytes[at] = (seed >> 20) as u8;
            }
            bytes.extend(vec![seed as u8; (seed >> 40) as usize % 5000]);
            let _ = rustix::net::send(handle.socket(), &bytes, rustix::net::SendFlags::NOSIGNAL);
        }
    }

    /// Connections that come and go, more of them than there may be.
    fn flood(&self) {
        let mut held = Vec::new();
        while self.goes_on() {
            match self.connect() {
                Some(client) => held.push(client),
                None => held.clear(),
            }
        }
    }

    /// A sender that fills whatever it can reach, the sink's queue among it.
    fn fill(&self) {
        while self.goes_on() {
            let Some(client) = self.connect() else { continue };
            for _ in 0..500 {
                let _ = client.send(&Message::to_name(sink()).payload(&[0xee; 3000]));
                let _ = client.send(&Message::to(client.id()).payload(&[0xee; 100]));
                let _ = client.acquire(sink(), NameFlags::REPLACE_EXISTING);
            }
        }
    }

    /// One that asks and never reads the answers, and one that shouts to all.
    fn deaf_and_loud(&self) {
        while self.goes_on() {
            let Some(client) = self.connect() else { continue };
            let topic = Topic::parse("org.example.noise").unwrap();
            let _ = client.subscribe(TopicPattern::from(topic));
            let kdbusd = client.transport().handle().socket();
            let list = Header { number: Command::List.request(), ..Header::new(Kind::Command, 9) };
            for _ in 0..200 {
                let _ = client.signal(topic, &[0xdd; 1000]);
            }
            while socket::send(kdbusd, &list, &[], &[], Wait::No).is_ok() {}
        }
    }

    /// Descriptors of the wrong kind, and files that shrink while they are read.
    fn files(&self) {
        while self.goes_on() {
            let Some(client) = self.connect() else { continue };
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let file = kdbus_linux::local::map::create(c"shrinks", 1 << 20).unwrap();
            for _ in 0..50 {
                let fds = [reader.as_fd(), writer.as_fd(), file.as_fd()];
                let _ = client.send(&Message::to_name(sink()).fds(&fds));
                let _ = rustix::fs::ftruncate(&file, 1);
                let _ = client.send(&Message::to(client.id()).fds(&fds));
                let _ = rustix::fs::ftruncate(&file, 1 << 20);
                while client.try_recv().is_ok_and(|message| message.is_some()) {}
            }
        }
    }
}

#[test]
fn a_paced_pipeline_beside_attackers_loses_no_block_and_no_wrong_byte_passes() {
    let bus = Bus::with(|config| {
        config.capacity.clients = 40;
        config.capacity.connections = 32;
        config.capacity.lanes = 16;
        config.capacity.queue_depth = 512;
        config.capacity.pool_slices = 1024;
    });
    let connect = || -> Client {
        let transport = bus.options().lanes(4).connect(&bus.name()).unwrap();
        Connection::with_capacities(transport, &Hello::new().pool_size(2 << 20)).unwrap()
    };
    let (source, filter, end) = (connect(), connect(), connect());
    end.acquire(sink(), NameFlags::empty()).unwrap();
    let (source_id, filter_id) = (source.id(), filter.id());
    let (over, blows) = (AtomicBool::new(false), AtomicU64::new(0));
    let attack = Attack { bus: &bus, over: &over, blows: &blows };
    thread::scope(|scope| {
        scope.spawn(|| attack.malformed());
        scope.spawn(|| attack.flood());
        scope.spawn(|| attack.fill());
        scope.spawn(|| attack.deaf_and_loud());
        scope.spawn(|| attack.files());
        // Passes on what comes from the source, with an alarm now and then.
        let middle = scope.spawn(move || {
            for number in 0..BLOCKS {
                let message = loop {
                    let message = filter.recv_blocking(STUCK).unwrap();
                    if message.sender() == source_id {
                        break message;
                    }
                };
                assert_eq!(message.payload(), block(number), "block {number} at the filter");
                let priority = if number % 50 == 0 { -10 } else { 0 };
                let passed = Message::to_name(sink()).payload(message.payload()).cookie(number + 1);
                filter.send_when_room_blocking(&passed.priority(priority), STUCK).unwrap();
            }
            // Stays until the sink has everything: nobody's end takes anything away.
            filter
        });
        let pace = scope.spawn(move || {
            let begin = Instant::now();
            for number in 0..BLOCKS {
                let at = begin + PERIOD * number as u32;
                thread::sleep(at.saturating_duration_since(Instant::now()));
                let block = block(number);
                source.send_when_room_blocking(&Message::to(filter_id).payload(&block), STUCK).unwrap();
            }
            source
        });
        let mut number = 0;
        while number < BLOCKS {
            // Others may talk to the sink as well: that is policy's matter, and told apart by who the bus says they are.
            let message = end.recv_blocking(STUCK).unwrap();
            if message.sender() == filter_id {
                assert_eq!((message.cookie(), message.payload()), (number + 1, &block(number)[..]));
                number += 1;
            }
        }
        over.store(true, Ordering::Relaxed);
        let _still_there = (middle.join().unwrap(), pace.join().unwrap());
    });
    assert!(blows.load(Ordering::Relaxed) > 100, "there was an attack");
}
