extern crate std;
use std::vec::Vec;

use super::*;
use crate::queue::StaticQueue;

const CALLER: ConnectionIndex = ConnectionIndex(0);
const OTHER: ConnectionIndex = ConnectionIndex(1);
const REPLIER: ConnectionIndex = ConnectionIndex(2);
const ACTIVATOR: ConnectionIndex = ConnectionIndex(3);

struct Fixture {
    arena: ReplyArena,
    trackers: Vec<Tracker>,
    calls: Vec<OpenCalls>,
}

impl Fixture {
    fn new(trackers: usize) -> Self {
        Self {
            arena: ReplyArena::new(),
            trackers: (0..trackers).map(|_| Tracker::new()).collect(),
            calls: (0..4).map(|_| OpenCalls::new()).collect(),
        }
    }

    fn table(&mut self) -> ReplyTable<'_> {
        ReplyTable::new(&mut self.arena, &mut self.trackers, &mut self.calls)
    }
}

fn call(cookie: u64) -> Call {
    Call {
        caller: CALLER,
        replier: REPLIER,
        cookie,
        deadline: Instant::from_nanos(100),
        sequence: 0,
        mode: CallMode::Asynchronous,
    }
}

/// Ends a call that awaits its reply from `replier`.
fn take_owed_by(table: &mut ReplyTable<'_>, replier: ConnectionIndex) -> Option<EndedCall> {
    let owed = table.owed_by(replier)?;
    table.close(owed)
}

/// Handles to tie trackers to.
fn entries() -> Vec<queue::Handle> {
    let mut storage = StaticQueue::<u32, 4>::new();
    let mut queue = storage.view();
    (0..4).map(|item| queue.push(0, item).unwrap()).collect()
}

#[test]
fn a_call_is_older_or_newer_than_what_is_made_elsewhere() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    let at = Instant::from_nanos;
    let [first, second, third] = [50, 50, 90].map(|now| table.open_at(call(7), at(now)).unwrap());
    for (id, before) in [(first, 50), (second, 50), (third, 90)] {
        assert!(table.is_made_after(id, at(before)) && !table.is_made_after(id, at(before + 9)));
    }
    assert_eq!(table.find(CALLER, REPLIER, 7), Some(third));
    let _ = table.close(third);
    assert!(!table.is_made_after(third, at(0)) && table.find(CALLER, REPLIER, 7) == Some(second));
}

#[test]
fn a_reply_ends_the_newest_call_with_its_cookie() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    let old = table.open(call(7)).unwrap();
    let new = table.open(Call { deadline: Instant::from_nanos(200), ..call(7) }).unwrap();
    table.open(call(8)).unwrap();
    table.open(Call { replier: OTHER, ..call(7) }).unwrap();
    assert_eq!(table.find(CALLER, REPLIER, 7), Some(new));
    assert_eq!(table.close(new).unwrap().call.deadline, Instant::from_nanos(200));
    assert_eq!(table.find(CALLER, REPLIER, 7), Some(old));
    assert!(table.close(old).is_some());
    assert_eq!(table.find(CALLER, REPLIER, 7), None);
    assert_eq!(table.close(old), None);
    assert!(table.find(CALLER, OTHER, 7).is_some());
    assert_eq!(table.find(OTHER, REPLIER, 8), None);
    assert_eq!(table.len(), 2);
}

#[test]
fn deadlines_pass_in_order() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    for (cookie, at) in [(1, 400), (2, 100), (3, 300), (4, 100)] {
        table.open(Call { deadline: Instant::from_nanos(at), ..call(cookie) }).unwrap();
    }
    assert_eq!(table.next_deadline(), Some(Instant::from_nanos(100)));
    assert_eq!(table.take_expired(Instant::from_nanos(99)), None);
    let mut expired = |now| {
        let now = Instant::from_nanos(now);
        let cookies = core::iter::from_fn(|| table.take_expired(now)).map(|ended| ended.call.cookie);
        cookies.collect::<Vec<_>>()
    };
    assert_eq!(expired(100), [2, 4]);
    assert_eq!(expired(399), [3]);
    assert_eq!(expired(u64::MAX), [1]);
    assert_eq!(table.next_deadline(), None);
    assert!(table.is_empty());
}

