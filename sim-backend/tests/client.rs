//! The client over the engine, in virtual time.

use core::pin::pin;
use core::task::{Context, Poll, Waker};
use core::time::Duration;
use std::cell::RefCell;
use std::rc::Rc;

use kdbus_core::abi::{AttachFlags, Errno, ListFlags, NameFlags, PolicyAccess};
use kdbus_core::client::{
    Access, AcquireError, ByebyeError, CALL_TIMEOUT, CallError, Connection, ErrorReply, Hello, Kind, Message,
    Monitor, NotRestored, Notification, Part, ReceivedPart, Request, Rule, SendError, Standing, Topic,
    TopicPattern, WaitError, block_on,
};
use kdbus_core::engine::Config;
use kdbus_core::{NodeName, PolicyName, WellKnownName};
use kdbus_sim::{File, ProcessId, Sim, SimBorrowedFd, SimTransport, Turn};

type Client = Connection<SimTransport>;

const SECOND: Duration = Duration::from_secs(1);

const NAME: WellKnownName<'_> = match WellKnownName::parse("org.example.Mixer") {
    Ok(name) => name,
    Err(_) => panic!(),
};

fn topic(text: &str) -> Topic<'_> {
    Topic::parse(text).unwrap()
}

struct Bus {
    sim: Sim,
    process: ProcessId,
    control: i32,
}

impl Bus {
    fn new() -> Self {
        let sim = Sim::new(&Config::SMALL, 1).unwrap();
        let process = sim.world_mut().spawn_user("test", 1000, 1000);
        let control = sim.make_bus(process, "test").unwrap();
        Self { sim, process, control }
    }

    fn open(&self) -> SimTransport {
        self.open_as(self.process)
    }

    fn open_as(&self, process: ProcessId) -> SimTransport {
        self.sim.open(process, "1000-test", "bus").unwrap()
    }

    fn connect(&self) -> Client {
        self.connect_with(&Hello::new())
    }

    fn connect_with(&self, hello: &Hello<'_>) -> Client {
        Connection::hello(self.open(), hello).unwrap()
    }

