//! Descriptors by their numbers, as cases name them.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use kdbus_core::abi::Errno;

/// Where the descriptors are that a real kernel would not need, out of the way of the numbers that cases use: from
/// here, or from the middle of what the process may have, which a first process and old systems have less of.
const HIDDEN: i32 = 4096;

fn hidden() -> i32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.and_then(|limit| i32::try_from(limit / 2).ok()).map_or(HIDDEN, |middle| middle.min(HIDDEN))
}

/// Another descriptor of the same file, from [`hidden`] on, or below where there is no room.
fn away(fd: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    use rustix::io::Errno;
    match rustix::io::fcntl_dupfd_cloexec(fd, hidden()) {
        Err(Errno::INVAL | Errno::MFILE) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
        other => other,
    }
}

/// Gives a descriptor a number that no case comes across, as long as there is room for it.
pub(crate) fn hide(fd: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&fd, hidden()).unwrap_or(fd)
}

/// Another descriptor of the file behind number `fd`, out of the way.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub(crate) fn duplicate(fd: i32) -> Result<OwnedFd, Errno> {
    with(fd, away)
}

/// Runs `work` with the descriptor of that number.
///
/// # Errors
///
/// `EBADF` for a number that can be none; what `work` reports.
pub(crate) fn with<R>(
    fd: i32,
    work: impl FnOnce(BorrowedFd<'_>) -> rustix::io::Result<R>,
) -> Result<R, Errno> {
    if fd < 0 {
        return Err(Errno::EBADF);
    }
    // SAFETY: the number is used for one system call, which fails with `EBADF` if it is not open. Nobody else
    // closes numbers of a case meanwhile.
    work(unsafe { BorrowedFd::borrow_raw(fd) }).map_err(errno)
}

/// Closes a descriptor that a case owns.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub(crate) fn close(fd: i32) -> Result<(), Errno> {
    with(fd, |fd| rustix::io::fcntl_getfd(fd).map(|_| ()))?;
    // SAFETY: it is open, and what it belongs to is the case, which asks for this.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(())
}

/// The bus' number for an error of a system call.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    u32::try_from(error.raw_os_error()).ok().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    #[test]
    fn a_number_without_a_file_is_refused() {
        assert_eq!(duplicate(-1).err(), Some(Errno::EBADF));
        assert_eq!(duplicate(1 << 20).err(), Some(Errno::EBADF));
        assert_eq!(close(1 << 20), Err(Errno::EBADF));
    }

    #[test]
    fn a_duplicate_keeps_clear_of_the_numbers_of_cases() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        let other = duplicate(reader.as_raw_fd()).unwrap();
        assert!(other.as_raw_fd() >= hidden() && hidden() > 100);
    }

    #[test]
    fn a_file_lives_on_in_its_duplicate() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let number = writer.into_raw_fd();
        let other = duplicate(number).unwrap();
        close(number).unwrap();
        rustix::io::write(&other, b"x").unwrap();
        let mut byte = [0];
        rustix::io::read(&reader, &mut byte).unwrap();
        assert_eq!(&byte, b"x");
    }
}
