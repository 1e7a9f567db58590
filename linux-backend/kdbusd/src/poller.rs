//! What the daemon waits for: sockets, the next deadline, and the order to stop.

use kdbus_core::Instant;
use kdbus_core::engine::{Clock, EndpointId, HandleId};
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::{self, Errno};
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, clock_gettime, timerfd_create,
    timerfd_settime,
};

/// What a descriptor of the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The order to stop.
    Stop,
    /// Word that the policy files were read again.
    Reload,
    /// The timer of the next deadline.
    Timer,
    /// The socket of the control node.
    Control,
    /// The socket of an endpoint node.
    Endpoint(EndpointId),
    /// A client.
    Client(HandleId),
    /// The set of hang-ups.
    HangUps,
}

/// Generations are told apart by their low bits: a stale event would have to be older than 2^29 uses of a place.
const GENERATION: u32 = (1 << 29) - 1;

impl Source {
    const fn data(self) -> EventData {
        let (kind, index, generation) = match self {
            Self::Stop => (0, 0, 0),
            Self::Timer => (1, 0, 0),
            Self::Reload => (5, 0, 0),
            Self::HangUps => (6, 0, 0),
            Self::Control => (2, 0, 0),
            Self::Endpoint(id) => (3, id.index, id.generation),
            Self::Client(id) => (4, id.index, id.generation),
        };
        EventData::new_u64(kind << 61 | ((generation & GENERATION) as u64) << 32 | index as u64)
    }
}

/// A descriptor that is ready, by its place and the low bits of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ready(u64);

impl Ready {
    const fn is_client(self) -> bool {
        self.0 >> 61 == 4
    }

    /// What it is, if `current` knows that place in that generation.
    pub(crate) fn source(self, current: impl Current) -> Option<Source> {
        let index = self.0 as u32;
        let generation = (self.0 >> 32) as u32 & GENERATION;
        match self.0 >> 61 {
            0 => Some(Source::Stop),
            1 => Some(Source::Timer),
            2 => Some(Source::Control),
            3 => current
                .endpoint(index)
                .filter(|id| id.generation & GENERATION == generation)
                .map(Source::Endpoint),
            4 => current
                .client(index)
                .filter(|id| id.generation & GENERATION == generation)
                .map(Source::Client),
            5 => Some(Source::Reload),
            6 => Some(Source::HangUps),
            _ => None,
        }
    }
}

/// Who has a place now.
pub(crate) trait Current {
    fn endpoint(&self, index: u32) -> Option<EndpointId>;
    fn client(&self, index: u32) -> Option<HandleId>;
}

/// Room for what the system tells of.
pub(crate) struct Events(Vec<Event>);

/// Ready descriptors up to which it is looked whether a wait told of any of them twice in a row.
const FEW: usize = 4;

/// Two epoll sets and a timer.
///
/// The second set has all clients again, for hang-ups alone, and is a member of the first: every hang-up that came before
/// a command that the first one told of is known before that command is read.
///
/// A wait walks over the list of members that something happened to. A hang-up puts the second set on that list before a
/// command that is sent afterwards puts its sender there, so a wait that finds the sender finds the second set too, with
/// one exception. A wait leaves whoever it tells of on the list, for the next one to look at again; in that next one,
/// the command may come, and before it the hang-up, while the list is being walked: too late for the one to be
/// on it, and not for the other. So if somebody is told of twice in a row, the second set is asked after the
/// first one has answered. If nobody is, there is nothing to ask.
pub(crate) struct Poller {
    all: OwnedFd,
    hang_ups: OwnedFd,
    timer: OwnedFd,
    armed: Option<Instant>,
    ready: Vec<Ready>,
    /// What was ready the time before.
    before: Vec<Ready>,
    gone: Vec<Ready>,
}

