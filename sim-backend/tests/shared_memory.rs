//! Core's own queue in shared memory, with either side stopped or killed at every single access.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use kdbus_core::channel::{Entry, InboxLayout, InboxReader, InboxWriter, Return};
use kdbus_sim::{Mapping, Peer, SharedMemory};

type Writer = InboxWriter<Mapping, Mapping>;
type Reader = InboxReader<Mapping, Mapping>;

/// A queue of a few entries, its two sides, and what became of each entry.
struct Queue {
    bus: Peer,
    client: Peer,
    writer: RefCell<Writer>,
    reader: RefCell<Reader>,
    /// Keys that the client received, in its order.
    received: RefCell<Vec<u64>>,
    /// Keys that the bus took back.
    retracted: RefCell<Vec<u64>>,
    rung: Cell<bool>,
}

fn entry(slot: u32, key: u64) -> Entry {
    Entry { slot, key, priority: -(key as i64), offset: 8 * key, size: 64 + key, with_files: key & 1 != 0 }
}

impl Queue {
    fn new() -> Rc<Self> {
        let layout = InboxLayout::new(3).unwrap();
        let (bus, client) = (Peer::new(), Peer::new());
        let posted = SharedMemory::new(layout.posted_words());
        let shared = SharedMemory::new(layout.shared_words());
        let writer = Writer::new(posted.map(&bus), shared.map(&bus), layout).unwrap();
        let reader = Reader::attach(posted.map(&client), shared.map(&client)).unwrap();
        Rc::new(Self {
            bus,
            client,
            writer: RefCell::new(writer),
            reader: RefCell::new(reader),
            received: RefCell::default(),
            retracted: RefCell::default(),
            rung: Cell::new(false),
        })
    }

    /// The bus shows four entries, takes one back between, and uses its slot again.
    fn serve(&self) {
        let mut writer = self.writer.borrow_mut();
        let publish = |writer: &mut Writer, slot, key| {
            let bell = writer.publish(&entry(slot, key));
            self.rung.set(self.rung.get() | bell);
        };
        publish(&mut writer, 0, 10);
        publish(&mut writer, 1, 11);
        if writer.retract(&entry(1, 11)) {
            self.retracted.borrow_mut().push(11);
            // Only the slot of an entry that nobody has is free.
            publish(&mut writer, 1, 12);
        }
        publish(&mut writer, 2, 13);
    }

    /// The client receives all that it sees, and tells of it.
    fn drain(&self) {
        let mut reader = self.reader.borrow_mut();
        let mut seen = Vec::new();
        reader.fresh(|shown| {
            seen.push(shown);
            true
        });
        for shown in seen {
            assert_eq!(shown, entry(shown.slot, shown.key), "an entry is whole");
            if reader.take(shown.slot, shown.key) {
                self.received.borrow_mut().push(shown.key);
                reader.push_return(Return::Taken { slot: shown.slot, key: shown.key }).unwrap();
            }
        }
    }

    /// Each entry that was shown has come to one end, and the bus hears of each one that was received.
    fn check(&self) {
        self.drain();
        let mut ends = [self.received.borrow().clone(), self.retracted.borrow().clone()].concat();
        ends.sort_unstable();
        let reused = self.retracted.borrow().contains(&11);
        assert_eq!(ends, if reused { vec![10, 11, 12, 13] } else { vec![10, 11, 13] });
        let mut writer = self.writer.borrow_mut();
        let told: Vec<u64> = std::iter::from_fn(|| writer.poll_return())
            .map(|told| match told {
                Return::Taken { key, .. } => key,
                Return::Freed(offset) => panic!("nobody gave {offset} back"),
            })
            .collect();
        assert_eq!(told, *self.received.borrow());
        assert!(!writer.is_violated());
    }
}

/// Accesses that `life` of this peer of a fresh queue makes.
fn accesses(peer: impl Fn(&Queue) -> &Peer, life: impl Fn(&Queue)) -> u64 {
    let queue = Queue::new();
    let before = peer(&queue).accesses();
    life(&queue);
    peer(&queue).accesses() - before
}

