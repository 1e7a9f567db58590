//! Telling whoever started the daemon how it is doing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use kdbus_core::Instant;

/// Sends `state` (`READY=1`, `STOPPING=1`) to the service manager that listens at `socket`, the value of
/// `NOTIFY_SOCKET`.
///
/// # Errors
///
/// What the system said.
pub fn notify(socket: &OsStr, state: &str) -> io::Result<()> {
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address(socket)?).map(|_| ())
}

/// Tells a service manager, from the daemon's own loop, that the loop still turns.
#[derive(Debug)]
pub struct Watchdog {
    socket: UnixDatagram,
    period: Duration,
    due_at: Option<Instant>,
}

impl Watchdog {
    /// A watchdog that tells the manager at `socket` so twice in each `limit`.
    ///
    /// # Errors
    ///
    /// What the system said.
    pub fn new(socket: &OsStr, limit: Duration) -> io::Result<Self> {
        let manager = UnixDatagram::unbound()?;
        manager.set_nonblocking(true)?;
        manager.connect_addr(&address(socket)?)?;
        Ok(Self { socket: manager, period: limit / 2, due_at: None })
    }

    /// What a manager asks for in `WATCHDOG_USEC`, unless `WATCHDOG_PID` names another process than `pid`.
    #[must_use]
    pub fn limit(usec: Option<&str>, wanted: Option<&str>, pid: u32) -> Option<Duration> {
        if wanted.is_some_and(|wanted| wanted.parse() != Ok(pid)) {
            return None;
        }
        let usec = usec?.parse().ok().filter(|usec| *usec > 0)?;
        Some(Duration::from_micros(usec))
    }

    /// When the manager has to be told next, if it has been told at all.
    pub(crate) const fn due_at(&self) -> Option<Instant> {
        self.due_at
    }

    /// Tells the manager if it is time. A manager that does not read is told again a period later.
    pub(crate) fn turn(&mut self, now: Instant) {
        if self.due_at.is_none_or(|due_at| due_at <= now) {
            let _ = self.socket.send(b"WATCHDOG=1\n");
            self.due_at = Some(now.after(self.period));
        }
    }
}

fn address(socket: &OsStr) -> io::Result<SocketAddr> {
    match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(socket),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_manager_hears_that_the_daemon_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        notify(path.as_os_str(), "READY=1\n").unwrap();
        let mut text = [0; 16];
        let length = manager.recv(&mut text).unwrap();
        assert_eq!(&text[..length], b"READY=1\n");
    }

    #[test]
    fn a_watchdog_tells_at_once_and_then_once_in_half_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let told = || {
            let mut text = [0; 32];
            manager.recv(&mut text).ok().map(|length| text[..length].to_vec())
        };
        let mut watchdog = Watchdog::new(path.as_os_str(), Duration::from_secs(10)).unwrap();
        let start = Instant::from_nanos(0);
        watchdog.turn(start);
        assert_eq!(told().as_deref(), Some(&b"WATCHDOG=1\n"[..]));
        watchdog.turn(start.after(Duration::from_secs(4)));
        assert_eq!(told(), None);
        let due_at = start.after(Duration::from_secs(5));
        assert_eq!(watchdog.due_at(), Some(due_at));
        watchdog.turn(due_at);
        assert!(told().is_some());
    }

    #[test]
    fn a_watchdog_for_another_process_or_without_a_limit_is_none() {
        assert_eq!(Watchdog::limit(Some("2000000"), Some("7"), 7), Some(Duration::from_secs(2)));
        assert_eq!(Watchdog::limit(Some("2000000"), None, 7), Some(Duration::from_secs(2)));
        assert_eq!(Watchdog::limit(Some("2000000"), Some("8"), 7), None);
        assert_eq!(Watchdog::limit(Some("0"), None, 7), None);
        assert_eq!(Watchdog::limit(Some("soon"), None, 7), None);
        assert_eq!(Watchdog::limit(None, None, 7), None);
    }
}
