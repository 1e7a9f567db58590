//! kdbus-rt as a contender.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{
    CALL_TIMEOUT, Connection, Deadline, Delivery, Hello, Message, POOL_SIZE, Part, ReceivedPart, Topic,
    TopicPattern,
};
use kdbus_linux::local::map::ReadMap;
use kdbus_linux::local::{Environment, LocalTransport, Options, SealedMemfd};
use kdbusd::Daemon;
use kdbusd::config::{BusConfig, Bytes, Config, LogLevel};

use crate::case::{Case, Kind, System};
use crate::control::PATIENCE;
use crate::end::{Client, Server, stamp};
use crate::job::Job;

/// The bus that is measured, without the uid in front.
const BUS: &str = "bench";
/// The name that is called.
const SERVICE: &str = "org.example.Echo";
/// What subscribers hear of.
const TOPIC: &str = "org.example.Echo.changed";
/// The largest pool that the daemon gives to one connection.
const LARGEST_POOL: u64 = 16 << 20;

/// A connection to the bus under measurement.
pub type Bus = Connection<LocalTransport>;

/// The client's end.
pub struct BusClient {
    bus: Bus,
    case: Case,
}

/// A server's end.
pub struct BusServer {
    bus: Bus,
    case: Case,
}

/// Serves until its parent ends it.
///
/// # Errors
///
/// What failed.
pub fn daemon(dir: &Path) -> io::Result<()> {
    let mut config = Config::new(rustix::process::geteuid().as_raw(), dir.join("bus"));
    config.bus = vec![BusConfig { name: BUS.into(), ..config.bus.remove(0) }];
    config.log = LogLevel::Error;
    // For what is measured with many of them. What is not used costs nothing but memory.
    let capacity = &mut config.capacity;
    (capacity.clients, capacity.clients_per_user, capacity.connections) = (1200, 1200, 1100);
    (capacity.names, capacity.name_records) = (8192, 8192);
    config.memory.pools = Bytes(1 << 30);
    config.memory.pools_per_user = Bytes(1 << 30);
    config.memory.largest_pool = Bytes(LARGEST_POOL);
    let mut daemon = Daemon::bind(&config).map_err(io::Error::other)?;
    let (never, _open) = rustix::pipe::pipe()?;
    daemon.run(&never).map_err(io::Error::other)
}

/// Connects as soon as the daemon lets anybody in.
///
/// # Errors
///
/// What failed.
pub fn connect(dir: &Path, pool_size: u64, prefault: bool) -> io::Result<Bus> {
    let root = dir.join("bus");
    let environment =
        Environment::current().with_root(root.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let name = format!("{}-{BUS}", rustix::process::geteuid().as_raw());
    let until = Instant::now() + PATIENCE;
    let mut options = Options::new().environment(environment).prefault(prefault);
    if !prefault {
        options = options.staging(0);
    }
    loop {
        match options.connect(&name) {
            Ok(transport) => {
                let hello = Hello::new().pool_size(pool_size);
                return Connection::hello(transport, &hello).map_err(io::Error::other);
            }
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(2)),
        }
    }
}

/// The pool for messages of a case: one sender can have a sixth of it waiting.
fn pool_size(case: &Case) -> u64 {
    (8 * case.bytes as u64).next_multiple_of(4096).clamp(POOL_SIZE, LARGEST_POOL)
}

/// The name that is called.
///
/// # Errors
///
/// None.
pub fn service() -> io::Result<WellKnownName<'static>> {
    WellKnownName::parse(SERVICE).map_err(io::Error::other)
}

fn topic() -> io::Result<Topic<'static>> {
    Topic::parse(TOPIC).map_err(io::Error::other)
}

impl BusClient {
    /// A client of the bus in `dir`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(dir: &Path, case: &Case) -> io::Result<Self> {
        Ok(Self { bus: connect(dir, pool_size(case), true)?, case: *case })
    }

    /// Calls with `message`.
    fn deliver<'c, 'm>(
        &'c self,
        message: &Message<'m, Borrowed<'m>>,
    ) -> io::Result<Delivery<'c, LocalTransport>>
    where
        'c: 'm,
    {
        if self.case.spins() {
            return self.spin(message);
        }
        let reply = match self.case.system {
            // Past the queue, in one command: the shortest way through kdbusd.
            System::SlowPath | System::Memfd => self.bus.call_blocking(message, CALL_TIMEOUT),
            _ => self.bus.call(message, CALL_TIMEOUT).wait(),
        };
        reply.map_err(io::Error::other)
    }

    fn spin<'c, 'm>(&'c self, message: &Message<'m, Borrowed<'m>>) -> io::Result<Delivery<'c, LocalTransport>>
    where
        'c: 'm,
    {
        let mut call = pin!(self.bus.call(message, CALL_TIMEOUT));
        let mut context = Context::from_waker(Waker::noop());
        loop {
            if let Poll::Ready(reply) = call.as_mut().poll(&mut context) {
                return reply.map_err(io::Error::other);
            }
            self.bus.process(self.bus.now()).map_err(io::Error::other)?;
            std::hint::spin_loop();
        }
    }
}