    /// A service that owns [`NAME`] and runs whenever somebody waits.
    fn serve(
        &self,
        mut handler: impl FnMut(&mut Request<'_, SimTransport>) -> Result<(), ErrorReply> + 'static,
    ) -> u64 {
        let service = self.connect();
        service.acquire(NAME, NameFlags::empty()).unwrap();
        let id = service.id();
        self.sim.serve(move || match service.try_serve(&mut handler) {
            Ok(true) => Turn::Worked,
            Ok(false) => Turn::Idle,
            Err(error) => {
                assert!(error.is_broken());
                Turn::Idle
            }
        });
        id
    }

    fn memfd(&self, content: &[u8]) -> SimBorrowedFd {
        let file = File::Memfd { content: content.to_vec(), sealed: true };
        SimBorrowedFd(self.sim.world_mut().open_file(self.process, file).unwrap())
    }
}

fn echo(request: &mut Request<'_, SimTransport>) -> Result<(), ErrorReply> {
    request.reply(request.payload())
}

#[test]
fn a_service_answers_blocking_and_async_calls() {
    let bus = Bus::new();
    let service = bus.serve(echo);
    let client = bus.connect();
    let reply = client.call_blocking(&Message::to_name(NAME).payload(b"one"), CALL_TIMEOUT).unwrap();
    assert_eq!((reply.payload(), reply.sender(), reply.kind()), (&b"one"[..], service, Kind::Reply));
    drop(reply);
    let both = block_on(&client, async {
        let first = client.call(&Message::to(service).payload(b"two"), SECOND);
        let second = client.call(&Message::to(service).payload(b"three"), SECOND);
        // Out of order: each answer finds its call.
        let second = second.await.unwrap();
        let first = first.await.unwrap();
        [first.payload().to_vec(), second.payload().to_vec()]
    });
    assert_eq!(both.unwrap(), [b"two".to_vec(), b"three".to_vec()]);
}

#[test]
fn errors_of_the_service_reach_the_caller_as_errors() {
    let bus = Bus::new();
    bus.serve(|_| Err(ErrorReply::new(ErrorReply::NOT_FOUND, "no such channel")));
    let client = bus.connect();
    let error = CallError::Remote(ErrorReply::new(ErrorReply::NOT_FOUND, "no such channel"));
    let call = Message::to_name(NAME).payload(b"x");
    assert_eq!(client.call_blocking(&call, SECOND).unwrap_err(), error);
    assert_eq!(block_on(&client, client.call(&call, SECOND)).unwrap().unwrap_err(), error);
    assert_eq!(error.to_string(), "the callee answered with an error: no such channel (error 3)");
}

#[test]
fn calls_end_at_their_deadline_and_late_answers_are_discarded() {
    let bus = Bus::new();
    let service = bus.connect();
    let client = bus.connect();
    let begin = client.now();
    let call = client.call(&Message::to(service.id()), Duration::from_millis(20));
    let request = service.try_recv().unwrap().unwrap();
    assert_eq!(
        (request.kind(), request.deadline()),
        (Kind::Call, Some(begin.after(Duration::from_millis(20))))
    );
    assert_eq!(block_on(&client, call).unwrap().unwrap_err(), CallError::TimedOut);
    assert!(client.now().since(begin) >= Duration::from_millis(20));
    assert_eq!(service.reply(request.reply_to(), b"late"), Err(SendError::NotAwaited));
    let blocking = client.call_blocking(&Message::to(service.id()), Duration::from_millis(20));
    assert_eq!(blocking.unwrap_err(), CallError::TimedOut);
    assert!(client.try_recv().unwrap().is_none());
}

#[test]
fn the_answer_to_an_abandoned_call_is_consumed() {
    let bus = Bus::new();
    bus.serve(echo);
    let client = bus.connect();
    drop(client.call(&Message::to_name(NAME).payload(b"dropped"), SECOND));
    // The answer comes while the client waits for something else.
    client.call_blocking(&Message::to_name(NAME).payload(b"kept"), SECOND).unwrap();
    assert!(client.try_recv().unwrap().is_none());
    assert_eq!(client.stats().late, 1);
    assert!(client.byebye().is_ok());
}

#[test]
fn the_death_of_a_callee_ends_its_calls() {
    let bus = Bus::new();
    let client = bus.connect();
    let service = bus.connect();
    let call = client.call(&Message::to(service.id()), SECOND);
    drop(service);
    assert_eq!(block_on(&client, call).unwrap().unwrap_err(), CallError::PeerDied);
    assert_eq!(
        client.call_blocking(&Message::to(9999), SECOND).unwrap_err(),
        CallError::NotSent(SendError::NoSuchConnection)
    );
}

#[test]
fn a_call_dropped_unread_ends_at_its_caller() {
    let bus = Bus::new();
    let client = bus.connect();
    let service = bus.connect();
    let call = client.call(&Message::to(service.id()), SECOND);
    assert!(service.drop_next().unwrap());
    assert_eq!(block_on(&client, call).unwrap().unwrap_err(), CallError::PeerDied);
    // The same once the message has left the queue of the bus.
    let peer = bus.connect();
    let own = service.call(&Message::to(peer.id()), SECOND);
    let call = client.call(&Message::to(service.id()), SECOND);
    service.process(service.now()).unwrap();
    drop(own);
    assert!(service.drop_next().unwrap());
    let error = block_on(&client, call).unwrap().unwrap_err();
    assert!(matches!(error, CallError::Remote(reply) if reply.code() == ErrorReply::DROPPED));
}

#[test]
fn names_have_standings_and_queues() {
    let bus = Bus::new();
    let (first, second) = (bus.connect(), bus.connect());
    assert_eq!(first.acquire(NAME, NameFlags::empty()).unwrap().standing, Standing::Primary);
    assert_eq!(first.acquire(NAME, NameFlags::ALLOW_REPLACEMENT).unwrap().standing, Standing::AlreadyOwner);
    assert_eq!(second.acquire(NAME, NameFlags::empty()), Err(AcquireError::Taken));
    let queued = second.acquire(NAME, NameFlags::QUEUE).unwrap();
    assert_eq!((queued.standing, queued.is_owner()), (Standing::Queued, false));
    assert_eq!(second.acquire(NAME, NameFlags::empty()).unwrap().standing, Standing::LeftQueue);
    let replaced = second.acquire(NAME, NameFlags::REPLACE_EXISTING).unwrap();
    assert_eq!((replaced.standing, second.owner(NAME)), (Standing::Primary, Ok(Some(second.id()))));
    assert_eq!(first.release(NAME).unwrap_err().errno(), Errno::EADDRINUSE);
    second.release(NAME).unwrap();
    assert_eq!((second.owner(NAME), first.release(NAME).unwrap_err().errno()), (Ok(None), Errno::ESRCH));
}

#[test]
fn waiting_for_a_name_ends_when_a_service_comes() {
    let bus = Bus::new();
    let client = bus.connect();
    let nobody = client.wait_for_name_blocking(NAME, Duration::from_millis(5));
    assert_eq!(nobody, Err(WaitError::TimedOut));
    let service = bus.connect();
    let id = service.id();
    let mut started = false;
    bus.sim.serve(move || {
        if started {
            return Turn::Idle;
        }
        started = true;
        // Something else comes first and is not lost.
        service.send(&Message::to(client_id(id)).payload(b"hello")).unwrap();
        service.acquire(NAME, NameFlags::empty()).unwrap();
        Turn::Worked
    });
    assert_eq!(client.wait_for_name_blocking(NAME, SECOND), Ok(id));
    assert_eq!(client.try_recv().unwrap().unwrap().payload(), b"hello");
    assert!(client.try_recv().unwrap().is_none());
    assert_eq!(client.wait_for_name_blocking(NAME, SECOND), Ok(id));
}

/// The client connects right before the service.
const fn client_id(service: u64) -> u64 {
    service - 1
}

#[test]
fn the_name_itself_ends_the_wait_for_it() {
    let bus = Bus::new();
    let client = bus.connect();
    let service = bus.connect();
    let id = service.id();
    let (clock, at) = (bus.sim.clone(), client.now().after(Duration::from_millis(30)));
    bus.sim.serve(move || {
        if clock.world().now() < at {
            return Turn::Until(at);
        }
        match service.owner(NAME).unwrap() {
            Some(_) => Turn::Idle,
            None => {
                service.acquire(NAME, NameFlags::empty()).unwrap();
                Turn::Worked
            }
        }
    });
    assert_eq!(client.wait_for_name_blocking(NAME, SECOND), Ok(id));
    assert!(client.now().since(at) < Duration::from_millis(1));
    assert!(client.try_recv().unwrap().is_none());
}

#[test]
fn an_activator_counts_as_an_owner() {
    let bus = Bus::new();
    let client = bus.connect();
    let rules = [PolicyAccess::world(Access::Talk)];
    let activator = bus.connect_with(&Hello::new().activator(NAME).policy(&rules));
    assert_eq!(client.wait_for_name_blocking(NAME, SECOND), Ok(activator.id()));
    client.send(&Message::to_name(NAME).payload(b"wake up")).unwrap();
    let quiet = client.send(&Message::to_name(NAME).no_auto_start());
    assert_eq!(quiet, Err(SendError::NotStarted));
    assert_eq!(activator.peek().unwrap().unwrap().sender(), client.id());
    // What the activator only looked at goes to the service.
    let service = bus.connect();
    service.acquire(NAME, NameFlags::empty()).unwrap();
    assert_eq!(service.try_recv().unwrap().unwrap().payload(), b"wake up");
}

#[test]
fn signals_reach_those_who_subscribed() {
    let bus = Bus::new();
    let sender = bus.connect();
    let (exact, below, other) = (bus.connect(), bus.connect(), bus.connect());
    let level = topic("org.example.Mixer.level");
    exact.subscribe(level).unwrap();
    below.subscribe(TopicPattern::parse("org.example.*").unwrap()).unwrap();
    other.subscribe(topic("org.example.Mixer.mute")).unwrap();
    sender.signal(level, b"7").unwrap();
    for subscriber in [&exact, &below] {
        let signal = subscriber.try_recv().unwrap().unwrap();
        assert_eq!((signal.kind(), signal.payload(), signal.is_broadcast()), (Kind::Signal, &b"7"[..], true));
        assert!(signal.is_about(level) && !signal.is_about(topic("org.example.Mixer.mute")));
    }
    assert!(other.try_recv().unwrap().is_none());
    sender.signal_to(below.id(), level, b"8").unwrap();
    assert!(exact.try_recv().unwrap().is_none());
    assert_eq!(below.try_recv().unwrap().unwrap().payload(), b"8");
}

#[test]
fn removed_and_replaced_matches_are_gone() {
    let bus = Bus::new();
    let (sender, subscriber) = (bus.connect(), bus.connect());
    let (level, mute) = (topic("a.level"), topic("a.mute"));
    let cookie = subscriber.subscribe(level).unwrap();
    subscriber.replace_match(cookie, &[Rule::Topic(mute.into()), Rule::Sender(sender.id())]).unwrap();
    sender.signal(level, b"").unwrap();
    sender.signal(mute, b"").unwrap();
    assert!(subscriber.try_recv().unwrap().unwrap().is_about(mute));
    subscriber.remove_match(cookie).unwrap();
    sender.signal(mute, b"").unwrap();
    assert!(subscriber.try_recv().unwrap().is_none());
    assert_eq!(subscriber.remove_match(cookie).unwrap_err().errno(), Errno::EBADSLT);
}

#[test]
fn notifications_tell_of_connections_and_names() {
    let bus = Bus::new();
    let watcher = bus.connect();
    for (cookie, rule) in
        [Rule::IdAdd(None), Rule::IdRemove(None), Rule::name_added(NAME), Rule::name_removed(NAME)]
            .into_iter()
            .enumerate()
    {
        watcher.add_match(cookie as u64, &[rule]).unwrap();
    }
    let peer = bus.connect();
    let id = peer.id();
    peer.acquire(NAME, NameFlags::empty()).unwrap();
    drop(peer);
    let mut told = Vec::new();
    while let Some(message) = watcher.try_recv().unwrap() {
        told.push(match message.notification().unwrap() {
            Notification::IdAdd { id, .. } => ("id add", id),
            Notification::NameAdd { name, owner, flags } => {
                assert_eq!((name, flags.contains(NameFlags::PRIMARY)), (NAME.as_str(), true));
                ("name add", owner)
            }
            Notification::NameRemove { owner, .. } => ("name remove", owner),
            Notification::IdRemove { id, .. } => ("id remove", id),
            other => panic!("{other}"),
        });
    }
    assert_eq!(told, [("id add", id), ("name add", id), ("name remove", id), ("id remove", id)]);
}

#[test]
fn urgent_messages_overtake_also_what_a_call_took_out() {
    let bus = Bus::new();
    let (sender, receiver) = (bus.connect(), bus.connect());
    let send = |text: &'static [u8], priority| {
        sender.send(&Message::to(receiver.id()).payload(text).priority(priority)).unwrap();
    };
    send(b"low", 10);
    send(b"urgent", -10);
    let call = receiver.call(&Message::to(sender.id()), SECOND);
    receiver.process(receiver.now()).unwrap();
    send(b"most urgent", -20);
    send(b"urgent too", -10);
    let mut order = Vec::new();
    while let Some(message) = receiver.try_recv_priority(0).unwrap() {
        order.push(String::from_utf8(message.payload().to_vec()).unwrap());
    }
    assert_eq!(order, ["most urgent", "urgent", "urgent too"]);
    assert_eq!(receiver.try_recv().unwrap().unwrap().payload(), b"low");
    drop(call);
}

