//! All memory of a domain.

use crate::queue::Node;
use crate::tree::Root;

use super::bus::Bus;
use super::call::Call;
use super::connection::Connection;
use super::deliver::Message;
use super::domain::Handle;
use super::effect::Pending;
use super::endpoint::Endpoint;
use super::files::{FileRecord, Files};
use super::lanes::BesideLanes;
use super::matches::{Bucket, Match, Matches};
use super::metadata::Gathered;
use super::names::{ClaimedNames, NameArena, NameEntry, NameTable, OwnerRecord};
use super::policy::{Policy, PolicyEntry, PolicyRecord};
use super::pool::SliceRecord;
use super::quota::UserRecord;
use super::reply::{OpenCalls, ReplyArena, ReplyTable, Tracker};
use super::rules::{BLOCK_BYTES, Block, Rule};
use super::table::{Record, Table, UserIx};
use super::user::{Identity, User};
use super::watch::Watch;
use super::{Config, ConfigError, Domain};

/// Gives out memory that is never taken back: a leaked block at start-up, or pieces of a `static`.
pub trait Allocate {
    /// `len` new elements, each the default of its type.
    fn slice<T: Default + 'static>(&mut self, len: usize) -> &'static mut [T];
}

/// All memory of one domain, in pieces.
///
/// Made by [`allocate`](Self::allocate) at start-up, or by
/// [`StaticStorage::storage`](super::StaticStorage::storage) in firmware.
#[derive(Debug)]
pub struct Storage<'s> {
    pub(super) handles: &'s mut [Record<Handle>],
    pub(super) buses: &'s mut [Record<Bus>],
    pub(super) endpoints: &'s mut [Record<Endpoint>],
    pub(super) users: &'s mut [Record<User>],
    pub(super) connections: &'s mut [Record<Connection>],
    pub(super) queue_nodes: &'s mut [Node<Message>],
    pub(super) slice_records: &'s mut [SliceRecord],
    pub(super) user_records: &'s mut [UserRecord],
    pub(super) names: &'s mut [NameEntry],
    pub(super) name_records: &'s mut [OwnerRecord],
    pub(super) claims: &'s mut [ClaimedNames],
    pub(super) name_arena: &'s mut [NameArena],
    pub(super) matches: &'s mut [Record<Match>],
    pub(super) rules: &'s mut [Record<Rule>],
    pub(super) blocks: &'s mut [Record<Block>],
    pub(super) buckets: &'s mut [Bucket],
    pub(super) trackers: &'s mut [Tracker],
    pub(super) open_calls: &'s mut [OpenCalls],
    pub(super) reply_arena: &'s mut [ReplyArena],
    pub(super) calls: &'s mut [Record<Call>],
    pub(super) files: &'s mut [Record<FileRecord>],
    pub(super) policy_entries: &'s mut [Record<PolicyEntry>],
    pub(super) policy_records: &'s mut [Record<PolicyRecord>],
    pub(super) watches: &'s mut [Record<Watch>],
    pub(super) metadata: &'s mut [u8],
    pub(super) info: &'s mut [u8],
}

impl Storage<'static> {
    /// Takes the memory that a configuration asks for, in one piece for each table.
    pub fn allocate(config: &Config, memory: &mut impl Allocate) -> Self {
        let each = config.connections;
        Self {
            handles: memory.slice(config.handles),
            buses: memory.slice(config.buses),
            endpoints: memory.slice(config.endpoints),
            users: memory.slice(config.users),
            connections: memory.slice(each),
            queue_nodes: memory.slice(each.saturating_mul(config.queue_depth)),
            slice_records: memory.slice(each.saturating_mul(config.pool_slices)),
            user_records: memory.slice(each.saturating_mul(config.quota_users)),
            names: memory.slice(config.names),
            name_records: memory.slice(config.name_records),
            claims: memory.slice(each),
            name_arena: memory.slice(1),
            matches: memory.slice(config.matches),
            rules: memory.slice(config.match_rules),
            blocks: memory.slice(config.match_rule_bytes.div_ceil(BLOCK_BYTES)),
            buckets: memory.slice(config.match_buckets),
            trackers: memory.slice(config.trackers),
            open_calls: memory.slice(each),
            reply_arena: memory.slice(1),
            calls: memory.slice(config.calls),
            files: memory.slice(config.files),
            policy_entries: memory.slice(config.policy_entries),
            policy_records: memory.slice(config.policy_records),
            watches: memory.slice(config.watches),
            metadata: memory.slice(config.metadata_bytes),
            info: memory.slice(each.saturating_add(config.buses).saturating_mul(config.info_bytes)),
        }
    }
}

