//! Honest pairs beside processes that write what they like into their own lanes, all the time: no wrong byte passes, nothing
//! honest is lost, and each call ends once.
//!
//! This file has a `main` of its own, because it is the other processes' program too.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::attacker::{self, Ends, message, now, reply};
use common::{Bus, Client, exchange};
use kdbus_core::abi::{Msg, SendFlags};
use kdbus_core::channel::terms::{PAGE_WORDS, VERDICT_AT};
use kdbus_core::channel::{
    CALL_WORDS, CALLS_MAX, CallName, LaneHead, LaneLayout, LaneReader, RECORD_WORDS, Verdict, Words,
};
use kdbus_core::client::{Connection, Hello, Message};
use kdbus_linux::local::Options;
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Wait};
use kdbus_linux::local::wire::{Header, Kind, LANE_FDS};
use zerocopy::{FromBytes, IntoBytes};

const LONG: Duration = Duration::from_secs(20);
const STREAMED: u64 = 3000;
const CALLS: u64 = 300;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "client") {
        return client(&arguments[2], &arguments[3], arguments[4].parse().unwrap());
    }
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    const TEST: &str = "honest_pairs_hold_beside_processes_that_write_at_will";
    if wanted.is_none_or(|wanted| TEST.contains(wanted.as_str())) {
        for spin in [Duration::ZERO, Duration::from_micros(50)] {
            honest_pairs_hold_beside_processes_that_write_at_will(spin);
        }
        println!("test {TEST} ... ok");
    }
}

/// Numbers that look random, the same ones for the same seed.
struct Dice(u64);

impl Dice {
    fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.any() % end
    }
}

/// Bytes that follow from a number.
fn bytes(number: u64) -> Vec<u8> {
    let len = 8 + (number.wrapping_mul(0x9e37_79b9) >> 7) % 1800;
    let rest = (8..len).map(|at| (number.wrapping_mul(31) + at * 7) as u8);
    number.to_ne_bytes().into_iter().chain(rest).collect()
}

fn with_lanes(path: &str) -> Client {
    Connection::with_capacities(Options::new().lanes(4).connect(path).unwrap(), &Hello::new()).unwrap()
}

fn without_lanes(path: &str) -> Option<Client> {
    let transport = Options::new().lanes(0).staging(0).connect(path).ok()?;
    Connection::with_capacities(transport, &Hello::new()).ok()
}

/// The other processes' program.
fn client(role: &str, path: &str, victim: u64) {
    match role {
        "echo" => echo(&with_lanes(path), victim),
        "stream" => stream(&with_lanes(path), victim),
        "callee" => callee(&without_lanes(path).unwrap(), victim),
        _ => loop {
            if let Some(client) = without_lanes(path) {
                scribble(&client, victim);
            }
        },
    }
}

fn ready(bus: &Client) {
    println!("ready {}", bus.id());
}

/// Answers each call with its bytes, last one first.
fn echo(bus: &Client, victim: u64) {
    bus.transport().open_lane(victim).unwrap();
    ready(bus);
    while let Ok(call) = bus.recv_blocking(LONG) {
        let answer: Vec<u8> = call.payload().iter().rev().copied().collect();
        bus.reply(call.reply_to(), &answer).unwrap();
    }
}

fn stream(bus: &Client, victim: u64) {
    bus.transport().open_lane(victim).unwrap();
    ready(bus);
    for number in 0..STREAMED {
        bus.send_when_room_blocking(&Message::to(victim).payload(&bytes(number)), LONG).unwrap();
        if number % 8 == 0 {
            std::thread::sleep(Duration::from_micros(300));
        }
    }
    let _ = bus.recv_blocking(Duration::from_secs(3600));
}