#[test]
fn payloads_come_in_the_parts_they_were_sent_in() {
    let bus = Bus::new();
    let (sender, receiver) = (bus.connect(), bus.connect());
    let memfd = bus.memfd(b"shared samples");
    let parts = [
        Part::Bytes(&b"more"[..]),
        Part::Zeros(5),
        Part::Memfd { fd: memfd, start: 7, size: 7 },
        Part::Bytes(b"end"),
    ];
    sender.send(&Message::to(receiver.id()).payload(b"head").parts(&parts)).unwrap();
    let mut message = receiver.try_recv().unwrap().unwrap();
    assert_eq!((message.payload(), message.payload_len()), (&b"headmore"[..], 23));
    let seen: Vec<String> = message
        .parts()
        .map(|part| match part {
            ReceivedPart::Bytes(bytes) => String::from_utf8(bytes.to_vec()).unwrap(),
            ReceivedPart::Zeros(count) => format!("{count} zeros"),
            ReceivedPart::Memfd { fd, start, size } => format!("memfd {} {start} {size}", fd.is_some()),
        })
        .collect();
    assert_eq!(seen, ["head", "more", "5 zeros", "memfd true 7 7", "end"]);
    let memfd = message.take_memfd(0).unwrap();
    drop(message);
    assert_eq!(memfd.read(64).unwrap(), b"shared samples");
}

