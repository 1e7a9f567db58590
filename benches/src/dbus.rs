//! dbus-daemon and dbus-broker as contenders, with a client that does as little as the protocol lets it.

use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

use crate::case::{Case, Kind, System};
use crate::control::{Control, PATIENCE};
use crate::end::{Client, Server, stamp};
use crate::job::{Job, Role};
use crate::marshal::{Bytes, CALL, ERROR, Field, RETURN, Received, SIGNAL, message_len};
use crate::shared::Shared;

/// The name that is called.
const SERVICE: &str = "org.example.Echo";
const PATH: &str = "/org/example/Echo";
/// The socket of the bus, in the directory of the case.
pub const SOCKET: &str = "dbus";

const BUS: &str = "org.freedesktop.DBus";
const NO_REPLY: u8 = 1;

/// Whether the program of `system` can be run here, or how to get it.
///
/// # Errors
///
/// Why not.
pub fn available(system: System) -> Result<(), String> {
    let program = if system == System::DbusDaemon { "dbus-daemon" } else { "dbus-broker" };
    let version = Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match version {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("there is no {program} (apt install {program})")),
    }
}

/// Becomes a dbus-daemon with a bus of its own.
///
/// # Errors
///
/// What failed.
pub fn daemon(dir: &Path) -> io::Result<()> {
    let config = dir.join("dbus.conf");
    // No limit stands in the way of what is measured.
    let limits = ["max_incoming_bytes", "max_outgoing_bytes", "max_message_size"];
    let limits: String = limits.map(|limit| format!("<limit name=\"{limit}\">134217728</limit>")).concat();
    let listen = dir.join(SOCKET);
    std::fs::write(
        &config,
        format!(
            "<busconfig><type>session</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow send_destination=\"*\"/><allow receive_sender=\"*\"/>\
             <allow own=\"*\"/></policy>{limits}</busconfig>",
            listen.display()
        ),
    )?;
    let mut command = Command::new("dbus-daemon");
    command.arg(format!("--config-file={}", config.display())).args(["--nofork", "--nopidfile"]);
    // It complains where it may not raise its limits, which it does not need.
    Err(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).exec())
}

/// Starts a dbus-broker with a bus of its own and controls it until its parent ends this process.
///
/// # Errors
///
/// What failed.
pub fn broker(job: &Job) -> io::Result<()> {
    let listener = UnixListener::bind(job.dir.join(SOCKET))?;
    let (control, far) = UnixStream::pair()?;
    // The broker accepts until nobody waits, which must not make it wait.
    listener.set_nonblocking(true)?;
    let mut child = Job { role: Role::DbusBrokerItself, ..job.clone() }
        .command(None)?
        .stdin(Stdio::from(OwnedFd::from(far)))
        .stdout(Stdio::null())
        .spawn()?;
    let mut wire = Wire::over(control, true)?;
    let mut body = Bytes::default();
    body.string("/org/bus1/DBus/Listener/0").u32(0);
    policy(&mut body);
    let fields = [
        Field::Path("/org/bus1/DBus/Broker"),
        Field::Interface("org.bus1.DBus.Broker"),
        Field::Member("AddListener"),
        Field::Signature("ohv"),
        Field::Descriptors(1),
    ];
    wire.send_with(&fields, &body.0, &[listener.as_fd()])?;
    wire.answer_to(1, |_| ())?;
    // What it reports from here on is of no interest.
    drop(child.wait());
    Ok(())
}

/// Becomes a dbus-broker that is controlled through standard input.
///
/// # Errors
///
/// What failed.
pub fn broker_itself() -> io::Result<()> {
    let mut command = Command::new("dbus-broker");
    command
        .args(["--controller", "0", "--machine-id", "00000000000000000000000000000001"])
        .args(["--max-bytes", "1000000000", "--max-fds", "1000", "--max-matches", "10000"])
        .args(["--max-objects", "100000"]);
    Err(command.exec())
}

/// A policy that allows everything to everybody, as a variant in the broker's own format: rules for one user or all,
/// for user and group ranges, for SELinux, for AppArmor, and the kind of bus.
fn policy(body: &mut Bytes) {
    const BATCH: &str = "bta(btbs)a(btssssuutt)a(btssssuutt)";
    body.signature(&format!("(a(u({BATCH}))a(buu({BATCH}))a(ss)bs)")).align(8);
    body.array(|body| {
        // The user that stands for all; connecting is allowed, and so is owning any name.
        body.u32(u32::MAX).align(8).u32(1).u64(1);
        body.array(|body| {
            body.u32(1).u64(1).u32(1).string("");
        });
        for _ in ["send", "receive"] {
            body.array(|body| {
                body.u32(1)
                    .u64(1)
                    .string("")
                    .string("")
                    .string("")
                    .string("")
                    .u32(0)
                    .u32(0)
                    .u64(0)
                    .u64(u64::MAX);
            });
        }
    });
    body.array(|_| ()).array(|_| ()).u32(0).string("");
}

