//! Examination of a message: what it is and whether it may be sent at all.

use crate::WellKnownName;
use crate::abi::{
    DST_ID_BROADCAST, DST_ID_NAME, Errno, ItemType, Items, Memfd, Msg, MsgFlags, PAYLOAD_KERNEL, SendFlags,
    Vec, align8,
};

/// Descriptors in one `FDS` item.
pub const FDS_MAX: usize = 16;

/// `PAYLOAD_MEMFD` items in one message.
pub const MEMFDS_MAX: usize = 16;

/// Bytes of one `PAYLOAD_VEC` item.
pub const PAYLOAD_VEC_MAX: u64 = 2 << 20;

/// Addresses of a sender's memory end here, on every architecture.
pub const ADDRESS_END: u64 = 1 << 56;

/// Which way a message takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Route {
    /// To every connection with a match that takes it.
    Broadcast,
    /// To one connection, if a match of it takes it.
    Signal,
    /// To one connection that is to reply until the deadline.
    Call,
    /// To the connection that awaits an answer to its call with this cookie.
    Reply(u64),
    /// To one connection.
    Plain,
}

/// A message that may be sent, as far as it says so itself.
#[derive(Clone, Copy, Debug)]
pub struct Examined<'m> {
    /// The header as sent.
    pub header: Msg,
    /// Which way it takes.
    pub route: Route,
    /// Its items, up to the unpadded end of the last one.
    pub items: &'m [u8],
    /// Bytes that the receiver's slice holds behind header, items and metadata.
    pub payload: u64,
    /// The name it goes to.
    pub name: Option<WellKnownName<'m>>,
    /// Generation and bits of a signal's filter.
    pub filter: Option<(u64, &'m [u8])>,
    /// Passed descriptors, memfds not among them.
    pub fds: usize,
    /// Memfds.
    pub memfds: usize,
}

/// Looks a message over that has passed its framing: `bytes` is header and items.
///
/// One pass over the items. The checks and their order are those of the bus' SEND, so that whoever
/// carries messages another way refuses the same ones for the same reason. Nothing outside the
/// message is looked at: descriptors, names and receivers come later.
///
/// # Errors
///
/// - `EINVAL`: payload of the kernel's type, a call without deadline, a synchronous send that is no call,
///   a signal that answers a call, a malformed name, or an item that does not belong in a message.
/// - `EBADMSG`: a broadcast that is no signal or names a receiver; a signal without filter, or the reverse.
/// - `ENOTUNIQ`: a broadcast with deadline, answered cookie or descriptors; a call that is a signal.
/// - `EMSGSIZE`, `EFAULT`: payload beyond [`PAYLOAD_VEC_MAX`], beyond the address space, or a memfd range
///   that wraps.
/// - `E2BIG`, `EMFILE`: too many memfds, too many descriptors.
/// - `EFAULT`, `EDOM`: a filter that is not made of words, or not of the bus' size.
/// - `EDESTADDRREQ`: no destination.
pub fn examine(bytes: &[u8], send: SendFlags, bloom_size: u64) -> Result<Examined<'_>, Errno> {
    let (header, area) = split(bytes).ok_or(Errno::EINVAL)?;
    let mut message = Examined::of(header);
    look_over(&mut message, area, send, bloom_size)?;
    Ok(message)
}

/// Looks over a message of which only the header is known: `area` is its items. What [`examine`] does, in a place of the
/// caller's.
///
/// # Errors
///
/// As [`examine`].
pub(crate) fn look_over<'m>(
    message: &mut Examined<'m>,
    area: &'m [u8],
    send: SendFlags,
    bloom_size: u64,
) -> Result<(), Errno> {
    let header = &message.header;
    message.route = route(header, send)?;
    let (dst_id, flags) = (header.dst_id, header.flags);
    let broadcast = dst_id == DST_ID_BROADCAST;
    let mut has_fds = false;
    let mut end = 0;
    for item in Items::new(area) {
        let item = item.map_err(|_| Errno::EINVAL)?;
        end = item.at + crate::abi::ITEM_HEADER + item.payload.len();
        match item.kind {
            ItemType::PAYLOAD_VEC => {
                let vec: Vec = item.record().ok_or(Errno::EINVAL)?;
                if vec.size > PAYLOAD_VEC_MAX {
                    return Err(Errno::EMSGSIZE);
                }
                if vec.address == 0 {
                    message.payload += vec.size % 8;
                } else if vec.address.checked_add(vec.size).is_none_or(|end| end > ADDRESS_END) {
                    return Err(Errno::EFAULT);
                } else {
                    message.payload += vec.size;
                }
            }
            ItemType::PAYLOAD_MEMFD => {
                let memfd: Memfd = item.record().ok_or(Errno::EINVAL)?;
                if memfd.start.checked_add(memfd.size).is_none() {
                    return Err(Errno::EMSGSIZE);
                }
                message.memfds += 1;
                if message.memfds > MEMFDS_MAX {
                    return Err(Errno::E2BIG);
                }
                message.payload += memfd.size % 8;
            }
            ItemType::FDS => {
                has_fds = true;
                message.fds = item.fds().len();
                if message.fds > FDS_MAX {
                    return Err(Errno::EMFILE);
                }
            }
            ItemType::BLOOM_FILTER => {
                let (generation, bits) = item.bloom_filter().ok_or(Errno::EINVAL)?;
                if !bits.len().is_multiple_of(8) {
                    return Err(Errno::EFAULT);
                }
                if bits.len() as u64 != bloom_size {
                    return Err(Errno::EDOM);
                }
                message.filter = Some((generation, bits));
            }
            ItemType::DST_NAME => {
                // Framing has seen one NUL, at the end; any other one would be no character of a name.
                let (_, name) =
                    item.payload.split_last().filter(|(nul, _)| **nul == 0).ok_or(Errno::EINVAL)?;
                let name = WellKnownName::from_bytes(name).map_err(|error| error.errno())?;
                if broadcast {
                    return Err(Errno::EBADMSG);
                }
                message.name = Some(name);
            }
            _ => return Err(Errno::EINVAL),
        }
    }
    message.items = area.get(..end).unwrap_or(area);

    let signal = flags & MsgFlags::SIGNAL.bits() != 0;
    if signal != message.filter.is_some() {
        return Err(Errno::EBADMSG);
    }
    if dst_id == DST_ID_NAME && message.name.is_none() {
        return Err(Errno::EDESTADDRREQ);
    }
    // kdbus: broadcasts carry no descriptors, not even an empty list of them.
    if broadcast && has_fds {
        return Err(Errno::ENOTUNIQ);
    }
    Ok(())
}

