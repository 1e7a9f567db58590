//! Files that messages carry, pinned from the moment a message is taken in until nobody needs them.

use kdbus_core::engine::{FileId, FileKind};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{self, FileType, SealFlags};
use rustix::net::{self, AddressFamily};

use crate::closer::file_type;
use crate::raw::Foreign;

/// A fixed number of places for files, each with the number of its users.
#[derive(Debug)]
pub(crate) struct Files {
    places: Box<[Option<(Foreign, u32)>]>,
    free: Vec<u32>,
}

impl Files {
    /// An empty table of `capacity` places, all allocated now.
    pub(crate) fn new(capacity: u32) -> Self {
        Self { places: (0..capacity).map(|_| None).collect(), free: (0..capacity).rev().collect() }
    }

    /// Keeps a file for one user; hands it back if the table is full.
    pub(crate) fn insert(&mut self, file: Foreign) -> Result<FileId, Foreign> {
        let Some(id) = self.free.pop() else {
            return Err(file);
        };
        match self.places.get_mut(id as usize) {
            Some(place) => {
                *place = Some((file, 1));
                Ok(FileId(id))
            }
            None => Err(file),
        }
    }

    /// A kept file.
    pub(crate) fn get(&self, id: FileId) -> Option<BorrowedFd<'_>> {
        self.places.get(id.0 as usize)?.as_ref().map(|(file, _)| file.as_fd())
    }

    /// Counts one more user of a kept file. False if there is no such file.
    pub(crate) fn retain(&mut self, id: FileId) -> bool {
        let place = self.places.get_mut(id.0 as usize).and_then(Option::as_mut);
        place.map(|(_, users)| *users += 1).is_some()
    }

    /// Counts one user less and closes a file without any. Does nothing for a number that is not in use.
    pub(crate) fn release(&mut self, id: FileId) {
        let Some(place) = self.places.get_mut(id.0 as usize) else {
            return;
        };
        match place {
            Some((_, users)) if *users > 1 => *users -= 1,
            Some(_) => {
                *place = None;
                self.free.push(id.0);
            }
            None => {}
        }
    }

    /// How many are kept.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }
}

/// Whether a file can be read without waiting for anybody, as only memory can.
pub(crate) fn is_memfd(file: BorrowedFd<'_>) -> bool {
    fs::fcntl_get_seals(file).is_ok()
}

/// What kind of file a descriptor is. At most three system calls.
///
/// What is said of a sealed memfd stays true; the other kinds are final as well.
pub(crate) fn kind(file: BorrowedFd<'_>) -> FileKind {
    let Some(found) = file_type(file) else {
        return FileKind::Other;
    };
    match found {
        FileType::Socket => match net::sockopt::socket_domain(file) {
            // Ours are among them: what a client holds of a bus is a Unix socket.
            Ok(AddressFamily::UNIX) => FileKind::Unpassable,
            _ => FileKind::Other,
        },
        FileType::RegularFile => match fs::fcntl_get_seals(file) {
            Ok(seals) => {
                let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
                // The size counts only if sealed, and then it was so before it was asked for again.
                let size = fs::fstat(file).map_or(0, |stat| stat.st_size);
                FileKind::Memfd { sealed: seals.contains(all), size: u64::try_from(size).unwrap_or(0) }
            }
            Err(_) => FileKind::Other,
        },
        _ => FileKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fd::OwnedFd;
    use rustix::fs::MemfdFlags;
    use rustix::net::{SocketFlags, SocketType};

    fn memfd(size: u64, seals: SealFlags) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = fs::memfd_create("test", flags).unwrap();
        fs::ftruncate(&file, size).unwrap();
        fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn places_are_given_again() {
        let mut files = Files::new(2);
        let first = files.insert(Foreign::new(memfd(0, SealFlags::empty()), 0)).unwrap();
        let second = files.insert(Foreign::new(memfd(0, SealFlags::empty()), 0)).unwrap();
        assert!(files.insert(Foreign::new(memfd(0, SealFlags::empty()), 0)).is_err());
        files.release(first);
        files.release(first);
        assert_eq!(files.len(), 1);
        assert!(files.get(first).is_none() && files.get(second).is_some());
        assert_eq!(files.insert(Foreign::new(memfd(0, SealFlags::empty()), 0)).unwrap(), first);
    }

    #[test]
    fn a_file_stays_until_its_last_user_is_gone() {
        let mut files = Files::new(1);
        let id = files.insert(Foreign::new(memfd(0, SealFlags::empty()), 0)).unwrap();
        assert!(files.retain(id));
        files.release(id);
        assert!(files.get(id).is_some());
        files.release(id);
        assert!(files.get(id).is_none() && !files.retain(id));
    }

    #[test]
    fn a_memfd_is_sealed_when_all_four_seals_are_there() {
        let all = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        assert_eq!(kind(memfd(77, all).as_fd()), FileKind::Memfd { sealed: true, size: 77 });
        let without = all - SealFlags::SEAL;
        assert_eq!(kind(memfd(5, without).as_fd()), FileKind::Memfd { sealed: false, size: 5 });
    }

    #[test]
    fn unix_sockets_are_not_passed_on_and_pipes_are() {
        let (socket, _other) =
            net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None).unwrap();
        assert_eq!(kind(socket.as_fd()), FileKind::Unpassable);
        let (pipe, _other) = rustix::pipe::pipe().unwrap();
        assert_eq!(kind(pipe.as_fd()), FileKind::Other);
        let udp = net::socket(AddressFamily::INET, SocketType::DGRAM, None).unwrap();
        assert_eq!(kind(udp.as_fd()), FileKind::Other);
    }
}
