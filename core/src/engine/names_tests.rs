extern crate std;
use std::vec::Vec;

use super::*;
use crate::abi::Errno;

const FLAGS: NameFlags = NameFlags::empty();
const ALLOW: NameFlags = NameFlags::ALLOW_REPLACEMENT;
const REPLACE: NameFlags = NameFlags::REPLACE_EXISTING;
const QUEUE: NameFlags = NameFlags::QUEUE;
const WAITS: NameFlags = NameFlags::IN_QUEUE;
const PRIMARY: NameFlags = NameFlags::PRIMARY;
const ACTIVATOR: NameFlags = NameFlags::ACTIVATOR;
const ACQUIRED: NameFlags = NameFlags::ACQUIRED;

const A: ConnectionIndex = ConnectionIndex(0);
const B: ConnectionIndex = ConnectionIndex(1);
const C: ConnectionIndex = ConnectionIndex(2);
const D: ConnectionIndex = ConnectionIndex(3);

struct Fixture {
    bus: BusNames,
    arena: NameArena,
    names: Vec<NameEntry>,
    records: Vec<OwnerRecord>,
    claims: Vec<ClaimedNames>,
}

impl Fixture {
    fn new(names: usize, records: usize) -> Self {
        Self {
            bus: BusNames::new(),
            arena: NameArena::new(),
            names: (0..names).map(|_| NameEntry::new()).collect(),
            records: (0..records).map(|_| OwnerRecord::new()).collect(),
            claims: (0..4).map(|_| ClaimedNames::new()).collect(),
        }
    }

    fn table(&mut self) -> (&mut BusNames, NameTable<'_>) {
        let table = NameTable::new(&mut self.arena, &mut self.names, &mut self.records, &mut self.claims);
        (&mut self.bus, table)
    }

    fn acquire(
        &mut self,
        who: ConnectionIndex,
        name: &str,
        request: NameFlags,
    ) -> Result<Acquired, AcquireError> {
        let (bus, mut table) = self.table();
        table.acquire(bus, who, WellKnownName::parse(name).unwrap(), request)
    }

    /// The flags that a request for `a.b` reports, and the owners it announces.
    fn take(&mut self, who: ConnectionIndex, request: NameFlags) -> (NameFlags, Sides) {
        let acquired = self.acquire(who, "a.b", request).unwrap();
        (acquired.return_flags, sides(acquired.change))
    }

    fn activate(&mut self, who: ConnectionIndex) -> Result<Acquired, AcquireError> {
        let (bus, mut table) = self.table();
        table.add_activator(bus, who, WellKnownName::parse("a.b").unwrap())
    }

    fn release(&mut self, who: ConnectionIndex) -> Option<OwnerChange> {
        let (bus, mut table) = self.table();
        table.release(bus, who, b"a.b").unwrap().change
    }

    fn queue(&mut self) -> Vec<(ConnectionIndex, NameFlags)> {
        let (bus, table) = self.table();
        let id = table.find(bus, b"a.b").unwrap();
        table.queue(id).map(|owner| (owner.connection, owner.flags)).collect()
    }
}

type Sides = Option<(Option<(ConnectionIndex, NameFlags)>, Option<(ConnectionIndex, NameFlags)>)>;

fn sides(change: Option<OwnerChange>) -> Sides {
    let side = |owner: Owner| (owner.connection, owner.flags);
    change.map(|change| (change.old.map(side), change.new.map(side)))
}

#[test]
fn a_free_name_is_acquired_and_announced() {
    let mut names = Fixture::new(4, 4);
    let change = Some((None, Some((A, ALLOW | PRIMARY))));
    assert_eq!(names.take(A, ALLOW | REPLACE), (PRIMARY | ALLOW | ACQUIRED, change));
    let (bus, table) = names.table();
    let id = table.find(bus, b"a.b").unwrap();
    assert_eq!(table.text(id), Some("a.b"));
    assert_eq!(table.sequence(id), Some(1));
    assert_eq!(table.owner(id), Some(Owner { connection: A, flags: ALLOW | PRIMARY }));
}

#[test]
fn a_name_comes_from_its_activator_without_asking_for_replacement() {
    let mut names = Fixture::new(4, 4);
    let announced = sides(names.activate(D).unwrap().change);
    assert_eq!(announced, Some((None, Some((D, ACTIVATOR | PRIMARY)))));
    let acquired = names.acquire(A, "a.b", FLAGS).unwrap();
    assert_eq!(acquired.return_flags, PRIMARY | ACQUIRED);
    let change = acquired.change.unwrap();
    assert_eq!(sides(Some(change)), Some((Some((D, ACTIVATOR | PRIMARY)), Some((A, PRIMARY)))));
    assert_eq!(change.hand_over(), Some(HandOver { sequence: 1, from: D, to: A }));
    let (bus, table) = names.table();
    let id = table.find(bus, b"a.b").unwrap();
    assert_eq!(table.activator(id), Some(Owner { connection: D, flags: ACTIVATOR | WAITS }));
    assert_eq!(table.owner(id).unwrap().connection, A);
}

