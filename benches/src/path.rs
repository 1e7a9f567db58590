//! Instructions of a message by lane, in the clients: what kdbus-rt itself does, the kernel aside. Counted by callgrind, so
//! nearly the same in every run, calls whose ends wait aside.
//!
//! Both ends are connections of this process, and the daemon a thread of it that sleeps meanwhile.

use std::hint::black_box;
use std::io::{self, Write};
use std::path::Path;

use clap::{Args, ValueEnum};
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{CALL_TIMEOUT, Message, POOL_SIZE};
use kdbusd::Running;

use crate::bus::{Bus, config, connect, service};
use crate::callgrind;

/// The function that callgrind counts in.
const COUNTED: &str = "*measured_path*";

/// Messages before those that are counted.
const WARM_UP: u64 = 64;
/// Messages that stand in the lane together.
const BATCH: u64 = 16;
/// Those that are counted.
const MESSAGES: u64 = 100 * BATCH;

/// Counts instructions of a message by lane.
#[derive(Debug, Args)]
pub struct Arguments {
    /// Bytes of a message
    #[arg(long, default_value_t = 64)]
    bytes: usize,
    /// Messages of the caller that wait in its lane while calls are answered
    #[arg(long, default_value_t = 200)]
    waiting: u64,
    /// Run one of them only and show nothing, for callgrind
    #[arg(long, hide = true)]
    only: Option<What>,
}

/// What is counted.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// Messages that are sent.
    Send,
    /// The same received.
    Receive,
    /// Replies, one after another, to calls behind which other messages wait.
    Reply,
    /// A call and its reply, at both ends.
    Call,
    /// The same where both ends wait. How the threads take turns shows in the count: it varies by a tenth.
    CallBlocking,
}

impl What {
    const ALL: [Self; 5] = [Self::Send, Self::Receive, Self::Reply, Self::Call, Self::CallBlocking];

    const fn name(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
            Self::Reply => "reply",
            Self::Call => "call",
            Self::CallBlocking => "call-blocking",
        }
    }
}

/// Two connections with lanes both ways.
struct Ends {
    a: Bus,
    b: Bus,
    bytes: Vec<u8>,
}

/// Counts, and shows what came out.
///
/// # Errors
///
/// What failed.
pub fn run(arguments: &Arguments) -> io::Result<()> {
    if let Some(only) = arguments.only {
        return alone(only, arguments.bytes, arguments.waiting);
    }
    for what in What::ALL {
        let (bytes, waiting) = (arguments.bytes.to_string(), arguments.waiting.to_string());
        let run = ["path", "--bytes", &bytes, "--waiting", &waiting, "--only", what.name()];
        let all = callgrind::instructions(COUNTED, &run)?;
        let beside = if matches!(what, What::Reply) { format!(", {waiting} waiting") } else { String::new() };
        writeln!(io::stdout(), "{}, {bytes} bytes{beside}: {} instructions", what.name(), all / MESSAGES)?;
    }
    Ok(())
}

fn alone(what: What, bytes: usize, waiting: u64) -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = config(dir.path());
    (config.capacity.lanes, config.capacity.lanes_per_user) = (16, 16);
    let daemon = Running::start(&config).map_err(io::Error::other)?;
    let ends = Ends::new(dir.path(), bytes)?;
    for _ in 0..WARM_UP {
        ends.call()?;
    }
    match what {
        What::Call => (0..MESSAGES).try_for_each(|_| measured_path(|| ends.call()))?,
        What::Send => {
            for _ in 0..MESSAGES / BATCH {
                measured_path(|| (0..BATCH).try_for_each(|_| ends.send()))?;
                (0..BATCH).try_for_each(|_| ends.receive())?;
            }
        }
        What::Receive => {
            for _ in 0..MESSAGES / BATCH {
                (0..BATCH).try_for_each(|_| ends.send())?;
                measured_path(|| (0..BATCH).try_for_each(|_| ends.receive()))?;
            }
        }
        What::Reply => {
            for _ in 0..MESSAGES / BATCH {
                ends.answer_while_others_wait(waiting)?;
            }
        }
        What::CallBlocking => {
            let Ends { a, b, bytes } = ends;
            let serving =
                std::thread::spawn(move || (0..MESSAGES).try_for_each(|_| measured_path(|| answer(&b))));
            let call = || {
                let reply = a.call_blocking(&Message::to_name(service()?).payload(&bytes), CALL_TIMEOUT);
                black_box(reply.map_err(io::Error::other)?.payload());
                Ok::<_, io::Error>(())
            };
            (0..MESSAGES).try_for_each(|_| measured_path(call))?;
            serving.join().map_err(|_| io::Error::other("the callee has panicked"))??;
        }
    }
    daemon.stop().map_err(io::Error::other)
}

