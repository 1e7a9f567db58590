//! What a transport has to offer so that the suite can run over it.

use std::fmt;

use kdbus_core::abi::Errno;

/// Why a case could not be run: this world cannot express it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skip(pub String);

impl Skip {
    /// A reason, without a full stop: "needs a second user".
    #[must_use]
    pub fn because(reason: &str) -> Self {
        Self(reason.to_owned())
    }
}

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a user's process is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// User, real and effective.
    pub uid: u32,
    /// Group, real and effective.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Process.
    pub pid: u32,
    /// Security label, if it is known whether there is one and which.
    pub label: Option<String>,
    /// Whether it is in namespaces of its own, in which it is user 0 and process 1.
    pub apart: bool,
}

/// What `poll` reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Poll {
    /// `POLLIN`.
    pub readable: bool,
    /// `POLLOUT`.
    pub writable: bool,
    /// `POLLERR` and `POLLHUP`.
    pub hung_up: bool,
}

/// A file or directory of the bus' tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Memory that a `PAYLOAD_VEC` with a non-zero address names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Payload {
    /// These bytes.
    Bytes(Vec<u8>),
    /// An address where nothing is mapped.
    Unmapped,
    /// An address that belongs to the kernel.
    Kernel,
}

/// An argument's address that no command can be read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadAddress {
    /// Address 0.
    Null,
    /// Readable, but not a multiple of 8.
    Unaligned,
}

/// What a SEND points to.
#[derive(Debug)]
pub struct Body<'a> {
    /// Header and items. The world replaces the address of each `PAYLOAD_VEC` that is not zero by that of
    /// the next element of `payload`, as far as items can be told apart, and afterwards hands the message
    /// back with the addresses it had.
    pub message: &'a mut [u8],
    /// What those addresses name, in item order.
    pub payload: &'a [Payload],
}

/// A synchronous call that has ended.
#[derive(Debug)]
pub struct Ended {
    /// How.
    pub result: Result<(), Errno>,
    /// The command's argument, with what was written back.
    pub command: Vec<u8>,
}

/// One domain of buses, and processes of several users on it. A world is made for each case and dropped
/// after it.
///
/// Numbers of descriptors are those of the process of the user they are given with. A method that returns
/// [`Skip`] says that this world cannot express it; everything else has to work.
pub trait World {
    /// A process that opens handles.
    type User: Copy + fmt::Debug;
    /// An open control or endpoint file.
    type Handle;
    /// A SEND that may be waiting.
    type Call;

    /// The user who makes the bus of a case.
    fn owner(&mut self) -> Self::User;

    /// Unprivileged user `number`, with uid and gid of its own; the same one for the same number.
    ///
    /// # Errors
    ///
    /// [`Skip`] where all processes run as one user.
    fn user(&mut self, number: usize) -> Result<Self::User, Skip>;

    /// Another process with the ids of `of`.
    ///
    /// # Errors
    ///
    /// [`Skip`] where there is one process only.
    fn sibling(&mut self, of: Self::User) -> Result<Self::User, Skip>;

    /// Another process with the ids of `of`, in user and pid namespaces of its own. It is user 0, group 0 and
    /// process 1 there, and nobody else has a name.
    ///
    /// # Errors
    ///
    /// [`Skip`] where processes cannot be put there.
    fn apart(&mut self, of: Self::User) -> Result<Self::User, Skip> {
        let _ = of;
        Err(Skip::because("needs processes in namespaces of their own"))
    }

    /// Who a user is.
    fn who(&mut self, user: Self::User) -> Who;

    /// Gives up privileges and becomes user `number`, in the process of `user`; open handles stay open.
    ///
    /// # Errors
    ///
    /// [`Skip`] where a process cannot change its user.
    fn become_user(&mut self, user: Self::User, number: usize) -> Result<(), Skip>;

    /// Opens the control file.
    ///
    /// # Errors
    ///
    /// What `open` reports.
    fn open_control(&mut self, user: Self::User) -> Result<Self::Handle, Errno>;

    /// Opens an endpoint file.
    ///
    /// # Errors
    ///
    /// What `open` reports.
    fn open(&mut self, user: Self::User, bus: &str, endpoint: &str) -> Result<Self::Handle, Errno>;

    /// Closes a handle, its last descriptor.
    fn close(&mut self, handle: Self::Handle);

    /// An endpoint's node, or with `None` the bus' directory.
    fn node(&mut self, bus: &str, endpoint: Option<&str>) -> Option<Node>;

    /// Runs a command other than SEND; `arg` is 8-byte aligned for the bus.
    ///
    /// # Errors
    ///
    /// The bus' code.
    fn ioctl(&mut self, handle: &Self::Handle, request: u32, arg: &mut [u8]) -> Result<(), Errno>;

