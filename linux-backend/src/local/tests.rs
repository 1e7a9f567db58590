//! The client against a scripted bus: what kdbusd may do, and what it must never be able to break.

use std::thread::{self};
use std::vec;
use std::vec::Vec;

use kdbus_core::abi::{CmdRecv, CmdSend, Command, Errno, HelloFlags, MsgInfo, RecvFlags, RecvReturnFlags};
use kdbus_core::channel::InboxLayout;
use kdbus_core::client::{Failure, Outgoing, Transport};
use kdbus_core::engine::Return;
use rustix::fd::{AsFd, BorrowedFd};
use rustix::pipe::{PipeFlags, pipe_with};
use zerocopy::{FromBytes, IntoBytes};

use super::map::{Seal, create, seal};
use super::socket::{self, Wait};
use super::testbed::*;
use super::wire::{self, Header, Kind, Payload};
use super::{Attachments, LocalTransport};

#[test]
fn messages_are_received_and_freed_without_the_bus() {
    let (transport, _bus, mut connection) = connected();
    assert!(!readable(&transport));
    assert_eq!(recv(&transport), None);
    connection.show(3, 20, 0, false);
    connection.show(0, 21, 0, false);
    connection.show(9, 22, 0, false);
    assert!(readable(&transport));
    assert_eq!((recv(&transport), recv(&transport)), (Some(20), Some(21)));
    assert!(readable(&transport), "one more waits");
    assert_eq!((recv(&transport), recv(&transport)), (Some(22), None));
    assert!(!readable(&transport));
    transport.free(24);
    transport.free(POOL);
    transport.free(u64::MAX);
    let taken = |slot, key| Return::Taken { slot, key };
    assert_eq!(connection.returns(), [taken(3, 20), taken(0, 21), taken(9, 22), Return::Freed(24)]);
}

#[test]
fn priority_decides_when_asked() {
    let (transport, _bus, mut connection) = connected();
    for (slot, priority) in [(0, 5), (1, -3), (2, 5), (3, -3), (4, i64::MAX)] {
        connection.show(slot, u64::from(slot) + 1, priority, false);
    }
    let by_priority = |least| {
        let received = transport.recv(RecvFlags::USE_PRIORITY, least).unwrap();
        received.message.map(|message| message.info.offset / 8)
    };
    assert_eq!(by_priority(-4), None);
    assert_eq!((by_priority(-3), by_priority(0), by_priority(0)), (Some(1), Some(3), None));
    assert!(readable(&transport), "less urgent ones wait");
    assert_eq!(recv(&transport), Some(1));
    connection.show(1, 6, 4, false);
    assert_eq!((by_priority(9), by_priority(9), by_priority(9)), (Some(1), Some(2), None));
    assert_eq!(recv(&transport), Some(5));
}

#[test]
fn what_the_bus_takes_back_is_not_received() {
    let (transport, _bus, mut connection) = connected();
    let first = connection.show(0, 1, 0, false);
    connection.show(1, 2, 0, false);
    let third = connection.show(2, 3, 0, false);
    assert_eq!(recv(&transport), Some(1));
    assert!(!connection.inbox.retract(&first));
    assert!(connection.inbox.retract(&third));
    connection.show(2, 4, 0, false);
    connection.show(0, 5, 0, false);
    assert_eq!((recv(&transport), recv(&transport)), (Some(2), Some(4)));
    assert_eq!((recv(&transport), recv(&transport)), (Some(5), None));
}

#[test]
fn losses_are_reported_once_with_or_without_a_message() {
    let (transport, _bus, mut connection) = connected();
    assert_eq!(recv(&transport), None);
    let armed = connection.inbox.lost(3);
    connection.ring(armed);
    assert!(readable(&transport));
    let received = transport.recv(RecvFlags::empty(), 0).unwrap();
    assert!(received.message.is_none());
    assert_eq!(received.dropped, 3);
    assert!(!readable(&transport));
    connection.show(0, 1, 0, false);
    let armed = connection.inbox.lost(5);
    connection.ring(armed);
    assert_eq!(transport.recv(RecvFlags::empty(), 0).unwrap().dropped, 2);
    assert_eq!(transport.recv(RecvFlags::empty(), 0).unwrap().dropped, 0);
    assert!(!readable(&transport));
}

