//! How many steps the end of a connection takes, and that it leaves nothing behind.

extern crate std;
use std::format;

use super::super::testbed::*;
use super::super::*;
use crate::abi::NameFlags;

const LATER: u64 = 10_000_000;

/// What a connection has when it ends.
#[derive(Clone, Copy, Debug, Default)]
struct Belongings {
    names: usize,
    messages: usize,
    /// Calls that it waits for.
    own_calls: usize,
    /// Calls that others wait for, read.
    owed: usize,
    matches: usize,
}

impl Belongings {
    const fn count(self) -> usize {
        self.names + self.messages + self.own_calls + self.owed + self.matches
    }
}

/// Ends a connection that has these, and counts its steps and what is announced in each.
fn steps_of(has: Belongings) -> usize {
    let config = Config { queue_depth: 64, pool_slices: 100, names: 64, name_records: 64, ..Config::SMALL };
    let mut bed = Bed::with(&config);
    let (leaving, other, hearer) = (bed.connect(), bed.connect(), bed.connect());
    bed.add_match(hearer, 1, &[]).unwrap();
    for at in 0..has.names {
        bed.acquire(leaving, &format!("org.example.n{at}"), NameFlags::empty()).unwrap();
    }
    for cookie in 0..has.own_calls {
        bed.send(leaving, &message(other.id, cookie as u64).call(LATER)).unwrap();
    }
    for cookie in 0..has.owed {
        bed.send(other, &message(leaving.id, cookie as u64).call(LATER)).unwrap();
    }
    bed.drain(leaving);
    for cookie in 0..has.messages {
        bed.send(other, &message(leaving.id, cookie as u64)).unwrap();
    }
    for cookie in 0..has.matches {
        bed.add_match(leaving, cookie as u64, &[]).unwrap();
    }
    bed.drain(hearer);
    bed.drain(other);

    let at = bed.at();
    let conn = bed.domain.connected(leaving.handle).unwrap();
    bed.domain.begin_leave(&mut bed.host, conn);
    let mut steps = 1;
    loop {
        let goes_on = bed.domain.leave_step(&mut bed.host, at, conn);
        bed.collect();
        let told = bed.drain(hearer).len() + bed.drain(other).len();
        assert!(told <= 1, "a step announces one change at most");
        steps += 1;
        if !goes_on {
            break;
        }
    }
    let usage = bed.domain.usage();
    assert_eq!((usage.names, usage.matches, usage.connections), (0, 1, 2));
    assert_eq!(usage.trackers, 0);
    steps
}

#[test]
fn an_end_takes_a_step_for_each_thing_that_the_connection_has() {
    let bare = steps_of(Belongings::default());
    // The beginning, and one for each stage that is left; the last announces the end.
    assert_eq!(bare, 6);
    let each = [
        Belongings { names: 20, ..Belongings::default() },
        Belongings { messages: 20, ..Belongings::default() },
        Belongings { own_calls: 20, ..Belongings::default() },
        Belongings { owed: 20, ..Belongings::default() },
        Belongings { matches: 20, ..Belongings::default() },
        Belongings { names: 9, messages: 8, own_calls: 7, owed: 6, matches: 5 },
    ];
    for has in each {
        assert_eq!(steps_of(has), bare + has.count(), "{has:?}");
    }
}
