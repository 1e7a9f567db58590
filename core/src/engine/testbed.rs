//! A domain with a host in memory, for tests that drive whole sequences of commands.

extern crate std;

use std::boxed::Box;
use std::collections::{BTreeMap, VecDeque};
use std::string::{String, ToString};
use std::vec;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

pub(super) use super::testbed_messages::*;
use super::*;
use crate::Instant;
use crate::abi::{
    BloomParameter, Cmd, CmdFree, CmdHello, CmdInfo, CmdList, CmdMatch, CmdRecv, CmdSend, Command, Errno,
    HelloFlags, Info, ItemType, Items, MakeFlags, Msg, MsgInfo, NameFlags, RecvFlags, SendFlags,
};
use crate::channel::terms::Terms;

/// Uid of the creator of the bus.
pub(super) const OWNER: u32 = 1000;
/// Bytes of a filter on the bus.
pub(super) const BLOOM: usize = 64;
/// An address that no sender can read.
pub(super) const BAD_ADDRESS: u64 = 0x6666_0000;

/// A descriptor number: which file, from the tests' own table.
#[derive(Clone, Copy, Debug)]
pub(super) struct TestFile(pub(super) FileKind);

#[derive(Default)]
pub(super) struct TestHost {
    pub(super) pools: BTreeMap<HandleId, Vec<u8>>,
    pub(super) nodes: BTreeMap<(String, String), EndpointId>,
    /// What the non-zero vectors of the SEND being handled name.
    pub(super) payload: Vec<u8>,
    pub(super) fds: BTreeMap<i32, TestFile>,
    /// Pins of each file.
    pub(super) pinned: BTreeMap<u32, u32>,
    pub(super) installed: Vec<(HandleId, u32)>,
    pub(super) refuse_install: bool,
    pub(super) published: BTreeMap<HandleId, Vec<Entry>>,
    /// Whoever is shown an entry is woken by that.
    pub(super) wakes_itself: bool,
    pub(super) returns: BTreeMap<HandleId, VecDeque<Return>>,
    /// Entries that a client has taken, and has not told of.
    pub(super) taken: Vec<(HandleId, Entry)>,
    pub(super) asked: Vec<(HandleId, crate::abi::AttachFlags)>,
    pub(super) lost: BTreeMap<HandleId, u64>,
    pub(super) watched: BTreeMap<HandleId, bool>,
    pub(super) lanes_opened: Vec<LaneGrant>,
    /// Metadata of the lane opened last.
    pub(super) lane_metadata: Vec<u8>,
    /// What was closed, and how many messages had been shown to anybody by then.
    pub(super) lanes_closed: Vec<(Lanes, usize)>,
    /// When whatever is closed was.
    pub(super) lanes_closed_at: Instant,
    /// A message waits in a lane.
    pub(super) lane_waits: bool,
    pub(super) retired: Vec<HandleId>,
    random: u8,
}

/// Bytes of the largest pool that the test host makes.
const POOL_MAX: u64 = 16 << 20;

impl Host for TestHost {
    fn pool_create(&mut self, owner: HandleId, size: u64) -> Result<(), Errno> {
        // As every host, it has an end: HELLO can ask for any size.
        if size > POOL_MAX {
            return Err(Errno::ENOMEM);
        }
        assert!(self.pools.insert(owner, vec![0; size as usize]).is_none(), "one pool a handle");
        Ok(())
    }

    fn pool_destroy(&mut self, owner: HandleId) {
        assert!(self.pools.remove(&owner).is_some(), "a pool is destroyed once");
    }

