//! Calls: a message, and the wait for its answer.

use core::cell::Cell;
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use super::connection::Connection;
use super::deadline::Deadline;
use super::delivery::{Checked, Delivery};
use super::encode::Sending;
use super::error::{Broken, CallError, SendError};
use super::error_reply::{ErrorReply, PAYLOAD_ERROR};
use super::message::Message;
use super::transport::{Failure, Incoming, Transport, Wait};
use crate::Instant;
use crate::abi::Errno;
use crate::hint::{likely, unlikely};

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

/// The places of all calls of a connection.
pub(super) struct Slots<Fd, const CALLS: usize> {
    slots: [Slot<Fd>; CALLS],
    /// Places that are taken: mostly none, and then nobody has to look at them.
    taken: Cell<usize>,
}

impl<Fd, const CALLS: usize> Slots<Fd, CALLS> {
    pub(super) fn new() -> Self {
        Self { slots: core::array::from_fn(|_| Slot::default()), taken: Cell::new(0) }
    }

    /// Those that may be taken.
    #[inline]
    pub(super) fn taken(&self) -> &[Slot<Fd>] {
        if likely(self.taken.get() == 0) { &[] } else { &self.slots }
    }

    /// Whether a call has no answer yet.
    pub(super) fn any_pending(&self) -> bool {
        self.taken().iter().any(Slot::is_pending)
    }

    fn free(&self) -> Option<&Slot<Fd>> {
        self.slots.iter().find(|slot| slot.is_free())
    }

    /// Takes a free place for a call.
    fn begin(&self, slot: &Slot<Fd>, cookie: u64, until: Instant) {
        self.taken.set(self.taken.get() + 1);
        slot.begin(cookie, until);
    }

