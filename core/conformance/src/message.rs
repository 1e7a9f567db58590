//! Unicast messages: destinations, headers, and the payload that arrives.

use kdbus_core::abi::{Errno, Item as View, ItemType, Msg, MsgFlags, NameFlags, OFFSET_ZEROS, align8};

use crate::bench::{Bench, Outcome};
use crate::build::{BLOOM, Hello, Item, Message};
use crate::world::{Payload, World};
use kdbus_core::abi::AttachFlags;

pub(crate) fn plain_message_arrives_with_its_cookie_and_sender<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).cookie(0xc0ffee)).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!((received.msg.cookie, received.msg.src_id, received.msg.dst_id), (0xc0ffee, a.id, b.id));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn unknown_id_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::to(a.id + 1000)), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn an_activator_has_no_address_of_its_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator("com.example.a")));
    assert_eq!(t.send(&a, &Message::to(activator.id)), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn monitors_and_policy_holders_have_no_address<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let monitor = t.hello(&Hello::monitor());
    let holder = t.hello(&Hello::policy_holder("com.example.a", &[]));
    assert_eq!(t.send(&a, &Message::to(monitor.id)), Err(Errno::ENXIO));
    assert_eq!(t.send(&a, &Message::to(holder.id)), Err(Errno::ENXIO));
    Ok(())
}

pub(crate) fn no_destination_at_all_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::to(0)), Err(Errno::EDESTADDRREQ));
    Ok(())
}

pub(crate) fn a_name_without_owner_is_not_found<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::named("com.example.nobody")), Err(Errno::ESRCH));
    Ok(())
}

pub(crate) fn a_malformed_destination_name_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.send(&a, &Message::named("foo")), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn name_and_id_have_to_agree<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.own(&b, "com.example.b");
    assert_eq!(t.send(&a, &Message::named("com.example.b").dst_id(c.id)), Err(Errno::EREMCHG));
    t.send(&a, &Message::named("com.example.b").dst_id(b.id)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.src_id, a.id);
    t.assert_empty(&c, 0);
    Ok(())
}

pub(crate) fn no_auto_start_refuses_an_activator<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, activator) = (t.connect(), t.hello(&Hello::activator("com.example.a")));
    let message = Message::named("com.example.a").flags(MsgFlags::NO_AUTO_START);
    assert_eq!(t.send(&a, &message), Err(Errno::EADDRNOTAVAIL));
    assert!(!t.world.poll(&activator.handle).readable);
    Ok(())
}

pub(crate) fn no_auto_start_accepts_an_ordinary_owner<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, "com.example.b");
    t.send(&a, &Message::named("com.example.b").flags(MsgFlags::NO_AUTO_START)).unwrap();
    t.recv(&b).unwrap();
    Ok(())
}

pub(crate) fn source_is_the_sender_or_left_open<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).src_id(a.id)).unwrap();
    t.send(&a, &Message::to(b.id).src_id(0)).unwrap();
    assert_eq!(t.send(&a, &Message::to(b.id).src_id(b.id)), Err(Errno::EINVAL));
    for _ in 0..2 {
        assert_eq!(t.recv(&b).unwrap().msg.src_id, a.id);
    }
    Ok(())
}

pub(crate) fn only_the_kernel_sends_kernel_payload<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert_eq!(t.send(&a, &Message::to(b.id).payload_type(0)), Err(Errno::EINVAL));
    t.send(&a, &Message::to(b.id).payload_type(1)).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.payload_type, 1);
    Ok(())
}

pub(crate) fn a_filter_makes_sense_on_signals_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert_eq!(t.send(&a, &Message::to(b.id).filter(0, &[0; BLOOM])), Err(Errno::EBADMSG));
    Ok(())
}

pub(crate) fn a_message_without_items_is_its_header<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    t.send(&a, &Message::to(b.id)).unwrap();
    let received = t.recv(&b).unwrap();
    assert_eq!((received.msg.size, received.info.msg_size), (64, 64));
    let c = t.hello(&Hello::default().asks(AttachFlags::TIMESTAMP));
    t.send(&a, &Message::to(c.id)).unwrap();
    assert_eq!(t.recv(&c).unwrap().msg.size, 64 + 40);
    Ok(())
}

pub(crate) fn a_message_to_oneself_arrives<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.send(&a, &Message::to(a.id).vec(b"note")).unwrap();
    let received = t.recv(&a).unwrap();
    assert_eq!((received.msg.src_id, received.payload()), (a.id, b"note".to_vec()));
    Ok(())
}

