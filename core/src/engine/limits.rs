//! The limits of the bus that no configuration changes, one constant each.

pub use crate::examine::{ADDRESS_END, FDS_MAX, MEMFDS_MAX, PAYLOAD_VEC_MAX};

/// Bytes of a bus' bloom filter, at least.
pub const BLOOM_MIN: u64 = 8;

/// Bytes of a bus' bloom filter, at most.
pub const BLOOM_MAX: u64 = 4096;

/// Matches of one connection.
pub const MATCHES_PER_CONNECTION: u32 = 4096;

/// Connections of one user, or of one custom endpoint.
pub const CONNECTIONS_PER_USER: u32 = 1024;

/// Buses of one user.
pub const BUSES_PER_USER: u32 = 16;

/// Names in the policy of one activator or policy holder.
pub const POLICY_NAMES_PER_CONNECTION: usize = 1;
