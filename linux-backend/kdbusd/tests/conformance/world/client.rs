//! A client that sends packets and takes what comes back, and checks nothing itself.

use std::collections::BTreeMap;
use std::rc::Rc;

use kdbus_conformance::Poll;
use kdbus_core::abi::{CMD_MAX_SIZE, CmdHello, Errno};
use kdbus_core::channel::InboxReader;
use kdbus_linux::local::map::{ReadMap, WordMap};
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::{self, HELLO_FDS, Header, INLINE_MAX, Kind, Packet};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use zerocopy::FromBytes;

use super::{PATIENCE, errno, memfd};

/// What a command brought.
pub(crate) struct Answer {
    pub(crate) result: Result<(), Errno>,
    pub(crate) arg: Vec<u8>,
    pub(crate) message: Option<Vec<u8>>,
    pub(crate) fds: Vec<OwnedFd>,
}

/// What HELLO brought.
pub(crate) struct Connection {
    pub(crate) pool_file: OwnedFd,
    pub(crate) pool: ReadMap,
    pub(crate) inbox: InboxReader<WordMap, WordMap>,
    /// Lost broadcasts that a receive has told of.
    pub(crate) told: u64,
    /// Descriptors that were installed for the message in the slice at this offset.
    pub(crate) installed: BTreeMap<u64, Vec<i32>>,
}

/// An open node, at the level of packets.
pub(crate) struct Client {
    pub(crate) socket: Rc<OwnedFd>,
    pub(crate) serial: u64,
    pub(crate) answers: BTreeMap<u64, Answer>,
    /// kdbusd has hung up.
    pub(crate) gone: bool,
    pub(crate) connection: Option<Connection>,
}

impl Client {
    pub(crate) fn new(socket: Rc<OwnedFd>) -> Self {
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&socket, wire::PACKET_MAX);
        Self { socket, serial: 0, answers: BTreeMap::new(), gone: false, connection: None }
    }

    /// Sends a command and returns its serial.
    pub(crate) fn submit(
        &mut self,
        number: u32,
        arg: &[u8],
        body: Option<(&[u8], &[u8])>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<u64, Errno> {
        self.serial += 1;
        let mut header = Header { number, ..Header::new(Kind::Command, self.serial) };
        let arg = &arg[..arg.len().min(CMD_MAX_SIZE)];
        let (message, payload) = body.unwrap_or((&[], &[]));
        let message = &message[..message.len().min(CMD_MAX_SIZE)];
        (header.arg_size, header.message_size) = (arg.len() as u32, message.len() as u32);
        header.payload_size = payload.len() as u64;
        if body.is_some() {
            header.flags = wire::FLAG_MESSAGE | wire::FLAG_RETURN_MESSAGE;
        }
        let mut parts = vec![arg, message, payload];
        let mut fds = fds.to_vec();
        let staging;
        if payload.len() > INLINE_MAX {
            staging = memfd(payload);
            header.flags |= wire::FLAG_STAGED | wire::FLAG_STAGING_FD;
            parts.pop();
            fds.push(staging.as_fd());
        }
        match socket::send(&self.socket, &header, &parts, &fds, Wait::Yes) {
            Ok(()) => Ok(self.serial),
            Err(error) if socket::is_hang_up(error) => {
                self.gone = true;
                Err(Errno::ECONNRESET)
            }
            Err(error) => Err(errno(error)),
        }
    }

    /// Reads one answer, if there is one or `wait` says so.
    pub(crate) fn read(&mut self, wait: Wait) -> bool {
        let mut bytes = vec![0; wire::PACKET_MAX];
        let mut fds = Descriptors::new();
        let len = match socket::recv(&self.socket, &mut bytes, &mut fds, wait) {
            Ok(arrived) => arrived.len,
            Err(rustix::io::Errno::AGAIN) => return false,
            Err(_) => 0,
        };
        if len == 0 {
            self.gone = true;
            return false;
        }
        let packet = Packet::parse(&mut bytes[..len], fds.len()).unwrap();
        assert_eq!(packet.kind, Kind::Answer);
        let answer = Answer {
            result: packet.header.result(),
            arg: packet.arg.to_vec(),
            message: packet.message.map(|message| message.to_vec()),
            fds: fds.into_iter().collect(),
        };
        self.answers.insert(packet.header.serial, answer);
        true
    }

    /// The answer to a command, waited for.
    pub(crate) fn answer(&mut self, serial: u64) -> Result<Answer, Errno> {
        loop {
            if let Some(answer) = self.answers.remove(&serial) {
                return Ok(answer);
            }
            if self.gone {
                return Err(Errno::ECONNRESET);
            }
            let timeout = PATIENCE.try_into().unwrap();
            let ready = poll(&mut [PollFd::new(&*self.socket, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_ne!(ready, 0, "kdbusd does not answer");
            self.read(Wait::Yes);
        }
    }

    /// Takes over what a HELLO brought.
    pub(crate) fn attach(&mut self, arg: &[u8], fds: Vec<OwnedFd>) {
        let Ok([pool_file, posted, shared, _bell]) = <[OwnedFd; HELLO_FDS]>::try_from(fds) else {
            return;
        };
        let hello = CmdHello::read_from_prefix(arg).unwrap().0;
        let words = |file: &OwnedFd| rustix::fs::fstat(file).unwrap().st_size as usize / 8;
        let posted = WordMap::read_only(&posted, words(&posted)).unwrap();
        let shared = WordMap::writable(&shared, words(&shared)).unwrap();
        self.connection = Some(Connection {
            pool: ReadMap::new(&pool_file, hello.pool_size, false).unwrap(),
            pool_file,
            inbox: InboxReader::attach(posted, shared).unwrap(),
            told: 0,
            installed: BTreeMap::new(),
        });
    }

    pub(crate) fn poll(&mut self) -> Poll {
        while self.read(Wait::No) {}
        let hung_up = Poll { readable: false, writable: false, hung_up: true };
        let Some(connection) = &self.connection else { return hung_up };
        if self.gone || !connection.inbox.is_alive() {
            return hung_up;
        }
        let mut waiting = false;
        connection.inbox.fresh(|_| {
            waiting = true;
            // It is received by command, so it has to be handed out the next time too.
            false
        });
        let readable = waiting || connection.inbox.lost() > connection.told;
        Poll { readable, writable: true, hung_up: false }
    }
}
