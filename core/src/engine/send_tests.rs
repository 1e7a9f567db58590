//! Sequences of commands: messages from SEND to RECV.

extern crate std;
use std::vec;
use std::vec::Vec;

use zerocopy::{FromBytes, IntoBytes};

use super::super::testbed::*;
use super::super::*;
use crate::abi::{
    AttachFlags, CmdSend, Command, Errno, HelloFlags, ItemType, Memfd, MsgFlags, NameFlags, OFFSET_ZEROS,
    RecvFlags, RecvReturnFlags, SendFlags,
};

fn pair() -> (Bed, Peer, Peer) {
    let mut bed = Bed::new();
    let (a, b) = (bed.connect(), bed.connect());
    (bed, a, b)
}

fn memfd(fd: i32, size: u64) -> Memfd {
    Memfd { start: 0, size, fd, pad: 0 }
}

fn sealed(size: u64) -> TestFile {
    TestFile(FileKind::Memfd { sealed: true, size })
}

#[test]
fn a_message_arrives_as_it_was_sent() {
    let (mut bed, a, b) = pair();
    let sent = message(b.id, 7).vec(b"abc").vec(b"defgh").priority(-3);
    bed.send(a, &sent).unwrap();
    assert_eq!(bed.woken(), [b.handle]);
    assert!(bed.domain.readiness(b.handle).readable);
    let received = bed.recv(b).unwrap();
    assert_eq!((received.header.src_id, received.header.cookie, received.header.priority), (a.id, 7, -3));
    assert_eq!(received.kinds(), [ItemType::PAYLOAD_OFF, ItemType::PAYLOAD_OFF, ItemType::TIMESTAMP]);
    assert_eq!(received.info.msg_size, slice_size(64, 8));
    let items = received.items();
    let parts = items[..2].iter().map(|(_, payload)| crate::abi::Vec::read_from_bytes(payload).unwrap());
    let parts: Vec<_> =
        parts.map(|vec| &received.slice[vec.address as usize..][..vec.size as usize]).collect();
    assert_eq!(parts, [b"abc".as_slice(), b"defgh"]);
    assert!(!bed.domain.readiness(b.handle).readable);
    assert_eq!(bed.recv(b).map(|_| ()), Err(Errno::EAGAIN));
}

#[test]
fn zeros_and_memfds_take_only_their_rest_of_the_payload() {
    let (mut bed, a, b) = pair();
    bed.host.fds.insert(5, sealed(100));
    let zeros = crate::abi::Vec { size: 13, address: 0 };
    let sent = message(b.id, 1)
        .item(ItemType::PAYLOAD_VEC, zeros.as_bytes())
        .item(ItemType::PAYLOAD_MEMFD, memfd(5, 11).as_bytes())
        .vec(b"x");
    bed.send(a, &sent).unwrap();
    let received = bed.recv(b).unwrap();
    assert_eq!(received.info.msg_size, slice_size(32 + 40 + 32, 5 + 3 + 1));
    let items = received.items();
    let vec = crate::abi::Vec::read_from_bytes(&items[0].1).unwrap();
    assert_eq!((vec.size, vec.address), (13, OFFSET_ZEROS));
    assert_eq!(Memfd::read_from_bytes(&items[1].1).unwrap().fd, 1005);
    let vec = crate::abi::Vec::read_from_bytes(&items[2].1).unwrap();
    assert_eq!(received.slice[vec.address as usize], b'x');
    assert!(bed.host.pinned.is_empty());
}

#[test]
fn destinations_are_looked_up_by_id_and_by_name() {
    let (mut bed, a, b) = pair();
    let activator = bed.activator("act.ivator");
    bed.acquire(b, "a.b", NameFlags::empty()).unwrap();
    bed.send(a, &to_name("a.b", 1)).unwrap();
    let mut both = to_name("a.b", 2);
    both.header.dst_id = b.id;
    bed.send(a, &both).unwrap();
    both.header.dst_id = a.id;
    assert_eq!(bed.send(a, &both), Err(Errno::EREMCHG));
    assert_eq!(bed.cookies(b), [1, 2]);
    assert_eq!(bed.send(a, &to_name("a.c", 1)), Err(Errno::ESRCH));
    assert_eq!(bed.send(a, &message(4711, 1)), Err(Errno::ENXIO));
    assert_eq!(bed.send(a, &message(activator.id, 1)), Err(Errno::ENXIO));
    let mut no_start = to_name("act.ivator", 3);
    no_start.header.flags = MsgFlags::NO_AUTO_START.bits();
    assert_eq!(bed.send(a, &no_start), Err(Errno::EADDRNOTAVAIL));
    no_start.header.flags = 0;
    bed.send(a, &no_start).unwrap();
    assert_eq!(bed.cookies(activator), [3]);
    bed.send(a, &message(a.id, 4)).unwrap();
    assert_eq!(bed.cookies(a), [4]);
}

