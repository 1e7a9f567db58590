//! A whole engine under sequences of commands, hostile returns and garbage: nothing panics, nothing leaks, and
//! what must always hold does. Tests choose the commands at random, a fuzzer by its bytes.

extern crate std;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::testbed::*;
use super::*;
use crate::abi::{
    AttachFlags, Cmd, CmdInfo, Command, Errno, HelloFlags, ItemType, Memfd, NameFlags, RecvFlags,
};

/// Where choices come from.
pub(crate) enum Dice<'b> {
    /// A generator that is the same on every machine.
    Seeded(u64),
    /// Bytes, one for each choice of up to 256; once they are spent, always the first choice.
    Given(&'b [u8]),
}

impl Dice<'_> {
    pub(crate) const fn seeded(seed: u64) -> Self {
        Self::Seeded(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn is_spent(&self) -> bool {
        matches!(self, Self::Given([]))
    }

    fn roll(&mut self, sides: u64) -> u64 {
        match self {
            Self::Seeded(state) => {
                *state ^= *state << 13;
                *state ^= *state >> 7;
                *state ^= *state << 17;
                (*state >> 11) % sides
            }
            Self::Given(bytes) => {
                let len = if sides <= 256 { 1 } else { 4 }.min(bytes.len());
                let (taken, rest) = bytes.split_at(len);
                *bytes = rest;
                taken.iter().fold(0, |value, byte| value << 8 | u64::from(*byte)) % sides
            }
        }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }
}

const NAMES: [&str; 4] = ["a.a", "a.b", "a.c", "b.a"];

/// One thing that happens to a domain; what is left open is chosen when it happens.
#[derive(Clone, Copy, Debug)]
enum Op {
    Send,
    Receive,
    Free,
    Acquire,
    Release,
    AddMatch,
    RemoveMatch,
    Timeout,
    Cancel,
    Fill,
    Returns,
    Query,
    ReceiveMask,
    Byebye,
    Close,
    Endpoint,
    Garbage,
    Mutant,
}

/// Each as often as it is to happen.
const OPS: [Op; 32] = [
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Send,
    Op::Receive,
    Op::Receive,
    Op::Receive,
    Op::Receive,
    Op::Free,
    Op::Acquire,
    Op::Acquire,
    Op::Release,
    Op::AddMatch,
    Op::RemoveMatch,
    Op::Timeout,
    Op::Cancel,
    Op::Fill,
    Op::Returns,
    Op::Query,
    Op::ReceiveMask,
    Op::Byebye,
    Op::Close,
    Op::Endpoint,
    Op::Garbage,
    Op::Mutant,
    Op::Mutant,
];

/// A domain to which things happen.
pub(crate) struct Chaos<'d> {
    bed: BedOver<'d>,
    dice: Dice<'d>,
    /// Looks at the bus from time to time, and does nothing else.
    observer: Option<Peer>,
    steps: u32,
    peers: Vec<Peer>,
    endpoints: Vec<(HandleId, usize)>,
    /// Synchronous calls that wait: caller and token.
    waiting: Vec<(Peer, u64)>,
    made: usize,
}

impl<'d> Chaos<'d> {
    pub(crate) fn new(dice: Dice<'d>, domain: Domain<'d>) -> Self {
        let mut bed = BedOver::over(domain);
        bed.host.fds.insert(1, TestFile(FileKind::Memfd { sealed: true, size: 64 }));
        bed.host.fds.insert(2, TestFile(FileKind::Other));
        bed.host.fds.insert(3, TestFile(FileKind::Unpassable));
        let handle = bed.open(OWNER);
        let observer = bed.hello(handle, HelloFlags::empty(), 1 << 16, &[]).ok();
        Self {
            bed,
            dice,
            observer,
            steps: 0,
            peers: Vec::new(),
            endpoints: Vec::new(),
            waiting: Vec::new(),
            made: 0,
        }
    }

