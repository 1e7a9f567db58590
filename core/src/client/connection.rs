//! A connection to a bus.

use core::cell::{Cell, RefCell};
use core::fmt;

use super::call::{Outcome, Slot, Slots};
use super::deadline::Deadline;
use super::encode::{Buffer, Sending};
use super::error::{ByebyeError, HelloError, RecvError, SendError, UpdateError};
use super::error_reply::{ERROR_TEXT_MAX, ErrorReply, PAYLOAD_ERROR};
use super::hello::{self, Bus, Hello, HelloBuffer};
use super::inbox::Inbox;
use super::message::{Message, OWN_COOKIES, ReplyTo};
use super::registry::{RecordKind, Registry};
use super::topic::Topic;
use super::transport::{Failure, Transport};
use super::waiters::{Waiters, Want};
use crate::abi::{
    AttachFlags, Cmd, CmdHello, Command, HelloFlags, ItemType, ItemWriter, NoRoom, PolicyAccess,
};
use crate::{Instant, PolicyName};
use zerocopy::{FromBytes, IntoBytes};

/// A connection to a bus: sends, receives, calls, and owns names.
///
/// `CALLS` answers can be awaited at a time, and while some are, up to `INBOX` other messages are taken out
/// of the transport and kept for later receives. The connection holds all its memory itself: at most 250 bytes
/// for an answer and 320 for a kept message with `kdbus-linux` descriptors, and
/// [`REGISTRY_SIZE`](super::REGISTRY_SIZE). Nothing is allocated.
///
/// Methods take `&self`, so that received messages, which lie in the pool, can be held meanwhile. The
/// connection can move to another thread but is not shared by threads; its futures stay where it is.
///
/// # Waiting
///
/// Futures wait on any executor. Whoever runs the event loop watches [`fd`](Self::fd) for reading and
/// [`poll_timeout`](Self::poll_timeout), and calls [`process`](Self::process), which wakes the tasks that
/// have something to do; [`block_on`](super::block_on) is such a loop for one future. At a time, `CALLS` calls
/// and [`TASKS_MAX`](super::TASKS_MAX) other futures can wait; one more is refused, none is forgotten.
/// A future can be dropped at any point: no message is lost, and the answer to a call that nobody awaits any
/// more is consumed and discarded.
pub struct Connection<T: Transport, const CALLS: usize = 16, const INBOX: usize = 32> {
    pub(super) link: Link<T>,
    pub(super) inbox: RefCell<Inbox<T::Fd, INBOX>>,
    pub(super) calls: Slots<T::Fd, CALLS>,
    pub(super) waiters: Waiters,
    pub(super) registry: RefCell<Registry>,
    /// The application has matches that name notifications can pass.
    pub(super) hears_names: Cell<bool>,
}

/// What went past the application.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Stats {
    /// Messages discarded because their items do not hold together.
    pub malformed: u64,
    /// Answers, timeouts and deaths of calls that nobody awaited any more.
    pub late: u64,
    /// Calls that a serve loop could not answer because sending the reply failed.
    pub unanswered: u64,
}

/// The transport and what sending needs beside it.
pub(super) struct Link<T> {
    pub(super) transport: T,
    pub(super) id: u64,
    pub(super) bus: Bus,
    /// Monitors see other connections' answers and notifications.
    pub(super) is_monitor: bool,
    next_cookie: Cell<u64>,
    next_own: Cell<u64>,
    pub(super) lost: Cell<u64>,
    pub(super) stats: Cell<Stats>,
}

/// A goodbye that was refused, with the connection that goes on.
pub struct NotLeft<C> {
    /// The connection, as it was.
    pub connection: C,
    /// Why it is still there.
    pub error: ByebyeError,
}

impl<T: Transport> Connection<T> {
    /// Makes a connection of `transport`, which must not have been used before.
    ///
    /// # Errors
    ///
    /// [`HelloError`]; the transport is closed.
    pub fn hello(transport: T, hello: &Hello<'_>) -> Result<Self, HelloError> {
        Self::with_capacities(transport, hello)
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// As [`hello`](Connection::hello), with other capacities than the default ones.
    ///
    /// # Errors
    ///
    /// [`HelloError`]; the transport is closed.
    pub fn with_capacities(transport: T, hello: &Hello<'_>) -> Result<Self, HelloError> {
        let mut buffer: HelloBuffer = Buffer::zeroed();
        let arg = hello.write(&mut buffer).map_err(|_| HelloError::TooLarge)?;
        let mut registry = Registry::new();
        registry.add(RecordKind::Hello, 0, arg);
        let link = Link::introduce(transport, arg)?;
        Ok(Self {
            link,
            inbox: RefCell::new(Inbox::new()),
            calls: Slots::new(),
            waiters: Waiters::default(),
            registry: RefCell::new(registry),
            hears_names: Cell::new(false),
        })
    }

    /// The connection's unique id.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.link.id
    }

