//! The bench that a case works at: a world, a bus on it, and short ways to do what cases do.

use kdbus_core::abi::{
    AttachFlags, Cmd, CmdFree, CmdHello, CmdInfo, CmdList, CmdMatch, CmdRecv, CmdSend, Command, Errno, Info,
    ItemType, Items, ListFlags, Msg, MsgInfo, NameFlags, RecvFlags, SendFlags, Timestamp, Vec as PayloadVec,
};
use zerocopy::FromBytes;

use crate::build::{Arg, Hello, Item, Message, bus_make};
use crate::record;
use crate::world::{Body, Skip, World};

/// How a case ends if it does not fail.
pub(crate) type Outcome = Result<(), Skip>;

/// Nanoseconds of a millisecond.
pub(crate) const MS: u64 = 1_000_000;

/// How long a case waits for what has to come: long enough for a busy machine.
pub(crate) const PATIENCE: u64 = 20_000 * MS;

/// A connection of a case.
#[derive(Debug)]
pub(crate) struct Conn<W: World> {
    pub(crate) handle: W::Handle,
    pub(crate) id: u64,
    pub(crate) pool: u64,
    pub(crate) user: W::User,
}

/// A world with one bus, made by its owner for everybody.
#[derive(Debug)]
pub(crate) struct Bench<W: World> {
    pub(crate) world: W,
    /// Name of the bus.
    pub(crate) bus: String,
    /// The handle that keeps the bus alive.
    pub(crate) control: Option<W::Handle>,
    pub(crate) owner: W::User,
}

impl<W: World> Bench<W> {
    pub(crate) fn new(mut world: W) -> Self {
        let owner = world.owner();
        let bus = format!("{}-case", world.who(owner).uid);
        let mut bench = Self { world, bus: bus.clone(), control: None, owner };
        bench.control = Some(bench.make_bus(&mut bus_make(&bus)).unwrap());
        bench
    }

    /// Makes a bus with a control handle of its own.
    pub(crate) fn make_bus(&mut self, arg: &mut Arg) -> Result<W::Handle, Errno> {
        let control = self.world.open_control(self.owner).unwrap();
        match self.run_on(&control, arg) {
            Ok(()) => Ok(control),
            Err(errno) => {
                self.world.close(control);
                Err(errno)
            }
        }
    }

    /// Name with the owner's uid in front, as nodes need it.
    pub(crate) fn node_name(&mut self, name: &str) -> String {
        format!("{}-{name}", self.world.who(self.owner).uid)
    }

    /// A handle of the default endpoint that has not said HELLO.
    pub(crate) fn fresh(&mut self) -> W::Handle {
        let bus = self.bus.clone();
        self.world.open(self.owner, &bus, "bus").unwrap()
    }

    /// An ordinary connection of the bus' owner.
    pub(crate) fn connect(&mut self) -> Conn<W> {
        self.hello(&Hello::default())
    }

    /// A connection of the bus' owner.
    pub(crate) fn hello(&mut self, hello: &Hello) -> Conn<W> {
        self.hello_as(self.owner, hello)
    }

    /// A connection of `user`.
    pub(crate) fn hello_as(&mut self, user: W::User, hello: &Hello) -> Conn<W> {
        self.try_hello_as(user, hello).unwrap()
    }

    pub(crate) fn try_hello(&mut self, hello: &Hello) -> Result<Conn<W>, Errno> {
        self.try_hello_as(self.owner, hello)
    }

    pub(crate) fn try_hello_as(&mut self, user: W::User, hello: &Hello) -> Result<Conn<W>, Errno> {
        let bus = self.bus.clone();
        let handle = self.world.open(user, &bus, &hello.endpoint)?;
        let mut arg = hello.arg();
        if let Err(errno) = self.run_on(&handle, &mut arg) {
            self.world.close(handle);
            return Err(errno);
        }
        let reported: CmdHello = arg.read();
        let conn = Conn { handle, id: reported.id, pool: reported.pool_size, user };
        // A policy holder cannot give slices back.
        let _ = self.free(&conn, reported.offset);
        Ok(conn)
    }