    /// Runs a command whose argument, `arg`, lies at a bad address.
    ///
    /// # Errors
    ///
    /// [`Skip`] where arguments have no addresses.
    fn ioctl_at(
        &mut self,
        handle: &Self::Handle,
        request: u32,
        arg: &[u8],
        at: BadAddress,
    ) -> Result<Result<(), Errno>, Skip>;

    /// Runs SEND. The world sets `msg_address` in the command; without a body it is 0.
    ///
    /// # Errors
    ///
    /// The bus' code.
    fn send(
        &mut self,
        handle: &Self::Handle,
        command: &mut [u8],
        body: Option<Body<'_>>,
    ) -> Result<(), Errno>;

    /// Starts a SEND that may wait. On return it waits or has ended.
    fn start(
        &mut self,
        handle: &Self::Handle,
        command: Vec<u8>,
        message: Vec<u8>,
        payload: Vec<Payload>,
    ) -> Self::Call;

    /// Waits until a SEND has ended, whatever it waits for.
    fn finish(&mut self, call: Self::Call) -> Ended;

    /// Whether a SEND still waits.
    fn is_waiting(&mut self, call: &Self::Call) -> bool;

    /// Lets a signal arrive at a waiting SEND, its handler with or without `SA_RESTART`.
    ///
    /// # Errors
    ///
    /// [`Skip`] where there are no signals.
    fn interrupt(&mut self, call: &mut Self::Call, restart: bool) -> Result<(), Skip>;

    /// What `poll` reports now.
    fn poll(&mut self, handle: &Self::Handle) -> Poll;

    /// Waits until a handle is readable or hung up, or until `until`.
    fn wait(&mut self, handle: &Self::Handle, until: u64) -> Poll;

    /// Bytes of the pool, as the receiver has it mapped; `None` if the range is not in it.
    fn pool(&mut self, handle: &Self::Handle, offset: u64, len: u64) -> Option<Vec<u8>>;

    /// Maps `len` bytes of the pool.
    ///
    /// # Errors
    ///
    /// [`Skip`] where there are no mappings, else what `mmap` reports.
    fn map(&mut self, handle: &Self::Handle, len: u64, writable: bool) -> Result<Result<(), Errno>, Skip>;

    /// Maps the pool readable and asks for that mapping to become writable.
    ///
    /// # Errors
    ///
    /// [`Skip`] where there are no mappings, else what `mprotect` reports.
    fn make_mapping_writable(&mut self, handle: &Self::Handle) -> Result<Result<(), Errno>, Skip>;

    /// Nanoseconds of the bus' monotonic clock.
    fn now(&mut self) -> u64;

    /// Waits until the clock is at least at `at`.
    fn sleep_until(&mut self, at: u64);

    /// A memfd with this content, and with all the seals the bus asks for or none.
    fn memfd(&mut self, user: Self::User, content: &[u8], sealed: bool) -> i32;

    /// A pipe: the end to read from and the end to write to.
    fn pipe(&mut self, user: Self::User) -> (i32, i32);

    /// An event counter at 0 that can be polled.
    fn event(&mut self, user: Self::User) -> i32;

    /// A file that cannot be polled.
    fn regular_file(&mut self, user: Self::User) -> i32;

    /// A Unix socket.
    fn unix_socket(&mut self, user: Self::User) -> i32;

    /// A descriptor opened for its path only.
    fn path_only(&mut self, user: Self::User) -> i32;

    /// The descriptor of a handle, still owned by it.
    fn handle_fd(&mut self, handle: &Self::Handle) -> i32;

    /// Reads from a descriptor, from the start where it has one, without waiting.
    ///
    /// # Errors
    ///
    /// What `read` reports.
    fn read_fd(&mut self, user: Self::User, fd: i32, len: usize) -> Result<Vec<u8>, Errno>;

    /// Writes to a descriptor.
    ///
    /// # Errors
    ///
    /// What `write` reports.
    fn write_fd(&mut self, user: Self::User, fd: i32, bytes: &[u8]) -> Result<(), Errno>;

    /// Closes a descriptor.
    ///
    /// # Errors
    ///
    /// What `close` reports.
    fn close_fd(&mut self, user: Self::User, fd: i32) -> Result<(), Errno>;

    /// Whether a descriptor has close-on-exec set.
    ///
    /// # Errors
    ///
    /// What `fcntl` reports.
    fn is_close_on_exec(&mut self, user: Self::User, fd: i32) -> Result<bool, Errno>;

    /// Lets a process open at most `spare` more descriptors.
    ///
    /// # Errors
    ///
    /// [`Skip`] where other cases share the process.
    fn leave_spare_fds(&mut self, user: Self::User, spare: usize) -> Result<(), Skip>;
}
