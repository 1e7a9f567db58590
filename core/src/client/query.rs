//! Questions to the bus: who is there, who is that, who made the bus.

use core::fmt;

use super::connection::Connection;
use super::encode::Buffer;
use super::error::QueryError;
use super::metadata::Metadata;
use super::slice::Slice;
use super::transport::Transport;
use crate::abi::{
    AttachFlags, CmdInfo, CmdList, Command, HelloFlags, ITEM_HEADER, Info, ItemType, ItemWriter, ListFlags,
    align8,
};
use crate::{WELL_KNOWN_NAME_MAX, WellKnownName};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of the longest question.
const INFO_COMMAND: usize = size_of::<CmdInfo>() + ITEM_HEADER + WELL_KNOWN_NAME_MAX + 1;

impl<T: Transport, const CALLS: usize, const INBOX: usize> Connection<T, CALLS, INBOX> {
    /// Lists connections and names as they are at this moment. Cost: all connections of the bus.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn list(&self, flags: ListFlags) -> Result<Listing<'_, T>, QueryError> {
        let mut arg =
            CmdList { size: size_of::<CmdList>() as u64, flags: flags.bits(), ..CmdList::default() };
        self.link.transport.command(Command::List, arg.as_mut_bytes())?;
        if arg.list_size == 0 {
            return Ok(Listing { slice: None });
        }
        let slice =
            Slice::new(&self.link.transport, arg.offset, arg.list_size).ok_or(QueryError::Malformed)?;
        Ok(Listing { slice: Some(slice) })
    }

    /// What the bus knows of a connection, as far as that one gives `metadata` out.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn conn_info(&self, id: u64, metadata: AttachFlags) -> Result<PeerInfo<'_, T>, QueryError> {
        self.info(Command::ConnInfo, id, None, metadata)
    }

    /// What the bus knows of the owner of a name, or of its activator.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn name_info(
        &self,
        name: WellKnownName<'_>,
        metadata: AttachFlags,
    ) -> Result<PeerInfo<'_, T>, QueryError> {
        self.info(Command::ConnInfo, 0, Some(name), metadata)
    }

    /// The bus' name, and what its creator gave out about himself.
    ///
    /// # Errors
    ///
    /// [`QueryError`].
    pub fn creator_info(&self, metadata: AttachFlags) -> Result<PeerInfo<'_, T>, QueryError> {
        self.info(Command::BusCreatorInfo, 0, None, metadata)
    }

    fn info(
        &self,
        command: Command,
        id: u64,
        name: Option<WellKnownName<'_>>,
        metadata: AttachFlags,
    ) -> Result<PeerInfo<'_, T>, QueryError> {
        let mut buffer = Buffer::<INFO_COMMAND>::zeroed();
        let mut items =
            ItemWriter::behind(&mut buffer.0, size_of::<CmdInfo>()).map_err(|_| QueryError::Invalid)?;
        if let Some(name) = name {
            items.c_str(ItemType::NAME, name.as_str()).map_err(|_| QueryError::Invalid)?;
        }
        let size = items.len();
        let head = CmdInfo { size: size as u64, id, attach_flags: metadata.bits(), ..CmdInfo::default() };
        buffer.0[..size_of::<CmdInfo>()].copy_from_slice(head.as_bytes());
        self.link.transport.command(command, &mut buffer.0[..size])?;
        let (answer, _) = CmdInfo::read_from_prefix(&buffer.0).map_err(|_| QueryError::Malformed)?;
        let slice =
            Slice::new(&self.link.transport, answer.offset, answer.info_size).ok_or(QueryError::Malformed)?;
        let (head, end) = record(&slice).ok_or(QueryError::Malformed)?;
        Ok(PeerInfo { head, end, slice })
    }
}

/// What the bus told about one connection, or about itself. It lies in the pool until it is dropped.
pub struct PeerInfo<'c, T: Transport + 'c> {
    head: Info,
    end: usize,
    slice: Slice<'c, T>,
}

impl<T: Transport> PeerInfo<'_, T> {
    /// The connection's id; of the creator, the id of the bus.
    #[must_use]
    pub const fn id(&self) -> u64 {
        self.head.id
    }

    /// What the connection is; meaningless of the creator.
    #[must_use]
    pub const fn flags(&self) -> HelloFlags {
        HelloFlags::from_bits_retain(self.head.flags)
    }

    /// The metadata that was asked for and is given out.
    #[must_use]
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(self.slice.get(size_of::<Info>()..self.end).unwrap_or_default())
    }
}

impl<T: Transport> fmt::Debug for PeerInfo<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerInfo").field("id", &self.id()).field("metadata", &self.metadata()).finish()
    }
}

/// The connections and names of a bus at one moment. It lies in the pool until it is dropped.
pub struct Listing<'c, T: Transport + 'c> {
    slice: Option<Slice<'c, T>>,
}

/// One line of a listing: a connection, with one of its names unless it has none.
#[derive(Clone, Debug)]
pub struct Peer<'a> {
    /// The connection.
    pub id: u64,
    /// What it is.
    pub flags: HelloFlags,
    /// The listed name is the only item of [`names`](Metadata::names).
    pub metadata: Metadata<'a>,
}

impl<T: Transport> Listing<'_, T> {
    /// The lines, in no order; ends at the first that does not hold together.
    pub fn iter(&self) -> impl Iterator<Item = Peer<'_>> {
        let mut rest: &[u8] = self.slice.as_deref().unwrap_or_default();
        core::iter::from_fn(move || {
            let (head, end) = record(rest)?;
            let metadata = Metadata::new(rest.get(size_of::<Info>()..end)?);
            rest = rest.get(align8(end as u64) as usize..).unwrap_or_default();
            Some(Peer { id: head.id, flags: HelloFlags::from_bits_retain(head.flags), metadata })
        })
    }
}

impl<T: Transport> fmt::Debug for Listing<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The record at the start of `bytes` and where it ends.
fn record(bytes: &[u8]) -> Option<(Info, usize)> {
    let (head, _) = Info::read_from_prefix(bytes).ok()?;
    let end = usize::try_from(head.size).ok()?;
    (end >= size_of::<Info>() && end <= bytes.len()).then_some((head, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_that_do_not_hold_together_are_not_believed() {
        let bytes = |size| {
            let mut bytes = [0; 48];
            bytes[..24].copy_from_slice(Info { size, id: 3, flags: 0 }.as_bytes());
            bytes
        };
        assert_eq!(record(&bytes(24)).map(|(head, end)| (head.id, end)), Some((3, 24)));
        assert_eq!(record(&bytes(48)).map(|(_, end)| end), Some(48));
        for size in [0, 23, 49, u64::MAX] {
            assert!(record(&bytes(size)).is_none());
        }
        assert!(record(&bytes(24)[..23]).is_none());
    }
}
