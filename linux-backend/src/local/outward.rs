//! The lanes from one connection to others.

use kdbus_core::Instant;
use kdbus_core::abi::{DST_ID_NAME, Msg};
use kdbus_core::channel::{
    CALLS_MAX, CallName, CallRecord, CallState, CallWord, NotByLane, Sendable, sendable,
};
use kdbus_core::client::{Deadline, Failure, Outgoing};
use kdbus_core::examine::Route;
use rustix::io::Errno;
use zerocopy::FromBytes;

use super::bell;
use super::block::Block;
use super::calls::{Answers, Call, Calls};
use super::detour::Detour;
use super::handle::Handle;
use super::in_lanes::InLanes;
use super::lane::OutLane;
use super::map::WordMap;
use super::owed::OwedCall;
use super::point::{self, Point};
use super::{Gate, gate};

/// Messages after which a lane that was refused is asked for again, at the most.
const PATIENCE_MAX: u32 = 1 << 10;
/// Receivers whose messages are counted at one time.
const CANDIDATES: usize = 32;
/// The last deadline of a call that somebody waits for.
const WAIT_MAX: Instant = Instant::from_nanos(i64::MAX as u64);
/// Bytes of the longest name.
const NAME_MAX: usize = 255;

/// A name as it stands in messages; empty for none.
type Name = heapless::Vec<u8, NAME_MAX>;

/// A lane that was given to this connection.
#[derive(Debug)]
struct Outward {
    lane: OutLane,
    /// The name under which it was asked for last.
    name: Name,
}

/// A receiver to which no lane leads.
#[derive(Clone, Copy, Debug, Default)]
struct Candidate {
    key: u64,
    messages: u32,
    /// The count at which a lane is asked for.
    ask_at: u32,
}

/// All lanes from one connection.
#[derive(Debug)]
pub(super) struct OutLanes {
    lanes: Block<Option<Outward>>,
    /// The one that was used last.
    last: usize,
    candidates: [Candidate; CANDIDATES],
    calls: Calls,
    /// Calls through kdbusd that were open when it told last; there may be fewer by now.
    by_bus: u32,
    /// Id of the connection.
    sender: u64,
    patience: u32,
    detour: Detour,
    _gate: Gate,
}

/// Which way a message takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// It was sent by lane.
    Lane,
    /// It has to go through kdbusd.
    Bus,
    /// It has to go through kdbusd, as the reply to this call.
    Claim(OwedCall),
    /// It has to go through kdbusd, as the reply to a call with this cookie from the owner of a name: kdbusd knows who that is.
    ClaimByName(u64),
}

/// Whom a message goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To<'m> {
    Id(u64),
    Name(&'m [u8]),
}

impl<'m> To<'m> {
    fn of(message: &Sendable<'m>) -> Self {
        match message.name {
            Some(name) => Self::Name(name),
            None => Self::Id(message.header.dst_id),
        }
    }

    /// A number that other receivers rarely have: FNV-1a of the name.
    fn key(self) -> u64 {
        match self {
            Self::Id(id) => id,
            Self::Name(name) => name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
            }),
        }
    }
}

impl Outward {
    fn leads(&self, to: To<'_>) -> bool {
        match to {
            To::Id(id) => self.lane.receiver() == id,
            To::Name(name) => self.name == name,
        }
    }
}

impl OutLanes {
    /// Room for lanes from connection `sender`, each asked for after `patience` messages.
    pub(super) fn new((count, patience): (usize, u32), detour: Detour, sender: u64) -> Result<Self, Errno> {
        let lanes = Block::new(count, || None)?;
        Ok(Self {
            lanes,
            last: 0,
            candidates: [Candidate::default(); CANDIDATES],
            _gate: gate().ok_or(Errno::OPNOTSUPP)?,
            calls: Calls::new(),
            by_bus: 0,
            patience,
            detour,
            sender,
        })
    }

