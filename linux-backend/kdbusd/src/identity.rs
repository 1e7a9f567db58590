//! Who is at the other end of a socket, and what /proc says about that process.
//!
//! Credentials are what the kernel pinned when the peer connected; they alone decide anything. What is read
//! from /proc later is only reported, and only while the very process that connected is alive.

use kdbus_core::abi::AttachFlags;
use kdbus_core::engine::{Credentials, GROUPS_MAX, LABEL_MAX};
use kdbus_linux::local::raw::{peer_groups, peer_label, peer_pidfd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{self, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::{self, Errno};
use rustix::path::DecInt;
use rustix::process::{Pid, PidfdFlags};

use crate::raw::{self, PeerIds};

/// Bytes of a `status` or `cgroup` file that are looked at.
pub(crate) const FILE_MAX: usize = 4096;

/// Reads the credentials that the kernel pinned for the peer of `socket`.
///
/// Real, saved and file system ids are the effective ones: no more is pinned. A peer of a user namespace that
/// has no name for its users here is the overflow user.
///
/// # Errors
///
/// What the system said about the ids; groups and label that cannot be read are left out.
pub fn credentials(socket: BorrowedFd<'_>) -> io::Result<Credentials> {
    let PeerIds { pid, uid, gid } = raw::peer_ids(socket)?;
    let mut credentials = Credentials {
        uid,
        euid: uid,
        suid: uid,
        fsuid: uid,
        gid,
        egid: gid,
        sgid: gid,
        fsgid: gid,
        pid,
        tid: pid,
        privileged: uid == 0,
        ..Credentials::default()
    };
    let mut keep = |groups: &[u32]| {
        let kept = &groups[..groups.len().min(GROUPS_MAX)];
        // Cannot fail: as many places.
        let _ = credentials.groups.extend_from_slice(kept);
    };
    match peer_groups(socket, &mut [0; GROUPS_MAX]) {
        Ok(groups) => keep(groups),
        // More than the bus keeps; a process has 65,536 at most.
        Err(Errno::RANGE) => keep(peer_groups(socket, &mut vec![0; 1 << 16]).unwrap_or_default()),
        Err(_) => {}
    }
    if let Ok(label) = peer_label(socket, &mut [0; LABEL_MAX]) {
        let _ = credentials.label.extend_from_slice(label);
    }
    Ok(credentials)
}

/// The process behind a socket, as long as it lives.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Process {
    /// The process that connected `socket` and has the number `pid`, or `None` if it is gone or out of sight.
    ///
    /// Before Linux 6.5 the number is looked up now. It may then name a process that was started after the
    /// peer's end, within the moment between connecting and being accepted; one of another user is seen as such.
    #[must_use]
    pub fn of(socket: BorrowedFd<'_>, pid: u32, uid: u32, proc: &Proc) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let process = match peer_pidfd(socket) {
            Ok(pidfd) => Self { pid, pidfd },
            Err(Errno::NOPROTOOPT) => Self::numbered(pid, uid, proc)?,
            Err(_) => return None,
        };
        process.lives().then_some(process)
    }

    /// The process that has this number now, if it is one of that user's.
    fn numbered(pid: Pid, uid: u32, proc: &Proc) -> Option<Self> {
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let process = Self { pid, pidfd };
        let owner = fs::fstat(process.directory(proc)?).ok()?.st_uid;
        (owner == uid).then_some(process)
    }

    /// Its parent, 0 if unknown.
    #[must_use]
    pub fn parent(&self, proc: &Proc) -> u32 {
        let mut text = [0; FILE_MAX];
        let parent = self.directory(proc).and_then(|directory| {
            let status = read(&directory, "status", &mut text)?;
            field(status, b"PPid:")?.parse().ok()
        });
        parent.unwrap_or(0)
    }

    /// Writes one kind of metadata into `buffer` as the payload of its item and returns the length.
    ///
    /// `None` if it is not to be had, or if the process is gone. Cost: a few system calls, no allocation.
    #[must_use]
    pub fn metadata(&self, proc: &Proc, kind: AttachFlags, buffer: &mut [u8]) -> Option<usize> {
        let directory = self.directory(proc)?;
        match kind {
            // Which thread sends is not told, so its name is known only where there is no choice.
            AttachFlags::TID_COMM if Self::threads(&directory)? != 1 => None,
            AttachFlags::TID_COMM | AttachFlags::PID_COMM => {
                let length = read(&directory, "comm", buffer)?.trim_ascii_end().len();
                terminate(buffer, length)
            }
            AttachFlags::EXE => {
                // kdbus: only where sender and receiver see the same root.
                if file_number(numbers_of(&directory, "root"))? != proc.root_directory? {
                    return None;
                }
                let length = fs::readlinkat_raw(&directory, "exe", &mut *buffer).ok()?;
                terminate(buffer, length)
            }
            AttachFlags::CMDLINE => {
                let line = read(&directory, "cmdline", buffer)?;
                let length = line.iter().position(|byte| *byte == 0).unwrap_or(line.len());
                if length == 0 { None } else { terminate(buffer, length) }
            }
            AttachFlags::CGROUP => {
                let mut text = [0; FILE_MAX];
                let path = cgroup(read(&directory, "cgroup", &mut text)?)?;
                buffer.get_mut(..path.len())?.copy_from_slice(path);
                terminate(buffer, path.len())
            }
            AttachFlags::CAPS => {
                let mut text = [0; FILE_MAX];
                let status = read(&directory, "status", &mut text)?;
                let same_users = file_number(numbers_of(&directory, "ns/user"))? == proc.users?;
                capabilities(status, proc.last_capability?, same_users, buffer)
            }
            AttachFlags::AUDIT => {
                let mut text = [0; 16];
                let session: u32 = number(read(&directory, "sessionid", &mut text)?)?;
                let login: u32 = number(read(&directory, "loginuid", &mut text)?)?;
                buffer.get_mut(..4)?.copy_from_slice(&session.to_ne_bytes());
                buffer.get_mut(4..8)?.copy_from_slice(&login.to_ne_bytes());
                Some(8)
            }
            _ => None,
        }
    }

    fn threads(directory: &OwnedFd) -> Option<u32> {
        let mut text = [0; FILE_MAX];
        field(read(directory, "status", &mut text)?, b"Threads:")?.parse().ok()
    }

    /// Its directory in /proc, which stays that of this process whatever happens to the number.
    pub(crate) fn directory(&self, proc: &Proc) -> Option<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let name = DecInt::new(self.pid.as_raw_nonzero().get());
        let directory = fs::openat(&proc.root, name, flags, Mode::empty()).ok()?;
        // Alive now means that the number was not given away before the directory was opened.
        self.lives().then_some(directory)
    }

    fn lives(&self) -> bool {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) == Ok(0)
    }
}

