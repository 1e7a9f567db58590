//! Well-known names and node names, checked once when they come in.

use core::fmt;

use crate::abi::Errno;

/// Bytes of the longest well-known name, its final NUL not counted.
pub const WELL_KNOWN_NAME_MAX: usize = 255;

/// Bytes of the longest bus or endpoint name and of the longest connection description.
pub const NODE_NAME_MAX: usize = 63;

/// Why a string is not a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[non_exhaustive]
pub enum NameError {
    /// The string is empty, or longer than the kind of name allows.
    Length,
    /// The string has only one element where two are needed.
    SingleElement,
    /// Two dots follow each other, or the string starts or ends with one.
    EmptyElement,
    /// An element starts with a digit.
    LeadingDigit,
    /// The byte at this position is not allowed there.
    Character(usize),
    /// A node name does not start with its creator's uid and a hyphen.
    Owner,
}

impl NameError {
    /// The code that every transport reports for this refusal of a well-known name.
    #[must_use]
    pub const fn errno(self) -> Errno {
        Errno::EINVAL
    }
}

impl fmt::Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("name is empty or too long"),
            Self::SingleElement => f.write_str("name needs at least two elements separated by dots"),
            Self::EmptyElement => f.write_str("name has an empty element"),
            Self::LeadingDigit => f.write_str("an element of the name starts with a digit"),
            Self::Character(at) => write!(f, "byte {at} of the name is not allowed there"),
            Self::Owner => f.write_str("node name has to start with its creator's uid and a hyphen"),
        }
    }
}

impl core::error::Error for NameError {}

/// A well-known name that follows the rules: `org.example.Mixer`.
///
/// Two or more elements of `A-Z a-z 0-9 _ -`, separated by single dots; no element starts with a digit;
/// at most [`WELL_KNOWN_NAME_MAX`] bytes. Names compare byte by byte.
///
/// ```
/// use kdbus_core::{NameError, WellKnownName};
/// assert_eq!(WellKnownName::parse("org.example.Mixer").unwrap().as_str(), "org.example.Mixer");
/// assert_eq!(WellKnownName::parse("Mixer"), Err(NameError::SingleElement));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct WellKnownName<'a>(&'a str);

impl<'a> WellKnownName<'a> {
    /// Checks `name`. Cost: one pass over its bytes.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the string breaks.
    pub const fn parse(name: &'a str) -> Result<Self, NameError> {
        match check(name.as_bytes(), false) {
            Ok(_) => Ok(Self(name)),
            Err(error) => Err(error),
        }
    }

    /// Checks bytes from outside, without their final NUL.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse); bytes that are not ASCII are a [`NameError::Character`].
    pub fn from_bytes(name: &'a [u8]) -> Result<Self, NameError> {
        check(name, false)?;
        text(name).map(Self)
    }

    /// The name as a string.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for WellKnownName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// A name in a policy: a well-known name, or a pattern whose last element is `*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct PolicyName<'a> {
    /// The exact name, or the pattern without its `.*`.
    pub stem: &'a str,
    /// Whether this covers every name with exactly one more element than `stem`.
    pub wildcard: bool,
}

impl<'a> PolicyName<'a> {
    /// Checks bytes from outside, without their final NUL.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the string breaks.
    pub fn from_bytes(name: &'a [u8]) -> Result<Self, NameError> {
        let wildcard = check(name, true)?;
        let stem = if wildcard { &name[..name.len() - 2] } else { name };
        Ok(Self { stem: text(stem)?, wildcard })
    }
}

fn text(name: &[u8]) -> Result<&str, NameError> {
    core::str::from_utf8(name).map_err(|error| NameError::Character(error.valid_up_to()))
}

/// Checks the syntax; true if the last element is a wildcard.
const fn check(name: &[u8], wildcard: bool) -> Result<bool, NameError> {
    if name.is_empty() || name.len() > WELL_KNOWN_NAME_MAX {
        return Err(NameError::Length);
    }
    let mut elements = 1;
    // Where the element began that `i` is in.
    let mut start = 0;
    let mut i = 0;
    while i < name.len() {
        // Almost every byte is a letter.
        if name[i].is_ascii_alphabetic() {
            i += 1;
            continue;
        }
        let at_start = i == start;
        match name[i] {
            b'.' if at_start => return Err(NameError::EmptyElement),
            b'.' => {
                elements += 1;
                start = i + 1;
            }
            b'0'..=b'9' if at_start => return Err(NameError::LeadingDigit),
            b'0'..=b'9' | b'_' | b'-' => {}
            b'*' if wildcard && at_start && elements > 1 && i + 1 == name.len() => return Ok(true),
            _ => return Err(NameError::Character(i)),
        }
        i += 1;
    }
    if start == name.len() {
        return Err(NameError::EmptyElement);
    }
    if elements < 2 { Err(NameError::SingleElement) } else { Ok(false) }
}

