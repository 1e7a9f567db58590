//! Calls that came by lane and wait for an answer of this connection.

use kdbus_core::abi::Msg;
use kdbus_core::channel::{CallName, CallState, CallWord};

use super::inward::{InLanes, Inward};
use super::map::WordMap;

/// A call that came by lane and was not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwedCall {
    /// Which lane.
    lane: usize,
    pub(super) name: CallName,
    /// Another call with its cookie came by kdbusd, which knows the newest.
    pub(super) is_contested: bool,
}

impl InLanes {
    /// The call from connection `caller` that a reply to `cookie` answers, if it came by lane. It may be there still.
    pub(super) fn owed(&mut self, caller: u64, cookie: u64) -> Option<OwedCall> {
        let is_meant = |sender| sender == caller;
        // Mostly the one that came last is answered first.
        let last = self.owed_in(self.last_call, cookie, is_meant);
        last.or_else(|| (0..self.lanes.len()).find_map(|lane| self.owed_in(lane, cookie, is_meant)))
    }

    /// The same, whoever called, by a lane behind `last`.
    pub(super) fn owed_to_any(&mut self, last: Option<&OwedCall>, cookie: u64) -> Option<OwedCall> {
        let first = last.map_or(0, |owed| owed.lane + 1);
        (first..self.lanes.len()).find_map(|lane| self.owed_in(lane, cookie, |_| true))
    }

    fn owed_in(&mut self, lane: usize, cookie: u64, is_meant: impl Fn(u64) -> bool) -> Option<OwedCall> {
        let unseen = self.unseen;
        let Inward { lane: reader, terms, owed, .. } = self.lanes.get_mut(lane)?.as_mut()?;
        terms.refresh(reader.page());
        if !is_meant(terms.sender()) {
            return None;
        }
        let waits = |name: CallName| reader.call(name).state(name.number) == Some(CallState::Pending);
        let mut ahead = None;
        reader.each_call_ahead(|call, other| {
            let name = CallName::from_word(call).filter(|name| other == cookie && waits(*name));
            ahead = name.or(ahead);
        });
        // What was not copied out is newer than what was.
        let (name, is_contested) = match ahead {
            Some(name) => (name, unseen),
            None => owed.find(cookie, waits).map(|name| (name, owed.is_contested(name)))?,
        };
        Some(OwedCall { lane, name, is_contested })
    }

    /// The word of such a call.
    pub(super) fn call(&self, owed: &OwedCall) -> Option<CallWord<&WordMap>> {
        self.lanes.get(owed.lane)?.as_ref().map(|inward| inward.lane.call(owed.name))
    }

    /// kdbusd's number of the lane by which it came.
    pub(super) fn number(&self, owed: &OwedCall) -> Option<u32> {
        self.lanes.get(owed.lane)?.as_ref().map(|inward| inward.lane.number())
    }

    /// Ends the call that a message is, which is to be dropped. Returns kdbusd's number of its lane, whose sender has to
    /// hear of it.
    pub(super) fn drop_call(&mut self, slot: u32) -> Option<u32> {
        let waiting = (*self.waiting.get(slot as usize)?)?;
        let inward = self.lanes.get_mut(waiting.lane?)?.as_mut()?;
        let name = waiting.call?;
        inward.owed.remove(name);
        inward.lane.call(name).end(name.number, CallState::Expired).then(|| inward.lane.number())
    }

    /// Whether notifications of this transport's own wait. Cost: a look at each place.
    pub(super) fn has_notices(&self) -> bool {
        self.waiting.iter().flatten().any(|waiting| waiting.lane.is_none())
    }

    /// Whether some calls that came by lane may wait for an answer.
    pub(super) fn owes(&self) -> bool {
        self.lanes.iter().flatten().any(|inward| !inward.owed.is_empty())
    }

    /// Whether something came by kdbusd that was not looked at: it may be a call that is newer than those in the lanes.
    pub(super) const fn set_unseen(&mut self, unseen: bool) {
        self.unseen = unseen;
    }

    /// A message came by kdbusd.
    pub(super) fn came_by_bus(&mut self, header: &Msg) {
        if header.expects_reply() {
            for inward in
                self.lanes.iter_mut().flatten().filter(|inward| inward.terms.sender() == header.src_id)
            {
                inward.owed.contest(header.cookie);
            }
        }
    }

    /// Forgets such a call if it waits no longer.
    pub(super) fn forget_ended(&mut self, owed: &OwedCall) {
        let state = self.call(owed).and_then(|call| call.state(owed.name.number));
        if state != Some(CallState::Pending) {
            self.forget_owed(owed);
        }
    }

    /// Such a call was answered, or has ended otherwise.
    pub(super) fn forget_owed(&mut self, owed: &OwedCall) {
        if let Some(Some(inward)) = self.lanes.get_mut(owed.lane) {
            inward.owed.remove(owed.name);
        }
    }
}
