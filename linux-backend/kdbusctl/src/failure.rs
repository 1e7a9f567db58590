//! How a failure ends the program: a text for people, a code for scripts.

use std::fmt::Display;
use std::process::ExitCode;

use kdbus_core::client::{
    AcquireError, Broken, CallError, HelloError, MatchError, QueryError, RecvError, SendError, WaitError,
};
use kdbus_linux::local::ConnectError;
use serde_json::json;

/// The codes below, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed for a reason without a code of its own
  2  wrong usage
  3  no bus, or the connection to it is gone
  4  nobody owns the name, or there is no such connection
  5  the bus refused: policy, quota, or the name is taken
  6  the time was up
  7  the service answered with an error
  8  the service went away before it answered";

/// What the exit code says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    NoBus = 3,
    NobodyThere = 4,
    Refused = 5,
    TimedOut = 6,
    ErrorReply = 7,
    PeerDied = 8,
}

/// A failure: what happened, to what, and what to do.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into() }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self::new(Exit::Usage, text)
    }

    /// Tells it on standard error and gives the code to exit with.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        let Self { exit, text } = self;
        if !text.is_empty() {
            // Nobody is left to tell if this fails.
            let _ = if json {
                writeln_stderr(&json!({ "error": text, "exit": *exit as u8 }))
            } else {
                writeln_stderr(&format_args!("kdbusctl: {text}"))
            };
        }
        ExitCode::from(*exit as u8)
    }
}

fn writeln_stderr(line: &dyn Display) -> std::io::Result<()> {
    use std::io::Write;
    writeln!(std::io::stderr(), "{line}")
}

/// Gives an error the thing it happened to.
pub(crate) trait Context<T> {
    /// Puts `what` in front of the error's text.
    fn during(self, what: impl Display) -> Result<T, Failure>;
}

impl<T, E: Into<Exit> + Display + Copy> Context<T> for Result<T, E> {
    fn during(self, what: impl Display) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(error.into(), format!("{what}: {error}")))
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        // It says what it happened to by itself.
        Self::new(Exit::NoBus, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            // Whoever read the output has seen enough.
            return Self::new(Exit::Failed, "");
        }
        Self::new(Exit::Failed, format!("standard output or input: {error}"))
    }
}

impl From<HelloError> for Exit {
    fn from(error: HelloError) -> Self {
        if error.is_broken() { Self::NoBus } else { Self::Refused }
    }
}

impl From<SendError> for Exit {
    fn from(error: SendError) -> Self {
        match error {
            SendError::NoSuchName
            | SendError::NoSuchConnection
            | SendError::ReceiverGone
            | SendError::NotStarted => Self::NobodyThere,
            SendError::TimedOut => Self::TimedOut,
            error if error.is_broken() => Self::NoBus,
            _ => Self::Refused,
        }
    }
}

impl From<CallError> for Exit {
    fn from(error: CallError) -> Self {
        match error {
            CallError::NotSent(error) => error.into(),
            CallError::TimedOut => Self::TimedOut,
            CallError::PeerDied => Self::PeerDied,
            CallError::Remote(_) => Self::ErrorReply,
            CallError::Broken(_) => Self::NoBus,
            _ => Self::Failed,
        }
    }
}

impl From<QueryError> for Exit {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::NoSuchName | QueryError::NoSuchConnection => Self::NobodyThere,
            error if error.is_broken() => Self::NoBus,
            _ => Self::Refused,
        }
    }
}

impl From<RecvError> for Exit {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::TimedOut => Self::TimedOut,
            error if error.is_broken() => Self::NoBus,
            _ => Self::Failed,
        }
    }
}

impl From<WaitError> for Exit {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::TimedOut => Self::TimedOut,
            error if error.is_broken() => Self::NoBus,
            _ => Self::Failed,
        }
    }
}

impl From<AcquireError> for Exit {
    fn from(error: AcquireError) -> Self {
        if error.is_broken() { Self::NoBus } else { Self::Refused }
    }
}

impl From<MatchError> for Exit {
    fn from(error: MatchError) -> Self {
        if error.is_broken() { Self::NoBus } else { Self::Refused }
    }
}

impl From<Broken> for Exit {
    fn from(_: Broken) -> Self {
        Self::NoBus
    }
}

#[cfg(test)]
mod tests {
    use kdbus_core::client::ErrorReply;

    use super::*;

    #[test]
    fn scripts_can_tell_how_a_call_failed() {
        let exit = |error: CallError| Exit::from(error) as u8;
        assert_eq!(exit(CallError::NotSent(SendError::NoSuchName)), 4);
        assert_eq!(exit(CallError::NotSent(SendError::Denied)), 5);
        assert_eq!(exit(CallError::TimedOut), 6);
        assert_eq!(exit(CallError::Remote(ErrorReply::new(ErrorReply::BUSY, "later"))), 7);
        assert_eq!(exit(CallError::PeerDied), 8);
    }

    #[test]
    fn failures_say_what_they_happened_to() {
        let failed: Result<(), _> = Err(SendError::NoSuchName).during("call to org.example.Mixer");
        let failure = failed.unwrap_err();
        assert_eq!(
            (failure.exit, failure.text.as_str()),
            (
                Exit::NobodyThere,
                "call to org.example.Mixer: nobody owns the name; wait for it or start the service"
            )
        );
    }
}
