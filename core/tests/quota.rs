//! Property test of the quota of a receiver against a map.

use std::collections::BTreeMap;

use kdbus_core::engine::quota::{
    Charge, FDS_MAX, MESSAGES_MAX, PoolUse, Quota, QuotaError, QuotaHead, UserIndex, UserRecord,
};
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Charge(u32, u64, u32),
    /// Only looks whether it could be charged.
    Check(u32, u64, u32),
    /// Takes back one of those that were charged.
    Release(usize),
}

const POOL: u64 = 4096;
/// Records, for fewer users than there are.
const PLACES: usize = 3;

fn op() -> impl Strategy<Value = Op> {
    let message = || (0..6_u32, 0..300_u64, 0..8_u32);
    prop_oneof![
        4 => message().prop_map(|(user, size, fds)| Op::Charge(user, size, fds)),
        1 => message().prop_map(|(user, size, fds)| Op::Check(user, size, fds)),
        4 => any::<usize>().prop_map(Op::Release),
    ]
}

#[derive(Default)]
struct Model {
    held: BTreeMap<u32, Charge>,
    accounted: u64,
}

impl Model {
    fn of(&self, user: u32) -> Charge {
        self.held.get(&user).copied().unwrap_or_default()
    }

    fn users(&self) -> usize {
        self.held.keys().filter(|user| **user != UserIndex::KERNEL.0).count()
    }

    fn judge(&self, user: u32, size: u64, fds: u32) -> Result<Charge, QuotaError> {
        let held = self.of(user);
        let share = (POOL / 2).checked_sub(self.accounted).map(|free| (free + held.size) / 3);
        if share.and_then(|share| share.checked_sub(held.size)).is_none_or(|room| room < size) {
            return Err(QuotaError::Size);
        }
        let total = Charge { size: held.size + size, messages: held.messages + 1, fds: held.fds + fds };
        if total.messages > MESSAGES_MAX {
            return Err(QuotaError::Messages);
        }
        if total.fds > FDS_MAX {
            return Err(QuotaError::Fds);
        }
        let is_new = user != UserIndex::KERNEL.0 && !self.held.contains_key(&user);
        if is_new && self.users() == PLACES { Err(QuotaError::Users) } else { Ok(total) }
    }
}

proptest! {
    #[test]
    fn a_quota_is_a_map_of_who_holds_something(ops in vec(op(), 0..200)) {
        let mut head = QuotaHead::new();
        let mut records: Vec<_> = (0..PLACES).map(|_| UserRecord::new()).collect();
        let (mut model, mut queued) = (Model::default(), Vec::new());
        for op in ops {
            let mut quota = Quota::new(&mut head, &mut records);
            let pool = PoolUse { size: POOL, accounted_size: model.accounted };
            match op {
                Op::Check(user, size, fds) | Op::Charge(user, size, fds) => {
                    let (index, charge) = (UserIndex(user), Charge::message(size, fds));
                    let expected = model.judge(user, size, fds);
                    prop_assert_eq!(quota.check(index, charge, pool), expected.map(|_| ()));
                    if let Op::Charge(..) = op {
                        prop_assert_eq!(quota.charge(index, charge, pool), expected.map(|_| ()));
                        if let Ok(total) = expected {
                            model.held.insert(user, total);
                            model.accounted += size;
                            queued.push((user, charge));
                        }
                    }
                }
                Op::Release(at) if !queued.is_empty() => {
                    let (user, charge) = queued.swap_remove(at % queued.len());
                    quota.release(UserIndex(user), charge);
                    let held = model.of(user);
                    model.accounted -= charge.size;
                    model.held.insert(user, Charge {
                        size: held.size - charge.size,
                        messages: held.messages - 1,
                        fds: held.fds - charge.fds,
                    });
                    model.held.retain(|_, held| held.messages > 0);
                }
                Op::Release(_) => {}
            }
            prop_assert_eq!(quota.len(), model.users());
            prop_assert_eq!(quota.is_empty(), model.held.is_empty());
            let mut holders: Vec<_> = quota.holders().map(|(user, charge)| (user.0, charge)).collect();
            holders.sort_unstable_by_key(|(user, _)| *user);
            prop_assert_eq!(holders, model.held.clone().into_iter().collect::<Vec<_>>());
        }
    }
}
