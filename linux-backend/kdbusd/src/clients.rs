//! The open handles and what the daemon keeps for each.

use kdbus_core::abi::{Errno, MsgInfo};
use kdbus_core::channel::{InboxLayout, InboxWriter};
use kdbus_core::client::MESSAGE_FDS_MAX;
use kdbus_core::engine::{FileId, HandleId};
use kdbus_linux::local::map::{self, Seal, WordMap, WriteMap};
use kdbus_linux::local::wire::{HELLO_FDS, LANE_OUT_FDS};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::identity::Process;
use crate::lanes::NoRoom;
use crate::raw::{self, Foreign};
use crate::spaces::Names;

/// Descriptors for the answer to HELLO, in the order of the protocol.
pub(crate) type HelloFds = [OwnedFd; HELLO_FDS];

/// What a connection shares with the daemon.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) pool: WriteMap,
    pub(crate) inbox: InboxWriter<WordMap, WordMap>,
}

impl Shared {
    /// Pool, queue and bell of a new connection; the second part goes to the client.
    ///
    /// # Errors
    ///
    /// What the system said: `ENOMEM` or `EMFILE`, mostly.
    pub(crate) fn new(pool_size: u64, layout: InboxLayout) -> io::Result<(Self, OwnedFd, HelloFds)> {
        let pool_file = map::create(c"kdbus-pool", pool_size)?;
        let pool = WriteMap::new(&pool_file, pool_size, false).map_err(no_memory)?;
        map::seal(&pool_file, Seal::SizeAndWriters)?;
        let words = |name, count: usize, seal| -> io::Result<(OwnedFd, WordMap)> {
            let file = map::create(name, (count * size_of::<u64>()) as u64)?;
            let map = WordMap::writable(&file, count).map_err(no_memory)?;
            map::seal(&file, seal)?;
            Ok((file, map))
        };
        let (posted_file, posted) = words(c"kdbus-posted", layout.posted_words(), Seal::SizeAndWriters)?;
        let (shared_file, shared) = words(c"kdbus-shared", layout.shared_words(), Seal::Size)?;
        // Cannot fail: the words are as many as the layout needs.
        let inbox = InboxWriter::new(posted, shared, layout).map_err(|_| io::Errno::INVAL)?;
        let (bell, ringer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((Self { pool, inbox }, ringer, [pool_file, posted_file, shared_file, bell]))
    }
}

/// An open handle, and the socket it is.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) id: HandleId,
    pub(crate) socket: Foreign,
    pub(crate) uid: u32,
    pub(crate) pid: u32,
    pub(crate) process: Option<Process>,
    /// Its names for users and groups, if it lives in a user namespace of its own.
    pub(crate) names: Option<Box<Names>>,
    pub(crate) shared: Option<Shared>,
    /// The write end of its bell. It stays when the connection ends and its handle does not.
    pub(crate) bell: Option<OwnedFd>,
    pub(crate) hello: heapless::Vec<OwnedFd, LANE_OUT_FDS>,
    /// Number of the lane by which it can send that it was given last, until it says that it has mapped it.
    pub(crate) lane_given: Option<u32>,
    /// Why it was refused another lane, when it asked last.
    pub(crate) no_room: Option<NoRoom>,
    /// It had no place for another lane to send by, when it asked last.
    pub(crate) no_place: bool,
    /// Where large payload comes from: a memfd, read only.
    pub(crate) staging: Option<Foreign>,
    /// Files that go with the next answer that brings a message.
    pub(crate) outgoing: heapless::Vec<FileId, MESSAGE_FDS_MAX>,
    /// Descriptors in answers that it may not have read.
    pub(crate) unread_fds: usize,
    /// Its bell is to be rung.
    pub(crate) ring: bool,
    /// It is to be cut off.
    pub(crate) doomed: bool,
}

impl Client {
    pub(crate) const fn new(
        id: HandleId,
        socket: Foreign,
        uid: u32,
        pid: u32,
        process: Option<Process>,
        names: Option<Box<Names>>,
    ) -> Self {
        Self {
            id,
            socket,
            uid,
            pid,
            process,
            names,
            shared: None,
            bell: None,
            hello: heapless::Vec::new(),
            lane_given: None,
            no_room: None,
            no_place: false,
            staging: None,
            outgoing: heapless::Vec::new(),
            unread_fds: 0,
            ring: false,
            doomed: false,
        }
    }

    /// Rings its bell.
    pub(crate) fn wake(&self) {
        if let Some(bell) = &self.bell {
            // Full: it rings already. Closed: the client is gone, which its socket tells.
            let _ = io::write(bell, &[1]);
        }
    }

    /// Whether descriptors that it was sent are still on their way to it. They count for this process until it reads them.
    pub(crate) fn has_unread_fds(&mut self) -> bool {
        if self.unread_fds != 0 && raw::is_read(self.socket.as_fd()) {
            self.unread_fds = 0;
        }
        self.unread_fds != 0
    }

