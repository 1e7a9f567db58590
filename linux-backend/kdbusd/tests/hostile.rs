//! Clients that do the worst they can: each loses its own connection, and nobody else notices.

mod common;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use common::Bus;
use kdbus_core::abi::{CmdHello, CmdRecv, CmdSend, Command, ItemType, ItemWriter, MsgFlags};
use kdbus_core::client::{Hello, Message};
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{self, Header, Kind, PACKET_MAX, Packet};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType};
use zerocopy::{FromBytes, IntoBytes};

/// A client that speaks in packets.
struct Raw {
    socket: OwnedFd,
    serial: u64,
}

/// What came back: the errno, the argument and the descriptors.
struct Answer {
    errno: u32,
    arg: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl Raw {
    fn open(bus: &Bus) -> Self {
        let path = bus.root.join(bus.name()).join("bus");
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self { socket, serial: 0 }
    }

    fn hello(bus: &Bus) -> (Self, Answer) {
        let mut raw = Self::open(bus);
        let hello = CmdHello { size: 96, pool_size: 1 << 16, ..CmdHello::default() };
        let answer = raw.command(Command::Hello.request(), hello.as_bytes(), &[]).unwrap();
        assert_eq!(answer.errno, 0);
        (raw, answer)
    }

    fn header(&mut self, kind: Kind) -> Header {
        self.serial += 1;
        Header::new(kind, self.serial)
    }

    fn send(&self, header: &Header, parts: &[&[u8]], fds: &[BorrowedFd<'_>]) {
        socket::send(&self.socket, header, parts, fds, Wait::Yes).unwrap();
    }

    fn command(&mut self, number: u32, arg: &[u8], fds: &[BorrowedFd<'_>]) -> Option<Answer> {
        let header = Header { number, arg_size: arg.len() as u32, ..self.header(Kind::Command) };
        self.send(&header, &[arg], fds);
        self.answer()
    }

    /// The next answer, or `None` if the daemon has hung up.
    fn answer(&self) -> Option<Answer> {
        let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
        let arrived = socket::recv(&self.socket, &mut buffer, &mut fds, Wait::Yes);
        let len = arrived.map_or(0, |arrived| arrived.len);
        if len == 0 {
            return None;
        }
        let packet = Packet::parse(&mut buffer[..len], fds.len()).unwrap();
        assert_eq!(packet.header.serial, self.serial);
        Some(Answer { errno: packet.header.number, arg: packet.arg.to_vec(), fds: fds.into_iter().collect() })
    }

    fn is_cut_off(&self) -> bool {
        self.answer().is_none()
    }
}

/// Whether two good clients still get on with each other.
fn others_are_well(bus: &Bus) -> bool {
    let (a, b) = (bus.connect(), bus.connect());
    a.send(&Message::to(b.id()).payload(b"well")).unwrap();
    b.try_recv().unwrap().is_some_and(|message| message.payload() == b"well")
}

#[test]
fn malformed_packets_cost_their_sender_its_connection() {
    let bus = Bus::start();
    let good = Header::new(Kind::Command, 1);
    let wrong = [
        Header { magic: 1, ..good },
        Header { kind: 77, ..good },
        Header { kind: Kind::Answer as u16, ..good },
        Header { flags: 1 << 20, ..good },
        Header { flags: wire::FLAG_STAGED, ..good },
        Header { flags: wire::FLAG_STAGING_FD, ..good },
        Header { arg_size: 1, ..good },
        Header { arg_size: u32::MAX, ..good },
        Header { payload_size: u64::MAX, flags: wire::FLAG_MESSAGE, ..good },
    ];
    for header in wrong {
        let raw = Raw::open(&bus);
        raw.send(&header, &[], &[]);
        assert!(raw.is_cut_off(), "{header:?}");
    }
    for bytes in [&b"x"[..], &[0; 55], &[0xff; 4096]] {
        let raw = Raw::open(&bus);
        rustix::net::send(&raw.socket, bytes, SendFlags::empty()).unwrap();
        assert!(raw.is_cut_off());
    }
    let raw = Raw::open(&bus);
    rustix::net::send(&raw.socket, &vec![0; PACKET_MAX + 100], SendFlags::empty()).unwrap();
    assert!(raw.is_cut_off());
    let raw = Raw::open(&bus);
    // Fewer descriptors than it says: the header is written past `send`, which counts them.
    let lying = Header { fds: 2, ..good };
    rustix::net::send(&raw.socket, lying.as_bytes(), SendFlags::empty()).unwrap();
    assert!(raw.is_cut_off());
    assert!(others_are_well(&bus));
}

#[test]
fn another_version_is_told_so() {
    let bus = Bus::start();
    let mut raw = Raw::open(&bus);
    let header = Header { version: 9, ..raw.header(Kind::Command) };
    raw.send(&header, &[], &[]);
    assert_eq!(raw.answer().unwrap().errno, 71);
    assert!(raw.is_cut_off());
}

#[test]
fn commands_out_of_place_are_refused_and_the_client_stays() {
    let bus = Bus::start();
    let mut raw = Raw::open(&bus);
    assert_eq!(raw.command(0x1234, &[], &[]).unwrap().errno, 25, "ENOTTY");
    assert_eq!(raw.command(Command::Recv.request(), &[0; 64], &[]).unwrap().errno, 77, "EBADFD");
    assert_eq!(raw.command(Command::Hello.request(), &[], &[]).unwrap().errno, 14, "EFAULT");
    let header = Header { key: 1, ..raw.header(Kind::WatchRoom) };
    raw.send(&header, &[], &[]);
    assert_eq!(raw.answer().unwrap().errno, 77, "EBADFD");
    let header = Header { key: 99, ..raw.header(Kind::Cancel) };
    raw.send(&header, &[], &[]);
    let header = raw.header(Kind::Returns);
    raw.send(&header, &[], &[]);
    let hello = CmdHello { size: 96, pool_size: 4096, ..CmdHello::default() };
    assert_eq!(raw.command(Command::Hello.request(), hello.as_bytes(), &[]).unwrap().errno, 0);
}

#[test]
fn descriptors_that_nobody_takes_are_closed() {
    let bus = Bus::start();
    let (mut raw, _answer) = Raw::hello(&bus);
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let recv = CmdRecv { size: 64, ..CmdRecv::default() };
    let many = [writer.as_fd(); wire::FDS_MAX];
    assert_eq!(raw.command(Command::Recv.request(), recv.as_bytes(), &many).unwrap().errno, 11, "EAGAIN");
    assert_eq!(raw.command(0x1234, &[], &many).unwrap().errno, 25, "ENOTTY");
    let header = raw.header(Kind::Returns);
    raw.send(&header, &[], &many);
    let cut = Raw::open(&bus);
    cut.send(&Header { magic: 0, ..Header::new(Kind::Command, 1) }, &[], &many);
    assert!(cut.is_cut_off());
    let header = Header { number: Command::Byebye.request(), arg_size: 24, ..raw.header(Kind::Command) };
    raw.send(&header, &[&[0; 24]], &[]);
    raw.answer().unwrap();
    drop(writer);
    // The end is seen only when the daemon has closed its last copy.
    assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0));
}

#[test]
fn a_client_that_does_not_read_is_cut_off() {
    let bus = Bus::start();
    let (mut raw, _answer) = Raw::hello(&bus);
    let arg = vec![0; 32768];
    let mut sent = 0;
    loop {
        let header = Header { number: 1, arg_size: arg.len() as u32, ..raw.header(Kind::Command) };
        if socket::send(&raw.socket, &header, &[&arg], &[], Wait::Yes).is_err() {
            break;
        }
        sent += 1;
        assert!(sent < 100_000, "it is still served");
    }
    assert!(others_are_well(&bus));
}

#[test]
fn a_staging_file_has_to_be_memory() {
    let bus = Bus::start();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let mut raw = Raw::open(&bus);
    let header = Header { flags: wire::FLAG_STAGING_FD, ..raw.header(Kind::Command) };
    raw.send(&header, &[], &[reader.as_fd()]);
    assert!(raw.is_cut_off());
    assert!(others_are_well(&bus));
}

#[test]
fn payload_that_is_not_there_is_efault() {
    let bus = Bus::start();
    let receiver = bus.connect();
    let (mut raw, _answer) = Raw::hello(&bus);
    let mut message = [0; 96];
    let mut items = ItemWriter::behind(&mut message, 64).unwrap();
    items.record(ItemType::PAYLOAD_VEC, &[1000_u64, 1]).unwrap();
    let size = items.len();
    message[..8].copy_from_slice(&(size as u64).to_ne_bytes());
    message[24..32].copy_from_slice(&receiver.id().to_ne_bytes());
    message[40..48].copy_from_slice(&kdbus_core::client::PAYLOAD_RAW.to_ne_bytes());
    let send = CmdSend { size: 56, msg_address: 1, ..CmdSend::default() };
    let staging = rustix::fs::memfd_create("short", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&staging, 999).unwrap();
    let ways = [
        (0, vec![1; 999], false),
        (wire::FLAG_STAGED | wire::FLAG_STAGING_FD, Vec::new(), true),
        (wire::FLAG_STAGED, Vec::new(), false),
    ];
    for (flags, payload, with_file) in ways {
        let header = Header {
            number: Command::Send.request(),
            flags: flags | wire::FLAG_MESSAGE,
            arg_size: 56,
            message_size: size as u32,
            payload_size: if payload.is_empty() { 1000 } else { payload.len() as u64 },
            ..raw.header(Kind::Command)
        };
        let fds = [staging.as_fd()];
        let fds = if with_file { &fds[..] } else { &[] };
        raw.send(&header, &[send.as_bytes(), &message[..size], &payload], fds);
        assert_eq!(raw.answer().unwrap().errno, 14, "EFAULT");
    }
    assert!(receiver.try_recv().unwrap().is_none());
}

#[test]
fn a_broken_return_ring_costs_its_owner_the_connection() {
    use kdbus_core::channel::Words;
    let bus = Bus::start();
    let (mut raw, hello) = Raw::hello(&bus);
    let shared = WordMap::writable(&hello.fds[2], 16).unwrap();
    // More returns than the ring has places.
    shared.store(8, u64::MAX / 2);
    let header = raw.header(Kind::Returns);
    raw.send(&header, &[], &[]);
    assert!(raw.is_cut_off());
    assert!(others_are_well(&bus));
}

#[test]
fn nothing_written_to_shared_memory_misleads_the_bus() {
    use kdbus_core::channel::Words;
    let bus = Bus::start();
    let sender = bus.connect();
    let (mut raw, hello) = Raw::hello(&bus);
    let id = CmdHello::read_from_bytes(&hello.arg).unwrap().id;
    let size = rustix::fs::fstat(&hello.fds[2]).unwrap().st_size as usize / 8;
    let shared = WordMap::writable(&hello.fds[2], size).unwrap();
    for pattern in [u64::MAX, 0, 1, 0x0000_0001_0000_0001, u64::MAX << 2] {
        for word in 16..size {
            shared.store(word, pattern);
        }
        sender.send(&Message::to(id)).unwrap();
        for word in 16..size {
            shared.store(word, pattern);
        }
        let recv = CmdRecv { size: 64, ..CmdRecv::default() };
        let answer = raw.command(Command::Recv.request(), recv.as_bytes(), &[]).unwrap();
        assert!([0, 11].contains(&answer.errno), "{}", answer.errno);
    }
    assert!(others_are_well(&bus));
}

#[test]
fn one_user_cannot_have_all_handles() {
    let bus = Bus::with(|config| {
        config.capacity.clients = 6;
        config.capacity.clients_per_user = 2;
    });
    let mut held: Vec<Raw> = (0..6).map(|_| Raw::open(&bus)).collect();
    // The last one stands for an answer: when it is there, all six are.
    assert_eq!(held[5].command(0x1234, &[], &[]).unwrap().errno, 25);
    let seventh = Raw::open(&bus);
    assert!(seventh.is_cut_off());
    held.pop();
    let again = std::iter::repeat_with(|| {
        let mut raw = Raw::open(&bus);
        raw.command_or_hang_up()
    });
    assert!(again.take(1000).any(|served| served), "the place is free again");
}

impl Raw {
    fn command_or_hang_up(&mut self) -> bool {
        let header = Header { number: 0x1234, ..self.header(Kind::Command) };
        socket::send(&self.socket, &header, &[], &[], Wait::Yes).is_ok() && self.answer().is_some()
    }
}

/// A socket whose last close waits until `peer` goes, and that peer.
fn slow_to_close() -> (OwnedFd, std::net::TcpStream) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &socket, &[0; 65536]).is_ok() {}
    let long = std::time::Duration::from_secs(3600);
    rustix::net::sockopt::set_socket_linger(&socket, Some(long)).unwrap();
    (socket.into(), peer)
}