/// The checks of the header, in their order.
fn route(header: &Msg, send: SendFlags) -> Result<Route, Errno> {
    let broadcast = header.dst_id == DST_ID_BROADCAST;
    let signal = header.flags & MsgFlags::SIGNAL.bits() != 0;
    if header.payload_type == PAYLOAD_KERNEL {
        return Err(Errno::EINVAL);
    }
    if broadcast && !signal {
        return Err(Errno::EBADMSG);
    }
    if broadcast && header.timeout_or_reply != 0 {
        return Err(Errno::ENOTUNIQ);
    }
    if header.expects_reply() {
        if header.timeout_ns() == 0 {
            return Err(Errno::EINVAL);
        }
        if signal {
            return Err(Errno::ENOTUNIQ);
        }
        return Ok(Route::Call);
    }
    if send.contains(SendFlags::SYNC_REPLY) {
        return Err(Errno::EINVAL);
    }
    match (header.cookie_reply(), signal) {
        (0, false) => Ok(Route::Plain),
        (0, true) if broadcast => Ok(Route::Broadcast),
        (0, true) => Ok(Route::Signal),
        (_, true) => Err(Errno::EINVAL),
        (cookie, false) => Ok(Route::Reply(cookie)),
    }
}

fn split(bytes: &[u8]) -> Option<(Msg, &[u8])> {
    use zerocopy::FromBytes;
    Msg::read_from_prefix(bytes).ok()
}

impl Examined<'_> {
    /// A message with this header, of which nothing else was looked at.
    pub(crate) const fn of(header: Msg) -> Self {
        let route = Route::Plain;
        Self { header, route, items: &[], payload: 0, name: None, filter: None, fds: 0, memfds: 0 }
    }

    /// Bytes of header and items, to the unpadded end of the last item.
    #[must_use]
    pub const fn len(&self) -> u64 {
        (Msg::SIZE + self.items.len()) as u64
    }

    /// Whether the message has no items.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Where header, items and `metadata` bytes end, as the received header's `size` says.
    #[must_use]
    pub const fn received_len(&self, metadata: u64) -> u64 {
        received_len(self.len(), metadata)
    }
}