#[test]
fn a_notice_that_did_not_ring_still_wakes() {
    let (transport, _bus, mut connection) = connected();
    connection.show(0, 1, 0, false);
    assert_eq!(recv(&transport), Some(1));
    assert!(!connection.inbox.notice(), "the client is awake");
    assert_eq!(recv(&transport), None);
    transport.wait(None).unwrap();
    assert_eq!(recv(&transport), None);
    assert!(!readable(&transport));
}

#[test]
fn watched_returns_are_reported_by_packet() {
    let (transport, mut bus, mut connection) = connected();
    transport.free(8);
    assert!(connection.inbox.watch_returns(true));
    transport.free(16);
    assert_eq!(bus.next(|packet, _| packet.kind), Some(Kind::Returns));
    assert_eq!(connection.returns(), [Return::Freed(8), Return::Freed(16)]);
}

#[test]
fn a_full_ring_is_emptied_by_command() {
    let (transport, bus, mut connection) = connected();
    let places = u64::from(InboxLayout::new(DEPTH).unwrap().returns());
    for offset in 0..places {
        transport.free(8 * offset);
    }
    connection.show(5, 9, 0, false);
    let server = serve(bus, |bus| {
        let free =
            bus.next(|packet, _| (packet.header.serial, packet.header.number, packet.arg.len())).unwrap();
        bus.answer(free.0, Ok(()), &[], &[]);
        let (serial, slot, key, mut command) = bus
            .next(|packet, _| {
                let command = CmdRecv::read_from_bytes(packet.arg).unwrap();
                (packet.header.serial, packet.header.slot, packet.header.key, command)
            })
            .unwrap();
        command.msg = MsgInfo { offset: 40, msg_size: 8, return_flags: 0 };
        bus.answer(serial, Ok(()), command.as_bytes(), &[]);
        (free.1, free.2, slot, key)
    });
    transport.free(8 * places);
    assert_eq!(recv(&transport), Some(9));
    assert_eq!(server.join().unwrap().1, (Command::Free.request(), 32, 5, 9));
    assert_eq!(recv(&transport), None);
}

#[test]
fn descriptors_come_by_command_and_missing_ones_are_told() {
    let (transport, bus, mut connection) = connected();
    connection.show(2, 9, 0, true);
    connection.show(3, 10, 0, true);
    let file = create(c"passed", 5).unwrap();
    let server = serve(bus, move |bus| {
        let (serial, mut command) = bus
            .next(|packet, _| (packet.header.serial, CmdRecv::read_from_bytes(packet.arg).unwrap()))
            .unwrap();
        command.msg = MsgInfo { offset: 16, msg_size: 8, return_flags: 0 };
        bus.answer(serial, Ok(()), command.as_bytes(), &[file.as_fd(), file.as_fd()]);
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        bus.answer(serial, Err(Errno::EAGAIN), command.as_bytes(), &[]);
    });
    let message = transport.recv(RecvFlags::empty(), 0).unwrap().message.unwrap();
    assert_eq!((message.fds.len(), message.info.return_flags), (2, 0));
    assert_eq!(rustix::fs::fstat(&message.fds[1]).unwrap().st_size, 5);
    // The second entry was gone.
    assert_eq!(recv(&transport), None);
    server.join().unwrap();
}

#[test]
fn a_peeked_entry_stays_and_its_descriptors_do_not_come() {
    let (transport, bus, mut connection) = connected();
    connection.show(2, 9, 0, false);
    let file = create(c"passed", 5).unwrap();
    let server = serve(bus, move |bus| {
        let (serial, mut command) = bus
            .next(|packet, _| (packet.header.serial, CmdRecv::read_from_bytes(packet.arg).unwrap()))
            .unwrap();
        command.msg = MsgInfo { offset: 16, msg_size: 8, return_flags: 0 };
        bus.answer(serial, Ok(()), command.as_bytes(), &[file.as_fd()]);
        command.flags
    });
    let peeked = transport.recv(RecvFlags::PEEK, 0).unwrap().message.unwrap();
    assert_eq!((peeked.info.offset, peeked.fds.len()), (16, 0));
    assert_eq!(server.join().unwrap().1, RecvFlags::PEEK.bits());
    assert_eq!(recv(&transport), Some(9));
}