    /// The bus at the other end.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.link.bus
    }

    /// The transport underneath.
    #[must_use]
    pub const fn transport(&self) -> &T {
        &self.link.transport
    }

    /// Time on the bus' clock.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.link.transport.now()
    }

    /// The point in time that a deadline means now. The clock is read only if it counts from now.
    pub(super) fn until(&self, deadline: Deadline) -> Instant {
        self.begin(deadline).0
    }

    /// As [`until`](Self::until), and what the clock showed if it was read.
    pub(super) fn begin(&self, deadline: Deadline) -> (Instant, Option<Instant>) {
        let now = matches!(deadline, Deadline::After(_)).then(|| self.now());
        (deadline.at(now.unwrap_or(Instant::ZERO)), now)
    }

    /// What went past the application since the connection was made.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.link.stats.get()
    }

    /// Broadcasts lost since the last call of this function: their room was gone. Whoever mirrors another
    /// connection's state has to fetch it anew.
    ///
    /// The bus reports losses with each receive, also if no message waits.
    pub fn take_lost(&self) -> u64 {
        self.link.lost.replace(0)
    }

    /// Sends a message and returns its cookie. Never waits.
    ///
    /// Cost: one command; the payload is copied once. When it returns, the message is queued at its receiver,
    /// or at all of them.
    ///
    /// # Errors
    ///
    /// [`SendError`]. A broadcast succeeds even if nobody hears it.
    pub fn send<'m>(&'m self, message: &Message<'m, T::BorrowedFd<'m>>) -> Result<u64, SendError> {
        self.link.send(message)
    }

    /// Answers a call with `payload`.
    ///
    /// # Errors
    ///
    /// [`SendError`]: `EBADSLT` if the caller does not wait any more.
    pub fn reply(&self, to: ReplyTo, payload: &[u8]) -> Result<(), SendError> {
        self.link.send(&Message::reply(to).payload(payload)).map(|_| ())
    }

    /// Answers a call with an error.
    ///
    /// # Errors
    ///
    /// As [`reply`](Self::reply).
    pub fn reply_error(&self, to: ReplyTo, error: &ErrorReply) -> Result<(), SendError> {
        self.link.reply_error(to, error)
    }

    /// Tells all subscribers of `topic`.
    ///
    /// # Errors
    ///
    /// [`SendError`]; never because of a subscriber.
    pub fn signal(&self, topic: Topic<'_>, payload: &[u8]) -> Result<(), SendError> {
        self.link.send(&Message::signal(topic).payload(payload)).map(|_| ())
    }

    /// Tells one connection, if it subscribed to `topic`.
    ///
    /// # Errors
    ///
    /// [`SendError`], as for a message; not if the receiver has no match or no room.
    pub fn signal_to(&self, id: u64, topic: Topic<'_>, payload: &[u8]) -> Result<(), SendError> {
        self.link.send(&Message::signal(topic).only_to(id).payload(payload)).map(|_| ())
    }

    /// Changes the metadata that is given out and asked for, each if it is given here. Messages that wait
    /// already stay as they are.
    ///
    /// # Errors
    ///
    /// [`UpdateError`]; nothing has changed.
    pub fn update(&self, send: Option<AttachFlags>, ask: Option<AttachFlags>) -> Result<(), UpdateError> {
        self.update_command(|items| {
            if let Some(send) = send {
                items.record(ItemType::ATTACH_FLAGS_SEND, &send.bits())?;
            }
            ask.map_or(Ok(()), |ask| items.record(ItemType::ATTACH_FLAGS_RECV, &ask.bits()))
        })?;
        let mut registry = self.registry.borrow_mut();
        if let Some(body) = registry.body_mut(RecordKind::Hello)
            && let Ok((hello, _)) = CmdHello::mut_from_prefix(body)
        {
            hello.attach_flags_send = send.map_or(hello.attach_flags_send, |send| send.bits());
            hello.attach_flags_recv = ask.map_or(hello.attach_flags_recv, |ask| ask.bits());
        }
        Ok(())
    }

    /// Replaces the rules of a policy holder. Reconnecting restores those given at HELLO.
    ///
    /// # Errors
    ///
    /// [`UpdateError`]; nothing has changed.
    pub fn update_policy(&self, name: PolicyName<'_>, rules: &[PolicyAccess]) -> Result<(), UpdateError> {
        self.update_command(|items| hello::write_policy(name, rules, items))
    }

    fn update_command(
        &self,
        write: impl FnOnce(&mut ItemWriter<'_>) -> Result<(), NoRoom>,
    ) -> Result<(), UpdateError> {
        let mut buffer: HelloBuffer = Buffer::zeroed();
        let arg = command_arg(&mut buffer.0, 0, write).map_err(|_| UpdateError::TooLarge)?;
        Ok(self.link.transport.command(Command::Update, arg)?)
    }

    /// Leaves in an orderly way: only if no message waits, so that none is lost. Answers that nobody awaits
    /// any more do not count. Dropping a connection leaves without asking.
    ///
    /// # Errors
    ///
    /// [`NotLeft`] gives the connection back, which goes on unless the error is [`ByebyeError::Broken`].
    #[expect(clippy::result_large_err, reason = "the caller gets the connection back, which is what it had")]
    pub fn byebye(self) -> Result<(), NotLeft<Self>> {
        match self.try_byebye() {
            Ok(()) => Ok(()),
            Err(error) => Err(NotLeft { connection: self, error }),
        }
    }

    /// As [`byebye`](Self::byebye), for who holds the connection only by reference. Once it has left, every
    /// command fails.
    ///
    /// # Errors
    ///
    /// [`ByebyeError`]; the connection goes on unless it is [`ByebyeError::Broken`].
    pub fn try_byebye(&self) -> Result<(), ByebyeError> {
        loop {
            if !self.inbox.borrow().is_empty() {
                return Err(ByebyeError::Busy);
            }
            let mut arg = Buffer::<{ size_of::<Cmd>() }>::zeroed();
            arg.0[..8].copy_from_slice(&(size_of::<Cmd>() as u64).to_ne_bytes());
            match self.link.transport.command(Command::Byebye, &mut arg.0).map_err(ByebyeError::from) {
                // Each turn takes one message out that is for nobody.
                Err(ByebyeError::Busy) if self.drop_noise()? => {}
                result => return result,
            }
        }
    }

    /// The descriptor that is readable while anything waits, or `None` if the transport has none.
    #[must_use]
    pub fn fd(&self) -> Option<i32> {
        self.link.transport.fd()
    }

    /// When [`process`](Self::process) wants to be called even if [`fd`](Self::fd) is not readable. Cost: a
    /// look at each waiting call and task.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let calls = self.calls.taken().iter().filter_map(Slot::deadline).min();
        [calls, self.waiters.next()].into_iter().flatten().min()
    }

    /// Whether a loop gains anything by watching [`fd`](Self::fd) now.
    ///
    /// False while the inbox is full of messages that nobody receives: what waits behind them keeps the
    /// descriptor readable, and [`process`](Self::process) leaves it there. A loop that is told of levels then
    /// watches the descriptor for hang-ups only, until the application has received something. `O(1)`.
    #[must_use]
    pub fn wants_input(&self) -> bool {
        !self.inbox.borrow().is_full()
    }

    /// Takes in what has come for waiting calls and wakes the tasks that have something to do. To be called
    /// when [`fd`](Self::fd) is readable and at [`poll_timeout`](Self::poll_timeout).
    ///
    /// Messages stay in the transport unless something else than a receive waits behind them. Cost: at most
    /// `INBOX` receives, and one wake-up for each task.
    ///
    /// # Errors
    ///
    /// [`RecvError::Broken`] if the bus is gone; then everybody is woken and learns of it.
    /// [`RecvError::Refused`] if the bus gave nothing out, for want of memory or descriptors: what came stays
    /// there, and the descriptor readable. Deadlines have passed and tasks were woken all the same.
    pub fn process(&self, now: Instant) -> Result<(), RecvError> {
        self.turn(now).map_err(RecvError::from)
    }

    /// As [`process`](Self::process), for whoever tells refusals apart otherwise.
    pub(super) fn turn(&self, now: Instant) -> Result<(), Failure> {
        let pumped = self.pump();
        if let Err(Failure::Broken(_)) = pumped {
            self.calls.taken().iter().for_each(Slot::wake);
            self.waiters.wake_all();
            return pumped;
        }
        for slot in self.calls.taken().iter().filter(|slot| slot.deadline().is_some_and(|at| at <= now)) {
            slot.complete(Outcome::TimedOut);
        }
        self.waiters.wake(Want::Message);
        self.waiters.wake(Want::Room);
        if self.inbox.borrow().is_full() {
            // The notification may be stuck behind what nobody receives; asking the bus is as good.
            self.waiters.wake(Want::Name);
        }
        self.waiters.wake_due(now);
        pumped
    }
}

