//! The client processes.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::Sender;
use std::time::Instant;

use clap::ValueEnum;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::client::{Outcome, Role};
use crate::point::Point;

/// What a client says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// It is connected.
    Ready,
    /// It has reached its point.
    At(Point),
    /// It begins nothing more.
    Quiet,
    /// Nothing waits at this connection of it and nothing is held.
    Drained(u64),
}

/// A word of one process.
#[derive(Clone, Copy, Debug)]
pub struct Said {
    /// Number of the client.
    pub number: u32,
    /// Number of its process.
    pub incarnation: u32,
    /// What it says.
    pub word: Word,
}

/// What a client does at the moment, as far as the conductor made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It works.
    Running,
    /// It stopped at its point or is stopped, until this time; then it is killed or goes on.
    Stopped {
        /// When that ends.
        until: Instant,
        /// Whether it is killed then, and where.
        killed_at: Option<Point>,
    },
}

/// A client process, killed when dropped.
#[derive(Debug)]
pub struct Member {
    /// Number of the client.
    pub number: u32,
    /// How many processes there were before under this number.
    pub incarnation: u32,
    /// What it does.
    pub role: Role,
    /// What is done to it.
    pub state: State,
    /// What it said of the phase it is in.
    pub said: Option<Word>,
    /// Where it was to stop, if it did not yet.
    pub point: Option<Point>,
    /// Its part of this round.
    pub history: PathBuf,
    child: Child,
    stdin: Option<ChildStdin>,
    stderr: PathBuf,
}

/// How a process is started.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    /// Node of the bus.
    pub node: &'a Path,
    /// Where histories and complaints go.
    pub dir: &'a Path,
    /// Number of the client.
    pub number: u32,
    /// How many processes there were before.
    pub incarnation: u32,
    /// What it does.
    pub role: Role,
    /// What its choices follow from.
    pub seed: u64,
    /// Where it stops, and how often it passes by before.
    pub point: Option<(Point, u32)>,
}

impl Member {
    /// Starts a process of this very program; what it says goes to `said`.
    ///
    /// # Errors
    ///
    /// If it cannot be started.
    pub fn start(start: &Start<'_>, said: &Sender<Said>) -> Outcome<Self> {
        let Start { number, incarnation, role, .. } = *start;
        let stderr = start.dir.join(format!("stderr-{number}-{incarnation}"));
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("client").arg("--node").arg(start.node);
        command.arg("--number").arg(number.to_string()).arg("--incarnation").arg(incarnation.to_string());
        command.arg("--seed").arg(start.seed.to_string());
        let value = role.to_possible_value().expect("no role is hidden");
        command.arg("--role").arg(value.get_name());
        if let Some((point, passes)) = start.point {
            command.arg("--point").arg(point.code().to_string()).arg("--passes").arg(passes.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&stderr)?);
        // A signal from the keyboard is for the conductor.
        let mut child = command.process_group(0).spawn()?;
        let output = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let said = said.clone();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Some(word) = Word::parse(&line) else { continue };
                if said.send(Said { number, incarnation, word }).is_err() {
                    return;
                }
            }
        });
        let stdin = child.stdin.take();
        let history = PathBuf::new();
        Ok(Self {
            number,
            incarnation,
            role,
            state: State::Running,
            said: None,
            point: start.point.map(|(point, _)| point),
            history,
            child,
            stdin,
            stderr,
        })
    }

    /// Begins a round, whose history goes to `dir`.
    pub fn run(&mut self, dir: &Path) {
        self.history = dir.join(format!("history-{}-{}", self.number, self.incarnation));
        let line = format!("run {}", self.history.display());
        self.tell(&line);
    }

    /// Says `line` to it. One that has just ended hears nothing, which shows elsewhere.
    pub fn tell(&mut self, line: &str) {
        self.said = None;
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Sends it a signal. It was not waited for, so its number is still its own.
    pub fn signal(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Continues it, once it has stopped: one that is about to stop itself says so before, and would sleep through a
    /// signal that comes earlier.
    pub fn go_on(&self) {
        let stopped = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let _ = rustix::io::retry_on_intr(|| waitid(WaitId::Pid(Pid::from_child(&self.child)), stopped));
        self.signal(Signal::CONT);
    }

    /// Kills it, and returns when it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// What it complained about.
    #[must_use]
    pub fn complaints(&self) -> String {
        std::fs::read_to_string(&self.stderr).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_file(&self.stderr);
    }
}

impl Word {
    fn parse(line: &str) -> Option<Self> {
        match line.split_once(' ') {
            None if line == "ready" => Some(Self::Ready),
            None if line == "quiet" => Some(Self::Quiet),
            Some(("at", code)) => Point::from_code(code.parse().ok()?).map(Self::At),
            Some(("drained", own)) => Some(Self::Drained(own.parse().ok()?)),
            _ => None,
        }
    }
}
