//! What a kernel has around the bus: nodes, pools in real memory, files by their descriptors.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};

use kdbus_core::abi::{AttachFlags, Errno, ItemType, Items, Memfd, Msg};
use kdbus_core::engine::{Credentials, EndpointId, FileId, FileKind, HandleId, Host, Id, Node};
use kdbus_linux::local::map::{self, ReadMap, Seal, WriteMap};
use rustix::fs::{FileType, SealFlags};
use zerocopy::FromBytes;

use crate::memory;

/// A node of the tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NodeFile {
    pub(crate) id: EndpointId,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mode: u32,
}

impl NodeFile {
    /// Permission bits of the directory whose default endpoint this is.
    pub(crate) const fn directory_mode(&self) -> u32 {
        let read = self.mode & 0o444;
        read | read >> 2
    }

    fn allows(&self, mode: u32, wanted: u32, who: &Credentials) -> bool {
        let shift = if who.euid == 0 {
            return true;
        } else if who.euid == self.uid {
            6
        } else if who.egid == self.gid || who.groups.contains(&self.gid) {
            3
        } else {
            0
        };
        mode >> shift & wanted == wanted
    }
}

/// The pool of a connection.
#[derive(Debug)]
struct Pool {
    file: OwnedFd,
    map: WriteMap,
    look: ReadMap,
}

/// Everything but the bus itself.
#[derive(Debug, Default)]
pub(crate) struct Machine {
    /// Bus directories, each with its endpoint files by name.
    pub(crate) tree: BTreeMap<String, BTreeMap<String, NodeFile>>,
    pools: HashMap<HandleId, Pool>,
    files: Vec<Option<OwnedFd>>,
    /// Descriptors that may still be installed, if there is a limit.
    pub(crate) spare: Option<usize>,
    /// User and group of each client in a user namespace of its own.
    pub(crate) apart: BTreeMap<HandleId, (u32, u32)>,
}

impl Machine {
    /// The endpoint that `who` may open under this path.
    pub(crate) fn lookup(&self, bus: &str, endpoint: &str, who: &Credentials) -> Result<EndpointId, Errno> {
        const ENOENT: Errno = match Errno::from_raw(2) {
            Some(errno) => errno,
            None => Errno::ESRCH,
        };
        let directory = self.tree.get(bus).ok_or(ENOENT)?;
        let default = directory.get("bus").ok_or(ENOENT)?;
        if !default.allows(default.directory_mode(), 1, who) {
            return Err(Errno::EACCES);
        }
        let file = directory.get(endpoint).ok_or(ENOENT)?;
        if file.allows(file.mode, 6, who) { Ok(file.id) } else { Err(Errno::EACCES) }
    }

    /// The file of a pool and its size; `None` for a handle that was never connected.
    pub(crate) fn pool(&self, of: HandleId) -> Option<(BorrowedFd<'_>, u64)> {
        self.pools.get(&of).map(|pool| (pool.file.as_fd(), pool.map.len()))
    }

    /// Sets every descriptor number of the message at `offset` to -1: it was looked at, not received.
    pub(crate) fn hide_numbers(&mut self, of: HandleId, offset: u64, size: u64) {
        let Some(pool) = self.pools.get_mut(&of) else { return };
        let Some(slice) = pool.look.bytes(offset, size) else { return };
        let whole = Msg::read_from_prefix(slice).map_or(0, |(header, _)| header.size as usize);
        let area = slice.get(Msg::SIZE..whole.min(slice.len())).unwrap_or_default();
        let mut places = Vec::new();
        for item in Items::new(area).map_while(Result::ok) {
            let start = Msg::SIZE + item.at + kdbus_core::abi::ITEM_HEADER;
            match item.kind {
                ItemType::FDS => places.extend((start..start + item.payload.len()).step_by(4)),
                ItemType::PAYLOAD_MEMFD => places.push(start + std::mem::offset_of!(Memfd, fd)),
                _ => {}
            }
        }
        for place in places {
            // The places lie in the slice, and so in the pool.
            let _ = pool.map.write(offset + place as u64, &(-1_i32).to_ne_bytes());
        }
    }

    /// Forgets a handle that is closed.
    pub(crate) fn forget(&mut self, handle: HandleId) {
        self.pools.remove(&handle);
        self.apart.remove(&handle);
    }

