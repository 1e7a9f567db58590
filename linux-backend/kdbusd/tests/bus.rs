//! Clients over a real daemon: messages, calls, signals, names, descriptors.

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::abi::{AttachFlags, Errno, NameFlags};
use kdbus_core::client::{
    AcquireError, CallError, Hello, HelloError, Message, NameRule, Notification, Part, ReceivedPart,
    RecvError, Rule, SendError, Topic, TopicPattern, Transport,
};
use kdbus_core::{NodeName, WellKnownName};
use kdbus_linux::local::SealedMemfd;

const SOON: Duration = Duration::from_secs(20);

fn name(text: &str) -> WellKnownName<'_> {
    WellKnownName::parse(text).unwrap()
}

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

#[test]
fn large_payloads_arrive_whole_by_either_way() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().pool_size(16 << 20)));
    // In the packet, in a packet's last place, in the staging file, and in a larger one.
    for size in [1, 4096, 1 << 14, (1 << 14) + 1, 1 << 16, (1 << 16) + 8, 1 << 20, 2_500_000] {
        let bytes: Vec<u8> = (0..size).map(|at: usize| (at * 31 + size) as u8).collect();
        let (head, tail) = bytes.split_at(size / 3);
        let parts = [Part::Bytes(head), Part::Zeros(24), Part::Bytes(tail)];
        a.send(&Message::to(b.id()).parts(&parts)).unwrap();
        let message = b.try_recv().unwrap().unwrap();
        let received: Vec<u8> = message
            .parts()
            .flat_map(|part| match part {
                ReceivedPart::Bytes(bytes) => bytes.to_vec(),
                _ => Vec::new(),
            })
            .collect();
        assert!(received == bytes, "{size} bytes");
    }
}

#[test]
fn a_call_is_answered_while_others_wait() {
    let bus = Bus::start();
    let (service, caller) = (bus.connect(), bus.connect());
    let id = service.id();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            service
                .serve_blocking(|request| {
                    let mut answer = request.payload().to_vec();
                    answer.reverse();
                    if answer.is_empty() {
                        request.stop();
                    }
                    request.reply(&answer)
                })
                .unwrap();
        });
        for call in [&b"abc"[..], b"xy", b""] {
            let answer = caller.call_blocking(&Message::to(id).payload(call), SOON).unwrap();
            let expected: Vec<u8> = call.iter().rev().copied().collect();
            assert_eq!(answer.payload(), expected);
        }
    });
}

#[test]
fn a_call_ends_at_its_deadline() {
    let bus = Bus::start();
    let (service, caller) = (bus.connect(), bus.connect());
    let short = Duration::from_millis(20);
    let ended = caller.call_blocking(&Message::to(service.id()), short).unwrap_err();
    assert!(matches!(ended, CallError::TimedOut), "{ended}");
    // The message itself still waits, and its answer comes too late.
    let late = service.try_recv().unwrap().unwrap().reply_to();
    assert_eq!(service.reply(late, b""), Err(SendError::NotAwaited));
}

#[test]
fn a_call_ends_with_its_peer() {
    let bus = Bus::start();
    let (service, caller) = (bus.connect(), bus.connect());
    let id = service.id();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _call = service.recv_blocking(SOON).unwrap();
            drop(_call);
            drop(service);
        });
        let ended = caller.call_blocking(&Message::to(id), SOON).unwrap_err();
        assert!(matches!(ended, CallError::PeerDied), "{ended}");
    });
}

#[test]
fn a_call_can_be_canceled() {
    let bus = Bus::start();
    let (service, caller) = (bus.connect(), bus.connect());
    let (cancel, trigger) = rustix::pipe::pipe().unwrap();
    let message = Message::to(service.id());
    std::thread::scope(|scope| {
        let callee = scope.spawn(move || {
            while service.peek().unwrap().is_none() {
                std::thread::yield_now();
            }
            rustix::io::write(&trigger, b"x").unwrap();
            service
        });
        let ended = caller.call_cancelable(&message, SOON, cancel.as_fd()).unwrap_err();
        assert!(matches!(ended, CallError::Canceled), "{ended}");
        callee.join().unwrap();
    });
}

#[test]
fn a_signal_reaches_its_subscribers_in_one_order() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    let (one, two, other) = (bus.connect(), bus.connect(), bus.connect());
    for subscriber in [&one, &two] {
        subscriber.subscribe(TopicPattern::parse("sensor.*").unwrap()).unwrap();
    }
    other.subscribe(TopicPattern::parse("mixer.*").unwrap()).unwrap();
    let topic = Topic::parse("sensor.light").unwrap();
    for number in 0..8_u8 {
        let sender = if number % 2 == 0 { &a } else { &b };
        sender.signal(topic, &[number]).unwrap();
    }
    for subscriber in [&one, &two] {
        for number in 0..8_u8 {
            assert_eq!(subscriber.try_recv().unwrap().unwrap().payload(), [number]);
        }
        assert!(subscriber.try_recv().unwrap().is_none());
    }
    assert!(other.try_recv().unwrap().is_none());
}

