//! What the client of a contender and its other processes tell each other besides the messages that are measured.

use std::io;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use rustix::thread::futex;
use rustix::time::{ClockId, clock_gettime};

use crate::shared::{PAGE, Shared};

/// Where the medium of shared memory itself begins; control has the page before.
pub const AREA: usize = PAGE;

/// How long processes may take to get ready.
pub const PATIENCE: Duration = Duration::from_secs(20);

// Words of the control page, each in a cache line of its own.
const READY: usize = 0;
const GO: usize = 64;
const HEARD: usize = 128;
const LAST_AT: usize = 192;
const RECEIVED: usize = 256;
const LATENCY: usize = 320;

/// The page of a contender that its processes share.
#[derive(Debug)]
pub struct Control<'s>(pub &'s Shared);

impl Control<'_> {
    /// Tells the client that this process is ready for messages.
    pub fn ready(&self) {
        self.0.word(READY).fetch_add(1, Release);
    }

    /// Waits until `count` processes are ready; `check` says if one of them ended instead.
    ///
    /// # Errors
    ///
    /// What `check` says, or that it takes too long.
    pub fn wait_ready(&self, count: usize, mut check: impl FnMut() -> io::Result<()>) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        while (self.0.word(READY).load(Acquire) as usize) < count {
            check()?;
            if Instant::now() > until {
                return Err(io::Error::other("the other processes take too long to get ready"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Lets processes that look instead of sleeping look, or has them rest.
    pub fn go(&self, on: bool) {
        self.0.word(GO).store(u32::from(on), Release);
        if on {
            let _ = futex::wake(self.0.word(GO), futex::Flags::empty(), i32::MAX as u32);
        }
    }

    /// Whether to look on.
    #[must_use]
    pub fn goes(&self) -> bool {
        self.0.word(GO).load(Relaxed) == 1
    }

    /// Rests until there is something to look at.
    pub fn rest(&self) {
        // Whatever ends the wait, the caller looks again.
        let _ = futex::wait(self.0.word(GO), futex::Flags::empty(), 0, None);
    }

    /// Counts a message of a stream that was sent at `sent_at`, 0 for one whose latency is nobody's business.
    pub fn received(&self, sent_at: u64) {
        if sent_at != 0 {
            self.0.long(LATENCY).store(now_ns().saturating_sub(sent_at), Relaxed);
        }
        let count = self.0.long(RECEIVED);
        // There is one receiver.
        count.store(count.load(Relaxed) + 1, Release);
    }

    /// Messages of the stream that have come in, and nanoseconds that the last one with a time took.
    #[must_use]
    pub fn so_far(&self) -> (u64, u64) {
        (self.0.long(RECEIVED).load(Acquire), self.0.long(LATENCY).load(Relaxed))
    }

    /// Notes that this subscriber has the broadcast. The last of `count` wakes the client.
    pub fn heard(&self, count: usize) {
        self.0.long(LAST_AT).fetch_max(now_ns(), Relaxed);
        let heard = self.0.word(HEARD);
        if heard.fetch_add(1, AcqRel) as usize + 1 == count {
            let _ = futex::wake(heard, futex::Flags::empty(), 1);
        }
    }

    /// Waits until `count` subscribers have the broadcast; when the last of them had it. Then counts from 0 again.
    ///
    /// # Errors
    ///
    /// If they never have it.
    pub fn wait_heard(&self, count: usize) -> io::Result<u64> {
        let heard = self.0.word(HEARD);
        let until = Instant::now() + PATIENCE;
        loop {
            let so_far = heard.load(Acquire);
            if so_far as usize >= count {
                break;
            }
            let second = rustix::fs::Timespec { tv_sec: 1, tv_nsec: 0 };
            // Woken, or too late for it: both look again.
            let _ = futex::wait(heard, futex::Flags::empty(), so_far, Some(&second));
            if Instant::now() > until {
                return Err(io::Error::other("a broadcast was lost on its way"));
            }
        }
        heard.store(0, Release);
        Ok(self.0.long(LAST_AT).load(Relaxed))
    }
}

/// The monotonic clock, which all processes share.
#[must_use]
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    // Neither part is negative, and the sum lasts for centuries.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
