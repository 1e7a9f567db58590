//! Which way a program mostly goes: the compiler lays the other one out of it, so that what runs for each message lies together.

/// Says that the way that leads here is rarely taken.
#[cold]
pub const fn cold() {}

/// `condition`, which mostly holds.
#[inline(always)]
#[must_use]
pub const fn likely(condition: bool) -> bool {
    if !condition {
        cold();
    }
    condition
}

/// `condition`, which rarely holds.
#[inline(always)]
#[must_use]
pub const fn unlikely(condition: bool) -> bool {
    if condition {
        cold();
    }
    condition
}
