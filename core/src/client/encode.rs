//! How a message is put together: its header and items, as a transport takes them.

use super::deadline::timeout_ns;
use super::error::SendError;
use super::message::{Filter, MESSAGE_SIZE, Message, PAYLOAD_PARTS_MAX, Part};
use super::topic::{self, FILTER_MAX};
use super::transport::{MESSAGE_FDS_MAX, Outgoing};
use crate::Instant;
use crate::abi::{
    BloomParameter, Errno, ITEM_HEADER, ItemType, ItemWriter, Memfd, Msg, MsgFlags, NoRoom, Vec, align8,
};
use zerocopy::{FromBytes, IntoBytes};

/// Messages up to this size are put together in a small buffer, because clearing a large one takes longer
/// than sending.
const SMALL_SIZE: usize = 512;
const SMALL_PARTS: usize = 8;
/// Words of items that a message of one run may have: the run and a name of not much more than 64 bytes.
const SHORT_WORDS: usize = 16;
/// Words of the item of a run.
const RUN_WORDS: usize = (ITEM_HEADER + size_of::<Vec>()) / 8;

/// kdbus.message: bytes of one PAYLOAD_VEC.
const VEC_MAX: usize = 2 << 20;
/// kdbus.message: PAYLOAD_MEMFD items of a message.
const MEMFDS_MAX: usize = 16;
/// kdbus.message: descriptors of a message.
const FDS_MAX: usize = 16;

/// What a message is sent with that it does not say itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sending {
    pub(super) cookie: u64,
    /// It is a call, and its connection waits so long for the answer.
    pub(super) until: Option<Instant>,
    /// As [`Outgoing::begun`].
    pub(super) begun: Option<Instant>,
}

