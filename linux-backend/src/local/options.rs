//! How a transport is made, and over which node.

use core::cell::Cell;
use core::time::Duration;

use super::detour::Detour;
use super::error::ConnectError;
use super::gate;
use super::handle::Handle;
use super::place::Environment;
use super::spin::Spin;
use super::transport::LocalTransport;

/// Lanes that are brought unless an application says otherwise.
const LANES: usize = 4;
/// Messages to one receiver before a lane is asked for.
pub(super) const LANE_AFTER: u32 = 4;

/// How a [`LocalTransport`] is made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    environment: Environment,
    staging: u64,
    prefault: bool,
    lanes: usize,
    lane_after: u32,
    detour: Detour,
    spin: Option<Duration>,
}

impl Options {
    /// What this process' environment says, and the defaults below.
    #[must_use]
    pub fn new() -> Self {
        Self {
            environment: Environment::current(),
            staging: 1 << 20,
            prefault: true,
            lanes: LANES,
            lane_after: LANE_AFTER,
            detour: Detour::NONE,
            spin: None,
        }
    }

    /// Looks for buses where `environment` says. Default: [`Environment::current`].
    #[must_use]
    pub const fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Sets memory aside at connect for payloads too large for a packet, in bytes. A larger message makes it
    /// grow when it is sent, or [`LocalTransport::prepare`] beforehand. Default: 1 MiB; 0 sets none aside.
    #[must_use]
    pub const fn staging(mut self, bytes: u64) -> Self {
        self.staging = bytes;
        self
    }

    /// Maps all pages of the pool at HELLO, so that no receive takes a page fault. The cost is the pool's
    /// size, in memory that is really there. Default: yes.
    #[must_use]
    pub const fn prefault(mut self, prefault: bool) -> Self {
        self.prefault = prefault;
        self
    }

    /// Brings lanes at HELLO, by which as many senders can reach this connection past kdbusd, if kdbusd has any, and
    /// has as many by which to send. Each takes some five times its bytes (kdbusd's `memory.lane`), in memory that is
    /// really there. Default: 4; 0 for neither.
    #[must_use]
    pub const fn lanes(mut self, count: usize) -> Self {
        self.lanes = count;
        self
    }

    /// Asks for a lane to a receiver once so many messages went to it by kdbusd: asking takes longer than one message.
    /// Default: 4.
    #[must_use]
    pub const fn lane_after(mut self, messages: u32) -> Self {
        self.lane_after = messages;
        self
    }

    /// Looks at shared memory for at most `span` before a wait sleeps: who is found awake is not rung, and need not wake up.
    /// It does so only while that mostly found something lately, and tries again now and then. At most a second; 0 never
    /// looks.
    ///
    /// Default: 20 µs, about what sleeping and waking takes, if the thread that connects may use more than one processor
    /// (`sched_getaffinity`), and 0 otherwise: on one alone, the peer cannot send while this one looks. Threads that are
    /// pinned, each to a processor of its own, have to say so; one of a real-time class that shares its processor with the
    /// peer is better off with 0, whatever others there are.
    #[must_use]
    pub const fn spin(mut self, span: Duration) -> Self {
        self.spin = Some(span);
        self
    }

    /// Sends every other message through kdbusd though a lane leads to its receiver; `seed` says which. For tests that
    /// mix both ways: an application has nothing from it.
    #[doc(hidden)]
    #[must_use]
    pub const fn detours(mut self, seed: u64) -> Self {
        self.detour = Detour::by_seed(seed);
        self
    }

    /// Opens a bus, endpoint or `control` by its name, or any node by its absolute path.
    ///
    /// # Errors
    ///
    /// [`ConnectError`], which says what to do.
    pub fn connect(&self, name: &str) -> Result<LocalTransport, ConnectError> {
        self.over(Handle::open(self.environment.node(name)?, self.staging, self.prefault)?)
    }

    /// A transport over an open node.
    ///
    /// # Errors
    ///
    /// [`ConnectError::System`] if there are no descriptors left to wait on.
    pub fn over(&self, handle: Handle) -> Result<LocalTransport, ConnectError> {
        let mut transport = LocalTransport::over(handle)?;
        transport.wanted = (self.lanes, self.lane_after);
        transport.detour = self.detour;
        if gate().is_some() {
            transport.spin = Cell::new(Some(Spin::new(self.spin)));
        }
        Ok(transport)
    }

    /// Opens the bus that the environment names in `KDBUS_BUS`; without that, the first one that exists of
    /// the user's own bus (`<uid>-user`) and the system's (`0-system`).
    ///
    /// # Errors
    ///
    /// [`ConnectError`] for the last bus that was tried.
    pub fn connect_default(&self) -> Result<LocalTransport, ConnectError> {
        let mut last = None;
        for path in self.environment.defaults().into_iter().flatten() {
            let opened = path
                .map_err(ConnectError::from)
                .and_then(|path| Handle::open(path, self.staging, self.prefault));
            match opened {
                Ok(handle) => return self.over(handle),
                Err(error) if error.is_absence() => last = last.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(last.unwrap_or(ConnectError::Place(super::PlaceError::NoRoot)))
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}
