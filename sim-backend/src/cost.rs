//! What things cost on a machine: its cores, and the time of each thing that a program makes it do.

use std::fmt;

use kdbus_core::abi::Command;
use serde::{Deserialize, Serialize};

/// How messages travel between a client and the bus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Path {
    /// The kernel module: each command is a system call.
    Module,
    /// `kdbusd`: each command goes there and back, one at a time; receiving reads shared memory.
    #[default]
    Daemon,
    /// A channel to the peer: messages pass `kdbusd` by, everything else goes through it.
    Channel,
}

/// A machine: how many cores it has, and what things cost there in whole nanoseconds.
///
/// The presets' figures are measured where [`basis`](Self::basis) says so, and estimates otherwise.
/// `cargo run --release -p kdbus-benches --bin calibrate` measures the machine that it runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Board {
    /// What people call it.
    pub name: String,
    /// Where the figures come from.
    pub basis: String,
    /// Processor cores.
    pub cores: usize,
    /// How messages travel. Default: by the daemon.
    #[serde(default)]
    pub path: Path,
    /// Entering the kernel and coming back.
    pub syscall_ns: u64,
    /// Going to sleep until something comes, and finding out what came; the switches come on top of it.
    pub wait_ns: u64,
    /// One core going from one process to another.
    pub switch_ns: u64,
    /// Waking another task, for the one that does it.
    pub wake_ns: u64,
    /// From being woken until a core that has nothing better to do begins to switch to the task.
    pub wake_latency_ns: u64,
    /// From the time that a timer is set to until its task is woken.
    pub timer_latency_ns: u64,
    /// How much later a timer of a task under the normal policy may be.
    pub timer_slack_ns: u64,
    /// Copying one byte of a message, as often as it is copied on its way, in picoseconds.
    pub copy_ps: u64,
    /// The first access to a page.
    pub page_fault_ns: u64,
    /// What the bus itself does for a command in the kernel.
    pub command_ns: u64,
    /// A command without payload over the daemon and back, from the client's view.
    pub daemon_ns: u64,
    /// The part of it in which the daemon can serve nobody else.
    pub daemon_busy_ns: u64,
    /// Taking a message out of shared memory, or giving its slice back.
    pub receive_ns: u64,
    /// Writing a message into a channel.
    pub channel_ns: u64,
    /// How long a task under the normal policy runs while others wait.
    pub slice_ns: u64,
    /// How long a task under the round-robin policy runs while equals wait.
    pub round_robin_ns: u64,
}

/// What one command costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// From its beginning until its caller goes on.
    pub(crate) total_ns: u64,
    /// From its beginning until others see what it did.
    pub(crate) seen_ns: u64,
    /// How long the daemon serves nobody else.
    pub(crate) daemon_ns: u64,
}