#[test]
fn a_call_that_expired_counts_while_its_message_is_queued() {
    let mut fixture = Fixture::new(200);
    let entry = entries()[0];
    let mut table = fixture.table();
    let first = table.open(call(0)).unwrap();
    table.carry(first, REPLIER, entry);
    for cookie in 1..u64::from(CALLS_MAX) {
        table.open(Call { deadline: Instant::FAR, ..call(cookie) }).unwrap();
    }
    assert_eq!(table.open(call(500)), Err(CallError::TooMany));
    assert_eq!(table.take_expired(Instant::from_nanos(100)).unwrap().call.cookie, 0);
    assert_eq!(table.find(CALLER, REPLIER, 0), None);
    assert_eq!(table.get(first), None);
    assert_eq!(table.carrier(first), Some((REPLIER, entry)));
    assert_eq!(table.check(CALLER), Err(CallError::TooMany));
    assert_eq!(table.check(OTHER), Ok(()));
    table.drop_carrier(first);
    assert_eq!(table.check(CALLER), Ok(()));
    assert_eq!(table.len(), 127);
    assert_eq!(CallError::TooMany.errno(), Errno::EMLINK);
}

#[test]
fn a_received_call_stays_pending() {
    let mut fixture = Fixture::new(2);
    let mut table = fixture.table();
    let id = table.open(call(1)).unwrap();
    table.carry(id, REPLIER, entries()[0]);
    table.drop_carrier(id);
    assert_eq!(table.get(id), Some(call(1)));
    assert_eq!(table.find(CALLER, REPLIER, 1), Some(id));
}

#[test]
fn calls_of_a_dead_replier_end_and_no_others() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    table.open(call(1)).unwrap();
    table.open(Call { caller: OTHER, sequence: 5, ..call(2) }).unwrap();
    table.open(Call { replier: OTHER, ..call(3) }).unwrap();
    table.open(Call { replier: ACTIVATOR, ..call(4) }).unwrap();
    let ended: Vec<_> = core::iter::from_fn(|| take_owed_by(&mut table, REPLIER)).collect();
    let ended: Vec<_> = ended.iter().map(|ended| (ended.call.caller, ended.call.cookie)).collect();
    assert_eq!(ended, [(CALLER, 1), (OTHER, 2)]);
    assert_eq!(table.len(), 2);
}

#[test]
fn calls_of_a_caller_that_left_count_for_nobody() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    let queued = table.open(call(1)).unwrap();
    table.carry(queued, REPLIER, entries()[0]);
    let expired = table.open(Call { deadline: Instant::ZERO, ..call(2) }).unwrap();
    table.carry(expired, REPLIER, entries()[1]);
    table.open(call(3)).unwrap();
    table.open(Call { caller: OTHER, ..call(4) }).unwrap();
    assert!(table.take_expired(Instant::from_nanos(1)).is_some());
    assert_eq!(core::iter::from_fn(|| table.take_made_by(CALLER)).count(), 3);
    assert_eq!(table.find(CALLER, REPLIER, 1), None);
    assert_eq!(table.len(), 3, "two messages are still queued");
    // The index has a new connection when the messages go.
    table.open(call(1)).unwrap();
    table.drop_carrier(queued);
    table.drop_carrier(expired);
    assert_eq!(table.len(), 2);
    assert_eq!(table.calls[0].len(), 1);
    assert_eq!(take_owed_by(&mut table, REPLIER).map(|ended| ended.call.caller), Some(OTHER));
}

