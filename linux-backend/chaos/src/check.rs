//! What the histories of one round must say together.
//!
//! A client that was killed may have done one more thing than it has written, and its messages are lost with it.
//! Whoever lived through the round and emptied its queue has no such excuse.

use std::collections::{BTreeMap, HashMap};

use crate::client::ACTIVATED;
use crate::history::{History, Id};
use crate::point::Point;
use crate::record::{End, How, Kind, MessageId, Record, Sort, codes};
use crate::{calls, loss, order};

codes! {
    /// What is checked, of histories and from outside.
    Check {
        /// A message is received by one connection, once.
        Once = "nothing twice",
        /// What is received was sent, to whom it says, by whom it says, and not refused.
        Sent = "nothing that was not sent",
        /// What one sender sends comes in that order.
        SenderOrder = "order of each sender",
        /// What was sent after another SEND had returned comes after it.
        GlobalOrder = "order across senders",
        /// Sequence numbers increase, and are the same for all who receive a message.
        Sequence = "sequence numbers",
        /// A message whose SEND succeeded reaches who lives on.
        Kept = "no message lost",
        /// A signal reaches whoever subscribed to it and lives on, or is counted as lost.
        Signals = "no signal lost unseen",
        /// A monitor sees every message, or is told how many it lost.
        Monitors = "no copy lost unseen",
        /// A call ends once.
        CallEnds = "one end of each call",
        /// At most one reply to a call is accepted, and that one the caller gets.
        Replies = "one reply to each call",
        /// No call ends by time before its deadline.
        Deadlines = "no time-out too early",
        /// Nobody is told of a death that was none.
        Deaths = "no false death",
        /// What is borrowed was lent to whoever borrows it, as long as it was sent.
        Loans = "nothing borrowed that was not lent",
        /// No client saw what must not be.
        Clients = "clients content",
        /// Names of the dead are free, and the dead are not listed.
        Names = "names of the dead free",
        /// Each end of a connection is announced once.
        Announced = "each end announced once",
        /// The daemon's numbers fit the histories, and nothing waits or is held at rest.
        Numbers = "queues and pools add up",
        /// The daemon has no more descriptors than before anybody came.
        Descriptors = "no descriptor left",
        /// The daemon has no more mappings than before anybody came.
        Mappings = "no mapping left",
        /// The daemon has no more memory than at the start of the steady state, but for a stated slack.
        Memory = "memory flat",
        /// Of a client that was killed inside of SEND by lane, the message is there as a whole or not at all.
        Cut = "whole or not at all",
        /// Each point to which clients are sent is reached.
        Points = "points reached",
        /// Everybody comes to rest and leaves.
        Progress = "nobody hangs",
    }
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Which rule it breaks.
    pub check: Check,
    /// What was seen.
    pub text: String,
    /// The message it is about, if it is about one.
    pub message: Option<MessageId>,
    /// The client processes that are involved.
    pub involved: Vec<(u32, u32)>,
}

/// What a round's histories count up to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that tell of something being done.
    pub operations: u64,
    /// Messages sent, by kind: accepted and refused.
    pub sent: BTreeMap<Sort, [u64; 2]>,
    /// Messages received, the bus' own among them.
    pub received: u64,
    /// Copies that monitors received.
    pub copies: u64,
    /// Messages dropped unread.
    pub dropped: u64,
    /// Losses that were reported.
    pub lost: u64,
    /// Calls by their ends.
    pub calls: BTreeMap<End, u64>,
    /// Lanes that were open at the end of the round.
    pub lanes: u64,
    /// How often each check was made.
    pub checks: BTreeMap<Check, u64>,
}

/// What the histories say of one connection, for comparison with the daemon's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Messages that the bus accepted from it.
    pub sent: u64,
    /// Messages of it of which it is not known whether the bus accepted them.
    pub unknown: u64,
    /// Messages that were received out of its queue.
    pub received: u64,
    /// Losses that were reported to it.
    pub lost: u64,
    /// It can send and receive past the daemon, which does not count that.
    pub has_lanes: bool,
    /// It emptied its queue at the end of the round.
    pub drained: bool,
}

/// The result of checking one round.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What must not be.
    pub findings: Vec<Finding>,
    /// Counts.
    pub tally: Tally,
    /// Each connection in numbers.
    pub connections: HashMap<u64, Numbers>,
}

