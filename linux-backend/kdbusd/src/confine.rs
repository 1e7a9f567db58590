//! The rights that a serving daemon gives up.
//!
//! A daemon reads what any process of the system may send it. Should a client ever find a way to have it do what the
//! client wants, that must be worth little: [`apply`] leaves the process what serving takes and nothing else. The
//! program calls it between binding and serving; a [`Daemon`](crate::Daemon) inside another program does not,
//! because it is not the daemon's to give up another program's rights.
//!
//! 1. No new privileges: nothing that it might start gets more rights than it has itself.
//! 2. Capabilities, of which the first four remain only where the daemon was started with them, as root:
//!
//!    | capability | why it stays |
//!    |---|---|
//!    | `CAP_CHOWN` | a bus or endpoint node is handed to the user who made it |
//!    | `CAP_FOWNER` | its mode is set, and it is removed, after it was handed over |
//!    | `CAP_DAC_OVERRIDE` | nodes come and go in bus directories in which nobody may write |
//!    | `CAP_SYS_PTRACE` | executable, root and namespaces of another user's process are read in /proc |
//!    | `CAP_SYS_RESOURCE` | descriptors that clients have not fetched yet count as root's; more than `RLIMIT_NOFILE` of them would keep it from passing on any |
//!    | `CAP_IPC_LOCK` | with `memory.lock` only: a pool of a new connection is locked too |
//!
//!    `CAP_SYS_NICE` goes: the scheduling class is set before, and threads that close descriptors only step down.
//! 3. A filter of system calls ([`calls`](self#calls)), where the kernel has seccomp.
//! 4. Landlock, if `landlock` is set and the kernel has it in its second version (Linux 5.19) or later. See
//!    [below](self#landlock) for what it costs.
//!
//! # Calls
//!
//! A call that is not on the list fails with `EPERM` and harms nobody: a C library that one day uses another call
//! degrades the daemon, and does not end the bus of a device. Calls of another machine's table end the process. Of those
//! on the list, some are there with some arguments only: no file is opened for writing or made, none gets a set-user-id
//! bit, no memory is mapped executable, the only sockets are Unix sockets, and they connect to nobody, a new thread is all
//! that can be started, no signal is sent to others.
//!
//! # Policy files
//!
//! They are read again while the daemon serves. The names of users and groups in them are looked up in files of the
//! system then; what takes a connection to another service (`sssd`, `nscd`, `systemd-userdbd`) is refused, so a name that
//! only such a service knows is unknown, and the policy stays as it was. Give numbers in that case. The modules by which
//! the C library looks for names are loaded beforehand, because code cannot be loaded later.
//!
//! # Landlock
//!
//! A process under Landlock may not look into processes outside, not even with `CAP_SYS_PTRACE` (the rules of ptrace in
//! the kernel's documentation of Landlock). So the daemon sees neither executables nor capabilities of its clients, and
//! takes those in other namespaces for processes of its own. Where metadata is not asked for and containers are not in
//! use, that costs nothing; because the bus promises both, it is not the default.

use std::fmt;
use std::io;
use std::path::Path;

use caps::{CapSet, Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, make_bitflags,
};

use kdbus_policy::Who;

use crate::config::{Config, LogLevel};
use crate::log::Log;

/// What serving takes, in the order of the table above.
const KEPT: [Capability; 5] = [
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_RESOURCE,
];

/// What is in force. Prints as the line of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InForce {
    /// The capabilities that remain, by name.
    pub capabilities: Vec<String>,
    /// Whether system calls are filtered, or why not.
    pub calls: Result<(), String>,
    /// Whether files are out of reach, or why not; `None` if that was not asked for.
    pub files: Option<Result<(), String>>,
}

/// A right that could not be given up though the kernel knows how to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfineError {
    /// What was being done.
    pub doing: &'static str,
    /// What the system said.
    pub error: String,
}

/// Gives up what the configuration asks to give up, for the whole process and for good, and logs what is in force.
///
/// To be called once everything is bound, with one thread in the process: capabilities and Landlock are a thread's,
/// and are passed on to those that it starts. `None` if the configuration asks for nothing.
///
/// Cost: a few dozen system calls, and then for each system call of the daemon a search of a list by the kernel.
///
/// # Errors
///
/// [`ConfineError`]. What the kernel does not know is not one: it is in the result, and a warning in the log.
pub fn apply(config: &Config) -> Result<Option<InForce>, ConfineError> {
    let log = Log::new(config.log);
    if !config.confine {
        log.line(LogLevel::Info, format_args!("not confined, as configured"));
        return Ok(None);
    }
    if policies(config).next().is_some() {
        // No name has a slash, so every module is asked, and then there.
        let _ = (Who::parse("user:/"), Who::parse("group:/"));
    }
    rustix::thread::set_no_new_privs(true)
        .map_err(|error| failed("forbidding new privileges", &io::Error::from(error)))?;
    let capabilities = keep(config).map_err(|error| failed("dropping capabilities", &error))?;
    let files = config.landlock.then(|| reach(config));
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let calls = crate::calls::filter()?;
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let calls = Err(format!("there is no list of calls for {}", std::env::consts::ARCH));
    let in_force = InForce { capabilities, calls, files };
    let complete = in_force.calls.is_ok() && !matches!(in_force.files, Some(Err(_)));
    log.line(if complete { LogLevel::Info } else { LogLevel::Warn }, format_args!("{in_force}"));
    Ok(Some(in_force))
}

