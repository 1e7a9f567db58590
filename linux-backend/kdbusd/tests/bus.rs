//! Clients over a real daemon: messages, calls, signals, names, descriptors.

mod common;

use std::io::{Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::Bus;
use kdbus_core::WellKnownName;
use kdbus_core::abi::{AttachFlags, Errno, NameFlags};
use kdbus_core::client::{Hello, Message, Part, ReceivedPart, Topic};
use kdbus_linux::local::SealedMemfd;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_message_arrives_as_it_was_sent() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    a.send(&Message::to(b.id()).payload(b"hello").cookie(7)).unwrap();
    let message = b.try_recv().unwrap().expect("sent is visible");
    assert_eq!((message.payload(), message.cookie(), message.sender()), (&b"hello"[..], 7, a.id()));
    drop(message);
    assert!(b.try_recv().unwrap().is_none());
}
