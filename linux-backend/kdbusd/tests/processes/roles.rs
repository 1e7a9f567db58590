//! What clients do that are processes of their own.

use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use kdbus_core::WellKnownName;
use kdbus_core::abi::{AttachFlags, NameFlags};
use kdbus_core::client::{Connection, Hello, Message};
use kdbus_linux::local::{ConnectError, LocalTransport, Options};

use crate::{SERVICE, SOON, common};

/// The clients' program: does what `role` says on the bus at `path`, and says on standard output how it goes.
pub(crate) fn client(role: &str, path: &str) {
    let transport = match LocalTransport::connect(path) {
        Ok(transport) => transport,
        Err(ConnectError::Denied(_)) => return println!("denied"),
        Err(error) => return println!("{error}"),
    };
    let hello =
        if matches!(role, "linger" | "litter" | "visit") { Hello::new().accept_fds() } else { Hello::new() };
    let hello = hello.ask_metadata(if role == "apart" { AttachFlags::all() } else { AttachFlags::empty() });
    let bus: common::Client = match Connection::with_capacities(transport, &hello) {
        Ok(bus) => bus,
        Err(error) => return println!("{error}"),
    };
    match role {
        "connect" => println!("connected {}", bus.id()),
        // Owns the service, takes calls and answers none.
        "mute" => {
            bus.acquire(WellKnownName::parse(SERVICE).unwrap(), NameFlags::empty()).unwrap();
            println!("ready {}", bus.id());
            loop {
                drop(bus.recv_blocking(SOON));
            }
        }
        // Tries to own the service, and keeps it.
        "own" => {
            let owned = bus.acquire(WellKnownName::parse(SERVICE).unwrap(), NameFlags::empty());
            println!("{}", if owned.is_ok() { "owned" } else { "refused" });
            let _ = std::io::stdin().read(&mut [0]);
        }
        // Sends what it can to the service.
        "busy" => {
            println!("ready {}", bus.id());
            let bytes = vec![7; 100_000];
            let name = WellKnownName::parse(SERVICE).unwrap();
            loop {
                let _ = bus.send(&Message::to_name(name).payload(&bytes));
                let _ = bus.call_blocking(&Message::to_name(name), Duration::from_millis(1));
            }
        }
        "say" => {
            let name = WellKnownName::parse(SERVICE).unwrap();
            let sent = bus.send(&Message::to_name(name).payload(b"from afar"));
            println!("{}", if sent.is_ok() { "sent" } else { "refused" });
            // Stays until the other end has read, so that its process is there to be looked at.
            let _ = std::io::stdin().read(&mut [0]);
        }
        // Asks for a lane to the service, sends to it either way, and says how that went.
        "lane" => {
            let name = WellKnownName::parse(SERVICE).unwrap();
            let opened = bus.transport().open_lane_to_name(name);
            for _ in 0..3 {
                bus.send(&Message::to_name(name).payload(b"in time")).unwrap();
            }
            println!("{opened:?}");
            let _ = std::io::stdin().read(&mut [0]);
        }
        // As whoever does not ignore the signal, sends by lane to a connection that does what it likes with its bell.
        "ring" => {
            let ends = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(true));
            signal_hook::flag::register_conditional_default(signal_hook::consts::SIGPIPE, ends).unwrap();
            println!("ready {}", bus.id());
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            let to = line.trim().parse().unwrap();
            bus.transport().open_lane(to).unwrap();
            println!("opened");
            std::io::stdin().read_line(&mut line).unwrap();
            for _ in 0..3 {
                bus.send(&Message::to(to).payload(b"by lane")).unwrap();
            }
            println!("sent {}", bus.transport().handle().stats(bus.id()).unwrap().stats.sent);
        }
        // Has as many descriptors sent as it can get, and reads none of them, by one connection after another.
        "hoard" => {
            let mut connections = Vec::new();
            let mut next = Some(bus);
            while let Some(bus) = next.filter(|_| connections.len() < 16) {
                hoard(&bus);
                connections.push(bus);
                let transport = Options::new().lanes(0).staging(0).connect(path);
                next = transport.ok().and_then(|node| Connection::with_capacities(node, &Hello::new()).ok());
            }
            println!("ready {}", connections.len());
            let _ = std::io::stdin().read(&mut [0]);
        }
        // Sends itself sockets that linger, has none of them any more, and goes, again and again.
        "linger" => {
            let mut peers = Vec::new();
            let mut next = Some(bus);
            while let Some(bus) = next.take() {
                peers.extend(leave_slow_ones(&bus));
                drop(bus);
                if peers.len() < 96 {
                    next = Some(again(path));
                }
            }
            println!("ready {}", peers.len());
            let _ = std::io::stdin().read(&mut [0]);
        }
        // The same, and then leaves ordinary files behind as long as it is served.
        "litter" => {
            let mut peers = Vec::new();
            let mut next = Some(bus);
            while let Some(bus) = next.take() {
                peers.extend(leave_slow_ones(&bus));
                next = (peers.len() < 24).then(|| again(path));
            }
            let file = std::fs::File::open("/dev/null").unwrap();
            let mut left = 0;
            while left < 2000 {
                let transport = Options::new().lanes(0).staging(0).connect(path).unwrap();
                let connected: Result<common::Client, _> =
                    Connection::with_capacities(transport, &Hello::new().accept_fds());
                let Ok(bus) = connected else {
                    break;
                };
                let sent = bus.send(&Message::to(bus.id()).fds(&[file.as_fd(), file.as_fd()]));
                left += if sent.is_ok() { 2 } else { 0 };
            }
            println!("ready {left}");
            let _ = std::io::stdin().read(&mut [0]);
        }
        // Comes and goes, and sends itself a file that it does not take before it goes.
        "visit" => {
            let file = std::fs::File::open("/dev/null").unwrap();
            let mut next = Some(bus);
            for _ in 0..100 {
                let bus = next.take().unwrap_or_else(|| again(path));
                bus.send(&Message::to(bus.id()).fds(&[file.as_fd()])).unwrap();
            }
            println!("ready 100");
            let _ = std::io::stdin().read(&mut [0]);
        }
        // Tells who calls it, as it sees that, and who it is itself.
        "apart" => {
            println!("ready {}", bus.id());
            for _ in 0..2 {
                let call = bus.recv_blocking(SOON).unwrap();
                let seen = call.metadata();
                let (creds, pids) = (seen.creds().unwrap(), seen.pids().unwrap());
                let named = seen.process_name().is_some();
                println!("uid {} gid {} pid {} named {named}", creds.uid, creds.gid, pids.pid);
                bus.reply(call.reply_to(), b"").unwrap();
            }
            bus.send(&Message::to(bus.id())).unwrap();
            let own = bus.recv_blocking(SOON).unwrap();
            let (creds, pids) = (own.metadata().creds().unwrap(), own.metadata().pids().unwrap());
            println!("uid {} pid {} ppid {}", creds.uid, pids.pid, pids.ppid);
            let _ = std::io::stdin().read(&mut [0]);
        }
        _ => println!("unknown role"),
    }
}

