//! Calls that came by lane and wait for an answer of this connection.

use kdbus_core::abi::Msg;
use kdbus_core::channel::{CallName, CallState, CallWord};

use super::in_lanes::InLanes;
use super::inward::Inward;
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
        // Those that are looked at for the first time here were not there when kdbusd's were.
        let mut first_seen = 0_u128;
        let ahead = reader.each_call_ahead(owed.ahead(), |call, cookie| {
            if let Some(name) = CallName::from_word(call) {
                owed.add(name, cookie);
                first_seen |= 1 << name.index;
            }
        });
        owed.set_ahead(ahead);
        let name = owed.find(cookie, waits)?;
        let is_contested = owed.is_contested(name) || unseen && first_seen >> name.index & 1 != 0;
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

#[cfg(all(test, feature = "lanes"))]
mod tests {
    use core::mem::offset_of;

    use kdbus_core::abi::MsgFlags;
    use kdbus_core::channel::{LaneHead, LaneLayout, Words};
    use zerocopy::IntoBytes;

    use super::super::handle::Answer;
    use super::super::lane::InLane;
    use super::super::testbed::Lane;
    use super::*;

    const SENDER: u64 = 7;

    #[test]
    fn what_waits_in_a_lane_is_looked_at_once() {
        let mut lane = Lane::new(SENDER);
        let fds = lane.fds().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let brought = InLane::map(Answer { fds, ..Answer::new() }).unwrap();
        let (mut inward, _arena) = InLanes::new([brought], 1, 9, 16).unwrap();
        let words = rustix::fs::fstat(&lane.files[0]).unwrap().st_size as usize / 8;
        let ring = WordMap::writable(&lane.files[0], words).unwrap();
        let mut call = |number, cookie| {
            let name = CallName { index: number as usize, number };
            inward.lanes[0].as_ref().unwrap().lane.call(name).begin(number);
            let flags = MsgFlags::EXPECT_REPLY.bits();
            let header = Msg { flags, cookie, ..Msg::default() };
            let head = LaneHead { first: Msg::SIZE as u64, second: 0, key: number, call: name.word() };
            let mut reserved = lane.writer.reserve(head).unwrap();
            reserved.put(header.as_bytes());
            let _ = reserved.commit().unwrap();
        };
        call(1, 50);
        call(2, 60);
        assert_eq!(inward.owed(SENDER, 50).map(|owed| owed.name.number), Some(1));
        // Its sender makes another call of the first one: nobody sees that.
        let ring_at = words - LaneLayout::of_words(words).unwrap().ring() as usize;
        let other = CallName { index: 3, number: 3 };
        inward.lanes[0].as_ref().unwrap().lane.call(other).begin(other.number);
        ring.store(ring_at + 3, other.word());
        ring.store(ring_at + 4 + offset_of!(Msg, cookie) / 8, 70);
        assert!(inward.owed(SENDER, 70).is_none());
        assert_eq!(inward.owed(SENDER, 60).map(|owed| owed.name.number), Some(2));
    }
}
