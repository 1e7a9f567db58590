//! The simulated machine around the bus: processes, files, nodes, pools and chance.

use std::collections::BTreeMap;

use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::engine::{Credentials, EndpointId, FileId, FileKind, HandleId, Host, Id, Node};

use crate::fd::{FdTable, File, Files};

/// A process of the simulated machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProcessId(pub(crate) usize);

/// What a process is and has.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) credentials: Credentials,
    pub(crate) fds: FdTable,
    pub(crate) name: String,
    /// Commands so far.
    pub(crate) steps: u64,
    pub(crate) is_dead: bool,
    pub(crate) work: Work,
}

/// What a process computes for its messages, in time of a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Behind each message that it sends.
    pub sent_ns: u64,
    /// For each message that it has received, before it gives the slice back.
    pub received_ns: u64,
}

/// A file of the bus' tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFile {
    /// Number of the endpoint.
    pub id: EndpointId,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl NodeFile {
    /// Permission bits of the directory that this file is the default endpoint of.
    #[must_use]
    pub const fn directory_mode(&self) -> u32 {
        let read = self.mode & 0o444;
        read | read >> 2
    }

    /// Whether `credentials` have all of `wanted` (4 read, 2 write, 1 search) under `mode`.
    fn allows(&self, mode: u32, wanted: u32, credentials: &Credentials) -> bool {
        let shift = if credentials.euid == 0 {
            return true;
        } else if credentials.euid == self.uid {
            6
        } else if credentials.egid == self.gid || credentials.groups.contains(&self.gid) {
            3
        } else {
            0
        };
        mode >> shift & wanted == wanted
    }
}

/// A sequence of numbers that looks random and depends on nothing but its seed (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of this seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub const fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// The next number below `end`, or 0 if that is 0.
    pub const fn below(&mut self, end: u64) -> u64 {
        // The upper half of the product: as even as 64 bits allow, without a loop.
        ((self.next_u64() as u128 * end as u128) >> 64) as u64
    }
}

/// Everything on the simulated machine but the bus itself.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) processes: Vec<Process>,
    pub(crate) files: Files,
    pub(crate) owners: BTreeMap<HandleId, ProcessId>,
    /// Handles whose last descriptor went; the bus has not been told yet.
    pub(crate) closed: Vec<HandleId>,
    /// Bus directories, each with its endpoint files by name.
    pub(crate) tree: BTreeMap<String, BTreeMap<String, NodeFile>>,
    pools: BTreeMap<HandleId, Vec<u8>>,
    /// Up to where each pool has been used.
    pub(crate) touched: BTreeMap<HandleId, u64>,
    random: Random,
}

impl Machine {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            processes: Vec::new(),
            files: Files::default(),
            owners: BTreeMap::new(),
            closed: Vec::new(),
            tree: BTreeMap::new(),
            pools: BTreeMap::new(),
            touched: BTreeMap::new(),
            random: Random::new(seed),
        }
    }

    pub(crate) fn process(&self, id: ProcessId) -> &Process {
        &self.processes[id.0]
    }

    pub(crate) fn process_mut(&mut self, id: ProcessId) -> &mut Process {
        &mut self.processes[id.0]
    }

    /// Opens a descriptor of a new file in `process`.
    pub(crate) fn open(&mut self, process: ProcessId, file: File) -> Result<i32, Errno> {
        let id = self.files.insert(file);
        let opened = self.process_mut(process).fds.open(id, true);
        if opened.is_err() {
            self.let_go(id);
        }
        opened
    }

    /// The file behind a descriptor of `process`.
    pub(crate) fn file(&self, process: ProcessId, fd: i32) -> Result<&File, Errno> {
        self.files.get(self.process(process).fds.get(fd)?.file)
    }

    /// The bus handle behind a descriptor of `process`; `ENOTTY` for any other file.
    pub(crate) fn handle(&self, process: ProcessId, fd: i32) -> Result<HandleId, Errno> {
        match self.file(process, fd)? {
            File::Bus(handle) => Ok(*handle),
            _ => Err(Errno::ENOTTY),
        }
    }

    pub(crate) fn close(&mut self, process: ProcessId, fd: i32) -> Result<(), Errno> {
        let file = self.process_mut(process).fds.close(fd)?;
        self.let_go(file);
        Ok(())
    }

    /// Takes one holder from a file; a handle that nobody holds is remembered in `closed`.
    pub(crate) fn let_go(&mut self, file: FileId) {
        if let Some(File::Bus(handle)) = self.files.release(file) {
            self.closed.push(handle);
        }
    }

    /// The endpoint that `process` may open under this path.
    pub(crate) fn lookup(&self, process: ProcessId, bus: &str, endpoint: &str) -> Result<EndpointId, Errno> {
        const ENOENT: Errno = match Errno::from_raw(2) {
            Some(errno) => errno,
            None => Errno::ESRCH,
        };
        let credentials = &self.process(process).credentials;
        let directory = self.tree.get(bus).ok_or(ENOENT)?;
        let default = directory.get("bus").ok_or(ENOENT)?;
        if !default.allows(default.directory_mode(), 1, credentials) {
            return Err(Errno::EACCES);
        }
        let file = directory.get(endpoint).ok_or(ENOENT)?;
        if file.allows(file.mode, 6, credentials) { Ok(file.id) } else { Err(Errno::EACCES) }
    }

    /// Bytes of a pool, if the whole range lies in it.
    pub(crate) fn pool(&self, of: HandleId, offset: u64, len: u64) -> Option<&[u8]> {
        let start = usize::try_from(offset).ok()?;
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.pools.get(&of)?.get(start..end)
    }

    fn pool_mut(&mut self, of: HandleId, offset: u64, len: usize) -> Option<&mut [u8]> {
        let start = usize::try_from(offset).ok()?;
        self.pools.get_mut(&of)?.get_mut(start..start.checked_add(len)?)
    }

    /// Forgets a handle that the bus has closed.
    pub(crate) fn forget(&mut self, handle: HandleId) {
        self.owners.remove(&handle);
        self.pools.remove(&handle);
        self.touched.remove(&handle);
    }
}

