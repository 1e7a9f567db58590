//! Lanes: who may have one, and when it closes.
//!
//! A host can let two clients exchange messages past the bus. The engine alone decides: it grants a lane for
//! what it would allow as a SEND, and takes it back before anything that could change that answer takes effect
//! for anybody. What goes wrong with a message by lane is decided here too, because the sender then uses SEND.

use core::fmt;

use crate::Instant;
use crate::WellKnownName;
use crate::abi::{AttachFlags, Errno, ItemType, ItemWriter};
use crate::channel::terms::{TERMS_METADATA_MAX, Terms};

use super::Domain;
use super::call::index;
use super::host::{Credentials, HandleId, Host};
use super::metadata::{Gathered, READ, emit_process, translate, visible};
use super::registry::place;
use super::slice::ItemSink;
use super::table::{BusIx, ConnIx, Place};

/// A lane that may be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct LaneGrant {
    /// Who sends.
    pub from: HandleId,
    /// Id of the sender, for `src_id`.
    pub from_id: u64,
    /// Who receives.
    pub to: HandleId,
    /// Id of the receiver.
    pub to_id: u64,
    /// What [`Lanes::Bus`] names it by.
    pub bus: u32,
    /// Metadata that each message shows: of the kinds that are pinned with the lane, and the time.
    pub attach: AttachFlags,
}

/// Whom a lane is to lead to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneTo<'n> {
    /// The connection with this id.
    Id(u64),
    /// The owner of this name, for messages to the name and to the connection.
    Name(WellKnownName<'n>),
}

/// What a SEND has to do with messages that went past the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BesideLanes {
    /// It may answer this call that came by lane, unless a newer one with that cookie came by the bus.
    pub answers: Option<PastCall>,
    /// Calls that the sender has open by lane, as it says.
    pub calls: u32,
}

/// A call that went past the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PastCall {
    /// Who called.
    pub caller: HandleId,
    /// Cookie of the call.
    pub cookie: u64,
    /// When it was made.
    pub made_at: Instant,
}

/// Lanes that are to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Lanes {
    /// Those into this connection.
    Into(HandleId),
    /// Those into and from this connection, which ends.
    Of(HandleId),
    /// All on the bus that their [grants](LaneGrant::bus) name.
    Bus(u32),
}

/// Why messages between two connections go through the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NoLane {
    /// The host has no lanes, or was told to open none.
    Off,
    /// There is no such connection, or none any more.
    Gone,
    /// It is the sender itself.
    Itself,
    /// One of the two is an activator, a monitor or a policy holder.
    Special,
    /// One of the two is on a custom endpoint, where each message is checked against two policies.
    Endpoint,
    /// A monitor is to see every message of this bus.
    Monitored,
    /// The sender may not talk to the receiver.
    Denied,
    /// The sender shows credentials that are not its own.
    Faked,
    /// The two have other numbers for users or processes, or other clocks.
    Namespaces,
    /// The receiver asks for metadata that is collected for each message.
    Metadata,
    /// An activator stands behind the name, and has to get what its owner does not receive.
    Activator,
    /// The metadata that each message shows is too long, or another lane of the two is under other terms.
    Terms,
    /// The sender has broken the rules of a lane to this receiver.
    Banned,
    /// The receiver's lanes are all in use, or it brought none.
    Full,
    /// The sender has no place for another lane.
    NoPlace,
}

impl NoLane {
    /// The error number for whoever asked for the lane.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Gone => Errno::ENXIO,
            Self::Denied => Errno::EPERM,
            Self::Full | Self::NoPlace => Errno::ENOBUFS,
            _ => Errno::EOPNOTSUPP,
        }
    }
}

