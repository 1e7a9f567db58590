//! Accounting users: whom connections, buses and waiting messages count for.

use crate::abi::Errno;

use super::Domain;
use super::limits::{BUSES_PER_USER, CONNECTIONS_PER_USER};
use super::table::{Blank, UserIx};

/// Who a user is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Identity {
    /// The bus itself.
    Kernel,
    /// Everybody with this uid.
    Uid(u32),
    /// Everybody on one custom endpoint.
    Anonymous,
}

/// One accounting user. It is kept for as long as anything counts for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct User {
    pub(super) identity: Identity,
    connections: u32,
    buses: u32,
    endpoints: u32,
    /// Messages that wait somewhere and count for it.
    messages: u32,
}

/// What counts for a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counted {
    Connection,
    Bus,
    Endpoint,
    Message,
}

impl Blank for User {
    const BLANK: Self = Self::new(Identity::Kernel);
}

impl User {
    pub(super) const fn new(identity: Identity) -> Self {
        Self { identity, connections: 0, buses: 0, endpoints: 0, messages: 0 }
    }
}

impl Domain<'_> {
    /// The user with that uid, in `O(users)`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if it is new and the table is full.
    pub(super) fn user_of(&mut self, uid: u32) -> Result<UserIx, Errno> {
        let wanted = Identity::Uid(uid);
        if let Some((place, _)) = self.users.iter().find(|(_, user)| user.identity == wanted) {
            return Ok(place);
        }
        self.users.insert(User::new(wanted)).ok_or(Errno::ENOMEM)
    }

    /// Counts one more for a user.
    ///
    /// # Errors
    ///
    /// `EMFILE` beyond the limit of its kind. The user is forgotten if nothing else counts for it.
    pub(super) fn count(&mut self, place: UserIx, what: Counted) -> Result<(), Errno> {
        let user = &mut self.users[place];
        let (count, limit) = match what {
            Counted::Connection => (&mut user.connections, CONNECTIONS_PER_USER),
            Counted::Bus => (&mut user.buses, BUSES_PER_USER),
            Counted::Endpoint => (&mut user.endpoints, u32::MAX),
            Counted::Message => (&mut user.messages, u32::MAX),
        };
        if *count >= limit {
            return Err(Errno::EMFILE);
        }
        *count += 1;
        Ok(())
    }

    /// Counts one less for a user, and forgets it with the last one.
    #[inline]
    pub(super) fn discount(&mut self, place: UserIx, what: Counted) {
        let user = &mut self.users[place];
        let count = match what {
            Counted::Connection => &mut user.connections,
            Counted::Bus => &mut user.buses,
            Counted::Endpoint => &mut user.endpoints,
            Counted::Message => &mut user.messages,
        };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.forget_idle(place);
        }
    }

    /// Forgets a user for whom nothing counts.
    #[inline]
    pub(super) fn forget_idle(&mut self, place: UserIx) {
        let user = &self.users[place];
        let idle = user.connections | user.buses | user.endpoints | user.messages == 0;
        if idle && user.identity != Identity::Kernel {
            self.users.remove(place);
        }
    }
}
