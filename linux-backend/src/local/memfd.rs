//! Payloads in memory files, which are passed instead of copied.

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::SealFlags;
use rustix::io::{Errno, retry_on_intr};

/// A memory file that is still being written.
///
/// ```
/// use kdbus_linux::local::PayloadFile;
/// let mut file = PayloadFile::new(6)?;
/// file.write(0, b"payload")?;
/// let sealed = file.seal()?;
/// assert_eq!(sealed.len(), 7);
/// # Ok::<(), rustix::io::Errno>(())
/// ```
#[derive(Debug)]
pub struct PayloadFile {
    file: OwnedFd,
    len: u64,
}

/// A memory file that nobody can change any more: the payload of a `PAYLOAD_MEMFD` item.
#[derive(Debug)]
pub struct SealedMemfd {
    file: OwnedFd,
    len: u64,
}

impl PayloadFile {
    /// An empty file of `len` zero bytes. It grows when something is written behind its end.
    ///
    /// # Errors
    ///
    /// What `memfd_create` and `ftruncate` report.
    pub fn new(len: u64) -> Result<Self, Errno> {
        let file = create()?;
        retry_on_intr(|| rustix::fs::ftruncate(&file, len))?;
        Ok(Self { file, len })
    }

    /// Writes `bytes` at `offset`, with one copy.
    ///
    /// # Errors
    ///
    /// What `pwrite` reports; what was written until then stays.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Errno> {
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let written = retry_on_intr(|| rustix::io::pwrite(&self.file, rest, at))?;
            if written == 0 {
                return Err(Errno::NOSPC);
            }
            rest = rest.get(written..).unwrap_or_default();
            at += written as u64;
            self.len = self.len.max(at);
        }
        Ok(())
    }

    /// Closes the file for any change, for good.
    ///
    /// # Errors
    ///
    /// `EBUSY` while something maps it writable; what else `fcntl` reports.
    pub fn seal(self) -> Result<SealedMemfd, Errno> {
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&self.file, seals)?;
        Ok(SealedMemfd { file: self.file, len: self.len })
    }

    /// Bytes.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl SealedMemfd {
    /// A sealed file that holds `bytes`, with one copy.
    ///
    /// # Errors
    ///
    /// What the system calls report that make, write and seal it.
    pub fn new(bytes: &[u8]) -> Result<Self, Errno> {
        let mut file = PayloadFile::new(0)?;
        file.write(0, bytes)?;
        file.seal()
    }

    /// Bytes; never 0 in a message.
    #[must_use]
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl AsFd for PayloadFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsFd for SealedMemfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl From<SealedMemfd> for OwnedFd {
    fn from(memfd: SealedMemfd) -> Self {
        memfd.file
    }
}

#[cfg(feature = "std")]
fn create() -> Result<OwnedFd, Errno> {
    let options = memfd::MemfdOptions::new().allow_sealing(true).close_on_exec(true);
    match options.create("kdbus-payload") {
        Ok(file) => Ok(file.into_file().into()),
        Err(memfd::Error::Create(error)) => Err(Errno::from_io_error(&error).unwrap_or(Errno::IO)),
        Err(_) => Err(Errno::IO),
    }
}

#[cfg(not(feature = "std"))]
fn create() -> Result<OwnedFd, Errno> {
    super::map::create(c"kdbus-payload", 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_file_keeps_its_bytes() {
        let memfd = SealedMemfd::new(b"payload").unwrap();
        assert_eq!(rustix::io::pwrite(&memfd, b"x", 0), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&memfd, 3), Err(Errno::PERM));
        let seals = rustix::fs::fcntl_get_seals(&memfd).unwrap();
        assert!(seals.contains(SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL));
        let mut read = [0; 9];
        assert_eq!(rustix::io::pread(&memfd, &mut read, 0), Ok(7));
        assert_eq!(&read[..7], b"payload");
    }

    #[test]
    fn a_file_is_as_long_as_it_was_made_or_written() {
        let mut file = PayloadFile::new(4).unwrap();
        file.write(1, b"ab").unwrap();
        assert_eq!(file.len(), 4);
        file.write(3, b"cd").unwrap();
        assert_eq!(file.len(), 5);
        let sealed = file.seal().unwrap();
        assert_eq!((sealed.len(), rustix::fs::fstat(&sealed).unwrap().st_size), (5, 5));
    }
}
