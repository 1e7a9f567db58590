//! The daemon and its clients as processes of their own: killed, of other users, started and stopped.
//!
//! This file has a `main` of its own, because it is the clients' program too.

mod common;
#[path = "processes/program.rs"]
mod program;
#[path = "processes/roles.rs"]
mod roles;

use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::Bus;
use kdbus_core::WellKnownName;
use kdbus_core::abi::{AttachFlags, Errno, NameFlags};
use kdbus_core::client::{CallError, Connection, Failure, Hello, Message, Notification, Rule};
use kdbus_linux::local::wire::LANE_OUT_FDS;
use kdbus_linux::local::{Environment, Options};
use kdbusd::config::Access;
use program::{Process, Program, open_to_all, program, signal, start_command, start_program};
use roles::{client, hoard};

const SOON: Duration = Duration::from_secs(20);
/// A test; its error is the reason why it cannot be tried here.
type Test = fn() -> Result<(), String>;

const SERVICE: &str = "org.example.Service";

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "client") {
        return client(&arguments[2], &arguments[3]);
    }
    // As the usual harness: a word on the command line chooses.
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-'));
    let tests: &[(&str, Test)] = &[
        (
            "a_killed_client_leaves_its_names_and_its_callers",
            a_killed_client_leaves_its_names_and_its_callers,
        ),
        (
            "a_callee_killed_while_it_is_waited_for_ends_the_call",
            a_callee_killed_while_it_is_waited_for_ends_the_call,
        ),
        ("clients_killed_at_any_time_harm_nobody", clients_killed_at_any_time_harm_nobody),
        ("another_user_is_who_the_kernel_says", another_user_is_who_the_kernel_says),
        (
            "who_lives_in_other_namespaces_sees_its_own_numbers",
            who_lives_in_other_namespaces_sees_its_own_numbers,
        ),
        ("who_lives_in_another_time_has_no_lane", who_lives_in_another_time_has_no_lane),
        (
            "no_receiver_ends_its_sender_or_holds_it_up_by_the_bell",
            no_receiver_ends_its_sender_or_holds_it_up_by_the_bell,
        ),
        ("modes_of_nodes_keep_others_out", modes_of_nodes_keep_others_out),
        ("the_program_starts_says_so_and_stops", the_program_starts_says_so_and_stops),
        ("a_second_daemon_is_told_of_the_first", a_second_daemon_is_told_of_the_first),
        ("a_killed_daemon_is_succeeded", a_killed_daemon_is_succeeded),
        ("a_daemon_without_descriptors_goes_on", a_daemon_without_descriptors_goes_on),
        (
            "a_lane_that_could_not_be_given_shows_nothing_of_who_asked_for_it",
            a_lane_that_could_not_be_given_shows_nothing_of_who_asked_for_it,
        ),
        ("descriptors_that_nobody_reads_keep_nobody_out", descriptors_that_nobody_reads_keep_nobody_out),
        (
            "descriptors_that_several_users_do_not_read_keep_nobody_out",
            descriptors_that_several_users_do_not_read_keep_nobody_out,
        ),
        (
            "closes_that_wait_for_one_user_hold_up_nobody_else",
            closes_that_wait_for_one_user_hold_up_nobody_else,
        ),
        ("a_user_whose_descriptors_wait_brings_no_others", a_user_whose_descriptors_wait_brings_no_others),
        ("lanes_that_come_and_go_leave_nothing_behind", lanes_that_come_and_go_leave_nothing_behind),
        ("a_policy_file_says_who_may_do_what", a_policy_file_says_who_may_do_what),
        ("the_configuration_is_checked_and_shown", the_configuration_is_checked_and_shown),
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

fn node(bus: &Bus) -> PathBuf {
    bus.root.join(bus.name()).join("bus")
}

fn need_root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("needs root for a second user".into()) }
}

fn a_killed_client_leaves_its_names_and_its_callers() -> Result<(), String> {
    let bus = Bus::start();
    let (watcher, caller) = (bus.connect(), bus.connect());
    let name = WellKnownName::parse(SERVICE).unwrap();
    watcher.add_match(1, &[Rule::NameRemove(Default::default())]).unwrap();
    let mut service = Process::start("mute", &node(&bus), None);
    let id = service.ready();
    assert_eq!(watcher.owner(name).unwrap(), Some(id));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let ended = caller.call_blocking(&Message::to_name(name), SOON).err();
            (caller, ended)
        });
        // Killed while it has the call, most of the time.
        std::thread::yield_now();
        service.kill();
        let (_caller, ended) = waiting.join().unwrap();
        assert!(matches!(ended, Some(CallError::PeerDied | CallError::NotSent(_))), "{ended:?}");
    });
    let news = watcher.recv_blocking(SOON).unwrap();
    assert!(
        matches!(news.notification(), Some(Notification::NameRemove { owner, .. }) if owner == id),
        "{news:?}"
    );
    Ok(())
}