/// Closes what the daemon was given. If the daemon was faster, this is the last close, and waits in its stead.
fn let_go(socket: OwnedFd) {
    std::thread::spawn(move || drop(socket));
}

/// What two good clients of a live daemon do at once, and those of a blocked one never.
fn others_are_well_soon(bus: &std::sync::Arc<Bus>) -> bool {
    let (tell, told) = std::sync::mpsc::channel();
    let bus = bus.clone();
    std::thread::spawn(move || tell.send(others_are_well(&bus)));
    told.recv_timeout(std::time::Duration::from_secs(10)) == Ok(true)
}

#[test]
fn no_descriptor_blocks_whoever_closes_it() {
    let bus = std::sync::Arc::new(Bus::start());
    let mut peers = Vec::new();
    let mut slow = || {
        let (socket, peer) = slow_to_close();
        peers.push(peer);
        socket
    };
    let number = Command::Byebye.request();
    let mut ways: Vec<(&str, bool)> = Vec::new();

    // In a message that nobody receives: only the daemon has it in the end.
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let socket = slow();
    a.send(&Message::to(b.id()).fds(&[socket.as_fd()])).unwrap();
    drop(socket);
    drop((a, b));
    ways.push(("held", others_are_well_soon(&bus)));

    // With a command that does not want it.
    let (mut raw, _answer) = Raw::hello(&bus);
    let socket = slow();
    let header = raw.header(Kind::Returns);
    raw.send(&header, &[], &[socket.as_fd()]);
    let_go(socket);
    ways.push(("unwanted", others_are_well_soon(&bus)));

    // Behind a packet that costs the connection: it is never received.
    let (raw, socket) = (Raw::open(&bus), slow());
    raw.send(&Header { magic: 0, ..Header::new(Kind::Command, 1) }, &[], &[]);
    let behind = Header::new(Kind::Returns, 2);
    let _ = socket::send(&raw.socket, &behind, &[], &[socket.as_fd()], Wait::Yes);
    let_go(socket);
    ways.push(("unread", others_are_well_soon(&bus)));

    // Left behind by somebody who hangs up.
    let (mut raw, _answer) = Raw::hello(&bus);
    for _ in 0..3 {
        let socket = slow();
        let header = Header { number, ..raw.header(Kind::Command) };
        raw.send(&header, &[], &[socket.as_fd()]);
        let_go(socket);
    }
    drop(raw);
    ways.push(("left behind", others_are_well_soon(&bus)));

    // In another socket's queue.
    let (mut raw, _answer) = Raw::hello(&bus);
    let (socket, kind) = (slow(), SocketType::SEQPACKET);
    let (near, far) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, rustix::net::SocketFlags::CLOEXEC, None).unwrap();
    socket::send(&near, &Header::new(Kind::Command, 1), &[], &[socket.as_fd()], Wait::Yes).unwrap();
    drop((socket, near));
    let header = raw.header(Kind::Returns);
    raw.send(&header, &[], &[far.as_fd()]);
    let_go(far);
    ways.push(("nested", others_are_well_soon(&bus)));

    // Beyond the number that a packet may have.
    let raw = Raw::open(&bus);
    let socket = slow();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let mut many = vec![reader.as_fd(); wire::FDS_MAX];
    many.push(socket.as_fd());
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(100))];
    let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
    assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&many)));
    let header = Header { fds: many.len() as u32, ..Header::new(Kind::Command, 1) };
    let parts = [std::io::IoSlice::new(header.as_bytes())];
    rustix::net::sendmsg(&raw.socket, &parts, &mut control, SendFlags::empty()).unwrap();
    let_go(socket);
    ways.push(("too many", others_are_well_soon(&bus) && raw.is_cut_off()));

    // The daemon gets rid of all of them when it can.
    drop(peers);
    assert!(ways.iter().all(|(_, well)| *well), "{ways:?}");
}