impl Board {
    /// The presets, by name.
    pub const PRESETS: [&'static str; 5] = ["ideal", "vm", "a8", "a53", "a72"];

    /// A machine on which everything but a command takes no time; a command takes one microsecond.
    #[must_use]
    pub fn ideal(cores: usize) -> Self {
        Self {
            name: "ideal".to_owned(),
            basis: "nothing: no real machine is like this".to_owned(),
            cores: cores.max(1),
            path: Path::Module,
            syscall_ns: 0,
            wait_ns: 0,
            switch_ns: 0,
            wake_ns: 0,
            wake_latency_ns: 0,
            timer_latency_ns: 0,
            timer_slack_ns: 0,
            copy_ps: 0,
            page_fault_ns: 0,
            command_ns: 1_000,
            daemon_ns: 1_000,
            daemon_busy_ns: 0,
            receive_ns: 1_000,
            channel_ns: 1_000,
            slice_ns: 3_000_000,
            round_robin_ns: 100_000_000,
        }
    }

    /// The preset of this name, one of [`PRESETS`](Self::PRESETS).
    #[must_use]
    pub fn preset(name: &str) -> Option<Self> {
        let text = match name {
            "ideal" => return Some(Self::ideal(2)),
            "vm" => include_str!("../boards/vm.toml"),
            "a8" => include_str!("../boards/a8.toml"),
            "a53" => include_str!("../boards/a53.toml"),
            "a72" => include_str!("../boards/a72.toml"),
            _ => return None,
        };
        Self::from_toml(text).ok()
    }

    /// Reads a board from the text of a TOML file.
    ///
    /// # Errors
    ///
    /// [`BoardError`] if a field is missing, unknown or out of range.
    pub fn from_toml(text: &str) -> Result<Self, BoardError> {
        let board: Self = toml::from_str(text).map_err(|error| BoardError(error.to_string()))?;
        if board.cores == 0 || board.cores > 256 {
            return Err(BoardError(format!("a machine has 1 to 256 cores, not {}", board.cores)));
        }
        if board.slice_ns == 0 || board.round_robin_ns == 0 {
            return Err(BoardError("a time slice of 0 ns leads nowhere".to_owned()));
        }
        Ok(board)
    }

    /// The board as a TOML file.
    #[must_use]
    pub fn to_toml(&self) -> String {
        // Only maps with keys that are not text make this an error; there is none.
        toml::to_string(self).unwrap_or_default()
    }

    /// What copying `bytes` costs.
    #[must_use]
    pub const fn copy_ns(&self, bytes: u64) -> u64 {
        bytes.saturating_mul(self.copy_ps) / 1000
    }

    /// What a command with `bytes` of payload costs that wakes somebody if `wakes`.
    pub(crate) const fn command(&self, command: Command, bytes: u64, wakes: bool) -> Cost {
        let copy = self.copy_ns(bytes);
        let wake = if wakes { self.wake_ns } else { 0 };
        let is_local = matches!(command, Command::Recv | Command::Free);
        match self.path {
            Path::Module => direct(self.syscall_ns + self.command_ns, copy, wake),
            _ if is_local => direct(self.receive_ns, copy, wake),
            Path::Channel if matches!(command, Command::Send) => direct(self.channel_ns, copy, wake),
            _ => {
                // The receiver is woken by the daemon, which then answers the sender.
                let total_ns = self.daemon_ns + copy + wake;
                Cost {
                    total_ns,
                    seen_ns: self.daemon_ns / 2 + copy + wake,
                    daemon_ns: self.daemon_busy_ns + copy + wake,
                }
            }
        }
    }
}

const fn direct(own: u64, copy: u64, wake: u64) -> Cost {
    let total_ns = own + copy + wake;
    Cost { total_ns, seen_ns: total_ns, daemon_ns: 0 }
}

/// Why a text is no board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoardError(String);

impl fmt::Display for BoardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a board: {}", self.0.trim_end())
    }
}

impl std::error::Error for BoardError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_board_and_says_what_it_rests_on() {
        for name in Board::PRESETS {
            let board = Board::preset(name).unwrap();
            assert_eq!(board.name, name);
            assert!(!board.basis.is_empty());
        }
        assert_eq!(Board::preset("z80"), None);
    }

    #[test]
    fn a_board_reads_back_from_its_own_text() {
        let board = Board::preset("a72").unwrap();
        assert_eq!(Board::from_toml(&board.to_toml()), Ok(board));
    }

    #[test]
    fn boards_with_missing_unknown_or_impossible_fields_are_refused() {
        let text = Board::ideal(1).to_toml();
        assert!(Board::from_toml(&text.replace("cores = 1", "cores = 0")).is_err());
        assert!(Board::from_toml(&text.replace("slice_ns = 3000000", "slice_ns = 0")).is_err());
        assert!(Board::from_toml(&format!("{text}colour = 1\n")).is_err());
        assert!(Board::from_toml("name = \"x\"").is_err());
    }

    #[test]
    fn what_goes_by_the_daemon_keeps_it_busy_and_receiving_does_not() {
        let mut board = Board { daemon_ns: 20_000, daemon_busy_ns: 8_000, ..Board::ideal(2) };
        board.path = Path::Daemon;
        let send = board.command(Command::Send, 0, false);
        assert_eq!((send.total_ns, send.seen_ns, send.daemon_ns), (20_000, 10_000, 8_000));
        assert_eq!(board.command(Command::Recv, 0, false).daemon_ns, 0);
        board.path = Path::Channel;
        assert_eq!(board.command(Command::Send, 0, false).total_ns, 1_000);
        assert_eq!(board.command(Command::NameAcquire, 0, false).total_ns, 20_000);
    }

    #[test]
    fn copies_cost_by_the_byte() {
        let board = Board { copy_ps: 250, ..Board::ideal(1) };
        assert_eq!(board.copy_ns(4096), 1024);
        assert_eq!(board.copy_ns(u64::MAX), u64::MAX / 1000);
    }
}
