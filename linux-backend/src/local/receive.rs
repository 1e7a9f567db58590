//! Receiving out of shared memory.

use kdbus_core::Instant;
use kdbus_core::abi::RecvFlags;
use kdbus_core::channel::{Answer, Arrived, CallState, Entry, InboxReader, Order, ReturnsFull, Words};
use kdbus_core::engine::Return;
use kdbus_core::hint::unlikely;
use kdbus_core::queue::{Handle, Head, Node, PriorityQueue};
use rustix::io::Errno;

use super::arena::{Arena, Held};
use super::bell::{self, Bell};
use super::block::Block;
use super::calls::Call;
use super::gate;
use super::held::read_header;
use super::in_lanes::InLanes;
use super::map::ReadMap;
use super::outward::OutLanes;
use super::past_queue::{Fresh, NoRoom};
use super::point::{self, Point};

/// The lane in which kdbusd shows its entries.
pub(super) const KDBUSD: u32 = 0;

/// Looks at fresh entries that may follow each other before the receiver gives up for now.
const LOOKS: usize = 3;
/// Entries of kdbusd that a message is compared with before it is received past them.
const FEW: usize = 4;

/// What receiving by lanes needs besides.
#[derive(Debug)]
pub(super) struct Lanes<'a> {
    /// Where messages lie.
    pub(super) arena: &'a Arena,
    /// Where kdbusd's messages lie.
    pub(super) pool: Option<&'a ReadMap>,
    /// Where those lanes ring that are cold.
    pub(super) bell: &'a Bell,
    /// Where replies belong to.
    pub(super) outward: &'a mut OutLanes,
}

/// What a look for one message has found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Only {
    /// This one, which is received.
    Message(Held),
    /// Nothing came in.
    Nothing,
    /// That is for [`Receiver::next`] to find out.
    Unsure,
}

/// What waits for one connection: kdbusd's shared queue and the lanes into it, merged into one queue.
#[derive(Debug)]
pub(super) struct Receiver<P, S> {
    inbox: InboxReader<P, S>,
    order: Order,
    /// What the clock showed when it was read last for a message that is received past the queue.
    clock: Instant,
    /// Messages that were received past what kdbusd shows since the last look at that.
    past: u32,
    head: Head,
    nodes: Block<Node<Arrived>>,
    /// What stands in the queue for each slot of kdbusd's lane. It may be gone there by now.
    queued: Block<Option<Handle>>,
    batch: Block<Arrived>,
    lanes: Option<InLanes>,
    /// Losses that were reported.
    lost: u64,
    /// Notices that the owner was woken for.
    notices: u64,
    /// Notices up to which calls were looked at.
    looked: u64,
}

impl<P: Words, S: Words> Receiver<P, S> {
    /// A receiver of what `inbox` shows.
    pub(super) fn new(inbox: InboxReader<P, S>) -> Result<Self, Errno> {
        let depth = inbox.layout().depth() as usize;
        let (lost, notices) = (inbox.lost(), inbox.notices());
        Ok(Self {
            inbox,
            order: Order::new(),
            clock: Instant::ZERO,
            past: 0,
            head: Head::new(),
            nodes: Block::new(depth, Node::new)?,
            queued: Block::new(depth, || None)?,
            batch: Block::new(depth, Arrived::default)?,
            lanes: None,
            lost,
            notices,
            looked: notices,
        })
    }

    /// Entries that the shared queue has.
    pub(super) const fn depth(&self) -> usize {
        self.inbox.layout().depth() as usize
    }

    /// Receives by `lanes` too. Nothing was received yet.
    pub(super) fn add_lanes(&mut self, lanes: InLanes) -> Result<(), Errno> {
        let room = self.depth() + lanes.room();
        self.head = Head::new();
        self.nodes = Block::new(room, Node::new)?;
        self.batch = Block::new(room, Arrived::default)?;
        self.lanes = Some(lanes);
        Ok(())
    }

    /// The lanes.
    #[inline]
    pub(super) fn lanes(&mut self) -> Option<&mut InLanes> {
        gate()?;
        self.lanes.as_mut()
    }

