//! Calls by lane that their connection waits for.

use kdbus_core::Instant;
use kdbus_core::abi::{Errno, Msg, MsgInfo, RecvFlags};
use kdbus_core::channel::{Arrived, CallState};
use kdbus_core::client::{Failure, Incoming, Outgoing};
use kdbus_core::hint::{likely, unlikely};
use rustix::fd::{BorrowedFd, OwnedFd};
use zerocopy::IntoBytes;

use super::bell::{self, Woken};
use super::calls::{Call, GRACE};
use super::cancel;
use super::error::errno;
use super::gate;
use super::incoming::Taken;
use super::map::WordMap;
use super::outward::OutLanes;
use super::past_queue::NoRoom;
use super::receive::{KDBUSD, Lanes, Receiver};
use super::transport::LocalTransport;

type Reader = Receiver<WordMap, WordMap>;

/// How a call stands.
enum Stand {
    /// It goes on.
    Open,
    /// Its reply is in its place.
    Replied,
    /// It has no reply, and will have none.
    Over(Errno),
}

impl LocalTransport {
    /// Sends a call by lane and waits for its end. `None` if kdbusd has to carry it, or knows why it cannot be made.
    pub(super) fn call_by_lane(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        cancel: Option<BorrowedFd<'_>>,
        reply: &mut Incoming<OwnedFd>,
    ) -> Option<Result<(), Failure>> {
        gate()?;
        let mut receiver = self.receiver.borrow_mut();
        let receiver = receiver.as_mut()?;
        let mut outward = self.outward.borrow_mut();
        let outward = outward.as_mut()?;
        if cancel.is_some_and(|cancel| cancel::check(cancel).is_err()) {
            return None;
        }
        // Before anybody can hear of the call: what kdbusd tells from here on may be its end.
        let seen = receiver.notices();
        let call = outward.call(&self.handle, message)?;
        let ended = self.await_end(receiver, outward, &call, seen, cancel, reply);
        outward.stop_waiting();
        self.ring_for_the_rest(receiver, outward);
        Some(ended.and_then(|()| self.beat()))
    }

    /// Waits for the end of a call, which began when kdbusd had told of `seen`. Other messages that come in stay queued.
    fn await_end(
        &self,
        receiver: &mut Reader,
        outward: &mut OutLanes,
        call: &Call,
        mut seen: u64,
        mut cancel: Option<BorrowedFd<'_>>,
        reply: &mut Incoming<OwnedFd>,
    ) -> Result<(), Failure> {
        // Why nobody waits any more, and until when a reply may come that was on its way by then.
        let mut given_up: Option<(Errno, Instant)> = None;
        loop {
            let (mut woken, mut stand) = (Woken::Early, Stand::Open);
            let mut looked = false;
            let until = given_up.map_or(call.deadline, |(_, until)| until).min(outward.calls().next());
            // While it looks, nobody can cancel.
            let found = cancel.is_none()
                && self.find_reply(receiver, until, &mut looked, |receiver| {
                    receiver.has_other_news(Some(seen), Some(&mut *outward))
                });
            if found {
                // Nobody can cancel.
            } else if self.arm_for_reply(receiver, outward, &mut seen)? {
                // Whatever keeps coming in, whoever cancels is heard.
                woken = cancel.map_or(Woken::Early, cancel::look_at);
            } else {
                let mut sleeps = true;
                if unlikely(receiver.is_stuck()) {
                    // Behind messages without room, a reply makes nothing fresh.
                    stand = self.look_at(receiver, outward, call, false, reply)?;
                    // That may have taken what rang, so that what comes next does not.
                    sleeps = matches!(stand, Stand::Open) && !receiver.has_unasked();
                }
                woken = if sleeps {
                    self.with_spin(|spin| spin.slept(looked));
                    let waited = self.bell.wait_or_cancel(
                        self.handle.socket(),
                        Some(until),
                        cancel,
                        &mut rung(receiver),
                    );
                    waited.map_err(|error| Failure::Refused(errno(error)))?
                } else {
                    cancel.map_or(Woken::Early, cancel::look_at)
                };
            }
            if matches!(stand, Stand::Open) {
                // Whoever was gone before the look has sent its reply by then.
                let dead = outward.has_ended(call);
                stand = self.look_at(receiver, outward, call, dead, reply)?;
            }
            let over = match stand {
                Stand::Replied => return Ok(()),
                Stand::Over(errno) => Some(errno),
                Stand::Open if woken == Woken::HungUp || !receiver.is_alive() => return Err(self.end()),
                Stand::Open => {
                    if matches!(woken, Woken::Canceled | Woken::NeverCanceled) {
                        cancel = None;
                    }
                    let now = bell::now();
                    let reason = match given_up {
                        Some((reason, until)) => (now >= until).then_some(reason),
                        None if woken == Woken::Canceled => Some(Errno::ECANCELED),
                        None => (now >= call.deadline).then_some(Errno::ETIMEDOUT),
                    };
                    reason.filter(|reason| {
                        // Once it is answered, the reply is on its way, or is taken back just now.
                        let waits = !outward.end(call) && given_up.is_none();
                        if waits {
                            given_up = Some((*reason, now.after(GRACE)));
                        }
                        !waits
                    })
                }
            };
            if let Some(errno) = over {
                return Err(Failure::Refused(errno));
            }
        }
    }