/// Checks the histories of one round against each other. In `O(n log n)` for `n` records.
#[must_use]
pub fn check(histories: &[History]) -> Verdict {
    let mut round = Round::default();
    for history in histories {
        round.read(history);
    }
    round.receipts(histories);
    round.once();
    round.cut();
    loss::check(&mut round);
    calls::check(&mut round);
    order::check(&mut round);
    round.verdict
}

/// A message, as its sender tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sending {
    pub(crate) record: Record,
    pub(crate) sort: Sort,
    /// When SEND returned, the errno, and how the call ended if it waited.
    pub(crate) returned: Option<(u64, u32, Option<End>)>,
    pub(crate) receipts: u32,
    pub(crate) drops: u32,
    /// Whether its receiver may have answered it as dropped without success.
    pub(crate) drop_failed: bool,
    pub(crate) copies: u32,
    /// Ends of a call that does not wait.
    pub(crate) ends: u32,
    pub(crate) end: Option<End>,
    /// Its sender died inside of SEND by lane: whether it was committed.
    pub(crate) cut: Option<bool>,
}

/// A message, as a receiver tells.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Receipt {
    pub(crate) how: How,
    pub(crate) at: u64,
    pub(crate) id: MessageId,
    pub(crate) sequence: u64,
}

/// A connection, as its client tells.
#[derive(Clone, Debug, Default)]
pub(crate) struct Connection {
    pub(crate) process: (u32, u32),
    /// When HELLO began, of a monitor that joined in this round, and when it had returned.
    pub(crate) hello_began_at: u64,
    pub(crate) hello_at: u64,
    pub(crate) drained: bool,
    pub(crate) left: bool,
    pub(crate) is_monitor: bool,
    pub(crate) lost: u64,
    pub(crate) drops_of_waiting_calls: u64,
    pub(crate) receipts: Vec<Receipt>,
    /// When each topic was subscribed to: from, and to if it ended.
    pub(crate) matched: HashMap<u32, Vec<(u64, Option<u64>)>>,
}

/// A process, as what it may have owned is concerned.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner {
    /// When it may have had each name: from, and to if it ended.
    pub(crate) spans: HashMap<u32, Vec<(u64, Option<u64>)>>,
    pub(crate) drained: bool,
    /// When its connections ended that it gave up.
    pub(crate) gave_up_at: Vec<u64>,
    pub(crate) lost: u64,
}

/// Everything that the histories of one round say.
#[derive(Debug, Default)]
pub(crate) struct Round {
    pub(crate) sendings: HashMap<MessageId, Sending>,
    pub(crate) connections: HashMap<u64, Connection>,
    pub(crate) owners: HashMap<(u32, u32), Owner>,
    by_cookie: HashMap<(u64, u64), MessageId>,
    pub(crate) verdict: Verdict,
}

impl Round {
    pub(crate) fn made(&mut self, check: Check) {
        *self.verdict.tally.checks.entry(check).or_default() += 1;
    }

    pub(crate) fn find(&mut self, check: Check, message: MessageId, others: &[(u32, u32)], text: String) {
        let mut involved = others.to_vec();
        if message.serial != 0 {
            involved.push((message.client, message.incarnation));
        }
        involved.sort_unstable();
        involved.dedup();
        let message = (message.serial != 0).then_some(message);
        self.verdict.findings.push(Finding { check, text, message, involved });
    }

