//! Messages by lane: which ones go, and what their receiver makes of them.
//!
//! A lane carries header and items as its first part, up to the next multiple of 8, and the payload as its second.
//! The receiver copies both to where they stay, and [`settle`] turns the copy into what a slice of the bus holds.

use core::mem::offset_of;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::WellKnownName;
use crate::abi::{
    AttachFlags, CMD_MAX_SIZE, DST_ID_BROADCAST, DST_ID_NAME, FLAG_NEGOTIATE, Frame, ITEM_HEADER, ItemType,
    Items, MESSAGE, Msg, MsgFlags, PAYLOAD_KERNEL, SRC_ID_KERNEL, SendFlags, Timestamp, Vec, align8,
};
use crate::examine::{ADDRESS_END, Examined, PAYLOAD_VEC_MAX, Route, examine, received_len};
use crate::hint::unlikely;

use super::lane::{LaneHead, Violation};
use super::terms::HeldTerms;

/// Bytes of the item of one run.
const RUN: usize = ITEM_HEADER + size_of::<Vec>();

/// Where the words of a message lie that comes in on a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes of header and items.
    first: u64,
    /// Where the payload begins.
    base: u64,
    /// Bytes of the payload.
    payload: u64,
}

impl Place {
    /// Where the parts of a message go that is received under these terms. `None` if no message is that large.
    #[must_use]
    pub fn of(head: &LaneHead, terms: &HeldTerms) -> Option<Self> {
        let (first, payload) = (head.first, head.second);
        let whole = first >= Msg::SIZE as u64 && first.is_multiple_of(8);
        let base = align8(received_len(first, metadata_len(terms)));
        base.checked_add(payload).filter(|end| whole && *end <= u64::MAX - 7)?;
        Some(Self { first, base, payload })
    }

    /// Bytes of the slice.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.base + align8(self.payload)
    }

    /// The two parts of a slice that [`LaneReader::copy_out`](super::LaneReader::copy_out) fills. `None` if it is
    /// shorter than [`size`](Self::size).
    pub fn parts<'s>(&self, slice: &'s mut [u64]) -> Option<(&'s mut [u64], &'s mut [u64])> {
        let (items, payload) = slice.split_at_mut_checked((self.base / 8) as usize)?;
        Some((items.get_mut(..(self.first / 8) as usize)?, payload))
    }
}

/// Bytes of the metadata of a message, to the unpadded end.
fn metadata_len(terms: &HeldTerms) -> u64 {
    let pinned = terms.metadata().len() as u64;
    if terms.attach().contains(AttachFlags::TIMESTAMP) {
        align8(pinned) + (ITEM_HEADER + size_of::<Timestamp>()) as u64
    } else {
        pinned
    }
}

/// What a message by lane is to its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its priority.
    pub priority: i64,
    /// Its sender's number for it.
    pub cookie: u64,
    /// The cookie of the call that it answers, 0 if none.
    pub answers: u64,
    /// When its sender stops waiting for an answer, in nanoseconds; 0 if it is no call.
    pub deadline: u64,
}

/// A message that can go by lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sendable<'m> {
    /// Its header.
    pub header: Msg,
    /// What it is.
    pub route: Route,
    /// The name that it is addressed to, if it is; one that follows the rules.
    pub name: Option<&'m [u8]>,
    /// Whether that is the known one.
    pub is_known: bool,
    /// Bytes of header and items, to the unpadded end of the last one.
    pub len: u64,
    /// Bytes of its payload.
    pub payload: u64,
}

/// Looks whether a message can go by lane, if there is one to its receiver.
///
/// Messages with descriptors or memfds, signals, messages to a name that one connection has to own, and all that
/// the bus would refuse are not among them: they take the other way, and come back from there with their
/// reason. `known` is a name that follows the rules, or empty: most messages are addressed to that one, and it is not
/// looked at again. Cost: one short look at a message as clients make it, two passes over the items of others.
/// `message` is changed only as the bus would.
#[must_use]
#[inline]
pub fn sendable<'m>(message: &'m mut [u8], sender: u64, known: &[u8]) -> Option<Sendable<'m>> {
    let run = usual_run(message);
    sendable_with(message, run, sender, known)
}

