//! The daemon and its clients as processes.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};

use kdbus_core::client::{Connection, Hello};
use kdbus_linux::local::{Environment, Options};

use crate::common;

/// A client in a process of its own, killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    pub(crate) fn start(role: &str, bus: &Path, user: Option<u32>) -> Self {
        Self::by(Command::new(std::env::current_exe().unwrap()), role, bus, user)
    }

    /// In user and pid namespaces of its own, where it is user 0 and process 1.
    pub(crate) fn apart(role: &str, bus: &Path, user: u32) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
        command.arg(std::env::current_exe().unwrap());
        Self::by(command, role, bus, Some(user))
    }

    /// In a time namespace of its own, a day ahead.
    pub(crate) fn ahead(role: &str, bus: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--time", "--monotonic", "86400", "--fork", "--kill-child"]);
        command.arg(std::env::current_exe().unwrap());
        Self::by(command, role, bus, None)
    }

    fn by(mut command: Command, role: &str, bus: &Path, user: Option<u32>) -> Self {
        command.args(["client", role]).arg(bus).stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user).current_dir("/");
        }
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self { child, output }
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// The id in the line that says that the client is ready.
    pub(crate) fn ready(&mut self) -> u64 {
        let line = self.line();
        line.strip_prefix("ready ").unwrap_or_else(|| panic!("{line}")).parse().unwrap()
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's program on a root of its own.
pub(crate) struct Program {
    pub(crate) child: Child,
    pub(crate) root: PathBuf,
    pub(crate) _dir: tempfile::TempDir,
}

pub(crate) fn program(root: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kdbusd"));
    command.arg("--root").arg(root).args(["--set", "capacity.connections=8", "--set", "log=error"]);
    command
}

impl Program {
    pub(crate) fn start() -> Self {
        Self::start_after("true")
    }

    pub(crate) fn start_after(first: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("kdbus");
        let child = start_program_after(first, &root);
        Self { child, root, _dir: dir }
    }

    /// With the policy in `file`, at a place that other users get to.
    pub(crate) fn with_policy(file: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        open_to_all(dir.path());
        let root = dir.path().join("kdbus");
        let child = start_command("true", program(&root).arg("--policy").arg(file));
        Self { child, root, _dir: dir }
    }

    pub(crate) fn bus(&self) -> common::Client {
        self.try_bus().unwrap()
    }

    pub(crate) fn try_bus(&self) -> Option<common::Client> {
        let uid = rustix::process::geteuid().as_raw();
        let root = self.root.as_os_str().as_encoded_bytes();
        let options = Options::new().environment(Environment::new(uid).with_root(root).unwrap());
        let hello = Hello::new().accept_fds();
        Connection::with_capacities(options.connect_default().unwrap(), &hello).ok()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the program and waits until it says on descriptor 3 that it is ready.
pub(crate) fn start_program(root: &Path) -> Child {
    start_program_after("true", root)
}

/// The same, after what `first` does in the shell that starts it.
pub(crate) fn start_program_after(first: &str, root: &Path) -> Child {
    start_command(first, &program(root))
}

pub(crate) fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

pub(crate) fn start_command(first: &str, program: &Command) -> Child {
    // The shell hands its standard output on as descriptor 3.
    let mut command = Command::new("sh");
    command.args(["-c", &format!("{first}; exec \"$0\" \"$@\" --ready-fd 3 3>&1 >/dev/null")]);
    command.arg(program.get_program()).args(program.get_args());
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    child.stdout.take().unwrap().read_to_string(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    child
}

pub(crate) fn signal(child: &Child, signal: rustix::process::Signal) {
    rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
}
