//! The lanes into one connection.

use kdbus_core::abi::Timestamp;
use kdbus_core::channel::terms::{self, HeldTerms};
use kdbus_core::channel::{Arrived, Batch, Place, settle};
use kdbus_core::queue;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::arena::{Arena, Held};
use super::bell::{self, Rings};
use super::lane::InLane;
use super::map::Block;

/// Small messages of one lane that may wait or be read.
const BLOCKS: usize = 64;
/// Messages of one lane that may wait.
const WAITING: usize = 128;
/// Large messages of one lane that may wait or be read.
const RECORDS: usize = 128;

/// A message that came by lane and waits in the queue.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    held: Held,
    lane: usize,
    /// Room that its lane gets back when it is received.
    words: u64,
    queued: Option<queue::Handle>,
}

/// A lane, and what kdbusd says of it.
#[derive(Debug)]
struct Inward {
    lane: InLane,
    terms: HeldTerms,
    /// Messages of it that wait in the queue.
    waiting: u32,
    /// The bell was not asked for since something came.
    hot: bool,
    rings: Rings,
}

impl Inward {
    const fn new(lane: InLane) -> Self {
        Self { lane, terms: HeldTerms::new(), waiting: 0, hot: false, rings: Rings::new() }
    }
}

/// All lanes into one connection, and the messages that came by them.
#[derive(Debug)]
pub(super) struct InLanes {
    lanes: Block<Option<Inward>>,
    waiting: Block<Option<Waiting>>,
    /// Places in `waiting` that are free, the one that was left last on top.
    free: Block<u32>,
    free_len: usize,
    /// Id of the connection.
    receiver: u64,
}

impl InLanes {
    /// Room for as many lanes as `lanes` brings into connection `receiver`, and for what comes by them.
    pub(super) fn new(
        lanes: impl IntoIterator<Item = InLane>,
        count: usize,
        receiver: u64,
    ) -> Result<(Self, Arena), Errno> {
        let mut bytes = 0;
        let mut lanes = lanes.into_iter();
        let lanes = Block::new(count, || {
            let lane = lanes.next()?;
            bytes += 2 * lane.bytes();
            Some(Inward::new(lane))
        })?;
        let room = WAITING * count;
        let mut number = 0;
        let free = Block::new(room, || {
            number += 1;
            number - 1
        })?;
        let arena = Arena::new(BLOCKS * count, bytes, RECORDS * count)?;
        let waiting = Block::new(room, || None)?;
        Ok((Self { lanes, waiting, free, free_len: room, receiver }, arena))
    }

    /// Messages that may wait all in all.
    pub(super) fn room(&self) -> usize {
        self.waiting.len()
    }

    /// The bells, with the number of each lane.
    pub(super) fn bells(&self) -> impl Iterator<Item = (usize, BorrowedFd<'_>)> {
        self.lanes.iter().enumerate().filter_map(|(at, lane)| Some((at, lane.as_ref()?.lane.as_fd())))
    }

    /// Whether a lane has something that was not looked at. Cost: a few loads for each lane.
    pub(super) fn has_fresh(&mut self) -> bool {
        self.free_len > 0
            && self.lanes.iter_mut().flatten().any(|inward| matches!(inward.lane.peek(), Ok(Some(_))))
    }