#[test]
fn a_hand_over_redirects_calls_to_the_name_only() {
    let mut fixture = Fixture::new(8);
    let mut table = fixture.table();
    table.open(Call { sequence: 5, ..call(1) }).unwrap();
    table.open(Call { sequence: 6, ..call(2) }).unwrap();
    table.open(call(3)).unwrap();
    table.open(Call { caller: ACTIVATOR, sequence: 5, ..call(4) }).unwrap();
    table.open(Call { caller: REPLIER, sequence: 5, ..call(5) }).unwrap();
    table.open(Call { caller: OTHER, sequence: 5, ..call(6) }).unwrap();
    assert_eq!(table.redirect(HandOver { sequence: 5, from: REPLIER, to: ACTIVATOR }), 2);
    assert_eq!(table.find(CALLER, REPLIER, 1), None);
    let found = [(CALLER, 1), (OTHER, 6)].map(|(caller, cookie)| table.find(caller, ACTIVATOR, cookie));
    assert!(found.iter().all(Option::is_some));
    assert!(table.find(CALLER, REPLIER, 2).is_some());
    assert!(table.find(ACTIVATOR, REPLIER, 4).is_some());
    assert_eq!(core::iter::from_fn(|| take_owed_by(&mut table, REPLIER)).count(), 4);
    assert_eq!(core::iter::from_fn(|| take_owed_by(&mut table, ACTIVATOR)).count(), 2);
    assert_eq!(table.redirect(HandOver { sequence: 5, from: REPLIER, to: ACTIVATOR }), 0);
}

#[test]
fn an_interrupted_call_is_resumed() {
    let mut fixture = Fixture::new(4);
    let mut table = fixture.table();
    let id = table.open(Call { mode: CallMode::Synchronous { token: 1 }, ..call(1) }).unwrap();
    assert_eq!(table.resume(CALLER, 1, 2), None, "not interrupted");
    table.interrupt(id);
    assert!(table.is_interrupted(id));
    assert_eq!(table.resume(CALLER, 2, 2), None);
    assert_eq!(table.resume(CALLER, 1, 2), Some(Resumed::Waiting(id)));
    assert_eq!(table.get(id).unwrap().mode, CallMode::Synchronous { token: 2 });
    assert!(!table.is_interrupted(id));
    assert!(!table.settle(id, Err(Errno::EPIPE)), "the caller is there to be told");
}

#[test]
fn the_result_of_an_interrupted_call_is_kept_until_fetched() {
    let mut fixture = Fixture::new(4);
    let mut table = fixture.table();
    let id = table.open(Call { mode: CallMode::Synchronous { token: 1 }, ..call(1) }).unwrap();
    table.interrupt(id);
    assert!(table.settle(id, Err(Errno::EPIPE)));
    assert_eq!(table.find(CALLER, REPLIER, 1), None);
    assert_eq!(take_owed_by(&mut table, REPLIER), None);
    assert_eq!(table.resume(CALLER, 1, 2), Some(Resumed::Ended(Err(Errno::EPIPE))));
    assert!(table.is_empty());
}

#[test]
fn the_result_of_an_interrupted_call_goes_at_the_deadline() {
    let mut fixture = Fixture::new(4);
    let mut table = fixture.table();
    let id = table.open(Call { mode: CallMode::Synchronous { token: 1 }, ..call(1) }).unwrap();
    table.interrupt(id);
    assert!(table.settle(id, Err(Errno::EREMOTEIO)));
    let ended = table.take_expired(Instant::from_nanos(100)).unwrap();
    assert_eq!(ended.unclaimed, Some(Err(Errno::EREMOTEIO)));
    assert_eq!(table.resume(CALLER, 1, 2), None);
    assert!(table.is_empty());
}

#[test]
fn only_the_newest_call_with_a_cookie_is_resumed() {
    let mut fixture = Fixture::new(4);
    let mut table = fixture.table();
    let id = table.open(Call { mode: CallMode::Synchronous { token: 1 }, ..call(1) }).unwrap();
    table.interrupt(id);
    table.open(call(1)).unwrap();
    assert_eq!(table.resume(CALLER, 1, 2), None);
}

#[test]
fn a_full_table_is_a_refusal() {
    let mut fixture = Fixture::new(1);
    let mut table = fixture.table();
    let id = table.open(call(1)).unwrap();
    assert_eq!(table.open(call(2)), Err(CallError::Full));
    assert_eq!(table.open(Call { caller: ConnectionIndex(9), ..call(2) }), Err(CallError::NoConnection));
    assert!(table.close(id).is_some());
    let id = table.open(call(2)).unwrap();
    assert_eq!(table.made_by(CALLER).collect::<Vec<_>>(), [call(2)]);
    assert_eq!(table.get(id), Some(call(2)));
}
