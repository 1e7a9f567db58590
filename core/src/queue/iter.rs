//! Ways through the entries of a queue.

use super::{Entry, Head, LANES, NONE, Node, PriorityQueue, entry};

/// Removes the items up to a priority, most urgent first; made by [`PriorityQueue::drain_up_to`].
#[derive(Debug)]
pub struct Drain<'q, 'a, T> {
    pub(super) queue: &'q mut PriorityQueue<'a, T>,
    pub(super) limit: i64,
    pub(super) left: usize,
}

impl<T> Iterator for Drain<'_, '_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        self.queue.pop_at_most(self.limit)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left))
    }
}

/// A place between the entries of a queue, in order of arrival; made by [`PriorityQueue::cursor`].
///
/// It does not borrow the queue: the entry that was returned last may be removed before the next step.
/// After any other change it may miss entries.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The next entry of each list, [`NONE`] behind the last.
    pub(super) lists: [u32; LANES + 1],
    pub(super) left: usize,
}

/// The entries of a queue in order of arrival; made by [`PriorityQueue::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a, T> {
    pub(super) head: &'a Head,
    pub(super) nodes: &'a [Node<T>],
    pub(super) cursor: Cursor,
}

impl Cursor {
    /// Goes past the oldest entry that is ahead and returns it, in `O(1)`.
    pub(super) fn advance<'n, T>(&mut self, head: &Head, nodes: &'n [Node<T>]) -> Option<Entry<'n, T>> {
        self.left = self.left.checked_sub(1)?;
        let mut oldest = None;
        for (list, &slot) in self.lists.iter().enumerate() {
            if let Some(node) = nodes.get(slot as usize)
                && oldest.is_none_or(|(_, arrival)| node.arrival < arrival)
            {
                oldest = Some((list, node.arrival));
            }
        }
        let (list, _) = oldest?;
        let slot = self.lists[list];
        let is_last = slot == head.ends[list].last;
        self.lists[list] = if is_last { NONE } else { nodes.get(slot as usize)?.next };
        entry(nodes, slot)
    }
}

impl<'a, T> Iterator for Iter<'a, T> {
    type Item = Entry<'a, T>;

    fn next(&mut self) -> Option<Entry<'a, T>> {
        self.cursor.advance(self.head, self.nodes)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.cursor.left))
    }
}
