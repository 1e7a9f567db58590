//! Receivers that do what they like with their end of a lane and with the calls that come by it. Each harms nobody but
//! whoever calls it, and that one no longer than its call.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::attacker::{self, reply};
use common::{Bus, Client, exchange};
use kdbus_core::Instant;
use kdbus_core::abi::{AttachFlags, CmdList, Command, Errno, Msg, MsgFlags, SendFlags};
use kdbus_core::channel::terms::{PAGE_WORDS, VERDICT_AT};
use kdbus_core::channel::{
    CALL_WORDS, CALLS_MAX, CallName, CallState, CallWord, LaneHead, LaneLayout, LaneReader, LaneWriter, Words,
};
use kdbus_core::client::{CallError, Connection, Hello, Message};
use kdbus_linux::local::map::WordMap;
use kdbus_linux::local::socket::{self, Wait};
use kdbus_linux::local::wire::{FLAG_CLAIM, Header, Kind, LANE_FDS, LANE_OUT_FDS};
use rustix::fd::{AsFd, AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use zerocopy::{FromBytes, IntoBytes};

const LONG: Duration = Duration::from_secs(10);

fn bus() -> Bus {
    Bus::with(|config| config.capacity.lanes = 16)
}

fn client(bus: &Bus) -> Client {
    Connection::with_capacities(bus.options().lanes(4).connect(&bus.name()).unwrap(), &Hello::new()).unwrap()
}

fn after(span: Duration) -> Instant {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Instant::from_nanos(now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64).after(span)
}

/// A lane to a caller, and its bell.
type WayBack = (LaneWriter<WordMap, WordMap, WordMap>, OwnedFd);

/// A callee that has its lane in its own hands.
struct Attacker {
    client: Client,
    number: u32,
    /// Lane part and calls, mapped before the caller has them. As kdbusd's own user, it can open both for writing.
    early: [WordMap; 2],
    calls: WordMap,
    reader: LaneReader<WordMap, WordMap, WordMap>,
    _bell: OwnedFd,
}

impl Attacker {
    fn new(bus: &Bus) -> Self {
        let transport = bus.options().staging(0).lanes(0).connect(&bus.name()).unwrap();
        let client = Connection::with_capacities(transport, &Hello::new().accept_fds()).unwrap();
        let (answer, fds) = exchange(&client, &Header::new(Kind::BringLane, 1 << 40), &[]);
        answer.result().unwrap();
        let number = answer.slot;
        let [lane, back, page, calls, bell] = fds.into_array::<LANE_FDS>().unwrap();
        let words = rustix::fs::fstat(&lane).unwrap().st_size as usize / 8;
        let reader = LaneReader::new(
            WordMap::read_only(&lane, words).unwrap(),
            WordMap::writable(&back, LaneLayout::BACK_WORDS).unwrap(),
            WordMap::read_only(&page, PAGE_WORDS).unwrap(),
            VERDICT_AT,
            LaneLayout::of_words(words).unwrap(),
        );
        let early = [(&lane, words), (&calls, CALL_WORDS)].map(|(file, words)| {
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            rustix::fs::chmod(&path, Mode::RUSR | Mode::WUSR).unwrap();
            let file = rustix::fs::open(&path, OFlags::RDWR, Mode::empty()).unwrap();
            WordMap::writable(&file, words).unwrap()
        });
        let calls = WordMap::writable(&calls, CALL_WORDS).unwrap();
        let mapped = Header { slot: number, ..Header::new(Kind::LaneMapped, 0) };
        socket::send(client.transport().handle().socket(), &mapped, &[], &[], Wait::Yes).unwrap();
        // Its answer comes when the lane is ready.
        let _ = client.transport().handle().command(0, &mut [0; 8]);
        Self { number, early, calls, reader: reader.unwrap(), _bell: bell, client }
    }

    /// The call that came by the lane.
    fn call(&mut self) -> CallName {
        let head = self.reader.peek().unwrap().expect("it came by lane");
        CallName::from_word(head.call).unwrap()
    }

    fn word(&self, call: CallName) -> CallWord<&WordMap> {
        CallWord::new(&self.calls, call.index)
    }

    /// Says to kdbusd that a message is the reply to `call`.
    fn claim(&self, call: CallName, caller: u64, cookie: u64) -> Result<(), Errno> {
        self.claim_with(call, &reply(caller, cookie), SendFlags::empty())
    }

    /// Says to kdbusd of any message that it is the reply to `call`.
    fn claim_with(&self, call: CallName, reply: &[u8], flags: SendFlags) -> Result<(), Errno> {
        attacker::claim(&self.client, self.number, call.word(), reply, flags)
    }

    /// Says to kdbusd that a command of another kind is the reply to `call`.
    fn claim_with_a_list(&self, call: CallName) -> Result<(), Errno> {
        let command = CmdList { size: size_of::<CmdList>() as u64, flags: 1, ..CmdList::default() };
        let header = Header {
            number: Command::List.request(),
            flags: FLAG_CLAIM,
            arg_size: size_of::<CmdList>() as u32,
            key: call.word(),
            slot: self.number,
            ..Header::new(Kind::Command, 1 << 41)
        };
        exchange(&self.client, &header, &[command.as_bytes()]).0.result()
    }

    fn way_back(&self, caller: u64) -> WayBack {
        let open = Header { key: caller, ..Header::new(Kind::OpenLane, 1 << 42) };
        let (answer, fds) = exchange(&self.client, &open, &[]);
        answer.result().unwrap();
        let [lane, back, page, _calls, bell, _record, _heard] = fds.into_array::<LANE_OUT_FDS>().unwrap();
        let words = rustix::fs::fstat(&lane).unwrap().st_size as usize / 8;
        let writer = LaneWriter::new(
            WordMap::writable(&lane, words).unwrap(),
            WordMap::read_only(&back, LaneLayout::BACK_WORDS).unwrap(),
            WordMap::read_only(&page, PAGE_WORDS).unwrap(),
            VERDICT_AT,
            LaneLayout::of_words(words).unwrap(),
        )
        .unwrap();
        let mapped = Header { slot: answer.slot, ..Header::new(Kind::LaneMapped, 0) };
        socket::send(self.client.transport().handle().socket(), &mapped, &[], &[], Wait::Yes).unwrap();
        let _ = self.client.transport().handle().command(0, &mut [0; 8]);
        (writer, bell)
    }

    /// Says by lane that a message is the reply to `call`.
    fn answer(&self, call: CallName, caller: u64, cookie: u64) {
        let mut way = self.way_back(caller);
        assert!(put(&mut way, after(Duration::ZERO).as_nanos(), call, &reply(caller, cookie)));
    }
}

/// Sends a reply by lane. False if it is full.
fn put((writer, bell): &mut WayBack, key: u64, call: CallName, reply: &[u8]) -> bool {
    let head = LaneHead { first: reply.len() as u64, second: 8, key, call: call.word() };
    let Ok(mut reserved) = writer.reserve(head) else { return false };
    reserved.put(reply);
    reserved.next_part();
    reserved.put(b"an answr");
    if reserved.commit().unwrap() {
        let _ = rustix::io::write(&*bell, &[1]);
    }
    true
}

#[test]
fn a_callee_does_not_choose_which_call_it_answers() {
    let bus = bus();
    let mut callee = Attacker::new(&bus);
    let (caller, other) = (client(&bus), client(&bus));
    caller.transport().open_lane(callee.client.id()).unwrap();
    let later = after(6 * LONG);
    for (to, cookie) in [(callee.client.id(), 0x5555), (other.id(), 9)] {
        caller.send(&Message::to(to).payload(b"question").cookie(cookie).expect_reply(later)).unwrap();
    }
    let call = callee.call();
    // The other call's cookie wherever its own one stands, in all that it can reach.
    for part in &callee.early {
        for at in (0..part.count()).filter(|at| part.load(*at) == 0x5555) {
            part.store(at, 9);
        }
    }
    assert!(callee.claim(call, caller.id(), 9).is_err());
    assert!(caller.try_recv().unwrap().is_none(), "that one was asked of somebody else");
    let question = other.try_recv().unwrap().unwrap();
    other.send(&Message::reply(question.reply_to()).payload(b"honest")).unwrap();
    let reply = caller.recv_blocking(LONG).unwrap();
    assert_eq!((reply.sender(), reply.cookie_reply()), (other.id(), 9));
}

#[test]
fn a_claim_that_brings_no_reply_ends_no_call() {
    let bus = bus();
    for (kind, then_answers) in (0..4).flat_map(|kind| [(kind, false), (kind, true)]) {
        let mut callee = Attacker::new(&bus);
        let (caller, other) = (client(&bus), client(&bus));
        let (id, to) = (caller.id(), callee.client.id());
        caller.transport().open_lane(to).unwrap();
        let soon = after(Duration::from_millis(if then_answers { 60_000 } else { 300 }));
        caller.send(&Message::to(to).payload(b"question").cookie(5).expect_reply(soon)).unwrap();
        let call = callee.call();
        match kind {
            0 => callee.claim_with(call, &reply(other.id(), 0), SendFlags::empty()).unwrap(),
            1 => callee.claim_with_a_list(call).unwrap(),
            2 => {
                let mut question = reply(other.id(), after(Duration::from_millis(5)).as_nanos());
                let flags = std::mem::offset_of!(Msg, flags);
                question[flags] |= MsgFlags::EXPECT_REPLY.bits() as u8;
                let ended = callee.claim_with(call, &question, SendFlags::SYNC_REPLY);
                assert_eq!(ended, Err(Errno::ETIMEDOUT), "nobody answers");
            }
            _ => {
                // The reply to another call of the same two, which went through kdbusd.
                let handle = callee.client.transport().handle();
                let (reader, _writer) = rustix::pipe::pipe().unwrap();
                let fds = [AsFd::as_fd(&reader)];
                let question = Message::to(to).fds(&fds).cookie(6).expect_reply(after(LONG));
                caller.send(&question).unwrap();
                assert_eq!(handle.stats(to).unwrap().stats.queued, 1);
                assert_eq!(callee.claim(call, id, 6), Err(Errno::EBADSLT));
            }
        }
        if then_answers {
            callee.claim(call, id, 5).unwrap();
        }
        let ended = caller.recv_blocking(LONG).expect("each call ends");
        let sender = if then_answers { to } else { 0 };
        assert_eq!((ended.sender(), ended.cookie_reply()), (sender, 5), "kind {kind}");
        assert!(caller.try_recv().unwrap().is_none());
    }
}

#[test]
fn a_call_has_one_reply_whatever_way_its_callee_answers_again() {
    // By kdbusd and by kdbusd; by lane, before and after its caller has looked, and by kdbusd.
    for (by_lane, looked) in [(false, false), (true, false), (true, true)] {
        let bus = bus();
        let mut callee = Attacker::new(&bus);
        let caller = client(&bus);
        let (id, to) = (caller.id(), callee.client.id());
        caller.transport().open_lane(to).unwrap();
        let question = Message::to(to).payload(b"question").cookie(5);
        caller.send(&question.expect_reply(after(6 * LONG))).unwrap();
        let call = callee.call();
        if by_lane {
            callee.answer(call, id, 5);
        } else {
            callee.claim(call, id, 5).unwrap();
        }
        if looked {
            assert_eq!(caller.recv_blocking(LONG).unwrap().cookie_reply(), 5);
        }
        // Whatever it says of the call, to whoever reads it.
        callee.word(call).begin(call.number);
        let again = callee.claim(call, id, 5);
        assert_eq!(again.is_ok(), by_lane && !looked, "{again:?}");
        if !looked {
            assert_eq!(caller.recv_blocking(LONG).unwrap().cookie_reply(), 5);
        }
        callee.word(call).begin(call.number);
        assert!(callee.claim(call, id, 5).is_err());
        assert!(caller.try_recv().unwrap().is_none(), "by lane {by_lane}, looked {looked}");
    }
}

#[test]
fn what_keeps_coming_in_keeps_nobody_from_canceling() {
    // A lane full of replies that nobody waits for. The time of the next one has not come yet when the one before it is read.
    let bus = Bus::with(|config| {
        config.capacity.lanes = 16;
        config.memory.lane = kdbusd::config::Bytes(1 << 20);
    });
    let callee = Attacker::new(&bus);
    let caller = client(&bus);
    caller.transport().open_lane(callee.client.id()).unwrap();
    let mut way = callee.way_back(caller.id());
    let (cancel, canceler) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&canceler, b"!").unwrap();
    let (call, reply) = (CallName { index: 5, number: 5 }, reply(caller.id(), 9));
    let mut fill = || {
        let (now, mut count) = (after(Duration::ZERO), 0);
        while put(&mut way, now.after(count * Duration::from_micros(900)).as_nanos(), call, &reply) {
            count += 1;
        }
        count
    };
    let count = fill();
    let question = Message::to(callee.client.id()).payload(b"question");
    let error = caller.call_cancelable(&question, 6 * LONG, cancel.as_fd()).map(|_| ()).unwrap_err();
    assert_eq!(error, CallError::Canceled);
    let read = fill();
    assert!(read < count / 2, "it has read {read} of {count} before");
}