    pub(crate) fn run_on(&mut self, handle: &W::Handle, arg: &mut Arg) -> Result<(), Errno> {
        record::note(arg.command, &arg.bytes, &[]);
        self.world.ioctl(handle, arg.command.request(), &mut arg.bytes)
    }

    pub(crate) fn run(&mut self, conn: &Conn<W>, arg: &mut Arg) -> Result<(), Errno> {
        self.run_on(&conn.handle, arg)
    }

    pub(crate) fn close(&mut self, conn: Conn<W>) {
        self.world.close(conn.handle);
    }

    pub(crate) fn byebye(&mut self, conn: &Conn<W>) -> Result<(), Errno> {
        self.run(conn, &mut Arg::new(Command::Byebye))
    }

    pub(crate) fn free(&mut self, conn: &Conn<W>, offset: u64) -> Result<(), Errno> {
        self.run(conn, &mut Arg::of(Command::Free, &CmdFree { offset, ..CmdFree::default() }))
    }

    // Sending.

    pub(crate) fn send(&mut self, conn: &Conn<W>, message: &Message) -> Result<(), Errno> {
        self.send_with(conn, &mut send_arg(SendFlags::empty()), &mut message.clone())
    }

    /// SEND with everything in the case's hands; what is written back stands in `arg` and `message`.
    pub(crate) fn send_with(
        &mut self,
        conn: &Conn<W>,
        arg: &mut Arg,
        message: &mut Message,
    ) -> Result<(), Errno> {
        record::note(Command::Send, &arg.bytes, &message.bytes);
        let body = Body { message: &mut message.bytes, payload: &message.payload };
        self.world.send(&conn.handle, &mut arg.bytes, Some(body))
    }

    /// Starts a synchronous call.
    pub(crate) fn start(&mut self, conn: &Conn<W>, message: &Message) -> W::Call {
        self.start_with(conn, send_arg(SendFlags::SYNC_REPLY), message)
    }

    pub(crate) fn start_with(&mut self, conn: &Conn<W>, arg: Arg, message: &Message) -> W::Call {
        record::note(Command::Send, &arg.bytes, &message.bytes);
        self.world.start(&conn.handle, arg.bytes, message.bytes.clone(), message.payload.clone())
    }

    /// How a synchronous call ended.
    pub(crate) fn finish(&mut self, call: W::Call) -> Result<MsgInfo, Errno> {
        let ended = self.world.finish(call);
        ended.result.map(|()| {
            CmdSend::read_from_prefix(&ended.command).map(|(command, _)| command.reply).unwrap_or_default()
        })
    }

    /// The message that lies at `info`, then given back.
    pub(crate) fn take(&mut self, conn: &Conn<W>, info: MsgInfo) -> Received {
        let received = self.look(conn, info);
        self.free(conn, info.offset).unwrap();
        received
    }

    /// The message that lies at `info`.
    pub(crate) fn look(&mut self, conn: &Conn<W>, info: MsgInfo) -> Received {
        let bytes = self.world.pool(&conn.handle, info.offset, info.msg_size).unwrap();
        Received::new(info, bytes)
    }

    // Receiving.

    /// RECV with what it wrote back.
    pub(crate) fn recv_raw(
        &mut self,
        conn: &Conn<W>,
        flags: RecvFlags,
        priority: i64,
    ) -> (Result<(), Errno>, CmdRecv) {
        let record = CmdRecv { flags: flags.bits(), priority, ..CmdRecv::default() };
        let mut arg = Arg::of(Command::Recv, &record);
        let result = self.run(conn, &mut arg);
        (result, arg.read())
    }

    /// The oldest message; its slice is given back at once.
    pub(crate) fn recv(&mut self, conn: &Conn<W>) -> Result<Received, Errno> {
        let received = self.recv_keep(conn)?;
        self.free(conn, received.info.offset).unwrap();
        Ok(received)
    }

    /// The oldest message; its slice stays.
    pub(crate) fn recv_keep(&mut self, conn: &Conn<W>) -> Result<Received, Errno> {
        let (result, command) = self.recv_raw(conn, RecvFlags::empty(), 0);
        result.map(|()| self.look(conn, command.msg))
    }

