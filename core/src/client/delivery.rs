//! A message that has arrived.

use core::fmt;
use core::ops::Range;

use super::metadata::Metadata;
use super::notification::Notification;
use super::slice::Slice;
use super::topic::Topic;
use super::transport::{Incoming, MESSAGE_FDS_MAX, Transport};
use crate::Instant;
use crate::abi::{
    DST_ID_BROADCAST, Item, ItemType, Items, Memfd, Msg, MsgFlags, MsgInfo, RecvReturnFlags, SRC_ID_KERNEL,
    Vec, align8,
};
use zerocopy::FromBytes;

/// What an arrived message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Kind {
    /// A message that wants nothing back.
    Plain,
    /// A call: the sender waits for a reply.
    Call,
    /// The reply to a message that asked for one.
    Reply,
    /// A signal.
    Signal,
    /// An announcement of the bus itself.
    Notification,
}

/// The fixed part of a message that waits, without the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Head {
    header: Msg,
}

impl Head {
    pub(super) const fn new(header: Msg) -> Self {
        Self { header }
    }

    /// The sending connection; 0 is the bus itself.
    #[must_use]
    pub const fn sender(&self) -> u64 {
        self.header.src_id
    }

    /// The sender's number for the message.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.header.cookie
    }

    /// How urgent it is; the lowest value is the most urgent.
    #[must_use]
    pub const fn priority(&self) -> i64 {
        self.header.priority
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        kind(&self.header)
    }
}

/// A message that has arrived. Its bytes stay in the pool, and dropping it gives them back.
///
/// Several can be held at once. What cannot be in a message never gets here: a message whose items do not
/// hold together is discarded on arrival and counted in [`Stats`](super::Stats).
pub struct Delivery<'c, T: Transport + 'c> {
    fds: heapless::Vec<Option<T::Fd>, MESSAGE_FDS_MAX, u8>,
    incomplete: bool,
    message: Checked<'c, T>,
}

/// A message that holds together, without its descriptors: the room for them is moved once only.
pub(super) struct Checked<'c, T: Transport + 'c> {
    header: Msg,
    /// The first run of payload bytes, within the slice.
    run: Range<usize>,
    payload_len: u64,
    slice: Slice<'c, T>,
}

/// One part of an arrived payload.
#[derive(Debug)]
pub enum ReceivedPart<'d, Fd> {
    /// Bytes in the pool.
    Bytes(&'d [u8]),
    /// This many zeros, which lie nowhere.
    Zeros(u64),
    /// A range of a sealed memfd.
    Memfd {
        /// The memfd, or `None` if it was taken or could not be installed.
        fd: Option<&'d Fd>,
        /// First byte of the range.
        start: u64,
        /// Bytes of the range.
        size: u64,
    },
}

impl<'c, T: Transport> Delivery<'c, T> {
    /// The sending connection; 0 is the bus itself.
    #[must_use]
    pub const fn sender(&self) -> u64 {
        self.message.header.src_id
    }

    /// Where it was sent: an id, 0 for a name alone, or [`DST_ID_BROADCAST`].
    #[must_use]
    pub const fn destination(&self) -> u64 {
        self.message.header.dst_id
    }

    /// Whether it was sent to everybody.
    #[must_use]
    pub const fn is_broadcast(&self) -> bool {
        self.message.header.dst_id == DST_ID_BROADCAST
    }

    /// The name it was sent to, if it was sent to a name.
    #[must_use]
    pub fn destination_name(&self) -> Option<&str> {
        self.items().find(|item| item.kind == ItemType::DST_NAME)?.text()
    }

    /// The sender's number for the message.
    #[must_use]
    pub const fn cookie(&self) -> u64 {
        self.message.header.cookie
    }

    /// The cookie that it answers, or 0 if it is no reply.
    #[must_use]
    pub const fn cookie_reply(&self) -> u64 {
        self.message.header.cookie_reply()
    }