/// An open /proc, and what does not change in it.
#[derive(Debug)]
pub struct Proc {
    root: OwnedFd,
    pub(crate) root_directory: Option<(u64, u64)>,
    pub(crate) users: Option<(u64, u64)>,
    pub(crate) pids: Option<(u64, u64)>,
    pub(crate) times: Option<(u64, u64)>,
    last_capability: Option<u32>,
}

impl Proc {
    /// Opens /proc.
    ///
    /// # Errors
    ///
    /// What the system said; without /proc, a daemon runs without process metadata.
    pub fn open() -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open("/proc", flags, Mode::empty())?;
        let mut text = [0; 16];
        Ok(Self {
            root_directory: file_number(numbers_of(&root, "/")),
            users: file_number(numbers_of(&root, "self/ns/user")),
            pids: file_number(numbers_of(&root, "self/ns/pid")),
            times: file_number(numbers_of(&root, "self/ns/time")),
            last_capability: read(&root, "sys/kernel/cap_last_cap", &mut text).and_then(number),
            root,
        })
    }
}

/// What tells a file from all others. The root of a process may be a file system that waits when it is asked, so
/// what the kernel knows by itself is enough.
pub(crate) fn numbers_of(directory: impl AsFd, name: &str) -> io::Result<fs::Statx> {
    fs::statx(directory, name, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
}

pub(crate) fn file_number(stat: io::Result<fs::Statx>) -> Option<(u64, u64)> {
    stat.ok().map(|stat| (u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor), stat.stx_ino))
}

