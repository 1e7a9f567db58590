//! What comes out of the transport, and where it goes: to whoever receives, into the inbox, to the end of a call, or nowhere.

use super::call::Outcome;
use super::connection::Connection;
use super::delivery::{Checked, Delivery, Kind};
use super::error::RecvError;
use super::inbox::Inbox;
use super::message::OWN_COOKIES;
use super::transport::{Failure, Incoming, Transport};
use super::waiters::Want;
use crate::abi::{ItemType, Msg, RecvFlags};
use crate::hint::{likely, unlikely};

/// Answers and notifications for the connection itself that one receive passes over before it gives up for
/// this time. No peer can cause more than the connection asked for.
const NOISE_MAX: usize = 64;

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Takes messages out of the transport for as long as somebody waits for something else, at most until
    /// the inbox is full.
    pub(super) fn pump(&self) -> Result<(), Failure> {
        let mut noise = 0;
        while self.waits_behind_messages() && !self.inbox.borrow().is_full() && noise <= NOISE_MAX {
            match self.keep_next()? {
                None => return Ok(()),
                Some(true) => {}
                Some(false) => noise += 1,
            }
        }
        Ok(())
    }

    /// Receives from the transport what is for nobody and stands at its front; true if there was any.
    pub(super) fn drop_noise(&self) -> Result<bool, Failure> {
        for dropped in 0..NOISE_MAX {
            match self.peek_transport()? {
                Some(peeked) if self.is_noise(&peeked) => {
                    if self.keep_next()? != Some(false) {
                        return Ok(dropped > 0);
                    }
                }
                _ => return Ok(dropped > 0),
            }
        }
        Ok(true)
    }

    /// The message that arrived first: from the inbox, else from the transport. `noise` if there were only things for the
    /// connection itself, and there may be more.
    #[inline]
    pub(super) fn pull(&self, noise: &mut bool) -> Result<Option<Delivery<'_, T>>, RecvError> {
        let is_empty = self.inbox.borrow().is_empty();
        if unlikely(!is_empty)
            && let Some(message) = self.pull_kept()
        {
            return Ok(Some(message));
        }
        self.pull_from(RecvFlags::empty(), 0, noise)
    }

    /// The message in the inbox that arrived first.
    #[inline(never)]
    fn pull_kept(&self) -> Option<Delivery<'_, T>> {
        let was_full = self.inbox.borrow().is_full();
        let message = self.take_from_inbox(|inbox| inbox.pop_front())?;
        if was_full {
            // A call may have been waiting for this room. What fails now fails again for whoever waits, and
            // is no reason to lose the message at hand.
            let _ = self.pump();
        }
        Some(message)
    }

    pub(super) fn pull_from(
        &self,
        flags: RecvFlags,
        limit: i64,
        noise: &mut bool,
    ) -> Result<Option<Delivery<'_, T>>, RecvError> {
        let mut incoming = Incoming::empty();
        for _ in 0..NOISE_MAX {
            if !self.receive(flags, limit, &mut incoming)? {
                return Ok(None);
            }
            let checked = Checked::new(&self.link.transport, &incoming.info);
            let fate = checked.as_ref().map_or(Fate::Unwanted, |message| self.fate(message));
            match checked {
                Some(message) if fate == Fate::Received => {
                    // Most have none, and room for none is not moved.
                    if likely(incoming.fds.is_empty()) {
                        return Ok(Some(message.without_fds(&incoming.info)));
                    }
                    return Ok(Some(message.with_fds(&mut incoming)));
                }
                Some(message) => self.end_call(message, &mut incoming, fate),
                None => {
                    self.drop_malformed();
                    incoming.fds.clear();
                }
            }
        }
        *noise = true;
        Ok(None)
    }

    pub(super) fn take_from_inbox(
        &self,
        pop: impl Fn(&mut Inbox<T::Fd, INBOX>) -> Option<Incoming<T::Fd>>,
    ) -> Option<Delivery<'_, T>> {
        let mut incoming = pop(&mut self.inbox.borrow_mut())?;
        Some(Checked::new(&self.link.transport, &incoming.info)?.with_fds(&mut incoming))
    }

    /// Puts a message into the inbox, in which the caller saw room.
    fn keep(&self, message: Checked<'_, T>, incoming: Incoming<T::Fd>) {
        let priority = message.header().priority;
        message.keep();
        let kept = self.inbox.borrow_mut().push(priority, incoming);
        match kept {
            Ok(()) => self.waiters.wake(Want::Message),
            // Not to be: but then its slice is not lost as well.
            Err(incoming) => self.discard(Outcome::Answer(incoming)),
        }
    }

    pub(super) fn receive(
        &self,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<T::Fd>,
    ) -> Result<bool, Failure> {
        let found = self.link.transport.recv_into(flags, priority, message)?;
        self.link.lost.set(self.link.lost.get().saturating_add(found.dropped));
        Ok(found.message)
    }

    /// What stands at the transport's front; its slice is given back at once.
    pub(super) fn peek_transport(&self) -> Result<Option<Peeked>, Failure> {
        let mut incoming = Incoming::empty();
        if !self.receive(RecvFlags::PEEK, 0, &mut incoming)? {
            return Ok(None);
        }
        // A peeked message brings no descriptors, so this one is only looked at.
        let message = Checked::new(&self.link.transport, &incoming.info);
        Ok(Some(match message {
            Some(message) => Peeked {
                header: *message.header(),
                malformed: false,
                name_change: message.announces().is_some_and(is_name_change),
            },
            None => Peeked { header: Msg::default(), malformed: true, name_change: false },
        }))
    }

    /// Whether a message is for the connection itself, or for nobody.
    fn is_noise(&self, peeked: &Peeked) -> bool {
        if self.link.is_monitor {
            return peeked.malformed;
        }
        let own_answer = peeked.header.cookie_reply() & OWN_COOKIES != 0;
        peeked.malformed || own_answer || peeked.name_change && !self.hears_names.get()
    }

    fn waits_behind_messages(&self) -> bool {
        // Those who wait for room do not need what comes, but left there it would end each wait at once.
        let waits = [Want::Name, Want::Room].into_iter().any(|want| self.waiters.any(want));
        waits || self.calls.any_pending()
    }

    /// Takes the next message out of the transport, and keeps it if it is for the application. Whether it is; `None` if none
    /// waits. Else its call has got it, or nobody.
    fn keep_next(&self) -> Result<Option<bool>, Failure> {
        let mut incoming = Incoming::empty();
        if !self.receive(RecvFlags::empty(), 0, &mut incoming)? {
            return Ok(None);
        }
        let Some(message) = Checked::new(&self.link.transport, &incoming.info) else {
            self.drop_malformed();
            return Ok(Some(false));
        };
        match self.fate(&message) {
            Fate::Received => self.keep(message, incoming),
            fate => {
                self.end_call(message, &mut incoming, fate);
                return Ok(Some(false));
            }
        }
        Ok(Some(true))
    }

    #[cold]
    fn drop_malformed(&self) {
        crate::event!(warn, "a message is malformed and goes");
        self.link.count(|stats| stats.malformed += 1);
    }

    /// What becomes of a message. Whoever waits for a name is woken, if it tells of one.
    #[inline]
    fn fate(&self, message: &Checked<'_, T>) -> Fate {
        let answers = message.header().cookie_reply() & OWN_COOKIES != 0;
        match message.kind() {
            _ if self.link.is_monitor => Fate::Received,
            Kind::Reply if answers => Fate::Answer,
            Kind::Notification => self.fate_of_notification(message, answers),
            _ => Fate::Received,
        }
    }

    #[inline(never)]
    fn fate_of_notification(&self, message: &Checked<'_, T>, answers: bool) -> Fate {
        match message.announces() {
            Some(ItemType::REPLY_TIMEOUT) if answers => Fate::TimedOut,
            Some(ItemType::REPLY_DEAD) if answers => Fate::PeerDied,
            Some(kind) if is_name_change(kind) => {
                self.waiters.wake(Want::Name);
                if self.hears_names.get() { Fate::Received } else { Fate::Unwanted }
            }
            _ => Fate::Received,
        }
    }

    /// Gives the end of a call to the call, and drops what nobody wants. `incoming` is left without descriptors.
    fn end_call(&self, message: Checked<'_, T>, incoming: &mut Incoming<T::Fd>, fate: Fate) {
        let cookie = message.header().cookie_reply();
        let outcome = match fate {
            Fate::Answer => {
                message.keep();
                Outcome::Answer(core::mem::replace(incoming, Incoming::empty()))
            }
            Fate::TimedOut => Outcome::TimedOut,
            Fate::PeerDied => Outcome::PeerDied,
            Fate::Received | Fate::Unwanted => return incoming.fds.clear(),
        };
        incoming.fds.clear();
        match self.calls.taken().iter().find(|slot| slot.awaits(cookie)) {
            Some(slot) => slot.complete(outcome),
            None => {
                crate::event!(debug, "an answer to {:#x} comes too late", cookie);
                self.link.count(|stats| stats.late += 1);
                self.discard(outcome);
            }
        }
    }

    /// Gives an answer's slice and descriptors back.
    pub(super) fn discard(&self, outcome: Outcome<T::Fd>) {
        if let Outcome::Answer(incoming) = outcome {
            drop(Checked::new(&self.link.transport, &incoming.info));
        }
    }
}

/// What becomes of a message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// The application gets it.
    Received,
    /// It answers a call of the connection's.
    Answer,
    /// It ends one that has no answer in time,
    TimedOut,
    /// or whose callee is gone.
    PeerDied,
    /// It is for nobody.
    Unwanted,
}

/// What a look at the front of the transport's queue shows.
pub(super) struct Peeked {
    pub(super) header: Msg,
    malformed: bool,
    name_change: bool,
}

const fn is_name_change(kind: ItemType) -> bool {
    matches!(kind, ItemType::NAME_ADD | ItemType::NAME_REMOVE | ItemType::NAME_CHANGE)
}
