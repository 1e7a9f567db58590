//! A sensor service as firmware: no std, no libc, no heap, one static binary.
//!
//! It samples a sensor, publishes each reading as a signal and answers calls; `docs/device.md` describes both.
//!
//! ```text
//! firmware [--bus NAME] [--period-ms N] [--readings N] [--log-fd N]
//! ```
#![no_std]
#![no_main]

mod log;
mod memory;
mod options;
mod reading;
mod sensor;
mod service;
mod start;

use core::time::Duration;

use kdbus_core::Instant;
use kdbus_core::client::{Connection, Hello};
use kdbus_core::{NodeName, WellKnownName};
use kdbus_linux::local;
use static_cell::{ConstStaticCell, StaticCell};

use crate::options::Options;
use crate::sensor::Sensor;
use crate::service::{Bus, History, NAME, Service};
use crate::start::Process;

/// Bytes that messages to this service may occupy at a time.
const POOL: u64 = 64 << 10;
/// What the kernel lets the stack grow to, in bytes; beyond that the process ends.
const STACK: u64 = 128 << 10;

static BUS: StaticCell<Bus> = StaticCell::new();
static HISTORY: ConstStaticCell<History> = ConstStaticCell::new(History::new());

/// Runs until `--readings` are published or the bus is gone; the exit status says which.
fn run(process: &Process) -> u8 {
    // From here on the process has all the memory that it will ever have, but for what HELLO maps.
    let limit = rustix::process::Rlimit { current: Some(STACK), maximum: Some(STACK) };
    let limited = rustix::process::setrlimit(rustix::process::Resource::Stack, limit);
    let options = match Options::parse(process.arguments()) {
        Ok(options) => options,
        Err(argument) => {
            defmt::error!("not an option, or no value for it: {=[u8]:a}", argument.to_bytes());
            return 2;
        }
    };
    log::to(options.log_fd);
    if let Err(error) = limited {
        defmt::warn!("the stack is not limited: error {=i32}", error.raw_os_error());
    }
    match serve(process, &options) {
        Ok(()) => 0,
        Err(Ended) => 1,
    }
}

/// The service cannot go on; the log says why.
struct Ended;

fn serve(process: &Process, options: &Options<'_>) -> Result<(), Ended> {
    let bus = BUS.init(connect(process, options)?);
    let name = WellKnownName::parse(NAME).map_err(|_| Ended)?;
    if let Err(error) = bus.acquire(name, kdbus_core::abi::NameFlags::empty()) {
        defmt::error!("{=str} is not to be had: {}", NAME, error);
        return Err(Ended);
    }
    let sensor = Sensor::find();
    defmt::info!("connection {=u64} is {=str}, sensor {}", bus.id(), NAME, sensor.kind());
    let mut service = Service::new(sensor, HISTORY.take());
    let mut next = bus.now();
    // One thing in a turn, and what is due goes first: a flood of calls delays no reading.
    while options.readings.is_none_or(|readings| service.published() < readings) {
        if bus.now() >= next {
            service.publish(bus);
            next = following(next, bus.now(), options.period);
            continue;
        }
        let served = bus.try_serve(|request| service.answer(request));
        let waited = match served {
            Ok(true) => continue,
            Ok(false) => kdbus_core::client::Transport::wait(bus.transport(), Some(next)),
            Err(error) => {
                defmt::error!("receiving: {}", error);
                return Err(Ended);
            }
        };
        if let Err(failure) = waited {
            defmt::error!("waiting: {}", failure);
            return Err(Ended);
        }
    }
    defmt::info!("{=u32} readings published, {}", service.published(), bus.stats());
    Ok(())
}

fn connect(process: &Process, options: &Options<'_>) -> Result<Bus, Ended> {
    let environment = local::Environment::from_variables(
        process.environment().map(core::ffi::CStr::to_bytes),
        rustix::process::geteuid().as_raw(),
    );
    let local = local::Options::new().environment(environment).staging(0);
    let transport = match options.bus {
        Some(bus) => local.connect(bus),
        None => local.connect_default(),
    };
    let transport = transport.map_err(|error| {
        defmt::error!("no bus: {}", error);
        Ended
    })?;
    let mut hello = Hello::new().pool_size(POOL);
    if let Ok(description) = NodeName::parse("firmware") {
        hello = hello.description(description);
    }
    Connection::with_capacities(transport, &hello).map_err(|error| {
        defmt::error!("HELLO: {}", error);
        Ended
    })
}

/// The first of `due + n × period` that is not past; readings that nobody took are left out.
fn following(due: Instant, now: Instant, period: Duration) -> Instant {
    let next = due.after(period);
    if next >= now { next } else { now.after(period) }
}