/// Puts a NUL behind a text of `length` bytes; a text that fills the buffer is cut.
fn terminate(buffer: &mut [u8], length: usize) -> Option<usize> {
    let end = length.min(buffer.len().checked_sub(1)?);
    *buffer.get_mut(end)? = 0;
    Some(end + 1)
}

/// The beginning of a file, as much as the buffer holds.
pub(crate) fn read<'a>(directory: impl AsFd, name: &str, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let file = fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut length = 0;
    while length < buffer.len() {
        match io::read(&file, &mut buffer[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(_) => return None,
        }
    }
    buffer.get(..length)
}

fn number(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// The value behind a name at the start of a line.
pub(crate) fn field<'a>(text: &'a [u8], name: &[u8]) -> Option<&'a str> {
    let value = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    Some(std::str::from_utf8(value).ok()?.trim())
}

/// The path in the first hierarchy: the one with the lowest number, the unified one (0) counting last.
fn cgroup(text: &[u8]) -> Option<&[u8]> {
    let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = line.splitn(3, |byte| *byte == b':');
        let hierarchy = number(fields.next()?)?;
        Some((hierarchy.wrapping_sub(1), fields.nth(1)?))
    });
    lines.min_by_key(|(hierarchy, _)| *hierarchy).map(|(_, path)| path)
}