#[test]
fn descriptors_go_to_those_who_accept_them() {
    let bus = Bus::new();
    let (sender, plain) = (bus.connect(), bus.connect());
    let willing = bus.connect_with(&Hello::new().accept_fds());
    let (reader, writer) = File::pipe();
    let fds =
        [reader, writer].map(|file| SimBorrowedFd(bus.sim.world_mut().open_file(bus.process, file).unwrap()));
    assert_eq!(sender.send(&Message::to(plain.id()).fds(&fds)), Err(SendError::NoDescriptors));
    sender.send(&Message::to(willing.id()).fds(&fds)).unwrap();
    let mut message = willing.try_recv().unwrap().unwrap();
    assert_eq!((message.fd_count(), message.has_incomplete_fds()), (2, false));
    let (reader, writer) = (message.take_fd(0).unwrap(), message.take_fd(1).unwrap());
    assert!(message.take_fd(0).is_none() && message.take_fd(2).is_none());
    drop(message);
    writer.write(b"through").unwrap();
    assert_eq!(reader.read(64).unwrap(), b"through");
}

#[test]
fn descriptors_that_nobody_takes_are_closed_with_the_message() {
    let bus = Bus::new();
    let sender = bus.connect();
    let willing = bus.connect_with(&Hello::new().accept_fds());
    let fd = bus.memfd(b"x");
    let before = bus.sim.world().open_files();
    sender.send(&Message::to(willing.id()).fds(&[fd])).unwrap();
    bus.sim.world_mut().close(bus.process, fd.0).unwrap();
    drop(willing.try_recv().unwrap().unwrap());
    assert_eq!(bus.sim.world().open_files(), before - 1);
}

