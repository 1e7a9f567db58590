//! What a stage tells the coordinator, over a pipe.

use std::io::{self, Read, Write};

use crate::hop::HopRecorder;

/// The longest record, in bytes; several times what the histograms of a hop come to.
const LONGEST: usize = 1 << 20;

/// How often a stage counted what should not happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Blocks and controls that were not sent because the receiver had no room.
    pub dropped: u64,
    /// Controls that came after their block had begun.
    pub late_controls: u64,
    /// Controls that never came.
    pub missing_controls: u64,
    /// Blocks that never came.
    pub lost: u64,
    /// Messages that are none of the pipeline.
    pub ignored: u64,
}

impl Counts {
    /// Adds what another stage counted.
    pub const fn add(&mut self, other: Self) {
        self.dropped = self.dropped.saturating_add(other.dropped);
        self.late_controls = self.late_controls.saturating_add(other.late_controls);
        self.missing_controls = self.missing_controls.saturating_add(other.missing_controls);
        self.lost = self.lost.saturating_add(other.lost);
        self.ignored = self.ignored.saturating_add(other.ignored);
    }
}

/// One thing that a stage tells.
#[derive(Clone, Debug)]
pub enum Record {
    /// It knows all the stages that it needs and can start; with what the system granted it.
    Ready(String),
    /// How many blocks are done, and how many missed their deadline.
    Progress {
        /// Blocks that are done.
        done: u64,
        /// Deadlines that were missed.
        missed: u64,
    },
    /// The measurements of a hop.
    Hop(Box<HopRecorder>),
    /// What it counted.
    Counts(Counts),
    /// It has failed, and why.
    Failed {
        /// Whether another stage is to blame.
        is_consequence: bool,
        /// The reason.
        text: String,
    },
    /// It has said goodbye to the bus; nothing follows.
    Left,
}

impl Record {
    /// Writes the record to `pipe`, without an allocation if it is progress.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn write(&self, pipe: &mut impl Write) -> io::Result<()> {
        match self {
            Self::Ready(text) => write(pipe, 1, &[text.as_bytes()]),
            Self::Progress { done, missed } => write(pipe, 2, &[&done.to_le_bytes(), &missed.to_le_bytes()]),
            Self::Hop(hop) => write(pipe, 3, &[&hop.to_bytes()]),
            Self::Counts(counts) => {
                let Counts { dropped, late_controls, missing_controls, lost, ignored } = *counts;
                let numbers = [dropped, late_controls, missing_controls, lost, ignored].map(u64::to_le_bytes);
                write(pipe, 4, &[numbers.as_flattened()])
            }
            Self::Failed { is_consequence, text } => {
                write(pipe, 5, &[&[u8::from(*is_consequence)], text.as_bytes()])
            }
            Self::Left => write(pipe, 6, &[]),
        }
    }

    /// Reads the next record from `pipe`; `None` at its end.
    ///
    /// # Errors
    ///
    /// What the system said, [`io::ErrorKind::UnexpectedEof`] if the pipe ends within a record, and
    /// [`io::ErrorKind::InvalidData`] if the bytes are none.
    pub fn read(pipe: &mut impl Read) -> io::Result<Option<Self>> {
        let mut kind = [0];
        if pipe.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut len = [0; 4];
        pipe.read_exact(&mut len)?;
        let len = u32::from_le_bytes(len) as usize;
        if len > LONGEST {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut body = vec![0; len];
        pipe.read_exact(&mut body)?;
        Self::parse(kind[0], body).map(Some).ok_or_else(|| io::ErrorKind::InvalidData.into())
    }

    fn parse(kind: u8, body: Vec<u8>) -> Option<Self> {
        Some(match kind {
            1 => Self::Ready(String::from_utf8(body).ok()?),
            2 => {
                let [done, missed] = numbers(&body)?;
                Self::Progress { done, missed }
            }
            3 => Self::Hop(Box::new(HopRecorder::from_bytes(&body).ok()?)),
            4 => {
                let [dropped, late_controls, missing_controls, lost, ignored] = numbers(&body)?;
                Self::Counts(Counts { dropped, late_controls, missing_controls, lost, ignored })
            }
            5 => {
                let (flag, text) = body.split_first()?;
                Self::Failed { is_consequence: *flag != 0, text: String::from_utf8(text.to_vec()).ok()? }
            }
            6 if body.is_empty() => Self::Left,
            _ => return None,
        })
    }
}

fn write(pipe: &mut impl Write, kind: u8, parts: &[&[u8]]) -> io::Result<()> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let len = u32::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?.to_le_bytes();
    pipe.write_all(&[kind, len[0], len[1], len[2], len[3]])?;
    parts.iter().try_for_each(|part| pipe.write_all(part))
}

fn numbers<const N: usize>(body: &[u8]) -> Option<[u64; N]> {
    let (chunks, []) = body.as_chunks::<8>() else { return None };
    let chunks: &[[u8; 8]; N] = chunks.try_into().ok()?;
    Some(chunks.map(u64::from_le_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn written(records: &[Record]) -> Vec<u8> {
        let mut pipe = Vec::new();
        records.iter().for_each(|record| record.write(&mut pipe).unwrap());
        pipe
    }

    #[test]
    fn records_read_back_in_order() {
        let mut hop = HopRecorder::new("a hop", Duration::MAX);
        hop.record(77);
        let counts = Counts { dropped: 1, late_controls: 2, missing_controls: 3, lost: 4, ignored: 5 };
        let bytes = written(&[
            Record::Ready("gut".into()),
            Record::Progress { done: 7, missed: u64::MAX },
            Record::Hop(Box::new(hop)),
            Record::Counts(counts),
            Record::Failed { is_consequence: true, text: "why".into() },
            Record::Left,
        ]);
        let mut pipe = &bytes[..];
        let mut next = || Record::read(&mut pipe).unwrap();
        assert!(matches!(next(), Some(Record::Ready(text)) if text == "gut"));
        assert!(matches!(next(), Some(Record::Progress { done: 7, missed: u64::MAX })));
        assert!(matches!(next(), Some(Record::Hop(hop)) if hop.messages() == 1 && hop.name() == "a hop"));
        assert!(matches!(next(), Some(Record::Counts(back)) if back == counts));
        assert!(matches!(next(), Some(Record::Failed { is_consequence: true, text }) if text == "why"));
        assert!(matches!(next(), Some(Record::Left)));
        assert!(next().is_none());
    }

    #[test]
    fn cut_and_foreign_bytes_are_errors() {
        let bytes = written(&[Record::Progress { done: 1, missed: 2 }]);
        for len in 1..bytes.len() {
            assert!(Record::read(&mut &bytes[..len]).is_err(), "{len}");
        }
        for foreign in
            [&[9, 0, 0, 0, 0][..], &[2, 1, 0, 0, 0, 0], &[1, 255, 255, 255, 255], &[6, 1, 0, 0, 0, 0]]
        {
            let error = Record::read(&mut &foreign[..]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{foreign:?}");
        }
    }

    #[test]
    fn counts_of_several_stages_add_up() {
        let mut sum = Counts { dropped: 1, ..Counts::default() };
        sum.add(Counts { dropped: 2, lost: u64::MAX, ..Counts::default() });
        sum.add(Counts { lost: 1, ..Counts::default() });
        assert_eq!((sum.dropped, sum.lost, sum.ignored), (3, u64::MAX, 0));
    }
}
