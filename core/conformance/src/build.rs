//! Building commands and messages byte by byte, so that wrong ones can be expressed too.

use kdbus_core::abi::{
    AttachFlags, BloomParameter, CmdHello, Command, DST_ID_BROADCAST, DST_ID_NAME, HelloFlags, IdChange,
    ItemType, MATCH_ID_ANY, MakeFlags, Memfd, Msg, MsgFlags, PAYLOAD_DBUS, PolicyAccess, Vec as PayloadVec,
};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::world::Payload;

/// Bytes of the bloom filters of a case's bus.
pub(crate) const BLOOM: usize = 64;

/// The placeholder in a `PAYLOAD_VEC` whose address the world fills in.
const SOME_ADDRESS: u64 = 1;

/// An item, before it is part of anything.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    kind: ItemType,
    payload: Vec<u8>,
}

impl Item {
    pub(crate) fn bytes(kind: ItemType, payload: &[u8]) -> Self {
        Self { kind, payload: payload.to_vec() }
    }

    pub(crate) fn text(kind: ItemType, text: &str) -> Self {
        let mut payload = text.as_bytes().to_vec();
        payload.push(0);
        Self { kind, payload }
    }

    pub(crate) fn u64(kind: ItemType, value: u64) -> Self {
        Self::bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn record<T: IntoBytes + Immutable>(kind: ItemType, record: &T) -> Self {
        Self::bytes(kind, record.as_bytes())
    }

    /// `NAME_ADD`, `NAME_REMOVE` or `NAME_CHANGE` of a match.
    pub(crate) fn name_change(kind: ItemType, old: u64, new: u64, name: &str) -> Self {
        let mut payload = IdChange { id: old, flags: 0 }.as_bytes().to_vec();
        payload.extend(IdChange { id: new, flags: 0 }.as_bytes());
        if !name.is_empty() {
            payload.extend(name.as_bytes());
            payload.push(0);
        }
        Self { kind, payload }
    }

    /// A `NAME_*` rule that any change of `name` passes.
    pub(crate) fn any_change(kind: ItemType, name: &str) -> Self {
        Self::name_change(kind, MATCH_ID_ANY, MATCH_ID_ANY, name)
    }

    /// `ID_ADD` or `ID_REMOVE` of a match.
    pub(crate) fn id_change(kind: ItemType, id: u64) -> Self {
        Self::record(kind, &IdChange { id, flags: 0 })
    }

    /// `POLICY_ACCESS` for the user (1), group (2) or everybody (3): see (0), talk (1) or own (2).
    pub(crate) fn access(kind: u64, access: u64, id: u32) -> Self {
        Self::record(ItemType::POLICY_ACCESS, &PolicyAccess { kind, access, id: u64::from(id) })
    }

    fn append(&self, bytes: &mut Vec<u8>) {
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes.extend((self.payload.len() as u64 + 16).to_ne_bytes());
        bytes.extend(self.kind.0.to_ne_bytes());
        bytes.extend(&self.payload);
    }
}

/// The argument of a command: its record and items.
#[derive(Clone, Debug)]
pub(crate) struct Arg {
    pub(crate) command: Command,
    pub(crate) bytes: Vec<u8>,
}

impl Arg {
    /// All zero but its size.
    pub(crate) fn new(command: Command) -> Self {
        let mut arg = Self { command, bytes: vec![0; command.shape().size] };
        arg.fix_size();
        arg
    }

    /// A record that was filled in; its size is set.
    pub(crate) fn of<T: IntoBytes + Immutable>(command: Command, record: &T) -> Self {
        let mut arg = Self { command, bytes: record.as_bytes().to_vec() };
        arg.fix_size();
        arg
    }

    pub(crate) fn flags(self, flags: u64) -> Self {
        self.word(8, flags)
    }

    /// Sets the word at `offset`.
    pub(crate) fn word(mut self, offset: usize, value: u64) -> Self {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// Appends an item.
    pub(crate) fn item(mut self, item: &Item) -> Self {
        item.append(&mut self.bytes);
        self.fix_size();
        self
    }

    /// Appends items.
    pub(crate) fn items(self, items: &[Item]) -> Self {
        items.iter().fold(self, Self::item)
    }

    /// Appends bytes that need not be an item.
    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self.fix_size();
        self
    }

    /// Says another size than it has.
    pub(crate) fn claim(self, size: u64) -> Self {
        self.word(0, size)
    }

