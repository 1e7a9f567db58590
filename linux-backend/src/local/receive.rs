//! Receiving out of shared memory.

use kdbus_core::abi::RecvFlags;
use kdbus_core::channel::{Arrived, InboxReader, Order, ReturnsFull, Words};
use kdbus_core::engine::Return;
use kdbus_core::queue::{Handle, Head, Node, PriorityQueue};
use rustix::io::Errno;

use super::arena::Arena;
use super::bell;
use super::inward::InLanes;
use super::map::Block;

/// The lane in which kdbusd shows its entries.
pub(super) const KDBUSD: u32 = 0;

/// Looks at fresh entries that may follow each other before the receiver gives up for now.
const LOOKS: usize = 3;

/// What waits for one connection: kdbusd's shared queue and the lanes into it, merged into one queue.
#[derive(Debug)]
pub(super) struct Receiver<P, S> {
    inbox: InboxReader<P, S>,
    order: Order,
    head: Head,
    nodes: Block<Node<Arrived>>,
    /// What stands in the queue for each slot of kdbusd's lane. It may be gone there by now.
    queued: Block<Option<Handle>>,
    batch: Block<Arrived>,
    lanes: Option<InLanes>,
    /// Losses that were reported.
    lost: u64,
    /// Notices that the owner was woken for.
    notices: u64,
}

impl<P: Words, S: Words> Receiver<P, S> {
    /// A receiver of what `inbox` shows.
    pub(super) fn new(inbox: InboxReader<P, S>) -> Result<Self, Errno> {
        let depth = inbox.layout().depth() as usize;
        let (lost, notices) = (inbox.lost(), inbox.notices());
        Ok(Self {
            inbox,
            order: Order::new(),
            head: Head::new(),
            nodes: Block::new(depth, Node::new)?,
            queued: Block::new(depth, || None)?,
            batch: Block::new(depth, Arrived::default)?,
            lanes: None,
            lost,
            notices,
        })
    }

    /// Receives by `lanes` too. Nothing was received yet.
    pub(super) fn add_lanes(&mut self, lanes: InLanes) -> Result<(), Errno> {
        let room = self.inbox.layout().depth() as usize + lanes.room();
        self.head = Head::new();
        self.nodes = Block::new(room, Node::new)?;
        self.batch = Block::new(room, Arrived::default)?;
        self.lanes = Some(lanes);
        Ok(())
    }

    /// The lanes.
    pub(super) const fn lanes(&mut self) -> Option<&mut InLanes> {
        self.lanes.as_mut()
    }

    /// The next message as `flags` and `priority` ask for it. It stays queued until [`take`](Self::take) or
    /// [`forget`](Self::forget).
    pub(super) fn next(&mut self, flags: RecvFlags, priority: i64, arena: Option<&Arena>) -> Option<Arrived> {
        let by_priority = flags.contains(RecvFlags::USE_PRIORITY);
        // What came in since is younger than anything that is queued, so in order of arrival it can wait.
        if by_priority || self.head.is_empty() {
            self.look(arena);
        }
        let queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
        let entry = if by_priority { queue.peek() } else { queue.peek_front() }?;
        // kdbus: the most urgent message is returned only if its priority is at most the one given.
        (!by_priority || entry.priority <= priority).then_some(*entry.item)
    }

    /// Receives `message`, which [`next`](Self::next) has returned. `Ok(None)` if its sender or kdbusd took
    /// it back, else whether kdbusd has to be told of the return.
    ///
    /// # Errors
    ///
    /// [`ReturnsFull`] if it can only be received by command; it stays queued.
    pub(super) fn take(&mut self, message: &Arrived) -> Result<Option<bool>, ReturnsFull> {
        // What is taken has to be returned, so the place for that comes first.
        if !self.inbox.has_return_room() {
            return Err(ReturnsFull);
        }
        let won = self.inbox.take(message.slot, message.key);
        self.forget(message);
        if !won {
            return Ok(None);
        }
        self.inbox.push_return(Return::Taken { slot: message.slot, key: message.key }).map(Some)
    }

