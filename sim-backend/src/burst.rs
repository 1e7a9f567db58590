//! What a task does between two waits: which commands, what they cost, and when others see what came of them.

use core::time::Duration;
use std::rc::Rc;

use kdbus_core::Instant;
use kdbus_core::abi::{Command, Errno, Msg, MsgInfo};
use kdbus_core::client::Wait;
use kdbus_core::engine::{HandleId, Outcome};
use zerocopy::FromBytes;

use crate::cost::Board;
use crate::fault::FaultKind;
use crate::machine::ProcessId;
use crate::trace::Message;
use crate::world::{Body, World};

/// One turn of a task, from its poll until it waits again.
///
/// The task's commands happen when it is polled, in their order; what they cost is time that it then takes from
/// its core, and others are woken when as much of that time has passed as the command that woke them is in.
#[derive(Debug)]
pub(crate) struct Burst {
    pub(crate) board: Rc<Board>,
    spent_ns: u64,
    /// What the task waits for since the last command.
    pub(crate) waits: Vec<(HandleId, Wait)>,
    /// When the task wants to be woken, whatever comes in.
    pub(crate) wake_at: Option<Instant>,
    /// For how long the process is to be stopped behind this burst.
    pub(crate) stop_ns: Option<u64>,
    /// By how much the next wake-up of the process is late.
    pub(crate) delay_ns: Option<u64>,
}

/// What a SEND brought to the bus.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    header: Msg,
    bytes: u64,
}

/// A command that the engine has dealt with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub(crate) kind: Option<Command>,
    pub(crate) outcome: Outcome,
    pub(crate) sent: Option<Sent>,
    /// The message that it took out.
    pub(crate) received: Option<MsgInfo>,
    /// How many wake-ups had been noted before it.
    pub(crate) wakes: usize,
}

impl Sent {
    pub(crate) fn of(body: &Body<'_>) -> Option<Self> {
        let (header, _) = Msg::read_from_prefix(body.message).ok()?;
        Some(Self { header, bytes: body.payload.iter().map(|part| part.len() as u64).sum() })
    }
}

impl Burst {
    pub(crate) const fn new(board: Rc<Board>) -> Self {
        Self { board, spent_ns: 0, waits: Vec::new(), wake_at: None, stop_ns: None, delay_ns: None }
    }

    /// The time that the task has taken so far.
    pub(crate) const fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent_ns)
    }

    /// Takes `ns` more.
    pub(crate) const fn spend(&mut self, ns: u64) {
        self.spent_ns = self.spent_ns.saturating_add(ns);
    }
}

impl World {
    /// Lets the process take its next step, or says why it cannot; faults that come at this step happen.
    pub(crate) fn next_step(&mut self, process: ProcessId, request: u32) -> Result<(), Errno> {
        if self.machine.process(process).is_dead {
            return Err(Errno::ECONNRESET);
        }
        let record = self.machine.process_mut(process);
        record.steps += 1;
        if self.faults.is_empty() {
            return Ok(());
        }
        let step = record.steps;
        let mut result = Ok(());
        for at in (0..self.faults.len()).rev() {
            if self.faults[at].process != process.0 || self.faults[at].step != step {
                continue;
            }
            let fault = self.faults.remove(at);
            if let Some(trace) = &mut self.trace {
                trace.fault(self.clock.monotonic(), &fault);
            }
            match fault.kind {
                FaultKind::Kill => {
                    self.kill(process);
                    result = Err(Errno::ECONNRESET);
                }
                FaultKind::Refuse => {
                    if let Some(errno) = refusal(request) {
                        result = result.and(Err(errno));
                    }
                }
                FaultKind::NoDescriptors => self.leave_spare_fds(process, 0),
                FaultKind::Clock(ns) => self.set_realtime_by(ns),
                FaultKind::Stop(ns) => {
                    if let Some(burst) = &mut self.burst {
                        burst.stop_ns = Some(ns);
                    }
                }
                FaultKind::Delay(ns) => {
                    if let Some(burst) = &mut self.burst {
                        burst.delay_ns = Some(ns);
                    }
                }
                FaultKind::Spurious | FaultKind::Flood(_) | FaultKind::Load { .. } | FaultKind::Stall(_) => {
                    self.due.push_back(fault);
                }
            }
        }
        result
    }