/// Waits for a call and answers it.
fn answer(b: &Bus) -> io::Result<()> {
    let call = b.recv_blocking(CALL_TIMEOUT).map_err(io::Error::other)?;
    b.reply(call.reply_to(), call.payload()).map_err(io::Error::other)
}

/// Everything in here is counted.
#[inline(never)]
fn measured_path<R>(act: impl FnOnce() -> R) -> R {
    black_box(act())
}

impl Ends {
    fn new(dir: &Path, bytes: usize) -> io::Result<Self> {
        let end = || connect(dir, POOL_SIZE, true, 2);
        let (a, b) = (end()?, end()?);
        b.acquire(service()?, NameFlags::empty()).map_err(io::Error::other)?;
        a.transport().open_lane_to_name(service()?).map_err(io::Error::other)?;
        b.transport().open_lane(a.id()).map_err(io::Error::other)?;
        Ok(Self { a, b, bytes: vec![7; bytes] })
    }

    fn send(&self) -> io::Result<()> {
        let message = Message::to_name(service()?).payload(&self.bytes);
        self.a.send(&message).map(|_| ()).map_err(io::Error::other)
    }

    fn receive(&self) -> io::Result<()> {
        let message = self.b.try_recv().map_err(io::Error::other)?;
        let message = message.ok_or_else(|| io::Error::other("a message was lost"))?;
        black_box(message.payload());
        Ok(())
    }

    /// Calls, and sends other messages behind that; then counts how the calls are answered.
    fn answer_while_others_wait(&self, waiting: u64) -> io::Result<()> {
        let later = self.a.now().after(CALL_TIMEOUT);
        for _ in 0..BATCH {
            let call = Message::to_name(service()?).payload(&self.bytes).expect_reply(later);
            self.a.send(&call).map_err(io::Error::other)?;
        }
        (0..waiting).try_for_each(|_| self.send())?;
        let mut callers = Vec::new();
        for _ in 0..BATCH {
            let call = self.b.try_recv().map_err(io::Error::other)?;
            callers.push(call.ok_or_else(|| io::Error::other("a call was lost"))?.reply_to());
        }
        let answer = |to| self.b.reply(to, &self.bytes).map_err(io::Error::other);
        measured_path(|| callers.into_iter().try_for_each(answer))?;
        (0..waiting).try_for_each(|_| self.receive())?;
        for _ in 0..BATCH {
            let reply = self.a.try_recv().map_err(io::Error::other)?;
            black_box(reply.ok_or_else(|| io::Error::other("a reply was lost"))?.payload());
        }
        Ok(())
    }

    fn call(&self) -> io::Result<()> {
        let call = self.a.call(&Message::to_name(service()?).payload(&self.bytes), CALL_TIMEOUT);
        let received = self.b.try_recv().map_err(io::Error::other)?;
        let received = received.ok_or_else(|| io::Error::other("a call was lost"))?;
        self.b.reply(received.reply_to(), received.payload()).map_err(io::Error::other)?;
        drop(received);
        let reply = call.wait().map_err(io::Error::other)?;
        black_box(reply.payload());
        Ok(())
    }
}