    /// The oldest message of the most urgent priority, if at least as urgent as `priority`.
    pub(crate) fn recv_urgent(&mut self, conn: &Conn<W>, priority: i64) -> Result<Received, Errno> {
        let (result, command) = self.recv_raw(conn, RecvFlags::USE_PRIORITY, priority);
        result.map(|()| self.take(conn, command.msg))
    }

    /// The oldest message, as soon as there is one.
    pub(crate) fn wait_recv(&mut self, conn: &Conn<W>) -> Received {
        self.wait_readable(conn);
        self.recv(conn).unwrap()
    }

    pub(crate) fn wait_readable(&mut self, conn: &Conn<W>) {
        let until = self.world.now() + PATIENCE;
        let poll = self.world.wait(&conn.handle, until);
        assert!(poll.readable, "nothing came in: {poll:?}");
    }

    /// Waits until a handle is hung up, whatever waits there.
    pub(crate) fn wait_hung_up(&mut self, handle: &W::Handle) {
        let until = self.world.now() + PATIENCE;
        while !self.world.poll(handle).hung_up {
            let now = self.world.now();
            assert!(now < until, "the handle lives on");
            self.world.sleep_until(now + MS);
        }
    }

    pub(crate) fn peek(&mut self, conn: &Conn<W>) -> Result<MsgInfo, Errno> {
        let (result, command) = self.recv_raw(conn, RecvFlags::PEEK, 0);
        result.map(|()| command.msg)
    }

    pub(crate) fn drop_first(&mut self, conn: &Conn<W>) -> Result<(), Errno> {
        self.recv_raw(conn, RecvFlags::DROP, 0).0
    }

    /// Nothing is queued, and `lost` broadcasts were lost.
    pub(crate) fn assert_empty(&mut self, conn: &Conn<W>, lost: u64) {
        let (result, command) = self.recv_raw(conn, RecvFlags::empty(), 0);
        assert_eq!((result, command.dropped_msgs), (Err(Errno::EAGAIN), lost));
    }

    // Names and matches.

    pub(crate) fn acquire(
        &mut self,
        conn: &Conn<W>,
        name: &str,
        flags: NameFlags,
    ) -> Result<NameFlags, Errno> {
        let mut arg = name_arg(Command::NameAcquire, name).flags(flags.bits());
        let result = self.run(conn, &mut arg);
        result.map(|()| NameFlags::from_bits_retain(arg.read::<Cmd>().return_flags))
    }

    /// Acquires a name that is free.
    pub(crate) fn own(&mut self, conn: &Conn<W>, name: &str) {
        let flags = self.acquire(conn, name, NameFlags::empty());
        assert_eq!(flags, Ok(NameFlags::PRIMARY | NameFlags::ACQUIRED));
    }

    pub(crate) fn release(&mut self, conn: &Conn<W>, name: &str) -> Result<(), Errno> {
        self.run(conn, &mut name_arg(Command::NameRelease, name))
    }

    pub(crate) fn add_match(&mut self, conn: &Conn<W>, cookie: u64, rules: &[Item]) -> Result<(), Errno> {
        self.run(conn, &mut match_arg(Command::MatchAdd, cookie).items(rules))
    }

    pub(crate) fn remove_match(&mut self, conn: &Conn<W>, cookie: u64) -> Result<(), Errno> {
        self.run(conn, &mut match_arg(Command::MatchRemove, cookie))
    }

    // Queries.

