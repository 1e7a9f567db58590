//! The real tool against a real daemon, each test with a bus of its own.

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Bus, STUCK, name};
use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Connection, Deadline, ErrorReply, Hello};
use kdbus_linux::local::{Environment, Options};
use serde_json::{Value, json};

#[test]
fn list_shows_processes_with_the_names_they_own_and_wait_for() {
    let bus = Bus::start();
    let mixer = bus.connect("mixer");
    mixer.acquire(name("org.example.Mixer"), NameFlags::ALLOW_REPLACEMENT).unwrap();
    let spare = bus.connect("spare");
    spare.acquire(name("org.example.Mixer"), NameFlags::QUEUE).unwrap();
    spare.acquire(name("org.example.Alone"), NameFlags::empty()).unwrap();
    let nameless = bus.connect("nameless");

    let listed = bus.json(&["list"]);
    let pid = std::process::id();
    let expected = [
        (
            mixer.id(),
            "mixer",
            json!([{ "name": "org.example.Mixer", "state": "owner", "allow_replacement": true }]),
        ),
        (
            spare.id(),
            "spare",
            json!([
                { "name": "org.example.Alone", "state": "owner", "allow_replacement": false },
                { "name": "org.example.Mixer", "state": "queued", "allow_replacement": false },
            ]),
        ),
        (nameless.id(), "nameless", json!([])),
    ];
    let connections = listed["connections"].as_array().unwrap();
    assert_eq!(connections.len(), expected.len(), "{listed}");
    for (entry, (id, description, names)) in connections.iter().zip(expected) {
        assert_eq!(entry["id"], id);
        assert_eq!(entry["pid"], pid);
        assert_eq!(entry["uid"], rustix::process::getuid().as_raw());
        assert_eq!(entry["description"], description);
        assert_eq!(entry["kind"], "ordinary");
        assert_eq!(entry["names"], names);
    }
    let process = std::fs::read_to_string("/proc/self/comm").unwrap();
    assert_eq!(connections[0]["process"], process.trim_end());

    let text = bus.text(&["list"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert!(lines[0].starts_with("ID"), "{text}");
    assert!(lines[1].starts_with(&format!(":1.{} ", mixer.id())), "{text}");
    assert!(lines[2].ends_with("org.example.Alone (owner), org.example.Mixer (queued)"), "{text}");
}

#[test]
fn list_filters_by_how_names_are_held() {
    let bus = Bus::start();
    let owner = bus.connect("owner");
    owner.acquire(name("a.b"), NameFlags::empty()).unwrap();
    let waiting = bus.connect("waiting");
    waiting.acquire(name("a.b"), NameFlags::QUEUE).unwrap();
    let nameless = bus.connect("nameless");
    let root = bus.root().as_os_str().as_encoded_bytes();
    let environment = Environment::current().with_root(root).unwrap();
    let transport = Options::new().environment(environment).connect(&Bus::name()).unwrap();
    let activator = Connection::hello(transport, &Hello::new().activator(name("c.d"))).unwrap();
    let ids = |filter: &str| {
        let listed = bus.json(&["list", filter]);
        let ids = listed["connections"].as_array().unwrap().iter().map(|entry| entry["id"].as_u64().unwrap());
        ids.collect::<Vec<_>>()
    };
    assert_eq!(ids("--names"), [owner.id()]);
    assert_eq!(ids("--queued"), [waiting.id()]);
    assert_eq!(ids("--unique"), [nameless.id()]);
    assert_eq!(ids("--activators"), [activator.id()]);
}

#[test]
fn info_tells_of_a_connection_by_name_and_by_id() {
    let bus = Bus::start();
    let mixer = bus.connect("mixer");
    mixer.acquire(name("org.example.Mixer"), NameFlags::empty()).unwrap();
    let by_name = bus.json(&["info", "org.example.Mixer"]);
    assert_eq!(by_name, bus.json(&["info", &mixer.id().to_string()]));
    assert_eq!(by_name, bus.json(&["info", &format!(":1.{}", mixer.id())]));
    assert_eq!(by_name["id"], mixer.id());
    assert_eq!(by_name["description"], "mixer");
    assert_eq!(by_name["pids"]["pid"], std::process::id());
    assert_eq!(by_name["creds"]["uid"], rustix::process::getuid().as_raw());
    assert_eq!(by_name["names"], json!([{ "name": "org.example.Mixer", "allow_replacement": false }]));
    assert_eq!(by_name["executable"], std::env::current_exe().unwrap().to_str().unwrap());
    assert!(bus.text(&["info", "org.example.Mixer"]).contains("description"));

    let (code, text) = bus.failure(&["info", "org.example.Nobody"]);
    assert_eq!(code, 4);
    assert!(text.starts_with("kdbusctl: org.example.Nobody: nobody owns the name"), "{text}");
    assert_eq!(bus.failure(&["info", ":1.99"]).0, 4);
}

#[test]
fn bus_tells_who_made_it_and_how_it_filters() {
    let bus = Bus::start();
    let connection = bus.connect("observer");
    let about = bus.json(&["bus"]);
    assert_eq!(about["name"], Bus::name());
    assert_eq!(about["bloom"]["bytes"], connection.bus().bloom.size);
    assert_eq!(about["bloom"]["hashes"], connection.bus().bloom.n_hash);
    assert_eq!(about["creator"]["creds"]["uid"], rustix::process::geteuid().as_raw());
    let id128 = connection.bus().id128.map(|byte| format!("{byte:02x}")).concat();
    assert_eq!(about["id128"], id128);
    assert!(bus.text(&["bus"]).contains(&id128));
}

#[test]
fn call_prints_the_answer_of_whoever_owns_the_name() {
    let bus = Bus::start();
    let mut echo = bus.background(&["own", "org.example.Echo", "--echo"]);
    assert!(echo.line().starts_with("org.example.Echo is owned by :1."));
    assert_eq!(bus.text(&["call", "org.example.Echo", "good morning"]), "good morning\n");
    assert!(echo.line().ends_with(": good morning"));
    assert_eq!(bus.text(&["call", "org.example.Echo", "--hex", "00ff"]), "00ff\n");
    assert!(echo.line().ends_with(": 00ff"));
    let answer = bus.json(&["call", "org.example.Echo", "x"]);
    assert_eq!(answer["payload"], json!({ "bytes": 1, "hex": "78", "text": "x" }));
    // By id, and more than a packet holds, from standard input.
    let id = answer["sender"].as_u64().unwrap().to_string();
    let mut call = bus.command(&["call", &id, "-"]).stdin(Stdio::piped()).spawn().unwrap();
    let long = "0123456789abcdef".repeat(20_000);
    call.stdin.take().unwrap().write_all(long.as_bytes()).unwrap();
    let output = call.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end().len(), long.len());
}

#[test]
fn scripts_can_tell_how_a_call_failed() {
    let bus = Bus::start();
    assert_eq!(bus.failure(&["call", "org.example.Nobody"]).0, 4);
    assert_eq!(bus.failure(&["call", "nobody"]).0, 2);
    let service = bus.connect("service");
    service.acquire(name("org.example.Service"), NameFlags::empty()).unwrap();
    // Nobody receives: the deadline passes.
    let (code, text) = bus.failure(&["call", "org.example.Service", "--timeout", "20ms"]);
    assert_eq!(code, 6);
    assert_eq!(text, "kdbusctl: call to org.example.Service: no answer came until the deadline\n");
    assert!(service.drop_next().unwrap());

    let refused = bus.command(&["--json", "call", "org.example.Service", "9"]).spawn().unwrap();
    let call = service.recv_blocking(Deadline::Never).unwrap();
    service.reply_error(call.reply_to(), &ErrorReply::new(ErrorReply::NOT_FOUND, "no channel 9")).unwrap();
    drop(call);
    let output = refused.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(7));
    let told: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["error"], json!({ "code": ErrorReply::NOT_FOUND, "text": "no channel 9" }));
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(told["exit"], 7);

    let abandoned = bus.command(&["call", "org.example.Service"]).spawn().unwrap();
    drop(service.recv_blocking(Deadline::Never).unwrap());
    drop(service);
    assert_eq!(abandoned.wait_with_output().unwrap().status.code(), Some(8));
}

