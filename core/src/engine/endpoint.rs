//! Endpoints: the files through which connections come to a bus.

use crate::NODE_NAME_MAX;
use crate::NodeName;
use crate::abi::{Command, Errno, Frame, FrameError, ItemType};

use super::Domain;
use super::bus::mode;
use super::domain::HandleState;
use super::host::{Clock, Credentials, EndpointId, Host, Node};
use super::policy::{Database, Keeper, OwnPolicy, Policy};
use super::table::{Blank, BusIx, EndpointIx, HandleIx, Place, UserIx};
use super::user::{Counted, Identity, User};

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) name: heapless::String<NODE_NAME_MAX>,
    pub(super) bus: BusIx,
    /// Made by ENDPOINT_MAKE: it has a policy of its own, and nobody on it has rights of the owner.
    pub(super) custom: bool,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u32,
    /// Whom all connections of a custom endpoint count for.
    pub(super) user: Option<UserIx>,
    pub(super) policy: OwnPolicy,
}

impl Blank for Endpoint {
    const BLANK: Self = Self {
        name: heapless::String::new(),
        bus: BusIx::FIRST,
        custom: false,
        uid: 0,
        gid: 0,
        mode: 0,
        user: None,
        policy: OwnPolicy::NONE,
    };
}

impl Domain<'_> {
    /// ENDPOINT_MAKE. Cost: `O(endpoints)` and the host's work on its node.
    pub(super) fn endpoint_make(
        &mut self,
        host: &mut dyn Host,
        handle: HandleIx,
        parent: EndpointIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let (_, owner) = self.rights(parent, &self.handles[handle].creds);
        // kdbus: this comes before the argument is looked at.
        if !owner {
            return Err(Errno::EPERM);
        }
        let frame = Frame::check(arg, Command::EndpointMake.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let creator = caller.unwrap_or(&self.handles[handle].creds);
        let (uid, gid) = (creator.euid, creator.egid);
        let name = frame.item(ItemType::MAKE_NAME).and_then(|item| item.c_str()).ok_or(Errno::EINVAL)?;
        let name = NodeName::from_bytes(name).and_then(|name| name.owned_by(uid));
        let name = name.map_err(|error| error.errno())?.as_str();
        let bus = self.endpoints[parent].bus;
        if self.endpoints.iter().any(|(_, other)| other.bus == bus && other.name.as_str() == name) {
            return Err(Errno::EEXIST);
        }
        let user = self.users.insert(User::new(Identity::Anonymous)).ok_or(Errno::ENOMEM)?;
        self.count(user, Counted::Endpoint)?;
        let endpoint = Endpoint {
            name: heapless::String::try_from(name).unwrap_or_default(),
            bus,
            custom: true,
            uid,
            gid,
            mode: mode(frame.flags),
            user: Some(user),
            policy: OwnPolicy::NONE,
        };
        let mode = endpoint.mode;
        let Some(place) = self.endpoints.insert(endpoint) else {
            self.discount(user, Counted::Endpoint);
            return Err(Errno::ENOMEM);
        };
        let id = self.endpoint_id(place);
        let bus = &self.buses[bus].name;
        if let Err(error) = host.node_create(Node { bus, endpoint: name, id, uid, gid, mode }) {
            self.endpoints.remove(place);
            self.discount(user, Counted::Endpoint);
            return Err(error);
        }
        self.handles[handle].state = HandleState::EndpointOwner(id);
        Ok(())
    }

    /// ENDPOINT_UPDATE. Cost: `O(items · log of all policy entries)`.
    pub(super) fn endpoint_update(
        &mut self,
        handle: HandleIx,
        endpoint: EndpointIx,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::EndpointUpdate.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        Policy::check(frame.items(), usize::MAX, true, self.has_foreign_users(handle))?;
        let own = &mut self.endpoints[endpoint].policy;
        self.policy.replace(own, Keeper::Endpoint, Database::Endpoint(endpoint), frame.items())
    }

    /// Removes a custom endpoint and disconnects whoever is on it. Cost: `O(connections of the bus)` and a
    /// disconnect for each of its own.
    pub(super) fn remove_endpoint(&mut self, host: &mut dyn Host, at: Clock, endpoint: EndpointIx) {
        self.node_remove(host, endpoint);
        let mut next = self.buses[self.endpoints[endpoint].bus].members.first;
        while let Some(conn) = next {
            next = self.conns[conn].next;
            if self.conns[conn].endpoint == endpoint {
                self.disconnect(host, at, conn);
            }
        }
        self.policy.clear(&mut self.endpoints[endpoint].policy);
        let user = self.endpoints[endpoint].user;
        self.endpoints.remove(endpoint);
        if let Some(user) = user {
            self.discount(user, Counted::Endpoint);
        }
    }

    pub(super) fn node_remove(&self, host: &mut dyn Host, place: EndpointIx) {
        let endpoint = &self.endpoints[place];
        host.node_remove(Node {
            bus: &self.buses[endpoint.bus].name,
            endpoint: &endpoint.name,
            id: self.endpoint_id(place),
            uid: endpoint.uid,
            gid: endpoint.gid,
            mode: endpoint.mode,
        });
    }

    /// Whether a handle with these credentials is privileged on an endpoint, and whether it is its owner.
    pub(super) fn rights(&self, endpoint: EndpointIx, opener: &Credentials) -> (bool, bool) {
        let endpoint = &self.endpoints[endpoint];
        let privileged = !endpoint.custom && opener.privileged;
        let owner = !endpoint.custom && (privileged || opener.euid == self.buses[endpoint.bus].uid);
        (privileged, owner)
    }

    /// The number of an endpoint, as the host knows it.
    pub(super) fn endpoint_id(&self, place: EndpointIx) -> EndpointId {
        EndpointId { index: place.index(), generation: self.endpoints.generation(place) }
    }

    /// The endpoint with that number, if it is still there.
    pub(super) fn live_endpoint(&self, id: EndpointId) -> Result<EndpointIx, Errno> {
        self.endpoints.find(id.index, id.generation).ok_or(Errno::ESHUTDOWN)
    }
}