    fn pool_write(&mut self, owner: HandleId, offset: u64, bytes: &[u8]) {
        let pool = self.pools.get_mut(&owner).unwrap();
        pool[offset as usize..offset as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn pool_zero(&mut self, owner: HandleId, offset: u64, len: u64) {
        self.pools.get_mut(&owner).unwrap()[offset as usize..(offset + len) as usize].fill(0);
    }

    fn pool_copy(&mut self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, len: u64) {
        let bytes = self.pools[&from][from_offset as usize..(from_offset + len) as usize].to_vec();
        self.pool_write(to, to_offset, &bytes);
    }

    fn payload(&mut self, to: HandleId, offset: u64, address: u64, skip: u64, len: u64) -> Result<(), Errno> {
        if address == BAD_ADDRESS {
            return Err(Errno::EFAULT);
        }
        let Some(bytes) = self.payload.get(skip as usize..(skip + len) as usize) else {
            return Err(Errno::EFAULT);
        };
        let bytes = bytes.to_vec();
        self.pool_write(to, offset, &bytes);
        Ok(())
    }

    fn import(&mut self, _from: HandleId, fd: i32) -> Result<(FileId, FileKind), Errno> {
        let TestFile(kind) = *self.fds.get(&fd).ok_or(Errno::EBADF)?;
        *self.pinned.entry(fd as u32).or_default() += 1;
        Ok((FileId(fd as u32), kind))
    }

    fn install(&mut self, to: HandleId, file: FileId) -> Option<i32> {
        if self.refuse_install {
            return None;
        }
        self.installed.push((to, file.0));
        Some(1000 + file.0 as i32)
    }

    fn release(&mut self, file: FileId) {
        let pins = self.pinned.get_mut(&file.0).unwrap();
        *pins -= 1;
        if *pins == 0 {
            self.pinned.remove(&file.0);
        }
    }

    fn node_create(&mut self, node: Node<'_>) -> Result<(), Errno> {
        self.nodes.insert((node.bus.to_string(), node.endpoint.to_string()), node.id);
        Ok(())
    }

    fn node_remove(&mut self, node: Node<'_>) {
        assert!(self.nodes.remove(&(node.bus.to_string(), node.endpoint.to_string())).is_some());
    }

    fn random(&mut self) -> [u8; 16] {
        self.random += 1;
        [self.random; 16]
    }

    fn metadata(
        &mut self,
        from: HandleId,
        kind: crate::abi::AttachFlags,
        buffer: &mut [u8],
    ) -> Option<usize> {
        self.asked.push((from, kind));
        let value: &[u8] = match kind {
            crate::abi::AttachFlags::TID_COMM => b"thread\0",
            crate::abi::AttachFlags::PID_COMM => b"process\0",
            _ => return None,
        };
        buffer.get_mut(..value.len())?.copy_from_slice(value);
        Some(value.len())
    }

    fn publish(&mut self, to: HandleId, entry: Entry) -> bool {
        self.published.entry(to).or_default().push(entry);
        self.wakes_itself
    }

    fn retract(&mut self, to: HandleId, entry: Entry) -> bool {
        let published = self.published.entry(to).or_default();
        let at =
            published.iter().position(|other| *other == entry).expect("only what was shown is taken back");
        published.remove(at);
        !self.taken.iter().any(|(of, other)| (*of, *other) == (to, entry))
    }

    fn poll_return(&mut self, of: HandleId) -> Option<Return> {
        let returned = self.returns.get_mut(&of)?.pop_front()?;
        if let Return::Taken { slot, key } = returned {
            self.published.entry(of).or_default().retain(|entry| (entry.slot, entry.key) != (slot, key));
        }
        Some(returned)
    }

    fn watch_returns(&mut self, of: HandleId, watch: bool) {
        self.watched.insert(of, watch);
    }

    fn lost(&mut self, to: HandleId, total: u64) {
        self.lost.insert(to, total);
    }

    fn lane_open(&mut self, grant: LaneGrant, terms: &Terms<'_>) -> Result<(), NoLane> {
        self.lane_metadata = terms.metadata.to_vec();
        self.lanes_opened.push(grant);
        Ok(())
    }

    fn lanes_close(&mut self, which: Lanes) -> Instant {
        let shown = self.published.values().map(Vec::len).sum();
        self.lanes_closed.push((which, shown));
        self.lanes_closed_at
    }

    fn lanes_retire(&mut self, of: HandleId) -> bool {
        self.retired.push(of);
        !self.lane_waits
    }
}

struct Leak;

impl Allocate for Leak {
    fn slice<T: Default + 'static>(&mut self, len: usize) -> &'static mut [T] {
        Box::leak(core::iter::repeat_with(T::default).take(len).collect())
    }
}

/// One connection of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) handle: HandleId,
    pub(super) id: u64,
    pub(super) pool: u64,
}

/// A domain in memory that is never given back.
pub(super) fn domain(config: &Config) -> Domain<'static> {
    Domain::new(config, Storage::allocate(config, &mut Leak)).unwrap()
}