    /// Sends a call that its connection waits for by lane, if it can go by one. What would be refused cannot.
    pub(super) fn call<F>(&mut self, handle: &Handle, message: &mut Outgoing<'_, F>) -> Option<Call> {
        if self.send(handle, message, true, None) { self.calls.waited().copied() } else { None }
    }

    /// Sends a message that answers nothing by lane, if it can go by one. With `waits`, it has to be a call, and its
    /// connection waits for its end; with `room_until`, it may wait that long for room in the lane.
    pub(super) fn send<F>(
        &mut self,
        handle: &Handle,
        message: &mut Outgoing<'_, F>,
        waits: bool,
        room_until: Option<Deadline>,
    ) -> bool {
        let Some((sendable, is_last)) = self.look_at(message.message) else { return false };
        let (route, cookie) = (sendable.route, sendable.header.cookie);
        let deadline = Instant::from_nanos(sendable.header.timeout_ns());
        let len = sendable.len.next_multiple_of(8) as usize;
        let is_call = route == Route::Call;
        if !is_call && (waits || route != Route::Plain) {
            return false;
        }
        // kdbus: a deadline that a signed number does not hold has passed for who waits. Of two replies that kdbusd brings,
        // only kdbusd knows which one is for whom.
        if waits && (deadline > WAIT_MAX || self.calls.has_cookie(cookie)) {
            return false;
        }
        if !message.fds.is_empty() || self.detour.next() {
            return false;
        }
        let at = if is_last { Some(self.last) } else { self.lane_to(handle, To::of(&sendable)) };
        let Some(at) = at else { return false };
        let full = |calls: u32| calls + self.by_bus >= CALLS_MAX as u32;
        if is_call && full(self.calls.len()) && full(self.waiting_calls()) {
            // kdbusd knows how many of those through it are still open.
            return false;
        }
        if is_call && self.calls.is_full() {
            self.close_relayed(|_| true);
        }
        let Some(Some(Outward { lane, .. })) = self.lanes.get_mut(at) else { return false };
        let Some(first) = message.message.get(..len) else { return false };
        let begun = message.begun.unwrap_or_else(bell::now);
        let now = begun.as_nanos();
        let callee = lane.receiver();
        let name = if !is_call {
            None
        } else if !waits {
            let Some(name) = self.calls.open(at, callee, cookie, begun, deadline) else { return false };
            Some(name)
        } else if deadline.as_nanos() <= now {
            return false;
        } else {
            Some(self.calls.wait_for(at, callee, cookie, begun, deadline))
        };
        if let Some(name) = name {
            lane.begin(name, cookie, begun);
            if !waits {
                point::pass(Point::CallBegun);
            }
        }
        let word = name.map_or(0, CallName::word);
        let mut sent = match lane.send(now, word, first, message.payload) {
            Err(NotByLane::Full) if room_until.is_some() => {
                let until = room_until.map_or(begun, |until| until.at(begun));
                let until = if is_call { until.min(deadline) } else { until };
                lane.send_when_room(until, word, first, message.payload)
            }
            sent => sent.is_ok(),
        };
        if let (false, Some(name)) = (sent, name) {
            // A call that was not sent has ended here: whoever it goes to by another way answers it there. Who saw it before
            // may have had its reply brought; then it goes on, to that end.
            sent = !lane.record(name).end(CallState::Expired);
            match (sent, waits) {
                (true, _) => {}
                (false, true) => self.calls.stop_waiting(),
                (false, false) => self.calls.close(name),
            }
        }
        if sent {
            self.last = at;
        }
        sent
    }

