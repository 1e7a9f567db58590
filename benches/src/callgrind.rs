//! Counting instructions: the program runs itself under callgrind and counts inside one function only.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

/// Whether valgrind can be run here.
#[must_use]
pub fn is_available() -> bool {
    let version =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Instructions that this program executes inside the functions whose name matches `function`, when it is run
/// with `arguments`.
///
/// # Errors
///
/// If valgrind cannot be run or counted nothing.
pub fn instructions(function: &str, arguments: &[&str]) -> io::Result<u64> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let status = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg("--collect-atstart=no")
        .arg(format!("--toggle-collect={function}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("valgrind ended with {status}")));
    }
    read_summary(&out)
}

/// Instructions that callgrind counted, as it wrote them to `path`.
///
/// # Errors
///
/// If there are none.
pub fn read_summary(path: &Path) -> io::Result<u64> {
    let text = std::fs::read_to_string(path)?;
    summary(&text)
        .filter(|count| *count > 0)
        .ok_or_else(|| io::Error::other("callgrind counted nothing: is the measured function still there?"))
}

fn summary(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("summary:").or_else(|| line.strip_prefix("totals:")))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_is_the_sum_of_what_was_collected() {
        assert_eq!(summary("events: Ir\nsummary: 1234\n"), Some(1234));
        assert_eq!(summary("fn=(1) x\n1 2\n"), None);
    }
}
