//! A published slice of the pool, given back when its holder drops it.

use core::fmt;
use core::mem;
use core::ops::Deref;

use super::transport::Transport;

/// The bytes of a published slice; dropping it frees the slice.
pub(super) struct Slice<'c, T: Transport + 'c> {
    // Dropped first: a transport may not give a slice back while its bytes are borrowed.
    bytes: T::Slice<'c>,
    lease: Lease<'c, T>,
}

struct Lease<'c, T: Transport> {
    transport: &'c T,
    offset: u64,
}

impl<T: Transport> Drop for Lease<'_, T> {
    fn drop(&mut self) {
        self.transport.free(self.offset);
    }
}

impl<'c, T: Transport> Slice<'c, T> {
    /// Takes the slice over, or frees it if the range is not in the pool.
    pub(super) fn new(transport: &'c T, offset: u64, size: u64) -> Option<Self> {
        let lease = Lease { transport, offset };
        Some(Self { bytes: transport.slice(offset, size)?, lease })
    }

    /// Forgets the slice without freeing it.
    pub(super) fn keep(self) {
        let Self { bytes, lease } = self;
        drop(bytes);
        // The lease is a reference and a number; freeing the slice is all that its drop does.
        mem::forget(lease);
    }
}

impl<T: Transport> Deref for Slice<'_, T> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl<T: Transport> fmt::Debug for Slice<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slice({}, {} bytes)", self.lease.offset, self.len())
    }
}