#[test]
fn a_name_passes_to_the_next_in_its_queue() {
    let bus = Bus::start();
    let (a, b, watcher) = (bus.connect(), bus.connect(), bus.connect());
    watcher.add_match(1, &[Rule::NameChange(NameRule::default())]).unwrap();
    let mixer = name("org.example.Mixer");
    a.acquire(mixer, NameFlags::empty()).unwrap();
    assert_eq!(b.acquire(mixer, NameFlags::empty()).unwrap_err(), AcquireError::Taken);
    b.acquire(mixer, NameFlags::QUEUE).unwrap();
    let (a_id, b_id) = (a.id(), b.id());
    drop(a);
    assert_eq!(watcher.owner(mixer).unwrap(), Some(b_id));
    let news = watcher.try_recv().unwrap().unwrap();
    let Some(Notification::NameChange { name, old, new, .. }) = news.notification() else {
        panic!("{news:?}");
    };
    assert_eq!((name, old, new), ("org.example.Mixer", a_id, b_id));
}

#[test]
fn what_hung_up_is_gone_before_the_next_command() {
    let bus = Bus::start();
    let a = bus.connect();
    for _ in 0..300 {
        let b = bus.connect();
        let id = b.id();
        drop(b);
        assert_eq!(a.send(&Message::to(id)), Err(SendError::NoSuchConnection));
    }
}

#[test]
fn descriptors_and_memfds_come_out_as_they_went_in() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let memfd = SealedMemfd::new(b"0123456789").unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let memfd_fd = memfd.as_fd();
    let parts = [Part::Memfd { fd: memfd_fd, start: 2, size: 3 }, Part::Bytes(b"tail")];
    let fds = [writer.as_fd(), writer.as_fd()];
    a.send(&Message::to(b.id()).parts(&parts).fds(&fds)).unwrap();
    drop(writer);
    let mut message = b.try_recv().unwrap().unwrap();
    assert_eq!(message.fd_count(), 2);
    for at in 0..2 {
        let mut pipe = std::fs::File::from(message.take_fd(at).unwrap());
        pipe.write_all(&[b'0' + at as u8]).unwrap();
    }
    let mut text = String::new();
    std::fs::File::from(reader).read_to_string(&mut text).unwrap();
    assert_eq!(text, "01", "nobody holds another write end");
    let part = message.parts().next();
    assert!(matches!(part, Some(ReceivedPart::Memfd { start: 2, size: 3, fd: Some(_) })), "{part:?}");
    let received: OwnedFd = message.take_memfd(0).unwrap();
    let mut bytes = [0; 3];
    rustix::io::pread(&received, &mut bytes, 2).unwrap();
    assert_eq!(&bytes, b"234");
}

#[test]
fn files_that_cannot_be_passed_are_refused() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let unsealed = rustix::fs::memfd_create("x", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&unsealed, 8).unwrap();
    let (pipe, _writer) = rustix::pipe::pipe().unwrap();
    let memfd = |fd| [Part::Memfd { fd, start: 0, size: 8 }];
    assert_eq!(a.send(&Message::to(b.id()).parts(&memfd(unsealed.as_fd()))), Err(SendError::NotSealed));
    assert_eq!(
        a.send(&Message::to(b.id()).parts(&memfd(pipe.as_fd()))),
        Err(SendError::Refused(Errno::EMEDIUMTYPE))
    );
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let fds = [socket.as_fd()];
    assert_eq!(a.send(&Message::to(b.id()).fds(&fds)), Err(SendError::Unsupported));
    let fds = [pipe.as_fd()];
    let none = bus.connect();
    assert_eq!(a.send(&Message::to(none.id()).fds(&fds)), Err(SendError::NoDescriptors));
    assert!(b.try_recv().unwrap().is_none());
}

#[test]
fn a_reply_brings_its_descriptors_to_a_waiting_caller() {
    let bus = Bus::start();
    let (service, caller) = (bus.connect(), bus.hello(&Hello::new().accept_fds()));
    let id = service.id();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let call = service.recv_blocking(SOON).unwrap();
            let memfd = SealedMemfd::new(b"late").unwrap();
            let (reader, _writer) = rustix::pipe::pipe().unwrap();
            let parts = [Part::Memfd { fd: memfd.as_fd(), start: 0, size: 4 }];
            let fds = [reader.as_fd()];
            service.send(&Message::reply(call.reply_to()).parts(&parts).fds(&fds)).unwrap();
        });
        let mut answer = caller.call_blocking(&Message::to(id), SOON).unwrap();
        assert!(answer.take_fd(0).is_some());
        let memfd = answer.take_memfd(0).unwrap();
        let mut bytes = [0; 4];
        rustix::io::pread(&memfd, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"late");
    });
}

#[test]
fn a_receiver_sleeps_until_its_bell_rings() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    let id = b.id();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for number in 0..200_u8 {
                assert_eq!(b.recv_blocking(SOON).unwrap().payload(), [number]);
                b.send(&Message::to(b.recv_blocking(SOON).unwrap().sender())).unwrap();
            }
        });
        for number in 0..200_u8 {
            a.send(&Message::to(id).payload(&[number])).unwrap();
            a.send(&Message::to(id)).unwrap();
            a.recv_blocking(SOON).unwrap();
        }
    });
}

