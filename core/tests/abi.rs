//! Every entry of `abi.toml`, the facts of the UAPI as a probe found them, against the records of the crate.
//!
//! An entry that nothing here knows fails its test, so the file cannot grow past what is checked.

use std::any::type_name;
use std::collections::BTreeMap;
use std::mem::offset_of;

use kdbus_core::abi::*;
use kdbus_core::client::Access;
use kdbus_core::engine::{limits, names, quota, reply};
use kdbus_core::{NODE_NAME_MAX, WELL_KNOWN_NAME_MAX};
use toml::{Table, Value};

fn file() -> Table {
    include_str!("abi.toml").parse().unwrap()
}

fn section(name: &str) -> Table {
    file()[name].as_table().unwrap().clone()
}

/// A number, or one in a string: 64 bits do not fit a TOML integer.
fn number(value: &Value) -> u64 {
    match value {
        Value::Integer(number) => u64::try_from(*number).unwrap(),
        Value::String(text) => u64::from_str_radix(text.strip_prefix("0x").unwrap(), 16).unwrap(),
        other => panic!("{other} is no number"),
    }
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table[key].as_str().unwrap()
}

/// Names and values of the file and of the crate have to be the same set.
fn same_set(what: &str, file: &Table, ours: &[(&str, u64)]) {
    let file: BTreeMap<&str, u64> = file.iter().map(|(name, value)| (name.as_str(), number(value))).collect();
    let ours: BTreeMap<&str, u64> = ours.iter().copied().collect();
    assert_eq!(file, ours, "{what}");
}

#[test]
fn sections_are_those_that_are_checked() {
    let names: Vec<String> = file().keys().cloned().collect();
    let checked = ["const", "enum", "errno", "ioctl", "item", "limits", "meta", "struct"];
    assert!(names.iter().all(|name| checked.contains(&name.as_str())), "{names:?}");
}

#[test]
fn items_start_as_stated() {
    for (name, value) in &section("meta") {
        match name.as_str() {
            "item_header_size" => assert_eq!(number(value), ITEM_HEADER as u64),
            "item_alignment" => assert_eq!(number(value), align8(1)),
            // Facts about the machine, the file system and its users, which no record holds.
            "arch"
            | "upstream"
            | "fs_type"
            | "mount_point"
            | "super_magic"
            | "cap_privileged"
            | "memfd_required_seals" => assert!(!value.as_str().unwrap().is_empty()),
            other => panic!("{other} is not checked"),
        }
    }
}

#[test]
fn constants_agree() {
    let magic = u64::from(Command::Hello.request() >> 8 & 0xff);
    let ours = [
        ("KDBUS_IOCTL_MAGIC", magic),
        ("KDBUS_SRC_ID_KERNEL", SRC_ID_KERNEL),
        ("KDBUS_DST_ID_NAME", DST_ID_NAME),
        ("KDBUS_MATCH_ID_ANY", MATCH_ID_ANY),
        ("KDBUS_DST_ID_BROADCAST", DST_ID_BROADCAST),
        ("KDBUS_FLAG_NEGOTIATE", FLAG_NEGOTIATE),
    ];
    same_set("const", &section("const"), &ours);
}

/// The names and bits of a flag set, with the prefix of the header.
macro_rules! flags {
    ($prefix:literal, $($set:ident { $($flag:ident)* }),*) => {
        vec![$($((concat!($prefix, stringify!($flag)), $set::$flag.bits()),)*)*]
    };
}