#[test]
fn shared_memory_written_all_the_time_stops_nobody() {
    use kdbus_core::channel::Words;
    use std::sync::atomic::{AtomicBool, Ordering};
    let bus = std::sync::Arc::new(Bus::start());
    let (sender, writing) = (bus.connect(), AtomicBool::new(true));
    let (mut raw, hello) = Raw::hello(&bus);
    let id = CmdHello::read_from_bytes(&hello.arg).unwrap().id;
    let size = rustix::fs::fstat(&hello.fds[2]).unwrap().st_size as usize / 8;
    let shared = WordMap::writable(&hello.fds[2], size).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut tail = 0;
            while writing.load(Ordering::Relaxed) {
                // Always armed, always something to read: one release of a slice, then one receipt, of nothing.
                shared.store(0, 1);
                for word in 16..size {
                    shared.store(word, if word % 4 < 2 { 2 } else { 1 });
                }
                tail += 1;
                shared.store(8, tail);
            }
        });
        for _ in 0..100 {
            // Until it is cut off for what it wrote, or its pool is full.
            let _ = sender.send(&Message::to(id).payload(&[1; 64]));
            let header = raw.header(Kind::Returns);
            let _ = socket::send(&raw.socket, &header, &[], &[], Wait::Yes);
            let header = Header { key: id, ..raw.header(Kind::WatchRoom) };
            let _ = socket::send(&raw.socket, &header, &[], &[], Wait::Yes);
        }
        let well = others_are_well_soon(&bus);
        writing.store(false, Ordering::Relaxed);
        assert!(well);
    });
}

