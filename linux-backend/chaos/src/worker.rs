//! An ordinary client: everything that a connection can do, at random.

use std::collections::HashMap;
use std::time::Duration;

use kdbus_core::abi::{AttachFlags, Errno};
use kdbus_core::client::{Connection, Hello, Kind as MessageKind, Notification, RecvError, ReplyTo};

use crate::client::{Arrival, Bus, Context, NAMES, Outcome, Phase, TOPICS};
use crate::loans::{Borrowed, OwnSlab, Slabs};
use crate::payload::Stamp;
use crate::point::Point;
use crate::record::{End, How, Kind, MessageId, Record, Sort, now};

/// Bytes of a worker's pool.
pub const POOL: u64 = 1 << 20;
/// Slices that a worker holds at most.
pub(crate) const HELD_MAX: usize = 6;
/// Calls that a worker has not answered yet.
const DEFERRED_MAX: usize = 8;

/// What the bus keeps for a worker from round to round.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) names: [bool; NAMES.len()],
    pub(crate) topics: [bool; TOPICS.len()],
    /// Calls whose end comes as a message, by cookie: the call and its deadline.
    pub(crate) pending: HashMap<u64, (MessageId, u64)>,
}

/// Why a session ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Another connection in the place of this one, without a word.
    Reconnect,
    /// BYEBYE, if nothing waits.
    Goodbye,
    /// The end of the process.
    Leave,
}

/// One stretch of a connection's life.
pub(crate) struct Session<'c> {
    pub(crate) context: &'c mut Context,
    pub(crate) bus: &'c Bus,
    pub(crate) state: &'c mut State,
    pub(crate) peers: Vec<u64>,
    /// To whom a lane was opened last.
    pub(crate) favourite: Option<To>,
    held: Vec<(Stamp, Arrival<'c>)>,
    /// Slabs of others, and what is borrowed of them.
    pub(crate) slabs: &'c Slabs,
    pub(crate) borrowed: Vec<Borrowed<'c>>,
    /// Its own slabs, by who borrows of them.
    pub(crate) lenders: HashMap<u64, OwnSlab>,
    deferred: Vec<(MessageId, ReplyTo)>,
    is_quiet: bool,
}

/// Where a message goes.
#[derive(Clone, Copy)]
pub(crate) enum To {
    Id(u64),
    Name(usize),
    Topic(usize, Option<u64>),
    Reply(ReplyTo),
}

/// A message that is to be sent.
#[derive(Clone, Copy)]
pub(crate) struct Plan {
    pub(crate) sort: Sort,
    pub(crate) to: To,
    pub(crate) answers: MessageId,
    pub(crate) timeout: Duration,
}

/// The program of a worker.
///
/// # Errors
///
/// What must not happen to it.
pub fn run(context: &mut Context) -> Outcome<()> {
    let hello = hello(context);
    let mut bus: Bus = {
        let transport = context.transport()?;
        Connection::with_capacities(transport, &hello)?
    };
    context.say("ready")?;
    let mut state = State::default();
    note_hello(context, &bus)?;
    context.reach(Point::Mapped, bus.id())?;
    loop {
        let slabs = Slabs::default();
        match Session::new(context, &bus, &mut state, &slabs).run()? {
            Next::Leave => return Ok(()),
            Next::Goodbye => {
                let own = bus.id();
                match bus.byebye() {
                    Ok(()) => {
                        context.note(Kind::Left, Record { own, ..Record::default() })?;
                        give_up_names(context, &mut state, own)?;
                        let transport = context.transport()?;
                        bus = Connection::with_capacities(transport, &hello)?;
                        note_hello(context, &bus)?;
                    }
                    Err(stays) => bus = stays.connection,
                }
            }
            Next::Reconnect => {
                let own = bus.id();
                context.note(Kind::Ending, Record { own, ..Record::default() })?;
                // Every name that was ever asked for and not released is asked for again, also those that another
                // client has taken meanwhile.
                for index in 0..NAMES.len() {
                    let record = Record { own, name: index as u32 + 1, began_at: now(), ..Record::default() };
                    context.note(Kind::Acquiring, record)?;
                    state.names[index] = true;
                }
                let transport = context.transport()?;
                bus.reconnect(transport, |_| {})?;
                state.pending.clear();
                note_hello(context, &bus)?;
                // Everything that was subscribed to is again, from here on.
                for index in (0..TOPICS.len()).filter(|index| state.topics[*index]) {
                    note_match(context, Kind::Matched, bus.id(), index)?;
                }
            }
        }
    }
}