#[test]
fn enums_agree() {
    let mut items: Vec<(String, u64)> =
        ItemType::ALL.iter().map(|(kind, name)| (format!("KDBUS_ITEM_{name}"), kind.0)).collect();
    for (name, value) in [
        ("_KDBUS_ITEM_NULL", 0),
        ("_KDBUS_ITEM_USER_BASE", ItemType::NEGOTIATE.0),
        ("_KDBUS_ITEM_ATTACH_BASE", ItemType::TIMESTAMP.0),
        ("_KDBUS_ITEM_POLICY_BASE", ItemType::POLICY_ACCESS.0),
        ("_KDBUS_ITEM_KERNEL_BASE", ItemType::NAME_ADD.0),
    ] {
        items.push((name.to_owned(), value));
    }
    let items: Vec<(&str, u64)> = items.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let mut attach = flags!(
        "KDBUS_ATTACH_",
        AttachFlags {
            TIMESTAMP CREDS PIDS AUXGROUPS NAMES TID_COMM PID_COMM EXE CMDLINE CGROUP CAPS SECLABEL AUDIT
            CONN_DESCRIPTION
        }
    );
    attach.push(("_KDBUS_ATTACH_ALL", AttachFlags::all().bits()));
    attach.push(("_KDBUS_ATTACH_ANY", u64::MAX));
    assert_eq!(AttachFlags::from_command(u64::MAX), Ok(AttachFlags::all()));
    let ours: &[(&str, Vec<(&str, u64)>)] = &[
        (
            "kdbus_policy_access_type",
            vec![
                ("_KDBUS_POLICY_ACCESS_NULL", PolicyAccess::default().kind),
                ("KDBUS_POLICY_ACCESS_USER", PolicyAccess::USER),
                ("KDBUS_POLICY_ACCESS_GROUP", PolicyAccess::GROUP),
                ("KDBUS_POLICY_ACCESS_WORLD", PolicyAccess::WORLD),
            ],
        ),
        (
            "kdbus_policy_type",
            vec![
                ("KDBUS_POLICY_SEE", Access::See as u64),
                ("KDBUS_POLICY_TALK", Access::Talk as u64),
                ("KDBUS_POLICY_OWN", Access::Own as u64),
            ],
        ),
        ("kdbus_attach_flags", attach),
        ("kdbus_item_type", items),
        ("kdbus_msg_flags", flags!("KDBUS_MSG_", MsgFlags { EXPECT_REPLY NO_AUTO_START SIGNAL })),
        (
            "kdbus_payload_type",
            vec![("KDBUS_PAYLOAD_KERNEL", PAYLOAD_KERNEL), ("KDBUS_PAYLOAD_DBUS", PAYLOAD_DBUS)],
        ),
        ("kdbus_send_flags", flags!("KDBUS_SEND_", SendFlags { SYNC_REPLY })),
        ("kdbus_recv_flags", flags!("KDBUS_RECV_", RecvFlags { PEEK DROP USE_PRIORITY })),
        (
            "kdbus_recv_return_flags",
            flags!("KDBUS_RECV_RETURN_", RecvReturnFlags { INCOMPLETE_FDS DROPPED_MSGS }),
        ),
        (
            "kdbus_hello_flags",
            flags!("KDBUS_HELLO_", HelloFlags { ACCEPT_FD ACTIVATOR POLICY_HOLDER MONITOR }),
        ),
        ("kdbus_list_flags", flags!("KDBUS_LIST_", ListFlags { UNIQUE NAMES ACTIVATORS QUEUED })),
        ("kdbus_cmd_match_flags", flags!("KDBUS_MATCH_", MatchFlags { REPLACE })),
        ("kdbus_make_flags", flags!("KDBUS_MAKE_", MakeFlags { ACCESS_GROUP ACCESS_WORLD })),
        (
            "kdbus_name_flags",
            flags!(
                "KDBUS_NAME_",
                NameFlags { REPLACE_EXISTING ALLOW_REPLACEMENT QUEUE IN_QUEUE ACTIVATOR PRIMARY ACQUIRED }
            ),
        ),
    ];
    let file = section("enum");
    assert_eq!(file.len(), ours.len(), "an enum is not checked");
    for (name, values) in ours {
        same_set(name, file[*name].as_table().unwrap(), values);
    }
}

