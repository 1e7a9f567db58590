//! Buses: made on the control file, gone with the handle that made them.

use crate::NODE_NAME_MAX;
use crate::NodeName;
use crate::abi::{AttachFlags, BloomParameter, Command, Errno, Frame, FrameError, ItemType, MakeFlags};

use super::Domain;
use super::domain::HandleState;
use super::endpoint::Endpoint;
use super::host::{Clock, Credentials, Host, Node};
use super::limits::{BLOOM_MAX, BLOOM_MIN};
use super::metadata::{Gathered, READ};
use super::names::BusNames;
use super::policy::OwnPolicy;
use super::table::{Blank, BusIx, ConnIx, EndpointIx, HandleIx, Place, UserIx};
use super::user::Counted;

/// The name of the endpoint that every bus has.
pub(super) const DEFAULT_ENDPOINT: &str = "bus";

/// Connections of one bus, in order of their ids.
#[derive(Clone, Copy, Debug)]
pub(super) struct Members {
    pub(super) first: Option<ConnIx>,
    pub(super) last: Option<ConnIx>,
}

/// One bus.
#[derive(Debug)]
pub(super) struct Bus {
    pub(super) name: heapless::String<NODE_NAME_MAX>,
    pub(super) id: u64,
    pub(super) uuid: [u8; 16],
    pub(super) flags: u64,
    pub(super) bloom: BloomParameter,
    /// Effective user of the creator, who owns its nodes.
    pub(super) uid: u32,
    /// Metadata of the creator that everybody may see.
    pub(super) shown: AttachFlags,
    pub(super) creator: Credentials,
    pub(super) gathered: Gathered,
    user: UserIx,
    pub(super) default_endpoint: EndpointIx,
    pub(super) seqnum: u64,
    /// What its maker's host has set by itself, besides its policy holders.
    pub(super) policy: OwnPolicy,
    /// A lane was opened on it.
    pub(super) had_lanes: bool,
    pub(super) names: BusNames,
    /// Every connection but the monitors.
    pub(super) members: Members,
    pub(super) monitors: Members,
    /// It is being removed: nobody is told of anything any more.
    pub(super) dying: bool,
}

impl Blank for Bus {
    const BLANK: Self = Self {
        name: heapless::String::new(),
        id: 0,
        uuid: [0; 16],
        flags: 0,
        bloom: BloomParameter { size: 0, n_hash: 0 },
        uid: 0,
        shown: AttachFlags::empty(),
        creator: Credentials::BLANK,
        gathered: Gathered::NOTHING,
        user: UserIx::FIRST,
        default_endpoint: EndpointIx::FIRST,
        seqnum: 0,
        policy: OwnPolicy::NONE,
        had_lanes: false,
        names: BusNames::new(),
        members: Members { first: None, last: None },
        monitors: Members { first: None, last: None },
        dying: false,
    };
}

