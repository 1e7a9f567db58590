//! Property tests of the core's tables against the dullest code that does the same.

use std::cell::Cell;
use std::collections::BTreeMap;

use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::engine::names::{
    AcquireError, BusNames, ClaimedNames, ConnectionIndex, NameArena, NameEntry, NameTable, Owner,
    OwnerChange, OwnerRecord, ReleaseError,
};
use kdbus_core::engine::pool::{Pool, PoolError, PoolHead, SliceId, SliceRecord};
use kdbus_core::queue::{Full, Handle, StaticQueue};
use kdbus_core::tree::{Link, Root};
use proptest::collection::vec;
use proptest::prelude::*;

/// The `n`-th of `items`, counted in circles.
fn pick<T>(items: &[T], n: usize) -> Option<&T> {
    if items.is_empty() { None } else { items.get(n % items.len()) }
}

mod queue {
    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Push(i64),
        Pop,
        PopAtMost(i64),
        PopFront,
        /// Removes any entry that ever was, also one that left.
        Remove(usize),
        Drain(i64),
        DrainBelow(i64),
        Walk,
    }

    fn priority() -> impl Strategy<Value = i64> {
        prop_oneof![
            6 => 0..6_i64,
            3 => -20..20_i64,
            1 => any::<i64>(),
            1 => prop_oneof![Just(i64::MIN), Just(i64::MAX)],
        ]
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            10 => priority().prop_map(Op::Push),
            3 => Just(Op::Pop),
            2 => priority().prop_map(Op::PopAtMost),
            2 => Just(Op::PopFront),
            2 => any::<usize>().prop_map(Op::Remove),
            1 => priority().prop_map(Op::Drain),
            1 => priority().prop_map(Op::DrainBelow),
            1 => Just(Op::Walk),
        ]
    }

    /// Entries in order of arrival.
    #[derive(Default)]
    struct Model {
        entries: Vec<(i64, usize)>,
    }

    impl Model {
        fn most_urgent(&self) -> Option<(i64, usize)> {
            self.entries.iter().copied().min_by_key(|entry| entry.0)
        }

        fn pop_at_most(&mut self, limit: i64) -> Option<usize> {
            let (priority, item) = self.most_urgent()?;
            if priority > limit { None } else { self.remove(item) }
        }

        fn remove(&mut self, item: usize) -> Option<usize> {
            let at = self.entries.iter().position(|entry| entry.1 == item)?;
            Some(self.entries.remove(at).1)
        }

        fn drain(&mut self, goes: impl Fn(i64) -> bool) -> Vec<usize> {
            let mut drained: Vec<_> = self.entries.iter().copied().filter(|entry| goes(entry.0)).collect();
            drained.sort_by_key(|entry| entry.0);
            self.entries.retain(|entry| !goes(entry.0));
            drained.into_iter().map(|entry| entry.1).collect()
        }
    }

    fn run<const N: usize>(ops: Vec<Op>) -> Result<(), TestCaseError> {
        let mut storage = StaticQueue::<usize, N>::new();
        let mut queue = storage.view();
        let mut model = Model::default();
        let mut handles: Vec<Handle> = Vec::new();
        for op in ops {
            match op {
                Op::Push(priority) => {
                    let item = handles.len();
                    match queue.push(priority, item) {
                        Ok(handle) => {
                            handles.push(handle);
                            model.entries.push((priority, item));
                        }
                        Err(Full(returned)) => {
                            prop_assert_eq!(returned, item);
                            prop_assert_eq!(model.entries.len(), N);
                        }
                    }
                }
                Op::Pop => prop_assert_eq!(queue.pop(), model.pop_at_most(i64::MAX)),
                Op::PopAtMost(limit) => {
                    prop_assert_eq!(queue.pop_at_most(limit), model.pop_at_most(limit));
                }
                Op::PopFront => {
                    let front = model.entries.first().map(|entry| entry.1);
                    prop_assert_eq!(queue.pop_front(), front.and_then(|item| model.remove(item)));
                }
                Op::Remove(n) => {
                    if let Some(&handle) = pick(&handles, n) {
                        let item = n % handles.len();
                        let entry = model.entries.iter().find(|entry| entry.1 == item);
                        prop_assert_eq!(queue.priority(handle), entry.map(|entry| entry.0));
                        prop_assert_eq!(queue.remove(handle), model.remove(item));
                        prop_assert_eq!(queue.get(handle), None);
                    }
                }
                Op::Drain(limit) => {
                    let drained: Vec<_> = queue.drain_up_to(limit).collect();
                    prop_assert_eq!(drained, model.drain(|priority| priority <= limit));
                }
                Op::DrainBelow(limit) => {
                    let drained: Vec<_> = queue.drain_more_urgent_than(limit).collect();
                    prop_assert_eq!(drained, model.drain(|priority| priority < limit));
                }
                Op::Walk => {
                    let entries: Vec<_> = queue.iter().map(|entry| (entry.priority, *entry.item)).collect();
                    prop_assert_eq!(&entries, &model.entries);
                    for entry in queue.iter() {
                        prop_assert_eq!(queue.get(entry.handle), Some(entry.item));
                    }
                }
            }
            let peeked = queue.peek().map(|entry| (entry.priority, *entry.item));
            prop_assert_eq!(peeked, model.most_urgent());
            let front = queue.peek_front().map(|entry| (entry.priority, *entry.item));
            prop_assert_eq!(front, model.entries.first().copied());
            prop_assert_eq!(queue.len(), model.entries.len());
            prop_assert_eq!(queue.is_full(), model.entries.len() == N);
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_roomy_queue_is_a_stable_sort(ops in vec(op(), 0..400)) {
            run::<512>(ops)?;
        }

        #[test]
        fn a_small_queue_is_one_too(ops in vec(op(), 0..400)) {
            run::<13>(ops)?;
        }
    }
}

