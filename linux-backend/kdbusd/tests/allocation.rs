//! The daemon allocates at start-up and when clients come, and never for a message.
//!
//! The allocator of this program counts, which is why this test has a program to itself.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kdbus_core::WellKnownName;
use kdbus_core::abi::{AttachFlags, NameFlags};
use kdbus_core::client::{Connection, Hello, Message, Part, Topic, TopicPattern};
use kdbus_linux::local::{Environment, LocalTransport, Options, SealedMemfd};
use kdbusd::Daemon;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.with(Cell::get) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_message_costs_an_allocation() {
    let dir = tempfile::tempdir().unwrap();
    let config = common::small(dir.path());
    let mut daemon = Daemon::bind(&config).unwrap();
    let (stop, order) = rustix::pipe::pipe().unwrap();
    let thread = std::thread::spawn(move || {
        COUNTED.with(|counted| counted.set(true));
        drop(std::hint::black_box(Box::new(0_u8)));
        daemon.run(&stop).unwrap();
        COUNTED.with(|counted| counted.set(false));
    });

    let uid = rustix::process::geteuid().as_raw();
    let root = config.root.as_os_str().as_encoded_bytes();
    let options = Options::new().environment(Environment::new(uid).with_root(root).unwrap());
    let connect = || -> Connection<LocalTransport> {
        let hello = Hello::new().accept_fds().pool_size(4 << 20).ask_metadata(AttachFlags::all());
        Connection::hello(options.connect(&format!("{uid}-test")).unwrap(), &hello).unwrap()
    };
    let (a, b) = (connect(), connect());
    let name = WellKnownName::parse("org.example.B").unwrap();
    let topic = Topic::parse("x.y").unwrap();
    let memfd = SealedMemfd::new(b"12345678").unwrap();
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let large = vec![5; 300_000];
    let all_kinds = || {
        b.acquire(name, NameFlags::empty()).unwrap();
        b.subscribe(TopicPattern::parse("x.*").unwrap()).unwrap();
        a.send(&Message::to(b.id()).payload(b"small")).unwrap();
        a.send(&Message::to_name(name).payload(&large)).unwrap();
        a.signal(topic, b"signal").unwrap();
        let parts = [Part::Memfd { fd: memfd.as_fd(), start: 0, size: 8 }];
        let fds = [reader.as_fd()];
        a.send(&Message::to(b.id()).parts(&parts).fds(&fds)).unwrap();
        for _ in 0..4 {
            drop(b.try_recv().unwrap().unwrap());
        }
        // If the deadline passes on the way, nothing comes.
        a.call_blocking(&Message::to(b.id()), Duration::from_millis(2)).unwrap_err();
        drop(b.try_recv().unwrap());
        b.release(name).unwrap();
    };
    all_kinds();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    assert!(before > 0, "the thread is counted");
    for _ in 0..50 {
        all_kinds();
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
    drop(order);
    thread.join().unwrap();
}
