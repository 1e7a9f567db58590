//! Places at which a client stops itself, for the conductor to kill it there.

use crate::record::codes;

codes! {
    /// A place in a client's program. All of them lie between calls of the library: nothing in it knows of them.
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
    ];

    /// Whether the client stops there by itself.
    #[must_use]
    pub const fn stops(self) -> bool {
        !matches!(self, Self::InsideSyncCall)
    }
}
