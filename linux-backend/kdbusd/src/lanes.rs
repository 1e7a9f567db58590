//! The lanes there are: whose, between whom, open or not.
//!
//! A receiver brings a lane, kdbusd gives it to one sender, opens it once both have mapped it, and closes it when the
//! engine says so. A lane never serves a second sender.

use core::fmt::Write;

use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::channel::terms::{self, PAGE_WORDS, Terms, VERDICT_AT};
use kdbus_core::channel::{
    CALL_WORDS, CallName, CallRecord, CallState, CallWord, LaneGate, LaneLayout, LaneTraffic, RECORD_WORDS,
};
use kdbus_core::engine::{HandleId, LaneGrant, Lanes, NoLane, PastCall};
use kdbus_linux::local::map::{self, Seal, WordMap};
use kdbus_linux::local::wire::LANE_OUT_FDS;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{self, Mode, OFlags};
use rustix::io;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use crate::bans::Bans;
use crate::clients::no_memory;

/// Bytes of the longest name.
const NAME_MAX: usize = 255;

/// Descriptors of a lane for one of its ends: lane part, way back, page of the bus, calls, bell; for its sender the record too,
/// and a reading end of the bell.
pub(crate) type LaneFds = heapless::Vec<OwnedFd, LANE_OUT_FDS>;

/// Why a connection was refused another lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    /// All there are were in use.
    All,
    /// Its user had as many as one may have.
    User,
    /// It has as many as one may have.
    Connection,
}

/// A lane between two connections, for tools.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) open: bool,
    /// Its sender has mapped it.
    pub(crate) sealed: bool,
    /// Bytes that it holds.
    pub(crate) bytes: u64,
    pub(crate) traffic: LaneTraffic,
}

/// One lane, from when its receiver brought it to the receiver's end.
#[derive(Debug)]
struct Lane {
    receiver: HandleId,
    /// The user who pays for it.
    uid: u32,
    /// Whether the receiver has mapped it.
    ready: bool,
    sender: Option<HandleId>,
    /// The bus that [`Lanes::Bus`] names.
    bus: u32,
    /// The sender may use it as soon as it is mapped: nothing has closed it since it was given.
    granted: bool,
    /// Whether the sender has mapped it, and nobody else can any more.
    sealed: bool,
    gate: LaneGate<WordMap, WordMap>,
    back: WordMap,
    calls: WordMap,
    /// What its sender and kdbusd say of the calls, and its receiver never gets.
    record: WordMap,
    /// Number of the terms that its page shows; 0 if none were written yet.
    terms: u64,
    attach: AttachFlags,
    name: heapless::Vec<u8, NAME_MAX>,
    /// What its sender is to get.
    files: Option<[OwnedFd; LANE_OUT_FDS]>,
}

/// All lanes, as many as the configuration allows.
#[derive(Debug)]
pub(crate) struct LaneTable {
    lanes: Box<[Option<Lane>]>,
    per_connection: usize,
    per_user: usize,
    layout: Option<LaneLayout>,
    /// Senders that have broken the rules of a lane to a receiver.
    bans: Bans,
    /// The lane that was given last.
    pub(crate) given: u32,
    /// Id of its receiver.
    pub(crate) given_to: u64,
    /// Descriptors for its sender, the first time.
    pub(crate) given_files: Option<LaneFds>,
}

impl LaneTable {
    /// Room for `count` lanes of `layout` between `handles`, `per_connection` of them into each connection and `per_user` into
    /// those of one user.
    pub(crate) fn new(
        count: usize,
        handles: usize,
        per_connection: usize,
        per_user: usize,
        layout: Option<LaneLayout>,
    ) -> Self {
        let lanes = (0..count).map(|_| None).collect();
        let bans = Bans::new(if count == 0 { 0 } else { handles });
        Self { lanes, per_connection, per_user, layout, bans, given: 0, given_to: 0, given_files: None }
    }

