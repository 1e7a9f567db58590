//! Messages taken out of the transport while something else was waited for.

use super::transport::Incoming;

/// Messages that arrived while a call was waiting, in order of arrival.
pub(super) struct Inbox<Fd, const N: usize> {
    waiting: heapless::Vec<(i64, Incoming<Fd>), N>,
}

impl<Fd, const N: usize> Inbox<Fd, N> {
    pub(super) const fn new() -> Self {
        Self { waiting: heapless::Vec::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.is_full()
    }

    pub(super) fn push(&mut self, priority: i64, incoming: Incoming<Fd>) -> Result<(), Incoming<Fd>> {
        self.waiting.push((priority, incoming)).map_err(|(_, incoming)| incoming)
    }

    /// Takes the message that arrived first.
    pub(super) fn pop_front(&mut self) -> Option<Incoming<Fd>> {
        if self.waiting.is_empty() { None } else { Some(self.waiting.remove(0).1) }
    }

    /// Takes the first message of the most urgent priority.
    pub(super) fn pop(&mut self) -> Option<Incoming<Fd>> {
        let best = self.best()?;
        let at = self.waiting.iter().position(|(priority, _)| *priority == best)?;
        Some(self.waiting.remove(at).1)
    }

    /// The most urgent priority.
    pub(super) fn best(&self) -> Option<i64> {
        self.waiting.iter().map(|(priority, _)| *priority).min()
    }

    pub(super) fn front(&self) -> Option<&Incoming<Fd>> {
        self.waiting.first().map(|(_, incoming)| incoming)
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }
}