    /// Looks for a reply for a while where that pays, and once anyway: where callee and caller share a processor, it may have
    /// come while this one rang. It costs the callee a ring to ask for the bell then.
    fn find_reply(
        &self,
        receiver: &mut Reader,
        until: Instant,
        looked: &mut bool,
        is_over: impl FnMut(&mut Reader) -> bool,
    ) -> bool {
        let came = !self.bell.is_watched() && receiver.has_fresh();
        came || self.look(until, looked, receiver, Reader::has_fresh, is_over)
    }

    /// Silences the bell and asks for it. True if something is there that nobody rings for.
    fn arm_for_reply(
        &self,
        receiver: &mut Reader,
        outward: &mut OutLanes,
        seen: &mut u64,
    ) -> Result<bool, Failure> {
        if unlikely(!self.bell.silence(&mut rung(receiver)) || !receiver.is_alive()) {
            return Err(self.end());
        }
        if unlikely(self.bell.is_watched()) {
            // Once it went off, nobody could sleep.
            self.bell.set_timer(outward.calls().next());
        }
        Ok(receiver.arm_for_reply(seen, outward))
    }

    /// Looks at what came in, and how a call stands after that. Its callee is `dead` since before.
    fn look_at(
        &self,
        receiver: &mut Reader,
        outward: &mut OutLanes,
        call: &Call,
        dead: bool,
        reply: &mut Incoming<OwnedFd>,
    ) -> Result<Stand, Failure> {
        let Some(arena) = self.arena() else { return Ok(Stand::Over(Errno::EPIPE)) };
        let pool = self.handle.pool();
        let mut lanes = Lanes { arena, pool, bell: &self.bell, outward: &mut *outward };
        match receiver.look_for_reply(&mut lanes) {
            Ok(Some((offset, msg_size))) => {
                reply.info = MsgInfo { offset: self.arena_base() + offset, msg_size, return_flags: 0 };
                return Ok(Stand::Replied);
            }
            Ok(None) => {}
            // kdbus: a reply without room ends the call.
            Err(NoRoom) => return Ok(Stand::Over(Errno::EXFULL)),
        }
        let open = if dead { Stand::Over(Errno::EPIPE) } else { Stand::Open };
        match outward.state(call) {
            Some(CallState::Pending | CallState::Answered) => Ok(open),
            Some(CallState::Relayed) => {
                if self.relayed(receiver, call, reply)? {
                    return Ok(Stand::Replied);
                }
                let code = outward.record(call).and_then(|record| record.failure());
                let error = code.map(|code| Errno::from_raw(code.into()).unwrap_or(Errno::EIO));
                Ok(error.map_or(open, Stand::Over))
            }
            // Its callee has dropped it.
            Some(CallState::Expired) | None => Ok(Stand::Over(Errno::EPIPE)),
        }
    }

    /// Receives the reply to a call that kdbusd has brought, if it is there: it leaves the queue before its turn.
    fn relayed(
        &self,
        receiver: &mut Reader,
        call: &Call,
        reply: &mut Incoming<OwnedFd>,
    ) -> Result<bool, Failure> {
        let Some(pool) = self.handle.pool() else { return Ok(false) };
        let answers = |arrived: &Arrived| {
            let mut header = Msg::default();
            // Only whoever takes the entry knows that it was not taken back meanwhile.
            arrived.lane == KDBUSD
                && pool.read(arrived.offset, header.as_mut_bytes()).is_ok()
                && call.is_answered_by(&header, arrived.key)
        };
        match receiver.find(answers) {
            Some(entry) => {
                let taken = self.take_entry(receiver, &entry, RecvFlags::empty(), 0, reply)?;
                Ok(taken == Taken::Message)
            }
            None => Ok(false),
        }
    }

    /// Leaves the descriptor as somebody who polls it has to find it: readable if something came in besides.
    fn ring_for_the_rest(&self, receiver: &mut Reader, outward: &mut OutLanes) {
        if likely(!self.bell.is_watched()) {
            return;
        }
        let goes_on = self.bell.silence(&mut rung(receiver));
        if !goes_on || receiver.arm(Some(outward)) || receiver.has_losses() {
            self.bell.ring_own();
        }
    }
}

/// Tells a receiver's lanes that they rang.
fn rung(receiver: &mut Reader) -> impl FnMut(usize, bool) {
    |at, stale| {
        if let Some(lanes) = receiver.lanes() {
            lanes.rang(at, stale);
        }
    }
}
