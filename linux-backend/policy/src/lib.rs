//! Policy files of `kdbusd`: who may own, talk to and see which names of a bus.
//!
//! ```
//! let text = r#"
//!     [[name]]
//!     name = "org.example.Mixer"
//!     own  = ["user:root"]
//!     talk = ["group:0", "user:1000"]
//!     see  = ["world"]
//! "#;
//! let policy = kdbus_policy::Policy::parse(text).unwrap();
//! assert_eq!(policy.names().len(), 1);
//! ```
//!
//! A right contains those below it: who may own a name may talk to its owner, and who may talk may see. Names that stand
//! in no policy follow the rules of kdbus: their owner's user and the owner of the bus reach them, and only
//! the owner of the bus may own them. `docs/policy.md` says it all.

mod error;
mod file;
mod policy;
mod who;

pub use error::{PolicyError, Problem};
pub use policy::{Level, NameRules, Policy, Rule};
pub use who::{Subject, Who};
