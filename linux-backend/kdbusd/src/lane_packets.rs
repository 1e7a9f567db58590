//! What clients say of lanes: bring one, open one, it is mapped, it is no longer used.

use kdbus_core::WellKnownName;
use kdbus_core::abi::{DST_ID_NAME, Errno};
use kdbus_core::engine::{HandleId, LaneTo, NoLane};
use kdbus_linux::local::wire::{FLAG_OWN_LANE, Header, Kind, WireError};

use crate::clients::errno;
use crate::daemon::Daemon;
use crate::host::{State, Turn};

impl Daemon {
    /// Carries out a packet that is about lanes.
    pub(crate) fn lane_packet(&mut self, from: HandleId, kind: Kind, header: &Header, arg: &[u8]) {
        match kind {
            Kind::BringLane => self.bring_lane(from, header),
            Kind::OpenLane => self.open_lane(from, header, arg),
            Kind::LaneMapped => {
                let given = self.state.clients.get_mut(from).and_then(|client| client.lane_given.take());
                // One that it was given may be gone with its receiver before it has mapped it, and its number be
                // another's.
                if !self.state.lanes.mapped(header.slot, from) && given != Some(header.slot) {
                    self.state.doom(from, "it has no such lane");
                }
            }
            Kind::DropLane => {
                if !self.state.lanes.drop_one(header.slot, from) {
                    self.state.doom(from, "it has no such lane");
                }
            }
            Kind::CallDropped => {
                if let Some(sender) = self.state.lanes.sender(header.slot, from) {
                    Turn::idle(&mut self.state).notice(sender);
                }
            }
            _ => self.state.doom(from, WireError::Kind(header.kind)),
        }
    }

    fn bring_lane(&mut self, from: HandleId, header: &Header) {
        let State { clients, lanes, .. } = &mut self.state;
        // An error to the client, whoever it is, if it has no connection.
        let connected = clients.get_mut(from).filter(|client| client.shared.is_some());
        let brought = connected.map_or(Err(Errno::EBADFD), |client| {
            client.no_room = lanes.no_room(from, client.uid);
            lanes.bring(from, client.uid).map_err(errno)
        });
        let result = brought.map(|(number, fds)| (number, 0, Some(fds)));
        self.answer_lane(from, header, result);
    }

    fn open_lane(&mut self, from: HandleId, header: &Header, arg: &[u8]) {
        let to = match header.key {
            DST_ID_NAME => WellKnownName::from_bytes(arg).map(LaneTo::Name),
            id => Ok(LaneTo::Id(id)),
        };
        if let Some(client) = self.state.clients.get_mut(from) {
            client.no_place = header.flags & FLAG_OWN_LANE != 0;
        }
        let mut turn = Turn::idle(&mut self.state);
        let opened = to
            .map_err(|error| error.errno())
            .and_then(|to| self.domain.open_lane(&mut turn, from, to).map_err(NoLane::errno));
        let lanes = &mut self.state.lanes;
        let result = opened.map(|()| (lanes.given, lanes.given_to, lanes.given_files.take()));
        if let Ok((number, _, Some(_))) = &result
            && let Some(client) = self.state.clients.get_mut(from)
        {
            client.lane_given = Some(*number);
        }
        self.answer_lane(from, header, result);
    }
}
