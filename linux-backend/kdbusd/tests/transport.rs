//! The local transport against a running kdbusd: each test has a daemon with a tree of its own.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use kdbus_core::abi::{Errno, NameFlags};
use kdbus_core::channel::Words;
use kdbus_core::client::{
    CALL_TIMEOUT, CallError, Connection, Deadline, ErrorReply, Failure, Hello, Message, Part, RecvError,
    SendError, Topic, Transport, block_on,
};
use kdbus_core::{WellKnownName, abi};
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{self, Header, Kind, PACKET_MAX, Packet};
use kdbus_linux::local::{ConnectError, Environment, LocalTransport, Options, SealedMemfd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::IntoBytes;

type Client = Connection<LocalTransport>;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Bytes of a pool that takes a message of a megabyte.
const LARGE: u64 = 8 << 20;

/// A running daemon, killed on drop.
struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        // kdbusd takes no standard descriptor for this.
        let mut process = Command::new("/bin/sh")
            .args(["-c", "exec \"$0\" --ready-fd 3 --root \"$1\" --set log=error 3>&1 1>/dev/null"])
            .arg(env!("CARGO_BIN_EXE_kdbusd"))
            .arg(directory.path().join("bus"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "kdbusd did not start: {:?}", process.wait());
        Self { process, directory }
    }

    fn options(&self) -> Options {
        use std::os::unix::ffi::OsStrExt;
        let root = self.directory.path().join("bus");
        let environment = Environment::new(rustix::process::geteuid().as_raw());
        Options::new().environment(environment.with_root(root.as_os_str().as_bytes()).unwrap())
    }

    fn open(&self) -> LocalTransport {
        self.options().connect_default().unwrap()
    }

    fn connect(&self) -> Client {
        Connection::hello(self.open(), &Hello::new()).unwrap()
    }

    /// A client in a thread of its own that serves until it is told to stop.
    fn service(
        &self,
        handler: impl FnMut(&mut kdbus_core::client::Request<'_, LocalTransport>) -> Result<(), ErrorReply>
        + Send
        + 'static,
    ) -> (u64, thread::JoinHandle<()>) {
        let transport = self.open();
        let (send, receive) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            let client = Connection::hello(transport, &Hello::new().accept_fds().pool_size(LARGE)).unwrap();
            send.send(client.id()).unwrap();
            client.serve_blocking(handler).unwrap();
        });
        (receive.recv().unwrap(), thread)
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn readable(fd: impl AsFd) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

/// Bytes that are different at each place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn to(client: &Client) -> Message<'_, BorrowedFd<'_>> {
    Message::to(client.id())
}

#[test]
fn payloads_of_every_size_come_back_as_they_were_sent() {
    let daemon = Daemon::start();
    let (id, service) = daemon.service(|request| {
        if request.payload().is_empty() {
            request.stop();
        }
        let echo = request.payload().to_vec();
        request.reply(&echo)
    });
    let client = Connection::hello(daemon.open(), &Hello::new().pool_size(LARGE)).unwrap();
    // Around the places where packets, pages and the staging file have their ends.
    for len in [1, 7, 8, 4095, 4096, 16_383, 16_384, 16_385, 65_536, 65_537, 1_000_000, 5, 120_000] {
        let sent = pattern(len);
        let answer = client.call_blocking(&Message::to(id).payload(&sent), CALL_TIMEOUT).unwrap();
        assert!(answer.payload() == sent, "{len}");
    }
    assert_eq!(client.call_blocking(&Message::to(id), CALL_TIMEOUT).unwrap().payload(), b"");
    service.join().unwrap();
}

#[test]
fn calls_without_waiting_in_the_transport_are_answered_too() {
    let daemon = Daemon::start();
    let (id, service) = daemon.service(|request| {
        if request.payload() == b"stop" {
            request.stop();
        }
        let echo = request.payload().to_vec();
        request.reply(&echo)
    });
    let client = daemon.connect();
    block_on(&client, async {
        let first = client.call(&Message::to(id).payload(b"first"), CALL_TIMEOUT);
        let second = client.call(&Message::to(id).payload(b"stop"), CALL_TIMEOUT);
        assert_eq!(second.await.unwrap().payload(), b"stop");
        assert_eq!(first.await.unwrap().payload(), b"first");
    })
    .unwrap();
    service.join().unwrap();
}

