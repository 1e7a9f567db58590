//! The tree of sockets that stands where the module had its file system.
//!
//! ```text
//! root/             0755  the daemon's
//!   .lock           0600  held while a daemon runs here
//!   control         0666
//!   1000-user/      0555, 0550 or 0500, as the bus is open to all, to a group or to its owner
//!     bus           0666, 0660 or 0600
//!     1000-private
//! ```
//!
//! A node is made under a temporary name and renamed when it is ready, so whoever sees it can use it.

use std::fmt;
use std::path::{Path, PathBuf};

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{self, AtFlags, FileType, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::{self, Errno};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Gid, Uid};

use crate::activation::Listener;

/// Connections that may wait to be accepted, per node.
const BACKLOG: i32 = 128;

const LOCK: &str = ".lock";
const CONTROL: &str = "control";
/// Nodes in the making start with this; no bus and no endpoint does.
const UNFINISHED: &str = ".new-";
/// Nodes that a service manager made, while they are on their way to their place.
const ADOPTED: &str = ".new-adopted-";

/// Who owns a node, and its permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Access {
    /// Owner.
    pub(crate) uid: u32,
    /// Group.
    pub(crate) gid: u32,
    /// Permission bits of the socket.
    pub(crate) mode: u32,
}

/// Why a tree cannot be set up.
#[derive(Debug)]
#[non_exhaustive]
pub enum TreeError {
    /// Another daemon serves this tree.
    Running {
        /// The tree.
        root: PathBuf,
        /// Its process, if it says so.
        pid: Option<u32>,
    },
    /// The root belongs to somebody else, or others can write there.
    Untrusted {
        /// The tree.
        root: PathBuf,
        /// Why not.
        why: &'static str,
    },
    /// Something stands in the root that no daemon made.
    Foreign {
        /// That thing.
        path: PathBuf,
    },
    /// A service manager passed a socket for a node that this daemon does not make.
    Unasked {
        /// That node.
        path: PathBuf,
    },
    /// A system call failed.
    Io {
        /// What was being done, to what.
        doing: String,
        /// The error.
        error: Errno,
    },
}

/// The tree of one daemon. Dropping it removes all nodes.
#[derive(Debug)]
pub(crate) struct Tree {
    path: PathBuf,
    root: OwnedFd,
    /// Keeps other daemons out until it is closed.
    #[allow(dead_code, reason = "held, never read")]
    lock: OwnedFd,
    made_root: bool,
    uid: u32,
    privileged: bool,
    counter: u64,
    /// Sockets of a service manager's, by the node they are to be, under the temporary names they have meanwhile.
    adopted: Vec<(PathBuf, OwnedFd, String)>,
    /// Nodes of such sockets, which stay when the daemon ends: clients go on waiting there for the next one.
    lasting: Vec<PathBuf>,
}

impl Tree {
    /// Locks the tree at `path`, making the last directory of it if need be, and clears away what a dead
    /// daemon left there.
    ///
    /// Nodes that `listeners` are bound to stay where clients wait at them, and become this daemon's.
    ///
    /// # Errors
    ///
    /// [`TreeError`]; a running daemon's tree stays as it is.
    pub(crate) fn open(path: &Path, listeners: Vec<Listener>) -> Result<Self, TreeError> {
        let failed = |doing: &str| {
            let doing = format!("{doing} {}", path.display());
            move |error| TreeError::Io { doing, error }
        };
        let made_root = match fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(failed("making")(error)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = fs::open(path, flags, Mode::empty()).map_err(failed("opening"))?;
        let uid = rustix::process::geteuid();
        let stat = fs::fstat(&root).map_err(failed("looking at"))?;
        let untrusted = |why| Err(TreeError::Untrusted { root: path.into(), why });
        if stat.st_uid != uid.as_raw() {
            return untrusted("it belongs to another user");
        }
        if made_root {
            // Whatever the umask left of it.
            fs::fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed("setting the mode of"))?;
        } else if stat.st_mode & 0o022 != 0 {
            return untrusted("others can write there");
        }
        let lock = lock(&root, path)?;
        let mut tree = Self {
            path: path.into(),
            root,
            lock,
            made_root,
            uid: uid.as_raw(),
            privileged: uid.is_root(),
            counter: 0,
            adopted: Vec::new(),
            lasting: Vec::new(),
        };
        tree.adopt(listeners)?;
        tree.clear()?;
        Ok(tree)
    }