#[test]
fn limits_agree() {
    let ours = [
        ("KDBUS_MSG_MAX_MEMFD_ITEMS", limits::MEMFDS_MAX as u64),
        ("KDBUS_CMD_MAX_SIZE", CMD_MAX_SIZE as u64),
        ("KDBUS_CONN_MAX_FDS_PER_USER", limits::FDS_MAX as u64),
        ("KDBUS_MSG_MAX_PAYLOAD_VEC_SIZE", limits::PAYLOAD_VEC_MAX),
        ("KDBUS_BUS_BLOOM_MAX_SIZE", limits::BLOOM_MAX),
        ("KDBUS_NAME_MAX_LEN", WELL_KNOWN_NAME_MAX as u64),
        ("KDBUS_SYSNAME_MAX_LEN", NODE_NAME_MAX as u64),
        ("KDBUS_MATCH_MAX", limits::MATCHES_PER_CONNECTION.into()),
        ("KDBUS_CONN_MAX_MSGS", quota::MESSAGES_MAX.into()),
        ("KDBUS_CONN_MAX_NAMES", names::RECORDS_MAX.into()),
        ("KDBUS_CONN_MAX_REQUESTS_PENDING", reply::CALLS_MAX.into()),
        ("KDBUS_USER_MAX_CONN", limits::CONNECTIONS_PER_USER.into()),
        ("KDBUS_USER_MAX_BUSES", limits::BUSES_PER_USER.into()),
    ];
    assert_eq!(limits::FDS_MAX as u32, quota::FDS_MAX);
    let mut file = section("limits");
    // kdbus declares this one and never checks it.
    assert!(file.remove("KDBUS_MSG_MAX_SIZE").is_some());
    same_set("limits", &file, &ours);
}

#[test]
fn error_numbers_agree() {
    let ours: Vec<(&str, u64)> =
        Errno::ALL.iter().map(|(errno, name)| (*name, u64::try_from(errno.raw()).unwrap())).collect();
    same_set("errno", &section("errno"), &ours);
    for (errno, name) in Errno::ALL {
        assert_eq!((errno.name(), Errno::from_raw(errno.raw() as u32)), (Some(*name), Some(*errno)));
    }
}

/// What the header calls a command.
fn command(name: &str) -> Command {
    match name {
        "BUS_MAKE" => Command::BusMake,
        "ENDPOINT_MAKE" => Command::EndpointMake,
        "ENDPOINT_UPDATE" => Command::EndpointUpdate,
        "HELLO" => Command::Hello,
        "UPDATE" => Command::Update,
        "BYEBYE" => Command::Byebye,
        "FREE" => Command::Free,
        "CONN_INFO" => Command::ConnInfo,
        "BUS_CREATOR_INFO" => Command::BusCreatorInfo,
        "LIST" => Command::List,
        "SEND" => Command::Send,
        "RECV" => Command::Recv,
        "NAME_ACQUIRE" => Command::NameAcquire,
        "NAME_RELEASE" => Command::NameRelease,
        "MATCH_ADD" => Command::MatchAdd,
        "MATCH_REMOVE" => Command::MatchRemove,
        other => panic!("{other} is no command"),
    }
}

#[test]
fn requests_agree() {
    let file = section("ioctl");
    assert_eq!(file.len(), Command::ALL.len());
    for (name, entry) in &file {
        let entry = entry.as_table().unwrap();
        let command = command(name.strip_prefix("KDBUS_CMD_").unwrap());
        let request = command.request();
        for (key, value) in entry {
            match key.as_str() {
                "request" => assert_eq!(number(value), u64::from(request), "{name}"),
                "nr" => assert_eq!(number(value), u64::from(request & 0xff), "{name}"),
                "size" => {
                    assert_eq!(number(value), u64::from(request >> 16 & 0x3fff), "{name}");
                    assert_eq!(number(value), command.shape().size as u64, "{name}");
                }
                "dir" => {
                    let dir = ["IO", "IOW", "IOR", "IOWR"][request as usize >> 30];
                    assert_eq!(value.as_str(), Some(dir), "{name}");
                }
                "arg" => {
                    let size = number(&section("struct")[value.as_str().unwrap()]["size"]);
                    assert_eq!(size, command.shape().size as u64, "{name}");
                }
                // Which handle takes the command is a rule of the bus, not of its records.
                "handle" => assert!(!value.as_str().unwrap().is_empty()),
                other => panic!("{other} of {name} is not checked"),
            }
        }
        assert_eq!(Command::from_request(request), Some(command));
        assert_eq!(Command::from_request(request ^ 1 << 16), None, "{name} with another size");
    }
}