fn a_callee_killed_while_it_is_waited_for_ends_the_call() -> Result<(), String> {
    let bus = Bus::with(|config| config.capacity.lanes = 16);
    let caller: common::Client =
        Connection::with_capacities(bus.options().lanes(4).connect(&bus.name()).unwrap(), &Hello::new())
            .unwrap();
    for _ in 0..5 {
        let mut mute = Process::start("mute", &node(&bus), None);
        let id = mute.ready();
        caller.transport().open_lane(id).unwrap();
        let carried = || caller.transport().handle().stats(id).unwrap().stats.received;
        let before = carried();
        caller.send(&Message::to(id).payload(b"by lane")).unwrap();
        assert_eq!(carried(), before);
        let killing = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            mute.kill();
        });
        let error = caller.call_blocking(&Message::to(id).payload(b"call"), SOON).map(|_| ()).unwrap_err();
        assert_eq!(error, CallError::PeerDied);
        killing.join().unwrap();
        assert!(caller.try_recv().unwrap().is_none());
    }
    Ok(())
}

fn clients_killed_at_any_time_harm_nobody() -> Result<(), String> {
    let bus = Bus::start();
    let service = bus.connect();
    service.acquire(WellKnownName::parse(SERVICE).unwrap(), NameFlags::empty()).unwrap();
    for round in 0..12 {
        let mut busy = Process::start("busy", &node(&bus), None);
        let id = busy.ready();
        // The wait is part of the try, not of the check: it makes the kill come at another place each time.
        let mut left = 1 + round * 3;
        while left > 0 {
            drop(service.recv_blocking(SOON).unwrap());
            left -= 1;
        }
        busy.kill();
        while service.try_recv().unwrap().is_some() {}
        // The next command of ours is carried out after its end.
        assert!(service.send(&Message::to(id)).is_err());
        while service.try_recv().unwrap().is_some() {}
        service.send(&Message::to(service.id()).payload(b"well")).unwrap();
        assert_eq!(service.try_recv().unwrap().unwrap().payload(), b"well");
    }
    Ok(())
}

fn another_user_is_who_the_kernel_says() -> Result<(), String> {
    need_root()?;
    let bus = Bus::start();
    let all = AttachFlags::all();
    let service = bus.hello(&Hello::new().ask_metadata(all));
    let name = WellKnownName::parse(SERVICE).unwrap();
    service.acquire(name, NameFlags::empty()).unwrap();
    // kdbus: without a policy, a name is for users of the same uid and the owner of the bus.
    let mut denied = Process::start("say", &node(&bus), Some(4242));
    let answer = denied.line();
    assert_eq!(answer, "refused");
    let everybody = kdbus_core::abi::PolicyAccess { kind: 3, access: 1, id: 0 };
    let holder = Hello::new().policy_holder(kdbus_core::PolicyName::from_bytes(SERVICE.as_bytes()).unwrap());
    let rules = [everybody];
    let _holder = bus.hello(&holder.policy(&rules));
    let mut speaker = Process::start("say", &node(&bus), Some(4242));
    assert_eq!(speaker.line(), "sent");
    let message = service.recv_blocking(SOON).unwrap();
    let creds = message.metadata().creds().unwrap();
    assert_eq!([creds.uid, creds.euid, creds.gid, creds.egid], [4242; 4]);
    assert_eq!(message.metadata().pids().unwrap().pid, u64::from(speaker.child.id()));
    let exe = std::env::current_exe().unwrap();
    assert_eq!(message.metadata().executable(), Some(exe.as_os_str().as_encoded_bytes()));
    let caps = message.metadata().capabilities().unwrap();
    assert_eq!(caps.effective, 0);
    Ok(())
}

