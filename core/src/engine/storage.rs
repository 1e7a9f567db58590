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
use super::matches::{BLOCK_BYTES, Block, Bucket, Match, Matches, Rule};
use super::metadata::Gathered;
use super::names::{ClaimedNames, NameArena, NameEntry, NameTable, OwnerRecord};
use super::policy::{Policy, PolicyEntry, PolicyRecord};
use super::pool::SliceRecord;
use super::quota::UserRecord;
use super::reply::{OpenCalls, ReplyArena, ReplyTable, Tracker};
use super::table::{Record, Table, UserIx};
use super::user::User;
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
        let kernel: UserIx = users.insert(User::default()).ok_or(ConfigError::Zero("users"))?;
        Ok(Self {
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
            gathered: Gathered::default(),
            pending: Pending::default(),
            kernel,
            last_id: 0,
            last_key: 0,
        })
    }
}
