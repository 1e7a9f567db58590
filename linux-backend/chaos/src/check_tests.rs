//! Histories made by hand: each wrong one has to be found, and the right ones must not be.

use crate::check::{Check, Verdict, check};
use crate::history::History;
use crate::point::Point;
use crate::record::{End, How, Kind, MessageId, Record, Sort};

const SENDER: u64 = 10;
const RECEIVER: u64 = 20;

/// A history under construction. Each step takes one unit of time, unless it is given.
struct Script {
    history: History,
    own: u64,
}

/// Sender and receiver of most scripts; the receiver lives on.
fn scripts() -> (Script, Script) {
    (Script::new(1, SENDER), Script::new(2, RECEIVER))
}

fn id(serial: u64) -> MessageId {
    MessageId { client: 1, incarnation: 0, serial }
}

fn verdict(scripts: [Script; 2]) -> Verdict {
    check(&scripts.map(|script| script.history))
}

/// The checks that found something, each once.
fn found(scripts: [Script; 2]) -> Vec<Check> {
    let mut found: Vec<_> = verdict(scripts).findings.into_iter().map(|finding| finding.check).collect();
    found.sort_unstable();
    found.dedup();
    found
}

impl Script {
    fn new(client: u32, own: u64) -> Self {
        let mut script = Self { history: History { client, incarnation: 0, records: Vec::new() }, own };
        script.add(Kind::Hello, Record::default());
        script
    }

    fn add(&mut self, kind: Kind, record: Record) -> &mut Self {
        self.history.records.push(Record { kind: kind.code(), own: self.own, ..record });
        self
    }

    fn id(&self, serial: u64) -> MessageId {
        MessageId { client: self.history.client, incarnation: 0, serial }
    }

    /// A SEND from `began_at` to `returned_at`.
    fn send(&mut self, sort: Sort, peer: u64, serial: u64, time: (u64, u64)) -> &mut Self {
        self.send_as(Record { detail: sort.code(), peer, id: self.id(serial), ..Record::default() }, time)
    }

    fn send_as(&mut self, record: Record, (began_at, at): (u64, u64)) -> &mut Self {
        let record = Record { cookie: record.id.serial, began_at, ..record };
        self.add(Kind::Sending, record).add(Kind::Sent, Record { at, ..record })
    }

    fn receive(&mut self, how: How, peer: u64, id: MessageId) -> &mut Self {
        self.add(Kind::Received, Record { detail: how.code(), peer, id, ..Record::default() })
    }

    fn end(&mut self, serial: u64, end: End) -> &mut Self {
        self.add(Kind::CallEnded, Record { detail: end.code(), id: self.id(serial), ..Record::default() })
    }

    fn drained(mut self) -> Self {
        self.add(Kind::Drained, Record::default());
        self
    }
}

#[test]
fn an_orderly_round_has_nothing_to_find() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Plain, RECEIVER, 1, (10, 20)).send(Sort::Call, RECEIVER, 2, (30, 40));
    b.receive(How::Oldest, SENDER, id(1)).receive(How::Oldest, SENDER, id(2));
    let reply =
        Record { detail: Sort::Reply.code(), peer: SENDER, id: b.id(1), answers: id(2), ..Record::default() };
    b.send_as(reply, (50, 60));
    let (from, answers) = (b.id(1), id(2));
    let receipt =
        Record { detail: How::Oldest.code(), peer: RECEIVER, id: from, answers, ..Record::default() };
    a.add(Kind::Received, receipt).end(2, End::Reply);
    let verdict = verdict([a.drained(), b.drained()]);
    assert_eq!(verdict.findings, []);
    for check in [Check::Once, Check::Sent, Check::Kept, Check::CallEnds, Check::Replies, Check::GlobalOrder]
    {
        assert!(verdict.tally.checks.get(&check).is_some_and(|made| *made > 0), "{check:?} was never made");
    }
}

#[test]
fn a_duplicate_is_found() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Plain, RECEIVER, 1, (10, 20));
    b.receive(How::Oldest, SENDER, id(1)).receive(How::Oldest, SENDER, id(1));
    assert!(found([a.drained(), b.drained()]).contains(&Check::Once));
}

#[test]
fn a_message_received_and_dropped_is_a_duplicate() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Plain, RECEIVER, 1, (10, 20));
    b.receive(How::Oldest, SENDER, id(1));
    b.add(Kind::Dropped, Record { peer: SENDER, cookie: 1, ..Record::default() });
    assert_eq!(found([a.drained(), b.drained()]), [Check::Once]);
}