    /// The word at `offset`.
    pub(crate) fn get(&self, offset: usize) -> u64 {
        self.bytes[offset..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
    }

    /// The record at its start.
    pub(crate) fn read<T: FromBytes>(&self) -> T {
        T::read_from_prefix(&self.bytes)
            .map(|(record, _)| record)
            .unwrap_or_else(|_| panic!("short argument"))
    }

    fn fix_size(&mut self) {
        let size = self.bytes.len() as u64;
        self.bytes[..8].copy_from_slice(&size.to_ne_bytes());
    }
}

/// BUS_MAKE with filters of 64 bytes, one hash, and access for everybody.
pub(crate) fn bus_make(name: &str) -> Arg {
    Arg::new(Command::BusMake)
        .flags(MakeFlags::ACCESS_WORLD.bits())
        .item(&Item::text(ItemType::MAKE_NAME, name))
        .item(&bloom_parameter(BLOOM as u64, 1))
}

pub(crate) fn bloom_parameter(size: u64, n_hash: u64) -> Item {
    Item::record(ItemType::BLOOM_PARAMETER, &BloomParameter { size, n_hash })
}

/// Bytes of the pool that connections have unless a case needs another.
pub(crate) const POOL: u64 = 1 << 20;

/// What a connection asks for unless told otherwise: what tells who has sent a message and when, and can go past a bus.
pub(crate) const USUAL: AttachFlags = AttachFlags::TIMESTAMP
    .union(AttachFlags::CREDS)
    .union(AttachFlags::PIDS)
    .union(AttachFlags::AUXGROUPS)
    .union(AttachFlags::SECLABEL)
    .union(AttachFlags::CONN_DESCRIPTION);

/// How a case's connection says HELLO. Unless told otherwise it is ordinary, takes descriptors, gives all metadata and asks for
/// the [usual](USUAL), and has a pool of 1 MiB.
#[derive(Clone, Debug)]
pub(crate) struct Hello {
    pub(crate) record: CmdHello,
    pub(crate) items: Vec<Item>,
    pub(crate) endpoint: String,
}

impl Default for Hello {
    fn default() -> Self {
        let all = AttachFlags::all().bits();
        let record = CmdHello {
            flags: HelloFlags::ACCEPT_FD.bits(),
            attach_flags_send: all,
            attach_flags_recv: USUAL.bits(),
            pool_size: POOL,
            ..CmdHello::default()
        };
        Self { record, items: Vec::new(), endpoint: "bus".to_owned() }
    }
}

impl Hello {
    pub(crate) fn flags(mut self, flags: HelloFlags) -> Self {
        self.record.flags = flags.bits();
        self
    }

    pub(crate) fn pool(mut self, bytes: u64) -> Self {
        self.record.pool_size = bytes;
        self
    }

    pub(crate) fn gives(mut self, mask: AttachFlags) -> Self {
        self.record.attach_flags_send = mask.bits();
        self
    }

    pub(crate) fn asks(mut self, mask: AttachFlags) -> Self {
        self.record.attach_flags_recv = mask.bits();
        self
    }

    pub(crate) fn item(mut self, item: Item) -> Self {
        self.items.push(item);
        self
    }

    pub(crate) fn on(mut self, endpoint: &str) -> Self {
        endpoint.clone_into(&mut self.endpoint);
        self
    }

    pub(crate) fn without_fds() -> Self {
        Self::default().flags(HelloFlags::empty())
    }

    pub(crate) fn monitor() -> Self {
        Self::default().flags(HelloFlags::MONITOR | HelloFlags::ACCEPT_FD)
    }

    pub(crate) fn activator(name: &str) -> Self {
        Self::default()
            .flags(HelloFlags::ACTIVATOR | HelloFlags::ACCEPT_FD)
            .item(Item::text(ItemType::NAME, name))
    }

    pub(crate) fn policy_holder(name: &str, access: &[Item]) -> Self {
        let hello = Self::default().flags(HelloFlags::POLICY_HOLDER).item(Item::text(ItemType::NAME, name));
        access.iter().cloned().fold(hello, Self::item)
    }

    pub(crate) fn arg(&self) -> Arg {
        Arg::of(Command::Hello, &self.record).items(&self.items)
    }
}

/// A message to send: header, items, and the memory its vectors name.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub(crate) bytes: Vec<u8>,
    pub(crate) payload: Vec<Payload>,
}

impl Message {
    /// To a connection, without items.
    pub(crate) fn to(dst_id: u64) -> Self {
        let header = Msg { dst_id, payload_type: PAYLOAD_DBUS, ..Msg::default() };
        let mut message = Self { bytes: header.as_bytes().to_vec(), payload: Vec::new() };
        message.fix_size();
        message
    }

