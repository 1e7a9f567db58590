//! What the engine needs of its surroundings: pools, files, nodes, and what a client sees of its queue.

use kdbus_core::Instant;
use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::channel::terms::Terms;
use kdbus_core::channel::{Answer, InboxLayout};
use kdbus_core::engine::{
    EndpointId, Entry, FileId, FileKind, HandleId, Host, Id, LaneGrant, Lanes, NoLane, Node, Return,
};
use kdbus_linux::local::wire::{FDS_MAX, Payload};
use rustix::net::{Shutdown, shutdown};
use rustix::process::{Pid, test_kill_process};
use rustix::rand::{GetRandomFlags, getrandom};

use crate::budget::Budget;
use crate::clients::{Clients, Pending, Shared, errno};
use crate::closer::Batch;
use crate::config::LogLevel;
use crate::files::{self, Files};
use crate::identity::Proc;
use crate::lanes::LaneTable;
use crate::log::Log;
use crate::poller::{Current, Poller, Source, clock, realtime};
use crate::raw::Foreign;
use crate::tree::{Access, Tree};

/// Name of the endpoint that comes and goes with its bus.
const DEFAULT_ENDPOINT: &str = "bus";

/// The socket of an endpoint node.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) id: EndpointId,
    pub(crate) socket: Foreign,
}

/// Everything of the daemon but the engine and the packet at hand.
pub(crate) struct State {
    pub(crate) tree: Tree,
    pub(crate) control: Foreign,
    pub(crate) listeners: Box<[Option<Listener>]>,
    pub(crate) clients: Clients,
    /// Users and sockets of those who were cut off and have not read the descriptors that they were sent.
    pub(crate) lingering: Vec<(u32, Foreign)>,
    /// Descriptors that may be on their way to one client.
    pub(crate) unread_most: usize,
    pub(crate) pending: Pending,
    pub(crate) files: Files,
    pub(crate) budget: Budget,
    pub(crate) poller: Poller,
    pub(crate) proc: Option<Proc>,
    pub(crate) log: Log,
    pub(crate) layout: InboxLayout,
    pub(crate) lanes: LaneTable,
    pub(crate) largest_pool: u64,
    /// Clients whose bell is to be rung.
    pub(crate) to_ring: Vec<HandleId>,
    /// Clients whose returns the engine has to look at.
    pub(crate) to_drain: Vec<HandleId>,
    /// Clients to be cut off.
    pub(crate) doomed: Vec<HandleId>,
}

impl State {
    /// Remembers that a client's bell is to be rung.
    pub(crate) fn ring(&mut self, id: HandleId) {
        if let Some(client) = self.clients.get_mut(id)
            && !client.ring
        {
            client.ring = true;
            self.to_ring.push(id);
        }
    }

    /// Remembers that a client is to be cut off, and says why.
    pub(crate) fn doom(&mut self, id: HandleId, why: impl std::fmt::Display) {
        if let Some(client) = self.clients.get_mut(id)
            && !client.doomed
        {
            client.doomed = true;
            self.doomed.push(id);
            self.log.line(
                LogLevel::Warn,
                format_args!("process {} (uid {}) is cut off: {why}", client.pid, client.uid),
            );
        }
    }

    /// Tells a client at its shared queue how a command has ended, and wakes it. False if it has none any more, which it sees.
    pub(crate) fn post(&mut self, to: HandleId, serial: u64, answer: Answer) -> bool {
        let Some(client) = self.clients.get_mut(to) else { return false };
        let Some(shared) = &mut client.shared else { return false };
        if shared.inbox.answer(serial, answer) {
            client.wake();
        }
        true
    }

    fn inbox(&mut self, id: HandleId, act: impl FnOnce(&mut Shared) -> bool) {
        if self.clients.get_mut(id).and_then(|client| client.shared.as_mut()).is_some_and(act) {
            self.ring(id);
        }
    }
}

impl Current for &State {
    fn endpoint(&self, index: u32) -> Option<EndpointId> {
        Some(self.listeners.get(index as usize)?.as_ref()?.id)
    }

    fn client(&self, index: u32) -> Option<HandleId> {
        self.clients.at(index)
    }
}

