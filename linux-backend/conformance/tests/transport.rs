//! Clients of the kernel transport, over the loop-back.

use std::io::{Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::Duration;

use kdbus_conformance::Needs;
use kdbus_conformance_cli::{Loopback, LoopbackPlatform, Platform, ROOT};
use kdbus_core::abi::{BloomParameter, Command, Errno, RecvFlags};
use kdbus_core::client::{
    CALL_TIMEOUT, CallError, Connection, Failure, Hello, Message, Part, Request, Transport,
};
use kdbus_linux::kernel::{Access, KernelTransport, Owner, make_bus_over, make_endpoint_over};
use kdbus_linux::local::SealedMemfd;

type Client = Connection<KernelTransport<Loopback>>;

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A bus of this user's on a domain of its own.
struct Bus {
    seam: Loopback,
    name: String,
    owner: Option<Owner<Loopback>>,
}

impl Bus {
    fn make() -> Self {
        let seam = LoopbackPlatform::new(&Needs::default()).seam().clone();
        let name = format!("{}-test", rustix::process::geteuid().as_raw());
        let bloom = BloomParameter { size: 64, n_hash: 1 };
        let owner = make_bus_over(seam.clone(), ROOT, &name, bloom, Access::World).unwrap();
        Self { seam, name, owner: Some(owner) }
    }

    fn open(&self) -> KernelTransport<Loopback> {
        KernelTransport::over(self.seam.clone(), &format!("{ROOT}/{}/bus", self.name)).unwrap()
    }

    fn hello(&self, hello: &Hello<'_>) -> Client {
        Connection::with_capacities(self.open(), hello).unwrap()
    }

    fn connect(&self) -> Client {
        self.hello(&Hello::new())
    }
}

fn to(client: &Client) -> Message<'_, BorrowedFd<'_>> {
    Message::to(client.id())
}

#[test]
fn payloads_of_every_size_arrive_as_they_were_sent() {
    let bus = Bus::make();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().pool_size(8 << 20)));
    for len in [0, 1, 7, 8, 4096, 65_537, 1_000_000] {
        let sent: Vec<u8> = (0..len as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        a.send(&to(&b).payload(&sent)).unwrap();
        let message = b.try_recv().unwrap().expect("sent is visible");
        assert!(message.payload() == sent && message.sender() == a.id(), "{len}");
    }
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn a_blocking_call_brings_its_answer() {
    let bus = Bus::make();
    let service = bus.connect();
    let id = service.id();
    let service = thread::spawn(move || {
        let answer = |request: &mut Request<'_, KernelTransport<Loopback>>| {
            if request.payload() == b"stop" {
                request.stop();
            }
            let echo = request.payload().to_vec();
            request.reply(&echo)
        };
        service.serve_blocking(answer).unwrap();
    });
    let client = bus.connect();
    for word in [&b"one"[..], b"two", b"stop"] {
        let answer = client.call_blocking(&Message::to(id).payload(word), CALL_TIMEOUT).unwrap();
        assert_eq!(answer.payload(), word);
    }
    service.join().unwrap();
    assert!(client.call_blocking(&Message::to(id), CALL_TIMEOUT).is_err());
}

#[test]
fn a_readable_descriptor_cancels_a_call() {
    let bus = Bus::make();
    let (client, silent) = (bus.connect(), bus.connect());
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&writer, b"x").unwrap();
    let ended = client.call_cancelable(&to(&silent), CALL_TIMEOUT, reader.as_fd());
    assert_eq!(ended.map(|_| ()).unwrap_err().errno(), Errno::ECANCELED);
}

#[test]
fn descriptors_and_memfds_arrive_and_may_be_sent_again() {
    let bus = Bus::make();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let memfd = SealedMemfd::new(b"sealed").unwrap();
    let parts = [Part::Memfd { fd: memfd.as_fd(), start: 0, size: 6 }];
    let fds = [writer.as_fd()];
    for _ in 0..2 {
        a.send(&to(&b).parts(&parts).fds(&fds)).unwrap();
        let mut message = b.try_recv().unwrap().expect("sent is visible");
        let received: OwnedFd = message.take_fd(0).unwrap();
        std::fs::File::from(received).write_all(b"y").unwrap();
        let mut content = Vec::new();
        let mut file = std::fs::File::from(message.take_memfd(0).unwrap());
        file.rewind().unwrap();
        file.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"sealed");
    }
    let mut bytes = [0; 8];
    assert_eq!(rustix::io::read(&reader, &mut bytes), Ok(2));
    assert_eq!(bus.seam.held_files(), 0);
}

