//! Tables of records in memory of the engine's user, with a free list.

use core::marker::PhantomData;
use core::num::NonZeroU32;
use core::ops::{Index, IndexMut};

use crate::slots::{FreeList, Slot, SlotId, Slotted};
use crate::tree::{Link, Linked};

/// A place in one kind of table. Only its table makes one, so it always lies within that table.
pub(super) trait Place: Copy + Eq {
    fn new(index: u32) -> Self;
    fn index(self) -> u32;
}

/// What a free record holds; a constant, so that tables can lie in a `static`.
pub(super) trait Blank: Sized {
    const BLANK: Self;
}

/// Declares places that cannot be taken for each other.
macro_rules! places {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
            pub(super) struct $name(NonZeroU32);

            impl $name {
                /// The first place, which every table has.
                pub(super) const FIRST: Self = Self(NonZeroU32::MIN);
            }

            impl Default for $name {
                fn default() -> Self {
                    Self::FIRST
                }
            }

            impl Place for $name {
                fn new(index: u32) -> Self {
                    // One more than the index, so that an `Option` needs no further word.
                    Self(NonZeroU32::MIN.saturating_add(index))
                }

                fn index(self) -> u32 {
                    self.0.get() - 1
                }
            }
        )*
    };
}

places! {
    /// Place of a handle.
    HandleIx;
    /// Place of a bus.
    BusIx;
    /// Place of an endpoint.
    EndpointIx;
    /// Place of a connection.
    ConnIx;
    /// Place of an accounting user.
    UserIx;
    /// Place of a match.
    MatchIx;
    /// Place of a rule in a match.
    RuleIx;
    /// Place of a block of rule bytes.
    BlockIx;
    /// Place of a file that a message carries; the first one stands for all files of the message.
    FileIx;
    /// Place of a name in a policy.
    PolicyIx;
    /// Place of an access record of such a name.
    AccessIx;
    /// Place of a synchronous call.
    CallIx;
    /// Place of a watch for room.
    WatchIx;
}

/// Room for one record of a table.
#[derive(Debug)]
pub(super) struct Record<T> {
    slot: Slot,
    pub(super) item: T,
}

impl<T: Blank> Record<T> {
    /// Room for one record.
    pub(super) const BLANK: Self = Self { slot: Slot::new(), item: T::BLANK };
}

impl<T: Blank> Default for Record<T> {
    fn default() -> Self {
        Self::BLANK
    }
}

impl<T> Slotted for Record<T> {
    fn slot(&self) -> &Slot {
        &self.slot
    }

    fn slot_mut(&mut self) -> &mut Slot {
        &mut self.slot
    }
}

impl<T: Linked<INDEX>, const INDEX: usize> Linked<INDEX> for Record<T> {
    fn link(&self) -> &Link {
        self.item.link()
    }

    fn link_mut(&mut self) -> &mut Link {
        self.item.link_mut()
    }
}

/// A table: taken slots are records, all others are free. Taking and freeing one is `O(1)`.
#[derive(Debug)]
pub(super) struct Table<'s, P, T> {
    pub(super) records: &'s mut [Record<T>],
    free: FreeList,
    place: PhantomData<P>,
}

impl<'s, P: Place, T: Blank> Table<'s, P, T> {
    /// A table of which every record is free.
    pub(super) const fn new(records: &'s mut [Record<T>]) -> Self {
        Self { records, free: FreeList::new(), place: PhantomData }
    }

    /// Takes a record; `None` if no one is free.
    pub(super) fn insert(&mut self, item: T) -> Option<P> {
        let index = self.free.allocate(self.records)?.index();
        self.records.get_mut(index as usize)?.item = item;
        Some(P::new(index))
    }

    /// Frees a record and returns what it held. Nothing happens to a record that is free.
    pub(super) fn remove(&mut self, place: P) -> Option<T> {
        let id = self.free.id_at(self.records, place.index())?;
        self.free.free(self.records, id);
        Some(core::mem::replace(&mut self.records.get_mut(place.index() as usize)?.item, T::BLANK))
    }

    /// The record that a number from outside names, if it is the one of that generation.
    pub(super) fn find(&self, index: u32, generation: u32) -> Option<P> {
        let id = self.free.id_at(self.records, index)?;
        (id.generation() == generation).then(|| P::new(index))
    }

    /// The record at that place of the table, if it is taken.
    pub(super) fn at(&self, index: u32) -> Option<P> {
        self.free.id_at(self.records, index).map(|_| P::new(index))
    }

    /// Which use of this record it is.
    pub(super) fn generation(&self, place: P) -> u32 {
        self.free.id_at(self.records, place.index()).map_or(0, SlotId::generation)
    }

    /// All records, in `O(capacity)`.
    pub(super) fn iter(&self) -> impl Iterator<Item = (P, &T)> {
        let all = self.records.iter().enumerate();
        all.filter(|(_, record)| record.slot.is_taken())
            .map(|(index, record)| (P::new(index as u32), &record.item))
    }

    /// Records in the table.
    pub(super) const fn len(&self) -> usize {
        self.free.len()
    }

    /// Records that fit at the same time.
    pub(super) const fn capacity(&self) -> u32 {
        self.records.len() as u32
    }

    /// Records that still fit.
    pub(super) const fn room(&self) -> usize {
        self.records.len() - self.free.len()
    }
}

impl<P: Place, T> Index<P> for Table<'_, P, T> {
    type Output = T;

    fn index(&self, place: P) -> &T {
        &self.records[place.index() as usize].item
    }
}

impl<P: Place, T> IndexMut<P> for Table<'_, P, T> {
    fn index_mut(&mut self, place: P) -> &mut T {
        &mut self.records[place.index() as usize].item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Blank for u8 {
        const BLANK: Self = 0;
    }

    #[test]
    fn freed_slots_are_taken_again_with_another_generation() {
        let mut records = [const { Record::BLANK }; 2];
        let mut table: Table<'_, ConnIx, u8> = Table::new(&mut records);
        let a = table.insert(1).unwrap();
        let b = table.insert(2).unwrap();
        assert_eq!(table.insert(3), None);
        let old = table.generation(a);
        assert_eq!((table.remove(a), table.remove(a)), (Some(1), None));
        assert_eq!(table.find(a.index(), old), None);
        let again = table.insert(4).unwrap();
        assert_eq!((again, table[again], table[b]), (a, 4, 2));
        assert_ne!(table.generation(a), old);
        assert_eq!(table.iter().map(|(_, item)| *item).sum::<u8>(), 6);
        assert_eq!((table.len(), table.room()), (2, 0));
    }
}
