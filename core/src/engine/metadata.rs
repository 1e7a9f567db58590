//! Metadata: what travels with a message about its sender, and what queries report.
//!
//! Ids, groups, process numbers and label are those pinned in [`Credentials`]. The other kinds are read by
//! the host, once for each message on first need, and once at HELLO and BUS_MAKE for later queries.

use zerocopy::IntoBytes;

use crate::abi::{AttachFlags, Creds, ItemType, Pids};

use super::host::{Credentials, GROUPS_MAX, HandleId, Host, Id, Spaces};
use super::slice::ItemSink;

/// Kinds that describe a process, and not its connection.
pub(super) const PROCESS: AttachFlags = AttachFlags::CREDS
    .union(AttachFlags::PIDS)
    .union(AttachFlags::AUXGROUPS)
    .union(AttachFlags::SECLABEL)
    .union(READ);

/// Kinds that describe a connection.
pub(super) const CONNECTION: AttachFlags = AttachFlags::NAMES.union(AttachFlags::CONN_DESCRIPTION);

/// Kinds of a process that only the host can read.
pub(super) const READ: AttachFlags = AttachFlags::TID_COMM
    .union(AttachFlags::PID_COMM)
    .union(AttachFlags::EXE)
    .union(AttachFlags::CMDLINE)
    .union(AttachFlags::CGROUP)
    .union(AttachFlags::CAPS)
    .union(AttachFlags::AUDIT);

/// Kinds that a process finds in /proc, if it finds the other process there at all.
const PROC: AttachFlags = READ.union(AttachFlags::SECLABEL);

/// What a user or group is to those who have no name for it.
const NOBODY: u32 = 65534;

/// The kinds of a process in the order of their items.
const ORDER: [(AttachFlags, ItemType); 11] = [
    (AttachFlags::CREDS, ItemType::CREDS),
    (AttachFlags::PIDS, ItemType::PIDS),
    (AttachFlags::AUXGROUPS, ItemType::AUXGROUPS),
    (AttachFlags::TID_COMM, ItemType::TID_COMM),
    (AttachFlags::PID_COMM, ItemType::PID_COMM),
    (AttachFlags::EXE, ItemType::EXE),
    (AttachFlags::CMDLINE, ItemType::CMDLINE),
    (AttachFlags::CGROUP, ItemType::CGROUP),
    (AttachFlags::CAPS, ItemType::CAPS),
    (AttachFlags::SECLABEL, ItemType::SECLABEL),
    (AttachFlags::AUDIT, ItemType::AUDIT),
];

/// Which kinds a host was asked for, and where in a buffer its answers stand.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gathered {
    asked: AttachFlags,
    spans: [Span; ORDER.len()],
    used: u32,
    /// The time of day, once somebody is shown it; 0 until then.
    pub(super) realtime_ns: u64,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    at: u32,
    /// 0 for a kind without a value.
    len: u32,
}

impl Gathered {
    /// Nothing was asked yet.
    pub(super) const NOTHING: Self = Self {
        asked: AttachFlags::empty(),
        spans: [Span { at: 0, len: 0 }; ORDER.len()],
        used: 0,
        realtime_ns: 0,
    };

    /// Asks the host for the kinds in `wanted` that it was not asked for yet, seven at most.
    ///
    /// What does not fit into `buffer` is left out.
    pub(super) fn gather(
        &mut self,
        host: &mut dyn Host,
        from: HandleId,
        wanted: AttachFlags,
        buffer: &mut [u8],
    ) {
        let missing = wanted.intersection(READ).difference(self.asked);
        if missing.is_empty() {
            return;
        }
        self.asked |= missing;
        for ((kind, _), span) in ORDER.iter().zip(&mut self.spans) {
            if !missing.contains(*kind) {
                continue;
            }
            let place = buffer.get_mut(self.used as usize..).unwrap_or_default();
            let room = place.len();
            if let Some(len) = host.metadata(from, *kind, place).filter(|len| *len <= room) {
                *span = Span { at: self.used, len: len as u32 };
                self.used += len as u32;
            }
        }
    }