    /// Where the tree stands.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the control node and returns its socket, which already listens.
    ///
    /// # Errors
    ///
    /// [`TreeError::Io`].
    pub(crate) fn make_control(&mut self) -> Result<OwnedFd, TreeError> {
        let access = Access { uid: self.uid, gid: rustix::process::getegid().as_raw(), mode: 0o666 };
        self.node(Path::new(CONTROL), &access)
            .and_then(|(socket, temporary)| {
                self.publish(&temporary, &self.root, CONTROL)?;
                Ok(socket)
            })
            .map_err(|error| TreeError::Io {
                doing: format!("making {CONTROL} in {}", self.path.display()),
                error,
            })
    }

    /// Fails if a service manager's socket became no node.
    ///
    /// # Errors
    ///
    /// [`TreeError::Unasked`].
    pub(crate) fn check_adopted(&self) -> Result<(), TreeError> {
        match self.adopted.first() {
            Some((node, ..)) => Err(TreeError::Unasked { path: self.path.join(node) }),
            None => Ok(()),
        }
    }

    /// Makes the directory of a bus with its default endpoint, whose listening socket it returns.
    ///
    /// # Errors
    ///
    /// `EEXIST` if there is such a bus; `EPERM` if the node would belong to another user and the daemon may
    /// not give it away; else what the system said.
    pub(crate) fn make_bus(&mut self, bus: &str, endpoint: &str, access: &Access) -> io::Result<OwnedFd> {
        let (socket, node) = self.node(&Path::new(bus).join(endpoint), access)?;
        let made = self.make_directory(bus, endpoint, access, &node);
        if made.is_err() {
            let _ = fs::unlinkat(&self.root, &node, AtFlags::empty());
        }
        made.map(|()| socket)
    }

    /// Makes a custom endpoint of a bus and returns its listening socket.
    ///
    /// # Errors
    ///
    /// As [`make_bus`](Self::make_bus).
    pub(crate) fn make_endpoint(
        &mut self,
        bus: &str,
        endpoint: &str,
        access: &Access,
    ) -> io::Result<OwnedFd> {
        let directory = self.directory(bus)?;
        let (socket, node) = self.node(&Path::new(bus).join(endpoint), access)?;
        let made = self.in_writable(&directory, || self.publish(&node, &directory, endpoint));
        if made.is_err() {
            let _ = fs::unlinkat(&self.root, &node, AtFlags::empty());
        }
        made.map(|()| socket)
    }

