//! Signals, broadcasts and the matches that select them.

use kdbus_core::abi::{
    AttachFlags, Command, DST_ID_BROADCAST, Errno, ItemType, MATCH_ID_ANY, MatchFlags, NameFlags,
};

use crate::bench::{Bench, Conn, Outcome, match_arg};
use crate::build::{BLOOM, Hello, Item, Message};
use crate::world::World;

const NAME: &str = "com.example.name";

/// Filter or mask bits with these bytes set.
fn bits(bytes: &[(usize, u8)]) -> [u8; BLOOM] {
    let mut bits = [0; BLOOM];
    for (at, byte) in bytes {
        bits[*at] = *byte;
    }
    bits
}

fn mask(masks: &[[u8; BLOOM]]) -> Item {
    Item::bytes(ItemType::BLOOM_MASK, masks.as_flattened())
}

/// Whether a broadcast with this filter reaches `b`.
fn hears<W: World>(t: &mut Bench<W>, a: &Conn<W>, b: &Conn<W>, generation: u64, filter: [u8; BLOOM]) -> bool {
    t.send(a, &Message::broadcast_of(generation, &filter)).unwrap();
    match t.recv(b) {
        Ok(received) => {
            assert_eq!((received.msg.src_id, received.msg.dst_id), (a.id, DST_ID_BROADCAST));
            true
        }
        Err(errno) => {
            assert_eq!(errno, Errno::EAGAIN);
            false
        }
    }
}

/// How many messages wait at `conn`; they are received.
fn drain<W: World>(t: &mut Bench<W>, conn: &Conn<W>) -> usize {
    let mut count = 0;
    while t.recv(conn).is_ok() {
        count += 1;
    }
    count
}

pub(crate) fn a_broadcast_is_a_signal<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let message = Message::to(DST_ID_BROADCAST).filter(0, &[0; BLOOM]);
    assert_eq!(t.send(&a, &message), Err(Errno::EBADMSG));
    Ok(())
}

pub(crate) fn a_broadcast_has_a_filter<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let message = Message::to(DST_ID_BROADCAST).flags(kdbus_core::abi::MsgFlags::SIGNAL);
    assert_eq!(t.send(&a, &message), Err(Errno::EBADMSG));
    Ok(())
}

pub(crate) fn a_broadcast_is_no_call<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, far) = (t.connect(), t.far());
    assert_eq!(t.send(&a, &Message::broadcast().expecting(1, far)), Err(Errno::ENOTUNIQ));
    Ok(())
}

pub(crate) fn a_broadcast_has_no_destination_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let message = Message::broadcast().item(&Item::text(ItemType::DST_NAME, NAME));
    assert_eq!(t.send(&a, &message), Err(Errno::EBADMSG));
    Ok(())
}

pub(crate) fn a_filter_has_the_size_of_the_bus<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::broadcast_of(0, &[0; 60])), Err(Errno::EFAULT));
    assert_eq!(t.send(&a, &Message::broadcast_of(0, &[0; 72])), Err(Errno::EDOM));
    Ok(())
}

pub(crate) fn without_a_match_nothing_is_heard<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert!(!hears(t, &a, &b, 0, [0xff; BLOOM]));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_match_without_rules_hears_everybody<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[]).unwrap();
    assert!(hears(t, &a, &b, 0, [0; BLOOM]));
    assert!(hears(t, &b, &b, 0, [0; BLOOM]));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn all_bits_of_the_mask_have_to_be_set<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[bits(&[(0, 0x55), (63, 0x80)])])]).unwrap();
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    assert!(!hears(t, &a, &b, 0, bits(&[(0, 0x55)])));
    assert!(hears(t, &a, &b, 0, bits(&[(0, 0x55), (63, 0x80)])));
    assert!(hears(t, &a, &b, 0, bits(&[(0, 0xff), (17, 1), (63, 0x81)])));
    Ok(())
}

pub(crate) fn the_generation_selects_the_mask<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[bits(&[(0, 0x55)]), bits(&[(1, 0xaa)])])]).unwrap();
    assert!(hears(t, &a, &b, 0, bits(&[(0, 0x55)])));
    assert!(!hears(t, &a, &b, 1, bits(&[(0, 0xff)])));
    assert!(hears(t, &a, &b, 1, bits(&[(1, 0xff)])));
    Ok(())
}

