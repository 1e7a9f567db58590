//! Time for tasks: sleeping until a point on the bus' clock, and doing something at every one of many.

use core::future::poll_fn;
use core::task::Poll;
use core::time::Duration;

use super::connection::Connection;
use super::deadline::Deadline;
use super::error::WaitError;
use super::transport::{Transport, Wait};
use super::waiters::Want;
use crate::Instant;

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Sleeps for a span, or until a point on the bus' clock. Messages that come meanwhile stay in the transport.
    ///
    /// The same code keeps time over each transport: by the monotonic clock on a real machine, by the virtual one
    /// in the simulator. Other executors than [`block_on`](super::block_on) wake it by
    /// [`poll_timeout`](Self::poll_timeout) and [`process`](Self::process).
    ///
    /// # Errors
    ///
    /// [`WaitError::TooManyTasks`].
    pub async fn sleep(&self, until: impl Into<Deadline>) -> Result<(), WaitError> {
        let until = until.into().at(self.now());
        let mut seat = None;
        poll_fn(|cx| {
            if self.now() >= until {
                return Poll::Ready(Ok(()));
            }
            if seat.is_none() {
                seat = self.waiters.seat(Want::Time);
            }
            let Some(seat) = &seat else { return Poll::Ready(Err(WaitError::TooManyTasks)) };
            seat.park(cx.waker(), until);
            self.link.transport.park(Wait::Sleep(until));
            Poll::Pending
        })
        .await
    }

    /// Points in time at equal distances, the first one at `first`.
    pub const fn ticks(&self, first: Instant, period: Duration) -> Ticks<'_, T, CALLS, INBOX> {
        Ticks { connection: self, next: first, period }
    }

    /// Whether tasks wait, and all of them for their time alone.
    pub(super) fn sleeps(&self) -> bool {
        self.waiters.all_sleep() && !self.calls.any_pending()
    }
}

/// Points in time at equal distances on the bus' clock; made by [`Connection::ticks`].
pub struct Ticks<'c, T: Transport, const CALLS: usize = 16, const INBOX: usize = 32> {
    connection: &'c Connection<T, CALLS, INBOX>,
    next: Instant,
    period: Duration,
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Ticks<'_, T, CALLS, INBOX> {
    /// Sleeps until the next point and returns it. One that has passed comes at once; none is left out, and none
    /// drifts.
    ///
    /// # Errors
    ///
    /// As [`Connection::sleep`].
    pub async fn tick(&mut self) -> Result<Instant, WaitError> {
        let at = self.next;
        self.connection.sleep(at).await?;
        self.next = at.after(self.period);
        Ok(at)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fake::{connect, plain};
    use super::super::{Message, block_on};
    use super::*;

    #[test]
    fn sleeping_ends_at_its_time_and_takes_no_message() {
        let (connection, script) = connect::<1, 1>();
        block_on(&connection, connection.sleep(Duration::from_millis(5))).unwrap().unwrap();
        assert_eq!(script.now.get(), 5_000_000);
        script.queue(plain(2, 0));
        block_on(&connection, connection.sleep(Duration::ZERO)).unwrap().unwrap();
        assert_eq!(script.queue.borrow().len(), 1);
    }

    #[test]
    fn a_call_that_waits_is_no_sleep() {
        let (connection, _script) = connect::<1, 1>();
        let call = connection.call(&Message::to(3), Duration::from_secs(1));
        assert!(!connection.sleeps());
        drop(call);
        assert!(!connection.sleeps(), "nobody waits");
    }

    #[test]
    fn ticks_do_not_drift_and_none_is_left_out() {
        let (connection, script) = connect::<1, 1>();
        let mut ticks = connection.ticks(Instant::from_nanos(10), Duration::from_nanos(10));
        let mut tick = || block_on(&connection, ticks.tick()).unwrap().unwrap().as_nanos();
        assert_eq!((tick(), script.now.get()), (10, 10));
        script.now.set(35);
        assert_eq!([tick(), tick(), tick()], [20, 30, 40]);
        assert_eq!(script.now.get(), 40);
    }
}