#[test]
fn the_sender_cannot_pose_as_another() {
    let (mut bed, a, b) = pair();
    let mut sent = message(b.id, 1);
    sent.header.src_id = b.id;
    assert_eq!(bed.send(a, &sent), Err(Errno::EINVAL));
    sent.header.src_id = a.id;
    assert_eq!(bed.send(a, &sent), Ok(()));
}

#[test]
fn strangers_need_a_policy_to_talk() {
    let mut bed = Bed::new();
    let (owner, user, same, other) =
        (bed.connect(), bed.connect_as(2000), bed.connect_as(2000), bed.connect_as(3000));
    assert_eq!(bed.send(user, &message(owner.id, 1)), Err(Errno::EPERM));
    assert_eq!(bed.send(owner, &message(user.id, 1)), Ok(()));
    assert_eq!(bed.send(user, &message(same.id, 1)), Ok(()));
    assert_eq!(bed.send(user, &message(other.id, 1)), Err(Errno::EPERM));
    bed.acquire(owner, "a.b", NameFlags::empty()).unwrap();
    let holder = bed.policy_holder("a.b", &[(3, 1, 0)]);
    assert_eq!(bed.send(user, &message(owner.id, 1)), Ok(()));
    assert_eq!(bed.acquire(user, "a.b", NameFlags::empty()), Err(Errno::EPERM));
    bed.close(holder.handle);
    assert_eq!(bed.send(user, &message(owner.id, 1)), Err(Errno::EPERM));
}

#[test]
fn the_owner_of_a_handle_stays_owner_after_giving_up_its_rights() {
    let (mut bed, a, b) = pair();
    let _ = b;
    let stranger = bed.connect_as(2000);
    let mut bytes = message(stranger.id, 1).bytes();
    let mut cmd = arg(CmdSend { msg_address: 8, ..CmdSend::default() }, &[]);
    let dropped = user(4000);
    let request =
        Request { number: Command::Send.request(), arg: &mut cmd, message: Some(&mut bytes), token: 0 };
    let arrival = Arrival { at: bed.at(), from: a.handle, caller: Some(&dropped), request };
    assert_eq!(bed.domain.handle(&mut bed.host, arrival), Outcome::Done(Ok(())));
}

#[test]
fn priorities_order_only_who_asks_for_them() {
    let (mut bed, a, b) = pair();
    for priority in [25, -600, 10, -35, -100, 20, -15, -800, -150, 10, -800, -10] {
        bed.send(a, &message(b.id, 0).priority(priority)).unwrap();
    }
    let mut most = |limit| {
        let (result, cmd) = bed.recv_cmd(b, RecvFlags::USE_PRIORITY, limit);
        result.map(|()| bed.read(b, cmd.msg).header.priority)
    };
    assert_eq!(most(-200), Ok(-800));
    assert_eq!(most(-100), Ok(-800));
    assert_eq!(most(-400), Ok(-600));
    assert_eq!(most(-400), Err(Errno::EAGAIN));
    assert_eq!(most(10), Ok(-150));
    assert_eq!(most(10), Ok(-100));
    assert_eq!(bed.recv(b).unwrap().header.priority, 25);
}

