//! The smallest executor: one future on one connection.

use core::pin::pin;
use core::task::{Context, Poll, Waker};

use super::connection::Connection;
use super::error::WaitError;
use super::transport::{Failure, Transport};
use crate::Instant;
use crate::abi::Errno;

/// Runs `future` to its end and waits in the transport of `connection` meanwhile.
///
/// The future is polled again after each thing that comes in, so it may be any combination of what one
/// connection offers (joined calls, a receive beside a call); what else it waits for has to be ready at those
/// moments.
///
/// # Errors
///
/// [`WaitError`]: `EOPNOTSUPP` where the transport cannot wait, `ENOBUFS` once the inbox is full of messages
/// that the future does not receive. The future is dropped.
///
/// ```
/// # use kdbus_core::client::{Connection, Message, Transport, block_on, CALL_TIMEOUT};
/// fn both<T: Transport>(bus: &Connection<T>, peer: u64) -> Result<(), Box<dyn std::error::Error>> {
///     block_on(bus, async {
///         // Both calls are under way before the first answer is awaited.
///         let first = bus.call(&Message::to(peer).payload(b"1"), CALL_TIMEOUT);
///         let second = bus.call(&Message::to(peer).payload(b"2"), CALL_TIMEOUT);
///         println!("{:?} {:?}", first.await?.payload(), second.await?.payload());
///         Ok(())
///     })?
/// }
/// ```
pub fn block_on<T: Transport, F: Future, const CALLS: usize, const INBOX: usize>(
    connection: &Connection<T, CALLS, INBOX>,
    future: F,
) -> Result<F::Output, WaitError> {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return Ok(output);
        }
        if connection.sleeps() {
            // What waits in the transport would end each wait at once.
            let until = connection.poll_timeout().unwrap_or(Instant::FAR);
            match connection.link.transport.sleep(until) {
                Ok(()) => continue,
                Err(Failure::Refused(Errno::EOPNOTSUPP)) => {}
                Err(failure) => return Err(failure.into()),
            }
        } else if connection.inbox.borrow().is_full() {
            // It had its turn and received nothing. Messages that stay in the transport end each wait at once.
            return Err(WaitError::InboxFull);
        }
        match connection.wait(Instant::FAR).map_err(WaitError::from) {
            // The future learns of it by itself and may have something to say about it.
            Ok(()) => {}
            Err(WaitError::Broken(broken)) => {
                return match future.as_mut().poll(&mut cx) {
                    Poll::Ready(output) => Ok(output),
                    Poll::Pending => Err(broken.into()),
                };
            }
            Err(error) => return Err(error),
        }
    }
}
