//! What the first process of a system has to do itself: mount what is missing, and power off at the end.

use std::fs::{create_dir_all, metadata};

use kdbus_linux::kernel;
use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::system::RebootCommand;

/// File systems that cases and messages are the better for: kind, place, and what is there once it is mounted.
const FILE_SYSTEMS: &[(&str, &str, &str)] = &[
    ("proc", "/proc", "/proc/self"),
    ("sysfs", "/sys", "/sys/fs"),
    ("devtmpfs", "/dev", "/dev/null"),
    ("tmpfs", "/tmp", "/tmp"),
];

/// Whether this is the first process of the system, which nobody has prepared anything for.
pub(crate) fn is_first() -> bool {
    std::process::id() == 1
}

/// Mounts what is missing of /proc, /sys, /dev and /tmp, and says what could not be. Few cases need any of it, so that
/// is no error.
pub(crate) fn mount_what_is_missing() {
    for (kind, place, sign) in FILE_SYSTEMS {
        if metadata(sign).is_ok() {
            continue;
        }
        if let Err(error) = mount(kind, place) {
            eprintln!("kdbus-conformance: mounting {kind} at {place}: {error}; going on without");
        }
    }
}

fn mount(kind: &str, place: &str) -> std::io::Result<()> {
    create_dir_all(place)?;
    Ok(rustix::mount::mount(kind, place, kind, MountFlags::empty(), None)?)
}

/// Mounts a domain of its own at `root`, and /sys before it where that is missing.
///
/// # Errors
///
/// What is wrong and what to do, in words.
pub(crate) fn mount_domain(root: &str) -> Result<(), String> {
    if root.starts_with("/sys/") && metadata("/sys/fs").is_err() {
        mount("sysfs", "/sys").map_err(|error| format!("mounting sysfs at /sys: {error}"))?;
    }
    // In sysfs only the module itself makes a directory, and the mount below says when it did not.
    let _ = create_dir_all(root);
    kernel::mount(root).map_err(|errno| {
        format!("mounting kdbusfs at {root}: {}", explain(Errno::from_raw_os_error(errno.raw())))
    })
}

fn explain(error: Errno) -> String {
    let advice = match error {
        Errno::NODEV | Errno::NOENT => "; is the kdbus module loaded?",
        Errno::PERM => "; only root may mount",
        Errno::BUSY => "; it is mounted already, so leave out --mount",
        _ => "",
    };
    format!("{}{advice}", std::io::Error::from(error))
}

/// Powers the machine off, and comes back only if the kernel refuses. Then the process ends, and the kernel with it.
pub(crate) fn power_off() {
    rustix::fs::sync();
    let refused = rustix::system::reboot(RebootCommand::PowerOff);
    eprintln!("kdbus-conformance: the machine stays on: {refused:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_mount_says_what_to_do() {
        assert!(explain(Errno::NODEV).contains("module loaded"));
        assert!(explain(Errno::BUSY).contains("leave out --mount"));
        assert!(explain(Errno::IO).ends_with("(os error 5)"));
    }
}