/// A bus name, an endpoint name or a connection description that follows the rules.
///
/// 1 to [`NODE_NAME_MAX`] bytes of `A-Z a-z 0-9 _`, with `-` and `.` also allowed except first and last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct NodeName<'a>(&'a str);

impl<'a> NodeName<'a> {
    /// Checks `name`.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the string breaks.
    pub const fn parse(name: &'a str) -> Result<Self, NameError> {
        match check_node(name.as_bytes()) {
            Ok(()) => Ok(Self(name)),
            Err(error) => Err(error),
        }
    }

    /// Checks bytes from outside, without their final NUL.
    ///
    /// # Errors
    ///
    /// As [`parse`](Self::parse).
    pub fn from_bytes(name: &'a [u8]) -> Result<Self, NameError> {
        check_node(name)?;
        text(name).map(Self)
    }

    /// The name, checked to begin with `uid` and a hyphen, as buses and custom endpoints need.
    ///
    /// # Errors
    ///
    /// [`NameError::Owner`] if it begins otherwise.
    pub fn owned_by(self, uid: u32) -> Result<Self, NameError> {
        let digits = self.0.split_once('-').ok_or(NameError::Owner)?.0;
        // A leading zero or plus sign would be another spelling of the same number.
        let canonical = digits == "0" || !(digits.starts_with('0') || digits.starts_with('+'));
        if canonical && digits.parse() == Ok(uid) { Ok(self) } else { Err(NameError::Owner) }
    }

    /// The name as a string.
    #[must_use]
    pub const fn as_str(self) -> &'a str {
        self.0
    }
}

impl fmt::Display for NodeName<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

const fn check_node(name: &[u8]) -> Result<(), NameError> {
    if name.is_empty() || name.len() > NODE_NAME_MAX {
        return Err(NameError::Length);
    }
    let mut i = 0;
    while i < name.len() {
        match name[i] {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' => {}
            b'-' | b'.' if i > 0 && i + 1 < name.len() => {}
            _ => return Err(NameError::Character(i)),
        }
        i += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::prelude::v1::*;

    use super::*;

    #[test]
    fn well_known_names_follow_the_rules() {
        for good in ["a.b", "foo.-bar", "foo._b", "-a._b", "org.example.Mixer", "a1.b2"] {
            assert_eq!(WellKnownName::parse(good).map(WellKnownName::as_str), Ok(good));
        }
        for (bad, why) in [
            ("", NameError::Length),
            ("foo", NameError::SingleElement),
            (".bla.blaz", NameError::EmptyElement),
            ("foo..b", NameError::EmptyElement),
            ("foo.b.", NameError::EmptyElement),
            ("foo.1bar", NameError::LeadingDigit),
            ("foo.bla.bl.*", NameError::Character(11)),
            ("foo.b\u{e4}", NameError::Character(5)),
        ] {
            assert_eq!(WellKnownName::parse(bad), Err(why), "{bad}");
        }
    }

    #[test]
    fn wildcards_are_whole_last_elements() {
        assert_eq!(PolicyName::from_bytes(b"a.b.*"), Ok(PolicyName { stem: "a.b", wildcard: true }));
        assert_eq!(PolicyName::from_bytes(b"a.b"), Ok(PolicyName { stem: "a.b", wildcard: false }));
        for bad in ["*", "a.*.b", "a.b*", "a.**"] {
            assert!(PolicyName::from_bytes(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn node_names_carry_their_creator() {
        let parsed = |name| NodeName::parse(name).and_then(|name| name.owned_by(1000));
        assert!(parsed("1000-system").is_ok());
        for bad in ["foo", "1000-blah@123", "1000-blah-", "1001-x", "01000-x", "+1000-x", "1000-"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
        assert_eq!(NodeName::parse(&"x".repeat(64)), Err(NameError::Length));
    }
}
