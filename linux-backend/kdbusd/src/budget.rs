//! How much of the daemon each user may hold.

use crate::config::{Capacity, Memory};

/// What one user holds.
#[derive(Clone, Copy, Debug)]
struct Share {
    uid: u32,
    clients: u32,
    pools: u64,
}

/// Handles and pool memory, all in all and by user.
///
/// Root and the daemon's own user are bound by the whole only: they could stop the daemon anyway. All others together have no
/// more handles than there can be, those that [linger](Self::open_client) among them.
#[derive(Debug)]
pub(crate) struct Budget {
    clients: u32,
    clients_used: u32,
    clients_per_user: u32,
    pools_per_user: u64,
    pools: u64,
    pools_used: u64,
    own_uid: u32,
    /// Users that hold something; as many places as all others can have clients, and two.
    shares: Vec<Share>,
}

impl Budget {
    pub(crate) fn new(capacity: &Capacity, memory: &Memory, own_uid: u32) -> Self {
        Self {
            clients: capacity.clients,
            clients_used: 0,
            clients_per_user: capacity.clients_per_user,
            pools_per_user: memory.pools_per_user.0,
            pools: memory.pools.0,
            pools_used: 0,
            own_uid,
            shares: Vec::with_capacity(capacity.clients as usize + 2),
        }
    }

    /// Counts one more handle of a user. False if it has as many as it may, or all have, and nothing is counted.
    ///
    /// One whose client was cut off and has not read the descriptors that were sent to it counts until it has: they are as many
    /// more that are on their way.
    #[must_use]
    pub(crate) fn open_client(&mut self, uid: u32) -> bool {
        let is_bound = self.is_bound(uid);
        if is_bound && self.clients_used >= self.clients {
            return false;
        }
        let most = if is_bound { self.clients_per_user } else { u32::MAX };
        match self.shares.iter().position(|share| share.uid == uid) {
            Some(at) if self.shares[at].clients < most => self.shares[at].clients += 1,
            None if self.shares.len() < self.shares.capacity() => {
                self.shares.push(Share { uid, clients: 1, pools: 0 });
            }
            _ => return false,
        }
        self.clients_used += u32::from(is_bound);
        true
    }

    /// Counts one handle less.
    pub(crate) fn close_client(&mut self, uid: u32) {
        let is_bound = self.is_bound(uid);
        if let Some(at) = self.shares.iter().position(|share| share.uid == uid) {
            let share = &mut self.shares[at];
            self.clients_used = self.clients_used.saturating_sub(u32::from(is_bound));
            share.clients = share.clients.saturating_sub(1);
            // A pool belongs to a client, so there is none without clients.
            if share.clients == 0 {
                self.pools_used = self.pools_used.saturating_sub(share.pools);
                self.shares.swap_remove(at);
            }
        }
    }

    /// Counts a pool of a user that has a client. False if it is too much, and nothing is counted.
    #[must_use]
    pub(crate) fn take_pool(&mut self, uid: u32, bytes: u64) -> bool {
        let most = if self.is_bound(uid) { self.pools_per_user } else { u64::MAX };
        let left = self.pools - self.pools_used;
        let Some(share) = self.shares.iter_mut().find(|share| share.uid == uid) else {
            return false;
        };
        if bytes > left || bytes > most.saturating_sub(share.pools) {
            return false;
        }
        share.pools += bytes;
        self.pools_used += bytes;
        true
    }

    /// Gives a pool back that was counted.
    pub(crate) fn give_pool(&mut self, uid: u32, bytes: u64) {
        if let Some(share) = self.shares.iter_mut().find(|share| share.uid == uid) {
            let bytes = bytes.min(share.pools);
            share.pools -= bytes;
            self.pools_used -= bytes;
        }
    }

    /// Whether a user has a share, and not everything.
    pub(crate) const fn is_bound(&self, uid: u32) -> bool {
        uid != 0 && uid != self.own_uid
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Bytes;

    fn budget() -> Budget {
        let capacity = Capacity { clients: 4, clients_per_user: 2, ..Capacity::default() };
        let memory = Memory { pools: Bytes(100), pools_per_user: Bytes(60), ..Memory::default() };
        Budget::new(&capacity, &memory, 1000)
    }

    #[test]
    fn a_user_has_its_share_of_the_clients_and_no_more() {
        let mut budget = budget();
        assert!(budget.open_client(7) && budget.open_client(7));
        assert!(!budget.open_client(7));
        assert!(budget.open_client(8), "another user is not held up");
        budget.close_client(7);
        assert!(budget.open_client(7));
        for _ in 0..3 {
            assert!(budget.open_client(1000) && budget.open_client(0), "the daemon's own user and root");
        }
    }

    #[test]
    fn all_users_together_have_the_clients_that_there_can_be_and_some_remain_for_whom_nothing_binds() {
        let mut budget = budget();
        for uid in [7, 8, 7, 8] {
            assert!(budget.open_client(uid));
        }
        assert!(!budget.open_client(9));
        assert!(budget.open_client(0) && budget.open_client(1000));
        assert!(!budget.open_client(9));
        budget.close_client(0);
        assert!(!budget.open_client(9), "it was none of theirs");
        budget.close_client(8);
        assert!(budget.open_client(9) && !budget.open_client(8));
    }

    #[test]
    fn pools_are_bound_by_user_and_all_in_all() {
        let mut budget = budget();
        assert!(budget.open_client(7) && budget.open_client(8));
        assert!(!budget.take_pool(7, 61));
        assert!(budget.take_pool(7, 60));
        assert!(!budget.take_pool(7, 1));
        assert!(!budget.take_pool(8, 41));
        assert!(budget.take_pool(8, 40));
        budget.give_pool(7, 60);
        assert!(budget.take_pool(8, 20));
        assert!(!budget.take_pool(9, 1), "nobody's pool");
    }

    #[test]
    fn what_a_user_held_is_free_when_it_is_gone() {
        let mut budget = budget();
        assert!(budget.open_client(7) && budget.take_pool(7, 60));
        budget.close_client(7);
        assert!(budget.open_client(8) && budget.take_pool(8, 60));
        assert!(budget.open_client(0) && budget.take_pool(0, 40));
    }
}