impl Poller {
    /// Sets for `capacity` descriptors. Each wait returns all that are ready, so none is left behind another.
    pub(crate) fn new(capacity: usize) -> io::Result<Self> {
        let all = epoll::create(CreateFlags::CLOEXEC)?;
        let hang_ups = epoll::create(CreateFlags::CLOEXEC)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        epoll::add(&all, &timer, Source::Timer.data(), EventFlags::IN)?;
        epoll::add(&all, &hang_ups, Source::HangUps.data(), EventFlags::IN)?;
        let places = capacity + 5;
        Ok(Self {
            all,
            hang_ups,
            timer,
            armed: None,
            ready: Vec::with_capacity(places),
            before: Vec::with_capacity(places),
            gone: Vec::with_capacity(places),
        })
    }

    /// Takes the readiness of a descriptor for the order to stop, from now on or, with false, no more.
    pub(crate) fn stop_on(&self, stop: impl AsFd, on: bool) -> io::Result<()> {
        if on {
            epoll::add(&self.all, stop, Source::Stop.data(), EventFlags::IN)
        } else {
            epoll::delete(&self.all, stop)
        }
    }

    /// Takes the readiness of a descriptor for word that the policy files were read again.
    pub(crate) fn reload_on(&self, bell: impl AsFd) -> io::Result<()> {
        epoll::add(&self.all, bell, Source::Reload.data(), EventFlags::IN)
    }

    /// Waits for new connections at a node's socket.
    pub(crate) fn add_listener(&self, socket: impl AsFd, source: Source) -> io::Result<()> {
        epoll::add(&self.all, socket, source.data(), EventFlags::IN)
    }

    /// Waits for commands and the end of a client.
    pub(crate) fn add_client(&self, socket: impl AsFd, id: HandleId) -> io::Result<()> {
        let data = Source::Client(id).data();
        epoll::add(&self.hang_ups, socket.as_fd(), data, EventFlags::RDHUP)?;
        epoll::add(&self.all, socket, data, EventFlags::IN)
    }

    /// Waits no longer for new connections at a node's socket.
    pub(crate) fn remove_listener(&self, socket: impl AsFd) {
        // Fails for one that was never added.
        let _ = epoll::delete(&self.all, socket);
    }

    /// Waits no longer for a client.
    pub(crate) fn remove_client(&self, socket: impl AsFd) {
        // Fails for one that was never added.
        let _ = epoll::delete(&self.hang_ups, socket.as_fd());
        let _ = epoll::delete(&self.all, socket);
    }

    /// Turns the wait for new connections off or on.
    pub(crate) fn pause_listener(&self, socket: impl AsFd, source: Source, pause: bool) -> io::Result<()> {
        let flags = if pause { EventFlags::empty() } else { EventFlags::IN };
        epoll::modify(&self.all, socket, source.data(), flags)
    }

    /// Waits until something is ready or `deadline` has come. [`ready`](Self::ready) and
    /// [`gone`](Self::gone) tell what it is.
    pub(crate) fn wait(&mut self, events: &mut Events, deadline: Option<Instant>) -> io::Result<()> {
        self.arm(deadline)?;
        // A wait that a signal ended may have looked at nobody.
        if !self.ready.is_empty() {
            core::mem::swap(&mut self.ready, &mut self.before);
        }
        collect(&self.all, None, events, &mut self.ready)?;
        if self.tells_of_hang_ups() {
            self.gone.clear();
            return Ok(());
        }
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        collect(&self.hang_ups, Some(&at_once), events, &mut self.gone)
    }

    /// Whether no client hung up before the ready ones sent what they are ready for: it would be among what is ready.
    fn tells_of_hang_ups(&self) -> bool {
        let Self { ready, before, .. } = self;
        let few = ready.len() <= FEW && before.len() <= FEW;
        few && ready.iter().all(|ready| ready.is_client() && !before.contains(ready))
    }

    /// Room for what one wait returns. (It stays with the thread that waits.)
    pub(crate) fn events(&self) -> Events {
        Events(Vec::with_capacity(self.ready.capacity()))
    }

