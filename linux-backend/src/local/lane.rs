//! Lanes in mapped memory: what a client has of those that kdbusd gave it, and how it gets them.

use kdbus_core::Instant;
use kdbus_core::abi::Errno;
use kdbus_core::channel::terms::{self, PAGE_WORDS, VERDICT_AT};
use kdbus_core::channel::{
    CALL_WORDS, CallName, CallRecord, CallWord, LaneHead, LaneLayout, LaneReader, LaneWriter, NotByLane,
    RECORD_WORDS, Violation,
};
use kdbus_core::client::Failure;
use kdbus_core::hint::unlikely;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use super::error::{EPROTO, errno};
use super::handle::{Answer, Attachments, Handle};
use super::map::{self, WordMap};
use super::point::{self, Point};
use super::room::RoomWait;
use super::socket::{self, Descriptors, Wait};
use super::wire::{self, Header, Kind, LANE_FDS};

/// A lane by which one other client sends to this one.
#[derive(Debug)]
pub struct InLane {
    number: u32,
    reader: LaneReader<WordMap, WordMap, WordMap>,
    calls: WordMap,
    bell: OwnedFd,
    /// The bell was emptied to tell its sender of room, and a ring for a message may be gone.
    silenced: bool,
}

/// A lane to one other client.
#[derive(Debug)]
pub struct OutLane {
    receiver: u64,
    writer: LaneWriter<WordMap, WordMap, WordMap>,
    calls: WordMap,
    record: WordMap,
    bell: OwnedFd,
    /// A reading end, so that ringing raises no signal whatever the receiver does with its own one.
    _heard: OwnedFd,
    /// Key of the message sent last.
    last: u64,
    pub(super) room: RoomWait,
}

/// The files of a lane, checked, and how large it is.
struct Files {
    lane: OwnedFd,
    back: OwnedFd,
    page: OwnedFd,
    calls: OwnedFd,
    bell: OwnedFd,
    layout: LaneLayout,
}

/// What came with an answer, if nothing was lost.
fn all_of(answer: Answer) -> Result<Descriptors, Errno> {
    if answer.fds_lost { Err(Errno::EMFILE) } else { Ok(answer.fds) }
}

impl Files {
    fn of(fds: Descriptors) -> Result<Self, Errno> {
        let [lane, back, page, calls, bell] = fds.into_array::<LANE_FDS>().map_err(|_| EPROTO)?;
        let len = rustix::fs::fstat(&lane).map_err(errno)?.st_size as u64;
        let layout = LaneLayout::of_words((len / 8) as usize).ok_or(EPROTO)?;
        let (back_len, page_len) = (8 * LaneLayout::BACK_WORDS as u64, 8 * PAGE_WORDS as u64);
        for (file, len) in
            [(&lane, len), (&back, back_len), (&page, page_len), (&calls, 8 * CALL_WORDS as u64)]
        {
            if !map::holds(file, len).map_err(errno)? {
                return Err(EPROTO);
            }
        }
        Ok(Self { lane, back, page, calls, bell, layout })
    }
}

impl InLane {
    /// Maps what an answer has brought.
    pub(super) fn map(answer: Answer) -> Result<Self, Errno> {
        let number = answer.lane;
        let Files { lane, back, page, calls, bell, layout } = Files::of(all_of(answer)?)?;
        let lane = WordMap::read_only(lane, layout.lane_words()).map_err(errno)?;
        let back = WordMap::writable(back, LaneLayout::BACK_WORDS).map_err(errno)?;
        let page = WordMap::read_only(page, PAGE_WORDS).map_err(errno)?;
        let reader = LaneReader::new(lane, back, page, VERDICT_AT, layout).ok_or(EPROTO)?;
        let calls = WordMap::writable(calls, CALL_WORDS).map_err(errno)?;
        Ok(Self { number, reader, calls, bell, silenced: false })
    }

    /// The next message that was not copied out yet.
    ///
    /// # Errors
    ///
    /// [`Violation`] of its sender, from here on always.
    #[inline]
    pub fn peek(&mut self) -> Result<Option<LaneHead>, Violation> {
        self.reader.peek()
    }

    /// As [`LaneReader::has_next`], and false after a violation.
    #[inline]
    pub(super) fn has_next(&mut self) -> bool {
        self.reader.has_next() == Ok(true)
    }

