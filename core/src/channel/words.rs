//! Access to words that another process may read and write.

use core::sync::atomic::Ordering;

/// A run of 64-bit words that several processes or threads share.
///
/// Everything in this module touches shared memory through this trait alone. A simulator can stop or kill a
/// peer in any of these methods, and a model checker can put its own atomics behind them. The orderings are
/// those of [`core::sync::atomic`].
///
/// An implementation upholds:
/// - *Length*: [`count`](Self::count) never changes.
/// - *Bounds*: an index at or above the count reads as 0 and writes nothing; nothing panics.
pub trait Words {
    /// Number of words.
    fn count(&self) -> usize;

    /// The word at `index`; acquires what was written before it was stored.
    fn load(&self, index: usize) -> u64;

    /// Stores `value` at `index`; releases what was written before.
    fn store(&self, index: usize, value: u64);

    /// Stores `value` at `index` and returns the word before, acquiring and releasing.
    fn swap(&self, index: usize, value: u64) -> u64;

    /// Sets the bits of `bits` at `index` and returns the word before, acquiring and releasing.
    fn set_bits(&self, index: usize, bits: u64) -> u64;

    /// Stores `new` at `index` if the word there is `expected`, acquiring and releasing. True if so. With
    /// [`load_after_replace`](Self::load_after_replace), it stands in the order of [fences](Self::fence).
    fn replace(&self, index: usize, expected: u64, new: u64) -> bool;

    /// The word at `index`, as if there were a [fence](Self::fence) between a [`replace`](Self::replace) before and this. Where
    /// both stand in one order that all threads agree on, this takes no fence.
    fn load_after_replace(&self, index: usize) -> u64 {
        self.fence();
        self.load(index)
    }

    /// Stores each of `words` from `index` on, as [`store`](Self::store) does. They all lie inside: whether any is stored where one
    /// does not is left open, so that one check may serve all.
    fn store_all<const N: usize>(&self, index: usize, words: [u64; N])
    where
        Self: Sized,
    {
        for (at, word) in words.into_iter().enumerate() {
            self.store(index + at, word);
        }
    }

    /// Stores words from `index` on, in native byte order and in no order among them. Those beyond the end are
    /// left out.
    fn store_run(&self, index: usize, words: &[[u8; 8]]) {
        for (at, word) in words.iter().enumerate() {
            self.store(index + at, u64::from_ne_bytes(*word));
        }
    }

    /// Loads words from `index` on, each once and in no order among them.
    fn load_run(&self, index: usize, words: &mut [u64]) {
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.load(index + at);
        }
    }

    /// A hint that `count` words from `index` on are loaded soon: their cache lines may be fetched meanwhile.
    fn prefetch(&self, index: usize, count: usize) {
        let _ = (index, count);
    }

    /// The same of words that are stored to: their cache lines may be taken from whoever has them.
    fn prefetch_to_store(&self, index: usize, count: usize) {
        let _ = (index, count);
    }

    /// A fence between everything before and everything after, in one order that all threads agree on.
    fn fence(&self) {
        core::sync::atomic::fence(Ordering::SeqCst);
    }
}

impl<T: Words + ?Sized> Words for &T {
    #[inline]
    fn count(&self) -> usize {
        T::count(self)
    }

    #[inline]
    fn load(&self, index: usize) -> u64 {
        T::load(self, index)
    }

    #[inline]
    fn store(&self, index: usize, value: u64) {
        T::store(self, index, value);
    }

    #[inline]
    fn swap(&self, index: usize, value: u64) -> u64 {
        T::swap(self, index, value)
    }

    #[inline]
    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        T::set_bits(self, index, bits)
    }

    #[inline]
    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        T::replace(self, index, expected, new)
    }

    #[inline]
    fn load_after_replace(&self, index: usize) -> u64 {
        T::load_after_replace(self, index)
    }

    #[inline]
    fn store_run(&self, index: usize, words: &[[u8; 8]]) {
        T::store_run(self, index, words);
    }

    #[inline]
    fn load_run(&self, index: usize, words: &mut [u64]) {
        T::load_run(self, index, words);
    }

    #[inline]
    fn prefetch(&self, index: usize, count: usize) {
        T::prefetch(self, index, count);
    }

    #[inline]
    fn prefetch_to_store(&self, index: usize, count: usize) {
        T::prefetch_to_store(self, index, count);
    }

    #[inline]
    fn fence(&self) {
        T::fence(self);
    }
}

// Bare-metal targets without 64-bit atomics can build the crate, and bring words of their own.
#[cfg(target_has_atomic = "64")]
impl Words for [core::sync::atomic::AtomicU64] {
    #[inline]
    fn count(&self) -> usize {
        self.len()
    }

    #[inline]
    fn load(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |word| word.load(Ordering::Acquire))
    }

    #[inline]
    fn store(&self, index: usize, value: u64) {
        if let Some(word) = self.get(index) {
            word.store(value, Ordering::Release);
        }
    }

    #[inline]
    fn swap(&self, index: usize, value: u64) -> u64 {
        self.get(index).map_or(0, |word| word.swap(value, Ordering::AcqRel))
    }

    #[inline]
    fn set_bits(&self, index: usize, bits: u64) -> u64 {
        self.get(index).map_or(0, |word| word.fetch_or(bits, Ordering::AcqRel))
    }

    #[inline]
    fn replace(&self, index: usize, expected: u64, new: u64) -> bool {
        self.get(index).is_some_and(|word| {
            word.compare_exchange(expected, new, Ordering::SeqCst, Ordering::Acquire).is_ok()
        })
    }

    #[inline]
    fn load_after_replace(&self, index: usize) -> u64 {
        self.get(index).map_or(0, |word| word.load(Ordering::SeqCst))
    }
}

#[cfg(all(test, target_has_atomic = "64"))]
mod tests {
    use core::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn words_beyond_the_end_read_as_zero_and_take_nothing() {
        let array = [AtomicU64::new(7)];
        let words: &[AtomicU64] = &array;
        words.store(1, 9);
        assert_eq!(words.set_bits(usize::MAX, 9), 0);
        assert_eq!((words.load(1), words.swap(1, 9), words.replace(1, 0, 9)), (0, 0, false));
        assert_eq!((words.count(), words.load(0)), (1, 7));
    }
}
