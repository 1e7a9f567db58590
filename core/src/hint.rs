//! Which way a program mostly goes: the compiler lays the other one out of it, so that what runs for each message lies together.
//!
//! With the feature `hints`, which `kdbus-linux` turns on for its lanes; without it, none of this says anything, because a program
//! that has to be small is laid out as it is smallest.

/// Says that the way that leads here is rarely taken.
#[cfg_attr(feature = "hints", cold)]
#[cfg_attr(not(feature = "hints"), inline(always))]
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
