//! What becomes of a message is the same whether kdbusd tells it in the shared queue or in a packet, and whoever asks for the
//! former at the wrong time harms nobody.

mod common;

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use common::{Bus, Client};
use kdbus_core::abi::{CmdHello, CmdSend, Command, HelloFlags, MsgFlags, SendFlags};
use kdbus_core::channel::{Answer, InboxReader, Words};
use kdbus_core::client::{Hello, Message, PAYLOAD_RAW, Part};
use kdbus_linux::local::SealedMemfd;
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{self, Header, Kind, PACKET_MAX, Packet};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketType};
use zerocopy::{FromBytes, IntoBytes};

/// A client that speaks in packets and has a queue.
struct Raw {
    socket: OwnedFd,
    serial: u64,
    id: u64,
    inbox: InboxReader<WordMap, WordMap>,
    shared: WordMap,
    early: Option<(Header, Vec<u8>, Descriptors)>,
    _files: Descriptors,
}

/// How a command has ended: errno, calls through kdbusd, the reply's place, size and flags, and descriptors.
type End = (u32, u32, [u64; 3], usize);

fn connect(bus: &Bus) -> OwnedFd {
    let path = bus.root.join(bus.name()).join("bus");
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// The next answer: its header, its argument and its descriptors.
fn answer(socket: &OwnedFd) -> (Header, Vec<u8>, Descriptors) {
    rustix::net::sockopt::set_socket_timeout(
        socket,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(9)),
    )
    .unwrap();
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    let len = socket::recv(socket, &mut buffer, &mut fds, Wait::Yes).unwrap().len;
    let packet = Packet::parse(&mut buffer[..len], fds.len()).unwrap();
    (packet.header, packet.arg.to_vec(), fds)
}

/// A SEND of `message`.
fn send(serial: u64, flags: u32, arg: &CmdSend, message: &[u8]) -> Header {
    Header {
        number: Command::Send.request(),
        flags: flags | wire::FLAG_MESSAGE,
        arg_size: arg.as_bytes().len() as u32,
        message_size: message.len() as u32,
        ..Header::new(Kind::Command, serial)
    }
}

