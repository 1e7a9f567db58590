//! The lanes into one connection, and what came by them.

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::abi::Timestamp;
use kdbus_core::channel::{Arrived, Batch, CALL_ENDED_SIZE, CallName, call_ended};
use kdbus_core::hint::{likely, unlikely};
use kdbus_core::queue;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::arena::{self, Arena, Held};
use super::bell;
use super::block::Block;
use super::calls::{Answers, GRACE};
use super::held::HeldBack;
use super::hot::HotSet;
use super::inward::{Copied, Inward, Look};
use super::lane::InLane;
use super::outward::OutLanes;
use super::point::{self, Point};
use super::{Gate, gate};

/// Small messages of one lane that may wait or be read.
const BLOCKS: usize = 64;
/// How long nobody asks for a lane after one was refused, and how long at the most after it was refused again and again.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The lane of the transport's own notifications.
const NOTICES: u32 = u32::MAX;

/// A message that came by lane and waits in the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    pub(super) held: Held,
    /// Which lane; none for a notification of this transport's own.
    pub(super) lane: Option<usize>,
    /// Room that it took in its lane.
    pub(super) words: u64,
    /// The call that it is.
    pub(super) call: Option<CallName>,
    pub(super) queued: Option<queue::Handle>,
}

/// All lanes into one connection, and the messages that came by them.
#[derive(Debug)]
pub(super) struct InLanes {
    pub(super) lanes: Block<Option<Inward>>,
    /// Places without a lane, when to ask for one, and how long to wait after that was refused.
    pub(super) empty: usize,
    pub(super) ask_at: Instant,
    pub(super) pause: Duration,
    pub(super) hot: HotSet,
    /// The lane by which a call came last.
    pub(super) last_call: usize,
    /// kdbusd shows something that was not looked at.
    pub(super) unseen: bool,
    pub(super) waiting: Block<Option<Waiting>>,
    /// Places in `waiting` that are free, the one that was left last on top.
    pub(super) free: Block<u32>,
    pub(super) free_len: usize,
    /// Id of the connection.
    pub(super) receiver: u64,
    /// A lane is full.
    pub(super) stuck: bool,
    /// The time of the oldest message that the last look found no room for.
    pub(super) left: Option<u64>,
    /// What kdbusd shows and what has to come after messages that found no room.
    pub(super) held: HeldBack,
    /// There was no room to tell of the end of a call.
    pub(super) mute: bool,
    /// The reply that the connection waits for. The application has its bytes.
    pub(super) reply: Option<Held>,
    pub(super) _gate: Gate,
}

impl InLanes {
    /// Room for as many lanes as `lanes` brings into connection `receiver`, whose shared queue has `depth` entries, and for
    /// what comes by them.
    pub(super) fn new(
        lanes: impl IntoIterator<Item = InLane>,
        count: usize,
        receiver: u64,
        depth: usize,
    ) -> Result<(Self, Arena), Errno> {
        let _gate = gate().ok_or(Errno::OPNOTSUPP)?;
        let (mut bytes, mut places) = (0, 0);
        let mut lanes = lanes.into_iter();
        let lanes = Block::new(count, || {
            let lane = lanes.next()?;
            // The largest message has room whatever else it is to show, and others with it.
            bytes = bytes.max(arena::LANES * lane.bytes());
            let inward = Inward::new(lane);
            places = places.max(inward.places as usize);
            Some(inward)
        })?;
        let room = places * count;
        let mut number = 0;
        let free = Block::new(room, || {
            number += 1;
            number - 1
        })?;
        // What is left of a pool takes a record too.
        let arena = Arena::new(BLOCKS * count, count, bytes, places + 1)?;
        let waiting = Block::new(room, || None)?;
        Ok((
            Self {
                lanes,
                empty: 0,
                ask_at: Instant::ZERO,
                pause: PAUSE,
                hot: HotSet::new(count)?,
                last_call: 0,
                unseen: false,
                waiting,
                free,
                free_len: room,
                receiver,
                stuck: false,
                left: None,
                held: HeldBack::new(depth)?,
                mute: false,
                reply: None,
                _gate,
            },
            arena,
        ))
    }

    /// Messages that may wait all in all.
    pub(super) fn room(&self) -> usize {
        self.waiting.len()
    }

    /// Messages that lane `at` holds at most.
    pub(super) fn places(&self, at: usize) -> u32 {
        self.lanes.get(at).and_then(Option::as_ref).map_or(0, |inward| inward.places)
    }