/// The same of a message whose [usual run](usual_run) is known.
#[inline(never)]
fn sendable_with<'m>(
    message: &'m mut [u8],
    run: Option<usize>,
    sender: u64,
    known: &[u8],
) -> Option<Sendable<'m>> {
    match run {
        Some(at) => usual(message, at, sender, known),
        None => examined(message, sender).map(|examined| Sendable {
            header: examined.header,
            route: examined.route,
            name: examined.name.map(|name| name.as_str().as_bytes()),
            is_known: false,
            len: examined.len(),
            payload: examined.payload,
        }),
    }
}

/// Where the run of bytes stands in a message as clients make it: alone, or behind a name. `None` for all others.
#[inline]
fn usual_run(message: &[u8]) -> Option<usize> {
    let size = usize::try_from(get(message, 0)?).ok().filter(|size| *size <= message.len())?;
    let at = size.checked_sub(RUN)?;
    let is_run = get(message, at)? == RUN as u64 && get(message, at + 8)? == ItemType::PAYLOAD_VEC.0;
    let is_name = || {
        get(message, Msg::SIZE + 8) == Some(ItemType::DST_NAME.0)
            && get(message, Msg::SIZE).is_some_and(|size| {
                size >= ITEM_HEADER as u64
                    && size <= CMD_MAX_SIZE as u64
                    && align8(size) == at.wrapping_sub(Msg::SIZE) as u64
            })
    };
    (is_run && (at == Msg::SIZE || is_name())).then_some(at)
}

/// What [`examined`] says of such a message, with a tenth of the instructions.
#[inline]
fn usual<'m>(message: &'m [u8], run: usize, sender: u64, known: &[u8]) -> Option<Sendable<'m>> {
    const KNOWN: u64 = MsgFlags::EXPECT_REPLY.bits() | MsgFlags::NO_AUTO_START.bits();
    let header = Msg::read_from_prefix(message).ok()?.0;
    let (payload, address) = (get(message, run + ITEM_HEADER)?, get(message, run + ITEM_HEADER + 8)?);
    let is_good = payload != 0
        && payload <= PAYLOAD_VEC_MAX
        && address != 0
        && address.checked_add(payload).is_some_and(|end| end <= ADDRESS_END)
        && header.size <= CMD_MAX_SIZE as u64
        && header.flags & !KNOWN == 0
        && (header.src_id == 0 || header.src_id == sender)
        && header.payload_type != PAYLOAD_KERNEL
        && header.dst_id != DST_ID_BROADCAST;
    let route = match (header.expects_reply(), header.timeout_or_reply) {
        (true, 0) => return None,
        (true, _) => Route::Call,
        (false, 0) => Route::Plain,
        (false, cookie) => Route::Reply(cookie),
    };
    let (name, is_known) = if run == Msg::SIZE {
        (None, false)
    } else {
        let size = usize::try_from(get(message, Msg::SIZE)?).ok()?;
        let text = message.get(Msg::SIZE + ITEM_HEADER..Msg::SIZE + size)?.strip_suffix(&[0])?;
        let is_known = !known.is_empty() && text == known;
        if !is_known {
            WellKnownName::from_bytes(text).ok()?;
        }
        (Some(text), is_known)
    };
    let addressed = name.is_some() == (header.dst_id == DST_ID_NAME);
    let len = (run + RUN) as u64;
    (is_good && addressed).then_some(Sendable { header, route, name, is_known, len, payload })
}

/// As [`sendable`], of any message.
#[cold]
fn examined(message: &mut [u8], sender: u64) -> Option<Examined<'_>> {
    let header = Msg::read_from_prefix(message).ok()?.0;
    if header.flags & FLAG_NEGOTIATE != 0 || (header.src_id != 0 && header.src_id != sender) {
        return None;
    }
    let bytes = Frame::check(message, &MESSAGE, false).ok()?.bytes;
    let examined = examine(bytes, SendFlags::empty(), 0).ok()?;
    is_plain(&examined).then_some(examined)
}

/// Whether nothing belongs to a message but bytes, and it goes to one connection or one name.
fn is_plain(message: &Examined<'_>) -> bool {
    matches!(message.route, Route::Plain | Route::Call | Route::Reply(_))
        && message.memfds == 0
        && message.name.is_some() == (message.header.dst_id == DST_ID_NAME)
        && Items::new(message.items).all(|item| {
            item.is_ok_and(|item| match item.kind {
                ItemType::PAYLOAD_VEC => item.record::<Vec>().is_some_and(|vec| vec.address != 0),
                ItemType::DST_NAME => true,
                _ => false,
            })
        })
}

