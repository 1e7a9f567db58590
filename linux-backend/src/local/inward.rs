//! The lanes into one connection.

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::abi::{AttachFlags, ItemType, Msg, PAYLOAD_KERNEL, SRC_ID_KERNEL, Timestamp};
use kdbus_core::channel::terms::{self, HeldTerms};
use kdbus_core::channel::{
    Arrived, Batch, CALL_ENDED_SIZE, CallName, CallState, CallWord, Entry, LaneHead, Order, Place, Settled,
    Violation, call_ended, settle,
};
use kdbus_core::queue;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::arena::{Arena, Held};
use super::bell::{self, Rings};
use super::calls::{Answers, Call, GRACE, Owed};
use super::held::HeldBack;
use super::hot::HotSet;
use super::lane::InLane;
use super::map::{Block, ReadMap, WordMap};
use super::outward::OutLanes;
use super::point::{self, Point};
use super::{Gate, gate};

/// Small messages of one lane that may wait or be read.
const BLOCKS: usize = 64;
/// Bytes of the shortest message in a lane: head and header.
const SHORTEST: u64 = 96;
/// How long nobody asks for a lane after one was refused, and how long at the most after it was refused again and again.
const PAUSE: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The lane of the transport's own notifications.
const NOTICES: u32 = u32::MAX;

/// A call that came by lane and was not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwedCall {
    /// Which lane.
    lane: usize,
    pub(super) name: CallName,
    /// Another call with its cookie came by kdbusd, which knows the newest.
    pub(super) is_contested: bool,
}

/// A message that came by lane and waits in the queue.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    held: Held,
    /// Which lane; none for a notification of this transport's own.
    lane: Option<usize>,
    /// Room that its lane gets back when it is received.
    words: u64,
    /// The call that it is.
    call: Option<CallName>,
    queued: Option<queue::Handle>,
}

/// A lane, and what kdbusd says of it.
#[derive(Debug)]
struct Inward {
    lane: InLane,
    terms: HeldTerms,
    /// Messages of it that wait in the queue, and that may: as many as clients get into it, so that none stays there whose
    /// turn it is for lack of a place alone.
    waiting: u32,
    places: u32,
    /// The bell was not asked for since something came.
    hot: bool,
    /// Something came since idle lanes were last made cold.
    used: bool,
    /// There was no room for its next message: it is not looked at before something is given back.
    full: bool,
    rings: Rings,
    owed: Owed,
}

impl Inward {
    const fn new(lane: InLane) -> Self {
        let places = (lane.bytes() / SHORTEST) as u32;
        Self {
            lane,
            terms: HeldTerms::new(),
            waiting: 0,
            places,
            hot: false,
            used: false,
            full: false,
            rings: Rings::new(),
            owed: Owed::new(),
        }
    }

    /// Copies the message at the head of the lane to where it stays, and examines the copy. `Ok(None)` if there is no room for
    /// it, or if it is not `wanted`: it stays in the lane.
    ///
    /// # Errors
    ///
    /// [`Violation`]; the copy is gone.
    fn copy_in(
        &mut self,
        at: usize,
        head: &LaneHead,
        time: u64,
        look: &mut Look<'_>,
        wanted: impl FnOnce(u64, &Settled) -> bool,
    ) -> Result<Option<Copied>, Violation> {
        let Self { lane, terms, .. } = self;
        terms.refresh(lane.page());
        let place = Place::of(head, terms).ok_or(Violation)?;
        // A clock takes as long as all of the rest, so it is read only for those who are to see it.
        let shows_time = terms.attach().contains(AttachFlags::TIMESTAMP);
        let realtime_ns = if shows_time { look.realtime(time) } else { 0 };
        let stamp = Timestamp { seqnum: time, monotonic_ns: time, realtime_ns };
        let receiver = look.receiver;
        let filled = look.arena.fill(Some(at), place.size(), |slice| {
            let (first, second) = place.parts(slice).ok_or(Some(Violation))?;
            lane.copy_head(first, second).ok_or(Some(Violation))?;
            let settled = settle(slice.as_mut_bytes(), &place, terms, receiver, stamp).map_err(Some)?;
            if wanted(terms.sender(), &settled) { Ok(settled) } else { Err(None) }
        });
        match filled {
            Some(Ok((held, settled))) => Ok(lane.advance().map(|words| Copied { held, settled, words })),
            Some(Err(Some(Violation))) => Err(Violation),
            Some(Err(None)) | None => Ok(None),
        }
    }
}

