//! Packets of clients: what they ask for is carried out, and mostly answered.

use kdbus_core::abi::{Command, Errno, RecvFlags};
use kdbus_core::engine::quota::Charge;
use kdbus_core::engine::{Arrival, BesideLanes, Clock, ConnectionView, HandleId, Outcome, Request};
use kdbus_linux::local::socket::is_hang_up;
use kdbus_linux::local::stats::{Holder, Report, Stats};
use kdbus_linux::local::wire::{
    FDS_MAX, FLAG_CLAIM, FLAG_POSTED, FLAG_RETURN_MESSAGE, FLAG_STAGING_FD, Header, Kind, Packet, Payload,
    WireError,
};
use rustix::fd::AsFd;
use rustix::io;
use zerocopy::FromBytes;

use crate::closer::{self, Batch};
use crate::daemon::Daemon;
use crate::files;
use crate::host::{Places, Turn, take_places};
use crate::poller::clock;
use crate::raw::{self, Foreign};

/// `EPROTO`: the other end speaks another version of the protocol.
const EPROTO: u32 = 71;

const CROWDED: &str = "too many descriptors of its user wait to be closed";

impl Daemon {
    /// Receives a client's next packet and does what it asks for. False if there is none, or what follows is settled.
    ///
    /// Descriptors of the packet that nothing took are closed at the end.
    pub(crate) fn take_packet(&mut self, from: HandleId) -> bool {
        let Some(client) = self.state.clients.get(from) else {
            return false;
        };
        let mut fds = Batch::of(client.uid);
        let arrived = match raw::recv(client.socket.as_fd(), &mut self.packet, &mut fds.fds) {
            Ok(arrived) if arrived.len > 0 => arrived,
            Err(io::Errno::AGAIN) => return false,
            Err(error) if !is_hang_up(error) => {
                self.state.doom(from, format_args!("its packet cannot be read: {error}"));
                return true;
            }
            Ok(_) | Err(_) => {
                self.hang_up(from);
                return false;
            }
        };
        if !fds.fds.is_empty() && self.state.budget.is_bound(fds.uid) && closer::is_crowded(fds.uid) {
            self.state.doom(from, CROWDED);
            return true;
        }
        // Out of the way while the packet is borrowed; it comes back below.
        let mut buffer = std::mem::take(&mut self.packet);
        if let Some(packet) = buffer.get_mut(..arrived.len) {
            self.packet(from, packet, &mut fds, arrived.fds_lost);
        }
        self.packet = buffer;
        true
    }

    fn packet(&mut self, from: HandleId, bytes: &mut [u8], fds: &mut Batch, fds_lost: bool) {
        // What the system had no room for is no fault of the client's packet.
        let count = if fds_lost {
            let said = peek(bytes).map(|header| header.fds as usize).filter(|fds| *fds <= FDS_MAX);
            said.unwrap_or(fds.fds.len())
        } else {
            fds.fds.len()
        };
        let packet = match Packet::parse(bytes, count) {
            Ok(packet) => packet,
            Err(error) => {
                // Who speaks another version is told so, as far as the head of a packet is the same in all.
                if let (WireError::Version(_), Some(header)) = (error, peek(bytes)) {
                    let answer = Header { number: EPROTO, ..Header::answer(header.serial, Ok(())) };
                    self.send(from, &answer, &[]);
                }
                self.state.doom(from, error);
                return;
            }
        };
        let Packet { kind, ref header, arg, message, payload } = packet;
        if fds_lost {
            // Without its staging file the client would wait for what never comes.
            if header.flags & FLAG_STAGING_FD != 0 || !kind.is_answered() {
                self.state.doom(from, "the daemon has no descriptors left");
            } else {
                self.answer(from, header, Err(Errno::EMFILE), arg, message.as_deref(), false);
            }
            return;
        }
        if header.flags & FLAG_STAGING_FD != 0 {
            let file = fds.fds.pop().map(|file| Foreign::new(file, fds.uid));
            if !self.stage(from, file) {
                self.state.doom(from, "its staging file is no memfd");
                return;
            }
        }
        // Behind the packet's arrival: what its sender did before has an earlier time.
        let at = clock();
        self.taken_up = Some(at);
        match kind {
            Kind::Command => self.carry_out(at, from, header, arg, message, payload, fds),
            Kind::ReceiveEntry => {
                let flags = arg.get(8..16).and_then(|word| word.first_chunk());
                let flags = flags.map_or(RecvFlags::empty(), |word| {
                    RecvFlags::from_bits_truncate(u64::from_ne_bytes(*word))
                });
                let mut turn = Turn::idle(&mut self.state);
                let (slot, key) = (header.slot, header.key);
                let result = self.domain.receive_entry(&mut turn, at, from, slot, key, flags, arg);
                self.finish(from, header, result, arg, message.as_deref(), true);
            }
            Kind::WatchRoom => {
                let result = self.domain.watch_room(&mut Turn::idle(&mut self.state), from, header.key);
                self.finish(from, header, result, arg, message.as_deref(), false);
            }
            Kind::Stats => {
                let result = self.report(from, header.key, arg);
                self.finish(from, header, result, arg, message.as_deref(), false);
            }
            Kind::Pairs => {
                let result = self.pairs(from, header.key, arg);
                self.finish(from, header, result, arg, message.as_deref(), false);
            }
            Kind::Cancel => {
                if let Some(token) = self.state.pending.find(from, header.key) {
                    let mut turn = Turn::idle(&mut self.state);
                    self.domain.cancel(&mut turn, at, from, token, Errno::ECANCELED);
                }
            }
            Kind::BringLane | Kind::OpenLane | Kind::LaneMapped | Kind::DropLane | Kind::CallDropped => {
                self.lane_packet(from, kind, header, arg);
            }
            Kind::Returns => self.domain.handle_returns(&mut Turn::idle(&mut self.state), at, from),
            _ => self.state.doom(from, WireError::Kind(header.kind)),
        }
    }