/// Another connection, as soon as there is a place for it.
fn again(path: &str) -> common::Client {
    let until = std::time::Instant::now() + SOON;
    loop {
        let transport = Options::new().lanes(0).staging(0).connect(path).unwrap();
        match Connection::with_capacities(transport, &Hello::new().accept_fds()) {
            Ok(bus) => return bus,
            Err(error) => assert!(std::time::Instant::now() < until, "{error}"),
        }
    }
}

/// Sends sockets whose last close waits for their peers to itself, as many as it may, and returns those peers.
fn leave_slow_ones(bus: &common::Client) -> Vec<std::net::TcpStream> {
    let mut peers = Vec::new();
    for _ in 0..8 {
        let (socket, peer) = slow_to_close();
        if bus.send(&Message::to(bus.id()).fds(&[socket.as_fd()])).is_err() {
            // Nobody else has it.
            rustix::net::sockopt::set_socket_linger(&socket, None).unwrap();
            break;
        }
        peers.push(peer);
    }
    peers
}

/// A socket whose last close waits until `peer` goes, and that peer.
fn slow_to_close() -> (std::os::fd::OwnedFd, std::net::TcpStream) {
    use rustix::net::sockopt;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    // Soon full.
    sockopt::set_socket_recv_buffer_size(&listener, 4096).unwrap();
    let socket = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    sockopt::set_socket_send_buffer_size(&socket, 4096).unwrap();
    let (peer, _) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    while std::io::Write::write(&mut &socket, &[0; 4096]).is_ok() {}
    sockopt::set_socket_linger(&socket, Some(Duration::from_secs(3600))).unwrap();
    (socket.into(), peer)
}

/// Brings a lane and drops it, again and again, as long as anybody answers; nobody reads that.
pub(crate) fn hoard(bus: &common::Client) {
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind};
    let socket = bus.transport().handle().socket();
    for serial in 0..500 {
        for packet in [Header::new(Kind::BringLane, 1 << 40 | serial), Header::new(Kind::DropLane, 0)] {
            if socket::send(socket, &packet, &[], &[], Wait::Yes).is_err() {
                return;
            }
        }
    }
}