#[test]
fn a_loss_is_found_unless_the_receiver_died() {
    let losing = || {
        let (mut a, b) = scripts();
        a.send(Sort::Plain, RECEIVER, 1, (10, 20));
        (a.drained(), b)
    };
    let (a, b) = losing();
    assert_eq!(found([a, b.drained()]), [Check::Kept]);
    let (a, b) = losing();
    assert_eq!(found([a, b]), []);
}

#[test]
fn a_loss_at_a_name_is_found_unless_an_owner_died() {
    let losing = |drained| {
        let (mut a, mut b) = scripts();
        b.add(Kind::Acquiring, Record { name: 1, began_at: 1, ..Record::default() });
        a.send_as(Record { name: 1, id: id(1), ..Record::default() }, (10, 20));
        found([a.drained(), if drained { b.drained() } else { b }])
    };
    assert_eq!(losing(true), [Check::Kept]);
    assert_eq!(losing(false), []);
}

#[test]
fn what_is_lost_while_its_owner_reconnects_is_no_finding() {
    let losing = |reconnected_at| {
        let (mut a, mut b) = scripts();
        b.add(Kind::Acquiring, Record { name: 1, began_at: 1, ..Record::default() });
        b.add(Kind::Ending, Record { at: 5, ..Record::default() });
        b.own = 21;
        b.add(Kind::Hello, Record { at: reconnected_at, ..Record::default() });
        a.send_as(Record { name: 1, id: id(1), ..Record::default() }, (10, 20));
        found([a.drained(), b.drained()])
    };
    assert_eq!(losing(15), []);
    assert_eq!(losing(8), [Check::Kept]);
}

#[test]
fn a_reorder_is_found_by_both_checks_of_order() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Plain, RECEIVER, 1, (10, 20)).send(Sort::Plain, RECEIVER, 2, (30, 40));
    b.receive(How::Oldest, SENDER, id(2)).receive(How::Oldest, SENDER, id(1));
    assert_eq!(found([a.drained(), b.drained()]), [Check::SenderOrder, Check::GlobalOrder]);
}

#[test]
fn a_reorder_across_senders_is_found_only_if_one_had_returned() {
    let reorder = |first: (u64, u64), second: (u64, u64)| {
        let (mut a, mut b) = scripts();
        a.send(Sort::Plain, RECEIVER, 1, first);
        let own = b.id(1);
        b.send(Sort::Plain, RECEIVER, 1, second);
        b.receive(How::Oldest, RECEIVER, own).receive(How::Oldest, SENDER, id(1));
        found([a.drained(), b.drained()])
    };
    assert_eq!(reorder((10, 20), (30, 40)), [Check::GlobalOrder]);
    assert_eq!(reorder((10, 35), (30, 40)), []);
}

#[test]
fn priorities_may_overtake_and_equal_ones_may_not() {
    let reorder = |early: i64, late: i64| {
        let (mut a, mut b) = scripts();
        for (serial, priority, time) in [(1, early, (10, 20)), (2, late, (30, 40))] {
            a.send_as(Record { peer: RECEIVER, id: id(serial), priority, ..Record::default() }, time);
        }
        for (how, serial, priority) in [(How::Urgent, 2, late), (How::Oldest, 1, early)] {
            let record =
                Record { detail: how.code(), peer: SENDER, id: id(serial), priority, ..Record::default() };
            b.add(Kind::Received, record);
        }
        found([a.drained(), b.drained()])
    };
    assert_eq!(reorder(0, -1), []);
    assert_eq!(reorder(0, 0), [Check::SenderOrder, Check::GlobalOrder]);
    assert_eq!(reorder(-1, 0), [Check::SenderOrder, Check::GlobalOrder]);
}

#[test]
fn a_double_reply_is_found() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Call, RECEIVER, 1, (10, 20));
    b.receive(How::Oldest, SENDER, id(1));
    for serial in [1, 2] {
        let (from, answers) = (b.id(serial), id(1));
        let reply =
            Record { detail: Sort::Reply.code(), peer: SENDER, id: from, answers, ..Record::default() };
        b.send_as(reply, (30 + serial, 31 + serial));
        let receipt =
            Record { detail: How::Oldest.code(), peer: RECEIVER, id: from, answers, ..Record::default() };
        a.add(Kind::Received, receipt).end(1, End::Reply);
    }
    assert_eq!(found([a.drained(), b.drained()]), [Check::CallEnds, Check::Replies]);
}

