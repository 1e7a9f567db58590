//! Calls: replies that are awaited, and callers that wait inside their SEND.

use crate::abi::{Errno, MsgInfo};

use super::Domain;
use super::deliver::{Charge, Deposit, Parcel};
use super::host::{Clock, HandleId, Host};
use super::names::ConnectionIndex;
use super::reply::{CallMode, EndedCall, Resumed, TrackerId};
use super::table::{Blank, CallIx, ConnIx, Place};
use crate::Instant;

/// How far a synchronous call is.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallState {
    /// The caller waits in the command with this token.
    Waiting { token: u64 },
    /// The caller was interrupted and is expected back.
    Interrupted,
    /// The caller was interrupted, and this reply came meanwhile.
    Answered(Deposit),
    /// The host is to be told.
    Ended { to: HandleId, token: u64, result: Result<MsgInfo, Errno> },
}

/// One synchronous call, from its SEND until its end was told.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    pub(super) state: CallState,
    tracker: Option<TrackerId>,
    cookie: u64,
    conn: ConnIx,
    next_own: Option<CallIx>,
    pub(super) next_done: Option<CallIx>,
}

impl Blank for Call {
    const BLANK: Self = Self {
        state: CallState::Interrupted,
        tracker: None,
        cookie: 0,
        conn: ConnIx::FIRST,
        next_own: None,
        next_done: None,
    };
}

/// The synchronous calls of one connection that have not ended, newest first.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnCalls {
    first: Option<CallIx>,
}

impl OwnCalls {
    /// No calls.
    pub(super) const NONE: Self = Self { first: None };
}

/// What a repeated synchronous call found.
pub(super) enum Return {
    /// No interrupted call with that cookie: this is a new one.
    New,
    /// The call goes on.
    Waiting,
    /// The reply had come meanwhile.
    Answered(MsgInfo),
    /// The call had ended meanwhile, without a reply.
    Failed(Errno),
}

