//! A daemon of its own for each test, and where cargo put the library.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::{Path, PathBuf};

use kdbusd::Running;
use kdbusd::config::{BusConfig, Config, LogLevel};

pub(crate) mod header;

/// A running daemon whose tree lies in a directory of its own.
pub(crate) struct Bus {
    daemon: Option<Running>,
    dir: tempfile::TempDir,
}

impl Bus {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        let mut config = Config::new(uid, dir.path().join("kdbus"));
        config.log = LogLevel::Error;
        config.bus = vec![BusConfig { name: "test".into(), ..config.bus.remove(0) }];
        // One user is everybody here.
        config.capacity.clients = 16;
        config.capacity.connections = 16;
        Self { daemon: Some(Running::start(&config).unwrap()), dir }
    }

    /// The path of the bus' node.
    pub(crate) fn node(&self) -> PathBuf {
        let uid = rustix::process::geteuid().as_raw();
        self.dir.path().join(format!("kdbus/{uid}-test/bus"))
    }

    pub(crate) fn stop(&mut self) {
        self.daemon.take().unwrap().stop().unwrap();
    }
}

/// Where cargo put `libkdbus_rt.so` and `libkdbus_rt.a`: beside the tests.
pub(crate) fn libraries() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_path_buf()
}

/// The sources of this package.
pub(crate) fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
