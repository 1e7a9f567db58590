//! `stats --lanes`: which pairs have a lane, and why others have none, by the real tool against a real daemon.

mod common;

use common::{Bus, STUCK, name};
use kdbus_core::NodeName;
use kdbus_core::abi::{AttachFlags, Errno, NameFlags};
use kdbus_core::client::{Connection, Failure, Hello, Message};
use kdbus_linux::local::{Environment, LocalTransport, Options};
use kdbusd::config::Config;
use serde_json::{Value, json};

type Client = Connection<LocalTransport>;

fn client(bus: &Bus, description: &str, lanes: usize, hello: &Hello<'_>) -> Client {
    let root = bus.root().as_os_str().as_encoded_bytes();
    let environment = Environment::current().with_root(root).unwrap();
    let options = Options::new().environment(environment).prefault(false).lanes(lanes);
    let transport = options.connect(&Bus::name()).unwrap();
    Connection::with_capacities(transport, &hello.description(NodeName::parse(description).unwrap())).unwrap()
}

fn plain(bus: &Bus, lanes: usize) -> Client {
    client(bus, "peer", lanes, &Hello::new())
}

/// What the tool says of the messages from one to the other.
fn pair(bus: &Bus, from: u64, to: u64) -> Value {
    let pairs = bus.json(&["stats", "--lanes", &to.to_string()]);
    let rows = pairs["pairs"].as_array().unwrap();
    let found: Vec<_> = rows.iter().filter(|row| row["from"] == from && row["to"] == to).collect();
    assert_eq!(found.len(), 1, "{pairs}");
    found[0].clone()
}

fn reason(bus: &Bus, from: &Client, to: &Client) -> String {
    let row = pair(bus, from.id(), to.id());
    assert_eq!(row["lane"], json!(row["reason"].is_null()));
    row["reason"].as_str().unwrap_or("lane").to_owned()
}

#[test]
fn a_lane_shows_with_what_it_has_carried() {
    let bus = Bus::start();
    let (a, b) = (client(&bus, "speaker", 2, &Hello::new()), client(&bus, "listener", 2, &Hello::new()));
    assert_eq!(reason(&bus, &a, &b), "not-asked");
    a.transport().open_lane(b.id()).unwrap();
    for _ in 0..5 {
        a.send(&Message::to(b.id()).payload(&[7; 100])).unwrap();
    }
    b.try_recv().unwrap().unwrap();
    let row = pair(&bus, a.id(), b.id());
    assert_eq!(
        (&row["lane"], &row["why"], &row["from_who"]),
        (&json!(true), &Value::Null, &json!("speaker"))
    );
    assert_eq!(row["claimed_messages"], 5);
    let (sent, waiting) = (row["claimed_bytes"].as_u64().unwrap(), row["claimed_waiting"].as_u64().unwrap());
    assert!(sent > 500 && sent % 5 == 0 && waiting == sent / 5 * 4, "{row}");
    let back = pair(&bus, b.id(), a.id());
    assert_eq!((&back["lane"], &back["claimed_messages"]), (&json!(false), &Value::Null));

    let text = bus.text(&["stats", "--lanes"]);
    let line = text.lines().find(|line| line.contains("speaker") && line.contains("yes")).unwrap();
    assert_eq!(line.split_whitespace().nth(5), Some("5"), "{text}");
    assert!(text.contains("has not asked for a lane"), "{text}");
}

#[test]
fn who_has_no_lanes_shows_with_whose_they_would_be() {
    let bus = Bus::start();
    let (none, one, more) = (plain(&bus, 0), plain(&bus, 1), plain(&bus, 1));
    assert_eq!(reason(&bus, &one, &none), "none-brought");
    assert_eq!(reason(&bus, &none, &one), "sender-has-none");
    more.transport().open_lane(one.id()).unwrap();
    assert_eq!(reason(&bus, &more, &one), "lane");
    assert_eq!(reason(&bus, &none, &one), "all-taken");
}