#[test]
fn no_bus_is_an_error_that_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_kdbusctl"))
        .args(["--bus", "0-system", "list", "--root"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("start it with `kdbusd`"), "{text}");
}

#[test]
fn send_reaches_a_receiver_with_its_priority() {
    let bus = Bus::start();
    let receiver = bus.connect("receiver");
    let sent = bus.json(&["send", &receiver.id().to_string(), "now", "--priority", "-7"]);
    let message = receiver.recv_blocking(Duration::from_secs(60)).unwrap();
    assert_eq!((message.payload(), message.priority()), (&b"now"[..], -7));
    assert_eq!(
        (sent["id"].as_u64(), sent["cookie"].as_u64()),
        (Some(message.sender()), Some(message.cookie()))
    );
}

#[test]
fn listen_prints_the_signals_of_its_topics_and_no_others() {
    let bus = Bus::start();
    let mut all = bus.background(&["--json", "listen", "org.example.*", "--count", "2", "--timeout", STUCK]);
    let mut one = bus.background(&["listen", "org.example.Mixer.level", "--count", "1", "--timeout", STUCK]);
    assert_eq!(all.json()["listening"], "org.example.*");
    assert!(one.line().starts_with("listening to org.example.Mixer.level"));
    bus.text(&["signal", "net.example.Other", "nothing"]);
    bus.text(&["signal", "org.example.Mixer.mute", "on"]);
    bus.text(&["signal", "org.example.Mixer.level", "7"]);
    assert_eq!(all.json()["payload"]["text"], "on");
    assert_eq!(all.json()["payload"]["text"], "7");
    assert!(one.line().ends_with(" 7"));
    assert_eq!((all.exit_code(), one.exit_code()), (0, 0));
    assert_eq!(bus.failure(&["listen", "org.example.*", "--timeout", "10ms"]).0, 6);
}

