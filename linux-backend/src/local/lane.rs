//! Lanes in mapped memory: what a client has of those that kdbusd gave it.

use kdbus_core::abi::Errno;
use kdbus_core::channel::{LaneHead, LaneLayout, LaneReader, LaneWriter, NotByLane, Violation};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{EPROTO, errno};
use super::handle::Answer;
use super::map::{self, WordMap};
use super::wire::LANE_FDS;

/// A lane by which one other client sends to this one.
#[derive(Debug)]
pub struct InLane {
    reader: LaneReader<WordMap, WordMap, WordMap>,
    bell: OwnedFd,
}

/// A lane to one other client.
#[derive(Debug)]
pub struct OutLane {
    writer: LaneWriter<WordMap, WordMap, WordMap>,
    bell: OwnedFd,
}

/// The files of a lane, checked, and how large it is.
struct Files {
    lane: OwnedFd,
    back: OwnedFd,
    verdict: OwnedFd,
    bell: OwnedFd,
    layout: LaneLayout,
}

impl Files {
    fn of(answer: Answer) -> Result<Self, Errno> {
        if answer.fds_lost {
            return Err(Errno::EMFILE);
        }
        let [lane, back, verdict, bell] = answer.fds.into_array::<LANE_FDS>().map_err(|_| EPROTO)?;
        let len = rustix::fs::fstat(&lane).map_err(errno)?.st_size as u64;
        let layout = LaneLayout::of_words((len / 8) as usize).ok_or(EPROTO)?;
        for (file, len) in [(&lane, len), (&back, 8 * LaneLayout::BACK_WORDS as u64), (&verdict, 8)] {
            if !map::holds(file, len).map_err(errno)? {
                return Err(EPROTO);
            }
        }
        Ok(Self { lane, back, verdict, bell, layout })
    }
}

impl InLane {
    /// Maps what an answer has brought.
    pub(super) fn map(answer: Answer) -> Result<Self, Errno> {
        let Files { lane, back, verdict, bell, layout } = Files::of(answer)?;
        let lane = WordMap::read_only(lane, layout.lane_words()).map_err(errno)?;
        let back = WordMap::writable(back, LaneLayout::BACK_WORDS).map_err(errno)?;
        let verdict = WordMap::read_only(verdict, 1).map_err(errno)?;
        let reader = LaneReader::new(lane, back, verdict, 0, layout).ok_or(EPROTO)?;
        Ok(Self { reader, bell })
    }

    /// The next message that was not copied out yet.
    ///
    /// # Errors
    ///
    /// [`Violation`] of its sender, from here on always.
    pub fn peek(&mut self) -> Result<Option<LaneHead>, Violation> {
        self.reader.peek()
    }

    /// Copies the two parts of the message that [`peek`](Self::peek) has returned, each once, and goes on to the
    /// next. Returns the words to [give back](Self::give_back) once it is received; `None` if `first` or
    /// `second` has too few words for it, or if there is none.
    pub fn copy_out(&mut self, first: &mut [u64], second: &mut [u64]) -> Option<u64> {
        self.reader.copy_out(first, second)
    }

    /// Gives the room of a message back that was copied out.
    pub fn give_back(&mut self, words: u64) {
        self.reader.give_back(words);
    }

    /// Silences the bell and asks for it again. The caller then looks once more, and sleeps only if nothing
    /// is there.
    pub fn ask_bell(&mut self) {
        // The sender rings at most once for each time it is asked; more of it is its own time.
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.bell, &mut [0; 64]));
        self.reader.ask_bell();
    }

    /// Whether the lane is closed and everything in it was copied out.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.reader.is_drained()
    }
}

impl AsFd for InLane {
    /// Readable once the bell was rung.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

impl OutLane {
    /// Maps what an answer has brought.
    pub(super) fn map(answer: Answer) -> Result<Self, Errno> {
        let Files { lane, back, verdict, bell, layout } = Files::of(answer)?;
        let lane = WordMap::writable(lane, layout.lane_words()).map_err(errno)?;
        let back = WordMap::read_only(back, LaneLayout::BACK_WORDS).map_err(errno)?;
        let verdict = WordMap::read_only(verdict, 1).map_err(errno)?;
        let writer = LaneWriter::new(lane, back, verdict, 0, layout).ok_or(EPROTO)?;
        Ok(Self { writer, bell })
    }

    /// Whether messages can be sent now. A lane is opened some time after it was given.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.writer.is_open()
    }

    /// Sends two parts as one message. On return the receiver can see it; its bell was rung if it sleeps.
    ///
    /// # Errors
    ///
    /// [`NotByLane`]: nothing was sent.
    pub fn send(&mut self, key: u64, priority: i64, first: &[u8], second: &[u8]) -> Result<(), NotByLane> {
        let head = LaneHead { first: first.len() as u64, second: second.len() as u64, key, priority };
        let mut reserved = self.writer.reserve(head)?;
        reserved.put(first);
        reserved.put(second);
        if reserved.commit()? {
            // Full: it rings already. Closed: the receiver is gone, which kdbusd tells.
            let _ = rustix::io::write(&self.bell, &[1]);
        }
        Ok(())
    }
}
