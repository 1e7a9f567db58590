//! Somebody who sends more than anybody wants.

use kdbus_core::abi::{
    CmdHello, CmdSend, Command, ItemType, ItemWriter, Msg, PAYLOAD_DBUS, Vec as PayloadVec,
};
use kdbus_core::engine::HandleId;
use zerocopy::IntoBytes;

use crate::machine::ProcessId;
use crate::world::{Body, Progress, World};

/// Bytes of each message.
const PAYLOAD: [u8; 256] = [0x5a; 256];

/// Sends `count` messages to each connection of a process, or as many as the bus takes, on a connection of a new
/// process of the privileged user, whom no policy holds back, and which then ends.
pub(crate) fn flood(world: &mut World, process: usize, count: u64) {
    let owned = |(handle, owner): (&HandleId, &ProcessId)| (owner.0 == process).then_some(*handle);
    let handles: Vec<HandleId> = world.machine.owners.iter().filter_map(owned).collect();
    let ids: Vec<u64> =
        handles.into_iter().filter_map(|handle| Some(world.domain.connection(handle)?.id)).collect();
    let Some(bus) = world.machine.tree.keys().next().cloned() else { return };
    let stranger = world.spawn_user("flood", 0, 0);
    if let Ok(fd) = world.open(stranger, &bus, "bus") {
        let size = size_of::<CmdHello>() as u64;
        let mut hello = CmdHello { size, pool_size: 4096, ..CmdHello::default() };
        if let Progress::Done(Ok(())) =
            world.command(stranger, fd, Command::Hello.request(), hello.as_mut_bytes(), None)
        {
            for id in ids {
                for cookie in 1..=count {
                    if !send(world, stranger, fd, id, cookie) {
                        break;
                    }
                }
            }
        }
    }
    world.kill(stranger);
}

fn send(world: &mut World, from: ProcessId, fd: i32, to: u64, cookie: u64) -> bool {
    let mut message = [0; 96];
    let Ok(mut items) = ItemWriter::behind(&mut message, Msg::SIZE) else { return false };
    let vec = PayloadVec { size: PAYLOAD.len() as u64, address: 1 };
    if items.record(ItemType::PAYLOAD_VEC, &vec).is_err() {
        return false;
    }
    let size = items.len() as u64;
    let header = Msg { size, dst_id: to, cookie, payload_type: PAYLOAD_DBUS, ..Msg::default() };
    message[..Msg::SIZE].copy_from_slice(header.as_bytes());
    let mut command = CmdSend { size: size_of::<CmdSend>() as u64, msg_address: 1, ..CmdSend::default() };
    let body = Body { message: &mut message[..size as usize], payload: &[&PAYLOAD] };
    let sent = world.command(from, fd, Command::Send.request(), command.as_mut_bytes(), Some(body));
    sent == Progress::Done(Ok(()))
}
