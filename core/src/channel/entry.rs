//! What a bus and a client tell each other of messages in a shared queue.

use crate::abi::MsgInfo;

/// A queued message, as a client that reads its queue in shared memory needs to see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Place among the queued messages of its connection, below the queue's depth.
    pub slot: u32,
    /// Time of queueing, nanoseconds; strictly increasing within a domain.
    pub key: u64,
    /// Priority of the message.
    pub priority: i64,
    /// Offset of its slice.
    pub offset: u64,
    /// Bytes of its slice.
    pub size: u64,
    /// Whether only the engine can hand it out, because descriptors go with it.
    pub with_files: bool,
}

/// The end of a command that is told in the shared queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This is all of it.
    Whole {
        /// The errno, 0 for success.
        code: u32,
        /// Calls that are open through the bus.
        calls: u32,
        /// The reply, if it was a call that is waited for.
        reply: MsgInfo,
    },
    /// It was told another way, because descriptors go with it.
    Elsewhere,
}

/// What a client did to its queue and pool in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Return {
    /// It received the entry in this slot, published with this key.
    Taken {
        /// Slot of the entry.
        slot: u32,
        /// Key of the entry; another one means that the slot was reused, and nothing happens.
        key: u64,
    },
    /// It gave the slice at this offset back. Offsets that FREE would refuse are ignored.
    Freed(u64),
}
