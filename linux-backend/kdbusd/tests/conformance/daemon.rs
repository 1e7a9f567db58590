//! The daemon under test.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command as Program, Stdio};

use kdbus_conformance::{CaseInfo, Needs};

use crate::world::{DaemonWorld, configuration};

/// A running daemon with a tree of its own, ended on drop.
pub(crate) struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    fn start(needs: Needs) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to get at the nodes.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("kdbusd.toml");
        std::fs::write(&file, configuration(needs)).unwrap();
        // A shell, because the daemon tells on a descriptor of its own that it is ready. What is built for another
        // machine is run by an emulator.
        let mut process = Program::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" --ready-fd 3 3>&1"])
            .args(std::env::var_os("KDBUS_TEST_RUNNER"))
            .args([env!("CARGO_BIN_EXE_kdbusd"), "--config"])
            .arg(&file)
            .arg("--root")
            .arg(directory.path().join("tree"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "kdbusd did not start: {:?}", process.wait());
        Self { process, directory }
    }

    /// A world with a daemon of its own.
    pub(crate) fn world(case: &CaseInfo) -> DaemonWorld<Self> {
        let daemon = Self::start(case.needs());
        DaemonWorld::new(daemon.directory.path().join("tree"), daemon)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