#[test]
fn wait_ends_when_the_name_has_an_owner() {
    let bus = Bus::start();
    let (code, text) = bus.failure(&["wait", "org.example.Late", "--timeout", "10ms"]);
    assert_eq!(code, 6);
    assert!(text.starts_with("kdbusctl: waiting for org.example.Late"), "{text}");
    let mut wait = bus.background(&["wait", "org.example.Late", "--timeout", STUCK]);
    let owner = bus.connect("late");
    owner.acquire(name("org.example.Late"), NameFlags::empty()).unwrap();
    assert_eq!(wait.line(), format!(":1.{}", owner.id()));
    assert_eq!(wait.exit_code(), 0);
    assert_eq!(bus.json(&["wait", "org.example.Late"])["owner"], owner.id());
}

#[test]
fn own_follows_a_name_from_hand_to_hand() {
    let bus = Bus::start();
    let mut first = bus.background(&["--json", "own", "a.b", "--allow-replacement", "--queue"]);
    let first_id = first.json()["id"].clone();
    let mut waiting = bus.background(&["--json", "own", "a.b", "--queue", "--count", "1"]);
    let queued = waiting.json();
    assert_eq!(queued["state"], "queued");
    assert_eq!(bus.failure(&["own", "a.b"]).0, 5);

    // Replaced, the first one is the next in the queue.
    let second = bus.connect("second");
    second.acquire(name("a.b"), NameFlags::REPLACE_EXISTING).unwrap();
    assert_eq!(first.json()["owner"], second.id());
    assert_eq!(waiting.json()["owner"], second.id());
    drop(second);
    assert_eq!(first.json()["owner"], first_id);
    assert_eq!(waiting.json()["owner"], first_id);
    drop(first);
    assert_eq!(waiting.json()["owner"], queued["id"]);
    bus.text(&["send", "a.b", "last"]);
    assert_eq!(waiting.json()["payload"]["text"], "last");
    assert_eq!(waiting.exit_code(), 0);
}

