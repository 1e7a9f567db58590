//! Policy files in the hands of the real tool.

mod common;

use std::process::Output;

use common::{Bus, STUCK};
use serde_json::{Value, json};

#[test]
fn an_endpoint_takes_a_policy_file() {
    let bus = Bus::start();
    let _service = bus.background(&["own", "org.example.Seen", "--echo"]);
    bus.text(&["wait", "org.example.Seen", "--timeout", STUCK]);
    let file = bus.root().parent().unwrap().join("policy.toml");
    std::fs::write(&file, "[[name]]\nname = \"org.example.*\"\nsee = [\"world\"]\n").unwrap();
    let file = file.to_str().unwrap();
    let mut door = bus.background(&["--json", "endpoint", "door", "--policy", file]);
    let made = door.json();
    assert_eq!(made["rules"], 1);
    let node = format!("{}/{}", Bus::name(), made["endpoint"].as_str().unwrap());
    let through = |arguments: &[&str]| bus.command_at(&node, arguments).output().unwrap();
    let listed = String::from_utf8(through(&["list"]).stdout).unwrap();
    assert!(listed.contains("org.example.Seen"), "{listed}");
    assert_eq!(through(&["call", "org.example.Seen", "hi"]).status.code(), Some(5), "seen, and no more");
    std::fs::write(file, "[[name]]\n").unwrap();
    let (code, text) = bus.failure(&["endpoint", "window", "--policy", file]);
    assert!(code == 1 && text.contains("policy.toml:1: the name is missing"), "{text}");
}

#[test]
fn a_policy_file_is_checked_and_shown() {
    let bus = Bus::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let path = file.to_str().unwrap();
    std::fs::write(
        &file,
        "[[name]]\nname = \"a.b\"\nown = [\"user:root\"]\ntalk = [\"group:4000000\"]\n\
         [[name]]\nname = \"a.*\"\nsee = [\"world\"]\n",
    )
    .unwrap();
    assert_eq!(bus.text(&["policy", "check", path]), format!("{path}: 2 names, 3 rules, all well\n"));
    let shown = bus.text(&["policy", "show", path]);
    assert_eq!(
        shown,
        "NAME  OWN        TALK           SEE\na.b   user:root  group:4000000  -\na.*   -          -              world\n"
    );
    let all = bus.json(&["policy", "show", path, "--name", "a.c"]);
    assert_eq!(all, json!({ "names": [{ "name": "a.*", "own": [], "talk": [], "see": ["world"] }] }));
    let root = bus.json(&["policy", "show", path, "--user", "root"]);
    assert_eq!(root["names"], json!([{ "name": "a.b", "may": "own" }, { "name": "a.*", "may": "see" }]));
    let other = bus.json(&["policy", "show", path, "--user", "4000000", "--name", "a.b"]);
    assert_eq!(other["names"], json!([{ "name": "a.b", "may": null }]));
    assert_eq!(bus.failure(&["policy", "show", path, "--name", "b.c"]).0, 4);
    std::fs::write(&file, "[[name]]\nname = \"a.b\"\nown = [\"user:no-such-user\"]\n[[b]]\n").unwrap();
    let wrong = |arguments: &[&str]| {
        let Output { status, stdout, stderr } = bus.run(&[arguments, &[path]].concat());
        assert_eq!((status.code(), stderr.as_slice()), (Some(1), &b""[..]));
        String::from_utf8(stdout).unwrap()
    };
    let text = wrong(&["policy", "check"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 2, "{text}");
    assert!(lines[0].starts_with(&format!("{path}:3: there is no user \"no-such-user\" on this machine; ")));
    let fix = "begin the rules for each name with [[name]]";
    assert_eq!(lines[1], format!("{path}:4: unknown key \"b\"; {fix}"));
    let text = wrong(&["--json", "policy", "check"]);
    let last: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({ "file": path, "line": 4, "what": "unknown key \"b\"", "fix": fix }));
    let (code, text) = bus.failure(&["policy", "show", path]);
    assert!(code == 1 && text.ends_with("(and 1 more; `kdbusctl policy check` tells all)\n"), "{text}");
}