fn hello(context: &mut Context) -> Hello<'static> {
    let hello = Hello::new().pool_size(POOL);
    // Nobody else is introduced to a slab.
    let borrows = context.arguments.point == Some(Point::Borrowing.code());
    let hello = if context.random.bool() || borrows { hello.accept_fds() } else { hello };
    if context.random.bool() { hello.ask_metadata(AttachFlags::TIMESTAMP) } else { hello }
}

fn note_hello(context: &mut Context, bus: &Bus) -> Outcome<()> {
    let lanes = context.lanes as u64;
    context.note(Kind::Hello, Record { own: bus.id(), bytes: lanes, ..Record::default() })
}

fn note_match(context: &mut Context, kind: Kind, own: u64, index: usize) -> Outcome<()> {
    context.note(kind, Record { own, name: index as u32 + 1, ..Record::default() })
}

/// After an orderly goodbye, nothing is kept.
fn give_up_names(context: &mut Context, state: &mut State, own: u64) -> Outcome<()> {
    for index in (0..NAMES.len()).filter(|index| state.names[*index]) {
        context.note(Kind::NotOwner, Record { own, name: index as u32 + 1, ..Record::default() })?;
    }
    *state = State::default();
    Ok(())
}

impl<'c> Session<'c> {
    fn new(context: &'c mut Context, bus: &'c Bus, state: &'c mut State, slabs: &'c Slabs) -> Self {
        Self {
            context,
            bus,
            state,
            peers: Vec::new(),
            favourite: None,
            held: Vec::new(),
            slabs,
            borrowed: Vec::new(),
            lenders: HashMap::new(),
            deferred: Vec::new(),
            is_quiet: false,
        }
    }

    fn run(mut self) -> Outcome<Next> {
        loop {
            self.context.listen(0)?;
            if std::mem::take(&mut self.context.is_new_round) {
                self.note_state()?;
            }
            match self.context.phase {
                Phase::Idle => self.context.listen(1000)?,
                Phase::Run => {
                    if let Some(next) = self.step()? {
                        return Ok(next);
                    }
                }
                Phase::Quiet => self.wind_up()?,
                Phase::Drain => self.drain()?,
                Phase::Leave => return Ok(Next::Leave),
            }
            self.report_lost()?;
        }
    }

    const fn own(&self) -> u64 {
        self.bus.id()
    }

    /// What the round before has left, at the head of a new history.
    fn note_state(&mut self) -> Outcome<()> {
        note_hello(self.context, self.bus)?;
        let own = self.own();
        for index in (0..NAMES.len()).filter(|index| self.state.names[*index]) {
            // Since before the round: others may have begun it, and sent to the name, by now.
            let record = Record { own, name: index as u32 + 1, began_at: 0, ..Record::default() };
            self.context.note(Kind::Acquiring, record)?;
        }
        for index in (0..TOPICS.len()).filter(|index| self.state.topics[*index]) {
            note_match(self.context, Kind::Matched, own, index)?;
        }
        Ok(())
    }

    fn report_lost(&mut self) -> Outcome<()> {
        let lost = self.bus.take_lost();
        self.context.note_lost(self.own(), lost)
    }

