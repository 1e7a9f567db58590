//! The five system calls that lead to the module, and the one seam behind which something else can stand.
#![allow(unsafe_code)]

use core::ffi::c_void;
use core::ptr::{NonNull, null_mut};

use kdbus_core::Instant;
use kdbus_core::abi::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Ioctl, IoctlOutput, Opcode};
use rustix::mm::{MapFlags, ProtFlags};

/// What `poll` reports for a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Ready {
    /// A message waits, or broadcasts were lost.
    pub readable: bool,
    /// The node is an active connection.
    pub writable: bool,
    /// The node is no connection, or one that is gone.
    pub hung_up: bool,
}

/// The way to the nodes of a kdbusfs, at the level of bytes, addresses and descriptors.
///
/// # Safety
///
/// - [`mmap`](Self::mmap) returns the address of `len` bytes in fresh pages that stay readable until they are
///   unmapped, and that change only as [`Transport::slice`](kdbus_core::client::Transport::slice) allows.
/// - [`ioctl`](Self::ioctl) touches no memory of the caller but what the command's argument names. Descriptors
///   whose numbers it puts into a message of the pool are the caller's from then on.
pub unsafe trait Seam {
    /// Opens a node for reading and writing, to be closed by a new program image.
    ///
    /// # Errors
    ///
    /// What `open` reports.
    fn open(&self, path: &str) -> Result<OwnedFd, Errno>;

    /// Runs a command. A signal ends one that waits with `EINTR`, unless its handler has `SA_RESTART`.
    ///
    /// # Errors
    ///
    /// What `ioctl` reports.
    ///
    /// # Safety
    ///
    /// If `arg` is the address of a command, then as many bytes as its first word says are there, readable
    /// and writable and borrowed by nobody else; the same holds of a message that it names. Payload that the
    /// message names is readable as far as its item says. Where that is not so for lack of a mapping, the
    /// outcome is `EFAULT`.
    unsafe fn ioctl(&self, node: BorrowedFd<'_>, request: u32, arg: *mut c_void) -> Result<(), Errno>;

    /// Maps the first `len` bytes of a connection's pool, shared.
    ///
    /// # Errors
    ///
    /// What `mmap` reports: `EBADFD` without a connection, `EPERM` if `writable`, `EFAULT` beyond the pool.
    fn mmap(&self, node: BorrowedFd<'_>, len: usize, writable: bool) -> Result<NonNull<u8>, Errno>;

    /// Waits until a message waits or the connection is gone, or until `deadline`. Restarts after signals.
    ///
    /// # Errors
    ///
    /// What `ppoll` reports.
    fn poll(&self, node: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Ready, Errno>;

    /// Closes a node.
    fn close(&self, node: OwnedFd);
}

/// The kdbus module of the running kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct Module;

// SAFETY: the module maps a pool from a file of its own and writes to a slice only before it reports its
// offset; of the caller's memory it reads and writes what the argument names, by checked copies.
unsafe impl Seam for Module {
    fn open(&self, path: &str) -> Result<OwnedFd, Errno> {
        rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty()).map_err(errno)
    }

    unsafe fn ioctl(&self, node: BorrowedFd<'_>, request: u32, arg: *mut c_void) -> Result<(), Errno> {
        // SAFETY: the caller answers for `arg`; the module decides by the request what it is.
        unsafe { rustix::ioctl::ioctl(node, Request { number: request, arg }) }.map_err(errno)
    }

    fn mmap(&self, node: BorrowedFd<'_>, len: usize, writable: bool) -> Result<NonNull<u8>, Errno> {
        let write = if writable { ProtFlags::WRITE } else { ProtFlags::empty() };
        let start =
            // SAFETY: the kernel chooses an address where nothing is mapped.
            unsafe { rustix::mm::mmap(null_mut(), len, ProtFlags::READ | write, MapFlags::SHARED, node, 0) };
        NonNull::new(start.map_err(errno)?.cast()).ok_or(Errno::ENOMEM)
    }

    fn poll(&self, node: BorrowedFd<'_>, deadline: Option<Instant>) -> Result<Ready, Errno> {
        // A connection can be written to at all times, which is asked for only once there is an answer.
        let awaited = poll_events(node, PollFlags::IN, deadline)?;
        let now = poll_events(node, PollFlags::IN | PollFlags::OUT, Some(Instant::from_nanos(0)))?;
        let events = awaited | now;
        Ok(Ready {
            readable: events.contains(PollFlags::IN),
            writable: events.contains(PollFlags::OUT),
            hung_up: events.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL),
        })
    }

    fn close(&self, node: OwnedFd) {
        drop(node);
    }
}

/// Waits for `events` until `deadline`; restarts after signals.
fn poll_events(
    node: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<PollFlags, Errno> {
    loop {
        let timeout = deadline.map(|deadline| {
            let left = deadline.since(now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = [PollFd::from_borrowed_fd(node, events)];
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(errno(error)),
            Ok(_) => return Ok(fds[0].revents()),
        }
    }
}

/// Time on the bus' clock.
pub(super) fn now() -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // The clock starts at boot: neither part is negative, and the sum lasts for centuries.
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64)
}

/// The bus' number for an error of a system call.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    u32::try_from(error.raw_os_error()).ok().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

/// An ioctl with any number and argument.
struct Request {
    number: u32,
    arg: *mut c_void,
}

// SAFETY: number and argument are passed through; nothing is said of the argument, and no output is made of it.
unsafe impl Ioctl for Request {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        self.number as Opcode
    }

    fn as_ptr(&mut self) -> *mut c_void {
        self.arg
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rustix::fd::AsFd;

    use super::*;

    #[test]
    fn a_file_of_another_kind_knows_no_command() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        // SAFETY: without an argument nothing is named.
        let result = unsafe { Module.ioctl(reader.as_fd(), 0x4018_9582, null_mut()) };
        if result.is_err_and(|errno| errno.raw() == rustix::io::Errno::NOSYS.raw_os_error()) {
            // Not captured: it has to be seen.
            let _ = std::io::Write::write_all(
                &mut std::io::stderr(),
                b"skipped: ioctl of another kind: this emulator carries no unknown ioctl to the kernel\n",
            );
            return;
        }
        assert_eq!(result, Err(Errno::ENOTTY));
    }

    #[test]
    fn a_node_that_is_not_there_is_not_opened() {
        let errno = Module.open("/no/such/node").unwrap_err();
        assert_eq!(errno.raw(), 2);
    }

    #[test]
    fn waiting_ends_at_the_deadline_and_when_the_other_end_goes() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let quiet = Module.poll(reader.as_fd(), Some(now())).unwrap();
        assert_eq!((quiet.readable, quiet.hung_up), (false, false));
        rustix::io::write(&writer, b"x").unwrap();
        assert!(Module.poll(reader.as_fd(), None).unwrap().readable);
        drop(writer);
        assert!(Module.poll(reader.as_fd(), None).unwrap().hung_up);
    }
}