/// A connection to a bus.
struct Wire {
    socket: UnixStream,
    buffer: Vec<u8>,
    /// The bytes of `buffer` that are not read yet.
    begin: usize,
    end: usize,
}

impl Wire {
    /// Connects to the bus in `dir`, as soon as there is one.
    fn connect(dir: &Path) -> io::Result<Self> {
        let until = Instant::now() + PATIENCE;
        loop {
            match UnixStream::connect(dir.join(SOCKET)) {
                Ok(socket) => {
                    let mut wire = Self::over(socket, false)?;
                    wire.call_bus("Hello", "", &[])?;
                    wire.socket.set_read_timeout(None)?;
                    return Ok(wire);
                }
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn over(mut socket: UnixStream, with_fds: bool) -> io::Result<Self> {
        // Only until it is set up: who waits with a time limit waits longer.
        socket.set_read_timeout(Some(PATIENCE))?;
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|digit| format!("{digit:02x}")).collect();
        socket.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes())?;
        Self::expect(&mut socket, b"OK ")?;
        if with_fds {
            socket.write_all(b"NEGOTIATE_UNIX_FD\r\n")?;
            Self::expect(&mut socket, b"AGREE_UNIX_FD")?;
        }
        socket.write_all(b"BEGIN\r\n")?;
        Ok(Self { socket, buffer: vec![0; 64 << 10], begin: 0, end: 0 })
    }

    fn expect(socket: &mut UnixStream, start: &[u8]) -> io::Result<()> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            socket.read_exact(&mut byte)?;
            line.push(byte[0]);
        }
        if line.starts_with(start) { Ok(()) } else { Err(io::Error::other("the bus refuses this user")) }
    }

    /// Sends header, length of the payload, and payload with one system call, if the socket takes it.
    fn send(&self, header: &[u8], payload: &[u8]) -> io::Result<()> {
        let len = (payload.len() as u32).to_le_bytes();
        let mut slices = [IoSlice::new(header), IoSlice::new(&len), IoSlice::new(payload)];
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let mut none = SendAncillaryBuffer::default();
            let sent = rustix::net::sendmsg(&self.socket, rest, &mut none, SendFlags::NOSIGNAL)?;
            IoSlice::advance_slices(&mut rest, sent);
        }
        Ok(())
    }

    fn send_with(&self, fields: &[Field<'_>], body: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let header = Bytes::header(CALL, 0, body.len(), 1, fields);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let slices = [IoSlice::new(&header), IoSlice::new(body)];
        rustix::net::sendmsg(&self.socket, &slices, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The next message. It is read with one system call if the buffer holds it.
    fn next(&mut self) -> io::Result<Received<'_>> {
        let len = loop {
            let here = &self.buffer[self.begin..self.end];
            let len = message_len(here);
            if let Some(len) = len.filter(|len| *len <= here.len()) {
                break len;
            }
            // What is there moves to the front, so that the rest fits behind it.
            self.buffer.copy_within(self.begin..self.end, 0);
            (self.begin, self.end) = (0, self.end - self.begin);
            if let Some(len) = len.filter(|len| *len > self.buffer.len()) {
                self.buffer.resize(len, 0);
            }
            let got = rustix::io::read(&self.socket, &mut self.buffer[self.end..])?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.end += got;
        };
        let at = self.begin;
        self.begin += len;
        let message = Received::parse(&self.buffer[at..at + len]);
        message.ok_or_else(|| io::Error::other("the bus sends what is no message"))
    }

    /// What `look` makes of the answer to the call `serial`. Signals that come before it are nobody's.
    fn answer_to<R>(&mut self, serial: u32, look: impl FnOnce(&Received<'_>) -> R) -> io::Result<R> {
        loop {
            let message = self.next()?;
            match message.kind {
                RETURN if message.reply_serial() == Some(serial) => return Ok(look(&message)),
                ERROR => return Err(io::Error::other(format!("the bus says {:?}", message.error()))),
                _ => {}
            }
        }
    }

    /// Calls the bus itself.
    fn call_bus(&mut self, member: &str, signature: &str, body: &[u8]) -> io::Result<()> {
        let mut fields = vec![
            Field::Path("/org/freedesktop/DBus"),
            Field::Interface(BUS),
            Field::Member(member),
            Field::Destination(BUS),
        ];
        if !signature.is_empty() {
            fields.push(Field::Signature(signature));
        }
        self.send_with(&fields, body, &[])?;
        self.answer_to(1, |_| ())
    }
}

/// The client's end.
pub struct DbusClient {
    wire: Wire,
    header: Vec<u8>,
    serial: u32,
    shared: Rc<Shared>,
    sent: u64,
    /// Messages of a stream that may be under way; a bus throws more than it has room for away, or their sender out.
    window: u64,
    case: Case,
}

/// A server's end.
pub struct DbusServer {
    wire: Wire,
    payload: Vec<u8>,
    /// The header of answers to one client, and where the serial of the call goes in it.
    answer: Option<(Vec<u8>, usize)>,
}

/// Where in the header of an answer the serial of the call stands: the first field, behind its code and signature.
const REPLY_SERIAL_AT: usize = 20;

impl DbusClient {
    /// A client of the bus in `dir`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(dir: &Path, case: &Case, shared: &Rc<Shared>) -> io::Result<Self> {
        let wire = Wire::connect(dir)?;
        let (kind, flags) = match case.kind {
            Kind::Broadcast => (SIGNAL, NO_REPLY),
            Kind::Stream => (CALL, NO_REPLY),
            Kind::Call | Kind::CallSpin => (CALL, 0),
        };
        let mut fields =
            vec![Field::Path(PATH), Field::Interface(SERVICE), Field::Member("Echo"), Field::Signature("ay")];
        if kind == CALL {
            fields.push(Field::Destination(SERVICE));
        }
        let header = Bytes::header(kind, flags, 4 + case.bytes, 1, &fields);
        let window = ((4 << 20) / case.bytes as u64).clamp(2, 512);
        Ok(Self { wire, header, serial: 1, shared: shared.clone(), sent: 0, window, case: *case })
    }

    fn transmit(&mut self, bytes: &[u8]) -> io::Result<()> {
        // 0 is no serial.
        self.serial = self.serial.wrapping_add(1).max(2);
        self.header[8..12].copy_from_slice(&self.serial.to_le_bytes());
        self.wire.send(&self.header, bytes)
    }
}

impl Client for DbusClient {
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        self.transmit(buffer)?;
        self.wire.answer_to(self.serial, |answer| {
            if let Some(bytes) = answer.payload().filter(|bytes| bytes.len() == buffer.len()) {
                let tail = buffer.len() - 8;
                for at in [0, tail] {
                    buffer[at..at + 8].copy_from_slice(&bytes[at..at + 8]);
                }
            }
        })
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.case.kind == Kind::Stream {
            while self.sent - Control(&self.shared).so_far().0 >= self.window {
                rustix::thread::sched_yield();
            }
            self.sent += 1;
        }
        self.transmit(bytes)
    }
}

