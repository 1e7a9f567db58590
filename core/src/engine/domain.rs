//! A domain: handles, buses and everything on them, driven by a host.

use core::fmt;

use crate::abi::{Command, Errno, RecvFlags};
use crate::queue::{Node, PriorityQueue};
use crate::tree::Root;

use super::Config;
use super::bus::Bus;
use super::call::Call;
use super::connection::Connection;
use super::deliver::Message;
use super::effect::{Dirty, Pending};
use super::endpoint::Endpoint;
use super::files::Files;
use super::host::{Arrival, Clock, Credentials, EndpointId, HandleId, Host, Outcome, Readiness, Request};
use super::lanes::BesideLanes;
use super::matches::Matches;
use super::metadata::Gathered;
use super::names::NameTable;
use super::policy::Policy;
use super::pool::{Pool, SliceRecord};
use super::quota::UserRecord;
use super::reply::ReplyTable;
use super::table::{Blank, BusIx, CallIx, ConnIx, EndpointIx, HandleIx, Place, Table, UserIx, WatchIx};
use super::user::User;
use super::watch::Watch;

/// What a handle is.
#[derive(Clone, Copy, Debug)]
pub(super) enum HandleState {
    /// The control file, not used yet.
    Control,
    /// The file of an endpoint, not used yet.
    Endpoint(EndpointId),
    /// It made this bus.
    BusOwner(BusIx),
    /// It made this endpoint.
    EndpointOwner(EndpointId),
    /// It is this connection.
    Connected(ConnIx),
    /// It was a connection, and one that may leave on its own or not.
    Disconnected { ordinary: bool },
}

/// One open file of a domain.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) state: HandleState,
    /// Who opened it.
    pub(super) creds: Credentials,
    pub(super) dirty: Dirty,
}

impl Blank for Handle {
    const BLANK: Self = Self { state: HandleState::Control, creds: Credentials::BLANK, dirty: Dirty::CLEAN };
}

/// How a command goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Pending,
}

/// Kernel message buses that share one set of ids, users and limits, and the memory of all of them.
///
/// A domain is what one mounted `kdbusfs` was. It does no input or output: a host brings each command with
/// [`handle`](Self::handle), the passing of time with [`handle_timeout`](Self::handle_timeout), and then
/// carries out what [`poll_effect`](Self::poll_effect) returns.
pub struct Domain<'s> {
    pub(super) config: Config,
    pub(super) handles: Table<'s, HandleIx, Handle>,
    pub(super) buses: Table<'s, BusIx, Bus>,
    pub(super) endpoints: Table<'s, EndpointIx, Endpoint>,
    pub(super) users: Table<'s, UserIx, User>,
    pub(super) conns: Table<'s, ConnIx, Connection>,
    /// Connections by id.
    pub(super) ids: Root,
    pub(super) queue_nodes: &'s mut [Node<Message>],
    pub(super) slice_records: &'s mut [SliceRecord],
    pub(super) user_records: &'s mut [UserRecord],
    pub(super) names: NameTable<'s>,
    pub(super) replies: ReplyTable<'s>,
    pub(super) matches: Matches<'s>,
    pub(super) policy: Policy<'s>,
    pub(super) files: Files<'s>,
    pub(super) calls: Table<'s, CallIx, Call>,
    pub(super) watches: Table<'s, WatchIx, Watch>,
    /// What queries report of processes, a piece for each connection and bus.
    pub(super) info: &'s mut [u8],
    /// What the message at hand reports of its sender.
    pub(super) scratch: &'s mut [u8],
    pub(super) gathered: Gathered,
    /// What the command under way has to do with lanes.
    pub(super) beside: BesideLanes,
    pub(super) pending: Pending,
    /// The bus' own place among the users.
    pub(super) kernel: UserIx,
    pub(super) last_id: u64,
    pub(super) last_key: u64,
}