impl<'a, F: Copy> Message<'a, F> {
    /// Puts header and items together and hands them to `send`.
    pub(super) fn encode<R>(
        &self,
        sending: &Sending,
        bloom: &BloomParameter,
        send: impl FnOnce(&mut Outgoing<'_, F>) -> R,
    ) -> Result<R, SendError> {
        if let Some(at) = self.only_run() {
            return self.write_short(sending, at, send);
        }
        let (size, parts) = self.extent(bloom);
        if size <= SMALL_SIZE && parts <= SMALL_PARTS {
            self.write_in::<SMALL_SIZE, SMALL_PARTS, _>(sending, bloom, send)
        } else {
            self.write_in::<MESSAGE_SIZE, PAYLOAD_PARTS_MAX, _>(sending, bloom, send)
        }
    }

    #[inline]
    fn header(&self, sending: &Sending, size: usize) -> Msg {
        let (flags, timeout_or_reply) = match sending.until {
            Some(until) => (self.flags.union(MsgFlags::EXPECT_REPLY), timeout_ns(until)),
            None if self.flags.contains(MsgFlags::EXPECT_REPLY) => (self.flags, self.timeout_or_reply.max(1)),
            None => (self.flags, self.timeout_or_reply),
        };
        Msg {
            size: size as u64,
            flags: flags.bits(),
            priority: self.priority,
            dst_id: self.id,
            src_id: 0,
            payload_type: self.payload_type,
            cookie: sending.cookie,
            timeout_or_reply,
        }
    }

    /// The word of the items at which the run of bytes stands, if that is all there is but a name that is not
    /// long: so are most messages.
    #[inline]
    fn only_run(&self) -> Option<usize> {
        let has_run = !self.payload.is_empty() && self.payload.len() <= VEC_MAX;
        if !has_run || !self.parts.is_empty() || !self.fds.is_empty() || !matches!(self.filter, Filter::None)
        {
            return None;
        }
        let at = self.name.map_or(0, |name| (ITEM_HEADER + name.as_str().len() + 1).div_ceil(8));
        (at <= SHORT_WORDS - RUN_WORDS).then_some(at)
    }

    /// Puts a message of [one run](Self::only_run) together without a look at what it could have beside.
    #[inline]
    fn write_short<R>(
        &self,
        sending: &Sending,
        at: usize,
        send: impl FnOnce(&mut Outgoing<'_, F>) -> R,
    ) -> Result<R, SendError> {
        let size = size_of::<Msg>() + 8 * (at + RUN_WORDS);
        let mut short = Short { header: self.header(sending, size), items: [0; SHORT_WORDS] };
        if let Some(name) = self.name {
            let name = name.as_str().as_bytes();
            let [size, kind, text @ ..] = &mut short.items;
            (*size, *kind) = ((ITEM_HEADER + name.len() + 1) as u64, ItemType::DST_NAME.0);
            // A NUL and zeros stand behind it.
            text.as_mut_bytes().get_mut(..name.len()).ok_or(SendError::TooLarge)?.copy_from_slice(name);
        }
        let run = [8 * RUN_WORDS as u64, ItemType::PAYLOAD_VEC.0, self.payload.len() as u64, SOME_ADDRESS];
        *short.items.get_mut(at..).and_then(<[u64]>::first_chunk_mut).ok_or(SendError::TooLarge)? = run;
        let message = short.as_mut_bytes().get_mut(..size).ok_or(SendError::TooLarge)?;
        Ok(send(&mut Outgoing { message, payload: &[self.payload], fds: &[], begun: sending.begun }))
    }

    /// Puts any message together in a buffer of `SIZE` bytes with room for `PARTS` runs.
    #[inline(never)]
    fn write_in<const SIZE: usize, const PARTS: usize, R>(
        &self,
        sending: &Sending,
        bloom: &BloomParameter,
        send: impl FnOnce(&mut Outgoing<'_, F>) -> R,
    ) -> Result<R, SendError> {
        let mut buffer = Buffer::<SIZE>::zeroed();
        let mut payload = heapless::Vec::<_, PARTS>::new();
        let mut fds = heapless::Vec::new();
        let message = self.write(&mut buffer.0, sending, bloom, &mut payload, &mut fds)?;
        Ok(send(&mut Outgoing { message, payload: &payload, fds: &fds, begun: sending.begun }))
    }

    /// Bytes of header and items and number of byte runs, never less than there will be.
    fn extent(&self, bloom: &BloomParameter) -> (usize, usize) {
        let vec = ITEM_HEADER + size_of::<Vec>();
        let chunks = |bytes: &[u8]| bytes.len().div_ceil(VEC_MAX);
        let mut size = size_of::<Msg>() + chunks(self.payload) * vec;
        let mut parts = chunks(self.payload);
        if let Some(name) = self.name {
            size += align8((ITEM_HEADER + name.as_str().len() + 1) as u64) as usize;
        }
        size += match self.filter {
            Filter::None => 0,
            Filter::Topic(_) => ITEM_HEADER + 8 + (bloom.size as usize).min(FILTER_MAX),
            Filter::Bits { bits, .. } => align8((ITEM_HEADER + 8 + bits.len()) as u64) as usize,
        };
        if !self.fds.is_empty() {
            size += align8((ITEM_HEADER + 4 * self.fds.len()) as u64) as usize;
        }
        for part in self.parts {
            match part {
                Part::Bytes(bytes) => {
                    size += chunks(bytes) * vec;
                    parts += chunks(bytes);
                }
                Part::Zeros(count) => size = size.saturating_add(zero_runs(*count).saturating_mul(vec)),
                Part::Memfd { .. } => size += ITEM_HEADER + size_of::<Memfd>(),
            }
        }
        (size, parts)
    }

    /// Writes any message into `buffer`. Returns header and items.
    fn write<'b>(
        &self,
        buffer: &'b mut [u8],
        sending: &Sending,
        bloom: &BloomParameter,
        payload: &mut heapless::VecView<&'a [u8]>,
        fds: &mut heapless::Vec<F, MESSAGE_FDS_MAX>,
    ) -> Result<&'b mut [u8], SendError> {
        let mut items = ItemWriter::behind(buffer, size_of::<Msg>()).map_err(too_large)?;
        let mut topic_bits = None;
        if let Some(name) = self.name {
            items.c_str(ItemType::DST_NAME, name.as_str()).map_err(too_large)?;
        }
        match self.filter {
            Filter::None => {}
            Filter::Topic(topic) => {
                if !topic::is_valid(bloom) {
                    return Err(SendError::BloomSize);
                }
                let size = bloom.size as usize;
                let at = align8(items.len() as u64) as usize + ITEM_HEADER + 8;
                // Generation 0, and no bit yet.
                items.zeros(ItemType::BLOOM_FILTER, 8 + size).map_err(too_large)?;
                topic_bits = Some((topic, at..at + size));
            }
            Filter::Bits { generation, bits } => {
                items.parts(ItemType::BLOOM_FILTER, &[&generation.to_ne_bytes(), bits]).map_err(too_large)?;
            }
        }
        write_fds(self.fds, fds, &mut items)?;
        write_bytes(self.payload, payload, &mut items)?;
        let mut memfds = 0;
        for part in self.parts {
            match *part {
                Part::Bytes(bytes) => write_bytes(bytes, payload, &mut items)?,
                Part::Zeros(count) => write_zeros(count, &mut items)?,
                Part::Memfd { fd, start, size } => {
                    memfds += 1;
                    if memfds > MEMFDS_MAX {
                        return Err(SendError::TooManyMemfds);
                    }
                    let memfd = Memfd { start, size, fd: fds.len() as i32, pad: 0 };
                    items.record(ItemType::PAYLOAD_MEMFD, &memfd).map_err(too_large)?;
                    fds.push(fd).map_err(|_| SendError::TooManyMemfds)?;
                }
            }
        }
        let size = items.len();
        buffer[..size_of::<Msg>()].copy_from_slice(self.header(sending, size).as_bytes());
        if let Some((topic, range)) = topic_bits {
            topic.fill(&mut buffer[range], bloom.n_hash);
        }
        Ok(&mut buffer[..align8(size as u64) as usize])
    }
}

/// Header and items of a message of one run.
#[derive(FromBytes, IntoBytes)]
#[repr(C)]
struct Short {
    header: Msg,
    items: [u64; SHORT_WORDS],
}

/// 8-byte aligned, as the commands of the bus have to be.
#[repr(align(8))]
pub(super) struct Buffer<const N: usize>(pub(super) [u8; N]);

impl<const N: usize> Buffer<N> {
    pub(super) const fn zeroed() -> Self {
        Self([0; N])
    }
}

/// The transport replaces the address; it only must not be that of a run of zeros.
const SOME_ADDRESS: u64 = 1;

const fn too_large(_: NoRoom) -> SendError {
    SendError::TooLarge
}

const fn zero_runs(count: u64) -> usize {
    let runs = count.div_ceil(VEC_MAX as u64);
    if runs > MESSAGE_SIZE as u64 { MESSAGE_SIZE } else { runs as usize }
}

fn write_bytes<'a>(
    bytes: &'a [u8],
    payload: &mut heapless::VecView<&'a [u8]>,
    items: &mut ItemWriter<'_>,
) -> Result<(), SendError> {
    for chunk in bytes.chunks(VEC_MAX) {
        let vec = Vec { size: chunk.len() as u64, address: SOME_ADDRESS };
        items.record(ItemType::PAYLOAD_VEC, &vec).map_err(too_large)?;
        payload.push(chunk).map_err(|_| SendError::TooLarge)?;
    }
    Ok(())
}