    /// Receives or, with `DROP`, gives up a message that came by lane; with `PEEK`, only shows it.
    pub(super) fn take_from_lane(&mut self, message: &Arrived, flags: RecvFlags, arena: &Arena) {
        let Some(lanes) = &mut self.lanes else { return };
        if !flags.contains(RecvFlags::DROP) {
            lanes.show(message.slot, arena);
        }
        if !flags.contains(RecvFlags::PEEK)
            && let Some(queued) = lanes.take(message.slot, arena)
        {
            PriorityQueue::new(&mut self.head, &mut self.nodes).remove(queued);
        }
    }

    /// Removes `message` from the queue: it was received by command, or is gone.
    pub(super) fn forget(&mut self, message: &Arrived) {
        if let Some(handle) = self.queued.get_mut(message.slot as usize).and_then(Option::take) {
            PriorityQueue::new(&mut self.head, &mut self.nodes).remove(handle);
        }
    }

    /// Gives the slice at `offset` back. True if kdbusd has to be told.
    ///
    /// # Errors
    ///
    /// [`ReturnsFull`] if it can only be given back by command.
    pub(super) fn free(&mut self, offset: u64) -> Result<bool, ReturnsFull> {
        self.inbox.push_return(Return::Freed(offset))
    }

    /// Broadcasts lost since the last time.
    pub(super) fn dropped(&mut self) -> u64 {
        let lost = self.inbox.lost();
        lost.wrapping_sub(core::mem::replace(&mut self.lost, lost))
    }

    /// Whether broadcasts were lost that [`dropped`](Self::dropped) has not told of.
    pub(super) fn has_losses(&self) -> bool {
        self.inbox.lost() != self.lost
    }

    /// Asks for the bell, which the caller has silenced, and looks at everything once more. True if there is
    /// something that nobody rings for, losses from before aside: the caller reports them next.
    pub(super) fn arm(&mut self) -> bool {
        let lost = self.inbox.lost();
        self.inbox.arm();
        if let Some(lanes) = &mut self.lanes {
            lanes.ask_bells();
        }
        let notices = self.inbox.notices();
        let noticed = core::mem::replace(&mut self.notices, notices) != notices;
        noticed || self.has_fresh() || !self.head.is_empty() || self.inbox.lost() != lost
    }

    /// Whether the connection still lives.
    pub(super) fn is_alive(&self) -> bool {
        self.inbox.is_alive()
    }

    /// Whether something came in that was not looked at.
    fn has_fresh(&mut self) -> bool {
        self.inbox.has_fresh() || self.lanes.as_mut().is_some_and(InLanes::has_fresh)
    }

    /// Moves what came in into the queue.
    fn look(&mut self, arena: Option<&Arena>) {
        for _ in 0..LOOKS {
            if !self.has_fresh() {
                return;
            }
            // The clock comes first: what is queued later in one lane waits for the next look, because
            // something older may come into a lane that was looked at before.
            let mut batch = self.order.batch(bell::now(), &mut self.batch);
            self.inbox.fresh(|entry| {
                batch.admit(Arrived {
                    key: entry.key,
                    priority: entry.priority,
                    lane: KDBUSD,
                    slot: entry.slot,
                    offset: entry.offset,
                    size: entry.size,
                    with_files: entry.with_files,
                })
            });
            if let (Some(lanes), Some(arena)) = (&mut self.lanes, arena) {
                lanes.drain(&mut batch, arena);
            }
            let mut queue = PriorityQueue::new(&mut self.head, &mut self.nodes);
            for arrived in batch.sorted() {
                if let (Some(lanes), true) = (&mut self.lanes, arrived.lane != KDBUSD) {
                    // There are as many places as messages that may wait.
                    lanes.queued(arrived.slot, queue.push(arrived.priority, *arrived).ok());
                    continue;
                }
                let Some(queued) = self.queued.get_mut(arrived.slot as usize) else { continue };
                // The slot was used before, for something that was taken back.
                if let Some(old) = queued.take() {
                    queue.remove(old);
                }
                // There are as many places as slots, and each slot has one.
                *queued = queue.push(arrived.priority, *arrived).ok();
            }
            if !queue.is_empty() {
                return;
            }
        }
    }
}