/// One field of a record: the header's name, and our offset, size and type.
struct Field {
    name: &'static str,
    offset: usize,
    size: usize,
    kind: &'static str,
}

const fn field_size<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

fn field_type<T, F>(_: fn(&T) -> &F) -> &'static str {
    type_name::<F>()
}

/// Our layout of a record, by the header's field names; `=> field` where ours has another name.
macro_rules! layout {
    ($record:ident { $($name:ident $(=> $ours:ident)?),* } $($flexible:ident)?) => {{
        let mut fields = Vec::new();
        $(layout!(@field fields $record $name $($ours)?);)*
        $(fields.push(Field { name: stringify!($flexible), offset: size_of::<$record>(), size: 0, kind: "" });)?
        (size_of::<$record>(), fields)
    }};
    (@field $fields:ident $record:ident $name:ident) => { layout!(@field $fields $record $name $name); };
    (@field $fields:ident $record:ident $name:ident $ours:ident) => {
        $fields.push(Field {
            name: stringify!($name),
            offset: offset_of!($record, $ours),
            size: field_size(|record: &$record| &record.$ours),
            kind: field_type(|record: &$record| &record.$ours),
        });
    };
}

fn layout(name: &str) -> Option<(usize, Vec<Field>)> {
    Some(match name {
        "kdbus_notify_id_change" => layout!(IdChange { id, flags }),
        "kdbus_creds" => layout!(Creds { uid, euid, suid, fsuid, gid, egid, sgid, fsgid }),
        "kdbus_pids" => layout!(Pids { pid, tid, ppid }),
        "kdbus_caps" => layout!(Caps { last_cap } caps),
        "kdbus_audit" => layout!(Audit { sessionid, loginuid }),
        "kdbus_timestamp" => layout!(Timestamp { seqnum, monotonic_ns, realtime_ns }),
        "kdbus_vec" => layout!(Vec_ { size, address, offset => address }),
        "kdbus_bloom_parameter" => layout!(BloomParameter { size, n_hash }),
        "kdbus_memfd" => layout!(Memfd { start, size, fd, __pad => pad }),
        "kdbus_policy_access" => layout!(PolicyAccess { type => kind, access, id }),
        "kdbus_msg" => layout!(Msg {
            size, flags, priority, dst_id, src_id, payload_type, cookie,
            timeout_ns => timeout_or_reply, cookie_reply => timeout_or_reply
        } items),
        "kdbus_msg_info" => layout!(MsgInfo { offset, msg_size, return_flags }),
        "kdbus_cmd_send" => layout!(CmdSend { size, flags, return_flags, msg_address, reply } items),
        "kdbus_cmd_recv" => {
            layout!(CmdRecv { size, flags, return_flags, priority, dropped_msgs, msg } items)
        }
        "kdbus_cmd_free" => layout!(CmdFree { size, flags, return_flags, offset } items),
        "kdbus_cmd_hello" => layout!(CmdHello {
            size, flags, return_flags, attach_flags_send, attach_flags_recv, bus_flags, id, pool_size, offset,
            items_size, id128
        } items),
        "kdbus_info" => layout!(Info { size, id, flags } items),
        "kdbus_cmd_list" => layout!(CmdList { size, flags, return_flags, offset, list_size } items),
        "kdbus_cmd_info" => {
            layout!(CmdInfo { size, flags, return_flags, id, attach_flags, offset, info_size } items)
        }
        "kdbus_cmd_match" => layout!(CmdMatch { size, flags, return_flags, cookie } items),
        "kdbus_cmd" => layout!(Cmd { size, flags, return_flags } items),
        _ => return None,
    })
}

