//! Framing: the checks that every command and message passes before anything else happens.

use core::fmt;

use super::cmd::{Arity, CMD_MAX_SIZE, Shape};
use super::item::{ItemError, ItemType, Items};
use super::{Errno, FLAG_NEGOTIATE};

/// Why an argument was refused before its command was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum FrameError {
    /// The argument ends before its size says so.
    Unreadable,
    /// `size` is below the record's.
    TooSmall,
    /// `size` is above [`CMD_MAX_SIZE`].
    TooLarge,
    /// These bits of `flags` are unknown.
    Flags(u64),
    /// An item is wrong.
    Item(ItemError),
}

impl FrameError {
    /// The code that every transport reports for this refusal.
    #[must_use]
    pub const fn errno(self) -> Errno {
        match self {
            Self::Unreadable => Errno::EFAULT,
            Self::TooLarge => Errno::EMSGSIZE,
            Self::TooSmall | Self::Flags(_) => Errno::EINVAL,
            Self::Item(error) => error.errno(),
        }
    }
}

impl From<ItemError> for FrameError {
    fn from(error: ItemError) -> Self {
        Self::Item(error)
    }
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreadable => f.write_str("argument ends before its size says so"),
            Self::TooSmall => f.write_str("size is smaller than the command's record"),
            Self::TooLarge => write!(f, "size is larger than {CMD_MAX_SIZE}"),
            Self::Flags(bits) => write!(f, "unknown flags {bits:#x}"),
            Self::Item(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for FrameError {}

/// An argument that passed its framing.
#[derive(Debug)]
pub struct Frame<'a> {
    /// The argument, record and items, cut to its size.
    pub bytes: &'a mut [u8],
    /// Its flags, without the negotiation bit.
    pub flags: u64,
    /// The caller only asked which flags and items are known: answer 0 and do nothing.
    pub negotiate: bool,
    record: usize,
}

impl<'a> Frame<'a> {
    /// Checks `arg` against `shape` and answers negotiation in place. Cost: one pass over the items.
    ///
    /// `arg` is everything the caller made readable; what lies behind the argument's own size is not
    /// looked at. `return_flags` is zeroed as soon as the size is known to be good, so a later failure
    /// leaves it 0; while negotiating it stays untouched unless `zero_on_negotiate`.
    ///
    /// # Errors
    ///
    /// [`FrameError`], for the first check that fails. Negotiated flags are written back even if a
    /// mandatory item is missing, which is not looked at then.
    pub fn check(arg: &'a mut [u8], shape: &Shape, zero_on_negotiate: bool) -> Result<Self, FrameError> {
        Self::check_known(arg, shape, zero_on_negotiate)
    }

    /// As [`check`](Self::check), made for the one shape that the caller has.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    #[inline(always)]
    pub(crate) fn check_known(
        arg: &'a mut [u8],
        shape: &Shape,
        zero_on_negotiate: bool,
    ) -> Result<Self, FrameError> {
        let size = u64::from_ne_bytes(*arg.first_chunk().ok_or(FrameError::Unreadable)?);
        if size < shape.size as u64 {
            return Err(FrameError::TooSmall);
        }
        if size > CMD_MAX_SIZE as u64 {
            return Err(FrameError::TooLarge);
        }
        let bytes = arg.get_mut(..size as usize).ok_or(FrameError::Unreadable)?;
        let flags = word(bytes, 8);
        let negotiate = flags & FLAG_NEGOTIATE != 0;
        if shape.returns_flags && (!negotiate || zero_on_negotiate) {
            put_word(bytes, 16, 0);
        }
        let flags = flags & !FLAG_NEGOTIATE;
        if flags & !shape.flags != 0 {
            return Err(FrameError::Flags(flags & !shape.flags));
        }
        let (seen, probe) = check_items(&bytes[shape.size..], shape)?;
        if negotiate {
            put_word(bytes, 8, shape.flags);
        }
        if let Some((start, count)) = probe {
            for entry in 0..count {
                let at = shape.size + start + 8 * entry;
                if shape.arity(ItemType(word(bytes, at))).is_none() {
                    put_word(bytes, at, 0);
                }
            }
        }
        if !negotiate && let Some(kind) = shape.missing(seen) {
            return Err(ItemError::Missing(kind).into());
        }
        Ok(Self { bytes, flags, negotiate, record: shape.size })
    }

    /// Whether there are no items.
    #[inline]
    #[must_use]
    pub(crate) fn is_bare(&self) -> bool {
        self.bytes.len() == self.record
    }

    /// The items, all known to be well formed.
    pub fn items(&self) -> impl Iterator<Item = super::Item<'_>> + Clone {
        Items::new(&self.bytes[self.record..]).filter_map(Result::ok)
    }

