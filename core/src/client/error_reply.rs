//! A service's way to say that a call failed.

use core::fmt;

use super::error::SendError;

/// `payload_type` of an error reply: the ASCII bytes `kdbuserr` as a big-endian number.
pub const PAYLOAD_ERROR: u64 = u64::from_be_bytes(*b"kdbuserr");

/// Bytes of text that an error reply carries; a longer text is cut at a character.
pub const ERROR_TEXT_MAX: usize = 91;

/// The answer to a call that failed: a number for programs and a text for people.
///
/// On the wire it is a reply of type [`PAYLOAD_ERROR`] whose payload is the code, four bytes little-endian,
/// and the text in UTF-8. [`call`](super::Connection::call) gives it out as
/// [`CallError::Remote`](super::CallError::Remote).
///
/// Codes below 256 belong to this convention, the others to the service.
///
/// ```
/// use kdbus_core::client::ErrorReply;
/// let error = ErrorReply::new(ErrorReply::NOT_FOUND, "no channel 9");
/// assert_eq!(error.to_string(), "no channel 9 (error 3)");
/// ```
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ErrorReply {
    code: u32,
    len: u8,
    text: [u8; ERROR_TEXT_MAX],
}

impl ErrorReply {
    /// The call failed for a reason that has no code of its own.
    pub const FAILED: u32 = 0;
    /// The service has no such method.
    pub const UNKNOWN_METHOD: u32 = 1;
    /// The payload is not what the method takes.
    pub const INVALID: u32 = 2;
    /// What the call is about does not exist.
    pub const NOT_FOUND: u32 = 3;
    /// The caller may not do that.
    pub const DENIED: u32 = 4;
    /// Not now; trying again later may work.
    pub const BUSY: u32 = 5;
    /// The service dropped the call without looking at it.
    pub const DROPPED: u32 = 6;

    /// An error with `code` and as much of `text` as fits.
    #[must_use]
    pub fn new(code: u32, text: &str) -> Self {
        let mut reply = Self { code, len: 0, text: [0; ERROR_TEXT_MAX] };
        let mut end = text.len().min(ERROR_TEXT_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        reply.text[..end].copy_from_slice(&text.as_bytes()[..end]);
        reply.len = end as u8;
        reply
    }

    /// The number that tells programs what failed.
    #[must_use]
    pub const fn code(&self) -> u32 {
        self.code
    }

    /// The text that tells people what failed.
    #[must_use]
    pub fn text(&self) -> &str {
        core::str::from_utf8(&self.text[..usize::from(self.len)]).unwrap_or_default()
    }

    /// Reads the payload of an error reply; bytes that are not UTF-8 end the text.
    #[must_use]
    pub fn from_payload(payload: &[u8]) -> Self {
        let Some((code, text)) = payload.split_first_chunk() else {
            return Self::new(Self::FAILED, "error reply without a code");
        };
        let text = text.utf8_chunks().next().map_or("", |chunk| chunk.valid());
        Self::new(u32::from_le_bytes(*code), text)
    }

    /// Writes the payload and returns it.
    pub(super) fn write<'b>(&self, buffer: &'b mut [u8; 4 + ERROR_TEXT_MAX]) -> &'b [u8] {
        let len = usize::from(self.len);
        buffer[..4].copy_from_slice(&self.code.to_le_bytes());
        buffer[4..4 + len].copy_from_slice(&self.text[..len]);
        &buffer[..4 + len]
    }
}

impl From<SendError> for ErrorReply {
    fn from(error: SendError) -> Self {
        let code = if error.is_full() { Self::BUSY } else { Self::FAILED };
        let mut text = heapless::String::<ERROR_TEXT_MAX>::new();
        // What does not fit is left out.
        let _ = fmt::write(&mut text, format_args!("{:?}", error.errno()));
        Self::new(code, &text)
    }
}

impl fmt::Debug for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ErrorReply").field("code", &self.code).field("text", &self.text()).finish()
    }
}

#[cfg(feature = "defmt")]
impl defmt::Format for ErrorReply {
    fn format(&self, f: defmt::Formatter<'_>) {
        defmt::write!(f, "{=str} (error {=u32})", self.text(), self.code);
    }
}

impl fmt::Display for ErrorReply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (error {})", self.text(), self.code)
    }
}

impl core::error::Error for ErrorReply {}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::ToString;

    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        let error = ErrorReply::new(700, "Lautstärke fehlt");
        assert_eq!(ErrorReply::from_payload(error.write(&mut [0; 95])), error);
        assert_eq!(error.to_string(), "Lautstärke fehlt (error 700)");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character() {
        let error = ErrorReply::new(1, &"ä".repeat(60));
        assert_eq!(error.text(), "ä".repeat(45));
    }

    #[test]
    fn hostile_payloads_become_some_error() {
        assert_eq!(ErrorReply::from_payload(b"\x01\0").code(), ErrorReply::FAILED);
        let cut = ErrorReply::from_payload(b"\x09\0\0\0ab\xffcd");
        assert_eq!((cut.code(), cut.text()), (9, "ab"));
        assert_eq!(ErrorReply::from_payload(&[b'x'; 4096]).text().len(), ERROR_TEXT_MAX);
    }
}
