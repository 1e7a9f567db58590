//! What things cost on this machine, each by itself: what a [`Board`] is made of.

use std::hint::black_box;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use kdbus_core::client::{CALL_TIMEOUT, Connection, Message};
use kdbus_linux::local::LocalTransport;
use kdbus_sim::{Board, Path};
use rustix::event::epoll;

use super::processes::{Bus, Echo};
use super::{median, ns};

/// Bytes of the large messages; those without payload are the small ones.
const LARGE: usize = 16 * 1024;

/// What each thing took in the round in which it took least, in nanoseconds.
///
/// Calls are not among them: they are what the simulator foretells from these.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Reading the clock.
    clock_ns: u64,
    /// Entering the kernel and coming back.
    syscall_ns: u64,
    /// Waiting at two descriptors and reading what woke, without any sleep in between.
    wait_ns: u64,
    /// The first use of a page.
    page_fault_ns: u64,
    /// A round trip through two pipes to another process.
    pipe_ns: u64,
    /// Waking a thread that sleeps, for the one that does it, with the system call.
    wake_ns: u64,
    /// How much later than asked for a sleep ends.
    late_ns: u64,
    /// Sending a message without payload to oneself by way of the daemon.
    daemon_ns: u64,
    /// How much more that takes with [`LARGE`] bytes: the median of the rounds, because a difference may come out too low.
    large_ns: u64,
    /// What of this the daemon has been on a CPU.
    daemon_busy_ns: u64,
    /// Taking this message out and giving its slice back.
    receive_ns: u64,
    /// From before a message is sent until a thread that slept has it; 0 on one CPU. In a quarter of the rounds it took
    /// less: those in which the two of them happened to share a CPU.
    hop_ns: u64,
}

impl Costs {
    /// Before anything is measured.
    const NONE: Self = Self {
        clock_ns: u64::MAX,
        syscall_ns: u64::MAX,
        wait_ns: u64::MAX,
        page_fault_ns: u64::MAX,
        pipe_ns: u64::MAX,
        wake_ns: u64::MAX,
        late_ns: u64::MAX,
        daemon_ns: u64::MAX,
        large_ns: 0,
        daemon_busy_ns: u64::MAX,
        receive_ns: u64::MAX,
        hop_ns: 0,
    };

    /// The machine with the CPUs that this process may use, as the simulator takes it.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn board(&self, name: &str) -> io::Result<Board> {
        // There and back: two switches, two writes that wake, and two reads.
        let (way_ns, wake_ns) = (self.pipe_ns / 2, self.wake_ns.saturating_sub(self.syscall_ns));
        let switch_ns = way_ns.saturating_sub(2 * self.syscall_ns + wake_ns.min(way_ns / 2));
        let timer_slack_ns = std::fs::read_to_string("/proc/self/timerslack_ns")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(50_000);
        // One command takes the message out, another one gives its slice back.
        let receive_ns = self.receive_ns / 2;
        Ok(Board {
            name: name.to_owned(),
            basis: "measured by the program calibrate; command_ns and channel_ns are estimates".to_owned(),
            cores: thread::available_parallelism()?.get(),
            path: Path::Daemon,
            syscall_ns: self.syscall_ns,
            wait_ns: self.wait_ns,
            switch_ns,
            wake_ns,
            // What is left of a message's way when all else is taken off; on one CPU nobody is woken while another runs.
            wake_latency_ns: self
                .hop_ns
                .saturating_sub(self.daemon_ns / 2 + wake_ns + switch_ns + receive_ns),
            timer_latency_ns: self.late_ns.saturating_sub(timer_slack_ns + switch_ns),
            timer_slack_ns,
            copy_ps: self.large_ns * 1000 / LARGE as u64,
            page_fault_ns: self.page_fault_ns,
            command_ns: self.daemon_busy_ns / 3,
            daemon_ns: self.daemon_ns,
            daemon_busy_ns: self.daemon_busy_ns.min(self.daemon_ns),
            receive_ns,
            channel_ns: 2 * receive_ns,
            slice_ns: 3_000_000,
            round_robin_ns: 100_000_000,
        })
    }
}