    /// Only what is begun already.
    fn wind_up(&mut self) -> Outcome<()> {
        self.answer_deferred()?;
        self.receive_for(Duration::from_millis(5))?;
        if self.state.pending.values().all(|(_, deadline)| *deadline < now()) {
            self.await_nothing()?;
        }
        if self.state.pending.is_empty() && !self.is_quiet {
            self.is_quiet = true;
            self.context.is_quiet(self.own())?;
        }
        Ok(())
    }

    /// Takes in the ends of calls whose deadlines have passed.
    ///
    /// A call of which the reply was refused for want of room has none, so there may be fewer than calls.
    fn await_nothing(&mut self) -> Outcome<()> {
        if self.state.pending.is_empty() {
            return Ok(());
        }
        self.let_deadlines_pass()?;
        while self.receive()? {}
        self.state.pending.clear();
        Ok(())
    }

    /// Returns when the daemon has told of every deadline that has passed: it looks at them in each turn, so by its
    /// second answer these have been looked at.
    fn let_deadlines_pass(&self) -> Outcome<()> {
        for _ in 0..2 {
            self.bus.transport().handle().stats(self.own())?;
        }
        Ok(())
    }

    fn drain(&mut self) -> Outcome<()> {
        // An awaited call ends by its caller's clock, a moment before the daemon tells of it.
        self.let_deadlines_pass()?;
        loop {
            while self.receive()? {}
            self.deferred.clear();
            if self.held.is_empty() && self.borrowed.is_empty() {
                break;
            }
            // What found no room in a lane beside what is held comes after that.
            self.let_go(0)?;
        }
        self.report_lost()?;
        self.is_quiet = false;
        self.context.open_lanes = self.bus.transport().open_lanes() as u64;
        self.context.is_drained(self.own())
    }

    /// One random thing.
    fn step(&mut self) -> Outcome<Option<Next>> {
        match self.context.random.u32(0..1000) {
            0..260 => {
                self.receive()?;
            }
            260..320 => self.receive_urgent()?,
            320..340 => self.drop_one()?,
            340..480 => {
                let span = Duration::from_micros(self.context.random.u64(100..5000));
                self.receive_for(span)?;
            }
            480..630 => self.send_plain()?,
            630..660 => self.lend()?,
            660..720 => self.call_and_go_on()?,
            720..750 => self.call_inside_send()?,
            750..780 => self.call_and_wait()?,
            780..800 => self.send_when_room()?,
            800..850 => self.signal()?,
            850..870 => self.change_names()?,
            870..890 => self.open_lane()?,
            890..910 => self.change_matches()?,
            910..940 => self.answer_deferred()?,
            940..970 => self.let_go(1)?,
            970..990 => self.look_around()?,
            990 if self.context.once_in(3) => return Ok(Some(Next::Goodbye)),
            991 if self.context.once_in(4) => return Ok(Some(Next::Reconnect)),
            _ => std::thread::sleep(Duration::from_micros(self.context.random.u64(1000..20_000))),
        }
        Ok(None)
    }

    /// Receives one message, if any waits.
    fn receive(&mut self) -> Outcome<bool> {
        match self.bus.try_recv()? {
            Some(message) => self.take(How::Oldest, message).map(|()| true),
            None => Ok(false),
        }
    }