#[test]
fn numbers_come_from_the_bus_and_name_who_holds_what() {
    let bus = Bus::start();
    let receiver = bus.connect("receiver");
    let sender = bus.connect("sender");
    for _ in 0..3 {
        sender.send(&kdbus_core::client::Message::to(receiver.id()).payload(b"wait")).unwrap();
    }

    let id = receiver.id().to_string();
    let stats = bus.json(&["stats", "--interval", "0", &id]);
    let row = &stats["connections"][0];
    assert_eq!((&row["queued"], &row["received"], &row["sent"]), (&json!(3), &json!(3), &json!(0)));
    assert!(row["pool_used"].as_u64().unwrap() > 0 && row["sent_per_second"].is_null());
    let everybody = bus.json(&["stats", "--interval", "20ms"]);
    let sent =
        everybody["connections"].as_array().unwrap().iter().find(|row| row["who"] == "sender").unwrap();
    assert_eq!((&sent["sent"], &sent["sent_per_second"]), (&json!(3), &json!(0.0)));

    let quota = bus.json(&["quota", &id]);
    let holder = &quota["connections"][0]["holders"][0];
    assert_eq!((&holder["messages"], &holder["fds"]), (&json!(3), &json!(0)));
    assert_eq!(holder["uid"], json!(rustix::process::geteuid().as_raw()));
    while receiver.drop_next().unwrap() {}
    assert_eq!(bus.json(&["quota", &id])["connections"][0]["holders"], json!([]));
    assert!(bus.text(&["stats", "--interval", "0"]).contains("QUEUE"));
    assert!(bus.text(&["quota"]).contains("nobody"));
}

#[test]
fn messages_are_received_without_an_answer() {
    let bus = Bus::start();
    let mut receiving =
        bus.background(&["--json", "recv", "org.example.Ear", "--count", "1", "--timeout", STUCK]);
    let first: Value = serde_json::from_str(&receiving.line()).unwrap();
    assert_eq!(first["receiving"], "org.example.Ear");
    bus.text(&["send", "org.example.Ear", "hello"]);
    let message: Value = serde_json::from_str(&receiving.line()).unwrap();
    assert_eq!((&message["kind"], &message["payload"]["text"]), (&json!("message"), &json!("hello")));
}

#[test]
fn status_is_another_word_for_info() {
    let bus = Bus::start();
    let peer = bus.connect("somebody");
    let id = peer.id().to_string();
    assert_eq!(bus.json(&["status", &id]), bus.json(&["info", &id]));
}

#[test]
fn shells_can_complete_every_subcommand() {
    let bus = Bus::start();
    for shell in ["bash", "zsh", "fish"] {
        let script = bus.text(&["completions", shell]);
        assert!(script.contains("stats") && script.contains("quota"), "{shell}");
    }
}

#[test]
fn a_service_starts_with_the_first_message_and_again_with_the_next() {
    let bus = Bus::start();
    let tool = env!("CARGO_BIN_EXE_kdbusctl");
    let service = ["--", tool, "own", "org.example.Lazy", "--answer", "awake", "--count", "1"];
    let mut held =
        bus.background(&[&["activate", "org.example.Lazy", "--count", "2"], &service[..]].concat());
    assert!(held.line().contains("is held by"));
    for _ in 0..2 {
        // Called while nobody owns the name: the call waits for the service and is not lost on the way.
        assert_eq!(bus.text(&["call", "org.example.Lazy", "--timeout", STUCK]).trim(), "awake");
    }
    assert_eq!(held.exit_code(), 0);
}

#[test]
fn a_command_that_serves_nobody_is_not_started_for_ever() {
    let bus = Bus::start();
    let held = bus.background(&["activate", "org.example.Broken", "--", "true"]);
    let waits = ["wait", "org.example.Broken", "--timeout", STUCK];
    bus.text(&waits);
    bus.text(&["send", "org.example.Broken", "anybody?"]);
    assert_eq!(held.exit_code(), 1);
}

/// The blocks of a capture: type and body of each.
fn pcapng_blocks(bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
    let word = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut blocks) = (0, Vec::new());
    while at < bytes.len() {
        let len = word(at + 4) as usize;
        assert_eq!(word(at + len - 4) as usize, len, "a block ends with its length");
        blocks.push((word(at), bytes[at + 8..at + len - 4].to_vec()));
        at += len;
    }
    blocks
}

