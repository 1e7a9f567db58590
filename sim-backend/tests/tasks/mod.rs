//! A bus with tasks on it.

use core::time::Duration;

use kdbus_core::WellKnownName;
use kdbus_core::abi::NameFlags;
use kdbus_core::client::{Connection, Hello, Message, Transport};
use kdbus_sim::{Board, COMPACT, Policy, Sim, SimTransport, TaskId};

/// The name of the service.
pub(crate) const NAME: WellKnownName<'_> = match WellKnownName::parse("org.example.Mixer") {
    Ok(name) => name,
    Err(_) => panic!(),
};

/// A simulation with a bus that process 0 keeps alive.
pub(crate) struct Bus {
    pub(crate) sim: Sim,
}

impl Bus {
    pub(crate) fn new(seed: u64) -> Self {
        Self::on(Board::ideal(2), seed)
    }

    pub(crate) fn on(board: Board, seed: u64) -> Self {
        Self::of(&Sim::on(board, &COMPACT, seed).unwrap())
    }

    pub(crate) fn of(sim: &Sim) -> Self {
        let keeper = sim.world_mut().spawn_user("keeper", 1000, 1000);
        sim.make_bus(keeper, "test").unwrap();
        Self { sim: sim.clone() }
    }

    /// Starts a process with one task, which runs `body` over a connection unless a fault keeps it from having one.
    pub(crate) fn start<F>(&self, name: &str, policy: Policy, body: F) -> TaskId
    where
        F: AsyncFnOnce(Connection<SimTransport>) + 'static,
    {
        let process = self.sim.world_mut().spawn_user(name, 1000, 1000);
        let sim = self.sim.clone();
        self.sim.spawn(process, policy, async move {
            let Ok(transport) = sim.open(process, "1000-test", "bus") else { return };
            let Ok(connection) = Connection::hello(transport, &Hello::new().pool_size(16384)) else { return };
            body(connection).await;
        })
    }
}

/// Answers every call with what it says. Written for any transport.
pub(crate) async fn echo_service<T: Transport>(connection: Connection<T>) {
    if connection.acquire(NAME, NameFlags::empty()).is_err() {
        return;
    }
    // It ends when its connection does.
    let _ = connection.serve(async |request| request.reply(request.payload())).await;
}

/// Calls the service `count` times and returns how many answers there were. Written for any transport.
pub(crate) async fn ping_client<T: Transport>(connection: &Connection<T>, count: usize) -> usize {
    if connection.wait_for_name(NAME, Duration::from_millis(100)).await.is_err() {
        return 0;
    }
    let mut answers = 0;
    for _ in 0..count {
        let call = connection.call(&Message::to_name(NAME).payload(b"ping"), Duration::from_millis(100));
        answers += usize::from(call.await.is_ok_and(|reply| reply.payload() == b"ping"));
    }
    answers
}
