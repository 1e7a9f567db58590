//! As much of the D-Bus wire format as a client needs that knows what it says: little endian, in order, no more.

/// A call.
pub const CALL: u8 = 1;
/// The answer to a call.
pub const RETURN: u8 = 2;
/// An error as an answer.
pub const ERROR: u8 = 3;
/// A signal.
pub const SIGNAL: u8 = 4;

/// Bytes of a message before its header fields.
pub const FIXED: usize = 16;

/// Header fields, by their codes.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    /// The object.
    Path(&'a str),
    /// The interface.
    Interface(&'a str),
    /// The method or signal.
    Member(&'a str),
    /// The serial of the call that this answers.
    ReplySerial(u32),
    /// Whom it is for.
    Destination(&'a str),
    /// The types of the body.
    Signature(&'a str),
    /// Descriptors that go with it.
    Descriptors(u32),
}

/// Bytes that are put together with the alignment that D-Bus wants.
#[derive(Debug, Default)]
pub struct Bytes(pub Vec<u8>);

impl Bytes {
    /// Fills up with zeros.
    pub fn align(&mut self, to: usize) -> &mut Self {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
        self
    }

    /// A byte.
    pub fn byte(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// A 32-bit number or a truth value.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.align(4).0.extend(value.to_le_bytes());
        self
    }

    /// A 64-bit number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.align(8).0.extend(value.to_le_bytes());
        self
    }

    /// A string or an object path.
    pub fn string(&mut self, value: &str) -> &mut Self {
        self.u32(value.len() as u32).0.extend(value.bytes());
        self.byte(0)
    }

    /// A signature.
    pub fn signature(&mut self, value: &str) -> &mut Self {
        self.byte(value.len() as u8).0.extend(value.bytes());
        self.byte(0)
    }

    /// An array of structures, put together by `fill`.
    pub fn array(&mut self, fill: impl FnOnce(&mut Self)) -> &mut Self {
        self.u32(0);
        let len_at = self.0.len() - 4;
        self.align(8);
        let start = self.0.len();
        fill(self);
        let len = (self.0.len() - start) as u32;
        self.0[len_at..len_at + 4].copy_from_slice(&len.to_le_bytes());
        self
    }

    /// The header of a message with a body of `body_len` bytes. Its serial is at byte 8.
    #[must_use]
    pub fn header(kind: u8, flags: u8, body_len: usize, serial: u32, fields: &[Field<'_>]) -> Vec<u8> {
        let mut bytes = Self::default();
        bytes.byte(b'l').byte(kind).byte(flags).byte(1).u32(body_len as u32).u32(serial);
        bytes.array(|bytes| {
            for field in fields {
                bytes.align(8);
                match field {
                    Field::Path(value) => bytes.byte(1).signature("o").string(value),
                    Field::Interface(value) => bytes.byte(2).signature("s").string(value),
                    Field::Member(value) => bytes.byte(3).signature("s").string(value),
                    Field::ReplySerial(value) => bytes.byte(5).signature("u").u32(*value),
                    Field::Destination(value) => bytes.byte(6).signature("s").string(value),
                    Field::Signature(value) => bytes.byte(8).signature("g").signature(value),
                    Field::Descriptors(value) => bytes.byte(9).signature("u").u32(*value),
                };
            }
        });
        bytes.align(8);
        bytes.0
    }
}

/// A received message.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// Call, return, error or signal.
    pub kind: u8,
    /// The sender's number.
    pub serial: u32,
    fields: &'a [u8],
    /// The body.
    pub body: &'a [u8],
}

/// Bytes of the message that begins with `bytes`; `None` if its beginning is not complete.
#[must_use]
pub fn message_len(bytes: &[u8]) -> Option<usize> {
    let (body, fields) = (u32_at(bytes, 4)?, u32_at(bytes, 12)?);
    Some((FIXED + fields as usize).next_multiple_of(8) + body as usize)
}

impl<'a> Received<'a> {
    /// The message that is `bytes`.
    #[must_use]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let fields_len = u32_at(bytes, 12)? as usize;
        let fields = bytes.get(FIXED..FIXED + fields_len)?;
        let body = bytes.get((FIXED + fields_len).next_multiple_of(8)..)?;
        Some(Self { kind: *bytes.get(1)?, serial: u32_at(bytes, 8)?, fields, body })
    }

    /// The serial that this answers.
    #[must_use]
    pub fn reply_serial(&self) -> Option<u32> {
        u32_at(self.field(5)?, 0)
    }

    /// Who sent it.
    #[must_use]
    pub fn sender(&self) -> Option<&'a str> {
        self.text(7)
    }

    /// The name of the error.
    #[must_use]
    pub fn error(&self) -> Option<&'a str> {
        self.text(4)
    }

    /// The bytes of a body of type `ay`.
    #[must_use]
    pub fn payload(&self) -> Option<&'a [u8]> {
        self.body.get(4..4 + u32_at(self.body, 0)? as usize)
    }

    fn text(&self, code: u8) -> Option<&'a str> {
        let value = self.field(code)?;
        std::str::from_utf8(value.get(4..4 + u32_at(value, 0)? as usize)?).ok()
    }

    /// The value of a field and what follows it. Signatures of fields have one letter each.
    fn field(&self, code: u8) -> Option<&'a [u8]> {
        let mut at = 0;
        loop {
            at = usize::next_multiple_of(at, 8);
            let (found, letter) = (*self.fields.get(at)?, *self.fields.get(at + 2)?);
            let value = at + 4;
            if found == code {
                return self.fields.get(value..);
            }
            at = match letter {
                b'u' => value + 4,
                b'g' => value + 2 + *self.fields.get(value)? as usize,
                _ => value + 5 + u32_at(self.fields, value)? as usize,
            };
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_can_be_taken_apart() {
        let mut body = Bytes::default();
        body.u32(3).0.extend(b"abc");
        let fields =
            [Field::Path("/a"), Field::Signature("ay"), Field::ReplySerial(9), Field::Destination(":1.7")];
        let mut bytes = Bytes::header(RETURN, 0, body.0.len(), 5, &fields);
        assert!(bytes.len().is_multiple_of(8));
        bytes.extend(&body.0);
        assert_eq!(message_len(&bytes), Some(bytes.len()));
        let message = Received::parse(&bytes).unwrap();
        assert_eq!((message.kind, message.serial, message.reply_serial()), (RETURN, 5, Some(9)));
        assert_eq!(message.payload(), Some(&b"abc"[..]));
        assert_eq!((message.text(6), message.sender()), (Some(":1.7"), None));
        for end in 0..bytes.len() {
            // Nothing that is cut off is taken for a whole one.
            assert!(Received::parse(&bytes[..end]).is_none_or(|cut| cut.payload().is_none()), "{end}");
        }
    }
}