impl Domain<'_> {
    /// BUS_MAKE. Cost: `O(buses + users)` and the host's work on its nodes.
    pub(super) fn bus_make(
        &mut self,
        host: &mut dyn Host,
        handle: HandleIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::BusMake.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let bloom = frame.item(ItemType::BLOOM_PARAMETER).and_then(|item| item.record::<BloomParameter>());
        let bloom = bloom.ok_or(Errno::EINVAL)?;
        let sane = (BLOOM_MIN..=BLOOM_MAX).contains(&bloom.size) && bloom.size.is_multiple_of(8);
        if !sane || bloom.n_hash == 0 {
            return Err(Errno::EINVAL);
        }
        let shown = match frame.item(ItemType::ATTACH_FLAGS_SEND).and_then(|item| item.u64()) {
            Some(bits) => AttachFlags::from_command(bits)?,
            None => AttachFlags::empty(),
        };
        let creator = caller.unwrap_or(&self.handles[handle].creds).clone();
        let name = frame.item(ItemType::MAKE_NAME).and_then(|item| item.c_str()).ok_or(Errno::EINVAL)?;
        let name = NodeName::from_bytes(name).and_then(|name| name.owned_by(creator.euid));
        let name = name.map_err(|error| error.errno())?.as_str();
        let id = self.take_id();
        if self.buses.iter().any(|(_, bus)| bus.name.as_str() == name) {
            return Err(Errno::EEXIST);
        }
        if self.buses.room() == 0 || self.endpoints.room() == 0 {
            return Err(Errno::EMFILE);
        }
        let user = self.user_of(creator.uid)?;
        if let Err(error) = self.count(user, Counted::Bus) {
            self.forget_idle(user);
            return Err(error);
        }
        let flags = frame.flags;
        let (uid, gid) = (creator.euid, creator.egid);
        let bus = Bus {
            name: heapless::String::try_from(name).unwrap_or_default(),
            id,
            uuid: uuid(host.random()),
            flags,
            bloom,
            uid,
            shown,
            creator,
            user,
            ..Bus::BLANK
        };
        let made = self.add_bus(host, handle, bus, gid);
        if made.is_err() {
            self.discount(user, Counted::Bus);
        }
        made
    }

    fn add_bus(&mut self, host: &mut dyn Host, handle: HandleIx, bus: Bus, gid: u32) -> Result<(), Errno> {
        let (name, uid, mode, shown) = (bus.name.clone(), bus.uid, mode(bus.flags), bus.shown);
        let place = self.buses.insert(bus).ok_or(Errno::EMFILE)?;
        let endpoint = Endpoint {
            name: heapless::String::try_from(DEFAULT_ENDPOINT).unwrap_or_default(),
            bus: place,
            uid,
            gid,
            mode,
            ..Endpoint::BLANK
        };
        let Some(endpoint) = self.endpoints.insert(endpoint) else {
            self.buses.remove(place);
            return Err(Errno::EMFILE);
        };
        let id = self.endpoint_id(endpoint);
        if let Err(error) =
            host.node_create(Node { bus: &name, endpoint: DEFAULT_ENDPOINT, id, uid, gid, mode })
        {
            self.endpoints.remove(endpoint);
            self.buses.remove(place);
            return Err(error);
        }
        let mut gathered = Gathered::NOTHING;
        let from = self.handle_id(handle);
        gathered.gather(host, from, shown & READ, self.bus_info(place));
        let bus = &mut self.buses[place];
        (bus.default_endpoint, bus.gathered) = (endpoint, gathered);
        self.handles[handle].state = HandleState::BusOwner(place);
        crate::event!(info, "bus {:?} is there", name.as_str());
        Ok(())
    }

    /// Removes a bus: its nodes first, then every connection, then its memory.
    ///
    /// Cost: a disconnect for each connection.
    pub(super) fn remove_bus(&mut self, host: &mut dyn Host, at: Clock, bus: BusIx) {
        self.buses[bus].dying = true;
        crate::event!(info, "bus {:?} goes", self.buses[bus].name.as_str());
        let custom = |domain: &Self| {
            let mut endpoints = domain.endpoints.iter();
            endpoints.find(|(_, endpoint)| endpoint.bus == bus && endpoint.custom).map(|(place, _)| place)
        };
        while let Some(endpoint) = custom(self) {
            self.remove_endpoint(host, at, endpoint);
        }
        let default = self.buses[bus].default_endpoint;
        self.node_remove(host, default);
        while let Some(conn) = self.buses[bus].members.first.or(self.buses[bus].monitors.first) {
            self.disconnect(host, at, conn);
        }
        self.endpoints.remove(default);
        self.policy.clear(&mut self.buses[bus].policy);
        let user = self.buses[bus].user;
        self.buses.remove(bus);
        self.discount(user, Counted::Bus);
    }

    /// Where answers about the creator of a bus are kept.
    pub(super) fn bus_info(&mut self, bus: BusIx) -> &mut [u8] {
        let len = self.config.info_bytes;
        let start = (self.config.connections + bus.index() as usize) * len;
        self.info.get_mut(start..start + len).unwrap_or_default()
    }
}

/// Permission bits of an endpoint's file.
pub(super) fn mode(flags: u64) -> u32 {
    let flags = MakeFlags::from_bits_truncate(flags);
    if flags.contains(MakeFlags::ACCESS_WORLD) {
        0o666
    } else if flags.contains(MakeFlags::ACCESS_GROUP) {
        0o660
    } else {
        0o600
    }
}

/// Random bytes as a UUID of version 4.
const fn uuid(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    bytes
}