    /// Until when the caller waits, if this is a call.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        if self.message.header.expects_reply() {
            Some(Instant::from_nanos(self.message.header.timeout_ns()))
        } else {
            None
        }
    }

    /// How urgent it is; the lowest value is the most urgent.
    #[must_use]
    pub const fn priority(&self) -> i64 {
        self.message.header.priority
    }

    /// What kind of payload it has, by the sender's choice; 0 for notifications.
    #[must_use]
    pub const fn payload_type(&self) -> u64 {
        self.message.header.payload_type
    }

    /// Its flags.
    #[must_use]
    pub const fn flags(&self) -> MsgFlags {
        MsgFlags::from_bits_retain(self.message.header.flags)
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        self.message.kind()
    }

    /// Whether it is a signal about `topic`, by the hash that travels as the cookie.
    #[must_use]
    pub const fn is_about(&self, topic: Topic<'_>) -> bool {
        matches!(self.kind(), Kind::Signal) && self.message.header.cookie == topic.hash()
    }

    /// What the bus announces with it, if it is a notification.
    #[must_use]
    pub fn notification(&self) -> Option<Notification<'_>> {
        if self.kind() != Kind::Notification {
            return None;
        }
        self.items().find_map(|item| Notification::from_item(&item, self.message.header.cookie_reply()))
    }

    /// What the bus tells about the sender.
    #[must_use]
    pub fn metadata(&self) -> Metadata<'_> {
        Metadata::new(self.message.item_area())
    }

    /// The payload, if the sender gave it as bytes only. In `O(1)`.
    ///
    /// With zeros or memfds among its [`parts`](Self::parts), the first run of bytes; compare its length with
    /// [`payload_len`](Self::payload_len).
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        self.message.payload()
    }

    /// Bytes of the whole payload: runs of bytes, zeros and memfd ranges.
    #[must_use]
    pub const fn payload_len(&self) -> u64 {
        self.message.payload_len
    }

    /// The parts of the payload as they were sent. Cost: a pass over the items.
    pub fn parts(&self) -> impl Iterator<Item = ReceivedPart<'_, T::Fd>> {
        let mut installed = self.passed();
        let slice: &[u8] = &self.message.slice;
        self.items().filter_map(move |item| match item.kind {
            ItemType::PAYLOAD_OFF => {
                let Vec { size, address: offset } = item.record()?;
                Some(match place(slice, &self.message.header, offset, size)? {
                    Some(range) => ReceivedPart::Bytes(slice.get(range)?),
                    None => ReceivedPart::Zeros(size),
                })
            }
            ItemType::PAYLOAD_MEMFD => {
                let Memfd { start, size, fd, .. } = item.record()?;
                let fd = (fd >= 0).then(|| {
                    installed += 1;
                    self.fds.get(installed - 1)?.as_ref()
                });
                Some(ReceivedPart::Memfd { fd: fd.flatten(), start, size })
            }
            _ => None,
        })
    }

    /// Descriptors that were passed, whether or not they could be installed.
    #[must_use]
    pub fn fd_count(&self) -> usize {
        self.items().filter(|item| item.kind == ItemType::FDS).map(|item| item.fds().len()).sum()
    }

    /// Takes the passed descriptor at `index`. `None` if there is none, if it was taken, or if it could not
    /// be installed.
    pub fn take_fd(&mut self, index: usize) -> Option<T::Fd> {
        let mut numbers = self.items().filter(|item| item.kind == ItemType::FDS).flat_map(|item| item.fds());
        // A number of -1 has no descriptor behind it.
        let installed = numbers.by_ref().take(index).filter(|number| *number >= 0).count();
        if numbers.next()? < 0 || installed >= self.passed() {
            return None;
        }
        drop(numbers);
        self.fds.get_mut(installed)?.take()
    }

    /// Takes the memfd at `index` among the memfds of the payload. `None` as for [`take_fd`](Self::take_fd).
    pub fn take_memfd(&mut self, index: usize) -> Option<T::Fd> {
        let mut numbers = self
            .items()
            .filter(|item| item.kind == ItemType::PAYLOAD_MEMFD)
            .filter_map(|item| item.record::<Memfd>())
            .map(|memfd| memfd.fd);
        let installed = numbers.by_ref().take(index).filter(|number| *number >= 0).count();
        if numbers.next()? < 0 {
            return None;
        }
        drop(numbers);
        let at = self.passed() + installed;
        self.fds.get_mut(at)?.take()
    }

    /// Whether a descriptor of the message could not be installed here.
    #[must_use]
    pub const fn has_incomplete_fds(&self) -> bool {
        self.incomplete
    }

    /// Descriptors before those of memfds.
    fn passed(&self) -> usize {
        let numbers = self.items().filter(|item| item.kind == ItemType::FDS).flat_map(|item| item.fds());
        numbers.filter(|number| *number >= 0).take(MESSAGE_FDS_MAX).count()
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.message.items()
    }
}

