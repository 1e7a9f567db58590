//! How much of everything a domain holds.

use core::fmt;

/// Every capacity of a domain. All memory is taken at the start; a full table is an error of the command that
/// needed more of it.
///
/// The sizes in brackets are what one more costs on a 64-bit machine, roughly. The default suits a small
/// board: 64 connections on one or two buses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Pool sizes are multiples of this many bytes; the page size of the clients' machine.
    pub page_size: u64,
    /// Open control and endpoint files, connections among them [480 B].
    pub handles: usize,
    /// Buses [750 B and `info_bytes`].
    pub buses: usize,
    /// Endpoints, the default one of each bus among them [112 B].
    pub endpoints: usize,
    /// Accounting users: one for each uid with a connection, bus or waiting message, one for each custom
    /// endpoint, and the bus itself [32 B].
    pub users: usize,
    /// Connections [1.1 KiB, `info_bytes`, and the three capacities below].
    pub connections: usize,
    /// Messages that wait at one connection [120 B for each connection].
    pub queue_depth: usize,
    /// Slices of one pool, free ones among them [64 B for each connection].
    pub pool_slices: usize,
    /// Users whose messages wait at one connection at a time, the bus itself not counted
    /// [48 B for each connection].
    pub quota_users: usize,
    /// Well-known names on all buses [304 B].
    pub names: usize,
    /// Claims to names: owners, those that wait and activators [56 B].
    pub name_records: usize,
    /// Matches of all connections [48 B].
    pub matches: usize,
    /// Rules of all matches [56 B].
    pub match_rules: usize,
    /// Bytes of bloom masks and names in rules, in blocks of 64 [76 B for each 64].
    pub match_rule_bytes: usize,
    /// Buckets that matches are found by; best about as many as there are matches [16 B].
    pub match_buckets: usize,
    /// Awaited replies of all connections [168 B].
    pub trackers: usize,
    /// Callers that wait inside their SEND, and ends of such calls that were not told yet [96 B].
    pub calls: usize,
    /// Files that messages carry, each counted once however many copies wait [28 B].
    pub files: usize,
    /// Names in policies. Replacing a policy holds both for a moment [312 B].
    pub policy_entries: usize,
    /// Access records in policies [24 B].
    pub policy_records: usize,
    /// Connections that wait for room at another one [32 B].
    pub watches: usize,
    /// Bytes for what one message reports of its sender beyond what is pinned: command line, executable,
    /// control group and the like. What does not fit is left out.
    pub metadata_bytes: usize,
    /// The same for queries, kept for each connection and bus. 0 leaves these items out.
    pub info_bytes: usize,
}

impl Config {
    /// The capacities of a small board.
    pub const SMALL: Self = Self {
        page_size: 4096,
        handles: 96,
        buses: 4,
        endpoints: 12,
        users: 40,
        connections: 64,
        queue_depth: 1024,
        pool_slices: 1024,
        quota_users: 16,
        names: 128,
        name_records: 256,
        matches: 512,
        match_rules: 1024,
        match_rule_bytes: 64 * 1024,
        match_buckets: 512,
        trackers: 512,
        calls: 128,
        files: 512,
        policy_entries: 128,
        policy_records: 512,
        watches: 128,
        metadata_bytes: 8192,
        info_bytes: 512,
    };

    /// Whether these capacities make a domain.
    ///
    /// # Errors
    ///
    /// [`ConfigError`], for the first one that does not.
    pub const fn check(&self) -> Result<(), ConfigError> {
        if self.page_size == 0 || !self.page_size.is_multiple_of(8) {
            return Err(ConfigError::PageSize);
        }
        let needed = [
            (self.handles, "handles"),
            (self.buses, "buses"),
            (self.endpoints, "endpoints"),
            (self.users, "users"),
            (self.connections, "connections"),
            (self.queue_depth, "queue_depth"),
            (self.pool_slices, "pool_slices"),
            (self.quota_users, "quota_users"),
            (self.match_buckets, "match_buckets"),
        ];
        let mut at = 0;
        while at < needed.len() {
            if needed[at].0 == 0 {
                return Err(ConfigError::Zero(needed[at].1));
            }
            at += 1;
        }
        Ok(())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::SMALL
    }
}

/// Why a domain cannot be made of a configuration and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConfigError {
    /// The page size is not a multiple of 8.
    PageSize,
    /// This capacity is zero.
    Zero(&'static str),
    /// The memory for this capacity is smaller than the configuration says.
    Storage(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PageSize => f.write_str("page size is not a multiple of 8"),
            Self::Zero(what) => write!(f, "{what} is zero"),
            Self::Storage(what) => write!(f, "memory for {what} is too small"),
        }
    }
}

impl core::error::Error for ConfigError {}