    /// Does one thing after another, at most `steps`, and looks at everything after each.
    pub(crate) fn run(mut self, steps: usize) {
        for _ in 0..steps {
            if self.dice.is_spent() {
                break;
            }
            self.step();
            self.check();
        }
        self.end();
    }

    /// Gives commands as they are to handles of every kind, and looks at everything after each. A command is
    /// its number, that of its handle, the lengths of argument and message in two bytes each, then both.
    pub(crate) fn commands(mut self, mut bytes: &[u8]) {
        let flags =
            [HelloFlags::ACCEPT_FD, HelloFlags::MONITOR, HelloFlags::ACTIVATOR, HelloFlags::POLICY_HOLDER];
        let names = ["", "", "a.a\0", "b.a\0"];
        for ((flags, name), uid) in
            flags.into_iter().zip(names).zip([OWNER; 4]).chain([((flags[0], ""), 2000)])
        {
            let handle = self.bed.open(uid);
            let named = [(ItemType::NAME, name.as_bytes())];
            let items = if name.is_empty() { [].as_slice() } else { named.as_slice() };
            self.peers.extend(self.bed.hello(handle, flags, 1 << 13, items));
        }
        let mut handles: Vec<_> = self.peers.iter().map(|peer| peer.handle).collect();
        let endpoint = self.bed.open(OWNER);
        self.bed.make_endpoint(endpoint, "1000-e").unwrap();
        let fresh = [endpoint, self.bed.control(OWNER), self.bed.open(OWNER), self.bed.bus];
        handles.extend(fresh);
        self.bed.host.payload = vec![1; 1 << 12];
        while let Some(([command, on, len @ ..], rest)) = bytes.split_first_chunk::<6>() {
            let size = |at: usize| usize::from(u16::from_le_bytes([len[at], len[at + 1]]));
            let (arg, rest) = rest.split_at(size(0).min(rest.len()));
            let (message, rest) = rest.split_at(size(2).min(rest.len()));
            bytes = rest;
            let command = Command::ALL[usize::from(*command) % Command::ALL.len()];
            let on = handles[usize::from(*on) % handles.len()];
            let (mut arg, mut message) = (arg.to_vec(), message.to_vec());
            let message = if message.is_empty() { None } else { Some(&mut message[..]) };
            if self.bed.request(on, command.request(), &mut arg, message) == Outcome::Pending {
                let caller = self.peers.iter().find(|peer| peer.handle == on).copied();
                self.waiting.push((caller.unwrap_or(self.peers[0]), self.bed.last_token()));
            }
            self.check();
        }
        for handle in &fresh[..3] {
            self.bed.close(*handle);
        }
        self.end();
    }

    fn join(&mut self) {
        let uid = self.dice.pick(&[OWNER, OWNER, 2000, 3000]);
        let endpoint = match self.dice.roll(4) {
            0 if !self.endpoints.is_empty() => std::format!("1000-e{}", self.dice.pick(&self.endpoints).1),
            _ => "bus".into(),
        };
        let endpoint = self.bed.domain.endpoint("1000-test", &endpoint).unwrap();
        let Ok(handle) = self.bed.domain.open(endpoint, &user(uid)) else {
            return;
        };
        let name = c_str(self.dice.pick(&NAMES));
        let named = [(ItemType::NAME, name.as_slice())];
        let (flags, items) = match self.dice.roll(8) {
            0 => (HelloFlags::MONITOR, [].as_slice()),
            1 | 2 => (HelloFlags::ACTIVATOR, named.as_slice()),
            3 => (HelloFlags::POLICY_HOLDER, named.as_slice()),
            4 => (HelloFlags::empty(), [].as_slice()),
            _ => (HelloFlags::ACCEPT_FD, [].as_slice()),
        };
        let pool = self.dice.pick(&[4096, 8192, 1 << 16]);
        match self.bed.hello(handle, flags, pool, items) {
            Ok(peer) => self.peers.push(peer),
            Err(_) => self.bed.close(handle),
        }
    }