#[test]
fn many_more_messages_than_fit_the_pool_pass_through_it() {
    let daemon = Daemon::start();
    let sender = daemon.connect();
    let receiver = Connection::hello(daemon.open(), &Hello::new().pool_size(1 << 16)).unwrap();
    let mut next = 0_u32;
    for number in 0..5_000_u32 {
        sender.send(&to(&receiver).payload(&number.to_ne_bytes())).unwrap();
        // Some wait, so that slots and slices are given back in another order than they were used.
        if number % 3 != 0 {
            for _ in 0..2 {
                let Some(message) = receiver.try_recv().unwrap() else { break };
                assert_eq!(message.payload(), next.to_ne_bytes());
                next += 1;
            }
        }
    }
    assert!(next > 4_900, "{next}");
}

#[test]
fn a_thread_that_waits_misses_nothing() {
    const MESSAGES: u32 = 20_000;
    let daemon = Daemon::start();
    let receiver = daemon.connect();
    let id = receiver.id();
    let transport = daemon.open();
    let sender = thread::spawn(move || {
        let sender = Connection::hello(transport, &Hello::new()).unwrap();
        for number in 0..MESSAGES {
            let bytes = number.to_ne_bytes();
            // Here too a wake-up must not be missed: without one it would wait for ever.
            sender.send_when_room_blocking(&Message::to(id).payload(&bytes), Deadline::Never).unwrap();
        }
    });
    for number in 0..MESSAGES {
        let message = receiver.recv_blocking(PATIENCE).unwrap();
        assert_eq!(message.payload(), number.to_ne_bytes());
    }
    sender.join().unwrap();
    assert!(receiver.try_recv().unwrap().is_none());
}

#[test]
fn the_most_urgent_message_leaves_first_when_asked_for() {
    let daemon = Daemon::start();
    let (sender, receiver) = (daemon.connect(), daemon.connect());
    for (number, priority) in [3_i64, -7, 3, -7, 0].into_iter().enumerate() {
        sender.send(&to(&receiver).payload(&[number as u8]).priority(priority)).unwrap();
    }
    let urgent = |limit| receiver.try_recv_priority(limit).unwrap().map(|message| message.payload()[0]);
    assert_eq!((urgent(-8), urgent(0), urgent(0), urgent(0)), (None, Some(1), Some(3), Some(4)));
    let oldest = || receiver.try_recv().unwrap().map(|message| message.payload()[0]);
    assert_eq!((urgent(2), oldest(), oldest(), oldest()), (None, Some(0), Some(2), None));
}

#[test]
fn peeked_messages_stay_and_dropped_calls_end() {
    let daemon = Daemon::start();
    let (caller, receiver) = (daemon.connect(), daemon.connect());
    block_on(&caller, async {
        let call = caller.call(&to(&receiver).payload(b"x"), CALL_TIMEOUT);
        assert_eq!(receiver.peek().unwrap().unwrap().sender(), caller.id());
        assert_eq!(receiver.peek().unwrap().unwrap().sender(), caller.id());
        assert!(receiver.drop_next().unwrap());
        assert!(!receiver.drop_next().unwrap());
        assert_eq!(call.await.unwrap_err(), CallError::PeerDied);
    })
    .unwrap();
}

#[test]
fn descriptors_and_sealed_memfds_arrive() {
    let daemon = Daemon::start();
    let sender = daemon.connect();
    let receiver = Connection::hello(daemon.open(), &Hello::new().accept_fds()).unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let memfd = SealedMemfd::new(b"0123456789").unwrap();
    let parts = [
        Part::Bytes(b"ab"),
        Part::Memfd { fd: memfd.as_fd(), start: 2, size: 5 },
        Part::Memfd { fd: memfd.as_fd(), start: 0, size: 1 },
    ];
    sender.send(&to(&receiver).parts(&parts).fds(&[write.as_fd(), memfd.as_fd()])).unwrap();
    drop(write);
    let mut message = receiver.recv_blocking(PATIENCE).unwrap();
    assert_eq!((message.payload(), message.payload_len(), message.fd_count()), (&b"ab"[..], 8, 2));
    let passed = message.take_fd(0).unwrap();
    rustix::io::write(&passed, b"!").unwrap();
    drop(passed);
    let mut byte = [0; 2];
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(1));
    assert_eq!(rustix::io::read(&read, &mut byte), Ok(0), "nobody holds the write end any more");
    for index in 0..2 {
        let memfd = message.take_memfd(index).unwrap();
        let mut bytes = [0; 10];
        assert_eq!(rustix::io::pread(&memfd, &mut bytes, 0), Ok(10));
        assert_eq!(&bytes, b"0123456789");
    }
}