impl<'c, T: Transport> Checked<'c, T> {
    /// Checks the message at `info`. `None` if it does not hold together; then its slice is free again.
    #[inline]
    pub(super) fn new(transport: &'c T, info: &MsgInfo) -> Option<Self> {
        let slice = Slice::new(transport, info.offset, info.msg_size)?;
        let (header, _) = Msg::read_from_prefix(&slice).ok()?;
        let Outline { run, payload_len } = Outline::check(&slice, &header)?;
        Some(Self { header, run, payload_len, slice })
    }

    /// The message, which was received as `info` and has brought no descriptors.
    #[inline]
    pub(super) const fn without_fds(self, info: &MsgInfo) -> Delivery<'c, T> {
        let incomplete = info.return_flags & RecvReturnFlags::INCOMPLETE_FDS.bits() != 0;
        Delivery { fds: heapless::Vec::new(), incomplete, message: self }
    }

    /// The message with the descriptors of `incoming`, which is left without them. Where there are none, who is in a hurry
    /// asks for it [without](Self::without_fds): that makes it where it goes, and this moves it there.
    pub(super) fn with_fds(self, incoming: &mut Incoming<T::Fd>) -> Delivery<'c, T> {
        let mut message = self.without_fds(&incoming.info);
        // Both vectors have the same capacity, so nothing is left over.
        message.fds.extend(core::mem::take(&mut incoming.fds).into_iter().map(Some));
        message
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.slice.get(self.run.clone()).unwrap_or_default()
    }

    /// Leaves its slice published.
    pub(super) fn keep(self) {
        self.slice.keep();
    }

    pub(super) const fn header(&self) -> &Msg {
        &self.header
    }

    /// What it is.
    #[inline]
    pub(super) const fn kind(&self) -> Kind {
        kind(&self.header)
    }

    /// The item by which the bus announces something, if this is a notification.
    pub(super) fn announces(&self) -> Option<ItemType> {
        if self.kind() != Kind::Notification {
            return None;
        }
        let announces = |kind: &ItemType| (ItemType::NAME_ADD.0..=ItemType::REPLY_DEAD.0).contains(&kind.0);
        self.items().map(|item| item.kind).find(announces)
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        Items::new(self.item_area()).map_while(Result::ok)
    }

    fn item_area(&self) -> &[u8] {
        // Checked on arrival; the bytes do not change while the slice is held.
        self.slice.get(Msg::SIZE..self.header.size as usize).unwrap_or_default()
    }
}

impl<T: Transport> fmt::Debug for Delivery<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("kind", &self.kind())
            .field("sender", &self.sender())
            .field("cookie", &self.cookie())
            .field("payload_len", &self.payload_len())
            .finish_non_exhaustive()
    }
}

const fn kind(header: &Msg) -> Kind {
    let flags = MsgFlags::from_bits_retain(header.flags);
    if header.src_id == SRC_ID_KERNEL {
        Kind::Notification
    } else if flags.contains(MsgFlags::SIGNAL) {
        Kind::Signal
    } else if header.expects_reply() {
        Kind::Call
    } else if header.cookie_reply() != 0 {
        Kind::Reply
    } else {
        Kind::Plain
    }
}

/// Where a run of payload lies: in a range of the slice, or nowhere because it is zeros. `None` if it
/// reaches beyond the slice.
fn place(slice: &[u8], header: &Msg, offset: u64, size: u64) -> Option<Option<Range<usize>>> {
    let len = slice.len() as u64;
    // The module marks zeros by the byte before the payload, where others give an offset outside.
    if offset >= len || offset == align8(header.size).wrapping_sub(1) {
        return Some(None);
    }
    let end = offset.checked_add(size).filter(|end| *end <= len)?;
    Some(Some(offset as usize..end as usize))
}

