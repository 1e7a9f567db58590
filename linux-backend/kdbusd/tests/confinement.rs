//! The daemon's program without the rights that it gives up: which those are, and that all the same nothing is missing.
//!
//! The conformance suite runs over the confined program too.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::Duration;

use common::Client;
use kdbus_core::abi::{
    AttachFlags, Cmd, Command as Request, ItemType, ItemWriter, ListFlags, NameFlags, PolicyAccess,
};
use kdbus_core::client::{Access, Connection, Hello, Message, Monitor, Part, ReceivedPart};
use kdbus_core::{NodeName, PolicyName, WellKnownName};
use kdbus_linux::local::{Environment, LocalTransport, Options, SealedMemfd};
use rustix::process::{Pid, Signal};
use zerocopy::IntoBytes;

const SOON: Duration = Duration::from_secs(20);
const SERVICE: &str = "org.example.Confined";

/// Bits of the capabilities that may stay, by the numbers of the kernel's header.
const CHOWN: u64 = 1;
const DAC_OVERRIDE: u64 = 1 << 1;
const FOWNER: u64 = 1 << 3;
const IPC_LOCK: u64 = 1 << 14;
const SYS_PTRACE: u64 = 1 << 19;
const SYS_RESOURCE: u64 = 1 << 24;
const SERVING: u64 = CHOWN | DAC_OVERRIDE | FOWNER | SYS_PTRACE | SYS_RESOURCE;

/// The program on a tree of its own.
struct Program {
    child: Child,
    log: BufReader<ChildStderr>,
    root: PathBuf,
    _dir: tempfile::TempDir,
}

impl Program {
    fn start(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("kdbus");
        let mut command = Command::new("sh");
        // The shell hands its standard output on as descriptor 3.
        command.args(["-c", "exec \"$0\" \"$@\" --ready-fd 3 3>&1 >/dev/null"]);
        command.args(std::env::var_os("KDBUS_TEST_RUNNER"));
        command.args([env!("CARGO_BIN_EXE_kdbusd"), "--bus", "test", "--root"]).arg(&root);
        command.args(["--set", "capacity.connections=8"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        child.stdout.take().unwrap().read_to_string(&mut line).unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        if line != "ready\n" {
            let mut said = String::new();
            log.read_to_string(&mut said).unwrap();
            panic!("kdbusd did not start: {said}");
        }
        Self { child, log, root, _dir: dir }
    }

    /// What /proc says of it, or of one of its threads.
    fn status(&self, name: &str) -> u64 {
        number(&Path::new("/proc").join(self.child.id().to_string()), name)
    }

    fn each_thread(&self) -> Vec<PathBuf> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().path()).collect()
    }

    fn open(&self) -> LocalTransport {
        let root = self.root.as_os_str().as_encoded_bytes();
        let environment = Environment::new(uid()).with_root(root).unwrap();
        Options::new().environment(environment).prefault(false).connect(&format!("{}-test", uid())).unwrap()
    }

    fn hello(&self, hello: &Hello<'_>) -> Client {
        Connection::with_capacities(self.open(), hello).unwrap()
    }

    /// The next line of its log that is about the policy of its bus.
    fn policy_line(&mut self) -> String {
        let start = format!("bus {}-test: ", uid());
        let mut lines = self.log.by_ref().lines().map(Result::unwrap);
        lines.find(|line| line.contains(&start)).expect("it goes on")
    }

