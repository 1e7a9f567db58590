//! A daemon of its own for each test, and the real tool against it.
#![allow(dead_code, reason = "each test file uses a part")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use kdbus_core::client::{Connection, Hello};
use kdbus_core::{NodeName, WellKnownName};
use kdbus_linux::local::{Environment, LocalTransport, Options};
use kdbusd::Running;
use kdbusd::config::{BusConfig, Config, LogLevel};
use serde_json::Value;

/// Far beyond what anything here takes; a test that is stuck ends with an error and not never.
pub(crate) const STUCK: &str = "60s";

/// A daemon in a directory of its own.
pub(crate) struct Bus {
    daemon: Running,
    _dir: tempfile::TempDir,
}

impl Bus {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let mut config = Config::new(uid, dir.path().join("kdbus"));
        config.log = LogLevel::Error;
        config.bus = vec![BusConfig { name: "test".into(), ..config.bus.remove(0) }];
        // One user is everybody here, and several commands run at a time.
        config.capacity.clients = 32;
        config.capacity.connections = 32;
        change(&mut config);
        Self { daemon: Running::start(&config).unwrap(), _dir: dir }
    }

    pub(crate) fn root(&self) -> &Path {
        self.daemon.root()
    }

    pub(crate) fn name() -> String {
        format!("{}-test", rustix::process::geteuid().as_raw())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_at(&Self::name(), arguments)
    }

    /// A command over another node than the bus' default one.
    pub(crate) fn command_at(&self, node: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kdbusctl"));
        command.env_remove("KDBUS_ROOT").env_remove("KDBUS_BUS");
        command.arg("--root").arg(self.root()).arg("--bus").arg(node).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that has to succeed; its standard output.
    pub(crate) fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), errors.as_str()), (Some(0), ""), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// As [`text`](Self::text), as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> Value {
        let mut with_json = vec!["--json"];
        with_json.extend(arguments);
        serde_json::from_str(&self.text(&with_json)).unwrap()
    }

    /// Runs a command that has to fail; its exit code and what it says.
    pub(crate) fn failure(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.run(arguments);
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    }

    pub(crate) fn background(&self, arguments: &[&str]) -> Background {
        Background::new(self.command(arguments))
    }

    /// A connection of this test's own.
    pub(crate) fn connect(&self, description: &str) -> Connection<LocalTransport> {
        let root = self.root().as_os_str().as_encoded_bytes();
        let environment = Environment::current().with_root(root).unwrap();
        let transport =
            Options::new().environment(environment).prefault(false).connect(&Self::name()).unwrap();
        let hello = Hello::new().description(NodeName::parse(description).unwrap());
        Connection::hello(transport, &hello).unwrap()
    }
}

/// A command that runs beside the test.
pub(crate) struct Background {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Background {
    pub(crate) fn new(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line, which is waited for; empty at the end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn json(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    pub(crate) fn exit_code(mut self) -> i32 {
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn name(text: &str) -> WellKnownName<'_> {
    WellKnownName::parse(text).unwrap()
}