/// What the costs are measured with, from the first round to the last.
pub(super) struct Probes<'b> {
    bus: &'b Bus,
    connection: &'b Connection<LocalTransport>,
    echo: Echo,
    payload: Vec<u8>,
    is_one_cpu: bool,
    lowest: Costs,
    /// What [`Costs::large_ns`] was in each round.
    large: Vec<u64>,
    /// What [`Costs::hop_ns`] was in each round.
    hops: Vec<u64>,
}

impl<'b> Probes<'b> {
    pub(super) fn new(bus: &'b Bus, connection: &'b Connection<LocalTransport>) -> io::Result<Self> {
        Ok(Self {
            bus,
            connection,
            echo: Echo::start()?,
            payload: vec![0x5a; LARGE],
            is_one_cpu: thread::available_parallelism()?.get() == 1,
            lowest: Costs::NONE,
            large: Vec::new(),
            hops: Vec::new(),
        })
    }

    /// The costs as the rounds so far have them.
    pub(super) fn costs(&self) -> Costs {
        Costs { large_ns: quarter(&self.large, 2), hop_ns: quarter(&self.hops, 1), ..self.lowest }
    }

    /// A round: each thing so many times, or less often if it takes long.
    pub(super) fn round(&mut self, times: usize) -> io::Result<()> {
        lower(&mut self.lowest.clock_ns, median(times, || Ok(ns(Instant::now().elapsed())))?);
        let clock_ns = self.lowest.clock_ns;
        lower(&mut self.lowest.syscall_ns, syscall(times, clock_ns)?);
        lower(&mut self.lowest.wait_ns, wait(times, clock_ns)?);
        lower(&mut self.lowest.page_fault_ns, page_fault(times.div_ceil(20))?);
        let pipe_ns = median(times, || {
            let begun = Instant::now();
            self.echo.round_trip()?;
            Ok(ns(begun.elapsed()))
        })?;
        lower(&mut self.lowest.pipe_ns, pipe_ns);
        lower(&mut self.lowest.wake_ns, wake(times)?);
        lower(&mut self.lowest.late_ns, timer(times.div_ceil(20))?);
        self.daemon(times)?;
        if !self.is_one_cpu {
            self.hops.push(hop(self.bus, times.div_ceil(10))?);
        }
        Ok(())
    }

    /// Messages to oneself, and what the daemon and what receiving has of those without payload.
    fn daemon(&mut self, times: usize) -> io::Result<()> {
        let mut receive = Vec::with_capacity(times);
        let busy = self.bus.on_cpu();
        let daemon_ns = median(times, || self.to_oneself(&[], &mut receive))?;
        let busy_ns = match (busy, self.bus.on_cpu()) {
            (Some(before), Some(after)) => after.saturating_sub(before) / receive.len().max(1) as u64,
            _ => daemon_ns / 2,
        };
        receive.sort_unstable();
        let receive_ns = receive.get(receive.len() / 2).copied().unwrap_or(0);
        let large_ns = median(times, || self.to_oneself(&self.payload, &mut receive))?;
        lower(&mut self.lowest.daemon_ns, daemon_ns);
        lower(&mut self.lowest.daemon_busy_ns, busy_ns);
        lower(&mut self.lowest.receive_ns, receive_ns);
        self.large.push(large_ns.saturating_sub(daemon_ns));
        Ok(())
    }

    /// What sending a message to oneself takes; `receive` gets what it takes to have it and to give its slice back.
    fn to_oneself(&self, payload: &[u8], receive: &mut Vec<u64>) -> io::Result<u64> {
        let begun = Instant::now();
        self.connection
            .send(&Message::to(self.connection.id()).payload(payload))
            .map_err(io::Error::other)?;
        let sent = ns(begun.elapsed());
        let begun = Instant::now();
        let message = self.connection.try_recv().map_err(io::Error::other)?;
        let is_there = message.is_some();
        drop(message);
        receive.push(ns(begun.elapsed()));
        if is_there { Ok(sent) } else { Err(io::Error::other("what was sent did not come")) }
    }
}

