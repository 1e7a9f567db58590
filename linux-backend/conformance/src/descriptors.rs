//! Descriptors by their numbers, as cases name them.
#![allow(unsafe_code)]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use kdbus_core::abi::Errno;

/// Where the descriptors are that a real kernel would not need, out of the way of the numbers that cases use.
const HIDDEN: i32 = 4096;

/// Gives a descriptor a number that no case comes across, if the process may have such numbers.
pub(crate) fn hide(fd: OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(&fd, HIDDEN).unwrap_or(fd)
}

/// Another descriptor of the file behind number `fd`, out of the way.
///
/// # Errors
///
/// `EBADF` if it is not open.
pub(crate) fn duplicate(fd: i32) -> Result<OwnedFd, Errno> {
    with(fd, |fd| match rustix::io::fcntl_dupfd_cloexec(fd, HIDDEN) {
        Err(rustix::io::Errno::INVAL) => rustix::io::fcntl_dupfd_cloexec(fd, 0),
        other => other,
    })
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
    use std::os::fd::IntoRawFd;

    use super::*;

    #[test]
    fn a_number_without_a_file_is_refused() {
        assert_eq!(duplicate(-1).err(), Some(Errno::EBADF));
        assert_eq!(duplicate(1 << 20).err(), Some(Errno::EBADF));
        assert_eq!(close(1 << 20), Err(Errno::EBADF));
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
