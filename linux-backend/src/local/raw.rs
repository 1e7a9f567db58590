//! The system calls for which rustix has no function: socket options of a peer, and scheduling classes.
//!
//! The socket options report what the kernel pinned when the peer connected.
#![allow(unsafe_code)]

use rustix::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

const SOL_SOCKET: i32 = 1;
const SO_PEERSEC: i32 = 31;
const SO_PEERGROUPS: i32 = 59;
const SO_PEERPIDFD: i32 = 77;

/// The security label of the peer, without the NUL at its end; as much of it as `buffer` holds.
///
/// # Errors
///
/// `ENOPROTOOPT` without a security module; `ERANGE` if `buffer` is too short.
pub fn peer_label(socket: impl AsFd, buffer: &mut [u8]) -> Result<&[u8], Errno> {
    let len = getsockopt(socket, SO_PEERSEC, buffer)?;
    let label = buffer.get(..len).ok_or(Errno::RANGE)?;
    Ok(label.strip_suffix(&[0]).unwrap_or(label))
}

/// The supplementary groups of the peer.
///
/// # Errors
///
/// `ERANGE` if `buffer` is too short; `ENOPROTOOPT` before Linux 4.13.
pub fn peer_groups(socket: impl AsFd, buffer: &mut [u32]) -> Result<&[u32], Errno> {
    let len = getsockopt(socket, SO_PEERGROUPS, zerocopy::IntoBytes::as_mut_bytes(buffer))?;
    buffer.get(..len / size_of::<u32>()).ok_or(Errno::RANGE)
}

/// A descriptor of the process that connected.
///
/// # Errors
///
/// `ENOPROTOOPT` before Linux 6.5; `ESRCH` if the process is gone.
pub fn peer_pidfd(socket: impl AsFd) -> Result<OwnedFd, Errno> {
    let mut number = [0; size_of::<i32>()];
    getsockopt(socket, SO_PEERPIDFD, &mut number)?;
    let number = i32::from_ne_bytes(number);
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: on success the kernel has installed this descriptor for the caller, who owns it from here on.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives the calling thread a scheduling class and a priority in it.
pub(crate) fn set_scheduler(class: u32, priority: u32) -> Result<(), Errno> {
    let priority = i32::try_from(priority).map_err(|_| Errno::INVAL)?;
    let arguments = [0, class as usize, (&raw const priority) as usize, 0, 0];
    // SAFETY: thread 0 is the calling one; the kernel reads one `sched_param`, which is this one number, and it outlives
    // the call.
    let result = unsafe { syscall5(SCHED_SETSCHEDULER, arguments) };
    match i32::try_from(result) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw_os_error(-error)),
        _ => Ok(()),
    }
}

/// Reads a socket option into `value` and returns its length, which is at most that of `value`.
fn getsockopt(socket: impl AsFd, option: i32, value: &mut [u8]) -> Result<usize, Errno> {
    let mut len = u32::try_from(value.len()).map_err(|_| Errno::INVAL)?;
    let arguments = [
        socket.as_fd().as_raw_fd() as usize,
        SOL_SOCKET as usize,
        option as usize,
        value.as_mut_ptr() as usize,
        (&raw mut len) as usize,
    ];
    // SAFETY: the kernel writes at most `len` bytes to `value`, which holds that many, and one `u32` to `len`.
    // Both are exclusively borrowed until the call returns.
    let result = unsafe { syscall5(GETSOCKOPT, arguments) };
    // Only -4095..=-1 are errors.
    match i32::try_from(result) {
        Ok(error @ -4095..=-1) => Err(Errno::from_raw_os_error(-error)),
        _ => Ok((len as usize).min(value.len())),
    }
}

#[cfg(target_arch = "x86_64")]
const GETSOCKOPT: usize = 55;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const GETSOCKOPT: usize = 209;
#[cfg(target_arch = "arm")]
const GETSOCKOPT: usize = 295;

#[cfg(target_arch = "x86_64")]
const SCHED_SETSCHEDULER: usize = 144;
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const SCHED_SETSCHEDULER: usize = 119;
#[cfg(target_arch = "arm")]
const SCHED_SETSCHEDULER: usize = 156;

