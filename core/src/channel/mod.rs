//! What two processes share in memory, as safe code over slices of atomic words.
//!
//! - [`Words`]: the one way to shared words, a hook for simulators and model checkers.
//! - [`InboxWriter`] and [`InboxReader`]: the queue in which a bus shows messages to a client, and the way back.
//! - [`Ledger`]: buffers that one process lends to another, and that come back.
//! - [`Order`]: merges what several lanes brought by time, into one queue.
//!
//! The other side may write anything at any time. Each word is loaded once, the copy is checked, and the
//! copy is used; no index, length or count out of shared memory is trusted.

mod entry;
mod inbox;
mod loan;
mod order;
mod words;

pub use entry::{Entry, Return};
pub use inbox::{
    AttachError, DEPTH_MAX, InboxLayout, InboxReader, InboxWriter, LayoutError, RETURNS_MAX, ReturnsFull,
};
pub use loan::{BUFFERS_MAX, Ledger, LoanRecord, RETURN_WORDS, SlabRecord, give_back};
pub use order::{Arrived, Batch, Order};
pub use words::Words;

#[cfg(all(test, target_has_atomic = "64"))]
mod tests;
