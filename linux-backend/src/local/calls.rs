//! Calls by lane that wait for their end, at the caller and at the callee.

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::abi::Msg;
use kdbus_core::channel::{CALLS_MAX, CallName};

/// The word of the call that the connection waits for: it has one at a time, and keeps it out of the others' way.
const WAITED: usize = CALLS_MAX - 1;

/// How long a call is waited for whose reply was announced and did not come.
pub(super) const GRACE: Duration = Duration::from_millis(1);
/// How often a call that nobody sleeps in gets that, twice as long each time: a second all in all. Its callee may be stopped
/// between both, or lie.
const LOOKS: u8 = 10;

/// What a reply that came in is to this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// Nobody waits for it: it comes too late, or is the second one.
    Nothing,
    /// It ends a call, and is received as any message.
    Call,
    /// It ends the call that the connection waits for.
    Waited,
}

/// A call of this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: CallName,
    /// The lane by which it was sent.
    pub(super) lane: usize,
    /// Id of the callee.
    pub(super) callee: u64,
    pub(super) cookie: u64,
    /// When it was made.
    made_at: Instant,
    /// When to look whether it has ended.
    pub(super) deadline: Instant,
    /// How often that was put off.
    pub(super) looks: u8,
    /// How it has ended, if its connection is to be told and was not yet.
    end: Option<End>,
}

/// The end of a call that has no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    /// Which one it is: they are told in their order.
    number: u64,
    /// Its callee has dropped it or is gone; else its time is over.
    dead: bool,
}

impl Call {
    /// Whether a message that kdbusd has queued at the time `key` is its reply, by what kdbusd says of it. One that answers
    /// an older call with that cookie was there before.
    pub(super) fn is_answered_by(&self, header: &Msg, key: u64) -> bool {
        header.src_id == self.callee
            && !header.expects_reply()
            && header.timeout_or_reply == self.cookie
            && key >= self.made_at.as_nanos()
    }
}

/// The calls that this connection has sent by lane and that have not ended.
#[derive(Debug)]
pub(super) struct Calls {
    places: [Option<Call>; WAITED],
    len: usize,
    /// The one that the connection waits for.
    waited: Option<Call>,
    /// The number of the last call.
    number: u64,
    /// Calls that have ended and stay in their places until that is told, and how many there ever were.
    untold: usize,
    ends: u64,
    /// Not after the earliest deadline.
    next: Instant,
}

impl Calls {
    /// No calls.
    pub(super) const fn new() -> Self {
        Self {
            places: [None; WAITED],
            len: 0,
            waited: None,
            number: 0,
            untold: 0,
            ends: 0,
            next: Instant::FAR,
        }
    }

    /// Whether there is none.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many there are.
    pub(super) const fn len(&self) -> u32 {
        self.len as u32
    }

    /// Whether there is no place for another one that nobody sleeps in.
    pub(super) const fn is_full(&self) -> bool {
        self.len == WAITED
    }

    /// Opens the call that the connection waits for, until it is [over](Self::stop_waiting).
    pub(super) fn wait_for(
        &mut self,
        lane: usize,
        callee: u64,
        cookie: u64,
        made_at: Instant,
        deadline: Instant,
    ) -> CallName {
        self.number += 1;
        let name = CallName { index: WAITED, number: self.number };
        self.waited = Some(Call { name, lane, callee, cookie, made_at, deadline, looks: 0, end: None });
        name
    }

    /// The call that the connection waits for.
    pub(super) const fn waited(&self) -> Option<&Call> {
        self.waited.as_ref()
    }

    /// Waits for no call any more.
    pub(super) const fn stop_waiting(&mut self) {
        self.waited = None;
    }

