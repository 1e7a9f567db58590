//! Activators and monitors.

use std::time::Duration;

use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::client::{Connection, Hello, HelloError, Monitor, RecvError};

use crate::client::{ACTIVATED, Bus, Context, NAMES, Outcome, Phase, name};
use crate::point::Point;
use crate::record::{How, Kind, Record, now};

/// Bytes of a monitor's pool, which has to hold what everybody says.
const MONITOR_POOL: u64 = 8 << 20;

/// The program of an activator: lets messages wait for a new owner, and now and then takes one itself.
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
    context.say("ready")?;
    let own = bus.id();
    context.note(Kind::Hello, Record { own, ..Record::default() })?;
    context.is_new_round = false;
    let mut is_quiet = false;
    loop {
        context.listen(0)?;
        if std::mem::take(&mut context.is_new_round) {
            context.note(Kind::Hello, Record { own, ..Record::default() })?;
            context.note(Kind::Acquiring, Record { own, ..begun })?;
        }
        match context.phase {
            Phase::Idle => {}
            Phase::Run => {
                std::thread::sleep(Duration::from_micros(context.random.u64(100..20_000)));
                if bus.peek()?.is_some() {
                    context.reach(Point::Activator, own)?;
                    if context.once_in(4)
                        && let Some(message) = bus.try_recv()?
                    {
                        context.note_received(own, How::Oldest, &message)?;
                    }
                }
            }
            Phase::Quiet => {
                if !std::mem::replace(&mut is_quiet, true) {
                    context.is_quiet(own)?;
                }
                context.listen(5)?;
            }
            Phase::Drain => {
                while let Some(message) = bus.try_recv()? {
                    context.note_received(own, How::Oldest, &message)?;
                }
                context.note_lost(own, bus.take_lost())?;
                is_quiet = false;
                context.is_drained(own)?;
            }
            Phase::Leave => return Ok(()),
        }
        context.note_lost(own, bus.take_lost())?;
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
    let monitor = Monitor::hello(transport, &hello)?;
    context.say("ready")?;
    let own = monitor.id();
    context.note(Kind::Hello, Record { own, ..Record::default() })?;
    context.is_new_round = false;
    let mut is_quiet = false;
    loop {
        context.listen(0)?;
        if std::mem::take(&mut context.is_new_round) {
            context.note(Kind::Hello, Record { own, ..Record::default() })?;
        }
        match context.phase {
            Phase::Idle => context.listen(1000)?,
            Phase::Run | Phase::Quiet => {
                match monitor.recv_blocking(Duration::from_millis(5)) {
                    Ok(message) => {
                        context.note_received(own, How::Copy, &message)?;
                        context.reach(Point::Monitor, own)?;
                    }
                    Err(RecvError::TimedOut) => {}
                    Err(error) if error.errno() == Errno::EINTR => {}
                    Err(error) => return Err(error.into()),
                }
                if context.phase == Phase::Quiet && !std::mem::replace(&mut is_quiet, true) {
                    context.is_quiet(own)?;
                }
            }
            Phase::Drain => {
                while let Some(message) = monitor.try_recv()? {
                    context.note_received(own, How::Copy, &message)?;
                }
                context.note_lost(own, monitor.take_lost())?;
                is_quiet = false;
                context.is_drained(own)?;
            }
            Phase::Leave => return Ok(()),
        }
        context.note_lost(own, monitor.take_lost())?;
    }
}