/// A bus in memory that is never given back.
pub(super) type Bed = BedOver<'static>;

/// A bus in somebody's domain, and the host that drives it.
pub(super) struct BedOver<'s> {
    pub(super) domain: Domain<'s>,
    pub(super) host: TestHost,
    pub(super) now: u64,
    pub(super) bus: HandleId,
    pub(super) effects: Vec<Effect>,
    tokens: u64,
}

pub(super) fn user(uid: u32) -> Credentials {
    Credentials { uid, euid: uid, gid: uid, egid: uid, pid: uid + 1, tid: uid + 1, ..Credentials::default() }
}

impl Bed {
    /// A domain with one bus, which everybody may open.
    pub(super) fn new() -> Self {
        Self::with(&Config { queue_depth: 512, pool_slices: 600, ..Config::SMALL })
    }

    pub(super) fn with(config: &Config) -> Self {
        Self::over(domain(config))
    }
}

impl<'s> BedOver<'s> {
    /// As [`Bed::new`], in this domain.
    pub(super) fn over(domain: Domain<'s>) -> Self {
        let bus = HandleId { index: 0, generation: 0 };
        let host = TestHost::default();
        let mut bed = Self { domain, host, now: 1_000_000, bus, effects: Vec::new(), tokens: 0 };
        bed.bus = bed.make_bus(OWNER, "1000-test").unwrap();
        bed
    }

    pub(super) fn at(&self) -> Clock {
        Clock { monotonic: Instant::from_nanos(self.now), realtime_ns: self.now + 5 }
    }

    pub(super) fn control(&mut self, uid: u32) -> HandleId {
        self.domain.open_control(&user(uid)).unwrap()
    }

    pub(super) fn make_bus(&mut self, uid: u32, name: &str) -> Result<HandleId, Errno> {
        let handle = self.control(uid);
        self.make_bus_on(handle, name).map(|()| handle)
    }

    pub(super) fn make_bus_on(&mut self, handle: HandleId, name: &str) -> Result<(), Errno> {
        let bloom = BloomParameter { size: BLOOM as u64, n_hash: 1 };
        let flags = MakeFlags::ACCESS_WORLD.bits();
        let mut arg = arg(
            Cmd { flags, ..Cmd::default() },
            &[(ItemType::MAKE_NAME, &c_str(name)), (ItemType::BLOOM_PARAMETER, bloom.as_bytes())],
        );
        self.run(handle, Command::BusMake, &mut arg)
    }

    pub(super) fn open(&mut self, uid: u32) -> HandleId {
        let endpoint = self.domain.endpoint("1000-test", "bus").unwrap();
        self.domain.open(endpoint, &user(uid)).unwrap()
    }

    /// Runs a command that does not wait; effects are kept.
    pub(super) fn run(&mut self, from: HandleId, command: Command, arg: &mut [u8]) -> Result<(), Errno> {
        match self.request(from, command.request(), arg, None) {
            Outcome::Done(result) => result,
            Outcome::Pending => panic!("{command:?} waits"),
        }
    }

    pub(super) fn request(
        &mut self,
        from: HandleId,
        number: u32,
        arg: &mut [u8],
        message: Option<&mut [u8]>,
    ) -> Outcome {
        self.now += 1;
        self.tokens += 1;
        let request = Request { number, arg, message, token: self.tokens };
        let arrival = Arrival { at: self.at(), from, caller: None, request };
        let outcome = self.domain.handle(&mut self.host, arrival);
        self.collect();
        outcome
    }

    pub(super) fn collect(&mut self) {
        while let Some(effect) = self.domain.poll_effect() {
            self.effects.push(effect);
        }
    }

    pub(super) fn last_token(&self) -> u64 {
        self.tokens
    }

    pub(super) fn hello_arg(flags: HelloFlags, pool_size: u64, items: &[(ItemType, &[u8])]) -> Vec<u8> {
        let cmd = CmdHello {
            flags: flags.bits(),
            attach_flags_send: u64::MAX,
            attach_flags_recv: crate::abi::AttachFlags::TIMESTAMP.bits(),
            pool_size,
            ..CmdHello::default()
        };
        arg(cmd, items)
    }

