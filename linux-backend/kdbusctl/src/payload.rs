//! Payloads, from the command line and to the terminal.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use kdbus_core::client::{Delivery, Kind, ReceivedPart, Transport};
use kdbus_linux::local::LocalTransport;
use serde_json::{Value, json};

use crate::bus::Id;
use crate::failure::{Exit, Failure};
use crate::text::{hex, unhex};

/// Bytes of the longest payload that is put together from its parts to be shown.
const SHOWN_MAX: u64 = 64 << 20;

/// The bytes that an argument stands for: itself, hex digits, or all of standard input for `-`.
pub(crate) fn from_argument(text: Option<&str>, as_hex: bool) -> Result<Vec<u8>, Failure> {
    let bytes = match text {
        None => return Ok(Vec::new()),
        Some("-") => {
            let mut bytes = Vec::new();
            io::stdin().lock().read_to_end(&mut bytes)?;
            bytes
        }
        Some(text) => text.into(),
    };
    if !as_hex {
        return Ok(bytes);
    }
    let text = String::from_utf8(bytes).map_err(|_| Failure::usage("payload: not hex digits"))?;
    unhex(&text).map_err(|error| Failure::usage(format!("payload: {error}")))
}

/// The whole payload of a message, memfds and runs of zeros included.
pub(crate) fn of(message: &Delivery<'_, LocalTransport>) -> Result<Vec<u8>, Failure> {
    let len = message.payload_len();
    if len > SHOWN_MAX {
        return Err(Failure::new(Exit::Failed, format!("payload of {len} bytes is too large to show")));
    }
    let mut bytes = Vec::with_capacity(len as usize);
    for part in message.parts() {
        match part {
            ReceivedPart::Bytes(part) => bytes.extend_from_slice(part),
            ReceivedPart::Zeros(len) => bytes.resize(bytes.len() + len as usize, 0),
            ReceivedPart::Memfd { fd: Some(fd), start, size } => {
                let at = bytes.len();
                bytes.resize(at + size as usize, 0);
                File::from(fd.try_clone()?).read_exact_at(&mut bytes[at..], start)?;
            }
            ReceivedPart::Memfd { fd: None, .. } => {
                return Err(Failure::new(
                    Exit::Failed,
                    "a memfd of the payload could not be received: too many open files",
                ));
            }
        }
    }
    Ok(bytes)
}

/// A payload for people: text if it is UTF-8 without control characters, else hex digits.
///
/// Line ends and tabs are what text is made of; other control characters might be meant for the terminal.
pub(crate) fn text(bytes: &[u8], as_hex: bool) -> String {
    let is_text = |text: &&str| !text.chars().any(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'));
    match std::str::from_utf8(bytes).ok().filter(is_text) {
        Some(text) if !as_hex => text.into(),
        _ => hex(bytes),
    }
}

/// A payload for programs: its length, its hex digits, and its text if it is UTF-8.
pub(crate) fn value(bytes: &[u8]) -> Value {
    json!({ "bytes": bytes.len(), "hex": hex(bytes), "text": std::str::from_utf8(bytes).ok() })
}

/// A message on one line, for people or for programs.
pub(crate) fn message<T: Transport>(
    json: bool,
    message: &Delivery<'_, T>,
    bytes: &[u8],
    hex: bool,
) -> String {
    let kind = kind(message.kind());
    if json {
        return json!({
            "kind": kind,
            "sender": message.sender(),
            "cookie": message.cookie(),
            "priority": message.priority(),
            "payload": value(bytes),
        })
        .to_string();
    }
    format!("{kind} from {}: {}", Id(message.sender()), text(bytes, hex).trim_end())
}

/// What a message is, in one word.
pub(crate) const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Call => "call",
        Kind::Reply => "reply",
        Kind::Signal => "signal",
        Kind::Plain | Kind::Notification => "message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_text_or_hex() {
        assert_eq!(from_argument(None, true).unwrap(), b"");
        assert_eq!(from_argument(Some("0a"), false).unwrap(), b"0a");
        assert_eq!(from_argument(Some("0a"), true).unwrap(), b"\n");
        assert!(from_argument(Some("0"), true).is_err());
    }

    #[test]
    fn payloads_are_shown_as_what_they_are() {
        assert_eq!(text(b"level 7\n", false), "level 7\n");
        assert_eq!(text(b"level 7", true), "6c6576656c2037");
        assert_eq!(text(b"\xff\x00", false), "ff00");
        assert_eq!(text(b"\x1b[2J", false), "1b5b324a");
        assert_eq!(value(b"\xff")["text"], Value::Null);
        assert_eq!(value(b"a"), json!({ "bytes": 1, "hex": "61", "text": "a" }));
    }
}
