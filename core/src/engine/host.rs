//! What drives an engine, and what it exchanges with it.

use crate::Instant;
use crate::abi::{AttachFlags, Errno, MsgInfo};
use crate::channel::terms::Terms;
use crate::channel::{Entry, Return};

use super::lanes::{LaneGrant, Lanes, NoLane};

/// A number that names one open handle of a domain: a control file, an endpoint file or a connection.
///
/// Numbers are reused with another generation, so that a stale one is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct HandleId {
    /// Place in the handle table.
    pub index: u32,
    /// How often that place was used before.
    pub generation: u32,
}

/// A number that names one endpoint node of a domain, from its creation to its death.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct EndpointId {
    /// Place in the endpoint table.
    pub index: u32,
    /// How often that place was used before.
    pub generation: u32,
}

/// The host's number for a file that a message carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct FileId(pub u32);

/// What time it is, on both clocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Clock {
    /// `CLOCK_MONOTONIC`: deadlines, order.
    pub monotonic: Instant,
    /// Nanoseconds of `CLOCK_REALTIME`; only reported, by way of [`Host::realtime`].
    pub realtime_ns: u64,
}

/// Supplementary groups that are kept of a peer.
pub const GROUPS_MAX: usize = 64;

/// Bytes that are kept of a security label.
pub const LABEL_MAX: usize = 128;

/// The namespaces that a process lives in, by numbers of the host's own; 0 is the one that the host lives in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spaces {
    /// Where its users and groups have their numbers.
    pub users: u64,
    /// Where processes have their numbers.
    pub pids: u64,
    /// Its own number there; of no meaning where `pids` is 0.
    pub pid: u32,
    /// Its root directory.
    pub root: u64,
    /// Where its clock counts from. Only lanes ask for it: through the bus, time is the bus'.
    pub times: u64,
}

impl Spaces {
    /// Those of the host.
    pub const HOST: Self = Self { users: 0, pids: 0, pid: 0, root: 0, times: 0 };

    /// Whether anything that metadata tells has another meaning there than for the host.
    pub(super) const fn is_apart(&self) -> bool {
        self.users != 0 || self.pids != 0 || self.root != 0
    }
}

/// A user or a group, by the host's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Id {
    /// A user.
    User(u32),
    /// A group.
    Group(u32),
}

/// Who opened a handle, by the host's own word and pinned at that moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Credentials {
    /// Real user.
    pub uid: u32,
    /// Effective user; decides access.
    pub euid: u32,
    /// Saved user.
    pub suid: u32,
    /// File system user.
    pub fsuid: u32,
    /// Real group.
    pub gid: u32,
    /// Effective group.
    pub egid: u32,
    /// Saved group.
    pub sgid: u32,
    /// File system group.
    pub fsgid: u32,
    /// Supplementary groups. A peer with more than [`GROUPS_MAX`] is known by the first ones only.
    pub groups: heapless::Vec<u32, GROUPS_MAX>,
    /// Process.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Parent process, 0 if unknown.
    pub ppid: u32,
    /// Security label, empty without a security module.
    pub label: heapless::Vec<u8, LABEL_MAX>,
    /// Holds `CAP_IPC_OWNER`, or what the host takes in its place.
    pub privileged: bool,
    /// Where it lives. All other numbers here are the host's.
    pub spaces: Spaces,
}

impl Credentials {
    /// Those of user 0 without groups, process and label, and without privilege.
    pub const BLANK: Self = Self {
        uid: 0,
        euid: 0,
        suid: 0,
        fsuid: 0,
        gid: 0,
        egid: 0,
        sgid: 0,
        fsgid: 0,
        groups: heapless::Vec::new(),
        pid: 0,
        tid: 0,
        ppid: 0,
        label: heapless::Vec::new(),
        privileged: false,
        spaces: Spaces::HOST,
    };
}

/// One command of a client.
#[derive(Debug)]
pub struct Request<'a> {
    /// The request number, all 32 bits.
    pub number: u32,
    /// The argument: everything the caller made readable. Written back in place.
    pub arg: &'a mut [u8],
    /// For SEND: the message that `msg_address` points to, or `None` if that address is 0 or unreadable.
    ///
    /// A `PAYLOAD_VEC` with a non-zero address stands for bytes that [`Host::payload`] supplies, and each
    /// descriptor number is one that [`Host::import`] understands.
    pub message: Option<&'a mut [u8]>,
    /// The host's own number of this command; comes back in [`Effect::Answer`] if it has to wait.
    pub token: u64,
}

/// A command of a client, and when and where it came in.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// When.
    pub at: Clock,
    /// On which handle.
    pub from: HandleId,
    /// Who the caller is now, if that differs from who opened the handle.
    pub caller: Option<&'a Credentials>,
    /// What.
    pub request: Request<'a>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[must_use = "the caller waits for its answer"]