#[test]
fn metadata_comes_to_those_who_ask() {
    let bus = Bus::new();
    let sender = bus.connect_with(&Hello::new().description(NodeName::parse("tester").unwrap()));
    sender.acquire(NAME, NameFlags::empty()).unwrap();
    let mask =
        AttachFlags::CREDS | AttachFlags::NAMES | AttachFlags::CONN_DESCRIPTION | AttachFlags::TIMESTAMP;
    let receiver = bus.connect_with(&Hello::new().ask_metadata(mask));
    sender.send(&Message::to(receiver.id())).unwrap();
    let message = receiver.try_recv().unwrap().unwrap();
    let metadata = message.metadata();
    assert_eq!(metadata.creds().map(|creds| creds.uid), Some(1000));
    assert_eq!(metadata.description(), Some("tester"));
    assert_eq!(metadata.names().map(|(_, name)| name).collect::<Vec<_>>(), [NAME.as_str()]);
    assert!(metadata.timestamp().is_some_and(|time| time.seqnum > 0));
    assert!(metadata.pids().is_none());
    drop(message);
    receiver.update(None, Some(AttachFlags::PIDS)).unwrap();
    sender.send(&Message::to(receiver.id())).unwrap();
    let message = receiver.try_recv().unwrap().unwrap();
    assert!(message.metadata().pids().is_some() && message.metadata().creds().is_none());
}