/// What one pass over the items of a message finds out.
struct Outline {
    run: Range<usize>,
    payload_len: u64,
}

impl Outline {
    fn check(slice: &[u8], header: &Msg) -> Option<Self> {
        let area = slice.get(Msg::SIZE..usize::try_from(header.size).ok()?)?;
        let mut run = 0..0;
        let mut open = true;
        let mut payload_len = 0_u64;
        for item in Items::new(area) {
            let item = item.ok()?;
            match item.kind {
                ItemType::PAYLOAD_OFF => {
                    let Vec { size, address: offset } = item.record()?;
                    payload_len = payload_len.saturating_add(size);
                    match place(slice, header, offset, size)? {
                        Some(range) if open && run.is_empty() => run = range,
                        Some(range) if open && range.start == run.end => run.end = range.end,
                        _ => open = false,
                    }
                }
                ItemType::PAYLOAD_MEMFD => {
                    payload_len = payload_len.saturating_add(item.record::<Memfd>()?.size);
                    open = false;
                }
                _ => {}
            }
        }
        Some(Self { run, payload_len })
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec::Vec as StdVec;

    use zerocopy::IntoBytes;

    use super::super::fake::{Bytes, Fake, Script, connect, message, plain};
    use super::*;

    fn off(size: u64, offset: u64) -> [u8; 16] {
        let mut payload = [0; 16];
        payload.copy_from_slice(Vec { size, address: offset }.as_bytes());
        payload
    }

    const HEADER: Msg = Msg {
        size: 0,
        flags: 0,
        priority: 0,
        dst_id: 0,
        src_id: 3,
        payload_type: 1,
        cookie: 9,
        timeout_or_reply: 0,
    };

    /// Receives `bytes`; the parts as text, or `None` if the message was discarded.
    fn parts(bytes: Bytes) -> Option<(StdVec<u8>, StdVec<std::string::String>)> {
        let (connection, script) = connect::<1, 1>();
        script.queue(bytes);
        let message = connection.try_recv().unwrap();
        let parts = message.map(|message| {
            let parts = message.parts().map(|part| std::format!("{part:?}")).collect();
            (message.payload().to_vec(), parts)
        });
        assert_eq!(script.held(), 0);
        assert_eq!(connection.stats().malformed, u64::from(parts.is_none()));
        parts
    }

    #[test]
    fn consecutive_runs_are_one_payload() {
        // Header, two items of 32 bytes, then the bytes.
        let two = message(
            HEADER,
            &[(ItemType::PAYLOAD_OFF, &off(2, 128)), (ItemType::PAYLOAD_OFF, &off(3, 130))],
            b"",
        );
        let mut two = Bytes { fds: StdVec::new(), ..two };
        two.bytes.extend_from_slice(b"abcde\0\0\0");
        let (payload, parts) = parts(two).unwrap();
        assert_eq!(payload, b"abcde");
        assert_eq!(parts.len(), 2);
    }

    #[test]
    fn zeros_are_known_by_any_offset_that_is_none() {
        for offset in [u64::MAX, 96 - 1, 96, 4096] {
            let items: &[(ItemType, &[u8])] = &[(ItemType::PAYLOAD_OFF, &off(5000, offset))];
            let (payload, parts) = parts(message(HEADER, items, b"")).unwrap();
            assert_eq!((payload.len(), parts), (0, std::vec!["Zeros(5000)".into()]), "{offset}");
        }
    }

    #[test]
    fn runs_that_reach_beyond_the_slice_are_discarded() {
        for (size, offset) in [(9, 88), (u64::MAX, 8), (97, 0)] {
            let items: &[(ItemType, &[u8])] = &[(ItemType::PAYLOAD_OFF, &off(size, offset))];
            assert!(parts(message(HEADER, items, b"")).is_none(), "{size} at {offset}");
        }
    }

    #[test]
    fn headers_that_do_not_fit_are_discarded() {
        for size in [0, 63, 10_000, u64::MAX] {
            let mut hostile = plain(1, 0);
            hostile.bytes[..8].copy_from_slice(&size.to_ne_bytes());
            assert!(parts(hostile).is_none(), "{size}");
        }
        for len in [0, 8, 63] {
            let mut hostile = plain(1, 0);
            hostile.bytes.truncate(len);
            assert!(parts(hostile).is_none(), "{len} bytes");
        }
    }

    #[test]
    fn no_byte_of_a_message_can_do_harm() {
        let memfd = Memfd { start: 0, size: 10, fd: 4, pad: 0 };
        let items: &[(ItemType, &[u8])] =
            &[(ItemType::FDS, &[1, 0, 0, 0]), (ItemType::PAYLOAD_MEMFD, memfd.as_bytes())];
        let good = message(HEADER, items, b"payload");
        for at in 0..good.bytes.len() {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut hostile = good.clone();
                hostile.fds = std::vec![5, 6];
                hostile.bytes[at] = value;
                let (connection, script) = connect::<1, 1>();
                script.queue(hostile);
                if let Some(mut message) = connection.try_recv().unwrap() {
                    assert!(message.payload().len() as u64 <= message.payload_len());
                    let _ = (
                        message.parts().count(),
                        message.notification().is_some(),
                        message.destination_name(),
                    );
                    let _ = (message.take_fd(0), message.take_memfd(0), message.fd_count());
                }
                assert_eq!(script.held(), 0);
            }
        }
    }