    /// Takes in what a history says about sending, names, topics and the connection's own fate.
    fn read(&mut self, history: &History) {
        let process = (history.client, history.incarnation);
        self.owners.entry(process).or_default();
        self.made(Check::Clients);
        let mut in_flight = None;
        for record in &history.records {
            let Some(kind) = Kind::from_code(record.kind) else { continue };
            match kind {
                Kind::Sending => in_flight = Some(record.id),
                Kind::Sent => in_flight = None,
                // If it goes on, SEND returns, which says more.
                Kind::At => self.read_point(record, in_flight),
                _ => {}
            }
            self.verdict.tally.operations +=
                u64::from(!matches!(kind, Kind::Sending | Kind::Dropping | Kind::Quiet | Kind::Drained));
            if record.own != 0 {
                self.connections.entry(record.own).or_default().process = process;
            }
            match kind {
                Kind::Hello => {
                    // The old connection of one that reconnects ends when the new one is there.
                    let gave_up = self.owners.entry(process).or_default().gave_up_at.last_mut();
                    if let Some(at) = gave_up.filter(|at| **at == u64::MAX) {
                        *at = record.at;
                    }
                    let connection = self.connections.entry(record.own).or_default();
                    (connection.hello_began_at, connection.hello_at) = (record.began_at, record.at);
                    self.verdict.connections.entry(record.own).or_default().has_lanes |= record.bytes > 0;
                }
                Kind::Sending => self.read_sending(record),
                Kind::Sent => self.read_sent(record),
                Kind::CallEnded => {
                    let end = End::from_code(record.detail);
                    if let Some(end) = end {
                        *self.verdict.tally.calls.entry(end).or_default() += 1;
                    }
                    if let Some(call) = self.sendings.get_mut(&record.id) {
                        call.ends += 1;
                        call.end = end;
                    }
                    if end == Some(End::TimedOut) && record.deadline != 0 {
                        self.check_deadline(record);
                    }
                }
                Kind::Acquiring | Kind::NotOwner => {
                    let spans = self.owners.entry(process).or_default().spans.entry(record.name).or_default();
                    let is_open = spans.last().is_some_and(|(_, to)| to.is_none());
                    match kind {
                        Kind::Acquiring if !is_open => spans.push((record.began_at, None)),
                        Kind::NotOwner if is_open => {
                            spans.last_mut().expect("it is open").1 = Some(record.at)
                        }
                        _ => {}
                    }
                }
                Kind::Matched | Kind::Unmatching => {
                    let spans = self
                        .connections
                        .entry(record.own)
                        .or_default()
                        .matched
                        .entry(record.name)
                        .or_default();
                    match kind {
                        Kind::Matched => spans.push((record.at, None)),
                        _ => spans.iter_mut().for_each(|span| span.1 = span.1.or(Some(record.at))),
                    }
                }
                Kind::Lost => {
                    self.verdict.tally.lost += record.bytes;
                    self.connections.entry(record.own).or_default().lost += record.bytes;
                    self.owners.entry(process).or_default().lost += record.bytes;
                }
                Kind::Left => self.connections.entry(record.own).or_default().left = true,
                Kind::Ending => self.owners.entry(process).or_default().gave_up_at.push(u64::MAX),
                Kind::Drained => {
                    self.verdict.tally.lanes += record.bytes;
                    self.connections.entry(record.own).or_default().drained = true;
                    self.owners.entry(process).or_default().drained = true;
                }
                Kind::Trouble => {
                    let text = format!("client {}.{} saw what must not be", process.0, process.1);
                    self.find(Check::Clients, record.id, &[process], text);
                }
                Kind::Received
                | Kind::Borrowed
                | Kind::Dropping
                | Kind::Dropped
                | Kind::Acquired
                | Kind::At
                | Kind::Quiet => {}
            }
        }
    }

    fn check_deadline(&mut self, record: &Record) {
        self.made(Check::Deadlines);
        if record.at < record.deadline {
            let early = record.deadline - record.at;
            let text = format!("call {} ended by time {early} ns too early", Id(record.id));
            self.find(Check::Deadlines, record.id, &[], text);
        }
    }

    fn read_sending(&mut self, record: &Record) {
        let Some(sort) = Sort::from_code(record.detail) else { return };
        let sending = Sending {
            record: *record,
            sort,
            returned: None,
            receipts: 0,
            drops: 0,
            drop_failed: false,
            copies: 0,
            ends: 0,
            end: None,
            cut: None,
        };
        self.sendings.insert(record.id, sending);
        if !sort.is_signal() {
            self.by_cookie.insert((record.own, record.cookie), record.id);
        }
    }

    /// What a client that stops inside of SEND has sent or not, in case it goes no further.
    fn read_point(&mut self, record: &Record, in_flight: Option<MessageId>) {
        let commits = Point::from_code(record.detail).and_then(Point::commits);
        let Some(sending) = in_flight.and_then(|id| self.sendings.get_mut(&id)) else { return };
        // Others wait in the library, which may send something of its own meanwhile.
        if matches!(sending.sort, Sort::Plain | Sort::Call | Sort::Reply) {
            sending.cut = commits;
            sending.returned = commits.filter(|commits| *commits).map(|_| (record.at, 0, None));
        }
    }

