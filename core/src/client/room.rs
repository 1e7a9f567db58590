//! Sending to a receiver that has no room now.

use core::future::poll_fn;
use core::task::{Context, Poll};
use core::time::Duration;

use super::connection::Connection;
use super::deadline::Deadline;
use super::error::{SendError, WaitError};
use super::message::Message;
use super::transport::{Failure, Transport, Wait};
use super::waiters::{Seat, Want};
use crate::Instant;

/// The first pause before a retry where the transport cannot tell of room.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// The longest pause; each is twice the one before.
const PAUSE_MAX: Duration = Duration::from_millis(64);

/// The retries of one message.
struct Retry<'c> {
    seat: Option<Seat<'c>>,
    until: Instant,
    pause: Duration,
    next: Instant,
    /// It was refused just now.
    refused: bool,
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Sends a message, and waits for room at the receiver if there is none. Returns its cookie.
    ///
    /// The transport wakes the task when there is room; where it cannot, the message is tried again after
    /// growing pauses of 1 to 64 ms. A dropped future has not sent the message. Messages that arrive meanwhile
    /// are kept for later receives, as during a [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// [`SendError`]: `ETIMEDOUT` if there was no room until the deadline.
    pub async fn send_when_room<'m>(
        &'m self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: impl Into<Deadline>,
    ) -> Result<u64, SendError> {
        // One message, one cookie, however often it is tried.
        let message = &message.or_cookie(|| self.link.cookie());
        match self.send(message) {
            Err(error) if error.is_full() => {}
            result => return result,
        }
        self.wait_for_room(message, deadline.into()).await
    }

    /// Waits for the room that was just refused, and sends.
    async fn wait_for_room<'m>(
        &'m self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: Deadline,
    ) -> Result<u64, SendError> {
        let now = self.now();
        let until = deadline.at(now);
        let mut retry = Retry { seat: None, until, pause: PAUSE_MIN, next: now, refused: true };
        poll_fn(|cx| self.poll_send(cx, message, &mut retry)).await
    }

    /// As [`send_when_room`](Self::send_when_room), and waits in the transport, which may wait for a faster way to have room
    /// first ([`Transport::send_patiently`]).
    ///
    /// # Errors
    ///
    /// [`SendError`]: `EOPNOTSUPP` where the transport cannot wait, [`SendError::InboxFull`] if meanwhile more
    /// messages arrive than the connection keeps.
    pub fn send_when_room_blocking<'m>(
        &'m self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        deadline: impl Into<Deadline>,
    ) -> Result<u64, SendError> {
        let message = &message.or_cookie(|| self.link.cookie());
        let deadline = deadline.into();
        match self.link.send_patiently(message, deadline) {
            Err(error) if error.is_full() => {}
            // Most find room, and neither a clock nor a future.
            result => return result,
        }
        match super::block_on(self, self.wait_for_room(message, deadline)) {
            Ok(result) => result,
            Err(WaitError::Broken(broken)) => Err(broken.into()),
            Err(WaitError::InboxFull) => Err(SendError::InboxFull),
            Err(error) => Err(Failure::Refused(error.errno()).into()),
        }
    }

    fn poll_send<'m>(
        &'m self,
        cx: &mut Context<'_>,
        message: &Message<'m, T::BorrowedFd<'m>>,
        retry: &mut Retry<'m>,
    ) -> Poll<Result<u64, SendError>> {
        if !core::mem::take(&mut retry.refused) {
            match self.send(message) {
                Err(error) if error.is_full() => {}
                result => return Poll::Ready(result),
            }
        }
        if self.now() >= retry.until {
            return Poll::Ready(Err(SendError::TimedOut));
        }
        if retry.seat.is_none() {
            retry.seat = self.waiters.seat(Want::Room);
        }
        let Some(seat) = &retry.seat else { return Poll::Ready(Err(SendError::TooManyTasks)) };
        if self.watch_room(message)? {
            // Room may have come between the refusal and the watch.
            match self.send(message) {
                Err(error) if error.is_full() => {}
                result => return Poll::Ready(result),
            }
            seat.park(cx.waker(), retry.until);
            self.link.transport.park(Wait::Input(retry.until));
        } else {
            let now = self.now();
            if now >= retry.next {
                retry.next = now.after(retry.pause);
                retry.pause = (2 * retry.pause).min(PAUSE_MAX);
            }
            seat.park(cx.waker(), retry.next.min(retry.until));
            self.link.transport.park(Wait::Input(retry.next.min(retry.until)));
        }
        Poll::Pending
    }

    fn watch_room<'m>(&'m self, message: &Message<'m, T::BorrowedFd<'m>>) -> Result<bool, SendError> {
        let receiver = match message.receiver() {
            Ok(id) => id,
            Err(None) => return Ok(false),
            Err(Some(name)) => match self.owner(name) {
                Ok(Some(owner)) => owner,
                // The own pool may be full too; then the message is tried again after a pause.
                Ok(None) | Err(_) => return Ok(false),
            },
        };
        match self.link.transport.watch_room(receiver) {
            Ok(watched) => Ok(watched),
            Err(Failure::Broken(errno)) => Err(SendError::from(Failure::Broken(errno))),
            // The next attempt tells what is wrong with the receiver.
            Err(Failure::Refused(_)) => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::boxed::Box;

    use super::super::fake::{Script, connect, plain};
    use super::*;
    use crate::abi::Errno;

    fn refuse(script: &Script, count: usize) {
        script.refusals.borrow_mut().extend([Failure::Refused(Errno::ENOBUFS)].repeat(count));
    }

    #[test]
    fn pauses_grow_where_the_transport_cannot_tell_of_room() {
        let (connection, script) = connect::<1, 1>();
        refuse(&script, 10);
        let sent = connection.send_when_room_blocking(&Message::to(3), Duration::from_secs(10));
        assert_eq!(sent, Ok(1));
        // 1 + 2 + 4 + 8 + 16 + 32 + 4 * 64 ms.
        assert_eq!(script.now.get(), 319_000_000);
    }

    #[test]
    fn the_transport_wakes_the_sender_where_it_can() {
        let (connection, script) = connect::<1, 1>();
        script.watches_room.set(true);
        // One refusal before the watch and one behind it.
        refuse(&script, 2);
        script.steps.borrow_mut().push_back(Box::new(|script| script.now.set(5)));
        let sent = connection.send_when_room_blocking(&Message::to(3), Duration::from_secs(10));
        assert_eq!((sent.is_ok(), script.now.get()), (true, 5));
    }

    #[test]
    fn messages_that_arrive_meanwhile_are_kept() {
        let (connection, script) = connect::<1, 2>();
        // At once, and again when the message has ended the first wait.
        refuse(&script, 2);
        script.queue(plain(1, 0));
        connection.send_when_room_blocking(&Message::to(3), Duration::from_secs(1)).unwrap();
        assert_eq!((script.queue.borrow().len(), script.now.get()), (0, 1_000_000));
        refuse(&script, 1000);
        script.queue(plain(2, 0));
        let stuck = connection.send_when_room_blocking(&Message::to(3), Duration::from_secs(1));
        assert_eq!(stuck, Err(SendError::InboxFull));
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 2);
    }

    #[test]
    fn there_is_no_waiting_past_the_deadline_or_for_what_never_comes() {
        let (connection, script) = connect::<1, 1>();
        refuse(&script, 100);
        let late = connection.send_when_room_blocking(&Message::to(3), Duration::from_millis(100));
        assert_eq!((late, script.now.get()), (Err(SendError::TimedOut), 100_000_000));
        script.refusals.borrow_mut().clear();
        script.refusals.borrow_mut().push_back(Failure::Refused(Errno::EPERM));
        let denied = connection.send_when_room_blocking(&Message::to(3), Duration::from_secs(1));
        assert_eq!((denied, script.now.get()), (Err(SendError::Denied), 100_000_000));
    }
}