#[test]
fn queries_tell_who_is_there() {
    let bus = Bus::new();
    let asker = bus.connect();
    let peer = bus.connect_with(&Hello::new().send_metadata(AttachFlags::CREDS));
    peer.acquire(NAME, NameFlags::empty()).unwrap();
    let listing = asker.list(ListFlags::UNIQUE | ListFlags::NAMES).unwrap();
    let lines: Vec<(u64, Option<String>)> = listing
        .iter()
        .map(|line| (line.id, line.metadata.names().next().map(|(_, name)| name.to_owned())))
        .collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.contains(&(asker.id(), None)));
    assert!(lines.contains(&(peer.id(), Some(NAME.as_str().to_owned()))));
    let info = asker.name_info(NAME, AttachFlags::all()).unwrap();
    assert_eq!((info.id(), info.metadata().creds().map(|creds| creds.euid)), (peer.id(), Some(1000)));
    assert_eq!(asker.conn_info(9999, AttachFlags::empty()).unwrap_err().errno(), Errno::ENXIO);
    let creator = asker.creator_info(AttachFlags::empty()).unwrap();
    assert_eq!(creator.metadata().bus_name(), Some("1000-test"));
    assert!(asker.list(ListFlags::empty()).unwrap().iter().next().is_none());
}

#[test]
fn a_sender_waits_until_its_receiver_has_room() {
    let bus = Bus::new();
    let sender = bus.connect();
    let receiver = Rc::new(bus.connect_with(&Hello::new().pool_size(4096)));
    let message = Message::to(receiver.id()).payload(&[7; 300]);
    while sender.send(&message).is_ok() {}
    assert!(sender.send(&message).is_err_and(SendError::is_full));
    let late = sender.send_when_room_blocking(&message, Duration::from_millis(5));
    assert_eq!(late, Err(SendError::TimedOut));
    let slow = Rc::clone(&receiver);
    let wanted = sender.now().after(Duration::from_millis(50));
    let clock = bus.sim.clone();
    let mut done = false;
    bus.sim.serve(move || {
        if done {
            return Turn::Idle;
        }
        if clock.world().now() < wanted {
            return Turn::Until(wanted);
        }
        done = true;
        drop(slow.try_recv().unwrap().unwrap());
        Turn::Worked
    });
    sender.send_when_room_blocking(&message, SECOND).unwrap();
    assert!(sender.now() >= wanted && sender.now().since(wanted) < Duration::from_millis(5));
}

#[test]
fn lost_broadcasts_are_reported() {
    let bus = Bus::new();
    let sender = bus.connect();
    let receiver = bus.connect_with(&Hello::new().pool_size(4096));
    let level = topic("a.level");
    receiver.subscribe(level).unwrap();
    for _ in 0..10 {
        sender.signal(level, &[7; 300]).unwrap();
    }
    let mut received = 0;
    while receiver.try_recv().unwrap().is_some() {
        received += 1;
    }
    assert!(received > 0);
    assert_eq!((receiver.take_lost(), receiver.take_lost()), (10 - received, 0));
}

#[test]
fn goodbye_is_refused_while_messages_wait() {
    let bus = Bus::new();
    let (sender, receiver) = (bus.connect(), bus.connect());
    sender.send(&Message::to(receiver.id()).payload(b"wait")).unwrap();
    let left = receiver.byebye().unwrap_err();
    assert_eq!(left.error, ByebyeError::Busy);
    assert_eq!(left.connection.try_recv().unwrap().unwrap().payload(), b"wait");
    let id = left.connection.id();
    assert!(left.connection.byebye().is_ok());
    assert_eq!(sender.send(&Message::to(id)), Err(SendError::NoSuchConnection));
}