    /// Gives a place back, once.
    fn release(&self, slot: &Slot<Fd>) -> Option<Outcome<Fd>> {
        self.taken.set(self.taken.get().saturating_sub(1));
        slot.release()
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
        let (until, begun) = self.begin(deadline.into());
        let state = match self.calls.free() {
            None => State::Failed(SendError::TooManyCalls),
            Some(slot) => match self.start(slot, message, until, begun) {
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
    pub fn call_blocking<'c, 'm>(
        &'c self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: impl Into<Deadline>,
    ) -> Result<Delivery<'c, T>, CallError>
    where
        'c: 'm,
    {
        self.call_with_cancel(message, deadline.into(), None)
    }

    /// As [`call_blocking`](Self::call_blocking), and ends with [`CallError::Canceled`] as soon as `cancel`
    /// is readable.
    ///
    /// # Errors
    ///
    /// [`CallError`]: `EOPNOTSUPP` where the transport cannot do that.
    pub fn call_cancelable<'c, 'm>(
        &'c self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: impl Into<Deadline>,
        cancel: T::BorrowedFd<'m>,
    ) -> Result<Delivery<'c, T>, CallError>
    where
        'c: 'm,
    {
        self.call_with_cancel(message, deadline.into(), Some(cancel))
    }

    fn call_with_cancel<'c, 'm>(
        &'c self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: Deadline,
        cancel: Option<T::BorrowedFd<'m>>,
    ) -> Result<Delivery<'c, T>, CallError>
    where
        'c: 'm,
    {
        let (until, begun) = self.begin(deadline);
        let sending = Sending { cookie: self.link.own_cookie(), until: Some(until), begun };
        let mut reply = Incoming::empty();
        let sent = message.encode(&sending, &self.link.bus.bloom, |outgoing| {
            self.link.transport.call_into(outgoing, cancel, &mut reply)
        })?;
        match sent {
            Ok(()) => self.answer(&mut reply),
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
        begun: Option<Instant>,
    ) -> Result<(), SendError> {
        let cookie = self.link.own_cookie();
        // Before sending: where the peer runs in the same thread, its answer may come while this sends.
        self.calls.begin(slot, cookie, until);
        let sending = Sending { cookie, until: Some(until), begun };
        let sent = self.link.transmit(message, &sending);
        if sent.is_err() {
            self.calls.release(slot);
        }
        sent
    }

    fn answer(&self, incoming: &mut Incoming<T::Fd>) -> Result<Delivery<'_, T>, CallError> {
        match Checked::new(&self.link.transport, &incoming.info) {
            Some(error) if unlikely(error.header().payload_type == PAYLOAD_ERROR) => {
                Err(CallError::Remote(ErrorReply::from_payload(error.payload())))
            }
            // Room for none is not moved.
            Some(reply) if likely(incoming.fds.is_empty()) => Ok(reply.without_fds(&incoming.info)),
            Some(reply) => Ok(reply.with_fds(incoming)),
            None => {
                self.link.count(|stats| stats.malformed += 1);
                Err(CallError::Undeliverable(Errno::EIO))
            }
        }
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
            Some(Outcome::Answer(mut incoming)) => {
                self.leave();
                Some(self.connection.answer(&mut incoming))
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
            && let Some(outcome) = self.connection.calls.release(slot)
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
            self.connection.link.transport.park(Wait::Input(slot.until.get()));
        }
        Poll::Pending
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Drop for PendingCall<'_, T, CALLS, INBOX> {
    fn drop(&mut self) {
        self.leave();
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::pin::pin;
    use core::sync::atomic::{AtomicU32, Ordering};
    use core::time::Duration;
    use std::boxed::Box;
    use std::sync::Arc;
    use std::task::Wake;

    use super::super::fake::{connect, message, notification, plain, reply};
    use super::super::{block_on, fake};
    use super::*;
    use crate::abi::{ItemType, Msg};

    const SECOND: Duration = Duration::from_secs(1);

    #[derive(Default)]
    struct Count(AtomicU32);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn answers_find_their_calls_in_any_order() {
        let (connection, script) = connect::<2, 4>();
        let first = connection.call(&Message::to(3).payload(b"1"), SECOND);
        let second = connection.call(&Message::to(3).payload(b"2"), SECOND);
        let cookies = script.cookies();
        script.queue(reply(cookies[1], b"two"));
        script.queue(plain(9, 0));
        script.queue(reply(cookies[0], b"one"));
        assert_eq!(block_on(&connection, first).unwrap().unwrap().payload(), b"one");
        assert_eq!(block_on(&connection, second).unwrap().unwrap().payload(), b"two");
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 9);
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn only_as_much_is_taken_out_as_is_needed() {
        let (connection, script) = connect::<2, 4>();
        let call = connection.call(&Message::to(3), SECOND);
        script.queue(plain(1, 0));
        script.queue(reply(script.cookies()[0], b""));
        script.queue(plain(2, 0));
        block_on(&connection, call).unwrap().unwrap();
        assert_eq!(script.queue.borrow().len(), 1);
    }

    #[test]
    fn each_end_of_a_call_has_its_error() {
        let (connection, script) = connect::<2, 4>();
        let end = |kind| {
            let call = connection.call(&Message::to(3), SECOND);
            script.queue(notification(kind, b"", *script.cookies().last().unwrap()));
            block_on(&connection, call).unwrap().unwrap_err()
        };
        assert_eq!(end(ItemType::REPLY_TIMEOUT), CallError::TimedOut);
        assert_eq!(end(ItemType::REPLY_DEAD), CallError::PeerDied);
        let call = connection.call(&Message::to(3), SECOND);
        let mut answer = [0; 4 + super::super::ERROR_TEXT_MAX];
        let error = ErrorReply::new(77, "no");
        let header = Msg {
            src_id: 3,
            timeout_or_reply: *script.cookies().last().unwrap(),
            payload_type: PAYLOAD_ERROR,
            ..Msg::default()
        };
        script.queue(message(header, &[], error.write(&mut answer)));
        assert_eq!(block_on(&connection, call).unwrap().unwrap_err(), CallError::Remote(error));
        script.refusals.borrow_mut().push_back(Failure::Refused(Errno::EPERM));
        let refused = block_on(&connection, connection.call(&Message::to(3), SECOND)).unwrap();
        assert_eq!(refused.unwrap_err(), CallError::NotSent(SendError::Denied));
        let call = connection.call(&Message::to(3), SECOND);
        script.broken.set(true);
        assert!(block_on(&connection, call).unwrap().is_err_and(CallError::is_broken));
        assert!(connection.calls.taken().is_empty());
    }

    #[test]
    fn the_clock_ends_a_call_whose_notification_got_lost() {
        let (connection, script) = connect::<2, 4>();
        let call = connection.call(&Message::to(3), SECOND);
        assert_eq!(connection.poll_timeout(), Some(Instant::from_nanos(1_000_000_000)));
        assert_eq!(block_on(&connection, call).unwrap().unwrap_err(), CallError::TimedOut);
        assert_eq!((script.now.get(), connection.poll_timeout()), (1_000_000_000, None));
        script.queue(reply(script.cookies()[0], b"late"));
        assert!(connection.try_recv().unwrap().is_none());
        assert_eq!((connection.stats().late, script.held()), (1, 0));
    }

    #[test]
    fn a_poll_past_the_deadline_ends_the_call_by_itself() {
        let (connection, script) = connect::<2, 4>();
        let mut call = pin!(connection.call(&Message::to(3), SECOND));
        let mut cx = Context::from_waker(Waker::noop());
        script.now.set(999_999_999);
        assert!(call.as_mut().poll(&mut cx).is_pending());
        script.now.set(1_000_000_000);
        assert!(matches!(call.as_mut().poll(&mut cx), Poll::Ready(Err(CallError::TimedOut))));
    }

    #[test]
    fn calls_that_nobody_polls_do_not_keep_others_awake() {
        let (connection, script) = connect::<2, 4>();
        let _forgotten = connection.call(&Message::to(3), Duration::from_millis(1));
        let waits = connection.recv_blocking(SECOND);
        assert!(waits.is_err());
        assert_eq!((script.now.get(), connection.poll_timeout()), (1_000_000_000, None));
    }

    #[test]
    fn an_answer_that_was_never_looked_at_is_given_back() {
        let (connection, script) = connect::<2, 4>();
        let call = connection.call(&Message::to(3), SECOND);
        script.queue(reply(script.cookies()[0], b"answer"));
        connection.process(connection.now()).unwrap();
        assert_eq!(script.held(), 1);
        drop(call);
        assert_eq!((script.held(), connection.stats().late), (0, 1));
    }

    #[test]
    fn one_call_too_many_is_refused_and_a_finished_one_makes_room() {
        let (connection, script) = connect::<2, 4>();
        let first = connection.call(&Message::to(3), SECOND);
        let _second = connection.call(&Message::to(3), SECOND);
        let third = block_on(&connection, connection.call(&Message::to(3), SECOND)).unwrap();
        assert_eq!(third.unwrap_err(), CallError::NotSent(SendError::TooManyCalls));
        assert_eq!(script.sent.borrow().len(), 2);
        drop(first);
        let _fourth = connection.call(&Message::to(3), SECOND);
        assert_eq!(script.sent.borrow().len(), 3);
    }

    #[test]
    fn a_full_inbox_holds_the_answer_up_until_somebody_receives() {
        let (connection, script) = connect::<2, 2>();
        let mut call = pin!(connection.call(&Message::to(3), SECOND));
        for cookie in 1..=3 {
            script.queue(plain(cookie, 0));
        }
        script.queue(reply(script.cookies()[0], b"answer"));
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        assert!(call.as_mut().poll(&mut cx).is_pending());
        assert_eq!(script.queue.borrow().len(), 2);
        // This makes room for the third message, and the next one for the answer.
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert_eq!(count.0.load(Ordering::Relaxed), 0);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 2);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert!(call.as_mut().poll(&mut cx).is_ready());
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 3);
    }

    #[test]
    fn a_blocking_call_says_when_nobody_can_make_room() {
        let (connection, script) = connect::<2, 1>();
        script.queue(plain(1, 0));
        let call = connection.call_blocking(&Message::to(3), SECOND);
        assert_eq!(call.unwrap_err(), CallError::InboxFull);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
    }

    #[test]
    fn a_blocking_call_waits_by_itself_where_the_transport_cannot() {
        let (connection, script) = connect::<2, 4>();
        script.steps.borrow_mut().push_back(Box::new(|script| {
            let cookie = script.cookies()[0];
            script.queue(plain(1, 0));
            script.queue(reply(cookie, b"answer"));
        }));
        assert_eq!(connection.call_blocking(&Message::to(3), SECOND).unwrap().payload(), b"answer");
        let canceled = connection.call_cancelable(&Message::to(3), SECOND, 4);
        assert_eq!(canceled.unwrap_err(), CallError::Unsupported);
    }

    #[test]
    fn an_answer_outlives_what_was_asked() {
        fn ask<'c>(connection: &'c Connection<fake::Fake, 2, 4>, byte: u8) -> Delivery<'c, fake::Fake> {
            let payload = [byte];
            connection.call_blocking(&Message::to(3).payload(&payload), SECOND).unwrap()
        }
        let (connection, script) = connect::<2, 4>();
        script
            .steps
            .borrow_mut()
            .push_back(Box::new(|script| script.queue(reply(script.cookies()[0], b"yes"))));
        let answer = ask(&connection, 1);
        assert_eq!((answer.payload(), &script.sent.borrow()[0].payload[..]), (&b"yes"[..], &[1][..]));
    }

    #[test]
    fn a_waker_may_use_the_connection() {
        struct Nosy(std::sync::mpsc::Sender<()>);
        impl Wake for Nosy {
            fn wake(self: Arc<Self>) {
                NOSY.with(|slot| {
                    let connection = slot.borrow();
                    let connection: &Connection<fake::Fake, 2, 4> = connection.as_ref().unwrap();
                    assert!(connection.try_recv().unwrap().is_none());
                    drop(connection.call(&Message::to(3), SECOND));
                    connection.process(connection.now()).unwrap();
                });
                self.0.send(()).unwrap();
            }
        }
        std::thread_local! {
            static NOSY: core::cell::RefCell<Option<Connection<fake::Fake, 2, 4>>> =
                const { core::cell::RefCell::new(None) };
        }
        let (connection, script) = connect::<2, 4>();
        NOSY.with(|slot| *slot.borrow_mut() = Some(connection));
        NOSY.with(|slot| {
            let slot = slot.borrow();
            let connection = slot.as_ref().unwrap();
            let (sender, woken) = std::sync::mpsc::channel();
            let waker = Waker::from(Arc::new(Nosy(sender)));
            let mut cx = Context::from_waker(&waker);
            let mut call = pin!(connection.call(&Message::to(3), SECOND));
            assert!(call.as_mut().poll(&mut cx).is_pending());
            script.queue(reply(script.cookies()[0], b"answer"));
            connection.process(connection.now()).unwrap();
            assert!(woken.try_recv().is_ok());
            assert!(call.as_mut().poll(&mut cx).is_ready());
        });
    }

    #[test]
    fn cookies_of_the_connection_are_not_for_calls_by_hand() {
        let (connection, _) = connect::<2, 4>();
        let at = Instant::from_nanos(9);
        let message = Message::to(3).expect_reply(at).cookie(u64::MAX);
        assert_eq!(connection.send(&message), Err(SendError::Invalid));
    }
}
