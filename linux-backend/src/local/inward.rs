//! One lane into a connection: what comes by it finds room with the receiver, and gets its room in the lane back.

use kdbus_core::abi::{AttachFlags, Timestamp};
use kdbus_core::channel::terms::{self, HeldTerms};
use kdbus_core::channel::{LaneHead, Place, Settled, Violation, settle};
use kdbus_core::hint::likely;
use zerocopy::IntoBytes;

use super::arena::{Arena, BLOCK, Held};
use super::bell::{self, Rings};
use super::calls::Owed;
use super::lane::InLane;

/// Bytes of the shortest message in a lane: head and header.
const SHORTEST: u64 = 96;

/// A lane, and what kdbusd says of it.
#[derive(Debug)]
pub(super) struct Inward {
    pub(super) lane: InLane,
    pub(super) terms: HeldTerms,
    /// Messages of it that wait in the queue, and that may: as many as clients get into it, so that none stays there whose
    /// turn it is for lack of a place alone.
    pub(super) waiting: u32,
    pub(super) places: u32,
    /// Words of its ring that messages took which wait in the queue and lie in its pool.
    queued: u64,
    /// Those that it does not get back before the application gives something back.
    withheld: u64,
    /// The bell was not asked for since something came.
    pub(super) hot: bool,
    /// Something came since idle lanes were last made cold.
    pub(super) used: bool,
    /// There was no room for its next message: it is not looked at before something is given back.
    pub(super) full: bool,
    pub(super) rings: Rings,
    pub(super) owed: Owed,
}

impl Inward {
    pub(super) const fn new(lane: InLane) -> Self {
        let places = (lane.bytes() / SHORTEST) as u32;
        Self {
            lane,
            terms: HeldTerms::new(),
            waiting: 0,
            places,
            queued: 0,
            withheld: 0,
            hot: false,
            used: false,
            full: false,
            rings: Rings::new(),
            owed: Owed::new(),
        }
    }

    /// Gives back the room in the lane of a message that is received now. The application may hold it on and on, so the lane has
    /// room for no more than the arena has.
    #[inline]
    pub(super) fn give_back(&mut self, at: usize, held: Held, words: u64, arena: &Arena) {
        if likely(!held.is_in_pool()) {
            // What comes instead has as much room in the pool as before.
            self.lane.give_back(words);
            return;
        }
        self.withheld += words;
        self.settle(at, arena);
    }

    /// Gives back what was withheld, where the application has given something back. False if nothing was.
    pub(super) fn gave_back(&mut self, at: usize, arena: &Arena) -> bool {
        let withheld = self.withheld > 0;
        if withheld {
            self.settle(at, arena);
        }
        withheld
    }

    /// A message of it waits in the queue now.
    pub(super) const fn queues(&mut self, held: Held, words: u64) {
        self.waiting += 1;
        if held.is_in_pool() {
            self.queued += words;
        }
    }

    /// A message of it does not wait in the queue any more.
    pub(super) const fn unqueues(&mut self, held: Held, words: u64) {
        self.waiting = self.waiting.saturating_sub(1);
        if held.is_in_pool() {
            self.queued = self.queued.saturating_sub(words);
        }
    }

    /// Whether nothing more comes by it, and nothing waits.
    pub(super) fn is_worn(&self) -> bool {
        let has_ended = || terms::has_ended(self.lane.page()) && self.lane.is_drained();
        self.waiting == 0 && (self.lane.is_rejected() || has_ended())
    }

    /// Gives back what is withheld as far as the arena has room, in one piece, for all that the lane can bring then.
    #[inline(never)]
    fn settle(&mut self, at: usize, arena: &Arena) {
        let comes = (self.lane.bytes() / 8).saturating_sub(self.queued + self.withheld);
        let more = self.shown();
        // What is shorter than a block lies there.
        let shortest = (BLOCK / 8).saturating_sub(more).max(SHORTEST / 8);
        let needed = |words: u64| words + words.div_ceil(shortest) * more;
        let room = arena.largest_free(at) / 8;
        let spare = room.saturating_sub(needed(comes));
        // As much of it as takes no more than that with what it shows.
        self.return_withheld(spare * shortest / (shortest + more));
    }

    /// Words that a message takes more in the arena than in the lane, by what it shows of its sender.
    fn shown(&self) -> u64 {
        let head = LaneHead { first: SHORTEST, second: 0, key: 0, call: 0 };
        let size = Place::of(&head, &self.terms).map_or(0, |place| place.size() / 8);
        size.saturating_sub(head.words().unwrap_or(0))
    }

    /// Gives back at most so many words of what is withheld.
    pub(super) fn return_withheld(&mut self, most: u64) {
        let words = self.withheld.min(most);
        if words > 0 {
            self.withheld -= words;
            self.lane.give_back(words);
        }
    }

    /// Copies the message at the head of the lane to where it stays, and examines the copy. `Ok(None)` if there is no room for
    /// it, or if it is not `wanted`: it stays in the lane.
    ///
    /// # Errors
    ///
    /// [`Violation`]; the copy is gone.
    #[inline(never)]
    pub(super) fn copy_in(
        &mut self,
        at: usize,
        head: &LaneHead,
        time: u64,
        look: &mut Look<'_>,
        wanted: &dyn Fn(u64, &Settled) -> bool,
    ) -> Result<Option<Copied>, Violation> {
        let Self { lane, terms, .. } = self;
        terms.refresh(lane.page());
        let place = Place::of(head, terms).ok_or(Violation)?;
        // A clock takes as long as all of the rest, so it is read only for those who are to see it.
        let shows_time = terms.attach().contains(AttachFlags::TIMESTAMP);
        if shows_time && !look.is_past && time > bell::now().as_nanos() {
            // It cannot have been sent then.
            return Ok(None);
        }
        let realtime_ns = if shows_time { look.realtime(time) } else { 0 };
        let stamp = Timestamp { seqnum: time, monotonic_ns: time, realtime_ns };
        let receiver = look.receiver;
        let filled = look.arena.fill(Some(at), place.size(), |slice| {
            let (first, second) = place.parts(slice).ok_or(Some(Violation))?;
            lane.copy_head(first, second).ok_or(Some(Violation))?;
            let settled = settle(slice.as_mut_bytes(), &place, terms, receiver, stamp).map_err(Some)?;
            if wanted(terms.sender(), &settled) { Ok(settled) } else { Err(None) }
        });
        match filled {
            Some(Ok((held, settled))) => Ok(lane.advance().map(|words| Copied { held, settled, words })),
            Some(Err(Some(Violation))) => Err(Violation),
            Some(Err(None)) | None => Ok(None),
        }
    }
}

/// A message that was copied out of its lane.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    pub(super) held: Held,
    pub(super) settled: Settled,
    /// Room that it took in its lane.
    pub(super) words: u64,
}

/// One look at lanes: for whom it is, and where copies go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look<'a> {
    pub(super) receiver: u64,
    pub(super) arena: &'a Arena,
    /// Times were compared with the clock.
    pub(super) is_past: bool,
    /// From the clock to the time of day, once somebody has asked for it.
    pub(super) offset: Option<i64>,
}

impl Look<'_> {
    /// The time of day at this time.
    fn realtime(&mut self, monotonic: u64) -> u64 {
        monotonic.saturating_add_signed(*self.offset.get_or_insert_with(bell::realtime_offset))
    }
}