impl fmt::Debug for Domain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("handles", &self.handles.len())
            .field("buses", &self.buses.len())
            .field("connections", &self.conns.len())
            .finish_non_exhaustive()
    }
}

impl<'s> Domain<'s> {
    /// Opens the control file. `O(1)`.
    ///
    /// # Errors
    ///
    /// `EMFILE` if no handle is free.
    pub fn open_control(&mut self, opener: &Credentials) -> Result<HandleId, Errno> {
        self.open_handle(HandleState::Control, opener)
    }

    /// Opens the file of an endpoint. `O(1)`. Whether `opener` may do so is up to the node's mode.
    ///
    /// # Errors
    ///
    /// `ESHUTDOWN` if the endpoint is gone, `EMFILE` if no handle is free.
    pub fn open(&mut self, endpoint: EndpointId, opener: &Credentials) -> Result<HandleId, Errno> {
        self.live_endpoint(endpoint)?;
        self.open_handle(HandleState::Endpoint(endpoint), opener)
    }

    /// The endpoint with that name on the bus with that name, in `O(endpoints)`.
    #[must_use]
    pub fn endpoint(&self, bus: &str, endpoint: &str) -> Option<EndpointId> {
        let found = self.endpoints.iter().find(|(_, record)| {
            record.name.as_str() == endpoint && self.buses[record.bus].name.as_str() == bus
        });
        found.map(|(place, _)| self.endpoint_id(place))
    }

    /// Carries out one command; what the bus reports stands in the request's argument afterwards.
    ///
    /// Its cost is that of the command. Effects may wait afterwards.
    pub fn handle(&mut self, host: &mut dyn Host, arrival: Arrival<'_>) -> Outcome {
        let Arrival { at, from, caller, request } = arrival;
        let request_number = request.number;
        match self.dispatch(host, at, from, caller, request) {
            Ok(Progress::Done) => Outcome::Done(Ok(())),
            Ok(Progress::Pending) => Outcome::Pending,
            Err(error) => {
                self.log_refusal(from, request_number, error);
                Outcome::Done(Err(error))
            }
        }
    }

    /// Carries out a command as [`handle`](Self::handle), of a client that exchanges messages past the bus too.
    pub fn handle_beside_lanes(
        &mut self,
        host: &mut dyn Host,
        arrival: Arrival<'_>,
        beside: BesideLanes,
    ) -> Outcome {
        self.beside = beside;
        let outcome = self.handle(host, arrival);
        self.beside = BesideLanes::default();
        outcome
    }

    /// Closes a handle, with all that lives by it: a connection, an endpoint or a bus.
    ///
    /// Nothing happens for a handle that is closed already.
    pub fn close(&mut self, host: &mut dyn Host, at: Clock, handle: HandleId) {
        let Some(place) = self.handles.find(handle.index, handle.generation) else {
            return;
        };
        match self.handles[place].state {
            HandleState::BusOwner(bus) => self.remove_bus(host, at, bus),
            HandleState::EndpointOwner(endpoint) => {
                if let Ok(endpoint) = self.live_endpoint(endpoint) {
                    self.remove_endpoint(host, at, endpoint);
                }
            }
            HandleState::Connected(conn) => self.disconnect(host, at, conn),
            HandleState::Control | HandleState::Endpoint(_) | HandleState::Disconnected { .. } => {}
        }
        self.unlist(place);
        self.handles.remove(place);
    }

    /// What `poll` reports for a handle; hung up for one that is closed. `O(1)`.
    #[must_use]
    pub fn readiness(&self, handle: HandleId) -> Readiness {
        let hung_up = Readiness { hung_up: true, ..Readiness::default() };
        let Some(place) = self.handles.find(handle.index, handle.generation) else {
            return hung_up;
        };
        match self.handles[place].state {
            HandleState::Connected(conn) if self.conns[conn].is_active() => {
                let conn = &self.conns[conn];
                Readiness {
                    readable: !conn.queue.is_empty() || conn.lost > 0,
                    writable: true,
                    hung_up: false,
                }
            }
            _ => hung_up,
        }
    }