    pub(super) fn hello(
        &mut self,
        handle: HandleId,
        flags: HelloFlags,
        pool: u64,
        items: &[(ItemType, &[u8])],
    ) -> Result<Peer, Errno> {
        let mut arg = Self::hello_arg(flags, pool, items);
        self.run(handle, Command::Hello, &mut arg)?;
        let cmd = CmdHello::read_from_prefix(&arg).unwrap().0;
        let peer = Peer { handle, id: cmd.id, pool };
        self.free(peer, cmd.offset).unwrap_or(());
        self.effects.clear();
        Ok(peer)
    }

    /// An ordinary connection of the bus' creator, with descriptors and a pool of 1 MiB.
    pub(super) fn connect(&mut self) -> Peer {
        self.connect_as(OWNER)
    }

    pub(super) fn connect_as(&mut self, uid: u32) -> Peer {
        let handle = self.open(uid);
        self.hello(handle, HelloFlags::ACCEPT_FD, 1 << 20, &[]).unwrap()
    }

    pub(super) fn activator(&mut self, name: &str) -> Peer {
        let handle = self.open(OWNER);
        let name = c_str(name);
        self.hello(handle, HelloFlags::ACTIVATOR, 1 << 20, &[(ItemType::NAME, &name)]).unwrap()
    }

    pub(super) fn policy_holder(&mut self, name: &str, records: &[(u64, u64, u64)]) -> Peer {
        let handle = self.open(OWNER);
        let name = c_str(name);
        let records: Vec<_> =
            records.iter().map(|&(kind, access, id)| crate::abi::PolicyAccess { kind, access, id }).collect();
        let mut items = vec![(ItemType::NAME, name.as_slice())];
        items.extend(records.iter().map(|record| (ItemType::POLICY_ACCESS, record.as_bytes())));
        self.hello(handle, HelloFlags::POLICY_HOLDER, 4096, &items).unwrap()
    }

    pub(super) fn remove_match(&mut self, peer: Peer, cookie: u64) -> Result<(), Errno> {
        let mut arg = arg(CmdMatch { cookie, ..CmdMatch::default() }, &[]);
        self.run(peer.handle, Command::MatchRemove, &mut arg)
    }

    pub(super) fn make_endpoint(&mut self, handle: HandleId, name: &str) -> Result<(), Errno> {
        let flags = MakeFlags::ACCESS_WORLD.bits();
        let mut arg = arg(Cmd { flags, ..Cmd::default() }, &[(ItemType::MAKE_NAME, &c_str(name))]);
        self.run(handle, Command::EndpointMake, &mut arg)
    }

    /// Sets the policy of an endpoint: names, each with kind, access and id of one record.
    pub(super) fn set_policy(
        &mut self,
        endpoint: HandleId,
        names: &[(&str, (u64, u64, u64))],
    ) -> Result<(), Errno> {
        let mut items = Vec::new();
        for (name, (kind, access, id)) in names {
            items.push((ItemType::NAME, c_str(name)));
            let record = crate::abi::PolicyAccess { kind: *kind, access: *access, id: *id };
            items.push((ItemType::POLICY_ACCESS, record.as_bytes().to_vec()));
        }
        let items: Vec<_> = items.iter().map(|(kind, payload)| (*kind, payload.as_slice())).collect();
        self.run(endpoint, Command::EndpointUpdate, &mut arg(Cmd::default(), &items))
    }

    /// An ordinary connection on a custom endpoint.
    pub(super) fn connect_on(&mut self, endpoint: &str, uid: u32) -> Peer {
        let endpoint = self.domain.endpoint("1000-test", endpoint).unwrap();
        let handle = self.domain.open(endpoint, &user(uid)).unwrap();
        self.hello(handle, HelloFlags::ACCEPT_FD, 1 << 20, &[]).unwrap()
    }

    pub(super) fn close(&mut self, handle: HandleId) {
        let at = self.at();
        self.domain.close(&mut self.host, at, handle);
        self.collect();
    }

