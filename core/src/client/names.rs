//! Well-known names: owning them, and waiting for somebody to own them.

use core::future::poll_fn;
use core::task::{Context, Poll};

use super::connection::{Connection, Link, command_arg};
use super::deadline::Deadline;
use super::encode::Buffer;
use super::error::{AcquireError, QueryError, ReleaseError, WaitError};
use super::matches::Rule;
use super::registry::RecordKind;
use super::transport::{Failure, Transport, Wait};
use super::waiters::{Seat, Want};
use crate::abi::{AttachFlags, Cmd, Command, Errno, ITEM_HEADER, ItemType, MatchFlags, NameFlags};
use crate::{Instant, WELL_KNOWN_NAME_MAX, WellKnownName};
use zerocopy::FromBytes;

/// Bytes of the longest name command.
const NAME_COMMAND: usize = size_of::<Cmd>() + ITEM_HEADER + WELL_KNOWN_NAME_MAX + 1;

/// How a connection stands to a name it asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Standing {
    /// It owns the name since this request.
    Primary,
    /// It owned the name already; only the stored flags changed.
    AlreadyOwner,
    /// It waits for the name.
    Queued,
    /// It waited for the name and gave its place up, because it asked again without [`NameFlags::QUEUE`].
    LeftQueue,
}

/// What came of asking for a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Acquired {
    /// How the connection stands to the name now.
    pub standing: Standing,
    /// What the bus reported, with the stored [`ALLOW_REPLACEMENT`](NameFlags::ALLOW_REPLACEMENT) and
    /// [`QUEUE`](NameFlags::QUEUE).
    pub flags: NameFlags,
}

impl Acquired {
    /// Whether the connection owns the name.
    #[must_use]
    pub const fn is_owner(&self) -> bool {
        self.flags.contains(NameFlags::PRIMARY)
    }