#[test]
fn an_empty_pool_after_everything_was_dropped() {
    let bus = Bus::new();
    bus.serve(echo);
    let client = bus.connect_with(&Hello::new().pool_size(4096));
    // More than the pool holds, if any slice were kept.
    for round in 0..200_u32 {
        let payload = round.to_ne_bytes();
        let reply = client.call_blocking(&Message::to_name(NAME).payload(&payload), SECOND).unwrap();
        assert_eq!(reply.payload(), payload);
        let call = client.call(&Message::to_name(NAME).payload(&payload), SECOND);
        if round % 2 == 0 {
            block_on(&client, call).unwrap().unwrap();
        }
        client.list(ListFlags::UNIQUE).unwrap();
        client.name_info(NAME, AttachFlags::all()).unwrap();
    }
}

#[test]
fn a_monitor_sees_calls_and_answers() {
    let bus = Bus::new();
    let monitor = Monitor::hello(bus.open(), &Hello::new()).unwrap();
    bus.serve(echo);
    let client = bus.connect();
    let call = client.call(&Message::to_name(NAME).payload(b"seen"), SECOND);
    block_on(&client, call).unwrap().unwrap();
    let mut kinds = Vec::new();
    while let Some(message) = monitor.try_recv().unwrap() {
        kinds.push(message.kind());
    }
    assert!(kinds.ends_with(&[Kind::Call, Kind::Reply]), "{kinds:?}");
    assert_eq!(monitor.stats().late, 0);
}

#[test]
fn policy_decides_who_may_talk_and_own() {
    let bus = Bus::new();
    let stranger = bus.sim.world_mut().spawn_user("stranger", 2000, 2000);
    let stranger = Connection::hello(bus.open_as(stranger), &Hello::new()).unwrap();
    let service = bus.connect();
    service.acquire(NAME, NameFlags::empty()).unwrap();
    assert_eq!(stranger.send(&Message::to_name(NAME)), Err(SendError::Denied));
    assert_eq!(stranger.acquire(NAME, NameFlags::QUEUE), Err(AcquireError::Denied));
    let covered = PolicyName::from_bytes(NAME.as_str().as_bytes()).unwrap();
    let rules = [PolicyAccess::user(2000, Access::Talk)];
    let holder = bus.connect_with(&Hello::new().policy_holder(covered).policy(&rules));
    stranger.send(&Message::to_name(NAME)).unwrap();
    holder.update_policy(covered, &[PolicyAccess::world(Access::Own)]).unwrap();
    assert_eq!(stranger.acquire(NAME, NameFlags::QUEUE).unwrap().standing, Standing::Queued);
}

#[test]
fn a_dead_bus_breaks_every_wait_and_a_new_one_restores_the_rest() {
    let bus = Bus::new();
    let mut client = bus.connect();
    client.acquire(NAME, NameFlags::empty()).unwrap();
    let level = topic("a.level");
    client.subscribe(level).unwrap();
    let call = client.call(&Message::to(client.id()).payload(b"to myself"), SECOND);
    bus.sim.world_mut().close(bus.process, bus.control).unwrap();
    assert!(block_on(&client, call).unwrap().is_err_and(CallError::is_broken));
    assert!(client.recv_blocking(SECOND).is_err_and(|error| error.is_broken()));
    assert!(client.send(&Message::to(3)).is_err_and(SendError::is_broken));

    bus.sim.make_bus(bus.process, "test").unwrap();
    let restored = client.reconnect(bus.open(), |refused| panic!("{refused:?}")).unwrap();
    assert_eq!((restored.names, restored.matches, restored.refused), (1, 1, 0));
    let sender = bus.connect();
    sender.signal(level, b"again").unwrap();
    assert!(client.try_recv().unwrap().unwrap().is_about(level));
    assert_eq!(sender.owner(NAME), Ok(Some(client.id())));
}