pub(crate) fn payload_at_a_kernel_address_is_a_fault<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    assert_eq!(t.send(&a, &Message::to(b.id).vec_at(16, Payload::Kernel)), Err(Errno::EFAULT));
    t.assert_empty(&b, 0);
    Ok(())
}

pub(crate) fn unreadable_payload_charges_nobody<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    let most = b.pool / 2 / 3 / 8 * 8 - 64 - 32;
    for _ in 0..3 {
        let message = Message::to(b.id).vec_at(most, Payload::Unmapped);
        assert_eq!(t.send(&a, &message), Err(Errno::EFAULT));
    }
    t.assert_empty(&b, 0);
    t.send(&a, &Message::to(b.id).vec(&vec![7; most as usize])).unwrap();
    assert_eq!(t.recv(&b).unwrap().payload().len() as u64, most);
    Ok(())
}

pub(crate) fn one_vector_holds_up_to_two_mebibytes<W: World>(t: &mut Bench<W>) -> Outcome {
    const MOST: usize = 2 << 20;
    let (a, b) = (t.connect(), t.hello(&Hello::default().pool(16 << 20)));
    assert_eq!(t.send(&a, &Message::to(b.id).vec(b"")), Err(Errno::EINVAL));
    assert_eq!(t.send(&a, &Message::to(b.id).vec(&vec![1; MOST + 1])), Err(Errno::EMSGSIZE));
    let content: Vec<u8> = (0..MOST).map(|i| (i % 251) as u8).collect();
    t.send(&a, &Message::to(b.id).vec(&content)).unwrap();
    assert!(t.recv(&b).unwrap().payload() == content);
    Ok(())
}

pub(crate) fn vectors_may_or_may_not_be_limited_in_sum<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().pool(32 << 20)));
    let half = vec![1; 3 << 19];
    let result = t.send(&a, &Message::to(b.id).vec(&half).vec(&half));
    assert!(matches!(result, Ok(()) | Err(Errno::EMSGSIZE)), "{result:?}");
    assert_eq!(t.world.poll(&b.handle).readable, result.is_ok());
    Ok(())
}

pub(crate) fn vectors_lie_one_behind_the_other<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).vec(b"abc").vec(b"defgh")).unwrap();
    let received = t.recv(&b).unwrap();
    let base = align8(received.msg.size);
    let vecs = received.vecs();
    assert_eq!(
        vecs.iter().map(|vec| (vec.address, vec.size)).collect::<Vec<_>>(),
        [(base, 3), (base + 3, 5)]
    );
    assert_eq!(received.info.msg_size, base + 8);
    assert_eq!(received.payload(), b"abcdefgh");
    Ok(())
}

pub(crate) fn a_run_of_zeros_takes_no_room<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.send(&a, &Message::to(b.id).zeros(13)).unwrap();
    let received = t.recv(&b).unwrap();
    let base = align8(received.msg.size);
    assert_eq!(
        received.vecs().iter().map(|vec| (vec.address, vec.size)).collect::<Vec<_>>(),
        [(OFFSET_ZEROS, 13)]
    );
    // The rest of the run up to a multiple of 8 is there, so that what follows keeps its alignment.
    assert_eq!(received.info.msg_size, base + 8);
    assert_eq!(received.bytes[base as usize..], [0; 8]);
    Ok(())
}

pub(crate) fn payload_in_the_slice_is_for_receiving_only<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let item = Item::bytes(ItemType::PAYLOAD_OFF, &[1; 16]);
    assert_eq!(t.send(&a, &Message::to(b.id).item(&item)), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn two_destination_names_are_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, "com.example.b");
    let twice = Message::named("com.example.b").item(&Item::text(ItemType::DST_NAME, "com.example.b"));
    assert_eq!(t.send(&a, &twice), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn name_and_filter_stay_in_the_message<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, "com.example.b");
    t.add_match(&b, 1, &[]).unwrap();
    t.send(&a, &Message::named("com.example.b")).unwrap();
    assert_eq!(t.recv(&b).unwrap().all(ItemType::DST_NAME), [&b"com.example.b\0"[..]]);
    t.send(&a, &Message::broadcast_of(9, &[5; BLOOM])).unwrap();
    let received = t.recv(&b).unwrap();
    let view = View { kind: ItemType::BLOOM_FILTER, payload: received.all(ItemType::BLOOM_FILTER)[0], at: 0 };
    assert_eq!(view.bloom_filter(), Some((9, &[5; BLOOM][..])));
    Ok(())
}

