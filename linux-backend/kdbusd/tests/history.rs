//! What several senders, a receiver and a monitor that joins in between have seen, compared with each other.

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::client::{Connection, Hello, Message, Monitor, RecvError};

const SENDERS: usize = 3;
/// Messages of each sender.
const MESSAGES: u64 = 300;
/// Messages of a sender that were not received yet: so few that neither lane nor queue is ever full.
const WINDOW: u64 = 12;
const SOON: Duration = Duration::from_secs(20);

/// One message, as its sender saw it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    began: u64,
    returned: u64,
}

/// What one round came to.
struct History {
    seed: u64,
    sent: Vec<Vec<Sent>>,
    /// Messages of each sender that kdbusd has carried.
    carried: Vec<u64>,
    /// Sender and number of each message, in the receiver's order.
    received: Vec<(usize, u64)>,
    /// The same of the monitor.
    copied: Vec<(usize, u64)>,
    /// Beginning and end of the monitor's HELLO.
    joined: (u64, u64),
}

fn connect(bus: &Bus) -> Client {
    let transport = bus.options().lanes(SENDERS).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, &Hello::new()).unwrap()
}

fn now(client: &Client) -> u64 {
    client.now().as_nanos()
}

/// The number of a message, which its sender has put into cookie and payload.
fn number(sender: usize, cookie: u64, payload: &[u8]) -> u64 {
    assert_eq!(payload.len() as u64, 8 + cookie % 200);
    assert_eq!(payload[..8], ((sender as u64) << 32 | cookie).to_ne_bytes());
    cookie - 1
}

/// Sends all messages of a sender and returns when, and how many of them kdbusd has carried.
fn send(
    bus: &Bus,
    sender: usize,
    to: u64,
    ids: &Mutex<Vec<u64>>,
    done: &[AtomicU64],
    all: &AtomicU64,
    ready: &Barrier,
) -> (Vec<Sent>, u64) {
    let client = connect(bus);
    client.transport().open_lane(to).unwrap();
    ids.lock().unwrap()[sender] = client.id();
    let carried = || client.transport().handle().stats(client.id()).unwrap().stats.sent;
    let before = carried();
    ready.wait();
    let sent = (1..=MESSAGES).map(|cookie| {
        while cookie - done[sender].load(Ordering::Acquire) > WINDOW {
            thread::yield_now();
        }
        let mut payload = ((sender as u64) << 32 | cookie).to_ne_bytes().to_vec();
        payload.resize(8 + cookie as usize % 200, 0);
        let began = now(&client);
        client.send(&Message::to(to).payload(&payload).cookie(cookie)).unwrap();
        all.fetch_add(1, Ordering::Release);
        Sent { began, returned: now(&client) }
    });
    let sent = sent.collect();
    while done[sender].load(Ordering::Acquire) < MESSAGES {
        thread::yield_now();
    }
    (sent, carried() - before)
}