#[test]
fn peeking_keeps_and_dropping_frees() {
    let (mut bed, a, b) = pair();
    bed.send(a, &message(b.id, 1)).unwrap();
    bed.send(a, &message(b.id, 2)).unwrap();
    let (_, first) = bed.recv_cmd(b, RecvFlags::PEEK, 0);
    let (_, again) = bed.recv_cmd(b, RecvFlags::PEEK, 0);
    assert_eq!(first.msg, again.msg);
    assert_eq!(bed.free(b, first.msg.offset), Ok(()));
    let received = bed.recv_keep(b).unwrap();
    assert_eq!((received.info.offset, received.header.cookie), (first.msg.offset, 1));
    bed.free(b, received.info.offset).unwrap();
    let (result, cmd) = bed.recv_cmd(b, RecvFlags::DROP | RecvFlags::PEEK, 0);
    assert_eq!((result, cmd.msg.offset), (Ok(()), b.pool));
    assert_eq!(bed.recv_cmd(b, RecvFlags::DROP | RecvFlags::USE_PRIORITY, 0).0, Err(Errno::EINVAL));
    let (result, cmd) = bed.recv_cmd(b, RecvFlags::empty(), 0);
    assert_eq!((result, cmd.msg.offset, cmd.msg.msg_size), (Err(Errno::EAGAIN), b.pool, 0));
    assert_eq!(bed.domain.connection(b.handle).unwrap().slices, 0);
}

#[test]
fn a_user_has_256_messages_and_its_share_of_the_pool() {
    let (mut bed, a, b) = pair();
    for cookie in 0..256 {
        bed.send(a, &message(b.id, cookie)).unwrap();
    }
    assert_eq!(bed.send(a, &message(b.id, 256)), Err(Errno::ENOBUFS));
    let c = bed.connect_as(2000);
    bed.acquire(b, "a.b", NameFlags::empty()).unwrap();
    let _holder = bed.policy_holder("a.b", &[(3, 1, 0)]);
    assert_eq!(bed.send(c, &message(b.id, 300)), Ok(()), "another user has a share of its own");
    for _ in 0..256 {
        bed.recv_keep(b).unwrap();
    }
    assert_eq!(bed.send(a, &message(b.id, 1)), Ok(()));
    let small = bed.open(OWNER);
    let small = bed.hello(small, HelloFlags::empty(), 4096, &[]).unwrap();
    let largest = 4096 / 2 / 3 / 8 * 8 - slice_size(32, 0) as usize;
    assert_eq!(bed.send(a, &message(small.id, 1).vec(&vec![1; largest])), Ok(()));
    bed.recv(small).unwrap();
    assert_eq!(bed.send(a, &message(small.id, 1).vec(&vec![1; largest + 1])), Err(Errno::ENOBUFS));
}

#[test]
fn a_full_pool_and_unreadable_payload_leave_no_charge() {
    let (mut bed, a, _) = pair();
    let small = bed.open(OWNER);
    let small = bed.hello(small, HelloFlags::empty(), 4096, &[]).unwrap();
    let filler = message(small.id, 1).vec(&[1; 400]);
    while bed.send(a, &filler).is_ok() {
        bed.recv_keep(small).unwrap();
    }
    assert_eq!(bed.send(a, &filler), Err(Errno::EXFULL));
    assert_eq!(bed.domain.connection(small.handle).unwrap().accounted_size, 0);
    let mut holders = 0;
    bed.domain.each_holder(small.handle, |_| holders += 1);
    assert_eq!(holders, 0);
    let b = bed.connect();
    let vec = crate::abi::Vec { size: 8, address: BAD_ADDRESS };
    let bad = message(b.id, 1).item(ItemType::PAYLOAD_VEC, vec.as_bytes());
    assert_eq!(bed.send(a, &bad), Err(Errno::EFAULT));
    let view = bed.domain.connection(b.handle).unwrap();
    assert_eq!((view.slices, view.accounted_size, view.queued), (0, 0, 0));
}

