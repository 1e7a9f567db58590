extern crate std;
use std::vec::Vec;

use super::*;
use crate::abi::{ItemWriter, Items};
use zerocopy::IntoBytes;

/// Kind, access and id.
type Access = (u64, u64, u64);

/// Items for names, each with its records.
fn items(names: &[(&str, &[Access])]) -> Vec<u8> {
    let mut buffer = std::vec![0; 4096];
    let mut writer = ItemWriter::new(&mut buffer);
    for (name, records) in names {
        writer.c_str(ItemType::NAME, name).unwrap();
        for (kind, access, id) in *records {
            let access = PolicyAccess { kind: *kind, access: *access, id: *id };
            writer.bytes(ItemType::POLICY_ACCESS, access.as_bytes()).unwrap();
        }
    }
    let end = writer.len();
    buffer.truncate(end);
    buffer
}

fn read(area: &[u8]) -> impl Iterator<Item = Item<'_>> {
    Items::new(area).map(Result::unwrap)
}

fn who(euid: u32, egid: u32) -> Credentials {
    Credentials { euid, egid, ..Credentials::default() }
}

fn bus() -> Database {
    Database::Bus(BusIx::new(0))
}

fn storage() -> ([Record<PolicyEntry>; 4], [Record<PolicyRecord>; 8]) {
    (core::array::from_fn(|_| Record::default()), core::array::from_fn(|_| Record::default()))
}

#[test]
fn the_highest_matching_record_counts_whatever_the_order() {
    let (mut entries, mut records) = storage();
    let mut policy = Policy::new(&mut entries, &mut records);
    let mut own = OwnPolicy::NONE;
    let area = items(&[("a.b", &[(1, 2, 7), (3, 0, 0), (2, 1, 5)])]);
    policy.replace(&mut own, Keeper::Connection, bus(), read(&area)).unwrap();
    assert_eq!(policy.level(bus(), &who(7, 0), "a.b"), Some(Level::Own));
    assert_eq!(policy.level(bus(), &who(8, 5), "a.b"), Some(Level::Talk));
    assert_eq!(policy.level(bus(), &who(8, 6), "a.b"), Some(Level::See));
    assert_eq!(policy.level(bus(), &who(7, 0), "a.c"), None);
    assert_eq!(policy.level(Database::Staging, &who(7, 0), "a.b"), None);
}

#[test]
fn wildcards_cover_one_more_element_and_exact_entries_hide_them() {
    let (mut entries, mut records) = storage();
    let mut policy = Policy::new(&mut entries, &mut records);
    let mut own = OwnPolicy::NONE;
    let area = items(&[("x.y.*", &[(3, 2, 0)]), ("x.y.z", &[])]);
    policy.replace(&mut own, Keeper::Bus, bus(), read(&area)).unwrap();
    assert_eq!(policy.level(bus(), &who(1, 1), "x.y.w"), Some(Level::Own));
    assert_eq!(policy.level(bus(), &who(1, 1), "x.y.z"), None);
    assert_eq!(policy.level(bus(), &who(1, 1), "x.y"), None);
    assert_eq!(policy.level(bus(), &who(1, 1), "x.y.w.v"), None);
}

#[test]
fn a_failed_replacement_leaves_everything_as_it_was() {
    let (mut entries, mut records) = storage();
    let mut policy = Policy::new(&mut entries, &mut records);
    let (mut a, mut b) = (OwnPolicy::NONE, OwnPolicy::NONE);
    policy.replace(&mut a, Keeper::Connection, bus(), read(&items(&[("a.b", &[(3, 1, 0)])]))).unwrap();
    policy.replace(&mut b, Keeper::Connection, bus(), read(&items(&[("a.c", &[(3, 1, 0)])]))).unwrap();
    assert_eq!(
        policy.replace(&mut b, Keeper::Connection, bus(), read(&items(&[("a.b", &[])]))),
        Err(Errno::EEXIST)
    );
    assert_eq!(policy.level(bus(), &who(1, 1), "a.c"), Some(Level::Talk));
    let twice = items(&[("a.d", &[]), ("a.d", &[])]);
    assert_eq!(policy.replace(&mut b, Keeper::Connection, bus(), read(&twice)), Err(Errno::EEXIST));
    policy.replace(&mut b, Keeper::Connection, bus(), read(&items(&[("a.c", &[(3, 0, 0)])]))).unwrap();
    assert_eq!(policy.level(bus(), &who(1, 1), "a.c"), Some(Level::See));
    policy.clear(&mut a);
    policy.clear(&mut b);
    assert_eq!((policy.entries.len(), policy.records.len()), (0, 0));
}

#[test]
fn malformed_sequences_are_refused() {
    let check = |area: &[u8], max| Policy::check(read(area), max, true, false);
    assert_eq!(check(&items(&[("a.b", &[]), ("a.c", &[])]), 1), Err(Errno::E2BIG));
    assert_eq!(check(&items(&[("a", &[])]), 1), Err(Errno::EINVAL));
    assert_eq!(check(&items(&[("a.b", &[(4, 0, 0)])]), 1), Err(Errno::EINVAL));
    assert_eq!(check(&items(&[("a.b", &[(1, 3, 0)])]), 1), Err(Errno::EINVAL));
    let area = items(&[("a.b", &[(1, 0, 0)])]);
    assert_eq!(check(&area[24..], 1), Err(Errno::EINVAL), "a record needs a name before it");
    assert_eq!(Policy::check(read(&items(&[("a.*", &[])])), 1, false, false), Err(Errno::EINVAL));
}