fn outgoing<'a>(
    message: &'a mut [u8],
    payload: &'a [&'a [u8]],
    fds: &'a [BorrowedFd<'a>],
) -> Outgoing<'a, BorrowedFd<'a>> {
    Outgoing { message, payload, fds, begun: None }
}

#[test]
fn small_payloads_travel_along_and_large_ones_through_the_staging_file() {
    let (transport, bus, _connection) = connected();
    let server = serve(bus, |bus| {
        let mut seen = vec![];
        for _ in 0..3 {
            let fds_before = bus.staging.is_some();
            let (serial, bytes, staged) = bus
                .next(|packet, fds| {
                    assert!(fds.is_empty());
                    assert_eq!(packet.message.as_deref(), Some(&b"message!"[..]));
                    match packet.payload {
                        Payload::Inline(bytes) => (packet.header.serial, bytes.to_vec(), 0),
                        Payload::Staged(len) => (packet.header.serial, vec![], len),
                    }
                })
                .unwrap();
            let mut bytes = bytes;
            if let (Some(file), true) = (&bus.staging, staged != 0) {
                bytes.resize(staged as usize, 0);
                assert_eq!(rustix::io::pread(file, &mut bytes[..], 0), Ok(staged as usize));
            }
            bus.answer(serial, Ok(()), &[], &[]);
            seen.push((bytes, staged != 0, bus.staging.is_some() && !fds_before));
        }
        seen
    });
    let large = vec![5; 200_000];
    let mut message = *b"message!";
    transport.send(&mut outgoing(&mut message, &[b"ab", b"", b"c"], &[])).unwrap();
    transport.send(&mut outgoing(&mut message, &[b"ab", &large], &[])).unwrap();
    transport.send(&mut outgoing(&mut message, &[&large[..100_000]], &[])).unwrap();
    let seen = server.join().unwrap().1;
    assert_eq!(seen[0], (b"abc".to_vec(), false, false));
    assert_eq!(
        (seen[1].0.len(), &seen[1].0[..3], seen[1].1, seen[1].2),
        (200_002, &b"ab\x05"[..], true, true)
    );
    assert_eq!((seen[2].0.len(), seen[2].1, seen[2].2), (100_000, true, false));
}

#[test]
fn many_small_parts_are_staged() {
    let (transport, bus, _connection) = connected();
    let server = serve(bus, |bus| {
        let (serial, payload) = bus
            .next(|packet, _| (packet.header.serial, matches!(packet.payload, Payload::Staged(1000))))
            .unwrap();
        bus.answer(serial, Ok(()), &[], &[]);
        payload
    });
    let parts: Vec<&[u8]> = vec![b"x"; 1000];
    transport.send(&mut outgoing(&mut [0; 64], &parts, &[])).unwrap();
    assert!(server.join().unwrap().1);
}

#[test]
fn a_call_waits_for_its_reply_and_brings_its_descriptors() {
    let (transport, bus, mut connection) = connected();
    let file = create(c"passed", 5).unwrap();
    let server = serve(bus, move |bus| {
        let (serial, mut command) = bus
            .next(|packet, _| (packet.header.serial, CmdSend::read_from_bytes(packet.arg).unwrap()))
            .unwrap();
        // An answer to something else is not this one.
        bus.answer(serial + 1000, Err(Errno::EIO), &[], &[]);
        command.reply = MsgInfo { offset: 800, msg_size: 8, return_flags: 0 };
        bus.answer(serial, Ok(()), command.as_bytes(), &[file.as_fd()]);
        command.flags
    });
    connection.pool.write(800, b"a reply!").unwrap();
    let reply = transport.call(&mut outgoing(&mut [0; 64], &[], &[]), None).unwrap();
    assert_eq!(transport.slice(reply.info.offset, reply.info.msg_size), Some(&b"a reply!"[..]));
    assert_eq!((reply.fds.len(), server.join().unwrap().1), (1, 1));
}