/// The machine while the bus runs one command of one process.
#[derive(Debug)]
pub(crate) struct SimHost<'a> {
    pub(crate) machine: &'a mut Machine,
    /// Who issued the command; `None` while the bus works on its own account.
    pub(crate) caller: Option<ProcessId>,
    /// The sender's memory: what its non-zero payload vectors name. What is missing is unreadable.
    pub(crate) payload: &'a [&'a [u8]],
    /// The file that may cancel the command, once it was checked.
    pub(crate) cancel: Option<FileId>,
}

impl<'a> SimHost<'a> {
    pub(crate) const fn new(
        machine: &'a mut Machine,
        caller: Option<ProcessId>,
        payload: &'a [&'a [u8]],
    ) -> Self {
        Self { machine, caller, payload, cancel: None }
    }

    /// The process behind a command, or behind a handle if there is no command.
    fn process_of(&self, handle: HandleId) -> Option<ProcessId> {
        self.caller.or_else(|| self.machine.owners.get(&handle).copied())
    }
}

impl Host for SimHost<'_> {
    fn pool_create(&mut self, owner: HandleId, size: u64) -> Result<(), Errno> {
        let size = usize::try_from(size).map_err(|_| Errno::ENOMEM)?;
        self.machine.pools.insert(owner, vec![0; size]);
        Ok(())
    }

    fn pool_destroy(&mut self, owner: HandleId) {
        // The client's mapping stays valid until it closes its handle: `Machine::forget`.
        let _ = owner;
    }

    fn pool_write(&mut self, owner: HandleId, offset: u64, bytes: &[u8]) {
        if let Some(area) = self.machine.pool_mut(owner, offset, bytes.len()) {
            area.copy_from_slice(bytes);
        }
    }

    fn pool_zero(&mut self, owner: HandleId, offset: u64, len: u64) {
        if let Some(area) = self.machine.pool_mut(owner, offset, len as usize) {
            area.fill(0);
        }
    }

    fn pool_copy(&mut self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, len: u64) {
        let Some(bytes) = self.machine.pool(from, from_offset, len).map(<[u8]>::to_vec) else { return };
        self.pool_write(to, to_offset, &bytes);
    }

    fn payload(&mut self, to: HandleId, offset: u64, _: u64, skip: u64, len: u64) -> Result<(), Errno> {
        let mut at = offset;
        let (mut skip, mut left) = (skip as usize, len as usize);
        for bytes in self.payload {
            let part = bytes.get(skip..).unwrap_or_default();
            skip -= skip.min(bytes.len());
            let part = &part[..part.len().min(left)];
            self.pool_write(to, at, part);
            at += part.len() as u64;
            left -= part.len();
        }
        if left == 0 { Ok(()) } else { Err(Errno::EFAULT) }
    }

    fn import(&mut self, from: HandleId, fd: i32) -> Result<(FileId, FileKind), Errno> {
        let process = self.process_of(from).ok_or(Errno::EBADF)?;
        let file = self.machine.process(process).fds.get(fd)?.file;
        let kind = self.machine.files.get(file)?.kind();
        self.machine.files.hold(file);
        Ok((file, kind))
    }

    fn check_cancel(&mut self, from: HandleId, fd: i32) -> Result<(), Errno> {
        let process = self.process_of(from).ok_or(Errno::EBADF)?;
        let file = self.machine.process(process).fds.get(fd)?.file;
        if !self.machine.files.get(file)?.is_pollable() {
            return Err(Errno::EINVAL);
        }
        self.cancel = Some(file);
        Ok(())
    }

    fn id_seen(&mut self, by: HandleId, id: Id) -> Option<u32> {
        // A user namespace of a process' own has a name for its own ids, and it is 0.
        let own = &self.machine.process(*self.machine.owners.get(&by)?).credentials;
        (id == Id::User(own.uid) || id == Id::Group(own.gid)).then_some(0)
    }

    fn process_exists(&mut self, _: HandleId, pid: u32) -> bool {
        // Process 1 is everybody's parent.
        pid == 1 || self.machine.processes.iter().any(|process| process.credentials.pid == pid)
    }

    fn install(&mut self, to: HandleId, file: FileId) -> Option<i32> {
        let process = *self.machine.owners.get(&to)?;
        let number = self.machine.process_mut(process).fds.open(file, true).ok()?;
        self.machine.files.hold(file);
        Some(number)
    }

    fn release(&mut self, file: FileId) {
        self.machine.let_go(file);
    }

    fn node_create(&mut self, node: Node<'_>) -> Result<(), Errno> {
        let directory = self.machine.tree.entry(node.bus.to_owned()).or_default();
        let file = NodeFile { id: node.id, uid: node.uid, gid: node.gid, mode: node.mode };
        match directory.insert(node.endpoint.to_owned(), file) {
            None => Ok(()),
            Some(former) => {
                directory.insert(node.endpoint.to_owned(), former);
                Err(Errno::EEXIST)
            }
        }
    }

    fn node_remove(&mut self, node: Node<'_>) {
        if node.endpoint == "bus" {
            self.machine.tree.remove(node.bus);
        } else if let Some(directory) = self.machine.tree.get_mut(node.bus) {
            directory.remove(node.endpoint);
        }
    }

    fn random(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        for word in bytes.as_chunks_mut().0 {
            *word = self.machine.random.next_u64().to_ne_bytes();
        }
        bytes
    }

    fn metadata(&mut self, from: HandleId, kind: AttachFlags, buffer: &mut [u8]) -> Option<usize> {
        let process = self.process_of(from)?;
        let process = self.machine.process(process);
        let mut payload = Vec::new();
        match kind {
            AttachFlags::TID_COMM | AttachFlags::PID_COMM => payload.extend(process.name.bytes().take(15)),
            AttachFlags::EXE => payload.extend(format!("/usr/bin/{}", process.name).bytes()),
            AttachFlags::CMDLINE => payload.extend(process.name.bytes()),
            AttachFlags::CGROUP => payload.extend(format!("/{}", process.credentials.pid).bytes()),
            AttachFlags::CAPS => {
                let last_cap = 40_u32;
                let held = if process.credentials.privileged { (1_u64 << (last_cap + 1)) - 1 } else { 0 };
                payload.extend(last_cap.to_ne_bytes());
                for set in [0, held, held, held] {
                    payload.extend(set.to_ne_bytes());
                }
            }
            AttachFlags::AUDIT => {
                payload.extend(1_u32.to_ne_bytes());
                payload.extend(process.credentials.uid.to_ne_bytes());
            }
            _ => return None,
        }
        if !matches!(kind, AttachFlags::CAPS | AttachFlags::AUDIT) {
            payload.push(0);
        }
        buffer.get_mut(..payload.len())?.copy_from_slice(&payload);
        Some(payload.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDLE: HandleId = HandleId { index: 0, generation: 0 };

    fn node(mode: u32) -> Node<'static> {
        let id = EndpointId { index: 0, generation: 0 };
        Node { bus: "7-x", endpoint: "bus", id, uid: 7, gid: 8, mode }
    }

    fn machine(uid: u32, gid: u32) -> (Machine, ProcessId) {
        let mut machine = Machine::new(1);
        let credentials = Credentials { euid: uid, egid: gid, ..Credentials::default() };
        machine.processes.push(Process {
            credentials,
            fds: FdTable::default(),
            name: "x".to_owned(),
            steps: 0,
            is_dead: false,
            work: Work::default(),
        });
        (machine, ProcessId(0))
    }

    fn host(machine: &mut Machine) -> SimHost<'_> {
        SimHost::new(machine, None, &[])
    }

    #[test]
    fn nodes_open_for_those_their_mode_names() {
        for (uid, gid, mode, allowed) in [
            (7, 1, 0o600, true),
            (1, 8, 0o600, false),
            (1, 8, 0o660, true),
            (1, 1, 0o660, false),
            (1, 1, 0o666, true),
        ] {
            let (mut machine, process) = machine(uid, gid);
            host(&mut machine).node_create(node(mode)).unwrap();
            assert_eq!(machine.lookup(process, "7-x", "bus").is_ok(), allowed, "{uid} {gid} {mode:o}");
        }
    }

    #[test]
    fn payload_is_read_across_vectors_and_faults_where_there_is_none() {
        let (mut machine, _) = machine(1, 1);
        let payload: [&[u8]; 2] = [b"abc", b"defgh"];
        let mut host = SimHost::new(&mut machine, None, &payload);
        host.pool_create(HANDLE, 4096).unwrap();
        assert_eq!(host.payload(HANDLE, 16, 1, 2, 4), Ok(()));
        assert_eq!(host.payload(HANDLE, 32, 1, 2, 7), Err(Errno::EFAULT));
        assert_eq!(machine.pool(HANDLE, 16, 4), Some(&b"cdef"[..]));
    }

    #[test]
    fn equal_seeds_give_equal_numbers() {
        let (mut one, mut other) = (Random::new(3), Random::new(3));
        assert_eq!(one.next_u64(), other.next_u64());
        assert_ne!(one.next_u64(), Random::new(4).next_u64());
    }
}
