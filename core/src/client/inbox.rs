//! Messages taken out of the transport while something else was waited for.

use super::transport::Incoming;
use crate::queue::StaticQueue;

/// Messages that arrived while a call was waiting, by arrival and by priority.
pub(super) struct Inbox<Fd, const N: usize> {
    waiting: StaticQueue<Incoming<Fd>, N>,
}

impl<Fd, const N: usize> Inbox<Fd, N> {
    pub(super) const fn new() -> Self {
        Self { waiting: StaticQueue::new() }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) const fn is_full(&self) -> bool {
        self.waiting.is_full()
    }

    pub(super) fn push(&mut self, priority: i64, incoming: Incoming<Fd>) -> Result<(), Incoming<Fd>> {
        self.waiting.view().push(priority, incoming).map(|_| ()).map_err(|full| full.0)
    }

    /// Takes the message that arrived first.
    pub(super) fn pop_front(&mut self) -> Option<Incoming<Fd>> {
        self.waiting.view().pop_front()
    }

    /// Takes the first message of the most urgent priority, if that is at most `limit`.
    pub(super) fn pop_at_most(&mut self, limit: i64) -> Option<Incoming<Fd>> {
        self.waiting.view().pop_at_most(limit)
    }

    /// The most urgent priority.
    pub(super) fn best(&mut self) -> Option<i64> {
        self.waiting.view().peek().map(|entry| entry.priority)
    }

    /// Where the message that arrived first lies: offset and size.
    pub(super) fn front(&mut self) -> Option<(u64, u64)> {
        let queue = self.waiting.view();
        let front = queue.peek_front()?;
        Some((front.item.info.offset, front.item.info.msg_size))
    }

    pub(super) fn clear(&mut self) {
        let mut queue = self.waiting.view();
        while queue.pop_front().is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::MsgInfo;

    fn incoming(offset: u64) -> Incoming<()> {
        Incoming { info: MsgInfo { offset, msg_size: 64, return_flags: 0 }, fds: heapless::Vec::new() }
    }

    fn offset(incoming: Option<Incoming<()>>) -> Option<u64> {
        incoming.map(|incoming| incoming.info.offset)
    }

    #[test]
    fn messages_leave_by_arrival_or_by_urgency() {
        let mut inbox = Inbox::<(), 4>::new();
        for (priority, offset) in [(5, 0), (-1, 8), (5, 16), (-1, 24)] {
            assert!(inbox.push(priority, incoming(offset)).is_ok());
        }
        assert!(inbox.is_full());
        assert_eq!(offset(inbox.push(0, incoming(32)).err()), Some(32));
        assert_eq!((inbox.best(), inbox.front()), (Some(-1), Some((0, 64))));
        assert_eq!(offset(inbox.pop_at_most(-1)), Some(8));
        assert_eq!(offset(inbox.pop_front()), Some(0));
        assert_eq!(offset(inbox.pop_at_most(4)), Some(24));
        assert_eq!(offset(inbox.pop_at_most(4)), None);
        assert_eq!(offset(inbox.pop_at_most(5)), Some(16));
        assert!(inbox.pop_front().is_none() && inbox.is_empty());
    }

    #[test]
    fn clearing_leaves_room_for_all_again() {
        let mut inbox = Inbox::<(), 2>::new();
        for offset in 0..2 {
            assert!(inbox.push(0, incoming(offset)).is_ok());
        }
        inbox.clear();
        assert!(inbox.is_empty());
        assert!(inbox.push(0, incoming(9)).is_ok());
        assert_eq!(inbox.front(), Some((9, 64)));
    }
}
