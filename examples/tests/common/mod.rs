//! What the tests of both pipelines have in common.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

/// A directory with a bus of its own, for one of the pipelines.
pub(crate) struct Place {
    program: &'static str,
    directory: TempDir,
}

impl Place {
    pub(crate) fn new(program: &'static str) -> Self {
        Self { program, directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    pub(crate) fn pipeline(&self) -> Command {
        let mut command = Command::new(self.program);
        command.env("KDBUS_ROOT", self.path("bus")).env_remove("KDBUS_BUS");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{:?}: {}", output.status, stderr(output));
    serde_json::from_slice(&output.stdout).unwrap()
}