/// `size` in a received header: `sent` bytes of header and items, and metadata on the next word.
pub(crate) const fn received_len(sent: u64, metadata: u64) -> u64 {
    if metadata == 0 { sent } else { align8(sent) + metadata }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::abi::ItemWriter;
    use zerocopy::IntoBytes;

    const SIGNAL: u64 = MsgFlags::SIGNAL.bits();
    const CALL: u64 = MsgFlags::EXPECT_REPLY.bits();

    fn message(flags: u64, dst_id: u64, timeout_or_reply: u64) -> Msg {
        Msg { flags, dst_id, timeout_or_reply, payload_type: 1, ..Msg::default() }
    }

    fn check(header: Msg, items: &[(ItemType, &[u8])]) -> Result<(Route, u64), Errno> {
        let mut buffer = [0; 2048];
        let mut writer = ItemWriter::behind(&mut buffer, Msg::SIZE).unwrap();
        for (kind, payload) in items {
            writer.bytes(*kind, payload).unwrap();
        }
        let end = writer.len();
        buffer[..Msg::SIZE].copy_from_slice(header.as_bytes());
        examine(&buffer[..end], SendFlags::empty(), 8).map(|message| (message.route, message.payload))
    }

    #[test]
    fn each_message_has_one_route() {
        let filter: (ItemType, &[u8]) = (ItemType::BLOOM_FILTER, &[0; 16]);
        assert_eq!(check(message(0, 3, 0), &[]), Ok((Route::Plain, 0)));
        assert_eq!(check(message(0, 3, 7), &[]), Ok((Route::Reply(7), 0)));
        assert_eq!(check(message(CALL, 3, 7), &[]), Ok((Route::Call, 0)));
        assert_eq!(check(message(SIGNAL, 3, 0), &[filter]), Ok((Route::Signal, 0)));
        assert_eq!(check(message(SIGNAL, DST_ID_BROADCAST, 0), &[filter]), Ok((Route::Broadcast, 0)));
    }

    #[test]
    fn the_first_fault_in_order_decides() {
        let kernel = Msg { payload_type: 0, dst_id: DST_ID_BROADCAST, ..Msg::default() };
        assert_eq!(check(kernel, &[]), Err(Errno::EINVAL));
        assert_eq!(check(message(0, DST_ID_BROADCAST, 5), &[]), Err(Errno::EBADMSG));
        assert_eq!(check(message(SIGNAL | CALL, DST_ID_BROADCAST, 5), &[]), Err(Errno::ENOTUNIQ));
        assert_eq!(check(message(SIGNAL | CALL, 3, 0), &[]), Err(Errno::EINVAL));
        assert_eq!(check(message(SIGNAL | CALL, 3, 1), &[]), Err(Errno::ENOTUNIQ));
        assert_eq!(check(message(SIGNAL, 3, 1), &[]), Err(Errno::EINVAL));
        assert_eq!(check(message(SIGNAL, DST_ID_BROADCAST, 0), &[]), Err(Errno::EBADMSG));
        assert_eq!(check(message(0, 0, 0), &[]), Err(Errno::EDESTADDRREQ));
        let name: (ItemType, &[u8]) = (ItemType::DST_NAME, b"a.b\0");
        assert_eq!(check(message(SIGNAL, DST_ID_BROADCAST, 0), &[name]), Err(Errno::EBADMSG));
        assert_eq!(check(message(0, 0, 0), &[name]), Ok((Route::Plain, 0)));
        assert_eq!(check(message(0, 3, 0), &[(ItemType::NEGOTIATE, &[])]), Err(Errno::EINVAL));
    }

    #[test]
    fn payload_is_counted_as_the_slice_will_hold_it() {
        let vec = |size, address| Vec { size, address };
        let memfd = Memfd { start: 0, size: 13, fd: 0, pad: 0 };
        let (a, b, zeros) = (vec(3, 64), vec(5, 640), vec(13, 0));
        let items = [
            (ItemType::PAYLOAD_VEC, a.as_bytes()),
            (ItemType::PAYLOAD_VEC, b.as_bytes()),
            (ItemType::PAYLOAD_VEC, zeros.as_bytes()),
            (ItemType::PAYLOAD_MEMFD, memfd.as_bytes()),
        ];
        assert_eq!(check(message(0, 3, 0), &items), Ok((Route::Plain, 3 + 5 + 5 + 5)));
        let large = vec(PAYLOAD_VEC_MAX + 1, 64);
        assert_eq!(
            check(message(0, 3, 0), &[(ItemType::PAYLOAD_VEC, large.as_bytes())]),
            Err(Errno::EMSGSIZE)
        );
        let kernel = vec(8, 0xffff_8000_0000_0000);
        assert_eq!(
            check(message(0, 3, 0), &[(ItemType::PAYLOAD_VEC, kernel.as_bytes())]),
            Err(Errno::EFAULT)
        );
    }

    #[test]
    fn filters_have_the_size_of_the_bus() {
        let signal = message(SIGNAL, 3, 0);
        assert_eq!(check(signal, &[(ItemType::BLOOM_FILTER, &[0; 20])]), Err(Errno::EFAULT));
        assert_eq!(check(signal, &[(ItemType::BLOOM_FILTER, &[0; 24])]), Err(Errno::EDOM));
        assert_eq!(check(message(0, 3, 0), &[(ItemType::BLOOM_FILTER, &[0; 16])]), Err(Errno::EBADMSG));
    }

    #[test]
    fn broadcasts_carry_no_descriptors_but_may_carry_memfds() {
        let filter: (ItemType, &[u8]) = (ItemType::BLOOM_FILTER, &[0; 16]);
        let memfd = Memfd { start: 0, size: 8, fd: 0, pad: 0 };
        let signal = message(SIGNAL, DST_ID_BROADCAST, 0);
        assert_eq!(check(signal, &[filter, (ItemType::FDS, &[0; 4])]), Err(Errno::ENOTUNIQ));
        assert!(check(signal, &[filter, (ItemType::PAYLOAD_MEMFD, memfd.as_bytes())]).is_ok());
        assert_eq!(check(message(0, 3, 0), &[(ItemType::FDS, &[0; 68])]), Err(Errno::EMFILE));
        assert!(check(message(0, 3, 0), &[(ItemType::FDS, &[0; 64])]).is_ok());
    }
}