    /// Receives the message in `slot` whose key is `key`, instead of the one that RECV would choose.
    ///
    /// `arg` is the argument of a RECV; its flags are overruled by `flags`, of which `USE_PRIORITY` has no
    /// meaning here. A client that merges several queues uses this for the one it has chosen.
    ///
    /// # Errors
    ///
    /// As RECV; `EAGAIN` if no such message waits.
    #[expect(clippy::too_many_arguments, reason = "a command and the entry it is about")]
    pub fn receive_entry(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        handle: HandleId,
        slot: u32,
        key: u64,
        flags: RecvFlags,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let conn = self.connected(handle)?;
        self.receive(host, at, conn, Some((slot, key, flags)), arg)
    }

    /// Applies what a client did to its queue and pool in shared memory.
    pub fn handle_returns(&mut self, host: &mut dyn Host, at: Clock, handle: HandleId) {
        // Nothing that a client does to its own queue and pool depends on the time.
        let _ = at;
        if let Ok(conn) = self.connected(handle) {
            self.drain(host, conn);
        }
    }

    /// The active connection behind a handle.
    pub(super) fn connected(&self, handle: HandleId) -> Result<ConnIx, Errno> {
        let place = self.handles.find(handle.index, handle.generation).ok_or(Errno::EBADF)?;
        match self.handles[place].state {
            HandleState::Connected(conn) if self.conns[conn].is_active() => Ok(conn),
            HandleState::Connected(_) | HandleState::Disconnected { .. } => Err(Errno::ECONNRESET),
            _ => Err(Errno::EBADFD),
        }
    }