/// Buses of a [`StaticStorage`].
const STATIC_BUSES: usize = 2;
/// Endpoints of a [`StaticStorage`].
const STATIC_ENDPOINTS: usize = 8;
/// Handles, users, watches and waiting calls of a [`StaticStorage`], for each connection.
const STATIC_EACH: usize = 2;
/// Users whose messages wait at one connection of a [`StaticStorage`].
const STATIC_QUOTA: usize = 4;
/// Bytes of gathered metadata of a [`StaticStorage`].
const STATIC_METADATA: usize = 256;

/// All memory of one domain in one object, fit for a `static`.
///
/// `CONNECTIONS` connections with `MESSAGES` waiting messages each, and room for `TABLE` of everything that
/// the domain shares: names, claims, matches, rules, awaited replies, files and policy names; two buses and
/// eight endpoints. Queries report pinned metadata only. A message costs about 250 bytes, a shared entry
/// 1.1 KiB, a connection 2.5 KiB.
///
/// In firmware it lies in a `static_cell::ConstStaticCell`; [`new`](Self::new) is `const` for that.
///
/// ```
/// use kdbus_core::engine::{Domain, StaticStorage};
///
/// type Memory = StaticStorage<4, 16, 32>;
/// let mut memory = const { Memory::new() };
/// let domain = Domain::new(&Memory::CONFIG, memory.storage()).unwrap();
/// assert_eq!(domain.usage().connections, 0);
/// ```
#[derive(Debug)]
pub struct StaticStorage<const CONNECTIONS: usize, const MESSAGES: usize, const TABLE: usize> {
    handles: [[Record<Handle>; STATIC_EACH]; CONNECTIONS],
    buses: [Record<Bus>; STATIC_BUSES],
    endpoints: [Record<Endpoint>; STATIC_ENDPOINTS],
    users: [[Record<User>; STATIC_EACH]; CONNECTIONS],
    connections: [Record<Connection>; CONNECTIONS],
    queue_nodes: [[Node<Message>; MESSAGES]; CONNECTIONS],
    slice_records: [[[SliceRecord; 2]; MESSAGES]; CONNECTIONS],
    user_records: [[UserRecord; STATIC_QUOTA]; CONNECTIONS],
    names: [NameEntry; TABLE],
    name_records: [OwnerRecord; TABLE],
    claims: [ClaimedNames; CONNECTIONS],
    name_arena: [NameArena; 1],
    matches: [Record<Match>; TABLE],
    rules: [Record<Rule>; TABLE],
    blocks: [Record<Block>; TABLE],
    buckets: [Bucket; TABLE],
    trackers: [Tracker; TABLE],
    open_calls: [OpenCalls; CONNECTIONS],
    reply_arena: [ReplyArena; 1],
    calls: [[Record<Call>; STATIC_EACH]; CONNECTIONS],
    files: [Record<FileRecord>; TABLE],
    policy_entries: [Record<PolicyEntry>; TABLE],
    policy_records: [Record<PolicyRecord>; TABLE],
    watches: [[Record<Watch>; STATIC_EACH]; CONNECTIONS],
    metadata: [u8; STATIC_METADATA],
}

