//! What carries a message to another process and back.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use kdbus_core::WellKnownName;
use kdbus_core::client::{CALL_TIMEOUT, Connection, Hello, Message};
use kdbus_linux::local::{Environment, LocalTransport, Options};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use serde::Serialize;

use crate::peers::{BUS, Role, SERVICE};

/// A way to another process and back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// A synchronous call over kdbusd.
    Kdbusd,
    /// A call over kdbusd whose reply comes through the queue, as with the async API.
    KdbusdQueued,
    /// A process in the middle that passes packets on between two `SOCK_SEQPACKET` socket pairs, and waits for
    /// them with epoll, as one for many clients has to.
    EpollRelay,
    /// The same without epoll: it knows whose turn it is. No daemon can do with less.
    BareRelay,
    /// A `SOCK_SEQPACKET` socket pair.
    Seqpacket,
    /// Two pipes.
    Pipe,
}

impl Kind {
    /// All of them, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Kdbusd, Self::KdbusdQueued, Self::EpollRelay, Self::BareRelay, Self::Seqpacket, Self::Pipe];

    /// What reports call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kdbusd => "kdbusd",
            Self::KdbusdQueued => "kdbusd, queued reply",
            Self::EpollRelay => "relay, epoll",
            Self::BareRelay => "relay, bare",
            Self::Seqpacket => "seqpacket pair",
            Self::Pipe => "pipes",
        }
    }
}

/// A contender with its processes, ready to go.
pub struct Contender {
    kind: Kind,
    way: Way,
    /// In the order of their names; ended when the contender is dropped.
    processes: Vec<(Part, Child)>,
    stamp: u64,
    buffer: Vec<u8>,
    dir: Option<tempfile::TempDir>,
}

/// What a process of a contender does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Answers.
    Server,
    /// Passes on between the other two.
    Middle,
}

enum Way {
    Bus { connection: Box<Connection<LocalTransport>>, queued: bool },
    Socket(OwnedFd),
    Pipes { to: OwnedFd, from: OwnedFd },
}

impl Contender {
    /// Starts the processes of a contender for messages of `size` bytes.
    ///
    /// # Errors
    ///
    /// What failed, as the system or the bus says it.
    pub fn start(kind: Kind, size: usize) -> io::Result<Self> {
        let mut processes = Vec::new();
        let mut dir = None;
        let way = match kind {
            Kind::Kdbusd | Kind::KdbusdQueued => {
                let root = tempfile::tempdir()?;
                let environment = environment(&root)?;
                processes.push((Part::Middle, start(Role::Daemon, Some(root.path()), None)?));
                // The service is started as soon as there is a bus to connect to.
                let connection = connect(&environment)?;
                processes.push((Part::Server, start(Role::Service, Some(root.path()), None)?));
                let service = WellKnownName::parse(SERVICE).map_err(io::Error::other)?;
                connection.wait_for_name_blocking(service, CALL_TIMEOUT).map_err(io::Error::other)?;
                dir = Some(root);
                Way::Bus { connection: Box::new(connection), queued: kind == Kind::KdbusdQueued }
            }
            Kind::Seqpacket => {
                let (near, far) = sockets()?;
                processes.push((Part::Server, start(Role::SocketServer, None, Some((far, None)))?));
                Way::Socket(near)
            }
            Kind::EpollRelay | Kind::BareRelay => {
                let role = if kind == Kind::EpollRelay { Role::EpollRelay } else { Role::BareRelay };
                let (near, middle) = sockets()?;
                let (beyond, far) = sockets()?;
                processes.push((Part::Middle, start(role, None, Some((middle, Some(beyond))))?));
                processes.push((Part::Server, start(Role::SocketServer, None, Some((far, None)))?));
                Way::Socket(near)
            }
            Kind::Pipe => {
                let (there, to) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                let (from, back) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                processes.push((Part::Server, start(Role::PipeServer, None, Some((there, Some(back))))?));
                Way::Pipes { to, from }
            }
        };
        let buffer = (0..size).map(|at| at as u8).collect();
        Ok(Self { kind, way, processes, stamp: 0, buffer, dir })
    }