#[test]
fn a_reply_does_not_show_a_time_that_has_not_come() {
    let bus = bus();
    for shows in [false, true] {
        let mut callee = Attacker::new(&bus);
        let (to, name, options) = (callee.client.id(), bus.name(), bus.options().lanes(4));
        let (tell, told) = std::sync::mpsc::channel();
        let caller = std::thread::spawn(move || {
            let asked = if shows { AttachFlags::TIMESTAMP } else { AttachFlags::empty() };
            let hello = Hello::new().ask_metadata(asked);
            let caller: Client =
                Connection::with_capacities(options.connect(&name).unwrap(), &hello).unwrap();
            caller.transport().open_lane(to).unwrap();
            tell.send(caller.id()).unwrap();
            let question = Message::to(to).payload(b"question");
            let reply = caller.call_blocking(&question, if shows { LONG / 50 } else { LONG });
            reply.map(|reply| reply.metadata().timestamp())
        });
        let id = told.recv_timeout(LONG).unwrap();
        let mut way = callee.way_back(id);
        let late = after(LONG);
        let (call, cookie) = loop {
            if let Some(head) = callee.reader.peek().unwrap() {
                let mut words = vec![0; 64];
                callee.reader.copy_out(&mut words[..32], &mut vec![0; 32]).unwrap();
                let header = Msg::read_from_prefix(words.as_bytes()).unwrap().0;
                break (CallName::from_word(head.call).unwrap(), header.cookie);
            }
            assert!(after(Duration::ZERO) < late, "the call never comes");
            std::thread::yield_now();
        };
        assert!(callee.word(call).end(call.number, CallState::Answered));
        assert!(put(&mut way, after(6 * LONG).as_nanos(), call, &reply(id, cookie)));
        let ended = caller.join().unwrap();
        // Nothing is wrong with it where nobody is shown when it was sent.
        assert_eq!(ended, if shows { Err(CallError::TimedOut) } else { Ok(None) });
    }
}

