//! Well-known names: syntax, owners, queues and replacement.

use kdbus_core::abi::{Command, Errno, ItemType, ListFlags, NameFlags};

use crate::bench::{Bench, Outcome, name_arg};
use crate::build::{Hello, Item, Message};
use crate::world::World;

const NONE: NameFlags = NameFlags::empty();
const NAME: &str = "com.example.name";

/// NAME_ACQUIRE that fails: its code and `return_flags`.
fn refused<W: World>(
    t: &mut Bench<W>,
    conn: &crate::bench::Conn<W>,
    flags: NameFlags,
) -> (Result<(), Errno>, NameFlags) {
    let mut arg = name_arg(Command::NameAcquire, NAME).flags(flags.bits());
    let result = t.run(conn, &mut arg);
    (result, NameFlags::from_bits_retain(arg.get(16)))
}

pub(crate) fn malformed_names_cannot_be_acquired<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for name in [".bla.blaz", "foo", "foo.bla.bl.*"] {
        assert_eq!(t.acquire(&a, name, NONE), Err(Errno::EINVAL), "{name}");
    }
    Ok(())
}

pub(crate) fn elements_follow_their_syntax<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for (name, valid) in
        [("foo.1bar", false), ("foo.-bar", true), ("foo._b", true), ("foo..b", false), ("foo.b.", false)]
    {
        let result = t.acquire(&a, name, NONE).map(|_| ());
        assert_eq!(result, if valid { Ok(()) } else { Err(Errno::EINVAL) }, "{name}");
    }
    Ok(())
}

pub(crate) fn a_name_has_at_most_255_bytes<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    let longest = format!("a.{}", "b".repeat(253));
    t.own(&a, &longest);
    assert_eq!(t.acquire(&a, &format!("{longest}b"), NONE), Err(Errno::EINVAL));
    Ok(())
}

pub(crate) fn a_free_name_is_acquired<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    assert_eq!(t.acquire(&a, NAME, NONE), Ok(NameFlags::PRIMARY | NameFlags::ACQUIRED));
    assert_eq!(t.name_flags(&a, a.id, NAME), Some(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn a_released_name_is_gone<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.own(&a, NAME);
    assert_eq!(t.release(&a, NAME), Ok(()));
    assert_eq!(t.release(&a, NAME), Err(Errno::ESRCH));
    assert_eq!(t.name_flags(&a, a.id, NAME), None);
    Ok(())
}

pub(crate) fn a_name_of_others_cannot_be_released<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    assert_eq!(t.release(&b, NAME), Err(Errno::EADDRINUSE));
    assert_eq!(t.name_flags(&a, a.id, NAME), Some(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn releasing_a_malformed_name_finds_nothing<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    for name in [".bla.blaz", "foo", "foo.bla.bl.*"] {
        assert_eq!(t.release(&a, name), Err(Errno::ESRCH), "{name}");
    }
    Ok(())
}

pub(crate) fn a_taken_name_is_refused<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    assert_eq!(refused(t, &b, NONE), (Err(Errno::EEXIST), NONE));
    Ok(())
}

pub(crate) fn waiting_for_a_taken_name_is_possible<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    let waiting = NameFlags::IN_QUEUE | NameFlags::QUEUE;
    assert_eq!(t.acquire(&b, NAME, NameFlags::QUEUE), Ok(waiting | NameFlags::ACQUIRED));
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(waiting));
    Ok(())
}

pub(crate) fn a_released_name_passes_to_the_first_waiter<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    t.release(&a, NAME).unwrap();
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(NameFlags::PRIMARY | NameFlags::QUEUE));
    assert_eq!(t.name_flags(&a, c.id, NAME), Some(NameFlags::IN_QUEUE | NameFlags::QUEUE));
    Ok(())
}

pub(crate) fn an_owner_that_allows_it_is_replaced<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.acquire(&a, NAME, NameFlags::ALLOW_REPLACEMENT).unwrap();
    let flags = t.acquire(&b, NAME, NameFlags::REPLACE_EXISTING);
    assert_eq!(flags, Ok(NameFlags::PRIMARY | NameFlags::ACQUIRED));
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(NameFlags::PRIMARY));
    assert_eq!(t.name_flags(&a, a.id, NAME), None);
    Ok(())
}