pub(crate) fn a_late_generation_uses_the_last_mask<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[bits(&[(0, 0x55)]), bits(&[(1, 0xaa)])])]).unwrap();
    assert!(hears(t, &a, &b, 5, bits(&[(1, 0xaa)])));
    assert!(!hears(t, &a, &b, u64::MAX, bits(&[(0, 0x55)])));
    Ok(())
}

pub(crate) fn a_mask_is_a_multiple_of_the_filter<W: World>(t: &mut Bench<W>) -> Outcome {
    let b = t.connect();
    for (size, expected) in
        [(63, Err(Errno::EDOM)), (96, Err(Errno::EDOM)), (0, Err(Errno::EDOM)), (64, Ok(())), (128, Ok(()))]
    {
        let rule = Item::bytes(ItemType::BLOOM_MASK, &vec![0; size]);
        assert_eq!(t.add_match(&b, 1, &[rule]), expected, "{size}");
    }
    Ok(())
}

pub(crate) fn a_new_connection_is_announced<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)]).unwrap();
    let b = t.connect();
    let received = t.recv(&a).unwrap();
    assert_eq!(received.id_change(ItemType::ID_ADD), b.id);
    assert_eq!((received.msg.src_id, received.msg.dst_id), (0, DST_ID_BROADCAST));
    assert_eq!((received.msg.cookie, received.msg.payload_type, received.msg.size), (0, 0, 136));
    Ok(())
}

pub(crate) fn a_leaving_connection_is_announced<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.add_match(&a, 1, &[Item::id_change(ItemType::ID_REMOVE, b.id)]).unwrap();
    let id = b.id;
    t.close(c);
    t.close(b);
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_REMOVE), id);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_match_is_replaced_by_cookie<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)]).unwrap();
    let mut arg = match_arg(Command::MatchAdd, 1)
        .flags(MatchFlags::REPLACE.bits())
        .item(&Item::id_change(ItemType::ID_REMOVE, MATCH_ID_ANY));
    t.run(&a, &mut arg).unwrap();
    let b = t.connect();
    t.assert_empty(&a, 0);
    let id = b.id;
    t.close(b);
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_REMOVE), id);
    Ok(())
}

pub(crate) fn a_new_name_is_announced<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_ADD, NAME)]).unwrap();
    t.own(&a, "com.example.other");
    t.own(&a, NAME);
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_ADD), (0, a.id, NAME.to_owned()));
    assert_eq!(received.name_change_flags(), (NameFlags::empty(), NameFlags::PRIMARY));
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn a_vanishing_name_is_announced<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.own(&a, NAME);
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_REMOVE, NAME)]).unwrap();
    t.release(&a, NAME).unwrap();
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_REMOVE), (a.id, 0, NAME.to_owned()));
    assert_eq!(received.name_change_flags(), (NameFlags::PRIMARY, NameFlags::empty()));
    Ok(())
}

pub(crate) fn a_changed_owner_is_announced<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_CHANGE, NAME)]).unwrap();
    t.release(&a, NAME).unwrap();
    let received = t.recv(&a).unwrap();
    assert_eq!(received.name_change(ItemType::NAME_CHANGE), (a.id, b.id, NAME.to_owned()));
    let new = NameFlags::PRIMARY | NameFlags::QUEUE;
    assert_eq!(received.name_change_flags(), (NameFlags::PRIMARY, new));
    Ok(())
}

pub(crate) fn a_rule_for_nobody_never_fires<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[Item::name_change(ItemType::NAME_ADD, 0, 0, NAME)]).unwrap();
    t.own(&a, NAME);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn mixed_rules_hear_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let rules = [mask(&[[0; BLOOM]]), Item::id_change(ItemType::ID_ADD, MATCH_ID_ANY)];
    t.add_match(&b, 1, &rules).unwrap();
    assert!(!hears(t, &a, &b, 0, [0xff; BLOOM]));
    t.connect();
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_sender_rule_selects_the_sender<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c, d) = (t.connect(), t.connect(), t.connect(), t.connect());
    t.add_match(&b, 1, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    t.add_match(&d, 1, &[Item::u64(ItemType::ID, MATCH_ID_ANY)]).unwrap();
    for sender in [&a, &c] {
        t.send(sender, &Message::broadcast()).unwrap();
    }
    assert_eq!(t.recv(&b).unwrap().msg.src_id, a.id);
    t.assert_empty(&b, 0);
    t.connect();
    t.own(&a, NAME);
    assert_eq!(drain(t, &d), 2, "notifications have no sender");
    Ok(())
}