/// The payload of a CAPS item: the last capability, then inheritable, permitted, effective and bounding set.
fn capabilities(status: &[u8], last: u32, same_users: bool, buffer: &mut [u8]) -> Option<usize> {
    let known = u64::MAX >> 63_u32.saturating_sub(last);
    let (head, sets) = buffer.get_mut(..36)?.split_at_mut(4);
    head.copy_from_slice(&last.to_ne_bytes());
    let names: [&[u8]; 4] = [b"CapInh:", b"CapPrm:", b"CapEff:", b"CapBnd:"];
    for (place, name) in sets.chunks_exact_mut(8).zip(names) {
        let set = u64::from_str_radix(field(status, name)?, 16).ok()? & known;
        // kdbus: the sets of another user namespace mean nothing here.
        let set = if same_users { set } else { 0 };
        place[..4].copy_from_slice(&(set as u32).to_ne_bytes());
        place[4..].copy_from_slice(&((set >> 32) as u32).to_ne_bytes());
    }
    Some(36)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType};

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    #[test]
    fn a_peer_is_known_by_its_effective_ids() {
        let (socket, _other) = pair();
        let found = credentials(socket.as_fd()).unwrap();
        assert_eq!(found.pid, std::process::id());
        let uid = rustix::process::geteuid().as_raw();
        assert_eq!([found.uid, found.euid, found.suid, found.fsuid], [uid; 4]);
        let gid = rustix::process::getegid().as_raw();
        assert_eq!([found.gid, found.egid, found.sgid, found.fsgid], [gid; 4]);
        assert_eq!(found.privileged, uid == 0);
        let groups = rustix::process::getgroups().unwrap();
        let kept = groups.len().min(GROUPS_MAX);
        let mut groups: Vec<u32> = groups.into_iter().map(rustix::process::Gid::as_raw).collect();
        groups.sort_unstable();
        assert_eq!(found.groups.as_slice(), &groups[..kept]);
    }

    #[test]
    fn a_living_process_tells_its_metadata() {
        let (socket, _other) = pair();
        let proc = Proc::open().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let process = Process::of(socket.as_fd(), std::process::id(), uid, &proc).unwrap();
        let mut buffer = [0xff; FILE_MAX];
        let mut text = |kind| {
            let length = process.metadata(&proc, kind, &mut buffer).unwrap();
            assert_eq!(buffer[length - 1], 0);
            String::from_utf8(buffer[..length - 1].to_vec()).unwrap()
        };
        assert_eq!(text(AttachFlags::EXE), std::env::current_exe().unwrap().to_str().unwrap());
        assert_eq!(text(AttachFlags::CMDLINE), std::env::args().next().unwrap());
        let comm = std::fs::read_to_string("/proc/self/comm").unwrap();
        assert_eq!(text(AttachFlags::PID_COMM), comm.trim_end());
        assert!(text(AttachFlags::CGROUP).starts_with('/'));
        assert_eq!(process.metadata(&proc, AttachFlags::CAPS, &mut buffer), Some(36));
        assert_eq!(process.metadata(&proc, AttachFlags::CREDS, &mut buffer), None, "pinned, not read");
        assert_eq!(process.parent(&proc), std::os::unix::process::parent_id());
    }

    #[test]
    fn a_thread_is_named_only_where_there_is_but_one() {
        let proc = Proc::open().unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process =
            |pid| Process { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap() };
        let single = process(Pid::from_child(&child));
        let mut buffer = [0; 64];
        // The child may still be on its way to its program.
        while single.metadata(&proc, AttachFlags::TID_COMM, &mut buffer) != Some(6) {
            std::thread::yield_now();
        }
        assert_eq!(&buffer[..6], b"sleep\0");
        child.kill().unwrap();
        child.wait().unwrap();
        // Tests run in threads of their own.
        let several = process(rustix::process::getpid());
        assert_eq!(several.metadata(&proc, AttachFlags::TID_COMM, &mut buffer), None);
        assert!(several.metadata(&proc, AttachFlags::PID_COMM, &mut buffer).is_some());
    }

    #[test]
    fn without_a_descriptor_from_the_kernel_the_number_counts_if_the_user_fits() {
        let proc = Proc::open().unwrap();
        let (pid, uid) = (rustix::process::getpid(), rustix::process::geteuid().as_raw());
        let process = Process::numbered(pid, uid, &proc).unwrap();
        assert!(process.metadata(&proc, AttachFlags::PID_COMM, &mut [0; 16]).is_some());
        assert!(Process::numbered(pid, uid + 1, &proc).is_none());
    }

    #[test]
    fn a_dead_process_tells_nothing() {
        let proc = Proc::open().unwrap();
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let process = Process { pid, pidfd: rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap() };
        let mut buffer = [0; 64];
        assert!(process.metadata(&proc, AttachFlags::PID_COMM, &mut buffer).is_some());
        child.kill().unwrap();
        child.wait().unwrap();
        // The number may belong to anybody now; pretend that it is ours.
        let process = Process { pid: rustix::process::getpid(), ..process };
        assert_eq!(process.metadata(&proc, AttachFlags::PID_COMM, &mut buffer), None);
    }

    #[test]
    fn text_that_does_not_fit_is_cut_and_still_ends() {
        let mut buffer = *b"abcdef";
        assert_eq!(terminate(&mut buffer, 6), Some(6));
        assert_eq!(&buffer, b"abcde\0");
        assert_eq!(terminate(&mut [], 0), None);
    }

    #[test]
    fn the_first_hierarchy_is_the_lowest_numbered_one() {
        assert_eq!(cgroup(b"0::/system.slice\n"), Some(&b"/system.slice"[..]));
        assert_eq!(cgroup(b"4:cpu:/a\n1:name=systemd:/b:c\n0::/d\n"), Some(&b"/b:c"[..]));
        assert_eq!(cgroup(b""), None);
    }

    #[test]
    fn capability_sets_are_cut_to_what_exists_and_to_the_own_users() {
        let status = b"CapInh:\t0\nCapPrm:\tffffffffffffffff\nCapEff:\t0000000100000002\nCapBnd:\t3\n";
        let mut item = [0xff; 36];
        assert_eq!(capabilities(status, 40, true, &mut item), Some(36));
        let words: Vec<u32> = item.as_chunks().0.iter().map(|word| u32::from_ne_bytes(*word)).collect();
        assert_eq!(words, [40, 0, 0, u32::MAX, 0x1ff, 2, 1, 3, 0]);
        assert_eq!(capabilities(status, 40, false, &mut item), Some(36));
        assert_eq!(&item[4..], [0; 32]);
    }
}
