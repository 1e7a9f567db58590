//! The bus of kdbusd, in user space on any stock kernel.
//!
//! [`LocalTransport`] is what clients use. Commands go to kdbusd as packets over a Unix socket ([`wire`],
//! [`socket`]); messages are received out of shared memory ([`map`], [`kdbus_core::channel`]) without a system
//! call. What kdbusd itself builds on stands here too. `docs/local-protocol.md` describes both sides.

mod arena;
mod bell;
mod block;
mod calls;
mod cancel;
mod copy;
mod detour;
mod error;
mod handle;
mod held;
mod hot;
mod in_lanes;
mod incoming;
mod inward;
mod lane;
mod loan;
pub mod map;
mod memfd;
mod options;
mod outward;
mod owed;
pub mod pairs;
mod past_queue;
mod place;
#[cfg(feature = "points")]
pub mod point;
#[cfg(not(feature = "points"))]
mod point;
mod posted;
pub mod raw;
mod receive;
mod room;
pub mod socket;
mod spin;
mod staging;
pub mod stats;
mod sync;
mod transport;
pub mod wire;

pub use error::ConnectError;
#[cfg(feature = "std")]
pub use error::io_error;
pub use handle::{Answer, Attachments, Handle};
pub use lane::{InLane, OutLane};
pub use loan::{Borrower, Buffer, Lender, Loan, LoanError, RECORD as LOAN_RECORD};
pub use memfd::{PayloadFile, SealedMemfd};
pub use options::Options;
pub use place::{Environment, NodePath, PATH_MAX, PlaceError};
pub use spin::Waits;
pub use transport::LocalTransport;

/// Part of whatever belongs to lanes. Without the feature it has no value, so there is none of them, and the compiler
/// leaves out what deals with them.
#[derive(Clone, Copy, Debug)]
struct Gate {
    #[cfg(not(feature = "lanes"))]
    _never: core::convert::Infallible,
}

/// A gate, if there are any.
const fn gate() -> Option<Gate> {
    #[cfg(feature = "lanes")]
    return Some(Gate {});
    #[cfg(not(feature = "lanes"))]
    return None;
}

#[cfg(test)]
mod testbed;
#[cfg(test)]
mod tests;