    /// Sends a reply by lane, if it can go by one. `inward` is where the call came in that it may answer.
    pub(super) fn reply<F>(
        &mut self,
        handle: &Handle,
        inward: Option<&mut InLanes>,
        message: &mut Outgoing<'_, F>,
    ) -> Way {
        let Some(inward) = inward else { return Way::Bus };
        let Some((sendable, is_last)) = self.look_at(message.message) else {
            return by_bus(message.message, inward);
        };
        let Route::Reply(cookie) = sendable.route else { return Way::Bus };
        if sendable.name.is_some() {
            return Way::ClaimByName(cookie);
        }
        let caller = sendable.header.dst_id;
        let len = sendable.len.next_multiple_of(8) as usize;
        // Whatever way the reply takes, this is the call that it answers.
        let Some(owed) = inward.owed(caller, cookie) else { return Way::Bus };
        let claim = Way::Claim(owed);
        if !message.fds.is_empty() || self.detour.next() || owed.is_contested {
            return claim;
        }
        let at = if is_last { Some(self.last) } else { self.lane_to(handle, To::Id(caller)) };
        let Some(at) = at else { return claim };
        let Some(Some(Outward { lane, .. })) = self.lanes.get_mut(at) else { return claim };
        let Some(first) = message.message.get(..len) else { return claim };
        let number = owed.name.number;
        let agreed = || {
            let ended = inward.call(&owed).is_some_and(|call| call.end(number, CallState::Answered));
            if ended {
                point::pass(Point::CallAnswered);
            }
            ended
        };
        match lane.send_if(bell::now().as_nanos(), owed.name.word(), first, message.payload, &agreed) {
            Ok(true) => {
                inward.forget_owed(&owed);
                self.last = at;
                Way::Lane
            }
            // It has ended otherwise, which kdbusd says.
            Ok(false) => {
                inward.forget_owed(&owed);
                Way::Bus
            }
            Err(_) => {
                let _ = inward.call(&owed).map(|call| call.reopen(number, CallState::Answered));
                claim
            }
        }
    }