    fn value<'b>(&self, index: usize, buffer: &'b [u8]) -> Option<&'b [u8]> {
        let span = self.spans.get(index).filter(|span| span.len > 0)?;
        buffer.get(span.at as usize..(span.at + span.len) as usize)
    }
}

/// What of the kinds in `wanted` a process in other namespaces gets to know about `who`, who gives out `granted`.
pub(super) fn visible(wanted: AttachFlags, granted: AttachFlags, who: &Spaces, by: &Spaces) -> AttachFlags {
    let mut shown = wanted;
    // kdbus: without a number in the receiver's namespace, /proc has nothing to tell; the sender may.
    if by.pids != 0 && by.pids != who.pids {
        shown &= granted | PROC.complement();
    }
    // A path means another file under another root, and a login user is one of the host's.
    if by.root != 0 {
        shown -= AttachFlags::EXE;
    }
    if by.users != 0 {
        shown -= AttachFlags::AUDIT;
    }
    shown
}

/// The credentials `who` in the numbers of the process behind `by`; `None` where they are the host's.
pub(super) fn translate(
    host: &mut dyn Host,
    by: HandleId,
    space: &Spaces,
    who: &Credentials,
) -> Option<Credentials> {
    if space.users == 0 && space.pids == 0 {
        return None;
    }
    let mut seen = who.clone();
    if space.users != 0 {
        let mut name = |id: Id, number: u32| match number {
            // kdbus: an id that was given as unset stays so.
            u32::MAX => u32::MAX,
            _ => host.id_seen(by, id).unwrap_or(NOBODY),
        };
        for user in [&mut seen.uid, &mut seen.euid, &mut seen.suid, &mut seen.fsuid] {
            *user = name(Id::User(*user), *user);
        }
        let groups = [&mut seen.gid, &mut seen.egid, &mut seen.sgid, &mut seen.fsgid];
        for group in groups.into_iter().chain(&mut seen.groups) {
            *group = name(Id::Group(*group), *group);
        }
    }
    if space.pids != 0 {
        let pid = if who.spaces.pids == space.pids { who.spaces.pid } else { 0 };
        let tid = if who.tid == who.pid { pid } else { 0 };
        (seen.pid, seen.tid, seen.ppid) = (pid, tid, 0);
    }
    Some(seen)
}

/// Emits the items of a process, in the order that every receiver sees.
pub(super) fn emit_process(
    mask: AttachFlags,
    who: &Credentials,
    gathered: &Gathered,
    buffer: &[u8],
    sink: &mut dyn ItemSink,
) {
    if !mask.intersects(PROCESS) {
        return;
    }
    for (index, (kind, item)) in ORDER.iter().enumerate() {
        if !mask.contains(*kind) {
            continue;
        }
        match *item {
            ItemType::CREDS => sink.item(*item, &[creds(who).as_bytes()]),
            ItemType::PIDS => sink.item(*item, &[pids(who).as_bytes()]),
            ItemType::AUXGROUPS => {
                let mut groups = [0_u64; GROUPS_MAX];
                for (place, group) in groups.iter_mut().zip(&who.groups) {
                    *place = u64::from(*group);
                }
                sink.item(*item, &[groups[..who.groups.len()].as_bytes()]);
            }
            ItemType::SECLABEL => {
                let label = who.label.split(|byte| *byte == 0).next().unwrap_or_default();
                if !label.is_empty() {
                    sink.item(*item, &[label, &[0]]);
                }
            }
            _ => {
                if let Some(value) = gathered.value(index, buffer) {
                    sink.item(*item, &[value]);
                }
            }
        }
    }
}

fn creds(who: &Credentials) -> Creds {
    Creds {
        uid: who.uid.into(),
        euid: who.euid.into(),
        suid: who.suid.into(),
        fsuid: who.fsuid.into(),
        gid: who.gid.into(),
        egid: who.egid.into(),
        sgid: who.sgid.into(),
        fsgid: who.fsgid.into(),
    }
}

fn pids(who: &Credentials) -> Pids {
    Pids { pid: who.pid.into(), tid: who.tid.into(), ppid: who.ppid.into() }
}
