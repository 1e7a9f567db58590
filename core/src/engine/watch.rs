//! Watches: who wants to know when a receiver has room again.

use crate::abi::Errno;

use super::Domain;
use super::host::{HandleId, Host};
use super::table::{Blank, ConnIx, WatchIx};

/// One connection that waits for room at another one. It ends with the first room.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    watcher: ConnIx,
    receiver: ConnIx,
    at_watcher: Links,
    at_receiver: Links,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    next: Option<WatchIx>,
    prev: Option<WatchIx>,
}

/// The part of a connection that watches have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watches {
    /// Watches of this connection.
    own: Option<WatchIx>,
    /// Watches of others for room here.
    here: Option<WatchIx>,
    /// How often room was made here.
    released: u64,
    /// Who last refused a message of this connection for want of room, and how often room had been made
    /// there by then.
    refused: Option<(u64, u64)>,
}

impl Blank for Watch {
    const BLANK: Self = Self {
        watcher: ConnIx::FIRST,
        receiver: ConnIx::FIRST,
        at_watcher: Links { next: None, prev: None },
        at_receiver: Links { next: None, prev: None },
    };
}

impl Watches {
    /// No watches.
    pub(super) const NONE: Self = Self { own: None, here: None, released: 0, refused: None };
}

impl Domain<'_> {
    /// Asks for one [`Effect::Room`](super::Effect::Room) when the connection with id `receiver` has room.
    ///
    /// Room is a message received or dropped there, a slice freed, or the receiver's end. If there has been
    /// some since that receiver last refused a message of this one, or if it never did, the effect is there
    /// at once. Cost: `O(watches of this connection)`.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is no such connection on the bus, `ENOMEM` if the table of watches is full.
    pub fn watch_room(&mut self, host: &mut dyn Host, handle: HandleId, receiver: u64) -> Result<(), Errno> {
        let watcher = self.connected(handle)?;
        let to = self.find_connection(self.conns[watcher].bus, receiver).ok_or(Errno::ENXIO)?;
        let state = (receiver, self.conns[to].watches.released);
        if self.conns[watcher].watches.refused != Some(state) {
            // Either there was room since, or nobody knows: the next attempt will tell.
            self.tell_room(self.conns[watcher].handle);
            return Ok(());
        }
        let mut at = self.conns[watcher].watches.own;
        while let Some(watch) = at {
            if self.watches[watch].receiver == to {
                return Ok(());
            }
            at = self.watches[watch].at_watcher.next;
        }
        let (own, here) = (self.conns[watcher].watches.own, self.conns[to].watches.here);
        let watch = Watch {
            watcher,
            receiver: to,
            at_watcher: Links { next: own, prev: None },
            at_receiver: Links { next: here, prev: None },
        };
        let place = self.watches.insert(watch).ok_or(Errno::ENOMEM)?;
        if let Some(next) = own {
            self.watches[next].at_watcher.prev = Some(place);
        }
        if let Some(next) = here {
            self.watches[next].at_receiver.prev = Some(place);
        }
        self.conns[watcher].watches.own = Some(place);
        self.conns[to].watches.here = Some(place);
        if here.is_none() {
            host.watch_returns(self.conns[to].known_as, true);
        }
        // What the receiver did before it was watched counts as well.
        self.drain(host, to);
        Ok(())
    }

    /// Tells everybody who waits for room at a connection. `O(watches for it)`.
    #[inline]
    pub(super) fn made_room(&mut self, host: &mut dyn Host, conn: ConnIx) {
        let watches = &mut self.conns[conn].watches;
        watches.released += 1;
        if watches.here.is_some() {
            self.tell_watchers(host, conn);
        }
    }

    #[inline(never)]
    fn tell_watchers(&mut self, host: &mut dyn Host, conn: ConnIx) {
        while let Some(place) = self.conns[conn].watches.here {
            let watcher = self.watches[place].watcher;
            self.tell_room(self.conns[watcher].handle);
            self.end_watch(host, place);
        }
    }

    /// Remembers who refused a message for want of room.
    pub(super) fn refused(&mut self, sender: ConnIx, receiver: ConnIx) {
        let there = &self.conns[receiver];
        let state = (there.id, there.watches.released);
        self.conns[sender].watches.refused = Some(state);
    }

    /// Ends all watches of and for a connection.
    pub(super) fn end_watches(&mut self, host: &mut dyn Host, conn: ConnIx) {
        while let Some(place) = self.conns[conn].watches.own {
            self.end_watch(host, place);
        }
        self.made_room(host, conn);
    }

    fn end_watch(&mut self, host: &mut dyn Host, place: WatchIx) {
        let Some(watch) = self.watches.remove(place) else {
            return;
        };
        let Links { next, prev } = watch.at_watcher;
        match prev {
            Some(prev) => self.watches[prev].at_watcher.next = next,
            None => self.conns[watch.watcher].watches.own = next,
        }
        if let Some(next) = next {
            self.watches[next].at_watcher.prev = prev;
        }
        let Links { next, prev } = watch.at_receiver;
        match prev {
            Some(prev) => self.watches[prev].at_receiver.next = next,
            None => self.conns[watch.receiver].watches.here = next,
        }
        if let Some(next) = next {
            self.watches[next].at_receiver.prev = prev;
        }
        if self.conns[watch.receiver].watches.here.is_none() {
            host.watch_returns(self.conns[watch.receiver].known_as, false);
        }
    }
}