    /// The next message as `flags` and `priority` ask for it. It stays queued until [`take`](Self::take) or
    /// [`forget`](Self::forget).
    pub(super) fn next(
        &mut self,
        flags: RecvFlags,
        priority: i64,
        lanes: Option<&mut Lanes<'_>>,
    ) -> Option<Arrived> {
        let by_priority = flags.contains(RecvFlags::USE_PRIORITY);
        // What came in since is younger than anything that is queued, so in order of arrival it can wait.
        if by_priority || self.head.is_empty() {
            self.look(lanes);
        }
        let queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
        let entry = if by_priority { queue.peek() } else { queue.peek_front() }?;
        // kdbus: the most urgent message is returned only if its priority is at most the one given.
        (!by_priority || entry.priority <= priority).then_some(*entry.item)
    }

    /// Looks at the calls that kdbusd shows, because one that came by lane may be answered now and the newest with its cookie
    /// has to be. They stay where they are. Cost: a load if nothing came, else a look at each entry.
    pub(super) fn look_at_calls(&mut self, pool: Option<&ReadMap>) {
        let Self { inbox, lanes, .. } = self;
        let Some(lanes) = lanes.as_mut().filter(|_| gate().is_some()) else { return };
        let unseen = inbox.has_fresh();
        lanes.set_unseen(unseen);
        if unseen && lanes.owes() {
            let _ = inbox.has_fresh_that(|entry| {
                if let Some(header) = read_header(entry, pool) {
                    lanes.came_by_bus(&header);
                }
                false
            });
        }
    }

    /// Receives the message that came first if it came by lane, nothing is queued and no other lane has any: it does not pass
    /// through the queue. Cost: a look at each of [`FEW`] entries that kdbusd shows besides.
    #[inline]
    pub(super) fn take_only(&mut self, lanes: &mut Lanes<'_>) -> Only {
        let Some(inward) = self.lanes.as_mut().filter(|_| gate().is_some()) else { return Only::Unsure };
        let is_plain = self.head.is_empty() && lanes.outward.calls().is_empty() && !inward.has_cold();
        if !is_plain || self.inbox.notices() != self.looked || inward.is_stuck() || inward.left.is_some() {
            return Only::Unsure;
        }
        let mut fresh = inward.only_fresh();
        if let Fresh::One(_, head) = fresh
            && head.key > self.clock.as_nanos()
        {
            // The clock comes before the looks that count. Of many messages that wait, it is read for the first alone.
            self.clock = bell::now();
            fresh = inward.only_fresh();
        }
        let (at, head) = match fresh {
            Fresh::One(at, head) => (at, head),
            Fresh::None if !self.inbox.has_fresh() => return Only::Nothing,
            _ => return Only::Unsure,
        };
        let Some(time) = self.order.time_beside(self.clock, head.key) else { return Only::Unsure };
        if self.inbox.has_fresh() {
            let mut looked = 0;
            let is_earlier = |entry: &Entry| {
                looked += 1;
                entry.key <= time || looked > FEW
            };
            // A lane holds no more that is older. Whoever claims it on and on comes between two looks no more often than that.
            let is_long = self.past >= inward.places(at);
            if is_long || inward.holds_back() || self.inbox.has_fresh_that(is_earlier) {
                return Only::Unsure;
            }
            self.past += 1;
        }
        let taken = inward.take_only(at, &head, time, lanes.arena);
        if taken.is_some() {
            self.order.took(time);
        }
        taken.map_or(Only::Unsure, Only::Message)
    }

    /// Receives the message that kdbusd shows if it is the only one, nothing is queued and there are no lanes: it does not pass
    /// through the queue. Returns where it lies, and whether kdbusd has to be told of the return.
    pub(super) fn take_shown(&mut self) -> Option<(u64, u64, bool)> {
        gate()?;
        let is_plain = self.lanes.is_none() && self.head.is_empty() && self.inbox.notices() == self.looked;
        // What is taken has to be returned, so the place for that comes first.
        if !is_plain || !self.inbox.has_return_room() {
            return None;
        }
        let entry = self.inbox.take_only_fresh()?;
        if !self.inbox.take(entry.slot, entry.key) {
            return None;
        }
        point::pass(Point::Taken);
        let told = self.inbox.push_return(Return::Taken { slot: entry.slot, key: entry.key });
        Some((entry.offset, entry.size, told == Ok(true)))
    }