fn write_zeros(mut count: u64, items: &mut ItemWriter<'_>) -> Result<(), SendError> {
    while count > 0 {
        let size = count.min(VEC_MAX as u64);
        items.record(ItemType::PAYLOAD_VEC, &Vec { size, address: 0 }).map_err(too_large)?;
        count -= size;
    }
    Ok(())
}

fn write_fds<F: Copy>(
    passed: &[F],
    fds: &mut heapless::Vec<F, MESSAGE_FDS_MAX>,
    items: &mut ItemWriter<'_>,
) -> Result<(), SendError> {
    if passed.is_empty() {
        return Ok(());
    }
    if passed.len() > FDS_MAX {
        // Not DescriptorQuotaUsed: waiting would not help.
        return Err(SendError::Refused(Errno::EMFILE));
    }
    let mut numbers = [0_i32; FDS_MAX];
    for (index, (number, fd)) in numbers.iter_mut().zip(passed).enumerate() {
        *number = index as i32;
        fds.push(*fd).map_err(|_| SendError::Refused(Errno::EMFILE))?;
    }
    items.bytes(ItemType::FDS, numbers[..passed.len()].as_bytes()).map_err(too_large)
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::vec;
    use std::vec::Vec as StdVec;

    use super::super::message::ReplyTo;
    use super::super::topic::Topic;
    use super::*;
    use crate::abi::{CMD_MAX_SIZE, DST_ID_BROADCAST, Frame, Items, MESSAGE};
    use crate::{Instant, WellKnownName};

    const BLOOM: BloomParameter = BloomParameter { size: 64, n_hash: 8 };

    struct Sent {
        bytes: StdVec<u8>,
        payload: StdVec<u8>,
        fds: StdVec<i32>,
    }

    impl Sent {
        fn header(&self) -> Msg {
            Msg::read_from_prefix(&self.bytes).unwrap().0
        }

        fn kinds(&self) -> StdVec<ItemType> {
            let end = self.header().size as usize;
            Items::new(&self.bytes[Msg::SIZE..end]).map(|item| item.unwrap().kind).collect()
        }
    }

    fn encode(message: Message<'_, i32>) -> Result<Sent, SendError> {
        let sending = Sending { cookie: message.cookie.unwrap_or(7), until: None, begun: None };
        message.encode(&sending, &BLOOM, |outgoing| Sent {
            bytes: outgoing.message.to_vec(),
            payload: outgoing.payload.concat(),
            fds: outgoing.fds.to_vec(),
        })
    }

    #[test]
    fn what_is_sent_passes_the_framing_of_the_bus() {
        let parts = [Part::Zeros(9), Part::Memfd { fd: 5, start: 0, size: 4096 }, Part::Bytes(b"tail")];
        let name = WellKnownName::parse("org.example.Mixer").unwrap();
        let message = Message::to_name(name).payload(b"head").parts(&parts).fds(&[8, 9]).priority(-3);
        let mut sent = encode(message).unwrap();
        assert_eq!(sent.payload, b"headtail");
        assert_eq!(sent.fds, [8, 9, 5]);
        assert!(sent.bytes.len().is_multiple_of(8));
        assert_eq!((sent.header().cookie, sent.header().priority), (7, -3));
        let frame = Frame::check(&mut sent.bytes, &MESSAGE, false).unwrap();
        let memfd: Memfd = frame.item(ItemType::PAYLOAD_MEMFD).unwrap().record().unwrap();
        assert_eq!((memfd.fd, memfd.size), (2, 4096));
        assert!(frame.item(ItemType::FDS).unwrap().fds().eq([0, 1]));
    }

    #[test]
    fn sixteen_of_each_kind_fit_beside_the_longest_filter_and_name() {
        let text = std::format!("a.{}", "x".repeat(253));
        let name = WellKnownName::parse(&text).unwrap();
        let mut parts = vec![Part::Bytes(&b"x"[..]); 16];
        parts.extend([Part::Memfd { fd: 1, start: 0, size: 1 }; 16]);
        let fds = [3; 16];
        let bits = [0; FILTER_MAX];
        let mut message = Message::signal_with_filter(0, &bits).parts(&parts).fds(&fds).only_to(3);
        message.name = Some(name);
        let sent = encode(message).unwrap();
        assert_eq!((sent.fds.len(), sent.kinds().len()), (32, 35));
        assert!(sent.bytes.len() <= MESSAGE_SIZE && MESSAGE_SIZE <= CMD_MAX_SIZE);
    }

    #[test]
    fn too_much_of_anything_is_refused() {
        let fds = [3; 17];
        assert_eq!(encode(Message::to(1).fds(&fds)).err(), Some(SendError::Refused(Errno::EMFILE)));
        let memfds = [Part::Memfd { fd: 1, start: 0, size: 1 }; 17];
        assert_eq!(encode(Message::to(1).parts(&memfds)).err(), Some(SendError::TooManyMemfds));
        let runs = [Part::Bytes(&b"x"[..]); PAYLOAD_PARTS_MAX + 1];
        assert_eq!(encode(Message::to(1).parts(&runs)).err(), Some(SendError::TooLarge));
        let zeros = [Part::Zeros(u64::MAX)];
        assert_eq!(encode(Message::to(1).parts(&zeros)).err(), Some(SendError::TooLarge));
        let bits = vec![0; MESSAGE_SIZE];
        assert_eq!(encode(Message::signal_with_filter(0, &bits)).err(), Some(SendError::TooLarge));
    }

    #[test]
    fn long_runs_are_split_and_empty_ones_left_out() {
        let long = vec![1; VEC_MAX + 1];
        let parts = [Part::Bytes(&b""[..]), Part::Zeros(0), Part::Bytes(&long)];
        let sent = encode(Message::to(1).parts(&parts)).unwrap();
        assert_eq!(sent.kinds(), [ItemType::PAYLOAD_VEC; 2]);
        assert_eq!(sent.payload.len(), VEC_MAX + 1);
    }

    #[test]
    fn a_signal_carries_the_filter_of_its_topic() {
        let topic = Topic::parse("org.example.Mixer.level").unwrap();
        let sent = encode(Message::signal(topic)).unwrap();
        let mut expected = [0; 64];
        topic.fill(&mut expected, 8);
        let end = sent.header().size as usize;
        let item = Items::new(&sent.bytes[Msg::SIZE..end]).next().unwrap().unwrap();
        assert_eq!(item.bloom_filter(), Some((0, &expected[..])));
        assert_eq!((sent.header().dst_id, sent.header().cookie), (DST_ID_BROADCAST, topic.hash()));
    }

    #[test]
    fn a_reply_names_its_call_and_a_call_its_deadline() {
        let to = ReplyTo { id: 4, cookie: 9, priority: -1 };
        let reply = encode(Message::reply(to)).unwrap().header();
        assert_eq!((reply.dst_id, reply.cookie_reply(), reply.priority), (4, 9, -1));
        let until = Some(Instant::FAR);
        let call = |outgoing: &mut Outgoing<'_, i32>| Msg::read_from_prefix(outgoing.message).unwrap().0;
        let sending = Sending { cookie: 11, until, begun: None };
        let call = Message::to(4).encode(&sending, &BLOOM, call).unwrap();
        assert_eq!((call.cookie, call.timeout_ns(), call.cookie_reply()), (11, i64::MAX as u64, 0));
    }
}