    /// Opens a call. `None` if there are as many as there are words.
    pub(super) fn open(
        &mut self,
        lane: usize,
        callee: u64,
        cookie: u64,
        made_at: Instant,
        deadline: Instant,
    ) -> Option<CallName> {
        if self.is_full() {
            return None;
        }
        let number = self.number + 1;
        // Calls mostly end before the next begins, or in the order they began: the next place is mostly free.
        let index = (0..WAITED)
            .map(|step| (number as usize).wrapping_add(step) % WAITED)
            .find(|index| self.places.get(*index).is_some_and(Option::is_none))?;
        let name = CallName { index, number };
        *self.places.get_mut(index)? =
            Some(Call { name, lane, callee, cookie, made_at, deadline, looks: 0, end: None });
        (self.number, self.len) = (number, self.len + 1);
        self.next = self.next.min(deadline);
        Some(name)
    }

    /// Ends a call.
    pub(super) fn close(&mut self, name: CallName) {
        if let Some(place) = self.places.get_mut(name.index)
            && let Some(call) = place.take_if(|call| call.name == name)
        {
            self.len -= 1;
            self.untold -= usize::from(call.end.is_some());
            if self.len == 0 {
                self.next = Instant::FAR;
            }
        }
    }

    /// Closes the calls of which nobody has to hear any more. Cost: `O(`[`CALLS_MAX`]`)`.
    pub(super) fn close_those(&mut self, mut over: impl FnMut(&Call) -> bool) {
        for index in 0..WAITED {
            if let Some(Some(call)) = self.places.get(index)
                && call.end.is_none()
                && over(call)
            {
                self.close(call.name);
            }
        }
    }

    /// A call has ended without a reply, and keeps its place until that is told and it is [closed](Self::close).
    pub(super) fn end(&mut self, name: CallName, dead: bool) {
        if let Some(Some(call)) = self.places.get_mut(name.index)
            && call.name == name
            && call.end.is_none()
        {
            self.ends += 1;
            self.untold += 1;
            call.end = Some(End { number: self.ends, dead });
        }
    }

    /// Whether there is an end that was not told.
    pub(super) const fn has_untold(&self) -> bool {
        self.untold > 0
    }

    /// Whether there is one of a call to `callee`.
    pub(super) fn has_untold_to(&self, callee: u64) -> bool {
        self.places.iter().flatten().any(|call| call.end.is_some() && call.callee == callee)
    }

    /// The call that ended first of those whose end was not told, and whether its callee is to blame. Cost:
    /// `O(`[`CALLS_MAX`]`)`, and nothing if there is none.
    pub(super) fn untold(&self) -> Option<(Call, bool)> {
        if !self.has_untold() {
            return None;
        }
        let ended = |call: &&Call| Some((call.end?.number, **call, call.end?.dead));
        let (_, call, dead) =
            self.places.iter().flatten().filter_map(|call| ended(&call)).min_by_key(|end| end.0)?;
        Some((call, dead))
    }

    /// The call to `callee` that a reply names and answers, if nothing has ended it.
    pub(super) fn meant(&self, name: Option<CallName>, callee: u64, cookie: u64) -> Option<Call> {
        let name = name?;
        let place = if name.index == WAITED { self.waited } else { *self.places.get(name.index)? };
        place.filter(|call| {
            call.name == name && call.callee == callee && call.cookie == cookie && call.end.is_none()
        })
    }

    /// Ends a call that is [meant](Self::meant) by a reply.
    pub(super) fn answered(&mut self, call: &Call) -> Answers {
        if call.name.index == WAITED {
            self.waited = None;
            return Answers::Waited;
        }
        self.close(call.name);
        Answers::Call
    }

    /// When [`due`](Self::due) may bring something.
    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// A call whose deadline has come by `now`. It stays until it is [closed](Self::close) or
    /// [put off](Self::put_off). Cost: `O(`[`CALLS_MAX`]`)`, and nothing before the earliest deadline.
    pub(super) fn due(&mut self, now: Instant) -> Option<Call> {
        if now < self.next {
            return None;
        }
        let first = self.iter().min_by_key(|call| call.deadline).copied();
        self.next = first.map_or(Instant::FAR, |call| call.deadline);
        first.filter(|call| call.deadline <= now)
    }