    /// Removes a custom endpoint.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn remove_endpoint(&self, bus: &str, endpoint: &str) -> io::Result<()> {
        let directory = self.directory(bus)?;
        self.in_writable(&directory, || fs::unlinkat(&directory, endpoint, AtFlags::empty()))
    }

    /// Removes a bus with all its endpoints; a service manager's node stays, with the directory.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub(crate) fn remove_bus(&self, bus: &str) -> io::Result<()> {
        let directory = self.directory(bus)?;
        let lasts = |name: &str| self.lasting.iter().any(|node| *node == Path::new(bus).join(name));
        let left = self.in_writable(&directory, || {
            let nodes = names(&directory)?;
            for name in nodes.iter().filter(|name| !lasts(name)) {
                fs::unlinkat(&directory, name.as_str(), AtFlags::empty())?;
            }
            Ok(nodes.iter().any(|name| lasts(name)))
        })?;
        if left { Ok(()) } else { fs::unlinkat(&self.root, bus, AtFlags::REMOVEDIR) }
    }

    /// Moves the nodes of sockets that are bound already to temporary names: a socket goes with its node, so whoever
    /// has connected waits at it all the same.
    fn adopt(&mut self, listeners: Vec<Listener>) -> Result<(), TreeError> {
        for Listener { socket, path } in listeners {
            let failed = |error| TreeError::Io { doing: format!("taking over {}", path.display()), error };
            let node =
                path.strip_prefix(&self.path).map_err(|_| TreeError::Unasked { path: path.clone() })?;
            self.counter += 1;
            // Only sockets ever have such a name, so one that a dead daemon left is replaced.
            let name = format!("{ADOPTED}{}", self.counter);
            let rename = || fs::renameat(&self.root, node, &self.root, &name);
            let directory = node.parent().and_then(Path::to_str).filter(|parent| !parent.is_empty());
            let moved = match directory.map(|parent| self.directory(parent)) {
                None => rename(),
                Some(directory) => directory.and_then(|directory| self.in_writable(&directory, rename)),
            };
            match moved {
                Ok(()) => {}
                // Somebody removed the node, so nobody can come this way: a new one takes its place.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(failed(error)),
            }
            self.adopted.push((node.to_path_buf(), socket, name));
        }
        Ok(())
    }

    /// The socket that is to be `target`, bound to a temporary name in the root, with its owner and mode, listening:
    /// one that was adopted for it, or a new one.
    fn node(&mut self, target: &Path, access: &Access) -> io::Result<(OwnedFd, String)> {
        let adopted = self.adopted.iter().position(|(node, ..)| node == target);
        let (socket, name) = match adopted.map(|at| self.adopted.swap_remove(at)) {
            Some((_, socket, name)) => {
                self.lasting.push(target.to_path_buf());
                (socket, name)
            }
            None => {
                let name = self.temporary();
                let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
                let socket = net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
                self.bind(&socket, &name)?;
                (socket, name)
            }
        };
        // Nobody can connect before listen(), so the mode that bind() gave it harms nobody.
        let ready = self.give(&self.root, &name, access).and_then(|()| {
            fs::chmodat(&self.root, &name, Mode::from_raw_mode(access.mode & 0o777), AtFlags::empty())?;
            net::listen(&socket, BACKLOG)
        });
        if let Err(error) = ready {
            let _ = fs::unlinkat(&self.root, &name, AtFlags::empty());
            return Err(error);
        }
        Ok((socket, name))
    }

    fn bind(&self, socket: &OwnedFd, name: &str) -> io::Result<()> {
        let address = SocketAddrUnix::new(self.path.join(name)).or_else(|_| {
            // A socket's address holds 107 bytes; a long root is reached through its descriptor.
            let root = rustix::fd::AsRawFd::as_raw_fd(&self.root);
            SocketAddrUnix::new(format!("/proc/self/fd/{root}/{name}"))
        })?;
        net::bind(socket, &address)
    }

    /// Hands a node to its owner. A daemon without privilege can make nodes for its own user only.
    fn give(&self, directory: impl AsFd, name: &str, access: &Access) -> io::Result<()> {
        let owner = (Uid::from_raw(access.uid), Gid::from_raw(access.gid));
        match fs::chownat(directory, name, Some(owner.0), Some(owner.1), AtFlags::SYMLINK_NOFOLLOW) {
            // The group matters only where it may do more than everybody.
            Err(Errno::PERM) if access.uid == self.uid && access.mode >> 3 & 7 == access.mode & 7 => Ok(()),
            result => result,
        }
    }

    fn make_directory(&mut self, bus: &str, endpoint: &str, access: &Access, node: &str) -> io::Result<()> {
        let name = self.temporary();
        fs::mkdirat(&self.root, &name, Mode::from_raw_mode(0o700))?;
        let directory = self.directory(&name)?;
        // Search bits follow the endpoint's read bits: kdbusfs has 0555 beside 0666.
        let read = access.mode & 0o444;
        let mode = Mode::from_raw_mode(0o500 | read | read >> 2);
        let made = self
            .publish(node, &directory, endpoint)
            .and_then(|()| self.give(&self.root, &name, access))
            .and_then(|()| fs::fchmod(&directory, mode))
            .and_then(|()| self.publish(&name, &self.root, bus));
        if made.is_err() {
            let _ = fs::fchmod(&directory, Mode::from_raw_mode(0o700));
            let _ = fs::unlinkat(&directory, endpoint, AtFlags::empty());
            let _ = fs::unlinkat(&self.root, &name, AtFlags::REMOVEDIR);
        }
        made
    }

    /// Moves a finished node from the root to where others look for it.
    fn publish(&self, from: &str, directory: &OwnedFd, to: &str) -> io::Result<()> {
        match fs::renameat_with(&self.root, from, directory, to, RenameFlags::NOREPLACE) {
            // File systems without that flag: nobody else makes nodes here, so looking first is enough.
            Err(Errno::INVAL | Errno::NOSYS) => match fs::statat(directory, to, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(_) => Err(Errno::EXIST),
                Err(_) => fs::renameat(&self.root, from, directory, to),
            },
            result => result,
        }
    }

    fn directory(&self, name: &str) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        fs::openat(&self.root, name, flags, Mode::empty())
    }

    /// Runs `change` on a bus directory, whose mode keeps everybody but root from writing there.
    fn in_writable<T>(&self, directory: &OwnedFd, change: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.privileged {
            return change();
        }
        let mode = Mode::from_raw_mode(fs::fstat(directory)?.st_mode & 0o777);
        fs::fchmod(directory, mode | Mode::WUSR)?;
        let result = change();
        fs::fchmod(directory, mode)?;
        result
    }

    fn temporary(&mut self) -> String {
        self.counter += 1;
        format!("{UNFINISHED}{}", self.counter)
    }

    /// Removes every node. Nothing is touched if something foreign stands among them.
    fn clear(&mut self) -> Result<(), TreeError> {
        let io = |error| TreeError::Io { doing: format!("clearing {}", self.path.display()), error };
        let entries = names(&self.root).map_err(io)?;
        let kept = |name: &str| {
            name == LOCK
                || self.adopted.iter().any(|(_, _, adopted)| adopted == name)
                || self.lasting.iter().any(|node| node == Path::new(name))
        };
        let entries: Vec<_> = entries.into_iter().filter(|name| !kept(name)).collect();
        for name in &entries {
            let foreign = || TreeError::Foreign { path: self.path.join(name) };
            let stat = fs::statat(&self.root, name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Socket => {}
                FileType::Directory if is_bus(name) || name.starts_with(UNFINISHED) => {
                    let directory = self.directory(name).map_err(io)?;
                    for node in names(&directory).map_err(io)? {
                        let stat =
                            fs::statat(&directory, node.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(io)?;
                        if FileType::from_raw_mode(stat.st_mode) != FileType::Socket {
                            return Err(TreeError::Foreign { path: self.path.join(name).join(node) });
                        }
                    }
                }
                _ => return Err(foreign()),
            }
        }
        for name in &entries {
            let removed = match fs::unlinkat(&self.root, name.as_str(), AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => self.remove_bus(name),
                result => result,
            };
            removed.map_err(io)?;
        }
        Ok(())
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Nobody is left to tell: what cannot be removed now is taken over by the next daemon.
        let _ = self.clear();
        let _ = fs::unlinkat(&self.root, LOCK, AtFlags::empty());
        if self.made_root {
            let _ = fs::rmdir(&self.path);
        }
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Running { root, pid } => {
                write!(f, "kdbusd is already running on {}", root.display())?;
                pid.map_or(Ok(()), |pid| write!(f, " (process {pid})"))
            }
            Self::Untrusted { root, why } => {
                write!(f, "{} cannot hold a bus tree: {why}; ", root.display())?;
                f.write_str("choose a directory that only the daemon's user can write")
            }
            Self::Foreign { path } => {
                write!(f, "{} is in the way and was made by no kdbusd; remove it", path.display())
            }
            Self::Unasked { path } => write!(
                f,
                "the service manager passed a socket at {}, where this daemon has no node; name its bus in the \
                 configuration or take the socket out of the unit",
                path.display()
            ),
            Self::Io { doing, error } => write!(f, "{doing}: {error}"),
        }
    }
}