/// The application holds all the room there is for what comes by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRoom;

/// A message that was copied out of its lane.
#[derive(Clone, Copy, Debug)]
struct Copied {
    held: Held,
    settled: Settled,
    /// Room that its lane gets back once it is received.
    words: u64,
}

/// One look at lanes: for whom and when it is, and where copies go.
#[derive(Clone, Copy, Debug)]
struct Look<'a> {
    receiver: u64,
    arena: &'a Arena,
    now: Instant,
    /// From the clock to the time of day, once somebody has asked for it.
    offset: Option<i64>,
}

impl Look<'_> {
    /// The time of day at this time.
    fn realtime(&mut self, monotonic: u64) -> u64 {
        let now = self.now;
        monotonic.saturating_add_signed(*self.offset.get_or_insert_with(|| bell::realtime_offset(now)))
    }
}

/// All lanes into one connection, and the messages that came by them.
#[derive(Debug)]
pub(super) struct InLanes {
    lanes: Block<Option<Inward>>,
    /// Places without a lane, when to ask for one, and how long to wait after that was refused.
    empty: usize,
    ask_at: Instant,
    pause: Duration,
    hot: HotSet,
    /// The lane by which a call came last.
    last_call: usize,
    /// kdbusd shows something that was not looked at.
    unseen: bool,
    waiting: Block<Option<Waiting>>,
    /// Places in `waiting` that are free, the one that was left last on top.
    free: Block<u32>,
    free_len: usize,
    /// Id of the connection.
    receiver: u64,
    /// A lane is full.
    stuck: bool,
    /// The time of the oldest message that the last look found no room for.
    left: Option<u64>,
    /// What kdbusd shows and what has to come after messages that found no room.
    pub(super) held: HeldBack,
    /// There was no room to tell of the end of a call.
    mute: bool,
    /// The reply that the connection waits for. The application has its bytes.
    reply: Option<Held>,
    _gate: Gate,
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
            bytes = bytes.max(2 * lane.bytes());
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

