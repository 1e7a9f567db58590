//! The index over matches finds exactly those that a look at every match would find.

extern crate std;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{Errno, IdChange, ItemType, NameFlags};

/// A generator that is the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }
}

const NAMES: [&str; 3] = ["a.a", "a.b", "b.a"];
const ANY: u64 = u64::MAX;

/// A match as it was added: its owner, cookie and items.
struct Added {
    peer: Peer,
    cookie: u64,
    items: Vec<OwnedItem>,
}

/// Up to `bits` bits, some of them neighbours.
fn mask(dice: &mut Dice, bits: u64) -> [u8; BLOOM] {
    let mut mask = [0; BLOOM];
    for _ in 0..1 + dice.roll(bits) {
        mask[dice.roll(2) as usize * 8 + 7] |= 1 << dice.roll(4);
    }
    mask
}

fn random_items(dice: &mut Dice, peers: &[Peer]) -> Vec<OwnedItem> {
    let id = |dice: &mut Dice| match dice.roll(3) {
        0 => ANY,
        _ => peers[dice.roll(peers.len() as u64) as usize].id,
    };
    let mut items = Vec::new();
    // A match without rules passes everything: it is rare, lest it hide what the others do.
    let rules = if dice.roll(40) == 0 { 0 } else { 1 + dice.roll(2) };
    for _ in 0..rules {
        let item = match dice.roll(7) {
            0 => (ItemType::ID, id(dice).to_ne_bytes().to_vec()),
            1 => (ItemType::DST_ID, id(dice).to_ne_bytes().to_vec()),
            2 => (ItemType::NAME, c_str(NAMES[dice.roll(3) as usize])),
            3 => (ItemType::ID_ADD, [id(dice), 0].map(u64::to_ne_bytes).concat()),
            4 => {
                let mut rule = [id(dice), 0, id(dice), 0].map(u64::to_ne_bytes).concat();
                if dice.roll(2) == 0 {
                    rule.extend(c_str(NAMES[dice.roll(3) as usize]));
                }
                (ItemType::NAME_CHANGE, rule)
            }
            _ => {
                let mut bits = mask(dice, 2).to_vec();
                if dice.roll(4) == 0 {
                    bits.extend(mask(dice, 2));
                }
                (ItemType::BLOOM_MASK, bits)
            }
        };
        items.push(item);
    }
    items
}

/// Whether a signal passes a rule, by the letter.
fn signal_passes(
    item: &OwnedItem,
    sender: u64,
    held: &[&str],
    to: u64,
    generation: u64,
    filter: &[u8],
) -> bool {
    let word = || u64::from_ne_bytes(item.1[..8].try_into().unwrap());
    match item.0 {
        ItemType::ID => word() == ANY || word() == sender,
        ItemType::DST_ID => word() == ANY || word() == to,
        ItemType::NAME => held.iter().any(|name| c_str(name) == item.1),
        ItemType::BLOOM_MASK => {
            let masks: Vec<&[u8]> = item.1.chunks(filter.len()).collect();
            let mask = masks[(generation as usize).min(masks.len() - 1)];
            mask.iter().zip(filter).all(|(mask, filter)| mask & filter == *mask)
        }
        _ => false,
    }
}

#[test]
fn broadcasts_and_signals_reach_exactly_those_whose_rules_pass() {
    for seed in 1..12_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let buckets = [1, 7, 256, 256][dice.roll(4) as usize];
        let mut bed = Bed::with(&Config { match_buckets: buckets, connections: 8, ..Config::SMALL });
        let peers: Vec<_> = (0..5).map(|_| bed.connect()).collect();
        for (peer, name) in peers.iter().zip(NAMES) {
            bed.acquire(*peer, name, NameFlags::empty()).unwrap();
        }
        let mut added: Vec<Added> = Vec::new();
        for _ in 0..300 {
            let peer = peers[dice.roll(5) as usize];
            let cookie = dice.roll(6);
            if dice.roll(2) == 0 {
                let known = added.iter().any(|one| (one.peer, one.cookie) == (peer, cookie));
                let removed = bed.remove_match(peer, cookie);
                assert_eq!(removed, if known { Ok(()) } else { Err(Errno::EBADSLT) });
                added.retain(|one| (one.peer, one.cookie) != (peer, cookie));
                continue;
            }
            let items = random_items(&mut dice, &peers);
            let borrowed: Vec<_> = items.iter().map(|(kind, bytes)| (*kind, bytes.as_slice())).collect();
            bed.add_match(peer, cookie, &borrowed).unwrap();
            added.push(Added { peer, cookie, items });

            let (sender, generation) = (dice.roll(5) as usize, dice.roll(3));
            let to = if dice.roll(3) == 0 { peers[dice.roll(5) as usize].id } else { ANY };
            let filter = mask(&mut dice, 6);
            let mut sent = signal(to, filter);
            sent.items[0].1[0] = generation as u8;
            bed.send(peers[sender], &sent).unwrap();
            let held: Vec<&str> = NAMES.get(sender).copied().into_iter().collect();
            for peer in &peers {
                let wants = |one: &&Added| {
                    let id = peers[sender].id;
                    let passes = |item| signal_passes(item, id, &held, to, generation, &filter);
                    one.peer == *peer && one.items.iter().all(passes)
                };
                let expected =
                    usize::from((to == ANY || to == peer.id) && added.iter().any(|one| wants(&one)));
                assert_eq!(bed.drain(*peer).len(), expected, "seed {seed}");
            }
        }
        for peer in peers {
            bed.close(peer.handle);
        }
        assert_eq!(bed.domain.usage().matches, 0);
    }
}

