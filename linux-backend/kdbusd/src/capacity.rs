//! How many objects of each kind there can be.

use serde::{Deserialize, Serialize};

macro_rules! capacities {
    ($($(#[doc = $doc:literal])* $name:ident: $least:literal..=$most:literal, $default:literal;)*) => {
        /// How many objects of each kind there can be, over all buses. A full table is an error for whoever asks.
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
        pub struct Capacity {
            $($(#[doc = $doc])* #[doc = concat!("Default: ", $default, ".")] pub $name: u32,)*
        }

        impl Default for Capacity {
            fn default() -> Self {
                Self { $($name: $default,)* }
            }
        }

        impl Capacity {
            /// Each by its name in the file, with its bounds.
            pub(crate) fn each(&self) -> impl Iterator<Item = (&'static [&'static str], u32, u32, u32)> {
                [$((&["capacity", stringify!($name)] as &[&str], self.$name, $least, $most),)*].into_iter()
            }
        }
    };
}

capacities! {
    /// Open handles: connections, and control and endpoint files that are open.
    clients: 1..=16384, 192;
    /// Open handles of one user; root and the daemon's own user may have all of them.
    clients_per_user: 1..=16384, 96;
    /// Buses.
    buses: 1..=1024, 16;
    /// Endpoints, the default ones among them.
    endpoints: 1..=4096, 32;
    /// Users with a connection, a bus or a waiting message, custom endpoints, and the bus itself.
    users: 2..=16384, 96;
    /// Connections.
    connections: 1..=16384, 128;
    /// Messages that wait at one connection.
    queue_depth: 1..=65536, 512;
    /// Slices of one pool, free ones among them.
    pool_slices: 2..=131072, 1024;
    /// Users whose messages wait at one connection at a time.
    quota_users: 1..=4096, 16;
    /// Well-known names on all buses.
    names: 1..=1048576, 512;
    /// Owners of names, those that wait for one, and activators.
    name_records: 1..=1048576, 1024;
    /// Matches of all connections.
    matches: 1..=1048576, 1024;
    /// Rules of all matches.
    match_rules: 1..=1048576, 2048;
    /// Bytes of bloom masks and names in rules.
    match_rule_bytes: 64..=1073741824, 262144;
    /// Awaited replies of all connections.
    trackers: 1..=1048576, 1024;
    /// Callers that wait inside their SEND.
    calls: 1..=65536, 256;
    /// Files that waiting messages carry.
    files: 1..=262144, 512;
    /// Names in policies.
    policy_entries: 1..=1048576, 256;
    /// Access records in policies.
    policy_records: 1..=1048576, 1024;
    /// Connections that wait for room at another one.
    watches: 1..=65536, 256;
    /// Lanes, by which clients exchange messages past the daemon; 0 for none. Each costs `memory.lane` and five
    /// pages of memory, and up to seven descriptors of the daemon until its sender has mapped it. With
    /// lanes, each pair of clients costs a bit.
    lanes: 0..=16384, 256;
    /// Lanes into one connection.
    lanes_per_connection: 0..=1024, 8;
    /// Lanes into all connections of one user.
    lanes_per_user: 0..=16384, 128;
    /// Bytes that one message reports of its sender's process.
    metadata_bytes: 0..=65536, 8192;
    /// The same for queries, kept for each connection and bus.
    info_bytes: 0..=65536, 512;
}

impl Capacity {
    /// The engine's share of it, with `internal` handles more for the daemon itself.
    #[must_use]
    pub fn engine(&self, internal: usize) -> kdbus_core::engine::Config {
        kdbus_core::engine::Config {
            page_size: rustix::param::page_size() as u64,
            handles: self.clients as usize + internal,
            buses: self.buses as usize,
            endpoints: self.endpoints as usize,
            users: self.users as usize,
            connections: self.connections as usize,
            queue_depth: self.queue_depth as usize,
            pool_slices: self.pool_slices as usize,
            quota_users: self.quota_users as usize,
            names: self.names as usize,
            name_records: self.name_records as usize,
            matches: self.matches as usize,
            match_rules: self.match_rules as usize,
            match_rule_bytes: self.match_rule_bytes as usize,
            match_buckets: self.matches as usize,
            trackers: self.trackers as usize,
            calls: self.calls as usize,
            files: self.files as usize,
            policy_entries: self.policy_entries as usize,
            policy_records: self.policy_records as usize,
            watches: self.watches as usize,
            metadata_bytes: self.metadata_bytes as usize,
            info_bytes: self.info_bytes as usize,
        }
    }
}