/// A descriptor to send.
type Borrowed<'a> = std::os::fd::BorrowedFd<'a>;

impl Client for BusClient {
    fn call(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        let to = service()?;
        if self.case.system == System::Memfd {
            let memfd = SealedMemfd::new(buffer)?;
            let parts = [part(&memfd)];
            let reply = self.deliver(&Message::to_name(to).parts(&parts))?;
            return with_memfd(&reply, |bytes| buffer.copy_from_slice(bytes));
        }
        let reply = self.deliver(&Message::to_name(to).payload(buffer))?;
        let same = reply.payload().len() == buffer.len();
        let bytes = if same { reply.payload() } else { &[] };
        keep_ends(buffer, bytes);
        Ok(())
    }

    fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.case.kind == Kind::Broadcast {
            return self.bus.signal(topic()?, bytes).map_err(io::Error::other);
        }
        let to = service()?;
        let sent = if self.case.system == System::Memfd {
            let memfd = SealedMemfd::new(bytes)?;
            let parts = [part(&memfd)];
            self.bus.send_when_room_blocking(&Message::to_name(to).parts(&parts), PATIENCE)
        } else {
            self.bus.send_when_room_blocking(&Message::to_name(to).payload(bytes), PATIENCE)
        };
        sent.map(|_| ()).map_err(io::Error::other)
    }

    fn check(&self) -> io::Result<()> {
        if self.case.system == System::Channel && !uses_lane(&self.bus) {
            return Err(io::Error::other("kdbusd has given no lane to these two"));
        }
        Ok(())
    }
}

/// Whether what the connection sends to the service goes past kdbusd.
const fn uses_lane(_: &Bus) -> bool {
    // The transport has none, so it has nothing to tell.
    false
}

/// What the first and the last bytes of `buffer` are in `bytes`; zeros if there are too few.
fn keep_ends(buffer: &mut [u8], bytes: &[u8]) {
    let tail = buffer.len() - 8;
    for at in [0, tail] {
        let from = bytes.get(at..at + 8).unwrap_or(&[0; 8]);
        buffer[at..at + 8].copy_from_slice(from);
    }
}

fn part(memfd: &SealedMemfd) -> Part<'_, Borrowed<'_>> {
    Part::Memfd { fd: memfd.as_fd(), start: 0, size: memfd.len() }
}

/// What `look` makes of the memfd that a message brings, mapped as a whole.
fn with_memfd<R>(message: &Delivery<'_, LocalTransport>, look: impl FnOnce(&[u8]) -> R) -> io::Result<R> {
    let part = message.parts().find_map(|part| match part {
        ReceivedPart::Memfd { fd: Some(fd), size, .. } => Some((fd, size)),
        _ => None,
    });
    let (fd, size): (&OwnedFd, u64) = part.ok_or_else(|| io::Error::other("a message without its memfd"))?;
    let map = ReadMap::new(fd, size, true)?;
    let bytes = map.bytes(0, size).ok_or_else(|| io::Error::other("a memfd that is too short"))?;
    Ok(look(bytes))
}

impl BusServer {
    /// A server on the bus of `job`.
    ///
    /// # Errors
    ///
    /// What failed.
    pub fn new(job: &Job) -> io::Result<Self> {
        let bus = connect(&job.dir, pool_size(&job.case), true)?;
        if job.case.kind == Kind::Broadcast {
            bus.subscribe(TopicPattern::from(topic()?)).map_err(io::Error::other)?;
        } else {
            bus.acquire(service()?, NameFlags::empty()).map_err(io::Error::other)?;
        }
        Ok(Self { bus, case: job.case })
    }

    fn next(&self) -> io::Result<Option<Delivery<'_, LocalTransport>>> {
        if self.case.spins() {
            return self.bus.try_recv().map_err(io::Error::other);
        }
        self.bus.recv_blocking(Deadline::Never).map(Some).map_err(io::Error::other)
    }
}

impl Server for BusServer {
    fn answer(&mut self) -> io::Result<()> {
        let Some(call) = self.next()? else {
            std::hint::spin_loop();
            return Ok(());
        };
        let to = call.reply_to();
        if self.case.system == System::Memfd {
            // The bytes change hands here too: an answer is a file of its own.
            let memfd = with_memfd(&call, SealedMemfd::new)??;
            let parts = [part(&memfd)];
            self.bus.send(&Message::reply(to).parts(&parts)).map_err(io::Error::other)?;
            return Ok(());
        }
        self.bus.reply(to, call.payload()).map_err(io::Error::other)
    }

    fn receive(&mut self) -> io::Result<Option<u64>> {
        let Some(message) = self.next()? else { return Ok(None) };
        if self.case.system == System::Memfd {
            return with_memfd(&message, stamp);
        }
        Ok(stamp(message.payload()))
    }
}