#[test]
fn looking_at_a_message_takes_nothing() {
    let bus = Bus::make();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let (_reader, writer) = rustix::pipe::pipe().unwrap();
    a.send(&to(&b).payload(b"1").fds(&[writer.as_fd()])).unwrap();
    let peeked = b.transport().recv(RecvFlags::PEEK, 0).unwrap().message.unwrap();
    assert!(peeked.fds.is_empty());
    // The sender's own descriptor is not mistaken for one that was installed.
    assert!(rustix::io::fcntl_getfd(&writer).is_ok());
    assert_eq!(b.try_recv().unwrap().unwrap().fd_count(), 1);
    assert!(b.transport().recv(RecvFlags::PEEK, 0).unwrap().message.is_none());
}

#[test]
fn a_thread_that_waits_misses_nothing() {
    const MESSAGES: u32 = 300;
    let bus = Bus::make();
    let (sender, receiver) = (bus.connect(), bus.connect());
    let id = receiver.id();
    let sender = thread::spawn(move || {
        for number in 0..MESSAGES {
            let bytes = number.to_ne_bytes();
            while sender.send(&Message::to(id).payload(&bytes)).is_err() {
                thread::yield_now();
            }
        }
        sender
    });
    for number in 0..MESSAGES {
        assert_eq!(receiver.recv_blocking(PATIENCE).unwrap().payload(), number.to_ne_bytes());
    }
    drop(sender.join().unwrap());
}

#[test]
fn the_end_of_the_bus_ends_its_connections() {
    let mut bus = Bus::make();
    let (calling, silent) = (bus.connect(), bus.connect());
    let id = silent.id();
    let calling =
        thread::spawn(move || calling.call_blocking(&Message::to(id), CALL_TIMEOUT).map(|_| ()).unwrap_err());
    // Once the call is there, its caller waits.
    drop(silent.recv_blocking(PATIENCE).unwrap());
    bus.owner = None;
    let ended = calling.join().unwrap();
    assert!(ended == CallError::PeerDied || ended.errno() == Errno::ECONNRESET, "{ended:?}");
    assert_eq!(silent.transport().wait(None), Err(Failure::Broken(Errno::ECONNRESET)));
    assert_eq!(
        silent.transport().command(Command::Byebye, &mut [0; 24]).map_err(Failure::errno),
        Err(Errno::ECONNRESET)
    );
}

#[test]
fn arguments_that_claim_more_than_they_have_go_nowhere() {
    let bus = Bus::make();
    let transport = bus.open();
    let mut arg = [0_u64; 12];
    arg[0] = 1000;
    let bytes = zerocopy::IntoBytes::as_mut_bytes(&mut arg);
    assert_eq!(transport.command(Command::Hello, bytes), Err(Failure::Refused(Errno::EFAULT)));
    assert_eq!(transport.command(Command::Send, bytes), Err(Failure::Refused(Errno::EINVAL)));
}

#[test]
fn an_argument_need_not_be_aligned() {
    let bus = Bus::make();
    let client = bus.connect();
    let mut arg = [0_u8; 33];
    for shift in 0..2 {
        let place = &mut arg[shift..shift + 24];
        place.fill(0);
        place[..8].copy_from_slice(&24_u64.to_ne_bytes());
        // The question which flags there are.
        place[8..16].copy_from_slice(&(1_u64 << 63).to_ne_bytes());
        client.transport().command(Command::Byebye, place).unwrap();
        assert_eq!(place[8..16], [0; 8]);
    }
}

#[test]
fn an_endpoint_lives_as_long_as_its_owner() {
    let bus = Bus::make();
    let uid = rustix::process::geteuid().as_raw();
    let directory = format!("{ROOT}/{}", bus.name);
    let name = format!("{uid}-door");
    let endpoint = make_endpoint_over(bus.seam.clone(), &directory, &name, Access::Owner).unwrap();
    let path = format!("{directory}/{name}");
    let open = || KernelTransport::over(bus.seam.clone(), &path).map(|_| ());
    assert_eq!(open(), Ok(()));
    drop(endpoint);
    assert_eq!(open().map_err(Errno::raw), Err(2));
}

#[test]
fn names_that_are_too_long_are_refused() {
    let bus = Bus::make();
    let bloom = BloomParameter { size: 64, n_hash: 1 };
    for len in [70, 300] {
        let name = format!("{}-{}", rustix::process::geteuid().as_raw(), "x".repeat(len));
        let made = make_bus_over(bus.seam.clone(), ROOT, &name, bloom, Access::Owner);
        assert_eq!(made.map(|_| ()).unwrap_err(), Errno::ENAMETOOLONG);
    }
}