#[test]
fn a_canceled_call_still_takes_its_answer() {
    let (transport, bus, _connection) = connected();
    let (cancel, canceler) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    let server = serve(bus, move |bus| {
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        rustix::io::write(&canceler, b"!").unwrap();
        let (kind, key) = bus.next(|packet, _| (packet.kind, packet.header.key)).unwrap();
        assert_eq!((kind, key), (Kind::Cancel, serial));
        bus.answer(serial, Err(Errno::ECANCELED), &[], &[]);
    });
    let error = transport.call(&mut outgoing(&mut [0; 64], &[], &[]), Some(cancel.as_fd())).unwrap_err();
    assert_eq!(error, Failure::Refused(Errno::ECANCELED));
    server.join().unwrap();
}

#[test]
fn a_descriptor_that_cannot_be_polled_cancels_nothing() {
    let (transport, _bus, _connection) = connected();
    let file = create(c"file", 5).unwrap();
    let error = transport.call(&mut outgoing(&mut [0; 64], &[], &[]), Some(file.as_fd())).unwrap_err();
    assert_eq!(error, Failure::Refused(Errno::EINVAL));
}

#[test]
fn a_bus_that_dies_is_gone_for_ever() {
    let (transport, bus, connection) = connected();
    assert_eq!(recv(&transport), None);
    drop((bus, connection));
    assert!(readable(&transport));
    let gone = Failure::Broken(Errno::ECONNRESET);
    assert_eq!(transport.wait(None), Err(gone));
    assert_eq!(transport.recv(RecvFlags::empty(), 0).err(), Some(gone));
    assert_eq!(transport.send(&mut outgoing(&mut [0; 64], &[], &[])), Err(gone));
    assert_eq!(transport.watch_room(3), Err(gone));
    transport.free(8);
}

#[test]
fn a_bus_that_dies_during_a_command_is_noticed_by_it() {
    for fault in [0, 1, 2, 3, 4] {
        let (transport, bus, connection) = connected();
        let server = serve(bus, move |bus| {
            let serial = bus.next(|packet, _| packet.header.serial).unwrap();
            let good = Header::answer(serial, Ok(()));
            let bad = [
                None,
                Some(Header { magic: 0, ..good }),
                Some(Header { version: 2, ..good }),
                Some(Header { arg_size: 5, ..good }),
                Some(Header { kind: Kind::Command as u16, ..good }),
            ];
            if let Some(header) = bad[fault] {
                socket::send(&bus.socket, &header, &[], &[], Wait::Yes).unwrap();
                assert_eq!(bus.next(|_, _| ()), None, "the client hangs up");
            } else {
                rustix::net::shutdown(&bus.socket, rustix::net::Shutdown::Both).unwrap();
            }
        });
        let expected = if fault == 0 { Errno::ECONNRESET } else { super::error::EPROTO };
        for _ in 0..2 {
            assert_eq!(transport.watch_room(3), Err(Failure::Broken(expected)), "{fault}");
        }
        server.join().unwrap();
        drop(connection);
    }
}

#[test]
fn an_ended_connection_is_no_refusal() {
    let (transport, bus, mut connection) = connected();
    connection.show(0, 1, 0, false);
    let armed = connection.inbox.end();
    connection.ring(armed);
    let gone = Failure::Broken(Errno::ECONNRESET);
    assert_eq!(transport.recv(RecvFlags::empty(), 0).err(), Some(gone));
    assert!(readable(&transport));
    drop((bus, connection));
    let (transport, bus, mut connection) = connected();
    let server = serve(bus, move |bus| {
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        let _ = connection.inbox.end();
        bus.answer(serial, Err(Errno::ESHUTDOWN), &[], &[]);
        connection
    });
    assert_eq!(transport.watch_room(3), Err(gone));
    server.join().unwrap();
}