    /// Counts descriptors of an answer. False if that makes more than `most` that it did not read, unless it has read all others.
    pub(crate) fn may_get(&mut self, fds: usize, most: usize) -> bool {
        if fds != 0 && self.has_unread_fds() && self.unread_fds + fds > most {
            return false;
        }
        self.unread_fds += fds;
        true
    }
}

/// All clients, each at the place of its handle.
#[derive(Debug)]
pub(crate) struct Clients {
    places: Box<[Option<Client>]>,
}

impl Clients {
    /// Places for handles below `capacity`.
    pub(crate) fn new(capacity: usize) -> Self {
        Self { places: (0..capacity).map(|_| None).collect() }
    }

    /// Adds a client. False if its handle has no place, and the client is closed.
    #[must_use]
    pub(crate) fn insert(&mut self, client: Client) -> bool {
        let place = self.places.get_mut(client.id.index as usize);
        place.map(|place| *place = Some(client)).is_some()
    }

    /// The client with this handle.
    pub(crate) fn get(&self, id: HandleId) -> Option<&Client> {
        self.places.get(id.index as usize)?.as_ref().filter(|client| client.id == id)
    }

    /// The client with this handle.
    pub(crate) fn get_mut(&mut self, id: HandleId) -> Option<&mut Client> {
        self.places.get_mut(id.index as usize)?.as_mut().filter(|client| client.id == id)
    }

    /// Two different clients.
    pub(crate) fn get_two(&mut self, a: HandleId, b: HandleId) -> Option<(&mut Client, &mut Client)> {
        let [first, second] = self.places.get_disjoint_mut([a.index as usize, b.index as usize]).ok()?;
        let first = first.as_mut().filter(|client| client.id == a)?;
        let second = second.as_mut().filter(|client| client.id == b)?;
        Some((first, second))
    }

    /// Takes a client out.
    pub(crate) fn remove(&mut self, id: HandleId) -> Option<Client> {
        self.get(id)?;
        self.places.get_mut(id.index as usize)?.take()
    }

    /// Who has a place now.
    pub(crate) fn at(&self, index: u32) -> Option<HandleId> {
        Some(self.places.get(index as usize)?.as_ref()?.id)
    }
}

/// A command that waits for its end: a synchronous call.
#[derive(Debug)]
pub(crate) struct Waiting {
    /// Who waits.
    pub(crate) from: HandleId,
    /// The client's number of the command.
    pub(crate) serial: u64,
    /// The argument as the command left it.
    pub(crate) arg: Vec<u8>,
    /// The message as the command left it, if the client wants it back.
    pub(crate) message: Vec<u8>,
    /// Whether it does.
    pub(crate) return_message: bool,
    /// Whether it waits for the end at its shared queue.
    pub(crate) posted: bool,
}

/// Commands that wait, each by a token that is used once.
#[derive(Debug)]
pub(crate) struct Pending {
    places: Box<[Place]>,
    free: Vec<u32>,
}

#[derive(Debug)]
struct Place {
    waiting: Waiting,
    generation: u32,
    used: bool,
}

/// Bytes of a SEND with a cancel descriptor and some room; longer arguments are allocated when they come.
const USUAL_ARGUMENT: usize = 256;

impl Pending {
    /// Places for `capacity` commands.
    pub(crate) fn new(capacity: usize) -> Self {
        let place = |_| Place {
            waiting: Waiting {
                from: HandleId { index: 0, generation: 0 },
                serial: 0,
                arg: Vec::with_capacity(USUAL_ARGUMENT),
                message: Vec::new(),
                return_message: false,
                posted: false,
            },
            generation: 0,
            used: false,
        };
        Self { places: (0..capacity).map(place).collect(), free: (0..capacity as u32).rev().collect() }
    }

    /// A token for the command that comes next. It is used up only by [`wait`](Self::wait).
    pub(crate) fn token(&self) -> u64 {
        let at = self.free.last().copied();
        let place = at.and_then(|at| self.places.get(at as usize));
        u64::from(place.map_or(0, |place| place.generation)) << 32 | u64::from(at.unwrap_or(u32::MAX))
    }

    /// Keeps the command that has the current token. False if there is no place.
    pub(crate) fn wait(
        &mut self,
        from: HandleId,
        serial: u64,
        arg: &[u8],
        message: Option<&[u8]>,
        posted: bool,
    ) -> bool {
        let Some(place) = self.free.pop().and_then(|at| self.places.get_mut(at as usize)) else {
            return false;
        };
        place.used = true;
        let waiting = &mut place.waiting;
        waiting.from = from;
        waiting.serial = serial;
        waiting.arg.clear();
        waiting.arg.extend_from_slice(arg);
        waiting.message.clear();
        waiting.message.extend_from_slice(message.unwrap_or_default());
        waiting.return_message = message.is_some();
        waiting.posted = posted;
        true
    }

    /// The command with this token, which waits no longer once [`end`](Self::end) is called.
    pub(crate) fn get_mut(&mut self, token: u64) -> Option<&mut Waiting> {
        self.place(token).map(|place| &mut place.waiting)
    }

