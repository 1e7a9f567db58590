//! The item reader, the framing of every command and the examination of messages.
#![no_main]

use kdbus_core::abi::{Command, Frame, ITEM_HEADER, ItemType, Items, MESSAGE, SendFlags, align8};
use kdbus_core::examine::examine;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    read(data);
    for shape in Command::ALL.iter().map(|command| command.shape()).chain([&MESSAGE]) {
        let mut arg = data.to_vec();
        let Ok(frame) = Frame::check(&mut arg, shape, false) else { continue };
        let (flags, negotiate, len) = (frame.flags, frame.negotiate, frame.bytes.len());
        for item in frame.items() {
            assert!(item.check().is_ok(), "framing lets no malformed item pass");
            assert!(shape.arity(item.kind).is_some(), "nor one that does not belong here");
        }
        assert!(flags & !shape.flags == 0 && len >= shape.size);
        // What passed once passes again, and nothing is written then.
        if !negotiate {
            let mut again = arg.clone();
            assert!(Frame::check(&mut again, shape, false).is_ok());
            assert_eq!(again, arg);
        }
        if std::ptr::eq(shape, &MESSAGE)
            && let Ok(message) = examine(&arg[..len], SendFlags::empty(), 64)
        {
            assert!(message.len() <= len as u64 && message.payload <= 1 << 36);
        }
    }
});

fn read(area: &[u8]) {
    let mut end = 0;
    for item in Items::new(area) {
        let Ok(item) = item else { return };
        assert_eq!(item.at, end, "items lie one behind the other");
        assert_eq!(item.payload, &area[item.at + ITEM_HEADER..][..item.payload.len()]);
        end = item.at + align8((ITEM_HEADER + item.payload.len()) as u64) as usize;
        let sound = item.check().is_ok();
        let (words, fds) = (item.words().count(), item.fds().count());
        assert!(words == item.payload.len() / 8 && fds == item.payload.len() / 4);
        let (text, bytes) = (item.text(), item.c_str());
        assert_eq!(text.map(str::as_bytes), bytes.filter(|bytes| str::from_utf8(bytes).is_ok()));
        assert!(bytes.is_none_or(|bytes| !bytes.contains(&0)));
        let _ = (item.u64(), item.owned_name(), item.name_change(), item.bloom_filter());
        if sound && item.kind == ItemType::NAME {
            assert!(bytes.is_some());
        }
    }
    assert!(end >= area.len(), "nothing is left over");
}
