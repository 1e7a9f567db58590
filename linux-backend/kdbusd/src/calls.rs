//! The filter of system calls of a confined daemon, see [`confine`](crate::confine#calls).

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use rustix::io::Errno;

use crate::confine::{ConfineError, failed};

/// What a call that is not on the list does.
const REFUSED: SeccompAction = SeccompAction::Errno(libc::EPERM as u32);
/// A C library goes back to `clone` then, whose flags a filter can see.
const ABSENT: SeccompAction = SeccompAction::Errno(libc::ENOSYS as u32);

const DOING: &str = "filtering system calls";

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Filters the calls of all threads from now on. The inner error says why the kernel cannot.
pub(crate) fn filter() -> Result<Result<(), String>, ConfineError> {
    let machine = TargetArch::try_from(std::env::consts::ARCH).map_err(|error| failed(DOING, &error))?;
    let rules = rules().map_err(|error| failed(DOING, &error))?;
    let absent = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    // The second one would not let the first one in. Of both answers, the kernel takes the stricter one.
    for (rules, otherwise, matching) in
        [(absent, SeccompAction::Allow, ABSENT), (rules, REFUSED, SeccompAction::Allow)]
    {
        let filter = SeccompFilter::new(rules, otherwise, matching, machine);
        let program: BpfProgram =
            filter.and_then(TryInto::try_into).map_err(|error| failed(DOING, &error))?;
        match seccompiler::apply_filter_all_threads(&program) {
            Ok(()) => {}
            Err(seccompiler::Error::Seccomp(error)) if unknown(&error) => {
                return Ok(Err(format!("the kernel has no seccomp: {error}")));
            }
            Err(error) => return Err(failed(DOING, &error)),
        }
    }
    Ok(Ok(()))
}

/// Whether an error means that the kernel does not know what was asked of it.
fn unknown(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOSYS | Errno::INVAL))
}

/// `argument & mask == value`, of the lower 32 bits.
fn masked(argument: u8, mask: u64, value: u64) -> Result<Vec<SeccompRule>, BackendError> {
    let condition =
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)?;
    Ok(vec![SeccompRule::new(vec![condition])?])
}

/// `argument` is one of `values`, of its lower 32 bits.
fn one_of(argument: u8, values: &[i64]) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |value: &i64| masked(argument, u64::from(u32::MAX), *value as u64 & u64::from(u32::MAX));
    Ok(values.iter().map(rule).collect::<Result<Vec<_>, _>>()?.concat())
}

/// Everything that a serving daemon calls.
fn rules() -> Result<Rules, BackendError> {
    use libc as c;
    // No flag by which a file is made or can be written to.
    let changes = c::O_ACCMODE | c::O_CREAT | c::O_TRUNC | (c::O_TMPFILE & !c::O_DIRECTORY);
    let read_only = |argument| masked(argument, changes as u64, 0);
    let not_executable = || masked(2, c::PROT_EXEC as u64, 0);
    let thread = c::CLONE_THREAD | c::CLONE_VM;

    let mut rules: Rules = ALWAYS.iter().map(|call| (*call, Vec::new())).collect();
    rules.extend([
        (c::SYS_openat, read_only(2)?),
        (c::SYS_mmap, not_executable()?),
        (c::SYS_mprotect, not_executable()?),
        (c::SYS_socket, one_of(0, &[i64::from(c::AF_UNIX)])?),
        (c::SYS_clone, masked(0, thread as u64, thread as u64)?),
        // No set-user-id and nothing like it.
        (c::SYS_fchmod, masked(1, 0o7000, 0)?),
        (c::SYS_fchmodat, masked(2, 0o7000, 0)?),
        // Whether a process is there; nothing is sent.
        (c::SYS_kill, one_of(1, &[0])?),
        // abort() ends this process.
        (c::SYS_tgkill, one_of(0, &[i64::from(std::process::id())])?),
        (c::SYS_prctl, one_of(0, &[i64::from(c::PR_SET_NAME), i64::from(c::PR_SET_VMA)])?),
        (c::SYS_prlimit64, one_of(2, &[0])?),
        (c::SYS_sched_setscheduler, one_of(0, &[0])?),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.extend([(c::SYS_open, read_only(1)?)]);
    Ok(rules)
}

/// Not in libc for every C library of this machine; the number is the kernel's.
#[cfg(target_arch = "aarch64")]
const RENAMEAT: i64 = 38;
#[cfg(target_arch = "x86_64")]
const RENAMEAT: i64 = libc::SYS_renameat;

/// Calls that may have any arguments.
const ALWAYS: &[i64] = &[
    // Clients.
    libc::SYS_accept4,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_getsockopt,
    libc::SYS_pidfd_open,
    libc::SYS_pipe2,
    libc::SYS_ppoll,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_timerfd_settime,
    // Pools, lanes and the descriptors of messages.
    libc::SYS_close,
    libc::SYS_fcntl,
    libc::SYS_fstat,
    libc::SYS_ftruncate,
    libc::SYS_lseek,
    libc::SYS_memfd_create,
    libc::SYS_mremap,
    libc::SYS_munmap,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_write,
    libc::SYS_writev,
    // Nodes, and what /proc tells.
    libc::SYS_bind,
    libc::SYS_fchownat,
    libc::SYS_getdents64,
    libc::SYS_listen,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_readlinkat,
    RENAMEAT,
    libc::SYS_renameat2,
    libc::SYS_statx,
    libc::SYS_unlinkat,
    // Threads, memory, time and the end.
    libc::SYS_brk,
    libc::SYS_clock_gettime,
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getpid,
    libc::SYS_getrandom,
    libc::SYS_gettid,
    libc::SYS_madvise,
    libc::SYS_restart_syscall,
    libc::SYS_rseq,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_sigaltstack,
    // What the C libraries of x86_64 use beside the newer ones.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
];
