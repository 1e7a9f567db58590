//! A long conversation in which a seed chooses for each message whether it goes by lane or through the daemon, beside the
//! dullest model of what everybody receives.

mod common;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};

use common::{Bus, Client};
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Connection, Hello, Message, ReplyTo};
use kdbus_core::{Instant, WellKnownName};

const CLIENTS: usize = 3;
const STEPS: usize = 4000;
/// Lanes of each: so few that all are looked at, and so many that most are cold.
const LANES: [usize; 2] = [CLIENTS, 12];
/// Messages that wait at one connection, at most.
const WAITING: usize = 24;
/// Fewer than calls: so a cookie is used again once the call that had it was answered, whichever way that one went.
const COOKIES: u64 = 8;
const NAMES: [&str; CLIENTS] = ["org.example.A", "org.example.B", "org.example.C"];

struct Rng(u64);

impl Rng {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// A message that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Waiting {
    from: u64,
    cookie: u64,
    answers: u64,
    priority: i64,
    call: bool,
    payload: Vec<u8>,
}

#[derive(Default)]
struct Model {
    queues: [VecDeque<Waiting>; CLIENTS],
    /// Cookies of calls that were not answered, of each caller.
    open: [Vec<u64>; CLIENTS],
    /// Calls that were received: callee, caller, where to answer, and whether that was done.
    received: Vec<(usize, usize, ReplyTo, bool)>,
}

impl Model {
    fn most_urgent(&self, at: usize) -> Option<usize> {
        let queue = &self.queues[at];
        (0..queue.len()).min_by_key(|place| queue[*place].priority)
    }
}

fn far() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant::from_nanos((now.tv_sec as u64 + 600) * 1_000_000_000)
}

fn converse(seed: u64, lanes: usize) {
    println!("the seed is {seed}: KDBUS_TEST_SEED={seed}");
    let bus = Bus::with(|config| {
        config.capacity.lanes = 64;
        config.capacity.lanes_per_connection = 12;
    });
    let clients: Vec<Client> = (0..CLIENTS as u64)
        .map(|number| {
            let options = bus.options().lanes(lanes).lane_after(1).detours(seed.wrapping_add(number));
            let transport = options.connect(&bus.name()).unwrap();
            Connection::with_capacities(transport, &Hello::new().pool_size(4 << 20)).unwrap()
        })
        .collect();
    for (client, name) in clients.iter().zip(NAMES) {
        client.acquire(WellKnownName::parse(name).unwrap(), NameFlags::empty()).unwrap();
    }
    let index = |id: u64| clients.iter().position(|client| client.id() == id).unwrap();
    let mut rng = Rng(seed | 1);
    let mut model = Model::default();
    let mut sent = [0; CLIENTS];
    for step in 0..STEPS {
        let at = rng.below(CLIENTS as u64) as usize;
        let client = &clients[at];
        let other = (at + 1 + rng.below(CLIENTS as u64 - 1) as usize) % CLIENTS;
        match rng.below(10) {
            0..=3 if model.queues[other].len() < WAITING => {
                let call = rng.below(3) == 0;
                let cookie = 1 + rng.below(COOKIES);
                if call && model.open[at].contains(&cookie) {
                    continue;
                }
                let priority = rng.below(5) as i64 - 2;
                let payload = vec![cookie as u8; rng.below(3000) as usize];
                let message = match rng.below(2) {
                    0 => Message::to(clients[other].id()),
                    _ => Message::to_name(WellKnownName::parse(NAMES[other]).unwrap()),
                };
                let message = message.payload(&payload).cookie(cookie).priority(priority);
                let message = if call { message.expect_reply(far()) } else { message };
                client.send(&message).unwrap();
                if call {
                    model.open[at].push(cookie);
                }
                let from = client.id();
                let waiting = Waiting { from, cookie, answers: 0, priority, call, payload };
                model.queues[other].push_back(waiting);
                sent[other] += 1;
            }
            4..=7 => {
                let by_priority = rng.below(2) == 0;
                let place = if by_priority { model.most_urgent(at) } else { Some(0) };
                let expected = place.and_then(|place| model.queues[at].remove(place));
                if rng.below(8) == 0
                    && expected.as_ref().is_none_or(|expected| !expected.call)
                    && !by_priority
                {
                    assert_eq!(client.drop_next().unwrap(), expected.is_some(), "step {step}");
                    continue;
                }
                let delivery =
                    if by_priority { client.try_recv_priority(i64::MAX) } else { client.try_recv() }.unwrap();
                let got = delivery.as_ref().map(|got| Waiting {
                    from: got.sender(),
                    cookie: got.cookie(),
                    answers: got.cookie_reply(),
                    priority: got.priority(),
                    call: got.deadline().is_some(),
                    payload: got.payload().to_vec(),
                });
                assert_eq!(got, expected, "step {step}");
                if let (Some(got), Some(call)) = (delivery, expected.filter(|expected| expected.call)) {
                    model.received.push((at, index(call.from), got.reply_to(), false));
                }
            }
            8 if !model.received.is_empty() => {
                let number = rng.below(model.received.len() as u64) as usize;
                let (callee, caller, to, answered) = model.received[number];
                // A second answer is refused, unless the cookie names another call by now.
                let reused = model.open[caller].contains(&to.cookie);
                if answered && reused || model.queues[caller].len() >= WAITING {
                    continue;
                }
                let payload = vec![to.cookie as u8; rng.below(3000) as usize];
                let cookie = 1 + rng.below(COOKIES);
                let result = clients[callee].send(&Message::reply(to).payload(&payload).cookie(cookie));
                assert_eq!(result.is_ok(), !answered, "step {step}: {result:?}");
                if answered {
                    continue;
                }
                model.received[number].3 = true;
                model.open[caller].retain(|cookie| *cookie != to.cookie);
                let (from, priority) = (clients[callee].id(), to.priority);
                let answers = to.cookie;
                let waiting = Waiting { from, cookie, answers, priority, call: false, payload };
                model.queues[caller].push_back(waiting);
                sent[caller] += 1;
            }
            9 => {
                let expected = model.queues[at].front().map(|waiting| (waiting.from, waiting.cookie));
                let head = client.peek().unwrap().map(|head| (head.sender(), head.cookie()));
                assert_eq!(head, expected, "step {step}");
            }
            _ => {}
        }
    }
    for (client, sent) in clients.iter().zip(sent) {
        let carried = client.transport().handle().stats(client.id()).unwrap().stats.received;
        assert!(carried > sent / 4 && carried < sent * 3 / 4, "{carried} of {sent} through the daemon");
    }
}

#[test]
fn everybody_receives_what_was_sent_in_its_order_whichever_way_each_message_goes() {
    if let Ok(seed) = std::env::var("KDBUS_TEST_SEED") {
        let seed = seed.parse().expect("KDBUS_TEST_SEED is a number");
        return LANES.into_iter().for_each(|lanes| converse(seed, lanes));
    }
    let begin = RandomState::new().hash_one(0) >> 32;
    for number in 0..8 {
        LANES.into_iter().for_each(|lanes| converse(begin + number, lanes));
    }
}