#[test]
fn a_call_that_has_timed_out_has_no_reply() {
    let bus = bus();
    let mut callee = Attacker::new(&bus);
    let caller = client(&bus);
    let to = callee.client.id();
    caller.transport().open_lane(to).unwrap();
    let question = Message::to(to).payload(b"question").cookie(5);
    caller.send(&question.expect_reply(after(Duration::from_millis(5)))).unwrap();
    let call = callee.call();
    let ended = caller.recv_blocking(LONG).unwrap();
    assert_eq!((ended.sender(), ended.cookie_reply()), (0, 5));
    callee.word(call).begin(call.number);
    assert_eq!(callee.claim(call, caller.id(), 5), Err(Errno::EBADSLT));
    callee.answer(call, caller.id(), 5);
    assert!(caller.try_recv().unwrap().is_none());
}

#[test]
fn a_reply_that_is_announced_and_never_comes_ends_its_call_all_the_same() {
    let bus = bus();
    let mut callee = Attacker::new(&bus);
    let caller = client(&bus);
    caller.transport().open_lane(callee.client.id()).unwrap();
    let question = Message::to(callee.client.id()).payload(b"question").cookie(5);
    caller.send(&question.expect_reply(after(Duration::from_millis(20)))).unwrap();
    let call = callee.call();
    assert!(callee.word(call).end(call.number, CallState::Answered));
    let ended = caller.recv_blocking(LONG).expect("it hears that nothing comes");
    assert_eq!((ended.sender(), ended.cookie_reply()), (0, 5));
    assert!(caller.try_recv().unwrap().is_none());
}

