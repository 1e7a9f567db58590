//! Log frames of defmt, written to a descriptor.
//!
//! A frame is put together here and written with one system call. Where that fails (a full pipe that does not wait, a
//! reader that is gone) it is lost, and the decoder finds the next one by the zero byte between frames.
#![allow(unsafe_code)]

use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use defmt::Encoder;
use rustix::fd::BorrowedFd;

/// Bytes of the longest frame that is written at once.
const FRAME: usize = 256;

static LOG: Log = Log {
    descriptor: AtomicI32::new(1),
    taken: AtomicBool::new(false),
    frame: UnsafeCell::new(Frame { encoder: Encoder::new(), bytes: heapless::Vec::new() }),
};

struct Log {
    descriptor: AtomicI32,
    /// A frame is being put together.
    taken: AtomicBool,
    frame: UnsafeCell<Frame>,
}

struct Frame {
    encoder: Encoder,
    bytes: heapless::Vec<u8, FRAME>,
}

// SAFETY: only whoever has set `taken` touches `frame`, until it is cleared.
unsafe impl Sync for Log {}

/// Has further frames written to `descriptor`.
pub(crate) fn to(descriptor: i32) {
    LOG.descriptor.store(descriptor, Ordering::Relaxed);
}

impl Frame {
    /// Takes encoded bytes in, and writes what there is when they do not fit.
    fn push(bytes: &mut heapless::Vec<u8, FRAME>, more: &[u8]) {
        for byte in more {
            if bytes.is_full() {
                Self::write(bytes);
            }
            // There is room.
            let _ = bytes.push(*byte);
        }
    }

    fn write(bytes: &mut heapless::Vec<u8, FRAME>) {
        let descriptor = LOG.descriptor.load(Ordering::Relaxed);
        // SAFETY: the number is never -1, and stays open as it was when the process started: nothing here closes it.
        let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
        let _ = rustix::io::retry_on_intr(|| rustix::io::write(descriptor, bytes));
        bytes.clear();
    }

    fn with(&mut self, encode: impl FnOnce(&mut Encoder, &mut dyn FnMut(&[u8]))) {
        let Self { encoder, bytes } = self;
        encode(encoder, &mut |more| Self::push(bytes, more));
    }
}

#[defmt::global_logger]
struct Frames;

// SAFETY: a frame belongs to one context from `acquire` to `release`: a second one would find `taken` set and end the
// process, and there is only one thread.
unsafe impl defmt::Logger for Frames {
    fn acquire() {
        if LOG.taken.swap(true, Ordering::Acquire) {
            // A log call within a log call: nothing could be said about it.
            crate::start::exit(102);
        }
        // SAFETY: `taken` was clear, so nobody else has the frame.
        let frame = unsafe { &mut *LOG.frame.get() };
        frame.with(|encoder, push| encoder.start_frame(push));
    }

    unsafe fn flush() {}

    unsafe fn release() {
        // SAFETY: the caller has acquired the log.
        let frame = unsafe { &mut *LOG.frame.get() };
        frame.with(|encoder, push| encoder.end_frame(push));
        Frame::write(&mut frame.bytes);
        LOG.taken.store(false, Ordering::Release);
    }

    unsafe fn write(bytes: &[u8]) {
        // SAFETY: the caller has acquired the log.
        let frame = unsafe { &mut *LOG.frame.get() };
        frame.with(|encoder, push| encoder.write(bytes, push));
    }
}

// Microseconds since the machine started, as the bus counts them.
defmt::timestamp!("{=u64:us}", {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000 + now.tv_nsec as u64 / 1000
});
