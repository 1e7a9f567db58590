//! Calls end once, and by what they say.

use std::collections::{HashMap, HashSet};

use crate::check::{Check, Round};
use crate::history::Id;
use crate::record::{End, MessageId, Sort};

/// A reply that nobody waits for.
const EBADSLT: u32 = 57;

pub(crate) fn check(round: &mut Round) {
    let mut ids: Vec<_> = round.sendings.keys().copied().collect();
    ids.sort_unstable();
    let mut accepted: HashMap<MessageId, Vec<MessageId>> = HashMap::new();
    let mut failed = HashSet::new();
    for id in &ids {
        let sending = &round.sendings[id];
        if sending.sort != Sort::Reply {
            continue;
        }
        if sending.was_accepted() {
            accepted.entry(sending.record.answers).or_default().push(*id);
        } else if sending.cut.is_none() && sending.returned.is_none_or(|(_, result, _)| result != EBADSLT) {
            failed.insert(sending.record.answers);
        }
    }
    for id in &ids {
        let sending = round.sendings[id];
        if sending.sort.is_call() {
            ends(round, *id, failed.contains(id) || sending.drop_failed);
            deaths(round, *id);
            replies(round, *id, accepted.get(id).map_or(&[], Vec::as_slice));
        }
    }
}

/// An accepted call of somebody who lives on ends once.
///
/// One of which the reply was refused ends without a word: kdbus counts it as answered. That goes for the reply too which the
/// library sends in place of a callee that drops what it took in already; any other drop ends the call. Whoever dies over a reply by lane has
/// sent it or has not, and in any case its caller is told.
fn ends(round: &mut Round, id: MessageId, reply_failed: bool) {
    let call = round.sendings[&id];
    if call.sort != Sort::Call {
        return;
    }
    let lives = round.connections.get(&call.record.own).is_some_and(|caller| caller.drained);
    let expected = match call.returned {
        // It may have left with the call outstanding.
        Some((_, 0, _)) => u32::from(lives && !reply_failed)..=1,
        Some(_) => 0..=0,
        None => 0..=1,
    };
    round.made(Check::CallEnds);
    if !expected.contains(&call.ends) {
        let text = format!("call {} ended {} times", Id(id), call.ends);
        let receivers = round.receivers(id);
        round.find(Check::CallEnds, id, &receivers, text);
    }
}

/// Nobody is told of the death of somebody who lives on and has dropped nothing.
fn deaths(round: &mut Round, id: MessageId) {
    let call = round.sendings[&id];
    if call.end != Some(End::Dead) || call.record.name != 0 {
        return;
    }
    if !round.connections.contains_key(&call.record.peer) {
        return;
    }
    round.made(Check::Deaths);
    let callee = &round.connections[&call.record.peer];
    let dropped = if call.sort == Sort::Call { u64::from(call.drops) } else { callee.drops_of_waiting_calls };
    if callee.drained && dropped == 0 {
        let text =
            format!("call {} ended by the death of connection {}, which lives", Id(id), call.record.peer);
        let process = callee.process;
        round.find(Check::Deaths, id, &[process], text);
    }
}

/// Of the replies to a call, one at most is accepted, and that is the one by which the call ends.
fn replies(round: &mut Round, id: MessageId, accepted: &[MessageId]) {
    let call = round.sendings[&id];
    if accepted.is_empty() {
        return;
    }
    round.made(Check::Replies);
    let repliers: Vec<_> = accepted.iter().map(|reply| (reply.client, reply.incarnation)).collect();
    if accepted.len() > 1 {
        let text = format!("{} replies to call {} were accepted", accepted.len(), Id(id));
        return round.find(Check::Replies, id, &repliers, text);
    }
    let lives = round.connections.get(&call.record.own).is_some_and(|caller| caller.drained);
    let ended_otherwise = match (call.sort, call.end) {
        (_, Some(End::Reply)) => false,
        // Its process was stopped, or had no room: then it does not wait any more, and the bus does not know.
        (_, Some(End::Interrupted | End::Abandoned)) => false,
        // The caller's own clock decides, a moment after the bus has accepted the reply.
        (Sort::AwaitedCall, Some(End::TimedOut)) => false,
        // By lane, it waits a moment more for a reply that is on its way, and not for a callee that is stopped over it.
        (Sort::SyncCall, Some(End::TimedOut)) => {
            let returned = |id: &MessageId| round.sendings.get(id)?.returned.map(|(at, ..)| at);
            accepted.first().and_then(returned) < call.returned.map(|(at, ..)| at)
        }
        (Sort::Call, Some(_)) => true,
        (_, Some(_)) => true,
        // Without an end, the check of ends tells.
        (_, None) => false,
    };
    if lives && ended_otherwise {
        let end = call.end.map_or("nothing", End::text);
        let text = format!("a reply to call {} was accepted, and the call ended by {end}", Id(id));
        round.find(Check::Replies, id, &repliers, text);
    }
}
