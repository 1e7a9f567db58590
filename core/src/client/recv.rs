//! Receiving, as applications ask for it.

use core::future::poll_fn;
use core::task::{Context, Poll};

use super::connection::Connection;
use super::deadline::Deadline;
use super::delivery::{Delivery, Head, Kind};
use super::error::RecvError;
use super::error_reply::ErrorReply;
use super::message::ReplyTo;
use super::transport::{Failure, Incoming, Transport, Wait};
use super::waiters::{Seat, Want};
use crate::Instant;
use crate::abi::{Msg, RecvFlags};
use zerocopy::FromBytes;

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Receives the message that arrived first, or `None` if none waits.
    ///
    /// Cost: one command, and one for each answer that came late.
    ///
    /// # Errors
    ///
    /// [`RecvError`]; no message is no error.
    #[inline]
    pub fn try_recv(&self) -> Result<Option<Delivery<'_, T>>, RecvError> {
        self.pull(&mut false)
    }

    /// Receives the most urgent message if its priority is at most `limit`; of equal ones the first.
    ///
    /// # Errors
    ///
    /// [`RecvError`]; no message that urgent is no error.
    pub fn try_recv_priority(&self, limit: i64) -> Result<Option<Delivery<'_, T>>, RecvError> {
        self.pull_priority(limit, &mut false)
    }

    /// Waits until `deadline` for the most urgent message whose priority is at most `limit`; of equal ones the first.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub async fn recv_priority_until(
        &self,
        limit: i64,
        deadline: impl Into<Deadline>,
    ) -> Result<Delivery<'_, T>, RecvError> {
        let until = self.until(deadline.into());
        let mut seat = None;
        poll_fn(|cx| self.poll_pull(cx, &mut seat, until, |noise| self.pull_priority(limit, noise))).await
    }

    fn pull_priority(&self, limit: i64, noise: &mut bool) -> Result<Option<Delivery<'_, T>>, RecvError> {
        let waiting = self.inbox.borrow_mut().best().filter(|best| *best <= limit);
        // What is in the inbox came first, so the transport's has to be more urgent to go before it.
        let bound = waiting.map_or(Some(limit), |best| best.checked_sub(1));
        if let Some(bound) = bound {
            match self.pull_from(RecvFlags::USE_PRIORITY, bound, noise) {
                Ok(None) => {}
                Ok(message) => return Ok(message),
                Err(failure) if waiting.is_none() => return Err(failure),
                // What was kept can be had whether or not the bus is still there.
                Err(_) => {}
            }
        }
        Ok(self.take_from_inbox(|inbox| inbox.pop_at_most(limit)))
    }

    /// Waits for the next message.
    ///
    /// # Errors
    ///
    /// [`RecvError`], without a deadline never [`RecvError::TimedOut`].
    pub async fn recv(&self) -> Result<Delivery<'_, T>, RecvError> {
        self.recv_until(Deadline::Never).await
    }

    /// Waits for the next message until `deadline`.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub async fn recv_until(&self, deadline: impl Into<Deadline>) -> Result<Delivery<'_, T>, RecvError> {
        let until = self.until(deadline.into());
        let mut seat = None;
        poll_fn(|cx| self.poll_recv(cx, &mut seat, until)).await
    }

    /// Waits in the transport for the next message.
    ///
    /// # Errors
    ///
    /// [`RecvError`]: `EOPNOTSUPP` where the transport cannot wait.
    pub fn recv_blocking(&self, deadline: impl Into<Deadline>) -> Result<Delivery<'_, T>, RecvError> {
        let until = self.until(deadline.into());
        loop {
            let mut noise = false;
            // Without `?`, which would move the message once more.
            match self.pull(&mut noise) {
                Ok(Some(message)) => return Ok(message),
                Err(error) => return Err(error),
                Ok(None) if noise => {}
                Ok(None) if until != Instant::FAR && self.now() >= until => return Err(RecvError::TimedOut),
                Ok(None) => self.wait(until)?,
            }
        }
    }

    /// What the message at the front is, which stays there; `None` if none waits.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn peek(&self) -> Result<Option<Head>, RecvError> {
        let front = self.inbox.borrow_mut().front();
        if let Some((offset, size)) = front {
            let slice = self.link.transport.slice(offset, size);
            let header = slice.and_then(|slice| Some(Msg::read_from_prefix(&slice).ok()?.0));
            return Ok(header.map(Head::new));
        }
        self.drop_noise()?;
        Ok(self.peek_transport()?.map(|peeked| Head::new(peeked.header)))
    }

    /// Drops the message at the front unread; false if none waits. A caller that waits for its answer learns
    /// that there will be none.
    ///
    /// # Errors
    ///
    /// [`RecvError`].
    pub fn drop_next(&self) -> Result<bool, RecvError> {
        if let Some(message) = self.take_from_inbox(|inbox| inbox.pop_front()) {
            // The bus took this one for received; so its sender is told here.
            if message.kind() == Kind::Call {
                let dropped = ErrorReply::new(ErrorReply::DROPPED, "the call was dropped unread");
                let to =
                    ReplyTo { id: message.sender(), cookie: message.cookie(), priority: message.priority() };
                if self.link.reply_error(to, &dropped).is_err() {
                    self.link.count(|stats| stats.unanswered += 1);
                }
            }
            return Ok(true);
        }
        self.drop_noise()?;
        if self.peek_transport()?.is_none() {
            return Ok(false);
        }
        self.receive(RecvFlags::DROP, 0, &mut Incoming::empty())?;
        Ok(true)
    }

    pub(super) fn poll_recv<'c>(
        &'c self,
        cx: &mut Context<'_>,
        seat: &mut Option<Seat<'c>>,
        until: Instant,
    ) -> Poll<Result<Delivery<'c, T>, RecvError>> {
        self.poll_pull(cx, seat, until, |noise| self.pull(noise))
    }

    fn poll_pull<'c>(
        &'c self,
        cx: &mut Context<'_>,
        seat: &mut Option<Seat<'c>>,
        until: Instant,
        pull: impl FnOnce(&mut bool) -> Result<Option<Delivery<'c, T>>, RecvError>,
    ) -> Poll<Result<Delivery<'c, T>, RecvError>> {
        let mut noise = false;
        match pull(&mut noise)? {
            Some(message) => return Poll::Ready(Ok(message)),
            None if noise => cx.waker().wake_by_ref(),
            None if self.now() >= until => return Poll::Ready(Err(RecvError::TimedOut)),
            None => {}
        }
        if seat.is_none() {
            *seat = self.waiters.seat(Want::Message);
        }
        match seat {
            Some(seat) => seat.park(cx.waker(), until),
            None => return Poll::Ready(Err(RecvError::TooManyTasks)),
        }
        self.link.transport.park(Wait::Input(until));
        Poll::Pending
    }

    /// Waits in the transport until something comes in, or until `until` or an earlier deadline here.
    pub(super) fn wait(&self, until: Instant) -> Result<(), Failure> {
        let next = self.poll_timeout().map_or(until, |next| next.min(until));
        self.link.transport.wait((next != Instant::FAR).then_some(next))?;
        if self.waiters.is_empty() && !self.calls.any_pending() {
            // There is nobody to be woken, and nothing to be taken in for anybody.
            return Ok(());
        }
        self.turn(self.now())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::super::fake::{Script, connect, message, notification, plain, reply};
    use super::super::message::Message;
    use super::super::notification::Notification;
    use super::*;
    use crate::abi::ItemType;
    use crate::abi::{Errno, IdChange, MsgFlags};
    use core::pin::pin;
    use core::task::Waker;
    use core::time::Duration;
    use zerocopy::IntoBytes;

    /// A connection whose inbox holds the messages `kept`, the transport the messages `queued`.
    fn filled(
        kept: &[(u64, i64)],
        queued: &[(u64, i64)],
    ) -> (Connection<super::super::fake::Fake, 2, 4>, Rc<Script>) {
        let (connection, script) = connect::<2, 4>();
        for (cookie, priority) in kept {
            script.queue(plain(*cookie, *priority));
        }
        {
            let call = connection.call(&Message::to(3), Duration::from_secs(1));
            connection.process(connection.now()).unwrap();
            drop(call);
        }
        for (cookie, priority) in queued {
            script.queue(plain(*cookie, *priority));
        }
        (connection, script)
    }

    fn drain(mut next: impl FnMut() -> Option<u64>) -> Vec<u64> {
        core::iter::from_fn(&mut next).collect()
    }

    #[test]
    fn kept_messages_come_before_those_that_still_wait() {
        let (connection, script) = filled(&[(1, 0), (2, 5)], &[(3, -5)]);
        assert_eq!(script.queue.borrow().len(), 1);
        let order = drain(|| Some(connection.try_recv().unwrap()?.cookie()));
        assert_eq!(order, [1, 2, 3]);
    }

    #[test]
    fn urgent_messages_come_first_wherever_they_wait() {
        let (connection, _) = filled(&[(1, 5), (2, 0), (3, 9)], &[(4, 0), (5, -1), (6, 20)]);
        let order = drain(|| Some(connection.try_recv_priority(9).unwrap()?.cookie()));
        assert_eq!(order, [5, 2, 4, 1, 3]);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 6);
    }

    #[test]
    fn messages_that_were_kept_outlive_the_bus() {
        let (connection, script) = connect::<2, 2>();
        let call = connection.call(&Message::to(3), Duration::from_secs(1));
        script.queue(plain(1, 0));
        script.queue(plain(2, 0));
        connection.process(connection.now()).unwrap();
        script.broken.set(true);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert_eq!(connection.try_recv_priority(0).unwrap().unwrap().cookie(), 2);
        assert!(connection.try_recv().is_err());
        drop(call);
    }

    #[test]
    fn a_refused_receive_is_reported_and_does_not_stop_deadlines() {
        let (connection, script) = connect::<2, 2>();
        let mut call = pin!(connection.call(&Message::to(3), Duration::from_nanos(5)));
        let mut cx = Context::from_waker(Waker::noop());
        assert!(call.as_mut().poll(&mut cx).is_pending());
        script.unreceivable.set(Some(Errno::ENOMEM));
        let now = Instant::from_nanos(script.now.get() + 5);
        assert_eq!(connection.process(now), Err(RecvError::Refused(Errno::ENOMEM)));
        assert!(call.as_mut().poll(&mut cx).is_ready(), "its time has come");
        assert_eq!(connection.recv_blocking(now).err(), Some(RecvError::Refused(Errno::ENOMEM)));
    }

    #[test]
    fn a_full_inbox_wants_no_input_until_somebody_receives() {
        let (connection, _script) = filled(&[(1, 0), (2, 0), (3, 0)], &[]);
        assert!(connection.wants_input());
        let (connection, _script) = filled(&[(1, 0), (2, 0), (3, 0), (4, 0), (5, 0)], &[]);
        assert!(!connection.wants_input());
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert!(connection.wants_input());
    }

    #[test]
    fn nothing_precedes_the_lowest_priority_there_is() {
        let (connection, _) = filled(&[(1, i64::MIN)], &[(2, i64::MIN)]);
        let order = drain(|| Some(connection.try_recv_priority(i64::MIN).unwrap()?.cookie()));
        assert_eq!(order, [1, 2]);
    }

    #[test]
    fn answers_nobody_awaits_are_discarded_and_counted() {
        let (connection, script) = connect::<2, 4>();
        drop(connection.call(&Message::to(3), Duration::from_secs(1)));
        let own = script.cookies()[0];
        script.queue(reply(own, b"late"));
        script.queue(notification(ItemType::REPLY_DEAD, b"", own));
        script.queue(plain(5, 0));
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 5);
        assert_eq!((connection.stats().late, script.held()), (2, 0));
    }

    #[test]
    fn answers_to_messages_sent_by_hand_reach_the_application() {
        let (connection, script) = connect::<2, 4>();
        let cookie = connection.send(&Message::to(3).expect_reply(Instant::from_nanos(50))).unwrap();
        script.queue(reply(cookie, b"answer"));
        let answer = connection.try_recv().unwrap().unwrap();
        assert_eq!((answer.kind(), answer.cookie_reply()), (Kind::Reply, cookie));
        script.queue(notification(ItemType::REPLY_TIMEOUT, b"", cookie));
        let timeout = connection.try_recv().unwrap().unwrap();
        assert_eq!(timeout.notification(), Some(Notification::ReplyTimeout { cookie }));
    }

    #[test]
    fn losses_are_reported_also_without_a_message() {
        let (connection, script) = connect::<2, 4>();
        script.lost.set(3);
        assert!(connection.try_recv().unwrap().is_none());
        script.lost.set(2);
        assert!(connection.peek().unwrap().is_none());
        assert_eq!((connection.take_lost(), connection.take_lost()), (5, 0));
    }

    #[test]
    fn peeking_leaves_the_message_and_passes_over_late_answers() {
        let (connection, script) = connect::<2, 4>();
        drop(connection.call(&Message::to(3), Duration::from_secs(1)));
        script.queue(reply(script.cookies()[0], b"late"));
        script.queue(plain(5, -2));
        let head = connection.peek().unwrap().unwrap();
        assert_eq!((head.cookie(), head.priority(), head.sender(), head.kind()), (5, -2, 3, Kind::Plain));
        assert_eq!(script.held(), 0);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 5);
        assert!(connection.peek().unwrap().is_none());
    }

    #[test]
    fn dropping_a_kept_call_tells_its_caller() {
        let (connection, script) = connect::<2, 4>();
        let flags = MsgFlags::EXPECT_REPLY.bits();
        let header =
            Msg { src_id: 3, cookie: 8, flags, timeout_or_reply: 99, payload_type: 1, ..Msg::default() };
        script.queue(message(header, &[], b"call"));
        script.queue(plain(1, 0));
        let call = connection.call(&Message::to(3), Duration::from_secs(1));
        connection.process(connection.now()).unwrap();
        drop(call);
        assert!(connection.drop_next().unwrap());
        let sent = script.sent.borrow().last().unwrap().header;
        assert_eq!((sent.dst_id, sent.cookie_reply()), (3, 8));
        assert!(connection.drop_next().unwrap());
        assert!(!connection.drop_next().unwrap());
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn a_dropped_receive_loses_no_message() {
        let (connection, script) = connect::<2, 4>();
        {
            let mut recv = pin!(connection.recv());
            let mut cx = Context::from_waker(Waker::noop());
            assert!(recv.as_mut().poll(&mut cx).is_pending());
            script.queue(plain(1, 0));
            connection.process(connection.now()).unwrap();
        }
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert!(!connection.waiters.any(Want::Message));
    }

    #[test]
    fn one_task_too_many_is_refused() {
        let (connection, _) = connect::<2, 4>();
        let mut cx = Context::from_waker(Waker::noop());
        let mut waiting: Vec<_> =
            (0..super::super::TASKS_MAX).map(|_| std::boxed::Box::pin(connection.recv())).collect();
        for recv in &mut waiting {
            assert!(recv.as_mut().poll(&mut cx).is_pending());
        }
        let mut more = pin!(connection.recv());
        assert!(matches!(more.as_mut().poll(&mut cx), Poll::Ready(Err(RecvError::TooManyTasks))));
    }

    #[test]
    fn blocking_receives_end_with_a_message_or_at_the_deadline() {
        let (connection, script) = connect::<2, 4>();
        script.steps.borrow_mut().push_back(std::boxed::Box::new(|script| script.queue(plain(4, 0))));
        assert_eq!(connection.recv_blocking(Duration::from_secs(1)).unwrap().cookie(), 4);
        let late = connection.recv_blocking(Duration::from_secs(1));
        assert!(matches!(late, Err(RecvError::TimedOut)));
        assert_eq!(script.now.get(), 1_000_000_000);
        script.broken.set(true);
        assert!(connection.recv_blocking(Duration::from_secs(1)).is_err_and(RecvError::is_broken));
    }

    #[test]
    fn name_changes_nobody_asked_for_stay_out_of_sight() {
        let (connection, script) = connect::<2, 4>();
        let mut change = Vec::from([IdChange::default(); 2].as_bytes());
        change.extend_from_slice(b"a.b\0");
        script.queue(notification(ItemType::NAME_ADD, &change, 0));
        assert!(connection.try_recv().unwrap().is_none());
        script.queue(notification(ItemType::ID_ADD, IdChange::default().as_bytes(), 0));
        assert!(connection.try_recv().unwrap().is_some());
        connection.add_match(1, &[]).unwrap();
        script.queue(notification(ItemType::NAME_ADD, &change, 0));
        assert!(connection.try_recv().unwrap().is_some());
    }
}
