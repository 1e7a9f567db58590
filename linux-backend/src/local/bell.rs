//! What a client waits on: the bell that kdbusd rings, and the socket's end.

use core::cell::{Cell, OnceCell};
use core::mem::MaybeUninit;
use core::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use kdbus_core::Instant;
use kdbus_core::hint::{cold, likely, unlikely};

use super::cancel::canceled;
use super::gate;

/// Why a client stops waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Woken {
    /// Something may have come in, or the deadline has passed.
    Early,
    /// The bus is gone.
    HungUp,
    /// The descriptor that cancels is readable.
    Canceled,
    /// The descriptor that cancels will never be readable.
    NeverCanceled,
}

/// Told of each lane that rang, and whether its bell has to be emptied for the next ring to be heard.
pub(super) type Rung<'a> = dyn FnMut(usize, bool) + 'a;

/// What the events of the set are about; lanes follow.
const SOCKET: u64 = 0;
const OWN: u64 = 1;
const PIPE: u64 = 2;
const TIMER: u64 = 3;
const FIRST_LANE: u64 = 4;

/// Events that one wait takes.
const EVENTS: usize = 16;

/// How far away an end of waiting is that the timer is set for. It is set for less than a dozen of them in a second.
const FAR_AWAY: Duration = Duration::from_millis(200);

/// Bytes that may lie in a lane's bell before they are taken out.
const RUNG_MAX: u32 = 1024;

/// The descriptors that wake a client, in one set that can be polled from outside.
#[derive(Debug)]
pub(super) struct Bell {
    set: OwnedFd,
    /// The read end of kdbusd's pipe, once there is a connection.
    pipe: OnceCell<OwnedFd>,
    /// The pipe rang since the bell was silenced.
    pipe_rung: Cell<bool>,
    /// The pipe makes one event for each ring, and is emptied now and then.
    by_edge: Cell<bool>,
    /// How often the bell was silenced, round and round: kdbusd rings at most once for each, so a pipe that is emptied in
    /// each round never has much in it.
    silenced: Cell<u8>,
    /// An event told of the end of the bus.
    hung_up: Cell<bool>,
    /// Rung by the client itself, for what it found after it had asked for the bell.
    own: OwnedFd,
    own_rung: Cell<bool>,
    /// Somebody else may poll the set, so it has to be readable while anything waits.
    watched: Cell<bool>,
    /// Makes the set readable in time for what this process itself has to end while it is watched, else for whoever waits in it.
    timer: OnceCell<OwnedFd>,
    /// When it goes off.
    goes_off: Cell<Instant>,
    /// Lanes ring in the set.
    lanes: Cell<bool>,
    /// A ring of a pipe that is not empty makes no new event: true for some kernels before 5.14.
    stale: OnceCell<bool>,
}

impl Bell {
    /// A set that tells of `socket`'s end.
    pub(super) fn new(socket: BorrowedFd<'_>) -> Result<Self, Errno> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let own = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Answers on the socket are waited for by whoever asked.
        epoll::add(&set, socket, epoll::EventData::new_u64(SOCKET), epoll::EventFlags::RDHUP)?;
        epoll::add(&set, &own, epoll::EventData::new_u64(OWN), epoll::EventFlags::IN)?;
        Ok(Self {
            set,
            pipe: OnceCell::new(),
            pipe_rung: Cell::new(false),
            by_edge: Cell::new(false),
            silenced: Cell::new(0),
            hung_up: Cell::new(false),
            own,
            own_rung: Cell::new(false),
            watched: Cell::new(false),
            timer: OnceCell::new(),
            goes_off: Cell::new(Instant::FAR),
            lanes: Cell::new(false),
            stale: OnceCell::new(),
        })
    }

    /// Adds the bell of a new connection.
    pub(super) fn attach(&self, pipe: OwnedFd) -> Result<(), Errno> {
        // kdbusd has its own description of the other end, so this changes nothing for it.
        let flags = rustix::fs::fcntl_getfl(&pipe)? | rustix::fs::OFlags::NONBLOCK;
        rustix::fs::fcntl_setfl(&pipe, flags)?;
        // Taking the event of a ring is one system call less than emptying the pipe after each.
        // Where that cannot be found out, rings are taken by level, which is right everywhere.
        let by_edge = gate().is_some() && !self.watched.get() && self.is_stale() == Ok(false);
        self.by_edge.set(by_edge);
        let edge = if by_edge { epoll::EventFlags::ET } else { epoll::EventFlags::empty() };
        epoll::add(&self.set, &pipe, epoll::EventData::new_u64(PIPE), epoll::EventFlags::IN | edge)?;
        // There is one HELLO at most.
        self.pipe.set(pipe).map_err(|_| Errno::EXIST)
    }