    /// What LIST returns.
    pub(crate) fn list(&mut self, conn: &Conn<W>, flags: ListFlags) -> Vec<Listed> {
        let mut arg = Arg::new(Command::List).flags(flags.bits());
        self.run(conn, &mut arg).unwrap();
        let list: CmdList = arg.read();
        if list.list_size == 0 {
            assert_eq!(list.offset, conn.pool);
            return Vec::new();
        }
        let bytes = self.world.pool(&conn.handle, list.offset, list.list_size).unwrap();
        self.free(conn, list.offset).unwrap();
        let mut records = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let info = Info::read_from_prefix(rest).unwrap().0;
            let (record, behind) = rest.split_at(info.size as usize);
            let name = read_items(&record[size_of::<Info>()..])
                .iter()
                .find(|(kind, _)| *kind == ItemType::OWNED_NAME)
                .map(|(_, payload)| owned_name(payload));
            records.push(Listed { id: info.id, flags: info.flags, name, size: info.size });
            rest = behind;
        }
        records
    }

    /// The record of `name` in a full LIST.
    pub(crate) fn name_flags(&mut self, conn: &Conn<W>, owner: u64, name: &str) -> Option<NameFlags> {
        let listed = self.list(conn, ListFlags::all());
        listed
            .into_iter()
            .filter(|record| record.id == owner)
            .find_map(|record| record.name.filter(|(_, listed)| listed == name).map(|(flags, _)| flags))
    }

    /// CONN_INFO by id.
    pub(crate) fn conn_info(&mut self, conn: &Conn<W>, id: u64, mask: AttachFlags) -> Result<Queried, Errno> {
        self.query(conn, info_arg(Command::ConnInfo, id, mask.bits()))
    }

    /// CONN_INFO by name.
    pub(crate) fn name_info(&mut self, conn: &Conn<W>, name: &str) -> Result<Queried, Errno> {
        let arg = info_arg(Command::ConnInfo, 0, 0).item(&Item::text(ItemType::NAME, name));
        self.query(conn, arg)
    }

    /// CONN_INFO or BUS_CREATOR_INFO; the slice is given back.
    pub(crate) fn query(&mut self, conn: &Conn<W>, mut arg: Arg) -> Result<Queried, Errno> {
        self.run(conn, &mut arg)?;
        let reported: CmdInfo = arg.read();
        let bytes = self.world.pool(&conn.handle, reported.offset, reported.info_size).unwrap();
        // A policy holder cannot give slices back.
        let _ = self.free(conn, reported.offset);
        let info = Info::read_from_prefix(&bytes).unwrap().0;
        assert_eq!(info.size, reported.info_size);
        Ok(Queried { info, items: read_items(&bytes[size_of::<Info>()..]) })
    }

    /// A deadline so far ahead that no case sees it pass.
    pub(crate) fn far(&mut self) -> u64 {
        self.world.now() + 1000 * PATIENCE
    }
}

/// SEND without items.
pub(crate) fn send_arg(flags: SendFlags) -> Arg {
    Arg::new(Command::Send).flags(flags.bits())
}

/// NAME_ACQUIRE or NAME_RELEASE of a name, valid or not.
pub(crate) fn name_arg(command: Command, name: &str) -> Arg {
    Arg::new(command).item(&Item::text(ItemType::NAME, name))
}

/// MATCH_ADD or MATCH_REMOVE without rules.
pub(crate) fn match_arg(command: Command, cookie: u64) -> Arg {
    Arg::of(command, &CmdMatch { cookie, ..CmdMatch::default() })
}

/// CONN_INFO or BUS_CREATOR_INFO.
pub(crate) fn info_arg(command: Command, id: u64, attach_flags: u64) -> Arg {
    Arg::of(command, &CmdInfo { id, attach_flags, ..CmdInfo::default() })
}

/// One record of LIST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) id: u64,
    /// HELLO flags.
    pub(crate) flags: u64,
    pub(crate) name: Option<(NameFlags, String)>,
    /// Bytes of the record.
    pub(crate) size: u64,
}

/// An item with its payload.
pub(crate) type OwnedItem = (ItemType, Vec<u8>);

/// The answer of CONN_INFO or BUS_CREATOR_INFO.
#[derive(Clone, Debug)]
pub(crate) struct Queried {
    pub(crate) info: Info,
    pub(crate) items: Vec<OwnedItem>,
}

impl Queried {
    pub(crate) fn all(&self, kind: ItemType) -> Vec<&[u8]> {
        self.items.iter().filter(|(other, _)| *other == kind).map(|(_, payload)| &payload[..]).collect()
    }

    pub(crate) fn record<T: FromBytes>(&self, kind: ItemType) -> Option<T> {
        self.all(kind).first().and_then(|payload| T::read_from_bytes(payload).ok())
    }
}

/// A received message.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) info: MsgInfo,
    pub(crate) msg: Msg,
    pub(crate) items: Vec<OwnedItem>,
    /// The whole slice.
    pub(crate) bytes: Vec<u8>,
}

