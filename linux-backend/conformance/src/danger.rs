//! What would bring the kernel of a module down, told apart before it is sent.

use kdbus_core::abi::{CmdMatch, Command, FLAG_NEGOTIATE, ItemType, Items, Msg};

/// The defect of the module that a command would meet, if it is one that the kernel does not survive. `O(items)`.
///
/// `message` is what a SEND names. Source: the defects of the module, B2 and B12.
pub(crate) fn of(request: u32, arg: &[u8], message: &[u8]) -> Option<&'static str> {
    if request == Command::Send.request() {
        let none = has(message, Msg::SIZE, |kind, len| kind == ItemType::FDS && len == 0)
            && !has(message, Msg::SIZE, |kind, _| kind == ItemType::PAYLOAD_MEMFD);
        return (none && !asks(message)).then_some("B2: a list of no descriptors is never sent to a module");
    }
    let is_match = request == Command::MatchAdd.request();
    let probe = is_match && has(arg, size_of::<CmdMatch>(), |kind, _| kind == ItemType::NEGOTIATE);
    (probe && !asks(arg)).then_some("B12: a match with a NEGOTIATE item is never added on a module")
}

/// Whether an item at `start` or behind is so.
fn has(record: &[u8], start: usize, so: impl Fn(ItemType, usize) -> bool) -> bool {
    let area = record.get(start..).unwrap_or_default();
    Items::new(area).map_while(Result::ok).any(|item| so(item.kind, item.payload.len()))
}

/// Whether a command or message only asks what is known, which carries nothing out. Both begin with size and flags.
fn asks(record: &[u8]) -> bool {
    let flags = record.get(8..16).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes);
    flags & FLAG_NEGOTIATE != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(header: usize, flags: u64, items: &[(ItemType, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0; header];
        bytes[8..16].copy_from_slice(&flags.to_ne_bytes());
        for (kind, payload) in items {
            bytes.extend((16 + payload.len() as u64).to_ne_bytes());
            bytes.extend(kind.0.to_ne_bytes());
            bytes.extend(*payload);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes
    }

    #[test]
    fn only_what_brings_a_module_down_is_held_back() {
        let send = |flags, items: &[_]| of(Command::Send.request(), &[], &record(Msg::SIZE, flags, items));
        let (fds, memfd) = (ItemType::FDS, (ItemType::PAYLOAD_MEMFD, &[0; 24][..]));
        assert!(send(0, &[(fds, &[])]).is_some_and(|why| why.starts_with("B2")));
        assert_eq!(send(0, &[(fds, &[]), memfd]), None);
        assert_eq!(send(0, &[(fds, &[1, 0, 0, 0])]), None);
        assert_eq!(send(FLAG_NEGOTIATE, &[(fds, &[])]), None);
        assert_eq!(send(0, &[]), None);

        let probe = (ItemType::NEGOTIATE, &[0; 8][..]);
        let add = |flags, items: &[_]| {
            of(Command::MatchAdd.request(), &record(size_of::<CmdMatch>(), flags, items), &[])
        };
        assert!(add(0, &[probe]).is_some_and(|why| why.starts_with("B12")));
        assert_eq!(add(FLAG_NEGOTIATE, &[probe]), None);
        assert_eq!(add(0, &[]), None);
    }

    #[test]
    fn what_is_no_record_is_no_danger() {
        for len in 0..40 {
            assert_eq!(of(Command::Send.request(), &[], &vec![0xff; len]), None);
            assert_eq!(of(Command::MatchAdd.request(), &vec![0xff; len], &[]), None);
        }
    }
}