    /// Receives `message`, which [`next`](Self::next) has returned. `Ok(None)` if its sender or kdbusd took
    /// it back, else whether kdbusd has to be told of the return.
    ///
    /// # Errors
    ///
    /// [`ReturnsFull`] if it can only be received by command; it stays queued.
    pub(super) fn take(&mut self, message: &Arrived) -> Result<Option<bool>, ReturnsFull> {
        // What is taken has to be returned, so the place for that comes first.
        if !self.inbox.has_return_room() {
            return Err(ReturnsFull);
        }
        let won = self.inbox.take(message.slot, message.key);
        self.forget(message);
        if !won {
            return Ok(None);
        }
        point::pass(Point::Taken);
        self.inbox.push_return(Return::Taken { slot: message.slot, key: message.key }).map(Some)
    }

    /// Receives or, with `DROP`, gives up a message that came by lane; with `PEEK`, only shows it. Returns the lane whose
    /// sender has to hear that its call was dropped.
    pub(super) fn take_from_lane(
        &mut self,
        message: &Arrived,
        flags: RecvFlags,
        arena: &Arena,
    ) -> Option<u32> {
        let lanes = self.lanes()?;
        // kdbus: dropping wins over peeking.
        let drops = flags.contains(RecvFlags::DROP);
        let dropped = if drops { lanes.drop_call(message.slot) } else { None };
        if !drops {
            lanes.show(message.slot, arena);
        }
        if (drops || !flags.contains(RecvFlags::PEEK))
            && let Some(queued) = lanes.take(message.slot, arena)
        {
            PriorityQueue::new(&mut self.head, &mut self.nodes).remove(queued);
        }
        dropped
    }

    /// Removes `message` from the queue: it was received by command, or is gone.
    pub(super) fn forget(&mut self, message: &Arrived) {
        if let Some(handle) = self.queued.get_mut(message.slot as usize).and_then(Option::take) {
            PriorityQueue::new(&mut self.head, &mut self.nodes).remove(handle);
        }
    }

    /// Gives the slice at `offset` back. True if kdbusd has to be told.
    ///
    /// # Errors
    ///
    /// [`ReturnsFull`] if it can only be given back by command.
    pub(super) fn free(&mut self, offset: u64) -> Result<bool, ReturnsFull> {
        self.inbox.push_return(Return::Freed(offset))
    }

    /// Has lanes show nothing as not received but what was not: a BYEBYE follows. If something waits, that is refused.
    pub(super) fn before_byebye(&mut self) {
        if self.head.is_empty()
            && !self.has_fresh()
            && let Some(lanes) = self.lanes()
        {
            lanes.return_withheld();
        }
    }

    /// Broadcasts lost since the last time.
    pub(super) fn dropped(&mut self) -> u64 {
        let lost = self.inbox.lost();
        lost.wrapping_sub(core::mem::replace(&mut self.lost, lost))
    }

    /// Whether broadcasts were lost that [`dropped`](Self::dropped) has not told of.
    pub(super) fn has_losses(&self) -> bool {
        self.inbox.lost() != self.lost
    }

    /// Asks for the bell, which the caller has silenced, and looks at everything once more. True if there is
    /// something that nobody rings for, losses from before aside: the caller reports them next.
    pub(super) fn arm(&mut self, outward: Option<&mut OutLanes>) -> bool {
        let lost = self.inbox.lost();
        self.inbox.arm();
        if let Some(lanes) = self.lanes() {
            lanes.ask_bells();
        }
        let notices = self.inbox.notices();
        let noticed = core::mem::replace(&mut self.notices, notices) != notices;
        let calls = outward.is_some_and(|outward| wants_attention(outward, self.lanes()));
        noticed || calls || self.has_fresh() || !self.head.is_empty() || self.inbox.lost() != lost
    }

