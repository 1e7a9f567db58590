//! Calls past a daemon with lanes, and what came of them.

use std::thread::JoinHandle;
use std::time::Duration;

use kdbus_core::abi::{ItemType, Items, Msg, RecvFlags};
use kdbus_core::client::{Connection, Hello, Message, ReplyTo, Transport};
use kdbus_core::{Instant, WellKnownName};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::FromBytes;

use super::{Bus, Client};

pub(crate) fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

pub(crate) fn hello(bus: &Bus, lanes: usize, hello: &Hello<'_>) -> Client {
    let transport = bus.options().lanes(lanes).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, hello).unwrap()
}

/// Messages that kdbusd has carried to a connection.
pub(crate) fn carried(client: &Client) -> u64 {
    client.transport().handle().stats(client.id()).unwrap().stats.received
}

pub(crate) fn name() -> WellKnownName<'static> {
    WellKnownName::parse("org.example.Service").unwrap()
}

/// Two connections with open lanes both ways.
pub(crate) fn pair(bus: &Bus) -> (Client, Client) {
    let hello = |lanes| hello(bus, lanes, &Hello::new().pool_size(4 << 20));
    let (a, b) = (hello(2), hello(2));
    a.transport().open_lane(b.id()).unwrap();
    b.transport().open_lane(a.id()).unwrap();
    (a, b)
}

pub(crate) fn after(millis: u64) -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    let now = Duration::new(now.tv_sec as u64, now.tv_nsec as u32);
    Instant::from_nanos((now + Duration::from_millis(millis)).as_nanos() as u64)
}

pub(crate) fn call(from: &Client, to: &Client, cookie: u64, millis: u64) {
    let message = Message::to(to.id()).payload(b"question").cookie(cookie).expect_reply(after(millis));
    from.send(&message).unwrap();
}

pub(crate) fn reply(from: &Client, to: ReplyTo, payload: &[u8]) -> Result<(), String> {
    from.send(&Message::reply(to).payload(payload)).map(|_| ()).map_err(|error| format!("{error:?}"))
}

/// Receives a call, and whom to answer.
pub(crate) fn called(by: &Client) -> ReplyTo {
    by.try_recv().unwrap().expect("it was called").reply_to()
}

/// The raw messages that wait: sender, cookie of the call that it is about, kind of the first item.
pub(crate) fn ends(client: &Client) -> Vec<(u64, u64, ItemType)> {
    let transport = client.transport();
    let next = || {
        let info = transport.recv(RecvFlags::empty(), 0).unwrap().message?.info;
        let bytes = transport.slice(info.offset, info.msg_size).unwrap();
        let header = Msg::read_from_prefix(bytes).unwrap().0;
        let items = &bytes[Msg::SIZE..header.size as usize];
        let kind = Items::new(items).next().unwrap().unwrap().kind;
        transport.free(info.offset);
        Some((header.src_id, header.cookie_reply(), kind))
    };
    std::iter::from_fn(next).collect()
}

/// What `b` does in a thread of its own, while the caller waits.
pub(crate) fn meanwhile<R: Send + 'static>(
    b: Client,
    act: impl FnOnce(&Client) -> R + Send + 'static,
) -> JoinHandle<(Client, R)> {
    std::thread::spawn(move || {
        let made = act(&b);
        (b, made)
    })
}

pub(crate) const LONG: Duration = Duration::from_secs(20);

/// Whether the descriptor of a connection is readable now.
pub(crate) fn is_readable(client: &Client) -> bool {
    let mut fds = [PollFd::new(client.transport(), PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::default())).unwrap() == 1
}