    /// Files that messages hold.
    pub(crate) fn held_files(&self) -> usize {
        self.files.iter().flatten().count()
    }
}

/// The machine while the bus runs one command of one caller.
#[derive(Debug)]
pub(crate) struct LoopHost<'a> {
    pub(crate) machine: &'a mut Machine,
    /// The file that may cancel the command, once it was checked.
    pub(crate) cancel: Option<OwnedFd>,
}

impl<'a> LoopHost<'a> {
    pub(crate) const fn new(machine: &'a mut Machine) -> Self {
        Self { machine, cancel: None }
    }
}

impl Host for LoopHost<'_> {
    fn pool_create(&mut self, owner: HandleId, size: u64) -> Result<(), Errno> {
        let make = || {
            let file = crate::descriptors::hide(map::create(c"kdbus-pool", size)?);
            let map = WriteMap::new(&file, size, false)?;
            // Whoever maps the file from here on can only read it.
            map::seal(&file, Seal::SizeAndWriters)?;
            let look = ReadMap::new(&file, size, false)?;
            Ok(Pool { file, map, look })
        };
        let pool = make().map_err(|_: rustix::io::Errno| Errno::ENOMEM)?;
        self.machine.pools.insert(owner, pool);
        Ok(())
    }

    fn pool_destroy(&mut self, owner: HandleId) {
        // A connection that is gone can still be mapped; `Machine::forget` ends that.
        let _ = owner;
    }

    fn pool_write(&mut self, owner: HandleId, offset: u64, bytes: &[u8]) {
        if let Some(pool) = self.machine.pools.get_mut(&owner) {
            let _ = pool.map.write(offset, bytes);
        }
    }

    fn pool_zero(&mut self, owner: HandleId, offset: u64, len: u64) {
        if let Some(pool) = self.machine.pools.get_mut(&owner) {
            let _ = pool.map.zero(offset, len);
        }
    }

    fn pool_copy(&mut self, from: HandleId, from_offset: u64, to: HandleId, to_offset: u64, len: u64) {
        let from = self.machine.pools.get(&from).and_then(|pool| pool.look.bytes(from_offset, len));
        if let Some(bytes) = from.map(<[u8]>::to_vec) {
            self.pool_write(to, to_offset, &bytes);
        }
    }

    fn payload(&mut self, to: HandleId, offset: u64, address: u64, _: u64, len: u64) -> Result<(), Errno> {
        let bytes = memory::read(address, usize::try_from(len).map_err(|_| Errno::EFAULT)?)?;
        self.pool_write(to, offset, &bytes);
        Ok(())
    }

    fn import(&mut self, _: HandleId, fd: i32) -> Result<(FileId, FileKind), Errno> {
        let file = crate::descriptors::duplicate(fd)?;
        let kind = kind(file.as_fd());
        let files = &mut self.machine.files;
        let place = files.iter().position(Option::is_none).unwrap_or_else(|| {
            files.push(None);
            files.len() - 1
        });
        files[place] = Some(file);
        Ok((FileId(place as u32), kind))
    }

    fn check_cancel(&mut self, _: HandleId, fd: i32) -> Result<(), Errno> {
        let file = crate::descriptors::duplicate(fd)?;
        let kind =
            rustix::fs::fstat(&file).map_or(FileType::Unknown, |stat| FileType::from_raw_mode(stat.st_mode));
        if matches!(kind, FileType::RegularFile | FileType::Directory | FileType::BlockDevice) {
            return Err(Errno::EINVAL);
        }
        self.cancel = Some(file);
        Ok(())
    }

    fn id_seen(&mut self, by: HandleId, id: Id) -> Option<u32> {
        // A namespace of one's own has a name for one's own ids, and it is 0.
        let (uid, gid) = *self.machine.apart.get(&by)?;
        (id == Id::User(uid) || id == Id::Group(gid)).then_some(0)
    }

    fn process_exists(&mut self, _: HandleId, pid: u32) -> bool {
        let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
            return false;
        };
        !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
    }

    fn install(&mut self, _: HandleId, file: FileId) -> Option<i32> {
        let spare = self.machine.spare;
        if spare == Some(0) {
            return None;
        }
        let file = self.machine.files.get(file.0 as usize)?.as_ref()?;
        let number = rustix::io::fcntl_dupfd_cloexec(file, 0).ok()?.into_raw_fd();
        self.machine.spare = spare.map(|spare| spare - 1);
        Some(number)
    }

    fn release(&mut self, file: FileId) {
        if let Some(place) = self.machine.files.get_mut(file.0 as usize) {
            *place = None;
        }
    }

    fn node_create(&mut self, node: Node<'_>) -> Result<(), Errno> {
        let directory = self.machine.tree.entry(node.bus.to_owned()).or_default();
        if directory.contains_key(node.endpoint) {
            return Err(Errno::EEXIST);
        }
        let file = NodeFile { id: node.id, uid: node.uid, gid: node.gid, mode: node.mode };
        directory.insert(node.endpoint.to_owned(), file);
        Ok(())
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
        // A domain of one test may do without chance.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        bytes
    }

    fn metadata(&mut self, _: HandleId, kind: AttachFlags, buffer: &mut [u8]) -> Option<usize> {
        let text = |path: &str| std::fs::read(path).ok();
        let mut payload = match kind {
            AttachFlags::TID_COMM | AttachFlags::PID_COMM => rustix::thread::name().ok()?.into_bytes(),
            AttachFlags::EXE => {
                std::fs::read_link("/proc/self/exe").ok()?.into_os_string().into_encoded_bytes()
            }
            AttachFlags::CMDLINE => text("/proc/self/cmdline")?,
            AttachFlags::CGROUP => text("/proc/self/cgroup")?,
            AttachFlags::CAPS => {
                let last_cap = 40_u32;
                [last_cap.to_ne_bytes().to_vec(), vec![0; 32]].concat()
            }
            AttachFlags::AUDIT => [u32::MAX, u32::MAX].map(u32::to_ne_bytes).concat(),
            _ => return None,
        };
        if !matches!(kind, AttachFlags::CAPS | AttachFlags::AUDIT) {
            let end = payload.iter().position(|byte| matches!(byte, 0 | b'\n')).unwrap_or(payload.len());
            payload.truncate(end);
            payload.push(0);
        }
        buffer.get_mut(..payload.len())?.copy_from_slice(&payload);
        Some(payload.len())
    }
}

