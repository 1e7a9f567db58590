//! Files of the simulated machine and the descriptors that name them.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use kdbus_core::abi::Errno;
use kdbus_core::engine::{FileId, FileKind, HandleId};

/// Descriptors that a process may have open unless told otherwise, as on most systems.
pub const FD_LIMIT: usize = 1024;

/// What the two ends of a pipe share.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    writers: usize,
}

/// An open file of the simulated machine.
#[derive(Debug)]
pub enum File {
    /// Anonymous memory.
    Memfd {
        /// Its bytes.
        content: Vec<u8>,
        /// Whether all four seals that the bus asks for are set.
        sealed: bool,
    },
    /// A file on disk: cannot be waited for.
    Regular(Vec<u8>),
    /// An event counter: readable while it is not zero.
    Event(u64),
    /// Reading end of a pipe.
    PipeReader(PipeEnd),
    /// Writing end of a pipe.
    PipeWriter(PipeEnd),
    /// A Unix socket that nobody talks through.
    UnixSocket,
    /// A descriptor opened for its path only, whatever lies there.
    Path,
    /// A control file, endpoint file or connection of the simulated bus.
    Bus(HandleId),
}

/// One end of a pipe.
#[derive(Debug)]
pub struct PipeEnd(Rc<RefCell<Pipe>>);

impl File {
    /// Both ends of a new pipe: to read from, and to write to.
    #[must_use]
    pub fn pipe() -> (Self, Self) {
        let pipe = Rc::new(RefCell::new(Pipe { bytes: VecDeque::new(), writers: 1 }));
        (Self::PipeReader(PipeEnd(Rc::clone(&pipe))), Self::PipeWriter(PipeEnd(pipe)))
    }

    /// What the bus has to know of the file.
    #[must_use]
    pub fn kind(&self) -> FileKind {
        match self {
            Self::Memfd { content, sealed } => {
                FileKind::Memfd { sealed: *sealed, size: content.len() as u64 }
            }
            Self::Bus(_) | Self::UnixSocket => FileKind::Unpassable,
            _ => FileKind::Other,
        }
    }

    /// Whether a process can wait for the file.
    #[must_use]
    pub const fn is_pollable(&self) -> bool {
        !matches!(self, Self::Regular(_) | Self::Memfd { .. } | Self::Path)
    }

    /// Whether a read finds something, or the end.
    #[must_use]
    pub fn is_readable(&self) -> bool {
        match self {
            Self::Event(count) => *count != 0,
            Self::PipeReader(end) => {
                let pipe = end.0.borrow();
                !pipe.bytes.is_empty() || pipe.writers == 0
            }
            _ => false,
        }
    }

    /// Reads at most `len` bytes: from a memfd or regular file its first ones, from a pipe the oldest.
    ///
    /// # Errors
    ///
    /// `EAGAIN` from an empty pipe or event, `EBADF` from a file that cannot be read.
    pub fn read(&mut self, len: usize) -> Result<Vec<u8>, Errno> {
        match self {
            Self::Memfd { content, .. } | Self::Regular(content) => {
                Ok(content.iter().copied().take(len).collect())
            }
            Self::PipeReader(end) => {
                let mut pipe = end.0.borrow_mut();
                if pipe.bytes.is_empty() && pipe.writers > 0 {
                    return Err(Errno::EAGAIN);
                }
                let count = len.min(pipe.bytes.len());
                Ok(pipe.bytes.drain(..count).collect())
            }
            Self::Event(0) => Err(Errno::EAGAIN),
            Self::Event(count) => Ok(core::mem::take(count).to_ne_bytes().to_vec()),
            _ => Err(Errno::EBADF),
        }
    }

    /// Writes `bytes` to a pipe, or adds them as one `u64` to an event.
    ///
    /// # Errors
    ///
    /// `EINVAL` for an event if `bytes` is no `u64`, `EBADF` for every other file.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        match self {
            Self::PipeWriter(end) => end.0.borrow_mut().bytes.extend(bytes),
            Self::Event(count) => {
                let more = bytes.try_into().map_err(|_| Errno::EINVAL)?;
                *count = count.saturating_add(u64::from_ne_bytes(more));
            }
            _ => return Err(Errno::EBADF),
        }
        Ok(())
    }
}

/// All open files of the machine, each with the number of descriptors and messages that hold it.
#[derive(Debug, Default)]
pub(crate) struct Files {
    slots: Vec<Option<(File, usize)>>,
}

impl Files {
    /// Adds a file that one holder has.
    pub(crate) fn insert(&mut self, file: File) -> FileId {
        let free = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[free] = Some((file, 1));
        FileId(free as u32)
    }

