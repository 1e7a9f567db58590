//! Buffers that are lent between processes, honest and hostile ones.
//!
//! This file has a `main` of its own, because it is the other process' program too.

mod common;

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::channel::{LoanRecord, RETURN_WORDS, SlabRecord, Words};
use kdbus_core::client::{CallError, Connection, Delivery, Hello, Message};
use kdbus_linux::local::map::{self, Seal, WordMap, WriteMap};
use kdbus_linux::local::{Borrower, Lender, LoanError, LocalTransport};
use zerocopy::IntoBytes;

const SOON: Duration = Duration::from_secs(20);
const SERVICE: &str = "org.example.Slab";
const SIZE: u64 = 1 << 16;
const COUNT: u32 = 4;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "peer") {
        return peer(&arguments[2], &arguments[3]);
    }
    // As the usual harness: a word on the command line chooses.
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    let tests: &[(&str, fn())] = &[
        ("a_stream_of_loans_comes_through", a_stream_of_loans_comes_through),
        ("a_borrower_that_dies_holds_nothing", a_borrower_that_dies_holds_nothing),
        ("a_borrower_that_returns_what_it_never_had", a_borrower_that_returns_what_it_never_had),
        ("a_lender_that_lies_is_told_apart", a_lender_that_lies_is_told_apart),
        ("a_lender_that_writes_on_harms_nobody", a_lender_that_writes_on_harms_nobody),
    ];
    for (name, test) in tests {
        if wanted.is_none_or(|wanted| name.contains(wanted.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

fn service() -> WellKnownName<'static> {
    WellKnownName::parse(SERVICE).unwrap()
}

fn accepting() -> Hello<'static> {
    Hello::new().accept_fds()
}

/// The other process: owns the service and does what `role` says.
fn peer(role: &str, path: &str) {
    let transport = LocalTransport::connect(path).unwrap();
    let bus: Client = Connection::with_capacities(transport, &accepting()).unwrap();
    bus.acquire(service(), NameFlags::empty()).unwrap();
    println!("ready");
    match role {
        "lie" | "write" => lend_badly(&bus, role),
        _ => borrow(&bus, role),
    }
}

/// Takes the slab of whoever calls first, then answers each loan with its first and last word.
fn borrow(bus: &Client, role: &str) {
    let mut introduction = bus.recv_blocking(SOON).unwrap();
    let returns = (role == "forge").then(|| introduction.take_fd(1).unwrap());
    let (slab, borrower) = match &returns {
        Some(returns) => {
            let slab = introduction.take_fd(0).unwrap();
            let borrower = Borrower::new(introduction.payload(), &slab, returns, 1 << 20).unwrap();
            (Some(slab), borrower)
        }
        None => (None, Borrower::accept(&mut introduction, 1 << 20).unwrap()),
    };
    drop(slab);
    bus.reply(introduction.reply_to(), b"mapped").unwrap();
    drop(introduction);
    let forged = returns.map(|returns| WordMap::writable(returns, RETURN_WORDS).unwrap());
    let mut held = Vec::new();
    while let Ok(call) = bus.recv_blocking(SOON) {
        let loan = borrower.borrow(call.payload()).unwrap();
        let ends = [loan.word(0).unwrap(), loan.word(loan.len() - 8).unwrap()];
        if let Some(forged) = &forged {
            forged.store(0, u64::MAX);
        }
        if role == "hoard" {
            held.push(loan);
        } else {
            // Back before the answer, so that the caller finds it.
            drop(loan);
        }
        bus.reply(call.reply_to(), ends.as_bytes()).unwrap();
    }
}

/// Answers calls with slabs and loans that are not what they should be.
fn lend_badly(bus: &Client, role: &str) {
    let record = SlabRecord::new(1, COUNT, SIZE);
    let bytes = record.bytes().unwrap();
    let unsealed = map::create(c"unsealed", bytes).unwrap();
    let short = map::create(c"short", bytes - 1).unwrap();
    map::seal(&short, Seal::SizeAndWriters).unwrap();
    let slab = map::create(c"slab", bytes).unwrap();
    let mut writer = WriteMap::new(&slab, bytes, false).unwrap();
    map::seal(&slab, Seal::SizeAndWriters).unwrap();
    let returns = map::create(c"returns", 8).unwrap();
    map::seal(&returns, Seal::Size).unwrap();
    loop {
        let Ok(call) = bus.recv_blocking(SOON) else { return };
        let send = |payload: &[u8], fds: &[_]| {
            bus.send(&Message::reply(call.reply_to()).payload(payload).fds(fds)).unwrap();
        };
        match call.payload() {
            b"unsealed" => send(record.as_bytes(), &[unsealed.as_fd(), returns.as_fd()]),
            b"short" => send(record.as_bytes(), &[short.as_fd(), returns.as_fd()]),
            b"swapped" => send(record.as_bytes(), &[returns.as_fd(), slab.as_fd()]),
            b"huge" => send(SlabRecord::new(1, 64, 1 << 50).as_bytes(), &[slab.as_fd(), returns.as_fd()]),
            b"nothing" => send(record.as_bytes(), &[slab.as_fd()]),
            b"good" => send(record.as_bytes(), &[slab.as_fd(), returns.as_fd()]),
            b"beyond" => send(LoanRecord::new(1, COUNT, 8).as_bytes(), &[]),
            b"long" => send(LoanRecord::new(1, 0, SIZE + 1).as_bytes(), &[]),
            b"other" => send(LoanRecord::new(2, 0, 8).as_bytes(), &[]),
            _ => send(LoanRecord::new(1, 0, SIZE).as_bytes(), &[]),
        }
        if role == "write" && call.payload() == b"loan" {
            // From here on it writes into what it has lent, and never stops.
            for value in 0_u64.. {
                for at in (0..bytes).step_by(8) {
                    writer.write(at, &value.to_ne_bytes()).unwrap();
                }
                if value == 0 {
                    println!("writing");
                }
            }
        }
    }
}

/// The other process, ended when dropped.
struct Peer {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Peer {
    fn start(role: &str, bus: &Path) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let mut child = command.args(["peer", role]).arg(bus).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, output };
        assert_eq!(peer.line(), "ready");
        peer
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().into()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn node(bus: &Bus) -> std::path::PathBuf {
    bus.root.join(bus.name()).join("bus")
}

fn introduce(client: &Client, lender: &Lender) {
    let (record, fds) = lender.introduction();
    let call = Message::to_name(service()).payload(&record).fds(&fds);
    assert_eq!(client.call_blocking(&call, SOON).unwrap().payload(), b"mapped");
}

/// Lends a buffer whose ends are `value` and one more; what the peer found there.
fn lend(client: &Client, lender: &Lender, value: u64) -> Result<[u64; 2], CallError> {
    let mut buffer = lender.take().expect("a buffer is free");
    buffer.write(0, &value.to_ne_bytes()).unwrap();
    buffer.write(SIZE - 8, &(value + 1).to_ne_bytes()).unwrap();
    buffer.lend(SIZE, |record| {
        let answer = client.call_blocking(&Message::to_name(service()).payload(record), SOON)?;
        let word = |at: usize| u64::from_ne_bytes(*answer.payload()[at..].first_chunk().unwrap());
        Ok([word(0), word(8)])
    })
}

fn a_stream_of_loans_comes_through() {
    let bus = Bus::start();
    let _peer = Peer::start("read", &node(&bus));
    let client = bus.hello(&accepting());
    let lender = Lender::new(COUNT, SIZE).unwrap();
    introduce(&client, &lender);
    for value in 0..200 {
        assert_eq!(lend(&client, &lender, value).unwrap(), [value, value + 1]);
        assert_eq!(lender.lent(), 0, "it comes back before the answer does");
    }
}

fn a_borrower_that_dies_holds_nothing() {
    let bus = Bus::start();
    let mut peer = Peer::start("hoard", &node(&bus));
    let client = bus.hello(&accepting());
    let lender = Lender::new(COUNT, SIZE).unwrap();
    introduce(&client, &lender);
    for value in 0..u64::from(COUNT) {
        lend(&client, &lender, value).unwrap();
    }
    assert_eq!(lender.lent(), COUNT);
    assert!(lender.take().is_none(), "the borrower has all of them");
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    let call = Message::to_name(service());
    // The bus knows as soon as it has seen the end; then the name has no owner.
    while client.call_blocking(&call, SOON).is_ok() {}
    assert_eq!(lender.borrower_gone(), COUNT);
    assert!(lender.take().is_some());
}

fn a_borrower_that_returns_what_it_never_had() {
    let bus = Bus::start();
    let _peer = Peer::start("forge", &node(&bus));
    let client = bus.hello(&accepting());
    let lender = Lender::new(COUNT, SIZE).unwrap();
    introduce(&client, &lender);
    let mine = lender.take().unwrap();
    for value in 0..50 {
        // It says each time that all 64 have come back.
        lend(&client, &lender, value).unwrap();
        assert_eq!(lender.lent(), 0);
        let taken: Vec<_> = std::iter::from_fn(|| lender.take()).collect();
        assert_eq!(taken.len() as u32, COUNT - 1, "the one that is being filled is nobody else's");
    }
    drop(mine);
}

fn ask<'c>(client: &'c Client, what: &[u8]) -> Delivery<'c, LocalTransport> {
    client.call_blocking(&Message::to_name(service()).payload(what), SOON).unwrap()
}