/// What kind of file a descriptor is.
fn kind(file: BorrowedFd<'_>) -> FileKind {
    let Ok(stat) = rustix::fs::fstat(file) else { return FileKind::Other };
    match FileType::from_raw_mode(stat.st_mode) {
        // Nodes of the loop-back are Unix sockets too.
        FileType::Socket => match rustix::net::sockopt::socket_domain(file) {
            Ok(rustix::net::AddressFamily::UNIX) => FileKind::Unpassable,
            _ => FileKind::Other,
        },
        FileType::RegularFile => match rustix::fs::fcntl_get_seals(file) {
            Ok(seals) => {
                let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
                FileKind::Memfd { sealed: seals.contains(all), size: stat.st_size as u64 }
            }
            Err(_) => FileKind::Other,
        },
        _ => FileKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart() {
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        assert_eq!(kind(reader.as_fd()), FileKind::Other);
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(kind(one.as_fd()), FileKind::Unpassable);
        let memfd = map::create(c"x", 10).unwrap();
        assert_eq!(kind(memfd.as_fd()), FileKind::Memfd { sealed: false, size: 10 });
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&memfd, all).unwrap();
        assert_eq!(kind(memfd.as_fd()), FileKind::Memfd { sealed: true, size: 10 });
    }

    #[test]
    fn nodes_open_for_those_their_mode_names() {
        let id = EndpointId { index: 0, generation: 0 };
        for (uid, gid, mode, allowed) in [
            (7, 1, 0o600, true),
            (1, 8, 0o600, false),
            (1, 8, 0o660, true),
            (1, 1, 0o660, false),
            (1, 1, 0o666, true),
        ] {
            let mut machine = Machine::default();
            let node = Node { bus: "7-x", endpoint: "bus", id, uid: 7, gid: 8, mode };
            LoopHost::new(&mut machine).node_create(node).unwrap();
            let who = Credentials { euid: uid, egid: gid, ..Credentials::default() };
            assert_eq!(machine.lookup("7-x", "bus", &who).is_ok(), allowed, "{uid} {gid} {mode:o}");
        }
    }
}
