//! Why a client is not connected.

use core::fmt;

use kdbus_core::abi::Errno;
use kdbus_core::client::Failure;

use super::place::{NodePath, PlaceError};

/// Why a node could not be opened, which one, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum ConnectError {
    /// There is no path to try.
    Place(PlaceError),
    /// There is no such node.
    Missing(NodePath),
    /// The node is there, but whoever served it is gone.
    Dead(NodePath),
    /// The node or its directory is not for this user.
    Denied(NodePath),
    /// The path leads to something else than a node.
    NoNode(NodePath),
    /// A system call failed with this error.
    System(NodePath, Errno),
}

impl ConnectError {
    pub(super) fn new(path: NodePath, error: rustix::io::Errno) -> Self {
        use rustix::io::Errno as E;
        match error {
            E::NOENT | E::NOTDIR => Self::Missing(path),
            E::CONNREFUSED => Self::Dead(path),
            E::ACCESS | E::PERM => Self::Denied(path),
            E::PROTOTYPE | E::NOTSOCK => Self::NoNode(path),
            other => Self::System(path, errno(other)),
        }
    }

    /// The error number that `open` on the node would have reported.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Place(PlaceError::TooLong) => Errno::ENAMETOOLONG,
            Self::Place(PlaceError::Name) => Errno::EINVAL,
            Self::Place(PlaceError::NoRoot) | Self::Missing(_) => ENOENT,
            Self::Dead(_) => Errno::ESHUTDOWN,
            Self::Denied(_) => Errno::EACCES,
            Self::NoNode(_) => ENXIO,
            Self::System(_, errno) => errno,
        }
    }

    /// Whether another bus may be there where this one is not.
    pub(super) const fn is_absence(&self) -> bool {
        matches!(self, Self::Missing(_) | Self::Dead(_) | Self::Place(PlaceError::NoRoot))
    }
}

impl fmt::Display for ConnectError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(error) => error.fmt(f),
            Self::Missing(path) => {
                write!(f, "no bus at {path}: is kdbusd running? start it with `kdbusd`")
            }
            Self::Dead(path) => {
                write!(f, "nobody serves {path} any more: start kdbusd again with `kdbusd`")
            }
            Self::Denied(path) => write!(
                f,
                "{path} is not for this user: connect as its owner, or have the bus made with access for others"
            ),
            Self::NoNode(path) => write!(f, "{path} is no bus: give the path of an endpoint"),
            Self::System(path, errno) => write!(f, "cannot connect to {path}: {errno}"),
        }
    }
}

impl core::error::Error for ConnectError {}

impl From<PlaceError> for ConnectError {
    fn from(error: PlaceError) -> Self {
        Self::Place(error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Broken(error.errno())
    }
}

#[cfg(feature = "std")]
impl From<ConnectError> for std::io::Error {
    fn from(error: ConnectError) -> Self {
        let kind = Self::from_raw_os_error(error.errno().raw()).kind();
        Self::new(kind, error)
    }
}

/// A failure of the bus as an error of `std::io`, with its error number.
#[cfg(feature = "std")]
#[must_use]
pub fn io_error(failure: Failure) -> std::io::Error {
    std::io::Error::from_raw_os_error(failure.errno().raw())
}

const ENOENT: Errno = linux(2);
const ENXIO: Errno = Errno::ENXIO;
/// The other end speaks another protocol, or another version of it.
pub(super) const EPROTO: Errno = linux(71);

const fn linux(raw: u32) -> Errno {
    match Errno::from_raw(raw) {
        Some(errno) => errno,
        None => Errno::EIO,
    }
}

/// The bus' number for an error of a system call.
pub(super) fn errno(error: rustix::io::Errno) -> Errno {
    u32::try_from(error.raw_os_error()).ok().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn errors_say_what_where_and_what_to_do() {
        let path = NodePath::new(b"/run/kdbus/0-system/bus").unwrap();
        let error = ConnectError::new(path, rustix::io::Errno::NOENT);
        assert_eq!(
            error.to_string(),
            "no bus at /run/kdbus/0-system/bus: is kdbusd running? start it with `kdbusd`"
        );
        assert_eq!((error.errno().raw(), error.is_absence()), (2, true));
        let error = ConnectError::new(path, rustix::io::Errno::ACCESS);
        assert_eq!((error.errno(), error.is_absence()), (Errno::EACCES, false));
    }

    #[cfg(feature = "std")]
    #[test]
    fn io_errors_keep_kind_and_number() {
        let path = NodePath::new(b"/x").unwrap();
        let error = std::io::Error::from(ConnectError::Denied(path));
        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        assert_eq!(io_error(Failure::Refused(Errno::EXFULL)).raw_os_error(), Some(54));
    }
}