/// A message without payload: flags, receiver, payload type, cookie and deadline.
fn message(words: [u64; 5]) -> [u8; 64] {
    let [flags, to, kind, cookie, deadline] = words;
    let mut message = [0; 64];
    for (at, word) in [(0, 64), (8, flags), (24, to), (40, kind), (48, cookie), (56, deadline)] {
        message[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    message
}

fn command(flags: SendFlags) -> CmdSend {
    CmdSend { size: 56, flags: flags.bits(), msg_address: 1, ..CmdSend::default() }
}

impl Raw {
    fn hello(bus: &Bus) -> Self {
        let socket = connect(bus);
        let hello = CmdHello {
            size: 96,
            flags: HelloFlags::ACCEPT_FD.bits(),
            pool_size: 1 << 20,
            ..CmdHello::default()
        };
        let header = Header {
            number: Command::Hello.request(),
            arg_size: hello.as_bytes().len() as u32,
            ..Header::new(Kind::Command, 1)
        };
        socket::send(&socket, &header, &[hello.as_bytes()], &[], Wait::Yes).unwrap();
        let (_, arg, files) = answer(&socket);
        let words = |at: usize| rustix::fs::fstat(&files[at]).unwrap().st_size as usize / 8;
        let posted = WordMap::read_only(&files[1], words(1)).unwrap();
        let [mine, shared] = [(); 2].map(|()| WordMap::writable(&files[2], words(2)).unwrap());
        let inbox = InboxReader::attach(posted, mine).unwrap();
        let id = CmdHello::read_from_prefix(&arg).unwrap().0.id;
        Self { socket, serial: 1, id, inbox, shared, early: None, _files: files }
    }

    fn send(&mut self, flags: u32, arg: &CmdSend, message: &[u8]) {
        self.serial += 1;
        let header = send(self.serial, flags, arg, message);
        socket::send(&self.socket, &header, &[arg.as_bytes(), message], &[], Wait::Yes).unwrap();
    }

    /// Waits until kdbusd has taken all packets, and keeps the answer to the last SEND if that came meanwhile.
    fn settle(&mut self) {
        let barrier = Header { key: u64::MAX, ..Header::new(Kind::WatchRoom, u64::MAX) };
        socket::send(&self.socket, &barrier, &[], &[], Wait::Yes).unwrap();
        loop {
            let packet = answer(&self.socket);
            if packet.0.serial == u64::MAX {
                return;
            }
            self.early = Some(packet);
        }
    }

    /// What the shared queue tells of the last SEND, once it does.
    fn told(&self) -> Answer {
        let started = Instant::now();
        loop {
            if let Some(told) = self.inbox.answer(self.serial) {
                return told;
            }
            assert!(started.elapsed() < Duration::from_secs(9));
            std::thread::yield_now();
        }
    }

    fn end(&mut self, is_posted: bool) -> End {
        let told = is_posted.then(|| self.told());
        if let Some(Answer::Whole { code, calls, reply }) = told {
            return (code, calls, [reply.offset, reply.msg_size, reply.return_flags], 0);
        }
        let (header, arg, fds) = self.early.take().unwrap_or_else(|| answer(&self.socket));
        assert_eq!(header.serial, self.serial);
        let reply = CmdSend::read_from_prefix(&arg).unwrap().0.reply;
        (header.number, header.slot, [reply.offset, reply.msg_size, reply.return_flags], fds.len())
    }
}

/// Receives what is there; answers calls, some of them with descriptors, or drops them.
fn serve(client: &Client, random: &mut impl FnMut(u64) -> u64) {
    while client.peek().unwrap().is_some() {
        if random(4) == 0 {
            client.drop_next().unwrap();
            continue;
        }
        let Some(call) = client.try_recv().unwrap() else { continue };
        let memfd = SealedMemfd::new(b"late").unwrap();
        let parts = [Part::Memfd { fd: memfd.as_fd(), start: 0, size: 4 }];
        let fds = [memfd.as_fd()];
        let reply = Message::reply(call.reply_to());
        let _ = match random(3) {
            0 => client.send(&reply.parts(&parts)),
            1 => client.send(&reply.fds(&fds)),
            _ => client.send(&reply.payload(b"reply")),
        };
    }
}

/// The same random messages in each run, and how each has ended.
fn ends(seed: u64, is_posted: bool) -> Vec<End> {
    let bus = Bus::start();
    let (service, mut raw) = (bus.hello(&Hello::new().accept_fds()), Raw::hello(&bus));
    let mut state = seed;
    let mut random = |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % below
    };
    let mut ends = vec![];
    for cookie in 1..150 {
        let mut pick = |choices: &[u64]| choices[random(choices.len() as u64) as usize];
        let reply = MsgFlags::EXPECT_REPLY.bits();
        let words = [
            pick(&[reply, reply, reply, 0, MsgFlags::SIGNAL.bits(), MsgFlags::NO_AUTO_START.bits(), 1 << 40]),
            pick(&[service.id(), service.id(), service.id(), service.id(), raw.id, 0, 999, u64::MAX]),
            pick(&[PAYLOAD_RAW, PAYLOAD_RAW, PAYLOAD_RAW, 0]),
            pick(&[cookie, cookie, cookie, 1]),
            pick(&[u64::MAX / 4, u64::MAX / 4, u64::MAX / 4, 0, 1]),
        ];
        let sync = SendFlags::SYNC_REPLY;
        // Nobody serves a call to oneself.
        let flags =
            if words[1] == raw.id { 0 } else { pick(&[sync.bits(), sync.bits(), sync.bits(), 0, 1 << 9]) };
        let flags = SendFlags::from_bits_retain(flags);
        let flag = if is_posted { wire::FLAG_POSTED } else { 0 };
        raw.send(flag, &command(flags), &message(words));
        raw.settle();
        serve(&service, &mut random);
        ends.push(raw.end(is_posted));
    }
    ends
}

#[test]
fn a_message_ends_in_the_shared_queue_as_it_would_in_a_packet() {
    for seed in 1..6 {
        let [packets, posted] = [false, true].map(|is_posted| ends(seed, is_posted));
        for (at, (packet, posted)) in packets.iter().zip(&posted).enumerate() {
            assert_eq!(packet, posted, "message {at}, seed {seed}");
        }
        assert!(packets.iter().any(|end| end.3 != 0) && packets.iter().any(|end| end.2[1] != 0));
    }
}

#[test]
fn an_end_that_has_no_place_in_the_shared_queue_comes_in_a_packet() {
    let bus = Bus::start();
    let (empty, bytes) = (command(SendFlags::empty()), message([0, 1, PAYLOAD_RAW, 1, 0]));
    // Before there is a queue.
    let socket = connect(&bus);
    let header = send(7, wire::FLAG_POSTED, &empty, &bytes);
    socket::send(&socket, &header, &[empty.as_bytes(), &bytes], &[], Wait::Yes).unwrap();
    let refused = answer(&socket).0;
    assert_eq!((refused.serial, refused.number), (7, 77), "EBADFD");
    // With other packets, whatever command they name.
    let mut raw = Raw::hello(&bus);
    for kind in [Kind::Stats, Kind::WatchRoom, Kind::ReceiveEntry, Kind::Pairs] {
        raw.serial += 1;
        let arg = [0; 256];
        let header = Header {
            number: Command::Send.request(),
            flags: wire::FLAG_POSTED,
            arg_size: 256,
            key: raw.id,
            ..Header::new(kind, raw.serial)
        };
        socket::send(&raw.socket, &header, &[&arg], &[], Wait::Yes).unwrap();
        assert_eq!(answer(&raw.socket).0.serial, raw.serial, "{kind:?}");
    }
    // Of a message that is wanted back.
    raw.send(wire::FLAG_POSTED | wire::FLAG_RETURN_MESSAGE, &empty, &bytes);
    assert_eq!(answer(&raw.socket).0.serial, raw.serial);
    assert_eq!(raw.inbox.answer(raw.serial), None);
    // After the connection has ended.
    raw.serial += 1;
    let byebye =
        Header { number: Command::Byebye.request(), arg_size: 24, ..Header::new(Kind::Command, raw.serial) };
    let arg = [24_u64, 0, 0];
    socket::send(&raw.socket, &byebye, &[arg.as_bytes()], &[], Wait::Yes).unwrap();
    assert_eq!(answer(&raw.socket).0.number, 0);
    assert!(!raw.inbox.is_alive());
    raw.send(wire::FLAG_POSTED, &empty, &bytes);
    assert_eq!(answer(&raw.socket).0.serial, raw.serial);
}

#[test]
fn whatever_a_client_says_that_it_waits_for_the_bus_goes_on() {
    let bus = Bus::start();
    let (service, mut raw) = (bus.connect(), Raw::hello(&bus));
    let call = message([MsgFlags::EXPECT_REPLY.bits(), service.id(), PAYLOAD_RAW, 0, u64::MAX / 4]);
    for (cookie, armed) in (1..).zip([0, 1, 2, 3, u64::MAX, 1 << 32]) {
        // Several calls under one number, of which one end is told, and messages meanwhile.
        let mut call = call;
        let last = raw.serial;
        for at in 0..8 {
            call[48] = cookie * 16 + at;
            raw.shared.store(0, armed);
            raw.serial = last;
            raw.send(wire::FLAG_POSTED, &command(SendFlags::SYNC_REPLY), &call);
        }
        raw.shared.store(0, armed);
        service.send(&Message::to(raw.id)).unwrap();
        for _ in 0..9 {
            let cancel = Header { key: raw.serial, ..Header::new(Kind::Cancel, 0) };
            socket::send(&raw.socket, &cancel, &[], &[], Wait::Yes).unwrap();
        }
        assert_eq!(raw.end(true).0, 125, "ECANCELED");
        while service.drop_next().unwrap_or(false) {}
        let refused = [wire::FLAG_POSTED, 0].map(|flag| {
            raw.send(flag, &command(SendFlags::empty()), &message([0, 999, PAYLOAD_RAW, 1, 0]));
            raw.end(flag != 0)
        });
        assert_eq!(refused, [(6, 0, [0; 3], 0); 2], "ENXIO, and no call is left open");
    }
    let other = bus.connect();
    other.send(&Message::to(service.id()).payload(b"well")).unwrap();
    assert_eq!(service.recv_blocking(Duration::from_secs(9)).unwrap().payload(), b"well");
}
