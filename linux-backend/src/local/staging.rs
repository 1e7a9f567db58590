//! The file through which large payloads go to kdbusd.

use core::cell::Cell;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;

use super::map::{self, WriteMap};

/// A file of the client's that it fills and kdbusd reads from.
#[derive(Debug)]
pub(super) struct Staging {
    file: OwnedFd,
    map: WriteMap,
    known: Cell<bool>,
}

impl Staging {
    /// A file with room for `len` bytes, all of it in place.
    pub(super) fn new(len: u64) -> Result<Self, Errno> {
        let page = rustix::param::page_size() as u64;
        let len = len.max(1).checked_next_multiple_of(page).ok_or(Errno::NOMEM)?;
        let file = map::create(c"kdbus-staging", len)?;
        let map = WriteMap::new(&file, len, true)?;
        Ok(Self { file, map, known: Cell::new(false) })
    }

    /// Bytes that fit.
    pub(super) const fn len(&self) -> u64 {
        self.map.len()
    }

    /// Puts `parts` one after another at the start. `ENOBUFS` if they do not fit.
    pub(super) fn fill(&mut self, parts: &[&[u8]]) -> Result<(), Errno> {
        let mut at = 0;
        for part in parts {
            self.map.write(at, part).map_err(|_| Errno::NOBUFS)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// The file, if kdbusd has not got it yet.
    pub(super) fn unknown(&self) -> Option<BorrowedFd<'_>> {
        (!self.known.get()).then(|| self.file.as_fd())
    }

    /// kdbusd has the file.
    pub(super) fn set_known(&self) {
        self.known.set(true);
    }
}
