//! The transport over the module.

use core::cell::{Cell, OnceCell};

use kdbus_core::Instant;
use kdbus_core::abi::{
    CmdFree, CmdHello, CmdRecv, Command, Errno, FLAG_NEGOTIATE, MsgInfo, RecvFlags, SendFlags,
};
use kdbus_core::client::{Failure, Found, Incoming, Outgoing, Transport};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use zerocopy::{FromBytes, IntoBytes};

use super::ioctl;
use super::map::{self, Pool};
use super::seam::{self, Module, Seam};

/// A node, closed through its seam.
#[derive(Debug)]
pub(super) struct Node<S: Seam> {
    pub(super) seam: S,
    fd: Option<OwnedFd>,
}

impl<S: Seam> Node<S> {
    /// Opens a node by its path.
    pub(super) fn open(seam: S, path: &str) -> Result<Self, Errno> {
        let fd = Some(seam.open(path)?);
        Ok(Self { seam, fd })
    }

    /// The node's descriptor. There is one until the drop.
    pub(super) fn fd(&self) -> Result<BorrowedFd<'_>, Errno> {
        self.fd.as_ref().map(AsFd::as_fd).ok_or(Errno::EBADF)
    }
}

impl<S: Seam> Drop for Node<S> {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.take() {
            self.seam.close(fd);
        }
    }
}

/// A client's way to a bus of the module.
///
/// ```no_run
/// use kdbus_linux::kernel::KernelTransport;
/// let transport = KernelTransport::connect("/sys/fs/kdbus/0-system/bus")?;
/// # Ok::<(), kdbus_core::abi::Errno>(())
/// ```
#[derive(Debug)]
pub struct KernelTransport<S: Seam = Module> {
    // Unmapped before the node is closed.
    pool: OnceCell<Pool>,
    node: Node<S>,
    broken: Cell<Option<Errno>>,
}

impl KernelTransport {
    /// Opens an endpoint of the module by its path.
    ///
    /// # Errors
    ///
    /// What `open` reports: `ENOENT` without such a node, `EACCES` if it is not for this user, `ESHUTDOWN` if
    /// it is going.
    pub fn connect(path: &str) -> Result<Self, Errno> {
        Self::over(Module, path)
    }
}

impl<S: Seam> KernelTransport<S> {
    /// Opens an endpoint behind `seam` by its path.
    ///
    /// # Errors
    ///
    /// As [`connect`](KernelTransport::connect).
    pub fn over(seam: S, path: &str) -> Result<Self, Errno> {
        Ok(Self { pool: OnceCell::new(), node: Node::open(seam, path)?, broken: Cell::new(None) })
    }

    fn check(&self) -> Result<BorrowedFd<'_>, Failure> {
        match self.broken.get() {
            Some(errno) => Err(Failure::Broken(errno)),
            None => self.node.fd().map_err(Failure::Broken),
        }
    }

    fn fail(&self, errno: Errno) -> Failure {
        if self.broken.replace(Some(errno)).is_none() {
            kdbus_core::event!(error, "the connection to the module is gone: {:?}", errno);
        }
        Failure::Broken(errno)
    }

    /// What a refusal means: `ECONNRESET` is the end of this connection, or of the peer's wait.
    fn refused(&self, errno: Errno) -> Failure {
        if errno == Errno::ECONNRESET && self.is_hung_up() {
            self.fail(errno)
        } else {
            Failure::Refused(errno)
        }
    }

    fn is_hung_up(&self) -> bool {
        let now = Some(Instant::from_nanos(0));
        let ready = self.node.fd().and_then(|node| self.node.seam.poll(node, now));
        ready.is_ok_and(|ready| ready.hung_up)
    }

    /// Maps the pool that a successful HELLO has left. A connection without is of no use to anybody.
    fn attach(&self, arg: &[u8]) -> Result<(), Failure> {
        let hello = CmdHello::read_from_prefix(arg).map_err(|_| self.fail(Errno::EINVAL))?.0;
        if hello.id == 0 {
            return Ok(());
        }
        let pool = self.node.fd().and_then(|node| Pool::new(&self.node.seam, node, hello.pool_size));
        let pool = pool.map_err(|errno| self.fail(errno))?;
        // The module refuses a second HELLO.
        self.pool.set(pool).map_err(|_| self.fail(Errno::EBADFD))
    }

    /// Puts the message at `info`, with its descriptors, into `place`; false if there is none.
    fn received(&self, info: MsgInfo, place: &mut Incoming<OwnedFd>) -> bool {
        let slice = self.slice(info.offset, info.msg_size).filter(|slice| !slice.is_empty());
        let Some(slice) = slice else { return false };
        *place = Incoming { info, fds: map::take_fds(slice, &info) };
        true
    }
}