    fn receive_for(&mut self, span: Duration) -> Outcome<()> {
        match self.bus.recv_blocking(span) {
            Ok(message) => self.take(How::Oldest, message),
            Err(RecvError::TimedOut) => Ok(()),
            // The process was stopped and goes on.
            Err(error) if error.errno() == Errno::EINTR => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn receive_urgent(&mut self) -> Outcome<()> {
        let limit = self.context.random.i64(-4..=4);
        match self.bus.try_recv_priority(limit)? {
            Some(message) if message.priority() > limit => self.context.trouble(
                self.own(),
                MessageId::default(),
                "a message is less urgent than asked for",
            ),
            Some(message) => self.take(How::Urgent, message),
            None => Ok(()),
        }
    }

    fn drop_one(&mut self) -> Outcome<()> {
        let Some(head) = self.bus.peek()? else { return Ok(()) };
        // What is known by its cookie alone: no signals, no answers.
        if !matches!(head.kind(), MessageKind::Plain | MessageKind::Call) {
            return Ok(());
        }
        let (own, peer, cookie) = (self.own(), head.sender(), head.cookie());
        let record = Record { own, peer, cookie, ..Record::default() };
        self.context.note(Kind::Dropping, record)?;
        let unanswered = self.bus.stats().unanswered;
        if !self.bus.drop_next()? {
            return self.context.trouble(
                self.own(),
                MessageId::default(),
                "a message that was shown is gone",
            );
        }
        let result = u32::from(self.bus.stats().unanswered != unanswered);
        self.context.note(Kind::Dropped, Record { result, ..record })
    }

    /// Does what a message that has come asks for.
    fn take(&mut self, how: How, mut message: Arrival<'c>) -> Outcome<()> {
        let own = self.own();
        let stamp = self.context.note_received(own, how, &message)?;
        self.meet_slab(&stamp, &mut message)?;
        self.context.reach(Point::HoldingSlice, own)?;
        match message.kind() {
            MessageKind::Call => {
                self.context.reach(Point::Answering, own)?;
                self.meet_call(&stamp, &message)?;
            }
            MessageKind::Reply => self.call_ended(message.cookie_reply(), End::Reply, stamp.id)?,
            MessageKind::Notification => match message.notification() {
                Some(Notification::ReplyTimeout { cookie }) => {
                    self.call_ended(cookie, End::TimedOut, MessageId::default())?;
                }
                Some(Notification::ReplyDead { cookie }) => {
                    self.call_ended(cookie, End::Dead, MessageId::default())?;
                }
                _ => {}
            },
            MessageKind::Plain | MessageKind::Signal => {}
        }
        // What a client sent, not the bus nor the library.
        if stamp.id.serial != 0 && self.held.len() < HELD_MAX && self.context.once_in(8) {
            self.held.push((stamp, message));
        }
        Ok(())
    }

    fn call_ended(&mut self, cookie: u64, end: End, answer: MessageId) -> Outcome<()> {
        let crate::client::ClientArguments { number, incarnation, .. } = self.context.arguments;
        // Not in the table if this is the second end; the history tells.
        let id = MessageId { client: number, incarnation, serial: cookie };
        let deadline = self.state.pending.remove(&cookie).map_or(0, |(_, deadline)| deadline);
        let record = Record {
            detail: end.code(),
            own: self.own(),
            id,
            answers: answer,
            deadline,
            ..Record::default()
        };
        self.context.note(Kind::CallEnded, record)
    }

    fn meet_call(&mut self, stamp: &Stamp, message: &Arrival<'_>) -> Outcome<()> {
        let to = message.reply_to();
        match self.context.random.u32(0..20) {
            0..13 => self.reply(stamp.id, to),
            // Once more, which must be refused.
            13 => {
                self.reply(stamp.id, to)?;
                self.reply(stamp.id, to)
            }
            14..18 if self.deferred.len() < DEFERRED_MAX => {
                self.deferred.push((stamp.id, to));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn answer_deferred(&mut self) -> Outcome<()> {
        match self.deferred.pop() {
            Some((call, to)) => self.reply(call, to),
            None => Ok(()),
        }
    }

    fn reply(&mut self, call: MessageId, to: ReplyTo) -> Outcome<()> {
        self.send(Plan { sort: Sort::Reply, to: To::Reply(to), answers: call, timeout: Duration::ZERO })
    }

    /// Gives slices back until `left` are held, after another look at each.
    fn let_go(&mut self, left: usize) -> Outcome<()> {
        let own = self.own();
        while self.held.len() > left {
            let (stamp, message) = self.held.swap_remove(0);
            self.context.verify(own, &stamp, &message)?;
        }
        self.give_back(left)
    }
}
