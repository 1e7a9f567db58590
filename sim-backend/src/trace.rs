//! What happened in a run: a timeline for a trace viewer, a log of messages, and latencies.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use hdrhistogram::Histogram;
use kdbus_core::Instant;
use kdbus_core::abi::Errno;
use serde_json::{Value, json};

use crate::fault::Fault;

/// The longest latency that is told apart: one minute.
const LONGEST_NS: u64 = 60_000_000_000;

/// A message as its sender handed it over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// Id of the sender.
    pub from: u64,
    /// Id of the receiver; 0 for the owner of a name, all ones for everybody.
    pub to: u64,
    /// The sender's number for it.
    pub cookie: u64,
    /// Its priority; lower is more urgent.
    pub priority: i64,
    /// Bytes of payload.
    pub bytes: u64,
}

/// What became of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    Sent,
    Refused(Errno),
    Received { at: Instant, by: String, id: u64 },
}

/// A line of the log.
#[derive(Clone, Debug)]
struct Logged {
    message: Message,
    sender: String,
    sent_at: Instant,
    fate: Fate,
}

/// What a run writes down. It grows with the run: for minutes, not for hours.
#[derive(Debug, Default)]
pub struct Trace {
    /// Events as the trace viewer takes them.
    events: Vec<Value>,
    log: Vec<Logged>,
    /// Where the last message of a sender with a cookie stands in the log.
    places: BTreeMap<(u64, u64), usize>,
    latencies: BTreeMap<(String, String), Latencies>,
}

#[derive(Debug)]
struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("three digits between 1 and a constant"))
    }
}

/// Microseconds with three digits behind the point: exact, so that equal runs give equal text.
fn micros(ns: u64) -> Value {
    let text = format!("{}.{:03}", ns / 1000, ns % 1000);
    serde_json::from_str(&text).unwrap_or_else(|_| json!(ns / 1000))
}