#[test]
fn hello_without_its_memory_is_of_no_use() {
    for fault in 0..4 {
        let (mut bus, client) = pair();
        let server = thread::spawn(move || {
            let (serial, arg) = bus.next(|packet, _| (packet.header.serial, packet.arg.to_vec())).unwrap();
            let sealed = |len| {
                let file = create(c"file", len).unwrap();
                seal(&file, Seal::Size).unwrap();
                file
            };
            let loose = create(c"file", POOL).unwrap();
            let files = match fault {
                0 => vec![sealed(POOL), sealed(8192), sealed(8192)],
                1 => vec![loose, sealed(8192), sealed(8192), sealed(1)],
                2 => vec![sealed(POOL - 4096), sealed(8192), sealed(8192), sealed(1)],
                // All there, but no queue in it.
                _ => vec![sealed(POOL), sealed(8192), sealed(8192), sealed(1)],
            };
            let fds: Vec<_> = files.iter().map(AsFd::as_fd).collect();
            bus.answer(serial, Ok(()), &arg, &fds);
            assert_eq!(bus.next(|_, _| ()), None, "the client hangs up");
        });
        let transport = LocalTransport::over(handle(client)).unwrap();
        let error = say_hello(&transport, HelloFlags::empty()).unwrap_err();
        assert_eq!(error, Failure::Broken(super::error::EPROTO), "{fault}");
        server.join().unwrap();
    }
}

#[test]
fn a_policy_holder_is_told_by_the_bus_that_it_receives_nothing() {
    let (mut bus, client) = pair();
    let server = thread::spawn(move || {
        let connection = bus.welcome();
        let (serial, number) = bus.next(|packet, _| (packet.header.serial, packet.header.number)).unwrap();
        bus.answer(serial, Err(Errno::EOPNOTSUPP), &[], &[]);
        drop(connection.files);
        number
    });
    let transport = LocalTransport::over(handle(client)).unwrap();
    say_hello(&transport, HelloFlags::POLICY_HOLDER).unwrap();
    let error = transport.recv(RecvFlags::empty(), 0).unwrap_err();
    assert_eq!(error, Failure::Refused(Errno::EOPNOTSUPP));
    assert_eq!(server.join().unwrap(), Command::Recv.request());
}

#[test]
fn a_handle_carries_arguments_and_messages_as_they_are() {
    let (bus, client) = pair();
    let server = serve(bus, |bus| {
        let seen = bus
            .next(|packet, _| {
                (packet.header.serial, packet.header.number, packet.arg.len(), packet.message.is_none())
            })
            .unwrap();
        bus.answer(seen.0, Err(Errno::ENOTTY), b"xy", &[]);
        let (serial, message, fds) = bus
            .next(|packet, fds| (packet.header.serial, packet.message.map(|m| m.to_vec()), fds.len()))
            .unwrap();
        let header = Header {
            flags: wire::FLAG_RETURN_MESSAGE,
            arg_size: 1,
            message_size: 3,
            ..Header::answer(serial, Ok(()))
        };
        socket::send(&bus.socket, &header, &[b"A", b"MES"], &[], Wait::Yes).unwrap();
        (seen.1, seen.2, seen.3, message, fds)
    });
    let handle = handle(client);
    let mut arg = vec![b'-'; 40_000];
    assert_eq!(handle.command(0xdead_beef, &mut arg).unwrap_err(), Failure::Refused(Errno::ENOTTY));
    assert_eq!(&arg[..3], b"xy-");
    let (mut arg, mut message) = ([0; 8], *b"message");
    let cancel = create(c"file", 0).unwrap();
    let with = Attachments { fds: &[cancel.as_fd()], ..Attachments::default() };
    handle.send(&mut arg, Some(&mut message), with).unwrap();
    assert_eq!((arg[0], &message), (b'A', b"MESsage"));
    let (number, len, no_message, sent, fds) = server.join().unwrap().1;
    assert_eq!((number, len, no_message), (0xdead_beef, 32768, true));
    assert_eq!((sent.as_deref(), fds), (Some(&b"message"[..]), 1));
}

#[test]
fn lost_descriptors_are_told_with_the_message() {
    let (transport, bus, mut connection) = connected();
    connection.show(2, 9, 0, true);
    let server = serve(bus, move |bus| {
        let (serial, mut command) = bus
            .next(|packet, _| (packet.header.serial, CmdRecv::read_from_bytes(packet.arg).unwrap()))
            .unwrap();
        command.msg =
            MsgInfo { offset: 16, msg_size: 8, return_flags: RecvReturnFlags::INCOMPLETE_FDS.bits() };
        bus.answer(serial, Ok(()), command.as_bytes(), &[]);
    });
    let message = transport.recv(RecvFlags::empty(), 0).unwrap().message.unwrap();
    assert_eq!(message.info.return_flags, RecvReturnFlags::INCOMPLETE_FDS.bits());
    server.join().unwrap();
}

