//! Messages whose sender waits at its bell until kdbusd has told, in the shared queue, what became of them.

use kdbus_core::abi::{Command, Errno, MsgInfo, SendFlags};
use kdbus_core::channel::Answer as Posted;
use kdbus_core::client::{Failure, Outgoing};
use rustix::fd::BorrowedFd;

use super::bell::Woken;
use super::error::errno;
use super::gate;
use super::handle::{Answer, Attachments, Beside};
use super::map::WordMap;
use super::receive::Receiver;
use super::transport::LocalTransport;

/// What became of a message.
pub(super) struct Sent {
    /// The reply to a call that is waited for.
    pub(super) reply: MsgInfo,
    /// Calls that are open through kdbusd.
    pub(super) calls: u32,
}

impl LocalTransport {
    /// Sends a message through kdbusd and waits until it has carried that out. `reply` takes the descriptors that come with a
    /// synchronous call's end.
    ///
    /// Who sleeps at the bell costs less to wake than who sleeps at the socket. Somebody else who polls that bell would be
    /// woken for nothing, and whoever may cancel waits for two things anyway.
    pub(super) fn send_to_bus(
        &self,
        receiver: Option<&mut Receiver<WordMap, WordMap>>,
        message: &mut Outgoing<'_, BorrowedFd<'_>>,
        flags: SendFlags,
        cancel: Option<BorrowedFd<'_>>,
        beside: Beside,
        reply: Option<&mut Answer>,
    ) -> Result<Sent, Failure> {
        let with = Attachments { payload: message.payload, fds: message.fds, cancel };
        let by_bell = gate().is_some() && cancel.is_none() && !self.bell.is_watched();
        if let Some(receiver) = receiver.filter(|receiver| by_bell && receiver.is_alive()) {
            let serial = self.handle.post_message(message.message, flags, with, beside)?;
            let sent = self.await_end_of(receiver, serial, reply);
            let number = Command::Send.request();
            kdbus_core::event!(trace, "command {:#x}, the {}th: {:?}", number, serial, sent.as_ref().err());
            return sent;
        }
        let (command, ended) = self.handle.send_message(message.message, flags, with, beside, reply)?;
        Ok(Sent { reply: command.reply, calls: ended.lane })
    }

    /// Waits for the end of a message that was posted, wherever that is told.
    fn await_end_of(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        serial: u64,
        reply: Option<&mut Answer>,
    ) -> Result<Sent, Failure> {
        match self.await_posted(receiver, serial)? {
            Posted::Whole { code: 0, calls, reply } => Ok(Sent { reply, calls }),
            Posted::Whole { code, .. } => Err(Failure::Refused(Errno::from_raw(code).unwrap_or(Errno::EIO))),
            Posted::Elsewhere => {
                let (reply, ended) = self.handle.await_packet(serial, reply)?;
                Ok(Sent { reply, calls: ended.lane })
            }
        }
    }

    /// Waits for the end of a command. Whatever else comes in stays for whoever looks next: nobody sleeps for that without
    /// having looked.
    fn await_posted(
        &self,
        receiver: &mut Receiver<WordMap, WordMap>,
        serial: u64,
    ) -> Result<Posted, Failure> {
        let mut goes_on = true;
        loop {
            let is_alive = receiver.is_alive();
            if let Some(answer) = receiver.answer(serial) {
                return Ok(answer);
            }
            if !goes_on || !is_alive {
                // What kdbusd had to say it has said: in a packet, if anywhere.
                return Ok(Posted::Elsewhere);
            }
            goes_on = self.bell.silence(&mut rung(receiver));
            receiver.arm_for_answer();
            if !goes_on || !receiver.is_alive() || receiver.answer(serial).is_some() {
                continue;
            }
            match self.bell.wait(self.handle.socket(), None, &mut rung(receiver)) {
                Ok(woken) => goes_on = woken != Woken::HungUp,
                // The command is under way, and nobody hears what becomes of it.
                Err(error) => return Err(self.handle.fail(errno(error))),
            }
        }
    }
}

/// Tells a receiver's lanes that they rang.
fn rung(receiver: &mut Receiver<WordMap, WordMap>) -> impl FnMut(usize, bool) {
    |at, stale| {
        if let Some(lanes) = receiver.lanes() {
            lanes.rang(at, stale);
        }
    }
}

#[cfg(all(test, feature = "lanes"))]
mod tests {
    use kdbus_core::client::Transport;

    use super::super::testbed::*;
    use super::super::wire::FLAG_POSTED;
    use super::*;

    fn send(transport: &LocalTransport) -> Result<(), Failure> {
        transport.send(&mut Outgoing { message: &mut [0; 64], payload: &[], fds: &[], begun: None })
    }

    /// The serial of a packet whose sender looks at the shared queue.
    fn next(bus: &mut Bus) -> u64 {
        bus.next(|packet, _| {
            assert_ne!(packet.header.flags & FLAG_POSTED, 0);
            packet.header.serial
        })
        .unwrap()
    }

