//! Channels: what is measured, in which unit, and from where on that is alarming.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Channels that a pipeline has at most. A state of all of them is one message.
pub const CHANNELS_MAX: usize = 32;

/// Bytes of the longest name of a channel, which is an element of a topic.
const NAME_MAX: usize = 40;

/// Millionths in one: values are whole millionths of their unit.
const MICRO: i64 = 1_000_000;

/// One thing that is measured again and again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channel {
    /// Its name, an element of a topic.
    pub name: String,
    /// The unit of its values, for people.
    pub unit: String,
    /// It is read at every so many ticks of the sampler.
    pub every: u64,
}

impl Channel {
    /// A channel; in `name`, whatever cannot be in a topic becomes a hyphen.
    pub fn new(name: &str, unit: &str, every: u64) -> Self {
        let fits = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
        let name =
            name.chars().take(NAME_MAX).map(|letter| if fits(letter) { letter } else { '-' }).collect();
        Self { name, unit: unit.to_owned(), every: every.max(1) }
    }
}

/// A value in millionths of its unit; prints with three digits behind the point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Value(pub i64);

impl Value {
    /// The nearest value to `number` of the unit.
    pub fn from_f64(number: f64) -> Self {
        // Saturates, and takes what is no number for nothing.
        Self((number * MICRO as f64).round() as i64)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let milli = (self.0.unsigned_abs() + 500) / 1_000;
        let sign = if self.0 < 0 && milli > 0 { "-" } else { "" };
        f.pad_integral(true, "", &format!("{sign}{}.{:03}", milli / 1_000, milli % 1_000))
    }
}

impl FromStr for Value {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number: f64 = text.parse().map_err(|_| format!("'{text}' is no number"))?;
        if number.is_finite() && number.abs() < 1e12 {
            Ok(Self::from_f64(number))
        } else {
            Err(format!("'{text}' is beyond what can be measured"))
        }
    }
}

/// From where on a channel is alarming, and from where on no more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Threshold {
    /// Name of the channel.
    pub channel: String,
    /// At this value it begins to be.
    pub limit: Value,
    /// Beyond this value it ceases to be. Above the limit for a channel that alarms by falling.
    pub back: Value,
}

impl FromStr for Threshold {
    type Err = String;

    /// Reads `CHANNEL:LIMIT` or `CHANNEL:LIMIT:BACK`. Without `BACK`, an alarm ends a twentieth below its limit.
    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<_> = text.split(':').collect();
        let (channel, limit, back) = match words[..] {
            [channel, limit] => (channel, limit, None),
            [channel, limit, back] => (channel, limit, Some(back)),
            _ => return Err(format!("'{text}' is not CHANNEL:LIMIT or CHANNEL:LIMIT:BACK")),
        };
        let limit: Value = limit.parse()?;
        let back = match back {
            Some(back) => back.parse()?,
            None => Value(limit.0 - limit.0.abs() / 20),
        };
        Ok(Self { channel: channel.to_owned(), limit, back })
    }
}

impl Threshold {
    /// Whether the channel alarms now with `value`, if `was` says whether it did before.
    pub const fn is_alarming(&self, value: Value, was: bool) -> bool {
        let bound = if was { self.back.0 } else { self.limit.0 };
        let falls = self.back.0 > self.limit.0;
        match (falls, was) {
            (false, false) => value.0 >= bound,
            (false, true) => value.0 > bound,
            (true, false) => value.0 <= bound,
            (true, true) => value.0 < bound,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_and_written_with_three_digits() {
        for (text, value, shown) in
            [("1.5", 1_500_000, "1.500"), ("-0.0004", -400, "0.000"), ("-2", -2_000_000, "-2.000")]
        {
            let read: Value = text.parse().unwrap();
            assert_eq!((read, read.to_string().as_str()), (Value(value), shown));
        }
        assert!("warm".parse::<Value>().is_err() && "1e300".parse::<Value>().is_err());
        assert!("NaN".parse::<Value>().is_err());
    }

    #[test]
    fn an_alarm_ends_where_it_is_said_to() {
        let rising: Threshold = "cpu:80:60".parse().unwrap();
        let at = |value, was| rising.is_alarming(Value(value * MICRO), was);
        assert_eq!([at(79, false), at(80, false), at(61, true), at(60, true)], [false, true, true, false]);
        let falling: Threshold = "volts:11:12".parse().unwrap();
        let at = |value, was| falling.is_alarming(Value(value * MICRO), was);
        assert_eq!([at(12, false), at(11, false), at(11, true), at(12, true)], [false, true, true, false]);
        assert_eq!("cpu:80".parse::<Threshold>().unwrap().back, Value(76 * MICRO));
        assert_eq!("cold:-10".parse::<Threshold>().unwrap().back, Value(-10_500_000));
    }

    #[test]
    fn what_is_no_threshold_is_refused() {
        for text in ["cpu", "cpu:", "cpu:x", "cpu:1:y", "cpu:1:2:3"] {
            assert!(text.parse::<Threshold>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_name_fits_into_a_topic() {
        let name = Channel::new("hwmon0 Core 0.1/\u{b0}", "\u{b0}C", 0).name;
        assert_eq!(name, "hwmon0-Core-0-1--");
        assert!(kdbus_core::client::Topic::parse(&name).is_ok());
    }
}