    /// Copies what was sent up to the cut out of the lanes, examines it and admits it to the batch. A lane whose
    /// sender breaks a rule is not looked at again.
    pub(super) fn drain(&mut self, batch: &mut Batch<'_>, arena: &Arena) {
        let mut offset = None;
        for (at, inward) in self.lanes.iter_mut().enumerate() {
            let Some(Inward { lane, terms, waiting, hot, .. }) = inward else { continue };
            // Ends: a lane holds a bounded number of messages that were not received.
            while let Ok(Some(head)) = lane.peek() {
                *hot = true;
                let Some(last) = self.free_len.checked_sub(1) else { return };
                let Some(slot) = self.free.get(last).copied() else { return };
                if !batch.takes(head.key) {
                    break;
                }
                terms.refresh(lane.page());
                let Some(place) = Place::of(&head, terms) else {
                    lane.reject();
                    break;
                };
                let offset = *offset.get_or_insert_with(bell::realtime_offset);
                let key = batch.time_of(head.key);
                let stamp = Timestamp {
                    seqnum: key,
                    monotonic_ns: key,
                    realtime_ns: key.saturating_add_signed(offset),
                };
                let receiver = self.receiver;
                let filled = arena.fill(place.size(), |words| {
                    let (first, second) = place.parts(words).ok_or(None)?;
                    let taken = lane.copy_out(first, second).ok_or(None)?;
                    let settled = settle(words.as_mut_bytes(), &place, terms, receiver, stamp);
                    settled.map(|settled| (settled, taken)).map_err(Some)
                });
                let (held, (settled, words)) = match filled {
                    Some(Ok(filled)) => filled,
                    Some(Err(_)) => {
                        lane.reject();
                        break;
                    }
                    // It stays where it is until something is given back.
                    None => break,
                };
                let arrived = Arrived {
                    key: head.key,
                    priority: settled.priority,
                    lane: at as u32 + 1,
                    slot,
                    offset: held.offset,
                    size: held.size,
                    with_files: false,
                };
                let admitted = batch.admit(arrived);
                debug_assert!(admitted, "there was room");
                self.free_len = last;
                if let Some(place) = self.waiting.get_mut(slot as usize) {
                    *place = Some(Waiting { held, lane: at, words, queued: None });
                }
                *waiting += 1;
            }
        }
    }

    /// Remembers where a message stands in the queue.
    pub(super) fn queued(&mut self, slot: u32, handle: Option<queue::Handle>) {
        if let Some(Some(waiting)) = self.waiting.get_mut(slot as usize) {
            waiting.queued = handle;
        }
    }

    /// Shows a message that stays queued.
    pub(super) fn show(&self, slot: u32, arena: &Arena) {
        if let Some(Some(waiting)) = self.waiting.get(slot as usize) {
            arena.show(waiting.held);
        }
    }

    /// Receives a message: its lane gets its room back. The application has its bytes if they were shown, and nobody
    /// otherwise. Returns its place in the queue.
    pub(super) fn take(&mut self, slot: u32, arena: &Arena) -> Option<queue::Handle> {
        let Waiting { held, lane, words, queued } = self.waiting.get_mut(slot as usize)?.take()?;
        arena.release(held);
        if let Some(place) = self.free.get_mut(self.free_len) {
            *place = slot;
            self.free_len += 1;
        }
        if let Some(Some(inward)) = self.lanes.get_mut(lane) {
            inward.waiting = inward.waiting.saturating_sub(1);
            inward.lane.give_back(words);
        }
        queued
    }

    /// Asks for the bells of the lanes by which something came. The caller then looks once more at everything.
    pub(super) fn ask_bells(&mut self) {
        for inward in self.lanes.iter_mut().flatten().filter(|inward| inward.hot) {
            inward.hot = false;
            inward.lane.ask_bell();
        }
    }

    /// Lane `at` rang. Its bell is emptied now and then, or at once if rings are lost otherwise.
    pub(super) fn rang(&mut self, at: usize, emptied: bool) {
        if let Some(Some(inward)) = self.lanes.get_mut(at) {
            inward.hot = true;
            if inward.rings.count(emptied) {
                inward.lane.silence();
            }
        }
    }

    /// A lane that nothing more comes by, and its number here; its place is empty now.
    pub(super) fn worn_out(&mut self) -> Option<(usize, InLane)> {
        let worn = |inward: &Inward| {
            inward.waiting == 0
                && (inward.lane.is_rejected()
                    || (terms::has_ended(inward.lane.page()) && inward.lane.is_drained()))
        };
        let at = self.lanes.iter().position(|inward| inward.as_ref().is_some_and(worn))?;
        Some((at, self.lanes.get_mut(at)?.take()?.lane))
    }

    /// Puts a new lane in an empty place.
    pub(super) fn replace(&mut self, at: usize, lane: InLane) {
        if let Some(place) = self.lanes.get_mut(at) {
            *place = Some(Inward::new(lane));
        }
    }
}