    /// What is ready, the set of hang-ups among it.
    pub(crate) fn ready(&self) -> &[Ready] {
        &self.ready
    }

    /// Clients that hung up before the ready ones sent what they are ready for.
    pub(crate) fn gone(&self) -> &[Ready] {
        &self.gone
    }

    /// Notes that the timer has run out.
    pub(crate) fn timer_fired(&mut self) -> io::Result<()> {
        self.armed = None;
        match io::read(&self.timer, &mut [0; 8]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Sets the timer, unless it runs out earlier anyway: deadlines mostly vanish before they come, and an idle
    /// turn is cheaper than a system call for each.
    fn arm(&mut self, deadline: Option<Instant>) -> io::Result<()> {
        let Some(deadline) = deadline else {
            return Ok(());
        };
        if self.armed.is_some_and(|armed| armed <= deadline) {
            return Ok(());
        }
        // A value of zero would turn the timer off.
        let ns = deadline.as_nanos().clamp(1, i64::MAX as u64);
        let value = Timespec { tv_sec: (ns / 1_000_000_000) as i64, tv_nsec: (ns % 1_000_000_000) as i64 };
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let setting = Itimerspec { it_interval: once, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &setting)?;
        self.armed = Some(deadline);
        Ok(())
    }
}

fn collect(
    set: &OwnedFd,
    timeout: Option<&Timespec>,
    events: &mut Events,
    ready: &mut Vec<Ready>,
) -> io::Result<()> {
    let Events(events) = events;
    events.clear();
    ready.clear();
    match epoll::wait(set, spare_capacity(events), timeout) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error),
    }
    ready.extend(events.iter().map(|event| Ready(event.data.u64())));
    Ok(())
}

/// What time it is. The time of day is [read](realtime) for those messages alone that show it.
pub(crate) fn clock() -> Clock {
    Clock { monotonic: Instant::from_nanos(nanoseconds(ClockId::Monotonic)), realtime_ns: 0 }
}