impl std::error::Error for TreeError {}

/// Takes the lock of the tree; it is held until the descriptor is closed.
fn lock(root: &OwnedFd, path: &Path) -> Result<OwnedFd, TreeError> {
    let failed = |error| TreeError::Io { doing: format!("locking {}", path.join(LOCK).display()), error };
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    loop {
        // Only the daemon's user can open it, so nobody else can hold the lock against it.
        let file = fs::openat(root, LOCK, flags, Mode::from_raw_mode(0o600)).map_err(failed)?;
        match fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = [0; 16];
                let n = io::pread(&file, &mut text, 0).unwrap_or(0);
                let pid = std::str::from_utf8(&text[..n]).ok().and_then(|text| text.trim().parse().ok());
                return Err(TreeError::Running { root: path.into(), pid });
            }
            Err(error) => return Err(failed(error)),
        }
        // An ending daemon removes the file while it holds the lock: only the one that is still there counts.
        let held = fs::fstat(&file).map_err(failed)?;
        match fs::statat(root, LOCK, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(there) if (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino) => {
                fs::ftruncate(&file, 0).map_err(failed)?;
                io::pwrite(&file, format!("{}\n", std::process::id()).as_bytes(), 0).map_err(failed)?;
                return Ok(file);
            }
            _ => {}
        }
    }
}

/// Names in a directory, `.` and `..` aside.
fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name != "." && name != ".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Whether a name is one that a bus can have: `<uid>-<something>`.
fn is_bus(name: &str) -> bool {
    name.split_once('-').is_some_and(|(uid, rest)| uid.parse::<u32>().is_ok() && !rest.is_empty())
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
