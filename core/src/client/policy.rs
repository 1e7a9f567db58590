//! Access rules in the words of those who write them.

use crate::abi::PolicyAccess;

/// What an access rule grants. Each grants what stands before it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[repr(u64)]
pub enum Access {
    /// The name can be seen on custom endpoints.
    See = 0,
    /// Messages can be sent to its owner.
    Talk = 1,
    /// The name can be owned.
    Own = 2,
}

impl PolicyAccess {
    /// `kind` of a rule for one user.
    pub const USER: u64 = 1;
    /// `kind` of a rule for one group.
    pub const GROUP: u64 = 2;
    /// `kind` of a rule for everybody.
    pub const WORLD: u64 = 3;

    /// Grants `access` to the user with this effective uid.
    #[must_use]
    pub const fn user(uid: u32, access: Access) -> Self {
        Self { kind: Self::USER, access: access as u64, id: uid as u64 }
    }

    /// Grants `access` to whoever is in this group.
    #[must_use]
    pub const fn group(gid: u32, access: Access) -> Self {
        Self { kind: Self::GROUP, access: access as u64, id: gid as u64 }
    }

    /// Grants `access` to everybody.
    #[must_use]
    pub const fn world(access: Access) -> Self {
        Self { kind: Self::WORLD, access: access as u64, id: 0 }
    }
}
