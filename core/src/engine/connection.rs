//! Connections: from HELLO to BYEBYE, or to whatever else ends them.

use zerocopy::{FromBytes, IntoBytes};

use crate::abi::{
    AttachFlags, CmdFree, CmdHello, Command, Creds, Errno, Frame, FrameError, HelloFlags, IdChange, ItemType,
    Pids,
};
use crate::queue::Head;
use crate::tree::{Link, Linked};
use crate::{NODE_NAME_MAX, PolicyName, WellKnownName};

use super::Domain;
use super::call::{OwnCalls, index};
use super::domain::{HandleState, chunk};
use super::host::{Clock, Credentials, HandleId, Host, Spaces};
use super::inspect::Counters;
use super::leave::Stage;
use super::limits::POLICY_NAMES_PER_CONNECTION;
use super::matches::OwnMatches;
use super::metadata::{Gathered, READ};
use super::notify::Notice;
use super::policy::{Database, Keeper, OwnPolicy, Policy};
use super::pool::{Pool, PoolHead};
use super::quota::QuotaHead;
use super::registry::place;
use super::slice::{ItemSink, Measure, SliceWriter};
use super::table::{Blank, BusIx, ConnIx, EndpointIx, HandleIx, Place, UserIx};
use super::user::Counted;
use super::watch::Watches;

/// One connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) stage: Stage,
    pub(super) id: u64,
    by_id: Link,
    pub(super) handle: HandleIx,
    /// The same, as the host knows it.
    pub(super) known_as: HandleId,
    pub(super) bus: BusIx,
    pub(super) endpoint: EndpointIx,
    pub(super) flags: HelloFlags,
    /// Owner of its bus; fixed at HELLO.
    pub(super) owner: bool,
    pub(super) user: UserIx,
    pub(super) attach_send: AttachFlags,
    pub(super) attach_recv: AttachFlags,
    pub(super) description: heapless::String<NODE_NAME_MAX>,
    /// Who sent HELLO, as queries report it.
    pub(super) identity: Credentials,
    /// Kinds in `identity` that are not true but given at HELLO.
    pub(super) faked: Option<AttachFlags>,
    pub(super) gathered: Gathered,
    pub(super) pool: PoolHead,
    pub(super) queue: Head,
    pub(super) quota: QuotaHead,
    /// Broadcasts lost since the last RECV, and ever.
    pub(super) lost: u64,
    pub(super) lost_ever: u64,
    pub(super) counters: Counters,
    pub(super) matches: OwnMatches,
    pub(super) policy: OwnPolicy,
    pub(super) calls: OwnCalls,
    pub(super) watches: Watches,
    /// The last broadcast that came by.
    pub(super) heard: u64,
    /// Neighbours on the bus.
    pub(super) next: Option<ConnIx>,
    pub(super) prev: Option<ConnIx>,
}

impl Linked for Connection {
    fn link(&self) -> &Link {
        &self.by_id
    }

    fn link_mut(&mut self) -> &mut Link {
        &mut self.by_id
    }
}

impl Blank for Connection {
    const BLANK: Self = Self {
        stage: Stage::Active,
        id: 0,
        by_id: Link::new(),
        handle: HandleIx::FIRST,
        known_as: HandleId { index: 0, generation: 0 },
        bus: BusIx::FIRST,
        endpoint: EndpointIx::FIRST,
        flags: HelloFlags::empty(),
        owner: false,
        user: UserIx::FIRST,
        attach_send: AttachFlags::empty(),
        attach_recv: AttachFlags::empty(),
        description: heapless::String::new(),
        identity: Credentials::BLANK,
        faked: None,
        gathered: Gathered::NOTHING,
        pool: PoolHead::new(),
        queue: Head::new(),
        quota: QuotaHead::new(),
        lost: 0,
        lost_ever: 0,
        counters: Counters::ZERO,
        matches: OwnMatches::NONE,
        policy: OwnPolicy::NONE,
        calls: OwnCalls::NONE,
        watches: Watches::NONE,
        heard: 0,
        next: None,
        prev: None,
    };
}

impl Connection {
    pub(super) fn is_active(&self) -> bool {
        self.stage == Stage::Active
    }