    const fn ended(code: u32) -> Posted {
        Posted::Whole { code, calls: 0, reply: MsgInfo { offset: POOL, msg_size: 0, return_flags: 0 } }
    }

    #[test]
    fn the_end_of_a_command_is_told_in_the_shared_queue() {
        let (transport, bus, _connection) = connected();
        let server = serve(bus, |bus| {
            for code in [0, Errno::EXFULL.raw() as u32] {
                let serial = next(bus);
                // The end of another command is not that of this one.
                bus.post(serial + 1, ended(Errno::EIO.raw() as u32));
                bus.post(serial, ended(code));
            }
        });
        assert_eq!(send(&transport), Ok(()));
        assert_eq!(send(&transport), Err(Failure::Refused(Errno::EXFULL)));
        server.join().unwrap();
    }

    #[test]
    fn what_comes_in_during_a_command_is_found_after_it() {
        let (transport, bus, mut connection) = connected();
        let server = serve(bus, move |bus| {
            let serial = next(bus);
            connection.show(1, 20, 0, false);
            bus.post(serial, ended(0));
            connection
        });
        assert_eq!(send(&transport), Ok(()));
        let (_bus, mut connection) = server.join().unwrap();
        transport.wait(None).unwrap();
        assert_eq!(recv(&transport), Some(20));
        connection.show(2, 21, 0, false);
        transport.wait(None).unwrap();
        assert_eq!(recv(&transport), Some(21));
    }

    #[test]
    fn whoever_waits_or_polls_after_many_commands_hears_of_what_came_in_during_the_last() {
        type Comes = fn(&mut Connection) -> bool;
        let comings: [Comes; 3] = [
            |connection| {
                connection.show(1, 20, 0, false);
                false
            },
            |connection| connection.inbox.notice(),
            |connection| connection.inbox.lost(1),
        ];
        for (comes, polls) in comings.into_iter().flat_map(|comes| [(comes, false), (comes, true)]) {
            let (transport, bus, mut connection) = connected();
            let server = serve(bus, move |bus| {
                // As many as the bell is emptied once in, and more.
                for at in 0..600 {
                    let serial = next(bus);
                    if at == 599 {
                        let armed = comes(&mut connection);
                        connection.ring(armed);
                    }
                    bus.post(serial, ended(0));
                }
                connection
            });
            for _ in 0..600 {
                assert_eq!(send(&transport), Ok(()));
            }
            let _kept = server.join().unwrap();
            if polls {
                assert!(readable(&transport));
            } else {
                let late = transport.now().after(core::time::Duration::from_secs(9));
                transport.wait(Some(late)).unwrap();
                assert!(transport.now() < late);
            }
        }
    }

    #[test]
    fn what_a_bus_told_before_it_died_counts() {
        let (transport, bus, connection) = connected();
        let server = serve(bus, move |bus| {
            let serial = next(bus);
            let (mut inbox, _bell) = bus.posts.take().unwrap();
            // Nothing rings but the end.
            let _ = inbox.answer(serial, ended(0));
            rustix::net::shutdown(&bus.socket, rustix::net::Shutdown::Both).unwrap();
            drop(connection);
        });
        assert_eq!(send(&transport), Ok(()));
        drop(server.join().unwrap());
        assert_eq!(send(&transport), Err(Failure::Broken(Errno::ECONNRESET)));
    }

    #[test]
    fn a_bus_that_dies_before_it_told_is_an_end() {
        let (transport, bus, connection) = connected();
        let server = serve(bus, move |bus| {
            next(bus);
            // The bell first, then the socket.
            drop((bus.posts.take(), connection));
            rustix::net::shutdown(&bus.socket, rustix::net::Shutdown::Both).unwrap();
        });
        assert_eq!(send(&transport), Err(Failure::Broken(Errno::ECONNRESET)));
        drop(server.join().unwrap());
    }

    #[test]
    fn a_connection_that_ends_has_its_last_answer_in_a_packet() {
        let (transport, bus, mut connection) = connected();
        let server = serve(bus, move |bus| {
            let serial = next(bus);
            let armed = connection.inbox.end();
            connection.ring(armed);
            bus.posts = None;
            bus.answer(serial, Err(Errno::ESHUTDOWN), &[], &[]);
        });
        // Whatever it says, the connection is gone.
        assert_eq!(send(&transport), Err(Failure::Broken(Errno::ECONNRESET)));
        server.join().unwrap();
    }

    #[test]
    fn whose_bell_is_polled_is_answered_in_a_packet() {
        let (transport, bus, _connection) = connected();
        assert!(!readable(&transport));
        let server = serve(bus, |bus| {
            let (serial, flags) = bus.next(|packet, _| (packet.header.serial, packet.header.flags)).unwrap();
            bus.posts = None;
            bus.answer(serial, Ok(()), &[], &[]);
            flags & FLAG_POSTED
        });
        assert_eq!(send(&transport), Ok(()));
        let (_bus, flag) = server.join().unwrap();
        assert!(flag == 0 && !readable(&transport));
    }
}