#[test]
fn notifications_reach_exactly_those_whose_rules_pass() {
    for seed in 1..12_u64 {
        let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bed = Bed::with(&Config { match_buckets: 64, connections: 12, ..Config::SMALL });
        let peers: Vec<_> = (0..4).map(|_| bed.connect()).collect();
        bed.acquire(peers[0], "a.a", NameFlags::ALLOW_REPLACEMENT).unwrap();
        let mut owner = 0;
        let mut added: Vec<Added> = Vec::new();
        for _ in 0..120 {
            let peer = peers[dice.roll(4) as usize];
            if dice.roll(3) == 0 {
                let _ = bed.remove_match(peer, 1);
                added.retain(|one| one.peer != peer);
            }
            let items = random_items(&mut dice, &peers);
            let borrowed: Vec<_> = items.iter().map(|(kind, bytes)| (*kind, bytes.as_slice())).collect();
            bed.add_match(peer, 1, &borrowed).unwrap();
            added.push(Added { peer, cookie: 1, items });

            let next = dice.roll(4) as usize;
            let (old, new) = (peers[owner].id, peers[next].id);
            let flags = NameFlags::ALLOW_REPLACEMENT | NameFlags::REPLACE_EXISTING;
            bed.acquire(peers[next], "a.a", flags).unwrap();
            let changed = next != owner;
            owner = next;
            let passes = |item: &OwnedItem| {
                let word = |at| u64::from_ne_bytes(item.1[at..at + 8].try_into().unwrap());
                item.0 == ItemType::NAME_CHANGE
                    && (word(0) == ANY || word(0) == old)
                    && (word(16) == ANY || word(16) == new)
                    && (item.1.len() == 2 * size_of::<IdChange>() || item.1[32..] == *b"a.a\0")
            };
            for peer in &peers {
                let wants = |one: &Added| one.peer == *peer && one.items.iter().all(passes);
                let expected = usize::from(changed && added.iter().any(wants));
                assert_eq!(bed.drain(*peer).len(), expected, "seed {seed}");
            }
        }
    }
}

#[test]
fn a_replaced_match_makes_room_for_its_successor() {
    let mut bed = Bed::with(&Config { matches: 1, ..Config::SMALL });
    let peer = bed.connect();
    bed.add_match(peer, 1, &[]).unwrap();
    assert_eq!(bed.add_match(peer, 1, &[]), Err(Errno::ENOMEM));
    let replace = crate::abi::CmdMatch { flags: 1, cookie: 1, ..Default::default() };
    let add = crate::abi::Command::MatchAdd;
    assert_eq!(bed.run(peer.handle, add, &mut arg(replace, &[(ItemType::NAME, b"a.b\0")])), Ok(()));
    assert_eq!(
        bed.run(peer.handle, add, &mut arg(replace, &[(ItemType::NAME, b"foo\0")])),
        Err(Errno::EINVAL)
    );
    assert_eq!(bed.remove_match(peer, 1), Ok(()));
}

#[test]
fn a_probe_for_item_types_is_no_rule() {
    let mut bed = Bed::new();
    let peer = bed.connect();
    let probe = 0x7777_u64.to_ne_bytes();
    bed.add_match(peer, 1, &[(ItemType::NEGOTIATE, &probe)]).unwrap();
    bed.send(peer, &broadcast()).unwrap();
    assert_eq!(bed.drain(peer).len(), 1);
}

#[test]
fn a_replacement_without_room_leaves_the_former_match() {
    let mut bed = Bed::with(&Config { match_rules: 2, match_rule_bytes: 128, ..Config::SMALL });
    let peer = bed.connect();
    let replace = crate::abi::CmdMatch { flags: 1, cookie: 1, ..Default::default() };
    let add = crate::abi::Command::MatchAdd;
    let (mask, wide) = ([1; BLOOM], [1; 3 * BLOOM]);
    let mut filter = [0; BLOOM];
    filter.copy_from_slice(&mask);
    bed.add_match(peer, 1, &[(ItemType::BLOOM_MASK, &mask)]).unwrap();
    let too_much: [&[(ItemType, &[u8])]; 3] = [
        &[(ItemType::BLOOM_MASK, &wide)],
        &[(ItemType::ID, &[0; 8]), (ItemType::ID, &[0; 8]), (ItemType::ID, &[0; 8])],
        &[(ItemType::BLOOM_MASK, &[0; 2 * BLOOM]), (ItemType::NAME, b"a.b\0")],
    ];
    for items in too_much {
        assert_eq!(bed.run(peer.handle, add, &mut arg(replace, items)), Err(Errno::ENOMEM));
        bed.send(peer, &signal(u64::MAX, filter)).unwrap();
        assert_eq!(bed.drain(peer).len(), 1, "{items:?}");
    }
    // What the former one had counts as room.
    for _ in 0..5 {
        let items: [(ItemType, &[u8]); 2] = [
            (ItemType::BLOOM_MASK, &mask),
            (ItemType::NAME_ADD, &[[0xff; 32].as_slice(), b"a.b\0"].concat()),
        ];
        assert_eq!(bed.run(peer.handle, add, &mut arg(replace, &items)), Ok(()));
    }
    assert_eq!(bed.remove_match(peer, 1), Ok(()));
    assert_eq!(bed.remove_match(peer, 1), Err(Errno::EBADSLT));
}
