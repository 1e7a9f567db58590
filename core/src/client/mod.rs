//! The client: the one way for applications to use a bus, whatever lies under it.

mod transport;

pub use transport::{Failure, Incoming, MESSAGE_FDS_MAX, Outgoing, Received, Transport};