mod tree {
    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        /// Gives the record at this slot this key.
        Insert(u32, u8),
        Remove(u32),
        Find(u8),
        LowerBound(u8),
        Walk,
    }

    const SLOTS: u32 = 40;

    fn op() -> impl Strategy<Value = Op> {
        // Two slots do not exist.
        let slot = 0..SLOTS + 2;
        prop_oneof![
            6 => (slot.clone(), any::<u8>()).prop_map(|(slot, key)| Op::Insert(slot, key % 50)),
            4 => slot.prop_map(Op::Remove),
            1 => (0..55_u8).prop_map(Op::Find),
            1 => (0..55_u8).prop_map(Op::LowerBound),
            1 => Just(Op::Walk),
        ]
    }

    proptest! {
        #[test]
        fn an_index_is_a_sorted_list(ops in vec(op(), 0..300)) {
            let mut keys = [0_u8; SLOTS as usize];
            let mut links: Vec<Link> = (0..SLOTS).map(|_| Link::new()).collect();
            let mut root: Root = Root::new();
            // Key and slot, equal keys in the order they came.
            let mut model: Vec<(u8, u32)> = Vec::new();
            for op in ops {
                match op {
                    Op::Insert(slot, key) => {
                        let new = slot < SLOTS && model.iter().all(|entry| entry.1 != slot);
                        if new {
                            keys[slot as usize] = key;
                            let at = model.partition_point(|entry| entry.0 <= key);
                            model.insert(at, (key, slot));
                        }
                        let inserted =
                            root.insert(&mut links, slot, |other, _| key.cmp(&keys[other as usize]));
                        prop_assert_eq!(inserted.is_ok(), new);
                    }
                    Op::Remove(slot) => {
                        let at = model.iter().position(|entry| entry.1 == slot);
                        prop_assert_eq!(root.remove(&mut links, slot).is_ok(), at.is_some());
                        if let Some(at) = at {
                            model.remove(at);
                        }
                    }
                    Op::Find(key) => {
                        let found = root.find(&links, |slot, _| keys[slot as usize].cmp(&key));
                        prop_assert_eq!(found.is_some(), model.iter().any(|entry| entry.0 == key));
                        prop_assert!(found.is_none_or(|slot| keys[slot as usize] == key));
                    }
                    Op::LowerBound(key) => {
                        let found = root.lower_bound(&links, |slot, _| keys[slot as usize].cmp(&key));
                        let expected = model.iter().find(|entry| entry.0 >= key).map(|entry| entry.1);
                        prop_assert_eq!(found, expected);
                    }
                    Op::Walk => {
                        for pair in model.windows(2) {
                            prop_assert_eq!(root.next(&links, pair[0].1), Some(pair[1].1));
                            prop_assert_eq!(root.prev(&links, pair[1].1), Some(pair[0].1));
                        }
                    }
                }
                prop_assert_eq!(root.first(), model.first().map(|entry| entry.1));
                prop_assert_eq!(root.last(&links), model.last().map(|entry| entry.1));
                prop_assert_eq!(root.len(), model.len());
            }
        }

        #[test]
        fn an_index_of_many_is_shallow(keys in vec(any::<u16>(), 1..1500)) {
            let mut links: Vec<Link> = keys.iter().map(|_| Link::new()).collect();
            let mut root: Root = Root::new();
            for (slot, key) in keys.iter().enumerate() {
                let order = |other: u32, _: &Link| key.cmp(&keys[other as usize]);
                prop_assert_eq!(root.insert(&mut links, slot as u32, order), Ok(()));
            }
            let most = (1.45 * (keys.len() as f64 + 2.0).log2()) as u32;
            for key in &keys {
                let steps = Cell::new(0);
                let found = root.lower_bound(&links, |slot, _| {
                    steps.set(steps.get() + 1);
                    keys[slot as usize].cmp(key)
                });
                prop_assert!(found.is_some_and(|slot| keys[slot as usize] == *key));
                prop_assert!(steps.get() <= most);
            }
        }
    }
}

