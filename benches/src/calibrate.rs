//! What things cost on this machine, measured one by one, and what the simulator foretells from it.

use std::cell::RefCell;
use std::hint::black_box;
use std::io::{self, Read, Write};
use std::path::Path as FilePath;
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{CALL_TIMEOUT, Connection, Hello, Message, Transport};
use kdbus_core::engine::Config;
use kdbus_linux::local::{Environment, LocalTransport, Options};
use kdbus_sim::{Board, Path, Placement, Policy, Sim};
use kdbusd::Daemon;
use rustix::thread::CpuSet;

/// Environment variable that says which part this process plays for another one.
const ROLE: &str = "KDBUS_CALIBRATE_ROLE";

/// The name of the service.
const SERVICE: &str = "org.kdbus.bench.Calibrate";

/// Plays the part that this process was started for; `None` if it was started by a person.
#[must_use]
pub fn part() -> Option<io::Result<()>> {
    let role = std::env::var(ROLE).ok()?;
    Some(match role.as_str() {
        "echo" => echo(),
        "daemon" => daemon(),
        _ => service_process(),
    })
}

fn echo() -> io::Result<()> {
    let (mut input, mut output, mut bytes) = (io::stdin().lock(), io::stdout().lock(), [0; 16]);
    while input.read_exact(&mut bytes).is_ok() {
        output.write_all(&bytes)?;
        output.flush()?;
    }
    Ok(())
}

fn root() -> io::Result<std::path::PathBuf> {
    std::env::var_os("KDBUS_ROOT").map(Into::into).ok_or_else(|| io::Error::other("there is no root"))
}

/// Until standard input ends.
fn daemon() -> io::Result<()> {
    let uid = rustix::process::geteuid().as_raw();
    let config = kdbusd::config::Config::new(uid, root()?);
    let mut daemon = Daemon::bind(&config).map_err(io::Error::other)?;
    daemon.run(io::stdin()).map_err(io::Error::other)
}

fn service_process() -> io::Result<()> {
    let bus = connect(&root()?)?;
    bus.acquire(service().map_err(io::Error::other)?, NameFlags::empty()).map_err(io::Error::other)?;
    let _ = bus.serve_blocking(|request| request.reply(request.payload()));
    Ok(())
}

