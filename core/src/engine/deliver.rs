//! Delivery of one message to one connection.

use zerocopy::IntoBytes;

use crate::abi::{AttachFlags, Errno, ItemType, Msg, MsgInfo, NameFlags, RecvReturnFlags, Timestamp};

use super::call::index;
use super::draft::Draft;
use super::host::{Clock, Credentials, Host};
use super::metadata::{CONNECTION, PROCESS, READ, emit_process, translate, visible};
use super::pool::{Slice, SliceId};
use super::reply::TrackerId;
use super::slice::ItemSink;
use super::table::{BusIx, ConnIx, FileIx, UserIx};
use super::{Domain, Entry};

/// One message on its way to its receivers.
#[derive(Clone, Copy)]
pub(super) struct Parcel<'m> {
    /// The header as sent; size and sender are filled in for each receiver.
    pub(super) header: &'m Msg,
    /// Items, up to the unpadded end of the last one.
    pub(super) items: &'m [u8],
    /// Bytes behind header, items and metadata.
    pub(super) payload: u64,
    /// Who sends it; nobody if it is the bus itself.
    pub(super) from: Option<ConnIx>,
    /// Who the sender is now.
    pub(super) caller: Option<&'m Credentials>,
    /// Whom it is charged to.
    pub(super) user: UserIx,
    /// The same for all receivers.
    pub(super) stamp: Timestamp,
    /// Files, of which the sender holds one copy.
    pub(super) files: Option<FileIx>,
    /// Passed descriptors among them.
    pub(super) fds: u32,
    /// Metadata to attach, whatever the receiver asks for.
    pub(super) attach: Option<AttachFlags>,
}

/// A message that waits at a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Message {
    pub(super) slice: Slice,
    pub(super) charge: Charge,
    pub(super) files: Option<FileIx>,
    /// Number of the name it was sent to, 0 if it was sent by id.
    pub(super) name: u64,
    /// The call that it is.
    pub(super) tracker: Option<TrackerId>,
    pub(super) key: u64,
}

/// What a waiting message takes of a receiver's quota.
#[derive(Clone, Copy, Debug)]
pub(super) struct Charge {
    pub(super) user: UserIx,
    pub(super) size: u64,
    pub(super) fds: u32,
}

/// What a message shows of its sender to one receiver.
pub(super) struct Shown {
    pub(super) attach: AttachFlags,
    /// Who sends it, where the receiver knows that by other numbers.
    pub(super) who: Option<Credentials>,
}

/// A message in its receiver's pool, charged but not queued.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deposit {
    pub(super) slice: Slice,
    pub(super) charge: Charge,
    pub(super) files: Option<FileIx>,
}

/// A copy of a message that was put together for one receiver: others that are shown the same are given its bytes.
///
/// It stands in a pool, where nobody but the bus writes, and is read before any receiver acts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    owner: super::HandleId,
    offset: u64,
    /// Bytes of the slice.
    len: u64,
    attach: AttachFlags,
}

