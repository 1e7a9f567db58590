//! What clients are answered, and what comes with it.

use core::mem::offset_of;

use kdbus_core::abi::{CMD_MAX_SIZE, CmdSend, Command, Errno, MsgInfo};
use kdbus_core::channel::Answer;
use kdbus_core::engine::HandleId;
use kdbus_linux::local::socket::{self, Wait, is_hang_up};
use kdbus_linux::local::wire::{FDS_MAX, FLAG_POSTED, FLAG_RETURN_MESSAGE, Header, Kind};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::io;
use zerocopy::FromBytes;

use crate::daemon::Daemon;
use crate::lanes::LaneFds;

/// Why a client is cut off that would have more than `unread_most` descriptors on their way to it. The kernel bounds what all
/// of them have together, and then no client can be sent any.
const UNREAD: &str = "it does not read the answers that bring it descriptors";

impl Daemon {
    /// Does what follows from a command, and then answers it: who it woke is awake when its caller goes on.
    pub(crate) fn finish(
        &mut self,
        from: HandleId,
        header: &Header,
        result: Result<(), Errno>,
        arg: &[u8],
        message: Option<&[u8]>,
        with_files: bool,
    ) {
        self.settle();
        self.answer(from, header, result, arg, message, with_files);
    }

    pub(crate) fn answer(
        &mut self,
        to: HandleId,
        header: &Header,
        result: Result<(), Errno>,
        arg: &[u8],
        message: Option<&[u8]>,
        with_files: bool,
    ) {
        let is_posted = is_posted(header);
        if is_posted && !(with_files && self.brings_files(to)) && self.post(to, header, result, arg) {
            return;
        }
        let mut answer = Header::answer(header.serial, result);
        // Cannot be cut: they came in a packet of bounded size.
        answer.arg_size = arg.len().min(CMD_MAX_SIZE) as u32;
        let message = message.filter(|_| header.flags & FLAG_RETURN_MESSAGE != 0);
        if let Some(message) = message {
            answer.flags |= FLAG_RETURN_MESSAGE;
            answer.message_size = message.len().min(CMD_MAX_SIZE) as u32;
        }
        if header.number == Command::Send.request() {
            // Whoever calls by lane too counts both.
            answer.slot = self.domain.open_calls(to);
        }
        let parts = [arg, message.unwrap_or_default()];
        if with_files {
            self.send_with_files(to, &answer, &parts)
        } else {
            self.send(to, &answer, &parts)
        }
        if is_posted {
            // Without a queue it is told of that, and reads the packet too.
            self.state.post(to, header.serial, Answer::Elsewhere);
        }
    }

    /// Tells the end of a SEND at the shared queue of whoever waits for it there. False if there is none any more.
    fn post(&mut self, to: HandleId, header: &Header, result: Result<(), Errno>, arg: &[u8]) -> bool {
        let reply =
            arg.get(offset_of!(CmdSend, reply)..).and_then(|reply| MsgInfo::read_from_prefix(reply).ok());
        let answer = Answer::Whole {
            code: result.map_or_else(|errno| errno.raw() as u32, |()| 0),
            calls: self.domain.open_calls(to),
            reply: reply.map_or_else(MsgInfo::default, |(reply, _)| reply),
        };
        self.state.post(to, header.serial, answer)
    }

    /// Tells the reply to a synchronous call as [`answer`](Self::answer) would, without a packet. False if it takes one.
    pub(crate) fn post_reply(&mut self, to: HandleId, serial: u64, reply: MsgInfo) -> bool {
        let calls = self.domain.open_calls(to);
        !self.brings_files(to) && self.state.post(to, serial, Answer::Whole { code: 0, calls, reply })
    }

    /// Whether descriptors go with the next answer that brings a message.
    fn brings_files(&self, to: HandleId) -> bool {
        self.state.clients.get(to).is_some_and(|client| !client.outgoing.is_empty())
    }

    /// Answers with the number of a lane, its receiver and its descriptors.
    pub(crate) fn answer_lane(
        &mut self,
        to: HandleId,
        header: &Header,
        result: Result<(u32, u64, Option<LaneFds>), Errno>,
    ) {
        self.settle();
        let mut answer = Header::answer(header.serial, result.as_ref().map(|_| ()).map_err(|error| *error));
        if let Ok((number, receiver, fds)) = result {
            (answer.slot, answer.key) = (number, receiver);
            if let Some(client) = self.state.clients.get_mut(to) {
                client.hello = fds.into_iter().flatten().collect();
            }
        }
        self.send(to, &answer, &[]);
    }

    /// Sends an answer, with the descriptors of a HELLO or a lane if this is its answer.
    pub(crate) fn send(&mut self, to: HandleId, header: &Header, parts: &[&[u8]]) {
        let Some(client) = self.state.clients.get_mut(to) else {
            return;
        };
        if client.hello.is_empty() {
            let sent = socket::send(&client.socket, header, parts, &[], Wait::No);
            return self.sent(to, sent);
        }
        let hello = std::mem::take(&mut client.hello);
        if !client.may_get(hello.len(), self.state.unread_most) {
            return self.state.doom(to, UNREAD);
        }
        let fds: heapless::Vec<BorrowedFd<'_>, FDS_MAX> = hello.iter().map(AsFd::as_fd).collect();
        let sent = socket::send(&client.socket, header, parts, &fds, Wait::No);
        self.sent(to, sent);
    }

    /// Sends an answer with the files that were given to the client.
    fn send_with_files(&mut self, to: HandleId, header: &Header, parts: &[&[u8]]) {
        let Some(client) = self.state.clients.get_mut(to) else {
            return;
        };
        if client.outgoing.is_empty() {
            let sent = socket::send(&client.socket, header, parts, &[], Wait::No);
            self.sent(to, sent);
            return;
        }
        let outgoing = std::mem::take(&mut client.outgoing);
        let files = &mut self.state.files;
        let sent = client.may_get(outgoing.len(), self.state.unread_most).then(|| {
            let fds: heapless::Vec<BorrowedFd<'_>, FDS_MAX> =
                outgoing.iter().filter_map(|id| files.get(*id)).collect();
            socket::send(&client.socket, header, parts, &fds, Wait::No)
        });
        for id in outgoing {
            files.release(id);
        }
        match sent {
            Some(sent) => self.sent(to, sent),
            None => self.state.doom(to, UNREAD),
        }
    }

    fn sent(&mut self, to: HandleId, sent: io::Result<()>) {
        match sent {
            Ok(()) => {}
            // Its end is noticed in the next turn.
            Err(error) if is_hang_up(error) => {}
            Err(io::Errno::AGAIN) => self.state.doom(to, "it does not read its answers"),
            Err(error) => self.state.doom(to, format_args!("it cannot be answered: {error}")),
        }
    }
}

/// Whether the sender of a packet waits for its end at the shared queue.
const fn is_posted(header: &Header) -> bool {
    let is_asked = header.flags & (FLAG_POSTED | FLAG_RETURN_MESSAGE) == FLAG_POSTED;
    is_asked && header.kind == Kind::Command as u16 && header.number == Command::Send.request()
}