    fn outgoing(&mut self, to: u64) -> Outgoing {
        let cookie = 1 + self.dice.roll(4);
        let mut message = match self.dice.roll(8) {
            0 | 1 => to_name(self.dice.pick(&NAMES), cookie),
            2 => broadcast(),
            3 => signal(to, [self.dice.roll(256) as u8; BLOOM]),
            _ => message(to, cookie),
        };
        if self.dice.roll(2) == 0 {
            message = message.vec(&vec![7; 1 + self.dice.roll(600) as usize]);
        }
        match self.dice.roll(8) {
            0 => {
                let fd = 1 + self.dice.roll(3) as i32;
                message = message.item(ItemType::FDS, &[fd.to_ne_bytes(), 2_i32.to_ne_bytes()].concat());
            }
            1 => {
                let memfd = Memfd { start: 0, size: 9, fd: 1, pad: 0 };
                message = message.item(ItemType::PAYLOAD_MEMFD, zerocopy::IntoBytes::as_bytes(&memfd));
            }
            _ => {}
        }
        let deadline = self.bed.now + self.dice.roll(60);
        match self.dice.roll(6) {
            0 => message.call(deadline),
            1 => message.sync(deadline + 5),
            2 | 3 => message.reply_to(cookie),
            _ => message.priority(self.dice.roll(20) as i64 - 10),
        }
    }

