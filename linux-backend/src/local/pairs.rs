//! Which way messages take from one connection to another: the argument and the answer of
//! [`Kind::Pairs`](super::wire::Kind).

use core::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Pairs that one packet asks about at most.
pub const PAIRS_MAX: usize = 16;

/// One sender, and how its messages reach the receiver that the packet names.
///
/// What a lane has carried is by the words of its two ends, which kdbusd passes on as they stand: a client that lies
/// there misleads whoever reads this, and nobody else.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Pair {
    /// Id of the sender: the question.
    pub sender: u64,
    /// Number of a [`Route`]: the answer, and all that follows.
    pub route: u64,
    /// Bytes that their lane holds, heads of messages among them; 0 if they have none.
    pub lane: u64,
    /// Messages that were sent by it, as the sender says.
    pub messages: u64,
    /// Bytes of them in the lane, heads and padding among them, as the sender says.
    pub sent: u64,
    /// Bytes of those that were received and whose room the lane has back, as the receiver says; never more than were sent.
    pub received: u64,
}

const _: () = assert!(size_of::<Pair>() == 48);

/// Which way messages from one connection to another take, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
#[non_exhaustive]
pub enum Route {
    /// By an open lane.
    Lane = 1,
    /// Through kdbusd: the lane was given and its sender has not mapped it yet.
    Unmapped = 2,
    /// Through kdbusd: the lane is closed, and its sender has not asked for it again.
    Closed = 3,
    /// Through kdbusd: nothing is in the way, and the sender has not asked. It does once it has sent some messages.
    NotAsked = 4,
    /// Through kdbusd: nothing is in the way, but the sender brought no lanes, and without any it asks for none.
    SenderHasNone = 5,
    /// Through kdbusd: it has no lanes, by its configuration.
    Off = 6,
    /// Through kdbusd: one of the two is an activator, a monitor or a policy holder.
    Special = 7,
    /// Through kdbusd: one of the two is on a custom endpoint.
    Endpoint = 8,
    /// Through kdbusd: a monitor watches the bus.
    Monitored = 9,
    /// Nothing goes: the sender may not talk to the receiver.
    Denied = 10,
    /// Through kdbusd: the sender shows credentials that are not its own.
    Faked = 11,
    /// Through kdbusd: the two have other numbers for users or processes, or other clocks.
    Namespaces = 12,
    /// Through kdbusd: the receiver asks for metadata that is collected for each message.
    Metadata = 13,
    /// Through kdbusd, for messages to a name: an activator stands behind one that the receiver owns.
    Activator = 14,
    /// Through kdbusd: what each message shows of its sender is too long for a lane.
    Terms = 15,
    /// Through kdbusd: the sender broke a rule of its lane to the receiver, and gets no other one.
    BrokeRules = 16,
    /// Through kdbusd: other senders have all lanes that the receiver brought.
    AllTaken = 17,
    /// Through kdbusd: the receiver brought no lanes.
    NoneBrought = 18,
    /// Through kdbusd: the receiver could bring no more, because `capacity.lanes` were in use.
    BudgetOfAll = 19,
    /// Through kdbusd: the receiver could bring no more, because its user had `capacity.lanes-per-user`.
    BudgetOfUser = 20,
    /// Through kdbusd: the receiver could bring no more than `capacity.lanes-per-connection`.
    BudgetOfConnection = 21,
    /// Nothing goes: one of the two has left.
    Gone = 22,
    /// Through kdbusd: the sender had no place for another lane when it asked for one last.
    SenderFull = 23,
}

impl Route {
    /// All of them.
    pub const ALL: [Self; 23] = [
        Self::Lane,
        Self::Unmapped,
        Self::Closed,
        Self::NotAsked,
        Self::SenderHasNone,
        Self::Off,
        Self::Special,
        Self::Endpoint,
        Self::Monitored,
        Self::Denied,
        Self::Faked,
        Self::Namespaces,
        Self::Metadata,
        Self::Activator,
        Self::Terms,
        Self::BrokeRules,
        Self::AllTaken,
        Self::NoneBrought,
        Self::BudgetOfAll,
        Self::BudgetOfUser,
        Self::BudgetOfConnection,
        Self::Gone,
        Self::SenderFull,
    ];

    /// The route with this number. `None` for 0, with which kdbusd answers about connections that one may not look at.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|route| *route as u64 == number)
    }

    /// A word for programs, which stays as it is.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Lane => "lane",
            Self::Unmapped => "unmapped",
            Self::Closed => "closed",
            Self::NotAsked => "not-asked",
            Self::SenderHasNone => "sender-has-none",
            Self::Off => "off",
            Self::Special => "special",
            Self::Endpoint => "endpoint",
            Self::Monitored => "monitored",
            Self::Denied => "denied",
            Self::Faked => "faked",
            Self::Namespaces => "namespaces",
            Self::Metadata => "metadata",
            Self::Activator => "activator",
            Self::Terms => "terms",
            Self::BrokeRules => "broke-rules",
            Self::AllTaken => "all-taken",
            Self::NoneBrought => "none-brought",
            Self::BudgetOfAll => "budget",
            Self::BudgetOfUser => "user-budget",
            Self::BudgetOfConnection => "connection-budget",
            Self::Gone => "gone",
            Self::SenderFull => "sender-full",
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lane => "an open lane",
            Self::Unmapped => "the sender has not mapped its lane yet",
            Self::Closed => "the lane was closed, and the sender has not asked for it again",
            Self::NotAsked => "the sender has not asked for a lane yet",
            Self::SenderHasNone => "the sender has no lanes, and asks for none",
            Self::Off => "kdbusd has no lanes: capacity.lanes is 0",
            Self::Special => "one of the two is an activator, a monitor or a policy holder",
            Self::Endpoint => "one of the two is on a custom endpoint",
            Self::Monitored => "a monitor watches the bus",
            Self::Denied => "the sender may not talk to the receiver",
            Self::Faked => "the sender shows credentials that are not its own",
            Self::Namespaces => "the two have other numbers for users or processes, or other clocks",
            Self::Metadata => "the receiver asks for metadata that is collected for each message",
            Self::Activator => "an activator stands behind a name of the receiver",
            Self::Terms => "what each message shows of its sender is too long",
            Self::BrokeRules => "the sender broke a rule of its lane",
            Self::AllTaken => "the receiver's lanes are all taken",
            Self::NoneBrought => "the receiver brought no lanes",
            Self::BudgetOfAll => "the receiver got no more lanes: capacity.lanes were in use",
            Self::BudgetOfUser => "the receiver got no more lanes: its user had capacity.lanes-per-user",
            Self::BudgetOfConnection => "the receiver got no more lanes than capacity.lanes-per-connection",
            Self::Gone => "one of the two has left",
            Self::SenderFull => "the sender's places for lanes are all in use",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_route_has_a_number_and_a_word_of_its_own() {
        for (at, route) in Route::ALL.into_iter().enumerate() {
            assert_eq!(route as usize, at + 1);
            assert_eq!(Route::from_number(route as u64), Some(route));
            assert!(Route::ALL[..at].iter().all(|other| other.word() != route.word()));
        }
        assert_eq!((Route::from_number(0), Route::from_number(u64::MAX)), (None, None));
    }
}