#[test]
fn foreign_numbers_of_users_are_refused() {
    let check = |kind| Policy::check(read(&items(&[("a.b", &[(kind, 1, 7)])])), 1, true, true);
    assert_eq!([check(1), check(2), check(3)], [Err(Errno::EINVAL), Err(Errno::EINVAL), Ok(())]);
}

/// The table against a list of entries that is searched from end to end.
mod model {
    use std::string::String;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const NAMES: [&str; 7] = ["a.b", "a.c", "a.b.c", "a.*", "a.b.*", "b.a", "b.*"];
    const ASKED: [&str; 7] = ["a.b", "a.c", "a.d", "a.b.c", "a.b.d", "a.b.c.d", "b.a"];
    const OWNERS: usize = 5;

    #[derive(Clone, Debug)]
    enum Op {
        /// One owner gets these names.
        Replace(usize, Vec<(usize, Vec<Access>)>),
        Clear(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        let access = (1..4_u64, 0..3_u64, 0..3_u64);
        let names = vec((0..NAMES.len(), vec(access, 0..4)), 0..4);
        prop_oneof![
            5 => (0..OWNERS, names).prop_map(|(owner, names)| Op::Replace(owner, names)),
            1 => (0..OWNERS).prop_map(Op::Clear),
        ]
    }

    /// Owners 0 and 1 are connections of one bus and have one name each, 2 is that bus itself; the others are
    /// endpoints, which share nothing.
    fn database(owner: usize) -> Database {
        if owner < 3 { bus() } else { Database::Endpoint(EndpointIx::new(owner as u32)) }
    }

    const fn keeper(owner: usize) -> Keeper {
        match owner {
            0 | 1 => Keeper::Connection,
            2 => Keeper::Bus,
            _ => Keeper::Endpoint,
        }
    }

    struct Entry {
        owner: usize,
        name: String,
        records: Vec<Access>,
    }

    fn level(model: &[Entry], at: Database, who: &Credentials, name: &str) -> Option<u64> {
        let of =
            |wanted: &str| model.iter().find(|entry| database(entry.owner) == at && entry.name == wanted);
        let stem = name.rsplit_once('.').unwrap().0;
        let entry = of(name).or_else(|| of(&std::format!("{stem}.*")))?;
        let covers = |(kind, _, id): &&Access| match kind {
            1 => u64::from(who.euid) == *id,
            2 => u64::from(who.egid) == *id || who.groups.iter().any(|group| u64::from(*group) == *id),
            _ => true,
        };
        entry.records.iter().filter(covers).map(|(_, access, _)| *access).max()
    }

    fn run(ops: Vec<Op>, entries: usize, records: usize) -> Result<(), TestCaseError> {
        let mut entry_room: Vec<_> = (0..entries).map(|_| Record::default()).collect();
        let mut record_room: Vec<_> = (0..records).map(|_| Record::default()).collect();
        let mut policy = Policy::new(&mut entry_room, &mut record_room);
        let mut owners = [OwnPolicy::NONE; OWNERS];
        let mut model: Vec<Entry> = Vec::new();
        for op in ops {
            match op {
                Op::Replace(owner, mut names) => {
                    if owner < 2 {
                        names.truncate(1);
                    }
                    let named: Vec<(&str, &[Access])> =
                        names.iter().map(|(name, records)| (NAMES[*name], records.as_slice())).collect();
                    let area = items(&named);
                    let at = database(owner);
                    let result = policy.replace(&mut owners[owner], keeper(owner), at, read(&area));
                    let taken = |name: &str| {
                        let others = model.iter().filter(|entry| entry.owner != owner);
                        others
                            .into_iter()
                            .any(|entry| database(entry.owner) == database(owner) && entry.name == name)
                    };
                    let twice = |at: usize| named[..at].iter().any(|(name, _)| *name == named[at].0);
                    let clash = (0..named.len()).any(|at| twice(at) || taken(named[at].0));
                    match result {
                        Ok(()) => {
                            prop_assert!(!clash);
                            model.retain(|entry| entry.owner != owner);
                            model.extend(named.iter().map(|(name, records)| Entry {
                                owner,
                                name: (*name).into(),
                                records: records.to_vec(),
                            }));
                        }
                        Err(Errno::EEXIST) => prop_assert!(clash),
                        Err(error) => {
                            // Old and new ones are held at the same time.
                            prop_assert_eq!(error, Errno::ENOMEM);
                            let held: usize = model.iter().map(|entry| entry.records.len()).sum();
                            let more: usize = names.iter().map(|(_, records)| records.len()).sum();
                            prop_assert!(model.len() + names.len() > entries || held + more > records);
                        }
                    }
                }
                Op::Clear(owner) => {
                    policy.clear(&mut owners[owner]);
                    model.retain(|entry| entry.owner != owner);
                }
            }
            prop_assert_eq!(policy.len(), model.len());
            let held: usize = model.iter().map(|entry| entry.records.len()).sum();
            prop_assert_eq!(policy.records.len(), held);
            for owner in 1..OWNERS {
                for (euid, egid, group) in [(0, 1, 2), (1, 2, 2), (2, 0, 1), (9, 9, 9)] {
                    let mut who = who(euid, egid);
                    who.groups.push(group).unwrap();
                    for name in ASKED {
                        let found = policy.level(database(owner), &who, name).map(|level| level as u64);
                        prop_assert_eq!(found, level(&model, database(owner), &who, name));
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_roomy_policy_is_a_list(ops in vec(op(), 0..60)) {
            run(ops, 40, 100)?;
        }

        #[test]
        fn a_small_policy_is_one_too(ops in vec(op(), 0..60)) {
            run(ops, 5, 7)?;
        }
    }
}
