//! Queries: LIST, CONN_INFO and BUS_CREATOR_INFO.

use zerocopy::IntoBytes;

use crate::abi::{
    AttachFlags, CmdInfo, CmdList, Command, Errno, Frame, FrameError, Info, ItemType, ListFlags, NameFlags,
    align8,
};

use super::Domain;
use super::call::index;
use super::connection::{put_record, record};
use super::domain::chunk_ref;
use super::host::{Credentials, HandleId, Host};
use super::metadata::{PROCESS, emit_process, translate, visible};
use super::slice::{ByteSink, ItemSink, Measure, SliceWriter};
use super::table::ConnIx;

/// Bytes of a record without items.
const INFO: u64 = size_of::<Info>() as u64;

/// A claim as LIST reports it.
type Listed<'n> = (NameFlags, &'n str);

impl Domain<'_> {
    /// CONN_INFO. Cost: `O(log)` of names and connections, and the target's metadata.
    pub(super) fn conn_info(
        &mut self,
        host: &mut dyn Host,
        conn: ConnIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::ConnInfo.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let mut cmd: CmdInfo = record(frame.bytes);
        let wanted = AttachFlags::from_command(cmd.attach_flags)?;
        let creds = caller.unwrap_or_else(|| self.conn_creds(conn));
        let bus = self.conns[conn].bus;
        let target = if let Some(name) = frame.item(ItemType::NAME).and_then(|item| item.c_str()) {
            let entry = self.names.find(&self.buses[bus].names, name).ok_or(Errno::ESRCH)?;
            let owner = self.names.owner(entry).ok_or(Errno::ESRCH)?;
            let target = super::registry::place(owner.connection);
            let visible = self.names.text(entry).is_some_and(|name| self.sees_name(conn, creds, name));
            if !visible || (cmd.id != 0 && cmd.id != self.conns[target].id) {
                return Err(Errno::ESRCH);
            }
            target
        } else if cmd.id != 0 {
            let target = self.find_connection(bus, cmd.id).ok_or(Errno::ENXIO)?;
            if !self.sees_connection(conn, creds, target) {
                return Err(Errno::ENXIO);
            }
            target
        } else {
            return Err(Errno::EINVAL);
        };
        self.drain(host, conn);
        let shown = wanted & self.conns[target].attach_send;
        let (shown, who) = self.shown_to(host, conn, shown, &self.conns[target].identity);
        let mut measure = Measure::default();
        self.emit_conn_info(target, shown, who.as_ref(), &mut measure);
        let size = INFO + align8(measure.len());
        let offset = self.answer_slice(conn, size, |domain, owner, offset| {
            let record = &domain.conns[target];
            let info = Info { size, id: record.id, flags: record.flags.bits() };
            let mut writer = SliceWriter::new(host, owner, offset);
            writer.bytes(info.as_bytes());
            domain.emit_conn_info(target, shown, who.as_ref(), &mut writer);
            writer.pad();
        })?;
        (cmd.offset, cmd.info_size, cmd.return_flags) = (offset, size, 0);
        put_record(frame.bytes, &cmd);
        Ok(())
    }

    /// BUS_CREATOR_INFO. Cost: the creator's metadata.
    pub(super) fn bus_creator_info(
        &mut self,
        host: &mut dyn Host,
        conn: ConnIx,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::BusCreatorInfo.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let mut cmd: CmdInfo = record(frame.bytes);
        let wanted = AttachFlags::from_command(cmd.attach_flags)?;
        let bus = self.conns[conn].bus;
        self.drain(host, conn);
        let shown = wanted & self.buses[bus].shown;
        let (shown, who) = self.shown_to(host, conn, shown, &self.buses[bus].creator);
        let mut measure = Measure::default();
        self.emit_creator(conn, shown, who.as_ref(), &mut measure);
        let size = INFO + align8(measure.len());
        let offset = self.answer_slice(conn, size, |domain, owner, offset| {
            let info = Info { size, id: domain.buses[bus].id, flags: domain.buses[bus].flags };
            let mut writer = SliceWriter::new(host, owner, offset);
            writer.bytes(info.as_bytes());
            domain.emit_creator(conn, shown, who.as_ref(), &mut writer);
            writer.pad();
        })?;
        (cmd.offset, cmd.info_size, cmd.return_flags) = (offset, size, 0);
        put_record(frame.bytes, &cmd);
        Ok(())
    }

    /// LIST. Cost: two passes over the connections of the bus and their names.
    pub(super) fn list(
        &mut self,
        host: &mut dyn Host,
        conn: ConnIx,
        caller: Option<&Credentials>,
        arg: &mut [u8],
    ) -> Result<(), Errno> {
        let frame = Frame::check(arg, Command::List.shape(), false).map_err(FrameError::errno)?;
        if frame.negotiate {
            return Ok(());
        }
        let mut cmd: CmdList = record(frame.bytes);
        let flags = ListFlags::from_bits_truncate(frame.flags);
        self.drain(host, conn);
        let mut size = 0;
        self.each_record(conn, caller, flags, &mut |_, name| size += record_size(name));
        (cmd.offset, cmd.list_size, cmd.return_flags) = (self.conns[conn].pool.size(), size, 0);
        if size > 0 {
            cmd.offset = self.answer_slice(conn, size, |domain, owner, offset| {
                let mut writer = SliceWriter::new(host, owner, offset);
                domain.each_record(conn, caller, flags, &mut |info, name| {
                    writer.bytes(Info { size: record_size(name), ..info }.as_bytes());
                    if let Some((flags, name)) = name {
                        writer.item(ItemType::OWNED_NAME, &[flags.bits().as_bytes(), name.as_bytes(), &[0]]);
                        writer.pad();
                    }
                });
            })?;
        }
        put_record(frame.bytes, &cmd);
        Ok(())
    }

    /// Makes a slice for an answer, which `write` fills, and shows it to the user of the pool.
    fn answer_slice(
        &mut self,
        conn: ConnIx,
        size: u64,
        write: impl FnOnce(&Self, HandleId, u64),
    ) -> Result<u64, Errno> {
        let slice = self.pool(conn).allocate(size, false).map_err(|error| error.errno())?;
        write(self, self.conns[conn].known_as, slice.offset);
        self.show_slice(conn, slice.id);
        let _ = self.pool(conn).release(slice.id);
        Ok(slice.offset)
    }

    /// Calls `each` with every record that LIST reports: a connection, and a claim of it if it is about one.
    fn each_record(
        &self,
        conn: ConnIx,
        caller: Option<&Credentials>,
        flags: ListFlags,
        each: &mut dyn FnMut(Info, Option<Listed<'_>>),
    ) {
        let creds = caller.unwrap_or_else(|| self.conn_creds(conn));
        let mut next = self.buses[self.conns[conn].bus].members.first;
        while let Some(member) = next {
            let record = &self.conns[member];
            next = record.next;
            let info = Info { size: 0, id: record.id, flags: record.flags.bits() };
            let mut listed = false;
            for claim in self.names.claims(index(member)) {
                let needs = if claim.flags.contains(NameFlags::ACTIVATOR) {
                    ListFlags::ACTIVATORS
                } else if claim.flags.contains(NameFlags::IN_QUEUE) {
                    ListFlags::QUEUED
                } else {
                    ListFlags::NAMES
                };
                // A name that the caller may not see does not hide its connection.
                if flags.contains(needs) && self.sees_name(conn, creds, claim.name) {
                    listed = true;
                    each(info, Some((claim.flags, claim.name)));
                }
            }
            if !listed && flags.contains(ListFlags::UNIQUE) {
                each(info, None);
            }
        }
    }

    /// What a query shows of somebody to a connection, and by which numbers if they are not the host's.
    fn shown_to(
        &self,
        host: &mut dyn Host,
        conn: ConnIx,
        shown: AttachFlags,
        who: &Credentials,
    ) -> (AttachFlags, Option<Credentials>) {
        let (by, space) = (self.conns[conn].known_as, &self.conn_creds(conn).spaces);
        // kdbus: in queries, what the target gives out alone decides.
        (visible(shown, AttachFlags::all(), &who.spaces, space), translate(host, by, space, who))
    }

    fn emit_conn_info(
        &self,
        target: ConnIx,
        shown: AttachFlags,
        who: Option<&Credentials>,
        sink: &mut dyn ItemSink,
    ) {
        let conn = &self.conns[target];
        // kdbus: of a connection with faked credentials, only what was given is known.
        let process = conn.faked.unwrap_or(PROCESS);
        let buffer = chunk_ref(self.info, target, self.config.info_bytes);
        emit_process(shown & process, who.unwrap_or(&conn.identity), &conn.gathered, buffer, sink);
        self.emit_connection(target, shown, sink);
    }

    fn emit_creator(
        &self,
        conn: ConnIx,
        shown: AttachFlags,
        who: Option<&Credentials>,
        sink: &mut dyn ItemSink,
    ) {
        let place = self.conns[conn].bus;
        let bus = &self.buses[place];
        sink.item(ItemType::MAKE_NAME, &[bus.name.as_bytes(), &[0]]);
        let pieces = self.info.get(self.config.connections * self.config.info_bytes..).unwrap_or_default();
        let buffer = chunk_ref(pieces, place, self.config.info_bytes);
        emit_process(shown, who.unwrap_or(&bus.creator), &bus.gathered, buffer, sink);
    }
}

/// Bytes of one record of LIST.
fn record_size(name: Option<Listed<'_>>) -> u64 {
    let item = name.map_or(0, |(_, name)| (crate::abi::ITEM_HEADER + 8 + name.len() + 1) as u64);
    INFO + align8(item)
}