#[test]
fn a_name_taken_meanwhile_is_told_on_reconnect() {
    let bus = Bus::new();
    let mut client = bus.connect();
    client.acquire(NAME, NameFlags::empty()).unwrap();
    bus.sim.world_mut().close(bus.process, bus.control).unwrap();
    bus.sim.make_bus(bus.process, "test").unwrap();
    let usurper = bus.connect();
    usurper.acquire(NAME, NameFlags::empty()).unwrap();
    let refused = RefCell::new(Vec::new());
    let restored = client
        .reconnect(bus.open(), |lost| match lost {
            NotRestored::Name(name, error) => refused.borrow_mut().push((name.to_owned(), error)),
            other => panic!("{other:?}"),
        })
        .unwrap();
    assert_eq!((restored.refused, restored.names), (1, 0));
    assert_eq!(*refused.borrow(), [(NAME.as_str().to_owned(), AcquireError::Taken)]);
}

#[test]
fn a_cancelled_wait_leaves_nothing_behind() {
    let bus = Bus::new();
    let client = bus.connect();
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        let mut wait = pin!(client.wait_for_name(NAME, SECOND));
        assert!(wait.as_mut().poll(&mut cx).is_pending());
        let mut recv = pin!(client.recv());
        assert!(recv.as_mut().poll(&mut cx).is_pending());
        drop(client.call(&Message::to(client.id()), SECOND));
        // What the abandoned call sent to this very connection.
        let mut own = client.try_recv().unwrap().unwrap();
        assert!(own.take_fd(0).is_none());
    }
    let service = bus.connect();
    service.acquire(NAME, NameFlags::empty()).unwrap();
    // No match of a dropped wait is left.
    assert!(client.try_recv().unwrap().is_none());
}

#[test]
fn a_service_serves_and_calls_at_the_same_time() {
    let bus = Bus::new();
    bus.serve(echo);
    let middle = bus.connect();
    let front = bus.connect();
    let middle_id = middle.id();
    let asked = front.call(&Message::to(middle_id).payload(b"deep"), SECOND);
    let served = middle.serve_blocking(|request| {
        let payload = request.payload().to_vec();
        let answer = middle.call_blocking(&Message::to_name(NAME).payload(&payload), SECOND);
        request.stop();
        match answer {
            Ok(answer) => request.reply(answer.payload()),
            Err(CallError::Remote(error)) => Err(error),
            Err(error) => panic!("{error}"),
        }
    });
    assert_eq!(served, Ok(()));
    assert_eq!(block_on(&front, asked).unwrap().unwrap().payload(), b"deep");
}

#[test]
fn deferred_calls_are_answered_later() {
    let bus = Bus::new();
    let (service, client) = (bus.connect(), bus.connect());
    let call = client.call(&Message::to(service.id()).payload(b"when ready"), SECOND);
    let mut pending = None;
    service
        .try_serve(|request| {
            pending = Some(request.defer());
            Ok(())
        })
        .unwrap();
    let mut call = pin!(call);
    let mut cx = Context::from_waker(Waker::noop());
    assert!(call.as_mut().poll(&mut cx).is_pending());
    service.reply(pending.unwrap(), b"ready").unwrap();
    let Poll::Ready(answer) = call.as_mut().poll(&mut cx) else { panic!("not answered") };
    assert_eq!(answer.unwrap().payload(), b"ready");
}

#[test]
fn a_call_is_cancelled_through_its_descriptor() {
    let bus = Bus::new();
    let (client, service) = (bus.connect(), bus.connect());
    let cancel = SimBorrowedFd(bus.sim.world_mut().open_file(bus.process, File::Event(1)).unwrap());
    let canceled = client.call_cancelable(&Message::to(service.id()), SECOND, cancel);
    assert_eq!(canceled.unwrap_err(), CallError::Canceled);
}
