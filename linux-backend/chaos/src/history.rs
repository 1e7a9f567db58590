//! What the clients of one round have written down.

use std::fmt;
use std::io;
use std::path::Path;

use zerocopy::FromBytes;

use crate::client::{NAMES, TOPICS};
use crate::point::Point;
use crate::record::{End, How, Kind, MessageId, Record, Sort};

/// One client process' part in a round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    /// Its number.
    pub client: u32,
    /// How many processes there had been under this number before.
    pub incarnation: u32,
    /// What it wrote, in order.
    pub records: Vec<Record>,
}

impl History {
    /// Reads a history. A record that was cut off by the process' end is left out.
    ///
    /// # Errors
    ///
    /// If the file is there and cannot be read; one that is not there is empty.
    pub fn read(client: u32, incarnation: u32, path: &Path) -> io::Result<Self> {
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let records = bytes
            .chunks_exact(size_of::<Record>())
            .filter_map(|chunk| Record::read_from_bytes(chunk).ok())
            .collect();
        Ok(Self { client, incarnation, records })
    }

    /// The last `count` things it did, one in a line.
    #[must_use]
    pub fn last_steps(&self, count: usize) -> Vec<String> {
        let from = self.records.len().saturating_sub(count);
        self.records[from..].iter().map(|record| Line(record).to_string()).collect()
    }

    /// What it did from a little before `from` to a little after `to`, one in a line; `count` of them at most.
    #[must_use]
    pub fn steps_between(&self, from: u64, to: u64, count: usize) -> Vec<String> {
        const LITTLE: u64 = 3_000_000;
        let near =
            |record: &&Record| (from.saturating_sub(LITTLE)..=to.saturating_add(LITTLE)).contains(&record.at);
        self.records.iter().filter(near).take(count).map(|record| Line(record).to_string()).collect()
    }

    /// When it sent a message: the beginning and the return of SEND, or twice the beginning.
    #[must_use]
    pub fn sent_at(&self, id: MessageId) -> Option<(u64, u64)> {
        let of =
            |kind: Kind| self.records.iter().find(|record| record.kind == kind.code() && record.id == id);
        let began_at = of(Kind::Sending)?.began_at;
        Some((began_at, of(Kind::Sent).map_or(began_at, |sent| sent.at)))
    }

    /// The things it did about one message, one in a line, and what it dropped that has its cookie.
    #[must_use]
    pub fn steps_about(&self, id: MessageId) -> Vec<String> {
        let dropped = |record: &Record| record.kind == Kind::Dropped.code() && record.cookie == id.serial;
        let about =
            |record: &&Record| id.serial != 0 && (record.id == id || record.answers == id || dropped(record));
        self.records.iter().filter(about).map(|record| Line(record).to_string()).collect()
    }
}

/// A record for people.
#[derive(Clone, Copy, Debug)]
pub struct Line<'r>(pub &'r Record);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Record { kind, detail, result, name, began_at, at, own, peer, id, answers, .. } = *self.0;
        write!(f, "{:>12.6} ", at as f64 / 1e9)?;
        let Some(kind) = Kind::from_code(kind) else { return write!(f, "record of kind {kind}") };
        write!(f, "connection {own}: {}", kind.text())?;
        let names = if Sort::from_code(detail).is_some_and(Sort::is_signal)
            || matches!(kind, Kind::Matched | Kind::Unmatching)
        {
            &TOPICS[..]
        } else {
            &NAMES[..]
        };
        match kind {
            Kind::Sending | Kind::Sent => {
                write!(f, " {}", Sort::from_code(detail).map_or("?", Sort::text))?;
                write!(f, " {}", Id(id))?;
                match names.get((name as usize).wrapping_sub(1)) {
                    Some(name) => write!(f, " to {name}")?,
                    None => write!(f, " to connection {peer}")?,
                }
                if answers.serial != 0 {
                    let verb = if kind == Kind::Sent && id != answers { "with" } else { "for" };
                    write!(f, " {verb} {}", Id(answers))?;
                }
                if kind == Kind::Sent {
                    write!(f, ", begun at {:.6}, errno {result}", began_at as f64 / 1e9)?;
                    if Sort::from_code(detail).is_some_and(|sort| sort.is_call() && sort != Sort::Call) {
                        write!(f, ", {}", End::from_code(self.0.sequence as u32).map_or("?", End::text))?;
                    }
                }
                Ok(())
            }
            Kind::Received => {
                write!(f, " {} {}", How::from_code(detail).map_or("?", How::text), Id(id))?;
                write!(f, " from connection {peer}, priority {}", self.0.priority)?;
                if answers.serial != 0 { write!(f, ", for {}", Id(answers)) } else { Ok(()) }
            }
            Kind::Dropping | Kind::Dropped => {
                write!(f, " cookie {} from connection {peer}, result {result}", self.0.cookie)
            }
            Kind::CallEnded => {
                write!(f, " {} by {}", Id(id), End::from_code(detail).map_or("?", End::text))
            }
            Kind::At => write!(f, " the point {:?}", Point::from_code(detail).map_or("?", Point::text)),
            Kind::Lost => write!(f, " {}", self.0.bytes),
            Kind::Trouble | Kind::Borrowed => write!(f, " {}", Id(id)),
            _ => names.get((name as usize).wrapping_sub(1)).map_or(Ok(()), |name| write!(f, " {name}")),
        }
    }
}

/// A message for people: client, process and number.
#[derive(Clone, Copy, Debug)]
pub struct Id(pub MessageId);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}#{}", self.0.client, self.0.incarnation, self.0.serial)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::record::Log;

    #[test]
    fn what_was_cut_off_is_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history");
        let mut log = Log::create(&path).unwrap();
        let record = Record { kind: Kind::Quiet.code(), own: 7, ..Record::default() };
        log.add(&record).unwrap();
        log.add(&record).unwrap();
        std::fs::File::options().append(true).open(&path).unwrap().write_all(&[1; 50]).unwrap();
        let history = History::read(1, 2, &path).unwrap();
        assert_eq!(history.records, [record, record]);
        assert_eq!(History::read(1, 2, &dir.path().join("none")).unwrap().records, []);
    }
}
