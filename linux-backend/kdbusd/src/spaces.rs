//! The namespaces that a client lives in, and what it calls the users of the daemon's.
//!
//! They are looked at once, when the client connects, and of the very process that connected. What cannot be
//! looked at, for want of permission or because the process is gone, counts as the daemon's own.

use std::fs::File;
use std::io::Read;

use kdbus_core::engine::{Id, Spaces};
use rustix::fd::OwnedFd;
use rustix::fs::{self, Mode, OFlags};

use crate::identity::{FILE_MAX, Proc, Process, field, file_number, numbers_of, read};

/// What a client in a user namespace of its own calls users and groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    users: IdMap,
    groups: IdMap,
}

/// Runs of ids, each with its first number in the namespace and in the daemon's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct IdMap(Vec<Run>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    inside: u32,
    outside: u32,
    count: u32,
}

/// Where a process lives, and its names for users if those are not the daemon's.
pub(crate) fn of(process: &Process, proc: &Proc) -> (Spaces, Option<Box<Names>>) {
    let Some(directory) = process.directory(proc) else {
        return (Spaces::HOST, None);
    };
    let mut spaces = Spaces {
        users: other(&directory, "ns/user", proc.users),
        pids: other(&directory, "ns/pid", proc.pids),
        pid: 0,
        root: other(&directory, "root", proc.root_directory),
        times: other(&directory, "ns/time", proc.times),
    };
    if spaces.pids != 0 {
        spaces.pid = own_number(&directory).unwrap_or(0);
    }
    let names = (spaces.users != 0).then(|| {
        Box::new(Names {
            users: IdMap::read(&directory, "uid_map"),
            groups: IdMap::read(&directory, "gid_map"),
        })
    });
    // The process may have ended, and its number gone to another one, while its directory was read.
    if process.directory(proc).is_none() { (Spaces::HOST, None) } else { (spaces, names) }
}

impl Names {
    /// What the client calls a user or group of the daemon's namespace.
    pub(crate) fn name(&self, id: Id) -> Option<u32> {
        match id {
            Id::User(uid) => self.users.inside(uid),
            Id::Group(gid) => self.groups.inside(gid),
        }
    }
}

impl IdMap {
    /// A map as /proc shows it; nobody has a name where it cannot be read.
    fn read(directory: &OwnedFd, name: &str) -> Self {
        let mut text = String::new();
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let file = fs::openat(directory, name, flags, Mode::empty()).map(File::from);
        match file.map(|mut file| file.read_to_string(&mut text)) {
            Ok(Ok(_)) => Self::parse(&text),
            _ => Self::default(),
        }
    }

    fn parse(text: &str) -> Self {
        Self(text.lines().filter_map(Run::parse).collect())
    }

    fn inside(&self, id: u32) -> Option<u32> {
        let run = self.0.iter().find(|run| id >= run.outside && id - run.outside < run.count)?;
        run.inside.checked_add(id - run.outside)
    }
}

impl Run {
    fn parse(line: &str) -> Option<Self> {
        let mut numbers = line.split_whitespace().map(|word| word.parse().ok());
        let (inside, outside, count) = (numbers.next()??, numbers.next()??, numbers.next()??);
        Some(Self { inside, outside, count })
    }
}

/// The number of a namespace or directory, 0 if it is the daemon's.
fn other(directory: &OwnedFd, name: &str, own: Option<(u64, u64)>) -> u64 {
    let found = file_number(numbers_of(directory, name));
    match (found, own) {
        (Some(found), Some(own)) if found != own => mix(found),
        _ => 0,
    }
}

/// One number for device and file; never 0.
const fn mix((device, file): (u64, u64)) -> u64 {
    (device.rotate_left(40) ^ file) | 1 << 63
}

/// The number of a process in its innermost namespace.
fn own_number(directory: &OwnedFd) -> Option<u32> {
    let mut text = [0; FILE_MAX];
    field(read(directory, "status", &mut text)?, b"NSpid:")?.split_whitespace().last()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_named_by_the_run_they_lie_in() {
        let map = IdMap::parse("         0       1000          1\n      1000     100000      65536\n");
        assert_eq!(map.inside(1000), Some(0));
        assert_eq!(map.inside(100_000), Some(1000));
        assert_eq!(map.inside(165_535), Some(66_535));
        assert_eq!([999, 1001, 165_536, u32::MAX].map(|id| map.inside(id)), [None; 4]);
        assert_eq!(IdMap::parse("0 0 4294967295").inside(7), Some(7));
        assert_eq!(IdMap::parse("nonsense\n1 2\n4294967295 5 9").inside(6), None);
    }

    #[test]
    fn a_process_of_the_daemons_own_namespaces_is_at_home() {
        let proc = Proc::open().unwrap();
        let flags = rustix::net::SocketFlags::CLOEXEC;
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::SEQPACKET);
        let (socket, _other) = rustix::net::socketpair(family, kind, flags, None).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let process = Process::of(rustix::fd::AsFd::as_fd(&socket), std::process::id(), uid, &proc).unwrap();
        assert_eq!(of(&process, &proc), (Spaces::HOST, None));
    }
}