#[test]
fn messages_with_and_without_descriptors_keep_their_order() {
    let daemon = Daemon::start();
    let sender = daemon.connect();
    let receiver = Connection::hello(daemon.open(), &Hello::new().accept_fds()).unwrap();
    let memfd = SealedMemfd::new(b"x").unwrap();
    for number in 0..12_u8 {
        let fds = [memfd.as_fd()];
        let fds = if number % 3 == 0 { &fds[..] } else { &[] };
        sender.send(&to(&receiver).payload(&[number]).fds(fds)).unwrap();
    }
    for number in 0..12 {
        let message = receiver.recv_blocking(PATIENCE).unwrap();
        assert_eq!((message.payload(), message.fd_count()), (&[number][..], usize::from(number % 3 == 0)));
    }
}

#[test]
fn lost_signals_are_counted_and_the_rest_arrives() {
    const SIGNALS: u64 = 1_000;
    let daemon = Daemon::start();
    let (sender, subscriber) = (daemon.connect(), daemon.connect());
    let topic = Topic::parse("level.changed").unwrap();
    subscriber.subscribe(topic).unwrap();
    for _ in 0..SIGNALS {
        sender.signal(topic, &pattern(64)).unwrap();
    }
    let mut received = 0;
    while let Some(message) = subscriber.try_recv().unwrap() {
        assert_eq!(message.payload(), pattern(64));
        received += 1;
    }
    let lost = subscriber.take_lost();
    assert_eq!(received + lost, SIGNALS);
    assert!(lost > 0);
    assert!(!readable(subscriber.transport()));
}

#[test]
fn the_descriptor_is_readable_while_something_waits() {
    let daemon = Daemon::start();
    let (sender, receiver) = (daemon.connect(), daemon.connect());
    assert!(!readable(receiver.transport()));
    sender.send(&to(&receiver).payload(b"1")).unwrap();
    sender.send(&to(&receiver).payload(b"2")).unwrap();
    assert!(readable(receiver.transport()));
    assert_eq!(receiver.try_recv().unwrap().unwrap().payload(), b"1");
    assert!(readable(receiver.transport()));
    assert_eq!(receiver.try_recv().unwrap().unwrap().payload(), b"2");
    assert!(receiver.try_recv().unwrap().is_none());
    assert!(!readable(receiver.transport()));
    assert_eq!(receiver.recv_blocking(Duration::from_millis(1)).unwrap_err(), RecvError::TimedOut);
}

#[test]
fn a_canceled_call_ends_and_its_connection_goes_on() {
    let daemon = Daemon::start();
    let (caller, receiver) = (daemon.connect(), daemon.connect());
    let (cancel, canceler) = rustix::pipe::pipe().unwrap();
    let id = receiver.id();
    let canceler = thread::spawn(move || {
        let message = receiver.recv_blocking(PATIENCE).unwrap();
        rustix::io::write(&canceler, b"!").unwrap();
        drop(message);
        receiver
    });
    let message = Message::to(id).payload(b"?");
    let error = caller.call_cancelable(&message, CALL_TIMEOUT, cancel.as_fd()).unwrap_err();
    assert_eq!(error, CallError::Canceled);
    let receiver = canceler.join().unwrap();
    caller.send(&Message::to(id).payload(b"!")).unwrap();
    assert_eq!(receiver.recv_blocking(PATIENCE).unwrap().payload(), b"!");
}

#[test]
fn calls_end_at_their_deadline_and_with_their_peer() {
    let daemon = Daemon::start();
    let (caller, silent) = (daemon.connect(), daemon.connect());
    let call = caller.call_blocking(&to(&silent), Duration::from_millis(5));
    assert_eq!(call.unwrap_err(), CallError::TimedOut);
    let id = silent.id();
    let peer = thread::spawn(move || {
        // The first one has ended, the second one waits when its receiver goes.
        drop(silent.recv_blocking(PATIENCE).unwrap());
        drop(silent.recv_blocking(PATIENCE).unwrap());
    });
    assert_eq!(caller.call_blocking(&Message::to(id), CALL_TIMEOUT).unwrap_err(), CallError::PeerDied);
    peer.join().unwrap();
}

#[test]
fn names_lead_to_their_owners() {
    let daemon = Daemon::start();
    let (client, owner) = (daemon.connect(), daemon.connect());
    let name = WellKnownName::parse("org.example.Mixer").unwrap();
    assert_eq!(client.send(&Message::to_name(name)).unwrap_err(), SendError::NoSuchName);
    assert!(owner.acquire(name, NameFlags::empty()).unwrap().is_owner());
    client.send(&Message::to_name(name).payload(b"x")).unwrap();
    assert_eq!(owner.recv_blocking(PATIENCE).unwrap().destination_name(), Some("org.example.Mixer"));
}

