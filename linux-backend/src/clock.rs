//! Sleeping on the bus' clock.

use kdbus_core::Instant;
use kdbus_core::abi::Errno;
use kdbus_core::client::Failure;
use rustix::thread::{ClockId, clock_nanosleep_absolute};
use rustix::time::Timespec;

/// Sleeps until the monotonic clock shows `until`; goes on after signals. An absolute time: what was late once
/// does not make everything after it late.
pub(crate) fn sleep(until: Instant) -> Result<(), Failure> {
    let ns = until.as_nanos();
    let time = Timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: (ns % 1_000_000_000) as _,
    };
    loop {
        match clock_nanosleep_absolute(ClockId::Monotonic, &time) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                return Err(Failure::Refused(
                    Errno::from_raw(error.raw_os_error() as u32).unwrap_or(Errno::EIO),
                ));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_has_passed_is_not_waited_for() {
        assert_eq!(sleep(Instant::ZERO), Ok(()));
    }
}