    fn step(&mut self) {
        if self.peers.len() < 3 || self.dice.roll(25) == 0 {
            self.join();
            return;
        }
        let peer = self.dice.pick(&self.peers);
        let to = self.dice.pick(&self.peers);
        let name = self.dice.pick(&NAMES);
        match self.dice.pick(&OPS) {
            Op::Send => {
                let outgoing = self.outgoing(to.id);
                if let (Outcome::Pending, _) = self.bed.send_any(peer, &outgoing) {
                    self.waiting.push((peer, self.bed.last_token()));
                }
            }
            Op::Receive => {
                let flags = RecvFlags::from_bits_truncate(self.dice.roll(8));
                let next = self.next(peer, flags, 0);
                if let (Ok(()), cmd) = self.bed.recv_cmd(peer, flags, 0) {
                    let expected = if flags.contains(RecvFlags::DROP) { Some(peer.pool) } else { next };
                    assert_eq!(Some(cmd.msg.offset), expected, "the queue keeps its order");
                    if self.dice.roll(3) > 0 {
                        let _ = self.bed.free(peer, cmd.msg.offset);
                    }
                }
            }
            Op::Free => {
                let offset = self.dice.roll(512) * 8;
                let _ = self.bed.free(peer, offset);
            }
            Op::Acquire => {
                let flags = NameFlags::from_bits_truncate(self.dice.roll(8));
                let _ = self.bed.acquire(peer, name, flags);
            }
            Op::Release => {
                let _ = self.bed.release(peer, name);
            }
            Op::AddMatch => {
                let mask = [1 << self.dice.roll(8); BLOOM];
                let id = [u64::MAX, 0].map(u64::to_ne_bytes).concat();
                let items: &[(ItemType, &[u8])] = match self.dice.roll(4) {
                    0 => &[],
                    1 => &[(ItemType::BLOOM_MASK, &mask)],
                    2 => &[(ItemType::ID_REMOVE, &id)],
                    _ => &[(ItemType::NAME, b"a.a\0"), (ItemType::BLOOM_MASK, &mask)],
                };
                let _ = self.bed.add_match(peer, self.dice.roll(4), items);
            }
            Op::RemoveMatch => {
                let _ = self.bed.remove_match(peer, self.dice.roll(4));
            }
            Op::Timeout => {
                let at = self.bed.now + self.dice.roll(30);
                self.bed.timeout(at);
            }
            Op::Cancel => {
                if !self.waiting.is_empty() {
                    let (caller, token) = self.dice.pick(&self.waiting);
                    let reason = self.dice.pick(&[Errno::EINTR, Errno::ECANCELED]);
                    let at = self.bed.at();
                    self.bed.domain.cancel(&mut self.bed.host, at, caller.handle, token, reason);
                    self.bed.collect();
                }
            }
            Op::Fill => {
                let filler = message(to.id, 9).vec(&[1; 300]);
                while self.bed.send(peer, &filler).is_ok() {
                    if self.dice.roll(40) == 0 {
                        break;
                    }
                }
                let _ = self.bed.domain.watch_room(&mut self.bed.host, peer.handle, to.id);
                self.bed.collect();
            }
            Op::Returns => {
                if let Some(entry) = self.bed.host.published.get(&peer.handle).and_then(|all| all.first()) {
                    let (slot, key) = (entry.slot, entry.key);
                    let hostile = [
                        Return::Taken { slot, key },
                        Return::Freed(entry.offset),
                        Return::Taken { slot, key: key + 1 },
                        Return::Taken { slot: 4711, key },
                        Return::Freed(self.dice.roll(1 << 20)),
                    ];
                    // Descriptors make an entry one that only the engine hands out.
                    let from = usize::from(entry.with_files) * 2;
                    self.bed.host.returns.insert(peer.handle, hostile[from..].iter().copied().collect());
                    let at = self.bed.at();
                    self.bed.domain.handle_returns(&mut self.bed.host, at, peer.handle);
                    self.bed.collect();
                }
            }
            Op::Query => {
                let command = self.dice.pick(&[Command::List, Command::ConnInfo, Command::BusCreatorInfo]);
                let cmd = CmdInfo { id: to.id, attach_flags: u64::MAX, ..CmdInfo::default() };
                match command {
                    Command::List => {
                        let mut arg = arg(crate::abi::CmdList { flags: 15, ..Default::default() }, &[]);
                        let _ = self.bed.run(peer.handle, command, &mut arg);
                    }
                    _ => {
                        let mut arg = arg(cmd, &[]);
                        let _ = self.bed.run(peer.handle, command, &mut arg);
                    }
                }
            }
            Op::ReceiveMask => {
                let mask = AttachFlags::from_bits_truncate(self.dice.roll(1 << 14));
                let mask = mask.bits().to_ne_bytes();
                let mut arg = arg(Cmd::default(), &[(ItemType::ATTACH_FLAGS_RECV, &mask)]);
                let _ = self.bed.run(peer.handle, Command::Update, &mut arg);
            }
            Op::Byebye => {
                let _ = self.bed.byebye(peer);
            }
            Op::Close => {
                self.bed.close(peer.handle);
                self.peers.retain(|other| *other != peer);
            }
            Op::Endpoint => self.endpoint(),
            Op::Garbage => self.garbage(peer),
            Op::Mutant => self.mutant(peer, to),
        }
    }

    /// Where the message lies that is to be received next.
    fn next(&self, peer: Peer, flags: RecvFlags, limit: i64) -> Option<u64> {
        let shown = self.bed.host.published.get(&peer.handle)?;
        let next = if flags.contains(RecvFlags::USE_PRIORITY) {
            shown.iter().filter(|entry| entry.priority <= limit).min_by_key(|entry| entry.priority)
        } else {
            shown.first()
        };
        next.map(|entry| entry.offset)
    }

    fn endpoint(&mut self) {
        if self.endpoints.len() < 2 {
            let default = self.bed.domain.endpoint("1000-test", "bus").unwrap();
            let Ok(handle) = self.bed.domain.open(default, &user(OWNER)) else {
                return;
            };
            self.made += 1;
            let name = std::format!("1000-e{}", self.made);
            match self.bed.make_endpoint(handle, &name) {
                Ok(()) => self.endpoints.push((handle, self.made)),
                Err(_) => self.bed.close(handle),
            }
        } else if self.dice.roll(2) == 0 {
            let (handle, _) = self.dice.pick(&self.endpoints);
            let access = self.dice.roll(3);
            let name = self.dice.pick(&NAMES);
            let _ = self.bed.set_policy(handle, &[(name, (3, access, 0)), ("b.*", (1, 2, 2000))]);
        } else {
            let (handle, _) = self.endpoints.remove(0);
            self.bed.close(handle);
        }
    }

