//! `SOCK_SEQPACKET` sockets, from peer to peer or with a process in the middle.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, socket_with,
};

use crate::case::{Kind, SUBSCRIBERS};
use crate::control::{Control, PATIENCE};
use crate::end::Packets;
use crate::job::Job;
use crate::shared::Shared;

/// Bytes of the longest packet: longer messages are sent in several, because an ordinary user's socket takes no more.
const PACKET_MAX: usize = 128 << 10;

/// A socket to one server.
pub struct Socket(pub OwnedFd);

/// Sockets to all subscribers: each message is sent to one after another.
pub struct FanOut(pub Vec<Socket>);

/// A socket that others connect to.
pub struct Node {
    socket: OwnedFd,
}

impl Node {
    /// A socket called `name` in `dir`.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new(dir: &Path, name: &str) -> io::Result<Self> {
        let socket = open()?;
        bind(&socket, &SocketAddrUnix::new(dir.join(name))?)?;
        listen(&socket, SUBSCRIBERS as i32)?;
        Ok(Self { socket })
    }

    /// The next one that connects.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn accept(&self) -> io::Result<Socket> {
        Ok(Socket(accept_with(&self.socket, SocketFlags::CLOEXEC)?))
    }
}

impl Socket {
    /// Connects to the socket `name` in `dir`, as soon as there is one.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn connect(dir: &Path, name: &str) -> io::Result<Self> {
        let address = SocketAddrUnix::new(dir.join(name))?;
        let until = std::time::Instant::now() + PATIENCE;
        loop {
            let socket = open()?;
            match connect(&socket, &address) {
                Ok(()) => return Ok(Self(socket)),
                Err(error) if std::time::Instant::now() > until => return Err(error.into()),
                Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
            }
        }
    }
}

impl Packets for Socket {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        for packet in bytes.chunks(PACKET_MAX) {
            rustix::net::send(&self.0, packet, SendFlags::NOSIGNAL)?;
        }
        Ok(())
    }

    fn recv(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut got = 0;
        while got < buffer.len() {
            match rustix::net::recv(&self.0, &mut buffer[got..], RecvFlags::empty())? {
                (_, 0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                (_, len) => got += len,
            }
        }
        Ok(Some(got))
    }
}

impl Packets for FanOut {
    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.iter_mut().try_for_each(|socket| socket.send(bytes))
    }

    fn recv(&mut self, _: &mut [u8]) -> io::Result<Option<usize>> {
        Err(io::Error::other("subscribers do not answer"))
    }
}

/// Passes packets on from the client to one server or all, and back. It waits with epoll, as one for many has to.
///
/// # Errors
///
/// What failed.
pub fn relay(job: &Job) -> io::Result<()> {
    let stdin = io::stdin();
    let shared = Shared::open(stdin.as_fd())?;
    let servers = if job.case.kind == Kind::Broadcast { SUBSCRIBERS } else { 1 };
    let node = Node::new(&job.dir, SERVERS)?;
    let client = Socket::connect(&job.dir, CLIENT)?;
    let mut ends = vec![client];
    for _ in 0..servers {
        ends.push(node.accept()?);
    }
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, end) in ends.iter().enumerate() {
        epoll::add(&set, &end.0, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
    }
    Control(&shared).ready();
    let mut buffer = vec![0; PACKET_MAX];
    let mut events = Vec::with_capacity(ends.len());
    loop {
        events.clear();
        epoll::wait(&set, spare_capacity(&mut events), None)?;
        for event in &events {
            let from = event.data.u64() as usize;
            let (_, len) = rustix::net::recv(&ends[from].0, &mut buffer[..], RecvFlags::empty())?;
            if len == 0 {
                return Ok(());
            }
            let to = if from == 0 { 1..ends.len() } else { 0..1 };
            for end in &ends[to] {
                rustix::net::send(&end.0, &buffer[..len], SendFlags::NOSIGNAL)?;
            }
        }
    }
}

/// The socket that the client waits at.
pub const CLIENT: &str = "client";
/// The socket that the relay waits at.
pub const SERVERS: &str = "servers";

fn open() -> rustix::io::Result<OwnedFd> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}