    /// The file of this number.
    ///
    /// # Errors
    ///
    /// `EBADF` if there is none.
    pub(crate) fn get(&self, id: FileId) -> Result<&File, Errno> {
        match self.slots.get(id.0 as usize) {
            Some(Some((file, _))) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    /// The file of this number, to read or write.
    ///
    /// # Errors
    ///
    /// `EBADF` if there is none.
    pub(crate) fn get_mut(&mut self, id: FileId) -> Result<&mut File, Errno> {
        match self.slots.get_mut(id.0 as usize) {
            Some(Some((file, _))) => Ok(file),
            _ => Err(Errno::EBADF),
        }
    }

    /// Adds a holder.
    pub(crate) fn hold(&mut self, id: FileId) {
        if let Some(Some((_, holders))) = self.slots.get_mut(id.0 as usize) {
            *holders += 1;
        }
    }

    /// Takes a holder away; with the last one the file goes and is returned.
    pub(crate) fn release(&mut self, id: FileId) -> Option<File> {
        let slot = self.slots.get_mut(id.0 as usize)?;
        let (_, holders) = slot.as_mut()?;
        *holders -= 1;
        if *holders > 0 {
            return None;
        }
        let (file, _) = slot.take()?;
        if let File::PipeWriter(end) = &file {
            end.0.borrow_mut().writers -= 1;
        }
        Some(file)
    }

    /// Files that somebody holds.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.slots.iter().flatten().count()
    }
}

/// One entry of a descriptor table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// The file.
    pub(crate) file: FileId,
    /// Whether a new program image closes it.
    pub(crate) close_on_exec: bool,
}

/// The descriptors of one process.
#[derive(Debug)]
pub(crate) struct FdTable {
    open: BTreeMap<i32, Descriptor>,
    limit: usize,
}

impl Default for FdTable {
    fn default() -> Self {
        Self { open: BTreeMap::new(), limit: FD_LIMIT }
    }
}

impl FdTable {
    /// Gives `file` the lowest free number.
    ///
    /// # Errors
    ///
    /// `EMFILE` at the limit.
    pub(crate) fn open(&mut self, file: FileId, close_on_exec: bool) -> Result<i32, Errno> {
        if self.open.len() >= self.limit {
            return Err(Errno::EMFILE);
        }
        // As if the three standard streams were open; the range is never exhausted before the limit is.
        let number = (3..).find(|fd| !self.open.contains_key(fd)).ok_or(Errno::EMFILE)?;
        self.open.insert(number, Descriptor { file, close_on_exec });
        Ok(number)
    }

    /// The entry of `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not open.
    pub(crate) fn get(&self, fd: i32) -> Result<Descriptor, Errno> {
        self.open.get(&fd).copied().ok_or(Errno::EBADF)
    }

    /// Closes `fd` and returns the file that loses a holder.
    ///
    /// # Errors
    ///
    /// `EBADF` if it is not open.
    pub(crate) fn close(&mut self, fd: i32) -> Result<FileId, Errno> {
        self.open.remove(&fd).map(|descriptor| descriptor.file).ok_or(Errno::EBADF)
    }

    /// Lets the process open at most `spare` more descriptors from now on.
    pub(crate) fn leave_spare(&mut self, spare: usize) {
        self.limit = self.open.len() + spare;
    }

    /// The open numbers, lowest first.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = i32> {
        self.open.keys().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_with_its_last_holder() {
        let mut files = Files::default();
        let id = files.insert(File::Event(0));
        files.hold(id);
        assert!(files.release(id).is_none());
        assert!(files.release(id).is_some());
        assert_eq!(files.len(), 0);
        assert_eq!(files.get(id).err(), Some(Errno::EBADF));
    }

    #[test]
    fn descriptors_take_the_lowest_free_number_up_to_the_limit() {
        let mut table = FdTable::default();
        let file = FileId(0);
        assert_eq!(table.open(file, true), Ok(3));
        assert_eq!(table.open(file, true), Ok(4));
        assert_eq!(table.close(3), Ok(file));
        table.leave_spare(1);
        assert_eq!(table.open(file, false), Ok(3));
        assert_eq!(table.open(file, false), Err(Errno::EMFILE));
        assert_eq!(table.close(9), Err(Errno::EBADF));
    }

    #[test]
    fn an_empty_pipe_is_readable_only_after_its_writer_went() {
        let mut files = Files::default();
        let (reader, writer) = File::pipe();
        let (reader, writer) = (files.insert(reader), files.insert(writer));
        files.get_mut(writer).unwrap().write(b"ab").unwrap();
        assert_eq!(files.get_mut(reader).unwrap().read(8), Ok(b"ab".to_vec()));
        assert_eq!(files.get_mut(reader).unwrap().read(8), Err(Errno::EAGAIN));
        assert!(!files.get(reader).unwrap().is_readable());
        files.release(writer);
        assert!(files.get(reader).unwrap().is_readable());
        assert_eq!(files.get_mut(reader).unwrap().read(8), Ok(Vec::new()));
    }
}