#[test]
fn who_has_no_place_for_another_lane_takes_none_from_a_receiver() {
    let bus = Bus::start();
    let (full, first, second, third) = (plain(&bus, 1), plain(&bus, 1), plain(&bus, 1), plain(&bus, 1));
    full.transport().open_lane(first.id()).unwrap();
    for _ in 0..200 {
        full.send(&Message::to(second.id()).payload(b"by the daemon")).unwrap();
        second.try_recv().unwrap().unwrap();
    }
    assert_eq!(reason(&bus, &full, &second), "sender-full");
    first.acquire(name("org.example.First"), NameFlags::empty()).unwrap();
    second.acquire(name("org.example.Second"), NameFlags::empty()).unwrap();
    let refused = Err(Failure::Refused(Errno::ENOBUFS));
    assert_eq!(full.transport().open_lane_to_name(name("org.example.Second")), refused);
    third.transport().open_lane(second.id()).unwrap();
    assert_eq!(reason(&bus, &third, &second), "lane");
    // The lane that it has needs no other place.
    full.transport().open_lane_to_name(name("org.example.First")).unwrap();
    assert_eq!(reason(&bus, &full, &first), "lane");
}

#[test]
fn a_budget_that_is_used_up_shows_by_its_name() {
    type Change = fn(&mut Config);
    let one_lane: [(&str, Change); 4] = [
        ("off", |config| config.capacity.lanes = 0),
        ("budget", |config| config.capacity.lanes = 1),
        ("user-budget", |config| config.capacity.lanes_per_user = 1),
        ("connection-budget", |config| config.capacity.lanes_per_connection = 0),
    ];
    for (expected, change) in one_lane {
        let bus = Bus::with(change);
        let (first, second) = (plain(&bus, 1), plain(&bus, 1));
        assert_eq!(reason(&bus, &first, &second), expected);
    }
}

#[test]
fn what_has_to_be_seen_by_the_daemon_shows_with_the_reason() {
    let bus = Bus::start();
    let (a, b) = (plain(&bus, 2), plain(&bus, 2));
    let curious = client(&bus, "curious", 2, &Hello::new().ask_metadata(AttachFlags::CMDLINE));
    assert_eq!(reason(&bus, &a, &curious), "metadata");

    b.acquire(name("org.example.B"), NameFlags::empty()).unwrap();
    a.transport().open_lane_to_name(name("org.example.B")).unwrap();
    assert_eq!(reason(&bus, &a, &b), "lane");
    b.release(name("org.example.B")).unwrap();
    assert_eq!(reason(&bus, &a, &b), "closed");
    a.transport().open_lane(b.id()).unwrap();
    assert_eq!(reason(&bus, &a, &b), "lane");

    let activator = client(&bus, "activator", 0, &Hello::new().activator(name("org.example.Lazy")));
    assert_eq!(reason(&bus, &a, &activator), "special");
    assert_eq!(reason(&bus, &b, &a), "not-asked");
    a.acquire(name("org.example.Lazy"), NameFlags::empty()).unwrap();
    assert_eq!(reason(&bus, &b, &a), "activator");

    let mut monitor = bus.background(&["--json", "monitor", "--timeout", STUCK]);
    monitor.json();
    assert_eq!(reason(&bus, &a, &b), "monitored");
    drop(monitor);
}

#[test]
fn peers_on_another_endpoint_show_with_it() {
    let bus = Bus::start();
    let a = plain(&bus, 2);
    let mut door = bus.background(&["--json", "endpoint", "door", "--access", "world"]);
    let endpoint = door.json();
    let endpoint = endpoint["endpoint"].as_str().unwrap();
    let root = bus.root().as_os_str().as_encoded_bytes();
    let options = Options::new().environment(Environment::current().with_root(root).unwrap());
    let transport = options.prefault(false).connect(&format!("{}/{endpoint}", Bus::name())).unwrap();
    let outside: Client = Connection::hello(transport, &Hello::new()).unwrap();
    assert_eq!(reason(&bus, &a, &outside), "endpoint");
    assert_eq!(reason(&bus, &outside, &a), "endpoint");
}

#[test]
fn the_tool_itself_takes_no_lane_from_anybody() {
    let bus = Bus::with(|config| config.capacity.lanes_per_user = 2);
    let a = plain(&bus, 1);
    let mut own = bus.background(&["--json", "recv", "org.example.Ear", "--count", "1", "--timeout", STUCK]);
    own.json();
    let b = plain(&bus, 1);
    assert_eq!(reason(&bus, &a, &b), "not-asked");
    bus.text(&["send", "org.example.Ear", "enough"]);
    assert_eq!(own.exit_code(), 0);
}