    fn take<R>(
        fds: &[u32],
        numbers: &[i32],
        memfds: &[i32],
        look: impl FnOnce(Delivery<'_, Fake>) -> R,
    ) -> R {
        let (connection, script) = connect::<1, 1>();
        let records: StdVec<[u8; 24]> = memfds
            .iter()
            .map(|fd| {
                let mut record = [0; 24];
                record.copy_from_slice(Memfd { start: 0, size: 1, fd: *fd, pad: 0 }.as_bytes());
                record
            })
            .collect();
        let mut items: StdVec<(ItemType, &[u8])> = std::vec![(ItemType::FDS, numbers.as_bytes())];
        items.extend(records.iter().map(|record| (ItemType::PAYLOAD_MEMFD, &record[..])));
        let Bytes { bytes, .. } = message(HEADER, &items, b"");
        Script::queue(&script, Bytes { bytes, fds: fds.to_vec() });
        look(connection.try_recv().unwrap().unwrap())
    }

    #[test]
    fn descriptors_are_found_behind_those_that_are_missing() {
        take(&[10, 11, 12], &[5, -1, 6], &[-1, 8], |mut message| {
            assert_eq!(message.fd_count(), 3);
            assert_eq!(message.take_fd(2), Some(11));
            assert_eq!(message.take_fd(2), None, "taken already");
            assert_eq!((message.take_fd(0), message.take_fd(1), message.take_fd(3)), (Some(10), None, None));
            let parts: StdVec<_> = message.parts().map(|part| std::format!("{part:?}")).collect();
            assert_eq!(parts[0], "Memfd { fd: None, start: 0, size: 1 }");
            assert_eq!(parts[1], "Memfd { fd: Some(12), start: 0, size: 1 }");
            assert_eq!((message.take_memfd(0), message.take_memfd(1)), (None, Some(12)));
        });
    }

    #[test]
    fn numbers_without_descriptors_give_none() {
        take(&[], &[5, 6], &[7], |mut message| {
            assert_eq!((message.take_fd(0), message.take_memfd(0)), (None, None));
            assert!(matches!(message.parts().next(), Some(ReceivedPart::Memfd { fd: None, .. })));
        });
    }

    #[test]
    fn several_messages_are_held_and_each_frees_its_own_slice() {
        let (connection, script) = connect::<1, 1>();
        for cookie in 1..=3 {
            script.queue(plain(cookie, 0));
        }
        let mut held: StdVec<_> = (0..3).map(|_| connection.try_recv().unwrap().unwrap()).collect();
        assert_eq!(script.held(), 3);
        drop(held.remove(1));
        assert_eq!(script.held(), 2);
        assert!(held.iter().map(Delivery::cookie).eq([1, 3]));
        assert!(held.iter().all(|message| message.payload() == b"plain"));
    }
}