    /// Asks for the bell, which the caller has silenced, for the end of a command or of the connection alone.
    pub(super) fn arm_for_answer(&self) {
        self.inbox.arm_for_answer();
    }

    /// How command `serial` has ended, once kdbusd has told.
    pub(super) fn answer(&self, serial: u64) -> Option<Answer> {
        self.inbox.answer(serial)
    }

    /// How often kdbusd told of something besides messages.
    pub(super) fn notices(&self) -> u64 {
        self.inbox.notices()
    }

    /// As [`arm`](Self::arm), for whoever waits for a reply: messages that wait in the queue are nothing new to it, nor are
    /// notices up to `seen`, all of which stay for the next one who arms.
    pub(super) fn arm_for_reply(&mut self, seen: &mut u64, outward: &mut OutLanes) -> bool {
        self.inbox.arm();
        if let Some(lanes) = self.lanes() {
            lanes.ask_bells();
        }
        let notices = self.inbox.notices();
        let noticed = core::mem::replace(seen, notices) != notices;
        noticed || self.has_fresh() || wants_attention(outward, self.lanes())
    }

    /// Moves what came in into the queue. Returns the reply that the connection waits for, if it came by lane: where it lies,
    /// and its bytes.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if it came and the application has left no room for it.
    pub(super) fn look_for_reply(&mut self, lanes: &mut Lanes<'_>) -> Result<Option<(u64, u64)>, NoRoom> {
        if gate().is_some()
            && let Some(inward) = &mut self.lanes
            && inward.has_fresh()
            && let Some(held) = inward.take_waited(&self.order, lanes.arena, lanes.outward)
        {
            return Ok(Some((held.offset, held.size)));
        }
        self.look(Some(lanes));
        let Some(inward) = self.lanes() else { return Ok(None) };
        if inward.is_stuck() {
            inward.look_ahead(lanes.arena, lanes.outward)?;
        }
        Ok(inward.take_reply())
    }

    /// Whether [`look_for_reply`](Self::look_for_reply) may find it though nothing is fresh: to be asked after arming.
    pub(super) fn is_stuck(&mut self) -> bool {
        self.lanes().is_some_and(|lanes| lanes.is_stuck())
    }

    /// Whether a look since the last arming has found what rang: nobody may sleep before the next one.
    pub(super) fn has_unasked(&mut self) -> bool {
        self.lanes().is_some_and(|lanes| lanes.has_unasked())
    }

    /// The first queued message of kdbusd's lane that is `meant`. Cost: `O(depth)`.
    pub(super) fn find(&mut self, meant: impl Fn(&Arrived) -> bool) -> Option<Arrived> {
        let queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
        self.queued
            .iter()
            .flatten()
            .filter_map(|handle| queue.get(*handle))
            .filter(|arrived| meant(arrived))
            .min_by_key(|arrived| arrived.key)
            .copied()
    }

    /// Whether there is a message, so that nobody has to sleep.
    pub(super) fn has_message(&mut self) -> bool {
        self.has_fresh() || !self.head.is_empty()
    }

    /// Whether there is something else that [`arm`](Self::arm) tells of, or for whoever waits for a reply and has seen so many
    /// notices, that [`arm_for_reply`](Self::arm_for_reply) does.
    pub(super) fn has_other_news(&mut self, seen: Option<u64>, outward: Option<&mut OutLanes>) -> bool {
        self.inbox.notices() != seen.unwrap_or(self.notices)
            || seen.is_none() && self.has_losses()
            || !self.is_alive()
            || outward.is_some_and(|outward| wants_attention(outward, self.lanes()))
    }

    /// Whether the connection still lives.
    pub(super) fn is_alive(&self) -> bool {
        self.inbox.is_alive()
    }