pub(crate) fn failed(doing: &'static str, error: &dyn fmt::Display) -> ConfineError {
    ConfineError { doing, error: error.to_string() }
}

/// Drops all capabilities but those that serving takes, and returns the names of those that remain.
fn keep(config: &Config) -> Result<Vec<String>, caps::errors::CapsError> {
    let lock = config.memory.lock.then_some(Capability::CAP_IPC_LOCK);
    let kept: Vec<Capability> = KEPT.into_iter().chain(lock).collect();
    let had = caps::read(None, CapSet::Permitted)?;
    let left: CapsHashSet = kept.iter().copied().filter(|one| had.contains(one)).collect();
    // What a program that is started gets. Nothing is started; who may shrink this set does.
    if caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        for one in caps::runtime::thread_all_supported() {
            if !left.contains(&one) {
                caps::drop(None, CapSet::Bounding, one)?;
            }
        }
    }
    if caps::runtime::ambient_set_supported().is_ok() {
        caps::clear(None, CapSet::Ambient)?;
    }
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, &left)?;
    caps::set(None, CapSet::Permitted, &left)?;
    Ok(kept.iter().filter(|one| left.contains(one)).map(ToString::to_string).collect())
}

/// The policy files that are read again when somebody says so.
fn policies(config: &Config) -> impl Iterator<Item = &Path> {
    config.bus.iter().filter_map(|bus| bus.policy.as_deref())
}

/// Puts all files but those of the tree and of /proc out of reach; where there are policy files, also but those beside
/// them and those of /etc, where users and groups have their names.
fn reach(config: &Config) -> Result<(), String> {
    let root = config.root.as_path();
    let restrict = || -> Result<RulesetStatus, Box<dyn std::error::Error>> {
        let all = AccessFs::from_all(ABI::V5);
        let read = make_bitflags!(AccessFs::{ReadFile | ReadDir});
        let change = make_bitflags!(AccessFs::{MakeSock | MakeDir | RemoveFile | RemoveDir | Refer});
        let beneath = |path: &Path, access: BitFlags<AccessFs>| -> Result<_, landlock::PathFdError> {
            Ok(PathBeneath::new(PathFd::new(path)?, access))
        };
        // Without it, as in its first version, Landlock forbids to move a finished node to its place.
        let rules = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::Refer)
            .map_err(|_| "the kernel has no Landlock, or its first version")?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(all)?
            .create()?
            .add_rule(beneath(root, read | change)?)?
            .add_rule(beneath(Path::new("/proc"), read)?)?;
        // The last thing that a daemon does is to remove its tree from there.
        let mut rules = match root.parent() {
            Some(parent) => rules.add_rule(beneath(parent, AccessFs::RemoveDir.into())?)?,
            None => rules,
        };
        for policy in policies(config) {
            // Whoever edits a file may put another one in its place.
            let whole = policy.canonicalize()?;
            let beside = whole.parent().unwrap_or(&whole);
            rules = rules.add_rule(beneath(beside, AccessFs::ReadFile.into())?)?;
            rules = rules.add_rule(beneath(Path::new("/etc"), AccessFs::ReadFile.into())?)?;
        }
        Ok(rules.restrict_self()?.ruleset)
    };
    match restrict() {
        Ok(RulesetStatus::NotEnforced) => Err("the kernel does not enforce Landlock".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

impl fmt::Display for InForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("confined: no new privileges; capabilities: ")?;
        match self.capabilities.as_slice() {
            [] => f.write_str("none")?,
            names => f.write_str(&names.join(" "))?,
        }
        match &self.calls {
            Ok(()) => f.write_str("; system calls filtered")?,
            Err(why) => write!(f, "; system calls not filtered: {why}")?,
        }
        match &self.files {
            Some(Ok(())) => f.write_str("; no files but the tree and /proc"),
            Some(Err(why)) => write!(f, "; files not out of reach: {why}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for ConfineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; --no-confine starts kdbusd with all its rights", self.doing, self.error)
    }
}

impl std::error::Error for ConfineError {}