#[test]
fn a_primary_updates_its_flags() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    assert_eq!(names.take(A, ALLOW | QUEUE), (PRIMARY | ALLOW | QUEUE, None));
    assert_eq!(names.queue(), [(A, PRIMARY | ALLOW | QUEUE)]);
    assert_eq!(names.take(B, REPLACE).0, PRIMARY | ACQUIRED);
}

#[test]
fn a_replaced_owner_without_queue_loses_its_record() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, ALLOW);
    let change = Some((Some((A, ALLOW | PRIMARY)), Some((B, PRIMARY))));
    assert_eq!(names.take(B, REPLACE), (PRIMARY | ACQUIRED, change));
    assert_eq!(names.queue(), [(B, PRIMARY)]);
    assert!(names.claims[0].is_empty());
    assert_eq!(names.acquire(A, "a.b", REPLACE), Err(AcquireError::Taken));
}

#[test]
fn a_replaced_owner_with_queue_waits_first() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, ALLOW | QUEUE);
    let _ = names.take(C, QUEUE);
    let acquired = names.acquire(B, "a.b", REPLACE).unwrap();
    assert_eq!(acquired.change.unwrap().hand_over(), None, "messages stay");
    assert_eq!(names.queue(), [(B, PRIMARY), (A, ALLOW | QUEUE | WAITS), (C, QUEUE | WAITS)]);
}

#[test]
fn a_waiter_that_replaces_overtakes_the_others() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, ALLOW | QUEUE);
    let _ = names.take(B, QUEUE);
    let _ = names.take(C, QUEUE);
    assert_eq!(names.take(C, REPLACE | QUEUE).0, PRIMARY | QUEUE | ACQUIRED);
    assert_eq!(names.queue(), [(C, PRIMARY | QUEUE), (A, ALLOW | QUEUE | WAITS), (B, QUEUE | WAITS)]);
    assert_eq!(names.claims[2].len(), 1);
}

#[test]
fn waiting_keeps_its_place_until_asked_without_queue() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    assert_eq!(names.take(B, QUEUE), (WAITS | QUEUE | ACQUIRED, None));
    let _ = names.take(C, QUEUE);
    assert_eq!(names.take(B, QUEUE | ALLOW), (WAITS | QUEUE | ALLOW, None));
    assert_eq!(names.queue()[1], (B, WAITS | QUEUE | ALLOW));
    assert_eq!(names.take(B, ALLOW), (ALLOW, None));
    assert_eq!(names.queue(), [(A, PRIMARY), (C, QUEUE | WAITS)]);
}

#[test]
fn a_taken_name_is_refused() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    assert_eq!(names.acquire(B, "a.b", REPLACE | ALLOW), Err(AcquireError::Taken));
    assert_eq!(stored_flags(REPLACE | ALLOW), ALLOW);
    assert!(names.claims[1].is_empty());
    assert_eq!(names.arena.records.len(), 1);
}

#[test]
fn a_released_name_passes_to_the_first_in_the_queue() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, ALLOW);
    let _ = names.activate(D).unwrap();
    let _ = names.take(B, QUEUE);
    let _ = names.take(C, QUEUE);
    assert_eq!(names.release(B), None, "a waiter goes unnoticed");
    let change = names.release(A).unwrap();
    assert_eq!(sides(Some(change)), Some((Some((A, ALLOW | PRIMARY)), Some((C, QUEUE | PRIMARY)))));
    assert_eq!(change.hand_over(), None);
    let change = names.release(C).unwrap();
    assert_eq!(sides(Some(change)), Some((Some((C, QUEUE | PRIMARY)), Some((D, ACTIVATOR | PRIMARY)))));
    assert_eq!(change.hand_over(), Some(HandOver { sequence: 1, from: C, to: D }));
    let change = names.release(D).unwrap();
    assert_eq!(sides(Some(change)), Some((Some((D, ACTIVATOR | PRIMARY)), None)));
    assert_eq!(change.name.as_str(), "a.b");
    assert!(names.arena.names.is_empty());
    assert!(names.arena.records.is_empty());
}

#[test]
fn an_activator_behind_an_owner_comes_and_goes_unannounced() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    assert_eq!(names.activate(D).unwrap().change, None);
    assert_eq!(names.activate(C), Err(AcquireError::Taken));
    assert_eq!(names.release(D), None);
    assert_eq!(sides(names.release(A)), Some((Some((A, PRIMARY)), None)));
}