    pub(super) const fn is_ordinary(&self) -> bool {
        let special = HelloFlags::ACTIVATOR.union(HelloFlags::POLICY_HOLDER).union(HelloFlags::MONITOR);
        !self.flags.intersects(special)
    }

    pub(super) const fn is_monitor(&self) -> bool {
        self.flags.contains(HelloFlags::MONITOR)
    }

    pub(super) const fn is_activator(&self) -> bool {
        self.flags.contains(HelloFlags::ACTIVATOR)
    }

    pub(super) const fn is_policy_holder(&self) -> bool {
        self.flags.contains(HelloFlags::POLICY_HOLDER)
    }

    pub(super) const fn accepts_fds(&self) -> bool {
        self.flags.contains(HelloFlags::ACCEPT_FD)
    }

    pub(super) fn change(&self) -> IdChange {
        IdChange { id: self.id, flags: self.flags.bits() }
    }
}

/// What HELLO asks for, as far as that can be checked without the connection.
struct Wanted<'m> {
    cmd: CmdHello,
    flags: HelloFlags,
    name: Option<PolicyName<'m>>,
    attach_send: AttachFlags,
    attach_recv: AttachFlags,
    owner: bool,
    privileged: bool,
}

impl Domain<'_> {
    /// HELLO. Cost: `O(users)`, an announcement, and for an activator those of NAME_ACQUIRE.
    pub(super) fn hello(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        handle: HandleIx,
        endpoint: EndpointIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::Hello.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let wanted = self.check_hello(&frame, handle, endpoint)?;
        let (attach_send, attach_recv) = (wanted.attach_send, wanted.attach_recv);
        let (flags, owner, privileged) = (wanted.flags, wanted.owner, wanted.privileged);
        let mut cmd = wanted.cmd;
        let activated = wanted.name.filter(|_| flags.contains(HelloFlags::ACTIVATOR));
        let id = self.take_id();

        let mut identity = caller.unwrap_or(&self.handles[handle].creds).clone();
        let faked = self.fake(host, handle, &frame, &mut identity)?;
        let faked_uid = faked.filter(|kinds| kinds.contains(AttachFlags::CREDS) && privileged);
        let user = match self.endpoints[endpoint].user {
            Some(anonymous) => anonymous,
            None => match faked_uid.map(|_| identity.uid).filter(|uid| *uid != u32::MAX) {
                Some(uid) => self.user_of(uid)?,
                None => self.user_of(self.handles[handle].creds.uid)?,
            },
        };
        if let Err(error) = self.count(user, Counted::Connection) {
            self.forget_idle(user);
            return Err(error);
        }
        let description = frame.item(ItemType::CONN_DESCRIPTION).and_then(|item| item.text());
        let description = description.and_then(|text| heapless::String::try_from(text).ok());
        let conn = Connection {
            id,
            handle,
            known_as: self.handle_id(handle),
            bus: self.endpoints[endpoint].bus,
            endpoint,
            flags,
            owner,
            user,
            attach_send,
            attach_recv,
            description: description.unwrap_or_default(),
            identity,
            faked,
            ..Connection::BLANK
        };
        let conn = match self.add_connection(host, conn, cmd.pool_size) {
            Ok(conn) => conn,
            Err(error) => {
                self.discount(user, Counted::Connection);
                return Err(error);
            }
        };
        let bus = self.conns[conn].bus;
        if !flags.contains(HelloFlags::MONITOR) {
            let change = self.conns[conn].change();
            self.announce(host, at, bus, &Notice::Id { added: true, change });
        }
        let started = self.start(host, at, conn, caller, activated, &frame);
        let slice = started.and_then(|()| self.bloom_slice(host, conn));
        let (offset, items_size) = match slice {
            Ok(slice) => slice,
            Err(error) => {
                self.disconnect(host, at, conn);
                return Err(error);
            }
        };
        self.handles[handle].state = HandleState::Connected(conn);
        let bus = &self.buses[bus];
        (cmd.bus_flags, cmd.id, cmd.id128) = (bus.flags, id, bus.uuid);
        crate::event!(
            info,
            "connection {} is there, on bus {:?}, with flags {:?}",
            id,
            bus.name.as_str(),
            flags
        );
        (cmd.offset, cmd.items_size, cmd.return_flags) = (offset, items_size, 0);
        put_record(frame.bytes, &cmd);
        Ok(())
    }

    /// The checks of HELLO that come before anything is made.
    fn check_hello<'m>(
        &self,
        frame: &'m Frame<'_>,
        handle: HandleIx,
        endpoint: EndpointIx,
    ) -> Result<Wanted<'m>, Errno> {
        let cmd: CmdHello = record(frame.bytes);
        if cmd.pool_size == 0 || !cmd.pool_size.is_multiple_of(self.config.page_size) {
            return Err(Errno::EINVAL);
        }
        let flags = HelloFlags::from_bits_truncate(frame.flags);
        let kinds = flags & (HelloFlags::MONITOR | HelloFlags::ACTIVATOR | HelloFlags::POLICY_HOLDER);
        if kinds.bits().count_ones() > 1 {
            return Err(Errno::EINVAL);
        }
        let named = flags.intersects(HelloFlags::ACTIVATOR | HelloFlags::POLICY_HOLDER);
        let name = frame.item(ItemType::NAME);
        if name.is_some() != named {
            return Err(Errno::EINVAL);
        }
        let name = match name.and_then(|item| item.c_str()) {
            Some(name) => Some(PolicyName::from_bytes(name).map_err(|error| error.errno())?),
            None => None,
        };
        if flags.contains(HelloFlags::MONITOR) && self.endpoints[endpoint].custom {
            return Err(Errno::EOPNOTSUPP);
        }
        let (privileged, owner) = self.rights(endpoint, &self.handles[handle].creds);
        if !kinds.is_empty() && !owner {
            return Err(Errno::EPERM);
        }
        let fakes = [ItemType::CREDS, ItemType::PIDS, ItemType::SECLABEL];
        if !owner && frame.items().any(|item| fakes.contains(&item.kind)) {
            return Err(Errno::EPERM);
        }
        let attach_send = AttachFlags::from_command(cmd.attach_flags_send)?;
        let attach_recv = AttachFlags::from_command(cmd.attach_flags_recv)?;
        Ok(Wanted { cmd, flags, name, attach_send, attach_recv, owner, privileged })
    }

    /// Puts the credentials given in items in the place of the true ones; says which kinds were given.
    fn fake(
        &self,
        host: &mut dyn Host,
        handle: HandleIx,
        frame: &Frame<'_>,
        identity: &mut Credentials,
    ) -> Result<Option<AttachFlags>, Errno> {
        let mut faked = AttachFlags::empty();
        let space = self.handles[handle].creds.spaces;
        if let Some(creds) = frame.item(ItemType::CREDS).and_then(|item| item.record::<Creds>()) {
            // Numbers of other namespaces have no meaning here, and are not guessed at.
            let known = |id: &u32| space.users == 0 || *id == u32::MAX;
            let id = |id: u64| u32::try_from(id).ok().filter(known).ok_or(Errno::EINVAL);
            identity.uid = id(creds.uid)?;
            identity.euid = id(creds.euid)?;
            identity.suid = id(creds.suid)?;
            identity.fsuid = id(creds.fsuid)?;
            identity.gid = id(creds.gid)?;
            identity.egid = id(creds.egid)?;
            identity.sgid = id(creds.sgid)?;
            identity.fsgid = id(creds.fsgid)?;
            faked |= AttachFlags::CREDS;
        }
        if let Some(pids) = frame.item(ItemType::PIDS).and_then(|item| item.record::<Pids>()) {
            let from = self.handle_id(handle);
            let mut pid = |pid: u64| {
                let pid = u32::try_from(pid).map_err(|_| Errno::EINVAL)?;
                if pid == 0 || space.pids == 0 && host.process_exists(from, pid) {
                    Ok(pid)
                } else {
                    Err(Errno::EINVAL)
                }
            };
            (identity.pid, identity.tid, identity.ppid) = (pid(pids.pid)?, pid(pids.tid)?, pid(pids.ppid)?);
            faked |= AttachFlags::PIDS;
        }
        if let Some(label) = frame.item(ItemType::SECLABEL).and_then(|item| item.c_str()) {
            identity.label = heapless::Vec::from_slice(label).map_err(|_| Errno::ENOMEM)?;
            faked |= AttachFlags::SECLABEL;
        }
        if !faked.is_empty() {
            identity.spaces = Spaces::HOST;
        }
        Ok(Some(faked).filter(|kinds| !kinds.is_empty()))
    }

    /// Makes a connection and its pool, and puts it into every list.
    fn add_connection(
        &mut self,
        host: &mut dyn Host,
        conn: Connection,
        pool_size: u64,
    ) -> Result<ConnIx, Errno> {
        let (id, handle, bus, attach_send) = (conn.id, conn.handle, conn.bus, conn.attach_send);
        let (monitor, is_faked) = (conn.is_monitor(), conn.faked.is_some());
        let place = self.conns.insert(conn).ok_or(Errno::EMFILE)?;
        let owner = self.handle_id(handle);
        if let Err(error) = host.pool_create(owner, pool_size) {
            self.conns.remove(place);
            return Err(error);
        }
        let records = chunk(self.slice_records, place, self.config.pool_slices);
        if let Err(error) = Pool::create(&mut self.conns[place].pool, records, pool_size) {
            host.pool_destroy(owner);
            self.conns.remove(place);
            return Err(error.errno());
        }
        self.conns[place].queue = Head::new();
        self.reset_quota(place);
        if !is_faked {
            let buffer = chunk(self.info, place, self.config.info_bytes);
            // UPDATE may show more than HELLO did; what HELLO shows has the first claim to the room.
            self.conns[place].gathered.gather(host, owner, attach_send & READ, buffer);
            self.conns[place].gathered.gather(host, owner, READ, buffer);
        }
        let _ = self.ids.insert(self.conns.records, place.index(), |_, other| id.cmp(&other.item.id));
        let members = self.members(bus, monitor);
        let last = members.last.replace(place);
        match last {
            Some(last) => self.conns[last].next = Some(place),
            None => self.members(bus, monitor).first = Some(place),
        }
        self.conns[place].prev = last;
        if monitor {
            self.close_lanes_on(host, bus);
        }
        Ok(place)
    }

    /// What HELLO does once the connection is visible: the activator's name and the policy.
    fn start(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        conn: ConnIx,
        caller: Option<&Credentials>,
        activated: Option<PolicyName<'_>>,
        frame: &Frame<'_>,
    ) -> Result<(), Errno> {
        let (bus, flags) = (self.conns[conn].bus, self.conns[conn].flags);
        if let Some(name) = activated {
            // kdbus: an activator cannot stand for a pattern.
            let name =
                WellKnownName::parse(name.stem).ok().filter(|_| !name.wildcard).ok_or(Errno::EINVAL)?;
            let creds = caller.unwrap_or_else(|| self.conn_creds(conn));
            if !self.may_own(conn, creds, name.as_str()) {
                return Err(Errno::EPERM);
            }
            let names = &mut self.buses[bus].names;
            let acquired = self.names.add_activator(names, index(conn), name);
            let acquired = acquired.map_err(|error| error.errno())?;
            match acquired.change {
                Some(change) => self.name_changed(host, at, bus, &change),
                // From here on what is sent to the name may have to wait for its next owner.
                None => {
                    let name = self.names.find(&self.buses[bus].names, name.as_str().as_bytes());
                    if let Some(owner) = name.and_then(|name| self.names.owner(name)) {
                        self.close_lanes_into(host, place(owner.connection));
                    }
                }
            }
        }
        if flags.intersects(HelloFlags::ACTIVATOR | HelloFlags::POLICY_HOLDER) {
            let wildcards = !flags.contains(HelloFlags::ACTIVATOR);
            let foreign = self.has_foreign_users(self.conns[conn].handle);
            Policy::check(frame.items(), POLICY_NAMES_PER_CONNECTION, wildcards, foreign)?;
            let own = &mut self.conns[conn].policy;
            self.policy.replace(own, Keeper::Connection, Database::Bus(bus), frame.items())?;
            self.close_lanes_on(host, bus);
        }
        Ok(())
    }

    /// The slice that tells a new connection about its bus.
    fn bloom_slice(&mut self, host: &mut dyn Host, conn: ConnIx) -> Result<(u64, u64), Errno> {
        let bloom = self.buses[self.conns[conn].bus].bloom;
        let mut measure = Measure::default();
        measure.item(ItemType::BLOOM_PARAMETER, &[bloom.as_bytes()]);
        let slice = self.pool(conn).allocate(measure.len(), false).map_err(|error| error.errno())?;
        let owner = self.conns[conn].known_as;
        SliceWriter::new(host, owner, slice.offset).item(ItemType::BLOOM_PARAMETER, &[bloom.as_bytes()]);
        self.show_slice(conn, slice.id);
        let _ = self.pool(conn).release(slice.id);
        Ok((slice.offset, measure.len()))
    }

    /// UPDATE. Cost: `O(items · log of all policy entries)`.
    pub(super) fn update(&mut self, host: &mut dyn Host, conn: ConnIx, arg: &mut [u8]) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::Update.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let record = &self.conns[conn];
        let mut attach_send = record.attach_send;
        if let Some(bits) = frame.item(ItemType::ATTACH_FLAGS_SEND).and_then(|item| item.u64()) {
            if !record.is_ordinary() && !record.is_monitor() {
                return Err(Errno::EOPNOTSUPP);
            }
            attach_send = AttachFlags::from_command(bits)?;
        }
        let mut attach_recv = record.attach_recv;
        if let Some(bits) = frame.item(ItemType::ATTACH_FLAGS_RECV).and_then(|item| item.u64()) {
            if record.is_policy_holder() {
                return Err(Errno::EOPNOTSUPP);
            }
            attach_recv = AttachFlags::from_command(bits)?;
        }
        let policy = frame.items().any(|item| matches!(item.kind, ItemType::NAME | ItemType::POLICY_ACCESS));
        if policy {
            if !record.is_policy_holder() {
                return Err(Errno::EOPNOTSUPP);
            }
            let foreign = self.has_foreign_users(record.handle);
            Policy::check(frame.items(), POLICY_NAMES_PER_CONNECTION, true, foreign)?;
            let bus = record.bus;
            let own = &mut self.conns[conn].policy;
            self.policy.replace(own, Keeper::Connection, Database::Bus(bus), frame.items())?;
            self.close_lanes_on(host, bus);
        }
        if self.conns[conn].attach_recv != attach_recv {
            self.close_lanes_into(host, conn);
        }
        let record = &mut self.conns[conn];
        (record.attach_send, record.attach_recv) = (attach_send, attach_recv);
        Ok(())
    }

    /// FREE. Cost: `O(log of the pool's slices)`.
    pub(super) fn free(&mut self, host: &mut dyn Host, conn: ConnIx, arg: &mut [u8]) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::Free.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let cmd: CmdFree = record(frame.bytes);
        self.drain(host, conn);
        self.pool(conn).free(cmd.offset).map_err(|error| error.errno())?;
        self.made_room(host, conn);
        Ok(())
    }

    /// The connection with that id on a bus, whatever its kind, in `O(log connections)`.
    pub(super) fn find_connection(&self, bus: BusIx, id: u64) -> Option<ConnIx> {
        let found = self.ids.find(self.conns.records, |_, record| record.item.id.cmp(&id))?;
        let conn = ConnIx::new(found);
        (self.conns[conn].bus == bus).then_some(conn)
    }

    /// Whether who opened a handle counts users otherwise than the host.
    pub(super) fn has_foreign_users(&self, handle: HandleIx) -> bool {
        self.handles[handle].creds.spaces.users != 0
    }

    pub(super) fn members(&mut self, bus: BusIx, monitor: bool) -> &mut super::bus::Members {
        let bus = &mut self.buses[bus];
        if monitor { &mut bus.monitors } else { &mut bus.members }
    }
}

/// The fixed part of an argument that passed its framing.
pub(super) fn record<T: FromBytes + Default>(bytes: &[u8]) -> T {
    T::read_from_prefix(bytes).map(|(record, _)| record).unwrap_or_default()
}

/// Writes the fixed part of an argument back.
pub(super) fn put_record<T: IntoBytes + zerocopy::Immutable>(bytes: &mut [u8], record: &T) {
    let _ = record.write_to_prefix(bytes);
}