    /// Ends the calls by lane whose time is over, and those to the dead, once everything that these have sent was looked at.
    /// Those whose end there is no room to tell of keep their places until there is.
    fn end_calls(&mut self, lanes: &mut Lanes<'_>, now: Instant) {
        // Ends: each round ends a call or puts it off.
        while let Some(call) = lanes.outward.calls().due(now) {
            let expired = lanes.outward.end(&call);
            if expired {
                point::pass(Point::CallExpired);
            } else if lanes.outward.state(&call) != Some(CallState::Relayed)
                && lanes.outward.calls().put_off(call.name, now, self.is_full_of(call.callee))
            {
                // The reply is about to be sent, or was taken back just now.
                continue;
            }
            lanes.outward.finish(&call, expired, false);
        }
        // Whoever drops a call ends it as if its time were over, and this connection closes those that it ends so itself.
        while let Some(call) = lanes.outward.dropped_call() {
            lanes.outward.finish(&call, false, true);
        }
        // Ends: each round ends a call. What others send holds nothing up, and what kdbusd has brought, it brought before.
        while let Some(inward) = &mut self.lanes
            && let Some(call) = dead_call(lanes.outward, inward)
        {
            lanes.outward.finish(&call, false, true);
        }
        self.tell_ends(lanes, now);
    }

    /// Tells of the ends of calls, in their order and as far as there is room.
    fn tell_ends(&mut self, lanes: &mut Lanes<'_>, now: Instant) {
        if gate().is_none() {
            return;
        }
        while let Some((call, dead)) = lanes.outward.calls().untold()
            && self.call_ended(lanes, call.cookie, dead, now)
        {
            lanes.outward.calls().close(call.name);
        }
    }

    /// Queues the notification that a call has no reply. False if there is no room for it.
    fn call_ended(&mut self, lanes: &Lanes<'_>, cookie: u64, dead: bool, now: Instant) -> bool {
        let Some(inward) = &mut self.lanes else { return false };
        let Some(arrived) = inward.call_ended(cookie, dead, now, lanes.arena) else {
            inward.silence();
            return false;
        };
        let mut queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
        inward.queued(arrived.slot, queue.push(arrived.priority, arrived).ok());
        true
    }

    fn has_dead_call(&mut self, outward: &OutLanes) -> bool {
        self.lanes().is_some_and(|inward| dead_call(outward, inward).is_some())
    }

    /// Whether a call by lane has ended and the application has not received that.
    pub(super) fn has_ends(&mut self, outward: &mut OutLanes) -> bool {
        let queued = self.lanes().is_some_and(|inward| inward.has_notices());
        let known = queued || outward.calls().has_untold() || outward.dropped_call().is_some();
        known || wants_attention(outward, self.lanes())
    }

    /// Whether messages from a connection stay in their lane because there is no room for them.
    fn is_full_of(&mut self, from: u64) -> bool {
        self.lanes().is_some_and(|lanes| lanes.is_full_of(from))
    }

    /// Whether something came in that was not looked at.
    pub(super) fn has_fresh(&mut self) -> bool {
        let Self { inbox, lanes, .. } = self;
        let Some(lanes) = lanes.as_mut().filter(|_| gate().is_some()) else { return inbox.has_fresh() };
        let shown = if unlikely(lanes.holds_back()) {
            inbox.has_fresh_that(|entry| !lanes.held.has(entry.slot, entry.key))
        } else {
            inbox.has_fresh()
        };
        shown || lanes.has_fresh()
    }