    const fn from_flags(flags: NameFlags) -> Self {
        let standing = if flags.contains(NameFlags::IN_QUEUE) {
            Standing::Queued
        } else if !flags.contains(NameFlags::PRIMARY) {
            Standing::LeftQueue
        } else if flags.contains(NameFlags::ACQUIRED) {
            Standing::Primary
        } else {
            Standing::AlreadyOwner
        };
        Self { standing, flags }
    }
}

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Asks for a name. `flags` may have [`NameFlags::REPLACE_EXISTING`], [`NameFlags::ALLOW_REPLACEMENT`]
    /// and [`NameFlags::QUEUE`].
    ///
    /// # Errors
    ///
    /// [`AcquireError`]; [`AcquireError::Taken`] only without `QUEUE`.
    pub fn acquire(&self, name: WellKnownName<'_>, flags: NameFlags) -> Result<Acquired, AcquireError> {
        let acquired = self.link.acquire(name, flags)?;
        let mut registry = self.registry.borrow_mut();
        let text = name.as_str().as_bytes();
        registry.remove(|record| record.kind == RecordKind::Name && record.body == text);
        if acquired.standing != Standing::LeftQueue {
            registry.add(RecordKind::Name, flags.bits(), text);
        }
        Ok(acquired)
    }

    /// Gives a name up, or the place in its queue.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`].
    pub fn release(&self, name: WellKnownName<'_>) -> Result<(), ReleaseError> {
        let released = self.link.name_command(Command::NameRelease, name, NameFlags::empty());
        if !matches!(released, Err(Failure::Broken(_))) {
            // Refused means that there is nothing to release; so there is nothing to restore either.
            let text = name.as_str().as_bytes();
            self.registry
                .borrow_mut()
                .remove(|record| record.kind == RecordKind::Name && record.body == text);
        }
        Ok(released.map(|_| ())?)
    }

    /// Who owns a name, or holds it as an activator; `None` if nobody does.
    ///
    /// # Errors
    ///
    /// [`QueryError`], never [`QueryError::NoSuchName`].
    pub fn owner(&self, name: WellKnownName<'_>) -> Result<Option<u64>, QueryError> {
        match self.name_info(name, AttachFlags::empty()) {
            Ok(info) => Ok(Some(info.id())),
            Err(QueryError::NoSuchName) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Waits until somebody owns `name`, or holds it as an activator, and returns who.
    ///
    /// Cost: a match while it waits, and one query for each change of the name. Other messages that arrive
    /// meanwhile are kept for later receives, as during a [`call`](Self::call).
    ///
    /// # Errors
    ///
    /// [`WaitError`].
    pub async fn wait_for_name(
        &self,
        name: WellKnownName<'_>,
        deadline: impl Into<Deadline>,
    ) -> Result<u64, WaitError> {
        let until = deadline.into().at(self.now());
        if let Some(owner) = self.owner_for_wait(name)? {
            return Ok(owner);
        }
        let _watch = self.watch_name(name)?;
        let mut seat = None;
        poll_fn(|cx| self.poll_name(cx, &mut seat, name, until)).await
    }

    /// As [`wait_for_name`](Self::wait_for_name), and waits in the transport.
    ///
    /// # Errors
    ///
    /// [`WaitError`]: `EOPNOTSUPP` where the transport cannot wait, [`WaitError::InboxFull`] if meanwhile more
    /// messages arrive than the connection keeps.
    pub fn wait_for_name_blocking(
        &self,
        name: WellKnownName<'_>,
        deadline: impl Into<Deadline>,
    ) -> Result<u64, WaitError> {
        super::block_on(self, self.wait_for_name(name, deadline))?
    }

    fn poll_name<'c>(
        &'c self,
        cx: &mut Context<'_>,
        seat: &mut Option<Seat<'c>>,
        name: WellKnownName<'_>,
        until: Instant,
    ) -> Poll<Result<u64, WaitError>> {
        if let Some(owner) = self.owner_for_wait(name)? {
            return Poll::Ready(Ok(owner));
        }
        if self.now() >= until {
            return Poll::Ready(Err(WaitError::TimedOut));
        }
        if seat.is_none() {
            // From now on, messages that stand before the notification are taken in.
            *seat = self.waiters.seat(Want::Name);
        }
        let Some(seat) = seat else { return Poll::Ready(Err(WaitError::TooManyTasks)) };
        seat.park(cx.waker(), until);
        self.link.transport.park(Wait::Input(until));
        Poll::Pending
    }

    fn owner_for_wait(&self, name: WellKnownName<'_>) -> Result<Option<u64>, WaitError> {
        self.owner(name).map_err(|error| match error {
            QueryError::Broken(broken) => WaitError::Broken(broken),
            error => WaitError::Refused(error.errno()),
        })
    }

    fn watch_name(&self, name: WellKnownName<'_>) -> Result<NameWatch<'_, T>, WaitError> {
        // From here on, whatever has been added goes with the watch.
        let watch = NameWatch { link: &self.link, cookie: self.link.own_cookie() };
        // Two matches of one cookie: each passes if all of its rules do. A name that only changes hands had
        // an owner all along, unless nobody could see it.
        for rule in [Rule::name_added(name), Rule::name_changed(name)] {
            let added = self.link.add_match(watch.cookie, MatchFlags::empty(), &[rule]);
            added.map_err(|error| match error {
                super::MatchError::Broken(broken) => WaitError::Broken(broken),
                error => WaitError::Refused(error.errno()),
            })?;
        }
        Ok(watch)
    }
}

impl<T: Transport> Link<T> {
    pub(super) fn acquire(
        &self,
        name: WellKnownName<'_>,
        flags: NameFlags,
    ) -> Result<Acquired, AcquireError> {
        Ok(Acquired::from_flags(self.name_command(Command::NameAcquire, name, flags)?))
    }

    fn name_command(
        &self,
        command: Command,
        name: WellKnownName<'_>,
        flags: NameFlags,
    ) -> Result<NameFlags, Failure> {
        let mut buffer = Buffer::<NAME_COMMAND>::zeroed();
        let arg =
            command_arg(&mut buffer.0, flags.bits(), |items| items.c_str(ItemType::NAME, name.as_str()))
                .map_err(|error| Failure::Refused(error.errno()))?;
        self.transport.command(command, arg)?;
        let (head, _) = Cmd::read_from_prefix(arg).map_err(|_| Failure::Refused(Errno::EIO))?;
        Ok(NameFlags::from_bits_retain(head.return_flags))
    }
}

/// The matches of one wait for a name.
struct NameWatch<'c, T: Transport> {
    link: &'c Link<T>,
    cookie: u64,
}

