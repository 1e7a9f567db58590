//! What a client writes down of each thing it does.
//!
//! Each record goes to the file by one `write` of its own, before or after what it tells of, so that it is
//! there however the client ends: what a process has written stays when the process is killed.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Who sent a message: the same for its whole way, and different for any two messages of a run.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    FromBytes,
    IntoBytes,
    Immutable,
    KnownLayout,
)]
#[repr(C)]
pub struct MessageId {
    /// Number of the sending client.
    pub client: u32,
    /// How many processes there had been under this number before.
    pub incarnation: u32,
    /// Number of the message among those of its process, from 1. 0 is no message.
    pub serial: u64,
}

/// One thing that a client did or saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Record {
    /// A [`Kind`].
    pub kind: u32,
    /// A [`Sort`], [`How`], [`End`] or [`Point`](crate::point::Point), depending on the kind.
    pub detail: u32,
    /// 0, or the errno with which it failed.
    pub result: u32,
    /// Number of a name or topic, from 1; 0 for none.
    pub name: u32,
    /// When it began, on the monotonic clock.
    pub began_at: u64,
    /// When it was over.
    pub at: u64,
    /// Id of the client's connection.
    pub own: u64,
    /// Id of the other end; 0 for a name alone or everybody.
    pub peer: u64,
    /// The message.
    pub id: MessageId,
    /// The call that it answers.
    pub answers: MessageId,
    /// Its cookie.
    pub cookie: u64,
    /// Its priority.
    pub priority: i64,
    /// Its sequence number, if it was told; of one that is sent, the bytes that it lends.
    pub sequence: u64,
    /// Bytes of its payload, messages lost, or lanes of a connection.
    pub bytes: u64,
    /// When the call ends by time.
    pub deadline: u64,
}

const _: () = assert!(size_of::<Record>() == 120);

macro_rules! codes {
    ($(#[doc = $doc:literal])* $name:ident { $($(#[doc = $case_doc:literal])* $case:ident = $text:literal,)* }) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum $name { $($(#[doc = $case_doc])* $case,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$case,)*];

            /// The one with this number, if there is one.
            #[must_use]
            pub fn from_code(code: u32) -> Option<Self> {
                Self::ALL.get(code as usize).copied()
            }

            /// Its number in a record.
            #[must_use]
            pub const fn code(self) -> u32 {
                self as u32
            }

            /// What people call it.
            #[must_use]
            pub const fn text(self) -> &'static str {
                match self { $(Self::$case => $text,)* }
            }
        }
    };
}
pub(crate) use codes;

codes! {
    /// What a record tells of.
    Kind {
        /// A connection was made, or goes on into this round.
        Hello = "connected",
        /// A message is about to be sent.
        Sending = "sending",
        /// SEND has returned. For calls that wait, with how they ended.
        Sent = "sent",
        /// A message was received.
        Received = "received",
        /// A message is about to be dropped unread.
        Dropping = "dropping",
        /// A message was dropped unread. The result is 1 if the library had to answer a call for that and could not.
        Dropped = "dropped",
        /// A call that does not wait has ended.
        CallEnded = "call ended",
        /// A name is about to be asked for; from here on it may be the client's.
        Acquiring = "acquiring",
        /// The name was not given, or was given up: it is not the client's.
        NotOwner = "not the owner of",
        /// The name was given, or a place in its queue.
        Acquired = "has or waits for",
        /// A topic is subscribed to.
        Matched = "subscribed to",
        /// The subscription is about to end.
        Unmatching = "unsubscribing from",
        /// Losses were reported.
        Lost = "lost",
        /// BYEBYE succeeded.
        Left = "left",
        /// The connection is about to be given up.
        Ending = "giving up",
        /// A scripted point was reached.
        At = "at",
        /// Nothing more is begun in this round.
        Quiet = "quiet",
        /// Nothing waits any more and nothing is held.
        Drained = "drained",
        /// The client saw what must not be.
        Trouble = "saw trouble with",
        /// A buffer that is lent by a message was read, and holds what was sent.
        Borrowed = "borrowed what is lent by",
    }
}

codes! {
    /// How a message was sent.
    Sort {
        /// To an id or a name.
        Plain = "message",
        /// Waited for room first.
        WhenRoom = "message, when there is room",
        /// A call whose end comes as a message.
        Call = "call",
        /// A call that waits inside SEND.
        SyncCall = "synchronous call",
        /// A call that is awaited in the client.
        AwaitedCall = "awaited call",
        /// An answer.
        Reply = "reply",
        /// A signal to everybody.
        Broadcast = "broadcast",
        /// A signal to one connection.
        Signal = "signal",
    }
}

codes! {
    /// How a message was received.
    How {
        /// As the oldest one.
        Oldest = "in order",
        /// As the most urgent one.
        Urgent = "by priority",
        /// Straight out of the shared queue, in no order.
        Slot = "out of its slot",
        /// As the answer to a call, past the queue.
        Answer = "as the answer",
        /// As a monitor's copy.
        Copy = "as a copy",
    }
}

codes! {
    /// How a call ended.
    End {
        /// It was not sent.
        NotSent = "not sent",
        /// By a reply.
        Reply = "reply",
        /// By its deadline.
        TimedOut = "time-out",
        /// By the death of the callee, or because it dropped the call.
        Dead = "death",
        /// By a signal to the caller's process.
        Interrupted = "interrupted",
        /// Its caller stopped waiting for want of room.
        Abandoned = "abandoned",
    }
}

impl Sort {
    /// Whether it asks for a reply.
    #[must_use]
    pub const fn is_call(self) -> bool {
        matches!(self, Self::Call | Self::SyncCall | Self::AwaitedCall)
    }

    /// Whether the bus may drop it in silence: it is a signal.
    #[must_use]
    pub const fn is_signal(self) -> bool {
        matches!(self, Self::Broadcast | Self::Signal)
    }
}

/// A client's own history, open for more.
#[derive(Debug)]
pub struct Log {
    file: File,
}

impl Log {
    /// A new file at `path`.
    ///
    /// # Errors
    ///
    /// What `open` reports.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self { file: File::options().append(true).create(true).open(path)? })
    }

    /// The same file once more.
    ///
    /// # Errors
    ///
    /// If there is no descriptor left.
    pub fn try_clone(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Adds one record, by one `write`.
    ///
    /// # Errors
    ///
    /// What `write` reports.
    pub fn add(&mut self, record: &Record) -> io::Result<()> {
        self.file.write_all(record.as_bytes())
    }
}

/// Time on the clock of all records, in nanoseconds.
#[must_use]
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
