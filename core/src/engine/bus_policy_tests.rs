//! What a host gives a bus, beside activators and policy holders.

extern crate std;
use std::vec::Vec;

use super::super::testbed::*;
use super::super::*;
use crate::abi::{Errno, HelloFlags, ItemType, ItemWriter, NameFlags, PolicyAccess};
use crate::client::Access;

/// Items for names, each with its records.
fn items(names: &[(&str, &[PolicyAccess])]) -> Vec<u8> {
    let mut buffer = std::vec![0; 4096];
    let mut writer = ItemWriter::new(&mut buffer);
    for (name, records) in names {
        writer.c_str(ItemType::NAME, name).unwrap();
        for record in *records {
            writer.record(ItemType::POLICY_ACCESS, record).unwrap();
        }
    }
    let end = writer.len();
    buffer.truncate(end);
    buffer
}

fn set<'m>(bed: &mut Bed, items: &'m [u8]) -> Result<(), PolicyRefused<'m>> {
    bed.domain.set_bus_policy(&mut bed.host, bed.bus, items)
}

const OWN: NameFlags = NameFlags::empty();

#[test]
fn whoever_it_names_may_own_and_the_others_may_not() {
    let mut bed = Bed::new();
    let (right, wrong) = (bed.connect_as(2000), bed.connect_as(2001));
    set(&mut bed, &items(&[("a.b", &[PolicyAccess::user(2000, Access::Own)])])).unwrap();
    assert_eq!(bed.acquire(wrong, "a.b", OWN), Err(Errno::EPERM));
    assert!(bed.acquire(right, "a.b", OWN).is_ok());
    assert_eq!(bed.acquire(right, "a.c", OWN), Err(Errno::EPERM));
    // What is replaced is gone, and whoever owns a name keeps it.
    set(&mut bed, &items(&[("a.*", &[PolicyAccess::user(2001, Access::Own)])])).unwrap();
    assert!(bed.acquire(wrong, "a.b", NameFlags::QUEUE).unwrap().contains(NameFlags::IN_QUEUE));
    bed.release(right, "a.b").unwrap();
    assert_eq!(bed.acquire(right, "a.b", OWN), Err(Errno::EPERM));
    set(&mut bed, &[]).unwrap();
    assert_eq!(bed.acquire(wrong, "a.c", OWN), Err(Errno::EPERM));
}

#[test]
fn names_that_stay_are_no_obstacle_to_a_new_policy() {
    let mut bed = Bed::new();
    let world = [PolicyAccess::world(Access::Own)];
    for names in [["a.b", "a.c", "a.d"], ["a.b", "a.c", "a.d"], ["a.d", "a.e", "a.b"]] {
        let all = names.map(|name| (name, &world[..]));
        assert_eq!(set(&mut bed, &items(&all)), Ok(()), "{names:?}");
    }
    assert_eq!(bed.domain.usage().policy_entries, 3);
}

#[test]
fn a_change_closes_lanes_and_a_refusal_does_not() {
    let mut bed = Bed::new();
    let (service, stranger) = (bed.connect(), bed.connect_as(2000));
    bed.acquire(service, "a.b", OWN).unwrap();
    let open = |bed: &mut Bed| bed.domain.open_lane(&mut bed.host, stranger.handle, LaneTo::Id(service.id));
    assert_eq!(open(&mut bed), Err(NoLane::Denied));
    set(&mut bed, &items(&[("a.b", &[PolicyAccess::world(Access::Talk)])])).unwrap();
    assert_eq!(open(&mut bed), Ok(()));
    let bus = bed.domain.lane_grant(stranger.handle, service.id).unwrap().bus;
    bed.host.lanes_closed.clear();
    let twice = items(&[("a.b", &[]), ("a.b", &[])]);
    assert_eq!(set(&mut bed, &twice), Err(PolicyRefused::Twice("a.b")));
    assert!(bed.host.lanes_closed.is_empty());
    assert_eq!(open(&mut bed), Ok(()), "the old entries are there");
    set(&mut bed, &items(&[("a.b", &[PolicyAccess::world(Access::See)])])).unwrap();
    assert_eq!(bed.host.lanes_closed, std::vec![(Lanes::Bus(bus), 0)]);
    assert_eq!(open(&mut bed), Err(NoLane::Denied));
}

#[test]
fn a_name_is_set_by_the_bus_or_by_a_connection() {
    let mut bed = Bed::new();
    let holder = bed.policy_holder("a.b", &[]);
    let both = items(&[("a.c", &[]), ("a.b", &[])]);
    assert_eq!(set(&mut bed, &both), Err(PolicyRefused::Held("a.b")));
    bed.close(holder.handle);
    set(&mut bed, &both).unwrap();
    let name = c_str("a.b");
    for kind in [HelloFlags::POLICY_HOLDER, HelloFlags::ACTIVATOR] {
        let handle = bed.open(OWNER);
        assert_eq!(bed.hello(handle, kind, 4096, &[(ItemType::NAME, &name)]).err(), Some(Errno::EEXIST));
    }
    // A pattern and a name that it covers are two.
    bed.policy_holder("a.*", &[]);
    assert_eq!(set(&mut bed, &items(&[("a.b", &[])])), Ok(()));
}

#[test]
fn malformed_entries_and_too_many_change_nothing() {
    let config =
        Config { policy_entries: 3, policy_records: 3, queue_depth: 64, pool_slices: 64, ..Config::SMALL };
    let mut bed = Bed::with(&config);
    let client = bed.connect_as(2000);
    let world = [PolicyAccess::world(Access::Own)];
    set(&mut bed, &items(&[("a.b", &world), ("a.c", &world)])).unwrap();
    // Two old ones and two new ones are four.
    assert_eq!(set(&mut bed, &items(&[("b.b", &[]), ("b.c", &[])])), Err(PolicyRefused::Full));
    let lone = items(&[("a.b", &world)]);
    for wrong in [&lone[24..], &lone[..18], &items(&[("a", &[])])] {
        assert_eq!(set(&mut bed, wrong), Err(PolicyRefused::Malformed));
    }
    assert!(bed.acquire(client, "a.b", OWN).is_ok());
    assert!(bed.acquire(client, "a.c", OWN).is_ok());
}

#[test]
fn entries_go_with_their_bus() {
    let mut bed = Bed::new();
    set(&mut bed, &items(&[("a.b", &[PolicyAccess::world(Access::Own)])])).unwrap();
    assert_eq!(bed.domain.usage().policy_entries, 1);
    let bus = bed.bus;
    bed.close(bus);
    assert_eq!(bed.domain.usage().policy_entries, 0);
    assert_eq!(set(&mut bed, &[]), Err(PolicyRefused::NoBus));
    let again = bed.make_bus(OWNER, "1000-test").unwrap();
    assert_eq!(bed.domain.set_bus_policy(&mut bed.host, again, &[]), Ok(()));
    let client = bed.connect_as(2000);
    assert_eq!(bed.domain.set_bus_policy(&mut bed.host, client.handle, &[]), Err(PolicyRefused::NoBus));
}
