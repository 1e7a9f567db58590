//! A scripted bus for tests of the client.

use std::thread::{self, JoinHandle};
use std::vec;
use std::vec::Vec;

#[cfg(feature = "lanes")]
use kdbus_core::abi::{AttachFlags, ItemType, ItemWriter, Msg, Vec as PayloadVec};
use kdbus_core::abi::{CmdHello, Command, Errno, HelloFlags, RecvFlags};
#[cfg(feature = "lanes")]
use kdbus_core::channel::terms::{PAGE_WORDS, Terms, VERDICT_AT};
use kdbus_core::channel::{Answer, InboxLayout, InboxWriter};
#[cfg(feature = "lanes")]
use kdbus_core::channel::{CALL_WORDS, LaneGate, LaneLayout, LaneWriter, RECORD_WORDS};
use kdbus_core::client::{Failure, Transport};
use kdbus_core::engine::{Entry, Return};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
#[cfg(feature = "lanes")]
use rustix::pipe::fcntl_setpipe_size;
use rustix::pipe::{PipeFlags, pipe_with};
use zerocopy::{FromBytes, IntoBytes};

use super::map::{Seal, WordMap, WriteMap, create, seal};
use super::socket::{self, Descriptors, Wait};
use super::wire::{self, Header, PACKET_MAX, Packet};
use super::{Handle, LocalTransport, NodePath};

pub(super) const POOL: u64 = 1 << 16;
pub(super) const DEPTH: u32 = 16;

/// The bus' end of one client's socket.
pub(super) struct Bus {
    pub(super) socket: OwnedFd,
    pub(super) buffer: Vec<u8>,
    pub(super) fds: Descriptors,
    pub(super) staging: Option<OwnedFd>,
    /// Where answers are announced, and the bell there.
    pub(super) posts: Option<(InboxWriter<WordMap, WordMap>, OwnedFd)>,
}

/// What the bus keeps of a client after HELLO.
pub(super) struct Connection {
    pub(super) pool: WriteMap,
    pub(super) inbox: InboxWriter<WordMap, WordMap>,
    pub(super) bell: OwnedFd,
    pub(super) files: Vec<OwnedFd>,
}