#[test]
fn a_call_without_an_end_and_one_with_two_are_found() {
    let ended = |ends: &[End]| {
        let (mut a, mut b) = scripts();
        a.send(Sort::Call, RECEIVER, 1, (10, 20));
        b.receive(How::Oldest, SENDER, id(1));
        for end in ends {
            a.end(1, *end);
        }
        found([a.drained(), b])
    };
    assert_eq!(ended(&[]), [Check::CallEnds]);
    assert_eq!(ended(&[End::TimedOut]), []);
    assert_eq!(ended(&[End::TimedOut, End::Dead]), [Check::CallEnds]);
}

#[test]
fn a_false_death_and_an_early_time_out_are_found() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Call, RECEIVER, 1, (10, 20)).end(1, End::Dead);
    b.receive(How::Oldest, SENDER, id(1));
    assert_eq!(found([a.drained(), b.drained()]), [Check::Deaths]);
    let (mut a, mut b) = scripts();
    a.send(Sort::Call, RECEIVER, 1, (10, 20));
    b.receive(How::Oldest, SENDER, id(1));
    let end = Record { detail: End::TimedOut.code(), id: id(1), at: 99, deadline: 100, ..Record::default() };
    a.add(Kind::CallEnded, end);
    assert_eq!(found([a.drained(), b.drained()]), [Check::Deadlines]);
}

#[test]
fn what_nobody_sent_and_what_was_refused_is_found() {
    let (a, mut b) = scripts();
    b.receive(How::Oldest, SENDER, id(1));
    assert_eq!(found([a.drained(), b.drained()]), [Check::Sent]);
    let (mut a, mut b) = scripts();
    let record = Record { peer: RECEIVER, id: id(1), began_at: 10, ..Record::default() };
    a.add(Kind::Sending, record).add(Kind::Sent, Record { result: 105, at: 20, ..record });
    b.receive(How::Oldest, SENDER, id(1));
    assert_eq!(found([a.drained(), b.drained()]), [Check::Sent]);
}

#[test]
fn a_lost_signal_is_found_unless_the_loss_was_told() {
    let missed = |told: u64| {
        let (mut a, mut b) = scripts();
        b.add(Kind::Matched, Record { name: 1, at: 5, ..Record::default() });
        a.send_as(
            Record { detail: Sort::Broadcast.code(), name: 1, id: id(1), ..Record::default() },
            (10, 20),
        );
        b.add(Kind::Lost, Record { bytes: told, ..Record::default() });
        found([a.drained(), b.drained()])
    };
    assert_eq!(missed(0), [Check::Signals]);
    assert_eq!(missed(1), []);
}

#[test]
fn a_lost_copy_and_numbers_that_fall_are_found() {
    let (mut a, mut monitor) = scripts();
    a.send(Sort::Plain, 77, 1, (10, 20)).send(Sort::Plain, 77, 2, (30, 40)).send(
        Sort::Plain,
        77,
        3,
        (50, 60),
    );
    for (serial, sequence) in [(1, 8), (3, 7)] {
        let record =
            Record { detail: How::Copy.code(), peer: SENDER, id: id(serial), sequence, ..Record::default() };
        monitor.add(Kind::Received, record);
    }
    assert_eq!(found([a.drained(), monitor.drained()]), [Check::Sequence, Check::Monitors]);
}

#[test]
fn a_dropped_call_ends_unless_the_answer_to_it_was_refused() {
    let dropping = |steps: &[(Kind, u32)]| {
        let (mut a, mut b) = scripts();
        a.send(Sort::Call, RECEIVER, 1, (10, 20));
        for (kind, result) in steps {
            b.add(*kind, Record { peer: SENDER, cookie: 1, result: *result, ..Record::default() });
        }
        found([a.drained(), b.drained()])
    };
    assert_eq!(dropping(&[(Kind::Dropping, 0), (Kind::Dropped, 0)]), [Check::CallEnds]);
    assert_eq!(dropping(&[(Kind::Dropping, 0), (Kind::Dropped, 1)]), []);
}

/// What is found if a sender is killed at `point` over its first message, which is `received` or not.
fn cut(point: Point, received: bool) -> Vec<Check> {
    let (mut a, mut b) = scripts();
    let record =
        Record { detail: Sort::Plain.code(), peer: RECEIVER, id: id(1), began_at: 10, ..Record::default() };
    a.add(Kind::Sending, record);
    a.history.records.push(Record {
        kind: Kind::At.code(),
        detail: point.code(),
        at: 15,
        ..Record::default()
    });
    if received {
        b.receive(How::Oldest, SENDER, id(1));
    }
    found([a, b.drained()])
}

