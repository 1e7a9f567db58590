//! What differs between a loop-back and a module for whoever tests them: who one is, and where nodes are.

use std::fs::{File, metadata};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex, PoisonError};

use kdbus_conformance::{Needs, Node, Skip, Who};
use kdbus_core::engine::{Config, Credentials, Spaces};
use kdbus_linux::kernel::{Module, Seam};
use rustix::thread::{Gid, Uid};

use crate::loopback::{self, Loopback};

/// Uid and gid of a case's owner where there can be several users; the others follow behind.
const OWNER: u32 = 1000;

/// One domain of buses to test, and the users on it.
pub trait Platform: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// The way to its nodes.
    type Seam: Seam + Send + Sync;

    /// The way to its nodes.
    fn seam(&self) -> &Self::Seam;

    /// The directory with the control file.
    fn root(&self) -> &str;

    /// Whether there are users besides the owner.
    fn has_users(&self) -> bool;

    /// A process number for a new process; that of this one where there is one process only.
    fn new_pid(&self) -> u32;

    /// Whether a kernel carries the commands out that can be brought down by them.
    fn is_module(&self) -> bool {
        false
    }

    /// Whether processes can be in namespaces of their own.
    fn has_namespaces(&self) -> bool {
        false
    }

    /// The security label of every process, if it is known.
    fn label(&self) -> Option<String> {
        None
    }

    /// Lets the calling thread be `who` from now on.
    fn enter(&self, who: &Who);

    /// Runs `work` as `who`.
    fn run<R: Send>(&self, who: &Who, work: impl FnOnce() -> R + Send) -> R {
        if !self.has_users() {
            return work();
        }
        let ended = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(who);
                work()
            });
            thread.join()
        });
        ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// An endpoint's node, or with `None` the bus' directory.
    fn node(&self, bus: &str, endpoint: Option<&str>) -> Option<Node>;

    /// Lets at most `spare` more descriptors be opened.
    ///
    /// # Errors
    ///
    /// [`Skip`] where that is not possible.
    fn leave_spare_fds(&self, spare: usize) -> Result<(), Skip>;
}

/// Who the owner is, or user `number`.
pub(crate) fn user(platform: &impl Platform, number: usize) -> Who {
    if platform.has_users() {
        let id = OWNER + 10 * number as u32;
        let groups = vec![id + 5000, id + 5001];
        return Who {
            uid: id,
            gid: id,
            groups,
            pid: platform.new_pid(),
            label: platform.label(),
            apart: false,
        };
    }
    Who {
        uid: rustix::process::geteuid().as_raw(),
        gid: rustix::process::getegid().as_raw(),
        groups: rustix::process::getgroups().unwrap_or_default().into_iter().map(Gid::as_raw).collect(),
        pid: platform.new_pid(),
        label: platform.label(),
        apart: false,
    }
}

/// A loop-back with users of its own making.
#[derive(Clone, Debug)]
pub struct LoopbackPlatform {
    seam: Loopback,
    last_pid: Arc<Mutex<u32>>,
}

impl LoopbackPlatform {
    /// A new domain with room for `needs`.
    ///
    /// # Panics
    ///
    /// If the capacities make no domain, which none of the suite's does.
    #[must_use]
    pub fn new(needs: &Needs) -> Self {
        let seam = Loopback::new(&config(needs)).expect("the capacities make a domain");
        // Numbers that no process of this system has.
        Self { seam, last_pid: Arc::new(Mutex::new(1 << 23)) }
    }
}

/// A domain is never given back, so it gets no more room than its case needs.
fn config(needs: &Needs) -> Config {
    Config {
        page_size: rustix::param::page_size() as u64,
        handles: needs.connections + needs.buses + 16,
        buses: needs.buses,
        endpoints: needs.buses + 8,
        connections: needs.connections,
        queue_depth: needs.messages,
        pool_slices: needs.slices,
        names: needs.names,
        name_records: needs.names + 8,
        matches: needs.matches,
        match_rules: needs.matches + 8,
        match_buckets: needs.matches,
        trackers: needs.calls,
        ..Config::SMALL
    }
}

impl Platform for LoopbackPlatform {
    type Seam = Loopback;