pub(crate) fn a_replaced_owner_that_queues_waits_first<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.acquire(&a, NAME, NameFlags::ALLOW_REPLACEMENT | NameFlags::QUEUE).unwrap();
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    t.acquire(&b, NAME, NameFlags::REPLACE_EXISTING).unwrap();
    let waiting = NameFlags::IN_QUEUE | NameFlags::QUEUE | NameFlags::ALLOW_REPLACEMENT;
    assert_eq!(t.name_flags(&a, a.id, NAME), Some(waiting));
    t.release(&b, NAME).unwrap();
    let flags = t.name_flags(&a, a.id, NAME).unwrap();
    assert_eq!(flags, NameFlags::PRIMARY | NameFlags::QUEUE | NameFlags::ALLOW_REPLACEMENT);
    Ok(())
}

pub(crate) fn an_owner_that_does_not_allow_it_stays<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    assert_eq!(refused(t, &b, NameFlags::REPLACE_EXISTING), (Err(Errno::EEXIST), NONE));
    assert_eq!(t.name_flags(&a, a.id, NAME), Some(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn acquiring_a_held_name_again_changes_no_owner<W: World>(t: &mut Bench<W>) -> Outcome {
    let a = t.connect();
    t.own(&a, NAME);
    assert_eq!(t.acquire(&a, NAME, NONE), Ok(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn acquiring_again_stores_the_new_flags<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    let flags = t.acquire(&a, NAME, NameFlags::ALLOW_REPLACEMENT);
    assert_eq!(flags, Ok(NameFlags::PRIMARY | NameFlags::ALLOW_REPLACEMENT));
    t.acquire(&b, NAME, NameFlags::REPLACE_EXISTING).unwrap();
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(NameFlags::PRIMARY));
    Ok(())
}

pub(crate) fn a_waiter_that_asks_again_keeps_its_place<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    let flags = t.acquire(&b, NAME, NameFlags::QUEUE);
    assert_eq!(flags, Ok(NameFlags::IN_QUEUE | NameFlags::QUEUE));
    t.release(&a, NAME).unwrap();
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(NameFlags::PRIMARY | NameFlags::QUEUE));
    Ok(())
}

pub(crate) fn a_waiter_that_asks_without_queueing_leaves<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    assert_eq!(t.acquire(&b, NAME, NONE), Ok(NONE));
    assert_eq!(t.name_flags(&a, b.id, NAME), None);
    t.release(&a, NAME).unwrap();
    assert_eq!(t.send(&a, &Message::named(NAME)), Err(Errno::ESRCH));
    Ok(())
}

pub(crate) fn a_waiter_that_replaces_passes_earlier_ones<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.acquire(&a, NAME, NameFlags::ALLOW_REPLACEMENT).unwrap();
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    let flags = t.acquire(&c, NAME, NameFlags::REPLACE_EXISTING);
    assert_eq!(flags, Ok(NameFlags::PRIMARY | NameFlags::ACQUIRED));
    assert_eq!(t.name_flags(&a, c.id, NAME), Some(NameFlags::PRIMARY));
    assert_eq!(t.name_flags(&a, b.id, NAME), Some(NameFlags::IN_QUEUE | NameFlags::QUEUE));
    Ok(())
}

pub(crate) fn a_waiter_leaves_without_notice<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&a, NAME);
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    for (cookie, kind) in [(1, ItemType::NAME_REMOVE), (2, ItemType::NAME_CHANGE), (3, ItemType::NAME_ADD)] {
        t.add_match(&a, cookie, &[Item::any_change(kind, "")]).unwrap();
    }
    t.release(&b, NAME).unwrap();
    t.assert_empty(&a, 0);
    assert_eq!(t.name_flags(&a, b.id, NAME), None);
    Ok(())
}

