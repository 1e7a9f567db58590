//! What is checked from outside, over the bus: the conductor's own connection.

use std::collections::{HashMap, HashSet};

use kdbus_core::abi::ListFlags;
use kdbus_core::client::{Connection, Hello, Notification, Rule};
use kdbus_linux::local::LocalTransport;

use crate::check::{Check, Finding, Numbers};
use crate::client::{Bus, Outcome};

/// The conductor's connection, which sees ends and asks for numbers.
#[derive(Debug)]
pub struct Watch {
    bus: Bus,
    /// How often the end of each connection was announced.
    ends: HashMap<u64, u32>,
    lost: u64,
    /// What the histories of all rounds say of each connection that lives.
    numbers: HashMap<u64, Numbers>,
    /// What each of them had sent past the daemon before this round.
    past: HashMap<u64, u64>,
    /// Messages that were sent past the daemon, by those who came to rest.
    pub by_lane: u64,
}

impl Watch {
    /// A connection that hears of every end.
    ///
    /// # Errors
    ///
    /// What connecting reports.
    pub fn new(transport: LocalTransport) -> Outcome<Self> {
        let bus: Bus = Connection::with_capacities(transport, &Hello::new())?;
        bus.add_match(1, &[Rule::IdRemove(None)])?;
        Ok(Self {
            bus,
            ends: HashMap::new(),
            lost: 0,
            numbers: HashMap::new(),
            past: HashMap::new(),
            by_lane: 0,
        })
    }

    /// Takes in what was announced.
    ///
    /// # Errors
    ///
    /// If the bus is gone.
    pub fn listen(&mut self) -> Outcome<()> {
        while let Some(message) = self.bus.try_recv()? {
            if let Some(Notification::IdRemove { id, .. }) = message.notification() {
                *self.ends.entry(id).or_default() += 1;
            }
        }
        self.lost += self.bus.take_lost();
        Ok(())
    }

    /// The dead of `ids` that the bus still knows, and the names they still have.
    ///
    /// Whoever asks after a process was waited for is answered after the daemon has seen its end.
    ///
    /// # Errors
    ///
    /// If the bus is gone.
    pub fn remains(&self, ids: &HashSet<u64>) -> Outcome<Vec<String>> {
        let all = ListFlags::UNIQUE | ListFlags::NAMES | ListFlags::ACTIVATORS | ListFlags::QUEUED;
        let listing = self.bus.list(all)?;
        let remains = listing.iter().filter(|peer| ids.contains(&peer.id)).map(|peer| {
            let names: Vec<_> = peer.metadata.names().map(|(_, name)| name).collect();
            format!("connection {} of a dead client is still listed, with {names:?}", peer.id)
        });
        Ok(remains.collect())
    }

    /// Compares the announcements with who ended in this round: everybody in `connections` who did not come to
    /// rest, `monitors` aside. Returns how many there were.
    pub fn announced(
        &mut self,
        connections: &HashMap<u64, Numbers>,
        monitors: &HashSet<u64>,
        findings: &mut Vec<Finding>,
    ) -> u64 {
        let mut made = 0;
        let mut find = |id: u64, text: String| {
            let text = format!("the end of connection {id} {text}");
            findings.push(Finding { check: Check::Announced, text, message: None, involved: Vec::new() });
        };
        for (id, numbers) in connections {
            let times = self.ends.get(id).copied().unwrap_or(0);
            made += 1;
            let expected = u32::from(!numbers.drained && !monitors.contains(id));
            // What was lost may have been about anybody.
            if times != expected && (times > expected || self.lost == 0) {
                find(*id, format!("was announced {times} times instead of {expected}"));
            }
        }
        for (id, times) in self.ends.drain().filter(|(id, _)| !connections.contains_key(id)) {
            if times > 1 {
                find(id, format!("was announced {times} times"));
            }
        }
        self.lost = 0;
        made
    }

    /// Compares what the daemon counts for everybody at rest with the histories. Returns how many there were.
    ///
    /// # Errors
    ///
    /// If the bus is gone.
    pub fn numbers(
        &mut self,
        connections: &HashMap<u64, Numbers>,
        dropped: u64,
        findings: &mut Vec<Finding>,
    ) -> Outcome<u64> {
        self.numbers.retain(|id, _| connections.get(id).is_some_and(|numbers| numbers.drained));
        self.past.retain(|id, _| self.numbers.contains_key(id));
        let mut made = 0;
        // What a client took out of shared memory, the daemon learns when it next has to do with that client's
        // queue. A call counts until then, so everybody's queue is looked at before anybody's calls.
        let resting = connections.iter().filter(|(_, numbers)| numbers.drained).map(|(id, _)| *id);
        for id in resting.chain([self.bus.id()]) {
            let _ = self.bus.transport().handle().stats(id);
        }
        for (id, round) in connections.iter().filter(|(_, numbers)| numbers.drained) {
            let sum = self.numbers.entry(*id).or_default();
            sum.sent += round.sent;
            sum.unknown += round.unknown;
            sum.received += round.received;
            sum.lost += round.lost;
            let mut wrong = Vec::new();
            match self.bus.transport().handle().stats(*id) {
                Err(error) => wrong.push(format!("no numbers: {error}")),
                Ok(report) => {
                    let stats = report.stats;
                    for (what, number) in [
                        ("messages wait", stats.queued),
                        ("bytes of the pool are charged", stats.pool_used),
                        ("slices are held", stats.slices),
                        ("calls are pending", stats.calls),
                    ] {
                        if number != 0 {
                            wrong.push(format!("at rest, {number} {what}"));
                        }
                    }
                    for holder in &report.holders {
                        if holder.messages != 0 || holder.size != 0 || holder.fds != 0 {
                            wrong.push(format!("at rest, it is occupied: {holder:?}"));
                        }
                    }
                    // The library answers calls of which it drops the message; nobody else writes that down.
                    if round.has_lanes {
                        let past = sum.sent.saturating_sub(stats.sent);
                        let before = self.past.insert(*id, past).unwrap_or(0);
                        self.by_lane += past.saturating_sub(before);
                    }
                    let least = if round.has_lanes { 0 } else { sum.sent };
                    if !(least..=sum.sent + sum.unknown + dropped).contains(&stats.sent) {
                        wrong
                            .push(format!("{} messages sent, {} of them written down", stats.sent, sum.sent));
                    }
                    // Answers to awaited calls and notifications for the library are received unseen.
                    if !round.has_lanes && stats.received < sum.received {
                        wrong.push(format!("{} messages queued, {} received", stats.received, sum.received));
                    }
                    if stats.lost != sum.lost {
                        wrong.push(format!("{} losses counted, {} reported", stats.lost, sum.lost));
                    }
                }
            }
            made += 1;
            findings.extend(wrong.into_iter().map(|text| Finding {
                check: Check::Numbers,
                text: format!("connection {id}: {text}"),
                message: None,
                involved: Vec::new(),
            }));
        }
        Ok(made)
    }
}
