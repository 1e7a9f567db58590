//! The daemon's program with a policy file, and clients of several users.
//!
//! This file has a `main` of its own, because it is the clients' program too.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, Stdio};

use kdbus_core::abi::NameFlags;
use kdbus_core::client::{AcquireError, Connection, Hello, Message, SendError};
use kdbus_core::{PolicyName, WellKnownName};
use kdbus_linux::local::LocalTransport;
use kdbus_policy::{Level, Policy, Subject};

/// What the daemon says of a file that it has taken.
const READ: &str = "kdbusd: info: bus 0-system: its policy was read again";

/// A test; its error is the reason why it cannot be tried here.
type Test = fn() -> Result<(), String>;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "client") {
        return client(&arguments[2]);
    }
    // As the usual harness: a word on the command line chooses.
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    let tests: &[(&str, Test)] = &[
        ("whoever_the_file_names_may_own_and_the_others_may_not", owning),
        ("whoever_the_file_names_may_talk_and_the_others_may_not", talking),
        ("a_user_known_by_name_is_found", by_name),
        ("what_the_file_says_is_what_the_bus_does", says_what_is_done),
        ("a_signal_has_the_file_read_again", reload),
        ("a_broken_file_changes_nothing", broken_reload),
        ("a_name_that_a_policy_holder_has_keeps_the_file_out", held_reload),
        ("names_that_stay_are_in_nobodys_way", many_names),
        ("a_file_without_room_changes_nothing", full_reload),
        ("each_bus_has_a_file_of_its_own", two_buses),
        ("a_wrong_file_keeps_the_daemon_from_starting", wrong_start),
    ];
    for (name, test) in tests {
        if wanted.is_none_or(|wanted| name.contains(wanted.as_str())) {
            match test() {
                Ok(()) => println!("test {name} ... ok"),
                Err(reason) => println!("test {name} ... skipped: {reason}"),
            }
        }
    }
}

/// The clients' program: does on the bus at `path` what the lines of its input say, and how each went.
fn client(path: &str) {
    let bus: common::Client =
        Connection::with_capacities(LocalTransport::connect(path).unwrap(), &Hello::new()).unwrap();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let (what, name) = line.split_once(' ').unwrap();
        let name = WellKnownName::parse(name).unwrap();
        let went = match what {
            "own" => match bus.acquire(name, NameFlags::empty()) {
                Ok(_) => "done".into(),
                Err(AcquireError::Denied) => "denied".into(),
                Err(error) => error.to_string(),
            },
            "release" => bus.release(name).map_or_else(|error| error.to_string(), |()| "done".into()),
            "say" => match bus.send(&Message::to_name(name).payload(b"x")) {
                Ok(_) => "done".into(),
                Err(SendError::Denied) => "denied".into(),
                Err(error) => error.to_string(),
            },
            "see" => bus.owner(name).unwrap().map_or("nobody", |_| "done").into(),
            other => format!("cannot {other}"),
        };
        println!("{went}");
    }
}

