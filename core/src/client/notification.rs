//! What the bus itself announces.

use core::fmt;

use crate::abi::{HelloFlags, IdChange, Item, ItemType, NameFlags};

/// An announcement of the bus.
///
/// Name and id changes come to whoever has a match for them; the two reply kinds only to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum Notification<'a> {
    /// A name got its first owner.
    NameAdd {
        /// The name.
        name: &'a str,
        /// Its owner.
        owner: u64,
        /// How it is held.
        flags: NameFlags,
    },
    /// A name lost its last owner.
    NameRemove {
        /// The name.
        name: &'a str,
        /// Its former owner.
        owner: u64,
        /// How it was held.
        flags: NameFlags,
    },
    /// A name moved to another connection.
    NameChange {
        /// The name.
        name: &'a str,
        /// Its former owner.
        old: u64,
        /// How it was held.
        old_flags: NameFlags,
        /// Its owner now.
        new: u64,
        /// How it is held now.
        new_flags: NameFlags,
    },
    /// A connection appeared.
    IdAdd {
        /// The connection.
        id: u64,
        /// What it is.
        flags: HelloFlags,
    },
    /// A connection vanished.
    IdRemove {
        /// The connection.
        id: u64,
        /// What it was.
        flags: HelloFlags,
    },
    /// An awaited reply did not come in time.
    ReplyTimeout {
        /// Cookie of the call.
        cookie: u64,
    },
    /// An awaited reply can never come.
    ReplyDead {
        /// Cookie of the call.
        cookie: u64,
    },
}

impl<'a> Notification<'a> {
    /// Reads the notification item of a message that answers `cookie`; `None` for any other item.
    pub(super) fn from_item(item: &Item<'a>, cookie: u64) -> Option<Self> {
        match item.kind {
            ItemType::REPLY_TIMEOUT => return Some(Self::ReplyTimeout { cookie }),
            ItemType::REPLY_DEAD => return Some(Self::ReplyDead { cookie }),
            ItemType::ID_ADD | ItemType::ID_REMOVE => {
                let IdChange { id, flags } = item.record()?;
                let flags = HelloFlags::from_bits_retain(flags);
                let added = item.kind == ItemType::ID_ADD;
                return Some(if added { Self::IdAdd { id, flags } } else { Self::IdRemove { id, flags } });
            }
            ItemType::NAME_ADD | ItemType::NAME_REMOVE | ItemType::NAME_CHANGE => {}
            _ => return None,
        }
        let (old, new, name) = item.name_change()?;
        let name = core::str::from_utf8(name).ok()?;
        let flags = |side: IdChange| NameFlags::from_bits_retain(side.flags);
        Some(match item.kind {
            ItemType::NAME_ADD => Self::NameAdd { name, owner: new.id, flags: flags(new) },
            ItemType::NAME_REMOVE => Self::NameRemove { name, owner: old.id, flags: flags(old) },
            _ => Self::NameChange {
                name,
                old: old.id,
                old_flags: flags(old),
                new: new.id,
                new_flags: flags(new),
            },
        })
    }
}

impl fmt::Display for Notification<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NameAdd { name, owner, .. } => write!(f, "{name} appeared at {owner}"),
            Self::NameRemove { name, owner, .. } => write!(f, "{name} vanished from {owner}"),
            Self::NameChange { name, old, new, .. } => write!(f, "{name} moved from {old} to {new}"),
            Self::IdAdd { id, .. } => write!(f, "{id} connected"),
            Self::IdRemove { id, .. } => write!(f, "{id} disconnected"),
            Self::ReplyTimeout { cookie } => write!(f, "call {cookie} timed out"),
            Self::ReplyDead { cookie } => write!(f, "call {cookie} can never be answered"),
        }
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    fn item(kind: ItemType, payload: &[u8]) -> Item<'_> {
        Item { kind, payload, at: 0 }
    }

    #[test]
    fn each_side_of_a_name_change_is_told() {
        let mut payload = [0; 36];
        let sides = [IdChange { id: 5, flags: 0x20 }, IdChange { id: 6, flags: 0x30 }];
        payload[..32].copy_from_slice(sides.as_bytes());
        payload[32..].copy_from_slice(b"a.b\0");
        let read = |kind| Notification::from_item(&item(kind, &payload), 0);
        let (old_flags, new_flags) = (NameFlags::PRIMARY, NameFlags::PRIMARY | NameFlags::ACTIVATOR);
        let change = Notification::NameChange { name: "a.b", old: 5, old_flags, new: 6, new_flags };
        assert_eq!(read(ItemType::NAME_CHANGE), Some(change));
        let add = Notification::NameAdd { name: "a.b", owner: 6, flags: new_flags };
        assert_eq!(read(ItemType::NAME_ADD), Some(add));
        let remove = Notification::NameRemove { name: "a.b", owner: 5, flags: old_flags };
        assert_eq!(read(ItemType::NAME_REMOVE), Some(remove));
    }

    #[test]
    fn malformed_and_foreign_items_are_no_notification() {
        assert_eq!(Notification::from_item(&item(ItemType::ID_ADD, &[0; 15]), 0), None);
        assert_eq!(Notification::from_item(&item(ItemType::NAME_ADD, &[0; 31]), 0), None);
        assert_eq!(Notification::from_item(&item(ItemType::NAME_ADD, &[1; 34]), 0), None);
        assert_eq!(Notification::from_item(&item(ItemType::TIMESTAMP, &[0; 24]), 0), None);
        let dead = Notification::from_item(&item(ItemType::REPLY_DEAD, &[]), 9);
        assert_eq!(dead, Some(Notification::ReplyDead { cookie: 9 }));
    }
}