/// The daemon while the engine carries out one command.
pub(crate) struct Turn<'a> {
    pub(crate) state: &'a mut State,
    /// Payload of the command.
    pub(crate) payload: Payload<'a>,
    /// Descriptors of the command that were not pinned yet, by place.
    pub(crate) fds: &'a mut [Option<Foreign>],
    /// Those that were.
    pub(crate) pinned: &'a mut [Option<(FileId, FileKind)>],
    /// Who sent it.
    pub(crate) from: Option<HandleId>,
    /// The call by lane that it may answer: number of the lane, and what names the call.
    pub(crate) past: Option<(u32, u64)>,
    /// Whether it has ended that.
    pub(crate) claimed: bool,
}

impl<'a> Turn<'a> {
    /// The daemon while nobody's command is carried out.
    pub(crate) const fn idle(state: &'a mut State) -> Self {
        let (fds, pinned) = (&mut [], &mut []);
        Self { state, payload: Payload::Inline(&[]), fds, pinned, from: None, past: None, claimed: false }
    }

    fn pool(&mut self, owner: HandleId, write: impl FnOnce(&mut Shared) -> bool) {
        let client = self.state.clients.get_mut(owner);
        let written = client.and_then(|client| client.shared.as_mut()).is_some_and(write);
        debug_assert!(written, "the engine stays within the pools that it had made");
    }
}

/// Descriptors of a packet by place, until something pins them.
pub(crate) type Places = heapless::Vec<Option<Foreign>, FDS_MAX>;

/// Moves the descriptors of a packet to empty `places`, the staging file aside. No more than [`FDS_MAX`] pass the
/// check of a packet.
pub(crate) fn take_places(fds: &mut Batch, places: &mut Places) {
    while let Some(fd) = fds.fds.pop() {
        let _ = places.push(Some(Foreign::new(fd, fds.uid)));
    }
    places.reverse();
}