    pub(super) fn free(&mut self, peer: Peer, offset: u64) -> Result<(), Errno> {
        let mut arg = arg(CmdFree { offset, ..CmdFree::default() }, &[]);
        self.run(peer.handle, Command::Free, &mut arg)
    }

    pub(super) fn byebye(&mut self, peer: Peer) -> Result<(), Errno> {
        self.run(peer.handle, Command::Byebye, &mut arg(Cmd::default(), &[]))
    }

    /// Sends and returns the reply, if one was waiting already.
    pub(super) fn send_any(&mut self, from: Peer, outgoing: &Outgoing) -> (Outcome, MsgInfo) {
        self.host.payload = outgoing.payload.clone();
        let mut message = outgoing.bytes();
        let flags = if outgoing.sync { SendFlags::SYNC_REPLY } else { SendFlags::empty() };
        let cmd = CmdSend { flags: flags.bits(), msg_address: 8, ..CmdSend::default() };
        let mut arg = arg(cmd, &[]);
        let before = message.clone();
        let outcome = self.request(from.handle, Command::Send.request(), &mut arg, Some(&mut message));
        assert_eq!(message, before, "the sender's message stays as it is");
        (outcome, CmdSend::read_from_prefix(&arg).unwrap().0.reply)
    }

    pub(super) fn send(&mut self, from: Peer, outgoing: &Outgoing) -> Result<(), Errno> {
        match self.send_any(from, outgoing).0 {
            Outcome::Done(result) => result,
            Outcome::Pending => panic!("the call waits"),
        }
    }

    /// Starts a synchronous call and returns its token.
    pub(super) fn start(&mut self, from: Peer, outgoing: &Outgoing) -> u64 {
        assert_eq!(self.send_any(from, outgoing).0, Outcome::Pending);
        self.last_token()
    }

    pub(super) fn recv_cmd(
        &mut self,
        peer: Peer,
        flags: RecvFlags,
        priority: i64,
    ) -> (Result<(), Errno>, CmdRecv) {
        let mut arg = arg(CmdRecv { flags: flags.bits(), priority, ..CmdRecv::default() }, &[]);
        let result = self.run(peer.handle, Command::Recv, &mut arg);
        (result, CmdRecv::read_from_prefix(&arg).unwrap().0)
    }

    /// Receives one message and frees its slice.
    pub(super) fn recv(&mut self, peer: Peer) -> Result<Received, Errno> {
        let received = self.recv_keep(peer)?;
        self.free(peer, received.info.offset).unwrap();
        Ok(received)
    }

    pub(super) fn recv_keep(&mut self, peer: Peer) -> Result<Received, Errno> {
        let (result, cmd) = self.recv_cmd(peer, RecvFlags::empty(), 0);
        result?;
        Ok(self.read(peer, cmd.msg))
    }

    pub(super) fn read(&self, peer: Peer, info: MsgInfo) -> Received {
        let pool = &self.host.pools[&peer.handle];
        let slice = pool[info.offset as usize..(info.offset + info.msg_size) as usize].to_vec();
        let header = Msg::read_from_prefix(&slice).unwrap().0;
        Received { header, slice, info }
    }

    /// Receives everything that waits and says what it is: cookies of messages, or the notification.
    pub(super) fn drain(&mut self, peer: Peer) -> Vec<Received> {
        core::iter::from_fn(|| self.recv(peer).ok()).collect()
    }

    pub(super) fn cookies(&mut self, peer: Peer) -> Vec<u64> {
        self.drain(peer).iter().map(|message| message.header.cookie).collect()
    }

    pub(super) fn notices(&mut self, peer: Peer) -> Vec<(ItemType, Vec<u64>)> {
        self.drain(peer).iter().map(Received::notice).collect()
    }

    pub(super) fn acquire(&mut self, peer: Peer, name: &str, flags: NameFlags) -> Result<NameFlags, Errno> {
        let mut arg = arg(
            Cmd { flags: flags.bits(), return_flags: 0xff, ..Cmd::default() },
            &[(ItemType::NAME, &c_str(name))],
        );
        let result = self.run(peer.handle, Command::NameAcquire, &mut arg);
        let flags = Cmd::read_from_prefix(&arg).unwrap().0.return_flags;
        result.map(|()| NameFlags::from_bits_retain(flags))
    }