#[test]
fn the_end_of_the_daemon_ends_everything() {
    let mut daemon = Daemon::start();
    let (idle, busy, waiting, calling) =
        (daemon.connect(), daemon.connect(), daemon.connect(), daemon.connect());
    let silent = daemon.connect();
    let id = silent.id();
    assert!(!readable(idle.transport()));
    let waiting = thread::spawn(move || waiting.recv_blocking(Deadline::Never).map(|_| ()).unwrap_err());
    let calling =
        thread::spawn(move || calling.call_blocking(&Message::to(id), CALL_TIMEOUT).map(|_| ()).unwrap_err());
    // Once the call is there, its caller waits.
    let held = silent.recv_blocking(PATIENCE).unwrap();
    daemon.kill();
    assert_eq!(waiting.join().unwrap().errno(), Errno::ECONNRESET);
    assert_eq!(calling.join().unwrap().errno(), Errno::ECONNRESET);
    assert!(readable(idle.transport()));
    let gone = Failure::Broken(Errno::ECONNRESET);
    for _ in 0..2 {
        assert_eq!(idle.transport().wait(None), Err(gone));
        assert_eq!(idle.try_recv().unwrap_err().errno(), Errno::ECONNRESET);
        assert!(busy.send(&to(&idle)).unwrap_err().is_broken());
    }
    assert_eq!(held.sender(), held.sender());
    let error = daemon.options().connect_default().unwrap_err();
    assert!(matches!(error, ConnectError::Dead(_)), "{error}");
}

#[test]
fn without_a_bus_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("0-system/bus");
    let error = LocalTransport::connect(path.to_str().unwrap()).unwrap_err();
    let expected = format!("no bus at {}: is kdbusd running? start it with `kdbusd`", path.display());
    assert_eq!(error.to_string(), expected);
}

/// What a client sends by hand.
fn raw(daemon: &Daemon) -> OwnedFd {
    socket::connect(daemon.open().handle().path().as_bytes()).unwrap()
}

/// Whether kdbusd has hung up on a client, at the latest with its next packet.
fn is_cut_off(socket: &OwnedFd) -> bool {
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    loop {
        match socket::recv(socket, &mut buffer, &mut fds, Wait::Yes) {
            Ok(arrived) if arrived.len == 0 => return true,
            Ok(_) => {}
            Err(error) => return socket::is_hang_up(error),
        }
    }
}

#[test]
fn packets_that_are_none_end_only_their_own_connection() {
    let daemon = Daemon::start();
    let (sender, receiver) = (daemon.connect(), daemon.connect());
    let good = Header::new(Kind::Command, 1);
    let wrong = [
        Header { magic: 1, ..good },
        Header { kind: 77, ..good },
        Header { kind: Kind::Answer as u16, ..good },
        Header { flags: 1 << 20, ..good },
        Header { arg_size: 1, ..good },
        Header { arg_size: u32::MAX, message_size: u32::MAX, flags: wire::FLAG_MESSAGE, ..good },
        Header { flags: wire::FLAG_STAGING_FD, ..good },
        Header { payload_size: u64::MAX, flags: wire::FLAG_MESSAGE, ..good },
    ];
    for header in wrong {
        let client = raw(&daemon);
        socket::send(&client, &header, &[], &[], Wait::Yes).unwrap();
        assert!(is_cut_off(&client), "{header:?}");
    }
    for bytes in [&b"x"[..], &[0; 55], &vec![0x6b; 130_000]] {
        let client = raw(&daemon);
        rustix::io::write(&client, bytes).unwrap();
        assert!(is_cut_off(&client), "{} bytes", bytes.len());
    }
    // A staging file from which reading might block is none.
    let (pipe, _write) = rustix::pipe::pipe().unwrap();
    let client = raw(&daemon);
    let header = Header { flags: wire::FLAG_STAGING_FD, ..good };
    socket::send(&client, &header, &[], &[pipe.as_fd()], Wait::Yes).unwrap();
    assert!(is_cut_off(&client));
    sender.send(&to(&receiver).payload(b"still here")).unwrap();
    assert_eq!(receiver.recv_blocking(PATIENCE).unwrap().payload(), b"still here");
}