    /// A command that is nearly right.
    fn garbage(&mut self, peer: Peer) {
        let command = self.dice.pick(Command::ALL);
        let mut bytes = vec![0; 24 + 8 * self.dice.roll(40) as usize];
        for byte in &mut bytes {
            *byte = if self.dice.roll(3) == 0 { self.dice.roll(256) as u8 } else { 0 };
        }
        let size = bytes.len() as u64;
        bytes[..8].copy_from_slice(&size.to_ne_bytes());
        if self.dice.roll(2) == 0 {
            bytes[8..24].fill(0);
        }
        let mut message = bytes.clone();
        if let Outcome::Pending =
            self.bed.request(peer.handle, command.request(), &mut bytes, Some(&mut message))
        {
            self.waiting.push((peer, self.bed.last_token()));
        }
    }

    /// A command that was right before some of its bytes changed.
    fn mutant(&mut self, peer: Peer, to: Peer) {
        let mask = [1 << self.dice.roll(8); 2 * BLOOM];
        let change = [u64::MAX, 0, u64::MAX, 0].map(u64::to_ne_bytes).concat();
        let policy = [3_u64, self.dice.roll(3), 0].map(u64::to_ne_bytes).concat();
        let mut message = self.outgoing(to.id).bytes();
        let (command, mut bytes) = match self.dice.roll(6) {
            0 => {
                let items: [(ItemType, &[u8]); 2] =
                    [(ItemType::BLOOM_MASK, &mask), (ItemType::NAME_CHANGE, &change)];
                (Command::MatchAdd, arg(crate::abi::CmdMatch::default(), &items))
            }
            1 => (Command::NameAcquire, arg(Cmd::default(), &[(ItemType::NAME, b"a.a\0")])),
            2 => {
                let items: [(ItemType, &[u8]); 2] =
                    [(ItemType::NAME, b"a.c\0"), (ItemType::POLICY_ACCESS, &policy)];
                (Command::Update, arg(Cmd::default(), &items))
            }
            _ => {
                let cmd = crate::abi::CmdSend { msg_address: 8, ..Default::default() };
                (Command::Send, arg(cmd, &[]))
            }
        };
        for _ in 0..1 + self.dice.roll(3) {
            let bytes = if command == Command::Send { &mut message } else { &mut bytes };
            let at = self.dice.roll(bytes.len() as u64) as usize;
            bytes[at] = self.dice.roll(256) as u8;
        }
        self.bed.host.payload = vec![1; 1 << 16];
        let outcome = self.bed.request(peer.handle, command.request(), &mut bytes, Some(&mut message));
        if outcome == Outcome::Pending {
            self.waiting.push((peer, self.bed.last_token()));
        }
    }