#[test]
fn descriptors_reach_only_those_who_accept_them() {
    let (mut bed, a, b) = pair();
    bed.host.fds.insert(5, sealed(100));
    bed.host.fds.insert(6, TestFile(FileKind::Other));
    let fds = [6_i32, 6].map(i32::to_ne_bytes).concat();
    let both = |to: Peer| {
        message(to.id, 1).item(ItemType::PAYLOAD_MEMFD, memfd(5, 8).as_bytes()).item(ItemType::FDS, &fds)
    };
    bed.send(a, &both(b)).unwrap();
    assert_eq!(bed.host.pinned.len(), 2, "files stay while the message waits");
    let (_, peeked) = bed.recv_cmd(b, RecvFlags::PEEK, 0);
    assert!(bed.host.installed.is_empty(), "a look installs nothing");
    assert_eq!(peeked.msg.return_flags, 0);
    let received = bed.recv(b).unwrap();
    assert_eq!(bed.host.installed, [(b.handle, 6), (b.handle, 6), (b.handle, 5)]);
    assert_eq!(received.item(ItemType::FDS).unwrap(), [1006_i32, 1006].map(i32::to_ne_bytes).concat());
    assert!(bed.host.pinned.is_empty());
    let handle = bed.open(OWNER);
    let plain = bed.hello(handle, HelloFlags::empty(), 1 << 20, &[]).unwrap();
    assert_eq!(bed.send(a, &both(plain)), Err(Errno::ECOMM));
    assert!(bed.host.pinned.is_empty());
    let only = message(plain.id, 1).item(ItemType::PAYLOAD_MEMFD, memfd(5, 8).as_bytes());
    assert_eq!(bed.send(a, &only), Ok(()));
    bed.host.refuse_install = true;
    let received = bed.recv(plain).unwrap();
    assert_eq!(received.info.return_flags, RecvReturnFlags::INCOMPLETE_FDS.bits());
    assert_eq!(Memfd::read_from_bytes(&received.items()[0].1).unwrap().fd, -1);
}

#[test]
fn files_are_checked_before_anything_is_sent() {
    let (mut bed, a, b) = pair();
    bed.host.fds.insert(1, TestFile(FileKind::Memfd { sealed: false, size: 8 }));
    bed.host.fds.insert(2, TestFile(FileKind::Other));
    bed.host.fds.insert(3, TestFile(FileKind::Unpassable));
    bed.host.fds.insert(4, sealed(7));
    let memfd = |fd| message(b.id, 1).item(ItemType::PAYLOAD_MEMFD, memfd(fd, 8).as_bytes());
    let pass = |fds: &[i32]| message(b.id, 1).item(ItemType::FDS, fds.as_bytes());
    assert_eq!(bed.send(a, &memfd(1)), Err(Errno::ETXTBSY));
    assert_eq!(bed.send(a, &memfd(2)), Err(Errno::EMEDIUMTYPE));
    assert_eq!(bed.send(a, &memfd(4)), Err(Errno::EFAULT));
    assert_eq!(bed.send(a, &memfd(9)), Err(Errno::EBADF));
    assert_eq!(bed.send(a, &pass(&[2, 3])), Err(Errno::EOPNOTSUPP));
    assert_eq!(bed.send(a, &pass(&[2, -1])), Err(Errno::EBADF));
    assert_eq!(bed.send(a, &pass(&[])), Ok(()), "no descriptors are fine");
    assert!(bed.host.pinned.is_empty());
    assert_eq!(bed.recv(b).unwrap().kinds(), [ItemType::FDS, ItemType::TIMESTAMP]);
}

#[test]
fn sixteen_descriptors_of_a_user_are_in_flight_at_most() {
    let (mut bed, a, b) = pair();
    bed.host.fds.insert(2, TestFile(FileKind::Other));
    let pass = |count| message(b.id, 1).item(ItemType::FDS, vec![2_i32; count].as_bytes());
    assert_eq!(bed.send(a, &pass(17)), Err(Errno::EMFILE));
    assert_eq!(bed.send(a, &pass(16)), Ok(()));
    assert_eq!(bed.send(a, &pass(1)), Err(Errno::EMFILE));
    bed.recv(b).unwrap();
    assert_eq!(bed.send(a, &pass(1)), Ok(()));
}

#[test]
fn broadcasts_reach_matches_that_may_hear_them() {
    let mut bed = Bed::new();
    let (owner, user, deaf) = (bed.connect(), bed.connect_as(2000), bed.connect());
    for peer in [owner, user] {
        bed.add_match(peer, 1, &[]).unwrap();
    }
    bed.send(owner, &broadcast()).unwrap();
    assert_eq!((bed.cookies(owner).len(), bed.cookies(user).len(), bed.cookies(deaf).len()), (1, 0, 0));
    bed.send(user, &broadcast()).unwrap();
    assert_eq!((bed.cookies(owner).len(), bed.cookies(user).len()), (1, 1));
    bed.add_match(owner, 2, &[]).unwrap();
    bed.send(owner, &broadcast()).unwrap();
    assert_eq!(bed.cookies(owner).len(), 1, "two matches are one message");
}