impl Domain<'_> {
    /// Ends a synchronous call that waits, because its caller was interrupted or does not want it any more.
    ///
    /// With `EINTR` the call goes on without its caller, who may come back to it by repeating the SEND until
    /// the deadline; with any other reason it is forgotten. Nothing happens if the call has ended already: a
    /// reply that was there first wins. Cost: `O(own synchronous calls)`.
    pub fn cancel(&mut self, host: &mut dyn Host, at: Clock, handle: HandleId, token: u64, reason: Errno) {
        let _ = (host, at);
        let Ok(conn) = self.connected(handle) else {
            return;
        };
        let waits = |call: &Call| matches!(call.state, CallState::Waiting { token: other } if other == token);
        let Some(place) = self.own_call(conn, waits) else {
            return;
        };
        let tracker = self.calls[place].tracker;
        if reason != Errno::EINTR {
            self.end_tracker(tracker);
            self.end_call(place, Err(reason));
            return;
        }
        // Its end is told by a record of its own; without room for one the call ends altogether.
        let ended = Call { tracker: None, next_own: None, ..self.calls[place] };
        match (tracker, self.calls.insert(ended)) {
            (Some(tracker), Some(ended)) => {
                self.replies.interrupt(tracker);
                self.calls[place].state = CallState::Interrupted;
                self.finish(ended, Err(reason));
            }
            (_, ended) => {
                if let Some(ended) = ended {
                    self.calls.remove(ended);
                }
                self.end_tracker(tracker);
                self.end_call(place, Err(reason));
            }
        }
    }

    /// Ends every call whose deadline has come. Cost: `O(log trackers)` for each.
    pub fn handle_timeout(&mut self, host: &mut dyn Host, at: Clock) {
        while let Some(ended) = self.replies.take_expired(at.monotonic) {
            self.call_failed(host, at, ended, Errno::ETIMEDOUT);
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due next, in `O(1)`.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.replies.next_deadline()
    }

    /// Makes room for a synchronous call and its end; [`wait_for`](Self::wait_for) starts it.
    pub(super) fn prepare_call(&mut self, conn: ConnIx, cookie: u64, token: u64) -> Result<CallIx, Errno> {
        let state = CallState::Waiting { token };
        let next_own = self.conns[conn].calls.first;
        let call = Call { state, cookie, conn, next_own, ..Call::BLANK };
        let place = self.calls.insert(call).ok_or(Errno::ENOMEM)?;
        self.conns[conn].calls.first = Some(place);
        Ok(place)
    }

    /// Ties a prepared call to its tracker.
    pub(super) fn wait_for(&mut self, place: CallIx, tracker: TrackerId) {
        self.calls[place].tracker = Some(tracker);
    }

    /// Forgets a prepared call of which nobody is told.
    pub(super) fn forget_call(&mut self, place: CallIx) {
        self.unlink_call(place);
        self.calls.remove(place);
    }

    /// The number by which a tracker names its synchronous call.
    pub(super) fn call_number(place: CallIx) -> u64 {
        u64::from(place.index())
    }

    /// Lets a caller that was interrupted come back to its call with this cookie.
    pub(super) fn resume(&mut self, host: &mut dyn Host, conn: ConnIx, cookie: u64, token: u64) -> Return {
        let Some(place) = self.own_call(conn, |call| call.cookie == cookie) else {
            return Return::New;
        };
        let number = Self::call_number(place);
        match (self.calls[place].state, self.replies.resume(index(conn), cookie, number)) {
            (CallState::Interrupted, Some(Resumed::Waiting(_))) => {
                self.calls[place].state = CallState::Waiting { token };
                Return::Waiting
            }
            (CallState::Answered(deposit), Some(Resumed::Ended(_))) => {
                self.forget_call(place);
                let info = self.hand_out(host, conn, deposit);
                self.made_room(host, conn);
                Return::Answered(info)
            }
            (CallState::Interrupted, Some(Resumed::Ended(Err(reason)))) => {
                self.forget_call(place);
                Return::Failed(reason)
            }
            _ => Return::New,
        }
    }

    /// Brings a reply to a caller that waits inside its SEND.
    ///
    /// # Errors
    ///
    /// What the replier is to be told: `ECOMM`, or whatever delivery reports.
    pub(super) fn answer(
        &mut self,
        host: &mut dyn Host,
        tracker: TrackerId,
        token: u64,
        parcel: &Parcel<'_>,
    ) -> Result<(), Errno> {
        let Some((place, conn)) = self.call_of(token) else {
            self.end_tracker(Some(tracker));
            return Err(Errno::ECONNRESET);
        };
        // Who waits takes the reply at once, and then it never counts as waiting.
        let waits = matches!(self.calls[place].state, CallState::Waiting { .. });
        match self.place(host, conn, parcel, &mut None, !waits) {
            Err(error) => {
                let told = if error == Errno::ECOMM { Errno::EREMOTEIO } else { error };
                if !self.replies.settle(tracker, Err(told)) {
                    self.end_tracker(Some(tracker));
                    self.end_call(place, Err(told));
                }
                Err(error)
            }
            Ok((slice, files)) if waits => {
                self.end_tracker(Some(tracker));
                let info = self.give(host, conn, slice, files);
                self.end_call(place, Ok(info));
                Ok(())
            }
            Ok((slice, files)) => {
                // The caller comes back for it, or the deadline takes it away.
                let charge = Charge { user: parcel.user, size: slice.size, fds: parcel.fds };
                self.calls[place].state = CallState::Answered(Deposit { slice, charge, files });
                let info = MsgInfo { offset: slice.offset, ..MsgInfo::default() };
                self.replies.settle(tracker, Ok(info));
                Ok(())
            }
        }
    }

    /// Tells a caller that its call has ended without a reply.
    pub(super) fn call_failed(&mut self, host: &mut dyn Host, at: Clock, ended: EndedCall, reason: Errno) {
        let caller = ConnIx::new(ended.call.caller.0);
        match ended.call.mode {
            CallMode::Asynchronous => {
                self.notify_caller(host, at, caller, ended.call.cookie, reason == Errno::EPIPE);
            }
            CallMode::Synchronous { token } => {
                if let Some((place, _)) = self.call_of(token) {
                    self.drop_answer(host, place);
                    self.end_call(place, Err(reason));
                }
            }
        }
    }

    /// Ends every synchronous call of a connection.
    pub(super) fn end_calls(&mut self, host: &mut dyn Host, conn: ConnIx, reason: Errno) {
        while let Some(place) = self.conns[conn].calls.first {
            self.end_tracker(self.calls[place].tracker);
            self.drop_answer(host, place);
            self.end_call(place, Err(reason));
        }
    }

    /// Forgets one call of a connection that goes; false if there is none.
    pub(super) fn forget_own_call(&mut self, conn: ConnIx) -> bool {
        self.replies.take_made_by(index(conn)).is_some()
    }

    /// Tells one of those who await a reply of a connection that goes; false if there is none.
    pub(super) fn fail_awaited(&mut self, host: &mut dyn Host, at: Clock, conn: ConnIx) -> bool {
        let Some(tracker) = self.replies.owed_by(index(conn)) else {
            return false;
        };
        self.unanswered(host, at, tracker);
        true
    }

    /// Ends a pending call that nobody will answer. A caller that is away learns it when it comes back.
    fn unanswered(&mut self, host: &mut dyn Host, at: Clock, tracker: TrackerId) {
        if !self.replies.settle(tracker, Err(Errno::EPIPE))
            && let Some(ended) = self.replies.close(tracker)
        {
            self.call_failed(host, at, ended, Errno::EPIPE);
        }
    }

    /// The call whose message leaves a queue unread has no reply any more.
    pub(super) fn call_dropped(&mut self, host: &mut dyn Host, at: Clock, tracker: Option<TrackerId>) {
        let Some(tracker) = tracker else {
            return;
        };
        let pending = self.replies.get(tracker).is_some();
        self.replies.drop_carrier(tracker);
        if pending {
            self.unanswered(host, at, tracker);
        }
    }

    /// The message of a call is no longer queued.
    pub(super) fn unqueue_tracker(&mut self, tracker: Option<TrackerId>) {
        if let Some(tracker) = tracker {
            self.replies.drop_carrier(tracker);
        }
    }

    /// Takes a tracker back that nobody is to be told of.
    pub(super) fn end_tracker(&mut self, tracker: Option<TrackerId>) {
        if let Some(tracker) = tracker {
            let _ = self.replies.close(tracker);
        }
    }

    fn call_of(&self, number: u64) -> Option<(CallIx, ConnIx)> {
        let place = CallIx::new(u32::try_from(number).ok()?);
        let call = &self.calls[place];
        match call.state {
            CallState::Ended { .. } => None,
            _ => Some((place, call.conn)),
        }
    }

    /// The newest call of a connection that `fits`.
    fn own_call(&self, conn: ConnIx, fits: impl Fn(&Call) -> bool) -> Option<CallIx> {
        let mut at = self.conns[conn].calls.first;
        while let Some(place) = at {
            if fits(&self.calls[place]) {
                return Some(place);
            }
            at = self.calls[place].next_own;
        }
        None
    }

    fn drop_answer(&mut self, host: &mut dyn Host, place: CallIx) {
        let Call { state: CallState::Answered(deposit), conn, .. } = self.calls[place] else {
            return;
        };
        self.calls[place].state = CallState::Interrupted;
        self.discard(host, conn, deposit);
        self.made_room(host, conn);
    }

    /// Ends a call: whoever waits is told, and nobody if the caller is away.
    fn end_call(&mut self, place: CallIx, result: Result<MsgInfo, Errno>) {
        self.unlink_call(place);
        self.finish(place, result);
    }

    /// Puts a call that is in no list any more where the host finds it.
    fn finish(&mut self, place: CallIx, result: Result<MsgInfo, Errno>) {
        let CallState::Waiting { token } = self.calls[place].state else {
            self.calls.remove(place);
            return;
        };
        let to = self.conns[self.calls[place].conn].known_as;
        let call = &mut self.calls[place];
        call.state = CallState::Ended { to, token, result };
        call.next_done = None;
        match self.pending.last_call.replace(place) {
            Some(last) => self.calls[last].next_done = Some(place),
            None => self.pending.first_call = Some(place),
        }
    }

    /// Takes a call out of its connection's list, in `O(own synchronous calls)`.
    fn unlink_call(&mut self, place: CallIx) {
        let Call { conn, next_own, .. } = self.calls[place];
        let mut at = self.conns[conn].calls.first;
        if at == Some(place) {
            self.conns[conn].calls.first = next_own;
            return;
        }
        while let Some(before) = at {
            at = self.calls[before].next_own;
            if at == Some(place) {
                self.calls[before].next_own = next_own;
                return;
            }
        }
    }
}

/// How the tables name a connection.
pub(super) fn index(conn: ConnIx) -> ConnectionIndex {
    ConnectionIndex(conn.index())
}

#[cfg(test)]
#[path = "call_tests.rs"]
mod tests;