type Vec_ = kdbus_core::abi::Vec;
type Vec<T> = std::vec::Vec<T>;

#[test]
fn records_agree() {
    let file = section("struct");
    let mut seen = 0;
    for (name, entry) in &file {
        let entry = entry.as_table().unwrap();
        assert!(entry.keys().all(|key| ["size", "align", "fields"].contains(&key.as_str())), "{name}");
        // Items and commands start at multiples of this, so every record in them does.
        assert_eq!(number(&entry["align"]), align8(1), "{name}");
        let Some((size, ours)) = layout(name) else { continue };
        seen += 1;
        // The header pads the one record that is no multiple of its alignment.
        assert_eq!(number(&entry["size"]), align8(size as u64), "{name}");
        let fields = entry["fields"].as_array().unwrap();
        assert_eq!(fields.len(), ours.len(), "{name} has a field that is not checked");
        for (field, ours) in fields.iter().zip(&ours) {
            let field = field.as_table().unwrap();
            let what = format!("{name}.{}", ours.name);
            assert_eq!(text(field, "name"), ours.name);
            assert_eq!(number(&field["offset"]), ours.offset as u64, "{what}");
            assert_eq!(number(&field["size"]), ours.size as u64, "{what}");
            match text(field, "type") {
                scalar @ ("u64" | "i64" | "u32" | "i32") => assert_eq!(scalar, ours.kind, "{what}"),
                "u8[16]" => assert_eq!(ours.kind, "[u8; 16]", "{what}"),
                flexible if flexible.ends_with("[]") => assert_eq!(ours.size, 0, "{what}"),
                record => assert_eq!(number(&file[record]["size"]), ours.size as u64, "{what}"),
            }
            assert_eq!(field.len(), 4, "{what}");
        }
    }
    assert_eq!(seen + ["item", "name", "bloom_filter", "notify_name_change"].len(), file.len());
}

fn field(record: &str, name: &str) -> u64 {
    let file = section("struct");
    let fields = file[record]["fields"].as_array().unwrap().clone();
    number(&fields.iter().find(|field| field["name"].as_str() == Some(name)).unwrap()["offset"])
}

/// The records that the crate reads and writes without a type of their own.
#[test]
fn records_with_text_behind_them_agree() {
    fn item(kind: ItemType, payload: &[u8]) -> Item<'_> {
        Item { kind, payload, at: 0 }
    }
    let mut payload = [0_u8; 40];

    payload[field("kdbus_name", "flags") as usize] = 0x20;
    payload[field("kdbus_name", "name") as usize] = b'n';
    let name = item(ItemType::OWNED_NAME, &payload[..10]);
    assert_eq!(name.owned_name(), Some((NameFlags::PRIMARY, "n")));

    payload = [0; 40];
    payload[field("kdbus_bloom_filter", "generation") as usize] = 3;
    payload[field("kdbus_bloom_filter", "data") as usize] = 7;
    let filter = item(ItemType::BLOOM_FILTER, &payload[..16]);
    assert_eq!(filter.bloom_filter(), Some((3, &[7, 0, 0, 0, 0, 0, 0, 0][..])));

    payload = [0; 40];
    let (old, new) =
        (field("kdbus_notify_name_change", "old_id"), field("kdbus_notify_name_change", "new_id"));
    payload[old as usize] = 5;
    payload[new as usize] = 6;
    payload[field("kdbus_notify_name_change", "name") as usize] = b'n';
    let change = item(ItemType::NAME_ADD, &payload[..34]).name_change().unwrap();
    assert_eq!((change.0.id, change.1.id, change.2), (5, 6, &b"n"[..]));

    let file = section("struct");
    for (record, size, fields) in
        [("kdbus_name", 8, 2), ("kdbus_bloom_filter", 8, 2), ("kdbus_notify_name_change", 32, 3)]
    {
        assert_eq!(number(&file[record]["size"]), size);
        assert_eq!(file[record]["fields"].as_array().unwrap().len(), fields);
    }
}