    /// Moves what came in into the queue.
    fn look(&mut self, lanes: Option<&mut Lanes<'_>>) {
        let mut lanes = lanes.filter(|_| gate().is_some());
        for _ in 0..LOOKS {
            // A callee that drops a call has kdbusd notify its caller.
            let notices = self.inbox.notices();
            let noticed = core::mem::replace(&mut self.looked, notices) != notices;
            let cut = match (&mut self.lanes, lanes.as_deref_mut()) {
                (Some(inward), Some(lanes)) if gate().is_some() && inward.has_cold() => {
                    Some(take_rings(inward, lanes, noticed))
                }
                _ => None,
            };
            if !noticed
                && !self.has_fresh()
                && !lanes.as_deref_mut().is_some_and(|lanes| wants_attention(lanes.outward, self.lanes()))
            {
                return;
            }
            // The clock comes first: what is queued later in one lane waits for the next look, because
            // something older may come into a lane that was looked at before.
            let now = cut.unwrap_or_else(bell::now);
            if let Some(lanes) = lanes.as_deref_mut()
                && tells_ends(lanes.outward, self.lanes())
            {
                // What came in after that does not take its room.
                self.tell_ends(lanes, now);
            }
            self.past = 0;
            let mut batch = self.order.batch(now, &mut self.batch);
            // What comes by lane from whom, before what kdbusd shows of it.
            if gate().is_some()
                && let (Some(inward), Some(Lanes { arena, outward, .. })) =
                    (&mut self.lanes, lanes.as_deref_mut())
            {
                inward.drain(&mut batch, arena, outward);
            }
            let mut inward = self.lanes.as_mut().filter(|_| gate().is_some());
            self.inbox.fresh(|entry| {
                if let (Some(inward), Some(lanes)) = (&mut inward, lanes.as_deref_mut())
                    && !inward.meet(&entry, lanes.pool, lanes.arena, lanes.outward, &mut batch)
                {
                    return false;
                }
                batch.admit(Arrived {
                    key: entry.key,
                    priority: entry.priority,
                    lane: KDBUSD,
                    slot: entry.slot,
                    offset: entry.offset,
                    size: entry.size,
                    with_files: entry.with_files,
                })
            });
            let mut queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
            for arrived in batch.sorted() {
                if gate().is_some()
                    && let (Some(lanes), true) = (&mut self.lanes, arrived.lane != KDBUSD)
                {
                    // There are as many places as messages that may wait.
                    lanes.queued(arrived.slot, queue.push(arrived.priority, *arrived).ok());
                    continue;
                }
                let Some(queued) = self.queued.get_mut(arrived.slot as usize) else { continue };
                // The slot was used before, for something that was taken back.
                if let Some(old) = queued.take() {
                    queue.remove(old);
                }
                // There are as many places as slots, and each slot has one.
                *queued = queue.push(arrived.priority, *arrived).ok();
            }
            if let Some(lanes) = lanes.as_deref_mut()
                && (noticed || lanes.outward.calls().next() <= now || self.has_dead_call(lanes.outward))
            {
                self.end_calls(lanes, now);
            }
            if !self.head.is_empty() {
                return;
            }
        }
    }
}

/// Makes those lanes hot that have rung, or all of them if somebody may have died before it rang. Returns the cut.
///
/// The clock comes first: who sent before it by a lane that is cold had rung before anybody could send after that and
/// still before the clock was read.
fn take_rings(inward: &mut InLanes, lanes: &mut Lanes<'_>, noticed: bool) -> Instant {
    if noticed || lanes.outward.call_to_the_dead(|_| false).is_some() {
        inward.look_at_all();
    }
    let cut = bell::now();
    lanes.bell.take_rings(inward.count(), &mut |at, stale| inward.rang(at, stale));
    cut
}

/// A call to somebody who is gone and has sent nothing that was not looked at.
fn dead_call(outward: &OutLanes, inward: &mut InLanes) -> Option<Call> {
    outward.call_to_the_dead(|callee| inward.awaits(callee))
}

/// Whether there are ends of calls that were not told, and may be room for that.
fn tells_ends(outward: &mut OutLanes, inward: Option<&mut InLanes>) -> bool {
    gate().is_some() && outward.calls().has_untold() && inward.is_some_and(|inward| !inward.is_mute())
}

/// Whether a call has to be ended, or its end told.
#[inline]
fn wants_attention(outward: &mut OutLanes, inward: Option<&mut InLanes>) -> bool {
    gate().is_some() && !outward.calls().is_empty() && want_attention(outward, inward)
}

/// The same of calls, where there are some.
#[inline(never)]
fn want_attention(outward: &mut OutLanes, mut inward: Option<&mut InLanes>) -> bool {
    tells_ends(outward, inward.as_deref_mut())
        || inward.is_some_and(|inward| dead_call(outward, inward).is_some())
        || bell::now() >= outward.calls().next()
}
