//! A client that works on the shared queue itself, so that it can stop between two writes of which the
//! library makes one call.

use std::os::fd::OwnedFd;
use std::time::Duration;

use kdbus_core::abi::{Cmd, CmdHello, Command, Errno, ItemType, ItemWriter, Items, Msg, Vec, align8};
use kdbus_core::channel::{Entry, InboxReader, Return};
use kdbus_linux::local::map::{ReadMap, WordMap};
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{Header, Kind as PacketKind, PACKET_MAX, Packet};
use zerocopy::{FromBytes, IntoBytes};

use crate::client::{ACTIVATED, Context, NAMES, Outcome, Phase};
use crate::payload::Stamp;
use crate::point::Point;
use crate::record::{How, Kind, Record, now};

const POOL: u64 = 1 << 18;

/// A connection of which every part lies open.
struct Open {
    id: u64,
    inbox: InboxReader<WordMap, WordMap>,
    pool: ReadMap,
    _bell: OwnedFd,
    socket: OwnedFd,
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
    if context.random.bool() {
        own_name(context, &mut open)?;
    }
    loop {
        context.listen(0)?;
        if context.phase == Phase::Leave {
            return Ok(());
        }
        let mut entries: std::vec::Vec<Entry> = std::vec::Vec::new();
        open.inbox.fresh(|entry| {
            entries.push(entry);
            true
        });
        // What carries files is received by command only; it stays.
        for entry in entries.into_iter().filter(|entry| !entry.with_files) {
            if !open.inbox.has_return_room() || !open.inbox.take(entry.slot, entry.key) {
                continue;
            }
            let Some(slice) = open.pool.bytes(entry.offset, entry.size) else {
                return Err(format!("connection {own}: an entry lies outside of the pool").into());
            };
            note_taken(context, own, slice)?;
            context.reach(Point::TakenNotReturned, own)?;
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

/// Writes down what lies in `slice`, as far as it was sent by a client.
fn note_taken(context: &mut Context, own: u64, slice: &[u8]) -> Outcome<()> {
    let (header, _) = Msg::read_from_prefix(slice).map_err(|_| "a slice is shorter than a header")?;
    let payload = slice.get(align8(header.size) as usize..).unwrap_or_default();
    // Notifications have no payload.
    let Some(stamp) = Stamp::read(payload) else { return Ok(()) };
    let items = slice.get(Msg::SIZE..header.size as usize).unwrap_or_default();
    let mut bytes = 0;
    let mut name = 0;
    for item in Items::new(items).map_while(Result::ok) {
        match item.kind {
            ItemType::PAYLOAD_OFF => bytes += item.record().map_or(0, |part: Vec| part.size),
            ItemType::DST_NAME => {
                let index = NAMES.iter().position(|known| item.text() == Some(*known));
                name = index.map_or(0, |index| index as u32 + 1);
            }
            _ => {}
        }
    }
    let record = Record {
        detail: How::Slot.code(),
        name,
        own,
        peer: header.src_id,
        id: stamp.id,
        answers: stamp.answers,
        cookie: header.cookie,
        priority: header.priority,
        bytes,
        ..Record::default()
    };
    context.note(Kind::Received, record)
}

/// Asks for a name behind which an activator stands now and then, so that what is taken here could move.
fn own_name(context: &mut Context, open: &mut Open) -> Outcome<()> {
    let index = context.random.usize(ACTIVATED..NAMES.len());
    let record = Record { own: open.id, name: index as u32 + 1, began_at: now(), ..Record::default() };
    context.note(Kind::Acquiring, record)?;
    let mut buffer = [0_u64; 32];
    let bytes = buffer.as_mut_bytes();
    let mut items = ItemWriter::behind(bytes, size_of::<Cmd>()).map_err(|_| "a name is too long")?;
    items.c_str(ItemType::NAME, NAMES[index]).map_err(|_| "a name is too long")?;
    let size = items.len();
    bytes[..8].copy_from_slice(&(size as u64).to_ne_bytes());
    let header = Header {
        number: Command::NameAcquire.request(),
        arg_size: size as u32,
        ..Header::new(PacketKind::Command, 2)
    };
    socket::send(&open.socket, &header, &[&bytes[..size]], &[], Wait::Yes)?;
    let (mut buffer, mut fds) = (vec![0; PACKET_MAX], Descriptors::new());
    let arrived = socket::recv(&open.socket, &mut buffer, &mut fds, Wait::Yes)?;
    let packet =
        Packet::parse(&mut buffer[..arrived.len], fds.len()).map_err(|error| format!("{error:?}"))?;
    match packet.header.result() {
        Ok(()) => context.note(Kind::Acquired, Record { at: now(), ..record }),
        Err(Errno::EEXIST) => context.note(Kind::NotOwner, Record { at: now(), ..record }),
        Err(errno) => Err(format!("NAME_ACQUIRE: {errno}").into()),
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
    Ok(Open { id: hello.id, inbox, pool: ReadMap::new(&pool, POOL, false)?, _bell: bell, socket })
}