#[test]
fn each_receiver_of_a_broadcast_is_shown_what_it_asks_for_and_all_have_its_payload() {
    let mut bed = Bed::new();
    let sender = bed.connect();
    bed.acquire(sender, "a.b", NameFlags::empty()).unwrap();
    let stamp = AttachFlags::TIMESTAMP;
    let (names, both) = (AttachFlags::NAMES, AttachFlags::NAMES | stamp);
    let masks = [stamp, both, stamp, names, both, AttachFlags::empty(), stamp];
    let peers = masks.map(|mask| {
        let peer = bed.connect();
        bed.set_recv_mask(peer, mask);
        bed.add_match(peer, 1, &[]).unwrap();
        peer
    });
    // The first one's slice is not where those of the others are.
    bed.send(sender, &message(peers[0].id, 9).vec(b"before")).unwrap();
    bed.send(sender, &broadcast().vec(b"abc").vec(b"defghijkl")).unwrap();
    for (at, (peer, mask)) in peers.into_iter().zip(masks).enumerate() {
        let all = bed.drain(peer);
        let received = all.last().unwrap();
        assert_eq!((received.header.src_id, received.header.dst_id), (sender.id, u64::MAX));
        let items = received.items();
        let shown = [(ItemType::OWNED_NAME, AttachFlags::NAMES), (ItemType::TIMESTAMP, stamp)];
        for (kind, flag) in shown {
            assert_eq!(received.item(kind).is_some(), mask.contains(flag), "{kind:?} for {at}");
        }
        let parts = items.iter().filter(|(kind, _)| *kind == ItemType::PAYLOAD_OFF);
        let parts = parts.map(|(_, payload)| crate::abi::Vec::read_from_bytes(payload).unwrap());
        let parts: Vec<_> =
            parts.map(|vec| &received.slice[vec.address as usize..][..vec.size as usize]).collect();
        assert_eq!(parts, [b"abc".as_slice(), b"defghijkl"], "{at}");
    }
}

#[test]
fn bloom_masks_choose_signals() {
    let (mut bed, a, b) = pair();
    let mut mask = [0; BLOOM];
    (mask[0], mask[63]) = (0x55, 0x80);
    bed.add_match(b, 1, &[(ItemType::BLOOM_MASK, &mask)]).unwrap();
    let mut superset = mask;
    superset[9] = 0xff;
    for (filter, hits) in [([0; BLOOM], 0), (mask, 1), (superset, 1)] {
        bed.send(a, &signal(u64::MAX, filter)).unwrap();
        assert_eq!(bed.cookies(b).len(), hits);
        bed.send(a, &signal(b.id, filter)).unwrap();
        assert_eq!(bed.cookies(b).len(), hits, "a signal to one peer asks its matches too");
    }
    let generations = [mask, [0xf0; BLOOM]].concat();
    bed.add_match(a, 1, &[(ItemType::BLOOM_MASK, &generations)]).unwrap();
    for (generation, filter, hits) in
        [(0, mask, 1), (1, mask, 0), (1, [0xf0; BLOOM], 1), (7, [0xff; BLOOM], 1)]
    {
        let mut sent = signal(u64::MAX, filter);
        sent.items[0].1[0] = generation;
        bed.send(b, &sent).unwrap();
        assert_eq!(bed.cookies(a).len(), hits, "generation {generation}");
    }
    assert_eq!(bed.add_match(b, 1, &[(ItemType::BLOOM_MASK, &[0; 63])]), Err(Errno::EDOM));
    assert_eq!(bed.add_match(b, 1, &[(ItemType::BLOOM_MASK, &[])]), Err(Errno::EDOM));
}