pub enum Outcome {
    /// At once; outputs stand in the argument.
    Done(Result<(), Errno>),
    /// Not yet: a synchronous call waits. An [`Effect::Answer`] with the request's token follows.
    Pending,
}

/// What a host has to do after it called the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Effect {
    /// Something waits at this connection, or it was disconnected: make its descriptor readable.
    Wake(HandleId),
    /// Room has come back at a receiver that this connection watches: make its descriptor readable.
    Room(HandleId),
    /// A synchronous call that was answered [`Outcome::Pending`] has ended.
    ///
    /// It comes once for each such call, also for a handle that was closed meanwhile. Descriptors of the
    /// reply were [installed](Host::install) before.
    Answer {
        /// The caller.
        to: HandleId,
        /// Token of the request.
        token: u64,
        /// Where the reply lies, or why there is none.
        result: Result<MsgInfo, Errno>,
    },
}

/// What `poll` reports for a handle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Readiness {
    /// Messages wait, or broadcasts were lost.
    pub readable: bool,
    /// The handle is an active connection.
    pub writable: bool,
    /// The handle is no connection, or one that is gone.
    pub hung_up: bool,
}

/// What kind of file a descriptor is, as far as the bus has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum FileKind {
    /// A memfd.
    Memfd {
        /// Whether all of `SHRINK`, `GROW`, `WRITE` and `SEAL` are set.
        sealed: bool,
        /// Bytes.
        size: u64,
    },
    /// A handle of a bus, or a Unix socket: never passed on, lest they keep themselves alive.
    Unpassable,
    /// Any other file.
    Other,
}

/// A node of the bus' tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Name of the bus, which is its directory.
    pub bus: &'a str,
    /// Name of the endpoint in it: `bus` for the default one, which comes and goes with the directory.
    pub endpoint: &'a str,
    /// Number of the endpoint.
    pub id: EndpointId,
    /// Owner of the node.
    pub uid: u32,
    /// Group of the node.
    pub gid: u32,
    /// Permission bits of the endpoint file; a bus directory has their read bits, as search bits too.
    pub mode: u32,
}

/// What drives an engine: it brings the commands and carries out what follows.
///
/// The engine calls these from within the domain's methods and never waits in them. Pools are named by the handle of their connection. Offsets and lengths always lie
/// within the size the pool was made with. An implementation upholds what each method says; nothing it
/// returns can make the engine panic.
pub trait Host {
    /// Makes the pool of a connection, `size` bytes, all zero.
    ///
    /// # Errors
    ///
    /// The code that HELLO then reports, usually `ENOMEM`.
    fn pool_create(&mut self, owner: HandleId, size: u64) -> Result<(), Errno>;

    /// The connection is gone; its pool is not written again. Mappings of its client stay valid.
    fn pool_destroy(&mut self, owner: HandleId);

    /// Writes `bytes` at `offset`.
    fn pool_write(&mut self, owner: HandleId, offset: u64, bytes: &[u8]);

    /// Writes `len` zero bytes at `offset`.
    fn pool_zero(&mut self, owner: HandleId, offset: u64, len: u64);

    /// Copies `len` bytes from one pool to another.
    fn pool_copy(&mut self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, len: u64);

    /// Copies payload of the SEND being handled into a pool: `len` bytes that start `skip` bytes into all
    /// bytes that its non-zero `PAYLOAD_VEC` items name, in item order. `address` is the one in the item.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the sender's memory cannot be read; what was written before stays.
    fn payload(&mut self, to: HandleId, offset: u64, address: u64, skip: u64, len: u64) -> Result<(), Errno>;

    /// Pins the file behind number `fd` of the caller of the command being handled.
    ///
    /// The engine calls [`release`](Self::release) once for each file it got.
    ///
    /// # Errors
    ///
    /// `EBADF` if no such descriptor is open; `EMFILE` if the host can hold no more.
    fn import(&mut self, from: HandleId, fd: i32) -> Result<(FileId, FileKind), Errno>;

    /// Checks the descriptor with which the caller of the command being handled may cancel its call.
    ///
    /// # Errors
    ///
    /// `EBADF` if no such descriptor is open; `EINVAL` if it cannot be waited for.
    fn check_cancel(&mut self, from: HandleId, fd: i32) -> Result<(), Errno> {
        let _ = (from, fd);
        Ok(())
    }

    /// Whether the caller of the command being handled can see a process or thread with this number.
    ///
    /// Asked for numbers that an owner of a bus gives in place of its own.
    fn process_exists(&mut self, from: HandleId, pid: u32) -> bool {
        let _ = (from, pid);
        true
    }

    /// Gives a pinned file to a client and returns the number to write into its message: the client's
    /// descriptor, or its place among the descriptors of this answer. `None` if that is not possible.
    fn install(&mut self, to: HandleId, file: FileId) -> Option<i32>;

