//! Files that messages carry, each held once however many copies of its message wait.

use crate::abi::{Errno, ItemType, Items, Memfd, Msg};

use super::host::{FileId, FileKind, HandleId, Host};
use super::table::{Blank, FileIx, Record, Table};
use crate::examine::Examined;

/// One file of a message in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct FileRecord {
    file: FileId,
    /// Offset of its number in the message.
    at: u32,
    /// Passed in an `FDS` item, rather than a memfd.
    passed: bool,
    next: Option<FileIx>,
    /// Copies of the message, in the first record of each message.
    copies: u32,
}

impl Blank for FileRecord {
    const BLANK: Self = Self { file: FileId(0), at: 0, passed: false, next: None, copies: 0 };
}

/// The files of all messages of a domain.
#[derive(Debug)]
pub(super) struct Files<'s> {
    records: Table<'s, FileIx, FileRecord>,
}

impl<'s> Files<'s> {
    pub(super) fn new(records: &'s mut [Record<FileRecord>]) -> Self {
        Self { records: Table::new(records) }
    }

    /// Pins every file of a message, in the order of its items; the caller holds the first copy.
    ///
    /// # Errors
    ///
    /// - `EBADF`: no such descriptor.
    /// - `EMEDIUMTYPE`, `ETXTBSY`, `EFAULT`: not a memfd, not sealed, shorter than the item says.
    /// - `EOPNOTSUPP`: a passed handle of a bus, or Unix socket.
    /// - `ENOMEM`: the table is full.
    #[inline]
    pub(super) fn import(
        &mut self,
        host: &mut dyn Host,
        from: HandleId,
        message: &Examined<'_>,
    ) -> Result<Option<FileIx>, Errno> {
        if message.fds == 0 && message.memfds == 0 {
            return Ok(None);
        }
        self.import_some(host, from, message)
    }

    fn import_some(
        &mut self,
        host: &mut dyn Host,
        from: HandleId,
        message: &Examined<'_>,
    ) -> Result<Option<FileIx>, Errno> {
        let mut first = None;
        match self.import_items(host, from, message, &mut first) {
            Ok(()) => Ok(first),
            Err(error) => {
                self.release(host, first);
                Err(error)
            }
        }
    }

    fn import_items(
        &mut self,
        host: &mut dyn Host,
        from: HandleId,
        message: &Examined<'_>,
        first: &mut Option<FileIx>,
    ) -> Result<(), Errno> {
        for item in Items::new(message.items).filter_map(Result::ok) {
            let payload_at = Msg::SIZE + item.at + crate::abi::ITEM_HEADER;
            if item.kind == ItemType::PAYLOAD_MEMFD {
                let memfd: Memfd = item.record().ok_or(Errno::EINVAL)?;
                let (file, kind) = host.import(from, memfd.fd)?;
                let at = payload_at + core::mem::offset_of!(Memfd, fd);
                self.keep(host, first, file, at, false)?;
                match kind {
                    FileKind::Memfd { sealed: false, .. } => return Err(Errno::ETXTBSY),
                    FileKind::Memfd { size, .. } => {
                        if memfd.start.checked_add(memfd.size).is_none_or(|end| end > size) {
                            return Err(Errno::EFAULT);
                        }
                    }
                    FileKind::Unpassable | FileKind::Other => return Err(Errno::EMEDIUMTYPE),
                }
            } else if item.kind == ItemType::FDS {
                for (index, fd) in item.fds().enumerate() {
                    if fd < 0 {
                        return Err(Errno::EBADF);
                    }
                    let (file, kind) = host.import(from, fd)?;
                    self.keep(host, first, file, payload_at + 4 * index, true)?;
                    if kind == FileKind::Unpassable {
                        return Err(Errno::EOPNOTSUPP);
                    }
                }
            }
        }
        Ok(())
    }

    /// Counts one more copy of a message.
    pub(super) fn share(&mut self, files: Option<FileIx>) -> Option<FileIx> {
        if let Some(first) = files {
            self.records[first].copies += 1;
        }
        files
    }

    /// Counts one copy less; with the last one the files are given back to the host.
    #[inline]
    pub(super) fn release(&mut self, host: &mut dyn Host, files: Option<FileIx>) {
        if let Some(first) = files {
            self.release_some(host, first);
        }
    }

    fn release_some(&mut self, host: &mut dyn Host, first: FileIx) {
        let copies = self.records[first].copies.saturating_sub(1);
        self.records[first].copies = copies;
        if copies > 0 {
            return;
        }
        let mut at = Some(first);
        while let Some(place) = at {
            let record = self.records.remove(place).unwrap_or(FileRecord::BLANK);
            host.release(record.file);
            at = record.next;
        }
    }

    /// Gives the files to a receiver and writes their numbers into its slice: passed descriptors first,
    /// then memfds in item order. Returns whether any is missing, whose number is then -1.
    pub(super) fn install(
        &self,
        host: &mut dyn Host,
        to: HandleId,
        slice: u64,
        files: Option<FileIx>,
        accept: bool,
    ) -> bool {
        let mut missing = false;
        for passed in [true, false] {
            let mut at = files;
            while let Some(place) = at {
                let record = self.records[place];
                at = record.next;
                if record.passed != passed {
                    continue;
                }
                let number = if passed && !accept { None } else { host.install(to, record.file) };
                missing |= number.is_none();
                host.pool_write(to, slice + u64::from(record.at), &number.unwrap_or(-1).to_ne_bytes());
            }
        }
        missing
    }

    /// Files in flight.
    pub(super) const fn len(&self) -> usize {
        self.records.len()
    }

    fn keep(
        &mut self,
        host: &mut dyn Host,
        first: &mut Option<FileIx>,
        file: FileId,
        at: usize,
        passed: bool,
    ) -> Result<(), Errno> {
        let record = FileRecord { file, at: at as u32, passed, next: None, copies: 0 };
        let Some(place) = self.records.insert(record) else {
            host.release(file);
            return Err(Errno::ENOMEM);
        };
        let Some(head) = *first else {
            self.records[place].copies = 1;
            *first = Some(place);
            return Ok(());
        };
        // At most 32 files: memfds and descriptors of one message.
        let mut last = head;
        while let Some(next) = self.records[last].next {
            last = next;
        }
        self.records[last].next = Some(place);
        Ok(())
    }
}
