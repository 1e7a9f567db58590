//! Awaited replies: who called whom, with which cookie, until when.
//!
//! A call has a tracker from the moment its message is queued. The tracker is *pending* until the reply,
//! its deadline, the death of the replier or the end of the caller, whichever comes first; it stays in
//! the table, and counts for its caller, for as long as the call's message is queued.
//!
//! All connections of a domain share the trackers of one [`ReplyArena`]. They are indexed by caller and
//! cookie, by replier and name, and by deadline, so that no event looks at trackers that it does not
//! concern; `n` is the number of trackers in the following.

use super::names::{ConnectionIndex, HandOver};
use super::tracker::{BY_COOKIE, BY_DEADLINE, BY_REPLIER, State};
use crate::Instant;
use crate::abi::{Errno, MsgInfo};
use crate::queue;
use crate::slots::FreeList;
use crate::tree::Root;

pub use super::tracker::{Call, CallError, CallMode, EndedCall, Resumed, Tracker, TrackerId};

/// Calls that one caller may have open.
pub const CALLS_MAX: u32 = 128;

/// Which trackers of a domain are in use.
#[derive(Debug)]
pub struct ReplyArena {
    slots: FreeList,
    /// All trackers with a caller, by caller, cookie and age.
    by_cookie: Root<BY_COOKIE>,
    /// Pending ones by replier, name and age.
    by_replier: Root<BY_REPLIER>,
    /// Pending and settled ones by deadline and age.
    by_deadline: Root<BY_DEADLINE>,
    serial: u64,
}

/// The calls of one connection.
#[derive(Debug)]
pub struct OpenCalls {
    count: u32,
}

/// The awaited replies of a domain to work with.
#[derive(Debug)]
pub struct ReplyTable<'a> {
    arena: &'a mut ReplyArena,
    trackers: &'a mut [Tracker],
    calls: &'a mut [OpenCalls],
}

impl ReplyArena {
    /// All trackers free.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            slots: FreeList::new(),
            by_cookie: Root::new(),
            by_replier: Root::new(),
            by_deadline: Root::new(),
            serial: 0,
        }
    }
}

impl Default for ReplyArena {
    fn default() -> Self {
        Self::new()
    }
}

impl OpenCalls {
    /// No calls.
    #[must_use]
    pub const fn new() -> Self {
        Self { count: 0 }
    }

    /// Calls that count for the connection, in `O(1)`.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether no call counts for the connection, in `O(1)`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }
}

impl Default for OpenCalls {
    fn default() -> Self {
        Self::new()
    }
}

impl<'a> ReplyTable<'a> {
    /// The trackers of `arena` and the calls of every connection, which must be the same each time. The
    /// connection of index `n` has its calls at place `n`.
    pub const fn new(
        arena: &'a mut ReplyArena,
        trackers: &'a mut [Tracker],
        calls: &'a mut [OpenCalls],
    ) -> Self {
        Self { arena, trackers, calls }
    }

    /// Whether `caller` may make another call, in `O(1)`.
    ///
    /// # Errors
    ///
    /// [`CallError`], as [`open`](Self::open) would report.
    pub fn check(&self, caller: ConnectionIndex) -> Result<(), CallError> {
        let calls = self.calls.get(caller.0 as usize).ok_or(CallError::NoConnection)?;
        if calls.count >= CALLS_MAX {
            return Err(CallError::TooMany);
        }
        if self.arena.slots.len() >= self.trackers.len() { Err(CallError::Full) } else { Ok(()) }
    }

    /// Calls that `caller` has open.
    pub fn open_calls(&self, caller: ConnectionIndex) -> u32 {
        self.calls.get(caller.0 as usize).map_or(0, |calls| calls.count)
    }