    /// The file is not needed any more.
    fn release(&mut self, file: FileId);

    /// Makes a bus directory with its default endpoint, or a custom endpoint. On return others can open it.
    ///
    /// # Errors
    ///
    /// The code that the command then reports; nothing was made.
    fn node_create(&mut self, node: Node<'_>) -> Result<(), Errno>;

    /// Removes a node that was made; for the default endpoint, the directory with all in it.
    fn node_remove(&mut self, node: Node<'_>);

    /// Sixteen random bytes, for the UUID of a bus.
    fn random(&mut self) -> [u8; 16];

    /// Nanoseconds of `CLOCK_REALTIME`, for a message that shows them; the [`Clock`] of its command said `read`.
    ///
    /// Asked once for each message of which a receiver wants to know. A host that reads this clock only here saves reading it
    /// for all others.
    fn realtime(&mut self, read: u64) -> u64 {
        read
    }

    /// Reads one kind of metadata of the process behind `from` into `buffer` and returns its length: the
    /// payload of the item of that kind, a NUL behind strings included. `None` leaves the item out, also if
    /// the buffer, which can be empty, is too short for it.
    ///
    /// Asked only for what is not pinned in [`Credentials`], and only when a receiver wants it.
    fn metadata(&mut self, from: HandleId, kind: AttachFlags, buffer: &mut [u8]) -> Option<usize> {
        let _ = (from, kind, buffer);
        None
    }

    /// What the process behind `by` calls a user or group, or `None` if it has no name for it.
    ///
    /// Asked only for processes whose [`Spaces::users`] is not the host's.
    fn id_seen(&mut self, by: HandleId, id: Id) -> Option<u32> {
        let _ = (by, id);
        None
    }

    /// Ends the call past the bus that the command being handled [may answer](super::BesideLanes::answers): the engine
    /// brings its reply. False if it has ended already.
    fn end_past_call(&mut self) -> bool {
        false
    }

    /// Shows a newly queued message to a client that reads its queue in shared memory. True if whoever sleeps until
    /// something is there is woken as well; otherwise an [`Effect::Wake`](super::Effect::Wake) follows.
    fn publish(&mut self, to: HandleId, entry: Entry) -> bool {
        let _ = (to, entry);
        false
    }

    /// Takes a shown message back, because it moves, is dropped or is received by command. False if the
    /// client took it first: the engine then treats it as received. Without a shared queue: true.
    fn retract(&mut self, to: HandleId, entry: Entry) -> bool {
        let _ = (to, entry);
        true
    }

    /// The next thing a client did in shared memory; `None` when there is nothing new.
    ///
    /// The engine asks before anything that depends on the client's queue or pool. An implementation
    /// returns `None` after at most as many calls as the shared queue has places, however a client behaves.
    fn poll_return(&mut self, of: HandleId) -> Option<Return> {
        let _ = of;
        None
    }

    /// As [`poll_return`](Self::poll_return), several at once: fills `returns` from its start and says how many there are.
    /// Fewer than have room mean that nothing is left.
    fn poll_returns(&mut self, of: HandleId, returns: &mut [Return]) -> usize {
        for (at, place) in returns.iter_mut().enumerate() {
            match self.poll_return(of) {
                Some(next) => *place = next,
                None => return at,
            }
        }
        returns.len()
    }

    /// Whether returns of this client have to reach the engine at once, because somebody waits for room.
    fn watch_returns(&mut self, of: HandleId, watch: bool) {
        let _ = (of, watch);
    }

    /// Shows how many broadcasts this connection has lost so far, all in all.
    fn lost(&mut self, to: HandleId, total: u64) {
        let _ = (to, total);
    }

    /// Opens a lane, by which one client sends to another without the bus, under these terms.
    ///
    /// # Errors
    ///
    /// [`NoLane::Off`] without lanes, [`NoLane::Full`] if the receiver has none left, [`NoLane::NoPlace`] if the sender has
    /// said that it takes no other one, [`NoLane::Terms`] if the two have one that is open or holds messages under other
    /// terms.
    fn lane_open(&mut self, grant: LaneGrant, terms: &Terms<'_>) -> Result<(), NoLane> {
        let _ = (grant, terms);
        Err(NoLane::Off)
    }

    /// Closes lanes. On return nothing more is sent by any of them; what was sent is delivered. Returns a time after
    /// which nothing was sent: what the bus tells of the reason comes behind that. A host without lanes need not know it.
    fn lanes_close(&mut self, which: Lanes) -> Instant {
        let _ = which;
        Instant::ZERO
    }

    /// Closes the lanes into a connection that wants to end. False if one holds a message that it has not
    /// received: then they are as open as before.
    fn lanes_retire(&mut self, of: HandleId) -> bool {
        let _ = of;
        true
    }
}