#[test]
fn rules_on_sender_destination_and_name() {
    let (mut bed, a, b) = pair();
    let c = bed.connect();
    let (id, any) = (a.id.to_ne_bytes(), u64::MAX.to_ne_bytes());
    bed.add_match(b, 1, &[(ItemType::ID, &id)]).unwrap();
    bed.send(a, &broadcast()).unwrap();
    bed.send(c, &broadcast()).unwrap();
    assert_eq!(bed.drain(b).len(), 1);
    bed.remove_match(b, 1).unwrap();
    bed.add_match(b, 1, &[(ItemType::DST_ID, &b.id.to_ne_bytes())]).unwrap();
    bed.send(a, &broadcast()).unwrap();
    bed.send(a, &signal(b.id, [0; BLOOM])).unwrap();
    assert_eq!(bed.drain(b).len(), 1);
    bed.remove_match(b, 1).unwrap();
    bed.add_match(b, 1, &[(ItemType::DST_ID, &any), (ItemType::NAME, b"a.b\0")]).unwrap();
    bed.acquire(c, "a.b", NameFlags::empty()).unwrap();
    bed.acquire(a, "a.b", NameFlags::QUEUE).unwrap();
    bed.send(a, &broadcast()).unwrap();
    assert_eq!(bed.drain(b).len(), 0);
    bed.send(c, &broadcast()).unwrap();
    assert_eq!(bed.drain(b).len(), 1);
    assert_eq!(bed.remove_match(b, 2), Err(Errno::EBADSLT));
}

#[test]
fn lost_broadcasts_are_counted_and_reported_once() {
    let (mut bed, a, b) = pair();
    bed.add_match(b, 1, &[]).unwrap();
    for _ in 0..259 {
        bed.send(a, &broadcast()).unwrap();
    }
    assert_eq!(bed.host.lost[&b.handle], 3);
    let (result, cmd) = bed.recv_cmd(b, RecvFlags::PEEK, 0);
    assert_eq!((result, cmd.dropped_msgs), (Ok(()), 3));
    assert_eq!(cmd.return_flags, RecvReturnFlags::DROPPED_MSGS.bits());
    let (_, cmd) = bed.recv_cmd(b, RecvFlags::empty(), 0);
    assert_eq!((cmd.dropped_msgs, cmd.return_flags), (0, 0));
    bed.send(a, &signal(b.id, [0; BLOOM])).unwrap();
    bed.send(a, &signal(b.id, [0; BLOOM])).unwrap();
    assert_eq!(bed.host.lost[&b.handle], 3, "signals to one peer are not counted");
}

#[test]
fn one_message_has_one_number_and_time_everywhere() {
    let (mut bed, a, b) = pair();
    bed.host.fds.insert(1, TestFile(FileKind::Other));
    for peer in [a, b] {
        bed.add_match(peer, 1, &[]).unwrap();
    }
    bed.send(a, &broadcast()).unwrap();
    let times = [a, b].map(|peer| bed.recv(peer).unwrap().item(ItemType::TIMESTAMP).unwrap());
    assert_eq!(times[0], times[1]);
    let number = |stamp: &[u8]| u64::from_ne_bytes(stamp[..8].try_into().unwrap());
    let bad = message(b.id, 1).item(ItemType::PAYLOAD_MEMFD, memfd(1, 8).as_bytes());
    assert_eq!(bed.send(a, &bad), Err(Errno::EMEDIUMTYPE));
    bed.send(a, &message(b.id, 1)).unwrap();
    let later = bed.recv(b).unwrap().item(ItemType::TIMESTAMP).unwrap();
    assert_eq!(number(&later), number(&times[0]) + 2, "a message that failed late leaves a gap");
}

#[test]
fn receivers_choose_metadata_and_the_host_is_asked_once() {
    let mut bed = Bed::new();
    let (a, b, c) = (bed.connect(), bed.connect(), bed.connect());
    for peer in [b, c] {
        bed.add_match(peer, 1, &[]).unwrap();
        bed.set_recv_mask(peer, AttachFlags::TID_COMM | AttachFlags::CREDS | AttachFlags::EXE);
    }
    bed.host.asked.clear();
    bed.send(a, &broadcast()).unwrap();
    assert_eq!(bed.host.asked, [(a.handle, AttachFlags::TID_COMM), (a.handle, AttachFlags::EXE)]);
    let kinds = [ItemType::BLOOM_FILTER, ItemType::CREDS, ItemType::TID_COMM];
    assert_eq!(bed.recv(b).unwrap().kinds(), kinds);
    assert_eq!(bed.recv(c).unwrap().item(ItemType::TID_COMM).unwrap(), b"thread\0");
    bed.set_recv_mask(b, AttachFlags::empty());
    bed.send(a, &message(b.id, 1)).unwrap();
    let bare = bed.recv(b).unwrap();
    assert_eq!((bare.kinds().len(), bare.info.msg_size), (0, 64));
}