impl Bus {
    /// The next packet, taken apart by `read`; `None` when the client is gone.
    pub(super) fn next<R>(&mut self, read: impl FnOnce(Packet<'_>, &mut Descriptors) -> R) -> Option<R> {
        let arrived = socket::recv(&self.socket, &mut self.buffer, &mut self.fds, Wait::Yes).unwrap();
        if arrived.len == 0 {
            return None;
        }
        let mut packet = Packet::parse(&mut self.buffer[..arrived.len], self.fds.len()).unwrap();
        if packet.header.flags & wire::FLAG_STAGING_FD != 0 {
            self.staging = self.fds.pop();
            packet.header.flags &= !wire::FLAG_STAGING_FD;
        }
        Some(read(packet, &mut self.fds))
    }

    pub(super) fn answer(
        &mut self,
        serial: u64,
        result: Result<(), Errno>,
        arg: &[u8],
        fds: &[BorrowedFd<'_>],
    ) {
        let header = Header { arg_size: arg.len() as u32, ..Header::answer(serial, result) };
        socket::send(&self.socket, &header, &[arg], fds, Wait::Yes).unwrap();
        self.post(serial, Answer::Elsewhere);
    }

    /// Tells the end of a command in the shared queue, if there is one yet.
    pub(super) fn post(&mut self, serial: u64, answer: Answer) {
        if let Some((inbox, bell)) = &mut self.posts
            && inbox.answer(serial, answer)
        {
            rustix::io::write(bell, b"!").unwrap();
        }
    }

    /// Answers one HELLO.
    pub(super) fn welcome(&mut self) -> Connection {
        let (serial, mut arg) = self.next(|packet, _| (packet.header.serial, packet.arg.to_vec())).unwrap();
        let mut hello = CmdHello::read_from_bytes(&arg).unwrap();
        hello.id = 7;
        arg.copy_from_slice(hello.as_bytes());
        let layout = InboxLayout::new(DEPTH).unwrap();
        let (posted_words, shared_words) = (layout.posted_words(), layout.shared_words());
        let pool_file = create(c"pool", hello.pool_size).unwrap();
        let posted_file = create(c"posted", posted_words as u64 * 8).unwrap();
        let shared_file = create(c"shared", shared_words as u64 * 8).unwrap();
        let pool = WriteMap::new(&pool_file, hello.pool_size, false).unwrap();
        let posted = WordMap::writable(&posted_file, posted_words).unwrap();
        let shared = WordMap::writable(&shared_file, shared_words).unwrap();
        let again = [(&posted_file, posted_words), (&shared_file, shared_words)];
        let [posted_again, shared_again] = again.map(|(file, words)| WordMap::writable(file, words).unwrap());
        seal(&pool_file, Seal::SizeAndWriters).unwrap();
        seal(&posted_file, Seal::SizeAndWriters).unwrap();
        seal(&shared_file, Seal::Size).unwrap();
        let (bell_read, bell) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let posts = InboxWriter::new(posted_again, shared_again, layout).unwrap();
        let inbox = InboxWriter::new(posted, shared, layout).unwrap();
        let files = vec![pool_file, posted_file, shared_file, bell_read];
        let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
        self.answer(serial, Ok(()), &arg, &fds);
        self.posts = Some((posts, bell.try_clone().unwrap()));
        Connection { pool, inbox, bell, files }
    }
}

impl Connection {
    pub(super) fn ring(&self, armed: bool) {
        if armed {
            rustix::io::write(&self.bell, b"!").unwrap();
        }
    }

    pub(super) fn show(&mut self, slot: u32, key: u64, priority: i64, with_files: bool) -> Entry {
        let entry = Entry { slot, key, priority, offset: u64::from(slot) * 8, size: 8, with_files };
        self.pool.write(entry.offset, &key.to_ne_bytes()).unwrap();
        let armed = self.inbox.publish(&entry);
        self.ring(armed);
        entry
    }

    pub(super) fn returns(&mut self) -> Vec<Return> {
        core::iter::from_fn(|| self.inbox.poll_return()).collect()
    }
}

pub(super) fn pair() -> (Bus, OwnedFd) {
    let (socket, client) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    (Bus { socket, buffer: vec![0; PACKET_MAX], fds: Descriptors::new(), staging: None, posts: None }, client)
}

pub(super) fn handle(socket: OwnedFd) -> Handle {
    Handle::over(socket, NodePath::new(b"/test").unwrap(), 0, false).unwrap()
}

pub(super) fn say_hello(transport: &LocalTransport, flags: HelloFlags) -> Result<CmdHello, Failure> {
    let mut hello = CmdHello {
        size: size_of::<CmdHello>() as u64,
        flags: flags.bits(),
        pool_size: POOL,
        ..CmdHello::default()
    };
    transport.command(Command::Hello, hello.as_mut_bytes())?;
    Ok(hello)
}

/// A connected client whose bus stays in this thread: no command is answered from here on.
pub(super) fn connected() -> (LocalTransport, Bus, Connection) {
    let (mut bus, client) = pair();
    let welcome = thread::spawn(move || {
        let connection = bus.welcome();
        (bus, connection)
    });
    let transport = LocalTransport::over(handle(client)).unwrap();
    assert_eq!(say_hello(&transport, HelloFlags::empty()).unwrap().id, 7);
    let (bus, connection) = welcome.join().unwrap();
    (transport, bus, connection)
}

/// Lets `bus` answer in another thread.
pub(super) fn serve<R: Send + 'static>(
    mut bus: Bus,
    script: impl FnOnce(&mut Bus) -> R + Send + 'static,
) -> JoinHandle<(Bus, R)> {
    thread::spawn(move || {
        let result = script(&mut bus);
        (bus, result)
    })
}

pub(super) fn readable(transport: &LocalTransport) -> bool {
    let mut fds = [PollFd::new(transport, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 1
}

pub(super) fn recv(transport: &LocalTransport) -> Option<u64> {
    let message = transport.recv(RecvFlags::empty(), 0).unwrap().message?;
    let bytes = transport.slice(message.info.offset, message.info.msg_size).unwrap();
    Some(u64::from_ne_bytes(bytes.try_into().unwrap()))
}

/// A message with this header, of one run of eight bytes.
#[cfg(feature = "lanes")]
pub(super) fn short_message(header: Msg) -> [u8; Msg::SIZE + 32] {
    message_of(8, header)
}

/// The same of one run of `size` bytes.
#[cfg(feature = "lanes")]
pub(super) fn message_of(size: u64, header: Msg) -> [u8; Msg::SIZE + 32] {
    let mut message = [0; Msg::SIZE + 32];
    let mut writer = ItemWriter::behind(&mut message, Msg::SIZE).unwrap();
    writer.bytes(ItemType::PAYLOAD_VEC, PayloadVec { size, address: 64 }.as_bytes()).unwrap();
    let header = Msg { size: writer.len() as u64, payload_type: 1, ..header };
    message[..Msg::SIZE].copy_from_slice(header.as_bytes());
    message
}

/// A lane as kdbusd makes one, which is open, and its sender's end.
#[cfg(feature = "lanes")]
pub(super) struct Lane {
    pub(super) files: [OwnedFd; 5],
    pub(super) writer: LaneWriter<WordMap, WordMap, WordMap>,
    pub(super) gate: LaneGate<WordMap, WordMap>,
    /// What caller and bus say of the calls.
    pub(super) record: OwnedFd,
    pub(super) ringer: OwnedFd,
}

#[cfg(feature = "lanes")]
impl Lane {
    pub(super) fn new(sender: u64) -> Self {
        Self::showing(sender, AttachFlags::empty(), &[])
    }

    /// Messages show this much of their sender.
    pub(super) fn showing(sender: u64, attach: AttachFlags, metadata: &[u8]) -> Self {
        let layout = LaneLayout::new(512).unwrap();
        let words = [layout.lane_words(), LaneLayout::BACK_WORDS, PAGE_WORDS, CALL_WORDS, RECORD_WORDS];
        let [lane, back, page, calls, record] = words.map(|words| {
            let file = create(c"part", 8 * words as u64).unwrap();
            seal(&file, Seal::Size).unwrap();
            file
        });
        let map = |file: &OwnedFd, words| WordMap::writable(file, words).unwrap();
        let terms = Terms { sender, attach, name: b"", metadata };
        assert!(terms.write(&map(&page, PAGE_WORDS), 1));
        let mut gate = LaneGate::new(map(&lane, layout.lane_words()), map(&page, PAGE_WORDS), VERDICT_AT);
        assert!(gate.open());
        let [lane_words, back_words] = [map(&lane, layout.lane_words()), map(&back, LaneLayout::BACK_WORDS)];
        let writer = LaneWriter::new(lane_words, back_words, map(&page, PAGE_WORDS), VERDICT_AT, layout);
        let (bell, ringer) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        fcntl_setpipe_size(&ringer, 1).unwrap();
        Self { files: [lane, back, page, calls, bell], writer: writer.unwrap(), gate, record, ringer }
    }

    /// What its sender gets.
    pub(super) fn out_fds(&self) -> Descriptors {
        let [lane, back, page, calls, heard] = &self.files;
        let all = [lane, back, page, calls, &self.ringer, &self.record, heard];
        all.into_iter().map(|fd| fd.try_clone().unwrap()).collect()
    }

    /// What its receiver gets.
    pub(super) fn fds(&self) -> [BorrowedFd<'_>; 5] {
        self.files.each_ref().map(AsFd::as_fd)
    }
}