#[test]
fn a_monitor_sees_what_others_say_and_captures_it() {
    let bus = Bus::start();
    let file = bus.root().parent().unwrap().join("traffic.pcapng");
    let receiver = bus.connect("receiver");
    let id = receiver.id().to_string();
    let arguments = ["--json", "monitor", "--to", &id, "--count", "1", "--timeout", STUCK, "--pcap"];
    let mut monitor = bus.background(&[&arguments[..], &[file.to_str().unwrap()]].concat());
    assert!(monitor.json()["monitoring"].as_str().unwrap().ends_with("/bus"));
    bus.text(&["send", &id, "overheard"]);
    let seen = monitor.json();
    assert_eq!((&seen["kind"], &seen["payload"]["text"]), (&json!("message"), &json!("overheard")));
    assert_eq!(seen["destination"], json!(receiver.id()));
    assert!(seen["realtime_ns"].as_u64().unwrap() > 0);
    assert_eq!(monitor.exit_code(), 0);

    let blocks = pcapng_blocks(&std::fs::read(file).unwrap());
    let kinds: Vec<_> = blocks.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6], "section, interface, packet");
    let packet = &blocks[2].1;
    assert!(packet.windows(9).any(|window| window == b"overheard"));
    assert_eq!(packet[12..16], (64_u32 + 9).to_ne_bytes(), "the header of kdbus, then the payload");
}

#[test]
fn an_endpoint_shows_what_its_policy_allows() {
    let bus = Bus::start();
    let seen = bus.background(&["own", "org.example.Seen", "--echo"]);
    let hidden = bus.background(&["own", "org.example.Hidden", "--echo"]);
    for name in ["org.example.Seen", "org.example.Hidden"] {
        bus.text(&["wait", name, "--timeout", STUCK]);
    }
    let rules = ["--allow", "org.example.Seen:talk:world"];
    let mut door = bus.background(&[&["--json", "endpoint", "door"], &rules[..]].concat());
    let endpoint = door.json()["endpoint"].as_str().unwrap().to_owned();

    let node = format!("{}/{endpoint}", Bus::name());
    let through = |arguments: &[&str]| bus.command_at(&node, arguments).output().unwrap();
    assert_eq!(through(&["call", "org.example.Seen", "hi"]).stdout, b"hi\n");
    assert_eq!(through(&["call", "org.example.Hidden", "hi"]).status.code(), Some(5));
    let listed = String::from_utf8(through(&["list"]).stdout).unwrap();
    assert!(listed.contains("org.example.Seen") && !listed.contains("org.example.Hidden"), "{listed}");
    drop(door);
    drop((seen, hidden));
}

#[test]
fn a_match_shows_what_it_lets_through() {
    let bus = Bus::start();
    let mut names =
        bus.background(&["match", "--names", "added", "--name", "a.b", "--count", "1", "--timeout", STUCK]);
    assert!(names.line().starts_with("a match of 1 rules is set as :1."));
    let mut signals =
        bus.background(&["--json", "match", "--topic", "x.y.*", "--count", "1", "--timeout", STUCK]);
    assert_eq!(serde_json::from_str::<Value>(&signals.line()).unwrap()["matching"], 1);
    let owner = bus.connect("owner");
    owner.acquire(WellKnownName::parse("c.d").unwrap(), NameFlags::empty()).unwrap();
    owner.acquire(WellKnownName::parse("a.b").unwrap(), NameFlags::empty()).unwrap();
    assert_eq!(names.line(), format!("name added a.b: nobody -> :1.{}", owner.id()));
    bus.text(&["signal", "x.y.z", "hello"]);
    let signal: Value = serde_json::from_str(&signals.line()).unwrap();
    assert_eq!((&signal["kind"], &signal["payload"]["text"]), (&json!("signal"), &json!("hello")));
    assert_eq!(bus.failure(&["match", "--ids", "added", "--topic", "x.y"]).0, 2);
    assert_eq!(bus.failure(&["match", "--id", "7"]).0, 2);
}

#[test]
fn a_match_for_one_connection_passes_nothing_else() {
    let bus = Bus::start();
    let [watched, other] = ["watched", "other"].map(|name| bus.connect(name));
    let id = format!(":1.{}", watched.id());
    let arguments = ["--json", "match", "--ids", "removed", "--id", &id, "--count", "1", "--timeout", STUCK];
    let mut left = bus.background(&arguments);
    let own = left.json()["id"].to_string();
    drop(other);
    // Sent to whoever matches alone: it passes no match.
    bus.text(&["send", &own, "to you"]);
    let id = watched.id();
    drop(watched);
    let expected = json!({ "announced": "connection removed", "name": null, "old": id, "new": null });
    assert_eq!(left.json(), expected);
    assert_eq!(left.exit_code(), 0);
}