    /// Ends the wait of a command.
    pub(crate) fn end(&mut self, token: u64) {
        if let Some(place) = self.place(token) {
            place.used = false;
            place.generation = place.generation.wrapping_add(1);
            self.free.push(token as u32);
        }
    }

    /// The token of a client's command, in `O(capacity)`.
    pub(crate) fn find(&self, from: HandleId, serial: u64) -> Option<u64> {
        self.tokens_of(from).find(|(_, other)| *other == serial).map(|(token, _)| token)
    }

    /// Ends all waits of a client, in `O(capacity)`.
    pub(crate) fn end_all(&mut self, from: HandleId) {
        loop {
            let Some((token, _)) = self.tokens_of(from).next() else {
                return;
            };
            self.end(token);
        }
    }

    fn tokens_of(&self, from: HandleId) -> impl Iterator<Item = (u64, u64)> {
        let used = self.places.iter().enumerate().filter(|(_, place)| place.used);
        used.filter(move |(_, place)| place.waiting.from == from)
            .map(|(at, place)| (u64::from(place.generation) << 32 | at as u64, place.waiting.serial))
    }

    fn place(&mut self, token: u64) -> Option<&mut Place> {
        let place = self.places.get_mut(token as u32 as usize)?;
        (place.used && u64::from(place.generation) == token >> 32).then_some(place)
    }
}

/// Writes the reply of a synchronous call into the argument of its SEND.
pub(crate) fn put_reply(arg: &mut [u8], reply: &MsgInfo) {
    use kdbus_core::abi::CmdSend;
    use zerocopy::IntoBytes;
    let at = core::mem::offset_of!(CmdSend, reply);
    if let Some(place) = arg.get_mut(at..at + size_of::<MsgInfo>()) {
        place.copy_from_slice(reply.as_bytes());
    }
}

/// A mapping that may not be locked in memory fails as one for which there is none.
pub(crate) fn no_memory(error: io::Errno) -> io::Errno {
    if error == io::Errno::AGAIN { io::Errno::NOMEM } else { error }
}

/// The bus' number for an error of a system call.
pub(crate) fn errno(error: io::Errno) -> Errno {
    u32::try_from(error.raw_os_error()).ok().and_then(Errno::from_raw).unwrap_or(Errno::EIO)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: HandleId = HandleId { index: 1, generation: 0 };
    const B: HandleId = HandleId { index: 1, generation: 1 };

    #[test]
    fn a_token_names_one_wait_only() {
        let mut pending = Pending::new(1);
        let token = pending.token();
        assert!(pending.wait(A, 7, b"abc", None, false));
        assert_eq!(pending.get_mut(token).unwrap().arg, b"abc");
        assert!(!pending.wait(A, 8, b"", None, false), "there is one place");
        pending.end(token);
        assert!(pending.get_mut(token).is_none());
        let second = pending.token();
        assert_ne!(second, token);
        assert!(pending.wait(A, 8, b"", Some(b"m"), false));
        pending.end(token);
        assert_eq!(pending.get_mut(second).unwrap().message, b"m", "an old token ends nothing");
    }

    #[test]
    fn waits_of_a_client_end_with_it() {
        let mut pending = Pending::new(3);
        for (from, serial) in [(A, 1), (B, 2), (A, 3)] {
            assert!(pending.wait(from, serial, b"", None, false));
        }
        assert!(pending.find(A, 3).is_some() && pending.find(B, 3).is_none());
        pending.end_all(A);
        assert!(pending.find(A, 1).is_none() && pending.find(A, 3).is_none());
        assert!(pending.find(B, 2).is_some());
    }

    #[test]
    fn a_place_belongs_to_one_generation() {
        let mut clients = Clients::new(2);
        let (socket, _other) = rustix::pipe::pipe().unwrap();
        assert!(clients.insert(Client::new(B, Foreign::client(socket, 0), 0, 0, None, None)));
        assert!(clients.get(A).is_none() && clients.get(B).is_some());
        assert!(clients.remove(A).is_none() && clients.remove(B).is_some());
        let (socket, _other) = rustix::pipe::pipe().unwrap();
        let far = HandleId { index: 2, generation: 0 };
        assert!(!clients.insert(Client::new(far, Foreign::client(socket, 0), 0, 0, None, None)));
    }

    #[test]
    fn what_goes_to_the_client_is_sealed() {
        use rustix::fs::{SealFlags, fcntl_get_seals};
        let (_shared, _bell, files) = Shared::new(4096, InboxLayout::new(8).unwrap()).unwrap();
        let closed = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        for file in &files[..2] {
            assert!(fcntl_get_seals(file).unwrap().contains(closed | SealFlags::FUTURE_WRITE));
            assert!(io::pwrite(file, b"x", 0).is_err());
        }
        assert!(fcntl_get_seals(&files[2]).unwrap().contains(closed));
    }
}