#[test]
fn a_pool_beyond_the_budget_is_refused_and_a_handle_has_one() {
    let bus = Bus::start();
    let mut raw = Raw::open(&bus);
    let mut hello = |pool_size| {
        let hello = CmdHello { size: 96, pool_size, ..CmdHello::default() };
        raw.command(Command::Hello.request(), hello.as_bytes(), &[]).unwrap()
    };
    for pool_size in [0, 1, 4095, 1 << 62, u64::MAX, u64::MAX - 4095] {
        let answer = hello(pool_size);
        assert_ne!(answer.errno, 0, "{pool_size}");
        assert!(answer.fds.is_empty());
    }
    let answer = hello(1 << 16);
    assert_eq!((answer.errno, answer.fds.len()), (0, wire::HELLO_FDS));
    let answer = hello(1 << 16);
    assert_ne!(answer.errno, 0);
    assert!(answer.fds.is_empty());
    assert!(others_are_well(&bus));
}

#[test]
fn a_call_is_cancelled_once_whatever_serials_are_used() {
    let bus = Bus::start();
    let callee = bus.connect();
    let (mut raw, _answer) = Raw::hello(&bus);
    let mut message = [0; 64];
    for (at, word) in [
        (0, 64),
        (8, MsgFlags::EXPECT_REPLY.bits()),
        (24, callee.id()),
        (40, kdbus_core::client::PAYLOAD_RAW),
        (48, 1),
        (56, u64::MAX / 4),
    ] {
        message[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }
    let send = CmdSend {
        size: 56,
        flags: kdbus_core::abi::SendFlags::SYNC_REPLY.bits(),
        msg_address: 1,
        ..CmdSend::default()
    };
    let call = Header {
        number: Command::Send.request(),
        flags: wire::FLAG_MESSAGE,
        arg_size: 56,
        message_size: 64,
        ..raw.header(Kind::Command)
    };
    // The same serial for two calls at once, then one cancellation for each and many for nothing.
    message[48] = 1;
    raw.send(&call, &[send.as_bytes(), &message], &[]);
    message[48] = 2;
    raw.send(&call, &[send.as_bytes(), &message], &[]);
    for serial in [call.serial, call.serial, call.serial, 0, u64::MAX] {
        let cancel = Header { key: serial, ..Header::new(Kind::Cancel, 0) };
        raw.send(&cancel, &[], &[]);
    }
    for _ in 0..2 {
        assert_eq!(raw.answer().unwrap().errno, 125, "ECANCELED");
    }
    // Nothing else was answered, and a caller that goes in the midst of a call leaves nothing behind.
    assert_eq!(raw.command(0x1234, &[], &[]).unwrap().errno, 25, "ENOTTY");
    for _ in 0..3 {
        let (raw, _answer) = Raw::hello(&bus);
        raw.send(&call, &[send.as_bytes(), &message], &[]);
    }
    assert!(others_are_well(&bus));
}