    /// Ends it as a service manager does, and returns its log.
    fn stop(mut self) -> String {
        rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let mut log = String::new();
        self.log.read_to_string(&mut log).unwrap();
        assert!(self.child.wait().unwrap().success(), "{log}");
        assert!(!self.root.exists(), "its tree is left; {log}");
        log
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn number(directory: &Path, name: &str) -> u64 {
    let status = std::fs::read_to_string(directory.join("status")).unwrap();
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap().trim();
    let radix = if name.starts_with("Cap") { 16 } else { 10 };
    u64::from_str_radix(value, radix).unwrap()
}

/// The capabilities of this process, which the daemon is started with.
fn own(name: &str) -> u64 {
    number(Path::new("/proc/self"), name)
}

/// Whether the daemon runs on the kernel itself; an emulator of another machine has no rights to give up.
fn emulated(test: &str) -> bool {
    let emulated = std::env::var_os("KDBUS_TEST_RUNNER").is_some();
    if emulated {
        println!("skipped: {test}: the daemon runs under an emulator");
    }
    emulated
}

#[test]
fn a_serving_daemon_has_the_rights_that_serving_takes_and_no_others() {
    if emulated("rights") {
        return;
    }
    for (lock, kept) in [("memory.lock=false", SERVING), ("memory.lock=true", SERVING | IPC_LOCK)] {
        if lock.ends_with("true") && own("CapEff") & IPC_LOCK == 0 {
            println!("skipped: {lock}: needs CAP_IPC_LOCK");
            continue;
        }
        let small = ["--set", lock, "--set", "capacity.queue-depth=16", "--set", "capacity.clients=16"];
        let program = Program::start(&small);
        drop(program.hello(&Hello::new()));
        let threads = program.each_thread();
        assert!(threads.len() > 1, "those that close descriptors are confined too");
        for thread in threads {
            assert_eq!(number(&thread, "NoNewPrivs"), 1);
            assert_eq!(number(&thread, "Seccomp"), 2);
            assert_eq!(number(&thread, "CapEff"), own("CapPrm") & kept);
            assert_eq!(number(&thread, "CapPrm"), own("CapPrm") & kept);
            assert_eq!([number(&thread, "CapInh"), number(&thread, "CapAmb")], [0; 2]);
            // Whoever may not shrink this one has nothing in the others.
            if uid() == 0 {
                assert_eq!(number(&thread, "CapBnd"), own("CapPrm") & kept);
            }
        }
        let log = program.stop();
        assert!(log.contains("info: confined: no new privileges; capabilities: "), "{log}");
        assert!(log.contains("; system calls filtered\n"), "{log}");
        assert_eq!(log.contains("CAP_CHOWN"), own("CapPrm") & CHOWN != 0, "{log}");
    }
}

#[test]
fn a_daemon_that_is_told_so_keeps_its_rights() {
    if emulated("rights") {
        return;
    }
    for order in [&["--no-confine"][..], &["--set", "confine=false"]] {
        let program = Program::start(order);
        assert_eq!(program.status("CapEff"), own("CapEff"));
        assert_eq!(
            [program.status("NoNewPrivs"), program.status("Seccomp")],
            [own("NoNewPrivs"), own("Seccomp")]
        );
        let log = program.stop();
        assert!(log.contains("info: not confined, as configured"), "{log}");
    }
}

/// What clients do with a bus, from the first to the last, with everything that a daemon calls the system for.
fn a_whole_exchange(program: &Program, sees_into_processes: bool) {
    let name = WellKnownName::parse(SERVICE).unwrap();
    let pair = [(); 2].map(|()| program.hello(&Hello::new()));
    pair[0].transport().open_lane(pair[1].id()).unwrap();
    drop(pair);
    let monitor = Monitor::hello(program.open(), &Hello::new().pool_size(8 << 20)).unwrap();
    let mut service = program.hello(
        &Hello::new().pool_size(8 << 20).accept_fds().description(NodeName::parse("service").unwrap()),
    );
    let caller = program.hello(&Hello::new().ask_metadata(AttachFlags::all()));
    service.acquire(name, NameFlags::empty()).unwrap();
    assert_eq!(caller.owner(name).unwrap(), Some(service.id()));
    assert_eq!(caller.list(ListFlags::UNIQUE).unwrap().iter().count(), 2);

    // A payload through the packet and one through the staging file, each a call with its answer.
    for size in [3, 1 << 20] {
        let sent = vec![7; size];
        service = std::thread::scope(|scope| {
            let serving = scope.spawn(move || {
                let call = service.recv_blocking(SOON).unwrap();
                assert_eq!(call.payload().len(), size);
                service.reply(call.reply_to(), b"yes").unwrap();
                drop(call);
                service
            });
            let answer = caller.call_blocking(&Message::to_name(name).payload(&sent), SOON).unwrap();
            assert_eq!(answer.payload(), b"yes");
            let metadata = answer.metadata();
            assert_eq!(metadata.creds().unwrap().euid, u64::from(uid()));
            assert_eq!(metadata.pids().unwrap().pid, u64::from(std::process::id()));
            assert_eq!(metadata.description(), Some("service"));
            assert!(metadata.command_line().is_some() && metadata.cgroup().is_some());
            if sees_into_processes {
                let executable = std::env::current_exe().unwrap();
                assert_eq!(metadata.executable(), Some(executable.as_os_str().as_encoded_bytes()));
                assert!(metadata.capabilities().is_some());
            } else {
                assert!(metadata.executable().is_none(), "the landlocked cannot see it");
            }
            serving.join().unwrap()
        });
    }

    // A memfd, a pipe, and a file whose last close is a thread's.
    let memfd = SealedMemfd::new(b"0123456789").unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let file = tempfile::tempfile().unwrap();
    let parts = [Part::Memfd { fd: memfd.as_fd(), start: 2, size: 3 }];
    caller.send(&Message::to(service.id()).parts(&parts).fds(&[writer.as_fd(), file.as_fd()])).unwrap();
    drop(writer);
    let mut message = service.recv_blocking(SOON).unwrap();
    assert!(matches!(message.parts().next(), Some(ReceivedPart::Memfd { start: 2, size: 3, fd: Some(_) })));
    std::fs::File::from(message.take_fd(0).unwrap()).write_all(b"x").unwrap();
    assert_eq!(rustix::io::read(&reader, &mut [0; 2]), Ok(1));
    drop(message);

    // The monitor has seen all of it.
    let mut seen = 0;
    while let Some(copy) = monitor.try_recv().unwrap() {
        seen += usize::from(copy.sender() == caller.id() || copy.sender() == service.id());
    }
    assert_eq!(seen, 5, "two calls, two answers and a message");

    // An endpoint comes with its policy, serves, and goes with its maker.
    let endpoint = program.root.join(format!("{}-test/{}-door", uid(), uid()));
    let maker = program.open();
    make_endpoint(&maker, &format!("{}-door", uid()));
    assert!(endpoint.exists());
    let outside: Client = Connection::with_capacities(
        LocalTransport::connect(endpoint.to_str().unwrap()).unwrap(),
        &Hello::new(),
    )
    .unwrap();
    outside.send(&Message::to_name(name).payload(b"through the door")).unwrap();
    assert_eq!(service.recv_blocking(SOON).unwrap().payload(), b"through the door");
    drop(maker);
    assert!(outside.recv_blocking(SOON).is_err_and(|error| error.is_broken()));
    // Its end was told after the node went.
    let _others_are_well = program.hello(&Hello::new());
    assert!(!endpoint.exists());

    service.release(name).unwrap();
    assert_eq!(caller.owner(name).unwrap(), None);
}

/// Makes a custom endpoint at which everybody may talk to the service.
fn make_endpoint(maker: &LocalTransport, name: &str) {
    let mut arg = vec![0; 512];
    let mut run = |request: Request, write: &dyn Fn(&mut ItemWriter<'_>)| {
        let mut items = ItemWriter::behind(&mut arg, size_of::<Cmd>()).unwrap();
        write(&mut items);
        let size = items.len();
        let head = Cmd { size: size as u64, flags: 0, return_flags: 0 };
        arg[..size_of::<Cmd>()].copy_from_slice(head.as_bytes());
        maker.handle().command(request.request(), &mut arg[..size]).unwrap();
    };
    run(Request::EndpointMake, &|items| items.c_str(ItemType::MAKE_NAME, name).unwrap());
    run(Request::EndpointUpdate, &|items| {
        items.c_str(ItemType::NAME, SERVICE).unwrap();
        items.record(ItemType::POLICY_ACCESS, &PolicyAccess::world(Access::Talk)).unwrap();
    });
}

#[test]
fn a_whole_exchange_works_without_those_rights() {
    let program = Program::start(&["--set", "capacity.lanes=16"]);
    a_whole_exchange(&program, true);
    program.stop();
}

#[test]
fn a_landlocked_daemon_serves_all_but_what_it_would_have_to_look_into_processes_for() {
    if emulated("Landlock") {
        return;
    }
    let program = Program::start(&["--set", "landlock=true"]);
    if !landlocked(&program) {
        println!("skipped: the kernel has no Landlock, or its first version");
        let log = program.stop();
        assert!(log.contains("warn: confined: ") && log.contains("; files not out of reach: "), "{log}");
        return;
    }
    a_whole_exchange(&program, false);
    let log = program.stop();
    assert!(log.contains("; no files but the tree and /proc\n"), "{log}");
}

/// Whether the executable of this process is out of the daemon's sight, which is how Landlock shows from outside.
fn landlocked(program: &Program) -> bool {
    let (a, b) = (program.hello(&Hello::new()), program.hello(&Hello::new().ask_metadata(AttachFlags::EXE)));
    a.send(&Message::to(b.id())).unwrap();
    b.recv_blocking(SOON).unwrap().metadata().executable().is_none()
}

/// Set in the process that gives up its rights, which is this program once more.
const INSIDE: &str = "KDBUS_CONFINED_TREE";

#[test]
fn what_a_confined_process_tries_beyond_its_task_is_refused() {
    if let Some(root) = std::env::var_os(INSIDE) {
        return try_everything(root.into());
    }
    if emulated("refusals") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(dir.path().join("elsewhere"), "x").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "what_a_confined_process_tries_beyond_its_task_is_refused", "--nocapture"])
        .env(INSIDE, &tree)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("tried everything"), "{said}");
    said.lines().filter(|line| line.starts_with("skipped: ")).for_each(|line| println!("{line}"));
}