impl<T: Transport> Link<T> {
    pub(super) fn introduce(transport: T, arg: &mut [u8]) -> Result<Self, HelloError> {
        let (id, bus) = hello::introduce(&transport, arg)?;
        let flags = CmdHello::read_from_prefix(arg).map_or(0, |(hello, _)| hello.flags);
        Ok(Self {
            transport,
            id,
            bus,
            is_monitor: flags & HelloFlags::MONITOR.bits() != 0,
            next_cookie: Cell::new(1),
            next_own: Cell::new(OWN_COOKIES | 1),
            lost: Cell::new(0),
            stats: Cell::new(Stats::default()),
        })
    }

    /// Takes the place of a link that is gone, with its cookies and counts.
    pub(super) fn replace(&mut self, link: Self) {
        let (cookie, own) = (self.next_cookie.get(), self.next_own.get());
        let (lost, stats) = (self.lost.get(), self.stats.get());
        *self = link;
        self.next_cookie.set(cookie);
        self.next_own.set(own);
        self.lost.set(lost);
        self.stats.set(stats);
    }

    /// The next cookie for a message that has none.
    pub(super) fn cookie(&self) -> u64 {
        let cookie = self.next_cookie.get();
        self.next_cookie.set((cookie + 1) & !OWN_COOKIES);
        cookie
    }