pub(crate) fn a_destination_rule_selects_by_address<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.add_match(&b, 1, &[Item::u64(ItemType::DST_ID, b.id)]).unwrap();
    t.add_match(&c, 1, &[Item::u64(ItemType::DST_ID, MATCH_ID_ANY)]).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    t.send(&a, &Message::signal_to(b.id)).unwrap();
    t.send(&a, &Message::signal_to(c.id)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.dst_id, b.id);
    t.assert_empty(&b, 0);
    assert_eq!(t.recv(&c).unwrap().msg.dst_id, DST_ID_BROADCAST);
    assert_eq!(t.recv(&c).unwrap().msg.dst_id, c.id);
    Ok(())
}

pub(crate) fn a_name_rule_selects_the_holder<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.add_match(&b, 1, &[Item::text(ItemType::NAME, NAME)]).unwrap();
    t.own(&c, NAME);
    t.acquire(&a, NAME, NameFlags::QUEUE).unwrap();
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    assert!(hears(t, &c, &b, 0, [0; BLOOM]));
    t.release(&c, NAME).unwrap();
    assert!(hears(t, &a, &b, 0, [0; BLOOM]));
    Ok(())
}

pub(crate) fn matches_of_a_cookie_go_together<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[[0; BLOOM]])]).unwrap();
    t.add_match(&b, 1, &[]).unwrap();
    t.add_match(&b, 2, &[Item::u64(ItemType::ID, b.id)]).unwrap();
    assert!(hears(t, &a, &b, 0, [0; BLOOM]));
    t.remove_match(&b, 1).unwrap();
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    assert_eq!(t.remove_match(&b, 1), Err(Errno::EBADSLT));
    assert!(hears(t, &b, &b, 0, [0; BLOOM]));
    Ok(())
}

pub(crate) fn a_malformed_name_rule_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let b = t.connect();
    assert_eq!(t.add_match(&b, 1, &[Item::text(ItemType::NAME, "foo")]), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_connection_has_at_most_4096_matches<W: World>(t: &mut Bench<W>) -> Outcome {
    let b = t.connect();
    for cookie in 0..4096 {
        t.add_match(&b, cookie, &[Item::u64(ItemType::ID, 1)]).unwrap();
    }
    assert_eq!(t.add_match(&b, 5000, &[]), Err(Errno::EMFILE));
    let mut arg = match_arg(Command::MatchAdd, 17).flags(MatchFlags::REPLACE.bits());
    assert_eq!(t.run(&b, &mut arg), Ok(()));
    Ok(())
}

pub(crate) fn a_monitor_has_no_matches<W: World>(t: &mut Bench<W>) -> Outcome {
    let monitor = t.hello(&Hello::monitor());
    assert_eq!(t.add_match(&monitor, 1, &[]), Err(Errno::EOPNOTSUPP));
    assert_eq!(t.remove_match(&monitor, 1), Err(Errno::EOPNOTSUPP));
    Ok(())
}

pub(crate) fn a_unicast_signal_needs_a_match<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::signal_to(b.id)).unwrap();
    t.assert_empty(&b, 0);
    t.add_match(&b, 1, &[]).unwrap();
    t.send(&a, &Message::signal_to(b.id)).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn a_signal_to_an_activator_vanishes<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator(NAME)));
    let signal = Message::signal_to(0).item(&Item::text(ItemType::DST_NAME, NAME));
    t.send(&a, &signal).unwrap();
    t.assert_empty(&activator, 0);
    Ok(())
}

