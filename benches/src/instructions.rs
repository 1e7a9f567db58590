//! Instructions of a message in each process of a case, in user space: the case is run twice with its processes under
//! callgrind, once with more messages than the other time, and what the difference took is shared out.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::callgrind;
use crate::job::Role;

/// Messages of the shorter run.
const FEW: u64 = 1000;

/// The environment variable that has the directory for what callgrind counts in this process' children.
const VARIABLE: &str = "KDBUS_BENCH_CALLGRIND";

/// The command that starts this program again as `role`: under callgrind, where that was asked for.
///
/// # Errors
///
/// If this program cannot be found any more.
pub fn command(role: Role) -> io::Result<Command> {
    let program = std::env::current_exe()?;
    let Some(dir) = std::env::var_os(VARIABLE) else {
        return Ok(Command::new(program));
    };
    let mut command = under_callgrind(Path::new(&dir), &format!("{role:?}").to_lowercase());
    command.arg(program);
    Ok(command)
}

/// Runs `arguments`, a round trip without its number of messages, and shows the instructions of a message in each kind of
/// process. What callgrind wrote of the longer run stays in `keep`.
///
/// # Errors
///
/// If valgrind cannot be run or counted nothing.
pub fn run(arguments: &[&str], messages: u64, keep: Option<&Path>) -> io::Result<()> {
    if !callgrind::is_available() {
        return Err(io::Error::other("there is no valgrind"));
    }
    if messages <= FEW {
        return Err(io::Error::other(format!("more than {FEW} messages are needed")));
    }
    let (few, many) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let kept = keep.unwrap_or(many.path());
    std::fs::create_dir_all(kept)?;
    let shorter = counted(few.path(), arguments, FEW)?;
    let longer = counted(kept, arguments, messages)?;
    for (role, count) in longer {
        let fixed = shorter.get(&role).copied().unwrap_or_default();
        writeln!(io::stdout(), "{role}: {} instructions", count.saturating_sub(fixed) / (messages - FEW))?;
    }
    Ok(())
}

/// Instructions of each kind of process in one run.
fn counted(dir: &Path, arguments: &[&str], messages: u64) -> io::Result<BTreeMap<String, u64>> {
    let status = under_callgrind(dir, "client")
        .arg(std::env::current_exe()?)
        .arg("round-trip")
        .args(arguments)
        .args(["--messages", &messages.to_string()])
        .env(VARIABLE, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("valgrind ended with {status}")));
    }
    let mut counts = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((role, _)) = name.split_once('.') {
            *counts.entry(role.to_owned()).or_default() += callgrind::read_summary(&path)?;
        }
    }
    Ok(counts)
}

fn under_callgrind(dir: &Path, role: &str) -> Command {
    let mut command = Command::new("valgrind");
    // Instructions by address as well, for whoever asks callgrind_annotate for more than sums.
    command.args(["--quiet", "--tool=callgrind", "--dump-instr=yes"]);
    command.arg(format!("--callgrind-out-file={}", dir.join(format!("{role}.%p")).display()));
    command
}
