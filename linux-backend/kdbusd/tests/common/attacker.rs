//! A sender that writes what it likes into its lane.

use kdbus_core::abi::{CmdSend, Command, Errno, ItemType, ItemWriter, Msg, SendFlags, Vec as PayloadVec};
use kdbus_core::channel::terms::{PAGE_WORDS, VERDICT_AT};
use kdbus_core::channel::{CALL_WORDS, LaneHead, LaneLayout, LaneWriter, RECORD_WORDS, Words};
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Wait};
use kdbus_linux::local::wire::{FLAG_CLAIM, FLAG_MESSAGE, Header, Kind, LANE_OUT_FDS};
use rustix::fd::OwnedFd;
use zerocopy::IntoBytes;

use super::{Bus, Client, exchange};

/// The ends of a lane in its sender's own hands.
pub(crate) struct Ends {
    pub(crate) lane: WordMap,
    pub(crate) back: WordMap,
    pub(crate) page: WordMap,
    pub(crate) calls: WordMap,
    pub(crate) record: WordMap,
    pub(crate) bell: OwnedFd,
    pub(crate) writer: LaneWriter<WordMap, WordMap, WordMap>,
}

/// A sender that has them.
pub(crate) struct Attacker {
    pub(crate) client: Client,
    ends: Ends,
}

impl Attacker {
    pub(crate) fn new(bus: &Bus, victim: &Client) -> Self {
        Self::by(bus.connect_without_lanes(), victim.id())
    }

    pub(crate) fn by(client: Client, victim: u64) -> Self {
        let ends = Ends::open(&client, victim).unwrap();
        Self { client, ends }
    }
}

impl core::ops::Deref for Attacker {
    type Target = Ends;

    fn deref(&self) -> &Ends {
        &self.ends
    }
}

impl core::ops::DerefMut for Attacker {
    fn deref_mut(&mut self) -> &mut Ends {
        &mut self.ends
    }
}

impl Ends {
    /// Opens a lane from `client` to connection `victim`; `None` if there is none for it.
    pub(crate) fn open(client: &Client, victim: u64) -> Option<Self> {
        let ask = Header { key: victim, ..Header::new(Kind::OpenLane, 1 << 40) };
        let (answer, fds) = exchange(client, &ask, &[]);
        answer.result().ok()?;
        let number = answer.slot;
        let [lane, back, page, calls, bell, record, _heard] = fds.into_array::<LANE_OUT_FDS>().unwrap();
        let words = rustix::fs::fstat(&lane).unwrap().st_size as usize / 8;
        let layout = LaneLayout::of_words(words).unwrap();
        let lane = || WordMap::writable(&lane, words).unwrap();
        let back = || WordMap::read_only(&back, LaneLayout::BACK_WORDS).unwrap();
        let page = || WordMap::read_only(&page, PAGE_WORDS).unwrap();
        let ends = Self {
            lane: lane(),
            back: back(),
            page: page(),
            calls: WordMap::writable(&calls, CALL_WORDS).unwrap(),
            record: WordMap::writable(&record, RECORD_WORDS).unwrap(),
            bell,
            writer: LaneWriter::new(lane(), back(), page(), VERDICT_AT, layout).unwrap(),
        };
        let mapped = Header { slot: number, ..Header::new(Kind::LaneMapped, 0) };
        socket::send(client.transport().handle().socket(), &mapped, &[], &[], Wait::Yes).unwrap();
        // Its answer comes when the lane is open.
        let _ = client.transport().handle().command(0, &mut [0; 8]);
        Some(ends)
    }

    /// Whether its receiver says that its sender broke the rules.
    pub(crate) fn is_given_up(&self) -> bool {
        self.back.load(0) == u64::MAX
    }

    pub(crate) fn send(&mut self, key: u64, call: u64, first: &[u8], second: &[u8]) {
        let head = LaneHead { first: first.len() as u64, second: second.len() as u64, key, call };
        let mut reserved = self.writer.reserve(head).unwrap();
        reserved.put(first);
        reserved.next_part();
        reserved.put(second);
        let _ = reserved.commit().unwrap();
        self.ring();
    }

    pub(crate) fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &[1]);
    }
}

/// Header and items of a message with eight bytes of payload, and what `change` makes of it.
pub(crate) fn message(to: u64, change: impl FnOnce(&mut Msg, &mut Vec<(ItemType, Vec<u8>)>)) -> Vec<u8> {
    let vec = PayloadVec { size: 8, address: 64 };
    let mut items = vec![(ItemType::PAYLOAD_VEC, vec.as_bytes().to_vec())];
    let mut header = Msg { dst_id: to, payload_type: 1, cookie: 77, ..Msg::default() };
    change(&mut header, &mut items);
    let mut buffer = vec![0; 8192];
    let mut writer = ItemWriter::behind(&mut buffer, Msg::SIZE).unwrap();
    for (kind, payload) in &items {
        writer.bytes(*kind, payload).unwrap();
    }
    let len = writer.len();
    if header.size == 0 {
        header.size = len as u64;
    }
    buffer[..Msg::SIZE].copy_from_slice(header.as_bytes());
    buffer.truncate(len.next_multiple_of(8));
    buffer
}

/// A reply of eight bytes to the call with this cookie.
pub(crate) fn reply(to: u64, cookie: u64) -> Vec<u8> {
    message(to, |header, _| header.timeout_or_reply = cookie)
}

/// Says to kdbusd of a message that it is the reply to what names a call in `lane`.
pub(crate) fn claim(
    client: &Client,
    lane: u32,
    call: u64,
    reply: &[u8],
    flags: SendFlags,
) -> Result<(), Errno> {
    let (size, flags) = (size_of::<CmdSend>() as u64, flags.bits());
    let command = CmdSend { size, flags, msg_address: 1, ..CmdSend::default() };
    let header = Header {
        number: Command::Send.request(),
        flags: FLAG_MESSAGE | FLAG_CLAIM,
        arg_size: size_of::<CmdSend>() as u32,
        message_size: reply.len() as u32,
        payload_size: 8,
        key: call,
        slot: lane,
        ..Header::new(Kind::Command, 1 << 41)
    };
    exchange(client, &header, &[command.as_bytes(), reply, b"answered"]).0.result()
}

pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
