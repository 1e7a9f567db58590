//! The loop: in each turn hang-ups, then one command of each client that has one, then what is due.

use std::fmt;
use std::time::Duration;

use kdbus_core::abi::{Command, Errno, MsgInfo};
use kdbus_core::engine::{Credentials, Effect, EndpointId, HandleId};
use kdbus_linux::local::wire::{FLAG_POSTED, FLAG_RETURN_MESSAGE, Header, Kind};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io;
use rustix::net::{Shutdown, SocketFlags, shutdown};

use crate::clients::{Client, errno, put_reply};
use crate::closer;
use crate::config::LogLevel;
use crate::daemon::{Daemon, reserve};
use crate::host::{State, Turn};
use crate::identity::{self, Process};
use crate::poller::{Events, Ready, Source, clock};
use crate::process::{self, ProcessError};
use crate::raw::{self, Foreign};
use crate::ready::Watchdog;
use crate::spaces;

/// Connections that are accepted at one node in one turn.
const ACCEPTS: usize = 8;

/// The user of whom the system does not tell; no user has this number.
const UNKNOWN: u32 = u32::MAX;

/// How long nobody is accepted when the system has no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a daemon cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServeError {
    /// It cannot wait for clients.
    Wait(io::Errno),
    /// It may not be scheduled as configured.
    Process(ProcessError),
    /// It cannot start its threads.
    Threads(io::Errno),
}

impl Daemon {
    /// Serves clients until `stop` is readable or hung up. The calling thread gets the configured scheduling class.
    ///
    /// Errors with one client end that client only.
    ///
    /// # Errors
    ///
    /// [`ServeError`] if the daemon as a whole cannot go on.
    pub fn run(&mut self, stop: impl AsFd) -> Result<(), ServeError> {
        process::schedule(&self.schedule).map_err(ServeError::Process)?;
        closer::start().and_then(|()| self.start_reading()).map_err(|error| {
            ServeError::Threads(io::Errno::from_io_error(&error).unwrap_or(io::Errno::AGAIN))
        })?;
        self.state.poller.stop_on(&stop, true).map_err(ServeError::Wait)?;
        self.state.log.line(LogLevel::Info, format_args!("serving {}", self.state.tree.path().display()));
        let mut events = self.state.poller.events();
        if let Some(watchdog) = &mut self.watchdog {
            // Nobody may come for a long time: the first deadline is set here.
            watchdog.turn(clock().monotonic);
        }
        let served = loop {
            match self.turn(&mut events) {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(ServeError::Wait(error)),
            }
        };
        self.state.log.line(LogLevel::Info, format_args!("stopping"));
        self.state.poller.stop_on(&stop, false).map_err(ServeError::Wait)?;
        served
    }