/// A round in which a monitor joins after about `join_at` messages.
fn play(bus: &Bus, seed: u64, join_at: u64) -> History {
    let receiver = connect(bus);
    let to = receiver.id();
    let ids = Mutex::new(vec![0; SENDERS]);
    let done: [AtomicU64; SENDERS] = Default::default();
    let (all, over) = (AtomicU64::new(0), AtomicBool::new(false));
    // The first message is sent when all lanes are open.
    let ready = Barrier::new(SENDERS);
    let sender_of = |id| ids.lock().unwrap().iter().position(|known| *known == id);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..SENDERS)
            .map(|sender| {
                scope.spawn({
                    let (ids, done, all, ready) = (&ids, &done, &all, &ready);
                    move || send(bus, sender, to, ids, done, all, ready)
                })
            })
            .collect();
        let watching = scope.spawn(|| {
            while all.load(Ordering::Acquire) < join_at {
                thread::yield_now();
            }
            let transport = bus.options().connect(&bus.name()).unwrap();
            let began = now(&bus.connect_without_lanes());
            let monitor = Monitor::hello(transport, &Hello::new().pool_size(8 << 20)).unwrap();
            let joined = (began, monitor.now().as_nanos());
            let mut copied = Vec::new();
            loop {
                let is_over = over.load(Ordering::Acquire);
                while let Some(message) = monitor.try_recv().unwrap() {
                    if let Some(sender) = sender_of(message.sender()) {
                        copied.push((sender, number(sender, message.cookie(), message.payload())));
                    }
                }
                if is_over {
                    assert_eq!(monitor.take_lost(), 0, "its pool is large enough");
                    return (joined, copied);
                }
                match monitor.recv_blocking(Duration::from_millis(1)) {
                    Ok(message) => {
                        if let Some(sender) = sender_of(message.sender()) {
                            copied.push((sender, number(sender, message.cookie(), message.payload())));
                        }
                    }
                    Err(RecvError::TimedOut) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        let mut received = Vec::new();
        while received.len() < SENDERS * MESSAGES as usize {
            let message = receiver.recv_blocking(SOON).unwrap();
            let sender = sender_of(message.sender()).expect("only they send");
            received.push((sender, number(sender, message.cookie(), message.payload())));
            drop(message);
            done[sender].fetch_add(1, Ordering::Release);
        }
        assert!(receiver.try_recv().unwrap().is_none(), "seed {seed}: one more than was sent");
        let (sent, carried) = senders.into_iter().map(|sender| sender.join().unwrap()).unzip();
        over.store(true, Ordering::Release);
        let (joined, copied) = watching.join().unwrap();
        History { seed, sent, carried, received, copied, joined }
    })
}

impl History {
    fn sent(&self, (sender, number): (usize, u64)) -> Sent {
        self.sent[sender][number as usize]
    }

    /// Whoever looks at `seen` sees each sender's messages in their order, and none that was sent before another one began
    /// comes after it.
    fn check_order(&self, seen: &[(usize, u64)], who: &str) {
        let mut latest: Option<(u64, (usize, u64))> = None;
        for message in seen {
            let sent = self.sent(*message);
            if let Some((began, other)) = latest {
                let seed = self.seed;
                assert!(sent.returned >= began, "seed {seed}: the {who} has {message:?} after {other:?}");
            }
            latest = latest.max(Some((sent.began, *message)));
        }
        for sender in 0..SENDERS {
            let numbers = seen.iter().filter(|message| message.0 == sender).map(|message| message.1);
            assert!(numbers.is_sorted_by(|a, b| a < b), "seed {}: sender {sender} at the {who}", self.seed);
        }
    }

    /// Each message was seen by the monitor, or went before it came: none both, none neither.
    fn check_partition(&self) {
        let seed = self.seed;
        let mut first_copied = u64::MAX;
        let mut last_unseen = 0;
        for sender in 0..SENDERS {
            let copies = self.copied.iter().filter(|message| message.0 == sender).count() as u64;
            let first = MESSAGES - copies;
            let numbers = self.copied.iter().filter(|message| message.0 == sender).map(|message| message.1);
            assert!(numbers.eq(first..MESSAGES), "seed {seed}: the copies of sender {sender} have a gap");
            // Lanes were open and never full, so kdbusd carried nothing before the monitor came. What the monitor has seen
            // and kdbusd has not carried would be in both, the other way round in neither.
            assert_eq!(self.carried[sender], copies, "seed {seed}: kdbusd's count of sender {sender}");
            for number in 0..MESSAGES {
                let sent = self.sent((sender, number));
                let (began, returned) = self.joined;
                if number < first {
                    assert!(
                        sent.began <= returned,
                        "seed {seed}: {number} of {sender} went past the monitor"
                    );
                    last_unseen = last_unseen.max(sent.began);
                } else {
                    assert!(sent.returned >= began, "seed {seed}: {number} of {sender} was sent before");
                    first_copied = first_copied.min(sent.returned);
                }
            }
        }
        // The cut goes through all senders at one moment.
        assert!(last_unseen <= first_copied, "seed {seed}: a copy of what was sent before something unseen");
    }
}

#[test]
fn a_monitor_that_joins_divides_the_history_between_lanes_and_its_copies() {
    let mut divided = 0;
    for seed in 1..=30_u64 {
        let bus = Bus::with(|config| {
            config.capacity.lanes = 16;
            // The monitor is told of all that is sent while it does not look.
            config.capacity.queue_depth = 1024;
            config.capacity.pool_slices = 2048;
        });
        // The golden ratio spreads any number of seeds evenly.
        let total = SENDERS as u64 * MESSAGES;
        let join_at = 20 + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % (total - 100);
        let history = play(&bus, seed, join_at);
        assert_eq!(history.received.len() as u64, total);
        history.check_order(&history.received, "receiver");
        history.check_order(&history.copied, "monitor");
        history.check_partition();
        divided += usize::from((1..total as usize).contains(&history.copied.len()));
    }
    assert!(divided > 10, "the monitor came in between in {divided} rounds");
}