fn a_lender_that_lies_is_told_apart() {
    let bus = Bus::start();
    let _peer = Peer::start("lie", &node(&bus));
    let client = bus.hello(&accepting());
    for (what, error) in [
        (&b"unsealed"[..], LoanError::Unsealed),
        (b"short", LoanError::Unsealed),
        (b"swapped", LoanError::Unsealed),
        (b"huge", LoanError::TooLarge),
        (b"nothing", LoanError::NoDescriptor),
        (b"loan", LoanError::NoDescriptor),
    ] {
        let refused = Borrower::accept(&mut ask(&client, what), 1 << 20);
        assert_eq!(refused.err(), Some(error), "{}", String::from_utf8_lossy(what));
    }
    let borrower = Borrower::accept(&mut ask(&client, b"good"), 1 << 20).unwrap();
    for what in [&b"beyond"[..], b"long", b"other"] {
        let refused = borrower.borrow(ask(&client, what).payload());
        assert_eq!(refused.err(), Some(LoanError::NotALoan), "{}", String::from_utf8_lossy(what));
    }
    let loan = borrower.borrow(ask(&client, b"loan").payload()).unwrap();
    assert_eq!(borrower.borrow(ask(&client, b"loan").payload()).err(), Some(LoanError::Held));
    drop(loan);
}

fn a_lender_that_writes_on_harms_nobody() {
    let bus = Bus::start();
    let mut peer = Peer::start("write", &node(&bus));
    let client = bus.hello(&accepting());
    let borrower = Borrower::accept(&mut ask(&client, b"good"), 1 << 20).unwrap();
    let loan = borrower.borrow(ask(&client, b"loan").payload()).unwrap();
    assert_eq!(peer.line(), "writing");
    let mut copy = vec![0; SIZE as usize];
    for _ in 0..100 {
        // Whatever is in there, it was all written by the peer, and the copy does not change any more.
        loan.read(0, &mut copy).unwrap();
        let sum: u64 = copy.iter().map(|byte| u64::from(*byte)).sum();
        assert_eq!(sum, copy.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    }
    assert!(loan.word(SIZE - 8).is_some());
    peer.child.kill().unwrap();
    peer.child.wait().unwrap();
    // Its memory stays for whoever maps it.
    loan.read(0, &mut copy).unwrap();
}