    fn seam(&self) -> &Loopback {
        &self.seam
    }

    fn root(&self) -> &str {
        loopback::ROOT
    }

    fn has_users(&self) -> bool {
        true
    }

    fn new_pid(&self) -> u32 {
        let mut last = self.last_pid.lock().unwrap_or_else(PoisonError::into_inner);
        *last += 1;
        *last
    }

    fn has_namespaces(&self) -> bool {
        true
    }

    fn label(&self) -> Option<String> {
        Some("loop-back".to_owned())
    }

    fn enter(&self, who: &Who) {
        Loopback::assume(Some(credentials(who)));
    }

    fn run<R: Send>(&self, who: &Who, work: impl FnOnce() -> R + Send) -> R {
        let former = Loopback::assume(Some(credentials(who)));
        let result = work();
        Loopback::assume(former);
        result
    }

    fn node(&self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        let file = self.seam.node(bus, endpoint.unwrap_or("bus"))?;
        let mode = if endpoint.is_some() { file.mode } else { file.directory_mode() };
        Some(Node { uid: file.uid, gid: file.gid, mode })
    }

    fn leave_spare_fds(&self, spare: usize) -> Result<(), Skip> {
        self.seam.leave_spare_fds(spare);
        Ok(())
    }
}

fn credentials(who: &Who) -> Credentials {
    Credentials {
        uid: who.uid,
        euid: who.uid,
        suid: who.uid,
        fsuid: who.uid,
        gid: who.gid,
        egid: who.gid,
        sgid: who.gid,
        fsgid: who.gid,
        groups: who.groups.iter().copied().collect(),
        pid: who.pid,
        tid: who.pid,
        ppid: 1,
        label: who.label.iter().flat_map(|label| label.bytes()).collect(),
        privileged: who.uid == 0,
        spaces: if who.apart {
            Spaces { users: 1, pids: who.pid.into(), pid: 1, ..Spaces::HOST }
        } else {
            Spaces::HOST
        },
    }
}

/// The module of the running kernel. As root it has users: threads of this process with ids of their own.
#[derive(Clone, Debug)]
pub struct ModulePlatform {
    root: String,
    /// Descriptors that leave no more room than a case allows.
    ballast: Arc<Mutex<Vec<OwnedFd>>>,
}

impl ModulePlatform {
    /// The domain that is mounted at `root`.
    #[must_use]
    pub fn new(root: &str) -> Self {
        Self { root: root.to_owned(), ballast: Arc::default() }
    }
}

impl Platform for ModulePlatform {
    type Seam = Module;

    fn seam(&self) -> &Module {
        &Module
    }

    fn root(&self) -> &str {
        &self.root
    }

    fn has_users(&self) -> bool {
        rustix::process::geteuid().is_root()
    }

    fn is_module(&self) -> bool {
        true
    }

    fn new_pid(&self) -> u32 {
        std::process::id()
    }

    fn enter(&self, who: &Who) {
        // The ids are those of the thread alone, which ends without having them back.
        let groups: Vec<Gid> = who.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
        let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
        let changed = rustix::thread::set_thread_groups(&groups)
            .and_then(|()| rustix::thread::set_thread_res_gid(gid, gid, gid))
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid));
        changed.expect("root can become anybody");
    }

    fn node(&self, bus: &str, endpoint: Option<&str>) -> Option<Node> {
        let path = match endpoint {
            Some(endpoint) => format!("{}/{bus}/{endpoint}", self.root),
            None => format!("{}/{bus}", self.root),
        };
        let found = metadata(path).ok()?;
        Some(Node { uid: found.uid(), gid: found.gid(), mode: found.mode() & 0o777 })
    }

    fn leave_spare_fds(&self, spare: usize) -> Result<(), Skip> {
        let mut ballast = self.ballast.lock().unwrap_or_else(PoisonError::into_inner);
        let any = File::open("/").map_err(|_| Skip::because("needs a readable root directory"))?;
        ballast.push(any.into());
        // Each takes the lowest free number, so that in the end all below the limit are taken.
        while let Ok(more) = ballast[0].try_clone() {
            ballast.push(more);
        }
        let left = ballast.len().saturating_sub(spare);
        ballast.truncate(left);
        Ok(())
    }
}
