//! The log: one line on standard error for each event of note, none for messages.

use std::cell::Cell;
use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use crate::config::LogLevel;

/// Lines in a second that clients can cause; more are counted.
const LINES: u32 = 20;

/// Where a daemon writes what happened.
#[derive(Debug)]
pub(crate) struct Log {
    level: LogLevel,
    second: Cell<Option<Instant>>,
    lines: Cell<u32>,
}

impl Log {
    pub(crate) const fn new(level: LogLevel) -> Self {
        Self { level, second: Cell::new(None), lines: Cell::new(0) }
    }

    /// Writes a line if its level is asked for and the second has not had too many.
    pub(crate) fn line(&self, level: LogLevel, text: fmt::Arguments<'_>) {
        if level > self.level {
            return;
        }
        let now = Instant::now();
        if self.second.get().is_none_or(|second| now - second >= Duration::from_secs(1)) {
            let unwritten = self.lines.get().saturating_sub(LINES);
            if unwritten > 0 {
                let _ = writeln!(std::io::stderr(), "kdbusd: warn: {unwritten} lines left out");
            }
            self.second.set(Some(now));
            self.lines.set(0);
        }
        self.lines.set(self.lines.get().saturating_add(1));
        if self.lines.get() > LINES && level >= LogLevel::Warn {
            return;
        }
        let name = match level {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        };
        // Standard error may be closed; a daemon goes on without it.
        let _ = writeln!(std::io::stderr(), "kdbusd: {name}: {text}");
    }
}
