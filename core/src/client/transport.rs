//! What lies under a client.

use core::fmt;
use core::ops::Deref;

use super::deadline::Deadline;
use crate::Instant;
use crate::abi::{Command, Errno, MsgInfo, RecvFlags};

/// Descriptors that one message can bring: 16 passed and 16 memfds.
pub const MESSAGE_FDS_MAX: usize = 32;

/// Why a command did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Failure {
    /// The bus refused the command with this code; the connection goes on.
    Refused(Errno),
    /// The connection to the bus is gone. Retrying is useless: connect again.
    Broken(Errno),
}

impl Failure {
    /// The error number, whichever way it came about.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Refused(errno) | Self::Broken(errno) => errno,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(errno) => write!(f, "the bus refused: {errno}"),
            Self::Broken(errno) => write!(f, "the connection to the bus is gone: {errno}"),
        }
    }
}

impl core::error::Error for Failure {}

/// A message on its way to [`Transport::send`].
#[derive(Debug)]
pub struct Outgoing<'a, F> {
    /// Header and items (`kdbus_msg`), 8-byte aligned in its size.
    ///
    /// Each `PAYLOAD_VEC` that stands for bytes has a non-zero address, which the transport replaces; the
    /// bytes are the next element of `payload`. Each descriptor number is an index into `fds`. The
    /// transport may change the buffer.
    pub message: &'a mut [u8],
    /// Bytes of the `PAYLOAD_VEC` items with a non-zero address, in item order, each as long as its item says.
    pub payload: &'a [&'a [u8]],
    /// Descriptors to pass, borrowed until the call returns.
    pub fds: &'a [F],
    /// What the clock showed after its sender had begun to send, if it was read: it need not be read again to say
    /// when that was.
    pub begun: Option<Instant>,
}

/// A message that a transport has received.
#[derive(Debug)]
pub struct Incoming<F> {
    /// Where it lies, and whether descriptors are missing.
    pub info: MsgInfo,
    /// Its descriptors: those of the `FDS` item first, then the memfds in item order. A number of -1 in an
    /// item has no descriptor here.
    pub fds: heapless::Vec<F, MESSAGE_FDS_MAX>,
}

impl<F> Incoming<F> {
    /// A place for a message.
    #[must_use]
    pub const fn empty() -> Self {
        let info = MsgInfo { offset: 0, msg_size: 0, return_flags: 0 };
        Self { info, fds: heapless::Vec::new() }
    }
}

/// What one receive found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Whether a message was put into its place; false if none waits, or if it was dropped as asked.
    pub message: bool,
    /// Broadcasts lost since the last receive. Reported also when there is no message.
    pub dropped: u64,
}

/// What one receive brought.
#[derive(Debug)]
pub struct Received<F> {
    /// The message; `None` if none waits, or if it was dropped as asked.
    pub message: Option<Incoming<F>>,
    /// Broadcasts lost since the last receive. Reported also when there is no message.
    pub dropped: u64,
}

/// What a future waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Wait {
    /// Anything that comes in or changes, or this time.
    Input(Instant),
    /// This time alone.
    Sleep(Instant),
}

/// What lies under a client: carries its commands to one endpoint of one bus.
///
/// A transport is an open endpoint handle, and after a successful HELLO a connection. Methods take `&self`
/// because messages borrow their bytes from the transport while further commands run; a transport need not
/// be `Sync`. Dropping it disconnects without waiting for the queue to empty.
///
/// Each implementation upholds:
/// - *Order*: what one transport sends to one receiver is queued in the order of the calls.
/// - *Errors*: [`Failure::Refused`] means that nothing changed; a dead bus is [`Failure::Broken`] with
///   `ECONNRESET`, now and ever after.
/// - *Bytes*: those behind [`slice`](Self::slice) do not change before [`free`](Self::free).
pub trait Transport {
    /// A received descriptor, closed on drop.
    type Fd;

    /// A descriptor to send.
    type BorrowedFd<'a>: Copy
    where
        Self: 'a;

    /// The bytes of a received slice.
    type Slice<'a>: Deref<Target = [u8]>
    where
        Self: 'a;

    /// Carries out any command but SEND and RECV. `arg` is its record and items; outputs are written back.
    ///
    /// After HELLO the pool is there and readable.
    ///
    /// # Errors
    ///
    /// [`Failure`] with the bus' code.
    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure>;