#[test]
fn the_item_header_agrees() {
    let mut buffer = [0; 64];
    let mut items = ItemWriter::new(&mut buffer);
    items.record(ItemType::ID, &0x55_u64).unwrap();
    let at = |name: &str| buffer[field("kdbus_item", name) as usize];
    assert_eq!((at("size"), at("type"), at("data64")), (24, 0xe, 0x55));
    let file = section("struct");
    let mut largest = 0;
    for field in file["kdbus_item"]["fields"].as_array().unwrap() {
        let (name, kind) = (field["name"].as_str().unwrap(), field["type"].as_str().unwrap());
        if name == "size" || name == "type" {
            continue;
        }
        assert_eq!(number(&field["offset"]), ITEM_HEADER as u64, "{name}");
        let size = match kind {
            "u64" => 8,
            flexible if flexible.ends_with("[]") => 0,
            record => number(&file[record]["size"]),
        };
        assert_eq!(number(&field["size"]), size, "{name}");
        largest = largest.max(size);
    }
    assert_eq!(number(&file["kdbus_item"]["size"]), ITEM_HEADER as u64 + largest);
}

/// Whether a command that takes the item would pass this payload.
fn passes(kind: ItemType, payload: &[u8]) -> bool {
    Item { kind, payload, at: 0 }.check().is_ok()
}

/// Lengths that a rule about sizes accepts, of those up to 80, with a payload of ones.
fn lengths(kind: ItemType) -> Vec<usize> {
    (0..=80).filter(|len| passes(kind, &vec![1; *len])).collect()
}

fn lengths_by(rule: impl Fn(usize) -> bool) -> Vec<usize> {
    (0..=80).filter(|len| rule(*len)).collect()
}

/// Checks what the crate accepts against the rule as the file words it.
fn check_rule(kind: ItemType, rule: &str) {
    let exactly = |n| assert_eq!(lengths(kind), [n], "{kind:?}");
    match rule {
        "multiple of 4" => assert_eq!(lengths(kind), lengths_by(|len| len.is_multiple_of(4)), "{kind:?}"),
        "multiple of 8" => assert_eq!(lengths(kind), lengths_by(|len| len.is_multiple_of(8)), "{kind:?}"),
        "exactly 4" => exactly(4),
        "exactly 8" => exactly(8),
        "exactly 16" => exactly(16),
        "exactly 24" | "NOT CHECKED by the module; treat as exactly 24" => exactly(24),
        "exactly 64" => exactly(64),
        "exactly 16; vec.size != 0" => {
            exactly(16);
            assert!(!passes(kind, &[0; 16]));
        }
        "exactly 24; size != 0; fd >= 0 (else EBADF)" => {
            exactly(24);
            assert!(!passes(kind, &[0; 24]));
            let mut payload = [1; 24];
            payload[16..20].fill(0xff);
            let error = Item { kind, payload: &payload, at: 0 }.check().unwrap_err();
            assert_eq!(error.errno(), Errno::EBADF);
        }
        "at least 8" => assert_eq!(lengths(kind), lengths_by(|len| len >= 8), "{kind:?}"),
        "any (checked by MATCH_ADD)" => assert_eq!(lengths(kind), lengths_by(|_| true), "{kind:?}"),
        "C string filling the payload" => {
            for (payload, good) in
                [(&b"a\0"[..], true), (b"\0", true), (b"", false), (b"a", false), (b"a\0b\0", false)]
            {
                assert_eq!(passes(kind, payload), good, "{kind:?} {payload:?}");
            }
        }
        "node name rules, 2..64 bytes with NUL" => {
            let long = |len| [vec![b'a'; len], vec![0]].concat();
            for (payload, good) in [
                (&b"a\0"[..], true),
                (&long(63), true),
                (&long(64), false),
                (b"\0", false),
                (b"-a\0", false),
                (b"a", false),
            ] {
                assert_eq!(passes(kind, payload), good, "{kind:?} {payload:?}");
            }
        }
        ">= 32; rest, if any, a C string" => {
            let with = |rest: &[u8]| [&[0; 32], rest].concat();
            assert_eq!(lengths(kind), [32], "{kind:?}");
            for (payload, good) in [(with(b"a\0"), true), (with(b"\0"), true), (with(b"a\0b"), false)] {
                assert_eq!(passes(kind, &payload), good, "{kind:?} {payload:?}");
            }
        }
        other => panic!("the rule of {kind:?} is not checked: {other}"),
    }
}