#[test]
fn a_sender_is_woken_when_there_is_room() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    let id = b.id();
    let full = (0..10_000).find_map(|_| a.send(&Message::to(id)).err());
    assert!(full.is_some_and(SendError::is_full), "{full:?}");
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            drop(b.recv_blocking(SOON).unwrap());
            b
        });
        a.send_when_room_blocking(&Message::to(id), SOON).unwrap();
        receiver.join().unwrap();
    });
}

#[test]
fn lost_signals_are_counted() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    b.subscribe(TopicPattern::parse("x.*").unwrap()).unwrap();
    let topic = Topic::parse("x.y").unwrap();
    for _ in 0..1000 {
        a.signal(topic, b"payload").unwrap();
    }
    let mut received = 0;
    while b.try_recv().unwrap().is_some() {
        received += 1;
    }
    assert!(received > 0 && received < 1000, "{received}");
    assert_eq!(received + b.take_lost(), 1000);
}

#[test]
fn metadata_is_that_of_the_sender() {
    let bus = Bus::start();
    let a = bus.hello(&Hello::new().description(NodeName::parse("sender").unwrap()));
    let b = bus.hello(&Hello::new().ask_metadata(AttachFlags::all()));
    a.acquire(name("org.example.A"), NameFlags::empty()).unwrap();
    a.send(&Message::to(b.id())).unwrap();
    let message = b.try_recv().unwrap().unwrap();
    let metadata = message.metadata();
    let uid = u64::from(rustix::process::geteuid().as_raw());
    assert_eq!(metadata.creds().unwrap().euid, uid);
    let pids = metadata.pids().unwrap();
    assert_eq!(pids.pid, u64::from(std::process::id()));
    assert_eq!(pids.ppid, u64::from(std::os::unix::process::parent_id()));
    assert_eq!(metadata.description(), Some("sender"));
    assert_eq!(metadata.names().map(|(_, name)| name).collect::<Vec<_>>(), ["org.example.A"]);
    let exe = std::env::current_exe().unwrap();
    assert_eq!(metadata.executable(), Some(exe.as_os_str().as_encoded_bytes()));
    assert!(metadata.cgroup().is_some() && metadata.command_line().is_some());
    assert!(metadata.capabilities().is_some() && metadata.process_name().is_some());
}

#[test]
fn an_orderly_end_leaves_nothing_behind() {
    let bus = Bus::start();
    let (a, b) = (bus.connect(), bus.connect());
    a.send(&Message::to(b.id())).unwrap();
    let b = match b.byebye() {
        Err(refused) => refused.connection,
        Ok(()) => panic!("messages wait"),
    };
    drop(b.try_recv().unwrap().unwrap());
    let id = b.id();
    b.byebye().unwrap_or_else(|_| panic!("nothing waits"));
    assert_eq!(a.send(&Message::to(id)), Err(SendError::NoSuchConnection));
}

#[test]
fn clients_learn_that_the_daemon_is_gone() {
    let mut bus = Bus::start();
    let client = bus.connect();
    let fresh = bus.open();
    let root = bus.root.clone();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let ended = client.recv_blocking(SOON).err();
            (client, ended)
        });
        bus.stop();
        let (client, ended) = waiting.join().unwrap();
        assert!(ended.is_some_and(RecvError::is_broken), "{ended:?}");
        assert!(client.send(&Message::to(1)).unwrap_err().is_broken());
    });
    let mut arg = [0; 96];
    assert!(fresh.command(kdbus_core::abi::Command::Hello, &mut arg).is_err());
    assert!(!root.exists());
    assert!(bus.try_open().is_err());
}

#[test]
fn a_pool_beyond_the_budget_is_refused_and_comes_back() {
    let bus = Bus::with(|config| {
        config.memory.pools = kdbusd::config::Bytes(2 << 20);
        config.memory.largest_pool = kdbusd::config::Bytes(1 << 20);
    });
    let hello = |size| Client::with_capacities(bus.open(), &Hello::new().pool_size(size));
    assert_eq!(hello(2 << 20).unwrap_err(), HelloError::Refused(Errno::ENOMEM));
    let first = hello(1 << 20).unwrap();
    let _second = hello(1 << 20).unwrap();
    assert_eq!(hello(4096).unwrap_err(), HelloError::Refused(Errno::ENOMEM));
    drop(first);
    hello(1 << 20).unwrap();
}

#[test]
fn activators_start_what_is_called() {
    let bus = Bus::start();
    let mixer = name("org.example.Mixer");
    let activator = bus.hello(&Hello::new().activator(mixer));
    let caller = bus.connect();
    caller.send(&Message::to_name(mixer).payload(b"early")).unwrap();
    assert_eq!(activator.peek().unwrap().unwrap().sender(), caller.id());
    let service = bus.connect();
    service.acquire(mixer, NameFlags::empty()).unwrap();
    assert_eq!(service.try_recv().unwrap().unwrap().payload(), b"early");
    assert!(activator.try_recv().unwrap().is_none());
}
