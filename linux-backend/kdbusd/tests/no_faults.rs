//! Once both ends are warm, messages and calls by lane cost neither a page fault nor an allocation.
//!
//! The allocator of this program counts, which is why this test has a program to itself.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Barrier;
use std::time::Duration;

use common::{Bus, Client};
use kdbus_core::client::{Connection, Hello, Message};
use kdbus_linux::rt;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // A thread that ends has nothing left to count with.
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
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

const MESSAGES: u64 = 20_000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Page faults of this thread, and its allocations.
fn costs() -> (i64, u64) {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the system fills in the whole record, if it says so.
    let usage = unsafe {
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()), 0);
        usage.assume_init()
    };
    (usage.ru_minflt + usage.ru_majflt, ALLOCATIONS.with(Cell::get))
}

/// What `task` costs the calling thread once it was done before, with the memory that it has prefaulted.
fn cost_of(barrier: &Barrier, mut task: impl FnMut()) -> (i64, u64) {
    rt::prefault_stack();
    task();
    barrier.wait();
    let before = costs();
    task();
    let after = costs();
    barrier.wait();
    (after.0 - before.0, after.1 - before.1)
}

fn client(bus: &Bus) -> Client {
    let transport = bus.options().prefault(true).lanes(2).connect(&bus.name()).unwrap();
    Connection::with_capacities(transport, &Hello::new()).unwrap()
}

#[test]
fn the_counters_count() {
    let before = costs();
    let mut large = vec![0_u8; 1 << 22];
    large.chunks_mut(4096).for_each(|page| page[0] = 1);
    std::hint::black_box(&large);
    let after = costs();
    assert!(after.0 > before.0 && after.1 > before.1);
}

#[test]
fn messages_and_calls_by_lane_cost_no_page_fault_and_no_allocation() {
    let bus = Bus::with(|config| config.capacity.lanes = 8);
    let (caller, ready) = (client(&bus), Barrier::new(2));
    let caller_id = caller.id();
    let id = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        let served = scope.spawn(|| {
            let callee = client(&bus);
            id.store(callee.id(), std::sync::atomic::Ordering::Release);
            ready.wait();
            callee.transport().open_lane(caller_id).unwrap();
            let cost = cost_of(&ready, || {
                for _ in 0..2 * MESSAGES {
                    let message = callee.recv_blocking(PATIENCE).unwrap();
                    if message.deadline().is_some() {
                        callee.reply(message.reply_to(), message.payload()).unwrap();
                    }
                }
            });
            ready.wait();
            cost
        });
        ready.wait();
        let id = id.load(std::sync::atomic::Ordering::Acquire);
        caller.transport().open_lane(id).unwrap();
        let carried = || caller.transport().handle().stats(id).unwrap().stats.received;
        let before = carried();
        let cost = cost_of(&ready, || {
            for number in 0..MESSAGES {
                let payload = [number as u8; 500];
                let message = Message::to(id).payload(&payload[..number as usize % 500]);
                // Answered before the next pair, so that none finds its lane full and goes through kdbusd.
                caller.send(&message).unwrap();
                let reply = caller.call(&message, PATIENCE).wait().unwrap();
                assert_eq!(reply.payload().len(), number as usize % 500);
            }
        });
        let carried = carried() - before;
        ready.wait();
        let served = served.join().unwrap();
        assert_eq!((cost, served), ((0, 0), (0, 0)), "page faults and allocations of caller and callee");
        assert_eq!(carried, 0, "they went past the daemon");
    });
}
