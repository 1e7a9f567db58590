//! The one thread that a simulated machine and everything on it share.

use std::cell::{Ref, RefCell, RefMut};
use std::fmt;
use std::rc::Rc;

use kdbus_core::Instant;
use kdbus_core::abi::{Cmd, Command, Errno, ItemType, ItemWriter, MakeFlags};
use kdbus_core::engine::{Config, ConfigError};
use zerocopy::IntoBytes;

use crate::machine::ProcessId;
use crate::transport::SimTransport;
use crate::world::{Progress, World};

/// What a service did in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Something: everybody may have a further turn at this same moment.
    Worked,
    /// Nothing, and there is nothing to do before something comes in.
    Idle,
    /// Nothing, but it wants a turn at this time.
    Until(Instant),
}

type Service = Box<dyn FnMut() -> Turn>;

/// Turns that services may take at one moment before the simulation is taken for a livelock.
const TURNS_MAX: usize = 1_000_000;

/// `EDEADLK`: everybody waits for somebody else, and no deadline will end it.
pub(crate) const DEADLOCK: Errno = match Errno::from_raw(35) {
    Some(errno) => errno,
    None => Errno::EIO,
};

/// A shared [`World`] and the services that run on it while a client waits.
///
/// Cloning gives another handle to the same simulation. There is one thread: a client that waits, in
/// [`Transport::wait`](kdbus_core::client::Transport::wait) or in a call, lets the services take turns in
/// the order they were registered; when all are idle, time jumps to the next deadline of anybody. A service
/// may wait too; the others run meanwhile.
#[derive(Clone)]
pub struct Sim {
    world: Rc<RefCell<World>>,
    /// A running service is taken out of its place.
    services: Rc<RefCell<Vec<Option<Service>>>>,
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sim").field("world", &self.world).finish_non_exhaustive()
    }
}

impl Sim {
    /// A new machine; see [`World::new`].
    ///
    /// # Errors
    ///
    /// As [`World::new`].
    pub fn new(config: &Config, seed: u64) -> Result<Self, ConfigError> {
        let world = World::new(config, seed)?;
        Ok(Self { world: Rc::new(RefCell::new(world)), services: Rc::default() })
    }

    /// The machine, to look at.
    ///
    /// # Panics
    ///
    /// If the machine is borrowed to be changed.
    #[must_use]
    pub fn world(&self) -> Ref<'_, World> {
        self.world.borrow()
    }

    /// The machine, to change. Give it back before the next use of any transport on it.
    ///
    /// # Panics
    ///
    /// If the machine is borrowed.
    #[must_use]
    pub fn world_mut(&self) -> RefMut<'_, World> {
        self.world.borrow_mut()
    }

    /// Registers a service: it gets its turns whenever somebody waits.
    pub fn serve(&self, service: impl FnMut() -> Turn + 'static) {
        self.services.borrow_mut().push(Some(Box::new(service)));
    }

    /// Makes a bus of `process` that everybody may use, with filters of 64 bytes and one hash, and returns
    /// the descriptor that keeps it alive. Its full name is the uid, a hyphen and `name`.
    ///
    /// # Errors
    ///
    /// As BUS_MAKE.
    pub fn make_bus(&self, process: ProcessId, name: &str) -> Result<i32, Errno> {
        let mut world = self.world_mut();
        let fd = world.open_control(process)?;
        let mut arg = [0; 256];
        let mut items = ItemWriter::behind(&mut arg, size_of::<Cmd>()).map_err(|error| error.errno())?;
        let name = format!("{}-{name}", world.credentials(process).euid);
        items.c_str(ItemType::MAKE_NAME, &name).map_err(|error| error.errno())?;
        let parameter = kdbus_core::abi::BloomParameter { size: 64, n_hash: 1 };
        items.record(ItemType::BLOOM_PARAMETER, &parameter).map_err(|error| error.errno())?;
        let head = Cmd { size: items.len() as u64, flags: MakeFlags::ACCESS_WORLD.bits(), return_flags: 0 };
        arg[..size_of::<Cmd>()].copy_from_slice(head.as_bytes());
        let Progress::Done(result) = world.command(process, fd, Command::BusMake.request(), &mut arg, None)
        else {
            return Err(Errno::EIO);
        };
        result.map(|()| fd)
    }

    /// Opens an endpoint as a transport of `process`; HELLO is for the client to say.
    ///
    /// # Errors
    ///
    /// As [`World::open`].
    pub fn open(&self, process: ProcessId, bus: &str, endpoint: &str) -> Result<SimTransport, Errno> {
        let fd = self.world_mut().open(process, bus, endpoint)?;
        Ok(SimTransport::new(self.clone(), process, fd))
    }

    /// Runs services and passes time until `done` gives something, or until `deadline`, then `None`.
    ///
    /// # Errors
    ///
    /// `EDEADLK` if nothing would ever happen any more; `ELOOP` if services keep working at one moment.
    pub fn run_until<T>(
        &self,
        deadline: Option<Instant>,
        mut done: impl FnMut(&mut World) -> Option<T>,
    ) -> Result<Option<T>, Errno> {
        let mut turns = 0;
        loop {
            if let Some(result) = done(&mut self.world_mut()) {
                return Ok(Some(result));
            }
            let now = self.world().now();
            if deadline.is_some_and(|deadline| deadline <= now) {
                return Ok(None);
            }
            let (worked, wanted) = self.turn();
            if worked {
                turns += 1;
                if turns > TURNS_MAX {
                    return Err(Errno::from_raw(40).unwrap_or(Errno::EIO));
                }
                continue;
            }
            let event = self.world().next_event();
            let next = [deadline, wanted, event].into_iter().flatten().min().ok_or(DEADLOCK)?;
            // Somebody who asks for a turn at a time that has passed gets it after everybody else.
            self.world_mut().advance_to(next);
            turns = if next > now { 0 } else { turns + 1 };
            if turns > TURNS_MAX {
                return Err(Errno::from_raw(40).unwrap_or(Errno::EIO));
            }
        }
    }

    /// Lets services and time run up to `at`.
    ///
    /// # Errors
    ///
    /// `ELOOP` if services keep working at one moment.
    pub fn run_to(&self, at: Instant) -> Result<(), Errno> {
        self.run_until(Some(at), |_| None::<()>).map(|_| ())
    }

    /// One turn of each service that is not running: whether any worked, and when one wants the next.
    fn turn(&self) -> (bool, Option<Instant>) {
        let mut worked = false;
        let mut wanted: Option<Instant> = None;
        let count = self.services.borrow().len();
        for index in 0..count {
            let Some(mut service) = self.services.borrow_mut()[index].take() else { continue };
            match service() {
                Turn::Worked => worked = true,
                Turn::Idle => {}
                Turn::Until(at) => wanted = Some(wanted.map_or(at, |other| other.min(at))),
            }
            self.services.borrow_mut()[index] = Some(service);
        }
        (worked, wanted)
    }
}
