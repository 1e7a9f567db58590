//! The processes of a pipeline, as whoever starts them sees them: started, heard, and ended in order.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, BufReader, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::interrupts::Interrupts;
use crate::stage::APPEARANCE;

/// Between the order to start and the beginning, so that all have heard it.
const LEAD: Duration = Duration::from_millis(20);

/// How long others may take to tell their reasons after one failed, so that the first reason is found among them.
const GRACE: Duration = Duration::from_millis(300);

/// What a process says.
pub(crate) trait Says: Send + Sized + 'static {
    /// What everybody's processes say, or else itself.
    fn sort(self) -> Result<Word, Self>;
}

/// What everybody's processes say.
#[derive(Debug)]
pub(crate) enum Word {
    /// It knows all others that it needs and can start; with what the system granted it.
    Ready(String),
    /// It has failed, and why.
    Failed {
        /// Whether another one is to blame.
        is_consequence: bool,
        /// The reason.
        text: String,
    },
}

/// Why a run does not come to its end.
#[derive(Debug)]
pub(crate) enum Ended<P> {
    /// It was interrupted, or took too long after that.
    Interrupted,
    /// A member failed.
    Failed {
        /// Which one.
        who: P,
        /// Its own words, or how it ended.
        why: String,
    },
}

enum Event<P, S> {
    /// A member says something.
    Said(P, S),
    /// A member says nothing more: it has ended, or what it says makes no sense.
    Silent(P),
    /// The user, or the system, wants the run to end.
    Interrupt,
}

/// A process that was started. It is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Member<P> {
    who: P,
    process: Child,
    order: Option<ChildStdin>,
    ready: Option<String>,
    failure: Option<(bool, String)>,
    /// It has said the last that it has to say.
    pub(crate) has_left: bool,
    has_ended: bool,
}

impl<P> Member<P> {
    /// Tells it something. Whoever does not hear it has ended, which is heard.
    pub(crate) fn tell(&mut self, order: &[u8]) {
        if let Some(pipe) = &mut self.order {
            let _ = pipe.write_all(order);
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The number belongs to the process until it is waited for.
        if let Some(pid) = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw)
            && !self.has_ended
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Takes note that nothing more is heard of the process, and of why.
    fn end(&mut self) {
        self.has_ended = true;
        if !self.has_left {
            // It may have closed its end and live on.
            let _ = self.process.kill();
        }
        let status = self.process.wait();
        if self.has_left || self.failure.is_some() {
            return;
        }
        self.failure = Some((false, status.map_or_else(|error| error.to_string(), died)));
    }
}

impl<P> Drop for Member<P> {
    fn drop(&mut self) {
        if !self.has_ended {
            let _ = self.process.kill();
            let _ = self.process.wait();
        }
    }
}

/// All processes of a run.
#[derive(Debug)]
pub(crate) struct Crew<P, S> {
    members: Vec<Member<P>>,
    events: Sender<Event<P, S>>,
    arrivals: Receiver<Event<P, S>>,
    /// Whoever ends everybody in order, told by `SIGTERM`, and how long that may take.
    first: P,
    patience: Duration,
    interrupts: u32,
    /// When everything is ended that has not ended by itself.
    give_up_at: Option<Instant>,
}

impl<P: Copy + PartialEq + fmt::Display + Send + 'static, S: Says> Crew<P, S> {
    /// Nobody yet. After an interrupt, `first` ends everybody within `patience`.
    pub(crate) fn new(first: P, patience: Duration) -> Self {
        let (events, arrivals) = channel();
        Self { members: Vec::new(), events, arrivals, first, patience, interrupts: 0, give_up_at: None }
    }

    /// Has interrupts end the run, until what is returned is dropped.
    pub(crate) fn watch(&self) -> io::Result<Interrupts> {
        Interrupts::watch(self.events.clone(), || Event::Interrupt)
    }

    /// Starts a process, whose standard output `read` takes apart.
    pub(crate) fn start<A: AsRef<OsStr>>(
        &mut self,
        who: P,
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        mut read: impl FnMut(&mut BufReader<ChildStdout>) -> Option<S> + Send + 'static,
    ) -> io::Result<&mut Member<P>> {
        let mut process = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // An interrupt from the terminal is for whoever started it, which ends the others in order.
            .process_group(0)
            .spawn()?;
        let order = process.stdin.take();
        let said = process.stdout.take();
        let events = self.events.clone();
        thread::spawn(move || {
            if let Some(said) = said {
                let mut said = BufReader::new(said);
                while let Some(word) = read(&mut said) {
                    if events.send(Event::Said(who, word)).is_err() {
                        return;
                    }
                }
            }
            // Nobody listens any more if the run is over.
            let _ = events.send(Event::Silent(who));
        });
        let at = self.members.len();
        self.members.push(Member {
            who,
            process,
            order,
            ready: None,
            failure: None,
            has_left: false,
            has_ended: false,
        });
        Ok(&mut self.members[at])
    }