    /// Charges the task that runs for a command, and writes down what the command did.
    pub(crate) fn account(&mut self, process: ProcessId, handle: HandleId, done: Done) {
        let begun = self.now();
        if let Some(kind) = done.kind
            && let Some(burst) = &self.burst
        {
            let board = Rc::clone(&burst.board);
            let wakes = self.wakes.len() > done.wakes;
            let bytes = done.sent.map_or(0, |sent| sent.bytes);
            let cost = board.command(kind, bytes, wakes);
            let mut start = begun;
            if cost.daemon_ns > 0 {
                // The daemon serves one at a time.
                start = start.max(self.daemon_until);
                self.daemon_until = start.after(Duration::from_nanos(cost.daemon_ns));
            }
            if done.received.is_some() {
                // Who looks just when something comes in, on another core, has it then and not before.
                start = start.max(self.seen_at.get(&handle).copied().unwrap_or(begun));
            }
            let waited_ns = start.since(begun).as_nanos() as u64;
            let fault_ns = self.page_faults(handle, &done) * board.page_fault_ns;
            let seen_at = start.after(Duration::from_nanos(cost.seen_ns));
            for (at, woken) in self.wakes.iter_mut().skip(done.wakes) {
                *at = seen_at;
                self.seen_at.insert(*woken, seen_at);
            }
            let work = self.machine.process(process).work;
            let work_ns = match kind {
                Command::Send if done.outcome == Outcome::Done(Ok(())) => work.sent_ns,
                Command::Free if done.outcome == Outcome::Done(Ok(())) => work.received_ns,
                _ => 0,
            };
            if let Some(burst) = &mut self.burst {
                burst.spend(waited_ns + fault_ns + cost.total_ns + work_ns);
            }
        }
        if self.trace.is_some() {
            self.write_down(process, handle, &done, begun);
        }
    }

    /// Pages of its pool that a received message lies in and that were never looked at before.
    fn page_faults(&mut self, handle: HandleId, done: &Done) -> u64 {
        let Some(info) = done.received else { return 0 };
        let page = 4096;
        let (first, end) = (info.offset / page, info.offset.saturating_add(info.msg_size).div_ceil(page));
        let touched = self.machine.touched.entry(handle).or_default();
        let new = end.saturating_sub((*touched).max(first));
        *touched = (*touched).max(end);
        new
    }

    fn write_down(&mut self, process: ProcessId, handle: HandleId, done: &Done, begun: Instant) {
        let id = self.domain.connection(handle).map_or(0, |view| view.id);
        let now = self.now();
        let name = self.machine.process(process).name.clone();
        let received = done.received.and_then(|info| {
            let bytes = self.machine.pool(handle, info.offset, info.msg_size)?;
            Some(Msg::read_from_prefix(bytes).ok()?.0)
        });
        let queued = self.domain.connection(handle).map_or(0, |view| view.queued);
        let Some(trace) = &mut self.trace else { return };
        if let Some(sent) = done.sent {
            let errno = match done.outcome {
                Outcome::Done(Err(errno)) => Some(errno),
                _ => None,
            };
            let Msg { dst_id, cookie, priority, .. } = sent.header;
            let message = Message { from: id, to: dst_id, cookie, priority, bytes: sent.bytes };
            trace.sent(begun, &name, message, errno);
        }
        if let Some(header) = received {
            trace.received(now, &name, header.src_id, header.cookie, id);
        }
        if done.received.is_some() {
            trace.queue(now, &name, queued);
        }
    }

    /// Notes what a future of the task that runs waits for.
    pub(crate) fn park(&mut self, process: ProcessId, fd: i32, wait: Wait) {
        let Ok(handle) = self.machine.handle(process, fd) else { return };
        if let Some(burst) = &mut self.burst {
            burst.waits.push((handle, wait));
        }
    }
}

/// With which code a command can fail for a lack of room that the caller did not cause, or `None` if it cannot.
const fn refusal(request: u32) -> Option<Errno> {
    match Command::from_request(request) {
        Some(Command::Send) => Some(Errno::ENOBUFS),
        // A message that is there can be had, and a slice given back.
        Some(Command::Recv | Command::Free | Command::Byebye) | None => None,
        Some(_) => Some(Errno::ENOMEM),
    }
}