fn try_everything(root: PathBuf) {
    let elsewhere = root.parent().unwrap().join("elsewhere");
    let mut config = common::small(&root);
    (config.root, config.landlock, config.log) = (root.clone(), true, kdbusd::config::LogLevel::Error);
    // Another service, which listens before the rights are given up.
    let service = root.join("service");
    let _service = std::os::unix::net::UnixListener::bind(&service).unwrap();
    let in_force = kdbusd::confine::apply(&config).unwrap().expect("it is asked for");

    // What serving takes goes on.
    std::thread::spawn(|| ()).join().unwrap();
    assert!(std::fs::read_to_string("/proc/self/status").unwrap().contains("NoNewPrivs:\t1"));
    let own = rustix::process::getpid();
    rustix::process::test_kill_process(own).unwrap();
    std::os::unix::net::UnixDatagram::bind(root.join("node")).unwrap();
    let remove = |path: &Path| rustix::fs::unlinkat(rustix::fs::CWD, path, rustix::fs::AtFlags::empty());
    let mode = |mode| {
        let (path, mode) = (root.join("node"), rustix::fs::Mode::from_raw_mode(mode));
        rustix::fs::chmodat(rustix::fs::CWD, path, mode, rustix::fs::AtFlags::empty())
    };
    mode(0o666).unwrap();

    let mut refused = Vec::new();
    let mut attempt = |what: &'static str, result: std::io::Result<()>| match result {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => refused.push(what),
        other => panic!("{what}: {other:?}"),
    };
    if in_force.calls.is_ok() {
        attempt("making a file", std::fs::File::create(root.join("file")).map(drop));
        attempt("writing", std::fs::File::options().write(true).open("/proc/self/comm").map(drop));
        attempt("a set-user-id bit", mode(0o4755).map_err(Into::into));
        attempt("starting a program", Command::new("true").status().map(drop));
        attempt("a socket of the network", std::net::UdpSocket::bind("127.0.0.1:0").map(drop));
        attempt("listening to the network", std::net::TcpListener::bind("127.0.0.1:0").map(drop));
        attempt("another service", std::os::unix::net::UnixStream::connect(&service).map(drop));
        attempt("a signal", rustix::process::kill_process(own, Signal::CONT).map_err(Into::into));
        attempt("a link", std::fs::hard_link(&elsewhere, root.join("link")));
        let pidfd = rustix::process::pidfd_open(own, rustix::process::PidfdFlags::empty()).unwrap();
        let none = rustix::process::PidfdGetfdFlags::empty();
        attempt(
            "a descriptor of another process",
            rustix::process::pidfd_getfd(&pidfd, 0, none).map(drop).map_err(Into::into),
        );
    } else {
        println!("skipped: refused calls: {in_force}");
    }
    if in_force.files == Some(Ok(())) {
        attempt("reading a file elsewhere", std::fs::read(&elsewhere).map(drop));
        attempt("listing a directory elsewhere", std::fs::read_dir("/").map(drop));
        attempt("removing a file elsewhere", remove(&elsewhere).map_err(Into::into));
    } else {
        println!("skipped: files out of reach: {in_force}");
    }
    remove(&root.join("node")).unwrap();
    println!("refused: {}; tried everything", refused.join(", "));
}