#[test]
fn item_rules_agree() {
    let file = section("item");
    assert_eq!(file.len(), ItemType::ALL.len());
    for (name, entry) in &file {
        let entry = entry.as_table().unwrap();
        let (kind, _) =
            ItemType::ALL.iter().find(|(_, ours)| name.strip_prefix("KDBUS_ITEM_") == Some(ours)).unwrap();
        for key in entry.keys() {
            let known = ["type", "payload", "input_check", "accepted_by", "emitted_in"];
            assert!(known.contains(&key.as_str()), "{key} of {name} is not checked");
        }
        assert_eq!(number(&entry["type"]), kind.0, "{name}");
        check_payload(*kind, text(entry, "payload"));
        check_acceptance(*kind, text(entry, "accepted_by"));
        if text(entry, "accepted_by") != "never accepted" {
            check_rule(*kind, text(entry, "input_check"));
        }
        // Where the bus writes an item is its own affair; that it writes what is never accepted is not.
        let emitted = text(entry, "emitted_in");
        assert!(emitted != "no" || text(entry, "accepted_by") != "never accepted", "{name} is of no use");
    }
}

/// The payload is text, an array, or a record that the file describes.
fn check_payload(kind: ItemType, payload: &str) {
    let payload = payload.trim_end_matches("[]");
    let is_record = section("struct").contains_key(payload);
    assert!(is_record || ["u64", "i32", "u8", "char", "none"].contains(&payload), "{kind:?}: {payload}");
}

/// Compares who accepts an item, and how often, with what the file says in words.
fn check_acceptance(kind: ItemType, accepted_by: &str) {
    if accepted_by == "every command" {
        let mut shapes = Command::ALL.iter().map(|command| command.shape()).chain([&MESSAGE]);
        assert!(shapes.all(|shape| shape.arity(kind) == Some(Arity::Optional)));
        return;
    }
    let arity = [("repeatable", Arity::Repeated), ("mandatory", Arity::Mandatory), ("once", Arity::Optional)]
        .into_iter()
        .find(|(word, _)| accepted_by.contains(word))
        .map(|(_, arity)| arity);
    let mut by_message = accepted_by.contains("SEND message");
    let accepted_by = accepted_by.replace("SEND message", "");
    let words = accepted_by.split(|c: char| !c.is_ascii_uppercase() && c != '_');
    let commands: Vec<Command> = words.filter(|word| word.len() > 2).map(command).collect();
    for ours in Command::ALL {
        let accepted = ours.shape().arity(kind);
        assert_eq!(accepted.is_some(), commands.contains(ours), "{kind:?} in {ours:?}");
        assert!(accepted.is_none() || arity.is_none() || accepted == arity, "{kind:?} in {ours:?}");
    }
    if by_message {
        by_message = MESSAGE.arity(kind).is_some();
        assert_eq!(MESSAGE.arity(kind), arity, "{kind:?} in a message");
    }
    assert_eq!(MESSAGE.arity(kind).is_some(), by_message, "{kind:?} in a message");
}
