//! How far a run has come, shown while it runs.

use std::fmt;
use std::io::{self, IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};

use crate::block::{FRAMES, SAMPLE_RATE};

/// Parts of the whole after which a line is printed where there is no terminal.
const LINES: u64 = 10;

/// A bar on standard error when that is a terminal, and otherwise a line after each tenth.
///
/// A display that fails is given up silently: the run matters more. Made for a process that has no deadline to keep; it
/// allocates.
pub struct Progress {
    shown: Shown,
    blocks: u64,
    done: u64,
    missed: u64,
    has_deadlines: bool,
}

enum Shown {
    Bar(ProgressBar),
    Lines { to: Box<dyn Write + Send>, tenth: u64 },
}

impl Progress {
    /// Starts to show the way through `blocks` blocks on standard error, as a bar or as lines.
    pub fn new(blocks: u64) -> Self {
        if !io::stderr().is_terminal() {
            return Self::lines(blocks, Box::new(io::stderr()));
        }
        let bar = ProgressBar::new(blocks);
        let style = "{elapsed_precise} {wide_bar} {percent:>3} %  {msg}";
        // The template is fixed, and the plain bar serves as well.
        bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { shown: Shown::Bar(bar), blocks, done: 0, missed: 0, has_deadlines: true }
    }

    /// Starts to show the way through `blocks` blocks as lines that go to `to`.
    pub fn lines(blocks: u64, to: Box<dyn Write + Send>) -> Self {
        Self { shown: Shown::Lines { to, tenth: 0 }, blocks, done: 0, missed: 0, has_deadlines: true }
    }

    /// Says nothing of deadlines, for a run that has none.
    #[must_use]
    pub fn without_deadlines(mut self) -> Self {
        self.has_deadlines = false;
        self
    }

    /// Shows that `done` blocks are done and `missed` deadlines were missed so far.
    pub fn update(&mut self, done: u64, missed: u64) {
        (self.done, self.missed) = (done.min(self.blocks), missed);
        let text = self.text();
        match &mut self.shown {
            Shown::Bar(bar) => {
                bar.set_message(text);
                bar.set_position(self.done);
            }
            Shown::Lines { to, tenth } => {
                let reached =
                    (u128::from(self.done) * u128::from(LINES) / u128::from(self.blocks.max(1))) as u64;
                if reached > *tenth {
                    *tenth = reached;
                    let _ = writeln!(to, "{:>3} %  {text}", reached * 100 / LINES);
                }
            }
        }
    }

    /// Ends the display and leaves its last state to be read.
    pub fn finish(mut self) {
        match &mut self.shown {
            Shown::Bar(bar) => bar.abandon(),
            Shown::Lines { to, .. } => drop(to.flush()),
        }
    }

    fn text(&self) -> String {
        let seconds = |blocks: u64| blocks as f64 * FRAMES as f64 / f64::from(SAMPLE_RATE);
        let way = format!("{:.1} of {:.1} s of sound", seconds(self.done), seconds(self.blocks));
        match self.missed {
            _ if !self.has_deadlines => way,
            0 => format!("{way}, no deadline missed"),
            1 => format!("{way}, 1 deadline missed"),
            missed => format!("{way}, {missed} deadlines missed"),
        }
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Progress")
            .field("blocks", &self.blocks)
            .field("done", &self.done)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Vec<u8>>>);

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn lines(blocks: u64, updates: impl IntoIterator<Item = (u64, u64)>) -> Vec<String> {
        let paper = Paper::default();
        let mut progress = Progress::lines(blocks, Box::new(paper.clone()));
        updates.into_iter().for_each(|(done, missed)| progress.update(done, missed));
        progress.finish();
        let text = String::from_utf8(paper.0.lock().unwrap().clone()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn lines_come_once_for_each_tenth() {
        let lines = lines(7_500, (0..=7_500).map(|done| (done, 2)));
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[0], " 10 %  1.0 of 10.0 s of sound, 2 deadlines missed");
        assert_eq!(lines[9], "100 %  10.0 of 10.0 s of sound, 2 deadlines missed");
    }

    #[test]
    fn a_run_without_deadlines_says_nothing_of_them() {
        let paper = Paper::default();
        let mut progress = Progress::lines(750, Box::new(paper.clone())).without_deadlines();
        progress.update(750, 0);
        assert_eq!(*paper.0.lock().unwrap(), b"100 %  1.0 of 1.0 s of sound\n");
    }

    #[test]
    fn tenths_that_are_skipped_are_not_made_up() {
        assert_eq!(lines(750, [(10, 0), (700, 0)]), [" 90 %  0.9 of 1.0 s of sound, no deadline missed"]);
    }

    #[test]
    fn an_empty_run_and_a_run_beyond_its_end_are_shown() {
        assert_eq!(lines(0, [(0, 0)]), [""; 0]);
        assert_eq!(lines(75, [(u64::MAX, 1)]), ["100 %  0.1 of 0.1 s of sound, 1 deadline missed"]);
    }
}