impl<const CONNECTIONS: usize, const MESSAGES: usize, const TABLE: usize>
    StaticStorage<CONNECTIONS, MESSAGES, TABLE>
{
    /// The configuration that goes with this memory; `page_size` may be changed.
    pub const CONFIG: Config = Config {
        page_size: 4096,
        handles: CONNECTIONS * STATIC_EACH,
        buses: STATIC_BUSES,
        endpoints: STATIC_ENDPOINTS,
        users: CONNECTIONS * STATIC_EACH,
        connections: CONNECTIONS,
        queue_depth: MESSAGES,
        pool_slices: MESSAGES * 2,
        quota_users: STATIC_QUOTA,
        names: TABLE,
        name_records: TABLE,
        matches: TABLE,
        match_rules: TABLE,
        match_rule_bytes: TABLE * BLOCK_BYTES,
        match_buckets: TABLE,
        trackers: TABLE,
        calls: CONNECTIONS * STATIC_EACH,
        files: TABLE,
        policy_entries: TABLE,
        policy_records: TABLE,
        watches: CONNECTIONS * STATIC_EACH,
        metadata_bytes: STATIC_METADATA,
        info_bytes: 0,
    };

    /// Memory of which nothing is used.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            handles: [const { [const { Record::BLANK }; STATIC_EACH] }; CONNECTIONS],
            buses: [const { Record::BLANK }; STATIC_BUSES],
            endpoints: [const { Record::BLANK }; STATIC_ENDPOINTS],
            users: [const { [const { Record::BLANK }; STATIC_EACH] }; CONNECTIONS],
            connections: [const { Record::BLANK }; CONNECTIONS],
            queue_nodes: [const { [const { Node::new() }; MESSAGES] }; CONNECTIONS],
            slice_records: [const { [const { [const { SliceRecord::new() }; 2] }; MESSAGES] }; CONNECTIONS],
            user_records: [const { [const { UserRecord::new() }; STATIC_QUOTA] }; CONNECTIONS],
            names: [const { NameEntry::new() }; TABLE],
            name_records: [const { OwnerRecord::new() }; TABLE],
            claims: [const { ClaimedNames::new() }; CONNECTIONS],
            name_arena: [const { NameArena::new() }; 1],
            matches: [const { Record::BLANK }; TABLE],
            rules: [const { Record::BLANK }; TABLE],
            blocks: [const { Record::BLANK }; TABLE],
            buckets: [Bucket::EMPTY; TABLE],
            trackers: [const { Tracker::new() }; TABLE],
            open_calls: [const { OpenCalls::new() }; CONNECTIONS],
            reply_arena: [const { ReplyArena::new() }; 1],
            calls: [const { [const { Record::BLANK }; STATIC_EACH] }; CONNECTIONS],
            files: [const { Record::BLANK }; TABLE],
            policy_entries: [const { Record::BLANK }; TABLE],
            policy_records: [const { Record::BLANK }; TABLE],
            watches: [const { [const { Record::BLANK }; STATIC_EACH] }; CONNECTIONS],
            metadata: [0; STATIC_METADATA],
        }
    }

    /// The memory in pieces, for [`Domain::new`] with [`CONFIG`](Self::CONFIG).
    pub fn storage(&mut self) -> Storage<'_> {
        Storage {
            handles: self.handles.as_flattened_mut(),
            buses: &mut self.buses,
            endpoints: &mut self.endpoints,
            users: self.users.as_flattened_mut(),
            connections: &mut self.connections,
            queue_nodes: self.queue_nodes.as_flattened_mut(),
            slice_records: self.slice_records.as_flattened_mut().as_flattened_mut(),
            user_records: self.user_records.as_flattened_mut(),
            names: &mut self.names,
            name_records: &mut self.name_records,
            claims: &mut self.claims,
            name_arena: &mut self.name_arena,
            matches: &mut self.matches,
            rules: &mut self.rules,
            blocks: &mut self.blocks,
            buckets: &mut self.buckets,
            trackers: &mut self.trackers,
            open_calls: &mut self.open_calls,
            reply_arena: &mut self.reply_arena,
            calls: self.calls.as_flattened_mut(),
            files: &mut self.files,
            policy_entries: &mut self.policy_entries,
            policy_records: &mut self.policy_records,
            watches: self.watches.as_flattened_mut(),
            metadata: &mut self.metadata,
            info: &mut [],
        }
    }
}

