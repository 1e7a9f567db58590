//! Nothing is lost that the spec keeps.

use crate::check::{Check, Owner, Round, Sending};
use crate::history::Id;
use crate::record::{MessageId, Sort};

pub(crate) fn check(round: &mut Round) {
    let mut ids: Vec<_> = round.sendings.keys().copied().collect();
    ids.sort_unstable();
    for id in &ids {
        kept(round, *id);
    }
    signals(round, &ids);
    monitors(round, &ids);
}

/// A message that was accepted is received or dropped by whoever lives on.
fn kept(round: &mut Round, id: MessageId) {
    let sending = round.sendings[&id];
    if !sending.was_accepted() || sending.sort.is_signal() {
        return;
    }
    let receivers = if sending.record.name == 0 {
        let Some(receiver) = round.connections.get(&sending.record.peer) else { return };
        // BYEBYE succeeds only if nothing waits.
        if !receiver.drained && !receiver.left {
            return;
        }
        // The caller may have given up just before; the calls' own check knows.
        if sending.sort == Sort::Reply
            && round.sendings.get(&sending.record.answers).is_some_and(|call| call.sort != Sort::Call)
        {
            return;
        }
        vec![receiver.process]
    } else {
        let owners: Vec<_> = round
            .owners
            .iter()
            .filter(|(_, owner)| owner.may_have_had(&sending))
            .map(|(process, _)| *process)
            .collect();
        if owners.iter().any(|process| !round.owners[process].kept_all(&sending)) {
            return;
        }
        owners
    };
    round.made(Check::Kept);
    if sending.receipts + sending.drops == 0 {
        let who = match receivers.as_slice() {
            [] => "nobody is known to have had the name".to_owned(),
            processes => {
                let names: Vec<_> =
                    processes.iter().map(|(client, process)| format!("{client}.{process}")).collect();
                format!("who could have it lives on: {}", names.join(", "))
            }
        };
        let text = format!("{} was accepted and is lost; {who}", Id(id));
        round.find(Check::Kept, id, &receivers, text);
    }
}

impl Owner {
    /// Whether this process may have owned the name while `sending` waited for its owner.
    fn may_have_had(&self, sending: &Sending) -> bool {
        let began = sending.record.began_at;
        // What may move can come to whoever owns the name later.
        let until =
            if sending.may_move() { u64::MAX } else { sending.returned.map_or(u64::MAX, |(at, ..)| at) };
        let spans = self.spans.get(&sending.record.name);
        spans.is_some_and(|spans| {
            spans.iter().any(|(from, to)| *from <= until && to.is_none_or(|to| to >= began))
        })
    }

    /// Whether nothing of what it had can be gone without a word.
    fn kept_all(&self, sending: &Sending) -> bool {
        let gave_up = self.gave_up_at.iter().any(|at| *at >= sending.record.began_at);
        // A message that does not fit when it moves is counted as lost.
        self.drained && !gave_up && !(sending.may_move() && self.lost > 0)
    }
}

/// Who subscribed to a topic before a signal was sent, and still did when SEND had returned, hears it or is told
/// that something is lost.
fn signals(round: &mut Round, ids: &[MessageId]) {
    let signals: Vec<_> = ids
        .iter()
        .map(|id| round.sendings[id])
        .filter(|sending| sending.sort == Sort::Broadcast && sending.was_accepted())
        .collect();
    let mut found = Vec::new();
    let mut made = 0;
    for (own, connection) in round.connections.iter().filter(|(_, connection)| connection.drained) {
        let heard: std::collections::HashSet<_> =
            connection.receipts.iter().map(|receipt| receipt.id).collect();
        let mut missing = Vec::new();
        for signal in &signals {
            let Some((returned_at, ..)) = signal.returned else { continue };
            let covers = |(from, to): &(u64, Option<u64>)| {
                *from < signal.record.began_at && to.is_none_or(|to| to > returned_at)
            };
            let spans = connection.matched.get(&signal.record.name);
            if spans.is_some_and(|spans| spans.iter().any(covers)) {
                made += 1;
                if !heard.contains(&signal.record.id) {
                    missing.push(signal.record.id);
                }
            }
        }
        if missing.len() as u64 > connection.lost {
            let text = format!(
                "connection {own} missed {} signals and was told of {} losses; the first is {}",
                missing.len(),
                connection.lost,
                Id(missing[0])
            );
            found.push((missing[0], connection.process, text));
        }
    }
    *round.verdict.tally.checks.entry(Check::Signals).or_default() += made;
    for (id, process, text) in found {
        round.find(Check::Signals, id, &[process], text);
    }
}

/// A monitor that was there before a message was sent sees it or is told that something is lost, and it sees none that
/// had been sent before it came, by whatever way.
fn monitors(round: &mut Round, ids: &[MessageId]) {
    let mut found = Vec::new();
    let mut made = 0;
    for (own, monitor) in
        round.connections.iter().filter(|(_, monitor)| monitor.is_monitor && monitor.drained)
    {
        let seen: std::collections::HashSet<_> = monitor.receipts.iter().map(|receipt| receipt.id).collect();
        let mut missing = Vec::new();
        for id in ids {
            let sending = &round.sendings[id];
            if sending.was_accepted() && sending.record.began_at > monitor.hello_at {
                made += 1;
                if !seen.contains(id) {
                    missing.push(*id);
                }
            }
        }
        for id in &seen {
            let Some(sending) = round.sendings.get(id) else { continue };
            made += 1;
            if sending.returned.is_some_and(|(at, ..)| at < monitor.hello_began_at) {
                let text = format!("monitor {own} was shown {}, which had been sent before", Id(*id));
                found.push((*id, monitor.process, text));
            }
        }
        if missing.len() as u64 > monitor.lost {
            let text = format!(
                "monitor {own} missed {} messages and was told of {} losses; the first is {}",
                missing.len(),
                monitor.lost,
                Id(missing[0])
            );
            found.push((missing[0], monitor.process, text));
        }
    }
    *round.verdict.tally.checks.entry(Check::Monitors).or_default() += made;
    for (id, process, text) in found {
        round.find(Check::Monitors, id, &[process], text);
    }
}
