//! The packets of a client, as kdbusd takes them apart.
#![no_main]

use kdbus_linux::local::wire::{Header, Packet, Payload};
use libfuzzer_sys::fuzz_target;
use zerocopy::IntoBytes;

fuzz_target!(|data: &[u8]| {
    // How many descriptors come along, then the packet.
    let Some((fds, bytes)) = data.split_first() else { return };
    let mut copy = bytes.to_vec();
    let Ok(packet) = Packet::parse(&mut copy, (*fds).into()) else { return };
    assert_eq!(packet.header.fds, u32::from(*fds));
    assert_eq!(packet.kind as u16, packet.header.kind);
    // The parts are the packet, one behind the other.
    let mut parts = packet.header.as_bytes().to_vec();
    parts.extend_from_slice(packet.arg);
    if let Some(message) = &packet.message {
        parts.extend_from_slice(message);
    }
    if let Payload::Inline(payload) = packet.payload {
        parts.extend_from_slice(payload);
    }
    assert_eq!(parts, bytes);
    assert!(size_of::<Header>() + packet.arg.len() <= bytes.len());
});
