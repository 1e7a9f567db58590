//! What is published.

use kdbus_core::Instant;
use zerocopy::{Immutable, IntoBytes};

/// One reading, as it stands in signals and answers: numbers in the byte order of the machine.
#[derive(Clone, Copy, IntoBytes, Immutable)]
#[repr(C)]
pub(crate) struct Reading {
    /// Nanoseconds on the bus' clock, read before the sensor was.
    pub(crate) at_ns: u64,
    /// Thousandths of the unit of the sensor.
    pub(crate) value: i64,
    /// Counts up from 0.
    pub(crate) sequence: u32,
    /// [`Kind`] as a number.
    kind: u32,
}

/// What a sensor measures.
#[derive(Clone, Copy, defmt::Format)]
pub(crate) enum Kind {
    /// Thousandths of a degree Celsius.
    Temperature = 1,
    /// Thousandths of a percent of time in which something waited for a processor, over ten seconds.
    Pressure = 2,
    /// Milliseconds since the machine started: there is no sensor.
    Uptime = 3,
}

impl Kind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::Pressure => "pressure",
            Self::Uptime => "uptime",
        }
    }
}

impl Reading {
    pub(crate) const fn new(at: Instant, sequence: u32, kind: Kind, value: i64) -> Self {
        Self { at_ns: at.as_nanos(), value, sequence, kind: kind as u32 }
    }
}
