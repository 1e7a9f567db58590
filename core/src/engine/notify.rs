//! Messages that the bus itself sends: who came, who went, which name moved, which call has no end.

use zerocopy::IntoBytes;

use crate::WELL_KNOWN_NAME_MAX;
use crate::abi::{
    AttachFlags, DST_ID_BROADCAST, IdChange, ItemType, ItemWriter, Msg, MsgFlags, PAYLOAD_KERNEL,
    SRC_ID_KERNEL,
};

use super::Domain;
use super::deliver::Parcel;
use super::host::{Clock, Host};
use super::rules::Subject;
use super::table::{BusIx, ConnIx};

/// Bytes of the longest notification item: header, two ids with flags, a name and its NUL.
const ITEM_MAX: usize = 16 + 32 + WELL_KNOWN_NAME_MAX + 1;

/// One notification.
#[derive(Clone, Copy, Debug)]
pub(super) enum Notice<'n> {
    /// A connection came or went.
    Id { added: bool, change: IdChange },
    /// A name got, lost or changed its owner; nobody has id 0.
    Name { old: IdChange, new: IdChange, name: &'n str },
    /// A call has no reply and will have none.
    Reply { dead: bool, cookie: u64, caller: u64 },
}

impl Notice<'_> {
    /// The type of its item.
    pub(super) const fn kind(&self) -> ItemType {
        match self {
            Self::Id { added: true, .. } => ItemType::ID_ADD,
            Self::Id { added: false, .. } => ItemType::ID_REMOVE,
            Self::Name { old, .. } if old.id == 0 => ItemType::NAME_ADD,
            Self::Name { new, .. } if new.id == 0 => ItemType::NAME_REMOVE,
            Self::Name { .. } => ItemType::NAME_CHANGE,
            Self::Reply { dead: true, .. } => ItemType::REPLY_DEAD,
            Self::Reply { dead: false, .. } => ItemType::REPLY_TIMEOUT,
        }
    }

    const fn header(&self) -> Msg {
        let (flags, dst_id, timeout_or_reply) = match self {
            Self::Reply { cookie, caller, .. } => (0, *caller, *cookie),
            _ => (MsgFlags::SIGNAL.bits(), DST_ID_BROADCAST, 0),
        };
        Msg {
            size: 0,
            flags,
            priority: 0,
            dst_id,
            src_id: SRC_ID_KERNEL,
            payload_type: PAYLOAD_KERNEL,
            cookie: 0,
            timeout_or_reply,
        }
    }

    /// Writes its item and returns the length, without padding.
    fn write(&self, buffer: &mut [u8; ITEM_MAX]) -> usize {
        let mut writer = ItemWriter::new(buffer);
        let written = match self {
            Self::Id { change, .. } => writer.record(self.kind(), change),
            Self::Name { old, new, name } => {
                writer.parts(self.kind(), &[old.as_bytes(), new.as_bytes(), name.as_bytes(), &[0]])
            }
            Self::Reply { .. } => writer.bytes(self.kind(), &[]),
        };
        debug_assert!(written.is_ok(), "the buffer holds the longest name");
        writer.len()
    }
}

impl Domain<'_> {
    /// Sends a notification of the broadcast kinds to monitors and to every connection that wants it.
    ///
    /// Cost: as a broadcast, its candidates; one copy each.
    pub(super) fn announce(&mut self, host: &mut dyn Host, at: Clock, bus: BusIx, notice: &Notice<'_>) {
        if self.buses[bus].dying {
            return;
        }
        let mut buffer = [0; ITEM_MAX];
        let len = notice.write(&mut buffer);
        let header = notice.header();
        let parcel = self.notice_parcel(at, bus, &header, &buffer[..len]);
        self.copy_to_monitors(host, at, bus, &parcel);
        let mut walk = self.matches.walk();
        let serial = walk.serial();
        while let Some(to) = self.matches.next(&mut walk, bus, &Subject::Notice(notice)) {
            if !self.takes_broadcast(to, bus, serial) {
                continue;
            }
            // kdbus: only changes of names are subject to visibility.
            if let Notice::Name { name, .. } = notice
                && !self.sees_name(to, &self.handles[self.conns[to].handle].creds, name)
            {
                continue;
            }
            if self.deliver(host, at, to, &parcel, 0, None).is_err() {
                self.lose(host, to);
            }
        }
    }

    /// Tells a caller that its call has no end. It is lost without a trace if the caller has no room.
    pub(super) fn notify_caller(
        &mut self,
        host: &mut dyn Host,
        at: Clock,
        caller: ConnIx,
        cookie: u64,
        dead: bool,
    ) {
        let notice = Notice::Reply { dead, cookie, caller: self.conns[caller].id };
        let end = if dead { "can never be answered" } else { "was not answered in time" };
        crate::event!(debug, "call {} of {} {}", cookie, self.conns[caller].id, end);
        let mut buffer = [0; ITEM_MAX];
        let len = notice.write(&mut buffer);
        let bus = self.conns[caller].bus;
        let header = notice.header();
        let parcel = self.notice_parcel(at, bus, &header, &buffer[..len]);
        self.copy_to_monitors(host, at, bus, &parcel);
        let _ = self.deliver(host, at, caller, &parcel, 0, None);
    }

    fn notice_parcel<'m>(&mut self, at: Clock, bus: BusIx, header: &'m Msg, items: &'m [u8]) -> Parcel<'m> {
        let stamp = self.stamp(at, bus);
        self.gathered.realtime_ns = 0;
        Parcel {
            header,
            items,
            payload: 0,
            from: None,
            caller: None,
            user: self.kernel,
            stamp,
            files: None,
            fds: 0,
            attach: Some(AttachFlags::TIMESTAMP),
        }
    }
}
