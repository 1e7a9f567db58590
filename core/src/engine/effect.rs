//! What the host has to do: one bit for each handle, and the ends of synchronous calls.

use super::host::{Effect, HandleId};
use super::table::{CallIx, HandleIx, Place};
use super::{Domain, call::CallState};

/// The part of a handle that remembers what its owner has to be told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirty {
    wake: bool,
    room: bool,
    listed: bool,
    next: Option<HandleIx>,
    prev: Option<HandleIx>,
}

impl Dirty {
    /// There is nothing to tell.
    pub(super) const CLEAN: Self = Self { wake: false, room: false, listed: false, next: None, prev: None };
}

/// Everything that waits to be told, in order of first cause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pending {
    first: Option<HandleIx>,
    last: Option<HandleIx>,
    pub(super) first_call: Option<CallIx>,
    pub(super) last_call: Option<CallIx>,
}

impl Domain<'_> {
    /// The next thing to do, in `O(1)`; ends of calls come first.
    ///
    /// Several wake-ups of one handle are one effect. Nothing is lost if this is called late, and each
    /// effect is returned once.
    #[inline]
    pub fn poll_effect(&mut self) -> Option<Effect> {
        if self.has_effects() { self.next_effect() } else { None }
    }

    /// Whether [`poll_effect`](Self::poll_effect) has something, in `O(1)`.
    #[inline]
    #[must_use]
    pub const fn has_effects(&self) -> bool {
        self.pending.first.is_some() || self.pending.first_call.is_some()
    }

    fn next_effect(&mut self) -> Option<Effect> {
        if let Some(effect) = self.poll_answer() {
            return Some(effect);
        }
        let place = self.pending.first?;
        let to = self.handle_id(place);
        let dirty = &mut self.handles[place].dirty;
        if dirty.wake {
            dirty.wake = false;
            if !dirty.room {
                self.unlist(place);
            }
            return Some(Effect::Wake(to));
        }
        self.unlist(place);
        Some(Effect::Room(to))
    }

    /// Remembers that something waits at this handle.
    pub(super) fn wake(&mut self, place: HandleIx) {
        self.handles[place].dirty.wake = true;
        self.enlist(place);
    }

    /// Remembers that a receiver this handle watches has room again.
    pub(super) fn tell_room(&mut self, place: HandleIx) {
        self.handles[place].dirty.room = true;
        self.enlist(place);
    }

    /// Forgets what a handle was to be told.
    pub(super) fn unlist(&mut self, place: HandleIx) {
        let Dirty { listed: true, next, prev, .. } =
            core::mem::replace(&mut self.handles[place].dirty, Dirty::CLEAN)
        else {
            return;
        };
        match prev {
            Some(prev) => self.handles[prev].dirty.next = next,
            None => self.pending.first = next,
        }
        match next {
            Some(next) => self.handles[next].dirty.prev = prev,
            None => self.pending.last = prev,
        }
    }

    /// The number of a handle, as the host knows it.
    pub(super) fn handle_id(&self, place: HandleIx) -> HandleId {
        HandleId { index: place.index(), generation: self.handles.generation(place) }
    }

    fn enlist(&mut self, place: HandleIx) {
        let last = self.pending.last;
        let dirty = &mut self.handles[place].dirty;
        if dirty.listed {
            return;
        }
        (dirty.listed, dirty.prev, dirty.next) = (true, last, None);
        match last {
            Some(last) => self.handles[last].dirty.next = Some(place),
            None => self.pending.first = Some(place),
        }
        self.pending.last = Some(place);
    }

    fn poll_answer(&mut self) -> Option<Effect> {
        let place = self.pending.first_call?;
        let call = self.calls.remove(place)?;
        self.pending.first_call = call.next_done;
        if call.next_done.is_none() {
            self.pending.last_call = None;
        }
        match call.state {
            CallState::Ended { to, token, result } => Some(Effect::Answer { to, token, result }),
            _ => None,
        }
    }
}