#[test]
fn another_version_is_answered_before_the_end() {
    let daemon = Daemon::start();
    let client = raw(&daemon);
    let header = Header { version: 9, ..Header::new(Kind::Command, 5) };
    socket::send(&client, &header, &[], &[], Wait::Yes).unwrap();
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    let len = socket::recv(&client, &mut buffer, &mut fds, Wait::Yes).unwrap().len;
    let packet = Packet::parse(&mut buffer[..len], 0).unwrap();
    assert_eq!((packet.kind, packet.header.serial, packet.header.number), (Kind::Answer, 5, 71));
    assert!(is_cut_off(&client));
}

/// Says HELLO by hand and returns what came with it.
fn raw_hello(socket: &OwnedFd) -> Descriptors {
    let mut hello = abi::CmdHello { size: 96, pool_size: 1 << 16, ..abi::CmdHello::default() };
    let arg = hello.as_mut_bytes();
    let mut header = Header::new(Kind::Command, 1);
    (header.number, header.arg_size) = (abi::Command::Hello.request(), arg.len() as u32);
    socket::send(socket, &header, &[arg], &[], Wait::Yes).unwrap();
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    let len = socket::recv(socket, &mut buffer, &mut fds, Wait::Yes).unwrap().len;
    let packet = Packet::parse(&mut buffer[..len], fds.len()).unwrap();
    assert_eq!(packet.header.result(), Ok(()));
    fds
}

#[test]
fn a_client_that_scribbles_over_its_queue_harms_only_itself() {
    let daemon = Daemon::start();
    let (sender, receiver) = (daemon.connect(), daemon.connect());
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for round in 0..50 {
        let hostile = raw(&daemon);
        let fds = raw_hello(&hostile);
        let len = rustix::fs::fstat(&fds[2]).unwrap().st_size as usize;
        let shared = WordMap::writable(&fds[2], len / 8).unwrap();
        assert!(WordMap::writable(&fds[1], 1).is_err() && WordMap::writable(&fds[0], 1).is_err());
        for at in 0..shared.count() {
            for _ in 0..3 {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
            }
            // The first round leaves the ring's tail where it claims more than it holds.
            if round == 0 || at % 3 == 0 {
                shared.store(at, seed >> (seed % 64));
            }
        }
        // Ids are given out in order, so the newest connection is the hostile one.
        let id = receiver.id() + 1 + round;
        for _ in 0..20 {
            let _ = sender.send(&Message::to(id).payload(&pattern(100)));
        }
        let returns = Header::new(Kind::Returns, 0);
        let _ = socket::send(&hostile, &returns, &[], &[], Wait::Yes);
        sender.send(&to(&receiver).payload(b"still here")).unwrap();
        assert_eq!(receiver.recv_blocking(PATIENCE).unwrap().payload(), b"still here");
    }
}

#[test]
fn a_staging_file_that_ends_early_is_unreadable_memory() {
    let daemon = Daemon::start();
    let receiver = daemon.connect();
    let client = raw(&daemon);
    raw_hello(&client);
    let file = kdbus_linux::local::map::create(c"short", 100).unwrap();
    let mut answers = Vec::new();
    for claimed in [100_u64, 101] {
        let mut message = [0; 64 + 32];
        let header = abi::Msg { size: 96, dst_id: receiver.id(), payload_type: 1, ..abi::Msg::default() };
        message[..64].copy_from_slice(header.as_bytes());
        let mut items = abi::ItemWriter::behind(&mut message, 64).unwrap();
        items.record(abi::ItemType::PAYLOAD_VEC, &abi::Vec { size: claimed, address: 8 }).unwrap();
        let command = abi::CmdSend { size: 56, msg_address: 8, ..abi::CmdSend::default() };
        let packet = Header {
            number: abi::Command::Send.request(),
            flags: wire::FLAG_MESSAGE | wire::FLAG_STAGED | wire::FLAG_STAGING_FD,
            arg_size: 56,
            message_size: 96,
            payload_size: claimed,
            ..Header::new(Kind::Command, 2)
        };
        socket::send(&client, &packet, &[command.as_bytes(), &message], &[file.as_fd()], Wait::Yes).unwrap();
        let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
        let len = socket::recv(&client, &mut buffer, &mut fds, Wait::Yes).unwrap().len;
        answers.push(Packet::parse(&mut buffer[..len], 0).unwrap().header.result());
    }
    assert_eq!(answers, [Ok(()), Err(Errno::EFAULT)]);
    assert_eq!(receiver.recv_blocking(PATIENCE).unwrap().payload(), [0; 100]);
}