fn who_lives_in_other_namespaces_sees_its_own_numbers() -> Result<(), String> {
    need_root()?;
    let possible =
        Command::new("unshare").args(["-Urpf", "true"]).uid(4242).gid(4242).current_dir("/").status();
    if !possible.is_ok_and(|status| status.success()) {
        return Err("needs unshare, and users who may make namespaces".to_owned());
    }
    let bus = Bus::start();
    let mut client = Process::apart("apart", &node(&bus), 4242);
    let ready = client.line();
    let id = ready.strip_prefix("ready ").expect("it says so").parse().unwrap();
    let mut told = Vec::new();
    for given in [AttachFlags::all(), AttachFlags::empty()] {
        let caller = bus.hello(&Hello::new().ask_metadata(AttachFlags::all()).send_metadata(given));
        let answer = caller.call_blocking(&Message::to(id), SOON).unwrap();
        told.push(client.line());
        // Out here it is who the daemon knows.
        let creds = answer.metadata().creds().unwrap();
        assert_eq!([creds.uid, creds.gid], [4242; 2]);
        let pids = answer.metadata().pids().unwrap();
        assert!(pids.pid != 1 && pids.ppid == u64::from(client.child.id()), "{pids:?}");
        assert_eq!(answer.metadata().capabilities().unwrap().effective, 0);
    }
    // Nobody has a name for this process in there; what /proc says of it is told if it gives that out.
    assert_eq!(told, ["uid 65534 gid 65534 pid 0 named true", "uid 65534 gid 65534 pid 0 named false"]);
    assert_eq!(client.line(), "uid 0 pid 1 ppid 0");
    Ok(())
}

fn who_lives_in_another_time_has_no_lane() -> Result<(), String> {
    need_root()?;
    let possible =
        Command::new("unshare").args(["--time", "--monotonic", "86400", "--fork", "true"]).status();
    if !possible.is_ok_and(|status| status.success()) {
        return Err("needs unshare, and a kernel with time namespaces".to_owned());
    }
    let bus = Bus::with(|config| config.capacity.lanes = 16);
    let transport = bus.options().lanes(4).connect(&bus.name()).unwrap();
    let service: common::Client = Connection::with_capacities(transport, &Hello::new()).unwrap();
    service.acquire(WellKnownName::parse(SERVICE).unwrap(), NameFlags::empty()).unwrap();
    let refused = format!("{:?}", Err::<(), _>(Failure::Refused(Errno::EOPNOTSUPP)));
    for (mut sender, expected) in [
        (Process::start("lane", &node(&bus), None), "Ok(())"),
        (Process::ahead("lane", &node(&bus)), &refused),
    ] {
        assert_eq!(sender.line(), expected);
        for _ in 0..3 {
            assert_eq!(service.recv_blocking(SOON).unwrap().payload(), b"in time");
        }
    }
    Ok(())
}

fn no_receiver_ends_its_sender_or_holds_it_up_by_the_bell() -> Result<(), String> {
    use std::os::fd::AsRawFd;

    use kdbus_core::channel::{LaneLayout, Words};
    use kdbus_linux::local::map::WordMap;
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind, LANE_FDS};
    use rustix::fs::{Mode, OFlags};
    let bus = Bus::with(|config| config.capacity.lanes = 16);
    for closes in [true, false] {
        let receiver = bus.connect_without_lanes();
        let (answer, fds) = common::exchange(&receiver, &Header::new(Kind::BringLane, 1 << 40), &[]);
        let number = answer.slot;
        let [_lane, back, _page, _calls, bell] = fds.into_array::<LANE_FDS>().unwrap();
        let back = WordMap::writable(&back, LaneLayout::BACK_WORDS).unwrap();
        let mapped = Header { slot: number, ..Header::new(Kind::LaneMapped, 0) };
        let handle = receiver.transport().handle();
        socket::send(handle.socket(), &mapped, &[], &[], Wait::Yes).unwrap();
        // Its answer comes when the lane is ready.
        let _ = handle.command(0, &mut [0; 8]);
        let mut sender = Process::start("ring", &node(&bus), None);
        sender.ready();
        let mut say = sender.child.stdin.take().unwrap();
        writeln!(say, "{}", receiver.id()).unwrap();
        assert_eq!(sender.line(), "opened");
        // It asks to be rung for; what hears that is gone, or full.
        back.store(8, 1);
        if closes {
            drop(bell);
        } else {
            let path = format!("/proc/self/fd/{}", bell.as_raw_fd());
            let ringer = rustix::fs::open(&path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
            while rustix::io::write(&ringer, &[0; 4096]).is_ok() {}
            // Whoever has an end of its own waits or not as it likes.
            let _ = rustix::fs::fcntl_setfl(&bell, OFlags::empty());
            let _ = rustix::fs::fcntl_setfl(&ringer, OFlags::empty());
        }
        writeln!(say).unwrap();
        assert_eq!(sender.line(), "sent 0", "by lane all of them; closed: {closes}");
        assert!(sender.child.wait().unwrap().success());
    }
    Ok(())
}