    /// The next cookie for a call or match of the connection's own.
    pub(super) fn own_cookie(&self) -> u64 {
        let cookie = self.next_own.get();
        self.next_own.set(cookie.wrapping_add(1) | OWN_COOKIES);
        cookie
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    pub(super) fn send<'m>(&'m self, message: &Message<'m, T::BorrowedFd<'m>>) -> Result<u64, SendError> {
        let sending = self.sending(message)?;
        self.transmit(message, &sending).map(|()| sending.cookie)
    }

    /// Sends a message as `sending` says.
    pub(super) fn transmit<'m>(
        &'m self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        sending: &Sending,
    ) -> Result<(), SendError> {
        message
            .encode(sending, &self.bus.bloom, |outgoing| self.transport.send(outgoing))?
            .map_err(SendError::from)
    }

    /// As [`send`](Self::send), for who would wait for room until `until`.
    pub(super) fn send_patiently<'m>(
        &'m self,
        message: &Message<'m, T::BorrowedFd<'m>>,
        until: Deadline,
    ) -> Result<u64, SendError> {
        let sending = self.sending(message)?;
        message
            .encode(&sending, &self.bus.bloom, |outgoing| self.transport.send_patiently(outgoing, until))?
            .map(|()| sending.cookie)
            .map_err(SendError::from)
    }

    /// How a message of the application is sent.
    #[inline]
    fn sending(&self, message: &Message<'_, T::BorrowedFd<'_>>) -> Result<Sending, SendError> {
        if message.takes_own_cookie() {
            return Err(SendError::Invalid);
        }
        Ok(Sending { cookie: message.cookie.unwrap_or_else(|| self.cookie()), until: None, begun: None })
    }

    pub(super) fn reply_error(&self, to: ReplyTo, error: &ErrorReply) -> Result<(), SendError> {
        let mut buffer = [0; 4 + ERROR_TEXT_MAX];
        let payload = error.write(&mut buffer);
        self.send(&Message::reply(to).payload_type(PAYLOAD_ERROR).payload(payload)).map(|_| ())
    }
}