impl Host for Turn<'_> {
    fn pool_create(&mut self, owner: HandleId, size: u64) -> Result<(), Errno> {
        let state = &mut *self.state;
        let client = state.clients.get_mut(owner).ok_or(Errno::ENOMEM)?;
        if size > state.largest_pool || !state.budget.take_pool(client.uid, size) {
            state.log.line(
                LogLevel::Warn,
                format_args!("no pool of {size} bytes for process {} (uid {})", client.pid, client.uid),
            );
            return Err(Errno::ENOMEM);
        }
        match Shared::new(size, state.layout) {
            Ok((shared, bell, hello)) => {
                client.shared = Some(shared);
                client.bell = Some(bell);
                client.hello = hello.into_iter().collect();
                Ok(())
            }
            Err(error) => {
                state.budget.give_pool(client.uid, size);
                Err(errno(error))
            }
        }
    }

    fn pool_destroy(&mut self, owner: HandleId) {
        self.state.lanes.remove(owner);
        let Some(client) = self.state.clients.get_mut(owner) else {
            return;
        };
        if let Some(mut shared) = client.shared.take() {
            let (uid, size) = (client.uid, shared.pool.len());
            // The bell stays until the handle is closed: its end means that the daemon is gone.
            let ring = shared.inbox.end();
            client.hello.clear();
            self.state.budget.give_pool(uid, size);
            if ring {
                self.state.ring(owner);
            }
        }
    }

    fn pool_write(&mut self, owner: HandleId, offset: u64, bytes: &[u8]) {
        self.pool(owner, |shared| shared.pool.write(offset, bytes).is_ok());
    }

    fn pool_zero(&mut self, owner: HandleId, offset: u64, len: u64) {
        self.pool(owner, |shared| shared.pool.zero(offset, len).is_ok());
    }

    fn pool_copy(&mut self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, len: u64) {
        if from == to {
            self.pool(to, |shared| shared.pool.copy_within(from_offset, to_offset, len).is_ok());
            return;
        }
        let copied = self.state.clients.get_two(from, to).and_then(|(from, to)| {
            let (from, to) = (from.shared.as_ref()?, to.shared.as_mut()?);
            to.pool.copy_from(to_offset, &from.pool, from_offset, len).ok()
        });
        debug_assert!(copied.is_some(), "the engine stays within the pools that it had made");
    }

    fn payload(
        &mut self,
        to: HandleId,
        offset: u64,
        _address: u64,
        skip: u64,
        len: u64,
    ) -> Result<(), Errno> {
        let end = skip.checked_add(len).ok_or(Errno::EFAULT)?;
        match self.payload {
            Payload::Inline(bytes) => {
                let range = usize::try_from(skip).ok().zip(usize::try_from(end).ok());
                let bytes = range.and_then(|(start, end)| bytes.get(start..end)).ok_or(Errno::EFAULT)?;
                self.pool_write(to, offset, bytes);
                Ok(())
            }
            Payload::Staged(size) => {
                let from = self.from.filter(|_| end <= size).ok_or(Errno::EFAULT)?;
                // Read in place of the client, which may be the receiver too: its file is put back below.
                let sender = self.state.clients.get_mut(from).ok_or(Errno::EFAULT)?;
                let file = sender.staging.take().ok_or(Errno::EFAULT)?;
                let shared = self.state.clients.get_mut(to).and_then(|client| client.shared.as_mut());
                let filled = match shared {
                    Some(shared) => shared.pool.fill_from(offset, &file, skip, len).map_err(errno),
                    None => Err(Errno::EFAULT),
                };
                if let Some(sender) = self.state.clients.get_mut(from) {
                    sender.staging = Some(file);
                }
                filled
            }
        }
    }

    fn import(&mut self, _from: HandleId, fd: i32) -> Result<(FileId, FileKind), Errno> {
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        // A descriptor may stand in several items.
        if let Some((id, kind)) = self.pinned.get(at).copied().flatten()
            && self.state.files.retain(id)
        {
            return Ok((id, kind));
        }
        let file = self.fds.get_mut(at).and_then(Option::take).ok_or(Errno::EBADF)?;
        let kind = files::kind(rustix::fd::AsFd::as_fd(&file));
        let id = self.state.files.insert(file).map_err(|file| {
            drop(file);
            Errno::EMFILE
        })?;
        if let Some(place) = self.pinned.get_mut(at) {
            *place = Some((id, kind));
        }
        Ok((id, kind))
    }

    fn check_cancel(&mut self, _from: HandleId, fd: i32) -> Result<(), Errno> {
        // The client waits for it itself; here it only has to be a descriptor.
        let at = usize::try_from(fd).map_err(|_| Errno::EBADF)?;
        self.fds.get(at).and_then(Option::as_ref).map(|_| ()).ok_or(Errno::EBADF)
    }

    fn id_seen(&mut self, by: HandleId, id: Id) -> Option<u32> {
        self.state.clients.get_mut(by)?.names.as_ref()?.name(id)
    }

    fn end_past_call(&mut self) -> bool {
        let (past, from) = (self.past.take(), self.from);
        let ended =
            past.zip(from).is_some_and(|((lane, call), from)| self.state.lanes.claim(lane, from, call));
        self.claimed |= ended;
        ended
    }

    fn process_exists(&mut self, _from: HandleId, pid: u32) -> bool {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        pid.is_some_and(|pid| test_kill_process(pid) != Err(rustix::io::Errno::SRCH))
    }

    fn install(&mut self, to: HandleId, file: FileId) -> Option<i32> {
        let client = self.state.clients.get_mut(to)?;
        let at = i32::try_from(client.outgoing.len()).ok()?;
        if client.outgoing.is_full() || !self.state.files.retain(file) {
            return None;
        }
        client.outgoing.push(file).ok()?;
        Some(at)
    }

    fn release(&mut self, file: FileId) {
        self.state.files.release(file);
    }

    fn node_create(&mut self, node: Node<'_>) -> Result<(), Errno> {
        let state = &mut *self.state;
        let access = Access { uid: node.uid, gid: node.gid, mode: node.mode };
        let socket = if node.endpoint == DEFAULT_ENDPOINT {
            state.tree.make_bus(node.bus, node.endpoint, &access)
        } else {
            state.tree.make_endpoint(node.bus, node.endpoint, &access)
        };
        // Who connects fills it, and closing it is up to whom the node belongs to.
        let socket = Foreign::new(socket.map_err(errno)?, node.uid);
        let added = state.poller.add_listener(&socket, Source::Endpoint(node.id)).map_err(errno);
        let place = state.listeners.get_mut(node.id.index as usize).ok_or(Errno::ENOMEM);
        match (added, place) {
            (Ok(()), Ok(place)) => {
                *place = Some(Listener { id: node.id, socket });
                state.log.line(
                    LogLevel::Info,
                    format_args!("{}/{} is there, for uid {}", node.bus, node.endpoint, node.uid),
                );
                Ok(())
            }
            (Err(error), _) | (_, Err(error)) => {
                self.node_remove(node);
                Err(error)
            }
        }
    }

    fn node_remove(&mut self, node: Node<'_>) {
        let state = &mut *self.state;
        if let Some(place) = state.listeners.get_mut(node.id.index as usize)
            && let Some(listener) = place.take_if(|listener| listener.id == node.id)
        {
            // Whoever waits to be accepted learns that the endpoint is gone even if closing takes its time.
            state.poller.remove_listener(&listener.socket);
            let _ = shutdown(&listener.socket, Shutdown::Both);
        }
        let removed = if node.endpoint == DEFAULT_ENDPOINT {
            state.tree.remove_bus(node.bus)
        } else {
            state.tree.remove_endpoint(node.bus, node.endpoint)
        };
        match removed {
            Ok(()) => state.log.line(LogLevel::Info, format_args!("{}/{} is gone", node.bus, node.endpoint)),
            // Nobody serves it any more; the next daemon clears it away.
            Err(error) => state.log.line(
                LogLevel::Error,
                format_args!("{}/{} cannot be removed: {error}", node.bus, node.endpoint),
            ),
        }
    }

    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // Never short for so few bytes; before the kernel's generator is ready, it waits, once, at boot.
        let _ = getrandom(&mut bytes, GetRandomFlags::empty());
        bytes
    }

    fn realtime(&mut self, _read: u64) -> u64 {
        realtime()
    }

    fn metadata(&mut self, from: HandleId, kind: AttachFlags, buffer: &mut [u8]) -> Option<usize> {
        let process = self.state.clients.get(from)?.process.as_ref()?;
        process.metadata(self.state.proc.as_ref()?, kind, buffer)
    }

    fn publish(&mut self, to: HandleId, entry: Entry) -> bool {
        self.state.inbox(to, |shared| shared.inbox.publish(&entry));
        true
    }

    fn retract(&mut self, to: HandleId, entry: Entry) -> bool {
        let shared = self.state.clients.get_mut(to).and_then(|client| client.shared.as_mut());
        shared.is_none_or(|shared| shared.inbox.retract(&entry))
    }

    fn poll_return(&mut self, of: HandleId) -> Option<Return> {
        let mut found = [Return::Freed(0)];
        (self.poll_returns(of, &mut found) == 1).then_some(found[0])
    }

    fn poll_returns(&mut self, of: HandleId, returns: &mut [Return]) -> usize {
        let shared = self.state.clients.get_mut(of).and_then(|client| client.shared.as_mut());
        let Some(inbox) = shared.map(|shared| &mut shared.inbox) else {
            return 0;
        };
        let count = inbox.poll_returns(returns);
        // None comes from a broken ring.
        if count < returns.len() && inbox.is_violated() {
            self.state.doom(of, "its return ring is broken");
        }
        count
    }

    fn watch_returns(&mut self, of: HandleId, watch: bool) {
        let shared = self.state.clients.get_mut(of).and_then(|client| client.shared.as_mut());
        if shared.is_some_and(|shared| shared.inbox.watch_returns(watch)) {
            self.state.to_drain.push(of);
        }
    }

    fn lost(&mut self, to: HandleId, total: u64) {
        self.state.inbox(to, |shared| shared.inbox.lost(total));
    }

    fn lane_open(&mut self, grant: LaneGrant, terms: &Terms<'_>) -> Result<(), NoLane> {
        let no_place = self.state.clients.get(grant.from).is_some_and(|client| client.no_place);
        self.state.lanes.give(grant, terms, !no_place)
    }

    fn lanes_close(&mut self, which: Lanes) -> Instant {
        let State { lanes, clients, to_ring, .. } = &mut *self.state;
        // A sender that died before it rang has left messages of which nobody else tells.
        lanes.close(which, |receiver| {
            if let Some(client) = clients.get_mut(receiver)
                && client.shared.as_mut().is_some_and(|shared| shared.inbox.notice())
                && !client.ring
            {
                client.ring = true;
                to_ring.push(receiver);
            }
        });
        if lanes.is_off() { Instant::ZERO } else { clock().monotonic }
    }

    fn lanes_retire(&mut self, of: HandleId) -> bool {
        self.state.lanes.retire(of)
    }
}

impl Turn<'_> {
    /// Tells a client that something it waited for is there.
    pub(crate) fn notice(&mut self, to: HandleId) {
        self.state.inbox(to, |shared| shared.inbox.notice());
    }
}