impl fmt::Display for NoLane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "lanes are switched off",
            Self::Gone => "the receiver is gone",
            Self::Itself => "the receiver is the sender itself",
            Self::Special => "one of the two is an activator, a monitor or a policy holder",
            Self::Endpoint => "one of the two is on a custom endpoint",
            Self::Monitored => "a monitor watches the bus",
            Self::Denied => "the sender may not talk to the receiver",
            Self::Faked => "the sender shows credentials that are not its own",
            Self::Namespaces => "the two have other numbers for users or processes, or other clocks",
            Self::Metadata => "the receiver asks for metadata that is collected for each message",
            Self::Activator => "an activator stands behind the name",
            Self::Terms => "what each message shows of its sender does not fit, or has changed",
            Self::Banned => "the sender has broken the rules of a lane to this receiver",
            Self::Full => "the receiver has no lane left",
            Self::NoPlace => "the sender has no place for another lane",
        })
    }
}

impl core::error::Error for NoLane {}

/// Metadata that has to be collected when a message is sent: names come and go, and so does what a process is.
const COLLECTED: AttachFlags = READ.union(AttachFlags::NAMES);

impl Domain<'_> {
    /// Opens a lane from the connection behind `from`, if the host has one.
    ///
    /// Cost: that of the policy check of one SEND, and of its metadata.
    ///
    /// # Errors
    ///
    /// [`NoLane`].
    pub fn open_lane(&mut self, host: &mut dyn Host, from: HandleId, to: LaneTo<'_>) -> Result<(), NoLane> {
        let (receiver, name) = match to {
            LaneTo::Id(id) => (id, &[][..]),
            LaneTo::Name(name) => (self.lane_owner(from, name)?, name.as_str().as_bytes()),
        };
        let grant = self.lane_grant(from, receiver)?;
        let mut buffer = [0; TERMS_METADATA_MAX];
        let pinned = self.pinned(host, &grant, &mut buffer)?;
        let metadata = pinned.as_bytes();
        host.lane_open(grant, &Terms { sender: grant.from_id, attach: grant.attach, name, metadata })?;
        let bus = self.conns[self.connected(from).map_err(|_| NoLane::Gone)?].bus;
        self.buses[bus].had_lanes = true;
        Ok(())
    }

    /// Whether [`open_lane`](Self::open_lane) would let messages from the connection behind `from` to the one with id
    /// `receiver` go by lane, if the host has one. Cost: as there.
    ///
    /// # Errors
    ///
    /// [`NoLane`].
    pub fn lane_allowed(&self, host: &mut dyn Host, from: HandleId, receiver: u64) -> Result<(), NoLane> {
        let grant = self.lane_grant(from, receiver)?;
        self.pinned(host, &grant, &mut [0; TERMS_METADATA_MAX]).map(drop)
    }

    /// Whether an activator stands behind a name of the connection behind `handle`: messages to that name go through
    /// the bus. Cost: a step for each of its names.
    #[must_use]
    pub fn is_activated(&self, handle: HandleId) -> bool {
        let Ok(conn) = self.connected(handle) else { return false };
        self.names.held(index(conn)).any(|claim| self.names.activator(claim.id).is_some())
    }

    /// The owner of a name to which messages may go by lane.
    fn lane_owner(&self, from: HandleId, name: WellKnownName<'_>) -> Result<u64, NoLane> {
        let sender = self.connected(from).map_err(|_| NoLane::Gone)?;
        let names = &self.buses[self.conns[sender].bus].names;
        let entry = self.names.find(names, name.as_str().as_bytes()).ok_or(NoLane::Gone)?;
        let owner = self.names.owner(entry).ok_or(NoLane::Gone)?;
        if self.names.activator(entry).is_some() {
            return Err(NoLane::Activator);
        }
        Ok(self.conns[place(owner.connection)].id)
    }

    /// What each message by a lane shows of its sender.
    fn pinned<'b>(
        &self,
        host: &mut dyn Host,
        grant: &LaneGrant,
        buffer: &'b mut [u8],
    ) -> Result<ItemWriter<'b>, NoLane> {
        let mut pinned = Pinned { items: ItemWriter::new(buffer), cut: false };
        if let (Ok(from), Ok(to)) = (self.connected(grant.from), self.connected(grant.to)) {
            let (who, by) = (self.conn_creds(from), &self.conn_creds(to).spaces);
            let attach = visible(grant.attach, self.conns[from].attach_send, &who.spaces, by);
            let seen = translate(host, grant.to, by, who);
            emit_process(attach, seen.as_ref().unwrap_or(who), &Gathered::NOTHING, &[], &mut pinned);
            self.emit_connection(from, attach, &mut pinned);
        }
        if pinned.cut { Err(NoLane::Terms) } else { Ok(pinned.items) }
    }

    /// Whether the engine would let a lane be opened from the connection behind `from` to the one with id
    /// `receiver`, and what it would be. Cost: as [`open_lane`](Self::open_lane).
    ///
    /// # Errors
    ///
    /// [`NoLane`].
    pub fn lane_grant(&self, from: HandleId, receiver: u64) -> Result<LaneGrant, NoLane> {
        let sender = self.connected(from).map_err(|_| NoLane::Gone)?;
        let bus = self.conns[sender].bus;
        let to = self.find_connection(bus, receiver).ok_or(NoLane::Gone)?;
        let (a, b) = (&self.conns[sender], &self.conns[to]);
        if !b.is_active() {
            return Err(NoLane::Gone);
        }
        if sender == to {
            return Err(NoLane::Itself);
        }
        if !a.is_ordinary() || !b.is_ordinary() {
            return Err(NoLane::Special);
        }
        if self.endpoints[a.endpoint].custom || self.endpoints[b.endpoint].custom {
            return Err(NoLane::Endpoint);
        }
        if self.buses[bus].monitors.first.is_some() {
            return Err(NoLane::Monitored);
        }
        if a.faked.is_some() {
            return Err(NoLane::Faked);
        }
        let (from_creds, to_creds) = (self.conn_creds(sender), self.conn_creds(to));
        let numbers = |creds: &Credentials| (creds.spaces.users, creds.spaces.pids, creds.spaces.times);
        if numbers(from_creds) != numbers(to_creds) {
            return Err(NoLane::Namespaces);
        }
        if b.attach_recv.intersects(COLLECTED) {
            return Err(NoLane::Metadata);
        }
        if !self.may_talk(sender, from_creds, to) {
            return Err(NoLane::Denied);
        }
        let to = b.known_as;
        Ok(LaneGrant { from, from_id: a.id, to, to_id: receiver, bus: bus.index(), attach: b.attach_recv })
    }

    /// Calls through the bus that the connection behind `handle` has open.
    #[must_use]
    pub fn open_calls(&self, handle: HandleId) -> u32 {
        self.connected(handle).map_or(0, |conn| self.replies.open_calls(index(conn)))
    }

    /// Closes the lanes into a connection: what its senders know of it is not true any more.
    pub(super) fn close_lanes_into(&mut self, host: &mut dyn Host, conn: ConnIx) {
        let bus = self.conns[conn].bus;
        self.close_lanes(host, bus, Lanes::Into(self.conns[conn].known_as));
    }

    /// Closes all lanes of a bus: who may talk to whom, or who is to see it, has changed.
    pub(super) fn close_lanes_on(&mut self, host: &mut dyn Host, bus: BusIx) {
        self.close_lanes(host, bus, Lanes::Bus(bus.index()));
    }

    /// Closes lanes of a bus. Whatever it tells after that comes behind what was sent by them, though the command that
    /// closes them began before.
    pub(super) fn close_lanes(&mut self, host: &mut dyn Host, bus: BusIx, which: Lanes) {
        let closed_at = host.lanes_close(which).as_nanos();
        self.last_key = self.last_key.max(closed_at);
        let bus = &mut self.buses[bus];
        if bus.had_lanes {
            bus.seqnum = bus.seqnum.max(closed_at);
        }
    }
}

/// Items one after another, and whether one did not fit.
struct Pinned<'a> {
    items: ItemWriter<'a>,
    cut: bool,
}

impl ItemSink for Pinned<'_> {
    fn item(&mut self, kind: ItemType, parts: &[&[u8]]) {
        self.cut |= self.items.parts(kind, parts).is_err();
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