/// One life of a sender that writes what it likes wherever it can.
fn scribble(client: &Client, victim: u64) {
    let Some(mut attacker) = Ends::open(client, victim) else {
        return std::thread::sleep(Duration::from_millis(1));
    };
    let mut dice = Dice(now() | 1);
    for round in 0..dice.below(3000) {
        let reply = dice.below(4) == 0;
        let cookie = dice.below(2 * CALLS);
        let first = message(victim, |header, _| header.timeout_or_reply = if reply { cookie } else { 0 });
        let call = CallName { index: dice.below(CALLS_MAX as u64) as usize, number: 1 + dice.below(CALLS) };
        let waited = CallName { index: CALLS_MAX - 1, ..call };
        let key = match dice.below(8) {
            0 => now() + dice.below(2_000_000),
            1 => dice.any() >> dice.below(64),
            _ => now(),
        };
        let call = [0, call.word(), waited.word(), dice.any()][dice.below(4) as usize];
        let head = LaneHead { first: first.len() as u64, second: 8, key, call };
        let Ok(mut reserved) = attacker.writer.reserve(head) else {
            if attacker.is_given_up() {
                return;
            }
            continue;
        };
        reserved.put(&first);
        reserved.next_part();
        reserved.put(&dice.any().to_ne_bytes());
        let _ = reserved.commit();
        if round < 20 {
            attacker.ring();
            continue;
        }
        let lane = &attacker.lane;
        let open = Verdict::from_word(lane.load(0));
        for _ in 0..dice.below(40) {
            // Behind the head of the message that was sent last, mostly.
            let at = 16 + (open.tail.wrapping_sub(dice.below(64)) as usize) % (lane.count() - 16);
            match dice.below(64) {
                0 => lane.store(0, Verdict { tail: open.tail.wrapping_sub(dice.below(9)), ..open }.word()),
                1 => lane.store(0, Verdict { tail: open.tail + dice.below(300), ..open }.word()),
                2 => lane.store(dice.below(16) as usize, dice.any()),
                3 => lane.store(16 + dice.below(lane.count() as u64 - 16) as usize, dice.any()),
                4..16 => lane.store(at, dice.any() >> dice.below(64)),
                16..32 => lane.store(at, lane.load(at).wrapping_add(8).wrapping_sub(dice.below(17))),
                32..40 => attacker.calls.store(dice.below(CALL_WORDS as u64) as usize, dice.below(4 * CALLS)),
                40..48 => attacker.record.store(dice.below(RECORD_WORDS as u64) as usize, dice.any()),
                _ => attacker.ring(),
            }
        }
        attacker.ring();
    }
}

/// A callee that answers twice, elsewhere, or not at all, and writes to the words of calls.
fn callee(bus: &Client, victim: u64) {
    let (answer, fds) = exchange(bus, &Header::new(Kind::BringLane, 1 << 40), &[]);
    let number = answer.slot;
    let [lane, room, page, calls, _bell] = fds.into_array::<LANE_FDS>().unwrap();
    let words = rustix::fs::fstat(&lane).unwrap().st_size as usize / 8;
    let layout = LaneLayout::of_words(words).unwrap();
    let mut reader = LaneReader::new(
        WordMap::read_only(&lane, words).unwrap(),
        WordMap::writable(&room, LaneLayout::BACK_WORDS).unwrap(),
        WordMap::read_only(&page, PAGE_WORDS).unwrap(),
        VERDICT_AT,
        layout,
    )
    .unwrap();
    let calls = WordMap::writable(&calls, CALL_WORDS).unwrap();
    let mapped = Header { slot: number, ..Header::new(Kind::LaneMapped, 0) };
    socket::send(bus.transport().handle().socket(), &mapped, &[], &[], Wait::Yes).unwrap();
    let _ = bus.transport().handle().command(0, &mut [0; 8]);
    let mut back = Ends::open(bus, victim).unwrap();
    ready(bus);
    let mut dice = Dice(now() | 1);
    let claim = |call, reply: Vec<u8>| {
        // Whatever kdbusd says to that.
        let _ = attacker::claim(bus, number, call, &reply, SendFlags::empty());
    };
    loop {
        calls.store(dice.below(CALL_WORDS as u64) as usize, dice.below(4 * CALLS));
        let Ok(Some(head)) = reader.peek() else {
            std::thread::sleep(Duration::from_micros(50));
            continue;
        };
        let (mut first, mut second) = (vec![0; words], vec![0; words]);
        let room = reader.copy_out(&mut first, &mut second).unwrap();
        reader.give_back(room);
        let (header, _) = Msg::read_from_prefix(first.as_bytes()).unwrap();
        let (call, cookie) = (head.call, header.cookie);
        for _ in 0..4 {
            match dice.below(8) {
                0 | 1 => {
                    let reply = reply(victim, if dice.below(4) == 0 { dice.below(CALLS) } else { cookie });
                    let head = LaneHead { first: reply.len() as u64, second: 8, key: now(), call };
                    if let Ok(mut reserved) = back.writer.reserve(head) {
                        reserved.put(&reply);
                        reserved.next_part();
                        reserved.put(b"answered");
                        let _ = reserved.commit();
                    }
                    back.ring();
                }
                2 => claim(call, reply(victim, cookie)),
                3 => claim(call, reply(victim, dice.below(CALLS))),
                4 => claim(dice.below(1 << 16), reply(victim, cookie)),
                5 => claim(call, reply(bus.id(), 0)),
                _ => {
                    let at = (call & 0xff) as usize;
                    for _ in 0..dice.below(50) {
                        calls.store(at, (call >> 8) << 2 | dice.below(4));
                    }
                }
            }
        }
        if bus.transport().handle().stats(bus.id()).is_ok_and(|report| report.stats.queued > 0) {
            let _ = bus.try_recv();
        }
    }
}