/// Makes what `place` has put into `slice` the message that connection `receiver` gets: examined, with its sender,
/// its metadata, and offsets in place of addresses.
///
/// # Errors
///
/// [`Violation`] if the bus would not have carried it, or not by this lane.
pub fn settle(
    slice: &mut [u8],
    place: &Place,
    terms: &HeldTerms,
    receiver: u64,
    stamp: Timestamp,
) -> Result<Settled, Violation> {
    let (items, payload) = slice.split_at_mut_checked(place.base as usize).ok_or(Violation)?;
    let (sent, rest) = items.split_at_mut_checked(place.first as usize).ok_or(Violation)?;
    let run = usual_run(sent);
    let Sendable { header, route, name, is_known, len, payload: bytes } =
        sendable_with(sent, run, terms.sender(), terms.name()).ok_or(Violation)?;
    let addressed = match name {
        Some(name) => is_known || name == terms.name(),
        None => header.dst_id == receiver,
    };
    if unlikely(!addressed || align8(len) != place.first || bytes != place.payload) {
        return Err(Violation);
    }
    match run {
        Some(at) => {
            put(sent, at + 8, &ItemType::PAYLOAD_OFF.0);
            put(sent, at + ITEM_HEADER + 8, &place.base);
        }
        None => set_offsets(sent, len as usize, place.base),
    }
    put(sent, 0, &received_len(len, metadata_len(terms)));
    put(sent, offset_of!(Msg, src_id), &terms.sender());
    clear(sent, len);
    if !rest.is_empty() {
        attach(rest, terms, stamp);
    }
    clear(payload, place.payload);
    Ok(Settled {
        priority: header.priority,
        cookie: header.cookie,
        answers: if let Route::Reply(cookie) = route { cookie } else { 0 },
        deadline: if route == Route::Call { header.timeout_ns() } else { 0 },
    })
}

/// Turns addresses of runs into offsets: what lies in the slice from `to` on.
#[cold]
fn set_offsets(sent: &mut [u8], len: usize, mut to: u64) {
    let mut at = Msg::SIZE;
    // Ends: each round goes on by an item, of which the examination has seen the size.
    while let Some(size) = item_size(sent, at, len) {
        if get(sent, at + 8) == Some(ItemType::PAYLOAD_VEC.0) {
            let bytes = get(sent, at + ITEM_HEADER).unwrap_or(0);
            put(sent, at + 8, &ItemType::PAYLOAD_OFF.0);
            put(sent, at + ITEM_HEADER, &Vec { size: bytes, address: to });
            to += bytes;
        }
        at += align8(size) as usize;
    }
}

/// Clears what stands behind the first `len` bytes: padding, if there is any.
fn clear(bytes: &mut [u8], len: u64) {
    if len != bytes.len() as u64
        && let Some(padding) = bytes.get_mut(len as usize..)
    {
        padding.fill(0);
    }
}

/// Bytes of the notification that a call has no reply.
pub const CALL_ENDED_SIZE: u64 = (Msg::SIZE + ITEM_HEADER + ITEM_HEADER + size_of::<Timestamp>()) as u64;

/// Makes `slice`, of [`CALL_ENDED_SIZE`] bytes, the notification that connection `caller` gets when its call with this
/// cookie has no reply and will have none: because the callee is `dead`, or because its time is over.
pub fn call_ended(slice: &mut [u8], caller: u64, cookie: u64, dead: bool, stamp: Timestamp) {
    let header = Msg {
        size: CALL_ENDED_SIZE,
        dst_id: caller,
        src_id: SRC_ID_KERNEL,
        payload_type: PAYLOAD_KERNEL,
        timeout_or_reply: cookie,
        ..Msg::default()
    };
    let kind = if dead { ItemType::REPLY_DEAD } else { ItemType::REPLY_TIMEOUT };
    put(slice, 0, &header);
    put(slice, Msg::SIZE, &[ITEM_HEADER as u64, kind.0]);
    let at = Msg::SIZE + ITEM_HEADER;
    put(slice, at, &[(ITEM_HEADER + size_of::<Timestamp>()) as u64, ItemType::TIMESTAMP.0]);
    put(slice, at + ITEM_HEADER, &stamp);
}

/// The size of the item at `at`, if there is one before `end`.
fn item_size(bytes: &[u8], at: usize, end: usize) -> Option<u64> {
    if at >= end { None } else { get(bytes, at).filter(|size| *size >= ITEM_HEADER as u64) }
}