#[cfg(feature = "lanes")]
#[test]
fn a_place_whose_lane_was_refused_is_asked_for_again() {
    use kdbus_core::channel::terms;

    let (mut bus, client) = pair();
    let server = thread::spawn(move || {
        let connection = bus.welcome();
        let mut kinds = vec![];
        let mut next = |bus: &mut Bus| {
            let (kind, serial) = bus.next(|packet, _| (packet.kind, packet.header.serial)).unwrap();
            kinds.push(kind);
            serial
        };
        let mut first = Lane::new(9);
        let serial = next(&mut bus);
        bus.answer(serial, Ok(()), &[], &first.fds());
        next(&mut bus);
        // Its sender is gone.
        first.gate.close();
        terms::end(first.gate.page());
        next(&mut bus);
        for _ in 0..3 {
            let serial = next(&mut bus);
            bus.answer(serial, Err(Errno::ENOBUFS), &[], &[]);
        }
        let serial = next(&mut bus);
        bus.answer(serial, Ok(()), &[], &Lane::new(9).fds());
        next(&mut bus);
        (kinds, bus, connection)
    });
    let mut transport = LocalTransport::over(handle(client)).unwrap();
    transport.wanted = (1, 8);
    say_hello(&transport, HelloFlags::empty()).unwrap();
    for _ in 0..10_000 {
        if !server.is_finished() {
            transport.wait(Some(transport.now().after(core::time::Duration::from_millis(1)))).unwrap();
        }
    }
    assert!(server.is_finished(), "it is asked for no more");
    let asks = [Kind::BringLane; 4];
    let expected = [&[Kind::BringLane, Kind::LaneMapped, Kind::DropLane][..], &asks, &[Kind::LaneMapped]];
    assert_eq!(server.join().unwrap().0, expected.concat());
}

#[cfg(feature = "lanes")]
#[test]
fn who_polls_from_outside_and_may_not_leave_finds_what_came_meanwhile() {
    use kdbus_core::abi::{Cmd, Msg};
    use kdbus_core::channel::LaneHead;

    fn send(lane: &mut Lane) -> bool {
        let message = short_message(Msg { dst_id: 7, ..Msg::default() });
        let head = LaneHead { first: message.len() as u64, second: 8, key: 1, call: 0 };
        let mut reserved = lane.writer.reserve(head).unwrap();
        reserved.put(&message);
        reserved.next_part();
        reserved.put(&[7; 8]);
        reserved.commit().unwrap()
    }

    let (mut bus, client) = pair();
    let welcome = thread::spawn(move || {
        let connection = bus.welcome();
        let lane = Lane::new(9);
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        bus.answer(serial, Ok(()), &[], &lane.fds());
        bus.next(|packet, _| assert_eq!(packet.kind, Kind::LaneMapped)).unwrap();
        (bus, connection, lane)
    });
    let mut transport = LocalTransport::over(handle(client)).unwrap();
    transport.wanted = (1, 8);
    say_hello(&transport, HelloFlags::empty()).unwrap();
    let (bus, _connection, mut lane) = welcome.join().unwrap();
    assert!(!readable(&transport));
    assert!(send(&mut lane));
    rustix::io::write(&lane.ringer, &[1]).unwrap();
    assert!(readable(&transport));
    let received = || transport.recv(RecvFlags::empty(), 0).unwrap().message.is_some();
    assert!(received());
    // The bell is emptied to tell its sender, who rings no more as long as it is not asked to.
    lane.writer.ask_room();
    let server = serve(bus, move |bus| {
        let serial = bus.next(|packet, _| packet.header.serial).unwrap();
        assert!(!send(&mut lane));
        // The end of this command is told in a packet alone.
        bus.posts = None;
        bus.answer(serial, Err(Errno::EBUSY), &[], &[]);
        lane
    });
    let mut command = Cmd { size: size_of::<Cmd>() as u64, ..Cmd::default() };
    let left = transport.command(Command::Byebye, command.as_mut_bytes());
    assert_eq!(left, Err(Failure::Refused(Errno::EBUSY)));
    let _kept = server.join().unwrap();
    assert!(readable(&transport), "nobody rings for it");
    assert!(received() && !received() && !readable(&transport));
}