fn modes_of_nodes_keep_others_out() -> Result<(), String> {
    need_root()?;
    for (access, user, expected) in [
        (Access::World, 4242, "connected"),
        (Access::Group, 4242, "denied"),
        (Access::Owner, 4242, "denied"),
        (Access::Owner, 0, "connected"),
    ] {
        let bus = Bus::with(|config| config.bus[0].access = access);
        let mut client = Process::start("connect", &node(&bus), Some(user));
        let line = client.line();
        assert!(line.starts_with(expected), "{access:?} for {user}: {line}");
    }
    Ok(())
}

fn the_program_starts_says_so_and_stops() -> Result<(), String> {
    for order in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut program = Program::start();
        let (a, b) = (program.bus(), program.bus());
        a.send(&Message::to(b.id()).payload(b"x")).unwrap();
        assert_eq!(b.try_recv().unwrap().unwrap().payload(), b"x");
        signal(&program.child, order);
        assert!(program.child.wait().unwrap().success());
        assert!(!program.root.exists());
        assert!(a.send(&Message::to(b.id())).unwrap_err().is_broken());
    }
    Ok(())
}

fn a_second_daemon_is_told_of_the_first() -> Result<(), String> {
    let first = Program::start();
    let second = program(&first.root).output().unwrap();
    assert!(!second.status.success());
    let text = String::from_utf8(second.stderr).unwrap();
    let expected = format!(
        "kdbusd: error: kdbusd is already running on {} (process {})\n",
        first.root.display(),
        first.child.id()
    );
    assert_eq!(text, expected);
    let _still_there = first.bus();
    Ok(())
}

fn a_killed_daemon_is_succeeded() -> Result<(), String> {
    let mut first = Program::start();
    let client = first.bus();
    first.child.kill().unwrap();
    assert_eq!(first.child.wait().unwrap().signal(), Some(9));
    assert!(client.recv_blocking(SOON).is_err_and(|error| error.is_broken()));
    assert!(first.root.exists(), "its nodes are left");
    first.child = start_program(&first.root);
    let _served_again = first.bus();
    Ok(())
}

fn a_daemon_without_descriptors_goes_on() -> Result<(), String> {
    // Room for its own and a few clients' descriptors.
    let program = Program::start_after("ulimit -n 40");
    let (a, b) = (program.bus(), program.bus());
    let mut others: Vec<common::Client> = std::iter::from_fn(|| program.try_bus()).collect();
    assert!(others.len() < 16, "{} clients had no more than 40 descriptors", others.len());
    a.send(&Message::to(b.id()).payload(b"x")).unwrap();
    assert_eq!(b.try_recv().unwrap().unwrap().payload(), b"x");
    // Descriptors that it has no room for are refused, and lost to nobody.
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let fds = [const { None::<std::os::fd::BorrowedFd<'_>> }; 16].map(|_| std::os::fd::AsFd::as_fd(&writer));
    assert!(a.send(&Message::to(b.id()).fds(&fds)).is_err());
    drop(writer);
    assert_eq!(rustix::io::read(&reader, &mut [0]), Ok(0));
    others.truncate(1);
    let again = (0..1000).find_map(|_| program.try_bus()).ok_or("nobody is served any more");
    again.unwrap().send(&Message::to(a.id())).unwrap();
    Ok(())
}

fn a_lane_that_could_not_be_given_shows_nothing_of_who_asked_for_it() -> Result<(), String> {
    let program = Program::start();
    let pid = rustix::process::Pid::from_child(&program.child);
    let connect = || -> common::Client {
        let uid = rustix::process::geteuid().as_raw();
        let root = program.root.as_os_str().as_encoded_bytes();
        let options = Options::new().environment(Environment::new(uid).with_root(root).unwrap());
        Connection::with_capacities(options.lanes(1).connect_default().unwrap(), &Hello::new()).unwrap()
    };
    let (receiver, first, second) = (connect(), connect(), connect());
    // Its receiver has mapped the lane once this is answered.
    receiver.owner(WellKnownName::parse(SERVICE).unwrap()).unwrap();
    let limit = |most| {
        use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
        let own = getrlimit(Resource::Nofile);
        prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(most), ..own }).unwrap().current
    };
    // What it has open stays open, and there is nothing more.
    let before = limit(3);
    let refused = first.transport().open_lane(receiver.id());
    assert_eq!(refused, Err(Failure::Refused(Errno::ENOBUFS)));
    limit(before.unwrap_or(1024));
    second.transport().open_lane(receiver.id()).unwrap();
    second.send(&Message::to(receiver.id()).payload(b"second")).unwrap();
    assert_eq!(receiver.recv_blocking(SOON).unwrap().sender(), second.id());
    Ok(())
}