/// Puts a plain command together in `buffer`.
pub(super) fn command_arg(
    buffer: &mut [u8],
    flags: u64,
    write: impl FnOnce(&mut ItemWriter<'_>) -> Result<(), NoRoom>,
) -> Result<&mut [u8], NoRoom> {
    let mut items = ItemWriter::behind(buffer, size_of::<Cmd>())?;
    write(&mut items)?;
    let size = items.len();
    let head = Cmd { size: size as u64, flags, return_flags: 0 };
    buffer[..size_of::<Cmd>()].copy_from_slice(head.as_bytes());
    Ok(&mut buffer[..size])
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> fmt::Debug for Connection<T, CALLS, INBOX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("id", &self.link.id)
            .field("stats", &self.link.stats.get())
            .finish_non_exhaustive()
    }
}

impl<C> fmt::Debug for NotLeft<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotLeft").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<C> fmt::Display for NotLeft<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<C> core::error::Error for NotLeft<C> {}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::time::Duration;
    use std::boxed::Box;

    use super::super::fake::{Fake, OWN_ID, connect, plain, reply};
    use super::*;
    use crate::abi::{BloomParameter, Errno};

    /// A connection may move to another thread if its transport may.
    const _: () = {
        const fn is_send<S: Send>() {}
        #[expect(dead_code, reason = "it is checked by being compiled")]
        const fn check<T: Transport + Send>()
        where
            T::Fd: Send,
        {
            is_send::<Connection<T>>();
        }
    };

    #[test]
    fn the_documented_sizes_are_kept() {
        type Fd = Option<core::num::NonZeroI32>;
        assert!(size_of::<Slot<Fd>>() <= 250);
        let entry = size_of::<Inbox<Fd, 2>>() - size_of::<Inbox<Fd, 1>>();
        assert!(entry <= 320, "{entry}");
    }

    #[test]
    fn hello_takes_what_the_bus_says_and_gives_its_slice_back() {
        let (connection, script) = connect::<1, 1>();
        assert_eq!((connection.id(), connection.bus().bloom.size, script.held()), (OWN_ID, 64, 0));
    }

    #[test]
    fn a_bus_without_sensible_filters_is_no_bus() {
        for (size, n_hash) in [(12, 1), (0, 1), (1 << 40, 1), (64, 0)] {
            let fake = Fake::default();
            let script = std::rc::Rc::clone(&fake.0);
            script.bloom.set(Some(BloomParameter { size, n_hash }));
            let refused = Connection::hello(fake, &Hello::new());
            assert_eq!(refused.err(), Some(HelloError::Malformed), "{size} bytes, {n_hash} hashes");
            assert_eq!(script.held(), 0);
        }
    }

    #[test]
    fn goodbye_waits_for_messages_but_not_for_late_answers() {
        let (connection, script) = connect::<2, 2>();
        drop(connection.call(&Message::to(3), Duration::from_secs(1)));
        script.queue(reply(script.cookies()[0], b"late"));
        script.queue(plain(1, 0));
        let queue = std::rc::Rc::downgrade(&script);
        *script.answer.borrow_mut() = Some(Box::new(move |command, _| {
            let busy = queue.upgrade().is_some_and(|script| !script.queue.borrow().is_empty());
            if command == Command::Byebye && busy { Err(Failure::Refused(Errno::EBUSY)) } else { Ok(()) }
        }));
        let NotLeft { connection, error } = connection.byebye().unwrap_err();
        assert_eq!((error, script.queue.borrow().len()), (ByebyeError::Busy, 1));
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        script.queue(reply(script.cookies()[0], b"later"));
        assert!(connection.byebye().is_ok());
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn goodbye_does_not_forget_what_a_call_left_in_the_inbox() {
        let (connection, script) = connect::<2, 2>();
        let call = connection.call(&Message::to(3), Duration::from_secs(1));
        script.queue(plain(1, 0));
        connection.process(connection.now()).unwrap();
        drop(call);
        let left = connection.byebye().unwrap_err();
        assert_eq!((left.error, script.count(Command::Byebye)), (ByebyeError::Busy, 0));
    }

    #[test]
    fn updates_are_kept_for_the_next_hello() {
        let (connection, _) = connect::<1, 1>();
        connection.update(None, Some(AttachFlags::CREDS)).unwrap();
        let registry = connection.registry.borrow();
        let (record, _) = registry.get(0).unwrap();
        let (hello, _) = CmdHello::read_from_prefix(record.body).unwrap();
        let kept = (hello.attach_flags_recv, hello.attach_flags_send);
        assert_eq!(kept, (AttachFlags::CREDS.bits(), crate::client::IDENTITY.bits()));
    }
}