#[test]
fn a_message_of_a_killed_sender_is_there_if_it_was_committed_and_only_then() {
    assert_eq!(cut(Point::Written, false), []);
    assert_eq!(cut(Point::Written, true), [Check::Cut]);
    assert_eq!(cut(Point::BeforeBell, true), []);
    assert_eq!(cut(Point::BeforeBell, false), [Check::Kept]);
    assert_eq!((cut(Point::InCommand, false), cut(Point::InCommand, true)), (vec![], vec![]));
}

#[test]
fn a_call_whose_callee_is_killed_over_the_reply_ends() {
    let (mut a, mut b) = scripts();
    a.send(Sort::Call, RECEIVER, 1, (10, 20));
    b.receive(How::Oldest, SENDER, id(1));
    let reply =
        Record { detail: Sort::Reply.code(), peer: SENDER, id: b.id(1), answers: id(1), ..Record::default() };
    b.add(Kind::Sending, reply);
    let point = Point::CallAnswered.code();
    b.history.records.push(Record { kind: Kind::At.code(), detail: point, ..Record::default() });
    assert_eq!(found([a.drained(), b]), [Check::CallEnds]);
}

#[test]
fn a_copy_of_what_was_sent_before_the_monitor_came_is_found() {
    let joined_at = |began_at: u64| {
        let (mut a, mut monitor) = scripts();
        a.send(Sort::Plain, SENDER, 1, (10, 20));
        monitor.add(Kind::Hello, Record { began_at, at: 30, ..Record::default() });
        monitor.receive(How::Copy, SENDER, id(1));
        found([a, monitor.drained()])
    };
    assert_eq!(joined_at(15), []);
    assert_eq!(joined_at(25), [Check::Monitors]);
}

#[test]
fn a_reply_that_returned_before_its_call_ended_by_time_is_found() {
    let replied_at = |at: u64| {
        let (mut a, mut b) = scripts();
        let call = Record { detail: Sort::SyncCall.code(), peer: RECEIVER, id: id(1), ..Record::default() };
        a.add(Kind::Sending, Record { began_at: 10, ..call });
        a.add(Kind::Sent, Record { at: 30, sequence: u64::from(End::TimedOut.code()), ..call });
        b.receive(How::Oldest, SENDER, id(1));
        let (detail, own) = (Sort::Reply.code(), b.id(1));
        b.send_as(Record { detail, peer: SENDER, id: own, answers: id(1), ..Record::default() }, (12, at));
        found([a.drained(), b.drained()])
    };
    assert_eq!(replied_at(20), [Check::Replies]);
    assert_eq!(replied_at(40), []);
}

#[test]
fn what_came_by_lane_before_a_name_was_given_up_is_not_compared_with_what_has_moved() {
    let activated = crate::client::ACTIVATED as u32 + 1;
    let reordered = |given_up: bool| {
        let (mut a, mut b) = scripts();
        let sent = |serial| Record { name: activated, id: id(serial), ..Record::default() };
        a.send_as(sent(1), (10, 20)).send_as(sent(2), (30, 40));
        b.add(Kind::Acquiring, Record { name: activated, began_at: 5, ..Record::default() });
        if given_up {
            b.add(Kind::NotOwner, Record { name: activated, at: 50, ..Record::default() });
            b.add(Kind::Acquiring, Record { name: activated, began_at: 60, ..Record::default() });
        }
        for serial in [2, 1] {
            let (detail, name) = (How::Oldest.code(), activated);
            let receipt = Record { detail, name, at: 70, peer: SENDER, id: id(serial), ..Record::default() };
            b.add(Kind::Received, receipt);
        }
        found([a.drained(), b.drained()])
    };
    assert_eq!(reordered(true), []);
    assert_eq!(reordered(false), [Check::SenderOrder, Check::GlobalOrder]);
}

#[test]
fn what_is_borrowed_and_was_not_lent_to_its_borrower_is_found() {
    let borrowed = |lent: u64, to: u64| {
        let (mut a, mut b) = scripts();
        a.send_as(Record { peer: to, id: id(1), sequence: lent, ..Record::default() }, (10, 20));
        b.add(Kind::Borrowed, Record { peer: SENDER, id: id(1), bytes: 7, ..Record::default() });
        found([a, b])
    };
    assert_eq!(borrowed(7, RECEIVER), []);
    assert_eq!([borrowed(8, RECEIVER), borrowed(7, SENDER)], [[Check::Loans]; 2]);
}
