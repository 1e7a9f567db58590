//! zbus as a client of dbus-broker, written as its documentation would have it.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use zbus::blocking::connection::Builder;
use zbus::blocking::{Connection, MessageIterator};
use zbus::message::{Flags, Type};
use zbus::{MatchRule, Message};

use crate::case::{Case, Kind};
use crate::control::{Control, PATIENCE};
use crate::dbus::SOCKET;
use crate::end::{Client, Server, stamp};
use crate::job::Job;
use crate::shared::Shared;

const SERVICE: &str = "org.example.Echo";
const PATH: &str = "/org/example/Echo";

/// The client's end.
pub struct ZbusClient {
    bus: Connection,
    case: Case,
    shared: Rc<Shared>,
    sent: u64,
    window: u64,
}

/// A server's end.
pub struct ZbusServer {
    bus: Connection,
    messages: MessageIterator,
}

fn other(error: impl Display) -> io::Error {
    io::Error::other(error.to_string())
}

fn connect(dir: &Path) -> io::Result<Connection> {
    let address = format!("unix:path={}", dir.join(SOCKET).display());
    let until = Instant::now() + PATIENCE;
    loop {
        match Builder::address(address.as_str()).and_then(Builder::build) {
            Ok(bus) => return Ok(bus),
            Err(error) if Instant::now() > until => return Err(other(error)),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

impl ZbusClient {
    /// A client of the bus in `dir`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(dir: &Path, case: &Case, shared: &Rc<Shared>) -> io::Result<Self> {
        let window = ((4 << 20) / case.bytes as u64).clamp(2, 32);
        Ok(Self { bus: connect(dir)?, case: *case, shared: shared.clone(), sent: 0, window })
    }
}

impl Client for ZbusClient {
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let arguments: &[u8] = buffer;
        let answer =
            self.bus.call_method(Some(SERVICE), PATH, Some(SERVICE), "Echo", &arguments).map_err(other)?;
        let body = answer.body();
        let bytes: &[u8] = body.deserialize().map_err(other)?;
        if bytes.len() != buffer.len() {
            return Err(other("an answer of another length"));
        }
        let tail = buffer.len() - 8;
        for at in [0, tail] {
            buffer[at..at + 8].copy_from_slice(&bytes[at..at + 8]);
        }
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.case.kind == Kind::Broadcast {
            return self.bus.emit_signal(None::<&str>, PATH, SERVICE, "Echo", &bytes).map_err(other);
        }
        while self.sent - Control(&self.shared).so_far().0 >= self.window {
            rustix::thread::sched_yield();
        }
        self.sent += 1;
        let message = Message::method_call(PATH, "Echo")
            .and_then(|message| message.destination(SERVICE))
            .and_then(|message| message.interface(SERVICE))
            .and_then(|message| message.with_flags(Flags::NoReplyExpected))
            .and_then(|message| message.build(&bytes));
        self.bus.send(&message.map_err(other)?).map_err(other)
    }
}

impl ZbusServer {
    /// A server on the bus of `job`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(job: &Job) -> io::Result<Self> {
        let bus = connect(&job.dir)?;
        let messages = if job.case.kind == Kind::Broadcast {
            let rule = MatchRule::builder().msg_type(Type::Signal).interface(SERVICE).map_err(other)?.build();
            MessageIterator::for_match_rule(rule, &bus, Some(64)).map_err(other)?
        } else {
            let messages = MessageIterator::from(&bus);
            bus.request_name(SERVICE).map_err(other)?;
            messages
        };
        Ok(Self { bus, messages })
    }

    fn next(&mut self) -> io::Result<Message> {
        loop {
            let Some(message) = self.messages.next() else { return Err(other("the bus is gone")) };
            let message = message.map_err(other)?;
            let is_ours = message.header().interface().is_some_and(|interface| *interface == SERVICE);
            if is_ours && matches!(message.message_type(), Type::MethodCall | Type::Signal) {
                return Ok(message);
            }
        }
    }
}

impl Server for ZbusServer {
    fn answer(&mut self) -> io::Result<()> {
        let call = self.next()?;
        let body = call.body();
        let bytes: &[u8] = body.deserialize().map_err(other)?;
        self.bus.reply(&call.header(), &bytes).map_err(other)
    }

    fn receive(&mut self) -> io::Result<Option<u64>> {
        let message = self.next()?;
        let body = message.body();
        Ok(stamp(body.deserialize().map_err(other)?))
    }
}
