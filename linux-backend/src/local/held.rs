//! Entries that kdbusd shows and that wait for older messages of their sender, which found no room when they came by lane.

use kdbus_core::Instant;
use kdbus_core::abi::{ItemType, Msg, PAYLOAD_KERNEL, SRC_ID_KERNEL};
use kdbus_core::channel::{Batch, Entry};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::arena::Arena;
use super::block::Block;
use super::calls::Call;
use super::in_lanes::InLanes;
use super::map::ReadMap;
use super::outward::OutLanes;

/// The key of what is held back in each slot of the shared queue.
#[derive(Debug)]
pub(super) struct HeldBack {
    /// 0 where there is nothing.
    keys: Block<u64>,
    any: bool,
}

impl HeldBack {
    /// Nothing, in a queue of `depth` slots.
    pub(super) fn new(depth: usize) -> Result<Self, Errno> {
        Ok(Self { keys: Block::new(depth, || 0)?, any: false })
    }

    /// Whether there may be something.
    pub(super) const fn is_any(&self) -> bool {
        self.any
    }

    /// Holds an entry back.
    pub(super) fn add(&mut self, slot: u32, key: u64) {
        if let Some(place) = self.keys.get_mut(slot as usize) {
            *place = key;
            self.any = true;
        }
    }

    /// Whether an entry is held back.
    pub(super) fn has(&self, slot: u32, key: u64) -> bool {
        self.any && self.keys.get(slot as usize) == Some(&key)
    }

    /// Holds nothing back any more. Cost: `O(depth)` if there was something.
    pub(super) fn clear(&mut self) {
        if core::mem::take(&mut self.any) {
            self.keys.fill(0);
        }
    }
}

impl InLanes {
    /// Looks at an entry that kdbusd shows before it is admitted. False if it has to stay there for now.
    pub(super) fn meet(
        &mut self,
        entry: &Entry,
        pool: Option<&ReadMap>,
        arena: &Arena,
        outward: &mut OutLanes,
        batch: &mut Batch<'_>,
    ) -> bool {
        if !self.stuck && !self.owes() && outward.calls().is_empty() {
            return true;
        }
        let Some(header) = read_header(entry, pool) else { return true };
        self.came_by_bus(&header);
        outward.brought(header.src_id, header.cookie_reply());
        let gone = who_left(entry, &header, pool);
        let held = self.holds_up(entry, &header, gone, outward.calls().waited())
            || gone.is_some_and(|gone| {
                batch.takes(entry.key) && !self.tell_before(gone, entry.key, arena, outward, batch)
            });
        if held {
            self.held.add(entry.slot, entry.key);
        }
        !held
    }

    /// Whether an entry that kdbusd shows has to stay there for now, because an older message of its sender, or of who is
    /// `gone` by its word, stays in a lane. The reply that the connection waits for stays for nothing.
    fn holds_up(&mut self, entry: &Entry, header: &Msg, gone: Option<u64>, waited: Option<&Call>) -> bool {
        if !self.stuck || waited.is_some_and(|call| call.is_answered_by(header, entry.key)) {
            return false;
        }
        let from = gone.unwrap_or(header.src_id);
        self.lanes.iter_mut().flatten().any(|inward| {
            inward.full
                && inward.terms.sender() == from
                && matches!(inward.lane.peek(), Ok(Some(head)) if head.key <= entry.key)
        })
    }

    /// Ends the calls to who is `gone`, and admits that before the notification with this key, which says so. False if that
    /// has to stay for now: who is gone has sent something that was not looked at, or there is no room.
    fn tell_before(
        &mut self,
        gone: u64,
        key: u64,
        arena: &Arena,
        outward: &mut OutLanes,
        batch: &mut Batch<'_>,
    ) -> bool {
        if outward.calls().is_empty() {
            return true;
        }
        let others = |callee| callee != gone;
        if self.awaits(gone) {
            return outward.call_to_the_dead(others).is_none();
        }
        // Ends: each round ends a call.
        while let Some(call) = outward.call_to_the_dead(others) {
            outward.finish(&call, false, true);
        }
        // What they have sent is older than that they are gone.
        let before = Instant::from_nanos(key.saturating_sub(1));
        while let Some((call, dead)) = outward.calls().untold() {
            let Some(arrived) = self.call_ended(call.cookie, dead, before, arena) else {
                self.silence();
                return !outward.calls().has_untold_to(gone);
            };
            let admitted = batch.admit(arrived);
            debug_assert!(admitted, "there was room");
            outward.calls().close(call.name);
        }
        true
    }

    /// Whether some of what kdbusd shows is held up until something is given back.
    pub(super) const fn holds_back(&self) -> bool {
        (self.stuck || self.mute) && self.held.is_any()
    }
}

/// The header of what kdbusd shows. Whether the entry was taken back, and its place is another's, tells whoever takes it.
pub(super) fn read_header(entry: &Entry, pool: Option<&ReadMap>) -> Option<Msg> {
    let mut header = Msg::default();
    pool?.read(entry.offset, header.as_mut_bytes()).ok()?;
    Some(header)
}

/// Whose connection has ended, if an entry says that of one.
fn who_left(entry: &Entry, header: &Msg, pool: Option<&ReadMap>) -> Option<u64> {
    let mut words = [0_u64; 3];
    let is_notification = header.src_id == SRC_ID_KERNEL && header.payload_type == PAYLOAD_KERNEL;
    pool.filter(|_| is_notification)?.read(entry.offset + Msg::SIZE as u64, words.as_mut_bytes()).ok()?;
    let [_, kind, id] = words;
    (kind == ItemType::ID_REMOVE.0).then_some(id)
}
