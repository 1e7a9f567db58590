//! A daemon whose sockets were there before it: what a service manager does, with the real program.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use kdbus_core::client::{Connection, Hello};
use kdbus_linux::local::{Environment, LocalTransport, Options};
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketType};

/// A directory for a tree. What daemons leave there for the next one goes with it.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> std::path::PathBuf {
        self.0.path().join("kdbus")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The mode of a bus directory keeps its owner from removing what is in it.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        let _ = std::fs::set_permissions(self.root().join(format!("{}-early", uid())), open);
    }
}

/// A socket that listens at `path`, as a socket unit has it.
fn listen(path: &Path, kind: SocketType) -> OwnedFd {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let socket = net::socket(AddressFamily::UNIX, kind, None).unwrap();
    net::bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    net::listen(&socket, 16).unwrap();
    socket
}

/// Starts kdbusd on `root` with two sockets, which it finds as descriptors 3 and 4.
fn start(root: &Path, first: OwnedFd, second: OwnedFd) -> Child {
    let script = "LISTEN_PID=$$ LISTEN_FDS=2; export LISTEN_PID LISTEN_FDS; exec \"$0\" \"$@\" 3<&0 4<&1 </dev/null >/dev/null";
    let mut command = Command::new("sh");
    command.args(["-c", script, env!("CARGO_BIN_EXE_kdbusd"), "--bus", "early", "--root"]).arg(root);
    command.args(["--set", "log=error"]);
    command.stdin(Stdio::from(first)).stdout(Stdio::from(second)).stderr(Stdio::piped());
    command.spawn().unwrap()
}

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn connect(root: &Path) -> LocalTransport {
    let environment = Environment::new(uid()).with_root(root.as_os_str().as_encoded_bytes()).unwrap();
    Options::new().environment(environment).connect(&format!("{}-early", uid())).unwrap()
}

#[test]
fn who_connects_before_the_daemon_runs_is_served() {
    let dir = Place::new();
    let root = dir.root();
    let bus = root.join(format!("{}-early/bus", uid()));
    let control = listen(&root.join("control"), SocketType::SEQPACKET);
    let listener = listen(&bus, SocketType::SEQPACKET);
    // Nobody accepts yet; the kernel keeps this one.
    let early = connect(&root);
    let mut daemon = start(&root, control, listener);
    let first: Connection<_> = Connection::hello(early, &Hello::new()).unwrap();
    let second: Connection<_> = Connection::hello(connect(&root), &Hello::new()).unwrap();
    assert!(first.id() < second.id());
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&bus).unwrap().permissions());
    assert!(mode & 0o777 == 0o666 || mode & 0o777 == 0o600, "the node has the bus' mode: {mode:o}");

    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM)
        .unwrap();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn who_comes_between_two_daemons_is_served_by_the_second() {
    let dir = Place::new();
    let root = dir.root();
    let control = listen(&root.join("control"), SocketType::SEQPACKET);
    let listener = listen(&root.join(format!("{}-early/bus", uid())), SocketType::SEQPACKET);
    let copies = || (control.try_clone().unwrap(), listener.try_clone().unwrap());
    for signal in
        [rustix::process::Signal::TERM, rustix::process::Signal::KILL, rustix::process::Signal::TERM]
    {
        // Also at the nodes that the last daemon left, ended in order or not.
        let waiting = connect(&root);
        let (first, second) = copies();
        let mut daemon = start(&root, first, second);
        let _served: Connection<_> = Connection::hello(waiting, &Hello::new()).unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), signal).unwrap();
        daemon.wait().unwrap();
    }

    // A node that somebody removed is made anew.
    std::fs::remove_file(root.join("control")).unwrap();
    let (first, second) = copies();
    let waiting = connect(&root);
    let mut daemon = start(&root, first, second);
    let _served: Connection<_> = Connection::hello(waiting, &Hello::new()).unwrap();
    assert!(root.join("control").exists());
    rustix::process::kill_process(rustix::process::Pid::from_child(&daemon), rustix::process::Signal::TERM)
        .unwrap();
    daemon.wait().unwrap();
}

#[test]
fn a_socket_that_is_no_node_or_no_packet_socket_is_refused() {
    for (name, kind, says) in [
        ("stray", SocketType::SEQPACKET, "name its bus in the configuration"),
        ("control", SocketType::STREAM, "descriptor"),
    ] {
        let dir = Place::new();
        let root = dir.root();
        let first = listen(&root.join(name), kind);
        let second = listen(&root.join(format!("{}-early/bus", uid())), SocketType::SEQPACKET);
        let output = start(&root, first, second).wait_with_output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && errors.contains(says), "{name}: {errors}");
    }
}

#[test]
fn a_manager_hears_that_the_daemon_is_ready_and_that_its_idle_loop_turns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    // Ends the test, instead of the wait, if nothing ever comes.
    manager.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdbusd"));
    command.args(["--set", "log=error", "--root"]).arg(dir.path().join("kdbus"));
    let mut daemon = command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000").spawn().unwrap();
    let mut text = [0; 32];
    for expected in ["READY=1\n", "WATCHDOG=1\n", "WATCHDOG=1\n", "WATCHDOG=1\n"] {
        let length = manager.recv(&mut text).unwrap();
        assert_eq!(std::str::from_utf8(&text[..length]), Ok(expected));
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}