/// One system call with five arguments.
///
/// # Safety
///
/// The arguments are such that the call touches only memory that the caller may have touched.
#[cfg(target_arch = "x86_64")]
unsafe fn syscall5(number: usize, arguments: [usize; 5]) -> isize {
    let result;
    // SAFETY: the caller answers for the arguments; the kernel changes rcx and r11 besides rax.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") arguments[0],
            in("rsi") arguments[1],
            in("rdx") arguments[2],
            in("r10") arguments[3],
            in("r8") arguments[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    result
}

/// One system call with five arguments.
///
/// # Safety
///
/// The arguments are such that the call touches only memory that the caller may have touched.
#[cfg(target_arch = "aarch64")]
unsafe fn syscall5(number: usize, arguments: [usize; 5]) -> isize {
    let result;
    // SAFETY: the caller answers for the arguments; the kernel changes no register but x0.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") arguments[0] => result,
            in("x1") arguments[1],
            in("x2") arguments[2],
            in("x3") arguments[3],
            in("x4") arguments[4],
            options(nostack),
        );
    }
    result
}

/// One system call with five arguments.
///
/// # Safety
///
/// The arguments are such that the call touches only memory that the caller may have touched.
#[cfg(target_arch = "riscv64")]
unsafe fn syscall5(number: usize, arguments: [usize; 5]) -> isize {
    let result;
    // SAFETY: the caller answers for the arguments; the kernel changes no register but a0.
    unsafe {
        core::arch::asm!(
            "ecall",
            in("a7") number,
            inlateout("a0") arguments[0] => result,
            in("a1") arguments[1],
            in("a2") arguments[2],
            in("a3") arguments[3],
            in("a4") arguments[4],
            options(nostack),
        );
    }
    result
}

/// One system call with five arguments.
///
/// # Safety
///
/// The arguments are such that the call touches only memory that the caller may have touched.
#[cfg(target_arch = "arm")]
unsafe fn syscall5(number: usize, arguments: [usize; 5]) -> isize {
    let result;
    // SAFETY: the caller answers for the arguments. The number goes through r7, which may be the frame
    // pointer and is put back.
    unsafe {
        core::arch::asm!(
            "mov {saved}, r7",
            "mov r7, {number}",
            "svc 0",
            "mov r7, {saved}",
            saved = out(reg) _,
            number = in(reg) number,
            inlateout("r0") arguments[0] => result,
            in("r1") arguments[1],
            in("r2") arguments[2],
            in("r3") arguments[3],
            in("r4") arguments[4],
            options(nostack),
        );
    }
    result
}

#[cfg(not(any(
    target_arch = "x86_64",
    target_arch = "aarch64",
    target_arch = "riscv64",
    target_arch = "arm"
)))]
compile_error!("kdbus-linux knows the system calls of x86_64, aarch64, riscv64 and arm");

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap()
    }

    #[test]
    fn the_peer_of_a_socket_pair_has_our_groups() {
        let (socket, _other) = pair();
        let mut buffer = [0; 256];
        let groups = peer_groups(&socket, &mut buffer).unwrap();
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        let own: std::vec::Vec<u32> = own.split_whitespace().map(|group| group.parse().unwrap()).collect();
        assert_eq!(groups, own);
    }

    #[test]
    fn an_option_that_fails_says_why() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        assert_eq!(peer_groups(&file, &mut [0; 4]), Err(Errno::NOTSOCK));
        assert_eq!(peer_label(&file, &mut [0; 4]).map(<[u8]>::len), Err(Errno::NOTSOCK));
    }

    #[test]
    fn the_process_of_a_peer_is_a_descriptor_where_the_kernel_has_them() {
        let (socket, _other) = pair();
        match peer_pidfd(&socket) {
            Ok(pidfd) => {
                let link = std::format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
                let info = std::fs::read_to_string(link).unwrap();
                assert!(info.contains(&std::format!("Pid:\t{}", std::process::id())), "{info}");
            }
            Err(error) => assert_eq!(error, Errno::NOPROTOOPT),
        }
    }
}