    /// Makes a lane into a connection. Returns its number and what the receiver gets of it.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` without lanes; `ENOBUFS` if there are no more, or no more for it or its user; what the system says.
    pub(crate) fn bring(&mut self, receiver: HandleId, uid: u32) -> io::Result<(u32, LaneFds)> {
        let layout = self.layout.filter(|_| !self.lanes.is_empty()).ok_or(io::Errno::OPNOTSUPP)?;
        if self.no_room(receiver, uid).is_some() {
            return Err(io::Errno::NOBUFS);
        }
        let place = self.lanes.iter().position(Option::is_none).ok_or(io::Errno::NOBUFS)?;
        let file = |name, words: usize| map::create(name, 8 * words as u64);
        let lane_file = file(c"kdbus-lane", layout.lane_words())?;
        let lane = WordMap::writable(&lane_file, layout.lane_words()).map_err(no_memory)?;
        map::seal(&lane_file, Seal::SizeFirst)?;
        let back_file = file(c"kdbus-lane-back", LaneLayout::BACK_WORDS)?;
        let back = WordMap::read_only(&back_file, LaneLayout::BACK_WORDS).map_err(no_memory)?;
        map::seal(&back_file, Seal::SizeFirst)?;
        let verdict_file = file(c"kdbus-lane-terms", PAGE_WORDS)?;
        let verdict = WordMap::writable(&verdict_file, PAGE_WORDS).map_err(no_memory)?;
        map::seal(&verdict_file, Seal::SizeAndWriters)?;
        let calls_file = file(c"kdbus-lane-calls", CALL_WORDS)?;
        let calls = WordMap::writable(&calls_file, CALL_WORDS).map_err(no_memory)?;
        map::seal(&calls_file, Seal::SizeFirst)?;
        let record_file = file(c"kdbus-lane-record", RECORD_WORDS)?;
        let record = WordMap::writable(&record_file, RECORD_WORDS).map_err(no_memory)?;
        map::seal(&record_file, Seal::SizeFirst)?;
        // The ringing end goes to the sender and no other: kdbusd could be made to wait in it.
        let (bell, ringer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // One page, the least there is: a sender that waits for room sleeps until the bell in it was taken. Where it cannot be
        // had, nobody sleeps for that.
        let _ = fcntl_setpipe_size(&ringer, 1);
        // As long as its sender has one of its own, ringing a receiver that has closed the other is no SIGPIPE. Of one
        // description, either could make the other wait.
        let heard = open_again(&bell, OFlags::NONBLOCK)?;
        let clone = |file: &OwnedFd| io::fcntl_dupfd_cloexec(file, 0);
        let received =
            [read_only(&lane_file)?, clone(&back_file)?, clone(&verdict_file)?, clone(&calls_file)?, bell];
        self.lanes[place] = Some(Lane {
            receiver,
            uid,
            ready: false,
            sender: None,
            bus: 0,
            granted: false,
            sealed: false,
            gate: LaneGate::new(lane, verdict, VERDICT_AT),
            back,
            calls,
            record,
            terms: 0,
            attach: AttachFlags::empty(),
            name: heapless::Vec::new(),
            files: Some([lane_file, back_file, verdict_file, calls_file, ringer, record_file, heard]),
        });
        Ok((place as u32, received.into_iter().collect()))
    }

    /// Gives a lane to a sender if it `takes` one, or opens the one it has; see [`given`](Self::given).
    pub(crate) fn give(&mut self, grant: LaneGrant, terms: &Terms<'_>, takes: bool) -> Result<(), NoLane> {
        if self.lanes.is_empty() {
            return Err(NoLane::Off);
        }
        if self.bans.has(grant.from, grant.to) {
            return Err(NoLane::Banned);
        }
        let into = |lane: &Lane| lane.receiver == grant.to;
        let of = |sender| {
            move |lane: &Option<Lane>| {
                lane.as_ref().is_some_and(|lane| into(lane) && lane.ready && lane.sender == sender)
            }
        };
        let own = self.lanes.iter().position(of(Some(grant.from)));
        if own.is_none() && !takes {
            return Err(NoLane::NoPlace);
        }
        let place = own.or_else(|| self.lanes.iter().position(of(None))).ok_or(NoLane::Full)?;
        let Some(lane) = self.lanes.get_mut(place).and_then(Option::as_mut) else {
            return Err(NoLane::Full);
        };
        (self.given, self.given_to, self.given_files) = (place as u32, grant.to_id, None);
        // Before the terms: what they say of a sender that gets no lane would stand there for the next one.
        let copies = if own.is_none() { Some(lane.copies().map_err(|_| NoLane::Full)?) } else { None };
        if !lane.accept(terms) {
            return Err(NoLane::Terms);
        }
        if copies.is_some() {
            self.given_files = copies;
            lane.sender = Some(grant.from);
            lane.bus = grant.bus;
        } else if lane.sealed {
            lane.gate.open();
        }
        lane.granted = true;
        Ok(())
    }

    /// One end of a lane has mapped it. False if it has no such lane.
    #[must_use]
    pub(crate) fn mapped(&mut self, number: u32, by: HandleId) -> bool {
        let Some(lane) = self.lanes.get_mut(number as usize).and_then(Option::as_mut) else {
            return false;
        };
        if lane.receiver == by {
            if !lane.ready {
                // From here on nobody else can write the way back.
                lane.ready = lane
                    .files
                    .as_ref()
                    .is_some_and(|files| map::seal(&files[1], Seal::SizeAndWriters).is_ok());
            }
            return true;
        }
        if lane.sender != Some(by) {
            return false;
        }
        if let Some(files) = lane.files.take() {
            // A receiver that has sealed it otherwise has a lane that never opens.
            let own = [&files[0], &files[3], &files[5]];
            let sealed = own.map(|file| map::seal(file, Seal::SizeAndWriters).is_ok());
            lane.sealed = sealed == [true; 3];
            if lane.sealed && lane.granted {
                lane.gate.open();
            }
        }
        true
    }

    /// Takes a lane back that its receiver needs no more: its sender is gone, or has broken its rules and gets no other
    /// one to this receiver. False if it has no such lane.
    #[must_use]
    pub(crate) fn drop_one(&mut self, number: u32, receiver: HandleId) -> bool {
        let Some(place) = self.lanes.get_mut(number as usize) else { return false };
        let Some(lane) = place.as_mut().filter(|lane| lane.receiver == receiver) else { return false };
        lane.gate.close();
        // What its sender has not mapped, the receiver had no use for after all.
        let broke_rules = lane.sender.filter(|_| lane.files.is_none() && !terms::has_ended(lane.gate.page()));
        terms::end(lane.gate.page());
        *place = None;
        if let Some(sender) = broke_rules {
            self.bans.add(sender, receiver);
        }
        true
    }

    /// Whether there are none at all.
    pub(crate) const fn is_off(&self) -> bool {
        self.lanes.is_empty()
    }

    /// Why [`bring`](Self::bring) finds no room for another lane into a connection, if it does not.
    pub(crate) fn no_room(&self, receiver: HandleId, uid: u32) -> Option<NoRoom> {
        let count =
            |own: &dyn Fn(&Lane) -> bool| self.lanes.iter().flatten().filter(|lane| own(lane)).count();
        if count(&|lane| lane.receiver == receiver) >= self.per_connection {
            return Some(NoRoom::Connection);
        }
        if count(&|lane| lane.uid == uid) >= self.per_user {
            return Some(NoRoom::User);
        }
        self.lanes.iter().all(Option::is_some).then_some(NoRoom::All)
    }

    /// The lane from one connection to another.
    pub(crate) fn seen(&self, sender: HandleId, receiver: HandleId) -> Option<Seen> {
        let between = |lane: &&Lane| lane.receiver == receiver && lane.sender == Some(sender);
        let lane = self.lanes.iter().flatten().find(between)?;
        let open = lane.gate.verdict().is_open();
        let bytes = self.layout.map_or(0, |layout| 8 * layout.ring());
        Some(Seen { open, sealed: lane.sealed, bytes, traffic: lane.gate.traffic(&lane.back) })
    }

    /// Whether a sender has broken the rules of a lane to a receiver.
    pub(crate) fn is_banned(&self, sender: HandleId, receiver: HandleId) -> bool {
        self.bans.has(sender, receiver)
    }

    /// How many lanes a connection brought, and how many of them nobody has.
    pub(crate) fn brought(&self, receiver: HandleId) -> (usize, usize) {
        let own = self.lanes.iter().flatten().filter(|lane| lane.receiver == receiver);
        own.fold((0, 0), |(all, free), lane| (all + 1, free + usize::from(lane.sender.is_none())))
    }

    /// Who sends by this lane into a connection.
    pub(crate) fn sender(&self, number: u32, receiver: HandleId) -> Option<HandleId> {
        let lane = self.lanes.get(number as usize)?.as_ref().filter(|lane| lane.receiver == receiver)?;
        lane.sender
    }

    /// A call that came to `receiver` by one of its lanes and waits, by the caller's own word; `None` if there is none.
    pub(crate) fn past_call(&self, number: u32, receiver: HandleId, call: u64) -> Option<PastCall> {
        let (caller, _, record, _) = self.call(number, receiver, call)?;
        let waits = record.state() == Some(CallState::Pending);
        waits.then(|| PastCall { caller, cookie: record.cookie(), made_at: record.made_at() })
    }

    /// Ends such a call, because kdbusd brings its reply. False if it has ended already.
    pub(crate) fn claim(&mut self, number: u32, receiver: HandleId, call: u64) -> bool {
        let Some((_, word, record, name)) = self.call(number, receiver, call) else { return false };
        if !record.end(CallState::Relayed) {
            return false;
        }
        // For the callee to see, who can write it too.
        let _ = word.end(name.number, CallState::Relayed);
        true
    }

    /// Says that the reply to a call that was [claimed](Self::claim) does not come, and why. Returns the caller, who has to
    /// hear of it.
    pub(crate) fn fail_claim(
        &mut self,
        number: u32,
        receiver: HandleId,
        call: u64,
        why: Errno,
    ) -> Option<HandleId> {
        let (sender, _, record, _) = self.call(number, receiver, call)?;
        record.fail(u8::try_from(why.raw()).ok()?);
        Some(sender)
    }

    /// A call that came to `receiver` by one of its lanes: its caller, its word and its record.
    fn call(
        &self,
        number: u32,
        receiver: HandleId,
        call: u64,
    ) -> Option<(HandleId, CallWord<&WordMap>, CallRecord<&WordMap>, CallName)> {
        let lane = self.lanes.get(number as usize)?.as_ref().filter(|lane| lane.receiver == receiver)?;
        let name = CallName::from_word(call)?;
        let word = CallWord::new(&lane.calls, name.index);
        Some((lane.sender?, word, CallRecord::new(&lane.record, name), name))
    }

    /// Closes lanes, and hands whoever has to look at one now to `woken`.
    pub(crate) fn close(&mut self, which: Lanes, mut woken: impl FnMut(HandleId)) {
        if let Lanes::Of(end) = which {
            self.bans.forget(end);
        }
        for lane in self.lanes.iter_mut().flatten() {
            let meant = match which {
                Lanes::Into(receiver) => lane.receiver == receiver,
                Lanes::Of(end) => lane.receiver == end || lane.sender == Some(end),
                Lanes::Bus(bus) => lane.sender.is_some() && lane.bus == bus,
            };
            if meant {
                lane.granted = false;
                if let Lanes::Of(end) = which {
                    terms::end(lane.gate.page());
                    if let Some(sender) = lane.sender.filter(|sender| *sender != end) {
                        // Its calls have no end any more.
                        woken(sender);
                    }
                }
                if lane.gate.verdict().is_open() {
                    lane.gate.close();
                    woken(lane.receiver);
                }
            }
        }
    }

    /// Closes the lanes into a connection. False if one holds a message: then they are as they were.
    pub(crate) fn retire(&mut self, receiver: HandleId) -> bool {
        let own = |lane: &&mut Lane| lane.receiver == receiver && lane.sealed;
        let mut holds = false;
        for lane in self.lanes.iter_mut().flatten().filter(own) {
            lane.gate.close();
            holds |= lane.gate.holds_messages(&lane.back);
        }
        if holds {
            for lane in self.lanes.iter_mut().flatten().filter(own).filter(|lane| lane.granted) {
                lane.gate.open();
            }
        }
        !holds
    }

    /// Forgets the lanes into a connection that has ended. They are closed.
    pub(crate) fn remove(&mut self, receiver: HandleId) {
        for place in &mut self.lanes {
            if place.as_ref().is_some_and(|lane| lane.receiver == receiver) {
                *place = None;
            }
        }
    }
}

/// A descriptor of a memory file that can be read and not written. Whoever mapped the lane part before its sender did
/// could otherwise write it ever after: a seal spares the mappings that exist.
fn read_only(file: &OwnedFd) -> io::Result<OwnedFd> {
    // Nor can it be opened once more for writing by another user than this one.
    fs::fchmod(file, Mode::RUSR)?;
    open_again(file, OFlags::empty())
}

/// A reading description of its own of the same file.
fn open_again(file: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let mut path = heapless::String::<32>::new();
    // Ten digits fit.
    let _ = write!(path, "/proc/self/fd/{}", file.as_raw_fd());
    // Without /proc there are no lanes.
    fs::open(path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC | flags, Mode::empty()).map_err(|error| {
        match error {
            io::Errno::NOENT => io::Errno::OPNOTSUPP,
            other => other,
        }
    })
}

impl Lane {
    /// What its sender gets.
    fn copies(&self) -> io::Result<LaneFds> {
        self.files.iter().flatten().map(|file| io::fcntl_dupfd_cloexec(file, 0)).collect()
    }

    /// Whether messages may be sent under these terms. They are written if they are others than before, which
    /// needs a lane without messages.
    fn accept(&mut self, terms: &Terms<'_>) -> bool {
        // By a lane that is open to a name, messages to its owner's id go as well. One that was closed may lead to
        // somebody who does not own the name any more.
        let open = self.gate.verdict().is_open();
        let covered = terms.name == self.name || (open && terms.name.is_empty());
        if self.terms != 0 && covered && terms.attach == self.attach {
            return true;
        }
        if open && self.gate.holds_messages(&self.back) {
            // Closing would be for nothing, and a lane can be opened so many times only.
            return false;
        }
        self.gate.close();
        if self.gate.holds_messages(&self.back) || !terms.write(self.gate.page(), self.terms + 1) {
            if open {
                self.gate.open();
            }
            return false;
        }
        (self.terms, self.attach) = (self.terms + 1, terms.attach);
        // A name that the bus has is no longer than this.
        self.name = heapless::Vec::from_slice(terms.name).unwrap_or_default();
        if open {
            self.gate.open();
        }
        true
    }
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
