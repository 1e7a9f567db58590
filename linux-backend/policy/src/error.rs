//! What is wrong with a policy file.

use std::fmt;

/// One thing that is wrong: where, what, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Line in the file, from 1; none for the file as a whole.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
    /// What would be right.
    pub fix: String,
}

/// Why a policy cannot be used: everything that is wrong with it, in the order of its lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    place: String,
    problems: Vec<Problem>,
}

impl PolicyError {
    /// An error about the file `place`; `problems` has one or more.
    pub(crate) fn new(place: &str, mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|problem| problem.line);
        Self { place: place.into(), problems }
    }

    /// The file, as it was named; `policy` for text that came from none.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    /// Everything that is wrong; never empty.
    #[must_use]
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Each problem as a line: `file:line: what; what to do`.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.problems.iter().map(|Problem { line, what, fix }| match line {
            Some(line) => format!("{}:{line}: {what}; {fix}", self.place),
            None => format!("{}: {what}; {fix}", self.place),
        })
    }
}

impl fmt::Display for PolicyError {
    /// The first problem and how many there are besides, for the one line of a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.lines().next().unwrap_or_default())?;
        match self.problems.len() {
            0 | 1 => Ok(()),
            count => write!(f, " (and {} more; `kdbusctl policy check` tells all)", count - 1),
        }
    }
}

impl std::error::Error for PolicyError {}