/// What so many quarters of the rounds lie below; 0 without rounds.
fn quarter(rounds: &[u64], quarters: usize) -> u64 {
    let mut rounds = rounds.to_vec();
    rounds.sort_unstable();
    rounds.get(rounds.len() * quarters / 4).copied().unwrap_or(0)
}

fn lower(lowest: &mut u64, ns: u64) {
    *lowest = ns.min(*lowest);
}

fn syscall(times: usize, clock_ns: u64) -> io::Result<u64> {
    let loops = 64;
    median(times, || {
        let begun = Instant::now();
        (0..loops).for_each(|_| {
            black_box(rustix::process::getppid());
        });
        Ok(ns(begun.elapsed()).saturating_sub(clock_ns) / loops)
    })
}

/// What a client does when it sleeps and is woken by its bell: it waits at a set of two, and reads the one that has
/// something.
fn wait(times: usize, clock_ns: u64) -> io::Result<u64> {
    let loops = 16;
    let (reader, writer) = rustix::pipe::pipe()?;
    let (silent, _open) = rustix::pipe::pipe()?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for (at, pipe) in [&reader, &silent].into_iter().enumerate() {
        epoll::add(&set, pipe, epoll::EventData::new_u64(at as u64), epoll::EventFlags::IN)?;
    }
    let mut events =
        [epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) }; 2];
    median(times, || {
        let mut spent = 0;
        for _ in 0..loops {
            rustix::io::write(&writer, &[1])?;
            let begun = Instant::now();
            epoll::wait(&set, &mut events, None)?;
            rustix::io::read(&reader, &mut [0; 64])?;
            spent += ns(begun.elapsed()).saturating_sub(clock_ns);
        }
        Ok(spent / loops)
    })
}

/// The first use of a page of shared memory: a write of one byte by a system call, which enters the kernel as a fault does
/// and makes the page as it does, and which no huge page saves.
fn page_fault(times: usize) -> io::Result<u64> {
    let (pages, page) = (64, 4_096);
    median(times, || {
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
fn hop(bus: &Bus, times: usize) -> io::Result<u64> {
    let (sender, receiver) = (bus.connect()?, bus.connect()?);
    let to = receiver.id();
    thread::scope(|scope| {
        let received = scope.spawn(move || {
            median(times, || {
                let message = receiver.recv_blocking(CALL_TIMEOUT).map_err(io::Error::other)?;
                let now = receiver.now().as_nanos();
                let sent_at = message.payload().first_chunk().map_or(now, |at| u64::from_ne_bytes(*at));
                Ok(now.saturating_sub(sent_at))
            })
        });
        for _ in 0..times {
            thread::sleep(Duration::from_micros(200));
            let now = sender.now().as_nanos().to_ne_bytes();
            sender.send(&Message::to(to).payload(&now)).map_err(io::Error::other)?;
        }
        received.join().map_err(|_| io::Error::other("the receiver panicked"))?
    })
}

/// What waking a thread that sleeps takes one that does not, the system call included.
fn wake(times: usize) -> io::Result<u64> {
    let (reader, writer) = rustix::pipe::pipe()?;
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            while rustix::io::read(&reader, &mut [0; 1]).is_ok_and(|count| count == 1) {
                done.fetch_add(1, Relaxed);
            }
        });
        let mut woken = 0;
        let cost = median(times, || {
            while done.load(Relaxed) < woken {
                thread::yield_now();
            }
            // It goes to sleep meanwhile. Whoever slept here himself would find a CPU that has to get going first.
            let until = Instant::now() + Duration::from_micros(20);
            while Instant::now() < until {
                thread::yield_now();
            }
            let begun = Instant::now();
            rustix::io::write(&writer, &[1])?;
            woken += 1;
            Ok(ns(begun.elapsed()))
        });
        drop(writer);
        cost
    })
}

/// How much later than asked for a sleep of half a millisecond ends.
fn timer(times: usize) -> io::Result<u64> {
    median(times, || {
        let span = Duration::from_micros(500);
        let begun = Instant::now();
        thread::sleep(span);
        Ok(ns(begun.elapsed().saturating_sub(span)))
    })
}
