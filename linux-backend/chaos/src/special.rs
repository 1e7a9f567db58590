//! Activators and monitors.

use std::time::Duration;

use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::client::{Connection, Hello, HelloError, Monitor, RecvError};
use kdbus_linux::local::LocalTransport;

use crate::client::{ACTIVATED, Bus, Context, NAMES, Outcome, Phase, name};
use crate::point::Point;
use crate::record::{How, Kind, Record, now};

/// Bytes of a monitor's pool, which has to hold what everybody says.
const MONITOR_POOL: u64 = 8 << 20;

/// A client that does the same in each round.
trait Part {
    /// Id of its connection.
    fn own(&self) -> u64;

    /// What a round begins with.
    fn begin(&self) -> Option<Record> {
        None
    }

    /// One thing that it does while all work, and with `is_quiet` while all come to rest.
    fn work(&self, context: &mut Context, is_quiet: bool) -> Outcome<()>;

    /// Receives all that waits.
    fn empty(&self, context: &mut Context) -> Outcome<()>;

    /// Losses since the last time.
    fn lost(&self) -> u64;
}

/// Plays `part` in all rounds.
fn play(context: &mut Context, part: &impl Part) -> Outcome<()> {
    context.say("ready")?;
    let own = part.own();
    let mut is_quiet = false;
    loop {
        context.listen(0)?;
        if std::mem::take(&mut context.is_new_round) {
            context.note(Kind::Hello, Record { own, ..Record::default() })?;
            if let Some(begun) = part.begin() {
                context.note(Kind::Acquiring, begun)?;
            }
        }
        match context.phase {
            Phase::Idle => context.listen(1000)?,
            Phase::Run => part.work(context, false)?,
            Phase::Quiet => {
                part.work(context, true)?;
                if !std::mem::replace(&mut is_quiet, true) {
                    context.is_quiet(own)?;
                }
            }
            Phase::Drain => {
                part.empty(context)?;
                context.note_lost(own, part.lost())?;
                is_quiet = false;
                context.is_drained(own)?;
            }
            Phase::Leave => return Ok(()),
        }
        context.note_lost(own, part.lost())?;
    }
}

/// An activator: lets messages wait for a new owner, and now and then takes one itself.
struct Activator {
    bus: Bus,
    begun: Record,
}

/// The program of an activator.
///
/// # Errors
///
/// What must not happen to it.
pub fn activator(context: &mut Context) -> Outcome<()> {
    let index = ACTIVATED + context.arguments.number as usize % (NAMES.len() - ACTIVATED);
    let begun = Record { name: index as u32 + 1, began_at: now(), ..Record::default() };
    // From HELLO on it may get messages, so this comes first.
    context.note(Kind::Acquiring, begun)?;
    let hello = Hello::new().ask_metadata(AttachFlags::TIMESTAMP).activator(name(index));
    let transport = context.transport()?;
    let bus: Bus = match Connection::with_capacities(transport, &hello) {
        Err(HelloError::ActivatorExists) => return Err("another activator has the name".into()),
        other => other?,
    };
    let begun = Record { own: bus.id(), ..begun };
    play(context, &Activator { bus, begun })
}

impl Part for Activator {
    fn own(&self) -> u64 {
        self.bus.id()
    }

    fn begin(&self) -> Option<Record> {
        Some(self.begun)
    }

    fn work(&self, context: &mut Context, is_quiet: bool) -> Outcome<()> {
        if is_quiet {
            return context.listen(5);
        }
        std::thread::sleep(Duration::from_micros(context.random.u64(100..20_000)));
        if self.bus.peek()?.is_none() {
            return Ok(());
        }
        context.reach(Point::Activator, self.own())?;
        match context.once_in(4) {
            true => self.receive(context).map(|_| ()),
            false => Ok(()),
        }
    }

    fn empty(&self, context: &mut Context) -> Outcome<()> {
        while self.receive(context)? {}
        Ok(())
    }

    fn lost(&self) -> u64 {
        self.bus.take_lost()
    }
}

impl Activator {
    /// Receives one message. False if none waits.
    fn receive(&self, context: &mut Context) -> Outcome<bool> {
        let Some(message) = self.bus.try_recv()? else { return Ok(false) };
        context.note_received(self.own(), How::Oldest, &message)?;
        Ok(true)
    }
}

/// The program of a monitor.
///
/// # Errors
///
/// What must not happen to it.
pub fn monitor(context: &mut Context) -> Outcome<()> {
    let hello = Hello::new().pool_size(MONITOR_POOL).ask_metadata(AttachFlags::TIMESTAMP);
    let transport = context.transport()?;
    // What was sent before this is none of its business.
    let began_at = now();
    let monitor = Monitor::hello(transport, &hello)?;
    let joined = Record { own: monitor.id(), began_at, ..Record::default() };
    context.note(Kind::Hello, joined)?;
    context.is_new_round = false;
    play(context, &monitor)
}

impl Part for Monitor<LocalTransport> {
    fn own(&self) -> u64 {
        self.id()
    }

    fn work(&self, context: &mut Context, _is_quiet: bool) -> Outcome<()> {
        match self.recv_blocking(Duration::from_millis(5)) {
            Ok(message) => {
                context.note_received(self.own(), How::Copy, &message)?;
                context.reach(Point::Monitor, self.own())
            }
            Err(RecvError::TimedOut) => Ok(()),
            Err(error) if error.errno() == Errno::EINTR => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn empty(&self, context: &mut Context) -> Outcome<()> {
        while let Some(message) = self.try_recv()? {
            context.note_received(self.own(), How::Copy, &message)?;
        }
        Ok(())
    }

    fn lost(&self) -> u64 {
        self.take_lost()
    }
}
