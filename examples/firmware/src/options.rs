//! The command line.

use core::ffi::CStr;
use core::time::Duration;

/// What the command line asks for.
pub(crate) struct Options<'a> {
    /// The bus, if not that of the environment.
    pub(crate) bus: Option<&'a str>,
    /// From one reading to the next.
    pub(crate) period: Duration,
    /// How many to publish before the end; without it, there is none.
    pub(crate) readings: Option<u32>,
    /// Where log frames go. Standard output, so that a pipe leads to the decoder.
    pub(crate) log_fd: i32,
}

impl<'a> Options<'a> {
    /// Reads `--name value` pairs; gives the first argument that makes no sense back.
    pub(crate) fn parse(mut arguments: impl Iterator<Item = &'a CStr>) -> Result<Self, &'a CStr> {
        let mut options = Self { bus: None, period: Duration::from_millis(100), readings: None, log_fd: 1 };
        while let Some(name) = arguments.next() {
            let value = arguments.next().and_then(|value| value.to_str().ok()).ok_or(name)?;
            match name.to_bytes() {
                b"--bus" => options.bus = Some(value),
                b"--period-ms" => {
                    options.period = Duration::from_millis(number(value).ok_or(name)?.max(1).into());
                }
                b"--readings" => options.readings = Some(number(value).ok_or(name)?),
                b"--log-fd" => options.log_fd = number(value).ok_or(name)?.cast_signed(),
                _ => return Err(name),
            }
        }
        Ok(options)
    }
}

/// A number below 2³¹. (`parse` knows signs and any base, and is five times as large.)
fn number(text: &str) -> Option<u32> {
    let digits = text.bytes().try_fold(0_u32, |number, digit| {
        let digit = u32::from(digit.wrapping_sub(b'0'));
        number.checked_mul(10)?.checked_add(digit).filter(|number| digit < 10 && *number <= i32::MAX as u32)
    });
    digits.filter(|_| !text.is_empty())
}