pub(crate) fn a_plain_message_needs_no_match<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[Item::u64(ItemType::ID, b.id)]).unwrap();
    t.send(&a, &Message::to(b.id)).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn a_broadcast_to_a_full_receiver_counts_as_lost<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    t.add_match(&b, 1, &[]).unwrap();
    for _ in 0..256 {
        t.send(&a, &Message::to(b.id)).unwrap();
    }
    t.send(&a, &Message::broadcast()).unwrap();
    t.send(&a, &Message::broadcast()).unwrap();
    let (result, command) = t.recv_raw(&b, kdbus_core::abi::RecvFlags::empty(), 0);
    assert_eq!((result, command.dropped_msgs), (Ok(()), 2));
    Ok(())
}

pub(crate) fn a_probe_in_a_match_is_no_rule<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let probe = Item::bytes(ItemType::NEGOTIATE, &ItemType::ID.0.to_ne_bytes());
    t.add_match(&b, 1, &[probe, Item::u64(ItemType::ID, a.id)]).unwrap();
    assert!(hears(t, &a, &b, 0, [0; BLOOM]));
    t.remove_match(&b, 1).unwrap();
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    Ok(())
}

pub(crate) fn all_rules_of_a_match_have_to_pass<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    let rules = [mask(&[bits(&[(3, 0x10)])]), Item::u64(ItemType::ID, a.id)];
    t.add_match(&b, 1, &rules).unwrap();
    assert!(hears(t, &a, &b, 0, bits(&[(3, 0x10)])));
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    assert!(!hears(t, &c, &b, 0, bits(&[(3, 0x10)])));
    Ok(())
}

pub(crate) fn two_masks_in_one_match_have_to_pass_both<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[bits(&[(3, 0x10)])]), mask(&[bits(&[(40, 1)])])]).unwrap();
    assert!(!hears(t, &a, &b, 0, bits(&[(3, 0x10)])));
    assert!(!hears(t, &a, &b, 0, bits(&[(40, 1)])));
    assert!(hears(t, &a, &b, 0, bits(&[(3, 0x10), (40, 1)])));
    Ok(())
}

pub(crate) fn any_match_is_enough_and_brings_one_copy<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[Item::u64(ItemType::ID, b.id)]).unwrap();
    t.add_match(&b, 2, &[Item::u64(ItemType::ID, a.id)]).unwrap();
    t.add_match(&b, 3, &[mask(&[[0; BLOOM]])]).unwrap();
    t.add_match(&b, 4, &[]).unwrap();
    assert!(hears(t, &a, &b, 0, [0xff; BLOOM]));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn a_full_mask_needs_a_full_filter<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[mask(&[[0xff; BLOOM]])]).unwrap();
    let mut filter = [0xff; BLOOM];
    assert!(hears(t, &a, &b, 0, filter));
    filter[31] = 0x7f;
    assert!(!hears(t, &a, &b, 0, filter));
    Ok(())
}

pub(crate) fn a_match_without_rules_hears_notifications<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.add_match(&b, 1, &[]).unwrap();
    t.own(&a, NAME);
    assert_eq!(t.recv(&b).unwrap().kind(), Some(ItemType::NAME_ADD));
    let c = t.connect();
    assert_eq!(t.recv(&b).unwrap().id_change(ItemType::ID_ADD), c.id);
    Ok(())
}

pub(crate) fn a_rule_may_name_both_owners<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.acquire(&a, NAME, NameFlags::ALLOW_REPLACEMENT | NameFlags::QUEUE).unwrap();
    let wrong = Item::name_change(ItemType::NAME_CHANGE, b.id, a.id, NAME);
    let right = Item::name_change(ItemType::NAME_CHANGE, a.id, b.id, NAME);
    t.add_match(&c, 1, &[wrong]).unwrap();
    t.acquire(&b, NAME, NameFlags::REPLACE_EXISTING).unwrap();
    t.assert_empty(&c, 0);
    t.add_match(&c, 2, &[right]).unwrap();
    t.release(&b, NAME).unwrap();
    assert_eq!(t.recv(&c).unwrap().name_change(ItemType::NAME_CHANGE), (b.id, a.id, NAME.to_owned()));
    t.assert_empty(&c, 0);
    Ok(())
}