    /// Whether there is a message. If not, a sender that waits for room is told of it, and a ring for a message may go with
    /// that: only for a lane that is looked at whether it rings or not, until it was asked for its bell.
    #[inline]
    pub(super) fn has_next_or_tells_room(&mut self) -> bool {
        self.has_next() || (self.tells_room() && self.has_next_now())
    }

    #[cold]
    #[inline(never)]
    fn has_next_now(&mut self) -> bool {
        self.has_next()
    }

    /// Tells a sender of room if it waits for some, where nothing more is to be received: false if it does not. A ring for a
    /// message may be gone with that.
    #[inline]
    pub(super) fn tells_room(&mut self) -> bool {
        self.reader.owes_room() && self.tell_room()
    }

    /// The same where something was given back and there may be more to receive.
    #[inline]
    pub(super) fn tells_room_already(&mut self) -> bool {
        self.reader.owes_room_already() && self.tell_room()
    }

    #[cold]
    #[inline(never)]
    fn tell_room(&mut self) -> bool {
        self.silence();
        self.silenced = true;
        true
    }

    /// Whether its sender was told of room since this was asked last.
    pub(super) const fn takes_silenced(&mut self) -> bool {
        core::mem::replace(&mut self.silenced, false)
    }

    /// Copies the two parts of the message that [`peek`](Self::peek) has returned, each once, and goes on to the
    /// next. Returns the words to [give back](Self::give_back) once it is received; `None` if `first` or
    /// `second` has too few words for it, or if there is none.
    pub fn copy_out(&mut self, first: &mut [u64], second: &mut [u64]) -> Option<u64> {
        self.reader.copy_out(first, second)
    }

    /// As [`LaneReader::copy_head`].
    pub(super) fn copy_head(&self, first: &mut [u64], second: &mut [u64]) -> Option<()> {
        self.reader.copy_head(first, second)
    }

    /// As [`LaneReader::advance`].
    pub(super) fn advance(&mut self) -> Option<u64> {
        self.reader.advance()
    }

    /// As [`LaneReader::find_ahead`].
    pub(super) fn find_ahead(&self, from: u64, call: u64) -> Option<(u64, LaneHead)> {
        self.reader.find_ahead(from, call)
    }

    /// As [`LaneReader::each_call_ahead`].
    pub(super) fn each_call_ahead(&self, from: u64, each: impl FnMut(u64, u64)) -> u64 {
        self.reader.each_call_ahead(from, each)
    }

    /// As [`LaneReader::is_reply_ahead`].
    pub(super) fn is_reply_ahead(&self, at: u64, head: &LaneHead, cookie: u64) -> bool {
        self.reader.is_reply_ahead(at, head, cookie)
    }

    /// As [`LaneReader::copy_ahead`].
    pub(super) fn copy_ahead(
        &self,
        at: u64,
        head: &LaneHead,
        first: &mut [u64],
        second: &mut [u64],
    ) -> Option<()> {
        self.reader.copy_ahead(at, head, first, second)
    }

    /// Gives the room of a message back that was copied out.
    pub fn give_back(&mut self, words: u64) {
        self.reader.give_back(words);
    }

    /// kdbusd's number of the lane.
    pub(super) const fn number(&self) -> u32 {
        self.number
    }

    /// Bytes that the lane holds, heads of messages among them.
    pub(super) const fn bytes(&self) -> u64 {
        8 * self.reader.layout().ring()
    }

    /// The page in which kdbusd says what the lane is.
    pub(super) const fn page(&self) -> &WordMap {
        self.reader.page()
    }

    /// The word of a call that came by this lane.
    pub(super) const fn call(&self, name: CallName) -> CallWord<&WordMap> {
        CallWord::new(&self.calls, name.index)
    }

    /// Receives nothing more from a sender that broke the rules.
    pub(super) fn reject(&mut self) {
        self.reader.reject();
    }

    /// Whether it came to that.
    pub(super) const fn is_rejected(&self) -> bool {
        self.reader.is_rejected()
    }

    /// Asks for the bell. The caller then looks once more, and sleeps only if nothing is there.
    pub fn ask_bell(&mut self) {
        self.reader.ask_bell();
    }