    /// Adds the bell of lane `at`. It makes one event for each ring, and is emptied now and then.
    pub(super) fn add_lane(&self, at: usize, bell: BorrowedFd<'_>) -> Result<(), Errno> {
        self.is_stale()?;
        self.lanes.set(true);
        let data = epoll::EventData::new_u64(FIRST_LANE + at as u64);
        epoll::add(&self.set, bell, data, epoll::EventFlags::IN | epoll::EventFlags::ET)
    }

    /// Whether a ring may be lost in a pipe that is not empty. Looks once.
    fn is_stale(&self) -> Result<bool, Errno> {
        if let Some(stale) = self.stale.get() {
            return Ok(*stale);
        }
        let stale = rings_are_lost()?;
        Ok(*self.stale.get_or_init(|| stale))
    }

    /// From here on, the set is readable as long as anything lies in the pipe.
    fn ring_by_level(&self) {
        if gate().is_some()
            && self.by_edge.replace(false)
            && let Some(pipe) = self.pipe.get()
        {
            self.pipe_rung.set(true);
            // Fails for no descriptor that is in the set.
            let _ = epoll::modify(&self.set, pipe, epoll::EventData::new_u64(PIPE), epoll::EventFlags::IN);
        }
    }

    /// The set: readable while anything waits, from here on.
    pub(super) fn watch(&self) -> BorrowedFd<'_> {
        if !self.watched.replace(true) && self.goes_off.get() != Instant::FAR {
            // Whatever was waited for until then is nothing to whoever polls.
            self.start_timer(Instant::FAR);
        }
        self.ring_by_level();
        self.set.as_fd()
    }

    /// Whether the set may be polled by somebody else.
    pub(super) const fn is_watched(&self) -> bool {
        self.watched.get()
    }

    /// Makes the set readable at `at`, or earlier. Costs a system call if that is earlier than before.
    pub(super) fn set_timer(&self, at: Instant) {
        let now = now();
        if self.goes_off.get() <= now {
            // It went off: readable until it is set anew.
            self.goes_off.set(Instant::FAR);
            self.start_timer(at);
        } else if at < self.goes_off.get() {
            self.start_timer(at);
        }
    }

    fn start_timer(&self, at: Instant) {
        use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags};
        if self.timer.get().is_none() {
            let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
            let Ok(timer) = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags) else { return };
            let data = epoll::EventData::new_u64(TIMER);
            if epoll::add(&self.set, &timer, data, epoll::EventFlags::IN).is_err() {
                return;
            }
            let _ = self.timer.set(timer);
        }
        let Some(timer) = self.timer.get() else { return };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value =
            if at == Instant::FAR { never } else { timespec(Duration::from_nanos(at.as_nanos().max(1))) };
        let value = Itimerspec { it_interval: never, it_value: value };
        // Setting it takes back that it went off.
        if rustix::time::timerfd_settime(timer, TimerfdTimerFlags::ABSTIME, &value).is_ok() {
            self.goes_off.set(at);
        }
    }

    /// Silences the bell, and tells `rung` of lanes. False if kdbusd's end of it is closed.
    pub(super) fn silence(&self, rung: &mut Rung<'_>) -> bool {
        if unlikely(self.own_rung.replace(false)) {
            let _ = rustix::io::read(&self.own, &mut [0; 8]);
        }
        if gate().is_some() && unlikely(self.watched.get()) && self.lanes.get() {
            // Takes the events that others have seen; what ends the connection stays.
            let _ = self.take(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }), rung);
        }
        let Some(pipe) = self.pipe.get() else { return true };
        if gate().is_some() {
            let rung = self.pipe_rung.replace(false);
            self.silenced.set(self.silenced.get().wrapping_add(1));
            let round = self.silenced.get() == 0;
            if likely(!round) && (self.by_edge.get() || !rung && !self.watched.get()) {
                return !self.hung_up.get();
            }
        }
        // kdbusd rings once for each time it is asked to; more of them would only make the next look come early.
        let mut bytes = [MaybeUninit::<u8>::uninit(); 1024];
        match rustix::io::read(pipe, &mut bytes[..]) {
            Ok((read, _)) => !read.is_empty(),
            // Empty, or a signal came: then the next look comes early.
            Err(_) => !self.has_hung_up(),
        }
    }

    /// Whether an event told of the end of the bus.
    fn has_hung_up(&self) -> bool {
        gate().is_some() && self.hung_up.get()
    }

    /// Tells `rung` of all lanes, `count` at most, that rang before, and waits for nothing. Costs a system call, and one more
    /// for each dozen of them.
    pub(super) fn take_rings(&self, count: usize, rung: &mut Rung<'_>) {
        const EACH: usize = EVENTS - FIRST_LANE as usize;
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut any = false;
        // Who rings on and on comes last each time, so after as many rounds all others were here.
        for _ in 0..=count / EACH {
            let mut lanes = 0;
            let _ = self.take(Some(&now), &mut |at, stale| {
                lanes += 1;
                rung(at, stale);
            });
            any |= lanes > 0;
            if lanes < EACH {
                break;
            }
        }
        if any && self.watched.get() {
            // The events are taken, and somebody else still has to find the set readable.
            self.ring_own();
        }
    }

    /// Makes the set readable until the bell is silenced.
    pub(super) fn ring_own(&self) {
        if !self.own_rung.replace(true) {
            // The counter is 0 here and cannot overflow.
            let _ = rustix::io::write(&self.own, &1_u64.to_ne_bytes());
        }
    }

    /// Waits for the bell, for `socket`'s end or until `deadline`, and tells `rung` of lanes. Restarts after
    /// signals.
    pub(super) fn wait(
        &self,
        socket: BorrowedFd<'_>,
        deadline: Option<Instant>,
        rung: &mut Rung<'_>,
    ) -> Result<Woken, Errno> {
        loop {
            if unlikely(self.has_hung_up()) {
                return Ok(Woken::HungUp);
            }
            let polls = gate().is_none() || self.watched.get();
            let timeout = self.timeout(deadline, !polls);
            let taken = if unlikely(polls) {
                self.poll(socket, timeout.as_ref())
            } else {
                match self.take(timeout.as_ref(), rung) {
                    // Before Linux 5.11 no wait takes parts of a millisecond but this one.
                    Err(Errno::NOSYS) => {
                        cold();
                        self.ring_by_level();
                        self.poll(socket, timeout.as_ref()).and_then(|woken| {
                            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
                            if woken == Woken::HungUp { Ok(woken) } else { self.take(Some(&now), rung) }
                        })
                    }
                    taken => taken,
                }
            };
            match taken {
                Err(Errno::INTR) => cold(),
                other => return other,
            }
        }
    }

    /// Until when to wait at the set, from now. What rang since the bell was silenced, and was taken in passing, still wakes.
    ///
    /// With `by_timer`, none where the timer ends the wait at `deadline` or before. It is set for one that is far away: a timer
    /// that stays as it is through many waits, and ends one of them early, costs less than a timeout of each.
    fn timeout(&self, deadline: Option<Instant>, by_timer: bool) -> Option<Timespec> {
        let at_once = gate().is_some() && self.by_edge.get() && self.pipe_rung.get();
        if unlikely(at_once) {
            return Some(timespec(Duration::ZERO));
        }
        let deadline = deadline?;
        let ends_it = || by_timer && self.goes_off.get() <= deadline;
        if ends_it() {
            return None;
        }
        let span = deadline.since(now());
        if by_timer && span >= FAR_AWAY {
            self.start_timer(deadline);
        }
        if ends_it() { None } else { Some(timespec(span)) }
    }

    /// The timer went off: from here on it ends no wait.
    #[cold]
    fn take_timer(&self) {
        if let Some(timer) = self.timer.get() {
            let _ = rustix::io::read(timer, &mut [0; 8]);
        }
        self.goes_off.set(Instant::FAR);
    }

    /// As [`wait`](Self::wait), or until `cancel` is readable, if there is one. Whoever was told looks first at what came in.
    pub(super) fn wait_or_cancel(
        &self,
        socket: BorrowedFd<'_>,
        deadline: Option<Instant>,
        cancel: Option<BorrowedFd<'_>>,
        rung: &mut Rung<'_>,
    ) -> Result<Woken, Errno> {
        let Some(cancel) = cancel else { return self.wait(socket, deadline, rung) };
        loop {
            let timeout = self.timeout(deadline, false);
            let mut fds =
                [PollFd::new(&self.set, PollFlags::IN), PollFd::from_borrowed_fd(cancel, PollFlags::IN)];
            match poll(&mut fds, timeout.as_ref()) {
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
                Ok(_) => {}
            }
            let [set, events] = [&fds[0], &fds[1]].map(PollFd::revents);
            if !set.is_empty() {
                // Its events are there, so this does not wait.
                let woken = self.wait(socket, Some(Instant::ZERO), rung)?;
                return Ok(if woken == Woken::Early { canceled(events) } else { woken });
            }
            return Ok(canceled(events));
        }
    }

    /// Waits for events, and takes those of lanes.
    fn take(&self, timeout: Option<&Timespec>, rung: &mut Rung<'_>) -> Result<Woken, Errno> {
        let mut buffer = [const { MaybeUninit::uninit() }; EVENTS];
        let (events, _) = epoll::wait(&self.set, &mut buffer[..], timeout)?;
        let ended = epoll::EventFlags::HUP | epoll::EventFlags::RDHUP | epoll::EventFlags::ERR;
        for event in events {
            let flags = event.flags;
            match event.data.u64() {
                lane if likely(lane >= FIRST_LANE) => {
                    rung((lane - FIRST_LANE) as usize, self.stale.get() == Some(&true));
                }
                SOCKET => self.hung_up.set(true),
                // Whoever silences the bell reads it.
                OWN => {}
                // Whoever polls finds it readable until it is set anew.
                TIMER if self.watched.get() => {}
                TIMER => self.take_timer(),
                // The pipe.
                _ => {
                    self.pipe_rung.set(true);
                    if flags.intersects(ended) {
                        self.hung_up.set(true);
                    }
                }
            }
        }
        Ok(if unlikely(self.hung_up.get()) { Woken::HungUp } else { Woken::Early })
    }

    /// Waits and takes nothing.
    fn poll(&self, socket: BorrowedFd<'_>, timeout: Option<&Timespec>) -> Result<Woken, Errno> {
        let (pipe, pipe_events) = match self.pipe.get() {
            Some(pipe) => (pipe.as_fd(), PollFlags::IN),
            None => (socket, PollFlags::RDHUP),
        };
        let mut fds = [
            PollFd::from_borrowed_fd(pipe, pipe_events),
            PollFd::from_borrowed_fd(socket, PollFlags::RDHUP),
            PollFd::new(&self.set, PollFlags::IN),
        ];
        poll(&mut fds, timeout)?;
        let ended = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR | PollFlags::NVAL;
        let hung_up = fds[..2].iter().any(|fd| fd.revents().intersects(ended));
        Ok(if hung_up { Woken::HungUp } else { Woken::Early })
    }
}