impl<const CONNECTIONS: usize, const MESSAGES: usize, const TABLE: usize> Default
    for StaticStorage<CONNECTIONS, MESSAGES, TABLE>
{
    fn default() -> Self {
        Self::new()
    }
}

impl<'s> Domain<'s> {
    /// A domain without buses in this memory. `O(1)`.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if the configuration makes no domain, or the memory is smaller than it says.
    pub fn new(config: &Config, storage: Storage<'s>) -> Result<Self, ConfigError> {
        config.check()?;
        let each = config.connections;
        let enough = [
            (storage.connections.len(), each, "connections"),
            (storage.queue_nodes.len(), each.saturating_mul(config.queue_depth), "queue_depth"),
            (storage.slice_records.len(), each.saturating_mul(config.pool_slices), "pool_slices"),
            (storage.user_records.len(), each.saturating_mul(config.quota_users), "quota_users"),
            (storage.claims.len(), each, "connections"),
            (storage.open_calls.len(), each, "connections"),
            (storage.buses.len(), config.buses, "buses"),
            (storage.buckets.len(), config.match_buckets, "match_buckets"),
            (storage.info.len(), (each + config.buses).saturating_mul(config.info_bytes), "info_bytes"),
        ];
        for (has, needs, what) in enough {
            if has < needs {
                return Err(ConfigError::Storage(what));
            }
        }
        let name_arena = storage.name_arena.first_mut().ok_or(ConfigError::Storage("names"))?;
        let reply_arena = storage.reply_arena.first_mut().ok_or(ConfigError::Storage("trackers"))?;
        let mut users = Table::new(storage.users);
        // The bus itself is the first user: quotas know it by number 0.
        let kernel: UserIx = users.insert(User::new(Identity::Kernel)).ok_or(ConfigError::Zero("users"))?;
        Ok(Self {
            beside: BesideLanes::default(),
            config: *config,
            handles: Table::new(storage.handles),
            buses: Table::new(storage.buses),
            endpoints: Table::new(storage.endpoints),
            users,
            conns: Table::new(storage.connections),
            ids: Root::new(),
            queue_nodes: storage.queue_nodes,
            slice_records: storage.slice_records,
            user_records: storage.user_records,
            names: NameTable::new(name_arena, storage.names, storage.name_records, storage.claims),
            replies: ReplyTable::new(reply_arena, storage.trackers, storage.open_calls),
            matches: Matches::new(storage.matches, storage.rules, storage.blocks, storage.buckets),
            policy: Policy::new(storage.policy_entries, storage.policy_records),
            files: Files::new(storage.files),
            calls: Table::new(storage.calls),
            watches: Table::new(storage.watches),
            info: storage.info,
            scratch: storage.metadata,
            gathered: Gathered::NOTHING,
            pending: Pending::default(),
            kernel,
            last_id: 0,
            last_key: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::Errno;
    use crate::engine::Credentials;

    type Memory = StaticStorage<2, 4, 8>;

    #[test]
    fn static_memory_fits_its_configuration() {
        let mut memory = const { Memory::new() };
        let mut domain = Domain::new(&Memory::CONFIG, memory.storage()).unwrap();
        for _ in 0..Memory::CONFIG.handles {
            assert!(domain.open_control(&Credentials::BLANK).is_ok());
        }
        assert_eq!(domain.open_control(&Credentials::BLANK), Err(Errno::EMFILE));
    }

    #[test]
    fn memory_that_is_too_small_is_refused() {
        let mut memory = Memory::new();
        let more = Config { queue_depth: 5, ..Memory::CONFIG };
        assert_eq!(Domain::new(&more, memory.storage()).err(), Some(ConfigError::Storage("queue_depth")));
        let none = Config { buses: 0, ..Memory::CONFIG };
        assert_eq!(Domain::new(&none, memory.storage()).err(), Some(ConfigError::Zero("buses")));
    }
}
