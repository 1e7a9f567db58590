//! Waiting for room in a lane, so that what a sender has left does not go through kdbusd, one message at a time.
//!
//! The sender says in the lane that it waits, puts a byte into the receiver's bell, and sleeps until that pipe has room for
//! another one: kdbusd gives it a single page, so that it is full as long as a byte is in it. The receiver empties it once half
//! of the lane is free, and at the latest where it has nothing more to receive. So nobody needs a descriptor more, and a receiver
//! that never does it costs its sender [`PATIENCE`].

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::channel::LaneHead;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::bell;
use super::lane::{OutLane, bytes_of};
use super::point::{self, Point};
use super::spin::Spin;

/// How long a message waits for room in its lane before it goes through kdbusd.
const PATIENCE: Duration = Duration::from_millis(5);
/// How long it looks before it sleeps, if that has found room lately: a receiver on another processor makes some in that time.
const LOOK: Duration = Duration::from_micros(2);
/// Larger messages than this part of the lane do not wait: a few of them fill it, and both ends would take turns instead of
/// working side by side.
const SHARE: u64 = 8;
/// Messages that do not wait after one has in vain: one, and then twice as many each time, up to this.
const PAUSE_MAX: u32 = 1 << 10;
/// Times that it is told of room and finds none. Only a receiver that empties its bell for nothing gets there.
const ROUNDS: u32 = 8;

/// What one lane remembers from one wait to the next.
#[derive(Debug)]
pub(super) struct RoomWait {
    spin: Spin,
    /// Messages that do not wait because the last wait was in vain, and how many that were then.
    skip: u32,
    pause: u32,
}

impl RoomWait {
    pub(super) fn new() -> Self {
        Self { spin: Spin::new(Some(LOOK)), skip: 0, pause: 0 }
    }

    /// Whether the next message is to wait.
    const fn is_worth_it(&mut self) -> bool {
        let skips = self.skip > 0;
        self.skip = self.skip.saturating_sub(1);
        !skips
    }

    /// A wait has ended, and there was room or not. A receiver that is slower than its sender is not waited for on and on, as
    /// long as kdbusd has room for what is sent to it.
    fn ended(&mut self, found: bool) -> bool {
        self.pause = if found { 0 } else { (2 * self.pause + 1).min(PAUSE_MAX) };
        self.skip = self.pause;
        found
    }
}

impl OutLane {
    /// Sends a message for which the lane was full, once it has room. False if it has to go another way.
    #[cold]
    pub(super) fn send_when_room(
        &mut self,
        until: Instant,
        call: u64,
        first: &[u8],
        second: &[&[u8]],
    ) -> bool {
        let head = LaneHead { first: first.len() as u64, second: bytes_of(second), key: 0, call };
        // Its time is that of its sending.
        self.wait_for_room(&head, until) && self.send(bell::now().as_nanos(), call, first, second).is_ok()
    }

    /// Waits until a message with this head has room in the lane, and others with it, but neither beyond `until` nor
    /// longer than [`PATIENCE`]. False if it has to go another way.
    fn wait_for_room(&mut self, head: &LaneHead, until: Instant) -> bool {
        let Some(words) = head.words().filter(|words| *words <= self.ring() / SHARE) else { return false };
        if !self.room.is_worth_it() {
            return false;
        }
        let found = self.sees_room(words) || self.sleeps_until_room(words, until);
        self.room.ended(found)
    }

    fn sleeps_until_room(&mut self, words: u64, until: Instant) -> bool {
        let end = until.min(bell::now().after(PATIENCE));
        // Ends: after so many rounds.
        for _ in 0..ROUNDS {
            if !self.is_open() {
                return false;
            }
            // Before it asks: who sees the wish takes this byte, or one after it.
            self.ring_bell();
            self.ask_room();
            if self.look_for_room(words) {
                return true;
            }
            point::pass(Point::RoomAsked);
            let told = self.sleep_until_emptied(end);
            if self.look_for_room(words) {
                return true;
            }
            if !told {
                return false;
            }
        }
        false
    }

    /// Looks for room for a while, where that has paid.
    fn sees_room(&mut self, words: u64) -> bool {
        let Some(span) = self.room.spin.next() else {
            self.room.spin.slept(false);
            return false;
        };
        let end = bell::now().after(span);
        while bell::now() < end {
            if self.look_for_room(words) {
                self.room.spin.found();
                return true;
            }
            core::hint::spin_loop();
        }
        self.room.spin.slept(true);
        false
    }

    /// Sleeps until the receiver has emptied its bell, or `end`. False if it has not, or cannot be waited for.
    fn sleep_until_emptied(&self, end: Instant) -> bool {
        let Some(rest) = end.as_nanos().checked_sub(bell::now().as_nanos()) else { return false };
        let rest = Timespec { tv_sec: (rest / 1_000_000_000) as i64, tv_nsec: (rest % 1_000_000_000) as _ };
        let mut fds = [PollFd::from_borrowed_fd(self.bell(), PollFlags::OUT)];
        matches!(poll(&mut fds, Some(&rest)), Ok(1..))
    }
}

