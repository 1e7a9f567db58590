//! The limits of the bus that no configuration changes, one constant each.

/// Descriptors in one `FDS` item.
pub const FDS_MAX: usize = 16;

/// `PAYLOAD_MEMFD` items in one message.
pub const MEMFDS_MAX: usize = 16;

/// Bytes of one `PAYLOAD_VEC` item.
pub const PAYLOAD_VEC_MAX: u64 = 2 << 20;

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

/// Addresses of a sender's memory end here, on every architecture.
pub const ADDRESS_END: u64 = 1 << 56;