    /// What holds between any two commands.
    fn check(&mut self) {
        for effect in core::mem::take(&mut self.bed.effects) {
            if let Effect::Answer { token, .. } = effect {
                assert!(self.waiting.iter().any(|(_, other)| *other == token), "each call ends once");
                self.waiting.retain(|(_, other)| *other != token);
            }
            if let Effect::Room(handle) = effect {
                assert!(self.peers.iter().any(|peer| peer.handle == handle), "only watchers are told");
            }
        }
        assert_eq!(self.bed.domain.audit(), Ok(()));
        let mut views = Vec::new();
        self.bed.domain.each_connection(|view| views.push(view));
        assert_eq!(views.len(), self.bed.host.pools.len());
        for view in views {
            let shown = self.bed.host.published.get(&view.handle).map_or(0, Vec::len);
            assert_eq!(shown, view.queued, "what waits is what is shown");
            let (mut size, mut messages) = (0, 0);
            self.bed.domain.each_holder(view.handle, |holder| {
                size += holder.charge.size;
                messages += holder.charge.messages as usize;
            });
            assert_eq!(size, view.accounted_size, "charges are what waits");
            assert!(messages >= view.queued && messages <= view.queued + 128);
            let readiness = self.bed.domain.readiness(view.handle);
            assert_eq!(readiness.readable, view.queued > 0 || view.lost > 0);
            assert!(view.calls <= 128);
        }
        let pins = self.bed.host.pinned.values().sum::<u32>();
        assert_eq!(pins as usize, self.bed.domain.usage().files);
        for shown in self.bed.host.published.values() {
            assert!(shown.is_sorted_by_key(|entry| entry.key), "what waits stands in the order it came");
        }
        self.steps += 1;
        if self.steps.is_multiple_of(8) {
            self.check_names();
        }
    }

    /// Each name has one owner, and whoever waits for it does so behind one.
    fn check_names(&mut self) {
        let Some(observer) = self.observer else {
            return;
        };
        let mut owners: BTreeMap<_, (u32, u32)> = BTreeMap::new();
        for (_, claim) in self.bed.list(observer, 15) {
            if let Some((flags, name)) = claim {
                let flags = NameFlags::from_bits_truncate(flags);
                let primary = flags.contains(NameFlags::PRIMARY);
                assert_ne!(primary, flags.contains(NameFlags::IN_QUEUE), "{name}: {flags:?}");
                let (held, waiting) = owners.entry(name).or_default();
                *held += u32::from(primary);
                *waiting += u32::from(!primary);
            }
        }
        for (name, (held, _)) in &owners {
            assert_eq!(*held, 1, "{name} has one owner");
        }
        assert_eq!(owners.len(), self.bed.domain.usage().names);
    }

    /// Once everybody has received and freed everything, no pool has anything in it.
    fn check_slices(&mut self) {
        // What came for callers that are away is theirs until the deadline.
        self.bed.timeout(1 << 62);
        self.check();
        for peer in self.peers.clone() {
            let refusal = loop {
                if let (Err(refusal), _) = self.bed.recv_cmd(peer, RecvFlags::empty(), 0) {
                    break refusal;
                }
            };
            // Who holds policy can free nothing, and who is gone has no pool.
            if refusal != Errno::EAGAIN {
                continue;
            }
            let held =
                |bed: &mut BedOver<'_>| bed.domain.connection(peer.handle).map_or(0, |view| view.slices);
            let mut offset = 0;
            while held(&mut self.bed) > 0 {
                assert!(offset < peer.pool, "a slice is lost");
                let _ = self.bed.free(peer, offset);
                offset += 8;
            }
        }
        self.check();
    }

    fn end(mut self) {
        self.check_slices();
        if let Some(observer) = self.observer.take() {
            self.bed.close(observer.handle);
        }
        for (handle, _) in core::mem::take(&mut self.endpoints) {
            self.bed.close(handle);
        }
        if self.dice.roll(2) == 0 {
            let bus = self.bed.bus;
            self.bed.close(bus);
        }
        self.check();
        while let Some(peer) = self.peers.pop() {
            self.bed.close(peer.handle);
            self.check();
        }
        assert_eq!(self.waiting, [], "every call has ended");
        let bus = self.bed.bus;
        self.bed.close(bus);
        let clean = Usage { users: 1, ..Usage::default() };
        assert_eq!(self.bed.domain.usage(), clean);
        assert!(self.bed.host.pools.is_empty() && self.bed.host.nodes.is_empty());
        assert!(self.bed.host.pinned.is_empty());
        assert_eq!(self.bed.domain.poll_timeout(), None);
    }
}

#[cfg(test)]
#[path = "chaos_tests.rs"]
mod tests;