fn get(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_ne_bytes(*word))
}

fn put<T: IntoBytes + Immutable>(bytes: &mut [u8], at: usize, value: &T) {
    if let Some(place) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..size_of::<T>())) {
        place.copy_from_slice(value.as_bytes());
    }
}

/// Writes the metadata behind the items.
fn attach(to: &mut [u8], terms: &HeldTerms, stamp: Timestamp) {
    let pinned = terms.metadata();
    let (place, rest) = to.split_at_mut(to.len().min(pinned.len()));
    for (place, byte) in place.iter_mut().zip(pinned) {
        *place = *byte;
    }
    rest.fill(0);
    if terms.attach().contains(AttachFlags::TIMESTAMP) {
        let at = align8(pinned.len() as u64) as usize;
        put(to, at, &[(ITEM_HEADER + size_of::<Timestamp>()) as u64, ItemType::TIMESTAMP.0]);
        put(to, at + ITEM_HEADER, &stamp);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec as List;

    use super::*;
    use crate::abi::ItemWriter;

    fn scramble(state: &mut u64) -> u64 {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    }

    fn pick<T: Copy>(state: &mut u64, from: &[T]) -> T {
        from[scramble(state) as usize % from.len()]
    }

    /// A message as clients make it, or nearly.
    fn message(state: &mut u64) -> List<u8> {
        let mut buffer = [0; 1024];
        let mut writer = ItemWriter::behind(&mut buffer, Msg::SIZE).unwrap();
        let name =
            pick(state, &[&b""[..], b"a.b\0", b"org.example.Service\0", b"a\0b.c\0", b"no dot\0", b"a.b"]);
        if !name.is_empty() {
            writer.bytes(ItemType::DST_NAME, name).unwrap();
        }
        for _ in 0..pick(state, &[0, 1, 1, 1, 1, 2]) {
            let size = pick(state, &[0, 1, 64, PAYLOAD_VEC_MAX, PAYLOAD_VEC_MAX + 1]);
            let address = pick(state, &[0, 8, 1 << 40, ADDRESS_END - 8, u64::MAX]);
            let kind = pick(state, &[ItemType::PAYLOAD_VEC, ItemType::PAYLOAD_VEC, ItemType::PAYLOAD_OFF]);
            writer.bytes(kind, Vec { size, address }.as_bytes()).unwrap();
        }
        let len = writer.len();
        let header = Msg {
            size: pick(state, &[len as u64, len as u64, len as u64, len as u64 + 8, 64, 0]),
            flags: pick(state, &[0, 0, 1, 2, 3, 4, 1 << 63, 1 << 20]),
            dst_id: pick(state, &[0, 7, 7, u64::MAX]),
            src_id: pick(state, &[0, 0, 9, 10]),
            payload_type: pick(state, &[1, 1, 0]),
            timeout_or_reply: pick(state, &[0, 5]),
            cookie: 3,
            priority: -1,
        };
        buffer[..Msg::SIZE].copy_from_slice(header.as_bytes());
        let mut bytes = buffer[..len.next_multiple_of(8)].to_vec();
        if scramble(state).is_multiple_of(8) {
            let at = scramble(state) as usize % bytes.len();
            bytes[at] ^= 1 << (scramble(state) % 8);
        }
        bytes
    }

    #[test]
    fn the_short_examination_agrees_with_the_long_one() {
        let mut state = 0x1234_5678_9abc_def1;
        let mut usuals = 0;
        for _ in 0..200_000 {
            let bytes = message(&mut state);
            let Some(run) = usual_run(&bytes) else { continue };
            let short = usual(&bytes, run, 9, pick(&mut state, &[&b""[..], b"a.b", b"org.example.Service"]));
            let mut copy = bytes.clone();
            let long = examined(&mut copy, 9);
            assert_eq!(short.is_some(), long.is_some(), "{bytes:?}");
            let (Some(short), Some(long)) = (short, long) else { continue };
            usuals += 1;
            assert_eq!(
                (short.header, short.route, short.len, short.payload, short.name),
                (
                    long.header,
                    long.route,
                    long.len(),
                    long.payload,
                    long.name.map(|name| name.as_str().as_bytes())
                )
            );
            assert!(long.filter.is_none() && long.fds == 0 && long.memfds == 0);
        }
        assert!(usuals > 100, "{usuals}");
    }
}
