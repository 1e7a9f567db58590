//! Sensors of the machine: a temperature, the pressure on its processors, or the time it has been up.

use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::time::ClockId;

use crate::reading::Kind;

/// Devices of a class that are tried, by their number.
const DEVICES: &str = "0123456789";

/// Where a reading comes from.
pub(crate) enum Sensor {
    /// A file with one number in thousandths.
    Temperature(OwnedFd),
    /// The file of the kernel's pressure figures.
    Pressure(OwnedFd),
    /// The clock.
    Uptime,
}

impl Sensor {
    /// The first sensor that gives a reading.
    pub(crate) fn find() -> Self {
        let devices = |before, after| (0..DEVICES.len()).filter_map(move |index| open(before, index, after));
        let mut temperatures = devices("/sys/class/thermal/thermal_zone", "/temp")
            .chain(devices("/sys/class/hwmon/hwmon", "/temp1_input"))
            .map(Self::Temperature);
        if let Some(sensor) = temperatures.find(|sensor| sensor.read().is_ok()) {
            return sensor;
        }
        let pressure = rustix::fs::open("/proc/pressure/cpu", FLAGS, Mode::empty()).map(Self::Pressure);
        pressure.ok().filter(|sensor| sensor.read().is_ok()).unwrap_or(Self::Uptime)
    }

    pub(crate) const fn kind(&self) -> Kind {
        match self {
            Self::Temperature(_) => Kind::Temperature,
            Self::Pressure(_) => Kind::Pressure,
            Self::Uptime => Kind::Uptime,
        }
    }

    /// Reads it once, in thousandths.
    pub(crate) fn read(&self) -> Result<i64, Errno> {
        let mut text = [0; 64];
        match self {
            Self::Temperature(file) => thousandths(file, &mut text, b""),
            Self::Pressure(file) => thousandths(file, &mut text, b"some avg10="),
            Self::Uptime => {
                let now = rustix::time::clock_gettime(ClockId::Boottime);
                Ok(now.tv_sec * 1000 + now.tv_nsec / 1_000_000)
            }
        }
    }
}

const FLAGS: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

fn open(before: &str, index: usize, after: &str) -> Option<OwnedFd> {
    let mut path = heapless::String::<64>::new();
    for part in [before, DEVICES.get(index..=index)?, after] {
        path.push_str(part).ok()?;
    }
    rustix::fs::open(path.as_str(), FLAGS, Mode::empty()).ok()
}

/// The number behind `label` at the start of a file: whole thousandths, or hundredths behind a point.
fn thousandths(file: &OwnedFd, text: &mut [u8; 64], label: &[u8]) -> Result<i64, Errno> {
    let len = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut *text, 0))?;
    let number = text.get(..len).and_then(|text| text.strip_prefix(label)).ok_or(Errno::INVAL)?;
    let (mut value, mut sign, mut behind_point) = (None, 1, None);
    for byte in number {
        match byte {
            b'0'..=b'9' => {
                // Wraps for what is no sensor's reading.
                value = Some(value.unwrap_or(0_i64).wrapping_mul(10).wrapping_add(i64::from(byte - b'0')));
                behind_point = behind_point.map(|digits: u32| digits + 1);
            }
            b'-' if value.is_none() => sign = -1,
            b'.' if behind_point.is_none() => behind_point = Some(0),
            _ => break,
        }
    }
    let scale = match behind_point {
        None => 1,
        Some(2) => 10,
        Some(_) => return Err(Errno::INVAL),
    };
    value.map(|value| value.wrapping_mul(sign * scale)).ok_or(Errno::INVAL)
}