impl Trace {
    /// Nothing has happened.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn ran(&mut self, core: usize, task: &str, begun: Instant, ended: Instant) {
        let (ts, dur) = (micros(begun.as_nanos()), micros(ended.since(begun).as_nanos() as u64));
        self.events.push(
            json!({"name": task, "ph": "X", "ts": ts, "dur": dur, "pid": 1, "tid": core, "cat": "task"}),
        );
    }

    pub(crate) fn fault(&mut self, at: Instant, fault: &Fault) {
        let ts = micros(at.as_nanos());
        self.events.push(json!({"name": fault.to_string(), "ph": "i", "s": "g", "ts": ts, "pid": 1, "tid": 0, "cat": "fault"}));
    }

    pub(crate) fn queue(&mut self, at: Instant, of: &str, queued: usize) {
        let ts = micros(at.as_nanos());
        self.events.push(json!({"name": format!("queue of {of}"), "ph": "C", "ts": ts, "pid": 2, "args": {"messages": queued}}));
    }

    pub(crate) fn sent(&mut self, at: Instant, sender: &str, message: Message, refused: Option<Errno>) {
        let fate = refused.map_or(Fate::Sent, Fate::Refused);
        if refused.is_none() {
            self.places.insert((message.from, message.cookie), self.log.len());
            let name = format!("message {}", message.cookie);
            let id = format!("{}.{}", message.from, message.cookie);
            let ts = micros(at.as_nanos());
            self.events.push(json!({"name": name, "ph": "b", "id": id, "ts": ts, "pid": 3, "tid": 0, "cat": "message",
                "args": {"from": sender, "to": message.to, "priority": message.priority, "bytes": message.bytes}}));
        }
        self.log.push(Logged { message, sender: sender.to_owned(), sent_at: at, fate });
    }

    pub(crate) fn received(&mut self, at: Instant, by: &str, from: u64, cookie: u64, id: u64) {
        // What the bus itself says was sent by nobody.
        let Some(place) = self.places.get(&(from, cookie)) else { return };
        let first = self.log[*place].clone();
        let way = (first.sender.clone(), by.to_owned());
        let latency = at.since(first.sent_at).as_nanos() as u64;
        self.latencies.entry(way).or_default().0.saturating_record(latency);
        let ts = micros(at.as_nanos());
        self.events
            .push(json!({"name": format!("message {cookie}"), "ph": "e", "id": format!("{from}.{cookie}"),
            "ts": ts, "pid": 3, "tid": 0, "cat": "message", "args": {"by": by}}));
        let fate = Fate::Received { at, by: by.to_owned(), id };
        match &mut self.log[*place] {
            open if open.fate == Fate::Sent => open.fate = fate,
            // A broadcast: one line for each that receives it.
            _ => self.log.push(Logged { fate, ..first }),
        }
    }

    /// The latency from each sender to each receiver, from SEND until RECV has returned, in nanoseconds.
    pub fn latencies(&self) -> impl Iterator<Item = (&str, &str, &Histogram<u64>)> {
        self.latencies.iter().map(|((from, to), latencies)| (from.as_str(), to.as_str(), &latencies.0))
    }

    /// The timeline in the trace event format, which Perfetto and `chrome://tracing` read: what ran on each core,
    /// how many messages waited, and from when until when each message was under way.
    #[must_use]
    pub fn timeline(&self) -> String {
        let names = [(1, "cores"), (2, "queues"), (3, "messages")].map(|(pid, name)| {
            json!({"name": "process_name", "ph": "M", "pid": pid, "tid": 0, "args": {"name": name}})
        });
        let events: Vec<&Value> = names.iter().chain(&self.events).collect();
        json!({"traceEvents": events, "displayTimeUnit": "ns"}).to_string()
    }

    /// A line for each message and receiver: when it was sent, by whom, to whom, and what became of it. Times are
    /// nanoseconds of the virtual clock.
    #[must_use]
    pub fn log(&self) -> String {
        let mut text = String::from("sent_at sender from to cookie priority bytes fate\n");
        for Logged { message, sender, sent_at, fate } in &self.log {
            let Message { from, to, cookie, priority, bytes } = message;
            let to = match *to {
                0 => "name".to_owned(),
                u64::MAX => "all".to_owned(),
                to => to.to_string(),
            };
            let _ = write!(text, "{} {sender} {from} {to} {cookie} {priority} {bytes} ", sent_at.as_nanos());
            let _ = match fate {
                Fate::Sent => writeln!(text, "waits"),
                Fate::Refused(errno) => writeln!(text, "refused {errno}"),
                Fate::Received { at, by, id } => {
                    writeln!(text, "received by {by} {id} after {}", at.since(*sent_at).as_nanos())
                }
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ns: u64) -> Instant {
        Instant::from_nanos(ns)
    }

    fn message(cookie: u64) -> Message {
        Message { from: 1, to: 2, cookie, priority: -3, bytes: 64 }
    }

    #[test]
    fn the_log_has_the_fate_of_each_message() {
        let mut trace = Trace::new();
        trace.sent(at(10), "a", message(1), None);
        trace.sent(at(20), "a", message(2), Some(Errno::ENOBUFS));
        trace.sent(at(30), "a", message(3), None);
        trace.received(at(45), "b", 1, 1, 2);
        trace.received(at(50), "c", 1, 1, 3);
        let log = trace.log();
        let lines: Vec<_> = log.lines().skip(1).collect();
        assert_eq!(lines[0], "10 a 1 2 1 -3 64 received by b 2 after 35");
        assert!(lines[1].starts_with("20 a 1 2 2 -3 64 refused "));
        assert_eq!(lines[2], "30 a 1 2 3 -3 64 waits");
        assert_eq!(lines[3], "10 a 1 2 1 -3 64 received by c 3 after 40");
        let to_b = trace.latencies().find(|(_, to, _)| *to == "b").unwrap().2;
        assert_eq!((to_b.len(), to_b.max()), (1, 35));
    }

    #[test]
    fn the_timeline_is_json_with_exact_times() {
        let mut trace = Trace::new();
        trace.ran(0, "a", at(1_234_567), at(1_300_001));
        trace.queue(at(5), "b", 3);
        let timeline: Value = serde_json::from_str(&trace.timeline()).unwrap();
        let ran = &timeline["traceEvents"][3];
        assert_eq!((ran["name"].as_str(), ran["ts"].to_string()), (Some("a"), "1234.567".to_owned()));
        assert_eq!(ran["dur"].to_string(), "65.434");
        assert_eq!(timeline["traceEvents"][4]["args"]["messages"], 3);
    }
}