    fn read_sent(&mut self, record: &Record) {
        let Some(sending) = self.sendings.get_mut(&record.id) else { return };
        let waits = matches!(sending.sort, Sort::SyncCall | Sort::AwaitedCall);
        let end = if waits { End::from_code(record.sequence as u32) } else { None };
        sending.cut = None;
        sending.returned = Some((record.at, record.result, end));
        sending.end = sending.end.or(end);
        let sort = sending.sort;
        if let Some(end) = end {
            *self.verdict.tally.calls.entry(end).or_default() += 1;
        }
        self.verdict.tally.sent.entry(sort).or_default()[usize::from(record.result != 0)] += 1;
        let numbers = self.verdict.connections.entry(record.own).or_default();
        match end {
            // A deadline that has passed before the call is sent looks the same.
            Some(End::TimedOut | End::Interrupted | End::Abandoned) => numbers.unknown += 1,
            // So does a reply for which the caller had no room.
            Some(End::NotSent) => numbers.unknown += 1,
            _ if record.result != 0 => {}
            _ => numbers.sent += 1,
        }
        if end == Some(End::TimedOut) {
            self.check_deadline(record);
        }
    }

    /// Takes in what was received and dropped, now that everything that was sent is known.
    fn receipts(&mut self, histories: &[History]) {
        for history in histories {
            let process = (history.client, history.incarnation);
            for record in &history.records {
                match Kind::from_code(record.kind) {
                    Some(Kind::Received) => self.read_received(process, record),
                    Some(Kind::Borrowed) => self.read_borrowed(process, record),
                    Some(Kind::Dropping) => {
                        if let Some(id) = self.by_cookie.get(&(record.peer, record.cookie)) {
                            let sending = self.sendings.get_mut(id).expect("it is in both tables");
                            sending.drop_failed = true;
                        }
                    }
                    Some(Kind::Dropped) => {
                        self.verdict.tally.dropped += 1;
                        self.verdict.connections.entry(record.own).or_default().received += 1;
                        match self.by_cookie.get(&(record.peer, record.cookie)) {
                            Some(id) => {
                                let sending = self.sendings.get_mut(id).expect("it is in both tables");
                                sending.drops += 1;
                                sending.drop_failed = record.result != 0;
                            }
                            None => {
                                let conn = self.connections.entry(record.own).or_default();
                                conn.drops_of_waiting_calls += 1;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        for (id, connection) in &self.connections {
            let numbers = self.verdict.connections.entry(*id).or_default();
            numbers.lost = connection.lost;
            numbers.drained = connection.drained;
        }
    }

    /// A buffer that was read, and held what its message says. Until it is given back it stays so, or a client has seen trouble.
    fn read_borrowed(&mut self, process: (u32, u32), record: &Record) {
        self.made(Check::Loans);
        let sent = self.sendings.get(&record.id).map(|sending| sending.record);
        let was_lent = sent.is_some_and(|sent| {
            (sent.own, sent.peer, sent.sequence) == (record.peer, record.own, record.bytes)
        });
        if !was_lent {
            let text =
                format!("connection {} borrowed what {} did not lend to it", record.own, Id(record.id));
            self.find(Check::Loans, record.id, &[process], text);
        }
    }

    fn read_received(&mut self, process: (u32, u32), record: &Record) {
        let Some(how) = How::from_code(record.detail) else { return };
        match how {
            How::Copy => self.verdict.tally.copies += 1,
            _ => self.verdict.tally.received += 1,
        }
        if matches!(how, How::Oldest | How::Urgent) {
            self.verdict.connections.entry(record.own).or_default().received += 1;
        }
        let connection = self.connections.entry(record.own).or_default();
        connection.is_monitor |= how == How::Copy;
        if record.id.serial == 0 {
            return;
        }
        connection.receipts.push(Receipt { how, at: record.at, id: record.id, sequence: record.sequence });
        self.made(Check::Sent);
        let Some(sending) = self.sendings.get_mut(&record.id) else {
            let text = format!("connection {} received {}, which nobody sent", record.own, Id(record.id));
            return self.find(Check::Sent, record.id, &[process], text);
        };
        match how {
            How::Copy => sending.copies += 1,
            _ => sending.receipts += 1,
        }
        let sent = *sending;
        let wrong = if sent.record.own != record.peer {
            Some(format!("says it is from connection {}, but {} sent it", record.peer, sent.record.own))
        } else if sent.record.bytes != record.bytes || sent.record.priority != record.priority {
            Some("has another length or priority than was sent".to_owned())
        } else if sent.record.answers != record.answers {
            Some("answers another call than it was sent for".to_owned())
        } else if how != How::Copy && !sent.may_be_received_by(record) {
            Some("was sent to somebody else".to_owned())
        } else if how != How::Copy && sent.was_refused() {
            Some(format!(
                "was refused to its sender, errno {}",
                sent.returned.map_or(0, |(_, result, _)| result)
            ))
        } else {
            None
        };
        if let Some(wrong) = wrong {
            let text = format!("what connection {} received as {} {wrong}", record.own, Id(record.id));
            self.find(Check::Sent, record.id, &[process], text);
        }
    }
}

impl Round {
    /// Every message is received or dropped once at most, and a signal once by each.
    fn once(&mut self) {
        let ids: Vec<_> = self.sendings.keys().copied().collect();
        for id in ids {
            let sending = self.sendings[&id];
            if sending.sort == Sort::Broadcast {
                continue;
            }
            self.made(Check::Once);
            let times = sending.receipts + sending.drops;
            if times > 1 {
                let receivers = self.receivers(id);
                let text = format!("{} was received or dropped {times} times", Id(id));
                self.find(Check::Once, id, &receivers, text);
            }
        }
        let mut twice = Vec::new();
        for (own, connection) in &self.connections {
            let mut seen = std::collections::HashSet::new();
            let copied = |receipt: &&Receipt| !self.is_repeated_copy(receipt) && !seen.insert(receipt.id);
            for receipt in connection.receipts.iter().filter(copied) {
                let text = format!("{} came twice to connection {own}", Id(receipt.id));
                twice.push((receipt.id, connection.process, text));
            }
        }
        for (id, process, text) in twice {
            self.find(Check::Once, id, &[process], text);
        }
    }

    /// What was not committed when its sender died is nowhere. (What was is kept as if SEND had returned.)
    fn cut(&mut self) {
        let cut = self.sendings.iter().filter_map(|(id, sending)| Some((*id, *sending, sending.cut?)));
        for (id, sending, is_committed) in cut.collect::<Vec<_>>() {
            self.made(Check::Cut);
            let times = sending.receipts + sending.drops + sending.copies;
            if !is_committed && times > 0 {
                let receivers = self.receivers(id);
                let text = format!("{} was received {times} times, and its sender died before", Id(id));
                self.find(Check::Cut, id, &receivers, text);
            }
        }
    }

    /// Whether this may come again: a message that waits for room is sent until it succeeds, and monitors see
    /// each try.
    pub(crate) fn is_repeated_copy(&self, receipt: &Receipt) -> bool {
        let sort = self.sendings.get(&receipt.id).map(|sending| sending.sort);
        receipt.how == How::Copy && sort == Some(Sort::WhenRoom)
    }

    /// The processes that received a message.
    pub(crate) fn receivers(&self, id: MessageId) -> Vec<(u32, u32)> {
        let has = |connection: &&Connection| connection.receipts.iter().any(|receipt| receipt.id == id);
        self.connections.values().filter(has).map(|connection| connection.process).collect()
    }
}

impl Sending {
    fn may_be_received_by(&self, receipt: &Record) -> bool {
        match self.sort {
            Sort::Broadcast => true,
            _ if self.record.name != 0 && !self.sort.is_signal() => receipt.name == self.record.name,
            _ => self.record.peer == receipt.own,
        }
    }

    /// SEND has failed for certain. A waiting call may fail with the error of its reply.
    fn was_refused(&self) -> bool {
        let failed = self.returned.is_some_and(|(_, result, _)| result != 0);
        failed && !matches!(self.sort, Sort::SyncCall | Sort::AwaitedCall)
    }

    /// SEND has succeeded for certain.
    pub(crate) fn was_accepted(&self) -> bool {
        self.returned.is_some_and(|(_, result, end)| result == 0 && end.is_none())
    }

    /// Whether it may move from one owner of its name to the next, to the end of the queue there.
    pub(crate) fn may_move(&self) -> bool {
        !self.sort.is_signal() && self.record.name as usize > ACTIVATED
    }
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
