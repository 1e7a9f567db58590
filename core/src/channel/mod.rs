//! What two processes share in memory, as safe code over slices of atomic words.
//!
//! - [`Words`]: the one way to shared words, a hook for simulators and model checkers.
//! - [`InboxWriter`] and [`InboxReader`]: the queue in which a bus shows messages to a client, and the way back.
//! - [`Ledger`]: buffers that one process lends to another, and that come back.
//! - [`LaneWriter`], [`LaneReader`], [`LaneGate`]: messages from one client to another past the bus, and what
//!   the bus does to let them and to stop them. [`CallWord`], [`CallRecord`]: how a call ends, once.
//! - [`terms`]: what the bus says of a lane. [`sendable`], [`settle`]: what goes by one, and what becomes of it.
//! - [`Order`]: merges what several lanes brought by time, into one queue.
//!
//! The other side may write anything at any time. Each word is loaded once, the copy is checked, and the
//! copy is used; no index, length or count out of shared memory is trusted.

mod call;
mod entry;
mod gate;
mod inbox;
mod inbox_reader;
mod lane;
mod loan;
mod message;
mod order;
mod record;
pub mod terms;
mod verdict;
mod words;
mod writer;

pub use call::{CALL_MAX, CALL_WORDS, CALLS_MAX, CallName, CallState, CallWord};
pub use entry::{Answer, Entry, Return};
pub use gate::{LaneGate, LaneTraffic};
pub use inbox::{DEPTH_MAX, InboxLayout, InboxWriter, LayoutError, RETURNS_MAX};
pub use inbox_reader::{AttachError, InboxReader, ReturnsFull};
pub use lane::{LaneHead, LaneLayout, LaneReader, NotByLane, RING_MAX, RING_MIN, Violation};
pub use loan::{BUFFERS_MAX, Ledger, LoanRecord, RETURN_WORDS, SlabRecord, give_back};
pub use message::{CALL_ENDED_SIZE, Place, Sendable, Settled, call_ended, sendable, settle};
pub use order::{Arrived, Batch, Order};
pub use record::{CallRecord, RECORD_WORDS};
pub use verdict::Verdict;
pub use words::Words;
pub use writer::{LaneWriter, Reserved};

#[cfg(all(test, target_has_atomic = "64"))]
mod lane_tests;
#[cfg(all(test, target_has_atomic = "64"))]
mod tests;
