//! A call that waits in a thread of its own, and how far it is.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kdbus_conformance::Ended;

/// A SEND in a thread of its own.
#[derive(Debug)]
pub struct Call {
    pub(crate) thread: JoinHandle<()>,
    pub(crate) progress: Arc<Progress>,
}

#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) state: Mutex<State>,
    pub(crate) changed: Condvar,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    /// The thread is about to issue the command.
    pub(crate) issued: bool,
    pub(crate) ended: Option<Ended>,
}

impl Progress {
    pub(crate) fn update(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    /// Waits until something is so; false if it did not come to that in time.
    pub(crate) fn wait(&self, patience: Duration, so: impl Fn(&State) -> bool) -> bool {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, patience, |state| !so(state));
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        so(&state)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).ended.is_some()
    }
}