impl<S: Seam> Transport for KernelTransport<S> {
    type Fd = OwnedFd;
    type BorrowedFd<'a>
        = BorrowedFd<'a>
    where
        S: 'a;
    type Slice<'a>
        = &'a [u8]
    where
        S: 'a;

    fn command(&self, command: Command, arg: &mut [u8]) -> Result<(), Failure> {
        let node = self.check()?;
        let asks = CmdHello::read_from_prefix(arg).is_ok_and(|(hello, _)| hello.flags & FLAG_NEGOTIATE != 0);
        ioctl::run(&self.node.seam, node, command, arg).map_err(|errno| self.refused(errno))?;
        if command == Command::Hello && !asks { self.attach(arg) } else { Ok(()) }
    }

    fn send(&self, message: &mut Outgoing<'_, BorrowedFd<'_>>) -> Result<(), Failure> {
        let node = self.check()?;
        let sent = ioctl::send(&self.node.seam, node, SendFlags::empty(), message, None);
        sent.map(|_| ()).map_err(|errno| self.refused(errno))
    }

    /// Ends with `EINTR` after a signal whose handler lacks `SA_RESTART`. The call is then still open: sending
    /// it again with the same cookie waits for the same reply, and the module may lose one that comes between.
    fn call_into(
        &self,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        cancel: Option<BorrowedFd<'_>>,
        reply: &mut Incoming<OwnedFd>,
    ) -> Result<(), Failure> {
        let node = self.check()?;
        let sent = ioctl::send(&self.node.seam, node, SendFlags::SYNC_REPLY, message, cancel);
        let command = sent.map_err(|errno| self.refused(errno))?;
        if self.received(command.reply, reply) { Ok(()) } else { Err(self.fail(Errno::EIO)) }
    }

    fn recv_into(
        &self,
        flags: RecvFlags,
        priority: i64,
        message: &mut Incoming<OwnedFd>,
    ) -> Result<Found, Failure> {
        let node = self.check()?;
        let mut command = CmdRecv {
            size: size_of::<CmdRecv>() as u64,
            flags: flags.bits(),
            priority,
            ..CmdRecv::default()
        };
        let result = ioctl::run_any(&self.node.seam, node, Command::Recv, command.as_mut_bytes());
        let dropped = command.dropped_msgs;
        match result {
            Ok(()) => {}
            Err(Errno::EAGAIN) => return Ok(Found { message: false, dropped }),
            Err(errno) => return Err(self.refused(errno)),
        }
        // kdbus: dropping wins over peeking, and reports no slice.
        let received = !flags.contains(RecvFlags::DROP) && self.received(command.msg, message);
        if flags.contains(RecvFlags::PEEK) {
            // The module installs descriptors for who only looks, too, and will install them again.
            message.fds.clear();
        }
        Ok(Found { message: received, dropped })
    }

    fn slice(&self, offset: u64, size: u64) -> Option<&[u8]> {
        self.pool.get()?.bytes(offset, size)
    }

    fn free(&self, offset: u64) {
        let Ok(node) = self.check() else { return };
        if self.pool.get().is_none_or(|pool| offset >= pool.len()) {
            return;
        }
        let mut command = CmdFree { size: size_of::<CmdFree>() as u64, offset, ..CmdFree::default() };
        // What the module refuses here is no slice; a connection that is gone shows with the next command.
        let _ = ioctl::run(&self.node.seam, node, Command::Free, command.as_mut_bytes());
    }

    fn now(&self) -> Instant {
        seam::now()
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<(), Failure> {
        let node = self.check()?;
        let ready = self.node.seam.poll(node, deadline).map_err(Failure::Refused)?;
        if ready.hung_up { Err(self.fail(Errno::ECONNRESET)) } else { Ok(()) }
    }

    fn sleep(&self, until: Instant) -> Result<(), Failure> {
        crate::clock::sleep(until)
    }

    fn fd(&self) -> Option<i32> {
        self.node.fd().ok().map(|fd| fd.as_raw_fd())
    }

    fn watch_room(&self, _: u64) -> Result<bool, Failure> {
        self.check().map(|_| false)
    }
}