/// How often a lane rang since its bell was emptied.
#[derive(Debug)]
pub(super) struct Rings(u32);

impl Rings {
    /// It did not ring yet.
    pub(super) const fn new() -> Self {
        Self(0)
    }

    /// One more event. True if the bell is to be emptied.
    pub(super) const fn count(&mut self, stale: bool) -> bool {
        self.0 += 1;
        let full = stale || self.0 >= RUNG_MAX;
        if full {
            self.0 = 0;
        }
        full
    }
}

/// Whether this kernel makes no new event for a ring of a bell that was not emptied.
fn rings_are_lost() -> Result<bool, Errno> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&set, &read, epoll::EventData::new_u64(0), flags)?;
    let mut events = 0;
    for _ in 0..2 {
        rustix::io::write(&write, &[1])?;
        let mut buffer = [const { MaybeUninit::uninit() }; 1];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        events += epoll::wait(&set, &mut buffer[..], Some(&now))?.0.len();
    }
    Ok(events != 2)
}

/// Whether the other end of `socket` is gone.
pub(super) fn is_hung_up(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(socket, PollFlags::RDHUP)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..))
}

/// Time on the bus' clock.
pub(super) fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot: neither part is negative, and the sum lasts for centuries.
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// What the clock of the day shows more than the bus' clock, in nanoseconds.
pub(super) fn realtime_offset() -> i64 {
    let now = now();
    let day = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    let day = day.tv_sec.wrapping_mul(1_000_000_000).wrapping_add(day.tv_nsec);
    day.wrapping_sub(now.as_nanos() as i64)
}

fn timespec(span: Duration) -> Timespec {
    Timespec { tv_sec: span.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: span.subsec_nanos().into() }
}

#[cfg(test)]
#[path = "bell_tests.rs"]
mod tests;