#[test]
fn the_client_receives_at_every_access_of_the_bus() {
    let count = accesses(|queue| &queue.bus, Queue::serve);
    assert!(count > 30, "{count}");
    for nth in 1..=count {
        let queue = Queue::new();
        let other = Rc::clone(&queue);
        queue.bus.stop_at(nth, move || other.drain());
        queue.serve();
        queue.check();
    }
}

#[test]
fn the_bus_shows_and_takes_back_at_every_access_of_the_client() {
    let receive = |queue: &Queue| {
        let _ = queue.writer.borrow_mut().publish(&entry(2, 9));
        queue.drain();
    };
    let count = accesses(|queue| &queue.client, receive);
    for nth in 1..=count {
        let queue = Queue::new();
        let _ = queue.writer.borrow_mut().publish(&entry(0, 9));
        let other = Rc::clone(&queue);
        queue.client.stop_at(nth, move || {
            let mut writer = other.writer.borrow_mut();
            if writer.retract(&entry(0, 9)) {
                other.retracted.borrow_mut().push(9);
                // At once in the same place.
                let _ = writer.publish(&entry(0, 10));
            }
        });
        queue.drain();
        queue.drain();
        let ends = [queue.received.borrow().clone(), queue.retracted.borrow().clone()].concat();
        assert!(matches!(ends[..], [9] | [10, 9]), "access {nth}: {ends:?}");
    }
}

#[test]
fn nobody_sleeps_through_a_message_whoever_is_stopped_where() {
    // The client asks for its bell and looks once more; then it sleeps if nothing is there.
    let sleeps = |queue: &Queue| {
        queue.reader.borrow().arm();
        !queue.reader.borrow().has_fresh()
    };
    let show = |queue: &Queue| {
        let bell = queue.writer.borrow_mut().publish(&entry(0, 10));
        queue.rung.set(queue.rung.get() | bell);
    };
    let quiet = || {
        let queue = Queue::new();
        // The first bell is spent.
        let _ = queue.writer.borrow_mut().notice();
        queue
    };
    for nth in 1..=accesses(|queue| &queue.bus, show) {
        let queue = quiet();
        let (other, asleep) = (Rc::clone(&queue), Rc::new(Cell::new(false)));
        let seen = Rc::clone(&asleep);
        queue.bus.stop_at(nth, move || seen.set(sleeps(&other)));
        show(&queue);
        assert!(!asleep.get() || queue.rung.get(), "the bus was stopped at access {nth}");
    }
    for nth in 1..=accesses(
        |queue| &queue.client,
        |queue| {
            let _ = sleeps(queue);
        },
    ) {
        let queue = quiet();
        let other = Rc::clone(&queue);
        queue.client.stop_at(nth, move || show(&other));
        assert!(!sleeps(&queue) || queue.rung.get(), "the client was stopped at access {nth}");
    }
}

#[test]
fn a_client_that_is_killed_at_any_access_leaves_the_bus_in_order() {
    let receive = |queue: &Queue| {
        queue.serve();
        queue.drain();
    };
    for nth in 1..=accesses(|queue| &queue.client, receive) {
        let queue = Queue::new();
        queue.serve();
        queue.client.kill_at(nth);
        assert_eq!(queue.client.live(|| queue.drain()), None);
        let mut writer = queue.writer.borrow_mut();
        let told = std::iter::from_fn(|| writer.poll_return()).count();
        assert!(told <= queue.received.borrow().len() && !writer.is_violated(), "access {nth}");
        // What it did not take can still be taken back; the rest is found in its state.
        let back =
            [(0, 10), (1, 12), (2, 13)].into_iter().filter(|(slot, key)| writer.retract(&entry(*slot, *key)));
        let back = back.count();
        assert!(
            back + queue.received.borrow().len() == 3 || back + queue.received.borrow().len() + 1 == 3,
            "{nth}"
        );
    }
}

#[test]
fn a_bus_that_is_killed_at_any_access_leaves_whole_entries_only() {
    for nth in 1..=accesses(|queue| &queue.bus, Queue::serve) {
        let queue = Queue::new();
        queue.bus.kill_at(nth);
        assert_eq!(queue.bus.live(|| queue.serve()), None);
        queue.drain();
        queue.drain();
        let received = queue.received.borrow();
        assert!(received.is_sorted() && received.len() <= 3, "access {nth}: {received:?}");
    }
}