    /// Looks at a call again later, after twice as long each time. False if it was put off often enough. While it is
    /// `hidden` whether its reply is there, that does not count.
    pub(super) fn put_off(&mut self, name: CallName, now: Instant, hidden: bool) -> bool {
        let Some(Some(call)) = self.places.get_mut(name.index) else { return false };
        if call.name != name || (call.looks == LOOKS && !hidden) {
            return false;
        }
        call.deadline = now.after(GRACE.saturating_mul(1 << call.looks.min(LOOKS - 1)));
        call.looks += u8::from(!hidden);
        true
    }

    /// All of them that have not ended.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Call> {
        self.places.iter().flatten().filter(|call| call.end.is_none())
    }

    /// Whether there is one with this cookie.
    pub(super) fn has_cookie(&self, cookie: u64) -> bool {
        self.len > 0 && self.iter().any(|call| call.cookie == cookie)
    }

    /// A call that was sent by this lane and that nobody waits for.
    pub(super) fn by_lane(&self, lane: usize) -> Option<Call> {
        self.iter().find(|call| call.lane == lane).copied()
    }
}

/// The calls that came by one lane and were not answered yet, as the callee remembers them. Some may be in their lane still.
#[derive(Debug)]
pub(super) struct Owed {
    /// Number and cookie of each; number 0 where there is none.
    places: [(u64, u64); CALLS_MAX],
    /// A bit for each of them, whether they still wait or not.
    used: u128,
    /// A bit for each of them with whose cookie another call came from the same caller by kdbusd.
    contested: u128,
    /// Where to look first: none is newer.
    hint: usize,
    /// How far the lane was looked through for calls that were not copied out.
    ahead: u64,
}

impl Owed {
    /// None.
    pub(super) const fn new() -> Self {
        Self { places: [(0, 0); CALLS_MAX], used: 0, contested: 0, hint: 0, ahead: 0 }
    }

    /// How far the lane was looked through.
    pub(super) const fn ahead(&self) -> u64 {
        self.ahead
    }

    /// It was looked through that far.
    pub(super) const fn set_ahead(&mut self, ahead: u64) {
        self.ahead = ahead;
    }

    /// A call came in, or was seen in its lane. An older one in its place has ended at its caller. One that was seen there before
    /// is known, and a newer one may have its place by now.
    pub(super) fn add(&mut self, name: CallName, cookie: u64) {
        if let Some(place) = self.places.get_mut(name.index)
            && name.number > place.0
        {
            *place = (name.number, cookie);
            self.used |= 1 << name.index;
            self.contested &= !(1 << name.index);
            self.hint = name.index;
        }
    }

    /// Whether there is none.
    pub(super) const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// A call with this cookie came by kdbusd from the caller of these. Which of them is the newest, kdbusd knows.
    pub(super) fn contest(&mut self, cookie: u64) {
        for (index, place) in self.places.iter().enumerate() {
            self.contested |= u128::from(place.0 != 0 && place.1 == cookie) << index;
        }
    }

    /// Whether a call with the cookie of this one came by kdbusd since.
    pub(super) const fn is_contested(&self, name: CallName) -> bool {
        self.contested >> name.index & 1 != 0
    }

    /// The call with this cookie that `waits`, the newest of them, as in kdbus. Cost: `O(1)` for the one that came last,
    /// else a look at each of them.
    pub(super) fn find(&self, cookie: u64, waits: impl Fn(CallName) -> bool) -> Option<CallName> {
        let meant = |index: usize| {
            let (number, other) = *self.places.get(index)?;
            let name = CallName { index, number };
            (number != 0 && other == cookie && waits(name)).then_some(name)
        };
        let mut rest = self.used;
        let mut next = || {
            let index = rest.checked_ilog2()?;
            rest &= !(1 << index);
            Some(index as usize)
        };
        meant(self.hint)
            .or_else(|| core::iter::from_fn(&mut next).filter_map(meant).max_by_key(|name| name.number))
    }