/// Connects as soon as the daemon lets anybody in.
fn connect(root: &FilePath) -> io::Result<Connection<LocalTransport>> {
    let uid = rustix::process::geteuid().as_raw();
    let name =
        kdbusd::config::Config::new(uid, root.into()).bus.first().map(|bus| format!("{uid}-{}", bus.name));
    let environment =
        Environment::current().with_root(root.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?;
    let patience = Instant::now() + Duration::from_secs(10);
    loop {
        // What is foretold is a call over kdbusd.
        let options = Options::new().environment(environment).lanes(0);
        match options.connect(name.as_deref().unwrap_or_default()) {
            Ok(transport) => return Connection::hello(transport, &Hello::new()).map_err(io::Error::other),
            Err(error) if Instant::now() > patience => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// A daemon and a service as processes of their own, ended when dropped.
struct Bus {
    dir: tempfile::TempDir,
    /// The service before the daemon, which ends in an orderly way when its input does.
    processes: Vec<Child>,
}

impl Bus {
    fn start() -> io::Result<Self> {
        let dir = tempfile::Builder::new().prefix("kdbus-calibrate-").tempdir()?;
        let daemon = start("daemon", dir.path())?;
        let mut bus = Self { dir, processes: vec![daemon] };
        let connection = bus.connect()?;
        bus.processes.push(start("service", bus.dir.path())?);
        let name = service().map_err(io::Error::other)?;
        connection.wait_for_name_blocking(name, CALL_TIMEOUT).map_err(io::Error::other)?;
        Ok(bus)
    }

    fn connect(&self) -> io::Result<Connection<LocalTransport>> {
        connect(self.dir.path())
    }

    /// Nanoseconds that the daemon has been on a CPU, if the system tells.
    fn on_cpu(&self) -> Option<u64> {
        let text =
            std::fs::read_to_string(format!("/proc/{}/schedstat", self.processes.first()?.id())).ok()?;
        text.split_whitespace().next()?.parse().ok()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        while let Some(mut process) = self.processes.pop() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts this program again in another role. It runs on the CPUs that this process may use now.
fn start(role: &str, root: &FilePath) -> io::Result<Child> {
    Command::new(std::env::current_exe()?)
        .env(ROLE, role)
        .env("KDBUS_ROOT", root)
        .stdin(Stdio::piped())
        .stdout(if role == "echo" { Stdio::piped() } else { Stdio::null() })
        .spawn()
}

/// Keeps this process, and those that it starts from now on, on the first CPU that it may use.
///
/// # Errors
///
/// What the system says.
pub fn pin_to_one_cpu() -> io::Result<()> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    let first = (0..CpuSet::MAX_CPU).find(|cpu| allowed.is_set(*cpu));
    let mut one = CpuSet::new();
    one.set(first.unwrap_or(0));
    Ok(rustix::thread::sched_setaffinity(None, &one)?)
}

/// How often each thing is done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Times that each thing is done in a round.
    pub times: usize,
    /// Rounds; the one with the lowest median counts, as the one that was disturbed least.
    pub rounds: usize,
}

/// The lowest of the medians of some rounds, in nanoseconds.
fn best(effort: Effort, mut once: impl FnMut() -> io::Result<u64>) -> io::Result<u64> {
    let mut lowest = u64::MAX;
    for _ in 0..effort.rounds.max(1) {
        let samples: io::Result<Vec<u64>> = (0..effort.times.max(1)).map(|_| once()).collect();
        let mut samples = samples?;
        samples.sort_unstable();
        lowest = lowest.min(samples[samples.len() / 2]);
    }
    Ok(lowest)
}

const fn ns(span: Duration) -> u64 {
    span.as_nanos() as u64
}

/// Measures this machine with the CPUs that this process may use: all, or one.
///
/// # Errors
///
/// What failed, as the system or the bus says it.
pub fn board(name: &str, effort: Effort) -> io::Result<Board> {
    let cores = thread::available_parallelism()?.get();
    let clock_ns = best(effort, || Ok(ns(Instant::now().elapsed())))?;
    let loops = 64;
    let syscall_ns = best(effort, || {
        let begun = Instant::now();
        (0..loops).for_each(|_| {
            black_box(rustix::process::getppid());
        });
        Ok(ns(begun.elapsed()).saturating_sub(clock_ns) / loops)
    })?;
    let source = vec![0x5a_u8; 64 * 1024];
    let mut target = vec![0_u8; 64 * 1024];
    let copy_ps = best(effort, || {
        let begun = Instant::now();
        target.copy_from_slice(black_box(&source));
        black_box(&target);
        Ok(ns(begun.elapsed()).saturating_sub(clock_ns) * 1000 / source.len() as u64)
    })?;
    let page_fault_ns = page_fault()?;
    // There and back: two switches, two writes that wake, and two reads.
    let pipe_ns = pipe(effort)?;
    let wake_ns = wake(effort)?.saturating_sub(syscall_ns);
    let switch_ns = (pipe_ns / 2).saturating_sub(2 * syscall_ns + wake_ns.min(pipe_ns / 4));
    let timer_slack_ns = std::fs::read_to_string("/proc/self/timerslack_ns")
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .unwrap_or(50_000);
    let late_ns = timer(effort)?;

    let bus = Bus::start()?;
    let connection = bus.connect()?;
    let mut receive = Vec::new();
    let busy = bus.on_cpu();
    let mut commands = 0;
    let daemon_ns = best(effort, || {
        let begun = Instant::now();
        connection.send(&Message::to(connection.id())).map_err(io::Error::other)?;
        let sent = ns(begun.elapsed());
        let begun = Instant::now();
        let message = connection.try_recv().map_err(io::Error::other)?;
        let is_there = message.is_some();
        drop(message);
        receive.push(ns(begun.elapsed()));
        commands += 1;
        if is_there { Ok(sent) } else { Err(io::Error::other("what was sent did not come")) }
    })?;
    let daemon_busy_ns = match (busy, bus.on_cpu()) {
        (Some(before), Some(after)) => after.saturating_sub(before) / commands.max(1),
        _ => daemon_ns / 2,
    };
    let hop_ns = if cores == 1 { 0 } else { hop(&bus, effort)? };
    receive.sort_unstable();
    // One command takes the message out, another one gives its slice back.
    let receive_ns = receive[receive.len() / 2] / 2;
    Ok(Board {
        name: name.to_owned(),
        basis: "measured by the program calibrate; command_ns and channel_ns are estimates".to_owned(),
        cores,
        path: Path::Daemon,
        syscall_ns,
        switch_ns,
        wake_ns,
        // What is left of a message's way when all else is taken off; on one CPU nobody is woken while another runs.
        wake_latency_ns: hop_ns.saturating_sub(daemon_ns / 2 + wake_ns + switch_ns + receive_ns),
        timer_latency_ns: late_ns.saturating_sub(timer_slack_ns + switch_ns),
        timer_slack_ns,
        copy_ps,
        page_fault_ns,
        command_ns: daemon_busy_ns / 3,
        daemon_ns,
        daemon_busy_ns: daemon_busy_ns.min(daemon_ns),
        receive_ns,
        channel_ns: 2 * receive_ns,
        slice_ns: 3_000_000,
        round_robin_ns: 100_000_000,
    })
}

/// A round trip through two pipes to another process, on one CPU if there is only one.
fn pipe(effort: Effort) -> io::Result<u64> {
    let mut peer = start("echo", FilePath::new("/"))?;
    let (Some(mut to), Some(mut from)) = (peer.stdin.take(), peer.stdout.take()) else {
        return Err(io::Error::other("a process without pipes"));
    };
    let mut bytes = [0; 16];
    let took = best(effort, || {
        let begun = Instant::now();
        to.write_all(&bytes)?;
        from.read_exact(&mut bytes)?;
        Ok(ns(begun.elapsed()))
    });
    drop(to);
    let _ = peer.wait();
    took
}

/// The first use of a page of shared memory: a write of one byte by a system call, which enters the kernel as a fault does
/// and makes the page as it does, and which no huge page saves.
fn page_fault() -> io::Result<u64> {
    let (pages, page) = (64, 4_096);
    best(Effort { times: 50, rounds: 3 }, || {
        let memory = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::CLOEXEC)?;
        rustix::fs::ftruncate(&memory, pages * page)?;
        let begun = Instant::now();
        for at in 0..pages {
            rustix::io::pwrite(&memory, &[1], at * page)?;
        }
        Ok(ns(begun.elapsed()) / pages)
    })
}

/// How long a message over the daemon takes from before it is sent until a thread that sleeps has received it.
fn hop(bus: &Bus, effort: Effort) -> io::Result<u64> {
    let (sender, receiver) = (bus.connect()?, bus.connect()?);
    let to = receiver.id();
    let times = effort.times.clamp(1, 300) * effort.rounds.max(1);
    thread::scope(|scope| {
        let received = scope.spawn(move || -> io::Result<Vec<u64>> {
            let mut latencies = Vec::with_capacity(times);
            for _ in 0..times {
                let message = receiver.recv_blocking(CALL_TIMEOUT).map_err(io::Error::other)?;
                let now = receiver.now().as_nanos();
                let sent_at = message.payload().first_chunk().map_or(now, |at| u64::from_ne_bytes(*at));
                latencies.push(now.saturating_sub(sent_at));
            }
            Ok(latencies)
        });
        for _ in 0..times {
            thread::sleep(Duration::from_micros(200));
            let now = sender.now().as_nanos().to_ne_bytes();
            sender.send(&Message::to(to).payload(&now)).map_err(io::Error::other)?;
        }
        let mut latencies = received.join().map_err(|_| io::Error::other("the receiver panicked"))??;
        // What the rest of the machine disturbed is above the first quarter; a machine of its own hardly has more.
        latencies.sort_unstable();
        Ok(latencies[latencies.len() / 4])
    })
}

/// What waking a thread that sleeps takes the waker, the system call included.
fn wake(effort: Effort) -> io::Result<u64> {
    let effort = Effort { times: effort.times.clamp(1, 200), ..effort };
    let (reader, writer) = rustix::pipe::pipe()?;
    thread::scope(|scope| {
        scope.spawn(|| while rustix::io::read(&reader, &mut [0; 1]).is_ok_and(|count| count == 1) {});
        let cost = best(effort, || {
            // By then it sleeps.
            thread::sleep(Duration::from_micros(200));
            let begun = Instant::now();
            rustix::io::write(&writer, &[1])?;
            Ok(ns(begun.elapsed()))
        });
        drop(writer);
        cost
    })
}

/// How much later than asked for a sleep of half a millisecond ends.
fn timer(effort: Effort) -> io::Result<u64> {
    let effort = Effort { times: effort.times.clamp(1, 200), ..effort };
    best(effort, || {
        let span = Duration::from_micros(500);
        let begun = Instant::now();
        thread::sleep(span);
        Ok(ns(begun.elapsed().saturating_sub(span)))
    })
}

/// A round trip as it was measured and as it was foretold, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comparison {
    /// Bytes of the message, each way.
    pub size: usize,
    /// The median that was measured.
    pub measured_ns: u64,
    /// The median of the simulation.
    pub simulated_ns: u64,
}

impl Comparison {
    /// By how many thousandths the simulation is off.
    #[must_use]
    pub const fn error_permille(&self) -> i64 {
        let difference = self.simulated_ns as i64 - self.measured_ns as i64;
        difference * 1000 / if self.measured_ns == 0 { 1 } else { self.measured_ns as i64 }
    }
}

/// Measures calls with messages of `size` bytes over kdbusd, and simulates the same on `board`.
///
/// # Errors
///
/// What failed.
pub fn compare(board: &Board, size: usize, effort: Effort) -> io::Result<Comparison> {
    let bus = Bus::start()?;
    let connection = bus.connect()?;
    let (service, payload) = (service().map_err(io::Error::other)?, vec![0x5a; size]);
    let measured_ns = best(effort, || {
        let begun = Instant::now();
        let reply = connection.call(&Message::to_name(service).payload(&payload), CALL_TIMEOUT).wait();
        let is_same = reply.map_err(io::Error::other)?.payload() == payload;
        let took = ns(begun.elapsed());
        if is_same { Ok(took) } else { Err(io::Error::other("other bytes came back than were sent")) }
    })?;
    Ok(Comparison {
        size,
        measured_ns,
        simulated_ns: simulated_call(board, size, 500).map_err(io::Error::other)?,
    })
}

/// The median of `calls` calls on `board`: the same messages between the same two processes.
///
/// # Errors
///
/// What the simulated bus says.
pub fn simulated_call(board: &Board, size: usize, calls: usize) -> Result<u64, kdbus_core::abi::Errno> {
    let sim = Sim::on(board.clone(), &Config::SMALL, 1).map_err(|_| kdbus_core::abi::Errno::EINVAL)?;
    let keeper = sim.world_mut().spawn_user("bus", 1000, 1000);
    sim.make_bus(keeper, "bench")?;
    let (results, samples) = mpsc::channel();
    let failed = Rc::new(RefCell::new(None));
    for name in ["service", "client"] {
        let process = sim.world_mut().spawn_user(name, 1000, 1000);
        let transport = sim.open(process, "1000-bench", "bus")?;
        let (results, failed, is_client) = (results.clone(), Rc::clone(&failed), name == "client");
        sim.spawn(process, Placement::from(Policy::Normal(0)), async move {
            let done =
                if is_client { call(transport, size, calls, &results).await } else { serve(transport).await };
            if let Err(errno) = done {
                *failed.borrow_mut() = Some(errno);
            }
        });
    }
    // The service waits for ever, which ends the run.
    let _ = sim.run(None);
    if let Some(errno) = failed.take() {
        return Err(errno);
    }
    drop(results);
    let _ = sim.end();
    let mut samples: Vec<u64> = samples.try_iter().collect();
    samples.sort_unstable();
    samples.get(samples.len() / 2).copied().ok_or(kdbus_core::abi::Errno::ETIMEDOUT)
}

/// The name of the service, parsed.
fn service() -> Result<WellKnownName<'static>, kdbus_core::abi::Errno> {
    WellKnownName::parse(SERVICE).map_err(|_| kdbus_core::abi::Errno::EINVAL)
}

async fn serve<T: Transport>(transport: T) -> Result<(), kdbus_core::abi::Errno> {
    let bus = Connection::hello(transport, &Hello::new()).map_err(|error| error.errno())?;
    bus.acquire(service()?, NameFlags::empty()).map_err(|error| error.errno())?;
    bus.serve(async |request| request.reply(request.payload())).await.map_err(|error| error.errno())
}

async fn call<T: Transport>(
    transport: T,
    size: usize,
    calls: usize,
    results: &mpsc::Sender<u64>,
) -> Result<(), kdbus_core::abi::Errno> {
    let bus = Connection::hello(transport, &Hello::new()).map_err(|error| error.errno())?;
    let (service, payload) = (service()?, vec![0x5a; size]);
    bus.wait_for_name(service, CALL_TIMEOUT).await.map_err(|error| error.errno())?;
    for _ in 0..calls {
        let begun = bus.now();
        let reply = bus.call(&Message::to_name(service).payload(&payload), CALL_TIMEOUT).await;
        let took = bus.now().since(begun);
        reply.map_err(|error| error.errno())?;
        let _ = results.send(ns(took));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simulated_call_costs_what_its_parts_cost() {
        let board = Board { path: Path::Module, command_ns: 0, syscall_ns: 1_000, ..Board::ideal(1) };
        // The client sends, sleeps, and receives twice, for it looks before it sleeps; the service receives, sends, gives
        // back, looks and sleeps; and the two of them need not wait for each other.
        let simple = simulated_call(&board, 64, 20).unwrap();
        assert!((6_000..12_000).contains(&simple), "{simple}");
        let switching = Board { switch_ns: 50_000, ..board.clone() };
        let switched = simulated_call(&switching, 64, 20).unwrap();
        assert_eq!(switched - simple, 100_000, "there and back");
        let copying = Board { copy_ps: 1_000, ..board };
        assert_eq!(simulated_call(&copying, 4_096, 20).unwrap() - simple, 2 * 4_096);
    }

    #[test]
    fn errors_have_a_sign() {
        let comparison = |simulated_ns| Comparison { size: 64, measured_ns: 10_000, simulated_ns };
        assert_eq!(comparison(12_000).error_permille(), 200);
        assert_eq!(comparison(9_000).error_permille(), -100);
    }
}
