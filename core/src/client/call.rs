//! Calls: a message, and the wait for its answer.

use core::cell::Cell;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use super::connection::Connection;
use super::deadline::Deadline;
use super::delivery::Delivery;
use super::error::{Broken, CallError, SendError};
use super::error_reply::{ErrorReply, PAYLOAD_ERROR};
use super::message::Message;
use super::transport::{Failure, Incoming, Transport};
use crate::Instant;
use crate::abi::Errno;

/// How a call ended.
#[derive(Debug)]
pub(super) enum Outcome<Fd> {
    Answer(Incoming<Fd>),
    TimedOut,
    PeerDied,
}

/// The place of one call that waits. Cells, because a waker may run anything, this connection included.
pub(super) struct Slot<Fd> {
    /// Its cookie; 0 while the place is free.
    cookie: Cell<u64>,
    until: Cell<Instant>,
    waker: Cell<Option<Waker>>,
    pending: Cell<bool>,
    outcome: Cell<Option<Outcome<Fd>>>,
}

impl<Fd> Default for Slot<Fd> {
    fn default() -> Self {
        Self {
            cookie: Cell::new(0),
            until: Cell::new(Instant::FAR),
            waker: Cell::new(None),
            pending: Cell::new(false),
            outcome: Cell::new(None),
        }
    }
}

impl<Fd> Slot<Fd> {
    fn is_free(&self) -> bool {
        self.cookie.get() == 0
    }

    /// Whether a call here has no answer yet.
    pub(super) fn is_pending(&self) -> bool {
        self.pending.get()
    }

    /// Whether the call with this cookie waits here for its answer.
    pub(super) fn awaits(&self, cookie: u64) -> bool {
        self.pending.get() && self.cookie.get() == cookie
    }

    /// Until when the call here waits, if it does.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (self.pending.get() && self.until.get() != Instant::FAR).then(|| self.until.get())
    }

    pub(super) fn complete(&self, outcome: Outcome<Fd>) {
        self.pending.set(false);
        self.outcome.set(Some(outcome));
        self.wake();
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn begin(&self, cookie: u64, until: Instant) {
        self.cookie.set(cookie);
        self.until.set(until);
        self.pending.set(true);
    }

    fn release(&self) -> Option<Outcome<Fd>> {
        self.cookie.set(0);
        self.pending.set(false);
        self.waker.set(None);
        self.outcome.take()
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Sends a call at once, and returns the future of its answer.
    ///
    /// The future may be dropped: the answer is then discarded when it comes. Messages that arrive meanwhile
    /// are kept for later receives; while `INBOX` of them are kept, the call waits for one to be received.
    ///
    /// The connection chooses the cookie. `deadline` is a span or a point in time;
    /// [`CALL_TIMEOUT`](super::CALL_TIMEOUT) fits where nothing speaks for another.
    pub fn call<'c, 'm>(
        &'c self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: impl Into<Deadline>,
    ) -> PendingCall<'c, T, CALLS, INBOX>
    where
        'c: 'm,
    {
        let until = deadline.into().at(self.now());
        let state = match self.calls.iter().find(|slot| slot.is_free()) {
            None => State::Failed(SendError::TooManyCalls),
            Some(slot) => match self.start(slot, message, until) {
                Ok(()) => State::Waiting(slot),
                Err(error) => State::Failed(error),
            },
        };
        PendingCall { connection: self, state }
    }

    /// Sends a call and waits in the transport for its answer, which passes all queued messages by.
    ///
    /// Where the transport cannot do that, it waits as [`call`](Self::call) does.
    ///
    /// # Errors
    ///
    /// [`CallError`]; an error of the callee's is [`CallError::Remote`].
    pub fn call_blocking<'c>(
        &'c self,
        message: &Message<'c, T::BorrowedFd<'c>>,
        deadline: impl Into<Deadline>,
    ) -> Result<Delivery<'c, T>, CallError> {
        self.call_with_cancel(message, deadline.into(), None)
    }

    /// As [`call_blocking`](Self::call_blocking), and ends with [`CallError::Canceled`] as soon as `cancel`
    /// is readable.
    ///
    /// # Errors
    ///
    /// [`CallError`]: `EOPNOTSUPP` where the transport cannot do that.
    pub fn call_cancelable<'c>(
        &'c self,
        message: &Message<'c, T::BorrowedFd<'c>>,
        deadline: impl Into<Deadline>,
        cancel: T::BorrowedFd<'c>,
    ) -> Result<Delivery<'c, T>, CallError> {
        self.call_with_cancel(message, deadline.into(), Some(cancel))
    }

    fn call_with_cancel<'c>(
        &'c self,
        message: &Message<'c, T::BorrowedFd<'c>>,
        deadline: Deadline,
        cancel: Option<T::BorrowedFd<'c>>,
    ) -> Result<Delivery<'c, T>, CallError> {
        let until = deadline.at(self.now());
        let call = message.as_call(self.link.own_cookie(), until);
        let sent = call.encode(
            || 0,
            &self.link.bus.bloom,
            |outgoing, _| self.link.transport.call(outgoing, cancel),
        )?;
        match sent {
            Ok(incoming) => self.answer(incoming),
            Err(Failure::Refused(Errno::EOPNOTSUPP)) if cancel.is_some() => Err(CallError::Unsupported),
            Err(Failure::Refused(Errno::EOPNOTSUPP)) => self.call(message, until).wait(),
            Err(failure) => Err(failure.into()),
        }
    }

    fn start<'m>(
        &'m self,
        slot: &Slot<T::Fd>,
        message: &Message<'m, T::BorrowedFd<'m>>,
        until: Instant,
    ) -> Result<(), SendError> {
        let cookie = self.link.own_cookie();
        // Before sending: where the peer runs in the same thread, its answer may come while this sends.
        slot.begin(cookie, until);
        let sent = self.link.transmit(&message.as_call(cookie, until));
        if sent.is_err() {
            slot.release();
        }
        sent.map(|_| ())
    }

    fn answer(&self, incoming: Incoming<T::Fd>) -> Result<Delivery<'_, T>, CallError> {
        let Some(reply) = Delivery::new(&self.link.transport, incoming) else {
            self.link.count(|stats| stats.malformed += 1);
            return Err(CallError::Undeliverable(Errno::EIO));
        };
        if reply.payload_type() == PAYLOAD_ERROR {
            return Err(CallError::Remote(ErrorReply::from_payload(reply.payload())));
        }
        Ok(reply)
    }
}

