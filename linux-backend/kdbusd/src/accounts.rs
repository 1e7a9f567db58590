//! On whose account descriptors wait to be closed, and how much of the closing each may have going on at once.

use std::collections::{HashMap, VecDeque};

/// Descriptors that are being closed at the same time.
pub(crate) const CLOSING_MOST: usize = 64;
/// Those of one user, and those that are kept for [`Whose::Nobody`].
const SHARE: usize = CLOSING_MOST / 4;

/// Who can make the close of a descriptor wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// A user, whose client brought it.
    User(u32),
    /// Nobody.
    Nobody,
}

#[derive(Debug)]
struct Account<T> {
    waiting: VecDeque<T>,
    closing: usize,
}

/// What waits to be closed, by account. Memory grows with what waits, and there is one account for each user of that.
#[derive(Debug)]
pub(crate) struct Accounts<T> {
    accounts: HashMap<Whose, Account<T>>,
    /// Accounts with something waiting, each once, in the order in which they have their turn.
    turns: VecDeque<Whose>,
    closing_of_users: usize,
    own_uid: u32,
}

impl<T> Accounts<T> {
    /// Nothing waits. Root and the user `own_uid` have no share of their own, but all that users may have.
    pub(crate) fn new(own_uid: u32) -> Self {
        Self { accounts: HashMap::new(), turns: VecDeque::new(), closing_of_users: 0, own_uid }
    }

    /// Takes in what waits from now on; hands it back if there is no memory for it.
    pub(crate) fn add(&mut self, whose: Whose, file: T) -> Result<(), T> {
        if self.accounts.try_reserve(1).is_err() || self.turns.try_reserve(1).is_err() {
            return Err(file);
        }
        let new = Account { waiting: VecDeque::new(), closing: 0 };
        let account = self.accounts.entry(whose).or_insert(new);
        if account.waiting.try_reserve(1).is_err() {
            self.forget_if_empty(whose);
            return Err(file);
        }
        if account.waiting.is_empty() {
            self.turns.push_back(whose);
        }
        account.waiting.push_back(file);
        Ok(())
    }

    /// What is to be closed next, until [`done`](Self::done) is called with its account. Accounts take turns. Cost: a look at
    /// the accounts that have something waiting.
    pub(crate) fn next(&mut self) -> Option<(Whose, T)> {
        let at = self.turns.iter().position(|whose| self.may_close(*whose))?;
        let whose = self.turns.remove(at)?;
        let account = self.accounts.get_mut(&whose)?;
        let file = account.waiting.pop_front()?;
        account.closing += 1;
        self.closing_of_users += usize::from(whose != Whose::Nobody);
        if !account.waiting.is_empty() {
            self.turns.push_back(whose);
        }
        Some((whose, file))
    }

    /// Something on this account is closed.
    pub(crate) fn done(&mut self, whose: Whose) {
        if let Some(account) = self.accounts.get_mut(&whose) {
            account.closing -= 1;
            self.closing_of_users -= usize::from(whose != Whose::Nobody);
        }
        self.forget_if_empty(whose);
    }

    /// How many wait on an account of which none may be closed now; 0 for others.
    pub(crate) fn held_up(&self, whose: Whose) -> usize {
        let account = self.accounts.get(&whose).filter(|_| !self.may_close(whose));
        account.map_or(0, |account| account.waiting.len())
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    fn may_close(&self, whose: Whose) -> bool {
        let closing = self.accounts.get(&whose).map_or(0, |account| account.closing);
        match whose {
            Whose::Nobody => closing < SHARE,
            Whose::User(uid) => {
                let is_bound = uid != 0 && uid != self.own_uid;
                self.closing_of_users < CLOSING_MOST - SHARE && (!is_bound || closing < SHARE)
            }
        }
    }

    fn forget_if_empty(&mut self, whose: Whose) {
        let idle = |account: &Account<T>| account.waiting.is_empty() && account.closing == 0;
        if self.accounts.get(&whose).is_some_and(idle) {
            self.accounts.remove(&whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts(of: &[(Whose, usize)]) -> Accounts<usize> {
        let mut accounts = Accounts::new(1000);
        for (whose, count) in of {
            for file in 0..*count {
                accounts.add(*whose, file).unwrap();
            }
        }
        accounts
    }

    fn taken(accounts: &mut Accounts<usize>) -> Vec<Whose> {
        std::iter::from_fn(|| accounts.next().map(|(whose, _)| whose)).collect()
    }

    fn count(taken: &[Whose], whose: Whose) -> usize {
        taken.iter().filter(|other| **other == whose).count()
    }

    #[test]
    fn a_user_has_its_share_and_waits_for_itself_only() {
        let (slow, other) = (Whose::User(7), Whose::User(8));
        let mut accounts = accounts(&[(slow, 100)]);
        assert_eq!(accounts.held_up(slow), 0, "not yet");
        assert_eq!(taken(&mut accounts), [slow; SHARE]);
        assert_eq!((accounts.held_up(slow), accounts.held_up(other)), (100 - SHARE, 0));
        accounts.add(other, 0).unwrap();
        assert_eq!(taken(&mut accounts), [other]);
        accounts.done(slow);
        assert_eq!(accounts.next(), Some((slow, SHARE)), "in order");
        assert_eq!(accounts.next(), None);
    }

    #[test]
    fn all_users_together_leave_room_for_what_nobody_holds_up() {
        let users = [0, 1000, 7, 8, 9, 10].map(Whose::User);
        let mut accounts = accounts(&users.map(|user| (user, 100)));
        let of_users = taken(&mut accounts);
        assert_eq!(of_users.len(), CLOSING_MOST - SHARE);
        assert!(users.iter().all(|user| count(&of_users, *user) == of_users.len() / users.len()), "in turns");
        let late = Whose::User(11);
        accounts.add(late, 0).unwrap();
        assert_eq!((accounts.next(), accounts.held_up(late)), (None, 1));
        for file in 0..100 {
            accounts.add(Whose::Nobody, file).unwrap();
        }
        assert_eq!(taken(&mut accounts), [Whose::Nobody; SHARE]);
    }

    #[test]
    fn root_and_the_own_user_have_what_users_may_have() {
        for user in [0, 1000].map(Whose::User) {
            let mut accounts = accounts(&[(user, 100)]);
            assert_eq!(taken(&mut accounts).len(), CLOSING_MOST - SHARE);
        }
    }

    #[test]
    fn nothing_is_kept_of_an_account_when_all_is_closed() {
        let users = [7, 8].map(Whose::User);
        let mut accounts = accounts(&users.map(|user| (user, 40)));
        let mut closed = 0;
        while let Some((whose, _)) = accounts.next() {
            accounts.done(whose);
            closed += 1;
        }
        assert_eq!((closed, accounts.closing_of_users), (80, 0));
        assert!(accounts.accounts.is_empty() && accounts.is_empty());
    }
}
