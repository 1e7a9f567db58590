//! kdbus-rt as a contender.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use kdbus_core::abi::NameFlags;
use kdbus_core::client::{
    CALL_TIMEOUT, Connection, Deadline, Delivery, Hello, Message, POOL_SIZE, Part, ReceivedPart, Topic,
    TopicPattern,
};
use kdbus_core::{NameError, WellKnownName};
use kdbus_linux::local::map::ReadMap;
use kdbus_linux::local::{
    Borrower, Environment, LOAN_RECORD, Lender, Loan, LocalTransport, Options, SealedMemfd,
};
use kdbusd::Daemon;
use kdbusd::config::{BusConfig, Bytes, Config, LogLevel};

use crate::case::{Case, Kind, System};
use crate::control::PATIENCE;
use crate::end::{Client, Server, stamp};
use crate::job::Job;

/// A count of a job from which on the daemon has room for the most connections and names that are measured.
pub const MANY: usize = 1000;
/// The same for a daemon with many lanes, and a server that brings them.
pub const MANY_LANES: usize = 1001;
/// Lanes of that server: one for its client, and the others for whoever is silent.
const SERVER_LANES: usize = 520;

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

/// How long a client looks that is to look instead of sleeping: longer than any answer takes.
const LOOK: Duration = Duration::from_millis(100);

/// Buffers of a slab.
const BUFFERS: u32 = 4;

/// The client's end.
pub struct BusClient {
    bus: Bus,
    case: Case,
    slabs: Option<Slabs>,
}

/// A server's end.
pub struct BusServer {
    bus: Bus,
    case: Case,
    slabs: Option<Slabs>,
}

/// What two peers lend each other.
struct Slabs {
    lender: Lender,
    borrower: Borrower,
}

impl Slabs {
    /// The client's: it introduces its own slab by a call, and the answer introduces the server's.
    fn of_client(bus: &Bus, case: &Case) -> io::Result<Self> {
        let lender = Lender::new(BUFFERS, case.bytes as u64)?;
        bus.wait_for_name_blocking(service()?, PATIENCE).map_err(io::Error::other)?;
        let (record, fds) = lender.introduction();
        let call = Message::to_name(service()?).payload(&record).fds(&fds);
        let mut answer = bus.call_blocking(&call, PATIENCE).map_err(io::Error::other)?;
        let borrower = Borrower::accept(&mut answer, u64::MAX).map_err(io::Error::other)?;
        Ok(Self { lender, borrower })
    }

    /// The server's, out of the client's introduction.
    fn of_server(
        bus: &Bus,
        case: &Case,
        introduction: &mut Delivery<'_, LocalTransport>,
    ) -> io::Result<Self> {
        let lender = Lender::new(BUFFERS, case.bytes as u64)?;
        let borrower = Borrower::accept(introduction, u64::MAX).map_err(io::Error::other)?;
        let (record, fds) = lender.introduction();
        let answer = Message::reply(introduction.reply_to()).payload(&record).fds(&fds);
        bus.send(&answer).map_err(io::Error::other)?;
        Ok(Self { lender, borrower })
    }

    /// Lends a buffer with `ends` at its ends, which is all of it that is written: filling it is the program's own work.
    fn lend<R>(
        &self,
        ends: [[u8; 8]; 2],
        len: usize,
        send: impl FnOnce(&[u8; LOAN_RECORD]) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut buffer = loop {
            match self.lender.take() {
                Some(buffer) => break buffer,
                None => rustix::thread::sched_yield(),
            }
        };
        buffer.write(0, &ends[0]).map_err(io::Error::other)?;
        buffer.write(len as u64 - 8, &ends[1]).map_err(io::Error::other)?;
        buffer.lend(len as u64, send)
    }