enum State<'c, Fd> {
    Waiting(&'c Slot<Fd>),
    Failed(SendError),
    Done,
}

/// The future of a call's answer; made by [`Connection::call`], which has sent the call already.
#[must_use = "without awaiting it, the answer of the call is discarded"]
pub struct PendingCall<'c, T: Transport, const CALLS: usize = 16, const INBOX: usize = 32> {
    connection: &'c Connection<T, CALLS, INBOX>,
    state: State<'c, T::Fd>,
}

impl<'c, T: Transport, const CALLS: usize, const INBOX: usize> PendingCall<'c, T, CALLS, INBOX> {
    /// Waits in the transport.
    ///
    /// # Errors
    ///
    /// [`CallError`]: `EOPNOTSUPP` where the transport cannot wait.
    pub fn wait(mut self) -> Result<Delivery<'c, T>, CallError> {
        loop {
            if let Some(result) = self.check() {
                return result;
            }
            if self.connection.inbox.borrow().is_full() {
                // Nobody can receive in between, so the answer would never get to the front.
                return Err(CallError::InboxFull);
            }
            match self.connection.wait(Instant::FAR) {
                Ok(()) => {}
                Err(Failure::Refused(Errno::EOPNOTSUPP)) => return Err(CallError::Unsupported),
                Err(Failure::Refused(Errno::EINTR)) => return Err(CallError::Interrupted),
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// How the call ended, if it has. After that there is nothing more to come.
    fn check(&mut self) -> Option<Result<Delivery<'c, T>, CallError>> {
        let slot = match self.state {
            State::Waiting(slot) => slot,
            State::Failed(error) => {
                self.state = State::Done;
                return Some(Err(error.into()));
            }
            State::Done => return Some(Err(CallError::NotSent(SendError::Invalid))),
        };
        let pumped = if slot.is_pending() { self.connection.pump() } else { Ok(()) };
        match slot.outcome.take() {
            Some(Outcome::Answer(incoming)) => {
                self.leave();
                Some(self.connection.answer(incoming))
            }
            Some(Outcome::TimedOut) => Some(Err(self.end(CallError::TimedOut))),
            Some(Outcome::PeerDied) => Some(Err(self.end(CallError::PeerDied))),
            None if pumped.is_err() => pumped.err().map(|failure| Err(self.end(failure_of_wait(failure)))),
            // The bus' own notification may be lost for lack of room, so the clock decides.
            None if self.connection.now() >= slot.until.get() => Some(Err(self.end(CallError::TimedOut))),
            None => None,
        }
    }

    fn end(&mut self, error: CallError) -> CallError {
        self.leave();
        error
    }

    fn leave(&mut self) {
        if let State::Waiting(slot) = core::mem::replace(&mut self.state, State::Done)
            && let Some(outcome) = slot.release()
        {
            self.connection.link.count(|stats| stats.late += 1);
            self.connection.discard(outcome);
        }
    }
}

const fn failure_of_wait(failure: Failure) -> CallError {
    match failure {
        Failure::Refused(errno) => CallError::Undeliverable(errno),
        Failure::Broken(errno) => CallError::Broken(Broken::new(errno)),
    }
}

impl<'c, T: Transport, const CALLS: usize, const INBOX: usize> Future for PendingCall<'c, T, CALLS, INBOX> {
    type Output = Result<Delivery<'c, T>, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(result) = self.check() {
            return Poll::Ready(result);
        }
        if let State::Waiting(slot) = self.state {
            slot.waker.set(Some(cx.waker().clone()));
        }
        Poll::Pending
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Drop for PendingCall<'_, T, CALLS, INBOX> {
    fn drop(&mut self) {
        self.leave();
    }
}
