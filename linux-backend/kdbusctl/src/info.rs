//! `info`: everything about one connection.

use clap::Args;
use kdbus_core::abi::{AttachFlags, NameFlags};
use kdbus_core::client::{Capabilities, Hello, Metadata};
use serde_json::{Map, Value, json};

use crate::bus::{self, Id, Peer};
use crate::failure::Failure;
use crate::list;
use crate::text::{shown, user};
use crate::{Global, output};

/// Arguments of `info`.
#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Well-known name, or unique id (7 or :1.7)
    #[arg(value_name = "NAME|ID")]
    peer: Peer,
}

impl Info {
    pub(crate) fn run(&self, global: &Global) -> Result<(), Failure> {
        let bus = bus::open(global, &Hello::new())?;
        let info = self.peer.info(&bus, AttachFlags::all())?;
        let kind = list::kind(info.flags());
        let metadata = info.metadata();
        if global.json {
            let mut object = Map::new();
            object.insert("id".into(), info.id().into());
            object.insert("kind".into(), kind.into());
            object.extend(values(&metadata));
            return output::line(Value::Object(object));
        }
        let mut rows = vec![("id", Id(info.id()).to_string()), ("kind", kind.into())];
        rows.extend(texts(&metadata));
        output::line(output::sheet(rows))
    }
}

/// What the metadata says, for people: one row for each thing that is there.
pub(crate) fn texts(metadata: &Metadata<'_>) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    let mut add = |key, text: Option<String>| rows.extend(text.map(|text| (key, text)));
    let bytes = |bytes: Option<&[u8]>| bytes.map(shown);
    add("description", metadata.description().map(|text| shown(text.as_bytes())));
    for (flags, name) in metadata.names() {
        let replaceable = if flags.contains(NameFlags::ALLOW_REPLACEMENT) { " (replaceable)" } else { "" };
        add("name", Some(format!("{name}{replaceable}")));
    }
    if let Some(pids) = metadata.pids() {
        add("process", Some(format!("{} (thread {}, parent {})", pids.pid, pids.tid, pids.ppid)));
    }
    add("process name", bytes(metadata.process_name()));
    add("thread name", bytes(metadata.thread_name()));
    add("executable", bytes(metadata.executable()));
    add("command line", bytes(metadata.command_line()));
    if let Some(creds) = metadata.creds() {
        let ids = |ids: [u64; 4]| ids.map(|id| id.to_string()).join(" ");
        add("user", Some(user(creds.uid)));
        add("uids", Some(ids([creds.uid, creds.euid, creds.suid, creds.fsuid])));
        add("gids", Some(ids([creds.gid, creds.egid, creds.sgid, creds.fsgid])));
    }
    add(
        "groups",
        metadata.groups().map(|groups| groups.map(|id| id.to_string()).collect::<Vec<_>>().join(" ")),
    );
    add("control group", bytes(metadata.cgroup()));
    add("security label", bytes(metadata.security_label()));
    add("capabilities", metadata.capabilities().map(|caps| format!("{:#x} effective", caps.effective)));
    add(
        "audit",
        metadata.audit().map(|audit| format!("session {}, login {}", audit.sessionid, audit.loginuid)),
    );
    rows
}

/// What the metadata says, for programs: a member for each thing that is there.
pub(crate) fn values(metadata: &Metadata<'_>) -> Map<String, Value> {
    let mut object = Map::new();
    let mut add = |key: &str, value: Option<Value>| object.extend(value.map(|value| (key.to_owned(), value)));
    let lossy = |bytes: &[u8]| Value::from(String::from_utf8_lossy(bytes));
    add("description", metadata.description().map(Value::from));
    let names = metadata.names().map(|(flags, name)| {
        json!({ "name": name, "allow_replacement": flags.contains(NameFlags::ALLOW_REPLACEMENT) })
    });
    add("names", Some(names.collect()));
    add("pids", metadata.pids().map(|pids| json!({ "pid": pids.pid, "tid": pids.tid, "ppid": pids.ppid })));
    add("process", metadata.process_name().map(lossy));
    add("thread", metadata.thread_name().map(lossy));
    add("executable", metadata.executable().map(lossy));
    add("command_line", metadata.command_line().map(lossy));
    add(
        "creds",
        metadata.creds().map(|creds| {
            json!({
                "user": user(creds.uid),
                "uid": creds.uid, "euid": creds.euid, "suid": creds.suid, "fsuid": creds.fsuid,
                "gid": creds.gid, "egid": creds.egid, "sgid": creds.sgid, "fsgid": creds.fsgid,
            })
        }),
    );
    add("groups", metadata.groups().map(Iterator::collect));
    add("cgroup", metadata.cgroup().map(lossy));
    add("security_label", metadata.security_label().map(lossy));
    add("capabilities", metadata.capabilities().map(capabilities));
    add(
        "audit",
        metadata.audit().map(|audit| json!({ "session": audit.sessionid, "login_uid": audit.loginuid })),
    );
    object
}

fn capabilities(caps: Capabilities) -> Value {
    let Capabilities { last, inheritable, permitted, effective, bounding } = caps;
    json!({
        "last": last,
        "inheritable": format!("{inheritable:#x}"),
        "permitted": format!("{permitted:#x}"),
        "effective": format!("{effective:#x}"),
        "bounding": format!("{bounding:#x}"),
    })
}