    /// A call was answered, or has ended otherwise.
    pub(super) fn remove(&mut self, name: CallName) {
        if let Some(place) = self.places.get_mut(name.index)
            && place.0 == name.number
            && place.0 != 0
        {
            *place = (0, 0);
            self.used &= !(1 << name.index);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    #[test]
    fn calls_come_due_in_the_order_of_their_deadlines() {
        let mut calls = Calls::new();
        let first = calls.open(0, 7, 1, at(1), at(300)).unwrap();
        let second = calls.open(1, 8, 2, at(1), at(100)).unwrap();
        assert_eq!((calls.next(), calls.due(at(99))), (at(100), None));
        assert_eq!(calls.due(at(400)).unwrap().name, second);
        assert!(calls.put_off(second, at(500), false));
        assert_eq!(calls.due(at(400)).unwrap().name, first);
        calls.close(first);
        assert_eq!((calls.due(at(400)), calls.next()), (None, at(500).after(GRACE)));
        assert_eq!(calls.by_lane(1).unwrap().name, second);
        assert!(calls.by_lane(0).is_none());
    }

    #[test]
    fn a_call_is_put_off_for_longer_each_time_and_not_for_ever() {
        let mut calls = Calls::new();
        let name = calls.open(0, 7, 1, at(1), at(300)).unwrap();
        let mut now = at(300);
        let mut looks = 0;
        while calls.put_off(name, now, false) {
            assert!(calls.due(now).is_none());
            now = calls.next();
            looks += 1;
        }
        assert_eq!((looks, now), (10, at(300).after(1023 * GRACE)));
        assert!(calls.put_off(name, now, true) && !calls.put_off(name, now, false));
        calls.close(name);
        assert!(!calls.put_off(name, now, false));
    }

    /// Ends what a reply names, if anything.
    fn answer(calls: &mut Calls, name: Option<CallName>, callee: u64, cookie: u64) -> Answers {
        calls.meant(name, callee, cookie).map_or(Answers::Nothing, |call| calls.answered(&call))
    }

    #[test]
    fn a_reply_ends_the_call_that_it_names_once() {
        let mut calls = Calls::new();
        let name = calls.open(0, 7, 1, at(1), Instant::FAR);
        for (name, callee, cookie) in [(name, 8, 1), (name, 7, 2), (None, 7, 1)] {
            assert_eq!(answer(&mut calls, name, callee, cookie), Answers::Nothing);
        }
        assert_eq!(answer(&mut calls, name, 7, 1), Answers::Call);
        assert_eq!(answer(&mut calls, name, 7, 1), Answers::Nothing);
        assert!(calls.is_empty());
    }

    #[test]
    fn the_call_that_is_waited_for_is_apart_from_the_others() {
        let mut calls = Calls::new();
        let other = calls.open(0, 7, 1, at(1), at(9));
        let waited = calls.wait_for(0, 7, 1, at(1), at(5));
        assert_ne!(other, Some(waited));
        assert_eq!((calls.len(), calls.next(), calls.due(at(6))), (1, at(9), None));
        assert_eq!(calls.waited().map(|call| call.deadline), Some(at(5)));
        assert_eq!(answer(&mut calls, Some(waited), 8, 1), Answers::Nothing);
        assert_eq!(answer(&mut calls, Some(waited), 7, 1), Answers::Waited);
        assert_eq!(answer(&mut calls, Some(waited), 7, 1), Answers::Nothing);
        assert_eq!(answer(&mut calls, other, 7, 1), Answers::Call);
        let given_up = calls.wait_for(0, 7, 1, at(1), at(5));
        calls.stop_waiting();
        assert_eq!(answer(&mut calls, Some(given_up), 7, 1), Answers::Nothing);
    }

    #[test]
    fn an_ended_call_keeps_its_place_until_its_end_is_told_and_comes_to_nothing_else() {
        let mut calls = Calls::new();
        let names = [1, 2, 3].map(|cookie| calls.open(0, 7, cookie, at(1), at(100 * cookie)).unwrap());
        calls.end(names[1], true);
        calls.end(names[0], false);
        calls.end(names[0], true);
        let told = |calls: &Calls| calls.untold().map(|(call, dead)| (call.name, dead));
        assert_eq!((told(&calls), calls.len()), (Some((names[1], true)), 3));
        assert_eq!(answer(&mut calls, Some(names[0]), 7, 1), Answers::Nothing);
        assert_eq!(calls.due(at(200)), None);
        assert_eq!(calls.next(), at(300), "that of the one that goes on");
        calls.close(names[1]);
        assert_eq!(told(&calls), Some((names[0], false)), "as it ended first");
        calls.close(names[0]);
        assert_eq!((told(&calls), calls.by_lane(0).map(|call| call.name)), (None, Some(names[2])));
    }

    #[test]
    fn a_reply_that_was_there_before_a_call_is_not_its_own() {
        let mut calls = Calls::new();
        let name = calls.wait_for(0, 7, 5, at(40), at(90));
        let reply = Msg { src_id: 7, timeout_or_reply: 5, ..Msg::default() };
        let waited = *calls.waited().unwrap();
        assert_eq!(waited.name, name);
        assert_eq!([39, 40, 41].map(|key| waited.is_answered_by(&reply, key)), [false, true, true]);
        assert!(!waited.is_answered_by(&Msg { src_id: 8, ..reply }, 41));
    }

    #[test]
    fn there_are_as_many_as_there_are_words() {
        let mut calls = Calls::new();
        let names: Vec<_> =
            (0..WAITED as u64).map(|cookie| calls.open(0, 7, cookie, at(1), at(9)).unwrap()).collect();
        assert!(calls.open(0, 7, 9, at(1), at(9)).is_none());
        calls.close(names[5]);
        assert_eq!(calls.open(0, 7, 9, at(1), at(9)).unwrap().index, names[5].index);
    }

    #[test]
    fn a_call_by_the_other_way_contests_those_with_its_cookie_that_were_there() {
        let mut owed = Owed::new();
        let [a, b, last] = [0, 4, CALLS_MAX - 1].map(|index| CallName { index, number: 9 });
        for (name, cookie) in [(a, 50), (b, 60), (last, 50)] {
            owed.add(name, cookie);
        }
        owed.contest(50);
        assert_eq!([a, b, last].map(|name| owed.is_contested(name)), [true, false, true]);
        owed.add(CallName { number: 10, ..a }, 50);
        assert!(!owed.is_contested(a) && !owed.is_empty());
        for name in [CallName { number: 10, ..a }, b, last] {
            owed.remove(name);
        }
        assert!(owed.is_empty());
    }

    #[test]
    fn a_call_that_was_seen_in_its_lane_comes_in_later_and_takes_the_place_of_none_that_is_newer() {
        let mut owed = Owed::new();
        let any = |_: CallName| true;
        let [a, b] = [3, 4].map(|index| CallName { index, number: index as u64 });
        let newer = CallName { number: 9, ..a };
        owed.add(a, 50);
        owed.add(b, 50);
        owed.contest(50);
        owed.add(a, 50);
        assert_eq!((owed.find(50, any), owed.is_contested(a)), (Some(b), true), "nothing has changed");
        owed.remove(a);
        owed.add(newer, 50);
        owed.add(a, 50);
        assert_eq!((owed.find(50, any), owed.is_contested(newer)), (Some(newer), false));
    }

    #[test]
    fn what_is_owed_is_found_by_cookie() {
        let mut owed = Owed::new();
        let any = |_: CallName| true;
        let [a, b] = [3, 4].map(|index| CallName { index, number: 9 });
        owed.add(a, 50);
        owed.add(b, 60);
        assert_eq!((owed.find(50, any), owed.find(60, any), owed.find(0, any)), (Some(a), Some(b), None));
        let b = CallName { number: 10, ..b };
        owed.add(b, 50);
        assert_eq!(owed.find(50, |name| name == a), Some(a), "the other one has ended");
        owed.remove(CallName { number: 8, ..a });
        assert_eq!(owed.find(50, |name| name != b), Some(a));
        owed.remove(a);
        owed.remove(b);
        assert_eq!(owed.find(50, any), None);
        for (index, number, cookie) in [(5, 10, 70), (6, 12, 70), (7, 11, 70), (0, 9, 70), (8, 13, 80)] {
            owed.add(CallName { index, number }, cookie);
        }
        assert_eq!(
            owed.find(70, any).map(|name| name.number),
            Some(12),
            "the newest, though it came not last"
        );
    }
}