    fn borrow(&self, message: &Delivery<'_, LocalTransport>) -> io::Result<Loan<'_>> {
        self.borrower.borrow(message.payload()).map_err(io::Error::other)
    }
}

/// Both ends of a loan.
fn ends(loan: &Loan<'_>) -> io::Result<[[u8; 8]; 2]> {
    let word =
        |at| loan.word(at).map(u64::to_ne_bytes).ok_or_else(|| io::Error::other("a loan that is too short"));
    Ok([word(0)?, word(loan.len() - 8)?])
}

/// Both ends of a message.
fn ends_of(bytes: &[u8]) -> [[u8; 8]; 2] {
    let at = |end: Option<&[u8; 8]>| end.copied().unwrap_or_default();
    [at(bytes.first_chunk()), at(bytes.last_chunk())]
}

/// A daemon of the bus under measurement, with its tree in `dir`.
#[must_use]
pub fn config(dir: &Path) -> Config {
    let mut config = Config::new(rustix::process::geteuid().as_raw(), dir.join("bus"));
    config.bus = vec![BusConfig { name: BUS.into(), ..config.bus.remove(0) }];
    config.log = LogLevel::Error;
    config.memory.pools_per_user = config.memory.pools;
    config.memory.largest_pool = Bytes(LARGEST_POOL);
    config
}

/// Serves until its parent ends it.
///
/// # Errors
///
/// What failed.
pub fn daemon(job: &Job) -> io::Result<()> {
    let mut config = config(&job.dir);
    if uses_lanes(&job.case) {
        (config.capacity.lanes, config.capacity.lanes_per_user) = (16, 16);
        let bytes = (8 * job.case.bytes as u64).next_power_of_two();
        config.memory.lane = Bytes(bytes.clamp(64 << 10, 8 << 20));
    }
    if job.count >= MANY {
        let capacity = &mut config.capacity;
        (capacity.clients, capacity.clients_per_user, capacity.connections) = (1200, 1200, 1100);
        (capacity.names, capacity.name_records) = (8192, 8192);
        if job.count == MANY_LANES {
            (capacity.lanes, capacity.lanes_per_user) = (2048, 2048);
            capacity.lanes_per_connection = 1024;
            config.memory.lane = Bytes(4 << 10);
        }
    }
    let mut daemon = Daemon::bind(&config).map_err(io::Error::other)?;
    let (never, _open) = rustix::pipe::pipe()?;
    daemon.run(&never).map_err(io::Error::other)
}

/// Connects as soon as the daemon lets anybody in.
///
/// # Errors
///
/// What failed.
pub fn connect(dir: &Path, pool_size: u64, prefault: bool, lanes: usize) -> io::Result<Bus> {
    let mut options = Options::new().prefault(prefault).lanes(lanes);
    if !prefault {
        options = options.staging(0);
    }
    connect_with(dir, pool_size, options)
}

/// As [`connect`], with these options.
fn connect_with(dir: &Path, pool_size: u64, options: Options) -> io::Result<Bus> {
    let root = dir.join("bus");
    let environment =
        Environment::current().with_root(root.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let name = format!("{}-{BUS}", rustix::process::geteuid().as_raw());
    let until = Instant::now() + PATIENCE;
    let options = options.environment(environment);
    loop {
        match options.connect(&name) {
            Ok(transport) => {
                let hello = Hello::new().pool_size(pool_size).accept_fds();
                return Connection::hello(transport, &hello).map_err(io::Error::other);
            }
            Err(error) if Instant::now() > until => return Err(error.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

/// Whether messages of a case go past the daemon.
const fn uses_lanes(case: &Case) -> bool {
    matches!(case.system, System::Channel | System::Loan) && !matches!(case.kind, Kind::Broadcast)
}

/// Lanes that each end of a case brings.
const fn lanes(case: &Case) -> usize {
    if uses_lanes(case) { 2 } else { 0 }
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
    // By the compiler, as a program with a fixed name does.
    const NAME: Result<WellKnownName<'static>, NameError> = WellKnownName::parse(SERVICE);
    NAME.map_err(io::Error::other)
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
        let mut options = Options::new().lanes(lanes(case));
        if case.spins() {
            options = options.spin(LOOK);
        }
        let bus = connect_with(dir, pool_size(case), options)?;
        let slabs = if case.system == System::Loan { Some(Slabs::of_client(&bus, case)?) } else { None };
        if uses_lanes(case) {
            bus.wait_for_name_blocking(service()?, PATIENCE).map_err(io::Error::other)?;
            // At once, or after a few messages.
            let _ = bus.transport().open_lane_to_name(service()?);
        }
        Ok(Self { bus, case: *case, slabs })
    }

    /// Calls with `message`.
    fn deliver<'c, 'm>(
        &'c self,
        message: &Message<'m, Borrowed<'m>>,
    ) -> io::Result<Delivery<'c, LocalTransport>>
    where
        'c: 'm,
    {
        self.bus.call_blocking(message, CALL_TIMEOUT).map_err(io::Error::other)
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
        if let Some(slabs) = &self.slabs {
            let answer = slabs.lend(ends_of(buffer), buffer.len(), |record| {
                self.deliver(&Message::to_name(to).payload(record))
            })?;
            let [head, tail] = ends(&slabs.borrow(&answer)?)?;
            keep_ends(buffer, &[head, tail].concat());
            return Ok(());
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
        if let Some(slabs) = &self.slabs {
            return slabs.lend(ends_of(bytes), bytes.len(), |record| {
                let message = Message::to_name(to).payload(record);
                self.bus.send_when_room_blocking(&message, PATIENCE).map(|_| ()).map_err(io::Error::other)
            });
        }
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
        if uses_lanes(&self.case) && self.bus.transport().open_lanes() == 0 {
            return Err(io::Error::other("kdbusd has given no lane to these two"));
        }
        Ok(())
    }
}

/// Puts the ends of `bytes` at those of `buffer`; what is in between was compared by nobody.
fn keep_ends(buffer: &mut [u8], bytes: &[u8]) {
    let [head, tail] = ends_of(bytes);
    let last = buffer.len() - 8;
    buffer[..8].copy_from_slice(&head);
    buffer[last..].copy_from_slice(&tail);
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
        let lanes = if job.count == MANY_LANES { SERVER_LANES } else { lanes(&job.case) };
        let bus = connect(&job.dir, pool_size(&job.case), true, lanes)?;
        if job.case.kind == Kind::Broadcast {
            bus.subscribe(TopicPattern::from(topic()?)).map_err(io::Error::other)?;
        } else {
            bus.acquire(service()?, NameFlags::empty()).map_err(io::Error::other)?;
        }
        let slabs = if job.case.system == System::Loan {
            let mut introduction = bus.recv_blocking(PATIENCE).map_err(io::Error::other)?;
            Some(Slabs::of_server(&bus, &job.case, &mut introduction)?)
        } else {
            None
        };
        Ok(Self { bus, case: job.case, slabs })
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
        if let Some(slabs) = &self.slabs {
            let loan = slabs.borrow(&call)?;
            return slabs.lend(ends(&loan)?, self.case.bytes, |record| {
                // Returned before the answer, so that the caller finds it free.
                drop(loan);
                self.bus.reply(to, record).map_err(io::Error::other)
            });
        }
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
        if let Some(slabs) = &self.slabs {
            return Ok(slabs.borrow(&message)?.word(0));
        }
        Ok(stamp(message.payload()))
    }
}