    /// The last item of `kind`.
    #[must_use]
    pub fn item(&self, kind: ItemType) -> Option<super::Item<'_>> {
        self.items().filter(|item| item.kind == kind).last()
    }
}

/// The bit of an entry of the item table among those that were seen. No shape has as many as there are bits.
const fn bit(index: usize) -> u32 {
    1 << (index & 31)
}

/// Checks each item; returns which ones there are, by their bits, and payload offset and length, in words, of a
/// negotiation item.
#[inline(always)]
fn check_items(area: &[u8], shape: &Shape) -> Result<(u32, Option<(usize, usize)>), FrameError> {
    let mut seen = 0_u32;
    let mut probe = None;
    for item in Items::new(area) {
        let item = item?;
        let (index, arity) = shape.entry(item.kind).ok_or(ItemError::Unexpected(item.kind))?;
        item.check()?;
        if seen & bit(index) != 0 && arity != Arity::Repeated {
            return Err(ItemError::Duplicate(item.kind).into());
        }
        seen |= bit(index);
        if item.kind == ItemType::NEGOTIATE {
            probe = Some((item.at + super::item::ITEM_HEADER, item.payload.len() / 8));
        }
    }
    Ok((seen, probe))
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u64::from_ne_bytes(*word))
}

fn put_word(bytes: &mut [u8], at: usize, value: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec;

    use super::super::cmd::{Cmd, Command};
    use super::super::item::ItemWriter;
    use super::*;
    use zerocopy::IntoBytes;

    fn command(flags: u64, items: &[(ItemType, &[u8])]) -> Vec<u8> {
        let mut buffer = [0; 256];
        let mut writer = ItemWriter::behind(&mut buffer, size_of::<Cmd>()).unwrap();
        for (kind, payload) in items {
            writer.bytes(*kind, payload).unwrap();
        }
        let size = writer.len();
        let head = Cmd { size: size as u64, flags, return_flags: 0xff };
        buffer[..size_of::<Cmd>()].copy_from_slice(head.as_bytes());
        buffer[..size].to_vec()
    }

    fn check(arg: &mut [u8], command: Command) -> Result<(u64, bool), Errno> {
        let frame = Frame::check(arg, command.shape(), false).map_err(FrameError::errno)?;
        Ok((frame.flags, frame.negotiate))
    }

    #[test]
    fn sizes_are_checked_before_anything_else() {
        let mut arg = command(u64::MAX >> 1, &[]);
        arg[..8].copy_from_slice(&23_u64.to_ne_bytes());
        assert_eq!(check(&mut arg, Command::Byebye), Err(Errno::EINVAL));
        arg[..8].copy_from_slice(&32769_u64.to_ne_bytes());
        assert_eq!(check(&mut arg, Command::Byebye), Err(Errno::EMSGSIZE));
        arg[..8].copy_from_slice(&32768_u64.to_ne_bytes());
        assert_eq!(check(&mut arg, Command::Byebye), Err(Errno::EFAULT));
        assert_eq!(arg[16], 0xff, "return_flags stay until the argument is read");
    }

    #[test]
    fn return_flags_are_zeroed_on_failure_too() {
        let mut arg = command(0x10, &[]);
        assert_eq!(check(&mut arg, Command::Byebye), Err(Errno::EINVAL));
        assert_eq!(arg[16], 0);
    }

    #[test]
    fn unknown_twice_given_and_missing_items_are_refused() {
        let name: (ItemType, &[u8]) = (ItemType::NAME, b"a.b\0");
        assert_eq!(check(&mut command(0, &[name]), Command::NameAcquire), Ok((0, false)));
        assert_eq!(check(&mut command(0, &[name, name]), Command::NameAcquire), Err(Errno::EINVAL));
        assert_eq!(check(&mut command(0, &[]), Command::NameAcquire), Err(Errno::EINVAL));
        assert_eq!(check(&mut command(0, &[name]), Command::Byebye), Err(Errno::EINVAL));
    }

    #[test]
    fn negotiation_reports_flags_and_clears_unknown_item_types() {
        let kinds = [ItemType::NAME.0, 0x7777];
        let mut arg = command(FLAG_NEGOTIATE, &[(ItemType::NEGOTIATE, kinds.as_bytes())]);
        assert_eq!(check(&mut arg, Command::NameAcquire), Ok((0, true)));
        assert_eq!(word(&arg, 8), 7);
        assert_eq!((word(&arg, 40), word(&arg, 48)), (ItemType::NAME.0, 0));
        let mut arg = command(FLAG_NEGOTIATE | 1 << 40, &[]);
        assert_eq!(check(&mut arg, Command::NameAcquire), Err(Errno::EINVAL));
    }
}