    /// Takes back what was rung. A sender rings at most once for each time it is asked; more of it is its own time.
    pub fn silence(&self) {
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.bell, &mut [0; 4096]));
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
        let receiver = answer.receiver;
        let mut fds = all_of(answer)?;
        let heard = fds.pop().ok_or(EPROTO)?;
        let record = fds.pop().ok_or(EPROTO)?;
        if !map::holds(&record, 8 * RECORD_WORDS as u64).map_err(errno)? {
            return Err(EPROTO);
        }
        let record = WordMap::writable(record, RECORD_WORDS).map_err(errno)?;
        let Files { lane, back, page, calls, bell, layout } = Files::of(fds)?;
        let lane = WordMap::writable(lane, layout.lane_words()).map_err(errno)?;
        let back = WordMap::read_only(back, LaneLayout::BACK_WORDS).map_err(errno)?;
        let page = WordMap::read_only(page, PAGE_WORDS).map_err(errno)?;
        let writer = LaneWriter::new(lane, back, page, VERDICT_AT, layout).ok_or(EPROTO)?;
        let calls = WordMap::writable(calls, CALL_WORDS).map_err(errno)?;
        Ok(Self { receiver, writer, calls, record, bell, _heard: heard, last: 0, room: RoomWait::new() })
    }

    /// Whether messages can be sent now. A lane is opened some time after it was given.
    #[must_use]
    #[inline]
    pub fn is_open(&self) -> bool {
        self.writer.is_open()
    }

    /// Id of the connection that receives.
    #[must_use]
    pub const fn receiver(&self) -> u64 {
        self.receiver
    }

    /// Words that it holds.
    pub(super) const fn ring(&self) -> u64 {
        self.writer.layout().ring()
    }

    /// As [`LaneWriter::ask_room`].
    pub(super) fn ask_room(&mut self) {
        self.writer.ask_room();
    }

    /// As [`LaneWriter::look_for_room`].
    pub(super) fn look_for_room(&mut self, words: u64) -> bool {
        self.writer.look_for_room(words)
    }

    /// Rings the receiver's bell. Full: it rings already. Whether anybody hears it is the receiver's own matter.
    pub(super) fn ring_bell(&self) {
        let _ = rustix::io::write(&self.bell, &[1]);
    }

    /// The ringing end.
    pub(super) fn bell(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Opens a call that goes by this lane.
    pub(super) fn begin(&self, name: CallName, cookie: u64, now: Instant) {
        self.record(name).begin(cookie, now);
        self.call(name).begin(name.number);
    }

    /// The word of a call that goes by this lane.
    pub(super) const fn call(&self, name: CallName) -> CallWord<&WordMap> {
        CallWord::new(&self.calls, name.index)
    }

    /// What this connection and kdbusd say of such a call.
    pub(super) const fn record(&self, name: CallName) -> CallRecord<&WordMap> {
        CallRecord::new(&self.record, name)
    }

    /// Whether messages to `name` may go by this lane.
    pub(super) fn is_for(&self, name: &[u8]) -> bool {
        terms::are_for(self.writer.page(), name)
    }

    /// Whether the receiver is gone for good.
    pub(super) fn has_ended(&self) -> bool {
        terms::has_ended(self.writer.page())
    }

    /// Sends a message at the time `key`: `first`, and behind it the runs of `second`. On return the receiver can
    /// see it; its bell was rung if it sleeps.
    ///
    /// # Errors
    ///
    /// [`NotByLane`]: nothing was sent.
    #[inline]
    pub fn send(&mut self, key: u64, call: u64, first: &[u8], second: &[&[u8]]) -> Result<(), NotByLane> {
        self.send_if(key, call, first, second, &|| true).map(|_| ())
    }

    /// As [`send`](Self::send), if `agreed` says so once nothing is missing but the commit. False if not: nothing
    /// was sent.
    #[inline(never)]
    pub(super) fn send_if(
        &mut self,
        key: u64,
        call: u64,
        first: &[u8],
        second: &[&[u8]],
        // By reference, so that all kinds of messages go through the same code.
        agreed: &dyn Fn() -> bool,
    ) -> Result<bool, NotByLane> {
        let bytes = bytes_of(second);
        let key = key.max(self.last + 1);
        let mut reserved =
            self.writer.reserve(LaneHead { first: first.len() as u64, second: bytes, key, call })?;
        point::pass(Point::Reserved);
        reserved.put(first);
        reserved.next_part();
        for run in second {
            reserved.put(run);
        }
        point::pass(Point::Written);
        if unlikely(!agreed()) {
            return Ok(false);
        }
        let ring = reserved.commit()?;
        self.last = key;
        point::pass(Point::Committed);
        if ring {
            point::pass(Point::BeforeBell);
            self.ring_bell();
        }
        Ok(true)
    }
}