fn descriptors_that_nobody_reads_keep_nobody_out() -> Result<(), String> {
    for user in [None, Some(4242)] {
        if user.is_some() {
            need_root()?;
        }
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path());
        let root = dir.path().join("kdbus");
        let mut command = program(&root);
        for set in ["clients=12", "clients-per-user=4", "files=8", "lanes=8"] {
            command.arg("--set").arg(format!("capacity.{set}"));
        }
        // More than it needs, and what may be on the way to all of its user's clients together.
        let program = Program { child: start_command("ulimit -n 400", &command), root, _dir: dir };
        let uid = rustix::process::geteuid().as_raw();
        let node = program.root.join(format!("{uid}-system")).join("bus");
        let mut hoarding = user.map(|user| Process::start("hoard", &node, Some(user)));
        let own = hoarding.is_none().then(|| program.bus());
        match (&mut hoarding, &own) {
            (Some(process), _) => assert!(process.ready() >= 1),
            (_, Some(bus)) => hoard(bus),
            _ => {}
        }
        let (a, b) = (program.bus(), program.bus());
        let (reader, _writer) = rustix::pipe::pipe().unwrap();
        a.send(&Message::to(b.id()).fds(&[std::os::fd::AsFd::as_fd(&reader)])).unwrap();
        assert!(b.recv_blocking(SOON).unwrap().take_fd(0).is_some(), "{user:?}");
    }
    Ok(())
}

/// A daemon of the user `owner` for few clients and with few descriptors, with one bus that is open to everybody, and the node
/// of that.
fn start_for_all(owner: u32, descriptors: u32) -> (Program, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    open_to_all(dir.path());
    std::os::unix::fs::chown(dir.path(), Some(owner), Some(owner)).unwrap();
    let (root, file) = (dir.path().join("kdbus"), dir.path().join("kdbusd.toml"));
    std::fs::write(&file, "[[bus]]\nname = \"open\"\naccess = \"world\"\n").unwrap();
    // Not root, whom the kernel lets have as many on their way as it likes.
    let id = |which: &str| format!("--{which}={owner}");
    let mut command = Command::new("setpriv");
    command.args([id("reuid"), id("regid"), "--clear-groups".into()]).arg(env!("CARGO_BIN_EXE_kdbusd"));
    command.args(program(&root).get_args()).arg("--config").arg(file);
    for set in ["connections=12", "clients=12", "clients-per-user=4", "files=8", "lanes=8"] {
        command.arg("--set").arg(format!("capacity.{set}"));
    }
    let program =
        Program { child: start_command(&format!("ulimit -n {descriptors}"), &command), root, _dir: dir };
    let node = program.root.join(format!("{owner}-open")).join("bus");
    (program, node)
}

fn descriptors_that_several_users_do_not_read_keep_nobody_out() -> Result<(), String> {
    need_root()?;
    let (_program, node) = start_for_all(4300, 400);
    let hoard = |user| {
        let mut process = Process::start("hoard", &node, Some(user));
        let line = process.line();
        (process, line.strip_prefix("ready ").and_then(|count| count.parse::<u64>().ok()).unwrap_or(0))
    };
    let hoarding: Vec<_> = (0..6).map(|user| hoard(4301 + user)).collect();
    let counts: Vec<_> = hoarding.iter().map(|(_, count)| *count).collect();
    assert!(counts.iter().sum::<u64>() <= 12 && counts[0] > 0, "{counts:?}");
    let connect = || {
        let transport = Options::new().lanes(0).staging(0).connect(node.to_str().unwrap()).unwrap();
        let connected: common::Client =
            Connection::with_capacities(transport, &Hello::new().accept_fds()).unwrap();
        connected
    };
    let (a, b) = (connect(), connect());
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    a.send(&Message::to(b.id()).fds(&[std::os::fd::AsFd::as_fd(&reader)])).unwrap();
    assert!(b.recv_blocking(SOON).unwrap().take_fd(0).is_some());
    // Whoever ends has nothing on its way any more.
    drop(hoarding);
    let (_process, count) = hoard(4310);
    assert!(count > 0);
    Ok(())
}