mod pool {
    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Allocate(u64, bool),
        /// These name any slice that ever was.
        Publish(usize),
        Release(usize),
        Free(usize),
        /// Frees any offset.
        FreeAt(u64),
    }

    const SIZE: u64 = 2048;

    fn op() -> impl Strategy<Value = Op> {
        let size = prop_oneof![10 => 1..200_u64, 1 => 0..2100_u64];
        prop_oneof![
            6 => (size, any::<bool>()).prop_map(|(size, accounted)| Op::Allocate(size, accounted)),
            3 => any::<usize>().prop_map(Op::Publish),
            4 => any::<usize>().prop_map(Op::Release),
            4 => any::<usize>().prop_map(Op::Free),
            1 => (0..SIZE + 9).prop_map(Op::FreeAt),
        ]
    }

    #[derive(Clone, Debug)]
    struct Busy {
        number: usize,
        offset: u64,
        size: u64,
        accounted: bool,
        internal: bool,
        user: bool,
    }

    #[derive(Default)]
    struct Model {
        busy: Vec<Busy>,
    }

    impl Model {
        /// The gaps between busy slices, as offset and size.
        fn gaps(&self) -> Vec<(u64, u64)> {
            let mut gaps = Vec::new();
            let mut end = 0;
            for slice in &self.busy {
                if slice.offset > end {
                    gaps.push((end, slice.offset - end));
                }
                end = slice.offset + slice.size;
            }
            if SIZE > end {
                gaps.push((end, SIZE - end));
            }
            gaps
        }

        fn find(&mut self, number: usize) -> Option<&mut Busy> {
            self.busy.iter_mut().find(|slice| slice.number == number)
        }

        fn free(&mut self, offset: u64) -> Result<(), PoolError> {
            if offset == SIZE {
                return Ok(());
            }
            let slice = self.busy.iter_mut().find(|slice| slice.offset == offset && slice.user);
            slice.ok_or(PoolError::NotPublished)?.user = false;
            Ok(())
        }

        fn sweep(&mut self) {
            self.busy.retain(|slice| slice.internal || slice.user);
        }
    }

    fn run(ops: Vec<Op>, records: usize) -> Result<(), TestCaseError> {
        let mut head = PoolHead::new();
        let mut records: Vec<_> = (0..records).map(|_| SliceRecord::new()).collect();
        let mut pool = Pool::create(&mut head, &mut records, SIZE).unwrap();
        let mut model = Model::default();
        let mut slices: Vec<(SliceId, u64)> = Vec::new();
        for op in ops {
            match op {
                Op::Allocate(size, accounted) => {
                    let rounded = size.next_multiple_of(8);
                    let gaps = model.gaps();
                    let best = gaps.iter().map(|gap| gap.1).filter(|&gap| gap >= rounded).min();
                    match pool.allocate(size, accounted) {
                        Ok(slice) => {
                            prop_assert!(size > 0);
                            prop_assert_eq!(slice.size, rounded);
                            let gap = gaps.iter().find(|gap| gap.0 == slice.offset);
                            prop_assert_eq!(gap.map(|gap| gap.1), best, "not the best fit");
                            let busy = Busy {
                                number: slices.len(),
                                offset: slice.offset,
                                size: rounded,
                                accounted,
                                internal: true,
                                user: false,
                            };
                            let at = model.busy.partition_point(|other| other.offset < slice.offset);
                            model.busy.insert(at, busy);
                            slices.push((slice.id, slice.offset));
                        }
                        Err(PoolError::Size) => prop_assert_eq!(size, 0),
                        Err(error) => {
                            prop_assert_eq!(error, PoolError::Exhausted);
                            let no_record = model.busy.len() + gaps.len() == pool.capacity();
                            prop_assert!(best.is_none() || no_record && best > Some(rounded));
                        }
                    }
                }
                Op::Publish(n) => {
                    if let Some(&(id, _)) = pick(&slices, n) {
                        let slice = model.find(n % slices.len());
                        prop_assert_eq!(pool.publish(id).is_ok(), slice.is_some());
                        if let Some(slice) = slice {
                            slice.user = true;
                        }
                    }
                }
                Op::Release(n) => {
                    if let Some(&(id, _)) = pick(&slices, n) {
                        let slice = model.find(n % slices.len()).filter(|slice| slice.internal);
                        prop_assert_eq!(pool.release(id).is_ok(), slice.is_some());
                        if let Some(slice) = slice {
                            slice.internal = false;
                        }
                        model.sweep();
                    }
                }
                Op::Free(n) => {
                    if let Some(&(_, offset)) = pick(&slices, n) {
                        prop_assert_eq!(pool.free(offset), model.free(offset));
                        model.sweep();
                    }
                }
                Op::FreeAt(offset) => {
                    prop_assert_eq!(pool.free(offset), model.free(offset));
                    model.sweep();
                }
            }
            let accounted = model.busy.iter().filter(|slice| slice.accounted && slice.internal);
            prop_assert_eq!(pool.accounted_size(), accounted.map(|slice| slice.size).sum::<u64>());
            prop_assert_eq!(pool.len(), model.busy.len());
            prop_assert_eq!(pool.largest_free(), model.gaps().iter().map(|gap| gap.1).max().unwrap_or(0));
            for slice in &model.busy {
                let found = pool.find(slice.offset).map(|found| (found.id, found.size));
                prop_assert_eq!(found, Some((slices[slice.number].0, slice.size)));
            }
            for (number, &(id, _)) in slices.iter().enumerate() {
                let is_busy = model.busy.iter().any(|slice| slice.number == number);
                prop_assert_eq!(pool.get(id).is_some(), is_busy);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn a_pool_is_a_list_of_gaps(ops in vec(op(), 0..200)) {
            run(ops, 300)?;
        }

        #[test]
        fn a_pool_short_of_records_is_one_too(ops in vec(op(), 0..200)) {
            run(ops, 7)?;
        }
    }
}

mod names {
    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        /// Connection, name and flags.
        Acquire(u32, usize, u64),
        Activate(u32, usize),
        Release(u32, usize),
        /// Releases everything, as a connection that goes does.
        Leave(u32),
    }

    /// Connections from here on are activators.
    const ACTIVATORS: u32 = 4;
    const CONNECTIONS: u32 = 6;
    const NAMES: [&str; 4] = ["a.b", "a.c", "org.example.Mixer", "org.example.Mixes"];

    fn op() -> impl Strategy<Value = Op> {
        let name = 0..NAMES.len();
        let request = (0..ACTIVATORS, name.clone(), 0..8_u64);
        prop_oneof![
            10 => request.prop_map(|(who, name, flags)| Op::Acquire(who, name, flags)),
            2 => (ACTIVATORS..CONNECTIONS, name.clone()).prop_map(|(who, name)| Op::Activate(who, name)),
            6 => (0..CONNECTIONS, name).prop_map(|(who, name)| Op::Release(who, name)),
            1 => (0..CONNECTIONS).prop_map(Op::Leave),
        ]
    }

    /// One name: its queue, its activator, its sequence number.
    #[derive(Clone, Debug, Default)]
    struct Entry {
        queue: Vec<(u32, NameFlags)>,
        activator: Option<u32>,
        sequence: u64,
    }

    impl Entry {
        fn owner(&self) -> Option<(u32, NameFlags)> {
            let behind = self.activator.map(|who| (who, NameFlags::ACTIVATOR | NameFlags::PRIMARY));
            self.queue.first().copied().or(behind)
        }

        fn flags_of(&self, who: u32) -> Option<NameFlags> {
            if self.activator == Some(who) {
                let state = if self.queue.is_empty() { NameFlags::PRIMARY } else { NameFlags::IN_QUEUE };
                return Some(NameFlags::ACTIVATOR | state);
            }
            self.queue.iter().find(|owner| owner.0 == who).map(|owner| owner.1)
        }

        /// Sets who is first and who waits in the flags.
        fn settle(&mut self) {
            for (at, owner) in self.queue.iter_mut().enumerate() {
                let stored = owner.1 & (NameFlags::QUEUE | NameFlags::ALLOW_REPLACEMENT);
                owner.1 = stored | if at == 0 { NameFlags::PRIMARY } else { NameFlags::IN_QUEUE };
            }
        }
    }

    #[derive(Default)]
    struct Model {
        names: BTreeMap<usize, Entry>,
        /// Claims in order: connection and name.
        claims: Vec<(u32, usize)>,
        sequence: u64,
    }

    type Side = Option<(u32, NameFlags)>;

    /// Old and new owner, if these differ: names change flags without notice.
    fn change(old: Side, new: Side) -> Option<(Side, Side)> {
        if old.map(|owner| owner.0) == new.map(|owner| owner.0) { None } else { Some((old, new)) }
    }

    impl Model {
        fn entry(&mut self, name: usize) -> &mut Entry {
            let sequence = &mut self.sequence;
            self.names.entry(name).or_insert_with(|| {
                *sequence += 1;
                Entry { sequence: *sequence, ..Entry::default() }
            })
        }

        fn acquire(
            &mut self,
            who: u32,
            name: usize,
            request: NameFlags,
        ) -> Result<(NameFlags, Option<(Side, Side)>), AcquireError> {
            let stored = request & (NameFlags::QUEUE | NameFlags::ALLOW_REPLACEMENT);
            let old = self.names.get(&name).and_then(Entry::owner);
            let entry = self.entry(name);
            let own = entry.queue.iter().position(|owner| owner.0 == who);
            let primary = entry.queue.first().copied();
            let mut acquired = NameFlags::ACQUIRED;
            let reported = match (primary, own) {
                (None, _) => {
                    entry.queue.push((who, stored));
                    NameFlags::PRIMARY
                }
                (Some(_), Some(0)) => {
                    entry.queue[0].1 = stored;
                    acquired = NameFlags::empty();
                    NameFlags::PRIMARY
                }
                (Some((_, flags)), _)
                    if flags.contains(NameFlags::ALLOW_REPLACEMENT)
                        && request.contains(NameFlags::REPLACE_EXISTING) =>
                {
                    if let Some(own) = own {
                        entry.queue.remove(own);
                    }
                    let loser =
                        if flags.contains(NameFlags::QUEUE) { None } else { Some(entry.queue.remove(0)) };
                    entry.queue.insert(0, (who, stored));
                    if let Some((loser, _)) = loser {
                        self.claims.retain(|claim| *claim != (loser, name));
                    }
                    NameFlags::PRIMARY
                }
                (Some(_), None) if request.contains(NameFlags::QUEUE) => {
                    entry.queue.push((who, stored));
                    NameFlags::IN_QUEUE
                }
                (Some(_), Some(own)) if request.contains(NameFlags::QUEUE) => {
                    entry.queue[own].1 = stored;
                    acquired = NameFlags::empty();
                    NameFlags::IN_QUEUE
                }
                (Some(_), Some(own)) => {
                    entry.queue.remove(own);
                    self.claims.retain(|claim| *claim != (who, name));
                    return Ok((stored, None));
                }
                (Some(_), None) => return Err(AcquireError::Taken),
            };
            if !self.claims.contains(&(who, name)) {
                self.claims.push((who, name));
            }
            let entry = self.entry(name);
            entry.settle();
            Ok((reported | stored | acquired, change(old, entry.owner())))
        }

        fn activate(&mut self, who: u32, name: usize) -> Result<Option<(Side, Side)>, AcquireError> {
            let old = self.names.get(&name).and_then(Entry::owner);
            let entry = self.entry(name);
            if entry.activator == Some(who) {
                return Err(AcquireError::OwnActivator);
            }
            if entry.activator.is_some() {
                return Err(AcquireError::Taken);
            }
            entry.activator = Some(who);
            let new = entry.owner();
            self.claims.push((who, name));
            Ok(change(old, new))
        }

        fn release(&mut self, who: u32, name: usize) -> Result<Option<(Side, Side)>, ReleaseError> {
            let entry = self.names.get_mut(&name).ok_or(ReleaseError::Unknown)?;
            entry.flags_of(who).ok_or(ReleaseError::NotYours)?;
            let old = entry.owner();
            if entry.activator == Some(who) {
                entry.activator = None;
            }
            entry.queue.retain(|owner| owner.0 != who);
            entry.settle();
            let new = entry.owner();
            if new.is_none() {
                self.names.remove(&name);
            }
            self.claims.retain(|claim| *claim != (who, name));
            Ok(change(old, new))
        }
    }

    fn compare_change(
        change: Option<OwnerChange>,
        expected: Option<(Side, Side)>,
        name: &str,
    ) -> Result<(), TestCaseError> {
        let side = |owner: Owner| (owner.connection.0, owner.flags);
        let sides = change.map(|change| (change.old.map(side), change.new.map(side)));
        prop_assert_eq!(sides, expected);
        if let (Some(change), Some((old, new))) = (change, expected) {
            prop_assert_eq!(change.name.as_str(), name);
            let handed_over = change.hand_over().map(|due| (due.from.0, due.to.0, due.sequence));
            let between = old.zip(new).map(|(old, new)| (old.0, new.0, change.sequence));
            let due = between.filter(|&(old, new, _)| old >= ACTIVATORS || new >= ACTIVATORS);
            prop_assert_eq!(handed_over, due);
        }
        Ok(())
    }

    fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
        let mut bus = BusNames::new();
        let mut arena = NameArena::new();
        let mut entries: Vec<_> = NAMES.iter().map(|_| NameEntry::new()).collect();
        let mut records: Vec<_> =
            (0..NAMES.len() * CONNECTIONS as usize).map(|_| OwnerRecord::new()).collect();
        let mut claims: Vec<_> = (0..CONNECTIONS).map(|_| ClaimedNames::new()).collect();
        let mut table = NameTable::new(&mut arena, &mut entries, &mut records, &mut claims);
        let mut model = Model::default();
        for op in ops {
            match op {
                Op::Acquire(who, name, flags) => {
                    let request = NameFlags::from_bits_truncate(flags);
                    let parsed = WellKnownName::parse(NAMES[name]).unwrap();
                    let acquired = table.acquire(&mut bus, ConnectionIndex(who), parsed, request);
                    let expected = model.acquire(who, name, request);
                    let reported = acquired.map(|acquired| acquired.return_flags);
                    prop_assert_eq!(reported, expected.map(|expected| expected.0));
                    let change = acquired.ok().and_then(|acquired| acquired.change);
                    compare_change(change, expected.ok().and_then(|expected| expected.1), NAMES[name])?;
                }
                Op::Activate(who, name) => {
                    let parsed = WellKnownName::parse(NAMES[name]).unwrap();
                    let acquired = table.add_activator(&mut bus, ConnectionIndex(who), parsed);
                    let expected = model.activate(who, name);
                    prop_assert_eq!(acquired.err(), expected.err());
                    let change = acquired.ok().and_then(|acquired| acquired.change);
                    compare_change(change, expected.ok().flatten(), NAMES[name])?;
                }
                Op::Release(who, name) => {
                    let released = table.release(&mut bus, ConnectionIndex(who), NAMES[name].as_bytes());
                    let expected = model.release(who, name);
                    prop_assert_eq!(released.err(), expected.err());
                    let change = released.ok().and_then(|released| released.change);
                    compare_change(change, expected.ok().flatten(), NAMES[name])?;
                }
                Op::Leave(who) => {
                    while let Some(released) = table.release_next(&mut bus, ConnectionIndex(who)) {
                        let claim = model.claims.iter().find(|claim| claim.0 == who).copied();
                        prop_assert!(claim.is_some());
                        let name = claim.unwrap().1;
                        let expected = model.release(who, name).unwrap();
                        compare_change(released.change, expected, NAMES[name])?;
                    }
                    prop_assert!(model.claims.iter().all(|claim| claim.0 != who));
                }
            }
            for who in 0..CONNECTIONS {
                let claimed: Vec<_> =
                    table.claims(ConnectionIndex(who)).map(|claim| (claim.name, claim.flags)).collect();
                let own = model.claims.iter().filter(|claim| claim.0 == who);
                let expected: Vec<_> =
                    own.map(|claim| (NAMES[claim.1], model.names[&claim.1].flags_of(who).unwrap())).collect();
                prop_assert_eq!(claimed, expected);
            }
            for (name, text) in NAMES.iter().enumerate() {
                let id = table.find(&bus, text.as_bytes());
                let expected = model.names.get(&name);
                prop_assert_eq!(id.is_some(), expected.is_some());
                let (Some(id), Some(expected)) = (id, expected) else {
                    continue;
                };
                let side = |owner: Owner| (owner.connection.0, owner.flags);
                prop_assert_eq!(&table.queue(id).map(side).collect::<Vec<_>>(), &expected.queue);
                prop_assert_eq!(table.activator(id).map(|owner| owner.connection.0), expected.activator);
                prop_assert_eq!(table.owner(id).map(side), expected.owner());
                prop_assert_eq!(table.sequence(id), Some(expected.sequence));
            }
            prop_assert_eq!(table.names(&bus).count(), model.names.len());
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn names_are_short_lists(ops in vec(op(), 0..200)) {
            run(ops)?;
        }
    }
}
