//! Arrays in memory of the transport's own, for a program without an allocator.
#![allow(unsafe_code)]

use core::ops::{Deref, DerefMut};

use rustix::io::Errno;

use super::map::Pages;

/// An array of a length known at run time, in fresh pages that are all in place.
#[derive(Debug)]
pub(super) struct Block<T> {
    pages: Pages,
    len: usize,
    values: core::marker::PhantomData<T>,
}

impl<T> Block<T> {
    /// An array of `len` values.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for it.
    pub(super) fn new(len: usize, mut value: impl FnMut() -> T) -> Result<Self, Errno> {
        const { assert!(align_of::<T>() <= 4096) };
        let bytes = len.checked_mul(size_of::<T>()).ok_or(Errno::NOMEM)?;
        let mut block =
            Self { pages: Pages::fresh(bytes.max(1))?, len: 0, values: core::marker::PhantomData };
        while block.len < len {
            // SAFETY: `len` values fit in the pages, which are aligned for them and belong to nobody else.
            unsafe { block.pages.at(0).cast::<T>().add(block.len).write(value()) };
            block.len += 1;
        }
        Ok(block)
    }
}

impl<T> Deref for Block<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the first `len` values are initialised, and borrowed as the block is.
        unsafe { core::slice::from_raw_parts(self.pages.at(0).cast(), self.len) }
    }
}

impl<T> DerefMut for Block<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: the first `len` values are initialised, and borrowed as the block is.
        unsafe { core::slice::from_raw_parts_mut(self.pages.at(0).cast(), self.len) }
    }
}

impl<T> Drop for Block<T> {
    fn drop(&mut self) {
        let values: *mut [T] = &raw mut **self;
        // SAFETY: the values are initialised, and nobody sees them again.
        unsafe { values.drop_in_place() };
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_block_drops_what_it_holds() {
        let value = Rc::new(());
        let mut block = Block::new(1000, || Some(value.clone())).unwrap();
        assert_eq!(Rc::strong_count(&value), 1001);
        block[7] = None;
        assert_eq!(Rc::strong_count(&value), 1000);
        drop(block);
        assert_eq!(Rc::strong_count(&value), 1);
        assert!(Block::<u64>::new(0, || 1).unwrap().is_empty());
    }
}