fn closes_that_wait_for_one_user_hold_up_nobody_else() -> Result<(), String> {
    need_root()?;
    // Not root either: root has no share.
    let (program, node) = start_for_all(4300, 800);
    let held = || std::fs::read_dir(format!("/proc/{}/fd", program.child.id())).unwrap().count();
    let held_soon = |most| {
        let until = std::time::Instant::now() + SOON;
        loop {
            let held = held();
            if held <= most || std::time::Instant::now() > until {
                return held;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    let at_first = held();
    let mut slow = Process::start("linger", &node, Some(4301));
    let count = slow.ready() as usize;
    let before = held();
    // A descriptor that is being closed has no number any more; the others wait behind those.
    assert!(count >= 96 && before > at_first, "{count} sockets linger: {at_first} {before}");
    let mut visitor = Process::start("visit", &node, Some(4302));
    visitor.ready();
    drop(visitor);
    let after = held_soon(before);
    assert!(after <= before, "{before} descriptors, and {after} after 100 clients of another user");
    // All of them go when they can.
    drop(slow);
    let at_last = held_soon(at_first);
    assert!(at_last <= at_first, "{at_first} {at_last}");
    Ok(())
}

fn a_user_whose_descriptors_wait_brings_no_others() -> Result<(), String> {
    need_root()?;
    let descriptors = 400;
    let (program, node) = start_for_all(4300, descriptors);
    let mut slow = Process::start("litter", &node, Some(4301));
    let left = slow.ready();
    assert!(left < u64::from(descriptors) / 2, "{left} were taken");
    let held = || std::fs::read_dir(format!("/proc/{}/fd", program.child.id())).unwrap().count();
    assert!(held() < descriptors as usize / 2, "{}", held());
    Process::start("visit", &node, Some(4302)).ready();
    // Those of the one who may bring no others are no exception to being closed.
    slow.child.stdin.take();
    let until = std::time::Instant::now() + SOON;
    while Process::start("visit", &node, Some(4301)).line() != "ready 100" {
        assert!(std::time::Instant::now() < until, "it may come again");
    }
    Ok(())
}

/// Lanes as honest clients have them, and as others leave them.
fn lanes_come_and_go(program: &Program, round: u32) {
    use kdbus_linux::local::socket::{self, Wait};
    use kdbus_linux::local::wire::{Header, Kind};
    let (sender, receiver, odd) = (program.bus(), program.bus(), program.bus());
    let to = receiver.id();
    sender.transport().open_lane(to).unwrap();
    for _ in 0..8 {
        sender.send(&Message::to(to).payload(&[7; 600])).unwrap();
    }
    for _ in 0..round % 9 {
        receiver.recv_blocking(SOON).unwrap();
    }
    let tell = |client: &common::Client, packet: &Header| {
        let _ = socket::send(client.transport().handle().socket(), packet, &[], &[], Wait::Yes);
    };
    match round % 4 {
        // Given and never mapped; brought and never mapped.
        0 => {
            let ask = Header { key: to, ..Header::new(Kind::OpenLane, 1 << 40) };
            assert_eq!(common::exchange(&odd, &ask, &[]).1.len(), LANE_OUT_FDS);
            let _ = common::exchange(&odd, &Header::new(Kind::BringLane, 1 << 41), &[]);
        }
        // Asked for and not waited for.
        1 => tell(&odd, &Header { key: to, ..Header::new(Kind::OpenLane, 1 << 40) }),
        // Another's is dropped, which cuts off.
        2 => tell(&odd, &Header { slot: round % 8, ..Header::new(Kind::DropLane, 0) }),
        _ => hoard(&odd),
    }
    let mut clients = [Some(sender), Some(receiver), Some(odd)];
    clients.rotate_left(round as usize % 3);
    for client in clients {
        drop(client);
    }
}

fn lanes_that_come_and_go_leave_nothing_behind() -> Result<(), String> {
    let program = Program::start();
    let of = |file: &str| format!("/proc/{}/{file}", program.child.id());
    // Descriptors, mappings, and kilobytes that are there.
    let held = || {
        let status = std::fs::read_to_string(of("status")).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        let maps = std::fs::read_to_string(of("maps")).unwrap();
        let mapped = maps.lines().filter(|line| line.contains("kdbus-")).count();
        let resident: u64 = resident.trim().trim_end_matches(" kB").parse().unwrap();
        (std::fs::read_dir(of("fd")).unwrap().count(), mapped, resident)
    };
    let rounds = |count| {
        for round in 0..count {
            lanes_come_and_go(&program, round);
        }
        // Whoever has hung up by then is gone once this is answered.
        drop(program.bus());
        drop(program.bus());
    };
    // What is closed apart from the loop is closed a little later: nothing more is once there is as much for a while.
    let settled = || {
        let (mut last, mut same) = (held(), 0);
        for _ in 0..500 {
            if same == 10 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            let next = held();
            same = if (next.0, next.1) == (last.0, last.1) { same + 1 } else { 0 };
            last = next;
        }
        last
    };
    rounds(24);
    let before = settled();
    rounds(72);
    let after = settled();
    assert_eq!((after.0, after.1), (before.0, before.1));
    assert!(after.2 < before.2 + 2048, "{before:?} {after:?}");
    Ok(())
}

fn a_policy_file_says_who_may_do_what() -> Result<(), String> {
    need_root()?;
    let [owner, friend, stranger] = [54_321, 54_322, 54_323];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("policy.toml");
    let write = |talker: u32| {
        let rules = format!("own = [\"user:{owner}\"]\ntalk = [\"user:{talker}\"]\n");
        std::fs::write(&file, format!("[[name]]\nname = \"{SERVICE}\"\n{rules}")).unwrap();
    };
    write(friend);
    let program = Program::with_policy(&file);
    let node = program.root.join("0-system/bus");
    let outcome = |role: &str, user: u32| Process::start(role, &node, Some(user)).line();
    assert_eq!(outcome("own", friend), "refused");
    let mut service = Process::start("own", &node, Some(owner));
    assert_eq!(service.line(), "owned");
    assert_eq!((outcome("say", friend), outcome("say", stranger)), ("sent".into(), "refused".into()));

    write(stranger);
    signal(&program.child, rustix::process::Signal::HUP);
    let until = std::time::Instant::now() + SOON;
    while outcome("say", stranger) != "sent" {
        assert!(std::time::Instant::now() < until, "the file is read again");
    }
    assert_eq!(outcome("say", friend), "refused", "the former policy is gone");

    // What is wrong changes nothing.
    std::fs::write(&file, format!("[[name]]\nname = \"{SERVICE}\"\nown = [\"nobody\"]\n")).unwrap();
    signal(&program.child, rustix::process::Signal::HUP);
    for _ in 0..5 {
        assert_eq!((outcome("say", friend), outcome("say", stranger)), ("refused".into(), "sent".into()));
    }
    // And keeps a daemon from starting.
    let refused = unstarted(&file).output().unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && text.contains("policy.toml:3: \"nobody\" is nobody"), "{text}");
    Ok(())
}

/// A daemon with this policy that is not started yet.
fn unstarted(policy: &Path) -> Command {
    let mut command = program(&policy.with_file_name("kdbus"));
    command.arg("--policy").arg(policy);
    command
}

fn the_configuration_is_checked_and_shown() -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let output = program(dir.path()).args(arguments).output().unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (fine, shown, _) = run(&["--print-config", "--set", "memory.pools=32 MiB"]);
    assert!(fine && shown.contains("pools = \"32 MiB\"") && shown.contains("connections = 8"), "{shown}");
    let file = dir.path().join("kdbusd.toml");
    std::fs::write(&file, shown).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(run(&["--check", "--config", file]), (true, String::new(), String::new()));
    std::fs::write(file, "[memory]\nlargest-pool = 1\n").unwrap();
    let (fine, _, error) = run(&["--check", "--config", file]);
    assert!(!fine && error.contains("kdbusd.toml:2: largest-pool is 1 bytes; a pool is at least"), "{error}");
    Ok(())
}