pub(crate) fn reported_size_is_the_whole_slice<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.acquire(&b, "com.example.odd", NameFlags::empty()).unwrap();
    t.send(&a, &Message::named("com.example.odd").vec(b"five.")).unwrap();
    let received = t.recv(&b).unwrap();
    assert!(received.msg.size > Msg::SIZE as u64);
    assert_eq!(received.info.msg_size, align8(received.msg.size) + 8);
    assert_eq!(received.info.msg_size % 8, 0);
    Ok(())
}

pub(crate) fn long_messages_of_items_are_fine<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    // 602 vectors of one byte: 64 + 602 × 32 = 19,328 bytes.
    let message = (0..602).fold(Message::to(b.id), |message, i| message.vec(&[i as u8]));
    assert_eq!(message.bytes.len(), 19_328);
    t.send(&a, &message).unwrap();
    let payload = t.recv(&b).unwrap().payload();
    assert!(payload.iter().copied().eq((0..602).map(|i| i as u8)));
    let message = (0..1023).fold(Message::to(b.id), |message, _| message.zeros(8));
    assert_eq!(message.bytes.len(), 32_800);
    assert_eq!(t.send(&a, &message), Err(Errno::EMSGSIZE));
    Ok(())
}

pub(crate) fn header_fields_arrive_as_sent<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, far) = (t.connect(), t.connect(), t.far());
    let message = Message::call(b.id, 0x1122, far).priority(-77).payload_type(0x3344);
    t.send(&a, &message.flags(MsgFlags::NO_AUTO_START)).unwrap();
    let msg = t.recv(&b).unwrap().msg;
    let flags = MsgFlags::EXPECT_REPLY | MsgFlags::NO_AUTO_START;
    assert_eq!((msg.flags, msg.priority, msg.payload_type), (flags.bits(), -77, 0x3344));
    assert_eq!((msg.cookie, msg.timeout_or_reply, msg.src_id), (0x1122, far, a.id));
    Ok(())
}

pub(crate) fn what_was_sent_does_not_change<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    let mut message = Message::to(b.id).vec(b"first");
    t.send(&a, &message).unwrap();
    message.payload = vec![Payload::Bytes(b"other".to_vec())];
    t.send(&a, &message).unwrap();
    assert_eq!(t.recv(&b).unwrap().payload(), b"first");
    assert_eq!(t.recv(&b).unwrap().payload(), b"other");
    Ok(())
}

pub(crate) fn items_keep_their_order<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    t.own(&b, "com.example.b");
    let memfd = t.world.memfd(t.owner, b"sealed", true);
    let message = Message::to(0)
        .vec(b"one")
        .memfd(memfd, 2, 3)
        .item(&Item::text(ItemType::DST_NAME, "com.example.b"))
        .zeros(3)
        .vec(b"two");
    t.send(&a, &message).unwrap();
    let received = t.recv(&b).unwrap();
    let kinds: Vec<_> = received.items.iter().map(|(kind, _)| *kind).collect();
    let off = ItemType::PAYLOAD_OFF;
    assert_eq!(kinds, [off, ItemType::PAYLOAD_MEMFD, ItemType::DST_NAME, off, off]);
    let base = align8(received.msg.size);
    let memfd: kdbus_core::abi::Memfd = received.record(ItemType::PAYLOAD_MEMFD).unwrap();
    assert_eq!((memfd.start, memfd.size), (2, 3));
    let vecs: Vec<_> = received.vecs().iter().map(|vec| (vec.address, vec.size)).collect();
    // The memfd and the zeros each leave a gap of their size modulo 8.
    assert_eq!(vecs, [(base, 3), (OFFSET_ZEROS, 3), (base + 9, 3)]);
    assert_eq!(received.payload(), b"onetwo");
    Ok(())
}

pub(crate) fn a_fresh_message_has_no_bytes_of_an_older_one<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.hello(&Hello::default().asks(AttachFlags::empty())));
    t.send(&a, &Message::to(b.id).vec(&[0xff; 256])).unwrap();
    t.recv(&b).unwrap();
    t.send(&a, &Message::to(b.id).vec(b"odd").zeros(13)).unwrap();
    let received = t.recv(&b).unwrap();
    let base = align8(received.msg.size) as usize;
    assert_eq!(received.bytes[base..], *b"odd\0\0\0\0\0");
    Ok(())
}