/// A client in a process of its own, killed when dropped.
struct Process {
    child: Child,
    id: u64,
}

impl Process {
    fn start(role: &str, bus: &Path, victim: u64) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["client", role]).arg(bus).arg(victim.to_string()).stdout(Stdio::piped());
        let child = command.spawn().unwrap();
        let mut process = Self { id: 0, child };
        if role != "scribble" {
            let mut line = String::new();
            BufReader::new(process.child.stdout.take().unwrap()).read_line(&mut line).unwrap();
            process.id = line.trim().strip_prefix("ready ").unwrap().parse().unwrap();
        }
        process
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the victim has to see of it all.
struct Ledger {
    own: u64,
    echo: u64,
    stream: u64,
    callee: u64,
    streamed: u64,
    open: BTreeSet<u64>,
    hostile: u64,
}

impl Ledger {
    fn note(&mut self, sender: u64, answers: u64, payload: &[u8]) {
        if sender == self.stream {
            assert_eq!(payload, bytes(self.streamed), "in order, and all of it");
            self.streamed += 1;
        } else if answers != 0 {
            assert!(sender == 0 || sender == self.callee, "{sender} answers {answers}");
            assert!(self.open.remove(&answers), "call {answers} ends again, by {sender}");
        } else {
            assert!(![0, self.own, self.echo].contains(&sender), "{sender}");
            self.hostile += 1;
        }
    }
}

fn honest_pairs_hold_beside_processes_that_write_at_will(spin: Duration) {
    let bus = Bus::with(|config| config.capacity.lanes = 32);
    let transport = bus.options().lanes(8).spin(spin).connect(&bus.name()).unwrap();
    let victim: Client = Connection::with_capacities(transport, &Hello::new()).unwrap();
    let node = bus.root.join(bus.name()).join("bus");
    let start = |role| Process::start(role, &node, victim.id());
    let (echo, callee) = (start("echo"), start("callee"));
    for to in [&echo, &callee] {
        victim.transport().open_lane(to.id).unwrap();
    }
    // Those who scribble open lanes again and again, and may have all that are left.
    let stream = start("stream");
    let scribblers = [(); 3].map(|()| start("scribble"));
    let mut seen = Ledger {
        own: victim.id(),
        echo: echo.id,
        stream: stream.id,
        callee: callee.id,
        streamed: 0,
        open: BTreeSet::new(),
        hostile: 0,
    };
    let soon = || victim.now().after(Duration::from_millis(20));
    let mut number = 0;
    let give_up = victim.now().after(6 * LONG);
    while number < CALLS || seen.streamed < STREAMED || !seen.open.is_empty() || seen.hostile < 200 {
        assert!(victim.now() < give_up, "{} of {STREAMED}, open {:?}", seen.streamed, seen.open);
        if number < CALLS {
            number += 1;
            let question = Message::to(callee.id).payload(b"question").cookie(number).expect_reply(soon());
            match victim.send(&question) {
                Ok(_) => assert!(seen.open.insert(number)),
                // Its callee reads neither lane nor queue fast enough.
                Err(error) => assert!(!error.is_broken(), "{error}"),
            }
            let sent = bytes(number);
            let answer = victim.call_blocking(&Message::to(echo.id).payload(&sent), LONG).unwrap();
            assert!(answer.sender() == echo.id && answer.payload().iter().rev().eq(&sent));
        }
        // Before it sleeps, it puts new lanes in the place of those that nothing more comes by.
        if (number >= CALLS || number.is_multiple_of(8))
            && let Ok(message) = victim.recv_blocking(Duration::from_millis(2))
        {
            seen.note(message.sender(), message.cookie_reply(), message.payload());
        }
        while let Some(message) = victim.try_recv().unwrap() {
            seen.note(message.sender(), message.cookie_reply(), message.payload());
        }
    }
    drop(scribblers);
}