impl Received {
    fn new(info: MsgInfo, bytes: Vec<u8>) -> Self {
        let msg = Msg::read_from_prefix(&bytes).unwrap().0;
        let items = read_items(&bytes[Msg::SIZE..msg.size as usize]);
        Self { info, msg, items, bytes }
    }

    pub(crate) fn all(&self, kind: ItemType) -> Vec<&[u8]> {
        self.items.iter().filter(|(other, _)| *other == kind).map(|(_, payload)| &payload[..]).collect()
    }

    pub(crate) fn has(&self, kind: ItemType) -> bool {
        !self.all(kind).is_empty()
    }

    pub(crate) fn record<T: FromBytes>(&self, kind: ItemType) -> Option<T> {
        self.all(kind).first().and_then(|payload| T::read_from_bytes(payload).ok())
    }

    /// The vectors of payload in the slice.
    pub(crate) fn vecs(&self) -> Vec<PayloadVec> {
        self.all(ItemType::PAYLOAD_OFF)
            .iter()
            .map(|payload| PayloadVec::read_from_bytes(payload).unwrap())
            .collect()
    }

    /// All payload that lies in the slice; runs of zeros bring nothing.
    pub(crate) fn payload(&self) -> Vec<u8> {
        let size = self.bytes.len() as u64;
        let in_slice = self.vecs().into_iter().filter(|vec| vec.address < size);
        in_slice.flat_map(|vec| self.bytes[vec.address as usize..][..vec.size as usize].to_vec()).collect()
    }

    /// The passed descriptors.
    pub(crate) fn fds(&self) -> Vec<i32> {
        let words = |payload: &&[u8]| {
            payload.as_chunks().0.iter().map(|fd| i32::from_ne_bytes(*fd)).collect::<Vec<_>>()
        };
        self.all(ItemType::FDS).iter().flat_map(words).collect()
    }

    /// The descriptors of memfds.
    pub(crate) fn memfds(&self) -> Vec<i32> {
        let fd = |payload: &&[u8]| kdbus_core::abi::Memfd::read_from_bytes(payload).unwrap().fd;
        self.all(ItemType::PAYLOAD_MEMFD).iter().map(fd).collect()
    }

    pub(crate) fn timestamp(&self) -> Timestamp {
        self.record(ItemType::TIMESTAMP).unwrap()
    }

    /// The first item's type: what a notification is about.
    pub(crate) fn kind(&self) -> Option<ItemType> {
        self.items.first().map(|(kind, _)| *kind)
    }

    /// Old id, new id and name of a `NAME_*` notification of this type.
    pub(crate) fn name_change(&self, kind: ItemType) -> (u64, u64, String) {
        assert_eq!(self.kind(), Some(kind));
        let item = kdbus_core::abi::Item { kind, payload: &self.items[0].1, at: 0 };
        let (old, new, name) = item.name_change().unwrap();
        (old.id, new.id, String::from_utf8(name.to_vec()).unwrap())
    }

    /// Name flags of the old and the new side of a `NAME_*` notification.
    pub(crate) fn name_change_flags(&self) -> (NameFlags, NameFlags) {
        let item = kdbus_core::abi::Item { kind: self.items[0].0, payload: &self.items[0].1, at: 0 };
        let (old, new, _) = item.name_change().unwrap();
        (NameFlags::from_bits_retain(old.flags), NameFlags::from_bits_retain(new.flags))
    }

    /// Id in an `ID_*` notification of this type.
    pub(crate) fn id_change(&self, kind: ItemType) -> u64 {
        assert_eq!(self.kind(), Some(kind));
        self.record::<kdbus_core::abi::IdChange>(kind).unwrap().id
    }
}

/// Name and flags in an `OWNED_NAME`.
pub(crate) fn owned_name(payload: &[u8]) -> (NameFlags, String) {
    let item = kdbus_core::abi::Item { kind: ItemType::OWNED_NAME, payload, at: 0 };
    let (flags, name) = item.owned_name().unwrap();
    (flags, name.to_owned())
}

fn read_items(area: &[u8]) -> Vec<OwnedItem> {
    Items::new(area).map(|item| item.map(|item| (item.kind, item.payload.to_vec())).unwrap()).collect()
}
