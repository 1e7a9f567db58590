//! Random sequences of commands, of hostile returns and of garbage: nothing panics, nothing leaks, and what
//! must always hold does.

extern crate std;
use std::collections::BTreeMap;
use std::vec;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{
    AttachFlags, Cmd, CmdInfo, Command, Errno, HelloFlags, ItemType, Memfd, NameFlags, RecvFlags,
};

/// A generator that is the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize]
    }
}

const NAMES: [&str; 4] = ["a.a", "a.b", "a.c", "b.a"];

struct Chaos {
    bed: Bed,
    dice: Dice,
    peers: Vec<Peer>,
    endpoints: Vec<(HandleId, usize)>,
    /// Synchronous calls that wait: caller and token.
    waiting: Vec<(Peer, u64)>,
    made: usize,
}

impl Chaos {
    fn new(seed: u64, config: &Config) -> Self {
        let mut bed = Bed::with(config);
        bed.host.fds.insert(1, TestFile(FileKind::Memfd { sealed: true, size: 64 }));
        bed.host.fds.insert(2, TestFile(FileKind::Other));
        bed.host.fds.insert(3, TestFile(FileKind::Unpassable));
        let dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        Self { bed, dice, peers: Vec::new(), endpoints: Vec::new(), waiting: Vec::new(), made: 0 }
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
        match self.dice.roll(30) {
            0..=9 => {
                let outgoing = self.outgoing(to.id);
                if let (Outcome::Pending, _) = self.bed.send_any(peer, &outgoing) {
                    self.waiting.push((peer, self.bed.last_token()));
                }
            }
            10..=13 => {
                let flags = RecvFlags::from_bits_truncate(self.dice.roll(8));
                if let (Ok(()), cmd) = self.bed.recv_cmd(peer, flags, 0)
                    && self.dice.roll(3) > 0
                {
                    let _ = self.bed.free(peer, cmd.msg.offset);
                }
            }
            14 => {
                let offset = self.dice.roll(512) * 8;
                let _ = self.bed.free(peer, offset);
            }
            15 | 16 => {
                let flags = NameFlags::from_bits_truncate(self.dice.roll(8));
                let _ = self.bed.acquire(peer, name, flags);
            }
            17 => {
                let _ = self.bed.release(peer, name);
            }
            18 => {
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
            19 => {
                let _ = self.bed.remove_match(peer, self.dice.roll(4));
            }
            20 => {
                let at = self.bed.now + self.dice.roll(30);
                self.bed.timeout(at);
            }
            21 => {
                if !self.waiting.is_empty() {
                    let (caller, token) = self.dice.pick(&self.waiting);
                    let reason = self.dice.pick(&[Errno::EINTR, Errno::ECANCELED]);
                    let at = self.bed.at();
                    self.bed.domain.cancel(&mut self.bed.host, at, caller.handle, token, reason);
                    self.bed.collect();
                }
            }
            22 => {
                let filler = message(to.id, 9).vec(&[1; 300]);
                while self.bed.send(peer, &filler).is_ok() {
                    if self.dice.roll(40) == 0 {
                        break;
                    }
                }
                let _ = self.bed.domain.watch_room(&mut self.bed.host, peer.handle, to.id);
                self.bed.collect();
            }
            23 => {
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
            24 => {
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
            25 => {
                let mask = AttachFlags::from_bits_truncate(self.dice.roll(1 << 14));
                let mask = mask.bits().to_ne_bytes();
                let mut arg = arg(Cmd::default(), &[(ItemType::ATTACH_FLAGS_RECV, &mask)]);
                let _ = self.bed.run(peer.handle, Command::Update, &mut arg);
            }
            26 => {
                let _ = self.bed.byebye(peer);
            }
            27 => {
                self.bed.close(peer.handle);
                self.peers.retain(|other| *other != peer);
            }
            28 => self.endpoint(),
            _ if self.dice.roll(2) == 0 => self.garbage(peer),
            _ => self.mutant(peer, to),
        }
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
            match effect {
                Effect::Answer { token, .. } => {
                    assert!(self.waiting.iter().any(|(_, other)| *other == token), "each call ends once");
                    self.waiting.retain(|(_, other)| *other != token);
                }
                Effect::Room(handle) => {
                    assert!(self.peers.iter().any(|peer| peer.handle == handle), "only watchers are told");
                }
                Effect::Wake(_) => {}
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
        let pins: BTreeMap<_, _> = self.bed.host.pinned.clone();
        assert_eq!(pins.values().sum::<u32>() as usize, self.bed.domain.usage().files);
    }

    fn end(mut self) {
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

fn run(seeds: core::ops::Range<u64>, steps: usize, config: &Config) {
    for seed in seeds {
        let mut chaos = Chaos::new(seed, config);
        for _ in 0..steps {
            chaos.step();
            chaos.check();
        }
        chaos.end();
    }
}

#[test]
fn random_traffic_leaves_nothing_behind() {
    let config = Config { queue_depth: 64, pool_slices: 64, connections: 16, ..Config::SMALL };
    run(1..60, 600, &config);
}

#[test]
fn random_traffic_with_tiny_tables_leaves_nothing_behind() {
    let config = Config {
        handles: 14,
        connections: 9,
        queue_depth: 5,
        pool_slices: 7,
        quota_users: 2,
        users: 5,
        names: 3,
        name_records: 4,
        matches: 6,
        match_rules: 7,
        match_rule_bytes: 128,
        match_buckets: 3,
        trackers: 6,
        calls: 3,
        files: 4,
        policy_entries: 3,
        policy_records: 3,
        watches: 2,
        endpoints: 3,
        metadata_bytes: 10,
        info_bytes: 10,
        ..Config::SMALL
    };
    run(1..120, 600, &config);
}