impl Domain<'_> {
    /// Queues a copy of a message at `to` and remembers to wake it.
    ///
    /// `name` is the number of the name it was sent to, or 0. Cost: the copy, and `O(log)` of the
    /// receiver's slices, users and queue.
    ///
    /// # Errors
    ///
    /// `ECONNRESET`, `ECOMM`, `ENOBUFS`, `EMFILE`, `EXFULL`, `EFAULT`; nothing is left behind.
    pub(super) fn deliver(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        to: ConnIx,
        parcel: &Parcel<'_>,
        name: u64,
        tracker: Option<TrackerId>,
    ) -> Result<(), Errno> {
        self.deliver_like(host, at, to, parcel, name, tracker, &mut None)
    }

    /// As [`deliver`](Self::deliver), for one of several receivers: what was put together for one stands in `model`.
    ///
    /// # Errors
    ///
    /// As [`deliver`](Self::deliver).
    #[expect(clippy::too_many_arguments, reason = "a delivery is made of that much")]
    pub(super) fn deliver_like(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        to: ConnIx,
        parcel: &Parcel<'_>,
        name: u64,
        tracker: Option<TrackerId>,
        model: &mut Option<Model>,
    ) -> Result<(), Errno> {
        let deposit = self.deposit(host, to, parcel, model)?;
        let (from, cookie) = (parcel.header.src_id, parcel.header.cookie);
        crate::event!(trace, "message {} of {} to {}", cookie, from, self.conns[to].id);
        let queued = self.enqueue(host, at, to, deposit, parcel.header.priority, name, tracker);
        if queued.is_err() {
            // The model may have been this one.
            *model = None;
        }
        queued
    }

    /// Puts a copy of a message into the pool of `to` and charges it: a copy of `model`, if that shows the same.
    ///
    /// # Errors
    ///
    /// As [`deliver`](Self::deliver).
    pub(super) fn deposit(
        &mut self,
        host: &mut dyn Host,
        to: ConnIx,
        parcel: &Parcel<'_>,
        model: &mut Option<Model>,
    ) -> Result<Deposit, Errno> {
        let (slice, files) = self.place(host, to, parcel, model, true)?;
        let charge = Charge { user: parcel.user, size: slice.size, fds: parcel.fds };
        Ok(Deposit { slice, charge, files })
    }

    /// As [`deposit`](Self::deposit), for a message that is handed out at once: with `charged` false it has to have room in
    /// the quota and takes none.
    ///
    /// # Errors
    ///
    /// As [`deliver`](Self::deliver).
    pub(super) fn place(
        &mut self,
        host: &mut dyn Host,
        to: ConnIx,
        parcel: &Parcel<'_>,
        model: &mut Option<Model>,
        charged: bool,
    ) -> Result<(Slice, Option<FileIx>), Errno> {
        let receiver = &self.conns[to];
        if !receiver.is_active() {
            return Err(Errno::ECONNRESET);
        }
        // kdbus: monitors take every message, with numbers of -1 for descriptors they do not accept.
        if parcel.fds > 0 && !receiver.is_monitor() && !receiver.accepts_fds() {
            return Err(Errno::ECOMM);
        }
        let owner = receiver.known_as;
        let shown = self.shown(host, parcel, to);
        let like = model.filter(|model| model.attach == shown.attach && shown.who.is_none());
        let mut draft = Draft::new();
        let (size, need) = match like {
            Some(model) => (0, model.len),
            None => self.put_together(host, parcel, &shown, &mut draft),
        };

        self.drain(host, to);
        let room = if charged {
            self.charge(to, parcel.user, need, parcel.fds).map(Some)
        } else {
            self.check_charge(to, parcel.user, need, parcel.fds).map(|()| None)
        };
        let charge = room?;
        let slice = match self.pool(to).allocate(need, true) {
            Ok(slice) => slice,
            Err(error) => {
                // A message that finds no slice leaves no charge behind.
                self.take_back(to, charge);
                return Err(error.errno());
            }
        };
        if let Some(Model { owner: from, offset, len, .. }) = like {
            host.pool_copy(from, offset, owner, slice.offset, len);
        } else {
            let written = self.write_message(host, owner, parcel, &shown, &mut draft, slice, size);
            if let Err(error) = written {
                let _ = self.pool(to).release(slice.id);
                self.take_back(to, charge);
                return Err(error);
            }
            if shown.who.is_none() {
                *model = Some(Model { owner, offset: slice.offset, len: need, attach: shown.attach });
            }
        }
        Ok((slice, self.files.share(parcel.files)))
    }

    fn take_back(&mut self, to: ConnIx, charge: Option<Charge>) {
        if let Some(charge) = charge {
            self.discharge(to, charge);
        }
    }

    /// Appends a deposited message to the queue of `to`.
    ///
    /// # Errors
    ///
    /// `ENOBUFS` if the queue is full; the deposit is undone.
    #[expect(clippy::too_many_arguments, reason = "an entry is made of that much")]
    pub(super) fn enqueue(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        to: ConnIx,
        deposit: Deposit,
        priority: i64,
        name: u64,
        tracker: Option<TrackerId>,
    ) -> Result<(), Errno> {
        let key = self.next_key(at);
        let Deposit { slice, charge, files } = deposit;
        let message = Message { slice, charge, files, name, tracker, key };
        let Ok(entry) = self.queue(to).push(priority, message) else {
            self.discard(host, to, deposit);
            return Err(Errno::ENOBUFS);
        };
        let receiver = &mut self.conns[to];
        receiver.counters.queued += 1;
        let (handle, known_as) = (receiver.handle, receiver.known_as);
        let (offset, size) = (slice.offset, slice.size);
        let shown = Entry { slot: entry.slot(), key, priority, offset, size, with_files: files.is_some() };
        let woken = host.publish(known_as, shown);
        if let Some(tracker) = tracker {
            self.replies.carry(tracker, index(to), entry);
        }
        if !woken {
            self.wake(handle);
        }
        Ok(())
    }

    /// Takes a deposit back that nobody has seen.
    pub(super) fn discard(&mut self, host: &mut dyn Host, to: ConnIx, deposit: Deposit) {
        self.files.release(host, deposit.files);
        let _ = self.pool(to).release(deposit.slice.id);
        self.discharge(to, deposit.charge);
    }

    /// Gives a deposited or queued message to its receiver: installs its files, publishes its slice and
    /// lets go of everything the bus held for it.
    pub(super) fn hand_out(&mut self, host: &mut dyn Host, to: ConnIx, deposit: Deposit) -> MsgInfo {
        self.discharge(to, deposit.charge);
        self.give(host, to, deposit.slice, deposit.files)
    }

    /// The same for a message that takes nothing of a quota.
    pub(super) fn give(
        &mut self,
        host: &mut dyn Host,
        to: ConnIx,
        slice: Slice,
        files: Option<FileIx>,
    ) -> MsgInfo {
        let mut missing = false;
        if files.is_some() {
            let conn = &self.conns[to];
            missing = self.files.install(host, conn.known_as, slice.offset, files, conn.accepts_fds());
            self.files.release(host, files);
        }
        let handed = self.pool(to).hand_over(slice.id);
        debug_assert!(handed.is_ok(), "the bus holds the slice");
        let flags = if missing { RecvReturnFlags::INCOMPLETE_FDS } else { RecvReturnFlags::empty() };
        MsgInfo { offset: slice.offset, msg_size: slice.size, return_flags: flags.bits() }
    }

    /// Leaves a message to its receiver alone: its slice is the user's, and the bus holds nothing for it any more.
    pub(super) fn let_go(&mut self, host: &mut dyn Host, to: ConnIx, deposit: Deposit) {
        self.files.release(host, deposit.files);
        let handed = self.pool(to).hand_over(deposit.slice.id);
        debug_assert!(handed.is_ok(), "the bus holds the slice");
        self.discharge(to, deposit.charge);
    }

    /// Lets the user of a pool see a slice.
    pub(super) fn show_slice(&mut self, to: ConnIx, slice: SliceId) {
        let shown = self.pool(to).publish(slice);
        debug_assert!(shown.is_ok(), "the bus holds the slice");
    }

    /// Counts a broadcast that did not get through.
    pub(super) fn lose(&mut self, host: &mut dyn Host, to: ConnIx) {
        let conn = &mut self.conns[to];
        conn.lost += 1;
        conn.lost_ever += 1;
        let (handle, first, ever) = (conn.handle, conn.lost == 1, conn.lost_ever);
        host.lost(self.handle_id(handle), ever);
        if first {
            crate::event!(warn, "connection {} loses broadcasts, {} by now", self.conns[to].id, ever);
            self.wake(handle);
        }
    }

    /// Copies a message to every monitor of a bus; those without room count it as lost.
    #[inline(always)]
    pub(super) fn copy_to_monitors(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        bus: BusIx,
        parcel: &Parcel<'_>,
    ) {
        let first = self.buses[bus].monitors.first;
        if first.is_some() {
            self.copy_to_each(host, at, first, parcel);
        }
    }

    fn copy_to_each(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        mut next: Option<ConnIx>,
        parcel: &Parcel<'_>,
    ) {
        while let Some(monitor) = next {
            next = self.conns[monitor].next;
            if self.deliver(host, at, monitor, parcel, 0, None).is_err() {
                self.lose(host, monitor);
            }
        }
    }

    /// Whether a connection is yet to get the broadcast with this serial.
    pub(super) fn takes_broadcast(&mut self, to: ConnIx, bus: BusIx, serial: u64) -> bool {
        let conn = &mut self.conns[to];
        if conn.bus != bus || !conn.is_active() || conn.heard == serial {
            return false;
        }
        conn.heard = serial;
        true
    }

    /// Number and times of a new message.
    ///
    /// On a bus that ever had a lane, numbers grow with the clock: a message by lane has the time at which it was sent
    /// for its number, and what comes by the bus later has to have a higher one.
    pub(super) fn stamp(&mut self, at: Clock, bus: BusIx) -> Timestamp {
        let bus = &mut self.buses[bus];
        let monotonic_ns = at.monotonic.as_nanos();
        bus.seqnum += 1;
        if bus.had_lanes {
            bus.seqnum = bus.seqnum.max(monotonic_ns);
        }
        Timestamp { seqnum: bus.seqnum, monotonic_ns, realtime_ns: at.realtime_ns }
    }

    fn next_key(&mut self, at: Clock) -> u64 {
        self.last_key = at.monotonic.as_nanos().max(self.last_key.saturating_add(1));
        self.last_key
    }

    /// What of its metadata a message shows to this receiver.
    fn shown(&self, host: &mut dyn Host, parcel: &Parcel<'_>, to: ConnIx) -> Shown {
        let receiver = &self.conns[to];
        let wanted = parcel.attach.unwrap_or(receiver.attach_recv);
        let Some(from) = parcel.from else {
            return Shown { attach: wanted, who: None };
        };
        // kdbus: faked credentials do not travel with messages, and neither do the real ones then.
        if self.conns[from].faked.is_some() {
            return Shown { attach: wanted.difference(PROCESS), who: None };
        }
        let space = &self.handles[receiver.handle].creds.spaces;
        if !space.is_apart() {
            return Shown { attach: wanted, who: None };
        }
        let who = self.sender(parcel, from);
        let attach = visible(wanted, self.conns[from].attach_send, &who.spaces, space);
        Shown { attach, who: translate(host, receiver.known_as, space, who) }
    }

    /// Who sends a message.
    fn sender<'a>(&'a self, parcel: &Parcel<'a>, from: ConnIx) -> &'a Credentials {
        parcel.caller.unwrap_or_else(|| self.conn_creds(from))
    }

    /// Asks the host for what it was not asked for yet and a receiver is shown, so that all are shown the same.
    pub(super) fn gather(&mut self, host: &mut dyn Host, parcel: &Parcel<'_>, attach: AttachFlags) {
        if let Some(from) = parcel.from.filter(|_| attach.intersects(READ)) {
            let handle = self.conns[from].known_as;
            self.gathered.gather(host, handle, attach, self.scratch);
        }
        if attach.contains(AttachFlags::TIMESTAMP) && self.gathered.realtime_ns == 0 {
            self.gathered.realtime_ns = host.realtime(parcel.stamp.realtime_ns);
        }
    }

    pub(super) fn emit_metadata(&self, parcel: &Parcel<'_>, shown: &Shown, sink: &mut dyn ItemSink) {
        let attach = shown.attach;
        if let Some(from) = parcel.from {
            if attach.intersects(PROCESS) {
                let who = shown.who.as_ref().unwrap_or_else(|| self.sender(parcel, from));
                emit_process(attach, who, &self.gathered, self.scratch, sink);
            }
            if attach.intersects(CONNECTION) {
                self.emit_connection(from, attach, sink);
            }
        }
        if attach.contains(AttachFlags::TIMESTAMP) {
            let realtime_ns = self.gathered.realtime_ns;
            sink.item(ItemType::TIMESTAMP, &[Timestamp { realtime_ns, ..parcel.stamp }.as_bytes()]);
        }
    }

    /// Emits what a connection itself is known by: its names, and its description.
    pub(super) fn emit_connection(&self, conn: ConnIx, attach: AttachFlags, sink: &mut dyn ItemSink) {
        if attach.contains(AttachFlags::NAMES) {
            self.each_held_name(conn, &mut |name: &str, flags: NameFlags| {
                sink.item(ItemType::OWNED_NAME, &[flags.bits().as_bytes(), name.as_bytes(), &[0]]);
            });
        }
        let description = &self.conns[conn].description;
        if attach.contains(AttachFlags::CONN_DESCRIPTION) && !description.is_empty() {
            sink.item(ItemType::CONN_DESCRIPTION, &[description.as_bytes(), &[0]]);
        }
    }
}
