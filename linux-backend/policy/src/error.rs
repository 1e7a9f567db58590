//! What is wrong with a policy file.

use std::fmt;

/// Why a policy cannot be used: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// The file, as it was named; empty for text that came from none.
    pub place: String,
    /// Line in it, from 1.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

impl PolicyError {
    pub(crate) fn at(text: &str, offset: usize, what: String, fix: impl Into<String>) -> Self {
        let line = Some(text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1);
        Self { place: String::new(), line, what, fix: fix.into() }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let place = if self.place.is_empty() { "policy" } else { &self.place };
        match self.line {
            Some(line) => write!(f, "{place}:{line}: {}; {}", self.what, self.fix),
            None => write!(f, "{place}: {}; {}", self.what, self.fix),
        }
    }
}

impl std::error::Error for PolicyError {}