    /// One turn. False when the order to stop has come.
    fn turn(&mut self, events: &mut Events) -> io::Result<bool> {
        let deadline = match (self.domain.poll_timeout(), self.paused_until) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        let told_at = self.watchdog.as_ref().and_then(Watchdog::due_at);
        let deadline = deadline.into_iter().chain(told_at).min();
        self.state.poller.wait(events, deadline)?;
        let mut goes_on = true;
        if self.may_lose_nodes() {
            self.accept_everywhere();
        }
        // Whoever hung up before the commands below were sent is gone before they are carried out.
        let mut at = 0;
        while let Some(ready) = self.state.poller.gone().get(at).copied() {
            at += 1;
            if let Some(Source::Client(id)) = ready.source(&self.state) {
                self.hang_up(id);
            }
        }
        let mut at = 0;
        while let Some(ready) = self.state.poller.ready().get(at).copied() {
            at += 1;
            goes_on &= self.serve(ready)?;
        }
        // A deadline that passes meanwhile ends the next wait at once.
        let now = self.taken_up.take().unwrap_or_else(clock);
        if self.domain.poll_timeout().is_some_and(|deadline| deadline <= now.monotonic) {
            self.domain.handle_timeout(&mut Turn::idle(&mut self.state), now);
            self.settle();
        }
        if self.paused_until.is_some_and(|until| until <= now.monotonic) {
            self.accept_again();
        }
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.turn(now.monotonic);
        }
        Ok(goes_on)
    }

    fn serve(&mut self, ready: Ready) -> io::Result<bool> {
        // Nobody, if an earlier command of this turn ended it.
        match ready.source(&self.state) {
            Some(Source::Stop) => return Ok(false),
            Some(Source::Timer) => self.state.poller.timer_fired()?,
            Some(Source::Reload) => self.take_policies(),
            Some(Source::Control) => self.accept(None),
            Some(Source::Endpoint(id)) => self.accept(Some(id)),
            Some(Source::Client(id)) => self.command(id),
            // They were before all commands.
            Some(Source::HangUps) | None => {}
        }
        Ok(true)
    }

    /// Takes in those who wait at a node, at most [`ACCEPTS`] of them.
    fn accept(&mut self, endpoint: Option<EndpointId>) {
        for _ in 0..ACCEPTS {
            let node = match endpoint {
                None => &self.state.control,
                Some(id) => match self.state.listeners.get(id.index as usize) {
                    Some(Some(listener)) => &listener.socket,
                    _ => return,
                },
            };
            match rustix::net::accept_with(node, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => self.admit(socket, endpoint),
                Err(io::Errno::INTR | io::Errno::CONNABORTED) => {}
                Err(io::Errno::AGAIN) => return,
                Err(error) => {
                    // Whoever waits is turned away with the descriptor that was kept for this.
                    drop(self.reserve.take());
                    let turned_away = rustix::net::accept_with(node, SocketFlags::CLOEXEC);
                    let done = turned_away.is_ok();
                    if let Ok(socket) = turned_away {
                        let uid = raw::peer_ids(socket.as_fd()).map_or(UNKNOWN, |peer| peer.uid);
                        drop(Foreign::client(socket, uid));
                    }
                    self.reserve = reserve();
                    self.state.log.line(
                        LogLevel::Error,
                        format_args!("a client cannot be accepted: {error}; raise the limit of descriptors"),
                    );
                    if !done || self.reserve.is_none() {
                        self.pause_accepting();
                        return;
                    }
                }
            }
        }
    }

    /// Whether somebody hung up who can own a node: a handle that never was a connection.
    fn may_lose_nodes(&self) -> bool {
        self.state.poller.gone().iter().any(|ready| match ready.source(&self.state) {
            Some(Source::Client(id)) => {
                self.state.clients.get(id).is_some_and(|client| client.bell.is_none())
            }
            _ => false,
        })
    }

    /// Takes in those who wait at any endpoint: who opened one before its owner hung up has a handle of it,
    /// and learns by its next command that the endpoint is gone.
    fn accept_everywhere(&mut self) {
        for at in 0..self.state.listeners.len() {
            if let Some(Some(listener)) = self.state.listeners.get(at) {
                let id = listener.id;
                self.accept(Some(id));
            }
        }
    }

    /// Makes a new connection a handle. Whoever cannot have one is hung up.
    fn admit(&mut self, socket: OwnedFd, endpoint: Option<EndpointId>) {
        let credentials = match identity::credentials(socket.as_fd()) {
            Ok(credentials) => credentials,
            Err(error) => {
                drop(Foreign::client(socket, UNKNOWN));
                self.state.log.line(LogLevel::Warn, format_args!("a client of unknown identity: {error}"));
                return;
            }
        };
        let Credentials { uid, pid, .. } = credentials;
        let socket = Foreign::client(socket, uid);
        if let Err(error) = self.open(socket, endpoint, credentials) {
            self.state.log.line(
                LogLevel::Warn,
                format_args!("process {pid} (uid {uid}) cannot have a handle: {error}"),
            );
        }
    }

    fn open(
        &mut self,
        socket: Foreign,
        endpoint: Option<EndpointId>,
        mut credentials: Credentials,
    ) -> Result<(), Errno> {
        let (uid, pid) = (credentials.uid, credentials.pid);
        let state = &mut self.state;
        let mut names = None;
        let process = state.proc.as_ref().and_then(|proc| {
            let process = Process::of(socket.as_fd(), pid, uid, proc)?;
            credentials.ppid = process.parent(proc);
            (credentials.spaces, names) = spaces::of(&process, proc);
            Some(process)
        });
        self.forget_gone();
        let state = &mut self.state;
        // Otherwise it would leave another one with each client that comes and goes.
        let is_crowded = state.budget.is_bound(uid) && closer::is_crowded(uid);
        if is_crowded || !state.budget.open_client(uid) {
            return Err(Errno::EMFILE);
        }
        let opened = match endpoint {
            None => self.domain.open_control(&credentials),
            Some(endpoint) => self.domain.open(endpoint, &credentials),
        };
        let id = opened.inspect_err(|_| state.budget.close_client(uid))?;
        let added = state.poller.add_client(&socket, id).map_err(errno);
        let inserted = added.and_then(|()| {
            let client = Client::new(id, socket, uid, pid, process, names);
            if state.clients.insert(client) { Ok(()) } else { Err(Errno::EMFILE) }
        });
        if inserted.is_err() {
            state.budget.close_client(uid);
            self.domain.close(&mut Turn::idle(state), clock(), id);
        } else {
            state.log.line(LogLevel::Debug, format_args!("process {pid} (uid {uid}) is {id:?}"));
        }
        inserted
    }

    /// Accepts nobody for a while.
    fn pause_accepting(&mut self) {
        self.paused_until = Some(clock().monotonic.after(PAUSE));
        self.listen(false);
    }

    fn accept_again(&mut self) {
        self.paused_until = None;
        self.reserve = self.reserve.take().or_else(reserve);
        self.listen(true);
    }

    fn listen(&mut self, on: bool) {
        let State { poller, control, listeners, log, .. } = &self.state;
        let nodes = listeners.iter().flatten().map(|node| (&node.socket, Source::Endpoint(node.id)));
        for (socket, source) in nodes.chain([(control, Source::Control)]) {
            if let Err(error) = poller.pause_listener(socket, source, !on) {
                log.line(LogLevel::Error, format_args!("a node cannot be paused or resumed: {error}"));
            }
        }
    }

    /// Carries out the next command of a client.
    fn command(&mut self, from: HandleId) {
        if self.take_packet(from) {
            self.settle();
        }
    }

    /// Closes the handle of a client that is gone, or is to go.
    pub(crate) fn hang_up(&mut self, id: HandleId) {
        self.close(id);
        self.settle();
    }

    fn close(&mut self, id: HandleId) {
        if self.state.clients.get(id).is_none() {
            return;
        }
        self.domain.close(&mut Turn::idle(&mut self.state), clock(), id);
        self.state.pending.end_all(id);
        if let Some(mut client) = self.state.clients.remove(id) {
            let lingers = client.has_unread_fds();
            self.state.poller.remove_client(&client.socket);
            for file in &client.outgoing {
                self.state.files.release(*file);
            }
            self.state.log.line(
                LogLevel::Debug,
                format_args!("process {} (uid {}) was {id:?}", client.pid, client.uid),
            );
            if lingers {
                // Its other end knows at once, as that of all others.
                let _ = shutdown(&client.socket, Shutdown::Both);
                self.state.lingering.push((client.uid, client.socket));
                self.forget_gone();
            } else {
                self.state.budget.close_client(client.uid);
            }
        }
    }

    /// Clients that were cut off count as handles of their users as long as descriptors are on their way to them.
    fn forget_gone(&mut self) {
        let State { lingering, budget, .. } = &mut self.state;
        lingering.retain(|(uid, socket)| {
            let goes = raw::is_read(socket.as_fd()) || !budget.is_bound(*uid);
            if goes {
                budget.close_client(*uid);
            }
            !goes
        });
    }

    /// Does everything that follows from what the engine was just told.
    #[inline]
    pub(crate) fn settle(&mut self) {
        let State { to_drain, doomed, to_ring, .. } = &self.state;
        let idle = to_drain.is_empty() && doomed.is_empty() && to_ring.is_empty();
        // Asked after each step of a command, and mostly one of them had something to settle.
        if !idle || self.domain.has_effects() {
            self.settle_all();
        }
    }

    fn settle_all(&mut self) {
        loop {
            while let Some(effect) = self.domain.poll_effect() {
                self.apply(effect);
            }
            // Ends: a watch that was answered here is over, and each client can be cut off once.
            if let Some(id) = self.state.to_drain.pop() {
                self.domain.handle_returns(&mut Turn::idle(&mut self.state), clock(), id);
            } else if let Some(id) = self.state.doomed.pop() {
                self.close(id);
            } else {
                break;
            }
        }
        while let Some(id) = self.state.to_ring.pop() {
            if let Some(client) = self.state.clients.get_mut(id) {
                client.ring = false;
                client.wake();
            }
        }
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Room(to) => Turn::idle(&mut self.state).notice(to),
            Effect::Answer { to, token, result } => {
                let Some(waiting) = self.state.pending.get_mut(token) else { return };
                // Most calls end so: nobody asks for the argument.
                let (serial, in_queue) = (waiting.serial, waiting.posted && !waiting.return_message);
                let told = in_queue && result.is_ok_and(|reply| self.post_reply(to, serial, reply));
                if !told {
                    self.answer_waiting(to, token, result);
                }
                self.state.pending.end(token);
            }
            // What waits at a connection was shown in its queue, and the end of one as well: both ring.
            _ => {}
        }
    }

    /// Answers a command that was waiting, with its argument.
    fn answer_waiting(&mut self, to: HandleId, token: u64, result: Result<MsgInfo, Errno>) {
        let Some(waiting) = self.state.pending.get_mut(token) else { return };
        if let Ok(reply) = &result {
            put_reply(&mut waiting.arg, reply);
        }
        let mut header = Header::new(Kind::Command, waiting.serial);
        header.number = Command::Send.request();
        header.flags |= if waiting.return_message { FLAG_RETURN_MESSAGE } else { 0 };
        header.flags |= if waiting.posted { FLAG_POSTED } else { 0 };
        // Taken out while it is sent, and put back to be used again.
        let arg = std::mem::take(&mut waiting.arg);
        let message = std::mem::take(&mut waiting.message);
        self.answer(to, &header, result.map(|_| ()), &arg, Some(&message), true);
        if let Some(waiting) = self.state.pending.get_mut(token) {
            (waiting.arg, waiting.message) = (arg, message);
        }
    }
}

impl fmt::Display for ServeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wait(error) => write!(f, "waiting for clients: {error}"),
            Self::Process(error) => error.fmt(f),
            Self::Threads(error) => write!(f, "starting a thread: {error}"),
        }
    }
}

impl std::error::Error for ServeError {}
