//! Messages by lane that are received past the queue: the only one there is, and the reply that the connection waits for.

use kdbus_core::abi::Timestamp;
use kdbus_core::channel::{CallName, LaneHead, Order, Place, Settled, Violation, settle};
use kdbus_core::hint::cold;
use zerocopy::IntoBytes;

use super::arena::{Arena, Held};
use super::bell;
use super::calls::Answers;
use super::in_lanes::InLanes;
use super::inward::{Copied, Inward, Look};
use super::outward::OutLanes;
use super::point::{self, Point};

/// The application holds all the room there is for what comes by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// Which lanes have messages.
#[derive(Clone, Copy, Debug)]
pub(super) enum Fresh {
    None,
    /// This one alone, and this one is its next.
    One(usize, LaneHead),
    Several,
}

impl InLanes {
    /// Which lanes have a message that was not looked at. Senders of the others are told of room: no lane may be cold.
    pub(super) fn only_fresh(&mut self) -> Fresh {
        let mut fresh = Fresh::None;
        for (at, inward) in self.lanes.iter_mut().enumerate() {
            let Some(inward) = inward else { continue };
            if inward.lane.has_next_or_tells_room()
                && let Ok(Some(head)) = inward.lane.peek()
            {
                match fresh {
                    Fresh::None => fresh = Fresh::One(at, head),
                    _ => return Fresh::Several,
                }
            }
        }
        fresh
    }

    /// Receives the message at the head of lane `at`, which counts as old as `time`: it is the next one. `None` if that is for
    /// the queue to find. Nobody waits for the end of a call.
    pub(super) fn take_only(&mut self, at: usize, head: &LaneHead, time: u64, arena: &Arena) -> Option<Held> {
        let look = Look { receiver: self.receiver, arena, is_past: true, offset: None };
        if let Some(call) = CallName::from_word(head.call)
            && let Some(Some(inward)) = self.lanes.get(at)
        {
            inward.lane.call(call).prefetch();
        }
        let Copied { held, settled, words } = self.take_out(at, head, time, look, &|_, _| true)?;
        if settled.answers != 0 {
            arena.release(held);
            self.give_back(at, held, words, arena);
            return None;
        }
        if settled.deadline != 0
            && let Some(call) = CallName::from_word(head.call)
            && let Some(Some(inward)) = self.lanes.get_mut(at)
        {
            inward.owed.add(call, settled.cookie);
            self.last_call = at;
        }
        arena.hand_over(held);
        self.give_back(at, held, words, arena);
        Some(held)
    }

    /// Takes the message at the head of lane `at` out past the queue, if it is `wanted`. `None` if it breaks a rule, and for
    /// what is left to the queue's turn.
    #[inline(never)]
    fn take_out(
        &mut self,
        at: usize,
        head: &LaneHead,
        time: u64,
        mut look: Look<'_>,
        wanted: &dyn Fn(u64, &Settled) -> bool,
    ) -> Option<Copied> {
        let inward = self.lanes.get_mut(at)?.as_mut()?;
        (inward.hot, inward.used) = (true, true);
        match inward.copy_in(at, head, time, &mut look, wanted) {
            Ok(copied) => {
                let copied = copied?;
                point::pass(Point::Copied);
                Some(copied)
            }
            Err(Violation) => {
                cold();
                inward.lane.reject();
                self.hot.worn();
                None
            }
        }
    }

    /// Receives the reply that the connection waits for, if it stands first in its lane.
    pub(super) fn take_waited(
        &mut self,
        order: &Order,
        arena: &Arena,
        outward: &mut OutLanes,
    ) -> Option<Held> {
        let waited = *outward.calls().waited()?;
        if self.left.is_some() {
            return None;
        }
        let (at, head) = self.lanes.iter_mut().enumerate().find_map(|(at, inward)| {
            let inward = inward.as_mut()?;
            inward.lane.has_next().then_some(())?;
            let head = inward.lane.peek().ok()??;
            (head.call == waited.name.word()).then_some((at, head))
        })?;
        let time = order.time_of(head.key);
        let look = Look { receiver: self.receiver, arena, is_past: false, offset: None };
        // Other connections name their own calls as this one does: only the copy tells.
        let (name, calls) = (Some(waited.name), outward.calls());
        let is_meant = |sender, settled: &Settled| calls.meant(name, sender, settled.answers).is_some();
        let Copied { held, words, .. } = self.take_out(at, &head, time, look, &is_meant)?;
        if let Some(word) = outward.word(&waited) {
            word.prefetch();
        }
        if outward.answered(name, waited.callee, waited.cookie) == Answers::Waited {
            arena.hand_over(held);
            self.give_back(at, held, words, arena);
            return Some(held);
        }
        arena.release(held);
        self.give_back(at, held, words, arena);
        None
    }

    /// Looks for the reply that the connection waits for behind messages that find no room: it passes them by.
    /// Cost: a look at each message in the lanes from its callee.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if it is there and finds none itself; its call has ended.
    pub(super) fn look_ahead(&mut self, arena: &Arena, outward: &mut OutLanes) -> Result<(), NoRoom> {
        let Some(call) = outward.calls().waited().copied() else { return Ok(()) };
        let receiver = self.receiver;
        for inward in self.lanes.iter_mut().flatten() {
            let Inward { lane, terms, .. } = inward;
            if !lane.has_next() {
                continue;
            }
            terms.refresh(lane.page());
            if terms.sender() != call.callee {
                continue;
            }
            let mut from = 0;
            // Ends: each round goes on behind a message.
            while let Some((at, head)) = lane.find_ahead(from, call.name.word()) {
                let (Some(place), Some(words)) = (Place::of(&head, terms), head.words()) else { break };
                from = at + words;
                let time = head.key;
                let realtime_ns = time.saturating_add_signed(bell::realtime_offset());
                let stamp = Timestamp { seqnum: time, monotonic_ns: time, realtime_ns };
                // Its callee may have filled what its lane may have.
                let filled = arena.fill(None, place.size(), |words| {
                    let (first, second) = place.parts(words).ok_or(Violation)?;
                    lane.copy_ahead(at, &head, first, second).ok_or(Violation)?;
                    settle(words.as_mut_bytes(), &place, terms, receiver, stamp)
                });
                let Some(filled) = filled else {
                    // Other connections name their own calls as this one does.
                    if lane.is_reply_ahead(at, &head, call.cookie)
                        && outward.answered(Some(call.name), call.callee, call.cookie) == Answers::Waited
                    {
                        return Err(NoRoom);
                    }
                    continue;
                };
                let Ok((held, settled)) = filled else { break };
                if outward.answered(CallName::from_word(head.call), terms.sender(), settled.answers)
                    == Answers::Waited
                {
                    // In its turn, nobody waits for it any more.
                    arena.show(held);
                    arena.release(held);
                    self.reply = Some(held);
                    return Ok(());
                }
                arena.release(held);
            }
        }
        Ok(())
    }
}
