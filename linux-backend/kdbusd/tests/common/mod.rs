//! A daemon of its own for each test, and clients of it.
#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod attacker;
pub(crate) mod calls;

use kdbus_core::client::{Connection, Hello};
use kdbus_linux::local::socket::{self, Descriptors, Wait};
use kdbus_linux::local::wire::Header;
use kdbus_linux::local::{ConnectError, Environment, LocalTransport, Options};
use kdbusd::Running;
use kdbusd::config::{BusConfig, Config};

pub(crate) type Client = Connection<LocalTransport>;

/// A running daemon whose tree lies in a directory of its own.
pub(crate) struct Bus {
    daemon: Option<Running>,
    pub(crate) root: std::path::PathBuf,
    pub(crate) uid: u32,
    config: Config,
    _dir: tempfile::TempDir,
}

/// A configuration for a few clients.
pub(crate) fn small(root: &std::path::Path) -> Config {
    let uid = rustix::process::geteuid().as_raw();
    let mut config = Config::new(uid, root.join("kdbus"));
    config.bus = vec![BusConfig { access: kdbusd::config::Access::World, ..config.bus.remove(0) }];
    config.bus[0].name = "test".into();
    config.log = kdbusd::config::LogLevel::Error;
    config.capacity.clients = 24;
    config.capacity.connections = 16;
    config.capacity.queue_depth = 64;
    config.capacity.pool_slices = 128;
    config
}

impl Bus {
    pub(crate) fn start() -> Self {
        Self::with(|_| {})
    }

    pub(crate) fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Other users have to get through.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        let mut config = small(dir.path());
        change(&mut config);
        let uid = rustix::process::geteuid().as_raw();
        let daemon = Some(Running::start(&config).unwrap());
        Self { daemon, root: config.root.clone(), uid, config, _dir: dir }
    }

    /// Ends the daemon and starts one in its place.
    pub(crate) fn restart(&mut self) {
        self.stop();
        self.daemon = Some(Running::start(&self.config).unwrap());
    }

    pub(crate) fn stop(&mut self) {
        self.daemon.take().unwrap().stop().unwrap();
    }

    pub(crate) fn options(&self) -> Options {
        let root = self.root.as_os_str().as_encoded_bytes();
        Options::new().environment(Environment::new(self.uid).with_root(root).unwrap()).prefault(false)
    }

    pub(crate) fn name(&self) -> String {
        format!("{}-test", self.uid)
    }

    pub(crate) fn open(&self) -> LocalTransport {
        self.try_open().unwrap()
    }

    pub(crate) fn try_open(&self) -> Result<LocalTransport, ConnectError> {
        self.options().staging(0).connect(&self.name())
    }

    /// A connection that neither brings lanes nor asks for any by itself.
    pub(crate) fn connect_without_lanes(&self) -> Client {
        let transport = self.options().staging(0).lanes(0).connect(&self.name()).unwrap();
        Connection::with_capacities(transport, &Hello::new()).unwrap()
    }

    pub(crate) fn connect(&self) -> Client {
        self.hello(&Hello::new())
    }

    pub(crate) fn hello(&self, hello: &Hello<'_>) -> Client {
        Connection::with_capacities(self.open(), hello).unwrap()
    }
}

/// Sends a packet behind the back of `client`, and returns what kdbusd answers, with the descriptors in it.
pub(crate) fn exchange(client: &Client, header: &Header, parts: &[&[u8]]) -> (Header, Descriptors) {
    let kdbusd = client.transport().handle().socket();
    socket::send(kdbusd, header, parts, &[], Wait::Yes).unwrap();
    let (mut bytes, mut fds) = ([0; 4096], Descriptors::new());
    socket::recv(kdbusd, &mut bytes, &mut fds, Wait::Yes).unwrap();
    (zerocopy::FromBytes::read_from_prefix(&bytes).unwrap().0, fds)
}
