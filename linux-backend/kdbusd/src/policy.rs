//! Policy files: applied when a bus is made, and again when the daemon is told to read them anew.
//!
//! Reading them is the one thing after start-up that allocates.

use std::fmt;
use std::path::{Path, PathBuf};

use kdbus_core::engine::{HandleId, PolicyRefused};
use kdbus_policy::{Policy, PolicyError};
use rustix::fd::AsFd;
use rustix::io;

use crate::config::LogLevel;
use crate::daemon::Daemon;
use crate::host::Turn;

/// A bus with a policy file.
#[derive(Debug)]
pub(crate) struct FromFile {
    owner: HandleId,
    bus: String,
    path: PathBuf,
}

/// Why a policy file was not applied. The policy is what it was before.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ApplyError {
    /// The file is wrong.
    File(PolicyError),
    /// The bus does not take it.
    Refused {
        /// The file.
        path: PathBuf,
        /// The bus, the uid in front.
        bus: String,
        /// Why, and what to do.
        why: String,
    },
}

impl Daemon {
    /// Applies a policy file to a bus that `owner` has made, and remembers it for
    /// [`reload_policies`](Self::reload_policies).
    pub(crate) fn apply_policy(&mut self, owner: HandleId, bus: &str, path: &Path) -> Result<(), ApplyError> {
        let file = FromFile { owner, bus: bus.to_owned(), path: path.to_owned() };
        self.apply_file(&file)?;
        self.policies.push(file);
        Ok(())
    }

    /// Reads all policy files again. Each is checked as a whole and then takes the place of the former policy; one that is
    /// wrong changes nothing, and the log says why.
    pub fn reload_policies(&mut self) {
        let files = std::mem::take(&mut self.policies);
        for file in &files {
            let (level, result) = match self.apply_file(file) {
                Ok(()) => (LogLevel::Info, "its policy was read again".to_owned()),
                Err(error) => (LogLevel::Error, format!("its policy stays as it was: {error}")),
            };
            self.state.log.line(level, format_args!("bus {}: {result}", file.bus));
        }
        self.policies = files;
    }

    /// Has [`run`](Self::run) read all policy files again whenever something comes out of `order`, which does not
    /// block.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn reload_on(&mut self, order: impl AsFd) -> io::Result<()> {
        let order = io::fcntl_dupfd_cloexec(order, 0)?;
        self.state.poller.reload_on(&order)?;
        self.reload = Some(order);
        Ok(())
    }

    /// The order to read the files again has come.
    pub(crate) fn reload_ordered(&mut self) {
        if let Some(order) = &self.reload {
            let mut bytes = [0; 64];
            if !matches!(io::read(order, &mut bytes), Ok(1..)) {
                // Nobody can give it any more.
                self.reload = None;
                return;
            }
        }
        self.reload_policies();
    }

    fn apply_file(&mut self, file: &FromFile) -> Result<(), ApplyError> {
        let policy = Policy::load(&file.path).map_err(ApplyError::File)?;
        let mut turn = Turn::idle(&mut self.state);
        let items = policy.items();
        self.domain.set_bus_policy(&mut turn, file.owner, &items).map_err(|refused| file.refused(refused))?;
        self.settle();
        Ok(())
    }
}

impl FromFile {
    fn refused(&self, refused: PolicyRefused<'_>) -> ApplyError {
        let fix = match refused {
            PolicyRefused::Held(_) => "leave the name to one of the two",
            PolicyRefused::Full => "raise capacity.policy-entries and capacity.policy-records",
            _ => "check it with kdbusctl policy check",
        };
        ApplyError::Refused {
            path: self.path.clone(),
            bus: self.bus.clone(),
            why: format!("{refused}; {fix}"),
        }
    }
}

impl fmt::Display for ApplyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(error) => error.fmt(f),
            Self::Refused { path, bus, why } => {
                write!(f, "{}: bus {bus} does not take it: {why}", path.display())
            }
        }
    }
}

impl std::error::Error for ApplyError {}
