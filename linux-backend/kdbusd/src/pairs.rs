//! What tools are told of lanes: which pairs of connections have one, and why others have none.

use kdbus_core::abi::Errno;
use kdbus_core::engine::HandleId;
use kdbus_core::engine::NoLane;
use kdbus_linux::local::pairs::{PAIRS_MAX, Pair, Route};
use zerocopy::FromBytes;

use crate::daemon::Daemon;
use crate::host::Turn;
use crate::lanes::{NoRoom, Seen};

impl Daemon {
    /// Answers about the pairs of one receiver that the argument asks about. What `from` may not look at stays 0.
    pub(crate) fn pairs(&mut self, from: HandleId, receiver: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let to = self.domain.peer(&mut Turn::idle(&mut self.state), from, receiver)?.handle;
        let (pairs, []) = bytes.as_chunks_mut::<{ size_of::<Pair>() }>() else { return Err(Errno::EINVAL) };
        if pairs.len() > PAIRS_MAX {
            return Err(Errno::EINVAL);
        }
        for bytes in pairs {
            let sender = Pair::read_from_bytes(&bytes[..]).map_or(0, |pair| pair.sender);
            let mut pair = Pair { sender, ..Pair::default() };
            match self.domain.peer(&mut Turn::idle(&mut self.state), from, sender) {
                Ok(view) => self.pair(view.handle, to, receiver, &mut pair),
                Err(Errno::ENXIO) => pair.route = Route::Gone as u64,
                Err(_) => {}
            }
            bytes.copy_from_slice(zerocopy::IntoBytes::as_bytes(&pair));
        }
        Ok(())
    }

    fn pair(&mut self, sender: HandleId, to: HandleId, receiver: u64, pair: &mut Pair) {
        let seen = self.state.lanes.seen(sender, to);
        if let Some(Seen { bytes, traffic, .. }) = seen {
            pair.lane = bytes;
            (pair.messages, pair.sent, pair.received) = (traffic.messages, traffic.sent, traffic.received);
        }
        let route = match seen {
            Some(Seen { traffic, .. }) if traffic.given_up => Route::BrokeRules,
            Some(Seen { open: true, .. }) => Route::Lane,
            _ => {
                let allowed = self.domain.lane_allowed(&mut Turn::idle(&mut self.state), sender, receiver);
                match allowed {
                    Err(no) => refused(no),
                    Ok(()) => match seen {
                        Some(Seen { sealed: false, .. }) => Route::Unmapped,
                        Some(_) => Route::Closed,
                        None => self.without_lane(sender, to),
                    },
                }
            }
        };
        pair.route = route as u64;
    }

    /// Why a pair has no lane that the engine would allow it.
    fn without_lane(&self, sender: HandleId, to: HandleId) -> Route {
        let lanes = &self.state.lanes;
        if lanes.is_off() {
            return Route::Off;
        }
        if lanes.is_banned(sender, to) {
            return Route::BrokeRules;
        }
        let (brought, free) = lanes.brought(to);
        if free == 0 {
            return match self.state.clients.get(to).and_then(|client| client.no_room) {
                Some(NoRoom::All) => Route::BudgetOfAll,
                Some(NoRoom::User) => Route::BudgetOfUser,
                Some(NoRoom::Connection) => Route::BudgetOfConnection,
                None if brought == 0 => Route::NoneBrought,
                None => Route::AllTaken,
            };
        }
        if self.domain.is_activated(to) {
            Route::Activator
        } else if lanes.brought(sender).0 == 0 {
            Route::SenderHasNone
        } else if self.state.clients.get(sender).is_some_and(|client| client.no_place) {
            Route::SenderFull
        } else {
            Route::NotAsked
        }
    }
}

const fn refused(no: NoLane) -> Route {
    match no {
        NoLane::Off => Route::Off,
        NoLane::Special | NoLane::Itself => Route::Special,
        NoLane::Endpoint => Route::Endpoint,
        NoLane::Monitored => Route::Monitored,
        NoLane::Denied => Route::Denied,
        NoLane::Faked => Route::Faked,
        NoLane::Namespaces => Route::Namespaces,
        NoLane::Metadata => Route::Metadata,
        NoLane::Activator => Route::Activator,
        NoLane::Terms => Route::Terms,
        NoLane::Banned => Route::BrokeRules,
        NoLane::Full => Route::AllTaken,
        NoLane::NoPlace => Route::SenderFull,
        _ => Route::Gone,
    }
}
