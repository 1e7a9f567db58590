//! Signals by which a user, or the system, ends a run.

use std::io;
use std::sync::mpsc::Sender;
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

/// Takes the signals that end a program, for as long as this lives.
#[derive(Debug)]
pub struct Interrupts {
    handle: Handle,
}

impl Interrupts {
    /// Has `event` sent to `events` at each such signal.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn watch<E: Send + 'static>(events: Sender<E>, event: fn() -> E) -> io::Result<Self> {
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
        let handle = signals.handle();
        thread::spawn(move || {
            signals.forever().take_while(|_| events.send(event()).is_ok()).for_each(drop);
        });
        Ok(Self { handle })
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        self.handle.close();
    }
}
