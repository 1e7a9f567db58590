//! Sockets that the daemon was started with: a service manager listens in its place until somebody connects.
//!
//! A manager (`LISTEN_FDS`, as systemd passes them) binds nodes of the tree itself. Whoever connects before the daemon
//! runs waits at such a socket, and is served when it does: nobody is lost, and nobody tries twice.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::io::{self, Errno};
use rustix::net::{SocketAddrUnix, SocketType, getsockname, sockopt};

use crate::process::{self, ProcessError};

/// The first descriptor that a manager passes.
const FIRST: i32 = 3;
/// More sockets than any tree is started with.
const MOST: i32 = 64;

/// A listening socket of a manager's, and where it is bound.
#[derive(Debug)]
pub struct Listener {
    pub(crate) socket: OwnedFd,
    pub(crate) path: PathBuf,
}

impl Listener {
    /// Takes a socket over.
    ///
    /// # Errors
    ///
    /// `EPROTOTYPE` for a socket of another type (`ListenSequentialPacket=` in a socket unit), `EINVAL` for one that does
    /// not listen at a path; else what the system said.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        if sockopt::socket_type(&socket)? != SocketType::SEQPACKET {
            return Err(Errno::PROTOTYPE);
        }
        if !sockopt::socket_acceptconn(&socket)? {
            return Err(Errno::INVAL);
        }
        let address = SocketAddrUnix::try_from(getsockname(&socket)?)?;
        let path = address.path_bytes().ok_or(Errno::INVAL)?;
        let path = Path::new(std::ffi::OsStr::from_bytes(path)).to_path_buf();
        io::fcntl_setfd(&socket, io::FdFlags::CLOEXEC)?;
        io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, path })
    }
}

/// The descriptors that a service manager passed to this process, if it did. To be called before anything else is opened.
///
/// # Errors
///
/// [`ProcessError::Inherited`] for one that is no socket of this kind.
pub fn listeners() -> Result<Vec<Listener>, ProcessError> {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<i32>().ok());
    // Both are for the process that the manager started, not for its children.
    if number("LISTEN_PID") != Some(std::process::id() as i32) {
        return Ok(Vec::new());
    }
    let count = number("LISTEN_FDS").unwrap_or(0).clamp(0, MOST);
    (FIRST..FIRST + count)
        .map(|fd| {
            let failed = |error| ProcessError::Inherited { fd, error };
            Listener::new(process::inherited(fd)?).map_err(failed)
        })
        .collect()
}