/// Set in the process of another user, which is this program once more: the node of the bus, and whom to write to.
const STRANGER: &str = "KDBUS_CONFINED_BUS";

#[test]
fn processes_of_other_users_are_seen_with_the_capabilities_that_stay() {
    if let Some(place) = std::env::var_os(STRANGER) {
        let place = place.into_string().unwrap();
        let (path, id) = place.rsplit_once('#').unwrap();
        let client: Client =
            Connection::with_capacities(LocalTransport::connect(path).unwrap(), &Hello::new()).unwrap();
        client.send(&Message::to(id.parse().unwrap())).unwrap();
        // Stays until the other end has read, so that its process is there to be looked at.
        let _ = std::io::stdin().read(&mut [0]);
        return;
    }
    if emulated("other users") {
        return;
    }
    if uid() != 0 {
        println!("skipped: other users: needs root for a second one");
        return;
    }
    let program = Program::start(&["--set", "log=error"]);
    let others = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(program.root.parent().unwrap(), others).unwrap();
    let host = program.hello(&Hello::new().ask_metadata(AttachFlags::all()));
    let name = WellKnownName::parse(SERVICE).unwrap();
    host.acquire(name, NameFlags::empty()).unwrap();
    // A name that the world may talk to lets strangers in.
    let (granted, to_all) =
        (PolicyName::from_bytes(SERVICE.as_bytes()).unwrap(), [PolicyAccess::world(Access::Talk)]);
    let _policy = program.hello(&Hello::new().policy_holder(granted).policy(&to_all));
    let mut stranger = Command::new(std::env::current_exe().unwrap());
    stranger.args(["--exact", "processes_of_other_users_are_seen_with_the_capabilities_that_stay"]);
    stranger.env(STRANGER, format!("{}/0-test/bus#{}", program.root.display(), host.id()));
    std::os::unix::process::CommandExt::uid(&mut stranger, 4242);
    let mut stranger = stranger.stdin(Stdio::piped()).stdout(Stdio::null()).current_dir("/").spawn().unwrap();
    let message = host.recv_blocking(SOON).unwrap();
    let metadata = message.metadata();
    assert_eq!(metadata.creds().unwrap().euid, 4242);
    let executable = std::env::current_exe().unwrap();
    assert_eq!(metadata.executable(), Some(executable.as_os_str().as_encoded_bytes()));
    assert_eq!(metadata.capabilities().unwrap().effective, 0);
    drop(stranger.stdin.take());
    assert!(stranger.wait().unwrap().success());
}

#[test]
fn policy_files_are_read_again_by_number_and_by_name() {
    for landlock in ["landlock=false", "landlock=true"] {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("policy.toml");
        // As an editor does: another file in its place.
        let write = |who: &str| {
            let new = dir.path().join("new");
            std::fs::write(&new, format!("[[name]]\nname = \"{SERVICE}\"\ntalk = [\"{who}\"]\n")).unwrap();
            std::fs::rename(new, &file).unwrap();
        };
        write("user:0");
        let mut program = Program::start(&["--set", landlock, "--policy", file.to_str().unwrap()]);
        for who in ["user:54321", "user:root", "group:root"] {
            write(who);
            rustix::process::kill_process(Pid::from_child(&program.child), Signal::HUP).unwrap();
            let line = program.policy_line();
            assert!(line.ends_with("its policy was read again"), "{line}");
        }
        // Every place where a name can be is looked at, and there is none.
        write("user:nobody-of-that-name");
        rustix::process::kill_process(Pid::from_child(&program.child), Signal::HUP).unwrap();
        let line = program.policy_line();
        assert!(line.contains("its policy stays as it was: "), "{line}");
        program.stop();
    }
}