#[test]
fn negotiation_sends_nothing() {
    let (mut bed, a, b) = pair();
    let negotiate = crate::abi::FLAG_NEGOTIATE;
    let mut cmd = arg(CmdSend { flags: negotiate, ..CmdSend::default() }, &[]);
    assert_eq!(bed.run(a.handle, Command::Send, &mut cmd), Ok(()));
    let flags = |bytes: &[u8]| u64::from_ne_bytes(bytes[8..16].try_into().unwrap());
    assert_eq!(flags(&cmd), SendFlags::all().bits());
    for (command, error) in [(negotiate, Ok(())), (0, Err(Errno::EINVAL))] {
        let mut sent = message(b.id, 1);
        sent.header.flags = negotiate;
        let mut bytes = sent.bytes();
        let mut cmd = arg(CmdSend { flags: command, msg_address: 8, ..CmdSend::default() }, &[]);
        let outcome = bed.request(a.handle, Command::Send.request(), &mut cmd, Some(&mut bytes));
        assert_eq!(outcome, Outcome::Done(error));
        assert_eq!(flags(&bytes), MsgFlags::all().bits());
    }
    assert_eq!(bed.cookies(b), []);
    let mut cmd = arg(CmdSend { msg_address: 8, ..CmdSend::default() }, &[]);
    assert_eq!(bed.run(a.handle, Command::Send, &mut cmd), Err(Errno::EFAULT));
}

#[test]
fn monitors_see_everything_and_are_seen_by_nobody() {
    let (mut bed, a, b) = pair();
    let handle = bed.open(OWNER);
    let any = [u64::MAX.to_ne_bytes(), [0; 8]].concat();
    bed.add_match(a, 1, &[(ItemType::ID_ADD, &any)]).unwrap();
    let monitor = bed.hello(handle, HelloFlags::MONITOR, 1 << 20, &[]).unwrap();
    assert_eq!(bed.notices(a), []);
    assert_eq!(bed.list(a, 15).len(), 2);
    assert_eq!(bed.send(a, &message(monitor.id, 1)), Err(Errno::ENXIO));
    bed.send(a, &message(b.id, 1)).unwrap();
    bed.send(a, &broadcast()).unwrap();
    let stranger = bed.connect_as(2000);
    assert_eq!(bed.send(stranger, &message(b.id, 9)), Err(Errno::EPERM));
    bed.host.fds.insert(2, TestFile(FileKind::Other));
    bed.send(a, &message(b.id, 3).item(ItemType::FDS, 2_i32.as_bytes())).unwrap();
    let seen = bed.drain(monitor);
    let first: Vec<_> = seen.iter().map(|message| (message.header.src_id, message.header.cookie)).collect();
    assert_eq!(first, [(a.id, 1), (a.id, 0), (0, 0), (a.id, 3)]);
    assert_eq!(seen[3].item(ItemType::FDS).unwrap(), (-1_i32).to_ne_bytes());
    bed.close(monitor.handle);
    assert_eq!(bed.notices(a).len(), 1, "only the stranger came in public");
}

#[test]
fn clients_that_share_their_queue_receive_without_a_command() {
    let (mut bed, a, b) = pair();
    bed.send(a, &message(b.id, 1)).unwrap();
    bed.send(a, &message(b.id, 2)).unwrap();
    let shown = bed.host.published[&b.handle].clone();
    assert!(shown[0].key < shown[1].key);
    let Entry { slot, key, offset, .. } = shown[0];
    let returned = [Return::Taken { slot, key }, Return::Taken { slot, key }, Return::Freed(offset)];
    bed.host.returns.insert(b.handle, returned.into());
    assert_eq!(bed.cookies(b), [2], "the client has the first one");
    let view = bed.domain.connection(b.handle).unwrap();
    assert_eq!((view.queued, view.slices, view.accounted_size), (0, 0, 0));
    // A race: the client takes an entry while a RECV is on its way.
    bed.send(a, &message(b.id, 3)).unwrap();
    bed.send(a, &message(b.id, 4)).unwrap();
    let third = bed.host.published[&b.handle][0];
    bed.host.taken.push((b.handle, third));
    assert_eq!(bed.cookies(b), [4]);
    assert_eq!(bed.free(b, third.offset), Ok(()), "it was received by the client");
}