pub(crate) fn a_connection_has_at_most_256_names<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    t.own(&b, NAME);
    t.acquire(&a, NAME, NameFlags::QUEUE).unwrap();
    for i in 0..255 {
        t.own(&a, &format!("com.example.n{i}"));
    }
    assert_eq!(t.acquire(&a, "com.example.more", NONE), Err(Errno::E2BIG));
    assert_eq!(t.acquire(&a, NAME, NameFlags::QUEUE), Ok(NameFlags::IN_QUEUE | NameFlags::QUEUE));
    t.release(&a, NAME).unwrap();
    t.own(&a, "com.example.more");
    Ok(())
}

pub(crate) fn a_stranger_needs_policy_to_own<W: World>(t: &mut Bench<W>) -> Outcome {
    let user = t.world.user(1)?;
    let (a, u) = (t.connect(), t.hello_as(user, &Hello::default()));
    assert_eq!(t.acquire(&u, NAME, NONE), Err(Errno::EPERM));
    t.own(&a, NAME);
    assert_eq!(t.acquire(&u, NAME, NONE), Err(Errno::EPERM));
    Ok(())
}

pub(crate) fn only_ordinary_connections_acquire<W: World>(t: &mut Bench<W>) -> Outcome {
    for hello in
        [Hello::monitor(), Hello::activator("com.example.a"), Hello::policy_holder("com.example.p", &[])]
    {
        let conn = t.hello(&hello);
        assert_eq!(t.acquire(&conn, NAME, NONE), Err(Errno::EOPNOTSUPP));
        assert_eq!(t.release(&conn, NAME), Err(Errno::EOPNOTSUPP));
    }
    Ok(())
}

pub(crate) fn a_leaving_owner_hands_over_before_it_is_gone<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.own(&b, NAME);
    t.acquire(&c, NAME, NameFlags::QUEUE).unwrap();
    t.add_match(&a, 1, &[Item::any_change(ItemType::NAME_CHANGE, NAME)]).unwrap();
    t.add_match(&a, 2, &[Item::id_change(ItemType::ID_REMOVE, b.id)]).unwrap();
    let (old, new) = (b.id, c.id);
    t.close(b);
    assert_eq!(t.wait_recv(&a).name_change(ItemType::NAME_CHANGE), (old, new, NAME.to_owned()));
    assert_eq!(t.wait_recv(&a).id_change(ItemType::ID_REMOVE), old);
    t.assert_empty(&a, 0);
    Ok(())
}

pub(crate) fn queued_messages_stay_with_the_former_owner<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b, c) = (t.connect(), t.connect(), t.connect());
    t.acquire(&b, NAME, NameFlags::ALLOW_REPLACEMENT).unwrap();
    t.send(&a, &Message::named(NAME).cookie(1)).unwrap();
    t.acquire(&c, NAME, NameFlags::REPLACE_EXISTING).unwrap();
    t.acquire(&b, NAME, NameFlags::QUEUE).unwrap();
    t.send(&a, &Message::named(NAME).cookie(2)).unwrap();
    t.release(&c, NAME).unwrap();
    assert_eq!(t.recv(&b).unwrap().msg.cookie, 1);
    assert_eq!(t.recv(&c).unwrap().msg.cookie, 2);
    t.assert_empty(&b, 0);
    assert_eq!(t.list(&a, ListFlags::NAMES).iter().map(|record| record.id).collect::<Vec<_>>(), [b.id]);
    Ok(())
}

pub(crate) fn names_that_come_and_go_leave_nothing_behind<W: World>(t: &mut Bench<W>) -> Outcome {
    let (a, b) = (t.connect(), t.connect());
    for round in 0..300 {
        let name = format!("com.example.round{round}");
        t.acquire(&a, &name, NameFlags::ALLOW_REPLACEMENT).unwrap();
        t.acquire(&b, &name, NameFlags::QUEUE).unwrap();
        t.acquire(&b, &name, NameFlags::REPLACE_EXISTING).unwrap();
        t.release(&b, &name).unwrap();
        assert_eq!(t.acquire(&a, "malformed", NONE), Err(Errno::EINVAL));
    }
    assert_eq!(t.list(&a, ListFlags::NAMES), []);
    Ok(())
}