    pub(super) fn release(&mut self, peer: Peer, name: &str) -> Result<(), Errno> {
        self.run(
            peer.handle,
            Command::NameRelease,
            &mut arg(Cmd::default(), &[(ItemType::NAME, &c_str(name))]),
        )
    }

    pub(super) fn add_match(
        &mut self,
        peer: Peer,
        cookie: u64,
        items: &[(ItemType, &[u8])],
    ) -> Result<(), Errno> {
        self.run(peer.handle, Command::MatchAdd, &mut arg(CmdMatch { cookie, ..CmdMatch::default() }, items))
    }

    /// What LIST reports: id, and flags and name of the claim.
    pub(super) fn list(&mut self, peer: Peer, flags: u64) -> Vec<(u64, Option<(u64, String)>)> {
        let mut arg = arg(CmdList { flags, ..CmdList::default() }, &[]);
        self.run(peer.handle, Command::List, &mut arg).unwrap();
        let cmd = CmdList::read_from_prefix(&arg).unwrap().0;
        let mut area = if cmd.list_size == 0 {
            assert_eq!(cmd.offset, peer.pool);
            Vec::new()
        } else {
            let pool = &self.host.pools[&peer.handle];
            pool[cmd.offset as usize..(cmd.offset + cmd.list_size) as usize].to_vec()
        };
        self.free(peer, cmd.offset).unwrap();
        let mut records = Vec::new();
        while !area.is_empty() {
            let info = Info::read_from_prefix(&area).unwrap().0;
            let rest = area.split_off(info.size as usize);
            let item = Items::new(&area[size_of::<Info>()..]).next().map(Result::unwrap);
            let claim = item.map(|item| {
                let (flags, name) = item.owned_name().unwrap();
                (flags.bits(), name.to_string())
            });
            records.push((info.id, claim));
            area = rest;
        }
        records
    }

    /// CONN_INFO: the record and its items.
    pub(super) fn info(
        &mut self,
        peer: Peer,
        command: Command,
        cmd: CmdInfo,
        items: &[(ItemType, &[u8])],
    ) -> Result<(Info, Vec<OwnedItem>), Errno> {
        let mut arg = arg(cmd, items);
        self.run(peer.handle, command, &mut arg)?;
        let cmd = CmdInfo::read_from_prefix(&arg).unwrap().0;
        let pool = &self.host.pools[&peer.handle];
        let area = pool[cmd.offset as usize..(cmd.offset + cmd.info_size) as usize].to_vec();
        self.free(peer, cmd.offset).unwrap();
        let info = Info::read_from_prefix(&area).unwrap().0;
        assert_eq!(info.size, cmd.info_size);
        let items = Items::new(&area[size_of::<Info>()..]).map(Result::unwrap);
        Ok((info, items.map(|item| (item.kind, item.payload.to_vec())).collect()))
    }

    pub(super) fn set_recv_mask(&mut self, peer: Peer, mask: crate::abi::AttachFlags) {
        let mask = mask.bits().to_ne_bytes();
        let mut arg = arg(Cmd::default(), &[(ItemType::ATTACH_FLAGS_RECV, &mask)]);
        self.run(peer.handle, Command::Update, &mut arg).unwrap();
    }

    pub(super) fn timeout(&mut self, now: u64) {
        self.now = now;
        let at = self.at();
        self.domain.handle_timeout(&mut self.host, at);
        self.collect();
    }

    /// The ends of synchronous calls since the last look, and forgets all effects.
    pub(super) fn answers(&mut self) -> Vec<(u64, Result<MsgInfo, Errno>)> {
        let effects = core::mem::take(&mut self.effects);
        let answer = |effect| match effect {
            Effect::Answer { token, result, .. } => Some((token, result)),
            _ => None,
        };
        effects.into_iter().filter_map(answer).collect()
    }

    pub(super) fn woken(&mut self) -> Vec<HandleId> {
        let effects = core::mem::take(&mut self.effects);
        let wake = |effect| match effect {
            Effect::Wake(handle) => Some(handle),
            _ => None,
        };
        effects.into_iter().filter_map(wake).collect()
    }
}