    /// What a message is if it can go by lane, and whether it can go by the one that was used last, as most do.
    #[inline(always)]
    fn look_at<'m>(&self, message: &'m mut [u8]) -> Option<(Sendable<'m>, bool)> {
        let last = self.lanes.get(self.last).and_then(Option::as_ref);
        let known = last.map_or(&[][..], |outward| &outward.name);
        let sendable = sendable(message, self.sender, known)?;
        let is_last = last.is_some_and(|outward| {
            outward.lane.is_open()
                && (sendable.is_known
                    || sendable.name.is_none() && outward.lane.receiver() == sendable.header.dst_id)
        });
        Some((sendable, is_last))
    }

    /// Lanes that are open.
    pub(super) fn open_lanes(&self) -> usize {
        self.lanes.iter().flatten().filter(|outward| outward.lane.is_open()).count()
    }

    /// Calls through kdbusd that may be open.
    pub(super) const fn set_by_bus(&mut self, calls: u32) {
        self.by_bus = calls;
    }

    /// A call that its callee has dropped. Cost: `O(CALLS_MAX)`.
    pub(super) fn dropped_call(&self) -> Option<Call> {
        self.calls.iter().find(|call| self.state(call) == Some(CallState::Expired)).copied()
    }

    /// Calls by lane that have not ended, whether or not their replies were received. Cost: `O(CALLS_MAX)`.
    pub(super) fn waiting_calls(&self) -> u32 {
        if gate().is_none() || self.calls.is_empty() {
            return 0;
        }
        self.calls.iter().filter(|call| self.state(call) == Some(CallState::Pending)).count() as u32
    }

    /// The calls that were sent by lane.
    pub(super) const fn calls(&mut self) -> &mut Calls {
        &mut self.calls
    }

    /// The word of a call.
    pub(super) fn word(&self, call: &Call) -> Option<CallWord<&WordMap>> {
        self.lanes.get(call.lane)?.as_ref().map(|outward| outward.lane.call(call.name))
    }

    /// What this connection and kdbusd say of a call.
    pub(super) fn record(&self, call: &Call) -> Option<CallRecord<&WordMap>> {
        self.lanes.get(call.lane)?.as_ref().map(|outward| outward.lane.record(call.name))
    }

    /// How a call stands; `None` if that is nowhere to be seen.
    pub(super) fn state(&self, call: &Call) -> Option<CallState> {
        self.record(call)?.stands(self.word(call)?.state(call.name.number))
    }

    /// Ends a call that nobody waits for any more. False if kdbusd brings its reply, or if its callee has announced one.
    pub(super) fn end(&self, call: &Call) -> bool {
        let ends = self.record(call).zip(self.word(call));
        ends.is_none_or(|(record, word)| record.expire(&word))
    }

    /// Ends a call whatever its callee says. False if kdbusd brings its reply.
    fn give_up(&self, call: &Call) -> bool {
        self.record(call).is_none_or(|record| record.end(CallState::Expired))
    }

    /// Ends a call for good, unless it is `ended` already. It keeps its place until its connection is told, because its
    /// callee is `dead` or its time is over. If it has ended otherwise, nobody has to hear of it.
    pub(super) fn finish(&mut self, call: &Call, ended: bool, dead: bool) {
        if ended || self.give_up(call) {
            self.calls.end(call.name, dead);
        } else {
            self.calls.close(call.name);
        }
    }

    /// Waits no longer for the call that the connection waits for.
    pub(super) fn stop_waiting(&mut self) {
        if let Some(call) = self.calls.waited().copied() {
            let _ = self.give_up(&call);
            self.calls.stop_waiting();
        }
    }

    /// Ends the call to `callee` that a reply by lane names and answers, if kdbusd has not brought another one.
    pub(super) fn answered(&mut self, name: Option<CallName>, callee: u64, cookie: u64) -> Answers {
        match self.calls.meant(name, callee, cookie) {
            Some(call) if self.record(&call).is_some_and(|record| record.end(CallState::Answered)) => {
                self.calls.answered(&call)
            }
            _ => Answers::Nothing,
        }
    }

    /// kdbusd has brought a reply to a call with this cookie: if it went by lane, it has ended.
    pub(super) fn brought(&mut self, callee: u64, cookie: u64) {
        if cookie != 0 && !self.calls.is_empty() {
            self.close_relayed(|call| (call.callee, call.cookie) == (callee, cookie));
        }
    }

    /// Closes those of the `meant` calls that kdbusd has ended. Their replies are in its queue or found no room there, so that
    /// nobody else ends them, and whoever still names one of them names no other: each has a number of its own.
    #[cold]
    fn close_relayed(&mut self, meant: impl Fn(&Call) -> bool) {
        let Self { lanes, calls, .. } = self;
        calls.close_those(|call| {
            let lane = lanes.get(call.lane).and_then(Option::as_ref).filter(|_| meant(call));
            lane.is_some_and(|outward| outward.lane.record(call.name).state() == Some(CallState::Relayed))
        });
    }

    /// Whether the callee of a call is gone.
    pub(super) fn has_ended(&self, call: &Call) -> bool {
        let lane = self.lanes.get(call.lane).and_then(Option::as_ref);
        lane.is_none_or(|outward| outward.lane.has_ended())
    }

    /// A call to somebody who is gone, and of whom nothing is `awaited`.
    pub(super) fn call_to_the_dead(&self, mut awaited: impl FnMut(u64) -> bool) -> Option<Call> {
        let gone = |lane: &Option<Outward>| lane.as_ref().is_some_and(|outward| outward.lane.has_ended());
        if self.calls.is_empty() {
            return None;
        }
        (0..)
            .zip(&*self.lanes)
            .filter(|(_, lane)| gone(lane))
            .find_map(|(at, _)| self.calls.by_lane(at).filter(|call| !awaited(call.callee)))
    }

    /// Asks for a lane now, whatever was refused before.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code, as [`Handle::open_lane`]; `ENOBUFS` if this connection has no place for
    /// another one.
    pub(super) fn open(&mut self, handle: &Handle, id: u64, name: &[u8]) -> Result<(), Failure> {
        let to = if name.is_empty() { To::Id(id) } else { To::Name(name) };
        self.ask(handle, to).map(|_| ())
    }

    /// The open lane that leads to `to`; without one, one is asked for every now and then.
    fn lane_to(&mut self, handle: &Handle, to: To<'_>) -> Option<usize> {
        if let Some(at) = self.find(to) {
            let outward = self.lanes.get_mut(at)?.as_mut()?;
            if outward.lane.is_open() {
                return Some(at);
            }
            if outward.lane.has_ended() && self.calls.by_lane(at).is_none() {
                *self.lanes.get_mut(at)? = None;
            }
        }
        let key = to.key();
        let candidate = self.candidates.get_mut(key as usize % CANDIDATES)?;
        if candidate.key != key {
            *candidate = Candidate { key, messages: 0, ask_at: self.patience };
        }
        candidate.messages += 1;
        if candidate.messages < candidate.ask_at {
            return None;
        }
        candidate.messages = 0;
        candidate.ask_at = (2 * candidate.ask_at).clamp(1, PATIENCE_MAX);
        let at = self.ask(handle, to).ok()?;
        if let Some(candidate) = self.candidates.get_mut(key as usize % CANDIDATES) {
            candidate.ask_at = self.patience;
        }
        Some(at)
    }

    fn find(&self, to: To<'_>) -> Option<usize> {
        let leads = |lane: &Option<Outward>| lane.as_ref().is_some_and(|lane| lane.leads(to));
        if self.lanes.get(self.last).is_some_and(leads) {
            return Some(self.last);
        }
        self.lanes.iter().position(leads)
    }

    /// Where another lane can stand: a place that is free, or whose lane is closed and has no calls.
    fn free_place(&self) -> Option<usize> {
        let free = self.lanes.iter().position(Option::is_none);
        let idle = |at: &usize| self.calls.by_lane(*at).is_none();
        let closed = |at: &usize| self.lanes.get(*at).is_some_and(|other| is_closed(other.as_ref()));
        free.or_else(|| (0..self.lanes.len()).filter(closed).find(idle))
    }

    /// Asks kdbusd for a lane to `to`, or to open the one there is.
    fn ask(&mut self, handle: &Handle, to: To<'_>) -> Result<usize, Failure> {
        let (id, name) = match to {
            To::Id(id) => (id, &[][..]),
            To::Name(name) => (DST_ID_NAME, name),
        };
        // One that was given and finds no place would be lost to its receiver as long as this connection lives.
        let place = self.free_place();
        let (receiver, lane) = match place {
            Some(_) => handle.open_lane(id, name)?,
            None => (handle.reopen_lane(id, name)?, None),
        };
        let full = Failure::Refused(kdbus_core::abi::Errno::ENOBUFS);
        let name = Name::from_slice(name).map_err(|_| full)?;
        for other in self.lanes.iter_mut().flatten().filter(|other| other.name == name) {
            other.name.clear();
        }
        let at = match lane {
            None => self.find(To::Id(receiver)),
            Some(lane) => {
                if let Some(place) = place.and_then(|at| self.lanes.get_mut(at)) {
                    *place = Some(Outward { lane, name: Name::new() });
                }
                place
            }
        };
        let outward = at.and_then(|at| self.lanes.get_mut(at)?.as_mut()).ok_or(full)?;
        // The name may have passed on since it was asked for. Then the lane was opened for its receiver's id alone.
        let is_named = name.is_empty() || outward.lane.is_for(&name);
        outward.name = if is_named { name } else { Name::new() };
        if is_named { at.ok_or(full) } else { Err(Failure::Refused(kdbus_core::abi::Errno::EAGAIN)) }
    }
}

/// Which way a reply takes that cannot go by lane: one with descriptors, say. A bad one, kdbusd tells apart.
#[cold]
fn by_bus(message: &[u8], inward: &mut InLanes) -> Way {
    let Ok((header, _)) = Msg::read_from_prefix(message) else { return Way::Bus };
    match header.cookie_reply() {
        0 => Way::Bus,
        cookie if header.dst_id == DST_ID_NAME => Way::ClaimByName(cookie),
        cookie => inward.owed(header.dst_id, cookie).map_or(Way::Bus, Way::Claim),
    }
}

fn is_closed(lane: Option<&Outward>) -> bool {
    lane.is_some_and(|outward| !outward.lane.is_open())
}

#[cfg(all(test, feature = "lanes"))]
#[path = "outward_tests.rs"]
mod tests;