/// The time of day.
pub(crate) fn realtime() -> u64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(id: ClockId) -> u64 {
    let time = clock_gettime(id);
    (time.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
    use std::time::Duration;

    struct First;

    impl Ready {
        fn from_id(id: HandleId) -> Self {
            Self(Source::Client(id).data().u64())
        }
    }

    impl Current for First {
        fn endpoint(&self, index: u32) -> Option<EndpointId> {
            Some(EndpointId { index, generation: 1 })
        }

        fn client(&self, index: u32) -> Option<HandleId> {
            Some(HandleId { index, generation: 1 })
        }
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn wait(poller: &mut Poller, deadline: Option<Instant>) -> io::Result<()> {
        let mut events = poller.events();
        poller.wait(&mut events, deadline)
    }

    fn sources(ready: &[Ready]) -> Vec<Source> {
        let sources = ready.iter().filter_map(|ready| ready.source(First));
        sources.filter(|source| *source != Source::HangUps).collect()
    }

    #[test]
    fn a_hang_up_is_known_with_the_command_that_came_after_it() {
        let mut poller = Poller::new(4).unwrap();
        let (a, a_client) = pair();
        let (b, b_client) = pair();
        let id = |index| HandleId { index, generation: 1 };
        poller.add_client(&a, id(1)).unwrap();
        poller.add_client(&b, id(2)).unwrap();
        drop(b_client);
        rustix::net::send(&a_client, b"x", SendFlags::empty()).unwrap();
        wait(&mut poller, None).unwrap();
        assert!(sources(poller.ready()).contains(&Source::Client(id(1))));
        assert_eq!(sources(poller.gone()), [Source::Client(id(2))]);
    }

    /// One thread hangs up and then sends a command by another socket, again and again and in any phase of the waits.
    #[test]
    fn whenever_a_hang_up_comes_it_is_known_with_the_command_after_it() {
        const ROUNDS: u32 = 20_000;
        let mut poller = Poller::new(4).unwrap();
        let id = |index, generation| HandleId { index, generation };
        let (a, a_client) = pair();
        poller.add_client(&a, id(0, 1)).unwrap();
        let (to_thread, ends) = std::sync::mpsc::sync_channel::<OwnedFd>(0);
        let sender = std::thread::spawn(move || {
            for (round, end) in ends.into_iter().enumerate() {
                // Something else first now and then, so that its sender is told of twice in a row.
                if round % 3 != 0 {
                    rustix::net::send(&a_client, b"a", SendFlags::empty()).unwrap();
                }
                for _ in 0..round % 61 {
                    std::hint::spin_loop();
                }
                drop(end);
                rustix::net::send(&a_client, b"b", SendFlags::empty()).unwrap();
            }
        });
        let mut events = poller.events();
        for round in 0..ROUNDS {
            let (b, b_client) = pair();
            poller.add_client(&b, id(1, round)).unwrap();
            to_thread.send(b_client).unwrap();
            let mut known = false;
            loop {
                poller.wait(&mut events, None).unwrap();
                known |= !poller.gone().is_empty();
                let is_a = |ready: &&Ready| ready.0 == Ready::from_id(id(0, 1)).0;
                if poller.ready().iter().find(is_a).is_none() {
                    continue;
                }
                let mut byte = [0];
                let read = rustix::net::recv(&a, &mut byte, rustix::net::RecvFlags::DONTWAIT);
                assert!(read.is_ok(), "a client is told of if there is something to read");
                if byte == *b"b" {
                    assert!(known, "round {round}");
                    break;
                }
            }
            poller.remove_client(&b);
        }
        drop(to_thread);
        sender.join().unwrap();
    }

    #[test]
    fn whoever_is_told_of_twice_in_a_row_has_the_hang_ups_asked_for() {
        let mut poller = Poller::new(4).unwrap();
        let (a, a_client) = pair();
        poller.add_client(&a, HandleId { index: 1, generation: 1 }).unwrap();
        rustix::net::send(&a_client, b"x", SendFlags::empty()).unwrap();
        wait(&mut poller, None).unwrap();
        assert!(poller.tells_of_hang_ups());
        wait(&mut poller, None).unwrap();
        assert!(!poller.tells_of_hang_ups());
    }

    #[test]
    fn commands_alone_are_no_hang_ups() {
        let mut poller = Poller::new(4).unwrap();
        let (a, a_client) = pair();
        poller.add_client(&a, HandleId { index: 1, generation: 1 }).unwrap();
        rustix::net::send(&a_client, b"x", SendFlags::empty()).unwrap();
        wait(&mut poller, None).unwrap();
        assert_eq!((poller.ready().len(), poller.gone().len()), (1, 0));
    }

    #[test]
    fn events_of_an_earlier_generation_are_nobodys() {
        let mut poller = Poller::new(4).unwrap();
        let (a, a_client) = pair();
        poller.add_client(&a, HandleId { index: 1, generation: 0 }).unwrap();
        drop(a_client);
        wait(&mut poller, None).unwrap();
        assert_eq!(sources(poller.gone()), []);
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let mut poller = Poller::new(4).unwrap();
        let deadline = clock().monotonic.after(Duration::from_millis(2));
        wait(&mut poller, Some(deadline)).unwrap();
        assert_eq!(sources(poller.ready()), [Source::Timer]);
        assert!(clock().monotonic >= deadline);
        poller.timer_fired().unwrap();
        // An earlier one is taken in place of a later one.
        wait(&mut poller, Some(Instant::from_nanos(0))).unwrap();
        assert_eq!(sources(poller.ready()), [Source::Timer]);
    }

    #[test]
    fn the_order_to_stop_ends_the_wait() {
        let (running, stop) = pair();
        let mut poller = Poller::new(4).unwrap();
        poller.stop_on(&stop, true).unwrap();
        drop(running);
        wait(&mut poller, None).unwrap();
        assert_eq!(sources(poller.ready()), [Source::Stop]);
    }
}