impl DbusServer {
    /// A server on the bus of `job`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(job: &Job) -> io::Result<Self> {
        let mut wire = Wire::connect(&job.dir)?;
        let mut body = Bytes::default();
        if job.case.kind == Kind::Broadcast {
            body.string("type='signal',interface='org.example.Echo'");
            wire.call_bus("AddMatch", "s", &body.0)?;
        } else {
            body.string(SERVICE).u32(0);
            wire.call_bus("RequestName", "su", &body.0)?;
        }
        Ok(Self { wire, payload: Vec::with_capacity(job.case.bytes), answer: None })
    }

    /// The next message with a payload that is not the bus' own.
    fn next(&mut self) -> io::Result<(u32, Option<u64>)> {
        loop {
            let message = self.wire.next()?;
            if !matches!(message.kind, CALL | SIGNAL) {
                continue;
            }
            let Some(payload) = message.payload().filter(|bytes| bytes.len() >= 16) else { continue };
            if message.sender() == Some(BUS) {
                continue;
            }
            if self.answer.is_none() && message.kind == CALL {
                let fields = [
                    Field::ReplySerial(0),
                    Field::Destination(message.sender().unwrap_or_default()),
                    Field::Signature("ay"),
                ];
                let header = Bytes::header(RETURN, NO_REPLY, 4 + payload.len(), 1, &fields);
                self.answer = Some((header, REPLY_SERIAL_AT));
            }
            self.payload.clear();
            self.payload.extend_from_slice(payload);
            return Ok((message.serial, stamp(payload)));
        }
    }
}

impl Server for DbusServer {
    fn answer(&mut self) -> io::Result<()> {
        let (serial, _) = self.next()?;
        let Some((header, at)) = &mut self.answer else { return Ok(()) };
        header[*at..*at + 4].copy_from_slice(&serial.to_le_bytes());
        self.wire.send(header, &self.payload)
    }

    fn receive(&mut self) -> io::Result<Option<u64>> {
        Ok(self.next()?.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_serial_of_its_call_where_it_is_put() {
        let header =
            Bytes::header(RETURN, 0, 0, 1, &[Field::ReplySerial(0x0102_0304), Field::Destination(":1.1")]);
        assert_eq!(header[REPLY_SERIAL_AT..REPLY_SERIAL_AT + 4], 0x0102_0304_u32.to_le_bytes());
    }
}