    /// The bells, with the number of each lane.
    pub(super) fn bells(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.as_ref()?.lane.as_fd())))
    }

    /// Whether a hot lane has something that was not looked at. Cost: a few loads for each of them.
    pub(super) fn has_fresh(&mut self) -> bool {
        let Self { lanes, hot, .. } = self;
        let is_fresh = |inward: &mut Inward| likely(!inward.full) && inward.lane.has_next_or_tells_room();
        if !hot.is_choosy() {
            return lanes.iter_mut().flatten().any(is_fresh);
        }
        let fresh = |number| lanes.get_mut(number).and_then(Option::as_mut).is_some_and(is_fresh);
        (0..hot.len()).filter_map(|place| hot.get(place)).any(fresh)
    }

    /// Whether a look has to take the rings before it: some lanes are cold.
    pub(super) fn has_cold(&self) -> bool {
        self.hot.is_choosy()
    }

    /// Lanes, and places for them.
    pub(super) fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Looks at all lanes once: kdbusd has told of something.
    pub(super) fn look_at_all(&mut self) {
        self.hot.add_all();
    }

    /// Copies what was sent up to the cut out of the lanes, examines it and admits it to the batch. A lane whose
    /// sender breaks a rule is not looked at again.
    pub(super) fn drain(&mut self, batch: &mut Batch<'_>, arena: &Arena, outward: &mut OutLanes) {
        if self.hot.count_look() {
            self.cool(true);
        }
        self.held.clear();
        if let Some(left) = self.left.take() {
            batch.reach_back(left);
        }
        let mut look = Look { receiver: self.receiver, arena, is_past: true, offset: None };
        for place in 0..self.hot.len() {
            let Some(at) = self.hot.get(place) else { return };
            let Some(Some(inward)) = self.lanes.get_mut(at) else { continue };
            // Ends: a lane holds a bounded number of messages that were not received, and as many are taken out for nobody.
            let mut ignored = 0;
            while let Ok(Some(head)) = inward.lane.peek() {
                // Behind a message without room, nothing was looked at.
                inward.hot |= !inward.full;
                inward.used = true;
                if !batch.takes(head.key) {
                    // Sent since the look began. A time that has not come yet would keep this connection awake.
                    if head.key > bell::now().after(GRACE).as_nanos() {
                        inward.lane.reject();
                        self.hot.worn();
                    }
                    break;
                }
                // Each lane has places of its own, so that none takes those of the others.
                let may_wait = !inward.full && inward.waiting < inward.places;
                let last = self.free_len.checked_sub(1).filter(|_| may_wait);
                let place = last.and_then(|last| Some((last, *self.free.get(last)?)));
                let time = batch.time_of(head.key);
                let copied = match place {
                    Some(_) => inward.copy_in(at, &head, time, &mut look, &|_, _| true),
                    None => Ok(None),
                };
                if copied.is_err() {
                    inward.lane.reject();
                    self.hot.worn();
                    break;
                }
                let (Some((last, slot)), Ok(Some(Copied { held, settled, words }))) = (place, copied) else {
                    // It stays where it is until something is given back.
                    (inward.full, self.stuck) = (true, true);
                    self.left = self.left.into_iter().chain([batch.leave(head.key)]).min();
                    break;
                };
                let call = CallName::from_word(head.call);
                if settled.answers != 0 {
                    let answers = outward.answered(call, inward.terms.sender(), settled.answers);
                    if answers == Answers::Waited {
                        // It passes by the queue.
                        arena.show(held);
                        self.reply = Some(held);
                    }
                    if answers != Answers::Call {
                        arena.release(held);
                        inward.give_back(at, held, words, arena);
                        point::pass(Point::Ignored);
                        ignored += 1;
                        if ignored == inward.places {
                            // Its sender can fill the room that it has back as fast as it is read.
                            break;
                        }
                        continue;
                    }
                }
                let call = call.filter(|_| settled.deadline != 0);
                if let Some(call) = call {
                    inward.owed.add(call, settled.cookie);
                    self.last_call = at;
                }
                let arrived = Arrived {
                    key: head.key,
                    priority: settled.priority,
                    lane: at as u32 + 1,
                    slot,
                    offset: held.offset,
                    size: held.size,
                    with_files: false,
                };
                let admitted = batch.admit(arrived);
                debug_assert!(admitted, "there was room");
                self.free_len = last;
                if let Some(place) = self.waiting.get_mut(slot as usize) {
                    *place = Some(Waiting { held, lane: Some(at), words, call, queued: None });
                }
                inward.queues(held, words);
                point::pass(Point::Copied);
            }
        }
    }

    /// Whether messages stay in their lanes because there is no room for them.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Whether something that connection `from` has sent, and it alone, is still in its lane. Of whoever is gone, the lane
    /// is closed.
    pub(super) fn awaits(&mut self, from: u64) -> bool {
        self.lanes.iter_mut().flatten().any(|Inward { lane, terms, .. }| {
            terms.refresh(lane.page());
            terms.sender() == from && !lane.is_rejected() && !lane.is_drained()
        })
    }

    /// Whether messages from connection `from` stay in their lane because there is no room for them.
    pub(super) fn is_full_of(&self, from: u64) -> bool {
        self.lanes.iter().flatten().any(|inward| inward.full && inward.terms.sender() == from)
    }

    /// Whether there was no room to tell of the end of a call, and nothing was given back since.
    pub(super) const fn is_mute(&self) -> bool {
        self.mute
    }

    /// There is no room to tell of the end of a call.
    pub(super) const fn silence(&mut self) {
        self.mute = true;
    }

    /// The reply that the connection waits for, if it came: where it lies, and its bytes.
    pub(super) fn take_reply(&mut self) -> Option<(u64, u64)> {
        self.reply.take().map(|held| (held.offset, held.size))
    }

    /// Remembers where a message stands in the queue.
    pub(super) fn queued(&mut self, slot: u32, handle: Option<queue::Handle>) {
        if let Some(Some(waiting)) = self.waiting.get_mut(slot as usize) {
            waiting.queued = handle;
        }
    }

    /// Shows a message that stays queued.
    pub(super) fn show(&self, slot: u32, arena: &Arena) {
        if let Some(Some(waiting)) = self.waiting.get(slot as usize) {
            arena.show(waiting.held);
        }
    }

    /// Receives a message: its lane gets its room back, as far as the arena has room. The application has its bytes if they were
    /// shown, and nobody otherwise. Returns its place in the queue.
    pub(super) fn take(&mut self, slot: u32, arena: &Arena) -> Option<queue::Handle> {
        let Waiting { held, lane, words, queued, .. } = self.waiting.get_mut(slot as usize)?.take()?;
        arena.release(held);
        if let Some(place) = self.free.get_mut(self.free_len) {
            *place = slot;
            self.free_len += 1;
        }
        self.relieve();
        if let Some(at) = lane
            && let Some(Some(inward)) = self.lanes.get_mut(at)
        {
            inward.unqueues(held, words);
            self.give_back(at, held, words, arena);
        }
        queued
    }

    /// Gives a lane the room of a message back that was received.
    #[inline]
    pub(super) fn give_back(&mut self, at: usize, held: Held, words: u64, arena: &Arena) {
        point::pass(Point::Received);
        if let Some(Some(inward)) = self.lanes.get_mut(at) {
            inward.give_back(at, held, words, arena);
            if unlikely(inward.lane.tells_room_already()) {
                self.look_at(at);
            }
        }
    }

    /// The application gave something back that came by lane `at`. True if its sender was told of room, and a ring for a message
    /// may be gone with that.
    pub(super) fn gave_back(&mut self, at: usize, arena: &Arena) -> bool {
        let Some(Some(inward)) = self.lanes.get_mut(at) else { return false };
        let told = inward.gave_back(at, arena) && inward.lane.tells_room();
        if told {
            self.look_at(at);
        }
        told
    }

    /// Looks at lane `at` whether it rings or not, until it is asked for its bell.
    fn look_at(&mut self, at: usize) {
        if let Some(Some(inward)) = self.lanes.get_mut(at) {
            inward.hot = true;
            self.hot.add(at);
        }
    }

    /// Whether a ring for a message may be gone since this was asked last: who watches the descriptor has to be rung for. Cost:
    /// a load for each hot lane. The others were looked at after they had been asked for their bells.
    pub(super) fn takes_silenced(&mut self) -> bool {
        let mut any = false;
        for place in 0..self.hot.len() {
            if let Some(at) = self.hot.get(place)
                && let Some(Some(inward)) = self.lanes.get_mut(at)
            {
                any |= inward.lane.takes_silenced();
            }
        }
        any
    }

    /// Gives back all that is withheld: kdbusd takes it for messages that were not received.
    pub(super) fn return_withheld(&mut self) {
        for inward in self.lanes.iter_mut().flatten() {
            inward.return_withheld(u64::MAX);
        }
    }

    /// Something was given back, so there may be room again. True if messages had none.
    pub(super) fn relieve(&mut self) -> bool {
        let was_stuck = core::mem::take(&mut self.stuck);
        if unlikely(was_stuck) {
            for inward in self.lanes.iter_mut().flatten() {
                inward.full = false;
            }
        }
        core::mem::take(&mut self.mute) || was_stuck
    }

    /// The notification that the call with this cookie has no reply, for the queue. `None` if there is no room.
    pub(super) fn call_ended(
        &mut self,
        cookie: u64,
        dead: bool,
        now: Instant,
        arena: &Arena,
    ) -> Option<Arrived> {
        let key = now.as_nanos();
        let last = self.free_len.checked_sub(1)?;
        let slot = self.free.get(last).copied()?;
        let realtime_ns = key.saturating_add_signed(bell::realtime_offset());
        let stamp = Timestamp { seqnum: key, monotonic_ns: key, realtime_ns };
        let receiver = self.receiver;
        let filled = arena.fill(None, CALL_ENDED_SIZE, |words| {
            call_ended(words.as_mut_bytes(), receiver, cookie, dead, stamp);
            Ok::<_, core::convert::Infallible>(())
        });
        let Some(Ok((held, ()))) = filled else { return None };
        self.free_len = last;
        *self.waiting.get_mut(slot as usize)? =
            Some(Waiting { held, lane: None, words: 0, call: None, queued: None });
        let (offset, size) = (held.offset, held.size);
        Some(Arrived { key, priority: 0, lane: NOTICES, slot, offset, size, with_files: false })
    }

    /// Asks for the bells of the lanes by which something came. The caller then looks once more at everything.
    pub(super) fn ask_bells(&mut self) {
        self.cool(false);
    }

    /// Whether something came since bells were asked for: what comes next by the same lane does not ring.
    pub(super) fn has_unasked(&self) -> bool {
        let is_unasked =
            |at: usize| self.lanes.get(at).and_then(Option::as_ref).is_some_and(|inward| inward.hot);
        (0..self.hot.len()).filter_map(|place| self.hot.get(place)).any(is_unasked)
    }

    /// Asks for bells, and makes those lanes cold in which there is nothing after that; only `idle` ones, if it says so.
    fn cool(&mut self, idle: bool) {
        let mut place = 0;
        while let Some(number) = self.hot.get(place) {
            place += 1;
            let Some(Some(inward)) = self.lanes.get_mut(number) else { continue };
            if idle && core::mem::take(&mut inward.used) {
                continue;
            }
            if core::mem::take(&mut inward.hot) {
                inward.lane.ask_bell();
            }
            // What came before the bell was asked for is seen here, and what comes after rings.
            if self.hot.is_choosy() && !inward.lane.has_next_or_tells_room() {
                place -= 1;
                self.hot.remove(place);
                if inward.lane.is_rejected() {
                    self.hot.worn();
                }
            }
        }
    }

    /// Lane `at` rang. Its bell is emptied now and then, or at once if rings are lost otherwise.
    pub(super) fn rang(&mut self, at: usize, emptied: bool) {
        self.look_at(at);
        if let Some(Some(inward)) = self.lanes.get_mut(at)
            && unlikely(inward.rings.count(emptied))
        {
            inward.lane.silence();
        }
    }

    /// A lane that nothing more comes by; its place is empty now.
    pub(super) fn worn_out(&mut self) -> Option<InLane> {
        let Self { lanes, hot, .. } = self;
        let at =
            hot.find_worn(|number| matches!(lanes.get(number), Some(Some(inward)) if inward.is_worn()))?;
        let worn = self.lanes.get_mut(at)?.take()?.lane;
        self.empty += 1;
        Some(worn)
    }

    /// An empty place that a lane is to be brought for now. What the application holds of the former one leaves room for all that
    /// comes by that.
    pub(super) fn empty_place(&self, arena: Option<&Arena>) -> Option<usize> {
        if self.empty == 0 || (self.ask_at > Instant::ZERO && bell::now() < self.ask_at) {
            return None;
        }
        let arena = arena?;
        (0..self.lanes.len())
            .find(|at| matches!(self.lanes.get(*at), Some(None)) && arena.has_room_for_lane(*at))
    }

    /// There was no lane for it. The pause before the next one is asked for grows.
    pub(super) fn refused(&mut self) {
        self.ask_at = bell::now().after(self.pause);
        self.pause = (2 * self.pause).min(PAUSE_MAX);
    }

    /// Puts a new lane in an empty place.
    pub(super) fn replace(&mut self, at: usize, lane: InLane) {
        if let Some(place) = self.lanes.get_mut(at) {
            *place = Some(Inward::new(lane));
            self.empty = self.empty.saturating_sub(1);
            (self.ask_at, self.pause) = (Instant::ZERO, PAUSE);
            // Few lanes are looked at whether they have rung or not.
            self.hot.add(at);
        }
    }
}

#[cfg(all(test, feature = "lanes"))]
#[path = "in_lanes_tests.rs"]
mod tests;