    /// Which one it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.kind
    }

    /// Its processes besides this one.
    pub fn processes(&self) -> impl Iterator<Item = (Part, Pid)> {
        self.processes.iter().map(|(part, child)| (*part, Pid::from_child(child)))
    }

    /// One round trip: sends the message, waits for the same bytes, and compares them.
    ///
    /// # Errors
    ///
    /// What failed, or that other bytes came back.
    pub fn round_trip(&mut self) -> io::Result<Duration> {
        self.stamp += 1;
        let stamp = self.stamp.to_ne_bytes();
        // Both ends of the message tell this round trip from the last one.
        let (head, tail) = (stamp.len(), self.buffer.len() - stamp.len());
        self.buffer[..head].copy_from_slice(&stamp);
        self.buffer[tail..].copy_from_slice(&stamp);
        let begun = Instant::now();
        let is_same = match &self.way {
            Way::Bus { connection, queued } => {
                let service = WellKnownName::parse(SERVICE).map_err(io::Error::other)?;
                let call = Message::to_name(service).payload(&self.buffer);
                let reply = if *queued {
                    connection.call(&call, CALL_TIMEOUT).wait()
                } else {
                    connection.call_blocking(&call, CALL_TIMEOUT)
                };
                reply.map_err(io::Error::other)?.payload() == self.buffer
            }
            Way::Socket(socket) => {
                rustix::net::send(socket, &self.buffer, SendFlags::NOSIGNAL)?;
                self.buffer[..head].fill(0);
                let (_, len) = rustix::net::recv(socket, &mut self.buffer[..], RecvFlags::empty())?;
                len == self.buffer.len()
            }
            Way::Pipes { to, from } => {
                let mut sent = 0;
                while sent < self.buffer.len() {
                    sent += rustix::io::write(to, &self.buffer[sent..])?;
                }
                self.buffer[..head].fill(0);
                let mut got = 0;
                while got < self.buffer.len() {
                    match rustix::io::read(from, &mut self.buffer[got..])? {
                        0 => break,
                        len => got += len,
                    }
                }
                got == self.buffer.len()
            }
        };
        let took = begun.elapsed();
        if is_same && self.buffer[..head] == stamp && self.buffer[tail..] == stamp {
            Ok(took)
        } else {
            Err(io::Error::other(format!("{}: other bytes came back than were sent", self.kind.name())))
        }
    }
}

impl Contender {
    /// One more connection to its bus.
    ///
    /// # Errors
    ///
    /// What failed, or that this contender has no bus.
    pub fn connect(&self) -> io::Result<Connection<LocalTransport>> {
        let dir = self.dir.as_ref().ok_or_else(|| io::Error::other("this contender has no bus"))?;
        connect(&environment(dir)?)
    }

    /// Sends an empty message to its own connection and takes it out again: how long the command over the daemon and
    /// back took, and how long receiving and giving back.
    ///
    /// # Errors
    ///
    /// What failed, or that this contender has no connection.
    pub fn send_to_self(&mut self) -> io::Result<(Duration, Duration)> {
        let Way::Bus { connection, .. } = &self.way else {
            return Err(io::Error::other("only a bus has connections"));
        };
        let begun = Instant::now();
        connection.send(&Message::to(connection.id())).map_err(io::Error::other)?;
        let sent = begun.elapsed();
        let begun = Instant::now();
        let message = connection.try_recv().map_err(io::Error::other)?;
        let is_there = message.is_some();
        drop(message);
        let received = begun.elapsed();
        if is_there { Ok((sent, received)) } else { Err(io::Error::other("what was sent did not come")) }
    }
}

impl Drop for Contender {
    fn drop(&mut self) {
        for (_, child) in &mut self.processes {
            // One that has ended by itself needs no killing.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The environment of a bus under `root`.
fn environment(root: &tempfile::TempDir) -> io::Result<Environment> {
    Environment::current().with_root(root.path().as_os_str().as_encoded_bytes()).map_err(io::Error::other)
}

/// Connects as soon as the daemon lets anybody in.
fn connect(environment: &Environment) -> io::Result<Connection<LocalTransport>> {
    let name = format!("{}-{BUS}", rustix::process::geteuid().as_raw());
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        match Options::new().environment(*environment).connect(&name) {
            Ok(transport) => return Connection::hello(transport, &Hello::new()).map_err(io::Error::other),
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn sockets() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Starts this program again in another role, with one or two descriptors as its standard input and output.
fn start(
    role: Role,
    root: Option<&std::path::Path>,
    fds: Option<(OwnedFd, Option<OwnedFd>)>,
) -> io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.env(Role::VARIABLE, role.name());
    if let Some(root) = root {
        command.env("KDBUS_ROOT", root);
    }
    let (input, output) = match fds {
        Some((input, output)) => (Stdio::from(input), output.map_or_else(Stdio::null, Stdio::from)),
        None => (Stdio::null(), Stdio::null()),
    };
    command.stdin(input).stdout(output).spawn()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_name_every_contender_apart() {
        let mut names = Kind::ALL.map(Kind::name);
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]));
        assert_eq!(Kind::ALL.len(), Kind::value_variants().len());
    }
}