/// Bytes of all these runs.
#[inline]
pub(super) fn bytes_of(runs: &[&[u8]]) -> u64 {
    runs.iter().fold(0, |sum: u64, run| sum.saturating_add(run.len() as u64))
}

impl Handle {
    /// Brings a lane for messages to this connection, which kdbusd can give to one sender.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code: `EOPNOTSUPP` if it has no lanes, `ENOBUFS` if there are no more.
    pub fn bring_lane(&self) -> Result<InLane, Failure> {
        let header = Header::new(Kind::BringLane, self.next_serial());
        let answer = self.transact(header, &mut [], None, Attachments::default())?;
        let number = answer.lane;
        let lane = match InLane::map(answer) {
            Ok(lane) => lane,
            Err(error) => {
                // kdbusd counts it otherwise.
                self.about_lane(Kind::DropLane, number)?;
                return Err(Failure::Refused(error));
            }
        };
        point::pass(Point::LaneBrought);
        self.about_lane(Kind::LaneMapped, lane.number())?;
        Ok(lane)
    }

    /// Gives a lane back that nothing more is received by.
    ///
    /// # Errors
    ///
    /// [`Failure::Broken`] if the bus is gone.
    pub fn drop_lane(&self, lane: InLane) -> Result<(), Failure> {
        self.about_lane(Kind::DropLane, lane.number())
    }

    /// Opens a lane to connection `receiver`, or with 0 to the owner of `name`; `None` if it is one that this
    /// connection has, which is open again then. Returns the receiver's id too.
    ///
    /// # Errors
    ///
    /// [`Failure`] with kdbusd's code: `ENXIO` if there is no such connection, `EPERM` if this one may not talk to
    /// it, `ENOBUFS` if it has no lane left, `EOPNOTSUPP` if all has to go through kdbusd.
    pub fn open_lane(&self, receiver: u64, name: &[u8]) -> Result<(u64, Option<OutLane>), Failure> {
        let answer = self.ask_for_lane(receiver, name, 0)?;
        let (number, receiver) = (answer.lane, answer.receiver);
        if answer.fds.is_empty() && !answer.fds_lost {
            return Ok((receiver, None));
        }
        let lane = OutLane::map(answer).map_err(Failure::Refused)?;
        point::pass(Point::LaneGiven);
        self.about_lane(Kind::LaneMapped, number)?;
        // Packets are read in their order: once a second request is answered, the first one's lane is open.
        match self.ask_for_lane(receiver, &[], 0) {
            Ok(_) | Err(Failure::Refused(_)) => Ok((receiver, Some(lane))),
            Err(broken) => Err(broken),
        }
    }

    /// As [`open_lane`](Self::open_lane), if it is one that this connection has. Returns the receiver's id.
    ///
    /// # Errors
    ///
    /// As there; `ENOBUFS` too if it has none, and kdbusd remembers that it has no place for one.
    pub(super) fn reopen_lane(&self, receiver: u64, name: &[u8]) -> Result<u64, Failure> {
        self.ask_for_lane(receiver, name, wire::FLAG_OWN_LANE).map(|answer| answer.receiver)
    }

    fn ask_for_lane(&self, receiver: u64, name: &[u8], flags: u32) -> Result<Answer, Failure> {
        let header = Header { key: receiver, flags, ..Header::new(Kind::OpenLane, self.next_serial()) };
        let mut bytes = [0; 256];
        let name = name.get(..name.len().min(bytes.len())).unwrap_or_default();
        let (argument, _) = bytes.split_at_mut(name.len());
        argument.copy_from_slice(name);
        self.transact(header, argument, None, Attachments::default())
    }

    /// Has kdbusd wake the sender of a lane whose call was dropped.
    pub(super) fn call_dropped(&self, lane: u32) -> Result<(), Failure> {
        self.about_lane(Kind::CallDropped, lane)
    }

    fn about_lane(&self, kind: Kind, number: u32) -> Result<(), Failure> {
        let header = Header { slot: number, ..Header::new(kind, 0) };
        socket::send(self.socket(), &header, &[], &[], Wait::Yes).map_err(|error| self.sent(error))
    }
}