#[test]
fn who_is_woken_by_what_is_shown_is_not_woken_twice() {
    let (mut bed, a, b) = pair();
    bed.send(a, &message(b.id, 1)).unwrap();
    assert_eq!(bed.woken(), [b.handle]);
    bed.host.wakes_itself = true;
    bed.send(a, &message(b.id, 2)).unwrap();
    assert_eq!(bed.woken(), []);
    assert_eq!(bed.cookies(b), [1, 2]);
}

#[test]
fn a_chosen_entry_is_received_instead_of_the_first() {
    let (mut bed, a, b) = pair();
    for cookie in 1..4 {
        bed.send(a, &message(b.id, cookie)).unwrap();
    }
    let second = bed.host.published[&b.handle][1];
    let receive = |bed: &mut Bed, slot, key| {
        let mut cmd = arg(crate::abi::CmdRecv::default(), &[]);
        let at = bed.at();
        let flags = RecvFlags::empty();
        let result = bed.domain.receive_entry(&mut bed.host, at, b.handle, slot, key, flags, &mut cmd);
        result.map(|()| {
            let cmd = crate::abi::CmdRecv::read_from_prefix(&cmd).unwrap().0;
            bed.read(b, cmd.msg).header.cookie
        })
    };
    assert_eq!(receive(&mut bed, second.slot, second.key), Ok(2));
    assert_eq!(receive(&mut bed, second.slot, second.key), Err(Errno::EAGAIN));
    assert_eq!(receive(&mut bed, 4711, 1), Err(Errno::EAGAIN));
    assert_eq!(bed.cookies(b), [1, 3]);
}

#[test]
fn watchers_learn_of_room_once() {
    let (mut bed, a, b) = pair();
    let watch = |bed: &mut Bed| {
        let result = bed.domain.watch_room(&mut bed.host, a.handle, b.id);
        bed.collect();
        let rooms = bed.effects.iter().filter(|effect| **effect == Effect::Room(a.handle)).count();
        bed.effects.clear();
        (result, rooms)
    };
    assert_eq!(watch(&mut bed), (Ok(()), 1), "nothing was refused yet");
    while bed.send(a, &message(b.id, 1)).is_ok() {}
    assert_eq!(watch(&mut bed), (Ok(()), 0));
    assert_eq!(watch(&mut bed), (Ok(()), 0));
    assert_eq!((bed.domain.usage().watches, bed.host.watched[&b.handle]), (1, true));
    bed.effects.clear();
    bed.recv(b).unwrap();
    let rooms = bed.effects.iter().filter(|effect| **effect == Effect::Room(a.handle)).count();
    assert_eq!((rooms, bed.domain.usage().watches, bed.host.watched[&b.handle]), (1, 0, false));
    bed.send(a, &message(b.id, 1)).unwrap();
    assert_eq!(bed.send(a, &message(b.id, 1)), Err(Errno::ENOBUFS));
    bed.effects.clear();
    assert_eq!(watch(&mut bed), (Ok(()), 0));
    bed.close(b.handle);
    assert!(bed.effects.contains(&Effect::Room(a.handle)), "the end of the receiver is room too");
    assert_eq!(watch(&mut bed).0, Err(Errno::ENXIO));
}

#[test]
fn what_was_taken_before_a_watch_counts_for_it() {
    let (mut bed, a, b) = pair();
    while bed.send(a, &message(b.id, 1)).is_ok() {}
    let Entry { slot, key, .. } = bed.host.published[&b.handle][0];
    bed.host.returns.insert(b.handle, [Return::Taken { slot, key }].into());
    bed.effects.clear();
    bed.domain.watch_room(&mut bed.host, a.handle, b.id).unwrap();
    bed.collect();
    assert_eq!(bed.effects, [Effect::Room(a.handle)]);
    assert_eq!(bed.domain.usage().watches, 0);
}
