//! The client: the one way for applications to use a bus, whatever lies under it.
//!
//! A [`Connection`] is made by HELLO over a [`Transport`]. Everything it does comes in up to three forms:
//! `try_*` and the plain commands never wait, `async` functions wait on any executor, `*_blocking` functions
//! wait in the transport.
//!
//! A service answers calls and a client makes one:
//!
//! ```no_run
//! use kdbus_core::client::{CALL_TIMEOUT, Connection, ErrorReply, Hello, Message, Transport};
//! use kdbus_core::abi::NameFlags;
//! use kdbus_core::WellKnownName;
//!
//! fn service<T: Transport>(transport: T) -> Result<(), Box<dyn std::error::Error>> {
//!     let bus = Connection::hello(transport, &Hello::new())?;
//!     bus.acquire(WellKnownName::parse("org.example.Mixer")?, NameFlags::empty())?;
//!     let mut level = 0_u8;
//!     bus.serve_blocking(|request| match *request.payload() {
//!         [] => request.reply(&[level]),
//!         [new] => {
//!             level = new;
//!             request.reply(b"")
//!         }
//!         _ => Err(ErrorReply::new(ErrorReply::INVALID, "a level is one byte")),
//!     })?;
//!     Ok(())
//! }
//!
//! fn client<T: Transport>(transport: T) -> Result<u8, Box<dyn std::error::Error>> {
//!     let bus = Connection::hello(transport, &Hello::new())?;
//!     let mixer = WellKnownName::parse("org.example.Mixer")?;
//!     bus.call_blocking(&Message::to_name(mixer).payload(&[7]), CALL_TIMEOUT)?;
//!     let level = bus.call_blocking(&Message::to_name(mixer), CALL_TIMEOUT)?;
//!     Ok(level.payload()[0])
//! }
//! ```

mod block_on;
mod call;
mod connection;
mod deadline;
mod delivery;
mod encode;
mod error;
mod error_reply;
#[cfg(test)]
mod fake;
mod hello;
mod inbox;
mod intake;
mod matches;
mod message;
mod metadata;
mod monitor;
mod names;
mod notification;
mod policy;
mod query;
mod reconnect;
mod recv;
mod registry;
mod room;
mod serve;
mod sleep;
mod slice;
mod topic;
mod transport;
mod waiters;

pub use block_on::block_on;
pub use call::PendingCall;
pub use connection::{Connection, NotLeft, Stats};
pub use deadline::{CALL_TIMEOUT, Deadline};
pub use delivery::{Delivery, Head, Kind, ReceivedPart};
pub use error::{
    AcquireError, Broken, ByebyeError, CallError, HelloError, MatchError, QueryError, RecvError,
    ReleaseError, SendError, UpdateError, WaitError,
};
pub use error_reply::{ERROR_TEXT_MAX, ErrorReply, PAYLOAD_ERROR};
pub use hello::{Bus, Hello, IDENTITY, POOL_SIZE};
pub use matches::{NameRule, RULES_SIZE, Rule};
pub use message::{MESSAGE_SIZE, Message, PAYLOAD_PARTS_MAX, PAYLOAD_RAW, Part, ReplyTo};
pub use metadata::{Capabilities, Metadata};
pub use monitor::Monitor;
pub use names::{Acquired, Standing};
pub use notification::Notification;
pub use policy::Access;
pub use query::{Listing, Peer, PeerInfo};
pub use reconnect::{NotRestored, Restored};
pub use registry::REGISTRY_SIZE;
pub use serve::Request;
pub use sleep::Ticks;
pub use topic::{TOPIC_ELEMENTS_MAX, TOPIC_MAX, Topic, TopicError, TopicPattern};
pub use transport::{Failure, Found, Incoming, MESSAGE_FDS_MAX, Outgoing, Received, Transport, Wait};
pub use waiters::TASKS_MAX;
