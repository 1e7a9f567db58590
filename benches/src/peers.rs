//! The other processes of a contender: the program itself, started again in another role.

use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;

use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Connection, Deadline, Hello};
use kdbus_linux::local::{Environment, Options};
use kdbusd::Daemon;
use kdbusd::config::{BusConfig, Config, LogLevel};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::net::{RecvFlags, SendFlags};

/// The bus that is measured, without the uid in front.
pub const BUS: &str = "bench";
/// The name that is called.
pub const SERVICE: &str = "org.example.Echo";

/// Bytes of the longest message.
pub const MESSAGE_MAX: usize = 1 << 20;

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// kdbusd, as anybody would run it.
    Daemon,
    /// Owns a name and answers calls with their payload.
    Service,
    /// Sends back what comes in on a socket.
    SocketServer,
    /// Passes packets on between two sockets, whichever has one.
    EpollRelay,
    /// Passes packets on between two sockets: one from the client, one back from the server.
    BareRelay,
    /// Sends back what comes in on a pipe.
    PipeServer,
}

impl Role {
    /// The environment variable that tells a process its role.
    pub const VARIABLE: &'static str = "KDBUS_BENCH_ROLE";

    const ALL: [Self; 6] = [
        Self::Daemon,
        Self::Service,
        Self::SocketServer,
        Self::EpollRelay,
        Self::BareRelay,
        Self::PipeServer,
    ];

    /// What the variable says.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Service => "service",
            Self::SocketServer => "socket-server",
            Self::EpollRelay => "epoll-relay",
            Self::BareRelay => "bare-relay",
            Self::PipeServer => "pipe-server",
        }
    }

    /// The role that this process was started in, if it was started in one.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let name = std::env::var(Self::VARIABLE).ok()?;
        Self::ALL.into_iter().find(|role| role.name() == name)
    }

    /// Plays the role until the other end is gone.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn play(self) -> io::Result<()> {
        match self {
            Self::Daemon => daemon(),
            Self::Service => service(),
            Self::SocketServer => socket_server(),
            Self::EpollRelay => epoll_relay(),
            Self::BareRelay => bare_relay(),
            Self::PipeServer => pipe_server(),
        }
    }
}

fn daemon() -> io::Result<()> {
    let root = std::env::var_os("KDBUS_ROOT").map(PathBuf::from).unwrap_or_default();
    let mut config = Config::new(rustix::process::geteuid().as_raw(), root);
    config.bus = vec![BusConfig { name: BUS.into(), ..config.bus.remove(0) }];
    config.log = LogLevel::Error;
    let mut daemon = Daemon::bind(&config).map_err(io::Error::other)?;
    // Ended by its parent.
    let (never, _open) = rustix::pipe::pipe()?;
    daemon.run(&never).map_err(io::Error::other)
}

fn service() -> io::Result<()> {
    let name = format!("{}-{BUS}", rustix::process::geteuid().as_raw());
    let transport = Options::new().environment(Environment::current()).connect(&name)?;
    let bus = Connection::hello(transport, &Hello::new()).map_err(io::Error::other)?;
    let name = WellKnownName::parse(SERVICE).map_err(io::Error::other)?;
    bus.acquire(name, NameFlags::empty()).map_err(io::Error::other)?;
    loop {
        let call = bus.recv_blocking(Deadline::Never).map_err(io::Error::other)?;
        bus.reply(call.reply_to(), call.payload()).map_err(io::Error::other)?;
    }
}

fn socket_server() -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let stdin = io::stdin();
    while pass_on(stdin.as_fd(), stdin.as_fd(), &mut buffer)? {}
    Ok(())
}

fn bare_relay() -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (client, server) = (io::stdin(), io::stdout());
    while pass_on(client.as_fd(), server.as_fd(), &mut buffer)?
        && pass_on(server.as_fd(), client.as_fd(), &mut buffer)?
    {}
    Ok(())
}

fn epoll_relay() -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (client, server) = (io::stdin(), io::stdout());
    let ends = [client.as_fd(), server.as_fd()];
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, end) in ends.into_iter().enumerate() {
        epoll::add(&set, end, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
    }
    let mut events = Vec::with_capacity(ends.len());
    loop {
        events.clear();
        epoll::wait(&set, spare_capacity(&mut events), None)?;
        for event in &events {
            let from = event.data.u64() as usize;
            if !pass_on(ends[from], ends[1 - from], &mut buffer)? {
                return Ok(());
            }
        }
    }
}

/// Passes one packet on; false at the end.
fn pass_on(from: impl AsFd, to: impl AsFd, buffer: &mut [u8]) -> io::Result<bool> {
    let (_, len) = rustix::net::recv(from, &mut *buffer, RecvFlags::empty())?;
    if len > 0 {
        rustix::net::send(to, &buffer[..len], SendFlags::NOSIGNAL)?;
    }
    Ok(len > 0)
}

fn pipe_server() -> io::Result<()> {
    let mut buffer = vec![0; MESSAGE_MAX];
    let (from, to) = (io::stdin(), io::stdout());
    loop {
        // A pipe has no packets; sending back what is there as it comes is the fastest it can do.
        let len = rustix::io::read(from.as_fd(), &mut buffer[..])?;
        if len == 0 {
            return Ok(());
        }
        let mut sent = 0;
        while sent < len {
            sent += rustix::io::write(to.as_fd(), &buffer[sent..len])?;
        }
    }
}