    /// The next id of a bus or connection.
    pub(super) const fn take_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// The queue of a connection.
    pub(super) fn queue(&mut self, conn: ConnIx) -> PriorityQueue<'_, Message> {
        let depth = self.config.queue_depth;
        let nodes = chunk(self.queue_nodes, conn, depth);
        PriorityQueue::new(&mut self.conns[conn].queue, nodes)
    }

    /// The pool of a connection.
    pub(super) fn pool(&mut self, conn: ConnIx) -> Pool<'_> {
        let records = chunk(self.slice_records, conn, self.config.pool_slices);
        Pool::new(&mut self.conns[conn].pool, records)
    }

    fn open_handle(&mut self, state: HandleState, opener: &Credentials) -> Result<HandleId, Errno> {
        let handle = Handle { state, creds: opener.clone(), dirty: Dirty::CLEAN };
        let place = self.handles.insert(handle).ok_or(Errno::EMFILE)?;
        Ok(self.handle_id(place))
    }

    /// Messages that find no room, and receives that find none, are everyday; other refusals are of interest.
    fn log_refusal(&self, from: HandleId, number: u32, error: Errno) {
        match Command::from_request(number) {
            Some(command @ (Command::Send | Command::Recv | Command::Free)) => {
                crate::event!(trace, "{:?} of {:?} is refused: {:?}", command, from, error);
            }
            command => crate::event!(debug, "{:?} of {:?} is refused: {:?}", command, from, error),
        }
    }

    /// Finds out whether a handle takes a command, in the order that decides which refusal is reported.
    fn dispatch(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        from: HandleId,
        caller: Option<&Credentials>,
        request: Request<'_>,
    ) -> Result<Progress, Errno> {
        let handle = self.handles.find(from.index, from.generation).ok_or(Errno::EBADF)?;
        let command = Command::from_request(request.number).ok_or(Errno::ENOTTY)?;
        let state = self.handles[handle].state;
        if matches!(command, Command::BusMake | Command::EndpointMake | Command::Hello) {
            let arg = request.arg;
            return match state {
                HandleState::Control if command == Command::BusMake => {
                    self.bus_make(host, handle, caller, arg)
                }
                HandleState::Control => Err(Errno::EBADFD),
                HandleState::Endpoint(endpoint) => {
                    let endpoint = self.live_endpoint(endpoint)?;
                    match command {
                        Command::Hello => self.hello(host, at, handle, endpoint, caller, arg),
                        Command::EndpointMake => self.endpoint_make(host, handle, endpoint, caller, arg),
                        _ => Err(Errno::EBADFD),
                    }
                }
                _ => Err(Errno::EBADFD),
            }
            .map(|()| Progress::Done);
        }
        match state {
            HandleState::EndpointOwner(endpoint) => {
                let endpoint = self.live_endpoint(endpoint)?;
                if command != Command::EndpointUpdate {
                    return Err(Errno::EBADFD);
                }
                self.endpoint_update(handle, endpoint, request.arg)?;
                Ok(Progress::Done)
            }
            HandleState::Connected(conn) => self.command(host, at, conn, caller, command, request),
            // kdbus: BYEBYE alone looks at kind and framing before it finds nobody.
            HandleState::Disconnected { ordinary } if command == Command::Byebye => {
                Self::byebye_again(ordinary, request.arg).map(|()| Progress::Done)
            }
            HandleState::Disconnected { .. } => Err(Errno::ECONNRESET),
            HandleState::Control | HandleState::Endpoint(_) | HandleState::BusOwner(_) => Err(Errno::EBADFD),
        }
    }

    /// Carries out a command of a connection, if its kind has that command.
    fn command(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        caller: Option<&Credentials>,
        command: Command,
        request: Request<'_>,
    ) -> Result<Progress, Errno> {
        let record = &self.conns[conn];
        if !record.is_active() {
            return Err(Errno::ECONNRESET);
        }
        let arg = request.arg;
        // kdbus: the kind is looked at before the argument, but for UPDATE.
        let allowed = match command {
            Command::Send
            | Command::NameAcquire
            | Command::NameRelease
            | Command::MatchAdd
            | Command::MatchRemove
            | Command::Byebye => record.is_ordinary(),
            Command::Recv | Command::Free => !record.is_policy_holder(),
            Command::EndpointUpdate => return Err(Errno::EBADFD),
            _ => true,
        };
        if !allowed {
            return Err(Errno::EOPNOTSUPP);
        }
        match command {
            Command::Send => return self.send(host, at, conn, caller, arg, request.message, request.token),
            Command::Recv => self.receive(host, at, conn, None, arg),
            Command::Free => self.free(host, conn, arg),
            Command::NameAcquire => self.name_acquire(host, at, conn, caller, arg),
            Command::NameRelease => self.name_release(host, at, conn, arg),
            Command::MatchAdd => self.match_add(conn, arg),
            Command::MatchRemove => self.match_remove(conn, arg),
            Command::Byebye => self.byebye(host, at, conn, arg),
            Command::Update => self.update(host, conn, arg),
            Command::ConnInfo => self.conn_info(host, conn, caller, arg),
            Command::BusCreatorInfo => self.bus_creator_info(host, conn, arg),
            Command::List => self.list(host, conn, caller, arg),
            Command::BusMake | Command::EndpointMake | Command::Hello | Command::EndpointUpdate => {
                Err(Errno::EBADFD)
            }
        }
        .map(|()| Progress::Done)
    }
}

/// The part of a block that belongs to one record of a table.
pub(super) fn chunk<P: Place, T>(block: &mut [T], place: P, len: usize) -> &mut [T] {
    let start = place.index() as usize * len;
    block.get_mut(start..start + len).unwrap_or_default()
}

/// As [`chunk`], to read.
pub(super) fn chunk_ref<P: Place, T>(block: &[T], place: P, len: usize) -> &[T] {
    let start = place.index() as usize * len;
    block.get(start..start + len).unwrap_or_default()
}

#[cfg(test)]
#[path = "domain_tests.rs"]
mod tests;
