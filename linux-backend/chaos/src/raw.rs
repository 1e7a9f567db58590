//! A client that works on the shared queue itself, so that it can stop between two writes of which the
//! library makes one call.

use std::os::fd::OwnedFd;
use std::time::Duration;

use kdbus_core::abi::{CmdHello, Command};
use kdbus_core::channel::{Entry, InboxReader, Return};
use kdbus_linux::local::map::{ReadMap, WordMap};
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{Header, Kind as PacketKind, PACKET_MAX, Packet};
use zerocopy::{FromBytes, IntoBytes};

use crate::client::{Context, Outcome, Phase};
use crate::point::Point;
use crate::record::{Kind, Record};

const POOL: u64 = 1 << 18;

/// A connection of which every part lies open.
struct Open {
    id: u64,
    inbox: InboxReader<WordMap, WordMap>,
    pool: ReadMap,
    _bell: OwnedFd,
    _socket: OwnedFd,
}

/// The program of a raw client. It takes messages until it reaches its point, and is killed there or when the
/// round ends: what it took is nowhere written down.
///
/// # Errors
///
/// What must not happen to it.
pub fn run(context: &mut Context) -> Outcome<()> {
    let mut open = connect(context.node())?;
    context.say("ready")?;
    let own = open.id;
    context.note(Kind::Hello, Record { own, ..Record::default() })?;
    context.reach(Point::Mapped, own)?;
    loop {
        context.listen(0)?;
        if context.phase == Phase::Leave {
            return Ok(());
        }
        let mut entries: Vec<Entry> = Vec::new();
        open.inbox.fresh(|entry| {
            entries.push(entry);
            true
        });
        // What carries files is received by command only; it stays.
        for entry in entries.into_iter().filter(|entry| !entry.with_files) {
            if !open.inbox.has_return_room() || !open.inbox.take(entry.slot, entry.key) {
                continue;
            }
            context.reach(Point::TakenNotReturned, own)?;
            if open.pool.bytes(entry.offset, entry.size).is_none() {
                return Err(format!("connection {own}: an entry lies outside of the pool").into());
            }
            open.inbox.push_return(Return::Taken { slot: entry.slot, key: entry.key })?;
            context.reach(Point::ReturnedNotFreed, own)?;
            if open.inbox.has_return_room() {
                open.inbox.push_return(Return::Freed(entry.offset))?;
            }
        }
        if !open.inbox.is_alive() {
            return Err(format!("connection {own} was ended by the daemon").into());
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn connect(path: &[u8]) -> Outcome<Open> {
    let socket = socket::connect(path)?;
    let mut hello = CmdHello { size: size_of::<CmdHello>() as u64, pool_size: POOL, ..CmdHello::default() };
    let header = Header {
        number: Command::Hello.request(),
        arg_size: size_of::<CmdHello>() as u32,
        ..Header::new(PacketKind::Command, 1)
    };
    socket::send(&socket, &header, &[hello.as_bytes()], &[], Wait::Yes)?;
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    let arrived = socket::recv(&socket, &mut buffer, &mut fds, Wait::Yes)?;
    let packet =
        Packet::parse(&mut buffer[..arrived.len], fds.len()).map_err(|error| format!("{error:?}"))?;
    packet.header.result().map_err(|errno| format!("HELLO: {errno}"))?;
    hello = CmdHello::read_from_prefix(packet.arg).map_err(|_| "HELLO was answered with less")?.0;
    let [pool, posted, shared, bell] =
        fds.into_array().map_err(|_| "HELLO came without the descriptors of the queue")?;
    let words = |fd: &OwnedFd| Ok::<_, rustix::io::Errno>(rustix::fs::fstat(fd)?.st_size as usize / 8);
    let inbox = InboxReader::attach(
        WordMap::read_only(&posted, words(&posted)?)?,
        WordMap::writable(&shared, words(&shared)?)?,
    )?;
    Ok(Open { id: hello.id, inbox, pool: ReadMap::new(&pool, POOL, false)?, _bell: bell, _socket: socket })
}