pub(crate) fn a_failed_hello_is_announced_and_taken_back<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let _activator = t.hello(&Hello::activator(NAME));
    t.add_match(&a, 1, &[]).unwrap();
    assert_eq!(t.try_hello(&Hello::activator(NAME)).map(|_| ()), Err(Errno::EEXIST));
    let id = t.recv(&a).unwrap().id_change(ItemType::ID_ADD);
    assert_eq!(t.recv(&a).unwrap().id_change(ItemType::ID_REMOVE), id);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn leaving_is_announced_in_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    t.own(&b, NAME);
    t.own(&b, "com.example.second");
    t.send(&a, &Message::call(b.id, 7, far)).unwrap();
    t.recv(&b).unwrap();
    t.add_match(&a, 1, &[]).unwrap();
    let id = b.id;
    t.byebye(&b).unwrap();
    assert_eq!(t.wait_recv(&a).name_change(ItemType::NAME_REMOVE), (id, 0, NAME.to_owned()));
    let second = (id, 0, "com.example.second".to_owned());
    assert_eq!(t.wait_recv(&a).name_change(ItemType::NAME_REMOVE), second);
    assert_eq!(t.wait_recv(&a).kind(), Some(ItemType::REPLY_DEAD));
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_REMOVE), id);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn an_activator_is_announced_before_its_name<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.add_match(&a, 1, &[]).unwrap();
    let activator = t.hello(&Hello::activator(NAME));
    let received = t.recv(&a).unwrap();
    assert_eq!(received.id_change(ItemType::ID_ADD), activator.id);
    let change: kdbus_core::abi::IdChange = received.record(ItemType::ID_ADD).unwrap();
    assert_eq!(change.flags, activator_flags());
    assert_eq!(t.recv(&a).unwrap().kind(), Some(ItemType::NAME_ADD));
    Ok(())
}

fn activator_flags() -> u64 {
    Hello::activator(NAME).record.flags
}

pub(crate) fn a_broadcast_is_heard_in_one_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c, d) = (t.connect(), t.connect(), t.connect(), t.connect());
    for conn in [&c, &d] {
        t.add_match(conn, 1, &[]).unwrap();
    }
    for round in 0..6 {
        t.send(&a, &Message::broadcast().cookie(round)).unwrap();
        t.send(&b, &Message::broadcast().cookie(100 + round)).unwrap();
    }
    for _ in 0..12 {
        let (one, other) = (t.recv(&c).unwrap(), t.recv(&d).unwrap());
        assert_eq!((one.msg.src_id, one.msg.cookie), (other.msg.src_id, other.msg.cookie));
    }
    Ok(())
}

pub(crate) fn names_in_rules_count_to_the_last_byte<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let stem = format!("com.example.{}", "n".repeat(200));
    let (long, longer, other) = (format!("{stem}a"), format!("{stem}ab"), format!("{stem}b"));
    t.add_match(&b, 1, &[Item::any_change(ItemType::NAME_ADD, &long)]).unwrap();
    for name in [&stem, &longer, &other] {
        t.own(&a, name);
    }
    t.assert_empty(&b, 0);
    t.own(&a, &long);
    assert_eq!(t.recv(&b).unwrap().name_change(ItemType::NAME_ADD).2, long);
    t.release(&a, &long).unwrap();
    t.remove_match(&b, 1).unwrap();
    t.add_match(&b, 1, &[Item::text(ItemType::NAME, &long)]).unwrap();
    assert!(!hears(t, &a, &b, 0, [0; BLOOM]));
    t.own(&a, &long);
    assert!(hears(t, &a, &b, 0, [0; BLOOM]));
    Ok(())
}

pub(crate) fn removed_matches_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let b = t.connect();
    let large = Item::bytes(ItemType::BLOOM_MASK, &[1; 256 * BLOOM]);
    for round in 0..300 {
        let name = Item::any_change(ItemType::NAME_ADD, "com.example.name.that.takes.some.room");
        t.add_match(&b, round, std::slice::from_ref(&large)).unwrap();
        t.add_match(&b, round, &[name]).unwrap();
        t.remove_match(&b, round).unwrap();
    }
    for _ in 0..40 {
        let conn = t.connect();
        t.add_match(&conn, 1, std::slice::from_ref(&large)).unwrap();
        t.byebye(&conn).unwrap();
        t.close(conn);
    }
    Ok(())
}