#[test]
fn releasing_what_one_does_not_have_is_refused() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    let (bus, mut table) = names.table();
    assert_eq!(table.release(bus, B, b"a.b"), Err(ReleaseError::NotYours));
    for unknown in [&b"foo"[..], b".bla.blaz", b"foo.bla.bl.*", b"\xff\xfe", b""] {
        assert_eq!(table.release(bus, A, unknown), Err(ReleaseError::Unknown));
    }
    assert_eq!(ReleaseError::Unknown.errno(), Errno::ESRCH);
}

#[test]
fn a_name_that_came_back_has_a_new_sequence_number() {
    let mut names = Fixture::new(1, 1);
    let _ = names.take(A, FLAGS);
    let (bus, table) = names.table();
    let old = table.find(bus, b"a.b").unwrap();
    let _ = names.release(A);
    let _ = names.take(B, FLAGS);
    let (bus, table) = names.table();
    assert_eq!(table.owner(old), None);
    assert_eq!(table.sequence(table.find(bus, b"a.b").unwrap()), Some(2));
}

#[test]
fn claims_go_in_the_order_they_were_made() {
    let mut names = Fixture::new(8, 8);
    for name in ["z.z", "a.b", "m.m", "c.d"] {
        assert!(names.acquire(A, name, QUEUE).is_ok());
    }
    assert!(names.acquire(B, "m.m", QUEUE).is_ok());
    assert!(names.acquire(B, "b.b", QUEUE).is_ok());
    let _ = names.release(A);
    let (_, table) = names.table();
    let claimed: Vec<&str> = table.claims(B).map(|claim| claim.name).collect();
    assert_eq!(claimed, ["m.m", "b.b"]);
    assert_eq!(table.held(B).map(|claim| claim.name).collect::<Vec<_>>(), ["b.b"]);
    let mut announced = Vec::new();
    loop {
        let (bus, mut table) = names.table();
        let Some(released) = table.release_next(bus, A) else {
            break;
        };
        let change = released.change.unwrap();
        announced.push((change.name, change.new.map(|owner| owner.connection)));
    }
    let announced: Vec<(&str, _)> = announced.iter().map(|(name, new)| (name.as_str(), *new)).collect();
    assert_eq!(announced, [("z.z", None), ("m.m", Some(B)), ("c.d", None)]);
    assert!(names.claims[0].is_empty());
}

#[test]
fn buses_do_not_see_each_others_names() {
    let mut names = Fixture::new(4, 4);
    let _ = names.take(A, FLAGS);
    let mut other = BusNames::new();
    let (_, mut table) = names.table();
    assert_eq!(table.find(&other, b"a.b"), None);
    let acquired = table.acquire(&mut other, C, WellKnownName::parse("a.b").unwrap(), FLAGS).unwrap();
    assert_eq!(acquired.change.unwrap().sequence, 1);
    assert_eq!(table.names(&other).count(), 1);
    assert_eq!(table.len(), 2);
}

#[test]
fn limits_are_refusals() {
    let mut names = Fixture::new(300, 300);
    for n in 0..RECORDS_MAX {
        let name = std::format!("n.n{n}");
        assert!(names.acquire(A, &name, FLAGS).is_ok());
    }
    assert_eq!(names.acquire(A, "one.more", FLAGS), Err(AcquireError::TooMany));
    assert_eq!(names.acquire(A, "n.n7", ALLOW).unwrap().return_flags, PRIMARY | ALLOW);
    assert!(names.acquire(B, "b.b", FLAGS).is_ok());
    assert_eq!(names.acquire(A, "b.b", FLAGS), Err(AcquireError::TooMany), "before a look at the name");
    assert_eq!(names.acquire(ConnectionIndex(9), "b.b", FLAGS), Err(AcquireError::NoConnection));

    let mut names = Fixture::new(2, 2);
    let _ = names.take(A, FLAGS);
    let _ = names.take(B, QUEUE);
    assert_eq!(names.acquire(C, "a.b", QUEUE), Err(AcquireError::Full));
    assert_eq!(names.acquire(C, "c.d", FLAGS), Err(AcquireError::Full));
    assert_eq!(names.arena.names.len(), 1, "an entry without a record is given back");
    assert_eq!(AcquireError::TooMany.errno(), Errno::E2BIG);
    assert_eq!(AcquireError::Full.errno(), Errno::ENOMEM);
}

#[test]
fn an_activator_cannot_acquire_its_own_name() {
    let mut names = Fixture::new(2, 2);
    let _ = names.activate(D).unwrap();
    assert_eq!(names.acquire(D, "a.b", FLAGS), Err(AcquireError::OwnActivator));
}
