//! Arguments of commands in memory, as the kernel takes them, with all that they name.
#![allow(unsafe_code)]

use std::os::fd::BorrowedFd;

use kdbus_conformance::Payload;
use kdbus_core::abi::{CMD_MAX_SIZE, CmdSend, Errno, ITEM_HEADER, ItemType, Items, Msg};
use kdbus_linux::kernel::Seam;

use crate::memory;

/// Where `msg_address` stands in the argument of SEND.
pub(crate) const MSG_ADDRESS: usize = std::mem::offset_of!(CmdSend, msg_address);

/// An address beyond every user's.
pub(crate) const KERNEL_ADDRESS: u64 = 0xffff_8000_0000_0000;

/// Bytes that a payload may have; a vector that claims more names memory that is not there.
pub(crate) const PAYLOAD_MAX: u64 = 1 << 26;

/// An argument where the kernel takes it: aligned, and with zeros behind it as far as a command may reach.
pub(crate) struct Buffer {
    words: Vec<u64>,
    len: usize,
}

impl Buffer {
    pub(crate) fn new(bytes: &[u8]) -> Self {
        // Whatever size an argument claims, the kernel looks at no more than this.
        let room = bytes.len().max(CMD_MAX_SIZE) + 8;
        let mut buffer = Self { words: vec![0; room.div_ceil(8)], len: bytes.len() };
        buffer.bytes_mut().copy_from_slice(bytes);
        buffer
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut zerocopy::IntoBytes::as_mut_bytes(&mut self.words[..])[..len]
    }

    pub(crate) fn address(&mut self) -> u64 {
        self.words.as_mut_ptr().expose_provenance() as u64
    }

    pub(crate) fn put(&mut self, at: usize, word: u64) {
        put(self.bytes_mut(), at, word);
    }

    pub(crate) fn run<S: Seam>(&mut self, seam: &S, node: BorrowedFd<'_>, request: u32) -> Result<(), Errno> {
        // SAFETY: the buffer is longer than any command. What a SEND in it names is put there by `Outgoing`, or
        // is an address where nothing is mapped.
        unsafe { seam.ioctl(node, request, self.words.as_mut_ptr().cast()) }
    }
}

/// A SEND with all it names.
pub(crate) struct Outgoing {
    pub(crate) command: Buffer,
    message: Buffer,
    former: Vec<(usize, u64)>,
    _payload: Vec<Vec<u8>>,
}

impl Outgoing {
    pub(crate) fn new(command: &[u8], message: &[u8], payload: &[Payload]) -> Self {
        let (mut command, mut message) = (Buffer::new(command), Buffer::new(message));
        let (mut former, mut kept) = (Vec::new(), Vec::new());
        let places = vector_addresses(message.bytes_mut());
        let mut payload = payload.iter();
        for at in places {
            let size = get(message.bytes_mut(), at - 8);
            former.push((at, get(message.bytes_mut(), at)));
            let address = match payload.next() {
                Some(Payload::Bytes(bytes)) if size <= PAYLOAD_MAX => {
                    let mut bytes = bytes.clone();
                    bytes.resize(bytes.len().max(size as usize), 0);
                    kept.push(bytes);
                    kept.last().map_or(0, |bytes| bytes.as_ptr().expose_provenance() as u64)
                }
                Some(Payload::Kernel) => KERNEL_ADDRESS,
                Some(Payload::Bytes(_) | Payload::Unmapped) | None => memory::unmapped(),
            };
            message.put(at, address);
        }
        let address = message.address();
        command.put(MSG_ADDRESS, address);
        Self { command, message, former, _payload: kept }
    }

    /// The message as it was given, with what was written back.
    pub(crate) fn message(&mut self) -> &[u8] {
        for (at, word) in &self.former {
            put(self.message.bytes_mut(), *at, *word);
        }
        self.message.bytes_mut()
    }
}

/// Offsets of the addresses of all vectors that name memory.
pub(crate) fn vector_addresses(message: &[u8]) -> Vec<usize> {
    let area = message.get(Msg::SIZE..).unwrap_or_default();
    let vectors = Items::new(area)
        .map_while(Result::ok)
        .filter(|item| item.kind == ItemType::PAYLOAD_VEC && item.payload.len() == 16);
    vectors.map(|item| Msg::SIZE + item.at + ITEM_HEADER + 8).filter(|at| get(message, *at) != 0).collect()
}

pub(crate) fn get(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(*bytes[at..].first_chunk().expect("a word lies there"))
}

pub(crate) fn put(bytes: &mut [u8], at: usize, word: u64) {
    if let Some(place) = bytes.get_mut(at..at + 8) {
        place.copy_from_slice(&word.to_ne_bytes());
    }
}