    /// Sends a message. Returns when it is queued at its receiver, or copied to all of them.
    ///
    /// # Errors
    ///
    /// [`Failure`] with the bus' code.
    fn send(&self, message: &mut Outgoing<'_, Self::BorrowedFd<'_>>) -> Result<(), Failure>;

    /// As [`send`](Self::send), for who would wait for room at the receiver until `until`. Where a way of the transport's own is
    /// full before the receiver is, it may wait a while for that; by default it does not.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    fn send_patiently(
        &self,
        message: &mut Outgoing<'_, Self::BorrowedFd<'_>>,
        _until: Deadline,
    ) -> Result<(), Failure> {
        self.send(message)
    }

    /// Sends a call, waits for its reply, which does not pass through the queue, and puts that into `reply`.
    ///
    /// `cancel` ends the wait with `ECANCELED` as soon as it is readable. The place is the caller's and
    /// [empty](Incoming::empty) before, because moving one costs as much as a good part of a call by lane.
    ///
    /// # Errors
    ///
    /// [`Failure`] with the bus' code: `ETIMEDOUT` at the call's deadline, `EPIPE` if the peer died,
    /// `EOPNOTSUPP` where this transport cannot wait.
    fn call_into(
        &self,
        message: &mut Outgoing<'_, Self::BorrowedFd<'_>>,
        cancel: Option<Self::BorrowedFd<'_>>,
        reply: &mut Incoming<Self::Fd>,
    ) -> Result<(), Failure>;

    /// Receives, peeks at or drops one message, without waiting, and puts it into `message`, which is
    /// [empty](Incoming::empty) before. `priority` counts with `USE_PRIORITY`.
    ///
    /// A peeked message brings no descriptors.
    ///
    /// # Errors
    ///
    /// [`Failure`]; no message is no error.
    fn recv_into(
        &self,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<Self::Fd>,
    ) -> Result<Found, Failure>;

    /// As [`call_into`](Self::call_into), with the reply in a place of its own.
    ///
    /// # Errors
    ///
    /// As [`call_into`](Self::call_into).
    fn call(
        &self,
        message: &mut Outgoing<'_, Self::BorrowedFd<'_>>,
        cancel: Option<Self::BorrowedFd<'_>>,
    ) -> Result<Incoming<Self::Fd>, Failure> {
        let mut reply = Incoming::empty();
        self.call_into(message, cancel, &mut reply)?;
        Ok(reply)
    }

    /// As [`recv_into`](Self::recv_into), with the message in a place of its own.
    ///
    /// # Errors
    ///
    /// As [`recv_into`](Self::recv_into).
    fn recv(&self, flags: RecvFlags, priority: i64) -> Result<Received<Self::Fd>, Failure> {
        let mut place = Incoming::empty();
        let Found { message, dropped } = self.recv_into(flags, priority, &mut place)?;
        Ok(Received { message: message.then_some(place), dropped })
    }

    /// The bytes of a published slice, or `None` if the range is not in the pool.
    fn slice(&self, offset: u64, size: u64) -> Option<Self::Slice<'_>>;

    /// Gives a published slice back; does nothing for any other offset.
    fn free(&self, offset: u64);

    /// Time on the bus' clock.
    fn now(&self) -> Instant;

    /// Waits until something has come in or changed, or until `deadline`. May return early.
    ///
    /// # Errors
    ///
    /// [`Failure::Broken`] if the bus is gone; `EOPNOTSUPP` where this transport cannot wait.
    fn wait(&self, deadline: Option<Instant>) -> Result<(), Failure>;

    /// Waits until `until`. What comes in meanwhile stays where it is and does not end the wait, nor does a signal.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` where this transport cannot do that, as by default; [`wait`](Self::wait) may do instead.
    fn sleep(&self, _until: Instant) -> Result<(), Failure> {
        Err(Failure::Refused(Errno::EOPNOTSUPP))
    }

    /// Hears what a future on this connection begins to wait for, just before it returns `Pending`. Does
    /// nothing by default.
    ///
    /// For transports that are their own executor. Others are driven by [`fd`](Self::fd) and the connection's
    /// [`poll_timeout`](super::Connection::poll_timeout).
    fn park(&self, _wait: Wait) {}

    /// The descriptor that is readable while anything waits, or `None` if this transport has none.
    fn fd(&self) -> Option<i32>;

    /// Asks to be woken once when `receiver` gets room again. False if this transport cannot do that, and
    /// the caller has to try again by time.
    ///
    /// # Errors
    ///
    /// [`Failure`]: `ENXIO` if there is no such connection.
    fn watch_room(&self, receiver: u64) -> Result<bool, Failure>;
}