    /// The bells, with the number of each lane.
    pub(super) fn bells(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.as_ref()?.lane.as_fd())))
    }

    /// Whether a hot lane has something that was not looked at. Cost: a few loads for each of them.
    pub(super) fn has_fresh(&mut self) -> bool {
        let Self { lanes, hot, .. } = self;
        let fresh = |number: usize| match lanes.get_mut(number) {
            Some(Some(inward)) => !inward.full && matches!(inward.lane.peek(), Ok(Some(_))),
            _ => false,
        };
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
    /// sender breaks a rule is not looked at again. `now` is when the look began.
    pub(super) fn drain(
        &mut self,
        now: Instant,
        batch: &mut Batch<'_>,
        arena: &Arena,
        outward: &mut OutLanes,
    ) {
        if self.hot.count_look() {
            self.cool(true);
        }
        self.held.clear();
        if let Some(left) = self.left.take() {
            batch.reach_back(left);
        }
        let mut look = Look { receiver: self.receiver, arena, now, offset: None };
        for place in 0..self.hot.len() {
            let Some(at) = self.hot.get(place) else { return };
            let Some(Some(inward)) = self.lanes.get_mut(at) else { continue };
            // Ends: a lane holds a bounded number of messages that were not received, and as many are taken out for nobody.
            let mut ignored = 0;
            while let Ok(Some(head)) = inward.lane.peek() {
                (inward.hot, inward.used) = (true, true);
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
                    Some(_) => inward.copy_in(at, &head, time, &mut look, |_, _| true),
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
                        inward.lane.give_back(words);
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
                inward.waiting += 1;
                point::pass(Point::Copied);
            }
        }
    }

    /// Receives the next message of the only lane that has any, and nothing if several have, or none: then their order is
    /// for the queue to find. `now` was read before. Nobody waits for the end of a call.
    pub(super) fn take_only(&mut self, now: Instant, order: &mut Order, arena: &Arena) -> Option<Held> {
        if self.left.is_some() {
            return None;
        }
        let mut fresh = None;
        for (at, inward) in self.lanes.iter_mut().enumerate() {
            if let Some(inward) = inward
                && let Ok(Some(head)) = inward.lane.peek()
                && fresh.replace((at, head)).is_some()
            {
                return None;
            }
        }
        let (at, head) = fresh?;
        let time = order.take_only(now, head.key)?;
        let look = Look { receiver: self.receiver, arena, now, offset: None };
        let Copied { held, settled, .. } = self.take_out(at, &head, time, look, |_, _| true)?;
        if settled.answers != 0 {
            arena.release(held);
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
        Some(held)
    }

    /// Takes the message at the head of lane `at` out past the queue, if it is `wanted`: its lane has its room back at once. `None`
    /// if it breaks a rule, and for what is left to the queue's turn.
    fn take_out(
        &mut self,
        at: usize,
        head: &LaneHead,
        time: u64,
        mut look: Look<'_>,
        wanted: impl FnOnce(u64, &Settled) -> bool,
    ) -> Option<Copied> {
        let inward = self.lanes.get_mut(at)?.as_mut()?;
        (inward.hot, inward.used) = (true, true);
        match inward.copy_in(at, head, time, &mut look, wanted) {
            Ok(copied) => {
                let copied = copied?;
                point::pass(Point::Copied);
                inward.lane.give_back(copied.words);
                point::pass(Point::Received);
                Some(copied)
            }
            Err(Violation) => {
                inward.lane.reject();
                self.hot.worn();
                None
            }
        }
    }

    /// Receives the reply that the connection waits for, if it stands first in its lane. `now` was read before.
    pub(super) fn take_waited(
        &mut self,
        now: Instant,
        order: &Order,
        arena: &Arena,
        outward: &mut OutLanes,
    ) -> Option<Held> {
        let waited = *outward.calls().waited()?;
        if self.left.is_some() {
            return None;
        }
        let (at, head) = self.lanes.iter_mut().enumerate().find_map(|(at, inward)| {
            let head = inward.as_mut()?.lane.peek().ok()??;
            (head.call == waited.name.word()).then_some((at, head))
        })?;
        let time = order.time_beside(now, head.key)?;
        let look = Look { receiver: self.receiver, arena, now, offset: None };
        // Other connections name their own calls as this one does: only the copy tells.
        let (name, calls) = (Some(waited.name), outward.calls());
        let is_meant = |sender, settled: &Settled| calls.meant(name, sender, settled.answers).is_some();
        let Copied { held, .. } = self.take_out(at, &head, time, look, is_meant)?;
        if outward.answered(name, waited.callee, waited.cookie) == Answers::Waited {
            arena.hand_over(held);
            return Some(held);
        }
        arena.release(held);
        None
    }

    /// Whether messages stay in their lanes because there is no room for them.
    pub(super) const fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Looks at an entry that kdbusd shows before it is admitted. False if it has to stay there for now.
    pub(super) fn meet(
        &mut self,
        entry: &Entry,
        pool: Option<&ReadMap>,
        arena: &Arena,
        outward: &mut OutLanes,
        batch: &mut Batch<'_>,
    ) -> bool {
        if !self.stuck && !self.owes() && outward.calls().is_empty() {
            return true;
        }
        let Some(header) = read_header(entry, pool) else { return true };
        self.came_by_bus(&header);
        let gone = who_left(entry, &header, pool);
        let held = self.holds_up(entry, &header, gone, outward.calls().waited())
            || gone.is_some_and(|gone| {
                batch.takes(entry.key) && !self.tell_before(gone, entry.key, arena, outward, batch)
            });
        if held {
            self.held.add(entry.slot, entry.key);
        }
        !held
    }

    /// Whether an entry that kdbusd shows has to stay there for now, because an older message of its sender, or of who is
    /// `gone` by its word, stays in a lane. The reply that the connection waits for stays for nothing.
    fn holds_up(&mut self, entry: &Entry, header: &Msg, gone: Option<u64>, waited: Option<&Call>) -> bool {
        if !self.stuck || waited.is_some_and(|call| call.is_answered_by(header, entry.key)) {
            return false;
        }
        let from = gone.unwrap_or(header.src_id);
        self.lanes.iter_mut().flatten().any(|inward| {
            inward.full
                && inward.terms.sender() == from
                && matches!(inward.lane.peek(), Ok(Some(head)) if head.key <= entry.key)
        })
    }

    /// Ends the calls to who is `gone`, and admits that before the notification with this key, which says so. False if that
    /// has to stay for now: who is gone has sent something that was not looked at, or there is no room.
    fn tell_before(
        &mut self,
        gone: u64,
        key: u64,
        arena: &Arena,
        outward: &mut OutLanes,
        batch: &mut Batch<'_>,
    ) -> bool {
        if outward.calls().is_empty() {
            return true;
        }
        let others = |callee| callee != gone;
        if self.awaits(gone) {
            return outward.call_to_the_dead(others).is_none();
        }
        // Ends: each round ends a call.
        while let Some(call) = outward.call_to_the_dead(others) {
            outward.finish(&call, false, true);
        }
        // What they have sent is older than that they are gone.
        let before = Instant::from_nanos(key.saturating_sub(1));
        while let Some((call, dead)) = outward.calls().untold() {
            let Some(arrived) = self.call_ended(call.cookie, dead, before, arena) else {
                self.silence();
                return !outward.calls().has_untold_to(gone);
            };
            let admitted = batch.admit(arrived);
            debug_assert!(admitted, "there was room");
            outward.calls().close(call.name);
        }
        true
    }

    /// Whether some of what kdbusd shows is held up until something is given back.
    pub(super) const fn holds_back(&self) -> bool {
        (self.stuck || self.mute) && self.held.is_any()
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

    /// Looks for the reply that the connection waits for behind messages that find no room: it passes them by.
    /// Cost: a look at each message in the lanes from its callee.
    ///
    /// # Errors
    ///
    /// [`NoRoom`] if it is there and finds none itself; its call has ended.
    pub(super) fn look_ahead(
        &mut self,
        now: Instant,
        arena: &Arena,
        outward: &mut OutLanes,
    ) -> Result<(), NoRoom> {
        let Some(call) = outward.calls().waited().copied() else { return Ok(()) };
        let receiver = self.receiver;
        for inward in self.lanes.iter_mut().flatten() {
            let Inward { lane, terms, .. } = inward;
            if !matches!(lane.peek(), Ok(Some(_))) {
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
                let realtime_ns = time.saturating_add_signed(bell::realtime_offset(now));
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

    /// Receives a message: its lane gets its room back. The application has its bytes if they were shown, and nobody
    /// otherwise. Returns its place in the queue.
    pub(super) fn take(&mut self, slot: u32, arena: &Arena) -> Option<queue::Handle> {
        let Waiting { held, lane, words, queued, .. } = self.waiting.get_mut(slot as usize)?.take()?;
        arena.release(held);
        if let Some(place) = self.free.get_mut(self.free_len) {
            *place = slot;
            self.free_len += 1;
        }
        self.relieve();
        if let Some(Some(inward)) = lane.and_then(|lane| self.lanes.get_mut(lane)) {
            inward.waiting = inward.waiting.saturating_sub(1);
            point::pass(Point::Received);
            inward.lane.give_back(words);
        }
        queued
    }

    /// Something was given back, so there may be room again. True if messages had none.
    pub(super) fn relieve(&mut self) -> bool {
        let was_stuck = core::mem::take(&mut self.stuck);
        if was_stuck {
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
        let realtime_ns = key.saturating_add_signed(bell::realtime_offset(now));
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

    /// Asks for the bells of the lanes by which something came. The caller then looks once more at everything.
    pub(super) fn ask_bells(&mut self) {
        self.cool(false);
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
            if self.hot.is_choosy() && !matches!(inward.lane.peek(), Ok(Some(_))) {
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
        if let Some(Some(inward)) = self.lanes.get_mut(at) {
            inward.hot = true;
            self.hot.add(at);
            if inward.rings.count(emptied) {
                inward.lane.silence();
            }
        }
    }

    /// A lane that nothing more comes by; its place is empty now.
    pub(super) fn worn_out(&mut self) -> Option<InLane> {
        let Self { lanes, hot, .. } = self;
        let worn = |inward: &Inward| {
            inward.waiting == 0
                && (inward.lane.is_rejected()
                    || (terms::has_ended(inward.lane.page()) && inward.lane.is_drained()))
        };
        let at = hot.find_worn(|number| matches!(lanes.get(number), Some(Some(inward)) if worn(inward)))?;
        let worn = self.lanes.get_mut(at)?.take()?.lane;
        self.empty += 1;
        Some(worn)
    }

    /// An empty place that a lane is to be brought for now.
    pub(super) fn empty_place(&self) -> Option<usize> {
        if self.empty == 0 || (self.ask_at > Instant::ZERO && bell::now() < self.ask_at) {
            return None;
        }
        self.lanes.iter().position(Option::is_none)
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

/// The header of what kdbusd shows. Whether the entry was taken back, and its place is another's, tells whoever takes it.
pub(super) fn read_header(entry: &Entry, pool: Option<&ReadMap>) -> Option<Msg> {
    let mut header = Msg::default();
    pool?.read(entry.offset, header.as_mut_bytes()).ok()?;
    Some(header)
}

/// Whose connection has ended, if an entry says that of one.
fn who_left(entry: &Entry, header: &Msg, pool: Option<&ReadMap>) -> Option<u64> {
    let mut words = [0_u64; 3];
    let is_notification = header.src_id == SRC_ID_KERNEL && header.payload_type == PAYLOAD_KERNEL;
    pool.filter(|_| is_notification)?.read(entry.offset + Msg::SIZE as u64, words.as_mut_bytes()).ok()?;
    let [_, kind, id] = words;
    (kind == ItemType::ID_REMOVE.0).then_some(id)
}

#[cfg(all(test, feature = "lanes"))]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use kdbus_core::abi::{ITEM_HEADER, ItemWriter, Vec as PayloadVec};

    use super::super::detour::Detour;
    use super::super::handle::Answer;
    use super::super::testbed::Lane;
    use super::*;

    const SENDER: u64 = 7;
    const RECEIVER: u64 = 9;

    /// A reply to a call with cookie 5, which nobody has made.
    fn reply() -> [u8; Msg::SIZE + 32] {
        let header = Msg {
            size: (Msg::SIZE + ITEM_HEADER + size_of::<PayloadVec>()) as u64,
            dst_id: RECEIVER,
            payload_type: 1,
            timeout_or_reply: 5,
            ..Msg::default()
        };
        let mut message = [0; Msg::SIZE + 32];
        let mut writer = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
        writer.bytes(ItemType::PAYLOAD_VEC, PayloadVec { size: 8, address: 64 }.as_bytes()).unwrap();
        message[..Msg::SIZE].copy_from_slice(header.as_bytes());
        message
    }

    #[test]
    fn a_look_ends_though_its_sender_fills_the_room_that_it_has_back() {
        let lane = Lane::new(SENDER);
        let fds = lane.fds().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let answer = Answer { fds, fds_lost: false, lane: 0, receiver: 0 };
        let (mut inward, arena) = InLanes::new([InLane::map(answer).unwrap()], 1, RECEIVER, 16).unwrap();
        let writer = Rc::new(RefCell::new(lane.writer));
        let send = move || {
            let reply = reply();
            let head = LaneHead { first: reply.len() as u64, second: 8, key: 1, call: 0 };
            let mut writer = writer.borrow_mut();
            let mut reserved = writer.reserve(head).unwrap();
            reserved.put(&reply);
            reserved.next_part();
            reserved.put(b"an answr");
            let _ = reserved.commit().unwrap();
        };
        send();
        let ignored = Rc::new(RefCell::new(0));
        let count = Rc::clone(&ignored);
        point::set_own_hook(move |place| {
            assert_eq!(place, Point::Ignored);
            *count.borrow_mut() += 1;
            assert!(*count.borrow() < 1000, "this does not end");
            send();
        });
        let mut outward = OutLanes::new((1, 1), Detour::NONE, RECEIVER).unwrap();
        let mut room = [Arrived::default(); 4];
        let mut order = Order::new();
        let mut batch = order.batch(bell::now(), &mut room);
        inward.drain(bell::now(), &mut batch, &arena, &mut outward);
        assert!(*ignored.borrow() > 0 && inward.has_fresh(), "the next look goes on");
        assert!(batch.sorted().is_empty());
    }
}