impl<T: Transport> Drop for NameWatch<'_, T> {
    fn drop(&mut self) {
        // A connection that is gone has no matches any more.
        let _ = self.link.remove_match(self.cookie);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use core::time::Duration;
    use std::boxed::Box;
    use std::rc::Rc;
    use std::vec::Vec;

    use super::super::fake::{Fake, Script, connect, notification, plain};
    use super::*;
    use crate::abi::{CmdInfo, IdChange, Info};
    use zerocopy::IntoBytes;

    const NAME: WellKnownName<'_> = match WellKnownName::parse("a.b") {
        Ok(name) => name,
        Err(_) => panic!(),
    };

    /// Lets the bus know an owner of every name once the script's clock shows `since`.
    fn owned_since(script: &Rc<Script>, fake: &Fake, since: u64) {
        let (weak, fake) = (Rc::downgrade(script), Rc::downgrade(&fake.0));
        *script.answer.borrow_mut() = Some(Box::new(move |command, arg| {
            let (Some(script), Some(_)) = (weak.upgrade(), fake.upgrade()) else { return Ok(()) };
            if command != Command::ConnInfo {
                return Ok(());
            }
            if script.now.get() < since {
                return Err(Failure::Refused(Errno::ESRCH));
            }
            let (info, _) = CmdInfo::mut_from_prefix(arg).unwrap();
            let record = Info { size: 24, id: 33, flags: 0 };
            (info.offset, info.info_size) = (1 << 30, 24);
            script.published.borrow_mut().insert(1 << 30, record.as_bytes().to_vec());
            Ok(())
        }));
    }

    #[test]
    fn a_watch_that_is_half_made_is_undone() {
        let (connection, script) = connect::<1, 1>();
        let mut matches = 0;
        *script.answer.borrow_mut() = Some(Box::new(move |command, _| match command {
            Command::MatchAdd if matches == 1 => Err(Failure::Refused(Errno::EMFILE)),
            Command::MatchAdd => {
                matches += 1;
                Ok(())
            }
            Command::ConnInfo => Err(Failure::Refused(Errno::ESRCH)),
            _ => Ok(()),
        }));
        let name = WellKnownName::parse("a.b").unwrap();
        let waited = connection.wait_for_name_blocking(name, Duration::from_secs(1));
        assert!(matches!(waited, Err(WaitError::Refused(_))), "{waited:?}");
        assert_eq!((script.count(Command::MatchAdd), script.count(Command::MatchRemove)), (2, 1));
    }

    #[test]
    fn standing_follows_from_the_reported_flags() {
        let standing = |flags| Acquired::from_flags(flags).standing;
        assert_eq!(standing(NameFlags::PRIMARY | NameFlags::ACQUIRED), Standing::Primary);
        assert_eq!(standing(NameFlags::PRIMARY | NameFlags::QUEUE), Standing::AlreadyOwner);
        assert_eq!(standing(NameFlags::IN_QUEUE | NameFlags::ACQUIRED), Standing::Queued);
        assert_eq!(standing(NameFlags::IN_QUEUE), Standing::Queued);
        assert_eq!(standing(NameFlags::ALLOW_REPLACEMENT), Standing::LeftQueue);
    }

    #[test]
    fn a_name_that_is_owned_is_not_waited_for() {
        let (connection, script) = connect::<1, 2>();
        owned_since(&script, connection.transport(), 0);
        assert_eq!(connection.wait_for_name_blocking(NAME, Duration::from_secs(1)), Ok(33));
        assert_eq!((script.count(Command::MatchAdd), script.held()), (0, 0));
    }

    #[test]
    fn waiting_for_a_name_ends_with_its_owner_and_leaves_no_match() {
        let (connection, script) = connect::<1, 2>();
        owned_since(&script, connection.transport(), 50);
        script.steps.borrow_mut().push_back(Box::new(|script| {
            let mut change = Vec::from([IdChange::default(); 2].as_bytes());
            change.extend_from_slice(b"a.b\0");
            script.now.set(60);
            script.queue(plain(1, 0));
            script.queue(notification(ItemType::NAME_ADD, &change, 0));
        }));
        assert_eq!(connection.wait_for_name_blocking(NAME, Duration::from_secs(1)), Ok(33));
        assert_eq!((script.count(Command::MatchAdd), script.count(Command::MatchRemove)), (2, 1));
        assert_eq!(connection.try_recv().unwrap().unwrap().cookie(), 1);
        assert!(connection.try_recv().unwrap().is_none());
        assert_eq!(script.held(), 0);
    }

    #[test]
    fn messages_before_the_notification_do_not_keep_the_waiter_busy() {
        let (connection, script) = connect::<1, 2>();
        owned_since(&script, connection.transport(), u64::MAX);
        script.queue(plain(1, 0));
        let waited = connection.wait_for_name_blocking(NAME, Duration::from_secs(1));
        assert_eq!((waited, script.queue.borrow().len()), (Err(WaitError::TimedOut), 0));
        // At the beginning, before the watch, once the message was taken in, and at the deadline.
        assert!(script.count(Command::ConnInfo) <= 4);
        script.queue(plain(2, 0));
        let stuck = connection.wait_for_name_blocking(NAME, Duration::from_secs(1));
        assert_eq!(stuck, Err(WaitError::InboxFull));
    }

    #[test]
    fn waiting_for_a_name_ends_at_the_deadline_and_leaves_no_match() {
        let (connection, script) = connect::<1, 2>();
        owned_since(&script, connection.transport(), u64::MAX);
        let waited = connection.wait_for_name_blocking(NAME, Duration::from_secs(1));
        assert_eq!((waited, script.now.get()), (Err(WaitError::TimedOut), 1_000_000_000));
        assert_eq!(script.count(Command::MatchRemove), 1);
    }
}
