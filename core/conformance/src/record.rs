//! What cases send to a bus, for programs that start from it.

use std::cell::RefCell;

use kdbus_core::abi::Command;

/// One command of a case.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Recorded {
    /// Which command.
    pub command: Command,
    /// Its argument, as it was before.
    pub arg: Vec<u8>,
    /// Header and items of a SEND; empty for all others.
    pub message: Vec<u8>,
}

thread_local! {
    static RECORD: RefCell<Option<Vec<Recorded>>> = const { RefCell::new(None) };
}

/// Calls `run` and returns the commands that cases in it gave, in their order.
pub fn record(run: impl FnOnce()) -> Vec<Recorded> {
    RECORD.set(Some(Vec::new()));
    run();
    RECORD.take().unwrap_or_default()
}

/// Remembers a command, if somebody wants to know.
pub(crate) fn note(command: Command, arg: &[u8], message: &[u8]) {
    RECORD.with_borrow_mut(|record| {
        if let Some(record) = record {
            record.push(Recorded { command, arg: arg.to_vec(), message: message.to_vec() });
        }
    });
}
