//! The daemon under test.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command as Program, Stdio};

use kdbus_conformance::Needs;

/// A running daemon with a tree of its own, ended on drop.
pub(crate) struct Daemon {
    process: Child,
    directory: tempfile::TempDir,
}

impl Daemon {
    pub(crate) fn start(needs: Needs) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to get at the nodes.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let file = directory.path().join("kdbusd.toml");
        std::fs::write(&file, configuration(needs)).unwrap();
        // A shell, because the daemon tells on a descriptor of its own that it is ready.
        let mut process = Program::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" --ready-fd 3 3>&1", env!("CARGO_BIN_EXE_kdbusd"), "--config"])
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

    pub(crate) fn path(&self, node: &str) -> PathBuf {
        self.directory.path().join("tree").join(node)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(needs: Needs) -> String {
    format!(
        "bus = []\nlog = \"error\"\n\
         [capacity]\nclients = {clients}\nclients-per-user = {clients}\nbuses = {buses}\nendpoints = {endpoints}\n\
         connections = {connections}\nqueue-depth = {messages}\npool-slices = {slices}\nnames = {names}\n\
         name-records = {records}\nmatches = {matches}\nmatch-rules = {rules}\ntrackers = {calls}\n\
         [memory]\npools = \"1 GiB\"\nlargest-pool = \"32 MiB\"\npools-per-user = \"1 GiB\"\n",
        clients = needs.connections + needs.buses + 16,
        buses = needs.buses,
        endpoints = needs.buses + 8,
        connections = needs.connections,
        messages = needs.messages,
        slices = needs.slices,
        names = needs.names,
        records = needs.names + 8,
        matches = needs.matches,
        rules = needs.matches + 8,
        calls = needs.calls,
    )
}