    /// Awaits the reply to `call`, which is made `now`, as [`open`](Self::open).
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub fn open_at(&mut self, call: Call, now: Instant) -> Result<TrackerId, CallError> {
        // Fewer calls are made than nanoseconds pass.
        self.arena.serial = self.arena.serial.max(now.as_nanos());
        self.open(call)
    }

    /// Whether a call was made [after](Self::open_at) `then`, in `O(1)`.
    #[must_use]
    pub fn is_made_after(&self, id: TrackerId, then: Instant) -> bool {
        self.arena.slots.get(self.trackers, id.0).is_some_and(|tracker| tracker.serial > then.as_nanos())
    }

    /// Awaits the reply to `call`, in `O(log n)`.
    ///
    /// The tracker is pending from now on; [`carry`](Self::carry) ties it to its message. If the message
    /// cannot be queued after all, [`close`](Self::close) takes it back.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub fn open(&mut self, call: Call) -> Result<TrackerId, CallError> {
        self.check(call.caller)?;
        let id = self.arena.slots.allocate(self.trackers).ok_or(CallError::Full)?;
        let index = id.index();
        self.arena.serial = self.arena.serial.wrapping_add(1);
        let serial = self.arena.serial;
        if let Some(tracker) = self.trackers.get_mut(index as usize) {
            let slot = core::mem::take(&mut tracker.slot);
            *tracker = Tracker {
                slot,
                caller: Some(call.caller),
                replier: call.replier,
                cookie: call.cookie,
                deadline: call.deadline,
                sequence: call.sequence,
                mode: call.mode,
                state: State::Pending,
                serial,
                ..Tracker::new()
            };
        }
        if let Some(calls) = self.calls.get_mut(call.caller.0 as usize) {
            calls.count += 1;
        }
        let caller = (Some(call.caller), call.cookie, serial);
        let cookie = self
            .arena
            .by_cookie
            .insert(self.trackers, index, |_, other: &Tracker| caller.cmp(&other.cookie_key()));
        let replier = self.expect_from(index, call.replier);
        let due = (call.deadline, serial);
        let deadline = self
            .arena
            .by_deadline
            .insert(self.trackers, index, |_, other: &Tracker| due.cmp(&other.deadline_key()));
        if cookie.and(deadline).is_err() || replier.is_none() {
            self.end(index);
            return Err(CallError::Full);
        }
        Ok(TrackerId(id))
    }

    /// Ties the tracker to the queue entry of its message at `place`, also after that has moved. `O(1)`.
    ///
    /// The tracker stays in the table until [`drop_carrier`](Self::drop_carrier) says the entry is gone.
    pub fn carry(&mut self, id: TrackerId, place: ConnectionIndex, entry: queue::Handle) {
        if let Some(tracker) = self.arena.slots.get_mut(self.trackers, id.0) {
            tracker.carrier = Some((place, entry));
        }
    }

    /// The queue entry of the call's message is gone, in `O(log n)`: received, dropped or lost.
    ///
    /// A pending call stays pending.
    pub fn drop_carrier(&mut self, id: TrackerId) {
        if let Some(tracker) = self.arena.slots.get_mut(self.trackers, id.0) {
            tracker.carrier = None;
            self.bury(id.0.index());
        }
    }

    /// Ends a pending call, whatever the reason, in `O(log n)`; `None` if it has ended before.
    ///
    /// After this nobody can reply to it. A call that was settled and not fetched ends too.
    pub fn close(&mut self, id: TrackerId) -> Option<EndedCall> {
        self.arena.slots.get(self.trackers, id.0)?;
        self.end(id.0.index())
    }

    /// The call that a reply of `replier` to `caller` with this cookie answers: the newest that is pending.
    /// `O(log n)`, and a step for each other call with that cookie, at most [`CALLS_MAX`].
    #[must_use]
    pub fn find(&self, caller: ConnectionIndex, replier: ConnectionIndex, cookie: u64) -> Option<TrackerId> {
        self.newest(caller, cookie, |tracker| tracker.state == State::Pending && tracker.replier == replier)
    }

    /// Ends the first call whose deadline is not later than `now`, in `O(log n)`; `None` if there is none.
    pub fn take_expired(&mut self, now: Instant) -> Option<EndedCall> {
        let index = self.arena.by_deadline.first()?;
        if self.trackers.get(index as usize)?.deadline > now {
            return None;
        }
        self.end(index)
    }

    /// A call that awaits its reply from `replier`, in `O(log n)`; `None` if there is none.
    ///
    /// For a replier that goes and [settles](Self::settle) or [closes](Self::close) each; they come in order of
    /// name number and age.
    #[must_use]
    pub fn owed_by(&self, replier: ConnectionIndex) -> Option<TrackerId> {
        let index = self.owed_from((replier, 0, 0))?;
        if self.trackers.get(index as usize)?.replier != replier {
            return None;
        }
        self.arena.slots.id_at(self.trackers, index).map(TrackerId)
    }

    /// Forgets one call of `caller`, in `O(log n)`; `None` if there is none.
    ///
    /// For a caller that goes: its calls count for nobody any more, and a connection that comes to have
    /// its index starts with none. Nobody has to be told.
    pub fn take_made_by(&mut self, caller: ConnectionIndex) -> Option<EndedCall> {
        let from = (Some(caller), 0, 0);
        let index = self
            .arena
            .by_cookie
            .lower_bound(self.trackers, |_, tracker: &Tracker| tracker.cookie_key().cmp(&from))?;
        let tracker = self.trackers.get(index as usize)?;
        if tracker.caller != Some(caller) {
            return None;
        }
        let ended = self.ended(tracker)?;
        self.unlink(index);
        let _ = self.arena.by_cookie.remove(self.trackers, index);
        if let Some(calls) = self.calls.get_mut(caller.0 as usize) {
            calls.count = calls.count.saturating_sub(1);
        }
        let tracker = self.trackers.get_mut(index as usize)?;
        tracker.caller = None;
        tracker.state = State::Closed;
        self.bury(index);
        Some(ended)
    }

    /// Redirects the calls to a name that has passed from or to its activator, in `O(log n)` for each.
    ///
    /// Calls that one of the two made itself stay as they are. Returns how many were redirected.
    pub fn redirect(&mut self, hand_over: HandOver) -> usize {
        let HandOver { sequence, from, to } = hand_over;
        if sequence == 0 || from == to {
            return 0;
        }
        let mut redirected = 0;
        let mut next = self.owed_from((from, sequence, 0));
        for _ in 0..self.trackers.len() {
            let Some((index, tracker)) =
                next.and_then(|index| Some((index, self.trackers.get(index as usize)?)))
            else {
                break;
            };
            if (tracker.replier, tracker.sequence) != (from, sequence) {
                break;
            }
            let caller = tracker.caller;
            next = self.arena.by_replier.next(self.trackers, index);
            if caller == Some(from) || caller == Some(to) {
                continue;
            }
            let _ = self.arena.by_replier.remove(self.trackers, index);
            if self.expect_from(index, to).is_some() {
                redirected += 1;
            }
        }
        redirected
    }

    /// The caller of a synchronous call has stopped waiting for now, in `O(1)`; the call stays pending.
    pub fn interrupt(&mut self, id: TrackerId) {
        if let Some(tracker) = self.arena.slots.get_mut(self.trackers, id.0)
            && tracker.state == State::Pending
            && tracker.mode != CallMode::Asynchronous
        {
            tracker.interrupted = true;
        }
    }

    /// Ends an interrupted call with a result that its caller fetches when it comes back, in `O(log n)`.
    ///
    /// If it does not, [`take_expired`](Self::take_expired) hands the result out at the deadline, so
    /// that nothing of it stays behind. Returns whether there was such a call.
    pub fn settle(&mut self, id: TrackerId, result: Result<MsgInfo, Errno>) -> bool {
        let Some(tracker) = self.arena.slots.get_mut(self.trackers, id.0) else {
            return false;
        };
        if tracker.state != State::Pending || !tracker.interrupted {
            return false;
        }
        tracker.state = State::Settled(result);
        let _ = self.arena.by_replier.remove(self.trackers, id.0.index());
        true
    }

    /// A caller comes back to the synchronous call with this cookie, waiting with `token` from now on.
    ///
    /// Only the newest call with that cookie counts. `O(log n)`, and a step for each other call with
    /// that cookie, at most [`CALLS_MAX`]; `None` if that call is not an interrupted one.
    pub fn resume(&mut self, caller: ConnectionIndex, cookie: u64, token: u64) -> Option<Resumed> {
        let id = self.newest(caller, cookie, |tracker| tracker.state != State::Closed)?;
        let tracker = self.arena.slots.get_mut(self.trackers, id.0)?;
        if !tracker.interrupted {
            return None;
        }
        if let State::Settled(result) = tracker.state {
            let _ = self.end(id.0.index());
            return Some(Resumed::Ended(result));
        }
        tracker.interrupted = false;
        tracker.mode = CallMode::Synchronous { token };
        Some(Resumed::Waiting(id))
    }

    /// The call of a tracker that is pending, in `O(1)`.
    #[must_use]
    pub fn get(&self, id: TrackerId) -> Option<Call> {
        let tracker = self.arena.slots.get(self.trackers, id.0)?;
        if tracker.state == State::Pending { tracker.call() } else { None }
    }

    /// Whether the caller of a pending call is away, in `O(1)`.
    #[must_use]
    pub fn is_interrupted(&self, id: TrackerId) -> bool {
        self.arena.slots.get(self.trackers, id.0).is_some_and(|tracker| tracker.interrupted)
    }

    /// The queue entry that carries the call's message, and whose queue that is, in `O(1)`; `None` once it is
    /// gone.
    #[must_use]
    pub fn carrier(&self, id: TrackerId) -> Option<(ConnectionIndex, queue::Handle)> {
        self.arena.slots.get(self.trackers, id.0)?.carrier
    }

    /// When [`take_expired`](Self::take_expired) will next have something, in `O(1)`.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Instant> {
        let index = self.arena.by_deadline.first()?;
        self.trackers.get(index as usize).map(|tracker| tracker.deadline)
    }

    /// The calls of `caller` that are pending, by cookie, each in `O(1)` on average.
    pub fn made_by(&self, caller: ConnectionIndex) -> impl Iterator<Item = Call> {
        self.trackers_of(caller).filter(|tracker| tracker.state == State::Pending).filter_map(Tracker::call)
    }

    /// For each call of `caller` that has ended but still counts, where its message waits; that is not always
    /// the replier, which an ended call keeps in a hand-over. Each in `O(1)` on average.
    pub fn lingering(&self, caller: ConnectionIndex) -> impl Iterator<Item = ConnectionIndex> {
        let ended = self.trackers_of(caller).filter(|tracker| tracker.state == State::Closed);
        ended.filter_map(|tracker| tracker.carrier.map(|(place, _)| place))
    }

    fn trackers_of(&self, caller: ConnectionIndex) -> impl Iterator<Item = &Tracker> {
        let from = (Some(caller), 0, 0);
        let mut next = self
            .arena
            .by_cookie
            .lower_bound(self.trackers, |_, tracker: &Tracker| tracker.cookie_key().cmp(&from));
        let walk = core::iter::from_fn(move || {
            let index = next?;
            let tracker = self.trackers.get(index as usize)?;
            next = self.arena.by_cookie.next(self.trackers, index);
            if tracker.caller == Some(caller) { Some(tracker) } else { None }
        });
        walk.take(self.arena.by_cookie.len())
    }

    /// Calls that count for `caller`, in `O(1)`.
    #[must_use]
    pub fn count(&self, caller: ConnectionIndex) -> usize {
        self.calls.get(caller.0 as usize).map_or(0, OpenCalls::len)
    }

    /// Trackers in use, in `O(1)`.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.arena.slots.len()
    }

    /// Whether no tracker is in use, in `O(1)`.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.arena.slots.is_empty()
    }

    /// The newest call of `caller` with that cookie that `fits`.
    fn newest(
        &self,
        caller: ConnectionIndex,
        cookie: u64,
        fits: impl Fn(&Tracker) -> bool,
    ) -> Option<TrackerId> {
        let end = (Some(caller), cookie, u64::MAX);
        let after = self
            .arena
            .by_cookie
            .lower_bound(self.trackers, |_, tracker: &Tracker| tracker.cookie_key().cmp(&end));
        let mut next = match after {
            Some(after) => self.arena.by_cookie.prev(self.trackers, after),
            None => self.arena.by_cookie.last(self.trackers),
        };
        for _ in 0..CALLS_MAX {
            let index = next?;
            let tracker = self.trackers.get(index as usize)?;
            if (tracker.caller, tracker.cookie) != (Some(caller), cookie) {
                return None;
            }
            if fits(tracker) {
                return self.arena.slots.id_at(self.trackers, index).map(TrackerId);
            }
            next = self.arena.by_cookie.prev(self.trackers, index);
        }
        None
    }

    fn owed_from(&self, from: (ConnectionIndex, u64, u64)) -> Option<u32> {
        self.arena
            .by_replier
            .lower_bound(self.trackers, |_, tracker: &Tracker| tracker.replier_key().cmp(&from))
    }

    /// Sets the replier of a tracker that is in no index of repliers.
    fn expect_from(&mut self, index: u32, replier: ConnectionIndex) -> Option<()> {
        let tracker = self.trackers.get_mut(index as usize)?;
        tracker.replier = replier;
        let key = tracker.replier_key();
        self.arena
            .by_replier
            .insert(self.trackers, index, |_, other: &Tracker| key.cmp(&other.replier_key()))
            .ok()
    }

    fn ended(&self, tracker: &Tracker) -> Option<EndedCall> {
        let unclaimed = match tracker.state {
            State::Settled(result) => Some(result),
            State::Pending | State::Closed => None,
        };
        Some(EndedCall { call: tracker.call()?, interrupted: tracker.interrupted, unclaimed })
    }

    /// Ends a call that is pending or settled.
    fn end(&mut self, index: u32) -> Option<EndedCall> {
        let tracker = self.trackers.get(index as usize)?;
        if tracker.state == State::Closed {
            return None;
        }
        let ended = self.ended(tracker);
        self.unlink(index);
        self.trackers.get_mut(index as usize)?.state = State::Closed;
        self.bury(index);
        ended
    }

    /// Takes a tracker from the indices of those that can still end. It may be in one only, or in none.
    fn unlink(&mut self, index: u32) {
        let _ = self.arena.by_replier.remove(self.trackers, index);
        let _ = self.arena.by_deadline.remove(self.trackers, index);
    }

    /// Frees a tracker that has ended and whose message is gone; its caller may make another call then.
    fn bury(&mut self, index: u32) {
        let Some(tracker) = self.trackers.get(index as usize) else {
            return;
        };
        if tracker.state != State::Closed || tracker.carrier.is_some() {
            return;
        }
        let caller = tracker.caller;
        if let Some(calls) = caller.and_then(|caller| self.calls.get_mut(caller.0 as usize)) {
            calls.count = calls.count.saturating_sub(1);
        }
        let _ = self.arena.by_cookie.remove(self.trackers, index);
        if let Some(id) = self.arena.slots.id_at(self.trackers, index) {
            self.arena.slots.free(self.trackers, id);
        }
    }
}

#[cfg(test)]
#[path = "reply_tests.rs"]
mod tests;