    /// Waits until all know each other. Members give up waiting for each other before this, and have a better reason.
    pub(crate) fn await_ready(&mut self) -> Result<(), Ended<P>> {
        self.give_up_at = Some(Instant::now() + APPEARANCE + GRACE);
        while self.members.iter().any(|member| member.ready.is_none()) {
            // Nobody has anything else to say before it starts.
            self.hear(None)?;
            if self.is_interrupted() {
                return Err(Ended::Interrupted);
            }
        }
        self.give_up_at = None;
        Ok(())
    }

    /// Tells people on standard error what the system granted to whom.
    pub(crate) fn introduce(&self) {
        let names: Vec<_> = self.members.iter().map(|member| member.who.to_string()).collect();
        let width = names.iter().map(String::len).max().unwrap_or(0);
        for (name, member) in names.iter().zip(&self.members) {
            eprintln!("{name:width$} {}", member.ready.as_deref().unwrap_or_default());
        }
    }

    /// Tells all when to start: a time of the monotonic clock in nanoseconds, as `order` writes it.
    pub(crate) fn begin(&mut self, order: impl FnOnce(u64) -> Vec<u8>) {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let now = Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32);
        let order = order(u64::try_from((now + LEAD).as_nanos()).unwrap_or(u64::MAX));
        self.members.iter_mut().for_each(|member| member.tell(&order));
    }

    /// Whether somebody still runs.
    pub(crate) fn runs(&self) -> bool {
        self.members.iter().any(|member| !member.has_ended)
    }

    /// Whether the run is to end before its time.
    pub(crate) const fn is_interrupted(&self) -> bool {
        self.interrupts > 0
    }

    /// The next thing that somebody says of its own; `None` if it was of another kind, or nothing came in `most`.
    pub(crate) fn hear(&mut self, most: Option<Duration>) -> Result<Option<(P, S)>, Ended<P>> {
        let left = self.give_up_at.map(|at| at.saturating_duration_since(Instant::now()));
        let event = match left.into_iter().chain(most).min() {
            None => self.arrivals.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => self.arrivals.recv_timeout(wait),
        };
        match event {
            Ok(Event::Said(who, said)) => match said.sort() {
                Err(said) => return Ok(Some((who, said))),
                Ok(Word::Ready(granted)) => self.member(who).ready = Some(granted),
                Ok(Word::Failed { is_consequence, text }) => {
                    self.member(who).failure = Some((is_consequence, text));
                    self.hurry();
                }
            },
            Ok(Event::Silent(who)) => {
                self.member(who).end();
                match self.member(who).failure {
                    Some((true, _)) => self.hurry(),
                    Some((false, _)) => return Err(self.ended()),
                    None => {}
                }
            }
            Ok(Event::Interrupt) => self.interrupt()?,
            Err(RecvTimeoutError::Timeout) if self.give_up_at.is_none_or(|at| Instant::now() < at) => {}
            Err(_) => return Err(self.ended()),
        }
        Ok(None)
    }

    /// Ends the run in order; at the second time, at once.
    pub(crate) fn interrupt(&mut self) -> Result<(), Ended<P>> {
        self.interrupts += 1;
        if self.interrupts > 1 {
            return Err(Ended::Interrupted);
        }
        self.give_up_at = Some(Instant::now() + self.patience);
        let first = self.first;
        self.member(first).signal(Signal::TERM);
        Ok(())
    }

    /// One that was started.
    pub(crate) fn member(&mut self, who: P) -> &mut Member<P> {
        let at = self.members.iter().position(|member| member.who == who);
        &mut self.members[at.expect("all are started before anybody is heard")]
    }

    /// One has failed: the others tell why soon.
    fn hurry(&mut self) {
        self.give_up_at.get_or_insert(Instant::now() + GRACE);
    }

    /// The reason that is none of another one's.
    fn ended(&self) -> Ended<P> {
        let failures = self.members.iter().filter_map(|member| Some((member.who, member.failure.as_ref()?)));
        match failures.min_by_key(|(_, (is_consequence, _))| *is_consequence) {
            Some((who, (_, why))) => Ended::Failed { who, why: why.clone() },
            None => Ended::Interrupted,
        }
    }
}

fn died(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => match signal_hook::low_level::signal_name(signal) {
            Some(name) => format!("was killed by {name}"),
            None => format!("was killed by signal {signal}"),
        },
        (None, Some(0)) => "ended before its time".to_owned(),
        (None, code) => format!("ended with status {}", code.unwrap_or(-1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_killed_process_is_told_from_one_that_ended() {
        assert_eq!(died(ExitStatus::from_raw(9)), "was killed by SIGKILL");
        assert_eq!(died(ExitStatus::from_raw(3 << 8)), "ended with status 3");
        assert_eq!(died(ExitStatus::from_raw(0)), "ended before its time");
    }
}
