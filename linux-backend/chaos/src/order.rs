//! Messages come in the order in which they were sent.
//!
//! What was received as the oldest must come behind everything that was sent before it. What was received as
//! the most urgent must come behind everything sent before it that is at least as urgent.
//!
//! Messages to a name that is handed over move to the end of the next owner's queue. They keep their order
//! among themselves, so each such name is looked at by itself. What had come by lane to somebody who gave such a name up and
//! has it again has not moved, and nobody else knows which way it came: its order is not looked at.

use std::collections::{BTreeMap, HashMap};

use crate::check::{Check, Receipt, Round, Sending};
use crate::history::Id;
use crate::record::{How, MessageId};

pub(crate) fn check(round: &mut Round) {
    let mut found = Vec::new();
    let mut made = [0_u64; 2];
    for (own, connection) in &round.connections {
        let mut lines: HashMap<u32, Line> = HashMap::new();
        for receipt in &connection.receipts {
            let Some(sending) = round.sendings.get(&receipt.id) else { continue };
            if matches!(receipt.how, How::Answer | How::Slot) {
                continue;
            }
            if sending.may_move() && is_from_before(round, connection.process, sending, receipt) {
                continue;
            }
            // A monitor's copies are made at SEND.
            let name = if receipt.how != How::Copy && sending.may_move() { sending.record.name } else { 0 };
            let line = lines.entry(name).or_default();
            for (check, other) in line.admit(receipt, sending, &mut made) {
                let text = format!(
                    "connection {own} received {} after {}, which was sent later",
                    Id(receipt.id),
                    Id(other)
                );
                let others = [connection.process, (other.client, other.incarnation)];
                found.push((check, receipt.id, others, text));
            }
        }
    }
    *round.verdict.tally.checks.entry(Check::GlobalOrder).or_default() += made[0];
    *round.verdict.tally.checks.entry(Check::SenderOrder).or_default() += made[1];
    for (check, id, others, text) in found {
        round.find(check, id, &others, text);
    }
    sequences(round);
}

/// Whether a message was sent while its receiver owned the name another time than now.
fn is_from_before(round: &Round, process: (u32, u32), sending: &Sending, receipt: &Receipt) -> bool {
    let (began, returned) = (sending.record.began_at, sending.returned.map_or(u64::MAX, |(at, ..)| at));
    let spans = round.owners.get(&process).and_then(|owner| owner.spans.get(&sending.record.name));
    let met = |(from, to): &(u64, Option<u64>)| {
        *from <= returned && to.is_some_and(|to| to >= began && to < receipt.at)
    };
    receipt.how != How::Copy && spans.is_some_and(|spans| spans.iter().any(met))
}

/// The latest of what has come, as far as something later has to be behind it.
#[derive(Debug, Default)]
struct Line {
    /// Latest beginning of a SEND among those received as the oldest.
    oldest: Option<(u64, MessageId)>,
    /// The same for each priority among those received as the most urgent.
    urgent: BTreeMap<i64, (u64, MessageId)>,
    /// Of each process.
    by_sender: HashMap<(u32, u32), Latest>,
}

/// A process' latest message among those received as the oldest, and for each priority.
type Latest = (Option<MessageId>, BTreeMap<i64, MessageId>);

impl Line {
    /// Compares one more receipt with all before it; returns what it breaks.
    fn admit(
        &mut self,
        receipt: &Receipt,
        sending: &Sending,
        made: &mut [u64; 2],
    ) -> Vec<(Check, MessageId)> {
        let mut broken = Vec::new();
        let (id, priority) = (receipt.id, sending.record.priority);
        let by_priority = receipt.how == How::Urgent;
        let before = self.urgent.range(priority..).map(|(_, latest)| *latest).chain(self.oldest);
        if let Some((returned_at, ..)) = sending.returned
            && let Some((began_at, other)) = before.max()
        {
            made[0] += 1;
            if returned_at < began_at {
                broken.push((Check::GlobalOrder, other));
            }
        }
        let (oldest, urgent) = self.by_sender.entry((id.client, id.incarnation)).or_default();
        let before = urgent.range(priority..).map(|(_, latest)| *latest).chain(*oldest);
        if let Some(other) = before.max() {
            made[1] += 1;
            if id < other {
                broken.push((Check::SenderOrder, other));
            }
        }
        let begun = (sending.record.began_at, id);
        if by_priority {
            let latest = self.urgent.entry(priority).or_insert(begun);
            *latest = begun.max(*latest);
            let latest = urgent.entry(priority).or_insert(id);
            *latest = id.max(*latest);
        } else {
            self.oldest = self.oldest.max(Some(begun));
            *oldest = (*oldest).max(Some(id));
        }
        broken
    }
}

/// Whoever is told the sequence number of a message is told the same, and later messages have higher ones.
fn sequences(round: &mut Round) {
    let mut told: HashMap<(u32, u32), BTreeMap<MessageId, u64>> = HashMap::new();
    let mut found = Vec::new();
    let mut made = 0;
    for receipt in round.connections.values().flat_map(|connection| &connection.receipts) {
        if receipt.sequence == 0 || round.is_repeated_copy(receipt) {
            continue;
        }
        let sender = told.entry((receipt.id.client, receipt.id.incarnation)).or_default();
        let first = *sender.entry(receipt.id).or_insert(receipt.sequence);
        if first != receipt.sequence {
            let text = format!("{} has sequence number {first} and {}", Id(receipt.id), receipt.sequence);
            found.push((receipt.id, text));
        }
    }
    for messages in told.values() {
        for ((id, number), (next, next_number)) in messages.iter().zip(messages.iter().skip(1)) {
            made += 1;
            if number >= next_number {
                let text = format!(
                    "{} has sequence number {number}, and {} after it {next_number}",
                    Id(*id),
                    Id(*next)
                );
                found.push((*next, text));
            }
        }
    }
    *round.verdict.tally.checks.entry(Check::Sequence).or_default() += made;
    for (id, text) in found {
        round.find(Check::Sequence, id, &[], text);
    }
}