#[test]
fn whatever_a_callee_writes_to_the_words_of_calls_each_call_ends_and_the_next_one_works() {
    let bus = bus();
    let callee = Attacker::new(&bus);
    let (caller, honest) = (client(&bus), client(&bus));
    caller.transport().open_lane(callee.client.id()).unwrap();
    caller.transport().open_lane(honest.id()).unwrap();
    let (to, next) = (callee.client.id(), honest.id());
    // Calls that were made, and those of them that were found: on a busy machine a call may be over before.
    let counts = Arc::new([const { AtomicU64::new(0) }; 2]);
    let shared = Arc::clone(&counts);
    let calling = std::thread::spawn(move || {
        let [made, found] = &*shared;
        while found.load(Ordering::Relaxed) < 50 {
            made.fetch_add(1, Ordering::Relaxed);
            let question = Message::to(to).payload(b"question");
            let answer = caller.call_blocking(&question, Duration::from_millis(3));
            assert!(answer.is_err(), "nobody answers");
        }
        caller
    });
    let mut seed = 0x1234_5678_9abc_def1_u64;
    let mut scramble = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    let waited = CALLS_MAX - 1;
    let [made, found] = &*counts;
    // The number of the call, or words for another one would be all that the caller finds.
    let mut number = 0;
    let mut since = Instant::ZERO;
    while !calling.is_finished() {
        let seen = callee.calls.load(waited) >> 2;
        let is_new = seen > number && seen == made.load(Ordering::Relaxed);
        if is_new {
            (number, since) = (seen, after(LONG));
            found.fetch_add(1, Ordering::Relaxed);
        }
        assert!(number == 0 || after(Duration::ZERO) < since, "call {number} does not end");
        // Of every second call the words stay as they are written first; those of the others change on and on.
        if number % 2 == 0 && !is_new {
            continue;
        }
        let word = match scramble() % 4 {
            0 if !is_new => scramble(),
            state => (number << 2) | state,
        };
        let at =
            if is_new || scramble().is_multiple_of(2) { waited } else { scramble() as usize % CALL_WORDS };
        callee.calls.store(at, word);
    }
    let caller = calling.join().unwrap();
    let serving = std::thread::spawn(move || {
        let question = honest.recv_blocking(LONG).unwrap().reply_to();
        honest.send(&Message::reply(question).payload(b"answer")).unwrap();
        honest
    });
    let answer = caller.call_blocking(&Message::to(next).payload(b"question"), LONG).unwrap();
    assert_eq!((answer.sender(), answer.payload()), (next, &b"answer"[..]));
    serving.join().unwrap();
}