    /// To whoever owns `name`.
    pub(crate) fn named(name: &str) -> Self {
        Self::to(DST_ID_NAME).item(&Item::text(ItemType::DST_NAME, name))
    }

    /// A signal to one connection with an empty filter.
    pub(crate) fn signal_to(dst_id: u64) -> Self {
        Self::to(dst_id).flags(MsgFlags::SIGNAL).filter(0, &[0; BLOOM])
    }

    /// A signal to everybody with an empty filter.
    pub(crate) fn broadcast() -> Self {
        Self::signal_to(DST_ID_BROADCAST)
    }

    /// A signal to everybody with these filter bits.
    pub(crate) fn broadcast_of(generation: u64, bits: &[u8]) -> Self {
        Self::to(DST_ID_BROADCAST).flags(MsgFlags::SIGNAL).filter(generation, bits)
    }

    /// A call whose reply is awaited until `deadline`.
    pub(crate) fn call(dst_id: u64, cookie: u64, deadline: u64) -> Self {
        Self::to(dst_id).expecting(cookie, deadline)
    }

    /// The answer to the call with this cookie.
    pub(crate) fn reply(dst_id: u64, cookie_reply: u64) -> Self {
        Self::to(dst_id).word(56, cookie_reply)
    }

    pub(crate) fn expecting(self, cookie: u64, deadline: u64) -> Self {
        self.flags(MsgFlags::EXPECT_REPLY).cookie(cookie).word(56, deadline)
    }

    /// Adds flags.
    pub(crate) fn flags(self, flags: MsgFlags) -> Self {
        self.raw_flags(flags.bits())
    }

    /// Adds flags, known or not.
    pub(crate) fn raw_flags(self, flags: u64) -> Self {
        let all = self.get(8) | flags;
        self.word(8, all)
    }

    pub(crate) fn priority(self, priority: i64) -> Self {
        self.word(16, priority.cast_unsigned())
    }

    pub(crate) fn dst_id(self, id: u64) -> Self {
        self.word(24, id)
    }

    pub(crate) fn src_id(self, id: u64) -> Self {
        self.word(32, id)
    }

    pub(crate) fn payload_type(self, kind: u64) -> Self {
        self.word(40, kind)
    }

    pub(crate) fn cookie(self, cookie: u64) -> Self {
        self.word(48, cookie)
    }

    /// Sets the word at `offset`.
    pub(crate) fn word(mut self, offset: usize, value: u64) -> Self {
        self.bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
        self
    }

    /// The word at `offset`.
    pub(crate) fn get(&self, offset: usize) -> u64 {
        self.bytes[offset..].first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
    }

    pub(crate) fn item(mut self, item: &Item) -> Self {
        item.append(&mut self.bytes);
        self.fix_size();
        self
    }

    /// Payload copied from the sender's memory.
    pub(crate) fn vec(self, bytes: &[u8]) -> Self {
        self.vec_at(bytes.len() as u64, Payload::Bytes(bytes.to_vec()))
    }

    /// A vector of `size` over this memory.
    pub(crate) fn vec_at(mut self, size: u64, memory: Payload) -> Self {
        self.payload.push(memory);
        self.item(&Item::record(ItemType::PAYLOAD_VEC, &PayloadVec { size, address: SOME_ADDRESS }))
    }

    /// A run of zeros.
    pub(crate) fn zeros(self, size: u64) -> Self {
        self.item(&Item::record(ItemType::PAYLOAD_VEC, &PayloadVec { size, address: 0 }))
    }

    pub(crate) fn memfd(self, fd: i32, start: u64, size: u64) -> Self {
        self.item(&Item::record(ItemType::PAYLOAD_MEMFD, &Memfd { start, size, fd, pad: 0 }))
    }

    pub(crate) fn fds(self, fds: &[i32]) -> Self {
        self.item(&Item::bytes(ItemType::FDS, fds.as_bytes()))
    }

    pub(crate) fn filter(self, generation: u64, bits: &[u8]) -> Self {
        let mut payload = generation.to_ne_bytes().to_vec();
        payload.extend(bits);
        self.item(&Item::bytes(ItemType::BLOOM_FILTER, &payload))
    }

    fn fix_size(&mut self) {
        let size = self.bytes.len() as u64;
        self.bytes[..8].copy_from_slice(&size.to_ne_bytes());
    }
}
