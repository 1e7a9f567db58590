//! Places at which a client stops itself, for the conductor to kill it there.

use crate::record::codes;

codes! {
    /// A place in a client's program: between calls of the library, or [inside](Point::OF_LIBRARY) of it.
    Point {
        /// Connected, pool and queue mapped, nothing used yet.
        Mapped = "after mapping, before use",
        /// With a received slice in hand.
        HoldingSlice = "holding a slice",
        /// SEND has returned, and nothing was received since.
        BetweenSendAndReceive = "between send and receive",
        /// A call was sent and its answer is outstanding.
        InsideCall = "inside a call",
        /// About to go into a call that waits in the daemon. The client does not stop: it is killed on its way.
        InsideSyncCall = "inside a synchronous call",
        /// A call was received and not answered yet.
        Answering = "before answering a call",
        /// The first owner of a name behind which an activator stood: messages have just moved over.
        AfterHandOver = "as new owner, after hand-over",
        /// Several names are held.
        OwningNames = "owning names",
        /// An activator, with messages waiting at it.
        Activator = "as activator, during hand-over",
        /// A monitor with a copy in hand.
        Monitor = "as monitor",
        /// A shared entry was taken out of the queue, and the daemon was not told.
        TakenNotReturned = "between taking and returning",
        /// An entry was returned as taken, and its slice is still held.
        ReturnedNotFreed = "between returning and freeing",
        /// In the library: room in a lane is reserved.
        Reserved = "in a lane, between reserving and writing",
        /// In the library: a message is written and not committed.
        Written = "in a lane, between writing and committing",
        /// In the library: a message is committed.
        Committed = "in a lane, after committing",
        /// In the library: a message is committed, and its receiver sleeps.
        BeforeBell = "in a lane, between committing and ringing",
        /// In the library: a message is out of its lane, whose room is not given back.
        Copied = "in a lane, between examining and releasing",
        /// In the library: a message is received, and its lane's room is not given back.
        Received = "in a lane, between receiving and releasing",
        /// In the library: a call has its word and was not sent.
        CallBegun = "in a call by lane, before sending",
        /// In the library: the word of a call says that it is answered, and the reply was not sent.
        CallAnswered = "in a call by lane, answered and reply not sent",
        /// In the library: the callee has ended the call, and nobody knows.
        CallDropped = "in a call by lane, dropped and not told",
        /// In the library: the caller has ended the call by its time.
        CallExpired = "in a call by lane, expired and not told",
        /// In the library: kdbusd's answer is outstanding.
        InCommand = "inside a command",
        /// In the library: a name is asked for, behind which an activator's messages wait.
        Claiming = "asking for an activator's name",
        /// In the library: an entry was taken out of the queue, and not returned.
        Taken = "in the library, between taking and returning",
        /// In the library: a lane was brought and not mapped, as far as kdbusd knows.
        LaneBrought = "with a lane brought, before telling",
        /// In the library: a lane to somebody was given and not mapped, as far as kdbusd knows.
        LaneGiven = "with a lane given, before telling",
        /// A buffer is lent, and its message was not sent.
        Lending = "with a buffer lent, before sending",
        /// A buffer that somebody else lends is read, and was not given back.
        Borrowing = "with a borrowed buffer in hand",
    }
}

impl Point {
    /// Those that an ordinary client comes by.
    pub const OF_WORKERS: &'static [Self] = &[
        Self::Mapped,
        Self::HoldingSlice,
        Self::BetweenSendAndReceive,
        Self::InsideCall,
        Self::InsideSyncCall,
        Self::Answering,
        Self::AfterHandOver,
        Self::OwningNames,
        Self::Lending,
        Self::Borrowing,
    ];

    /// Those inside of the library. A client comes by the first ones only if it has lanes.
    pub const OF_LIBRARY: &'static [Self] = &[
        Self::Reserved,
        Self::Written,
        Self::Committed,
        Self::BeforeBell,
        Self::Copied,
        Self::Received,
        Self::CallBegun,
        Self::CallAnswered,
        Self::CallDropped,
        Self::CallExpired,
        Self::LaneBrought,
        Self::LaneGiven,
        Self::InCommand,
        Self::Claiming,
        Self::Taken,
    ];

    /// Whether only clients with lanes come by it.
    #[must_use]
    pub const fn is_of_lanes(self) -> bool {
        matches!(
            self,
            Self::Reserved
                | Self::Written
                | Self::Committed
                | Self::BeforeBell
                | Self::Copied
                | Self::Received
                | Self::CallBegun
                | Self::CallAnswered
                | Self::CallDropped
                | Self::CallExpired
                | Self::LaneBrought
                | Self::LaneGiven
        )
    }

    /// What a client that ends here leaves of the message that it was just sending, which goes by lane: `true` if it is
    /// sent, `false` if it is not. `None` if that is not to be known.
    #[must_use]
    pub const fn commits(self) -> Option<bool> {
        match self {
            Self::Reserved | Self::Written | Self::CallBegun | Self::CallAnswered => Some(false),
            Self::Committed | Self::BeforeBell => Some(true),
            _ => None,
        }
    }

    /// How often clients may pass it before one stops, so that most come there soon.
    #[must_use]
    pub const fn passes(self) -> u32 {
        match self {
            Self::Mapped | Self::CallDropped | Self::Claiming => 1,
            Self::AfterHandOver | Self::OwningNames | Self::LaneGiven | Self::CallExpired => 3,
            Self::CallAnswered | Self::CallBegun | Self::LaneBrought | Self::BeforeBell => 8,
            Self::Lending => 8,
            Self::Borrowing => 3,
            Self::Reserved | Self::Written | Self::Committed | Self::Copied | Self::Received => 50,
            Self::Activator => 20,
            Self::Monitor => 2000,
            Self::InsideCall | Self::InsideSyncCall | Self::Answering => 50,
            Self::TakenNotReturned | Self::ReturnedNotFreed => 200,
            _ => 300,
        }
    }

    /// Where it lies in the library, if it does.
    #[cfg(feature = "points")]
    #[must_use]
    pub const fn place(self) -> Option<kdbus_linux::local::point::Point> {
        use kdbus_linux::local::point::Point as Place;
        Some(match self {
            Self::Reserved => Place::Reserved,
            Self::Written => Place::Written,
            Self::Committed => Place::Committed,
            Self::BeforeBell => Place::BeforeBell,
            Self::Copied => Place::Copied,
            Self::Received => Place::Received,
            Self::CallBegun => Place::CallBegun,
            Self::CallAnswered => Place::CallAnswered,
            Self::CallDropped => Place::CallDropped,
            Self::CallExpired => Place::CallExpired,
            Self::InCommand | Self::Claiming => Place::CommandSent,
            Self::Taken => Place::Taken,
            Self::LaneBrought => Place::LaneBrought,
            Self::LaneGiven => Place::LaneGiven,
            _ => return None,
        })
    }

    /// Whether the client stops there by itself.
    #[must_use]
    pub const fn stops(self) -> bool {
        !matches!(self, Self::InsideSyncCall)
    }
}
