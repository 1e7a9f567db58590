//! Nothing allocates between connecting and closing, in whichever way messages go.
//!
//! The allocator of this program counts, which is why this test has a program to itself.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::ptr::null_mut;

use kdbus_rt::bus::*;
use kdbus_rt::held::Message;
use kdbus_rt::message::*;
use kdbus_rt::names::*;
use kdbus_rt::recv::*;
use kdbus_rt::send::*;

mod common;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is handed to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.with(Cell::get) {
            ALLOCATIONS.with(|count| count.set(count.get() + 1));
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

fn connect(daemon: &common::Bus) -> Box<Bus> {
    let node = CString::new(daemon.node().as_os_str().as_bytes()).unwrap();
    let mut bus = MaybeUninit::uninit();
    assert_eq!(kdbus_rt_connect(node.as_ptr(), None, Some(&mut bus)), 0);
    // SAFETY: written on success, by the library's own `Box::into_raw`.
    unsafe { Box::from_raw(bus.assume_init()) }
}

fn recv(bus: &mut Bus, flags: u64) -> Option<Box<Message>> {
    let mut message = MaybeUninit::new(null_mut());
    kdbus_rt_recv(Some(bus), flags, i64::MAX, 0, Some(&mut message));
    // SAFETY: initialised; what it leads to is the library's own `Box::into_raw`.
    let message = unsafe { message.assume_init() };
    // SAFETY: as above.
    (!message.is_null()).then(|| unsafe { Box::from_raw(message) })
}

#[test]
fn no_message_costs_an_allocation() {
    let daemon = common::Bus::start();
    let (mut a, mut b) = (connect(&daemon), connect(&daemon));
    let name = c"org.example.B".as_ptr();
    assert_eq!(kdbus_rt_name_acquire(Some(&mut b), name, 0, None), 0);
    let large = vec![7_u8; 100_000];
    let mut all_kinds = || {
        for payload in [&large[..10], &large[..]] {
            let message = Outgoing {
                name,
                payload: payload.as_ptr().cast(),
                payload_len: payload.len(),
                ..Outgoing::zeroed()
            };
            for flags in [0, KDBUS_RT_RECV_PRIORITY] {
                assert_eq!(kdbus_rt_send(Some(&mut a), Some(&message), None), 0);
                let received = recv(&mut b, flags);
                assert_eq!(kdbus_rt_message_payload_len(received.as_deref()), payload.len() as u64);
                kdbus_rt_message_free(received);
            }
            let request = Outgoing { flags: KDBUS_RT_EXPECT_REPLY, reply_until: u64::MAX, ..message };
            assert_eq!(kdbus_rt_send(Some(&mut a), Some(&request), None), 0);
            let received = recv(&mut b, 0);
            assert_eq!(kdbus_rt_reply(received.as_deref(), message.payload, 10), 0);
            kdbus_rt_message_free(received);
            kdbus_rt_message_free(recv(&mut a, 0));
            // A failure has a text, and costs no more.
            let nobody = Outgoing { name: c"org.example.Nobody".as_ptr(), ..message };
            assert_eq!(kdbus_rt_send(Some(&mut a), Some(&nobody), None), -3);
            assert_eq!(kdbus_rt_call(Some(&mut a), Some(&message), 1, -1, None), -110);
            kdbus_rt_message_free(recv(&mut b, 0));
        }
        assert!(recv(&mut b, 0).is_none() && recv(&mut a, 0).is_none());
    };
    all_kinds();
    COUNTED.with(|counted| counted.set(true));
    drop(std::hint::black_box(Box::new(0_u8)));
    assert_eq!(ALLOCATIONS.with(Cell::get), 1, "this thread is counted");
    for _ in 0..50 {
        all_kinds();
    }
    COUNTED.with(|counted| counted.set(false));
    assert_eq!(ALLOCATIONS.with(Cell::get), 1);
    kdbus_rt_close(Some(a));
    kdbus_rt_close(Some(b));
}