    /// Shows a connection in numbers.
    fn report(&mut self, from: HandleId, id: u64, bytes: &mut [u8]) -> Result<(), Errno> {
        let view = self.domain.peer(&mut Turn::idle(&mut self.state), from, id)?;
        let mut report = Report { stats: stats(&view), holders: heapless::Vec::new() };
        self.domain.each_holder(view.handle, |holder| {
            let uid = match (holder.kernel, holder.uid) {
                (true, _) => Holder::BUS,
                (false, Some(uid)) => uid.into(),
                (false, None) => Holder::ENDPOINT,
            };
            let Charge { size, messages, fds } = holder.charge;
            if messages > 0 {
                // With more of them the rest stays unnamed: the answer is bounded.
                let _ = report.holders.push(Holder { uid, size, messages: messages.into(), fds: fds.into() });
            }
        });
        report.write(bytes);
        Ok(())
    }

    /// Carries out a command of the ABI.
    #[expect(clippy::too_many_arguments, reason = "a packet, taken apart")]
    fn carry_out(
        &mut self,
        at: Clock,
        from: HandleId,
        header: &Header,
        arg: &mut [u8],
        mut message: Option<&mut [u8]>,
        payload: Payload<'_>,
        fds: &mut Batch,
    ) {
        let token = self.state.pending.token();
        // A command without descriptors pays nothing for them: the places are filled and emptied where they are.
        let mut places = Places::new();
        let mut pinned: heapless::Vec<_, FDS_MAX> = heapless::Vec::new();
        if !fds.fds.is_empty() {
            take_places(fds, &mut places);
            pinned.extend(places.iter().map(|_| None));
        }
        let past = (header.flags & FLAG_CLAIM != 0).then_some((header.slot, header.key));
        let mut turn = Turn {
            payload,
            fds: &mut places,
            pinned: &mut pinned,
            from: Some(from),
            past,
            claimed: false,
            state: &mut self.state,
        };
        let message_at = message.as_deref_mut();
        let request = Request { number: header.number, arg: &mut *arg, message: message_at, token };
        let arrival = Arrival { at, from, caller: None, request };
        let answers = past.and_then(|(lane, call)| turn.state.lanes.past_call(lane, from, call));
        let calls = if past.is_some() { 0 } else { header.slot };
        let outcome = self.domain.handle_beside_lanes(&mut turn, arrival, BesideLanes { answers, calls });
        if let (true, Outcome::Done(Err(error))) = (turn.claimed, outcome) {
            // kdbus: the reply uses the call up, and whoever waits for it gets the error too, or hears that the other end is
            // to blame.
            let why = if error == Errno::ECOMM { Errno::EREMOTEIO } else { error };
            let caller = self.state.lanes.fail_claim(header.slot, from, header.key, why);
            if let Some(caller) = caller {
                Turn::idle(&mut self.state).notice(caller);
            }
        }
        // What no message holds is closed before anybody hears of the command's end.
        places.clear();
        match outcome {
            Outcome::Done(result) => {
                // The files of a synchronous reply go with the end of that call, not with the command that brought it.
                let brings_files = header.number == Command::Recv.request();
                self.finish(from, header, result, arg, message.as_deref(), brings_files);
            }
            Outcome::Pending => {
                let wanted = header.flags & FLAG_RETURN_MESSAGE != 0;
                let message = message.as_deref().filter(|_| wanted);
                let posted = header.flags & FLAG_POSTED != 0;
                if !self.state.pending.wait(from, header.serial, arg, message, posted) {
                    self.state.doom(from, "the daemon lost track of its call");
                }
            }
        }
    }

    /// Keeps a client's staging file. False if it is none that can be read without waiting.
    fn stage(&mut self, from: HandleId, file: Option<Foreign>) -> bool {
        let file = file.filter(|file| files::is_memfd(file.as_fd()));
        match (file, self.state.clients.get_mut(from)) {
            (Some(file), Some(client)) => {
                client.staging = Some(file);
                true
            }
            _ => false,
        }
    }
}

/// The header of a packet that was not looked at yet.
fn peek(bytes: &[u8]) -> Option<Header> {
    Header::read_from_prefix(bytes).map(|(header, _)| header).ok()
}

fn stats(view: &ConnectionView) -> Stats {
    Stats {
        id: view.id,
        queued: view.queued as u64,
        queue_depth: view.queue_depth as u64,
        pool_size: view.pool_size,
        pool_used: view.accounted_size,
        slices: view.slices as u64,
        calls: view.calls as u64,
        sent: view.counters.sent,
        received: view.counters.queued,
        lost: view.lost_ever,
        refused: view.counters.refused,
        holders: 0,
    }
}