#[cfg(all(test, feature = "lanes"))]
mod tests {
    use std::cell::Cell;
    use std::rc::Rc;

    use kdbus_core::channel::LaneGate;

    use super::super::handle::Answer;
    use super::super::lane::InLane;
    use super::super::map::WordMap;
    use super::super::testbed::Lane;
    use super::*;

    const FIRST: [u8; 64] = [7; 64];

    /// Both ends of a lane that is full, and what closes it.
    fn full() -> (OutLane, InLane, LaneGate<WordMap, WordMap>) {
        let lane = Lane::new(7);
        let out = Answer { fds: lane.out_fds(), ..Answer::new() };
        let fds = lane.fds().into_iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
        let inward = InLane::map(Answer { fds, ..Answer::new() }).unwrap();
        let mut out = OutLane::map(out).unwrap();
        while out.send(1, 0, &FIRST, &[]).is_ok() {}
        (out, inward, lane.gate)
    }

    fn rung(lane: &InLane) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(lane, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    fn receive(lane: &mut InLane) -> bool {
        if lane.peek().unwrap().is_none() {
            return false;
        }
        let words = lane.copy_out(&mut [0; 8], &mut []).unwrap();
        lane.give_back(words);
        true
    }

    fn send(lane: &mut OutLane, wait: Duration) -> bool {
        lane.send_when_room(bell::now().after(wait), 0, &FIRST, &[])
    }

    #[test]
    fn a_sender_is_woken_when_its_receiver_has_nothing_more_to_receive() {
        let (mut out, mut inward, _gate) = full();
        let received = Rc::new(Cell::new(0));
        let count = Rc::clone(&received);
        point::set_own_hook(move |place| {
            if place == Point::RoomAsked {
                while receive(&mut inward) {
                    count.set(count.get() + 1);
                }
                assert!(!inward.has_next_or_tells_room() && inward.takes_silenced());
            }
        });
        assert!(send(&mut out, Duration::from_secs(60)));
        assert!(received.get() > 0);
    }

    #[test]
    fn a_sender_whose_time_is_over_looks_once_more() {
        let (mut out, mut inward, _gate) = full();
        point::set_own_hook(move |place| {
            if place == Point::RoomAsked {
                // Its receiver has not come to telling of it.
                while receive(&mut inward) {}
            }
        });
        assert!(send(&mut out, Duration::from_millis(1)));
    }

    #[test]
    fn a_look_at_a_lane_that_is_waited_for_by_its_bell_leaves_the_bell() {
        let (mut out, mut inward, _gate) = full();
        while receive(&mut inward) {}
        inward.ask_bell();
        inward.silence();
        out.ask_room();
        out.send(1, 0, &FIRST, &[]).unwrap();
        assert!(receive(&mut inward) && !receive(&mut inward) && !inward.has_next());
        assert!(rung(&inward), "nobody would look at it again");
    }

    #[test]
    fn who_has_waited_in_vain_waits_more_and_more_rarely_until_there_is_room() {
        let (mut out, mut inward, _gate) = full();
        let asked = Rc::new(Cell::new(0));
        let count = Rc::clone(&asked);
        point::set_own_hook(move |place| count.set(count.get() + u32::from(place == Point::RoomAsked)));
        let fill = |out: &mut OutLane, wait: Duration| {
            asked.set(0);
            let waits = (0..20).filter(|_| {
                let before = asked.get();
                assert!(!send(out, wait));
                asked.get() != before
            });
            waits.count()
        };
        let short = Duration::from_millis(1);
        assert_eq!(fill(&mut out, short), 4, "of messages 1, 3, 7 and 15");
        while receive(&mut inward) {}
        while !send(&mut out, short) {}
        while out.send(1, 0, &FIRST, &[]).is_ok() {}
        assert_eq!(fill(&mut out, short), 4, "as at first");
    }

    #[test]
    fn a_receiver_that_empties_its_bell_for_nothing_does_not_keep_its_sender() {
        let (mut out, inward, _gate) = full();
        let rounds = Rc::new(Cell::new(0));
        let count = Rc::clone(&rounds);
        point::set_own_hook(move |place| {
            if place == Point::RoomAsked {
                inward.silence();
                count.set(count.get() + 1);
                assert!(count.get() < 100, "this does not end");
            }
        });
        assert!(!out.send_when_room(Instant::FAR, 0, &FIRST, &[]));
        assert!(rounds.get() <= ROUNDS);
    }

    #[test]
    fn what_is_large_or_finds_its_lane_closed_does_not_wait() {
        let (mut out, _inward, mut gate) = full();
        point::set_own_hook(|place| assert_ne!(place, Point::RoomAsked));
        for large in [&[0; 1 << 16][..], &[0; 1 << 10][..]] {
            assert!(!out.send_when_room(Instant::FAR, 0, large, &[]));
        }
        gate.close();
        assert!(!send(&mut out, Duration::from_secs(60)));
    }
}
