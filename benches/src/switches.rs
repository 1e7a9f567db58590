//! How often processes were switched.

use std::io;
use std::path::Path;

/// Context switches of this process since it was started, those it asked for and those it did not.
///
/// # Errors
///
/// If `/proc` does not tell.
pub fn of_this_process() -> io::Result<u64> {
    let mut sum = 0;
    for task in std::fs::read_dir("/proc/self/task")? {
        // A thread that has ended since has taken its count with it.
        sum += of_task(&task?.path()).unwrap_or(0);
    }
    Ok(sum)
}

/// The same of a process and all of its children. One that has ended has none.
#[must_use]
pub fn of_tree(pid: u32) -> u64 {
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    let mut sum = 0;
    for task in tasks.flatten() {
        let task = task.path();
        sum += of_task(&task).unwrap_or(0);
        let children = std::fs::read_to_string(task.join("children")).unwrap_or_default();
        sum += children.split_whitespace().filter_map(|pid| pid.parse().ok()).map(of_tree).sum::<u64>();
    }
    sum
}

fn of_task(task: &Path) -> io::Result<u64> {
    Ok(in_status(&std::fs::read_to_string(task.join("status"))?))
}

fn in_status(status: &str) -> u64 {
    let counts = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    counts.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_switches_count() {
        let status = "Name:\tx\nvoluntary_ctxt_switches:\t150\nnonvoluntary_ctxt_switches:\t7\n";
        assert_eq!(in_status(status), 157);
    }

    #[test]
    fn a_thread_that_slept_was_switched() {
        // Of this thread alone: others of this process end meanwhile, and their counts with them.
        let own = Path::new("/proc/thread-self");
        let before = of_task(own).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        assert!(of_task(own).unwrap() > before);
        assert!(of_this_process().unwrap() > 0 && of_tree(std::process::id()) > 0);
    }
}