/// A client in a process of its own, killed when dropped.
struct Client {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Client {
    /// Does one thing and says how it went.
    fn does(&mut self, what: &str) -> String {
        writeln!(self.input, "{what}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's program with a policy file.
struct Program {
    child: Child,
    log: BufReader<ChildStderr>,
    dir: tempfile::TempDir,
}

impl Program {
    /// Starts it with this policy; returns when it serves.
    fn start(policy: &str) -> Self {
        Self::with(policy, "", &[])
    }

    fn with(policy: &str, config: &str, more: &[&str]) -> Self {
        let dir = directory(policy, config);
        Self::of(dir, &[&["--policy", "policy.toml"], more].concat())
    }

    /// Starts it in a directory with its files.
    fn of(dir: tempfile::TempDir, more: &[&str]) -> Self {
        let mut child = command(dir.path()).args(more).stderr(Stdio::piped()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut program = Self { child, log, dir };
        program.logs("serving");
        program
    }

    /// Reads the log up to a line that has this, and returns that line.
    fn logs(&mut self, text: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "the daemon ended before it said {text:?}");
            if line.contains(text) {
                return line.trim_end().to_owned();
            }
        }
    }

    fn policy(&self) -> PathBuf {
        self.dir.path().join("policy.toml")
    }

    /// Puts another policy in place, has it read, and returns what the daemon says of it.
    fn reload(&mut self, policy: &str) -> String {
        std::fs::write(self.policy(), policy).unwrap();
        self.hang_up()
    }

    fn hang_up(&mut self) -> String {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        self.logs("its policy ")
    }

    fn node(&self, bus: &str) -> PathBuf {
        self.dir.path().join("kdbus").join(format!("0-{bus}")).join("bus")
    }

    /// A client of another user, whose group has the same number.
    fn client(&self, uid: u32) -> Client {
        self.client_on("system", uid, uid)
    }

    fn client_on(&self, bus: &str, uid: u32, gid: u32) -> Client {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("client").arg(self.node(bus)).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.uid(uid).gid(gid).current_dir("/").spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Client { child, input, output }
    }

    /// A connection of the owner of the bus.
    fn hello(&self, hello: &Hello<'_>) -> common::Client {
        let node = self.node("system");
        Connection::with_capacities(LocalTransport::connect(node.to_str().unwrap()).unwrap(), hello).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A directory that others can get through, with the two files.
fn directory(policy: &str, config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(dir.path(), open).unwrap();
    std::fs::write(dir.path().join("policy.toml"), policy).unwrap();
    std::fs::write(dir.path().join("kdbusd.toml"), config).unwrap();
    dir
}

fn command(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdbusd"));
    command.current_dir(dir).args(["--config", "kdbusd.toml"]);
    command.arg("--root").arg(dir.join("kdbus"));
    let small = ["capacity.connections=16", "capacity.clients=24", "capacity.queue-depth=64"];
    command.args(small.iter().flat_map(|set| ["--set", set]));
    command
}

fn with_policy(dir: &Path) -> Command {
    let mut command = command(dir);
    command.args(["--policy", "policy.toml"]);
    command
}

fn need_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root for other users".into()) }
}

fn owning() -> Result<(), String> {
    need_root()?;
    let program = Program::start(
        "[[name]]\nname = \"org.example.Camera\"\nown = [\"uid:4242\"]\n\
         [[name]]\nname = \"org.example.*\"\nown = [\"gid:4343\"]\n",
    );
    let (mut camera, mut member) = (program.client(4242), program.client_on("system", 4300, 4343));
    let mut stranger = program.client(4244);
    assert_eq!(stranger.does("own org.example.Camera"), "denied");
    assert_eq!(member.does("own org.example.Camera"), "denied", "its own rule hides the wildcard");
    assert_eq!(camera.does("own org.example.Camera"), "done");
    assert_eq!(camera.does("own org.example.Mixer"), "denied");
    assert_eq!(member.does("own org.example.Mixer"), "done");
    assert_eq!(member.does("own org.example.Mixer.Left"), "denied", "two elements more");
    assert_eq!(member.does("own org.Other"), "denied");
    Ok(())
}

fn talking() -> Result<(), String> {
    need_root()?;
    let program = Program::start(
        "[[name]]\nname = \"org.example.Camera\"\nown = [\"uid:4242\"]\ntalk = [\"uid:4243\", \"gid:4343\"]\n\
         see = [\"world\"]\n",
    );
    let mut camera = program.client(4242);
    assert_eq!(camera.does("own org.example.Camera"), "done");
    let mut talks = program.client(4243);
    let (mut member, mut sees) = (program.client_on("system", 4300, 4343), program.client(4244));
    assert_eq!(talks.does("say org.example.Camera"), "done");
    assert_eq!(member.does("say org.example.Camera"), "done");
    assert_eq!(sees.does("say org.example.Camera"), "denied");
    assert_eq!(talks.does("own org.example.Camera"), "denied");
    // kdbus: on a bus' own endpoint everybody sees every name.
    assert_eq!(sees.does("see org.example.Camera"), "done");
    // The owner of the bus needs no rule, and neither do processes of one user.
    let owner = program.hello(&Hello::new());
    owner.send(&Message::to_name(WellKnownName::parse("org.example.Camera").unwrap())).unwrap();
    assert_eq!(program.client(4242).does("say org.example.Camera"), "done");
    Ok(())
}

fn by_name() -> Result<(), String> {
    need_root()?;
    let user = Subject::of_user("nobody")?;
    let program = Program::start("[[name]]\nname = \"a.b\"\nown = [\"user:nobody\"]\n");
    assert_eq!(program.client(4242).does("own a.b"), "denied");
    assert_eq!(program.client(user.uid).does("own a.b"), "done");
    Ok(())
}

/// What `kdbusctl policy show` answers is asked of a bus.
fn says_what_is_done() -> Result<(), String> {
    need_root()?;
    let text = "[[name]]\nname = \"a.*\"\nown = [\"uid:4242\"]\ntalk = [\"gid:4343\"]\n\
                [[name]]\nname = \"a.b\"\nown = [\"gid:4343\"]\nsee = [\"world\"]\n\
                [[name]]\nname = \"a.none\"\n\
                [[name]]\nname = \"b.c\"\ntalk = [\"world\"]\n";
    let policy = Policy::parse(text).unwrap();
    let program = Program::start(text);
    let names = ["a.b", "a.c", "a.none", "a.b.c", "b.c", "b.d"];
    // One connection for each: talking counts all names of whoever it is to.
    let services: Vec<_> = names.iter().map(|_| program.hello(&Hello::new())).collect();
    let (mut owned, mut talked) = (0, 0);
    for (uid, gid) in [(4242, 4242), (4242, 4343), (4244, 4343), (4244, 4244)] {
        let user = Subject { uid, groups: vec![gid] };
        let mut client = program.client_on("system", uid, gid);
        for (name, service) in names.iter().zip(&services) {
            let access = policy.rules_for(name).and_then(|rules| rules.level(&user));
            let expected = |least| if access >= Some(least) { "done" } else { "denied" };
            assert_eq!(client.does(&format!("own {name}")), expected(Level::Own), "{uid} {gid} {name}");
            if access == Some(Level::Own) {
                assert_eq!(client.does(&format!("release {name}")), "done");
                owned += 1;
            }
            let known = WellKnownName::parse(name).unwrap();
            service.acquire(known, NameFlags::empty()).unwrap();
            assert_eq!(client.does(&format!("say {name}")), expected(Level::Talk), "{uid} {gid} {name}");
            talked += usize::from(access >= Some(Level::Talk));
            service.release(known).unwrap();
        }
    }
    assert_eq!((owned, talked), (4, 9), "both answers were seen");
    Ok(())
}

fn reload() -> Result<(), String> {
    need_root()?;
    let rule = |uid: u32| format!("[[name]]\nname = \"a.b\"\nown = [\"uid:{uid}\"]\n");
    let mut program = Program::start(&rule(4242));
    let (mut first, mut second) = (program.client(4242), program.client(4243));
    assert_eq!((first.does("own a.b"), second.does("own a.b")), ("done".into(), "denied".into()));
    assert_eq!(program.reload(&rule(4243)), READ);
    // Whoever has a name keeps it until it is released; then the new rule counts.
    assert_eq!(first.does("see a.b"), "done");
    assert_eq!(second.does("say a.b"), "done", "whoever may own may talk");
    assert_eq!(first.does("release a.b"), "done");
    assert_eq!((first.does("own a.b"), second.does("own a.b")), ("denied".into(), "done".into()));
    // An empty file takes everything away.
    assert_eq!(program.reload(""), READ);
    assert_eq!((second.does("release a.b"), second.does("own a.b")), ("done".into(), "denied".into()));
    Ok(())
}

fn broken_reload() -> Result<(), String> {
    need_root()?;
    let good = "[[name]]\nname = \"a.b\"\nown = [\"uid:4242\"]\n";
    let mut program = Program::start(good);
    let (mut client, mut stranger) = (program.client(4242), program.client(4243));
    for (broken, why) in [
        ("[[name]]\nname = \"a.b\"\nown = [\"world\"\n", ":3: unclosed array"),
        (
            "[[name]]\nname = \"a.b\"\nown = [\"user:no-such-user\"]\n",
            ":3: there is no user \"no-such-user\" on this machine",
        ),
        ("[[name]]\nname = \"a.c\"\nown = [\"world\"]\nowns = []\n", ":4: unknown key \"owns\"; a name has"),
    ] {
        let said = program.reload(broken);
        let expected = format!("kdbusd: error: bus 0-system: its policy stays as it was: policy.toml{why}");
        assert!(said.starts_with(&expected), "{said}");
        assert_eq!(stranger.does("own a.c"), "denied");
        assert_eq!((client.does("own a.b"), client.does("release a.b")), ("done".into(), "done".into()));
    }
    std::fs::remove_file(program.policy()).unwrap();
    assert!(program.hang_up().contains("cannot be read"));
    assert_eq!(client.does("own a.b"), "done");
    assert_eq!(program.reload("[[name]]\nname = \"a.c\"\nown = [\"world\"]\n"), READ);
    assert_eq!(stranger.does("own a.c"), "done");
    Ok(())
}

fn held_reload() -> Result<(), String> {
    need_root()?;
    let mut program = Program::start("[[name]]\nname = \"a.b\"\nown = [\"uid:4242\"]\n");
    let held = PolicyName::from_bytes(b"a.c").unwrap();
    let holder = program.hello(&Hello::new().policy_holder(held));
    let both = "[[name]]\nname = \"a.c\"\nown = [\"world\"]\n[[name]]\nname = \"a.d\"\nown = [\"world\"]\n";
    let said = program.reload(both);
    assert!(said.contains("policy holder that is connected has an entry for a.c; leave the name"), "{said}");
    let mut client = program.client(4242);
    assert_eq!((client.does("own a.d"), client.does("own a.b")), ("denied".into(), "done".into()));
    drop(holder);
    assert_eq!(program.hang_up(), READ);
    assert_eq!((client.does("own a.d"), client.does("own a.c")), ("done".into(), "done".into()));
    Ok(())
}

fn many_names() -> Result<(), String> {
    need_root()?;
    let rule = |name: &str| format!("[[name]]\nname = \"{name}\"\nown = [\"uid:4242\"]\n");
    let all = |names: &[&str]| names.iter().map(|name| rule(name)).collect::<String>();
    let mut program = Program::start(&all(&["a.b", "a.c", "a.d"]));
    let mut client = program.client(4242);
    // Names that stay are in nobody's way, in any order.
    for names in [["a.b", "a.c", "a.d"], ["a.d", "a.b", "a.e"]] {
        assert_eq!(program.reload(&all(&names)), READ, "{names:?}");
        for name in names {
            assert_eq!(client.does(&format!("own {name}")), "done");
            assert_eq!(client.does(&format!("release {name}")), "done");
        }
    }
    assert_eq!(client.does("own a.c"), "denied");
    Ok(())
}

fn full_reload() -> Result<(), String> {
    need_root()?;
    let buses = "[[bus]]\nname = \"system\"\naccess = \"world\"\n";
    let rule = |name: &str| format!("[[name]]\nname = \"{name}\"\nown = [\"uid:4242\"]\n");
    // Room for one name beside an old one, and not for two.
    let room = ["--set", "capacity.policy-entries=2"];
    let mut program = Program::with(&rule("a.b"), buses, &room);
    let mut client = program.client(4242);
    let said = program.reload(&(rule("a.c") + &rule("a.d")));
    assert!(said.contains("together find no room; raise capacity.policy-entries"), "{said}");
    assert_eq!((client.does("own a.c"), client.does("own a.b")), ("denied".into(), "done".into()));
    assert_eq!(program.reload(&rule("a.c")), READ);
    assert_eq!(client.does("own a.c"), "done");
    Ok(())
}

/// Each bus has the file that the configuration gives it, and one with a wrong file keeps its rules.
fn two_buses() -> Result<(), String> {
    need_root()?;
    let rule = |name: &str| format!("[[name]]\nname = \"{name}\"\nown = [\"uid:4242\"]\n");
    let dir = directory(&rule("a.one"), "");
    std::fs::write(dir.path().join("two.toml"), rule("a.two")).unwrap();
    let bus = |name: &str, policy: &str| {
        let policy = dir.path().join(policy);
        format!("[[bus]]\nname = \"{name}\"\naccess = \"world\"\npolicy = {policy:?}\n")
    };
    std::fs::write(dir.path().join("kdbusd.toml"), bus("one", "policy.toml") + &bus("two", "two.toml"))
        .unwrap();
    let mut program = Program::of(dir, &[]);
    let mut clients = ["one", "two"].map(|bus| program.client_on(bus, 4242, 4242));
    let owns = |clients: &mut [Client; 2], name: &str| {
        clients.each_mut().map(|client| {
            let owned = client.does(&format!("own {name}")) == "done";
            owned && client.does(&format!("release {name}")) == "done"
        })
    };
    assert_eq!(owns(&mut clients, "a.one"), [true, false]);
    assert_eq!(owns(&mut clients, "a.two"), [false, true]);
    std::fs::write(program.dir.path().join("two.toml"), "wrong").unwrap();
    assert!(
        program.reload(&rule("a.three")).starts_with("kdbusd: info: bus 0-one: its policy was read again")
    );
    assert!(
        program.logs("its policy ").starts_with("kdbusd: error: bus 0-two: its policy stays as it was: ")
    );
    assert_eq!(owns(&mut clients, "a.three"), [true, false]);
    assert_eq!(owns(&mut clients, "a.two"), [false, true]);
    Ok(())
}

fn wrong_start() -> Result<(), String> {
    let dir = directory("[[name]]\nname = \"camera\"\n", "");
    let expected = "kdbusd: error: policy.toml:2: \"camera\" is no name: name needs at least two elements";
    for more in [&["--check"][..], &[]] {
        let output = with_policy(dir.path()).args(more).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.lines().any(|line| line.starts_with(expected)), "{said}");
    }
    assert!(!dir.path().join("kdbus").exists(), "nothing is left behind");
    std::fs::write(dir.path().join("policy.toml"), "[[name]]\nname = \"a.b\"\n[[name]]\nname = \"a.c\"\n")
        .unwrap();
    assert!(with_policy(dir.path()).arg("--check").output().unwrap().status.success());
    let small = ["--set", "capacity.policy-entries=1"];
    let output = with_policy(dir.path()).args(small).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("raise capacity.policy-entries"), "{said}");
    Ok(())
}
